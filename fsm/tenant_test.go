package fsm_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

const simple = `{"name": "simple", "initial": "A", "states": {"A": {"on": {"go": "A", "end": "Z"}}, "Z": {"type": "final"}}}`

// limit sets the limits of the default tenant.
func limit(t testing.TB, pool *pgxpool.Pool, limits string) {
	t.Helper()
	bounded.Exec(t, pool, "select pawl.tenant_put($1, $2::jsonb)", fsm.DefaultTenant, limits)
}

// counted counts what tenants use, in steps of three rows, until the count begins anew.
func counted(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	dbtest.Advance(t, pool, 5*time.Second)
	bounded.True(t, "the end of the count", func() bool { return !bounded.Value[bool](t, pool, "select pawl.count_usage(3)") })
}

// At the limit of open instances creations are refused, whoever sends them. Events, replays and other tenants are not.
// The refusal is not recorded for its key, and ends with the next count after an instance has ended.
func TestLimitOfOpenInstances(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, simple)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	ctx := t.Context()
	create := func(key string) (fsm.Result, error) {
		return s.Create(ctx, fsm.CreateCommand{Workflow: "simple", Key: key, BusinessKey: key})
	}
	var last fsm.Result
	for i := range 7 {
		var err error
		if last, err = create(fmt.Sprintf("k%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	limit(t, pool, `{"open_instances": 7}`)
	counted(t, pool)
	want := fsm.ReachedLimit{Name: "open_instances", Limit: 7, Used: 7}
	_, err := create("new")
	if e := fsmtest.Refusal(t, err, fsm.LimitReached); e.Limit == nil || *e.Limit != want {
		t.Errorf("the limit is %+v, want %+v", e.Limit, want)
	}
	_, err = s.FireByKey(ctx, fsm.FireByKeyCommand{
		Workflow: "simple", BusinessKey: "started", Event: "go", Start: &fsm.Start{},
	})
	if e := fsmtest.Refusal(t, err, fsm.LimitReached); e.Limit == nil || *e.Limit != want {
		t.Errorf("a start: the limit is %+v, want %+v", e.Limit, want)
	}
	_, err = pool.Exec(ctx, "select pawl.create_one('simple')")
	if e := fsmtest.Refusal(t, fsm.AsError(err), fsm.LimitReached); e.Limit == nil || *e.Limit != want {
		t.Errorf("in SQL: the limit is %+v, want %+v", e.Limit, want)
	}
	if again, err := create("k3"); err != nil || !again.Replayed {
		t.Errorf("a replay is refused: %v", err)
	}
	if _, err := s.Create(ctx, fsm.CreateCommand{Tenant: "other", Workflow: "simple"}); err != nil {
		t.Errorf("another tenant is refused: %v", err)
	}
	fsmtest.Fire(t, s, last.Instance.ID, "end", `{}`)
	counted(t, pool)
	if created, err := create("new"); err != nil || created.Replayed {
		t.Errorf("the key of the refusal, with room: %v", err)
	}
	// A limit that is raised, or is gone, holds at once.
	counted(t, pool)
	if _, err := create("newer"); err == nil {
		t.Error("the limit is not reached any more")
	}
	limit(t, pool, `{"open_instances": 8}`)
	if _, err := create("newer"); err != nil {
		t.Errorf("with a higher limit: %v", err)
	}
	limit(t, pool, `{}`)
	counted(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.tenant_usage"); n != 0 {
		t.Errorf("%d tenants are counted, and none has a limit", n)
	}
}

// Storage is what instances and history have, to the row. At its limit creations are refused, and events are not.
func TestLimitOfStorage(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, simple)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	var id fsm.Instance
	for range 4 {
		id = fsmtest.Create(t, s, "simple", `{"text": "some text"}`)
		for range 3 {
			fsmtest.Fire(t, s, id.ID, "go", `{"n": 1}`)
		}
	}
	limit(t, pool, `{"storage_bytes": 1000000}`)
	counted(t, pool)
	want := bounded.Value[int64](t, pool, `
		select (select sum(200 + pg_column_size(context)) from pawl.instance)
			+ (select sum(200 + pg_column_size(context) + coalesce(pg_column_size(payload), 0)) from pawl.history)`)
	if got := bounded.Value[int64](t, pool, "select storage_bytes from pawl_private.tenant_usage"); got != want {
		t.Errorf("%d bytes are counted, want %d", got, want)
	}
	limit(t, pool, fmt.Sprintf(`{"storage_bytes": %d}`, want))
	_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "simple"})
	if e := fsmtest.Refusal(t, err, fsm.LimitReached); *e.Limit != (fsm.ReachedLimit{Name: "storage_bytes", Limit: want, Used: want}) {
		t.Errorf("the limit is %+v", e.Limit)
	}
	fsmtest.Fire(t, s, id.ID, "end", `{}`)
	counted(t, pool)
	if got := bounded.Value[int64](t, pool, "select storage_bytes from pawl_private.tenant_usage"); got <= want {
		t.Errorf("the next count says %d, after another step", got)
	}
}

// The limit of subscriptions holds to the last one, also if several are made at once.
func TestLimitOfSubscriptions(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, simple)
	subscriptions := subscription.New(s.Service)
	limit(t, pool, `{"subscriptions": 3}`)
	results := make(chan error, 8)
	subscribe := func(tenant string) error {
		_, err := subscriptions.Subscribe(t.Context(), tenant, "https://93.184.215.14", subscription.Filter{}, "", "")
		return err
	}
	for range cap(results) {
		go func() { results <- subscribe(fsm.DefaultTenant) }()
	}
	refused := 0
	for range cap(results) {
		if err := bounded.Receive(t, "an answer", results); err != nil {
			refused++
			if e := fsmtest.Refusal(t, err, fsm.LimitReached); *e.Limit != (fsm.ReachedLimit{Name: "subscriptions", Limit: 3, Used: 3}) {
				t.Errorf("the limit is %+v", e.Limit)
			}
		}
	}
	if refused != 5 {
		t.Errorf("%d of 8 are refused, want 5", refused)
	}
	if err := subscribe("other"); err != nil {
		t.Errorf("another tenant is refused: %v", err)
	}
}

// A tenant's own limit of its queue refuses what does not find room in it, and takes nothing from another tenant.
func TestLimitOfQueue(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, simple)
	two := int64(2)
	ctx := fsm.WithLimits(t.Context(), fsm.TenantLimits{Queue: &two})
	commands := make([]fsm.Command, 3)
	for i := range commands {
		commands[i] = fsm.CreateCommand{Workflow: "simple", Context: json.RawMessage(`{}`)}
	}
	for _, r := range s.Do(ctx, commands) {
		fsmtest.Refused(t, r.Err, fsm.TooManyRequests)
	}
	for _, r := range s.Do(ctx, commands[:2]) {
		if r.Err != nil {
			t.Errorf("two find room: %v", r.Err)
		}
	}
	for _, r := range s.Do(t.Context(), commands) {
		if r.Err != nil {
			t.Errorf("without the limit: %v", r.Err)
		}
	}
}
