package fsm_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// stepwise is a workflow that can produce every refusal.
const stepwise = `{
	"name": "stepwise", "initial": "A", "require_if_match": true,
	"context_schema": {"required": ["x"]},
	"states": {
		"A": {"on": {
			"go": [{"target": "B", "guard": "$.payload.n > 1"}, {"target": "Z", "guard": "$.payload.n < 0"}],
			"checked": {"target": "B", "payload_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
			"grow": {"target": "A", "assign": {"*": true, "trusted": true}},
			"raise": {"target": "B", "guard": "$nowhere == 1"},
			"stamp": {"target": "B", "assign": {"x": "$.payload.t.datetime(\"zzz\")"}},
			"zoned": {"target": "B", "guard": "$.payload.t.datetime() > \"2026-01-01\".datetime()"}
		}},
		"B": {"on": {"end": "Z"}},
		"Z": {"type": "final"}
	}
}`

func TestEveryKind(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	pool := fsmtest.Open(t, dsn, db.Config{})
	s := fsmtest.On(t, pool, fsm.Config{}, stepwise)
	subscriptions := subscription.New(s.Service)
	ctx := t.Context()
	created, err := s.Create(ctx, fsm.CreateCommand{Workflow: "stepwise", Context: json.RawMessage(`{"x":1}`), BusinessKey: "b", Key: "taken"})
	if err != nil {
		t.Fatal(err)
	}
	id := created.Instance.ID
	doFire := func(event, payload string, change ...func(*fsm.FireCommand)) error {
		c := fsm.FireCommand{ID: id, Event: event, Payload: json.RawMessage(payload), Expect: fsm.ExpectAny()}
		for _, f := range change {
			f(&c)
		}
		_, err := s.Fire(ctx, c)
		if err == nil {
			t.Errorf("%s is not refused", event)
			return errors.New("not refused")
		}
		return err
	}
	doCreate := func(change func(*fsm.CreateCommand)) error {
		c := fsm.CreateCommand{Workflow: "stepwise", Context: json.RawMessage(`{"x":1}`)}
		change(&c)
		_, err := s.Create(ctx, c)
		return err
	}
	at := &fsm.Refusal{State: "A", Status: fsm.Active, Version: 1, AcceptedEvents: []string{"checked", "go", "grow", "raise", "stamp", "zoned"}, Expected: fsm.ExpectAny()}
	with := func(event string, change ...func(*fsm.Refusal)) *fsm.Refusal {
		r := *at
		r.Event = event
		for _, f := range change {
			f(&r)
		}
		return &r
	}
	unexpected := func(r *fsm.Refusal) { r.Expected = fsm.Expect{} }
	big := `{"x":"` + strings.Repeat("x", 65536) + `"}`
	nul := "a\x00"

	produced := map[fsm.Kind]bool{}
	before := fsmtest.Counts(t, pool)
	for name, c := range map[string]struct {
		err      error
		kind     fsm.Kind
		refusal  *fsm.Refusal
		pointers []string
	}{
		"payload is no object":    {doFire("go", `[]`), fsm.Malformed, nil, []string{"/payload"}},
		"payload is no JSON":      {doFire("go", `{"a":{"b":1,"b":2}}`), fsm.Malformed, nil, []string{"/payload/a/b"}},
		"event has NUL":           {doFire(nul, `{}`), fsm.Malformed, nil, []string{""}},
		"event is no UTF-8":       {doFire("\xff", `{}`), fsm.Malformed, nil, []string{""}},
		"event is long":           {doFire(strings.Repeat("x", 256), `{}`), fsm.Malformed, nil, []string{""}},
		"reason is long":          {doFire("go", `{}`, func(c *fsm.FireCommand) { c.Reason = strings.Repeat("é", 1001) }), fsm.Malformed, nil, []string{"/reason"}},
		"actor has NUL":           {doFire("go", `{}`, func(c *fsm.FireCommand) { c.Actor = nul }), fsm.Malformed, nil, []string{""}},
		"tenant has NUL":          {doFire("go", `{}`, func(c *fsm.FireCommand) { c.Tenant = nul }), fsm.Malformed, nil, []string{""}},
		"tenant is long":          {doCreate(func(c *fsm.CreateCommand) { c.Tenant = strings.Repeat("t", 64) }), fsm.Malformed, nil, []string{""}},
		"correlation id is long":  {doFire("go", `{}`, func(c *fsm.FireCommand) { c.CorrelationID = strings.Repeat("x", 256) }), fsm.Malformed, nil, []string{""}},
		"context is no object":    {doCreate(func(c *fsm.CreateCommand) { c.Context = json.RawMessage(`1`) }), fsm.Malformed, nil, []string{"/context"}},
		"business key is long":    {doCreate(func(c *fsm.CreateCommand) { c.BusinessKey = strings.Repeat("x", 256) }), fsm.Malformed, nil, []string{"/business_key"}},
		"correlation id of lines": {doFire("go", `{}`, func(c *fsm.FireCommand) { c.CorrelationID = "a\nb" }), fsm.Malformed, nil, []string{""}},
		"own correlation id BEL":  {doCreate(func(c *fsm.CreateCommand) { c.CorrelationID = "a\a" }), fsm.Malformed, nil, []string{"/correlation_id"}},
		"own correlation id é":    {doCreate(func(c *fsm.CreateCommand) { c.CorrelationID = "é" }), fsm.Malformed, nil, []string{"/correlation_id"}},
		"own correlation id NUL":  {doCreate(func(c *fsm.CreateCommand) { c.CorrelationID = nul }), fsm.Malformed, nil, []string{"/correlation_id"}},
		"workflow has NUL":        {doCreate(func(c *fsm.CreateCommand) { c.Workflow = nul }), fsm.Malformed, nil, []string{""}},
		"expires before":          {doCreate(func(c *fsm.CreateCommand) { c.ExpiresIn = -1 }), fsm.Malformed, nil, []string{"/expires_in"}},
		"expires far away":        {doCreate(func(c *fsm.CreateCommand) { c.ExpiresIn = definition.MaxDuration + 1 }), fsm.Malformed, nil, []string{"/expires_in"}},
		"no ttl to override":      {doCreate(func(c *fsm.CreateCommand) { c.ExpiresIn = 1 }), fsm.Malformed, nil, []string{"/expires_in"}},
		"key is long":             {doFire("go", `{}`, func(c *fsm.FireCommand) { c.Key = strings.Repeat("x", 256) }), fsm.KeyInvalid, nil, nil},
		"key has a space":         {doFire("go", `{}`, func(c *fsm.FireCommand) { c.Key = "a b" }), fsm.KeyInvalid, nil, nil},
		"key is not ASCII":        {doCreate(func(c *fsm.CreateCommand) { c.Key = "é" }), fsm.KeyInvalid, nil, nil},
		"key of a create":         {doFire("go", `{"n":2}`, func(c *fsm.FireCommand) { c.Key = "taken" }), fsm.KeyReuse, nil, nil},
		"key of another context":  {doCreate(func(c *fsm.CreateCommand) { c.Key, c.BusinessKey = "taken", "c" }), fsm.KeyReuse, nil, nil},
		"no such workflow":        {doCreate(func(c *fsm.CreateCommand) { c.Workflow = "none" }), fsm.WorkflowNotFound, nil, nil},
		"no such instance":        {doFire("go", `{}`, func(c *fsm.FireCommand) { c.ID = uuid.New() }), fsm.InstanceNotFound, nil, nil},
		"other tenant":            {doFire("go", `{}`, func(c *fsm.FireCommand) { c.Tenant = "other" }), fsm.InstanceNotFound, nil, nil},
		"business key is taken":   {doCreate(func(c *fsm.CreateCommand) { c.BusinessKey = "b" }), fsm.InstanceExists, nil, nil},
		"stale":                   {doFire("go", `{"n":2}`, func(c *fsm.FireCommand) { c.Expect = fsm.ExpectVersion(2, 3) }), fsm.VersionMismatch, with("go", func(r *fsm.Refusal) { r.Expected = fsm.ExpectVersion(2, 3) }), nil},
		"no version will do":      {doFire("none", `{}`, func(c *fsm.FireCommand) { c.Expect = fsm.ExpectVersion() }), fsm.VersionMismatch, with("none", func(r *fsm.Refusal) { r.Expected = fsm.ExpectVersion() }), nil},
		"unconditional":           {doFire("none", `{}`, func(c *fsm.FireCommand) { c.Expect = fsm.Expect{} }), fsm.PreconditionRequired, with("none", unexpected), nil},
		"payload is large":        {doFire("none", big), fsm.TooLarge, with("none"), nil},
		"context would be large":  {doFire("grow", `{"y":"`+strings.Repeat("y", 65520)+`"}`), fsm.TooLarge, with("grow"), nil},
		"context is large":        {doCreate(func(c *fsm.CreateCommand) { c.Context = json.RawMessage(big) }), fsm.TooLarge, nil, nil},
		"digits are many":         {doFire("go", `{"n":1e70000}`), fsm.TooLarge, with("go"), nil},
		"no such event":           {doFire("none", `{}`), fsm.UnknownEvent, with("none"), nil},
		"event of the engine":     {doFire("after:1s", `{}`), fsm.UnknownEvent, with("after:1s"), nil},
		"event of another state":  {doFire("end", `{}`), fsm.TransitionNotAllowed, with("end"), nil},
		"no guard holds":          {doFire("go", `{"n":0}`), fsm.GuardRejected, with("go", func(r *fsm.Refusal) { r.Guards = []string{"$.payload.n > 1", "$.payload.n < 0"} }), nil},
		"guard is undefined":      {doFire("go", `{"n":{}}`), fsm.GuardRejected, with("go", func(r *fsm.Refusal) { r.Guards = []string{"$.payload.n > 1", "$.payload.n < 0"} }), nil},
		"guard raises":            {doFire("raise", `{}`), fsm.GuardError, with("raise", unexpected), nil},
		"guard has no zone":       {doFire("zoned", `{"t":"2026-01-01T00:00:00+00:00"}`), fsm.GuardError, with("zoned", unexpected), nil},
		"assign raises":           {doFire("stamp", `{"t":"x"}`), fsm.GuardError, with("stamp", unexpected), []string{"/states/A/on/stamp/0/assign/x"}},
		"context does not fit":    {doCreate(func(c *fsm.CreateCommand) { c.Context = json.RawMessage(`{}`) }), fsm.InvalidContext, nil, []string{"/context"}},
		"payload does not fit":    {doFire("checked", `{"n":"1"}`), fsm.InvalidPayload, nil, []string{"/payload/n"}},
		"definition is none":      {second(s.Register(ctx, "w", []byte(`{}`), "", false)), fsm.InvalidDefinition, nil, []string{"/initial", "/states"}},
		"definition is malformed": {second(s.Register(ctx, "w", []byte(`{`), "", false)), fsm.Malformed, nil, []string{""}},
		"definition is large":     {second(s.Register(ctx, "w", make([]byte, 1<<20+1), "", false)), fsm.TooLarge, nil, nil},
		"version is not the next": {second(s.Register(ctx, "stepwise", []byte(strings.Replace(stepwise, "{", `{"version":9,`, 1)), "", false)), fsm.WorkflowConflict, &fsm.Refusal{Version: 1}, nil},
		"cursor of another list":  {second(s.List(ctx, "t", fsm.Filter{}, fsm.Page{Cursor: "AAAA"})), fsm.Malformed, nil, []string{""}},
		"filter has NUL":          {second(s.List(ctx, "t", fsm.Filter{Statuses: []fsm.Status{"\x00"}}, fsm.Page{})), fsm.Malformed, nil, []string{""}},
		"no such delivery":        {second(subscriptions.ReplayDelivery(ctx, fsm.DefaultTenant, uuid.New())), fsm.NotFound, nil, nil},
		"callback has no secret":  {doCreate(func(c *fsm.CreateCommand) { c.CallbackURL = "https://93.184.215.14" }), fsm.CallbackSecretRequired, nil, nil},
		"limit is negative":       {second(s.History(ctx, fsm.DefaultTenant, id, fsm.Page{Limit: -1})), fsm.Malformed, nil, []string{""}},
	} {
		e, ok := errors.AsType[*fsm.Error](c.err)
		if !ok || e.Kind != c.kind {
			t.Errorf("%s: got %v, want: %v", name, c.err, c.kind)
			continue
		}
		produced[e.Kind] = true
		if diff := cmp.Diff(c.refusal, e.Refusal); diff != "" {
			t.Errorf("%s: refusal (-want +got):\n%s", name, diff)
		}
		if e.Message == "" || strings.Contains(e.Message, "SQLSTATE") {
			t.Errorf("%s: message %q", name, e.Message)
		}
		if !slices.Equal(fsmtest.Pointers(e.Faults), append([]string{}, c.pointers...)) {
			t.Errorf("%s: faults at %q, want %q", name, fsmtest.Pointers(e.Faults), c.pointers)
		}
		if exists := e.Kind == fsm.InstanceExists; (e.InstanceID == id) != exists {
			t.Errorf("%s: instance %s", name, e.InstanceID)
		}
		if e.Replayed {
			t.Errorf("%s: is no replay", name)
		}
	}
	// Three refusals are decisions, and only they are recorded.
	after := fsmtest.Counts(t, pool)
	bounded.Exec(t, pool, "delete from pawl.idempotency_key where decision <> 'applied'")
	if rest := fsmtest.Counts(t, pool); before != rest || after == before {
		t.Errorf("before: %s, after: %s, without the refusals' keys: %s", before, after, rest)
	}

	// What is pending is not replayed.
	subscribed, err := subscriptions.Subscribe(ctx, fsm.DefaultTenant, "https://93.184.215.14", subscription.Filter{}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	pending, err := subscriptions.TestSubscription(ctx, fsm.DefaultTenant, subscribed.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = subscriptions.ReplayDelivery(ctx, fsm.DefaultTenant, pending.ID)
	fsmtest.Refused(t, err, fsm.DeliveryConflict)
	produced[fsm.DeliveryConflict] = true

	// A stream has been where history no longer is, or is no longer whole, or has never been.
	streams := live.New(s.Service, nil)
	open := func(last string) (*live.Stream, error) {
		return streams.StreamInstance(ctx, fsm.DefaultTenant, id, live.Filter{}, last)
	}
	lose := dbtest.Fork(t, pool)
	if _, err := s.Fire(ctx, fsm.FireCommand{ID: id, Event: "go", Payload: json.RawMessage(`{"n":2}`), Expect: fsm.ExpectAny()}); err != nil {
		t.Fatal(err)
	}
	dbtest.Number(t, pool)
	lose()
	_, err = open(fsm.StepID(id, 2, 1))
	fsmtest.Refused(t, err, fsm.StepsLost)
	_, err = open(fsm.StepID(id, 2, 2))
	fsmtest.Refused(t, err, fsm.UnknownEventID)
	bounded.Exec(t, pool, "update pawl.history set version = 2, kind = 'transition' where instance_id = $1 and version = 1", id)
	stream, err := open(live.FromStart)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = stream.Next(ctx)
	fsmtest.Refused(t, err, fsm.EventIDTooOld)
	stream.Close()
	for _, kind := range []fsm.Kind{fsm.StepsLost, fsm.UnknownEventID, fsm.EventIDTooOld} {
		produced[kind] = true
	}

	// The tenant has a limit.
	none := int64(0)
	_, err = s.Create(fsm.WithLimits(ctx, fsm.TenantLimits{Queue: &none}), fsm.CreateCommand{Workflow: "stepwise", Context: json.RawMessage(`{"x":1}`)})
	fsmtest.Refused(t, err, fsm.TooManyRequests)
	bounded.Exec(t, pool, "update pawl.tenant set limits = '{\"subscriptions\": 1}' where id = $1", fsm.DefaultTenant)
	_, err = subscriptions.Subscribe(ctx, fsm.DefaultTenant, "https://93.184.215.14", subscription.Filter{}, "", "")
	fsmtest.Refused(t, err, fsm.LimitReached)
	produced[fsm.TooManyRequests], produced[fsm.LimitReached] = true, true

	tokens := access.New(s.Service)
	token := access.Token{Tenant: fsm.DefaultTenant, ID: "t", Subject: "s", Scopes: []string{"read"}}
	if _, err := tokens.CreateToken(ctx, token, nil); err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, `
		insert into pawl.tenant (id, created_at, created_by)
		select 'tenant-' || n, now(), 'test' from generate_series(1, 10000) as n`)
	elsewhere := token
	elsewhere.Tenant, elsewhere.ID = "nowhere", "u"
	for kind, err := range map[fsm.Kind]error{
		fsm.TokenExists:    second(tokens.CreateToken(ctx, token, nil)),
		fsm.Forbidden:      second(tokens.CreateToken(ctx, token, []string{"stepwise"})),
		fsm.UnknownTenant:  second(tokens.CreateToken(ctx, elsewhere, nil)),
		fsm.TenantRequired: second(s.TenantsOf(ctx, fsm.Deployment)),
	} {
		fsmtest.Refused(t, err, kind)
		produced[kind] = true
	}

	// A definition keeps operators out.
	fsmtest.Register(t, s, `{"name": "vault", "initial": "A", "states": {
		"A": {"on": {"go": "B", "end": "C"}}, "B": {"protected": true, "on": {"end": "C"}}, "C": {"type": "final"}}}`)
	vault := fsmtest.Create(t, s, "vault", `{}`).ID
	origin := fsm.Origin{Reason: "why"}
	_, err = s.Override(ctx, fsm.OverrideCommand{ID: vault, To: "B", Expect: fsm.ExpectAny(), Origin: origin})
	fsmtest.Refused(t, err, fsm.StateProtected)
	_, err = s.Cancel(ctx, fsm.CancelCommand{ID: vault, Origin: origin})
	fsmtest.Refused(t, err, fsm.NotCancellable)
	produced[fsm.StateProtected], produced[fsm.NotCancellable] = true, true

	// Nobody foresaw that the engine is gone, nor that it answers nonsense.
	bounded.Exec(t, pool, "drop function pawl.fire")
	bounded.Exec(t, pool, `create function pawl.fire(text[], uuid[], text[], jsonb[], text[], text[], text[], text[], text[], text[], text[], p_verified boolean, p_access uuid)
		returns setof pawl.outcome language sql as $$
		select (jsonb_populate_record(null::pawl.outcome, '{"ordinal": 1, "code": "applied", "replayed": false}')).* $$`)
	e := fsmtest.Refusal(t, doFire("go", `{}`), fsm.Internal)
	if !strings.Contains(e.Error(), "panic") {
		t.Errorf("got %v", e)
	}
	bounded.Exec(t, pool, "drop function pawl.fire")
	fsmtest.Refused(t, doFire("go", `{}`), fsm.Internal)
	produced[fsm.Internal] = true

	s.Close()
	fsmtest.Refused(t, doFire("go", `{}`), fsm.Unavailable)
	produced[fsm.Unavailable] = true
	// The tests of the packages that refuse so produce these.
	for _, kind := range []fsm.Kind{fsm.BulkConflict, fsm.ConfirmationRequired, fsm.LeaseSuperseded, fsm.TaskEnded, fsm.InstanceFinal, fsm.TooFewSamples} {
		produced[kind] = true
	}
	for _, kind := range fsm.Kinds() {
		if !produced[kind] {
			t.Errorf("nothing produces %v", kind)
		}
	}
}

func second[T any](_ T, err error) error { return err }
