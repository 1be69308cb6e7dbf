package definition_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
)

// A change is named by its kind and pointer, with a ! if it is unsafe.
func changesOf(changes []definition.Change) []string {
	list := []string{}
	for _, c := range changes {
		text := string(c.Kind) + " " + c.Pointer
		if c.Unsafe() {
			text += " !"
		}
		list = append(list, text)
	}
	return list
}

func TestDiff(t *testing.T) {
	t.Parallel()
	const guarded = `"guard": "$.payload.price == $.context.price", `
	base := strings.Join(strings.Fields(fsmtest.FlightBooking), " ")
	for _, c := range []struct {
		name     string
		from, to string // Replaced in the definition.
		want     []string
	}{
		{"nothing", "", "", []string{}},
		{"other words for the same", `"cancel": "CANCELLED" }, "after": {"10m": "EXPIRED"}`, `"cancel": [{"target": "CANCELLED"}] }, "after": {"600s": [{"target": "EXPIRED"}]}`, []string{}},
		{"a number written otherwise", `"minimum": 0`, `"minimum": 0.0e1`, []string{}},
		{"another name", `"flight-booking"`, `"flights"`, []string{"changed /name !"}},
		{"described", `"initial"`, `"description": "Flights.", "initial"`, []string{"added /description"}},
		{"initial", `"initial": "QUOTED"`, `"initial": "RESERVED"`, []string{"changed /initial"}},
		{"ttl shortened", `"30m"`, `"29m"`, []string{"changed /ttl/after"}},
		{"ttl slides", `"30m",`, `"31m", "sliding": true,`, []string{"changed /ttl/after", "changed /ttl/sliding"}},
		{"ttl slides and is shorter", `"30m",`, `"29m", "sliding": true,`, []string{"changed /ttl/after !", "changed /ttl/sliding"}},
		{"ttl to another state", `"30m", "target": "EXPIRED"`, `"30m", "target": "CANCELLED"`, []string{"changed /ttl/target !"}},
		{"ttl removed", `"ttl": {"after": "30m", "target": "EXPIRED"},`, ``, []string{"removed /ttl !"}},
		{"business key", `"require_if_match": false`, `"require_if_match": false, "business_key": "reusable"`, []string{"changed /business_key"}},
		{"unique again", `"require_if_match": false`, `"require_if_match": false, "business_key": "unique"`, []string{}},
		{"if match", `"require_if_match": false`, `"require_if_match": true`, []string{"changed /require_if_match !"}},
		{"context tightened", `"minimum": 0`, `"minimum": 1`, []string{"changed /context_schema !"}},
		{"context loosened", `"minimum": 0`, `"minimum": -1`, []string{"changed /context_schema"}},
		{"state added", `"PAID": {`, `"LOST": {"on": {"cancel": "CANCELLED"}}, "PAID": {`, []string{"added /states/LOST"}},
		{"state renamed", `PAYMENT_MISMATCH`, `MISMATCH`, []string{
			"added /states/MISMATCH", "removed /states/PAYMENT_MISMATCH !", "changed /states/RESERVED/on/pay/1/target !",
		}},
		{"final state renamed", `PAID`, `SOLD`, []string{
			"removed /states/PAID", "changed /states/PAYMENT_MISMATCH/on/pay/0/target !",
			"changed /states/RESERVED/on/pay/0/target !", "added /states/SOLD",
		}},
		{"outcome", `"outcome": "expired"`, `"outcome": "failed"`, []string{"changed /states/EXPIRED/outcome !"}},
		{"event removed", `, "cancel": "CANCELLED" }, "after": {"10m"`, ` }, "after": {"10m"`, []string{"removed /states/QUOTED/on/cancel !"}},
		{"event added", `"reserve":`, `"hold": "RESERVED", "reserve":`, []string{"added /states/QUOTED/on/hold"}},
		{"guard", guarded, `"guard": "$.payload.price >= $.context.price", `, []string{"changed /states/QUOTED/on/reserve/0/guard !"}},
		{"guard removed", guarded, ``, []string{"removed /states/QUOTED/on/reserve/0/guard !"}},
		{"guard added", `"cancel": "CANCELLED" }, "after": {"10m"`, `"cancel": {"target": "CANCELLED", "guard": "$.payload.sure"} }, "after": {"10m"`, []string{"added /states/QUOTED/on/cancel/0/guard !"}},
		{"timeout shortened", `"10m"`, `"9m"`, []string{"changed /states/QUOTED/after/9m !"}},
		{"timeout lengthened", `"10m"`, `"1h"`, []string{"changed /states/QUOTED/after/1h"}},
		{"timeout added", `{"15m": "EXPIRED"}`, `{"15m": "EXPIRED", "14m": {"target": "CANCELLED", "guard": "$.context.x"}}`, []string{"added /states/RESERVED/after/14m !"}},
		{"timeout removed", `, "after": {"10m": "EXPIRED"} }`, ` }`, []string{"removed /states/QUOTED/after/10m !"}},
		{"timeout shortened and elsewhere", `"10m": "EXPIRED"`, `"9m": "CANCELLED"`, []string{
			"changed /states/QUOTED/after/9m !", "changed /states/QUOTED/after/9m/0/target !",
		}},
		{"candidate before", `"pay": [`, `"pay": [{"guard": "$.payload.free", "target": "CANCELLED"},`, []string{"added /states/RESERVED/on/pay/0 !"}},
		{"candidate removed", `, {"target": "PAYMENT_MISMATCH", "assign": {"offered": "$.payload.amount"}}`, ``, []string{"removed /states/RESERVED/on/pay/1 !"}},
		{"assign", `"offered": "$.payload.amount"`, `"offer": "$.payload.amount"`, []string{
			"added /states/RESERVED/on/pay/1/assign/offer !", "removed /states/RESERVED/on/pay/1/assign/offered !",
		}},
		{"assigned otherwise", `"offered": "$.payload.amount"`, `"offered": "$.payload.price"`, []string{"changed /states/RESERVED/on/pay/1/assign/offered !"}},
		{"merged", `{"offered": "$.payload.amount"}`, `"*"`, []string{
			"changed /states/RESERVED/on/pay/1/assign !", "removed /states/RESERVED/on/pay/1/assign/offered !",
		}},
		{"payload schema", guarded, guarded + `"payload_schema": {"required": ["seat"]}, `, []string{"added /states/QUOTED/on/reserve/0/payload_schema !"}},
		{"payload schema that takes all", guarded, guarded + `"payload_schema": {},`, []string{"added /states/QUOTED/on/reserve/0/payload_schema"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			changed := base
			if c.from != "" {
				changed = strings.ReplaceAll(base, c.from, c.to)
				if changed == base {
					t.Fatalf("%q is not in %s", c.from, base)
				}
			}
			a, b := model(t, base), model(t, changed)
			if diff := cmp.Diff(c.want, changesOf(definition.Diff(a, b))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			back := definition.Diff(b, a)
			if len(back) != len(c.want) {
				t.Errorf("the way back has other changes: %v", changesOf(back))
			}
			for _, change := range back {
				if change.Detail == "" || change.Kind == "" {
					t.Errorf("%+v does not say what it is", change)
				}
			}
		})
	}
}

// model reads a definition whatever its faults.
func model(t testing.TB, text string) *definition.Definition {
	t.Helper()
	d, err := lifecycle.Workflow{Definition: json.RawMessage(text)}.Model()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What is added to a definition some day must not go unseen.
func TestDiffSeesEverything(t *testing.T) {
	t.Parallel()
	full := func() *definition.Definition {
		return &definition.Definition{
			Name: "a", Description: "a", Initial: "A", TTL: &definition.TTL{After: 1, Target: "A"}, ContextSchema: json.RawMessage(`true`),
			States: map[string]definition.State{
				"A": {
					Description: "a",
					On:          map[string][]definition.Transition{"e": {{Target: "A", Guard: "a", Assign: definition.Assign{Paths: map[string]string{"a": "a"}}, PayloadSchema: json.RawMessage(`true`), Description: "a"}}},
					After:       map[time.Duration][]definition.Transition{1: {{Target: "A"}}},
					Entry:       definition.Assign{Paths: map[string]string{"a": "a"}},
					Exit:        definition.Assign{Paths: map[string]string{"a": "a"}},
					Always:      []definition.Transition{{Target: "A", Guard: "a"}},
					Initial:     "AA",
					States:      map[string]definition.State{"AA": {}},
				},
				"B": {Outcome: definition.Completed},
			},
		}
	}
	if changes := definition.Diff(full(), full()); len(changes) > 0 {
		t.Fatalf("a definition differs from itself: %v", changes)
	}
	// Each place has a way to its struct and back into the definition.
	places := map[string]func(d *definition.Definition, change func(v reflect.Value)){
		"Definition": func(d *definition.Definition, change func(reflect.Value)) { change(reflect.ValueOf(d).Elem()) },
		"TTL":        func(d *definition.Definition, change func(reflect.Value)) { change(reflect.ValueOf(d.TTL).Elem()) },
		"State": func(d *definition.Definition, change func(reflect.Value)) {
			s := d.States["A"]
			change(reflect.ValueOf(&s).Elem())
			d.States["A"] = s
		},
		"Assign": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(&d.States["A"].On["e"][0].Assign).Elem())
		},
		"Transition": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(&d.States["A"].On["e"][0]).Elem())
		},
	}
	for place, into := range places {
		var names []string
		into(full(), func(v reflect.Value) {
			for i := range v.NumField() {
				names = append(names, v.Type().Field(i).Name)
			}
		})
		for i, name := range names {
			if place == "Definition" && name == "Version" {
				continue // It is no part of the content.
			}
			d := full()
			into(d, func(v reflect.Value) {
				switch f := v.Field(i); f.Kind() {
				case reflect.String:
					f.SetString("completed")
				case reflect.Bool:
					f.SetBool(!f.Bool())
				case reflect.Int, reflect.Int64:
					f.SetInt(f.Int() + 1)
				case reflect.Pointer, reflect.Map:
					f.SetZero()
				case reflect.Slice:
					if f.Type() == reflect.TypeFor[json.RawMessage]() {
						f.SetBytes([]byte(`false`))
					} else {
						f.SetZero()
					}
				case reflect.Struct:
					f.SetZero()
				default:
					t.Fatalf("how is %s.%s changed?", place, name)
				}
			})
			if len(definition.Diff(full(), d)) == 0 || len(definition.Diff(d, full())) == 0 {
				t.Errorf("a change of %s.%s is not seen", place, name)
			}
		}
	}
}

// Where the payload schema of an event is given is content too.
func TestDiffOfSchemaPlaces(t *testing.T) {
	t.Parallel()
	text := func(first, second string) string {
		return fmt.Sprintf(`{"name": "a", "initial": "A", "states": {"B": {"type": "final"},
			"A": {"on": {"e": [{"target": "B", "guard": "$.a"%s}, {"target": "B"%s}]}}}}`, first, second)
	}
	const schema = `, "payload_schema": {"type": "object"}`
	changes := definition.Diff(parse(t, text(schema, "")), parse(t, text("", schema)))
	if len(changes) == 0 || changes[0].Unsafe() {
		t.Errorf("got %+v", changes)
	}
}

func TestLoosenedSchemas(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, to string
		safe     bool
	}{
		{`{"type": "object"}`, `true`, true},
		{`{"type": "object"}`, `{}`, true},
		{`{}`, `{"type": "object"}`, false},
		{`false`, `{"type": "object"}`, true},
		{`{"title": "a"}`, `{"title": "b", "description": "c"}`, true},
		{`{"required": ["a", "b"]}`, `{"required": ["b"]}`, true},
		{`{"required": ["a"]}`, `{"required": ["a", "b"]}`, false},
		{`{"type": "string"}`, `{"type": ["null", "string"]}`, true},
		{`{"type": ["null", "string"]}`, `{"type": "string"}`, false},
		{`{"enum": [1, "a"]}`, `{"enum": ["a", 1.0, 2]}`, true},
		{`{"enum": [1, 2]}`, `{"enum": [1]}`, false},
		{`{"maxLength": 5}`, `{"maxLength": 6}`, true},
		{`{"maxLength": 6}`, `{"maxLength": 5}`, false},
		{`{"properties": {"a": {"minimum": 2}}}`, `{"properties": {"a": {"minimum": 1}}}`, true},
		{`{"properties": {"a": {"minimum": 1}}}`, `{"properties": {"a": {"minimum": 2}}}`, false},
		{`{"properties": {"a": {}}}`, `{"properties": {"a": {}, "b": {"type": "string"}}}`, false},
		{`{"properties": {"a": {}, "b": {"type": "string"}}}`, `{"properties": {"a": {}}}`, true},
		{`{"properties": {"a": {}, "b": {}}, "additionalProperties": false}`, `{"properties": {"a": {}}, "additionalProperties": false}`, false},
		{`{"properties": {"a": {}}, "additionalProperties": false}`, `{"properties": {"a": {}, "b": {}}, "additionalProperties": false}`, true},
		{`{"properties": {"a": {}}, "additionalProperties": false}`, `{"properties": {"a": {}}}`, true},
		{`{"properties": {"a": {}}, "patternProperties": {"b": {"type": "string"}}}`, `{"properties": {"a": {}, "b": {}}, "patternProperties": {"b": {"type": "string"}}}`, false},
		{`{"properties": {"a": {}}, "additionalProperties": {"type": "string"}}`, `{"additionalProperties": {"type": "string"}}`, false},
		{`{"not": {"required": ["a", "b"]}}`, `{"not": {"required": ["a"]}}`, false},
		{`{"contains": {}, "minContains": 0}`, `{"contains": {}}`, false},
	} {
		a, b := parse(t, fsmtest.FlightBooking), parse(t, fsmtest.FlightBooking)
		a.ContextSchema, b.ContextSchema = json.RawMessage(c.from), json.RawMessage(c.to)
		changes := definition.Diff(a, b)
		if len(changes) != 1 || changes[0].Unsafe() == c.safe {
			t.Errorf("%s to %s: safe is not %v in %+v", c.from, c.to, c.safe, changes)
		}
	}
}
