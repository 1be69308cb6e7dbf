package main_test

import (
	"regexp"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Each migration is taken back and applied again under a running service. Whatever version the schema
// has, the workers go on running; at the latest one they work, without a restart.
func TestMigrationsUnderWorkers(t *testing.T) {
	t.Parallel()
	ctx := bounded.Context(t)
	dsn := dbtest.NewDSN(t)
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	status, err := db.Status(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	workers := bounded.Start(t, bounded.Program{
		Path: program, Args: []string{"serve", "--no-api"}, Env: []string{"DATABASE_URL=" + dsn},
		Ready: regexp.MustCompile(`working, without an API`),
	})
	for steps := range len(status) {
		for step := range steps + 1 {
			if err := db.Down(ctx, dsn); err != nil {
				t.Fatal(err)
			}
			// They meet this version, and say what they lack.
			version := len(status) - step - 1
			if version == 0 {
				workers.Match(t, regexp.MustCompile(`level=(WARN|ERROR).*schema \\"pawl\\" does not exist`))
			}
		}
		if err := db.Up(ctx, dsn); err != nil {
			t.Fatal(err)
		}
		// A timeout is ended, so the workers have found the schema again.
		bounded.Exec(t, conn, `select pawl.register_workflow('{"name": "visit", "initial": "KNOCKING", "states": {
			"KNOCKING": {"on": {"enter": [{"target": "INSIDE"}]}, "after": {"1s": [{"target": "INSIDE"}]}},
			"INSIDE": {"type": "final"}}}')`)
		bounded.Exec(t, conn, "select pawl.create_one('visit')")
		bounded.UntilSQL(t, conn, "select exists (select from pawl.instance where status = 'completed')")
	}
	if workers.Ended() {
		t.Errorf("the workers ended: %v", workers.Wait(t))
	}
}
