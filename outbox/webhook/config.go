package webhook

import (
	"log/slog"
	"time"

	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// Config tunes a Sender. Its zero value works.
type Config struct {
	// Policy says which addresses endpoints may have, and has the secret of the deployment,
	// from which those that sign callbacks without one are derived. It is the same value that the service has as fsm.Config.Webhooks.
	Policy address.Policy
	// Keys open the secrets that are stored. It is the same value that the service has as fsm.Config.Keys.
	Keys seal.Keys
	// MaxAttempts is the number of attempts after which a delivery is dead. Default 12.
	MaxAttempts int
	// Backoff is the longest wait after the first failure. It doubles with each further failure,
	// up to an hour; the wait is a random part of it. Default 5 s.
	Backoff time.Duration
	// Timeout is how long an attempt may take. Default 15 s.
	Timeout time.Duration
	// Concurrency is the most attempts that are under way at once. PerEndpoint is the most for
	// one subscription, and for a tenant's callbacks to one URL or one host. Default 512 and 32.
	// Four times Concurrency deliveries are kept in memory. Tenants share both.
	Concurrency, PerEndpoint int
	// Open is how long the circuit of an endpoint stays open after five failures in a row. It
	// doubles with each failed probe, up to 10 minutes. Default 10 s.
	Open time.Duration
	// KeepDelivered and KeepDead are how long settled deliveries are kept before they are purged.
	// Default 7 and 30 days.
	KeepDelivered, KeepDead time.Duration
	// Page is the most steps that are routed at once. Default 1000.
	Page int
	// Poll is the longest time between two looks for steps to route and deliveries that are due.
	// Default 200 ms.
	Poll time.Duration
	// Lease is how long a process leads after it last renewed the lease. Default 10 s.
	Lease time.Duration
	// Wake, if set, signals that there may be steps to route. It is called when there are subscriptions or
	// callbacks, and stopped when there are none.
	Wake outbox.Wake
	// Beside, if set, reports whether a tenant other than this one sends commands. While it does, the router rests between
	// the pieces of a tenant's steps, since they use the processors that the commands need. Default: it never rests.
	Beside func(tenant string) bool
	// Trace, if set, makes each attempt a span. Default: requests carry the traceparent of the step.
	Trace outbox.Trace
	// Logger gets who leads and what fails. Default: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	for d, value := range map[*time.Duration]time.Duration{
		&c.KeepDelivered: 7 * 24 * time.Hour, &c.KeepDead: 30 * 24 * time.Hour, &c.Poll: 200 * time.Millisecond,
		&c.Lease: 10 * time.Second,
	} {
		if *d <= 0 {
			*d = value
		}
	}
	if c.Page <= 0 {
		c.Page = 1000
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Beside == nil {
		c.Beside = func(string) bool { return false }
	}
	if c.Wake == nil {
		c.Wake = outbox.NeverWake
	}
	return c
}

// sending is the part that tunes package dispatch, which has the defaults.
func (c Config) sending() dispatch.Config {
	return dispatch.Config{
		Guard: c.Policy.Guard(), Timeout: c.Timeout, Concurrency: c.Concurrency, PerLane: c.PerEndpoint, Open: c.Open,
	}.WithDefaults()
}
