package dispatch_test

import (
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

func TestBackoff(t *testing.T) {
	t.Parallel()
	retry := dispatch.Retry{MaxAttempts: 50, Backoff: time.Second}
	for attempts, most := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 12: 2048 * time.Second, 13: time.Hour, 49: time.Hour,
	} {
		longest := time.Duration(0)
		for range 1000 {
			wait, again := retry.Next(attempts, dispatch.Answer{Status: 500})
			if !again || wait <= 0 || wait > most {
				t.Fatalf("after %d attempts: %s, %v, want at most %s", attempts, wait, again, most)
			}
			longest = max(longest, wait)
		}
		if longest < most/2 { // Each wait is below with a probability of a half.
			t.Errorf("after %d attempts the longest of 1000 waits is %s, want up to %s", attempts, longest, most)
		}
	}
}

func TestLastAttempt(t *testing.T) {
	t.Parallel()
	asked := dispatch.Answer{Status: 503, RetryAfter: time.Minute}
	for _, c := range []struct {
		retry    dispatch.Retry
		attempts int
		again    bool
	}{
		{dispatch.Retry{}, 11, true},
		{dispatch.Retry{}, 12, false},
		{dispatch.Retry{MaxAttempts: 1}, 1, false},
		{dispatch.Retry{MaxAttempts: 2}, 1, true},
		{dispatch.Retry{MaxAttempts: 2}, 3, false},
	} {
		wait, again := c.retry.Next(c.attempts, asked)
		if again != c.again || again && wait != time.Minute {
			t.Errorf("%+v after %d: %s, %v", c.retry, c.attempts, wait, again)
		}
	}
}

func TestOpenFor(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{
		0: 0, 4: 0, 5: 10 * time.Second, 6: 20 * time.Second, 10: 320 * time.Second, 11: 10 * time.Minute, 1 << 30: 10 * time.Minute,
	} {
		if got := dispatch.OpenFor(failures, 10*time.Second); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
}
