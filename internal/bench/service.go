package bench

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// service is the process that is measured.
type service struct {
	address string // Host and port.
	process int
	log     *serviceLog
	stop    func(context.Context) error // Nil until the process has started.
}

func newService() service { return service{log: &serviceLog{address: make(chan string, 1)}} }

// serviceLog reads the service's log: the address that it listens on, and its errors.
type serviceLog struct {
	mu      sync.Mutex
	rest    []byte // A line without its end.
	address chan string
	errors  int
	first   string // The first error.
	last    string // The last line.
}

// Write reads what the service writes to its standard error.
func (l *serviceLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.line(string(line))
		l.rest = rest
	}
}

// line reads one line. The lock is held.
func (l *serviceLog) line(text string) {
	l.last = text
	if _, address, ok := strings.Cut(text, "msg=serving address="); ok {
		select {
		case l.address <- address:
		default:
		}
	}
	// The overload makes the service refuse commands on purpose; the clients count those.
	if strings.Contains(text, "level=ERROR") && !strings.Contains(text, "too many commands are waiting") {
		if l.errors++; l.errors == 1 {
			l.first = text
		}
	}
}

// faults returns the number of logged errors, and the first of them.
func (l *serviceLog) faults() (n int, first string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.errors, l.first
}

// ended returns the error for a service that ended although nobody stopped it.
func (l *serviceLog) ended(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Errorf("the service ended: %w: %s", cmp.Or(err, errors.New("by itself")), l.last)
}

// runService starts the service, and has it stopped when the run ends.
func (b *benchmark) runService(ctx context.Context) error {
	b.undo = append(b.undo, func(ctx context.Context) error {
		if b.service.stop == nil {
			return nil
		}
		return b.service.stop(ctx)
	})
	return b.startService(ctx)
}

// startService runs `pawl serve` as a process of its own and returns when it listens. The process
// gets the environment of this one, without the variables that would keep the load out, and with
// the variables that are given. If it ends before it is stopped, the run ends.
func (b *benchmark) startService(ctx context.Context, env ...string) error {
	cmd := exec.Command(b.Program, "--log-format", "text", "--log-level", "info", "serve", "--listen", "127.0.0.1:0")
	cmd.Stderr = b.service.log
	cmd.Env = append(append(serviceEnv(os.Environ()), "DATABASE_URL="+b.dsn), env...)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	var asked atomic.Bool
	go func() {
		if err := cmd.Wait(); !asked.Load() {
			b.end(b.service.log.ended(err))
		}
		close(ended)
	}()
	b.service.stop = func(ctx context.Context) error {
		asked.Store(true)
		_ = cmd.Process.Signal(syscall.SIGTERM) // It fails if the process has ended.
		select {
		case <-ended:
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-ended
		}
		return nil
	}
	select {
	case b.service.address = <-b.service.log.address:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.service.process = cmd.Process.Pid
	b.meter.service = cmd.Process.Pid
	return nil
}

// startAnother starts a second service beside that of the run. stop stops it, and must be called in any case.
func (b *benchmark) startAnother(ctx context.Context, env ...string) (another service, stop func() error, err error) {
	first := b.service
	b.service = newService()
	err = b.startService(ctx, env...)
	another = b.service
	b.service, b.meter.service = first, first.process
	return another, func() error {
		if another.stop == nil {
			return nil
		}
		return another.stop(context.WithoutCancel(ctx))
	}, err
}

// restartService replaces the service by one with another environment.
func (b *benchmark) restartService(ctx context.Context, env ...string) error {
	if err := b.service.stop(ctx); err != nil {
		return err
	}
	return b.startService(ctx, env...)
}

// serviceEnv returns the environment without the variables that would change the database, refuse
// the load, or turn off a part of the service.
func serviceEnv(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		switch name {
		case "DATABASE_URL", "PAWL_DATABASE_URL", "PAWL_TOKENS", "PAWL_AUTH", "PAWL_OIDC_ISSUER", "PAWL_TENANT", "PAWL_RATE_LIMIT", "PAWL_API", "PAWL_WORKERS":
			return true
		}
		return strings.HasPrefix(name, "OTEL_") // Of spans and metrics that are pushed.
	})
}
