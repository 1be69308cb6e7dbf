package docs_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// session is a program that reads commands for the whole of a page: a shell, or psql.
type session struct {
	*bounded.Process
	t     *testing.T
	stdin io.Writer
	lines []string // printed, and not yet looked at
	// wrap makes of a block what the program reads, which ends with a line of mark, a space and the
	// block's code. A strict block ends at its first failure.
	wrap func(text, mark string, strict bool) string
	runs int
}

func startSession(t *testing.T, program bounded.Program, wrap func(text, mark string, strict bool) string) *session {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = write.Close() })
	program.Stdin = read
	s := &session{Process: bounded.Start(t, program), t: t, stdin: write, wrap: wrap}
	_ = read.Close()
	return s
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
	ended := false
	bounded.Until(s.t, "the block to end: "+text, func() string {
		over := s.Ended() // Whoever has ended writes nothing more.
		s.lines = append(s.lines, s.Output.Rest()...)
		// bounded: each round takes a line away
		for len(s.lines) > 0 && !ended {
			var line string
			line, s.lines = s.lines[0], s.lines[1:]
			if before, after, is := strings.Cut(line, mark+" "); is {
				out.WriteString(before)
				code, ended = strings.TrimSpace(after), true
			} else {
				out.WriteString(line + "\n")
			}
		}
		if over && !ended {
			s.t.Fatalf("the session ended: %s", out.String())
		}
		return out.String()
	}, func(string) bool { return ended })
	return out.String(), code
}

// startShell starts the shell of a page. A command that fails ends its block.
func startShell(t *testing.T, dir string, env []string) *session {
	t.Helper()
	scripts := t.TempDir()
	runs := 0
	return startSession(t, bounded.Program{Path: "sh", Dir: dir, Env: env}, func(text, mark string, strict bool) string {
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
	runs := 0
	return startSession(t, bounded.Program{Path: "psql", Args: []string{"-X", dsn}, Dir: dir, Env: env}, func(text, mark string, _ bool) string {
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
	m := regexp.MustCompile(`^((?:[A-Z_]+=\S+ +)*)(make run|(?:bin/)?pawl (?:dev|serve)|go run ./examples/[a-z-]+)\b(.*)$`).FindStringSubmatch(line)
	if m == nil || strings.Contains(line, "--help") {
		return "", false
	}
	example, isExample := strings.CutPrefix(m[2], "go run ./examples/")
	switch {
	case m[2] == "make run":
		return m[1] + program + " dev" + m[3], true
	case isExample:
		return m[1] + exampleProgram(example) + m[3], true
	default:
		return m[1] + program + strings.TrimPrefix(strings.TrimPrefix(m[2], "bin/"), "pawl") + m[3], true
	}
}

// services are those that a page has started, by address.
type services struct {
	stop map[string]func()
}

var (
	serving   = regexp.MustCompile(`pawl listens on http://(\S+)\s|msg=serving address=(\S+)\s|\b(?:receiving|serving)"? address=(\S+)\s|msg="working, without an API"|INFO working server=`)
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
	if m := regexp.MustCompile(`\S*/(?:` + strings.Join(examples, "|") + `)\b.*`).FindString(command); m != "" {
		kind = m
	}
	if m := regexp.MustCompile(`--listen[ =]\S*?(:\d+)`).FindStringSubmatch(command); m != nil {
		kind = m[1]
	}
	if stop := s.stop[kind]; stop != nil {
		stop()
	}
	p := bounded.Start(t, bounded.Program{Path: "sh", Args: []string{"-euc", "exec env " + command}, Dir: dir, Env: env, Ready: serving})
	s.stop[kind] = func() { p.Kill(t) }
	address := p.Ready[1] + p.Ready[2] + p.Ready[3]
	if address != "" {
		awaitListener(t, address)
	}
	return address
}

// awaitListener returns when somebody listens: the receiver says so a moment before.
func awaitListener(t *testing.T, address string) {
	t.Helper()
	address = anyListen.ReplaceAllString(address, "127.0.0.1:")
	ctx := bounded.Context(t)
	_ = bounded.Until(t, "somebody to listen at "+address, func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}, func(err error) bool { return err == nil })
}

// dropRole drops a role that may not exist, with its privileges.
func dropRole(t *testing.T, dsn, role string) {
	t.Helper()
	ctx := bounded.Context(t)
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
