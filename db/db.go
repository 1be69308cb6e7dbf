package db

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/session"
)

// Config says how connections behave. Its zero value works.
type Config struct {
	// MaxConns is the size of the pool. Default 20.
	MaxConns int
	// StatementTimeout ends a statement, and with it a guard that runs too long.
	// Default 1 s.
	StatementTimeout time.Duration
	// LockTimeout is how long a statement waits for a lock that another transaction
	// holds. It should stay below StatementTimeout. Default 500 ms.
	LockTimeout time.Duration
	// ConnectTimeout is how long to wait for a new connection. Default 1 s.
	ConnectTimeout time.Duration
	// Tracer, if not nil, is told of each call. Default nil.
	Tracer pgx.QueryTracer
}

func (c Config) withDefaults() Config {
	if c.MaxConns == 0 {
		c.MaxConns = 20
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

// Open returns a pool for the service. It does not connect, so it succeeds while the server is
// away. Queries fail as long as it is away, and succeed again when it has returned.
//
// Its sessions have the settings below, whatever the role and the database have. A parameter of the DSN
// overrides them. Behind a pooler they are in force only for calls that go through package session, as all
// calls of pawl do.
func Open(ctx context.Context, dsn string, config Config) (*pgxpool.Pool, error) {
	config = config.withDefaults()
	pc, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("db: %w", err)
	}
	pc.MaxConns = int32(config.MaxConns)
	pc.ConnConfig.ConnectTimeout = config.ConnectTimeout
	pc.ConnConfig.Tracer = config.Tracer
	session.Use(pc, map[string]string{
		"application_name":                    "pawl",
		"timezone":                            "UTC",
		"statement_timeout":                   strconv.FormatInt(config.StatementTimeout.Milliseconds(), 10),
		"lock_timeout":                        strconv.FormatInt(config.LockTimeout.Milliseconds(), 10),
		"idle_in_transaction_session_timeout": "10000",
		// The pool closes idle connections, and the limits above bound a transaction.
		"idle_session_timeout": "0",
		"transaction_timeout":  "0", // From PostgreSQL 17 on.
		// The engine depends on it: its next statement must see what others committed while it waited
		// for a lock.
		"default_transaction_isolation": "read committed",
		// A name without a schema must be one of PostgreSQL's own.
		"search_path": "pg_catalog, pg_temp",
		// auto lets a list be planned for its arguments at each call.
		"plan_cache_mode": "auto",
		// At this level the server sends its warning that a commit was not waited for. See session.ErrUnreplicated.
		"client_min_messages": "warning",
		// The calls are short and repeated: compiling them costs more than it saves.
		"jit": "off",
	})
	var pool atomic.Pointer[pgxpool.Pool]
	leaveReadOnly(pc, &pool)
	p, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("db: %w", err)
	}
	pool.Store(p)
	return p, nil
}

// leaveReadOnly closes a connection when its server refuses a write, as a standby does. It resets the pool as
// well, since the other connections probably lead to the same server. New connections find the new primary, or
// the same server once it takes writes.
func leaveReadOnly(pc *pgxpool.Config, pool *atomic.Pointer[pgxpool.Pool]) {
	handle := pc.ConnConfig.OnPgError
	pc.ConnConfig.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		if !session.IsReadOnly(err) {
			return handle(conn, err)
		}
		if p := pool.Load(); p != nil {
			p.Reset()
		}
		return false
	}
}

// OneLine returns the text of an error. For a failure to connect the driver writes a line for each of
// its attempts, and it makes two at each address, with TLS and without. OneLine puts these lines into
// one, without those that say the same.
func OneLine(err error) string {
	text := err.Error()
	failed, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return text
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && strings.Contains(refused.Message, "unsupported startup parameter") {
		// This is PgBouncer's message.
		return "the pooler refuses what the URL or PGOPTIONS sets: " + refused.Message +
			"; take it out there, or add it to the pooler's ignore_startup_parameters"
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

// connect makes a connection as the schema's owner.
func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	session.Pin(&config.Config)
	return pgx.ConnectConfig(ctx, config)
}

// Settings are what every replica and every SQL caller of a database must agree on. A nil member
// leaves a setting as it is. Each comment says what a new database has.
type Settings struct {
	// IdempotencyTTL is how long a key is kept. At first 24 h.
	IdempotencyTTL *time.Duration
	// IdempotencyTTLSlides makes a replay start that time again. At first false.
	IdempotencyTTLSlides *bool
	// ContextLimit and PayloadLimit are the largest sizes, in bytes of jsonb text, up to MaxDocument. At first
	// 64 KiB.
	ContextLimit, PayloadLimit *int
	// DefinitionLimit is the largest size, in bytes of jsonb text. At first 1 MiB.
	DefinitionLimit *int
	// StateLimit is the largest number of states of a definition. At first 500.
	StateLimit *int
	// PlanCacheMode is the plan_cache_mode of the engine's functions: auto, force_generic_plan or
	// force_custom_plan. Empty leaves it as it is. At first force_generic_plan, which saves planning
	// at each call. A distributed Postgres that routes calls needs auto.
	PlanCacheMode string
}

// MaxDocument is the largest limit of contexts and payloads, in bytes. A request has at most 1 MiB, of which what
// stands beside the document needs up to 16 KiB. The database has the same bound.
const MaxDocument = 1<<20 - 16<<10

// Check returns an error for a setting that no database takes.
func (s Settings) Check() error {
	for what, limit := range map[string]*int{"context": s.ContextLimit, "payload": s.PayloadLimit} {
		if limit != nil && *limit > MaxDocument {
			return fmt.Errorf("%s limit %d: must be at most %d, since a request has at most 1 MiB with all that is in it", what, *limit, MaxDocument)
		}
	}
	switch s.PlanCacheMode {
	case "", "auto", "force_generic_plan", "force_custom_plan":
		return nil
	default:
		return fmt.Errorf("plan cache mode %q: want auto, force_generic_plan or force_custom_plan", s.PlanCacheMode)
	}
}

// Set changes the settings of a database. The role of the DSN must own the schema.
func Set(ctx context.Context, dsn string, s Settings) error {
	if err := s.Check(); err != nil {
		return fmt.Errorf("set: %w", err)
	}
	conn, err := connect(ctx, dsn)
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
