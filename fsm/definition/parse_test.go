package definition_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := definition.Parse([]byte(fsmtest.FlightBooking), "", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	cancel := []definition.Transition{{Target: "CANCELLED"}}
	expire := func(delay time.Duration) []definition.Timer {
		return []definition.Timer{{Delay: definition.Duration{Exact: delay}, Transition: definition.Transition{Target: "EXPIRED"}}}
	}
	want := &definition.Definition{
		Name: "flight-booking", Initial: "QUOTED", TTL: &definition.TTL{After: 30 * time.Minute, Target: "EXPIRED"},
		ContextSchema: json.RawMessage(`{"properties":{"price":{"minimum":0,"type":"integer"}},"required":["flight_id","price"],"type":"object"}`),
		States: map[string]definition.State{
			"QUOTED": {
				On: map[string][]definition.Transition{
					"reserve": {{
						Target: "RESERVED", Guard: "$.payload.price == $.context.price",
						Assign: definition.Assign{Values: map[string]definition.Value{"seat": "$.payload.seat", "reserved_at": "$.now"}},
					}},
					"cancel": cancel,
				},
				After: expire(10 * time.Minute),
			},
			"RESERVED": {
				On: map[string][]definition.Transition{
					"pay": {
						{
							Target: "PAID", Guard: "$.payload.amount == $.context.price",
							Assign: definition.Assign{Values: map[string]definition.Value{"payment_ref": "$.payload.payment_ref", "paid_at": "$.now"}},
						},
						{Target: "PAYMENT_MISMATCH", Assign: definition.Assign{Values: map[string]definition.Value{"offered": "$.payload.amount"}}},
					},
					"cancel": cancel,
				},
				After: expire(15 * time.Minute),
			},
			"PAYMENT_MISMATCH": {On: map[string][]definition.Transition{
				"pay": {{
					Target: "PAID", Guard: "$.payload.amount == $.context.price",
					Assign: definition.Assign{Values: map[string]definition.Value{"payment_ref": "$.payload.payment_ref"}},
				}},
				"cancel": cancel,
			}},
			"PAID":      {Final: true, Outcome: definition.Completed},
			"CANCELLED": {Final: true, Outcome: definition.Cancelled},
			"EXPIRED":   {Final: true, Outcome: definition.Expired},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// canonical parses and writes a definition, and fails unless doing that again changes
// nothing.
func canonical(t *testing.T, text string) string {
	t.Helper()
	d, err := definition.Parse([]byte(text), "", definition.Limits{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	first, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	again, err := definition.Parse(first, "", definition.Limits{})
	if err != nil {
		t.Fatalf("canonical: %v\n%s", err, first)
	}
	second, err := json.Marshal(again)
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) {
		t.Fatalf("the canonical form is no fixed point:\n%s\n%s", first, second)
	}
	return string(first)
}

// packing has two tasks, of which one can be reconciled.
const packing = `"invoke":{"pack":{"work":{"topic":"t"},"deadline":"1h","done":"B","error":"B","unknown":"B"},
	"charge":{"http":{"connection":"c","method":"POST","path":"/"},"deadline":"1h","done":"B","error":"B","unknown":"B",
		"reconcile":{"http":{"method":"GET","path":"/"},"done":"$.body.a == 1"}}}`

// wrap makes a definition of what there is in state A.
func wrap(a string) string {
	return `{"name":"w","initial":"A","states":{"A":` + a + `,"B":{"type":"final"}}}`
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	canonical(t, fsmtest.FlightBooking)
	canonical(t, fsmtest.Counter)
	for short, long := range map[string]string{
		wrap(`{"on":{"go":"B"}}`):            wrap(`{"on":{"go":[{"target":"B"}]}}`),
		wrap(`{"on":{"go":{"target":"B"}}}`): wrap(`{"on":{"go":["B"]}}`),
		wrap(`{"after":{"90s":"B"}}`):        wrap(`{"after":{"1m30s":[{"target":"B","assign":{}}]},"on":{}}`),
		wrap(`{"on":{"go":{"target":"B","assign":{"b":"$.now","a":"$.payload"}}}}`):                      wrap(`{"on":{"go":[{"assign":{"a":"$.payload","b":"$.now"},"target":"B"}]}}`),
		wrap(`{"on":{"go":"B"}}`) + " ":                                                                  strings.Replace(wrap(`{"on":{"go":"B"}}`), `"name"`, `"version":7,"require_if_match":false,"name"`, 1),
		wrap(`{"on":{"go":{"target":"B","payload_schema":{"a":{},"b":1}}}}`):                             wrap(`{"on":{"go":{"target":"B","payload_schema":{ "b": 1, "a": {} }}}}`),
		wrap(`{"stuck_after":"90m","on":{"go":"B"}}`):                                                    wrap(`{"on":{"go":"B"},"stuck_after":"1h30m"}`),
		wrap(`{"protected":false,"on":{"go":"B"}}`):                                                      wrap(`{"on":{"go":"B"}}`),
		wrap(`{"on_stuck":{"event":"go"},"on":{"go":"B"}}`):                                              wrap(`{"on":{"go":"B"},"on_stuck":{"max":3,"event":"go"}}`),
		`{"name":"w","initial":"B","states":{"B":{"type":"final"}}}`:                                     `{"name":"w","initial":"B","states":{"B":{"type":"final","outcome":"completed"}}}`,
		wrap(`{"on":{"go":{"target":"B","description":"\u0041","guard":"$.context.a<1&&$.context.b"}}}`): wrap(`{"on":{"go":{"target":"B","description":"A","guard":"$.context.a<1&&$.context.b"}}}`),
	} {
		if a, b := canonical(t, short), canonical(t, long); a != b {
			t.Errorf("not the same:\n%s\n%s", a, b)
		}
	}
	for _, text := range []string{
		wrap(`{"on":{"go":{"target":"B","assign":{"*":true,"trusted":true}}}}`),
		wrap(`{"description":"d","on":{"go":{"target":"B","payload_schema":{}}}}`),
		`{"name":"w_x-1","description":"d","initial":"A","require_if_match":true,"context_schema":{"not":{}},"ttl":{"after":"1ms","target":"B"},
			"states":{"A":{"after":{"3650d":"B","1ms":["B"]}},"B":{"type":"final","outcome":"failed"}}}`,
		// Only the lifetime leads to C.
		`{"name":"w","initial":"A","ttl":{"after":"1h","target":"C"},"states":{"A":{"on":{"go":"B"}},"B":{"type":"final"},"C":{"type":"final"}}}`,
		// Only a cancel leads to C.
		`{"name":"w","initial":"A","cancel":"C","states":{"A":{"on":{"go":"B"},"protected":true},"B":{"type":"final","protected":true},
			"C":{"initial":"D","states":{"D":{"on":{"go":"B"}}}}}}`,
		// Digits are kept.
		wrap(`{"on":{"go":{"target":"B","payload_schema":{"const":9007199254740993.10}}}}`),
	} {
		c := canonical(t, text)
		if strings.Contains(text, "90071992") && !strings.Contains(c, "9007199254740993.10") {
			t.Errorf("digits are lost: %s", c)
		}
	}
}

func TestParseDefaultsToTheGivenName(t *testing.T) {
	t.Parallel()
	d, err := definition.Parse([]byte(`{"initial":"B","version":3,"states":{"B":{"type":"final"}}}`), "given", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != "given" || d.Version != 3 {
		t.Errorf("got %s version %d", d.Name, d.Version)
	}
}

// refusal returns err as an Error with the reason, which it must have.
func refusal(t testing.TB, err, reason error) *definition.Error {
	t.Helper()
	e, ok := errors.AsType[*definition.Error](err)
	if !ok || !errors.Is(err, reason) || e.Message == "" || e.Error() == "" {
		t.Fatalf("got %v, want: %v", err, reason)
	}
	return e
}

// faults returns what is wrong with a definition, by pointer.
func faults(t *testing.T, text, name string, limits definition.Limits) map[string]string {
	t.Helper()
	_, err := definition.Parse([]byte(text), name, limits)
	if err == nil {
		return nil
	}
	e := refusal(t, err, definition.ErrInvalid)
	if !slices.IsSortedFunc(e.Faults, func(a, b definition.Fault) int { return strings.Compare(a.Pointer, b.Pointer) }) {
		t.Errorf("faults are not in order:\n%s", e)
	}
	found := map[string]string{}
	for _, f := range e.Faults {
		if f.Detail == "" || found[f.Pointer] != "" && found[f.Pointer] == f.Detail {
			t.Errorf("a fault twice, or without a word: %v", f)
		}
		found[f.Pointer] += f.Detail
	}
	return found
}

// expect compares faults with what each should mention.
func expect(t *testing.T, text string, got, want map[string]string) {
	t.Helper()
	if a, b := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(a, b) {
		t.Errorf("faults at %q, want them at %q\n%v\nin %s", a, b, got, text)
		return
	}
	for at, words := range want {
		if !strings.Contains(got[at], words) {
			t.Errorf("at %q: %q does not say %q", at, got[at], words)
		}
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	top := func(members string) string {
		return `{"name":"w","initial":"A","states":{"A":{"on":{"go":"B"}},"B":{"type":"final"}},` + members + `}`
	}
	transition := func(text string) string { return wrap(`{"on":{"go":` + text + `}}`) }
	for text, want := range map[string]map[string]string{
		`{}`:                                     {"/name": "string", "/initial": "string", "/states": "object"},
		`{"name":"w","initial":"A","states":{}}`: {"/states": "empty", "/initial": `no state "A"`},
		`{"name":1,"initial":null,"states":[]}`:  {"/name": "string", "/initial": "string", "/states": "object"},

		// Names.
		`{"name":"W","initial":"B","states":{"B":{"type":"final"}}}`:                                                             {"/name": "lower-case"},
		`{"name":"w--x","initial":"B","states":{"B":{"type":"final"}}}`:                                                          {"/name": "lower-case"},
		`{"name":"w-","initial":"B","states":{"B":{"type":"final"}}}`:                                                            {"/name": "lower-case"},
		`{"name":"1w","initial":"B","states":{"B":{"type":"final"}}}`:                                                            {"/name": "lower-case"},
		`{"name":"` + strings.Repeat("w", 43) + `","initial":"B","states":{"B":{"type":"final"}}}`:                               {"/name": "42"},
		`{"name":"w_` + strings.Repeat("w", 39) + `_w","initial":"B","states":{"B":{"type":"final"}}}`:                           {"/name": "counts twice"},
		`{"name":"w","initial":"a~b/c","states":{"a~b/c":{"type":"final"}}}`:                                                     {"/states/a~0b~1c": "letter"},
		`{"name":"w","initial":"1","states":{"1":{"type":"final"}}}`:                                                             {"/states/1": "letter"},
		`{"name":"w","initial":"é","states":{"é":{"type":"final"}}}`:                                                             {"/states/é": "letter"},
		`{"name":"w","initial":"` + strings.Repeat("A", 65) + `","states":{"` + strings.Repeat("A", 65) + `":{"type":"final"}}}`: {"/states/" + strings.Repeat("A", 65): "letter"},
		wrap(`{"on":{"after:1s":"B"}}`):                                                                                          {"/states/A/on/after:1s": "letter"},
		wrap(`{"on":{"~/":"B"}}`):                                                                                                {"/states/A/on/~0~1": "letter"},

		// Versions.
		top(`"version":0`):          {"/version": "from 1"},
		top(`"version":-1`):         {"/version": "from 1"},
		top(`"version":1.0`):        {"/version": "from 1"},
		top(`"version":1e0`):        {"/version": "from 1"},
		top(`"version":2147483648`): {"/version": "from 1"},
		top(`"version":"1"`):        {"/version": "from 1"},
		top(`"version":null`):       {"/version": "from 1"},

		// Wrong types and unknown members, at every level.
		top(`"description":null`):                                   {"/description": "is missing or null: it must be a string"},
		`{"name":"w","initial":"A"}`:                                {"/states": "is missing or null: it must be an object", "/initial": "no state"},
		top(`"description":""`):                                     {"/description": "not empty"},
		top(`"require_if_match":"yes"`):                             {"/require_if_match": "true or false"},
		top(`"search":[]`):                                          {"/search": "object"},
		top(`"search":{"a-b":"$.context.a"}`):                       {"/search/a-b": "underscores"},
		top(`"search":{"a":"$.payload.a"}`):                         {"/search/a": "members of the context"},
		top(`"search":{"a":"$.context"}`):                           {"/search/a": "members of the context"},
		top(`"search":{"a":"$.context.a[*]"}`):                      {"/search/a": "members of the context"},
		top(`"search":{"a":1}`):                                     {"/search/a": "members of the context"},
		top(`"search":{"a":{"type":"text"}}`):                       {"/search/a/path": "members of the context"},
		top(`"search":{"a":{"path":"$.context.a","type":"numbr"}}`): {"/search/a/type": `did you mean number`},
		top(`"search":{"a":{"path":"$.context.a","of":1}}`):         {"/search/a/of": "not a member"},
		top(`"search":{` + attributes(21) + `}`):                    {"/search": "at most 20"},
		top(`"cancel":"X"`):                                         {"/cancel": `no state "X"`},
		top(`"cancel":true`):                                        {"/cancel": "string"},
		wrap(`{"protected":"yes","on":{"go":"B"}}`):                 {"/states/A/protected": "true or false"},
		wrap(`{"stuck_after":"1x","on":{"go":"B"}}`):                {"/states/A/stuck_after": "duration"},
		wrap(`{"stuck_after":3600,"on":{"go":"B"}}`):                {"/states/A/stuck_after": "string"},
		wrap(`{"initial":"X","stuck_after":"1h","on":{"go":"B"},"states":{"X":{"on":{"x":"X"}}}}`): {"/states/A/stuck_after": "without states within"},
		`{"name":"w","initial":"B","states":{"B":{"type":"final","stuck_after":"1h"}}}`:            {"/states/B/stuck_after": "final state"},

		// What is done about stuck instances.
		wrap(`{"on_stuck":{"event":"go"},"on":{"go":"B"}}`):                                                                                          nil,
		wrap(`{"on_stuck":{"event":"go","max":100},"on":{"go":"B"}}`):                                                                                nil,
		wrap(`{"on_stuck":{"event":"pay.again"},"on":{"pay.*":"B"}}`):                                                                                nil,
		wrap(`{"on_stuck":null,"on":{"go":"B"}}`):                                                                                                    {"/states/A/on_stuck": "object"},
		wrap(`{"on_stuck":"go","on":{"go":"B"}}`):                                                                                                    {"/states/A/on_stuck": "object"},
		wrap(`{"on_stuck":{},"on":{"go":"B"}}`):                                                                                                      {"/states/A/on_stuck": "one of event, reconcile and retry"},
		wrap(`{"on_stuck":{"max":2},"on":{"go":"B"}}`):                                                                                               {"/states/A/on_stuck": "one of event, reconcile and retry"},
		wrap(`{"on_stuck":{"event":"go","retry":"go"},"on":{"go":"B"}}`):                                                                             {"/states/A/on_stuck": "one of event, reconcile and retry"},
		wrap(`{"on_stuck":{"evnet":"go"},"on":{"go":"B"}}`):                                                                                          {"/states/A/on_stuck": "one of event", "/states/A/on_stuck/evnet": "did you mean event?"},
		wrap(`{"on_stuck":{"event":7},"on":{"go":"B"}}`):                                                                                             {"/states/A/on_stuck/event": "string"},
		wrap(`{"on_stuck":{"event":""},"on":{"go":"B"}}`):                                                                                            {"/states/A/on_stuck/event": "not empty"},
		wrap(`{"on_stuck":{"event":"nudgee"},"on":{"go":"B","nudge":"B"}}`):                                                                          {"/states/A/on_stuck/event": `no state accepts "nudgee" (did you mean nudge?)`},
		wrap(`{"on_stuck":{"event":"pay.*"},"on":{"pay.*":"B"}}`):                                                                                    {"/states/A/on_stuck/event": "one event"},
		wrap(`{"on_stuck":{"event":"after:1h"},"after":{"1h":"B"}}`):                                                                                 {"/states/A/on_stuck/event": "one event"},
		wrap(`{"on_stuck":{"event":"go","max":0},"on":{"go":"B"}}`):                                                                                  {"/states/A/on_stuck/max": "from 1 to 100"},
		wrap(`{"on_stuck":{"event":"go","max":101},"on":{"go":"B"}}`):                                                                                {"/states/A/on_stuck/max": "from 1 to 100"},
		wrap(`{"on_stuck":{"event":"go","max":1.5},"on":{"go":"B"}}`):                                                                                {"/states/A/on_stuck/max": "from 1 to 100"},
		wrap(`{"on_stuck":{"event":"go","max":"3"},"on":{"go":"B"}}`):                                                                                {"/states/A/on_stuck/max": "from 1 to 100"},
		wrap(`{"on_stuck":{"event":"go"},"protected":true,"on":{"go":"B"}}`):                                                                         {"/states/A/on_stuck/event": "protected"},
		wrap(`{"on_stuck":{"retry":"pack"},"on":{"go":"B"}}`):                                                                                        {"/states/A/on_stuck/retry": `A has no task "pack"`},
		wrap(`{"on_stuck":{"event":"go"},"on":{"go":{"target":"B","payload_schema":{"required":["a"]}}}}`):                                           {"/states/A/on_stuck/event": "does not fit"},
		wrap(`{"on_stuck":{"event":"go"},"on":{"go":{"target":"B","payload_schema":{"required":[]}}}}`):                                              nil,
		wrap(`{"initial":"X","on_stuck":{"event":"go"},"on":{"go":"B"},"states":{"X":{"on":{"x":"X"}}}}`):                                            {"/states/A/on_stuck": "without states within"},
		wrap(`{"initial":"X","on":{"go":"B"},"states":{"X":{"on_stuck":{"event":"go"}}}}`):                                                           nil,
		wrap(`{"initial":"X","protected":true,"on":{"go":"B"},"states":{"X":{"on_stuck":{"event":"go"}}}}`):                                          {"/states/A/states/X/on_stuck/event": "protected"},
		`{"name":"w","initial":"B","states":{"B":{"type":"final","on_stuck":{"event":"go"}}}}`:                                                       {"/states/B/on_stuck": "final state"},
		`{"name":"w","initial":"A","states":{"A":{"on_stuck":{"event":"en"},"on":{"go":"C"}},"C":{"on":{"end":"B","en":"B"}},"B":{"type":"final"}}}`: {"/states/A/on_stuck/event": `A does not accept "en"`},
		wrap(`{"on_stuck":{"retry":"pakc"},` + packing + `}`):                                                                                        {"/states/A/on_stuck/retry": `A has no task "pakc" (did you mean pack?)`},
		wrap(`{"on_stuck":{"retry":"pack"},` + packing + `}`):                                                                                        nil,
		wrap(`{"on_stuck":{"reconcile":"pack"},` + packing + `}`):                                                                                    {"/states/A/on_stuck/reconcile": "has no reconcile"},
		wrap(`{"on_stuck":{"reconcile":"charge"},` + packing + `}`):                                                                                  nil,
		top(`"business_key":"once"`):                                                                                                                 {"/business_key": `"unique" or "reusable"`},
		top(`"business_key":true`):                                                                                                                   {"/business_key": `"unique" or "reusable"`},
		top(`"require_if_match":null`):                                                                                                               {"/require_if_match": "true or false"},
		top(`"~x/":1`):                                                                                                                               {"/~0x~1": "not a member"},
		top(`"context_schema":[]`):                                                                                                                   {"/context_schema": "JSON Schema"},
		top(`"context_schema":null`):                                                                                                                 {"/context_schema": "JSON Schema"},
		top(`"ttl":null`):                                                                                                                            {"/ttl": "object"},
		top(`"ttl":{}`):                                                                                                                              {"/ttl/after": "string", "/ttl/target": "string"},
		top(`"ttl":{"after":"x","target":"X","y":1}`):                                                                                                {"/ttl/after": "no duration", "/ttl/target": `no state "X"`, "/ttl/y": "not a member"},
		top(`"ttl":{"after":"1s","target":"A"}`):                                                                                                     {"/ttl/target": "final"},
		wrap(`7`):                                                                                                                                    {"/states/A": "object", "/states/B": "no transition leads to"},
		wrap(`{"on":[]}`):                                                                                                                            {"/states/A/on": "object", "/states/A": "leads out", "/states/B": "leads to"},
		wrap(`{"after":7,"on":{"go":"B"}}`):                                                                                                          {"/states/A/after": "object"},
		wrap(`{"onn":{},"on":{"go":"B"}}`):                                                                                                           {"/states/A/onn": "not a member"},
		wrap(`{"type":"parallel","on":{"go":"B"}}`):                                                                                                  {"/states/A/type": "final"},
		wrap(`{"type":"parallel"}`):                                                                                                                  {"/states/A/type": "final", "/states/A": "leads out", "/states/B": "leads to"},
		wrap(`{"type":null,"on":{"go":"B"}}`):                                                                                                        {"/states/A/type": "final"},
		transition(`null`):                                                                                                                           {"/states/A/on/go": "must be", "/states/B": "leads to"},
		transition(`[7]`):                                                                                                                            {"/states/A/on/go/0": "must be", "/states/B": "leads to"},
		transition(`[["B"]]`):                                                                                                                        {"/states/A/on/go/0": "must be", "/states/B": "leads to"},
		transition(`""`):                                                                                                                             {"/states/A/on/go": "not empty", "/states/B": "leads to"},
		transition(`{"target":"B","to":"B"}`):                                                                                                        {"/states/A/on/go/to": "is not a member here; there are target"},
		transition(`{"target":"B","guadr":"$.a"}`):                                                                                                   {"/states/A/on/go/guadr": "did you mean guard?"},
		transition(`{"guard":"$.context.a"}`):                                                                                                        {"/states/A": "leads out", "/states/B": "leads to"},
		transition(`{"target":"B","guard":""}`):                                                                                                      {"/states/A/on/go/guard": "must not be empty"},
		transition(`{"target":"B","guard":true}`):                                                                                                    {"/states/A/on/go/guard": "must be a path"},

		// Assigns.
		transition(`{"target":"B","assign":"all"}`):              {"/states/A/on/go/assign": `"*"`},
		transition(`{"target":"B","assign":[]}`):                 {"/states/A/on/go/assign": `"*"`},
		transition(`{"target":"B","assign":null}`):               {"/states/A/on/go/assign": `"*"`},
		transition(`{"target":"B","assign":{"":"$.context.a"}}`): {"/states/A/on/go/assign/": "name"},
		transition(`{"target":"B","assign":{"a/b":1,"c":""}}`):   nil,

		// The graph.
		transition(`"C"`): {"/states/A/on/go": `no state "C"`, "/states/B": "leads to"},
		transition(`[{"target":"B","guard":"$.context.a"},{"target":"C"}]`):                                {"/states/A/on/go/1/target": `no state "C"`},
		`{"name":"w","initial":"OPEN","states":{"OPEN":{"on":{"go":"CLOSDE"}},"CLOSED":{"type":"final"}}}`: {"/states/OPEN/on/go": "did you mean CLOSED?", "/states/CLOSED": "leads to"},
		wrap(`{"on":{"go":"A"}}`):    {"/states/A": "leads out", "/states/B": "leads to"},
		wrap(`{}`):                   {"/states/A": "leads out", "/states/B": "leads to"},
		wrap(`{"after":{"1s":"A"}}`): {"/states/A": "leads out", "/states/B": "leads to"},
		`{"name":"w","initial":"A","states":{"A":{"on":{"go":"B"}},"B":{"on":{"back":"A"}}}}`:                                          {"/states": "final"},
		`{"name":"w","initial":"A","states":{"A":{"on":{"go":"B"}},"B":{"type":"final"},"C":{"on":{"go":"D"}},"D":{"on":{"go":"C"}}}}`: {"/states/C": "leads to", "/states/D": "leads to"},
		`{"name":"w","initial":"X","states":{"A":{"on":{"go":"B"}},"B":{"type":"final"}}}`:                                             {"/initial": `no state "X"`},

		// Final states.
		wrap(`{"type":"final","on":{},"after":{}}`):               {"/states/A/on": "final", "/states/A/after": "final", "/states/B": "leads to"},
		wrap(`{"outcome":"failed","on":{"go":"B"}}`):              {"/states/A/outcome": "only a final"},
		wrap(`{"type":"final","outcome":"active"}`):               {"/states/A/outcome": "completed, failed", "/states/B": "leads to"},
		wrap(`{"type":"final","outcome":null}`):                   {"/states/A/outcome": "completed, failed", "/states/B": "leads to"},
		wrap(`{"type":"final","outcome":""}`):                     {"/states/A/outcome": "completed, failed", "/states/B": "leads to"},
		wrap(`{"type":"parallel","outcome":"x","on":{"go":"B"}}`): {"/states/A/outcome": "only a final", "/states/A/type": "final"},

		// Timeouts.
		wrap(`{"after":{"soon":"B"}}`):                      {"/states/A/after/soon": "no duration"},
		wrap(`{"after":{"0s":"B"}}`):                        {"/states/A/after/0s": "1ms"},
		wrap(`{"after":{"3651d":"B"}}`):                     {"/states/A/after/3651d": "longer"},
		wrap(`{"after":{"60s":"B","1m":"B"}}`):              {"/states/A/after/60s": "same time"},
		wrap(`{"after":{"x/y":"B","1m":"B"}}`):              {"/states/A/after/x~1y": "no duration"},
		wrap(`{"after":{"":"B","1m":"B"}}`):                 {"/states/A/after/": "no duration"},
		wrap(`{"after":{"x":"B","y":"B"},"on":{"go":"B"}}`): {"/states/A/after/x": "no duration", "/states/A/after/y": "no duration"},
		wrap(`{"after":{"1s":[]},"on":{"go":"B"}}`):         {"/states/A/after/1s": "at least one"},

		// Candidates.
		transition(`[]`):                             {"/states/A/on/go": "at least one", "/states/A": "leads out", "/states/B": "leads to"},
		transition(`["B","B"]`):                      {"/states/A/on/go/1": "never be taken"},
		transition(`[{"target":"B","guard":7},"B"]`): {"/states/A/on/go/0/guard": "must be a path"},
		transition(`[7,"B"]`):                        {"/states/A/on/go/0": "must be"},
		transition(`[{"target":"B","payload_schema":{"type":"object"},"guard":"$.context.a"},{"target":"B","guard":"$.context.b"},{"target":"B","payload_schema":{}}]`): {
			"/states/A/on/go/2/payload_schema": "share one",
		},

		// Schemas.
		top(`"context_schema":{"type":"objekt"}`):                                                       {"/context_schema": "/type"},
		top(`"context_schema":{"properties":{"a":{"minimum":"1"}},"required":"a"}`):                     {"/context_schema": "/properties/a/minimum"},
		top(`"context_schema":{"pattern":"("}`):                                                         {"/context_schema": "regex"},
		top(`"context_schema":{"$schema":"https://example.com/own"}`):                                   {"/context_schema": "leaves the document"},
		transition(`{"target":"B","payload_schema":7}`):                                                 {"/states/A/on/go/payload_schema": "JSON Schema"},
		transition(`{"target":"B","payload_schema":{"$ref":"#/$defs/none"}}`):                           {"/states/A/on/go/payload_schema": "none"},
		transition(`[{"target":"B","guard":"$.context.a","payload_schema":{"$ref":"other.json"}},"B"]`): {"/states/A/on/go/0/payload_schema": "leaves the document"},
	} {
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

func TestFaultsAllAtOnce(t *testing.T) {
	t.Parallel()
	text := `{
		"name": "Not A Slug", "version": 0, "initial": "A", "surplus": 1, "ttl": {"after": "later", "target": "NOWHERE"},
		"context_schema": {"$ref": "https://example.com/schema.json"},
		"states": {
			"A": {"on": {"go": {"target": "GONE", "guard": 1, "assign": {"x": "1 + $.context.x"}}, "b/ad": "B"}, "after": {"1m": "B", "60s": "B", "?": "B"}},
			"B": {"type": "final", "outcome": "won", "on": {}},
			"C": {"outcome": "failed"},
			"D": 1
		}
	}`
	expect(t, text, faults(t, text, "", definition.Limits{States: 3}), map[string]string{
		"/name": "lower-case", "/version": "from 1", "/surplus": "member", "/ttl/after": "duration", "/ttl/target": "NOWHERE",
		"/context_schema": "https://example.com/schema.json", "/states": "at most 3 states",
		"/states/A/on/go/target": "GONE", "/states/A/on/go/guard": "must be a path", "/states/A/on/go/assign/x": "$path",
		"/states/A/on/b~1ad": "letter", "/states/A/after/60s": "same time", "/states/A/after/?": "duration",
		"/states/B/outcome": "completed", "/states/B/on": "final", "/states/C/outcome": "only a final", "/states/C": "leads",
		"/states/D": "object",
	})
}

func TestNameMustBeThePaths(t *testing.T) {
	t.Parallel()
	text := wrap(`{"on":{"go":"B"}}`)
	expect(t, text, faults(t, text, "other", definition.Limits{}), map[string]string{"/name": `"other"`})
	if found := faults(t, text, "w", definition.Limits{}); found != nil {
		t.Errorf("the same name is refused: %v", found)
	}
	nameless := `{"initial":"B","states":{"B":{"type":"final"}}}`
	expect(t, nameless, faults(t, nameless, "No", definition.Limits{}), map[string]string{"/name": "lower-case"})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	many := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"name":"w","initial":"S1","states":{`)
		for i := 1; i < n; i++ {
			fmt.Fprintf(&b, `"S%d":{"on":{"go":"S%d"}},`, i, i+1)
		}
		fmt.Fprintf(&b, `"S%d":{"type":"final"}}}`, n)
		return b.String()
	}
	if found := faults(t, many(500), "", definition.Limits{}); found != nil {
		t.Errorf("500 states are refused: %v", found)
	}
	expect(t, "501 states", faults(t, many(501), "", definition.Limits{}), map[string]string{"/states": "500"})
	expect(t, "3 states", faults(t, many(3), "", definition.Limits{States: 2}), map[string]string{"/states": "at most 2"})

	text := wrap(`{"on":{"go":"B"}}`)
	if _, err := definition.Parse([]byte(text), "", definition.Limits{Bytes: len(text)}); err != nil {
		t.Errorf("%d bytes are refused: %v", len(text), err)
	}
	_, err := definition.Parse([]byte(text), "", definition.Limits{Bytes: len(text) - 1})
	_ = refusal(t, err, definition.ErrTooLarge)
	_, err = definition.Parse([]byte(text+strings.Repeat(" ", 1<<20)), "", definition.Limits{})
	_ = refusal(t, err, definition.ErrTooLarge)
}

func TestParseIsStrict(t *testing.T) {
	t.Parallel()
	for text, at := range map[string]string{
		``: "", `[]`: "", `"x"`: "", `{} {}`: "", `{"name":}`: "/name", `{"states":{"A":{},"A":{}}}`: "/states/A",
		`{"name":"w\u0000"}`: "/name",
	} {
		_, err := definition.Parse([]byte(text), "", definition.Limits{})
		if e := refusal(t, err, definition.ErrMalformed); e.Faults[0].Pointer != at {
			t.Errorf("%s: at %q, want %q", text, e.Faults[0].Pointer, at)
		}
	}
}

// A reference out of the document is refused without a look at where it leads: a schema
// that is really there would be accepted if it were read.
func TestReferencesOutOfTheDocument(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		fmt.Fprint(w, `{"type":"object"}`)
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "schema.json")
	if err := os.WriteFile(file, []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, schema := range []string{
		`{"$ref":"` + server.URL + `/schema.json"}`,
		`{"$ref":"file://` + file + `"}`,
		`{"$ref":"` + file + `"}`,
		`{"$ref":"schema.json"}`,
		`{"$ref":"../schema.json#/x"}`,
		`{"$dynamicRef":"` + server.URL + `"}`,
		`{"$id":"` + server.URL + `/root.json","properties":{"a":{"$ref":"schema.json"}}}`,
		`{"$id":"file://` + file + `.root","properties":{"a":{"$ref":"schema.json"}}}`,
		`{"$schema":"` + server.URL + `/schema.json"}`,
		`{"$schema":"file://` + file + `"}`,
	} {
		text := wrap(`{"on":{"go":{"target":"B","payload_schema":` + schema + `}}}`)
		expect(t, text, faults(t, text, "", definition.Limits{}), map[string]string{"/states/A/on/go/payload_schema": "leaves the document"})
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
	for _, schema := range []string{
		`{"$ref":"#/$defs/a","$defs":{"a":{"type":"object"}}}`,
		`{"$id":"https://example.com/root","$ref":"a","$defs":{"a":{"$id":"a","type":"object"}}}`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","type":"object"}`,
		`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object"}`,
	} {
		canonical(t, wrap(`{"on":{"go":{"target":"B","payload_schema":`+schema+`}}}`))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(fsmtest.FlightBooking))
	f.Add([]byte(fsmtest.Counter))
	f.Add([]byte(everything))
	f.Add([]byte(support))
	f.Add([]byte(fsmtest.Trip))
	f.Add([]byte(`{}`))
	f.Add([]byte(wrap(`{"after":{"1s":["B",{"target":"A","guard":"$.context.a","assign":"*"}]}}`)))
	f.Add([]byte(`{"name":"w","initial":"B","ttl":{"after":"1d","target":"B"},"context_schema":{"$ref":"#"},"states":{"B":{"type":"final","outcome":"failed"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := definition.Parse(data, "", definition.Limits{}); err == nil {
			canonical(t, string(data))
			roundTrip(t, d)
		}
	})
}

// attributes are the members of a search with n attributes.
func attributes(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`"a%d":"$.context.a"`, i)
	}
	return strings.Join(list, ",")
}
