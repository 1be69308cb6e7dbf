package lifecycle

import (
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/fsm/internal/gate"
)

// Service registers workflows, and does what concerns all instances of a workflow. It may be used by
// several goroutines at once.
type Service struct {
	fsm     *fsm.Service
	db      *database.Client
	schemas *definition.Schemas
	// backtests and simulations bound how many of them are under way.
	backtests, simulations       *gate.Gate
	backtestTime, simulationTime time.Duration
}

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service {
	return &Service{
		fsm: service, db: service.Database(), schemas: service.Schemas(),
		backtests: gate.New(2, 1, 32), simulations: gate.New(8, 4, 128),
		backtestTime: BacktestTime, simulationTime: SimulationTime,
	}
}
