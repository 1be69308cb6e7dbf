package fsm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// observed is the outcome that the service gives.
func observed(t testing.TB, r fsm.Result, err error) outcome {
	t.Helper()
	if err != nil {
		e, ok := errors.AsType[*fsm.Error](err)
		if !ok {
			t.Fatalf("no *fsm.Error: %v", err)
		}
		o := outcome{kind: e.Kind, replayed: e.Replayed}
		if e.Refusal != nil {
			o.state, o.version = e.Refusal.State, e.Refusal.Version
		}
		return o
	}
	return outcome{
		applied: true, replayed: r.Replayed, state: r.Instance.State, version: r.Instance.Version,
		context: string(valuesOf(t, r.Instance.Context).json()),
	}
}

func valuesOf(t testing.TB, document json.RawMessage) values {
	t.Helper()
	var v values
	if err := json.Unmarshal(document, &v); err != nil {
		t.Fatalf("%v: %s", err, document)
	}
	return v
}

// compareHistory fails unless the instance went the model's way.
func compareHistory(t testing.TB, s *fsmtest.Service, id uuid.UUID, want *run) {
	t.Helper()
	steps := fsmtest.History(t, s, id)
	if len(steps) != len(want.steps)+1 {
		t.Fatalf("%d steps, want %d", len(steps), len(want.steps)+1)
	}
	for n, w := range want.steps {
		got := steps[n+1]
		if got.Version != w.Version || *got.Event != *w.Event || *got.From != *w.From || got.To != w.To ||
			!cmp.Equal(valuesOf(t, got.Context), valuesOf(t, w.Context)) || got.At.Before(steps[n].At) {
			t.Fatalf("step %d is %+v, want %+v", n+1, got, w)
		}
	}
	i := fsmtest.Get(t, s, id)
	status := fsm.Active
	if want.state == end {
		status = fsm.Completed
	}
	if i.State != want.state || i.Version != want.version || i.Status != status || !cmp.Equal(valuesOf(t, i.Context), want.context) {
		t.Fatalf("the instance is %+v, want %+v", i, want)
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	drawPayload := func(rt *rapid.T) values {
		if rapid.IntRange(0, 3).Draw(rt, "empty") == 0 {
			return values{}
		}
		return values{"n": rapid.Int64Range(-3, 3).Draw(rt, "n")}
	}
	// Registering a workflow has every connection plan its calls anew, which takes longer
	// than all of a check's commands.
	drawn := make([]machine, 12)
	names := make([]string, len(drawn))
	for n := range drawn {
		drawn[n] = machines().Example(n)
		names[n] = drawn[n].register(t, s)
	}
	kinds := map[fsm.Kind]int{}
	checks := 0
	rapid.Check(t, func(rt *rapid.T) {
		which := rapid.IntRange(0, len(drawn)-1).Draw(rt, "machine")
		m, name := drawn[which], names[which]
		checks++
		type recorded struct {
			request request
			outcome outcome
		}
		var (
			runs []*run
			ids  []uuid.UUID
			keys = map[string]recorded{}
			// Keys are the tenant's: this check's are its own.
			key = func(n int) string { return fmt.Sprint(checks, "-", n) }
		)
		for range rapid.IntRange(1, 3).Draw(rt, "instances") {
			context := values{"x": rapid.Int64Range(-2, 2).Draw(rt, "x")}
			ids = append(ids, fsmtest.Create(t, s, name, string(context.json())).ID)
			runs = append(runs, &run{state: "S0", version: 1, context: context})
		}
		// Each round is one Do: its commands count in order where they touch.
		for range rapid.IntRange(1, 8).Draw(rt, "rounds") {
			var commands []fsm.Command
			var want []outcome
			for range rapid.IntRange(1, 4).Draw(rt, "commands") {
				n := rapid.IntRange(0, len(runs)-1).Draw(rt, "instance")
				payload := drawPayload(rt)
				q := request{n, rapid.SampledFrom(append([]string{"other"}, events...)).Draw(rt, "event"), string(payload.json())}
				k := key(rapid.IntRange(0, 12).Draw(rt, "key"))
				before, seen := keys[k]
				if seen && rapid.Bool().Draw(rt, "retry") {
					q = before.request
				}
				c := fsm.FireCommand{ID: ids[q.run], Event: q.event, Payload: json.RawMessage(q.payload), Key: k}
				r := runs[q.run]
				expect := rapid.IntRange(0, 5).Draw(rt, "expect")
				stale := false
				switch expect {
				case 0:
					c.Expect = fsm.ExpectAny()
				case 1:
					c.Expect = fsm.ExpectVersion(r.version, 99)
				case 2:
					c.Expect, stale = fsm.ExpectVersion(r.version+1, r.version-1), true
				}
				var o outcome
				switch {
				case seen && before.request == q:
					o = before.outcome
					o.replayed = true
				case seen:
					o = outcome{kind: fsm.KeyReuse}
				case stale:
					o = outcome{kind: fsm.VersionMismatch, state: r.state, version: r.version}
				default:
					o = m.fire(r, q.event, valuesOf(t, json.RawMessage(q.payload)))
					if o.applied || o.kind != fsm.UnknownEvent && o.kind != fsm.GuardError {
						keys[k] = recorded{q, o}
					}
				}
				commands, want = append(commands, c), append(want, o)
			}
			for n, reply := range s.Do(t.Context(), commands) {
				got := observed(t, reply.Result, reply.Err)
				if got != want[n] {
					rt.Fatalf("%+v\ncame to  %+v\nand not %+v", commands[n], got, want[n])
				}
				if !got.applied {
					kinds[got.kind]++
				}
			}
		}
		for n, r := range runs {
			compareHistory(t, s, ids[n], r)
		}
	})
	for _, k := range []fsm.Kind{fsm.KeyReuse, fsm.VersionMismatch, fsm.UnknownEvent, fsm.GuardRejected, fsm.TransitionNotAllowed} {
		if kinds[k] == 0 {
			t.Errorf("%v never happened: this shows little", k)
		}
	}
}

// Many at once, through two services: what comes out is what some serial order gives.
func TestConcurrentCommandsAreSerial(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	services := []*fsmtest.Service{
		fsmtest.On(t, pool, fsm.Config{MaxBatch: 8}),
		fsmtest.On(t, fsmtest.Spied(t, pool, nil), fsm.Config{Flushers: 8}),
	}
	const instances, goroutines, each, keys = 4, 64, 12, 300
	m := machine{
		"S0": {"e1": {{guard: 1, assign: 2, target: "S1"}, {guard: 2, assign: 1, target: "S0"}}, "e2": {{assign: 3, target: "S0"}}, "next": {{guard: 3, target: end}, {target: "S1"}}},
		"S1": {"e1": {{guard: 3, assign: 2, target: "S0"}}, "e2": {{guard: 1, k: 1, assign: 1, target: "S0"}}, "next": {{target: "S2"}}},
		"S2": {"e1": {{guard: 1, k: -1, assign: 3, target: "S1"}}, "next": {{guard: 2, k: 40, target: end}, {assign: 2, target: "S0"}}},
	}
	name := m.register(t, services[0])
	var ids []uuid.UUID
	for range instances {
		ids = append(ids, fsmtest.Create(t, services[0], name, `{"x":0}`).ID)
	}
	// What a key stands for is the same for everybody, so that any use of it is a retry.
	requests := make([]fsm.FireCommand, keys)
	for n := range requests {
		requests[n] = fsm.FireCommand{
			ID: ids[rand.IntN(instances)], Event: events[rand.IntN(len(events))], Key: fmt.Sprint("k", n),
			Payload: values{"n": rand.Int64N(7) - 3}.json(),
		}
	}
	var (
		mu        sync.Mutex
		decisions = map[string][]outcome{}
		all       sync.WaitGroup
	)
	for range goroutines {
		all.Go(func() {
			for range each {
				c := requests[rand.IntN(keys)]
				s := services[rand.IntN(2)]
				if rand.IntN(4) == 0 {
					i, err := s.Get(t.Context(), fsm.DefaultTenant, c.ID)
					if err != nil {
						t.Error(err)
						return
					}
					c.Expect = fsm.ExpectVersion(i.Version)
				}
				r, err := s.Fire(t.Context(), c)
				o := observed(t, r, err)
				mu.Lock()
				if o.kind != fsm.VersionMismatch || o.applied {
					decisions[c.Key] = append(decisions[c.Key], o)
				}
				mu.Unlock()
			}
		})
	}
	bounded.Wait(t, "the requests", all.Wait)

	applied := 0
	for key, list := range decisions {
		first := 0
		for _, o := range list {
			if !o.replayed {
				first++
			}
			o.replayed, list[0].replayed = false, false
			if o != list[0] {
				t.Errorf("%s is %+v and %+v", key, list[0], o)
			}
		}
		if first != 1 {
			t.Errorf("%s was decided %d times in %d answers", key, first, len(list))
		}
		if list[0].applied {
			applied++
		}
	}
	steps := 0
	seen := map[string]bool{}
	for _, id := range ids {
		model := &run{state: "S0", version: 1, context: values{"x": 0}}
		for n, step := range fsmtest.History(t, services[1], id) {
			if step.Version != int64(n+1) {
				t.Fatalf("step %d has version %d", n, step.Version)
			}
			if n == 0 {
				continue
			}
			steps++
			if seen[*step.Key] {
				t.Errorf("%s has two steps", *step.Key)
			}
			seen[*step.Key] = true
			o := m.fire(model, *step.Event, valuesOf(t, step.Payload))
			if !o.applied || !slices.Contains(decisions[*step.Key], o) {
				t.Errorf("version %d: the model says %+v, those who asked were told %+v", step.Version, o, decisions[*step.Key])
			}
		}
		compareHistory(t, services[0], id, model)
	}
	if steps != applied || steps == 0 {
		t.Errorf("%d steps, %d were acknowledged", steps, applied)
	}
}

func TestOneKeyManyTimes(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	services := []*fsmtest.Service{fsmtest.On(t, pool, fsm.Config{}, fsmtest.Counter), fsmtest.On(t, fsmtest.Spied(t, pool, nil), fsm.Config{})}
	i := fsmtest.Create(t, services[0], "counter", `{"x":0}`)
	for name, command := range map[string]fsm.Command{
		"fire":   fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "fire"},
		"refuse": fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":-1}`), Key: "refuse"},
		"create": fsm.CreateCommand{Workflow: "counter", Key: "create", BusinessKey: "b"},
	} {
		before := bounded.Value[int](t, pool, "select count(*) from pawl.history")
		replies := make([]fsm.Reply, 100)
		var all sync.WaitGroup
		for n := range replies {
			all.Go(func() { replies[n] = services[n%2].Do(t.Context(), []fsm.Command{command})[0] })
		}
		bounded.Wait(t, "a hundred times the same command", all.Wait)
		first := 0
		for n := range replies {
			if e, ok := errors.AsType[*fsm.Error](replies[n].Err); ok {
				replies[n].Replayed = e.Replayed
				e.Replayed = false
			}
			if !replies[n].Replayed {
				first++
			}
			replies[n].Replayed = false
			if e := replies[n].Err; e != nil {
				if replies[0].Err == nil || e.Error() != replies[0].Err.Error() || !errors.Is(e, fsm.GuardRejected) {
					t.Errorf("%s: %v and %v", name, replies[0].Err, e)
				}
			}
			if diff := cmp.Diff(replies[0].Result, replies[n].Result); diff != "" {
				t.Errorf("%s: answers differ:\n%s", name, diff)
			}
		}
		if first != 1 {
			t.Errorf("%s: %d answers say that they are the first", name, first)
		}
		effect := 1
		if name == "refuse" {
			effect = 0
		}
		if got := bounded.Value[int](t, pool, "select count(*) from pawl.history") - before; got != effect {
			t.Errorf("%s: %d effects", name, got)
		}
	}
}
