package bounded

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// outputWithin is how long the output of a program that has ended is waited for: a child of its own may hold it open.
const outputWithin = 5 * time.Second

// Command returns a command that is to run to its end: it is killed after Limit, and at the end of the test.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(Context(t), name, args...)
	cmd.WaitDelay = outputWithin
	return cmd
}

// Build builds programs of this module for the tests of a package, before they run. packages are paths relative to the
// folder of the test. It returns the programs' paths, in their order, and a function that removes them. It panics if they
// cannot be built.
func Build(packages ...string) (programs []string, remove func()) {
	dir, err := os.MkdirTemp("", "pawl-test-")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // A cold build is slow.
	defer cancel()
	for _, p := range packages {
		path, err := filepath.Abs(p)
		if err != nil {
			panic(err)
		}
		program := filepath.Join(dir, filepath.Base(path))
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, p).CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		programs = append(programs, program)
	}
	return programs, func() { _ = os.RemoveAll(dir) }
}

// A Program is what Start starts. Only Path is needed.
type Program struct {
	Path string
	Args []string
	// Env is added to the environment of the test, and to PAWL_LOG_FORMAT=text: tests read the log of pawl as text.
	Env []string
	// Dir is the folder that it runs in; "" means that of the test.
	Dir string
	// Stdin is what it reads; nil means nothing.
	Stdin io.Reader
	// Stdout takes its standard output; nil means that Output keeps it, beside its standard error.
	Stdout io.Writer
	// System is how it is started; nil means as any other child.
	System *syscall.SysProcAttr
	// Ready matches its output once it is ready; nil means that it is ready as soon as it runs.
	Ready *regexp.Regexp
}

// A Process is a program that was started.
type Process struct {
	// PID is its process id.
	PID int
	// Output has what it wrote to its standard error, and to its standard output unless Program.Stdout took that.
	Output *Lines
	// Ready has what matched Program.Ready, and its groups.
	Ready []string

	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	err   error         // how, once it has
}

// Start starts a program and returns when it is ready. It fails the test if the program does not start, or ends or
// takes longer than Limit before it is ready. At the end of the test the program is killed, and its output is logged if
// the test has failed.
func Start(t testing.TB, program Program) *Process {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), program.Path, program.Args...) // The cleanup kills it.
	p := &Process{Output: &Lines{}, name: program.Path, cmd: cmd, ended: make(chan struct{})}
	cmd.Env = append(append(os.Environ(), "PAWL_LOG_FORMAT=text"), program.Env...)
	cmd.Dir, cmd.Stdin, cmd.SysProcAttr = program.Dir, program.Stdin, program.System
	cmd.Stdout, cmd.Stderr = program.Stdout, p.Output
	if program.Stdout == nil {
		cmd.Stdout = p.Output
	}
	cmd.WaitDelay = outputWithin
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program.Path, err)
	}
	p.PID = cmd.Process.Pid
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Kill(t)
		if t.Failed() {
			t.Logf("the output of %s:\n%s", p.name, p.Output)
		}
	})
	if program.Ready != nil {
		p.Ready = p.Match(t, program.Ready)
	}
	return p
}

// Match waits until the output matches, and returns the match and its groups. It fails the test if the program ends
// before.
func (p *Process) Match(t testing.TB, pattern *regexp.Regexp) []string {
	t.Helper()
	var match []string
	True(t, fmt.Sprintf("%s to write what matches %q", p.name, pattern), func() bool {
		over := p.Ended() // Whoever has ended writes nothing more.
		if match = pattern.FindStringSubmatch(p.Output.String()); match == nil && over {
			t.Fatalf("%s ended (%v) before it wrote what matches %q:\n%s", p.name, p.err, pattern, p.Output)
		}
		return match != nil
	})
	return match
}

// Ended says whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Signal sends a signal, or fails the test if the program has ended.
func (p *Process) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("%v for %s: %v", signal, p.name, err)
	}
}

// Wait waits for the end of the program and returns how it ended: nil, or an *exec.ExitError. It fails the test if the
// program goes on.
func (p *Process) Wait(t testing.TB) error {
	t.Helper()
	Receive(t, p.name+" to end", p.ended)
	return p.err
}

// Kill kills the program and waits for its end. A program that has ended is left alone.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	_ = p.cmd.Process.Kill() // It may have ended.
	_ = p.Wait(t)            // It was killed, or has ended as it liked.
}

// Port returns a TCP port of 127.0.0.1 that nobody listens on. Another program may take it before the test does.
func Port(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
