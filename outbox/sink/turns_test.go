package sink_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/sink"
)

// Relays that share a sink publish one after the other, and one that waits for its turn ends with its context.
func TestInTurns(t *testing.T) {
	t.Parallel()
	recorder, hold, entered := outboxtest.NewRecorder(), bounded.NewGate(t, "the page"), make(chan struct{}, 100)
	var inside atomic.Int32
	recorder.Before = func(context.Context, []outbox.Message) error {
		defer inside.Add(-1)
		if inside.Add(1) > 1 {
			return errors.New("two at once")
		}
		entered <- struct{}{}
		hold.Pass()
		return nil
	}
	shared := sink.InTurns(recorder)
	done := make(chan error, 20)
	go func() { done <- shared.Publish(bounded.Context(t), page("default", 1, 1)) }()
	bounded.Receive(t, "a page", entered)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := shared.Publish(ctx, audit(1, "default")); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	for range 19 {
		go func() { done <- shared.Publish(bounded.Context(t), audit(1, "default")) }()
	}
	hold.Open()
	for range 20 {
		if err := bounded.Receive(t, "a page", done); err != nil {
			t.Error(err)
		}
	}
	if got := recorder.Want(t, 20); len(got) != 20 {
		t.Errorf("%d messages came", len(got))
	}
}
