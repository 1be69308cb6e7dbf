package outbox

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// A pace is how many to ask for at once: fewer where so many took too long, and slowly more
// again.
type pace struct{ now, most int }

func newPace(most int) pace { return pace{now: most, most: most} }

// after notes how it went.
func (p *pace) after(err error) {
	const canceled = "57014" // By the server's statement_timeout.
	var refused *pgconn.PgError
	switch {
	case err == nil:
		p.now = min(p.now+p.now/8+1, p.most)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &refused) && refused.Code == canceled:
		p.now = max(p.now/2, 1)
	}
}
