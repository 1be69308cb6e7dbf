package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// definitions are the workflows of the load that no example has: an instance that a timer ends, one whose timer cannot be
// ended, and one that is stuck.
const definitions = `[
  {"name": "reminder", "initial": "WAITING", "states": {"WAITING": {"after": {"3s": "DONE"}}, "DONE": {"type": "final"}}},
  {"name": "broken-timer", "initial": "WAITING", "states": {
    "WAITING": {"after": {"2s": {"target": "DONE", "assign": {"n": "$.context.text + 1"}}}}, "DONE": {"type": "final"}}},
  {"name": "approval", "initial": "ASKED", "states": {"ASKED": {"stuck_after": "10s", "on": {"answer": "DONE"}}, "DONE": {"type": "final"}}}
]`

// examples are those that the load uses.
var examples = []string{"flight-booking", "trip-saga", "worker"}

// load sends commands for a time. Failures are what the dashboard is to show, so they do not end it.
func (w *world) load(ctx context.Context, duration time.Duration) error {
	if err := w.prepare(ctx); err != nil {
		return err
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	var all sync.WaitGroup
	for every, do := range map[time.Duration]func(context.Context, int){
		40 * time.Millisecond: w.book, 210 * time.Millisecond: w.remind, 300 * time.Millisecond: w.read, time.Second: w.travel,
		900 * time.Millisecond: w.pack, 1100 * time.Millisecond: w.work, 20 * time.Second: w.neglect,
	} {
		all.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					do(ctx, n)
				}
			}
		})
	}
	all.Wait()
	return whole.Err()
}

// prepare registers what the load needs.
func (w *world) prepare(ctx context.Context) error {
	for _, name := range examples {
		if err := w.pawl(ctx, "workflow", "apply", filepath.Join("examples", name, "workflow.yaml")); err != nil {
			return err
		}
	}
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(definitions), &list); err != nil {
		return err
	}
	for _, definition := range list {
		file, err := os.CreateTemp("", "pawl-*.json")
		if err != nil {
			return err
		}
		_, err = file.Write(definition)
		_ = file.Close()
		if err == nil {
			err = w.pawl(ctx, "workflow", "apply", file.Name())
		}
		_ = os.Remove(file.Name())
		if err != nil {
			return err
		}
	}
	for _, place := range []string{"hotel", "flight", "car"} {
		if err := w.pawl(ctx, "connection", "put", place, "--base-url", w.services.URL+"/"+place); err != nil {
			return err
		}
	}
	for path, filter := range map[string]string{"/hook": `{"workflows": ["trip-saga", "parcel"]}`, "/broken": `{"workflows": ["approval"]}`} {
		w.send(ctx, http.MethodPost, "/v1/subscriptions", fmt.Sprintf(`{"url": %q, "filter": %s}`, w.services.URL+path, filter))
	}
	return nil
}

// keys makes idempotency keys, and turns the requests round the replicas.
var keys atomic.Int64

// send sends a request with a new key to one of the replicas, and returns the answer.
func (w *world) send(ctx context.Context, method, path, body string) (answer map[string]any) {
	return w.sendAs(ctx, fmt.Sprintf("load-%d", keys.Add(1)), method, path, body)
}

// sendAs is send with a key. What cannot be sent is missing in the picture, which is what a dashboard is for.
func (w *world) sendAs(ctx context.Context, key, method, path, body string) (answer map[string]any) {
	if method == http.MethodGet {
		key = ""
	}
	_, text, err := send(ctx, method, w.replicas[int(keys.Add(1))%len(w.replicas)]+path, key, body)
	if err == nil {
		_ = json.Unmarshal(text, &answer)
	}
	return answer
}

// create creates an instance, and returns its id.
func (w *world) create(ctx context.Context, workflow, document string) string {
	id, _ := w.send(ctx, http.MethodPost, "/v1/workflows/"+workflow+"/instances", `{"context": `+document+`}`)["id"].(string)
	return id
}

// fire fires an event with a payload.
func (w *world) fire(ctx context.Context, id, event, payload string) {
	w.send(ctx, http.MethodPost, "/v1/instances/"+id+"/actions/"+event, `{"payload": `+payload+`}`)
}

// book books a flight, and does all that callers do wrong.
func (w *world) book(ctx context.Context, n int) {
	id := w.create(ctx, "flight-booking", `{"flight_id": "LH454", "price": 420}`)
	if n%7 == 0 {
		w.fire(ctx, id, "reserve", `{"price": 1, "seat": "12A"}`) // The guard refuses it.
	}
	key, path := "reserve-"+id, "/v1/instances/"+id+"/actions/reserve"
	w.sendAs(ctx, key, http.MethodPost, path, `{"payload": {"price": 420, "seat": "12A"}}`)
	if n%5 == 0 {
		w.sendAs(ctx, key, http.MethodPost, path, `{"payload": {"price": 420, "seat": "12A"}}`) // Again.
	}
	if n%40 == 0 {
		w.sendAs(ctx, key, http.MethodPost, path, `{"payload": {"price": 420, "seat": "1A"}}`) // Another request.
	}
	w.fire(ctx, id, "pay", `{"amount": 420, "payment_ref": "ch_1"}`)
	if n%11 == 0 {
		w.fire(ctx, id, "cancel", `{}`) // It is paid.
		w.create(ctx, "no-such-workflow", `{}`)
	}
}

func (w *world) remind(ctx context.Context, _ int) { w.create(ctx, "reminder", `{}`) }

func (w *world) read(ctx context.Context, n int) {
	path := []string{"/v1/instances?workflow=flight-booking&limit=20", "/v1/workflows/trip-saga/stats", "/v1/findings", "/v1/tasks?limit=20"}[n%4]
	w.send(ctx, http.MethodGet, path, "")
}

// travel makes a trip; each third has no car.
func (w *world) travel(ctx context.Context, n int) {
	w.create(ctx, "trip-saga", fmt.Sprintf(`{"city": "Lisbon", "car": %q}`, []string{"small", "large", "limousine"}[n%3]))
}

func (w *world) pack(ctx context.Context, _ int) { w.create(ctx, "parcel", `{"sku": "A-17"}`) }

// work claims a task, and completes most of them.
func (w *world) work(ctx context.Context, n int) {
	claim := w.send(ctx, http.MethodPost, "/v1/work/pack/claim", `{"max": 2, "worker": "dashboard"}`)
	items, _ := claim["tasks"].([]any)
	for _, item := range items {
		task, _ := item.(map[string]any)
		path := fmt.Sprintf("/v1/tasks/%v/", task["id"])
		lease := fmt.Sprintf(`"lease": %q`, fmt.Sprint(task["lease"]))
		switch n % 12 {
		case 4:
			w.send(ctx, http.MethodPost, path+"fail", `{`+lease+`, "error": "the shelf is empty", "retryable": false}`)
		case 8:
			w.send(ctx, http.MethodPost, path+"fail", `{`+lease+`, "error": "the scanner hangs", "outcome": "unknown"}`)
		default:
			w.send(ctx, http.MethodPost, path+"complete", `{`+lease+`, "result": {"parcel": "P-1"}}`)
		}
	}
}

// neglect makes what is stuck, what cannot be ended, and what cannot be delivered.
func (w *world) neglect(ctx context.Context, n int) {
	w.create(ctx, "approval", `{}`)
	if n%3 == 0 {
		w.create(ctx, "broken-timer", `{"text": "no number"}`)
	}
}
