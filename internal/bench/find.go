package bench

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/insight"
)

var (
	//go:embed find.json
	findDefinition []byte
	//go:embed sql/find.sql
	findable string
)

const (
	// mostRead is how long a read may be in the database, and mostHeld how long what holds up the fold may, in milliseconds.
	mostRead, mostHeld = 50, 500
	findTenant         = "bench-find-1" // Has most of the instances.
	findPage           = 100
	findCalls          = 200 // Of each read, unless they take longer than Config.Duration.
	findVersions       = 3
	findFoldWithin     = time.Hour
	looked, reindexed  = 1000, 1000 // As the service does.
	unfolded           = 10_000
)

// found has the figures of one read: how long all of its statements were in the database, and how many rows it returned.
type found struct {
	Name  string  `json:"name"`
	Calls int     `json:"calls"`
	Rows  int     `json:"rows"`
	First float64 `json:"first_ms"` // The first call may find nothing in memory, and is not among the others.
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
	Most  float64 `json:"most_ms"` // What P99 may be.
}

// inDatabase adds up how long the statements of a pool take, from their start to their last row.
type inDatabase struct {
	mu    sync.Mutex
	spent time.Duration
}

type startKey struct{}

func (d *inDatabase) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, startKey{}, time.Now())
}

func (d *inDatabase) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if start, ok := ctx.Value(startKey{}).(time.Time); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.spent += time.Since(start)
	}
}

func (d *inDatabase) take() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	spent := d.spent
	d.spent = 0
	return spent
}

// finder makes the reads of measureFind.
type finder struct {
	*benchmark
	clock    *inDatabase
	service  *fsm.Service
	findings *finding.Service
	insight  *insight.Service
}

// measureFind makes Config.Find open instances, waits until the service has folded their histories, and reads lists,
// statistics, findings and forecasts. It stops the service, so that nothing else works meanwhile.
func (b *benchmark) measureFind(ctx context.Context) error {
	if err := b.makeFindable(ctx); err != nil {
		return err
	}
	if err := b.service.stop(ctx); err != nil {
		return err
	}
	return b.find(ctx)
}

// makeFindable registers workflows and makes their instances.
func (b *benchmark) makeFindable(ctx context.Context) error {
	if err := b.registerFindable(ctx); err != nil {
		return err
	}
	return b.fillFindable(ctx)
}

func (b *benchmark) registerFindable(ctx context.Context) error {
	for _, name := range []string{"a", "b", "c"} {
		for v := range findVersions {
			definition := bytes.Replace(findDefinition, []byte("bench-find-a"), []byte("bench-find-"+name), 1)
			definition = bytes.Replace(definition, []byte("1h"), fmt.Append(nil, v+1, "h"), 1)
			if err := b.call(ctx, http.MethodPut, "/v1/workflows/bench-find-"+name, definition, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *benchmark) fillFindable(ctx context.Context) error {
	for n := 0; n < b.Find; n += growAtOnce {
		last := min(n+growAtOnce, b.Find)
		if _, err := b.conn.Exec(ctx, findable, n+1, last, b.Find); err != nil {
			return err
		}
		b.Logger.Info("making instances to find", "instances", last)
	}
	if err := b.awaitFoldingWithin(ctx, findFoldWithin); err != nil {
		return err
	}
	_, err := b.conn.Exec(ctx, "vacuum (analyze) pawl.instance, pawl.history, pawl.log, pawl.residence, pawl.attribute, pawl.dwell_count, pawl.edge_count, pawl.instance_count")
	return err
}

// find reads what makeFindable has made.
func (b *benchmark) find(ctx context.Context) error {
	clock := &inDatabase{}
	pool, err := db.Open(ctx, b.dsn, db.Config{Tracer: clock, StatementTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer pool.Close()
	service := fsm.New(pool, fsm.Config{})
	f := &finder{b, clock, service, finding.New(service), insight.New(service)}
	b.printf("\n%-52s %5s %5s %8s %8s %8s %8s\n", "in the database", "calls", "rows", "first ms", "p50", "p99", "max")
	var faults error
	for _, part := range []func(context.Context) error{f.lists, f.statistics, f.look, f.listFindings, f.reindex} {
		faults = errors.Join(faults, part(ctx))
		if ctx.Err() != nil {
			return faults
		}
	}
	return faults
}

// read measures one read. limit is what its p99 may be.
func (f *finder) read(ctx context.Context, name string, limit float64, read func(context.Context) (rows int, err error)) error {
	r := found{Name: name, Most: limit}
	var times []time.Duration
	for end := time.Now().Add(f.Duration); len(times) <= findCalls && (len(times) < 3 || time.Now().Before(end)); {
		f.clock.take()
		rows, err := read(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.Rows = max(r.Rows, rows)
		times = append(times, f.clock.take())
	}
	f.record(r, times)
	return nil
}

// record prints the figures of a read, and adds them to the report.
func (f *finder) record(r found, times []time.Duration) {
	if len(times) > 1 {
		r.First, times = milliseconds(times[0]), times[1:]
	}
	slices.Sort(times)
	at := func(share float64) float64 {
		return milliseconds(times[min(int(share*float64(len(times))), len(times)-1)])
	}
	r.Calls, r.P50, r.P99, r.Max = len(times), at(0.5), at(0.99), at(1)
	over := ""
	if r.P99 > r.Most {
		over = fmt.Sprintf("over %.0f ms", r.Most)
	}
	f.printf("%-52s %5d %5d %8.2f %8.2f %8.2f %8.2f %s\n", r.Name, r.Calls, r.Rows, r.First, r.P50, r.P99, r.Max, over)
	f.report.Found = append(f.report.Found, r)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// lists reads pages of instances.
func (f *finder) lists(ctx context.Context) error {
	hours := func(n int) time.Duration { return time.Duration(n) * time.Hour }
	in := func(workflow string, states ...string) fsm.Filter {
		list := fsm.Filter{States: states}
		if workflow != "" {
			list.Workflows = []string{"bench-find-" + workflow}
		}
		return list
	}
	with := func(list fsm.Filter, change func(*fsm.Filter)) fsm.Filter {
		change(&list)
		return list
	}
	stuck := func(workflow, state string, d time.Duration, sort fsm.Sort) fsm.Filter {
		return with(in(workflow, state), func(list *fsm.Filter) { list.StuckFor, list.Sort = d, sort })
	}
	where := func(conditions ...string) fsm.Filter {
		return with(in("a"), func(list *fsm.Filter) { list.Where = conditions })
	}
	var faults error
	for _, c := range []struct {
		name   string
		filter fsm.Filter
		deep   int // How many pages come before.
	}{
		{"list: a common state", in("a", "PACKED"), 0},
		{"list: a common state, page 100", in("a", "PACKED"), 100},
		{"list: a common state, oldest first", with(in("a", "PACKED"), func(l *fsm.Filter) { l.Sort = fsm.SortCreatedAt }), 0},
		{"list: a rare state", in("a", "HELD"), 0},
		{"list: an empty state", in("a", "PARKED"), 0},
		{"list: two states of all workflows", in("", "PACKED", "REVIEW"), 0},
		{"list: the longest in a state", with(in("a", "PACKED"), func(l *fsm.Filter) { l.Sort = fsm.SortStateChangedAt }), 0},
		{"list: the last that came to a state", with(in("a", "PACKED"), func(l *fsm.Filter) { l.Sort = fsm.SortStateChangedAtDesc }), 0},
		{"list: a state, created in a week", with(in("a", "PACKED"), func(l *fsm.Filter) {
			l.CreatedAfter, l.CreatedBefore = time.Now().Add(-hours(24*30)), time.Now().Add(-hours(24*23))
		}), 0},
		{"list: a state, another status", with(in("a", "PACKED"), func(l *fsm.Filter) { l.Statuses = []fsm.Status{fsm.Failed} }), 0},
		{"list: in a state for an hour", stuck("a", "PACKED", hours(1), ""), 0},
		{"list: in a state for 30 days", stuck("a", "PACKED", hours(24*30), ""), 0},
		{"list: in a state for 88 days", stuck("a", "PACKED", hours(24*88), ""), 0},
		{"list: in a rare state for 30 days", stuck("a", "HELD", hours(24*30), ""), 0},
		{"list: in a state for 2 days, where few were", stuck("c", "PACKED", hours(48), ""), 0},
		{"list: in a state for 23 hours, where some were", stuck("c", "PACKED", hours(23), ""), 0},
		{"list: in a state for 2 days, longest first", stuck("c", "PACKED", hours(48), fsm.SortStateChangedAt), 0},
		{"list: for 2 days in any state, where few were", with(in("c"), func(l *fsm.Filter) { l.StuckFor = hours(48) }), 0},
		{"list: where an attribute is unique", where("ref=R-0000001"), 0},
		{"list: where an attribute is common", where("region=EU-00"), 0},
		{"list: where an attribute is rare", where("region=EU-20"), 0},
		{"list: where an attribute is common, page 20", where("region=EU-00"), 20},
		{"list: where an attribute is true", where("vip=true"), 0},
		{"list: where a text begins, few", where("ref=R-00001*"), 0},
		{"list: where a text begins, many", where("ref=R-0*"), 0},
		{"list: where a number is small, many", where("price<1"), 0},
		{"list: where a number is large, few", where("price>=999.5"), 0},
		{"list: where a number is in a range", where("price>=500", "price<510"), 0},
		{"list: where a time is past", where("due<" + time.Now().Add(-hours(24*85)).Format(time.RFC3339)), 0},
		{"list: where two are common", where("region=EU-00", "vip=false"), 0},
		{"list: where both hold seldom", where("region=EU-19", "vip=true"), 0},
		{"list: where both never hold", where("price<1", "price>=999"), 0},
		{"list: where each is common and both never hold", where("region=EU-00", "region=EU-01"), 0},
		{"list: where an attribute is common, in a rare state", with(where("region=EU-00"), func(l *fsm.Filter) { l.States = []string{"HELD"} }), 0},
		{"list: where an attribute is rare, in a rare state", with(where("region=EU-19"), func(l *fsm.Filter) { l.States = []string{"HELD"} }), 0},
	} {
		faults = errors.Join(faults, f.list(ctx, c.name, c.filter, c.deep))
	}
	if _, err := f.conn.Exec(ctx, "update pawl.consumer set position = greatest(position - $1, 0) where name = 'insight'", unfolded); err != nil {
		return errors.Join(faults, err)
	}
	for name, filter := range map[string]fsm.Filter{"a common state": in("a", "PACKED"), "an attribute": where("region=EU-20")} {
		faults = errors.Join(faults, f.list(ctx, fmt.Sprintf("list: %s, %d steps not folded", name, unfolded), filter, 0))
	}
	_, err := f.conn.Exec(ctx, "update pawl.consumer set position = (select position from pawl.log_head) where name = 'insight'")
	return errors.Join(faults, err)
}

func (f *finder) list(ctx context.Context, name string, filter fsm.Filter, deep int) error {
	page := fsm.Page{Limit: findPage}
	for range deep {
		list, err := f.service.List(ctx, findTenant, filter, page)
		if err != nil || list.Next == "" {
			return errors.Join(err, ctx.Err())
		}
		page.Cursor = list.Next
	}
	return f.read(ctx, name, mostRead, func(ctx context.Context) (int, error) {
		list, err := f.service.List(ctx, findTenant, filter, page)
		return len(list.Items), err
	})
}

// statistics reads the numbers of a workflow, and forecasts.
func (f *finder) statistics(ctx context.Context) error {
	var faults error
	from := time.Now().Add(-90 * 24 * time.Hour)
	for _, c := range []struct {
		name  string
		query insight.StatsQuery
	}{
		{"stats: 28 days", insight.StatsQuery{}},
		{"stats: 28 days by version", insight.StatsQuery{By: insight.ByVersion}},
		{"stats: 28 days by day", insight.StatsQuery{By: insight.ByDay}},
		{"stats: 90 days", insight.StatsQuery{From: &from}},
	} {
		faults = errors.Join(faults, f.read(ctx, c.name, mostRead, func(ctx context.Context) (int, error) {
			s, err := f.insight.Stats(ctx, findTenant, "bench-find-a", c.query)
			return len(s.States) + len(s.Edges), err
		}))
	}
	for _, state := range []string{"PACKED", "HELD"} {
		var id uuid.UUID
		err := f.conn.QueryRow(ctx, "select instance_id from pawl.residence where tenant_id = $1 and workflow = 'bench-find-a' and state = $2 limit 1", findTenant, state).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		if err != nil {
			return errors.Join(faults, err)
		}
		faults = errors.Join(faults, f.read(ctx, "forecast: in "+state, mostRead, func(ctx context.Context) (int, error) {
			forecast, err := f.insight.Forecast(ctx, findTenant, id)
			if errors.Is(err, fsm.TooFewSamples) {
				return 0, nil
			}
			return len(forecast.Next), err
		}))
	}
	return faults
}

// look opens all findings anew, and measures each look: the fold waits for it.
func (f *finder) look(ctx context.Context) error {
	if _, err := f.conn.Exec(ctx, `
		with gone as (delete from pawl.finding)
		update pawl_private.stuck_place
		set slow_since = '-infinity', slow_id = default, orphaned_since = '-infinity', orphaned_id = default, next_at = '-infinity'`); err != nil {
		return err
	}
	var times []time.Duration
	r := found{Name: fmt.Sprintf("look: %d of each kind, findings", looked), Most: mostHeld}
	for q := queries.New(f.conn); ; {
		start := time.Now()
		look, err := q.FindingLook(ctx, queries.FindingLookParams{RowLimit: looked, Every: pgtype.Interval{Valid: true}})
		if err != nil {
			return err
		}
		times = append(times, time.Since(start))
		r.Rows += int(look.Opened)
		if !look.More {
			break
		}
	}
	f.record(r, times)
	_, err := f.conn.Exec(ctx, "vacuum (analyze) pawl.finding")
	return err
}

// listFindings reads pages of findings.
func (f *finder) listFindings(ctx context.Context) error {
	var faults error
	const workflow = "bench-find-a"
	for _, c := range []struct {
		name   string
		filter finding.Filter
	}{
		{"findings: all", finding.Filter{}},
		{"findings: open", finding.Filter{Open: new(true)}},
		{"findings: closed, of which there are none", finding.Filter{Open: new(false)}},
		{"findings: of a common kind", finding.Filter{Kind: finding.Slow, Open: new(true)}},
		{"findings: of a rare kind", finding.Filter{Kind: finding.Orphaned, Open: new(true)}},
		{"findings: of no such kind", finding.Filter{Kind: finding.DeliveryDead, Open: new(true)}},
		{"findings: of a workflow", finding.Filter{Workflow: workflow, Open: new(true)}},
		{"findings: of a small workflow", finding.Filter{Workflow: "bench-find-c", Open: new(true)}},
		{"findings: of a workflow without any", finding.Filter{Workflow: "bench", Open: new(true)}},
		{"findings: of a workflow and a state", finding.Filter{Workflow: workflow, State: "REVIEW", Open: new(true)}},
		{"findings: of a state", finding.Filter{State: "STRAY", Open: new(true)}},
		{"findings: of a state without any", finding.Filter{State: "PACKED", Open: new(true)}},
		{"findings: of a workflow and a rare kind", finding.Filter{Workflow: "bench-find-c", Kind: finding.Orphaned, Open: new(true)}},
		{"findings: of a state and another kind", finding.Filter{Workflow: workflow, State: "REVIEW", Kind: finding.Orphaned, Open: new(true)}},
		{"findings: of some workflows", finding.Filter{Within: []string{"bench-find-c", "bench"}, Open: new(true)}},
	} {
		faults = errors.Join(faults, f.read(ctx, c.name, mostRead, func(ctx context.Context) (int, error) {
			list, err := f.findings.List(ctx, findTenant, c.filter, fsm.Page{Limit: findPage})
			return len(list.Items), err
		}))
	}
	return errors.Join(faults, f.read(ctx, "findings: counts of all tenants", mostRead, func(ctx context.Context) (int, error) {
		counts, err := f.findings.Counts(ctx)
		return len(counts), err
	}))
}

// reindex indexes the instances anew, and measures each batch: the fold waits for it.
func (f *finder) reindex(ctx context.Context) error {
	definition := bytes.Replace(findDefinition, []byte(`"vip":`), []byte(`"first": "$.context.ref", "vip":`), 1)
	const name = "bench-find-a"
	if _, err := lifecycle.New(f.service).Register(ctx, name, definition, "bench", false); err != nil {
		return err
	}
	r := found{Name: fmt.Sprintf("reindex: %d instances", reindexed), Most: mostHeld}
	var times []time.Duration
	q := queries.New(f.conn)
	for end := time.Now().Add(f.Duration); len(times) < 2 || time.Now().Before(end); {
		start := time.Now()
		batch, err := q.ReindexWorkflow(ctx, queries.ReindexWorkflowParams{Workflow: name, RowLimit: reindexed})
		if err != nil {
			return err
		}
		times = append(times, time.Since(start))
		r.Rows = int(batch.Indexed)
		if batch.Complete {
			break
		}
	}
	f.record(r, times)
	return nil
}
