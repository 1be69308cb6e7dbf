package fsm_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The secret that signs cursors is read once for each connection, however many pages are.
func TestPagesShareTheSecretOfTheirConnection(t *testing.T) {
	t.Parallel()
	_, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	var reads atomic.Int64
	s := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, _ []any) {
			if strings.Contains(sql, "cursor_secret") {
				reads.Add(1)
			}
		}}
	}), fsm.Config{})
	for range 7 {
		fsmtest.Create(t, s, "counter", `{"x":0}`)
	}
	pages := 0
	for page := (fsm.Page{Limit: 1}); pages == 0 || page.Cursor != ""; pages++ {
		l, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{}, page)
		if err != nil {
			t.Fatal(err)
		}
		page.Cursor = l.Next
	}
	if n := reads.Load(); pages != 7 || n != 1 {
		t.Errorf("%d pages read the secret %d times, want 7 pages and once", pages, n)
	}
}

// A cursor of a database is refused once another one is behind the same pool.
func TestCursorsOfAReplacedDatabase(t *testing.T) {
	t.Parallel()
	old, replaced := dbtest.New(t), dbtest.New(t)
	// Both are clones of one template, and so have one secret.
	bounded.Exec(t, replaced, "update pawl.setting set cursor_secret = sha256('another')")
	for _, pool := range []*pgxpool.Pool{old, replaced} {
		s := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Counter)
		for range 3 {
			fsmtest.Create(t, s, "counter", `{"x":0}`)
		}
	}
	var mu sync.Mutex
	database := old.Config().ConnConfig.Database
	pool := fsmtest.Spied(t, old, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error {
			mu.Lock()
			defer mu.Unlock()
			config.Database = database
			return nil
		}
	})
	s := fsmtest.On(t, pool, fsm.Config{})
	list := func(cursor string) (fsm.List[fsm.Instance], error) {
		return s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Limit: 1, Cursor: cursor})
	}
	first, err := list("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list(first.Next); err != nil {
		t.Fatal(err)
	}

	mu.Lock()
	database = replaced.Config().ConnConfig.Database
	mu.Unlock()
	pool.Reset() // As when the old server goes away.
	_, err = list(first.Next)
	if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Message != "the cursor does not belong to this list" {
		t.Errorf("got %v", e)
	}
	first, err = list("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list(first.Next); err != nil {
		t.Error(err)
	}
}
