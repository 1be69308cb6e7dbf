package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// toldIDs are the ids of the messages of the log, in the order of their positions.
const toldIDs = "select coalesce('finding:' || l.finding_id, l.instance_id || ':' || l.version) from pawl.log l order by l.position"

func findingsConfig() outbox.RelayConfig {
	config := outboxtest.Quick
	config.Findings = true
	return config
}

// Transactions make steps and open findings, and commit in any order; relays are stopped and sequencers are killed at
// random, and the sink fails. Each message comes, in the order of the positions. A relay that does not ask for findings
// gets the steps alone.
func TestRelayLosesNoFinding(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	sink, steps := outboxtest.NewRecorder(), outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "steps", steps, outboxtest.Quick)
	flaky := 0
	sink.Before = func(context.Context, []outbox.Message) error {
		if flaky++; flaky%5 == 0 {
			return errors.New("the broker is away")
		}
		return nil
	}
	config := findingsConfig()
	config.Page = 7
	ctx, cancel := context.WithCancel(t.Context())
	var relays, writers sync.WaitGroup
	relays.Go(func() {
		for ctx.Err() == nil {
			short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
			if err := outbox.NewRelay(pool, "both", sink, config).Run(short); err != nil {
				t.Error(err)
			}
			stop()
		}
	})
	rolledBack := errors.New("rolled back")
	for w := range 4 {
		random := rand.New(rand.NewPCG(5, uint64(w)))
		writers.Go(func() {
			for n := range 40 {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					var id uuid.UUID
					if err := tx.QueryRow(t.Context(), "select (pawl.create_one('counter')).id").Scan(&id); err != nil {
						return err
					}
					for _, kind := range []string{"slow", "orphaned"}[:random.IntN(3)] {
						if _, err := tx.Exec(t.Context(), outboxtest.FindSQL, id, kind); err != nil {
							return err
						}
					}
					if n%4 == 3 {
						return rolledBack
					}
					return nil
				})
				if err != nil && !errors.Is(err, rolledBack) {
					t.Error(err)
				}
				if w == 0 && n%10 == 9 {
					bounded.Exec(t, pool, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'pawl sequencer'")
				}
			}
		})
	}
	bounded.Wait(t, "the writers", writers.Wait)
	outboxtest.Numbered(t, pool)
	outboxtest.CaughtUp(t, pool, "both")
	cancel()
	bounded.Wait(t, "the relays", relays.Wait)
	want := bounded.Column[string](t, pool, toldIDs)
	if findings := bounded.Value[int](t, pool, "select count(*) from pawl.finding"); findings < 40 || len(want) != 4*30+findings {
		t.Fatalf("%d findings and %d positions", findings, len(want))
	}
	var first []string
	for _, id := range sink.List() {
		if !slices.Contains(first, id) {
			first = append(first, id)
		}
	}
	if !slices.Equal(first, want) {
		t.Errorf("%d messages came, want %d in the order of their positions", len(first), len(want))
	}
	outboxtest.CaughtUp(t, pool, "steps")
	if got, want := steps.List(), bounded.Column[string](t, pool, "select instance_id || ':' || version from pawl.log where finding_id is null order by position"); !slices.Equal(got, want) {
		t.Errorf("the relay of steps has published %d messages, want %d", len(got), len(want))
	}
}

// A finding comes when its transaction has committed, and not before. It waits for no other, and none waits for it.
func TestFindingsOfOpenTransactions(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	ids := []uuid.UUID{outboxtest.Create(t, pool), outboxtest.Create(t, pool), outboxtest.Create(t, pool)}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	late := outboxtest.Find(t, tx, ids[0])
	early := outboxtest.Find(t, pool, ids[1])
	outboxtest.Add(t, pool, ids[2])
	sink := outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "both", sink, findingsConfig())
	first := sink.Want(t, 5)
	if slices.Contains(first, late) || !slices.Contains(first, early) {
		t.Errorf("before the commit: %v", first)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sink.Want(t, 6); got[5] != late {
		t.Errorf("after the commit: %v", got)
	}
}

// A sink that asks for findings later gets those behind its position, and a new one those that are opened from now on.
func TestSinkAsksLater(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	id := outboxtest.Create(t, pool)
	before := outboxtest.Find(t, pool, id)
	sink := outboxtest.NewRecorder()
	stop := outboxtest.Relay(t, pool, "both", sink, outboxtest.Quick)
	sink.Want(t, 1)
	outboxtest.Numbered(t, pool)
	outboxtest.CaughtUp(t, pool, "both")
	stop()
	outboxtest.Add(t, pool, id)
	after := outboxtest.Find(t, pool, id)
	outboxtest.Numbered(t, pool)
	outboxtest.Relay(t, pool, "both", sink, findingsConfig())
	if got := sink.Want(t, 3); !slices.Equal(got[1:], []string{outboxtest.IDs(id, 2)[0], after}) {
		t.Errorf("it published %v, and %s was before", got, before)
	}
	fresh, config := outboxtest.NewRecorder(), findingsConfig()
	config.FromStart = false
	outboxtest.Relay(t, pool, "fresh", fresh, config)
	bounded.UntilSQL(t, pool, "select exists (select from pawl.consumer where name = 'fresh' and leader <> '')")
	outboxtest.Add(t, pool, id)
	next := outboxtest.Find(t, pool, id)
	if got := fresh.Want(t, 2); !slices.Equal(got, []string{outboxtest.IDs(id, 3)[0], next}) {
		t.Errorf("the new one published %v", got)
	}
}

// Whoever reads CloudEvents with an SDK accepts a finding, and finds in it what GET /v1/findings shows. It may be about no
// instance. Its id is the same in every epoch.
func TestFindingsAreCloudEvents(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 9, 30, 0, 123456000, time.UTC)
	id, instance, state, version := uuid.New(), uuid.New(), "CHARGING", int64(7)
	for _, tenant := range outboxtest.OddTenants {
		full := finding.Finding{
			ID: id, Kind: "slow", InstanceID: &instance, Workflow: "flight-booking", State: &state, Version: &version, Since: &at, OpenedAt: at,
			ClosedAt: &at, Detail: json.RawMessage(`{"threshold": "dwell"}`),
		}
		bare := full
		bare.InstanceID, bare.State, bare.Version, bare.Since, bare.ClosedAt = nil, nil, nil, nil, nil
		for _, c := range []struct {
			finding       finding.Finding
			subject, data string
			key           string
		}{
			{full, instance.String(), `{"id":"` + id.String() + `","kind":"slow","instance_id":"` + instance.String() +
				`","workflow":"flight-booking","state":"CHARGING","version":7,"since":"2026-03-01T09:30:00.123456Z","opened_at":"2026-03-01T09:30:00.123456Z",` +
				`"closed_at":"2026-03-01T09:30:00.123456Z","detail":{"threshold":"dwell"}}`, instance.String()},
			{
				bare, "", `{"id":"` + id.String() + `","kind":"slow","workflow":"flight-booking","opened_at":"2026-03-01T09:30:00.123456Z","closed_at":null,"detail":{"threshold":"dwell"}}`,
				"finding:" + id.String(),
			},
		} {
			m := outbox.Message{Tenant: tenant, Epoch: 2, Position: 9, Finding: &c.finding}
			body, err := m.CloudEvent()
			if err != nil {
				t.Fatal(err)
			}
			var ce cloudevents.Event
			if err := json.Unmarshal(body, &ce); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if err := ce.Validate(); err != nil {
				t.Errorf("tenant %q: %v", tenant, err)
			}
			if ce.ID() != "finding:"+id.String() || ce.Type() != "pawl.finding.opened" || ce.Subject() != c.subject || !ce.Time().Equal(at) ||
				ce.Source() != m.Source() || ce.Extensions()["tenantid"] != tenant || ce.Extensions()["sequence"] != nil || ce.Extensions()["epoch"] == nil {
				t.Errorf("the CloudEvent is %s", body)
			}
			if string(ce.Data()) != c.data {
				t.Errorf("its data is %s, want %s", ce.Data(), c.data)
			}
			if m.Key() != c.key {
				t.Errorf("its key is %s", m.Key())
			}
		}
	}
}
