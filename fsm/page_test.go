package fsm_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// wantPages reads a list to its end. It must have want items, in pages of at most most, and several of them.
func wantPages[T any](t *testing.T, want, most int, read func(fsm.Page) (fsm.List[T], error)) (all []T) {
	t.Helper()
	pages := 0
	// bounded: each page begins where the last one ended
	for page := (fsm.Page{Limit: fsm.MaxLimit}); ; pages++ {
		l, err := read(page)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Items) > most {
			t.Errorf("a page has %d items, want at most %d", len(l.Items), most)
		}
		all = append(all, l.Items...)
		if page.Cursor = l.Next; page.Cursor == "" {
			break
		}
	}
	if len(all) != want || pages < want/most {
		t.Errorf("%d items in %d pages, want %d", len(all), pages, want)
	}
	return all
}

// Large documents make pages end early, and nothing is left out between them.
func TestPagesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	// 1 MiB are 18 contexts of 60 kB, and 9 or 10 steps with such a context and payload.
	bounded.Exec(t, pool, `select pawl.create_one('counter', jsonb_build_object('x', 0, 'text', repeat('x', 60000))) from generate_series(1, 150)`)
	seen := map[string]bool{}
	for _, sort := range []fsm.Sort{fsm.SortCreatedAt, fsm.SortStateChangedAtDesc} {
		clear(seen)
		last := ""
		for _, i := range wantPages(t, 150, 18, func(page fsm.Page) (fsm.List[fsm.Instance], error) {
			l, err := s.List(bounded.Context(t), fsm.DefaultTenant, fsm.Filter{Sort: sort}, page)
			return l.List, err
		}) {
			seen[i.ID.String()] = true
			if sort == fsm.SortCreatedAt && i.ID.String() < last {
				t.Errorf("%s comes after %s", i.ID, last)
			}
			last = i.ID.String()
		}
		if len(seen) != 150 {
			t.Errorf("%d different instances, want 150", len(seen))
		}
	}

	id := fsmtest.Create(t, s, "counter", `{"x": 0, "text": "`+strings.Repeat("x", 60000)+`"}`).ID
	bounded.Exec(t, pool, `select pawl.fire_one($1, 'add', jsonb_build_object('n', 0, 'text', repeat('y', 60000))) from generate_series(1, 79)`, id)
	for n, step := range wantPages(t, 80, 10, func(page fsm.Page) (fsm.List[fsm.Step], error) {
		return s.History(bounded.Context(t), fsm.DefaultTenant, id, page)
	}) {
		if step.Version != int64(n)+1 {
			t.Fatalf("step %d has version %d", n, step.Version)
		}
	}

	for n := range 6 {
		described := strings.Replace(fsmtest.Counter, `"name": "counter"`, fmt.Sprintf(`"name": "counter-%d", "description": %q`, n, strings.Repeat("x", 900_000)), 1)
		fsmtest.Register(t, s, described)
	}
	for n, w := range wantPages(t, 7, 3, func(page fsm.Page) (fsm.List[string], error) {
		l, err := s.ListWorkflows(bounded.Context(t), nil, page)
		names := make([]string, len(l.Items))
		for i, w := range l.Items {
			names[i] = w.Name
		}
		return fsm.List[string]{Items: names, Next: l.Next}, err
	}) {
		if want := fmt.Sprintf("counter-%d", n-1); n > 0 && w != want {
			t.Errorf("workflow %d is %s, want %s", n, w, want)
		}
	}
}
