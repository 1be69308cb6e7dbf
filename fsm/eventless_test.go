package fsm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Refusals of what follows a step are those of the command: nothing of it is done.
func TestEventlessRefusals(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name":"w","initial":"A","states":{
		"A":{"on":{
			"loop":{"target":"L","assign":{"x":"$.payload.x"}}, "raise":"R", "large":{"target":"G","assign":{"*":true,"trusted":true}}, "fail":"D"}},
		"L":{"always":{"target":"L","guard":"$.context.x > 0","assign":{"x":"$.context.x - $.payload.by"}},"on":{"end":"END"}},
		"R":{"always":{"target":"END","guard":"$nowhere == 1"},"on":{"end":"END"}},
		"G":{"always":{"target":"END","assign":{"twice":"$.payload"}}},
		"D":{"always":"BROKEN"},
		"END":{"type":"final"}, "BROKEN":{"type":"final","outcome":"failed"}}}`)
	i := fsmtest.Create(t, s, "w", `{"x":1}`)
	command := func(event, payload string) fsm.FireCommand {
		return fsm.FireCommand{ID: i.ID, Event: event, Payload: json.RawMessage(payload), Key: event, Origin: fsm.Origin{Reason: "why"}}
	}
	neighbour := fsmtest.Create(t, s, "w", `{"x":1}`)
	before := fsmtest.Counts(t, pool)
	for event, want := range map[string]struct {
		payload string
		kind    fsm.Kind
	}{
		"loop":  {`{"x":100,"by":0}`, fsm.GuardError},
		"raise": {`{}`, fsm.GuardError},
		"large": {`{"a":"` + strings.Repeat("x", 40_000) + `"}`, fsm.TooLarge},
	} {
		replies := s.Do(t.Context(), []fsm.Command{command(event, want.payload), fsm.FireCommand{ID: neighbour.ID, Event: "none"}})
		fsmtest.Refused(t, replies[0].Err, want.kind)
		fsmtest.Refused(t, replies[1].Err, fsm.UnknownEvent)
		_, err := s.Preview(t.Context(), command(event, want.payload))
		fsmtest.Refused(t, err, want.kind)
		if e, ok := errors.AsType[*fsm.Error](err); !ok || want.kind == fsm.GuardError && e.Refusal.State != "A" {
			t.Errorf("%s: %+v", event, e)
		}
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("there were %s, there are %s", before, after)
	}
	if got := fsmtest.Get(t, s, i.ID); !cmp.Equal(got, i) {
		t.Errorf("it is %+v, it was %+v", got, i)
	}
	// One hundred are allowed.
	if i := fsmtest.Fire(t, s, fsmtest.Create(t, s, "w", `{}`).ID, "loop", `{"x":100,"by":1}`); i.State != "L" || i.Version != 102 {
		t.Errorf("%s at %d", i.State, i.Version)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: fsmtest.Create(t, s, "w", `{}`).ID, Event: "loop", Payload: json.RawMessage(`{"x":101,"by":1}`)})
	fsmtest.Refused(t, err, fsm.GuardError)
	// What a failure says.
	r, err := s.Fire(t.Context(), command("fail", `{}`))
	if err != nil || r.Instance.Status != fsm.Failed {
		t.Fatalf("%+v, %v", r, err)
	}
	fsmtest.SameJSON(t, r.Instance.Error, `{"event":"fail","state":"D","reason":"why"}`)

	// The error names the guard of the transition that led to the failure.
	guarded := fsmtest.On(t, pool, fsm.Config{}, `{"name":"guarded","initial":"A","states":{
		"A":{"on":{"go":[{"target":"F","guard":"$.payload.x == 1"},{"target":"B"}]}},
		"B":{"always":{"target":"F","guard":"$.payload.x == 2"}},
		"F":{"type":"final","outcome":"failed"}}}`)
	for payload, want := range map[string]string{
		`{"x":1}`: `{"event":"go","state":"A","reason":null,"guard":"$.payload.x == 1"}`,
		`{"x":2}`: `{"event":"go","state":"B","reason":null,"guard":"$.payload.x == 2"}`,
	} {
		fsmtest.SameJSON(t, fsmtest.Fire(t, guarded, fsmtest.Create(t, guarded, "guarded", `{}`).ID, "go", payload).Error, want)
	}

	// A caller in SQL has an exception.
	_, err = pool.Exec(t.Context(), `select pawl.fire_one($1, 'loop', '{"x":1,"by":0}')`, neighbour.ID)
	if err == nil || !strings.Contains(err.Error(), "PW42G") || !strings.Contains(err.Error(), "come to rest") && !strings.Contains(err.Error(), "coming to rest") {
		t.Errorf("in SQL: %v", err)
	}
}

// A creation may assign, be led on, end and fail, once.
func TestEventlessCreation(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name":"w","initial":"A","ttl":{"after":"1h","target":"LATE"},"states":{
		"A":{"entry":{"assign":{"n":"$.context.n + 1","id":"$.instance.id","big":"$.context.copy"}},"always":[
			{"guard":"$.context.n == 2","target":"END"},{"guard":"$.context.n == 3","target":"BROKEN"},
			{"guard":"$.context.n > 10","target":"A"},{"guard":"$.context.n == 4","target":"B"}],"on":{"go":"END"}},
		"B":{"on":{"go":"END"},"after":{"5m":"LATE"}},
		"LATE":{"type":"final","outcome":"expired"},"END":{"type":"final"},"BROKEN":{"type":"final","outcome":"failed"}}}`)
	for document, want := range map[string]struct {
		state   string
		version int64
		due     string
	}{
		`{"n":0}`: {"A", 1, "01:00:00"},
		`{"n":1}`: {"END", 2, ""},
		`{"n":2}`: {"BROKEN", 2, ""},
		`{"n":3}`: {"B", 2, "00:05:00"},
	} {
		command := fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(document), Key: document, BusinessKey: document}
		r, err := s.Create(t.Context(), command)
		if err != nil {
			t.Fatal(err)
		}
		if r.Instance.State != want.state || r.Instance.Version != want.version {
			t.Errorf("%s: %+v", document, r.Instance)
		}
		var got struct{ ID uuid.UUID }
		if err := json.Unmarshal(r.Instance.Context, &got); err != nil || got.ID != r.Instance.ID {
			t.Errorf("%s: entry saw the id %s, %v", document, got.ID, err)
		}
		again, err := s.Create(t.Context(), command)
		if err != nil || !again.Replayed || !cmp.Equal(again.Instance, r.Instance) {
			t.Errorf("%s: replayed as %+v, %v", document, again, err)
		}
		if now := fsmtest.Get(t, s, r.Instance.ID); !cmp.Equal(now, r.Instance) {
			t.Errorf("%s: it is %+v, answered was %+v", document, now, r.Instance)
		}
		steps := fsmtest.History(t, s, r.Instance.ID)
		if len(steps) != int(want.version) || steps[0].Kind != "created" || steps[0].From != nil {
			t.Errorf("%s: history %+v", document, steps)
		}
		due := bounded.Value[string](t, pool, `select coalesce(max(t.due_at - i.created_at)::text, '') from pawl.instance i
			left join pawl.timer t on t.tenant_id = i.tenant_id and t.instance_id = i.id and t.armed_version = i.version where i.id = $1`, r.Instance.ID)
		if due != want.due {
			t.Errorf("%s: the timer is due after %q, want %q", document, due, want.due)
		}
	}
	before := fsmtest.Counts(t, pool)
	for document, kind := range map[string]fsm.Kind{
		`{"n":10}`:                 fsm.GuardError,
		`{"n":10,"x":"different"}`: fsm.GuardError,
		`{"n":0,"copy":"` + strings.Repeat("x", 40_000) + `"}`: fsm.TooLarge,
	} {
		_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(document)})
		fsmtest.Refused(t, err, kind)
		_, err = s.Simulate(t.Context(), lifecycle.Simulation{Workflow: "w", Context: json.RawMessage(document)})
		fsmtest.Refused(t, err, kind)
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("there were %s, there are %s", before, after)
	}
	simulated, err := s.Simulate(t.Context(), lifecycle.Simulation{Workflow: "w", Context: json.RawMessage(`{"n":3}`), Events: []lifecycle.SimulatedEvent{{Event: "go"}}})
	if err != nil || simulated.Steps[0].From != "B" || simulated.State != "END" {
		t.Errorf("simulated: %+v, %v", simulated, err)
	}
	// The database's own answer to a business key taken meanwhile stays what it is.
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"n":1}`), BusinessKey: `{"n":1}`})
	fsmtest.Refused(t, err, fsm.InstanceExists)
}

// A slow guard behind a creation or a step is that command's; a row that stays locked is not.
func TestSlowEventlessGuards(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	limited := fsmtest.Open(t, dbtest.DSN(pool), db.Config{StatementTimeout: time.Second, LockTimeout: 50 * time.Millisecond})
	const guard = `"exists($.context.a[*] ? (exists($.context.a[*] ? (exists($.context.a[*] ? (@ < 0))))))"`
	s := fsmtest.On(t, limited, fsm.Config{}, `{"name":"w","initial":"A","states":{
		"A":{"always":{"guard":`+guard+`,"target":"END"},"on":{"go":{"target":"A","assign":{"*":true,"trusted":true}}}},"END":{"type":"final"}}}`)
	slow := fmt.Sprintf(`{"a":[1%s]}`, strings.Repeat(",1", 600))
	i := fsmtest.Create(t, s, "w", `{"a":[]}`)
	before := fsmtest.Counts(t, pool)
	_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(slow)})
	fsmtest.Refused(t, err, fsm.GuardError)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(slow)})
	fsmtest.Refused(t, err, fsm.GuardError)
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("there were %s, there are %s", before, after)
	}
	release := holdKey(t, pool, i.ID)
	defer release()
	held := fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"a":[]}`), Key: "held"}
	_, err = s.Create(t.Context(), held)
	fsmtest.Refused(t, err, fsm.Unavailable)
	// So it is if the wait for the lock ends with the statement timeout.
	patient := fsmtest.Open(t, dbtest.DSN(pool), db.Config{StatementTimeout: 500 * time.Millisecond, LockTimeout: time.Minute})
	_, err = fsmtest.On(t, patient, fsm.Config{}).Create(t.Context(), held)
	fsmtest.Refused(t, err, fsm.Unavailable)
}

// holdKey claims the key "held" in a transaction that stays open.
func holdKey(t *testing.T, pool *pgxpool.Pool, id uuid.UUID) (release func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
		values ('default', 'held', sha256(''), 'applied', $1, 1, now() + interval '1 hour')`, id); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(bounded.Context(t)) }
}

// A migrated instance takes the eventless transitions of where it gets.
func TestMigrationIntoEventlessStates(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	dbtest.SetClock(t, pool, fsmtest.Noon)
	const first = `{"name":"w","initial":"A","states":{"A":{"on":{"go":"END"}},"END":{"type":"final"}}}`
	fsmtest.Register(t, s, first)
	var ids []uuid.UUID
	for _, x := range []string{"0", "1", "2", "3"} {
		ids = append(ids, fsmtest.Create(t, s, "w", `{"x":`+x+`}`).ID)
	}
	fsmtest.Register(t, s, `{"name":"w","initial":"A","states":{"END":{"type":"final"},"A":{
		"initial":"B","on":{"go":"END"},"entry":{"assign":{"never":1}},"states":{
			"B":{"always":[{"guard":"$.context.x == 1","target":"C","assign":{"seen":"$.instance.workflow_version"}},
				{"guard":"$.context.x == 2","target":"END"},{"guard":"$.context.x == 3","target":"B"}]},
			"C":{"after":{"1m":"END"}}}}}}`)
	dbtest.Advance(t, pool, time.Hour)
	c := lifecycle.MigrateCommand{Workflow: "w", From: 1, To: 2, StateMap: map[string]string{"A": "A.B"}, DryRun: true}
	for range 2 {
		m, err := s.Migrate(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		want := lifecycle.Migration{
			Total: 4, Migrated: 3, Moves: []lifecycle.Move{{From: "A", To: "A.B", Count: 1}, {From: "A", To: "A.C", Count: 1}, {From: "A", To: "END", Count: 1}},
			Left: []lifecycle.LeftInstance{{ID: ids[3], State: "A", Reason: "unsettled"}},
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Fatal(diff)
		}
		c.DryRun = false
	}
	for n, want := range map[int]struct{ state, document string }{
		0: {"A.B", `{"x":0}`}, 1: {"A.C", `{"x":1,"seen":2}`}, 2: {"END", `{"x":2}`}, 3: {"A", `{"x":3}`},
	} {
		i := fsmtest.Get(t, s, ids[n])
		steps := fsmtest.History(t, s, ids[n])
		if i.State != want.state || int(i.Version) != len(steps) {
			t.Errorf("%d: %+v", n, i)
		}
		fsmtest.SameJSON(t, i.Context, want.document)
		if n == 1 || n == 2 {
			if step := steps[2]; steps[1].Kind != "migrated" || steps[1].To != "A.B" || step.Kind != "transition" || step.Event != nil || *step.From != "A.B" || !step.At.Equal(i.StateChangedAt) {
				t.Errorf("%d: history %+v", n, steps)
			}
		}
	}
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 1)
}

// A sliding lifetime keeps its end and its length over a migration, whatever timers and eventless steps come between.
func TestMigrationKeepsSlidingLifetimes(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	dbtest.SetClock(t, pool, fsmtest.Noon)
	const definition = `{"name":"w","initial":"A","ttl":{"after":"3h","target":"END","sliding":true},"states":{
		"A":{"after":{"1h":"B"}},"B":{"always":[{"guard":"$.context.x == $.instance.workflow_version","target":"C"}],"on":{"poke":{},"end":"END"}},
		"C":{"on":{"poke":{},"end":"END"}},"END":{"type":"final"}},"description":"first"}`
	fsmtest.Register(t, s, definition)
	stays, moves := fsmtest.Create(t, s, "w", `{"x":0}`), fsmtest.Create(t, s, "w", `{"x":2}`)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 2)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.Register(t, s, strings.Replace(definition, `"first"`, `"second"`, 1))
	if _, err := s.Migrate(t.Context(), lifecycle.MigrateCommand{Workflow: "w", From: 1, To: 2}); err != nil {
		t.Fatal(err)
	}
	for id, state := range map[uuid.UUID]string{stays.ID: "B", moves.ID: "C"} {
		i := fsmtest.Get(t, s, id)
		if i.State != state || i.WorkflowVersion != 2 || !i.ExpiresAt.Equal(fsmtest.Noon.Add(3*time.Hour)) {
			t.Errorf("after the migration: %+v, %s", i, i.ExpiresAt)
		}
		if i = fsmtest.Fire(t, s, id, "poke", `{}`); !i.ExpiresAt.Equal(fsmtest.Noon.Add(5 * time.Hour)) {
			t.Errorf("after a command: %+v, %s", i, i.ExpiresAt)
		}
	}
}
