package db_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// What statistics read does not grow with the instances: they read sums, and of these only the rows of the workflow
// and the days that they are asked for.
func TestStatisticsReadSums(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `
		insert into pawl.dwell_count (tenant_id, workflow, workflow_version, day, state, bucket, led_to, visits, milliseconds)
		select 'default', 'w' || w, 1 + d / 50, date '2026-01-01' + d, 's' || s, b, 's' || s + 1, 10, 1000
		from generate_series(1, 10) w, generate_series(0, 99) d, generate_series(1, 5) s, generate_series(1, 20) b`)
	bounded.Exec(t, pool, `
		insert into pawl.edge_count (tenant_id, workflow, workflow_version, day, from_state, event, to_state, status, steps)
		select 'default', 'w' || w, 1 + d / 50, date '2026-01-01' + d, 's' || s, 'e' || e, 's' || s + 1, 'active', 10
		from generate_series(1, 10) w, generate_series(0, 99) d, generate_series(1, 5) s, generate_series(1, 5) e`)
	bounded.Exec(t, pool, "vacuum (analyze) pawl.dwell_count, pawl.edge_count")
	date := func(month time.Month, day int) pgtype.Date {
		return pgtype.Date{Time: time.Date(2026, month, day, 0, 0, 0, 0, time.UTC), Valid: true}
	}
	from, to := date(3, 1), date(3, 28)
	p := &planned{Conn: connect(t, pool), t: t}
	q := queries.New(p)
	for _, p.mode = range []string{"force_custom_plan", "force_generic_plan"} {
		for name, c := range map[string]struct {
			read  func(context.Context) error
			table string
			rows  float64 // Of 28 days.
		}{
			"dwells": {func(ctx context.Context) error {
				_, err := q.SumDwells(ctx, queries.SumDwellsParams{Tenant: "default", Workflow: "w3", FromDay: from, ToDay: to, BeforeDay: from, RowLimit: 10001})
				return err
			}, "dwell_count", 28 * 5 * 20},
			"edges": {func(ctx context.Context) error {
				_, err := q.SumEdges(ctx, queries.SumEdgesParams{Tenant: "default", Workflow: "w3", FromDay: from, ToDay: to, RowLimit: 10001})
				return err
			}, "edge_count", 28 * 5 * 5},
		} {
			if err := c.read(t.Context()); err != nil {
				t.Fatal(err)
			}
			tables := []string{}
			p.plan.walk(func(n planNode) {
				if n.Table == "" {
					return
				}
				tables = append(tables, n.Table)
				if read := n.Rows * n.Loops; read != c.rows {
					t.Errorf("%s, %s: %v rows were read, want %v", name, p.mode, read, c.rows)
				}
			})
			if !slices.Equal(tables, []string{c.table}) {
				t.Errorf("%s, %s reads %v", name, p.mode, tables)
			}
			// At worst each row is in a page of its own.
			if read := p.plan.Hit + p.plan.Read; read > int(c.rows)+100 {
				t.Errorf("%s, %s touched %d buffers", name, p.mode, read)
			}
		}
	}
}
