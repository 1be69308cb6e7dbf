package lifecycle_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// canonical returns the canonical form of a definition.
func canonical(t testing.TB, text string) string {
	t.Helper()
	d, err := definition.Parse([]byte(text), "", definition.Limits{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	written, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(written)
}

// wrap makes a definition of what there is in state A.
func wrap(a string) string {
	return `{"name":"w","initial":"A","states":{"A":` + a + `,"B":{"type":"final"}}}`
}

func TestRegister(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	ctx := t.Context()

	dry, err := s.Register(ctx, "flight-booking", []byte(fsmtest.FlightBooking), "alice", true)
	if err != nil {
		t.Fatal(err)
	}
	if dry.Created || dry.Version != 1 || dry.CreatedBy != "" || !dry.CreatedAt.IsZero() || dry.Checksum == "" {
		t.Errorf("dry run: %+v", dry)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.workflow"); n != 0 {
		t.Errorf("a dry run left %d workflows", n)
	}

	first, err := s.Register(ctx, "flight-booking", []byte(fsmtest.FlightBooking), "alice", false)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Created || first.Version != 1 || first.CreatedBy != "alice" || first.Checksum != dry.Checksum || first.CreatedAt.IsZero() {
		t.Errorf("first: %+v", first)
	}
	fsmtest.SameJSON(t, first.Definition, canonical(t, fsmtest.FlightBooking))

	// The same content, written in another way and without a name, is no new version.
	again, err := s.Register(ctx, "flight-booking", []byte(strings.Replace(fsmtest.FlightBooking, `"name": "flight-booking",`, "", 1)), "bob", false)
	if err != nil {
		t.Fatal(err)
	}
	if again.Created || !cmp.Equal(again.Workflow, first.Workflow) {
		t.Errorf("again: %+v", again)
	}

	changed := strings.Replace(fsmtest.FlightBooking, `"30m"`, `"45m"`, 1)
	second, err := s.Register(ctx, "", []byte(strings.Replace(changed, `"name"`, `"version": 2, "name"`, 1)), "", false)
	if err != nil {
		t.Fatal(err)
	}
	if !second.Created || second.Version != 2 || second.CreatedBy != "anonymous" {
		t.Errorf("second: %+v", second)
	}

	_, err = s.Register(ctx, "", []byte(strings.Replace(fsmtest.FlightBooking, `"name"`, `"version": 7, "name"`, 1)), "bob", false)
	if e := fsmtest.Refusal(t, err, fsm.WorkflowConflict); e.Refusal.Version != 2 {
		t.Errorf("conflict at %d", e.Refusal.Version)
	}

	// Every path that Postgres cannot read is named, with the rest of what is wrong.
	_, err = s.Register(ctx, "w", []byte(`{"initial":"A","states":{
		"A":{"on":{"go":[{"target":"B","guard":"$.a ==","assign":{"x/y":"$.("}},{"target":"C"}]},"after":{"1s":{"target":"B","guard":"$$"}}},
		"B":{"type":"final"}}}`), "", false)
	e := fsmtest.Refusal(t, err, fsm.InvalidDefinition)
	want := []string{"/states/A/after/1s/guard", "/states/A/on/go/0/assign/x~1y", "/states/A/on/go/0/guard", "/states/A/on/go/1/target"}
	if !slices.Equal(fsmtest.Pointers(e.Faults), want) {
		t.Errorf("got\n%swant %q", fsmtest.Describe(e.Faults), want)
	}

	latest, err := s.GetWorkflow(ctx, "flight-booking", 0)
	if err != nil || latest.Version != 2 {
		t.Errorf("latest: %+v, %v", latest, err)
	}
	old, err := s.GetWorkflow(ctx, "flight-booking", 1)
	if err != nil || !cmp.Equal(old, first.Workflow) {
		t.Errorf("version 1: %+v, %v", old, err)
	}
	for name, version := range map[string]int{"none": 0, "flight-booking": 3, "a\x00": 0, "w": -1, "x": 1 << 31} {
		_, err := s.GetWorkflow(ctx, name, version)
		fsmtest.Refused(t, err, fsm.WorkflowNotFound)
	}
	_, err = s.Register(ctx, "w", []byte(wrap(`{"on":{"go":"B"}}`)), "a\x00", false)
	fsmtest.Refused(t, err, fsm.Malformed)
}

func TestRegisterAtOnce(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	const n = 8
	created := make(chan bool, n)
	for range n {
		go func() {
			r, err := s.Register(t.Context(), "", []byte(fsmtest.Counter), "", false)
			if err != nil {
				t.Error(err)
			}
			created <- r.Created
		}()
	}
	first := 0
	for range n {
		if bounded.Receive(t, "a registration", created) {
			first++
		}
	}
	if first != 1 {
		t.Errorf("%d of %d say that they made the version", first, n)
	}
}

func TestListWorkflows(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	for _, name := range []string{"b", "a", "c"} {
		fsmtest.Register(t, s, strings.Replace(wrap(`{"on":{"go":"B"}}`), `"w"`, `"`+name+`"`, 1))
	}
	fsmtest.Register(t, s, strings.Replace(wrap(`{"on":{"went":"B"}}`), `"w"`, `"b"`, 1))
	var names []string
	page := fsm.Page{Limit: 1}
	// bounded: each page begins where the last one ended
	for {
		l, err := s.ListWorkflows(t.Context(), nil, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range l.Items {
			names = append(names, w.Name)
			if want := map[string]int{"a": 1, "b": 2, "c": 1}[w.Name]; w.Version != want {
				t.Errorf("%s is listed at version %d, want %d", w.Name, w.Version, want)
			}
		}
		if page.Cursor = l.Next; page.Cursor == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("got %q", names)
	}
	_, err := s.ListWorkflows(t.Context(), nil, fsm.Page{Limit: -1})
	if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "limit" {
		t.Errorf("got %+v", e.Faults)
	}
}

// A guard whose regular expression takes long to compile is refused for good: trying again would not help.
func TestSlowRegularExpressions(t *testing.T) {
	t.Parallel()
	pool := fsmtest.Open(t, dbtest.DSN(dbtest.New(t)), db.Config{StatementTimeout: time.Second})
	s := fsmtest.On(t, pool, fsm.Config{CallTimeout: bounded.Limit})
	guard := func(pattern string) string { return fmt.Sprintf(`$.payload.s like_regex "%s"`, pattern) }
	define := func(guards ...string) []byte {
		var candidates []string
		for _, guard := range guards {
			candidates = append(candidates, fmt.Sprintf(`{"target": "Z", "guard": %q}`, guard))
		}
		return []byte(`{"name": "slow", "initial": "A", "states": {"A": {"on": {"go": [` + strings.Join(candidates, ",") + `], "end": "Z"}}, "Z": {"type": "final"}}}`)
	}
	_, err := s.Register(t.Context(), "", define("$.payload.n == 1", guard(strings.Repeat("a?", 4000))), "", false)
	if e := fsmtest.Refusal(t, err, fsm.InvalidDefinition); !slices.Equal(fsmtest.Pointers(e.Faults), []string{"/states/A/on/go/1/guard"}) {
		t.Errorf("got %s", fsmtest.Describe(e.Faults))
	}
	var many []string
	for i := range 400 {
		many = append(many, guard(fmt.Sprint(strings.Repeat("a?", 150+i), i)))
	}
	_, err = s.Register(t.Context(), "", define(many...), "", false)
	if e := fsmtest.Refusal(t, err, fsm.InvalidDefinition); len(e.Faults) != len(many) {
		t.Errorf("got %s", fsmtest.Describe(e.Faults))
	}
	if _, err := s.Register(t.Context(), "", define(guard("^[A-Z]{2}-[0-9]{1,12}$")), "", false); err != nil {
		t.Error(err)
	}
}

// A retention that gets shorter has older instances purged, so it must be confirmed, and it has a floor.
func TestShorterRetention(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{RetentionFloor: 24 * time.Hour})
	register := func(retention string, confirmed ...lifecycle.Confirmation) error {
		_, err := s.Register(t.Context(), "", []byte(strings.Replace(fsmtest.Counter, `"states"`, retention+`"states"`, 1)), "tester", false, confirmed...)
		return err
	}
	fault := fsmtest.Refusal(t, register(`"retention": "23h", `), fsm.InvalidDefinition)
	if len(fault.Faults) != 1 || fault.Faults[0].Pointer != "/retention" {
		t.Errorf("the faults are %v", fault.Faults)
	}
	for _, step := range []struct {
		retention string
		shorter   bool
	}{{`"retention": "24h", `, false}, {``, false}, {`"retention": "720h", `, true}, {`"retention": "48h", `, true}, {`"retention": "49h", `, false}} {
		if step.shorter {
			before := fsmtest.Counts(t, pool)
			fsmtest.Refused(t, register(step.retention), fsm.WorkflowConflict)
			if after := fsmtest.Counts(t, pool); after != before {
				t.Errorf("a refused registration has changed %s to %s", before, after)
			}
			if err := register(step.retention, lifecycle.ShortenRetention); err != nil {
				t.Error(err)
			}
		} else if err := register(step.retention); err != nil {
			t.Errorf("%s: %v", step.retention, err)
		}
	}
	if got := bounded.Column[string](t, pool, "select concat_ws(' ', action, target, actor, reason) from pawl.audit order by seq"); !slices.Equal(got, []string{
		"workflow.register counter 1 tester", "workflow.register counter 2 tester", "workflow.register counter 3 tester shorten-retention",
		"workflow.register counter 4 tester shorten-retention", "workflow.register counter 5 tester",
	}) {
		t.Errorf("the audit has %q", got)
	}
}
