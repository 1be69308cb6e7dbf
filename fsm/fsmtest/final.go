package fsmtest

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Stopped makes n final instances of Counter.
func Stopped(t testing.TB, s *Service, tenant string, n int) []uuid.UUID {
	t.Helper()
	creates, fires := make([]fsm.Command, n), make([]fsm.Command, n)
	for i := range creates {
		creates[i] = fsm.CreateCommand{Tenant: tenant, Workflow: "counter", Context: []byte(`{"x":0}`)}
	}
	ids := make([]uuid.UUID, n)
	for i, r := range s.Do(t.Context(), creates) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ids[i] = r.Instance.ID
		fires[i] = fsm.FireCommand{Tenant: tenant, ID: ids[i], Event: "stop"}
	}
	for _, r := range s.Do(t.Context(), fires) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return ids
}

// ShortKeys stops the clock, and lets keys live for a minute.
func ShortKeys(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl = '1 minute'")
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
}
