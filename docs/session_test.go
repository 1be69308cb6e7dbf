package docs_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// session is a program that reads commands for the whole of a page: a shell, or psql.
type session struct {
	t     *testing.T
	stdin io.Writer
	lines <-chan string
	// wrap makes of a block what the program reads, which ends with a line of mark, a space and the
	// block's code. A strict block ends at its first failure.
	wrap func(text, mark string, strict bool) string
	runs int
}

func startSession(t *testing.T, cmd *exec.Cmd, wrap func(text, mark string, strict bool) string) *session {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	lines := make(chan string, 1000)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(lines)
		for reader := bufio.NewReader(read); ; {
			line, err := reader.ReadString('\n')
			if line != "" {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = read.Close()
		for range lines { // What nobody has read.
		}
		reading.Wait()
	})
	return &session{t: t, stdin: stdin, lines: lines, wrap: wrap}
}

// run runs a block and returns what it printed, and its code.
func (s *session) run(text string, strict bool) (output, code string) {
	s.t.Helper()
	s.runs++
	mark := fmt.Sprintf("::end-of-block-%d", s.runs)
	if _, err := io.WriteString(s.stdin, s.wrap(text, mark, strict)); err != nil {
		s.t.Fatal(err)
	}
	var out strings.Builder
	for late := time.After(longest); ; {
		select {
		case line, open := <-s.lines:
			if !open {
				s.t.Fatalf("the session ended: %s", out.String())
			}
			if before, code, is := strings.Cut(line, mark+" "); is {
				out.WriteString(before)
				return out.String(), strings.TrimSpace(code)
			}
			out.WriteString(line)
		case <-late:
			s.t.Fatalf("the block does not end: %s\nprinted is %s", text, out.String())
		}
	}
}

// startShell starts the shell of a page. A command that fails ends its block.
func startShell(t *testing.T, dir string, env []string) *session {
	t.Helper()
	scripts := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh")
	cmd.Dir, cmd.Env = dir, env
	runs := 0
	return startSession(t, cmd, func(text, mark string, strict bool) string {
		runs++
		script := filepath.Join(scripts, fmt.Sprintf("%d.sh", runs))
		if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if !strict {
			return fmt.Sprintf(". %s </dev/null; echo %s $?\n", script, mark)
		}
		// The trap prints the code of a block that ends the shell, and with it the page.
		return fmt.Sprintf("trap 'echo %[2]s $?' EXIT; set -eu; . %[1]s </dev/null; set +eu; trap - EXIT; echo %[2]s 0\n", script, mark)
	})
}

// startPsql starts the psql of a page. A block's code is the SQLSTATE of its last error.
func startPsql(t *testing.T, dir string, env []string, dsn string) *session {
	t.Helper()
	scripts := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "psql", "-X", dsn)
	cmd.Dir, cmd.Env = dir, env
	runs := 0
	return startSession(t, cmd, func(text, mark string, _ bool) string {
		runs++
		script := filepath.Join(scripts, fmt.Sprintf("%d.sql", runs))
		if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// The shell's echo comes when psql has written all it has.
		return fmt.Sprintf("\\set LAST_ERROR_SQLSTATE 00000\n\\i %s\n\\setenv STATE :LAST_ERROR_SQLSTATE\n\\! echo %s $STATE\n", script, mark)
	})
}

// serviceCommand makes of a line that starts a service what starts the real program here.
func serviceCommand(line string) (command string, is bool) {
	m := regexp.MustCompile(`^((?:[A-Z_]+=\S+ +)*)(make run|(?:bin/)?pawl (?:dev|serve)|go run ./examples/webhook-receiver)\b(.*)$`).FindStringSubmatch(line)
	if m == nil || strings.Contains(line, "--help") {
		return "", false
	}
	switch m[2] {
	case "make run":
		return m[1] + program + " dev" + m[3], true
	case "go run ./examples/webhook-receiver":
		return m[1] + receiver + m[3], true
	default:
		return m[1] + program + strings.TrimPrefix(strings.TrimPrefix(m[2], "bin/"), "pawl") + m[3], true
	}
}

// services are those that a page has started, by address.
type services struct {
	stop map[string]func()
}

var (
	serving   = regexp.MustCompile(`pawl listens on http://(\S+)|msg=serving address=(\S+)|\breceiving"? address=(\S+)|(msg="working, without an API")`)
	anyListen = regexp.MustCompile(`^(\[::\]|0\.0\.0\.0)?:`)
)

// start starts a service, and returns its address when it serves. One that serves at the same
// address is ended first.
func (s *services) start(t *testing.T, dir string, env []string, command string) string {
	t.Helper()
	if s.stop == nil {
		s.stop = map[string]func(){}
	}
	kind := "pawl"
	if strings.Contains(command, receiver) {
		kind = "receiver"
	}
	if m := regexp.MustCompile(`--listen[ =]\S*?(:\d+)`).FindStringSubmatch(command); m != nil {
		kind = m[1]
	}
	if stop := s.stop[kind]; stop != nil {
		stop()
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", "exec env "+command)
	cmd.Dir, cmd.Env = dir, env
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	var log lockedBuffer
	address := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(read); lines.Scan(); {
			_, _ = fmt.Fprintln(&log, lines.Text())
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case address <- m[1] + m[2] + m[3]:
				default:
				}
			}
		}
	}()
	var once sync.Once
	s.stop[kind] = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = read.Close() // What the service has started may have it, too.
			<-done
		})
	}
	t.Cleanup(s.stop[kind])
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", command, log.String())
		}
	})
	select {
	case a := <-address:
		if a != "" {
			awaitListener(t, a)
		}
		return a
	case <-done:
		t.Fatalf("%s ended: %s", command, log.String())
	case <-time.After(longest):
		t.Fatalf("%s does not serve: %s", command, log.String())
	}
	return ""
}

// awaitListener returns when somebody listens: the receiver says so a moment before.
func awaitListener(t *testing.T, address string) {
	t.Helper()
	address = anyListen.ReplaceAllString(address, "127.0.0.1:")
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	for again := time.NewTicker(10 * time.Millisecond); ; {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
			again.Stop()
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("nobody listens at %s: %v", address, err)
		}
	}
}

// lockedBuffer is a strings.Builder for two goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
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

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// dropRole drops a role that may not exist, with its privileges.
func dropRole(t *testing.T, dsn, role string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), longest)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_roles where rolname = $1)", role).Scan(&there); err != nil || !there {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf("drop owned by %[1]s; drop role %[1]s", role)); err != nil {
		t.Error(err)
	}
}

// lookPath is where a program is.
func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
