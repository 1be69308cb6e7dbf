package fsmtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Counts counts the rows of every table that a command may write.
func Counts(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	return bounded.Value[string](t, pool, `select concat_ws(' ',
		(select count(*) from pawl.instance), (select count(*) from pawl.history),
		(select count(*) from pawl.idempotency_key), (select count(*) from pawl.timer),
		(select sum(version) from pawl.instance), (select count(*) from pawl.workflow))`)
}

// Waiting is a condition: $1 backends wait for a lock that a call of pawl.fire needs.
const Waiting = `select count(*) = $1 from pg_stat_activity
	where datname = current_database() and wait_event_type = 'Lock' and query like '%pawl.fire%'`

// Hold locks an instance in a transaction that goes on until release.
func Hold(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) (release func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from pawl.instance where id = $1 for update", id); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		if err := tx.Rollback(bounded.Context(t)); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	return release
}

// A Spy is a tracer that calls its functions at the start and the end of each query. Nil functions are not called.
type Spy struct {
	Started, Ended func(sql string, args []any)
}

type spyKey struct{}

// TraceQueryStart calls Started.
func (s Spy) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if s.Started != nil {
		s.Started(q.SQL, q.Args)
	}
	return context.WithValue(ctx, spyKey{}, q)
}

// TraceQueryEnd calls Ended.
func (s Spy) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if q, ok := ctx.Value(spyKey{}).(pgx.TraceQueryStartData); ok && s.Ended != nil {
		s.Ended(q.SQL, q.Args)
	}
}

// Spied returns another pool on the same database, with changes to its configuration.
func Spied(t testing.TB, pool *pgxpool.Pool, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config := pool.Config()
	if change != nil {
		change(config)
	}
	other, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	return other
}

// ReadOnly returns a pool whose connections cannot write.
func ReadOnly(t testing.TB, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	return Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	})
}

// RaiseOnce makes the first write of history raise an error with the SQLSTATE, and no later one: a sequence
// is not rolled back. It may be called once for each code.
func RaiseOnce(t testing.TB, pool *pgxpool.Pool, code string) {
	t.Helper()
	bounded.Exec(t, pool, `create sequence public.raised_`+code)
	bounded.Exec(t, pool, fmt.Sprintf(`create function public.raise_%[1]s() returns trigger language plpgsql security definer as $$
		begin
			if nextval('public.raised_%[1]s') = 1 then raise exception 'once' using errcode = '%[2]s'; end if;
			return new;
		end $$`, code, strings.ToUpper(code)))
	bounded.Exec(t, pool, fmt.Sprintf(`create trigger raise_%[1]s before insert on pawl.history for each row execute function public.raise_%[1]s()`, code))
}
