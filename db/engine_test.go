package db_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestCreateAndFireFromSQL(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, flight)
	row := func(sql string, args ...any) (i queries.Instance) {
		t.Helper()
		rows, err := pool.Query(t.Context(), sql, args...)
		if err == nil {
			i, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[queries.Instance])
		}
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	stored := func(id uuid.UUID) queries.Instance {
		t.Helper()
		return row("select * from pawl.instance where id = $1", id)
	}

	dbtest.Tenants(t, pool, "acme")
	created := row(`select * from pawl.create_one('flight-booking', '{"price": 100}', p_key => 'k', p_tenant => 'acme',
		p_business_key => 'booking 1', p_actor => 'sql', p_correlation_id => 'c')`)
	if diff := cmp.Diff(stored(created.ID), created); diff != "" {
		t.Errorf("create_one answers another instance than it stores:\n%s", diff)
	}
	if created.State != "QUOTED" || created.Status != "active" || created.Version != 1 || created.TenantID != "acme" ||
		*created.BusinessKey != "booking 1" || *created.CorrelationID != "c" || !created.CreatedAt.Equal(created.StateChangedAt) {
		t.Errorf("created %+v", created)
	}
	reserved := row(`select * from pawl.fire_one($1, 'reserve', '{"price": 100, "seat": "1A"}', p_tenant => 'acme',
		p_expected_version => 1, p_actor => 'sql')`, created.ID)
	if diff := cmp.Diff(stored(created.ID), reserved); diff != "" {
		t.Errorf("fire_one answers another instance than it stores:\n%s", diff)
	}
	if reserved.State != "RESERVED" || reserved.Version != 2 || reserved.StateChangedAt.Before(created.StateChangedAt) {
		t.Errorf("reserved %+v", reserved)
	}
	if got, want := string(reserved.Context), `{"seat": "1A", "price": 100}`; got != want {
		t.Errorf("context = %s, want %s", got, want)
	}
	paid := row(`select * from pawl.fire_one($1, 'pay', '{"amount": 100}', p_tenant => 'acme', p_correlation_id => 'd')`, created.ID)
	if paid.State != "PAID" || paid.Status != "completed" || paid.Version != 3 {
		t.Errorf("paid %+v", paid)
	}

	history, err := queries.New(pool).ListHistory(t.Context(), queries.ListHistoryParams{TenantID: "acme", InstanceID: created.ID, RowLimit: 9, Bytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, h := range history {
		event, from := "-", "-"
		if h.Event != nil {
			event, from = *h.Event, *h.FromState
		}
		steps = append(steps, fmt.Sprint(h.Version, h.Kind, event, from, h.ToState, h.Status, *h.CorrelationID))
	}
	owner := bounded.Value[string](t, pool, "select session_user")
	want := []string{
		fmt.Sprint(1, "created", "-", "-", "QUOTED", "active", "c"),
		fmt.Sprint(2, "transition", "reserve", "QUOTED", "RESERVED", "active", "c"),
		fmt.Sprint(3, "transition", "pay", "RESERVED", "PAID", "completed", "d"),
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Errorf("history:\n%s", diff)
	}
	for i, want := range []string{"sql", "sql", owner} {
		if history[i].Actor != want {
			t.Errorf("the actor of step %d is %s, want %s", i+1, history[i].Actor, want)
		}
	}
	if string(history[2].Context) != string(paid.Context) || string(history[1].Context) != string(reserved.Context) {
		t.Error("history does not hold the context that each step left")
	}
	if key := history[0].Key; key == nil || *key != "k" {
		t.Error("history does not hold the command's key")
	}

	// Guards are tried in order, and the first that holds is taken.
	mismatch := row(`select * from pawl.fire_one((pawl.fire_one((pawl.create_one('flight-booking', '{"price": 100}')).id,
		'reserve', '{"price": 100}')).id, 'pay', '{"amount": 99}')`)
	if got, want := string(mismatch.Context), `{"price": 100, "offered": 99}`; mismatch.State != "MISMATCH" || got != want {
		t.Errorf("the state is %s with context %s, want MISMATCH with %s", mismatch.State, got, want)
	}
}

// The engine takes part in its caller's transaction.
func TestTransactionsOfTheCaller(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	all := func() string {
		t.Helper()
		return bounded.Value[string](t, pool, `select jsonb_build_object(
			'i', (select jsonb_agg(i order by id) from pawl.instance i), 'h', (select jsonb_agg(h order by seq) from pawl.history h),
			'k', (select jsonb_agg(k order by key) from pawl.idempotency_key k), 't', (select jsonb_agg(t) from pawl.timer t))::text`)
	}
	before := all()
	const steps = `select pawl.fire_one($1, 'open', p_key => 'k1'), pawl.create_one('door', p_key => 'k2')`

	tx := begin(t, pool)
	bounded.Exec(t, tx, steps, ids[0])
	if all() != before {
		t.Error("others see what is not committed")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all() != before {
		t.Error("a rollback left something behind")
	}
	tx = begin(t, pool)
	bounded.Exec(t, tx, steps, ids[0])
	// A transaction may take several steps, and sees its own.
	bounded.Exec(t, tx, "select pawl.fire_one($1, 'close', p_expected_version => 2)", ids[0])
	commit(t, tx)
	if got := bounded.Value[int](t, pool, "select version from pawl.instance where id = $1", ids[0]); got != 3 {
		t.Errorf("after the commit the version is %d, want 3", got)
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.idempotency_key"); got != 2 {
		t.Errorf("there are %d keys, want 2", got)
	}
}

const strict = `{"name": "strict", "initial": "A", "require_if_match": true, "states": {
	"A": {"on": {
		"go": [{"target": "B", "guard": "$.payload.n > 1"}, {"target": "A", "guard": "$.payload.n == 1"}],
		"fill": [{"target": "A", "assign": "*"}]}},
	"B": {"on": {"back": [{"target": "A"}], "end": [{"target": "Z"}]}},
	"Z": {"type": "final", "outcome": "failed"}}}`

// SQL callers get refusals as conditions of class PW whose detail is the JSON that HTTP answers with.
func TestRefusalsAreRaised(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, strict)
	register(t, pool, door)
	dbtest.Tenants(t, pool, "other")
	bounded.Exec(t, pool, "update pawl.setting set context_limit = 200, payload_limit = 150")
	id := bounded.Value[uuid.UUID](t, pool, "select id from pawl.create_one('strict', '{}', p_key => 'used', p_business_key => 'b')")
	final := bounded.Value[uuid.UUID](t, pool, "select id from pawl.create_one('door', p_business_key => 'final')")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'open'), pawl.fire_one($1, 'remove')", final)
	nobody := uuid.New()

	fire := func(args string) string { return fmt.Sprintf("select pawl.fire_one('%s', %s)", id, args) }
	guards := `["$.payload.n > 1", "$.payload.n == 1"]`
	for name, c := range map[string]struct{ sql, code, detail string }{
		"payload not an object": {
			fire(`'go', '[1]', p_expected_version => 1`), "PW400",
			`{"code": "malformed-request", "event": "go", "state": "A", "version": 1, "expected": 1, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`,
		},
		"no payload":              {fire(`'go', null, p_expected_version => 1`), "PW400", ``},
		"context not an object":   {`select pawl.create_one('strict', '"x"')`, "PW400", ``},
		"no such instance":        {fmt.Sprintf("select pawl.fire_one('%s', 'go')", nobody), "PW404", `{"code": "instance-not-found", "event": "go", "instance_id": "` + nobody.String() + `"}`},
		"instance of another":     {fire(`'go', p_tenant => 'other'`), "PW404", `{"code": "instance-not-found", "event": "go", "instance_id": "ID"}`},
		"no such workflow":        {`select pawl.create_one('nothing')`, "PW40W", ``},
		"other version":           {fire(`'go', p_expected_version => 7`), "PW412", `{"code": "version-mismatch", "event": "go", "state": "A", "version": 1, "expected": 7, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"version before event":    {fire(`'nonsense', p_expected_version => 7`), "PW412", ``},
		"no version":              {fire(`'go'`), "PW428", `{"code": "precondition-required", "event": "go", "state": "A", "version": 1, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"payload too large":       {fire(`'fill', jsonb_build_object('x', repeat('x', 150)), p_expected_version => 1`), "PW413", `{"code": "too-large", "event": "fill", "state": "A", "version": 1, "expected": 1, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"context would be large":  {`do $$ declare i uuid; begin i := (pawl.create_one('strict', jsonb_build_object('x', repeat('x', 140)))).id; perform pawl.fire_one(i, 'fill', jsonb_build_object('y', repeat('y', 100)), p_expected_version => 1); end $$`, "PW413", ``},
		"context too large":       {`select pawl.create_one('strict', jsonb_build_object('x', repeat('x', 200)))`, "PW413", ``},
		"payload too deep":        {fire(`'fill', ('{"x": ' || repeat('[', 64) || repeat(']', 64) || '}')::jsonb, p_expected_version => 1`), "PW400", ``},
		"context too deep":        {`select pawl.create_one('strict', ('{"x": ' || repeat('[', 64) || repeat(']', 64) || '}')::jsonb)`, "PW400", ``},
		"tenant too long":         {fire(`'go', p_tenant => repeat('x', 64)`), "PW400", `{"code": "malformed-request"}`},
		"no tenant":               {`select pawl.create_one('strict', p_tenant => null)`, "PW400", ``},
		"key too long":            {fire(`'go', p_key => repeat('x', 256)`), "PW400", ``},
		"actor too long":          {fire(`'go', p_actor => repeat('x', 256)`), "PW400", ``},
		"no actor":                {`select pawl.create_one('strict', p_actor => null)`, "PW400", ``},
		"empty actor":             {`select pawl.create_one('strict', p_actor => '')`, "PW400", ``},
		"business key too long":   {`select pawl.create_one('strict', p_business_key => repeat('x', 256))`, "PW400", ``},
		"correlation id of lines": {`select pawl.create_one('strict', p_correlation_id => E'a\nb')`, "PW400", ``},
		"correlation id with é":   {fire(`'go', p_correlation_id => 'é'`), "PW400", ``},
		"correlation id too long": {fire(`'go', p_correlation_id => repeat('x', 256)`), "PW400", ``},
		"unknown event":           {fire(`'nonsense', p_expected_version => 1`), "PW422", `{"code": "unknown-event", "event": "nonsense", "state": "A", "version": 1, "expected": 1, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"no event":                {fire(`null, p_expected_version => 1`), "PW422", ``},
		"the engine's event":      {fire(`'after:60s', p_expected_version => 1`), "PW422", ``},
		"event of another state":  {fire(`'back', p_expected_version => 1`), "PW409", `{"code": "transition-not-allowed", "event": "back", "state": "A", "version": 1, "expected": 1, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"final state": {
			fmt.Sprintf("select pawl.fire_one('%s', 'open')", final), "PW409",
			`{"code": "transition-not-allowed", "event": "open", "state": "GONE", "version": 3, "instance_id": "` + final.String() + `", "allowed_events": [], "instance_status": "completed"}`,
		},
		"guards":                  {fire(`'go', '{"n": 0}', p_expected_version => 1`), "PW40G", `{"code": "guard-rejected", "event": "go", "state": "A", "version": 1, "expected": 1, "guards": ` + guards + `, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"guard without its input": {fire(`'go', '{}', p_expected_version => 1`), "PW40G", ``},
		"guard with text":         {fire(`'go', '{"n": "two"}', p_expected_version => 1`), "PW40G", ``},
		"business key taken":      {`select pawl.create_one('strict', p_business_key => 'b')`, "PW40E", `{"code": "instance-exists", "instance_id": "ID"}`},
		"key of another request":  {`select pawl.create_one('strict', '{"n": 1}', p_key => 'used')`, "PW42K", `{"code": "idempotency-key-reuse"}`},
		"key of another command":  {fire(`'go', '{"n": 2}', p_key => 'used', p_expected_version => 1`), "PW42K", `{"code": "idempotency-key-reuse", "event": "go", "expected": 1}`},
		"nobody has the key":      {`select pawl.fire_by_key('strict', 'nobody', 'go')`, "PW404", `{"code": "instance-not-found", "event": "go"}`},
		"nothing can be started":  {`select pawl.fire_by_key('nothing', 'nobody', 'go', p_start => '{}')`, "PW40W", ``},
		"no version to start at":  {`select pawl.fire_by_key('strict', 'nobody', 'go', p_expected_version => 1, p_start => '{}')`, "PW412", `{"code": "version-mismatch", "event": "go", "expected": 1}`},
		"guards of a start":       {`select pawl.fire_by_key('strict', 'nobody', 'go', '{"n": 0}', p_start => '{}')`, "PW40G", `{"code": "guard-rejected", "event": "go", "state": "A", "version": 1, "guards": ` + guards + `, "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"a start without a key":   {`select pawl.fire_by_key('strict', null, 'go', p_start => '{}')`, "PW400", `{"code": "malformed-request"}`},
		"start is no object":      {`select pawl.fire_by_key('strict', 'nobody', 'go', p_start => '[]')`, "PW400", `{"code": "malformed-request"}`},
		"start with a callback":   {`select pawl.fire_by_key('strict', 'nobody', 'go', p_start => '{"callback_url": "https://example.com"}')`, "PW400", ``},
		"empty business key":      {`select pawl.fire_by_key('strict', '', 'go')`, "PW400", ``},
		"other version by key":    {`select pawl.fire_by_key('strict', 'b', 'go', p_expected_version => 7)`, "PW412", `{"code": "version-mismatch", "event": "go", "state": "A", "version": 1, "expected": 7, "instance_id": "ID", "allowed_events": ["fill", "go"], "instance_status": "active"}`},
		"final state by key":      {`select pawl.fire_by_key('door', 'final', 'open', p_start => '{}')`, "PW409", ``},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pool.Exec(t.Context(), c.sql)
			pgErr := wantCode(t, err, c.code)
			if c.detail == "" {
				return
			}
			var got, want any
			if err := json.Unmarshal([]byte(pgErr.Detail), &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(strings.ReplaceAll(c.detail, "ID", id.String())), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.history"); got != 4 {
		t.Errorf("there are %d steps, want the first 4", got)
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.idempotency_key"); got != 1 {
		t.Errorf("there are %d keys, want the first", got)
	}
}

// What a payload holds reaches the context through assigns only, and numbers keep their digits on the way.
func TestNumbersKeepTheirDigits(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, `{"name": "sum", "initial": "A", "states": {
		"A": {"on": {"go": [{"target": "A", "guard": "$.payload.big == 9007199254740993 && $.payload.big > $.context.big",
			"assign": {"big": "$.payload.big", "exact": "$.payload.exact", "missing": "$.payload.nothing"}}],
			"merge": [{"target": "Z", "assign": "*"}]}},
		"Z": {"type": "final"}}}`)
	const before = `{"big": 9007199254740992, "exact": 2.50, "missing": 1e-30}`
	o := create(t, pool, tenant, creation{workflow: "sum", context: before, key: "c"})[0]
	if got, want := string(o.Context), `{"big": 9007199254740992, "exact": 2.50, "missing": 0.000000000000000000000000000001}`; got != want {
		t.Errorf("created with %s, want %s", got, want)
	}
	const payload = `{"big": 9007199254740993, "exact": 1.10, "ignored": true}`
	want := `{"big": 9007199254740993, "exact": 1.10, "missing": 0.000000000000000000000000000001}`
	fired := fire(t, pool, tenant, command{id: *o.ID, event: "go", payload: payload, key: "f"})[0]
	wantOutcome(t, fired, "applied")
	if string(fired.Context) != want {
		t.Errorf("context = %s, want %s", fired.Context, want)
	}
	if got := bounded.Value[string](t, pool, "select context::text || payload::text from pawl.history where version = 2"); got != want+payload {
		t.Errorf("history has %s, want %s", got, want+payload)
	}
	wantReplay(t, fire(t, pool, tenant, command{id: *o.ID, event: "go", payload: payload, key: "f"})[0], fired)
	// The neighbour of a number is another number, to guards as to fingerprints.
	wantOutcome(t, fire(t, pool, tenant, command{id: *o.ID, event: "go", payload: strings.Replace(payload, "993", "992", 1), key: "f"})[0], "idempotency-key-reuse")
	wantOutcome(t, fire(t, pool, tenant, command{id: *o.ID, event: "go", payload: strings.Replace(payload, "993", "992", 1)})[0], "guard-rejected")

	merged := fire(t, pool, tenant, command{id: *o.ID, event: "merge", payload: `{"exact": 0.10, "more": {"a": [1.0]}}`})[0]
	if got, want := string(merged.Context), `{"big": 9007199254740993, "more": {"a": [1.0]}, "exact": 0.10, "missing": 0.000000000000000000000000000001}`; got != want {
		t.Errorf("merged to %s, want %s", got, want)
	}
}

// What guards and assigns see of an instance is the instance as it is before the step.
func TestDocument(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, `{"name": "copy", "initial": "A", "ttl": {"after": "3600s", "target": "Z"}, "states": {
		"A": {"on": {"go": [{"target": "Z", "assign": {"instance": "$.instance", "now": "$.now", "payload": "$.payload", "was": "$.context"}}]}},
		"Z": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, noon)
	o := create(t, pool, tenant, creation{workflow: "copy", context: `{"a": 1}`, businessKey: "b", correlationID: "c"})[0]
	dbtest.SetClock(t, pool, noon.Add(90e9))
	var got map[string]any
	if err := json.Unmarshal(fire(t, pool, tenant, command{id: *o.ID, event: "go", payload: `{"p": null}`})[0].Context, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"a": 1.0, "was": map[string]any{"a": 1.0}, "payload": map[string]any{"p": nil}, "now": "2030-02-03T12:01:30.123456+00:00",
		"instance": map[string]any{
			"id": o.ID.String(), "workflow": "copy", "workflow_version": 1.0, "state": "A", "status": "active", "version": 1.0,
			"business_key": "b", "correlation_id": "c", "created_at": "2030-02-03T12:00:00.123456+00:00",
			"state_changed_at": "2030-02-03T12:00:00.123456+00:00", "expires_at": "2030-02-03T13:00:00.123456+00:00",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A payload is refused for its shape before a guard sees it, and the caller says which schema it has checked.
func TestSchemasAreCheckedByTheCaller(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, `{"name": "typed", "initial": "A", "context_schema": {"type": "object"}, "states": {
		"A": {"on": {"go": [{"target": "Z", "guard": "$.payload.n == 1", "payload_schema": {"required": ["n"]}}, {"target": "A"}], "free": [{"target": "A"}]}},
		"Z": {"type": "final"}}}`)
	sums := bounded.Column[string](t, pool, `
		select context_schema_checksum from pawl.workflow
		union all select payload_schema_checksum from pawl.workflow_transition where event = 'go' and position = 2`)
	createWith := func(checked, key string) queries.Outcome {
		t.Helper()
		rows, err := queries.New(pool).Create(t.Context(), queries.CreateParams{
			Tenants: []string{tenant}, Workflows: []string{"typed"}, Contexts: raw("{}"), Keys: []string{key}, Checked: []string{checked},
			Actors: []string{"a"}, BusinessKeys: []string{""}, InstanceCorrelationIds: []string{""},
		})
		if err != nil {
			t.Fatal(err)
		}
		return rows[0]
	}
	for _, checked := range []string{"", "other"} {
		o := createWith(checked, "k")
		wantOutcome(t, o, "context-unchecked")
		if got, want := string(o.Schema), `{"type": "object"}`; got != want {
			t.Errorf("the schema to check is %s, want %s", got, want)
		}
	}
	created := createWith(sums[0], "k")
	wantOutcome(t, created, "applied")
	wantReplay(t, createWith("", "k"), created)
	wantOutcome(t, createWith("*", ""), "applied")

	c := command{id: *created.ID, event: "go", payload: `{"n": 2}`, key: "f"}
	for _, checked := range []string{"", "other"} {
		c.checked = checked
		o := fire(t, pool, tenant, c)[0]
		wantOutcome(t, o, "payload-unchecked")
		if got, want := string(o.Schema), `{"required": ["n"]}`; got != want {
			t.Errorf("the schema to check is %s, want %s", got, want)
		}
		wantOutcome(t, preview(t, pool, c), "payload-unchecked")
	}
	c.checked = sums[1]
	first := fire(t, pool, tenant, c)[0]
	wantOutcome(t, first, "applied")
	c.checked = ""
	wantReplay(t, fire(t, pool, tenant, c)[0], first)
	wantOutcome(t, fire(t, pool, tenant, command{id: *created.ID, event: "free"})[0], "applied")
}

// Some guards raise although they are evaluated leniently. The whole call fails then, and nothing is changed.
func TestGuardThatRaises(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	register(t, pool, `{"name": "dated", "initial": "A", "states": {
		"A": {"on": {"go": [{"target": "Z", "guard": "$.payload.t.datetime() < \"2027-01-01T00:00:00+00:00\".datetime()"}]}},
		"Z": {"type": "final"}}}`)
	id := *create(t, pool, tenant, creation{workflow: "dated"})[0].ID
	batch := []command{
		{id: ids[0], event: "open", key: "neighbour"},
		{id: id, event: "go", payload: `{"t": "2026-01-01T00:00:00"}`, key: "raises"},
	}
	_, err := tryFire(t.Context(), pool, tenant, batch...)
	wantCode(t, err, "0A000")
	if got := bounded.Value[string](t, pool, `select concat_ws(' ',
		(select count(*) from pawl.history where version > 1), (select count(*) from pawl.instance where version > 1),
		(select count(*) from pawl.idempotency_key))`); got != "0 0 0" {
		t.Errorf("it left steps, moved instances and keys: %s", got)
	}
	wantOutcome(t, fire(t, pool, tenant, batch[0])[0], "applied")
	batch[1].payload = `{"t": "2026-01-01T00:00:00+00:00"}`
	wantOutcome(t, fire(t, pool, tenant, batch[1])[0], "applied")
}

// Preview comes to what fire comes to, and writes nothing, even where nothing may be written.
func TestPreview(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	c := command{id: ids[0], event: "open"}
	would := preview(t, tx, c)
	wantOutcome(t, preview(t, tx, command{id: ids[0], event: "close"}), "transition-not-allowed")
	wantOutcome(t, preview(t, tx, command{id: ids[0], event: "open", expected: "{4,5}"}), "version-mismatch")
	commit(t, tx)
	if got := bounded.Value[int](t, pool, "select max(version) from pawl.history"); got != 1 {
		t.Error("a preview made a step")
	}
	did := fire(t, pool, tenant, c)[0]
	would.StateChangedAt = did.StateChangedAt
	if diff := cmp.Diff(asJSON(t, did), asJSON(t, would)); diff != "" {
		t.Errorf("preview and fire differ:\n%s", diff)
	}
	for expected, want := range map[string]string{"{1,2}": "applied", "*": "applied", "{}": "version-mismatch", "{1}": "version-mismatch"} {
		wantOutcome(t, preview(t, pool, command{id: ids[0], event: "close", expected: expected}), want)
	}
}

// All commands of a dry run are decided at one time, as those of a fire are.
func TestPreviewDecidesAtOneTime(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, `{"name": "stamp", "initial": "A", "states": {
		"A": {"on": {"go": [{"target": "B", "assign": {"at": "$.now"}}]}}, "B": {"type": "final"}}}`)
	bounded.Exec(t, pool, "select pawl.create_one('stamp') from generate_series(1, 100)")
	times := bounded.Value[int](t, pool, `
		select count(distinct (p.instance).context ->> 'at')
		from (select array_agg(i.id) as ids from pawl.instance i) i
		cross join lateral pawl.preview(
			'default', i.ids, array_fill('go'::text, array[100]), array_fill('{}'::jsonb, array[100]),
			array_fill(''::text, array[100]), array_fill(''::text, array[100])) p`)
	if times != 1 {
		t.Errorf("100 commands are decided at %d times", times)
	}
}
