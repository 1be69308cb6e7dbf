package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// A process is ready although nobody numbers the log, and says so.
func TestReadinessWarnsOfASilentLog(t *testing.T) {
	t.Parallel()
	a := start(t)
	if body := string(a.get("/readyz").want(http.StatusOK).body); !strings.Contains(body, "no process runs the workers") {
		t.Errorf("without a sequencer it answers %s", body)
	}
	dbtest.Number(t, a.pool)
	if body := string(a.get("/readyz").want(http.StatusOK).body); strings.Contains(body, "warnings") {
		t.Errorf("with a sequencer it answers %s", body)
	}
}
