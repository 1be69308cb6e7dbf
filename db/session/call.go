package session

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// Pool returns what calls through a pool. Each call is a transaction of its own.
func Pool(pool *pgxpool.Pool) queries.DBTX { return caller{onPool{pool}} }

// Conn returns what calls through a connection of a pool. Each call is a transaction of its own.
func Conn(conn *pgxpool.Conn) queries.DBTX { return caller{onConn{conn}} }

// Tx returns what calls within a transaction, whose settings stay as they are.
func Tx(tx pgx.Tx) queries.DBTX { return caller{inTx{tx}} }

// Begin gives a transaction that has just begun its settings, and returns what calls within it.
// statementTimeout, such as "30s", takes the place of the pool's; empty for the pool's.
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
		// Without arguments it is sent in the simple protocol, which takes several statements.
		if _, err := tx.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return Tx(tx), nil
}

// A source gives the rows of one statement.
type source interface {
	query(ctx context.Context, sql string, args []any) (pgx.Rows, error)
}

// caller makes of a source what generated queries take.
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

// Scan reads the first row; the error is pgx.ErrNoRows if there is none.
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
	rows, err := onConn{conn}.query(ctx, sql, args)
	if err != nil {
		conn.Release()
		return nil, err
	}
	return &closing{Rows: rows, after: func() error { conn.Release(); return nil }}, nil
}

type onConn struct{ conn *pgxpool.Conn }

func (s onConn) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	if p := pooledOf(s.conn.Conn()); p != nil {
		return p.query(ctx, s.conn.Conn(), sql, args)
	}
	return s.conn.Query(ctx, sql, args...)
}

type inTx struct{ tx pgx.Tx }

func (s inTx) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	if IsPooled(s.tx.Conn()) {
		// A transaction stays on one server, but what is prepared under a name would stay there after it.
		args = append([]any{pgx.QueryExecModeCacheDescribe}, withoutMode(args)...)
	}
	return s.tx.Query(ctx, sql, args...)
}

// withoutMode returns the arguments without the modes of execution that may stand before them.
func withoutMode(args []any) []any {
	for len(args) > 0 {
		if _, mode := args[0].(pgx.QueryExecMode); !mode {
			break
		}
		args = args[1:]
	}
	return args
}

// query sends the settings and the statement in one round trip, as one implicit transaction. A statement
// is described before it is executed for the first time.
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

// closing are rows with something to do when they are closed, which may fail.
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
