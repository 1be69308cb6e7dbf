package insight_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// nudged has a state in which an instance is slow after an hour, and what is done then.
func nudged(name, onStuck string) string {
	return fmt.Sprintf(`{"name": %q, "initial": "WAIT", "states": {
		"WAIT": {"stuck_after": "1h", %s "on": {"nudge": [{"target": "WAIT"}], "back": [{"target": "WAIT"}], "note": [{"assign": {"noted": 1}}],
			"push": [{"target": "WORK"}], "bar": [{"guard": "$.context.allowed == 1", "target": "WORK"}], "raise": [{"guard": {"equal": [{"$path": "1 / $.context.zero"}, 1]}, "target": "WORK"}]}},
		"WORK": {"on": {"end": [{"target": "DONE"}]}},
		"DONE": {"type": "final", "outcome": "completed"}}}`, name, onStuck)
}

// healed looks until nothing is due, heals until nothing is due, waits until that is folded, and returns how many attempts
// were made.
func healed(t *testing.T, pool *pgxpool.Pool, batch int) (attempts int) {
	t.Helper()
	looked(t, pool, 1000)
	for more, calls := true, 0; more; calls++ {
		if calls > 100 {
			t.Fatal("the healer comes to no end")
		}
		row := bounded.Value[[]int](t, pool, "select array[h.attempts, h.more::integer] from pawl.heal($1, '0 s') h", batch)
		attempts, more = attempts+row[0], row[1] == 1
	}
	folded(t, pool)
	return attempts
}

// wantAttempts advances the clock, heals, and checks how many attempts that made.
func wantAttempts(t *testing.T, pool *pgxpool.Pool, after time.Duration, want int) {
	t.Helper()
	dbtest.Advance(t, pool, after)
	if got := healed(t, pool, 100); got != want {
		t.Errorf("%d attempts %v later, want %d", got, after, want)
	}
}

// found lists the findings that are open of a kind, as their details.
func found(t *testing.T, pool *pgxpool.Pool, kind string) []string {
	t.Helper()
	return bounded.Column[string](t, pool, "select detail::text from pawl.finding where kind = $1 and closed_at is null order by id", kind)
}

// steps are those of the healer, as what they fired and why.
func healerSteps(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	return bounded.Column[string](t, pool, `
		select concat_ws(' ', h.kind, h.event, h.to_state, '(' || h.reason || ')', h.database_user)
		from pawl.history h where h.actor = 'healer' order by h.at, h.instance_id, h.version`)
}

// A slow instance gets the event of its state, as a step of the actor healer.
func TestHealerFires(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "push"},`))
	made(t, pool, "nudged", 1)
	wantAttempts(t, pool, time.Hour-time.Second, 0)
	wantAttempts(t, pool, time.Second, 1)
	if got := healerSteps(t, pool); !slices.Equal(got, []string{"transition push WORK (slow, attempt 1 of 3)"}) {
		t.Errorf("the healer's steps: %q", got)
	}
	if got := bounded.Value[bool](t, pool, "select h.key = 'heal:' || f.id from pawl.history h, pawl.finding f where h.actor = 'healer'"); !got {
		t.Error("the step does not name the finding")
	}
	wantOpen(t, pool)
	wantAttempts(t, pool, 5*time.Hour, 0)
}

// The healer's step begins a trace if the step before it is traced, and is exported as a span. What follows is below it.
func TestHealerIsTraced(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "push"},`))
	for _, flags := range []string{"01", "00"} {
		bounded.Exec(t, pool, "select pawl.create_one('nudged', p_traceparent => $1)", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"+flags)
	}
	made(t, pool, "nudged", 1)
	wantAttempts(t, pool, time.Hour, 3)
	const pattern = `'^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$'`
	got := bounded.Column[string](t, pool, `
		select concat_ws(' ', right(b.traceparent, 2), right(h.traceparent, 2), substr(h.traceparent, 4, 32) <> substr(b.traceparent, 4, 32), h.traceparent ~ `+pattern+`)
		from pawl.history h
		join pawl.history b on b.instance_id = h.instance_id and b.version = 1
		where h.actor = 'healer'
		order by right(b.traceparent, 2)`)
	if !slices.Equal(got, []string{"00 00 t t", "01 01 t t", ""}) {
		t.Errorf("the traces of the healer's steps: %q", got)
	}
	spans := bounded.Column[string](t, pool, `
		select concat_ws(' ', s ->> 'version', s ->> 'event', s ->> 'parent', h.actor = 'healer')
		from pawl.own_steps(0, 1000) o
		cross join lateral jsonb_array_elements(o.steps) s
		join pawl.history h on h.instance_id = (s ->> 'instance')::uuid and h.version = (s ->> 'version')::bigint
		order by h.version`)
	if !slices.Equal(spans, []string{"1 f", "2 push t"}) {
		t.Errorf("the spans: %q", spans)
	}
}

// Attempts are counted since the last step that was not the healer's: neither a nudge that enters the state anew nor an internal
// step begins anew. Between two attempts is the time after which the instance is slow. After the last one, and that time, a
// finding says so. A caller's step closes it, and the healer begins anew.
func TestHealerEndsAtMax(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "nudge", "max": 2},`))
	id := made(t, pool, "nudged", 1)[0]
	wantAttempts(t, pool, time.Hour, 1)
	wantAttempts(t, pool, 0, 0)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'note')", id)
	wantAttempts(t, pool, 59*time.Minute, 0)
	wantAttempts(t, pool, time.Minute, 1)
	if got := found(t, pool, "heal-failed"); len(got) > 0 {
		t.Errorf("the last attempt has no time to work: %q", got)
	}
	wantAttempts(t, pool, time.Hour, 0)
	want := []string{`{"event": "nudge", "outcome": "applied", "attempts": 2}`}
	if got := found(t, pool, "heal-failed"); !slices.Equal(got, want) {
		t.Errorf("findings: %q, want %q", got, want)
	}
	for range 3 {
		wantAttempts(t, pool, 2*time.Hour, 0)
	}
	wantOpen(t, pool, "slow WAIT", "heal-failed WAIT")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'note')", id)
	folded(t, pool)
	wantOpen(t, pool, "slow WAIT", "heal-failed WAIT")

	bounded.Exec(t, pool, "select pawl.fire_one($1, 'back')", id)
	folded(t, pool)
	wantOpen(t, pool)
	wantAttempts(t, pool, time.Hour, 1)
	wantAttempts(t, pool, time.Hour, 1)
	wantAttempts(t, pool, time.Hour, 0)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where kind = 'heal-failed'"); n != 2 {
		t.Errorf("%d findings heal-failed, want 2", n)
	}
}

// An error that comes each time is a refused attempt, also one that no definition should be able to raise. Otherwise one
// instance would keep all others from being healed.
func TestHealerMeetsInternalErrors(t *testing.T) {
	t.Parallel()
	push := `"on_stuck": {"event": "push", "max": 1},`
	pool := watched(t, nudged("e-xx000", push), nudged("e-53200", push), nudged("pushed", push))
	bounded.Exec(t, pool, `
		create function public.break() returns trigger language plpgsql as $$ begin raise using errcode = upper(substr(new.workflow, 3)), message = 'it breaks'; end $$;
		create trigger break before insert on pawl.history for each row when (new.workflow <> 'pushed' and new.version > 1) execute function public.break()`)
	for _, workflow := range []string{"e-xx000", "e-53200", "pushed"} {
		made(t, pool, workflow, 1)
	}
	wantAttempts(t, pool, time.Hour, 3)
	if got := healerSteps(t, pool); !slices.Equal(got, []string{"transition push WORK (slow, attempt 1 of 1)"}) {
		t.Errorf("the healer's steps: %q", got)
	}
	wantAttempts(t, pool, time.Hour, 0)
	if got := found(t, pool, "heal-failed"); !slices.Equal(got, slices.Repeat([]string{`{"event": "push", "outcome": "internal", "attempts": 1}`}, 2)) {
		t.Errorf("findings: %q", got)
	}
}

// A refusal is an attempt, and so is a guard that raises. It holds up no other instance.
func TestHealerCountsRefusals(t *testing.T) {
	t.Parallel()
	pool := watched(t,
		nudged("barred", `"on_stuck": {"event": "bar", "max": 2},`), nudged("raising", `"on_stuck": {"event": "raise", "max": 1},`),
		nudged("pushed", `"on_stuck": {"event": "push"},`))
	// An internal step before it changes nothing.
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'note') from unnest($1::uuid[]) id", made(t, pool, "barred", 2))
	bounded.Exec(t, pool, `select pawl.create_one('raising', '{"zero": 0}')`)
	bounded.Exec(t, pool, `select pawl.create_one('raising', '{"zero": 1}')`)
	made(t, pool, "pushed", 1)
	bounded.Exec(t, pool, `update pawl.instance set context = '{"allowed": 1}' where id = (select max(id::text)::uuid from pawl.instance where workflow = 'barred')`)
	wantAttempts(t, pool, time.Hour, 5)
	wantOpen(t, pool, "slow WAIT", "slow WAIT")
	wantAttempts(t, pool, time.Hour, 1)
	wantAttempts(t, pool, time.Hour, 0)
	got := found(t, pool, "heal-failed")
	slices.Sort(got)
	want := []string{`{"event": "bar", "outcome": "guard-rejected", "attempts": 2}`, `{"event": "raise", "outcome": "guard-error", "attempts": 1}`}
	if !slices.Equal(got, want) {
		t.Errorf("findings: %q, want %q", got, want)
	}
	if got := healerSteps(t, pool); len(got) != 3 {
		t.Errorf("the healer's steps: %q", got)
	}
}

// A guard that takes longer than a statement may is an attempt of its instance, whoever was tried before it, and holds up no other.
func TestHealerMeetsASlowGuard(t *testing.T) {
	t.Parallel()
	slow := strings.Replace(nudged("slow", `"on_stuck": {"event": "bar", "max": 1},`), "$.context.allowed == 1", "exists($.context.a[*] ? (exists($.context.a[*] ? (@ > 5000000))))", 1)
	pool := watched(t, slow)
	bounded.Exec(t, pool, `select pawl.create_one('slow', jsonb_build_object('a', (select jsonb_agg(1) from generate_series(1, 12000))))`)
	for range 5 {
		bounded.Exec(t, pool, `select pawl.create_one('slow', '{"a": [6000000]}')`)
	}
	folded(t, pool)
	dbtest.Advance(t, pool, time.Hour)
	looked(t, pool, 100)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	bounded.Exec(t, conn, "set statement_timeout = '2s'")
	for calls, more := 0, true; more; calls++ {
		if calls == 10 {
			t.Fatal("the healer comes to no end")
		}
		more = bounded.Value[bool](t, conn, "select more from pawl.heal(100, '0 s')")
	}
	bounded.Exec(t, conn, "reset statement_timeout")
	got := bounded.Column[string](t, pool, "select concat_ws(' ', outcome, count(*), sum(attempts)) from pawl_private.healing group by outcome order by outcome")
	if !slices.Equal(got, []string{"applied 5 5", "guard-error 1 1"}) {
		t.Errorf("attempts: %q", got)
	}
}

// What a state does is said by the version of the instance, and nothing is done in another state.
func TestHealerGoesByVersion(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", ""))
	made(t, pool, "nudged", 1)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", nudged("nudged", `"on_stuck": {"event": "push"},`))
	young := made(t, pool, "nudged", 1)
	wantAttempts(t, pool, time.Hour, 1)
	if got := bounded.Value[uuid.UUID](t, pool, "select id from pawl.instance where state = 'WORK'"); got != young[0] {
		t.Errorf("%s was moved, want %s", got, young[0])
	}
	wantAttempts(t, pool, time.Hour, 0)
	bounded.Exec(t, pool, "select pawl.migrate_instances('default', 'nudged', 1, 2, '{}', null, 5)")
	folded(t, pool)
	wantAttempts(t, pool, 0, 1)
}

// packing has a task whose outcome makes no step until its result is fine. Nothing else leaves the state.
func packing(name, task, onStuck string) string {
	return fmt.Sprintf(`{"name": %q, "initial": "PACKING", "states": {
		"PACKING": {"stuck_after": "1h", "on_stuck": {%s}, "invoke": {"pack": {%s, "deadline": "1d",
			"done": [{"target": "DONE", "assign": {"fine": "$.payload.body.fine"}}], "error": [{"target": "DONE"}], "unknown": [{"target": "DONE"}]}}},
		"DONE": {"type": "final", "outcome": "completed", "invariant": "$.context.fine == 1"}}}`, name, onStuck, task)
}

// audited lists what the healer did, as the audit tells it.
func audited(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	return bounded.Column[string](t, pool, "select concat_ws(' ', action, reason) from pawl.audit where actor = 'healer' order by seq")
}

// A task that ended and made no step is tried again, as an operator has it tried again. While it is under way the healer waits. An
// instance with several findings gets one attempt at a time.
func TestHealerRetriesTasks(t *testing.T) {
	t.Parallel()
	pool := watched(t, packing("packing", `"work": {"topic": "pack"}`, `"retry": "pack", "max": 1`))
	made(t, pool, "packing", 1)
	work := func(report string) {
		t.Helper()
		bounded.Exec(t, pool, "select "+report+" from pawl.claim_work('pack', 'w', 1) w")
		folded(t, pool)
	}
	// It is slow while its task waits, and that is not for the healer.
	wantAttempts(t, pool, 2*time.Hour, 0)
	wantOpen(t, pool, "slow PACKING")
	work("pawl.fail_work(w.id, w.lease, 'torn')")
	wantAttempts(t, pool, 0, 1)
	if got := audited(t, pool); len(got) != 1 || !strings.HasPrefix(got[0], "task.retry ") || !strings.HasSuffix(got[0], ", attempt 1 of 1") {
		t.Errorf("audited: %q", got)
	}
	wantOpen(t, pool, "orphaned PACKING")
	wantAttempts(t, pool, 3*time.Hour, 0)
	if got := found(t, pool, "heal-failed"); len(got) > 0 {
		t.Errorf("the task is under way, and healing has failed: %q", got)
	}
	work("pawl.fail_work(w.id, w.lease, 'torn again')")
	wantAttempts(t, pool, time.Minute, 0)
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING", "heal-failed PACKING")

	// By hand, and with a result that is fine.
	bounded.Exec(t, pool, "select pawl.task_retry('default', id, 'by hand') from pawl.task")
	work(`pawl.complete_work(w.id, w.lease, '{"fine": 1}')`)
	wantOpen(t, pool)
	if got := bounded.Value[string](t, pool, "select state from pawl.instance"); got != "DONE" {
		t.Errorf("the instance is in %s, want DONE", got)
	}
}

// A task that ended badly is not what an event is fired for.
func TestHealerFiresAtStuckInstances(t *testing.T) {
	t.Parallel()
	pool := watched(t, `{"name": "w", "initial": "PACKING", "states": {
		"PACKING": {"stuck_after": "1h", "on_stuck": {"event": "leave"}, "on": {"leave": [{"target": "LEFT"}]}, "invoke": {"pack": {"work": {"topic": "pack"}, "deadline": "1d",
			"done": [{"target": "DONE"}], "error": [{"target": "DONE"}], "unknown": [{"target": "DONE"}]}}},
		"LEFT": {"on": {"end": [{"target": "DONE"}]}},
		"DONE": {"type": "final", "outcome": "completed", "invariant": "$.context.fine == 1"}}}`)
	made(t, pool, "w", 1)
	bounded.Exec(t, pool, "select pawl.complete_work(w.id, w.lease, '{}') from pawl.claim_work('pack', 'w', 1) w")
	folded(t, pool)
	wantAttempts(t, pool, 0, 0)
	wantOpen(t, pool, "task-dead PACKING")
	wantAttempts(t, pool, time.Hour, 1)
	wantOpen(t, pool)
}

// What became of a call is asked again: of one that ended, and at once of one that waits for the next question.
func TestHealerReconcilesTasks(t *testing.T) {
	t.Parallel()
	pool := watched(t, packing("packing", `"http": {"connection": "psp", "method": "POST", "path": "/a"}, "timeout": "10s",
		"reconcile": {"http": {"connection": "psp", "method": "GET", "path": "/a"}, "every": ["20h"], "done": "$.body.known == true", "failed": "$.body.failed == true"}`,
		`"reconcile": "pack"`))
	made(t, pool, "packing", 1)
	call := func(report, kind string) {
		t.Helper()
		got := bounded.Value[string](t, pool, `
			with c as materialized (select * from pawl.task_claim('{default}', '{psp}', '{1}', 'test'))
			select concat_ws(' ', (select case when c.reconciling then 'reconcile' else 'call' end from c),
				(select s.code from c, pawl.task_settle('{default}', array[c.task_id], array[c.lease], array[$1::jsonb]) s))`, report)
		if got != kind+" settled" {
			t.Errorf("%s: %s, want %s", report, got, kind)
		}
		folded(t, pool)
	}
	call(`{"result": "lost", "error": "reset"}`, "call")
	// Nobody asks for 20 hours.
	wantAttempts(t, pool, time.Hour, 1)
	call(`{"result": "answered", "status": 200, "body": {"known": true, "result": 7}}`, "reconcile")
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING")
	wantAttempts(t, pool, time.Hour, 1)
	if got := audited(t, pool); !slices.Equal(got, []string{"task.reconcile slow, attempt 1 of 3", got[1]}) || !strings.HasPrefix(got[1], "task.reconcile ") {
		t.Errorf("audited: %q", got)
	}
	call(`{"result": "answered", "status": 200, "body": {"known": true, "fine": 1}}`, "reconcile")
	wantOpen(t, pool)
	if got := bounded.Column[string](t, pool, "select kind from pawl.task_attempt order by number"); !slices.Equal(got, []string{"call", "reconcile", "reconcile"}) {
		t.Errorf("attempts: %q", got)
	}
}

// If too many instances of a workflow are stuck, nothing is healed, and a finding says so, until few are. Each call reads a bounded
// number of rows.
func TestHealingPauses(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "nudge"},`))
	ids := made(t, pool, "nudged", 1000)
	dbtest.Advance(t, pool, time.Hour)
	looked(t, pool, 2000)
	rows := bounded.Value[int](t, pool, `
		with before as materialized (select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)), 0) as n
			from pg_class c where c.relname ~ '^(finding|residence|instance)'),
		healed as materialized (select h.attempts, b.n from before b cross join lateral pawl.heal(1000, '0 s') h)
		select (select sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)) from pg_class c where c.relname ~ '^(finding|residence|instance)')
			- h.n from healed h`)
	if rows < 1 || rows > 200 {
		t.Errorf("a pause of 1000 stuck instances reads %d rows", rows)
	}
	wantAttempts(t, pool, time.Hour, 0)
	want := []string{`{"open": 1000, "resumes_below": 25, "stuck_at_least": 51}`}
	if got := found(t, pool, "healing-paused"); !slices.Equal(got, want) {
		t.Errorf("findings: %q, want %q", got, want)
	}
	push := func(from, to int) {
		t.Helper()
		bounded.Exec(t, pool, "select pawl.fire_one(id, 'push') from unnest($1::uuid[]) id", ids[from:to])
		folded(t, pool)
	}
	push(0, 960)
	wantAttempts(t, pool, time.Minute, 0)
	push(960, 975)
	wantAttempts(t, pool, time.Minute, 0)
	push(975, 976)
	wantAttempts(t, pool, time.Minute, 24)
	if got := found(t, pool, "healing-paused"); len(got) > 0 {
		t.Errorf("24 of 1000 instances are stuck: %q", got)
	}
	if got := healerSteps(t, pool); len(got) != 24 {
		t.Errorf("the healer made %d steps, want 24", len(got))
	}
	// A twentieth is not yet too much.
	bounded.Exec(t, pool, "select pawl.override(id, 'test', '*', p_to => 'WAIT') from unnest($1::uuid[]) id", ids[950:976])
	folded(t, pool)
	wantAttempts(t, pool, time.Hour, 50)
	bounded.Exec(t, pool, "select pawl.override(id, 'test', '*', p_to => 'WAIT') from unnest($1::uuid[]) id", ids[949:950])
	folded(t, pool)
	wantAttempts(t, pool, time.Hour, 0)
}

// Fewer than 20 stuck instances are healed, however small the workflow is. The tenants are apart: a pause of one is none of another,
// and a disabled tenant is left alone.
func TestHealingIsPerTenant(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "nudge"},`), nudged("other", `"on_stuck": {"event": "nudge"},`), nudged("third", `"on_stuck": {"event": "nudge"},`))
	dbtest.Tenants(t, pool, "outage", "disabled", "small")
	made(t, pool, "nudged", 20, "outage")
	made(t, pool, "other", 19, "outage")
	made(t, pool, "third", 20, "outage")
	made(t, pool, "nudged", 1, "disabled")
	made(t, pool, "nudged", 1, "small")
	bounded.Exec(t, pool, "update pawl.tenant set disabled_at = pawl.now() where id = 'disabled'")
	dbtest.Advance(t, pool, time.Hour)
	made(t, pool, "nudged", 2, "small")
	// With each limit all is healed.
	if got := healed(t, pool, 7); got != 20 {
		t.Errorf("%d attempts, want 20", got)
	}
	got := bounded.Column[string](t, pool, "select concat_ws(' ', tenant_id, workflow, count(*)) from pawl.history where actor = 'healer' group by tenant_id, workflow order by 1")
	if !slices.Equal(got, []string{"outage other 19", "small nudged 1"}) {
		t.Errorf("healed: %q", got)
	}
	if got := bounded.Column[string](t, pool, "select concat_ws(' ', tenant_id, workflow) from pawl.finding where kind = 'healing-paused' order by workflow"); !slices.Equal(got, []string{"outage nudged", "outage third"}) {
		t.Errorf("paused: %q", got)
	}
	// The pause of a small workflow ends when fewer than ten are stuck, also if none is left.
	push := func(workflow string, n int) {
		t.Helper()
		bounded.Exec(t, pool, `select pawl.fire_one(i.id, 'push', p_tenant => 'outage')
			from (select id from pawl.instance where tenant_id = 'outage' and workflow = $1 and state = 'WAIT' order by id limit $2) i`, workflow, n)
		folded(t, pool)
	}
	push("nudged", 10)
	wantAttempts(t, pool, time.Minute, 0)
	push("nudged", 1)
	wantAttempts(t, pool, 0, 9)
	push("third", 20)
	wantAttempts(t, pool, 0, 0)
	if got := found(t, pool, "healing-paused"); len(got) > 0 {
		t.Errorf("fewer than ten are stuck: %q", got)
	}
}

// Many tasks end badly at once, and a look finds some of them. Healing waits until all are found, and then pauses. Those that are
// known do not hold it up.
func TestHealingWaitsForAllTasks(t *testing.T) {
	t.Parallel()
	pool := watched(t, packing("packing", `"work": {"topic": "pack"}`, `"retry": "pack"`), nudged("nudged", `"on_stuck": {"event": "push"},`))
	made(t, pool, "packing", 30)
	bounded.Exec(t, pool, "select pawl.fail_work(w.id, w.lease, 'torn') from pawl.claim_work('pack', 'w', 30) w")
	folded(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.task where status = 'error'"); n != 30 {
		t.Fatalf("%d tasks have failed", n)
	}
	attempts := 0
	for calls, more := 0, true; more; calls++ {
		if calls > 100 {
			t.Fatal("the looks come to no end")
		}
		more = bounded.Value[bool](t, pool, "select more from pawl.finding_look(7, '0 s')")
		attempts += bounded.Value[int](t, pool, "select attempts from pawl.heal(100, '0 s')")
	}
	if got := found(t, pool, "healing-paused"); attempts != 0 || len(got) != 1 {
		t.Errorf("%d attempts, and paused: %q", attempts, got)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where kind = 'task-dead' and closed_at is null"); n != 30 {
		t.Errorf("%d findings task-dead, want 30", n)
	}
	for range 10 {
		if bounded.Value[bool](t, pool, "select more from pawl.finding_look(7, '0 s')") {
			t.Error("a look that finds nothing new is not complete")
		}
	}
}

// An attempt and its step are one transaction: a backend that dies leaves neither, and two that heal at a time make one.
func TestHealerDies(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "nudge", "max": 2},`))
	made(t, pool, "nudged", 3)
	dbtest.Advance(t, pool, time.Hour)
	looked(t, pool, 100)
	begin := func() (pgx.Tx, uint32) {
		t.Helper()
		conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := bounded.Value[int](t, tx, "select attempts from pawl.heal(100, '0 s')"); n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
		return tx, conn.PgConn().PID()
	}
	for range 2 {
		_, pid := begin()
		if n := bounded.Value[int](t, pool, "select attempts from pawl.heal(100, '0 s')"); n != 0 {
			t.Errorf("%d attempts beside those of another process", n)
		}
		bounded.Exec(t, pool, "select pg_terminate_backend($1)", pid)
		bounded.UntilSQL(t, pool, "select not exists (select from pg_stat_activity where pid = $1)", pid)
	}
	tx, _ := begin()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantAttempts(t, pool, 0, 0)
	if got := bounded.Column[string](t, pool, "select concat_ws(' ', version, attempts) from pawl_private.healing"); !slices.Equal(got, []string{"2 1", "2 1", "2 1"}) {
		t.Errorf("attempts: %q", got)
	}
	if got := healerSteps(t, pool); len(got) != 3 {
		t.Errorf("the healer's steps: %q", got)
	}
}

// An instance that somebody holds, or has moved, is not healed. Nor is any before a look is complete.
func TestHealerLeavesAlone(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "nudge"},`))
	ids := made(t, pool, "nudged", 3)
	dbtest.Advance(t, pool, time.Hour)
	if !bounded.Value[bool](t, pool, "select more from pawl.finding_look(2, '0 s')") {
		t.Fatal("the look is complete")
	}
	if n := bounded.Value[int](t, pool, "select attempts from pawl.heal(100, '0 s')"); n != 0 {
		t.Errorf("%d attempts after a look that is not complete", n)
	}
	looked(t, pool, 100)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "select from pawl.instance where id = $1 for no key update", ids[0])
	// The fold does not know of this step when the healer looks.
	other, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, other, "select from pawl.consumer where name = 'insight' for update")
	dbtest.Advance(t, pool, time.Second)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'back')", ids[1])
	if n := bounded.Value[int](t, pool, "select attempts from pawl.heal(100, '0 s')"); n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
	for _, tx := range []pgx.Tx{tx, other} {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	folded(t, pool)
	wantAttempts(t, pool, 10*time.Second, 1)
	if got := bounded.Column[uuid.UUID](t, pool, "select instance_id from pawl.history where actor = 'healer' order by at"); !slices.Equal(got, []uuid.UUID{ids[2], ids[0]}) {
		t.Errorf("healed: %v", got)
	}
}

// A call reads what is due, however many instances are stuck for which nothing is to be done.
func TestHealerReadsWhatIsDue(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "push"},`), nudged("other", ""))
	made(t, pool, "nudged", 1)
	dbtest.Advance(t, pool, time.Hour)
	looked(t, pool, 100)
	bounded.Exec(t, pool, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
		select 'default', pawl_private.uuid_v7(pawl.now()), 'slow', gen_random_uuid(), 'other', 'WAIT', 1, pawl.now(), pawl.now(), '{}' from generate_series(1, 50000)`)
	bounded.Exec(t, pool, "analyze pawl.finding")
	got := bounded.Value[[]int](t, pool, `
		with before as materialized (select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)), 0) as n
			from pg_class c where c.relname like 'finding%'),
		healed as materialized (select h.attempts, b.n from before b cross join lateral pawl.heal(100, '0 s') h)
		select array[h.attempts, (select sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)) from pg_class c where c.relname like 'finding%') - h.n]
		from healed h`)
	if got[0] != 1 || got[1] < 1 || got[1] > 100 {
		t.Errorf("%d attempts read %d rows", got[0], got[1])
	}
}

// A purge takes with it what the healer knows of the instance, and closes its findings.
func TestPurgeOfHealed(t *testing.T) {
	t.Parallel()
	pool := watched(t, strings.Replace(nudged("nudged", `"on_stuck": {"event": "bar", "max": 1},`), `"initial"`, `"retention": "1h", "initial"`, 1))
	id := made(t, pool, "nudged", 1)[0]
	wantAttempts(t, pool, time.Hour, 1)
	wantAttempts(t, pool, time.Hour, 0)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'push'), pawl.fire_one($1, 'end')", id)
	folded(t, pool)
	bounded.UntilSQL(t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], pawl.now())) = 1", id)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.healing"); n != 0 {
		t.Errorf("the healer remembers %d instances", n)
	}
}

// A Watcher heals by itself, and two of them heal nothing twice.
func TestWatcherHeals(t *testing.T) {
	t.Parallel()
	pool := watched(t, nudged("nudged", `"on_stuck": {"event": "nudge", "max": 1},`))
	made(t, pool, "nudged", 5)
	dbtest.Advance(t, pool, time.Hour)
	var told atomic.Int64
	for range 2 {
		bounded.Run(t, "the watcher", worker.NewWatcher(pool, worker.WatcherConfig{
			BatchConfig: worker.BatchConfig{Interval: time.Millisecond, Batch: 10}, Healed: func() { told.Add(1) },
		}).Run)
	}
	bounded.UntilSQL(t, pool, "select count(*) = 5 from pawl.history where actor = 'healer'")
	bounded.True(t, "the watchers tell of what they healed", func() bool { return told.Load() == 5 })
	folded(t, pool)
	dbtest.Advance(t, pool, time.Hour)
	// The clock goes on, since a watcher that had looked before the hour was over may have healed behind it.
	bounded.True(t, "the end of the attempts", func() bool {
		dbtest.Advance(t, pool, time.Millisecond)
		return bounded.Value[bool](t, pool, "select count(*) = 5 from pawl.finding where kind = 'heal-failed' and closed_at is null")
	})
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.history where actor = 'healer'"); n != 5 {
		t.Errorf("%d steps of the healer, want 5", n)
	}
}

// Who registers over SQL hears of what the healer could not do, too.
func TestDefinitionOfHealing(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	definition := func(onStuck, more string) string {
		return fmt.Sprintf(`{"name": "w", "initial": "A", "states": {"A": {"initial": "B", "on": {"pay.*": [{"target": "Z"}]}, "states": {
			"B": {"on_stuck": %s, %s "on": {"go": [{"target": "Z"}]}, "invoke": {"pack": {"work": {"topic": "t"}, "deadline": "1h",
				"done": [{"target": "Z"}], "error": [{"target": "Z"}], "unknown": [{"target": "Z"}]}}}}},
			"Z": {"type": "final", "outcome": "completed"}}}`, onStuck, more)
	}
	register := func(definition string) error {
		_, err := pool.Exec(t.Context(), "select pawl.register_workflow($1::jsonb)", definition)
		return err
	}
	for _, good := range []string{`{"event": "go"}`, `{"event": "pay.again", "max": 100}`, `{"retry": "pack", "max": 1}`} {
		if err := register(definition(good, "")); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	if got := bounded.Column[string](t, pool, "select on_stuck::text from pawl.workflow_state where on_stuck is not null order by workflow_version"); !slices.Equal(got,
		[]string{`{"max": 3, "event": "go"}`, `{"max": 100, "event": "pay.again"}`, `{"max": 1, "retry": "pack"}`}) {
		t.Errorf("stored: %q", got)
	}
	for bad, want := range map[string]string{
		`null`: "object", `"go"`: "object", `{}`: "one of event", `{"max": 1}`: "one of event", `{"event": "go", "retry": "pack"}`: "one of event",
		`{"event": "go", "more": 1}`: "one of event", `{"event": 7}`: "a name", `{"event": null}`: "a name", `{"event": "gone"}`: "accepts", `{"event": "pay.*"}`: "accepts", `{"event": "done:pack"}`: "accepts",
		`{"retry": "pakc"}`: "no task", `{"reconcile": "pack"}`: "no reconcile", `{"event": "go", "max": 0}`: "from 1 to 100", `{"event": "go", "max": 101}`: "from 1 to 100",
		`{"event": "go", "max": 1.5}`: "from 1 to 100", `{"event": "go", "max": "1"}`: "from 1 to 100",
	} {
		if err := register(definition(bad, "")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want words of %q", bad, err, want)
		}
	}
	if err := register(definition(`{"event": "go"}`, `"protected": true,`)); err == nil || !strings.Contains(err.Error(), "protected") {
		t.Errorf("in a protected state: %v", err)
	}
	for _, c := range [][2]string{{`"A": {`, `"A": {"on_stuck": {"event": "go"}, `}, {`"Z": {`, `"Z": {"on_stuck": {"event": "go"}, `}} {
		if err := register(strings.Replace(definition(`{"event": "go"}`, ""), c[0], c[1], 1)); err == nil || !strings.Contains(err.Error(), "to have on_stuck") {
			t.Errorf("%s: %v", c[1], err)
		}
	}
}
