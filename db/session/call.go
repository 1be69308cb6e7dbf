package session

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// Pool returns a DBTX whose calls use a pool. Each call is a transaction of its own.
func Pool(pool *pgxpool.Pool) queries.DBTX { return caller{onPool{pool}} }

// Conn returns a DBTX whose calls use one connection, of a pool or beside it. Each call is a transaction of its own.
func Conn(conn *pgx.Conn) queries.DBTX { return caller{onConn{conn}} }

// Tx returns a DBTX whose calls are part of a transaction. It does not change the transaction's
// settings.
func Tx(tx pgx.Tx) queries.DBTX { return caller{inTx{tx}} }

// Begin sets the settings of a transaction that has just begun, and returns a DBTX for it.
// statementTimeout, such as "30s", replaces that of the pool, unless it is empty.
func Begin(ctx context.Context, tx pgx.Tx, statementTimeout string) (queries.DBTX, error) {
	p := pooledOf(tx.Conn())
	sql := ""
	if p != nil {
		sql = p.settings
	}
	if statementTimeout != "" {
		if sql != "" {
			sql += "; "
		}
		sql += "set local statement_timeout = " + quote(statementTimeout)
	}
	if sql != "" {
		// Without arguments pgx uses the simple protocol, which allows several statements.
		if _, err := tx.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return Tx(tx), nil
}

// Transact runs f in a transaction on a connection, of a pool or beside it. It commits if f returns nil. If
// statementTimeout, such as "30s", is not empty, it replaces that of the pool. The error is ErrUnreplicated if the commit
// was not waited for.
func Transact(ctx context.Context, conn *pgx.Conn, options pgx.TxOptions, statementTimeout string, f func(queries.DBTX) error) error {
	_ = replicated(conn) // What others have committed on the connection is not looked at.
	err := pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) error {
		db, err := Begin(ctx, tx, statementTimeout)
		if err != nil {
			return err
		}
		return f(db)
	})
	if err != nil {
		return err
	}
	return replicated(conn)
}

// A source runs one statement and returns its rows.
type source interface {
	query(ctx context.Context, sql string, args []any) (pgx.Rows, error)
}

// caller makes a DBTX, as generated queries need it, of a source.
type caller struct{ source }

func (c caller) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return c.query(ctx, sql, args)
}

func (c caller) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	rows, err := c.query(ctx, sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	rows.Close()
	return rows.CommandTag(), rows.Err()
}

func (c caller) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := c.query(ctx, sql, args)
	return row{rows, err}
}

type row struct {
	rows pgx.Rows
	err  error
}

// Scan reads the first row. Without a row it returns pgx.ErrNoRows.
func (r row) Scan(into ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(into...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

type onPool struct{ pool *pgxpool.Pool }

func (s onPool) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := onConn{conn.Conn()}.start(ctx, sql, args)
	if err != nil {
		conn.Release()
		return nil, err
	}
	return &closing{Rows: rows, after: func() error {
		defer conn.Release()
		return replicated(conn.Conn())
	}}, nil
}

type onConn struct{ conn *pgx.Conn }

func (s onConn) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	rows, err := s.start(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	return &closing{Rows: rows, after: func() error { return replicated(s.conn) }}, nil
}

// start begins a call. When its rows are closed, replicated says whether its commit was waited for.
func (s onConn) start(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	_ = replicated(s.conn) // What others have committed on the connection is not looked at.
	if p := pooledOf(s.conn); p != nil {
		return p.query(ctx, s.conn, sql, args)
	}
	return s.conn.Query(ctx, sql, args...)
}

type inTx struct{ tx pgx.Tx }

func (s inTx) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	if IsPooled(s.tx.Conn()) {
		// A transaction stays in one session of the server. But a named prepared statement would stay
		// there after the transaction, for other clients.
		args = append([]any{pgx.QueryExecModeCacheDescribe}, withoutMode(args)...)
	}
	return s.tx.Query(ctx, sql, args...)
}

// withoutMode returns the arguments without the query modes that may precede them.
func withoutMode(args []any) []any {
	for len(args) > 0 {
		if _, mode := args[0].(pgx.QueryExecMode); !mode {
			break
		}
		args = args[1:]
	}
	return args
}

// query sends the settings and the statement in one round trip, as one implicit transaction. The first
// call of a statement needs another round trip, in which the server describes the statement.
func (p *pooled) query(ctx context.Context, conn *pgx.Conn, sql string, args []any) (pgx.Rows, error) {
	pg := conn.PgConn()
	description := p.descriptions[sql]
	if description == nil {
		var err error
		if description, err = pg.Prepare(ctx, "", sql, nil); err != nil {
			return nil, err
		}
		p.descriptions[sql] = description
	}
	var built pgx.ExtendedQueryBuilder
	if err := built.Build(conn.TypeMap(), description, withoutMode(args)); err != nil {
		return nil, err
	}
	var batch pgconn.Batch
	batch.ExecParams(p.settings, nil, nil, nil, nil)
	batch.ExecParams(sql, built.ParamValues, description.ParamOIDs, built.ParamFormats, built.ResultFormats)
	results := pg.ExecBatch(ctx, &batch)
	if results.NextResult() {
		if _, err := results.ResultReader().Close(); err == nil && results.NextResult() {
			return &closing{
				Rows: pgx.RowsFromResultReader(conn.TypeMap(), results.ResultReader()),
				// The transaction ends after the last row, and may fail then.
				after: func() error { return p.failed(sql, results.Close()) },
			}, nil
		}
	}
	if err := p.failed(sql, results.Close()); err != nil {
		return nil, err
	}
	return nil, errors.New("the server answered fewer statements than were sent")
}

// failed forgets the description of a statement that failed: the schema may have changed since.
func (p *pooled) failed(sql string, err error) error {
	if err != nil {
		delete(p.descriptions, sql)
	}
	return err
}

// closing is rows with a function to call when they are closed. That function may fail.
type closing struct {
	pgx.Rows
	after func() error
	err   error
}

func (r *closing) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *closing) Close() {
	r.Rows.Close()
	if after := r.after; after != nil {
		r.after = nil
		r.err = after()
	}
}

func (r *closing) Scan(into ...any) error {
	err := r.Rows.Scan(into...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *closing) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}
