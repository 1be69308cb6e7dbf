package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migrations holds the goose files, at its root.
func Migrations() fs.FS {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // The folder is part of the binary.
	}
	return files
}

// Config says how connections behave. Its zero value works.
type Config struct {
	// MaxConns is the size of the pool. Default 16.
	MaxConns int
	// StatementTimeout ends a statement, and with it a guard that runs too long.
	// Default 1 s.
	StatementTimeout time.Duration
	// LockTimeout is how long a statement waits for a row that another transaction
	// holds. It should stay below StatementTimeout. Default 500 ms.
	LockTimeout time.Duration
	// ConnectTimeout is how long to wait for a new connection. Default 1 s.
	ConnectTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.MaxConns == 0 {
		c.MaxConns = 16
	}
	if c.StatementTimeout == 0 {
		c.StatementTimeout = time.Second
	}
	if c.LockTimeout == 0 {
		c.LockTimeout = 500 * time.Millisecond
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = time.Second
	}
	return c
}

// Open makes a pool for the service. It does not connect: a server that is away is met
// at the first query, and one that returns is found again.
func Open(ctx context.Context, dsn string, config Config) (*pgxpool.Pool, error) {
	config = config.withDefaults()
	pc, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("db: %w", err)
	}
	pc.MaxConns = int32(config.MaxConns)
	pc.ConnConfig.ConnectTimeout = config.ConnectTimeout
	set := func(name, value string) {
		if _, given := pc.ConnConfig.RuntimeParams[name]; !given {
			pc.ConnConfig.RuntimeParams[name] = value
		}
	}
	set("application_name", "pawl")
	set("timezone", "UTC")
	set("statement_timeout", strconv.FormatInt(config.StatementTimeout.Milliseconds(), 10))
	set("lock_timeout", strconv.FormatInt(config.LockTimeout.Milliseconds(), 10))
	set("idle_in_transaction_session_timeout", "10000")
	// The calls are short and repeated; compiling them never pays.
	set("jit", "off")
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("db: %w", err)
	}
	return pool, nil
}

// OneLine is the text of an error in one line, if it is that nobody could connect: the driver has
// a line for each attempt, and makes two at each address, with TLS and without.
func OneLine(err error) string {
	text := err.Error()
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return text
	}
	lines := strings.Split(failed.Error(), "\n\t")
	var attempts []string
	for _, line := range lines[1:] {
		if !slices.ContainsFunc(attempts, func(said string) bool { return strings.HasSuffix(said, line) }) {
			attempts = append(attempts, line)
		}
	}
	return strings.Replace(text, failed.Error(), strings.TrimSpace(lines[0]+" "+strings.Join(attempts, "; ")), 1)
}

// migrate runs f with goose on a connection of its own.
func migrate(ctx context.Context, dsn string, f func(*goose.Provider) error) (err error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	conn := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, conn.Close()) }()
	// Look every second, for five minutes.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, Migrations(), goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if err := f(provider); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// Up applies every migration that is missing.
func Up(ctx context.Context, dsn string) error {
	return migrate(ctx, dsn, func(p *goose.Provider) error {
		_, err := p.Up(ctx)
		return err
	})
}

// Down takes back the latest migration, and with it whatever that one held.
func Down(ctx context.Context, dsn string) error {
	return migrate(ctx, dsn, func(p *goose.Provider) error {
		_, err := p.Down(ctx)
		return err
	})
}

// Migration is the state of one migration.
type Migration struct {
	Version   int64
	File      string
	AppliedAt time.Time // Zero if it is pending.
}

// Status lists the migrations in order.
func Status(ctx context.Context, dsn string) ([]Migration, error) {
	var list []Migration
	err := migrate(ctx, dsn, func(p *goose.Provider) error {
		status, err := p.Status(ctx)
		for _, s := range status {
			list = append(list, Migration{Version: s.Source.Version, File: s.Source.Path, AppliedAt: s.AppliedAt})
		}
		return err
	})
	return list, err
}

// Print writes the migrations as the goose files that they are, for pipelines that
// apply schema changes with a tool of their own.
func Print(w io.Writer) error {
	return fs.WalkDir(Migrations(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(Migrations(), path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "-- %s\n%s\n", path, text)
		return err
	})
}

// Settings are what every replica and every SQL caller of a database must agree on.
// A nil member is left as it is.
type Settings struct {
	// IdempotencyTTL is how long a key is remembered; 24 h at first.
	IdempotencyTTL *time.Duration
	// IdempotencyTTLSlides makes a replay start the time again; false at first.
	IdempotencyTTLSlides *bool
	// ContextLimit and PayloadLimit are in bytes of jsonb text; 64 KiB at first.
	ContextLimit, PayloadLimit *int
	// DefinitionLimit is in bytes of jsonb text; 1 MiB at first. StateLimit is 500.
	DefinitionLimit, StateLimit *int
	// PlanCacheMode is that of the engine's functions: force_generic_plan at first,
	// which saves planning each call; auto where a distributed Postgres routes calls.
	PlanCacheMode string
}

// Set changes the settings of a database, as the schema's owner.
func Set(ctx context.Context, dsn string, s Settings) error {
	switch s.PlanCacheMode {
	case "", "auto", "force_generic_plan", "force_custom_plan":
	default:
		return fmt.Errorf("set: plan cache mode %q: want auto, force_generic_plan or force_custom_plan", s.PlanCacheMode)
	}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("set: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			update pawl.setting set
				idempotency_ttl = coalesce($1, idempotency_ttl),
				idempotency_ttl_slides = coalesce($2, idempotency_ttl_slides),
				context_limit = coalesce($3, context_limit),
				payload_limit = coalesce($4, payload_limit),
				definition_limit = coalesce($5, definition_limit),
				state_limit = coalesce($6, state_limit)`,
			s.IdempotencyTTL, s.IdempotencyTTLSlides, s.ContextLimit, s.PayloadLimit, s.DefinitionLimit, s.StateLimit)
		if err != nil || s.PlanCacheMode == "" {
			return err
		}
		_, err = tx.Exec(ctx, strings.ReplaceAll(`
			do $$ declare f regprocedure; begin
				for f in select oid from pg_proc
					where pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and array_to_string(proconfig, ' ') like '%plan_cache_mode=%' loop
					execute format('alter function %s set plan_cache_mode = MODE', f);
				end loop;
			end $$`, "MODE", s.PlanCacheMode))
		return err
	})
	if err != nil {
		return fmt.Errorf("set: %w", err)
	}
	return nil
}
