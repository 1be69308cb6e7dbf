package task_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/task"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// looks returns a tracer that sends how many claims each call has.
func looks(calls chan<- int) fsmtest.Spy {
	return fsmtest.Spy{Started: func(sql string, args []any) {
		if !strings.Contains(sql, "pawl.work_claims") {
			return
		}
		for _, arg := range args {
			if text, ok := arg.(json.RawMessage); ok {
				var claims []any
				_ = json.Unmarshal(text, &claims)
				calls <- len(claims)
			}
		}
	}}
}

func command(topic string) task.ClaimCommand {
	return task.ClaimCommand{Tenant: fsm.DefaultTenant, Topic: topic, Worker: "w", Max: 1, Key: uuid.NewString()}
}

// However many workers wait at an idle topic, one of them looks at a time.
func TestIdleTopic(t *testing.T) {
	t.Parallel()
	const workers = 200
	calls := make(chan int, 10*workers)
	pool := fsmtest.Spied(t, dbtest.New(t), func(c *pgxpool.Config) { c.ConnConfig.Tracer = looks(calls) })
	tasks := task.New(fsmtest.On(t, pool, fsm.Config{}).Service, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waiting sync.WaitGroup
	for range workers {
		claim, err := tasks.Claim(ctx, command("pack"))
		if err != nil {
			t.Fatal(err)
		}
		waiting.Go(func() {
			defer claim.Close()
			if _, err := claim.Await(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for looked := 0; looked < workers; { // bounded: each look is for one claim at least
		looked += bounded.Receive(t, "the first looks", calls)
	}
	for range 3 {
		if n := bounded.Receive(t, "a look", calls); n != 1 {
			t.Errorf("%d claims look at the idle topic, want 1", n)
		}
	}
	cancel()
	bounded.Wait(t, "the claims", waiting.Wait)
}

// A claim whose time is over while it looks gets what the look takes. Given back, the task would come to the next worker as if
// somebody had worked on it.
func TestLookUnderWayCounts(t *testing.T) {
	t.Parallel()
	second := bounded.NewGate(t, "the second look")
	var looks atomic.Int64
	pool := fsmtest.Spied(t, dbtest.New(t), func(c *pgxpool.Config) {
		c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, _ []any) {
			if !strings.Contains(sql, "pawl.work_claims") {
				return
			}
			if looks.Add(1) == 2 {
				second.Pass()
			}
		}}
	})
	s := fsmtest.On(t, pool, fsm.Config{})
	fsmtest.Register(t, s, packing)
	tasks := task.New(s.Service, nil)
	claim, err := tasks.Claim(t.Context(), command("pack"))
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	over, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if work, err := claim.Await(over); len(work) > 0 || err != nil {
		t.Fatalf("%d tasks, %v", len(work), err)
	}
	fsmtest.Create(t, s, "packing", `{}`)
	second.Reached()
	got := make(chan int, 1)
	go func() {
		work, err := claim.Await(over)
		if err != nil {
			t.Error(err)
		}
		got <- len(work)
	}()
	second.Open()
	if n := bounded.Receive(t, "the claim", got); n != 1 {
		t.Errorf("it gets %d tasks, and what it took is given back", n)
	}
}

// Claims of two processes get each task once, and what is reported together is settled together.
func TestTasksAreDoneOnce(t *testing.T) {
	t.Parallel()
	n := 400
	pool := dbtest.New(t)
	a, b := processes(t, pool)
	seen := work(t, n, a, b)
	if len(seen) != n {
		t.Errorf("%d tasks were done, want %d", len(seen), n)
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("%s was claimed %d times", id, times)
		}
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.instance where state = 'B' and version = 2"); got != n {
		t.Errorf("%d instances have moved, want %d", got, n)
	}
}

// processes returns two services on a database, with pools of their own.
func processes(t testing.TB, pool *pgxpool.Pool) (a, b process) {
	t.Helper()
	all := make([]process, 2)
	for i := range all {
		s := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(pool), db.Config{}), fsm.Config{})
		all[i] = process{s, task.New(s.Service, nil)}
	}
	fsmtest.Register(t, all[0].service, packing)
	return all[0], all[1]
}

type process struct {
	service *fsmtest.Service
	tasks   *task.Service
}

// work makes n instances, and has two workers on each process do their tasks. It returns how often each was claimed.
func work(t testing.TB, n int, processes ...process) map[uuid.UUID]int {
	t.Helper()
	commands := make([]fsm.Command, n)
	for i := range commands {
		commands[i] = fsm.CreateCommand{Workflow: "packing", Context: []byte(`{}`)}
	}
	for _, r := range processes[0].service.Do(t.Context(), commands) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if b, ok := t.(*testing.B); ok {
		b.ResetTimer()
	}
	var mu sync.Mutex
	seen := map[uuid.UUID]int{}
	var working sync.WaitGroup
	for _, p := range processes {
		for range 2 {
			working.Go(func() {
				for {
					c := command("pack")
					c.Max = 50
					claim, err := p.tasks.Claim(t.Context(), c)
					if err != nil {
						t.Error(err)
						return
					}
					over, cancel := context.WithCancel(t.Context())
					cancel()
					claimed, err := claim.Await(over)
					claim.Close()
					if err != nil {
						t.Error(err)
					}
					if len(claimed) == 0 {
						return
					}
					var completing sync.WaitGroup
					for _, w := range claimed {
						mu.Lock()
						seen[w.ID]++
						mu.Unlock()
						completing.Go(func() {
							if _, err := p.tasks.Complete(t.Context(), fsm.DefaultTenant, w.ID, w.Lease, fmt.Appendf(nil, "%q", w.Key)); err != nil {
								t.Error(err)
							}
						})
					}
					completing.Wait()
				}
			})
		}
	}
	bounded.Wait(t, "the workers", working.Wait)
	return seen
}

func BenchmarkTasks(b *testing.B) {
	one, two := processes(b, dbtest.New(b))
	work(b, b.N, one, two)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}
