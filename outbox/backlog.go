package outbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// A Measure is one number of what the deployment has not done yet. Label and Status are empty if the measure has none.
type Measure struct {
	Name, Label, Status string
	Value               float64
}

// Backlog measures what the deployment has not done yet: see pawl.backlog, which names the measures.
func Backlog(ctx context.Context, pool *pgxpool.Pool) ([]Measure, error) {
	rows, err := queries.New(session.Pool(pool)).Backlog(ctx)
	if err != nil {
		return nil, fmt.Errorf("backlog: %w", err)
	}
	list := make([]Measure, len(rows))
	for i, r := range rows {
		list[i] = Measure{Name: r.Measure, Label: r.Label, Status: r.Status, Value: r.Value}
	}
	return list, nil
}
