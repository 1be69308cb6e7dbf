package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
)

var (
	//go:embed bench/workflow.yaml
	benchWorkflow []byte
	//go:embed bench/number.sql
	numberInstances string
)

// benchSchema holds what the bench needs beside pawl's own schema.
const benchSchema = "pawl_bench"

const (
	maxBenchInstances   = 10_000_000
	maxBenchDuration    = 5 * time.Minute
	minBenchDuration    = 100 * time.Millisecond
	maxBenchConnections = 1000
)

// benchCommand measures a service of its own in a process of its own; this process is the
// load generator.
type benchCommand struct {
	Instances   int           `default:"100000" help:"Instances to load before anything is measured."`
	Duration    time.Duration `default:"5s" help:"Time of each measurement."`
	Connections []int         `default:"1,8,64,256" help:"Connections to fire transitions at."`
	Only        []string      `placeholder:"NAME" help:"Measure only these: transitions, references (pgbench, after transitions), creates, batch, replays, reads, hot, mixed, purge, relay, longpoll, webhooks, overload."`
	Grown       bool          `help:"At last fill the tables to 1,000,000 instances, 10,000,000 steps and 5,000,000 keys, and measure again. Takes about four minutes and 8 GB of disk."`
	JSON        string        `name:"json" type:"path" placeholder:"FILE" help:"Write the figures to a file too."`
	DatabaseURL string        `env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"An empty database to use, as its owner, and to leave empty; by default a private Postgres is started."`
}

// Validate keeps a run bounded in time and count.
func (b *benchCommand) Validate() error {
	names := (&bench{}).names()
	switch {
	case b.Instances < 1 || b.Instances > maxBenchInstances:
		return fmt.Errorf("--instances must be from 1 to %d", maxBenchInstances)
	case b.Duration < minBenchDuration || b.Duration > maxBenchDuration:
		return fmt.Errorf("--duration must be from %s to %s", minBenchDuration, maxBenchDuration)
	case len(b.Connections) == 0 || len(b.Connections) > 10:
		return errors.New("--connections must have from 1 to 10 numbers")
	}
	for i, n := range b.Connections {
		switch {
		case n < 1 || n > maxBenchConnections:
			return fmt.Errorf("--connections must be from 1 to %d each", maxBenchConnections)
		case n > b.Instances:
			return errors.New("--instances must not be less than --connections: no two clients share one")
		case slices.Contains(b.Connections[:i], n):
			return fmt.Errorf("--connections has %d twice", n)
		}
	}
	for _, name := range b.Only {
		if !slices.Contains(names, name) {
			return fmt.Errorf("--only: there is no %q; want some of %s", name, strings.Join(names, ", "))
		}
	}
	return nil
}

// bench is one run.
type bench struct {
	*benchCommand
	c       *console
	died    context.CancelCauseFunc
	dsn     string
	conn    *pgx.Conn // The owner's.
	meter   *meter
	address string      // Of the service.
	log     *serviceLog // Of the service.
	stop    func(context.Context) error
	ids     []string // As pawl_bench.instance numbers them.
	pgbench *pgbench // Nil without the program.
	report  benchReport
	run     string // What all keys of this run begin with.
	runs    int    // Of loads, each with keys of its own.
	undo    []func(context.Context) error
}

// cleanUpWithin bounds what a run does when it ends.
const cleanUpWithin = time.Minute

func (b *benchCommand) Run(c *console) (err error) {
	own := *c
	run := &bench{
		benchCommand: b, c: &own, run: strconv.FormatInt(time.Now().UnixNano(), 36), log: &serviceLog{address: make(chan string, 1)},
	}
	run.report = benchReport{Measurements: []*measurement{}, References: []*reference{}, Targets: []headline{}, Remarks: []string{}}
	own.Context, run.died = context.WithCancelCause(c.Context)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c), cleanUpWithin)
		defer cancel()
		if err != nil && own.Err() != nil { // What failed, failed for that.
			err = fmt.Errorf("bench: %w", context.Cause(own))
		}
		for _, undo := range slices.Backward(run.undo) {
			err = errors.Join(err, undo(ctx))
		}
		run.died(nil)
	}()
	return run.all()
}

func (b *bench) all() error {
	var file *os.File
	if b.JSON != "" {
		var err error
		if file, err = os.Create(b.JSON); err != nil { // Before the minutes, not after them.
			return err
		}
		defer file.Close()
	}
	began := time.Now()
	for _, step := range []func() error{b.openDatabase, b.runService, b.describe, b.load} {
		if err := step(); err != nil {
			return err
		}
	}
	b.header()
	failed := b.measureAll()
	if b.c.Err() != nil {
		return failed
	}
	failed = errors.Join(failed, b.check())
	if n, first := b.log.faults(); n > 0 {
		b.remark("The service logged %d errors, the first: %s", n, first)
	}
	if err := b.summary(); err != nil {
		return errors.Join(failed, err)
	}
	b.c.printf("\nThe run took %s.\n", time.Since(began).Round(time.Second))
	if file != nil {
		failed = errors.Join(failed, b.report.write(file))
	}
	return failed
}

// openDatabase makes an empty database, or takes the one that is given if it is empty.
func (b *bench) openDatabase() error {
	b.dsn = b.DatabaseURL
	var bin localpg.Binaries
	postmaster := 0
	if b.dsn == "" {
		server, err := localpg.Start(b.c, localpg.Config{Logger: b.c.log, Settings: map[string]string{
			"max_connections": strconv.Itoa(max(400, slices.Max(b.Connections)+50)),
			"shared_buffers":  "1GB", "max_wal_size": "4GB",
			// A checkpoint by the clock would burden one measurement and not its reference.
			"checkpoint_timeout": "30min",
		}})
		if err != nil {
			return err
		}
		b.undo = append(b.undo, server.Stop)
		go func() {
			select {
			case <-server.Done():
				b.died(fmt.Errorf("the private Postgres ended: %w", cmp.Or(server.Err(), errors.New("it was stopped"))))
			case <-b.c.Done():
			}
		}()
		b.dsn, bin, postmaster = server.DSN(), server.Binaries(), server.PID()
	} else {
		bin, _ = localpg.Find() // PATH may know pgbench all the same.
	}
	conn, err := pgx.Connect(b.c, b.dsn)
	if err != nil {
		return err
	}
	b.conn = conn
	b.undo = append(b.undo, conn.Close)
	if err := b.migrate(); err != nil {
		return err
	}
	if postmaster == 0 {
		postmaster = findPostmaster(b.c, conn)
	}
	b.meter = &meter{conn: conn, postgres: postmaster}
	b.pgbench = findPgbench(bin, b.dsn, conn.Config().Password)
	return nil
}

// migrate deploys the schema, and sees to it that nothing of it is left in the end.
func (b *bench) migrate() error {
	var pawl, own, versions bool
	err := b.conn.QueryRow(b.c, `
		select to_regnamespace('pawl') is not null, to_regnamespace($1) is not null, to_regclass('goose_db_version') is not null`,
		benchSchema).Scan(&pawl, &own, &versions)
	if err != nil {
		return err
	}
	applied := 0
	if versions {
		if err := b.conn.QueryRow(b.c, "select count(*) from goose_db_version where version_id > 0").Scan(&applied); err != nil {
			return err
		}
	}
	switch {
	case pawl:
		return errors.New("bench: the database has a schema pawl, and this would add to it and drop it: give an empty database")
	case own:
		return fmt.Errorf("bench: the database has a schema %s: give an empty database, or drop what an earlier run left", benchSchema)
	case applied > 0:
		return errors.New("bench: the database has migrations by goose that are not pawl's: give an empty database")
	}
	b.undo = append(b.undo, func(ctx context.Context) error { return b.leave(ctx, versions) })
	if err := db.Up(b.c, b.dsn); err != nil {
		return err
	}
	_, err = b.conn.Exec(b.c, "create schema "+benchSchema)
	return err
}

// leave takes back what migrate made.
func (b *bench) leave(ctx context.Context, keepVersions bool) error {
	if b.DatabaseURL == "" {
		return nil // It goes as a whole.
	}
	// The connection of the run may be one that an interruption has closed.
	conn, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "drop schema if exists "+benchSchema+" cascade"); err != nil {
		return err
	}
	list, err := db.Status(ctx, b.dsn)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.AppliedAt.IsZero() {
			continue
		}
		if err := db.Down(ctx, b.dsn); err != nil {
			return err
		}
	}
	if !keepVersions {
		_, err = conn.Exec(ctx, "drop table if exists goose_db_version")
	}
	return err
}

// serviceLog reads what the service says: where it listens, and what goes wrong.
type serviceLog struct {
	mu      sync.Mutex
	rest    []byte
	address chan string
	errors  int
	first   string
	last    string
}

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

func (l *serviceLog) line(text string) {
	l.last = text
	if _, address, ok := strings.Cut(text, "msg=serving address="); ok {
		select {
		case l.address <- address:
		default:
		}
	}
	// That it refuses what has no room is asked of it, and counted by those who are refused.
	if strings.Contains(text, "level=ERROR") && !strings.Contains(text, "too many commands are waiting") {
		if l.errors++; l.errors == 1 {
			l.first = text
		}
	}
}

func (l *serviceLog) faults() (n int, first string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.errors, l.first
}

// ended says why a service that was not asked to is gone.
func (l *serviceLog) ended(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Errorf("the service ended: %w: %s", cmp.Or(err, errors.New("by itself")), l.last)
}

// runService starts the service, and sees to its end.
func (b *bench) runService() error {
	b.undo = append(b.undo, func(ctx context.Context) error {
		if b.stop == nil {
			return nil
		}
		return b.stop(ctx)
	})
	return b.startService()
}

// startService runs `pawl serve` in a process of its own. The environment configures it as
// it would any other, but for what would keep the load out, and for what is given.
func (b *bench) startService(env ...string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "--log-format", "text", "--log-level", "info", "serve", "--listen", "127.0.0.1:0")
	cmd.Stderr = b.log
	cmd.Env = append(append(serviceEnv(os.Environ()), "DATABASE_URL="+b.dsn), env...)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	var asked atomic.Bool
	go func() {
		if err := cmd.Wait(); !asked.Load() {
			b.died(b.log.ended(err))
		}
		close(ended)
	}()
	b.stop = func(ctx context.Context) error {
		asked.Store(true)
		_ = cmd.Process.Signal(syscall.SIGTERM) // It may have ended.
		select {
		case <-ended:
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-ended
		}
		return nil
	}
	select {
	case b.address = <-b.log.address:
	case <-b.c.Done():
		return context.Cause(b.c)
	}
	b.meter.service = cmd.Process.Pid
	return nil
}

// restartService replaces the service by one with another environment.
func (b *bench) restartService(env ...string) error {
	if err := b.stop(b.c); err != nil {
		return err
	}
	return b.startService(env...)
}

func serviceEnv(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		switch name {
		case "DATABASE_URL", "PAWL_DATABASE_URL", "PAWL_TOKENS", "PAWL_TENANT", "PAWL_RATE_LIMIT", "PAWL_API", "PAWL_WORKERS":
			return true
		}
		return false
	})
}

func (b *bench) describe() (err error) {
	if b.report.Machine, err = readMachine(b.c, b.conn); err != nil {
		return err
	}
	b.report.Run = benchParameter{b.Instances, b.Duration.Seconds(), b.warmUp(b.Duration).Seconds()}
	m := b.report.Machine
	b.c.printf("pawl %s, %s, PostgreSQL %s, %d CPUs (%s)\n", m.Pawl, m.Go, m.Postgres, m.CPUs, m.OS)
	b.c.printf("fsync %s, synchronous_commit %s, shared_buffers %s, max_wal_size %s\n",
		m.Settings["fsync"], m.Settings["synchronous_commit"], m.Settings["shared_buffers"], m.Settings["max_wal_size"])
	if b.pgbench == nil {
		b.remark("There is no pgbench on this machine, so there are no references.")
		return nil
	}
	if !b.wants("references") {
		return nil
	}
	if err := b.pgbench.initialise(b.c); err != nil {
		if b.c.Err() != nil {
			return err
		}
		b.remark("There are no references: %v", err)
		b.pgbench = nil
	}
	return nil
}

const (
	loadClients  = 8
	loadPerBatch = 500
	loadWithin   = time.Hour
)

// load creates the instances through POST /v1/batch, and numbers them.
func (b *bench) load() error {
	definition, err := toJSON(benchWorkflow)
	if err != nil {
		return err
	}
	client := clientFlags{Server: "http://" + b.address}
	if _, err := client.do(b.c, call{method: http.MethodPut, path: "/v1/workflows/bench", body: rawJSON(definition)}, nil); err != nil {
		return err
	}
	began := time.Now()
	l := b.creation()
	result, err := l.run(b.c, b.address, []string{""}, 0, loadWithin, nil, nil)
	if err != nil {
		return err
	}
	if result.all != b.Instances {
		return fmt.Errorf("bench: %d of %d instances were created: %s", result.all, b.Instances, result.firstError)
	}
	took := time.Since(began)
	b.c.printf("%d instances created in %.1f s through POST /v1/batch\n\n", b.Instances, took.Seconds())
	if _, err := b.conn.Exec(b.c, numberInstances); err != nil {
		return err
	}
	// Where autovacuum would get to within a minute, in the middle of something.
	if _, err := b.conn.Exec(b.c, "vacuum (analyze) pawl.instance, pawl.history, pawl.idempotency_key"); err != nil {
		return err
	}
	b.ids, err = b.readIDs("select id::text from pawl_bench.instance order by n")
	return err
}

func (b *bench) readIDs(sql string, args ...any) ([]string, error) {
	rows, err := b.conn.Query(b.c, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
