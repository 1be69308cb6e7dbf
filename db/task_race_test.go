package db_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// racedWorkflow goes round, so that there is always something to do: a call, then work, then back, or what was done is undone.
const racedWorkflow = `{
  "name": "t", "initial": "CALLING", "cancel": "UNDOING",
  "states": {
    "CALLING": {
      "invoke": {"call": {
        "http": {"connection": "psp", "method": "POST", "path": "/calls"}, "idempotency": {"header": "Idempotency-Key", "window": "24h"},
        "deadline": "2m", "retry": {"max": 3, "base": "1s", "cap": "2s"},
        "done": [{"target": "WORKING"}], "error": [{"target": "UNDOING"}], "unknown": [{"target": "UNDOING"}], "late": {"event": "late"},
        "compensate": {"http": {"connection": "psp", "method": "POST", "path": "/undone"}, "deadline": "2m", "retry": {"max": 2, "base": "1s", "cap": "2s"}, "if_unknown": "run"}}},
      "on": {"abort": [{"target": "UNDOING"}], "skip": [{"target": "WORKING"}], "late": [{"target": "CALLING"}]}
    },
    "WORKING": {
      "invoke": {"work": {
        "work": {"topic": "work", "lease": "20s"}, "deadline": "2m", "retry": {"max": 3, "base": "1s", "cap": "2s"},
        "done": [{"target": "CALLING"}], "error": [{"target": "UNDOING"}], "unknown": [{"target": "UNDOING"}],
        "compensate": {"work": {"topic": "work", "lease": "20s"}, "deadline": "2m", "retry": {"max": 2, "base": "1s", "cap": "2s"}}}},
      "on": {"abort": [{"target": "UNDOING"}], "skip": [{"target": "CALLING"}]}
    },
    "UNDOING": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "REST"}], "error": [{"target": "STUCK"}]},
    "STUCK": {"on": {"abort": [{"target": "UNDOING"}], "skip": [{"target": "REST"}]}},
    "REST": {"on": {"skip": [{"target": "CALLING"}], "end": [{"target": "DONE"}]}},
    "DONE": {"type": "final"}
  }
}`

// A lease is what a claim got.
type lease struct {
	task, lease uuid.UUID
	attempt     int
}

// taskRace is claims, reports, sweeps, events and operators, all at the same time.
type taskRace struct {
	pool *pgxpool.Pool
	ids  []uuid.UUID

	mu      sync.Mutex
	moments int                       // Counts what was seen.
	claimed map[uuid.UUID]map[int]int // When the claim of a task with the number of an attempt had come back.
	fenced  []string                  // Reports that were settled though a newer claim had come back before they were made.
	settled map[uuid.UUID]int         // How many reports of each lease were settled that end an attempt.
}

// got notes what a claim got.
func (r *taskRace) got(leases []lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moments++
	for _, l := range leases {
		if r.claimed[l.task] == nil {
			r.claimed[l.task] = map[int]int{}
		}
		r.claimed[l.task][l.attempt] = r.moments
	}
}

func (r *taskRace) now() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moments++
	return r.moments
}

// settle reports with a lease, and notes what came of it.
func (r *taskRace) settle(ctx context.Context, conn *pgx.Conn, l lease, report string) error {
	began := r.now()
	var code string
	err := conn.QueryRow(ctx, "select s.code from pawl.task_settle('{default}', array[$1::uuid], array[$2::uuid], array[$3::jsonb]) s",
		l.task, l.lease, report).Scan(&code)
	if err != nil || code != "settled" {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for attempt, at := range r.claimed[l.task] {
		if attempt > l.attempt && at < began {
			r.fenced = append(r.fenced, fmt.Sprintf("task %s: attempt %d was settled by %s after attempt %d had been claimed", l.task, l.attempt, report, attempt))
		}
	}
	if !strings.Contains(report, "heartbeat") {
		r.settled[l.lease]++
	}
	return nil
}

// claims runs a query that claims tasks, and returns their leases.
func (r *taskRace) claims(ctx context.Context, conn *pgx.Conn, sql string) ([]lease, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	leases, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l lease, err error) {
		err = row.Scan(&l.task, &l.lease, &l.attempt)
		return l, err
	})
	if err != nil {
		return nil, err
	}
	r.got(leases)
	return leases, nil
}

// carry claims tasks and reports of them: at once, twice, late, or never.
func (r *taskRace) carry(ctx context.Context, conn *pgx.Conn, rng *rand.Rand, claim string, reports []string) error {
	leases, err := r.claims(ctx, conn, claim)
	if err != nil {
		return err
	}
	if len(leases) == 0 { // Many instances rest. This lets one go on.
		_, err := conn.Exec(ctx, "select pawl.fire_one($1, 'skip')", r.ids[rng.IntN(len(r.ids))])
		return err
	}
	var kept []lease
	for _, l := range leases {
		draw := rng.IntN(10)
		if draw == 0 {
			continue
		}
		if draw < 4 {
			kept = append(kept, l)
			continue
		}
		report := reports[rng.IntN(len(reports))]
		for range 1 + rng.IntN(2) {
			if err := r.settle(ctx, conn, l, report); err != nil {
				return err
			}
		}
	}
	// By now the leases of some are over, and others have claimed their tasks.
	if _, err := conn.Exec(ctx, "select pawl.task_sweep(5)"); err != nil {
		return err
	}
	for _, l := range kept {
		if err := r.settle(ctx, conn, l, reports[rng.IntN(len(reports))]); err != nil {
			return err
		}
	}
	return nil
}

// refused reports whether an error is a refusal of a command, which the test does not mind.
func refused(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.HasPrefix(pgErr.Code, "PW")
}

// Whatever comes at once, each task ends once, each outcome makes one step, no report is settled with a lease that a newer
// claim has superseded, and nobody waits for somebody who waits for them.
func TestTasksAreSerial(t *testing.T) {
	t.Parallel()
	const instances, rounds = 24, 120
	r := &taskRace{pool: dbtest.New(t), claimed: map[uuid.UUID]map[int]int{}, settled: map[uuid.UUID]int{}}
	bounded.Exec(t, r.pool, "select pawl.register_workflow($1)", racedWorkflow)
	for range instances {
		r.ids = append(r.ids, bounded.Value[uuid.UUID](t, r.pool, "select (pawl.create_one('t', '{}')).id"))
	}
	const (
		calls = "select c.task_id, c.lease, c.attempt from pawl.task_claim('{default}', '{psp}', '{3}', 'test') c"
		work  = "select (w).id, (w).lease, (w).attempt from (select pawl.claim_work('work', 'test', 3) as w) c"
		keyed = `select w.id, w.lease, w.attempt from pawl.work_claims('[{"tenant": "default", "topic": "work", "worker": "w", "max": 3}]') w`
	)
	called := []string{answered, answered, lost, `{"result": "refused", "error": "no"}`, `{"result": "answered", "status": 402, "body": null}`, `{"result": "postponed", "seconds": 1}`}
	worked := []string{completed, completed, failed, `{"result": "released"}`, `{"result": "heartbeat"}`, `{"result": "failed", "error": "no", "retryable": true}`}
	one := func(rng *rand.Rand) uuid.UUID { return r.ids[rng.IntN(len(r.ids))] }
	task := func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) (id uuid.UUID, err error) {
		err = conn.QueryRow(ctx, "select t.id from pawl.task t where t.instance_id = $1 order by t.id desc offset $2 limit 1", one(rng), rng.IntN(3)).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		return id, err
	}
	var group errgroup.Group
	for i, act := range []func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error{
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			return r.carry(ctx, conn, rng, calls, called)
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			return r.carry(ctx, conn, rng, calls, called)
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			return r.carry(ctx, conn, rng, work, worked)
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			return r.carry(ctx, conn, rng, keyed, worked)
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			_, err := conn.Exec(ctx, "select pawl.task_sweep(10)")
			return err
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			_, err := conn.Exec(ctx, "select pawl.fire_one($1, $2)", one(rng), []string{"abort", "skip", "skip"}[rng.IntN(3)])
			return err
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			if rng.IntN(4) == 0 {
				_, err := conn.Exec(ctx, "select pawl.cancel($1, 'race')", one(rng))
				return err
			}
			_, err := conn.Exec(ctx, "select pawl.override($1, 'race', '*', p_to => $2)", one(rng), []string{"CALLING", "WORKING", "UNDOING", "REST"}[rng.IntN(4)])
			return err
		},
		func(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
			id, err := task(ctx, conn, rng)
			if err != nil {
				return err
			}
			switch rng.IntN(3) {
			case 0:
				_, err = conn.Exec(ctx, "select pawl.task_retry('default', $1, 'race')", id)
			case 1:
				_, err = conn.Exec(ctx, "select pawl.task_resolve('default', $1, $2, '{}', 'race')", id, []string{"done", "error"}[rng.IntN(2)])
			default:
				_, err = conn.Exec(ctx, "select pawl.compensation_mark('default', $1, $2, $3, 'race')", one(rng),
					[]string{"call", "work"}[rng.IntN(2)], []string{"retry", "skip"}[rng.IntN(2)])
			}
			return err
		},
	} {
		conn := connect(t, r.pool)
		group.Go(func() error {
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			for n := range rounds {
				if i > 4 && n%3 > 0 { // Else most tasks would be left before anybody claims them.
					continue
				}
				if err := act(t.Context(), conn, rng); err != nil && !refused(err) {
					return fmt.Errorf("actor %d: %w", i, err)
				}
				if i == 4 && n%4 == 0 { // Leases and deadlines end.
					dbtest.Advance(t, r.pool, time.Duration(1+rng.IntN(15))*time.Second)
				}
			}
			return nil
		})
	}
	if err := bounded.Result(t, "those who race", group.Wait); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.fenced {
		t.Error(f)
	}
	for l, n := range r.settled {
		if n > 1 {
			t.Errorf("the lease %s settled %d times", l, n)
		}
	}
	if len(r.settled) < rounds {
		t.Errorf("only %d reports were settled: the test has tested little", len(r.settled))
	}
	r.end(t)
	r.wantOnce(t)
}

// end lets all deadlines pass, until no task is open and nothing is to be undone.
func (r *taskRace) end(t *testing.T) {
	t.Helper()
	bounded.True(t, "all tasks to end", func() bool {
		dbtest.Advance(t, r.pool, 3*time.Minute)
		bounded.Exec(t, r.pool, "select pawl.task_sweep(100)")
		// What is over leads to states with tasks of their own.
		bounded.Exec(t, r.pool, "select pawl.override(i.id, 'the end', '*', p_to => 'REST') from pawl.instance i where i.state in ('CALLING', 'WORKING')")
		return bounded.Value[bool](t, r.pool, "select not exists (select from pawl.task where ended_at is null) and not exists (select from pawl.undoing)")
	})
}

// wantOnce checks what the tables say in the end.
func (r *taskRace) wantOnce(t *testing.T) {
	t.Helper()
	for what, sql := range map[string]string{
		"a task has more outcomes in history than it was ended": `
			select h.key || ': ' || string_agg(h.event, ', ' order by h.version)
			from pawl.history h
			where h.key like 'task:%'
			group by h.key
			having count(*) > 1 + (select count(*) from pawl.audit a where a.action in ('task.retry', 'task.resolve') and a.target = substr(h.key, 6))`,
		"a step is the outcome of no task of its instance": `
			select h.event || ' of ' || h.key
			from pawl.history h
			where (h.kind = 'compensated' or h.kind = 'result' and h.event not like '%:compensate')
				and not exists (select from pawl.task t where t.instance_id = h.instance_id and 'task:' || t.id = h.key and h.event like '%:' || t.name || '%')`,
		"two tasks that ended in their state point to one step": `
			select string_agg(t.id::text, ', ') from pawl.task t where t.result_version is not null group by t.instance_id, t.result_version having count(*) > 1`,
		"a task was done in its state, and made no step": `
			select t.id || ' ' || t.name from pawl.task t
			where t.status in ('done', 'error', 'unknown') and t.left_at is null and t.compensates is null and t.result_version is null and t.problem is null`,
		"a task is cancelled, and an attempt of it was answered": `
			select t.id::text from pawl.task t
			join pawl.task_attempt a on a.task_id = t.id and a.result in ('completed') where t.status = 'cancelled'`,
		"attempts are not numbered in their order": `
			select a.task_id::text from pawl.task_attempt a
			group by a.task_id having count(*) <> max(a.number) or count(*) <> (select t.attempts from pawl.task t where t.id = a.task_id)`,
		"an attempt ended after the next one began, and not too late": `
			select a.task_id || ' ' || a.number
			from pawl.task_attempt a
			join pawl.task_attempt b on b.task_id = a.task_id and b.number = a.number + 1
			where a.ended_at > b.started_at`,
		"a step was undone twice since it was registered": `
			select c.number::text
			from pawl.compensation c
			join pawl.task t on t.instance_id = c.instance_id and t.compensates = c.number and t.status = 'done'
			group by c.number, c.instance_id
			having count(*) > 1 + (
				select count(*) from pawl.audit a where a.action = 'compensation.retry' and a.target = c.instance_id::text)`,
		"a step is undone, and no task has done so": `
			select c.number::text from pawl.compensation c
			where c.status = 'undone' and not exists (
				select from pawl.task t where t.instance_id = c.instance_id and t.compensates = c.number and t.status = 'done')`,
		"versions have a gap": `
			select h.instance_id::text from pawl.history h group by h.instance_id having count(*) <> max(h.version)`,
		"an instance is not where its last step led": `
			select i.id::text from pawl.instance i
			join pawl.history h on h.instance_id = i.id and h.version = i.version
			where h.to_state <> i.state`,
	} {
		if found := bounded.Column[string](t, r.pool, sql); len(found) > 0 {
			t.Errorf("%s: %q", what, found)
		}
	}
	var seen int
	for _, attempts := range r.claimed {
		seen += len(attempts)
	}
	if n := bounded.Value[int](t, r.pool, "select count(*) from pawl.task_attempt"); n != seen {
		t.Errorf("%d claims came back, and %d are written", seen, n)
	}
	kinds := bounded.Column[string](t, r.pool, "select distinct split_part(h.event, ':', 1) from pawl.history h where h.kind in ('result', 'compensated')")
	for _, kind := range []string{"done", "error", "unknown", "compensated"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("no step is of kind %s: the test has tested little", kind)
		}
	}
}
