package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// Status is how far a consumer is.
type Status struct {
	Consumer string `json:"consumer"`
	// Leader is the process that relays for it; empty if none does.
	Leader string `json:"leader"`
	// Term counts its leaders.
	Term int64 `json:"term"`
	// Relayed counts the steps that were published, repeats among them.
	Relayed int64 `json:"relayed"`
	// Steps counts those that are not yet, and BehindSeconds is the age of the oldest of them.
	Steps         int64   `json:"steps"`
	BehindSeconds float64 `json:"behind_seconds"`
	// AdvancedAt is when something was relayed last.
	AdvancedAt time.Time `json:"advanced_at"`
}

// Statuses lists the consumers by name. It counts what is behind them, which takes as long
// as that is.
func Statuses(ctx context.Context, pool *pgxpool.Pool) ([]Status, error) {
	rows, err := queries.New(pool).OutboxStatus(ctx)
	if err != nil {
		return nil, fmt.Errorf("outbox status: %w", err)
	}
	list := make([]Status, len(rows))
	for i, r := range rows {
		list[i] = Status{
			Consumer: r.Name, Leader: r.Leader, Term: r.Term, Relayed: r.Relayed, Steps: r.Steps,
			BehindSeconds: r.BehindSeconds, AdvancedAt: r.AdvancedAt,
		}
	}
	return list, nil
}

// Forget removes a consumer that no process runs any more, and says whether there was one.
// Until then what it has not relayed keeps final instances from being removed. It takes the
// schema's owner.
func Forget(ctx context.Context, pool *pgxpool.Pool, consumer string) (bool, error) {
	forgotten, err := queries.New(pool).Forget(ctx, consumer)
	if err != nil {
		return false, fmt.Errorf("forget: %w", err)
	}
	return forgotten, nil
}
