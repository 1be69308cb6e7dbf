package check_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// TestCorrectRunsPass shows that no check finds fault with a run that has none: with retries that overtake each other,
// answers that are lost, repeats of messages, timers, and a loss in the middle.
func TestCorrectRunsPass(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := scene{
			seed: rapid.Uint64().Draw(t, "seed"), clients: rapid.IntRange(1, 8).Draw(t, "clients"),
			hot: rapid.IntRange(1, 4).Draw(t, "hot"), calls: rapid.IntRange(20, 300).Draw(t, "calls"),
			epochs: rapid.Bool().Draw(t, "epochs"), restful: rapid.Bool().Draw(t, "restful"),
		}
		s.loses = s.epochs && rapid.Bool().Draw(t, "loses")
		for _, v := range check.All(simulate(s)) {
			t.Errorf("%s: %s", v.Check, v.Detail)
		}
	})
}

// TestPlantedFaultsAreFound plants each fault in runs that have none. The check that is made for it finds it, and no
// other does, but where the fault breaks what two of them check.
func TestPlantedFaultsAreFound(t *testing.T) {
	t.Parallel()
	names, found := check.Plants()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			planted := 0
			for seed := range uint64(12) {
				run := simulate(scene{
					seed: seed, clients: 1 + int(seed%7), hot: 2, calls: 200,
					epochs: seed%4 != 0, loses: seed%2 == 1, restful: seed%3 == 0,
				})
				if !check.Plant(name, &run) {
					continue
				}
				planted++
				by := map[string]bool{}
				for _, v := range check.All(run) {
					if !by[v.Check] && v.Check != found[name] && !slices.Contains(check.AlsoFind(name), v.Check) {
						t.Errorf("seed %d: %s finds it too: %s", seed, v.Check, v.Detail)
					}
					by[v.Check] = true
				}
				if !by[found[name]] {
					t.Errorf("seed %d: %s does not find it", seed, found[name])
				}
			}
			if planted < 2 {
				t.Errorf("it was planted in %d runs, expected some", planted)
			}
		})
	}
}

// TestWhatALossMayTake checks by example which steps a loss may take, and which messages may name them.
func TestWhatALossMayTake(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	one, two := uuid.UUID{1}, uuid.UUID{2}
	zero := json.RawMessage(`{"sum": 0, "steps": 0}`)
	create := func(id uuid.UUID, key string, second int) check.Op {
		return check.Op{
			Key: key, Kind: "create", Instance: id, Payload: zero, Begin: at(second), End: at(second + 1),
			Status: 201, Version: 1, State: "OPEN", Context: zero,
		}
	}
	step := func(o check.Op) check.Step {
		return check.Step{
			Instance: o.Instance, Version: 1, Kind: "created", To: "OPEN", Status: "active", Key: o.Key, Context: zero, At: o.Begin,
		}
	}
	lost, later := create(one, "one", 0), create(two, "two", 2)
	async := lost
	async.Async = true
	waiting := check.Op{Key: "two", Kind: "fire", Event: "add", Instance: one, Payload: json.RawMessage(`{"amount": 1}`), Begin: at(2), Status: 503}
	stands := check.Op{
		Key: "three", Kind: "fire", Event: "add", Instance: one, Payload: json.RawMessage(`{"amount": 2}`), Async: true,
		Begin: at(3), End: at(4), Status: 200, Version: 3, State: "OPEN", Context: json.RawMessage(`{"sum": 3, "steps": 2}`),
	}
	told := check.Received{
		Receiver: "sink", Instance: one, Version: 1, ID: one.String() + ":1", At: at(4),
		Data: json.RawMessage(`{"version": 1, "kind": "created", "to": "OPEN", "status": "active", "key": "one", "at": "2026-03-01T09:00:00Z", "context": {"sum": 0, "steps": 0}}`),
	}
	promotion := check.Loss{Begin: at(10), End: at(11)}
	crash := check.Loss{Begin: at(10), End: at(11), AsyncOnly: true}
	for _, test := range []struct {
		name string
		run  check.Run
		want string // The check that finds fault.
	}{
		{"a promotion takes a step", check.Run{Ops: []check.Op{lost}, Losses: []check.Loss{promotion}}, ""},
		{"nothing takes it", check.Run{Ops: []check.Op{lost}}, "acknowledged"},
		{"a crash takes a synchronous step", check.Run{Ops: []check.Op{lost}, Losses: []check.Loss{crash}}, "acknowledged"},
		{"a crash takes an asynchronous step", check.Run{Ops: []check.Op{async}, Losses: []check.Loss{crash}}, ""},
		{
			"a loss was over before",
			check.Run{Ops: []check.Op{create(one, "one", 12)}, Losses: []check.Loss{promotion}},
			"acknowledged",
		},
		{
			"a promotion spares what came later",
			check.Run{Ops: []check.Op{lost, later}, Steps: []check.Step{step(later)}, Losses: []check.Loss{promotion}},
			"acknowledged",
		},
		{
			"the step was told before a promotion",
			check.Run{Ops: []check.Op{lost}, Received: []check.Received{told}, Losses: []check.Loss{promotion}},
			"",
		},
		{
			"an asynchronous step stands on one that waited for a standby",
			check.Run{
				Ops: []check.Op{lost, waiting, stands}, Steps: []check.Step{step(lost)}, Losses: []check.Loss{crash},
			},
			"",
		},
		{
			"an asynchronous step stands on one that nobody asked for",
			check.Run{Ops: []check.Op{lost, stands}, Steps: []check.Step{step(lost)}, Losses: []check.Loss{crash}},
			"linearizable",
		},
		{
			"an asynchronous step was told before it was durable",
			check.Run{Ops: []check.Op{async}, Received: []check.Received{told}, Losses: []check.Loss{crash}},
			"delivered",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run.Model, test.run.Begin, test.run.End = check.Account(), start, at(20)
			for _, s := range test.run.Steps {
				test.run.Keys = append(test.run.Keys, check.Key{Key: s.Key, Decision: "applied", Instance: s.Instance, Version: s.Version})
			}
			got := ""
			for _, v := range check.All(test.run) {
				got += v.Check
				t.Log(v.Detail)
			}
			if got != test.want {
				t.Errorf("got %q, expected %q", got, test.want)
			}
		})
	}
}

// TestUndecidedSearchIsReported gives the search for an order no time.
func TestUndecidedSearchIsReported(t *testing.T) {
	t.Parallel()
	run := simulate(scene{seed: 1, clients: 8, hot: 1, calls: 2000})
	run.Patience = 1
	unknown := slices.ContainsFunc(check.All(run), func(v check.Violation) bool {
		return v.Check == "linearizable" && strings.Contains(v.Detail, "unknown")
	})
	if !unknown {
		t.Error("nothing says that the search did not end")
	}
}

// manyCrashes is a run of one account and ten crashes of the server. Before each there are commands that history has, and
// commands that the crash takes: some were acknowledged, some were only seen by readers, and some had no effect. Some of the
// answers come only after the crash. misled lets an early reader see a sum that no order makes.
func manyCrashes(seed uint64, misled bool) check.Run {
	rng := rand.New(rand.NewPCG(seed, 0))
	start := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	now := start
	tick := func() time.Time {
		now = now.Add(time.Duration(1+rng.IntN(5)) * time.Millisecond)
		return now
	}
	r := check.Run{Model: check.Account(), Begin: start}
	id := uuid.UUID{1}
	version := int64(0)
	is := check.Situation{}
	n := 0
	// ask makes a command. kept: history has it. told: it is answered. Its effect is at one moment between begin and end.
	ask := func(kind, event string, kept, told bool) {
		n++
		o := check.Op{Key: fmt.Sprint(n), Client: rng.IntN(6), Kind: kind, Instance: id, Event: event, Begin: tick(), Async: true}
		s := check.Step{Instance: id, Version: version + 1, Kind: "transition", Event: event, From: is.State, Key: o.Key}
		if kind == "create" {
			o.Payload, s.Kind = json.RawMessage(`{"steps":0,"sum":0}`), "created"
			is = r.Model.Create(o.Payload)
		} else {
			o.Payload = json.RawMessage(fmt.Sprintf(`{"amount":%d}`, 1+rng.IntN(9)))
			is, _ = r.Model.Fire(is, event, o.Payload)
		}
		version++
		s.To, s.Status, s.Context, s.Payload, s.At = is.State, is.Status, json.RawMessage(is.Context), o.Payload, tick()
		if kept {
			r.Steps = append(r.Steps, s)
		}
		if told {
			o.Status, o.Version, o.State, o.Context, o.End = 200, version, is.State, json.RawMessage(is.Context), tick()
		}
		r.Ops = append(r.Ops, o)
	}
	// waste makes a command that has no effect and no answer.
	waste := func() {
		n++
		r.Ops = append(r.Ops, check.Op{
			Key: fmt.Sprint(n), Kind: "fire", Instance: id, Event: "add", Payload: json.RawMessage(`{"amount":1}`), Begin: tick(),
		})
	}
	read := func() *check.Op {
		r.Ops = append(r.Ops, check.Op{
			Kind: "get", Client: rng.IntN(6), Instance: id, Begin: tick(), Status: 200, Version: version, State: is.State,
			Context: json.RawMessage(is.Context), End: tick(),
		})
		return &r.Ops[len(r.Ops)-1]
	}
	ask("create", "", true, true)
	for crash := range 10 {
		for range 3 {
			ask("fire", "add", true, rng.IntN(4) > 0)
			if seen := read(); misled && crash == 0 {
				seen.Context = json.RawMessage(`{"steps":1,"sum":1000}`)
			}
		}
		spared, back := version, is
		waste()
		waiting := read()
		for range rng.IntN(4) {
			ask("fire", "add", false, rng.IntN(2) == 0)
			waste()
			read()
		}
		if rng.IntN(2) == 0 {
			ask("fire", "pause", false, false)
			is, _ = r.Model.Fire(is, "after:1s", nil)
			version++
			read()
		}
		loss := check.Loss{Begin: tick(), AsyncOnly: true}
		loss.End = tick()
		r.Losses = append(r.Losses, loss)
		version, is = spared, back
		waiting.End = tick()
		read()
	}
	r.End = tick()
	return r
}

// Versions leave the search for an order so little choice that it tries few steps more than there are commands.
func TestManyCrashesAreSearchedQuickly(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		run := manyCrashes(seed, false)
		found, tried := check.Linearize(run)
		for _, v := range found {
			t.Errorf("seed %d: %s", seed, v.Detail)
		}
		if most := int64(1000 * len(run.Ops)); tried > most {
			t.Errorf("seed %d: %d commands took %d steps of the search, more than %d", seed, len(run.Ops), tried, most)
		}
		found, _ = check.Linearize(manyCrashes(seed, true))
		if len(found) != 1 || !strings.Contains(found[0].Detail, "no order explains") {
			t.Errorf("seed %d: a false answer is not found: %v", seed, found)
		}
	}
}
