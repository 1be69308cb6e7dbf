package fsm_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// A client repeats commands of which only the last was carried out. Its replay is answered before the payload of the
// first is checked, and it neither lets the second overtake the first nor is it called twice.
func TestReplayBehindAnUncheckedPayload(t *testing.T) {
	t.Parallel()
	const definition = `{"name": "strict", "initial": "A", "states": {"A": {"on": {
		"go": {"target": "A", "assign": {"last": "$.payload.n"}, "payload_schema": {"properties": {"n": {"type": "integer"}}}},
		"end": "Z"}}, "Z": {"type": "final"}}}`
	s, _ := fsmtest.New(t, fsm.Config{}, definition)
	for n := range 20 {
		id := fsmtest.Create(t, s, "strict", `{}`).ID
		fire := func(key, payload string) fsm.FireCommand {
			return fsm.FireCommand{ID: id, Event: "go", Key: fmt.Sprint(key, n), Payload: json.RawMessage(payload)}
		}
		last := fire("last", `{"n": 3}`)
		if _, err := s.Fire(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		reused := last
		reused.Payload = json.RawMessage(`{"n": 4}`)
		replies := s.Do(t.Context(), []fsm.Command{fire("bad", `{"n": "one"}`), fire("first", `{"n": 1}`), last, reused, fire("second", `{"n": 2}`)})
		fsmtest.Refused(t, replies[0].Err, fsm.InvalidPayload)
		fsmtest.Refused(t, replies[3].Err, fsm.KeyReuse)
		for at, version := range map[int]int64{1: 3, 2: 2, 4: 4} {
			if r := replies[at]; r.Err != nil || r.Instance.Version != version || r.Replayed != (at == 2) {
				t.Errorf("command %d: %+v, want version %d", at, r, version)
			}
		}
	}
}
