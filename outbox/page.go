package outbox

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// A PageSize is how many rows to ask for at once. It halves when a page takes too long, and grows
// by an eighth with each page that does not, up to its maximum. So a page with large documents
// comes in smaller parts instead of failing for ever.
type PageSize struct{ size, most int }

// NewPageSize returns a PageSize that is at its maximum.
func NewPageSize(most int) PageSize { return PageSize{size: most, most: most} }

// Size is how many rows to ask for now: 1 to Max.
func (p *PageSize) Size() int { return p.size }

// Max is the most that Size grows to.
func (p *PageSize) Max() int { return p.most }

// Adapt takes the result of a page. Nil lets the size grow; a deadline that passed, or a
// statement that the server cancelled at its statement_timeout, halves it. Other errors leave it.
func (p *PageSize) Adapt(err error) {
	const queryCanceled = "57014"
	var refused *pgconn.PgError
	switch {
	case err == nil:
		p.size = min(p.size+p.size/8+1, p.most)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &refused) && refused.Code == queryCanceled:
		p.size = max(p.size/2, 1)
	}
}

// cut is Adapt for a page that had fewer rows than were asked for.
func (p *PageSize) cut(rows int, err error) {
	p.size = rows
	p.Adapt(err)
}
