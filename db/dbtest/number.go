package dbtest

import (
	"testing"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Number gives positions to the steps that were committed so far, as a sequencer of the test's own that nobody else
// takes over from.
func Number(t testing.TB, q queries.DBTX) {
	t.Helper()
	// Each is a transaction of its own.
	bounded.Exec(t, q, "select pawl.log_lead('the test', '1 day') where not exists (select from pawl.log_head h where h.leader = 'the test')")
	bounded.Exec(t, q, "select pawl.log_begin('the test', h.term) from pawl.log_head h")
	if !bounded.Value[bool](t, q, "select (pawl.log_tick('the test', h.term, '1 day')).leads from pawl.log_head h") {
		t.Fatal("another sequencer leads")
	}
}
