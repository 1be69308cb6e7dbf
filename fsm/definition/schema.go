package definition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pawl-fsm/pawl/fsm/internal/gate"
)

// The limits of a check. A step takes 0.1 to 1 µs; see meter.
const (
	// maxSteps bounds the question whether a document fits, and maxCheckTime its time.
	maxSteps     = 2_000_000
	maxCheckTime = 2 * time.Second
	// maxFaultSteps bounds the search for all faults, and so the memory that their descriptions take.
	maxFaultSteps = 100_000
	// maxEmptySteps bounds the check of {} when a schema is registered.
	maxEmptySteps = 100_000
	// A check of more steps or more products than these waits for a slot. They take 1 ms, and 10 ms at most. There is
	// no limit of time, so that a short check does not wait because the machine is busy.
	freeSteps    = 4000
	freeProducts = 1 << 18
	// maxSlotWait is how long it waits, and maxSlotWaiters how many checks of one tenant wait.
	maxSlotWait    = 2*maxCheckTime + time.Second
	maxSlotWaiters = 64
	// Compiling a schema of more objects than these waits for a slot, too.
	maxFreeObjects = 100
)

var errBusy = &Error{Reason: ErrBusy, Message: "checks of other documents take all the time that there is for them; try again"}

// Schemas checks documents against JSON Schemas. It keeps compiled schemas by the checksum of their text.
// Compiling is a pure function of the text, so nothing that is kept can be stale. The zero value is ready for
// use by several goroutines.
//
// Every check is bounded. A check that is long, or a schema that is large, waits for one of a few slots, half as
// many as there are processors. Tenants take turns for them. So long checks take at most half of the processors from
// others, and a short check never waits for a long one.
type Schemas struct {
	mu     sync.Mutex
	kept   map[string]*kept
	weight int // Of all that are kept.
	slots  *gate.Gate
}

const (
	// maxSchemas and maxWeight are how many schemas are kept, and how many KiB they may take. Before there would
	// be more, all are dropped.
	maxSchemas = 1024
	maxWeight  = 20_000
	// maxCopies is how many copies of a compiled schema are kept for checks at the same time.
	maxCopies = 4
)

// kept is a schema with the copies of its compiled form that are not in use.
type kept struct {
	text   []byte
	copies []*compiled
	// defaults are merged under a document before it is checked: the keyword defaultKeyword of the schema.
	defaults map[string]any
}

// defaultKeyword is the keyword by which the schema of a context has the workflow's context_default. The engine adds
// it, so that the checksum of a schema stands for the whole check.
const defaultKeyword = "x-context-default"

// read decodes a document, with the schema's defaults under it.
func (k *kept) read(document []byte) (any, error) {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if m, ok := value.(map[string]any); ok && k.defaults != nil {
		merged := maps.Clone(k.defaults)
		maps.Copy(merged, m)
		return merged, err
	}
	return value, err
}

// CheckedSchema returns the schema that the context of a creation is checked against, as the engine gives it out: with the
// ContextDefault. Nil: there is none.
func (d *Definition) CheckedSchema() (json.RawMessage, error) {
	if d.ContextSchema == nil || len(d.ContextDefault) == 0 {
		return d.ContextSchema, nil
	}
	var schema map[string]any
	if err := json.Unmarshal(d.ContextSchema, &schema); err != nil {
		return nil, err
	}
	schema[defaultKeyword] = d.ContextDefault
	return json.Marshal(schema)
}

// Check checks a document against a schema, both as JSON text. It returns the faults of the document, at most 100
// of them, whose pointers begin with root. checksum is the SHA-256 of the schema's text in hexadecimal, by which
// the engine knows the schema. It is a fault, too, if the check takes more steps than a document may take.
//
// The error is that of the context, or an [Error] whose reason is ErrBusy. Any other error says that the schema or
// the document could not be read, which does not happen to what the engine has stored.
func (s *Schemas) Check(ctx context.Context, schema, document []byte, root string) (checksum string, faults []Fault, err error) {
	sum := sha256.Sum256(schema)
	checksum = hex.EncodeToString(sum[:])
	k := s.get(checksum)
	if k == nil {
		k = &kept{text: schema}
		if bytes.Contains(schema, []byte(defaultKeyword)) {
			if v, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema)); err == nil {
				m, _ := v.(map[string]any)
				k.defaults, _ = m[defaultKeyword].(map[string]any)
			}
		}
		c, err := s.compile(ctx, k)
		if err != nil {
			return "", nil, err
		}
		k.copies = []*compiled{c}
		s.keep(checksum, k, c.weight)
	}
	value, err := k.read(document)
	if err != nil {
		return "", nil, fmt.Errorf("document: %w", err)
	}
	fits, err := s.fits(ctx, k, value)
	switch {
	case errors.Is(err, errSpent):
		return checksum, []Fault{{Pointer: root, Detail: fmt.Sprintf(
			"checking this document against its schema takes more than %d steps, or %v; make the document smaller or less deep, or the schema simpler",
			maxSteps, maxCheckTime)}}, nil
	case err != nil:
		return "", nil, err
	case fits:
		return checksum, nil, nil
	}
	err = s.measured(ctx, k, maxFaultSteps, func(c *compiled) {
		var invalid *jsonschema.ValidationError
		if err := c.schema.Validate(value); errors.As(err, &invalid) {
			faults = documentFaults(invalid, value, root)
		}
	})
	switch {
	case errors.Is(err, errSpent):
		faults = []Fault{{Pointer: root, Detail: "does not fit its schema; to list its faults would take too many steps"}}
	case err != nil:
		return "", nil, err
	}
	return checksum, faults, nil
}

// Fits reports whether a document fits the schema with a checksum. It reports false if the schema is not kept, or if
// the check is over its limits.
func (s *Schemas) Fits(ctx context.Context, checksum string, document []byte) bool {
	k := s.get(checksum)
	if k == nil {
		return false
	}
	value, err := k.read(document)
	if err != nil {
		return false
	}
	fits, err := s.fits(ctx, k, value)
	return err == nil && fits
}

func (s *Schemas) fits(ctx context.Context, k *kept, value any) (fits bool, err error) {
	err = s.measured(ctx, k, maxSteps, func(c *compiled) { fits = c.opposite.Validate(value) != nil })
	return fits, err
}

// measured runs a part of a check: first within what is free, and if that does not do, once more with a slot.
func (s *Schemas) measured(ctx context.Context, k *kept, steps int, part func(*compiled)) error {
	err := s.withCopy(k, func(c *compiled) error {
		return c.run(ctx, limits{steps: freeSteps, products: freeProducts}, func() { part(c) })
	})
	if !errors.Is(err, errSpent) {
		return err
	}
	release, err := s.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	return s.withCopy(k, func(c *compiled) error {
		return c.run(ctx, limits{steps: steps, time: maxCheckTime}, func() { part(c) })
	})
}

// slot waits for a slot. It returns what gives the slot back.
func (s *Schemas) slot(ctx context.Context) (release func(), err error) {
	s.mu.Lock()
	if s.slots == nil {
		n := slots()
		s.slots = gate.New(n, max(n/2, 1), maxSlotWaiters)
	}
	g := s.slots
	s.mu.Unlock()
	waiting, cancel := context.WithTimeout(ctx, maxSlotWait)
	defer cancel()
	release, err = g.Enter(waiting)
	if err != nil && ctx.Err() == nil {
		return nil, errBusy
	}
	return release, err
}

// slots is how many slots there are.
func slots() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// withCopy calls f with a copy of the compiled schema that nobody else uses meanwhile.
func (s *Schemas) withCopy(k *kept, f func(*compiled) error) error {
	c := s.takeCopy(k)
	if c == nil {
		var err error
		if c, err = k.compile(); err != nil {
			return err
		}
	}
	defer s.giveCopy(k, c)
	return f(c)
}

func (s *Schemas) takeCopy(k *kept) *compiled {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(k.copies) == 0 {
		return nil
	}
	c := k.copies[len(k.copies)-1]
	k.copies = k.copies[:len(k.copies)-1]
	return c
}

func (s *Schemas) giveCopy(k *kept, c *compiled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(k.copies) < maxCopies {
		k.copies = append(k.copies, c)
	}
}

// compile compiles a schema for the first time.
func (s *Schemas) compile(ctx context.Context, k *kept) (*compiled, error) {
	if bytes.Count(k.text, []byte("{")) > maxFreeObjects {
		release, err := s.slot(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	return k.compile()
}

// compile compiles the schema's text.
func (k *kept) compile() (*compiled, error) {
	c, err := compileSchema(k.text)
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return c, nil
}

// get returns the schema with a checksum, or nil if it is not kept.
func (s *Schemas) get(checksum string) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept[checksum]
}

// keep keeps a schema.
func (s *Schemas) keep(checksum string, k *kept, weight int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept[checksum] != nil {
		return
	}
	if s.kept == nil || len(s.kept) >= maxSchemas || s.weight+weight > maxWeight {
		s.kept, s.weight = map[string]*kept{}, 0
	}
	s.kept[checksum] = k
	s.weight += weight
}
