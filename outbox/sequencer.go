package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// SequencerConfig tunes a Sequencer. Its zero value works.
type SequencerConfig struct {
	// Poll is the longest time between two ticks while somebody is to be told of steps. Default 50 ms.
	Poll time.Duration
	// Idle is the longest time between two ticks otherwise. Default 1 s.
	Idle time.Duration
	// Pause is the least time between two ticks. Default 10 ms.
	Pause time.Duration
	// Lease is how long a process is the sequencer after it last renewed the lease. Default 10 s.
	Lease time.Duration
	// Sweep is the least time between two passes over the log that delete the rows of purged instances. Default
	// 10 minutes.
	Sweep time.Duration
	// Wanted reports whether somebody is to be told of steps. Default: always.
	Wanted func() bool
	// Wake, if set, signals that steps may have been committed. It is used while somebody is to be told of them.
	Wake Wake
	// Moved, if set, is called after steps have got positions.
	Moved func()
	// Leading, if set, is called each time the lease is renewed, with the time until which the process surely leads, and
	// with the zero time when it leads no more. It is for what only one process of a deployment must do or tell.
	Leading func(until time.Time)
	// Logger gets who leads, what fails, and which epochs begin. Default: nothing is logged.
	Logger *slog.Logger
}

func (c SequencerConfig) withDefaults() SequencerConfig {
	for _, d := range []struct {
		value *time.Duration
		by    time.Duration
	}{
		{&c.Poll, 50 * time.Millisecond},
		{&c.Idle, time.Second},
		{&c.Pause, 10 * time.Millisecond},
		{&c.Lease, 10 * time.Second},
		{&c.Sweep, 10 * time.Minute},
	} {
		if *d.value <= 0 {
			*d.value = d.by
		}
	}
	if c.Wanted == nil {
		c.Wanted = func() bool { return true }
	}
	if c.Wake == nil {
		c.Wake = NeverWake
	}
	if c.Leading == nil {
		c.Leading = func(time.Time) {}
	}
	if c.Moved == nil {
		c.Moved = func() {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Sequencer gives each committed step its position in the log. Any number of processes may run one: one at a time
// leads.
type Sequencer struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  SequencerConfig
}

// NewSequencer returns a Sequencer on a pool's database. While it leads it has a connection of its own beside the
// pool, with the pool's settings but for the statement_timeout.
func NewSequencer(pool *pgxpool.Pool, config SequencerConfig) *Sequencer {
	return &Sequencer{pool: pool, queries: queries.New(session.Pool(pool)), config: config.withDefaults()}
}

// Run numbers steps until the context ends, and then returns nil. Errors are logged and retried; none ends it.
func (s *Sequencer) Run(ctx context.Context) error {
	Election{
		Length: s.config.Lease, Logger: s.config.Logger.With("work", "sequencer"),
		Stand: func(ctx context.Context, leader string) (term int64, err error) {
			return s.queries.LogLead(ctx, queries.LogLeadParams{Leader: leader, Lease: Interval(s.config.Lease)})
		},
		Resign: func(ctx context.Context, leader string, term int64) error {
			return s.queries.LogResign(ctx, queries.LogResignParams{Leader: leader, Term: term})
		},
	}.Run(ctx, "numbering steps", s.lead)
	return nil
}

// tickTimeout is how long an answer to a tick may take. A tick that numbers a large backlog, or waits for a standby,
// goes on in the server when the process gives it up, and when the process ends. Until it has ended, nobody else can
// lead.
const tickTimeout = time.Minute

// lead numbers steps during one term. Ticks are never cancelled; see pawl.log_tick.
func (s *Sequencer) lead(ctx context.Context, lease Lease) (progress bool, err error) {
	connecting, cancel := context.WithTimeout(ctx, s.config.Lease)
	defer cancel()
	conn, err := session.Uncancelled(connecting, s.pool, "pawl sequencer")
	if err != nil {
		return false, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	l := &sequence{Sequencer: s, Lease: lease, queries: queries.New(session.Conn(conn)), signals: Signals{Wake: s.config.Wake}}
	defer l.signals.Listen(false)
	defer s.config.Leading(time.Time{})
	if err := l.begin(ctx); err != nil {
		return false, err
	}
	for ctx.Err() == nil {
		numbered, err := l.tick(ctx)
		progress = progress || numbered
		if err != nil {
			return progress, err
		}
		if numbered {
			s.config.Moved()
		}
		if err := l.sweep(ctx); err != nil {
			return progress, err
		}
		l.wait(ctx)
	}
	return progress, nil
}

// A sequence is a Sequencer during one term, on its own connection.
type sequence struct {
	*Sequencer
	Lease
	queries *queries.Queries
	// signals tell that steps may have been committed, while somebody is to be told.
	signals Signals
	// swept is the place of a pass that deletes rows of purged instances: it goes on while since is set.
	swept struct {
		since *string
		after int64
		next  time.Time
	}
}

// begin begins an epoch if the log was written on another server, or on another timeline.
func (l *sequence) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tickTimeout)
	defer cancel()
	b, err := l.queries.LogBegin(ctx, queries.LogBeginParams{Leader: l.Leader, Term: l.Term})
	switch {
	case err != nil:
		return fmt.Errorf("begin an epoch: %w", err)
	case b.Restored:
		l.config.Logger.WarnContext(ctx, "the database was restored or copied from another server; the log goes on with a new epoch", "epoch", b.Epoch)
	case b.Began && b.Epoch > 1:
		l.config.Logger.WarnContext(ctx, "the server was promoted, or recovered to a point in time; the log goes on with a new epoch", "epoch", b.Epoch)
	}
	return nil
}

// tick numbers the steps that were committed since the last tick, and reports whether there were any.
func (l *sequence) tick(ctx context.Context) (numbered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, tickTimeout)
	defer cancel()
	until := time.Now().Add(l.config.Lease)
	t, err := l.queries.LogTick(ctx, queries.LogTickParams{Leader: l.Leader, Term: l.Term, Lease: Interval(l.config.Lease)})
	switch {
	case err != nil:
		return false, fmt.Errorf("tick: %w", err)
	case !t.Leads:
		return false, ErrDeposed
	}
	l.config.Leading(until)
	return t.Steps > 0, nil
}

// sweepRows is how many rows of the log one call of a pass looks at.
const sweepRows = 5000

// sweep goes on with a pass that deletes rows of purged instances from the log, or begins one when it is time.
func (l *sequence) sweep(ctx context.Context) error {
	if l.swept.since == nil && time.Now().Before(l.swept.next) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tickTimeout)
	defer cancel()
	s, err := l.queries.LogSweep(ctx, queries.LogSweepParams{Leader: l.Leader, Term: l.Term, Since: l.swept.since, After: l.swept.after, RowLimit: sweepRows})
	if err != nil {
		return fmt.Errorf("sweep the log: %w", err)
	}
	if s.Last == nil {
		l.swept.since, l.swept.after, l.swept.next = nil, 0, time.Now().Add(l.config.Sweep)
		return nil
	}
	l.swept.since, l.swept.after = &s.Since, *s.Last
	return nil
}

// wait waits for the next tick.
func (l *sequence) wait(ctx context.Context) {
	Sleep(ctx, l.config.Pause)
	wanted := l.config.Wanted()
	l.signals.Listen(wanted)
	pause := l.config.Idle
	switch {
	case l.swept.since != nil:
		pause = 0
	case wanted:
		pause = l.config.Poll
	}
	idle(ctx, l.signals.C, max(pause-l.config.Pause, 0))
}
