package outbox

import (
	"context"
	"time"
)

// Wake is a function that begins signals: it returns a channel that gets one when there may be new steps, and a function
// that ends them. A signal is a hint.
type Wake func() (signal <-chan struct{}, stop func())

// NeverWake is a Wake without signals.
func NeverWake() (signal <-chan struct{}, stop func()) { return nil, func() {} }

// Signals are those of a Wake while they are wanted.
type Signals struct {
	Wake Wake
	// C gets the signals. It is nil while they are not wanted.
	C    <-chan struct{}
	stop func()
}

// Listen begins the signals, or ends them.
func (s *Signals) Listen(wanted bool) {
	switch {
	case wanted && s.stop == nil:
		s.C, s.stop = s.Wake()
	case !wanted && s.stop != nil:
		s.stop()
		s.C, s.stop = nil, nil
	}
}

// idle waits for a signal, for no longer than d.
func idle(ctx context.Context, signal <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-signal:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Sleep waits for d, or until the context ends.
func Sleep(ctx context.Context, d time.Duration) { idle(ctx, nil, d) }
