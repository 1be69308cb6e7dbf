package dbtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A standby has what its primary has, is waited for by the name that it was given, and takes writes once it is promoted.
func TestStandby(t *testing.T) {
	t.Parallel()
	primary := dbtest.Private(t, map[string]string{"work_mem": "5MB"})
	standby := dbtest.Standby(t, primary, "second", map[string]string{"hot_standby_feedback": "on"})
	first, second := dial(t, primary.DSN()), dial(t, standby.DSN())
	bounded.Exec(t, first, "create table public.t (a integer)")
	bounded.UntilSQL(t, second, "select to_regclass('public.t') is not null")
	settings := bounded.Value[string](t, second, "select concat_ws(' ', current_setting('work_mem'), current_setting('hot_standby_feedback'), pg_is_in_recovery())")
	if settings != "5MB on t" {
		t.Errorf("the standby has %s", settings)
	}
	if name := bounded.Value[string](t, first, "select application_name from pg_stat_replication"); name != "second" {
		t.Errorf("the standby is called %s", name)
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	dbtest.Promote(t, standby)
	bounded.Exec(t, dial(t, dbtest.AnyOf(t, primary, standby)+"&target_session_attrs=read-write"), "insert into public.t values (1)")
	if n := bounded.Value[int](t, second, "select count(*) from public.t"); n != 1 {
		t.Error("the new primary has no row")
	}
}

func dial(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	return conn
}
