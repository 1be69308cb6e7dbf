package db_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// migrated is a row of migrate_instances.
type migrated struct {
	id           uuid.UUID
	from, to, is string
}

func tryMigrate(ctx context.Context, q queries.DBTX, p queries.MigrateInstancesParams) ([]migrated, error) {
	p.Tenant, p.Actor = tenant, "mover"
	if p.StateMap == nil {
		p.StateMap = json.RawMessage("{}")
	}
	if p.RowLimit == 0 {
		p.RowLimit = 100
	}
	rows, err := queries.New(q).MigrateInstances(ctx, p)
	var list []migrated
	for _, r := range rows {
		list = append(list, migrated{r.ID, r.FromState, r.ToState, r.Result})
	}
	return list, err
}

func migrate(t testing.TB, q queries.DBTX, p queries.MigrateInstancesParams) []migrated {
	t.Helper()
	list, err := tryMigrate(t.Context(), q, p)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// An active instance becomes what the new version would have made of it, as far as that can be known.
func TestMigrateInstances(t *testing.T) {
	t.Parallel()
	const (
		plain = `{"on": {"go": [{"target": "B"}]}}`
		timed = `{"on": {"go": [{"target": "B"}]}, "after": {"600s": [{"target": "Z"}]}}`
	)
	define := func(ttl, a string) string {
		return `{"name": "w", "initial": "A", ` + ttl + `"states": {"A": ` + a + `, "B": {"on": {"back": [{"target": "A"}], "end": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`
	}
	const (
		hour    = `"ttl": {"after": "3600s", "target": "Z"}, `
		sliding = `"ttl": {"after": "1800s", "target": "Z", "sliding": true}, `
		slower  = `"ttl": {"after": "7200s", "target": "Z", "sliding": true}, `
	)
	const never = time.Duration(-1)
	// Created at noon, in A since a minute later, migrated five minutes after noon.
	for name, c := range map[string]struct {
		old, new, states        string
		state                   string
		changed, expires, timer time.Duration // since noon
	}{
		"nothing changes":             {define("", plain), define("", plain+" "), `{}`, "A", 1, never, never},
		"the same ttl":                {define(hour, plain), define(hour, timed), `{}`, "A", 1, 60, 11},
		"another state":               {define("", timed), define("", timed+" "), `{"A": "B"}`, "B", 5, never, never},
		"the same state anew":         {define("", timed), define("", timed+" "), `{"A": "A"}`, "A", 5, never, 15},
		"timeouts from where it was":  {define("", plain), define("", timed), `{}`, "A", 1, never, 11},
		"timeouts from now":           {define("", plain), define("", timed), `{"A": "A"}`, "A", 5, never, 15},
		"no timeout any more":         {define("", timed), define("", plain), `{}`, "A", 1, never, never},
		"no ttl any more":             {define(hour, plain), define("", plain), `{}`, "A", 1, never, never},
		"no ttl, but a timeout":       {define(hour, timed), define("", timed), `{}`, "A", 1, never, 11},
		"a ttl":                       {define("", plain), define(hour, plain), `{}`, "A", 1, 65, 65},
		"a ttl that slides":           {define("", plain), define(sliding, plain), `{}`, "A", 1, 35, 35},
		"a ttl of another length":     {define(hour, plain), define(strings.Replace(hour, "36", "18", 1), plain), `{}`, "A", 1, 60, 60},
		"slides from now on":          {define(hour, plain), define(sliding, plain), `{}`, "A", 1, 31, 31},
		"slides on":                   {define(sliding, plain), define(slower, plain), `{}`, "A", 1, 31, 31},
		"slides on, as after a step":  {define(sliding, plain), define(slower, plain), `{"A": "B"}`, "B", 5, 35, 35},
		"slides from now, with a map": {define(hour, plain), define(sliding, plain), `{"A": "B"}`, "B", 5, 35, 35},
		"slides no more":              {define(sliding, plain), define(hour, plain), `{"A": "B"}`, "B", 5, 31, 31},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			dbtest.SetClock(t, pool, noon)
			register(t, pool, c.old)
			id := *create(t, pool, tenant, creation{workflow: "w"})[0].ID
			register(t, pool, strings.Replace(c.new, `"name"`, `"description": "next", "name"`, 1))
			at := func(minutes time.Duration) time.Time { return noon.Add(minutes * time.Minute) }
			// It has been elsewhere, and is back.
			dbtest.SetClock(t, pool, at(1))
			fire(t, pool, tenant, command{id: id, event: "go"})
			fire(t, pool, tenant, command{id: id, event: "back"})
			dbtest.SetClock(t, pool, at(5))
			got := migrate(t, pool, queries.MigrateInstancesParams{Workflow: "w", FromVersion: 1, ToVersion: 2, StateMap: raw(c.states)[0]})
			if want := []migrated{{id, "A", c.state, "migrated"}}; !cmp.Equal(got, want, cmp.AllowUnexported(migrated{})) {
				t.Fatalf("got %v, want %v", got, want)
			}
			minutes := func(column string) time.Duration {
				return bounded.Value[time.Duration](t, pool, fmt.Sprintf(`
					select coalesce(extract(epoch from %s - $2::timestamptz) / 60, -1)::bigint
					from pawl.instance i left join pawl.timer t on t.instance_id = i.id where i.id = $1`, column), id, noon)
			}
			if state := bounded.Value[string](t, pool, "select format('%s %s %s %s', state, status, workflow_version, version) from pawl.instance where id = $1", id); state != c.state+" active 2 4" {
				t.Errorf("it is %s", state)
			}
			for column, want := range map[string]time.Duration{"i.state_changed_at": c.changed, "i.expires_at": c.expires, "t.due_at": c.timer} {
				if got := minutes(column); got != want {
					t.Errorf("%s is %d minutes after noon, want %d", column, got, want)
				}
			}
			step := bounded.Value[string](t, pool, `
				select format('%s %s %s %s %s %s %s', h.kind, h.event is null, h.from_state, h.to_state, h.workflow_version, h.actor,
					h.at = $2 and h.context = i.context and h.expires_at is not distinct from i.expires_at)
				from pawl.history h join pawl.instance i on i.id = h.instance_id where i.id = $1 and h.version = 4`, id, at(5))
			if want := "migrated t A " + c.state + " 2 mover t"; step != want {
				t.Errorf("the step is %s, want %s", step, want)
			}
		})
	}
}

// The rows say what became of each instance, in the order of ids, page by page.
func TestMigrateInstancesByPage(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 6)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	fire(t, pool, tenant, command{id: ids[1], event: "open"})
	fire(t, pool, tenant, command{id: ids[2], event: "open"}, command{id: ids[3], event: "open"})
	fire(t, pool, tenant, command{id: ids[2], event: "remove"})
	create(t, pool, "acme", creation{workflow: "door"})
	// OPEN is final now.
	register(t, pool, `{"name": "door", "initial": "CLOSED", "states": {
		"CLOSED": {"on": {"open": [{"target": "OPEN"}], "hide": [{"target": "HIDDEN"}]}},
		"HIDDEN": {"on": {"show": [{"target": "CLOSED"}]}}, "OPEN": {"type": "final"}}}`)
	tx := begin(t, pool)
	fire(t, tx, tenant, command{id: ids[4], event: "open"})

	p := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2, RowLimit: 3}
	want := func(p queries.MigrateInstancesParams, want ...migrated) {
		t.Helper()
		if diff := cmp.Diff(want, migrate(t, pool, p), cmp.AllowUnexported(migrated{})); diff != "" {
			t.Error(diff)
		}
	}
	filtered := p
	filtered.States, filtered.Ids = []string{"OPEN"}, []uuid.UUID{ids[3], ids[3], ids[0], uuid.New()}
	want(filtered, migrated{ids[3], "OPEN", "OPEN", "state-final"})
	want(p,
		migrated{ids[0], "CLOSED", "CLOSED", "migrated"},
		migrated{ids[1], "OPEN", "OPEN", "state-final"},
		migrated{ids[3], "OPEN", "OPEN", "state-final"})
	p.After = &ids[3]
	want(p, migrated{ids[4], "CLOSED", "", "busy"}, migrated{ids[5], "CLOSED", "CLOSED", "migrated"})
	commit(t, tx)
	p.After, p.StateMap = nil, json.RawMessage(`{"OPEN": "HIDDEN"}`)
	want(p,
		migrated{ids[1], "OPEN", "HIDDEN", "migrated"},
		migrated{ids[3], "OPEN", "HIDDEN", "migrated"},
		migrated{ids[4], "OPEN", "HIDDEN", "migrated"})
	want(p)
	// The finished stay, and so do those of others.
	if got := bounded.Value[string](t, pool, `
		select string_agg(concat_ws(' ', tenant_id, state, workflow_version), ', ' order by id) from pawl.instance
		where id = $1 or tenant_id <> $2`, ids[2], tenant); got != "default GONE 1, acme CLOSED 1" {
		t.Errorf("the others are %s", got)
	}
	if got := bounded.Value[string](t, pool, "select format('%s %s', moved, finished_at is not null) from pawl.instance_migration"); got != "5 t" {
		t.Errorf("the migration is %s", got)
	}
}

func TestMigrationFaults(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, ajar)
	before := bounded.Value[string](t, pool, "select jsonb_agg(h)::text from pawl.history h")
	for name, c := range map[string]struct {
		p            queries.MigrateInstancesParams
		code, detail string
	}{
		"no such workflow": {queries.MigrateInstancesParams{Workflow: "gate", FromVersion: 1, ToVersion: 2}, "PW40W", `{"code": "workflow-not-found"}`},
		"no such version":  {queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 3}, "PW40W", `{"code": "workflow-not-found"}`},
		"from nowhere":     {queries.MigrateInstancesParams{Workflow: "door", FromVersion: 3, ToVersion: 1}, "PW40W", `{"code": "workflow-not-found"}`},
		"nowhere to": {
			queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 1},
			"PW400",
			`{"code": "malformed-request", "errors": [{"pointer": "/to", "detail": "is the version that the instances have"}]}`,
		},
		"no map": {
			queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2, StateMap: json.RawMessage("[1]")},
			"PW400",
			`{"code": "malformed-request", "errors": [{"pointer": "/state_map", "detail": "must be an object"}]}`,
		},
		"all at once": {
			queries.MigrateInstancesParams{
				Workflow: "door", FromVersion: 1, ToVersion: 2, States: []string{"OPEN", "AJAR"},
				StateMap: json.RawMessage(`{"OPEN": "NOWHERE", "AJAR": "AJAR", "CLOSED": "GONE", "a/b~c": "AJAR", "GONE": null}`),
			},
			"PW400",
			`{"code": "malformed-request", "errors": [
				{"pointer": "/filter/states/1", "detail": "version 1 has no state AJAR"},
				{"pointer": "/state_map/AJAR", "detail": "version 1 has no state AJAR"},
				{"pointer": "/state_map/CLOSED", "detail": "GONE is final in version 2: only an event may end an instance"},
				{"pointer": "/state_map/GONE", "detail": "must be the name of a state"},
				{"pointer": "/state_map/OPEN", "detail": "version 2 has no state NOWHERE"},
				{"pointer": "/state_map/a~1b~0c", "detail": "version 1 has no state a/b~c"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tryMigrate(t.Context(), pool, c.p)
			pgErr := wantCode(t, err, c.code)
			var got, want any
			if err := json.Unmarshal([]byte(pgErr.Detail), &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(c.detail), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if after := bounded.Value[string](t, pool, "select jsonb_agg(h)::text from pawl.history h"); after != before {
		t.Errorf("a refusal left %s", after)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance_migration"); n != 0 {
		t.Errorf("a refusal left %d migrations", n)
	}
}

// While instances are moved in one direction, none are moved in another.
func TestMigrationsDoNotPlayPingPong(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	register(t, pool, ajar)
	register(t, pool, strings.Replace(door, "GONE", "LOST", -1))
	dbtest.SetClock(t, pool, noon)
	there := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2, RowLimit: 1}
	back := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 2, ToVersion: 1}
	refused := func(p queries.MigrateInstancesParams) {
		t.Helper()
		_, err := tryMigrate(t.Context(), pool, p)
		if pgErr := wantCode(t, err, "PW40V"); pgErr.Detail != `{"code": "workflow-conflict"}` {
			t.Errorf("detail = %s", pgErr.Detail)
		}
	}
	migrate(t, pool, there)
	refused(back)
	refused(queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 3})
	// To look costs nothing, and another tenant's are others.
	dry := back
	dry.DryRun = true
	if got := migrate(t, pool, dry); len(got) != 1 || got[0].id != ids[0] || got[0].is != "would-migrate" {
		t.Errorf("dry run: %v", got)
	}
	if _, err := queries.New(pool).MigrateInstances(t.Context(), queries.MigrateInstancesParams{
		Tenant: "acme", Workflow: "door", FromVersion: 2, ToVersion: 1, StateMap: json.RawMessage("{}"), RowLimit: 1, Actor: "a",
	}); err != nil {
		t.Error(err)
	}

	// The same direction goes on, and ends with a page that is not full.
	dbtest.Advance(t, pool, 59*time.Second)
	migrate(t, pool, there)
	refused(back)
	migrate(t, pool, there)
	if got := migrate(t, pool, back); len(got) != 2 {
		t.Errorf("back: %v", got)
	}
	// One that was broken off is given up after a minute.
	migrate(t, pool, there)
	dbtest.Advance(t, pool, time.Minute-time.Microsecond)
	refused(back)
	dbtest.Advance(t, pool, time.Microsecond)
	if got := migrate(t, pool, back); len(got) != 1 {
		t.Errorf("back: %v", got)
	}
	if got := bounded.Value[string](t, pool, `
		select string_agg(format('%s to %s: %s', from_version, to_version, moved), ', ' order by from_version)
		from pawl.instance_migration where tenant_id = $1 and finished_at is not null`, tenant); got != "1 to 2: 3, 2 to 1: 3" {
		t.Errorf("migrations: %s", got)
	}
}

// Of two that begin at once, one is told to wait for the other.
func TestOppositeMigrationsAtOnce(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, ajar)
	there := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2, RowLimit: 1}
	back := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 2, ToVersion: 1, RowLimit: 1}
	tx := begin(t, pool)
	if _, err := tryMigrate(t.Context(), tx, there); err != nil {
		t.Fatal(err)
	}
	second := start(t, pool, func(q queries.DBTX) ([]migrated, error) {
		return tryMigrate(bounded.Context(t), q, back)
	})
	second.awaitBlocked(t, pool)
	commit(t, tx)
	second.end(t)
	wantCode(t, second.err, "PW40V")
}

// A version that instances are moved to is not retired under them, nor does anybody wait for ever.
func TestRetireAndMigrateAtOnce(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, ajar)
	sum := checksum(t, pool, 2)
	there := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2}
	tx := begin(t, pool)
	if _, err := tryMigrate(t.Context(), tx, there); err != nil {
		t.Fatal(err)
	}
	_, err := retire(t.Context(), pool, sum)
	wantCode(t, err, "55P03")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx = begin(t, pool)
	if retired, err := retire(t.Context(), tx, sum); err != nil || !retired {
		t.Fatal(retired, err)
	}
	second := start(t, pool, func(q queries.DBTX) ([]migrated, error) {
		return tryMigrate(bounded.Context(t), q, there)
	})
	second.awaitBlocked(t, pool)
	commit(t, tx)
	second.end(t)
	wantCode(t, second.err, "PW40W")
}

// A migration that was broken off does not outlive its versions.
func TestRetireEndsMigrations(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, ajar)
	register(t, pool, strings.Replace(door, "GONE", "LOST", -1))
	migrate(t, pool, queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2, RowLimit: 1})
	if retired, err := retire(t.Context(), pool, checksum(t, pool, 1)); err != nil || !retired {
		t.Fatal(retired, err)
	}
	if got := migrate(t, pool, queries.MigrateInstancesParams{Workflow: "door", FromVersion: 2, ToVersion: 3}); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// A page is read by the index, in its order, however many instances of other versions come before and after.
func TestMigrationReadsPages(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	bounded.Exec(t, pool, "alter table pawl.instance set (autovacuum_enabled = off)")
	register(t, pool, ajar)
	bounded.Exec(t, pool, `
		insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'default', pawl_private.uuid_v7(now() + n * interval '1 ms'), 'door', 1, 'CLOSED', 'active', 1, '{}', now(), now()
		from generate_series(1, 5000) n`)
	conn := connect(t, pool)
	p := queries.MigrateInstancesParams{Workflow: "door", FromVersion: 1, ToVersion: 2, RowLimit: 10, DryRun: true}
	for range 20 { // The plan becomes generic after a few.
		bounded.Exec(t, conn, "select pg_stat_force_next_flush()") // So that the counts begin anew.
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows := migrate(t, tx, p)
		read := bounded.Value[string](t, tx, "select format('%s %s', seq_scan, idx_tup_fetch) from pg_stat_xact_user_tables where relname = 'instance'")
		commit(t, tx)
		if len(rows) != 10 || read != "0 20" {
			t.Errorf("%d rows; read by scan and by index: %s, want 0 20", len(rows), read)
		}
		p.After = &rows[9].id
	}
}
