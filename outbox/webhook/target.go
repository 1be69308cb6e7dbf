package webhook

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// A target is where the deliveries of a subscription or a callback go now.
type target struct {
	endpoint
	disabled, callback bool
	// finding says why a secret cannot be opened; empty if it can. resting says that the database has a finding.
	finding string
	resting bool
}

// endpoints reads where deliveries go now. A subscription or a callback that was deleted is
// missing from the result.
func (l *leadership) endpoints(ctx context.Context, keys []subscriptionKey) (map[subscriptionKey]target, error) {
	var p queries.DeliveryEndpointsParams
	asked, found := map[subscriptionKey]bool{}, map[subscriptionKey]target{}
	for _, k := range keys {
		if !asked[k] {
			asked[k] = true
			p.Tenants, p.Ids = append(p.Tenants, k.tenant), append(p.Ids, k.id)
		}
	}
	if len(keys) == 0 {
		return found, nil
	}
	list, err := l.queries.DeliveryEndpoints(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	for _, e := range list {
		t := target{endpoint: endpoint{url: e.Url}, disabled: e.Disabled, callback: e.Callback, resting: e.Resting}
		if t.secrets, err = l.secrets(e); err != nil {
			t.finding = err.Error()
		}
		found[subscriptionKey{e.TenantID, e.ID}] = t
	}
	return found, nil
}

// secrets returns what signs the deliveries to an endpoint: the present secret, and the one before it while it signs too. An
// error says which secret cannot be opened; then nothing is to be sent.
func (l *leadership) secrets(e queries.Endpoint) ([]string, error) {
	if e.Secret == "" {
		derived, err := l.config.Policy.CallbackSecret(e.TenantID)
		if err != nil || derived == "" {
			return nil, err
		}
		return []string{derived}, nil
	}
	place := seal.Subscription(e.TenantID, e.ID)
	if e.Callback {
		place = seal.Callback(e.TenantID, e.ID)
	}
	secret, err := l.config.Keys.Open(e.Secret, place)
	if err != nil {
		return nil, err
	}
	if e.PreviousSecret == "" {
		return []string{secret}, nil
	}
	previous, err := l.config.Keys.Open(e.PreviousSecret, seal.Previous(e.TenantID, e.ID))
	if err != nil {
		return nil, fmt.Errorf("of the secret that was replaced: %w", err)
	}
	return []string{secret, previous}, nil
}

// rest returns the deliveries that can be signed. Those that cannot wait: of subscriptions that rest with a finding, or of
// callbacks that are postponed. Subscriptions whose secrets can be opened again are released.
func (l *leadership) rest(ctx context.Context, rows []queries.Delivery, targets map[subscriptionKey]target) ([]queries.Delivery, error) {
	subscriptions := queries.SubscriptionRestParams{Leader: l.Leader, Term: l.Term, Rest: outbox.Interval(l.sending.Open)}
	for key, t := range targets {
		if t.callback || t.finding == "" && !t.resting {
			continue
		}
		subscriptions.Tenants, subscriptions.Ids = append(subscriptions.Tenants, key.tenant), append(subscriptions.Ids, key.id)
		subscriptions.Findings = append(subscriptions.Findings, t.finding)
		l.report(key.tenant, "subscription", key.id.String(), t.finding)
	}
	callbacks := l.settlements()
	var ready []queries.Delivery
	for _, row := range rows {
		t := targets[keyOf(&row)]
		switch {
		case t.finding == "":
			ready = append(ready, row)
		case t.callback:
			postponed := settlement{result: resultPostponed, delay: callbackRests * l.sending.Open, failure: t.finding}
			addSettlement(&callbacks, &row, postponed, dispatch.Answer{})
			l.report(row.TenantID, "callbacks", "", t.finding)
		}
	}
	leads, err := true, error(nil)
	if len(subscriptions.Ids) > 0 {
		leads, err = l.queries.SubscriptionRest(ctx, subscriptions)
	}
	if err == nil && leads && len(callbacks.Ids) > 0 {
		leads, err = l.queries.DeliverySettle(ctx, callbacks)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("rest: %w", err)
	case !leads:
		return nil, outbox.ErrDeposed
	}
	return ready, nil
}

// callbackRests is how many times longer than a subscription a callback rests. It is more, since each of a tenant's callbacks is
// read and written again.
const callbackRests = 6

// report logs once why deliveries wait, and that they go on.
func (l *leadership) report(tenant, kind, id, finding string) {
	key := tenant + " " + kind + " " + id
	if l.reported[key] == finding {
		return
	}
	if l.reported[key] = finding; finding == "" {
		delete(l.reported, key)
		l.config.Logger.Info("a secret can be opened again, so webhooks are sent", "tenant", tenant, kind, id)
		return
	}
	l.config.Logger.Warn("a secret cannot be opened, so webhooks wait", "tenant", tenant, kind, id, "finding", finding)
}

// refreshEvery is how long deliveries in memory may follow a subscription as it was before a change.
const refreshEvery = 100 * time.Millisecond

// tenants reads what tenants may have sent. A tenant that does not exist is missing from the result.
func (l *leadership) tenants(ctx context.Context, names []string) (map[string]queries.DeliveryTenant, error) {
	list, err := l.queries.DeliveryTenants(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("tenants: %w", err)
	}
	found := make(map[string]queries.DeliveryTenant, len(list))
	for _, t := range list {
		found[t.TenantID] = t
	}
	return found, nil
}

// refresh reads the subscriptions of the deliveries that wait in memory again, and their tenants. The deliveries go
// where their subscription says now. Those of a subscription that was deleted or disabled, or whose secret cannot be
// opened, and those of a tenant that was disabled, are dropped. Unless it is disabled, they are fetched again: to be
// abandoned, or to rest.
func (l *leadership) refresh(ctx context.Context) error {
	if time.Since(l.refreshed) < refreshEvery {
		return nil
	}
	l.refreshed = time.Now()
	asked := map[subscriptionKey]bool{}
	owners := map[string]bool{}
	var keys []subscriptionKey
	for j := range l.jobs.Waiting() {
		owners[j.Owner] = true
		if k := keyOf(j.Value.row); !j.Value.row.Callback && !asked[k] {
			asked[k] = true
			keys = append(keys, k)
		}
	}
	if len(owners) == 0 {
		return nil
	}
	var (
		now     map[subscriptionKey]target
		tenants map[string]queries.DeliveryTenant
	)
	err := l.call(ctx, func(ctx context.Context) (err error) {
		if tenants, err = l.tenants(ctx, slices.Collect(maps.Keys(owners))); err != nil {
			return err
		}
		now, err = l.endpoints(ctx, keys)
		return err
	})
	if err != nil {
		return err
	}
	for name := range owners {
		l.jobs.Limit(name, tenants[name].Attempts)
		if tenants[name].Disabled {
			l.jobs.DropOwner(name)
		}
	}
	for _, k := range keys {
		if t, there := now[k]; !there || t.disabled || t.finding != "" {
			l.jobs.Drop(k.lane())
		}
	}
	for j := range l.jobs.Waiting() {
		if t, there := now[keyOf(j.Value.row)]; there {
			j.Value.endpoint = t.endpoint
		}
	}
	return nil
}
