package fsm

import (
	"encoding/json"
	"sync"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// guesses remembers against which schemas documents were checked, to check the next ones before the engine
// is called. So a command whose document has a schema needs one call rather than two. The engine decides
// whether the schema is the right one: a wrong guess costs the second call, and nothing else.
type guesses struct {
	schemas recent[circumstance, json.RawMessage]
	// places has where instances were after their last known step. It has those of the versions in
	// versions only, whose workflows have schemas.
	places   recent[uuid.UUID, circumstance]
	versions recent[circumstance, struct{}]
}

// A circumstance is when a document is checked against a schema: when an event is fired in a state of a
// version. With an event alone, it is for instances whose place is unknown. With a workflow alone, it is the
// creation of an instance.
type circumstance struct {
	workflow string
	version  int32
	state    string
	event    string
}

// forCreate returns the schema that a context of a workflow was checked against last, or nil.
func (g *guesses) forCreate(workflow string) json.RawMessage {
	schema, _ := g.schemas.get(circumstance{workflow: workflow})
	return schema
}

// forFire returns the schema that a payload is likely to be checked against, or nil.
func (g *guesses) forFire(id uuid.UUID, event string) json.RawMessage {
	place, known := g.places.get(id)
	place.event = event
	schema, guessed := g.schemas.get(place)
	if known && !guessed {
		schema, _ = g.schemas.get(circumstance{event: event})
	}
	return schema
}

// created notes the schema of a workflow's contexts.
func (g *guesses) created(workflow string, schema json.RawMessage) {
	g.schemas.put(circumstance{workflow: workflow}, schema)
}

// fired notes the schema of an event in the place where an instance is.
func (g *guesses) fired(o queries.Outcome, event string) {
	version := circumstance{workflow: *o.Workflow, version: *o.WorkflowVersion}
	g.versions.put(version, struct{}{})
	place := version
	place.state = *o.State
	g.places.put(*o.ID, place)
	place.event = event
	g.schemas.put(place, o.Schema)
	g.schemas.put(circumstance{event: event}, o.Schema)
}

// moved notes where an instance is.
func (g *guesses) moved(o queries.Outcome) {
	place := circumstance{workflow: *o.Workflow, version: *o.WorkflowVersion}
	if _, known := g.versions.get(place); known {
		place.state = *o.State
		g.places.put(*o.ID, place)
	}
}

// recent is a map that keeps the entries that were used last: at least maxRecent, and at most twice as many.
// Its zero value is ready for use by several goroutines.
type recent[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]V
}

const maxRecent = 16384

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

// set makes an entry young. The lock is held.
func (r *recent[K, V]) set(k K, v V) {
	if _, known := r.young[k]; !known && len(r.young) >= maxRecent {
		r.old, r.young = r.young, nil
	}
	if r.young == nil {
		r.young = map[K]V{}
	}
	r.young[k] = v
}
