package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
)

// schema holds the tables of the benchmark, beside the schema of pawl.
const schema = "pawl_bench"

// openDatabase starts a private server, or connects to the database that is given, and deploys the
// schema there. It refuses a database that is not empty.
func (b *benchmark) openDatabase(ctx context.Context) error {
	b.dsn = b.DatabaseURL
	var bin localpg.Binaries
	postmaster := 0
	if b.dsn == "" {
		server, err := b.startServer(ctx)
		if err != nil {
			return err
		}
		b.dsn, bin, postmaster = server.DSN(), server.Binaries(), server.PID()
	} else {
		bin, _ = localpg.Find() // Without a server on this machine, pgbench may still be on PATH.
	}
	conn, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return err
	}
	b.conn = conn
	b.undo = append(b.undo, conn.Close)
	if err := b.migrate(ctx); err != nil {
		return err
	}
	if postmaster == 0 {
		postmaster = findPostmaster(ctx, conn)
	}
	b.meter = &meter{conn: conn, postgres: postmaster}
	b.pgbench = findPgbench(bin, b.dsn, conn.Config().Password)
	return nil
}

// startServer starts a private PostgreSQL server. If the server ends before the run does, the run
// ends too.
func (b *benchmark) startServer(ctx context.Context) (*localpg.Server, error) {
	server, err := localpg.Start(ctx, localpg.Config{Logger: b.Logger, Settings: map[string]string{
		"max_connections": strconv.Itoa(max(400, slices.Max(b.Connections)+50)),
		"shared_buffers":  "1GB", "max_wal_size": "4GB",
		// A checkpoint by the clock would slow one measurement and not its reference.
		"checkpoint_timeout": "30min",
	}})
	if err != nil {
		return nil, err
	}
	b.undo = append(b.undo, server.Stop)
	go func() {
		select {
		case <-server.Done():
			b.end(fmt.Errorf("the private Postgres ended: %w", cmp.Or(server.Err(), errors.New("it was stopped"))))
		case <-ctx.Done():
		}
	}()
	return server, nil
}

// migrate deploys the schema of pawl and makes the schema of the benchmark. Both are dropped when
// the run ends.
func (b *benchmark) migrate(ctx context.Context) error {
	var pawl, own bool
	err := b.conn.QueryRow(ctx, "select to_regnamespace('pawl') is not null, to_regnamespace($1) is not null", schema).Scan(&pawl, &own)
	if err != nil {
		return err
	}
	switch {
	case pawl:
		return errors.New("bench: the database has a schema pawl, which the benchmark would change and drop: name an empty database")
	case own:
		return fmt.Errorf("bench: the database has a schema %s: name an empty database, or drop the schema that an earlier run left", schema)
	}
	b.undo = append(b.undo, func(ctx context.Context) error { return b.dropAll(ctx) })
	if err := db.Up(ctx, b.dsn); err != nil {
		return err
	}
	_, err = b.conn.Exec(ctx, "create schema "+schema)
	return err
}

// dropAll takes back what migrate made. A private server is deleted as a whole instead.
func (b *benchmark) dropAll(ctx context.Context) error {
	if b.DatabaseURL == "" {
		return nil
	}
	// An interruption may have closed the connection of the run.
	conn, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "drop schema if exists "+schema+" cascade"); err != nil {
		return err
	}
	list, err := db.Status(ctx, b.dsn)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.AppliedAt.IsZero() {
			continue
		}
		if err := db.Down(ctx, b.dsn); err != nil {
			return err
		}
	}
	return nil
}

// readIDs returns the ids of instances that a query selects as text.
func (b *benchmark) readIDs(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := b.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
