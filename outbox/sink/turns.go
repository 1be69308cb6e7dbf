package sink

import (
	"context"

	"github.com/pawl-fsm/pawl/outbox"
)

// turns is a sink that several relays share.
type turns struct {
	outbox.Sink
	free chan struct{}
}

// InTurns returns a sink to which several relays may publish at the same time: each waits for its turn. It is closed after
// the last of them has ended.
func InTurns(s outbox.Sink) outbox.Sink {
	t := turns{s, make(chan struct{}, 1)}
	t.free <- struct{}{}
	return t
}

// Publish waits until no other relay publishes.
func (t turns) Publish(ctx context.Context, messages []outbox.Message) error {
	select {
	case <-t.free:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { t.free <- struct{}{} }()
	return t.Sink.Publish(ctx, messages)
}
