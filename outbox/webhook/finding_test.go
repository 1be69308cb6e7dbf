package webhook_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// typesInSQL are the CloudEvent types of the kinds of steps.
const typesInSQL = `
	select pawl_private.message_type(m[1])
	from pg_catalog.pg_constraint c
	cross join lateral regexp_matches(pg_catalog.pg_get_constraintdef(c.oid), '''([^'']+)''', 'g') m
	where c.contypid = 'pawl.kind'::regtype and c.conname = 'kind_is_known'`

// alone asks for findings, and for no step.
var alone = subscription.Filter{Types: []string{subscription.FindingOpened}}

// A filter may name the types of the messages that there are, and no others.
func TestTypesOfFilters(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	want := append(bounded.Column[string](t, pool, typesInSQL), outbox.Message{Finding: &finding.Finding{}}.Type())
	slices.Sort(want)
	if got := slices.Sorted(slices.Values(subscription.Types)); !slices.Equal(got, want) {
		t.Errorf("filters may name %v, and messages have the types %v", got, want)
	}
	_, err := service.Subscribe(t.Context(), tenant, "https://example.com", subscription.Filter{Types: []string{subscription.FindingOpened, "pawl.subscription.test"}}, "", "")
	if !isKind(err, fsm.Malformed) || len(fsm.AsError(err).Faults) != 1 || fsm.AsError(err).Faults[0].Pointer != "/filter/types/1" {
		t.Errorf("another type: %v", err)
	}
}

// A subscription gets the types that it asks for: findings only if it names them, and then those of its workflows and
// states, whatever events it asks for. Another tenant's findings are not told.
func TestFindingsByFilter(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	bounded.Exec(t, pool, `select pawl.register_workflow(jsonb_set(definition, '{name}', '"other"')) from pawl.workflow`)
	opened := subscription.FindingOpened
	receivers := map[string]*receiver{}
	for name, filter := range map[string]subscription.Filter{
		"all steps": {}, "steps of a type": {Types: []string{"pawl.instance.created"}}, "findings": alone,
		"both":        {Types: []string{opened, "pawl.instance.transitioned"}},
		"workflow":    {Types: []string{opened}, Workflows: []string{"other"}},
		"state":       {Types: []string{opened}, States: []string{"STOPPED"}},
		"other words": {Types: []string{opened, "pawl.instance.transitioned"}, Events: []string{"stop"}, TerminalOnly: true},
	} {
		receivers[name] = newReceiver(t, nil)
		subscribe(t, service, receivers[name].url, filter)
	}
	stranger := newReceiver(t, nil)
	dbtest.Tenants(t, pool, "elsewhere")
	if _, err := service.Subscribe(t.Context(), "elsewhere", stranger.url, alone, "", ""); err != nil {
		t.Fatal(err)
	}
	id, other := outboxtest.Create(t, pool), bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('other')).id")
	outboxtest.Add(t, pool, id)
	counting, counted := outboxtest.Find(t, pool, id), outboxtest.Find(t, pool, other)
	bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", id)
	stopped := outboxtest.Find(t, pool, id)
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, 4+2+3+5+1+1+4)
	steps := outboxtest.IDs(id, 1, 2, 3)
	created := outboxtest.IDs(other, 1)[0]
	for name, want := range map[string][]string{
		"all steps": {steps[0], steps[1], steps[2], created}, "steps of a type": {steps[0], created}, "findings": {counting, counted, stopped},
		"both": {steps[1], steps[2], counting, counted, stopped}, "workflow": {counted}, "state": {stopped},
		"other words": {steps[2], counting, counted, stopped},
	} {
		got := whats(receivers[name].list())
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s got %v, want %v", name, got, want)
		}
	}
	if n := len(stranger.list()); n > 0 {
		t.Errorf("another tenant got %d messages", n)
	}
}

// A change of a subscription routes findings that have no position yet. They are sent all the same.
func TestFindingWithoutAPosition(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t) // Without a sequencer.
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", outboxtest.Counter)
	service := newServices(pool, fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true}})
	t.Cleanup(service.Close)
	r := newReceiver(t, nil)
	s := subscribe(t, service, r.url, alone)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true)")
	what := outboxtest.Find(t, pool, outboxtest.Create(t, pool))
	if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, subscription.Change{Filter: &alone}); err != nil {
		t.Fatal(err)
	}
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(status <> 'pending') from pawl.delivery")
	if got := bounded.Value[string](t, pool, "select concat_ws(' ', status, last_error) from pawl.delivery"); got != "delivered" {
		t.Fatalf("the delivery is %s", got)
	}
	wantWhats(t, r.list(), []string{what})
	if epoch, ok := r.list()[0].event.Extensions()["epoch"]; !ok || epoch != int32(1) {
		t.Errorf("the epoch is %v", epoch)
	}
	// With a position it is routed again, and not told again.
	outboxtest.Number(t, pool)
	next := outboxtest.Find(t, pool, outboxtest.Create(t, pool))
	bounded.UntilSQL(t, pool, allDelivered, 2)
	wantWhats(t, r.list(), []string{what, next})
}

// A delivery of a finding is signed and logged as that of a step is.
func TestFindingToAWebhook(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	subscribed := subscribe(t, service, r.url, alone)
	id := outboxtest.Create(t, pool)
	what := outboxtest.Find(t, pool, id)
	webhooks(t, pool, quickly)
	h := r.want(t, 1)[0]
	bounded.UntilSQL(t, pool, allDelivered, 1)
	webhook, err := standardwebhooks.NewWebhook(subscribed.Secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := webhook.Verify(h.body, h.header); err != nil {
		t.Error(err)
	}
	if h.what() != what || h.event.Subject() != id.String() || h.event.Source() != "/tenants/default/workflows/counter" {
		t.Errorf("the message is %s", h.body)
	}
	var data struct {
		ID      uuid.UUID `json:"id"`
		Kind    string    `json:"kind"`
		Version int64     `json:"version"`
	}
	if err := json.Unmarshal(h.event.Data(), &data); err != nil || "finding:"+data.ID.String() != what || data.Kind != "slow" || data.Version != 1 {
		t.Errorf("its data is %s: %v", h.event.Data(), err)
	}
	log := deliveries(t, service, subscription.DeliveryFilter{InstanceID: id})
	if len(log) != 1 || log[0].ID.String() != h.id() || log[0].Type != subscription.FindingOpened || log[0].Version != nil ||
		log[0].FindingID == nil || *log[0].FindingID != data.ID || *log[0].InstanceID != id || log[0].Attempts != 1 {
		t.Errorf("the log has %+v", log)
	}
	for workflow, within := range map[string]bool{"counter": false, "other": false} {
		if got, err := service.IsWithin(t.Context(), tenant, log[0].ID, []string{workflow}); err != nil || got != within {
			t.Errorf("within %s: %v, %v", workflow, got, err)
		}
	}
}

// Who is bound to workflows sees the deliveries of findings about these, also when the instances are purged.
func TestFindingsWithinWorkflows(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	bounded.Exec(t, pool, `select pawl.register_workflow(jsonb_set(definition, '{name}', '"other"')) from pawl.workflow`)
	both := alone
	both.Workflows = []string{"counter", "other"}
	s := subscribe(t, service, newReceiver(t, nil).url, both)
	for _, workflow := range both.Workflows {
		outboxtest.Find(t, pool, bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one($1)).id", workflow))
	}
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, 2)
	one := alone
	one.Workflows = []string{"other"}
	if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, subscription.Change{Filter: &one}); err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, "delete from pawl.instance")
	list := deliveries(t, service, subscription.DeliveryFilter{Within: []string{"other"}})
	if len(list) != 1 {
		t.Fatalf("within the workflow there are %d deliveries, want 1", len(list))
	}
	if got := bounded.Value[string](t, pool, "select workflow from pawl.finding where id = $1", *list[0].FindingID); got != "other" {
		t.Errorf("the finding is about %s", got)
	}
}

// A finding waits for an earlier message of its instance that is to be tried again, and later steps wait for it.
func TestFindingsAreInOrder(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var mu sync.Mutex
	failed := map[string]bool{}
	// The first attempt of each message fails.
	r := newReceiver(t, func(w http.ResponseWriter, h hook) {
		mu.Lock()
		defer mu.Unlock()
		if !failed[h.what()] {
			failed[h.what()] = true
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	subscribe(t, service, r.url, subscription.Filter{Types: subscription.Types})
	id := outboxtest.Create(t, pool)
	found := outboxtest.Find(t, pool, id)
	outboxtest.Add(t, pool, id)
	again := outboxtest.Find(t, pool, id)
	outboxtest.Add(t, pool, id)
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, 5)
	steps := outboxtest.IDs(id, 1, 2, 3)
	var want []string
	for _, what := range []string{steps[0], found, steps[1], again, steps[2]} {
		want = append(want, what, what)
	}
	wantWhats(t, r.list(), want)
}

// A dead letter of a finding is replayed under the same id. When the finding is gone, it is not.
func TestReplayOfFindings(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	subscribe(t, service, r.url, alone)
	config := quickly
	config.MaxAttempts, config.Backoff, config.Open = 2, time.Millisecond, time.Millisecond
	webhooks(t, pool, config)
	what := outboxtest.Find(t, pool, outboxtest.Create(t, pool))
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(status = 'dead') from pawl.delivery")
	broken.Store(false)
	dead := deliveries(t, service, subscription.DeliveryFilter{})[0]
	// It was closed meanwhile.
	bounded.Exec(t, pool, "update pawl.finding set closed_at = pawl.now()")
	if _, err := service.ReplayDelivery(t.Context(), tenant, dead.ID); err != nil {
		t.Fatal(err)
	}
	bounded.UntilSQL(t, pool, allDelivered, 1)
	wantWhats(t, r.list(), []string{what, what, what})
	for _, h := range r.list() {
		if h.id() != dead.ID.String() {
			t.Errorf("the webhook-id is %s, want %s", h.id(), dead.ID)
		}
	}
	bounded.Exec(t, pool, "delete from pawl.finding")
	if _, err := service.ReplayDelivery(t.Context(), tenant, dead.ID); !isKind(err, fsm.DeliveryConflict) {
		t.Errorf("without the finding: %v", err)
	}
}

// A pending delivery of a finding that is gone is abandoned.
func TestFindingThatIsGone(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	subscribe(t, service, r.url, alone)
	outboxtest.Find(t, pool, outboxtest.Create(t, pool))
	outboxtest.Numbered(t, pool)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '0'); select pawl.delivery_route('x', 1, 100, '0', '')")
	bounded.Exec(t, pool, "delete from pawl.finding")
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(status = 'dead' and attempts = 0 and last_error = 'the finding was purged before the delivery was sent') from pawl.delivery")
	if n := len(r.list()); n > 0 {
		t.Errorf("%d attempts", n)
	}
}

// The instance of a finding is purged, and the finding closed, before it could be delivered. It is delivered once, and
// says so.
func TestFindingOutlivesItsInstance(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	subscribe(t, service, r.url, alone)
	stop := webhooks(t, pool, quickly)
	id := outboxtest.Create(t, pool)
	what := outboxtest.Find(t, pool, id)
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(attempts = 1) from pawl.delivery")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'stop')", id)
	// The pending delivery does not keep the instance. Other transactions of the server hold back what the router has read.
	bounded.UntilSQL(t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], pawl.now())) = 1", id)
	stop()
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where closed_at is not null"); n != 1 {
		t.Fatalf("%d findings are closed, want 1", n)
	}
	broken.Store(false)
	dbtest.Advance(t, pool, 2*time.Hour)
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, 1)
	wantWhats(t, r.list(), []string{what, what})
	var data struct {
		ClosedAt *time.Time `json:"closed_at"`
	}
	if err := json.Unmarshal(r.list()[1].event.Data(), &data); err != nil || data.ClosedAt == nil {
		t.Errorf("the data is %s: %v", r.list()[1].event.Data(), err)
	}
}

// A leader that has sent a finding and not settled it is followed by one that sends it again, under the same webhook-id.
// Routed again, it is not delivered again.
func TestCrashWhileFindingsAreSent(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	first := make(chan struct{})
	var depose sync.Once
	r := newReceiver(t, func(http.ResponseWriter, hook) {
		depose.Do(func() {
			bounded.Exec(t, pool, "update pawl.consumer set term = term + 1")
			close(first)
		})
	})
	subscribe(t, service, r.url, alone)
	what := outboxtest.Find(t, pool, outboxtest.Create(t, pool))
	config := quickly
	config.Lease = 300 * time.Millisecond
	stop := webhooks(t, pool, config)
	bounded.Receive(t, "the first attempt", first)
	bounded.UntilSQL(t, pool, allDelivered, 1)
	stop()
	wantWhats(t, r.list(), []string{what, what})
	if ids := r.list(); ids[0].id() != ids[1].id() {
		t.Errorf("the ids are %s and %s", ids[0].id(), ids[1].id())
	}
	// A failover takes the position back.
	bounded.Exec(t, pool, "update pawl.consumer set position = 0")
	webhooks(t, pool, config)
	next := outboxtest.Find(t, pool, outboxtest.Create(t, pool))
	bounded.UntilSQL(t, pool, allDelivered, 2)
	wantWhats(t, r.list(), []string{what, what, next})
}

// Findings that more subscriptions ask for than the router looks at are routed in pieces, to each once. A filter that was
// narrowed meanwhile counts for later ones.
func TestFindingsAreRoutedInPieces(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	receivers := make([]*receiver, 9)
	for n := range receivers {
		receivers[n] = newReceiver(t, nil)
		subscribe(t, service, receivers[n].url, alone)
	}
	changed := newReceiver(t, nil)
	last := subscribe(t, service, changed.url, alone)
	var want []string
	id := outboxtest.Create(t, pool)
	for range 30 {
		want = append(want, outboxtest.Find(t, pool, id))
		outboxtest.Add(t, pool, id)
	}
	outboxtest.Numbered(t, pool)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '0'); select pawl.delivery_route('x', 1, 40, '0', '')")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.unrouted_step where finding_id is not null"); n == 0 {
		t.Fatal("no finding was put off")
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.log l, pawl.consumer c where l.position > c.position and l.finding_id is not null"); n == 0 {
		t.Fatal("all findings were read")
	}
	// One that has no position yet.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, outboxtest.Find(t, tx, id))
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	none := subscription.Change{Filter: &subscription.Filter{Types: []string{"pawl.instance.expired"}}}
	if _, err := service.UpdateSubscription(t.Context(), tenant, last.ID, none); err != nil {
		t.Fatal(err)
	}
	config := quickly
	config.Page = 7
	webhooks(t, pool, config)
	outboxtest.Numbered(t, pool)
	outboxtest.CaughtUp(t, pool, "webhooks")
	for _, r := range append(receivers, changed) {
		wantWhats(t, r.want(t, len(want)), want)
	}
}

// That healing has paused is about a workflow and no instance. It is told to those who ask for the workflow, but not to
// those who ask for states. It is replayed as any other.
func TestPausedHealingIsTold(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	asked, other := alone, newReceiver(t, nil)
	asked.Workflows = []string{"counter"}
	subscribe(t, service, r.url, asked)
	states := alone
	states.States = []string{"COUNTING"}
	subscribe(t, service, other.url, states)
	config := quickly
	config.MaxAttempts, config.Backoff, config.Open = 2, time.Millisecond, time.Millisecond
	webhooks(t, pool, config)
	what := "finding:" + bounded.Value[uuid.UUID](t, pool, `
		insert into pawl.finding (tenant_id, id, kind, workflow, opened_at, detail)
		values ($1, pawl_private.uuid_v7(pawl.now()), 'healing-paused', 'counter', pawl.now(), '{"open": 30, "stuck_at_least": 20}')
		returning id`, tenant).String()
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(status = 'dead') from pawl.delivery")
	broken.Store(false)
	dead := deliveries(t, service, subscription.DeliveryFilter{})[0]
	if dead.InstanceID != nil || dead.Version != nil || dead.FindingID == nil {
		t.Errorf("the log has %+v", dead)
	}
	if _, err := service.ReplayDelivery(t.Context(), tenant, dead.ID); err != nil {
		t.Fatal(err)
	}
	bounded.UntilSQL(t, pool, allDelivered, 1)
	wantWhats(t, r.list(), []string{what, what, what})
	if n := len(other.list()); n > 0 {
		t.Errorf("%d messages for who asks for states", n)
	}
	last := r.list()[2]
	var data map[string]any
	if err := json.Unmarshal(last.event.Data(), &data); err != nil || last.event.Subject() != "" || data["kind"] != "healing-paused" {
		t.Errorf("the message is %s: %v", last.body, err)
	}
	for _, absent := range []string{"instance_id", "state", "version", "since"} {
		if v, given := data[absent]; given {
			t.Errorf("%s is %v", absent, v)
		}
	}
}
