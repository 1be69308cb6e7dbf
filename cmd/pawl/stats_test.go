package main_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// `pawl serve` folds what happens and counts what it answers, and `pawl stats` shows it.
func TestStatsOnTheCommandLine(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	mustPawl(t, env, "workflow", "apply", parcel)
	mustPawl(t, env, "instance", "create", "parcel", "--context", "{sku: A-17}")
	bounded.Until(t, "the instance to be counted", func() string { return mustPawl(t, env, "stats", "parcel", "--by", "version") },
		func(out string) bool {
			return strings.Contains(out, "PACKING, version 1  active  1          ████") && strings.Contains(out, "STATE               STATUS  INSTANCES")
		})
	bounded.Until(t, "the key to be counted", func() string { return mustPawl(t, env, "stats", "parcel") },
		func(out string) bool { return strings.Contains(out, "1 new, 0 replayed") })
	if out := mustPawl(t, env, "stats", "parcel", "--json"); !strings.Contains(out, `"state": "PACKING"`) {
		t.Error(out)
	}
	if out, stderr, code := pawl(t, env, "stats", "parcel", "--from", "soon"); code == 0 || !strings.Contains(out+stderr, "from") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}
