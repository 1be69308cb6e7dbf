package diagnosis

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/fsm/task"
)

// How much is shown.
const (
	// most is how many items a part has that has no other limit.
	most           = 20
	mostEvents     = 50
	mostTransition = 100
	mostAttempts   = 5
	// mostOpen is how many open findings of a kind are shown although there are newer ones.
	mostOpen = 5
	// lookedAt is how many tasks are looked at for open ones.
	lookedAt = 200
	// mostGuard is how many characters of a guard are shown.
	mostGuard = 1000
)

// patience is after how long no further guard is evaluated. One that was begun before may go on until the statement timeout.
const patience = 2 * time.Second

// Service diagnoses instances. It may be used by several goroutines at once.
type Service struct {
	fsm *fsm.Service
	db  *database.Client
}

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service { return &Service{fsm: service, db: service.Database()} }

// A Viewer is who a diagnosis is for.
type Viewer struct {
	// Actor is from whom events are taken to come when guards are evaluated.
	Actor string
	// Deliveries says whether the deliveries of instances of a workflow are shown, and within which workflows they must
	// lie; nil for all. Default: none is shown.
	Deliveries func(workflow string) (shown bool, within []string)
}

// Diagnose returns what is known of an instance.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Diagnose(ctx context.Context, tenant string, id uuid.UUID, viewer Viewer) (Diagnosis, error) {
	s.db.Active(ctx)
	var d Diagnosis
	err := s.db.Picture(ctx, func(q *queries.Queries, try database.Trial) error {
		r := &reading{Queries: q, tenant: tenant, id: id}
		for _, read := range []func(context.Context) error{
			r.instance, r.definition, r.timers, r.tasks, r.connections, r.compensations, r.refusals, r.findings, r.steps,
		} {
			if err := read(ctx); err != nil {
				return err
			}
		}
		if viewer.Deliveries != nil {
			if shown, within := viewer.Deliveries(r.Instance.Workflow); shown {
				if err := r.deliveries(ctx, within); err != nil {
					return err
				}
			}
		}
		// Last, since it may take the longest.
		err := s.guards(ctx, r, try, viewer.Actor)
		d = r.Diagnosis
		return err
	})
	return d, err
}

// guards says of the events whether they would be taken: all of them in one call, and if a guard raises or they take too
// long, each in a call of its own.
func (s *Service) guards(ctx context.Context, r *reading, try database.Trial, actor string) error {
	began := time.Now()
	names := make([]string, len(r.Events))
	for i, e := range r.Events {
		names[i] = e.Name
	}
	evaluate := func(names []string) error {
		return try(ctx, func(ctx context.Context, q *queries.Queries) error {
			holds, err := s.fsm.GuardsHold(ctx, q, r.tenant, r.id, names, actor)
			for i, e := range r.Events {
				if h, known := holds[e.Name]; known && err == nil {
					r.Events[i].GuardHolds = &h
				}
			}
			return err
		})
	}
	if len(names) == 0 {
		return nil
	}
	err := evaluate(names)
	if len(names) == 1 || !database.IsGuardFailure(err) {
		return unlessGuard(err)
	}
	for i := range names {
		if time.Since(began) > patience {
			return nil
		}
		if err := unlessGuard(evaluate(names[i : i+1])); err != nil {
			return err
		}
	}
	return nil
}

// unlessGuard returns the error of a call unless it is that of a guard.
func unlessGuard(err error) error {
	if database.IsGuardFailure(err) {
		return nil
	}
	return err
}

// A reading reads the parts of a diagnosis, in one transaction. It returns the driver's errors.
type reading struct {
	*queries.Queries
	tenant string
	id     uuid.UUID
	row    queries.DiagnosedInstanceRow
	Diagnosis
}

// upTo returns at most limit items, and notes the part if there are more.
func upTo[T any](r *reading, part Part, items []T, limit int) []T {
	if len(items) <= limit {
		return items
	}
	r.note(part)
	return items[:limit]
}

func (r *reading) note(part Part) {
	if !slices.Contains(r.Truncated, part) {
		r.Truncated = append(r.Truncated, part)
	}
}

func (r *reading) instance(ctx context.Context) error {
	row, err := r.DiagnosedInstance(ctx, queries.DiagnosedInstanceParams{TenantID: r.tenant, ID: r.id})
	if errors.Is(err, pgx.ErrNoRows) {
		return fsm.NoInstance()
	}
	if err != nil {
		return err
	}
	r.row, r.At = row, row.Now
	r.Instance = Instance{
		ID: row.ID, Workflow: row.Workflow, WorkflowVersion: int(row.WorkflowVersion), State: row.State, Status: fsm.Status(row.Status),
		Version: row.Version, BusinessKey: row.BusinessKey, CorrelationID: row.CorrelationID, CreatedAt: row.CreatedAt,
		StateChangedAt: row.StateChangedAt, ExpiresAt: row.ExpiresAt, Error: row.Error,
	}
	r.Definition = Definition{
		LatestVersion: int(row.LatestVersion), LatestHasState: row.LatestHasState, Within: row.Lineage[:len(row.Lineage)-1],
		Protected: row.Protected, StuckAfter: durationOf(row.StuckAfter), Undoing: row.Undoing,
	}
	return nil
}

func (r *reading) definition(ctx context.Context) error {
	i := r.row
	events, err := r.DiagnosedEvents(ctx, queries.DiagnosedEventsParams{
		Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State, RowLimit: mostEvents + 1,
	})
	if err != nil {
		return err
	}
	for _, e := range upTo(r, Events, events, mostEvents) {
		r.Events = append(r.Events, Event{Name: e.Event, Targets: e.Targets})
	}
	transitions, err := r.DiagnosedTransitions(ctx, queries.DiagnosedTransitionsParams{
		Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State, GuardLimit: mostGuard, RowLimit: mostTransition + 1,
	})
	if err != nil {
		return err
	}
	for _, t := range upTo(r, Transitions, transitions, mostTransition) {
		guard := t.Guard
		if t.Cut {
			guard += "…"
		}
		r.Definition.Transitions = append(r.Definition.Transitions, Transition{Event: t.Event, Target: t.Target, Guard: guard, Internal: t.Internal})
	}
	declared, err := r.DiagnosedDeclarations(ctx, queries.DiagnosedDeclarationsParams{
		Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State, RowLimit: most + 1,
	})
	for _, t := range upTo(r, Declarations, declared, most) {
		r.Definition.Tasks = append(r.Definition.Tasks, Declaration{
			Name: t.Name, Topic: t.Topic, Connection: t.Connection, Deadline: durationOf(t.Deadline),
		})
	}
	return err
}

func (r *reading) timers(ctx context.Context) error {
	rows, err := r.DiagnosedDeadlines(ctx, queries.DiagnosedDeadlinesParams{TenantID: r.tenant, ID: r.id, RowLimit: most + 1})
	next := true
	for _, t := range upTo(r, Timers, rows, most) {
		timer := Timer{Event: t.Event, DueAt: t.DueAt, Refused: t.Refused}
		if next && !t.Refused {
			timer.LastError, timer.Slow, next = r.row.TimerError, r.row.TimerSlow, false
		}
		r.Timers = append(r.Timers, timer)
	}
	return err
}

func (r *reading) tasks(ctx context.Context) error {
	rows, err := r.DiagnosedTasks(ctx, queries.DiagnosedTasksParams{TenantID: r.tenant, InstanceID: r.id, Looks: lookedAt, RowLimit: most + 1})
	if err != nil || len(rows) == 0 {
		return err
	}
	rows = upTo(r, Tasks, rows, most)
	ids := make([]uuid.UUID, len(rows))
	for i, t := range rows {
		ids[i] = t.ID
	}
	attempts, err := r.DiagnosedAttempts(ctx, queries.DiagnosedAttemptsParams{TenantID: r.tenant, Tasks: ids, RowLimit: mostAttempts + 1})
	if err != nil {
		return err
	}
	of := map[uuid.UUID][]Attempt{}
	for _, a := range attempts {
		of[a.TaskID] = append(of[a.TaskID], Attempt{
			Number: int(a.Number), Reconciling: a.Kind == "reconcile", Worker: a.Worker, StartedAt: a.StartedAt, EndedAt: a.EndedAt,
			Result: a.Result, Status: database.Int(a.Status), Error: a.Error,
		})
	}
	for _, t := range rows {
		r.Tasks = append(r.Tasks, Task{
			ID: t.ID, State: t.State, Name: t.Name, Compensation: t.Compensation, Topic: t.Topic, Connection: t.Connection,
			Status: task.Status(t.Status), Error: t.Error, Worker: t.Worker, Count: int(t.Attempts),
			Attempts: upTo(r, Attempts, of[t.ID], mostAttempts), DueAt: t.DueAt, LeaseExpiresAt: t.LeasedUntil, DeadlineAt: t.DeadlineAt,
			LeftAt: t.LeftAt, CreatedAt: t.CreatedAt, EndedAt: t.EndedAt,
		})
	}
	return nil
}

func (r *reading) connections(ctx context.Context) error {
	var names []string
	for _, t := range r.Definition.Tasks {
		if t.Connection != nil {
			names = append(names, *t.Connection)
		}
	}
	for _, t := range r.Tasks {
		if t.Connection != nil && t.EndedAt == nil {
			names = append(names, *t.Connection)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	names = slices.Compact(names)
	rows, err := r.DiagnosedConnections(ctx, queries.DiagnosedConnectionsParams{TenantID: r.tenant, Names: names})
	for _, name := range names {
		c := Connection{Name: name, Missing: true}
		for _, row := range rows {
			if row.Name == name {
				c = Connection{Name: name, Failures: int(row.Failures), RestsUntil: row.CircuitOpenUntil, SecretMissing: row.Resting}
			}
		}
		r.Connections = append(r.Connections, c)
	}
	return err
}

func (r *reading) compensations(ctx context.Context) error {
	undoing, err := r.DiagnosedUndoing(ctx, queries.DiagnosedUndoingParams{TenantID: r.tenant, InstanceID: r.id})
	switch {
	case err == nil:
		r.Undoing = &Undoing{DueAt: undoing.DueAt, Tried: int(undoing.Tried), Problem: undoing.Problem}
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	}
	rows, err := r.DiagnosedCompensations(ctx, queries.DiagnosedCompensationsParams{TenantID: r.tenant, InstanceID: r.id, RowLimit: most + 1})
	for _, c := range upTo(r, Compensations, rows, most) {
		r.Compensations = append(r.Compensations, task.Compensation{
			Name: c.Name, Version: c.Version, Status: c.Status, Reason: c.Reason, TaskID: c.TaskID, UndoingTaskID: c.UndoneBy,
		})
	}
	return err
}

// deliveries reads the deliveries that lie within some workflows, or all of them for nil.
func (r *reading) deliveries(ctx context.Context, within []string) error {
	rows, err := r.DiagnosedDeliveries(ctx, queries.DiagnosedDeliveriesParams{TenantID: r.tenant, InstanceID: &r.id, RowLimit: most + 1})
	if err != nil {
		return err
	}
	dead := slices.IndexFunc(rows, func(d queries.DiagnosedDeliveriesRow) bool { return d.Status == "dead" })
	if dead < 0 {
		dead = len(rows)
	}
	rows = slices.Concat(upTo(r, Deliveries, rows[:dead], most), upTo(r, Deliveries, rows[dead:], most))
	if within != nil && len(rows) > 0 {
		ids := make([]uuid.UUID, len(rows))
		for i, d := range rows {
			ids[i] = d.ID
		}
		shown, err := r.DeliveriesWithin(ctx, queries.DeliveriesWithinParams{TenantID: r.tenant, Ids: ids, Within: within})
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(d queries.DiagnosedDeliveriesRow) bool { return !slices.Contains(shown, d.ID) })
	}
	callback := ""
	if slices.ContainsFunc(rows, func(d queries.DiagnosedDeliveriesRow) bool { return d.Callback }) {
		if callback, err = r.CallbackHost(ctx, queries.CallbackHostParams{Tenant: r.tenant, Instance: r.id}); err != nil {
			return err
		}
	}
	r.Deliveries = make([]Delivery, len(rows))
	for i, d := range rows {
		r.Deliveries[i] = Delivery{
			ID: d.ID, SubscriptionID: &d.SubscriptionID, Host: hostOf(d.Url), Version: d.Version, FindingID: d.FindingID,
			Type: d.Type, Status: d.Status, Attempts: int(d.Attempts), NextAttemptAt: d.NextAttemptAt, LastStatus: database.Int(d.LastStatus), LastError: d.LastError,
			CreatedAt: d.CreatedAt, Disabled: d.DisabledAt != nil, Failures: int(d.Failures), RestsUntil: d.CircuitOpenUntil,
			SecretMissing: d.Resting,
		}
		if d.Callback {
			r.Deliveries[i].SubscriptionID, r.Deliveries[i].Host = nil, callback
		}
	}
	return nil
}

func (r *reading) refusals(ctx context.Context) error {
	rows, err := r.DiagnosedRefusals(ctx, queries.DiagnosedRefusalsParams{TenantID: r.tenant, InstanceID: r.id, RowLimit: most + 1})
	for _, f := range upTo(r, Refusals, rows, most) {
		r.Refusals = append(r.Refusals, Refusal{Code: f.Code, Event: f.Event, Version: f.Version, At: f.At, KeyDigest: f.KeyDigest})
	}
	return err
}

func (r *reading) findings(ctx context.Context) error {
	rows, err := r.DiagnosedFindings(ctx, queries.DiagnosedFindingsParams{
		TenantID: r.tenant, InstanceID: r.id, Kinds: finding.KindNames(), RowLimit: most + 1, OpenLimit: mostOpen,
	})
	// The item behind the newest ones says whether there are more. It is shown if it is one of the open ones.
	open := map[string]int{}
	for _, f := range rows {
		if f.ClosedAt == nil {
			open[f.Kind]++
		}
	}
	for i, f := range rows {
		if i >= most && (f.ClosedAt != nil || i == most && open[f.Kind] > mostOpen) {
			continue
		}
		r.Findings = append(r.Findings, finding.Of(f))
	}
	if len(rows) > most {
		r.note(Findings)
	}
	return err
}

func (r *reading) steps(ctx context.Context) error {
	rows, err := r.DiagnosedSteps(ctx, queries.DiagnosedStepsParams{TenantID: r.tenant, InstanceID: r.id, RowLimit: most + 1})
	for _, h := range upTo(r, Steps, rows, most) {
		r.Steps = append(r.Steps, Step{
			Version: h.Version, WorkflowVersion: int(h.WorkflowVersion), Kind: h.Kind, Event: h.Event, From: h.FromState,
			To: h.ToState, Status: fsm.Status(h.Status), Actor: h.Actor, Reason: h.Reason, CorrelationID: h.CorrelationID,
			TraceID: traceOf(h.Traceparent), At: h.At,
		})
	}
	return err
}

// traceOf returns the id of the trace that a traceparent names; empty for none.
func traceOf(traceparent *string) string {
	if traceparent == nil || len(*traceparent) < 35 {
		return ""
	}
	return (*traceparent)[3:35]
}

// hostOf returns the host of a URL, with its port if it is named; empty for none.
func hostOf(text *string) string {
	if text == nil {
		return ""
	}
	u, err := url.Parse(*text)
	if err != nil {
		return ""
	}
	return u.Host
}

// durationOf returns an interval as a duration, with days of 24 hours and months of 30 days.
func durationOf(i pgtype.Interval) time.Duration {
	return time.Duration(i.Microseconds)*time.Microsecond + (time.Duration(i.Days)+30*time.Duration(i.Months))*24*time.Hour
}
