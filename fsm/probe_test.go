package fsm_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The probe is told of each command, by names of definitions alone: what a caller invents is left out.
func TestProbeIsToldOfCommands(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var last fsm.Observation
	waits, calls := map[string]int{}, map[string]int{}
	s, pool := fsmtest.New(t, fsm.Config{Probe: fsm.Probe{
		Waited: func(queue string, waited time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if waits[queue]++; waited < 0 {
				t.Errorf("a command waited for %s", waited)
			}
		},
		Called: func(queue string, commands int, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if calls[queue] += commands; took <= 0 {
				t.Errorf("a call took %s", took)
			}
		},
		Answered: func(a fsm.Observation) {
			mu.Lock()
			defer mu.Unlock()
			last = a
		},
	}}, fsmtest.FlightBooking)
	dbtest.SetClock(t, pool, time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond))
	create := fsm.CreateCommand{Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id":"LX1","price":1}`), Key: "create"}
	var id uuid.UUID
	fire := func(event, key string) any {
		c := fsm.FireCommand{ID: id, Event: event, Key: key}
		if event == "reserve" {
			c.Payload = json.RawMessage(`{"price":1,"seat":"12A"}`)
		}
		return c
	}
	for i, c := range []struct {
		command func() any
		want    fsm.Observation
		aged    bool
	}{
		{func() any { return create }, fsm.Observation{Workflow: "flight-booking", Event: "_create", Outcome: "applied", Key: "new"}, false},
		{func() any { return create }, fsm.Observation{Workflow: "flight-booking", Event: "_create", Outcome: "applied", Key: "replayed"}, true},
		{func() any { return fsm.CreateCommand{Workflow: "secret", Key: "secret"} }, fsm.Observation{Outcome: "workflow-not-found"}, false},
		{func() any { return fire("reserve", "r") }, fsm.Observation{Workflow: "flight-booking", Event: "reserve", Outcome: "applied", Key: "new"}, false},
		{func() any { return fire("reserve", "r") }, fsm.Observation{Workflow: "flight-booking", Event: "reserve", Outcome: "applied", Key: "replayed"}, true},
		{func() any { return fire("cancel", "r") }, fsm.Observation{Outcome: "idempotency-key-reuse", Key: "collision"}, false},
		{func() any { return fire("secret", "s") }, fsm.Observation{Workflow: "flight-booking", Outcome: "unknown-event"}, false},
		{func() any { return fire("reserve", "t") }, fsm.Observation{Workflow: "flight-booking", Event: "reserve", Outcome: "transition-not-allowed", Key: "new"}, false},
		{func() any { return fire("reserve", "t") }, fsm.Observation{Workflow: "flight-booking", Event: "reserve", Outcome: "transition-not-allowed", Key: "replayed"}, false},
		{func() any { return fire("cancel", "") }, fsm.Observation{Workflow: "flight-booking", Event: "cancel", Outcome: "applied"}, false},
		{func() any { return fsm.FireCommand{ID: uuid.New(), Event: "secret", Key: "v"} }, fsm.Observation{Outcome: "instance-not-found"}, false},
		{func() any {
			return fsm.FireByKeyCommand{Workflow: "secret", BusinessKey: "secret", Event: "secret", Key: "w"}
		}, fsm.Observation{Outcome: "instance-not-found"}, false},
	} {
		r := s.Do(t.Context(), []fsm.Command{c.command().(fsm.Command)})[0]
		if i == 0 {
			id = r.Instance.ID
		}
		mu.Lock()
		got := last
		mu.Unlock()
		c.want.Tenant = cmp.Or(got.Tenant, "")
		if aged := got.Age > 50*time.Minute && got.Age < 70*time.Minute; aged != c.aged {
			t.Errorf("%d: the age is %s", i, got.Age)
		}
		if got.Age = 0; got != c.want {
			t.Errorf("%d: the probe is told %+v, want %+v (%v)", i, got, c.want, r.Err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	// Commands are called once; those whose document is checked, twice.
	if waits["create"] != 3 || waits["fire"] != 8 || waits["fire_by_key"] != 1 || calls["create"] < 3 || calls["fire"] < 8 || calls["fire_by_key"] < 1 {
		t.Errorf("the probe is told of waits %v and calls %v", waits, calls)
	}
	if queues := slices.Sorted(maps.Keys(s.Waiting())); !slices.Equal(queues, []string{"create", "fire", "fire_by_key", "get", "principal"}) {
		t.Errorf("the queues are %v", queues)
	}
}

// A refusal names its workflow and its event also where it comes before the engine asks whether the event is declared, or where
// an error ends the call.
func TestRefusalsNameTheirEvent(t *testing.T) {
	t.Parallel()
	told := make(chan fsm.Observation, 1)
	s, _ := fsmtest.New(t, fsm.Config{Probe: fsm.Probe{Answered: func(a fsm.Observation) { told <- a }}},
		`{"name":"w","initial":"A","states":{
			"A":{"on":{"go":"B","raise":{"target":"B","guard":"$nowhere == 1"},"note.*":"A","large":{"target":"A","assign":{"*":true,"trusted":true}},
				"twice":{"target":"A","assign":{"a":"$.payload","b":"$.payload"}}}},
			"B":{"on":{"end":"END"}},"END":{"type":"final"}}}`,
		`{"name":"strict","initial":"A","require_if_match":true,"states":{"A":{"on":{"go":"END"}},"END":{"type":"final"}}}`,
		`{"name":"unborn","initial":"A","states":{"A":{"always":{"target":"END","guard":"$nowhere == 1"},"on":{"go":"END"}},"END":{"type":"final"}}}`)
	create := func(workflow string) uuid.UUID {
		t.Helper()
		r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: workflow})
		if err != nil {
			t.Fatal(err)
		}
		bounded.Receive(t, "the observation", told)
		return r.Instance.ID
	}
	id, strict := create("w"), create("strict")
	payload := func(size int) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"x":%q}`, strings.Repeat("x", size)))
	}
	stale := fsm.ExpectVersion(7)
	for i, c := range []struct {
		command fsm.Command
		want    string
	}{
		{fsm.FireCommand{ID: id, Event: "go", Expect: stale, Key: "a"}, "w go version-mismatch"},
		{fsm.FireCommand{ID: id, Event: "note.x", Expect: stale}, "w note.x version-mismatch"},
		{fsm.FireCommand{ID: id, Event: "end", Expect: stale}, "w  version-mismatch"}, // Nobody has seen it yet.
		{fsm.FireCommand{ID: id, Event: "secret", Expect: stale}, "w  version-mismatch"},
		{fsm.FireCommand{ID: strict, Event: "go"}, "strict go precondition-required"},
		{fsm.FireCommand{ID: strict, Event: "secret"}, "strict  precondition-required"},
		{fsm.FireCommand{ID: id, Event: "go", Payload: payload(70_000)}, "w go too-large"},
		{fsm.FireCommand{ID: id, Event: "twice", Payload: payload(40_000)}, "w twice too-large"},
		{fsm.FireCommand{ID: id, Event: "raise"}, "w raise guard-error"},
		{fsm.CreateCommand{Workflow: "unborn"}, "unborn _create guard-error"},
		{fsm.CreateCommand{Workflow: "w", Context: payload(70_000)}, "w _create too-large"},
		{fsm.FireCommand{ID: id, Event: "go", Key: "a"}, "w go applied new"},
		{fsm.FireCommand{ID: id, Event: "go", Expect: stale}, "w go version-mismatch"}, // The state does not accept it any more.
		{fsm.FireCommand{ID: id, Event: "secret", Key: "b"}, "w  unknown-event"},
	} {
		s.Do(t.Context(), []fsm.Command{c.command})
		o := bounded.Receive(t, "the observation", told)
		if got := strings.TrimSpace(fmt.Sprintf("%s %s %s %s", o.Workflow, o.Event, o.Outcome, o.Key)); got != c.want {
			t.Errorf("%d: the probe is told %q, want %q", i, got, c.want)
		}
	}
	_, err := s.Override(t.Context(), fsm.OverrideCommand{ID: id, To: "NOWHERE", Expect: fsm.ExpectAny(), Origin: fsm.Origin{Reason: "test"}})
	if o := bounded.Receive(t, "the observation", told); o.Workflow != "w" || o.Event != "_override" || o.Key != "" {
		t.Errorf("of a refused override the probe is told %+v (%v)", o, err)
	}
}
