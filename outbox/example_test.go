package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox"
)

// A journal is a sink of an embedding program: it appends a line for each message.
type journal struct{ file io.Writer }

// Publish returns nil only when every line is written. After an error the relay calls it with the
// same messages again, so a reader of the journal drops repeats by their ID.
func (j journal) Publish(ctx context.Context, messages []outbox.Message) error {
	for _, m := range messages {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(j.file, m.ID(), m.Type(), m.Instance.State); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	return nil
}

func (journal) Close() error { return nil }

// A program publishes to a receiver of its own by implementing Sink. In a program a relay calls it:
//
//	relay := outbox.NewRelay(pool, "journal", journal{file}, outbox.RelayConfig{FromStart: true})
//	err := relay.Run(ctx)
func ExampleSink() {
	id := uuid.MustParse("01920000-0000-7000-8000-000000000001")
	var sink outbox.Sink = journal{os.Stdout}
	err := sink.Publish(context.Background(), []outbox.Message{{
		Tenant:   "default",
		Step:     fsm.Step{Version: 1, Kind: "created", To: "QUOTED"},
		Instance: fsm.Instance{ID: id, Workflow: "flight-booking", State: "QUOTED", Version: 1},
	}, {
		Tenant:   "default",
		Step:     fsm.Step{Version: 2, Kind: "transition", To: "RESERVED"},
		Instance: fsm.Instance{ID: id, Workflow: "flight-booking", State: "RESERVED", Version: 2},
	}})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// 01920000-0000-7000-8000-000000000001:1 pawl.instance.created QUOTED
	// 01920000-0000-7000-8000-000000000001:2 pawl.instance.transitioned RESERVED
}

// A CloudEvent has the same id and the same body each time that it is published.
func ExampleMessage_CloudEvent() {
	at := time.Date(2026, 3, 1, 8, 30, 0, 0, time.UTC)
	body, err := outbox.Message{
		Tenant: "default",
		Step:   fsm.Step{Version: 1, WorkflowVersion: 1, Kind: "created", To: "QUOTED", Status: fsm.Active, At: at},
		Instance: fsm.Instance{
			ID: uuid.MustParse("01920000-0000-7000-8000-000000000001"), Workflow: "flight-booking", WorkflowVersion: 1,
			State: "QUOTED", Status: fsm.Active, Version: 1, CreatedAt: at, StateChangedAt: at,
		},
	}.CloudEvent()
	if err != nil {
		fmt.Println(err)
	}
	var event struct {
		ID, Source, Type, Subject, Time, Sequence string
	}
	if err := json.Unmarshal(body, &event); err != nil {
		fmt.Println(err)
	}
	fmt.Println(event.ID)
	fmt.Println(event.Source, event.Type)
	fmt.Println(event.Subject, event.Sequence, event.Time)
	// Output:
	// 01920000-0000-7000-8000-000000000001:1
	// /tenants/default/workflows/flight-booking pawl.instance.created
	// 01920000-0000-7000-8000-000000000001 1 2026-03-01T08:30:00.000000Z
}
