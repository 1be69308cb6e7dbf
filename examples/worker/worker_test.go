package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/examples/story"
	"github.com/pawl-fsm/pawl/examples/worker/loop"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func start(t *testing.T) (*pgxpool.Pool, *story.Story) {
	t.Helper()
	definition, err := os.ReadFile("workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pool := dbtest.New(t)
	return pool, story.Start(t, pool, definition)
}

// hire runs a worker until the test ends, or until it is fired.
func hire(t *testing.T, server, name string, work func(context.Context, loop.Task) (any, error)) (fire func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	w := &loop.Worker{Server: server, Topic: "pack", Name: name, Slots: 4, Wait: time.Second, Work: work}
	working.Go(func() { w.Run(ctx) })
	fire = func() {
		cancel()
		bounded.Wait(t, "the worker", working.Wait)
	}
	t.Cleanup(fire)
	return fire
}

func create(t *testing.T, s *story.Story, key string) (path string) {
	t.Helper()
	a := s.Do(http.MethodPost, "/v1/workflows/parcel/instances", `{"context": {"sku": "A-17"}}`, "Idempotency-Key", key)
	return a.Want(t, http.StatusCreated).Header.Get("Location")
}

// Two workers pack many parcels, each once, although every fourth attempt fails and a proxy loses answers.
func TestWorkersPackEachParcelOnce(t *testing.T) {
	t.Parallel()
	_, s := start(t)
	var requests atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(s.URL())
	proxy.ModifyResponse = func(*http.Response) error {
		if requests.Add(1)%5 == 0 {
			panic(http.ErrAbortHandler) // The request was carried out.
		}
		return nil
	}
	lossy := httptest.NewServer(proxy)
	t.Cleanup(lossy.Close)
	var attempts atomic.Int64
	var mu sync.Mutex
	packed := map[string]int{}
	work := func(_ context.Context, t loop.Task) (any, error) {
		if n := attempts.Add(1); n%4 == 0 && t.Attempt == 1 {
			return nil, errors.New("the printer is out of paper")
		}
		mu.Lock()
		defer mu.Unlock()
		packed[t.Key]++
		return map[string]string{"parcel": "P-" + t.Key}, nil
	}
	hire(t, lossy.URL, "one", work)
	hire(t, lossy.URL, "two", work)
	var paths []string
	for i := range 30 {
		paths = append(paths, create(t, s, fmt.Sprint("k", i)))
	}
	for _, path := range paths {
		s.Await(path, "PACKED")
	}
	mu.Lock()
	defer mu.Unlock()
	for key, n := range packed {
		if n != 1 {
			t.Errorf("%s was packed %d times", key, n)
		}
	}
	if len(packed) != len(paths) {
		t.Errorf("%d parcels were packed, want %d", len(packed), len(paths))
	}
}

// A worker that is told to stop gives its task back, and another one takes it at once.
func TestWorkerGivesBack(t *testing.T) {
	t.Parallel()
	pool, s := start(t)
	began := make(chan struct{})
	fire := hire(t, s.URL().String(), "one", func(ctx context.Context, _ loop.Task) (any, error) {
		close(began)
		<-ctx.Done() // bounded: by whoever fires the worker
		return nil, ctx.Err()
	})
	path := create(t, s, "k")
	bounded.Receive(t, "the beginning of the work", began)
	fire()
	hire(t, s.URL().String(), "two", pack)
	s.Await(path, "PACKED")
	if got := bounded.Value[string](t, pool, "select string_agg(a.worker || ' ' || a.result, ', ' order by a.number) from pawl.task_attempt a"); got != "one released, two completed" {
		t.Errorf("the attempts are %s", got)
	}
}

// Work of no use any more is stopped: the instance has left the state of the task.
func TestWorkerStops(t *testing.T) {
	t.Parallel()
	pool, s := start(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", `{"name": "short", "initial": "A", "timezone": "UTC", "states": {
		"A": {"invoke": {"pack": {"work": {"topic": "pack", "lease": "1s"}, "deadline": "1h",
			"done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "B"}]}}, "on": {"abort": [{"target": "B"}]}},
		"B": {"type": "final"}}}`)
	began, stopped := make(chan struct{}), make(chan struct{})
	hire(t, s.URL().String(), "one", func(ctx context.Context, _ loop.Task) (any, error) {
		close(began)
		<-ctx.Done() // bounded: by the end of the test, if by nothing before
		close(stopped)
		return nil, ctx.Err()
	})
	path := s.Do(http.MethodPost, "/v1/workflows/short/instances", `{}`, "Idempotency-Key", "k").Want(t, http.StatusCreated).Header.Get("Location")
	bounded.Receive(t, "the beginning of the work", began)
	s.Do(http.MethodPost, path+"/actions/abort", `{}`, "Idempotency-Key", "a").Want(t, http.StatusOK)
	bounded.Receive(t, "the end of the work", stopped)
}
