package bounded_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// A trial is a test that may fail, and whose failure is looked at.
type trial struct {
	testing.TB
	ctx      context.Context
	mu       sync.Mutex
	cleanups []func()
	failures []string
}

func (r *trial) Context() context.Context { return r.ctx }

func (r *trial) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *trial) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *trial) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *trial) Failed() bool { return len(r.failures) > 0 }

// try runs a body as a test, with its cleanups, and returns its failures.
func try(t *testing.T, body func(t testing.TB)) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &trial{TB: t, ctx: ctx}
	bounded.Wait(t, "the trial", func() {
		var over sync.WaitGroup
		over.Go(func() { body(r) })
		over.Wait() // bounded: by the Wait around it
		cancel()
		for _, f := range slices.Backward(r.cleanups) {
			f()
		}
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.failures, "\n")
}

// wantFailure wants a body to fail after a time, of the bubble's clock, with a message that has all parts.
func wantFailure(t *testing.T, after time.Duration, body func(t testing.TB), parts ...string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		r := &trial{TB: t, ctx: ctx}
		begin := time.Now()
		go body(r)
		time.Sleep(after - time.Second)
		synctest.Wait()
		if r.mu.Lock(); r.Failed() {
			t.Errorf("it fails within %v: %v", time.Since(begin), r.failures)
		}
		r.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		cancel()
		for _, f := range slices.Backward(r.cleanups) {
			f()
		}
		for _, part := range parts {
			if got := strings.Join(r.failures, "\n"); !strings.Contains(got, part) {
				t.Errorf("the failure has no %q: %s", part, got)
			}
		}
	})
}

func TestWaitsEnd(t *testing.T) {
	t.Parallel()
	seen := 0
	if got := bounded.Until(t, "a count", func() int { seen++; return seen }, func(n int) bool { return n == 5 }); got != 5 || seen != 5 {
		t.Errorf("Until returns %d after %d looks", got, seen)
	}
	values := make(chan int, 1)
	values <- 3
	if got := bounded.Receive(t, "a value", values); got != 3 {
		t.Errorf("received %d", got)
	}
	close(values)
	if got := bounded.Receive(t, "the end", values); got != 0 {
		t.Errorf("received %d from a closed channel", got)
	}
	if err := bounded.Result(t, "an error", func() error { return os.ErrExist }); !errors.Is(err, os.ErrExist) {
		t.Errorf("the result is %v", err)
	}
	ran := false
	bounded.Wait(t, "a call", func() { ran = true })
	if !ran {
		t.Error("Wait did not wait")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := bounded.Ended(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Ended returns %v", err)
	}
}

func TestWaitsFail(t *testing.T) {
	t.Parallel()
	n := 0
	wantFailure(t, bounded.Limit, func(t testing.TB) {
		bounded.Until(t, "the count", func() int { n++; return 42 }, func(int) bool { return false })
	}, "waited 2m0s for the count; last seen: 42")
	if n < 1000 || n > 10_000 {
		t.Errorf("it looked %d times", n)
	}
	wantFailure(t, bounded.Limit, func(t testing.TB) { bounded.True(t, "the sun", func() bool { return false }) },
		"waited 2m0s for the sun; last seen: false")
	wantFailure(t, 3*time.Minute, func(t testing.TB) {
		bounded.UntilWithin(t, 3*time.Minute, "the sun", func() string { return "clouds" }, func(string) bool { return false })
	}, "waited 3m0s for the sun; last seen: clouds")
	wantFailure(t, bounded.Limit, func(t testing.TB) { bounded.Receive(t, "a word", make(chan string)) },
		"waited 2m0s for a word; the goroutines of this module:", "TestWaitsFail")
	wantFailure(t, bounded.Limit, func(t testing.TB) {
		release := make(chan struct{}) // of the bubble, as all that it waits for
		t.Cleanup(func() { close(release) })
		bounded.Wait(t, "the group", func() { bounded.Receive(t, "release", release) })
	}, "waited 2m0s for the group")
	wantFailure(t, bounded.Limit, func(t testing.TB) {
		if err := bounded.Ended(context.Background()); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}, "the context lives on")
}

// What a wait calls may end its goroutine, as t.FailNow does.
func TestResultOfWhatFails(t *testing.T) {
	t.Parallel()
	if got := try(t, func(t testing.TB) {
		bounded.Wait(t, "a call that fails", func() { t.Fatalf("this one") })
	}); got != "this one" {
		t.Errorf("the failures are %q", got)
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	var in, of context.Context
	t.Run("inner", func(t *testing.T) {
		t.Cleanup(func() {
			in = bounded.Context(t)
			if in.Err() != nil || of.Err() == nil {
				t.Errorf("in a cleanup: of the cleanup %v, of the body %v", in.Err(), of.Err())
			}
		})
		of = bounded.Context(t)
		deadline, ok := of.Deadline()
		if left := time.Until(deadline); !ok || left > bounded.Limit || left < bounded.Limit/2 {
			t.Errorf("%v are left, %v", left, ok)
		}
		t.Cleanup(func() {
			if of.Err() != nil {
				t.Error("it ended before a cleanup that is younger")
			}
		})
	})
	if in.Err() == nil {
		t.Error("it outlives the test")
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	runs := 0
	worker := func(ctx context.Context) error {
		runs++
		<-ctx.Done() // bounded: by whoever stops the worker
		runs++
		return nil
	}
	if got := try(t, func(t testing.TB) {
		stop := bounded.Run(t, "the worker", worker)
		stop()
		stop()
		if runs != 2 {
			t.Errorf("after stop the worker is at %d", runs)
		}
		bounded.Run(t, "the worker", worker)
	}); got != "" || runs != 4 {
		t.Errorf("the failures are %q, the worker is at %d", got, runs)
	}
	if got := try(t, func(t testing.TB) {
		ended := make(chan struct{})
		bounded.Run(t, "the worker", func(context.Context) error { defer close(ended); return os.ErrClosed })
		bounded.Receive(t, "its end", ended)
	}); got != "the worker ended with: file already closed" {
		t.Errorf("the failures are %q", got)
	}
	// One that does not stop, and ends after the test with an error.
	wantFailure(t, bounded.Limit, func(t testing.TB) {
		release, ended := make(chan struct{}), make(chan struct{})
		t.Cleanup(func() {
			close(release)
			bounded.Receive(t, "the worker", ended)
		})
		bounded.Run(t, "the worker", func(context.Context) error {
			defer close(ended)
			bounded.Receive(t, "release", release)
			return os.ErrClosed
		})()
	}, "waited 2m0s for the worker to stop; the goroutines of this module:")
}

func TestGate(t *testing.T) {
	t.Parallel()
	gate := bounded.NewGate(t, "the caller")
	passed := make(chan struct{})
	go func() {
		gate.Pass()
		close(passed)
	}()
	gate.Reached()
	select {
	case <-passed:
		t.Error("it passed a closed gate")
	default:
	}
	gate.Open()
	bounded.Receive(t, "the caller to pass", passed)
	gate.Pass()
	gate.Open()

	// A gate that nobody opens holds up no cleanup.
	passed = make(chan struct{})
	if got := try(t, func(t testing.TB) {
		gate := bounded.NewGate(t, "the caller")
		t.Cleanup(func() { bounded.Receive(t, "the caller", passed) })
		go func() {
			gate.Pass()
			close(passed)
		}()
		gate.Reached()
	}); got != "" {
		t.Errorf("the failures are %q", got)
	}
	wantFailure(t, bounded.Limit, func(t testing.TB) { bounded.NewGate(t, "the caller").Pass() },
		"waited 2m0s for the test to let the caller go on")
	wantFailure(t, bounded.Limit, func(t testing.TB) { bounded.NewGate(t, "the caller").Reached() }, "waited 2m0s for the caller")
}

func TestLines(t *testing.T) {
	t.Parallel()
	var lines bounded.Lines
	logger := lines.Logger()
	go func() {
		_, _ = fmt.Fprint(&lines, "one\n\ntwo\nthr")
		_, _ = fmt.Fprint(&lines, "ee\nfour\nfi")
		logger.Debug("five")
	}()
	if got := []string{lines.Next(t), lines.Next(t), lines.Find(t, "hre")}; !slices.Equal(got, []string{"one", "", "three"}) {
		t.Errorf("the lines are %q", got)
	}
	if got := lines.Match(t, regexp.MustCompile(`(?s)(t..).*msg=(\w+)\n`)); got[1] != "two" || got[2] != "five" {
		t.Errorf("the match is %q", got)
	}
	if got := lines.Rest(); len(got) != 2 || got[0] != "four" || len(lines.Rest()) != 0 {
		t.Errorf("the rest is %q", got)
	}
	wantFailure(t, bounded.Limit, func(t testing.TB) { lines.Find(t, "six") }, `for a line with "six"; last seen:`, "three")
	wantFailure(t, bounded.Limit, func(t testing.TB) { lines.Match(t, regexp.MustCompile(`x+y`)) }, `for output that matches "x+y"`, "three")
}

func TestSQL(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "create table n (n integer); insert into n values (1), (2)")
	bounded.Exec(t, pool, "insert into n values ($1)", 3)
	if n := bounded.Value[int](t, pool, "select sum(n) from n"); n != 6 {
		t.Errorf("the sum is %d", n)
	}
	if list := bounded.Column[int](t, pool, "select n from n order by n"); !slices.Equal(list, []int{1, 2, 3}) {
		t.Errorf("the column is %v", list)
	}
	for sql, run := range map[string]func(t testing.TB, sql string){
		"select nothing":      func(t testing.TB, sql string) { bounded.Exec(t, pool, sql) },
		"select n from n - 1": func(t testing.TB, sql string) { bounded.Value[int](t, pool, sql) },
		"select 1/(n-3) from n order by n desc": func(t testing.TB, sql string) {
			bounded.Column[int](t, pool, sql)
		},
		"select from nothing": func(t testing.TB, sql string) { bounded.Column[int](t, pool, sql) },
	} {
		if got := try(t, func(t testing.TB) { run(t, sql) }); !strings.HasPrefix(got, sql+": ERROR") {
			t.Errorf("%s: the failures are %q", sql, got)
		}
	}
}

func TestSQLWaits(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "create table n (n integer)")
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "lock table n")
	inserted := make(chan error, 1)
	go func() {
		_, err := pool.Exec(t.Context(), "insert into n values (1)")
		inserted <- err
	}()
	bounded.UntilBlocked(t, pool, 1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	bounded.UntilSQL(t, pool, "select bool_and(n = $1) from n", 1)
	if err := bounded.Receive(t, "the insert", inserted); err != nil {
		t.Error(err)
	}
	// No row and null are false, until there is one.
	bounded.Exec(t, pool, "truncate n")
	looks := 0
	bounded.True(t, "a look", func() bool {
		if looks++; looks == 3 {
			bounded.Exec(t, pool, "insert into n values (2)")
		}
		return bounded.Value[bool](t, pool, "select coalesce((select n = 2 from n), false)")
	})
	bounded.UntilSQL(t, pool, "select n = 2 from n")
}

func TestProgram(t *testing.T) {
	t.Parallel()
	const script = `trap 'echo draining >&2; exit 3' TERM; echo "listening on $PORT"; while :; do sleep 0.05; done`
	p := bounded.Start(t, bounded.Program{
		Path: "sh", Args: []string{"-c", script}, Env: []string{"PORT=4711"}, Ready: regexp.MustCompile(`on (\d+)`),
	})
	if p.Ready[1] != "4711" || p.Ended() {
		t.Errorf("ready with %q, ended: %v", p.Ready, p.Ended())
	}
	p.Signal(t, syscall.SIGTERM)
	p.Match(t, regexp.MustCompile("draining"))
	var exit *exec.ExitError
	if err := p.Wait(t); !errors.As(err, &exit) || exit.ExitCode() != 3 || !p.Ended() {
		t.Errorf("it ends with %v", err)
	}
	var out strings.Builder
	p = bounded.Start(t, bounded.Program{
		Path: "cat", Stdin: strings.NewReader("in"), Stdout: &out, Dir: "/",
		System: &syscall.SysProcAttr{Setpgid: true},
	})
	if err := p.Wait(t); err != nil || out.String() != "in" || p.Output.String() != "" {
		t.Errorf("cat ends with %v and writes %q, %q", err, out.String(), p.Output)
	}
}

func TestProgramIsKilled(t *testing.T) {
	t.Parallel()
	var p *bounded.Process
	if got := try(t, func(t testing.TB) { p = bounded.Start(t, bounded.Program{Path: "sleep", Args: []string{"1000"}}) }); got != "" {
		t.Error(got)
	}
	if !p.Ended() {
		t.Error("it outlives its test")
	}
	if err := syscall.Kill(p.PID, 0); err == nil {
		t.Error("its process is still there")
	}
}

func TestProgramThatIsNotReady(t *testing.T) {
	t.Parallel()
	got := try(t, func(t testing.TB) {
		bounded.Start(t, bounded.Program{Path: "sh", Args: []string{"-c", "echo no port; exit 4"}, Ready: regexp.MustCompile("ready")})
	})
	if !strings.Contains(got, "sh ended (exit status 4) before") || !strings.Contains(got, "no port") {
		t.Errorf("the failures are %q", got)
	}
	if got := try(t, func(t testing.TB) { bounded.Start(t, bounded.Program{Path: "/nowhere"}) }); !strings.Contains(got, "start /nowhere") {
		t.Errorf("the failures are %q", got)
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	if out, err := bounded.Command(t, "echo", "a", "b").Output(); err != nil || string(out) != "a b\n" {
		t.Errorf("%q, %v", out, err)
	}
	var cmd *exec.Cmd
	if got := try(t, func(t testing.TB) {
		cmd = bounded.Command(t, "sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatalf("%v", err)
		}
	}); got != "" {
		t.Fatal(got)
	}
	if err := bounded.Result(t, "the command", cmd.Wait); err == nil {
		t.Error("it outlives its test")
	}
}

func TestPort(t *testing.T) {
	t.Parallel()
	if port := bounded.Port(t); !regexp.MustCompile(`^\d{2,5}$`).MatchString(port) {
		t.Errorf("the port is %q", port)
	}
}
