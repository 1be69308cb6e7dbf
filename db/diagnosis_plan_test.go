package db_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// crowded gives one of 2,000 instances thousands of everything, and each other one some.
const crowded = `
	with i as (
		select i.id, case when i.id = $1 then 3000 else 2 end as many from pawl.instance i
	),
	task as (
		insert into pawl.task (tenant_id, id, instance_id, workflow, workflow_version, position, state, name, topic, entered_version, status, deadline_at, created_at, ended_at, result)
		select 'default', gen_random_uuid(), i.id, 'courier', 1, 1, 'PACKING', 'pack', 'pack', 1, 'done', now(), now(), now(), '{}' from i, generate_series(1, i.many)
		returning id
	),
	attempt as (
		insert into pawl.task_attempt (tenant_id, task_id, number, kind, key, lease, started_at)
		select 'default', t.id, n, 'work', 'k', t.id, now() from task t, generate_series(1, 4) n
	),
	delivery as (
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, seq, type, status, attempts, created_at, delivered_at)
		select 'default', gen_random_uuid(), gen_random_uuid(), false, i.id, n, n, 'pawl.instance.transitioned',
			(array['pending', 'dead', 'delivered', 'delivered'])[1 + n % 4], 1, now(), now()
		from i, generate_series(1, i.many) n
	),
	finding as (
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, cause_id, opened_at, closed_at, detail)
		select 'default', gen_random_uuid(), 'delivery-dead', i.id, 'courier', 'PACKING', n, now(), gen_random_uuid(), now(), case when n % 2 = 0 then now() end, '{}'
		from i, generate_series(1, i.many) n
	),
	history as (
		insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status, context, actor, at)
		select 'default', i.id, n + 1, 'courier', 1, 'transition', 'e', 'PACKING', 'PACKING', 'active', '{}', 'tester', now() from i, generate_series(1, i.many) n
	),
	refusal as (
		insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at, refusal)
		select 'default', i.id || ' ' || n, sha256('x'), 'guard-rejected', i.id, 1, now() + n * interval '1 s', jsonb_build_object('event', 'e', 'at', now())
		from i, generate_series(1, i.many) n
	)
	insert into pawl.compensation (tenant_id, instance_id, name, workflow, workflow_version, position, version, status)
	select 'default', i.id, 'pack', 'courier', 1, 1, 1, 'registered' from i, generate_series(1, i.many)`

// What a diagnosis reads of an instance does not grow with what the instance has, nor with what there is.
func TestDiagnosisReadsLittle(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, courier)
	bounded.Exec(t, pool, "select pawl.create_one('courier') from generate_series(1, 2000)")
	id := bounded.Value[uuid.UUID](t, pool, "select id from pawl.instance order by id limit 1 offset 1000")
	bounded.Exec(t, pool, crowded, id)
	bounded.Exec(t, pool, "vacuum (analyze)")

	const limit = 21
	p := &planned{Conn: connect(t, pool), t: t}
	q := queries.New(p)
	tasks := bounded.Column[uuid.UUID](t, pool, "select id from pawl.task where instance_id = $1 order by id desc limit 20", id)
	for _, p.mode = range []string{"force_custom_plan", "force_generic_plan"} {
		for name, c := range map[string]struct {
			read func(context.Context) (rows int, err error)
			rows int
			most float64 // Rows that are read of a table.
		}{
			"instance": {func(ctx context.Context) (int, error) {
				_, err := q.DiagnosedInstance(ctx, queries.DiagnosedInstanceParams{TenantID: tenant, ID: id})
				return 1, err
			}, 1, 2},
			"deadlines": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedDeadlines(ctx, queries.DiagnosedDeadlinesParams{TenantID: tenant, ID: id, RowLimit: limit})
				return len(rows), err
			}, 0, 1},
			"transitions": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedTransitions(ctx, queries.DiagnosedTransitionsParams{Workflow: "courier", WorkflowVersion: 1, State: "PACKING", GuardLimit: 9, RowLimit: limit})
				return len(rows), err
			}, 7, 7},
			// 200 are looked at, and those that are shown are read by their ids.
			"tasks": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedTasks(ctx, queries.DiagnosedTasksParams{TenantID: tenant, InstanceID: id, Looks: 200, RowLimit: limit})
				return len(rows), err
			}, limit, 200 + limit},
			"attempts": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedAttempts(ctx, queries.DiagnosedAttemptsParams{TenantID: tenant, Tasks: tasks, RowLimit: 3})
				return len(rows), err
			}, 60, 60},
			"compensations": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedCompensations(ctx, queries.DiagnosedCompensationsParams{TenantID: tenant, InstanceID: id, RowLimit: limit})
				return len(rows), err
			}, limit, limit},
			"deliveries": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedDeliveries(ctx, queries.DiagnosedDeliveriesParams{TenantID: tenant, InstanceID: &id, RowLimit: limit})
				return len(rows), err
			}, 2 * limit, 4*limit + 2},
			"refusals": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedRefusals(ctx, queries.DiagnosedRefusalsParams{TenantID: tenant, InstanceID: id, RowLimit: limit})
				return len(rows), err
			}, limit, limit},
			"findings": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedFindings(ctx, queries.DiagnosedFindingsParams{TenantID: tenant, InstanceID: id, Kinds: []string{"slow", "delivery-dead"}, RowLimit: limit, OpenLimit: 5})
				return max(len(rows), limit), err
			}, limit + 5, 2 * (limit + 5)},
			"steps": {func(ctx context.Context) (int, error) {
				rows, err := q.DiagnosedSteps(ctx, queries.DiagnosedStepsParams{TenantID: tenant, InstanceID: id, RowLimit: limit})
				return len(rows), err
			}, limit, limit},
			"count of findings": {func(ctx context.Context) (int, error) {
				rows, err := q.CountFindings(ctx, queries.CountFindingsParams{Kinds: []string{"slow", "delivery-dead"}, Most: 100})
				if err == nil && (rows[0].Findings != 0 || rows[1].Findings != 100) {
					t.Errorf("counted: %+v", rows)
				}
				return len(rows), err
			}, 2, 100},
		} {
			rows, err := c.read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if rows > c.rows || rows < min(c.rows, limit) {
				t.Errorf("%s has %d rows, want %d", name, rows, c.rows)
			}
			read := map[string]float64{}
			failed := false
			p.plan.walk(func(n planNode) {
				// The others have a few rows here, and may be read whole.
				if !slices.Contains([]string{"instance", "history", "task", "task_attempt", "compensation", "delivery", "idempotency_key", "finding"}, n.Table) {
					return
				}
				read[n.Table] += n.Rows * n.Loops
				failed = failed || strings.HasSuffix(n.Type, "Seq Scan")
			})
			for table, n := range read {
				if n > c.most {
					t.Errorf("%s, %s: %v rows of %s were read, want at most %v", name, p.mode, n, table, c.most)
					failed = true
				}
			}
			if buffers := p.plan.Hit + p.plan.Read; failed || buffers > 3000 {
				t.Errorf("%s, %s touched %d buffers:\n%s", name, p.mode, buffers, p.text)
			}
		}
	}
}
