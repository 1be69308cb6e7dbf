package definition_test

import (
	"errors"
	"fmt"
	"log"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// All faults are found at once, each with its place.
func ExampleParse() {
	_, err := definition.Parse([]byte(`{
		"name": "Door", "initial": "SHUT",
		"states": {
			"SHUT": {"on": {"open": "OPEN"}},
			"GONE": {"type": "final"}
		}
	}`), "", definition.Limits{})
	if e, ok := errors.AsType[*definition.Error](err); ok {
		for _, f := range e.Faults {
			fmt.Printf("%s %s\n", f.Pointer, f.Detail)
		}
	}
	// Output:
	// /name must be of lower-case letters and digits, with single dashes or underscores between
	// /states/GONE no transition leads to this state
	// /states/SHUT/on/open there is no state "OPEN"
}

// A change is unsafe if it puts active instances at risk that are migrated.
func ExampleDiff() {
	read := func(text string) *definition.Definition {
		d, err := definition.Parse([]byte(text), "door", definition.Limits{})
		if err != nil {
			log.Panic(err)
		}
		return d
	}
	before := read(`{"initial": "SHUT", "states": {"SHUT": {"on": {"open": "OPEN"}}, "OPEN": {"on": {"leave": "GONE"}}, "GONE": {"type": "final"}}}`)
	after := read(`{"initial": "SHUT", "states": {"SHUT": {"on": {"leave": "GONE", "lock": "GONE"}}, "GONE": {"type": "final"}}}`)
	for _, c := range definition.Diff(before, after) {
		fmt.Printf("%s %s: %s (unsafe: %t)\n", c.Kind, c.Pointer, c.Detail, c.Unsafe())
	}
	// Output:
	// removed /states/OPEN: the state OPEN is gone (unsafe: true)
	// added /states/SHUT/on/leave: SHUT accepts leave (unsafe: false)
	// added /states/SHUT/on/lock: SHUT accepts lock (unsafe: false)
	// removed /states/SHUT/on/open: SHUT no longer accepts open (unsafe: true)
}
