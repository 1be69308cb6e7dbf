package main_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Instances that get no event end by the timeout of their state or at the end of their lifetime: each of
// them once, although the replica that created them is killed.
func TestInstancesEndOverTwoReplicas(t *testing.T) {
	t.Parallel()
	const instances = 60
	dsn := dbtest.NewDSN(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	file := filepath.Join(t.TempDir(), "workflow.yaml")
	err = os.WriteFile(file, []byte(`
name: visit
initial: KNOCKING
ttl: { after: 3s, target: EXPIRED }
states:
  KNOCKING: { on: { enter: INSIDE }, after: { 1s: IGNORED } }
  INSIDE: { on: { leave: GONE } }
  IGNORED: { type: final, outcome: failed }
  EXPIRED: { type: final, outcome: expired }
  GONE: { type: final }
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn)}
	doomed, other := start(t, env, "serve"), start(t, env, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", other.url, file)
	for n := range instances {
		a := mustSend(t, http.StatusCreated, http.MethodPost, doomed.url+"/v1/workflows/visit/instances", "", "Idempotency-Key", fmt.Sprint("c", n))
		if n%2 == 0 {
			mustSend(t, http.StatusOK, http.MethodPost, fmt.Sprintf("%s/v1/instances/%s/actions/enter", doomed.url, a.member("id")), "",
				"Idempotency-Key", fmt.Sprint("f", n))
		}
	}
	await := func(n int) {
		t.Helper()
		bounded.UntilSQL(t, conn, "select count(*) >= $1 from pawl.instance where status <> 'active'", n)
	}
	await(1)
	doomed.Kill(t)
	await(instances)
	got := bounded.Value[string](t, conn, `
		select string_agg(format('%s by %s to %s: %s of %s, none early: %s', s.kind, s.event, s.to_state, s.steps, s.instances, s.punctual), '; ' order by s.kind)
		from (
			select h.kind, h.event, h.to_state, count(*) as steps, count(distinct h.instance_id) as instances,
				bool_and(h.at >= (h.payload ->> 'due_at')::timestamptz) as punctual
			from pawl.history h
			where h.kind in ('timeout', 'expired')
			group by 1, 2, 3
		) s`)
	if want := "expired by ttl to EXPIRED: 30 of 30, none early: t; timeout by after:1s to IGNORED: 30 of 30, none early: t"; got != want {
		t.Errorf("the ends of the instances are %s; want %s", got, want)
	}
}
