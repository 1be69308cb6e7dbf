package live

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

const (
	// A page ends after streamRows steps, or with the step by which its contexts and payloads exceed
	// streamBytes, so that no reader costs much memory.
	streamRows  = 1000
	streamBytes = 256 << 10
	// maxBehind is how many steps, of all tenants, a batch may have that is read by sequence number, since
	// each page sorts the steps that are left. The past may have any number: it is read by instance.
	maxBehind = 100000
)

// A streamPlace is the place of a tenant's stream. The package's comment explains it.
type streamPlace struct {
	// cursor is a snapshot that sees what was read before the present batch.
	cursor string
	// batch is a snapshot that sees the present batch too; empty between batches. seq is the last sequence
	// number that was read of the batch.
	batch string
	seq   int64
	// past: the batch is the past. It is read by instance, and was read up to a version of an instance.
	past     bool
	instance uuid.UUID
	version  int64
}

// seesNothing is a snapshot before all transactions: the cursor of the beginning.
const seesNothing = "1:1:"

// String writes the place for an id, as placeOf reads it.
func (p streamPlace) String() string {
	switch {
	case p.past:
		return fmt.Sprintf("past %s %s %s %d", p.cursor, p.batch, p.instance, p.version)
	case p.batch != "":
		return fmt.Sprintf("in %s %s %d", p.cursor, p.batch, p.seq)
	}
	return "at " + p.cursor
}

// placeOf reads what String wrote. The HMAC of the id has shown that nobody has changed it.
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

// StreamTenant streams the steps of a tenant behind lastID, which is the id of a message. FromStart streams
// all steps, and an empty lastID those to come. From the start the steps come instance by instance, and
// those that are made meanwhile come after them. An id is valid only with the filter that it was given for.
//
// Kinds: Malformed (LastID), EventIDTooOld, Unavailable.
func (s *Service) StreamTenant(ctx context.Context, tenant string, filter Filter, lastID string) (*Stream, error) {
	t := &tenantStream{
		service: s, tenant: tenant, filter: filter,
		scope: fmt.Sprintf("events %s %q %q %q %t", tenant, filter.Workflows, filter.Events, filter.States, filter.TerminalOnly),
	}
	stream := &Stream{hub: s.hub, waiter: s.hub.Tenant(tenant), next: t.next, id: t.id}
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error { return t.open(ctx, q, lastID) })
	if err != nil {
		stream.Close()
		return nil, tooOld(err)
	}
	return stream, nil
}

// tenantStream reads the pages of a tenant's stream. The secret that signs its ids is read once, when the
// stream is opened.
type tenantStream struct {
	service       *Service
	tenant, scope string
	filter        Filter
	secret        []byte
	place         streamPlace
}

func (t *tenantStream) id() string { return database.SealCursor(t.secret, t.scope, t.place.String()) }

// open finds the place to begin at.
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
	text, known := database.OpenCursor(t.secret, t.scope, lastID)
	if known {
		t.place, err = placeOf(text)
	}
	if !known || err != nil {
		return notOfStream("is not one that this stream, with these filters, has given")
	}
	most := new(int32(maxBehind))
	if t.place.past {
		most = nil
	}
	_, err = t.resume(ctx, q, t.place.cursor, most)
	return err
}

// resume returns the present snapshot. It fails with EventIDTooOld if steps behind the cursor have been
// purged, or if there are more than most steps behind it; nil allows any number.
func (t *tenantStream) resume(ctx context.Context, q *queries.Queries, cursor string, most *int32) (batch string, err error) {
	now, err := q.StreamCanResume(ctx, queries.StreamCanResumeParams{
		Tenant: t.tenant, Workflows: t.filter.Workflows, Cursor: cursor, StepLimit: most,
	})
	if err == nil && !now.Can {
		return "", errTooOld
	}
	return now.Snapshot, err
}

// endPast moves the place behind the past, which has been read. The steps that were made meanwhile are read by
// sequence number or, if they are more than maxBehind, as a past of their own.
func (t *tenantStream) endPast(ctx context.Context, q *queries.Queries) error {
	next := streamPlace{cursor: t.place.batch}
	_, err := t.resume(ctx, q, next.cursor, new(int32(maxBehind)))
	if errors.Is(err, fsm.EventIDTooOld) {
		next.past = true
		next.batch, err = t.resume(ctx, q, next.cursor, nil)
	}
	if err == nil {
		t.place = next
	}
	return err
}

// next reads a page; see Stream.Next.
func (t *tenantStream) next(ctx context.Context) (messages []Message, more bool, err error) {
	var rows []queries.History
	past := t.place.past
	err = t.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		if past {
			rows, err = q.StreamReadPast(ctx, queries.StreamReadPastParams{
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
		rows, err = q.StreamRead(ctx, queries.StreamReadParams{
			Tenant: t.tenant, Workflows: t.filter.Workflows, Cursor: t.place.cursor, Batch: t.place.batch, After: t.place.seq,
			RowLimit: streamRows, Bytes: streamBytes,
		})
		return err
	})
	if err != nil {
		return nil, false, tooOld(err)
	}
	bytes := 0
	for n := range rows {
		bytes += len(rows[n].Context) + len(rows[n].Payload)
		if past {
			t.place.instance, t.place.version = rows[n].InstanceID, rows[n].Version
		} else {
			t.place.seq = rows[n].Seq
		}
		// A row with a negative seq is no step; it says how far the page goes.
		if rows[n].Seq > 0 && t.filter.chooses(&rows[n]) {
			messages = append(messages, messageOf(rows[n], t.id()))
		}
	}
	if past {
		return messages, true, nil
	}
	if more = len(rows) == streamRows || bytes >= streamBytes; more {
		return messages, true, nil
	}
	// The batch has been read. The next one is what it does not see.
	if t.place.batch != "" {
		t.place = streamPlace{cursor: t.place.batch}
	}
	if n := len(messages); n > 0 {
		messages[n-1].ID = t.id() // Behind the last message the filter chose nothing of the batch.
	}
	return messages, false, nil
}
