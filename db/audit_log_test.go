package db_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// note writes rows of the audit, each with one of the actors.
func note(t testing.TB, q queries.DBTX, actors ...string) {
	t.Helper()
	for _, actor := range actors {
		bounded.Exec(t, q, "select pawl.audit_note('default', jsonb_build_object('actor', $1::text), 'x.y', 'forbidden')", actor)
	}
}

// auditInOrder lists the rows of the audit in the order of their positions, as actor, position and epoch.
func auditInOrder(t testing.TB, pool *pgxpool.Pool) []string {
	t.Helper()
	return bounded.Column[string](t, pool, `
		select concat_ws(' ', a.actor, l.position, l.epoch)
		from pawl.audit_log l join pawl.audit a using (tenant_id, seq)
		where a.action = 'x.y'
		order by l.position`)
}

// wantWholeAudit checks that each row of the audit has one position, without gaps.
func wantWholeAudit(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if n := bounded.Value[int](t, pool, `
		select count(*) from pawl.audit a
		where (select count(*) from pawl.audit_log l where (l.tenant_id, l.seq) = (a.tenant_id, a.seq)) <> 1`); n != 0 {
		t.Errorf("%d rows have not one position", n)
	}
	if !bounded.Value[bool](t, pool, `
		select count(*) = coalesce(max(l.position), 0) and coalesce(max(l.position), 0) = max(h.audit_position)
		from pawl.log_head h left join pawl.audit_log l on true`) {
		t.Error("the positions have gaps, or are not those of the head")
	}
}

// Transactions write rows and commit in any order, with ticks all the time. A transaction may draw its id long before it
// writes, use subtransactions, or commit asynchronously. A row that had no place in a tick comes in a later one.
func TestAuditLogIsWhole(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	write := func(n int, conn *pgx.Conn, random *rand.Rand) error {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		if n%2 == 0 {
			if _, err := tx.Exec(t.Context(), "select pg_current_xact_id(); set local synchronous_commit = off"); err != nil {
				return err
			}
		}
		for range random.IntN(4) {
			part, err := tx.Begin(t.Context())
			if err != nil {
				return err
			}
			if _, err := part.Exec(t.Context(), "select pawl.audit_note('default', null, 'x.y', 'forbidden')"); err != nil {
				return err
			}
			if random.IntN(4) == 0 {
				err = part.Rollback(t.Context())
			} else {
				err = part.Commit(t.Context())
			}
			if err != nil {
				return err
			}
		}
		if random.IntN(5) == 0 {
			return nil
		}
		return tx.Commit(t.Context())
	}
	// One row at least is committed behind later ones, however the writers are scheduled.
	late := begin(t, pool)
	note(t, late, "late")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers, ticker sync.WaitGroup
	ticker.Go(func() {
		for ctx.Err() == nil {
			dbtest.Number(t, pool)
		}
	})
	for n := range 6 {
		conn, random := connect(t, pool), rand.New(rand.NewPCG(9, uint64(n)))
		writers.Go(func() {
			for range 60 {
				if err := write(n, conn, random); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	bounded.Wait(t, "the writers", writers.Wait)
	stop()
	bounded.Wait(t, "the ticker", ticker.Wait)
	dbtest.Number(t, pool)
	commit(t, late)
	dbtest.Number(t, pool)
	wantWholeAudit(t, pool)
	if !bounded.Value[bool](t, pool, `
		select exists (
			select from (select seq, lag(seq) over (order by position) as before from pawl.audit_log) l where l.seq < l.before)`) {
		t.Error("all rows were committed in the order of their seq: this shows nothing")
	}
}

// A row of a transaction that commits late gets its position then, and no other row waits for it.
func TestLateRowOfTheAuditIsNumberedLater(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	open := begin(t, pool)
	note(t, open, "late")
	note(t, pool, "a")
	dbtest.Number(t, pool)
	note(t, pool, "b")
	dbtest.Number(t, pool)
	commit(t, open)
	dbtest.Number(t, pool)
	if got := auditInOrder(t, pool); !slices.Equal(got, []string{"a 1 1", "b 2 1", "late 3 1"}) {
		t.Errorf("the rows have the positions %v", got)
	}
	wantWholeAudit(t, pool)
}

// A dump is restored on another server, whose transaction ids are near, far, or behind. Each row has one position, as
// its ids pass those of the rows, too. Rows that had one keep it, and their epoch.
func TestRestoredAudit(t *testing.T) {
	t.Parallel()
	for name, ahead := range map[string]int64{"far": 1 << 40, "near": 300, "behind": -200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			note(t, pool, "a", "b")
			dbtest.Number(t, pool)
			note(t, pool, "restored")
			bounded.Exec(t, pool, "update pawl.audit set xid = (xid::text::bigint + $1)::text::xid8", ahead)
			bounded.Exec(t, pool, `
				update pawl.log_head
				set snapshot = format('%s:%s:', pg_snapshot_xmin(snapshot)::text::bigint + $1, pg_snapshot_xmax(snapshot)::text::bigint + $1)::pg_snapshot`, ahead)
			bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
			open := begin(t, pool)
			note(t, open, "open")
			dbtest.Number(t, pool)
			commit(t, open)
			for range 20 {
				for range 30 {
					bounded.Value[string](t, pool, "select pg_current_xact_id()::text")
				}
				dbtest.Number(t, pool)
			}
			note(t, pool, "last")
			dbtest.Number(t, pool)
			if got := auditInOrder(t, pool); !slices.Equal(got, []string{"a 1 1", "b 2 1", "restored 3 2", "open 4 2", "last 5 2"}) {
				t.Errorf("the rows have the positions %v", got)
			}
			wantWholeAudit(t, pool)
		})
	}
}

// A dump is restored that no sequencer has seen, and that has rows of the audit alone.
func TestRestoredAuditWithoutSteps(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	note(t, pool, "restored")
	bounded.Exec(t, pool, "update pawl.audit set xid = (xid::text::bigint + 1000000)::text::xid8")
	dbtest.Number(t, pool)
	note(t, pool, "next")
	dbtest.Number(t, pool)
	if got := auditInOrder(t, pool); !slices.Equal(got, []string{"restored 1 1", "next 2 1"}) {
		t.Errorf("the rows have the positions %v", got)
	}
	wantWholeAudit(t, pool)
}

// An idle tick looks at no row of the audit, however many have positions.
func TestIdleTickReadsNoAudit(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `
		insert into pawl.audit (tenant_id, at, actor, action, outcome)
		select 'default', now(), 'x', 'x.y', 'done' from generate_series(1, 5000)`)
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "vacuum analyze pawl.audit, pawl.audit_log")
	conn := connect(t, pool)
	read := func() int {
		bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
		return bounded.Value[int](t, conn, `
			select sum(seq_tup_read + idx_tup_fetch + n_tup_ins) from pg_stat_user_tables where relid in ('pawl.audit'::regclass, 'pawl.audit_log'::regclass)`)
	}
	before := read()
	for range 20 {
		dbtest.Number(t, conn)
	}
	if n := read() - before; n > 0 {
		t.Errorf("20 ticks read %d rows", n)
	}
	note(t, conn, "next")
	before = read()
	dbtest.Number(t, conn)
	if n := read() - before; n == 0 || n > 20 {
		t.Errorf("a tick that numbers one row has read and written %d", n)
	}
}

// Rows that the consumers of the audit have not read stay, and the call says how many. Consumers of steps keep none.
func TestAuditPurgeFollowsConsumers(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.consumer_create('steps', true)")
	for _, c := range []string{"a", "b"} {
		bounded.Exec(t, pool, "select pawl.consumer_create($1, true, true)", c)
		bounded.Exec(t, pool, "select pawl.consumer_lead($1, 'x', '1 hour', true)", c)
	}
	advance := func(consumer string, position int64) {
		t.Helper()
		leads, err := queries.New(pool).ConsumerAdvance(t.Context(), queries.ConsumerAdvanceParams{
			Consumer: consumer, Leader: "x", Term: 1, Epoch: 1, Position: position, Lease: anHour,
		})
		if err != nil || !leads {
			t.Fatalf("%v, %v", leads, err)
		}
	}
	want := func(result string, positions ...int64) {
		t.Helper()
		if got := bounded.Value[string](t, pool, "select pawl.audit_purge('2026-01-02', 100)::text"); got != result {
			t.Errorf("it purged %s, want %s", got, result)
		}
		if got := bounded.Column[int64](t, pool, "select l.position from pawl.audit_log l join pawl.audit a using (tenant_id, seq) where a.action = 'x.y' order by 1"); !slices.Equal(got, positions) {
			t.Errorf("the positions %v are left, want %v", got, positions)
		}
	}
	bounded.Exec(t, pool, `
		insert into pawl.audit (tenant_id, at, actor, action, outcome)
		select 'default', '2026-01-01', 'x', 'x.y', 'done' from generate_series(1, 5)`)
	want("(0,5)")
	dbtest.Number(t, pool)
	want("(0,5)", 1, 2, 3, 4, 5)
	advance("a", 5)
	want("(0,5)", 1, 2, 3, 4, 5)
	advance("b", 2)
	want("(2,3)", 3, 4, 5)
	bounded.Exec(t, pool, "update pawl.consumer set lease_until = 'epoch' where name = 'b'; select pawl.consumer_delete('b')")
	want("(3,0)")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.audit_log where position <= 5"); n != 0 {
		t.Errorf("%d positions of purged rows are left", n)
	}
}

// A consumer reads steps or the audit, and cannot be taken for one that reads the other. It does not move beyond the end of
// what it reads.
func TestConsumersOfTheAudit(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 3) // The audit has fewer rows than there are steps.
	dbtest.Number(t, pool)
	end := bounded.Value[int64](t, pool, "select audit_position from pawl.log_head")
	bounded.Exec(t, pool, "select pawl.consumer_create('a', false, true), pawl.consumer_create('s')")
	note(t, pool, "next")
	dbtest.Number(t, pool)
	if got := bounded.Value[string](t, pool, "select (n.epoch, n.until)::text from pawl.consumer_next('a', 10) n"); got != fmt.Sprintf("(1,%d)", end+1) {
		t.Errorf("the next page is %s", got)
	}
	if got := bounded.Column[string](t, pool, "select actor || ' ' || position from pawl.consumer_read_audit('a', $1, 1000)", end+1); !slices.Equal(got, []string{fmt.Sprint("next ", end+1)}) {
		t.Errorf("the page has %v", got)
	}
	for _, wrong := range []string{"select pawl.consumer_create('a')", "select pawl.consumer_create('s', false, true)"} {
		_, err := pool.Exec(t.Context(), wrong)
		wantCode(t, err, "PW400")
	}
	for name, audit := range map[string]bool{"a": false, "s": true} {
		if term := bounded.Value[*int64](t, pool, "select pawl.consumer_lead($1, 'x', '1 hour', $2)", name, audit); term != nil {
			t.Errorf("%s is led as one that reads the other", name)
		}
	}
	if got := bounded.Value[string](t, pool, "select string_agg(name || ' ' || steps, ', ' order by name) from pawl.consumer_status()"); got != "a 1, s 0" {
		t.Errorf("the consumers are %s", got)
	}
	bounded.Exec(t, pool, "select pawl.consumer_lead('a', 'x', '1 hour', true)")
	for _, c := range []struct {
		position int64
		leads    bool
	}{{end + 2, false}, {end + 1, true}} {
		if leads := bounded.Value[bool](t, pool, "select pawl.consumer_advance('a', 'x', 1, 1, $1, 1, '1 hour')", c.position); leads != c.leads {
			t.Errorf("moving it to %d of %d: %v", c.position, end+1, leads)
		}
	}
}
