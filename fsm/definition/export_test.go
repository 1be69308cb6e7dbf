package definition

import (
	"context"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
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

// TakeSlots takes all slots. It returns what gives them back.
func (s *Schemas) TakeSlots(ctx context.Context) (release func()) {
	releases := []func(){}
	for {
		one, err := s.slot(ctx)
		if err != nil {
			return nil
		}
		if releases = append(releases, one); len(releases) == cap(s.slots) {
			return func() {
				for _, release := range releases {
					release()
				}
			}
		}
	}
}
