package access_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// newAuditor returns an auditor that does not run, and the owner's pool.
func newAuditor(t *testing.T, log *slog.Logger) (*access.Auditor, *pgxpool.Pool) {
	t.Helper()
	pool := dbtest.New(t)
	own, err := db.Open(t.Context(), dbtest.DSN(pool), db.Config{})
	if err != nil {
		t.Fatal(err)
	}
	service := fsm.New(own, fsm.Config{})
	t.Cleanup(func() {
		service.Close()
		own.Close()
	})
	return access.NewAuditor(service, log), pool
}

func refusal(tenant string, n int) access.Note {
	return access.Note{
		Tenant: tenant, Caller: fsm.Caller{Actor: fmt.Sprint("actor ", n), Address: "192.0.2.1", RequestID: fmt.Sprint("request ", n)},
		Action: "getInstance", Outcome: "forbidden", Reason: "no",
	}
}

// However many callers are refused, few rows wait, none is lost from the counts, and a flood in one tenant takes no
// place from another's rows.
func TestAuditorHoldsFewRows(t *testing.T) {
	t.Parallel()
	a, pool := newAuditor(t, slog.New(slog.DiscardHandler))
	for n := range 10000 {
		a.Note(refusal("*", n))
	}
	a.Note(refusal("acme", 1))
	for n := range 1000 {
		a.Note(refusal(fmt.Sprint("tenant ", n), n))
	}
	a.Note(refusal("acme", 1))
	ended, end := context.WithCancel(t.Context())
	end()
	if err := bounded.Result(t, "the auditor", func() error { return a.Run(ended) }); err != nil {
		t.Fatal(err)
	}
	if got, want := bounded.Value[string](t, pool, `
		select concat_ws(' ', sum(count), max(count) filter (where tenant_id = 'acme' and actor = 'actor 1'), max(count) filter (where actor = 'others') > 9000)
		from pawl.audit`), "11002 2 t"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if rows := bounded.Value[int](t, pool, "select count(*) from pawl.audit"); rows > 300 {
		t.Errorf("%d rows waited", rows)
	}
}

// What cannot be written is kept, and counts what comes meanwhile.
func TestAuditorWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	var log bounded.Lines
	a, pool := newAuditor(t, log.Logger())
	bounded.Exec(t, pool, "alter table pawl.audit rename to away")
	stop := bounded.Run(t, "the auditor", a.Run)
	a.Note(refusal("acme", 1))
	log.Find(t, "refusals cannot be written down")
	a.Note(refusal("acme", 1))
	bounded.Exec(t, pool, "alter table pawl.away rename to audit")
	bounded.UntilSQL(t, pool, "select coalesce(sum(count), 0) = 2 from pawl.audit")
	stop()
}
