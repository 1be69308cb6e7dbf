package diagnosis_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/diagnosis"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// before calls a function before each statement.
type before func(sql string)

func (b before) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	b(data.SQL)
	return ctx
}

func (before) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

const lamp = `{"name": "lamp", "initial": "OFF", "states": {
	"OFF": {"on": {"press": "ON"}}, "ON": {"on": {"press": "OFF", "smash": {"target": "BROKEN", "guard": "$.context.angry == true"}}}, "BROKEN": {"type": "final"}}}`

// Steps that are made while a diagnosis is read are in none of its parts.
func TestPartsFitOneAnother(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	other := fsmtest.On(t, pool, fsm.Config{}, lamp)
	id := fsmtest.Create(t, other, "lamp", `{}`).ID
	steps := 0
	traced := fsmtest.Open(t, dbtest.DSN(pool), db.Config{Tracer: before(func(sql string) {
		if strings.Contains(sql, "Diagnosed") || strings.Contains(sql, "GuardHolds") {
			fsmtest.Fire(t, other, id, "press", `{}`)
			steps++
		}
	})})
	service := fsmtest.On(t, traced, fsm.Config{})
	d, err := diagnosis.New(service.Service).Diagnose(t.Context(), fsm.DefaultTenant, id, diagnosis.Viewer{
		Deliveries: func(string) (bool, []string) { return true, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	// The transaction sees what was committed before its first statement that reads.
	if steps < 10 || len(d.Steps) == 0 || d.Instance.Version != d.Steps[0].Version || d.Steps[0].To != d.Instance.State {
		t.Errorf("with %d steps meanwhile, the instance is at version %d in %s, and its steps are %+v", steps, d.Instance.Version, d.Instance.State, d.Steps)
	}
	for _, e := range d.Events {
		if e.GuardHolds == nil || *e.GuardHolds != (e.Name == "press") {
			t.Errorf("the guard of %s holds: %v", e.Name, e.GuardHolds)
		}
	}
	if want := map[string]int{"OFF": 1, "ON": 2}[d.Instance.State]; len(d.Events) != want || len(d.Definition.Transitions) != want {
		t.Errorf("in %s it accepts %+v, by %+v", d.Instance.State, d.Events, d.Definition.Transitions)
	}
}

// Guards that take long are given up after a while, however many there are.
func TestGuardsThatTakeLong(t *testing.T) {
	t.Parallel()
	const events = 40
	var on []string
	for i := range events {
		on = append(on, fmt.Sprintf(`"e%02d": {"target": "B", "guard": "exists($.context.xs[*] ? (exists($.context.xs[*] ? (exists($.context.xs[*] ? (exists($.context.xs[*] ? (@ == -1))))))))"}`, i))
	}
	pool := dbtest.New(t)
	setup := fsmtest.On(t, pool, fsm.Config{}, `{"name": "slow", "initial": "A", "states": {"A": {"on": {`+strings.Join(on, ", ")+`, "quick": "B"}}, "B": {"type": "final"}}}`)
	id := fsmtest.Create(t, setup, "slow", `{"xs": [`+strings.Repeat("1, ", 300)+`1]}`).ID
	var calls atomic.Int64
	traced := fsmtest.Open(t, dbtest.DSN(pool), db.Config{StatementTimeout: 250 * time.Millisecond, Tracer: before(func(sql string) {
		if strings.Contains(sql, "GuardHolds") {
			calls.Add(1)
		}
	})})
	service := fsmtest.On(t, traced, fsm.Config{})
	d, err := diagnosis.New(service.Service).Diagnose(t.Context(), fsm.DefaultTenant, id, diagnosis.Viewer{})
	if err != nil {
		t.Fatal(err)
	}
	if n := calls.Load(); n < 2 || n >= events {
		t.Errorf("guards were evaluated in %d calls", n)
	}
	if len(d.Events) != events+1 || d.Events[0].GuardHolds != nil || d.Deliveries != nil {
		t.Errorf("the events are %+v", d.Events)
	}
}

func TestNobodyToDiagnose(t *testing.T) {
	t.Parallel()
	service, pool := fsmtest.New(t, fsm.Config{}, lamp)
	id := fsmtest.Create(t, service, "lamp", `{}`).ID
	dbtest.Tenants(t, pool, "other")
	for _, c := range []struct {
		tenant string
		id     uuid.UUID
	}{{fsm.DefaultTenant, uuid.New()}, {"other", id}, {"nobody", id}} {
		_, err := diagnosis.New(service.Service).Diagnose(t.Context(), c.tenant, c.id, diagnosis.Viewer{})
		fsmtest.Refused(t, err, fsm.InstanceNotFound)
	}
}
