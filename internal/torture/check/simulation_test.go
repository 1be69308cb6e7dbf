package check_test

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// A scene says what a simulated run is like.
type scene struct {
	seed                uint64
	clients, hot, calls int
	// loses: in the middle, steps are lost as by the promotion of a standby that lags.
	loses bool
	// epochs: the database has a log with positions. A run that loses has.
	epochs bool
	// restful: at the end no instance waits for a timer.
	restful bool
}

// A simulation runs clients against a service in a time of its own. Both do what they should.
type simulation struct {
	scene
	rng    *rand.Rand
	model  check.Model
	start  time.Time
	now    time.Duration
	events events
	count  int

	run       check.Run
	accounts  map[uuid.UUID]*account
	known     []uuid.UUID // By clients.
	keys      map[string]check.Op
	log       []check.Step // In the order of commits.
	down      bool
	era, left int
	ended     bool
	// The log before the loss, how many of its steps the loss spared, and the last common position.
	taken          []check.Step
	spared, common int
}

type account struct {
	version int64
	check.Situation
	at time.Time
}

type event struct {
	at time.Duration
	n  int
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), cmp.Compare(e[i].n, e[j].n)) < 0
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// simulate returns a run without a fault.
func simulate(s scene) check.Run {
	sim := &simulation{
		scene: s, rng: rand.New(rand.NewPCG(s.seed, 0)), model: check.Account(),
		start: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), accounts: map[uuid.UUID]*account{}, keys: map[string]check.Op{},
		left: s.calls,
	}
	sim.run.Model, sim.run.Begin = sim.model, sim.start
	for i := range s.hot {
		sim.attempt(check.Op{Key: fmt.Sprintf("hot-%d", i), Kind: "create", Payload: json.RawMessage(`{"sum": 0, "steps": 0}`)}, nil)
	}
	sim.after(100*time.Millisecond, func() {
		for i := range s.clients {
			sim.call(1 + i)
		}
	})
	heap.Init(&sim.events)
	lost := false
	for sim.events.Len() > 0 {
		if s.loses && !lost && sim.left < s.calls/2 {
			lost = true
			sim.lose()
		}
		e := heap.Pop(&sim.events).(event)
		sim.now = e.at
		e.do()
	}
	sim.end()
	return sim.run
}

func (s *simulation) time() time.Time { return s.start.Add(s.now) }

// draw returns a duration of up to so many milliseconds, to the microsecond as the database has it.
func (s *simulation) draw(milliseconds int) time.Duration {
	return time.Duration(1+s.rng.IntN(milliseconds*1000)) * time.Microsecond
}

func (s *simulation) after(d time.Duration, do func()) {
	s.count++
	heap.Push(&s.events, event{s.now + d, s.count, do})
}

func (s *simulation) id() (id uuid.UUID) {
	for i := range id {
		id[i] = byte(s.rng.Uint32())
	}
	return id
}

// call makes a client's next command.
func (s *simulation) call(client int) {
	if s.left--; s.left < 0 {
		return
	}
	s.count++
	op := check.Op{Client: client, Key: fmt.Sprintf("%d-%d", client, s.count), Kind: "fire"}
	draw := s.rng.IntN(100)
	if draw < 10 || len(s.known) == 0 {
		op.Kind, op.Payload = "create", json.RawMessage(`{"sum": 0, "steps": 0}`)
	} else {
		hot := s.rng.IntN(2) == 0
		op.Instance = s.known[s.rng.IntN(len(s.known))]
		if hot {
			op.Instance = s.known[s.rng.IntN(min(s.hot, len(s.known)))]
		}
		switch {
		case draw < 25:
			op.Kind, op.Key = "get", ""
		case draw < 35:
			op.Event = "pause"
		case draw < 42:
			op.Event = "resume"
		case draw < 44 && !hot:
			op.Event = "close"
		default:
			op.Event = "add"
			op.Payload = json.RawMessage(`{"amount": ` + strconv.Itoa(s.rng.IntN(10)) + `}`)
		}
		if a := s.accounts[op.Instance]; op.Kind == "fire" && a != nil && s.rng.IntN(5) == 0 {
			op.IfMatch = max(1, a.version-int64(s.rng.IntN(2)))
		}
	}
	s.attempt(op, func() { s.after(s.draw(20), func() { s.call(client) }) })
}

// attempt sends a command, again until it is decided, and goes on with then.
func (s *simulation) attempt(op check.Op, then func()) {
	op.Begin = s.time()
	again := op
	again.Retry = true
	retry := func(d time.Duration) { s.after(d, func() { s.attempt(again, then) }) }
	record := func(op check.Op) { s.run.Ops = append(s.run.Ops, op) }
	era, fate := s.era, s.rng.IntN(100)
	if s.down || fate < 5 { // It does not come through.
		s.after(s.draw(10), func() {
			if fate%2 == 0 {
				op.Status, op.Code, op.End = 503, "unavailable", s.time()
			}
			record(op)
			retry(s.draw(20))
		})
		return
	}
	s.after(s.draw(10), func() {
		if s.era != era || s.down {
			record(op)
			retry(s.draw(20))
			return
		}
		answer := s.decide(op)
		if fate < 12 && op.Kind != "get" { // The answer does not come through.
			record(op)
			return
		}
		s.after(s.draw(10), func() {
			answer.End = s.time()
			record(answer)
			if answer.Kind == "create" && !answer.Retry {
				s.known = append(s.known, answer.Instance)
			}
			if s.rng.IntN(10) == 0 && op.Kind != "get" {
				retry(s.draw(20))
			} else if then != nil {
				then()
			}
		})
	})
	if fate >= 5 && fate < 12 && op.Kind != "get" {
		retry(s.draw(30)) // It may overtake the first one.
	}
}

// decide is the service.
func (s *simulation) decide(op check.Op) check.Op {
	if was, there := s.keys[op.Key]; there && op.Key != "" {
		op.Instance, op.Status, op.Code, op.Version, op.State, op.Context = was.Instance, was.Status, was.Code, was.Version, was.State, was.Context
		return op
	}
	refuse := func(status int, code string, a *account) {
		op.Status, op.Code = status, code
		if a != nil {
			op.Version, op.State = a.version, a.State
		}
	}
	show := func(status int, a *account) {
		op.Status, op.Version, op.State, op.Context = status, a.version, a.State, json.RawMessage(a.Context)
	}
	if op.Kind == "create" {
		op.Instance = s.id()
		a := &account{}
		s.accounts[op.Instance] = a
		s.step(op.Instance, a, s.model.Create(op.Payload), check.Step{Kind: "created", Key: op.Key})
		show(201, a)
		s.keys[op.Key] = op
		return op
	}
	a := s.accounts[op.Instance]
	switch {
	case a == nil:
		refuse(404, "instance-not-found", nil)
		return op
	case op.Kind == "get":
		show(200, a)
		return op
	case op.IfMatch != 0 && op.IfMatch != a.version:
		refuse(412, "version-mismatch", a)
		return op
	}
	next, refusal := s.model.Fire(a.Situation, op.Event, op.Payload)
	if refusal != "" {
		refuse(409, refusal, a)
	} else {
		s.step(op.Instance, a, next, check.Step{Kind: "transition", Event: op.Event, From: a.State, Key: op.Key, Payload: op.Payload})
		show(200, a)
	}
	s.keys[op.Key] = op
	return op
}

// step makes a step of an account.
func (s *simulation) step(id uuid.UUID, a *account, next check.Situation, step check.Step) {
	a.version++
	a.Situation, a.at = next, s.time()
	step.Instance, step.Version, step.To, step.Status, step.At = id, a.version, next.State, next.Status, a.at
	step.Context = json.RawMessage(next.Context)
	s.log = append(s.log, step)
	s.arm(id, a)
}

// arm lets a timer fire if the account is still where it is.
func (s *simulation) arm(id uuid.UUID, a *account) {
	timeout, timed := s.model.Timeouts[a.State]
	if !timed {
		return
	}
	version, era := a.version, s.era
	due := a.at.Add(timeout.After).Sub(s.time())
	s.after(max(0, due)+s.draw(50), func() {
		if s.accounts[id] != a || a.version != version || s.era != era || s.ended {
			return
		}
		if s.down {
			s.arm(id, a)
			return
		}
		if !s.restful && s.left < 0 { // The run is over before it fires.
			return
		}
		next, _ := s.model.Fire(a.Situation, timeout.Event, nil)
		s.step(id, a, next, check.Step{Kind: "timeout", Event: timeout.Event, From: a.State, Key: "timer:" + strconv.FormatInt(version, 10)})
	})
}

// lose stops the server and starts one that lacks the last steps.
func (s *simulation) lose() {
	s.down = true
	begin := s.time()
	s.after(200*time.Millisecond, func() {
		s.spared = max(0, len(s.log)-s.rng.IntN(30))
		s.common = max(0, s.spared-s.rng.IntN(3))
		kept := slices.Clone(s.log[:s.spared])
		s.run.Losses = []check.Loss{{Begin: begin, End: s.time()}}
		s.run.Faults = []check.Span{{Begin: begin, End: s.time()}}
		s.run.Healings = []check.Healing{{What: "replica 1", After: time.Second}}
		s.run.Epochs = append(s.run.Epochs, check.Epoch{Epoch: 2, FirstPosition: int64(s.common), BeganAt: s.time()})
		s.taken = s.log
		s.down, s.log = false, kept
		s.era++
		s.accounts = map[uuid.UUID]*account{}
		keys := map[string]check.Op{}
		for _, k := range kept {
			a := s.accounts[k.Instance]
			if a == nil {
				a = &account{}
				s.accounts[k.Instance] = a
			}
			a.version, a.at = k.Version, k.At
			a.Situation = check.Situation{State: k.To, Status: k.Status, Context: string(k.Context)}
			if was, there := s.keys[k.Key]; there && k.Kind != "timeout" {
				keys[k.Key] = was
			}
		}
		s.keys = keys // What was refused is decided anew.
		for _, k := range kept {
			if a := s.accounts[k.Instance]; a.version == k.Version {
				s.arm(k.Instance, a)
			}
		}
	})
}

// end writes down what the database and the receivers have.
func (s *simulation) end() {
	s.run.End = s.time().Add(time.Second)
	place := func(i int) (epoch, position int64) {
		if !s.epochs {
			return 0, 0
		}
		if s.taken != nil && i >= s.common {
			return 2, int64(i + 1)
		}
		return 1, int64(i + 1)
	}
	if s.epochs {
		s.run.Epochs = append([]check.Epoch{{Epoch: 1, BeganAt: s.start}}, s.run.Epochs...)
	}
	for i := range s.log {
		s.log[i].Epoch, s.log[i].Position = place(i)
		step := s.log[i]
		s.run.Steps = append(s.run.Steps, step)
		a := s.accounts[step.Instance]
		if timeout, timed := s.model.Timeouts[step.To]; timed && a.version == step.Version {
			s.run.Timers = append(s.run.Timers, check.Timer{Instance: step.Instance, DueAt: step.At.Add(timeout.After), ArmedVersion: step.Version})
		}
	}
	slices.SortStableFunc(s.run.Steps, func(a, b check.Step) int {
		return cmp.Or(slices.Compare(a.Instance[:], b.Instance[:]), cmp.Compare(a.Version, b.Version))
	})
	for _, k := range slices.Sorted(maps.Keys(s.keys)) {
		row := check.Key{Key: k, Decision: s.keys[k].Code, Instance: s.keys[k].Instance, Version: s.keys[k].Version}
		if row.Decision == "" {
			row.Decision = "applied"
		}
		s.run.Keys = append(s.run.Keys, row)
	}
	s.run.Orders = orders(s.start)
	s.run.Trips = trips(s.start)
	for _, name := range []string{"webhook", "sink", "stream", "stream-resumed"} {
		s.run.Receivers = append(s.run.Receivers, check.Receiver{Name: name})
		s.deliver(name)
	}
}

// deliver lets a receiver get what it should.
func (s *simulation) deliver(name string) {
	resume := 0
	if s.taken != nil {
		had := s.common + s.rng.IntN(len(s.taken)-s.common+1)
		for i, step := range s.taken[:had] {
			step.Epoch, step.Position = 1, int64(i+1)
			s.tell(name, step, false)
		}
		switch ofStream := strings.HasPrefix(name, "stream"); {
		case ofStream && had > s.common:
			s.run.Received = append(s.run.Received, check.Received{Receiver: name, Lost: true, LastCommon: fmt.Sprintf("1.%d", s.common), At: s.run.Losses[0].End})
			resume = s.common
		case ofStream:
			resume = had
		default:
			resume = max(0, s.common-s.rng.IntN(10))
		}
	}
	rest := slices.Clone(s.log[resume:])
	if name == "webhook" { // Between instances there is no order.
		place := map[uuid.UUID]int{}
		places := make(map[int64]int, len(rest)) // By the order in the log.
		for i := range rest {
			place[rest[i].Instance] = max(place[rest[i].Instance], i+s.rng.IntN(30))
			places[int64(i)] = place[rest[i].Instance]
		}
		order := make([]int64, len(rest))
		for i := range order {
			order[i] = int64(i)
		}
		slices.SortStableFunc(order, func(a, b int64) int { return cmp.Compare(places[a], places[b]) })
		shuffled := make([]check.Step, len(rest))
		for i, from := range order {
			shuffled[i] = rest[from]
		}
		rest = shuffled
	}
	for i := 0; i < len(rest); i++ {
		s.tell(name, rest[i], true)
		if !strings.HasPrefix(name, "stream") && s.rng.IntN(50) == 0 { // Once more, as after a crash.
			i = max(-1, i-1-s.rng.IntN(5))
		}
	}
}

// tell sends a message of a step. A stream names the place of a step by the epoch in which it reads it.
func (s *simulation) tell(name string, step check.Step, inLatest bool) {
	m := check.Received{Receiver: name, Instance: step.Instance, Version: step.Version, Epoch: step.Epoch, At: step.At.Add(time.Second)}
	data := map[string]any{
		"version": step.Version, "kind": step.Kind, "event": null(step.Event), "from": null(step.From), "to": step.To,
		"status": step.Status, "key": step.Key, "context": step.Context, "payload": step.Payload, "at": step.At,
	}
	if strings.HasPrefix(name, "stream") {
		data["instance_id"] = step.Instance
		if inLatest && len(s.run.Epochs) > 0 {
			m.Epoch = s.run.Epochs[len(s.run.Epochs)-1].Epoch
		}
		m.ID = fmt.Sprintf("%d.%d", m.Epoch, step.Position)
		if !s.epochs {
			m.ID = "opaque-" + step.Instance.String() + strconv.FormatInt(step.Version, 10)
		}
	} else {
		data["instance"] = map[string]any{"id": step.Instance, "version": step.Version, "context": step.Context}
		m.ID = fmt.Sprintf("%s:%d", step.Instance, step.Version)
		if step.Epoch > 1 {
			m.ID += fmt.Sprintf("@%d", step.Epoch)
		}
	}
	if name == "webhook" {
		m.WebhookID = "msg_" + m.ID
	}
	var err error
	if m.Data, err = json.Marshal(data); err != nil {
		panic(err)
	}
	s.run.Received = append(s.run.Received, m)
}

func null(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// orders are some whose charge was denied once, and then was made under a fresh key.
func orders(at time.Time) (o check.Orders) {
	for n := range byte(3) {
		instance := uuid.UUID{0xff, n}
		o.Created = append(o.Created, instance)
		o.Steps = append(o.Steps, check.Step{Instance: instance, Version: 1, Kind: "created", To: "CHARGING", Status: "active", At: at})
		for i, name := range []string{"charge", "pack", "tell"} {
			t := check.Task{
				ID: uuid.UUID{0xff, n, byte(i)}, Instance: instance, Name: name, Status: "done", ResultVersion: int64(i + 2),
				CreatedAt: at, DeadlineAt: at.Add(time.Minute), EndedAt: at.Add(time.Duration(i+2) * time.Second),
			}
			s := check.Step{
				Instance: instance, Version: t.ResultVersion, Kind: "result", Event: "done:" + name, Status: "active",
				Key: "task:" + t.ID.String(), At: t.EndedAt,
			}
			key := t.ID.String()
			switch name {
			case "charge":
				o.Effects = append(o.Effects, check.Effect{Task: t.ID, Key: key, At: at})
				o.Absences = append(o.Absences, check.Effect{Key: key, At: at.Add(time.Second)})
				o.Effects = append(o.Effects, check.Effect{Task: t.ID, Key: key + "-2", At: at.Add(1500 * time.Millisecond)})
			case "pack":
				lease := uuid.UUID{n, 1}
				t.Work = true
				t.Body = json.RawMessage(`{"lease": "` + lease.String() + `"}`)
				o.Completes = append(o.Completes,
					check.Complete{Task: t.ID, Lease: uuid.UUID{n, 2}, Status: 409}, check.Complete{Task: t.ID, Lease: lease, Status: 200})
			case "tell":
				s.Status = "completed"
				o.Effects = append(o.Effects, check.Effect{Task: t.ID, Key: key, At: at})
			}
			o.Tasks, o.Steps = append(o.Tasks, t), append(o.Steps, s)
		}
	}
	return o
}

// trips are one that was booked, one that was undone, one of which an operator had a step skipped after it had been tried
// twice, and one that is parked.
func trips(start time.Time) (o check.Trips) {
	var number int64
	for n, end := range []string{"BOOKED", "CANCELLED", "skipped", "STUCK"} {
		instance, version, seconds := uuid.UUID{0xfe, byte(n)}, int64(0), 0
		at := func() time.Time { return start.Add(time.Duration(seconds) * time.Second) }
		step := func(kind, event, to, key string) int64 {
			version++
			seconds++
			status := "active"
			if to == "BOOKED" || to == "CANCELLED" {
				status = "completed"
			}
			o.Steps = append(o.Steps, check.Step{Instance: instance, Version: version, Kind: kind, Event: event, To: to, Status: status, Key: key, At: at()})
			return version
		}
		count := byte(0)
		// carry makes a task and its effect, and returns its id.
		carry := func(t check.Task, to, kind string, of uuid.UUID) uuid.UUID {
			count++
			t.ID, t.Instance, t.CreatedAt, t.DeadlineAt = uuid.UUID{0xfe, byte(n), count}, instance, at(), at().Add(time.Minute)
			key := "task:" + t.ID.String()
			if t.Status != "error" && !t.Work {
				o.Effects = append(o.Effects, check.Effect{Task: t.ID, Key: t.ID.String(), Of: of, At: at().Add(time.Millisecond)})
			}
			switch {
			case t.Compensates == 0:
				t.ResultVersion = step(kind, t.Status+":"+t.Name, to, key)
			case t.Status == "done":
				t.ResultVersion = step(kind, "compensated:"+t.Name, to, key)
			}
			t.EndedAt = at()
			o.Tasks = append(o.Tasks, t)
			return t.ID
		}
		o.Created = append(o.Created, instance)
		step("created", "", "WAITING", "")
		step("transition", "pay", "HOTEL", "pay")
		first := len(o.Compensations)
		register := func(name string, task uuid.UUID, status string) {
			number++
			o.Compensations = append(o.Compensations, check.Compensation{Instance: instance, Number: number, Name: name, Status: status, Task: task})
		}
		register("pay", uuid.Nil, "registered")
		register("hotel", carry(check.Task{Name: "hotel", Status: "done"}, "FLIGHT", "result", uuid.Nil), "registered")
		register("flight", carry(check.Task{Name: "flight", Status: "done"}, "CAR", "result", uuid.Nil), "registered")
		if end == "BOOKED" {
			register("car", carry(check.Task{Name: "car", Status: "done"}, "BOOKED", "result", uuid.Nil), "registered")
			continue
		}
		register("car", carry(check.Task{Name: "car", Status: "error"}, "UNDOING", "result", uuid.Nil), "void")
		undo := func(c *check.Compensation, status string) {
			c.UndoneBy = carry(
				check.Task{Name: c.Name, Status: status, Work: c.Task == uuid.Nil, Compensates: c.Number}, "UNDOING", "compensated", c.Task)
		}
		for i := len(o.Compensations) - 2; i >= first; i-- {
			c := &o.Compensations[i]
			if c.Name != "hotel" || end == "CANCELLED" {
				undo(c, "done")
				c.Status = "undone"
				continue
			}
			for range 2 {
				undo(c, "unknown")
				c.Status, c.Reason = "failed", "timeout"
				step("result", "error:compensate", "STUCK", "")
				if end == "skipped" {
					step("transition", "undo", "UNDOING", "undo")
				}
			}
			if end == "STUCK" {
				break
			}
			c.Status, c.Reason = "skipped", "done by hand"
		}
		if end != "STUCK" {
			step("result", "done:compensate", "CANCELLED", "")
		}
	}
	return o
}
