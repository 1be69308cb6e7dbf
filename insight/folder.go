package insight

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/outbox"
)

// Consumer is the name of the consumer that a [Folder] leads.
const Consumer = "insight"

// FolderConfig tunes a Folder. Its zero value works.
type FolderConfig struct {
	// Page is the most steps that are folded at once. The page shrinks while pages take too long. Default 2000.
	Page int
	// Poll is the time between two looks for steps. Rarer looks fold more steps of an instance at once. Default 500 ms.
	Poll time.Duration
	// Lease is how long a process leads after it last folded a page. Default 10 s.
	Lease time.Duration
	// ScoreEvery is the time between two looks whether a day has ended, whose forecasts are scored then. Default 1 m.
	ScoreEvery time.Duration
	// Logger gets who leads and what fails. Default: nothing is logged.
	Logger *slog.Logger
}

func (c FolderConfig) withDefaults() FolderConfig {
	if c.Page <= 0 {
		c.Page = 2000
	}
	if c.Poll <= 0 {
		c.Poll = 500 * time.Millisecond
	}
	if c.Lease <= 0 {
		c.Lease = 10 * time.Second
	}
	if c.ScoreEvery <= 0 {
		c.ScoreEvery = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Folder counts every committed step once. Any number of processes may run one: one at a time leads and folds.
type Folder struct {
	queries *queries.Queries
	config  FolderConfig
	page    outbox.PageSize
	looked  time.Time // When it last saw that there is nothing to score.
}

// NewFolder returns a Folder on a pool, of which it takes one connection at a time.
func NewFolder(pool *pgxpool.Pool, config FolderConfig) *Folder {
	config = config.withDefaults()
	return &Folder{queries: queries.New(session.Pool(pool)), config: config, page: outbox.NewPageSize(config.Page)}
}

// Run folds until the context ends, and then returns nil. Errors are logged and retried; none ends it.
func (f *Folder) Run(ctx context.Context) error {
	consumer := queries.ConsumerCreateParams{Consumer: Consumer, FromStart: true}
	outbox.ElectionOf(f.queries, consumer, f.config.Lease, f.config.Logger).Run(ctx, "folding the log", f.lead)
	return nil
}

// lead folds pages during one term. A page is a transaction of its own, which also renews the lease.
func (f *Folder) lead(ctx context.Context, lease outbox.Lease) (progress bool, err error) {
	for ctx.Err() == nil {
		size := f.page.Size()
		page, err := f.queries.InsightFold(ctx, queries.InsightFoldParams{
			Leader: lease.Leader, Term: lease.Term, RowLimit: int32(size), Lease: outbox.Interval(f.config.Lease),
		})
		f.page.Adapt(err)
		if err != nil {
			return progress, err
		}
		if !page.Leads {
			return progress, outbox.ErrDeposed
		}
		if page.Steps > 0 {
			progress = true
		}
		if page.Steps < int64(size) {
			if err := f.score(ctx, lease); err != nil {
				return progress, err
			}
			outbox.Sleep(ctx, f.config.Poll)
		}
	}
	return progress, nil
}

// scored is how many workflows are scored at once.
const scored = 20

// score scores the forecasts of yesterday, if the last look was a while ago.
func (f *Folder) score(ctx context.Context, lease outbox.Lease) error {
	if time.Since(f.looked) < f.config.ScoreEvery {
		return nil
	}
	s, err := f.queries.ScoreForecasts(ctx, queries.ScoreForecastsParams{Leader: lease.Leader, Term: lease.Term, RowLimit: scored})
	if err != nil {
		return err
	}
	if !s.Leads {
		return outbox.ErrDeposed
	}
	if !s.More {
		f.looked = time.Now()
	}
	return nil
}
