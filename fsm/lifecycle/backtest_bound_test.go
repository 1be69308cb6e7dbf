package lifecycle_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A migration ends what can be replayed, and so do a thousand steps.
func TestBacktestOfWhatCannotBeReplayed(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ids := counters(t, s, 4)
	fsmtest.Fire(t, s, ids[1], "add", `{"n": 1}`)
	fsmtest.Register(t, s, tally)
	migrate(t, s, lifecycle.MigrateCommand{Workflow: "counter", From: 1, To: 2, IDs: ids[:2]})
	fsmtest.Fire(t, s, ids[0], "stop", `{}`)
	for _, id := range ids[2:] {
		bounded.Exec(t, pool, `insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state,
				status, context, payload, actor, at)
			select h.tenant_id, h.instance_id, n, h.workflow, 1, 'transition', 'add', h.to_state, h.to_state, h.status, h.context,
				'{"n": 0}', h.actor, h.at
			from pawl.history h
			cross join generate_series(2, 1000 + $2::integer) n
			where h.instance_id = $1`, id, map[uuid.UUID]int{ids[2]: 0, ids[3]: 1}[id])
	}
	b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Version: 1})
	if b.Instances != 4 || b.Same != 1 || b.Incomplete != 3 || b.Different != 0 {
		t.Errorf("%+v", b)
	}
	none := strings.NewReplacer("$.payload.n >= 0", "$.payload.n > 1").Replace(fsmtest.Counter)
	b = backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Definition: []byte(none)})
	if b.Different != 3 || b.Incomplete != 1 {
		t.Errorf("%+v", b)
	}
}

// What is replayed is a sample of the tenant's, and one that fails harms no other.
func TestBacktestSample(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, fsmtest.FlightBooking)
	if _, err := s.Create(t.Context(), fsm.CreateCommand{Tenant: "other", Workflow: "counter", Context: []byte(`{"x": 0}`)}); err != nil {
		t.Fatal(err)
	}
	fsmtest.Create(t, s, "flight-booking", `{"flight_id": "x", "price": 1}`)
	ids := counters(t, s, 250)
	for _, id := range ids {
		fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	}
	fsmtest.Fire(t, s, ids[7], "add", `{"n": 2}`)
	b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Version: 1})
	if b.Instances != 250 || b.Same != 250 {
		t.Errorf("%+v", b)
	}
	raising := strings.NewReplacer(`"$.payload.n >= 0"`, `"$.payload.n < 2 || $limit > 0"`).Replace(fsmtest.Counter)
	b = backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Definition: []byte(raising)})
	if b.Instances != 250 || b.Different != 1 || b.Differences[0].InstanceID != ids[7] || b.Differences[0].Outcome != "guard-error" {
		t.Errorf("%+v", b)
	}
	elsewhere := []byte(strings.ReplaceAll(fsmtest.Counter, "COUNTING", "TALLYING"))
	b = backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Definition: elsewhere})
	if b.Different != 250 || len(b.Differences) != lifecycle.MaxDifferences || len(b.Summary) != 1 || b.Summary[0].Count != 250 || len(b.Summary[0].Examples) != 3 {
		t.Errorf("%d of %d differ, %d are listed: %+v", b.Different, b.Instances, len(b.Differences), b.Summary)
	}
	if b.Differences[0].InstanceID != slices.MaxFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }) {
		t.Errorf("the first is %s, not the newest", b.Differences[0].InstanceID)
	}
	for sample, want := range map[int]int{1: 1, 130: 130, 1_000_000: 250} {
		if b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Version: 1, Sample: sample}); b.Instances != want {
			t.Errorf("of %d it replayed %d, want %d", sample, b.Instances, want)
		}
	}
	if b := backtest(t, s, lifecycle.BacktestCommand{Tenant: "nobody", Workflow: "counter", Definition: elsewhere}); b.Instances != 0 {
		t.Errorf("%+v", b)
	}
}

func TestBacktestRefusals(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	for name, test := range map[string]struct {
		command  lifecycle.BacktestCommand
		kind     fsm.Kind
		pointers []string
	}{
		"neither":    {lifecycle.BacktestCommand{Workflow: "counter"}, fsm.Malformed, []string{"/definition"}},
		"both":       {lifecycle.BacktestCommand{Workflow: "counter", Version: 1, Definition: []byte(fsmtest.Counter)}, fsm.Malformed, []string{"/definition"}},
		"a sample":   {lifecycle.BacktestCommand{Workflow: "counter", Version: 1, Sample: -1}, fsm.Malformed, []string{"/sample"}},
		"a tenant":   {lifecycle.BacktestCommand{Tenant: "\x00", Workflow: "counter", Version: 1}, fsm.Malformed, []string{""}},
		"a version":  {lifecycle.BacktestCommand{Workflow: "counter", Version: 2}, fsm.WorkflowNotFound, nil},
		"a workflow": {lifecycle.BacktestCommand{Workflow: "tally", Definition: []byte(fsmtest.Counter)}, fsm.WorkflowNotFound, nil},
		"no object":  {lifecycle.BacktestCommand{Workflow: "counter", Definition: []byte(`[]`)}, fsm.Malformed, []string{"/definition"}},
		"faults": {
			lifecycle.BacktestCommand{Workflow: "counter", Definition: []byte(strings.NewReplacer(
				`"name": "counter"`, `"name": "tally"`, `"$nowhere == 1"`, `"$."`, `"stop": "STOPPED"`, `"stop": "NOWHERE"`).Replace(fsmtest.Counter))},
			fsm.InvalidDefinition,
			[]string{"/definition/name", "/definition/states/COUNTING/on/raise/guard", "/definition/states/COUNTING/on/stop"},
		},
	} {
		_, err := s.Backtest(t.Context(), test.command)
		e := fsmtest.Refusal(t, err, test.kind)
		if diff := cmp.Diff(test.pointers, fsmtest.Pointers(e.Faults), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s\n%s", name, diff, fsmtest.Describe(e.Faults))
		}
	}
	// A definition without a name is the workflow's.
	b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "counter", Definition: []byte(strings.Replace(fsmtest.Counter, `"name": "counter",`, "", 1))})
	if b.Instances != 0 {
		t.Errorf("%+v", b)
	}
}

// A version needs no right to write.
func TestBacktestOfAVersionReadsOnly(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	counters(t, s, 2)
	reader := fsmtest.On(t, fsmtest.ReadOnly(t, pool), fsm.Config{})
	if b := backtest(t, reader, lifecycle.BacktestCommand{Workflow: "counter", Version: 1}); b.Same != 2 {
		t.Errorf("%+v", b)
	}
}

// While back-tests are under way nobody sees their candidates, and commands and registrations go on.
func TestBacktestHoldsUpNobody(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := counters(t, s, 2)[0]
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	// What is asked for an unknown event waits until the test lets it go on.
	bounded.Exec(t, pool, `create or replace function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
		language plpgsql stable as 'begin perform pg_advisory_xact_lock_shared(4711); return false; end'`)
	gate, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Release()
	bounded.Exec(t, gate, "select pg_advisory_lock(4711)")
	candidate := []byte(strings.ReplaceAll(fsmtest.Counter, `"add"`, `"plus"`))
	var tests sync.WaitGroup
	for _, tenant := range []string{"a", "b"} {
		tests.Go(func() {
			b, err := s.Backtest(fsm.ForTenant(t.Context(), tenant), lifecycle.BacktestCommand{Workflow: "counter", Definition: candidate})
			if err != nil || b.Instances != 2 || b.Different != 1 || b.Differences[0].Outcome != "unknown-event" {
				t.Errorf("%+v, %v", b, err)
			}
		})
	}
	const held = "select count(*) = $1 from pg_locks where database = (select oid from pg_database where datname = current_database()) and not granted and "
	bounded.UntilSQL(t, pool, held+"locktype = 'advisory'", 2)
	fsmtest.Create(t, s, "counter", `{"x": 0}`)
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	if versions, err := s.Versions(t.Context(), fsm.DefaultTenant, "counter"); err != nil || len(versions) != 1 {
		t.Errorf("the versions are %+v, %v", versions, err)
	}
	if r := fsmtest.Register(t, s, tally); r.Version != 2 {
		t.Errorf("registered %+v", r)
	}
	if err := s.Retire(t.Context(), "counter", 2); err != nil {
		t.Error(err)
	}
	// A third one waits for its turn.
	third, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = s.Backtest(fsm.ForTenant(third, "a"), lifecycle.BacktestCommand{Workflow: "counter", Version: 1})
	fsmtest.Refused(t, err, fsm.Unavailable)
	bounded.Exec(t, gate, "select pg_advisory_unlock(4711)")
	bounded.Wait(t, "the back-tests", tests.Wait)
}

// An instance that takes too long costs only itself; if too many do, it is the candidate.
func TestBacktestThatTakesTooLong(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ids := counters(t, s, 5)
	fsmtest.Fire(t, s, ids[2], "add", `{"n": 1}`)
	// As slow as a guard may be, without the work.
	bounded.Exec(t, pool, `create or replace function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
		language plpgsql stable as 'begin perform pg_sleep(60); return false; end'`)
	candidate := []byte(strings.ReplaceAll(fsmtest.Counter, `"add"`, `"plus"`))
	hasty := fsmtest.On(t, pool, fsm.Config{CallTimeout: time.Second})
	hasty.LimitTimes(bounded.Limit, bounded.Limit)
	b := backtest(t, hasty, lifecycle.BacktestCommand{Workflow: "counter", Definition: candidate})
	if b.Instances != 5 || b.Same != 4 || len(b.Differences) != 1 || b.Differences[0].InstanceID != ids[2] || b.Differences[0].Outcome != "guard-error" {
		t.Errorf("%+v", b)
	}
	for _, id := range ids {
		fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	}
	_, err := hasty.Backtest(t.Context(), lifecycle.BacktestCommand{Workflow: "counter", Definition: candidate})
	fsmtest.Refused(t, err, fsm.GuardError)
}

// When the time is up, the report has what was re-run until then, and says so. When the caller leaves, it all ends.
func TestBacktestIsBoundedInTime(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ids := counters(t, s, 3)
	// The last one that is re-run.
	fsmtest.Fire(t, s, slices.MinFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }), "add", `{"n": 1}`)
	bounded.Exec(t, pool, `create or replace function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
		language plpgsql stable as 'begin perform pg_sleep(600); return false; end'`)
	const asleep = "select count(*) = $1 from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
	candidate := lifecycle.BacktestCommand{Workflow: "counter", Definition: []byte(strings.ReplaceAll(fsmtest.Counter, `"add"`, `"plus"`))}
	slow := fsmtest.On(t, pool, fsm.Config{CallTimeout: time.Second})
	slow.LimitTimes(6*time.Second, bounded.Limit)
	// The call for all three is given up after four seconds. Then the newest is re-run singly.
	b, err := slow.Backtest(t.Context(), candidate)
	if err != nil || !b.Unfinished || b.Instances != 1 || b.Same != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	bounded.UntilSQL(t, pool, asleep, 0)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := s.Backtest(ctx, candidate)
		ended <- err
	}()
	bounded.UntilSQL(t, pool, asleep, 1)
	cancel()
	fsmtest.Refused(t, bounded.Receive(t, "the back-test", ended), fsm.Unavailable)
	bounded.UntilSQL(t, pool, asleep, 0)
}

// However many kinds of differences there are, and however large the candidate, the report stays small.
func TestBacktestIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	for _, id := range counters(t, s, 50) {
		fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	}
	guard := fmt.Sprintf(`$.payload.n == 2 || $.payload.text == %q`, strings.Repeat("x", 300_000))
	b := backtest(t, s, lifecycle.BacktestCommand{
		Workflow: "counter", Definition: []byte(strings.ReplaceAll(fsmtest.Counter, `"$.payload.n >= 0"`, strconv.Quote(guard))),
	})
	if b.Different != 50 || len(b.Summary) != 1 || b.Summary[0].Count != 50 {
		t.Errorf("%d of %d are different: %+v", b.Different, b.Instances, b.Summary)
	}
	if n := len(b.Differences); n < 3 || n > 5 {
		t.Errorf("it lists %d differences of 300 kB", n)
	}
}
