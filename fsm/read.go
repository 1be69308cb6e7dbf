package fsm

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Get returns an instance as it is now, with its next deadline. Gets that arrive together share a query, as
// commands share a call.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Get(ctx context.Context, tenant string, id uuid.UUID) (Instance, error) {
	s.db.Active(ctx)
	return s.get(ctx, tenant, id)
}

// get is Get for what the service itself must know: no tenant is active by it.
func (s *Service) get(ctx context.Context, tenant string, id uuid.UUID) (Instance, error) {
	p := newPending[uuid.UUID, Instance](ctx, id, tenant)
	s.gets.submit(p)
	return p.wait()
}

// flushGets reads instances.
func (s *Service) flushGets(batch []*pending[uuid.UUID, Instance]) (left flushed[uuid.UUID, Instance]) {
	defer failAll(batch, &left)
	type place struct {
		tenant string
		id     uuid.UUID
	}
	tenants, ids := make([]string, len(batch)), make([]uuid.UUID, len(batch))
	for i, p := range batch {
		tenants[i], ids[i] = p.tenant, p.command
	}
	var rows []queries.GetInstancesRow
	_, err := s.db.Attempt(context.Background(), func(ctx context.Context) (err error) {
		rows, err = s.db.Queries().GetInstances(ctx, queries.GetInstancesParams{Tenants: tenants, Ids: ids})
		return err
	})
	if err != nil {
		for _, p := range batch {
			p.fail(AsError(err))
		}
		return flushed[uuid.UUID, Instance]{away: database.IsConnectionError(err)}
	}
	found := make(map[place]Instance, len(rows))
	for _, r := range rows {
		found[place{r.TenantID, r.ID}] = InstanceOfRow(r)
	}
	for _, p := range batch {
		if i, known := found[place{p.tenant, p.command}]; known {
			p.complete(i)
		} else {
			p.fail(NoInstance())
		}
	}
	return left
}

// GetAt returns an instance as it was at a time, a step of that very time included.
// Kinds: InstanceNotFound if it did not exist yet, Unavailable.
func (s *Service) GetAt(ctx context.Context, tenant string, id uuid.UUID, at time.Time) (Instance, error) {
	var version int64
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		version, err = q.GetInstanceVersionAt(ctx, queries.GetInstanceVersionAtParams{TenantID: tenant, ID: id, At: at})
		return IfNoRows(err, InstanceNotFound, "there was no such instance at that time")
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
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetInstanceVersion(ctx, queries.GetInstanceVersionParams{TenantID: tenant, ID: id, Version: version})
		return IfNoRows(err, InstanceNotFound, "there is no such instance, or no such version of it")
	})
	i := InstanceOf(queries.Instance(row.InstanceAt), row.Actions)
	i.NextTimeout = nextTimeout(row.TimeoutEvent, row.TimeoutDueAt, nil)
	return i, err
}

// AcceptedEvents returns the events that an instance accepts in its state, sorted. With evaluate it says of
// each event whether it would be taken now with an empty payload, from the actor.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) AcceptedEvents(ctx context.Context, tenant string, id uuid.UUID, evaluate bool, actor string) ([]AcceptedEvent, error) {
	i, err := s.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	var events []AcceptedEvent
	err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListActions(ctx, queries.ListActionsParams{
			Workflow: i.Workflow, WorkflowVersion: int32(i.WorkflowVersion), State: i.State,
		})
		events = []AcceptedEvent{}
		for _, r := range rows {
			events = append(events, AcceptedEvent{
				Event: r.Event, PayloadSchema: r.PayloadSchema, Targets: r.Targets, Description: strings.Join(slices.Compact(r.Descriptions), "\n"),
			})
		}
		return err
	})
	if err != nil || !evaluate {
		return events, err
	}
	for n := range events {
		// One call each, so that a guard that raises does not hide the others.
		err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
			holds, err := s.GuardsHold(ctx, q, tenant, id, []string{events[n].Event}, actor)
			if h, known := holds[events[n].Event]; known {
				events[n].GuardHolds = &h
			}
			if database.IsGuardFailure(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return events, nil
}

// GuardsHold says of events whether an instance would take each of them now with an empty payload, from the actor. It returns
// the driver's error: one guard that raises hides the others.
func (s *Service) GuardsHold(
	ctx context.Context, q *queries.Queries, tenant string, id uuid.UUID, events []string, actor string,
) (map[string]bool, error) {
	rows, err := q.GuardHolds(ctx, queries.GuardHoldsParams{
		TenantID: tenant, ID: id, Events: events, Payload: emptyObject, Actor: actor, Verified: !s.config.UnverifiedActors,
	})
	holds := make(map[string]bool, len(rows))
	for _, r := range rows {
		holds[r.Event] = r.Holds
	}
	return holds, err
}

// How many items a page has if its Limit is 0, and at most.
const (
	DefaultLimit = database.DefaultLimit
	MaxLimit     = database.MaxLimit
)

// PageBytes is where a page ends early, with the item by which its contexts, payloads or definitions have so many
// bytes. So a page may have fewer items than its Limit although the list goes on.
const PageBytes = database.PageBytes

// Page says which part of a list to read.
type Page struct {
	// Limit is how many items to read, at most MaxLimit. Default DefaultLimit.
	Limit int
	// Cursor is the List.Next of the page before. Empty: the first page.
	Cursor string
}

// List is a page of a list.
type List[T any] struct {
	// Items are at most Page.Limit, and never nil.
	Items []T
	// Next is the cursor of the next page, or empty on the last page. The page behind it may be empty.
	Next string
}

// History returns the steps of an instance, the oldest first.
// Kinds: InstanceNotFound, Malformed (limit or cursor), Unavailable.
func (s *Service) History(ctx context.Context, tenant string, id uuid.UUID, page Page) (List[Step], error) {
	if _, err := s.Get(ctx, tenant, id); err != nil {
		return List[Step]{}, err
	}
	items, next, err := database.List(ctx, s.db, database.Listing[queries.History, Step]{
		Scope: "history " + tenant + " " + id.String(),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.History, error) {
			var version int64
			if after != "" {
				var err error
				if version, err = strconv.ParseInt(after, 10, 64); err != nil {
					return nil, err
				}
			}
			return queries.New(db).ListHistory(ctx, queries.ListHistoryParams{
				TenantID: tenant, InstanceID: id, AfterVersion: version, RowLimit: limit, Bytes: PageBytes,
			})
		},
		Bytes: func(h queries.History) int { return len(h.Context) + len(h.Payload) },
		Item:  StepOf,
		Key:   func(s Step) string { return strconv.FormatInt(s.Version, 10) },
	}, page.Limit, page.Cursor)
	return List[Step]{items, next}, err
}
