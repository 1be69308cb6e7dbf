package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/insight"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// folded folds all steps.
func (a *api) folded() {
	a.t.Helper()
	// A renewal that was still under way when the last folder ended may have come later. Where the clock stands, its
	// lease has no end.
	bounded.Exec(a.t, a.pool, "update pawl.consumer set lease_until = '-infinity' where name = 'insight'")
	folder := bounded.Run(a.t, "the folder", insight.NewFolder(a.pool, insight.FolderConfig{Poll: time.Millisecond}).Run)
	dbtest.Number(a.t, a.pool)
	bounded.UntilSQL(a.t, a.pool, "select exists (select from pawl.consumer c, pawl.log_head h where c.name = 'insight' and c.position = h.position)")
	folder()
}

func TestStats(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	stats := "/v1/workflows/parcel/stats"
	a.get(stats).want(http.StatusOK).wantAt("as_of", "null", "states", "[]", "idempotency.new", "0", "tasks_complete", "true")
	for range 3 {
		a.create("parcel", `{"context": {"sku": "A"}}`)
	}
	claim := a.claim(2, 2)
	a.says(claim, 0, "complete", `, "result": {"parcel": "P"}`).want(http.StatusOK)
	a.says(claim, 1, "fail", `, "error": "no paper", "retryable": false`).want(http.StatusOK)
	a.folded()
	a.get(stats).want(http.StatusOK).wantAt("workflow", "parcel", "instances.0.state", "BROKEN", "instances.0.status", "failed",
		"states.0.state", "PACKING", "states.0.visits", "2", "states.0.drop_off", "0.5", "edges.0.from", "null", "edges.0.event", "null",
		"hotspots.0.share", "1", "hotspots.0.slowdown", "null", "tasks.0.topic", "pack", "tasks.0.connection", "null", "tasks.0.tasks", "3",
		"tasks.0.open", "1", "tasks.0.error_rate", "0.5", "tasks.0.unknown_rate", "0")
	byVersion := a.get(stats + "?by=version").want(http.StatusOK)
	byVersion.wantAt("instances.0.version", "1", "states.0.version", "1", "edges.0.version", "1")
	today := byVersion.at("to")
	a.get(stats+"?by=day").want(http.StatusOK).wantAt("states.0.day", today)
	a.get(stats+"?from=2026-03-01&to=2026-03-02T10:00:00Z").want(http.StatusOK).wantAt("from", "2026-03-01", "to", "2026-03-02", "states", "[]")
	for query, parameter := range map[string]string{
		"from=yesterday": "from", "to=2026-02-30": "to", "from=2026-03-02&to=2026-03-01": "from", "from=2023-01-01&to=2026-03-01": "from", "by=hour": "by",
		"since=1": "since", "from=2026-03-01&from=2026-03-01": "from",
	} {
		a.get(stats+"?"+query).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", parameter)
	}
	a.get("/v1/workflows/parcle/stats").want(http.StatusNotFound, "workflow-not-found")
}

func TestForecast(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{"context": {"sku": "A"}}`)
	forecast := "/v1/instances/" + id + "/forecast"
	a.get(forecast).want(http.StatusConflict, "too-few-samples")
	bounded.Exec(t, a.pool, `do $$ begin
		for i in 1..30 loop perform pawl.fire_one((pawl.create_one('parcel', '{"sku": "B"}')).id, 'abort'); end loop;
	end $$`)
	a.folded()
	a.get(forecast).want(http.StatusOK).wantAt("state", "PACKING", "sample", "30", "next.0.state", "ABORTED", "next.0.chance", "1", "outcomes", "[]", "p50", "null")
	a.fire(id, "abort", `{}`).want(http.StatusOK)
	a.fire(id, "end", `{}`).want(http.StatusOK)
	a.get(forecast).want(http.StatusConflict, "instance-final")
	a.get("/v1/instances/0195a302-6b1d-7c52-9e0f-4a5b6c7d8e9f/forecast").want(http.StatusNotFound, "instance-not-found")
}

// There is no forecast for a state that nobody has left, however many instances have been elsewhere, and none that passes
// through one.
func TestForecastOfAStateNobodyWasIn(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(`{"name": "rare", "initial": "USUAL", "states": {"USUAL": {"on": {"end": "DONE", "stray": "RARE"}}, "RARE": {"on": {"end": "DONE"}}, "DONE": {"type": "final"}}}`)
	bounded.Exec(t, a.pool, `do $$ begin
		for i in 1..40 loop perform pawl.fire_one((pawl.create_one('rare')).id, 'end'); end loop;
	end $$`)
	usual, rare := a.create("rare", ""), a.create("rare", "")
	a.fire(rare, "stray", "").want(http.StatusOK)
	a.folded()
	a.get("/v1/instances/"+rare+"/forecast").want(http.StatusConflict, "too-few-samples").wantAt("detail", "0 visits of the state RARE have ended in the last 90 days, and a forecast needs 30")
	a.get("/v1/instances/"+usual+"/forecast").want(http.StatusOK).wantAt("sample", "41", "next.0.state", "DONE", "next.1.state", "RARE")
}

// When all instances are stuck at once, each has its finding, the lists have all of them, and there is a way out.
func TestEverythingIsStuck(t *testing.T) {
	t.Parallel()
	a := start(t)
	const n = 230
	a.register(`{"name": "sunk", "initial": "SUNK", "states": {"SUNK": {"always": [{"guard": "$.context.never == 1", "target": "DONE"}]}, "DONE": {"type": "final"}}}`)
	dbtest.SetClock(t, a.pool, at("2026-03-01T09:00:00Z"))
	ids := bounded.Column[string](t, a.pool, "select (pawl.create_one('sunk')).id::text from generate_series(1, $1)", n)
	a.folded()
	dbtest.Advance(t, a.pool, time.Hour)
	bounded.UntilSQL(t, a.pool, "select not more from pawl.finding_look(50, '0 s')")
	a.get("/v1/findings?open=true").want(http.StatusOK).wantAt("items.0.kind", "orphaned", "items.0.state", "SUNK", "items.0.since", "2026-03-01T09:00:00.000000Z")
	found := a.pages("/v1/findings?open=true&workflow=sunk", "instance_id", nil)
	slices.Sort(found)
	slices.Sort(ids)
	if !slices.Equal(found, ids) {
		t.Errorf("%d findings, want one for each of %d instances", len(found), n)
	}
	if listed := a.pages("/v1/instances?workflow=sunk&state=SUNK&stuck_for=1h", "id", nil); len(listed) != n {
		t.Errorf("%d instances are listed, want %d", len(listed), n)
	}
	a.get("/v1/workflows/sunk/stats").want(http.StatusOK).wantAt("instances.0.state", "SUNK", "instances.0.instances", fmt.Sprint(n), "states", "[]", "hotspots", "[]")
	a.get("/v1/instances/"+ids[0]+"/forecast").want(http.StatusConflict, "too-few-samples")
	a.post("/v1/instances/"+ids[0]+"/override", newKey(), `{"to": "DONE", "reason": "raised by hand"}`, "If-Match", `"1"`).want(http.StatusOK)
	a.folded()
	a.get("/v1/findings?instance_id="+ids[0]).want(http.StatusOK).wantAt("items.0.closed_at", "2026-03-01T10:00:00.000000Z", "items.1", missing)
	if open := a.pages("/v1/findings?open=true&limit=100", "instance_id", nil); len(open) != n-1 {
		t.Errorf("%d findings are open, want %d", len(open), n-1)
	}
}
