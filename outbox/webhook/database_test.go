package webhook_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

// What the database says of what Go says too.
const (
	// openInSQL is how long a subscription's circuit stays open, in microseconds; 0 if it is closed.
	openInSQL = "select coalesce(extract(epoch from pawl_private.circuit_open_for($1::integer, $2::interval)) * 1000000, 0)::bigint"
	// statusesInSQL are the statuses that a delivery may have.
	statusesInSQL = `
		select array_agg(m[1])
		from pg_catalog.pg_constraint c
		cross join lateral regexp_matches(pg_catalog.pg_get_constraintdef(c.oid), '''([^'']+)''', 'g') m
		where c.conrelid = 'pawl.delivery'::regclass and c.conname = 'delivery_status_is_known'`
	// settledInSQL is what was recorded of a delivery and of its subscription.
	settledInSQL = `
		select format('%s after %s, %s, failures %s%s', d.status, d.attempts,
			case when d.next_attempt_at > now() + interval '50 minutes' then 'due in an hour' when d.next_attempt_at is null then 'not due' else 'due' end,
			s.failures, case when s.disabled_at is not null then ', disabled' end)
		from pawl.delivery d join pawl.subscription s on s.id = d.subscription_id
		where d.id = $1`
)

// The circuits of subscriptions, in the database, are open for as long as those of callbacks, in
// memory.
func TestCircuitsAsInTheDatabase(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	for _, first := range []time.Duration{
		time.Millisecond, time.Second, 10 * time.Second, 7 * time.Minute, 10 * time.Minute, 24 * time.Hour,
	} {
		for failures := range 40 {
			want := time.Duration(bounded.Value[int64](t, pool, openInSQL, failures, first)) * time.Microsecond
			if got := dispatch.OpenFor(failures, first); got != want {
				t.Errorf("after %d failures, from %s on: %s in Go and %s in SQL", failures, first, got, want)
			}
		}
	}
}

func TestStatusesAsInTheDatabase(t *testing.T) {
	t.Parallel()
	got := bounded.Value[[]string](t, outboxtest.NewPool(t), statusesInSQL)
	want := []string{string(subscription.DeliveryPending), string(subscription.DeliveryDelivered), string(subscription.DeliveryDead)}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the database has the statuses %v, Go has %v", got, want)
	}
}

// Each result of settling has the effect in the database that its constant says.
func TestResultsAsInTheDatabase(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	q := queries.New(pool)
	hour := pgtype.Interval{Microseconds: time.Hour.Microseconds(), Valid: true}
	if err := q.ConsumerCreate(t.Context(), queries.ConsumerCreateParams{Consumer: "webhooks", FromStart: true}); err != nil {
		t.Fatal(err)
	}
	term, err := q.ConsumerLead(t.Context(), queries.ConsumerLeadParams{Consumer: "webhooks", Leader: "tester", Lease: hour})
	if err != nil {
		t.Fatal(err)
	}
	wants := map[string]string{
		webhook.ResultDelivered: "delivered after 1, not due, failures 0",
		webhook.ResultRetry:     "pending after 1, due in an hour, failures 1",
		webhook.ResultDead:      "dead after 1, not due, failures 1",
		webhook.ResultGone:      "dead after 1, not due, failures 0, disabled",
		webhook.ResultPostponed: "pending after 0, due in an hour, failures 0",
		webhook.ResultAbandoned: "dead after 0, not due, failures 0",
	}
	for result := range wants {
		subscribe(t, service, fmt.Sprintf("http://127.0.0.1:1/%s", result), everything)
	}
	outboxtest.Create(t, pool)
	outboxtest.Numbered(t, pool)
	if _, err := q.DeliveryRoute(t.Context(), queries.DeliveryRouteParams{Leader: "tester", Term: term, RowLimit: 100, Lease: hour}); err != nil {
		t.Fatal(err)
	}
	lanes, err := q.DeliveryLanes(t.Context(), queries.DeliveryLanesParams{Looks: 100, Each: 100})
	if err != nil {
		t.Fatal(err)
	}
	p := queries.DeliveryDueParams{Flying: []string{}}
	for _, l := range lanes {
		p.Tenants, p.Subscriptions, p.Limits = append(p.Tenants, l.TenantID), append(p.Subscriptions, l.SubscriptionID), append(p.Limits, 1)
	}
	due, err := q.DeliveryDue(t.Context(), p)
	if err != nil || len(due) != len(wants) {
		t.Fatalf("%d deliveries are due, want %d: %v", len(due), len(wants), err)
	}
	for result, want := range wants {
		d := due[0]
		due = due[1:]
		leads, err := q.DeliverySettle(t.Context(), queries.DeliverySettleParams{
			Leader: "tester", Term: term, Tenants: []string{d.TenantID}, Ids: []uuid.UUID{d.ID}, Results: []string{result},
			Delays: []pgtype.Interval{hour}, Pauses: []pgtype.Interval{{}}, Statuses: []int32{500}, Errors: []string{"e"}, Responses: []string{"r"},
			Rest: hour,
		})
		if err != nil || !leads {
			t.Fatalf("settle %s: %v, %v", result, leads, err)
		}
		if got := bounded.Value[string](t, pool, settledInSQL, d.ID); got != want {
			t.Errorf("%s: %s, want %s", result, got, want)
		}
	}
}
