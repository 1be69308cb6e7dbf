package db_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Random documents, values and guards. The names are few, so that a path often finds what it names, and often
// something of another type.

var memberNames = []string{"a", "b", "n", "s"}

var times = []any{
	"2026-01-31T10:00:00Z", "2026-02-28T02:30:00.123456+01:00", "2026-04-29T02:30:00+02:00", "2028-02-29t23:59:59z", "2026-09-25T02:30:00+02:00",
	"2026-11-25T02:30:00.5-05:00", "9999-12-31T23:59:59Z",
}

// scalars are often such as equal each other.
func scalars() *rapid.Generator[any] {
	few := []any{nil, json.Number("1"), json.Number("1.0"), "a", "1"}
	return rapid.OneOf(rapid.SampledFrom(few), rapid.SampledFrom(append([]any{
		nil, true, false, json.Number("0"), json.Number("1"), json.Number("1.0"), json.Number("2.50"), json.Number("-3.75"),
		json.Number("12345678901234567890.1"), "", "a", "b", "n", "$a", "5", "3d", "-P1M",
		"2026-01-31T10:00:00", "2026-02-30T10:00:00Z", "2026-01-01T00:00:00+99:00", "2026-01-31",
	}, times...)))
}

func documents(depth int) *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any {
		kind := rapid.IntRange(0, 5).Draw(t, "kind")
		if depth == 0 {
			kind = 0
		}
		switch kind {
		case 0, 1, 2:
			return scalars().Draw(t, "scalar")
		case 3:
			list := []any{}
			for range rapid.IntRange(0, 3).Draw(t, "items") {
				list = append(list, documents(depth-1).Draw(t, "item"))
			}
			return list
		}
		return objects(depth).Draw(t, "object")
	})
}

func objects(depth int) *rapid.Generator[map[string]any] {
	return rapid.Custom(func(t *rapid.T) map[string]any {
		object := map[string]any{}
		for _, name := range memberNames {
			if rapid.IntRange(0, 3).Draw(t, "has "+name) > 0 {
				object[name] = documents(depth-1).Draw(t, name)
			}
		}
		return object
	})
}

func accessors(root string, plain bool) *rapid.Generator[accessor] {
	return rapid.Custom(func(t *rapid.T) accessor {
		a := accessor{root: root}
		if root == "$" {
			a.steps = append(a.steps, step{member: rapid.SampledFrom([]string{"context", "context", "payload", "instance", "now", "event", "actor"}).Draw(t, "root")})
		}
		for range rapid.IntRange(0, 3).Draw(t, "steps") {
			s := step{}
			switch kind := rapid.IntRange(0, 8).Draw(t, "step"); {
			case kind < 5:
				s.member = rapid.SampledFrom(memberNames).Draw(t, "member")
			case kind == 5:
				s.index = rapid.IntRange(0, 2).Draw(t, "index")
			case kind == 6:
				s.last = true
			case kind == 7 && !plain:
				s.all = true
			case kind == 8 && !plain && root == "$":
				s.filter = predicates("@", 1).Draw(t, "filter")
			default:
				s.member = "a"
			}
			a.steps = append(a.steps, s)
		}
		return a
	})
}

func exprs(root string, depth int) *rapid.Generator[expr] {
	return rapid.Custom(func(t *rapid.T) expr {
		switch kind := rapid.IntRange(0, 5).Draw(t, "expr"); {
		case kind < 3 || depth == 0:
			return accessors(root, false).Draw(t, "accessor")
		case kind == 3:
			return method{of: accessors(root, false).Draw(t, "of"), name: rapid.SampledFrom([]string{"size", "ceiling", "floor", "abs", "type"}).Draw(t, "method")}
		}
		operand := func(label string) expr {
			if rapid.Bool().Draw(t, label+" is a number") {
				return number(rapid.SampledFrom([]string{"1", "2.5", "0.10"}).Draw(t, label))
			}
			return exprs(root, depth-1).Draw(t, label)
		}
		return arithmetic{operator: rapid.SampledFrom([]byte("+-*")).Draw(t, "operator"), left: exprs(root, depth-1).Draw(t, "left"), right: operand("right")}
	})
}

func predicates(root string, depth int) *rapid.Generator[predicate] {
	return rapid.Custom(func(t *rapid.T) predicate {
		kind := rapid.IntRange(0, 7).Draw(t, "predicate")
		if depth == 0 {
			kind %= 5
		}
		switch kind {
		case 4:
			return exists{exprs(root, 0).Draw(t, "exists")}
		case 5:
			return negation{predicates(root, depth-1).Draw(t, "not")}
		case 6:
			return isUnknown{predicates(root, depth-1).Draw(t, "unknown")}
		case 7:
			return junction{
				operator: rapid.SampledFrom([]string{"&&", "||"}).Draw(t, "operator"),
				left:     predicates(root, depth-1).Draw(t, "left"), right: predicates(root, depth-1).Draw(t, "right"),
			}
		}
		var right expr
		if rapid.Bool().Draw(t, "constant") {
			right = literal{rapid.SampledFrom([]any{nil, true, json.Number("1"), json.Number("2.5"), "a", ""}).Draw(t, "right")}
		} else {
			right = exprs(root, 1).Draw(t, "right")
		}
		return comparison{
			operator: rapid.SampledFrom([]string{"==", "!=", "<", "<=", ">", ">="}).Draw(t, "operator"),
			left:     exprs(root, 1).Draw(t, "left"), right: right,
		}
	})
}

// written gives a path its text, in a mode.
func written(t *rapid.T, p *path, body string) *path {
	mode := rapid.SampledFrom([]string{"", "", "", "strict ", "lax "}).Draw(t, "mode")
	p.lax = mode == "lax "
	p.text = mode + body
	return p
}

func paths(plain bool) *rapid.Generator[pathValue] {
	return rapid.Custom(func(t *rapid.T) pathValue {
		var e expr
		if plain {
			e = accessors("$", true).Draw(t, "plain")
		} else {
			e = exprs("$", 2).Draw(t, "path")
		}
		v := pathValue{path: written(t, &path{expr: e}, e.String())}
		v.wrapped = rapid.IntRange(0, 3).Draw(t, "wrapped") == 0
		if !strings.HasPrefix(e.String(), "$") {
			v.wrapped = true
		}
		return v
	})
}

func durations() *rapid.Generator[any] {
	return rapid.SampledFrom([]any{
		"3d", "+3d", "-3d", "1mo", "-1mo", "13mo", "1y", "10y", "10y1s", "11y", "119mo730h", "1y2mo3w4d5h6m7s8ms", "90s", "P1M", "PT1M", "-P1Y2M3W4DT5H6M7.5S",
		"+P10D", "P", "PT", "1", "d3", "", "3653d", json.Number("3"), nil,
	})
}

func zones() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Nowhere/Land"})
}

func constants(t *rapid.T, of any) value {
	switch of.(type) {
	case []any, map[string]any:
		return constant{value: of, as: "$literal"}
	}
	if rapid.IntRange(0, 4).Draw(t, "literal") == 0 {
		return constant{value: of, as: "$literal"}
	}
	return constant{value: of}
}

func valuesOf(depth int, mayUnset bool) *rapid.Generator[value] {
	return rapid.Custom(func(t *rapid.T) value {
		if mayUnset && rapid.IntRange(0, 3).Draw(t, "unset") == 0 {
			return unset{}
		}
		kind := rapid.IntRange(0, 9).Draw(t, "value")
		switch {
		case kind < 2 || depth == 0 && kind < 5:
			return paths(kind > 0).Draw(t, "path")
		case kind < 4 || depth == 0:
			return constants(t, documents(1).Draw(t, "constant"))
		case kind == 4:
			if rapid.Bool().Draw(t, "array") {
				return arrayValue(rapid.SliceOfN(valuesOf(depth-1, false), 0, 3).Draw(t, "items"))
			}
			object := objectValue{}
			for _, name := range memberNames[:2] {
				if rapid.Bool().Draw(t, "has "+name) {
					object[name] = valuesOf(depth-1, false).Draw(t, name)
				}
			}
			return object
		}
		o := operation{name: rapid.SampledFrom([]string{
			"$all", "$first", "$if", "$append", "$union", "$without", "$merge", "$set", "$concat", "$time", "$duration",
		}).Draw(t, "operation")}
		operands := func(least, most int) {
			o.operands = rapid.SliceOfN(valuesOf(depth-1, false), least, most).Draw(t, "operands")
		}
		instant := func(label string) value {
			switch rapid.IntRange(0, 3).Draw(t, label+" is a constant") {
			case 0:
				return constants(t, scalars().Draw(t, label))
			case 1, 2:
				return constants(t, rapid.SampledFrom(times).Draw(t, label))
			}
			return valuesOf(depth-1, false).Draw(t, label)
		}
		switch o.name {
		case "$all":
			o.operands = []value{paths(false).Draw(t, "path")}
		case "$if":
			o.guard = guards(depth-1).Draw(t, "guard")
			o.operands = []value{valuesOf(depth-1, mayUnset).Draw(t, "then"), valuesOf(depth-1, mayUnset).Draw(t, "else")}
		case "$first", "$merge", "$concat":
			operands(1, 3)
		case "$append", "$union", "$without":
			operands(2, 4)
			if rapid.Bool().Draw(t, "to a constant") {
				list := rapid.SliceOfN(scalars(), 0, 4).Draw(t, "list")
				o.operands[0] = constant{value: append([]any{}, list...), as: "$literal"}
				o.operands[1] = constants(t, scalars().Draw(t, "item"))
			}
		case "$set":
			operands(2, 2)
			o.names = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) value {
				if rapid.IntRange(0, 5).Draw(t, "computed") == 0 {
					return paths(true).Draw(t, "name")
				}
				return constant{value: rapid.SampledFrom([]any{"a", "b", "n", "", json.Number("0"), json.Number("1"), true}).Draw(t, "name")}
			}), 1, 3).Draw(t, "names")
		case "$time":
			o.operands = []value{instant("from"), constants(t, durations().Draw(t, "duration"))}
			if rapid.Bool().Draw(t, "in a zone") {
				o.operands = append(o.operands, constant{value: zones().Draw(t, "zone")})
			}
		case "$duration":
			o.operands = []value{instant("from"), instant("to")}
		}
		return o
	})
}

func guards(depth int) *rapid.Generator[guard] {
	return rapid.Custom(func(t *rapid.T) guard {
		kind := rapid.IntRange(0, 10).Draw(t, "guard")
		switch {
		case kind < 3 || depth <= 0 && kind < 5:
			p := predicates("$", 2).Draw(t, "predicate")
			return pathGuard{written(t, &path{predicate: p}, p.String())}
		case kind == 3:
			e := accessors("$", true).Draw(t, "path")
			return pathGuard{written(t, &path{expr: e}, e.String())}
		case kind < 6:
			return guardObject{name: rapid.SampledFrom([]string{"present", "absent"}).Draw(t, "name"), values: []value{paths(true).Draw(t, "path")}}
		case kind < 9 || depth <= 0:
			return guardObject{
				name:   rapid.SampledFrom([]string{"equal", "in", "before", "after"}).Draw(t, "name"),
				values: rapid.SliceOfN(valuesOf(max(depth-1, 0), false), 2, 2).Draw(t, "operands"),
			}
		case kind == 9:
			return guardObject{name: "not", guards: []guard{guards(depth-1).Draw(t, "not")}}
		}
		return guardObject{
			name:   rapid.SampledFrom([]string{"all", "any"}).Draw(t, "name"),
			guards: rapid.SliceOfN(guards(depth-1), 1, 3).Draw(t, "guards"),
		}
	})
}

// whole is a document as the engine makes it.
func whole(t *rapid.T) map[string]any {
	return map[string]any{
		"context": any(objects(3).Draw(t, "context")), "payload": any(objects(2).Draw(t, "payload")),
		"instance": map[string]any{"n": json.Number("7"), "s": "a"}, "now": "2026-03-01T12:00:00.000000+00:00", "event": "e",
		"actor": map[string]any{"s": "alice", "a": []any{}},
	}
}

// tryValues evaluates one value, guard or assign after the other. An error gives {"error": its pointer}, a value {"value": …}, or
// {} for nothing, and a guard {"holds": …}.
const tryValues = `create function public.try_values(p_document jsonb, p_cases jsonb) returns jsonb
language plpgsql
as $$
declare
  v_case jsonb;
  v_one jsonb;
  v_list jsonb := '[]';
  v_code text;
  v_at text;
  v_message text;
begin
  for v_case in select jsonb_array_elements(p_cases) loop
    begin
      if v_case ? 'guard' then
        v_one := jsonb_build_object('holds', pawl_private.holds(p_document, pawl_private.compiled_guard(v_case -> 'guard', '/at')));
      else
        v_one := pawl_private.value(p_document, pawl_private.compiled_value(v_case -> 'value', '/at'));
        v_one := case when v_one is null then '{}' else jsonb_build_object('value', v_one) end;
      end if;
    exception when others then
      get stacked diagnostics v_code = returned_sqlstate, v_at = column_name, v_message = message_text;
      v_one := jsonb_build_object('error', case when v_code like '22%' and v_at <> '' then v_at else v_code || ' ' || v_message end);
    end;
    v_list := v_list || v_one;
  end loop;
  return v_list;
end
$$`

func decoded(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// Values and guards come to what the model says: the result, nothing, or the pointer of what cannot be carried out.
func TestValuesFollowTheModel(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, tryValues)
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		document := whole(rt)
		var cases []any
		var want []any
		for range 100 {
			if rapid.IntRange(0, 2).Draw(rt, "kind") == 0 {
				g := guards(3).Draw(rt, "guard")
				cases = append(cases, map[string]any{"guard": g.json()})
				holds, err := g.eval(document, "/at")
				switch {
				case err != nil:
					want = append(want, map[string]any{"error": err.Error()})
					seen["a guard's error"]++
				default:
					seen[fmt.Sprint("guard ", holds)]++
					want = append(want, map[string]any{"holds": map[truth]any{yes: true, no: false, unknown: nil}[holds]})
				}
				continue
			}
			v := valuesOf(3, false).Draw(rt, "value")
			cases = append(cases, map[string]any{"value": v.json()})
			result, err := v.eval(document, "/at")
			operation, _ := v.(operation)
			switch {
			case err != nil:
				want = append(want, map[string]any{"error": err.Error()})
				seen[operation.name+" error"]++
			case kindOf(result) == "nothing":
				want = append(want, map[string]any{})
				seen[operation.name+" nothing"]++
			default:
				want = append(want, map[string]any{"value": result})
				seen[operation.name]++
			}
		}
		got := decoded(t, bounded.Value[string](t, pool, "select public.try_values($1, $2)::text", asJSON(t, document), asJSON(t, cases))).([]any)
		for n := range cases {
			if diff := cmp.Diff(want[n], got[n]); diff != "" {
				rt.Fatalf("(-want +got):\n%s\n%s\non %s", diff, asJSON(t, cases[n]), asJSON(t, document))
			}
		}
	})
	for _, name := range []string{"$all", "$first", "$if", "$append", "$union", "$without", "$merge", "$set", "$concat", "$time", "$duration"} {
		if seen[name] == 0 || seen[name+" error"] == 0 {
			t.Errorf("%s gave %d results and %d errors: this shows little", name, seen[name], seen[name+" error"])
		}
	}
	for _, name := range []string{"guard 0", "guard 1", "guard 2", "a guard's error", " nothing"} {
		if seen[name] == 0 {
			t.Errorf("there was no %s", name)
		}
	}
}

// trySimulate fires the event e in one state after the other. A step gives {"context": …}, a refusal {"code": …},
// and an error {"error": its pointer}.
const trySimulate = `create function public.try_simulate(p_workflow text, p_states text[], p_context jsonb, p_payload jsonb) returns jsonb
language plpgsql
as $$
declare
  v_state text;
  v_one jsonb;
  v_list jsonb := '[]';
  v_code text;
  v_at text;
  v_message text;
begin
  foreach v_state in array p_states loop
    begin
      select case when o.code = 'applied' then jsonb_build_object('context', (o.instance).context) else jsonb_build_object('code', o.code) end
      into strict v_one
      from pawl.simulate(
        p_workflow, 1, jsonb_build_object('state', v_state, 'context', p_context), 'e', p_payload, '*', 'alice', true) o;
    exception when others then
      get stacked diagnostics v_code = returned_sqlstate, v_at = column_name, v_message = message_text;
      v_one := jsonb_build_object('error', case when v_code like '22%' and v_at <> '' then v_at else v_code || ' ' || v_message end);
    end;
    v_list := v_list || v_one;
  end loop;
  return v_list;
end
$$`

// An assignment is a candidate of a transition.
type assignment struct {
	guard   guard // nil for none.
	payload any   // What '*' is: nil, true, or names.
	names   map[string]value
}

func assignments() *rapid.Generator[assignment] {
	return rapid.Custom(func(t *rapid.T) assignment {
		a := assignment{names: map[string]value{}}
		for _, name := range []string{"a", "b.a", "b.b.n", "n.0", "s.a", "x.y"} {
			if rapid.IntRange(0, 3).Draw(t, "assigns "+name) == 0 {
				a.names[name] = valuesOf(2, true).Draw(t, name)
			}
		}
		switch rapid.IntRange(0, 3).Draw(t, "payload") {
		case 0:
			a.payload = true
		case 1:
			a.payload = []string{"b", "s"}
		}
		return a
	})
}

func (a assignment) json() map[string]any {
	assign := map[string]any{}
	for name, v := range a.names {
		assign[name] = v.json()
	}
	if a.payload != nil {
		assign["*"] = a.payload
		if a.payload == any(true) {
			assign["trusted"] = true
		}
	}
	candidate := map[string]any{"target": "Z", "assign": assign}
	if a.payload == any(true) && len(a.names) == 0 {
		candidate["assign"] = "*"
	}
	if a.guard != nil {
		candidate["guard"] = a.guard.json()
	}
	return candidate
}

// The candidates of a transition are tried in their order, and the assigns of the one that is taken come to what the model says.
func TestAssignsFollowTheModel(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, trySimulate)
	now := time.Date(2030, 2, 3, 12, 0, 0, 0, time.UTC)
	dbtest.SetClock(t, pool, now)
	seen := map[string]int{}
	workflows := 0
	rapid.Check(t, func(rt *rapid.T) {
		workflows++
		name := fmt.Sprint("assigns-", workflows)
		// Each has a state of its own, since what one reads decides what all of a state are given.
		var list []string
		var candidates [][]assignment
		states := map[string]any{"Z": map[string]any{"type": "final"}}
		for n := range 6 {
			first, second := assignments().Draw(rt, "first"), assignments().Draw(rt, "second")
			first.guard = guards(2).Draw(rt, "guard")
			list = append(list, fmt.Sprint("S", n))
			candidates = append(candidates, []assignment{first, second})
			states[list[n]] = map[string]any{"on": map[string]any{"e": []any{first.json(), second.json()}}}
		}
		definition := asJSON(t, map[string]any{"name": name, "initial": "S0", "states": states})
		if _, err := pool.Exec(t.Context(), "select pawl.register_workflow($1)", definition); err != nil {
			rt.Fatalf("%v\n%s", err, definition)
		}
		for range 2 {
			document := whole(rt)
			at := now.Format("2006-01-02T15:04:05.000000+00:00")
			document["now"], document["actor"] = at, map[string]any{"subject": "alice", "scopes": []any{}, "roles": []any{}}
			document["event"] = "e"
			instance := map[string]any{
				"id": "00000000-0000-0000-0000-000000000000", "workflow": name, "workflow_version": json.Number("1"),
				"status": "active", "version": json.Number("1"), "business_key": nil, "correlation_id": nil, "created_at": at,
				"state_changed_at": at, "expires_at": nil,
			}
			document["instance"] = instance
			got := decoded(t, bounded.Value[string](t, pool, "select public.try_simulate($1, $2, $3, $4)::text",
				name, list, asJSON(t, document["context"]), asJSON(t, document["payload"]))).([]any)
			for n, state := range list {
				instance["state"] = state
				want := map[string]any{}
				for k, c := range candidates[n] {
					at := fmt.Sprintf("/states/%s/on/e/%d", state, k)
					if c.guard != nil {
						holds, err := c.guard.eval(document, at+"/guard")
						if err != nil {
							want["error"] = err.Error()
							break
						} else if holds != yes {
							continue
						}
					}
					context, err := assigned(document, c.payload, c.names, at+"/assign")
					if err != nil {
						want["error"] = err.Error()
					} else {
						want["context"] = context
						seen[fmt.Sprint("candidate ", k)]++
					}
					break
				}
				if want["error"] != nil {
					seen["error"]++
				}
				if diff := cmp.Diff(any(want), got[n]); diff != "" {
					rt.Fatalf("%s (-want +got):\n%s\n%s\non %s", state, diff, asJSON(t, states[state]), asJSON(t, document))
				}
			}
		}
	})
	for _, name := range []string{"candidate 0", "candidate 1", "error"} {
		if seen[name] == 0 {
			t.Errorf("there was no %s", name)
		}
	}
}
