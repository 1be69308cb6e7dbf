package database

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/internal/gate"
)

// A Client calls one database. It may be used by several goroutines at once.
type Client struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	timeout time.Duration
	asError func(error) error

	reads                        *pgxpool.Pool
	reading, lingering, changing *gate.Gate
	active                       gate.Recent // The tenants that send commands.
}

// changes is how many connections of the second pool are kept for changes, as a rule.
const changes = 2

// room is how many calls of one tenant may wait at a gate if no others do.
const room = 1024

// New returns a Client. Commands call through pool, and everything else through reads; see the package's comment.
// If reads is nil, at most half of pool's connections are used in its place. timeout bounds a call, all its
// repetitions included. asError maps the driver's error to the one that callers of the Client see; it is not
// called with nil.
func New(pool, reads *pgxpool.Pool, timeout time.Duration, asError func(error) error) *Client {
	c := &Client{pool: pool, queries: queries.New(session.Pool(pool)), timeout: timeout, asError: asError, reads: reads}
	size := int(pool.Config().MaxConns) / 2
	if reads == nil {
		c.reads = pool
	} else {
		size = int(reads.Config().MaxConns)
	}
	newGate := func(size int) *gate.Gate {
		size = max(size, 1)
		g := gate.New(size, max(size/2, 1), room)
		g.Narrow(max(size/4, 1), &c.active)
		return g
	}
	reading := max(size-changes, 1)
	c.reading, c.lingering, c.changing = newGate(reading), newGate(reading/2), newGate(min(changes, size-1))
	return c
}

// Pool returns the pool of commands.
func (c *Client) Pool() *pgxpool.Pool { return c.pool }

// Queries returns the queries on the pool of commands. A call through them is made once, unless it is made within
// Attempt.
func (c *Client) Queries() *queries.Queries { return c.queries }

// Timeout is how long a call may take, its repetitions included.
func (c *Client) Timeout() time.Duration { return c.timeout }

// Active notes that the context's tenant sends commands or reads single instances. For a second the calls of every other
// tenant have at most a quarter of the places of a gate, rather than half, and these rest between two calls, so that they
// leave processors to this one.
func (c *Client) Active(ctx context.Context) { c.active.Note(ctx) }

// Beside reports whether a tenant other than this one was active within the last second.
func (c *Client) Beside(tenant string) bool { return c.active.Others(tenant) }

// Read waits for its turn, calls f as Attempt does, and returns its mapped error. f must not write.
func (c *Client) Read(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
	return c.read(ctx, func(ctx context.Context) error { return f(ctx, queries.New(session.Pool(c.reads))) })
}

// ReadPlanned is Read with queries that are [Planned].
func (c *Client) ReadPlanned(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
	return c.read(ctx, func(ctx context.Context) error { return f(ctx, Planned(session.Pool(c.reads))) })
}

func (c *Client) read(ctx context.Context, call func(context.Context) error) error {
	err := c.pass(ctx, func() error {
		_, err := c.attempt(ctx, c.reads, call)
		return err
	}, c.reading)
	if err != nil {
		return c.asError(err)
	}
	return nil
}

// Try waits for its turn, and runs f as Attempt does, in a transaction that cannot write. It returns the driver's error.
func (c *Client) Try(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
	return c.pass(ctx, func() error { return c.try(ctx, c.reads, f) }, c.reading)
}

// TryCommand is Try on a connection for commands, without waiting for a turn. It is for calls of the flushers, which
// others wait for.
func (c *Client) TryCommand(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
	return c.try(ctx, c.pool, f)
}

func (c *Client) try(ctx context.Context, pool *pgxpool.Pool, f func(context.Context, *queries.Queries) error) error {
	_, err := c.attempt(ctx, pool, func(ctx context.Context) error {
		return Transact(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, "", func(q *queries.Queries) error { return f(ctx, q) })
	})
	return err
}

// Change waits for its turn, calls f once, and returns its mapped error.
func (c *Client) Change(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
	err := c.pass(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		return f(ctx, queries.New(session.Pool(c.reads)))
	}, c.changing)
	if err != nil {
		return c.asError(err)
	}
	return nil
}

// Command waits for its turn among changes, and calls f as Attempt does. What f writes must be under an idempotency key.
func (c *Client) Command(ctx context.Context, f func(context.Context, *queries.Queries) error) (unanswered bool, err error) {
	err = c.pass(ctx, func() (err error) {
		unanswered, err = c.attempt(ctx, c.reads, func(ctx context.Context) error { return f(ctx, queries.New(session.Pool(c.reads))) })
		return err
	}, c.changing)
	return unanswered, err
}

// Attempt makes a call and repeats it, up to three times, after a deadlock, a serialization
// failure or a lost connection. It returns the driver's error of the last attempt. unanswered is
// true if an attempt was sent and its answer was lost, so that it may have had its effect.
func (c *Client) Attempt(ctx context.Context, call func(context.Context) error) (unanswered bool, err error) {
	return c.attempt(ctx, c.pool, call)
}

func (c *Client) attempt(ctx context.Context, pool *pgxpool.Pool, call func(context.Context) error) (unanswered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	const tries = 4
	for try := range tries {
		if try > 0 {
			time.Sleep(time.Duration(try*try) * 10 * time.Millisecond)
		}
		err = call(ctx)
		if err == nil || ctx.Err() != nil || !IsRetryable(err) && !IsConnectionError(err) {
			return unanswered, err
		}
		unanswered = unanswered || isUnanswered(err)
		if isLost(err) {
			// The other connections of the pool are likely to be dead too.
			pool.Reset()
		}
	}
	return unanswered, err
}

// Transact runs f in a transaction whose statements may take as long as statementTimeout says,
// such as "30s", or as the pool says if it is empty. It returns the driver's error.
func Transact(
	ctx context.Context, pool *pgxpool.Pool, options pgx.TxOptions, statementTimeout string, f func(*queries.Queries) error,
) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return session.Transact(ctx, conn.Conn(), options, statementTimeout, func(db queries.DBTX) error { return f(queries.New(db)) })
}

// ChangeAll waits for its turn and calls Transact, and repeats both up to seven times if it did not get a lock, and
// after a deadlock or a serialization failure. A lock on a table is requested with a short lock_timeout, since
// commands queue behind the request; between several short requests they get through.
func (c *Client) ChangeAll(ctx context.Context, statementTimeout string, f func(*queries.Queries) error) error {
	return c.retry(ctx, pgx.TxOptions{}, statementTimeout, f, c.changing)
}

// Linger is ChangeAll for a call that leaves nothing behind. Since its statements may take long, it first waits for
// one of half as many places as Read has connections, and then for one of Read's.
func (c *Client) Linger(ctx context.Context, options pgx.TxOptions, statementTimeout string, f func(*queries.Queries) error) error {
	return c.retry(ctx, options, statementTimeout, f, c.lingering, c.reading)
}

// A Trial calls a function in a transaction that leaves nothing behind, and returns the driver's error.
type Trial func(ctx context.Context, f func(context.Context, *queries.Queries) error) error

// Rehearse is Linger for several calls in one transaction, which may write and is rolled back. What a failed call has done
// is undone, and the others go on. It returns the error of f, or the driver's error.
func (c *Client) Rehearse(ctx context.Context, statementTimeout string, f func(Trial) error) error {
	errEnd := errors.New("the end of a rehearsal")
	err := c.withTrial(ctx, pgx.TxOptions{}, statementTimeout, func(_ *queries.Queries, try Trial) error { return cmp.Or(f(try), errEnd) })
	if errors.Is(err, errEnd) {
		return nil
	}
	return err
}

// withTrial waits for its turn as Linger does, and runs f in a transaction with a Trial that is part of it.
func (c *Client) withTrial(ctx context.Context, options pgx.TxOptions, statementTimeout string, f func(*queries.Queries, Trial) error) error {
	return c.pass(ctx, func() error {
		conn, err := c.reads.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		return session.Transact(ctx, conn.Conn(), options, statementTimeout, func(db queries.DBTX) error {
			return f(queries.New(db), trialIn(db))
		})
	}, c.lingering, c.reading)
}

// trialIn returns a Trial whose calls are part of a transaction. What a failed call has done is undone.
func trialIn(db queries.DBTX) Trial {
	q := queries.New(db)
	return func(ctx context.Context, f func(context.Context, *queries.Queries) error) error {
		if _, err := db.Exec(ctx, "savepoint trial"); err != nil {
			return err
		}
		if err := f(ctx, q); err != nil {
			// If this fails, so do the calls that follow.
			_, _ = db.Exec(ctx, "rollback to savepoint trial")
			return err
		}
		_, err := db.Exec(ctx, "release savepoint trial")
		return err
	}
}

// Picture waits for its turn as Linger does, and runs f in a transaction that cannot write, and whose statements all see the
// same snapshot. A call that may fail, and leave the others to go on, is made by the Trial. It returns the mapped error.
func (c *Client) Picture(ctx context.Context, f func(*queries.Queries, Trial) error) error {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := c.withTrial(ctx, options, "", f)
	if err != nil {
		return c.asError(err)
	}
	return nil
}

func (c *Client) retry(
	ctx context.Context, options pgx.TxOptions, statementTimeout string, f func(*queries.Queries) error, gates ...*gate.Gate,
) error {
	var err error
	const tries = 8
	for try := range tries {
		select {
		case <-time.After(time.Duration(try) * 50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		err = c.pass(ctx, func() error { return c.transact(ctx, options, statementTimeout, f) }, gates...)
		if !IsRetryable(err) && !IsCode(err, LockNotAvailable) {
			break
		}
	}
	return err
}

// transact is Transact, whose commit gets no more time than a call has. It has no other limit, and may wait for a standby.
func (c *Client) transact(ctx context.Context, options pgx.TxOptions, statementTimeout string, f func(*queries.Queries) error) error {
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	return Transact(ctx, c.reads, options, statementTimeout, func(q *queries.Queries) error {
		err := f(q)
		time.AfterFunc(c.timeout, giveUp)
		return err
	})
}

// pass makes a call behind gates. If the database does not answer it, those who wait at the last gate need not find
// that out one after the other.
func (c *Client) pass(ctx context.Context, call func() error, gates ...*gate.Gate) error {
	for _, g := range gates {
		leave, err := g.Enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	err := call()
	if err != nil && ctx.Err() == nil && IsConnectionError(err) {
		gates[len(gates)-1].SendAway(err)
	}
	return err
}

// Planned returns queries that are planned anew for the arguments of each call. A prepared
// statement soon gets a generic plan, and a list whose filters are mostly absent has no generic
// plan that is good for all of them: it would read the whole table.
func Planned(db queries.DBTX) *queries.Queries { return queries.New(planned{db}) }

type planned struct{ queries.DBTX }

// Query describes the statement and executes it, and prepares nothing.
func (p planned) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return p.DBTX.Query(ctx, sql, append([]any{pgx.QueryExecModeDescribeExec}, args...)...)
}

// QueryRow is Query for one row.
func (p planned) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return p.DBTX.QueryRow(ctx, sql, append([]any{pgx.QueryExecModeDescribeExec}, args...)...)
}

// Optional returns a pointer to a parameter of a query, or nil for a zero value, which is an absent one.
func Optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// Int returns a number of a row as the API of Go has it; nil for null.
func Int(n *int32) *int {
	if n == nil {
		return nil
	}
	return new(int(*n))
}

// NotNull returns a list for a parameter that must not be NULL, which a nil list would be.
func NotNull(list []string) []string { return append([]string{}, list...) }

// OptionalID parses the key of a [Listing] whose keys are ids. It returns nil for an empty key.
func OptionalID(key string) (*uuid.UUID, error) {
	if key == "" {
		return nil, nil
	}
	id, err := uuid.Parse(key)
	return &id, err
}
