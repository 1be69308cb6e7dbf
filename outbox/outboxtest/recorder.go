package outboxtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
)

// Quick is a configuration of a relay for tests: it begins with the first step and looks often.
var Quick = outbox.RelayConfig{FromStart: true, Poll: 5 * time.Millisecond}

// Number runs a sequencer that ticks often, until the test ends or stop is called.
func Number(t testing.TB, pool *pgxpool.Pool) (stop func()) {
	t.Helper()
	return bounded.Run(t, "the sequencer", outbox.NewSequencer(pool, outbox.SequencerConfig{Poll: 5 * time.Millisecond, Pause: time.Millisecond}).Run)
}

// Relay runs a relay until the test ends, or stop is called.
func Relay(t testing.TB, pool *pgxpool.Pool, consumer string, sink outbox.Sink, config outbox.RelayConfig) (stop func()) {
	t.Helper()
	return bounded.Run(t, "the relay", outbox.NewRelay(pool, consumer, sink, config).Run)
}

// A Recorder is a sink that keeps the ids of the messages that it is given.
type Recorder struct {
	// Before, if set, may refuse a page, or take its time.
	Before func(ctx context.Context, messages []outbox.Message) error

	mu  sync.Mutex
	ids []string
}

// NewRecorder returns a Recorder.
func NewRecorder() *Recorder { return &Recorder{} }

// Publish keeps the ids.
func (r *Recorder) Publish(ctx context.Context, messages []outbox.Message) error {
	if r.Before != nil {
		if err := r.Before(ctx, messages); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range messages {
		r.ids = append(r.ids, m.ID())
	}
	return nil
}

// Close does nothing.
func (r *Recorder) Close() error { return nil }

// List returns the ids that came.
func (r *Recorder) List() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ids)
}

// Want waits until so many messages have come, and returns their ids.
func (r *Recorder) Want(t testing.TB, n int) []string {
	t.Helper()
	return bounded.Until(t, fmt.Sprintf("%d messages", n), r.List, func(list []string) bool { return len(list) >= n })
}
