package db_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A definition whose tasks could not be carried out is refused with the place of the fault, also if no service has read it.
func TestRegisterRefusesTasksThatCannotBeCarriedOut(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const (
		outcomes = `"done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "B"}]`
		call     = `"http": {"connection": "psp", "method": "POST", "path": "/x"}, "deadline": "1h", ` + outcomes
		work     = `"work": {"topic": "x"}, "deadline": "1h", ` + outcomes
		undo     = `"http": {"connection": "psp", "method": "POST", "path": "/x"}`
	)
	x := func(task string) string { return `"invoke": {"x": {` + task + `}}` }
	for _, c := range []struct{ state, at string }{
		{`"invoke": 5`, "invoke of A"},
		{`"invoke": {}`, "invoke of A"},
		{`"invoke": []`, "invoke of A"},
		{`"invoke": {"x": 5}`, "each outcome of a task"},
		{`"invoke": {"1": {` + call + `}}`, "/states/A/invoke/1"},
		{`"invoke": {"compensate": {` + call + `}}`, "/states/A/invoke/compensate"},
		{x(`"deadline": "1h", ` + outcomes), "/states/A/invoke/x"},
		{x(`"work": {"topic": "x"}, ` + call), "/states/A/invoke/x"},
		{x(`"work": {"topic": "x"}, ` + outcomes), "/states/A/invoke/x/deadline"},
		{x(`"work": {"topic": "x"}, "deadline": "soon", ` + outcomes), "/states/A/invoke/x/deadline"},
		{x(`"work": {"topic": "x"}, "deadline": "2mo", ` + outcomes), "/states/A/invoke/x/deadline"},
		{x(`"work": {"topic": "x"}, "deadline": "400d", ` + outcomes), "/states/A/invoke/x/deadline"},
		{x(`"work": {"topic": "x"}, "deadline": {}, ` + outcomes), "/states/A/invoke/x/deadline"},
		{x(`"work": {"topic": "x y"}, "deadline": "1h", ` + outcomes), "/states/A/invoke/x/work/topic"},
		{x(`"work": 5, "deadline": "1h", ` + outcomes), "/states/A/invoke/x/work"},
		{x(`"work": {"topic": "x", "lease": "2h"}, "deadline": "1h", ` + outcomes), "/states/A/invoke/x/work/lease"},
		{x(`"work": {"topic": "x", "input": 5}, "deadline": "1h", ` + outcomes), "/states/A/invoke/x/work/input"},
		{x(`"work": {"topic": "x", "input": {"a": {"$path": "$["}}}, "deadline": "1h", ` + outcomes), "jsonpath"},
		{x(`"timeout": "1s", ` + work), "/states/A/invoke/x"},
		{x(`"timeout": "1h", ` + call), "/states/A/invoke/x/timeout"},
		{x(`"idempotency": {}, ` + call), "/states/A/invoke/x/idempotency"},
		{x(`"idempotency": {"header": "Key", "window": "x"}, ` + call), "/states/A/invoke/x/idempotency/window"},
		{x(`"retry": {"max": 0, "base": "1s", "cap": "1m"}, ` + call), "/states/A/invoke/x/retry/max"},
		{x(`"retry": {"max": 1.5, "base": "1s", "cap": "1m"}, ` + call), "/states/A/invoke/x/retry/max"},
		{x(`"retry": {"max": 2}, ` + call), "/states/A/invoke/x/retry"},
		{x(`"retry": {"max": 2, "base": "x", "cap": "1m"}, ` + call), "/states/A/invoke/x/retry/base"},
		{x(`"late": {}, ` + call), "/states/A/invoke/x/late/event"},
		{x(`"success": 5, ` + call), "/states/A/invoke/x/success"},
		{x(`"reconcile": 5, ` + call), "/states/A/invoke/x/reconcile"},
		{x(`"reconcile": {"http": {"connection": "psp", "method": "GET", "path": "/x"}}, ` + call), "/states/A/invoke/x/reconcile/done"},
		{x(`"reconcile": {"done": "$.body == 1"}, ` + call), "/states/A/invoke/x/reconcile/http"},
		{x(`"reconcile": {"http": {"connection": "psp", "method": "GET", "path": "/x"}, "done": "$.body == 1", "every": "5s"}, ` + call), "/states/A/invoke/x/reconcile/every"},
		{x(`"reconcile": {"http": {"connection": "psp", "method": "GET", "path": "/x"}, "done": "$.body == 1", "every": ["5"]}, ` + call), "/states/A/invoke/x/reconcile/every/0"},
		{x(`"compensate": 5, ` + call), "/states/A/invoke/x/compensate"},
		{x(`"compensate": {` + undo + `}, ` + call), "/states/A/invoke/x/compensate/deadline"},
		{x(`"compensate": {` + undo + `, "deadline": "1h", "if_unknown": "stop"}, ` + call), "/states/A/invoke/x/compensate/if_unknown"},
		{x(`"compensate": {` + undo + `, "deadline": "1h", "late": {"event": "x"}}, ` + call), "/states/A/invoke/x/compensate"},
		{x(strings.Replace(call, "POST", "post", 1)), "/states/A/invoke/x/http/method"},
		{x(strings.Replace(call, `"/x"`, `"x"`, 1)), "/states/A/invoke/x/http/path"},
		{x(strings.Replace(call, `"/x"`, `"/x/{"`, 1)), "/states/A/invoke/x/http/path"},
		{x(strings.Replace(call, `"/x"`, `"/x/{$[}"`, 1)), "jsonpath"},
		{x(strings.Replace(call, `"psp"`, `{}`, 1)), "/states/A/invoke/x/http/connection"},
		{x(strings.Replace(call, `"path"`, `"query": 5, "path"`, 1)), "/states/A/invoke/x/http/query"},
		{x(strings.Replace(call, `"error": [{"target": "B"}], `, ``, 1)), "each outcome of a task"},
		{x(strings.Replace(call, `"error": [{"target": "B"}]`, `"error": "B"`, 1)), "each outcome of a task"},
		{x(strings.Replace(call, `"error": [{"target": "B"}]`, `"error": []`, 1)), "/states/A/invoke/x"},
		{x(strings.Replace(call, `"error": [{"target": "B"}]`, `"error": [{"target": "NO"}]`, 1)), "there is no state NO"},
		{x(strings.Replace(call, `"error": [{"target": "B"}]`, `"error": [{"target": "B", "guard": "$.payload.status == 4"}]`, 1)), "/states/A/invoke/x"},
		{`"compensate": {"what": "all", "on_failure": "stop"}`, "A undoes steps"},
		{`"compensate": {"what": "all"}, "done": [{"target": "B"}], "error": [{"target": "B"}]`, "compensate of A"},
		{`"compensate": 5, "done": [{"target": "B"}], "error": [{"target": "B"}]`, "compensate of A"},
		{`"on": {"pay.*": [{"target": "B", "compensate": {` + undo + `, "deadline": "1h"}}]}`, "/states/A/on/pay.*/0/compensate"},
	} {
		definition := `{"name": "t", "initial": "A", "states": {"A": {` + c.state + `}, "B": {"type": "final"}}}`
		_, err := pool.Exec(bounded.Context(t), "do $$ begin perform pawl.register_workflow('"+definition+"'); raise 'it was registered'; end $$")
		if !strings.Contains(err.Error(), c.at) || !strings.Contains(err.Error(), "PW42D") {
			t.Errorf("%s: %v, want PW42D at %q", c.state, err, c.at)
		}
	}
	// Names are those that the reader of definitions and the table of connections accept.
	good := x(`"idempotency": {"header": "X_Key", "window": "1h"}, ` + strings.Replace(call, `"psp"`, `"psp_eu"`, 1))
	for _, state := range []string{x(call), good} {
		bounded.Exec(t, pool, "select pawl.register_workflow($1)", `{"name": "t", "initial": "A", "states": {"A": {`+state+`}, "B": {"type": "final"}}}`)
	}
}
