package db_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// backlog measures, as a worker, what is still to be done.
func backlog(t *testing.T, q *queries.Queries) map[string]float64 {
	t.Helper()
	rows, err := q.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	measures := map[string]float64{}
	for _, r := range rows {
		name := r.Measure
		if r.Label != "" {
			name += " " + r.Label
		}
		if r.Status != "" {
			name += " " + r.Status
		}
		measures[name] = r.Value
	}
	return measures
}

func TestBacklog(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 3)
	q := queries.New(pool)
	empty := map[string]float64{"timers_due": 0, "timers_late": 0, "timers_failing": 0, "deliveries_due": 0, "deliveries_late": 0, "deliveries_dead": 0}
	if diff := cmp.Diff(empty, backlog(t, q)); diff != "" {
		t.Errorf("nothing is to be done (-want +got):\n%s", diff)
	}
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	bounded.Exec(t, pool, "insert into pawl.tenant (id, created_at, created_by, disabled_at) values ('off', pawl.now(), 'x', pawl.now())")
	for i, due := range []string{"11:59:50", "11:59:20", "12:00:01"} {
		bounded.Exec(t, pool, "insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried) values ($1, $2, $3::timestamptz, 1, 0)",
			tenant, ids[i], "2026-03-01 "+due+"+00")
	}
	bounded.Exec(t, pool, "update pawl.timer set failed_version = 1, last_error = 'x' where instance_id = $1", ids[2])
	bounded.Exec(t, pool, "insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried, failed_version, last_error) values ('off', gen_random_uuid(), '2026-02-01', 1, 0, 1, 'x')")
	deliver := `insert into pawl.delivery (tenant_id, id, subscription_id, callback, type, status, attempts, next_attempt_at, created_at)
		values ($1, gen_random_uuid(), gen_random_uuid(), false, 'pawl.subscription.test', $2, 0, $3::timestamptz, pawl.now())`
	for _, d := range []struct{ tenant, status, due string }{
		{tenant, "pending", "2026-03-01 11:59:55+00"},
		{tenant, "pending", "2026-03-01 11:58:00+00"},
		{tenant, "pending", "2026-03-01 13:00:00+00"},
		{"off", "pending", "2026-02-01 00:00:00+00"},
	} {
		bounded.Exec(t, pool, deliver, d.tenant, d.status, d.due)
	}
	bounded.Exec(t, pool, deliver, tenant, "dead", nil)
	task := `insert into pawl.task (tenant_id, id, instance_id, workflow, workflow_version, position, state, name, topic, connection,
			entered_version, status, look_at, deadline_at, created_at, ended_at)
		values ($1, gen_random_uuid(), $2, 'door', 1, 1, 'OPEN', 'n', $3, $4, 1, $5, $6::timestamptz, pawl.now(), pawl.now(), $7::timestamptz)`
	for _, x := range []struct{ topic, connection, status, look, ended any }{
		{"paint", nil, "pending", "2026-03-02", nil},
		{"paint", nil, "pending", "2026-03-02", nil},
		{"paint", nil, "unknown", nil, "2026-03-01"},
		{"paint", nil, "done", nil, "2026-03-01"},
		{nil, "psp", "sent", "2026-03-02", nil},
	} {
		bounded.Exec(t, pool, task, tenant, ids[0], x.topic, x.connection, x.status, x.look, x.ended)
	}
	want := maps.Clone(empty)
	maps.Copy(want, map[string]float64{
		"timers_due": 2, "timers_late": 40, "timers_failing": 1, "deliveries_due": 2, "deliveries_late": 120, "deliveries_dead": 1,
		"tasks paint pending": 2, "tasks paint unknown": 1, "tasks _call sent": 1,
	})
	if diff := cmp.Diff(want, backlog(t, q)); diff != "" {
		t.Errorf("the backlog is (-want +got):\n%s", diff)
	}
}

// Consumers are behind by the steps that have positions which they have not read.
func TestBacklogOfConsumers(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 3)
	q := queries.New(pool)
	bounded.Exec(t, pool, "select pawl.consumer_create('sink one', true, false), pawl.consumer_create('audit', true, true)")
	dbtest.Number(t, pool)
	got := backlog(t, q)
	head := bounded.Value[float64](t, pool, "select position::float8 from pawl.log_head")
	age := bounded.Value[float64](t, pool, "select extract(epoch from pawl.now() - min(at))::float8 from pawl.history")
	if got["consumer_steps sink one"] != head || head != 3 || got["consumer_behind sink one"] <= 0 || got["consumer_behind sink one"] > age {
		t.Errorf("the backlog is %v, with 3 steps to read of up to %v s", fmt.Sprint(got), age)
	}
	bounded.Exec(t, pool, "update pawl.consumer set position = 3 where name = 'sink one'")
	if got := backlog(t, q); got["consumer_steps sink one"] != 0 || got["consumer_behind sink one"] != 0 {
		t.Errorf("a consumer that has read all is behind: %v", got)
	}
}
