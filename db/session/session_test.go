package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func open(t *testing.T, dsn string, config db.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := db.Open(t.Context(), dsn, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != code {
		t.Errorf("error = %v, want SQLSTATE %s", err, code)
	}
}

// inForce reads the settings that a statement runs under.
const inForce = `select concat_ws(' ', current_setting('statement_timeout'), current_setting('lock_timeout'),
	current_setting('idle_in_transaction_session_timeout'), current_setting('idle_session_timeout'),
	current_setting('search_path'), current_setting('plan_cache_mode'), current_setting('jit'),
	current_setting('transaction_isolation'), current_setting('client_encoding'), current_setting('datestyle'))`

const wanted = "2s 200ms 10s 0 pg_catalog, pg_temp auto off read committed UTF8 ISO, MDY"

// hostile are settings of a database that must not reach the sessions of the pool.
var hostile = []string{
	"statement_timeout = '1h'", "lock_timeout = '1h'", "idle_in_transaction_session_timeout = '1h'", "idle_session_timeout = '1h'",
	"client_min_messages = 'error'", "search_path = 'public'", "plan_cache_mode = 'force_generic_plan'", "jit = on", "client_encoding = 'LATIN1'", "datestyle = 'German'",
}

func alter(t *testing.T, dsn string, settings ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	for _, s := range settings {
		bounded.Exec(t, conn, "alter database "+pgx.Identifier{conn.Config().Database}.Sanitize()+" set "+s)
	}
}

// routes are the ways to a database.
var routes = map[string]func(*testing.T, string) string{
	"direct":      func(_ *testing.T, dsn string) string { return dsn },
	"session":     func(t *testing.T, dsn string) string { return dbtest.Pooler(t, dsn, "session") },
	"transaction": func(t *testing.T, dsn string) string { return dbtest.Pooler(t, dsn, "transaction") },
	"ignored parameters": func(t *testing.T, dsn string) string {
		return dbtest.Pooler(t, dsn, "session", "ignore_startup_parameters = statement_timeout,lock_timeout,jit")
	},
}

// The settings are in force for each statement and in each transaction, with and without a pooler.
func TestSettingsAreInForce(t *testing.T) {
	t.Parallel()
	for name, route := range routes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.NewDSN(t)
			alter(t, dsn, append(slices.Clone(hostile), "default_transaction_isolation = 'read committed'")...)
			if name == "direct" {
				alter(t, dsn, "default_transaction_isolation = 'serializable'")
			}
			pool := open(t, route(t, dsn), db.Config{MaxConns: 3, StatementTimeout: 2 * time.Second, LockTimeout: 200 * time.Millisecond})
			calls := session.Pool(pool)
			for range 3 {
				if got := bounded.Value[string](t, calls, inForce); got != wanted {
					t.Errorf("in force: %s\nwant:     %s", got, wanted)
				}
			}
			_, err := calls.Exec(t.Context(), "select pg_sleep(60)")
			wantCode(t, err, "57014")

			conn, err := pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := bounded.Value[string](t, session.Conn(conn.Conn()), inForce); got != wanted {
				t.Errorf("on a connection: %s", got)
			}
			if pooled := session.IsPooled(conn.Conn()); pooled != (name != "direct") {
				t.Errorf("behind a pooler: %v", pooled)
			}
			conn.Release()
			for timeout, want := range map[string]string{"": wanted, "7s": strings.Replace(wanted, "2s", "7s", 1)} {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					q, err := session.Begin(t.Context(), tx, timeout)
					if err != nil {
						return err
					}
					if got := bounded.Value[string](t, q, inForce); got != want {
						t.Errorf("in a transaction with the timeout %q: %s", timeout, got)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			listening, err := session.Connect(t.Context(), pool, "another name", "")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = listening.Close(bounded.Context(t)) }()
			if pooled := session.IsPooled(listening); pooled != (name != "direct") {
				t.Errorf("a connection beside the pool is behind a pooler: %v", pooled)
			}
		})
	}
}

// Settings in the pool's URL override the given ones.
func TestSettingsOfTheURL(t *testing.T) {
	t.Parallel()
	for name, route := range routes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := route(t, dbtest.NewDSN(t))
			pool := open(t, dsn+"&Statement_Timeout=1234&work_mem=5MB&TimeZone=Asia/Tokyo", db.Config{})
			got := bounded.Value[string](t, session.Pool(pool), `select concat_ws(' ', current_setting('statement_timeout'),
				current_setting('work_mem'), current_setting('timezone'), current_setting('application_name'))`)
			if got != "1234ms 5MB Asia/Tokyo pawl" {
				t.Error(got)
			}
		})
	}
}

// The clients of a pooler that pools transactions share a session of the server. What others leave there does
// not reach the pool's statements, and the pool leaves nothing there.
func TestSharedSession(t *testing.T) {
	t.Parallel()
	through := dbtest.Pooler(t, dbtest.NewDSN(t), "transaction")
	config, err := pgx.ParseConfig(through)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	neighbour, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = neighbour.Close(bounded.Context(t)) })
	pool := open(t, through, db.Config{MaxConns: 4, StatementTimeout: 2 * time.Second, LockTimeout: 200 * time.Millisecond})
	calls := session.Pool(pool)
	pid := bounded.Value[int](t, neighbour, "select pg_backend_pid()")
	for range 3 {
		bounded.Exec(t, neighbour, "set statement_timeout = '1h'; set lock_timeout = '1h'; set search_path = public; set jit = on; set plan_cache_mode = force_generic_plan")
		if got := bounded.Value[string](t, calls, inForce); !strings.HasPrefix(got, "2s 200ms 10s 0 pg_catalog, pg_temp auto off") {
			t.Errorf("in force: %s", got)
		}
		if n := bounded.Value[int](t, calls, "select pg_backend_pid()"); n != pid {
			t.Fatalf("the session is that of %d, and not shared with %d", n, pid)
		}
		left := bounded.Value[string](t, neighbour, `select concat_ws(' ', current_setting('statement_timeout'), current_setting('lock_timeout'),
			current_setting('search_path'), current_setting('jit'), (select count(*) from pg_prepared_statements))`)
		if left != "1h 1h public on 0" {
			t.Errorf("the neighbour finds %s", left)
		}
	}
}

// Calls behave as those of the driver do: with rows, without rows, and with an error at each stage.
func TestCalls(t *testing.T) {
	t.Parallel()
	for name, route := range routes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.NewDSN(t)
			pool := open(t, route(t, dsn), db.Config{MaxConns: 2})
			calls, ctx := session.Pool(pool), t.Context()
			bounded.Exec(t, calls, "create table public.t (id integer primary key, a text, constraint a unique (a) deferrable initially deferred)")
			tag, err := calls.Exec(ctx, "insert into public.t select i, i::text from generate_series(1, $1::integer) i", 300)
			if err != nil || tag.RowsAffected() != 300 {
				t.Errorf("%v rows, %v", tag, err)
			}
			at := time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC)
			var n int
			var texts []string
			var back time.Time
			err = calls.QueryRow(ctx, "select count(*), $1::text[], $2::timestamptz from public.t", []string{"ä", "€"}, at).Scan(&n, &texts, &back)
			if err != nil || n != 300 || !slices.Equal(texts, []string{"ä", "€"}) || !back.Equal(at) {
				t.Errorf("%d %v %v, %v", n, texts, back, err)
			}
			if err := calls.QueryRow(ctx, "select id from public.t where id = $1", 0).Scan(&n); !errors.Is(err, pgx.ErrNoRows) {
				t.Errorf("without a row: %v", err)
			}
			if err := calls.QueryRow(ctx, "select id from public.t where id = $1", "x").Scan(&n); err == nil {
				t.Error("a parameter that cannot be sent was")
			}
			if err := calls.QueryRow(ctx, "select 'x'").Scan(&n); err == nil {
				t.Error("a text was scanned into a number")
			}
			for range 3 { // The connection is released each time, whatever was read.
				rows, err := calls.Query(ctx, "select id from public.t order by id")
				if err != nil || !rows.Next() {
					t.Fatalf("no row: %v", err)
				}
				rows.Close()
				rows.Close()
				_, err = calls.Exec(ctx, "select 1 / (id - 1) from public.t")
				wantCode(t, err, "22012")
				_, err = calls.Exec(ctx, "select missing from public.t")
				wantCode(t, err, "42703")
				// It fails when the transaction ends, after the last row.
				_, err = calls.Exec(ctx, "insert into public.t values (-1, '1')")
				wantCode(t, err, "23505")
				wantCode(t, calls.QueryRow(ctx, "insert into public.t values (-1, '1') returning id").Scan(&n), "23505")
			}
			if n := bounded.Value[int](t, calls, "select count(*) from public.t where id < 0"); n != 0 {
				t.Error("what failed has had an effect")
			}
			// After the type of its result has changed, a statement fails at most once on each
			// connection.
			const all = "select * from public.t where id = 1"
			bounded.Value[int](t, calls, "select count(*) from ("+all+") x")
			count := func() (n int, err error) {
				rows, err := calls.Query(ctx, all)
				if err != nil {
					return 0, err
				}
				values, err := pgx.CollectRows(rows, pgx.RowToMap)
				if len(values) == 1 {
					n = len(values[0])
				}
				return n, err
			}
			if n, err := count(); n != 2 || err != nil {
				t.Errorf("%d columns, %v", n, err)
			}
			bounded.Exec(t, calls, "alter table public.t add b text")
			bounded.Until(t, "the new column", func() int { n, _ := count(); return n }, func(n int) bool { return n == 3 })
		})
	}
}

// A json.RawMessage is what the server sends, and the driver does not parse it. A parser would refuse the deep array:
// encoding/json reads 10,000 levels.
func TestDocumentsAreNotParsed(t *testing.T) {
	t.Parallel()
	for name, route := range routes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := session.Pool(open(t, route(t, dbtest.NewDSN(t)), db.Config{MaxConns: 2}))
			deep := strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001)
			for _, kind := range []string{"json", "jsonb"} {
				var raw, other, null json.RawMessage
				var pointer, nothing *json.RawMessage
				null = json.RawMessage("1")
				var parsed struct{ A int }
				document := `{"a": [1.50, "\u00e4"]}`
				err := calls.QueryRow(t.Context(), "select $1::text::"+kind+", $2::text::"+kind+", $1::text::"+kind+
					", null::"+kind+", null::"+kind+", '{\"a\": 7}'::"+kind, deep, document).
					Scan(&raw, &other, &pointer, &null, &nothing, &parsed)
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				if kind == "jsonb" {
					document = `{"a": [1.50, "ä"]}`
				}
				if string(raw) != deep || string(*pointer) != deep || string(other) != document {
					t.Errorf("%s: not as sent: %.50s, %.50s, %s", kind, raw, *pointer, other)
				}
				if null != nil || nothing != nil || parsed.A != 7 {
					t.Errorf("%s: %s, %v, %v; want two nils and {7}", kind, null, nothing, parsed)
				}
			}
			// What one row sent stays as it is while the next ones are read.
			rows, err := calls.Query(t.Context(), "select to_jsonb(repeat(i::text, 5000)) from generate_series(1, 9) i")
			if err != nil {
				t.Fatal(err)
			}
			all, err := pgx.CollectRows(rows, pgx.RowTo[json.RawMessage])
			if err != nil || len(all) != 9 {
				t.Fatalf("%d rows, %v", len(all), err)
			}
			for i, row := range all {
				if want := `"` + strings.Repeat(string(rune('1'+i)), 5000) + `"`; string(row) != want {
					t.Errorf("row %d is %.20s", i, row)
				}
			}
		})
	}
}

// A connection whose isolation level cannot be set is refused, with one line that says what to do.
func TestIsolationBehindAPooler(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	through := dbtest.Pooler(t, dsn, "transaction")
	alter(t, dsn, "default_transaction_isolation = 'repeatable read'")
	_, err := session.Pool(open(t, through, db.Config{})).Exec(t.Context(), "select 1")
	if e, ok := errors.AsType[*session.Error](err); !ok || !strings.Contains(e.Error(), "set default_transaction_isolation = 'read committed'") ||
		strings.Contains(e.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// If the pooler refuses a parameter of the URL, the error is one line that names it.
func TestPoolerRefusesAParameter(t *testing.T) {
	t.Parallel()
	through := dbtest.Pooler(t, dbtest.NewDSN(t), "session")
	_, err := session.Pool(open(t, through+"&options=-c%20work_mem%3D5MB", db.Config{})).Exec(t.Context(), "select 1")
	if err == nil {
		// Later versions of PgBouncer pass the parameter on, so there is no refusal to explain.
		t.Skip("this pooler takes options")
	}
	if line := db.OneLine(err); strings.Contains(line, "\n") || !strings.Contains(line, "options") || !strings.Contains(line, "ignore_startup_parameters") {
		t.Error(line)
	}
}

// The server goes on with an uncancelled call after its client has given it up, and commits it.
func TestUncancelledCallsGoOn(t *testing.T) {
	t.Parallel()
	for name, route := range routes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.NewDSN(t)
			pool := open(t, route(t, dsn), db.Config{StatementTimeout: 50 * time.Millisecond, LockTimeout: bounded.Limit})
			direct := open(t, dsn, db.Config{})
			bounded.Exec(t, direct, "create table public.t (a integer); insert into public.t values (0)")
			conn, err := session.Uncancelled(t.Context(), pool, "uncancelled")
			if err != nil {
				t.Fatal(err)
			}
			calls := session.Conn(conn)
			if got, want := bounded.Value[string](t, calls, inForce), strings.NewReplacer("2s", "0", "200ms", "2min").Replace(wanted); got != want {
				t.Errorf("in force: %s\nwant:     %s", got, want)
			}
			holder, err := direct.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = holder.Rollback(bounded.Context(t)) }()
			bounded.Exec(t, holder, "select from public.t for update")
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			failed := make(chan error, 1)
			go func() {
				_, err := calls.Exec(ctx, "update public.t set a = a + 1")
				failed <- err
			}()
			bounded.UntilBlocked(t, direct, 1)
			giveUp()
			if err := bounded.Receive(t, "the call to end", failed); !errors.Is(err, context.Canceled) {
				t.Errorf("the call ended with %v", err)
			}
			// Until then the driver might send a request to cancel the statement.
			bounded.Receive(t, "the connection to be closed", conn.PgConn().CleanupDone())
			if err := holder.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			bounded.UntilSQL(t, direct, "select a = 1 from public.t")
		})
	}
}

// A commit is not acknowledged if somebody cancels its wait for the standby: the server answers success, and only warns.
func TestCancelledWaitForTheStandby(t *testing.T) {
	t.Parallel()
	primary := dbtest.Private(t, nil)
	alter(t, primary.DSN(), "client_min_messages = 'error'")
	observer := open(t, primary.DSN(), db.Config{})
	bounded.Exec(t, observer, "create table public.t (call text)")
	dbtest.Synchronous(t, primary, "away")
	const insert = "insert into public.t values ($1)"
	calls := map[string]func(context.Context, *pgxpool.Pool, string) error{
		"pool": func(ctx context.Context, pool *pgxpool.Pool, name string) error {
			_, err := session.Pool(pool).Exec(ctx, insert, name)
			return err
		},
		"rows": func(ctx context.Context, pool *pgxpool.Pool, name string) error {
			rows, err := session.Pool(pool).Query(ctx, insert+" returning call", name)
			if err != nil {
				return err
			}
			_, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		},
		"row": func(ctx context.Context, pool *pgxpool.Pool, name string) error {
			var back string
			return session.Pool(pool).QueryRow(ctx, insert+" returning call", name).Scan(&back)
		},
		"connection": func(ctx context.Context, pool *pgxpool.Pool, name string) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				_, err := session.Conn(conn.Conn()).Exec(ctx, insert, name)
				return err
			})
		},
		"transaction": func(ctx context.Context, pool *pgxpool.Pool, name string) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				return session.Transact(ctx, conn.Conn(), pgx.TxOptions{}, "", func(q queries.DBTX) error {
					_, err := q.Exec(ctx, insert, name)
					return err
				})
			})
		},
	}
	for route, lead := range routes {
		for name, call := range calls {
			t.Run(route+" "+name, func(t *testing.T) {
				pool := open(t, lead(t, primary.DSN()), db.Config{MaxConns: 1})
				for end, want := range map[string]error{"pg_cancel_backend": session.ErrUnreplicated, "pg_terminate_backend": nil} {
					ended := make(chan error, 1)
					ctx := bounded.Context(t)
					go func() { ended <- call(ctx, pool, end+" "+route+" "+name) }()
					bounded.UntilSQL(t, observer, "select coalesce(bool_or("+end+"(pid)), false) from pg_stat_activity where wait_event = 'SyncRep'")
					err := bounded.Receive(t, "the call", ended)
					if err == nil || want != nil && !errors.Is(err, want) {
						t.Errorf("%s: the call ended with %v", end, err)
					}
					// The next call, which writes nothing, has nothing to do with it.
					bounded.True(t, "a call that writes nothing", func() bool {
						_, err := session.Pool(pool).Exec(ctx, "select")
						if errors.Is(err, session.ErrUnreplicated) {
							t.Fatal(err)
						}
						return err == nil
					})
				}
				if n := bounded.Value[int](t, observer, "select count(*) from public.t where call like '% ' || $1", route+" "+name); n != 2 {
					t.Errorf("%d of 2 calls are committed on this server", n)
				}
			})
		}
	}
}
