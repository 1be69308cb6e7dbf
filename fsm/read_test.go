package fsm_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

func TestList(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, fsmtest.FlightBooking)
	ctx := t.Context()
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	dbtest.SetClock(t, pool, start)
	var ids []uuid.UUID // The oldest first.
	for n := range 7 {
		c := fsm.CreateCommand{Workflow: "counter", BusinessKey: string(rune('a' + n)), Context: json.RawMessage(`{"x":0}`)}
		if n%2 == 1 {
			c.Workflow, c.CorrelationID, c.Context = "flight-booking", "odd", json.RawMessage(`{"flight_id":"x","price":1}`)
		}
		r, err := s.Create(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Instance.ID)
		dbtest.Advance(t, pool, time.Minute)
	}
	fsmtest.Fire(t, s, ids[2], "stop", `{}`)
	fsmtest.Fire(t, s, ids[4], "add", `{"n":1}`)

	all := func(f fsm.Filter, limit int) []int {
		t.Helper()
		found := []int{}
		// bounded: each page begins where the last one ended
		for page := (fsm.Page{Limit: limit}); ; {
			l, err := s.List(ctx, fsm.DefaultTenant, f, page)
			if err != nil {
				t.Fatal(err)
			}
			if limit > 0 && len(l.Items) > limit || l.Next != "" && len(l.Items) < limit {
				t.Errorf("%d items on a page of %d", len(l.Items), limit)
			}
			for _, i := range l.Items {
				found = append(found, slices.Index(ids, i.ID))
				if !cmp.Equal(i, fsmtest.Get(t, s, i.ID)) {
					t.Errorf("%+v is listed as %+v", fsmtest.Get(t, s, i.ID), i)
				}
			}
			if page.Cursor = l.Next; page.Cursor == "" {
				return found
			}
		}
	}
	for _, limit := range []int{0, 1, 2, 7, 1000} {
		if got := all(fsm.Filter{}, limit); !slices.Equal(got, []int{6, 5, 4, 3, 2, 1, 0}) {
			t.Errorf("pages of %d: %v", limit, got)
		}
	}
	for name, c := range map[string]struct {
		filter fsm.Filter
		want   []int
	}{
		"workflow":       {fsm.Filter{Workflows: []string{"flight-booking"}}, []int{5, 3, 1}},
		"state":          {fsm.Filter{States: []string{"STOPPED"}}, []int{2}},
		"status":         {fsm.Filter{Statuses: []fsm.Status{fsm.Completed}}, []int{2}},
		"business key":   {fsm.Filter{BusinessKey: "d"}, []int{3}},
		"correlation id": {fsm.Filter{CorrelationID: "odd"}, []int{5, 3, 1}},
		"after":          {fsm.Filter{CreatedAfter: start.Add(4 * time.Minute)}, []int{6, 5}},
		"before":         {fsm.Filter{CreatedBefore: start.Add(time.Minute)}, []int{0}},
		"after 1960":     {fsm.Filter{CreatedAfter: time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC), CreatedBefore: start.Add(time.Minute)}, []int{0}},
		"before 9999":    {fsm.Filter{CreatedBefore: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), CreatedAfter: start.Add(5 * time.Minute)}, []int{6}},
		"stuck":          {fsm.Filter{StuckFor: 6 * time.Minute}, []int{1, 0}},
		"combined":       {fsm.Filter{Workflows: []string{"counter"}, StuckFor: 5 * time.Minute, Statuses: []fsm.Status{fsm.Active}}, []int{0}},
	} {
		if got := all(c.filter, 2); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}

	// Rows that come later disturb no page; cursors cannot be made, mended or carried over.
	first, err := s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	fsmtest.Create(t, s, "counter", `{}`)
	rest, err := s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Limit: 200, Cursor: first.Next})
	if err != nil || len(rest.Items) != 4 || rest.Items[0].ID != ids[3] || rest.Next != "" {
		t.Errorf("rest: %+v, %v", rest, err)
	}
	mended := []byte(first.Next)
	mended[len(mended)-2] ^= 1
	for name, list := range map[string]func() (fsm.InstanceList, error){
		"mended": func() (fsm.InstanceList, error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Cursor: string(mended)})
		},
		"cut": func() (fsm.InstanceList, error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Cursor: first.Next[:21]})
		},
		"made": func() (fsm.InstanceList, error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Cursor: ids[2].String()})
		},
		"other filter": func() (fsm.InstanceList, error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{States: []string{"COUNTING"}}, fsm.Page{Cursor: first.Next})
		},
		"other order": func() (fsm.InstanceList, error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{Sort: fsm.SortCreatedAt}, fsm.Page{Cursor: first.Next})
		},
		"other tenant": func() (fsm.InstanceList, error) {
			return s.List(ctx, "other", fsm.Filter{}, fsm.Page{Cursor: first.Next})
		},
	} {
		_, err := list()
		if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "cursor" {
			t.Errorf("%s: %+v", name, e.Faults)
		}
	}
	if l, err := s.List(ctx, "other", fsm.Filter{}, fsm.Page{}); err != nil || len(l.Items) != 0 {
		t.Errorf("another tenant sees %v, %v", l.Items, err)
	}
	_, err = s.History(ctx, fsm.DefaultTenant, ids[0], fsm.Page{Cursor: first.Next})
	fsmtest.Refused(t, err, fsm.Malformed)

	for range 4 {
		fsmtest.Fire(t, s, ids[0], "add", `{"n":1}`)
	}
	l, err := s.History(ctx, fsm.DefaultTenant, ids[0], fsm.Page{Limit: 3})
	if err != nil || len(l.Items) != 3 || l.Next == "" {
		t.Fatalf("%+v, %v", l, err)
	}
	l, err = s.History(ctx, fsm.DefaultTenant, ids[0], fsm.Page{Limit: 2, Cursor: l.Next})
	if err != nil || len(l.Items) != 2 || l.Items[0].Version != 4 || l.Next != "" {
		t.Errorf("%+v, %v", l, err)
	}
}

// Actions have what the definition says of their transitions: also of those that a state around declares, and once of one
// that leads to several states.
func TestActionsAreDescribed(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "told", "initial": "A", "states": {
		"A": {"initial": "A1", "on": {"leave": {"target": "P", "description": "Go home."}, "note.*": {"description": "Say \"hi\"."}}, "states": {
			"A1": {"on": {"go": [
				{"target": "A2", "guard": "$.payload.n == 1", "description": "First."}, {"target": "P", "guard": "$.payload.n == 2"},
				{"target": "END", "description": "Last."}]}},
			"A2": {"on": {"go": "A1"}}}},
		"P": {"on": {"back": {"target": "A", "resume": true, "description": "Where it was."}}},
		"END": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "told", `{}`)
	accepted := func() map[string]string {
		t.Helper()
		told := map[string]string{}
		events, err := s.AcceptedEvents(t.Context(), fsm.DefaultTenant, i.ID, false, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			told[e.Event] = e.Description
		}
		return told
	}
	if diff := cmp.Diff(map[string]string{"go": "First.\nLast.", "leave": "Go home.", "note.*": `Say "hi".`}, accepted()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	fsmtest.Fire(t, s, i.ID, "leave", "{}")
	if diff := cmp.Diff(map[string]string{"back": "Where it was."}, accepted()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestActions(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	s := fsmtest.On(t, fsmtest.Open(t, dsn, db.Config{}), fsm.Config{}, stepwise)
	i := fsmtest.Create(t, s, "stepwise", `{"x":1}`)
	schema := json.RawMessage(`{"type": "object", "properties": {"n": {"type": "integer"}}}`)
	want := []fsm.AcceptedEvent{
		{Event: "checked", Targets: []string{"B"}, PayloadSchema: schema, GuardHolds: new(true)},
		{Event: "go", Targets: []string{"B", "Z"}, GuardHolds: new(false)},
		{Event: "grow", Targets: []string{"A"}, GuardHolds: new(true)},
		{Event: "raise", Targets: []string{"B"}},
		{Event: "stamp", Targets: []string{"B"}},
		{Event: "zoned", Targets: []string{"B"}, GuardHolds: new(false)},
	}
	got, err := s.AcceptedEvents(t.Context(), fsm.DefaultTenant, i.ID, true, "")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for n := range want {
		want[n].GuardHolds = nil
	}
	got, err = s.AcceptedEvents(t.Context(), fsm.DefaultTenant, i.ID, false, "")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, event := range []string{"checked", "end"} {
		if _, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event, Expect: fsm.ExpectAny()}); err != nil {
			t.Fatal(err)
		}
	}
	got, err = s.AcceptedEvents(t.Context(), fsm.DefaultTenant, i.ID, true, "")
	if err != nil || got == nil || len(got) != 0 {
		t.Errorf("a final state accepts %v, %v", got, err)
	}
}
