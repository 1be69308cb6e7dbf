package main

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// A record is what was seen of a run. It is kept as JSON lines too, each with one member that says what it is.
type record struct {
	mu       sync.Mutex
	run      check.Run
	found    []check.Violation // By the tool itself, while it ran.
	internal int               // Answers with the status 500.
	last     map[string]time.Time
	seen     map[place]int64 // The position in the log, of what a stream got.
	file     *os.File
	lines    *json.Encoder
}

// A place is a step that a receiver got.
type place struct {
	receiver string
	step     stepID
}

// A stepID tells a step from another one that had its version before a loss.
type stepID struct {
	instance [16]byte
	version  int64
	at       int64 // Microseconds.
}

func newRecord(path string) (*record, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &record{
		run:  check.Run{Model: check.Account(), Begin: time.Now()},
		last: map[string]time.Time{}, seen: map[place]int64{}, file: file, lines: json.NewEncoder(file),
	}, nil
}

// line writes a line. If that fails, the run goes on: the checks work on what is in memory.
func (r *record) line(what string, value any) { _ = r.lines.Encode(map[string]any{what: value}) }

func (r *record) op(op check.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if op.Status == 500 {
		r.internal++
	}
	r.run.Ops = append(r.run.Ops, op)
	r.line("op", op)
}

func (r *record) received(m check.Received) {
	m.At = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Received = append(r.run.Received, m)
	r.last[m.Receiver] = m.At
	_, position, _ := check.Place(m.ID)
	if m.Lost { // What is behind the last common position must come again.
		_, common, _ := check.Place(m.LastCommon)
		maps.DeleteFunc(r.seen, func(p place, at int64) bool { return p.receiver == m.Receiver && at > common })
	} else {
		r.seen[place{m.Receiver, stepID{m.Instance, m.Version, timeOf(m.Data)}}] = position
	}
	r.line("received", m)
}

// timeOf returns when the step of a message was made, in microseconds; 0 if it does not say.
func timeOf(data json.RawMessage) int64 {
	var step struct{ At time.Time }
	if json.Unmarshal(data, &step) != nil {
		return 0
	}
	return step.At.UnixMicro()
}

// violation records what the tool itself finds.
func (r *record) violation(name, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = append(r.found, check.Violation{Check: name, Detail: detail})
	r.line("violation", detail)
}

// note records what the tool does.
func (r *record) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line("fault", map[string]any{"at": time.Now(), "what": what})
}

// loss records a time in which steps may have been lost.
func (r *record) loss(begin time.Time, asyncOnly bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Losses = append(r.run.Losses, check.Loss{Begin: begin, End: time.Now(), AsyncOnly: asyncOnly})
}

// missing returns how many of the steps each receiver has not got, and when the last message came to anybody.
func (r *record) missing(receivers []check.Receiver, steps []stepID) (of map[string]int, last time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of = map[string]int{}
	for _, receiver := range receivers {
		for _, s := range steps {
			if _, seen := r.seen[place{receiver.Name, s}]; !seen {
				of[receiver.Name]++
			}
		}
	}
	for _, at := range r.last {
		if at.After(last) {
			last = at
		}
	}
	return of, last
}

// effect, booked, absence, ordered, planned and completed record what was seen of tasks.
func (r *record) effect(e check.Effect) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Orders.Effects = append(r.run.Orders.Effects, e)
	r.line("effect", e)
}

func (r *record) booked(e check.Effect) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Trips.Effects = append(r.run.Trips.Effects, e)
	r.line("booked", e)
}

func (r *record) absence(e check.Effect) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Orders.Absences = append(r.run.Orders.Absences, e)
	r.line("absence", e)
}

func (r *record) ordered(instance uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Orders.Created = append(r.run.Orders.Created, instance)
}

func (r *record) planned(instance uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run.Trips.Created = append(r.run.Trips.Created, instance)
}

func (r *record) completed(topic string, c check.Complete) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := &r.run.Orders
	if topic == "refund" {
		of = &r.run.Trips.Orders
	}
	of.Completes = append(of.Completes, c)
	r.line("complete", c)
}

// forgetOrders takes what receivers got of orders and trips out of the run, whose other checks are of accounts. missing has counted it.
func (r *record) forgetOrders() {
	r.mu.Lock()
	defer r.mu.Unlock()
	orders := map[uuid.UUID]bool{}
	for _, s := range slices.Concat(r.run.Orders.Steps, r.run.Trips.Steps) {
		orders[s.Instance] = true
	}
	r.run.Received = slices.DeleteFunc(r.run.Received, func(m check.Received) bool { return orders[m.Instance] })
}
