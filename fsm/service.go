package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// rawJSON is what sqlc takes for jsonb.
type rawJSON = json.RawMessage

// Config tunes a Service. Its zero value works.
type Config struct {
	// Flushers is how many calls are made at once, for creates, fires and gets each.
	// Default 2: more calls at once share fewer commands each.
	Flushers int
	// MaxBatch is how many commands share a call. Default 256.
	MaxBatch int
	// MaxQueue is how many commands may wait; beyond it they are refused at once as
	// Unavailable. Default 8192.
	MaxQueue int
	// CallTimeout is how long to wait for an answer of the database, repeated attempts
	// included, before it counts as away. It must be longer than the pool's
	// statement_timeout. Default 1.5 s.
	CallTimeout time.Duration
	// Webhooks says where webhooks may be sent to.
	Webhooks WebhookPolicy
	// Hub wakes those who wait for instances to move; the process runs it. Default: none,
	// and each of them looks once a second.
	Hub *Hub
}

func (c Config) withDefaults() Config {
	if c.Flushers <= 0 {
		c.Flushers = 2
	}
	if c.MaxBatch <= 0 {
		c.MaxBatch = 256
	}
	if c.MaxQueue <= 0 {
		c.MaxQueue = 8192
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = 1500 * time.Millisecond
	}
	return c
}

// Service carries out commands and answers reads. It keeps nothing between calls but
// the commands that wait; any number of Services may share a database.
type Service struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  Config
	creates *batcher[CreateCommand]
	fires   *batcher[FireCommand]
	gets    *batcher[uuid.UUID]
	schemas schemas
	hub     *Hub
	moved   *notifier
}

// New returns a Service on a pool whose connections see a migrated schema. The pool
// should set statement_timeout and lock_timeout, as db.Open does: they bound how long a
// guard may run and how long a locked row may hold up others.
func New(pool *pgxpool.Pool, config Config) *Service {
	s := &Service{pool: pool, queries: queries.New(pool), config: config.withDefaults()}
	if s.hub = config.Hub; s.hub == nil {
		s.hub = NewHub(pool, HubConfig{})
	}
	s.moved = newNotifier(s.queries, s.config.CallTimeout)
	s.creates = newBatcher(s.config, s.flushCreates)
	s.fires = newBatcher(s.config, s.flushFires)
	s.gets = newBatcher(s.config, s.flushGets)
	return s
}

// Close refuses new commands and returns when those that were accepted are settled and
// told of. The pool stays open, and reads go on.
func (s *Service) Close() {
	s.creates.close()
	s.fires.close()
	s.moved.close()
}

// read runs f as attempt does, and maps errors.
func (s *Service) read(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
	_, err := s.attempt(ctx, func(ctx context.Context) error { return f(ctx, s.queries) })
	if err != nil {
		return AsError(err)
	}
	return nil
}

// attempt makes a call and, after a deadlock, a serialization failure or a lost
// connection, makes it again: a read changes nothing, and the keys of commands see to it
// that nothing happens twice. It says whether a call was sent that was not answered, and
// so may have had its effect.
func (s *Service) attempt(ctx context.Context, call func(context.Context) error) (unanswered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
	defer cancel()
	const tries = 4
	for try := range tries {
		if try > 0 {
			time.Sleep(time.Duration(try*try) * 10 * time.Millisecond)
		}
		err = call(ctx)
		switch {
		case err == nil, ctx.Err() != nil, !isRetryable(err) && !isConnectionError(err):
			return unanswered, err
		case isLost(err):
			unanswered = unanswered || isUnanswered(err)
			// Its neighbours in the pool are likely to be as dead.
			s.pool.Reset()
		}
	}
	return unanswered, err
}

// Ping returns nil if the database answers and is migrated, else Unavailable.
func (s *Service) Ping(ctx context.Context) error {
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
		_, err := q.GetSetting(ctx)
		return err
	})
	if err != nil {
		return &Error{Kind: Unavailable, Message: "the database is away or not migrated", cause: err}
	}
	return nil
}

// Workflow is one registered version of a definition.
type Workflow struct {
	Name    string
	Version int
	// Checksum is the SHA-256 of the canonical definition's jsonb text, in hexadecimal.
	Checksum string
	// Definition is canonical, as JSON.
	Definition json.RawMessage
	// CreatedAt and CreatedBy are zero if it is not registered, after a dry run.
	CreatedAt time.Time
	CreatedBy string
}

func workflowOf(w queries.Workflow) Workflow {
	return Workflow{
		Name: w.Name, Version: int(w.Version), Checksum: w.Checksum, Definition: w.Definition,
		CreatedAt: w.CreatedAt, CreatedBy: w.CreatedBy,
	}
}

// Registration is the outcome of Register.
type Registration struct {
	Workflow
	// Created is false if the content was the latest version's already, and in a dry run.
	Created bool
}

// Register checks a definition and makes it the next version of the workflow with the
// given name, unless its content is the latest version's. A dry run does all of it and
// takes it back.
//
// Kinds: Malformed, TooLarge, InvalidDefinition with every fault, WorkflowConflict,
// Unavailable.
func (s *Service) Register(ctx context.Context, name string, data []byte, actor string, dryRun bool) (Registration, error) {
	if actor == "" {
		actor = "anonymous"
	}
	if err := checkText("", actor, 255); err != nil {
		return Registration{}, err
	}
	definition, canonical, err := s.readDefinition(ctx, name, data)
	if err != nil {
		return Registration{}, err
	}
	var version *int32
	if v := int32(definition.Version); v != 0 { // At most 1<<31-1, as it was read.
		version = &v
	}

	var registered Registration
	errDryRun := errors.New("dry run")
	// It checks a definition that may be large.
	err = s.patient(ctx, pgx.TxOptions{}, "30s", func(q *queries.Queries) error {
		row, err := q.RegisterWorkflow(ctx, queries.RegisterWorkflowParams{
			Definition: canonical, Actor: actor, Version: version,
		})
		if err != nil {
			return err
		}
		w, err := q.GetWorkflowVersion(ctx, queries.GetWorkflowVersionParams{Name: definition.Name, Version: row.Version})
		if err != nil {
			return err
		}
		registered = Registration{Workflow: workflowOf(w), Created: row.Created}
		if dryRun {
			if row.Created {
				registered.CreatedAt, registered.CreatedBy = time.Time{}, ""
			}
			registered.Created = false
			return errDryRun
		}
		return nil
	})
	switch {
	case errors.Is(err, errDryRun):
		return registered, nil
	case err != nil:
		return Registration{}, AsError(err)
	}
	if err := s.validate(ctx, definition.Name); err != nil {
		return Registration{}, err
	}
	return registered, nil
}

// readDefinition checks a definition with all that is known of it before it is stored, and
// returns it with its canonical form.
func (s *Service) readDefinition(ctx context.Context, name string, data []byte) (*Definition, rawJSON, error) {
	var setting queries.Setting
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		setting, err = q.GetSetting(ctx)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	r, err := readDefinition(data, name, Limits{Bytes: int(setting.DefinitionLimit), States: int(setting.StateLimit)})
	if err != nil {
		return nil, nil, err
	}
	if err := s.checkPaths(ctx, r); err != nil {
		return nil, nil, err
	}
	if err := r.err(); err != nil {
		return nil, nil, err
	}
	canonical, err := json.Marshal(&r.definition)
	if err != nil {
		return nil, nil, &Error{Kind: Internal, cause: err}
	}
	return &r.definition, canonical, nil
}

// validate lets Postgres know that older rows fit a workflow's CHECK too, which binds
// already: that another schema change is under way does no harm.
func (s *Service) validate(ctx context.Context, workflow string) error {
	err := s.unhurried(ctx, pgx.TxOptions{}, "10min", func(q *queries.Queries) error { return q.ValidateWorkflow(ctx, workflow) })
	if err != nil && !isCode(err, lockNotAvailable) {
		return AsError(err)
	}
	return nil
}

// unhurried runs a transaction whose statements have more time than a command's.
func (s *Service) unhurried(ctx context.Context, options pgx.TxOptions, timeout string, f func(*queries.Queries) error) error {
	return pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = '"+timeout+"'"); err != nil {
			return err
		}
		return f(queries.New(tx))
	})
}

// patient is unhurried, and tries again if a lock was not to be had, which is asked for
// briefly, since commands wait behind it.
func (s *Service) patient(ctx context.Context, options pgx.TxOptions, timeout string, f func(*queries.Queries) error) error {
	var err error
	const tries = 8
	for try := range tries {
		select {
		case <-time.After(time.Duration(try) * 50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		err = s.unhurried(ctx, options, timeout, f)
		if !isRetryable(err) && !isCode(err, lockNotAvailable) {
			break
		}
	}
	return err
}

// checkPaths faults the guards and assigns that Postgres cannot parse.
func (s *Service) checkPaths(ctx context.Context, r *reader) error {
	if len(r.paths) == 0 {
		return nil
	}
	faulty := map[string]string{}
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.JSONPathErrors(ctx, slices.Collect(maps.Values(r.paths)))
		for _, row := range rows {
			faulty[row.Path] = row.Error
		}
		return err
	})
	for at, path := range r.paths {
		if detail, bad := faulty[path]; bad {
			r.fault(at, "is no SQL/JSON path: %s", detail)
		}
	}
	return err
}

// GetWorkflow returns a version of a workflow, or the latest for version 0.
// Kinds: WorkflowNotFound, Unavailable.
func (s *Service) GetWorkflow(ctx context.Context, name string, version int) (Workflow, error) {
	var w queries.Workflow
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		switch {
		case containsNUL(name) || version < 0 || version > 1<<31-1:
			err = pgx.ErrNoRows
		case version == 0:
			w, err = q.GetWorkflow(ctx, name)
		default:
			w, err = q.GetWorkflowVersion(ctx, queries.GetWorkflowVersionParams{Name: name, Version: int32(version)})
		}
		return notFound(err, WorkflowNotFound, "there is no such workflow, or no such version of it")
	})
	return workflowOf(w), err
}

// ListWorkflows returns the latest version of each workflow, by name.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) ListWorkflows(ctx context.Context, page Page) (List[Workflow], error) {
	return list(ctx, s, page, "workflows",
		func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]queries.Workflow, error) {
			return q.ListWorkflows(ctx, queries.ListWorkflowsParams{After: after, RowLimit: limit})
		},
		workflowOf,
		func(w Workflow) string { return w.Name })
}

// Get returns an instance as it is.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Get(ctx context.Context, tenant string, id uuid.UUID) (Instance, error) {
	p := newPending(ctx, id, tenant)
	submit(s.gets, []*pending[uuid.UUID]{p})
	r, err := p.wait()
	return r.Instance, err
}

// flushGets reads instances, those of one tenant in one call.
func (s *Service) flushGets(batch []*pending[uuid.UUID]) (away bool) {
	defer failAll(batch)
	ids := make([]uuid.UUID, len(batch))
	for i, p := range batch {
		ids[i] = p.command
	}
	var rows []queries.GetInstancesRow
	_, err := s.attempt(context.Background(), func(ctx context.Context) (err error) {
		rows, err = s.queries.GetInstances(ctx, queries.GetInstancesParams{TenantID: batch[0].tenant, Ids: ids})
		return err
	})
	if err != nil {
		for _, p := range batch {
			p.fail(AsError(err))
		}
		return isConnectionError(err)
	}
	found := make(map[uuid.UUID]queries.GetInstancesRow, len(rows))
	for _, r := range rows {
		found[r.Instance.ID] = r
	}
	for _, p := range batch {
		if r, known := found[p.command]; known {
			p.result.Instance = instanceOf(r.Instance, r.Actions)
			close(p.done)
		} else {
			p.fail(errorf(InstanceNotFound, "there is no such instance"))
		}
	}
	return false
}

// GetAt returns an instance as it was at a time, after the steps made by then.
// Kinds: InstanceNotFound if it was not there yet, Unavailable.
func (s *Service) GetAt(ctx context.Context, tenant string, id uuid.UUID, at time.Time) (Instance, error) {
	var version int64
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		version, err = q.GetInstanceVersionAt(ctx, queries.GetInstanceVersionAtParams{TenantID: tenant, ID: id, At: at})
		return notFound(err, InstanceNotFound, "there was no such instance at that time")
	})
	if err != nil {
		return Instance{}, err
	}
	return s.GetVersion(ctx, tenant, id, version)
}

// GetVersion returns an instance as it was at a version.
// Kinds: InstanceNotFound if it has no such version, Unavailable.
func (s *Service) GetVersion(ctx context.Context, tenant string, id uuid.UUID, version int64) (Instance, error) {
	var row queries.GetInstanceVersionRow
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetInstanceVersion(ctx, queries.GetInstanceVersionParams{TenantID: tenant, ID: id, Version: version})
		return notFound(err, InstanceNotFound, "there is no such instance, or no such version of it")
	})
	return instanceOf(queries.Instance(row.InstanceAt), row.Actions), err
}

// Filter chooses instances. A zero member chooses all.
type Filter struct {
	Workflow, State, BusinessKey, CorrelationID string
	Status                                      Status
	CreatedAfter, CreatedBefore                 time.Time // Both exclusive.
	// StuckFor chooses active instances that have been in their state for so long.
	StuckFor time.Duration
}

// List returns instances, the newest first. A cursor belongs to the filter it came from.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) List(ctx context.Context, tenant string, f Filter, page Page) (List[Instance], error) {
	for _, text := range []string{f.Workflow, f.State, string(f.Status), f.BusinessKey, f.CorrelationID} {
		if err := checkText("", text, 255); err != nil {
			return List[Instance]{}, err
		}
	}
	scope, err := json.Marshal(f)
	if err != nil {
		return List[Instance]{}, AsError(err)
	}
	return list(ctx, s, page, "instances "+tenant+" "+string(scope),
		func(ctx context.Context, _ *queries.Queries, after string, limit int32) ([]queries.ListInstancesRow, error) {
			p := queries.ListInstancesParams{
				TenantID: tenant, Workflow: optional(f.Workflow), State: optional(f.State),
				Status: optional(string(f.Status)), BusinessKey: optional(f.BusinessKey),
				CorrelationID: optional(f.CorrelationID), CreatedAfter: optional(f.CreatedAfter),
				CreatedBefore: optional(f.CreatedBefore),
				StuckFor:      pgtype.Interval{Microseconds: f.StuckFor.Microseconds(), Valid: f.StuckFor > 0},
				RowLimit:      limit,
			}
			if after != "" {
				id, err := uuid.Parse(after)
				if err != nil {
					return nil, err
				}
				p.BeforeID = &id
			}
			return queries.New(planned{s.pool}).ListInstances(ctx, p)
		},
		func(r queries.ListInstancesRow) Instance { return instanceOf(r.Instance, r.Actions) },
		func(i Instance) string { return i.ID.String() })
}

// History returns the steps of an instance, the oldest first.
// Kinds: InstanceNotFound, Malformed (limit or cursor), Unavailable.
func (s *Service) History(ctx context.Context, tenant string, id uuid.UUID, page Page) (List[Step], error) {
	if _, err := s.Get(ctx, tenant, id); err != nil {
		return List[Step]{}, err
	}
	return list(ctx, s, page, "history "+tenant+" "+id.String(),
		func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]queries.History, error) {
			var version int64
			if after != "" {
				var err error
				if version, err = strconv.ParseInt(after, 10, 64); err != nil {
					return nil, err
				}
			}
			return q.ListHistory(ctx, queries.ListHistoryParams{
				TenantID: tenant, InstanceID: id, AfterVersion: version, RowLimit: limit,
			})
		},
		stepOf,
		func(s Step) string { return strconv.FormatInt(s.Version, 10) })
}

// Actions returns the events that an instance accepts. With evaluate it says of each
// whether an empty payload would be taken now.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Actions(ctx context.Context, tenant string, id uuid.UUID, evaluate bool) ([]Action, error) {
	i, err := s.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	actions := []Action{}
	err = s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListActions(ctx, queries.ListActionsParams{
			Workflow: i.Workflow, WorkflowVersion: int32(i.WorkflowVersion), State: i.State,
		})
		for _, r := range rows {
			actions = append(actions, Action{Event: r.Event, PayloadSchema: r.PayloadSchema, Targets: r.Targets})
		}
		return err
	})
	if err != nil || !evaluate {
		return actions, err
	}
	for n := range actions {
		// One call each, since a guard that raises must not hide the others.
		err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
			rows, err := q.GuardHolds(ctx, queries.GuardHoldsParams{
				TenantID: tenant, ID: id, Events: []string{actions[n].Event}, Payload: emptyJSON,
			})
			if len(rows) == 1 {
				actions[n].GuardHolds = &rows[0].Holds
			}
			if isGuardFailure(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return actions, nil
}

// notFound names what a read without a row did not find.
func notFound(err error, kind Kind, message string) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return &Error{Kind: kind, Message: message}
	}
	return err
}

func isCode(err error, code string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == code
}

func containsNUL(text string) bool { return strings.ContainsRune(text, 0) }

// optional is nil for a zero value.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
