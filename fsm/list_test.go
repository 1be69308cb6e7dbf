package fsm_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The secret that signs cursors is read once for each connection, however many pages are.
func TestPagesShareTheSecretOfTheirConnection(t *testing.T) {
	t.Parallel()
	_, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	var reads atomic.Int64
	s := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, _ []any) {
			if strings.Contains(sql, "cursor_secret") {
				reads.Add(1)
			}
		}}
	}), fsm.Config{})
	for range 7 {
		fsmtest.Create(t, s, "counter", `{"x":0}`)
	}
	pages := 0
	for page := (fsm.Page{Limit: 1}); pages == 0 || page.Cursor != ""; pages++ {
		l, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{}, page)
		if err != nil {
			t.Fatal(err)
		}
		page.Cursor = l.Next
	}
	if n := reads.Load(); pages != 7 || n != 1 {
		t.Errorf("%d pages read the secret %d times, want 7 pages and once", pages, n)
	}
}

// A cursor of a database is refused once another one is behind the same pool.
func TestCursorsOfAReplacedDatabase(t *testing.T) {
	t.Parallel()
	old, replaced := dbtest.New(t), dbtest.New(t)
	// Both are clones of one template, and so have one secret.
	bounded.Exec(t, replaced, "update pawl.setting set cursor_secret = sha256('another')")
	for _, pool := range []*pgxpool.Pool{old, replaced} {
		s := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Counter)
		for range 3 {
			fsmtest.Create(t, s, "counter", `{"x":0}`)
		}
	}
	var mu sync.Mutex
	database := old.Config().ConnConfig.Database
	pool := fsmtest.Spied(t, old, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error {
			mu.Lock()
			defer mu.Unlock()
			config.Database = database
			return nil
		}
	})
	s := fsmtest.On(t, pool, fsm.Config{})
	list := func(cursor string) (fsm.InstanceList, error) {
		return s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Limit: 1, Cursor: cursor})
	}
	first, err := list("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list(first.Next); err != nil {
		t.Fatal(err)
	}

	mu.Lock()
	database = replaced.Config().ConnConfig.Database
	mu.Unlock()
	pool.Reset() // As when the old server goes away.
	_, err = list(first.Next)
	if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Message != "the cursor does not belong to this list" {
		t.Errorf("got %v", e)
	}
	first, err = list("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list(first.Next); err != nil {
		t.Error(err)
	}
}

// In listedParcel and listedClaim the state CLOSED has different statuses. listedClaim has a compound state CHECK, and a
// state CHECKED, whose name merely begins like that.
const (
	listedParcel = `{"name": "parcel", "initial": "NEW", "states": {
		"NEW": {"on": {"hold": "HELD", "ship": "DONE", "lose": "LOST", "close": "CLOSED"}},
		"HELD": {"on": {"release": "NEW"}, "after": {"1h": {"target": "NEW", "guard": "$nowhere == 1"}}},
		"DONE": {"type": "final"}, "CLOSED": {"type": "final"}, "LOST": {"type": "final", "outcome": "failed"}}}`
	listedClaim = `{"name": "claim", "initial": "NEW", "states": {
		"NEW": {"on": {"hold": "CHECK", "close": "CLOSED", "look": "CHECKED"}},
		"CHECK": {"initial": "FIRST", "states": {"FIRST": {"on": {"more": "SECOND"}}, "SECOND": {}}, "on": {"release": "NEW"}},
		"CHECKED": {"on": {"close": "CLOSED"}},
		"CLOSED": {"type": "final", "outcome": "failed"}}}`
)

// number gives a position to each step that is committed. The first call makes the consumer insight.
func number(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if !bounded.Value[bool](t, pool, "select exists (select from pawl.consumer where name = 'insight')") {
		for _, sql := range []string{
			"select pawl.log_lead('tester', '1 year')", "select pawl.log_begin('tester', 1)",
			"select pawl.consumer_create('insight', true)", "select pawl.consumer_lead('insight', 'tester', '1 year')",
		} {
			bounded.Exec(t, pool, sql)
		}
	}
	bounded.Exec(t, pool, "select pawl.log_tick('tester', 1, '1 year')")
}

// fold folds each step that has a position.
func fold(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	bounded.UntilSQL(t, pool, "select steps = 0 from pawl.insight_fold('tester', 1, 1000, '1 year')")
}

// A list has exactly the instances that its filter chooses, in its order, page by page, whatever index ranges it is
// merged from, and whatever has been folded.
func TestListsAreWhatTheirFilterChooses(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, listedParcel, listedClaim)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	events := map[string][]string{
		"parcel": {"", "hold", "ship", "lose", "close"}, "claim": {"", "hold", "close", "look", "hold,more"},
	}
	var all []fsm.Instance
	for n := range 60 {
		workflow := []string{"parcel", "claim"}[n%2]
		c := fsm.CreateCommand{Workflow: workflow, CorrelationID: fmt.Sprint("group-", n%4)}
		if n%6 < 2 { // A business key may be taken in each workflow once.
			c.BusinessKey = fmt.Sprint("key ", n/6)
		}
		r, err := s.Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r.Instance)
		dbtest.Advance(t, pool, time.Minute)
	}
	// They move in another order than that of their creation, and some of them at the same time. Some steps are folded,
	// some have a position, and some do not.
	for k := range all {
		switch k {
		case 20:
			number(t, pool)
			fold(t, pool)
		case 40:
			number(t, pool)
		}
		n := k * 37 % len(all)
		if k%5 > 0 {
			dbtest.Advance(t, pool, time.Minute)
		}
		for _, event := range strings.Split(events[all[n].Workflow][n/2%5], ",") {
			if event != "" {
				fsmtest.Fire(t, s, all[n].ID, event, `{}`)
			}
		}
	}
	dbtest.Advance(t, pool, 30*time.Minute)
	fsmtest.WantFired(t, pool, 0) // The timers of those that were held first fail.
	now := bounded.Value[time.Time](t, pool, "select pawl.now()")
	failing := 0
	for n := range all {
		all[n] = fsmtest.Get(t, s, all[n].ID)
		if next := all[n].NextTimeout; next != nil && next.LastError != nil {
			failing++
		}
	}
	if failing == 0 || failing == 6 {
		t.Fatalf("%d timers fail, want some of 6", failing)
	}

	within := func(i fsm.Instance, states []string) bool {
		return slices.ContainsFunc(states, func(s string) bool { return i.State == s || strings.HasPrefix(i.State, s+".") })
	}
	compare := map[fsm.Sort]func(a, b fsm.Instance) int{
		"": func(a, b fsm.Instance) int { return bytes.Compare(b.ID[:], a.ID[:]) },
		fsm.SortStateChangedAt: func(a, b fsm.Instance) int {
			return cmp.Or(a.StateChangedAt.Compare(b.StateChangedAt), bytes.Compare(a.ID[:], b.ID[:]))
		},
	}
	compare[fsm.SortCreatedAt] = func(a, b fsm.Instance) int { return compare[""](b, a) }
	compare[fsm.SortStateChangedAtDesc] = func(a, b fsm.Instance) int { return compare[fsm.SortStateChangedAt](b, a) }

	found, folded := 0, ""
	lists := func() {
		t.Helper()
		others := []string{"", "key 3", "group-2", "stuck", "created", "failing"}
		for n, sort := range []fsm.Sort{"", fsm.SortCreatedAt, fsm.SortStateChangedAt, fsm.SortStateChangedAtDesc} {
			for _, workflows := range [][]string{nil, {"parcel"}, {"claim"}, {"parcel", "claim"}} {
				for _, states := range [][]string{nil, {"NEW"}, {"HELD"}, {"CLOSED"}, {"CHECK"}, {"CHECK.SECOND", "NEW", "LOST"}} {
					if slices.Equal(workflows, []string{"parcel"}) && within(fsm.Instance{State: "CHECK.SECOND"}, states) ||
						slices.Equal(workflows, []string{"claim"}) && slices.Contains(states, "HELD") || len(states) == 3 && len(workflows) == 1 {
						continue // This workflow has no such state.
					}
					for _, statuses := range [][]fsm.Status{nil, {fsm.Active}, {fsm.Completed}, {fsm.Failed, fsm.Active}, {fsm.Expired}} {
						for k, other := range others {
							if folded != "nothing is folded" && (states == nil || k > 0 && other != "stuck" && other != "created") {
								continue // These are not read from what was folded.
							}
							if n > 0 && (k+len(statuses)+len(states))%2 > 0 {
								continue // In the other orders, half of the filters are enough.
							}
							f := fsm.Filter{Workflows: workflows, States: states, Statuses: statuses, Sort: sort}
							keep := func(fsm.Instance) bool { return true }
							after, before := fsmtest.Noon.Add(9*time.Minute), fsmtest.Noon.Add(40*time.Minute)
							switch other {
							case "key 3":
								f.BusinessKey = other
								keep = func(i fsm.Instance) bool { return i.BusinessKey != nil && *i.BusinessKey == other }
							case "group-2":
								f.CorrelationID = other
								keep = func(i fsm.Instance) bool { return *i.CorrelationID == other }
							case "stuck":
								f.StuckFor = 50 * time.Minute
								keep = func(i fsm.Instance) bool {
									return i.Status == fsm.Active && !i.StateChangedAt.After(now.Add(-50*time.Minute))
								}
							case "created":
								f.CreatedAfter, f.CreatedBefore = after, before
								keep = func(i fsm.Instance) bool { return i.CreatedAt.After(after) && i.CreatedAt.Before(before) }
							case "failing":
								f.FailingTimer = true
								keep = func(i fsm.Instance) bool { return i.NextTimeout != nil && i.NextTimeout.LastError != nil }
							}
							var want, got []fsm.Instance
							for _, i := range all {
								if (workflows == nil || slices.Contains(workflows, i.Workflow)) && (states == nil || within(i, states)) &&
									(statuses == nil || slices.Contains(statuses, i.Status)) && keep(i) {
									want = append(want, i)
								}
							}
							slices.SortFunc(want, compare[sort])
							// bounded: each page begins where the last one ended
							for page := (fsm.Page{Limit: 7}); ; {
								l, err := s.List(t.Context(), fsm.DefaultTenant, f, page)
								if err != nil {
									t.Fatalf("%+v: %v", f, err)
								}
								if !l.AsOf.Equal(now) {
									t.Fatalf("%+v: as of %s, want %s", f, l.AsOf, now)
								}
								got = append(got, l.Items...)
								if page.Cursor = l.Next; page.Cursor == "" {
									break
								}
							}
							if diff := gocmp.Diff(want, got); diff != "" {
								t.Errorf("%+v, %s: %s", f, folded, diff)
							}
							found += len(got)
						}
					}
				}
			}
		}
	}
	near := func(want bool) {
		t.Helper()
		if near := bounded.Value[bool](t, pool, "select near from pawl.list_place(10000)"); near != want {
			t.Errorf("near is %t", near)
		}
	}
	bounded.Exec(t, pool, "update pawl.consumer set name = 'another'")
	folded = "nothing is folded"
	near(false)
	lists()
	if found < 3000 {
		t.Errorf("only %d were found", found)
	}
	bounded.Exec(t, pool, "update pawl.consumer set name = 'insight'")
	folded = "a part is folded"
	near(true)
	lists()
	number(t, pool)
	fold(t, pool)
	folded = "all is folded"
	near(true)
	lists()
}

// An instance may move, or be purged, while a page is read: after it was found, and before it is read. All others are on one
// page each, and so is an instance that still is where the list finds it.
func TestPagesDuringWhichInstancesMove(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "top", "initial": "A", "search": {"f": "$.context.f"}, "states": {
		"A": {"on": {"note": {"assign": {"*": ["g"]}}, "again": "A", "end": "Z"}}, "Z": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	const limit = 3
	for _, sort := range []fsm.Sort{fsm.SortCreatedAt, fsm.SortCreatedAtDesc, fsm.SortStateChangedAt, fsm.SortStateChangedAtDesc} {
		for _, f := range []fsm.Filter{{States: []string{"A"}}, {Where: []string{"f=x"}}} {
			byChange := strings.HasSuffix(string(sort), "state_changed_at")
			if f.Where != nil && byChange {
				continue
			}
			f.Workflows, f.Sort = []string{"top"}, sort
			for _, moves := range []string{"note", "again", "end", "purge"} {
				for _, at := range []int{0, limit - 1, limit} {
					bounded.Exec(t, pool, "delete from pawl.history; delete from pawl.instance; delete from pawl.residence; delete from pawl.attribute")
					var ids []uuid.UUID
					for range 6 {
						ids = append(ids, fsmtest.Create(t, s, "top", `{"f": "x"}`).ID)
						dbtest.Advance(t, pool, time.Minute)
					}
					number(t, pool)
					fold(t, pool)
					if strings.HasPrefix(string(sort), "-") {
						slices.Reverse(ids)
					}
					moved := ids[at]
					var once sync.Once
					moving := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
						c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, _ []any) {
							if strings.Contains(sql, "name: InstancesPage") {
								once.Do(func() {
									if moves == "purge" {
										bounded.Exec(t, pool, "delete from pawl.instance where id = $1", moved)
									} else {
										fsmtest.Fire(t, s, moved, moves, `{"g": 1}`)
									}
								})
							}
						}}
					}), fsm.Config{})
					var got []uuid.UUID
					pages := 0
					for page := (fsm.Page{Limit: limit}); pages == 0 || page.Cursor != ""; pages++ {
						l, err := moving.List(t.Context(), fsm.DefaultTenant, f, page)
						if err != nil || pages > 20 {
							t.Fatalf("%+v: page %d: %v", f, pages, err)
						}
						for _, i := range l.Items {
							got = append(got, i.ID)
						}
						page.Cursor = l.Next
					}
					want := ids
					// In an order by its last change it takes another place, and may be left out or appear twice.
					if stays := moves == "note" || moves == "again" && !byChange || moves == "end" && f.Where != nil; !stays {
						isMoved := func(id uuid.UUID) bool { return id == moved }
						want, got = slices.DeleteFunc(slices.Clone(ids), isMoved), slices.DeleteFunc(got, isMoved)
					}
					if !slices.Equal(got, want) {
						t.Errorf("%+v, and %s of the instance at %d: the pages have\n%v, want\n%v", f, moves, at, got, want)
					}
				}
			}
		}
	}
}

// The values of a filter may be given in another order for the next page.
func TestCursorsDoNotDependOnTheOrderOfValues(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, listedParcel, listedClaim)
	for range 3 {
		fsmtest.Create(t, s, "parcel", `{}`)
	}
	f := fsm.Filter{Workflows: []string{"parcel", "claim"}, Statuses: []fsm.Status{fsm.Failed, fsm.Active}, States: []string{"NEW", "CLOSED"}}
	first, err := s.List(t.Context(), fsm.DefaultTenant, f, fsm.Page{Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(f.Workflows)
	slices.Reverse(f.Statuses)
	f.States = []string{"CLOSED", "NEW", "NEW"}
	second, err := s.List(t.Context(), fsm.DefaultTenant, f, fsm.Page{Limit: 2, Cursor: first.Next})
	if err != nil || len(second.Items) != 1 {
		t.Errorf("got %v, %v", second.Items, err)
	}
}

// What a filter names must exist, and the error says what was probably meant.
func TestFiltersNameWhatExists(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, listedParcel, listedClaim)
	many := make([]string, fsm.MaxNames+1)
	for i := range many {
		many[i] = "NEW"
	}
	for name, c := range map[string]struct {
		filter fsm.Filter
		want   []fsm.Fault
	}{
		"misspelled workflow": {
			fsm.Filter{Workflows: []string{"parcle"}},
			[]fsm.Fault{{Parameter: "workflow", Detail: `there is no workflow "parcle"; did you mean "parcel"?`}},
		},
		"other workflow": {
			fsm.Filter{Workflows: []string{"parcel", "invoice"}},
			[]fsm.Fault{{Parameter: "workflow", Detail: `there is no workflow "invoice"`}},
		},
		"state in lower case": {
			fsm.Filter{States: []string{"held"}},
			[]fsm.Fault{{Parameter: "state", Detail: `there is no state "held"; did you mean "HELD"?`}},
		},
		"state without its path": {
			fsm.Filter{States: []string{"SECOND"}},
			[]fsm.Fault{{Parameter: "state", Detail: `there is no state "SECOND"; did you mean "CHECK.SECOND"?`}},
		},
		"misspelled compound state": {
			fsm.Filter{States: []string{"CHEK"}},
			[]fsm.Fault{{Parameter: "state", Detail: `there is no state "CHEK"; did you mean "CHECK"?`}},
		},
		"state of another workflow": {
			fsm.Filter{Workflows: []string{"claim"}, States: []string{"NEW", "HELD"}},
			[]fsm.Fault{{Parameter: "state", Detail: `there is no state "HELD"`}},
		},
		"both": {
			fsm.Filter{Workflows: []string{"Claim", "parcel"}, States: []string{"NEW", "DONE1"}},
			[]fsm.Fault{
				{Parameter: "workflow", Detail: `there is no workflow "Claim"; did you mean "claim"?`},
				{Parameter: "state", Detail: `there is no state "DONE1"; did you mean "DONE"?`},
			},
		},
		"too many": {
			fsm.Filter{States: many}, []fsm.Fault{{Parameter: "state", Detail: "must not be given more than 20 times"}},
		},
		"order": {
			fsm.Filter{Sort: "id"},
			[]fsm.Fault{{Parameter: "sort", Detail: "must be created_at, -created_at, state_changed_at or -state_changed_at"}},
		},
	} {
		_, err := s.List(t.Context(), fsm.DefaultTenant, c.filter, fsm.Page{})
		if diff := gocmp.Diff(c.want, fsmtest.Refusal(t, err, fsm.Malformed).Faults); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A state that many workflows have is looked up once, and one that stands for too many states is refused.
func TestStatesOfManyWorkflows(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Create(t, s, "counter", `{"x":0}`).ID
	list := func(f fsm.Filter) ([]fsm.Instance, error) {
		l, err := s.List(t.Context(), fsm.DefaultTenant, f, fsm.Page{})
		return l.Items, err
	}
	bounded.Exec(t, pool, `insert into pawl.workflow
		select (jsonb_populate_record(w, jsonb_build_object('name', 'w' || n, 'version', v))).*
		from pawl.workflow w, generate_series(1, 300) n, generate_series(1, 2) v`)
	bounded.Exec(t, pool, `
		insert into pawl.workflow_state (
			workflow, workflow_version, state, lineage, status, events, timeouts, timeout_events, eventless, done, ttl_slides, require_if_match, protected)
		select w.name, w.version, n.state, array[n.state], s.status, s.events, s.timeouts, s.timeout_events, false, false, false, false, false
		from pawl.workflow w, pawl.workflow_state s,
			lateral (select 'COUNTING' as state union all select 'BIG.S' || i from generate_series(1, 34) i) n
		where s.workflow = 'counter' and s.state = 'COUNTING' and w.name <> 'counter'`)
	for _, f := range []fsm.Filter{{States: []string{"COUNTING"}}, {States: []string{"COUNTING", "BIG"}}} {
		if got, err := list(f); err != nil || len(got) != 1 || got[0].ID != id {
			t.Errorf("%q: %v, %v", f.States, got, err)
		}
	}
	bounded.Exec(t, pool, `
		insert into pawl.workflow_state (
			workflow, workflow_version, state, lineage, status, events, timeouts, timeout_events, eventless, done, ttl_slides, require_if_match, protected)
		select 'w1', 1, 'BIG.T' || i, array['BIG.T' || i], 'active', '{}', '{}', '{}', false, false, false, false, false from generate_series(1, 10000) i`)
	_, err := list(fsm.Filter{States: []string{"BIG"}})
	if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "state" {
		t.Errorf("got %v", e)
	}
	if got, err := list(fsm.Filter{Workflows: []string{"w1"}, States: []string{"BIG"}}); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// A list by state_changed_at is refused for more than MaxSorted instances, and given for up to that many.
func TestSortingByChangeIsBounded(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, listedParcel, listedClaim)
	fsmtest.Create(t, s, "claim", `{}`)
	bounded.Exec(t, pool, `
		insert into pawl.instance (
			tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select
			'default', ('018f0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'parcel', 1, 'NEW', 'active', 1, '{}',
			'2024-01-01', timestamptz '2024-01-01' + n * interval '1 second'
		from generate_series(1, $1::integer) n`, fsm.MaxSorted)
	list := func(f fsm.Filter) (fsm.InstanceList, error) {
		f.Sort = fsm.SortStateChangedAtDesc
		return s.List(t.Context(), fsm.DefaultTenant, f, fsm.Page{Limit: 2})
	}
	for _, f := range []fsm.Filter{{Workflows: []string{"parcel"}}, {Statuses: []fsm.Status{fsm.Completed}}, {Workflows: []string{"claim"}}} {
		l, err := list(f)
		if err != nil {
			t.Errorf("%+v: %v", f, err)
		}
		if len(f.Workflows) > 0 && f.Workflows[0] == "parcel" &&
			(len(l.Items) != 2 || l.Items[0].StateChangedAt.Sub(l.Items[1].StateChangedAt) != time.Second) {
			t.Errorf("got %+v", l.Items)
		}
	}
	refused := func(f fsm.Filter) {
		t.Helper()
		_, err := list(f)
		if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "sort" {
			t.Errorf("%+v: got %v", f, e)
		}
	}
	for _, f := range []fsm.Filter{{}, {Statuses: []fsm.Status{fsm.Active, fsm.Failed}}, {States: []string{"NEW"}}} {
		refused(f)
	}

	// What was folded is in that order.
	bounded.Exec(t, pool, `insert into pawl.residence (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
		select tenant_id, id, workflow, workflow_version, state, status, state_changed_at, version, state_changed_at from pawl.instance
		where workflow = 'parcel'`)
	number(t, pool)
	l, err := list(fsm.Filter{States: []string{"NEW"}})
	if err != nil || len(l.Items) != 2 || l.Items[0].Workflow != "claim" || l.Items[1].Workflow != "parcel" {
		t.Errorf("got %+v, %v", l.Items, err)
	}
	refused(fsm.Filter{States: []string{"NEW"}, CreatedBefore: time.Now()})

	// With more than 10,000 steps that are not folded it is as before.
	bounded.Exec(t, pool, "insert into pawl.log select n, 'default', gen_random_uuid(), 1 from generate_series(10, 10010) n")
	bounded.Exec(t, pool, "update pawl.log_head set position = 9")
	refused(fsm.Filter{States: []string{"NEW"}})
}
