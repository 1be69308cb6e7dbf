package fsm_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

func TestBooking(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	ctx := t.Context()
	start := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	dbtest.SetClock(t, pool, start)

	r, err := s.Create(ctx, fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id":"LX1","price":9007199254740993}`), Key: "k1",
		BusinessKey: "order-1", Origin: fsm.Origin{Actor: "alice", Reason: "wants to fly", CorrelationID: "c-1", Traceparent: "00-1-2-01"},
	})
	if err != nil {
		t.Fatal(err)
	}
	i := r.Instance
	expires := start.Add(30 * time.Minute)
	want := fsm.Instance{
		ID: i.ID, Workflow: "flight-booking", WorkflowVersion: 1, State: "QUOTED", Status: fsm.Active, Version: 1,
		Context: i.Context, BusinessKey: new("order-1"), CorrelationID: new("c-1"), AcceptedEvents: []string{"cancel", "reserve"},
		CreatedAt: start, StateChangedAt: start, ExpiresAt: &expires,
		NextTimeout: &fsm.NextTimeout{Event: "after:10m", DueAt: start.Add(10 * time.Minute)},
	}
	if diff := cmp.Diff(want, i); diff != "" || r.Replayed || i.ID.Version() != 7 {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	fsmtest.SameJSON(t, i.Context, `{"flight_id":"LX1","price":9007199254740993}`)
	if diff := cmp.Diff(i, fsmtest.Get(t, s, i.ID)); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}

	dbtest.Advance(t, pool, time.Minute)
	r, err = s.Fire(ctx, fsm.FireCommand{
		ID: i.ID, Event: "reserve", Payload: json.RawMessage(`{"price":9007199254740993,"seat":"12A","x":1}`), Key: "k2",
		Expect: fsm.ExpectVersion(1), Origin: fsm.Origin{Actor: "bob", CorrelationID: "c-2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	reserved := r.Instance
	want = i
	want.State, want.Version, want.Context, want.StateChangedAt = "RESERVED", 2, reserved.Context, start.Add(time.Minute)
	want.AcceptedEvents = []string{"cancel", "pay"}
	want.NextTimeout = &fsm.NextTimeout{Event: "after:15m", DueAt: start.Add(16 * time.Minute)}
	if diff := cmp.Diff(want, reserved); diff != "" {
		t.Errorf("reserved (-want +got):\n%s", diff)
	}
	fsmtest.SameJSON(t, reserved.Context,
		`{"flight_id":"LX1","price":9007199254740993,"seat":"12A","reserved_at":"2026-03-01T12:01:00.123456+00:00"}`)

	dbtest.Advance(t, pool, time.Minute)
	fsmtest.Fire(t, s, i.ID, "pay", `{"amount":1,"payment_ref":"p"}`)
	paid := fsmtest.Fire(t, s, i.ID, "pay", `{"amount":9007199254740993,"payment_ref":"q"}`)
	if paid.State != "PAID" || paid.Status != fsm.Completed || paid.Version != 4 || len(paid.AcceptedEvents) != 0 {
		t.Errorf("paid: %+v", paid)
	}

	// The past is as it was.
	for version, was := range map[int64]fsm.Instance{1: i, 2: reserved, 4: paid} {
		got, err := s.GetVersion(ctx, fsm.DefaultTenant, i.ID, version)
		if diff := cmp.Diff(was, got); err != nil || diff != "" {
			t.Errorf("version %d: %v (-then +now):\n%s", version, err, diff)
		}
	}
	for at, version := range map[time.Time]int64{
		start: 1, start.Add(time.Minute - time.Microsecond): 1, start.Add(time.Minute): 2, start.Add(time.Hour): 4,
	} {
		got, err := s.GetAt(ctx, fsm.DefaultTenant, i.ID, at)
		if err != nil || got.Version != version {
			t.Errorf("at %v: version %d, %v; want %d", at, got.Version, err, version)
		}
	}
	_, err = s.GetAt(ctx, fsm.DefaultTenant, i.ID, start.Add(-time.Microsecond))
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	for _, version := range []int64{-1, 0, 5} {
		_, err = s.GetVersion(ctx, fsm.DefaultTenant, i.ID, version)
		fsmtest.Refused(t, err, fsm.InstanceNotFound)
	}
	_, err = s.Get(ctx, "other", i.ID)
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	_, err = s.GetVersion(ctx, "other", i.ID, 1)
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	_, err = s.History(ctx, "other", i.ID, fsm.Page{})
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	_, err = s.AcceptedEvents(ctx, "other", i.ID, true, "")
	fsmtest.Refused(t, err, fsm.InstanceNotFound)

	steps := fsmtest.History(t, s, i.ID)
	if len(steps) != 4 {
		t.Fatalf("%d steps", len(steps))
	}
	if diff := cmp.Diff(fsm.Step{
		Version: 1, WorkflowVersion: 1, Kind: "created", To: "QUOTED", Status: fsm.Active, Context: i.Context, Actor: "alice",
		Reason: new("wants to fly"), Key: new("k1"), CorrelationID: new("c-1"), Traceparent: new("00-1-2-01"), At: start,
	}, steps[0]); diff != "" {
		t.Errorf("first step (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fsm.Step{
		Version: 2, WorkflowVersion: 1, Kind: "transition", Event: new("reserve"), From: new("QUOTED"), To: "RESERVED",
		Status: fsm.Active, Context: reserved.Context, Payload: steps[1].Payload, Actor: "bob", Key: new("k2"),
		CorrelationID: new("c-2"), At: start.Add(time.Minute),
	}, steps[1]); diff != "" {
		t.Errorf("second step (-want +got):\n%s", diff)
	}
	fsmtest.SameJSON(t, steps[1].Payload, `{"price":9007199254740993,"seat":"12A","x":1}`)
	if s := steps[3]; *s.From != "PAYMENT_MISMATCH" || s.To != "PAID" || s.Status != fsm.Completed || s.Actor != "anonymous" {
		t.Errorf("last step: %+v", s)
	}

	// A key answers with what was, though the instance has moved on and If-Match is stale.
	r, err = s.Fire(ctx, fsm.FireCommand{
		ID: i.ID, Event: "reserve", Payload: json.RawMessage(` { "x" : 1, "seat": "12A", "price":9007199254740993} `), Key: "k2",
		Expect: fsm.ExpectVersion(77), Origin: fsm.Origin{Actor: "bob", Reason: "again"},
	})
	if diff := cmp.Diff(fsm.Result{Instance: reserved, Replayed: true}, r); err != nil || diff != "" {
		t.Errorf("replay: %v (-first +replay):\n%s", err, diff)
	}
	r, err = s.Create(ctx, fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"price":9007199254740993,"flight_id":"LX1"}`), Key: "k1", BusinessKey: "order-1", Origin: fsm.Origin{Actor: "alice"},
	})
	if diff := cmp.Diff(fsm.Result{Instance: i, Created: true, Replayed: true}, r); err != nil || diff != "" {
		t.Errorf("replay of the creation: %v (-first +replay):\n%s", err, diff)
	}
}

func TestExpiresIn(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking, fsmtest.Counter)
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	dbtest.SetClock(t, pool, start)
	r, err := s.Create(t.Context(), fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id":"x","price":1}`), ExpiresIn: 90 * time.Second, CorrelationID: "own",
		Origin: fsm.Origin{CorrelationID: "request"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Instance.ExpiresAt.Equal(start.Add(90*time.Second)) || *r.Instance.CorrelationID != "own" {
		t.Errorf("got %+v", r.Instance)
	}
	if c := fsmtest.History(t, s, r.Instance.ID)[0].CorrelationID; *c != "request" {
		t.Errorf("the step's correlation id is %q", *c)
	}
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", ExpiresIn: time.Second})
	if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Faults[0].Pointer != "/expires_in" {
		t.Errorf("got %+v", e.Faults)
	}
	if i := fsmtest.Create(t, s, "counter", `{}`); i.ExpiresAt != nil {
		t.Errorf("expires at %v", i.ExpiresAt)
	}
}

// A recorded refusal is replayed as it was; what is not recorded is decided anew.
func TestRefusalsAreReplayed(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, stepwise)
	ctx := t.Context()
	i := fsmtest.Create(t, s, "stepwise", `{"x":1}`)
	command := func(key, event, payload string, expect fsm.Expect) fsm.FireCommand {
		return fsm.FireCommand{ID: i.ID, Event: event, Payload: json.RawMessage(payload), Key: key, Expect: expect}
	}
	_, rejected := s.Fire(ctx, command("rejected", "go", `{"n":0}`, fsm.ExpectAny()))
	_, notAllowed := s.Fire(ctx, command("not-allowed", "end", `{}`, fsm.ExpectAny()))
	_, err := s.Fire(ctx, command("mismatch", "go", `{"n":2}`, fsm.ExpectVersion(2)))
	fsmtest.Refused(t, err, fsm.VersionMismatch)

	if _, err := s.Fire(ctx, command("moves", "go", `{"n":2}`, fsm.ExpectVersion(1))); err != nil {
		t.Fatal(err)
	}
	for key, first := range map[string]error{"rejected": rejected, "not-allowed": notAllowed} {
		event, payload := "go", `{"n":0}`
		if key == "not-allowed" {
			event, payload = "end", `{}`
		}
		_, err := s.Fire(ctx, command(key, event, payload, fsm.ExpectAny()))
		var want fsm.Error = *fsmtest.Refusal(t, first, fsm.AsError(first).Kind)
		want.Replayed = true
		got := fsmtest.Refusal(t, err, want.Kind)
		if got.Message != want.Message || !got.Replayed || !cmp.Equal(got.Refusal, want.Refusal) {
			t.Errorf("%s:\nfirst  %+v\nreplay %+v", key, want, *got)
		}
	}
	// A mismatch was no decision: the same key, with another precondition, moves.
	r, err := s.Fire(ctx, command("mismatch", "end", `{}`, fsm.ExpectVersion(2)))
	if err != nil || r.Replayed || r.Instance.State != "Z" {
		t.Errorf("got %+v, %v", r, err)
	}
	_, err = s.Fire(ctx, command("mismatch", "end", `{"x":1}`, fsm.ExpectVersion(2)))
	fsmtest.Refused(t, err, fsm.KeyReuse)
}

func TestBusinessKeyGivesItsKeyBack(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ctx := t.Context()
	// All in one call: one wins, the others name it, and their keys stay free.
	var commands []fsm.Command
	for _, key := range []string{"a", "b", "c"} {
		commands = append(commands, fsm.CreateCommand{Workflow: "counter", BusinessKey: "one", Key: key})
	}
	replies := s.Do(ctx, commands)
	winner := slices.IndexFunc(replies, func(r fsm.Reply) bool { return r.Err == nil })
	if winner < 0 {
		t.Fatalf("nobody wins: %v", replies)
	}
	for n, r := range replies {
		if n != winner {
			if e := fsmtest.Refusal(t, r.Err, fsm.InstanceExists); e.InstanceID != replies[winner].Instance.ID {
				t.Errorf("names %s, the holder is %s", e.InstanceID, replies[winner].Instance.ID)
			}
		}
	}
	for n, command := range commands {
		c := command.(fsm.CreateCommand)
		r, err := s.Create(ctx, c)
		if n == winner {
			if err != nil || !r.Replayed || r.Instance.ID != replies[winner].Instance.ID {
				t.Errorf("the winner's replay: %+v, %v", r, err)
			}
			continue
		}
		fsmtest.Refused(t, err, fsm.InstanceExists)
		c.BusinessKey = "of-" + c.Key
		if r, err := s.Create(ctx, c); err != nil || r.Replayed {
			t.Errorf("the key of a refusal: %+v, %v", r, err)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{MaxBatch: 4}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	if replies := s.Do(t.Context(), nil); len(replies) != 0 {
		t.Errorf("got %v", replies)
	}
	var commands []fsm.Command
	for n := range 20 {
		commands = append(commands, fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)})
		switch n % 4 {
		case 1:
			commands = append(commands, fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":-1}`)})
		case 2:
			commands = append(commands, fsm.CreateCommand{Workflow: "counter"})
		case 3:
			commands = append(commands, fsm.FireCommand{ID: i.ID, Event: "add", Key: " "})
		}
	}
	version := int64(1)
	for n, r := range s.Do(t.Context(), commands) {
		switch c := commands[n].(type) {
		case fsm.CreateCommand:
			if r.Err != nil || r.Instance.Version != 1 {
				t.Errorf("%d: %+v", n, r)
			}
		case fsm.FireCommand:
			switch {
			case c.Key == " ":
				fsmtest.Refused(t, r.Err, fsm.KeyInvalid)
			case string(c.Payload) == `{"n":1}`:
				if version++; r.Err != nil || r.Instance.Version != version {
					t.Errorf("%d: %+v, want version %d", n, r, version)
				}
			default:
				if e := fsmtest.Refusal(t, r.Err, fsm.GuardRejected); e.Refusal.Version != version {
					t.Errorf("%d: refused at %d, want %d", n, e.Refusal.Version, version)
				}
			}
		}
	}
	fsmtest.SameJSON(t, fsmtest.Get(t, s, i.ID).Context, `{"x":20}`)
}

// A key that a create and a fire of one Do have in common goes to the first of them.
func TestDoKeepsTheOrderOfAKey(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	start := fsm.CreateCommand{Workflow: "counter"}
	add := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)}
	for n := range 10 {
		start.Key, add.Key = fmt.Sprint("k", n), fmt.Sprint("k", n)
		commands := []fsm.Command{start, add, add, start}
		if n%2 == 1 {
			commands = []fsm.Command{add, start, start, add}
		}
		replies := s.Do(t.Context(), append(commands, fsm.CreateCommand{Workflow: "counter"}))
		if replies[0].Err != nil || replies[0].Replayed || replies[3].Err != nil || !replies[3].Replayed || replies[4].Err != nil {
			t.Errorf("%d: the first to have the key: %+v", n, replies)
		}
		for _, r := range replies[1:3] {
			fsmtest.Refused(t, r.Err, fsm.KeyReuse)
		}
	}
	if v := fsmtest.Get(t, s, i.ID).Version; v != 6 {
		t.Errorf("version %d", v)
	}
}

func TestKeysExpire(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	for _, c := range []struct {
		later    time.Duration
		replayed bool
		version  int64
	}{{0, false, 2}, {24*time.Hour - time.Microsecond, true, 2}, {time.Microsecond, false, 3}} {
		dbtest.Advance(t, pool, c.later)
		r, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"})
		if err != nil || r.Replayed != c.replayed || r.Instance.Version != c.version {
			t.Errorf("%v later: %+v, %v", c.later, r, err)
		}
	}
}

func TestTenantsShareNothing(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	var ids []uuid.UUID
	for _, tenant := range []string{"a", "b"} {
		r, err := s.Create(t.Context(), fsm.CreateCommand{Tenant: tenant, Workflow: "counter", Key: "k", BusinessKey: "b"})
		if err != nil || r.Replayed {
			t.Fatalf("%s: %+v, %v", tenant, r, err)
		}
		ids = append(ids, r.Instance.ID)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{Tenant: "a", ID: ids[1], Event: "stop"})
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
}
