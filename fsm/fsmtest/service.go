package fsmtest

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

type workflows = lifecycle.Service

// Service is what a test calls: instances and workflows on one database.
type Service struct {
	*fsm.Service
	*workflows
}

// New returns a Service on a database of its own, with the definitions registered, and a pool of the
// database's owner.
func New(t testing.TB, config fsm.Config, definitions ...string) (*Service, *pgxpool.Pool) {
	t.Helper()
	pool := dbtest.New(t)
	return On(t, pool, config, definitions...), pool
}

// On returns a Service on a pool, with the definitions registered.
func On(t testing.TB, pool *pgxpool.Pool, config fsm.Config, definitions ...string) *Service {
	t.Helper()
	service := fsm.New(pool, config)
	t.Cleanup(service.Close)
	s := &Service{service, lifecycle.New(service)}
	for _, d := range definitions {
		Register(t, s, d)
	}
	return s
}

// Open returns a pool with the limits that the service has in production.
func Open(t testing.TB, dsn string, config db.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := db.Open(t.Context(), dsn, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Register registers a definition.
func Register(t testing.TB, s *Service, definition string) lifecycle.Registration {
	t.Helper()
	type result struct {
		lifecycle.Registration
		err error
	}
	// A machine that runs all tests at once may be too slow for a first call. Then the service says to try again.
	r := bounded.Until(t, "the registration", func() (r result) {
		r.Registration, r.err = s.Register(t.Context(), "", []byte(definition), "tester", false)
		return r
	}, func(r result) bool { return !errors.Is(r.err, fsm.Unavailable) })
	if r.err != nil {
		t.Fatalf("register: %v", r.err)
	}
	return r.Registration
}

// Create creates an instance with a context.
func Create(t testing.TB, s *Service, workflow, document string) fsm.Instance {
	t.Helper()
	r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: workflow, Context: json.RawMessage(document)})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return r.Instance
}

// Fire fires an event with a payload.
func Fire(t testing.TB, s *Service, id uuid.UUID, event, payload string) fsm.Instance {
	t.Helper()
	r, err := s.Fire(t.Context(), fsm.FireCommand{ID: id, Event: event, Payload: json.RawMessage(payload)})
	if err != nil {
		t.Fatalf("fire %s: %v", event, err)
	}
	return r.Instance
}

// Get returns an instance as it is.
func Get(t testing.TB, s *Service, id uuid.UUID) fsm.Instance {
	t.Helper()
	i, err := s.Get(t.Context(), fsm.DefaultTenant, id)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	return i
}

// History returns all steps of an instance.
func History(t testing.TB, s *Service, id uuid.UUID) []fsm.Step {
	t.Helper()
	var steps []fsm.Step
	// bounded: each page begins where the last one ended
	for page := (fsm.Page{Limit: fsm.MaxLimit}); ; {
		l, err := s.History(t.Context(), fsm.DefaultTenant, id, page)
		if err != nil {
			t.Fatalf("history: %v", err)
		}
		steps = append(steps, l.Items...)
		if page.Cursor = l.Next; page.Cursor == "" {
			return steps
		}
	}
}

// Refusal returns err as an error of the kind, which it must be.
func Refusal(t testing.TB, err error, kind fsm.Kind) *fsm.Error {
	t.Helper()
	e, ok := errors.AsType[*fsm.Error](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("got %v, want: %v", err, kind)
	}
	return e
}

// Refused is Refusal where only the kind matters.
func Refused(t testing.TB, err error, kind fsm.Kind) {
	t.Helper()
	_ = Refusal(t, err, kind)
}
