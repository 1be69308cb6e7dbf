package fsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

const (
	// A page of a stream ends after so many steps, or behind the one that exceeds so many
	// bytes of documents, so that no reader costs much memory.
	streamRows  = 1000
	streamBytes = 1 << 20
	// maxBehind is how many steps, of all tenants, a stream catches up with, whether it resumes
	// or has been slow: each page sorts what is left of them. From the beginning any number is
	// read, in another order.
	maxBehind = 100000
)

// EventFilter chooses steps. A zero member chooses all.
type EventFilter struct {
	// Workflows, Events and States are lists of names of which one must fit. A state is the one
	// that the step led to; the name of a compound state stands for all states within.
	Workflows, Events, States []string
	// TerminalOnly chooses the steps to a final state.
	TerminalOnly bool
}

func (f EventFilter) chooses(h *queries.History) bool {
	return (len(f.Workflows) == 0 || slices.Contains(f.Workflows, h.Workflow)) &&
		(len(f.Events) == 0 || h.Event != nil && slices.Contains(f.Events, *h.Event)) &&
		(len(f.States) == 0 || slices.ContainsFunc(f.States, func(state string) bool {
			return h.ToState == state || strings.HasPrefix(h.ToState, state+".")
		})) &&
		(!f.TerminalOnly || Status(h.Status) != Active)
}

// An Event is a step as a Stream shows it.
type Event struct {
	// ID lets a stream go on behind the event.
	ID         string
	InstanceID uuid.UUID
	Workflow   string
	Step
}

// A Stream reads the steps of an instance, or of a tenant, as they are committed. It keeps
// nothing but its place, which its client has too: any process goes on from an event's id.
//
// A tenant's steps have no order that they are committed in. A stream's place is a snapshot,
// as a consumer's of the outbox: what it sees has been read. The next page is what a later
// snapshot sees besides, in the order in which the steps were made; the id of an event in
// the middle of it has both snapshots, that of its last the later one.
type Stream struct {
	service *Service
	waiter  *Waiter
	// next reads a page, and says whether there may be another one at once.
	next func(ctx context.Context) (events []Event, more bool, err error)
	// id is where the stream stands.
	id func() string
	// ended: nothing is left to come.
	ended bool
}

// C is signalled when there may be something to read.
func (s *Stream) C() <-chan struct{} { return s.waiter.C() }

// ID is the id of the last event, or a later place to go on from without loss.
func (s *Stream) ID() string { return s.id() }

// Next reads what has been committed since, up to a page, and does not wait for more. It
// says whether there may be more at once.
// Kinds: EventIDTooOld, InstanceNotFound, Unavailable.
func (s *Stream) Next(ctx context.Context) (events []Event, more bool, err error) { return s.next(ctx) }

// Ended says that nothing is left to come: the instance is final, and its last step was read.
// A new stream has ended if no step behind its id is chosen.
func (s *Stream) Ended() bool { return s.ended }

// Alone is how long to wait for C at most: a long time, unless no hub runs that would signal.
func (s *Stream) Alone() time.Duration {
	if s.service.hub.running.Load() {
		return time.Hour
	}
	return s.service.hub.config.Poll
}

// Close ends the stream.
func (s *Stream) Close() { s.waiter.Close() }

// FromStart is the id that no event has, of the beginning.
const FromStart = "0"

func notOfStream(format string, args ...any) *Error {
	return &Error{Kind: Malformed, Message: "the event id does not belong to this stream", Faults: []Fault{{
		Parameter: "Last-Event-ID", Detail: fmt.Sprintf(format, args...),
	}}}
}

var errTooOld = &Error{
	Kind:    EventIDTooOld,
	Message: "what follows the event id is no longer all there, or is too much; read the instances and begin anew",
}

// placeIn is the version that lastID names: an event's id, which no other instance has, or a
// version alone.
func placeIn(i Instance, lastID string) (version int64, err error) {
	if lastID == "" {
		return i.Version, nil
	}
	instance, text, both := strings.Cut(lastID, ":")
	if !both {
		instance, text = i.ID.String(), lastID
	}
	if other, err := uuid.Parse(instance); err == nil && other != i.ID {
		return 0, notOfStream("is an event's of another instance, %s", other)
	}
	version, err = strconv.ParseInt(text, 10, 64)
	if instance != i.ID.String() || err != nil || version < 0 || version > i.Version || strconv.FormatInt(version, 10) != text {
		return 0, notOfStream("is neither an event of the instance nor one of its %d versions", i.Version)
	}
	return version, nil
}

// StreamInstance streams the steps of an instance behind the event or the version that lastID
// names, all of them for FromStart, and those to come if it is empty. An event's id is that of
// its CloudEvent. If the instance is final it looks for a step that is chosen, since there may
// be none.
// Kinds: InstanceNotFound, Malformed (id), Unavailable.
func (s *Service) StreamInstance(ctx context.Context, tenant string, id uuid.UUID, filter EventFilter, lastID string) (*Stream, error) {
	waiter := s.hub.Instance(id)
	i, err := s.Get(ctx, tenant, id)
	if err != nil {
		waiter.Close()
		return nil, err
	}
	at, err := placeIn(i, lastID)
	if err != nil {
		waiter.Close()
		return nil, err
	}
	stream := &Stream{service: s, waiter: waiter, ended: i.Status != Active && at == i.Version}
	stream.id = func() string { return id.String() + ":" + strconv.FormatInt(at, 10) }
	stream.next = func(ctx context.Context) (events []Event, more bool, err error) {
		// Few at a time: each may have a context and a payload of some size.
		const limit = 50
		var rows []queries.History
		err = s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.ListHistory(ctx, queries.ListHistoryParams{
				TenantID: tenant, InstanceID: id, AfterVersion: at, RowLimit: limit,
			})
			return err
		})
		for n := range rows {
			if rows[n].Version != at+1 {
				return events, false, errTooOld
			}
			at = rows[n].Version
			stream.ended = Status(rows[n].Status) != Active
			if filter.chooses(&rows[n]) {
				events = append(events, eventOf(rows[n], stream.id()))
			}
		}
		if err == nil && len(rows) == 0 && at < i.Version {
			err = errTooOld // The instance has been removed.
		}
		return events, len(rows) == limit, err
	}
	for i.Status != Active && !stream.ended {
		before := at
		if events, _, err := stream.next(ctx); len(events) > 0 || err != nil {
			at, stream.ended = before, false // That page is for Next.
			break
		}
	}
	return stream, nil
}

func eventOf(h queries.History, id string) Event {
	return Event{ID: id, InstanceID: h.InstanceID, Workflow: h.Workflow, Step: stepOf(h)}
}

// A streamPlace is where a stream of a tenant stands.
type streamPlace struct {
	// cursor sees what has been read, before the page that is being read.
	cursor string
	// batch sees what is being read, up to seq; empty between batches.
	batch string
	seq   int64
	// From the beginning, a batch is read by instance, up to a version of one.
	past     bool
	instance uuid.UUID
	version  int64
}

// seesNothing is the cursor of the beginning.
const seesNothing = "1:1:"

func (p streamPlace) String() string {
	switch {
	case p.past:
		return fmt.Sprintf("past %s %s %s %d", p.cursor, p.batch, p.instance, p.version)
	case p.batch != "":
		return fmt.Sprintf("in %s %s %d", p.cursor, p.batch, p.seq)
	}
	return "at " + p.cursor
}

// placeOf reads what String wrote and a MAC has protected since.
func placeOf(text string) (p streamPlace, err error) {
	var kind, instance string
	if _, err = fmt.Sscan(text, &kind, &p.cursor); err != nil {
		return p, err
	}
	rest := strings.Join(strings.Fields(text)[2:], " ")
	switch kind {
	case "past":
		p.past = true
		if _, err = fmt.Sscan(rest, &p.batch, &instance, &p.version); err == nil {
			p.instance, err = uuid.Parse(instance)
		}
	case "in":
		_, err = fmt.Sscan(rest, &p.batch, &p.seq)
	}
	return p, err
}

// StreamTenant streams the steps of a tenant behind the event that lastID names, of all of
// them for FromStart, and of those to come if it is empty. From the start the steps come
// instance by instance, and those that are made meanwhile behind them.
// Kinds: Malformed (filter or id), EventIDTooOld, Unavailable.
func (s *Service) StreamTenant(ctx context.Context, tenant string, filter EventFilter, lastID string) (*Stream, error) {
	t := &tenantStream{
		service: s, tenant: tenant, filter: filter,
		scope: fmt.Sprintf("events %s %q %q %q %t", tenant, filter.Workflows, filter.Events, filter.States, filter.TerminalOnly),
	}
	stream := &Stream{service: s, waiter: s.hub.Tenant(tenant), next: t.next, id: t.id}
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error { return t.open(ctx, q, lastID) })
	if err != nil {
		stream.Close()
		return nil, err
	}
	return stream, nil
}

// tenantStream is what StreamTenant reads with.
type tenantStream struct {
	service       *Service
	tenant, scope string
	filter        EventFilter
	secret        []byte
	place         streamPlace
}

func (t *tenantStream) id() string { return sealCursor(t.secret, t.scope, t.place.String()) }

func (t *tenantStream) open(ctx context.Context, q *queries.Queries, lastID string) error {
	setting, err := q.GetSetting(ctx)
	if err != nil {
		return err
	}
	t.secret = setting.CursorSecret
	if lastID == "" || lastID == FromStart {
		now, err := q.StreamSnapshot(ctx)
		if t.place = (streamPlace{cursor: now}); lastID == FromStart {
			t.place = streamPlace{past: true, cursor: seesNothing, batch: now}
		}
		return err
	}
	text, err := openCursor(t.secret, t.scope, lastID)
	if err == nil {
		t.place, err = placeOf(text)
	}
	if err != nil {
		return notOfStream("is not one that this stream, with these filters, has given")
	}
	most := new(int32(maxBehind))
	if t.place.past {
		most = nil
	}
	_, err = t.resume(ctx, q, t.place.cursor, most)
	return err
}

// resume returns the snapshot to read up to now, if a stream can go on from the cursor and has
// at most so many steps to read, or any number.
func (t *tenantStream) resume(ctx context.Context, q *queries.Queries, cursor string, most *int32) (batch string, err error) {
	now, err := q.CanResume(ctx, queries.CanResumeParams{
		Tenant: t.tenant, Workflows: t.filter.Workflows, Cursor: cursor, StepLimit: most,
	})
	if err == nil && !now.Can {
		return "", errTooOld
	}
	return now.Snapshot, err
}

// endPast goes on behind a past that has been read. What was made meanwhile is read in its
// order or, if it is too much for that, by instance once more.
func (t *tenantStream) endPast(ctx context.Context, q *queries.Queries) error {
	next := streamPlace{cursor: t.place.batch}
	_, err := t.resume(ctx, q, next.cursor, new(int32(maxBehind)))
	if errors.Is(err, EventIDTooOld) {
		next.past = true
		next.batch, err = t.resume(ctx, q, next.cursor, nil)
	}
	if err == nil {
		t.place = next
	}
	return err
}

func (t *tenantStream) next(ctx context.Context) (events []Event, more bool, err error) {
	var rows []queries.History
	past := t.place.past
	err = t.service.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		if past {
			rows, err = q.StreamPast(ctx, queries.StreamPastParams{
				Tenant: t.tenant, Workflows: t.filter.Workflows, Cursor: t.place.cursor, Batch: t.place.batch,
				AfterInstance: t.place.instance, AfterVersion: t.place.version, RowLimit: streamRows, Bytes: streamBytes,
			})
			if err == nil && len(rows) == 0 {
				err = t.endPast(ctx, q)
			}
			return err
		}
		if t.place.batch == "" {
			batch, err := t.resume(ctx, q, t.place.cursor, new(int32(maxBehind)))
			if err != nil || batch == t.place.cursor {
				return err
			}
			t.place.batch, t.place.seq = batch, 0
		}
		rows, err = q.StreamSteps(ctx, queries.StreamStepsParams{
			Tenant: t.tenant, Workflows: t.filter.Workflows, Cursor: t.place.cursor, Batch: t.place.batch, After: t.place.seq,
			RowLimit: streamRows, Bytes: streamBytes,
		})
		return err
	})
	if err != nil {
		return nil, false, err
	}
	bytes := 0
	for n := range rows {
		bytes += len(rows[n].Context) + len(rows[n].Payload)
		if past {
			t.place.instance, t.place.version = rows[n].InstanceID, rows[n].Version
		} else {
			t.place.seq = rows[n].Seq
		}
		// A negative seq only says how far the page goes.
		if rows[n].Seq > 0 && t.filter.chooses(&rows[n]) {
			events = append(events, eventOf(rows[n], t.id()))
		}
	}
	if past {
		return events, true, nil
	}
	if more = len(rows) == streamRows || bytes >= streamBytes; more {
		return events, true, nil
	}
	// All of it is read: what comes next is what the batch did not see.
	if t.place.batch != "" {
		t.place = streamPlace{cursor: t.place.batch}
	}
	if n := len(events); n > 0 {
		events[n-1].ID = t.id() // The rest of the batch is behind it too.
	}
	return events, false, nil
}
