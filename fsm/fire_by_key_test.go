package fsm_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// byKey is a command for the counter that holds a business key, which is started at 0 if there is none.
func byKey(businessKey, event, payload string) fsm.FireByKeyCommand {
	return fsm.FireByKeyCommand{
		Workflow: "counter", BusinessKey: businessKey, Event: event, Payload: json.RawMessage(payload),
		Start: &fsm.Start{Context: json.RawMessage(`{"x":0}`)},
	}
}

func TestFireByKey(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ctx := t.Context()
	c := byKey("b", "add", `{"n":1}`)
	c.Start = nil
	_, err := s.FireByKey(ctx, c)
	if e := fsmtest.Refusal(t, err, fsm.InstanceNotFound); !strings.Contains(e.Message, "business key") {
		t.Errorf("it says %q", e.Message)
	}
	c.Start = &fsm.Start{Context: json.RawMessage(`{"x":5}`), CorrelationID: "mine"}
	c.Key, c.Origin = "k", fsm.Origin{Actor: "me", Reason: "because", CorrelationID: "command"}
	first, err := s.FireByKey(ctx, c)
	if err != nil || !first.Created || first.Replayed || first.Instance.Version != 2 || *first.Instance.CorrelationID != "mine" {
		t.Fatalf("the start: %+v, %v", first, err)
	}
	fsmtest.SameJSON(t, first.Instance.Context, `{"x":6}`)
	for _, step := range fsmtest.History(t, s, first.Instance.ID) {
		if step.Actor != "me" || *step.Reason != "because" || *step.CorrelationID != "command" {
			t.Errorf("step %d: %+v", step.Version, step)
		}
	}
	again, err := s.FireByKey(ctx, c)
	if err != nil || !again.Created || !again.Replayed || again.Instance.Version != 2 {
		t.Errorf("the replay: %+v, %v", again, err)
	}
	next := byKey("b", "add", `{"n":1}`)
	next.Expect = fsm.ExpectVersion(2)
	r, err := s.FireByKey(ctx, next)
	if err != nil || r.Created || r.Instance.ID != first.Instance.ID || r.Instance.Version != 3 {
		t.Errorf("the next: %+v, %v", r, err)
	}
	_, err = s.FireByKey(ctx, next)
	if e := fsmtest.Refusal(t, err, fsm.VersionMismatch); e.Refusal.Version != 3 {
		t.Errorf("a stale version: %+v", e.Refusal)
	}
	next.BusinessKey = "new"
	_, err = s.FireByKey(ctx, next)
	if e := fsmtest.Refusal(t, err, fsm.VersionMismatch); e.Refusal.Version != 0 || !strings.Contains(e.Message, "no instance") {
		t.Errorf("no version: %+v, %q", e.Refusal, e.Message)
	}
	_, err = s.Fire(ctx, fsm.FireCommand{ID: first.Instance.ID, Event: "add", Payload: c.Payload, Key: "k"})
	fsmtest.Refused(t, err, fsm.KeyReuse)
	none := byKey("b", "add", `{}`)
	none.Workflow = "none"
	_, err = s.FireByKey(ctx, none)
	if e := fsmtest.Refusal(t, err, fsm.WorkflowNotFound); !strings.Contains(e.Message, `"none"`) {
		t.Errorf("it says %q", e.Message)
	}
}

// What cannot be started is refused with its place in the request.
func TestStartIsChecked(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, checked(strict, strict))
	good := json.RawMessage(`{"id":"AB","price":9007199254740994}`)
	before := fsmtest.Counts(t, pool)
	for name, c := range map[string]struct {
		start    fsm.Start
		key      string
		payload  string
		kind     fsm.Kind
		pointers []string
	}{
		"context":      {fsm.Start{Context: json.RawMessage(`{"id":"AB","price":1}`)}, "b", string(good), fsm.InvalidContext, []string{"/start/context/price"}},
		"payload":      {fsm.Start{Context: good}, "b", `{"id":"AB","price":1}`, fsm.InvalidPayload, []string{"/payload/price"}},
		"no object":    {fsm.Start{Context: json.RawMessage(`[]`)}, "b", string(good), fsm.Malformed, []string{"/start/context"}},
		"lifetime":     {fsm.Start{Context: good, ExpiresIn: time.Hour}, "b", string(good), fsm.Malformed, []string{"/start/expires_in"}},
		"too long":     {fsm.Start{Context: good, ExpiresIn: 1 << 62}, "b", string(good), fsm.Malformed, []string{"/start/expires_in"}},
		"correlation":  {fsm.Start{Context: good, CorrelationID: "é"}, "b", string(good), fsm.Malformed, []string{"/start/correlation_id"}},
		"callback":     {fsm.Start{Context: good, CallbackURL: "ftp://x"}, "b", string(good), fsm.Malformed, []string{"/start/callback_url"}},
		"no key":       {fsm.Start{Context: good}, "", string(good), fsm.Malformed, nil},
		"long key":     {fsm.Start{Context: good}, strings.Repeat("x", 256), string(good), fsm.Malformed, []string{""}},
		"secret alone": {fsm.Start{Context: good, CallbackSecret: "x"}, "b", string(good), fsm.Malformed, []string{"/start/callback_secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			command := fsm.FireByKeyCommand{Workflow: "checked", BusinessKey: c.key, Event: "go", Payload: json.RawMessage(c.payload), Start: &c.start}
			_, err := s.FireByKey(t.Context(), command)
			_, previewErr := s.PreviewByKey(t.Context(), command)
			for _, err := range []error{err, previewErr} {
				if got := fsmtest.Pointers(fsmtest.Refusal(t, err, c.kind).Faults); !slices.Equal(got, c.pointers) {
					t.Errorf("faults at %q, want %q", got, c.pointers)
				}
			}
		})
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("it left %s, after %s", after, before)
	}
	// The schemas are guessed for the second start.
	for _, key := range []string{"1", "2"} {
		r, err := s.FireByKey(t.Context(), fsm.FireByKeyCommand{
			Workflow: "checked", BusinessKey: key, Event: "go", Payload: good, Start: &fsm.Start{Context: good},
		})
		if err != nil || !r.Created || r.Instance.Version != 2 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

// A dry run decides what the command would, and leaves nothing.
func TestPreviewByKey(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ctx := t.Context()
	held := byKey("held", "add", `{"n":1}`)
	started, err := s.FireByKey(ctx, held)
	if err != nil {
		t.Fatal(err)
	}
	before := fsmtest.Counts(t, pool)
	r, err := s.PreviewByKey(ctx, held)
	if err != nil || r.Created || r.Instance.ID != started.Instance.ID || r.Instance.Version != 3 {
		t.Errorf("the holder's: %+v, %v", r, err)
	}
	c := byKey("new", "add", `{"n":1}`)
	c.Key = "k"
	if r, err = s.PreviewByKey(ctx, c); err != nil || !r.Created || r.Replayed || r.Instance.Version != 2 || *r.Instance.BusinessKey != "new" {
		t.Errorf("a start's: %+v, %v", r, err)
	}
	c.Payload = json.RawMessage(`{"n":-1}`)
	_, err = s.PreviewByKey(ctx, c)
	fsmtest.Refused(t, err, fsm.GuardRejected)
	c.Expect = fsm.ExpectAny()
	_, err = s.PreviewByKey(ctx, c)
	fsmtest.Refused(t, err, fsm.VersionMismatch)
	c.Start = nil
	_, err = s.PreviewByKey(ctx, c)
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	for _, businessKey := range []string{"held", "new"} {
		c := byKey(businessKey, "raise", `{}`)
		_, err = s.PreviewByKey(ctx, c)
		if e := fsmtest.Refusal(t, err, fsm.GuardError); e.Refusal.Event != "raise" || (e.Refusal.State != "") != (businessKey == "held") {
			t.Errorf("%s: %+v", businessKey, e.Refusal)
		}
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("it left %s, after %s", after, before)
	}
}

// Many callers of two services name few processes, of which none exists. Each is created once, and each command
// takes effect once, though it is sent twice.
func TestManyStartFewInstances(t *testing.T) {
	t.Parallel()
	first, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	services := []*fsmtest.Service{first, fsmtest.On(t, pool, fsm.Config{})}
	const commands, businessKeys = 100, 10
	replies := make([][2]fsm.Reply, commands)
	var all sync.WaitGroup
	for n := range commands {
		c := byKey(fmt.Sprint(n%businessKeys), "add", `{"n":1}`)
		c.Key = fmt.Sprint("k", n)
		for i, s := range services {
			all.Go(func() {
				r, err := s.FireByKey(t.Context(), c)
				replies[n][i] = fsm.Reply{Result: r, Err: err}
			})
		}
	}
	bounded.Wait(t, "all commands", all.Wait)
	ids, creators := map[uuid.UUID]int{}, map[uuid.UUID]int{}
	for n, pair := range replies {
		for _, r := range pair {
			if r.Err != nil {
				t.Fatalf("command %d: %v", n, r.Err)
			}
		}
		a, b := pair[0], pair[1]
		if a.Replayed == b.Replayed || a.Created != b.Created || a.Instance.ID != b.Instance.ID || a.Instance.Version != b.Instance.Version {
			t.Errorf("command %d: two callers were told %+v and %+v", n, a, b)
		}
		ids[a.Instance.ID]++
		if a.Created {
			creators[a.Instance.ID]++
		}
	}
	if len(ids) != businessKeys {
		t.Errorf("%d instances, want %d", len(ids), businessKeys)
	}
	for id, n := range ids {
		i := fsmtest.Get(t, first, id)
		if fsmtest.SameJSON(t, i.Context, fmt.Sprintf(`{"x":%d}`, n)); i.Version != int64(n)+1 || creators[id] != 1 {
			t.Errorf("%d commands and %d creators made version %d", n, creators[id], i.Version)
		}
	}
}

// Commands of one Do that may be for one instance are carried out in their order, whatever they name it by.
func TestDoKeepsTheOrderOfABusinessKey(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", BusinessKey: "0", Context: json.RawMessage(`{"x":0}`)})
	if err != nil {
		t.Fatal(err)
	}
	var commands []fsm.Command
	for range 5 {
		commands = append(commands,
			fsm.FireCommand{ID: r.Instance.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)},
			byKey("0", "add", `{"n":1}`), byKey("0", "add", `{"n":1}`))
	}
	for n, reply := range s.Do(t.Context(), commands) {
		if reply.Err != nil || reply.Instance.Version != int64(n+2) {
			t.Errorf("command %d: %+v", n, reply)
		}
	}
	for n := range 5 {
		key := fmt.Sprint(n + 1)
		create := fsm.CreateCommand{Workflow: "counter", BusinessKey: key, Context: json.RawMessage(`{"x":0}`)}
		replies := s.Do(t.Context(), []fsm.Command{create, byKey(key, "add", `{"n":1}`)})
		if replies[1].Err != nil || replies[1].Created || replies[1].Instance.ID != replies[0].Instance.ID {
			t.Errorf("after its creation: %+v", replies)
		}
		create.BusinessKey += " by key"
		replies = s.Do(t.Context(), []fsm.Command{byKey(create.BusinessKey, "add", `{"n":1}`), create})
		if replies[0].Err != nil || !replies[0].Created {
			t.Errorf("before its creation: %+v", replies)
		}
		fsmtest.Refused(t, replies[1].Err, fsm.InstanceExists)
	}
}

// A command that fails or is held up harms no command that shares its call.
func TestOneStartSpoilsNoOther(t *testing.T) {
	t.Parallel()
	plain := dbtest.New(t)
	pool := fsmtest.Open(t, dbtest.DSN(plain), db.Config{StatementTimeout: time.Second, LockTimeout: 50 * time.Millisecond})
	fsmtest.On(t, pool, fsm.Config{}, fsmtest.Counter)
	slow := `{"a":[` + strings.Repeat("1,", 599) + `1]}`
	for name, c := range map[string]struct {
		event, payload string
		exists, held   bool
		kind           fsm.Kind
	}{
		"a guard raises":               {"raise", `{}`, true, false, fsm.GuardError},
		"a guard raises at the start":  {"raise", `{}`, false, false, fsm.GuardError},
		"a guard is slow":              {"slow", slow, true, false, fsm.GuardError},
		"a guard is slow at the start": {"slow", slow, false, false, fsm.GuardError},
		"a row is locked":              {"stop", `{}`, true, true, fsm.Unavailable},
	} {
		s := fsmtest.On(t, pool, fsm.Config{}) // It does not remember the other cases.
		var commands []fsm.Command
		var held uuid.UUID
		for n := range 5 {
			f := byKey(fmt.Sprint(name, n), "add", `{"n":1}`)
			if n == 2 {
				f.Event, f.Payload = c.event, json.RawMessage(c.payload)
				if c.exists {
					r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", BusinessKey: f.BusinessKey, Context: f.Start.Context})
					if err != nil {
						t.Fatal(err)
					}
					held = r.Instance.ID
				}
			}
			commands = append(commands, f)
		}
		release := func() {}
		if c.held {
			release = fsmtest.Hold(t, plain, held)
		}
		replies := s.Do(t.Context(), commands)
		release()
		for n, r := range replies {
			if n == 2 {
				fsmtest.Refused(t, r.Err, c.kind)
			} else if r.Err != nil || r.Replayed || !r.Created {
				t.Errorf("%s: its neighbour: %+v", name, r)
			}
		}
		if c.kind != fsm.GuardError {
			continue
		}
		// The guard is remembered for the workflow and the event, so that later commands are called apart.
		if _, err := s.FireByKey(t.Context(), byKey(fmt.Sprint(name, 2), c.event, c.payload)); err == nil {
			t.Errorf("%s: the second time it passes", name)
		}
	}
}

// A start whose answer was lost is no replay to its caller, and created its instance all the same.
func TestAnswerToAStartIsLost(t *testing.T) {
	t.Parallel()
	var s strikes
	plain := dbtest.New(t)
	service := fsmtest.On(t, s.pool(t, plain), fsm.Config{}, fsmtest.Counter)
	for n, f := range []fault{loseAnswer, loseCall} {
		key := fmt.Sprintf("struck-%d", n)
		c := byKey(key, "add", `{"n":1}`)
		c.Key = key
		s.next(1, f, key)
		r, err := service.FireByKey(t.Context(), c)
		if err != nil || r.Replayed || !r.Created || r.Instance.Version != 2 {
			t.Errorf("%d: %+v, %v", f, r, err)
		}
		// A replay whose call never arrived is still a replay.
		s.next(1, loseCall, key)
		if r, err = service.FireByKey(t.Context(), c); err != nil || !r.Replayed || !r.Created || r.Instance.Version != 2 {
			t.Errorf("%d, again: %+v, %v", f, r, err)
		}
	}
	if got := bounded.Value[string](t, plain, "select count(*) || ' ' || sum(version) from pawl.instance"); got != "2 4" {
		t.Errorf("instances, and their versions: %s; want 2 4", got)
	}
}
