package db_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// registered is all that registering writes.
func registered(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	return bounded.Value[string](t, pool, `
		select jsonb_build_array(
			(select jsonb_agg(w order by name, version) from pawl.workflow w),
			(select jsonb_agg(s order by workflow, workflow_version, state) from pawl.workflow_state s),
			(select jsonb_agg(t order by workflow, workflow_version, source, event) from pawl.workflow_transition t))::text`)
}

func checksum(t testing.TB, pool *pgxpool.Pool, version int) string {
	t.Helper()
	return bounded.Value[string](t, pool, "select checksum from pawl.workflow where name = 'door' and version = $1", version)
}

func retire(ctx context.Context, q queries.DBTX, checksum string) (retired bool, err error) {
	err = q.QueryRow(ctx, "select pawl.retire_workflow('door', $1)", checksum).Scan(&retired)
	return retired, err
}

func TestRetire(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, flight) // A neighbour, of which nothing may change.
	register(t, pool, door)
	alone := registered(t, pool)
	register(t, pool, ajar)
	both, first, second := registered(t, pool), checksum(t, pool, 1), checksum(t, pool, 2)
	try := func(checksum string, want bool) {
		t.Helper()
		if got, err := retire(t.Context(), pool, checksum); err != nil || got != want {
			t.Errorf("retired: %v, %v; want %v", got, err, want)
		}
	}
	inUse := func(checksum string, version, instances int) {
		t.Helper()
		before := registered(t, pool)
		_, err := retire(t.Context(), pool, checksum)
		pgErr := wantCode(t, err, "PW40V")
		var got, want any
		detail := fmt.Sprintf(`{"code": "workflow-conflict", "version": %d, "instances": %d}`, version, instances)
		if json.Unmarshal([]byte(pgErr.Detail), &got) != nil || json.Unmarshal([]byte(detail), &want) != nil || !cmp.Equal(got, want) {
			t.Errorf("detail = %s, want %s", pgErr.Detail, detail)
		}
		if after := registered(t, pool); after != before {
			t.Errorf("a refusal left\n%s, want\n%s", after, before)
		}
	}

	try("nonsense", false)
	if got := registered(t, pool); got != both {
		t.Errorf("nothing was retired, and left\n%s", got)
	}
	try(second, true)
	if got := registered(t, pool); got != alone {
		t.Errorf("what is left is\n%s\nwant\n%s", got, alone)
	}
	try(second, false)

	// Any instance counts, of whatever tenant, and finished or not.
	old := create(t, pool, "acme", creation{workflow: "door"})[0]
	inUse(first, 1, 1)
	fire(t, pool, "acme", command{id: *old.ID, event: "open"})
	fire(t, pool, "acme", command{id: *old.ID, event: "remove"})
	doors(t, pool, 2)
	inUse(first, 1, 3)

	// Nothing names the number: it is given again.
	if version, created := register(t, pool, ajar); version != 2 || !created {
		t.Errorf("registered version %d, new: %v", version, created)
	}
	doors(t, pool, 1)
	inUse(second, 2, 1)
	inUse(first, 1, 3)
	bounded.Exec(t, pool, "delete from pawl.instance where workflow_version = 1")
	try(first, true)
	// The database refuses the state, and the version.
	for _, set := range []string{"state = 'OPEN'", "workflow_version = 1"} {
		_, err := pool.Exec(t.Context(), "update pawl.instance set "+set)
		if pgErr := wantCode(t, err, "23514"); pgErr.ConstraintName != "instance_state_is_declared" {
			t.Errorf("%s is refused by %s", set, pgErr.ConstraintName)
		}
	}
	// Without a version there is no workflow, and the name is free.
	bounded.Exec(t, pool, "delete from pawl.instance")
	try(second, true)
	wantOutcome(t, create(t, pool, tenant, creation{workflow: "door"})[0], "workflow-not-found")
	register(t, pool, door)
	if got := registered(t, pool); !strings.Contains(got, `"OPEN"`) {
		t.Errorf("registered again: %s", got)
	}
	doors(t, pool, 1)
}

// Going back to old content makes a version with the same checksum: the latest is meant unless one is named.
func TestRetireOneOfTwoAlike(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, definition := range []string{door, ajar, door} {
		register(t, pool, definition)
	}
	versions := func(want string) {
		t.Helper()
		if got := bounded.Value[string](t, pool, "select coalesce(string_agg(version::text, ' ' order by version), '') from pawl.workflow"); got != want {
			t.Errorf("versions = %s, want %s", got, want)
		}
	}
	sum := checksum(t, pool, 1)
	retired, err := queries.New(pool).RetireWorkflow(t.Context(), queries.RetireWorkflowParams{Name: "door", Checksum: sum, Version: 2})
	if err != nil || retired {
		t.Errorf("version 2, which has other content: %v, %v", retired, err)
	}
	if _, err := retire(t.Context(), pool, sum); err != nil {
		t.Fatal(err)
	}
	versions("1 2")
	register(t, pool, door)
	if _, err := queries.New(pool).RetireWorkflow(t.Context(), queries.RetireWorkflowParams{Name: "door", Checksum: sum, Version: 1}); err != nil {
		t.Fatal(err)
	}
	versions("2 3")
}

// A create that is under way is waited for, but not for long; what it made is then seen.
func TestRetireWaitsForCreates(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	sum := checksum(t, pool, 1)
	tx := begin(t, pool)
	doors(t, tx, 1)
	_, err := retire(t.Context(), pool, sum)
	wantCode(t, err, "55P03")
	commit(t, tx)
	_, err = retire(t.Context(), pool, sum)
	wantCode(t, err, "PW40V")
	bounded.Exec(t, pool, "delete from pawl.instance")

	// One that comes meanwhile waits, and finds what was decided.
	for _, committed := range []bool{false, true} {
		tx = begin(t, pool)
		if retired, err := retire(t.Context(), tx, sum); err != nil || !retired {
			t.Fatal(retired, err)
		}
		later := start(t, pool, func(q queries.DBTX) ([]queries.Outcome, error) {
			return tryCreate(bounded.Context(t), q, tenant, creation{workflow: "door"})
		})
		later.awaitBlocked(t, pool)
		want := "workflow-not-found"
		if committed {
			commit(t, tx)
		} else {
			want = "applied"
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		wantOutcome(t, later.wait(t)[0], want)
		bounded.Exec(t, pool, "delete from pawl.instance")
	}
}

// Writers wait for the second count: it must not read what belongs to other workflows.
func TestCountInstancesReadsItsWorkflow(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	register(t, pool, flight)
	bounded.Exec(t, pool, `
		insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'tenant ' || n % 7, pawl_private.uuid_v7(now()), 'flight-booking', 1, 'QUOTED', 'active', 1, '{}', now(), now()
		from generate_series(1, 20000) n`)
	doors(t, pool, 3)
	count := func() {
		t.Helper()
		conn := connect(t, pool)
		const read = "select coalesce(sum(idx_tup_fetch) + sum(seq_tup_read), 0)::bigint from pg_stat_xact_user_tables where relname = 'instance'"
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := bounded.Value[int](t, tx, "select pawl_private.count_instances('door', 1)"); got != 3 {
			t.Errorf("%d instances, want 3", got)
		}
		if rows := bounded.Value[int](t, tx, read); rows > 100 {
			t.Errorf("%d rows were read", rows)
		}
		commit(t, tx)
	}
	count() // Never analysed.
	bounded.Exec(t, pool, "analyze pawl.instance")
	count()
}

// Creates and retirements at once: no instance is left without its version.
func TestRetireUnderLoad(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for round := range 6 {
		register(t, pool, strings.ReplaceAll(door, "CLOSED", fmt.Sprint("CLOSED", round)))
		sum := checksum(t, pool, 1)
		group, ctx := errgroup.WithContext(t.Context())
		for range 3 {
			group.Go(func() error {
				for {
					o, err := tryCreate(ctx, pool, tenant, creation{workflow: "door"})
					if err != nil || o[0].Code == "workflow-not-found" {
						return err
					}
					// What a retirement under way does not see would stay for good.
					if _, err := pool.Exec(ctx, "delete from pawl.instance where id = $1 and exists (select from pawl.workflow)", o[0].ID); err != nil {
						return err
					}
				}
			})
		}
		group.Go(func() error {
			for {
				retired, err := retire(ctx, pool, sum)
				if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == "PW40V" || pgErr.Code == "55P03") {
					continue
				}
				if err == nil && !retired {
					err = errors.New("it was retired before")
				}
				return err
			}
		})
		if err := bounded.Result(t, "the creates and the retirement", group.Wait); err != nil {
			t.Fatal(err)
		}
		if got := bounded.Value[int](t, pool, "select count(*) from pawl.instance"); got != 0 {
			t.Fatalf("%d instances have no workflow", got)
		}
	}
}

// A number that history names, since instances were migrated away from it, is never given again.
func TestNumbersOfRetiredVersions(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, ajar)
	migrate(t, pool, queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2})
	migrate(t, pool, queries.MigrateInstancesParams{Workflow: "door", FromVersion: 2, ToVersion: 1})
	if retired, err := retire(t.Context(), pool, checksum(t, pool, 2)); err != nil || !retired {
		t.Fatal(retired, err)
	}
	if version, created := register(t, pool, door); version != 1 || created {
		t.Errorf("the latest again is version %d, new: %v", version, created)
	}
	if version, _ := register(t, pool, ajar); version != 3 {
		t.Errorf("registered version %d, want 3", version)
	}
	// Its states stay for readers of history. No instance can be in one.
	_, err := pool.Exec(t.Context(), "update pawl.instance set workflow_version = 2, state_hash = null")
	if pgErr := wantCode(t, err, "23514"); pgErr.ConstraintName != "instance_state_is_declared" {
		t.Errorf("it is refused by %s", pgErr.ConstraintName)
	}
}
