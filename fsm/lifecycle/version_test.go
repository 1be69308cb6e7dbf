package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// tally is counter's next version: it counts in another state, from which it also ends by itself.
var tally = strings.NewReplacer(`"initial": "COUNTING"`, `"initial": "TALLYING"`, `"states": {`, `"states": {
	"TALLYING": {"on": {"add": {"target": "TALLYING", "assign": {"x": "$.context.x + $.payload.n"}}, "again": "COUNTING"}, "after": {"5m": "STOPPED"}},`).Replace(fsmtest.Counter)

func counters(t testing.TB, s *fsmtest.Service, n int) []uuid.UUID {
	t.Helper()
	commands := make([]fsm.Command, n)
	for i := range commands {
		commands[i] = fsm.CreateCommand{Workflow: "counter", Context: []byte(`{"x":0}`)}
	}
	ids := make([]uuid.UUID, n)
	for i, r := range s.Do(t.Context(), commands) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ids[i] = r.Instance.ID
	}
	return ids
}

func migrate(t testing.TB, s *fsmtest.Service, c lifecycle.MigrateCommand) lifecycle.Migration {
	t.Helper()
	m, err := s.Migrate(t.Context(), c)
	if err != nil {
		t.Fatalf("migrate: %v", err)
	}
	return m
}

func TestVersions(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, fsmtest.FlightBooking)
	ids := counters(t, s, 3)
	second := fsmtest.Register(t, s, tally)
	fsmtest.Fire(t, s, ids[0], "stop", `{}`)
	counters(t, s, 1)
	fsmtest.Create(t, s, "flight-booking", `{"flight_id": "x", "price": 1}`)
	for tenant, want := range map[string][]map[string]int64{
		fsm.DefaultTenant: {{"TALLYING": 1}, {"COUNTING": 2, "STOPPED": 1}}, "other": {{}, {}},
	} {
		versions, err := s.Versions(t.Context(), tenant, "counter")
		if err != nil || len(versions) != 2 {
			t.Fatalf("%+v, %v", versions, err)
		}
		for i, v := range versions {
			if v.Version != 2-i || !maps.Equal(v.Instances, want[i]) {
				t.Errorf("%s: %+v, want version %d with %v", tenant, v, 2-i, want[i])
			}
		}
		if v := versions[0]; v.Checksum != second.Checksum || v.CreatedBy != "tester" || !v.CreatedAt.Equal(second.CreatedAt) {
			t.Errorf("got %+v, want %+v", v, second)
		}
	}
	for _, name := range []string{"none", "a\x00"} {
		_, err := s.Versions(t.Context(), fsm.DefaultTenant, name)
		fsmtest.Refused(t, err, fsm.WorkflowNotFound)
	}
}

func TestRetire(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, tally)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	for name, version := range map[string]int{"counter": 3, "none": 1, "a\x00": 1, "x": 0} {
		fsmtest.Refused(t, s.Retire(t.Context(), name, version), fsm.WorkflowNotFound)
	}
	fsmtest.Refused(t, s.Retire(t.Context(), "counter", 0), fsm.WorkflowNotFound)
	if e := fsmtest.Refusal(t, s.Retire(t.Context(), "counter", 2), fsm.WorkflowConflict); !strings.Contains(e.Message, "1 instances") {
		t.Errorf("it says %s", e.Message)
	}
	if err := s.Retire(t.Context(), "counter", 1); err != nil {
		t.Fatal(err)
	}
	fsmtest.Refused(t, s.Retire(t.Context(), "counter", 1), fsm.WorkflowNotFound)
	fsmtest.Fire(t, s, i.ID, "add", `{"n":1}`)
	w, err := s.GetWorkflow(t.Context(), "counter", 0)
	if err != nil || w.Version != 2 {
		t.Errorf("the latest is %d, %v", w.Version, err)
	}
}

// Replays, and reads of the past, are what they were, though the instance was migrated and its version retired.
func TestReplaysAfterTheVersionIsRetired(t *testing.T) {
	t.Parallel()
	const first = `{"name": "order", "initial": "A", "ttl": {"after": "9h", "target": "Z"}, "states": {
		"A": {"on": {"go": "B", "never": {"target": "Z", "guard": "$.context.never == 1"}}, "after": {"1h": "Z"}},
		"B": {"on": {"end": "Z"}, "after": {"2h": "Z"}}, "Z": {"type": "final"}}}`
	s, pool := fsmtest.New(t, fsm.Config{}, first)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	create := fsm.CreateCommand{Workflow: "order", Context: []byte(`{}`), Key: "create"}
	created, err := s.Create(t.Context(), create)
	if err != nil {
		t.Fatal(err)
	}
	id := created.Instance.ID
	type answer struct {
		Result  fsm.Result
		Refusal *fsm.Refusal
	}
	answers := func() (list []answer) {
		t.Helper()
		commands := []fsm.Command{create}
		for _, event := range []string{"never", "end", "go"} {
			commands = append(commands, fsm.FireCommand{ID: id, Event: event, Key: event})
		}
		for _, c := range commands {
			r := s.Do(t.Context(), []fsm.Command{c})[0]
			a := answer{Result: r.Result}
			if e, refused := errors.AsType[*fsm.Error](r.Err); refused {
				a.Refusal = e.Refusal
			}
			a.Result.Replayed = false
			list = append(list, a)
		}
		return list
	}
	// As SQL callers see them.
	const bySQL = `
		create function pg_temp.refusals(p_id uuid) returns text language plpgsql as $$
		declare v_event text; v_detail text; v_all text := '';
		begin
			foreach v_event in array '{never,end}'::text[] loop
				begin
					perform pawl.fire_one(p_id, v_event, p_key => v_event);
				exception when others then
					get stacked diagnostics v_detail = pg_exception_detail;
					v_all := v_all || sqlstate || v_detail;
				end;
			end loop;
			return v_all;
		end $$`
	read := func() (list []any) {
		t.Helper()
		for version := range int64(3) {
			i, err := s.GetVersion(t.Context(), fsm.DefaultTenant, id, version+1)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, i)
		}
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		bounded.Exec(t, conn, "drop function if exists pg_temp.refusals")
		bounded.Exec(t, conn, bySQL)
		return append(list, bounded.Value[string](t, conn, "select pg_temp.refusals($1)", id))
	}
	firsts := answers()
	if f := firsts[1].Refusal; f == nil || len(f.Guards) != 1 || len(f.AcceptedEvents) != 2 {
		t.Fatalf("the refusal is %+v", f)
	}
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.Register(t, s, strings.Replace(first, `"after": {"2h": "Z"}`, `"after": {"3h": "Z"}`, 1))
	if m := migrate(t, s, lifecycle.MigrateCommand{Workflow: "order", From: 1, To: 2}); m.Migrated != 1 {
		t.Fatalf("%+v", m)
	}
	past := read()
	if err := s.Retire(t.Context(), "order", 1); err != nil {
		t.Fatal(err)
	}
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.Fire(t, s, id, "end", `{}`)
	if diff := cmp.Diff(firsts, answers()); diff != "" {
		t.Errorf("the replays differ:\n%s", diff)
	}
	if diff := cmp.Diff(past, read()); diff != "" {
		t.Errorf("the past differs:\n%s", diff)
	}
}

// A version is retired between the creates of others, which go on with the one before it.
func TestRetireBetweenCreates(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	for range 5 {
		latest := fsmtest.Register(t, s, tally)
		var creators sync.WaitGroup
		var versions sync.Map
		for range 4 {
			creators.Go(func() {
				for range 20 {
					r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter"})
					if err != nil {
						t.Errorf("create: %v", err)
						return
					}
					versions.Store(r.Instance.WorkflowVersion, true)
				}
			})
		}
		err := s.Retire(t.Context(), "counter", latest.Version)
		bounded.Wait(t, "the creates", creators.Wait)
		if err != nil {
			fsmtest.Refused(t, err, fsm.WorkflowConflict)
			if _, used := versions.Load(latest.Version); !used {
				t.Error("it is said to be in use, and no create used it")
			}
			bounded.Exec(t, pool, "delete from pawl.instance where workflow_version = $1", latest.Version)
			if err := s.Retire(t.Context(), "counter", latest.Version); err != nil {
				t.Fatal(err)
			}
		} else if _, used := versions.Load(latest.Version); used {
			t.Error("a create of the version succeeded, and it was retired")
		}
		if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance where workflow_version > 1"); n != 0 {
			t.Fatalf("%d instances are of a version that is gone", n)
		}
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ids := counters(t, s, 25)
	other, err := s.Create(t.Context(), fsm.CreateCommand{Tenant: "other", Workflow: "counter"})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:5] {
		fsmtest.Fire(t, s, id, "stop", `{}`)
	}
	fsmtest.Register(t, s, strings.NewReplacer(`"COUNTING"`, `"TALLYING"`).Replace(fsmtest.Counter))
	c := lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, Batch: 7, Origin: fsm.Origin{Actor: "alice", Reason: "news", CorrelationID: "c"}}

	// A dry run writes nothing, even where nothing may be written.
	dry := c
	dry.DryRun = true
	reader := fsmtest.On(t, fsmtest.ReadOnly(t, pool), fsm.Config{})
	before := fsmtest.Counts(t, pool)
	m := migrate(t, reader, dry)
	if m.Total != 20 || m.Migrated != 0 || len(m.Moves) != 0 || len(m.Left) != 20 || m.Left[0].State != "COUNTING" || m.Left[0].Reason != "state-unknown" {
		t.Errorf("dry run: %+v", m)
	}
	for _, l := range m.Left {
		if !slices.Contains(ids[5:], l.ID) {
			t.Errorf("%s is listed", l.ID)
		}
	}
	c.StateMap = map[string]string{"COUNTING": "TALLYING"}
	dry.StateMap = c.StateMap
	want := lifecycle.Migration{Total: 20, Migrated: 20, Moves: []lifecycle.Move{{From: "COUNTING", To: "TALLYING", Count: 20}}}
	if diff := cmp.Diff(want, migrate(t, reader, dry)); diff != "" {
		t.Errorf("dry run:\n%s", diff)
	}
	if after := fsmtest.Counts(t, pool); after != before || bounded.Value[int](t, pool, "select count(*) from pawl.instance_migration") != 0 {
		t.Errorf("dry runs left %s, want %s", after, before)
	}

	some := c
	some.IDs, some.States = ids[:8], []string{"COUNTING"}
	if m := migrate(t, s, some); m.Total != 3 || m.Migrated != 3 {
		t.Errorf("three of them: %+v", m)
	}
	want.Total, want.Migrated, want.Moves[0].Count = 17, 17, 17
	if diff := cmp.Diff(want, migrate(t, s, c)); diff != "" {
		t.Error(diff)
	}
	if m := migrate(t, s, c); m.Total != 0 {
		t.Errorf("again: %+v", m)
	}
	i := fsmtest.Get(t, s, ids[10])
	if i.State != "TALLYING" || i.WorkflowVersion != 2 || i.Version != 2 || i.Status != fsm.Active || !slices.Contains(i.AcceptedEvents, "add") {
		t.Errorf("got %+v", i)
	}
	step := fsmtest.Last(t, s, ids[10])
	if diff := cmp.Diff(fsm.Step{
		Version: 2, WorkflowVersion: 2, Kind: "migrated", From: new("COUNTING"), To: "TALLYING", Status: fsm.Active, Context: i.Context,
		Actor: "alice", Reason: new("news"), CorrelationID: new("c"), At: step.At,
	}, step); diff != "" {
		t.Error(diff)
	}
	fsmtest.Fire(t, s, ids[10], "add", `{"n":1}`)
	if i := fsmtest.Get(t, s, ids[0]); i.WorkflowVersion != 1 || i.Version != 2 {
		t.Errorf("a finished one: %+v", i)
	}
	if i, err := s.Get(t.Context(), "other", other.Instance.ID); err != nil || i.WorkflowVersion != 1 {
		t.Errorf("another tenant's: %+v, %v", i, err)
	}
}

func TestMigrateRefuses(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, tally)
	before := fsmtest.Counts(t, pool)
	for name, c := range map[string]struct {
		command  lifecycle.MigrateCommand
		kind     fsm.Kind
		pointers []string
	}{
		"workflow":   {lifecycle.MigrateCommand{Workflow: "none", From: 1, To: 2}, fsm.WorkflowNotFound, nil},
		"version":    {lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 3}, fsm.WorkflowNotFound, nil},
		"no version": {lifecycle.MigrateCommand{Workflow: "counter", To: 1}, fsm.WorkflowNotFound, nil},
		"NUL":        {lifecycle.MigrateCommand{Workflow: "\x00", From: 1, To: 2}, fsm.WorkflowNotFound, nil},
		"same":       {lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 1}, fsm.Malformed, []string{"/to"}},
		"map": {
			lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, States: []string{"X"}, StateMap: map[string]string{"COUNTING": "STOPPED", "TALLYING": "COUNTING"}},
			fsm.Malformed,
			[]string{"/filter/states/0", "/state_map/COUNTING", "/state_map/TALLYING"},
		},
		"reason": {lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, Origin: fsm.Origin{Reason: strings.Repeat("x", 1001)}}, fsm.Malformed, []string{"/reason"}},
		"bytes":  {lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, StateMap: map[string]string{"COUNTING": "\x00"}}, fsm.Malformed, []string{"/state_map/COUNTING"}},
	} {
		_, err := s.Migrate(t.Context(), c.command)
		if e := fsmtest.Refusal(t, err, c.kind); c.pointers != nil && !slices.Equal(fsmtest.Pointers(e.Faults), c.pointers) {
			t.Errorf("%s: %s", name, fsmtest.Describe(e.Faults))
		}
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("refusals left %s, want %s", after, before)
	}
	// Another direction waits until this one is done, or given up.
	ids := counters(t, s, 1)
	bounded.Exec(t, pool, "select pawl.migrate_instances('default', 'counter', 2, 1, '{\"TALLYING\": \"COUNTING\"}', null, 1)")
	_, err := s.Migrate(t.Context(), lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2})
	fsmtest.Refused(t, err, fsm.WorkflowConflict)
	migrate(t, s, lifecycle.MigrateCommand{Workflow: "counter", From: 2, To: 1})
	migrate(t, s, lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2})
	if i := fsmtest.Get(t, s, ids[0]); i.WorkflowVersion != 2 || i.Version != 3 {
		t.Errorf("got %+v", i)
	}
}

// wantAllMoved fails the test unless each instance was moved once, and its history has no gap.
func wantAllMoved(t testing.TB, pool *pgxpool.Pool, n int) {
	t.Helper()
	got := bounded.Value[string](t, pool, `
		select format('%s instances, %s moved, %s of version 2, %s with gaps', count(*), sum(h.moved), count(*) filter (where i.workflow_version = 2),
			count(*) filter (where h.steps <> i.version or h.last <> i.version or not h.rising))
		from pawl.instance i
		cross join lateral (
			select count(*) as steps, max(h.version) as last, count(*) filter (where h.kind = 'migrated') as moved,
				bool_and(h.from_state is not distinct from h.before and h.at >= h.earlier) is not false as rising
			from (
				select h.*, lag(h.to_state) over w as before, lag(h.at) over w as earlier from pawl.history h
				where h.instance_id = i.id window w as (order by h.version)
			) h
		) h`)
	if want := fmt.Sprintf("%d instances, %d moved, %d of version 2, 0 with gaps", n, n, n); got != want {
		t.Errorf("%s; want %s", got, want)
	}
}

// Commands go on while instances are moved: none is lost, and no instance is.
func TestMigrateUnderLoad(t *testing.T) {
	t.Parallel()
	const n, callers, rounds = 300, 4, 100
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ids := counters(t, s, n)
	fsmtest.Register(t, s, tally)
	start := make(chan struct{})
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			<-start
			for round := range rounds {
				_, err := s.Fire(t.Context(), fsm.FireCommand{ID: ids[(caller*rounds+round)*37%n], Event: "add", Payload: []byte(`{"n":1}`)})
				if err != nil {
					t.Errorf("fire: %v", err)
				}
			}
		})
	}
	close(start)
	total := 0
	for range 50 {
		m := migrate(t, s, lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, Batch: 10, StateMap: map[string]string{"COUNTING": "TALLYING"}})
		total += m.Migrated
		if m.Total == m.Migrated {
			break
		}
	}
	bounded.Wait(t, "the commands", all.Wait)
	if total != n {
		t.Errorf("%d are said to be moved", total)
	}
	wantAllMoved(t, pool, n)
	if sum := bounded.Value[int](t, pool, "select sum((context ->> 'x')::integer) from pawl.instance"); sum != callers*rounds {
		t.Errorf("%d commands count, want %d", sum, callers*rounds)
	}
}

// A migration that ends in the middle, whatever the reason, is begun again and loses nothing.
func TestMigrateIsBrokenOff(t *testing.T) {
	t.Parallel()
	const n, batch = 50, 10
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	counters(t, s, n)
	fsmtest.Register(t, s, tally)
	c := lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, Batch: batch}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	dying := fsmtest.On(t, fsmtest.Spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) {
			if strings.Contains(sql, "migrate_instances") {
				if calls++; calls == 3 {
					cancel() // Before the commit.
				}
			}
		}}
	}), fsm.Config{})
	m, err := dying.Migrate(ctx, c)
	fsmtest.Refused(t, err, fsm.Unavailable)
	if m.Migrated < 2*batch || m.Migrated > 3*batch {
		t.Errorf("broken off: %+v", m)
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.instance where workflow_version = 2"); got != 2*batch {
		t.Errorf("%d are moved, want the first %d", got, 2*batch)
	}
	fsmtest.RaiseOnce(t, pool, "57p01") // The server shuts the connection in the middle of a batch.
	m, err = s.Migrate(t.Context(), c)
	fsmtest.Refused(t, err, fsm.Unavailable)
	if m.Migrated != 0 {
		t.Errorf("shut: %+v", m)
	}
	if m := migrate(t, s, c); m.Migrated != n-2*batch {
		t.Errorf("begun again: %+v", m)
	}
	wantAllMoved(t, pool, n)
	if got := bounded.Value[string](t, pool, "select format('%s %s', moved, finished_at is not null) from pawl.instance_migration"); got != "50 t" {
		t.Errorf("the migration is %s", got)
	}
}

// An instance that somebody holds is passed by, and is told of if it stays held.
func TestMigrateLeavesTheBusy(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ids := counters(t, s, 5)
	fsmtest.Register(t, s, tally)
	release := fsmtest.Hold(t, pool, ids[2])
	c := lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, Batch: 2}
	m := migrate(t, s, c)
	want := lifecycle.Migration{
		Total: 5, Migrated: 4, Moves: []lifecycle.Move{{From: "COUNTING", To: "COUNTING", Count: 4}},
		Left: []lifecycle.LeftInstance{{ID: ids[2], State: "COUNTING", Reason: "busy"}},
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	release()
	if m := migrate(t, s, c); m.Migrated != 1 || len(m.Left) != 0 {
		t.Errorf("got %+v", m)
	}
	wantAllMoved(t, pool, 5)
}

// Timers end the timeouts of the version that an instance has been moved to.
func TestTimersAfterAMigration(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Bombs, strings.NewReplacer(`"1m"`, `"5m"`, `"BOOM"`, `"BANG"`).Replace(fsmtest.Bombs))
	dbtest.SetClock(t, pool, fsmtest.Noon)
	started := fsmtest.Create(t, s, "bomb", `{}`)
	if started.WorkflowVersion != 2 {
		t.Fatalf("version %d", started.WorkflowVersion)
	}
	anew := fsmtest.Create(t, s, "bomb", `{}`)
	dbtest.Advance(t, pool, 30*time.Second)
	// The old version's timeout is sooner: one counts from fsmtest.Noon, the other from now.
	migrate(t, s, lifecycle.MigrateCommand{Workflow: "bomb", From: 2, To: 1, IDs: []uuid.UUID{started.ID}})
	migrate(t, s, lifecycle.MigrateCommand{Workflow: "bomb", From: 2, To: 1, StateMap: map[string]string{"TICKING": "TICKING"}})
	dbtest.Advance(t, pool, 30*time.Second-time.Microsecond)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, time.Microsecond)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, started.ID), "timeout", "after:1m", "BOOM", 3)
	// And back to the later one.
	migrate(t, s, lifecycle.MigrateCommand{Workflow: "bomb", From: 1, To: 2})
	dbtest.Advance(t, pool, 4*time.Minute)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, 30*time.Second)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, anew.ID), "timeout", "after:5m", "BANG", 4)
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}
