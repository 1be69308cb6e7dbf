package definition_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
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
		{"search attributes", `"require_if_match": false`, `"search": {"price": "$.context.price"}`, []string{"added /search/price"}},
		{"cancel added", `"require_if_match": false`, `"cancel": "CANCELLED"`, []string{"added /cancel"}},
		{"state protected", `"PAID": {`, `"PAID": {"protected": true, `, []string{"added /states/PAID/protected !"}},
		{"stuck after", `"PAYMENT_MISMATCH": {`, `"PAYMENT_MISMATCH": {"stuck_after": "1d", `, []string{"added /states/PAYMENT_MISMATCH/stuck_after"}},
		{"on stuck", `"QUOTED": {`, `"QUOTED": {"on_stuck": {"event": "cancel"}, `, []string{"added /states/QUOTED/on_stuck !"}},
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

// What is new in the language, and what its changes mean for live instances.
func TestDiffOfProcesses(t *testing.T) {
	t.Parallel()
	base := strings.Join(strings.Fields(support), " ")
	const open = "/states/OPEN"
	for _, c := range []struct {
		from, to string // Replaced in the definition.
		want     []string
		words    string // In the risk or the detail of the last change.
	}{
		{`"name": "support",`, `"name": "support", "timezone": "Europe/Berlin",`, []string{"changed /timezone !"}, "other times"},
		{`"name": "support",`, `"name": "support", "context_default": {"level": 1, "n": 0},`, []string{"added /context_default/level", "added /context_default/n"}, "new instances"},
		{`"initial": "OPEN"`, `"initial": {"target": "OPEN", "assign": {"level": 1}}`, []string{"added /initial/assign/level"}, "creation sets level"},
		{`"invariant": {"absent": "$.context.broken"}, `, ``, []string{"removed /invariant !"}, "allowed"},
		{`{"absent": "$.context.broken"}`, `{"absent": "$.context.lost"}`, []string{"changed /invariant !"}, "cannot move"},
		{`"PAUSED": {`, `"PAUSED": {"invariant": "$.context.level == 1", `, []string{"added /states/PAUSED/invariant !"}, "cannot move"},
		{`"initial": "TRIAGE"`, `"initial": {"target": "TRIAGE", "assign": {"n": 1}}`, []string{"added " + open + "/initial/assign/n !"}, "beginning OPEN"},
		{`"4h"`, `"3h"`, []string{"changed " + open + "/after/0 !"}, "has been in OPEN for longer"},
		{`"4h"`, `"5h"`, []string{"changed " + open + "/after/0"}, "comes after 5h, no longer after 4h"},
		{`"$.context.due_at"`, `"$.context.due"`, []string{"changed " + open + "/after/1 !"}, "counted from entering OPEN"},
		{`, {"at": "$.context.due_at", "assign": {"late": true}}`, ``, []string{"removed " + open + "/after/1 !"}, "stays in OPEN"},
		{`"late": true`, `"late": false`, []string{"changed " + open + "/after/1/assign/late !"}, "due_at"},
		{`{"in": "4h", "target": "CLOSED", "description": "Nobody answered."}, {"at": "$.context.due_at", "assign": {"late": true}}`, `{"at": "$.context.due_at", "assign": {"late": true}}, {"in": "4h", "target": "CLOSED", "description": "Nobody answered."}`, []string{"changed " + open + "/after !"}, "another order"},
		{`"in": "1d"`, `"in": "2d"`, []string{"changed " + open + "/every/0 !"}, "counted from entering OPEN"},
		{`"every": {"in": "1d", "assign": {"reminders": "$.context.reminders + 1"}},`, ``, []string{"removed " + open + "/every/0 !"}, "no more"},
		{`"*": {`, `"other.*": {`, []string{"removed " + open + "/on/* !", "added " + open + "/on/other.* !"}, "what * took"},
		{`"ask": "PAUSED",`, `"ask": "PAUSED", "note.add": "PAUSED",`, []string{"added " + open + "/on/note.add !"}, "what note.* took"},
		{`"on": {"assign": "WORK"}`, `"on": {"assign": "WORK", "ask": "WORK"}`, []string{"added " + open + "/states/TRIAGE/on/ask !"}, "what ask took"},
		{`"on": {"assign": "WORK"}`, `"on": {"assign": "WORK", "halt": "WORK"}`, []string{"added " + open + "/states/TRIAGE/on/halt !"}, "what * took"},
		{`"resume": "timers"`, `"resume": true`, []string{"changed /states/PAUSED/on/answer/0/resume !"}, "no longer goes on where its target was left, with"},
		{`, "resume": true`, ``, []string{"changed /states/PAUSED/on/reopen/0/resume !"}, "anew"},
		{`{"rearm": true}`, `{}`, []string{"changed " + open + "/states/WORK/on/start/0/rearm !"}, "ends the stay"},
		{`{"rearm": true}`, `"TRIAGE"`, []string{"changed " + open + "/states/WORK/on/start/0/target !", "changed " + open + "/states/WORK/on/start/0/rearm !"}, "timer"},
		{`"assign": "WORK"`, `"assign": {"target": "WORK"}, "skip": "WORK2"}}, "WORK2": {"on": {"back": "WORK"`, []string{"added " + open + "/states/TRIAGE/on/skip !", "added " + open + "/states/WORK2"}, "WORK2"},
		{`"in": ["$.payload.kind", ["a", "b"]]`, `"in": ["$.payload.kind", ["a"]]`, []string{"changed " + open + "/on/note.*/0/guard !"}, `{"in":["$.payload.kind",["a"]]}`},
		{`["$.context.notes", "$.payload.text"]`, `["$.context.notes", "$.payload.note"]`, []string{"changed " + open + "/on/note.*/0/assign/notes !"}, `{"$append":["$.context.notes","$.payload.note"]}`},
		{`{"notes": `, `{"*": ["kind"], "notes": `, []string{"changed " + open + "/on/note.*/0/assign !"}, "the payload's kind"},
		{`"done": [{"guard": {"equal": ["$.context.level", 2]}, "target": "PAUSED"}, "CLOSED"]`, `"done": "CLOSED"`, []string{"removed " + open + "/done/0 !"}, "refused, or taken by another"},
		{`"description": "Somebody works on it."`, `"description": "It is worked on.", "x-allow": ["quoted-text"]`, []string{"changed " + open + "/description", "changed " + open + "/x-allow"}, "silenced"},
	} {
		changed := strings.Replace(base, c.from, c.to, 1)
		if changed == base {
			t.Fatalf("%q is not in %s", c.from, base)
		}
		a, b := parse(t, base), parse(t, changed)
		changes := definition.Diff(a, b)
		if diff := cmp.Diff(c.want, changesOf(changes)); diff != "" {
			t.Errorf("%q to %q: -want +got:\n%s", c.from, c.to, diff)
			continue
		}
		last := changes[len(changes)-1]
		if !strings.Contains(last.Detail+"; "+last.Risk, c.words) {
			t.Errorf("%q does not say %q", last.Detail+"; "+last.Risk, c.words)
		}
		if back := definition.Diff(b, a); len(back) == 0 {
			t.Errorf("%q to %q: the way back has no changes", c.from, c.to)
		}
	}
	// A state that is gone may be the one that an instance would go on in.
	gone := strings.Replace(base, `"on": {"assign": "WORK"}`, `"on": {"assign": "SOLVED"}`, 1)
	from := strings.Index(gone, `"WORK": {`)
	to := strings.Index(gone, `"SOLVED": {`)
	changes := definition.Diff(parse(t, base), parse(t, gone[:from]+gone[to:]))
	i := slices.IndexFunc(changes, func(c definition.Change) bool { return c.Pointer == open+"/states/WORK" })
	if i < 0 || !strings.Contains(changes[i].Risk, "goes on in the initial state instead") {
		t.Errorf("got %+v", changes)
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
	assign := func() definition.Assign {
		return definition.Assign{Values: map[string]definition.Value{"a": "a"}, Payload: true, Members: []string{"a"}}
	}
	request := func() definition.Request {
		return definition.Request{
			Connection: "a", Method: "GET", Path: "/", Query: map[string]definition.Value{"a": "a"}, Headers: map[string]definition.Value{"a": "a"}, Body: "a",
		}
	}
	task := func(all bool) *definition.Task {
		call := request()
		t := &definition.Task{
			Description: "a", HTTP: &call, Work: &definition.Work{Topic: "a", Lease: time.Second, Input: "$.context"},
			Idempotency: &definition.Idempotency{Header: "a", Window: time.Second}, Timeout: time.Second, Deadline: time.Second,
			Retry: &definition.Retry{Max: 1, Base: time.Second, Cap: time.Second}, Success: "a",
			Reconcile: &definition.Reconcile{HTTP: request(), Every: []time.Duration{1}, Done: "a", Failed: "a", Absent: "a", Result: "a", AbsentAfter: time.Second},
		}
		if all {
			other := *t
			to := []definition.Transition{{Target: "A"}}
			t.Compensate, t.Done, t.Error, t.Unknown, t.Late = &other, to, to, to, "e"
		}
		return t
	}
	full := func() *definition.Definition {
		return &definition.Definition{
			Name: "a", Description: "a", Initial: "A", TTL: &definition.TTL{After: 1, Target: "A"}, ContextSchema: json.RawMessage(`true`),
			ContextDefault: map[string]any{"a": "a"}, Search: map[string]definition.Attribute{"a": {Path: "a", Type: "a"}}, InitialAssign: assign(),
			States: map[string]definition.State{
				"A": {
					Description:   "a",
					On:            map[string][]definition.Transition{"e": {{Target: "A", Guard: "a", Assign: assign(), PayloadSchema: json.RawMessage(`true`), Description: "a", Compensate: task(false)}}},
					After:         []definition.Timer{{Delay: definition.Duration{Exact: 1}, Transition: definition.Transition{Target: "A"}}},
					Every:         []definition.Timer{{In: "$.context.a"}, {At: "$.context.a"}},
					Entry:         assign(),
					Exit:          assign(),
					Always:        []definition.Transition{{Target: "A", Guard: "a"}},
					Done:          []definition.Transition{{Target: "A"}},
					Initial:       "AA",
					InitialAssign: assign(),
					Invoke:        map[string]definition.Task{"t": *task(true)},
					Compensate:    &definition.Undoing{},
					OnStuck:       &definition.Healing{Event: "e", Reconcile: "t", Retry: "t", Max: 1},
					Error:         []definition.Transition{{Target: "A"}},
					States:        map[string]definition.State{"AA": {}},
				},
				"B": {Final: true, Outcome: definition.Completed},
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
		"Timer": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(&d.States["A"].Every[0]).Elem())
		},
		"Duration": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(&d.States["A"].After[0].Delay).Elem())
		},
		"Assign": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(&d.States["A"].On["e"][0].Assign).Elem())
		},
		"Task": func(d *definition.Definition, change func(reflect.Value)) {
			t := d.States["A"].Invoke["t"]
			change(reflect.ValueOf(&t).Elem())
			d.States["A"].Invoke["t"] = t
		},
		"Request": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].Invoke["t"].HTTP).Elem())
		},
		"Work": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].Invoke["t"].Work).Elem())
		},
		"Idempotency": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].Invoke["t"].Idempotency).Elem())
		},
		"Retry": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].Invoke["t"].Retry).Elem())
		},
		"Reconcile": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].Invoke["t"].Reconcile).Elem())
		},
		"Compensation": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].On["e"][0].Compensate).Elem())
		},
		"Undoing": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].Compensate).Elem())
		},
		"Healing": func(d *definition.Definition, change func(reflect.Value)) {
			change(reflect.ValueOf(d.States["A"].OnStuck).Elem())
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
			if place == "Compensation" && slices.Contains([]string{"Done", "Error", "Unknown", "Late", "Compensate"}, name) {
				continue // A compensation has none.
			}
			if place == "Definition" && (name == "Version" || name == "Schemas") || place == "Timer" && name == "Delay" {
				// The version is no part of the content, copies of schemas are seen where schemas refer to them, and a delay is
				// a place of its own.
				continue
			}
			d := full()
			into(d, func(v reflect.Value) {
				switch f := v.Field(i); f.Kind() {
				case reflect.String:
					f.SetString("completed")
				case reflect.Bool:
					f.SetBool(!f.Bool())
				case reflect.Int, reflect.Int64:
					f.SetInt(f.Int() + int64(time.Millisecond))
				case reflect.Pointer, reflect.Map:
					f.SetZero()
				case reflect.Interface:
					if f.IsNil() {
						f.Set(reflect.ValueOf("$.context.other").Convert(f.Type()))
					} else {
						f.SetZero()
					}
				case reflect.Slice:
					switch {
					case f.Type() == reflect.TypeFor[json.RawMessage]():
						f.SetBytes([]byte(`false`))
					case f.Type() == reflect.TypeFor[[]string]() && f.Len() == 0:
						f.Set(reflect.ValueOf([]string{"other"}))
					default:
						f.SetZero()
					}
				case reflect.Struct:
					if f.IsZero() {
						f.FieldByName("Description").SetString("other")
					} else {
						f.SetZero()
					}
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
			"A": {"on": {"e": [{"target": "B", "guard": "$.context.a"%s}, {"target": "B"%s}]}}}}`, first, second)
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
