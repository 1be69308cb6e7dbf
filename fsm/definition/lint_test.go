package definition_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// linted makes a definition with a context schema, a default, and one transition; members are of the definition, and
// schema is that of the payload.
func linted(members, transition, schema string) string {
	if schema != "" {
		schema = `,"payload_schema":` + schema
	}
	return `{"name":"w","initial":"A",` + members + `"states":{"A":{"on":{"go":{"target":"B",` + transition + schema + `}}},"B":{"type":"final"}}}`
}

const (
	order    = `"context_schema":{"type":"object","required":["price"],"properties":{"price":{"type":"number"},"due":{"type":"string","format":"date-time"},"address":{"type":"object","properties":{"city":{}},"additionalProperties":false},"lines":{"type":"array","items":{"properties":{"sku":{}}}}}},"context_default":{"count":0},`
	pay      = `{"type":"object","required":["amount"],"properties":{"amount":{"type":"number"},"at":{"type":"string","format":"date-time"},"note":{}}}`
	closed   = `{"type":"object","properties":{"amount":{}},"additionalProperties":false}`
	composed = `{"allOf":[{"properties":{"amount":{}}}],"properties":{"note":{}}}`
)

func TestPathFaults(t *testing.T) {
	t.Parallel()
	const guard, value = at + "/guard", at + "/assign/x"
	for text, want := range map[string]map[string]string{
		linted("", `"guard":"$.contxt.n == 1"`, ""):                        {guard: "did you mean $.context?"},
		linted("", `"guard":"$.cotnext.n == 1"`, ""):                       {guard: "did you mean $.context?"},
		linted("", `"guard":"exists($.context.a ? (@ > $.paylod.b))"`, ""): {guard: "did you mean $.payload?"},
		linted("", `"guard":"$.user == 1"`, ""):                            {guard: "there is no $.user; a path reads $.context"},
		linted("", `"assign":{"x":{"$first":["$.nwo",0]}}`, ""):            {value + "/$first/0": "did you mean $.now?"},
		linted("", `"assign":{"x":"lax $.foo.bar"}`, ""):                   {value: "there is no $.foo"},
		linted("", `"guard":"$.*.n == 1 && $.\"context\".n == 1"`, ""):     nil,
		// The whole document, however it is written.
		linted("", `"guard":"$"`, ""):                                     {guard: "name a member, such as $.context"},
		linted("", `"guard":"lax $ == 1"`, ""):                            {guard: "name a member"},
		linted("", `"guard":{"any":["($) == 1","$.context.a == 1"]}`, ""): {guard + "/any/0": "name a member"},
		linted("", `"guard":{"present":{"$path":"(/* all */ $)"}}`, ""):   {guard + "/present/$path": "name a member"},
		linted("", `"guard":"$[0].a == 1"`, ""):                           {guard: "name a member"},
		linted("", `"guard":"exists($ ? (@.context.a == 1))"`, ""):        nil,
		// What the engine itself makes has known members.
		linted("", `"guard":"$.instance.sate == 1"`, ""):                                    {guard: "did you mean $.instance.state?"},
		linted("", `"assign":{"x":"$.instance.owner"}`, ""):                                 {value: "there is no $.instance.owner in an instance"},
		linted("", `"guard":{"equal":["$.actor.subjct",1]}`, ""):                            {guard + "/equal/0": "did you mean $.actor.subject?"},
		linted("", `"guard":"$.actor.roles[*] == \"a\" && $.actor.verified == true"`, ""):   nil,
		linted("", `"guard":"$.now.time == 1"`, ""):                                         {guard: "$.now is a text"},
		linted("", `"guard":"$.event.name == 1"`, ""):                                       {guard: "$.event is a text"},
		linted("", `"guard":"$.event starts with \"a\" && $.now.type() == \"string\""`, ""): nil,
		// What a closed schema excludes.
		linted("", `"guard":"$.payload.amuont == 1"`, closed):                                                                 {guard: "did you mean $.payload.amount?"},
		linted("", `"assign":{"x":"$.payload.other"}`, closed):                                                                {value: "allows no other members"},
		linted("", `"guard":{"present":"$.payload.amount.deep"}`, closed):                                                     nil,
		linted(order, `"guard":"$.context.address.zip == 1"`, ""):                                                             {guard: "there is no $.context.address.zip"},
		linted(order, `"guard":"$.context.address.city == 1"`, ""):                                                            nil,
		linted(order, `"guard":"$.context.address.zip == 1","assign":{"address":1}`, ""):                                      nil,
		linted(`"context_schema":{"additionalProperties":false},`, `"guard":"$.context.n == 1"`, ""):                          {guard: "there is no $.context.n"},
		linted(`"context_schema":{"additionalProperties":false},`, `"guard":"$.context.n == 1","assign":{"n":1}`, ""):         nil,
		linted(`"context_schema":{"additionalProperties":false},`, `"guard":"$.context.n == 1","assign":{"*":["n"]}`, ""):     nil,
		linted(`"context_schema":{"additionalProperties":false},`, `"guard":"$.context.n == 1","assign":{"n.m":{"a":1}}`, ""): nil,
		// Invariants.
		linted(`"invariant":"$.context.n > 0 && $.now > 1",`, `"guard":"$.now > 1"`, ""):                                      {"/invariant": "$.now"},
		linted(`"invariant":{"not":{"equal":["$.actor.subject",{"$path":"$.payload.x"}]}},`, `"guard":"$.context.n > 1"`, ""): {"/invariant/not/equal/0": "who asks", "/invariant/not/equal/1/$path": "$.payload"},
		linted(`"invariant":{"present":"$.event"},`, `"guard":"$.context.n > 1"`, ""):                                         {"/invariant/present": "$.event"},
		linted(`"invariant":"$.instance.version < 9",`, `"guard":"$.context.n > 1"`, ""):                                      nil,
	} {
		expect(t, text, faults(t, text, "", definition.Limits{}), want)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	guard := func(text string) string { return `"guard":` + text }
	for _, c := range []struct {
		text string
		want []string // The name, the end of the pointer, and words of the detail, behind one another.
	}{
		{linted("", guard(`"$.payload.amount == $.context.price"`), ""), nil},
		{linted(order, guard(`"$.payload.amount == $.context.price"`), pay), nil},
		// A cancel that is always refused.
		{linted(`"cancel":"B",`, guard(`"$.payload.amount == 1"`), pay), nil},
		{strings.Replace(linted(`"cancel":"B",`, guard(`"$.payload.amount == 1"`), pay), `"final"`, `"final","protected":true`, 1), []string{"cancel-protected /cancel protected state"}},
		// A stuck_after that a timeout is before.
		{wrap(`{"stuck_after":"1h","after":{"1h":"B"}}`), []string{"stuck-after-timeout /states/A/stuck_after timeout after 1h"}},
		{wrap(`{"stuck_after":"59m","after":{"1h":"B"}}`), nil},
		{wrap(`{"stuck_after":"2h","on":{"go":"B"},"after":{"1h":{"target":"B","guard":"$.context.a == 1"}}}`), nil},
		// What is fired at a stuck instance.
		{wrap(`{"on_stuck":{"event":"go"},"on":{"go":[{"guard":"$.context.a == 1"},"B"]}}`), nil},
		{wrap(`{"on_stuck":{"event":"note"},"on":{"go":"B","note":{"assign":{"a":1}}}}`), []string{"nudge-stays /states/A/on_stuck/event as stuck as before"}},
		{wrap(`{"on_stuck":{"event":"note"},"always":{"guard":"$.context.a == 1","target":"B"},"on":{"note":{"assign":{"a":1}}}}`), nil},
		{wrap(`{"on_stuck":{"event":"note"},"after":{"1h":"B"},"on":{"note":{"rearm":true}}}`), nil},
		// Members that no schema has.
		{linted("", guard(`"$.payload.amuont == 1"`), pay), []string{"unknown-payload-member /guard did you mean $.payload.amount?"}},
		{linted("", guard(`"$.payload.other == 1"`), pay), []string{"unknown-payload-member /guard $.payload.other is not in the payload_schema"}},
		{linted("", guard(`"$.payload.other == 1"`), composed), nil},
		{linted("", guard(`"$.payload.other == 1"`), `{"type":"object"}`), nil},
		{linted(order, guard(`"$.context.prcie == 1"`), ""), []string{"unknown-context-member /guard did you mean $.context.price?"}},
		{linted(order, guard(`"$.context.count == 1 && $.context.lines[*].sku == 1"`), ""), []string{"wildcard-comparison /guard exists("}},
		{linted(order, guard(`"exists($.context.lines[*] ? (@.sku == 1))"`), ""), nil},
		{linted(order, guard(`{"present":"$.context.lines[0].skuu"}`), ""), []string{"unknown-context-member /present did you mean $.context.lines.sku?"}},
		{linted(order, guard(`"$.context.other == 1"`)+`,"assign":{"othre":1}`, ""), []string{"unknown-context-member /guard did you mean $.context.othre?"}},
		{linted("", guard(`"$.context.totla == 1"`)+`,"assign":{"total":1}`, ""), []string{"unknown-context-member /guard did you mean $.context.total?"}},
		{linted("", guard(`"$.context.elsewhere == 1"`)+`,"assign":{"total":1}`, ""), nil},
		{linted(order, guard(`"$.context.prcie == 1"`)+`,"assign":{"*":true,"trusted":true}`, ""), nil},
		{linted(order, guard(`"$.context.amount == 1"`)+`,"assign":"*"`, strings.Replace(closed, "amount", "sum", 1)), []string{"unknown-context-member /guard nothing sets it"}},
		// Variables.
		{linted("", guard(`"$price == 1"`), ""), []string{"unknown-variable /guard $price is a variable"}},
		{linted("", guard(`"exists($.context.a[*] ? (@ > $\"a b\"))"`), ""), []string{"unknown-variable /guard guard-error"}},
		{linted(order, `"assign":{"x":"$.context.count + $x"}`, ""), []string{"unknown-variable /assign/x $x is a variable"}},
		// The payloads of timers and of creations.
		{wrap(`{"on":{"go":"B"},"after":{"1h":{"target":"B","guard":"$.payload.amount == 1"}}}`), []string{"unknown-payload-member /guard payload of a timer"}},
		{wrap(`{"on":{"go":"B"},"every":{"in":"1h","assign":{"x":"$.payload.due_at","y":"$.payload.mised"}}}`), []string{"unknown-payload-member /assign/y did you mean $.payload.missed?"}},
		{wrap(`{"on":{"go":"B"},"after":[{"in":"1h","assign":{"x":"$.payload.missed"}}]}`), []string{"unknown-payload-member /assign/x payload of a timer"}},
		{wrap(`{"on":{"go":"B"},"after":[{"in":"$.payload.delay","target":"B"}]}`), nil},
		{strings.Replace(wrap(`{"on":{"go":"B"}}`), `"initial":"A"`, `"initial":{"target":"A","assign":{"x":"$.payload.x","y":"$.payload"}}`, 1), []string{"unknown-payload-member /initial/assign/x what was sent is $.context"}},
		// Timers that are to start again, and are not there.
		{wrap(`{"on":{"go":"B","more":{"rearm":true}}}`), []string{"rearm-without-timer /more/rearm A has no after"}},
		{wrap(`{"on":{"go":"B","more":[{"guard":"$.context.a == 1","rearm":true},{"rearm":true}]},"every":{"in":"1h","assign":{"x":1}}}`), nil},
		{wrap(`{"initial":"C","after":{"1h":"B"},"states":{"C":{"on":{"go":"B","more":{"rearm":true}}}}}`), []string{"rearm-without-timer /more/rearm A has some"}},
		// Arithmetic.
		{linted("", `"assign":{"n":"$.context.n + 1"}`, ""), []string{"operand-may-be-missing /assign/n context_default"}},
		{linted(order, `"assign":{"count":"$.context.count + 1","x":"$.context.price * 2"}`, ""), nil},
		{linted(order, `"assign":{"x":{"$path":"-$.payload.note + $.payload.amount"}}`, pay), []string{"operand-may-be-missing /assign/x/$path $.payload.note may be missing"}},
		{strings.Replace(linted("", `"assign":{"n":"$.context.n + 1"}`, ""), `"initial":"A"`, `"initial":{"target":"A","assign":{"n":0}}`, 1), nil},
		// Existence.
		{linted("", guard(`"exists($.payload.a)"`), ""), []string{"use-present /guard present"}},
		{linted("", guard(`"!exists($.payload.a)"`), ""), []string{"use-absent /guard absent"}},
		{linted("", guard(`"exists($.payload.a ? (@ > 1))"`), ""), nil},
		{linted("", guard(`"exists($.payload.a[*] ? (!exists(@.b)))"`), ""), []string{"use-absent /guard begin the path with lax"}},
		{linted("", guard(`"lax !exists($.payload.a)"`), ""), nil},
		{linted(order, guard(`"$.payload.note == null"`), pay), []string{"use-absent /guard unknown for what is missing"}},
		{linted("", guard(`"null == $.context.a"`), ""), []string{"use-absent /guard absent"}},
		{linted("", guard(`{"not":{"equal":["$.context.a",null]}}`), ""), []string{"use-absent /not/equal absent"}},
		{linted(order, guard(`"$.context.count == null || $.payload.amount == null || $.context.address.city != null"`), pay), nil},
		{linted(order, guard(`{"any":[{"equal":[null,"$.context.price"]},{"equal":[null,{"$first":["$.context.due",null]}]}]}`), pay), nil},
		{linted("", guard(`"lax $.context.a == null || exists($.context.l[*] ? (@.a == null))"`), ""), nil},
		{linted("", guard(`"exists($.payload.a[*] ? (exists(@.b)))"`), ""), nil},
		// Comparisons.
		{linted("", guard(`"$.payload.items[*].price > 100"`), ""), []string{"wildcard-comparison /guard one item lacks"}},
		{linted("", guard(`"$.payload.items[0].price > 100 && $.payload.tags[*] == \"a\""`), ""), nil},
		{linted("", guard(`"$.payload.items.*.name starts with \"a\""`), ""), []string{"wildcard-comparison /guard "}},
		{linted("", guard(`"lax $.payload.items[*].price > 100"`), ""), nil},
		{linted("", guard(`"$.payload.t.datetime() < $.context.u.datetime()"`), ""), []string{"time-as-text /guard PostgreSQL 15"}},
		{linted("", guard(`"$.payload.at < \"2026\""`), pay), []string{"time-as-text /guard before"}},
		{linted(order, guard(`"$.context.due >= $.context.price"`), ""), []string{"time-as-text /guard >= compares"}},
		{linted("", guard(`"$.now > $.context.n"`), ""), []string{"time-as-text /guard before"}},
		{linted("", guard(`"$.instance.created_at > $.context.n"`), ""), []string{"time-as-text /guard before"}},
		{linted(order, guard(`"$.context.due == $.context.price"`), ""), nil},
		// The rest.
		{linted("", `"assign":{"x":"\"text\""}`, ""), []string{"quoted-text /assign/x quotes"}},
		{linted("", guard(`{"equal":["$.actor.subject","$.context.author"]}`), ""), []string{"actor-unverified /guard/equal/0 authentication"}},
		{linted(`"context_default":{"at":"$.now"},`, `"assign":{"x":1}`, ""), []string{"default-is-text /context_default/at plain JSON"}},
	} {
		d, err := definition.Read([]byte(c.text), "", definition.Limits{})
		if err != nil || d.Err() != nil {
			t.Errorf("%s: %v %v", c.text, err, d.Err())
			continue
		}
		var got []string
		for _, w := range d.Warnings() {
			got = append(got, fmt.Sprintf("%s %s %s", w.Name, w.Pointer, w.Detail))
		}
		fits := len(got) == len(c.want)
		for i := range min(len(got), len(c.want)) {
			want := strings.SplitN(c.want[i], " ", 3)
			have := strings.SplitN(got[i], " ", 3)
			fits = fits && have[0] == want[0] && strings.HasSuffix(have[1], want[1]) && strings.Contains(have[2], want[2])
		}
		if !fits {
			t.Errorf("%s\nwarns of %q\nwant %q", c.text, got, c.want)
		}
	}
}

// A warning is silenced at its place, or anywhere above it.
func TestAllowedWarnings(t *testing.T) {
	t.Parallel()
	text := linted("", `"guard":"exists($.payload.a)","assign":{"x":"\"text\""}`, "")
	warned := func(text string) (names []string) {
		d, err := definition.Read([]byte(text), "", definition.Limits{})
		if err != nil || d.Err() != nil {
			t.Fatal(err, d.Err())
		}
		for _, w := range d.Warnings() {
			names = append(names, w.Name)
		}
		return names
	}
	allow := func(before string) string {
		return strings.Replace(text, before, before+`"x-allow":["use-present"],`, 1)
	}
	for text, want := range map[string][]string{
		text:            {"quoted-text", "use-present"},
		allow(`{`):      {"quoted-text"},
		allow(`"A":{`):  {"quoted-text"},
		allow(`"go":{`): {"quoted-text"},
		allow(`"B":{`):  {"quoted-text", "use-present"},
		strings.Replace(text, `{`, `{"x-allow":["use-present","quoted-text"],`, 1): nil,
	} {
		if got := warned(text); !slices.Equal(got, want) {
			t.Errorf("%s warns of %v, want %v", text, got, want)
		}
	}
	if c := canonical(t, allow(`"go":{`)); !strings.Contains(c, `"x-allow":["use-present"]`) {
		t.Errorf("x-allow is lost in %s", c)
	}
}

// The shipped examples are as the lint would have them.
func TestExamplesHaveNoWarnings(t *testing.T) {
	t.Parallel()
	for name, text := range definitions(t) {
		if !strings.HasPrefix(name, "../../examples/") {
			continue
		}
		d, err := definition.Read([]byte(text), "", definition.Limits{})
		if err != nil || d.Err() != nil {
			t.Fatal(err, d.Err())
		}
		for _, w := range d.Warnings() {
			t.Errorf("%s: %s: %s (%s)", name, w.Pointer, w.Detail, w.Name)
		}
	}
}

// A definition of very many names is read in seconds: what is looked for in lists is bounded.
func TestLintOfManyNames(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 28_000 {
		names = append(names, fmt.Sprintf(`"a%d":"$.context.b%d + 1"`, i, i))
	}
	text := wrap(`{"on":{"go":{"target":"B","assign":{` + strings.Join(names, ",") + `}}}}`)
	warnings := bounded.Result(t, "the warnings of a definition", func() []definition.Warning {
		d, err := definition.Read([]byte(text), "", definition.Limits{})
		if err != nil || d.Err() != nil {
			t.Error(err, d.Err())
			return nil
		}
		return d.Warnings()
	})
	if len(warnings) != len(names) {
		t.Errorf("%d warnings, want %d", len(warnings), len(names))
	}
}
