package invoke

import (
	"log/slog"
	"os"
	"time"

	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/internal/variable"
	"github.com/pawl-fsm/pawl/outbox"
)

// Config tunes an Invoker. Its zero value works.
type Config struct {
	// Policy says which addresses services may have. It is the same value that the service has as fsm.Config.Webhooks.
	Policy address.Policy
	// Keys open the secrets that are stored. It is the same value that the service has as fsm.Config.Keys.
	Keys seal.Keys
	// Variables says which variables of the process the connections of a tenant may name instead of a secret. It is the same
	// value that the service has. Default: none.
	Variables variable.Policy
	// Concurrency is the most calls of this process that are under way at once. Tenants share them. Default 256.
	Concurrency int
	// Rest is how long a connection rests after five failures in a row, and after a look at a secret that cannot be had. It
	// doubles with each failed probe, up to 10 minutes. Default 10 s.
	Rest time.Duration
	// Poll is the longest time between two looks for what is due. Default 1 s.
	Poll time.Duration
	// Grace is how long calls that are under way may take to end when the process is to stop. Default 3 s.
	Grace time.Duration
	// Name says to people which process has made an attempt. Default: the name of the machine.
	Name string
	// Wake, if set, signals that there may be tasks to call.
	Wake outbox.Wake
	// Trace, if set, makes each attempt a span. Default: requests carry the traceparent of the step.
	Trace outbox.Trace
	// Logger gets what fails. Default: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	for d, value := range map[*time.Duration]time.Duration{&c.Rest: 10 * time.Second, &c.Poll: time.Second, &c.Grace: 3 * time.Second} {
		if *d <= 0 {
			*d = value
		}
	}
	if c.Concurrency <= 0 {
		c.Concurrency = 256
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname() // It is for people, who can do without.
	}
	if c.Wake == nil {
		c.Wake = outbox.NeverWake
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
