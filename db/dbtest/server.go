package dbtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
)

const (
	urlEnv  = "PAWL_TEST_DATABASE_URL"
	keepEnv = "PAWL_TEST_KEEP"
)

const (
	startWithin  = 5 * time.Minute // an image may have to be pulled
	createWithin = time.Minute
)

// statementTimeout ends a statement that waits in vain, so that its test fails and not its package. It is longer than
// bounded.Limit: whoever waits with that limit says what for.
const statementTimeout = "3min"

// prefix starts the name of every database that this package makes.
const prefix = "pawl_test_"

// server is where a process's tests have their databases.
type server struct {
	dsn     string    // of the database in which other databases are created and dropped
	lasting bool      // it outlives the process, so that a kept database can be looked at
	run     string    // the prefix and a random part: what the names of this process's databases begin with
	guard   *pgx.Conn // by which other runs know that this one is alive; nil if nobody shares the server
	stop    func(context.Context) error
	remove  string // the command that removes a kept server; empty if it needs none

	template struct {
		once sync.Once
		name string
		err  error
	}
	count atomic.Int64 // databases made
	kept  atomic.Int64 // databases kept
}

// withDefaults adds the settings that tests want to the given ones, which override them.
func withDefaults(settings map[string]string) map[string]string {
	all := map[string]string{
		"fsync": "off", "full_page_writes": "off", "max_connections": "300", "statement_timeout": statementTimeout,
	}
	maps.Copy(all, settings)
	return all
}

// startServer finds or starts a server. t is only for logging which one was chosen.
func startServer(t testing.TB) (*server, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	keep := os.Getenv(keepEnv) == "1"
	run := prefix + strings.ToLower(rand.Text()[:12])

	if dsn := os.Getenv(urlEnv); dsn != "" {
		t.Logf("dbtest: using the server of %s", urlEnv)
		return joinServer(ctx, dsn, run)
	}

	s, err := startDocker(ctx, keep)
	switch {
	case err == nil:
		t.Logf("dbtest: using a container: %s", s.dsn)
		s.run, s.lasting = run, keep
		return s, nil
	case !errors.Is(err, errNoDocker):
		t.Logf("dbtest: Docker answers, but: %v", err)
	}

	s, err = startLocal(ctx, keep)
	if errors.Is(err, localpg.ErrNotFound) {
		return nil, fmt.Errorf("dbtest: tests need PostgreSQL: set %s to a server where databases can be created, "+
			"or start Docker, or: %w", urlEnv, err)
	}
	if err != nil {
		return nil, fmt.Errorf("dbtest: %w", err)
	}
	t.Logf("dbtest: using a private server: %s", s.dsn)
	s.run, s.lasting = run, keep
	return s, nil
}

// joinServer uses a server that others use too.
func joinServer(ctx context.Context, dsn, run string) (*server, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("dbtest: %s: %w", urlEnv, err)
	}
	// As long as this connection lives, other runs know that this one is alive.
	config.RuntimeParams["application_name"] = run
	guard, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("dbtest: %s: %w", urlEnv, err)
	}
	s := &server{dsn: dsn, run: run, lasting: true, guard: guard, stop: guard.Close}
	s.sweep(ctx)
	return s, nil
}

// startLocal starts a private server.
func startLocal(ctx context.Context, keep bool) (*server, error) {
	config := localpg.Config{Settings: withDefaults(nil), InMemory: true}
	if keep {
		// A temporary folder of localpg's would be removed by a later run.
		dir, err := os.MkdirTemp("", "pawl-kept-")
		if err != nil {
			return nil, err
		}
		config.Dir, config.Detached = dir, true
	}
	pg, err := localpg.Start(ctx, config)
	if err != nil {
		if keep {
			_ = os.RemoveAll(config.Dir)
		}
		return nil, err
	}
	return &server{
		dsn:    pg.DSN(),
		remove: fmt.Sprintf("kill -QUIT %d; sleep 1; rm -rf %s", pg.PID(), pg.Dir()),
		stop: func(ctx context.Context) error {
			err := pg.Stop(ctx)
			if keep {
				err = errors.Join(err, os.RemoveAll(config.Dir))
			}
			return err
		},
	}, nil
}

// close drops what this process made and stops what it started, unless a database was kept.
func (s *server) close(ctx context.Context) error {
	if s.remove != "" && s.lasting && s.kept.Load() > 0 {
		fmt.Fprintf(os.Stderr, "dbtest: the server goes on running; to remove it: %s\n", s.remove)
		return nil
	}
	if s.template.name != "" && s.guard != nil {
		if err := s.drop(ctx, s.template.name); err != nil {
			return err
		}
	}
	if err := s.stop(ctx); err != nil {
		return fmt.Errorf("dbtest: stop the server: %w", err)
	}
	return nil
}

// templateName returns the name of a database that has the schema and nothing else. The first call makes it.
func (s *server) templateName() (string, error) {
	s.template.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startWithin)
		defer cancel()
		name := s.run + "_template"
		if s.template.err = s.exec(ctx, "create database "+quote(name)+" template template0"); s.template.err != nil {
			return
		}
		s.template.name = name
		if err := db.Up(ctx, withDatabase(s.dsn, name)); err != nil {
			s.template.err = fmt.Errorf("dbtest: make the schema: %w", err)
			return
		}
		// A connection to the template would make clones of it fail.
		s.template.err = s.exec(ctx, "alter database "+quote(name)+" allow_connections false")
	})
	return s.template.name, s.template.err
}

// create makes a database, which is dropped or kept when the test ends, and returns its DSN.
func (s *server) create(t testing.TB, template string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), createWithin)
	defer cancel()
	name := fmt.Sprintf("%s_%d", s.run, s.count.Add(1))
	dsn := withDatabase(s.dsn, name)
	err := s.exec(ctx, "create database "+quote(name)+" template "+quote(template),
		"alter database "+quote(name)+" set statement_timeout = '"+statementTimeout+"'")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpWithin)
		defer cancel()
		if t.Failed() {
			s.keep(ctx, t, name, dsn)
			return
		}
		if err := s.drop(ctx, name); err != nil {
			t.Error(err)
		}
	})
	return dsn
}

// keep leaves a failed test's database and says where it is.
func (s *server) keep(ctx context.Context, t testing.TB, name, dsn string) {
	t.Helper()
	if !s.lasting {
		t.Logf("dbtest: the database of this test goes with the process; %s=1 keeps it: %s", keepEnv, dsn)
		return
	}
	s.kept.Add(1)
	// The comment keeps other runs from sweeping it away.
	if err := s.exec(ctx, "comment on database "+quote(name)+" is 'kept for a look at a failed test'"); err != nil {
		t.Log(err)
	}
	t.Logf("dbtest: the database of this test is kept: %s", dsn)
}

// sweep drops the databases that dead runs left on a shared server. One that cannot be dropped belongs to another
// role, or another run is dropping it.
func (s *server) sweep(ctx context.Context) {
	rows, _ := s.guard.Query(ctx, `
		select d.datname
		from pg_database d
		where d.datname ~ '^pawl_test_[a-z0-9]{12}_'
		  and shobj_description(d.oid, 'pg_database') is null
		  and not exists (
		    select from pg_stat_activity a
		    where a.application_name = substring(d.datname from '^pawl_test_[a-z0-9]{12}'))`)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return
	}
	for _, name := range names {
		_ = s.drop(ctx, name)
	}
}

func (s *server) drop(ctx context.Context, name string) error {
	return s.exec(ctx, "drop database if exists "+quote(name)+" with (force)")
}

// exec executes statements, each in a transaction of its own. They have a new connection: create database runs in no
// transaction with other statements, and an old connection would be lost if a test has restarted the server.
func (s *server) exec(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, s.dsn)
	if err != nil {
		return fmt.Errorf("dbtest: %s: %w", statements[0], err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("dbtest: %s: %w", sql, err)
		}
	}
	return nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// withDatabase returns a connection string, a URL or key=value pairs, for another database of the same server.
func withDatabase(dsn, name string) string {
	u, err := url.Parse(dsn)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return dsn + " dbname=" + name // the last one counts
	}
	u.Path = "/" + name
	query := u.Query()
	if query.Has("dbname") || query.Has("database") {
		query.Del("dbname")
		query.Del("database")
		u.RawQuery = query.Encode()
	}
	return u.String()
}
