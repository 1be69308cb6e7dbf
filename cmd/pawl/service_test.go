package main_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// process is a running `pawl serve` or `pawl dev`.
type process struct {
	*exec.Cmd
	url string
	log *lockedBuffer
}

// lockedBuffer is a bytes.Buffer for two goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var (
	devAddress   = regexp.MustCompile(`pawl listens on (http://\S+)`)
	serveAddress = regexp.MustCompile(`msg=serving address=(\S+)`)
	noAddress    = regexp.MustCompile(`msg="working, without an API"`)
)

// start runs `pawl dev` or `pawl serve` on a free port and returns when it serves. It is killed when the
// test ends.
func start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program, append(args, "--listen", "127.0.0.1:0")...), log: &lockedBuffer{}}
	p.Env = append(os.Environ(), env...)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = in, in
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() {
			t.Logf("pawl %s:\n%s", args[0], p.log)
		}
	})
	serving := make(chan string, 1)
	go func() {
		defer func() { _ = out.Close() }()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			_, _ = fmt.Fprintln(p.log, lines.Text())
			if m := devAddress.FindStringSubmatch(lines.Text()); m != nil {
				serving <- m[1]
			}
			if m := serveAddress.FindStringSubmatch(lines.Text()); m != nil {
				serving <- "http://" + m[1]
			}
			if noAddress.MatchString(lines.Text()) {
				serving <- "nowhere"
			}
		}
		close(serving)
	}()
	select {
	case p.url = <-serving:
		if p.url == "" {
			t.Fatalf("pawl %s ended: %s", args[0], p.log)
		}
	case <-time.After(time.Minute):
		t.Fatalf("pawl %s does not serve: %s", args[0], p.log)
	}
	return p
}

// serviceRole makes a login role with the privileges of the service, and returns the address of the
// database for it.
func serviceRole(t *testing.T, dsn string) string {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Close(context.WithoutCancel(t.Context())) }()
	role := "pawl_service_" + strings.ReplaceAll(owner.Config().Database, "-", "_")
	if _, err := owner.Exec(t.Context(), fmt.Sprintf("create role %s login password 'secret'", role)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := conn.Exec(ctx, fmt.Sprintf("drop owned by %[1]s; drop role %[1]s", role)); err != nil {
			t.Error(err)
		}
	})
	mustPawl(t, []string{"DATABASE_URL=" + dsn}, "migrate", "grants", "--role", role, "--apply")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	return u.String()
}

// dialDSN connects to a database until the test ends.
func dialDSN(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}
