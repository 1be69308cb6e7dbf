package main_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// A back-test prints what would have gone another way, and its exit code says whether anything would.
func TestWorkflowBacktest(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	mustPawl(t, env, "workflow", "apply", flight)
	id := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "c").member("id").(string)
	mustPawl(t, env, "instance", "fire", id, "cancel")

	backtest := func(args ...string) (stdout, stderr string, code int) {
		return pawl(t, env, append([]string{"workflow", "backtest", "flight-booking"}, args...)...)
	}
	const same = "1 instances: 1 the same, 0 different, 0 incomplete\n"
	for _, args := range [][]string{{"--workflow-version=1"}, {"--file", flight, "--sample=1"}} {
		if out, stderr, code := backtest(args...); code != 0 || out != same {
			t.Errorf("%v: exit code %d: %s%s", args, code, out, stderr)
		}
	}
	renamed := edited(t, "CANCELLED", "GIVEN_UP")
	out, stderr, code := backtest("--file", renamed)
	want := "1 × cancel from QUOTED to CANCELLED: elsewhere GIVEN_UP\n    " + id + ", version 2: cancel leads to GIVEN_UP\n" +
		"1 instances: 0 the same, 1 different, 0 incomplete\n"
	if code != 1 || out != want || stderr != "" {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if out, _, code := backtest("--file", renamed, "--json"); code != 1 || !strings.Contains(out, `"would_be": "GIVEN_UP"`) {
		t.Errorf("exit code %d: %s", code, out)
	}
	other := writeFile(t, "other.yaml", "name: other\ninitial: A\nstates: { A: { on: { go: B } }, B: { type: final } }\n")
	for want, args := range map[string][]string{
		"404 workflow-not-found":                               {"--workflow-version=2"},
		"the file defines other, not":                          {"--file", other},
		"400 malformed-request":                                {"--workflow-version=1", "--sample=0"},
		"missing flags: --file=FILE or --workflow-version=N":   nil,
		"can't be used together":                               {"--workflow-version=1", "--file", other},
		"the definition cannot be used: mend the faults above": {"--file", writeFile(t, "faulty.yaml", "name: flight-booking\n")},
	} {
		if out, stderr, code := backtest(args...); code != 2 || out != "" || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit code %d: %s%s, want %s", args, code, out, stderr, want)
		}
	}
}
