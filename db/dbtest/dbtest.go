package dbtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/localpg"
)

const (
	// maxConns is enough for a race of many, and lets several tests share a server with 300 connections.
	maxConns = 32
	// cleanUpWithin bounds what a test does when it ends.
	cleanUpWithin = 30 * time.Second
)

// shared is the one server of this process. The first test that needs it starts it.
var shared struct {
	once   sync.Once
	server *server
	err    error
}

// use returns the server, or fails the test.
func use(t testing.TB) *server {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.err = startServer(t) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Main runs a package's tests, stops the server that they used, and exits.
func Main(m *testing.M) { Exit(m.Run()) }

// Exit stops the server and exits with the code, or with 1 if that would hide that the server did not stop. It is
// the second half of Main, for a TestMain that runs the tests in another way.
func Exit(code int) {
	shared.once.Do(func() {}) // from now on no server is started
	if shared.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpWithin)
		if err := shared.server.close(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		cancel()
	}
	os.Exit(code)
}

// New returns a pool on a fresh database with the schema. Its role owns the schema. The pool has none of the
// limits that db.Open sets; a test that wants those opens its own on NewDSN.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(NewDSN(t))
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	config.MaxConns = maxConns
	config.ConnConfig.RuntimeParams["timezone"] = "UTC"
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	return pool
}

// closePool closes the pool, which waits for connections that are in use, but not for ever.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(cleanUpWithin):
		t.Errorf("dbtest: %d connections of the pool were not released", pool.Stat().AcquiredConns())
	}
}

// NewDSN returns the connection string of a fresh database with the schema, for tests that start the program.
func NewDSN(t testing.TB) string {
	t.Helper()
	s := use(t)
	template, err := s.templateName()
	if err != nil {
		t.Fatal(err)
	}
	return s.create(t, template)
}

// Empty returns the connection string of a fresh database without the schema, for tests of the migrations.
func Empty(t testing.TB) string {
	t.Helper()
	return use(t).create(t, "template0")
}

// DSN returns the connection string of a pool that New made.
func DSN(pool *pgxpool.Pool) string { return pool.Config().ConnString() }

// Private starts a server of the test's own, which the test may stop, kill and configure. It is stopped when the test
// ends. It has no schema; db.Up(ctx, server.DSN()) gives it one. Writes are not flushed to the disk, unless settings
// say "fsync": "on". So data survives that the server is killed, but not a crash of the machine. If there is no
// PostgreSQL on this machine, the test is skipped, and says how to get one.
func Private(t testing.TB, settings map[string]string) *localpg.Server {
	t.Helper()
	if _, err := localpg.Find(); err != nil {
		t.Skipf("dbtest: this test needs a server of its own: %v", err)
	}
	return PrivateWith(t, localpg.Config{Settings: settings, InMemory: true})
}

// Major returns the PostgreSQL of a major version. If this machine has none, the test is skipped, and says how to get it.
func Major(t testing.TB, major int) localpg.Binaries {
	t.Helper()
	b, err := localpg.FindMajor(major)
	if err != nil {
		t.Skipf("dbtest: this test needs PostgreSQL %d, which make test-matrix fetches: %v", major, err)
	}
	return b
}

// PrivateWith is Private with a chosen PostgreSQL, or in a chosen folder.
func PrivateWith(t testing.TB, config localpg.Config) *localpg.Server {
	t.Helper()
	config.Settings = withDefaults(config.Settings)
	return start(t, config)
}

// start starts a server that is stopped when the test ends.
func start(t testing.TB, config localpg.Config) *localpg.Server {
	t.Helper()
	s, err := localpg.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpWithin)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// IgnoreServer makes goleak ignore the goroutine that watches a private server. goleak.VerifyTestMain needs it, since
// it looks before the server is stopped:
//
//	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
func IgnoreServer() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/pawl-fsm/pawl/db/localpg.(*Server).supervise")
}

// NoLeaks fails the test if it leaves goroutines behind that were not there when NoLeaks was called. Call it before
// New, so that it looks after the pool is closed. Do not call it in a parallel test, which would see the goroutines of
// others.
func NoLeaks(t testing.TB) {
	t.Helper()
	use(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}
