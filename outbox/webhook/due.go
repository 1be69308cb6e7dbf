package webhook

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// Reasons for which a delivery is abandoned.
const (
	subscriptionGone = "the subscription was deleted"
	messageGone      = "the instance was purged before the delivery was sent"
)

// A place is up to where the subscriptions were passed in the search for due deliveries. Its zero
// value is before all of them.
type place struct {
	tenant       string
	subscription uuid.UUID
}

// window is the most deliveries that are kept in memory.
func (l *leadership) window() int { return l.fetched.Max() }

// share is the most deliveries of one subscription in memory. It shrinks with each further
// subscription that has some there, so that endpoints which take nothing leave room for others.
func (l *leadership) share() int {
	subscriptions := map[uuid.UUID]bool{}
	for j := range l.jobs.All() {
		subscriptions[j.Value.row.SubscriptionID] = true
	}
	return max(2, l.window()/(4*(max(len(subscriptions), 1)+1)))
}

// fetch reads due deliveries into memory, if a quarter of the window is free. It reports whether
// to fetch again soon, since there may be more.
func (l *leadership) fetch(ctx context.Context) (again bool, err error) {
	limit := l.window() - l.jobs.Len()
	if limit < l.window()/4 {
		return true, nil
	}
	limit = min(limit, l.fetched.Size())
	p := queries.DeliveryDueParams{
		RowLimit: int32(limit), Each: int32(l.share()), Flying: make([]string, 0, l.jobs.Len()),
		FlyingSubscriptions: make([]string, 0, l.jobs.Len()), AfterTenant: l.after.tenant, AfterSubscription: l.after.subscription,
	}
	for j := range l.jobs.All() {
		p.Flying = append(p.Flying, j.ID.String())
		p.FlyingSubscriptions = append(p.FlyingSubscriptions, j.Value.row.SubscriptionID.String())
	}
	var (
		rows []queries.Delivery
		jobs []*dispatch.Job[delivery]
	)
	err = l.call(ctx, func(ctx context.Context) (err error) {
		if rows, err = l.queries.DeliveryDue(ctx, p); err != nil {
			return fmt.Errorf("due deliveries: %w", err)
		}
		jobs, err = l.load(ctx, rows)
		return err
	})
	l.fetched.Adapt(err)
	if err != nil {
		return false, err
	}
	again = l.after != place{} // Go on with the first subscription.
	l.after = place{}
	if len(rows) == limit || len(jobs) < len(rows) {
		last := rows[len(jobs)-1]
		again, l.after = true, place{last.TenantID, last.SubscriptionID}
	}
	// Attempts may have failed while this was read, and are not settled yet: what was read of
	// their subscriptions may no longer be due.
	failed := map[uuid.UUID]bool{}
	for _, r := range l.jobs.Ended() {
		if !r.Succeeded() {
			failed[r.Job.Value.row.SubscriptionID] = true
		}
	}
	for _, j := range jobs {
		if failed[j.Value.row.SubscriptionID] {
			again = true
			continue
		}
		l.jobs.Add(j)
	}
	return again, nil
}

// A stepKey identifies a step.
type stepKey struct {
	tenant   string
	instance uuid.UUID
	version  int64
}

// load makes jobs of deliveries: it reads their endpoints and their steps.
func (l *leadership) load(ctx context.Context, rows []queries.Delivery) ([]*dispatch.Job[delivery], error) {
	if len(rows) == 0 {
		return nil, nil
	}
	var (
		p      queries.DeliveryMessagesParams
		keys   = make([]subscriptionKey, len(rows))
		events = map[stepKey]*queries.Message{}
		jobs   = make([]*dispatch.Job[delivery], len(rows))
	)
	for i, r := range rows {
		keys[i] = keyOf(&r)
		if r.InstanceID == nil {
			continue
		}
		k := stepKey{r.TenantID, *r.InstanceID, *r.Version}
		if _, asked := events[k]; !asked {
			events[k] = nil
			p.Tenants, p.Instances, p.Versions = append(p.Tenants, k.tenant), append(p.Instances, k.instance), append(p.Versions, k.version)
		}
	}
	endpoints, err := l.endpoints(ctx, keys)
	if err != nil {
		return nil, err
	}
	p.Bytes = fsm.PageBytes
	list, err := l.queries.DeliveryMessages(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	bytes := 0
	for i, e := range list {
		bytes += len(e.Context) + len(e.Payload)
		events[stepKey{e.TenantID, e.InstanceID, e.Version}] = &list[i]
	}
	if bytes >= fsm.PageBytes {
		rows = readUpTo(rows, list[len(list)-1])
		jobs = jobs[:len(rows)]
	}
	for i := range rows {
		d := delivery{row: &rows[i], endpoint: endpoints[keys[i]].endpoint}
		if d.row.InstanceID != nil {
			d.event = events[stepKey{d.row.TenantID, *d.row.InstanceID, *d.row.Version}]
		}
		jobs[i] = jobOf(d)
	}
	return jobs, nil
}

// readUpTo returns the deliveries before the first one whose step was not read: those of the steps up to the last that
// was read, in the order in which the rows ask for them.
func readUpTo(rows []queries.Delivery, last queries.Message) []queries.Delivery {
	asked := map[stepKey]bool{}
	at, behind := stepKey{last.TenantID, last.InstanceID, last.Version}, false
	for i, r := range rows {
		if r.InstanceID == nil {
			continue
		}
		k := stepKey{r.TenantID, *r.InstanceID, *r.Version}
		if behind && !asked[k] {
			return rows[:i]
		}
		asked[k], behind = true, behind || k == at
	}
	return rows
}

// jobOf says how a delivery is dispatched. A subscription has a lane of its own, and its circuit
// is in the database. The callbacks to one URL share a lane, whose circuit is kept in memory.
func jobOf(d delivery) *dispatch.Job[delivery] {
	j := &dispatch.Job[delivery]{ID: d.row.ID, Value: d, Lane: keyOf(d.row).lane()}
	if d.row.Callback {
		j.Lane = "callback " + d.endpoint.url
		if d.endpoint.url != "" {
			j.Host = d.endpoint.host()
		}
	}
	if d.row.InstanceID != nil {
		j.Sequence = d.row.TenantID + " " + d.row.SubscriptionID.String() + " " + d.row.InstanceID.String()
		j.Position = *d.row.Version
	}
	switch {
	case d.endpoint.url == "":
		j.Abandon = subscriptionGone
	case d.row.InstanceID != nil && d.event == nil:
		j.Abandon = messageGone
	}
	return j
}

// A subscriptionKey identifies a subscription or, by its instance, a callback.
type subscriptionKey struct {
	tenant string
	id     uuid.UUID
}

func keyOf(row *queries.Delivery) subscriptionKey {
	return subscriptionKey{row.TenantID, row.SubscriptionID}
}

// lane is the lane of a subscription.
func (k subscriptionKey) lane() string { return "subscription " + k.tenant + " " + k.id.String() }

// A target is where the deliveries of a subscription or a callback go now.
type target struct {
	endpoint
	disabled bool
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
	list, err := l.queries.DeliveryEndpoints(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	for _, e := range list {
		t := target{endpoint: endpoint{url: e.Url}, disabled: e.Disabled}
		for _, secret := range []string{e.Secret, e.PreviousSecret} {
			if secret != "" {
				t.secrets = append(t.secrets, secret)
			}
		}
		if len(t.secrets) == 0 && l.config.Policy.Secret != "" {
			t.secrets = []string{l.config.Policy.Secret}
		}
		found[subscriptionKey{e.TenantID, e.ID}] = t
	}
	return found, nil
}

// refreshEvery is how long deliveries in memory may follow a subscription as it was before a change.
const refreshEvery = 100 * time.Millisecond

// refresh reads the subscriptions of the deliveries that wait in memory again. The deliveries go
// where their subscription says now. Those of a subscription that was deleted or disabled are
// dropped; if it was deleted they are fetched again, to be abandoned.
func (l *leadership) refresh(ctx context.Context) error {
	if time.Since(l.refreshed) < refreshEvery {
		return nil
	}
	l.refreshed = time.Now()
	asked := map[subscriptionKey]bool{}
	var keys []subscriptionKey
	for j := range l.jobs.Waiting() {
		if k := keyOf(j.Value.row); !j.Value.row.Callback && !asked[k] {
			asked[k] = true
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	var now map[subscriptionKey]target
	err := l.call(ctx, func(ctx context.Context) (err error) {
		now, err = l.endpoints(ctx, keys)
		return err
	})
	if err != nil {
		return err
	}
	for _, k := range keys {
		if t, there := now[k]; !there || t.disabled {
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
