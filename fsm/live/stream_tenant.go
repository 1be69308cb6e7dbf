package live

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
)

const (
	// A page ends after streamRows steps, or with the step by which its contexts and payloads exceed
	// streamBytes, so that no reader costs much memory.
	streamRows  = 1000
	streamBytes = 256 << 10
	// lookRows is how many rows of the log, of all tenants, a page looks at.
	lookRows = 5000
)

// A logPlace is a place in the log: an epoch and a position.
type logPlace struct{ epoch, position int64 }

// String writes the place as the id of a message.
func (p logPlace) String() string {
	return strconv.FormatInt(p.epoch, 10) + "." + strconv.FormatInt(p.position, 10)
}

// sealed matches ids of an older form. They are too old, rather than malformed, so that a browser drops them.
var sealed = regexp.MustCompile(`^[A-Za-z0-9_-]{30,}$`)

// placeOf reads what String wrote.
func placeOf(id string) (p logPlace, err error) {
	epoch, position, _ := strings.Cut(id, ".")
	p.epoch, err = strconv.ParseInt(epoch, 10, 64)
	if err == nil {
		p.position, err = strconv.ParseInt(position, 10, 64)
	}
	switch {
	case err == nil && p.String() == id:
		return p, nil
	case sealed.MatchString(id):
		return p, errTooOld
	}
	return p, notOfStream("must be an epoch and a position, such as 1.4711")
}

// StreamTenant streams the steps of a tenant, or of all for fsm.Deployment, behind lastID, which is the id of a message. FromStart streams
// all steps that are kept, and an empty lastID those to come. An id is valid with any filter.
//
// Kinds: EventIDTooOld, Malformed (LastID), StepsLost, UnknownEventID, Unavailable.
func (s *Service) StreamTenant(ctx context.Context, tenant string, filter Filter, lastID string) (*Stream, error) {
	t := &tenantStream{service: s, tenant: tenant, filter: filter}
	stream := &Stream{hub: s.hub, waiter: s.hub.Tenant(tenant), next: t.next, id: t.id, ended: func() bool { return false }}
	if err := t.open(ctx, stream.waiter, lastID); err != nil {
		stream.Close()
		return nil, err
	}
	return stream, nil
}

// tenantStream reads the pages of a tenant's stream.
type tenantStream struct {
	service *Service
	tenant  string
	filter  Filter
	place   logPlace
	// floor: what was purged up to this position is not missed. A stream from the start shows what is kept.
	floor int64
}

func (t *tenantStream) id() string { return t.place.String() }

// open finds the place to begin at.
func (t *tenantStream) open(ctx context.Context, waiter *Waiter, lastID string) (err error) {
	switch lastID {
	case "":
		return t.begin(ctx, waiter)
	case FromStart:
		return t.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
			head, err := q.LogHead(ctx)
			t.place, t.floor = logPlace{epoch: max(head.Epoch, 1)}, head.Position
			return err
		})
	}
	if t.place, err = placeOf(lastID); err != nil {
		return err
	}
	_, _, err = t.read(ctx, 0)
	return err
}

// begin finds the end of the log behind the steps that are committed so far.
func (t *tenantStream) begin(ctx context.Context, waiter *Waiter) error {
	var since *string
	var server *time.Time
	return t.service.settle(ctx, waiter, func() (settled bool, err error) {
		err = t.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
			at, err := q.LogSettled(ctx, queries.LogSettledParams{Tenant: t.tenant, Since: since, Server: server})
			if err != nil {
				return err
			}
			since, server, settled = &at.Since, &at.Server, at.Settled
			t.place = logPlace{max(at.Epoch, 1), at.Place}
			return nil
		})
		return settled, err
	})
}

// next reads a page; see Stream.Next.
func (t *tenantStream) next(ctx context.Context) (messages []Message, more bool, err error) {
	rows, until, err := t.read(ctx, lookRows)
	if err != nil || until == 0 {
		return nil, false, err
	}
	bytes := 0
	for n := range rows {
		bytes += len(rows[n].Context) + len(rows[n].Payload)
		t.place.position = *rows[n].Position
		if t.filter.chooses(&rows[n]) {
			messages = append(messages, messageOf(rows[n], t.id()))
		}
	}
	if len(rows) < streamRows && bytes < streamBytes {
		t.place.position = until // The rest of the page is of other tenants.
	}
	return messages, true, nil
}

// read reads the steps of the next page, which looks at up to limit rows of the log. It returns the last position that
// the page looks at, or 0 if the log ends here.
func (t *tenantStream) read(ctx context.Context, limit int32) (rows []queries.Message, until int64, err error) {
	var at queries.StreamLookRow
	err = t.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		at, err = q.StreamLook(ctx, queries.StreamLookParams{
			Tenant: t.tenant, Workflows: t.filter.Workflows, Floor: t.floor, Epoch: t.place.epoch, Position: t.place.position, RowLimit: limit,
		})
		if err != nil || at.State != known || at.Until == nil {
			return err
		}
		until = *at.Until
		if at.Steps == 0 {
			return nil
		}
		rows, err = q.StreamRead(ctx, queries.StreamReadParams{
			Tenant: t.tenant, Workflows: t.filter.Workflows, Floor: t.floor, After: t.place.position, Until: until,
			RowLimit: streamRows, Bytes: streamBytes,
		})
		return err
	})
	switch {
	case err != nil:
		return nil, 0, tooOld(err)
	case at.State == lost:
		return nil, 0, stepsLost(logPlace{t.place.epoch, at.Place}.String())
	case at.State != known:
		return nil, 0, placeError(at.State)
	}
	t.place.epoch = at.Epoch
	return rows, until, nil
}
