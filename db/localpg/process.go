package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// process is one life of the postmaster.
type process struct {
	cmd   *exec.Cmd
	pid   int
	asked atomic.Bool   // this package has told it to end
	done  chan struct{} // closed when it has ended
	err   error         // why it died, set before done is closed; nil if asked
}

// launch starts the postmaster.
func (s *Server) launch() (*process, error) {
	info, err := s.output.Stat()
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	cmd := exec.Command(filepath.Join(s.bin.Dir, "postgres"), s.args...)
	cmd.Env = environ()
	// The output goes to a file and not to a pipe: nothing has to be copied, and the server can outlive this process.
	cmd.Stdout, cmd.Stderr = s.output, s.output
	// With a session of its own the server gets no ^C. It is stopped when this process has finished its work.
	s.account.become(cmd, s.home)
	cmd.SysProcAttr.Setsid = true
	if !s.detached {
		dieWithParent(cmd.SysProcAttr, s.temp)
	}

	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go s.supervise(p, started, info.Size())
	if err := <-started; err != nil {
		return nil, fmt.Errorf("localpg: start PostgreSQL: %w", err)
	}
	return p, nil
}

// supervise starts the process and waits for its end, on one thread. Linux signals the death of a parent when the
// thread ends that made the child, and Go may end a thread at any time unless a goroutine is locked to it.
func (s *Server) supervise(p *process, started chan<- error, logStart int64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	p.pid = p.cmd.Process.Pid
	started <- nil

	err := p.cmd.Wait()
	if !p.asked.Load() {
		if err == nil {
			err = errors.New("it was shut down by somebody else")
		}
		p.err = fmt.Errorf("localpg: PostgreSQL ended: %w: %s", err, s.lastWords(logStart))
	}
	close(p.done)
}

// lastWords returns the line of this run's output that says why it ended.
func (s *Server) lastWords(logStart int64) string {
	const enough = 16 << 10
	info, err := s.output.Stat()
	if err != nil {
		return "its output cannot be read"
	}
	from := max(logStart, info.Size()-enough)
	tail := make([]byte, info.Size()-from)
	n, _ := s.output.ReadAt(tail, from)
	if line := complaint(tail[:n]); line != "" {
		return line
	}
	return "it printed nothing"
}

// end stops the process: by a fast shutdown if it takes no longer than fast, then by an immediate one, then by
// SIGKILL.
func (p *process) end(ctx context.Context, fast time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		within time.Duration
	}{{syscall.SIGINT, fast}, {syscall.SIGQUIT, immediateWithin}} {
		_ = p.cmd.Process.Signal(step.signal) // fails only if it has ended, which is seen next
		limit := time.NewTimer(step.within)
		giveUp := ctx.Done()
		if step.signal == syscall.SIGQUIT {
			giveUp = nil // the server must end even if the caller's context has
		}
		select {
		case <-p.done:
			limit.Stop()
			return nil
		case <-giveUp:
		case <-limit.C:
		}
		limit.Stop()
	}
	return p.kill()
}

// kill ends the process and its children at once.
func (p *process) kill() error {
	select {
	case <-p.done:
		return nil // its children end by themselves when they see that it is gone
	default:
	}
	if !killTree(p.pid) {
		return fmt.Errorf("localpg: PostgreSQL (process %d) does not end", p.pid)
	}
	<-p.done
	return nil
}

// killTree kills a postmaster and its children, and reports whether all are gone. The postmaster is suspended first,
// so that it makes no more children. A signal to its process group would not reach them: they have groups of their own.
func killTree(pid int) bool {
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	kids := children(pid)
	// The postmaster is suspended a moment after the call.
	for again := children(pid); !slices.Equal(kids, again); again = children(pid) {
		kids = again
	}
	all := append([]int{pid}, kids...)
	for _, id := range all {
		_ = syscall.Kill(id, syscall.SIGKILL)
	}
	return waitGone(context.Background(), immediateWithin, all...)
}

// waitGone waits until none of the processes is alive, and returns false if that takes too long.
func waitGone(ctx context.Context, within time.Duration, pids ...int) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(gonePoll)
	defer tick.Stop()
	for slices.ContainsFunc(pids, alive) {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// alive reports whether a process is alive. A zombie is not, though its parent may never collect it.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return (err == nil || errors.Is(err, syscall.EPERM)) && !zombie(pid)
}

// environ returns the environment of this process without the variables that change the server or its language, and
// with the language that complaint reads.
func environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") || strings.HasPrefix(v, "LANG")
	})
	return append(env, "LC_ALL=C")
}
