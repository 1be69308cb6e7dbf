package httpapi_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
)

// pages follows Link from page to page and returns the values at a path of all items. It calls
// between after each page.
func (a *api) pages(target, path string, between func()) (values []string) {
	a.t.Helper()
	for page := 0; target != ""; page++ {
		r := a.get(target).want(http.StatusOK)
		values = append(values, r.each("items", path)...)
		link, cursor := r.header.Get("Link"), r.at("next_cursor")
		if cursor == "null" {
			r.wantHeader("Link", "")
			return values
		}
		next, ok := strings.CutPrefix(link, "<")
		next, rel, _ := strings.Cut(next, ">")
		u, err := url.Parse(next)
		if !ok || err != nil || rel != `; rel="next"` || u.Query().Get("cursor") != cursor {
			a.t.Fatalf("Link is %q, next_cursor is %q", link, cursor)
		}
		first, _ := url.Parse(target)
		for name, value := range first.Query() {
			if name != "cursor" && !slices.Equal(u.Query()[name], value) {
				a.t.Fatalf("Link %q does not keep %s=%s", link, name, value)
			}
		}
		if u.Path != first.Path || page > 1000 {
			a.t.Fatalf("Link is %q after %d pages of %s", link, page, target)
		}
		target = next
		if between != nil {
			between()
		}
	}
	return values
}

// Rows that existed when the first page was read appear exactly once under concurrent inserts.
func TestPagesUnderInserts(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	const n = 25
	var ids []string
	for range n {
		ids = append(ids, a.create("counter", ""))
	}
	slices.Reverse(ids)
	add := func() { a.create("counter", "") }
	for _, target := range []string{
		"/v1/instances?limit=4", "/v1/instances?limit=1&state=ON&created_after=2020-01-01T00:00:00%2B01:00",
		"/v1/workflows/counter/instances?limit=25", "/v1/instances?limit=24&workflow=counter",
	} {
		got := slices.DeleteFunc(a.pages(target, "id", add), func(id string) bool { return !slices.Contains(ids, id) })
		if !slices.Equal(got, ids) {
			t.Errorf("%s: got %v\nwant %v", target, got, ids)
		}
	}

	var names []string
	for i := range 6 {
		names = append(names, fmt.Sprintf("w-%d", i))
		a.register(fmt.Sprintf(`{"name": "w-%d", "initial": "A", "states": {"A": {"on": {"go": "B"}}, "B": {"type": "final"}}}`, i))
	}
	names = append([]string{"counter"}, names...)
	if got := a.pages("/v1/workflows?limit=2", "name", nil); !slices.Equal(got, names) {
		t.Errorf("got the workflows %v, want %v", got, names)
	}

	id := a.create("counter", `{"context": {"sum": 0}}`)
	step := func() { a.fire(id, "add", `{"payload": {"by": 1}}`) }
	step()
	step()
	calls := 0
	got := a.pages("/v1/instances/"+id+"/history?limit=2", "version", func() {
		if calls++; calls < 4 {
			step()
		}
	})
	// How many of the new steps appear depends on where the pages end.
	if want := []string{"1", "2", "3", "4", "5", "6"}; len(got) < 3 || !slices.Equal(got, want[:len(got)]) {
		t.Errorf("got the steps %v, want %v", got, want)
	}
}

// The default limit is 50, and larger limits than 200 are reduced to it.
func TestLimits(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	for batch := range 3 {
		var commands []map[string]any
		for range 70 {
			commands = append(commands, command("create", "workflow", "counter", "correlation_id", fmt.Sprint("batch-", batch)))
		}
		a.batch(commands...)
	}
	for query, want := range map[string]int{"": 50, "?limit=1": 1, "?limit=200": 200, "?limit=201": 200, "?limit=1000000": 200} {
		r := a.get("/v1/instances" + query).want(http.StatusOK)
		if got := len(r.each("items", "id")); got != want || r.at("next_cursor") == "null" {
			t.Errorf("limit %q: got %d items and %s, want %d", query, got, r.at("next_cursor"), want)
		}
	}
	r := a.get("/v1/instances?limit=70&correlation_id=batch-1").want(http.StatusOK)
	if got := len(r.each("items", "id")); got != 70 || r.at("next_cursor") != "null" {
		t.Errorf("a page that is just full: got %d items and %s", got, r.at("next_cursor"))
	}
}

// A cursor is valid only for its list, its filters and its tenant, and cannot be forged.
func TestCursors(t *testing.T) {
	t.Parallel()
	a := start(t)
	other := a.another(setup{http: httpapi.Config{Tenant: "other"}})
	a.register(counter)
	a.register(booking)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	second := a.create("counter", `{"context": {"sum": 0}}`)
	for _, i := range []string{id, second} {
		a.fire(i, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	}
	cursor := a.get("/v1/instances?limit=1&state=ON").at("next_cursor")
	use := func(target string) answer {
		return a.get(target + "limit=1&cursor=" + url.QueryEscape(cursor))
	}
	use("/v1/instances?state=ON&").want(http.StatusOK)
	a.get("/v1/instances?state=ON&limit=7&cursor=" + cursor).want(http.StatusOK) // The limit may differ from page to page.
	for _, elsewhere := range []string{
		"/v1/instances?", "/v1/instances?state=OFF&", "/v1/instances?state=ON&state=OFF&", "/v1/instances?state=ON&sort=created_at&",
		"/v1/instances?state=ON&timer=failing&", "/v1/instances?state=ON&status=active&", "/v1/instances?state=ON&workflow=counter&",
		"/v1/instances?state=ON&stuck_for=1s&", "/v1/instances?state=ON&created_after=2020-01-01T00:00:00Z&", "/v1/instances?business_key=ON&",
		"/v1/workflows/counter/instances?state=ON&", "/v1/workflows?", "/v1/instances/" + id + "/history?",
	} {
		use(elsewhere).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "cursor")
	}
	other.get("/v1/instances?state=ON&limit=1&cursor="+cursor).want(http.StatusBadRequest, "malformed-request")

	sealed, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed { // A change of any byte is detected.
		forged := slices.Clone(sealed)
		forged[i] ^= 1
		cursor = base64.RawURLEncoding.EncodeToString(forged)
		use("/v1/instances?state=ON&").want(http.StatusBadRequest, "malformed-request")
	}
	whole := base64.RawURLEncoding.EncodeToString(sealed)
	for _, cursor = range []string{whole + "A", whole[:len(whole)-1], whole + "=", " " + whole, id, "x", whole[:22], strings.Repeat("x", 10000)} {
		use("/v1/instances?state=ON&").want(http.StatusBadRequest, "malformed-request")
	}

	cursor = a.get("/v1/instances/" + id + "/history?limit=1").at("next_cursor")
	use("/v1/instances/"+id+"/history?").want(http.StatusOK).wantAt("items.0.version", "2")
	use("/v1/instances/"+second+"/history?").want(http.StatusBadRequest, "malformed-request")
	use("/v1/workflows?").want(http.StatusBadRequest, "malformed-request")
	cursor = a.get("/v1/workflows?limit=1").at("next_cursor")
	use("/v1/workflows?").want(http.StatusOK).wantAt("items.0.name", "counter", "next_cursor", "null")
	// Every replica accepts the cursor.
	a.another(setup{}).get("/v1/workflows?limit=1&cursor="+cursor).want(http.StatusOK).wantAt("items.0.name", "counter")
}

// Instances are found by what their context holds, and a bad condition is told by its parameter.
func TestWhere(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(strings.Replace(counter, `"name": "counter"`, `"name": "counter", "search": {"sum": "$.context.sum"}`, 1))
	a.register(booking)
	for n := range 3 {
		a.create("counter", fmt.Sprintf(`{"context": {"sum": %d}}`, n))
	}
	r := a.get("/v1/workflows/counter/instances?where=sum%3E=1&where=sum%3C2").want(http.StatusOK).wantAt("incomplete", "false", "items.1", missing)
	r.wantAt("items.0.context.sum", "1")
	a.get("/v1/instances?workflow=counter&where=sum=7").want(http.StatusOK).wantAt("items.0", missing, "next_cursor", "null")
	for _, target := range []string{
		"/v1/instances?where=sum=1", "/v1/instances?workflow=counter&workflow=booking&where=sum=1", "/v1/instances?workflow=booking&where=sum=1",
		"/v1/instances?workflow=counter&where=som=1", "/v1/instances?workflow=counter&where=sum", "/v1/instances?workflow=counter&where=",
		"/v1/instances?workflow=counter&where=sum=1&business_key=b",
	} {
		a.get(target).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "where")
	}
	a.do(http.MethodPost, "/v1/workflows/counter/reindex", "").want(http.StatusOK).wantAt("complete", "true")
	a.do(http.MethodPost, "/v1/workflows/nothing/reindex", "").want(http.StatusNotFound, "workflow-not-found")
}

func TestFilters(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	a.register(booking)
	dbtest.SetClock(t, a.pool, at("2026-03-01T09:00:00Z"))
	one := a.create("counter", `{"context": {"sum": 0}, "business_key": "k&1", "correlation_id": "c"}`)
	dbtest.Advance(t, a.pool, time.Millisecond)
	two := a.create("counter", `{"context": {"sum": 0}, "business_key": "2"}`, "X-Correlation-ID", "c")
	dbtest.Advance(t, a.pool, time.Hour)
	three := a.create("booking", `{"context": {"price": 1}, "business_key": "2", "correlation_id": "d"}`)
	dbtest.Advance(t, a.pool, time.Hour)
	four := a.create("counter", `{"context": {"sum": 0}}`)
	a.fire(one, "stop", "").want(http.StatusOK)
	a.fire(two, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	dbtest.Advance(t, a.pool, 10*time.Minute) // Now it is 11:10.

	for query, want := range map[string][]string{
		"/v1/instances":                                                                                      {four, three, two, one},
		"/v1/instances?workflow=counter":                                                                     {four, two, one},
		"/v1/instances?workflow=counter&workflow=booking":                                                    {four, three, two, one},
		"/v1/instances?workflow=counter&sort=created_at":                                                     {one, two, four},
		"/v1/instances?sort=-created_at":                                                                     {four, three, two, one},
		"/v1/instances?sort=state_changed_at":                                                                {three, one, two, four},
		"/v1/instances?sort=-state_changed_at&status=active":                                                 {four, two, three},
		"/v1/instances?timer=failing":                                                                        {},
		"/v1/workflows/counter/instances":                                                                    {four, two, one},
		"/v1/workflows/booking/instances":                                                                    {three},
		"/v1/instances?state=ON":                                                                             {four, two},
		"/v1/instances?state=QUOTED&state=OFF&state=QUOTED":                                                  {three, one},
		"/v1/instances?state=QUOTED":                                                                         {three},
		"/v1/instances?status=active":                                                                        {four, three, two},
		"/v1/instances?status=completed":                                                                     {one},
		"/v1/instances?status=completed&status=active&workflow=counter":                                      {four, two, one},
		"/v1/instances?status=failed":                                                                        {},
		"/v1/instances?business_key=2":                                                                       {three, two},
		"/v1/instances?business_key=k%261":                                                                   {one},
		"/v1/workflows/counter/instances?business_key=2":                                                     {two},
		"/v1/instances?correlation_id=c":                                                                     {two, one},
		"/v1/instances?correlation_id=c&state=OFF":                                                           {one},
		"/v1/instances?created_after=2026-03-01T09:00:00Z":                                                   {four, three, two},
		"/v1/instances?created_after=2026-03-01T08:59:59.999999Z":                                            {four, three, two, one},
		"/v1/instances?created_before=2026-03-01T09:00:00Z":                                                  {},
		"/v1/instances?created_before=2026-03-01T09:00:00.000001Z":                                           {one},
		"/v1/instances?created_before=2026-03-01T09:00:00.001Z":                                              {one},
		"/v1/instances?created_before=2026-03-01T11:00:00%2B01:00":                                           {two, one},
		"/v1/instances?created_after=2026-03-01T09:00:00Z&created_before=2026-03-01T11:00:00Z":               {three, two},
		"/v1/instances?created_after=1960-01-01T00:00:00Z":                                                   {four, three, two, one},
		"/v1/instances?created_after=9999-12-31T23:59:59Z":                                                   {},
		"/v1/instances?created_before=1960-01-01T00:00:00Z":                                                  {},
		"/v1/instances?created_before=0001-01-01T00:00:00Z":                                                  {},
		"/v1/instances?created_after=0001-01-01T00:00:00Z":                                                   {four, three, two, one},
		"/v1/instances?stuck_for=10m":                                                                        {four, three, two},
		"/v1/instances?stuck_for=10m1ms":                                                                     {three},
		"/v1/instances?stuck_for=1h":                                                                         {three},
		"/v1/workflows/counter/instances?state=ON&sort=created_at":                                           {two, four},
		"/v1/instances?stuck_for=1h10m1s":                                                                    {},
		"/v1/instances?workflow=counter&state=ON&status=active&business_key=2&correlation_id=c&stuck_for=5m": {two},
	} {
		r := a.get(query).want(http.StatusOK).wantAt("as_of", "2026-03-01T11:10:00.001000Z")
		if got := r.each("items", "id"); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", query, got, want)
		}
	}
}
