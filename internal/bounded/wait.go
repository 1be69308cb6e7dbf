package bounded

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Limit is how long a wait may take.
const Limit = 2 * time.Minute

// The pause between two looks at a condition doubles from firstPause to lastPause.
const (
	firstPause = time.Millisecond
	lastPause  = 20 * time.Millisecond
)

// Context returns a context that ends after Limit, and at the latest when the test has run the cleanups that are
// registered after this call. Unlike t.Context() it can be used in a cleanup.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	t.Cleanup(cancel)
	return ctx
}

// Ended blocks until ctx ends and returns its error. It is for a fake that does nothing until its caller gives up, and
// may be called in any goroutine: after Limit it returns context.DeadlineExceeded.
func Ended(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(Limit):
		return fmt.Errorf("bounded: the context lives on: %w", context.DeadlineExceeded)
	}
}

// True waits until a condition holds, or fails the test. It calls the condition in the goroutine of its caller.
func True(t testing.TB, what string, condition func() bool) {
	t.Helper()
	UntilWithin(t, Limit, what, condition, func(holds bool) bool { return holds })
}

// Until reads a value again and again until it is as wanted, and returns it. Otherwise it fails the test, and says what
// it read last. It calls both functions in the goroutine of its caller.
func Until[T any](t testing.TB, what string, read func() T, wanted func(T) bool) T {
	t.Helper()
	return UntilWithin(t, Limit, what, read, wanted)
}

// UntilWithin is Until with a limit of its own.
func UntilWithin[T any](t testing.TB, limit time.Duration, what string, read func() T, wanted func(T) bool) T {
	t.Helper()
	begin, pause := time.Now(), firstPause
	// bounded: the limit is looked at in each round
	for {
		seen := read()
		if wanted(seen) {
			return seen
		}
		if time.Since(begin) > limit {
			t.Fatalf("waited %v for %s; last seen: %+v", limit, what, seen)
		}
		time.Sleep(pause) // bounded: the pause between two looks
		pause = min(2*pause, lastPause)
	}
}

// Receive takes the next value from a channel, which is the zero value if the channel is closed. If none comes it fails
// the test.
func Receive[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	return ReceiveWithin(t, Limit, what, from)
}

// ReceiveWithin is Receive with a limit of its own.
func ReceiveWithin[T any](t testing.TB, limit time.Duration, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(limit):
		t.Fatalf("waited %v for %s; the goroutines of this module:\n%s", limit, what, stacks())
	}
	return v
}

// Wait calls a function that blocks, such as the Wait of a sync.WaitGroup, and fails the test if it does not return.
func Wait(t testing.TB, what string, wait func()) {
	t.Helper()
	Result(t, what, func() struct{} {
		wait()
		return struct{}{}
	})
}

// Result is Wait for a function that returns something, such as the Wait of an errgroup.Group. The function runs in a
// goroutine of its own.
func Result[T any](t testing.TB, what string, wait func() T) T {
	t.Helper()
	results := make(chan T, 1)
	go func() {
		defer close(results) // It ends without a result where it calls t.FailNow.
		results <- wait()
	}()
	return Receive(t, what, results)
}
