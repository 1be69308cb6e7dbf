package httpapi

import (
	"context"
	"errors"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// deliveryOf converts a delivery to the form of the contract.
func deliveryOf(d subscription.Delivery) api.Delivery {
	return api.Delivery{
		ID: d.ID.String(), SubscriptionID: textOf(d.SubscriptionID), InstanceID: textOf(d.InstanceID), Version: d.Version,
		FindingID: textOf(d.FindingID), Type: d.Type, Status: api.DeliveryStatus(d.Status), Attempts: d.Attempts, NextAttemptAt: (*api.Timestamp)(d.NextAttemptAt),
		LastStatus: d.LastStatus, LastError: d.LastError, LastResponse: d.LastResponse, CreatedAt: api.Timestamp(d.CreatedAt),
		DeliveredAt: (*api.Timestamp)(d.DeliveredAt),
	}
}

func listedDelivery(i item[subscription.Delivery]) api.Delivery {
	out := deliveryOf(i.value)
	out.Tenant = i.tenant
	return out
}

// ListDeliveries answers with a page of the delivery log, newest first.
func (s *server) ListDeliveries(ctx context.Context, in ListDeliveriesRequestObject) (ListDeliveriesResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	filter := subscription.DeliveryFilter{Status: subscription.DeliveryStatus(value(in.Params.Status))}
	var ok bool
	if filter.SubscriptionID, ok = filterID(in.Params.SubscriptionID); !ok {
		return nil, malformed("subscription_id", "must be a UUID")
	}
	if filter.InstanceID, ok = filterID(in.Params.InstanceID); !ok {
		return nil, malformed("instance_id", "must be a UUID")
	}
	r := requestOf(ctx)
	filter.Within = r.within()
	list, err := listOf(ctx, s, page, false, func(tenant string, page fsm.Page) (fsm.List[subscription.Delivery], error) {
		return s.subscriptions.Deliveries(ctx, tenant, filter, page)
	})
	if err != nil {
		return nil, err
	}
	return ListDeliveries200JSONResponse{
		Body:    api.DeliveryList{Items: each(list.Items, listedDelivery), NextCursor: optional(list.Next)},
		Headers: ListDeliveries200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// ReplayDelivery makes a settled delivery pending again.
func (s *server) ReplayDelivery(ctx context.Context, in ReplayDeliveryRequestObject) (ReplayDeliveryResponseObject, error) {
	id, err := resourceID(in.ID, "delivery")
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	if within := r.within(); within != nil {
		known, err := s.subscriptions.IsWithin(ctx, r.principal.tenant, id, within)
		if err != nil {
			return nil, err
		}
		if !known {
			return nil, subscription.ErrNoDelivery
		}
	}
	delivery, err := s.subscriptions.ReplayDelivery(ctx, r.principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return ReplayDelivery202JSONResponse(deliveryOf(delivery)), nil
}

// ReplayDeliveries makes all settled deliveries that match a filter pending again.
func (s *server) ReplayDeliveries(ctx context.Context, in ReplayDeliveriesRequestObject) (ReplayDeliveriesResponseObject, error) {
	body := value(in.Body)
	filter := subscription.ReplayFilter{
		Status: subscription.DeliveryStatus(value(body.Status)), After: bound(body.After), Before: bound(body.Before),
	}
	if body.Status != nil && *body.Status == "" {
		return nil, malformedAt("/status", "the status is empty", "must be dead or delivered")
	}
	var ok bool
	if filter.SubscriptionID, ok = filterID(body.SubscriptionID); !ok {
		return nil, malformedAt("/subscription_id", "an id is not a UUID", "must be a UUID")
	}
	if requestOf(ctx).within() != nil {
		if body.SubscriptionID == nil {
			return nil, forbidden("your grants are for some workflows: name a subscription within them in /subscription_id")
		}
		switch _, err := s.subscription(ctx, *body.SubscriptionID); {
		case errors.Is(err, fsm.NotFound):
			return ReplayDeliveries200JSONResponse{}, nil
		case err != nil:
			return nil, err
		}
	}
	replayed, err := s.subscriptions.ReplayDeliveries(ctx, requestOf(ctx).principal.tenant, filter)
	if err != nil {
		return nil, err
	}
	return ReplayDeliveries200JSONResponse{Replayed: int64(replayed.Replayed), Gone: int64(replayed.Gone)}, nil
}
