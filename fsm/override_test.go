package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// claim is a process in which each state keeps a log of what it does.
const claim = `{"name": "claim", "initial": "DRAFT", "cancel": "WITHDRAWN", "context_default": {"log": [], "amount": 0},
	"invariant": {"not": {"equal": ["$.context.amount", -1]}},
	"states": {
		"DRAFT": {
			"entry": {"assign": {"log": {"$append": ["$.context.log", "into DRAFT"]}}},
			"exit": {"assign": {"log": {"$append": ["$.context.log", "out of DRAFT"]}, "by": "exit"}},
			"after": {"2h": "ABANDONED"},
			"on": {
				"submit": [
					{"target": "REVIEW", "guard": "$.payload.at.datetime(\"nonsense\") == 1", "payload_schema": {"type": "object", "required": ["at"]}, "assign": {"at": "$.payload.at"}},
					{"target": "REVIEW.DECIDING", "guard": "$.context.amount < 100"},
					"PAID"
				],
				"note": {"guard": "$.context.never == true", "assign": {"noted": "$.event"}},
				"seal": {"target": "SEALED", "guard": "$.context.never == true"},
				"wipe": {"target": "PAID", "guard": "$.context.never == true", "assign": {"amount": -1}},
				"mail.*": {"target": "REVIEW", "guard": "$.context.never == true"},
				"enter": "SEALED",
				"lose": {"target": "LOST", "guard": "$.context.never == true"}
			}
		},
		"REVIEW": {
			"initial": {"target": "READING", "assign": {"log": {"$append": ["$.context.log", "begin REVIEW"]}}},
			"entry": {"assign": {"log": {"$append": ["$.context.log", "into REVIEW"]}, "event": "$.event", "copy": "$.context.amount"}},
			"exit": {"assign": {"log": {"$append": ["$.context.log", "out of REVIEW"]}}},
			"after": {"1h": "DRAFT"},
			"states": {
				"READING": {"after": {"10m": "REVIEW.DECIDING"}, "entry": {"assign": {"log": {"$append": ["$.context.log", "into READING"]}}}, "on": {"read": "REVIEW.DECIDING"}},
				"DECIDING": {"always": {"guard": "$.context.amount > 1000", "target": "PAID"}, "on": {"approve": "PAID"}}
			}
		},
		"SEALED": {
			"protected": true, "initial": "LOCKED", "after": {"3h": "DRAFT"}, "on": {"open": "DRAFT"},
			"states": {"LOCKED": {"on": {"turn": "SEALED.TURNED", "force": {"guard": "$.context.never == true"}}}, "TURNED": {"on": {"turn": "SEALED.LOCKED"}}}
		},
		"ARCHIVED": {"type": "final", "protected": true},
		"LOST": {"on": {"archive": "ARCHIVED"}},
		"PAID": {"type": "final"}, "ABANDONED": {"type": "final", "outcome": "expired"},
		"WITHDRAWN": {"type": "final", "outcome": "failed", "entry": {"assign": {"ended": "$.event"}}}
	}}`

var operator = fsm.Origin{Actor: "ops", Reason: "the customer called"}

func overrideTo(i fsm.Instance, state, patch string) fsm.OverrideCommand {
	c := fsm.OverrideCommand{ID: i.ID, To: state, Expect: fsm.ExpectVersion(i.Version), Origin: operator}
	if patch != "" {
		c.ContextPatch = json.RawMessage(patch)
	}
	return c
}

func overrideBy(i fsm.Instance, event, payload string) fsm.OverrideCommand {
	return fsm.OverrideCommand{
		ID: i.ID, Event: event, Payload: json.RawMessage(payload), Bypass: "guard", Expect: fsm.ExpectVersion(i.Version), Origin: operator,
	}
}

func override(t *testing.T, s *fsmtest.Service, c fsm.OverrideCommand) fsm.Instance {
	t.Helper()
	r, err := s.Override(t.Context(), c)
	if err != nil {
		t.Fatalf("override: %v", err)
	}
	return r.Instance
}

// An override to a state is a step like others: what it leaves and enters assigns, in this order, and the patch lies
// between the two.
func TestOverrideToState(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "claim", `{"amount": 5, "drop": {"a": 1, "b": {"c": 2}}}`)
	dbtest.Advance(t, pool, time.Minute)
	c := overrideTo(i, "REVIEW", `{"amount": 50, "by": "patch", "drop": {"a": null, "b": {"d": 3}}, "absent": null}`)
	c.Key, c.Origin = "k", fsm.Origin{Actor: "ops", Reason: "the customer called", CorrelationID: "c-1", Traceparent: "00-1-2-01"}
	r, err := s.Override(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	got := r.Instance
	fsmtest.SameJSON(t, got.Context, `{"amount": 50, "copy": 50, "by": "patch", "drop": {"b": {"c": 2, "d": 3}}, "event": "forced",
		"log": ["into DRAFT", "out of DRAFT", "into REVIEW", "begin REVIEW", "into READING"]}`)
	if got.State != "REVIEW.READING" || got.Status != fsm.Active || got.Version != 2 || r.Replayed ||
		!slices.Equal(got.AcceptedEvents, []string{"read"}) || got.NextTimeout == nil || !got.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(11*time.Minute)) {
		t.Errorf("%+v, %+v", got, got.NextTimeout)
	}
	if diff := cmp.Diff(got, fsmtest.Get(t, s, i.ID)); diff != "" {
		t.Errorf("a read differs: %s", diff)
	}
	then, err := s.GetVersion(t.Context(), fsm.DefaultTenant, i.ID, 2)
	if diff := cmp.Diff(got, then); err != nil || diff != "" {
		t.Errorf("a read of the past differs: %v %s", err, diff)
	}
	want := fsm.Step{
		Version: 2, WorkflowVersion: 1, Kind: "forced", From: new("DRAFT"), To: "REVIEW.READING", Status: fsm.Active, Context: got.Context,
		Actor: "ops", Reason: new("the customer called"), Key: new("k"), CorrelationID: new("c-1"), Traceparent: new("00-1-2-01"),
		At: fsmtest.Noon.Add(time.Minute),
	}
	if diff := cmp.Diff(want, fsmtest.Last(t, s, i.ID)); diff != "" {
		t.Errorf("-want +got: %s", diff)
	}
	// Timers go on from here.
	dbtest.Advance(t, pool, 10*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, i, 3, "timeout after:10m REVIEW.DECIDING")
	// The present state is left and entered anew, and the state around it stays with its timer.
	got = override(t, s, overrideTo(fsmtest.Get(t, s, i.ID), "REVIEW.READING", ""))
	dbtest.Advance(t, pool, 5*time.Minute)
	got = override(t, s, overrideTo(got, "REVIEW.READING", ""))
	if !got.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(26*time.Minute)) || !strings.Contains(string(got.Context), `"begin REVIEW", "into READING", "into READING", "into READING"]`) {
		t.Errorf("%s %+v", got.Context, got.NextTimeout)
	}
	dbtest.Advance(t, pool, 5*time.Minute)
	override(t, s, overrideTo(got, "REVIEW.DECIDING", ""))
	dbtest.Advance(t, pool, 40*time.Minute)
	fsmtest.WantFired(t, pool, 1) // An hour after REVIEW was entered.
	wantTrail(t, s, i, 4, "forced REVIEW.READING", "forced REVIEW.READING", "forced REVIEW.DECIDING", "timeout after:1h@REVIEW DRAFT")
	// Eventless transitions follow, and a final state ends the instance.
	got = override(t, s, overrideTo(fsmtest.Get(t, s, i.ID), "REVIEW.DECIDING", `{"amount": 2000}`))
	if got.State != "PAID" || got.Status != fsm.Completed || fsmtest.Timers(t, pool) != 0 {
		t.Errorf("%+v", got)
	}
	wantTrail(t, s, i, 8, "forced REVIEW.DECIDING", "transition PAID")
	_, err = s.Override(t.Context(), overrideTo(got, "DRAFT", ""))
	if e := fsmtest.Refusal(t, err, fsm.TransitionNotAllowed); e.Refusal.Status != fsm.Completed || !strings.Contains(e.Message, "final") {
		t.Errorf("%+v", e)
	}
}

// A failed instance says which override has failed it.
func TestOverrideToFailed(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, claim)
	got := override(t, s, overrideTo(fsmtest.Create(t, s, "claim", `{}`), "WITHDRAWN", ""))
	fsmtest.SameJSON(t, got.Error, `{"event": "forced", "state": "DRAFT", "reason": "the customer called"}`)
	if got.Status != fsm.Failed {
		t.Errorf("%+v", got)
	}
}

// The guards of an event are passed over, also one that would fail. What remains is what holds for every event.
func TestOverridePassesGuardsOver(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	create := func(context string) fsm.Instance {
		t.Helper()
		return fsmtest.Create(t, s, "claim", context)
	}
	i := create(`{"amount": 5}`)
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "submit", Payload: json.RawMessage(`{"at": "now"}`)})
	fsmtest.Refused(t, err, fsm.GuardError)
	got := override(t, s, overrideBy(i, "submit", `{"at": "now"}`))
	if got.State != "REVIEW.READING" || !strings.Contains(string(got.Context), `"event": "submit"`) || !strings.Contains(string(got.Context), `"at": "now"`) {
		t.Errorf("%+v", got)
	}
	step := fsmtest.Last(t, s, i.ID)
	fsmtest.WantStep(t, step, "forced", "submit", "REVIEW.READING", 2)
	fsmtest.SameJSON(t, step.Payload, `{"at": "now"}`)
	for target, want := range map[string]string{
		"REVIEW": "REVIEW.READING", "REVIEW.READING": "REVIEW.READING", "REVIEW.DECIDING": "REVIEW.DECIDING", "PAID": "PAID",
	} {
		c := overrideBy(create(`{"amount": 5}`), "submit", `{"at": 1}`)
		c.Target = target
		if got := override(t, s, c); got.State != want {
			t.Errorf("to %s the override leads to %s", target, got.State)
		}
	}
	if got := override(t, s, overrideBy(create(`{}`), "mail.received", `{}`)); got.State != "REVIEW.READING" {
		t.Errorf("the pattern leads to %s", got.State)
	}
	// An internal transition leaves the timers as they are.
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i = create(`{}`)
	dbtest.Advance(t, pool, time.Hour)
	got = override(t, s, overrideBy(i, "note", `{}`))
	if got.State != "DRAFT" || !got.StateChangedAt.Equal(fsmtest.Noon) || !got.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(2*time.Hour)) {
		t.Errorf("%+v %+v", got, got.NextTimeout)
	}
	wantTrail(t, s, i, 2, "forced note! DRAFT")
	// It follows that nothing else is passed over.
	i = create(`{"amount": 5}`)
	before := fsmtest.Counts(t, pool)
	_, err = s.Override(t.Context(), overrideBy(i, "submit", `{}`))
	fsmtest.Refused(t, err, fsm.InvalidPayload)
	for event, kind := range map[string]fsm.Kind{
		"nothing": fsm.UnknownEvent, "done": fsm.UnknownEvent, "ttl": fsm.UnknownEvent, "after:2h": fsm.UnknownEvent, "mail.*": fsm.UnknownEvent,
	} {
		_, err := s.Override(t.Context(), overrideBy(i, event, `{}`))
		fsmtest.Refused(t, err, kind)
	}
	if after := fsmtest.Counts(t, pool); before != after {
		t.Errorf("from %s to %s", before, after)
	}
	_, err = s.Override(t.Context(), overrideBy(i, "read", `{}`))
	fsmtest.Refused(t, err, fsm.TransitionNotAllowed)
	c := overrideBy(i, "submit", `{"at": 1}`)
	c.Target = "LOST"
	_, err = s.Override(t.Context(), c)
	fsmtest.Refused(t, err, fsm.TransitionNotAllowed)
	_, err = s.Override(t.Context(), overrideBy(i, "wipe", `{}`))
	if e := fsmtest.Refusal(t, err, fsm.GuardRejected); len(e.Refusal.Guards) != 1 || !strings.Contains(e.Refusal.Guards[0], "amount") {
		t.Errorf("%+v", e.Refusal)
	}
	if got := fsmtest.Get(t, s, i.ID); got.Version != 1 {
		t.Errorf("%+v", got)
	}
}

// What is wrong with a command is said before anything is done.
func TestMalformedOverrides(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	dbtest.Tenants(t, pool, "other")
	i := fsmtest.Create(t, s, "claim", `{}`)
	before := fsmtest.Counts(t, pool)
	for name, c := range map[string]struct {
		change  func(*fsm.OverrideCommand)
		kind    fsm.Kind
		pointer string
	}{
		"no reason":             {func(c *fsm.OverrideCommand) { c.Reason = "" }, fsm.Malformed, "/reason"},
		"blank reason":          {func(c *fsm.OverrideCommand) { c.Reason = " \t\u2003" }, fsm.Malformed, "/reason"},
		"reason without a form": {func(c *fsm.OverrideCommand) { c.Reason = "\u200b\u2060\ufeff\u202e" }, fsm.Malformed, "/reason"},
		"long reason":           {func(c *fsm.OverrideCommand) { c.Reason = strings.Repeat("é", 1001) }, fsm.Malformed, "/reason"},
		"neither":               {func(c *fsm.OverrideCommand) { c.To = "" }, fsm.Malformed, ""},
		"both":                  {func(c *fsm.OverrideCommand) { c.Event, c.Bypass = "submit", "guard" }, fsm.Malformed, ""},
		"bypass without event":  {func(c *fsm.OverrideCommand) { c.Bypass = "guard" }, fsm.Malformed, "/bypass"},
		"target without event":  {func(c *fsm.OverrideCommand) { c.Target = "PAID" }, fsm.Malformed, "/target"},
		"payload without event": {func(c *fsm.OverrideCommand) { c.Payload = json.RawMessage(`{}`) }, fsm.Malformed, "/payload"},
		"event without bypass":  {func(c *fsm.OverrideCommand) { c.To, c.Event = "", "submit" }, fsm.Malformed, "/bypass"},
		"other bypass":          {func(c *fsm.OverrideCommand) { c.To, c.Event, c.Bypass = "", "submit", "all" }, fsm.Malformed, "/bypass"},
		"patch with event": {func(c *fsm.OverrideCommand) {
			c.To, c.Event, c.Bypass, c.ContextPatch = "", "submit", "guard", json.RawMessage(`{}`)
		}, fsm.Malformed, "/context_patch"},
		"patch that is no object": {func(c *fsm.OverrideCommand) { c.ContextPatch = json.RawMessage(`[]`) }, fsm.Malformed, "/context_patch"},
		"deep patch":              {func(c *fsm.OverrideCommand) { c.ContextPatch = json.RawMessage(nested(65)) }, fsm.Malformed, "/context_patch"},
		"large context": {func(c *fsm.OverrideCommand) {
			c.ContextPatch = json.RawMessage(`{"a": "` + strings.Repeat("x", 65536) + `"}`)
		}, fsm.TooLarge, ""},
		"unknown state":            {func(c *fsm.OverrideCommand) { c.To = "NOWHERE" }, fsm.Malformed, "/to"},
		"part of a state":          {func(c *fsm.OverrideCommand) { c.To = "REVIEW.READ" }, fsm.Malformed, "/to"},
		"long state":               {func(c *fsm.OverrideCommand) { c.To = strings.Repeat("x", 256) }, fsm.Malformed, "/to"},
		"bad key":                  {func(c *fsm.OverrideCommand) { c.Key = "a b" }, fsm.KeyInvalid, ""},
		"no version":               {func(c *fsm.OverrideCommand) { c.Expect = fsm.Expect{} }, fsm.PreconditionRequired, ""},
		"stale version":            {func(c *fsm.OverrideCommand) { c.Expect = fsm.ExpectVersion(7) }, fsm.VersionMismatch, ""},
		"no such instance":         {func(c *fsm.OverrideCommand) { c.ID = uuid.New() }, fsm.InstanceNotFound, ""},
		"instance of another":      {func(c *fsm.OverrideCommand) { c.Tenant = "other" }, fsm.InstanceNotFound, ""},
		"no instance, no version":  {func(c *fsm.OverrideCommand) { c.ID, c.Expect = uuid.New(), fsm.Expect{} }, fsm.InstanceNotFound, ""},
		"correlation with a space": {func(c *fsm.OverrideCommand) { c.CorrelationID = "a b" }, fsm.Malformed, ""},
	} {
		command := overrideTo(i, "REVIEW", "")
		c.change(&command)
		for _, call := range []func(context.Context, fsm.OverrideCommand) (fsm.Result, error){s.Override, s.PreviewOverride} {
			_, err := call(t.Context(), command)
			if !errors.Is(err, c.kind) {
				t.Errorf("%s: %v, want %v", name, err, c.kind)
			} else if e := fsm.AsError(err); c.pointer != "" && (len(e.Faults) == 0 || e.Faults[0].Pointer != c.pointer) {
				t.Errorf("%s: %+v, want a fault at %s", name, e.Faults, c.pointer)
			}
		}
	}
	// A cancel needs less.
	for name, c := range map[string]struct {
		change func(*fsm.CancelCommand)
		kind   fsm.Kind
	}{
		"no reason":        {func(c *fsm.CancelCommand) { c.Reason = "" }, fsm.Malformed},
		"blank reason":     {func(c *fsm.CancelCommand) { c.Reason = "\n" }, fsm.Malformed},
		"long reason":      {func(c *fsm.CancelCommand) { c.Reason = strings.Repeat("x", 1001) }, fsm.Malformed},
		"stale version":    {func(c *fsm.CancelCommand) { c.Expect = fsm.ExpectVersion(7) }, fsm.VersionMismatch},
		"no such instance": {func(c *fsm.CancelCommand) { c.ID = uuid.New() }, fsm.InstanceNotFound},
		"bad key":          {func(c *fsm.CancelCommand) { c.Key = "a b" }, fsm.KeyInvalid},
	} {
		command := fsm.CancelCommand{ID: i.ID, Origin: operator}
		c.change(&command)
		for _, call := range []func(context.Context, fsm.CancelCommand) (fsm.Result, error){s.Cancel, s.PreviewCancel} {
			if _, err := call(t.Context(), command); !errors.Is(err, c.kind) {
				t.Errorf("%s: %v, want %v", name, err, c.kind)
			}
		}
	}
	if after := fsmtest.Counts(t, pool); before != after {
		t.Errorf("from %s to %s", before, after)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.audit where action like 'instance.%'"); n != 0 {
		t.Errorf("the audit has %d rows of what was not done", n)
	}
	longest := overrideTo(i, "REVIEW", "")
	longest.Reason = strings.Repeat("é", 1000)
	override(t, s, longest)
}

// nested is an object in which objects are nested in one another.
func nested(depth int) string {
	return strings.Repeat(`{"a": `, depth) + "1" + strings.Repeat("}", depth)
}

// Nobody leaves or enters a protected state by hand. Its own transitions and timers do.
func TestProtectedState(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	refused := func(what string, err error) {
		t.Helper()
		if e := fsm.AsError(err); err == nil || !errors.Is(err, fsm.StateProtected) || e.Refusal == nil || e.Refusal.State == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	free := fsmtest.Create(t, s, "claim", `{}`)
	for _, to := range []string{"SEALED", "SEALED.LOCKED", "SEALED.TURNED", "ARCHIVED"} {
		_, err := s.Override(t.Context(), overrideTo(free, to, ""))
		refused("to "+to, err)
		_, err = s.PreviewOverride(t.Context(), overrideTo(free, to, ""))
		refused("dry run to "+to, err)
	}
	_, err := s.Override(t.Context(), overrideBy(free, "seal", `{}`))
	refused("by an event", err)
	// A transition without a guard is no exception.
	_, err = s.Override(t.Context(), overrideBy(free, "enter", `{}`))
	refused("by an event without a guard", err)

	i := fsmtest.Fire(t, s, free.ID, "enter", `{}`)
	for _, to := range []string{"DRAFT", "PAID", "SEALED", "SEALED.TURNED", "SEALED.LOCKED"} {
		_, err := s.Override(t.Context(), overrideTo(i, to, ""))
		refused("from SEALED.LOCKED to "+to, err)
	}
	for _, event := range []string{"open", "turn", "force"} {
		_, err := s.Override(t.Context(), overrideBy(i, event, `{}`))
		refused("from SEALED.LOCKED by "+event, err)
	}
	_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator})
	refused("cancel", err)
	_, err = s.PreviewCancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator})
	refused("dry run of a cancel", err)
	if got := fsmtest.Get(t, s, i.ID); got.Version != 2 {
		t.Errorf("it was moved: %+v", got)
	}
	fsmtest.Fire(t, s, i.ID, "turn", `{}`)
	dbtest.Advance(t, pool, 3*time.Hour)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, i, 2, "transition enter SEALED.LOCKED", "transition turn SEALED.TURNED", "timeout after:3h@SEALED DRAFT")
	override(t, s, overrideTo(fsmtest.Get(t, s, i.ID), "LOST", ""))
	fsmtest.Fire(t, s, i.ID, "archive", `{}`)

	// A cancel that leads to a protected state.
	fsmtest.Register(t, s, `{"name": "trap", "initial": "A", "cancel": "Z", "states": {"A": {"on": {"end": "Z"}}, "Z": {"type": "final", "protected": true}}}`)
	i = fsmtest.Create(t, s, "trap", `{}`)
	_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator})
	refused("cancel into a protected state", err)
	fsmtest.Fire(t, s, i.ID, "end", `{}`)
}

// Eventless transitions are the definition's own, so that one may follow into a protected state.
func TestEventlessTransitionIntoProtectedState(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {"go": {"target": "B", "guard": "$.context.never == true"}}}, "B": {"always": {"target": "P"}}, "P": {"protected": true, "on": {"end": "Z"}}, "Z": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "w", `{}`)
	override(t, s, overrideTo(i, "B", ""))
	wantTrail(t, s, i, 2, "forced B", "transition P")
	i = fsmtest.Create(t, s, "w", `{}`)
	override(t, s, overrideBy(i, "go", `{}`))
	wantTrail(t, s, i, 2, "forced go B", "transition P")
}

// A migration neither leaves nor enters a protected state either. It may keep the state.
func TestMigrationOfProtectedState(t *testing.T) {
	t.Parallel()
	define := func(a, b string) string {
		return `{"name": "w", "initial": "A", "states": {"A": {` + a + `"on": {"go": "B", "end": "Z"}}, "B": {` + b + `"on": {"end": "Z"}}, "Z": {"type": "final"}}}`
	}
	for name, c := range map[string]struct {
		old, new string
		states   map[string]string
		want     string
	}{
		"leaves":         {define(`"protected": true, `, ``), define(`"description": "new", `, ``), map[string]string{"A": "B"}, "state-protected"},
		"enters":         {define(``, ``), define(``, `"protected": true, `), map[string]string{"A": "B"}, "state-protected"},
		"is entered new": {define(`"protected": true, `, ``), define(`"protected": true, "description": "new", `, ``), map[string]string{"A": "A"}, "state-protected"},
		"keeps":          {define(`"protected": true, `, ``), define(`"description": "new", `, ``), nil, ""},
		"keeps the other": {
			define(`"protected": true, `, ``), define(`"protected": true, "description": "new", `, ``),
			map[string]string{"B": "A"},
			"",
		},
	} {
		s, _ := fsmtest.New(t, fsm.Config{}, c.old)
		i := fsmtest.Create(t, s, "w", `{}`)
		fsmtest.Register(t, s, c.new)
		for _, dryRun := range []bool{true, false} {
			m, err := s.Migrate(t.Context(), lifecycle.MigrateCommand{Workflow: "w", From: 1, To: 2, StateMap: c.states, DryRun: dryRun})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			left := ""
			if len(m.Left) > 0 {
				left = m.Left[0].Reason
			}
			if left != c.want || (m.Migrated == 1) != (c.want == "") {
				t.Errorf("%s (dry run %v): %+v, want %q", name, dryRun, m, c.want)
			}
		}
		if got := fsmtest.Get(t, s, i.ID); (got.WorkflowVersion == 2) != (c.want == "") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A cancel leads to the state that the definition names, whatever state that is.
func TestCancel(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim,
		`{"name": "strict", "initial": "A", "cancel": "C", "require_if_match": true, "states": {"A": {"on": {"end": "Z"}},
			"C": {"initial": "D", "states": {"D": {"on": {"end": "Z"}, "after": {"1h": "Z"}}}}, "Z": {"type": "final"}}}`,
		`{"name": "bare", "initial": "A", "states": {"A": {"on": {"end": "Z"}}, "Z": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "claim", `{"amount": 5}`)
	r, err := s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Key: "k", Origin: operator})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Instance; got.State != "WITHDRAWN" || got.Status != fsm.Failed || got.Version != 2 || fsmtest.Timers(t, pool) != 0 {
		t.Errorf("%+v", got)
	}
	fsmtest.SameJSON(t, r.Instance.Context, `{"amount": 5, "by": "exit", "ended": "cancelled", "log": ["into DRAFT", "out of DRAFT"]}`)
	fsmtest.SameJSON(t, r.Instance.Error, `{"event": "cancelled", "state": "DRAFT", "reason": "the customer called"}`)
	step := fsmtest.Last(t, s, i.ID)
	fsmtest.WantStep(t, step, "cancelled", "none", "WITHDRAWN", 2)
	if *step.Reason != operator.Reason || step.Actor != "ops" || step.Payload != nil {
		t.Errorf("%+v", step)
	}
	again, err := s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Key: "k", Origin: fsm.Origin{Actor: "ops", Reason: "another"}})
	if diff := cmp.Diff(r.Instance, again.Instance); err != nil || !again.Replayed || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Key: "l", Origin: operator})
	fsmtest.Refused(t, err, fsm.TransitionNotAllowed)

	i = fsmtest.Create(t, s, "strict", `{}`)
	r, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Expect: fsm.ExpectVersion(1), Origin: operator})
	if err != nil || r.Instance.State != "C.D" || r.Instance.Status != fsm.Active || r.Instance.NextTimeout == nil {
		t.Errorf("%+v %v", r.Instance, err)
	}
	// A workflow that wants events to name a version does not want it of cancels.
	if r, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator}); err != nil || r.Instance.Version != 3 {
		t.Errorf("%+v %v", r.Instance, err)
	}
	i = fsmtest.Create(t, s, "bare", `{}`)
	_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator})
	fsmtest.Refused(t, err, fsm.NotCancellable)
}

// A patch must not make a context unfit for the workflow's schema that has fitted it.
func TestOverrideKeepsTheSchema(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "context_default": {"d": 1},
		"context_schema": {"type": "object", "required": ["n", "d"], "properties": {"n": {"type": "integer"}, "left": false}},
		"states": {"A": {"on": {"end": "Z"}, "exit": {"assign": {"out": 1}}}, "B": {"entry": {"assign": {"left": 1}}, "on": {"end": "Z"}}, "C": {"on": {"b": "B", "end": "Z"}}, "Z": {"type": "final"}},
		"cancel": "C"}`)
	i := fsmtest.Create(t, s, "w", `{"n": 1}`)
	for _, patch := range []string{`{"n": "text"}`, `{"n": null}`, `{"d": null}`} {
		for _, call := range []func(context.Context, fsm.OverrideCommand) (fsm.Result, error){s.Override, s.PreviewOverride} {
			_, err := call(t.Context(), overrideTo(i, "C", patch))
			if e := fsmtest.Refusal(t, err, fsm.InvalidContext); !strings.HasPrefix(e.Faults[0].Pointer, "/context_patch") {
				t.Errorf("%s: %+v", patch, e)
			}
		}
	}
	i = override(t, s, overrideTo(i, "C", `{"n": 2}`))
	// What B assigns is not the patch's fault, and then the context no longer fits.
	i = override(t, s, overrideTo(i, "B", `{"n": 3}`))
	i = override(t, s, overrideTo(i, "C", `{"n": "text"}`))
	fsmtest.SameJSON(t, i.Context, `{"n": "text", "d": 1, "out": 1, "left": 1}`)
	// It may be mended.
	i = override(t, s, overrideTo(i, "C", `{"n": 4, "left": null}`))
	_, err := s.Override(t.Context(), overrideTo(i, "C", `{"n": "text"}`))
	fsmtest.Refused(t, err, fsm.InvalidContext)
}

func TestOverrideKeepsInvariants(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, claim)
	i := fsmtest.Create(t, s, "claim", `{"amount": 5}`)
	c := overrideTo(i, "REVIEW", `{"amount": -1}`)
	c.Key = "k"
	for _, replayed := range []bool{false, true} {
		_, err := s.Override(t.Context(), c)
		if e := fsmtest.Refusal(t, err, fsm.GuardRejected); e.Replayed != replayed || len(e.Refusal.Guards) != 1 {
			t.Errorf("%+v", e)
		}
	}
	if got := fsmtest.Get(t, s, i.ID); got.Version != 1 {
		t.Errorf("%+v", got)
	}
}

// One key is one act, as for events. Its refusals are decisions, too.
func TestOverrideReplays(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	i := fsmtest.Create(t, s, "claim", `{}`)
	c := overrideTo(i, "REVIEW", `{"amount": 1}`)
	c.Key = "k"
	first := override(t, s, c)
	fsmtest.Fire(t, s, i.ID, "read", `{}`)
	before := fsmtest.Counts(t, pool)
	c.Reason = "another"
	r, err := s.Override(t.Context(), c)
	if diff := cmp.Diff(first, r.Instance); err != nil || !r.Replayed || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if after := fsmtest.Counts(t, pool); before != after {
		t.Errorf("from %s to %s", before, after)
	}
	for name, change := range map[string]func(*fsm.OverrideCommand){
		"state":    func(c *fsm.OverrideCommand) { c.To = "DRAFT" },
		"patch":    func(c *fsm.OverrideCommand) { c.ContextPatch = nil },
		"instance": func(c *fsm.OverrideCommand) { c.ID = uuid.New() },
		"subject":  func(c *fsm.OverrideCommand) { c.Actor = "another" },
		"event": func(c *fsm.OverrideCommand) {
			c.To, c.ContextPatch, c.Event, c.Bypass = "", nil, "read", "guard"
		},
	} {
		other := c
		change(&other)
		if _, err := s.Override(t.Context(), other); !errors.Is(err, fsm.KeyReuse) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Key: "k", Origin: operator})
	fsmtest.Refused(t, err, fsm.KeyReuse)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "read", Key: "k"})
	fsmtest.Refused(t, err, fsm.KeyReuse)

	sealed := fsmtest.Create(t, s, "claim", `{}`)
	sealed = fsmtest.Fire(t, s, sealed.ID, "enter", `{}`)
	bare := fsmtest.Register(t, s, `{"name": "bare", "initial": "A", "states": {"A": {"on": {"end": "Z"}}, "Z": {"type": "final"}}}`)
	free := fsmtest.Create(t, s, bare.Name, `{}`)
	ended := fsmtest.Fire(t, s, fsmtest.Create(t, s, "bare", `{}`).ID, "end", `{}`)
	for _, replayed := range []bool{false, true} {
		protected := overrideTo(sealed, "DRAFT", "")
		protected.Key = "p"
		_, err := s.Override(t.Context(), protected)
		if e := fsmtest.Refusal(t, err, fsm.StateProtected); e.Replayed != replayed || e.Refusal.State != "SEALED.LOCKED" {
			t.Errorf("%+v", e)
		}
		_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: free.ID, Key: "n", Origin: operator})
		if e := fsmtest.Refusal(t, err, fsm.NotCancellable); e.Replayed != replayed {
			t.Errorf("%+v", e)
		}
		_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: ended.ID, Key: "e", Origin: operator})
		if e := fsmtest.Refusal(t, err, fsm.TransitionNotAllowed); e.Replayed != replayed || !strings.Contains(e.Message, "final") {
			t.Errorf("%+v", e)
		}
		if !replayed {
			fsmtest.Fire(t, s, sealed.ID, "open", `{}`)
			fsmtest.Fire(t, s, free.ID, "end", `{}`)
		}
	}
}

// The audit says who did it, and keeps no context.
func TestOverrideIsAudited(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	i := fsmtest.Create(t, s, "claim", `{"amount": 424242}`)
	ctx := fsm.WithCaller(t.Context(), fsm.Caller{Actor: "ops", Token: "t-1", Address: "192.0.2.7", RequestID: "r-1"})
	c := overrideTo(i, "REVIEW", `{"amount": 434343}`)
	c.Key = "k"
	for range 2 {
		if _, err := s.Override(ctx, c); err != nil {
			t.Fatal(err)
		}
		c.Reason = "again"
	}
	if _, err := s.Cancel(ctx, fsm.CancelCommand{ID: i.ID, Origin: operator}); err != nil {
		t.Fatal(err)
	}
	const acts = " from pawl.audit where action in ('instance.override', 'instance.cancel') "
	got := bounded.Column[string](t, pool, `
		select concat_ws(' ', tenant_id, actor, token_id, address, request_id, action, outcome, reason, before ->> 'state', before ->> 'version', after ->> 'state', after ->> 'version')
		`+acts+`order by seq`)
	if diff := cmp.Diff([]string{
		"default ops t-1 192.0.2.7 r-1 instance.override done the customer called DRAFT 1 REVIEW.READING 2",
		"default ops t-1 192.0.2.7 r-1 instance.override replayed again REVIEW.READING 2",
		"default ops t-1 192.0.2.7 r-1 instance.cancel done the customer called REVIEW.READING 2 WITHDRAWN 3",
	}, got); diff != "" {
		t.Errorf("-want +got: %s", diff)
	}
	if bounded.Value[bool](t, pool, "select bool_or(target <> $1 or a::text like '%424242%' or a::text like '%434343%')"+strings.Replace(acts, "pawl.audit", "pawl.audit a", 1), i.ID.String()) {
		t.Error("the audit has another target, or the context")
	}
	// One that is not carried out leaves nothing.
	_, err := s.Override(ctx, overrideTo(i, "REVIEW", ""))
	fsmtest.Refused(t, err, fsm.VersionMismatch)
	if n := bounded.Value[int](t, pool, "select count(*)"+acts); n != 3 {
		t.Errorf("the audit has %d rows", n)
	}
}

// A dry run decides the same, also where nothing can be written.
func TestOverrideDryRun(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	i := fsmtest.Create(t, s, "claim", `{"amount": 5}`)
	rows := func() string {
		t.Helper()
		return fsmtest.Counts(t, pool) + bounded.Value[string](t, pool, "select count(*)::text from pawl.audit")
	}
	before := rows()
	reading := fsmtest.On(t, fsmtest.ReadOnly(t, pool), fsm.Config{})
	release := fsmtest.Hold(t, pool, i.ID) // It waits for nobody.
	for name, c := range map[string]fsm.OverrideCommand{
		"REVIEW.READING": overrideTo(i, "REVIEW", `{"amount": 6}`), "DRAFT": overrideBy(i, "note", `{}`),
	} {
		c.Key = "k"
		r, err := reading.PreviewOverride(t.Context(), c)
		if err != nil || r.Instance.State != name || r.Instance.Version != 2 || r.Replayed {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
	if r, err := reading.PreviewCancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator}); err != nil || r.Instance.State != "WITHDRAWN" {
		t.Errorf("%+v %v", r, err)
	}
	release()
	if after := rows(); before != after {
		t.Errorf("from %s to %s", before, after)
	}
	_, err := reading.Override(t.Context(), overrideTo(i, "REVIEW", ""))
	fsmtest.Refused(t, err, fsm.Unavailable)
}

// Of those who saw one version, one moves the instance. The others are told so, and history has no gap.
func TestOverrideRaces(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	race := func(i fsm.Instance, n int, act func(n int) error) (won int) {
		t.Helper()
		release := fsmtest.Hold(t, pool, i.ID)
		errs := make([]error, n)
		var done sync.WaitGroup
		for k := range n {
			done.Go(func() { errs[k] = act(k) })
		}
		bounded.UntilSQL(t, pool, "select count(*) >= 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
		release()
		bounded.Wait(t, "the acts", done.Wait)
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, fsm.VersionMismatch):
				t.Error(err)
			}
		}
		for k, step := range fsmtest.History(t, s, i.ID) {
			if step.Version != int64(k)+1 {
				t.Errorf("step %d has version %d", k, step.Version)
			}
		}
		return won
	}
	i := fsmtest.Create(t, s, "claim", `{}`)
	if won := race(i, 8, func(int) error {
		_, err := s.Override(t.Context(), overrideTo(i, "REVIEW", ""))
		return err
	}); won != 1 {
		t.Errorf("%d overrides of one version were carried out", won)
	}
	i = fsmtest.Create(t, s, "claim", `{}`)
	if won := race(i, 8, func(n int) (err error) {
		switch n % 3 {
		case 0:
			_, err = s.Override(t.Context(), overrideTo(i, "DRAFT", ""))
		case 1:
			_, err = s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Expect: fsm.ExpectVersion(1), Origin: operator})
		default:
			_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "enter", Expect: fsm.ExpectVersion(1)})
		}
		return err
	}); won != 1 {
		t.Errorf("%d commands for one version were carried out", won)
	}
	// Without a version, all of them are.
	i = fsmtest.Create(t, s, "claim", `{}`)
	if won := race(i, 8, func(n int) error {
		c := overrideTo(i, "DRAFT", "")
		c.Expect, c.Key = fsm.ExpectAny(), fmt.Sprintf("all-%d", n)
		_, err := s.Override(t.Context(), c)
		return err
	}); won != 8 || fsmtest.Get(t, s, i.ID).Version != 9 {
		t.Errorf("%d of 8 overrides were carried out: %+v", won, fsmtest.Get(t, s, i.ID))
	}
	// With one key, they are one.
	i = fsmtest.Create(t, s, "claim", `{}`)
	if won := race(i, 8, func(int) error {
		c := overrideTo(i, "DRAFT", "")
		c.Expect, c.Key = fsm.ExpectAny(), "one"
		_, err := s.Override(t.Context(), c)
		return err
	}); won != 8 || fsmtest.Get(t, s, i.ID).Version != 2 {
		t.Errorf("%d of 8 were answered: %+v", won, fsmtest.Get(t, s, i.ID))
	}
}

// An instance that moves wakes up who waits for it.
func TestOverrideIsAnnounced(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var moved []uuid.UUID
	s, _ := fsmtest.New(t, fsm.Config{Moved: func(ids []uuid.UUID) {
		mu.Lock()
		defer mu.Unlock()
		moved = append(moved, ids...)
	}}, claim)
	i := fsmtest.Create(t, s, "claim", `{}`)
	c := overrideTo(i, "REVIEW", "")
	c.Key = "k"
	for range 2 {
		override(t, s, c)
	}
	if _, err := s.PreviewCancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(moved) != 2 { // The creation and the override.
		t.Errorf("%d steps were announced", len(moved))
	}
}

// An assign that fails is told with its place, as after an event.
func TestOverrideIntoFailingAssign(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {"A": {"on": {"b": "B"}},
		"B": {"entry": {"assign": {"x": "$.context.a % $.context.b"}}, "on": {"end": "Z"}}, "Z": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "w", `{"a": 1, "b": 0}`)
	_, err := s.Override(t.Context(), overrideTo(i, "B", ""))
	if e := fsmtest.Refusal(t, err, fsm.GuardError); e.Refusal.State != "A" || len(e.Faults) != 1 || e.Faults[0].Pointer != "/states/B/entry/assign/x" {
		t.Errorf("%+v %+v", e.Refusal, e.Faults)
	}
	fsmtest.SameJSON(t, override(t, s, overrideTo(i, "B", `{"a": 4, "b": 2}`)).Context, `{"a": 4, "b": 2, "x": 0}`)
}

// A back-test ends where an operator stepped in: the definition did not decide that.
func TestBacktestEndsAtOverride(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, claim)
	for _, act := range []func(fsm.Instance) error{
		func(i fsm.Instance) error {
			_, err := s.Override(t.Context(), overrideTo(i, "REVIEW", ""))
			return err
		},
		func(i fsm.Instance) error {
			_, err := s.Cancel(t.Context(), fsm.CancelCommand{ID: i.ID, Origin: operator})
			return err
		},
	} {
		i := fsmtest.Create(t, s, "claim", `{}`)
		if err := act(i); err != nil {
			t.Fatal(err)
		}
		if got := backtested(t, pool, i.ID); got != "2 false" {
			t.Errorf("the back-test ends with %q", got)
		}
	}
}

// backtested re-runs an instance of the workflow claim under its own version, and says how far that gets.
func backtested(t *testing.T, pool *pgxpool.Pool, id uuid.UUID) string {
	t.Helper()
	return bounded.Value[string](t, pool, `
		select concat_ws(' ', steps, complete, difference) from (select steps, complete::text, difference from pawl.backtest('claim', array[$1::uuid], p_version => 1)) b`, id)
}
