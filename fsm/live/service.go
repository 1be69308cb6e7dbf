package live

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Service waits for instances, and streams what happens to them. It may be used by several goroutines
// at once.
type Service struct {
	fsm *fsm.Service
	db  *database.Client
	hub *Hub
}

// IsNumbered reports whether a process gives steps their positions. Otherwise streams, webhooks and sinks are told of
// none.
// Kinds: Unavailable.
func (s *Service) IsNumbered(ctx context.Context) (numbered bool, err error) {
	_, err = s.db.Attempt(ctx, func(ctx context.Context) error {
		head, err := s.db.Queries().LogHead(ctx)
		numbered = head.Led
		return err
	})
	if err != nil {
		return false, fsm.AsError(err)
	}
	return numbered, nil
}

// New returns a Service on the database of an fsm.Service. The hub is of the same database, and wakes those
// who wait. Without one (nil) they read again once a second.
func New(service *fsm.Service, hub *Hub) *Service {
	if hub == nil {
		hub = NewHub(service.Database().Pool(), HubConfig{})
	}
	return &Service{fsm: service, db: service.Database(), hub: hub}
}
