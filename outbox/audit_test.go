package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

const (
	noteSQL = "select pawl.audit_note($1, jsonb_build_object('actor', $2::text), 'createInstance', 'forbidden', 'no', 3)"
	// auditIDs are the ids of the messages of all rows, in the order of their positions.
	auditIDs = "select concat('audit:', l.seq, case when l.epoch > 1 then '@' || l.epoch end) from pawl.audit_log l order by l.position"
)

// auditConfig is the configuration of a relay of the audit that begins with the first row.
func auditConfig() outbox.RelayConfig {
	config := outboxtest.Quick
	config.Audit = true
	return config
}

// Transactions write rows and commit in any order; relays are stopped and sequencers are killed at random, and the sink
// fails. Each row comes, and none before one with a smaller position. A relay of steps has none of them.
func TestRelayLosesNoRowOfTheAudit(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	sink, steps := outboxtest.NewRecorder(), outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "steps", steps, outboxtest.Quick)
	var positions []int64
	flaky := 0
	sink.Before = func(_ context.Context, messages []outbox.Message) error {
		if flaky++; flaky%5 == 0 {
			return errors.New("the broker is away")
		}
		for _, m := range messages {
			positions = append(positions, m.Position)
		}
		return nil
	}
	config := auditConfig()
	config.Page = 7
	ctx, cancel := context.WithCancel(t.Context())
	var relays, writers sync.WaitGroup
	relays.Go(func() {
		for ctx.Err() == nil {
			short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
			if err := outbox.NewRelay(pool, "audit", sink, config).Run(short); err != nil {
				t.Error(err)
			}
			stop()
		}
	})
	for w := range 6 {
		writers.Go(func() {
			for n := range 40 {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					for range 1 + n%3 {
						if _, err := tx.Exec(t.Context(), noteSQL, "default", fmt.Sprint(w)); err != nil {
							return err
						}
					}
					if n%4 == 3 {
						return errors.New("rolled back")
					}
					return nil
				})
				if err != nil && err.Error() != "rolled back" {
					t.Error(err)
				}
				if w == 0 && n%10 == 9 {
					bounded.Exec(t, pool, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'pawl sequencer'")
				}
			}
		})
	}
	bounded.Wait(t, "the writers", writers.Wait)
	outboxtest.CaughtUp(t, pool, "audit")
	cancel()
	bounded.Wait(t, "the relays", relays.Wait)
	want := bounded.Column[string](t, pool, auditIDs)
	if rows := bounded.Value[int](t, pool, "select count(*) from pawl.audit"); rows != len(want) || rows < 6*30 {
		t.Errorf("%d of %d rows have positions", len(want), rows)
	}
	var first []string
	for _, id := range sink.List() {
		if !slices.Contains(first, id) {
			first = append(first, id)
		}
	}
	if !slices.Equal(first, want) {
		t.Errorf("%d rows came, want %d in the order of their positions", len(first), len(want))
	}
	last := int64(0)
	for _, position := range positions {
		if position > last+1 { // A repeat may begin earlier, and goes on from there.
			t.Errorf("the position %d comes after %d", position, last)
		}
		last = max(last, position)
	}
	outboxtest.CaughtUp(t, pool, "steps")
	if list := steps.List(); len(list) != 0 {
		t.Errorf("the relay of steps has published %v", list)
	}
}

// A consumer of the audit begins with the next row, and its rows do not go to a relay of steps by the same name.
func TestRelayOfTheAuditBeginsWithTheNextRow(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	bounded.UntilSQL(t, pool, "select audit_position = 1 from pawl.log_head") // The workflow's.
	sink := outboxtest.NewRecorder()
	config := auditConfig()
	config.FromStart = false
	outboxtest.Relay(t, pool, "audit", sink, config)
	bounded.UntilSQL(t, pool, "select exists (select from pawl.consumer where leader <> '')")
	bounded.Exec(t, pool, noteSQL, "default", "next")
	if got := sink.Want(t, 1); !slices.Equal(got, bounded.Column[string](t, pool, auditIDs)[1:]) {
		t.Errorf("it published %v", got)
	}
	var lines bounded.Lines
	other := outboxtest.Quick
	other.Logger = lines.Logger()
	outboxtest.Relay(t, pool, "audit", outboxtest.NewRecorder(), other)
	lines.Find(t, "the consumer audit reads the audit: choose another name")
}

// Whoever reads CloudEvents with an SDK accepts a row of the audit, and finds in it what it says.
func TestRowsOfTheAuditAreCloudEvents(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	bounded.Exec(t, pool, noteSQL, "*", "Žofie \u2028")
	events := make(chan outbox.Message, 100)
	sink := publisher(func(_ context.Context, messages []outbox.Message) error {
		for _, m := range messages {
			events <- m
		}
		return nil
	})
	outboxtest.Relay(t, pool, "audit", sink, auditConfig())
	for _, want := range []struct{ id, subject, source, data string }{
		{"audit:1", "counter 1", "/tenants/%2A/audit", `"action":"workflow.register"`},
		{"audit:2", "", "/tenants/%2A/audit", `"actor":"Žofie \u2028","unauthenticated":false,"token_id":null,"address":null,"request_id":null,` +
			`"action":"createInstance","target":null,"outcome":"forbidden","reason":"no","count":3,"before":null,"after":null`},
	} {
		m := bounded.Receive(t, "a row", events)
		body, err := m.CloudEvent()
		if err != nil {
			t.Fatal(err)
		}
		var ce cloudevents.Event
		if err := json.Unmarshal(body, &ce); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if err := ce.Validate(); err != nil {
			t.Error(err)
		}
		if ce.ID() != want.id || ce.Subject() != want.subject || ce.Source() != want.source || ce.Type() != "pawl.audit" ||
			ce.Extensions()["tenantid"] != "*" || ce.Extensions()["sequence"] != fmt.Sprint(m.Position) || ce.Time().IsZero() {
			t.Errorf("the CloudEvent is %s", body)
		}
		if !strings.Contains(string(ce.Data()), want.data) {
			t.Errorf("its data is %s, want %s", ce.Data(), want.data)
		}
	}
}

// The server crashes again and again while rows are written, asynchronously too, and relayed. Each row that is there in
// the end has come; what had come is still there, as it was.
func TestAuditThroughCrashes(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, nil)
	pool := on(t, server)
	sequencer(t, pool, outbox.SequencerConfig{Poll: 5 * time.Millisecond, Pause: time.Millisecond, Lease: 500 * time.Millisecond})
	var mu sync.Mutex
	came := map[string]string{}
	sink := publisher(func(_ context.Context, messages []outbox.Message) error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range messages {
			if actor, ok := came[m.ID()]; ok && actor != m.Audit.Actor {
				t.Errorf("%s was of %s, and is of %s", m.ID(), actor, m.Audit.Actor)
			}
			came[m.ID()] = m.Audit.Actor
		}
		return nil
	})
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(came)
	}
	config := auditConfig()
	config.Lease = 500 * time.Millisecond
	outboxtest.Relay(t, pool, "audit", sink, config)
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				// It fails while the server is away.
				_ = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					if w > 0 {
						if _, err := tx.Exec(ctx, "set local synchronous_commit = off"); err != nil {
							return err
						}
					}
					_, err := tx.Exec(ctx, noteSQL, "default", fmt.Sprint(w, " ", n))
					return err
				})
			}
		})
	}
	for range 5 {
		before := count()
		bounded.True(t, "rows to come", func() bool { return count() > before+20 })
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		bounded.Receive(t, "the end of the server", server.Done())
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := count()
	bounded.True(t, "rows to come", func() bool { return count() > before })
	stop()
	bounded.Wait(t, "the writers", writers.Wait)
	bounded.UntilSQL(t, pool, "select (select count(*) from pawl.audit) = (select count(*) from pawl.audit_log)")
	outboxtest.CaughtUp(t, pool, "audit")
	mu.Lock()
	defer mu.Unlock()
	there := map[string]string{}
	for _, row := range bounded.Column[string](t, pool, "select concat('audit:', seq, '=', actor) from pawl.audit") {
		id, actor, _ := strings.Cut(row, "=")
		there[id] = actor
	}
	if !maps.Equal(came, there) {
		t.Errorf("%d rows came, and %d are there", len(came), len(there))
	}
}
