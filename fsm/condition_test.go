package fsm_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The database and the service both know the conditions: their SQLSTATEs, what they are to a client,
// and the words of those that the engine answers as outcomes.
func TestConditions(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const event, state, version = "go", "OPEN", 7
	id := uuid.MustParse("01a1fcd7-ff39-747e-a6b5-6e2ff2d8f87b")
	rows, err := pool.Query(bounded.Context(t), `
		select c.outcome, c.problem, c.sqlstate, format(c.message, $1::text, $2::text, $3::int, $4::text)
		from pawl_private.condition c`, event, state, version, id.String())
	if err != nil {
		t.Fatal(err)
	}
	var outcome, problem, sqlstate string
	var message *string
	known := map[string]bool{}
	_, err = pgx.ForEachRow(rows, []any{&outcome, &problem, &sqlstate, &message}, func() error {
		known[sqlstate] = true
		kind := fsm.FromDatabase(&pgconn.PgError{Code: sqlstate}).Kind
		if got := strings.ReplaceAll(kind.Error(), " ", "-"); got != problem {
			t.Errorf("%s (%s) is %s in the service, want %s", sqlstate, outcome, got, problem)
		}
		if message == nil {
			return nil
		}
		refused := fsm.Refused(outcome, id, fsm.Refusal{Event: event, State: state, Version: version})
		if got := strings.ReplaceAll(refused.Kind.Error(), " ", "-"); got != problem || refused.Message != *message {
			t.Errorf("the outcome %s is %s, %q in the service; want %s, %q", outcome, got, refused.Message, problem, *message)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, sqlstate := range fsm.ConditionStates() {
		if !known[sqlstate] {
			t.Errorf("no function of the database raises %s", sqlstate)
		}
	}
	if len(known) < 15 {
		t.Errorf("there are only %d conditions", len(known))
	}
}
