package fsm

import (
	"sync"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// guesses remembers which schemas documents were checked against, so that the next documents are checked
// before the call. Then a command whose document must fit a schema needs one call rather than two. The engine
// decides whether it was the right schema. A wrong guess costs a second call, and nothing else. A schema is
// its checksum here: definition.Schemas keeps the schemas themselves.
type guesses struct {
	schemas recent[circumstance, string]
	// places has the place of each instance after its last known step: workflow, version and state. It
	// has only instances whose version of the workflow is in versions. Those are the versions for which
	// the engine asked for a payload schema.
	places   recent[uuid.UUID, circumstance]
	versions recent[circumstance, struct{}]
}

// A circumstance says for which documents a schema is meant: for the payloads of an event in a state of a
// version. With an event alone, it is for instances whose place is unknown. With a workflow alone, it is for
// the contexts of new instances.
type circumstance struct {
	workflow string
	version  int32
	state    string
	event    string
}

// forCreate returns the schema of the last context that was checked for a workflow, or "".
func (g *guesses) forCreate(workflow string) (checksum string) {
	checksum, _ = g.schemas.get(circumstance{workflow: workflow})
	return checksum
}

// forFire returns the schema that the engine will probably ask for, or "".
func (g *guesses) forFire(id uuid.UUID, event string) (checksum string) {
	place, known := g.places.get(id)
	place.event = event
	checksum, guessed := g.schemas.get(place)
	if known && !guessed {
		checksum, _ = g.schemas.get(circumstance{event: event})
	}
	return checksum
}

// created notes the schema that a context was checked against.
func (g *guesses) created(workflow, checksum string) {
	g.schemas.put(circumstance{workflow: workflow}, checksum)
}

// fired notes the schema that a payload was checked against, and the place of the instance.
func (g *guesses) fired(o queries.Outcome, event, checksum string) {
	version := circumstance{workflow: *o.Workflow, version: *o.WorkflowVersion}
	g.versions.put(version, struct{}{})
	place := version
	place.state = *o.State
	if o.ID != nil { // Else it is an instance that is still to be started.
		g.places.put(*o.ID, place)
	}
	place.event = event
	g.schemas.put(place, checksum)
	g.schemas.put(circumstance{event: event}, checksum)
}

// moved notes the place of an instance, if its version of the workflow has a payload schema.
func (g *guesses) moved(o queries.Outcome) {
	place := circumstance{workflow: *o.Workflow, version: *o.WorkflowVersion}
	if _, known := g.versions.get(place); known {
		place.state = *o.State
		g.places.put(*o.ID, place)
	}
}

// recent is a map that keeps the most recently used entries: at least maxRecent, and at most twice as many.
// Its zero value is ready for use by several goroutines.
type recent[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]V
}

const maxRecent = 4096

func (r *recent[K, V]) get(k K) (v V, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, known = r.young[k]; known {
		return v, true
	}
	if v, known = r.old[k]; known {
		r.set(k, v)
	}
	return v, known
}

func (r *recent[K, V]) put(k K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(k, v)
}

// set puts an entry among the young ones. The lock is held.
func (r *recent[K, V]) set(k K, v V) {
	if _, known := r.young[k]; !known && len(r.young) >= maxRecent {
		r.old, r.young = r.young, nil
	}
	if r.young == nil {
		r.young = map[K]V{}
	}
	r.young[k] = v
}
