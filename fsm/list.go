package fsm

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Sort is the order of a list of instances.
type Sort string

// The orders. Those by created_at are orders of the ids, which begin with the time of creation. In those by
// state_changed_at, instances with the same time are in the order of their ids.
const (
	SortCreatedAt          Sort = "created_at"
	SortCreatedAtDesc      Sort = "-created_at"
	SortStateChangedAt     Sort = "state_changed_at"
	SortStateChangedAtDesc Sort = "-state_changed_at"
)

const (
	// MaxNames is how many workflows, and how many states, a Filter may name.
	MaxNames = 20
	// MaxSorted is the largest number of instances that List sorts by state_changed_at.
	MaxSorted = 10_000
	// maxUnfolded is the most steps behind the consumer insight with which a list is read from what was folded.
	maxUnfolded = 10_000
	// maxStuck is how many instances a list with StuckFor sorts, and how many it reads of each state if there are more.
	maxStuck = 20_000
	// maxRanges is the most pairs of a workflow and a state that a list reads one by one.
	maxRanges = 1000
)

// Filter says which instances are listed, and in which order. An instance is listed if every member chooses
// it. A zero member chooses all instances.
type Filter struct {
	// Workflows, States and Statuses choose the instances that have one of these values. The name of a compound
	// state stands for all states within. Each workflow must exist. Each state must exist in a version of one of
	// these workflows, or of any workflow if none is named; then the names may stand for 10,000 states at most.
	Workflows, States []string
	Statuses          []Status
	// Within, if not nil, are the workflows that the caller may know of. The others are to it as if they did not exist.
	Within []string
	// BusinessKey and CorrelationID choose the instances that have exactly this value.
	BusinessKey, CorrelationID string
	// CreatedAfter and CreatedBefore are both exclusive.
	CreatedAfter, CreatedBefore time.Time
	// StuckFor chooses active instances that have been in their state for at least that long.
	StuckFor time.Duration
	// Where are conditions for search attributes of the only workflow, such as price>=400; each must hold. It is combined
	// with Workflows, States, Statuses and the orders of created_at alone.
	Where []string
	// FailingTimer chooses the instances whose deadline came while its step could not be made; see
	// NextTimeout.LastError.
	FailingTimer bool
	// Sort is the order. Default SortCreatedAtDesc.
	//
	// Commands may change the order by state_changed_at between two pages: an instance that moves becomes the
	// latest. In this order at most MaxSorted instances are listed, unless States are given and neither BusinessKey,
	// CorrelationID, FailingTimer, CreatedAfter nor CreatedBefore is. They are counted before the list is read.
	// States reduces the count only to the workflows and statuses that have such a state, and StuckFor only to
	// the instances that were created so long ago.
	Sort Sort
}

// An InstanceList is one page of instances.
type InstanceList struct {
	List[Instance]
	// AsOf is the time from which the page is: it has what was committed until then.
	AsOf time.Time
	// Incomplete: instances may be missing from a list by Where until the workflow is indexed anew; see
	// lifecycle.Service.Reindex.
	Incomplete bool
}

// List returns instances in the order of the filter. A cursor belongs to the filter that it was given for.
// Kinds: Malformed (limit, cursor or filter; the faults have the parameters' names in the API), Unavailable.
func (s *Service) List(ctx context.Context, tenant string, f Filter, from Page) (InstanceList, error) {
	var out InstanceList
	f, err := f.normal()
	if err != nil {
		return out, err
	}
	scope, err := json.Marshal(f)
	if err != nil {
		return out, AsError(err)
	}
	choice, err := s.choose(ctx, f)
	if err != nil {
		return out, err
	}
	conditions, err := s.conditions(ctx, f)
	if err != nil {
		return out, err
	}
	var rest string
	where := len(conditions) > 0
	out.Items, out.Next, err = database.List(ctx, s.db, database.Listing[queries.ListInstancesRow, Instance]{
		Scope: "instances " + tenant + " " + string(scope),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.ListInstancesRow, error) {
			p := f.params(tenant, choice)
			p.RowLimit, p.ReadLimit, p.Bytes = limit, limit, PageBytes
			if err := f.readKey(&p, after); err != nil {
				return nil, err
			}
			q := database.Planned(db)
			place, err := q.ListPlace(ctx, maxUnfolded)
			if err != nil {
				return nil, err
			}
			out.AsOf, rest = place.AsOf, ""
			if where {
				var rows []queries.ListInstancesRow
				rows, rest, err = readFound(ctx, q, p, func() (found, error) {
					w, err := instancesWhere(ctx, q, p, f, choice, conditions, place.Near)
					out.Incomplete = w.Incomplete
					return found{w.Ids, w.Versions, w.Rest, func(i int) string { return w.Ids[i].String() }}, err
				})
				return rows, err
			}
			if place.Near && f.isByStates() && choice.pairs != nil {
				var rows []queries.ListInstancesRow
				rows, rest, err = readFound(ctx, q, p, func() (found, error) {
					s, err := inStates(ctx, q, p, choice)
					return found{s.Ids, s.Versions, s.Rest, func(i int) string {
						return f.key(Instance{ID: s.Ids[i], StateChangedAt: s.Changes[i]})
					}}, err
				})
				if !database.IsCode(err, database.NotInPrerequisiteState) { // Else there are too many steps by now.
					return rows, err
				}
			}
			if p.ByChange {
				p.ReadLimit = MaxSorted
				if err := checkSorted(ctx, db, p); err != nil {
					return nil, err
				}
			}
			return q.ListInstances(ctx, p)
		},
		Bytes: func(r queries.ListInstancesRow) int { return len(r.Context) },
		Rest:  func() string { return rest },
		Item:  func(r queries.ListInstancesRow) Instance { return InstanceOfRow(queries.GetInstancesRow(r)) },
		Key:   f.key,
	}, from.Limit, from.Cursor)
	return out, err
}

// isByStates reports whether a list is read by its states alone: no other index has fewer instances to look at.
func (f Filter) isByStates() bool {
	return len(f.States) > 0 && f.BusinessKey == "" && f.CorrelationID == "" && !f.FailingTimer &&
		!(f.byChange() && !(f.CreatedAfter.IsZero() && f.CreatedBefore.IsZero()))
}

// params are the conditions of a filter, for a choice of its names.
func (f Filter) params(tenant string, c choice) queries.ListInstancesParams {
	return queries.ListInstancesParams{
		TenantID: tenant, Statuses: c.statuses, Workflows: c.workflows, States: c.states,
		BusinessKey: database.Optional(f.BusinessKey), CorrelationID: database.Optional(f.CorrelationID),
		CreatedAfter: database.Optional(f.CreatedAfter), CreatedBefore: database.Optional(f.CreatedBefore),
		StuckFor: pgtype.Interval{Microseconds: f.StuckFor.Microseconds(), Valid: f.StuckFor > 0},
		Failing:  f.FailingTimer, ByChange: f.byChange(), Ascending: !strings.HasPrefix(string(f.Sort), "-"),
	}
}

// normal returns the filter in the form that its cursors are bound to. It refuses a filter that is wrong
// whatever the database holds.
func (f Filter) normal() (Filter, error) {
	texts := []string{f.BusinessKey, f.CorrelationID}
	for _, status := range f.Statuses {
		texts = append(texts, string(status))
	}
	for _, names := range []struct {
		parameter string
		list      []string
	}{{"workflow", f.Workflows}, {"state", f.States}} {
		if len(names.list) > MaxNames {
			return f, BadParameter(names.parameter, fmt.Sprintf("must not be given more than %d times", MaxNames))
		}
		texts = append(texts, names.list...)
	}
	for _, text := range texts {
		if err := CheckTexts(Text{"", text, 255}); err != nil {
			return f, err
		}
	}
	switch f.Sort = cmp.Or(f.Sort, SortCreatedAtDesc); f.Sort {
	case SortCreatedAt, SortCreatedAtDesc, SortStateChangedAt, SortStateChangedAtDesc:
	default:
		return f, BadParameter("sort", "must be created_at, -created_at, state_changed_at or -state_changed_at")
	}
	if len(f.Where) > MaxWhere {
		return f, BadParameter("where", fmt.Sprintf("must not be given more than %d times", MaxWhere))
	}
	f.Where = sorted(f.Where)
	f.Workflows, f.States, f.Statuses = sorted(f.Workflows), sorted(f.States), sorted(f.Statuses)
	if f.Within != nil {
		f.Within = append([]string{}, sorted(f.Within)...)
	}
	return f, nil
}

// BadParameter returns the Malformed error for a bad parameter of a request.
func BadParameter(parameter, detail string) *Error {
	return &Error{
		Kind: Malformed, Message: parameter + " " + detail, Faults: []Fault{{Parameter: parameter, Detail: detail}},
	}
}

// sorted returns the values in order, without duplicates; nil if there are none.
func sorted[T ~string](values []T) []T {
	if len(values) == 0 {
		return nil
	}
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}

// byChange reports whether the order is that of state_changed_at.
func (f Filter) byChange() bool {
	return f.Sort == SortStateChangedAt || f.Sort == SortStateChangedAtDesc
}

// key is the place of an instance in the list: its id; in an order by state_changed_at, that time and the id.
func (f Filter) key(i Instance) string {
	if f.byChange() {
		return FormatTime(i.StateChangedAt) + " " + i.ID.String()
	}
	return i.ID.String()
}

// readKey makes the query begin after a key, or at the beginning if the key is empty.
func (f Filter) readKey(p *queries.ListInstancesParams, key string) error {
	if f.byChange() && key != "" {
		text, id, _ := strings.Cut(key, " ")
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return err
		}
		p.AfterChange, key = &at, id
	}
	var err error
	p.AfterID, err = database.OptionalID(key)
	return err
}

// checkSorted refuses a list by state_changed_at that would have to read more than MaxSorted instances.
func checkSorted(ctx context.Context, db queries.DBTX, p queries.ListInstancesParams) error {
	n, err := countInstances(ctx, database.Planned(db), p, MaxSorted+1)
	if err == nil && n > MaxSorted {
		return BadParameter("sort", fmt.Sprintf("by state_changed_at is for at most %d instances, and there are more with this "+
			"workflow, status, correlation_id and time of creation; choose fewer of them, or sort by created_at", MaxSorted))
	}
	return err
}

// countInstances counts the index entries that a list would have to read, up to a limit.
func countInstances(ctx context.Context, q *queries.Queries, p queries.ListInstancesParams, limit int) (int64, error) {
	return q.CountInstances(ctx, queries.CountInstancesParams{
		TenantID: p.TenantID, Statuses: p.Statuses, Workflows: p.Workflows, Failing: p.Failing, BusinessKey: p.BusinessKey,
		CorrelationID: p.CorrelationID, CreatedAfter: p.CreatedAfter, CreatedBefore: p.CreatedBefore, StuckFor: p.StuckFor,
		RowLimit: int32(limit),
	})
}

// A Choice is what a Filter's names stand for now.
type Choice struct {
	Filter
	// RangeStatuses has an entry for each index range that the instances are in, and RangeWorkflows is nil or has the
	// workflow of each range.
	RangeStatuses, RangeWorkflows []string
	// Paths are those of atomic states, or nil for all.
	Paths []string
	// Counted is how many index entries there are to read, up to a limit: no fewer than the instances that the filter
	// chooses.
	Counted int64
}

// Choose says which instances of a tenant a filter chooses, and how many at most, counted up to a limit. The sort does
// not matter. Kinds: as of List.
func (s *Service) Choose(ctx context.Context, tenant string, f Filter, limit int) (Choice, error) {
	f, err := f.normal()
	if err != nil {
		return Choice{}, err
	}
	c, err := s.choose(ctx, f)
	if err != nil {
		return Choice{}, err
	}
	out := Choice{Filter: f, RangeStatuses: c.statuses, RangeWorkflows: c.workflows, Paths: c.states}
	p := f.params(tenant, c)
	err = s.db.ReadPlanned(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		out.Counted, err = countInstances(ctx, q, p, limit)
		return err
	})
	return out, err
}

// A choice says what to read for a filter's workflows, states and statuses.
type choice struct {
	// statuses has an entry for each index range to read. workflows is nil, or has the workflow of each range.
	statuses, workflows []string
	// states are the paths of atomic states, or nil for all.
	states []string
	// pairs are the states with their workflows, each once. It is nil if the filter names no states, or if there are too
	// many.
	pairs []pair
}

// A pair is a state of a workflow.
type pair struct{ workflow, state string }

// choose looks up which ranges of an index have the instances that a filter chooses. It returns a Malformed
// error if the filter names a workflow or a state that does not exist.
func (s *Service) choose(ctx context.Context, f Filter) (choice, error) {
	wanted := f.Statuses
	if len(wanted) == 0 {
		wanted = []Status{Active, Completed, Failed, Cancelled, Expired}
	}
	if f.StuckFor > 0 || f.FailingTimer {
		wanted = slices.DeleteFunc(slices.Clone(wanted), func(status Status) bool { return status != Active })
	}
	var c choice
	if len(f.Workflows)+len(f.States) == 0 && f.Within == nil {
		for _, status := range wanted {
			c.statuses = append(c.statuses, string(status))
		}
		return c, nil
	}
	var rows []queries.ChosenStatesRow
	err := s.db.ReadPlanned(ctx, func(ctx context.Context, q *queries.Queries) error {
		unknown, err := f.unknownNames(ctx, q)
		if err != nil {
			return err
		}
		if len(unknown) > 0 {
			return f.unknown(ctx, q, unknown)
		}
		rows, err = f.chosenStates(ctx, q)
		return err
	})
	if err != nil {
		return c, err
	}
	var ranges []queries.ChosenStatesRow
	workflows := map[string]bool{}
	pairs := map[pair]bool{}
	for _, r := range rows {
		if slices.Contains(wanted, Status(r.Status)) {
			workflows[r.Workflow] = true
			if f.States != nil {
				c.states = append(c.states, r.State)
				pairs[pair{r.Workflow, r.State}] = true
			}
			r.State = ""
			ranges = append(ranges, r)
		}
	}
	if f.States != nil && len(pairs) <= maxRanges && !workflows[""] {
		c.pairs = append([]pair{}, slices.SortedFunc(maps.Keys(pairs), func(a, b pair) int {
			return cmp.Or(strings.Compare(a.workflow, b.workflow), strings.Compare(a.state, b.state))
		})...)
	}
	if len(workflows) > MaxNames && f.Within == nil { // This happens only if the filter names states and no workflow.
		for i := range ranges {
			ranges[i].Workflow = ""
		}
	}
	slices.SortFunc(ranges, func(a, b queries.ChosenStatesRow) int {
		return cmp.Or(strings.Compare(a.Workflow, b.Workflow), strings.Compare(a.Status, b.Status))
	})
	for _, r := range slices.Compact(ranges) {
		c.statuses = append(c.statuses, r.Status)
		if r.Workflow != "" {
			c.workflows = append(c.workflows, r.Workflow)
		}
	}
	c.states = sorted(c.states)
	return c, nil
}

const (
	// maxCombinations is how many combinations of a state, a status and a workflow are looked for, so that the
	// instances of each workflow are read by themselves.
	maxCombinations = 200
	// maxChosen is how many combinations of a state and a status the states of a filter may stand for, if it
	// names no workflow.
	maxChosen = 10_000
	// maxSuggested is how many names are compared for a suggestion.
	maxSuggested = 2000
)

// chosenStates reads the workflows, statuses and states of the instances that a filter chooses. If there are more
// than maxCombinations, the workflows are empty.
func (f Filter) chosenStates(ctx context.Context, q *queries.Queries) ([]queries.ChosenStatesRow, error) {
	if among := f.among(); among != nil {
		return q.ChosenStates(ctx, queries.ChosenStatesParams{Workflows: among, States: f.States})
	}
	p := queries.ChosenStatesOfAllParams{States: f.States, ByWorkflow: true, RowLimit: maxCombinations + 1}
	all, err := q.ChosenStatesOfAll(ctx, p)
	if err == nil && len(all) > maxCombinations {
		p.ByWorkflow, p.RowLimit = false, maxChosen+1
		all, err = q.ChosenStatesOfAll(ctx, p)
	}
	if err == nil && len(all) > maxChosen {
		err = BadParameter("state", fmt.Sprintf("stands for more than %d states of all workflows; name a workflow too", maxChosen))
	}
	rows := make([]queries.ChosenStatesRow, len(all))
	for i, r := range all {
		rows[i] = queries.ChosenStatesRow(r)
	}
	return rows, err
}

// among returns the workflows that the filter chooses among; nil for all.
func (f Filter) among() []string {
	if len(f.Workflows) > 0 {
		return f.Workflows
	}
	return f.Within
}

// unknownNames returns the workflows and states of the filter that do not exist.
func (f Filter) unknownNames(ctx context.Context, q *queries.Queries) (unknown []queries.UnknownNamesRow, err error) {
	for i, name := range f.Workflows {
		if f.Within != nil && !slices.Contains(f.Within, name) {
			unknown = append(unknown, queries.UnknownNamesRow{Kind: "workflows", Place: int32(i)})
		}
	}
	if len(unknown) > 0 {
		return unknown, nil // Those within are not told apart by their states.
	}
	unknown, err = q.UnknownNames(ctx, queries.UnknownNamesParams{
		Workflows: append([]string{}, f.among()...), Events: []string{}, States: append([]string{}, f.States...),
	})
	if len(f.Workflows) == 0 { // A workflow of Within need not exist.
		unknown = slices.DeleteFunc(unknown, func(u queries.UnknownNamesRow) bool { return u.Kind == "workflows" })
	}
	return unknown, err
}

// unknown returns the error of a filter that names workflows or states that do not exist. Each fault suggests the
// nearest name that does.
func (f Filter) unknown(ctx context.Context, q *queries.Queries, unknown []queries.UnknownNamesRow) error {
	e := &Error{Kind: Malformed, Message: "the filter names what does not exist"}
	for _, u := range unknown {
		parameter, name, known, err := "workflow", "", []string(nil), error(nil)
		if u.Kind == "workflows" {
			name = f.Workflows[u.Place]
			if known = f.Within; f.Within == nil {
				known, err = q.ListWorkflowNames(ctx, maxSuggested)
			}
		} else {
			parameter, name = "state", f.States[u.Place]
			if among := f.among(); among != nil {
				known, err = q.ListStateNames(ctx, among)
			} else {
				known, err = q.ListAllStateNames(ctx, maxSuggested)
			}
			known = WithCompounds(known)
		}
		if err != nil {
			return err
		}
		detail := fmt.Sprintf("there is no %s %q", parameter, name)
		if near := definition.Nearest(name, known); near != "" {
			detail += fmt.Sprintf("; did you mean %q?", near)
		}
		e.Faults = append(e.Faults, Fault{Parameter: parameter, Detail: detail})
	}
	return e
}

// WithCompounds returns the paths of states and of the compound states around them, sorted and without duplicates.
func WithCompounds(states []string) []string {
	all := slices.Clone(states)
	for _, state := range states {
		for i, c := range state {
			if c == '.' {
				all = append(all, state[:i])
			}
		}
	}
	return sorted(all)
}
