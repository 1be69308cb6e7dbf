package lifecycle

import (
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Service registers workflows, and does what concerns all instances of a workflow. It may be used by
// several goroutines at once.
type Service struct {
	fsm     *fsm.Service
	db      *database.Client
	schemas *definition.Schemas
}

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service {
	return &Service{fsm: service, db: service.Database(), schemas: service.Schemas()}
}
