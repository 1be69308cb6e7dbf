package insight

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// Bounds of a Forecast.
const (
	// ForecastDays is how many days count: the visits that ended in them.
	ForecastDays = 90
	// maxOpen is how many open visits of each state are looked at, those that began first.
	maxOpen = 1000
	// walks is how many ways to an end are tried, walkSteps how long each may be, and budget how many steps all may have.
	walks     = 2000
	walkSteps = 1000
	budget    = 200_000
)

// Forecast says what will probably become of an instance, from what became of others of its tenant. Durations are in
// seconds from now. The same sums give the same forecast.
type Forecast struct {
	// AsOf is the time up to which steps are counted.
	AsOf *time.Time
	// State is the present one, and Spent is how long the instance has been in it.
	State string
	Spent float64
	// Sample is how many visits of the state have ended.
	Sample int64
	// P50 and P90 are when the instance will have ended: at the latest in half, and in nine tenths, of the cases. Nil if
	// too few instances have been seen to get that far.
	P50, P90 *float64
	// Coverage says how good the forecasts for the state were; nil if none was scored.
	Coverage *Coverage
	// Next are the states that the next step may lead to, the likeliest first.
	Next []NextState
	// Outcomes are the states that the instance may end in, the likeliest first.
	Outcomes []Outcome
}

// Coverage says how good the forecasts of the last DefaultDays days were. Each night the visits of the day before are compared with
// the quantiles of the days before that.
type Coverage struct {
	// Visits is how many were compared.
	Visits int64
	// P50 and P90 are the shares that had ended by these quantiles. Those of good forecasts are a half and nine tenths.
	P50, P90 float64
}

// NextState is a state that the next step may lead to.
type NextState struct {
	State  string
	Chance float64
	// P50 and P90 are when the step is made if it leads there.
	P50, P90 *float64
}

// Outcome is a state that an instance may end in.
type Outcome struct {
	State, Status string
	Chance        float64
}

// Forecast returns what will probably become of an instance.
// Kinds: InstanceNotFound, InstanceFinal, TooFewSamples, Unavailable.
func (s *Service) Forecast(ctx context.Context, tenant string, id uuid.UUID) (Forecast, error) {
	i, err := s.fsm.Get(ctx, tenant, id)
	switch {
	case err != nil:
		return Forecast{}, err
	case i.Status != fsm.Active:
		return Forecast{}, fsm.Errorf(fsm.InstanceFinal, "the instance has ended in the state %s: there is nothing to forecast", i.State)
	}
	var out Forecast
	err = s.fsm.Database().Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		p, now, err := readProcess(ctx, q, tenant, i.Workflow)
		if err != nil {
			return err
		}
		out, err = p.forecast(i.State, max(now.Sub(i.StateChangedAt), 0))
		if err == nil {
			out.AsOf, err = readAsOf(ctx, q)
		}
		if err == nil {
			out.Coverage, err = readCoverage(ctx, q, tenant, i.Workflow, i.State, now)
		}
		return err
	})
	return out, err
}

// readAsOf reads up to when steps are counted.
func readAsOf(ctx context.Context, q *queries.Queries) (*time.Time, error) {
	t, err := q.InsightAsOf(ctx)
	return asOf(t), err
}

// readCoverage reads how good the forecasts for a state were.
func readCoverage(ctx context.Context, q *queries.Queries, tenant, workflow, state string, now time.Time) (*Coverage, error) {
	c, err := q.ForecastCoverage(ctx, queries.ForecastCoverageParams{
		Tenant: tenant, Workflow: workflow, State: state, FromDay: dateOf(dayOf(now).AddDate(0, 0, -DefaultDays)),
	})
	if err != nil || c.Visits == 0 {
		return nil, err
	}
	all := float64(c.Visits)
	return &Coverage{c.Visits, float64(c.WithinP50) / all, float64(c.WithinP90) / all}, nil
}

// A process has the visits of the states of a workflow, and what its end states mean.
type process struct {
	states map[string]*visits
	ends   map[string]string // The status of each end.
}

// visits are those of one state.
type visits struct {
	sample int64
	ended  map[int32]map[string]float64
	open   map[int32]float64
}

func (p *process) of(state string) *visits {
	v := p.states[state]
	if v == nil {
		v = &visits{ended: map[int32]map[string]float64{}, open: map[int32]float64{}}
		p.states[state] = v
	}
	return v
}

// readProcess reads the sums. Visits that an instance migration ended, and those that have not ended, are *censored*: it is known
// only that they last longer.
func readProcess(ctx context.Context, q *queries.Queries, tenant, workflow string) (*process, time.Time, error) {
	known, err := q.WorkflowIsRegistered(ctx, workflow)
	if err != nil {
		return nil, known.Now, err
	}
	p := &process{states: map[string]*visits{}, ends: map[string]string{}}
	to := dayOf(known.Now)
	from := to.AddDate(0, 0, 1-ForecastDays)
	ended, err := q.CountVisits(ctx, queries.CountVisitsParams{Tenant: tenant, Workflow: workflow, FromDay: dateOf(from), ToDay: dateOf(to)})
	if err != nil {
		return nil, known.Now, err
	}
	var states []string
	for _, e := range ended {
		if p.states[e.State] == nil {
			states = append(states, e.State)
		}
		v := p.of(e.State)
		if e.LedTo == "" {
			v.open[e.Bucket] += float64(e.Visits)
			continue
		}
		if v.ended[e.Bucket] == nil {
			v.ended[e.Bucket] = map[string]float64{}
		}
		v.ended[e.Bucket][e.LedTo] += float64(e.Visits)
		v.sample += e.Visits
	}
	open, err := q.CountOpenVisits(ctx, queries.CountOpenVisitsParams{
		Tenant: tenant, Workflow: workflow, States: states, Now: known.Now, RowLimit: maxOpen,
	})
	if err != nil {
		return nil, known.Now, err
	}
	seen, first, all := map[string]float64{}, map[string]int32{}, map[string]float64{}
	for _, o := range open {
		if _, known := first[o.State]; !known {
			first[o.State] = o.Bucket
		}
		p.states[o.State].open[o.Bucket] += float64(o.Visits)
		seen[o.State] += float64(o.Visits)
		all[o.State] = float64(o.Instances)
	}
	for state, youngest := range first {
		p.states[state].spread(all[state]-seen[state], youngest)
	}
	ends, err := q.EndStates(ctx, queries.EndStatesParams{Tenant: tenant, Workflow: workflow, FromDay: dateOf(from), ToDay: dateOf(to)})
	for _, e := range ends {
		p.ends[e.State] = e.Status
	}
	return p, known.Now, err
}

// spread adds open visits that were not looked at, since they began later than those that were. They are taken to have begun
// evenly since then.
func (v *visits) spread(n float64, youngest int32) {
	if n <= 0 {
		return
	}
	_, end := bounds(youngest)
	for b := range youngest + 1 {
		from, to := bounds(b)
		v.open[b] += n * (to - from) / end
	}
}

// bounds are the ends of a bucket, in milliseconds; see pawl_private.dwell_bucket.
func bounds(bucket int32) (from, to float64) {
	if bucket == 0 {
		return 0, 1
	}
	return math.Pow(1.1, float64(bucket-1)), math.Pow(1.1, float64(bucket))
}

// A point of a law: with this chance the visit goes on for so long, in milliseconds, and leads there.
type point struct {
	left, chance, upTo float64
	state              string
}

// A law says how long a visit goes on and where it leads. Chances add up to 1 with that of never.
type law []point

// law returns the law of a visit that has lasted for some milliseconds: the estimate of Kaplan and Meier, in which
// each end competes with the others. Of the bucket in which the present moment is, the later part counts.
func (v *visits) law(spent float64) (l law) {
	buckets := slices.Sorted(func(yield func(int32) bool) {
		all := map[int32]bool{}
		for b := range v.ended {
			all[b] = true
		}
		for b := range v.open {
			all[b] = true
		}
		for b := range all {
			if !yield(b) {
				return
			}
		}
	})
	part := func(b int32) float64 {
		from, to := bounds(b)
		return min(max((to-spent)/(to-from), 0), 1)
	}
	ended := func(b int32) (n float64) {
		for _, m := range v.ended[b] {
			n += m
		}
		return n
	}
	var risk float64
	for _, b := range buckets {
		risk += part(b) * (ended(b) + v.open[b])
	}
	lasts, upTo := 1.0, 0.0
	for _, b := range buckets {
		share, n := part(b), ended(b)
		if share > 0 && n > 0 {
			from, to := bounds(b)
			middle := math.Sqrt(max(from, spent, 0.1) * to)
			ends := lasts * min(share*n/risk, 1)
			for _, state := range slices.Sorted(keysOf(v.ended[b])) {
				chance := ends * v.ended[b][state] / n
				upTo += chance
				l = append(l, point{max(middle-spent, 0), chance, upTo, state})
			}
			lasts -= ends
		}
		risk -= share * (n + v.open[b])
	}
	return l
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// draw returns the point at a chance from 0 to 1; nil for never.
func (l law) draw(chance float64) *point {
	if i := sort.Search(len(l), func(i int) bool { return l[i].upTo > chance }); i < len(l) {
		return &l[i]
	}
	return nil
}

// quantile returns the time, in seconds, at which a share of the chances of whole is reached by the points that lead to a state,
// or to any for an empty one; nil if it never is.
func (l law) quantile(share, whole float64, state string) *float64 {
	sum := 0.0
	for _, p := range l {
		if state == "" || p.state == state {
			if sum += p.chance; sum >= share*whole-1e-12 && whole > 0 {
				return new(p.left / 1000)
			}
		}
	}
	return nil
}

// chances returns how the ends of visits are divided among the states that they lead to.
func (l law) chances() map[string]float64 {
	all := 0.0
	to := map[string]float64{}
	for _, p := range l {
		to[p.state] += p.chance
		all += p.chance
	}
	for state := range to {
		to[state] /= all
	}
	return to
}

// forecast walks on from a state in which an instance has been for a time.
func (p *process) forecast(state string, spent time.Duration) (Forecast, error) {
	out := Forecast{State: state, Spent: spent.Seconds()}
	here := p.states[state]
	if here != nil {
		out.Sample = here.sample
	}
	if out.Sample < MinVisits {
		return Forecast{}, fsm.Errorf(fsm.TooFewSamples, "%d visits of the state %s have ended in the last %d days, and a forecast needs %d",
			out.Sample, state, ForecastDays, MinVisits)
	}
	now := here.law(float64(spent) / float64(time.Millisecond))
	laws, chances := map[string]law{}, map[string]map[string]float64{}
	for name, v := range p.states {
		laws[name] = v.law(0)
		chances[name] = laws[name].chances()
	}
	next := now.chances()
	if len(now) == 0 { // It has been here for longer than any other: only where they went is known.
		next = chances[state]
	}
	for _, to := range slices.Sorted(keysOf(next)) {
		whole := 0.0
		for _, point := range now {
			if point.state == to {
				whole += point.chance
			}
		}
		out.Next = append(out.Next, NextState{to, next[to], now.quantile(0.5, whole, to), now.quantile(0.9, whole, to)})
	}
	slices.SortStableFunc(out.Next, func(a, b NextState) int { return compareChances(a.Chance, b.Chance) })
	out.Outcomes = p.outcomes(next, chances)
	out.P50, out.P90 = p.ending(now, laws)
	return out, nil
}

// compareChances sorts the larger one first. Chances that differ by an error of rounding are equal.
func compareChances(a, b float64) int {
	if math.Abs(a-b) < 1e-9 {
		return 0
	}
	if a > b {
		return -1
	}
	return 1
}

// outcomes follows the chances of all ways, step by step.
func (p *process) outcomes(at map[string]float64, chances map[string]map[string]float64) (list []Outcome) {
	ended := map[string]float64{}
	for range walkSteps {
		moved, left := map[string]float64{}, 0.0
		for _, state := range slices.Sorted(keysOf(at)) {
			if p.ends[state] != "" {
				ended[state] += at[state]
				continue
			}
			for to, chance := range chances[state] {
				moved[to] += at[state] * chance
				left += at[state] * chance
			}
		}
		if at = moved; left < 1e-9 {
			break
		}
	}
	for _, state := range slices.Sorted(keysOf(ended)) {
		list = append(list, Outcome{state, p.ends[state], ended[state]})
	}
	slices.SortStableFunc(list, func(a, b Outcome) int { return compareChances(a.Chance, b.Chance) })
	return list
}

// ending tries ways to the end. The first step of each takes another part of the law, and the others are drawn, always
// in the same way.
func (p *process) ending(now law, laws map[string]law) (p50, p90 *float64) {
	random := rand.New(rand.NewPCG(1, 2))
	times, steps := make([]float64, walks), 0
	for i := range times {
		at, l := 0.0, now
		chance := (float64(i) + 0.5) / walks
		for range walkSteps {
			point := l.draw(chance)
			if steps++; point == nil || steps > budget {
				at = math.Inf(1)
				break
			}
			at += point.left
			if p.ends[point.state] != "" {
				l = nil
				break
			}
			l, chance = laws[point.state], random.Float64()
		}
		if l != nil {
			at = math.Inf(1)
		}
		times[i] = at
	}
	slices.Sort(times)
	quantile := func(share float64) *float64 {
		if at := times[int(math.Ceil(share*walks))-1]; !math.IsInf(at, 1) {
			return new(at / 1000)
		}
		return nil
	}
	return quantile(0.5), quantile(0.9)
}
