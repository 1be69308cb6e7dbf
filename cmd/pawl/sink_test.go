package main_test

import (
	"net/http"
	"strings"
	"testing"

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
