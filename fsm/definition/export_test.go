package definition

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pawl-fsm/pawl/fsm/internal/gate"
)

const (
	MaxSchemas = maxSchemas
	MaxSteps   = maxSteps
)

// Steps counts the steps of a check. It ends when there are more than the limit.
func Steps(ctx context.Context, schema, document string, limit int) (int, error) {
	c, err := compileSchema([]byte(schema))
	if err != nil {
		return 0, err
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(document))
	if err != nil {
		return 0, err
	}
	if err := c.run(ctx, limits{steps: limit}, func() { _ = c.opposite.Validate(value) }); err != nil && err != errSpent {
		return 0, err
	}
	return c.meter.taken, nil
}

// Len counts the compiled schemas that are kept.
func (s *Schemas) Len() int { return len(s.kept) }

// TakeSlots takes all slots, each for a tenant of its own. It returns what gives them back.
func (s *Schemas) TakeSlots(ctx context.Context) (release func()) {
	releases := []func(){}
	for n := range slots() {
		one, err := s.slot(gate.WithTenant(ctx, fmt.Sprint("tenant ", n)))
		if err != nil {
			return nil
		}
		releases = append(releases, one)
	}
	return func() {
		for _, release := range releases {
			release()
		}
	}
}

// PathParses reports whether the parser of paths understands a text.
func PathParses(text string) bool {
	_, ok := parsePath(text)
	return ok
}

// GuardText returns a guard as a diagram shows it.
func GuardText(g Guard) string { return guardText(g) }

// FaultsOf returns the faults of a document's error.
func FaultsOf(err error) []Fault {
	var e *Error
	if !errors.As(err, &e) {
		return nil
	}
	return e.Faults
}
