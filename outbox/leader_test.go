package outbox_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// A leader that was paused for longer than its lease is refused when it comes back.
func TestDeposedLeaderIsRefused(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	config := outboxtest.Quick
	config.Lease = 2 * time.Second // Longer than a busy machine pauses the other relay.
	gate := bounded.NewGate(t, "the first relay")
	first, second := outboxtest.NewRecorder(), outboxtest.NewRecorder()
	first.Before = func(context.Context, []outbox.Message) error {
		gate.Pass()
		return nil
	}
	id := outboxtest.Create(t, pool)
	outboxtest.Relay(t, pool, "all", first, config)
	gate.Reached()
	outboxtest.Relay(t, pool, "all", second, config)
	second.Want(t, 1)
	outboxtest.Add(t, pool, id)
	second.Want(t, 2)
	outboxtest.CaughtUp(t, pool, "all")
	const position = "select position from pawl.consumer"
	term, before := bounded.Value[int64](t, pool, "select term from pawl.consumer"), bounded.Value[int64](t, pool, position)
	if term < 2 {
		t.Fatalf("term %d", term)
	}
	if bounded.Value[bool](t, pool, "select pawl.consumer_advance('all', leader, 1, 1, 1, 1, '1 hour') from pawl.consumer") {
		t.Error("an old term moved the position")
	}
	gate.Open()
	first.Want(t, 1) // It publishes its page again, and then cannot move the position.
	outboxtest.Add(t, pool, id)
	second.Want(t, 3)
	outboxtest.CaughtUp(t, pool, "all")
	if now := bounded.Value[int64](t, pool, "select term from pawl.consumer"); now != term {
		t.Errorf("term %d after %d", now, term)
	}
	if got := first.List(); len(got) != 1 {
		t.Errorf("the old leader went on: %v", got)
	}
	if bounded.Value[int64](t, pool, position) == before {
		t.Error("the position has not moved")
	}
}

// A relay is killed between publishing a page and moving the position. The page is published again.
func TestKilledBetweenPublishAndAdvance(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	id := outboxtest.Create(t, pool)
	for range 4 {
		outboxtest.Add(t, pool, id)
	}
	// The process that dies is played by a connection that is cut once the page is published.
	doomed, err := pgxpool.NewWithConfig(t.Context(), func() *pgxpool.Config { c := pool.Config().Copy(); c.MaxConns = 1; return c }())
	if err != nil {
		t.Fatal(err)
	}
	first := outboxtest.NewRecorder()
	config := outboxtest.Quick
	config.Page, config.Lease = 2, 300*time.Millisecond
	ctx, die := context.WithCancel(t.Context())
	pages := 0
	first.Before = func(context.Context, []outbox.Message) error {
		if pages++; pages == 2 {
			bounded.Exec(t, pool, `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and pid <> pg_backend_pid() and query like '%consumer_read%'`)
			doomed.Reset()
			die()
		}
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- outbox.NewRelay(doomed, "all", first, config).Run(ctx) }()
	if err := bounded.Receive(t, "the relay to die", done); err != nil {
		t.Fatal(err)
	}
	doomed.Close()
	second := outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "all", second, config)
	outboxtest.CaughtUp(t, pool, "all")
	got := map[string]bool{}
	for _, id := range append(first.List(), second.List()...) {
		got[id] = true
	}
	if want := outboxtest.IDs(id, 1, 2, 3, 4, 5); !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %v and %v", first.List(), second.List())
	}
}
