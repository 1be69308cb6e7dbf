package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/db/session"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migrations returns a file system with the goose files at its root.
func Migrations() fs.FS {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // The folder is part of the binary.
	}
	return files
}

// VersionTable is where goose notes which migrations are applied. It is in schema pawl, so that an application
// in the same database can use goose for migrations of its own.
const VersionTable = "pawl.goose_db_version"

// versions is the version table. goose makes it before the first migration.
type versions struct{ database.Store }

func newVersions() (versions, error) {
	store, err := database.NewStore(database.DialectPostgres, VersionTable)
	return versions{store}, err
}

// TableExists reports whether the table exists.
func (v versions) TableExists(ctx context.Context, db database.DBTxConn) (exists bool, err error) {
	err = db.QueryRowContext(ctx, "select to_regclass($1) is not null", VersionTable).Scan(&exists)
	return exists, err
}

// CreateVersionTable makes the table, and the schema if it is missing.
func (v versions) CreateVersionTable(ctx context.Context, db database.DBTxConn) error {
	if _, err := db.ExecContext(ctx, "create schema if not exists pawl"); err != nil {
		return err
	}
	return v.Store.CreateVersionTable(ctx, db)
}

// Delete notes that a migration was reverted. If it was the first one, schema pawl holds nothing but the table, and
// Delete drops both.
func (v versions) Delete(ctx context.Context, db database.DBTxConn, version int64) error {
	if err := v.Store.Delete(ctx, db, version); err != nil {
		return err
	}
	if latest, err := v.GetLatestVersion(ctx, db); err != nil || latest > 0 {
		return err
	}
	_, err := db.ExecContext(ctx, "drop schema pawl cascade")
	return err
}

// migrateTries is how often goose runs if PostgreSQL ends it because of a deadlock with a process that works meanwhile.
const migrateTries = 10

// migrate runs f with goose on a connection of its own. After a deadlock it runs f again: each migration is a transaction.
func migrate(ctx context.Context, dsn string, f func(*goose.Provider) error) (err error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	session.Pin(&config.Config)
	conn := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, conn.Close()) }()
	// It tries every second, for five minutes.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	store, err := newVersions()
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectCustom, conn, Migrations(), goose.WithSessionLocker(locker), goose.WithStore(store))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	for try := 1; ; try++ {
		err := f(provider)
		if err == nil {
			return nil
		}
		const deadlockDetected = "40P01"
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != deadlockDetected || try == migrateTries {
			return fmt.Errorf("migrate: %w", err)
		}
	}
}

// deployed is what a database tells about its schema.
type deployed struct {
	encoding string // Of the database.
	noted    bool   // Whether the version table exists.
	made     bool   // Whether the tables of pawl exist.
	version  int64  // What pawl.schema_version returns; -1 without that function.
}

// inspect looks at the schema of a database.
func inspect(ctx context.Context, conn *pgx.Conn) (d deployed, err error) {
	var tells bool
	err = conn.QueryRow(ctx, `
		select getdatabaseencoding()::text, to_regclass($1) is not null, to_regclass('pawl.setting') is not null,
			to_regprocedure('pawl.schema_version()') is not null`, VersionTable).Scan(&d.encoding, &d.noted, &d.made, &tells)
	if d.version = -1; err == nil && tells {
		err = conn.QueryRow(ctx, "select pawl.schema_version()").Scan(&d.version)
	}
	return d, err
}

// check returns an error if this build can neither apply nor revert migrations in the database. The error says what
// to do.
func (d deployed) check() error {
	switch {
	case d.encoding != "UTF8":
		return fmt.Errorf("the encoding of the database is %s, and pawl needs UTF8: make a database with 'create database ... template template0 encoding 'UTF8''", d.encoding)
	case d.version > int64(schema.Version()):
		return fmt.Errorf("the schema is at version %d, and the latest that this pawl knows is %d: use a newer pawl", d.version, schema.Version())
	case d.noted || !d.made:
		return nil
	case d.version < 0:
		return errors.New("a development build of pawl made the schema, which cannot be upgraded: run 'drop schema pawl, pawl_private cascade', which drops all its data, delete its versions from public.goose_db_version, and migrate again")
	default:
		return fmt.Errorf("the schema is at version %d, but %s, which notes that, is missing, since another tool has applied the migrations, or goose without '-table %[2]s': go on with that tool, or run 'pawl migrate up --adopt'",
			d.version, VersionTable)
	}
}

// look connects to a database and calls f, unless deployed.check refuses the database.
func look(ctx context.Context, dsn string, f func(*pgx.Conn, deployed) error) error {
	conn, err := connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	d, err := inspect(ctx, conn)
	if err == nil {
		err = d.check()
	}
	if err == nil {
		err = f(conn, d)
	}
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// check is deployed.check for a database.
func check(ctx context.Context, dsn string) error {
	return look(ctx, dsn, func(*pgx.Conn, deployed) error { return nil })
}

// Up applies every pending migration.
func Up(ctx context.Context, dsn string) error {
	_, err := Apply(ctx, dsn)
	return err
}

// Apply applies every pending migration and returns the names of the files that it applied, even if a later one
// fails. It refuses a database whose encoding is not UTF8, and a schema that is newer than this build or that the
// version table does not know.
func Apply(ctx context.Context, dsn string) (files []string, err error) {
	if err := check(ctx, dsn); err != nil {
		return nil, err
	}
	err = migrate(ctx, dsn, func(p *goose.Provider) error {
		results, err := p.Up(ctx)
		if partial, ok := errors.AsType[*goose.PartialError](err); ok {
			results = partial.Applied
		}
		for _, r := range results {
			files = append(files, r.Source.Path)
		}
		return err
	})
	return files, err
}

// Adopt makes the version table for a schema that another tool has made, and notes the schema's version there.
func Adopt(ctx context.Context, dsn string) error {
	if err := adopt(ctx, dsn); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	return nil
}

func adopt(ctx context.Context, dsn string) error {
	conn, err := connect(ctx, dsn)
	if err != nil {
		return err
	}
	d, err := inspect(ctx, conn)
	config := conn.Config()
	_ = conn.Close(context.WithoutCancel(ctx))
	switch {
	case err != nil:
		return err
	case d.noted:
		return fmt.Errorf("%s exists already: leave out --adopt", VersionTable)
	case d.version < 0:
		return errors.New("the database has no schema that tells its version: leave out --adopt")
	}
	store, err := newVersions()
	if err != nil {
		return err
	}
	session.Pin(&config.Config)
	pool := stdlib.OpenDB(*config)
	defer func() { _ = pool.Close() }()
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := store.CreateVersionTable(ctx, tx); err != nil {
		return err
	}
	for version := range d.version + 1 { // goose wants the version 0 as well.
		if err := store.Insert(ctx, tx, database.InsertRequest{Version: version}); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// Down reverts the latest migration: it drops what that migration made, with all data in it.
func Down(ctx context.Context, dsn string) error {
	if err := check(ctx, dsn); err != nil {
		return err
	}
	return migrate(ctx, dsn, func(p *goose.Provider) error {
		_, err := p.Down(ctx)
		return err
	})
}

// Migration is one migration, and whether it is applied.
type Migration struct {
	Version   int64     // The number that the name of the file begins with.
	File      string    // The name of the file.
	AppliedAt time.Time // Zero if it is pending.
}

// Status lists the migrations in order. It writes nothing.
func Status(ctx context.Context, dsn string) (list []Migration, err error) {
	err = look(ctx, dsn, func(conn *pgx.Conn, d deployed) error {
		list, err = status(ctx, conn, d)
		return err
	})
	return list, err
}

func status(ctx context.Context, conn *pgx.Conn, d deployed) ([]Migration, error) {
	applied := make(map[int64]time.Time)
	if d.noted {
		rows, err := conn.Query(ctx, "select version_id, max(tstamp) from "+VersionTable+" where is_applied group by version_id")
		if err != nil {
			return nil, err
		}
		var version int64
		var at time.Time
		if _, err := pgx.ForEachRow(rows, []any{&version, &at}, func() error {
			applied[version] = at
			return nil
		}); err != nil {
			return nil, err
		}
	}
	var list []Migration
	for _, file := range migrationNames() {
		version, err := goose.NumericComponent(file)
		if err != nil {
			return nil, err
		}
		list = append(list, Migration{Version: version, File: file, AppliedAt: applied[version]})
	}
	return list, nil
}

// migrationNames returns the names of the goose files, in order.
func migrationNames() []string {
	names, err := fs.Glob(Migrations(), "*.sql")
	if err != nil {
		panic(err) // The pattern is constant.
	}
	return names
}

// Loss says what a Down would drop.
type Loss struct {
	Migration                   string // The file of the latest applied migration; empty if there is none.
	Everything                  bool   // Whether it is the first one, which made all tables.
	Workflows, Instances, Steps int64  // What the database holds.
}

// LossOfDown returns what the next Down would drop.
func LossOfDown(ctx context.Context, dsn string) (loss Loss, err error) {
	err = look(ctx, dsn, func(conn *pgx.Conn, d deployed) error {
		list, err := status(ctx, conn, d)
		if err != nil {
			return err
		}
		for i, m := range list {
			if !m.AppliedAt.IsZero() {
				loss.Migration, loss.Everything = m.File, i == 0
			}
		}
		if loss.Migration == "" {
			return nil
		}
		return conn.QueryRow(ctx, `
			select (select count(distinct name) from pawl.workflow), (select count(*) from pawl.instance), (select count(*) from pawl.history)`).
			Scan(&loss.Workflows, &loss.Instances, &loss.Steps)
	})
	return loss, err
}

// Print writes the migrations one after the other, each after a comment with its name. psql can run the result, since
// a Down section is a comment in SQL.
func Print(w io.Writer) error {
	for _, name := range migrationNames() {
		text, err := fs.ReadFile(Migrations(), name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "-- %s\n%s\n", name, text); err != nil {
			return err
		}
	}
	return nil
}

// PrintTo writes each migration into a file of a folder, which it makes if it is missing, and returns the paths of
// the files. goose can apply and revert them; psql can apply them.
func PrintTo(folder string) (paths []string, err error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	for _, name := range migrationNames() {
		text, err := fs.ReadFile(Migrations(), name)
		if err != nil {
			return paths, err
		}
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return paths, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}
