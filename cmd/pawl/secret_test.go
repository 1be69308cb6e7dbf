package main_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Keys that cannot be read are refused at the start, by a message that does not show them.
func TestSecretKeysThatAreMalformed(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"hunter2", "a:hunter2", "a:aHVudGVyMg==", "a:" + strings.Repeat("hunter2=", 9)} {
		for _, command := range []string{"serve", "dev"} {
			_, stderr, code := pawl(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/x", "PAWL_SECRET_KEY=" + bad}, command)
			if code != 2 || !strings.Contains(stderr, "PAWL_SECRET_KEY: key 1 must") || strings.Contains(stderr, "hunter2") || strings.Contains(stderr, "aHVudGVyMg") {
				t.Errorf("%s with %s: exit code %d: %s", command, bad, code, stderr)
			}
		}
	}
	// A file has keys as the variable has them.
	env := []string{"DATABASE_URL=" + dbtest.NewDSN(t), "PAWL_SECRET_KEY=@" + writeFile(t, "keys", mustPawl(t, nil, "secret", "key"))}
	if out := mustPawl(t, env, "secret", "rotate"); !strings.Contains(out, "0 rows") {
		t.Error(out)
	}
	start(t, env, "serve")
	for _, key := range []string{"", "hunter2"} {
		_, stderr, code := pawl(t, []string{"DATABASE_URL=postgres://127.0.0.1:1/x", "PAWL_SECRET_KEY=" + key}, "secret", "rotate")
		if code != 1 || !strings.Contains(stderr, "PAWL_SECRET_KEY") || strings.Contains(stderr, "hunter2") {
			t.Errorf("rotate with %q: exit code %d: %s", key, code, stderr)
		}
	}
}

func TestSecretCallback(t *testing.T) {
	t.Parallel()
	const secret = "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu"
	env := []string{"PAWL_WEBHOOK_SECRET=" + secret}
	acme := mustPawl(t, env, "secret", "callback", "--tenant", "acme")
	if acme == mustPawl(t, env, "secret", "callback") || strings.Contains(acme, secret) {
		t.Errorf("the secret of a tenant is %s", acme)
	}
	want, err := fsm.WebhookPolicy{Secret: secret}.CallbackSecret("acme")
	if err != nil || acme != want+"\n" {
		t.Errorf("it prints %s, and callbacks are signed with %s: %v", acme, want, err)
	}
	// As for the service, the variable may name a file.
	inFile := []string{"PAWL_WEBHOOK_SECRET=@" + writeFile(t, "secret", secret+"\n")}
	if got := mustPawl(t, inFile, "secret", "callback", "--tenant", "acme"); got != acme {
		t.Errorf("from a file the secret is %s, want %s", got, acme)
	}
	wantLine(t, []string{"PAWL_WEBHOOK_SECRET=@nowhere"}, 1, []string{"PAWL_WEBHOOK_SECRET", "nowhere"}, "secret", "callback")
	wantLine(t, env, 1, []string{"--tenant"}, "secret", "callback", "--tenant", "*")
	for _, bad := range []string{"", "hunter2"} {
		if _, stderr, code := pawl(t, []string{"PAWL_WEBHOOK_SECRET=" + bad}, "secret", "callback"); code != 1 || strings.Contains(stderr, "hunter2") {
			t.Errorf("%q: exit code %d: %s", bad, code, stderr)
		}
	}
}

// A deployment gets keys, changes them and loses one. No log, problem, answer or output shows a secret or a key, but the
// answer that makes a secret.
func TestNoOutputShowsASecret(t *testing.T) {
	t.Parallel()
	hooks := make(chan struct{}, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		if strings.HasPrefix(in.URL.Path, "/broken") {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		hooks <- struct{}{}
	}))
	t.Cleanup(receiver.Close)
	dsn := dbtest.NewDSN(t)
	role := serviceRole(t, dsn)
	keyA, keyB := strings.TrimSpace(mustPawl(t, nil, "secret", "key")), strings.TrimSpace(mustPawl(t, nil, "secret", "key"))
	const (
		shared   = "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu"
		chosen   = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
		callback = "whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u"
		wrong    = "whsec_dG9vIHNob3J0"
		provider = "sk_live_c2VjcmV0IG9mIGEgc2VydmljZQ"
		variable = "sk_live_aW4gdGhlIHByb2Nlc3MgYWxvbmU"
		// Of a collector, in variables of which some cannot be read.
		telemetry = "dGVsZW1ldHJ5"
	)
	planted := []string{
		shared, chosen, callback, wrong, provider, variable, telemetry, strings.Split(keyA, ":")[1], strings.Split(keyB, ":")[1],
		strings.TrimSpace(mustPawl(t, []string{"PAWL_WEBHOOK_SECRET=" + shared}, "secret", "callback")),
	}
	var shown strings.Builder
	env := func(keys ...string) []string {
		return []string{
			"DATABASE_URL=" + role, "PAWL_WEBHOOK_ALLOW_PRIVATE=true", "PAWL_LOG_LEVEL=debug", "PAWL_WEBHOOK_SECRET=" + shared,
			"PAWL_WEBHOOK_BACKOFF_BASE=10ms", "PAWL_SECRET_KEY=" + strings.Join(keys, ","), "PAWL_CONNECTION_CRM=" + variable,
			"OTEL_EXPORTER_OTLP_ENDPOINT=http://me:" + telemetry + "@127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS=a: " + telemetry + ",b=" + telemetry + "%zz",
		}
	}
	run := func(env []string, code int, args ...string) string {
		t.Helper()
		stdout, stderr, got := pawl(t, env, args...)
		if got != code {
			t.Fatalf("pawl %v: exit code %d: %s%s", args, got, stdout, stderr)
		}
		fmt.Fprintf(&shown, "pawl %v:\n%s%s", args, stdout, stderr)
		return stdout + stderr
	}

	run(append(env(), "OTEL_EXPORTER_OTLP_ENDPOINT=http://me:"+telemetry+"@127.0.0.1:1%zz"), 1, "serve")
	plain := start(t, env(), "serve")
	plain.Output.Find(t, "secrets of webhooks and connections are stored as they are: give a key in PAWL_SECRET_KEY")
	server := []string{"PAWL_SERVER=" + plain.url}
	run(server, 0, "workflow", "apply", flight)
	created := mustPawl(t, append(server, "PAWL_SUBSCRIPTION_SECRET="+chosen), "subscription", "create", "--json", receiver.URL)
	if !strings.Contains(created, chosen) {
		t.Errorf("the answer that makes the secret is %s", created)
	}
	mustPawl(t, append(server, "PAWL_SUBSCRIPTION_SECRET="+chosen), "subscription", "create", receiver.URL+"/broken")
	run(append(server, "PAWL_SUBSCRIPTION_SECRET="+wrong), 1, "subscription", "create", receiver.URL)
	run(append(server, "PAWL_CALLBACK_SECRET="+callback), 0, "instance", "create", "flight-booking", "--context", `{"flight_id": "LH454", "price": 420}`, "--callback-url", receiver.URL)
	run(append(server, "PAWL_CALLBACK_SECRET="+wrong), 1, "instance", "create", "flight-booking", "--callback-url", receiver.URL)
	bounded.Receive(t, "a webhook", hooks)
	run(append(server, "PAWL_CONNECTION_SECRET="+provider), 0, "connection", "put", "psp", "--base-url", "https://93.184.215.14", "--auth", "bearer")
	run(append(server, "PAWL_CONNECTION_SECRET="+provider+"\n"), 1, "connection", "put", "psp", "--base-url", "https://93.184.215.14", "--auth", "bearer")
	run(server, 0, "connection", "put", "crm", "--base-url", "https://93.184.215.14", "--auth", "bearer", "--env", "PAWL_CONNECTION_CRM")
	run(server, 0, "connection", "list", "--json")
	plain.Kill(t)

	owner := func(keys ...string) []string {
		return []string{"DATABASE_URL=" + dsn, "PAWL_SECRET_KEY=" + strings.Join(keys, ",")}
	}
	if out := run(owner(keyA), 0, "secret", "rotate"); !strings.Contains(out, "4 rows were sealed") {
		t.Errorf("the first key: %s", out)
	}
	if out := run(owner(keyB, keyA), 0, "secret", "rotate"); !strings.Contains(out, "4 rows were sealed") {
		t.Errorf("the second key: %s", out)
	}
	if out := run(owner(keyA), 1, "secret", "rotate"); !strings.Contains(out, "4 rows have secrets that cannot be opened") {
		t.Errorf("without the second key: %s", out)
	}

	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	lost := start(t, env(keyA), "serve")
	server = []string{"PAWL_SERVER=" + lost.url}
	run(server, 0, "instance", "create", "flight-booking", "--context", `{"flight_id": "LH454", "price": 420}`)
	lost.Output.Find(t, "a secret cannot be opened, so webhooks wait")
	bounded.UntilSQL(t, conn, "select bool_and(finding is not null) from pawl.subscription")
	if out := run(server, 0, "subscription", "list"); !strings.Contains(out, "resting: ") || !strings.Contains(out, "not in PAWL_SECRET_KEY") {
		t.Errorf("the list is %s", out)
	}
	run(server, 0, "outbox", "deliveries")
	lost.Kill(t)

	found := start(t, env(keyB), "serve")
	server = []string{"PAWL_SERVER=" + found.url}
	bounded.Receive(t, "a webhook", hooks)
	bounded.UntilSQL(t, conn, "select bool_and(finding is null) from pawl.subscription")
	run(server, 0, "subscription", "list", "--json")
	run(server, 0, "outbox", "deliveries", "--json")
	shown.WriteString(bounded.Value[string](t, conn, "select coalesce(string_agg(a::text, E'\n'), '') from pawl.audit a"))
	if !strings.Contains(shown.String(), "secret.rotate") {
		t.Error("the audit does not tell of the rotations")
	}
	for _, p := range []*process{plain, lost, found} {
		shown.WriteString(p.Output.String())
	}
	for _, secret := range planted {
		if at := strings.Index(shown.String(), strings.TrimPrefix(secret, "whsec_")); at >= 0 {
			t.Errorf("the output shows %s: …%s", secret, shown.String()[max(0, at-200):at])
		}
	}
	if !strings.Contains(found.Output.String(), "such as a variable OTEL_* that it cannot read") {
		t.Error("nothing tells of the variables of OpenTelemetry")
	}
	if n := strings.Count(found.Output.String(), "stored as they are"); n != 0 {
		t.Errorf("with a key the warning comes %d times", n)
	}
}
