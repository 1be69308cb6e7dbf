package definition_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// assigned makes a definition in which x is assigned a value.
func assigned(value string) string {
	return wrap(`{"on":{"go":{"target":"B","assign":{"x":` + value + `}}}}`)
}

// guarded makes a definition with a guard.
func guarded(guard string) string {
	return wrap(`{"on":{"go":{"target":"B","guard":` + guard + `}}}`)
}

// review makes a definition with the compound state R of the states X, the initial one, and Y. members are of R,
// within is of X, and top is of the state P that leads to R.
func review(members, within, top string) string {
	return `{"name":"w","initial":"P","states":{"B":{"type":"final"},"P":{"on":{"start":"R","drop":"B"` + top + `}},
		"R":{"initial":"X","on":{"park":"P"},` + members + `"states":{"X":{"on":{"next":"Y"` + within + `}},"Y":{"on":{"back":"X"}}}}}}`
}

const at = "/states/A/on/go"

func TestValues(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		`null`, `true`, `1`, `1.50`, `""`, `"text"`, `"$$5"`, `"costs $5"`, `"5 $ or 6 $.50 each"`, `"$.context.n + 1"`, `"lax $.payload.x"`, `"strict $.payload.x"`,
		`[]`, `{}`, `["$.payload.a",{"b":"$.payload.b"},3]`,
		`{"$path":"1 + $.context.n"}`, `{"$all":"$.payload.a[*]"}`, `{"$all":{"$path":"1 + $.payload.a[*]"}}`, `{"$first":["$.payload.a",0]}`,
		`{"$if":["$.payload.a == 1",{"$if":[{"present":"$.payload.b"},1,{"$unset":true}]},2]}`,
		`{"$append":["$.context.list","$.payload.a","b"]}`, `{"$append":[null,1]}`, `{"$union":[{"$append":[[],1]},"$.actor.subject"]}`,
		`{"$without":[{"a":1},"a"]}`, `{"$without":["$.context.list","$.payload.a"]}`, `{"$merge":["$.context.o",{"a":"$.payload.a"},{"$set":[{},["a","b",0],1]}]}`,
		`{"$set":["$.context.o",["$.payload.name",0],"$.payload.v"]}`, `{"$concat":["a",1,true,"$.payload.a",null]}`,
		`{"$time":["$.now","+3d"]}`, `{"$time":["2026-03-01T09:30:00Z","-P1M","Europe/Berlin"]}`, `{"$time":["$.now","$.payload.by"]}`, `{"$time":["$.now","0s"]}`,
		`{"$duration":["$.instance.created_at","$.now"]}`, `{"$unset":true}`, `{"$literal":{"$foo":1,"b":"$"}}`,
		`{"$literal":"1 + $.context.n"}`,
	} {
		text := assigned(value)
		if found := faults(t, text, "", definition.Limits{}); found != nil {
			t.Errorf("%s is refused: %v", value, found)
			continue
		}
		if c := canonical(t, text); !strings.Contains(c, `"assign":{"x":`+value+`}`) {
			t.Errorf("%s is not kept as it was written: %s", value, c)
		}
	}
	const x = at + "/assign/x"
	for value, want := range map[string]map[string]string{
		`"$"`: {x: "whole document"}, `"lax $"`: {x: "whole document"}, `"$5"`: {x: `"$$5"`}, `"$total is 5"`: {x: "$literal"},
		`"1 + $.context.n"`: {x: `{"$path": "1 + $.context.n"}`}, `"($.context.n)"`: {x: "$path"}, `"-$.context.n"`: {x: "$path"},
		`"lax  $.context.n"`: {x: "$path"}, `"exists($.context.n)"`: {x: "$path"},
		`[1,"1 + $.context.n"]`: {x + "/1": "$path"}, `{"a":{"b":"$"}}`: {x + "/a/b": "whole"},
		`{"$foo":1}`: {x + "/$foo": "$literal"}, `{"$path":"$.context.a","b":1}`: {x: "$literal"}, `{"$a":1,"$b":2}`: {x: "no other members"},
		`{"$path":""}`: {x + "/$path": "not empty"}, `{"$path":1}`: {x + "/$path": "not empty"}, `{"$path":"$"}`: {x + "/$path": "whole"},
		`{"$all":"a"}`: {x + "/$all": "$path"}, `{"$all":["$.context.a"]}`: {x + "/$all": "begins with $"},
		`{"$first":[]}`: {x + "/$first": "1 or more"}, `{"$first":"$.context.a"}`: {x + "/$first": "array"},
		`{"$if":["$.context.a == 1",1]}`: {x + "/$if": "array of 3"}, `{"$if":["1 == 1",1,2]}`: {x + "/$if/0": "reads nothing"},
		`{"$append":["$.context.a"]}`: {x + "/$append": "2 or more"}, `{"$append":["a",1]}`: {x + "/$append/0": "array"}, `{"$union":[{"a":1},1]}`: {x + "/$union/0": "array"},
		`{"$without":[1,1]}`: {x + "/$without/0": "array or object"}, `{"$merge":[{},[1]]}`: {x + "/$merge/1": "object"}, `{"$merge":[{"$time":["$.now","1d"]}]}`: {x + "/$merge/0": "object"},
		`{"$set":[{},[],1]}`: {x + "/$set/1": "not be empty"}, `{"$set":[{},"a",1]}`: {x + "/$set/1": "array"}, `{"$set":[1,["a"],1]}`: {x + "/$set/0": "object"},
		`{"$set":[{},["a"` + strings.Repeat(`,"a"`, 64) + `],1]}`: {x + "/$set/1": "at most 64"}, `{"$set":[{},1]}`: {x + "/$set": "array of 3"},
		`{"$set":[{},[1.5],1]}`: {x + "/$set/1/0": "whole"}, `{"$set":[{},[true],1]}`: {x + "/$set/1/0": "string or number"},
		`{"$concat":["a",{"b":1}]}`: {x + "/$concat/1": "object"}, `{"$concat":[]}`: {x + "/$concat": "1 or more"},
		`{"$time":["$.now"]}`: {x + "/$time": "2 to 3"}, `{"$time":["$.now",90]}`: {x + "/$time/1": "string, not number"}, `{"$time":["$.now",{"$duration":["$.now","$.now"]}]}`: {x + "/$time/1": "not number"},
		`{"$time":["$.now","soon"]}`: {x + "/$time/1": "no duration"}, `{"$time":["yesterday","1d"]}`: {x + "/$time/0": "RFC 3339"},
		`{"$time":["2026-03-01T09:30:00","1d"]}`: {x + "/$time/0": "offset"}, `{"$time":[1,"1d"]}`: {x + "/$time/0": "string"}, `{"$time":["$.now","1d","Mars/Olympus"]}`: {x + "/$time/2": "Europe/Berlin"},
		`{"$time":["$.now","1d","$.context.zone"]}`: {x + "/$time/2": "no time zone"}, `{"$time":["$.now","1d","Local"]}`: {x + "/$time/2": "no time zone"},
		`{"$duration":["$.now","2026"]}`: {x + "/$duration/1": "RFC 3339"}, `{"$unset":false}`: {x + "/$unset": "true"},
		`[{"$unset":true}]`: {x + "/0/$unset": "only removes"}, `{"$first":["$.context.a",{"$unset":true}]}`: {x + "/$first/1/$unset": "only removes"},
		`{"$if":["$.context.a == 1",{"b":{"$unset":true}},2]}`: {x + "/$if/1/b/$unset": "only removes"},
	} {
		text := assigned(value)
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

func TestGuards(t *testing.T) {
	t.Parallel()
	for _, guard := range []string{
		`"$.context.n == 1"`, `"lax $.context.n == 1"`, `{"all":["$.context.a == 1",{"any":[{"not":"$.context.b == 1"}]}]}`, `{"present":"$.payload.x"}`,
		`{"absent":{"$path":"$.payload.x"}}`, `{"equal":["$.actor.subject","$.context.author"]}`, `{"in":["$.payload.x",["a","b"]]}`, `{"in":["$.payload.x","$.context.list"]}`,
		`{"before":["$.now","$.context.due"]}`, `{"after":[{"$time":["$.now","-1d"]},"2026-03-01T09:30:00Z"]}`,
	} {
		text := guarded(guard)
		if found := faults(t, text, "", definition.Limits{}); found != nil {
			t.Errorf("%s is refused: %v", guard, found)
			continue
		}
		_ = canonical(t, text)
		d := parse(t, text)
		g := d.States["A"].On["go"][0].Guard
		if got := definition.GuardText(g); got != strings.Trim(guard, `"`) {
			t.Errorf("the text of %s is %s", guard, got)
		}
	}
	const g = at + "/guard"
	for guard, want := range map[string]map[string]string{
		`"hello"`: {g: "reads nothing"}, `"1 == 1"`: {g: "reads nothing"}, `"\"$.context.a\" == \"b\""`: {g: "reads nothing"}, `""`: {g: "empty"}, `null`: {g: "path"}, `["$.context.a"]`: {g: "path"},
		`{}`: {g: "exactly one"}, `{"all":["$.context.a"],"any":["$.context.a"]}`: {g: "exactly one"}, `{"equals":[1,2]}`: {g: "exactly one of the members all, any"},
		`{"all":[]}`: {g + "/all": "not empty"}, `{"any":"$.context.a == 1"}`: {g + "/any": "array"}, `{"not":{"all":[7]}}`: {g + "/not/all/0": "path"},
		`{"present":"payload.x"}`: {g + "/present": "begins with $"}, `{"absent":["$.context.a"]}`: {g + "/absent": "path"}, `{"present":"$"}`: {g + "/present": "whole"},
		`{"equal":["$.context.a"]}`: {g + "/equal": "array of 2"}, `{"in":["$.context.a","b"]}`: {g + "/in/1": "array"}, `{"in":["$.context.a",{"b":1}]}`: {g + "/in/1": "array"},
		`{"before":["$.now","soon"]}`: {g + "/before/1": "RFC 3339"}, `{"after":[1,"$.now"]}`: {g + "/after/0": "string"}, `{"equal":["$.context.a","1 + $.context.b"]}`: {g + "/equal/1": "$path"},
	} {
		text := guarded(guard)
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

// The engine's mode is in front of the paths that PostgreSQL checks.
func TestPathsHaveTheirMode(t *testing.T) {
	t.Parallel()
	d, err := definition.Read([]byte(wrap(`{"on":{"go":{"target":"B","guard":{"all":["$.payload.a == 1",{"present":"$.payload.b"}]},
		"assign":{"a":"lax $.payload.a","b":{"$if":["strict $.context.a == 1",{"c":["$.now"]},"text"]}}}}}`)), "", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		at + "/guard/all/0": {"strict $.payload.a == 1"}, at + "/guard/all/1/present": {"strict $.payload.b"}, at + "/assign/a": {"lax $.payload.a"},
		at + "/assign/b/$if/0": {"strict $.context.a == 1"}, at + "/assign/b/$if/1/c/0": {"strict $.now"},
	}
	if diff := cmp.Diff(want, d.Paths); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAssigns(t *testing.T) {
	t.Parallel()
	assign := func(assign, more string) string {
		return wrap(`{"on":{"go":{"target":"B","assign":` + assign + more + `}}}`)
	}
	const closed = `,"payload_schema":{"type":"object","properties":{"seat":{},"meal":{}},"additionalProperties":false}`
	for text, want := range map[string]string{
		assign(`{"address.city":"$.payload.city","address.zip":1}`, ""):                             `"assign":{"address.city":"$.payload.city","address.zip":1}`,
		assign(`{"*":["seat","meal"]}`, ""):                                                         `"assign":{"*":["meal","seat"]}`,
		assign(`{"*":true,"trusted":true}`, ""):                                                     `"assign":{"*":true,"trusted":true}`,
		assign(`{"*":true}`, closed):                                                                `"assign":"*"`,
		assign(`"*"`, closed):                                                                       `"assign":"*"`,
		assign(`{"*":true,"at":"$.now"}`, closed):                                                   `"assign":{"*":true,"at":"$.now"}`,
		assign(`{"*":["seat"],"trusted":"$.payload.trusted"}`, ""):                                  `"assign":{"*":["seat"],"trusted":"$.payload.trusted"}`,
		assign(`{"trusted":true}`, ""):                                                              `"assign":{"trusted":true}`,
		assign(`{"*":true,"seat":"$.context.seat"}`, closed):                                        `"assign":{"*":true,"seat":"$.context.seat"}`,
		strings.Replace(assign(`"*"`, closed), `"w",`, `"w","invariant":"$.context.price > 0",`, 1): `"assign":"*"`,
	} {
		if c := canonical(t, text); !strings.Contains(c, want) {
			t.Errorf("there is no %s in %s", want, c)
		}
	}
	const a = at + "/assign"
	for text, want := range map[string]map[string]string{
		assign(`"*"`, ""):        {a: `{"*": ["seat", "meal"]}`},
		assign(`{"*":true}`, ""): {a: "trusted"},
		assign(`"*"`, `,"payload_schema":{"properties":{"seat":{}}}`): {a: "additionalProperties"},
		assign(`{"*":[]}`, ""): {a + "/*": "array of the payload's members"}, assign(`{"*":false}`, ""): {a + "/*": "must be true"}, assign(`{"*":["a","a"]}`, ""): {a + "/*/1": "twice"},
		assign(`{"*":[""]}`, ""): {a + "/*/0": "not empty"}, assign(`{"*":true,"trusted":"$.context.a"}`, closed): {a + "/trusted": "must be true"},
		assign(`{"a..b":1}`, ""): {a + "/a..b": "empty"}, assign(`{".a":1}`, ""): {a + "/.a": "empty"}, assign(`{"a.":1}`, ""): {a + "/a.": "empty"},
		assign(`{"a":1,"a.b":2}`, ""): {a + "/a.b": "within a"}, assign(`{"a.b":1,"a.b.c.d":2}`, ""): {a + "/a.b.c.d": "within a.b"}, assign(`{"a.b":1,"ab":2}`, ""): nil,
		// What the workflow relies on.
		strings.Replace(assign(`"*"`, closed), `"w",`, `"w","invariant":"$.context.seat > 0",`, 1):                                                                  {a: "set seat"},
		strings.Replace(assign(`"*"`, closed), `"type":"final"`, `"type":"final","entry":{"assign":{"meal.kind":1}}`, 1):                                            {a: "set meal"},
		strings.Replace(assign(`"*"`, closed), `"type":"final"`, `"type":"final","entry":{"assign":{"x":{"$all":"$.context.meal[*] ? (@ == $.context.seat)"}}}`, 1): {a: "set seat"},
		strings.Replace(assign(`"*"`, closed), `"type":"final"`, `"type":"final","entry":{"assign":"*"}`, 1):                                                        {"/states/B/entry/assign": "any member"},
	} {
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

func TestTimers(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]string{
		`{"after":[{"in":"90m","target":"B"}]}`: `"after":{"1h30m":[{"target":"B"}]}`,
		`{"after":[{"in":"2d","target":"B"},{"in":"1mo","guard":"$.context.a == 1","target":"B"},{"in":"48h","rearm":true}]}`: `{"2d"`,
		`{"after":{"1y14mo":"B","P1W":{"assign":{"n":1}}}}`:                                                                   `"after":{"168h":[{"assign":{"n":1}}],"2y2mo":[{"target":"B"}]}`,
		`{"after":[{"in":"$.context.grace","target":"B"},{"in":"60s","target":"B"}]}`:                                         `"after":[{"in":"$.context.grace","target":"B"},{"in":"1m","target":"B"}]`,
		`{"after":[{"at":{"$first":["$.context.due","$.now"]},"target":"B"}]}`:                                                `"after":[{"at":{"$first":["$.context.due","$.now"]},"target":"B"}]`,
		`{"after":[{"in":{"$literal":"90s"},"target":"B"}]}`:                                                                  `"after":{"1m30s":[{"target":"B"}]}`,
		`{"after":[{"in":90,"target":"B"}]}`:                                                                                  `"after":[{"in":90,"target":"B"}]`,
		`{"after":[{"at":"2026-03-01T09:30:00+01:00","target":"B"}]}`:                                                         `"at":"2026-03-01T09:30:00+01:00"`,
		`{"on":{"go":"B"},"every":{"in":"1d","assign":{"n":"$.context.n + 1"}}}`:                                              `"every":[{"in":"24h","assign":{"n":"$.context.n + 1"}}]`,
		`{"on":{"go":"B"},"every":[{"in":"$.context.step"},{"in":"1s","guard":"$.context.a == 1"}]}`:                          `"every":[{"in":"$.context.step"},{"in":"1s","guard":"$.context.a == 1"}]`,
	} {
		if strings.HasPrefix(want, `{"2d"`) {
			// The last cannot be taken.
			expect(t, state, faults(t, wrap(state), "", definition.Limits{}), map[string]string{"/states/A/after/2": "never be taken"})
			continue
		}
		if c := canonical(t, wrap(state)); !strings.Contains(c, want) {
			t.Errorf("there is no %s in %s", want, c)
		}
	}
	const a = "/states/A/after"
	for state, want := range map[string]map[string]string{
		`{"after":[]}`:               {a: "at least one", "/states/A": "leads out", "/states/B": "leads to"},
		`{"after":[{"target":"B"}]}`: {a + "/0": "either in"}, `{"after":[{"in":"1s","at":"$.now","target":"B"}]}`: {a + "/0": "either in"}, `{"after":["B"],"on":{"go":"B"}}`: {a + "/0": "transition with the member in"},
		`{"after":[{"in":"soon","target":"B"}]}`: {a + "/0/in": "no duration"}, `{"after":[{"in":"0s","target":"B"}]}`: {a + "/0/in": "at least 1ms"}, `{"after":[{"in":"-1s","target":"B"}]}`: {a + "/0/in": "sign"},
		`{"after":[{"in":true,"target":"B"}]}`: {a + "/0/in": "string or number"}, `{"after":[{"in":null,"target":"B"}]}`: {a + "/0": "null"}, `{"after":[{"at":"tomorrow","target":"B"}]}`: {a + "/0/at": "RFC 3339"},
		`{"after":[{"at":5,"target":"B"}]}`: {a + "/0/at": "string"}, `{"after":{"1s":{"in":"2s","target":"B"}}}`: {a + "/1s/in": "not a member"}, `{"after":{"12mo":"B","1y":"B"}}`: {a + "/1y": "same time"},
		`{"after":{"1s":{"target":"B","payload_schema":{}}}}`: {a + "/1s/payload_schema": "not a member"}, `{"on":{"go":{"target":"B","in":"1s"}}}`: {at + "/in": "not a member"},
		`{"on":{"go":"B"},"every":{"in":"1d","target":"B"}}`: {"/states/A/every/target": "leave the target out"}, `{"on":{"go":"B"},"every":{"assign":{"n":1}}}`: {"/states/A/every/in": "missing"},
		`{"on":{"go":"B"},"every":{"in":"999ms"}}`: {"/states/A/every/in": "at least 1s"}, `{"on":{"go":"B"},"every":[{"in":0.5}]}`: {"/states/A/every/0/in": "at least 1 second"}, `{"on":{"go":"B"},"every":"1d"}`: {"/states/A/every": "member in"},
		`{"on":{"go":"B"},"every":[{"at":"$.now"}]}`: {"/states/A/every/0/at": "not a member", "/states/A/every/0/in": "missing"}, `{"on":{"go":"B"},"every":[]}`: {"/states/A/every": "at least one"},
		// A timer that only repeats is no way out.
		`{"every":{"in":"1d"}}`: {"/states/A": "leads out", "/states/B": "leads to"}, `{"after":{"1d":{"assign":{"n":1}}}}`: {"/states/A": "leads out", "/states/B": "leads to"},
	} {
		expect(t, state, faults(t, wrap(state), "", definition.Limits{}), want)
	}
}

func TestMoves(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		wrap(`{"on":{"note":{},"go":"B"}}`):                                                                  `"note":[{}]`,
		wrap(`{"on":{"note":{"internal":true,"rearm":true},"go":"B"}}`):                                      `"note":[{"rearm":true}]`,
		wrap(`{"on":{"*":{"assign":{"n":1}},"pay.*":"B","pay.card.*":"B"}}`):                                 `"on":{"*":[{"assign":{"n":1}}],"pay.*":[{"target":"B"}],"pay.card.*":[{"target":"B"}]}`,
		review(``, ``, `,"on":{"target":"R","resume":true}`):                                                 `"on":[{"target":"R","resume":true}]`,
		review(``, ``, `,"on":{"target":"R","resume":"timers"}`):                                             `"resume":"timers"`,
		review(`"after":{"1d":{"target":"Y","internal":true}},`, ``, ``):                                     `"after":{"24h":[{"target":"R.Y","internal":true}]}`,
		review(`"invariant":{"present":"$.context.a"},`, ``, ``):                                             `"invariant":{"present":"$.context.a"}`,
		strings.Replace(review(``, ``, ``), `"initial":"X"`, `"initial":{"target":"X","assign":{"n":0}}`, 1): `"initial":{"target":"X","assign":{"n":0}}`,
		strings.Replace(review(``, ``, ``), `"initial":"P"`, `"initial":{"target":"P","assign":{"n":0}}`, 1): `"initial":{"target":"P","assign":{"n":0}}`,
		strings.Replace(review(``, ``, ``), `"initial":"P"`, `"initial":{"target":"P"}`, 1):                  `"initial":"P"`,
		strings.Replace(review(`"done":[{"guard":"$.context.a == 1","target":"P"},"B"],`, `,"end":"E"`, ``), `"Y":`, `"E":{"type":"final","description":"d","entry":{"assign":{"n":0}}},"Y":`, 1): `"done":[{"target":"P","guard":"$.context.a == 1"},{"target":"B"}]`,
	} {
		if c := canonical(t, text); !strings.Contains(c, want) {
			t.Errorf("there is no %s in %s", want, c)
		}
	}
	const r, p = "/states/R", "/states/P/on/on"
	final := func(members, e string) string {
		return strings.Replace(review(members, `,"end":"E"`, ``), `"Y":`, `"E":`+e+`,"Y":`, 1)
	}
	for text, want := range map[string]map[string]string{
		wrap(`{"on":{"go":"B","done":"B"}}`): {"/states/A/on/done": "engine's own"}, wrap(`{"on":{"go":"B","a.*b":"B"}}`): {"/states/A/on/a.*b": "pay"}, wrap(`{"on":{"go":"B",".*":"B"}}`): {"/states/A/on/.*": "pattern"},
		wrap(`{"on":{"go":"B","**":"B"}}`): {"/states/A/on/**": "patterns"}, wrap(`{"on":{"go":"B","a:b":"B"}}`): {"/states/A/on/a:b": "letter"},
		wrap(`{"on":{"go":{"internal":false}}}`): {at + "/internal": "without a target", "/states/A": "leads out", "/states/B": "leads to"}, wrap(`{"on":{"go":{"target":"B","internal":true}}}`): {at + "/internal": "within"},
		wrap(`{"on":{"go":{"target":"B","rearm":true}}}`): {at + "/rearm": "without a target"}, wrap(`{"on":{"go":{"target":"B","rearm":1}}}`): {at + "/rearm": "true or false"},
		wrap(`{"on":{"go":"B"},"always":{"guard":"$.context.a == 1"}}`): {"/states/A/always": "must have a target"}, wrap(`{"on":{"go":"B"},"done":"B"}`): {"/states/A/done": "final state within"},
		wrap(`{"true":{"go":"B"}}`):                           {"/states/A/true": "YAML 1.1", "/states/A": "leads out", "/states/B": "leads to"},
		review(``, ``, `,"on":{"target":"R","resume":"yes"}`): {p + "/resume": `true, or "timers"`}, review(``, ``, `,"on":{"target":"B","resume":true}`): {p + "/resume": "no states within"},
		review(``, ``, `,"on":{"resume":true}`): {p + "/resume": "needs a target"}, review(`"always":{"target":"R","resume":true,"guard":"$.context.a == 1"},`, ``, ``): {r + "/always/resume": "already"},
		review(``, `,"on":{"target":"R","resume":true}`, ``): {r + "/states/X/on/on/resume": "already"}, review(``, `,"on":{"target":"R.Y","resume":true}`, ``): {r + "/states/X/on/on/resume": "no states within"},
		// Finals within, and done.
		final(``, `{"type":"final"}`): {r: "must have done"}, final(`"done":"B",`, `{"type":"final","outcome":"failed"}`): {r + "/states/E/outcome": "at the top"},
		final(`"done":{"target":"B","guard":"$.context.a == 1"},`, `{"type":"final"}`): {r + "/done": "no guard"}, final(`"done":{"assign":{"a":1}},`, `{"type":"final"}`): {r + "/done": "must have a target"},
		final(`"done":["B",{"target":"P"}],`, `{"type":"final"}`): {r + "/done/1": "never be taken"}, review(`"done":"B",`, ``, ``): {r + "/done": "is final"},
		final(`"done":"B",`, `{"type":"final","on":{"a":"B"},"after":{"1s":"B"},"every":{"in":"1s"},"exit":{},"done":"B"}`): {r + "/states/E/on": "no transitions", r + "/states/E/after": "no transitions", r + "/states/E/every": "no transitions", r + "/states/E/exit": "nothing happens", r + "/states/E/done": "nothing happens"},
		final(`"done":"E",`, `{"type":"final"}`): {r + "/states/E": "come to rest"},
		// Finals within do not end an instance.
		`{"name":"w","initial":"R","states":{"R":{"initial":"X","done":"R","states":{"X":{"on":{"go":"E"}},"E":{"type":"final"}}}}}`: {"/states": "no state is final"},
		strings.Replace(final(`"done":"B",`, `{"type":"final"}`), `"w",`, `"w","ttl":{"after":"1h","target":"R.E"},`, 1):             {"/ttl/target": "final"},
		strings.Replace(review(``, ``, ``), `"initial":"X"`, `"initial":{"to":"X"}`, 1):                                              {r + "/initial/to": "not a member", r + "/initial/target": "string", r + "/states/X": "leads to", r + "/states/Y": "leads to"},
		strings.Replace(review(``, ``, ``), `"initial":"P"`, `"initial":{"target":"Q"}`, 1):                                          {"/initial/target": `no state "Q"`},
	} {
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

func TestWorkflowMembers(t *testing.T) {
	t.Parallel()
	top := func(members string) string {
		return strings.Replace(wrap(`{"on":{"go":"B"}}`), `"w",`, `"w",`+members+`,`, 1)
	}
	for text, want := range map[string]string{
		top(`"timezone":"Europe/Berlin"`):                               `"timezone":"Europe/Berlin"`,
		top(`"context_default":{"n":0,"text":"$.kept"}`):                `"context_default":{"n":0,"text":"$.kept"}`,
		top(`"context_default":{}`):                                     `"initial":"A","states"`,
		top(`"invariant":{"not":"$.context.n < 0"}`):                    `"invariant":{"not":"$.context.n \u003c 0"}`,
		top(`"$schema":"https://example.com/s.json","tests":[{"a":1}]`): `{"name":"w","initial":"A","states"`,
		top(`"x-allow":["quoted-text","quoted-text"]`):                  `"x-allow":["quoted-text"]`,
	} {
		if c := canonical(t, text); !strings.Contains(c, want) {
			t.Errorf("there is no %s in %s", want, c)
		}
	}
	for text, want := range map[string]map[string]string{
		top(`"timezone":"Berlin"`): {"/timezone": "Europe/Berlin"}, top(`"timezone":"Local"`): {"/timezone": "no time zone"}, top(`"timezone":1`): {"/timezone": "string"}, top(`"timezone":"../etc"`): {"/timezone": "no time zone"},
		top(`"context_default":[]`): {"/context_default": "object"}, top(`"invariant":"1 == 1"`): {"/invariant": "reads nothing"}, top(`"invariant":null`): {"/invariant": "path"},
		top(`"x-allow":["nonsense"]`): {"/x-allow/0": "quoted-text"}, top(`"x-allow":[]`): {"/x-allow": "not empty"},
		top(`"ttl":{"after":"1mo","target":"B"}`): {"/ttl/after": "write days"}, top(`"retention":"1y"`): {"/retention": "write days"},
	} {
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

// names lists the events of a state as the engine knows it, with where they lead.
func flatNames(s definition.FlatState) (names []string) {
	for _, e := range s.Events {
		text := e.Name + ":"
		for _, t := range e.Candidates {
			text += " " + strings.Join(append([]string{t.Target}, t.Resumed...), "|")
		}
		names = append(names, text)
	}
	return names
}

func TestFlat(t *testing.T) {
	t.Parallel()
	d := parse(t, `{"name":"w","initial":"R","states":{
		"B":{"type":"final"},
		"P":{"on":{"go":{"target":"R","resume":true},"*":{"assign":{"n":1}}}},
		"R":{"initial":"X","on":{"park":"P","pay":{"assign":{"a":1}},"pay.*":"B"},"done":"P","after":{"1mo":"B","10m":{"target":"Y","internal":true}},"every":[{"in":"1d"},{"in":"$.context.step"}],
			"states":{
				"X":{"on":{"next":"Y","pay":{"guard":"$.context.a == 1","target":"Y"}},"after":[{"at":"$.context.due","target":"E"},{"in":"10m","guard":"$.context.a == 1","target":"Y"},{"in":"10m","target":"E"}]},
				"Y":{"initial":"Z","states":{"Z":{"on":{"end":"E"}}}},
				"E":{"type":"final"}}}}}`)
	flat := d.Flat()
	inherited := []string{"after:10m@R: R.Y.Z", "after:1mo@R: B", "every:24h@R: ", "every:2@R: "}
	own := func(path string) (list []string) {
		for _, name := range inherited {
			if strings.HasSuffix(name, ": ") {
				name += path
			}
			list = append(list, name)
		}
		return list
	}
	for path, want := range map[string][]string{
		"P":     {"*: P", "go: R.X|R.Y.Z"},
		"R.X":   append([]string{"next: R.Y.Z", "park: P", "pay: R.Y.Z R.X", "pay.*: B", "after:1: R.E", "after:10m: R.Y.Z R.E"}, own("R.X")...),
		"R.Y.Z": append([]string{"end: R.E", "park: P", "pay: R.Y.Z", "pay.*: B"}, own("R.Y.Z")...),
		"R.E":   {":done: P"},
		"B":     nil,
	} {
		if got := flatNames(flat[path]); !slices.Equal(got, want) {
			t.Errorf("%s:\n%q\nwant\n%q", path, got, want)
		}
	}
	if len(flat) != 5 || !flat["R.E"].Final || flat["R.E"].Outcome != "" || flat["B"].Outcome != definition.Completed {
		t.Errorf("got %v", flat)
	}
}
