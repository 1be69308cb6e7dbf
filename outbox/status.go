package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// Status says how far a consumer has read.
type Status struct {
	Consumer string `json:"consumer"`
	// Leader names the process that leads; empty if none does.
	Leader string `json:"leader"`
	// Term is the number of the present lease: 1 for the first leader.
	Term int64 `json:"term"`
	// Relayed counts the steps that were relayed, and those that were relayed again. For a consumer of the audit, steps
	// are its rows, here and below.
	Relayed int64 `json:"relayed"`
	// Steps counts the steps that are yet to be relayed. BehindSeconds is the age of the oldest
	// of them; 0 if there is none.
	Steps         int64   `json:"steps"`
	BehindSeconds float64 `json:"behind_seconds"`
	// AdvancedAt is when the position last moved.
	AdvancedAt time.Time `json:"advanced_at"`
}

// Statuses returns the status of each consumer, in the order of their names. It counts the steps
// that each has yet to relay, one by one.
func Statuses(ctx context.Context, pool *pgxpool.Pool) ([]Status, error) {
	rows, err := queries.New(session.Pool(pool)).ConsumerStatus(ctx)
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

// DeleteConsumer deletes a consumer that no process runs any more, and reports whether there was one.
// Steps that a consumer has not relayed keep final instances from being purged, so one that is
// not needed must be deleted. Only the owner of the schema may do it.
func DeleteConsumer(ctx context.Context, pool *pgxpool.Pool, consumer string) (bool, error) {
	deleted, err := queries.New(session.Pool(pool)).ConsumerDelete(ctx, consumer)
	if err != nil {
		return false, fmt.Errorf("delete the consumer: %w", err)
	}
	return deleted, nil
}
