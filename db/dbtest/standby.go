package dbtest

import (
	"fmt"
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

// Synchronous makes the commits of a server wait for the standby of a name, which may be away. An empty name ends that.
func Synchronous(t testing.TB, primary *localpg.Server, name string) {
	t.Helper()
	on(t, primary, func(conn *pgx.Conn) {
		bounded.Exec(t, conn, fmt.Sprintf("alter system set synchronous_standby_names = '%s'", name))
		bounded.Exec(t, conn, "select pg_reload_conf()")
		bounded.UntilSQL(t, conn, "select current_setting('synchronous_standby_names') = $1", name)
		// Commits wait from the time on when the checkpointer too has read the setting. If the standby is not away,
		// that cannot be seen.
		seen := name == "" || bounded.Value[bool](t, conn, "select exists (select from pg_stat_replication where application_name = $1)", name)
		bounded.True(t, "commits to wait for the standby", func() bool { return seen || waits(t, primary, conn) })
	})
}

// waits reports whether a commit waits for a standby that is away. It ends that wait.
func waits(t testing.TB, primary *localpg.Server, conn *pgx.Conn) (waits bool) {
	t.Helper()
	on(t, primary, func(probe *pgx.Conn) {
		committed := make(chan error, 1)
		ctx := bounded.Context(t)
		go func() {
			_, err := probe.Exec(ctx, "select pg_logical_emit_message(true, 'dbtest', '')")
			committed <- err
		}()
		bounded.True(t, "a commit to wait or to end", func() bool {
			waits = bounded.Value[bool](t, conn, `select coalesce(bool_or(pg_cancel_backend(pid)), false)
				from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'`, int32(probe.PgConn().PID()))
			return waits || len(committed) > 0
		})
		if err := bounded.Receive(t, "the commit", committed); err != nil {
			t.Fatal(err)
		}
	})
	return waits
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
