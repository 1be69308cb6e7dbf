package fsmtest

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Noon is a time for the test's clock.
var Noon = time.Date(2030, 2, 3, 12, 0, 0, 0, time.UTC)

// FireTimers fires all that is due by the test's clock, and says how many steps that made.
func FireTimers(t testing.TB, pool *pgxpool.Pool) (fired int) {
	t.Helper()
	// bounded: fewer timers are due after each call that looks at any
	for {
		var looked, now int
		if err := pool.QueryRow(t.Context(), "select looked_at, fired from pawl.fire_timers(100)").Scan(&looked, &now); err != nil {
			t.Fatalf("fire_timers: %v", err)
		}
		if fired += now; looked == 0 {
			return fired
		}
	}
}

// WantFired fires all that is due, and fails the test unless it is as much as wanted.
func WantFired(t testing.TB, pool *pgxpool.Pool, want int) {
	t.Helper()
	if got := FireTimers(t, pool); got != want {
		t.Errorf("%d timers were fired, want %d", got, want)
	}
}

// Last returns the last step of an instance.
func Last(t testing.TB, s *Service, id uuid.UUID) fsm.Step {
	t.Helper()
	steps := History(t, s, id)
	return steps[len(steps)-1]
}

// WantStep fails the test unless the step is as wanted.
func WantStep(t testing.TB, got fsm.Step, kind, event, to string, version int64) {
	t.Helper()
	name := "none"
	if got.Event != nil {
		name = *got.Event
	}
	if got.Kind != kind || name != event || got.To != to || got.Version != version {
		t.Errorf("the step is %s by %s to %s, version %d; want %s by %s to %s, version %d",
			got.Kind, name, got.To, got.Version, kind, event, to, version)
	}
}

// Timers counts the rows of the table, which a final state leaves empty.
func Timers(t testing.TB, pool *pgxpool.Pool) int {
	t.Helper()
	return bounded.Value[int](t, pool, "select count(*) from pawl.timer")
}
