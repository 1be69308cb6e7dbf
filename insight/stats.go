package insight

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// Bounds of Stats.
const (
	// DefaultDays is how many days Stats are of unless it is said: the present one and those before it.
	DefaultDays = 28
	// MaxDays is the largest number of days.
	MaxDays = 1000
	// MaxRows is the largest number of items of each list.
	MaxRows = 10_000
	// MaxTasks is how many of the tenant's tasks are looked at, the newest first.
	MaxTasks = 10_000
	// MinVisits is how many visits a ratio or a forecast needs.
	MinVisits = 30
)

// By says what the items of Stats are counted for.
type By string

const (
	// ByNothing: for all versions and days together.
	ByNothing By = ""
	// ByVersion: for each version.
	ByVersion By = "version"
	// ByDay: for each day. Instances are as they are now.
	ByDay By = "day"
)

// StatsQuery says what to count.
type StatsQuery struct {
	// From and To are times of the first and the last day, in UTC. Default: To is the present day, and From is
	// DefaultDays-1 before To.
	From, To *time.Time
	By       By
}

// Stats are the numbers of a workflow. Durations are in seconds.
type Stats struct {
	// AsOf is the time up to which steps are counted; nil if none was yet.
	AsOf *time.Time
	// From and To are the first and the last day.
	From, To  time.Time
	Instances []InstanceCount
	States    []StateStats
	Edges     []Edge
	Hotspots  []Hotspot
	Tasks     []TaskStats
	// TasksComplete: no task was left out because there are too many.
	TasksComplete bool
	Refusals      []Refusals
	Idempotency   Idempotency
}

// A Group says what an item is counted for. Its members are zero if it is all versions, or all days.
type Group struct {
	Version int
	Day     time.Time
}

// InstanceCount is how many instances are in a state with a status.
type InstanceCount struct {
	Version       int // 0 unless counted by version.
	State, Status string
	Instances     int64
}

// StateStats are how long instances stayed in a state, and where they went.
type StateStats struct {
	Group
	State string
	// Visits is how many visits ended. P50, P90, P99, Mean and Total are how long they lasted; the quantiles are right
	// to 5 %.
	Visits                     int64
	P50, P90, P99, Mean, Total float64
	// Leavings counts the steps to another state, and DropOff is the share of those that ended their instance without
	// completing it; nil if there were no leavings.
	Leavings int64
	DropOff  *float64
}

// Edge is how many steps an event made from one state to another.
type Edge struct {
	Group
	// From is empty for creations, and Event for those and eventless steps; it is forced, cancelled or migrated for such
	// a step.
	From, Event, To string
	Steps           int64
}

// Hotspot says how much time a state takes.
type Hotspot struct {
	State string
	// Share of the time of all visits of all states.
	Share float64
	Total float64
	// Now is how long the visits lasted on average that ended in the last 24 hours, Before those that ended in the last four weeks, and
	// Slowdown is their ratio. Nil with fewer than MinVisits in the last 24 hours.
	Now, Before, Slowdown *float64
}

// TaskStats are what became of the tasks of a topic or connection.
type TaskStats struct {
	// Topic is empty for calls, and Connection for work.
	Topic, Connection                             string
	Tasks, Open, Done, Errors, Unknown, Cancelled int64
	// ErrorRate and UnknownRate are shares of those that are done, error or unknown; nil if there are none.
	ErrorRate, UnknownRate *float64
}

// Refusals counts the commands with an event that were refused for one reason.
type Refusals struct {
	Event, Reason string
	Commands      int64
}

// Idempotency counts the commands by what their key was.
type Idempotency struct{ New, Replayed, Collision int64 }

// Stats returns the numbers of a workflow of a tenant.
// Kinds: Malformed (from, to, by), WorkflowNotFound, Unavailable.
func (s *Service) Stats(ctx context.Context, tenant, workflow string, query StatsQuery) (Stats, error) {
	var out Stats
	err := s.fsm.Database().Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		known, err := q.WorkflowIsRegistered(ctx, workflow)
		if err != nil {
			return err
		}
		if !known.Registered {
			return fsm.NoWorkflow(workflow, 0)
		}
		if out, err = query.days(known.Now); err != nil {
			return err
		}
		r := &reading{ctx: ctx, q: q, tenant: tenant, workflow: workflow, by: query.By, now: known.Now}
		for _, read := range []func(*reading, *Stats) error{
			(*reading).instances, (*reading).states, (*reading).edges, (*reading).hotspots, (*reading).tasks, (*reading).commands,
		} {
			if err := read(r, &out); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// days returns Stats that have only the days.
func (query StatsQuery) days(now time.Time) (Stats, error) {
	if query.By != ByNothing && query.By != ByVersion && query.By != ByDay {
		return Stats{}, fsm.BadParameter("by", "must be version or day")
	}
	out := Stats{To: dayOf(now)}
	if query.To != nil {
		out.To = dayOf(*query.To)
	}
	out.From = out.To.AddDate(0, 0, 1-DefaultDays)
	if query.From != nil {
		out.From = dayOf(*query.From)
	}
	switch {
	case out.From.After(out.To) && query.From == nil:
		return Stats{}, fsm.BadParameter("to", "is out of range")
	case out.From.After(out.To):
		return Stats{}, fsm.BadParameter("from", "must not be after to")
	case out.From.Year() < 1 || out.To.Year() > 9999:
		return Stats{}, fsm.BadParameter("from", "must be in the years 1 to 9999, as to must be")
	case out.To.Sub(out.From) >= MaxDays*day:
		return Stats{}, fsm.BadParameter("from", fmt.Sprintf("must be at most %d days before to", MaxDays-1))
	}
	return out, nil
}

// bounded refuses lists that are too long.
func bounded[R any](rows []R, err error) ([]R, error) {
	if len(rows) > MaxRows {
		return nil, fsm.BadParameter("from", fmt.Sprintf("asks for more than %d numbers of one kind: ask for fewer days", MaxRows))
	}
	return rows, err
}

// A reading is what the queries of one answer have in common.
type reading struct {
	ctx              context.Context
	q                *queries.Queries
	tenant, workflow string
	by               By
	now              time.Time
	lately           []queries.SumDwellsRow // What states has read, if the days from before on are among its days.
}

// group converts what a row is counted for.
func (r *reading) group(version int32, at time.Time) (g Group) {
	g.Version = int(version)
	if r.by == ByDay {
		g.Day = at
	}
	return g
}

func (r *reading) instances(out *Stats) error {
	rows, err := bounded(r.q.CountInStates(r.ctx, queries.CountInStatesParams{
		By: string(r.by), Tenant: r.tenant, Workflow: r.workflow, RowLimit: MaxRows + 1,
	}))
	for _, c := range rows {
		out.AsOf = asOf(c.AsOf)
		if c.State != "" {
			out.Instances = append(out.Instances, InstanceCount{int(c.Version), c.State, c.Status, c.Instances})
		}
	}
	return err
}

func (r *reading) states(out *Stats) error {
	rows, err := bounded(r.sumDwells(r.by, out.From, out.To))
	if !out.From.After(r.before()) && !out.To.Before(dayOf(r.now)) {
		r.lately = rows
	}
	for _, d := range rows {
		all := bucketed(d.Buckets, d.Visits)
		out.States = append(out.States, StateStats{
			Group: r.group(d.Version, d.Day.Time), State: d.State, Visits: all.sum(),
			P50: all.quantile(50), P90: all.quantile(90), P99: all.quantile(99),
			Mean: mean(d.Milliseconds, all.sum()), Total: float64(d.Milliseconds) / 1000,
		})
	}
	return err
}

// sumDwells reads how long visits lasted that ended on some days.
func (r *reading) sumDwells(by By, from, to time.Time) ([]queries.SumDwellsRow, error) {
	return r.q.SumDwells(r.ctx, queries.SumDwellsParams{
		By: string(by), Tenant: r.tenant, Workflow: r.workflow, FromDay: dateOf(from), ToDay: dateOf(to), BeforeDay: dateOf(r.before()),
		RowLimit: MaxRows + 1,
	})
}

// before is the first of the days with which the last 24 hours are compared.
func (r *reading) before() time.Time { return dayOf(r.now).AddDate(0, 0, 1-DefaultDays) }

// A histogram has the number of visits by how long they lasted, the shortest first.
type histogram []bar

// A bar has the visits of one bucket; see pawl_private.dwell_bucket. upTo counts those of the shorter ones, too.
type bar struct {
	bucket int32
	upTo   int64
}

// bucketed returns the histogram of visits, each number of which is that of the bucket at its index.
func bucketed(buckets []int32, visits []int64) histogram {
	h := make(histogram, len(buckets))
	for i, b := range buckets {
		h[i] = bar{b, visits[i]}
	}
	slices.SortFunc(h, func(a, b bar) int { return cmp.Compare(a.bucket, b.bucket) })
	for i := 1; i < len(h); i++ {
		h[i].upTo += h[i-1].upTo
	}
	return h
}

// sum returns the number of all visits.
func (h histogram) sum() int64 { return h[len(h)-1].upTo }

// quantile returns how many seconds a share of the visits, in percent, lasted at most.
func (h histogram) quantile(percent int64) float64 {
	i := sort.Search(len(h), func(i int) bool { return 100*h[i].upTo >= percent*h.sum() })
	return seconds(h[i].bucket)
}

// edges comes after states, to which it adds the leavings. Forced steps count as leavings, and instance migrations do not.
func (r *reading) edges(out *Stats) error {
	rows, err := bounded(r.q.SumEdges(r.ctx, queries.SumEdgesParams{
		By: string(r.by), Tenant: r.tenant, Workflow: r.workflow, FromDay: dateOf(out.From), ToDay: dateOf(out.To), RowLimit: MaxRows + 1,
	}))
	type place struct {
		Group
		state string
	}
	type leavings struct{ all, bad int64 }
	left := map[place]leavings{}
	for _, e := range rows {
		g := r.group(e.Version, e.Day.Time)
		out.Edges = append(out.Edges, Edge{g, e.FromState, e.Event, e.ToState, e.Steps})
		if e.FromState != "" && e.FromState != e.ToState && e.Event != "migrated" {
			l := left[place{g, e.FromState}]
			left[place{g, e.FromState}] = leavings{l.all + e.Steps, l.bad + e.Bad}
		}
	}
	for i, s := range out.States {
		if l := left[place{s.Group, s.State}]; l.all > 0 {
			out.States[i].Leavings, out.States[i].DropOff = l.all, share(l.bad, l.all)
		}
	}
	return err
}

// share returns a part of a whole; nil if the whole is 0.
func share(part, whole int64) *float64 {
	if whole == 0 {
		return nil
	}
	return new(float64(part) / float64(whole))
}

// hotspots comes after states, whose visits it adds up. It compares the last 24 hours with the last DefaultDays days.
func (r *reading) hotspots(out *Stats) error {
	hour := r.now.Unix() / 3600
	rows, err := r.q.SumDwellHours(r.ctx, queries.SumDwellHoursParams{Tenant: r.tenant, Workflow: r.workflow, FromHour: hour - 24, ToHour: hour})
	if err != nil {
		return err
	}
	if r.lately == nil && len(rows) > 0 {
		if r.lately, err = r.sumDwells(ByNothing, r.before(), dayOf(r.now)); err != nil {
			return err
		}
	}
	type sums struct{ visits, milliseconds int64 }
	before := map[string]sums{}
	for _, d := range r.lately {
		b := before[d.State]
		before[d.State] = sums{b.visits + d.VisitsBefore, b.milliseconds + d.MillisecondsBefore}
	}
	at := map[string]int{}
	spot := func(state string) *Hotspot {
		if _, known := at[state]; !known {
			at[state] = len(out.Hotspots)
			out.Hotspots = append(out.Hotspots, Hotspot{State: state})
		}
		return &out.Hotspots[at[state]]
	}
	var total float64
	for _, s := range out.States {
		spot(s.State).Total += s.Total
		total += s.Total
	}
	for _, l := range rows {
		now, earlier := mean(l.Milliseconds, l.Visits), mean(before[l.State].milliseconds, before[l.State].visits)
		if l.Visits >= MinVisits && earlier > 0 {
			h := spot(l.State)
			h.Now, h.Before, h.Slowdown = &now, &earlier, new(now/earlier)
		}
	}
	for i := range out.Hotspots {
		if total > 0 {
			out.Hotspots[i].Share = out.Hotspots[i].Total / total
		}
	}
	slices.SortStableFunc(out.Hotspots, func(a, b Hotspot) int { return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.State, b.State)) })
	return nil
}

func (r *reading) tasks(out *Stats) error {
	rows, err := r.q.CountTasksByTopic(r.ctx, queries.CountTasksByTopicParams{
		Tenant: r.tenant, Workflow: r.workflow, FromID: firstID(out.From), ToID: firstID(out.To.Add(day)), RowLimit: MaxTasks,
	})
	for _, t := range rows {
		out.TasksComplete = t.LookedAt < MaxTasks
		if t.Tasks > 0 {
			ended := t.Done + t.Errors + t.Unknown
			out.Tasks = append(out.Tasks, TaskStats{
				Topic: t.Topic, Connection: t.Connection, Tasks: t.Tasks, Open: t.Open, Done: t.Done, Errors: t.Errors, Unknown: t.Unknown,
				Cancelled: t.Cancelled, ErrorRate: share(t.Errors, ended), UnknownRate: share(t.Unknown, ended),
			})
		}
	}
	return err
}

// firstID returns the smallest UUID of version 7 that may be made at a time.
func firstID(at time.Time) (id uuid.UUID) {
	ms := max(at.UnixMilli(), 0)
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

func (r *reading) commands(out *Stats) error {
	rows, err := bounded(r.q.SumCommands(r.ctx, queries.SumCommandsParams{
		Tenant: r.tenant, Workflow: r.workflow, FromDay: dateOf(out.From), ToDay: dateOf(out.To), RowLimit: MaxRows + 1,
	}))
	for _, c := range rows {
		switch c.KeyResult {
		case "new":
			out.Idempotency.New += c.Commands
		case "replayed":
			out.Idempotency.Replayed += c.Commands
		case "collision":
			out.Idempotency.Collision += c.Commands
		}
		if c.Outcome == "applied" || c.KeyResult == "replayed" {
			continue
		}
		if n := len(out.Refusals) - 1; n >= 0 && out.Refusals[n].Event == c.Event && out.Refusals[n].Reason == c.Outcome {
			out.Refusals[n].Commands += c.Commands
		} else {
			out.Refusals = append(out.Refusals, Refusals{c.Event, c.Outcome, c.Commands})
		}
	}
	return err
}
