package fsm_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

func TestNestedStates(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Shop)
	i := fsmtest.Create(t, s, "shop", `{"price":5}`)
	if i.State != "ORDER.CART" || !slices.Equal(i.AcceptedEvents, []string{"cancel", "checkout", "restart"}) {
		t.Errorf("created: %+v", i)
	}
	fsmtest.SameJSON(t, i.Context, `{"price":5,"total":5}`)

	// One command, two steps, and a replay that tells of both.
	command := fsm.FireCommand{ID: i.ID, Event: "checkout", Key: "k", Origin: fsm.Origin{Actor: "alice", Reason: "because", CorrelationID: "c"}}
	first, err := s.Fire(t.Context(), command)
	if err != nil || first.Instance.State != "ORDER.PAYMENT.DUE" || first.Instance.Version != 3 {
		t.Fatalf("checkout: %+v, %v", first.Instance, err)
	}
	steps := fsmtest.History(t, s, i.ID)
	for n, want := range []fsm.Step{
		{Version: 2, From: new("ORDER.CART"), To: "ORDER.PAYMENT.CHECK", Event: new("checkout"), Payload: json.RawMessage(`{}`)},
		{Version: 3, From: new("ORDER.PAYMENT.CHECK"), To: "ORDER.PAYMENT.DUE"},
	} {
		got := steps[n+1]
		want.Kind, want.WorkflowVersion, want.Status, want.Context, want.At = "transition", 1, fsm.Active, got.Context, steps[1].At
		want.Actor, want.Reason, want.CorrelationID, want.Key = "alice", new("because"), new("c"), new("k")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", n+2, diff)
		}
	}
	// The innermost wins; where its guard refuses, what is around it is tried.
	if i := fsmtest.Fire(t, s, i.ID, "cancel", `{"sure":true}`); i.State != "ORDER.CART" {
		t.Errorf("the inner cancel leads to %s", i.State)
	}
	again, err := s.Fire(t.Context(), command)
	if err != nil || !again.Replayed || !cmp.Equal(again.Instance, first.Instance) {
		t.Errorf("replayed: %+v, %v\nfirst: %+v", again, err, first)
	}
	fsmtest.Fire(t, s, i.ID, "checkout", `{}`)
	i = fsmtest.Fire(t, s, i.ID, "cancel", `{}`)
	if i.State != "CANCELLED" || i.Status != fsm.Cancelled {
		t.Errorf("the outer cancel leads to %+v", i)
	}
	fsmtest.SameJSON(t, i.Context, `{"price":5,"total":5,"left":5}`)

	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: fsmtest.Create(t, s, "shop", `{"price":1}`).ID, Event: ":always"})
	fsmtest.Refused(t, err, fsm.UnknownEvent)
	free := fsmtest.Fire(t, s, fsmtest.Create(t, s, "shop", `{"price":0}`).ID, "checkout", `{}`)
	if free.Status != fsm.Completed {
		t.Errorf("for free: %+v", free)
	}
	fsmtest.SameJSON(t, free.Context, `{"price":0,"total":0,"left":0,"free":true,"note":0}`)

	// What is inherited behind a transition without a guard is none.
	fsmtest.Register(t, s, `{"name":"w","initial":"A","states":{"END":{"type":"final"},
		"A":{"initial":"X","on":{"go":"END","stop":"END"},"states":{"X":{"on":{"go":"Y","stop":{"guard":"$.payload.a","target":"Y"}}},"Y":{}}}}}`)
	actions, err := s.AcceptedEvents(t.Context(), fsm.DefaultTenant, fsmtest.Create(t, s, "w", `{}`).ID, false, "")
	if want := []fsm.AcceptedEvent{{Event: "go", Targets: []string{"A.Y"}}, {Event: "stop", Targets: []string{"A.Y", "END"}}}; err != nil || !cmp.Equal(actions, want) {
		t.Errorf("actions %+v, %v", actions, err)
	}

	// A guard that refuses is told as the definition words it, those inherited too.
	due := fsmtest.Fire(t, s, fsmtest.Create(t, s, "shop", `{"price":1}`).ID, "checkout", `{}`)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: due.ID, Event: "pay", Payload: json.RawMessage(`{"amount":2}`)})
	if e := fsmtest.Refusal(t, err, fsm.GuardRejected); !slices.Equal(e.Refusal.Guards, []string{"$.payload.amount == $.context.total"}) {
		t.Errorf("guards %q", e.Refusal.Guards)
	}
}

// Timeouts are those of atomic states, the lifetime leaves all, and what follows them is done
// at once too.
func TestNestedTimers(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name":"w","initial":"C","ttl":{"after":"1h","target":"LATE"},"states":{
		"C":{"initial":"A","exit":{"assign":{"c":"$.now"}},"on":{"go":"END"},"states":{
			"A":{"after":{"1m":"B"},"exit":{"assign":{"a":"$.payload.due_at"}}},
			"B":{"initial":"I","states":{"I":{"always":[{"guard":"$.context.end == true","target":"END"}, "J"]},"J":{}}}}},
		"LATE":{"type":"final","outcome":"expired"},"END":{"type":"final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	ends, stays := fsmtest.Create(t, s, "w", `{"end":true}`), fsmtest.Create(t, s, "w", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 2)
	i := fsmtest.Get(t, s, ends.ID)
	if i.State != "END" || i.Version != 3 {
		t.Errorf("%+v", i)
	}
	var context struct{ A, C string }
	if err := json.Unmarshal(i.Context, &context); err != nil || context.A == "" || context.C == "" {
		t.Errorf("context %s", i.Context)
	}
	kinds := func(id uuid.UUID) (list []string) {
		for _, step := range fsmtest.History(t, s, id) {
			list = append(list, step.Kind+" "+step.To)
		}
		return list
	}
	if got := kinds(ends.ID); !slices.Equal(got, []string{"created C.A", "timeout C.B.I", "transition END"}) {
		t.Errorf("history %q", got)
	}
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1)
	if got := kinds(stays.ID); !slices.Equal(got, []string{"created C.A", "timeout C.B.I", "transition C.B.J", "expired LATE"}) {
		t.Errorf("history %q", got)
	}
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}
