package outbox

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/address"
)

const (
	connectTimeout = 5 * time.Second
	// bodyTimeout is for how long the body of an answer is read. Its status has decided by then.
	bodyTimeout = 2 * time.Second
	// maxExcerpt is how much of a body is kept, and maxDiscard how much more is read, so that
	// the connection can be used again.
	maxExcerpt = 1 << 10
	maxDiscard = 16 << 10
	// maxWait bounds backoff and what a Retry-After may ask for.
	maxWait = time.Hour
)

// newWebhookClient returns a client for endpoints that strangers have named: it follows no
// redirect, uses no proxy, and connects to public addresses only, whatever a name resolves
// to at that time, unless private ones are allowed.
func newWebhookClient(c WebhookConfig) *http.Client {
	dialer := &net.Dialer{Timeout: min(connectTimeout, c.Timeout), KeepAlive: 30 * time.Second}
	if !c.AllowPrivate {
		dialer.Control = address.NewGuard().Control
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            dialer.DialContext,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			TLSHandshakeTimeout:    min(connectTimeout, c.Timeout),
			MaxIdleConns:           c.Concurrency,
			MaxIdleConnsPerHost:    c.PerEndpoint,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

// A message is what is sent, the same in each attempt but for what is renewed.
type message struct {
	endpoint
	id                         string
	body                       []byte
	traceparent, correlationID string
}

// An endpoint is where messages go, and what signs them.
type endpoint struct {
	url string
	// secrets are the present one, and the one before it while that is good.
	secrets []string
}

// An answer is what came of an attempt.
type answer struct {
	// status is 0 if there was no answer.
	status   int
	response string
	// failure says why it is none that a delivery ends with, in words fit for the endpoint's
	// owner; empty if it is.
	failure    string
	retryAfter time.Duration
}

// send makes one attempt.
func send(ctx context.Context, client *http.Client, timeout time.Duration, m message) answer {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := m.request(ctx, time.Now())
	if err != nil {
		return answer{failure: err.Error()}
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{failure: describe(err, timeout)}
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusSwitchingProtocols {
		// What follows is no body, and does not end with the request's context.
		return answer{status: response.StatusCode, failure: "the endpoint answered 101"}
	}
	defer time.AfterFunc(bodyTimeout, cancel).Stop()
	excerpt := make([]byte, maxExcerpt)
	n, _ := io.ReadFull(response.Body, excerpt) // The status counts, whatever becomes of the body.
	_, _ = io.CopyN(io.Discard, response.Body, maxDiscard)
	a := answer{status: response.StatusCode, response: text(string(excerpt[:n]), maxExcerpt)}
	switch {
	case a.status >= 200 && a.status < 300:
	case a.status >= 300 && a.status < 400:
		a.failure = fmt.Sprintf("the endpoint answered %d, and redirects are not followed", a.status)
	default:
		a.failure = fmt.Sprintf("the endpoint answered %d", a.status)
	}
	if a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable {
		a.retryAfter = retryAfter(response.Header.Get("Retry-After"), time.Now())
	}
	return a
}

// request signs the message as Standard Webhooks has it (github.com/standard-webhooks). The
// timestamp is this process's own, since receivers compare it with theirs.
func (m message) request(ctx context.Context, now time.Time) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url, bytes.NewReader(m.body))
	if err != nil {
		return nil, errors.New("the URL is not usable")
	}
	var signatures []string
	for _, secret := range m.secrets {
		webhook, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			return nil, errors.New("the secret is not usable")
		}
		signature, err := webhook.Sign(m.id, now, m.body)
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		signatures = append(signatures, signature)
	}
	if len(signatures) == 0 {
		return nil, errors.New("there is no secret to sign with")
	}
	h := request.Header
	h.Set("Content-Type", CloudEventType)
	h.Set("User-Agent", "pawl-webhooks/1")
	h.Set(standardwebhooks.HeaderWebhookID, m.id)
	h.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	h.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	// SQL callers may have given what no header can hold.
	if fsm.IsVisible(m.traceparent, 255) {
		h.Set("Traceparent", m.traceparent)
	}
	if fsm.IsVisible(m.correlationID, 255) {
		h.Set("X-Correlation-ID", m.correlationID)
	}
	return request, nil
}

// describe words why there was no answer.
func describe(err error, timeout time.Duration) string {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // Its words repeat the URL.
	}
	var timedOut net.Error
	var unresolved *net.DNSError
	switch {
	case errors.As(err, &unresolved):
		return "the host's name does not resolve" // By which server is nobody else's business.
	case errors.Is(err, address.ErrProhibited):
		return "the host has an address that webhooks must not be sent to"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timedOut) && timedOut.Timeout():
		return "no answer within " + timeout.String()
	}
	return text(err.Error(), 500)
}

// text is what Postgres can hold of bytes that may be anything, up to so many.
func text(s string, most int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// retryAfter reads the header: seconds, or an HTTP date (RFC 9110, 10.2.3).
func retryAfter(header string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseInt(header, 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxWait)
}

// testEvent is the CloudEvent of a delivery that tells of no step.
func testEvent(tenant, id, subscriptionID string, at time.Time) ([]byte, error) {
	return json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: id, Source: "/tenants/" + url.PathEscape(tenant) + "/subscriptions/" + subscriptionID,
		Type: subscription.TestDeliveryType, Subject: subscriptionID, Time: timestamp(at), DataContentType: "application/json", TenantID: tenant,
		Data: map[string]string{"subscription_id": subscriptionID},
	})
}

// hostOf is what shares a host's limit: its name and port.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	return cmp.Or(strings.ToLower(u.Host), address)
}
