package webhook

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/outbox"
)

// A delivery is what is needed to send one.
type delivery struct {
	row      *queries.Delivery
	endpoint endpoint
	// event is the step as it was read from the outbox, or finding the finding. Both are nil for a test delivery, and if
	// the step or the finding has been purged.
	event   *queries.Message
	finding *queries.FindingMessage
}

// size is about how many bytes the body has, which holds the context twice.
func (d delivery) size() int {
	if d.finding != nil {
		return len(d.finding.Detail)
	}
	if d.event == nil {
		return 0
	}
	return 2*len(d.event.Context) + len(d.event.Payload) + len(d.event.Error)
}

// An endpoint is where deliveries go, and what signs them.
type endpoint struct {
	url string
	// secrets are the present one and, while it still signs, the one before it.
	secrets []string
}

// host is what the callbacks to one host share: its name and port.
func (e endpoint) host() string {
	u, err := url.Parse(e.url)
	if err != nil {
		return e.url
	}
	return cmp.Or(strings.ToLower(u.Host), e.url)
}

// request makes the request of an attempt, signed by Standard Webhooks
// (github.com/standard-webhooks/standard-webhooks) with each of the secrets. The timestamp is taken
// from this process's clock, since receivers compare it with their own. traceparent is that of the step.
func (d delivery) request(ctx context.Context) (request *http.Request, traceparent string, err error) {
	body, traceparent, correlationID, err := d.body()
	if err != nil {
		return nil, "", errors.New("the message cannot be written")
	}
	// SQL callers may have stored a URL in another form than the one that is sent.
	target, err := address.NormalURL(d.endpoint.url)
	if err != nil {
		return nil, "", errors.New("the URL is not usable: it " + err.Error())
	}
	request, err = http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, "", errors.New("the URL is not usable")
	}
	id, now := d.row.ID.String(), time.Now()
	var signatures []string
	for _, secret := range d.endpoint.secrets {
		webhook, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			return nil, "", errors.New("the secret is not usable")
		}
		signature, err := webhook.Sign(id, now, body)
		if err != nil {
			return nil, "", fmt.Errorf("sign: %w", err)
		}
		signatures = append(signatures, signature)
	}
	if len(signatures) == 0 {
		return nil, "", errors.New("there is no secret to sign with")
	}
	h := request.Header
	h.Set("Content-Type", outbox.CloudEventType)
	h.Set("User-Agent", "pawl-webhooks/1")
	h.Set(standardwebhooks.HeaderWebhookID, id)
	h.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	h.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	// SQL callers may have stored what a header cannot carry.
	if fsm.IsVisible(correlationID, 255) {
		h.Set("X-Correlation-ID", correlationID)
	}
	return request, traceparent, nil
}

// described says which attempt it is, after a step with a traceparent.
func (d delivery) described(traceparent string) outbox.Attempt {
	a := outbox.Attempt{
		Tenant: d.row.TenantID, Method: http.MethodPost, Delivery: d.row.ID, Number: int(d.row.Attempts) + 1, Traceparent: traceparent,
	}
	if !d.row.Callback {
		a.Subscription = d.row.SubscriptionID
	}
	return a
}

// body returns the CloudEvent. It is the same in each attempt, but that a finding may have been closed meanwhile. The
// correlation id is the step's, or else the instance's; what is missing is empty.
func (d delivery) body() (body []byte, traceparent, correlationID string, err error) {
	switch {
	case d.finding != nil:
		body, err = outbox.FindingMessageOf(*d.finding).CloudEvent()
		return body, "", "", err
	case d.event == nil:
		body, err = testMessage(d.row)
		return body, "", "", err
	}
	m := outbox.MessageOf(*d.event)
	if m.Step.Traceparent != nil {
		traceparent = *m.Step.Traceparent
	}
	for _, id := range []*string{m.Instance.CorrelationID, m.Step.CorrelationID} {
		if id != nil {
			correlationID = *id
		}
	}
	body, err = m.CloudEvent()
	return body, traceparent, correlationID, err
}

// testMessage returns the CloudEvent of a test delivery, which is about a subscription and not
// about a step.
func testMessage(row *queries.Delivery) ([]byte, error) {
	id := row.SubscriptionID.String()
	return outbox.Envelope{
		ID: row.ID.String(), Source: "/tenants/" + url.PathEscape(row.TenantID) + "/subscriptions/" + id,
		Type: subscription.TestDeliveryType, Subject: id, Time: row.CreatedAt, TenantID: row.TenantID,
		Data: map[string]string{"subscription_id": id},
	}.CloudEvent()
}
