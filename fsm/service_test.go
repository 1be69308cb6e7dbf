package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
)

func TestRegister(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{})
	ctx := t.Context()

	dry, err := s.Register(ctx, "flight-booking", []byte(flightBooking), "alice", true)
	if err != nil {
		t.Fatal(err)
	}
	if dry.Created || dry.Version != 1 || dry.CreatedBy != "" || !dry.CreatedAt.IsZero() || dry.Checksum == "" {
		t.Errorf("dry run: %+v", dry)
	}
	if n := scan[int](t, pool, "select count(*) from pawl.workflow"); n != 0 {
		t.Errorf("a dry run left %d workflows", n)
	}

	first, err := s.Register(ctx, "flight-booking", []byte(flightBooking), "alice", false)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Created || first.Version != 1 || first.CreatedBy != "alice" || first.Checksum != dry.Checksum || first.CreatedAt.IsZero() {
		t.Errorf("first: %+v", first)
	}
	sameJSON(t, first.Definition, canonical(t, flightBooking))

	// The same content, written in another way and without a name, is no new version.
	again, err := s.Register(ctx, "flight-booking", []byte(strings.Replace(flightBooking, `"name": "flight-booking",`, "", 1)), "bob", false)
	if err != nil {
		t.Fatal(err)
	}
	if again.Created || !cmp.Equal(again.Workflow, first.Workflow) {
		t.Errorf("again: %+v", again)
	}

	changed := strings.Replace(flightBooking, `"30m"`, `"45m"`, 1)
	second, err := s.Register(ctx, "", []byte(strings.Replace(changed, `"name"`, `"version": 2, "name"`, 1)), "", false)
	if err != nil {
		t.Fatal(err)
	}
	if !second.Created || second.Version != 2 || second.CreatedBy != "anonymous" {
		t.Errorf("second: %+v", second)
	}

	_, err = s.Register(ctx, "", []byte(strings.Replace(flightBooking, `"name"`, `"version": 7, "name"`, 1)), "bob", false)
	if e := refusal(t, err, fsm.WorkflowConflict); e.Refusal.Version != 2 {
		t.Errorf("conflict at %d", e.Refusal.Version)
	}

	// Every path that Postgres cannot read is named, with the rest of what is wrong.
	_, err = s.Register(ctx, "w", []byte(`{"initial":"A","states":{
		"A":{"on":{"go":[{"target":"B","guard":"$.a ==","assign":{"x/y":"$.("}},{"target":"C"}]},"after":{"1s":{"target":"B","guard":"$$"}}},
		"B":{"type":"final"}}}`), "", false)
	e := refusal(t, err, fsm.InvalidDefinition)
	want := []string{"/states/A/after/1s/guard", "/states/A/on/go/0/assign/x~1y", "/states/A/on/go/0/guard", "/states/A/on/go/1/target"}
	if !slices.Equal(pointers(e.Faults), want) {
		t.Errorf("got\n%swant %q", describe(e.Faults), want)
	}

	latest, err := s.GetWorkflow(ctx, "flight-booking", 0)
	if err != nil || latest.Version != 2 {
		t.Errorf("latest: %+v, %v", latest, err)
	}
	old, err := s.GetWorkflow(ctx, "flight-booking", 1)
	if err != nil || !cmp.Equal(old, first.Workflow) {
		t.Errorf("version 1: %+v, %v", old, err)
	}
	for name, version := range map[string]int{"none": 0, "flight-booking": 3, "a\x00": 0, "w": -1, "x": 1 << 31} {
		_, err := s.GetWorkflow(ctx, name, version)
		refused(t, err, fsm.WorkflowNotFound)
	}
	_, err = s.Register(ctx, "w", []byte(wrap(`{"on":{"go":"B"}}`)), "a\x00", false)
	refused(t, err, fsm.Malformed)
}

func TestRegisterAtOnce(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{})
	const n = 8
	created := make(chan bool, n)
	for range n {
		go func() {
			r, err := s.Register(t.Context(), "", []byte(counter), "", false)
			if err != nil {
				t.Error(err)
			}
			created <- r.Created
		}()
	}
	first := 0
	for range n {
		if <-created {
			first++
		}
	}
	if first != 1 {
		t.Errorf("%d of %d say that they made the version", first, n)
	}
}

func TestListWorkflows(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{})
	for _, name := range []string{"b", "a", "c"} {
		register(t, s, strings.Replace(wrap(`{"on":{"go":"B"}}`), `"w"`, `"`+name+`"`, 1))
	}
	register(t, s, strings.Replace(wrap(`{"on":{"went":"B"}}`), `"w"`, `"b"`, 1))
	var names []string
	page := fsm.Page{Limit: 1}
	for {
		l, err := s.ListWorkflows(t.Context(), page)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range l.Items {
			names = append(names, w.Name)
			if want := map[string]int{"a": 1, "b": 2, "c": 1}[w.Name]; w.Version != want {
				t.Errorf("%s is listed at version %d, want %d", w.Name, w.Version, want)
			}
		}
		if page.Cursor = l.Next; page.Cursor == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("got %q", names)
	}
	_, err := s.ListWorkflows(t.Context(), fsm.Page{Limit: -1})
	if e := refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "limit" {
		t.Errorf("got %+v", e.Faults)
	}
}

func TestBooking(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking)
	ctx := t.Context()
	start := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	dbtest.SetClock(t, pool, start)

	r, err := s.Create(ctx, fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id":"LX1","price":9007199254740993}`), Key: "k1",
		BusinessKey: "order-1", Origin: fsm.Origin{Actor: "alice", Reason: "wants to fly", CorrelationID: "c-1", Traceparent: "00-1-2-01"},
	})
	if err != nil {
		t.Fatal(err)
	}
	i := r.Instance
	expires := start.Add(30 * time.Minute)
	want := fsm.Instance{
		ID: i.ID, Workflow: "flight-booking", WorkflowVersion: 1, State: "QUOTED", Status: fsm.Active, Version: 1,
		Context: i.Context, BusinessKey: new("order-1"), CorrelationID: new("c-1"), Actions: []string{"cancel", "reserve"},
		CreatedAt: start, StateChangedAt: start, ExpiresAt: &expires,
	}
	if diff := cmp.Diff(want, i); diff != "" || r.Replayed || i.ID.Version() != 7 {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	sameJSON(t, i.Context, `{"flight_id":"LX1","price":9007199254740993}`)
	if diff := cmp.Diff(i, get(t, s, i.ID)); diff != "" {
		t.Errorf("read (-created +read):\n%s", diff)
	}

	dbtest.Advance(t, pool, time.Minute)
	r, err = s.Fire(ctx, fsm.FireCommand{
		ID: i.ID, Event: "reserve", Payload: json.RawMessage(`{"price":9007199254740993,"seat":"12A","x":1}`), Key: "k2",
		Expect: fsm.ExpectVersion(1), Origin: fsm.Origin{Actor: "bob", CorrelationID: "c-2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	reserved := r.Instance
	want = i
	want.State, want.Version, want.Context, want.StateChangedAt = "RESERVED", 2, reserved.Context, start.Add(time.Minute)
	want.Actions = []string{"cancel", "pay"}
	if diff := cmp.Diff(want, reserved); diff != "" {
		t.Errorf("reserved (-want +got):\n%s", diff)
	}
	sameJSON(t, reserved.Context,
		`{"flight_id":"LX1","price":9007199254740993,"seat":"12A","reserved_at":"2026-03-01T12:01:00.123456+00:00"}`)

	dbtest.Advance(t, pool, time.Minute)
	fire(t, s, i.ID, "pay", `{"amount":1,"payment_ref":"p"}`)
	paid := fire(t, s, i.ID, "pay", `{"amount":9007199254740993,"payment_ref":"q"}`)
	if paid.State != "PAID" || paid.Status != fsm.Completed || paid.Version != 4 || len(paid.Actions) != 0 {
		t.Errorf("paid: %+v", paid)
	}

	// The past is as it was.
	for version, was := range map[int64]fsm.Instance{1: i, 2: reserved, 4: paid} {
		got, err := s.GetVersion(ctx, fsm.DefaultTenant, i.ID, version)
		if diff := cmp.Diff(was, got); err != nil || diff != "" {
			t.Errorf("version %d: %v (-then +now):\n%s", version, err, diff)
		}
	}
	for at, version := range map[time.Time]int64{
		start: 1, start.Add(time.Minute - time.Microsecond): 1, start.Add(time.Minute): 2, start.Add(time.Hour): 4,
	} {
		got, err := s.GetAt(ctx, fsm.DefaultTenant, i.ID, at)
		if err != nil || got.Version != version {
			t.Errorf("at %v: version %d, %v; want %d", at, got.Version, err, version)
		}
	}
	_, err = s.GetAt(ctx, fsm.DefaultTenant, i.ID, start.Add(-time.Microsecond))
	refused(t, err, fsm.InstanceNotFound)
	for _, version := range []int64{-1, 0, 5} {
		_, err = s.GetVersion(ctx, fsm.DefaultTenant, i.ID, version)
		refused(t, err, fsm.InstanceNotFound)
	}
	_, err = s.Get(ctx, "other", i.ID)
	refused(t, err, fsm.InstanceNotFound)
	_, err = s.GetVersion(ctx, "other", i.ID, 1)
	refused(t, err, fsm.InstanceNotFound)
	_, err = s.History(ctx, "other", i.ID, fsm.Page{})
	refused(t, err, fsm.InstanceNotFound)
	_, err = s.Actions(ctx, "other", i.ID, true)
	refused(t, err, fsm.InstanceNotFound)

	steps := history(t, s, i.ID)
	if len(steps) != 4 {
		t.Fatalf("%d steps", len(steps))
	}
	if diff := cmp.Diff(fsm.Step{
		Version: 1, WorkflowVersion: 1, Kind: "created", To: "QUOTED", Status: fsm.Active, Context: i.Context, Actor: "alice",
		Reason: new("wants to fly"), Key: new("k1"), CorrelationID: new("c-1"), Traceparent: new("00-1-2-01"), At: start,
	}, steps[0]); diff != "" {
		t.Errorf("first step (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fsm.Step{
		Version: 2, WorkflowVersion: 1, Kind: "transition", Event: new("reserve"), From: new("QUOTED"), To: "RESERVED",
		Status: fsm.Active, Context: reserved.Context, Payload: steps[1].Payload, Actor: "bob", Key: new("k2"),
		CorrelationID: new("c-2"), At: start.Add(time.Minute),
	}, steps[1]); diff != "" {
		t.Errorf("second step (-want +got):\n%s", diff)
	}
	sameJSON(t, steps[1].Payload, `{"price":9007199254740993,"seat":"12A","x":1}`)
	if s := steps[3]; *s.From != "PAYMENT_MISMATCH" || s.To != "PAID" || s.Status != fsm.Completed || s.Actor != "anonymous" {
		t.Errorf("last step: %+v", s)
	}

	// A key answers with what was, though the instance has moved on and If-Match is stale.
	r, err = s.Fire(ctx, fsm.FireCommand{
		ID: i.ID, Event: "reserve", Payload: json.RawMessage(` { "x" : 1, "seat": "12A", "price":9007199254740993} `), Key: "k2",
		Expect: fsm.ExpectVersion(77), Origin: fsm.Origin{Actor: "eve", Reason: "again"},
	})
	if diff := cmp.Diff(fsm.Result{Instance: reserved, Replayed: true}, r); err != nil || diff != "" {
		t.Errorf("replay: %v (-first +replay):\n%s", err, diff)
	}
	r, err = s.Create(ctx, fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"price":9007199254740993,"flight_id":"LX1"}`), Key: "k1", BusinessKey: "order-1",
	})
	if diff := cmp.Diff(fsm.Result{Instance: i, Replayed: true}, r); err != nil || diff != "" {
		t.Errorf("replay of the creation: %v (-first +replay):\n%s", err, diff)
	}
}

func TestExpiresIn(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking, counter)
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	dbtest.SetClock(t, pool, start)
	r, err := s.Create(t.Context(), fsm.CreateCommand{
		Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id":"x","price":1}`), ExpiresIn: 90 * time.Second, CorrelationID: "own",
		Origin: fsm.Origin{CorrelationID: "request"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Instance.ExpiresAt.Equal(start.Add(90*time.Second)) || *r.Instance.CorrelationID != "own" {
		t.Errorf("got %+v", r.Instance)
	}
	if c := history(t, s, r.Instance.ID)[0].CorrelationID; *c != "request" {
		t.Errorf("the step's correlation id is %q", *c)
	}
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", ExpiresIn: time.Second})
	if e := refusal(t, err, fsm.Malformed); e.Faults[0].Pointer != "/expires_in" {
		t.Errorf("got %+v", e.Faults)
	}
	if i := create(t, s, "counter", `{}`); i.ExpiresAt != nil {
		t.Errorf("expires at %v", i.ExpiresAt)
	}
}

// stepwise is a workflow that can produce every refusal.
const stepwise = `{
	"name": "stepwise", "initial": "A", "require_if_match": true,
	"context_schema": {"required": ["x"]},
	"states": {
		"A": {"on": {
			"go": [{"target": "B", "guard": "$.payload.n > 1"}, {"target": "Z", "guard": "$.payload.n < 0"}],
			"checked": {"target": "B", "payload_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
			"grow": {"target": "A", "assign": "*"},
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
	pool := open(t, dsn, db.Config{})
	s := serviceOn(t, pool, fsm.Config{}, stepwise)
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
	at := &fsm.Refusal{State: "A", Status: fsm.Active, Version: 1, AllowedEvents: []string{"checked", "go", "grow", "raise", "stamp", "zoned"}, Expected: "*"}
	with := func(event string, change ...func(*fsm.Refusal)) *fsm.Refusal {
		r := *at
		r.Event = event
		for _, f := range change {
			f(&r)
		}
		return &r
	}
	unexpected := func(r *fsm.Refusal) { r.Expected = "" }
	big := `{"x":"` + strings.Repeat("x", 65536) + `"}`
	nul := "a\x00"

	produced := map[fsm.Kind]bool{}
	before := counts(t, pool)
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
		"own correlation id NUL":  {doCreate(func(c *fsm.CreateCommand) { c.CorrelationID = nul }), fsm.Malformed, nil, []string{"/correlation_id"}},
		"workflow has NUL":        {doCreate(func(c *fsm.CreateCommand) { c.Workflow = nul }), fsm.Malformed, nil, []string{""}},
		"expires before":          {doCreate(func(c *fsm.CreateCommand) { c.ExpiresIn = -1 }), fsm.Malformed, nil, []string{"/expires_in"}},
		"expires far away":        {doCreate(func(c *fsm.CreateCommand) { c.ExpiresIn = fsm.MaxDuration + 1 }), fsm.Malformed, nil, []string{"/expires_in"}},
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
		"stale":                   {doFire("go", `{"n":2}`, func(c *fsm.FireCommand) { c.Expect = fsm.ExpectVersion(2, 3) }), fsm.VersionMismatch, with("go", func(r *fsm.Refusal) { r.Expected = `"2", "3"` }), nil},
		"no version will do":      {doFire("none", `{}`, func(c *fsm.FireCommand) { c.Expect = fsm.ExpectVersion() }), fsm.VersionMismatch, with("none", unexpected), nil},
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
		"assign raises":           {doFire("stamp", `{"t":"x"}`), fsm.GuardError, with("stamp", unexpected), nil},
		"context does not fit":    {doCreate(func(c *fsm.CreateCommand) { c.Context = json.RawMessage(`{}`) }), fsm.InvalidContext, nil, []string{"/context"}},
		"payload does not fit":    {doFire("checked", `{"n":"1"}`), fsm.InvalidPayload, nil, []string{"/payload/n"}},
		"definition is none":      {second(s.Register(ctx, "w", []byte(`{}`), "", false)), fsm.InvalidDefinition, nil, []string{"/initial", "/states"}},
		"definition is malformed": {second(s.Register(ctx, "w", []byte(`{`), "", false)), fsm.Malformed, nil, []string{""}},
		"definition is large":     {second(s.Register(ctx, "w", make([]byte, 1<<20+1), "", false)), fsm.TooLarge, nil, nil},
		"version is not the next": {second(s.Register(ctx, "stepwise", []byte(strings.Replace(stepwise, "{", `{"version":9,`, 1)), "", false)), fsm.WorkflowConflict, &fsm.Refusal{Version: 1}, nil},
		"cursor of another list":  {second(s.List(ctx, "t", fsm.Filter{}, fsm.Page{Cursor: "AAAA"})), fsm.Malformed, nil, []string{""}},
		"filter has NUL":          {second(s.List(ctx, "t", fsm.Filter{Status: "\x00"}, fsm.Page{})), fsm.Malformed, nil, []string{""}},
		"no such delivery":        {second(s.ReplayDelivery(ctx, fsm.DefaultTenant, uuid.New())), fsm.NotFound, nil, nil},
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
		if !slices.Equal(pointers(e.Faults), append([]string{}, c.pointers...)) {
			t.Errorf("%s: faults at %q, want %q", name, pointers(e.Faults), c.pointers)
		}
		if exists := e.Kind == fsm.InstanceExists; (e.InstanceID == id) != exists {
			t.Errorf("%s: instance %s", name, e.InstanceID)
		}
		if e.Replayed {
			t.Errorf("%s: is no replay", name)
		}
	}
	// Three refusals are decisions, and only they are recorded.
	after := counts(t, pool)
	exec(t, pool, "delete from pawl.idempotency_key where outcome <> 'applied'")
	if rest := counts(t, pool); before != rest || after == before {
		t.Errorf("before: %s, after: %s, without the refusals' keys: %s", before, after, rest)
	}

	// What is pending is not replayed.
	subscription, err := s.Subscribe(ctx, fsm.DefaultTenant, "https://93.184.215.14", fsm.SubscriptionFilter{}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	pending, err := s.TestSubscription(ctx, fsm.DefaultTenant, subscription.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.ReplayDelivery(ctx, fsm.DefaultTenant, pending.ID)
	refused(t, err, fsm.DeliveryConflict)
	produced[fsm.DeliveryConflict] = true

	// A stream has been where history is no longer whole.
	exec(t, pool, "update pawl.history set version = 2, kind = 'transition' where instance_id = $1 and version = 1", id)
	stream, err := s.StreamInstance(ctx, fsm.DefaultTenant, id, fsm.EventFilter{}, fsm.FromStart)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = stream.Next(ctx)
	refused(t, err, fsm.EventIDTooOld)
	produced[fsm.EventIDTooOld] = true
	stream.Close()

	// Nobody foresaw that the engine is gone, nor that it answers nonsense.
	exec(t, pool, "drop function pawl.fire")
	exec(t, pool, `create function pawl.fire(text, uuid[], text[], jsonb[], text[], text[], text[], text[], text[], text[], text[])
		returns setof pawl.outcome language sql as $$
		select (jsonb_populate_record(null::pawl.outcome, '{"ordinal": 1, "outcome": "applied", "replayed": false}')).* $$`)
	e := refusal(t, doFire("go", `{}`), fsm.Internal)
	if !strings.Contains(e.Error(), "panic") {
		t.Errorf("got %v", e)
	}
	exec(t, pool, "drop function pawl.fire")
	refused(t, doFire("go", `{}`), fsm.Internal)
	produced[fsm.Internal] = true

	s.Close()
	refused(t, doFire("go", `{}`), fsm.Unavailable)
	produced[fsm.Unavailable] = true
	for _, kind := range fsm.Kinds() {
		if !produced[kind] {
			t.Errorf("nothing produces %v", kind)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A recorded refusal is replayed as it was; what is not recorded is decided anew.
func TestRefusalsAreReplayed(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{}, stepwise)
	ctx := t.Context()
	i := create(t, s, "stepwise", `{"x":1}`)
	command := func(key, event, payload string, expect fsm.Expect) fsm.FireCommand {
		return fsm.FireCommand{ID: i.ID, Event: event, Payload: json.RawMessage(payload), Key: key, Expect: expect}
	}
	_, rejected := s.Fire(ctx, command("rejected", "go", `{"n":0}`, fsm.ExpectAny()))
	_, notAllowed := s.Fire(ctx, command("not-allowed", "end", `{}`, fsm.ExpectAny()))
	_, err := s.Fire(ctx, command("mismatch", "go", `{"n":2}`, fsm.ExpectVersion(2)))
	refused(t, err, fsm.VersionMismatch)

	if _, err := s.Fire(ctx, command("moves", "go", `{"n":2}`, fsm.ExpectVersion(1))); err != nil {
		t.Fatal(err)
	}
	for key, first := range map[string]error{"rejected": rejected, "not-allowed": notAllowed} {
		event, payload := "go", `{"n":0}`
		if key == "not-allowed" {
			event, payload = "end", `{}`
		}
		_, err := s.Fire(ctx, command(key, event, payload, fsm.ExpectAny()))
		var want fsm.Error = *refusal(t, first, fsm.AsError(first).Kind)
		want.Replayed = true
		got := refusal(t, err, want.Kind)
		if got.Message != want.Message || !got.Replayed || !cmp.Equal(got.Refusal, want.Refusal) {
			t.Errorf("%s:\nfirst  %+v\nreplay %+v", key, want, *got)
		}
	}
	// A mismatch was no decision: the same key, with another precondition, moves.
	r, err := s.Fire(ctx, command("mismatch", "end", `{}`, fsm.ExpectVersion(2)))
	if err != nil || r.Replayed || r.Instance.State != "Z" {
		t.Errorf("got %+v, %v", r, err)
	}
	_, err = s.Fire(ctx, command("mismatch", "end", `{"x":1}`, fsm.ExpectVersion(2)))
	refused(t, err, fsm.KeyReuse)
}

func TestBusinessKeyGivesItsKeyBack(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{}, counter)
	ctx := t.Context()
	// All in one call: one wins, the others name it, and their keys stay free.
	var commands []fsm.Command
	for _, key := range []string{"a", "b", "c"} {
		commands = append(commands, fsm.CreateCommand{Workflow: "counter", BusinessKey: "one", Key: key})
	}
	replies := s.Do(ctx, commands)
	winner := slices.IndexFunc(replies, func(r fsm.Reply) bool { return r.Err == nil })
	if winner < 0 {
		t.Fatalf("nobody wins: %v", replies)
	}
	for n, r := range replies {
		if n != winner {
			if e := refusal(t, r.Err, fsm.InstanceExists); e.InstanceID != replies[winner].Instance.ID {
				t.Errorf("names %s, the holder is %s", e.InstanceID, replies[winner].Instance.ID)
			}
		}
	}
	for n, command := range commands {
		c := command.(fsm.CreateCommand)
		r, err := s.Create(ctx, c)
		if n == winner {
			if err != nil || !r.Replayed || r.Instance.ID != replies[winner].Instance.ID {
				t.Errorf("the winner's replay: %+v, %v", r, err)
			}
			continue
		}
		refused(t, err, fsm.InstanceExists)
		c.BusinessKey = "of-" + c.Key
		if r, err := s.Create(ctx, c); err != nil || r.Replayed {
			t.Errorf("the key of a refusal: %+v, %v", r, err)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{MaxBatch: 4}, counter)
	i := create(t, s, "counter", `{"x":0}`)
	if replies := s.Do(t.Context(), nil); len(replies) != 0 {
		t.Errorf("got %v", replies)
	}
	var commands []fsm.Command
	for n := range 20 {
		commands = append(commands, fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)})
		switch n % 4 {
		case 1:
			commands = append(commands, fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":-1}`)})
		case 2:
			commands = append(commands, fsm.CreateCommand{Workflow: "counter"})
		case 3:
			commands = append(commands, fsm.FireCommand{ID: i.ID, Event: "add", Key: " "})
		}
	}
	version := int64(1)
	for n, r := range s.Do(t.Context(), commands) {
		switch c := commands[n].(type) {
		case fsm.CreateCommand:
			if r.Err != nil || r.Instance.Version != 1 {
				t.Errorf("%d: %+v", n, r)
			}
		case fsm.FireCommand:
			switch {
			case c.Key == " ":
				refused(t, r.Err, fsm.KeyInvalid)
			case string(c.Payload) == `{"n":1}`:
				if version++; r.Err != nil || r.Instance.Version != version {
					t.Errorf("%d: %+v, want version %d", n, r, version)
				}
			default:
				if e := refusal(t, r.Err, fsm.GuardRejected); e.Refusal.Version != version {
					t.Errorf("%d: refused at %d, want %d", n, e.Refusal.Version, version)
				}
			}
		}
	}
	sameJSON(t, get(t, s, i.ID).Context, `{"x":20}`)
}

// A key that a create and a fire of one Do have in common goes to the first of them.
func TestDoKeepsTheOrderOfAKey(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{}, counter)
	i := create(t, s, "counter", `{"x":0}`)
	start := fsm.CreateCommand{Workflow: "counter"}
	add := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)}
	for n := range 10 {
		start.Key, add.Key = fmt.Sprint("k", n), fmt.Sprint("k", n)
		commands := []fsm.Command{start, add, add, start}
		if n%2 == 1 {
			commands = []fsm.Command{add, start, start, add}
		}
		replies := s.Do(t.Context(), append(commands, fsm.CreateCommand{Workflow: "counter"}))
		if replies[0].Err != nil || replies[0].Replayed || replies[3].Err != nil || !replies[3].Replayed || replies[4].Err != nil {
			t.Errorf("%d: the first to have the key: %+v", n, replies)
		}
		for _, r := range replies[1:3] {
			refused(t, r.Err, fsm.KeyReuse)
		}
	}
	if v := get(t, s, i.ID).Version; v != 6 {
		t.Errorf("version %d", v)
	}
}

func TestFireTx(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter, strings.Replace(stepwise, `"require_if_match": true,`, "", 1))
	ctx := t.Context()
	exec(t, pool, "create table payment (id integer)")
	i := create(t, s, "counter", `{"x":0}`)
	add := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)}
	pay := func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into payment values (1)")
		return err
	}

	undo := errors.New("undo")
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		r, err := s.FireTx(ctx, tx, add)
		if err != nil || r.Instance.Version != 2 || r.Replayed {
			t.Errorf("got %+v, %v", r, err)
		}
		return errors.Join(pay(tx), undo)
	})
	if !errors.Is(err, undo) || scan[int](t, pool, "select count(*) from payment") != 0 || get(t, s, i.ID).Version != 1 {
		t.Errorf("rolled back: %v, the instance is %+v", err, get(t, s, i.ID))
	}

	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := s.FireTx(ctx, tx, add); err != nil {
			return err
		}
		// A refusal, even of each kind, leaves the transaction usable.
		for kind, c := range map[fsm.Kind]fsm.FireCommand{
			fsm.GuardRejected:    {ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":-1}`)},
			fsm.UnknownEvent:     {ID: i.ID, Event: "none"},
			fsm.InstanceNotFound: {ID: uuid.New(), Event: "add"},
			fsm.VersionMismatch:  {ID: i.ID, Event: "add", Expect: fsm.ExpectVersion(1)},
			fsm.Malformed:        {ID: i.ID, Event: "add", Payload: json.RawMessage(`[`)},
			fsm.KeyInvalid:       {ID: i.ID, Event: "add", Key: "\n"},
		} {
			_, err := s.FireTx(ctx, tx, c)
			refused(t, err, kind)
		}
		if _, err := s.FireTx(ctx, tx, add); err != nil {
			return err
		}
		return pay(tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, i.ID); got.Version != 3 || scan[int](t, pool, "select count(*) from payment") != 1 {
		t.Errorf("committed: %+v", got)
	}
	sameJSON(t, get(t, s, i.ID).Context, `{"x":2}`)
	if key := history(t, s, i.ID)[1].Key; key != nil {
		t.Errorf("a step without a key has the key %q", *key)
	}

	// A key, if there is one, makes the whole transaction repeatable.
	add.Key = "k"
	for _, replayed := range []bool{false, true} {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			r, err := s.FireTx(ctx, tx, add)
			if err == nil && (r.Replayed != replayed || r.Instance.Version != 4) {
				t.Errorf("got %+v", r)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	// A payload schema is checked here too.
	w := create(t, s, "stepwise", `{"x":1}`)
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := s.FireTx(ctx, tx, fsm.FireCommand{ID: w.ID, Event: "checked", Payload: json.RawMessage(`{"n":1.5}`)})
		refused(t, err, fsm.InvalidPayload)
		_, err = s.FireTx(ctx, tx, fsm.FireCommand{ID: w.ID, Event: "checked", Payload: json.RawMessage(`{"n":1}`)})
		return err
	})
	if err != nil || get(t, s, w.ID).State != "B" {
		t.Error(err)
	}
}

// What breaks the caller's transaction is named for what it is.
func TestFireTxErrors(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter)
	ctx := t.Context()
	i := create(t, s, "counter", `{"x":0}`)
	in := func(options pgx.TxOptions, f func(pgx.Tx)) {
		t.Helper()
		tx, err := pool.BeginTx(ctx, options)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		f(tx)
	}
	add := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)}
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		_, err := s.FireTx(ctx, tx, fsm.FireCommand{ID: i.ID, Event: "raise"})
		if e := refusal(t, err, fsm.GuardError); e.Refusal.State != "COUNTING" {
			t.Errorf("got %+v", e.Refusal)
		}
		// The transaction is broken now, and that is no fault of a guard.
		_, err = s.FireTx(ctx, tx, add)
		refused(t, err, fsm.Internal)
	})
	in(pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) {
		_, err := s.FireTx(ctx, tx, add)
		refused(t, err, fsm.Internal)
	})
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err := s.FireTx(gone, tx, add)
		refused(t, err, fsm.Unavailable)
	})
	// A stricter transaction that has seen the instance before it moved may try again.
	in(pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "select from pawl.instance"); err != nil {
			t.Fatal(err)
		}
		fire(t, s, i.ID, "add", `{"n":1}`)
		_, err := s.FireTx(ctx, tx, add)
		refused(t, err, fsm.Unavailable)
	})
	release := hold(t, pool, i.ID)
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "set local lock_timeout = '10ms'"); err != nil {
			t.Fatal(err)
		}
		_, err := s.FireTx(ctx, tx, add)
		refused(t, err, fsm.Unavailable)
	})
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "set local statement_timeout = '50ms'"); err != nil {
			t.Fatal(err)
		}
		_, err := s.FireTx(ctx, tx, add)
		refused(t, err, fsm.Unavailable)
	})
	release()
	if v := get(t, s, i.ID).Version; v != 2 {
		t.Errorf("version %d", v)
	}
}

func TestPreviewAgreesWithFire(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking, stepwise)
	// Whatever would write fails.
	readOnly := serviceOn(t, readOnlyPool(t, pool), fsm.Config{})
	ctx := t.Context()
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	booking := create(t, s, "flight-booking", `{"flight_id":"x","price":5}`)
	w := create(t, s, "stepwise", `{"x":1}`)

	for n, c := range []fsm.FireCommand{
		{ID: booking.ID, Event: "reserve", Payload: json.RawMessage(`{"price":4}`)},
		{ID: booking.ID, Event: "reserve", Payload: json.RawMessage(`{"price":5,"seat":"1A"}`)},
		{ID: booking.ID, Event: "pay", Payload: json.RawMessage(`{"amount":4}`), Expect: fsm.ExpectVersion(1)},
		{ID: booking.ID, Event: "pay", Payload: json.RawMessage(`{"amount":4}`), Expect: fsm.ExpectVersion(1, 2)},
		{ID: booking.ID, Event: "pay", Payload: json.RawMessage(`{"amount":5}`)},
		{ID: booking.ID, Event: "cancel"},
		{ID: booking.ID, Event: "none"},
		{ID: uuid.New(), Event: "none"},
		{ID: w.ID, Event: "go"},
		{ID: w.ID, Event: "go", Payload: json.RawMessage(`[]`)},
		{ID: w.ID, Event: "go", Payload: json.RawMessage(`{}`), Expect: fsm.ExpectAny()},
		{ID: w.ID, Event: "end", Expect: fsm.ExpectAny()},
		{ID: w.ID, Event: "raise", Expect: fsm.ExpectAny()},
		{ID: w.ID, Event: "checked", Payload: json.RawMessage(`{"n":"x"}`), Expect: fsm.ExpectAny()},
		{ID: w.ID, Event: "grow", Payload: json.RawMessage(`{"y":"` + strings.Repeat("y", 65520) + `"}`), Expect: fsm.ExpectAny()},
		{ID: w.ID, Event: "checked", Payload: json.RawMessage(`{"n":2}`), Expect: fsm.ExpectAny()},
	} {
		dbtest.Advance(t, pool, time.Second)
		before := counts(t, pool)
		preview, previewErr := readOnly.Preview(ctx, c)
		if after := counts(t, pool); before != after {
			t.Errorf("%d: a preview wrote: %s, then %s", n, before, after)
		}
		fired, err := s.Fire(ctx, c)
		if diff := cmp.Diff(fired, preview); diff != "" {
			t.Errorf("%d (-fired +previewed):\n%s", n, diff)
		}
		if (err == nil) != (previewErr == nil) {
			t.Fatalf("%d: fired: %v, previewed: %v", n, err, previewErr)
		}
		if err != nil {
			want, got := fsm.AsError(err), fsm.AsError(previewErr)
			if got.Kind != want.Kind || got.Message != want.Message || !cmp.Equal(got.Refusal, want.Refusal) || !cmp.Equal(got.Faults, want.Faults) {
				t.Errorf("%d:\nfired     %+v\npreviewed %+v", n, want, got)
			}
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter, flightBooking)
	ctx := t.Context()
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	dbtest.SetClock(t, pool, start)
	var ids []uuid.UUID // The oldest first.
	for n := range 7 {
		c := fsm.CreateCommand{Workflow: "counter", BusinessKey: string(rune('a' + n)), Context: json.RawMessage(`{"x":0}`)}
		if n%2 == 1 {
			c.Workflow, c.CorrelationID, c.Context = "flight-booking", "odd", json.RawMessage(`{"flight_id":"x","price":1}`)
		}
		r, err := s.Create(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Instance.ID)
		dbtest.Advance(t, pool, time.Minute)
	}
	fire(t, s, ids[2], "stop", `{}`)
	fire(t, s, ids[4], "add", `{"n":1}`)

	all := func(f fsm.Filter, limit int) []int {
		t.Helper()
		found := []int{}
		for page := (fsm.Page{Limit: limit}); ; {
			l, err := s.List(ctx, fsm.DefaultTenant, f, page)
			if err != nil {
				t.Fatal(err)
			}
			if limit > 0 && len(l.Items) > limit || l.Next != "" && len(l.Items) < limit {
				t.Errorf("%d items on a page of %d", len(l.Items), limit)
			}
			for _, i := range l.Items {
				found = append(found, slices.Index(ids, i.ID))
				if !cmp.Equal(i, get(t, s, i.ID)) {
					t.Errorf("%+v is listed as %+v", get(t, s, i.ID), i)
				}
			}
			if page.Cursor = l.Next; page.Cursor == "" {
				return found
			}
		}
	}
	for _, limit := range []int{0, 1, 2, 7, 1000} {
		if got := all(fsm.Filter{}, limit); !slices.Equal(got, []int{6, 5, 4, 3, 2, 1, 0}) {
			t.Errorf("pages of %d: %v", limit, got)
		}
	}
	for name, c := range map[string]struct {
		filter fsm.Filter
		want   []int
	}{
		"workflow":       {fsm.Filter{Workflow: "flight-booking"}, []int{5, 3, 1}},
		"no workflow":    {fsm.Filter{Workflow: "none"}, []int{}},
		"state":          {fsm.Filter{State: "STOPPED"}, []int{2}},
		"status":         {fsm.Filter{Status: fsm.Completed}, []int{2}},
		"business key":   {fsm.Filter{BusinessKey: "d"}, []int{3}},
		"correlation id": {fsm.Filter{CorrelationID: "odd"}, []int{5, 3, 1}},
		"after":          {fsm.Filter{CreatedAfter: start.Add(4 * time.Minute)}, []int{6, 5}},
		"before":         {fsm.Filter{CreatedBefore: start.Add(time.Minute)}, []int{0}},
		"after 1960":     {fsm.Filter{CreatedAfter: time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC), CreatedBefore: start.Add(time.Minute)}, []int{0}},
		"before 9999":    {fsm.Filter{CreatedBefore: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), CreatedAfter: start.Add(5 * time.Minute)}, []int{6}},
		"stuck":          {fsm.Filter{StuckFor: 6 * time.Minute}, []int{1, 0}},
		"combined":       {fsm.Filter{Workflow: "counter", StuckFor: 5 * time.Minute, Status: fsm.Active}, []int{0}},
	} {
		if got := all(c.filter, 2); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}

	// Rows that come later disturb no page; cursors cannot be made, mended or carried over.
	first, err := s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, "counter", `{}`)
	rest, err := s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Limit: 200, Cursor: first.Next})
	if err != nil || len(rest.Items) != 4 || rest.Items[0].ID != ids[3] || rest.Next != "" {
		t.Errorf("rest: %+v, %v", rest, err)
	}
	mended := []byte(first.Next)
	mended[len(mended)-2] ^= 1
	for name, list := range map[string]func() (fsm.List[fsm.Instance], error){
		"mended": func() (fsm.List[fsm.Instance], error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Cursor: string(mended)})
		},
		"cut": func() (fsm.List[fsm.Instance], error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Cursor: first.Next[:21]})
		},
		"made": func() (fsm.List[fsm.Instance], error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{Cursor: ids[2].String()})
		},
		"other filter": func() (fsm.List[fsm.Instance], error) {
			return s.List(ctx, fsm.DefaultTenant, fsm.Filter{State: "COUNTING"}, fsm.Page{Cursor: first.Next})
		},
		"other tenant": func() (fsm.List[fsm.Instance], error) {
			return s.List(ctx, "other", fsm.Filter{}, fsm.Page{Cursor: first.Next})
		},
	} {
		_, err := list()
		if e := refusal(t, err, fsm.Malformed); e.Faults[0].Parameter != "cursor" {
			t.Errorf("%s: %+v", name, e.Faults)
		}
	}
	if l, err := s.List(ctx, "other", fsm.Filter{}, fsm.Page{}); err != nil || len(l.Items) != 0 {
		t.Errorf("another tenant sees %v, %v", l.Items, err)
	}
	_, err = s.History(ctx, fsm.DefaultTenant, ids[0], fsm.Page{Cursor: first.Next})
	refused(t, err, fsm.Malformed)

	for range 4 {
		fire(t, s, ids[0], "add", `{"n":1}`)
	}
	l, err := s.History(ctx, fsm.DefaultTenant, ids[0], fsm.Page{Limit: 3})
	if err != nil || len(l.Items) != 3 || l.Next == "" {
		t.Fatalf("%+v, %v", l, err)
	}
	l, err = s.History(ctx, fsm.DefaultTenant, ids[0], fsm.Page{Limit: 2, Cursor: l.Next})
	if err != nil || len(l.Items) != 2 || l.Items[0].Version != 4 || l.Next != "" {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestActions(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	s := serviceOn(t, open(t, dsn, db.Config{}), fsm.Config{}, stepwise)
	i := create(t, s, "stepwise", `{"x":1}`)
	schema := json.RawMessage(`{"type": "object", "properties": {"n": {"type": "integer"}}}`)
	want := []fsm.Action{
		{Event: "checked", Targets: []string{"B"}, PayloadSchema: schema, GuardHolds: new(true)},
		{Event: "go", Targets: []string{"B", "Z"}, GuardHolds: new(false)},
		{Event: "grow", Targets: []string{"A"}, GuardHolds: new(true)},
		{Event: "raise", Targets: []string{"B"}},
		{Event: "stamp", Targets: []string{"B"}, GuardHolds: new(true)},
		{Event: "zoned", Targets: []string{"B"}, GuardHolds: new(false)},
	}
	got, err := s.Actions(t.Context(), fsm.DefaultTenant, i.ID, true)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for n := range want {
		want[n].GuardHolds = nil
	}
	got, err = s.Actions(t.Context(), fsm.DefaultTenant, i.ID, false)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, event := range []string{"checked", "end"} {
		if _, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event, Expect: fsm.ExpectAny()}); err != nil {
			t.Fatal(err)
		}
	}
	got, err = s.Actions(t.Context(), fsm.DefaultTenant, i.ID, true)
	if err != nil || got == nil || len(got) != 0 {
		t.Errorf("a final state accepts %v, %v", got, err)
	}
}

func TestKeysExpire(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	i := create(t, s, "counter", `{"x":0}`)
	for _, c := range []struct {
		later    time.Duration
		replayed bool
		version  int64
	}{{0, false, 2}, {24*time.Hour - time.Microsecond, true, 2}, {time.Microsecond, false, 3}} {
		dbtest.Advance(t, pool, c.later)
		r, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"})
		if err != nil || r.Replayed != c.replayed || r.Instance.Version != c.version {
			t.Errorf("%v later: %+v, %v", c.later, r, err)
		}
	}
}

func TestTenantsShareNothing(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{}, counter)
	var ids []uuid.UUID
	for _, tenant := range []string{"a", "b"} {
		r, err := s.Create(t.Context(), fsm.CreateCommand{Tenant: tenant, Workflow: "counter", Key: "k", BusinessKey: "b"})
		if err != nil || r.Replayed {
			t.Fatalf("%s: %+v, %v", tenant, r, err)
		}
		ids = append(ids, r.Instance.ID)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{Tenant: "a", ID: ids[1], Event: "stop"})
	refused(t, err, fsm.InstanceNotFound)
}

func TestPing(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{})
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	empty := fsm.New(open(t, dbtest.Empty(t), db.Config{}), fsm.Config{})
	defer empty.Close()
	refused(t, empty.Ping(t.Context()), fsm.Unavailable)
}

func TestExpectString(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]fsm.Expect{
		"": {}, "*": fsm.ExpectAny(), `"3"`: fsm.ExpectVersion(3), `"3", "-4"`: fsm.ExpectVersion(3, -4),
	} {
		if got := e.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
