package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// A transactor is an application that calls pawl's functions in transactions of its own. These draw their ids early,
// have savepoints, and stay open for a while; some commit asynchronously.
type transactor struct {
	number int
	world  *world
	rng    *rand.Rand
	async  bool
	conn   *pgx.Conn
	count  int
}

func (w *world) newTransactor(number int, async bool) *transactor {
	return &transactor{number: number, world: w, rng: w.random(uint64(number)), async: async}
}

// A transaction is what one does: the same again until it is known to be committed.
type transaction struct {
	ops      []check.Op
	dropped  []bool // Rolled back to a savepoint of before.
	early    bool   // It draws its id long before its first step.
	linger   time.Duration
	given    bool // It is given up at its end.
	isRepeat bool
}

func (t *transactor) run(ctx, stopping context.Context) {
	defer func() {
		if t.conn != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_ = t.conn.Close(closing)
		}
	}()
	for stopping.Err() == nil {
		for tx := t.choose(); !t.attempt(ctx, &tx); tx.isRepeat = true {
			if !sleep(ctx, time.Duration(50+t.rng.IntN(200))*time.Millisecond) {
				return
			}
		}
		if !sleep(stopping, 2*t.world.think(t.rng)) {
			return
		}
	}
}

func (t *transactor) choose() transaction {
	tx := transaction{early: t.rng.IntN(2) == 0, given: t.rng.IntN(8) == 0, linger: time.Duration(t.rng.IntN(250)) * time.Millisecond}
	for range 1 + t.rng.IntN(3) {
		t.count++
		op := check.Op{Client: t.number, Key: fmt.Sprintf("%d-%d-%d", t.world.seed, t.number, t.count), Async: t.async}
		if t.rng.IntN(4) == 0 {
			op.Kind, op.Payload = "create", json.RawMessage(startContext)
		} else {
			at, _ := t.world.accounts.pick(t.rng)
			op.Kind, op.Event, op.Instance = "fire", "add", at.id
			op.Payload = json.RawMessage(`{"amount":` + strconv.Itoa(1+t.rng.IntN(50)) + `}`)
		}
		tx.ops = append(tx.ops, op)
	}
	// In this order two transactions cannot wait for each other.
	slices.SortStableFunc(tx.ops, func(a, b check.Op) int { return slices.Compare(a.Instance[:], b.Instance[:]) })
	tx.ops = slices.CompactFunc(tx.ops, func(a, b check.Op) bool { return a.Kind == "fire" && a.Instance == b.Instance })
	for range tx.ops {
		tx.dropped = append(tx.dropped, t.rng.IntN(10) == 0)
	}
	return tx
}

// attempt runs a transaction, records its commands and reports whether their decision is known.
func (t *transactor) attempt(ctx context.Context, tx *transaction) bool {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	ops := slices.Clone(tx.ops)
	begin := time.Now()
	sent, err := t.transact(ctx, tx, ops)
	if err != nil && t.conn != nil && (ctx.Err() != nil || t.conn.IsClosed()) {
		_ = t.conn.Close(ctx)
	}
	if t.conn != nil && t.conn.IsClosed() {
		t.conn = nil
	}
	if !sent {
		return err == nil // Without a commit it has had no effect, and its answers were nobody's.
	}
	for i, op := range ops {
		if tx.dropped[i] {
			continue
		}
		op.Begin, op.Retry = begin, tx.isRepeat
		if err != nil {
			op.Status, op.Code, op.Version, op.State, op.Context = 0, "", 0, "", nil
			op.Instance = tx.ops[i].Instance
		} else {
			op.End = time.Now()
		}
		if op.Kind == "create" && op.Status == 201 {
			t.world.accounts.add(op.Instance, op.Version, false)
		}
		t.world.record.op(op)
	}
	return err == nil
}

// transact runs a transaction and fills in the answers. sent is whether it came to its commit.
func (t *transactor) transact(ctx context.Context, tx *transaction, ops []check.Op) (sent bool, err error) {
	if t.conn == nil {
		config, err := pgx.ParseConfig(t.world.cluster.url("app", nil))
		if err != nil {
			return false, err
		}
		config.RuntimeParams["lock_timeout"] = "2s"
		if t.async {
			config.RuntimeParams["synchronous_commit"] = "off"
		}
		if t.conn, err = pgx.ConnectConfig(ctx, config); err != nil {
			t.conn = nil
			return false, err
		}
	}
	outer, err := t.conn.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		if !sent {
			_ = outer.Rollback(ctx)
		}
	}()
	if tx.early {
		if _, err := outer.Exec(ctx, "select pg_current_xact_id()"); err != nil {
			return false, err
		}
		if !sleep(ctx, tx.linger) {
			return false, ctx.Err()
		}
	}
	for i := range ops {
		if err := command(ctx, outer, &ops[i], tx.dropped[i]); err != nil {
			return false, err
		}
	}
	if tx.given {
		return false, nil
	}
	return true, outer.Commit(ctx)
}

// command carries out a command behind a savepoint. drop rolls back to it.
func command(ctx context.Context, outer pgx.Tx, op *check.Op, drop bool) error {
	inner, err := outer.Begin(ctx)
	if err != nil {
		return err
	}
	sql, args := "select id, state, version, context from pawl.fire_one($1, $2, $3, p_key => $4)", []any{op.Instance, op.Event, op.Payload, op.Key}
	status := 200
	if op.Kind == "create" {
		sql, args = "select id, state, version, context from pawl.create_one('account', $1, p_key => $2)", []any{op.Payload, op.Key}
		status = 201
	}
	err = inner.QueryRow(ctx, sql, args...).Scan(&op.Instance, &op.State, &op.Version, &op.Context)
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused) && strings.HasPrefix(refused.Code, "PW"):
		var detail struct {
			Code, State string
			Version     int64
		}
		if err := json.Unmarshal([]byte(refused.Detail), &detail); err != nil {
			return fmt.Errorf("the detail of %s: %w", refused.Code, err)
		}
		op.Status, op.Code, op.State, op.Version = http.StatusConflict, detail.Code, detail.State, detail.Version
		if detail.Code == "instance-not-found" {
			op.Status = http.StatusNotFound
		}
		return inner.Rollback(ctx)
	case err != nil:
		return err
	case drop:
		return inner.Rollback(ctx)
	}
	op.Status = status
	return inner.Commit(ctx)
}

// churn is an application beside pawl, whose transactions leave nothing behind: it draws ids, and waits for no commit.
// After a crash the last of these ids are given out again, to others: it comes back late.
func (w *world) churn(ctx context.Context) {
	for ctx.Err() == nil {
		_ = w.churnOnce(ctx) // It ends when the server does.
		sleep(ctx, time.Second)
	}
}

func (w *world) churnOnce(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.cluster.url("app", nil))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
		return err
	}
	for sleep(ctx, 10*time.Millisecond) {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := conn.Exec(bounded, "do $$ begin for i in 1..20 loop perform pg_current_xact_id(); commit; end loop; end $$")
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}
