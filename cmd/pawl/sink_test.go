package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A message is published to a sink once, by one of two replicas.
func TestServeToASink(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + serviceRole(t, dbtest.NewDSN(t)), "PAWL_SINKS=stdout:?from=start"}
	one, two := start(t, env, "serve"), start(t, env, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", one.url, flight)
	id := mustSend(t, http.StatusCreated, http.MethodPost, two.url+create, quote, "Idempotency-Key", "quote-1").member("id").(string)
	bounded.Until(t, "the step to be printed", func() string { return one.Output.String() + two.Output.String() },
		func(printed string) bool { return strings.Contains(printed, `{"specversion":"1.0","id":"`+id+`:1"`) })
	if n := strings.Count(one.Output.String()+two.Output.String(), `"specversion"`); n != 1 {
		t.Errorf("%d messages are printed, want 1", n)
	}
}

// A sink with audit=true gets each row of the audit as GET /v1/audit shows it, whichever replica is killed, and the steps
// too. A purge keeps the rows that a consumer has yet to read.
func TestServeTheAuditToASink(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn), "PAWL_SINKS=stdout:?from=start&audit=true"}
	replicas := []*process{start(t, env, "serve"), start(t, env, "serve")}
	all := slices.Clone(replicas)
	mustPawl(t, nil, "workflow", "apply", "--server", replicas[0].url, flight)
	id := mustSend(t, http.StatusCreated, http.MethodPost, replicas[1].url+create, quote, "Idempotency-Key", "quote-1").member("id").(string)
	for n := range 60 {
		mustSend(t, http.StatusCreated, http.MethodPost, replicas[n%2].url+"/v1/subscriptions", `{"url": "https://example.com/"}`)
		if n%20 == 10 {
			victim := n / 20 % 2
			replicas[victim].Kill(t)
			replicas[victim] = start(t, env, "serve")
			all = append(all, replicas[victim])
		}
	}
	rows := map[float64]any{}
	for _, item := range mustSend(t, http.StatusOK, http.MethodGet, replicas[0].url+"/v1/audit?limit=100", "").member("items").([]any) {
		rows[item.(map[string]any)["seq"].(float64)] = item
	}
	if len(rows) < 61 {
		t.Fatalf("the audit has %d rows", len(rows))
	}
	told := map[float64]any{}
	bounded.Until(t, "every row to be printed", func() int {
		for _, p := range all {
			for _, line := range strings.Split(p.Output.String(), "\n") {
				var e struct {
					ID, Type string
					Data     map[string]any
				}
				if json.Unmarshal([]byte(line), &e) == nil && e.Type == "pawl.audit" {
					seq := e.Data["seq"].(float64)
					told[seq] = e.Data
					if e.ID != fmt.Sprintf("audit:%.0f", seq) {
						t.Errorf("the id of the row %.0f is %s", seq, e.ID)
					}
				}
			}
		}
		n := 0
		for seq := range rows {
			if told[seq] != nil {
				n++
			}
		}
		return n
	}, func(n int) bool { return n == len(rows) })
	for seq, row := range rows {
		if diff := cmp.Diff(row, told[seq]); diff != "" {
			t.Errorf("row %.0f differs: -API +sink\n%s", seq, diff)
		}
	}
	bounded.Until(t, "the step to be printed", func() string {
		var out string
		for _, p := range all {
			out += p.Output.String()
		}
		return out
	}, func(out string) bool { return strings.Contains(out, `"id":"`+id+`:1"`) })

	db := dialDSN(t, dsn)
	bounded.Exec(t, db, "select pawl.consumer_create('audit elsewhere', true, true)")
	owner := []string{"DATABASE_URL=" + dsn}
	now := bounded.Value[time.Time](t, db, "select now()").UTC().Format(time.RFC3339Nano)
	kept := bounded.Value[int](t, db, "select count(*) from pawl.audit where at < $1::timestamptz", now)
	want := fmt.Sprintf("purged 0 rows\nkept %d rows that a sink has yet to get: 'pawl outbox status' shows which\n", kept)
	if out := mustPawl(t, owner, "audit", "purge", "--before", now); out != want {
		t.Errorf("the purge says %q, want %q", out, want)
	}
	if status := mustPawl(t, owner, "outbox", "status"); !regexp.MustCompile(`(?m)^audit elsewhere `).MatchString(status) || !strings.Contains(status, "audit stdout:") {
		t.Errorf("the consumers are\n%s", status)
	}
	mustPawl(t, owner, "outbox", "delete", "audit elsewhere")
	bounded.UntilSQL(t, db, "select bool_and(steps = 0) from pawl.consumer_status()")
	if out, want := mustPawl(t, owner, "audit", "purge", "--before", now), fmt.Sprintf("purged %d rows\n", kept); out != want {
		t.Errorf("the purge says %q, want %q", out, want)
	}
}

// A sink that cannot work is refused, and its password is not printed.
func TestSinksThatCannotWork(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ sinks, want string }{
		{"nats://bob:hunter2@host", "write nats://[user:password@]host[:4222]/STREAM"},
		{"redis://bob:hunter2@host", "unknown scheme"},
		{"stdout: stdout:?from=start", `two sinks use the consumer "sink stdout:"; name one with consumer=NAME`},
		{"nats://bob:hunter2@host/S nats://eve:hunter2@host/S", `two sinks use the consumer "sink nats://host/S"`},
	} {
		for _, command := range []string{"serve", "dev"} {
			_, stderr, code := pawl(t, []string{"DATABASE_URL=postgres://nowhere", "PAWL_SINKS=" + c.sinks}, command)
			last := stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:]
			if code != 2 || !strings.Contains(last, c.want) || strings.Contains(stderr, "hunter2") {
				t.Errorf("pawl %s with %s: exit code %d: %s", command, c.sinks, code, stderr)
			}
		}
	}
}
