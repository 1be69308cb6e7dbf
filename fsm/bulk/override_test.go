package bulk_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/bulk"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// forcible is a counter with a state that cancels lead to, and one that is protected.
const forcible = `{"name": "counter", "initial": "COUNTING", "cancel": "GONE",
	"context_schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
	"states": {
		"COUNTING": {"after": {"1h": "GONE"}, "on": {
			"seal": "SEALED", "end": "GONE",
			"pay": [
				{"target": "PAID", "guard": "$.context.never == true", "payload_schema": {"type": "object", "required": ["sum"]}, "assign": {"sum": "$.payload.sum"}},
				{"target": "GONE", "guard": "$.context.never == true"}
			]}},
		"SEALED": {"protected": true, "on": {"open": "COUNTING"}},
		"PAID": {"type": "final"}, "GONE": {"type": "final", "outcome": "cancelled"}
	}}`

// sealed makes four counters, of which the third is in a protected state, and the fourth is final.
func (b *bench) sealed() []uuid.UUID {
	b.t.Helper()
	ids := b.counters("default", 4)
	fsmtest.Fire(b.t, b.Service, ids[2], "seal", "{}")
	fsmtest.Fire(b.t, b.Service, ids[3], "end", "{}")
	return ids
}

// wantForced fails the test unless the last step of an instance and its audit row are those of a bulk.
func (b *bench) wantForced(id, instance uuid.UUID, kind, action, state string) {
	b.t.Helper()
	last := fsmtest.Last(b.t, b.Service, instance)
	if string(last.Kind) != kind || last.To != state || last.Actor != "operator" || last.Reason == nil || *last.Reason != "a test" ||
		last.Key == nil || *last.Key != "bulk:"+id.String() {
		b.t.Errorf("history has %+v", last)
	}
	got := bounded.Value[string](b.t, b.pool, `select string_agg(concat_ws(' ', action, outcome, request_id, reason), '; ')
		from pawl.audit where target = $1`, instance.String())
	if want := "instance." + action + " done bulk:" + id.String() + " a test"; got != want {
		b.t.Errorf("the audit has %q, want %q", got, want)
	}
}

func TestBulkOverrides(t *testing.T) {
	t.Parallel()
	b := open(t, forcible)
	ids := b.sealed()
	dry := ask(bulk.Override, `{"to": "PAID"}`)
	dry.DryRun = true
	before := fsmtest.Counts(t, b.pool)
	id := b.submit(dry).ID
	b.work()
	b.want(id, bulk.Done, 2, 2, 0, 0)
	if after := fsmtest.Counts(t, b.pool); after != before {
		t.Errorf("the dry run has changed %s to %s", before, after)
	}

	id = b.submit(ask(bulk.Override, `{"to": "PAID"}`)).ID
	b.work()
	b.want(id, bulk.Done, 2, 2, 0, 0)
	b.wantProblem(id, ids[2], "state-protected")
	b.wantProblem(id, ids[3], "transition-not-allowed")
	b.wantForced(id, ids[0], "forced", "override", "PAID")
	if got := bounded.Value[int](t, b.pool, "select count(*) from pawl.timer where instance_id = $1 and armed_version = 2", ids[0]); got != 0 {
		t.Errorf("a final instance has %d timers", got)
	}
	if got := fsmtest.Get(t, b.Service, ids[2]).State; got != "SEALED" {
		t.Errorf("the protected instance is in %s", got)
	}

	// Once the reason of a refusal is gone, the retry does it.
	fsmtest.Fire(t, b.Service, ids[2], "open", "{}")
	b.control(id, bulk.TryAgain)
	b.work()
	b.want(id, bulk.Done, 3, 1, 0, 0)
	b.wantForced(id, ids[2], "forced", "override", "PAID")
	id = b.submit(of(ask(bulk.Override, `{"to": "NOWHERE"}`), b.counters("default", 1)...)).ID
	b.work()
	b.want(id, bulk.Done, 0, 1, 0, 0)
}

func TestBulkPassesGuardsOver(t *testing.T) {
	t.Parallel()
	b := open(t, forcible)
	ids := b.sealed()
	stop := bounded.Run(t, "the worker", bulk.NewWorker(b.pool, b.Service.Service, bulk.WorkerConfig{}).Run)
	defer stop()
	run := func(params string, instances ...uuid.UUID) uuid.UUID {
		t.Helper()
		id := b.submit(of(ask(bulk.Override, params), instances...)).ID
		bounded.True(t, "the bulk is done", func() bool { return b.get(id).Status == bulk.Done })
		return id
	}
	id := run(`{"event": "pay", "payload": {}, "bypass": "guard"}`, ids[0])
	b.want(id, bulk.Done, 0, 1, 0, 0)
	if p := b.problemOf(id, ids[0]); p.Code != "invalid-payload" || len(p.Errors) != 1 {
		t.Errorf("the problem is %+v", p)
	}
	id = run(`{"event": "pay", "payload": {"sum": 7}, "bypass": "guard"}`, ids...)
	b.want(id, bulk.Done, 2, 2, 0, 0)
	b.wantForced(id, ids[0], "forced", "override", "PAID")
	b.wantForced(id, ids[1], "forced", "override", "PAID")
	fsmtest.SameJSON(t, fsmtest.Get(t, b.Service, ids[1]).Context, `{"x": 0, "sum": 7}`)
	more := b.counters("default", 1)
	id = run(`{"event": "pay", "payload": {"sum": 7}, "bypass": "guard", "target": "GONE"}`, more...)
	b.want(id, bulk.Done, 1, 0, 0, 0)
	b.wantForced(id, more[0], "forced", "override", "GONE")
}

func TestBulkPatchesContexts(t *testing.T) {
	t.Parallel()
	b := open(t, forcible)
	ids := b.counters("default", 60)
	bounded.Exec(t, b.pool, `update pawl.instance set context = '{"x": "no number"}' where id = $1`, ids[7])
	changed := ids[8]
	c := ask(bulk.Override, `{"to": "COUNTING", "context_patch": {"x": "text"}}`)
	id := b.submit(c).ID

	// An instance that changes after its context was checked waits for the next step.
	asked := bounded.Value[string](t, b.pool, "select unchecked::text from pawl.bulk_step(100)")
	fsmtest.Fire(t, b.Service, changed, "seal", "{}")
	fsmtest.Fire(t, b.Service, changed, "open", "{}")
	bounded.Exec(t, b.pool, `update pawl.instance set context = '{"x": 5}' where id = $1`, changed)
	bounded.Exec(t, b.pool, `select pawl.bulk_check('default', $1, (select jsonb_object_agg(key, 'null'::jsonb) from jsonb_each($2::jsonb)))`, id, asked)
	b.step()
	if got := b.get(id); got.Applied != 59 || got.Open != 1 || got.Status != bulk.Running {
		t.Errorf("after the step the bulk is %+v", got)
	}
	if got := fsmtest.Get(t, b.Service, changed).Version; got != 3 {
		t.Errorf("the instance whose context was not checked is at version %d", got)
	}

	stop := bounded.Run(t, "the worker", bulk.NewWorker(b.pool, b.Service.Service, bulk.WorkerConfig{}).Run)
	defer stop()
	done := func() bool { return b.get(id).Status == bulk.Done }
	bounded.True(t, "the bulk is done", done)
	b.want(id, bulk.Done, 59, 1, 0, 0)
	if p := b.problemOf(id, changed); p.Code != "invalid-context" || len(p.Errors) != 1 || p.Errors[0].Pointer != "/context_patch/x" {
		t.Errorf("the problem is %+v", p)
	}
	// Those that did not fit the schema before may stay so.
	id = b.submit(c).ID
	bounded.True(t, "the second bulk is done", done)
	b.want(id, bulk.Done, 59, 1, 0, 0)
	c.Params = []byte(`{"to": "COUNTING", "context_patch": {"x": 3}}`)
	id = b.submit(c).ID
	bounded.True(t, "the third bulk is done", done)
	b.want(id, bulk.Done, 60, 0, 0, 0)
	fsmtest.SameJSON(t, fsmtest.Get(t, b.Service, changed).Context, `{"x": 3}`)
	if got := bounded.Value[int](t, b.pool, `select count(*) from pawl.audit where action = 'bulk.create' and after::text like '%context_patch%'`); got != 0 {
		t.Errorf("%d rows of the audit show the patch", got)
	}
}

func TestBulkCancels(t *testing.T) {
	t.Parallel()
	b := open(t, forcible, fsmtest.FlightBooking)
	ids := b.sealed()
	booking := fsmtest.Create(t, b.Service, "flight-booking", `{"flight_id": "f", "price": 1}`)
	c := of(ask(bulk.Cancel, ""), append(ids, booking.ID)...)
	c.DryRun = true
	before := fsmtest.Counts(t, b.pool)
	id := b.submit(c).ID
	b.work()
	b.want(id, bulk.Done, 2, 3, 0, 0)
	if after := fsmtest.Counts(t, b.pool); after != before {
		t.Errorf("the dry run has changed %s to %s", before, after)
	}
	c.DryRun = false
	id = b.submit(c).ID
	b.work()
	b.want(id, bulk.Done, 2, 3, 0, 0)
	b.wantProblem(id, ids[2], "state-protected")
	b.wantProblem(id, ids[3], "transition-not-allowed")
	b.wantProblem(id, booking.ID, "not-cancellable")
	b.wantForced(id, ids[1], "cancelled", "cancel", "GONE")
	fsmtest.Fire(t, b.Service, ids[2], "open", "{}")
	b.control(id, bulk.TryAgain)
	b.work()
	b.want(id, bulk.Done, 3, 2, 0, 0)
}

func TestBulkOverrideIsRefused(t *testing.T) {
	t.Parallel()
	b := open(t, forcible)
	blank := func(c bulk.Submission) bulk.Submission {
		c.Reason = " "
		return c
	}
	for name, test := range map[string]struct {
		c       bulk.Submission
		pointer string
	}{
		"override without a reason": {blank(ask(bulk.Override, `{"to": "PAID"}`)), "/reason"},
		"cancel without a reason":   {blank(ask(bulk.Cancel, "{}")), "/reason"},
		"parameters of a cancel":    {ask(bulk.Cancel, `{"to": "GONE"}`), "/params/to"},
		"neither to nor event":      {ask(bulk.Override, `{}`), "/params"},
		"both":                      {ask(bulk.Override, `{"to": "PAID", "event": "pay", "bypass": "guard"}`), "/params"},
		"no bypass":                 {ask(bulk.Override, `{"event": "pay"}`), "/params/bypass"},
		"patch with an event":       {ask(bulk.Override, `{"event": "pay", "bypass": "guard", "context_patch": {}}`), "/params/context_patch"},
		"patch":                     {ask(bulk.Override, `{"to": "PAID", "context_patch": 1}`), "/params/context_patch"},
		"payload":                   {ask(bulk.Override, `{"event": "pay", "bypass": "guard", "payload": []}`), "/params/payload"},
		"event":                     {ask(bulk.Override, `{"event": "apy", "bypass": "guard"}`), "/params/event"},
	} {
		test.c.Key = "k"
		_, err := b.bulks.Submit(t.Context(), test.c)
		if e := fsm.AsError(err); err == nil || e.Kind != fsm.Malformed || len(e.Faults) != 1 || e.Faults[0].Pointer != test.pointer {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := bounded.Value[int](t, b.pool, "select count(*) from pawl.bulk"); n > 0 {
		t.Errorf("%d bulks were made", n)
	}
}
