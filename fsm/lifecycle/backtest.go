package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Bounds of a back-test.
const (
	// DefaultSample and MaxSample are how many instances are back-tested, by default and at most.
	DefaultSample, MaxSample = 1000, 10_000
	// MaxDifferences is how many differences a Backtest lists.
	MaxDifferences = 100
	// maxExamples is how many instances a DifferenceGroup names.
	maxExamples = 3
	// MaxGroups is how many groups of differences a Backtest lists.
	MaxGroups = 1000
	// BacktestTime is how long a back-test may take. Clients and proxies often wait for half a minute.
	BacktestTime = 20 * time.Second
	// maxSlow is how many instances may take too long before the back-test is given up.
	maxSlow = 3
)

// BacktestCommand asks which way a tenant's instances would have gone under another definition of their
// workflow, the candidate.
type BacktestCommand struct {
	Tenant   string // Default fsm.DefaultTenant. fsm.Deployment stands for all tenants.
	Workflow string
	// Version is that of a registered candidate, and Definition a candidate that need not be registered.
	// One of them must be given, and not both. A definition without a name takes the workflow's.
	Version    int
	Definition json.RawMessage
	// Sample is how many instances to back-test: the newest ones, of any version and status. More than
	// MaxSample counts as MaxSample. Default DefaultSample.
	Sample int
}

// Backtest is the result of a back-test.
type Backtest struct {
	// Version is the candidate's, 0 for a Definition.
	Version int
	// Instances counts those that were back-tested. Same would have gone the same way, and Different another
	// way. The back-test of an instance ends at an instance migration and at its 1,000th step: Incomplete
	// would have gone the same way up to there.
	Instances, Same, Different, Incomplete int
	// Unfinished: the time was up before the whole sample was back-tested.
	Unfinished bool
	// Summary groups the differences, the largest group first; at most MaxGroups, those that were found first.
	Summary []DifferenceGroup
	// Differences has one for each instance, the newest instances first; at most MaxDifferences, and no more after
	// those by which they have fsm.PageBytes.
	Differences []Difference
}

// DifferenceGroup counts the instances whose differences are alike.
type DifferenceGroup struct {
	// Event to WouldBe are those of each Difference.
	Event, From *string
	To          string
	Outcome     string
	WouldBe     *string
	// Count is how many instances there are.
	Count int
	// Examples are the newest of the instances, at most three.
	Examples []uuid.UUID
}

// Difference is the first step at which an instance would have gone another way. Later steps are not
// compared, since they start from another state.
type Difference struct {
	InstanceID uuid.UUID
	// Version is that of the recorded step, and WorkflowVersion that of the workflow that made it.
	Version         int64
	WorkflowVersion int
	// Event, From and To are those of the recorded macrostep: To is the state after the eventless
	// transitions. Event and From are nil for the creation. If the candidate would have ended the instance's
	// stay in its present state, Event is nil, and From and To are that state.
	Event, From *string
	To          string
	// Outcome is "elsewhere" if the step would have led to another state; "other-status" if it would have
	// led to the same state, which gives another status there; "timeout" if a timeout would have come first;
	// "no-timeout" if the recorded timeout would not have come; or why the step would have been refused:
	// "transition-not-allowed", "guard-rejected", "guard-error", "unknown-event", "invalid-payload",
	// "invalid-context" or "too-large".
	Outcome string
	// WouldBe is the state that the instance would have gone to; nil if it would have stayed.
	WouldBe *string
	// Guards of "guard-rejected": those that were tried, in order.
	Guards []string
	// Faults of "invalid-payload" and "invalid-context".
	Faults []fsm.Fault
	// Detail is a sentence that says why.
	Detail string
}

// Backtest runs the recorded events and payloads of instances through another definition, each at its
// recorded time, and says which instances would have gone another way. It decides as Fire does, and
// writes nothing.
//
// If a recorded timeout was late, the candidate's timeout is taken to be late by the same time. The context
// starts as the recorded one of the creation, with what the recorded entry of the initial state assigned;
// from then on it is what the candidate assigns. Payloads and contexts are checked against the schemas of
// the candidate, unless they were recorded under the same schema.
//
// Kinds: Malformed, TooLarge, InvalidDefinition with every fault, WorkflowNotFound, GuardError if
// several instances take too long, TenantRequired, Unavailable.
//
// It ends after BacktestTime with what was back-tested until then, and at once with an error if the context
// ends. A process runs two back-tests at a time, of different tenants; further ones wait.
func (s *Service) Backtest(ctx context.Context, c BacktestCommand) (Backtest, error) {
	switch {
	case (c.Version == 0) == (c.Definition == nil):
		return Backtest{}, fsm.MalformedAt("/definition", "either a definition or a version must be given, and not both")
	case c.Sample < 0:
		return Backtest{}, fsm.MalformedAt("/sample", "must be at least 1")
	}
	if err := fsm.CheckOrigin(&c.Tenant, &fsm.Origin{}); err != nil {
		return Backtest{}, err
	}
	leave, err := s.backtests.Enter(ctx)
	if err != nil {
		return Backtest{}, fsm.AsError(err)
	}
	defer leave()
	tenants, err := s.fsm.TenantsOf(ctx, c.Tenant)
	if err != nil {
		return Backtest{}, err
	}
	w, err := s.GetWorkflow(ctx, c.Workflow, c.Version)
	if err != nil {
		return Backtest{}, err
	}
	b := backtest{
		service: s, tenants: tenants, groups: map[string]*DifferenceGroup{},
		params: queries.BacktestParams{Workflow: w.Name, Bytes: fsm.PageBytes},
	}
	b.Version = c.Version
	if c.Definition == nil {
		version := int32(w.Version)
		b.params.Version, b.options.AccessMode = &version, pgx.ReadOnly
	} else {
		_, canonical, err := readDefinition(ctx, s.db.Try, w.Name, c.Definition)
		if err != nil {
			return Backtest{}, fsm.Within("/definition", err)
		}
		b.params.Definition = canonical
	}
	bounded, cancel := context.WithTimeout(ctx, s.backtestTime)
	defer cancel()
	if err := b.run(bounded, min(cmp.Or(c.Sample, DefaultSample), MaxSample)); err != nil {
		if bounded.Err() == nil || ctx.Err() != nil {
			return Backtest{}, err
		}
		b.Unfinished = true
	}
	for _, key := range slices.Sorted(maps.Keys(b.groups)) {
		b.Summary = append(b.Summary, *b.groups[key])
	}
	slices.SortStableFunc(b.Summary, func(a, b DifferenceGroup) int { return cmp.Compare(b.Count, a.Count) })
	return b.Backtest, nil
}

// backtest is a Backtest under way.
type backtest struct {
	Backtest
	service *Service
	tenants []string
	params  queries.BacktestParams
	options pgx.TxOptions
	groups  map[string]*DifferenceGroup
	slow    int // How many instances took too long.
	bytes   int // The size of the listed differences.
}

// run back-tests the newest instances. It reads their ids in pages. A call does as much of a page as it has
// time for.
func (b *backtest) run(ctx context.Context, sample int) error {
	const page = 100
	var before *uuid.UUID
	for sample > 0 {
		var rows []queries.NewestInstancesRow
		err := b.service.db.ReadPlanned(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.NewestInstances(ctx, queries.NewestInstancesParams{
				Tenants: b.tenants, Workflow: b.params.Workflow, BeforeID: before, RowLimit: int32(min(sample, page)),
			})
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		sample, before = sample-len(rows), &rows[len(rows)-1].ID
		for len(rows) > 0 {
			// A call is for one tenant.
			b.params.Tenant = rows[0].TenantID
			n := 1
			for n < len(rows) && rows[n].TenantID == b.params.Tenant {
				n++
			}
			ids := make([]uuid.UUID, n)
			for i, r := range rows[:n] {
				ids[i] = r.ID
			}
			done, err := b.rerun(ctx, ids)
			if err != nil {
				return err
			}
			rows = rows[done:]
		}
	}
	return nil
}

// timeout bounds a call. Most calls take about a tenth of a second.
func (b *backtest) timeout() time.Duration { return 4 * b.service.db.Timeout() }

// rerun makes one call, which back-tests some instances from the start of the list, and returns how many.
func (b *backtest) rerun(ctx context.Context, ids []uuid.UUID) (done int, err error) {
	var rows []queries.BacktestRow
	b.params.Ids = ids
	err = b.service.db.Linger(ctx, b.options, fmt.Sprintf("%dms", b.timeout().Milliseconds()), func(q *queries.Queries) (err error) {
		rows, err = q.Backtest(ctx, b.params)
		return err
	})
	switch {
	case database.IsCode(err, database.QueryCanceled) && len(ids) > 1:
		// One of the instances takes too long. Called singly, the others are done, and it is found.
		return b.rerun(ctx, ids[:1])
	case database.IsCode(err, database.QueryCanceled):
		return 1, b.tooSlow(ctx, ids[0])
	case err != nil:
		e := fsm.AsError(err)
		if e.Kind == fsm.WorkflowNotFound {
			e.Message = "this version has been retired meanwhile"
		}
		return 0, e
	}
	for _, r := range rows {
		if err := b.add(ctx, r); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// tooSlow adds the difference of an instance whose back-test takes too long.
func (b *backtest) tooSlow(ctx context.Context, id uuid.UUID) error {
	i, err := b.service.fsm.Get(ctx, b.params.Tenant, id)
	if err != nil {
		if errors.Is(err, fsm.InstanceNotFound) {
			return nil
		}
		return err
	}
	detail := fmt.Sprintf("re-running it takes longer than %s: a guard or an assign is slow", b.timeout())
	if b.slow++; b.slow > maxSlow {
		return &fsm.Error{Kind: fsm.GuardError, Message: "too many instances take too long, such as " + id.String() + ": " + detail}
	}
	b.Instances++
	b.differ(Difference{
		InstanceID: id, Version: i.Version, WorkflowVersion: i.WorkflowVersion, From: &i.State, To: i.State,
		Outcome: "guard-error", Detail: detail,
	})
	return nil
}

// recordedStep is a step as the engine returns it; see Difference.
type recordedStep struct {
	Version         int64
	WorkflowVersion int `json:"workflow_version"`
	Event, From     *string
	To              string
}

// add counts an instance, and adds its first difference if it has one.
func (b *backtest) add(ctx context.Context, r queries.BacktestRow) error {
	if r.Steps == 0 {
		return nil // It was purged meanwhile.
	}
	d, err := b.difference(r)
	if err != nil {
		return &fsm.Error{Kind: fsm.Internal, Cause: err}
	}
	invalid, err := b.invalid(ctx, r)
	if err != nil {
		return err
	}
	b.Instances++
	switch d = cmp.Or(invalid, d); {
	case d != nil:
		b.differ(*d)
	case r.Complete:
		b.Same++
	default:
		b.Incomplete++
	}
	return nil
}

// difference returns the difference that the engine found, or nil.
func (b *backtest) difference(r queries.BacktestRow) (*Difference, error) {
	if r.Difference == nil {
		return nil, nil
	}
	var found struct {
		recordedStep
		Outcome       string
		WouldBe       *string `json:"would_be"`
		Guards        []string
		Timeout       string
		DueAt         time.Time `json:"due_at"`
		Error         string
		Status        fsm.Status
		WouldBeStatus fsm.Status `json:"would_be_status"`
	}
	if err := json.Unmarshal(r.Difference, &found); err != nil {
		return nil, err
	}
	d := differenceAt(r.ID, found.recordedStep, found.Outcome)
	d.WouldBe, d.Guards = found.WouldBe, found.Guards
	event := "the creation"
	if found.Event != nil {
		event = *found.Event
	}
	from := found.To
	if found.From != nil {
		from = *found.From
	}
	switch found.Outcome {
	case "elsewhere":
		d.Detail = fmt.Sprintf("%s leads to %s", cmp.Or(found.Timeout, event), *found.WouldBe)
	case "other-status":
		d.Detail = fmt.Sprintf("an instance in %s is %s, and was %s", found.To, found.WouldBeStatus, found.Status)
	case "timeout":
		d.Detail = fmt.Sprintf("%s, due at %s, leads from %s to %s first",
			found.Timeout, found.DueAt.UTC().Format(time.RFC3339Nano), from, *found.WouldBe)
	case "no-timeout":
		d.Detail = fmt.Sprintf("no timeout of %s has ended by then", from)
	case "transition-not-allowed":
		d.Detail = fmt.Sprintf("the state %s has no transition for %s", from, event)
	case "unknown-event":
		d.Detail = fmt.Sprintf("the workflow has no event %s", event)
	case "guard-rejected":
		d.Detail = fmt.Sprintf("no guard of %s in the state %s holds for the recorded payload", event, from)
	case "guard-error":
		d.Detail = fmt.Sprintf("a guard or an assign fails: %s", found.Error)
	case "too-large":
		d.Detail = "the payload is, or the context would become, larger than the limit, or nested too deep"
	}
	return &d, nil
}

func differenceAt(id uuid.UUID, s recordedStep, outcome string) Difference {
	return Difference{
		InstanceID: id, Version: s.Version, WorkflowVersion: s.WorkflowVersion, Event: s.Event, From: s.From, To: s.To,
		Outcome: outcome,
	}
}

// invalid returns the difference of the first step whose context or payload does not fit the candidate's
// schema, or nil. The engine lists the steps to check up to the difference that it found itself. Since a
// document is checked before the candidate decides, an invalid one is the earlier difference.
func (b *backtest) invalid(ctx context.Context, r queries.BacktestRow) (*Difference, error) {
	if r.Checks == nil {
		return nil, nil
	}
	var checks struct {
		Schemas map[string]json.RawMessage
		Steps   []struct {
			recordedStep
			Checksum string
		}
	}
	if err := json.Unmarshal(r.Checks, &checks); err != nil {
		return nil, &fsm.Error{Kind: fsm.Internal, Cause: err}
	}
	// Documents may be large: read a few at a time.
	for steps := range slices.Chunk(checks.Steps, 20) {
		versions := make([]int64, len(steps))
		for i, step := range steps {
			versions[i] = step.Version
		}
		var documents []queries.ListDocumentsRow
		err := b.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			documents, err = q.ListDocuments(ctx, queries.ListDocumentsParams{
				TenantID: b.params.Tenant, InstanceID: r.ID, Versions: versions,
			})
			return err
		})
		if err != nil {
			return nil, err
		}
		for i, document := range documents {
			if i >= len(steps) || document.Version != steps[i].Version {
				return nil, nil // The instance was purged meanwhile.
			}
			at, outcome := "/payload", "invalid-payload"
			if document.Version == 1 {
				at, outcome = "/context", "invalid-context"
			}
			_, faults, err := b.service.schemas.Check(ctx, checks.Schemas[steps[i].Checksum], document.Document, at)
			if err != nil {
				return nil, fsm.AsError(err)
			}
			if len(faults) > 0 {
				invalid := differenceAt(r.ID, steps[i].recordedStep, outcome)
				invalid.Faults = fsm.Faults(faults)
				invalid.Detail = fmt.Sprintf("the recorded %s does not fit its schema", strings.TrimPrefix(at, "/"))
				return &invalid, nil
			}
		}
	}
	return nil, nil
}

// differ adds a difference to the list and to its group.
func (b *backtest) differ(d Difference) {
	b.Different++
	if len(b.Differences) < MaxDifferences && b.bytes < fsm.PageBytes {
		b.Differences = append(b.Differences, d)
		b.bytes += d.size()
	}
	key := fmt.Sprintf("%q", []string{deref(d.Event), deref(d.From), d.To, d.Outcome, deref(d.WouldBe)})
	g, known := b.groups[key]
	if !known {
		if len(b.groups) == MaxGroups {
			return
		}
		g = &DifferenceGroup{Event: d.Event, From: d.From, To: d.To, Outcome: d.Outcome, WouldBe: d.WouldBe}
		b.groups[key] = g
	}
	g.Count++
	if len(g.Examples) < maxExamples {
		g.Examples = append(g.Examples, d.InstanceID)
	}
}

// size is about how many bytes the texts of a difference have.
func (d Difference) size() int {
	n := len(d.Detail) + len(deref(d.Event)) + len(deref(d.From)) + len(d.To) + len(deref(d.WouldBe))
	for _, guard := range d.Guards {
		n += len(guard)
	}
	for _, f := range d.Faults {
		n += len(f.Pointer) + len(f.Detail)
	}
	return n
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
