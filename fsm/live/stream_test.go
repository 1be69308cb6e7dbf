package live_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// streams opens streams of a service's default tenant, without a hub.
type streams struct {
	*live.Service
	t *testing.T
}

func streamsOf(t *testing.T, s *fsmtest.Service) streams {
	return streams{live.New(s.Service, nil), t}
}

func (s streams) tenant(id string, filter live.Filter) *live.Stream {
	s.t.Helper()
	stream, err := s.StreamTenant(bounded.Context(s.t), fsm.DefaultTenant, filter, id)
	if err != nil {
		s.t.Fatalf("%q: %v", id, err)
	}
	s.t.Cleanup(stream.Close)
	return stream
}

func (s streams) instance(instance uuid.UUID, id string) *live.Stream {
	s.t.Helper()
	stream, err := s.StreamInstance(bounded.Context(s.t), fsm.DefaultTenant, instance, live.Filter{}, id)
	if err != nil {
		s.t.Fatalf("%q: %v", id, err)
	}
	s.t.Cleanup(stream.Close)
	return stream
}

// wantIDs reads what a stream has, and compares the ids of the messages.
func wantIDs(t *testing.T, stream *live.Stream, want ...string) {
	t.Helper()
	var got []string
	// bounded: until nothing is left to read
	for more := true; more; {
		messages, again, err := stream.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			got = append(got, m.ID)
		}
		more = again
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the stream has the ids %v, want %v", got, want)
	}
}

// wantLost wants an error that says behind which id steps are lost.
func wantLost(t *testing.T, err error, lastCommon string) {
	t.Helper()
	if e := fsmtest.Refusal(t, err, fsm.StepsLost); e != nil && e.LastCommon != lastCommon {
		t.Errorf("the last common id is %q, want %q", e.LastCommon, lastCommon)
	}
}

// readAll reads pages until there are no more, opening the stream anew behind each.
func readAll(t *testing.T, s *fsmtest.Service, id string) (messages []live.Message, last string, pages int) {
	t.Helper()
	// bounded: each page begins where the last one ended
	for {
		stream := streamsOf(t, s).tenant(id, live.Filter{})
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

// wantSteps fails unless messages are n steps, each instance's once and in order.
func wantSteps(t *testing.T, messages []live.Message, n int) {
	t.Helper()
	versions := map[uuid.UUID]int64{}
	for _, m := range messages {
		if before, known := versions[m.InstanceID]; known && m.Version != before+1 {
			t.Fatalf("version %d of %s comes after %d", m.Version, m.InstanceID, before)
		}
		versions[m.InstanceID] = m.Version
	}
	if len(messages) != n {
		t.Errorf("%d messages, want %d", len(messages), n)
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
	dbtest.Number(t, pool)
	messages, id, pages := readAll(t, s, live.FromStart)
	wantSteps(t, messages, 2600)
	if pages != 3 {
		t.Errorf("the past has %d pages, want 3", pages)
	}
	bounded.Exec(t, pool, more, 40, 60000)
	dbtest.Number(t, pool)
	messages, id, pages = readAll(t, s, id)
	wantSteps(t, messages, 40)
	if pages != 8 { // With five in each.
		t.Errorf("40 contexts of 60 kB have %d pages, want 8", pages)
	}
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'add', '{\"n\": 1}') from (select id from pawl.instance where version = 1 limit 2001) i")
	dbtest.Number(t, pool)
	messages, id, _ = readAll(t, s, id)
	wantSteps(t, messages, 2001)
	if messages, _, _ = readAll(t, s, id); len(messages) > 0 {
		t.Errorf("%d messages come again", len(messages))
	}
}

// A page looks at so many rows of the log, whosever they are. A stream passes over those of other tenants, and can be
// resumed behind them.
func TestStreamsPassOtherTenants(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	bounded.Exec(t, pool, `
		insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, at)
		select 'other', gen_random_uuid(), 1, 'counter', 1, 'created', 'COUNTING', 'active', '{}', 'tester', pawl.now()
		from generate_series(1, 5001)`)
	fsmtest.Create(t, s, "counter", `{"x": 0}`)
	dbtest.Number(t, pool)
	stream := streamsOf(t, s).tenant(live.FromStart, live.Filter{})
	messages, more, err := stream.Next(t.Context())
	if err != nil || len(messages) > 0 || !more || stream.ID() != "1.5000" {
		t.Fatalf("the first page has %d messages and leads to %s; more: %v; %v", len(messages), stream.ID(), more, err)
	}
	wantIDs(t, streamsOf(t, s).tenant(stream.ID(), live.Filter{}), "1.5002")
	wantIDs(t, stream, "1.5002")
}

// beginning opens a stream that begins now, in a goroutine, and returns when it has looked for its place.
func beginning(t *testing.T, pool *pgxpool.Pool, name string, open func(*live.Service) (*live.Stream, error)) (opened <-chan *live.Stream) {
	t.Helper()
	looked := make(chan struct{})
	once := sync.OnceFunc(func() { close(looked) })
	spied := fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) {
			if strings.Contains(sql, name) {
				once()
			}
		}}
	})
	service := live.New(fsm.New(spied, fsm.Config{}), nil)
	got := make(chan *live.Stream, 1)
	go func() {
		stream, err := open(service)
		if err != nil {
			t.Error(err)
		}
		got <- stream
	}()
	bounded.Receive(t, "the stream to look for its place", looked)
	return got
}

// A stream that begins now shows no step that was committed before, although it had no position yet.
func TestStreamsBeginBehindWhatIsCommitted(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	dbtest.Number(t, pool)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	ctx := bounded.Context(t)
	of := beginning(t, pool, "pawl.log_settled", func(s *live.Service) (*live.Stream, error) {
		return s.StreamTenant(ctx, fsm.DefaultTenant, live.Filter{}, "")
	})
	dbtest.Number(t, pool)
	stream := bounded.Receive(t, "the stream to begin", of)
	defer stream.Close()
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	dbtest.Number(t, pool)
	wantIDs(t, stream, "1.2")

	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	of = beginning(t, pool, "pawl.stream_place", func(s *live.Service) (*live.Stream, error) {
		return s.StreamInstance(ctx, fsm.DefaultTenant, id, live.Filter{}, "")
	})
	dbtest.Number(t, pool)
	stream = bounded.Receive(t, "the instance's stream to begin", of)
	defer stream.Close()
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	dbtest.Number(t, pool)
	wantIDs(t, stream, id.String()+":4")
}

// Without a sequencer, a stream begins all the same, and shows what gets a position later.
func TestStreamsBeginWithoutSequencer(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	now, start, one := streamsOf(t, s).tenant("", live.Filter{}), streamsOf(t, s).tenant(live.FromStart, live.Filter{}), streamsOf(t, s).instance(id, live.FromStart)
	_, _, err := now.Next(t.Context())
	fsmtest.Refused(t, err, fsm.Unavailable)
	_, _, err = start.Next(t.Context())
	fsmtest.Refused(t, err, fsm.Unavailable)
	wantIDs(t, one)
	dbtest.Number(t, pool)
	wantIDs(t, now, "1.1")
	wantIDs(t, start, "1.1")
	wantIDs(t, one, id.String()+":1")
}

// Streams show a step when it has a position: before, it may be lost without a trace.
func TestStreamsWaitForPositions(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	dbtest.Number(t, pool)
	one, all := streamsOf(t, s).instance(id, live.FromStart), streamsOf(t, s).tenant(live.FromStart, live.Filter{})
	fsmtest.Fire(t, s, id, "stop", `{}`)
	wantIDs(t, one, id.String()+":1")
	wantIDs(t, all, "1.1")
	if one.Ended() {
		t.Error("the stream has ended before its last step")
	}
	last := streamsOf(t, s).instance(id, "1")
	if last.Ended() {
		t.Error("a stream has ended before a step that it has not shown")
	}
	dbtest.Number(t, pool)
	wantIDs(t, one, id.String()+":2")
	wantIDs(t, last, id.String()+":2")
	wantIDs(t, all, "1.2")
	if !one.Ended() || !last.Ended() {
		t.Error("the stream goes on behind the last step")
	}
}

// An id is a place in the log, whatever was streamed when it was given.
func TestEventIDsServeWithAnyFilter(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	fsmtest.Stopped(t, s, fsm.DefaultTenant, 2)
	dbtest.Number(t, pool)
	for _, c := range []struct {
		filter live.Filter
		want   []string
	}{
		{live.Filter{}, []string{"1.2", "1.3", "1.4"}},
		{live.Filter{TerminalOnly: true}, []string{"1.3", "1.4"}},
		{live.Filter{Workflows: []string{"counter"}, Events: []string{"stop"}}, []string{"1.3", "1.4"}},
		{live.Filter{States: []string{"COUNTING"}}, []string{"1.2"}},
		{live.Filter{Workflows: []string{"another"}}, nil},
	} {
		stream := streamsOf(t, s).tenant("1.1", c.filter)
		wantIDs(t, stream, c.want...)
		if stream.ID() != "1.4" {
			t.Errorf("%+v: the place is %s", c.filter, stream.ID())
		}
	}
}

// What an id must be to be resumed behind.
func TestEventIDsThatAreRefused(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	dbtest.Number(t, pool)
	service := streamsOf(t, s)
	for last, kind := range map[string]fsm.Kind{
		// The log has not been there.
		"1.2": fsm.UnknownEventID, "2.1": fsm.UnknownEventID, "0.1": fsm.UnknownEventID, "9.0": fsm.UnknownEventID,
		// What the log gave before it had positions.
		"AZJ0cXlqdGhpc2lzYW5vbGRpZG9mYW5vbGRzdHJlYW0_-4": fsm.EventIDTooOld,
		// No log gives them.
		"x": fsm.Malformed, "1": fsm.Malformed, "1.": fsm.Malformed, ".1": fsm.Malformed, "1.x": fsm.Malformed, "01.1": fsm.Malformed,
		"1.1.1": fsm.Malformed, "1.+1": fsm.Malformed, "1.99999999999999999999": fsm.Malformed, id.String() + ":1": fsm.Malformed,
	} {
		_, err := service.StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, last)
		if !errors.Is(err, kind) {
			t.Errorf("%s: got %v, want %v", last, err, kind)
		}
	}
	for last, kind := range map[string]fsm.Kind{
		":2": fsm.UnknownEventID, ":1@2": fsm.UnknownEventID, ":2@2": fsm.UnknownEventID,
		":1@1": fsm.Malformed, ":1@": fsm.Malformed, ":1@x": fsm.Malformed, ":01": fsm.Malformed, ":-1": fsm.Malformed,
	} {
		_, err := service.StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, id.String()+last)
		if !errors.Is(err, kind) {
			t.Errorf("%s: got %v, want %v", last, err, kind)
		}
	}
}

// When the log has lost its end, streams go on from places that are still there. From others they say where that is.
func TestStreamsOfTenantsGoOnInALaterEpoch(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	service := streamsOf(t, s)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	add := func() {
		t.Helper()
		fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
		dbtest.Number(t, pool)
	}
	add()
	lose := dbtest.Fork(t, pool)
	common, ahead := service.tenant("1.2", live.Filter{}), service.tenant("1.2", live.Filter{})
	add()
	add()
	wantIDs(t, ahead, "1.3", "1.4")
	lose()
	_, _, err := ahead.Next(t.Context())
	wantLost(t, err, "1.2")
	for _, last := range []string{"1.3", "1.4", "1.9"} {
		_, err := service.StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, last)
		wantLost(t, err, "1.2")
	}
	add()
	for _, last := range []string{"1.2", "2.2"} {
		wantIDs(t, service.tenant(last, live.Filter{}), "2.3")
	}
	wantIDs(t, common, "2.3")
	wantIDs(t, service.tenant("1.1", live.Filter{}), "2.2", "2.3")
	wantIDs(t, service.tenant(live.FromStart, live.Filter{}), "2.1", "2.2", "2.3")
	// The place was in the log, of the other epoch.
	_, err = service.StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, "1.3")
	wantLost(t, err, "1.2")
	_, err = service.StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, "2.4")
	fsmtest.Refused(t, err, fsm.UnknownEventID)

	// A third epoch has more of the first than the second had, but that is another's.
	lose = dbtest.Fork(t, pool)
	add()
	lose()
	_, err = service.StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, "1.3")
	wantLost(t, err, "1.2")
	_, err = service.StreamTenant(t.Context(), fsm.DefaultTenant, live.Filter{}, "2.4")
	wantLost(t, err, "2.3")
	add()
	wantIDs(t, service.tenant("2.3", live.Filter{}), "3.4")
}

// A step that has taken the place of a lost one has another id, so an instance's stream tells the two apart.
func TestStreamsOfInstancesGoOnInALaterEpoch(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	service := streamsOf(t, s)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	fire := func(event string) {
		t.Helper()
		fsmtest.Fire(t, s, id, event, `{"n": 1}`)
		dbtest.Number(t, pool)
	}
	step := func(name string) string { return id.String() + ":" + name }
	fire("add")
	lose := dbtest.Fork(t, pool)
	common, ahead := service.instance(id, step("2")), service.instance(id, step("2"))
	fire("add")
	fire("add")
	wantIDs(t, ahead, step("3"), step("4"))
	lose()
	_, _, err := ahead.Next(t.Context())
	wantLost(t, err, step("2"))
	fire("add")
	wantIDs(t, common, step("3@2"))
	for last, want := range map[string][]string{
		step("1"): {step("2"), step("3@2")}, step("2"): {step("3@2")}, "2": {step("3@2")}, step("3@2"): nil, "3": nil,
	} {
		wantIDs(t, service.instance(id, last), want...)
	}
	if last := service.instance(id, "3").ID(); last != step("3@2") {
		t.Errorf("version 3 is %s", last)
	}
	for _, last := range []string{"3", "4", "9"} {
		_, err := service.StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, step(last))
		wantLost(t, err, step("2"))
	}
	for _, last := range []string{"2@2", "4@2", "3@3"} {
		_, err := service.StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, step(last))
		fsmtest.Refused(t, err, fsm.UnknownEventID)
	}

	// The client has seen how the instance ended, but it has not ended now, or ends otherwise.
	lose = dbtest.Fork(t, pool)
	fire("stop")
	stopped := service.instance(id, step("3@2"))
	wantIDs(t, stopped, step("4@2"))
	lose()
	_, err = service.StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, step("4@2"))
	wantLost(t, err, step("3@2"))
	fire("stop")
	_, err = service.StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, step("4@2"))
	wantLost(t, err, step("3@2"))
	again := service.instance(id, step("3@2"))
	wantIDs(t, again, step("4@3"))
	if !again.Ended() || !service.instance(id, step("4@3")).Ended() {
		t.Error("the stream of a final instance goes on")
	}
}

// What is final may be purged before its last steps are read.
func TestStreamOfWhatIsPurged(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	for n, id := range fsmtest.Stopped(t, s, fsm.DefaultTenant, 2) {
		dbtest.Number(t, pool)
		stream := streamsOf(t, s).instance(id, fmt.Sprint(n))
		bounded.Exec(t, pool, "delete from pawl.history where instance_id = $1", id)
		bounded.Exec(t, pool, "delete from pawl.instance where id = $1", id)
		_, _, err := stream.Next(t.Context())
		fsmtest.Refused(t, err, fsm.EventIDTooOld)
		if stream.Ended() {
			t.Error("a stream that has lost steps has ended")
		}
		_, err = live.New(s.Service, nil).StreamInstance(t.Context(), fsm.DefaultTenant, id, live.Filter{}, live.FromStart)
		fsmtest.Refused(t, err, fsm.InstanceNotFound)
	}
}
