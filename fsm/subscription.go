package fsm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/address"
)

// WebhookPolicy is address.Policy under a name that programs which embed fsm can write: they
// cannot import an internal package.
type WebhookPolicy = address.Policy

// WebhookSubscription is an endpoint that is told of steps.
type WebhookSubscription struct {
	ID  uuid.UUID
	URL string
	SubscriptionFilter
	// Secret signs what is sent. Only the calls that set it return it.
	Secret string
	// PreviousSecretUntil is until when the secret before it signs as well, nil if there is none.
	PreviousSecretUntil *time.Time
	// DisabledAt is nil while it is told of steps.
	DisabledAt     *time.Time
	DisabledReason *string
	// Failures counts the attempts that failed since one got there.
	Failures int
	// RestsUntil is when an endpoint that keeps failing is tried again, nil if it is well.
	RestsUntil *time.Time
	CreatedAt  time.Time
	CreatedBy  string
}

// SubscriptionFilter chooses steps: those of all that it names. An empty list names all.
type SubscriptionFilter struct {
	Workflows []string
	Events    []string
	// States are entered, or have states within that are.
	States []string
	// TerminalOnly leaves the steps into final states.
	TerminalOnly bool
}

func subscriptionOf(s queries.Subscription) WebhookSubscription {
	return WebhookSubscription{
		ID: s.ID, URL: s.Url,
		SubscriptionFilter: SubscriptionFilter{
			Workflows: s.Workflows, Events: s.Events, States: s.States, TerminalOnly: s.TerminalOnly,
		},
		PreviousSecretUntil: s.PreviousSecretUntil, DisabledAt: s.DisabledAt, DisabledReason: s.DisabledReason,
		Failures: int(s.Failures), RestsUntil: s.RestsUntil, CreatedAt: s.CreatedAt, CreatedBy: s.CreatedBy,
	}
}

// secretOverlap is for how long a secret that was replaced signs as well.
const secretOverlap = 24 * time.Hour

// Subscribe makes a subscription to the steps committed from now on. Without a secret it gets
// one. The result shows the secret.
// Kinds: Malformed for a URL, an address, a secret or a name in the filter that will not do,
// all at once; Unavailable.
func (s *Service) Subscribe(ctx context.Context, tenant, url string, f SubscriptionFilter, secret, actor string) (WebhookSubscription, error) {
	faults, err := s.checkFilter(ctx, f)
	if err != nil {
		return WebhookSubscription{}, err
	}
	faults = append(s.checkEndpoint(ctx, "/url", url, true), faults...)
	if secret == "" {
		secret = newSecret()
	} else {
		faults = append(faults, faultsOf(checkSecret("/secret", secret))...)
	}
	if err := unacceptable(faults); err != nil {
		return WebhookSubscription{}, err
	}
	row, err := s.queries.CreateSubscription(ctx, queries.CreateSubscriptionParams{
		Tenant: tenant, Url: url, Workflows: names(f.Workflows), Events: names(f.Events), States: names(f.States),
		TerminalOnly: f.TerminalOnly, Secret: secret, Actor: cmp.Or(actor, "anonymous"),
	})
	if err != nil {
		return WebhookSubscription{}, AsError(err)
	}
	out := subscriptionOf(row)
	out.Secret = row.Secret
	return out, nil
}

// GetSubscription returns a subscription. Kinds: NotFound, Unavailable.
func (s *Service) GetSubscription(ctx context.Context, tenant string, id uuid.UUID) (WebhookSubscription, error) {
	var row queries.Subscription
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetSubscription(ctx, queries.GetSubscriptionParams{TenantID: tenant, ID: id})
		return noSubscription(err)
	})
	return subscriptionOf(row), err
}

func noSubscription(err error) error { return notFound(err, NotFound, "there is no such subscription") }

// Subscriptions returns a tenant's, the newest first.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Subscriptions(ctx context.Context, tenant string, page Page) (List[WebhookSubscription], error) {
	return list(ctx, s, page, "subscriptions "+tenant,
		func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]queries.Subscription, error) {
			p := queries.ListSubscriptionsParams{TenantID: tenant, RowLimit: limit}
			if after != "" {
				id, err := uuid.Parse(after)
				if err != nil {
					return nil, err
				}
				p.BeforeID = &id
			}
			return q.ListSubscriptions(ctx, p)
		},
		subscriptionOf,
		func(s WebhookSubscription) string { return s.ID.String() })
}

// SubscriptionChange is what UpdateSubscription changes: what is not nil.
type SubscriptionChange struct {
	URL    *string
	Filter *SubscriptionFilter
	// Disabled stops the routing and the sending. What is pending is sent when it is enabled
	// again; what happens meanwhile it is never told of.
	Disabled *bool
}

// UpdateSubscription changes a subscription. The kinds are those of Subscribe, and NotFound.
func (s *Service) UpdateSubscription(ctx context.Context, tenant string, id uuid.UUID, c SubscriptionChange) (WebhookSubscription, error) {
	if _, err := s.GetSubscription(ctx, tenant, id); err != nil {
		return WebhookSubscription{}, err
	}
	p := queries.UpdateSubscriptionParams{Tenant: tenant, ID: id, Url: c.URL, Disabled: c.Disabled}
	var faults []Fault
	if c.URL != nil {
		faults = s.checkEndpoint(ctx, "/url", *c.URL, true)
	}
	if f := c.Filter; f != nil {
		wrong, err := s.checkFilter(ctx, *f)
		if err != nil {
			return WebhookSubscription{}, err
		}
		faults = append(faults, wrong...)
		p.Workflows, p.Events, p.States, p.TerminalOnly = names(f.Workflows), names(f.Events), names(f.States), &f.TerminalOnly
	}
	if err := unacceptable(faults); err != nil {
		return WebhookSubscription{}, err
	}
	row, err := s.queries.UpdateSubscription(ctx, p)
	if err != nil {
		return WebhookSubscription{}, AsError(noSubscription(err))
	}
	return subscriptionOf(row), nil
}

// Unsubscribe deletes a subscription. What is pending for it is given up; the log stays.
// Kinds: NotFound, Unavailable.
func (s *Service) Unsubscribe(ctx context.Context, tenant string, id uuid.UUID) error {
	deleted, err := s.queries.DeleteSubscription(ctx, queries.DeleteSubscriptionParams{Tenant: tenant, ID: id})
	switch {
	case err != nil:
		return AsError(err)
	case !deleted:
		return errorf(NotFound, "there is no such subscription")
	}
	return nil
}

// RotateSecret replaces the secret, by a new one if it is empty. For a day what is sent is
// signed with the old one too. The result shows the new one.
// Kinds: Malformed, NotFound, Unavailable.
func (s *Service) RotateSecret(ctx context.Context, tenant string, id uuid.UUID, secret string) (WebhookSubscription, error) {
	if secret == "" {
		secret = newSecret()
	} else if err := checkSecret("/secret", secret); err != nil {
		return WebhookSubscription{}, err
	}
	row, err := s.queries.RotateSecret(ctx, queries.RotateSecretParams{
		Tenant: tenant, ID: id, Secret: secret, Overlap: pgtype.Interval{Microseconds: secretOverlap.Microseconds(), Valid: true},
	})
	if err != nil {
		return WebhookSubscription{}, AsError(noSubscription(err))
	}
	out := subscriptionOf(row)
	out.Secret = row.Secret
	return out, nil
}

// TestSubscription sends a delivery that tells of nothing, before all others and even if the
// endpoint rests. Kinds: NotFound, DeliveryConflict if it is disabled, Unavailable.
func (s *Service) TestSubscription(ctx context.Context, tenant string, id uuid.UUID) (Delivery, error) {
	subscription, err := s.GetSubscription(ctx, tenant, id)
	switch {
	case err != nil:
		return Delivery{}, err
	case subscription.DisabledAt != nil:
		return Delivery{}, errorf(DeliveryConflict, "the subscription is disabled: %s", *subscription.DisabledReason)
	}
	row, err := s.queries.TestSubscription(ctx, queries.TestSubscriptionParams{Tenant: tenant, ID: id})
	if err != nil {
		return Delivery{}, AsError(noSubscription(err))
	}
	return deliveryOf(row), nil
}

// newSecret is one as Standard Webhooks has it, of 256 bits.
func newSecret() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // It never fails.
	return address.SecretPrefix + base64.StdEncoding.EncodeToString(key)
}

// checkSecret refuses what is no secret of Standard Webhooks.
func checkSecret(at, secret string) error {
	err := address.CheckSecret(secret)
	if err == nil {
		return nil
	}
	detail := err.Error()
	if at == "/secret" { // A subscription's, of which one is made.
		detail += "; leave it out to get one"
	}
	return malformed(at, detail)
}

// checkCallback refuses a callback that could not be sent, or not be signed. Its host is not
// looked up: there may be a thousand in a batch.
func (s *Service) checkCallback(ctx context.Context, c *CreateCommand) error {
	switch {
	case c.CallbackURL == "" && c.CallbackSecret == "":
		return nil
	case c.CallbackURL == "":
		return malformed("/callback_secret", "does not go without callback_url")
	}
	faults := s.checkEndpoint(ctx, "/callback_url", c.CallbackURL, false)
	if c.CallbackSecret != "" {
		faults = append(faults, faultsOf(checkSecret("/callback_secret", c.CallbackSecret))...)
	}
	switch {
	case len(faults) > 0:
		return &Error{Kind: Malformed, Message: "the callback is not acceptable", Faults: faults}
	case c.CallbackSecret == "" && s.config.Webhooks.Secret == "":
		return errorf(CallbackSecretRequired, "the deployment has no secret to sign the callback with; send a callback_secret")
	}
	return nil
}

// checkEndpoint faults a URL that nothing can, or may, be sent to. A host is looked up, if
// wanted, but one that cannot be just now is no fault: what is sent is checked again, whatever
// the name resolves to then.
func (s *Service) checkEndpoint(ctx context.Context, at, raw string, lookUp bool) []Fault {
	fault := func(detail string) []Fault { return []Fault{{Pointer: at, Detail: detail}} }
	if err := checkText(at, raw, 2048); err != nil {
		return faultsOf(err)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return fault("must be an absolute http or https URL")
	case u.User != nil:
		return fault("must not hold a user or a password: what is sent is signed")
	case u.Fragment != "":
		return fault("must not have a fragment, which is never sent")
	case u.Port() != "" && !isPort(u.Port()):
		return fault("has no port between 1 and 65535")
	case s.config.Webhooks.AllowPrivate:
		return nil
	}
	guard := address.NewGuard()
	var addresses []netip.Addr
	if literal, err := netip.ParseAddr(u.Hostname()); err == nil {
		addresses = []netip.Addr{literal}
	} else if lookUp || strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), "localhost") {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		addresses, _ = net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	}
	for _, a := range addresses {
		if !guard.Allows(a) {
			return fault("must not lead to a loopback, private, link-local or other special address")
		}
	}
	return nil
}

func isPort(text string) bool {
	n := 0
	_, err := fmt.Sscanf(text, "%d", &n)
	return err == nil && n >= 1 && n <= 65535
}

// maxNames is how many a list of a filter may have.
const maxNames = 100

// checkFilter faults the names that no workflow has, or none of those that the filter names.
func (s *Service) checkFilter(ctx context.Context, f SubscriptionFilter) ([]Fault, error) {
	var faults []Fault
	lists := map[string][]string{"workflows": f.Workflows, "events": f.Events, "states": f.States}
	for _, kind := range []string{"workflows", "events", "states"} {
		if len(lists[kind]) > maxNames {
			faults = append(faults, Fault{Pointer: "/filter/" + kind, Detail: fmt.Sprintf("must have at most %d names", maxNames)})
		}
		for i, name := range lists[kind] {
			if err := checkText(fmt.Sprintf("/filter/%s/%d", kind, i), name, 255); err != nil {
				faults = append(faults, faultsOf(err)...)
			}
		}
	}
	if len(faults) > 0 || len(f.Workflows)+len(f.Events)+len(f.States) == 0 {
		return faults, nil
	}
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
		unknown, err := q.UnknownNames(ctx, queries.UnknownNamesParams{
			Workflows: names(f.Workflows), Events: names(f.Events), States: names(f.States),
		})
		faults = nil
		for _, u := range unknown {
			faults = append(faults, Fault{
				Pointer: fmt.Sprintf("/filter/%s/%d", u.Kind, u.Place),
				Detail:  fmt.Sprintf("there is no %s %s", strings.TrimSuffix(u.Kind, "s"), lists[u.Kind][u.Place]),
			})
		}
		return err
	})
	return faults, err
}

// names is an empty list for none, where nil would be no list.
func names(list []string) []string { return append([]string{}, list...) }

func faultsOf(err error) []Fault {
	if err == nil {
		return nil
	}
	return AsError(err).Faults
}

// unacceptable is an error if there are faults.
func unacceptable(faults []Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &Error{Kind: Malformed, Message: "the subscription is not acceptable", Faults: faults}
}
