package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// archived collects what an archive is given.
type archived struct {
	ids     []uuid.UUID
	flushed int // How many at the last flush.
	fail    func() error
}

func (a *archived) write(i lifecycle.Archived) error {
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
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, strings.Replace(fsmtest.Counter, `"counter"`, `"other"`, 1))
	fsmtest.ShortKeys(t, pool)
	ids := fsmtest.Stopped(t, s, "default", 25)
	foreign := fsmtest.Stopped(t, s, "foreign", 3)
	other := fsmtest.Create(t, s, "other", `{"x":0}`).ID
	for range 450 { // More steps than a page of history has.
		fsmtest.Fire(t, s, other, "add", `{"n":1}`)
	}
	fsmtest.Fire(t, s, other, "stop", `{}`)
	fsmtest.Create(t, s, "counter", `{"x":0}`)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.Stopped(t, s, "default", 2)
	before := fsmtest.Counts(t, pool)

	reader := fsmtest.On(t, fsmtest.ReadOnly(t, pool), fsm.Config{})
	archive := func(c lifecycle.ArchiveCommand) (list []lifecycle.Archived) {
		t.Helper()
		c.OlderThan, c.Batch = time.Hour, 10
		c.Write = func(a lifecycle.Archived) error {
			list = append(list, a)
			return nil
		}
		result, err := reader.Archive(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if result.Written != len(list) || result.Purged != 0 {
			t.Errorf("%+v, and got %d", result, len(list))
		}
		return list
	}
	list := archive(lifecycle.ArchiveCommand{})
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
			if diff := cmp.Diff(fsmtest.History(t, s, a.ID), a.History); diff != "" {
				t.Errorf("the history differs (-read +archived):\n%s", diff)
			}
		} else if len(a.History) != 2 || !slices.Contains(foreign, a.ID) {
			t.Errorf("%+v", a)
		}
	}
	for want, c := range map[int]lifecycle.ArchiveCommand{
		25 + 1: {Tenant: "default"}, 3: {Tenant: "foreign"}, 25 + 3: {Workflows: []string{"counter"}}, 1: {Workflows: []string{"other"}},
		29: {Workflows: []string{"counter", "other"}}, 13: {Limit: 13}, 0: {Workflows: []string{"nothing"}},
	} {
		if list := archive(c); len(list) != want {
			t.Errorf("%d instances with %+v, want %d", len(list), c, want)
		}
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("it changed %s to %s", before, after)
	}

	// With a key that lives, and one that somebody holds.
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: ids[3], Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "lives"})
	fsmtest.Refused(t, err, fsm.TransitionNotAllowed)
	release := fsmtest.Hold(t, pool, ids[4])
	var a archived
	purge := func(wantWritten, wantPurged int) {
		t.Helper()
		a = archived{}
		purged := 0
		result, err := s.Archive(t.Context(), lifecycle.ArchiveCommand{
			OlderThan: time.Hour, Batch: 10, Purge: true, Write: a.write, Flush: func() error {
				// Nothing goes before it is flushed.
				if left := bounded.Value[int](t, pool, "select count(*) from pawl.instance where id = any ($1)", a.ids[a.flushed:]); left != len(a.ids)-a.flushed {
					t.Errorf("%d are left of %d", left, len(a.ids)-a.flushed)
				}
				purged++
				return a.flush()
			},
		})
		if err != nil || result.Written != wantWritten || result.Purged != wantPurged || len(a.ids) != wantWritten || a.flushed != wantWritten {
			t.Errorf("%+v, %v: want %d written, %d purged", result, err, wantWritten, wantPurged)
		}
	}
	purge(29, 27)
	release()
	purge(2, 1)
	if !slices.Contains(a.ids, ids[3]) || !slices.Contains(a.ids, ids[4]) {
		t.Errorf("%v were left", a.ids)
	}
	dbtest.Advance(t, pool, time.Minute)
	purge(1, 1)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance"); n != 3 {
		t.Errorf("%d instances are left, want 3", n)
	}
	for _, c := range []lifecycle.ArchiveCommand{{}, {OlderThan: 1, Limit: -1}, {OlderThan: 1, Tenant: "\x00"}, {OlderThan: 1, Workflows: []string{"\xff"}}} {
		_, err := s.Archive(t.Context(), c)
		fsmtest.Refused(t, err, fsm.Malformed)
	}
}

// What could not be written, or made sure of, stays.
func TestArchiveThatFails(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	fsmtest.ShortKeys(t, pool)
	ids := fsmtest.Stopped(t, s, "default", 25)
	dbtest.Advance(t, pool, time.Hour)
	full := errors.New("no space left")
	left := func() int { return bounded.Value[int](t, pool, "select count(*) from pawl.instance") }

	var a archived
	a.fail = func() error {
		if len(a.ids) == 14 {
			return full
		}
		return nil
	}
	c := lifecycle.ArchiveCommand{OlderThan: time.Hour, Batch: 10, Purge: true, Write: a.write, Flush: a.flush}
	result, err := s.Archive(t.Context(), c)
	if !errors.Is(err, full) || result.Purged != 10 || left() != 15 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	c.Write, c.Flush = func(lifecycle.Archived) error { return nil }, func() error { return full }
	result, err = s.Archive(t.Context(), c)
	if !errors.Is(err, full) || result.Purged != 0 || left() != 15 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.Flush = func() error {
		cancel()
		return nil
	}
	result, err = s.Archive(ctx, c)
	if err == nil || result.Purged != 0 || left() != 15 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	again := archived{}
	c.Write, c.Flush = again.write, again.flush
	if result, err := s.Archive(t.Context(), c); err != nil || result.Purged != 15 || left() != 0 {
		t.Errorf("%+v, %v, and %d are left", result, err, left())
	}
	// What was purged is all in one of the two.
	for _, id := range ids {
		if !slices.Contains(a.ids[:10], id) && !slices.Contains(again.ids, id) {
			t.Errorf("%v is lost", id)
		}
	}
}

// What somebody else purges meanwhile is not written, whole or in part.
func TestArchiveMeetsAPurger(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	fsmtest.ShortKeys(t, pool)
	ids := fsmtest.Stopped(t, s, "default", 20)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	dbtest.Advance(t, pool, time.Hour)
	var a archived
	result, err := s.Archive(t.Context(), lifecycle.ArchiveCommand{OlderThan: time.Hour, Purge: true, Flush: a.flush, Write: func(i lifecycle.Archived) error {
		if len(a.ids) == 0 {
			bounded.Exec(t, pool, "select pawl.purge_archived('default', $1, pawl.now())", ids[10:15])
		}
		return a.write(i)
	}})
	if err != nil || result != (lifecycle.Archive{Written: 15, Purged: 15}) {
		t.Errorf("%+v, %v", result, err)
	}
	if want := slices.Concat(ids[:10], ids[15:]); !slices.Equal(a.ids, want) {
		t.Errorf("written are %v, want %v", a.ids, want)
	}
}
