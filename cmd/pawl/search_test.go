package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// seat is a workflow with an attribute of each kind.
func seat(search string) string {
	return `{"name": "seat", "initial": "HELD", "search": {` + search + `}, "states": {"HELD": {"on": {"sell": "SOLD"}}, "SOLD": {"type": "final"}}}`
}

const seatSearch = `"flight": "$.context.flight", "price": {"path": "$.context.price", "type": "number"}, "paid": "$.context.paid", "at": "$.context.at"`

// Instances are found by conditions on the command line, in the service's words where one is wrong.
func TestWhereOnTheCommandLine(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	mustPawl(t, env, "workflow", "apply", writeFile(t, "seat.json", seat(seatSearch)))
	mustPawl(t, env, "workflow", "apply", writeFile(t, "pinger.json", pinger))
	for key, context := range map[string]string{
		"a": `{"flight": "LH454", "price": 399.99, "paid": true, "at": "2026-03-01T09:00:00Z"}`,
		"b": `{"flight": "LH455", "price": "400", "paid": false, "at": "2026-03-01T09:00:00.5Z"}`,
		"c": `{"flight": "a,b=c*", "price": 401, "paid": "true", "at": "tomorrow"}`,
		"d": `{"flight": 454, "price": {"eur": 400}, "paid": null, "at": ["2026-03-01T09:00:00Z"]}`,
	} {
		id := struct{ ID string }{}
		out := mustPawl(t, env, "instance", "create", "seat", "--context", context, "--business-key", key, "--json")
		if err := json.Unmarshal([]byte(out), &id); err != nil {
			t.Fatal(err)
		}
		if key == "a" {
			mustPawl(t, env, "instance", "fire", id.ID, "sell")
		}
	}
	list := func(args ...string) (keys []string) {
		t.Helper()
		var items []struct {
			BusinessKey string `json:"business_key"`
		}
		out := mustPawl(t, env, append([]string{"instance", "list", "--workflow", "seat", "--json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &items); err != nil {
			t.Fatal(err)
		}
		for _, item := range items {
			keys = append(keys, item.BusinessKey)
		}
		slices.Sort(keys)
		return keys
	}
	for _, c := range []struct {
		where []string
		want  string
	}{
		{[]string{"flight=LH454"}, "a"},
		{[]string{"flight=LH*"}, "ab"},
		{[]string{"flight>LH454"}, "bc"},
		{[]string{"flight=a,b=c*"}, "c"},
		{[]string{`flight="a,b=c*"`}, "c"},
		{[]string{`flight="a,b*"`}, ""},
		{[]string{"flight=454"}, "d"},
		{[]string{`flight="454"`}, ""},
		{[]string{"price=400"}, "b"},
		{[]string{"price>400"}, "c"},
		{[]string{"price>=400"}, "bc"},
		{[]string{"price<400"}, "a"},
		{[]string{"price<=400"}, "ab"},
		{[]string{"price>=399", "price<401"}, "ab"},
		{[]string{"price>=399", "flight=LH455"}, "b"},
		{[]string{"paid=true"}, "a"},
		{[]string{"paid=false"}, "b"},
		{[]string{`paid="true"`}, "c"},
		{[]string{"at=2026-03-01T10:00:00+01:00"}, "a"},
		{[]string{"at>2026-03-01T10:00:00+01:00"}, "b"},
		{[]string{"at=tomorrow"}, "c"},
	} {
		var args []string
		for _, where := range c.where {
			args = append(args, "--where", where)
		}
		if got := strings.Join(list(args...), ""); got != c.want {
			t.Errorf("%v: %q, want %q", c.where, got, c.want)
		}
	}
	if got := list("--where", "price>=399", "--status", "completed"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("of the completed ones: %v", got)
	}
	if got := list("--where", "price>=399", "--state", "HELD", "--limit", "1", "--sort", "created_at"); len(got) != 1 || got[0] == "a" {
		t.Errorf("the first one in HELD: %v", got)
	}
	for _, c := range []struct {
		workflows, where []string
		says             string
	}{
		{[]string{"seat"}, []string{"flight"}, "must be a name, one of = < <= > >=, and a value"},
		{[]string{"seat"}, []string{"flight=LH454", "flght=LH454"}, `there is no search attribute "flght"; did you mean "flight"?`},
		{[]string{"seat"}, []string{"price=cheap"}, "must have a value of the type number"},
		{[]string{"seat"}, []string{"paid>true"}, "which only = does"},
		{[]string{"seat"}, []string{"flight>LH*"}, "must have = before the beginning of a text"},
		{[]string{"seat"}, []string{"flight="}, "has no value"},
		{[]string{"seat"}, slices.Repeat([]string{"price>1"}, 11), "10"},
		{[]string{"pinger"}, []string{"flight=LH454"}, `there is no search attribute "flight"`},
		{nil, []string{"flight=LH454"}, "needs one workflow"},
		{[]string{"seat", "pinger"}, []string{"flight=LH454"}, "needs one workflow"},
	} {
		args := []string{"instance", "list"}
		for _, w := range c.workflows {
			args = append(args, "--workflow", w)
		}
		for _, w := range c.where {
			args = append(args, "--where="+w)
		}
		if out, stderr, code := pawl(t, env, args...); code != 1 || out != "" || !strings.Contains(stderr, "400 malformed-request") || !strings.Contains(stderr, c.says) {
			t.Errorf("%v: exit code %d: %s%s", args, code, out, stderr)
		}
	}
	if out, stderr, code := pawl(t, env, "instance", "list", "--workflow", "seat", "--where="); code != 2 || !strings.Contains(stderr, "--where must not be empty") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := pawl(t, env, "instance", "list", "--workflow", "seat", "--where=price>1", "--business-key=a"); code != 1 || !strings.Contains(stderr, "can be combined with") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// A reindex says how far it has come until all is done, and asks no more than it must.
func TestReindexShowsProgress(t *testing.T) {
	t.Parallel()
	answers := func(list ...string) (env []string, left func() int) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.Path != "/v1/workflows/seat/reindex" || len(list) == 0 {
				t.Errorf("%s %s after the last answer", r.Method, r.URL.Path)
				return
			}
			next := list[0]
			list = list[1:]
			if strings.Contains(next, "code") {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusForbidden)
			} else {
				w.Header().Set("Content-Type", "application/json")
			}
			_, _ = w.Write([]byte(next))
		}))
		t.Cleanup(server.Close)
		return []string{"PAWL_SERVER=" + server.URL}, func() int { return len(list) }
	}
	const first, second = `{"indexed": 1000, "total": 2500, "complete": false}`, `{"indexed": 2000, "total": 2501, "complete": false}`
	const last = `{"indexed": 2501, "total": 2501, "complete": true}`
	env, left := answers(first, second, last)
	const progress = "seat: 1000 of 2500 instances are indexed\nseat: 2000 of 2501 instances are indexed\n"
	if out := mustPawl(t, env, "workflow", "reindex", "seat"); out != progress+"seat: 2501 of 2501 instances are indexed\n" || left() != 0 {
		t.Errorf("%d answers are left: %s", left(), out)
	}
	env, left = answers(first, last)
	var document struct {
		Indexed  int
		Complete bool
	}
	out := mustPawl(t, env, "workflow", "reindex", "seat", "--json")
	if err := json.Unmarshal([]byte(out), &document); err != nil || document.Indexed != 2501 || !document.Complete || left() != 0 {
		t.Errorf("%d answers are left: %s, %v", left(), out, err)
	}
	env, _ = answers(first, second, `{"status": 403, "code": "forbidden", "detail": "no"}`)
	if out, stderr, code := pawl(t, env, "workflow", "reindex", "seat"); code != 1 || out != progress || !strings.Contains(stderr, "403 forbidden") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// A service that is killed during a reindex takes nothing back that was committed: the next one goes on.
func TestReindexGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	mustPawl(t, env, "workflow", "apply", writeFile(t, "seat.json", seat(`"flight": "$.context.flight"`)))
	db := dialDSN(t, dsn)
	bounded.Exec(t, db, `select pawl.create_one('seat', jsonb_build_object('flight', 'LH' || n, 'price', n)) from generate_series(1, 40) n`)
	bounded.UntilSQL(t, db, "select count(*) = 40 from pawl.residence")
	mustPawl(t, env, "workflow", "apply", writeFile(t, "seat.json", seat(`"price": "$.context.price"`)))
	list := []string{"instance", "list", "--workflow", "seat", "--where", "price>30", "--limit", "0"}
	if out, stderr, code := pawl(t, env, list...); code != 0 || strings.Count(out, "\n") != 1 || !strings.Contains(stderr, "pawl workflow reindex") {
		t.Errorf("before the reindex: exit code %d: %s%s", code, out, stderr)
	}
	bounded.Exec(t, db, "select pawl.reindex_workflow('seat', 10)")
	// The last row that is to be looked at is held: the service is killed when it waits for it.
	holder := dialDSN(t, dsn)
	bounded.Exec(t, holder, "begin; select from pawl.residence where instance_id = (select instance_id from pawl.residence order by instance_id desc limit 1) for update")
	ended := make(chan string, 1)
	go func() {
		out, stderr, code := pawl(t, env, "workflow", "reindex", "seat")
		ended <- fmt.Sprintf("exit code %d: %s%s", code, out, stderr)
	}()
	bounded.UntilSQL(t, db, "select count(*) > 0 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%reindex_workflow%'")
	p.Kill(t)
	if got := bounded.Receive(t, "the command to end", ended); !strings.HasPrefix(got, "exit code 1:") {
		t.Errorf("the service was killed: %s", got)
	}
	bounded.Exec(t, holder, "rollback")
	p = start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	env = []string{"PAWL_SERVER=" + p.url}
	if out := mustPawl(t, env, "workflow", "reindex", "seat"); out != "seat: 40 of 40 instances are indexed\n" {
		t.Errorf("after the kill: %s", out)
	}
	if out, stderr, code := pawl(t, env, list...); code != 0 || strings.Count(out, "\n") != 11 || stderr != "" {
		t.Errorf("after the reindex: exit code %d: %s%s", code, out, stderr)
	}
}
