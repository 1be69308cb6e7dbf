package webhook

import (
	"maps"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// The results of settling.
const (
	ResultDelivered = resultDelivered
	ResultRetry     = resultRetry
	ResultDead      = resultDead
	ResultGone      = resultGone
	ResultPostponed = resultPostponed
	ResultAbandoned = resultAbandoned
)

// RefreshEvery is how long a change of a subscription may go unnoticed.
const RefreshEvery = refreshEvery

// Held is what of a tenant is in memory. Its lanes are named by their subscriptions.
type Held struct {
	Places, Bytes int
	Lanes         map[uuid.UUID]int
}

// MaxMessages is the most bytes of messages in memory.
const MaxMessages = maxMessages

// Choose calls memory.choose.
func Choose(held map[string]Held, lanes []queries.DeliveryLane, window, limit int) (p queries.DeliveryDueParams, reached int) {
	m := memory{tenants: map[string]*tenantMemory{}}
	for name, h := range held {
		m.places += h.Places
		m.bytes += h.Bytes
		m.tenants[name] = &tenantMemory{places: h.Places, bytes: h.Bytes, lanes: maps.Clone(h.Lanes)}
	}
	return m.choose(lanes, window, limit)
}
