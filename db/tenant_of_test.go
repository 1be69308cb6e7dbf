package db_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The tenant that has an instance is found among the first 10,000; behind them it is said that there may be one.
func TestTenantOfInstance(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	bounded.Exec(t, pool, "select pawl.tenant_put($1)", tenant)
	want := func(function string, id uuid.UUID, want string) {
		t.Helper()
		if got := bounded.Value[string](t, pool, "select pawl."+function+"($1)", id); got != want {
			t.Errorf("%s: %q, want %q", function, got, want)
		}
	}
	want("tenant_of_instance", ids[0], tenant)
	want("tenant_of_instance", uuid.New(), "")
	want("tenant_of_subscription", uuid.New(), "")
	want("tenant_of_bulk", uuid.New(), "")
	bounded.Exec(t, pool, `
		insert into pawl.tenant (id, created_at, created_by)
		select '~' || to_char(n, 'FM00000'), now(), 'test' from generate_series(1, 10001) as n`)
	want("tenant_of_instance", ids[0], tenant)
	want("tenant_of_instance", uuid.New(), "*")
	want("tenant_of_subscription", uuid.New(), "*")
	want("tenant_of_bulk", uuid.New(), "*")
	bounded.Exec(t, pool, "delete from pawl.tenant where id > '~09900'")
	want("tenant_of_instance", uuid.New(), "")
}
