package database

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"runtime"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// How many items a page has if no limit is given, and at most.
const (
	DefaultLimit = 50
	MaxLimit     = 200
)

// PageBytes is where a page ends early: with the row by which its documents (contexts, payloads or definitions) have so
// many bytes. It has at least one row.
const PageBytes = 1 << 20

// A Listing is a list that is read by pages. Its items have keys, in an order that never changes,
// so that no item is seen twice or left out while others are added.
type Listing[R, T any] struct {
	// Scope names the list with all its filters. A cursor belongs to one scope.
	Scope string
	// Rows reads at most limit rows behind the key after, which is empty for the first page.
	Rows func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]R, error)
	// Bytes returns the size of a row's documents, for a list whose Rows ends a page after PageBytes. Nil if its rows
	// have none.
	Bytes func(R) int
	// Look, if not 0, is how many rows a page looks at. It then has only the items of those that Shown says, and may end
	// before its limit although the list goes on.
	Look  int
	Shown func(R) bool
	// Item makes an item of a row.
	Item func(R) T
	// Key returns the key of an item.
	Key func(T) string
	// Rest returns the key behind which the list goes on, if Rows has looked at no more than a part of it; else an empty
	// one. Nil if Rows never does.
	Rest func() string
}

// A PageError says which of the two parameters of a page was refused, and why.
type PageError struct {
	// Parameter is "limit" or "cursor".
	Parameter string
	// Message is a sentence about the refusal.
	Message string
	// Detail says what the parameter must be.
	Detail string
}

func (e *PageError) Error() string { return e.Message + ": " + e.Parameter + " " + e.Detail }

// List reads a page of at most limit items: DefaultLimit if it is 0, and never more than MaxLimit. For
// the first page cursor is empty, and for any other one it is the next of the page before. next is
// empty on the last page. A page that ends early has a next, even if nothing is left to come. The error is what the Client makes of a PageError or of the driver's error.
func List[R, T any](ctx context.Context, c *Client, l Listing[R, T], limit int, cursor string) (items []T, next string, err error) {
	items = []T{}
	if limit < 0 {
		return items, "", c.asError(&PageError{Parameter: "limit", Message: "the limit is negative", Detail: "must be at least 1"})
	}
	if limit == 0 {
		limit = DefaultLimit
	}
	limit = min(limit, MaxLimit)
	err = c.read(ctx, func(ctx context.Context) error {
		return c.reads.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			secret, err := secretOf(ctx, conn)
			if err != nil {
				return err
			}
			after := ""
			if cursor != "" {
				var known bool
				if after, known = OpenCursor(secret, l.Scope, cursor); !known {
					return errForeignCursor
				}
			}
			// One row more than asked for says whether there is a next page.
			most := max(limit, l.Look)
			rows, err := l.Rows(ctx, session.Conn(conn.Conn()), after, int32(most)+1)
			if err != nil {
				return err
			}
			items, next = items[:0], ""
			bytes, looked := 0, 0
			for _, r := range rows {
				if l.Bytes != nil {
					bytes += l.Bytes(r)
				}
				if len(items) == limit || looked == most {
					continue
				}
				looked++
				if l.Shown == nil || l.Shown(r) {
					items = append(items, l.Item(r))
				}
			}
			if looked < len(rows) || bytes >= PageBytes {
				next = SealCursor(secret, l.Scope, l.Key(l.Item(rows[looked-1])))
			} else if l.Rest != nil && l.Rest() != "" {
				next = SealCursor(secret, l.Scope, l.Rest())
			}
			return nil
		})
	})
	// The caller is about to encode the page. This thread probably is the one that had waited for the network, and while it
	// computes, the runtime looks at the network every 10 ms only, even if another processor is idle. Gosched wakes
	// another thread, which then waits for the network: for what the database answers to others.
	runtime.Gosched()
	if err != nil {
		return items, "", err
	}
	return items, next, nil
}

var errForeignCursor = &PageError{
	Parameter: "cursor", Message: "the cursor does not belong to this list",
	Detail: "is not one that this list, with these filters, has given",
}

// Seal returns a cursor for a key of a list that is made of several. The error is what the Client makes of the driver's.
func (c *Client) Seal(ctx context.Context, scope, key string) (cursor string, err error) {
	err = c.withSecret(ctx, func(secret []byte) error {
		cursor = SealCursor(secret, scope, key)
		return nil
	})
	return cursor, err
}

// Unseal returns the key of a cursor that Seal has made. The error is what the Client makes of a PageError or of the
// driver's.
func (c *Client) Unseal(ctx context.Context, scope, cursor string) (key string, err error) {
	err = c.withSecret(ctx, func(secret []byte) error {
		known := false
		if key, known = OpenCursor(secret, scope, cursor); !known {
			return errForeignCursor
		}
		return nil
	})
	return key, err
}

// withSecret calls f with the secret of the database.
func (c *Client) withSecret(ctx context.Context, f func(secret []byte) error) error {
	return c.read(ctx, func(ctx context.Context) error {
		return c.reads.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			secret, err := secretOf(ctx, conn)
			if err != nil {
				return err
			}
			return f(secret)
		})
	})
}

// secretKey is where a connection keeps the secret of its database.
const secretKey = "pawl.setting.cursor_secret"

// secretOf returns the secret of the connection's database. The package's comment says why a connection
// may keep it.
func secretOf(ctx context.Context, conn *pgxpool.Conn) ([]byte, error) {
	kept := conn.Conn().PgConn().CustomData()
	if secret, known := kept[secretKey].([]byte); known {
		return secret, nil
	}
	setting, err := queries.New(session.Conn(conn.Conn())).GetSetting(ctx)
	if err != nil {
		return nil, err
	}
	kept[secretKey] = setting.CursorSecret
	return setting.CursorSecret, nil
}

// macSize is how many bytes of the HMAC a cursor has.
const macSize = 16

// mac is the truncated HMAC of a key in its scope. The length of the scope goes first, so that no other
// scope and key give the same text.
func mac(secret []byte, scope, key string) []byte {
	m := hmac.New(sha256.New, secret)
	fmt.Fprintf(m, "%d:%s%s", len(scope), scope, key)
	return m.Sum(nil)[:macSize]
}

// SealCursor returns a cursor for a key of the scope: base64url of a truncated HMAC-SHA256 and the
// key. The key is protected against changes; it is not hidden.
func SealCursor(secret []byte, scope, key string) string {
	return base64.RawURLEncoding.EncodeToString(append(mac(secret, scope, key), key...))
}

// OpenCursor returns the key of a cursor, and false unless the cursor was sealed with the secret
// for the scope.
func OpenCursor(secret []byte, scope, cursor string) (key string, ok bool) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(sealed) <= macSize {
		return "", false
	}
	key = string(sealed[macSize:])
	return key, hmac.Equal(sealed[:macSize], mac(secret, scope, key))
}
