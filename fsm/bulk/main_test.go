package bulk_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/bulk"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
}

// bench is a service with bulks on a database of its own.
type bench struct {
	*fsmtest.Service
	t     *testing.T
	pool  *pgxpool.Pool
	bulks *bulk.Service
	keys  int
}

func open(t *testing.T, definitions ...string) *bench {
	t.Helper()
	s, pool := fsmtest.New(t, fsm.Config{}, definitions...)
	return &bench{Service: s, t: t, pool: pool, bulks: bulk.New(s.Service)}
}

// counters makes n instances of counter.
func (b *bench) counters(tenant string, n int) []uuid.UUID {
	b.t.Helper()
	commands := make([]fsm.Command, n)
	for i := range commands {
		commands[i] = fsm.CreateCommand{Tenant: tenant, Workflow: "counter", Context: []byte(`{"x":0}`)}
	}
	ids := make([]uuid.UUID, n)
	for i, r := range b.Do(b.t.Context(), commands) {
		if r.Err != nil {
			b.t.Fatal(r.Err)
		}
		ids[i] = r.Instance.ID
	}
	return ids
}

// ask is a submission of an action for all instances of counter.
func ask(action bulk.Action, params string) bulk.Submission {
	return bulk.Submission{
		Action: action, Filter: &fsm.Filter{Workflows: []string{"counter"}}, Text: json.RawMessage(`{"workflow": "counter"}`),
		Params: json.RawMessage(params), Confirm: "counter", Origin: fsm.Origin{Actor: "operator", Reason: "a test"},
	}
}

// add is a submission that adds one to the counters.
func add() bulk.Submission { return ask(bulk.Fire, `{"event": "add", "payload": {"n": 1}}`) }

// of is a submission for instances by their ids.
func of(c bulk.Submission, ids ...uuid.UUID) bulk.Submission {
	c.Filter, c.Text, c.Confirm, c.IDs = nil, nil, "", ids
	return c
}

// submit submits a bulk, with a new key if it has none.
func (b *bench) submit(c bulk.Submission) bulk.Bulk {
	b.t.Helper()
	if b.keys++; c.Key == "" {
		c.Key = fmt.Sprint("key ", b.keys)[4:]
	}
	out, err := b.bulks.Submit(b.t.Context(), c)
	if err != nil {
		b.t.Fatalf("submit: %v", err)
	}
	return out
}

// step makes one step of the worker, and returns how many instances it has looked at.
func (b *bench) step() int {
	b.t.Helper()
	return bounded.Value[int](b.t, b.pool, "select looked_at from pawl.bulk_step(100)")
}

// work makes all steps that are due.
func (b *bench) work() {
	b.t.Helper()
	for range 1000 {
		if b.step() < 0 {
			return
		}
	}
	b.t.Fatal("the steps do not end")
}

// get reads a bulk of the default tenant.
func (b *bench) get(id uuid.UUID) bulk.Bulk {
	b.t.Helper()
	out, err := b.bulks.Get(b.t.Context(), fsm.DefaultTenant, nil, id)
	if err != nil {
		b.t.Fatalf("get: %v", err)
	}
	return out
}

// control changes the status of a bulk.
func (b *bench) control(id uuid.UUID, control bulk.Control) bulk.Bulk {
	b.t.Helper()
	out, err := b.bulks.Control(b.t.Context(), fsm.DefaultTenant, id, control)
	if err != nil {
		b.t.Fatalf("%s: %v", control, err)
	}
	return out
}

// want fails the test unless a bulk has a status and these counts of items: applied, refused, skipped, failed.
func (b *bench) want(id uuid.UUID, status bulk.Status, counts ...int64) {
	b.t.Helper()
	got := b.get(id)
	have := []int64{got.Applied, got.Refused, got.Skipped, got.Failed}
	if got.Status != status || fmt.Sprint(have) != fmt.Sprint(counts) {
		b.t.Errorf("the bulk is %s with %v items, want %s with %v; it has %s", got.Status, have, status, counts,
			bounded.Value[string](b.t, b.pool, "select coalesce(string_agg(distinct problem::text, ' '), 'no problems') from pawl.bulk_item"))
	}
	items := bounded.Value[string](b.t, b.pool, `select array[
		count(*) filter (where outcome = 'applied'), count(*) filter (where outcome = 'refused'),
		count(*) filter (where outcome = 'skipped'), count(*) filter (where outcome = 'failed')]::text
		from pawl.bulk_item where bulk_id = $1`, id)
	if want := fmt.Sprintf("{%d,%d,%d,%d}", counts[0], counts[1], counts[2], counts[3]); items != want {
		b.t.Errorf("the items are %s, want %s", items, want)
	}
}

// problem is what an item says.
type problem struct {
	Code, Detail, State string
	Errors              []struct{ Pointer, Detail string }
}

// problemOf reads the problem of an instance's item.
func (b *bench) problemOf(id, instance uuid.UUID) problem {
	b.t.Helper()
	list, err := b.bulks.Items(b.t.Context(), fsm.DefaultTenant, id, "", fsm.Page{Limit: fsm.MaxLimit})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, i := range list.Items {
		if i.InstanceID == instance {
			var p problem
			if err := json.Unmarshal(i.Problem, &p); err != nil {
				b.t.Fatalf("%s has the problem %q: %v", i.Outcome, i.Problem, err)
			}
			return p
		}
	}
	b.t.Fatalf("there is no item for %s", instance)
	return problem{}
}

// wantProblem fails the test unless the item of an instance has a problem with this code.
func (b *bench) wantProblem(id, instance uuid.UUID, code string) {
	b.t.Helper()
	if p := b.problemOf(id, instance); p.Code != code {
		b.t.Errorf("the problem is %+v, want %s", p, code)
	}
}
