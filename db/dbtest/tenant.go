package dbtest

import (
	"testing"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Tenants makes the tenants that do not exist yet.
func Tenants(t testing.TB, q queries.DBTX, names ...string) {
	t.Helper()
	bounded.Exec(t, q, "select pawl.tenant_put(n) from unnest($1::text[]) n", names)
}
