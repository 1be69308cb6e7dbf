package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// atStart lists what is sent when a connection is made. The first line has the settings that poolers
// keep for each client. The second line has startup parameters that are no settings: no statement could
// set them.
var atStart = []string{
	"application_name", "client_encoding", "datestyle", "standard_conforming_strings", "timezone", // settings
	"options", "replication",
}

// Pin sets what the driver depends on: it reads and writes UTF-8, ISO dates and standard strings,
// whatever the URL, the role or the database says.
func Pin(config *pgconn.Config) {
	maps.DeleteFunc(config.RuntimeParams, func(name, _ string) bool {
		return slices.Contains([]string{"client_encoding", "datestyle", "standard_conforming_strings"}, strings.ToLower(name))
	})
	config.RuntimeParams["client_encoding"] = "UTF8"
	config.RuntimeParams["datestyle"] = "ISO, MDY"
	config.RuntimeParams["standard_conforming_strings"] = "on"
}

// Use sets the settings of a pool's connections. Settings in the pool's URL override the given ones,
// except those that Pin sets. A setting that the server does not know is left out. Documents are read without being
// parsed: see readJSON.
func Use(config *pgxpool.Config, settings map[string]string) {
	all := maps.Clone(settings)
	params := config.ConnConfig.RuntimeParams
	for name, value := range params {
		if name := strings.ToLower(name); !slices.Contains(atStart, name) {
			all[name] = value
		}
	}
	maps.DeleteFunc(params, func(name, _ string) bool { return !slices.Contains(atStart, strings.ToLower(name)) })
	for name, value := range all {
		if slices.Contains(atStart, name) {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(params)), func(given string) bool { return strings.EqualFold(given, name) }) {
				params[name] = value
			}
			delete(all, name)
		}
	}
	Pin(&config.ConnConfig.Config)
	watch(&config.ConnConfig.Config)
	timeout := config.ConnConfig.ConnectTimeout
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		readJSON(conn.TypeMap())
		if conn.PgConn().CustomData()[unlimited] == nil {
			return begin(ctx, conn, all, timeout)
		}
		without := maps.Clone(all)
		without["statement_timeout"] = "0"
		return begin(ctx, conn, without, timeout)
	}
}

// An Error says why a connection cannot be used, and what to change.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// begin sets the settings of a new connection or, behind a pooler, notes that each transaction must set
// them. It uses one statement that reads no table, since the first use of a table in a session is slow.
func begin(ctx context.Context, conn *pgx.Conn, settings map[string]string, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	// Behind a pooler, the process that runs the statement has another id than the one that the client got
	// when it connected. Then the settings are local to this statement, so that they do not reach the
	// pooler's other clients.
	behind := fmt.Sprintf("pg_catalog.pg_backend_pid() <> %d", conn.PgConn().PID())
	columns := []string{behind, "pg_catalog.current_setting('default_transaction_isolation')"}
	names := slices.Sorted(maps.Keys(settings))
	for _, name := range names {
		columns = append(columns, fmt.Sprintf("case when pg_catalog.current_setting(%[1]s, true) is not null then pg_catalog.set_config(%[1]s, %[2]s, %[3]s) end",
			quote(name), quote(settings[name]), behind))
	}
	results, err := conn.PgConn().Exec(ctx, "select "+strings.Join(columns, ", ")).ReadAll()
	if err != nil {
		return err
	}
	row := results[0].Rows[0]
	if string(row[0]) == "f" {
		return nil
	}
	if isolation := string(row[1]); isolation != "read committed" {
		return &Error{fmt.Sprintf("the default_transaction_isolation of the role or the database is %q, which cannot be changed "+
			"through a pooler; alter the role: set default_transaction_isolation = 'read committed'", isolation)}
	}
	var calls []string
	for i, name := range names {
		if known := row[2+i] != nil; known && name != "default_transaction_isolation" {
			calls = append(calls, fmt.Sprintf("pg_catalog.set_config(%s, %s, true)", quote(name), quote(settings[name])))
		}
	}
	conn.PgConn().CustomData()[key] = &pooled{
		settings: "select " + strings.Join(calls, ", "), descriptions: map[string]*pgconn.StatementDescription{},
	}
	return nil
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// The keys of a connection's custom data. key has the *pooled of a connection behind a pooler. unlimited is set
// for a connection whose statements have no time limit.
const (
	key       = "pawl.session"
	unlimited = "pawl.session.unlimited"
)

// pooled is what is known of a connection behind a pooler.
type pooled struct {
	// settings is the statement that gives a transaction its settings.
	settings string
	// descriptions has the descriptions of executed statements, by their text. They are the same in
	// every session of the server.
	descriptions map[string]*pgconn.StatementDescription
}

func pooledOf(conn *pgx.Conn) *pooled {
	if conn == nil { // A caller's own implementation of pgx.Tx may have none.
		return nil
	}
	p, _ := conn.PgConn().CustomData()[key].(*pooled)
	return p
}

// IsPooled reports whether a connection leads through a pooler. This is known only for connections of a
// pool that Use was called for, and for those that Connect made.
func IsPooled(conn *pgx.Conn) bool { return pooledOf(conn) != nil }

// Connect makes a connection outside the pool, with the pool's settings. name is its application_name.
// url, if not empty, names the database to use instead of the pool's.
func Connect(ctx context.Context, pool *pgxpool.Pool, name, url string) (*pgx.Conn, error) {
	config := pool.Config()
	if url != "" {
		other, err := pgx.ParseConfig(url)
		if err != nil {
			return nil, err
		}
		other.ConnectTimeout = config.ConnConfig.ConnectTimeout
		Pin(&other.Config)
		config.ConnConfig = other
	}
	config.ConnConfig.RuntimeParams["application_name"] = name
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, err
	}
	return afterConnect(ctx, config, conn)
}

// errAbandoned is why no request to cancel a statement is sent.
var errAbandoned = errors.New("the connection was abandoned, and its statement is not cancelled")

// Uncancelled makes a connection outside the pool whose statements are never cancelled: not by a time limit, since
// it has the pool's settings but for a statement_timeout of 0, and not by the driver. When the context of a call
// ends, the network connection is closed. The server goes on with the statement, and learns that the client has gone
// when it has ended. Conn returns a DBTX for the connection.
//
// It is for commits that must not be seen before a synchronous standby has them. PostgreSQL has committed on this
// server when it begins to wait for the standby, and a commit whose wait is cancelled is seen at once.
func Uncancelled(ctx context.Context, pool *pgxpool.Pool, name string) (*pgx.Conn, error) {
	config := pool.Config()
	config.ConnConfig.RuntimeParams["application_name"] = name
	var made atomic.Pointer[pgconn.PgConn]
	dial := config.ConnConfig.DialFunc
	// Once a connection is made, the driver dials again only to cancel what runs on it, before it closes it.
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if conn := made.Load(); conn != nil {
			return nil, errors.Join(errAbandoned, conn.Conn().Close())
		}
		return dial(ctx, network, address)
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, err
	}
	made.Store(conn.PgConn())
	conn.PgConn().CustomData()[unlimited] = true
	return afterConnect(ctx, config, conn)
}

// afterConnect makes a connection outside a pool ready, as the pool does with its own.
func afterConnect(ctx context.Context, config *pgxpool.Config, conn *pgx.Conn) (*pgx.Conn, error) {
	if config.AfterConnect == nil {
		return conn, nil
	}
	if err := config.AfterConnect(ctx, conn); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(err, conn.Close(closing))
	}
	return conn, nil
}
