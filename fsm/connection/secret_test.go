package connection_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/connection"
	"github.com/pawl-fsm/pawl/fsm/rotation"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/variable"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const (
	tenant = "default"
	url    = "https://93.184.215.14"
)

// keys reads keys of the ids, each made of its id.
func keys(t *testing.T, ids ...string) fsm.SecretKeys {
	t.Helper()
	var all []string
	for _, id := range ids {
		all = append(all, id+":"+strings.Repeat(id, 42)+"A=") // 32 bytes in base64.
	}
	k, err := fsm.ParseSecretKeys(strings.Join(all, ","))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func put(t *testing.T, pool *pgxpool.Pool, keys fsm.SecretKeys, tenant, name string, auth connection.Auth) {
	t.Helper()
	service := fsm.New(pool, fsm.Config{Keys: keys, Variables: variable.Policy{{Tenant: "*", Name: "*"}}})
	t.Cleanup(service.Close)
	if _, _, err := connection.New(service).Put(t.Context(), tenant, name, connection.Settings{BaseURL: url, Auth: auth}, fsm.Expect{}); err != nil {
		t.Fatal(err)
	}
}

func endpoint(t *testing.T, pool *pgxpool.Pool, tenant, name string) queries.ConnectionEndpoint {
	t.Helper()
	list, err := queries.New(pool).ConnectionEndpoints(t.Context(), queries.ConnectionEndpointsParams{Tenants: []string{tenant}, Names: []string{name}})
	if err != nil || len(list) != 1 {
		t.Fatalf("the endpoints are %v: %v", list, err)
	}
	return list[0]
}

// Whoever makes the calls gets what was put, and nobody gets the secret of another connection.
func TestSecretsOfConnections(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.Tenants(t, pool, "acme")
	k := keys(t, "a")
	put(t, pool, k, tenant, "open", connection.Auth{Type: connection.None})
	put(t, pool, k, tenant, "psp", connection.Auth{Type: connection.Basic, User: "ann", Secret: "pass wörd"})
	put(t, pool, k, tenant, "crm", connection.Auth{Type: connection.Header, Name: "X-Key", Secret: "of crm"})
	put(t, pool, k, "acme", "psp", connection.Auth{Type: connection.Basic, User: "ann", Secret: "of acme"})
	put(t, pool, fsm.SecretKeys{}, tenant, "plain", connection.Auth{Type: connection.Bearer, Secret: "plain"})
	secrets := connection.Secrets{Keys: k}
	for name, want := range map[string]connection.Auth{
		"open":  {Type: connection.None},
		"psp":   {Type: connection.Basic, User: "ann", Secret: "pass wörd"},
		"crm":   {Type: connection.Header, Name: "X-Key", Secret: "of crm"},
		"plain": {Type: connection.Bearer, Secret: "plain"},
	} {
		if got, err := secrets.Of(endpoint(t, pool, tenant, name)); err != nil || got != want {
			t.Errorf("%s: %+v: %v, want %+v", name, got, err, want)
		}
	}
	refuses := func(secrets connection.Secrets, e queries.ConnectionEndpoint, want string) {
		t.Helper()
		got, err := secrets.Of(e)
		if err == nil || !strings.Contains(err.Error(), want) || got.Secret != "" || strings.Contains(err.Error(), "pass") {
			t.Errorf("%+v: %v, want %q", got, err, want)
		}
	}
	psp := endpoint(t, pool, tenant, "psp")
	refuses(connection.Secrets{Keys: keys(t, "b")}, psp, "sealed with the key a, which is not in PAWL_SECRET_KEY")
	refuses(connection.Secrets{}, psp, "PAWL_SECRET_KEY")
	for _, other := range []queries.ConnectionEndpoint{endpoint(t, pool, tenant, "crm"), endpoint(t, pool, "acme", "psp")} {
		copied := psp
		copied.Secret = other.Secret
		refuses(secrets, copied, "belongs to another row")
	}
	// What is written into the table by hand is not sent as it is.
	bounded.Exec(t, pool, `update pawl.connection set secret = E'x\r\nX-Admin: 1' where tenant_id = 'default' and name = 'crm'`)
	refuses(secrets, endpoint(t, pool, tenant, "crm"), "cannot be sent: it must have 1 to 4096 visible ASCII characters")
}

// A variable is read when a call is made, and only if the tenant may name it then.
func TestVariablesOfConnections(t *testing.T) {
	pool := dbtest.New(t)
	const name = "PAWL_CONNECTION_OF_A_TEST"
	put(t, pool, fsm.SecretKeys{}, tenant, "psp", connection.Auth{Type: connection.Bearer, Variable: name})
	e := endpoint(t, pool, tenant, "psp")
	secrets := connection.Secrets{Variables: variable.Policy{{Tenant: tenant, Name: name}}}
	wants := func(secrets connection.Secrets, want string) {
		t.Helper()
		if got, err := secrets.Of(e); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v, want %q", got, err, want)
		}
	}
	wants(secrets, "the environment variable "+name+" is not set")
	t.Setenv(name, "hunter2 x")
	wants(secrets, "cannot be sent: it must not have a space")
	t.Setenv(name, "hunter2")
	if got, err := secrets.Of(e); err != nil || got.Secret != "hunter2" {
		t.Errorf("%+v: %v", got, err)
	}
	wants(connection.Secrets{Variables: variable.Policy{{Tenant: "acme", Name: name}}}, "the tenant may not use")
}

// A rotation seals the secrets of connections with the first key, and ends the rest of those that had a finding. Those that
// cannot be opened stay as they are, and are named.
func TestRotationOfConnections(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	put(t, pool, fsm.SecretKeys{}, tenant, "plain", connection.Auth{Type: connection.Bearer, Secret: "hunter1"})
	put(t, pool, keys(t, "a"), tenant, "psp", connection.Auth{Type: connection.Bearer, Secret: "hunter2"})
	put(t, pool, keys(t, "c"), tenant, "lost", connection.Auth{Type: connection.Bearer, Secret: "hunter3"})
	put(t, pool, keys(t, "a"), tenant, "open", connection.Auth{Type: connection.None})
	put(t, pool, keys(t, "a"), tenant, "env", connection.Auth{Type: connection.Bearer, Variable: "PAWL_CONNECTION_X"})
	bounded.Exec(t, pool, "update pawl.connection set finding = 'no key', circuit_open_until = now() + interval '1 hour'")
	done, err := rotation.Reseal(t.Context(), pool, keys(t, "b", "a"))
	if err != nil || done.Sealed != 2 || done.UnopenedCount != 1 || done.Unopened[0].Row != "lost" || done.Unopened[0].Table != "connection" || done.Unopened[0].Tenant != tenant {
		t.Errorf("it did %+v: %v", done, err)
	}
	if done, err := rotation.Reseal(t.Context(), pool, keys(t, "b", "a")); err != nil || done.Sealed != 0 || done.Kept != 2 {
		t.Errorf("the second time it did %+v: %v", done, err)
	}
	for name, want := range map[string]string{"plain": "hunter1", "psp": "hunter2"} {
		if got, err := (connection.Secrets{Keys: keys(t, "b")}).Of(endpoint(t, pool, tenant, name)); err != nil || got.Secret != want {
			t.Errorf("%s: %+v: %v", name, got, err)
		}
	}
	if got := bounded.Value[string](t, pool, "select string_agg(name, ' ' order by name) from pawl.connection where finding is not null and circuit_open_until is not null"); got != "env lost open" {
		t.Errorf("these rest: %s", got)
	}
}
