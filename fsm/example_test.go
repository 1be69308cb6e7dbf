package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
)

// parcel is a workflow with one way to its end.
const parcel = `{
	"name": "parcel", "initial": "PACKED",
	"states": {
		"PACKED": {"on": {"send": {"target": "SENT", "guard": "$.payload.weight <= 20", "assign": {"weight": "$.payload.weight"}}}},
		"SENT": {"on": {"deliver": "DELIVERED"}},
		"DELIVERED": {"type": "final"}
	}
}`

// A program that embeds the service makes it on a pool of its own, and registers its workflows.
func ExampleNew() {
	ctx := context.Background()
	pool, remove := fsmtest.Database()
	defer remove()
	service := fsm.New(pool, fsm.Config{})
	defer service.Close()

	registered, err := lifecycle.New(service).Register(ctx, "", []byte(parcel), "example", false)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(registered.Name, registered.Version, registered.Created)
	// Output: parcel 1 true
}

// parcels returns a service that knows parcel.
func parcels(ctx context.Context) (service *fsm.Service, remove func()) {
	pool, drop := fsmtest.Database()
	service = fsm.New(pool, fsm.Config{})
	if _, err := lifecycle.New(service).Register(ctx, "", []byte(parcel), "example", false); err != nil {
		log.Panic(err)
	}
	return service, func() {
		service.Close()
		drop()
	}
}

// A repeated command with the same key has no second effect.
func ExampleService_Create() {
	ctx := context.Background()
	service, remove := parcels(ctx)
	defer remove()

	order := fsm.CreateCommand{Workflow: "parcel", Key: "order-17", BusinessKey: "17"}
	first, err := service.Create(ctx, order)
	if err != nil {
		log.Panic(err)
	}
	again, err := service.Create(ctx, order)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(first.Instance.State, first.Instance.Version, first.Instance.AcceptedEvents)
	fmt.Println(again.Instance.ID == first.Instance.ID, again.Replayed)
	// Output:
	// PACKED 1 [send]
	// true true
}

// A refusal says what the instance accepts.
func ExampleService_Fire() {
	ctx := context.Background()
	service, remove := parcels(ctx)
	defer remove()
	created, err := service.Create(ctx, fsm.CreateCommand{Workflow: "parcel"})
	if err != nil {
		log.Panic(err)
	}

	_, err = service.Fire(ctx, fsm.FireCommand{ID: created.Instance.ID, Event: "send", Payload: json.RawMessage(`{"weight": 31}`)})
	fmt.Println(errors.Is(err, fsm.GuardRejected))
	_, err = service.Fire(ctx, fsm.FireCommand{ID: created.Instance.ID, Event: "deliver"})
	fmt.Println(errors.Is(err, fsm.TransitionNotAllowed), fsm.AsError(err).Refusal.AcceptedEvents)
	sent, err := service.Fire(ctx, fsm.FireCommand{
		ID: created.Instance.ID, Event: "send", Payload: json.RawMessage(`{"weight": 3}`), Expect: fsm.ExpectVersion(1),
	})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(sent.Instance.State, sent.Instance.Version, string(sent.Instance.Context))
	// Output:
	// true
	// true [send]
	// SENT 2 {"weight": 3}
}

// The step and the caller's own rows are committed together, or not at all.
func ExampleService_FireTx() {
	ctx := context.Background()
	pool, remove := fsmtest.Database()
	defer remove()
	service := fsm.New(pool, fsm.Config{})
	defer service.Close()
	if _, err := lifecycle.New(service).Register(ctx, "", []byte(parcel), "example", false); err != nil {
		log.Panic(err)
	}
	if _, err := pool.Exec(ctx, "create table label (parcel uuid)"); err != nil {
		log.Panic(err)
	}
	created, err := service.Create(ctx, fsm.CreateCommand{Workflow: "parcel"})
	if err != nil {
		log.Panic(err)
	}

	send := func(id uuid.UUID, payload string) error {
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }() // Without effect after a commit.
		if _, err := tx.Exec(ctx, "insert into label values ($1)", id); err != nil {
			return err
		}
		if _, err := service.FireTx(ctx, tx, fsm.FireCommand{ID: id, Event: "send", Payload: json.RawMessage(payload)}); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	labels := func() (n int) {
		if err := pool.QueryRow(ctx, "select count(*) from label").Scan(&n); err != nil {
			log.Panic(err)
		}
		return n
	}
	fmt.Println(errors.Is(send(created.Instance.ID, `{"weight": 31}`), fsm.GuardRejected), labels())
	fmt.Println(send(created.Instance.ID, `{"weight": 3}`), labels())
	// Output:
	// true 0
	// <nil> 1
}
