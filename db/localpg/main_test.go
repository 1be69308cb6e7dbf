package localpg_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// helperEnv makes the test binary act as a program that starts a server on the folder named by its value.
const helperEnv = "LOCALPG_TEST_HELPER_DIR"

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv(helperEnv); ok {
		help(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// help starts a server, prints its process id and DSN, and waits to be killed.
func help(dir string) {
	s, err := localpg.Start(context.Background(), localpg.Config{Dir: dir, Detached: os.Getenv("DETACHED") != ""})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("started", s.PID(), s.Dir(), s.DSN())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// folder makes a data folder that, unlike t.TempDir's, an unprivileged user can be let into.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// openFolder makes one that everybody may pass through, for folders below it.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := folder(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func needBinaries(t *testing.T) {
	t.Helper()
	if _, err := localpg.Find(); err != nil {
		t.Skip(err)
	}
}

func start(t *testing.T, config localpg.Config) *localpg.Server {
	t.Helper()
	needBinaries(t)
	s, err := localpg.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *localpg.Server) {
	t.Helper()
	if err := s.Stop(bounded.Context(t)); err != nil {
		t.Error(err)
	}
}

func exec1(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	bounded.Exec(t, conn, sql)
}

func query1[T any](t *testing.T, dsn, sql string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return bounded.Value[T](t, conn, sql)
}

func running(s *localpg.Server) bool {
	select {
	case <-s.Done():
		return false
	default:
		return true
	}
}
