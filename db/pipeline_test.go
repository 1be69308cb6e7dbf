package db_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// numbered is door under another name.
func numbered(n int) string {
	return strings.Replace(door, `"door"`, fmt.Sprintf(`"door-%d"`, n), 1)
}

// Two pipelines register the same workflows at once, in opposite orders and several in a transaction. Each workflow
// gets one version. Meanwhile the commands for another workflow succeed, and none of them waits for a lock.
func TestPipelinesAtOnce(t *testing.T) {
	t.Parallel()
	const workflows, inOneTransaction = 1000, 20
	pool, ids := withDoors(t, 1)
	group, ctx := errgroup.WithContext(bounded.Context(t))
	served := make(chan struct{}) // Takes a value after a round of commands, if somebody waits for one.
	over := make(chan struct{})
	var pipelines sync.WaitGroup
	var created atomic.Int64
	for pipeline := range 2 {
		conn := connect(t, pool)
		pipelines.Add(1)
		group.Go(func() error {
			defer pipelines.Done()
			for first := 0; first < workflows; first += inOneTransaction {
				err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					for n := first; n < first+inOneTransaction; n++ {
						name := n
						if pipeline == 1 {
							name = workflows - 1 - n
						}
						row, err := queries.New(tx).RegisterWorkflow(ctx, queries.RegisterWorkflowParams{
							Definition: json.RawMessage(numbered(name)), Actor: "pipeline",
						})
						if err != nil {
							return err
						}
						if row.Created {
							created.Add(1)
						}
					}
					// Of two rounds that end now, one has also begun during this transaction.
					for range 2 {
						select {
						case <-served:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					return nil
				})
				if err != nil {
					return fmt.Errorf("pipeline %d: %w", pipeline, err)
				}
			}
			return nil
		})
	}
	go func() {
		pipelines.Wait()
		close(over)
	}()
	client := connect(t, pool)
	bounded.Exec(t, client, "set lock_timeout = '1ms'") // A command that waits for a lock fails.
	group.Go(func() error {
		for {
			for _, event := range []string{"open", "close"} {
				outcomes, err := tryFire(ctx, client, tenant, command{id: ids[0], event: event})
				if err == nil && outcomes[0].Code != "applied" {
					err = errors.New(outcomes[0].Code)
				}
				if err != nil {
					return fmt.Errorf("fire %s: %w", event, err)
				}
			}
			if outcomes, err := tryCreate(ctx, client, tenant, creation{workflow: "door"}); err != nil || outcomes[0].Code != "applied" {
				return fmt.Errorf("create: %v, %w", outcomes, err)
			}
			select {
			case served <- struct{}{}:
			case <-over:
				return nil
			default:
			}
		}
	})
	if err := bounded.Result(t, "the pipelines", group.Wait); err != nil {
		t.Fatal(err)
	}
	if n := created.Load(); n != workflows {
		t.Errorf("the pipelines say that they made %d versions, want %d", n, workflows)
	}
	if got, want := bounded.Value[string](t, pool, `
		select concat_ws(' ', count(*), count(distinct name), max(version)) from pawl.workflow where name like 'door-%'`),
		fmt.Sprint(workflows, workflows, 1); got != want {
		t.Errorf("versions, workflows and the highest version are %s, want %s", got, want)
	}
}

// A session goes on while versions and workflows are registered, by others or by itself. It creates instances of the
// latest version, moves those of the first one, and does not need more memory for each registration. The bound is far
// above what a new plan changes.
func TestSessionOutlivesRegistrations(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"another", "itself"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			pool, ids := withDoors(t, 1)
			session := connect(t, pool)
			registrar := queries.DBTX(pool)
			if by == "itself" {
				registrar = session
			}
			memory := map[int]int64{}
			for n := 1; n <= 100; n++ {
				state := fmt.Sprintf("OPEN_%d", n)
				if version, created := register(t, registrar, strings.ReplaceAll(door, "OPEN", state)); version != int32(n+1) || !created {
					t.Fatalf("registered version %d, new: %v; want %d", version, created, n+1)
				}
				register(t, registrar, numbered(n))
				young := create(t, session, tenant, creation{workflow: "door"})[0]
				wantOutcome(t, young, "applied")
				if *young.WorkflowVersion != int32(n+1) {
					t.Fatalf("after version %d an instance of version %d is created", n+1, *young.WorkflowVersion)
				}
				other := create(t, session, tenant, creation{workflow: fmt.Sprintf("door-%d", n)})[0]
				wantOutcome(t, other, "applied")
				moved := fire(t, session, tenant,
					command{id: *young.ID, event: "open"}, command{id: *other.ID, event: "open"},
					command{id: ids[0], event: "open"}, command{id: ids[0], event: "close"})
				for i, want := range []string{state, "OPEN", "OPEN", "CLOSED"} {
					wantOutcome(t, moved[i], "applied")
					if *moved[i].State != want {
						t.Fatalf("after version %d, command %d leads to %s, want %s", n+1, i+1, *moved[i].State, want)
					}
				}
				if n%50 == 0 {
					memory[n] = bounded.Value[int64](t, session, "select sum(used_bytes)::bigint from pg_backend_memory_contexts")
				}
			}
			if float64(memory[100]) > 1.1*float64(memory[50]) {
				t.Errorf("the session has %d bytes after 50 rounds, and %d after 100", memory[50], memory[100])
			}
		})
	}
}
