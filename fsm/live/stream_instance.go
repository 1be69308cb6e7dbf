package live

import (
	"context"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// placeIn returns the version that lastID names: as the id of a message, which is the instance's id and the
// version, or as a version alone.
func placeIn(i fsm.Instance, lastID string) (version int64, err error) {
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

// StreamInstance streams the steps of an instance behind lastID, which is the id of a message or a version.
// FromStart streams all steps, and an empty lastID those to come. If the instance is final, StreamInstance
// looks for the first step that the filter chooses, so that the stream has ended if there is none.
//
// Kinds: InstanceNotFound, Malformed (LastID), Unavailable.
func (s *Service) StreamInstance(ctx context.Context, tenant string, id uuid.UUID, filter Filter, lastID string) (*Stream, error) {
	waiter := s.hub.Instance(id)
	i, err := s.fsm.Get(ctx, tenant, id)
	if err != nil {
		waiter.Close()
		return nil, err
	}
	at, err := placeIn(i, lastID)
	if err != nil {
		waiter.Close()
		return nil, err
	}
	stream := &Stream{hub: s.hub, waiter: waiter, ended: i.Status != fsm.Active && at == i.Version}
	stream.id = func() string { return id.String() + ":" + strconv.FormatInt(at, 10) }
	stream.next = func(ctx context.Context) (messages []Message, more bool, err error) {
		const limit = 50
		var rows []queries.History
		err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.ListHistory(ctx, queries.ListHistoryParams{
				TenantID: tenant, InstanceID: id, AfterVersion: at, RowLimit: limit, Bytes: streamBytes,
			})
			return err
		})
		bytes := 0
		for n := range rows {
			bytes += len(rows[n].Context) + len(rows[n].Payload)
			if rows[n].Version != at+1 {
				return messages, false, errTooOld
			}
			at = rows[n].Version
			stream.ended = fsm.Status(rows[n].Status) != fsm.Active
			if filter.chooses(&rows[n]) {
				messages = append(messages, messageOf(rows[n], stream.id()))
			}
		}
		if err == nil && len(rows) == 0 && at < i.Version {
			err = errTooOld // The instance has been purged.
		}
		return messages, len(rows) == limit || bytes >= streamBytes, err
	}
	for i.Status != fsm.Active && !stream.ended {
		before := at
		if messages, _, err := stream.next(ctx); len(messages) > 0 || err != nil {
			at, stream.ended = before, false // Next reads this page again.
			break
		}
	}
	return stream, nil
}
