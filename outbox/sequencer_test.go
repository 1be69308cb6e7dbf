package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// sequencer runs a sequencer beside that of NewPool until the test ends, or stop is called.
func sequencer(t *testing.T, pool *pgxpool.Pool, config outbox.SequencerConfig) (stop func()) {
	t.Helper()
	return bounded.Run(t, "the sequencer", outbox.NewSequencer(pool, config).Run)
}

// private returns a pool on a server of the test's own, with the workflow counter.
func private(t *testing.T) *pgxpool.Pool { return on(t, dbtest.Private(t, nil)) }

// on prepares a server, and returns a pool on it.
func on(t *testing.T, server *localpg.Server) *pgxpool.Pool {
	t.Helper()
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	pool, err := db.Open(t.Context(), server.DSN(), db.Config{StatementTimeout: bounded.Limit, LockTimeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", outboxtest.Counter)
	return pool
}

// whole is SQL that holds if each step has one position, and those of an instance rise with its versions.
const whole = `
	select (select count(*) from pawl.log) = (select count(*) from pawl.history)
		and not exists (
			select from (select version, lag(version, 1, 0::bigint) over (partition by instance_id order by position) as before from pawl.log) l
			where version <> before + 1)`

// Sequencers are killed at random while steps are made. Another one goes on, and numbers each step once.
func TestSequencersTakeOver(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	sequencer(t, pool, outbox.SequencerConfig{Poll: 5 * time.Millisecond, Lease: 300 * time.Millisecond})
	id := outboxtest.Create(t, pool)
	const kills = 15
	for kill := range kills {
		for range 5 {
			outboxtest.Add(t, pool, id)
		}
		bounded.UntilSQL(t, pool, "select count(*) > 1 + 5 * $1::integer from pawl.log", kill)
		bounded.Exec(t, pool, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'pawl sequencer'")
	}
	bounded.UntilSQL(t, pool, whole)
	if term := bounded.Value[int](t, pool, "select term from pawl.log_head"); term < kills {
		t.Errorf("there were %d leaders", term)
	}
}

// A sequencer says until when it leads, which is never longer than its lease, and says so when it leads no more.
func TestSequencerSaysThatItLeads(t *testing.T) {
	t.Parallel()
	pool := private(t)
	const lease = time.Hour
	told := make(chan time.Time, 100)
	stop := sequencer(t, pool, outbox.SequencerConfig{Lease: lease, Leading: func(until time.Time) { told <- until }})
	if until := bounded.Receive(t, "until when it leads", told); !until.After(time.Now()) || until.After(time.Now().Add(lease)) {
		t.Errorf("it leads until %s", until)
	}
	// The database holds the process for the leader for at least as long.
	bounded.UntilSQL(t, pool, "select lease_until >= $1::timestamptz - interval '1 second' from pawl.log_head", time.Now().Add(lease-time.Minute))
	stop()
	close(told)
	last := time.Now()
	for until := range told { // bounded: the channel is closed
		last = until
	}
	if !last.IsZero() {
		t.Errorf("a former leader leads until %s", last)
	}
}

// An idle sequencer writes nothing while its lease is fresh.
func TestIdleSequencerWritesNothing(t *testing.T) {
	t.Parallel()
	pool := private(t) // Transactions of other databases would be in the snapshots.
	sequencer(t, pool, outbox.SequencerConfig{Poll: time.Millisecond, Pause: time.Millisecond, Lease: time.Hour})
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select position = 1 from pawl.log_head")
	const row = "select xmin::text || ctid::text from pawl.log_head"
	before := bounded.Value[string](t, pool, row)
	scans := func() int {
		bounded.Exec(t, pool, "select pg_stat_force_next_flush()")
		return bounded.Value[int](t, pool, "select seq_scan from pg_stat_user_tables where relid = 'pawl.log_head'::regclass")
	}
	begun := scans()
	bounded.True(t, "a hundred ticks", func() bool {
		bounded.Value[string](t, pool, "select pg_current_xact_id()::text") // A transaction that makes no step.
		return scans() > begun+100
	})
	if after := bounded.Value[string](t, pool, row); after != before {
		t.Error("it wrote")
	}
}

// The sequencer logs that it begins an epoch on a database that was restored.
func TestSequencerSaysThatTheDatabaseWasRestored(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", outboxtest.Counter)
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
	bounded.Exec(t, pool, "update pawl.log_head set lease_until = 'epoch'")
	var lines bounded.Lines
	sequencer(t, pool, outbox.SequencerConfig{Logger: lines.Logger()})
	lines.Find(t, "the database was restored")
	bounded.UntilSQL(t, pool, "select epoch = 2 from pawl.log_head")
}

// The rows of purged instances leave the log.
func TestSequencerSweeps(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", outboxtest.Counter)
	sequencer(t, pool, outbox.SequencerConfig{Poll: 5 * time.Millisecond, Sweep: time.Millisecond})
	kept := outboxtest.Create(t, pool)
	for range 3 {
		id := outboxtest.Create(t, pool)
		bounded.Exec(t, pool, "select pawl.fire_one($1, 'stop')", id)
		bounded.UntilSQL(t, pool, "select count(*) > 1 from pawl.log")
		bounded.UntilSQL(t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], 'infinity')) = 1", id)
		bounded.UntilSQL(t, pool, "select not exists (select from pawl_private.purged_instance) and not exists (select from pawl.log where instance_id <> $1)", kept)
	}
}

// While the synchronous standby is away, no step gets a position: not when the sequencer is stopped, nor when it stands
// for election again. When commits no longer wait, it goes on.
func TestPositionsWaitForTheStandby(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, nil)
	pool := on(t, server)
	config := outbox.SequencerConfig{Poll: 5 * time.Millisecond, Lease: 500 * time.Millisecond}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- outbox.NewSequencer(pool, config).Run(ctx) }()
	id := outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select position = 1 from pawl.log_head")
	dbtest.Synchronous(t, server, "away")
	bounded.Exec(t, pool, "set synchronous_commit = local; select pawl.fire_one('"+id.String()+"', 'add')")
	const waiting = "select count(*) = %d from pg_stat_activity where application_name like 'pawl%%' and wait_event = 'SyncRep'"
	bounded.UntilSQL(t, pool, fmt.Sprintf(waiting, 1))
	stop()
	if err := bounded.Receive(t, "the end of the first sequencer", done); err != nil {
		t.Error(err)
	}
	sequencer(t, pool, config)
	bounded.UntilSQL(t, pool, "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%log_lead%')")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.log"); n != 1 {
		t.Errorf("%d steps have positions, and no standby has the second", n)
	}
	dbtest.Synchronous(t, server, "")
	bounded.UntilSQL(t, pool, whole)
}
