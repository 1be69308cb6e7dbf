package httpapi_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Streams that are cut at random places and resumed on either of two replicas lose and repeat
// no step, although transactions commit in another order than they began, and one stays open
// until the end.
// The function is long because writers, readers and the open transaction run at the same time
// and share the expected versions.
func TestStreamsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	b := liveOn(t, dbtest.DSN(a.pool), httpapi.Config{})
	a.register(counter)
	const instances, steps = 12, 20
	var ids []string
	begin := a.stream("/v1/events", "")
	for range instances {
		ids = append(ids, a.create("counter", `{"context": {"sum": 0}}`))
	}
	slow := a.create("counter", `{"context": {"sum": 0}}`)
	begin.want("created 1 ON")
	begin.close()
	want := map[string]int{}
	for _, id := range ids {
		want[id] = 1 + steps
	}
	want[slow] = 2

	var writing sync.WaitGroup
	// This transaction has the smallest xid and commits last.
	held, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback(bounded.Context(t)) }()
	bounded.Exec(t, held, `select pawl.fire_one($1, 'add', '{"by": 1}')`, slow)
	for n, id := range ids {
		writing.Go(func() {
			for range steps {
				err := pgx.BeginFunc(t.Context(), a.pool, func(tx pgx.Tx) error {
					// Some transactions get their xid long before they write.
					if n%3 == 0 {
						if _, err := tx.Exec(t.Context(), "select pg_current_xact_id(), pg_sleep(random() / 100)"); err != nil {
							return err
						}
					}
					_, err := tx.Exec(t.Context(), `select pawl.fire_one($1, 'add', '{"by": 1}')`, id)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	var reading sync.WaitGroup
	for reader := range 4 {
		at := begin.id
		query := "/v1/events"
		if reader == 3 {
			at, query = "", "/v1/events?from=start"
		}
		reading.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(reader)))
			got := map[string]int{}
			total, all := 0, instances*(1+steps)+2
			if reader != 3 {
				// The first event was read above.
				id := ids[0]
				got[id], total = 1, 1
			}
			for total < all {
				s := []*api{a, b}[random.IntN(2)].stream(query, at)
				for range 1 + random.IntN(30) {
					e, ok := s.next()
					if !ok {
						t.Errorf("reader %d: the stream ends after %d of %d: %v", reader, total, all, s.lines.Err())
						return
					}
					id, version, _ := e.step(t)
					if version != got[id]+1 {
						t.Errorf("reader %d: version %d of %s comes after %d", reader, version, id, got[id])
						return
					}
					got[id] = version
					if total++; total == all {
						break
					}
				}
				at = s.id
				s.close()
			}
			for id, version := range want {
				if got[id] != version {
					t.Errorf("reader %d: %s is at %d, want %d", reader, id, got[id], version)
				}
			}
		})
	}
	bounded.Wait(t, "the writers", writing.Wait)
	if err := held.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	bounded.Wait(t, "the readers", reading.Wait)
}

// While the filters choose no step, the stream sends new ids to resume from, long before the
// next heartbeat.
func TestIDMovesOnOverWhatIsFiltered(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{Heartbeat: time.Hour})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	bounded.Run(t, "the writer", func(ctx context.Context) error {
		// bounded: until it is stopped
		for ctx.Err() == nil {
			if _, err := a.pool.Exec(ctx, `select pawl.fire_one($1, 'add', '{"by": 1}')`, id); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	})
	for _, path := range []string{"/v1/instances/" + id + "/events?event=stop", "/v1/events?event=stop"} {
		s := a.stream(path, "")
		timer := time.AfterFunc(bounded.Limit, s.cancel)
		ids := map[string]bool{}
		// bounded: the timer ends the stream
		for len(ids) < 3 && s.lines.Scan() {
			if id, is := strings.CutPrefix(s.lines.Text(), "id: "); is {
				ids[id] = true
			}
		}
		if timer.Stop(); len(ids) < 3 {
			t.Errorf("%s has the ids %v", path, ids)
		}
	}
}
