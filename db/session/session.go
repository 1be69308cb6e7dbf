package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// atStart are the settings that are sent when a connection is made. Poolers keep them for each client.
// The others in the list are not settings of a session: no statement could set them.
var atStart = []string{
	"application_name", "client_encoding", "datestyle", "standard_conforming_strings", "timezone", // settings
	"options", "replication",
}

// Pin gives a connection the settings without which the driver and the server misunderstand each other:
// the driver reads and writes UTF-8, ISO dates and standard strings, whatever the role or the database
// has set.
func Pin(config *pgconn.Config) {
	maps.DeleteFunc(config.RuntimeParams, func(name, _ string) bool {
		return slices.Contains([]string{"client_encoding", "datestyle", "standard_conforming_strings"}, strings.ToLower(name))
	})
	config.RuntimeParams["client_encoding"] = "UTF8"
	config.RuntimeParams["datestyle"] = "ISO, MDY"
	config.RuntimeParams["standard_conforming_strings"] = "on"
}

// Use gives the connections of a pool their settings. Those of the pool's URL come before the given ones.
// A setting that the server does not know is left out.
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
	timeout := config.ConnConfig.ConnectTimeout
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error { return begin(ctx, conn, all, timeout) }
}

// An Error says why a connection is of no use, and what to change.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// begin gives a new connection its settings, or notes that they must go with each transaction. One flat
// statement does it, and looks at no table: a session's first statement loads what it uses.
func begin(ctx context.Context, conn *pgx.Conn, settings map[string]string, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	// A pooler gives the statement to another process than the one that the connection was told of. Then the
	// settings are those of the statement only, and do not reach the pooler's other clients.
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

// key is where a connection behind a pooler keeps its *pooled.
const key = "pawl.session"

// pooled is what is known of a connection behind a pooler.
type pooled struct {
	// settings is the statement that gives a transaction its settings.
	settings string
	// descriptions are those of statements that were executed, by their text. They hold on any server.
	descriptions map[string]*pgconn.StatementDescription
}

func pooledOf(conn *pgx.Conn) *pooled {
	if conn == nil { // A caller's own kind of transaction need have none.
		return nil
	}
	p, _ := conn.PgConn().CustomData()[key].(*pooled)
	return p
}

// IsPooled reports whether a pooler is on the way of a connection. It is known for a connection of a pool
// that Use was called for, and for one that Connect made.
func IsPooled(conn *pgx.Conn) bool { return pooledOf(conn) != nil }

// Connect makes a connection as those of the pool are, which is not of the pool. name is its
// application_name, and url, if not empty, the database to use instead of the pool's.
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
	if err != nil || config.AfterConnect == nil {
		return conn, err
	}
	if err := config.AfterConnect(ctx, conn); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return nil, errors.Join(err, conn.Close(closing))
	}
	return conn, nil
}
