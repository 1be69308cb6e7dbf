// Package loop is the loop of a worker: it claims the tasks of a topic from pawl, works on a few at a time, extends their
// leases meanwhile, and says how each ended. It needs nothing but HTTP.
package loop

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A Task is what a claim returns, as far as a worker needs it.
type Task struct {
	ID             string          `json:"id"`
	Key            string          `json:"key"`
	Attempt        int             `json:"attempt"`
	Input          json.RawMessage `json:"input"`
	Lease          string          `json:"lease"`
	LeaseExpiresAt time.Time       `json:"lease_expires_at"`

	progress *atomic.Pointer[any]
}

// Progress says how far the work is: the next heartbeat tells pawl, which shows it to whoever looks at the task. It is
// sent as JSON.
func (t Task) Progress(v any) { t.progress.Store(&v) }

// A Worker works on the tasks of a topic.
type Worker struct {
	Server, Token string
	Topic, Name   string
	Slots         int           // How many tasks it works on at a time.
	Wait          time.Duration // How long a claim waits for a task.
	// Work returns the result of a task. Its context ends when the lease counts no more, when the instance has left the
	// state of the task, and when the worker is told to stop.
	Work func(context.Context, Task) (any, error)
}

// ErrPermanent is wrapped by the error of the work to say that no other attempt can succeed.
var ErrPermanent = errors.New("no other attempt can succeed")

// errStop is the answer to a lease that counts no more: another worker has the task, or it has ended.
var errStop = errors.New("the lease counts no more")

// Run works until the context ends. Then it gives back what it has begun.
func (w *Worker) Run(ctx context.Context) {
	var busy sync.WaitGroup
	defer busy.Wait()
	free := make(chan struct{}, w.Slots)
	for range w.Slots {
		free <- struct{}{}
	}
	for ctx.Err() == nil {
		// It claims no more than it can begin with at once: a lease runs from the claim.
		select {
		case <-free:
		case <-ctx.Done():
			return
		}
		slots := 1
		for more := true; more && slots < w.Slots; {
			select {
			case <-free:
				slots++
			default:
				more = false
			}
		}
		tasks := w.claim(ctx, slots)
		for range slots - len(tasks) {
			free <- struct{}{}
		}
		for _, t := range tasks {
			busy.Go(func() {
				defer func() { free <- struct{}{} }()
				w.do(ctx, t)
			})
		}
	}
}

// claim claims tasks. It sends the same request with the same key until it is answered: if an answer is lost, the next one
// has the same tasks.
func (w *Worker) claim(ctx context.Context, slots int) []Task {
	var answer struct {
		Tasks []Task `json:"tasks"`
	}
	request := map[string]any{"worker": w.Name, "max": slots, "wait": fmt.Sprintf("%dms", w.Wait.Milliseconds())}
	if err := w.call(ctx, "/v1/work/"+w.Topic+"/claim", request, &answer); err != nil && ctx.Err() == nil {
		slog.Error("claim", "error", err)
		pause(ctx, time.Second)
	}
	return answer.Tasks
}

// do works on a task, extends its lease meanwhile, and says how it ended.
func (w *Worker) do(ctx context.Context, t Task) {
	working, stop := context.WithCancel(ctx)
	defer stop()
	t.progress = &atomic.Pointer[any]{}
	var beating sync.WaitGroup
	beating.Go(func() {
		every := time.Until(t.LeaseExpiresAt) / 3
		for {
			if pause(working, every); working.Err() != nil {
				return
			}
			var beat struct {
				CancelRequested bool `json:"cancel_requested"`
			}
			request := map[string]any{"lease": t.Lease}
			if progress := t.progress.Load(); progress != nil {
				request["progress"] = *progress
			}
			err := w.call(working, "/v1/tasks/"+t.ID+"/heartbeat", request, &beat)
			if errors.Is(err, errStop) || beat.CancelRequested {
				stop()
			}
		}
	})
	result, err := w.Work(working, t)
	stopped := working.Err() != nil
	stop()
	beating.Wait()
	what, request := "complete", map[string]any{"lease": t.Lease, "result": result}
	switch {
	case err != nil && stopped:
		what, request = "release", map[string]any{"lease": t.Lease}
	case err != nil:
		what, request = "fail", map[string]any{"lease": t.Lease, "error": err.Error(), "retryable": !errors.Is(err, ErrPermanent)}
	}
	// What was done is reported even if the worker is told to stop.
	reporting, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := w.call(reporting, "/v1/tasks/"+t.ID+"/"+what, request, nil); err != nil {
		slog.Error(what, "task", t.ID, "error", err)
	}
}

// call sends a request until it is answered otherwise than with 429 or 503. Each of these requests may be sent again.
func (w *Worker) call(ctx context.Context, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	key := rand.Text()
	for pauseFor := 100 * time.Millisecond; ; pauseFor = min(2*pauseFor, 5*time.Second) {
		status, err := w.once(ctx, path, key, body, answer)
		if ctx.Err() != nil || status != 0 && status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
			return err
		}
		pause(ctx, pauseFor)
	}
}

// once sends a request and returns the status of the answer, 0 if there was none.
func (w *Worker) once(ctx context.Context, path, key string, body []byte, answer any) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.Wait+10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.Server+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", key)
	if w.Token != "" {
		r.Header.Set("Authorization", "Bearer "+w.Token)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return 0, err
	case res.StatusCode == http.StatusConflict:
		return res.StatusCode, fmt.Errorf("%w: %s", errStop, text)
	case res.StatusCode != http.StatusOK:
		return res.StatusCode, fmt.Errorf("%s: %s", res.Status, text)
	case answer == nil:
		return res.StatusCode, nil
	}
	return res.StatusCode, json.Unmarshal(text, answer)
}

// pause waits for a time, or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
