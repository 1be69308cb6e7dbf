package db_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// finalPages reads a whole pass, and returns what each page has as "tenant workflow status ids", and the number of calls.
func finalPages(t testing.TB, q queries.DBTX, p queries.FinalInstancesParams) (pages []string, calls int) {
	t.Helper()
	for { // bounded: each page begins where the last one ended
		page, err := queries.New(q).FinalInstances(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		calls++
		if page.AtTenant == "" {
			return pages, calls
		}
		if len(page.Ids) > 0 {
			pages = append(pages, fmt.Sprint(page.AtTenant, " ", page.AtWorkflow, " ", page.AtStatus, " ", len(page.Ids)))
		}
		p.AtTenant, p.AtWorkflow, p.AtStatus, p.AtID = page.AtTenant, page.AtWorkflow, page.AtStatus, page.AtID
	}
}

func hours(n int64) pgtype.Interval { return pgtype.Interval{Microseconds: n * 3600e6, Valid: true} }

func TestFinalInstances(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, parcel)
	register(t, pool, claim)
	dbtest.SetClock(t, pool, noon)
	end := func(tenant, workflow, event string, n int) {
		t.Helper()
		for range n {
			o := create(t, pool, tenant, creation{workflow: workflow})[0]
			if event != "" {
				wantOutcome(t, fire(t, pool, tenant, command{id: *o.ID, event: event})[0], "applied")
			}
			dbtest.Advance(t, pool, time.Millisecond)
		}
	}
	late := *create(t, pool, "b", creation{workflow: "parcel"})[0].ID
	for _, tenant := range []string{"b", "a", "c"} {
		end(tenant, "parcel", "ship", 5)
		end(tenant, "parcel", "lose", 2)
		end(tenant, "parcel", "", 3)
		end(tenant, "claim", "close", 1)
	}
	dbtest.Advance(t, pool, time.Hour)
	end("b", "parcel", "ship", 2)
	wantOutcome(t, fire(t, pool, "b", command{id: late, event: "ship"})[0], "applied")

	want := func(p queries.FinalInstancesParams, want ...string) {
		t.Helper()
		p.RowLimit = 3
		if got, _ := finalPages(t, pool, p); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	of := func(tenant string) []string {
		return []string{
			tenant + " claim failed 1", tenant + " parcel completed 3", tenant + " parcel completed 2", tenant + " parcel failed 2",
		}
	}
	b := of("b")
	b[1], b[2] = "b parcel completed 2", "b parcel completed 3" // The page has one that ended late.
	want(queries.FinalInstancesParams{Age: hours(1)}, slices.Concat(of("a"), b, of("c"))...)
	want(queries.FinalInstancesParams{Age: hours(1), Tenant: new("b")}, b...)
	want(queries.FinalInstancesParams{Age: hours(1), Workflows: []string{"claim", "nothing"}}, "a claim failed 1", "b claim failed 1", "c claim failed 1")
	want(queries.FinalInstancesParams{Age: hours(1), Tenant: new("nobody")})
	want(queries.FinalInstancesParams{Age: hours(2)})
	want(queries.FinalInstancesParams{}) // No workflow has a policy.

	// The policy is that of the latest version.
	bounded.Exec(t, pool, "update pawl.workflow set retention = '1 hour' where name = 'claim'")
	want(queries.FinalInstancesParams{}, "a claim failed 1", "b claim failed 1", "c claim failed 1")
	register(t, pool, strings.Replace(claim, "HELD", "KEPT", 2))
	want(queries.FinalInstancesParams{})
	bounded.Exec(t, pool, "update pawl.workflow set retention = case version when 1 then interval '2 hours' else interval '1 hour' end where name = 'claim'")
	want(queries.FinalInstancesParams{}, "a claim failed 1", "b claim failed 1", "c claim failed 1")
	bounded.Exec(t, pool, "update pawl.workflow set retention = '2 hours' where name = 'claim' and version = 2")
	want(queries.FinalInstancesParams{})
}

// An instance with a long history is a page of its own.
func TestPagesAreBoundedBySteps(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, parcel)
	bounded.Exec(t, pool, `
		insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'default', pawl_private.uuid_v7(now() - interval '1 day' + n * interval '1 ms'), 'parcel', 1, 'DONE', 'completed',
			case n when 3 then 1000000 else 30 end, '{}', now() - interval '1 day', now() - interval '1 day'
		from generate_series(1, 9) n`)
	got, _ := finalPages(t, pool, queries.FinalInstancesParams{Age: hours(1), RowLimit: 5})
	want := []string{"2", "1", "3", "3"}
	for i := range want {
		want[i] = "default parcel completed " + want[i]
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Many tenants without anything to remove are passed some at a time.
func TestManyTenantsArePassedInParts(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, parcel)
	bounded.Exec(t, pool, `
		insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'tenant ' || lpad(n::text, 4, '0'), pawl_private.uuid_v7(now() - interval '1 day'), 'parcel', 1,
			case n when 1000 then 'DONE' else 'NEW' end, case n when 1000 then 'completed' else 'active' end, 1, '{}',
			now() - interval '1 day', now() - interval '1 day'
		from generate_series(1, 1000) n`)
	got, calls := finalPages(t, pool, queries.FinalInstancesParams{Age: hours(1), RowLimit: 10})
	if !slices.Equal(got, []string{"tenant 1000 parcel completed 1"}) || calls < 10 || calls > 12 {
		t.Errorf("%q in %d calls", got, calls)
	}
}

// However many instances there are, and whatever is known of the tables: pages and removals read by full keys, or a
// page of an index in its order.
func TestRemovalReadsByKey(t *testing.T) {
	t.Parallel()
	for _, analysed := range []bool{false, true} {
		t.Run(fmt.Sprintf("analysed %v", analysed), func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			for _, table := range []string{"instance", "history", "idempotency_key", "timer"} {
				bounded.Exec(t, pool, "alter table pawl."+table+" set (autovacuum_enabled = off)")
			}
			register(t, pool, door)
			setup, early := connect(t, pool), connect(t, pool)
			work := func(q queries.DBTX, want int) {
				t.Helper()
				p := queries.FinalInstancesParams{RowLimit: 50, Age: hours(1)}
				for range 2 {
					page, err := queries.New(q).FinalInstances(t.Context(), p)
					if err != nil {
						t.Fatal(err)
					}
					removed, err := remove(t.Context(), q, tenant, page.Before, append(page.Ids, uuid.New())...)
					if err != nil {
						t.Fatal(err)
					}
					if len(removed) != want {
						t.Errorf("%d are removed, want %d", len(removed), want)
					}
				}
			}
			gone(t, setup, tenant, creation{}) // Else its first statements are not planned.
			bounded.Exec(t, setup, "update pawl.instance set created_at = created_at - interval '1 day', state_changed_at = state_changed_at - interval '1 day'")
			for range 10 { // As often as makes a session keep a plan.
				work(early, 0)
			}
			bounded.Exec(t, setup, `
				insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
				select 'default', pawl_private.uuid_v7(now() - interval '1 day' + n * interval '1 ms'), 'door', 1, 'GONE', 'completed', 4, '{}',
					now() - interval '1 day', now() - interval '1 day'
				from generate_series(1, 20000) n`)
			bounded.Exec(t, setup, `
				insert into pawl.history (
					tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, key, at)
				select 'default', i.id, v, 'door', 1, case v when 1 then 'created' else 'transition' end, 'GONE', 'completed', '{}', 'x',
					i.id || '.' || v, now()
				from pawl.instance i
				cross join generate_series(1, 4) v
				where i.version = 4`)
			bounded.Exec(t, setup, `
				insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
				select 'default', h.key || case h.version when 4 then ' refused' else '' end, sha256(''),
					case h.version when 4 then 'guard-rejected' else 'applied' end, h.instance_id, h.version, now() - interval '1 hour'
				from pawl.history h
				where h.key is not null and h.version between 2 and 4 and h.actor = 'x'`)
			if analysed {
				bounded.Exec(t, setup, "analyze pawl.instance, pawl.history, pawl.idempotency_key, pawl.timer")
			}
			late := connect(t, pool)
			for _, conn := range []queries.DBTX{setup, early} {
				bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
			}
			bounded.Exec(t, pool, "select pg_stat_reset()")
			for range 5 {
				work(early, 50)
				work(late, 50)
			}
			for _, conn := range []queries.DBTX{early, late} {
				bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
			}
			for _, use := range bounded.Column[string](t, pool, `
				select format('%s was read whole: %s times', relname, seq_scan) from pg_stat_user_tables
				where schemaname = 'pawl' and seq_scan > 0 and relname in ('instance', 'idempotency_key', 'history', 'timer')
				union all
				select format('%s was used: %s times, %s entries read', indexrelname, idx_scan, idx_tup_read) from pg_stat_user_indexes
				where schemaname = 'pawl' and relname in ('instance', 'idempotency_key', 'history', 'timer') and idx_scan > 0
					-- To plan for a time the planner looks the latest up.
					and (indexrelname <> 'idempotency_key_expires_at_idx' or idx_scan > 100)
					and (
						indexrelname <> all ('{instance_pkey,instance_workflow_idx,idempotency_key_pkey,idempotency_key_expires_at_idx,idempotency_key_refused_idx,history_pkey,timer_pkey}')
						or idx_tup_read > case indexrelname when 'history_pkey' then 8 when 'instance_workflow_idx' then 1000 else 2 end * idx_scan)`) {
				t.Error(use)
			}
			if n := bounded.Value[int](t, pool, "select idx_scan from pg_stat_user_indexes where indexrelname = 'idempotency_key_refused_idx'"); n != 1000 {
				t.Errorf("refusals were looked for %d times, want once for each of 1,000 instances", n)
			}
		})
	}
}
