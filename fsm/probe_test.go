package fsm_test

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
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
