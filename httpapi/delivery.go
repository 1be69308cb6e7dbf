package httpapi

import (
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm/subscription"
)

func deliveryOf(d subscription.Delivery) Delivery {
	text := func(id *uuid.UUID) *string {
		if id == nil {
			return nil
		}
		s := id.String()
		return &s
	}
	return Delivery{
		ID: d.ID.String(), SubscriptionID: text(d.SubscriptionID), InstanceID: text(d.InstanceID), Version: d.Version,
		Type: d.Type, Status: DeliveryStatus(d.Status), Attempts: d.Attempts, NextAttemptAt: timestampOf(d.NextAttemptAt),
		LastStatus: d.LastStatus, LastError: d.LastError, LastResponse: d.LastResponse, CreatedAt: Timestamp(d.CreatedAt),
		DeliveredAt: timestampOf(d.DeliveredAt),
	}
}

// ListDeliveries lists the log of deliveries, the newest first.
func (s *server) ListDeliveries(ctx context.Context, in ListDeliveriesRequestObject) (ListDeliveriesResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	filter := subscription.DeliveryFilter{Status: subscription.DeliveryStatus(value(in.Params.Status))}
	if filter.SubscriptionID, err = parameterID("subscription_id", in.Params.SubscriptionID); err != nil {
		return nil, err
	}
	if filter.InstanceID, err = parameterID("instance_id", in.Params.InstanceID); err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.subscriptions.Deliveries(ctx, r.principal.tenant, filter, page)
	if err != nil {
		return nil, err
	}
	return ListDeliveries200JSONResponse{
		Body:    DeliveryList{Items: each(list.Items, deliveryOf), NextCursor: optional(list.Next)},
		Headers: ListDeliveries200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// parameterID reads an id that filters. The id of nothing is refused, as it would filter nothing.
func parameterID(name string, text *string) (uuid.UUID, error) {
	if text == nil {
		return uuid.Nil, nil
	}
	id, err := idOf(*text, name)
	if err != nil || id == uuid.Nil {
		return uuid.Nil, malformed(name, "must be a UUID")
	}
	return id, nil
}

// ReplayDelivery sends a settled delivery again.
func (s *server) ReplayDelivery(ctx context.Context, in ReplayDeliveryRequestObject) (ReplayDeliveryResponseObject, error) {
	id, err := idOf(in.ID, "delivery")
	if err != nil {
		return nil, err
	}
	delivery, err := s.subscriptions.ReplayDelivery(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return ReplayDelivery202JSONResponse(deliveryOf(delivery)), nil
}

// ReplayDeliveries sends those that a filter leaves again.
func (s *server) ReplayDeliveries(ctx context.Context, in ReplayDeliveriesRequestObject) (ReplayDeliveriesResponseObject, error) {
	body := value(in.Body)
	filter := subscription.ReplayFilter{
		Status: subscription.DeliveryStatus(value(body.Status)), After: bound(body.After), Before: bound(body.Before),
	}
	if body.Status != nil && *body.Status == "" {
		return nil, malformedAt("/status", "the status is empty", "must be dead or delivered")
	}
	if body.SubscriptionID != nil {
		id, err := idOf(*body.SubscriptionID, "subscription")
		if err != nil || id == uuid.Nil {
			return nil, malformedAt("/subscription_id", "an id is not well formed", "must be a UUID")
		}
		filter.SubscriptionID = id
	}
	replayed, err := s.subscriptions.ReplayDeliveries(ctx, requestOf(ctx).principal.tenant, filter)
	if err != nil {
		return nil, err
	}
	return ReplayDeliveries200JSONResponse{Replayed: replayed}, nil
}
