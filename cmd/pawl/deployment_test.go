package main_test

import (
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver of goose
	"github.com/pressly/goose/v3"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// application is an application that has migrations of its own in pawl's database, in goose's own table.
type application struct {
	t          *testing.T
	dsn        string
	migrations fstest.MapFS
}

// add adds a migration and applies it, which must be all that there is to apply.
func (a application) add(up string) {
	a.t.Helper()
	a.migrations[fmt.Sprintf("%05d_payment.sql", len(a.migrations)+1)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + up)}
	conn, err := sql.Open("pgx", a.dsn)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, a.migrations)
	if err != nil {
		a.t.Fatal(err)
	}
	if applied, err := provider.Up(bounded.Context(a.t)); err != nil || len(applied) != 1 {
		a.t.Fatalf("the application's goose applies %v: %v", applied, err)
	}
}

// door is a small definition with all that a transition can have.
const door = `{"initial": "CLOSED", "states": {
	"CLOSED": {"on": {
		"open": {"target": "OPEN", "guard": "$.payload.code == $.context.code", "assign": {"opened_at": "$.now"}},
		"scrap": "SCRAPPED"}},
	"OPEN": {"on": {"close": "CLOSED"}, "after": {"10m": "CLOSED"}},
	"SCRAPPED": {"type": "final", "outcome": "completed"}}}`

// A client has a token of its tenant.
type client struct {
	t      *testing.T
	server string
	tenant string
}

func (c client) token() string { return "token-of-" + strings.Replace(c.tenant, "*", "all", 1) }

func (c client) send(want int, method, path, body string, headers ...string) answer {
	c.t.Helper()
	return mustSend(c.t, want, method, c.server+path, body, append(headers, "Authorization", "Bearer "+c.token())...)
}

func (c client) pawl(args ...string) string {
	c.t.Helper()
	return mustPawl(c.t, []string{"PAWL_SERVER=" + c.server, "PAWL_TOKEN=" + c.token()}, args...)
}

// What a new user does works in a deployment that has grown: a thousand workflows with two versions each, 64 tenants,
// an application with migrations of its own in the same database, and a pooler of transactions before it.
func TestGrownDeployment(t *testing.T) {
	t.Parallel()
	const workflows, tenants = 1000, 64
	dsn := dbtest.Empty(t)
	app := application{t, dsn, fstest.MapFS{}}
	app.add("create table payment (booking uuid primary key, amount integer not null);")
	app.add("alter table payment add paid_at timestamptz not null default now();")
	owner := []string{"DATABASE_URL=" + dsn}
	if out := mustPawl(t, owner, "migrate", "up"); !strings.HasPrefix(out, "applied 00001_") {
		t.Errorf("migrate up says %s", out)
	}
	role := serviceRole(t, dsn)

	type token struct {
		SHA256  string   `json:"sha256"`
		Subject string   `json:"subject"`
		Tenant  string   `json:"tenant"`
		Scopes  []string `json:"scopes"`
	}
	var tokens []token
	clients := make([]client, tenants)
	tokenOf := func(c client, scopes ...string) token {
		return token{fmt.Sprintf("%x", sha256.Sum256([]byte(c.token()))), "client of " + c.tenant, c.tenant, scopes}
	}
	for n := range clients {
		clients[n] = client{t: t, tenant: fmt.Sprintf("tenant-%d", n)}
		tokens = append(tokens, tokenOf(clients[n], "read", "create", "fire", "deliver"))
		mustPawl(t, owner, "tenant", "create", clients[n].tenant)
	}
	deployer := client{t: t, tenant: "*"}
	tokens = append(tokens, tokenOf(deployer, "deploy"))
	text, err := json.Marshal(tokens)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{
		"DATABASE_URL=" + dbtest.Pooler(t, role, "transaction", "default_pool_size = 4"), "PAWL_LISTEN_DATABASE_URL=" + role,
		"PAWL_WEBHOOK_ALLOW_PRIVATE=true", "PAWL_SECRET_KEY=k:" + base64.StdEncoding.EncodeToString(make([]byte, 32)),
	}, "serve", "--tokens", writeFile(t, "tokens.json", string(text)))
	for n := range clients {
		clients[n].server = p.url
	}
	one, other := clients[7], clients[8]
	deployer.server = p.url

	// The deployment grows by copies of a workflow.
	mustPawl(t, nil, "workflow", "validate", flight)
	if out := deployer.pawl("workflow", "apply", flight); out != "flight-booking: version 1 registered\n" {
		t.Errorf("apply says %s", out)
	}
	deployer.send(http.StatusCreated, http.MethodPut, "/v1/workflows/door", door)
	look := dialDSN(t, dsn)
	for version := range 2 {
		bounded.Exec(t, look, `
			select pawl.register_workflow(w.definition || jsonb_build_object('name', 'door-' || n, 'description', 'version ' || $2::integer))
			from (select definition from pawl.workflow where name = 'door') w, generate_series(1, $1::integer) n`, workflows, version+1)
	}
	for n, c := range clients {
		var commands []string
		for i := n; i < workflows; i += tenants {
			commands = append(commands, fmt.Sprintf(`{"op": "create", "key": "door-%d", "workflow": "door-%d", "context": {"code": 1}}`, i, i+1))
		}
		batch := c.send(http.StatusOK, http.MethodPost, "/v1/batch", `{"commands": [`+strings.Join(commands, ",")+`]}`)
		if made := strings.Count(batch.body, `"workflow_version":2`); made != len(commands) {
			t.Fatalf("%d of %d instances have the latest version: %s", made, len(commands), batch.body)
		}
	}
	listed := map[string]bool{}
	for next, pages := "", 0; pages == 0 || next != "" && pages < workflows; pages++ {
		query := url.Values{"limit": {"200"}}
		if next != "" {
			query.Set("cursor", next)
		}
		page := one.send(http.StatusOK, http.MethodGet, "/v1/workflows?"+query.Encode(), "")
		for _, item := range page.member("items").([]any) {
			listed[item.(map[string]any)["name"].(string)] = true
		}
		next, _ = page.member("next_cursor").(string)
	}
	if len(listed) != workflows+2 {
		t.Errorf("%d workflows are listed, want %d", len(listed), workflows+2)
	}

	// The README's way through a booking, and what else a client does.
	hooks := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
		if body, err := io.ReadAll(in.Body); err == nil {
			hooks <- string(body)
		}
	}))
	t.Cleanup(receiver.Close)
	one.pawl("subscription", "create", "--workflow", "flight-booking", receiver.URL)
	created := one.send(http.StatusCreated, http.MethodPost, create, quote, "Idempotency-Key", "quote-1")
	booking, id := created.header.Get("Location"), created.member("id").(string)
	replay := one.send(http.StatusCreated, http.MethodPost, create, quote, "Idempotency-Key", "quote-1")
	if replay.body != created.body || replay.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the replay is %v %s, after %s", replay.header, replay.body, created.body)
	}
	stranger := other.send(http.StatusCreated, http.MethodPost, create, quote, "Idempotency-Key", "quote-1")
	if stranger.member("id") == id || stranger.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("another tenant's key gives %s", stranger.body)
	}
	other.send(http.StatusNotFound, http.MethodGet, booking, "")
	refused := one.send(http.StatusConflict, http.MethodPost, booking+"/actions/reserve", `{"payload": {"price": 1, "seat": "12A"}}`, "Idempotency-Key", "reserve-1")
	if refused.member("code") != "guard-rejected" {
		t.Errorf("a wrong price is %s", refused.body)
	}
	one.send(http.StatusOK, http.MethodPost, booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-2", "If-Match", `"1"`)
	stale := one.send(http.StatusPreconditionFailed, http.MethodPost, booking+"/actions/cancel", "{}", "Idempotency-Key", "cancel-1", "If-Match", `"1"`)
	if stale.member("code") != "version-mismatch" {
		t.Errorf("a stale If-Match is %s", stale.body)
	}
	if got := one.send(http.StatusOK, http.MethodGet, booking, ""); got.member("state") != "RESERVED" || got.header.Get("ETag") != `"2"` {
		t.Errorf("the booking is %v %s", got.header, got.body)
	}

	// The application pays and moves the instance in one transaction, through the pooler; a client waits for it.
	waited := make(chan answer, 1)
	go func() {
		a, err := send(t.Context(), http.MethodGet, p.url+booking, "", "Authorization", "Bearer "+one.token(), "Prefer", "wait=60", "If-None-Match", `"2"`)
		if err != nil {
			t.Error(err)
		}
		waited <- a
	}()
	caller := loginRole(t, dsn, "caller", "--tenant", one.tenant)
	callerConfig, err := pgx.ParseConfig(dbtest.Pooler(t, caller, "transaction"))
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, look, "grant insert on payment to "+pgx.Identifier{callerConfig.User}.Sanitize())
	callerConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // A pooler of transactions shares no prepared statements.
	conn, err := pgx.ConnectConfig(t.Context(), callerConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	if err := pgx.BeginFunc(bounded.Context(t), conn, func(tx pgx.Tx) error {
		bounded.Exec(t, tx, "insert into payment values ($1, 420)", id)
		if state := bounded.Value[string](t, tx, `select state from pawl.fire_one($1, 'pay', '{"amount": 420}', p_tenant => $2)`, id, one.tenant); state != "PAID" {
			t.Errorf("the booking is %s", state)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if a := bounded.Receive(t, "the end of the wait", waited); a.status != http.StatusOK || a.member("state") != "PAID" {
		t.Errorf("the wait ends with %d %s", a.status, a.body)
	}
	var kinds []string
	for _, item := range one.send(http.StatusOK, http.MethodGet, booking+"/history", "").member("items").([]any) {
		step := item.(map[string]any)
		kinds = append(kinds, fmt.Sprint(step["kind"], " ", step["to"]))
	}
	if want := []string{"created QUOTED", "transition RESERVED", "transition PAID"}; !slices.Equal(kinds, want) {
		t.Errorf("the history is %v, want %v", kinds, want)
	}
	bounded.True(t, "the webhook of the last step", func() bool {
		hook := bounded.Receive(t, "a webhook", hooks)
		if !strings.Contains(hook, `"id":"`+id+`:`) {
			t.Errorf("%s gets the webhook %s", one.tenant, hook)
		}
		return strings.Contains(hook, `"id":"`+id+`:3"`)
	})

	one.pawl("instance", "create", "flight-booking", "--context", "{flight_id: LH454, price: 99}", "--business-key", "order-7")
	if out := one.pawl("instance", "list", "--workflow", "flight-booking"); strings.Count(out, "QUOTED") != 1 || !strings.Contains(out, id) {
		t.Errorf("the list is %s", out)
	}
	for n, c := range clients {
		own := (workflows - n + tenants - 1) / tenants
		if c == one {
			own += 2
		}
		if c == other {
			own++
		}
		page := c.send(http.StatusOK, http.MethodGet, "/v1/instances?limit=200", "")
		if items := page.member("items").([]any); len(items) != own {
			t.Errorf("%s has %d instances, want %d", c.tenant, len(items), own)
		}
	}

	// Neither set of migrations sees the other.
	if out := mustPawl(t, owner, "migrate", "status"); strings.Contains(out, "pending") || strings.Contains(out, "payment") {
		t.Errorf("migrate status says %s", out)
	}
	app.add("create index on payment (paid_at);")
	if versions := bounded.Column[int64](t, look, "select version_id from public.goose_db_version order by id"); !slices.Equal(versions, []int64{0, 1, 2, 3}) {
		t.Errorf("the application's versions are %v", versions)
	}
	one.send(http.StatusOK, http.MethodGet, "/readyz", "")
	for _, line := range regexp.MustCompile(`level=(WARN|ERROR).*`).FindAllString(p.Output.String(), -1) {
		t.Errorf("it says %q", line)
	}
}
