package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestFireTx(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter, strings.Replace(stepwise, `"require_if_match": true,`, "", 1))
	ctx := t.Context()
	bounded.Exec(t, pool, "create table payment (id integer)")
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
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
	if !errors.Is(err, undo) || bounded.Value[int](t, pool, "select count(*) from payment") != 0 || fsmtest.Get(t, s, i.ID).Version != 1 {
		t.Errorf("rolled back: %v, the instance is %+v", err, fsmtest.Get(t, s, i.ID))
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
			fsmtest.Refused(t, err, kind)
		}
		if _, err := s.FireTx(ctx, tx, add); err != nil {
			return err
		}
		return pay(tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fsmtest.Get(t, s, i.ID); got.Version != 3 || bounded.Value[int](t, pool, "select count(*) from payment") != 1 {
		t.Errorf("committed: %+v", got)
	}
	fsmtest.SameJSON(t, fsmtest.Get(t, s, i.ID).Context, `{"x":2}`)
	if key := fsmtest.History(t, s, i.ID)[1].Key; key != nil {
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
	w := fsmtest.Create(t, s, "stepwise", `{"x":1}`)
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := s.FireTx(ctx, tx, fsm.FireCommand{ID: w.ID, Event: "checked", Payload: json.RawMessage(`{"n":1.5}`)})
		fsmtest.Refused(t, err, fsm.InvalidPayload)
		_, err = s.FireTx(ctx, tx, fsm.FireCommand{ID: w.ID, Event: "checked", Payload: json.RawMessage(`{"n":1}`)})
		return err
	})
	if err != nil || fsmtest.Get(t, s, w.ID).State != "B" {
		t.Error(err)
	}
}

// What breaks the caller's transaction is named for what it is.
func TestFireTxErrors(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	ctx := t.Context()
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
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
		if e := fsmtest.Refusal(t, err, fsm.GuardError); e.Refusal.State != "COUNTING" {
			t.Errorf("got %+v", e.Refusal)
		}
		// The transaction is broken now, and that is no fault of a guard.
		_, err = s.FireTx(ctx, tx, add)
		fsmtest.Refused(t, err, fsm.Internal)
	})
	in(pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) {
		_, err := s.FireTx(ctx, tx, add)
		fsmtest.Refused(t, err, fsm.Unavailable)
	})
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err := s.FireTx(gone, tx, add)
		fsmtest.Refused(t, err, fsm.Unavailable)
	})
	// A stricter transaction that has seen the instance before it moved may try again.
	in(pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "select from pawl.instance"); err != nil {
			t.Fatal(err)
		}
		fsmtest.Fire(t, s, i.ID, "add", `{"n":1}`)
		_, err := s.FireTx(ctx, tx, add)
		fsmtest.Refused(t, err, fsm.Unavailable)
	})
	release := fsmtest.Hold(t, pool, i.ID)
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "set local lock_timeout = '10ms'"); err != nil {
			t.Fatal(err)
		}
		_, err := s.FireTx(ctx, tx, add)
		fsmtest.Refused(t, err, fsm.Unavailable)
	})
	in(pgx.TxOptions{}, func(tx pgx.Tx) {
		if _, err := tx.Exec(ctx, "set local statement_timeout = '50ms'"); err != nil {
			t.Fatal(err)
		}
		_, err := s.FireTx(ctx, tx, add)
		fsmtest.Refused(t, err, fsm.Unavailable)
	})
	release()
	if v := fsmtest.Get(t, s, i.ID).Version; v != 2 {
		t.Errorf("version %d", v)
	}
}

func TestPreviewAgreesWithFire(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking, stepwise)
	// Whatever would write fails.
	readOnly := fsmtest.On(t, fsmtest.ReadOnly(t, pool), fsm.Config{})
	ctx := t.Context()
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	booking := fsmtest.Create(t, s, "flight-booking", `{"flight_id":"x","price":5}`)
	w := fsmtest.Create(t, s, "stepwise", `{"x":1}`)

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
		before := fsmtest.Counts(t, pool)
		preview, previewErr := readOnly.Preview(ctx, c)
		if after := fsmtest.Counts(t, pool); before != after {
			t.Errorf("%d: a preview wrote: %s, then %s", n, before, after)
		}
		fired, err := s.Fire(ctx, c)
		if diff := cmp.Diff(fired, preview, cmpopts.IgnoreFields(fsm.Result{}, "Before")); diff != "" {
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
