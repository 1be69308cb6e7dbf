package flightbooking_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	flightbooking "github.com/pawl-fsm/pawl/examples/flight-booking"
	"github.com/pawl-fsm/pawl/examples/story"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const create = "/v1/workflows/flight-booking/instances"

// TestStory is the README's story over HTTP.
func TestStory(t *testing.T) {
	t.Parallel()
	s := story.Start(t, dbtest.New(t), flightbooking.Definition)

	quote := s.Do(http.MethodPost, create, `{"context": {"flight_id": "LH454", "price": 420}}`, "Idempotency-Key", "quote-1").
		Want(t, http.StatusCreated).WantMember(t, `"QUOTED"`, "state").WantMember(t, `["cancel","reserve"]`, "actions")
	booking := quote.Header.Get("Location")

	// The customer cannot make up a price: the quoted one is in the context.
	s.Fire(booking, "reserve", "reserve-1", `{"payload": {"price": 1, "seat": "12A"}}`).
		Want(t, http.StatusConflict).WantMember(t, `"guard-rejected"`, "code")
	reserved := s.Fire(booking, "reserve", "reserve-2", `{"payload": {"price": 420, "seat": "12A"}}`, "If-Match", quote.Header.Get("ETag")).
		Want(t, http.StatusOK).WantMember(t, `"RESERVED"`, "state").WantMember(t, `420`, "context", "price")

	// Whoever acts on an old version is told so.
	s.Fire(booking, "cancel", "cancel-1", `{}`, "If-Match", quote.Header.Get("ETag")).Want(t, http.StatusPreconditionFailed)

	// A wrong amount is kept for the clerk, and the right one can follow.
	s.Fire(booking, "pay", "pay-1", `{"payload": {"amount": 400}}`).
		Want(t, http.StatusOK).WantMember(t, `"PAYMENT_MISMATCH"`, "state").WantMember(t, `400`, "context", "offered")
	paid := s.Fire(booking, "pay", "pay-2", `{"payload": {"amount": 420, "payment_ref": "ch_1"}}`).
		Want(t, http.StatusOK).WantMember(t, `"PAID"`, "state").WantMember(t, `"completed"`, "status")

	// The answer was lost, so the client asks again: the same answer, no second payment.
	retry := s.Fire(booking, "pay", "pay-2", `{"payload": {"payment_ref": "ch_1", "amount": 420}}`).Want(t, http.StatusOK)
	if retry.Text != paid.Text || retry.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the retry got %s, want %s", retry.Text, paid.Text)
	}
	again := s.Fire(booking, "reserve", "reserve-2", `{"payload": {"price": 420, "seat": "12A"}}`).Want(t, http.StatusOK)
	if again.Text != reserved.Text {
		t.Errorf("the replay of an earlier step got %s, want %s", again.Text, reserved.Text)
	}
	s.Fire(booking, "cancel", "cancel-2", `{}`).Want(t, http.StatusConflict).WantMember(t, `"completed"`, "instance_status")

	history := s.Do(http.MethodGet, booking+"/history", nil).Want(t, http.StatusOK)
	if n := len(history.Body["items"].([]any)); n != 4 {
		t.Errorf("the history has %d steps, want 4: %s", n, history.Text)
	}
	s.Do(http.MethodGet, booking+"?version=2", nil).Want(t, http.StatusOK).WantMember(t, `"RESERVED"`, "state")
}

// TestRace lets two clients reserve one quote: one gets it.
func TestRace(t *testing.T) {
	t.Parallel()
	s := story.Start(t, dbtest.New(t), flightbooking.Definition)
	booking := s.Do(http.MethodPost, create, `{"context": {"flight_id": "LH454", "price": 420}}`, "Idempotency-Key", "quote-1").
		Want(t, http.StatusCreated).Header.Get("Location")
	var clients sync.WaitGroup
	statuses := make([]int, 2)
	for i := range statuses {
		clients.Go(func() {
			statuses[i] = s.Fire(booking, "reserve", fmt.Sprintf("client-%d", i), `{"payload": {"price": 420, "seat": "12A"}}`, "If-Match", `"1"`).Status
		})
	}
	bounded.Wait(t, "the clients", clients.Wait)
	if statuses[0]+statuses[1] != http.StatusOK+http.StatusPreconditionFailed {
		t.Errorf("statuses %v, want one 200 and one 412", statuses)
	}
}

// TestAbandoned shows that a quote nobody takes, and a reservation nobody pays, end by
// themselves. What `pawl serve` does in the background is done here by hand, since the test
// moves the clock.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC))
	s := story.Start(t, pool, flightbooking.Definition)
	begin := func(key string) (booking string) {
		t.Helper()
		return s.Do(http.MethodPost, create, `{"context": {"flight_id": "LH454", "price": 420}}`, "Idempotency-Key", key).
			Want(t, http.StatusCreated).WantMember(t, `"2026-03-01T09:30:00.000000Z"`, "expires_at").Header.Get("Location")
	}
	quote, reservation := begin("quote-1"), begin("quote-2")
	timeOut := func(after time.Duration, want int) {
		t.Helper()
		dbtest.Advance(t, pool, after)
		var fired int
		if err := pool.QueryRow(t.Context(), "select fired from pawl.fire_timers(100)").Scan(&fired); err != nil || fired != want {
			t.Errorf("%d timers were fired (%v), want %d", fired, err, want)
		}
	}
	timeOut(9*time.Minute, 0)
	s.Fire(reservation, "reserve", "reserve-1", `{"payload": {"price": 420}}`).Want(t, http.StatusOK)
	timeOut(time.Minute, 1)
	s.Do(http.MethodGet, quote, "").Want(t, http.StatusOK).WantMember(t, `"EXPIRED"`, "state")
	timeOut(13*time.Minute, 0)
	timeOut(time.Minute, 1)
	s.Do(http.MethodGet, reservation, "").Want(t, http.StatusOK).WantMember(t, `"EXPIRED"`, "state")
	s.Fire(reservation, "pay", "pay-1", `{"payload": {"amount": 420}}`).Want(t, http.StatusConflict)
}

// TestSQL pays in the caller's own transaction: the payment's row and the step are one.
func TestSQL(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := story.Start(t, pool, flightbooking.Definition)
	ctx := t.Context()
	if _, err := pool.Exec(ctx, "create table payment (booking uuid primary key, amount integer not null)"); err != nil {
		t.Fatal(err)
	}
	var id string
	err := pool.QueryRow(ctx, `select id from pawl.create_one('flight-booking', '{"flight_id": "LH454", "price": 420}')`).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `select * from pawl.fire_one($1, 'reserve', '{"price": 420, "seat": "12A"}')`, id); err != nil {
		t.Fatal(err)
	}
	pay := func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into payment values ($1, 420)", id); err != nil {
			return err
		}
		var state string
		err := tx.QueryRow(ctx, `select state from pawl.fire_one($1, 'pay', '{"amount": 420, "payment_ref": "ch_1"}')`, id).Scan(&state)
		if err == nil && state != "PAID" {
			err = fmt.Errorf("the state is %s, want PAID", state)
		}
		return err
	}
	payments := func() (n int) {
		t.Helper()
		if err := pool.QueryRow(ctx, "select count(*) from payment").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	// Rolled back, there is no trace of either.
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := pay(ctx, tx); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	s.Do(http.MethodGet, "/v1/instances/"+id, nil).Want(t, http.StatusOK).WantMember(t, `"RESERVED"`, "state").WantMember(t, `2`, "version")
	if n := payments(); n != 0 {
		t.Errorf("%d payments after the rollback, want none", n)
	}

	// Committed, both are there, and HTTP shows it.
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return pay(ctx, tx) }); err != nil {
		t.Fatal(err)
	}
	s.Do(http.MethodGet, "/v1/instances/"+id, nil).Want(t, http.StatusOK).WantMember(t, `"PAID"`, "state").WantMember(t, `3`, "version")
	if n := payments(); n != 1 {
		t.Errorf("%d payments after the commit, want 1", n)
	}
}
