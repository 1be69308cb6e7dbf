package bench

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// The measurements of this file show what it costs to have more tenants, schemas, workflows and sessions.

//go:embed workflow_schema.json
var workflowWithSchema []byte

const (
	tenants            = 64
	instancesPerTenant = 100
	// firstSessions is how many sessions are opened to measure the first call of each.
	firstSessions = 30
	// workflowVersions is how many versions each of Config.Workflows has.
	workflowVersions = 5
)

// measureTenants fires at instances of one tenant, and at as many instances of 64 tenants, with a tenant for
// each connection.
func (b *benchmark) measureTenants(ctx context.Context) (err error) {
	names, _, undo, err := b.tenants(ctx, tenants, "create", "fire")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo()) }()
	each, one := func(client int) string { return names[client] }, func(int) string { return names[0] }
	create := creation{workflow: "bench", total: tenants * instancesPerTenant, connections: tenants, bearer: each}
	if err := b.create(ctx, create); err != nil {
		return err
	}
	ofAll, err := b.readIDs(ctx, "select id::text from pawl.instance where tenant_id = any ($1) order by array_position($1::text[], tenant_id::text), id", names)
	if err != nil {
		return err
	}
	create.bearer = one
	if err := b.create(ctx, create); err != nil {
		return err
	}
	ofOne, err := b.readIDs(ctx, "select id::text from pawl.instance where tenant_id = $1 and not id = any ($2::text[]::uuid[])", names[0], ofAll)
	if err != nil {
		return err
	}
	fire := func(bearer func(int) string) func() *load {
		return func() *load {
			l := b.transitions(tenants)
			l.bearer = bearer
			return l
		}
	}
	return errors.Join(
		b.measurePair(ctx, side{"one-tenant", fire(one), ofOne}, side{"tenants", fire(each), ofAll}),
		b.restartService(ctx))
}

// tenants restarts the service with a token for each of a number of tenants. The names of the tenants are the
// texts of their tokens. restart restarts it again with these tokens, and undo removes their file.
func (b *benchmark) tenants(ctx context.Context, count int, scopes ...string) (names []string, restart, undo func() error, err error) {
	file, err := os.CreateTemp("", "pawl-bench-*.json")
	if err != nil {
		return nil, nil, nil, err
	}
	undo = func() error { return os.Remove(file.Name()) }
	var list []map[string]any
	for n := range count {
		name := fmt.Sprintf("tenant-%d-%s", n, b.keys())
		sum := sha256.Sum256([]byte(name))
		names = append(names, name)
		list = append(list, map[string]any{
			"sha256": hex.EncodeToString(sum[:]), "subject": "bench", "tenant": name, "scopes": scopes,
		})
		if _, err := b.conn.Exec(ctx, "select pawl.tenant_put($1)", name); err != nil {
			return nil, nil, nil, errors.Join(err, undo())
		}
	}
	b.deployer = "deployer-" + b.keys()
	sum := sha256.Sum256([]byte(b.deployer))
	list = append(list, map[string]any{
		"sha256": hex.EncodeToString(sum[:]), "subject": "bench", "tenant": "*", "scopes": []string{"deploy"},
	})
	restart = func() error {
		return b.restartService(ctx, "PAWL_TOKENS="+file.Name(), "PAWL_WEBHOOK_ALLOW_PRIVATE=true")
	}
	if err := errors.Join(json.NewEncoder(file).Encode(list), file.Close()); err != nil {
		return nil, nil, nil, errors.Join(err, undo())
	}
	if err := restart(); err != nil {
		return nil, nil, nil, errors.Join(err, undo())
	}
	return names, restart, undo, nil
}

// measureSchemas fires events whose payloads have a schema, and others that have none.
func (b *benchmark) measureSchemas(ctx context.Context) error {
	ids, err := b.instancesOf(ctx, "bench-schema", workflowWithSchema)
	if err != nil {
		return err
	}
	fire := func() *load { return b.transitions(manyConnections) }
	return b.measurePair(ctx, side{"unchecked", fire, b.ids[:min(len(ids), len(b.ids))]}, side{"checked", fire, ids})
}

// instancesOf registers a workflow, creates instances of it, and returns their ids.
func (b *benchmark) instancesOf(ctx context.Context, name string, definition []byte) ([]string, error) {
	if err := b.call(ctx, http.MethodPut, "/v1/workflows/"+name, definition, nil); err != nil {
		return nil, err
	}
	n := min(b.Instances, tenants*instancesPerTenant)
	if err := b.create(ctx, creation{workflow: name, total: n, connections: creators}); err != nil {
		return nil, err
	}
	return b.readIDs(ctx, "select id::text from pawl.instance where workflow = '"+name+"' and tenant_id = 'default'")
}

// The assigns of the workflows that measureValues compares: five paths, and five operations.
const (
	fivePaths  = `{"a": "$.payload.n", "b": "$.context.n", "c": "$.payload.n", "d": "$.context.n", "last": "$.payload.n"}`
	fiveValues = `{"a": {"$union": ["$.context.a", "$.payload.n"]}, "b": {"$first": ["$.payload.b", "$.context.b", 1]},
		"c": {"$merge": ["$.context.c", {"n": "$.payload.n"}]}, "d": {"$concat": ["n", "$.payload.n"]},
		"last": {"$if": [{"present": "$.payload.n"}, "$.payload.n", 0]}}`
)

// measureValues fires events whose assigns are operations, and others whose assigns are paths.
func (b *benchmark) measureValues(ctx context.Context) error {
	var sides []side
	for _, s := range []struct{ name, assign string }{{"paths", fivePaths}, {"values", fiveValues}} {
		definition := strings.NewReplacer(`"bench"`, `"bench-`+s.name+`"`, `{"last": "$.payload.n"}`, s.assign).Replace(string(workflow))
		ids, err := b.instancesOf(ctx, "bench-"+s.name, []byte(definition))
		if err != nil {
			return err
		}
		sides = append(sides, side{s.name, func() *load { return b.transitions(manyConnections) }, ids})
	}
	return b.measurePair(ctx, sides...)
}

// measureFirstCalls measures the first pawl.fire_one of a session.
func (b *benchmark) measureFirstCalls(ctx context.Context) error {
	var took []time.Duration
	for n := range firstSessions {
		conn, err := pgx.Connect(ctx, b.dsn)
		if err != nil {
			return err
		}
		began := time.Now()
		_, err = conn.Exec(ctx, `select pawl.fire_one($1::text::uuid, 'go', '{"n": 1}')`, pgx.QueryExecModeExec, b.ids[n%len(b.ids)])
		took = append(took, time.Since(began))
		if err := errors.Join(err, conn.Close(ctx)); err != nil {
			return err
		}
	}
	slices.Sort(took)
	p50 := float64(took[len(took)/2].Microseconds()) / 1000
	b.report.FirstCallP50 = &p50
	b.printf("%-17s %5d %8s %8.2f\n", "first call", 1, "", p50)
	return nil
}

// measureWorkflows measures transitions before and after it registers workflows.
func (b *benchmark) measureWorkflows(ctx context.Context) error {
	connections := []int{1, 8, 64}
	all := func(name string) error {
		for _, n := range connections {
			if _, err := b.measure(ctx, name, b.Duration, b.transitions(n)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := all("one-workflow"); err != nil {
		return err
	}
	began := time.Now()
	var registering errgroup.Group
	registering.SetLimit(creators)
	for n := range b.Workflows {
		registering.Go(func() error {
			name := "bench-" + strconv.Itoa(n)
			for v := range workflowVersions {
				var definition map[string]any
				if err := json.Unmarshal(workflow, &definition); err != nil {
					return err
				}
				definition["name"], definition["description"] = name, fmt.Sprint("version ", v)
				body, err := json.Marshal(definition)
				if err != nil {
					return err
				}
				if err := b.call(ctx, http.MethodPut, "/v1/workflows/"+name, body, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := registering.Wait(); err != nil {
		return err
	}
	b.printf("%d workflows of %d versions registered in %.1f s\n", b.Workflows, workflowVersions, time.Since(began).Seconds())
	// Otherwise autovacuum would do so during the measurements that follow.
	if _, err := b.conn.Exec(ctx, "vacuum (analyze) pawl.workflow, pawl.workflow_state, pawl.workflow_transition"); err != nil {
		return err
	}
	return all("workflows")
}
