package dbtest

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// stopClock replaces pawl.now(), once per database, by a function that reads a table. To move the clock is then to
// update the table. Replacing the function invalidates the plans that other connections have cached with it. The
// function runs with the privileges of its caller, so everybody may read the table.
const stopClock = `
do $$
begin
  perform pg_advisory_xact_lock(hashtextextended('dbtest.clock', 0));
  if to_regclass('dbtest.clock') is null then
    create schema dbtest;
    grant usage on schema dbtest to public;
    create table dbtest.clock (only_row boolean primary key default true check (only_row), now timestamptz not null);
    grant select on dbtest.clock to public;
    insert into dbtest.clock (now) values (clock_timestamp());
    create or replace function pawl.now() returns timestamptz
    language sql volatile parallel safe
    as 'select c.now from dbtest.clock c';
  end if;
end $$`

// SetClock makes pawl.now() stand still at a time, to the microsecond, for all connections to the database. The
// pool's role must own the schema, as New's does. Other clocks go on: clock_timestamp(), and the program's.
func SetClock(t testing.TB, pool *pgxpool.Pool, at time.Time) {
	t.Helper()
	moveClock(t, pool, "update dbtest.clock set now = $1", at)
}

// Advance moves pawl.now() ahead. A clock that was not set yet stops at the present time, and is moved from there.
func Advance(t testing.TB, pool *pgxpool.Pool, d time.Duration) {
	t.Helper()
	moveClock(t, pool, "update dbtest.clock set now = now + $1", d)
}

func moveClock(t testing.TB, pool *pgxpool.Pool, sql string, arg any) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), stopClock); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), sql, arg)
		return err
	})
	if err != nil {
		t.Fatalf("dbtest: move the clock: %v", err)
	}
}
