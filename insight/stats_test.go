package insight_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/insight"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// claim ends well or badly, and may wait for more in between.
const claim = `{"name": "claim", "initial": "OPEN", "cancel": "OFF", "states": {
	"OPEN": {"on": {"check": [{"target": "CHECK"}]}},
	"CHECK": {"on": {"ask": [{"target": "OPEN"}], "pay": [{"target": "PAID"}], "refuse": [{"target": "LOST"}], "note.*": [{"assign": "*"}]}},
	"PAID": {"type": "final"}, "LOST": {"type": "final", "outcome": "failed"}, "OFF": {"type": "final", "outcome": "cancelled"}}}`

// A history makes steps at chosen times.
type history struct {
	t    *testing.T
	pool *pgxpool.Pool
	at   time.Time
}

// make creates n instances at a time.
func (h history) make(n int) (ids []uuid.UUID) {
	h.t.Helper()
	dbtest.SetClock(h.t, h.pool, h.at)
	return bounded.Column[uuid.UUID](h.t, h.pool, "select (pawl.create_one('claim')).id from generate_series(1, $1)", n)
}

// fire fires an event at instances some time after the history's.
func (h history) fire(ids []uuid.UUID, event string, after time.Duration) {
	h.t.Helper()
	dbtest.SetClock(h.t, h.pool, h.at.Add(after))
	bounded.Exec(h.t, h.pool, "select pawl.fire_one(id, $2) from unnest($1::uuid[]) as u (id)", ids, event)
}

// claims registers the workflow and folds until the test ends.
func claims(t *testing.T, build func(history)) (*insight.Service, *pgxpool.Pool) {
	t.Helper()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", claim)
	build(history{t: t, pool: pool})
	outboxtest.Number(t, pool)
	fold(t, pool, 1000)
	folded(t, pool)
	service := fsm.New(pool, fsm.Config{})
	t.Cleanup(service.Close)
	return insight.New(service), pool
}

// near reports whether a quantile is right to 5 %.
func near(got, want float64) bool { return math.Abs(got-want) <= 0.05*want }

// The statistics are those of steps that were made at known times.
func TestStats(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	end := begin.AddDate(0, 0, 20).Add(5 * time.Hour)
	service, pool := claims(t, func(h history) {
		h.at = begin
		ids := h.make(40)
		for i, after := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second} {
			h.fire(ids[i*10:(i+1)*10], "check", after)
		}
		h.fire(ids[:30], "pay", time.Minute)
		h.fire(ids[30:], "refuse", time.Minute)
		// Twenty days later each takes 40 s to be checked, and one waits.
		h.at = end.Add(-time.Hour)
		ids = h.make(31)
		h.fire(ids[:30], "check", 40*time.Second)
		h.fire(ids[:1], "ask", 50*time.Second)
		dbtest.SetClock(t, h.pool, end)
	})
	got, err := service.Stats(t.Context(), "default", "claim", insight.StatsQuery{})
	if err != nil {
		t.Fatal(err)
	}
	if got.AsOf == nil || !got.AsOf.Equal(end) {
		t.Errorf("all is folded, and the numbers are as of %v", got.AsOf)
	}
	if want := begin.AddDate(0, 0, 20-27).Truncate(24 * time.Hour); !got.From.Equal(want) || !got.To.Equal(end.Truncate(24*time.Hour)) {
		t.Errorf("the days are %v to %v", got.From, got.To)
	}
	want := []insight.InstanceCount{{0, "CHECK", "active", 29}, {0, "LOST", "failed", 10}, {0, "OPEN", "active", 2}, {0, "PAID", "completed", 30}}
	if diff := cmp.Diff(want, got.Instances); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
	wantEdges := []insight.Edge{
		{From: "", Event: "", To: "OPEN", Steps: 71},
		{From: "CHECK", Event: "ask", To: "OPEN", Steps: 1},
		{From: "CHECK", Event: "pay", To: "PAID", Steps: 30},
		{From: "CHECK", Event: "refuse", To: "LOST", Steps: 10},
		{From: "OPEN", Event: "check", To: "CHECK", Steps: 70},
	}
	if diff := cmp.Diff(wantEdges, got.Edges); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
	open := got.States[1]
	if open.State != "OPEN" || open.Visits != 70 || !near(open.P50, 10) || !near(open.P90, 40) || !near(open.P99, 40) || open.Mean != 1380.0/70 {
		t.Errorf("OPEN: %+v", open)
	}
	if open.DropOff == nil || *open.DropOff != 0 || open.Leavings != 70 {
		t.Errorf("nothing drops off in OPEN: %+v", open)
	}
	check := got.States[0]
	if check.State != "CHECK" || check.Visits != 41 || check.Leavings != 41 || *check.DropOff != 10.0/41 {
		t.Errorf("CHECK: %+v", check)
	}
	if len(got.Hotspots) != 2 || got.Hotspots[0].State != "CHECK" || math.Abs(got.Hotspots[0].Share+got.Hotspots[1].Share-1) > 1e-9 {
		t.Errorf("hotspots: %+v", got.Hotspots)
	}
	if h := got.Hotspots[0]; h.Now != nil {
		t.Errorf("one visit of CHECK in 24 hours is too few: %+v", h)
	}
	if h := got.Hotspots[1]; h.Now == nil || *h.Now != 40 || *h.Before != open.Mean || *h.Slowdown != 40/open.Mean {
		t.Errorf("OPEN has slowed down: %+v", h)
	}

	t.Run("a day, and by day", func(t *testing.T) {
		first := begin.Add(time.Hour)
		got, err := service.Stats(t.Context(), "default", "claim", insight.StatsQuery{From: &first, To: &first, By: insight.ByDay})
		if err != nil || len(got.States) != 2 || got.States[1].Visits != 40 || !got.States[1].Day.Equal(begin.Truncate(24*time.Hour)) {
			t.Errorf("%+v, %v", got.States, err)
		}
		got, err = service.Stats(t.Context(), "default", "claim", insight.StatsQuery{By: insight.ByDay})
		if err != nil || len(got.States) != 4 || got.States[1].Visits != 40 || got.States[3].Visits != 30 {
			t.Errorf("%+v, %v", got.States, err)
		}
	})
	t.Run("by version", func(t *testing.T) {
		bounded.Exec(t, pool, "select pawl.register_workflow($1)", strings.Replace(claim, `"cancel": "OFF"`, `"cancel": "LOST"`, 1))
		bounded.Exec(t, pool, "select pawl.create_one('claim')")
		folded(t, pool)
		got, err := service.Stats(t.Context(), "default", "claim", insight.StatsQuery{By: insight.ByVersion})
		if err != nil || len(got.Instances) != 5 || got.Instances[4] != (insight.InstanceCount{2, "OPEN", "active", 1}) || got.States[0].Version != 1 {
			t.Errorf("%+v, %v", got.Instances, err)
		}
	})
	t.Run("another tenant", func(t *testing.T) {
		got, err := service.Stats(t.Context(), "other", "claim", insight.StatsQuery{})
		if err != nil || got.Instances != nil || got.States != nil || got.Edges != nil {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		late, early := end.AddDate(0, 0, 1), end.AddDate(0, 0, -insight.MaxDays)
		for name, q := range map[string]insight.StatsQuery{
			"from": {From: &late}, "from ": {From: &early}, "by": {By: "state"}, "from  ": {From: &time.Time{}},
		} {
			var e *fsm.Error
			_, err := service.Stats(t.Context(), "default", "claim", q)
			if !errors.As(err, &e) || e.Kind != fsm.Malformed || len(e.Faults) != 1 || e.Faults[0].Parameter != strings.TrimSpace(name) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := service.Stats(t.Context(), "default", "clam", insight.StatsQuery{}); !errors.Is(err, fsm.WorkflowNotFound) {
			t.Error(err)
		}
	})
}

// What is not folded is not counted, and as_of says so.
func TestAsOfIsThatOfTheLastFoldedStep(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", claim)
	service := fsm.New(pool, fsm.Config{})
	t.Cleanup(service.Close)
	read := insight.New(service)
	want := func(instances int64, at *time.Time) {
		t.Helper()
		got, err := read.Stats(t.Context(), "default", "claim", insight.StatsQuery{})
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		for _, i := range got.Instances {
			n += i.Instances
		}
		if n != instances || (at == nil) != (got.AsOf == nil) || at != nil && !at.Equal(*got.AsOf) {
			t.Errorf("%d instances as of %v, want %d as of %v", n, got.AsOf, instances, at)
		}
	}
	h := history{t, pool, begin}
	h.make(2)
	want(0, nil)
	outboxtest.Number(t, pool)
	stop := fold(t, pool, 10)
	folded(t, pool)
	stop()
	later := begin.Add(time.Hour)
	dbtest.SetClock(t, pool, later)
	want(2, &later)
	h.at = later
	h.make(3)
	want(2, &begin)
}

// A tally adds what commands were answered, by declared events.
func TestTally(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", claim)
	tally := insight.NewTally(insight.TallyConfig{Interval: time.Millisecond})
	service := fsm.New(pool, fsm.Config{Probe: tally.Probe()})
	t.Cleanup(service.Close)
	bounded.Run(t, "the tally", func(ctx context.Context) error { return tally.Run(ctx, service) })
	created, err := service.Create(t.Context(), fsm.CreateCommand{Workflow: "claim", Key: "one"})
	if err != nil {
		t.Fatal(err)
	}
	fire := func(event, key string) {
		_, _ = service.Fire(t.Context(), fsm.FireCommand{ID: created.Instance.ID, Event: event, Key: key})
	}
	fire("pay", "two")      // Refused.
	fire("pay", "two")      // Replayed.
	fire("check", "two")    // A collision.
	fire("check", "")       // Without a key.
	fire("note.x", "three") // By a pattern.
	fire("note.y", "four")
	fire("sneeze", "five")
	_, _ = service.Create(t.Context(), fsm.CreateCommand{Workflow: "clam", Key: "six"})
	bounded.UntilSQL(t, pool, "select coalesce(sum(commands), 0) = 8 from pawl.command_count")
	want := []string{
		"_create applied new 1", "_other idempotency-key-reuse collision 1", "_other unknown-event  1", "check applied  1", "note.* applied new 2",
		"pay transition-not-allowed new 1", "pay transition-not-allowed replayed 1",
	}
	got := bounded.Column[string](t, pool, "select format('%s %s %s %s', event, outcome, key_result, commands) from pawl.command_count order by 1")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	stats, err := insight.New(service).Stats(t.Context(), "default", "claim", insight.StatsQuery{})
	if err != nil || stats.Idempotency != (insight.Idempotency{New: 4, Replayed: 1, Collision: 1}) {
		t.Errorf("%+v, %v", stats.Idempotency, err)
	}
	wantRefusals := []insight.Refusals{{"_other", "idempotency-key-reuse", 1}, {"_other", "unknown-event", 1}, {"pay", "transition-not-allowed", 1}}
	if diff := cmp.Diff(wantRefusals, stats.Refusals); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
}

// Many different events take a bounded number of rows, and no command is lost.
func TestTallyIsBounded(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", claim)
	service := fsm.New(pool, fsm.Config{})
	t.Cleanup(service.Close)
	tally := insight.NewTally(insight.TallyConfig{Interval: time.Millisecond})
	const n = 20_000
	for i := range n {
		tally.Probe().Answered(fsm.Observation{Tenant: "default", Workflow: "claim", Event: fmt.Sprintf("note.%d", i), Outcome: "applied", Key: "new"})
	}
	bounded.Run(t, "the tally", func(ctx context.Context) error { return tally.Run(ctx, service) })
	bounded.UntilSQL(t, pool, "select coalesce(sum(commands), 0) = $1 from pawl.command_count", n)
	if rows := bounded.Column[string](t, pool, "select event from pawl.command_count order by 1"); strings.Join(rows, " ") != "_other note.*" {
		t.Errorf("%d rows: %v", len(rows), rows)
	}
}

// A tenant that has many different counts, such as of keys that it used for instances that it invents, leaves room for
// those of others.
func TestTallyLeavesRoomForOtherTenants(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", claim)
	service := fsm.New(pool, fsm.Config{})
	t.Cleanup(service.Close)
	tally := insight.NewTally(insight.TallyConfig{Interval: time.Millisecond})
	tell := tally.Probe()
	tell.Answered(fsm.Observation{Tenant: "busy", Workflow: "claim", Event: "note.1", Outcome: "applied", Key: "new"})
	for range 10_000 {
		tell.Collided(fsm.Collision{Tenant: "busy", Instance: uuid.New()})
	}
	tell.Answered(fsm.Observation{Tenant: "quiet", Workflow: "claim", Event: "note.1", Outcome: "applied", Key: "new"})
	bounded.Run(t, "the tally", func(ctx context.Context) error { return tally.Run(ctx, service) })
	bounded.UntilSQL(t, pool, "select exists (select from pawl.command_count where tenant_id = 'busy')")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.command_count where tenant_id = 'quiet' and commands = 1"); n != 1 {
		t.Error("the command of another tenant is not counted")
	}
}
