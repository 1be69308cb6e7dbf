package main_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// startPatient starts a service whose statements may take longer than a test, and returns a connection of the owner.
func startPatient(t *testing.T) (*process, *pgx.Conn) {
	t.Helper()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn, "PAWL_LOCK_TIMEOUT=10m", "PAWL_GUARD_TIMEOUT=10m", "PAWL_SHUTDOWN_TIMEOUT=10s"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	conn, err := pgx.Connect(bounded.Context(t), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	return p, conn
}

// TestStopEndsWhatTakesLong ends a service while a stream, a simulation and a back-test are under way. They are answered
// at once, and the process ends without an error.
func TestStopEndsWhatTakesLong(t *testing.T) {
	t.Parallel()
	p, conn := startPatient(t)
	booking := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").header.Get("Location")
	mustSend(t, http.StatusOK, http.MethodPost, p.url+booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
	bounded.Exec(t, conn, `create or replace function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
		language plpgsql stable as 'begin perform pg_sleep(600); return false; end'`)
	bounded.Exec(t, conn, `create or replace function pawl_private.backtest_step(
		p_instance pawl.instance, p_kind text, p_event text, p_payload jsonb, p_principal jsonb, p_reason text, p_at timestamptz, p_entered boolean, p_setting pawl.setting,
		out code text, out instance pawl.instance, out guards text[], out error text)
		language plpgsql stable as 'begin perform pg_sleep(600); end'`)
	open, err := http.NewRequestWithContext(bounded.Context(t), http.MethodGet, p.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := http.DefaultClient.Do(open)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	answers := make(chan answer, 2)
	for path, body := range map[string]string{
		"simulate": `{"context": {"flight_id": "x", "price": 1}, "events": [{"event": "nothing"}, {"event": "more"}]}`, "backtest": `{"version": 1}`,
	} {
		go func() {
			a, err := send(bounded.Context(t), http.MethodPost, p.url+"/v1/workflows/flight-booking/"+path, body)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			answers <- a
		}()
	}
	const asleep = "select count(*) = $1 from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
	bounded.UntilSQL(t, conn, asleep, 2)
	p.Signal(t, syscall.SIGTERM)
	for range 2 {
		if a := bounded.Receive(t, "an answer", answers); a.status != http.StatusServiceUnavailable {
			t.Errorf("status %d: %s", a.status, a.body)
		}
	}
	if err := p.Wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	bounded.UntilSQL(t, conn, asleep, 0)
}

// TestStopCutsWhatDoesNotEnd ends a service while lists wait for a lock, and clients take nothing of their answers.
// The process ends all the same, and so do its statements.
func TestStopCutsWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	p, conn := startPatient(t)
	bounded.Exec(t, conn, `select pawl.create_one('flight-booking', jsonb_build_object('flight_id', 'x', 'price', 1, 'text', repeat('x', 60000))) from generate_series(1, 70)`)
	for _, request := range []string{"/v1/instances?limit=200", "/v1/events?from=start"} {
		stalled, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stalled.Close() }()
		if _, err := io.WriteString(stalled, strings.Repeat("GET "+request+" HTTP/1.1\r\nHost: localhost\r\n\r\n", 8)); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := conn.Begin(bounded.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "lock table pawl.delivery in access exclusive mode")
	for range 10 {
		go func() {
			if a, err := send(bounded.Context(t), http.MethodGet, p.url+"/v1/deliveries", ""); err == nil && a.status == http.StatusOK {
				t.Errorf("a list that waits for a lock was answered: %s", a.body)
			}
		}()
	}
	const waiting = `select count(*) = $1 from pg_locks where not granted and relation = 'pawl.delivery'::regclass
		and database = (select oid from pg_database where datname = current_database())`
	bounded.UntilSQL(t, tx, waiting, 2)
	p.Signal(t, syscall.SIGTERM)
	_ = p.Wait(t) // It says that it has cut requests.
	bounded.UntilSQL(t, tx, waiting, 0)
}
