package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// An OwnStep is a step that no request to a process has made: that of a timer, of a task, of the healer, or of a SQL caller.
type OwnStep struct {
	Tenant   string    `json:"tenant"`
	Instance uuid.UUID `json:"instance"`
	Version  int64     `json:"version"`
	Workflow string    `json:"workflow"`
	Kind     string    `json:"kind"`
	Event    string    `json:"event"` // Empty for a creation.
	At       time.Time `json:"at"`
	// Traceparent is that of the step, and Parent that of the step that it is below; empty if that is not known.
	Traceparent string `json:"traceparent"`
	Parent      string `json:"parent"`
}

// maxOwnSteps is how many positions of the log are read at once.
const maxOwnSteps = 2000

// OwnSteps returns the steps behind a position of the log that are sampled, and the position up to which it has read: see
// pawl.own_steps. Without a position it begins with those of
// the last 30 seconds.
func OwnSteps(ctx context.Context, pool *pgxpool.Pool, after *int64) (until int64, steps []OwnStep, err error) {
	row, err := queries.New(session.Pool(pool)).OwnSteps(ctx, queries.OwnStepsParams{After: after, RowLimit: maxOwnSteps})
	if err == nil {
		err = json.Unmarshal(row.Steps, &steps)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("own steps: %w", err)
	}
	return row.Until, steps, nil
}
