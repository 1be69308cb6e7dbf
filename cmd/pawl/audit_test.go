package main_test

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Acts on the database and refusals of the service are listed; what still waits is written when the service stops; and
// the owner purges.
func TestAuditCommands(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	owner := []string{"DATABASE_URL=" + dsn}
	service := []string{"DATABASE_URL=" + serviceRole(t, dsn), "PAWL_AUTH=tokens"}
	token := "PAWL_TOKEN=" + strings.TrimSpace(mustPawl(t, owner, "token", "create", "--subject", "anna", "--scope", "audit", "--id", "a1"))
	p := start(t, service, "serve")
	const refusals = 50
	for range refusals {
		if a, err := send(bounded.Context(t), http.MethodGet, p.url+"/v1/instances", ""); err != nil || a.status != http.StatusUnauthorized {
			t.Fatalf("got %+v, %v", a, err)
		}
	}
	list := mustPawl(t, []string{token}, "audit", "list", "--server", p.url, "--action", "token.create", "--target", "a1", "--limit", "0")
	if lines := strings.Split(strings.TrimSpace(list), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "SEQ ") || !strings.Contains(lines[1], "token.create") {
		t.Errorf("the list is\n%s", list)
	}
	if json := mustPawl(t, []string{token}, "audit", "list", "--server", p.url, "--by", "nobody", "--json"); strings.TrimSpace(json) != "[]" {
		t.Errorf("nobody's rows are %s", json)
	}
	p.Signal(t, syscall.SIGTERM)
	if err := p.Wait(t); err != nil {
		t.Fatal(err)
	}
	db := dialDSN(t, dsn)
	if got := bounded.Value[string](t, db, `
		select string_agg(concat_ws(' ', tenant_id, actor, sum, address), ',' order by actor) from (
			select tenant_id, actor, sum(count), min(address) as address from pawl.audit
			where action in ('listInstances', 'audit.read') group by tenant_id, actor) a`); got !=
		"default anna 2 127.0.0.1,* unknown 50 127.0.0.1" {
		t.Errorf("the audit has %s", got)
	}

	if _, stderr, code := pawl(t, service, "audit", "purge", "--before", "2026-01-01T00:00:00Z"); code == 0 || !strings.Contains(stderr, "owner") {
		t.Errorf("the service may purge: %d %s", code, stderr)
	}
	rows := bounded.Value[int](t, db, "select count(*) from pawl.audit")
	now := bounded.Value[time.Time](t, db, "select now()").UTC().Format(time.RFC3339Nano)
	if out := mustPawl(t, owner, "audit", "purge", "--before", now); out != fmt.Sprintf("purged %d rows\n", rows) {
		t.Errorf("%d rows, and the command says %q", rows, out)
	}
	if got, want := bounded.Value[string](t, db, "select string_agg(concat_ws(' ', action, actor = session_user, after ->> 'purged'), ',') from pawl.audit"),
		fmt.Sprint("audit.purge t ", rows); got != want {
		t.Errorf("after the purge the audit has %s, want %s", got, want)
	}
}
