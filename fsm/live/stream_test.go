package live_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// readAll reads pages until there are no more, opening the stream anew behind each.
func readAll(t *testing.T, s *fsmtest.Service, id string) (messages []live.Message, last string, pages int) {
	t.Helper()
	// bounded: each page begins where the last one ended
	for {
		stream, err := live.New(s.Service, nil).StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, id)
		if err != nil {
			t.Fatal(err)
		}
		page, more, err := stream.Next(t.Context())
		stream.Close()
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, page...)
		id = stream.ID()
		if len(page) > 0 {
			pages++
			if more {
				id = page[len(page)-1].ID // It is as good as the stream's.
			}
		}
		if !more {
			return messages, id, pages
		}
	}
}

// wantSteps fails unless events are n steps, each instance's once and in order.
func wantSteps(t *testing.T, events []live.Message, n int) {
	t.Helper()
	versions := map[uuid.UUID]int64{}
	for _, e := range events {
		if before, known := versions[e.InstanceID]; known && e.Version != before+1 {
			t.Fatalf("version %d of %s comes after %d", e.Version, e.InstanceID, before)
		}
		versions[e.InstanceID] = e.Version
	}
	if len(events) != n {
		t.Errorf("%d events, want %d", len(events), n)
	}
}

// A long past, and much that has happened since, come in pages that are bounded by their
// rows and by their bytes.
func TestStreamsComeInPages(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	const more = `select pawl.create_one('counter', jsonb_build_object('x', 0, 'text', repeat('x', $2))) from generate_series(1, $1)`
	bounded.Exec(t, pool, more, 2500, 1)
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'add', '{\"n\": 1}') from (select id from pawl.instance limit 100) i")
	events, id, pages := readAll(t, s, live.FromStart)
	wantSteps(t, events, 2600)
	if pages != 3 {
		t.Errorf("the past has %d pages, want 3", pages)
	}
	bounded.Exec(t, pool, more, 40, 60000)
	events, id, pages = readAll(t, s, id)
	wantSteps(t, events, 40)
	if pages != 8 { // With five in each.
		t.Errorf("40 contexts of 60 kB have %d pages, want 8", pages)
	}
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'add', '{\"n\": 1}') from (select id from pawl.instance where version = 1 limit 2001) i")
	events, id, _ = readAll(t, s, id)
	wantSteps(t, events, 2001)
	if events, _, _ = readAll(t, s, id); len(events) > 0 {
		t.Errorf("%d events come again", len(events))
	}
}

// More than a stream catches up with in order is refused also while it goes on, except
// behind the past, where it comes by instance once more.
func TestStreamsThatFallFarBehind(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	// Instances of one step each, of another tenant too: a limit is a limit of work.
	much := func(tenant string) {
		t.Helper()
		bounded.Exec(t, pool, `
			insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, at)
			select $1, gen_random_uuid(), 1, 'counter', 1, 'created', 'COUNTING', 'active', '{}', 'tester', pawl.now()
			from generate_series(1, 100001)`, tenant)
	}
	open := func(id string) *live.Stream {
		t.Helper()
		stream, err := live.New(s.Service, nil).StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stream.Close)
		return stream
	}
	next := func(stream *live.Stream, want int) string {
		t.Helper()
		events, _, err := stream.Next(t.Context())
		if err != nil || len(events) != want {
			t.Fatalf("there are %d events, %v, want %d", len(events), err, want)
		}
		return events[len(events)-1].ID
	}
	idle, slow := open(""), open("")
	bounded.Exec(t, pool, `select pawl.create_one('counter', '{"x": 0}') from generate_series(1, 1100)`)
	start := open(live.FromStart)
	next(slow, 1000)
	id := next(start, 1000)
	start.Close()
	much("other")
	_, _, err := idle.Next(t.Context())
	fsmtest.Refused(t, err, fsm.EventIDTooOld)
	// What it has begun to read is not too much.
	next(slow, 100)
	_, _, err = slow.Next(t.Context())
	fsmtest.Refused(t, err, fsm.EventIDTooOld)

	bounded.Exec(t, pool, `select pawl.fire_one(id, 'add', '{"n": 1}') from pawl.instance`)
	much(fsm.DefaultTenant)
	rest, id, _ := readAll(t, s, id)
	versions := map[uuid.UUID]int64{}
	for _, e := range rest {
		if before := versions[e.InstanceID]; before != 0 && e.Version != before+1 || e.Version > 2 {
			t.Fatalf("version %d of %s comes after %d", e.Version, e.InstanceID, before)
		}
		versions[e.InstanceID] = e.Version
	}
	if want := 100 + 1100 + 100001; len(rest) != want {
		t.Errorf("%d events, want %d", len(rest), want)
	}
	fsmtest.Create(t, s, "counter", `{"x": 0}`)
	rest, _, _ = readAll(t, s, id)
	wantSteps(t, rest, 1)
}

// A stream cannot go on from where the database has not been, or from too far behind.
func TestWhereStreamsCannotResume(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	for range 3 {
		fsmtest.Create(t, s, "counter", `{"x": 0}`)
	}
	here := bounded.Value[string](t, pool, "select pg_current_snapshot()::text")
	var xmin, xmax int64
	if _, err := fmt.Sscanf(here, "%d:%d:", &xmin, &xmax); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cursor string
		limit  int
		want   bool
	}{
		{here, 0, true},
		{"1:1:", 3, true},
		{"1:1:", 2, false},
		{fmt.Sprintf("%d:%d:", xmax+1000, xmax+1000), 3, false},
	} {
		if got := bounded.Value[bool](t, pool, "select pawl.stream_can_resume('default', null, $1::text::pg_snapshot, $2)", c.cursor, c.limit); got != c.want {
			t.Errorf("from %s with at most %d: %v, want %v", c.cursor, c.limit, got, c.want)
		}
	}
}

// What is final may be removed before its last steps are read.
func TestStreamOfWhatIsRemoved(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Stopped(t, s, fsm.DefaultTenant, 1)[0]
	stream, err := live.New(s.Service, nil).StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, live.FromStart)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	bounded.Exec(t, pool, "delete from pawl.history where instance_id = $1", id)
	_, _, err = stream.Next(t.Context())
	fsmtest.Refused(t, err, fsm.EventIDTooOld)
	again, err := live.New(s.Service, nil).StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, live.FromStart)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Ended() {
		t.Error("a stream that has lost steps has ended")
	}
}
