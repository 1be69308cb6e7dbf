package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// A provider does what the calls of tasks ask for, and does not always say so: it answers 500 after it has charged, or
// nothing, denies a charge, and replays what it has answered to a key.
type provider struct {
	world  *world
	record *record
	url    string
	close  func() error
	// calls gets a signal for each call that came, if somebody waits for it, and undoing for each that undoes something.
	calls, undoing chan struct{}

	mu      sync.Mutex
	rng     *rand.Rand
	charged map[string]bool
	replays map[string]int // The status that was answered to a key.
}

// errorRate is how many of a hundred calls the provider answers with something else than the truth.
const errorRate, liarErrorRate = 20, 50

func newProvider(w *world) (*provider, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &provider{
		world: w, record: w.record, url: "http://" + listener.Addr().String(), calls: make(chan struct{}), undoing: make(chan struct{}),
		rng: w.random(ofProvider), charged: map[string]bool{}, replays: map[string]int{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges", p.charge)
	mux.HandleFunc("GET /charges", p.look)
	mux.HandleFunc("POST /tell", p.tell)
	mux.HandleFunc("POST /bookings", p.book)
	mux.HandleFunc("POST /cancellations", p.cancel)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	p.close = server.Close
	go func() { _ = server.Serve(listener) }() // It returns when the server is closed.
	return p, nil
}

// draw returns a number below 100 that decides what happens to a call, and whether it is honest.
func (p *provider) draw() (n int, honest bool) {
	rate := errorRate
	if p.world.scenario.lies {
		rate = liarErrorRate
	}
	return p.rng.IntN(100), p.rng.IntN(100) >= rate
}

// came tells whoever waits for a call that there is one.
func came(waiting chan<- struct{}) {
	select {
	case waiting <- struct{}{}:
	default:
	}
}

// A call is what the body of a request says. What is the name of the task, and of the one whose effect is to be undone.
type call struct {
	Task, Of uuid.UUID
	What     string
}

func read(r *http.Request) (c call, err error) {
	err = json.NewDecoder(r.Body).Decode(&c)
	return c, err
}

// charge charges once for each key.
func (p *provider) charge(w http.ResponseWriter, r *http.Request) {
	p.once(w, r, p.calls, p.record.effect)
}

// book books once for each key. Half of the cars cannot be had.
func (p *provider) book(w http.ResponseWriter, r *http.Request) {
	p.once(w, r, p.calls, p.record.booked)
}

// cancel undoes a booking once for each key.
func (p *provider) cancel(w http.ResponseWriter, r *http.Request) {
	p.once(w, r, p.undoing, p.record.booked)
}

// once has one effect for each key, and records it.
func (p *provider) once(w http.ResponseWriter, r *http.Request, waiting chan<- struct{}, record func(check.Effect)) {
	key := r.Header.Get("Idempotency-Key")
	c, err := read(r)
	if err != nil || key == "" {
		return // The caller has died while it sent.
	}
	p.mu.Lock()
	n, honest := p.draw()
	if c.What != "" && p.rng.IntN(2) == 0 {
		honest = true // Else most trips had nothing to undo.
	}
	status, hangs := http.StatusOK, false
	replayed, replays := p.replays[key]
	charges := true
	switch {
	case replays:
		status, charges = replayed, false
	case c.What == "car" && p.rng.IntN(2) == 0 && !p.charged[key]:
		status, charges = http.StatusConflict, false
	case honest:
	case n < 25: // Charged.
		status = http.StatusInternalServerError
	case n < 50: // Charged.
		hangs = true
	case n < 70:
		status, charges = http.StatusBadGateway, false
	case n < 80:
		status, charges = http.StatusTooManyRequests, false
	case n < 90:
		status, charges = http.StatusServiceUnavailable, false
	default:
		status, charges = http.StatusPaymentRequired, false
	}
	if charges && !p.charged[key] {
		p.charged[key] = true
		record(check.Effect{Task: c.Task, Key: key, Of: c.Of, At: time.Now()})
	}
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		p.replays[key] = status
	}
	p.mu.Unlock()
	came(waiting)
	p.answer(r.Context(), w, status, hangs, `{"paid": true}`)
}

// look says whether a key has charged. At times it denies a charge.
func (p *provider) look(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("key")
	p.mu.Lock()
	n, honest := p.draw()
	paid, status := p.charged[key], http.StatusOK
	switch {
	case honest:
	case n < 50:
		paid = false
	default:
		status = http.StatusBadGateway
	}
	if status == http.StatusOK && !paid {
		p.record.absence(check.Effect{Key: key, At: time.Now()})
	}
	p.mu.Unlock()
	p.answer(r.Context(), w, status, false, fmt.Sprintf(`{"paid": %t}`, paid))
}

// tell has an effect with each call that it does not refuse.
func (p *provider) tell(w http.ResponseWriter, r *http.Request) {
	c, err := read(r)
	if err != nil {
		return
	}
	p.mu.Lock()
	n, honest := p.draw()
	status, hangs := http.StatusOK, false
	switch {
	case honest:
	case n < 30:
		status = http.StatusTooManyRequests
	case n < 60:
		status = http.StatusInternalServerError
	default:
		hangs = true
	}
	if status != http.StatusTooManyRequests {
		p.record.effect(check.Effect{Task: c.Task, Key: c.Task.String(), At: time.Now()})
	}
	p.mu.Unlock()
	came(p.calls)
	p.answer(r.Context(), w, status, hangs, `{}`)
}

// answer answers, after a moment in which a scenario may kill who asked, or resets the connection after the timeout of the call.
func (p *provider) answer(ctx context.Context, w http.ResponseWriter, status int, hangs bool, body string) {
	wait := 20 * time.Millisecond
	if hangs {
		wait = 1500 * time.Millisecond // Longer than the timeout of the calls.
	}
	if sleep(ctx, wait) && hangs {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// beginOrders registers what orders need, and lets a client create them and workers pack them.
func (w *world) beginOrders(ctx context.Context, c *caller) error {
	var err error
	if w.provider, err = newProvider(w); err != nil {
		return err
	}
	w.atEnd(func() { _ = w.provider.close() })
	connection := fmt.Sprintf(`{"base_url": %q, "auth": {"type": "none"}}`, w.provider.url)
	if err := c.prepare(ctx, http.MethodPut, "/v1/connections/provider", connection, new(any)); err != nil {
		return err
	}
	if w.scenario.undoes {
		if err := c.prepare(ctx, http.MethodPut, "/v1/workflows/trip", check.TripDefinition, new(any)); err != nil {
			return err
		}
	}
	return c.prepare(ctx, http.MethodPut, "/v1/workflows/order", check.OrderDefinition, new(any))
}

// order creates orders until stopping ends. ctx bounds the attempts of the last one.
func (c *caller) order(ctx, stopping context.Context) {
	for n := 0; stopping.Err() == nil; n++ {
		key := fmt.Sprintf("%d-order-%d", c.world.seed, n)
		var made struct{ ID uuid.UUID }
		for c.ask(ctx, "/v1/workflows/order/instances", key, `{}`, &made) != http.StatusCreated {
			if !sleep(ctx, time.Duration(20+c.rng.IntN(200))*time.Millisecond) {
				return
			}
		}
		c.world.record.ordered(made.ID)
		if !sleep(stopping, time.Duration(50+c.rng.IntN(100))*time.Millisecond) {
			return
		}
	}
}

// trip creates trips and pays for them until stopping ends. ctx bounds the attempts of the last one.
func (c *caller) trip(ctx, stopping context.Context) {
	for n := 0; stopping.Err() == nil; n++ {
		var made struct{ ID uuid.UUID }
		if !c.persist(ctx, "/v1/workflows/trip/instances", fmt.Sprintf("%d-trip-%d", c.world.seed, n), `{}`, &made) {
			return
		}
		c.world.record.planned(made.ID)
		if !c.persist(ctx, "/v1/instances/"+made.ID.String()+"/actions/pay", fmt.Sprintf("%d-pay-%d", c.world.seed, n), `{}`, new(any)) {
			return
		}
		if !sleep(stopping, time.Duration(100+c.rng.IntN(200))*time.Millisecond) {
			return
		}
	}
}

// persist posts with a key until there is a decision or ctx ends.
func (c *caller) persist(ctx context.Context, path, key, body string, into any) bool {
	for !decided(c.ask(ctx, path, key, body, into)) {
		if !sleep(ctx, time.Duration(20+c.rng.IntN(200))*time.Millisecond) {
			return false
		}
	}
	return true
}

// operate looks after trips that are stuck until stopping ends: it has the step that could not be undone tried again, skips it,
// or leaves the trip for good.
func (c *caller) operate(ctx, stopping context.Context) {
	left := map[uuid.UUID]bool{}
	for n := 0; sleep(stopping, 300*time.Millisecond); {
		for _, s := range c.world.stuck(ctx) {
			draw := c.rng.IntN(100)
			if draw < 20 {
				left[s.trip] = true
			}
			if left[s.trip] {
				continue
			}
			n++
			mark := "retry"
			if draw < 40 {
				mark = "skip"
			}
			trip := "/v1/instances/" + s.trip.String()
			if !c.persist(ctx, trip+"/compensations/"+s.step+"/"+mark, "", `{"reason": "`+mark+` it"}`, new(any)) ||
				!c.persist(ctx, trip+"/actions/undo", fmt.Sprintf("%d-undo-%d", c.world.seed, n), `{}`, new(any)) {
				return
			}
		}
	}
}

// A stuck is a trip with a step that could not be undone.
type stuck struct {
	trip uuid.UUID
	step string
}

// stuck returns the trips that are stuck; none if the server does not say.
func (w *world) stuck(ctx context.Context) []stuck {
	conn, err := pgx.Connect(ctx, w.cluster.writer().DSN())
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `
		select i.id, c.name
		from pawl.instance i
		join pawl.compensation c on c.tenant_id = i.tenant_id and c.instance_id = i.id
		where i.workflow = 'trip' and i.state = 'STUCK' and c.status = 'failed'
		order by i.id`)
	if err != nil {
		return nil
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s stuck, err error) {
		err = row.Scan(&s.trip, &s.step)
		return s, err
	})
	if err != nil {
		return nil
	}
	return all
}

// work does the work of a topic until ctx ends. At times it is away until its lease is over and somebody else has the task, and at times
// it never comes back.
func (c *caller) work(ctx context.Context, topic string) {
	for n := 0; ctx.Err() == nil; n++ {
		var got struct {
			Tasks []struct{ ID, Lease uuid.UUID }
		}
		key := fmt.Sprintf("%d-claim-%d-%d", c.world.seed, c.number, n)
		if c.ask(ctx, "/v1/work/"+topic+"/claim", key, fmt.Sprintf(`{"worker": "worker-%d", "max": 3, "wait": "1s"}`, c.number), &got) != http.StatusOK {
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		draw := c.rng.IntN(100)
		if draw < 5 {
			continue
		}
		if draw < 20 {
			sleep(ctx, time.Duration(1000+c.rng.IntN(2000))*time.Millisecond)
		}
		for _, t := range got.Tasks {
			body := fmt.Sprintf(`{"lease": %q, "result": {"lease": %q}}`, t.Lease, t.Lease)
			for try := 0; try < 20 && ctx.Err() == nil; try++ {
				status := c.ask(ctx, "/v1/tasks/"+t.ID.String()+"/complete", "", body, new(any))
				c.world.record.completed(topic, check.Complete{Task: t.ID, Lease: t.Lease, Status: status})
				if decided(status) {
					break
				}
				sleep(ctx, 100*time.Millisecond)
			}
		}
	}
}

// ask posts to any replica, and returns the status; 0 if there is no whole answer.
func (c *caller) ask(ctx context.Context, path, key, body string, into any) int {
	base := c.world.replicas[c.rng.IntN(len(c.world.replicas))].base()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil || json.Unmarshal(raw, into) != nil {
		return 0
	}
	if response.StatusCode == http.StatusInternalServerError {
		c.world.record.note(fmt.Sprintf("%s was answered with %s", path, raw))
	}
	return response.StatusCode
}

// readOrders takes what the database has of orders and trips into the record.
func (w *world) readOrders(ctx context.Context, conn *pgx.Conn) error {
	run := &w.record.run
	if err := readTasks(ctx, conn, "order", &run.Orders); err != nil {
		return err
	}
	if err := readTasks(ctx, conn, "trip", &run.Trips.Orders); err != nil {
		return err
	}
	rows, err := conn.Query(ctx, `
		select c.instance_id, c.number, c.name, c.status, coalesce(c.task_id, $1), coalesce(c.undone_by, $1), coalesce(c.reason, '')
		from pawl.compensation c
		where c.workflow = 'trip'
		order by c.number`, uuid.Nil)
	if err != nil {
		return err
	}
	run.Trips.Compensations, err = pgx.CollectRows(rows, pgx.RowToStructByPos[check.Compensation])
	return err
}

// readTasks takes the tasks and the history of a workflow's instances.
func readTasks(ctx context.Context, conn *pgx.Conn, workflow string, o *check.Orders) error {
	rows, err := conn.Query(ctx, `
		select t.id, t.instance_id, t.name, t.status, t.topic is not null, coalesce(t.compensates, 0), t.left_at is not null,
			coalesce(t.result_version, 0), t.created_at, t.deadline_at, t.ended_at, t.result -> 'body'
		from pawl.task t
		where t.workflow = $1
		order by t.id`, workflow)
	if err != nil {
		return err
	}
	o.Tasks, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t check.Task, err error) {
		var ended *time.Time
		err = row.Scan(&t.ID, &t.Instance, &t.Name, &t.Status, &t.Work, &t.Compensates, &t.Late, &t.ResultVersion, &t.CreatedAt,
			&t.DeadlineAt, &ended, &t.Body)
		if ended != nil {
			t.EndedAt = *ended
		}
		return t, err
	})
	if err != nil {
		return err
	}
	rows, err = conn.Query(ctx, `
		select h.instance_id, h.version, h.kind, coalesce(h.event, ''), h.to_state, h.status, coalesce(h.key, ''), h.at
		from pawl.history h
		join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id
		where i.workflow = $1
		order by h.instance_id, h.version`, workflow)
	if err != nil {
		return err
	}
	o.Steps, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s check.Step, err error) {
		err = row.Scan(&s.Instance, &s.Version, &s.Kind, &s.Event, &s.To, &s.Status, &s.Key, &s.At)
		return s, err
	})
	return err
}

// killCallers kills replicas while the provider has a call of one of them, and at any time, such as between a claim and its call.
func killCallers(ctx context.Context, w *world) error {
	return w.rounds(ctx, 8, func(round int) error {
		if round%2 == 0 {
			select {
			case <-w.provider.calls:
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
			}
		}
		return killAll(ctx, w)
	})
}

// killAll kills all replicas, and starts them again after a moment.
func killAll(ctx context.Context, w *world) error {
	w.record.note("kill all replicas")
	for _, r := range w.replicas {
		if err := r.end(syscall.SIGKILL); err != nil {
			return err
		}
	}
	w.pause(ctx, 1, 1000)
	for _, r := range w.replicas {
		if err := r.start(); err != nil {
			return err
		}
	}
	return nil
}

// killUndoing kills all replicas or the server while the provider has a call that undoes something, or a moment later, which is
// between two steps of undoing.
func killUndoing(ctx context.Context, w *world) error {
	return w.rounds(ctx, 10, func(round int) error {
		select {
		case <-w.provider.undoing:
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
		}
		if w.faults.IntN(2) == 0 {
			w.pause(ctx, 1, 300)
		}
		if round%2 == 0 {
			return killAll(ctx, w)
		}
		return crash(ctx, w)
	})
}

// letLie lets the provider go on for some time.
func letLie(ctx context.Context, w *world) error {
	return w.rounds(ctx, 5, func(int) error {
		w.pause(ctx, 1000, 3000)
		return nil
	})
}
