package db_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// depth counts how deep objects and arrays are nested in one another.
func depth(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, child := range v {
			deepest = max(deepest, depth(child))
		}
	case []any:
		for _, child := range v {
			deepest = max(deepest, depth(child))
		}
	default:
		return 0
	}
	return deepest + 1
}

// nest is an object that is nested so deep. Every other level is an array if arrays is set.
func nest(levels int, arrays bool) string {
	text := `{"x": 1}`
	for level := levels - 1; level > 0; level-- {
		if arrays && level%2 == 0 {
			text = `[` + text + `]`
		} else {
			text = `{"a": ` + text + `}`
		}
	}
	return text
}

// deepens is a workflow in which an assign puts the context into itself, in each way in which a context changes.
const deepens = `{"name": "deepens", "initial": "A", "states": {
	"A": {
		"on": {"go": [{"target": "A", "assign": {"a": "$.context"}}], "stay": [{"target": "A", "assign": {"b": "$.context.a", "c": "$.payload.x"}}],
			"next": [{"target": "B"}], "merge": [{"target": "A", "assign": "*"}], "end": [{"target": "Z"}]},
		"after": {"1h": [{"target": "A", "assign": {"a": "$.context"}}]}},
	"B": {"always": [{"target": "C", "assign": {"a": "$.context"}}]},
	"C": {"on": {"end": [{"target": "Z"}]}},
	"D": {"initial": "E", "entry": {"assign": {"a": "$.context"}}, "states": {"E": {"entry": {"assign": {"a": "$.context"}}, "on": {"end": [{"target": "Z"}]}}}},
	"Z": {"type": "final"}}}`

// No step leaves a context that is nested deeper than 64, whatever makes the step.
func TestContextsAreNestedAtMost64Deep(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, deepens)
	create := func(levels int) uuid.UUID {
		t.Helper()
		return bounded.Value[uuid.UUID](t, pool, "select id from pawl.create_one('deepens', $1)", nest(levels, levels%3 == 0))
	}
	refused := func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		if e := wantCode(t, err, "PW413"); e.Message != "the context would become nested deeper than 64" {
			t.Errorf("%s: %s", sql, e.Message)
		}
	}
	id := create(2)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go') from generate_series(1, 62)", id)
	refused("select pawl.fire_one($1, 'go')", id)
	refused("select pawl.fire_one($1, 'next')", id)
	var context any
	if err := json.Unmarshal(bounded.Value[json.RawMessage](t, pool, "select context from pawl.instance where id = $1", id), &context); err != nil {
		t.Fatal(err)
	}
	if got := depth(context); got != 64 {
		t.Errorf("the context is nested %d deep", got)
	}
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'stay', '{\"x\": [1]}')", id)
	if got := bounded.Value[string](t, pool, `select code from pawl.preview('default', array[$1::uuid], array['go'], array['{}'::jsonb], array[''], array['*'])`, id); got != "context-too-deep" {
		t.Errorf("a dry run is %s", got)
	}
	for levels, want := range map[int]string{63: "applied", 64: "context-too-deep"} {
		for _, event := range []string{"go", "next"} {
			sql := `select code from pawl.simulate('deepens', 1, jsonb_build_object('state', 'A', 'context', $1::jsonb), $2, '{}', '*')`
			if got := bounded.Value[string](t, pool, sql, nest(levels, true), event); got != want {
				t.Errorf("%d levels, %s: a simulation is %s", levels, event, got)
			}
		}
		if got := bounded.Value[string](t, pool, "select code from pawl.simulate('deepens', 1, jsonb_build_object('state', 'D.E', 'context', $1::jsonb), null, null, '*')", nest(levels, true)); got != "applied" {
			t.Errorf("%d levels without an event: %s", levels, got)
		}
	}

	// What SQL callers give has the same bound, as malformed as it would be in a body.
	create(64)
	merged := create(64)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'merge', $2)", merged, nest(64, false))
	for _, arrays := range []bool{true, false} {
		_, err := pool.Exec(t.Context(), "select pawl.create_one('deepens', $1)", nest(65, arrays))
		wantCode(t, err, "PW400")
		_, err = pool.Exec(t.Context(), "select pawl.fire_one($1, 'merge', $2)", merged, nest(65, arrays))
		wantCode(t, err, "PW400")
	}

	// A timeout.
	late := create(64)
	dbtest.Advance(t, pool, 2*time.Hour)
	bounded.Exec(t, pool, "select pawl.fire_timers(100)")
	if got := bounded.Value[string](t, pool, "select last_error from pawl.timer where instance_id = $1", late); !strings.Contains(got, "nested deeper than 64") {
		t.Errorf("the timer says %q", got)
	}
}

// A creation, an instance migration and a back-test make steps, too.
func TestOtherStepsAreNestedAtMost64Deep(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	on := func(name, state string) string {
		return fmt.Sprintf(`{"name": %q, "initial": "A", "states": {"A": %s, "C": {"on": {"end": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`, name, state)
	}
	entry := `{"entry": {"assign": {"a": "$.context"}}, "on": {"end": [{"target": "Z"}], "go": [{"target": "C"}]}}`
	always := `{"always": [{"target": "C", "assign": {"a": "$.context"}}]}`
	for name, state := range map[string]string{"entered": entry, "left": always} {
		register(t, pool, on(name, state))
		bounded.Exec(t, pool, "select pawl.create_one($1, $2)", name, nest(63, true))
		_, err := pool.Exec(t.Context(), "select pawl.create_one($1, $2)", name, nest(64, true))
		wantCode(t, err, "PW413")
	}
	register(t, pool, on("moving", `{"on": {"end": [{"target": "Z"}]}}`))
	id := bounded.Value[uuid.UUID](t, pool, "select id from pawl.create_one('moving', $1)", nest(64, true))
	register(t, pool, on("moving", always))
	if got := bounded.Value[string](t, pool, "select result from pawl.migrate_instances('default', 'moving', 1, 2, '{}', null, 10)"); got != "unsettled" {
		t.Errorf("the migration is %s", got)
	}
	if got := bounded.Value[string](t, pool, "select difference ->> 'outcome' from pawl.backtest('moving', array[$1::uuid], 2)", id); got != "too-large" {
		t.Errorf("the back-test finds %s", got)
	}
}

// Only paths that may select as much as the context or the payload itself are looked at after a step.
func TestPathsThatNest(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	document := `{"context": {"a": {"b": [1, {"c": 2}]}}, "payload": {"x": {"y": {"z": {}}}}, "instance": {"id": 1}, "now": "n"}`
	for path, want := range map[string]bool{
		"$.context": true, "$.payload": true, "$": true, "$.*": true, "$.**": true, "$.context[0]": true, "$.context[*]": true, "$.context.**": true,
		"$.context.keyvalue()": true, "$.context.a.keyvalue()": true, "$.context ? (@.a.b == 1)": true, `$.payload.**{0}`: true,
		"$.context.a": false, "$.context.a.b[*]": false, "$.context.*": false, "$.payload.x.y": false, "$.instance": false, "$.now": false, "1": false,
		`"text"`: false, "$.context.a ? (@.b[0] > $.payload.x)": false, "$.payload.x + $.context.a": false, `$."payload"."x"`: false,
	} {
		got, selected := bounded.Value[*bool](t, pool, "select case when pawl.jsonpath_error($1) is null then pawl_private.path_nests($1::text::jsonpath) end", path),
			bounded.Value[json.RawMessage](t, pool, "select coalesce((select jsonb_agg(v) from (select jsonb_path_query_first($1, $2::text::jsonpath, '{}', true) v) q), '[]')", document, path)
		if got == nil || *got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		var v any
		if err := json.Unmarshal(selected, &v); err != nil {
			t.Fatal(err)
		}
		if !want && depth(v)-1 >= 4 {
			t.Errorf("%s selects as much as the payload: %s", path, selected)
		}
	}
}
