package dbtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// tick numbers steps as the sequencer of the tests, and tells the hubs of them, as the service's sequencer does.
const tick = `
	select t.leads, case when t.steps > 0 then pg_notify('pawl_log', '-') end is not null
	from pawl.log_head h
	cross join pawl.log_tick('the test', h.term, '1 day') t`

// Number gives positions to the steps that were committed so far, as a sequencer of the test's own that nobody else
// takes over from.
func Number(t testing.TB, q queries.DBTX) {
	t.Helper()
	// Each is a transaction of its own.
	bounded.Exec(t, q, "select pawl.log_lead('the test', '1 day') where not exists (select from pawl.log_head h where h.leader = 'the test')")
	bounded.Exec(t, q, "select pawl.log_begin('the test', h.term) from pawl.log_head h")
	bounded.True(t, "the test to lead", func() bool {
		leads, err := number(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		return leads // It does not if Numbering has got ahead of it.
	})
}

func number(ctx context.Context, q queries.DBTX) (leads bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, bounded.Limit)
	defer cancel()
	var told bool
	err = q.QueryRow(ctx, tick).Scan(&leads, &told)
	return leads, err
}

// Numbering gives positions to steps, soon after they were committed, until the test ends or stop is called.
func Numbering(t testing.TB, pool *pgxpool.Pool) (stop func()) {
	t.Helper()
	Number(t, pool)
	return bounded.Run(t, "the numbering of steps", func(ctx context.Context) error {
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		// bounded: until it is stopped
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return nil
			}
			if _, err := number(ctx, pool); err != nil && ctx.Err() == nil {
				return err
			}
		}
	})
}

// Fork notes which steps there are, and gives positions to them. lose takes the database back to them, as the promotion
// of a standby does that has no others, and begins an epoch. It leaves alone what is not of instances and the log.
func Fork(t testing.TB, pool *pgxpool.Pool) (lose func()) {
	t.Helper()
	Number(t, pool)
	bounded.Exec(t, pool, `
		drop table if exists public.forked_head, public.forked_instance;
		create table public.forked_head as table pawl.log_head;
		create table public.forked_instance as table pawl.instance`)
	return func() {
		t.Helper()
		bounded.Exec(t, pool, `
			begin;
			select from pawl.log_head for update;
			delete from pawl.log l using public.forked_head f where l.position > f.position;
			delete from pawl_private.log_mark m using public.forked_head f where m.position > f.position;
			delete from pawl.history h using public.forked_head f where not pg_visible_in_snapshot(h.xid, f.snapshot);
			delete from pawl.instance;
			insert into pawl.instance table public.forked_instance;
			insert into pawl.log_epoch
			select h.epoch + 1, e.system_identifier, e.database_id, e.table_id, e.timeline, f.position, e.first_seq, f.snapshot, pawl.now()
			from pawl.log_head h
			join pawl.log_epoch e using (epoch)
			cross join public.forked_head f;
			update pawl.log_head h set epoch = h.epoch + 1, position = f.position, snapshot = f.snapshot, epoch_snapshot = f.snapshot from public.forked_head f;
			commit`)
	}
}
