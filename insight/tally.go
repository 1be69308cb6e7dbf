package insight

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox"
)

const (
	// maxCounts is how many different counts a Tally holds.
	maxCounts = 4096
	// tallyTimeout is for a flush.
	tallyTimeout = 2 * time.Second
)

// TallyConfig tunes a Tally. Its zero value works.
type TallyConfig struct {
	// Interval is the time between two flushes. Default 10 s.
	Interval time.Duration
	// Logger gets what fails. Default: nothing is logged.
	Logger *slog.Logger
}

// A Tally counts what became of the commands of this process, and adds the counts to pawl.command_count at intervals. The
// counts are approximate: those of the last interval are lost if the process dies, and if a flush fails without an
// answer they may be added twice. It may be used by several goroutines at once.
type Tally struct {
	config TallyConfig

	mu      sync.Mutex
	counts  map[tallied]int64
	tenants map[string]int // How many of the counts are of each tenant.
}

// tallied is what is counted.
type tallied struct {
	tenant, workflow, event, outcome, key string
	instance                              uuid.UUID // Whose workflow it is, if that is not known.
}

func (a tallied) compare(b tallied) int {
	return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.workflow, b.workflow), cmp.Compare(a.event, b.event),
		cmp.Compare(a.outcome, b.outcome), cmp.Compare(a.key, b.key),
		bytes.Compare(a.instance[:], b.instance[:]))
}

// NewTally returns a Tally on the database of the service that is given to Run.
func NewTally(config TallyConfig) *Tally {
	if config.Interval <= 0 {
		config.Interval = 10 * time.Second
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tally{config: config, counts: map[tallied]int64{}, tenants: map[string]int{}}
}

// Probe tells the Tally what a Service answers. Commands whose workflow nobody knows are not counted.
func (t *Tally) Probe() fsm.Probe {
	return fsm.Probe{
		Answered: func(o fsm.Observation) {
			if o.Workflow != "" && o.Key != collision {
				t.add(tallied{tenant: o.Tenant, workflow: o.Workflow, event: o.Event, outcome: o.Outcome, key: o.Key}, 1)
			}
		},
		Collided: func(c fsm.Collision) {
			t.add(tallied{tenant: c.Tenant, workflow: c.Workflow, outcome: "idempotency-key-reuse", key: collision, instance: c.Instance}, 1)
		},
	}
}

const collision = "collision"

// add adds n to a count. When there are too many, events fold to one, and then further counts are dropped. A tenant never
// has more counts than there is room for, so that one alone cannot use up what others need.
func (t *Tally) add(c tallied, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.holds(c, maxCounts/2) {
		if c.event = ""; !t.holds(c, maxCounts) {
			return
		}
	}
	if _, known := t.counts[c]; !known {
		t.tenants[c.tenant]++
	}
	t.counts[c] += n
}

// holds reports whether a count is there, or may be one of at most most. The caller holds the lock.
func (t *Tally) holds(c tallied, most int) bool {
	_, known := t.counts[c]
	return known || t.tenants[c.tenant] < most-len(t.counts)
}

// Run flushes until the context ends, then once more, and returns nil. Counts that cannot be written are kept for the next flush.
func (t *Tally) Run(ctx context.Context, service *fsm.Service) error {
	failing := false
	for ctx.Err() == nil {
		outbox.Sleep(ctx, t.config.Interval)
		err := t.flush(context.WithoutCancel(ctx), service)
		if err != nil && !failing {
			t.config.Logger.WarnContext(ctx, "counts of commands cannot be written; they are kept until they can", "error", err)
		}
		failing = err != nil
	}
	return nil
}

// flush writes the counts.
func (t *Tally) flush(ctx context.Context, service *fsm.Service) error {
	t.mu.Lock()
	counts := t.counts
	t.counts, t.tenants = map[tallied]int64{}, map[string]int{}
	t.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	var p queries.CountCommandsParams
	for _, c := range slices.SortedFunc(maps.Keys(counts), tallied.compare) {
		p.Tenants, p.Workflows, p.Events = append(p.Tenants, c.tenant), append(p.Workflows, c.workflow), append(p.Events, c.event)
		p.Outcomes, p.KeyResults, p.Commands = append(p.Outcomes, c.outcome), append(p.KeyResults, c.key), append(p.Commands, counts[c])
		p.Instances = append(p.Instances, c.instance)
	}
	ctx, cancel := context.WithTimeout(ctx, tallyTimeout)
	defer cancel()
	err := service.Database().Queries().CountCommands(ctx, p)
	if err != nil {
		for c, n := range counts {
			t.add(c, n)
		}
	}
	return err
}
