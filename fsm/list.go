package fsm

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
)

// The limits of a page.
const (
	DefaultLimit = 50
	MaxLimit     = 200
)

// Page says which part of a list to read.
type Page struct {
	// Limit is how many items to read: DefaultLimit if 0, at most MaxLimit.
	Limit int
	// Cursor is the List.Next of the page before, or empty.
	Cursor string
}

// List is a page of a list.
type List[T any] struct {
	Items []T
	// Next is the cursor of the next page, or empty on the last.
	Next string
}

// list reads a page: rows behind the last item's key, in an order that never changes,
// so that no row is seen twice or left out while others are added.
func list[R, T any](
	ctx context.Context, s *Service, page Page, scope string,
	rows func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]R, error),
	item func(R) T, key func(T) string,
) (List[T], error) {
	l := List[T]{Items: []T{}}
	if page.Limit < 0 {
		return l, &Error{Kind: Malformed, Message: "the limit is negative", Faults: []Fault{{
			Parameter: "limit", Detail: "must be at least 1",
		}}}
	}
	if page.Limit == 0 {
		page.Limit = DefaultLimit
	}
	limit := min(page.Limit, MaxLimit)
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
		setting, err := q.GetSetting(ctx)
		if err != nil {
			return err
		}
		after, err := openCursor(setting.CursorSecret, scope, page.Cursor)
		if err != nil {
			return err
		}
		// One more than asked for tells whether there is a next page.
		found, err := rows(ctx, q, after, int32(limit)+1)
		if err != nil {
			return err
		}
		for _, r := range found[:min(limit, len(found))] {
			l.Items = append(l.Items, item(r))
		}
		if len(found) > limit {
			l.Next = sealCursor(setting.CursorSecret, scope, key(l.Items[limit-1]))
		}
		return nil
	})
	return l, err
}

// planned has each query planned for its arguments, which a prepared statement is not: the
// filters of a list of instances, most of which are absent, decide how it is to be read, and
// a plan for any of them would read all.
type planned struct{ queries.DBTX }

func (p planned) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return p.DBTX.Query(ctx, sql, append([]any{pgx.QueryExecModeDescribeExec}, args...)...)
}

// A cursor is the key of the last item behind a MAC over it and the list it belongs to.

func mac(secret []byte, scope, key string) []byte {
	m := hmac.New(sha256.New, secret)
	fmt.Fprintf(m, "%d:%s%s", len(scope), scope, key)
	return m.Sum(nil)[:16]
}

func sealCursor(secret []byte, scope, key string) string {
	return base64.RawURLEncoding.EncodeToString(append(mac(secret, scope, key), key...))
}

func openCursor(secret []byte, scope, cursor string) (key string, err error) {
	if cursor == "" {
		return "", nil
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err == nil && len(sealed) > 16 {
		key := string(sealed[16:])
		if hmac.Equal(sealed[:16], mac(secret, scope, key)) {
			return key, nil
		}
	}
	return "", &Error{Kind: Malformed, Message: "the cursor does not belong to this list", Faults: []Fault{{
		Parameter: "cursor", Detail: "is not one that this list, with these filters, has given",
	}}}
}
