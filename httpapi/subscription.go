package httpapi

import (
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
)

func subscriptionOf(s subscription.Subscription) Subscription {
	return Subscription{
		ID: s.ID.String(), URL: s.URL,
		Filter: SubscriptionFilter{
			Workflows: s.Workflows, Events: s.Events, States: s.States, TerminalOnly: &s.TerminalOnly,
		},
		Secret: optional(s.Secret), Disabled: s.DisabledAt != nil, DisabledAt: timestampOf(s.DisabledAt),
		DisabledReason: s.DisabledReason, Failures: s.Failures, RestsUntil: timestampOf(s.RestsUntil),
		PreviousSecretUntil: timestampOf(s.PreviousSecretUntil), CreatedAt: Timestamp(s.CreatedAt), CreatedBy: s.CreatedBy,
	}
}

func filterOf(f SubscriptionFilter) subscription.Filter {
	return subscription.Filter{
		Workflows: f.Workflows, Events: f.Events, States: f.States, TerminalOnly: value(f.TerminalOnly),
	}
}

// idOf reads an id; what is no UUID names nothing.
func idOf(text, what string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != len(uuid.Nil.String()) {
		return uuid.Nil, &fsm.Error{Kind: fsm.NotFound, Message: "there is no such " + what}
	}
	return id, nil
}

var errNoBody = &problemError{code: ProblemCodeMalformedRequest, detail: "this operation needs a body"}

// CreateSubscription subscribes an endpoint.
func (s *server) CreateSubscription(ctx context.Context, in CreateSubscriptionRequestObject) (CreateSubscriptionResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	secret, err := notEmpty(in.Body.Secret, "/secret")
	if err != nil {
		return nil, err
	}
	p := requestOf(ctx).principal
	created, err := s.subscriptions.Subscribe(ctx, p.tenant, in.Body.URL, filterOf(value(in.Body.Filter)), secret, p.subject)
	if err != nil {
		return nil, err
	}
	return CreateSubscription201JSONResponse{
		Body:    subscriptionOf(created),
		Headers: CreateSubscription201ResponseHeaders{Location: "/v1/subscriptions/" + created.ID.String()},
	}, nil
}

// ListSubscriptions lists the tenant's subscriptions, the newest first.
func (s *server) ListSubscriptions(ctx context.Context, in ListSubscriptionsRequestObject) (ListSubscriptionsResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.subscriptions.Subscriptions(ctx, r.principal.tenant, page)
	if err != nil {
		return nil, err
	}
	return ListSubscriptions200JSONResponse{
		Body:    SubscriptionList{Items: each(list.Items, subscriptionOf), NextCursor: optional(list.Next)},
		Headers: ListSubscriptions200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// GetSubscription reads a subscription.
func (s *server) GetSubscription(ctx context.Context, in GetSubscriptionRequestObject) (GetSubscriptionResponseObject, error) {
	id, err := idOf(in.ID, "subscription")
	if err != nil {
		return nil, err
	}
	subscription, err := s.subscriptions.GetSubscription(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return GetSubscription200JSONResponse(subscriptionOf(subscription)), nil
}

// UpdateSubscription changes what is given.
func (s *server) UpdateSubscription(ctx context.Context, in UpdateSubscriptionRequestObject) (UpdateSubscriptionResponseObject, error) {
	id, err := idOf(in.ID, "subscription")
	if err != nil {
		return nil, err
	}
	if in.Body == nil {
		return nil, errNoBody
	}
	change := subscription.Change{URL: in.Body.URL, Disabled: in.Body.Disabled}
	if in.Body.Filter != nil {
		filter := filterOf(*in.Body.Filter)
		change.Filter = &filter
	}
	changed, err := s.subscriptions.UpdateSubscription(ctx, requestOf(ctx).principal.tenant, id, change)
	if err != nil {
		return nil, err
	}
	return UpdateSubscription200JSONResponse(subscriptionOf(changed)), nil
}

// DeleteSubscription ends a subscription.
func (s *server) DeleteSubscription(ctx context.Context, in DeleteSubscriptionRequestObject) (DeleteSubscriptionResponseObject, error) {
	id, err := idOf(in.ID, "subscription")
	if err != nil {
		return nil, err
	}
	if err := s.subscriptions.Unsubscribe(ctx, requestOf(ctx).principal.tenant, id); err != nil {
		return nil, err
	}
	return DeleteSubscription204Response{}, nil
}

// RotateSubscriptionSecret replaces a secret.
func (s *server) RotateSubscriptionSecret(ctx context.Context, in RotateSubscriptionSecretRequestObject) (RotateSubscriptionSecretResponseObject, error) {
	id, err := idOf(in.ID, "subscription")
	if err != nil {
		return nil, err
	}
	secret, err := notEmpty(value(in.Body).Secret, "/secret")
	if err != nil {
		return nil, err
	}
	rotated, err := s.subscriptions.RotateSecret(ctx, requestOf(ctx).principal.tenant, id, secret)
	if err != nil {
		return nil, err
	}
	return RotateSubscriptionSecret200JSONResponse(subscriptionOf(rotated)), nil
}

// TestSubscription sends a test.
func (s *server) TestSubscription(ctx context.Context, in TestSubscriptionRequestObject) (TestSubscriptionResponseObject, error) {
	id, err := idOf(in.ID, "subscription")
	if err != nil {
		return nil, err
	}
	delivery, err := s.subscriptions.TestSubscription(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return TestSubscription202JSONResponse(deliveryOf(delivery)), nil
}
