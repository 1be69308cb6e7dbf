package fsm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// flights is a workflow with search attributes, each of which is a member of the context.
func flights(search string) string {
	return `{"name": "flights", "initial": "A", "search": {` + search + `}, "states": {
		"A": {"on": {"go": {"target": "B", "assign": {"*": ["f", "o"]}}, "note": {"assign": {"*": ["f", "g"]}}}},
		"B": {"on": {"end": "C"}}, "C": {"type": "final"}}}`
}

const flightSearch = `"f": "$.context.f", "price": "$.context.o.price", "n": {"path": "$.context.n", "type": "number"},
	"t": {"path": "$.context.n", "type": "text"}, "when": {"path": "$.context.f", "type": "time"}, "b": "$.context.b"`

// A list by conditions has exactly the instances whose contexts fulfil them, whatever has been folded.
func TestInstancesAreFoundByTheirContext(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, flights(flightSearch))
	long := strings.Repeat("ä", 200)
	contexts := []string{
		`{"f": "LH454", "o": {"price": 400}}`, `{"f": "LH455", "o": {"price": 400.50}}`, `{"f": "lh454", "o": {"price": "400"}}`,
		`{"f": "` + long + `1"}`, `{"f": "` + long + `2"}`, `{"f": 454}`, `{"f": null}`, `{"f": ["LH454"]}`, `{"f": {"LH454": 1}}`, `{}`,
		`{"n": 7}`, `{"n": "7"}`, `{"n": "7.0"}`, `{"n": "x7"}`, `{"n": true}`, `{"n": 1e3}`, `{"n": 1` + strings.Repeat("0", 150) + `}`,
		`{"f": "2026-03-01T10:00:00+01:00"}`, `{"f": "2026-03-01T09:00:00.5Z"}`, `{"f": "2026-02-30T09:00:00Z"}`, `{"f": "2026-03-01"}`,
		`{"b": true}`, `{"b": false}`, `{"b": "true"}`, `{"f": "a*"}`, `{"f": "a\"b"}`, `{"f": ""}`, `{"o": 1}`,
		`{"f": "2025-03-01T09:00:00.1234567Z"}`, `{"f": "2025-03-01t11:00:00.25+02:00"}`, `{"f": "2025-03-01T09:00:00+15:00"}`,
	}
	ids := make([]uuid.UUID, len(contexts))
	for i, context := range contexts {
		switch i {
		case 8:
			number(t, pool)
			fold(t, pool)
		case 16:
			number(t, pool)
		}
		ids[i] = fsmtest.Create(t, s, "flights", context).ID
	}
	// These move after they were folded, and lose what they had.
	fsmtest.Fire(t, s, ids[0], "go", `{"f": "XX", "o": {}}`)
	fsmtest.Fire(t, s, ids[9], "go", `{"f": "LH454", "o": {"price": 401}}`)
	places := func(l fsm.InstanceList) (list []int) {
		for _, i := range l.Items {
			list = append(list, slices.Index(ids, i.ID))
		}
		return list
	}
	lists := func(folded string) {
		t.Helper()
		for _, c := range []struct {
			where string
			want  []int
		}{
			{"f=LH454", []int{9}},
			{`f="LH454"`, []int{9}},
			{"f=LH*", []int{1, 9}},
			{"f=LH*|price>=400.6", []int{9}},
			{"f=XX", []int{0}},
			{"f=lh454", []int{2}},
			{"f=" + long + "1", []int{3}},
			{"f=" + long + "*", []int{3, 4}},
			{"f>" + long + "1", []int{4}},
			{"f<=" + long + "1|f>=z", []int{3}},
			{"f=454", []int{5}},
			{`f="454"`, nil},
			{"f=a*", []int{24, 25}},
			{`f="a*"`, []int{24}},
			{`f="a"b"`, []int{25}},
			{`f=""`, []int{26}},
			{"price>=400", []int{1, 9}},
			{"price>400.5", []int{9}},
			{"price<=400.50", []int{1}},
			{"price<400", nil},
			{`price="400"`, []int{2}},
			{"n=7", []int{10, 11, 12}},
			{"n>=1", []int{10, 11, 12, 15}},
			{"t=7", []int{10, 11}},
			{"t=true", []int{14}},
			{"when=2026-03-01T09:00:00Z", []int{17}},
			{"when>=2026-03-01T10:00:00 01:00", []int{17, 18}},
			{"when<2026-03-01T09:00:00.6Z", []int{17, 18, 28, 29}},
			// More digits than a time has are rounded, in a condition as in a context.
			{"when=2025-03-01T09:00:00.1234567Z", []int{28}},
			{"when<=2025-03-01T09:00:00.1234567Z", []int{28}},
			{"f=2025-03-01T09:00:00.123457Z", []int{28}},
			// RFC 3339 allows small letters. An offset of 15 hours makes no time, as in a context.
			{"when=2025-03-01t09:00:00.25z", []int{29}},
			{"f=2025-03-01t09:00:00.25z", []int{29}},
			{"f=2025-03-01T09:00:00 15:00", nil},
			{"f=2025-03-01T09:00:00+15:00", []int{30}},
			{"f>2026-03-01T09:00:00Z", []int{18}},
			{`f="2026-03-01"`, []int{20}},
			{"b=true", []int{21}},
			{"b=false", []int{22}},
		} {
			f := fsm.Filter{Workflows: []string{"flights"}, Where: strings.Split(c.where, "|"), Sort: fsm.SortCreatedAt}
			var got []int
			// bounded: each page begins where the last one ended
			for page := (fsm.Page{Limit: 2}); ; {
				l, err := s.List(t.Context(), fsm.DefaultTenant, f, page)
				if err != nil {
					t.Fatalf("%s: %v", c.where, err)
				}
				if l.Incomplete {
					t.Errorf("%s, %s: incomplete", c.where, folded)
				}
				got = append(got, places(l)...)
				if page.Cursor = l.Next; page.Cursor == "" {
					break
				}
			}
			if diff := gocmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", c.where, folded, diff)
			}
		}
		l, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{
			Workflows: []string{"flights"}, Where: []string{"price>=400"}, States: []string{"B"}, Statuses: []fsm.Status{fsm.Active},
		}, fsm.Page{})
		if err != nil || !slices.Equal(places(l), []int{9}) {
			t.Errorf("%s: in B are %v, %v", folded, places(l), err)
		}
		l, err = s.List(t.Context(), "other", fsm.Filter{Workflows: []string{"flights"}, Where: []string{"price>=400"}}, fsm.Page{})
		if err != nil || len(l.Items) != 0 {
			t.Errorf("%s: another tenant's are %v, %v", folded, l.Items, err)
		}
	}
	bounded.Exec(t, pool, "update pawl.consumer set name = 'another'")
	lists("nothing is folded")
	bounded.Exec(t, pool, "update pawl.consumer set name = 'insight'")
	lists("a part is folded")
	number(t, pool)
	fold(t, pool)
	lists("all is folded")
	// What is folded is used: without it, instances would be looked at one after the other.
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.attribute where text_value = 'LH454'"); n != 1 {
		t.Errorf("%d attributes are LH454", n)
	}

	for where, detail := range map[string]string{
		"": "must be a name", "f": "must be a name", "=1": "must be a name", "f!=1": "must be a name", "whe=1": `did you mean "when"`, "flight=1": "there are b, f, n, price, t, when",
		"f>LH*": "= before the beginning", "f=": "no value", "b>true": "only =", "n=x": "number", "when=today": "time", `n="7"`: "number",
		"f=" + strings.Repeat("x", 1001): "1000",
	} {
		_, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{Workflows: []string{"flights"}, Where: []string{where}}, fsm.Page{})
		e := fsmtest.Refusal(t, err, fsm.Malformed)
		if e.Faults[0].Parameter != "where" || !strings.Contains(e.Faults[0].Detail, detail) {
			t.Errorf("%q: %+v", where, e.Faults)
		}
	}
	for _, f := range []fsm.Filter{
		{}, {Workflows: []string{"flights"}, BusinessKey: "x"}, {Workflows: []string{"flights"}, Sort: fsm.SortStateChangedAt},
	} {
		f.Where = []string{"f=1"}
		_, err := s.List(t.Context(), fsm.DefaultTenant, f, fsm.Page{})
		if e := fsmtest.Refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "where" {
			t.Errorf("%+v: %+v", f, e.Faults)
		}
	}
}

// A version with other attributes counts for all instances once they are indexed anew. Whoever does that may stop at any
// time. A purge takes what it purges out of the index.
func TestReindex(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, flights(`"f": "$.context.f"`), fsmtest.Counter)
	for n := range 10 {
		// Without a key, which would keep it from a purge.
		bounded.Exec(t, pool, "select pawl.create_one('flights', $1)", fmt.Sprintf(`{"f": "F%d", "g": "G%d"}`, n, n))
		fsmtest.Create(t, s, "counter", `{"x":0}`)
	}
	number(t, pool)
	fold(t, pool)
	find := func(where string, items int, incomplete bool) {
		t.Helper()
		l, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{Workflows: []string{"flights"}, Where: []string{where}}, fsm.Page{})
		if err != nil || len(l.Items) != items || l.Incomplete != incomplete {
			t.Errorf("%s: %d instances, incomplete: %t, %v", where, len(l.Items), l.Incomplete, err)
		}
	}
	find("f=F*", 10, false)
	// Those of the first version are indexed as they come.
	if i, err := s.Reindex(t.Context(), "flights"); err != nil || i.Indexed != 10 || i.Total != 10 || !i.Complete {
		t.Errorf("%+v, %v", i, err)
	}
	fsmtest.Register(t, s, flights(`"g": "$.context.g"`))
	find("g=G*", 0, true)
	fsmtest.Create(t, s, "flights", `{"g": "G10"}`)
	find("g=G*", 1, true)
	number(t, pool)
	fold(t, pool)
	find("g=G*", 1, true)

	done := false
	for calls := 0; !done && calls < 9; calls++ {
		done = bounded.Value[bool](t, pool, "select complete from pawl.reindex_workflow('flights', 5)")
		if !done {
			find("g=G10", 1, true)
		}
	}
	find("g=G*", 11, false)
	i, err := s.Reindex(t.Context(), "flights")
	if err != nil || i.Indexed != 11 || i.Total != 11 || !i.Complete {
		t.Errorf("%+v, %v", i, err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.attribute where name <> 'g'"); n != 0 {
		t.Errorf("%d attributes of the former version are left", n)
	}
	// The same attributes again are indexed, and others than those of the version before are not.
	fsmtest.Register(t, s, strings.Replace(flights(`"g": "$.context.g"`), `"name"`, `"description": "d", "name"`, 1))
	find("g=G*", 11, false)
	fsmtest.Register(t, s, flights(`"f": "$.context.f"`))
	find("f=F*", 0, true)
	if i, err := s.Reindex(t.Context(), "flights"); err != nil || !i.Complete {
		t.Errorf("%+v, %v", i, err)
	}
	find("f=F*", 10, false)

	bounded.Exec(t, pool, "select pawl.fire_one(id, 'go'), pawl.fire_one(id, 'end') from (select id from pawl.instance where workflow = 'flights' limit 4) i")
	number(t, pool)
	fold(t, pool)
	purged := bounded.Value[int](t, pool, `select cardinality(pawl.purge_archived('default', (select array_agg(id) from pawl.instance where status <> 'active'), pawl.now()))`)
	if left := bounded.Value[int](t, pool, "select count(*) from pawl.attribute"); purged != 4 || left != 6 {
		t.Errorf("%d instances are purged, and %d attributes are left", purged, left)
	}
	_, err = s.Reindex(t.Context(), "nothing")
	if e := fsmtest.Refusal(t, err, fsm.WorkflowNotFound); e.Message != `there is no workflow "nothing"` {
		t.Errorf("of a workflow that does not exist it is said: %s", e.Message)
	}
}

// found is how many instances of flights a list by a condition has, and whether it says that some may be missing.
func found(t *testing.T, s *fsmtest.Service, where string) (items int, incomplete bool) {
	t.Helper()
	l, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{Workflows: []string{"flights"}, Where: []string{where}}, fsm.Page{Limit: fsm.MaxLimit})
	if err != nil || l.Next != "" {
		t.Fatalf("%s: %v, next %q", where, err, l.Next)
	}
	return len(l.Items), l.Incomplete
}

// wantIndexed checks the index against the contexts: for an attribute that is a member of the context, and a text.
func wantIndexed(t *testing.T, pool *pgxpool.Pool, name string) {
	t.Helper()
	want := bounded.Column[string](t, pool, "select format('%s %s %s', id, $1::text, context ->> $1) from pawl.instance where context ->> $1 is not null order by 1", name)
	got := bounded.Column[string](t, pool, "select format('%s %s %s', instance_id, name, text_value) from pawl.attribute order by 1")
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("the index (-contexts +attributes):\n%s", diff)
	}
}

// holdRow locks a row, and what waits for it, until release.
func holdRow(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (release func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = tx.Rollback(bounded.Context(t)) })
	t.Cleanup(release)
	bounded.Exec(t, tx, sql, args...)
	return release
}

// A version with other attributes may come while a reindex waits for the fold. What it then indexes counts for that
// version.
func TestVersionThatComesDuringAReindex(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, flights(`"f": "$.context.f"`))
	for n := range 10 {
		fsmtest.Create(t, s, "flights", fmt.Sprintf(`{"f": "F%d", "g": "G%d", "h": "H%d"}`, n, n, n))
	}
	number(t, pool)
	fold(t, pool)
	fsmtest.Register(t, s, flights(`"g": "$.context.g"`))
	waits := func(definition string) {
		t.Helper()
		release := holdRow(t, pool, "select from pawl.consumer where name = 'insight' for update")
		indexed := make(chan error, 1)
		go func() {
			_, err := pool.Exec(t.Context(), "select pawl.reindex_workflow('flights', 5)")
			indexed <- err
		}()
		bounded.UntilBlocked(t, pool, 1)
		fsmtest.Register(t, s, definition)
		release()
		if err := bounded.Receive(t, "the reindex", indexed); err != nil {
			t.Errorf("%s: %v", definition, err)
		}
		if i, err := s.Reindex(t.Context(), "flights"); err != nil || !i.Complete || i.Indexed != 10 || i.Total != 10 {
			t.Errorf("%s: %+v, %v", definition, i, err)
		}
	}
	waits(flights(`"h": "$.context.h"`))
	if n, incomplete := found(t, s, "h=H*"); n != 10 || incomplete {
		t.Errorf("%d instances, incomplete: %t", n, incomplete)
	}
	wantIndexed(t, pool, "h")
	waits(strings.Replace(flights(""), `"search": {}, `, "", 1))
}

// A fold that began before a version with other attributes does not undo what a reindex has done since.
func TestFoldThatIsUnderWayDuringAReindex(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, flights(`"f": "$.context.f"`))
	for n := range 5 {
		fsmtest.Create(t, s, "flights", fmt.Sprintf(`{"f": "F%d", "g": "G%d"}`, n, n))
	}
	number(t, pool)
	fold(t, pool)
	id := bounded.Value[uuid.UUID](t, pool, "select id from pawl.instance order by id limit 1")
	fsmtest.Fire(t, s, id, "note", `{"f": "F9", "g": "G9"}`) // It stays in its state, so that no row of residence is written.
	number(t, pool)
	release := holdRow(t, pool, "select from pawl.attribute where instance_id = $1 for update", id)
	ended := make(chan error, 2)
	run := func(sql string) {
		_, err := pool.Exec(t.Context(), sql)
		ended <- err
	}
	go run("select pawl.insight_fold('tester', 1, 1000, '1 year')")
	bounded.UntilBlocked(t, pool, 1)
	fsmtest.Register(t, s, flights(`"g": "$.context.g"`))
	go run("select pawl.reindex_workflow('flights', 100)")
	bounded.UntilBlocked(t, pool, 2)
	release()
	for range 2 {
		if err := bounded.Receive(t, "the fold and the reindex", ended); err != nil {
			t.Error(err)
		}
	}
	if n, incomplete := found(t, s, "g=G*"); n != 5 || incomplete {
		t.Errorf("%d instances, incomplete: %t", n, incomplete)
	}
	wantIndexed(t, pool, "g")
}

// A reindex whose session is killed goes on where it was, and commands do not wait for it. It ends with exactly what the
// contexts have, whatever was fired and folded meanwhile.
func TestReindexIsKilled(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, flights(`"f": "$.context.f"`), fsmtest.Counter)
	const n = 60
	var ids []uuid.UUID
	for i := range n {
		ids = append(ids, fsmtest.Create(t, s, "flights", fmt.Sprintf(`{"f": "F%d", "g": "G%d"}`, i, i)).ID)
		fsmtest.Create(t, s, "counter", `{"x":0}`)
	}
	number(t, pool)
	fold(t, pool)
	fsmtest.Register(t, s, flights(`"g": "$.context.g"`))
	own := fsmtest.Spied(t, pool, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["application_name"] = "reindex" })
	var calls atomic.Int64
	firing := bounded.Run(t, "the callers", func(ctx context.Context) error {
		for i := 0; ctx.Err() == nil; i++ {
			payload := json.RawMessage(fmt.Sprintf(`{"g": "G%d of %d"}`, i%n, i))
			if i%7 == 0 {
				payload = json.RawMessage(`{"g": null}`)
			}
			if _, err := s.Fire(context.WithoutCancel(ctx), fsm.FireCommand{ID: ids[i%n], Event: "note", Payload: payload}); err != nil {
				return err
			}
			calls.Add(1)
		}
		return nil
	})
	indexed := int64(0)
	for round := range 10 {
		// The last row to look at is held, so that the reindex waits when it is killed.
		release := holdRow(t, pool, `select from pawl.residence r
			where (r.tenant_id, r.instance_id) = (select o.tenant_id, o.instance_id from pawl.residence o order by o.tenant_id desc, o.instance_id desc limit 1)
			for update`)
		ended := make(chan error, 1)
		go func() {
			_, err := own.Exec(t.Context(), "select pawl.reindex_workflow('flights', 1000)")
			ended <- err
		}()
		bounded.UntilSQL(t, pool, "select count(*) = 1 from pg_stat_activity where datname = current_database() and application_name = 'reindex' and wait_event_type = 'Lock'")
		before := calls.Load()
		bounded.True(t, "commands while a reindex waits", func() bool { return calls.Load() > before })
		bounded.Exec(t, pool, `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name = 'reindex'`)
		if err := bounded.Receive(t, "the reindex", ended); err == nil {
			t.Fatal("the reindex was not killed")
		}
		release()
		now := bounded.Value[int64](t, pool, "select indexed from pawl.reindex_workflow('flights', $1)", 3+round)
		if now < indexed || now == 0 || now >= n {
			t.Fatalf("%d instances are indexed after %d, of %d: the test shows less than it says", now, indexed, n)
		}
		indexed = now
		number(t, pool)
		bounded.Exec(t, pool, "select pawl.insight_fold('tester', 1, 20, '1 year')")
	}
	bounded.UntilSQL(t, pool, "select complete and indexed = $1 from pawl.reindex_workflow('flights', 9)", n)
	firing()
	number(t, pool)
	fold(t, pool)
	wantIndexed(t, pool, "g")
	have := bounded.Value[int](t, pool, "select count(*) from pawl.instance where context ->> 'g' is not null")
	if items, incomplete := found(t, s, "g=G*"); items != have || incomplete {
		t.Errorf("%d instances are found, incomplete: %t; want %d", items, incomplete, have)
	}
}

// Contexts may be so large that a page cannot look at all that it should in time. Then it ends where it is, and the next
// one goes on there.
func TestPagesOfLargeContextsEnd(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, flights(flightSearch))
	var want []uuid.UUID
	for i := range 9 {
		id := fsmtest.Create(t, s, "flights", fmt.Sprintf(`{"f": "LH%d", "n": %d}`, i%3, i)).ID
		if i%3 == 1 {
			want = append(want, id)
		}
	}
	number(t, pool)
	fold(t, pool)
	for looked, most := range map[int]*int{3: new(10000), 9: nil} { // By the attribute, and by the workflow.
		var got []uuid.UUID
		var after *uuid.UUID
		pages := 0
		for more := true; more; more = after != nil {
			var ids []uuid.UUID
			err := pool.QueryRow(t.Context(), `
				select w.ids, w.rest
				from pawl.instances_where(
					'default', 'flights', '[{"name": "f", "op": "=", "kind": "text", "value": "LH1"}, {"name": "n", "op": ">=", "kind": "number", "value": "0"}]',
					null, null, true, $1, 100, 100, 20000, '0', $2) w`, after, most).Scan(&ids, &after)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ids...)
			pages++
		}
		if !slices.Equal(got, want) {
			t.Errorf("of %d that are looked at, found are %v, want %v", looked, got, want)
		}
		if pages != looked {
			t.Errorf("there are %d pages, want one for each of %d instances", pages, looked)
		}
	}
}
