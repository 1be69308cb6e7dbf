package bulk_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/bulk"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestBulkFires(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter, fsmtest.FlightBooking)
	ids := b.counters("default", 7)
	other := b.counters("other", 1)[0]
	booking := fsmtest.Create(t, b.Service, "flight-booking", `{"flight_id": "f", "price": 1}`)
	fsmtest.Fire(t, b.Service, ids[3], "stop", "{}")
	c := add()
	c.CorrelationID = "ticket-7"
	id := b.submit(c).ID
	b.work()

	b.want(id, bulk.Done, 6, 1, 0, 0)
	p := b.problemOf(id, ids[3])
	if p.Code != "transition-not-allowed" || p.State != "STOPPED" || p.Detail == "" {
		t.Errorf("the refusal is %+v", p)
	}
	last := fsmtest.Last(t, b.Service, ids[0])
	fsmtest.WantStep(t, last, "transition", "add", "COUNTING", 2)
	if last.Actor != "operator" || last.Reason == nil || *last.Reason != "a test" || last.Key == nil || *last.Key != "bulk:"+id.String() ||
		last.CorrelationID == nil || *last.CorrelationID != "ticket-7" {
		t.Errorf("history has %+v", last)
	}
	fsmtest.SameJSON(t, fsmtest.Get(t, b.Service, ids[6]).Context, `{"x": 1}`)
	if got := bounded.Value[int](t, b.pool, "select version from pawl.instance where id = $1", other); got != 1 {
		t.Errorf("another tenant's instance is at version %d", got)
	}
	if got := fsmtest.Get(t, b.Service, booking.ID).Version; got != 1 {
		t.Errorf("an instance that the filter does not choose is at version %d", got)
	}
	got := b.get(id)
	if got.Estimate != 7 || got.PerSecond == nil || got.StartedAt == nil || got.FinishedAt == nil || got.Actor != "operator" {
		t.Errorf("the bulk is %+v", got)
	}
}

func TestBulkOfIDs(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	ids, foreign, unknown := b.counters("default", 2), b.counters("other", 1)[0], uuid.New()
	id := b.submit(of(add(), ids[0], ids[0], foreign, unknown, ids[1])).ID
	if got := b.get(id); got.Open != 4 || got.Estimate != 4 {
		t.Errorf("there are %d of %d instances to come, want 4", got.Open, got.Estimate)
	}
	b.work()
	b.want(id, bulk.Done, 2, 2, 0, 0)
	b.wantProblem(id, foreign, "instance-not-found")
	b.wantProblem(id, unknown, "instance-not-found")
	for _, i := range ids {
		if got := fsmtest.Get(t, b.Service, i).Version; got != 2 {
			t.Errorf("an instance that was named is at version %d, want 2", got)
		}
	}
}

func TestBulkLeavesLaterInstances(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	dbtest.SetClock(t, b.pool, fsmtest.Noon)
	b.counters("default", 3)
	id := b.submit(add()).ID
	dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(time.Microsecond))
	later := b.counters("default", 3)
	b.work()
	b.want(id, bulk.Done, 3, 0, 0, 0)
	for _, i := range later {
		if got := fsmtest.Get(t, b.Service, i).Version; got != 1 {
			t.Errorf("an instance that was created later is at version %d", got)
		}
	}
}

func TestBulkChecksTheFilterAgain(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	dbtest.SetClock(t, b.pool, fsmtest.Noon)
	ids := b.counters("default", 3)
	c := add()
	c.Filter.States = []string{"COUNTING"}
	release := fsmtest.Hold(t, b.pool, ids[1])
	id := b.submit(c).ID
	b.work()
	b.want(id, bulk.Running, 2, 0, 0, 0) // The locked one is passed over.
	if got := b.get(id).Open; got != 1 {
		t.Errorf("%d instances are open, want 1", got)
	}
	release()
	fsmtest.Fire(t, b.Service, ids[1], "stop", "{}")
	dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(time.Second))
	b.work()
	b.want(id, bulk.Done, 2, 0, 1, 0)
	b.wantProblem(id, ids[1], "no-longer-matches")
}

func TestBulkGivesUpALockedInstance(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	dbtest.SetClock(t, b.pool, fsmtest.Noon)
	ids := b.counters("default", 2)
	release := fsmtest.Hold(t, b.pool, ids[1])
	id := b.submit(add()).ID
	for n := range 12 {
		dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(time.Duration(n)*time.Second))
		b.work()
	}
	b.want(id, bulk.Done, 1, 0, 0, 1)
	b.wantProblem(id, ids[1], "unavailable")
	release()
	b.control(id, bulk.TryAgain)
	b.work()
	b.want(id, bulk.Done, 2, 0, 0, 0)
}

func TestBulkRetriesWhatWasRefused(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	ids := b.counters("default", 4)
	bounded.Exec(t, b.pool, `update pawl.instance set context = '{"x": "no number"}' where id = any ($1)`, ids[:2])
	c := ask(bulk.Fire, `{"event": "raise"}`)
	id := b.submit(c).ID
	b.work()
	b.want(id, bulk.Done, 0, 0, 0, 4)
	b.wantProblem(id, ids[0], "guard-error")

	id = b.submit(ask(bulk.Fire, `{"event": "add", "payload": {"n": -1}}`)).ID
	b.work()
	b.want(id, bulk.Done, 0, 4, 0, 0)
	b.wantProblem(id, ids[0], "guard-rejected")
	fsmtest.Register(t, b.Service, `{"name": "counter", "initial": "COUNTING", "states": {
		"COUNTING": {"on": {"add": "STOPPED"}}, "STOPPED": {"type": "final"}}}`)
	moved := b.submit(of(ask(bulk.Migrate, `{"to": 2}`), ids[2:]...)).ID
	b.work()
	b.want(moved, bulk.Done, 2, 0, 0, 0)
	if got := b.control(id, bulk.TryAgain); got.Status != bulk.Queued || got.Open != 4 || got.Refused != 0 {
		t.Errorf("after the retry the bulk is %+v", got)
	}
	b.work()
	b.want(id, bulk.Done, 2, 2, 0, 0)
}

func TestBulkPausesAndStops(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	b.counters("default", 350)
	id := b.submit(add()).ID
	b.step()
	done := b.get(id).Applied
	if b.want(id, bulk.Running, done, 0, 0, 0); done == 0 || done == 350 {
		t.Errorf("a step has done %d of 350", done)
	}
	b.control(id, bulk.Pause)
	if b.control(id, bulk.Pause); b.step() >= 0 {
		t.Error("a paused bulk goes on")
	}
	b.want(id, bulk.Paused, done, 0, 0, 0)
	b.control(id, bulk.Resume)
	b.step()
	if done, before := b.get(id).Applied, done; done <= before || done == 350 {
		t.Errorf("the next step has come from %d to %d of 350", before, done)
	}
	b.control(id, bulk.Stop)
	if b.control(id, bulk.Stop); b.step() >= 0 {
		t.Error("a stopped bulk goes on")
	}
	for _, control := range []bulk.Control{bulk.Resume, bulk.Pause, bulk.TryAgain} {
		if _, err := b.bulks.Control(t.Context(), fsm.DefaultTenant, id, control); !errors.Is(err, fsm.BulkConflict) {
			t.Errorf("%s of a stopped bulk: %v", control, err)
		}
	}
	if _, err := b.bulks.Control(t.Context(), "other", id, bulk.Stop); !errors.Is(err, fsm.NotFound) {
		t.Errorf("another tenant's stop: %v", err)
	}
	b.want(id, bulk.Stopped, b.get(id).Applied, 0, 0, 0)
	got := bounded.Column[string](t, b.pool, "select action || ' ' || actor from pawl.audit where action like 'bulk.%' order by seq")
	user := bounded.Value[string](t, b.pool, "select session_user::text")
	var want []string
	for _, action := range []string{"create", "pause", "pause", "resume", "stop", "stop"} {
		want = append(want, "bulk."+action+" "+user)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the audit has %q, want %q", got, want)
	}
}

func TestBulkKeepsToItsRate(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	dbtest.SetClock(t, b.pool, fsmtest.Noon)
	b.counters("default", 60)
	c := add()
	c.Rate = 20
	id := b.submit(c).ID
	for n := range 5 {
		dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(time.Duration(n)*500*time.Millisecond))
		b.work()
		if done, most := b.get(id).Applied, int64(10*n+10); done > most || done < most-5 {
			t.Errorf("%d instances were done in %d half seconds, want about %d", done, n, most)
		}
	}
	dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(10*time.Second))
	b.work()
	dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(20*time.Second))
	b.work()
	if done := b.get(id).Applied; done > 60 {
		t.Errorf("%d instances were done", done)
	}
}

func TestBulkDryRun(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	ids := b.counters("default", 3)
	fsmtest.Fire(t, b.Service, ids[2], "stop", "{}")
	before := fsmtest.Counts(t, b.pool)
	for action, c := range map[string]bulk.Submission{
		"fire": add(), "migrate": of(ask(bulk.Migrate, `{"to": 2}`), ids...), "archive": ask(bulk.Archive, "{}"),
		"retry": of(ask(bulk.Retry, "{}"), ids...), "replay": ask(bulk.Replay, "{}"),
	} {
		c.DryRun, c.Confirm = true, ""
		id := b.submit(c).ID
		b.work()
		if got := b.get(id); got.Status != bulk.Done || got.Applied+got.Refused+got.Skipped == 0 || got.Failed > 0 {
			t.Errorf("%s: the dry run is %+v", action, got)
		}
		if action == "fire" {
			b.want(id, bulk.Done, 2, 1, 0, 0)
		}
	}
	if after := fsmtest.Counts(t, b.pool); after != before {
		t.Errorf("the dry runs have changed %s to %s", before, after)
	}
}

func TestTenantsBulksTakeTurns(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	b.counters("big", 1000)
	b.counters("default", 150)
	for range 3 {
		c := add()
		c.Tenant = "big"
		b.submit(c)
	}
	b.step()
	id := b.submit(add()).ID
	var turns []bool // Whether it was the default tenant's.
	for range 200 {
		before := b.get(id)
		if before.Status == bulk.Done {
			break
		}
		b.step()
		turns = append(turns, b.get(id).Applied > before.Applied)
	}
	b.want(id, bulk.Done, 150, 0, 0, 0)
	for i := range turns {
		if i > 0 && turns[i] == turns[i-1] {
			t.Errorf("the turns were %v, want every second one", turns)
			break
		}
	}
}

func TestBulkChecksThePayload(t *testing.T) {
	t.Parallel()
	b := open(t, `{"name": "counter", "initial": "COUNTING", "states": {
		"COUNTING": {"on": {"add": {"target": "STOPPED", "payload_schema": {"type": "object", "required": ["n"]}}, "skip": "LOOSE"}},
		"LOOSE": {"on": {"add": "STOPPED"}},
		"STOPPED": {"type": "final"}}}`)
	ids := b.counters("default", 3)
	fsmtest.Fire(t, b.Service, ids[2], "skip", "{}")
	stop := bounded.Run(t, "the worker", bulk.NewWorker(b.pool, b.Service.Service, bulk.WorkerConfig{}).Run)
	defer stop()
	id := b.submit(ask(bulk.Fire, `{"event": "add", "payload": {}}`)).ID
	done := func() bool { return b.get(id).Status == bulk.Done }
	bounded.True(t, "the bulk is done", done)
	b.want(id, bulk.Done, 1, 2, 0, 0)
	if p := b.problemOf(id, ids[0]); p.Code != "invalid-payload" || len(p.Errors) != 1 || p.Errors[0].Pointer != "/payload/n" && p.Errors[0].Pointer != "/payload" {
		t.Errorf("the problem is %+v", p)
	}
	id = b.submit(of(ask(bulk.Fire, `{"event": "add", "payload": {"n": 1}}`), ids[:2]...)).ID
	bounded.True(t, "the second bulk is done", done)
	b.want(id, bulk.Done, 2, 0, 0, 0)
}

func TestBulkFailsAlone(t *testing.T) {
	t.Parallel()
	b := open(t, `{"name": "counter", "initial": "COUNTING", "states": {
		"COUNTING": {"on": {"go": {"target": "STOPPED", "guard": "!exists($.context ? (@.raise == true)) || $nowhere == 1"}}},
		"STOPPED": {"type": "final"}}}`)
	ids := b.counters("default", 20)
	bounded.Exec(t, b.pool, `update pawl.instance set context = '{"raise": true}' where id = $1`, ids[7])
	id := b.submit(ask(bulk.Fire, `{"event": "go"}`)).ID
	b.work()
	b.want(id, bulk.Done, 19, 0, 0, 1)
	b.wantProblem(id, ids[7], "guard-error")
}

func TestBulkMigrates(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	ids := b.counters("default", 4)
	fsmtest.Fire(t, b.Service, ids[3], "stop", "{}")
	fsmtest.Register(t, b.Service, `{"name": "counter", "initial": "NEW", "states": {
		"NEW": {"on": {"stop": "STOPPED"}}, "STOPPED": {"type": "final"}}}`)
	id := b.submit(ask(bulk.Migrate, `{"to": 2}`)).ID
	b.work()
	b.want(id, bulk.Done, 0, 3, 0, 0)
	b.wantProblem(id, ids[0], "state-unknown")
	id = b.submit(ask(bulk.Migrate, `{"from": 1, "to": 2, "state_map": {"COUNTING": "NEW"}}`)).ID
	b.work()
	b.want(id, bulk.Done, 3, 0, 0, 0)
	last := fsmtest.Last(t, b.Service, ids[0])
	fsmtest.WantStep(t, last, "migrated", "none", "NEW", 2)
	if last.Key == nil || *last.Key != "bulk:"+id.String() || last.Actor != "operator" {
		t.Errorf("history has %+v", last)
	}
}

func TestBulkArchives(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	fsmtest.ShortKeys(t, b.pool)
	active := b.counters("default", 1)[0]
	gone := fsmtest.Stopped(t, b.Service, "default", 3)
	dbtest.Advance(t, b.pool, time.Minute)
	kept := fsmtest.Stopped(t, b.Service, "default", 1)[0]
	id := b.submit(ask(bulk.Archive, "{}")).ID
	b.work()
	b.want(id, bulk.Done, 3, 1, 0, 0)
	b.wantProblem(id, kept, "instance-retained")
	if got := bounded.Value[int](t, b.pool, "select count(*) from pawl.history where instance_id = any ($1)", gone); got != 0 {
		t.Errorf("%d steps are left", got)
	}
	id = b.submit(of(ask(bulk.Archive, "{}"), active)).ID
	b.work()
	b.want(id, bulk.Done, 0, 1, 0, 0)
	b.wantProblem(id, active, "instance-active")
}

func TestBulkRetriesTimers(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Bombs)
	dbtest.SetClock(t, b.pool, fsmtest.Noon)
	ids := []uuid.UUID{
		fsmtest.Create(t, b.Service, "bomb", `{"raise": true}`).ID, fsmtest.Create(t, b.Service, "bomb", `{}`).ID,
	}
	dbtest.SetClock(t, b.pool, fsmtest.Noon.Add(time.Minute))
	fsmtest.WantFired(t, b.pool, 1)
	bounded.Exec(t, b.pool, `update pawl.instance set context = '{}' where id = $1`, ids[0])
	fsmtest.WantFired(t, b.pool, 0) // It is tried again in a minute.
	c := ask(bulk.Retry, "{}")
	c.Filter.Workflows, c.Confirm = []string{"bomb"}, ""
	id := b.submit(c).ID
	b.work()
	b.want(id, bulk.Done, 1, 0, 0, 0)
	fsmtest.WantFired(t, b.pool, 1)
	id = b.submit(of(c, ids[1])).ID
	b.work()
	b.want(id, bulk.Done, 0, 0, 1, 0)
	b.wantProblem(id, ids[1], "nothing-to-retry")
}

func TestBulkReplays(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	ids := b.counters("default", 2)
	subscription := bounded.Value[uuid.UUID](t, b.pool, `select id from pawl.subscription_create(
		'default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0', 'tester')`)
	bounded.Exec(t, b.pool, `insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, created_at)
		values ('default', gen_random_uuid(), $1, false, $2, 1, 'pawl.step', 'dead', 3, now())`, subscription, ids[0])
	id := b.submit(ask(bulk.Replay, `{"subscription_id": "`+subscription.String()+`"}`)).ID
	b.work()
	b.want(id, bulk.Done, 1, 0, 1, 0)
	b.wantProblem(id, ids[1], "nothing-to-replay")
	if got := bounded.Value[string](t, b.pool, "select status from pawl.delivery"); got != "pending" {
		t.Errorf("the delivery is %s", got)
	}
	// It is one act, however many instances it has.
	got := bounded.Column[string](t, b.pool, "select concat_ws(' ', action, target) from pawl.audit where action like any ('{bulk.%,delivery.%}')")
	if want := []string{"bulk.create " + id.String()}; !slices.Equal(got, want) {
		t.Errorf("the audit has %q, want %q", got, want)
	}
}

func TestSubmitIsIdempotent(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	b.counters("default", 2)
	c := add()
	c.Key = "once"
	first := b.submit(c)
	b.work()
	c.Reason, c.Params = "other words", json.RawMessage(`{"payload": {"n": 1},  "event": "add"}`)
	if again := b.submit(c); again.ID != first.ID || !again.Replayed || first.Replayed || again.Applied != 2 {
		t.Errorf("the replay is %+v", again)
	}
	c.Params = json.RawMessage(`{"event": "add", "payload": {"n": 2}}`)
	if _, err := b.bulks.Submit(t.Context(), c); !errors.Is(err, fsm.KeyReuse) {
		t.Errorf("another request with the key: %v", err)
	}
	c.Tenant = "other"
	if other := b.submit(c); other.ID == first.ID {
		t.Error("two tenants share a key")
	}
	if _, err := b.Fire(t.Context(), fsm.FireCommand{ID: uuid.New(), Event: "add", Key: "bulk:" + first.ID.String()}); !errors.Is(err, fsm.KeyInvalid) {
		t.Errorf("a client's key that looks like a bulk's: %v", err)
	}
}

func TestSubmitRefuses(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	change := func(f func(*bulk.Submission)) bulk.Submission {
		c := add()
		f(&c)
		return c
	}
	for name, test := range map[string]struct {
		c       bulk.Submission
		kind    fsm.Kind
		pointer string
	}{
		"nothing":           {change(func(c *bulk.Submission) { c.Filter = nil }), fsm.Malformed, ""},
		"both":              {change(func(c *bulk.Submission) { c.IDs = []uuid.UUID{uuid.New()} }), fsm.Malformed, "/ids"},
		"no ids":            {of(add(), []uuid.UUID{}...), fsm.Malformed, ""},
		"too many ids":      {of(add(), make([]uuid.UUID, bulk.MaxIDs+1)...), fsm.Malformed, "/ids"},
		"unknown action":    {ask("dance", "{}"), fsm.Malformed, "/action"},
		"no event":          {ask(bulk.Fire, "{}"), fsm.Malformed, "/params/event"},
		"unknown event":     {ask(bulk.Fire, `{"event": "ad"}`), fsm.Malformed, "/params/event"},
		"unknown parameter": {ask(bulk.Archive, `{"event": "add"}`), fsm.Malformed, "/params/event"},
		"payload":           {ask(bulk.Fire, `{"event": "add", "payload": 3}`), fsm.Malformed, "/params/payload"},
		"unknown state":     {change(func(c *bulk.Submission) { c.Filter.States = []string{"COUNTIN"} }), fsm.Malformed, "/filter/state"},
		"unknown workflow": {change(func(c *bulk.Submission) {
			c.Filter.Workflows = []string{"counte"}
			c.Action = bulk.Archive
			c.Params = nil
		}), fsm.Malformed, "/filter/workflow"},
		"unknown version": {ask(bulk.Migrate, `{"to": 9}`), fsm.WorkflowNotFound, ""},
		"no version":      {ask(bulk.Migrate, `{}`), fsm.Malformed, "/params/to"},
		"several workflows": {change(func(c *bulk.Submission) {
			c.Action, c.Params, c.Filter.Workflows = bulk.Migrate, json.RawMessage(`{"to": 1}`), nil
		}), fsm.Malformed, "/filter/workflow"},
		"archive of active": {change(func(c *bulk.Submission) {
			c.Action, c.Params, c.Filter.Statuses = bulk.Archive, nil, []fsm.Status{fsm.Active}
		}), fsm.Malformed, "/filter/status"},
		"status of delivery": {ask(bulk.Replay, `{"status": "pending"}`), fsm.Malformed, "/params/status"},
		"rate":               {change(func(c *bulk.Submission) { c.Rate = -1 }), fsm.Malformed, "/rate"},
		"everything":         {change(func(c *bulk.Submission) { c.Filter, c.Confirm = &fsm.Filter{}, "" }), fsm.ConfirmationRequired, ""},
		"confirmed wrongly":  {change(func(c *bulk.Submission) { c.Confirm = "*" }), fsm.ConfirmationRequired, ""},
		"key":                {change(func(c *bulk.Submission) { c.Key = "bulk:1" }), fsm.KeyInvalid, ""},
	} {
		if test.c.Key == "" {
			test.c.Key = "k"
		}
		_, err := b.bulks.Submit(t.Context(), test.c)
		e := fsm.AsError(err)
		if err == nil || e.Kind != test.kind || test.pointer != "" && (len(e.Faults) != 1 || e.Faults[0].Pointer != test.pointer) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := bounded.Value[int](t, b.pool, "select count(*) from pawl.bulk"); n > 0 {
		t.Errorf("%d bulks were made", n)
	}
}

func TestManyInstancesAreConfirmed(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	bounded.Exec(t, b.pool, `select pawl.create_one('counter', '{"x": 0}') from generate_series(1, 1001)`)
	c := add()
	c.Key, c.Confirm = "k", ""
	if _, err := b.bulks.Submit(t.Context(), c); !errors.Is(err, fsm.ConfirmationRequired) {
		t.Errorf("1,001 instances without a confirmation: %v", err)
	}
	c.Filter.Statuses = []fsm.Status{fsm.Completed}
	b.submit(c)
	c.Key, c.Filter.Statuses, c.DryRun = "dry", nil, true
	b.submit(c)
	c.Key, c.DryRun, c.Confirm = "confirmed", false, "counter"
	id := b.submit(c).ID
	b.work()
	b.want(id, bulk.Done, 1001, 0, 0, 0)
}

func TestLists(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	ids := b.counters("default", 5)
	fsmtest.Fire(t, b.Service, ids[4], "stop", "{}")
	first := b.submit(add()).ID
	b.work()
	second := b.submit(add()).ID
	list, err := b.bulks.List(t.Context(), fsm.DefaultTenant, nil, "", fsm.Page{Limit: 1})
	if err != nil || len(list.Items) != 1 || list.Items[0].ID != second || list.Next == "" {
		t.Fatalf("the first page is %+v, %v", list, err)
	}
	list, err = b.bulks.List(t.Context(), fsm.DefaultTenant, nil, bulk.Done, fsm.Page{})
	if err != nil || len(list.Items) != 1 || list.Items[0].ID != first {
		t.Fatalf("the bulks that are done are %+v, %v", list, err)
	}
	if list, err = b.bulks.List(t.Context(), "other", nil, "", fsm.Page{}); err != nil || len(list.Items) > 0 {
		t.Errorf("another tenant sees %+v, %v", list, err)
	}
	items, err := b.bulks.Items(t.Context(), fsm.DefaultTenant, first, bulk.Refused, fsm.Page{})
	if err != nil || len(items.Items) != 1 || items.Items[0].InstanceID != ids[4] {
		t.Errorf("the refused items are %+v, %v", items, err)
	}
	var seen []uuid.UUID
	page := fsm.Page{Limit: 2}
	for range 3 {
		items, err := b.bulks.Items(t.Context(), fsm.DefaultTenant, first, "", page)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items.Items {
			seen = append(seen, i.InstanceID)
		}
		page.Cursor = items.Next
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	if fmt.Sprint(seen) != fmt.Sprint(ids) || page.Cursor != "" {
		t.Errorf("the items are of %v, want %v", seen, ids)
	}
	if items, err := b.bulks.Items(t.Context(), "other", first, "", fsm.Page{}); err != nil || len(items.Items) > 0 {
		t.Errorf("another tenant's items: %+v, %v", items, err)
	}
}

func TestOldBulksArePurged(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	b.counters("default", 25)
	old := b.submit(add()).ID
	b.work()
	bounded.Exec(t, b.pool, "update pawl.bulk set finished_at = finished_at - interval '31 days'")
	kept := b.submit(add()).ID
	b.work()
	for range 4 {
		bounded.Value[int](t, b.pool, "select pawl.bulk_purge('30 days', 10)")
	}
	if _, err := b.bulks.Get(t.Context(), fsm.DefaultTenant, nil, old); !errors.Is(err, fsm.NotFound) {
		t.Errorf("the old bulk: %v", err)
	}
	b.want(kept, bulk.Done, 25, 0, 0, 0)
}

// TestEachInstanceOnce ends the sessions of two workers again and again, in the middle of their calls.
func TestEachInstanceOnce(t *testing.T) {
	t.Parallel()
	b := open(t, fsmtest.Counter)
	b.counters("default", 1500)
	c := add()
	id := b.submit(c).ID
	for _, name := range []string{"one", "two"} {
		pool := fsmtest.Open(t, dbtest.DSN(b.pool), db.Config{MaxConns: 2, StatementTimeout: time.Second})
		stop := bounded.Run(t, "worker "+name, bulk.NewWorker(pool, b.Service.Service, bulk.WorkerConfig{Batch: 20, Poll: time.Millisecond}).Run)
		defer stop()
	}
	killed := 0
	bounded.True(t, "the bulk is done", func() bool {
		if killed >= 30 {
			return b.get(id).Status == bulk.Done
		}
		killed += bounded.Value[int](t, b.pool, `select count(*) from (
			select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and query like '%bulk_step%' and state = 'active' and pid <> pg_backend_pid()) k`)
		return b.get(id).Status == bulk.Done
	})
	if killed == 0 {
		t.Error("no call was interrupted")
	}
	b.want(id, bulk.Done, 1500, 0, 0, 0)
	if n := bounded.Value[int](t, b.pool, "select count(*) from pawl.instance where version = 2 and context ->> 'x' = '1'"); n != 1500 {
		t.Errorf("%d instances were moved once, want 1500", n)
	}
}
