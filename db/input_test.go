package db_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// badInputs are values that a caller may give by mistake, or in bad faith, by the type of the argument.
var badInputs = map[string][]string{
	"text":    {"null", "''", "repeat('x', 70000)", `e'\x01'`, "'no such thing'", "'%s'", "'{'"},
	"boolean": {"null"},
	"uuid":    {"null", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"},
	"integer": {"null", "-1", "0", "2147483647"},
	"bigint":  {"null", "-1", "0", "9223372036854775807"},
	"interval": {
		"null", "'-1 s'", "'0'", "'170000000 years'", "'-170000000 years'",
	},
	"timestamp with time zone": {"null", "'infinity'", "'-infinity'"},
	"jsonb": {
		"null", "'null'", "'[]'", "'1'", `'"x"'`, "'{}'", `'{"name": 1}'`, `'{"name": ""}'`, `'{"name": "door", "states": []}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"type": "final", "on": 1, "after": []}}}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"type": "final", "outcome": "none"}}}'`,
		`'{"name": "door", "initial": "A", "ttl": 7, "states": {"A": {"type": "final"}}}'`,
		`'{"name": "door", "initial": "A", "ttl": {"after": "170000000 years", "target": "A"}, "states": {"A": {"type": "final"}}}'`,
		`'{"name": "door", "initial": "A", "require_if_match": 7, "states": {"A": {"type": "final"}}}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"on": {"x": [{"target": "A", "guard": "("}]}}, "B": {"type": "final"}}}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"on": {"x": [1, null, "y"]}}, "B": {"type": "final"}}}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"after": {"never": [{"target": "B"}]}}, "B": {"type": "final"}}}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"states": 1}, "B": null}}'`,
		`'{"name": "door", "initial": "A", "states": {"A": {"entry": {"assign": {"x": "$.("}}}, "B": {"type": "final"}}}'`,
		`'{"context": 1}'`, `'{"correlation_id": 1}'`, `'{"correlation_id": ""}'`, `'{"expires_in": 1}'`, `'{"expires_in": "soon"}'`,
		`'{"expires_in": "-1 s"}'`, `'{"expires_in": "170000000 years"}'`, `'{"callback_url": "https://example.com"}'`,
		"jsonb_build_object('x', repeat('x', 2000000))", "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
		`(repeat('{"a":', 3000) || '1' || repeat('}', 3000))::jsonb`, `jsonb_build_object('name', repeat('x', 70000))`,
		`('{"n": 1' || repeat('0', 70000) || '}')::jsonb`, `'{"n": 1e100000}'`,
	},
	"text[]":   {"null", "'{}'", "'{null}'", "array['']", "'{{a},{b}}'", "array[repeat('x', 70000)]"},
	"bigint[]": {"null", "'{}'", "'{null}'", "'{-1}'", "'{9223372036854775807,1}'"},
	"uuid[]":   {"null", "'{}'", "'{null}'"},
	"jsonb[]":  {"null", "'{}'", "'{null}'"},
}

// Whatever a caller of a function gives, it is told by a condition of pawl's own what is wrong. Constraints of
// pawl's tables are the last defence, and no answer.
func TestBadInputsAreConditions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	instance := doors(t, pool, 1)[0].String()
	register(t, pool, strings.Replace(door, `"name"`, `"ttl": {"after": "1h", "target": "GONE"}, "name"`, 1))
	register(t, pool, flight)
	create(t, pool, tenant, creation{workflow: "door", businessKey: "held"})
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true)")
	bounded.Exec(t, pool, "select pawl.consumer_lead('webhooks', 'tester', '1 hour')")
	subscription := bounded.Value[string](t, pool, `
		select (pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_x', 'tester')).id::text`)
	delivery := bounded.Value[string](t, pool, "select (pawl.subscription_test('default', $1)).id::text", subscription)

	bounded.Exec(t, pool, "select pawl.register_workflow($1)", `{"name": "packing", "initial": "A", "states": {
		"A": {"invoke": {"pack": {"work": {"topic": "pack"}, "deadline": "1h", "done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "B"}],
			"compensate": {"work": {"topic": "unpack"}, "deadline": "1h"}}}},
		"B": {"on": {"end": [{"target": "C"}]}}, "C": {"type": "final"}}}`)
	packing := bounded.Value[string](t, pool, "select (pawl.create_one('packing')).id::text")
	task := bounded.Value[string](t, pool, "select format('%s %s', w.id, w.lease) from pawl.claim_work('pack') w")
	task, lease, _ := strings.Cut(task, " ")
	bounded.Exec(t, pool, "select pawl.create_one('packing')")
	failed := bounded.Value[string](t, pool, "select (pawl.fail_work(w.id, w.lease, 'no')).id::text from pawl.claim_work('pack') w")
	failed = bounded.Value[string](t, pool, "select id::text from pawl.task where instance_id = $1", failed)
	bounded.Exec(t, pool, "select pawl.create_one('packing')")

	// What was folded is used, and something is not.
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", `{"name": "seat", "initial": "HELD", "search": {"f": "$.context.f"}, "states": {
		"HELD": {"on": {"sell": [{"target": "SOLD"}]}}, "SOLD": {"type": "final", "outcome": "completed"}}}`)
	bounded.Exec(t, pool, `select pawl.create_one('seat', '{"f": "x"}'), pawl.create_one('seat', '{"f": 1}')`)
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true)")
	bounded.Exec(t, pool, "select pawl.consumer_lead('insight', 'tester', '1 hour')")
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "select pawl.insight_fold('tester', 1, 1000, '1 hour')")
	bounded.Exec(t, pool, `select pawl.create_one('seat', '{"f": "y"}')`)

	// The arguments of each function that will do. Others have their defaults.
	noOne := `'[{"name": "f", "op": "=", "kind": "text", "value": "x"}]'`
	good := map[string]map[string]string{
		"create_one":                 {"p_workflow": "'door'"},
		"fire_one":                   {"p_id": "'" + instance + "'", "p_event": "'open'"},
		"fire_by_key":                {"p_workflow": "'door'", "p_business_key": "'b'", "p_event": "'open'", "p_start": "'{\"expires_in\": \"1 hour\"}'"},
		"claim_work":                 {"p_topic": "'pack'"},
		"complete_work":              {"p_id": "'" + task + "'", "p_lease": "'" + lease + "'"},
		"fail_work":                  {"p_id": "'" + task + "'", "p_lease": "'" + lease + "'", "p_error": "'no'", "p_retryable": "true"},
		"release_work":               {"p_id": "'" + task + "'", "p_lease": "'" + lease + "'"},
		"heartbeat_work":             {"p_id": "'" + task + "'", "p_lease": "'" + lease + "'"},
		"task_retry":                 {"p_tenant": "'default'", "p_id": "'" + failed + "'", "p_reason": "'again'"},
		"task_resolve":               {"p_tenant": "'default'", "p_id": "'" + task + "'", "p_outcome": "'done'", "p_result": "'{}'", "p_reason": "'seen'"},
		"compensation_mark":          {"p_tenant": "'default'", "p_instance_id": "'" + packing + "'", "p_name": "'pack'", "p_mark": "'skip'", "p_reason": "'no use'"},
		"task_lanes":                 {"p_after": "''", "p_looks": "10"},
		"task_sweep":                 {"p_limit": "10"},
		"register_schema":            {"p_name": "'zip'", "p_schema": "'{}'"},
		"register_workflow":          {"p_definition": "'" + door + "'"},
		"retire_workflow":            {"p_name": "'door'", "p_checksum": "'x'"},
		"migrate_instances":          {"p_tenant": "'default'", "p_workflow": "'door'", "p_from": "1", "p_to": "2", "p_state_map": "'{}'", "p_after": "null", "p_limit": "10"},
		"backtest":                   {"p_workflow": "'door'", "p_ids": "array['" + instance + "']::uuid[]", "p_version": "2"},
		"simulate":                   {"p_workflow": "'door'", "p_workflow_version": "1", "p_position": `'{"context": {}}'`, "p_event": "'open'", "p_payload": "'{}'", "p_checked": "'*'"},
		"simulate_timeout":           {"p_workflow": "'door'", "p_workflow_version": "1", "p_position": `'{"state": "SHUT", "context": {}}'`, "p_now": "now()", "p_until": "now()"},
		"propose_workflow":           {"p_definition": "'" + door + "'"},
		"preview":                    {"p_tenant": "'default'", "p_ids": "array['" + instance + "']::uuid[]", "p_events": "'{open}'", "p_payloads": "array['{}']::jsonb[]", "p_expected": "array['']", "p_checked": "'{*}'"},
		"subscription_create":        {"p_tenant": "'default'", "p_url": "'https://example.com'", "p_workflows": "'{}'", "p_events": "'{}'", "p_states": "'{}'", "p_terminal_only": "false", "p_secret": "'whsec_x'", "p_actor": "'tester'"},
		"subscription_update":        {"p_tenant": "'default'", "p_id": "'" + subscription + "'", "p_url": "null", "p_workflows": "null", "p_events": "null", "p_states": "null", "p_terminal_only": "null", "p_disabled": "null"},
		"subscription_delete":        {"p_tenant": "'default'", "p_id": "'" + subscription + "'"},
		"subscription_rotate_secret": {"p_tenant": "'default'", "p_id": "'" + subscription + "'", "p_secret": "'whsec_y'", "p_overlap": "'1 hour'"},
		"subscription_test":          {"p_tenant": "'default'", "p_id": "'" + subscription + "'"},
		"connection_put":             {"p_tenant": "'default'", "p_name": "'psp'", "p_base_url": "'https://example.com'", "p_auth": `'{"type": "bearer"}'`, "p_secret": "'x'", "p_headers": "'{}'", "p_timeout": "'1 s'", "p_concurrency": "1", "p_tls_ca": "'x'"},
		"connection_delete":          {"p_tenant": "'default'", "p_name": "'psp'"},
		"delivery_replay":            {"p_tenant": "'default'", "p_ids": "array['" + delivery + "']::uuid[]", "p_subscription": "null", "p_status": "'dead'", "p_from": "null", "p_to": "null", "p_after": "null", "p_limit": "10"},
		"chosen_states":              {"p_states": "'{OPEN}'", "p_by_workflow": "true", "p_limit": "10"},
		"state_names":                {"p_limit": "10"},
		"count_commands":             {"p_tenants": "'{default}'", "p_workflows": "'{door}'", "p_events": "'{open}'", "p_outcomes": "'{applied}'", "p_key_results": "'{new}'", "p_commands": "'{1}'", "p_instances": "'{00000000-0000-0000-0000-000000000000}'"},
		"insight_as_of":              {},
		"list_place":                 {"p_most": "10"},
		"instances_in_states":        {"p_tenant": "'default'", "p_workflows": "'{door}'", "p_states": "'{CLOSED}'", "p_statuses": "null", "p_created_after": "null", "p_created_before": "null", "p_stuck_for": "null", "p_by_change": "false", "p_ascending": "true", "p_after_change": "null", "p_after_id": "null", "p_limit": "10", "p_most": "1000", "p_few": "10", "p_probes": "10"},
		"instances_where":            {"p_tenant": "'default'", "p_workflow": "'seat'", "p_conditions": noOne, "p_states": "null", "p_statuses": "null", "p_ascending": "true", "p_after": "null", "p_limit": "10", "p_few": "10", "p_probes": "10", "p_patience": "'1 s'", "p_most": "1000"},
		"reindex_workflow":           {"p_workflow": "'seat'", "p_limit": "10"},
		"insight_fold":               {"p_leader": "'tester'", "p_term": "1", "p_limit": "10", "p_lease": "'1 hour'"},
		"score_forecasts":            {"p_leader": "'tester'", "p_term": "1", "p_limit": "10"},
		"finding_look":               {"p_limit": "10", "p_every": "'1 s'"},
		"heal":                       {"p_limit": "10", "p_every": "'1 s'"},
		"workflow_names":             {"p_limit": "10"},
		"purge_keys":                 {"p_limit": "10"},
		"purge_archived":             {"p_tenant": "'default'", "p_ids": "array['" + instance + "']::uuid[]", "p_before": "now()"},
		"purge_instances":            {"p_tenant": "'default'", "p_ids": "array['" + instance + "']::uuid[]", "p_before": "now()"},
		"fire_timers":                {"p_limit": "10"},
		"fire_slow_timers":           {},
		"put_off_timer":              {},
		"past_timeout":               {"p_tenant": "'default'", "p_id": "'" + instance + "'", "p_version": "1"},
		"instance_timeout":           {"p_tenant": "'default'", "p_id": "'" + instance + "'"},
		"instances":                  {"p_tenants": "'{default}'", "p_ids": "array['" + instance + "']::uuid[]"},
		"consumer_create":            {"p_consumer": "'c'", "p_from_start": "true"},
		"consumer_delete":            {"p_consumer": "'c'"},
		"jsonpath_error":             {"p_path": "'$.a'"},
		"uuid_v7_floor":              {"p_at": "now()"},
	}
	types := map[string]map[string]string{}
	for _, row := range bounded.Column[string](t, pool, `
		select concat_ws(' ', p.proname, a.name, format_type(a.type, null))
		from pg_proc p
		cross join lateral unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), coalesce(p.proargmodes, array_fill('i'::"char", array[p.pronargs]))) as a (name, type, mode)
		where p.pronamespace = 'pawl'::regnamespace and a.mode in ('i', 'b') and a.name <> ''`) {
		f := strings.SplitN(row, " ", 3)
		if types[f[0]] == nil {
			types[f[0]] = map[string]string{}
		}
		types[f[0]][f[1]] = f[2]
	}
	// Conditions are wrong in ways of their own.
	conditions := []string{
		"null", "'null'", `'"x"'`, "'1'", "'{}'", "'[]'", "'[1]'", "'[null]'", "'[[]]'", "'[{}]'",
		`'[{"name": "f", "op": "~", "kind": "text", "value": "x"}]'`, `'[{"name": "f", "op": "=", "kind": "odd", "value": "x"}]'`,
		`'[{"name": "g", "op": "=", "kind": "text", "value": "x"}]'`, `'[{"name": "f", "op": "=", "kind": "number", "value": "x"}]'`,
		`'[{"name": "f", "op": "=", "kind": "time", "value": "x"}]'`, `'[{"name": "f", "op": "=", "kind": "boolean", "value": "x"}]'`,
		`'[{"name": "f", "op": "<", "kind": "boolean", "value": "true"}]'`, `'[{"name": "f", "op": "^", "kind": "number", "value": "1"}]'`,
		`'[{"name": "f", "op": "=", "kind": "text", "value": null}]'`, `'[{"name": ["f"], "op": {}, "kind": 1, "value": []}]'`,
		`jsonb_build_array(jsonb_build_object('name', 'f', 'op', '=', 'kind', 'text', 'value', repeat('x', 70000)))`,
		`jsonb_build_array(jsonb_build_object('name', 'f', 'op', '>', 'kind', 'number', 'value', repeat('9', 70000)))`,
		`jsonb_build_array(jsonb_build_object('name', 'f', 'op', '>', 'kind', 'number', 'value', '1e200000'))`,
		`'[{"name": "f", "op": "=", "kind": "time", "value": "infinity"}]'`,
		`(select jsonb_agg(jsonb_build_object('name', 'f', 'op', '=', 'kind', 'text', 'value', 'x')) from generate_series(1, 1000))`,
	}
	conn := connect(t, pool)
	for function, given := range map[string]map[string]string{ // Other ways to call the same functions.
		"fire_by_key without start":     {"p_workflow": "'door'", "p_business_key": "'held'", "p_event": "'open'"},
		"backtest by definition":        {"p_workflow": "'door'", "p_ids": "array['" + instance + "']::uuid[]", "p_definition": "'" + door + "'"},
		"instances_where by scan":       {"p_tenant": "'default'", "p_workflow": "'seat'", "p_conditions": noOne, "p_states": "'{HELD}'", "p_statuses": "'{active}'", "p_ascending": "false", "p_after": "null", "p_limit": "10", "p_few": "0", "p_probes": "10", "p_patience": "'1 s'", "p_most": "null"},
		"instances_in_states by change": {"p_tenant": "'default'", "p_workflows": "'{door}'", "p_states": "'{CLOSED}'", "p_statuses": "'{active}'", "p_created_after": "now()", "p_created_before": "now()", "p_stuck_for": "'1 s'", "p_by_change": "true", "p_ascending": "false", "p_after_change": "now()", "p_after_id": "'ffffffff-ffff-ffff-ffff-ffffffffffff'", "p_limit": "10", "p_most": "1000", "p_few": "10", "p_probes": "10"},
		"simulate a creation":           {"p_workflow": "'door'", "p_workflow_version": "1", "p_position": `'{"context": {}}'`, "p_event": "null", "p_payload": "'{}'", "p_checked": "'*'"},
		"delivery_replay a filter":      {"p_tenant": "'default'", "p_ids": "null", "p_subscription": "null", "p_status": "'dead'", "p_from": "null", "p_to": "null", "p_after": "null", "p_limit": "10"},
	} {
		good[function] = given
	}
	for _, call := range slices.Sorted(maps.Keys(good)) {
		function, _, _ := strings.Cut(call, " ")
		try := func(changed, value string) {
			t.Helper()
			var args []string
			given := maps.Clone(good[call])
			if changed != "" {
				given[changed] = value
			}
			for name, v := range given {
				args = append(args, fmt.Sprintf("%s => (%s)::%s", name, v, types[function][name]))
			}
			slices.Sort(args)
			sql := fmt.Sprintf("select * from pawl.%s(%s)", function, strings.Join(args, ", "))
			bounded.Exec(t, conn, "begin; set local statement_timeout = '20s'")
			_, err := conn.Exec(t.Context(), sql)
			bounded.Exec(t, conn, "rollback")
			said, refused := errors.AsType[*pgconn.PgError](err)
			switch {
			case err == nil:
				if changed == "" {
					return
				}
			case !refused:
				t.Fatalf("%s: %v", sql, err)
			case changed == "":
				t.Errorf("%s: %v, although nothing is wrong", sql, err)
			case strings.HasPrefix(said.Code, "PW"):
				if !strings.HasPrefix(said.Detail, `{"code": "`) {
					t.Errorf("%s with %s => %s: the detail is %q", function, changed, value, said.Detail)
				}
			case said.Code == "55000" && changed == "p_most": // As the function says it does.
			case strings.HasPrefix(said.Code, "22") && said.Where == "", strings.HasPrefix(said.Code, "42") && said.Where == "":
				// It did not get as far as pawl.
			default:
				t.Errorf("%s with %s => %.60s: %v, in %.80s", function, changed, value, err, said.Where)
			}
		}
		if types[function] == nil && len(good[call]) > 0 {
			t.Fatalf("there is no function %s", function)
		}
		try("", "")
		for _, name := range slices.Sorted(maps.Keys(types[function])) {
			for _, value := range badInputs[types[function][name]] {
				try(name, value)
			}
			if name == "p_conditions" {
				for _, value := range conditions {
					try(name, value)
				}
			}
		}
	}
}
