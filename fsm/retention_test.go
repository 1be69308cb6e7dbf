package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
)

// passing is counter with a retention of an hour.
var passing = strings.Replace(counter, `"states"`, `"retention": "1h", "states"`, 1)

// passes tells of each pass that a remover on the pool that it returns has ended.
func passes(t *testing.T, pool *pgxpool.Pool) (watched *pgxpool.Pool, pass func()) {
	t.Helper()
	begun := make(chan struct{}, 1000)
	watched = spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = spy{started: func(sql string, args []any) {
			if strings.Contains(sql, "final_instances") && args[4] == "" {
				select {
				case begun <- struct{}{}:
				default:
				}
			}
		}}
	})
	return watched, func() {
		for len(begun) > 0 {
			<-begun
		}
		for range 3 { // The first may have begun before; the third says that the second has ended.
			<-begun
		}
	}
}

// stopped makes n instances of counter that are final, without keys that outlive a minute.
func stopped(t testing.TB, s *fsm.Service, tenant string, n int) []uuid.UUID {
	t.Helper()
	creates, fires := make([]fsm.Command, n), make([]fsm.Command, n)
	for i := range creates {
		creates[i] = fsm.CreateCommand{Tenant: tenant, Workflow: "counter", Context: []byte(`{"x":0}`)}
	}
	ids := make([]uuid.UUID, n)
	for i, r := range s.Do(t.Context(), creates) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ids[i] = r.Instance.ID
		fires[i] = fsm.FireCommand{Tenant: tenant, ID: ids[i], Event: "stop"}
	}
	for _, r := range s.Do(t.Context(), fires) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return ids
}

// shortKeys has keys live a minute, and stops the clock.
func shortKeys(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, "update pawl.setting set idempotency_ttl = '1 minute'")
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
}

func TestRemover(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, passing, strings.Replace(counter, `"counter"`, `"kept"`, 1))
	shortKeys(t, pool)
	var old []uuid.UUID
	for _, tenant := range []string{"a", "default", "z"} {
		old = append(old, stopped(t, s, tenant, 45)...)
	}
	active := create(t, s, "counter", `{"x":0}`).ID
	kept := create(t, s, "kept", `{"x":0}`).ID
	fire(t, s, kept, "stop", `{}`)
	late := create(t, s, "counter", `{"x":0}`).ID
	dbtest.Advance(t, pool, time.Hour-time.Microsecond)
	fire(t, s, late, "stop", `{}`)
	young := stopped(t, s, "default", 1)[0]

	watched, pass := passes(t, pool)
	stop := running(t, fsm.NewRemover(watched, fsm.RemoverConfig{Batch: 10, Pause: time.Microsecond, Interval: time.Microsecond}).Run)
	pass()
	if n := scan[int](t, pool, "select count(*) from pawl.instance"); n != len(old)+4 {
		t.Errorf("%d instances are left a microsecond before their time, want %d", n, len(old)+4)
	}
	dbtest.Advance(t, pool, time.Microsecond)
	until(t, pool, "select count(*) = 4 from pawl.instance")
	pass()
	for _, id := range []uuid.UUID{active, kept, late, young} {
		if i := get(t, s, id); len(history(t, s, id)) != int(i.Version) {
			t.Errorf("%v is at version %d and has %d steps", id, i.Version, len(history(t, s, id)))
		}
	}
	for _, table := range []string{"history", "idempotency_key", "timer"} {
		if n := scan[int](t, pool, "select count(*) from pawl."+table+" where instance_id = any ($1)", old); n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
	_, err := s.Get(t.Context(), "a", old[0])
	refused(t, err, fsm.InstanceNotFound)

	// The latest version has no policy any more: nothing goes, of whichever version.
	register(t, s, counter)
	dbtest.Advance(t, pool, 24*time.Hour)
	pass()
	if n := scan[int](t, pool, "select count(*) from pawl.instance"); n != 4 {
		t.Errorf("%d instances are left, want 4", n)
	}
	// It has one again, and it holds for the older version's.
	register(t, s, strings.Replace(passing, "1h", "2h", 1))
	until(t, pool, "select count(*) = 2 from pawl.instance")
	get(t, s, active)
	get(t, s, kept)
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// What a key replays stays as long as the key, which is then a new one's.
func TestRemoverWaitsForKeys(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, passing)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	creates := fsm.CreateCommand{Workflow: "counter", Context: []byte(`{"x":1}`), Key: "create", BusinessKey: "b"}
	first, err := s.Create(t.Context(), creates)
	if err != nil {
		t.Fatal(err)
	}
	dbtest.Advance(t, pool, time.Hour)
	stops := fsm.FireCommand{ID: first.Instance.ID, Event: "stop", Key: "stop"}
	second, err := s.Fire(t.Context(), stops)
	if err != nil {
		t.Fatal(err)
	}
	dbtest.Advance(t, pool, 24*time.Hour-time.Microsecond)

	watched, pass := passes(t, pool)
	running(t, fsm.NewRemover(watched, fsm.RemoverConfig{Interval: time.Microsecond}).Run)
	running(t, fsm.NewPurger(pool, fsm.PurgerConfig{Interval: time.Microsecond}).Run)
	pass()
	for range 2 {
		again, err := s.Fire(t.Context(), stops)
		if err != nil || !again.Replayed {
			t.Errorf("it is no replay: %v", err)
		}
		if diff := cmp.Diff(second.Instance, again.Instance); diff != "" {
			t.Errorf("the replay differs (-first +again):\n%s", diff)
		}
	}
	dbtest.Advance(t, pool, time.Microsecond)
	until(t, pool, "select not exists (select from pawl.instance) and not exists (select from pawl.history)")
	_, err = s.Fire(t.Context(), stops)
	refused(t, err, fsm.InstanceNotFound)
	if again, err := s.Create(t.Context(), creates); err != nil || again.Replayed || again.Instance.ID == first.Instance.ID {
		t.Errorf("the key makes %+v, %v", again, err)
	}
}

// Several removers, commands and replays at once.
func TestRemoversUnderLoad(t *testing.T) {
	t.Parallel()
	brief := strings.Replace(passing, "1h", "1ms", 1)
	s, pool := newService(t, fsm.Config{}, brief)
	exec(t, pool, "update pawl.setting set idempotency_ttl = '5 milliseconds'")
	for range 2 {
		running(t, fsm.NewRemover(pool, fsm.RemoverConfig{Batch: 7, Pause: time.Microsecond, Interval: time.Microsecond}).Run)
	}
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for range 30 {
				i, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", Context: []byte(`{"x":0}`), BusinessKey: fmt.Sprint(n)})
				if errors.Is(err, fsm.InstanceExists) {
					continue // The last one's keys live still.
				}
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				c := fsm.FireCommand{ID: i.Instance.ID, Event: "stop", Key: fmt.Sprint("stop-", i.Instance.ID)}
				for range 10 {
					r, err := s.Fire(t.Context(), c)
					switch {
					case errors.Is(err, fsm.InstanceNotFound), errors.Is(err, fsm.TransitionNotAllowed):
					case err != nil:
						t.Errorf("fire: %v", err)
						return
					case r.Instance.State != "STOPPED" || r.Instance.Version != 2:
						t.Errorf("got %+v", r)
					}
				}
			}
		})
	}
	all.Wait()
	until(t, pool, `select not exists (select from pawl.instance) and not exists (select from pawl.history)
		and not exists (select from pawl.idempotency_key where outcome <> 'applied')`)
}

// An instance that cannot be removed holds up no other.
func TestRemoverPassesWhatFails(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, passing)
	shortKeys(t, pool)
	ids := stopped(t, s, "default", 3)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	exec(t, pool, `
		create function fail() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$;
		create trigger fail before delete on pawl.instance for each row when (old.id = '`+ids[1].String()+`') execute function fail()`)
	dbtest.Advance(t, pool, time.Hour)
	lines := make(chan string, 100)
	running(t, fsm.NewRemover(pool, fsm.RemoverConfig{
		Batch: 1, Pause: time.Microsecond, Logger: slog.New(slog.NewTextHandler(logLines(lines), nil)),
	}).Run)
	if line := <-lines; !strings.Contains(line, "removing old instances fails") || !strings.Contains(line, "not this one") {
		t.Errorf("it says %s", line)
	}
	until(t, pool, "select count(*) = 1 from pawl.instance")
	if n := len(history(t, s, ids[1])); n != 2 {
		t.Errorf("%d steps are left of what could not be removed", n)
	}
}

// archived collects what an archive is given.
type archived struct {
	ids     []uuid.UUID
	flushed int // How many at the last flush.
	fail    func() error
}

func (a *archived) write(i fsm.Archived) error {
	if a.fail != nil {
		if err := a.fail(); err != nil {
			return err
		}
	}
	a.ids = append(a.ids, i.ID)
	return nil
}

func (a *archived) flush() error {
	a.flushed = len(a.ids)
	return nil
}

func TestArchive(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter, strings.Replace(counter, `"counter"`, `"other"`, 1))
	shortKeys(t, pool)
	ids := stopped(t, s, "default", 25)
	foreign := stopped(t, s, "foreign", 3)
	other := create(t, s, "other", `{"x":0}`).ID
	for range 450 { // More steps than a page of history has.
		fire(t, s, other, "add", `{"n":1}`)
	}
	fire(t, s, other, "stop", `{}`)
	create(t, s, "counter", `{"x":0}`)
	dbtest.Advance(t, pool, time.Hour)
	stopped(t, s, "default", 2)
	before := counts(t, pool)

	reader := serviceOn(t, readOnlyPool(t, pool), fsm.Config{})
	archive := func(c fsm.ArchiveCommand) (list []fsm.Archived) {
		t.Helper()
		c.OlderThan, c.Batch = time.Hour, 10
		c.Write = func(a fsm.Archived) error {
			list = append(list, a)
			return nil
		}
		result, err := reader.Archive(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if result.Written != len(list) || result.Removed != 0 {
			t.Errorf("%+v, and got %d", result, len(list))
		}
		return list
	}
	list := archive(fsm.ArchiveCommand{})
	if len(list) != 29 {
		t.Fatalf("%d instances, want 29", len(list))
	}
	for _, a := range list {
		i, err := s.Get(t.Context(), a.Tenant, a.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(i, a.Instance); diff != "" {
			t.Errorf("the instance differs (-read +archived):\n%s", diff)
		}
		if a.Tenant == fsm.DefaultTenant {
			if diff := cmp.Diff(history(t, s, a.ID), a.History); diff != "" {
				t.Errorf("the history differs (-read +archived):\n%s", diff)
			}
		} else if len(a.History) != 2 || !slices.Contains(foreign, a.ID) {
			t.Errorf("%+v", a)
		}
	}
	for want, c := range map[int]fsm.ArchiveCommand{
		25 + 1: {Tenant: "default"}, 3: {Tenant: "foreign"}, 25 + 3: {Workflows: []string{"counter"}}, 1: {Workflows: []string{"other"}},
		29: {Workflows: []string{"counter", "other"}}, 13: {Limit: 13}, 0: {Workflows: []string{"nothing"}},
	} {
		if list := archive(c); len(list) != want {
			t.Errorf("%d instances with %+v, want %d", len(list), c, want)
		}
	}
	if after := counts(t, pool); after != before {
		t.Errorf("it changed %s to %s", before, after)
	}

	// With a key that lives, and one that somebody holds.
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: ids[3], Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "lives"})
	refused(t, err, fsm.TransitionNotAllowed)
	release := hold(t, pool, ids[4])
	var a archived
	remove := func(wantWritten, wantRemoved int) {
		t.Helper()
		a = archived{}
		removed := 0
		result, err := s.Archive(t.Context(), fsm.ArchiveCommand{
			OlderThan: time.Hour, Batch: 10, Remove: true, Write: a.write, Flush: func() error {
				// Nothing goes before it is flushed.
				if left := scan[int](t, pool, "select count(*) from pawl.instance where id = any ($1)", a.ids[a.flushed:]); left != len(a.ids)-a.flushed {
					t.Errorf("%d are left of %d", left, len(a.ids)-a.flushed)
				}
				removed++
				return a.flush()
			},
		})
		if err != nil || result.Written != wantWritten || result.Removed != wantRemoved || len(a.ids) != wantWritten || a.flushed != wantWritten {
			t.Errorf("%+v, %v: want %d written, %d removed", result, err, wantWritten, wantRemoved)
		}
	}
	remove(29, 27)
	release()
	remove(2, 1)
	if !slices.Contains(a.ids, ids[3]) || !slices.Contains(a.ids, ids[4]) {
		t.Errorf("%v were left", a.ids)
	}
	dbtest.Advance(t, pool, time.Minute)
	remove(1, 1)
	if n := scan[int](t, pool, "select count(*) from pawl.instance"); n != 3 {
		t.Errorf("%d instances are left, want 3", n)
	}
	for _, c := range []fsm.ArchiveCommand{{}, {OlderThan: 1, Limit: -1}, {OlderThan: 1, Tenant: "\x00"}, {OlderThan: 1, Workflows: []string{"\xff"}}} {
		_, err := s.Archive(t.Context(), c)
		refused(t, err, fsm.Malformed)
	}
}

// What could not be written, or made sure of, stays.
func TestArchiveThatFails(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter)
	shortKeys(t, pool)
	ids := stopped(t, s, "default", 25)
	dbtest.Advance(t, pool, time.Hour)
	full := errors.New("no space left")
	left := func() int { return scan[int](t, pool, "select count(*) from pawl.instance") }

	var a archived
	a.fail = func() error {
		if len(a.ids) == 14 {
			return full
		}
		return nil
	}
	c := fsm.ArchiveCommand{OlderThan: time.Hour, Batch: 10, Remove: true, Write: a.write, Flush: a.flush}
	result, err := s.Archive(t.Context(), c)
	if !errors.Is(err, full) || result.Removed != 10 || left() != 15 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	c.Write, c.Flush = func(fsm.Archived) error { return nil }, func() error { return full }
	result, err = s.Archive(t.Context(), c)
	if !errors.Is(err, full) || result.Removed != 0 || left() != 15 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.Flush = func() error {
		cancel()
		return nil
	}
	result, err = s.Archive(ctx, c)
	if err == nil || result.Removed != 0 || left() != 15 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	again := archived{}
	c.Write, c.Flush = again.write, again.flush
	if result, err := s.Archive(t.Context(), c); err != nil || result.Removed != 15 || left() != 0 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	// What was removed is all in one of the two.
	for _, id := range ids {
		if !slices.Contains(a.ids[:10], id) && !slices.Contains(again.ids, id) {
			t.Errorf("%v is lost", id)
		}
	}
}

// What somebody else removes meanwhile is not written, whole or in part.
func TestArchiveMeetsARemover(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter)
	shortKeys(t, pool)
	ids := stopped(t, s, "default", 20)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	dbtest.Advance(t, pool, time.Hour)
	var a archived
	result, err := s.Archive(t.Context(), fsm.ArchiveCommand{OlderThan: time.Hour, Remove: true, Flush: a.flush, Write: func(i fsm.Archived) error {
		if len(a.ids) == 0 {
			exec(t, pool, "select pawl.remove_instances('default', $1, pawl.now())", ids[10:15])
		}
		return a.write(i)
	}})
	if err != nil || result != (fsm.Archive{Written: 15, Removed: 15}) {
		t.Errorf("%+v, %v", result, err)
	}
	if want := slices.Concat(ids[:10], ids[15:]); !slices.Equal(a.ids, want) {
		t.Errorf("written are %v, want %v", a.ids, want)
	}
}
