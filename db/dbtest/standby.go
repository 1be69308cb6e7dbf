package dbtest

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Standby starts a standby of a server that Private has started, and returns when it follows that server. name is how
// synchronous_standby_names calls it. It has the primary's settings, which the given ones override. Its data is copied
// by pg_basebackup; where the primary's folder of programs has none, the test is skipped.
func Standby(t testing.TB, primary *localpg.Server, name string, settings map[string]string) *localpg.Server {
	t.Helper()
	if _, err := os.Stat(filepath.Join(primary.Binaries().Dir, "pg_basebackup")); err != nil {
		t.Skipf("dbtest: this test needs a standby: %v", err)
	}
	s := start(t, localpg.Config{Primary: primary, Name: name, Binaries: primary.Binaries(), Settings: settings})
	on(t, primary, func(conn *pgx.Conn) {
		bounded.UntilSQL(t, conn, "select exists (select from pg_stat_replication where application_name = $1 and state = 'streaming')", name)
	})
	return s
}

// Promote makes a standby the primary of its own, and returns when it takes writes.
func Promote(t testing.TB, standby *localpg.Server) {
	t.Helper()
	on(t, standby, func(conn *pgx.Conn) { bounded.UntilSQL(t, conn, "select pg_promote(true, 60)") })
}

// AnyOf returns the connection string that names several servers. A client tries them in this order.
func AnyOf(t testing.TB, servers ...*localpg.Server) string {
	t.Helper()
	var hosts, ports []string
	for _, s := range servers {
		u, err := url.Parse(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		hosts, ports = append(hosts, u.Query().Get("host")), append(ports, u.Query().Get("port"))
	}
	u, _, _ := strings.Cut(servers[0].DSN(), "?")
	return u + "?host=" + strings.Join(hosts, ",") + "&port=" + strings.Join(ports, ",")
}

// on makes a connection to a server for a function.
func on(t testing.TB, s *localpg.Server, f func(*pgx.Conn)) {
	t.Helper()
	conn, err := pgx.Connect(bounded.Context(t), s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	f(conn)
}
