package live

import (
	"context"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// An instancePlace is the place of an instance's stream: a version, and the epoch of its step, or 0 if that is not
// known.
type instancePlace struct{ version, epoch int64 }

// placeIn returns the place that lastID names: as the id of a message, which is that of a step, or as a version
// alone.
func placeIn(id uuid.UUID, lastID string) (p instancePlace, err error) {
	instance, text, both := strings.Cut(lastID, ":")
	if !both {
		instance, text = id.String(), lastID
	} else if other, err := uuid.Parse(instance); err == nil && other != id {
		return p, notOfStream("is an event's of another instance, %s", other)
	}
	version, epoch, later := strings.Cut(text, "@")
	p.version, err = strconv.ParseInt(version, 10, 64)
	if both {
		p.epoch = 1
	}
	if later && err == nil {
		p.epoch, err = strconv.ParseInt(epoch, 10, 64)
	}
	if err != nil || p.version < 0 || instance != id.String() || text != p.text() {
		return p, notOfStream("is neither an event of the instance nor one of its versions")
	}
	return p, nil
}

// text is the place as placeIn reads it behind the instance.
func (p instancePlace) text() string {
	text := strconv.FormatInt(p.version, 10)
	if p.epoch > 1 {
		text += "@" + strconv.FormatInt(p.epoch, 10)
	}
	return text
}

// instanceStream reads the pages of an instance's stream.
type instanceStream struct {
	service *Service
	tenant  string
	id      uuid.UUID
	filter  Filter
	place   instancePlace
	ended   bool
}

// StreamInstance streams the steps of an instance behind lastID, which is the id of a message or a version.
// FromStart streams all steps, and an empty lastID those to come. If the instance is final, StreamInstance
// looks for the first step that the filter chooses, so that the stream has ended if there is none.
//
// Kinds: EventIDTooOld, InstanceNotFound, Malformed (LastID), StepsLost, UnknownEventID, Unavailable.
func (s *Service) StreamInstance(ctx context.Context, tenant string, id uuid.UUID, filter Filter, lastID string) (*Stream, error) {
	t := &instanceStream{service: s, tenant: tenant, id: id, filter: filter}
	stream := &Stream{hub: s.hub, waiter: s.hub.Instance(id), next: t.next, id: t.lastID, ended: func() bool { return t.ended }}
	if err := t.open(ctx, stream.waiter, lastID); err != nil {
		stream.Close()
		return nil, err
	}
	return stream, nil
}

func (t *instanceStream) lastID() string { return fsm.StepID(t.id, t.place.version, t.place.epoch) }

// open finds the place to begin at.
func (t *instanceStream) open(ctx context.Context, waiter *Waiter, lastID string) error {
	i, err := t.service.fsm.Get(ctx, t.tenant, t.id)
	if err != nil {
		return err
	}
	if t.place = (instancePlace{version: i.Version}); lastID != "" {
		if t.place, err = placeIn(t.id, lastID); err != nil {
			return err
		}
		if t.place.epoch == 0 && t.place.version > i.Version {
			return notOfStream("is not one of the instance's %d versions", i.Version)
		}
	}
	err = t.service.settle(ctx, waiter, func() (settled bool, err error) {
		at, err := t.look(ctx)
		return at.State != pending, err
	})
	if err != nil || i.Status == fsm.Active {
		return err
	}
	for t.ended = t.place.version == i.Version; !t.ended; {
		before := t.place
		messages, more, err := t.next(ctx)
		if len(messages) > 0 || err != nil {
			t.place, t.ended = before, false // Next reads this page again.
			return nil
		}
		if !more {
			return nil
		}
	}
	return nil
}

// look finds out whether the step at the place is the one that the client has seen, and completes the place.
func (t *instanceStream) look(ctx context.Context) (at queries.StreamPlaceRow, err error) {
	err = t.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		at, err = q.StreamPlace(ctx, queries.StreamPlaceParams{
			Tenant: t.tenant, InstanceID: t.id, Version: t.place.version, Epoch: t.place.epoch,
		})
		return err
	})
	switch {
	case err != nil:
		return at, err
	case at.State == "purged":
		return at, errTooOld
	case at.State == lost:
		return at, stepsLost(fsm.StepID(t.id, at.Version, at.Epoch))
	case at.State == known:
		t.place.epoch = at.Epoch
		return at, nil
	}
	return at, placeError(at.State)
}

// next reads a page; see Stream.Next.
func (t *instanceStream) next(ctx context.Context) (messages []Message, more bool, err error) {
	const limit = 50
	at, err := t.look(ctx)
	if err != nil || at.Until <= t.place.version {
		return nil, false, err
	}
	var rows []queries.Message
	err = t.service.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		rows, err = q.StreamInstance(ctx, queries.StreamInstanceParams{
			Tenant: t.tenant, InstanceID: t.id, AfterVersion: t.place.version, Epoch: t.place.epoch, RowLimit: limit, Bytes: streamBytes,
		})
		return err
	})
	if err != nil {
		return nil, false, err
	}
	bytes := 0
	for n := range rows {
		bytes += len(rows[n].Context) + len(rows[n].Payload)
		if rows[n].Version != t.place.version+1 {
			return messages, false, errTooOld
		}
		t.place = instancePlace{rows[n].Version, rows[n].Epoch}
		t.ended = fsm.Status(rows[n].Status) != fsm.Active
		if t.filter.chooses(&rows[n]) {
			messages = append(messages, messageOf(rows[n], t.lastID()))
		}
	}
	return messages, len(rows) == limit || bytes >= streamBytes, nil
}
