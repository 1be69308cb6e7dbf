package subscription

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// DeliveryStatus is the state of a delivery.
type DeliveryStatus string

const (
	// DeliveryPending: it is to be sent, for the first time or again.
	DeliveryPending DeliveryStatus = "pending"
	// DeliveryDelivered: the endpoint accepted it.
	DeliveryDelivered DeliveryStatus = "delivered"
	// DeliveryDead: it was given up, and is not sent again unless it is replayed.
	DeliveryDead DeliveryStatus = "dead"
)

// TestDeliveryType is the CloudEvent type of a test delivery, which is about no step.
const TestDeliveryType = "pawl.subscription.test"

// Delivery is one message for one subscription or callback, with the result of its attempts.
type Delivery struct {
	// ID is the same in each attempt, so that a receiver can recognise a repeated delivery.
	ID uuid.UUID
	// SubscriptionID is nil for the callback of an instance.
	SubscriptionID *uuid.UUID
	// InstanceID and Version name the step that the message is about, and FindingID the finding. Of a finding, InstanceID is
	// the instance that it is about, if any. All are nil for a test delivery.
	InstanceID *uuid.UUID
	Version    *int64
	FindingID  *uuid.UUID
	// Type is that of the CloudEvent.
	Type   string
	Status DeliveryStatus
	// Attempts counts the attempts since the delivery was made. A replay starts the count again with its first
	// attempt.
	Attempts int
	// NextAttemptAt is nil if the delivery is not pending, and while an earlier message of the same instance is
	// pending for the same endpoint.
	NextAttemptAt *time.Time
	// LastStatus is the HTTP status of the last attempt's answer, and LastResponse the first KiB of that
	// answer. LastError says why the attempt failed, or why the delivery was abandoned. Each is nil if there
	// is none.
	LastStatus   *int
	LastError    *string
	LastResponse *string
	CreatedAt    time.Time
	// DeliveredAt is when the endpoint last accepted the delivery, or nil. It stays if a replay fails.
	DeliveredAt *time.Time
}

func deliveryOf(d queries.Delivery) Delivery {
	out := Delivery{
		ID: d.ID, InstanceID: d.InstanceID, Version: d.Version, FindingID: d.FindingID, Type: d.Type, Status: DeliveryStatus(d.Status),
		Attempts: int(d.Attempts), NextAttemptAt: d.NextAttemptAt, LastError: d.LastError, LastResponse: d.LastResponse,
		CreatedAt: d.CreatedAt, DeliveredAt: d.DeliveredAt,
	}
	if !d.Callback {
		out.SubscriptionID = &d.SubscriptionID
	}
	if d.LastStatus != nil {
		status := int(*d.LastStatus)
		out.LastStatus = &status
	}
	if d.NextAttemptAt != nil && d.NextAttemptAt.Before(d.CreatedAt) {
		// A test delivery is due since 1970, so that it precedes all others.
		out.NextAttemptAt = &d.CreatedAt
	}
	return out
}

// DeliveryFilter chooses deliveries. A zero member chooses all of them.
type DeliveryFilter struct {
	SubscriptionID, InstanceID uuid.UUID
	Status                     DeliveryStatus
	// Within, if not nil, chooses the deliveries that lie within these workflows: those for subscriptions and callbacks
	// that do. A page then looks at no more than 1,000 deliveries, so that it may be empty although the list goes on.
	Within []string
}

// maxLooked is how many deliveries a page looks at if DeliveryFilter.Within is set.
const maxLooked = 1000

// Deliveries returns deliveries, the newest first. The sender purges settled ones after some days; see
// KeepDelivered and KeepDead of the Config of package outbox/webhook. A cursor is valid only with the filter
// that it was given for.
//
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Deliveries(ctx context.Context, tenant string, f DeliveryFilter, page fsm.Page) (fsm.List[Delivery], error) {
	if err := fsm.CheckTexts(fsm.Text{Value: string(f.Status), Max: 255}); err != nil {
		return fsm.List[Delivery]{}, err
	}
	scope, err := json.Marshal(f)
	if err != nil {
		return fsm.List[Delivery]{}, fsm.AsError(err)
	}
	var within []uuid.UUID // Those of the rows that lie within.
	listing := database.Listing[queries.Delivery, Delivery]{
		Scope: "deliveries " + tenant + " " + string(scope),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Delivery, error) {
			before, err := database.OptionalID(after)
			if err != nil {
				return nil, err
			}
			rows, err := database.Planned(db).ListDeliveries(ctx, queries.ListDeliveriesParams{
				TenantID: tenant, SubscriptionID: database.Optional(f.SubscriptionID), InstanceID: database.Optional(f.InstanceID),
				Status: database.Optional(string(f.Status)), BeforeID: before, RowLimit: limit,
			})
			if err != nil || f.Within == nil {
				return rows, err
			}
			ids := make([]uuid.UUID, len(rows))
			for i, d := range rows {
				ids[i] = d.ID
			}
			within, err = queries.New(db).DeliveriesWithin(ctx, queries.DeliveriesWithinParams{TenantID: tenant, Ids: ids, Within: f.Within})
			return rows, err
		},
		Item: deliveryOf,
		Key:  func(d Delivery) string { return d.ID.String() },
	}
	if f.Within != nil {
		listing.Look, listing.Shown = maxLooked, func(d queries.Delivery) bool { return slices.Contains(within, d.ID) }
	}
	items, next, err := database.List(ctx, s.db, listing, page.Limit, page.Cursor)
	return fsm.List[Delivery]{Items: items, Next: next}, err
}

const noDelivery = "there is no such delivery"

// ErrNoDelivery is the error for a delivery that does not exist.
var ErrNoDelivery error = fsm.Errorf(fsm.NotFound, noDelivery)

// GetDelivery returns a delivery.
// Kinds: NotFound, Unavailable.
func (s *Service) GetDelivery(ctx context.Context, tenant string, id uuid.UUID) (Delivery, error) {
	var d queries.Delivery
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		d, err = q.GetDelivery(ctx, queries.GetDeliveryParams{TenantID: tenant, ID: id})
		return fsm.IfNoRows(err, fsm.NotFound, noDelivery)
	})
	return deliveryOf(d), err
}

// IsWithin reports whether a delivery lies within the workflows; see DeliveryFilter.Within.
// Kinds: Unavailable.
func (s *Service) IsWithin(ctx context.Context, tenant string, id uuid.UUID, workflows []string) (bool, error) {
	var within []uuid.UUID
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		within, err = q.DeliveriesWithin(ctx, queries.DeliveriesWithinParams{TenantID: tenant, Ids: []uuid.UUID{id}, Within: workflows})
		return err
	})
	return len(within) > 0, err
}

// ReplayDelivery makes a settled delivery pending again, with the full number of attempts. It keeps its id, and
// what is known of it until there is a new result.
//
// Kinds: NotFound, DeliveryConflict if it is pending, or if its subscription, instance or finding is gone, Unavailable.
func (s *Service) ReplayDelivery(ctx context.Context, tenant string, id uuid.UUID) (Delivery, error) {
	d, err := s.GetDelivery(ctx, tenant, id)
	if err != nil {
		return d, err
	}
	if d.Status == DeliveryPending {
		return d, fsm.Errorf(fsm.DeliveryConflict, "the delivery is pending: it will be sent anyway")
	}
	row, err := s.replay(ctx, queries.DeliveryReplayParams{Tenant: tenant, Ids: []uuid.UUID{id}, RowLimit: 1})
	switch {
	case err != nil:
		return d, err
	case row.Replayed == 0:
		return d, fsm.Errorf(fsm.DeliveryConflict, "the delivery cannot be sent any more: its subscription was deleted, its callback was delivered, or its instance or finding was purged")
	}
	return s.GetDelivery(ctx, tenant, id)
}

// ReplayFilter chooses settled deliveries.
type ReplayFilter struct {
	// SubscriptionID whose deliveries are chosen; zero chooses those of all.
	SubscriptionID uuid.UUID
	// Status is DeliveryDead, the default, or DeliveryDelivered.
	Status DeliveryStatus
	// After and Before bound the time at which the deliveries were made, both exclusive. Zero is no bound.
	After, Before time.Time
}

// replayPage is how many deliveries are replayed in one call.
const replayPage = 500

// Replayed counts the deliveries of a ReplayDeliveries.
type Replayed struct {
	// Replayed is how many are pending again. Gone is how many cannot be sent any more, and did not change: their
	// subscriptions, instances or findings are gone.
	Replayed, Gone int
}

// ReplayDeliveries replays all deliveries that the filter chooses, the oldest first, and counts them. With an
// error it counts those until then; another call replays the rest. The audit has one row, or two for more than 500
// deliveries: one when it begins, and one with the sum at its end.
//
// Kinds: Malformed, Unavailable.
func (s *Service) ReplayDeliveries(ctx context.Context, tenant string, f ReplayFilter) (Replayed, error) {
	if f.Status == "" {
		f.Status = DeliveryDead
	}
	if f.Status != DeliveryDead && f.Status != DeliveryDelivered {
		return Replayed{}, fsm.MalformedAt("/status", "must be dead or delivered: what is pending will be sent anyway")
	}
	var replayed Replayed
	p := queries.DeliveryReplayParams{
		Tenant: tenant, SubscriptionID: database.Optional(f.SubscriptionID), Status: string(f.Status), CreatedAfter: database.Optional(f.After),
		CreatedBefore: database.Optional(f.Before), RowLimit: replayPage,
	}
	for {
		row, err := s.replay(ctx, p)
		if err != nil {
			return replayed, err
		}
		replayed.Replayed += int(row.Replayed)
		replayed.Gone += int(row.Gone)
		if row.LookedAt < replayPage {
			return replayed, nil
		}
		p.After, p.Earlier = &row.Last, int64(replayed.Replayed)
	}
}

// replay makes one call.
func (s *Service) replay(ctx context.Context, p queries.DeliveryReplayParams) (row queries.DeliveryReplayRow, err error) {
	p.Caller = fsm.CallerJSON(ctx)
	err = s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.DeliveryReplay(ctx, p)
		return err
	})
	return row, err
}
