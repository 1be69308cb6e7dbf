package main_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// A page says why an instance does not move, and what it lacks says nothing.
func TestDiagnoseOnTheCommandLine(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "dev")
	env := []string{"PAWL_SERVER=" + p.url}
	created := mustPawl(t, env, "instance", "create", "flight-booking", "--context", "{flight_id: LH454, price: 420, note: planted}", "--business-key", "b-1", "--json")
	id := regexp.MustCompile(`"id": "([^"]+)"`).FindStringSubmatch(created)[1]
	if _, _, code := pawl(t, env, "instance", "fire", id, "reserve", "--payload", "{price: 1}"); code == 0 {
		t.Fatal("the event was not refused")
	}
	bounded.Exec(t, dialDSN(t, dsn), outboxtest.FindSQL, id, "heal-failed")
	page := mustPawl(t, env, "instance", "diagnose", id)
	for _, line := range []string{
		`instance +` + id, `workflow +flight-booking, version 1`, `state +QUOTED \(active\)`, `business key +b-1`, `version +1`,
		`ACCEPTED EVENTS`, `  EVENT +TARGETS +GUARD HOLDS +PERMITTED`, `  reserve +RESERVED +no +yes`,
		`FINDINGS`, `  heal-failed +QUOTED +\S+Z +(-|\S+Z) +threshold=.*`, `WAYS OUT OF THE STATE`, `DEADLINES`, `REFUSED COMMANDS`, `  \S+Z +reserve +1 +guard-rejected`,
		`LAST STEPS`, `  1 +\S+Z +created +- +- +QUOTED +\S+ +\S+`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + ` *$`).MatchString(page) {
			t.Errorf("the page lacks %s:\n%s", line, page)
		}
	}
	for _, absent := range []string{"planted", "TASKS", "COMPENSATIONS", "CONNECTIONS", "DELIVERIES", "Not shown"} {
		if strings.Contains(page, absent) {
			t.Errorf("the page has %s:\n%s", absent, page)
		}
	}
	var answer struct {
		Instance struct{ ID string }
		Withheld []string
	}
	if err := json.Unmarshal([]byte(mustPawl(t, env, "instance", "diagnose", id, "--json")), &answer); err != nil || answer.Instance.ID != id || answer.Withheld == nil {
		t.Errorf("as JSON: %+v, %v", answer, err)
	}
	if _, stderr, code := pawl(t, env, "instance", "diagnose", "00000000-0000-7000-8000-000000000000"); code == 0 || !strings.Contains(stderr, "instance-not-found") {
		t.Errorf("nobody is diagnosed: %d %s", code, stderr)
	}
}
