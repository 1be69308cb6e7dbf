package db_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The step of a SQL caller is a span of its own in the caller's trace. A trace context that is invalid is ignored.
func TestStepsOfSQLCallersAreTraced(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	var seen []string
	last := func() string {
		return bounded.Value[string](t, pool, "select coalesce(traceparent, '') from pawl.history order by seq desc limit 1")
	}
	for sent, flags := range map[string]string{
		"00-" + trace + "-00f067aa0ba902b7-01": "01", "00-" + trace + "-00f067aa0ba902b7-00": "00", "cc-" + trace + "-00f067aa0ba902b7-01-later": "01",
	} {
		id := bounded.Value[string](t, pool, "select (pawl.create_one('door', p_traceparent => $1)).id::text", sent)
		seen = append(seen, last())
		bounded.Exec(t, pool, "select pawl.fire_one($1, 'open', p_traceparent => $2)", id, sent)
		seen = append(seen, last())
		bounded.Exec(t, pool, "select pawl.fire_by_key('door', $1, 'open', p_start => '{}', p_traceparent => $2)", sent, sent)
		seen = append(seen, last())
		for _, got := range seen[len(seen)-3:] {
			if !regexp.MustCompile(`^00-`+trace+`-[0-9a-f]{16}-`+flags+`$`).MatchString(got) || strings.Contains(got, "00f067aa0ba902b7") {
				t.Errorf("with %s history has %q", sent, got)
			}
		}
	}
	for i, a := range seen {
		for _, b := range seen[:i] {
			if a == b {
				t.Errorf("two steps have the span %s", a)
			}
		}
	}
	for _, bad := range []any{
		nil, "", "nonsense", "ff-" + trace + "-00f067aa0ba902b7-01", "00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01", "00-" + trace + "-0000000000000000-01",
		"00-" + trace + "-00f067aa0ba902b7-01-more", "00-" + strings.ToUpper(trace) + "-00f067aa0ba902b7-01", "01-" + trace + "-00f067aa0ba902b7-01-" + strings.Repeat("x", 300),
	} {
		bounded.Exec(t, pool, "select pawl.create_one('door', p_traceparent => $1)", bad)
		if got := last(); got != "" {
			t.Errorf("with %v history has %q", bad, got)
		}
	}
}
