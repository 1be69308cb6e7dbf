package main_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// TestIdenticalRequestsOverTwoProcesses sends one request a hundred times at once to two replicas. All
// answers are the same, and all but one are replays.
func TestIdenticalRequestsOverTwoProcesses(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn)}
	replicas := []*process{start(t, env, "serve"), start(t, env, "serve")}
	mustPawl(t, nil, "workflow", "apply", "--server", replicas[0].url, flight)

	hundred := func(path, body string, headers ...string) answer {
		t.Helper()
		var requests sync.WaitGroup
		answers := make([]answer, 100)
		errs := make([]error, 100)
		for i := range answers {
			requests.Go(func() {
				answers[i], errs[i] = send(t.Context(), http.MethodPost, replicas[i%2].url+path, body, headers...)
			})
		}
		bounded.Wait(t, "a hundred requests", requests.Wait)
		firsts := 0
		for i, a := range answers {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			if a.status != answers[0].status || a.body != answers[0].body || a.header.Get("ETag") != answers[0].header.Get("ETag") ||
				a.header.Get("Location") != answers[0].header.Get("Location") {
				t.Fatalf("answer %d is %d %s, and the first is %d %s", i, a.status, a.body, answers[0].status, answers[0].body)
			}
			if a.header.Get("Idempotent-Replayed") == "" {
				firsts++
			}
		}
		if firsts != 1 {
			t.Errorf("%d answers are no replay, want 1", firsts)
		}
		return answers[0]
	}
	created := hundred(create, quote, "Idempotency-Key", "quote-1")
	if created.status != http.StatusCreated {
		t.Fatalf("status %d: %s", created.status, created.body)
	}
	booking := created.header.Get("Location")
	hundred(booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1", "If-Match", `"1"`)
	history := mustSend(t, http.StatusOK, http.MethodGet, replicas[1].url+booking+"/history", "")
	if items := history.member("items").([]any); len(items) != 2 {
		t.Errorf("the history has %d steps, want 2: %s", len(items), history.body)
	}
	list := mustSend(t, http.StatusOK, http.MethodGet, replicas[0].url+"/v1/instances", "")
	if items := list.member("items").([]any); len(items) != 1 {
		t.Errorf("there are %d instances, want 1", len(items))
	}
}

// newMuzzle starts a proxy to Postgres, and returns the address of the database through it. Once shut, it
// drops what the server sends.
func newMuzzle(t *testing.T, dsn string) (shut *atomic.Bool, through string) {
	t.Helper()
	shut = &atomic.Bool{}
	_, through = bounded.NewDatabaseProxy(t, dsn, func(c bounded.Chunk) ([]byte, bool) {
		if c.FromServer && shut.Load() {
			return nil, true
		}
		return c.Data, true
	})
	return shut, through
}

// hold locks every instance until release, and returns a connection for other queries.
func hold(t *testing.T, dsn string) (look *pgx.Conn, release func()) {
	t.Helper()
	conns := make([]*pgx.Conn, 2)
	for i := range conns {
		var err error
		if conns[i], err = pgx.Connect(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close(bounded.Context(t)) })
	}
	tx, err := conns[0].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "select from pawl.instance for no key update")
	return conns[1], func() {
		t.Helper()
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledBetweenCommitAndAnswer kills the service after the commit and before the answer. The retry
// at another replica replays the outcome.
func TestKilledBetweenCommitAndAnswer(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	shut, through := newMuzzle(t, dsn)
	doomed := start(t, []string{"DATABASE_URL=" + through, "PAWL_LOCK_TIMEOUT=2m", "PAWL_GUARD_TIMEOUT=2m"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", doomed.url, flight)
	booking := mustSend(t, http.StatusCreated, http.MethodPost, doomed.url+create, quote, "Idempotency-Key", "quote-1").
		header.Get("Location")

	conn, release := hold(t, dsn)
	lost := make(chan error, 1)
	go func() {
		// An event without a payload schema takes one call, whose answer is lost.
		_, err := send(t.Context(), http.MethodPost, doomed.url+booking+"/actions/cancel", `{}`, "Idempotency-Key", "cancel-1")
		lost <- err
	}()
	bounded.UntilBlocked(t, conn, 1)
	shut.Store(true)
	release()
	bounded.UntilSQL(t, conn, "select version = 2 from pawl.instance")
	doomed.Kill(t)
	if err := bounded.Receive(t, "the first request", lost); err == nil {
		t.Fatal("the first request was answered, so nothing was lost")
	}

	heir := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	retry := mustSend(t, http.StatusOK, http.MethodPost, heir.url+booking+"/actions/cancel", `{}`, "Idempotency-Key", "cancel-1")
	if retry.header.Get("Idempotent-Replayed") != "true" || retry.header.Get("ETag") != `"2"` {
		t.Errorf("the retry is no replay of version 2: %v %s", retry.header, retry.body)
	}
}

// TestDrain ends a service while a request waits for a row. The request is answered, and then the
// process ends.
func TestDrain(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn, "PAWL_LOCK_TIMEOUT=2m", "PAWL_GUARD_TIMEOUT=2m"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	booking := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").
		header.Get("Location")
	conn, release := hold(t, dsn)
	answered := make(chan answer, 1)
	go func() {
		a, err := send(t.Context(), http.MethodPost, p.url+booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	bounded.UntilBlocked(t, conn, 1)
	p.Signal(t, syscall.SIGTERM)
	p.Match(t, regexp.MustCompile("draining"))
	release()
	if a := bounded.Receive(t, "the request that waits", answered); a.status != http.StatusOK {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if err := p.Wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestWorkersOnly runs the API and the workers as processes of their own. One purges keys and does not
// listen; the other answers requests and purges nothing.
func TestWorkersOnly(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	role := serviceRole(t, dsn)
	api := start(t, []string{"DATABASE_URL=" + role, "PAWL_WORKERS=false"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", api.url, flight)
	bounded.Exec(t, conn, "update pawl.setting set idempotency_ttl = '1 microsecond'")
	for n := range 3 {
		mustSend(t, http.StatusCreated, http.MethodPost, api.url+create, quote, "Idempotency-Key", fmt.Sprint("quote-", n))
	}
	if n := bounded.Value[int](t, conn, "select count(*) from pawl.idempotency_key"); n != 3 {
		t.Errorf("%d keys are left without workers, want 3", n)
	}
	worker := start(t, []string{"DATABASE_URL=" + role}, "serve", "--no-api")
	if worker.url != "nowhere" {
		t.Errorf("the worker listens on %s", worker.url)
	}
	bounded.UntilSQL(t, conn, "select count(*) = 0 from pawl.idempotency_key")
	bounded.UntilSQL(t, conn, "select count(*) = 3 from pawl.residence")
	for _, p := range []*process{worker, api} {
		p.Signal(t, syscall.SIGTERM)
		if err := p.Wait(t); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
	if _, stderr, code := pawl(t, []string{"DATABASE_URL=" + dsn, "PAWL_API=false"}, "serve", "--no-workers"); code != 2 || !strings.Contains(stderr, "--no-api and --no-workers") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, nil, "dev", "--no-workers", "--no-api"); code != 2 || !strings.Contains(stderr, "--no-api and --no-workers") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestTokens shows that a service with tokens refuses callers without one, or without the scope.
func TestTokens(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens.json")
	// The hash is that of "letmein".
	text := `[{"sha256": "1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b63032", "subject": "carla", "tenant": "*", "scopes": ["read", "deploy"]}]`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve", "--tokens", file)
	env := []string{"PAWL_SERVER=" + p.url}
	if _, stderr, code := pawl(t, env, "workflow", "list"); code != 1 || !strings.Contains(stderr, "401 unauthenticated") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	env = append(env, "PAWL_TOKEN=letmein")
	mustPawl(t, env, "workflow", "apply", flight)
	if out := mustPawl(t, env, "workflow", "list"); !strings.Contains(out, "carla") {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, env, "instance", "create", "flight-booking"); code != 1 || !strings.Contains(stderr, "403 forbidden") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
