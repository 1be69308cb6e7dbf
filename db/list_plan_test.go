package db_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// parcel and claim give one state, CLOSED, two statuses.
const (
	parcel = `{"name": "parcel", "initial": "NEW", "states": {
		"NEW": {"on": {"hold": [{"target": "HELD"}], "ship": [{"target": "DONE"}], "lose": [{"target": "LOST"}], "close": [{"target": "CLOSED"}]}},
		"HELD": {"on": {"release": [{"target": "NEW"}]}},
		"DONE": {"type": "final"}, "CLOSED": {"type": "final"}, "LOST": {"type": "final", "outcome": "failed"}}}`
	claim = `{"name": "claim", "initial": "NEW", "states": {
		"NEW": {"on": {"hold": [{"target": "HELD"}], "close": [{"target": "CLOSED"}]}},
		"HELD": {"on": {"release": [{"target": "NEW"}]}},
		"CLOSED": {"type": "final", "outcome": "failed"}}}`
)

// millionRows makes a day of a large deployment: a million instances, one a tenth of a
// second, of which 97 % are done, 2.9 % active and 0.1 % failed. One in a hundred of the
// active is held, one in a thousand is a claim; two in ten have a correlation id.
const millionRows = `
	insert into pawl.instance (
		tenant_id, id, workflow, workflow_version, state, status, version, context, business_key, correlation_id,
		created_at, state_changed_at, state_hash)
	select
		'default', (lpad(to_hex((extract(epoch from c.at) * 1000)::bigint), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
		w.workflow, 1, s.state, s.status, 3, '{}', 'key ' || n, case when n % 10 < 2 then 'group ' || n / 1000 end,
		c.at, c.at + interval '1 second', hashtextextended(s.state, hashtextextended(w.workflow, 1))
	from generate_series(1, 1000000) n
	cross join lateral (select $1::timestamptz + n * interval '100 milliseconds' as at) c
	cross join lateral (
		select case when n % 1000 = 999 then 'claim' when n % 10 = 9 then 'parcel' else 'door' end as workflow
	) w
	cross join lateral (
		select
			case
				when w.workflow = 'claim' then 'NEW'
				when n % 1000 = 500 then 'LOST'
				when n % 3000 = 7 then 'HELD'
				when n % 1000 < 28 then 'NEW'
				else 'DONE'
			end as state,
			case
				when w.workflow = 'claim' then 'active'
				when n % 1000 = 500 then 'failed'
				when n % 1000 < 28 then 'active'
				else 'completed'
			end as status
	) s`

// planned runs statements and keeps the plan of each, with what its execution read.
type planned struct {
	*pgx.Conn
	t    *testing.T
	mode string // plan_cache_mode
	plan planNode
	text string
}

type planNode struct {
	Type  string     `json:"Node Type"`
	Table string     `json:"Relation Name"`
	Index string     `json:"Index Name"`
	Rows  float64    `json:"Actual Rows"` // Of each loop.
	Loops float64    `json:"Actual Loops"`
	Hit   int        `json:"Shared Hit Blocks"`
	Read  int        `json:"Shared Read Blocks"`
	Plans []planNode `json:"Plans"`
}

func (n planNode) walk(visit func(planNode)) {
	visit(n)
	for _, child := range n.Plans {
		child.walk(visit)
	}
}

func (p *planned) explain(ctx context.Context, sql string, args []any) {
	p.t.Helper()
	bounded.Exec(p.t, p.Conn, "set plan_cache_mode = "+p.mode)
	bounded.Exec(p.t, p.Conn, "prepare planned as "+sql)
	args = slices.Clone(args)
	list := make([]string, len(args))
	for i, arg := range args {
		list[i] = fmt.Sprintf("$%d", i+1)
		if ids, ok := arg.([]uuid.UUID); ok { // Which pgx cannot write without its type.
			args[i] = texts(ids)
		}
	}
	execute := "explain (analyze, buffers, format json) execute planned"
	if len(args) > 0 {
		execute += "(" + strings.Join(list, ", ") + ")"
	}
	// EXECUTE takes no parameters of a prepared statement.
	err := p.Conn.QueryRow(ctx, execute, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...).Scan(&p.text)
	if err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	bounded.Exec(p.t, p.Conn, "deallocate planned")
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal([]byte(p.text), &plans); err != nil {
		p.t.Fatal(err)
	}
	p.plan = plans[0].Plan
}

func texts(ids []uuid.UUID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}
	return list
}

func (p *planned) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	p.explain(ctx, sql, args)
	return p.Conn.Exec(ctx, sql, args...)
}

func (p *planned) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	p.explain(ctx, sql, args)
	return p.Conn.Query(ctx, sql, args...)
}

func (p *planned) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	p.explain(ctx, sql, args)
	return p.Conn.QueryRow(ctx, sql, args...)
}

// wantBounded fails the test if the plan reads a table that grows from end to end, sorts
// more than a few pages, or touched more buffers than most.
func (p *planned) wantBounded(most int) {
	p.t.Helper()
	grows := []string{"instance", "history", "idempotency_key", "timer", "task", "task_attempt"}
	p.plan.walk(func(n planNode) {
		if strings.HasSuffix(n.Type, "Seq Scan") && slices.Contains(grows, n.Table) {
			p.t.Errorf("%s reads %s whole", p.mode, n.Table)
		}
		if strings.HasSuffix(n.Type, "Sort") {
			if rows := n.Plans[0].Rows * n.Plans[0].Loops; rows > 1000 {
				p.t.Errorf("%s sorts %v rows", p.mode, rows)
			}
		}
	})
	if read := p.plan.Hit + p.plan.Read; read > most {
		p.t.Errorf("%s touched %d buffers, more than %d", p.mode, read, most)
	}
	if p.t.Failed() {
		p.t.Log(p.text)
	}
}

// At a million instances, each with an open task, each read touches what it answers, and little more.
func TestPlansAtAMillionInstances(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes a million instances")
	}
	t.Parallel()
	pool := dbtest.New(t)
	for _, definition := range []string{parcel, claim, strings.Replace(parcel, "parcel", "door", 1)} {
		register(t, pool, definition)
	}
	bounded.Exec(t, pool, millionRows, noon)
	bounded.Exec(t, pool, `
		insert into pawl.history (
			tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, key, at)
		select i.tenant_id, i.id, v, i.workflow, 1, case v when 1 then 'created' else 'transition' end, i.state, i.status,
			'{}', 'tester', i.business_key || '.' || v, i.created_at + v * interval '100 milliseconds'
		from (select * from pawl.instance order by id limit 50000) i
		cross join generate_series(1, 3) v`)
	bounded.Exec(t, pool, `
		insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
		select h.tenant_id, h.key, sha256(''), 'applied', h.instance_id, h.version, h.at + interval '1 day' from pawl.history h`)
	// Each active instance has a timer, and those of the held ones fail.
	bounded.Exec(t, pool, `
		insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried, failed_version, last_error)
		select i.tenant_id, i.id, i.created_at + interval '7 days', i.version, 0, f.version, left('it fails', f.version::integer)
		from pawl.instance i
		left join lateral (select i.version where i.state = 'HELD') f on true
		where i.status = 'active'`)
	// Doors are found by n, which is rare, and by half, which is not.
	bounded.Exec(t, pool, `
		insert into pawl.attribute (tenant_id, instance_id, name, workflow, number_value, text_value)
		select i.tenant_id, i.id, v.name, i.workflow, v.number, v.text
		from (select i.*, row_number() over (order by i.id) as n from pawl.instance i where i.workflow = 'door') i
		cross join lateral (values ('n', i.n % 10000, null), ('half', null, case i.n % 2 when 0 then 'even' else 'odd' end)) v (name, number, text)`)
	bounded.Exec(t, pool, `update pawl.workflow set search = '{"n": {"path": ["n"]}, "half": {"path": ["half"]}}' where name = 'door'`)
	bounded.Exec(t, pool, "update pawl.instance set context = '{\"n\": 77, \"half\": \"odd\"}' where business_key like 'key %7' and workflow = 'door' and substr(business_key, 5)::integer <= 1000")
	// All of them are folded, but for 200 steps. The 10,000 that were created before a moment have moved last.
	bounded.Exec(t, pool, `
		insert into pawl.residence (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
		select i.tenant_id, i.id, i.workflow, 1, i.state, i.status, s.since, i.version, s.since
		from pawl.instance i
		cross join lateral (
			select case when $1::timestamptz - i.created_at between interval '14 hours' and interval '14 hours 1000 seconds' then $1 else i.state_changed_at end as since
		) s`, noon.Add(100_000*time.Second))
	bounded.Exec(t, pool, `
		insert into pawl.log (position, tenant_id, instance_id, version)
		select row_number() over (), h.tenant_id, h.instance_id, h.version from (select * from pawl.history limit 600) h`)
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true)")
	bounded.Exec(t, pool, "update pawl.consumer set position = 400")
	bounded.Exec(t, pool, "update pawl.log_head set position = 600, epoch = 1, snapshot = pg_current_snapshot()")
	bounded.Exec(t, pool, "vacuum (analyze) pawl.instance, pawl.history, pawl.idempotency_key, pawl.timer, pawl.workflow_state, pawl.residence, pawl.log, pawl.attribute")
	end := noon.Add(100_000 * time.Second)
	dbtest.SetClock(t, pool, end)

	t.Run("lists", func(t *testing.T) { listsAtAMillion(t, pool, end) })
	t.Run("lists in states", func(t *testing.T) { listsInStatesAtAMillion(t, pool, end) })
	t.Run("lists where", func(t *testing.T) { listsWhereAtAMillion(t, pool) })
	t.Run("reads", func(t *testing.T) { readsAtAMillion(t, pool) })
	t.Run("commands", func(t *testing.T) { commandsAtAMillion(t, pool) })
	t.Run("tasks", func(t *testing.T) { tasksAtAMillion(t, pool, end) })
}

func listsAtAMillion(t *testing.T, pool *pgxpool.Pool, end time.Time) {
	conn := connect(t, pool)
	hours := func(n int64) pgtype.Interval {
		return pgtype.Interval{Microseconds: n * time.Hour.Microseconds(), Valid: true}
	}
	middle := end.Add(-14 * time.Hour)
	soon := middle.Add(3 * time.Second)
	var deep uuid.UUID
	if err := conn.QueryRow(t.Context(), "select pawl.uuid_v7_floor($1)", middle).Scan(&deep); err != nil {
		t.Fatal(err)
	}
	const page = 51
	of := func(statuses ...string) queries.ListInstancesParams {
		return queries.ListInstancesParams{Statuses: statuses, Bytes: 4 << 20}
	}
	all := of("active", "completed", "failed", "cancelled", "expired")
	in := func(workflow string, p queries.ListInstancesParams) queries.ListInstancesParams {
		p.Workflows = slices.Repeat([]string{workflow}, len(p.Statuses))
		return p
	}
	with := func(p queries.ListInstancesParams, change func(*queries.ListInstancesParams)) queries.ListInstancesParams {
		change(&p)
		return p
	}
	type params = *queries.ListInstancesParams
	state := func(name string) func(params) { return func(p params) { p.States = []string{name} } }
	stuck := func(n int64) func(params) { return func(p params) { p.StuckFor = hours(n) } }
	failing := with(of("active"), func(p params) { p.Failing = true })
	oldest := func(p params) { p.Ascending = true }
	changed := func(p params) { p.ByChange = true }
	for name, c := range map[string]struct {
		queries.ListInstancesParams
		rows int
		most int // Buffers; 2,000 unless given.
	}{
		"all":                       {all, page, 0},
		"all, oldest first":         {with(all, oldest), page, 0},
		"far down":                  {with(all, func(p params) { p.AfterID = &deep }), page, 0},
		"far up, oldest first":      {with(all, func(p params) { p.AfterID, p.Ascending = &deep, true }), page, 0},
		"workflow":                  {in("door", all), page, 0},
		"workflow, oldest first":    {in("door", with(all, oldest)), page, 0},
		"rare workflow":             {in("claim", all), page, 0},
		"no such workflow":          {of(), 0, 0},
		"state":                     {with(of("completed"), state("DONE")), page, 0},
		"active state":              {with(of("active"), state("NEW")), page, 0},
		"rare final state":          {with(of("failed"), state("LOST")), page, 0},
		"rare active state":         {with(of("active"), state("HELD")), page, 0},
		"two states":                {with(of("active", "failed"), func(p params) { p.States = []string{"HELD", "LOST"} }), page, 0},
		"status":                    {of("completed"), page, 0},
		"active":                    {of("active"), page, 0},
		"two statuses":              {of("active", "failed"), page, 0},
		"failed":                    {of("failed"), page, 0},
		"failed, far down":          {with(of("failed"), func(p params) { p.AfterID = &deep }), page, 0},
		"no such status":            {of("expired"), 0, 0},
		"business key":              {with(all, func(p params) { p.BusinessKey = new("key 77777") }), 1, 0},
		"correlation id":            {with(all, func(p params) { p.CorrelationID = new("group 500") }), page, 0},
		"created after":             {with(all, func(p params) { p.CreatedAfter = &middle }), page, 0},
		"created after, oldest":     {with(all, func(p params) { p.CreatedAfter, p.Ascending = &middle, true }), page, 0},
		"created before":            {with(all, func(p params) { p.CreatedBefore = &middle }), page, 0},
		"created in a moment":       {with(all, func(p params) { p.CreatedAfter, p.CreatedBefore = &middle, &soon }), 29, 0},
		"stuck":                     {with(of("active"), stuck(1)), page, 0},
		"stuck for long":            {with(of("active"), stuck(27)), page, 0},
		"workflow and state":        {in("door", with(of("failed"), state("LOST"))), page, 0},
		"workflow and active state": {in("claim", with(of("active"), state("NEW"))), page, 0},
		"workflow and no state":     {in("claim", with(of("active"), state("HELD"))), 0, 0},
		"workflow and status":       {in("door", of("failed")), page, 0},
		"workflow and no status":    {in("parcel", of("failed")), 0, 0},
		"workflow and business key": {in("parcel", with(all, func(p params) { p.BusinessKey = new("key 77779") })), 1, 0},
		"two workflows": {
			with(of("active", "active"), func(p params) { p.Workflows = []string{"claim", "door"} }), page, 0,
		},
		"failing timers":               {failing, page, 0},
		"failing timers, oldest first": {with(failing, oldest), page, 0},
		"failing timers of a workflow": {in("door", failing), page, 0},
		"failing timers, none":         {in("claim", failing), 0, 0},
		"longest in state":             {with(of("failed"), func(p params) { p.ByChange, p.Ascending = true, true }), page, 0},
		"changed last":                 {with(of("failed"), changed), page, 0},
		"changed last, far down": {
			with(of("failed"), func(p params) { p.ByChange, p.AfterID, p.AfterChange = true, &deep, &middle }), page, 0,
		},
		"changed last, of a workflow": {in("claim", with(of("active"), changed)), page, 0},
		"changed last, of a group":    {with(all, func(p params) { p.ByChange, p.CorrelationID = true, new("group 500") }), page, 0},
		"changed last, of failing":    {with(failing, changed), page, 3000},
		// No index holds a state, or no step would be a heap-only update; so a state that is
		// declared, and that nothing is in, is looked for among all of its status.
		"state of nothing":              {with(of("completed"), state("CLOSED")), 0, 60_000},
		"workflow and state of nothing": {in("claim", with(of("completed"), state("CLOSED"))), 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c.TenantID, c.RowLimit, c.ReadLimit = tenant, page, page
			if c.ByChange {
				c.ReadLimit = 10_000
			}
			p := &planned{Conn: conn, t: t, mode: "force_custom_plan"}
			rows, err := queries.New(p).ListInstances(t.Context(), c.ListInstancesParams)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) != c.rows {
				t.Errorf("%d rows, want %d", len(rows), c.rows)
			}
			most := 2000
			if c.most > 0 {
				most = c.most
			}
			p.wantBounded(most)
		})
	}

	// The count before a list is sorted reads only an index, and the rows of failing timers.
	for name, c := range map[string]struct {
		queries.ListInstancesParams
		count int64
	}{
		"all":            {all, 10_001},
		"workflow":       {in("door", all), 10_001},
		"failed":         {of("failed"), 1000},
		"rare workflow":  {in("claim", all), 1000},
		"correlation id": {with(all, func(p params) { p.CorrelationID = new("group 500") }), 200},
		"created":        {with(all, func(p params) { p.CreatedAfter, p.CreatedBefore = &middle, &soon }), 31},
		"stuck for long": {with(of("active"), stuck(27)), 812},
		"failing timers": {failing, 334},
	} {
		t.Run("count "+name, func(t *testing.T) {
			p := &planned{Conn: conn, t: t, mode: "force_custom_plan"}
			got, err := queries.New(p).CountInstances(t.Context(), queries.CountInstancesParams{
				TenantID: tenant, Statuses: c.Statuses, Workflows: c.Workflows, Failing: c.Failing, CorrelationID: c.CorrelationID,
				CreatedAfter: c.CreatedAfter, CreatedBefore: c.CreatedBefore, StuckFor: c.StuckFor, RowLimit: 10_001,
			})
			if err != nil {
				t.Fatal(err)
			}
			if got != c.count {
				t.Errorf("%d were counted, want %d", got, c.count)
			}
			p.wantBounded(1500)
		})
	}
}

// listsInStatesAtAMillion looks at lists of what was folded. They read the instances of 200 steps that were not.
func listsInStatesAtAMillion(t *testing.T, pool *pgxpool.Pool, end time.Time) {
	conn := connect(t, pool)
	middle := end.Add(-14 * time.Hour)
	deep := bounded.Value[uuid.UUID](t, conn, "select pawl.uuid_v7_floor($1)", middle)
	const page = 51
	type params = queries.InstancesInStatesParams
	in := func(state string, workflows ...string) params {
		return params{Workflows: workflows, States: slices.Repeat([]string{state}, len(workflows))}
	}
	with := func(p params, change func(*params)) params {
		change(&p)
		return p
	}
	oldest := func(p *params) { p.Ascending = true }
	changed := func(p *params) { p.ByChange = true }
	longest := func(p *params) { p.ByChange, p.Ascending = true, true }
	hours := func(n float64) pgtype.Interval {
		return pgtype.Interval{Microseconds: int64(n * float64(time.Hour.Microseconds())), Valid: true}
	}
	for name, c := range map[string]struct {
		params
		rows int
		rest bool
		most int // Buffers; 3,500 unless given.
	}{
		"most":                     {in("DONE", "door", "parcel"), page, false, 0},
		"most, oldest first":       {with(in("DONE", "door", "parcel"), oldest), page, false, 0},
		"most, far down":           {with(in("DONE", "door"), func(p *params) { p.AfterID = &deep }), page, false, 0},
		"rare":                     {in("HELD", "door", "parcel", "claim"), page, false, 0},
		"nothing":                  {in("CLOSED", "door", "parcel", "claim"), 0, false, 0},
		"longest of most":          {with(in("DONE", "door", "parcel"), longest), page, false, 0},
		"latest of most":           {with(in("DONE", "door", "parcel"), changed), page, false, 0},
		"latest of most, far down": {with(in("DONE", "door"), func(p *params) { p.ByChange, p.AfterID, p.AfterChange = true, &deep, &middle }), page, false, 0},
		"longest of nothing":       {with(in("CLOSED", "door"), longest), 0, false, 0},
		"created":                  {with(in("DONE", "door"), func(p *params) { p.CreatedAfter = &middle }), page, false, 0},
		"created, oldest first":    {with(in("DONE", "door"), func(p *params) { p.CreatedAfter, p.Ascending = &middle, true }), page, false, 0},
		"stuck":                    {with(in("NEW", "door"), func(p *params) { p.StuckFor = hours(1) }), page, false, 0},
		"stuck, longest":           {with(with(in("NEW", "door"), longest), func(p *params) { p.StuckFor = hours(1) }), page, false, 0},
		"stuck, few":               {with(in("NEW", "door"), func(p *params) { p.StuckFor = hours(27.75) }), 24, false, 0},
		// Those that came before middle, and that are read first, have moved since.
		"stuck, those that are read first are not": {with(in("DONE", "door"), func(p *params) { p.StuckFor = hours(14) }), 0, true, 12_000},
	} {
		t.Run(name, func(t *testing.T) {
			c.TenantID, c.RowLimit, c.Most, c.Few, c.Probes = tenant, page, 10_000, 5000, 5000
			c.Statuses = []string{"active", "completed", "failed"}
			p := &planned{Conn: conn, t: t, mode: "force_custom_plan"}
			list, err := queries.New(p).InstancesInStates(t.Context(), c.params)
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Ids) != c.rows || (list.Rest != nil) != c.rest {
				t.Errorf("%d rows, want %d, and the rest is %v", len(list.Ids), c.rows, list.Rest)
			}
			p.wantBounded(cmp.Or(c.most, 3500))
		})
	}
}

// listsWhereAtAMillion looks at lists by conditions. Of a rare one few instances are looked at; of a common one no more
// than the page says. Nearly all contexts are empty, so that hardly an instance holds what its attributes say.
func listsWhereAtAMillion(t *testing.T, pool *pgxpool.Pool) {
	conn := connect(t, pool)
	const odd, even = `{"name": "half", "op": "=", "kind": "text", "value": "odd"}`, `{"name": "half", "op": "=", "kind": "text", "value": "even"}`
	n := func(op string, value int) string {
		return fmt.Sprintf(`{"name": "n", "op": "%s", "kind": "number", "value": "%d"}`, op, value)
	}
	for name, c := range map[string]struct {
		conditions []string
		states     []string
		rest       bool
		most       int
	}{
		"few":                            {[]string{n("=", 77)}, nil, false, 4000},
		"few of many":                    {[]string{n("<", 20), odd}, nil, false, 12_000},
		"none of many":                   {[]string{`{"name": "half", "op": "^", "kind": "text", "value": "o"}`, n("=", 7777777)}, nil, false, 4000},
		"many, one by one":               {[]string{odd}, nil, true, 40_000},
		"a range of many, one by one":    {[]string{n(">=", 300), n("<", 500)}, nil, true, 40_000},
		"nearly all, one by one":         {[]string{n(">", 9)}, nil, true, 60_000},
		"a range of few between many":    {[]string{n(">", 5000), n("<=", 5001)}, nil, false, 4000},
		"two values":                     {[]string{odd, even}, nil, false, 4000},
		"many, in a rare state":          {[]string{odd}, []string{"HELD"}, false, 4000},
		"few, in a common state":         {[]string{n("=", 77)}, []string{"DONE"}, false, 4000},
		"nearly all, in a common state":  {[]string{n(">", 9)}, []string{"DONE"}, true, 60_000},
		"a range of many, in rare state": {[]string{n("<", 300)}, []string{"HELD"}, false, 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			p := &planned{Conn: conn, t: t, mode: "force_custom_plan"}
			got, err := queries.New(p).InstancesWhere(t.Context(), queries.InstancesWhereParams{
				TenantID: tenant, Workflow: "door", Conditions: []byte("[" + strings.Join(c.conditions, ", ") + "]"), States: c.states,
				RowLimit: 51, Few: 20_000, Probes: 5000, Most: new(int32(10_000)),
			})
			if err != nil || (got.Rest != nil) != c.rest {
				t.Errorf("%d found, the rest is %v, %v", len(got.Ids), got.Rest, err)
			}
			p.wantBounded(c.most)
		})
	}
}

// readsAtAMillion looks at the other reads, whatever kind of plan the session has.
func readsAtAMillion(t *testing.T, pool *pgxpool.Pool) {
	conn := connect(t, pool)
	ids := bounded.Column[uuid.UUID](t, conn, "select id from pawl.instance order by id limit 100")
	id := ids[7]
	at := bounded.Value[time.Time](t, conn, "select at from pawl.history where instance_id = $1 and version = 2", id)
	check := func(_ any, err error) error { return err }
	for name, read := range map[string]func(ctx context.Context, q *queries.Queries) error{
		"GetInstanceVersion": func(ctx context.Context, q *queries.Queries) error {
			return check(q.GetInstanceVersion(ctx, queries.GetInstanceVersionParams{TenantID: tenant, ID: id, Version: 2}))
		},
		"GetInstanceVersionAt": func(ctx context.Context, q *queries.Queries) error {
			return check(q.GetInstanceVersionAt(ctx, queries.GetInstanceVersionAtParams{TenantID: tenant, ID: id, At: at}))
		},
		"ListHistory": func(ctx context.Context, q *queries.Queries) error {
			return check(q.ListHistory(ctx, queries.ListHistoryParams{TenantID: tenant, InstanceID: id, AfterVersion: 1, RowLimit: 51, Bytes: 4 << 20}))
		},
		"GetInstances": func(ctx context.Context, q *queries.Queries) error {
			return check(q.GetInstances(ctx, queries.GetInstancesParams{Tenants: slices.Repeat([]string{tenant}, len(ids)), Ids: ids}))
		},
		"GuardHolds": func(ctx context.Context, q *queries.Queries) error {
			return check(q.GuardHolds(ctx, queries.GuardHoldsParams{TenantID: tenant, ID: id, Events: []string{"ship"}, Payload: []byte("{}")}))
		},
		"ListActions": func(ctx context.Context, q *queries.Queries) error {
			return check(q.ListActions(ctx, queries.ListActionsParams{Workflow: "parcel", WorkflowVersion: 1, State: "NEW"}))
		},
		"GetWorkflow": func(ctx context.Context, q *queries.Queries) error { return check(q.GetWorkflow(ctx, "parcel")) },
		"GetWorkflowVersion": func(ctx context.Context, q *queries.Queries) error {
			return check(q.GetWorkflowVersion(ctx, queries.GetWorkflowVersionParams{Name: "parcel", Version: 1}))
		},
		"ListWorkflows": func(ctx context.Context, q *queries.Queries) error {
			return check(q.ListWorkflows(ctx, queries.ListWorkflowsParams{RowLimit: 51, Bytes: 4 << 20}))
		},
		"GetSetting": func(ctx context.Context, q *queries.Queries) error { return check(q.GetSetting(ctx)) },
	} {
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			t.Run(name, func(t *testing.T) {
				p := &planned{Conn: conn, t: t, mode: mode}
				if err := read(t.Context(), queries.New(p)); err != nil {
					t.Fatal(err)
				}
				p.wantBounded(1000) // Of a hundred instances.
			})
		}
	}
}

// commandsAtAMillion counts what the look-ups within the engine read.
func commandsAtAMillion(t *testing.T, pool *pgxpool.Pool) {
	conn := connect(t, pool)
	id := bounded.Value[uuid.UUID](t, conn, "select id from pawl.instance where business_key = 'key 1001'")
	// What other sessions have counted and not told yet would be told after the reset.
	pool.Reset()
	bounded.UntilSQL(t, conn, "select count(*) = 1 from pg_stat_activity where datname = current_database() and backend_type = 'client backend'")
	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	bounded.Exec(t, pool, "select pg_stat_reset()")
	c := command{id: id, event: "hold", key: "hold"}
	wantOutcome(t, fire(t, conn, tenant, c)[0], "applied")
	wantOutcome(t, fire(t, conn, tenant, c)[0], "applied")
	n := creation{workflow: "door", businessKey: "new", key: "new"}
	wantOutcome(t, create(t, conn, tenant, n)[0], "applied")
	wantOutcome(t, create(t, conn, tenant, n)[0], "applied")
	n.key = "newer"
	wantOutcome(t, create(t, conn, tenant, n)[0], "instance-exists")
	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	for _, use := range bounded.Column[string](t, pool, `
		select format('%s was read whole: %s times', relname, seq_scan) from pg_stat_user_tables
		where schemaname = 'pawl' and seq_scan > 0 and relname in ('instance', 'idempotency_key', 'history', 'timer')
		union all
		select format('%s was used: %s times, %s entries read', indexrelname, idx_scan, idx_tup_read) from pg_stat_user_indexes
		where schemaname = 'pawl' and relname in ('instance', 'idempotency_key', 'history', 'timer')
			and (idx_tup_read > 2 * idx_scan or idx_scan > 0 and indexrelname ~ '_idx$')`) {
		t.Error(use)
	}
	if n := bounded.Value[int](t, pool, "select idx_scan from pg_stat_user_indexes where indexrelname = 'idempotency_key_pkey'"); n == 0 {
		t.Error("idempotency_key_pkey was not used")
	}
}
