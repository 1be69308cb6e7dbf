package subscription

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/seal"
)

// Service reads and changes subscriptions and deliveries. It may be used by several goroutines at
// once.
type Service struct {
	db       *database.Client
	webhooks fsm.WebhookPolicy
	keys     seal.Keys
}

// New returns a Service on the database of an fsm.Service, with its policy for webhooks.
func New(service *fsm.Service) *Service {
	return &Service{db: service.Database(), webhooks: service.Webhooks(), keys: service.Keys()}
}

// Subscription is an endpoint and the messages that are sent to it.
type Subscription struct {
	ID uuid.UUID
	// URL is that of the endpoint.
	URL string
	Filter
	// Secret signs the deliveries, by Standard Webhooks. It is empty unless the call has set it.
	Secret string
	// PreviousSecretUntil is the time until which the replaced secret signs too; nil if none was replaced.
	PreviousSecretUntil *time.Time
	// DisabledAt and DisabledReason are nil while messages are routed to the subscription and sent.
	DisabledAt     *time.Time
	DisabledReason *string
	// Failures counts the failed attempts since the last one that succeeded.
	Failures int
	// CircuitOpenUntil is when the endpoint's open circuit becomes half-open; nil if the circuit is closed.
	CircuitOpenUntil *time.Time
	// Finding says why the secret cannot be opened, so that nothing is sent; nil if it can, as far as is known.
	Finding *string
	// CreatedAt and CreatedBy are when and by which actor it was made.
	CreatedAt time.Time
	CreatedBy string
}

// FindingOpened is the CloudEvent type of a finding that was opened.
const FindingOpened = "pawl.finding.opened"

// Types are the CloudEvent types that a filter may name: those of steps, and FindingOpened.
var Types = []string{
	"pawl.instance.created", "pawl.instance.transitioned", "pawl.instance.timed-out", "pawl.instance.expired", "pawl.instance.forced",
	"pawl.instance.cancelled", "pawl.instance.migrated", "pawl.instance.result", "pawl.instance.compensated", FindingOpened,
}

// Filter chooses steps: those that each of its members chooses. A list chooses the steps with one of its
// names, at most 100; an empty list chooses all. It chooses findings too if Types has FindingOpened: those that Workflows and
// States choose, whatever Events and TerminalOnly say.
type Filter struct {
	Workflows []string
	Events    []string
	// States are paths of the states that steps led to, or that the instances of findings were in. The name of a compound
	// state stands for all states within it.
	States []string
	// TerminalOnly chooses the steps that led to final states.
	TerminalOnly bool
	// Types are some of the package's Types.
	Types []string
}

// Within reports whether the filter chooses only steps of instances of these workflows, whatever other workflows there are.
func (f Filter) Within(workflows []string) bool { return fsm.AreWithin(f.Workflows, workflows) }

func subscriptionOf(s queries.Subscription) Subscription {
	return Subscription{
		ID: s.ID, URL: s.Url,
		Filter: Filter{
			Workflows: s.Workflows, Events: s.Events, States: s.States, TerminalOnly: s.TerminalOnly, Types: s.Types,
		},
		PreviousSecretUntil: s.PreviousSecretUntil, DisabledAt: s.DisabledAt, DisabledReason: s.DisabledReason,
		Failures: int(s.Failures), CircuitOpenUntil: s.CircuitOpenUntil, Finding: s.Finding, CreatedAt: s.CreatedAt, CreatedBy: s.CreatedBy,
	}
}

// secretOverlap is for how long a replaced secret signs too.
const secretOverlap = 24 * time.Hour

// Subscribe makes a subscription to the messages of what is committed from now on. If secret is empty, it makes
// one of 256 bits. The result has the secret. An empty actor is "anonymous".
//
// Kinds: Malformed, with all faults of the URL, the filter and the secret; Unavailable.
func (s *Service) Subscribe(ctx context.Context, tenant, url string, f Filter, secret, actor string) (Subscription, error) {
	faults, err := s.checkFilter(ctx, f)
	if err != nil {
		return Subscription{}, err
	}
	url, wrong := s.checkURL(ctx, url)
	faults = append(wrong, faults...)
	if secret == "" {
		secret = newSecret()
	} else {
		faults = append(faults, checkSecret(secret)...)
	}
	if err := unacceptable(faults); err != nil {
		return Subscription{}, err
	}
	var (
		row  queries.Subscription
		seed = uuid.New()
	)
	err = s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.SubscriptionCreate(ctx, queries.SubscriptionCreateParams{
			Tenant: tenant, Url: url, Workflows: database.NotNull(f.Workflows), Events: database.NotNull(f.Events), States: database.NotNull(f.States),
			TerminalOnly: f.TerminalOnly, Secret: s.keys.Seal(secret, seal.Subscription(tenant, seed)), Seed: seed,
			Types: database.NotNull(f.Types), Actor: cmp.Or(actor, "anonymous"), Caller: fsm.CallerJSON(ctx),
		})
		return err
	})
	if err != nil {
		return Subscription{}, err
	}
	out := subscriptionOf(row)
	out.Secret = secret
	return out, nil
}

// GetSubscription returns a subscription.
// Kinds: NotFound, Unavailable.
func (s *Service) GetSubscription(ctx context.Context, tenant string, id uuid.UUID) (Subscription, error) {
	var row queries.Subscription
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetSubscription(ctx, queries.GetSubscriptionParams{TenantID: tenant, ID: id})
		return ifMissing(err)
	})
	return subscriptionOf(row), err
}

// TenantOf returns the tenant that has a subscription.
// Kinds: NotFound, TenantRequired, Unavailable.
func (s *Service) TenantOf(ctx context.Context, id uuid.UUID) (string, error) {
	return fsm.FindTenant(ctx, s.db, ErrNone, func(ctx context.Context, q *queries.Queries) (string, error) {
		return q.TenantOfSubscription(ctx, id)
	})
}

// ErrNone is the error for a subscription that does not exist.
var ErrNone error = fsm.Errorf(fsm.NotFound, noSubscription)

const noSubscription = "there is no such subscription"

// ifMissing is fsm.IfNoRows for a subscription.
func ifMissing(err error) error { return fsm.IfNoRows(err, fsm.NotFound, noSubscription) }

// Subscriptions returns a tenant's subscriptions, the newest first. within, if not nil, chooses those that lie within these
// workflows; see Filter.Within.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Subscriptions(ctx context.Context, tenant string, within []string, page fsm.Page) (fsm.List[Subscription], error) {
	items, next, err := database.List(ctx, s.db, database.Listing[queries.Subscription, Subscription]{
		Scope: "subscriptions " + tenant,
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Subscription, error) {
			before, err := database.OptionalID(after)
			if err != nil {
				return nil, err
			}
			return queries.New(db).ListSubscriptions(ctx, queries.ListSubscriptionsParams{
				TenantID: tenant, BeforeID: before, Within: within, RowLimit: limit,
			})
		},
		Item: subscriptionOf,
		Key:  func(s Subscription) string { return s.ID.String() },
	}, page.Limit, page.Cursor)
	return fsm.List[Subscription]{Items: items, Next: next}, err
}

// Change is what UpdateSubscription changes: every member that is not nil.
type Change struct {
	// URL is the endpoint's, and Filter the whole filter.
	URL    *string
	Filter *Filter
	// Disabled stops the routing and the sending. Pending deliveries are sent when the subscription is
	// enabled again; steps that are committed meanwhile are never routed to it.
	Disabled *bool
}

// UpdateSubscription changes a subscription. The kinds are those of Subscribe, and NotFound.
func (s *Service) UpdateSubscription(ctx context.Context, tenant string, id uuid.UUID, c Change) (Subscription, error) {
	if _, err := s.GetSubscription(ctx, tenant, id); err != nil {
		return Subscription{}, err
	}
	p := queries.SubscriptionUpdateParams{Tenant: tenant, ID: id, Url: c.URL, Disabled: c.Disabled, Caller: fsm.CallerJSON(ctx)}
	var faults []fsm.Fault
	if c.URL != nil {
		url, wrong := s.checkURL(ctx, *c.URL)
		p.Url, faults = &url, wrong
	}
	if f := c.Filter; f != nil {
		wrong, err := s.checkFilter(ctx, *f)
		if err != nil {
			return Subscription{}, err
		}
		faults = append(faults, wrong...)
		p.Workflows, p.Events, p.States, p.TerminalOnly = database.NotNull(f.Workflows), database.NotNull(f.Events), database.NotNull(f.States), &f.TerminalOnly
		p.Types = database.NotNull(f.Types)
	}
	if err := unacceptable(faults); err != nil {
		return Subscription{}, err
	}
	var row queries.Subscription
	err := s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.SubscriptionUpdate(ctx, p)
		return ifMissing(err)
	})
	return subscriptionOf(row), err
}

// Unsubscribe deletes a subscription. Its pending deliveries are abandoned, and all of its deliveries stay to
// be read.
//
// Kinds: NotFound, Unavailable.
func (s *Service) Unsubscribe(ctx context.Context, tenant string, id uuid.UUID) error {
	return s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error {
		deleted, err := q.SubscriptionDelete(ctx, queries.SubscriptionDeleteParams{Tenant: tenant, ID: id, Caller: fsm.CallerJSON(ctx)})
		if err == nil && !deleted {
			return ErrNone
		}
		return err
	})
}

// RotateSecret replaces the secret. If secret is empty, it makes one of 256 bits. For a day the replaced
// secret signs too, unless it is sealed and cannot be opened. The result has the new secret.
//
// Kinds: Malformed, NotFound, Unavailable.
func (s *Service) RotateSecret(ctx context.Context, tenant string, id uuid.UUID, secret string) (Subscription, error) {
	if secret == "" {
		secret = newSecret()
	} else if faults := checkSecret(secret); len(faults) > 0 {
		return Subscription{}, fsm.MalformedAt(faults[0].Pointer, faults[0].Detail)
	}
	var row queries.Subscription
	err := s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = s.replaceSecret(ctx, q, tenant, id, secret)
		return err
	})
	if err != nil {
		return Subscription{}, err
	}
	out := subscriptionOf(row)
	out.Secret = secret
	return out, nil
}

// rotations is how often a rotation is tried, while others replace the same secret.
const rotations = 5

// replaceSecret replaces a secret. The previous one is sealed anew, for its new column. If it cannot be opened it is lost, and
// does not sign any more.
func (s *Service) replaceSecret(ctx context.Context, q *queries.Queries, tenant string, id uuid.UUID, secret string) (row queries.Subscription, err error) {
	for range rotations {
		present, err := q.SubscriptionSealedSecret(ctx, queries.SubscriptionSealedSecretParams{Tenant: tenant, ID: id})
		if err != nil {
			return row, ifMissing(err)
		}
		var previous string
		if opened, err := s.keys.Open(present, seal.Subscription(tenant, id)); err == nil {
			previous = s.keys.Seal(opened, seal.Previous(tenant, id))
		}
		row, err = q.SubscriptionRotateSecret(ctx, queries.SubscriptionRotateSecretParams{
			Tenant: tenant, ID: id, Secret: s.keys.Seal(secret, seal.Subscription(tenant, id)), FromSecret: present, PreviousSecret: previous,
			Overlap: pgtype.Interval{Microseconds: secretOverlap.Microseconds(), Valid: true}, Caller: fsm.CallerJSON(ctx),
		})
		if !errors.Is(err, pgx.ErrNoRows) {
			return row, err
		}
	}
	return row, fsm.Errorf(fsm.Unavailable, "the secret was replaced by others meanwhile; try again")
}

// TestSubscription makes a test delivery, which is about no step. It is sent before all others of the
// subscription, and even while the endpoint's circuit is open.
//
// Kinds: NotFound, DeliveryConflict if the subscription is disabled, Unavailable.
func (s *Service) TestSubscription(ctx context.Context, tenant string, id uuid.UUID) (Delivery, error) {
	subscription, err := s.GetSubscription(ctx, tenant, id)
	switch {
	case err != nil:
		return Delivery{}, err
	case subscription.DisabledAt != nil:
		return Delivery{}, fsm.Errorf(fsm.DeliveryConflict, "the subscription is disabled: %s", *subscription.DisabledReason)
	}
	var row queries.Delivery
	err = s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.SubscriptionTest(ctx, queries.SubscriptionTestParams{Tenant: tenant, ID: id, Caller: fsm.CallerJSON(ctx)})
		return ifMissing(err)
	})
	return deliveryOf(row), err
}

// newSecret returns a secret of 256 bits in the form that address.CheckSecret accepts.
func newSecret() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // It never fails.
	return address.SecretPrefix + base64.StdEncoding.EncodeToString(key)
}

// checkSecret returns the faults of a secret.
func checkSecret(secret string) []fsm.Fault {
	if err := address.CheckSecret(secret); err != nil {
		return []fsm.Fault{{Pointer: "/secret", Detail: err.Error() + "; leave it out to get one"}}
	}
	return nil
}

// checkURL returns an endpoint's URL as it is sent, and its faults.
func (s *Service) checkURL(ctx context.Context, url string) (string, []fsm.Fault) {
	url, err := s.webhooks.CheckURL(ctx, url, true)
	if err != nil {
		return "", []fsm.Fault{{Pointer: "/url", Detail: err.Error()}}
	}
	return url, nil
}

// maxNames is how many names a list of a filter may have.
const maxNames = 100

// checkFilter returns the faults of a filter. Each of its names must exist; if it names workflows, its events
// and states must be some of theirs.
func (s *Service) checkFilter(ctx context.Context, f Filter) ([]fsm.Fault, error) {
	var faults []fsm.Fault
	if len(f.Types) > maxNames {
		faults = append(faults, fsm.Fault{Pointer: "/filter/types", Detail: fmt.Sprintf("must have at most %d names", maxNames)})
	}
	for i, name := range f.Types {
		if !slices.Contains(Types, name) {
			faults = append(faults, fsm.Fault{
				Pointer: fmt.Sprintf("/filter/types/%d", i), Detail: "must be a type of messages that the contract lists",
			})
		}
	}
	lists := map[string][]string{"workflows": f.Workflows, "events": f.Events, "states": f.States}
	for _, kind := range []string{"workflows", "events", "states"} {
		if len(lists[kind]) > maxNames {
			faults = append(faults, fsm.Fault{Pointer: "/filter/" + kind, Detail: fmt.Sprintf("must have at most %d names", maxNames)})
		}
		for i, name := range lists[kind] {
			err := fsm.CheckTexts(fsm.Text{Pointer: fmt.Sprintf("/filter/%s/%d", kind, i), Value: name, Max: 255})
			if err != nil {
				faults = append(faults, fsm.AsError(err).Faults...)
			}
		}
	}
	if len(faults) > 0 || len(f.Workflows)+len(f.Events)+len(f.States) == 0 {
		return faults, nil
	}
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		unknown, err := q.UnknownNames(ctx, queries.UnknownNamesParams{
			Workflows: database.NotNull(f.Workflows), Events: database.NotNull(f.Events), States: database.NotNull(f.States),
		})
		faults = nil
		for _, u := range unknown {
			faults = append(faults, fsm.Fault{
				Pointer: fmt.Sprintf("/filter/%s/%d", u.Kind, u.Place),
				Detail:  fmt.Sprintf("there is no %s %s", strings.TrimSuffix(u.Kind, "s"), lists[u.Kind][u.Place]),
			})
		}
		return err
	})
	return faults, err
}

// unacceptable returns an error if there are faults.
func unacceptable(faults []fsm.Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &fsm.Error{Kind: fsm.Malformed, Message: "the subscription is not acceptable", Faults: faults}
}
