package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
	flightbooking "github.com/pawl-fsm/pawl/examples/flight-booking"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/httpapi"
)

// serviceFlags are those of dev and serve.
type serviceFlags struct {
	Tenant          string        `default:"default" env:"PAWL_TENANT" help:"Tenant that requests act in while there are no tokens."`
	Tokens          string        `type:"existingfile" env:"PAWL_TOKENS" placeholder:"FILE" help:"JSON array of {sha256, subject, tenant, scopes}: the bearer tokens to accept. Without it anybody may do anything."`
	RateLimit       float64       `default:"0" env:"PAWL_RATE_LIMIT" help:"Requests per second of each subject; 0 for no limit."`
	MaxConns        int           `default:"16" env:"PAWL_MAX_CONNS" help:"Connections to the database."`
	MaxQueue        int           `default:"8192" env:"PAWL_MAX_QUEUE" help:"Commands that may wait; beyond it the answer is 503."`
	GuardTimeout    time.Duration `default:"1s" env:"PAWL_GUARD_TIMEOUT" help:"How long a guard, and any statement, may run."`
	LockTimeout     time.Duration `default:"500ms" env:"PAWL_LOCK_TIMEOUT" help:"How long to wait for an instance that another transaction holds."`
	ShutdownTimeout time.Duration `default:"10s" env:"PAWL_SHUTDOWN_TIMEOUT" help:"How long requests may take to finish after SIGTERM."`
	API             bool          `name:"api" default:"true" negatable:"" env:"PAWL_API" help:"Answer requests; without it nothing listens."`
	Workers         bool          `default:"true" negatable:"" env:"PAWL_WORKERS" help:"Do the work in the background: end timeouts, purge expired idempotency keys, remove old instances, send webhooks. Some process must."`
	sinkFlags
	webhookFlags
}

// Validate refuses a process that would have nothing to do.
func (s *serviceFlags) Validate() error {
	if !s.API && !s.Workers {
		return errors.New("--no-api and --no-workers leave nothing to do")
	}
	return errors.Join(s.sinkFlags.Validate(), s.webhookFlags.Validate())
}

type serveCommand struct {
	Listen      string `default:":8080" env:"PAWL_LISTEN" help:"Address to listen on."`
	DatabaseURL string `required:"" env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"The database, as a role with the privileges of 'pawl migrate grants'."`
	serviceFlags
}

// Validate refuses a variable that is set to nothing.
func (s *serveCommand) Validate() error {
	return errors.Join(wantDatabase(s.DatabaseURL), s.serviceFlags.Validate())
}

func (s *serveCommand) Run(c *console) error {
	return s.serve(c, s.DatabaseURL, s.Listen, func(_ *fsm.Service, addr net.Addr) error {
		if addr == nil {
			c.log.Info("working, without an API")
			return nil
		}
		c.log.Info("serving", "address", addr.String())
		return nil
	})
}

// tellWithin is how long a statement may take of who tells the world: less than a lease.
const tellWithin = 5 * time.Second

// serve answers requests and does the work in the background until the context ends. Then
// it finishes what it has: HTTP first, then the commands that wait and the workers, then
// the pool. started gets the address, or nil without the API.
func (s *serviceFlags) serve(c *console, dsn, listen string, started func(*fsm.Service, net.Addr) error) error {
	if os.Getenv("GOGC") == "" {
		// What lives is a few megabytes: collecting each time it doubles would take a sixth
		// of the service's time.
		debug.SetGCPercent(400)
	}
	pool, err := db.Open(c, dsn, db.Config{
		MaxConns: s.MaxConns, StatementTimeout: s.GuardTimeout, LockTimeout: s.LockTimeout,
	})
	if err != nil {
		return err
	}
	defer closePool(pool, s.ShutdownTimeout)
	// Who tells the world reads many rows at a time, and holds up nobody.
	wide, err := db.Open(c, dsn, db.Config{MaxConns: 2 + len(s.Sinks), StatementTimeout: tellWithin, LockTimeout: tellWithin})
	if err != nil {
		return err
	}
	defer closePool(wide, s.ShutdownTimeout)
	hub := live.NewHub(pool, live.HubConfig{Logger: c.log})
	notifier := live.NewNotifier(pool)
	defer notifier.Close()
	service := fsm.New(pool, fsm.Config{
		Moved: notifier.Moved, Webhooks: s.policy(), MaxQueue: s.MaxQueue, CallTimeout: max(s.GuardTimeout, s.LockTimeout) + 500*time.Millisecond,
	})
	defer service.Close()
	group, ctx := errgroup.WithContext(c)
	// The workers go on while requests are finished.
	working, stopWorking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorking()
	var addr net.Addr
	drain := func(context.Context) error { return nil }
	if s.API {
		server, err := s.server(ctx, c, service, hub)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		addr = listener.Addr()
		group.Go(func() error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve: %w", err)
			}
			return nil
		})
		drain = func(ctx context.Context) error {
			if err := server.Shutdown(ctx); err != nil {
				return errors.Join(fmt.Errorf("shutdown: %w", err), server.Close())
			}
			return nil
		}
	}
	group.Go(func() error {
		defer stopWorking()
		<-ctx.Done()
		c.log.Info("draining")
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.ShutdownTimeout)
		defer cancel()
		return drain(bounded)
	})
	group.Go(func() error { return hub.Run(working) })
	if s.Workers {
		keys := worker.NewKeyPurger(pool, worker.KeyPurgerConfig{Logger: c.log})
		group.Go(func() error { return keys.Run(working) })
		timers := worker.NewTimers(pool, worker.TimerConfig{Fired: notifier.MovedAny, Logger: c.log})
		group.Go(func() error { return timers.Run(working) })
		instances := worker.NewInstancePurger(pool, worker.InstancePurgerConfig{Logger: c.log})
		group.Go(func() error { return instances.Run(working) })
		s.deliver(working, c, wide, hub, group)
		if err := s.relay(working, c, wide, hub, group); err != nil {
			group.Go(func() error { return err })
		}
	}
	if err := started(service, addr); err != nil {
		group.Go(func() error { return err })
	}
	return group.Wait()
}

// server makes the API, which does not listen yet. Who waits is answered when serving ends.
func (s *serviceFlags) server(serving context.Context, c *console, service *fsm.Service, hub *live.Hub) (*http.Server, error) {
	config := httpapi.Config{Tenant: s.Tenant, RateLimit: s.RateLimit, Draining: serving, Logger: c.log}
	if s.Tokens != "" {
		data, err := os.ReadFile(s.Tokens)
		if err != nil {
			return nil, fmt.Errorf("tokens: %w", err)
		}
		if config.Tokens, err = httpapi.ParseTokens(data); err != nil {
			return nil, err
		}
	}
	handler, err := httpapi.New(httpapi.ServicesOf(service, hub), config)
	if err != nil {
		return nil, err
	}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// OPTIONS * is for the handler too, which answers every error as a problem.
		DisableGeneralOptionsHandler: true,
	}, nil
}

// closePool closes a pool, but does not wait for ever for a connection in use.
func closePool(pool *pgxpool.Pool, timeout time.Duration) {
	done := make(chan struct{})
	go func() {
		pool.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(timeout):
	}
}

type devCommand struct {
	Listen      string `default:"127.0.0.1:8080" env:"PAWL_LISTEN" help:"Address to listen on; port 0 takes a free one."`
	DataDir     string `default:".pawl" type:"path" env:"PAWL_DATA_DIR" help:"Folder of the private Postgres."`
	DatabaseURL string `env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"Use this database rather than a private one."`
	serviceFlags
}

func (d *devCommand) Run(c *console) error {
	dsn := d.DatabaseURL
	if dsn == "" {
		server, err := localpg.Start(c, localpg.Config{Dir: d.DataDir, Logger: c.log})
		if err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(c), d.ShutdownTimeout)
			defer cancel()
			if err := server.Stop(ctx); err != nil {
				c.log.Error("the private Postgres did not stop", "error", err)
			}
		}()
		dsn = server.DSN()
		var died context.CancelCauseFunc
		c.Context, died = context.WithCancelCause(c.Context)
		defer died(nil)
		go func() {
			select {
			case <-server.Done():
				if err := server.Err(); err != nil {
					c.log.Error("the private Postgres died", "error", err)
				}
				died(server.Err())
			case <-c.Done():
			}
		}()
	}
	if err := db.Up(c, dsn); err != nil {
		return err
	}
	return d.serve(c, dsn, d.Listen, func(service *fsm.Service, addr net.Addr) error {
		if err := registerExample(c, service); err != nil {
			return err
		}
		if addr == nil {
			c.printf("pawl works without an API\nits database is %s\n", dsn)
			return nil
		}
		c.printf(devBanner, addr, dsn)
		return nil
	})
}

const devBanner = `pawl listens on http://%[1]s
its database is %[2]s

try it:
  curl -i http://%[1]s/v1/workflows/flight-booking/instances -H 'Content-Type: application/json' -H "Idempotency-Key: $(date +%%s%%N)" -d '{"context": {"flight_id": "LH454", "price": 420}}'
  curl 'http://%[1]s/v1/instances?workflow=flight-booking'
  curl http://%[1]s/v1/workflows/flight-booking
`

// registerExample registers flight-booking, which is there from the second start on.
func registerExample(ctx context.Context, service *fsm.Service) error {
	definition, err := toJSON(flightbooking.Definition)
	if err != nil {
		return err
	}
	_, err = lifecycle.New(service).Register(ctx, "flight-booking", definition, "pawl dev", false)
	return err
}
