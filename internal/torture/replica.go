package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A replica is a `pawl serve`, which may be killed and started again. Clients reach it through front, and it reaches
// the servers of the cluster through back, in their order.
type replica struct {
	name    string
	program string
	port    int
	env     []string
	args    []string
	log     *os.File
	sunk    func(line []byte) // Takes each line of its standard output, which is its sink.
	front   *link
	back    []*link

	mu    sync.Mutex // Lets one of start and end run at a time.
	cmd   *exec.Cmd
	ended chan struct{}
}

// An upstream is what a replica takes for a server: one, or the pooler before it.
type upstream struct {
	name string
	port int
}

// newReplica prepares a replica and its links. url returns the connection string of the upstreams at these addresses.
func newReplica(name, program, dir string, upstreams []upstream, url func(at func(int) string) string, sunk func([]byte)) (_ *replica, err error) {
	r := &replica{name: name, program: program, sunk: sunk}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.port, err = freePort(); err != nil {
		return nil, err
	}
	address := local(r.port)
	if r.front, err = newLink(name, address); err != nil {
		return nil, err
	}
	for _, u := range upstreams {
		back, err := newLink(name+"-"+u.name, local(u.port))
		if err != nil {
			return nil, err
		}
		r.back = append(r.back, back)
	}
	r.args = []string{"serve", "--listen", address, "--sink", "stdout:?from=start", "--webhook-allow-private", "--webhook-backoff-base", "500ms"}
	r.env = []string{"DATABASE_URL=" + url(func(i int) string { return r.back[i].address() })}
	r.log, err = os.Create(filepath.Join(dir, name+".log"))
	return r, err
}

// start starts the process, which need not be ready when start returns.
func (r *replica) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	cmd := exec.Command(r.program, r.args...)
	cmd.Env = append(os.Environ(), r.env...)
	cmd.Stderr = r.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", r.name, err)
	}
	ended := make(chan struct{})
	r.cmd, r.ended = cmd, ended
	go func() {
		defer close(ended)
		// The kernel keeps what a killed process has written, so that the sink has got it.
		lines := bufio.NewReaderSize(out, 1<<20)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				break // A torn line was not published.
			}
			r.sunk(line)
		}
		_ = cmd.Wait() // How it ends is seen in its log.
	}()
	return nil
}

// signal sends a signal to the process, if it runs.
func (r *replica) signal(s os.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return nil
	}
	if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", r.name, err)
	}
	return nil
}

// end signals the process and waits for its end. One that does not end within a minute is killed.
func (r *replica) end(s os.Signal) error {
	if err := r.signal(s); err != nil {
		return err
	}
	r.mu.Lock()
	ended := r.ended
	r.mu.Unlock()
	if ended == nil {
		return nil
	}
	select {
	case <-ended:
		return nil
	case <-time.After(time.Minute):
	}
	if err := r.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-ended
	return fmt.Errorf("%s did not end within a minute of %v", r.name, s)
}

// ready waits until the replica says so, on its own port.
func (r *replica) ready(ctx context.Context, within time.Duration) error {
	return until(ctx, within, r.name+" to be ready", func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", r.port), nil)
		if err != nil {
			return false, err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false, err
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode == http.StatusOK, nil
	})
}

// base is where clients reach the replica.
func (r *replica) base() string { return "http://" + r.front.address() }

func (r *replica) close() {
	_ = r.signal(syscall.SIGCONT)
	_ = r.end(syscall.SIGKILL)
	for _, l := range append([]*link{r.front}, r.back...) {
		if l != nil {
			l.close()
		}
	}
	if r.log != nil {
		_ = r.log.Close()
	}
}
