package httpapi_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// traced is a trace of OTLP as a viewer reads it.
type traced struct {
	ResourceSpans []struct {
		ScopeSpans []struct {
			Spans []struct {
				TraceID, SpanID, ParentSpanID, Name string
				StartTimeUnixNano, EndTimeUnixNano  string
				Links                               []struct{ TraceID, SpanID string }
			}
		}
	}
}

// The life of an instance is one trace, whose spans are below one another and have the same ids each time.
func TestLifeOfAnInstanceIsATrace(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	const caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	id := a.create("counter", `{"context": {"sum": 0}}`, "traceparent", caller)
	read := func() (spans traced, names string) {
		r := a.get("/v1/instances/" + id + "/trace").want(http.StatusOK)
		if err := json.Unmarshal(r.body, &spans); err != nil {
			t.Fatal(err)
		}
		again := a.get("/v1/instances/" + id + "/trace").want(http.StatusOK)
		if diff := cmp.Diff(string(r.body), string(again.body)); diff != "" {
			t.Errorf("the trace is not the same twice:\n%s", diff)
		}
		ids := map[string]bool{"": true}
		for i, s := range spans.ResourceSpans[0].ScopeSpans[0].Spans {
			if s.TraceID != strings.ReplaceAll(id, "-", "") || len(s.SpanID) != 16 || ids[s.SpanID] || !ids[s.ParentSpanID] || (s.ParentSpanID == "") != (i == 0) {
				t.Errorf("span %d is %+v", i, s)
			}
			ids[s.SpanID] = true
			names += s.Name
			if s.EndTimeUnixNano == "" {
				names += "…"
			}
			names += " "
		}
		return spans, names
	}
	spans, names := read()
	if names != "counter… ON… " {
		t.Errorf("the trace is %s", names)
	}
	first := spans.ResourceSpans[0].ScopeSpans[0].Spans[1]
	if len(first.Links) != 1 || first.Links[0].TraceID != caller[3:35] || first.Links[0].SpanID != caller[36:52] {
		t.Errorf("the span of the creation links to %v", first.Links)
	}
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	a.fire(id, "stop", "").want(http.StatusOK)
	spans, names = read()
	if names != "counter ON ON OFF " {
		t.Errorf("the trace is %s", names)
	}
	list := spans.ResourceSpans[0].ScopeSpans[0].Spans
	if root := list[0]; root.StartTimeUnixNano != list[1].StartTimeUnixNano || root.EndTimeUnixNano != list[3].StartTimeUnixNano || list[1].EndTimeUnixNano != list[2].StartTimeUnixNano {
		t.Errorf("the times do not fit: %+v", list)
	}
	if list[1].SpanID != first.SpanID {
		t.Error("a span has got another id")
	}
	a.get("/v1/instances/00000000-0000-7000-8000-000000000000/trace").want(http.StatusNotFound, "instance-not-found")
}

// A trace shows no contexts and no payloads, so that it takes no longer if these are large: the statements that read history
// are the same.
func TestTraceReadsNoContexts(t *testing.T) {
	t.Parallel()
	var reads atomic.Int32
	a := startWith(t, setup{db: db.Config{Tracer: fsmtest.Spy{Started: func(sql string, _ []any) {
		if strings.Contains(sql, "pawl.history") {
			reads.Add(1)
		}
	}}}})
	a.register(`{"name": "blob", "initial": "A", "states": {"A": {"on": {"put": {"target": "A", "assign": {"blob": "$.payload.blob"}}, "end": "Z"}}, "Z": {"type": "final"}}}`)
	count := func(blob string) int32 {
		id := a.create("blob", `{}`)
		for range 30 {
			a.fire(id, "put", `{"payload": {"blob": "`+blob+`"}}`).want(http.StatusOK)
		}
		before := reads.Load()
		r := a.get("/v1/instances/" + id + "/trace").want(http.StatusOK)
		if n := strings.Count(string(r.body), `"spanId"`); n != 32 {
			t.Errorf("the trace has %d spans", n)
		}
		return reads.Load() - before
	}
	if small, large := count("x"), count(strings.Repeat("x", 60_000)); small == 0 || small != large {
		t.Errorf("history is read %d times for small contexts, and %d times for large ones", small, large)
	}
}

// Tasks, attempts and compensations are spans below those of the steps that caused them.
func TestTasksAreInTheTrace(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{"context": {"sku": "A-17"}}`)
	a.says(a.claim(10, 1), 0, "complete", `, "result": {"parcel": "P-9"}`).want(http.StatusOK)
	var spans traced
	if err := json.Unmarshal(a.get("/v1/instances/"+id+"/trace").want(http.StatusOK).body, &spans); err != nil {
		t.Fatal(err)
	}
	parents := map[string]string{}
	var tree []string
	for _, s := range spans.ResourceSpans[0].ScopeSpans[0].Spans {
		parents[s.SpanID] = s.Name
		tree = append(tree, parents[s.ParentSpanID]+" > "+s.Name)
	}
	text := strings.Join(tree, "\n")
	for _, want := range []string{" > task pack", "task pack > attempt 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the tree lacks %q:\n%s", want, text)
		}
	}
}
