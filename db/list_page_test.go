package db_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A page may end before its limit and say where the list goes on. All pages together are the list, however few instances
// a page reads: each instance is on one of them, in order, whether it was folded or not.
func TestShortPagesAreTheWholeList(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, noon)
	register(t, pool, parcel)
	// 150 instances that were created one after the other and moved at other times. Their colours are in contexts alone for
	// those that are not folded, as every seventh is.
	bounded.Exec(t, pool, `update pawl.workflow set search = '{"n": {"path": ["n"]}, "c": {"path": ["c"]}}'`)
	bounded.Exec(t, pool, `
		insert into pawl_private.search_index (workflow, search, complete, after_tenant, after_id, indexed)
		select w.name, w.search, true, '', '00000000-0000-0000-0000-000000000000', 0 from pawl.workflow w
		on conflict on constraint search_index_pkey do update set search = excluded.search, complete = true`)
	bounded.Exec(t, pool, `
		insert into pawl.instance (
			tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'default', (lpad(to_hex((extract(epoch from c.at) * 1000)::bigint), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
			'parcel', 1, case when n % 3 = 0 then 'HELD' else 'NEW' end, 'active', 1,
			jsonb_build_object('n', n * 7 % 50, 'c', case when n % 5 = 0 then 'red' else 'blue' end), c.at,
			c.at + ((n * 31) % 97)::double precision / 97 * ($1::timestamptz - c.at)
		from generate_series(1, 150) n
		cross join lateral (select $1::timestamptz - interval '4 hours' + n * interval '80 seconds' as at) c`, noon)
	bounded.Exec(t, pool, `
		insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, at)
		select i.tenant_id, i.id, 1, i.workflow, 1, 'created', i.state, i.status, i.context, 'tester', i.created_at
		from pawl.instance i order by substr(i.id::text, 36) in ('0', '7'), i.id`)
	bounded.Exec(t, pool, `
		insert into pawl.log (position, tenant_id, instance_id, version)
		select row_number() over (order by h.seq), h.tenant_id, h.instance_id, h.version from pawl.history h`)
	folded := bounded.Value[int64](t, pool, "select count(*) from pawl.instance i where substr(i.id::text, 36) not in ('0', '7')")
	bounded.Exec(t, pool, `
		insert into pawl.residence (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
		select i.tenant_id, i.id, i.workflow, 1, i.state, i.status, i.state_changed_at, 1, i.state_changed_at
		from pawl.instance i where substr(i.id::text, 36) not in ('0', '7')`)
	// Of some that were not folded it was folded where they were before.
	bounded.Exec(t, pool, `
		insert into pawl.residence (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
		select i.tenant_id, i.id, i.workflow, 1, case i.state when 'NEW' then 'HELD' else 'NEW' end, 'active', i.created_at, 1, i.created_at
		from pawl.instance i where substr(i.id::text, 36) = '7'`)
	bounded.Exec(t, pool, `
		insert into pawl.attribute (tenant_id, instance_id, name, workflow, number_value, text_value)
		select r.tenant_id, r.instance_id, v.name, 'parcel', v.number, v.text
		from pawl.residence r
		join pawl.instance i on i.tenant_id = r.tenant_id and i.id = r.instance_id
		cross join lateral (values
			('n', (i.context ->> 'n')::numeric, null), ('c', null, case when r.since = i.state_changed_at then i.context ->> 'c' else 'red' end)
		) v (name, number, text)`)
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true)")
	bounded.Exec(t, pool, "update pawl.consumer set position = $1 where name = 'insight'", folded)
	bounded.Exec(t, pool, "update pawl.log_head set position = 150, epoch = 1, snapshot = pg_current_snapshot()")
	q := queries.New(pool)

	for _, ascending := range []bool{true, false} {
		order := map[bool]string{true: "i.id", false: "i.id desc"}[ascending]
		for _, c := range []struct {
			states []string
			stuck  time.Duration
		}{{[]string{"NEW"}, 0}, {[]string{"NEW", "HELD"}, time.Hour}, {[]string{"HELD"}, 2 * time.Hour}, {[]string{"NEW"}, 3 * time.Hour}, {[]string{"HELD"}, 5 * time.Hour}} {
			want := bounded.Column[uuid.UUID](t, pool, "select i.id from pawl.instance i where i.state = any ($1) and i.state_changed_at <= $2 order by "+order, c.states, noon.Add(-c.stuck))
			for _, few := range []int32{0, 1000} {
				for _, probes := range []int32{1, 7, 1000} {
					p := queries.InstancesInStatesParams{
						TenantID: tenant, Workflows: slices.Repeat([]string{"parcel"}, len(c.states)), States: c.states, Statuses: []string{"active"},
						StuckFor:  pgtype.Interval{Microseconds: c.stuck.Microseconds(), Valid: c.stuck > 0},
						Ascending: ascending, RowLimit: 9, Most: 1000, Few: few, Probes: probes,
					}
					wantPages(t, fmt.Sprintf("in %v for %s, few are %d, probes are %d", c.states, c.stuck, few, probes), want, 9, func(after *uuid.UUID) ([]uuid.UUID, *uuid.UUID) {
						p.AfterID = after
						list, err := q.InstancesInStates(t.Context(), p)
						if err != nil {
							t.Fatal(err)
						}
						return list.Ids, list.Rest
					})
				}
			}
		}
		for conditions, sql := range map[string]string{
			`{"name": "n", "op": "=", "kind": "number", "value": "14"}`:                                                                      "i.context @> '{\"n\": 14}'",
			`{"name": "n", "op": ">", "kind": "number", "value": "10"}, {"name": "n", "op": "<=", "kind": "number", "value": "30"}`:          "(i.context ->> 'n')::int > 10 and (i.context ->> 'n')::int <= 30",
			`{"name": "c", "op": "=", "kind": "text", "value": "red"}`:                                                                       "i.context @> '{\"c\": \"red\"}'",
			`{"name": "c", "op": "^", "kind": "text", "value": "b"}, {"name": "n", "op": "<", "kind": "number", "value": "25"}`:              "i.context @> '{\"c\": \"blue\"}' and (i.context ->> 'n')::int < 25",
			`{"name": "c", "op": "=", "kind": "text", "value": "red"}, {"name": "c", "op": "=", "kind": "text", "value": "blue"}`:            "false",
			`{"name": "c", "op": "<", "kind": "text", "value": "red"}, {"name": "c", "op": ">=", "kind": "text", "value": "blue"}`:           "i.context @> '{\"c\": \"blue\"}'",
			`{"name": "c", "op": "^", "kind": "text", "value": "re"}, {"name": "c", "op": "^", "kind": "text", "value": "red"}`:              "i.context @> '{\"c\": \"red\"}'",
			`{"name": "n", "op": ">=", "kind": "number", "value": "0"}, {"name": "c", "op": "=", "kind": "text", "value": "no such colour"}`: "false",
		} {
			for _, states := range [][]string{nil, {"HELD"}, {"NEW", "HELD"}} {
				want := bounded.Column[uuid.UUID](t, pool, "select i.id from pawl.instance i where "+sql+" and ($1::text[] is null or i.state = any ($1)) order by "+order, states)
				for _, bounds := range [][2]int32{{0, 5}, {1000, 5}, {1000, 40}, {1000, 1000}} {
					for _, most := range []*int32{nil, new(int32(1000))} {
						p := queries.InstancesWhereParams{
							TenantID: tenant, Workflow: "parcel", Conditions: []byte("[" + conditions + "]"), States: states, Ascending: ascending,
							RowLimit: 9, Few: bounds[0], Probes: bounds[1], Most: most,
						}
						wantPages(t, fmt.Sprintf("where %s in %v, few and probes are %v, most is %v", conditions, states, bounds, most), want, 9, func(after *uuid.UUID) ([]uuid.UUID, *uuid.UUID) {
							p.AfterID = after
							list, err := q.InstancesWhere(t.Context(), p)
							if err != nil {
								t.Fatal(err)
							}
							return list.Ids, list.Rest
						})
					}
				}
			}
		}
	}
}

// A condition that one value fulfils is read in the order of the list, whatever other conditions there are for the attribute.
func TestOneValueIsReadInOrder(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, parcel)
	bounded.Exec(t, pool, `update pawl.workflow set search = '{"c": {"path": ["c"]}}'`)
	bounded.Exec(t, pool, `
		insert into pawl.attribute (tenant_id, instance_id, name, workflow, text_value)
		select 'default', ('f' || substr(gen_random_uuid()::text, 2))::uuid, 'c', 'parcel', 'blue' from generate_series(1, 5000)
		union all
		select 'default', ('0' || substr(gen_random_uuid()::text, 2))::uuid, 'd', 'parcel', 'blue' from generate_series(1, 100000)`)
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true)")
	bounded.Exec(t, pool, "update pawl.log_head set epoch = 1, snapshot = pg_current_snapshot()")
	bounded.Exec(t, pool, "vacuum analyze pawl.attribute")
	equal := `{"name": "c", "op": "=", "kind": "text", "value": "blue"}`
	conn := connect(t, pool)
	bounded.Exec(t, conn, "select from pawl.instances_where('default', 'parcel', $1::jsonb, null, null, true, null, 10, 0, 20, '1 minute', 1000)", "["+equal+"]") // Then the catalogs are known.
	for _, more := range []string{
		"", `, {"name": "c", "op": ">=", "kind": "text", "value": "b"}`, `, {"name": "c", "op": "^", "kind": "text", "value": "b"}`,
		`, {"name": "c", "op": "^", "kind": "text", "value": "r"}`,
	} {
		plan := strings.Join(bounded.Column[string](t, conn, `
			explain (analyze, buffers, costs off, timing off, summary off)
			select from pawl.instances_where('default', 'parcel', $1::jsonb, null, null, true, null, 10, 0, 20, '1 minute', 1000)`, "["+equal+more+"]"), "\n")
		buffers := 0
		for _, n := range regexp.MustCompile(`(?:hit|read)=(\d+)`).FindAllStringSubmatch(strings.SplitN(plan, "Planning", 2)[0], -1) {
			pages, err := strconv.Atoi(n[1])
			if err != nil {
				t.Fatal(err)
			}
			buffers = max(buffers, pages)
		}
		if buffers < 1 || buffers > 500 {
			t.Errorf("with %q, %d buffers are touched:\n%s", more, buffers, plan)
		}
	}
}

// wantPages reads all pages of a list. A page goes on behind its last id if it has as many as its limit, and else behind
// the rest.
func wantPages(t *testing.T, name string, want []uuid.UUID, limit int, read func(after *uuid.UUID) ([]uuid.UUID, *uuid.UUID)) {
	t.Helper()
	var all []uuid.UUID
	var after *uuid.UUID
	for range 2000 {
		ids, rest := read(after)
		all = append(all, ids...)
		switch {
		case len(ids) == limit && rest == nil:
			after = &ids[limit-1]
		case rest != nil && (after == nil || *rest != *after):
			after = rest
		case rest != nil:
			t.Fatalf("%s: the list does not go on behind %s", name, rest)
		default:
			if !slices.Equal(all, want) {
				t.Fatalf("%s: %d instances, want %d", name, len(all), len(want))
			}
			return
		}
	}
	t.Fatalf("%s: the pages do not end", name)
}
