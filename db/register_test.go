package db_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// ajar is door's next version: it has one state more, and lacks one.
var ajar = strings.NewReplacer(`"OPEN"`, `"AJAR"`).Replace(door)

// The database refuses a state that the definition does not have, whoever writes it.
func TestStateCheck(t *testing.T) {
	t.Parallel()
	pool, old := withDoors(t, 1)
	set := func(sql string, args ...any) error {
		_, err := pool.Exec(t.Context(), sql, args...) // as the owner
		return err
	}
	check := func(err error, constraint string) {
		t.Helper()
		if pgErr := wantCode(t, err, "23514"); pgErr.ConstraintName != constraint {
			t.Errorf("refused by %s, want %s", pgErr.ConstraintName, constraint)
		}
	}
	const move = "update pawl.instance set state = $2 where id = $1"
	check(set(move, old[0], "NOWHERE"), "instance_state_is_declared")
	check(set(move, old[0], "AJAR"), "instance_state_is_declared")

	if version, created := register(t, pool, ajar); version != 2 || !created {
		t.Fatalf("registered version %d, new: %v", version, created)
	}
	young := doors(t, pool, 1)
	check(set(move, old[0], "AJAR"), "instance_state_is_declared")
	check(set(move, young[0], "OPEN"), "instance_state_is_declared")
	check(set("update pawl.instance set workflow_version = 3"), "instance_state_is_declared")
	if err := set(move, young[0], "AJAR"); err != nil {
		t.Error(err)
	}

	// An instance stays on its version.
	if o := fire(t, pool, tenant, command{id: old[0], event: "open"})[0]; *o.State != "OPEN" || *o.WorkflowVersion != 1 {
		t.Errorf("the old door is %s, of version %d", *o.State, *o.WorkflowVersion)
	}

	// Another workflow's states are no matter, even if the name is nearly the same.
	for _, name := range []string{"front-door", "front_door"} {
		register(t, pool, strings.Replace(strings.Replace(door, `"door"`, `"`+name+`"`, 1), "CLOSED", "SHUT_"+name[5:6], -1))
	}
	for _, name := range []string{"front-door", "front_door"} {
		id := create(t, pool, tenant, creation{workflow: name})[0].ID
		check(set(move, id, "CLOSED"), "instance_state_is_declared")
	}
}

// The hash of a state spares the look-up, and proves nothing else: neither another state's nor that of
// another version or workflow is taken for the state's own.
func TestStateHash(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	register(t, pool, ajar)
	register(t, pool, strings.Replace(strings.Replace(door, `"door"`, `"gate"`, 1), `"GONE"`, `"LOST"`, -1))
	bounded.Exec(t, pool, "update pawl.instance set state_hash = null, state = 'OPEN'") // By hand, which costs a look-up.
	for _, hash := range []string{
		"select state_hash from pawl.workflow_state where workflow = 'door' and workflow_version = 1 and state = 'GONE'",
		"select state_hash from pawl.workflow_state where workflow = 'door' and workflow_version = 2 and state = 'AJAR'",
		"select state_hash from pawl.workflow_state where workflow = 'gate' and state = 'LOST'",
		"select 0",
	} {
		_, err := pool.Exec(t.Context(), "update pawl.instance set state = 'LOST', state_hash = ("+hash+")")
		if pgErr := wantCode(t, err, "23514"); pgErr.ConstraintName != "instance_state_is_declared" {
			t.Errorf("refused by %s", pgErr.ConstraintName)
		}
	}
	// The engine writes the hash that goes with the state.
	fire(t, pool, tenant, command{id: ids[0], event: "close"})
	if n := bounded.Value[int](t, pool, `
		select count(*) from pawl.instance i
		join pawl.workflow_state s on (s.workflow, s.workflow_version, s.state) = (i.workflow, i.workflow_version, i.state)
		where i.state_hash = s.state_hash`); n != 1 {
		t.Errorf("%d instances have the hash of their state, want 1", n)
	}
}

// However many workflows there are, the table has one CHECK on states, and registering waits for nobody who
// works on instances.
func TestRegisterHindersNobody(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	tx := begin(t, pool)
	bounded.Exec(t, tx, "lock table pawl.instance in access exclusive mode")
	if version, created := register(t, pool, ajar); version != 2 || !created {
		t.Errorf("registered version %d, new: %v", version, created)
	}
	commit(t, tx)
	if n := bounded.Value[int](t, pool, `
		select count(*) from pg_constraint where conrelid = 'pawl.instance'::regclass and contype = 'c'
			and pg_get_constraintdef(oid) like '%state%' and conname <> 'instance_state_changed_after_creation'`); n != 1 {
		t.Errorf("%d CHECKs look at the state, want 1", n)
	}
}

func TestRegisterAgain(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, flight)
	const all = `
		select jsonb_build_array((select jsonb_agg(w) from pawl.workflow w), (select jsonb_agg(s) from pawl.workflow_state s),
			(select count(*) from pawl.workflow_transition),
			(select jsonb_agg(pg_get_constraintdef(oid) order by conname) from pg_constraint where conrelid = 'pawl.instance'::regclass))::text`
	before := bounded.Value[string](t, pool, all)
	// The order of members and the spaces are no content.
	var definition map[string]any
	if err := json.Unmarshal([]byte(flight), &definition); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{flight, asJSON(t, definition)} {
		if version, created := register(t, pool, text); version != 1 || created {
			t.Errorf("registered version %d, new: %v", version, created)
		}
	}
	if after := bounded.Value[string](t, pool, all); after != before {
		t.Errorf("the same content again left\n%s, want\n%s", after, before)
	}
	// Only the latest counts: going back is a step forward.
	const other = `{"name": "flight-booking", "initial": "A", "states": {"A": {"type": "final"}}}`
	for i, text := range []string{other, flight, flight} {
		if version, created := register(t, pool, text); version != int32(min(i+2, 3)) || created != (i < 2) {
			t.Errorf("registered version %d, new: %v", version, created)
		}
	}
}

func TestRegisterANamedVersion(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	try := func(definition string, version int32) error {
		_, err := queries.New(pool).RegisterWorkflow(t.Context(), queries.RegisterWorkflowParams{
			Definition: json.RawMessage(definition), Actor: "a", Version: &version,
		})
		return err
	}
	conflict := func(err error, latest int) {
		t.Helper()
		pgErr := wantCode(t, err, "PW40V")
		if want := fmt.Sprintf(`{"code": "workflow-conflict", "version": %d}`, latest); pgErr.Detail != want {
			t.Errorf("detail = %s, want %s", pgErr.Detail, want)
		}
	}
	conflict(try(door, 2), 0)
	for range 2 {
		if err := try(door, 1); err != nil {
			t.Error(err)
		}
	}
	conflict(try(door, 2), 1)
	conflict(try(ajar, 1), 1)
	conflict(try(ajar, 3), 1)
	if err := try(ajar, 2); err != nil {
		t.Error(err)
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.workflow"); got != 2 {
		t.Errorf("there are %d versions, want 2", got)
	}
}

// A definition that pawl did not make canonical is refused whole, with a code, whatever is wrong with it.
func TestBadDefinitions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "update pawl.setting set definition_limit = 2000, state_limit = 4")
	state := func(a string) string {
		return `{"name": "bad", "initial": "A", "states": {"A": ` + a + `, "Z": {"type": "final"}}}`
	}
	transition := func(members string) string { return state(`{"on": {"go": [{` + members + `}]}}`) }
	for name, definition := range map[string]string{
		"null":                      `null`,
		"array":                     `[]`,
		"text":                      `"door"`,
		"no name":                   strings.Replace(door, `"name": "door", `, "", 1),
		"name with capitals":        strings.Replace(door, `"door"`, `"Door"`, 1),
		"name too long":             strings.Replace(door, `"door"`, `"d`+strings.Repeat("o", 42)+`"`, 1),
		"name too long doubled":     strings.Replace(door, `"door"`, `"d`+strings.Repeat("_o", 14)+`"`, 1),
		"name that breaks out":      strings.Replace(door, `"door"`, `"door'; drop schema pawl; --"`, 1),
		"no states":                 `{"name": "bad", "initial": "A"}`,
		"states in an array":        `{"name": "bad", "initial": "A", "states": ["A"]}`,
		"no initial":                `{"name": "bad", "states": {"Z": {"type": "final"}}}`,
		"unknown initial":           `{"name": "bad", "initial": "B", "states": {"Z": {"type": "final"}}}`,
		"no final state":            `{"name": "bad", "initial": "A", "states": {"A": {}}}`,
		"state is text":             state(`"A"`),
		"state's name":              strings.Replace(door, `"OPEN"`, `"OP'EN"`, -1),
		"on is a number":            state(`{"on": 5}`),
		"on is null":                state(`{"on": null}`),
		"on is an array":            state(`{"on": []}`),
		"shorthand":                 state(`{"on": {"go": "Z"}}`),
		"not an array":              state(`{"on": {"go": {"target": "Z"}}}`),
		"the engine's event":        state(`{"on": {"after:5s": [{"target": "Z"}]}}`),
		"event's name":              state(`{"on": {"go now": [{"target": "Z"}]}}`),
		"always has no target":      state(`{"always": [{"guard": "1 == 1"}]}`),
		"unknown target":            transition(`"target": "B"`),
		"bad guard":                 transition(`"target": "Z", "guard": "$.a =="`),
		"bad regular expression":    transition(`"target": "Z", "guard": "$.a like_regex \"(\""`),
		"unsupported flag":          transition(`"target": "Z", "guard": "$.a like_regex \"a\" flag \"x\""`),
		"deep guard":                transition(`"target": "Z", "guard": "` + strings.Repeat("(", 900) + `"`),
		"bad assign":                transition(`"target": "Z", "assign": {"a": "$."}`),
		"bad delay":                 state(`{"after": {"soon": [{"target": "Z"}]}}`),
		"delay of nothing":          state(`{"after": {"0s": [{"target": "Z"}]}}`),
		"delay beyond all":          state(`{"after": {"99999999999999999h": [{"target": "Z"}]}}`),
		"unknown target of a delay": state(`{"after": {"5s": [{"target": "B"}]}}`),
		"final with events":         strings.Replace(door, `{"type": "final"}`, `{"type": "final", "on": {"go": [{"target": "OPEN"}]}}`, 1),
		"unknown outcome":           strings.Replace(door, `{"type": "final"}`, `{"type": "final", "outcome": "lost"}`, 1),
		"ttl without target":        strings.Replace(door, `"states"`, `"ttl": {"after": "5s"}, "states"`, 1),
		"ttl to nowhere":            strings.Replace(door, `"states"`, `"ttl": {"after": "5s", "target": "B"}, "states"`, 1),
		"ttl without a time":        strings.Replace(door, `"states"`, `"ttl": {"target": "GONE"}, "states"`, 1),
		"bad ttl":                   strings.Replace(door, `"states"`, `"ttl": {"after": "?", "target": "GONE"}, "states"`, 1),
		"ttl of nothing":            strings.Replace(door, `"states"`, `"ttl": {"after": "0s", "target": "GONE"}, "states"`, 1),
		"require_if_match":          strings.Replace(door, `"states"`, `"require_if_match": "maybe", "states"`, 1),
		"context schema true":       strings.Replace(door, `"states"`, `"context_schema": true, "states"`, 1),
		"context schema null":       strings.Replace(door, `"states"`, `"context_schema": null, "states"`, 1),
		"payload schema false":      transition(`"target": "Z", "payload_schema": false`),
		"too many states":           `{"name": "bad", "initial": "A", "states": {"A": {"type": "final"}, "B": {"type": "final"}, "C": {"type": "final"}, "D": {"type": "final"}, "E": {"type": "final"}}}`,
		"too large":                 strings.Replace(door, `"states"`, `"description": "`+strings.Repeat("x", 2000)+`", "states"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := queries.New(pool).RegisterWorkflow(t.Context(), queries.RegisterWorkflowParams{
				Definition: json.RawMessage(definition), Actor: "a",
			})
			if pgErr := wantCode(t, err, "PW42D"); pgErr.Detail != `{"code": "invalid-definition"}` {
				t.Errorf("detail = %s", pgErr.Detail)
			}
		})
	}
	if got := bounded.Value[string](t, pool, `select concat_ws(' ', (select count(*) from pawl.workflow),
		(select count(*) from pawl.workflow_state), (select count(*) from pawl.workflow_transition))`); got != "0 0 0" {
		t.Errorf("workflows, states and transitions left: %s", got)
	}
}

// Registering waits for another registration, as long as its session lets it, and then goes on.
func TestRegisterUnderALock(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	tx := begin(t, pool)
	bounded.Exec(t, tx, "lock table pawl.workflow in share mode")
	b := registerInBackground(t, pool, ajar)
	bounded.UntilBlocked(t, pool, 1)
	commit(t, tx)
	b.end(t)
	if b.err != nil {
		t.Error(b.err)
	}
	if version, created := register(t, pool, ajar); version != 2 || created {
		t.Errorf("again: version %d, new: %v", version, created)
	}
}

// Two that register at once become one version after the other.
func TestRegisterAtOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		second  string
		version int32
		created bool
	}{{door, 1, false}, {ajar, 2, true}} {
		pool := dbtest.New(t)
		tx := begin(t, pool)
		register(t, tx, door)
		b := registerInBackground(t, pool, c.second)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		if row := b.wait(t); row.Version != c.version || row.Created != c.created {
			t.Errorf("the second is version %d, new: %v; want %d, %v", row.Version, row.Created, c.version, c.created)
		}
	}
}

func registerInBackground(t *testing.T, pool *pgxpool.Pool, definition string) *background[queries.RegisterWorkflowRow] {
	t.Helper()
	return start(t, pool, func(q queries.DBTX) (queries.RegisterWorkflowRow, error) {
		return queries.New(q).RegisterWorkflow(context.Background(), queries.RegisterWorkflowParams{
			Definition: json.RawMessage(definition), Actor: "a",
		})
	})
}
