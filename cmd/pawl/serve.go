package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/fsm/bulk"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/insight"
	"github.com/pawl-fsm/pawl/internal/telemetry"
	"github.com/pawl-fsm/pawl/outbox"
)

// serviceFlags are the flags of dev and serve.
type serviceFlags struct {
	RateLimit         float64       `default:"0" env:"PAWL_RATE_LIMIT" help:"Largest number of requests per second of each subject; 0 for no limit."`
	ListenDatabaseURL string        `env:"PAWL_LISTEN_DATABASE_URL" type:"secret" placeholder:"URL" help:"The same database without the pooler, to listen for notifications; of use only if --database-url leads to a pooler."`
	MaxConns          int           `default:"20" env:"PAWL_MAX_CONNS" help:"Largest number of connections for commands, reads of single instances and workers. One more listens for notifications; the outbox, the sums of the log and findings add five, one for each sink, and one more for each with audit=true; calls of services add three."`
	MaxReadConns      int           `default:"4" env:"PAWL_MAX_READ_CONNS" help:"Largest number of connections for all other reads, such as lists, history, simulations and back-tests. Tenants take turns for them, and one tenant gets at most half, or a quarter while another one sends commands. Two more are for changes: of workflows, subscriptions and deliveries, and migrations of instances."`
	MaxSlowCalls      int           `default:"2" env:"PAWL_MAX_SLOW_CALLS" help:"Largest number of calls at a time, for creates and for events each, with commands that were slow before: because of their guards, or because another transaction had their instance locked."`
	MaxQueue          int           `default:"8192" env:"PAWL_MAX_QUEUE" help:"Largest number of commands of one tenant that may wait. All tenants together have twice as many places, and a tenant gets fewer while others wait. Further commands are answered with 503."`
	GuardTimeout      time.Duration `default:"1s" env:"PAWL_GUARD_TIMEOUT" help:"Longest time of a guard, and of any statement."`
	LockTimeout       time.Duration `default:"500ms" env:"PAWL_LOCK_TIMEOUT" help:"Longest wait for an instance that another transaction has locked."`
	RetentionFloor    time.Duration `default:"24h" env:"PAWL_RETENTION_FLOOR" help:"Shortest retention with which a workflow can be registered; 0s for any."`
	ShutdownDelay     time.Duration `default:"0s" env:"PAWL_SHUTDOWN_DELAY" help:"How long to go on serving after SIGTERM, while /readyz answers 503, so that load balancers stop sending requests first. A second SIGTERM ends it."`
	ShutdownTimeout   time.Duration `default:"10s" env:"PAWL_SHUTDOWN_TIMEOUT" help:"Longest time from SIGTERM, or from the end of the shutdown delay, to the end of the process. Requests may take four fifths of it; streams, waits, simulations and back-tests end at once."`
	API               bool          `name:"api" default:"true" negatable:"" env:"PAWL_API" help:"Serve the HTTP API; without it the process does not listen."`
	Workers           bool          `default:"true" negatable:"" env:"PAWL_WORKERS" help:"Run the background workers: fire timeouts, number the log, fold it for lists and statistics, find instances that are stuck, purge what is past its time, send webhooks, publish to sinks, call services for tasks. At least one process must run them."`
	webFlags
	telemetryFlags
	authFlags
	sinkFlags
	webhookFlags
	connectionFlags
	invokeFlags
}

// Validate refuses a process that would have nothing to do, and flags that contradict each other.
func (s *serviceFlags) Validate() error {
	if !s.API && !s.Workers {
		return errors.New("--no-api and --no-workers leave nothing to do: give only one of them")
	}
	if s.MaxReadConns < 1 {
		return errors.New("--max-read-conns must be at least 1")
	}
	if !(s.RateLimit >= 0) { // Nor is it NaN.
		return errors.New("--rate-limit must not be negative")
	}
	if s.RetentionFloor < 0 {
		return errors.New("--retention-floor must not be negative")
	}
	if s.MaxQueue < 1 {
		return errors.New("--max-queue must be at least 1")
	}
	if s.ShutdownDelay < 0 {
		return errors.New("--shutdown-delay must not be negative")
	}
	if s.MaxSlowCalls < 1 {
		return errors.New("--max-slow-calls must be at least 1")
	}
	return errors.Join(s.webFlags.Validate(), s.telemetryFlags.Validate(), s.authFlags.Validate(), s.sinkFlags.Validate(), s.webhookFlags.Validate(), s.invokeFlags.Validate())
}

// serveCommand is `pawl serve`: one replica of the service.
type serveCommand struct {
	Listen string `default:":8080" env:"PAWL_LISTEN" help:"Address to listen on."`
	roleFlags
	serviceFlags
}

// Validate refuses an empty URL, and flags that contradict each other.
func (s *serveCommand) Validate() error {
	return errors.Join(s.roleFlags.Validate(), s.serviceFlags.Validate())
}

func (s *serveCommand) Run(c *console) error {
	return s.serve(c, s.DatabaseURL, s.Listen, nil, func(addr net.Addr) {
		if os.Getenv(secretKeyVariable) == "" {
			c.log.Warn("secrets of webhooks and connections are stored as they are: give a key in " + secretKeyVariable + ", which 'pawl secret key' makes")
		}
		if addr == nil {
			c.log.Info("working, without an API")
			return
		}
		c.log.Info("serving", "address", addr.String())
	})
}

// outboxTimeout is the longest time of a statement of the outbox. Some of these read many rows. It is
// shorter than a lease.
const outboxTimeout = 5 * time.Second

// pushTimeout is how long the end of the process waits for a collector.
const pushTimeout = time.Second

// serve runs the API and the background workers until one of them fails or the context ends, and for the shutdown delay
// after that. Then it stops in this order: requests are finished, the workers end, waiting commands are answered, and the
// connections are closed. prepare, which may be nil, is called before the API listens. started is called when
// everything runs: with the address that the API listens on, or with nil if there is no API.
func (s *serviceFlags) serve(c *console, dsn, listen string, prepare func(*fsm.Service) error, started func(net.Addr)) error {
	if s.API {
		if err := s.authFlags.check(listen); err != nil {
			return err
		}
	}
	if os.Getenv("GOGC") == "" {
		// The heap holds a few megabytes. Collecting each time it doubles would take a sixth of the
		// service's CPU time.
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// Clients can make the heap larger for a time. Then it is collected more often.
		debug.SetMemoryLimit(256 << 20)
	}
	meters, err := s.telemetry(c)
	if err != nil {
		return err
	}
	needed := s.privileges()
	pool, err := openDatabase(c, dsn, db.Config{
		MaxConns: s.MaxConns, StatementTimeout: s.GuardTimeout, LockTimeout: s.LockTimeout, Tracer: meters.Tracer("commands"),
	}, needed...)
	if err != nil {
		return err
	}
	var end time.Time // When the process must have ended, once it stops.
	closePool := func(pool *pgxpool.Pool) {
		if end.IsZero() {
			end = time.Now().Add(s.ShutdownTimeout)
		}
		closePool(pool, time.Until(end))
	}
	defer closePool(pool)
	readPool, err := db.Open(c, dsn, db.Config{
		MaxConns: s.MaxReadConns + 2, StatementTimeout: s.GuardTimeout, LockTimeout: s.LockTimeout, Tracer: meters.Tracer("reads"),
	})
	if err != nil {
		return err
	}
	defer closePool(readPool)
	// The outbox reads many rows at a time. It has connections of its own, so that no request waits
	// for one that it uses.
	outboxPool, err := db.Open(c, dsn, db.Config{MaxConns: 4 + 2*len(s.Sinks), StatementTimeout: outboxTimeout, LockTimeout: outboxTimeout, Tracer: meters.Tracer("outbox")})
	if err != nil {
		return err
	}
	defer closePool(outboxPool)
	// An instance that somebody has locked must not hold up the results of calls for long.
	invokePool, err := db.Open(c, dsn, db.Config{MaxConns: invokeConns, StatementTimeout: outboxTimeout, LockTimeout: s.LockTimeout, Tracer: meters.Tracer("invoke")})
	if err != nil {
		return err
	}
	defer closePool(invokePool)
	if err := s.logStart(c, listen); err != nil {
		return err
	}
	sealing, err := secretKeys()
	if err != nil {
		return err
	}
	hub := live.NewHub(pool, live.HubConfig{ListenURL: s.ListenDatabaseURL, Logger: c.log})
	notifier := live.NewNotifier(pool, hub)
	defer notifier.Close()
	// When the last command has its reply, and while there are connections.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c), pushTimeout)
		defer cancel()
		meters.Close(ctx)
	}()
	tally := insight.NewTally(insight.TallyConfig{Logger: c.log})
	service := fsm.New(pool, fsm.Config{
		Reads: readPool, Probe: meters.Probe().And(tally.Probe()), Trace: meters.Trace, Privileges: parts(needed), Moved: notifier.Moved, Webhooks: s.policy(), Keys: sealing, Variables: s.ConnectionEnv, UnverifiedActors: s.isOpen(), RetentionFloor: s.RetentionFloor, SlowCalls: s.MaxSlowCalls, MaxQueue: s.MaxQueue, CallTimeout: max(s.GuardTimeout, s.LockTimeout) + 500*time.Millisecond,
	})
	defer service.Close()
	if err := measure(meters, service, telemetry.Pools{"commands": pool, "reads": readPool, "outbox": outboxPool, "invoke": invokePool}); err != nil {
		return err
	}
	if prepare != nil {
		if err := prepare(service); err != nil {
			return err
		}
	}
	if s.API && s.isOpen() {
		if err := checkTenant(c, service, s.Tenant); err != nil {
			return err
		}
	}
	group, failed := errgroup.WithContext(context.WithoutCancel(c))
	serving, stopServing := context.WithCancel(failed)
	defer stopServing()
	// The workers run until the last request is finished.
	working, stopWorking := context.WithCancel(context.WithoutCancel(c))
	defer stopWorking()
	if err := s.serveMetrics(working, c, meters, group); err != nil {
		return err
	}
	var addr net.Addr
	drain := func(context.Context) error { return nil }
	if s.API {
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		addr = listener.Addr()
		auditor := access.NewAuditor(service, c.log)
		server, err := s.server(serving, c, service, hub, addr, auditor, meters)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		group.Go(func() error { return auditor.Run(working) })
		group.Go(func() error { return tally.Run(working, service) })
		drain = serveOn(server, listener, group)
		if s.isOpen() {
			c.log.Warn("whoever reaches this address may do everything: --auth tokens wants a token", "address", addr.String())
		}
	}
	group.Go(func() error {
		defer stopWorking()
		s.stay(c, failed)
		c.log.Info("draining")
		end = time.Now().Add(s.ShutdownTimeout)
		stopServing()
		// What is left is for the workers and the connections.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(c), s.ShutdownTimeout*4/5)
		defer cancel()
		return drain(bounded)
	})
	group.Go(func() error { return hub.Run(working) })
	if s.Workers {
		keys := worker.NewKeyPurger(pool, worker.BatchConfig{Logger: c.log})
		group.Go(func() error { return keys.Run(working) })
		timers := worker.NewTimers(pool, worker.TimerConfig{
			Limit: min(250*time.Millisecond, s.GuardTimeout), Fired: notifier.MovedAny, Logger: c.log,
		})
		group.Go(func() error { return timers.Run(working) })
		bulks := bulk.NewWorker(pool, service, bulk.WorkerConfig{Moved: notifier.Moved, Logger: c.log})
		group.Go(func() error { return bulks.Run(working) })
		usage := worker.NewUsageCounter(pool, worker.BatchConfig{Logger: c.log})
		group.Go(func() error { return usage.Run(working) })
		instances := worker.NewInstancePurger(pool, worker.BatchConfig{Logger: c.log})
		group.Go(func() error { return instances.Run(working) })
		backlog, err := meters.NewBacklog(backlogOf(outboxPool, service))
		if err != nil {
			return err
		}
		group.Go(func() error { return backlog.Run(working) })
		group.Go(func() error {
			return backlog.ExportSteps(working, func(ctx context.Context, after *int64) (int64, []outbox.OwnStep, error) {
				return outbox.OwnSteps(ctx, outboxPool, after)
			})
		})
		sequencer := outbox.NewSequencer(outboxPool, outbox.SequencerConfig{
			Wanted: hub.Wanted, Wake: hub.WakeSteps, Moved: notifier.Numbered, Leading: backlog.Leading, Logger: c.log,
		})
		group.Go(func() error { return sequencer.Run(working) })
		folder := insight.NewFolder(outboxPool, insight.FolderConfig{Logger: c.log})
		group.Go(func() error { return folder.Run(working) })
		watcher := worker.NewWatcher(outboxPool, worker.WatcherConfig{BatchConfig: worker.BatchConfig{Logger: c.log}, Healed: notifier.MovedAny})
		group.Go(func() error { return watcher.Run(working) })
		s.deliver(working, c, outboxPool, service, hub, meters.Attempt, group)
		if s.Invoke {
			s.call(working, c, invokePool, s.policy(), sealing, s.ConnectionEnv, hub, meters.Attempt, group)
		}
		if err := s.relay(working, c, outboxPool, hub, group); err != nil {
			group.Go(func() error { return err })
		}
	}
	started(addr)
	return group.Wait()
}

// privileges are what the role needs for what the process does.
func (s *serviceFlags) privileges() (needed []db.Privilege) {
	if s.API {
		needed = append(needed, db.API)
	}
	if s.Workers {
		needed = append(needed, db.Worker)
	}
	return needed
}

// stay blocks until the process must stop serving: when a part of it has failed, or when the delay after the first
// signal is over.
func (s *serviceFlags) stay(c *console, failed context.Context) {
	select {
	case <-failed.Done():
		return
	case <-c.Done():
	}
	if s.ShutdownDelay == 0 {
		return
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(again)
	c.log.Info("not ready any more", "serving_for", s.ShutdownDelay)
	select {
	case <-failed.Done():
	case <-again:
	case <-time.After(s.ShutdownDelay):
	}
}

// logStart logs what starts, in one line.
func (s *serviceFlags) logStart(c *console, listen string) error {
	urls, err := s.sinkFlags.parse()
	if err != nil {
		return err
	}
	sinks := make([]string, len(urls))
	for i, u := range urls {
		sinks[i] = u.Consumer // Not the URL, which may have a password.
	}
	auth := cmp.Or(strings.Join(s.ways(), ","), authNone)
	if !s.API {
		listen = "none"
	}
	c.log.Info("starting", "version", version, "schema_version", schema.Version(), "listen", listen, "auth", auth,
		"workers", s.Workers, "sinks", cmp.Or(strings.Join(sinks, ","), "none"))
	return nil
}

// server returns the HTTP server for an address. When the console's context ends, it is not ready any more.
// When the context serving ends, reads that wait are answered.
func (s *serviceFlags) server(serving context.Context, c *console, service *fsm.Service, hub *live.Hub, addr net.Addr, auditor *access.Auditor, meters *telemetry.Telemetry) (*http.Server, error) {
	config := httpapi.Config{RateLimit: s.RateLimit, Auditor: auditor, Leaving: c, Draining: serving, Logger: c.log, Metrics: meters.Handler(), Observe: meters.Request}
	s.webFlags.apply(&config, addr)
	if err := s.authFlags.configure(&config, c.log); err != nil {
		return nil, err
	}
	handler, err := httpapi.New(httpapi.ServicesOf(service, hub), config)
	if err != nil {
		return nil, err
	}
	certificates, err := s.tls(c.log)
	if err != nil {
		return nil, err
	}
	return &http.Server{
		Handler:           handler,
		TLSConfig:         certificates,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelInfo),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		MaxHeaderBytes:    64 << 10,
		// For what the handler does not write itself. It gives its answers other deadlines.
		WriteTimeout: 30 * time.Second,
		IdleTimeout:  2 * time.Minute,
		ConnContext:  limitBuffer,
		// The handler answers OPTIONS * too, since it answers every error as a problem.
		DisableGeneralOptionsHandler: true,
	}, nil
}

// sendBuffer is the size of the kernel's buffer for what a client has not received yet, of which Linux uses twice as
// much. Without it the kernel buffers megabytes for each client, and the service works ahead for clients that
// receive nothing.
const sendBuffer = 256 << 10

// limitBuffer sets the size of a connection's buffer.
func limitBuffer(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer) // Without it the connection works too.
	}
	return ctx
}

// serveOn adds the server to the group. drain lets it finish its requests; if drain's context ends before, it closes
// their connections.
func serveOn(server *http.Server, listener net.Listener, group *errgroup.Group) (drain func(context.Context) error) {
	serve := server.Serve
	if server.TLSConfig != nil {
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	group.Go(func() error {
		if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	return func(ctx context.Context) error {
		if err := server.Shutdown(ctx); err != nil {
			return errors.Join(fmt.Errorf("shutdown: %w", err), server.Close())
		}
		return nil
	}
}

// closePool closes a pool. It waits for connections in use, but no longer than the timeout.
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
