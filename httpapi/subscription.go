package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// subscriptionOf converts a subscription to the form of the contract. Secret is set only in
// the answer to the request that made it.
func subscriptionOf(s subscription.Subscription) api.Subscription {
	return api.Subscription{
		ID: s.ID.String(), URL: s.URL,
		Filter: api.SubscriptionFilter{
			Workflows: s.Workflows, Events: s.Events, States: s.States, TerminalOnly: &s.TerminalOnly, Types: typesOf(s.Types),
		},
		Secret: optional(s.Secret), Disabled: s.DisabledAt != nil, DisabledAt: (*api.Timestamp)(s.DisabledAt),
		DisabledReason: s.DisabledReason, Failures: s.Failures, RestsUntil: (*api.Timestamp)(s.CircuitOpenUntil), Finding: s.Finding,
		PreviousSecretUntil: (*api.Timestamp)(s.PreviousSecretUntil), CreatedAt: api.Timestamp(s.CreatedAt), CreatedBy: s.CreatedBy,
	}
}

// typesOf leaves out an empty list, so that a filter without types reads as it was written.
func typesOf(types []string) []api.MessageType {
	if len(types) == 0 {
		return nil
	}
	return each(types, func(t string) api.MessageType { return api.MessageType(t) })
}

// filterOf converts the filter of a request.
func filterOf(f api.SubscriptionFilter) subscription.Filter {
	return subscription.Filter{
		Types:     each(f.Types, func(t api.MessageType) string { return string(t) }),
		Workflows: f.Workflows, Events: f.Events, States: f.States, TerminalOnly: value(f.TerminalOnly),
	}
}

// CreateSubscription subscribes an endpoint and answers with the signing secret.
func (s *server) CreateSubscription(ctx context.Context, in CreateSubscriptionRequestObject) (CreateSubscriptionResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	secret, err := textAt("/secret", in.Body.Secret)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	filter := filterOf(value(in.Body.Filter))
	if err := r.checkFilter(filter); err != nil {
		return nil, err
	}
	p := r.principal
	created, err := s.subscriptions.Subscribe(ctx, p.tenant, in.Body.URL, filter, secret, p.subject)
	if err != nil {
		return nil, err
	}
	return CreateSubscription201JSONResponse{
		Body:    subscriptionOf(created),
		Headers: CreateSubscription201ResponseHeaders{Location: "/v1/subscriptions/" + created.ID.String()},
	}, nil
}

func listedSubscription(i item[subscription.Subscription]) api.Subscription {
	out := subscriptionOf(i.value)
	out.Tenant = i.tenant
	return out
}

// ListSubscriptions answers with a page of the tenant's subscriptions, newest first.
func (s *server) ListSubscriptions(ctx context.Context, in ListSubscriptionsRequestObject) (ListSubscriptionsResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := listOf(ctx, s, page, false, func(tenant string, page fsm.Page) (fsm.List[subscription.Subscription], error) {
		return s.subscriptions.Subscriptions(ctx, tenant, r.within(), page)
	})
	if err != nil {
		return nil, err
	}
	return ListSubscriptions200JSONResponse{
		Body:    api.SubscriptionList{Items: each(list.Items, listedSubscription), NextCursor: optional(list.Next)},
		Headers: ListSubscriptions200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// GetSubscription answers with one subscription.
func (s *server) GetSubscription(ctx context.Context, in GetSubscriptionRequestObject) (GetSubscriptionResponseObject, error) {
	id, err := s.subscription(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	subscription, err := s.subscriptions.GetSubscription(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return GetSubscription200JSONResponse(subscriptionOf(subscription)), nil
}

// UpdateSubscription changes the members that the body has.
func (s *server) UpdateSubscription(ctx context.Context, in UpdateSubscriptionRequestObject) (UpdateSubscriptionResponseObject, error) {
	id, err := s.subscription(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body == nil {
		return nil, errNoBody
	}
	change := subscription.Change{URL: in.Body.URL, Disabled: in.Body.Disabled}
	if in.Body.Filter != nil {
		filter := filterOf(*in.Body.Filter)
		if err := requestOf(ctx).checkFilter(filter); err != nil {
			return nil, err
		}
		change.Filter = &filter
	}
	changed, err := s.subscriptions.UpdateSubscription(ctx, requestOf(ctx).principal.tenant, id, change)
	if err != nil {
		return nil, err
	}
	return UpdateSubscription200JSONResponse(subscriptionOf(changed)), nil
}

// DeleteSubscription deletes a subscription.
func (s *server) DeleteSubscription(ctx context.Context, in DeleteSubscriptionRequestObject) (DeleteSubscriptionResponseObject, error) {
	id, err := s.subscription(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.subscriptions.Unsubscribe(ctx, requestOf(ctx).principal.tenant, id); err != nil {
		return nil, err
	}
	return DeleteSubscription204Response{}, nil
}

// RotateSubscriptionSecret replaces the signing secret. The old one stays valid for a while.
func (s *server) RotateSubscriptionSecret(ctx context.Context, in RotateSubscriptionSecretRequestObject) (RotateSubscriptionSecretResponseObject, error) {
	id, err := s.subscription(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	secret, err := textAt("/secret", value(in.Body).Secret)
	if err != nil {
		return nil, err
	}
	rotated, err := s.subscriptions.RotateSecret(ctx, requestOf(ctx).principal.tenant, id, secret)
	if err != nil {
		return nil, err
	}
	return RotateSubscriptionSecret200JSONResponse(subscriptionOf(rotated)), nil
}

// TestSubscription makes a delivery that tests the endpoint.
func (s *server) TestSubscription(ctx context.Context, in TestSubscriptionRequestObject) (TestSubscriptionResponseObject, error) {
	id, err := s.subscription(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	delivery, err := s.subscriptions.TestSubscription(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return TestSubscription202JSONResponse(deliveryOf(delivery)), nil
}
