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
	asked atomic.Bool   // told to end by us
	done  chan struct{} // closed when it is gone
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
	// A file and not a pipe: nothing has to be copied, and the server can outlive us.
	cmd.Stdout, cmd.Stderr = s.output, s.output
	// A session of its own: ^C is for us, and we end the server when our work is done.
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

// supervise starts the process and waits for its end, on one thread that it keeps. "The parent's death" that
// Linux signals to a child is that of the thread that made it, and Go ends threads as it sees fit.
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

// lastWords returns the line of this run's output that says most about its end.
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
		_ = p.cmd.Process.Signal(step.signal) // fails only if it is gone, which is seen next
		limit := time.NewTimer(step.within)
		giveUp := ctx.Done()
		if step.signal == syscall.SIGQUIT {
			giveUp = nil // a cancelled caller still wants the server gone
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
		return nil // its children are PostgreSQL's business: they end when they see it gone
	default:
	}
	if !killTree(p.pid) {
		return fmt.Errorf("localpg: PostgreSQL (process %d) does not end", p.pid)
	}
	<-p.done
	return nil
}

// killTree kills a postmaster and its children and reports whether all are gone. The postmaster is stopped first
// so that it makes no more children; they have process groups of their own, so the group cannot be used.
func killTree(pid int) bool {
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	kids := children(pid)
	// The stop takes effect a moment after the call.
	for again := children(pid); !slices.Equal(kids, again); again = children(pid) {
		kids = again
	}
	all := append([]int{pid}, kids...)
	for _, id := range all {
		_ = syscall.Kill(id, syscall.SIGKILL)
	}
	return waitGone(context.Background(), immediateWithin, all...)
}

// waitGone waits until none of the processes is alive.
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

// alive tells whether a process still does anything: a zombie does not, and its parent may never collect it.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return (err == nil || errors.Is(err, syscall.EPERM)) && !zombie(pid)
}

// environ is our environment without what would change the server behind the caller's back, and with messages
// in the language that complaint reads.
func environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") || strings.HasPrefix(v, "LANG")
	})
	return append(env, "LC_ALL=C")
}
