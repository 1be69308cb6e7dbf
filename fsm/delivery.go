package fsm

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// DeliveryStatus says how far a delivery is.
type DeliveryStatus string

const (
	// DeliveryPending is to be sent, for the first time or again.
	DeliveryPending DeliveryStatus = "pending"
	// DeliveryDelivered was answered with a 2xx.
	DeliveryDelivered DeliveryStatus = "delivered"
	// DeliveryDead was given up, and is not sent again unless it is replayed.
	DeliveryDead DeliveryStatus = "dead"
)

// TestDeliveryType is the type of a delivery that tells of no step.
const TestDeliveryType = "pawl.subscription.test"

// Delivery is a webhook: a step, and what became of telling a subscription of it.
type Delivery struct {
	// ID is the webhook-id, the same in each attempt.
	ID uuid.UUID
	// SubscriptionID is nil for the callback of an instance.
	SubscriptionID *uuid.UUID
	// InstanceID and Version are those of the step; nil for a test.
	InstanceID *uuid.UUID
	Version    *int64
	// Type is that of the CloudEvent.
	Type     string
	Status   DeliveryStatus
	Attempts int
	// NextAttemptAt is nil unless it is pending, and while an earlier step of the instance is.
	NextAttemptAt *time.Time
	// LastStatus, LastError and LastResponse are those of the last attempt, nil if there was
	// none of them. The response is its body's first KiB.
	LastStatus   *int
	LastError    *string
	LastResponse *string
	CreatedAt    time.Time
	DeliveredAt  *time.Time
}

func deliveryOf(d queries.Delivery) Delivery {
	out := Delivery{
		ID: d.ID, InstanceID: d.InstanceID, Version: d.Version, Type: d.Type, Status: DeliveryStatus(d.Status),
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
		out.NextAttemptAt = &d.CreatedAt // A test goes before all others.
	}
	return out
}

// DeliveryFilter chooses deliveries. A zero member chooses all.
type DeliveryFilter struct {
	SubscriptionID, InstanceID uuid.UUID
	Status                     DeliveryStatus
}

// Deliveries returns the log of deliveries, the newest first. Settled ones are in it for some
// days. A cursor belongs to the filter it came from.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Deliveries(ctx context.Context, tenant string, f DeliveryFilter, page Page) (List[Delivery], error) {
	if err := checkText("", string(f.Status), 255); err != nil {
		return List[Delivery]{}, err
	}
	scope, err := json.Marshal(f)
	if err != nil {
		return List[Delivery]{}, AsError(err)
	}
	return list(ctx, s, page, "deliveries "+tenant+" "+string(scope),
		func(ctx context.Context, _ *queries.Queries, after string, limit int32) ([]queries.Delivery, error) {
			p := queries.ListDeliveriesParams{
				TenantID: tenant, SubscriptionID: optional(f.SubscriptionID), InstanceID: optional(f.InstanceID),
				Status: optional(string(f.Status)), RowLimit: limit,
			}
			if after != "" {
				id, err := uuid.Parse(after)
				if err != nil {
					return nil, err
				}
				p.BeforeID = &id
			}
			return queries.New(planned{s.pool}).ListDeliveries(ctx, p)
		},
		deliveryOf,
		func(d Delivery) string { return d.ID.String() })
}

// GetDelivery returns a delivery. Kinds: NotFound, Unavailable.
func (s *Service) GetDelivery(ctx context.Context, tenant string, id uuid.UUID) (Delivery, error) {
	var d queries.Delivery
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		d, err = q.GetDelivery(ctx, queries.GetDeliveryParams{TenantID: tenant, ID: id})
		return notFound(err, NotFound, "there is no such delivery")
	})
	return deliveryOf(d), err
}

// ReplayDelivery makes a settled delivery pending again, under its id and with all attempts
// ahead. Kinds: NotFound, DeliveryConflict if it is pending or its subscription is gone,
// Unavailable.
func (s *Service) ReplayDelivery(ctx context.Context, tenant string, id uuid.UUID) (Delivery, error) {
	d, err := s.GetDelivery(ctx, tenant, id)
	if err != nil {
		return d, err
	}
	if d.Status == DeliveryPending {
		return d, errorf(DeliveryConflict, "the delivery is pending: it will be sent anyway")
	}
	row, err := s.queries.ReplayDeliveries(ctx, queries.ReplayDeliveriesParams{Tenant: tenant, Ids: []uuid.UUID{id}, RowLimit: 1})
	switch {
	case err != nil:
		return d, AsError(err)
	case row.Replayed == 0:
		return d, errorf(DeliveryConflict, "the subscription that the delivery belongs to is gone")
	}
	return s.GetDelivery(ctx, tenant, id)
}

// ReplayFilter chooses settled deliveries of subscriptions that are there.
type ReplayFilter struct {
	// SubscriptionID is the only one whose deliveries are chosen; zero chooses all.
	SubscriptionID uuid.UUID
	// Status is DeliveryDead, the default, or DeliveryDelivered.
	Status DeliveryStatus
	// After and Before bound when they were made, both exclusive; zero bounds nothing.
	After, Before time.Time
}

// replayPage is how many deliveries are replayed in one call.
const replayPage = 500

// ReplayDeliveries replays all that the filter leaves, the oldest first, and says how many. If
// it ends early, some are replayed: what is left may be replayed by another call.
// Kinds: Malformed, Unavailable.
func (s *Service) ReplayDeliveries(ctx context.Context, tenant string, f ReplayFilter) (int, error) {
	if f.Status == "" {
		f.Status = DeliveryDead
	}
	if f.Status != DeliveryDead && f.Status != DeliveryDelivered {
		return 0, malformed("/status", "must be dead or delivered: what is pending will be sent anyway")
	}
	replayed := 0
	p := queries.ReplayDeliveriesParams{
		Tenant: tenant, SubscriptionID: optional(f.SubscriptionID), Status: string(f.Status), CreatedAfter: optional(f.After),
		CreatedBefore: optional(f.Before), RowLimit: replayPage,
	}
	for {
		row, err := s.queries.ReplayDeliveries(ctx, p)
		if err != nil {
			return replayed, AsError(err)
		}
		replayed += int(row.Replayed)
		if row.LookedAt < replayPage {
			return replayed, nil
		}
		p.After = &row.Last
	}
}
