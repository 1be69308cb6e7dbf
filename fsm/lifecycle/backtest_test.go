package lifecycle_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func backtest(t testing.TB, s *fsmtest.Service, c lifecycle.BacktestCommand) lifecycle.Backtest {
	t.Helper()
	b, err := s.Backtest(t.Context(), c)
	if err != nil {
		t.Fatalf("backtest: %v", err)
	}
	return b
}

// machineries are random workflows with all that a definition may have: guards that read the
// clock or the actor, or raise, timers of all kinds and lifetimes, states within states that end or are resumed, entries
// that count, internal and eventless transitions, patterns of events and invariants. Their events are next, which leads to
// the end, e1, e2 and any other.
func machineries() *rapid.Generator[map[string]any] {
	return rapid.Custom(func(t *rapid.T) map[string]any {
		atomic := []string{"S0", "S1", "P.X", "P.Y", "S2"}
		everywhere := append([]string{"P", "DONE", "GONE"}, atomic...)
		guard := func() string {
			k := rapid.IntRange(0, 6).Draw(t, "k")
			return rapid.SampledFrom([]string{
				"", fmt.Sprintf("$.context.n > %d", k), fmt.Sprintf("$.payload.n == %d", k),
				fmt.Sprintf(`$.now < "2030-02-03T12:%02d:30.000000+00:00"`, 3*k), fmt.Sprintf("$.instance.version > %d", k),
				"$nowhere == 1", "$.context.never == 1", `$.actor.subject == "alice"`,
			}).Draw(t, "guard")
		}
		// source is the state that declares it. Only a transition that may stay can have no target.
		transition := func(source, guard string, mayStay bool) map[string]any {
			d := map[string]any{"target": rapid.SampledFrom(everywhere).Draw(t, "target")}
			switch kind := rapid.IntRange(0, 5).Draw(t, "kind"); {
			case kind == 0 && mayStay:
				d = map[string]any{}
				if rapid.Bool().Draw(t, "rearm") {
					d["rearm"] = true
				}
			case kind == 1 && source == "P":
				d = map[string]any{"target": rapid.SampledFrom([]string{"P.X", "P.Y", "P.F"}).Draw(t, "within"), "internal": true}
			case kind < 3 && !strings.HasPrefix(source, "P"):
				d = map[string]any{"target": "P", "resume": rapid.SampledFrom([]any{true, "timers"}).Draw(t, "resume")}
			}
			if guard != "" {
				d["guard"] = guard
			}
			switch rapid.IntRange(0, 4).Draw(t, "assign") {
			case 1:
				d["assign"] = map[string]any{"n": "$.context.n + 1"}
			case 3:
				d["assign"] = map[string]any{"in": "$.payload.in", "due": "$.payload.due", "seen.by": "$.actor.subject"}
			case 2:
				d["assign"] = map[string]any{"n": "$.payload.n", "at": "$.now"}
			}
			return d
		}
		candidates := func(source string, n int) []any {
			list := []any{}
			for range n {
				list = append(list, transition(source, guard(), true))
				if list[len(list)-1].(map[string]any)["guard"] == nil {
					break
				}
			}
			return list
		}
		timers := func(source string, s map[string]any) {
			if rapid.Bool().Draw(t, "constant timers") {
				after := map[string]any{}
				for _, delay := range []string{"1m", "2m", "5m"} {
					if n := rapid.IntRange(-1, 2).Draw(t, delay); n > 0 {
						after[delay] = candidates(source, n)
					}
				}
				s["after"] = after
			} else {
				after := []any{}
				for range rapid.IntRange(1, 3).Draw(t, "timers") {
					timer := transition(source, guard(), true)
					switch in := rapid.SampledFrom([]any{
						"2m", "1mo", "$.context.in", map[string]any{"$first": []any{"$.context.in", "3m"}}, nil,
					}).Draw(t, "in"); {
					case in == nil:
						timer["at"] = "$.context.due"
					case in == "2m" || in == "1mo":
						// A second one behind it could never be taken.
						timer["in"], timer["guard"] = in, "$.context.n > 2"
					default:
						timer["in"] = in
					}
					after = append(after, timer)
				}
				s["after"] = after
			}
			if rapid.IntRange(0, 3).Draw(t, "every") == 0 {
				every := map[string]any{"in": rapid.SampledFrom([]any{"50s", "3m", map[string]any{"$path": "60 + $.context.n"}}).Draw(t, "in")}
				if g := guard(); g != "" {
					every["guard"] = g
				}
				every["assign"] = map[string]any{"n": "$.context.n + 1", "missed": "$.payload.missed"}
				s["every"] = every
			}
		}
		state := func(name, next string) map[string]any {
			on := map[string]any{"next": next}
			for _, event := range []string{"e1", "e2", "e.*", "*"} {
				if n := rapid.IntRange(0, 2).Draw(t, event); n > 0 {
					on[event] = candidates(name, n)
				}
			}
			s := map[string]any{"on": on}
			timers(name, s)
			if rapid.IntRange(0, 2).Draw(t, "entry") == 0 {
				s["entry"] = map[string]any{"assign": map[string]any{"n": "$.context.n + 1"}}
			}
			if rapid.IntRange(0, 2).Draw(t, "always") == 0 {
				s["always"] = []any{transition(name, fmt.Sprintf("$.context.n == %d", rapid.IntRange(0, 4).Draw(t, "k")), false)}
			}
			if rapid.IntRange(0, 4).Draw(t, "invariant") == 0 {
				s["invariant"] = fmt.Sprintf("$.context.n < %d", rapid.IntRange(2, 9).Draw(t, "most"))
			}
			return s
		}
		within := map[string]any{
			"initial": map[string]any{"target": "X", "assign": map[string]any{"first": map[string]any{"$union": []any{"$.context.first", "$.context.n"}}}},
			"states":  map[string]any{"X": state("P.X", "P.Y"), "Y": state("P.Y", "S2"), "F": map[string]any{"type": "final"}},
			"on":      map[string]any{"e1": "S1", "*": []any{transition("P", "", true)}},
			"done":    []any{map[string]any{"target": "S2", "guard": "$.context.n > 3"}, map[string]any{"target": "S1"}},
		}
		within["states"].(map[string]any)["X"].(map[string]any)["on"].(map[string]any)["end"] = "P.F"
		timers("P", within)
		d := map[string]any{
			"initial": rapid.SampledFrom([]string{"S0", "P"}).Draw(t, "initial"),
			"states": map[string]any{
				"S0": state("S0", "S1"), "S1": state("S1", "P"), "P": within, "S2": state("S2", "DONE"),
				"DONE": map[string]any{"type": "final"}, "GONE": map[string]any{"type": "final", "outcome": "expired"},
			},
		}
		if d["initial"] == "P" {
			d["states"].(map[string]any)["S2"].(map[string]any)["on"].(map[string]any)["back"] = "S0"
		}
		// So that GONE can be reached.
		d["ttl"] = map[string]any{"after": "9m", "target": "GONE", "sliding": rapid.Bool().Draw(t, "sliding")}
		return d
	})
}

var machineryNames atomic.Int64

// A workflow's own version finds no difference in what was made by it, however late its timers
// were, and neither does one that is described otherwise.
func TestBacktestOfItsOwnVersion(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	made := map[string]int{}
	rapid.Check(t, func(r *rapid.T) {
		d := machineries().Draw(r, "workflow")
		name := fmt.Sprint("machinery-", machineryNames.Add(1))
		d["name"] = name
		text, err := json.Marshal(d)
		if err != nil {
			r.Fatal(err)
		}
		if _, err := s.Register(t.Context(), "", text, "tester", false); err != nil {
			r.Fatalf("%v: %s", err, text)
		}
		dbtest.SetClock(t, pool, fsmtest.Noon)
		var ids []uuid.UUID
		for range 3 {
			c := fsm.CreateCommand{Workflow: name, Context: json.RawMessage(`{"n": 0}`)}
			if rapid.Bool().Draw(r, "own lifetime") {
				c.ExpiresIn = 7 * time.Minute
			}
			if created, err := s.Create(t.Context(), c); err == nil {
				ids = append(ids, created.Instance.ID)
			}
		}
		for range rapid.IntRange(3, 12).Draw(r, "steps") {
			dbtest.Advance(t, pool, time.Duration(rapid.IntRange(0, 150).Draw(r, "seconds"))*time.Second)
			if rapid.Bool().Draw(r, "timers") {
				fsmtest.FireTimers(t, pool)
			}
			for _, id := range ids {
				// Refused or not, what was made is what counts.
				payload, err := json.Marshal(map[string]any{
					"n":   rapid.IntRange(0, 4).Draw(r, "n"),
					"in":  rapid.SampledFrom([]any{nil, 45, "90s", "PT4M", 0, -1, "no duration"}).Draw(r, "in"),
					"due": rapid.SampledFrom([]any{nil, fsmtest.Noon.Add(4 * time.Minute), fsmtest.Noon.Add(10 * time.Minute)}).Draw(r, "due"),
				})
				if err != nil {
					r.Fatal(err)
				}
				_, err = s.Fire(t.Context(), fsm.FireCommand{
					ID: id, Event: rapid.SampledFrom([]string{"next", "e1", "e2", "back", "end", "e.x", "other"}).Draw(r, "event"),
					Payload: payload, Origin: fsm.Origin{Actor: rapid.SampledFrom([]string{"alice", "bob"}).Draw(r, "actor")},
				})
				made[kindOfStep(err)]++
			}
		}
		if rapid.Bool().Draw(r, "timers") {
			fsmtest.FireTimers(t, pool)
		}
		own := backtest(t, s, lifecycle.BacktestCommand{Workflow: name, Version: 1})
		d["description"] = "the same"
		if text, err = json.Marshal(d); err != nil {
			r.Fatal(err)
		}
		for _, b := range []lifecycle.Backtest{own, backtest(t, s, lifecycle.BacktestCommand{Workflow: name, Definition: text})} {
			if b.Instances != len(ids) || b.Same != len(ids) {
				for _, d := range b.Differences {
					for _, step := range fsmtest.History(t, s, d.InstanceID) {
						r.Logf("%d %s %v %v to %s at %s: %s, %s", step.Version, step.Kind, deref(step.Event), deref(step.From), step.To, step.At, step.Payload, step.Context)
					}
				}
				r.Fatalf("%d of %d instances differ: %+v\n%s", b.Different, b.Instances, b.Differences, text)
			}
		}
	})
	for _, what := range []string{"applied", fsm.GuardRejected.Error(), fsm.GuardError.Error()} {
		if made[what] == 0 {
			t.Errorf("no command was %s, so this shows little: %v", what, made)
		}
	}
}

func kindOfStep(err error) string {
	if err == nil {
		return "applied"
	}
	return fsm.AsError(err).Kind.Error()
}

func deref(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

// order is paid and shipped, or lapses.
const order = `{"name": "order", "initial": "NEW", "states": {
	"NEW": {
		"on": {
			"pay": {"target": "PAID", "guard": "$.payload.amount > 0", "assign": {"amount": "$.payload.amount"}},
			"cancel": "CANCELLED"},
		"after": {"10m": "LAPSED"}},
	"PAID": {"on": {"ship": "SHIPPED", "cancel": "CANCELLED"}},
	"SHIPPED": {"type": "final"},
	"CANCELLED": {"type": "final", "outcome": "cancelled"},
	"LAPSED": {"type": "final", "outcome": "expired"}}}`

// What becomes of an order.

func shipped(t testing.TB, s *fsmtest.Service, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "order", `{"of": "tea"}`)
	dbtest.Advance(t, pool, 3*time.Minute)
	fsmtest.Fire(t, s, i.ID, "pay", `{"amount": 5}`)
	dbtest.Advance(t, pool, 2*time.Minute)
	fsmtest.Fire(t, s, i.ID, "ship", `{}`)
	return i.ID
}

// lapsed ends three seconds late.
func lapsed(t testing.TB, s *fsmtest.Service, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "order", `{"of": "tea"}`)
	dbtest.Advance(t, pool, 10*time.Minute+3*time.Second)
	fsmtest.WantFired(t, pool, 1)
	return i.ID
}

// forgotten is new for an hour, in which no timer fires.
func forgotten(t testing.TB, s *fsmtest.Service, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "order", `{"of": "tea"}`)
	dbtest.Advance(t, pool, time.Hour)
	return i.ID
}

// latePaid is paid when it should have lapsed.
func latePaid(t testing.TB, s *fsmtest.Service, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	i := forgotten(t, s, pool)
	fsmtest.Fire(t, s, i, "pay", `{"amount": 5}`)
	return i
}

// Each way to differ, and changes that make no difference.
func TestBacktestDifferences(t *testing.T) {
	t.Parallel()
	type made = func(testing.TB, *fsmtest.Service, *pgxpool.Pool) uuid.UUID
	const lapse = `"lapse": "LAPSED", "cancel": "CANCELLED"`
	for name, test := range map[string]struct {
		made   made
		change []string
		// want is "version event from to: outcome to would-be", empty for no difference.
		want, detail string
	}{
		"nothing":                {shipped, nil, "", ""},
		"descriptions":           {shipped, []string{`"NEW": {`, `"NEW": {"description": "not paid",`}, "", ""},
		"a renamed state":        {shipped, []string{"PAID", "SETTLED"}, "2 pay NEW PAID: elsewhere to SETTLED", "pay leads to SETTLED"},
		"another initial state":  {shipped, []string{`"initial": "NEW"`, `"initial": "BARE"`, `"NEW": {`, `"BARE": {"on": {"quote": "NEW"}}, "NEW": {`}, "1 - - NEW: elsewhere to BARE", "the creation leads to BARE"},
		"an event moved":         {shipped, []string{`"PAID": {"on": {"ship": "SHIPPED", `, `"PAID": {"on": {`, `"cancel": "CANCELLED"},`, `"cancel": "CANCELLED", "ship": "SHIPPED"},`}, "3 ship PAID SHIPPED: transition-not-allowed", "the state PAID has no transition for ship"},
		"an event renamed":       {shipped, []string{`"ship"`, `"send"`}, "3 ship PAID SHIPPED: unknown-event", "the workflow has no event ship"},
		"a stricter guard":       {shipped, []string{"> 0", "> 5"}, "2 pay NEW PAID: guard-rejected", "no guard of pay in the state NEW holds"},
		"a guard that raises":    {shipped, []string{"> 0", "> $limit"}, "2 pay NEW PAID: guard-error", `"limit"`},
		"a looser guard":         {shipped, []string{"> 0", "> 4"}, "", ""},
		"an endless loop":        {shipped, []string{`"ship": "SHIPPED", "cancel": "CANCELLED"}`, `"ship": "SHIPPED", "cancel": "CANCELLED"}, "always": {"target": "PAID", "guard": "$.context.amount == 5"}`}, "2 pay NEW PAID: guard-error", "without coming to rest"},
		"another outcome":        {shipped, []string{`"SHIPPED": {"type": "final"}`, `"SHIPPED": {"type": "final", "outcome": "failed"}`}, "3 ship PAID SHIPPED: other-status", "an instance in SHIPPED is failed, and was completed"},
		"a timeout before":       {shipped, []string{"10m", "2m"}, "2 pay NEW PAID: timeout to LAPSED", "after:2m, due at 2030-02-03T12:02:00Z, leads from NEW to LAPSED first"},
		"a timeout just then":    {shipped, []string{"10m", "3m"}, "", ""},
		"a timeout that raises":  {shipped, []string{`"10m": "LAPSED"`, `"2m": {"target": "LAPSED", "guard": "$limit > 1"}`}, "2 pay NEW PAID: guard-error", `"limit"`},
		"a refused timeout":      {shipped, []string{`"10m": "LAPSED"`, `"2m": {"target": "LAPSED", "guard": "$.context.of == \"coffee\""}`}, "", ""},
		"after a refused one":    {shipped, []string{`"10m": "LAPSED"`, `"1m": {"target": "LAPSED", "guard": "$.context.never == 1"}, "2m": "CANCELLED", "9m": "LAPSED"`}, "2 pay NEW PAID: timeout to CANCELLED", "after:2m"},
		"a lifetime that ends":   {shipped, []string{`"initial"`, `"ttl": {"after": "4m", "target": "LAPSED"}, "initial"`}, "3 ship PAID SHIPPED: timeout to LAPSED", "ttl, due at 2030-02-03T12:04:00Z"},
		"a lifetime that slides": {shipped, []string{`"initial"`, `"ttl": {"after": "4m", "target": "LAPSED", "sliding": true}, "initial"`}, "", ""},
		"a payload schema":       {shipped, []string{`"guard": "$.payload.amount > 0"`, `"guard": "$.context.never == 1", "payload_schema": {"properties": {"amount": {"maximum": 4}}}`}, "2 pay NEW PAID: invalid-payload", "the recorded payload does not fit its schema"},
		"one that it fits":       {shipped, []string{`"guard":`, `"payload_schema": {"properties": {"amount": {"maximum": 5}}}, "guard":`}, "", ""},
		"a schema too late":      {shipped, []string{"> 0", "> 5", `"ship": "SHIPPED"`, `"ship": {"target": "SHIPPED", "payload_schema": {"required": ["by"]}}`}, "2 pay NEW PAID: guard-rejected", ""},
		"a schema after all":     {shipped, []string{`"ship": "SHIPPED"`, `"ship": {"target": "SHIPPED", "payload_schema": {"required": ["by"]}}`}, "3 ship PAID SHIPPED: invalid-payload", ""},
		"a context schema":       {shipped, []string{`"initial"`, `"context_schema": {"properties": {"of": {"type": "integer"}}}, "initial"`}, "1 - - NEW: invalid-context", "the recorded context does not fit its schema"},
		"one that it fits too":   {shipped, []string{`"initial"`, `"context_schema": {"required": ["of"]}, "initial"`}, "", ""},
		"an entry":               {shipped, []string{`"NEW": {`, `"NEW": {"entry": {"assign": {"free": true}}, `, "$.payload.amount > 0", "$.context.free != true"}, "2 pay NEW PAID: guard-rejected", ""},
		"an eventless way":       {shipped, []string{`"PAID": {`, `"PAID": {"always": {"target": "SHIPPED", "guard": "$.context.amount > 4"}, `}, "2 pay NEW PAID: elsewhere to SHIPPED", ""},
		"within another state":   {shipped, []string{`"target": "PAID"`, `"target": "P"`, `"PAID": {`, `"P": {"initial": "PAID", "states": {"PAID": {`, `"CANCELLED"}},` + "\n\t\"SHIPPED\"", `"CANCELLED"}}}},` + "\n\t\"SHIPPED\""}, "2 pay NEW PAID: elsewhere to P.PAID", ""},

		"lapsed sooner":           {lapsed, []string{"10m", "5m"}, "", ""},
		"lapsed later":            {lapsed, []string{"10m", "20m"}, "2 after:10m NEW LAPSED: no-timeout", "no timeout of NEW has ended by then"},
		"lapsed as late":          {lapsed, []string{"10m", "602s"}, "", ""},
		"lapsed by lifetime":      {lapsed, []string{`"after": {"10m": "LAPSED"}`, `"description": "new"`, `"initial"`, `"ttl": {"after": "10m", "target": "LAPSED"}, "initial"`}, "", ""},
		"never lapsed":            {lapsed, []string{`"after": {"10m": "LAPSED"}`, `"description": "new"`, `"cancel": "CANCELLED"},`, lapse + "},"}, "2 after:10m NEW LAPSED: no-timeout", ""},
		"lapsed elsewhere":        {lapsed, []string{`"10m": "LAPSED"`, `"10m": "CANCELLED"`, `"cancel": "CANCELLED"},`, lapse + "},"}, "2 after:10m NEW LAPSED: elsewhere to CANCELLED", ""},
		"lapsed sooner elsewhere": {lapsed, []string{`"10m": "LAPSED"`, `"5m": "CANCELLED", "10m": "LAPSED"`}, "2 after:10m NEW LAPSED: timeout to CANCELLED", "after:5m, due at 2030-02-03T12:05:00Z"},
		"ended before it lapsed":  {lapsed, []string{`"initial"`, `"ttl": {"after": "10m", "target": "CANCELLED"}, "initial"`, "10m", "20m"}, "2 after:10m NEW LAPSED: elsewhere to CANCELLED", "ttl leads to CANCELLED"},
		"a lapse that raises":     {lapsed, []string{`"10m": "LAPSED"`, `"10m": {"target": "LAPSED", "guard": "$limit > 1"}`}, "2 after:10m NEW LAPSED: guard-error", `"limit"`},

		"forgotten":            {forgotten, nil, "", ""},
		"forgotten and later":  {forgotten, []string{"10m", "20m"}, "", ""},
		"forgotten and sooner": {forgotten, []string{"10m", "5m"}, "1 - NEW NEW: timeout to LAPSED", "after:5m, due at 2030-02-03T12:05:00Z, leads from NEW to LAPSED first"},
		"late":                 {latePaid, nil, "", ""},
		"late and later":       {latePaid, []string{"10m", "20m"}, "", ""},
		"late and sooner":      {latePaid, []string{"10m", "5m"}, "2 pay NEW PAID: timeout to LAPSED", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, pool := fsmtest.New(t, fsm.Config{}, order)
			id := test.made(t, s, pool)
			candidate := strings.NewReplacer(test.change...).Replace(order)
			before := contents(t, pool)
			b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "order", Definition: json.RawMessage(candidate)})
			if after := contents(t, pool); after != before {
				t.Error("something was written")
			}
			if b.Version != 0 || b.Instances != 1 || b.Same+b.Different != 1 || len(b.Differences) != b.Different || len(b.Summary) != b.Different {
				t.Fatalf("%+v", b)
			}
			got := ""
			for _, d := range b.Differences {
				got = fmt.Sprintf("%d %s %s %s: %s", d.Version, deref(d.Event), deref(d.From), d.To, d.Outcome)
				if d.WouldBe != nil {
					got += " to " + *d.WouldBe
				}
				if d.InstanceID != id || d.WorkflowVersion != 1 || !strings.Contains(d.Detail, test.detail) || d.Detail == "" {
					t.Errorf("%+v", d)
				}
				if g := b.Summary[0]; g.Count != 1 || g.Outcome != d.Outcome || g.Examples[0] != id {
					t.Errorf("%+v", g)
				}
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			// Registered, it is the same; and only then is it another version.
			version := fsmtest.Register(t, s, candidate).Version
			again := backtest(t, s, lifecycle.BacktestCommand{Workflow: "order", Version: version})
			if again.Version = 0; !cmp.Equal(again, b) {
				t.Errorf("as a version it differs otherwise:\n%s", cmp.Diff(b, again))
			}
		})
	}
}

// contents is a digest of all rows of all tables.
func contents(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	var queries []string
	for _, table := range bounded.Value[[]string](t, pool, `
		select array_agg(oid::regclass::text order by oid) from pg_class where relnamespace = 'pawl'::regnamespace and relkind in ('r', 'p')`) {
		queries = append(queries, fmt.Sprintf("(select md5(coalesce(string_agg(r::text, ' ' order by r::text), '')) from %s r)", table))
	}
	return bounded.Value[string](t, pool, "select concat_ws(' ', "+strings.Join(queries, ", ")+")")
}

// A timer that came so late that the first timeout was refused by then.
func TestBacktestOfATimeoutPassedOver(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "alarm", "initial": "SET", "states": {
		"SET": {"after": {"1m": {"target": "EARLY", "guard": "$.now < \"2030-02-03T12:05\""}, "2m": "LATE"}},
		"EARLY": {"type": "final"}, "LATE": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	fsmtest.Create(t, s, "alarm", `{}`)
	dbtest.Advance(t, pool, 10*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	if b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "alarm", Version: 1}); b.Same != 1 {
		t.Errorf("%+v", b)
	}
}

// A repeating timer that was refused has moved on, whether its state was then left for a time or not.
func TestBacktestOfARepeatRefused(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "alarm", "initial": "P", "states": {
		"P": {
			"initial": "SET", "states": {"SET": {"on": {"note": {}}}},
			"every": {"in": "50s", "guard": "$.instance.version > 1"},
			"on": {"leave": "AWAY", "end": "DONE"}},
		"AWAY": {"always": {"target": "P", "resume": "timers"}},
		"DONE": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	for _, event := range []string{"note", "leave"} {
		id := fsmtest.Create(t, s, "alarm", `{}`).ID
		dbtest.Advance(t, pool, 3*time.Minute)
		fsmtest.FireTimers(t, pool)
		fsmtest.Fire(t, s, id, event, `{}`)
		fsmtest.Fire(t, s, id, "end", `{}`)
	}
	if b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "alarm", Version: 1}); b.Same != 2 {
		t.Errorf("%+v", b.Differences)
	}
}

// A lifetime that the caller gave is the instance's; another is the definition's.
func TestBacktestOfLifetimes(t *testing.T) {
	t.Parallel()
	definition := func(ttl string) json.RawMessage {
		return json.RawMessage(`{"name": "session", "initial": "OPEN", ` + ttl + ` "states": {
			"OPEN": {"on": {"touch": "OPEN", "close": "GONE"}}, "GONE": {"type": "final", "outcome": "expired"}}}`)
	}
	s, pool := fsmtest.New(t, fsm.Config{}, string(definition(`"ttl": {"after": "30m", "target": "GONE"},`)))
	dbtest.SetClock(t, pool, fsmtest.Noon)
	usual := fsmtest.Create(t, s, "session", `{}`)
	own, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "session", ExpiresIn: 20 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	dbtest.Advance(t, pool, 15*time.Minute)
	fsmtest.Fire(t, s, usual.ID, "touch", `{}`)
	fsmtest.Fire(t, s, own.Instance.ID, "touch", `{}`)
	dbtest.Advance(t, pool, 5*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	for ttl, want := range map[string]string{
		`"ttl": {"after": "30m", "target": "GONE"},`:                  "",
		`"ttl": {"after": "60m", "target": "GONE"},`:                  "",
		`"ttl": {"after": "10m", "target": "GONE"},`:                  usual.ID.String() + " timeout",
		`"ttl": {"after": "60m", "target": "GONE", "sliding": true},`: own.Instance.ID.String() + " no-timeout",
		"": own.Instance.ID.String() + " no-timeout",
	} {
		b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "session", Definition: definition(ttl)})
		got := ""
		for _, d := range b.Differences {
			got += d.InstanceID.String() + " " + d.Outcome
		}
		if got != want || b.Instances != 2 {
			t.Errorf("%s: %q, want %q", ttl, got, want)
		}
	}
}

// Documents that SQL callers vouched for need not fit the schema that they were made under.
func TestBacktestOfWhatWasVouchedFor(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	bounded.Exec(t, pool, `select pawl.create_one('flight-booking', '{"price": "low"}')`)
	described := strings.Replace(fsmtest.FlightBooking, `"initial"`, `"description": "flights", "initial"`, 1)
	if b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "flight-booking", Definition: []byte(described)}); b.Same != 1 {
		t.Errorf("%+v", b)
	}
	stricter := strings.Replace(fsmtest.FlightBooking, `"minimum": 0`, `"minimum": 1`, 1)
	b := backtest(t, s, lifecycle.BacktestCommand{Workflow: "flight-booking", Definition: []byte(stricter)})
	if b.Different != 1 || !slices.Equal(fsmtest.Pointers(b.Differences[0].Faults), []string{"/context", "/context/price"}) {
		t.Errorf("%+v", b)
	}
}
