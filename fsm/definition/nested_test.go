package definition_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// What the definition says of a state is written out in its canonical form: names become
// paths.
func TestNestedCanonical(t *testing.T) {
	t.Parallel()
	text := canonical(t, fsmtest.Shop)
	for _, part := range []string{
		`"restart":[{"target":"ORDER.CART"}]`, `"pay":[{"target":"DONE","guard":`, `"checkout":[{"target":"ORDER.PAYMENT"}]`,
		`"always":[{"target":"DONE"`, `{"target":"ORDER.PAYMENT.DUE"}]`, `"initial":"CHECK"`,
	} {
		if !strings.Contains(text, part) {
			t.Errorf("there is no %s in\n%s", part, text)
		}
	}
	// The nearest counts: within, beside, around.
	d := parse(t, `{"name":"w","initial":"A","states":{"END":{"type":"final"},"X":{"on":{"go":"END"}},
		"A":{"initial":"X","on":{"in":"X","out":"END","d":"D"},"states":{"X":{"on":{"go":"Y"}},"Y":{"initial":"X","on":{"in":"X","self":"Y"},"states":{"X":{"on":{"go":"X"}}}}}},
		"B.C":{"on":{"go":"X"}},"D":{"on":{"go":"B.C"}}}, "ttl":{"after":"1h","target":"END"}, "retention": "30d"}`)
	a := d.States["A"]
	for n, c := range [][2]string{
		{a.On["in"][0].Target, "A.X"},
		{a.On["out"][0].Target, "END"},
		{a.States["X"].On["go"][0].Target, "A.Y"},
		{a.States["Y"].On["in"][0].Target, "A.Y.X"},
		{a.States["Y"].On["self"][0].Target, "A.Y"},
		{a.States["Y"].States["X"].On["go"][0].Target, "A.Y.X"},
		{d.States["B.C"].On["go"][0].Target, "X"},
		{d.States["D"].On["go"][0].Target, "B.C"},
	} {
		if c[0] != c[1] {
			t.Errorf("%d: the target is %s, want %s", n, c[0], c[1])
		}
	}
	if d.Retention != 30*24*time.Hour {
		t.Errorf("retention %v", d.Retention)
	}
}

func TestNestedFaults(t *testing.T) {
	t.Parallel()
	compound := func(members, within string) string {
		return `{"name":"w","initial":"A","states":{"B":{"type":"final"},"A":{"initial":"X","on":{"out":"B"},` + members + `"states":{` + within + `}}}}`
	}
	for text, want := range map[string]map[string]string{
		compound(``, `"X":{}`):                                                   nil,
		compound(``, `"X":{"on":{"go":"Y"}},"Y":{}`):                             nil,
		compound(``, `"X":{"always":{"target":"B","guard":"$.context.x == 1"}}`): nil,
		compound(``, ``):                                     {"/states/A/states": "empty", "/states/A/initial": "within"},
		compound(``, `"X":{},"Y":{}`):                        {"/states/A/states/Y": "leads to"},
		compound(``, `"Z":{}`):                               {"/states/A/initial": `"X" within`},
		compound(``, `"X.Y":{}`):                             {"/states/A/states/X.Y": "name", "/states/A/initial": "within"},
		compound(`"type":"final",`, `"X":{}`):                {"/states/B": "leads to", "/states/A/states": "final", "/states/A/initial": "final", "/states/A/on": "final"},
		compound(`"entry":{"assign":"x"},`, `"X":{}`):        {"/states/A/entry/assign": "*"},
		compound(`"entry":"x","exit":{"do":1},`, `"X":{}`):   {"/states/A/entry": "object", "/states/A/exit/do": "member"},
		compound(``, `"X":{"on":{"go":"Q"}}`):                {"/states/A/states/X/on/go": "no state"},
		compound(``, `"X":{"always":"X"}`):                   {"/states/A/states/X": "rest", "/states/B": "leads to"},
		compound(``, `"X":{"always":["B"],"on":{"go":"B"}}`): {"/states/A/states/X/on": "at once"},
		compound(``, `"X":{"always":"Y"},"Y":{"always":[{"guard":"$.context.a == 1","target":"X"},{"target":"X"}]}`):                                           {"/states/A/states/X": "rest", "/states/A/states/Y": "rest", "/states/B": "leads to"},
		compound(``, `"X":{"always":{"target":"B","payload_schema":{}}}`):                                                                                      {"/states/A/states/X/always/payload_schema": "not a member"},
		compound(``, `"X":{"initial":"Y"}`):                                                                                                                    {"/states/A/states/X/initial": "states within"},
		`{"name":"w","initial":"A.B","states":{"C":{"type":"final"},"A.B":{"initial":"X","on":{"go":"C"},"states":{"X":{}}}}}`:                                 {"/states/A.B": "dots"},
		`{"name":"w","initial":"A","states":{"C":{"type":"final"},"A.X":{"on":{"go":"C"}},"A":{"initial":"X","on":{"go":"C"},"states":{"X":{}}}}}`:             {"/states/A.X": "path"},
		`{"name":"w","initial":"A","states":{"C":{"type":"final","exit":{"assign":{}}},"A":{"on":{"go":"C"}}}}`:                                                {"/states/C/exit": "nothing happens"},
		`{"name":"w","initial":"A","retention":"x","states":{"C":{"type":"final"},"A":{"on":{"go":"C"}}}}`:                                                     {"/retention": ""},
		`{"name":"w","initial":"A","ttl":{"after":"1h","target":"A.X"},"states":{"C":{"type":"final"},"A":{"initial":"X","on":{"go":"C"},"states":{"X":{}}}}}`: {"/ttl/target": "final"},
		// The inner and the outer of one event share a schema.
		`{"name":"w","initial":"A","states":{"C":{"type":"final"},"A":{"initial":"X","on":{"go":{"target":"C","payload_schema":{"type":"object"}}},
			"states":{"X":{"on":{"go":{"target":"C","guard":"$.context.a","payload_schema":{}}}}}}}}`: {"/states/A/states/X/on/go": "share"},
	} {
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
	// What is inherited counts.
	var within, on []string
	for n := range 250 {
		within = append(within, fmt.Sprintf(`"S%d":{"on":{"n":"S%d"}}`, n, (n+1)%250))
		on = append(on, fmt.Sprintf(`"e%d":"B"`, n))
	}
	text := `{"name":"w","initial":"A","states":{"B":{"type":"final"},"A":{"initial":"S0","on":{` + strings.Join(on, ",") + `},"states":{` + strings.Join(within, ",") + `}}}}`
	expect(t, text, faults(t, text, "", definition.Limits{}), map[string]string{"/states": "inherit"})
	// A transition that resumes counts once for each state within its target, a pattern and a timer once for each state
	// that inherits it.
	var many []string
	for n := range 201 {
		many = append(many, fmt.Sprintf(`"r%d":{"target":"A","resume":true}`, n))
	}
	resuming := func(on []string) string {
		return `{"name":"w","initial":"A","states":{"B":{"type":"final"},"P":{"on":{` + strings.Join(on, ",") + `}},"A":{"initial":"S0","on":{"go":"B","p":"P"},"after":{"1s":"B"},
			"states":{` + strings.Join(within, ",") + `}}}}`
	}
	expect(t, "200 that resume", faults(t, resuming(many[:195]), "", definition.Limits{}), nil)
	expect(t, "201 that resume", faults(t, resuming(many), "", definition.Limits{}), map[string]string{"/states": "have 51250 transitions"})
	expect(t, fsmtest.Shop, faults(t, fsmtest.Shop, "", definition.Limits{States: 7}), map[string]string{"/states": "at most 7"})
}
