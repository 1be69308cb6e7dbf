package db_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A URL may name several servers. When another one becomes the primary, the pool leaves the former primary
// at the first write, without a restart.
func TestPoolFindsTheNewPrimary(t *testing.T) {
	t.Parallel()
	servers := [2]*localpg.Server{dbtest.Private(t, nil), dbtest.Private(t, nil)}
	dsns := [2]string{servers[0].DSN(), servers[1].DSN()}
	// writes makes one server take writes and the other refuse them, as a standby does.
	writes := func(primary int) {
		t.Helper()
		for n, dsn := range dsns {
			owner := dial(t, dsn)
			bounded.Exec(t, owner, fmt.Sprintf("alter system set default_transaction_read_only = %t", n != primary))
			bounded.Exec(t, owner, "select pg_reload_conf()")
			bounded.UntilSQL(t, owner, fmt.Sprintf("select current_setting('default_transaction_read_only')::boolean = %t", n != primary))
		}
	}
	for _, dsn := range dsns {
		bounded.Exec(t, dial(t, dsn), "create table public.written (by text)")
	}
	for name, attributes := range map[string]string{"any": "", "read-write": "&target_session_attrs=read-write"} {
		t.Run(name, func(t *testing.T) {
			writes(0)
			pool, err := db.Open(t.Context(), dbtest.AnyOf(t, servers[:]...)+attributes, db.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			calls := session.Pool(pool)
			write := func() error {
				_, err := calls.Exec(t.Context(), "insert into public.written values ($1)", name)
				return err
			}
			if err := write(); err != nil {
				t.Fatal(err)
			}
			writes(1)
			bounded.True(t, "the former primary to refuse", func() bool { return write() != nil || name == "read-write" })
			if name == "any" {
				// The first server of the URL answers. It refuses each write, and no connection to it is kept.
				for range 3 {
					if e, ok := errors.AsType[*pgconn.PgError](write()); !ok || e.Code != "25006" {
						t.Errorf("the former primary: %v", e)
					}
				}
				bounded.True(t, "the connections to it to be closed", func() bool { return pool.Stat().TotalConns() == 0 })
				writes(0)
			}
			bounded.True(t, "a write to be taken", func() bool { return write() == nil })
		})
	}
	if n := bounded.Value[int](t, dial(t, dsns[1]), "select count(*) from public.written where by = 'read-write'"); n == 0 {
		t.Error("nothing was written to the new primary")
	}
}
