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
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// oddSettings has settings that a database may give its sessions. Each entry is a test. None may change
// what a command means.
var oddSettings = []string{
	"timezone = 'America/St_Johns'",
	"timezone = 'Europe/Berlin'; timezone_abbreviations = 'India'",
	"datestyle = 'SQL, DMY'; intervalstyle = 'sql_standard'",
	"datestyle = 'German'; intervalstyle = 'iso_8601'",
	"client_encoding = 'LATIN1'",
	"client_encoding = 'SJIS'",
	"search_path = 'strange', 'pg_catalog'",
	"standard_conforming_strings = off; escape_string_warning = on; backslash_quote = on",
	"transform_null_equals = on; array_nulls = off; quote_all_identifiers = on; row_security = off; check_function_bodies = off",
	"bytea_output = 'escape'; extra_float_digits = -15; xmloption = 'document'; lc_numeric = 'C'; lc_time = 'C'; lc_monetary = 'C'",
	"default_transaction_isolation = 'serializable'; default_transaction_deferrable = on",
	"default_transaction_isolation = 'repeatable read'",
	"statement_timeout = 0; lock_timeout = 0",
	"statement_timeout = '2min'; lock_timeout = '2min'; idle_in_transaction_session_timeout = '1ms'",
	"idle_session_timeout = '200ms'",
	"plan_cache_mode = 'force_generic_plan'; jit = on; jit_above_cost = 0",
	"plan_cache_mode = 'force_custom_plan'; force_parallel_mode = on; enable_seqscan = off; jit = off",
	"session_replication_role = 'replica'; default_toast_compression = 'pglz'; default_statistics_target = 1; default_table_access_method = 'heap'",
	"plpgsql.variable_conflict = 'use_column'; plpgsql.extra_errors = 'strict_multi_assignment'",
	"plpgsql.variable_conflict = 'use_variable'; client_min_messages = 'debug5'; synchronous_commit = off",
}

// prepared makes a schema whose operator = is never true, for a search_path to name, and makes ids
// sequential instead of random.
const prepared = `
create schema strange;
create function strange.never(text, text) returns boolean language sql immutable as 'select false';
create operator strange.= (leftarg = text, rightarg = text, function = strange.never);
create function strange.pg_current_snapshot() returns pg_snapshot language sql as $$ select '1:1:'::pg_snapshot $$;
create sequence strange.id;
create or replace function pawl_private.uuid_v7_with(p_at timestamptz, p_bytes bytea) returns uuid language sql volatile
as $$ select ('00000000-0000-7000-8000-' || lpad(nextval('strange.id')::text, 12, '0'))::uuid $$;`

// waitingRoom has timeouts of days and months. In Berlin, 31 March 2030 has 23 hours.
const waitingRoom = `{"name": "patient", "initial": "WAITING", "ttl": {"after": "1mon", "target": "GONE"}, "retention": "1d", "states": {
	"WAITING": {
		"on": {
			"ask": [{"target": "WAITING", "guard": "$.now.datetime() < $.context.until.datetime()", "assign": {"at": "$.now", "who": "$.payload.who"}}],
			"raise": [{"target": "WAITING", "guard": "$.now.datetime() < \"2030-01-01\".datetime()"}],
			"name": [{"target": "WAITING", "guard": "$.context.who like_regex \"^J\\u00fcrgen \\u20ac$\""}]},
		"after": {"1d": [{"target": "GONE"}]}},
	"GONE": {"type": "final"}}}`

// gate has a guard that reads only the context and the payload.
const gate = `{"name": "gate", "initial": "SHUT", "states": {
	"SHUT": {"on": {"open": [{"target": "OPEN", "guard": "$.context.code == $.payload.code", "assign": {"by": "$.payload.by"}}]}},
	"OPEN": {"type": "final"}}}`

// A transcript has the results of a series of calls.
type transcript struct {
	*testing.T
	text strings.Builder
}

// add adds what a call returned.
func (r *transcript) add(what string, v any, err error) {
	r.Helper()
	if e, ok := errors.AsType[*fsm.Error](err); ok {
		err = &fsm.Error{Kind: e.Kind, Message: e.Message, Faults: e.Faults} // The cause is for logs, and may name the session.
	} else if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		err = fmt.Errorf("%s: %s: %s", e.Code, e.Message, e.Detail)
	}
	data, marshalErr := json.Marshal(v)
	if marshalErr != nil {
		r.Fatal(marshalErr)
	}
	fmt.Fprintf(&r.text, "%s: %s %v\n", what, data, err)
}

// record makes a series of calls in a database, by the service and by SQL callers in sessions of their own,
// and returns the transcript. The owner's pool does not have the database's settings.
func record(t *testing.T, owner *pgxpool.Pool) string {
	t.Helper()
	r, ctx := &transcript{T: t}, t.Context()
	noon := time.Date(2030, 3, 30, 12, 0, 0, 123456000, time.UTC)
	dbtest.SetClock(t, owner, noon)
	pool := fsmtest.Open(t, dbtest.DSN(owner), db.Config{StatementTimeout: time.Minute, LockTimeout: time.Minute})
	s := fsmtest.On(t, pool, fsm.Config{CallTimeout: bounded.Limit})
	q := queries.New(session.Pool(pool))

	for _, d := range []string{fsmtest.FlightBooking, fsmtest.Counter, fsmtest.Shop} {
		registered, err := s.Register(ctx, "", []byte(d), "Jürgen €", false)
		r.add("register", registered, err)
	}
	created := func(c fsm.CreateCommand) fsm.Instance {
		result, err := s.Create(ctx, c)
		r.add("create", result, err)
		return result.Instance
	}
	booking := fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id": "LH454", "price": 420, "name": "Jürgen €", "a": [0.1, 1e100, 1.10]}`),
		Key: "key-1", BusinessKey: "Jürgen €", Origin: fsm.Origin{Actor: "Jürgen", Reason: `a\b 'c'`}, ExpiresIn: 26 * time.Hour,
	}
	i := created(booking)
	created(booking) // A replay.
	booking.ExpiresIn *= 2
	created(booking) // The key is used for another request.
	booking.Key = "key-2"
	created(booking) // The business key is taken.
	fire := func(id uuid.UUID, event, payload, key string) {
		result, err := s.Fire(ctx, fsm.FireCommand{ID: id, Event: event, Payload: json.RawMessage(payload), Key: key, Expect: fsm.ExpectAny()})
		r.add(event, result, err)
	}
	fire(i.ID, "reserve", `{"price": 1}`, "key-3")
	fire(i.ID, "reserve", `{"price": 420, "seat": "12Ä"}`, "key-4")
	fire(i.ID, "reserve", `{"price": 420, "seat": "12Ä"}`, "key-4")
	fire(i.ID, "reserve", `{"price": 420.0, "seat": "12Ä"}`, "key-4")
	fire(i.ID, "pay", `{"amount": 420, "payment_ref": "€\\u0041\\\\"}`, "key-5")
	_, err := s.Fire(ctx, fsm.FireCommand{ID: i.ID, Event: "cancel", Expect: fsm.ExpectVersion(1, 2)})
	r.add("at another version", nil, err)
	shop := created(fsm.CreateCommand{Workflow: "shop", Key: "shop", Context: json.RawMessage(`{"price": 0}`)})
	fire(shop.ID, "checkout", "{}", "key-6")
	counter := created(fsm.CreateCommand{Workflow: "counter", Key: "counter", Context: json.RawMessage(`{"x": 1}`)})
	fire(counter.ID, "add", `{"n": 0.1}`, "key-7")
	fire(counter.ID, "add", `{"n": -1}`, "key-8")
	for _, payload := range []string{`{"n": -1}`, `{"n": 0.1}`, `{"n": 0.1}`, `{"n": 0.10}`} {
		result, err := s.FireByKey(ctx, fsm.FireByKeyCommand{
			Workflow: "counter", BusinessKey: "é €", Event: "add", Payload: json.RawMessage(payload), Key: "key-10",
			Start: &fsm.Start{Context: json.RawMessage(`{"x": 1.10}`)},
		})
		r.add("by key", result, err)
	}
	hasty := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(owner), db.Config{StatementTimeout: 500 * time.Millisecond}), fsm.Config{CallTimeout: 5 * time.Second})
	_, err = hasty.Fire(ctx, fsm.FireCommand{ID: counter.ID, Event: "slow", Payload: slowPayload})
	fsmtest.Refused(t, err, fsm.GuardError)
	r.add("slow", nil, err)
	hasty = fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(owner), db.Config{StatementTimeout: time.Minute, LockTimeout: 20 * time.Millisecond}), fsm.Config{CallTimeout: 5 * time.Second})
	release := fsmtest.Hold(t, owner, counter.ID)
	_, err = hasty.Fire(ctx, fsm.FireCommand{ID: counter.ID, Event: "add", Payload: json.RawMessage(`{"n": 1}`), Key: "key-9"})
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "55P03" {
		t.Errorf("the lock is waited for: %v", err)
	}
	r.add("locked", nil, err)
	release()

	// SQL callers.
	config, err := pgx.ParseConfig(dbtest.DSN(owner))
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["client_encoding"] = "UTF8" // The encoding of this file.
	config.RuntimeParams["idle_session_timeout"] = "0"
	sql := func(what, sql string, args ...any) (text string) {
		t.Helper()
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(bounded.Context(t)) }()
		err = conn.QueryRow(ctx, sql, args...).Scan(&text)
		r.add(what, text, err)
		return text
	}
	for _, d := range []string{waitingRoom, gate} {
		sql("register_workflow", `select version || ' ' || created from pawl.register_workflow($1::jsonb, 'Jürgen €')`, d)
	}
	waiting := sql("create_one", `select id::text from pawl.create_one('patient', $1, 'sql-1', p_business_key => 'é', p_actor => 'Jürgen')`,
		`{"until": "2030-03-30T14:00:00+01:00", "x": 0.10, "who": "Jürgen €"}`)
	for _, event := range []string{"ask", "ask", "raise", "name", "missing"} {
		sql(event, `select id::text from pawl.fire_one($1, $2, $3, 'sql-' || $2, p_actor => 'Jürgen')`, waiting, event, `{"who": "Jürgen €"}`)
	}
	for _, event := range []string{"missing", "ask", "ask"} {
		sql("by key", `select row(f.id, extract(epoch from f.expires_at), f.version)::text
			from pawl.fire_by_key('patient', 'ö', $1, '{"who": "Jürgen €"}', 'sql-by-key', p_actor => 'Jürgen',
				p_start => '{"context": {"until": "2030-03-30T14:00:00+01:00"}, "expires_in": "1 day 90 minutes"}') f`, event)
	}
	sql("a stale fire_one", `select id::text from pawl.fire_one($1, 'ask', p_expected_version => 1, p_actor => 'Jürgen')`, waiting)
	sql("a repeated create_one", `select id::text from pawl.create_one('patient', '{}', 'sql-1', p_actor => 'Jürgen')`)

	// Timers.
	for range 4 {
		for _, d := range []time.Duration{23 * time.Hour, 30 * time.Minute, 30 * time.Minute} {
			dbtest.Advance(t, owner, d)
			fired, err := q.FireTimers(ctx, queries.FireTimersParams{RowLimit: 100})
			r.add("timers", fired, err)
		}
	}

	sql("backtest", `select difference::text from pawl.backtest('counter', array[$1::uuid], p_definition => jsonb_set(
		(select definition from pawl.workflow order by name limit 1), '{states,COUNTING,after}', '{"1200s": [{"target": "STOPPED"}]}'))`, counter.ID)

	// Reads of the past, and dry runs.
	at, err := s.GetAt(ctx, fsm.DefaultTenant, i.ID, noon.Add(time.Hour))
	r.add("get at", at, err)
	events, err := s.AcceptedEvents(ctx, fsm.DefaultTenant, counter.ID, true, "")
	r.add("events", events, err)
	for _, f := range []fsm.Filter{{}, {BusinessKey: "Jürgen €"}, {CreatedAfter: noon.Add(-time.Hour), Statuses: []fsm.Status{"active"}}, {StuckFor: time.Hour}} {
		list, err := s.List(ctx, fsm.DefaultTenant, f, fsm.Page{})
		r.add("list", list.Items, err)
	}
	// bounded: each page begins where the last one ended
	for page := (fsm.Page{Limit: 1}); ; {
		steps, err := s.History(ctx, fsm.DefaultTenant, i.ID, page)
		r.add("history", steps.Items, err)
		if page.Cursor = steps.Next; page.Cursor == "" {
			break
		}
	}
	simulated, err := s.Simulate(ctx, lifecycle.Simulation{Workflow: "shop", Context: json.RawMessage(`{"price": 1}`)})
	r.add("simulate", simulated, err)
	again, err := s.Backtest(ctx, lifecycle.BacktestCommand{
		Workflow: "counter", Definition: json.RawMessage(strings.ReplaceAll(fsmtest.Counter, `"on": {`, `"after": {"20m": "STOPPED"}, "on": {`)),
	})
	r.add("backtest", again, err)
	dbtest.Number(t, session.Pool(pool))
	stream, err := live.New(s.Service, nil).StreamTenant(ctx, fsm.DefaultTenant, live.Filter{}, live.FromStart)
	if err != nil {
		t.Fatal(err)
	}
	messages, _, err := stream.Next(ctx)
	stream.Close()
	if len(messages) == 0 {
		t.Error("the stream has no messages")
	}
	r.add("stream", messages, err)
	versions, err := s.Versions(ctx, fsm.DefaultTenant, "patient")
	r.add("versions", versions, err)

	// All that was written.
	for _, rows := range []string{
		"select to_jsonb(i) from pawl.instance i order by i.id",
		"select to_jsonb(h) - 'seq' - 'xid' from pawl.history h order by h.instance_id, h.version",
		"select to_jsonb(k) from pawl.idempotency_key k order by k.key",
		"select to_jsonb(t) from pawl.timer t order by t.instance_id",
		"select to_jsonb(w) from pawl.workflow w order by w.name, w.version",
		"select to_jsonb(s) from pawl.workflow_state s order by s.workflow, s.state",
		"select to_jsonb(t) from pawl.workflow_transition t order by t.workflow, t.source, t.event, t.position",
	} {
		r.add(rows, bounded.Column[json.RawMessage](t, owner, rows), nil)
	}
	return r.text.String()
}

var slowPayload = json.RawMessage(`{"a": [` + strings.Repeat("1,", 999) + `1]}`)

// Whatever the settings of a database are, the same commands have the same outcomes and leave the same rows, to
// the byte.
func TestSettingsDoNotChangeMeaning(t *testing.T) {
	t.Parallel()
	prepare := func(t *testing.T, settings string) *pgxpool.Pool {
		owner := dbtest.New(t)
		bounded.Exec(t, owner, prepared)
		name := pgx.Identifier{owner.Config().ConnConfig.Database}.Sanitize()
		for setting := range strings.SplitSeq(settings, "; ") {
			if setting == "" {
				continue
			}
			if bounded.Value[int](t, owner, "select current_setting('server_version_num')::integer") >= 160000 {
				setting = strings.ReplaceAll(setting, "force_parallel_mode", "debug_parallel_query")
			}
			if _, err := owner.Exec(t.Context(), "alter database "+name+" set "+setting); err != nil {
				t.Fatal(err)
			}
		}
		return plain(t, owner)
	}
	want := record(t, prepare(t, ""))
	for _, settings := range oddSettings {
		t.Run(settings, func(t *testing.T) {
			t.Parallel()
			if got := record(t, prepare(t, settings)); got != want {
				t.Error(cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
			}
		})
	}
}

// plain returns another pool for the owner, with the usual settings whatever the database has.
func plain(t *testing.T, owner *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	return fsmtest.Spied(t, owner, func(c *pgxpool.Config) {
		for name, value := range map[string]string{
			"timezone": "UTC", "datestyle": "ISO, MDY", "intervalstyle": "postgres", "client_encoding": "UTF8", "search_path": "public",
			"standard_conforming_strings": "on", "bytea_output": "hex", "extra_float_digits": "1", "default_transaction_isolation": "read committed",
			"idle_in_transaction_session_timeout": "0", "idle_session_timeout": "0", "statement_timeout": "0", "lock_timeout": "0",
			"client_min_messages": "notice", "plan_cache_mode": "auto",
		} {
			c.ConnConfig.RuntimeParams[name] = value
		}
	})
}
