package dbtest

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Pooler starts a PgBouncer in front of the database of a connection string, and returns the connection string that
// leads through it. mode is "session" or "transaction"; settings are further lines of its configuration. If it pools
// transactions, it has one connection to the server, unless settings say otherwise. It runs until the test ends. If
// PgBouncer is not installed, the test is skipped, as one is that needs another optional program. .ci/setup --more
// installs it.
func Pooler(t testing.TB, dsn, mode string, settings ...string) (through string) {
	t.Helper()
	program := "/usr/sbin/pgbouncer" // Where Debian installs it, which is not in every user's PATH.
	if _, err := os.Stat(program); err != nil {
		if program, err = exec.LookPath("pgbouncer"); err != nil {
			t.Skip("there is no pgbouncer: apt-get install pgbouncer, or brew install pgbouncer")
		}
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pawl-pooler-") // Another user could not enter t.TempDir.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	system := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		// PgBouncer refuses to run as root, so it runs as the owner of the server's socket.
		uid, gid := uint32(0), uint32(0)
		if info, err := os.Stat(config.Host); err == nil {
			stat := info.Sys().(*syscall.Stat_t)
			uid, gid = stat.Uid, stat.Gid
		}
		if uid == 0 {
			nobody, err := user.Lookup("nobody")
			if err != nil {
				t.Skip("there is no user nobody to run PgBouncer as")
			}
			id, _ := strconv.ParseUint(nobody.Uid, 10, 32)
			uid, gid = uint32(id), uint32(id)
		}
		system.Credential = &syscall.Credential{Uid: uid, Gid: gid}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	port := bounded.Port(t)
	quoted := func(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
	server := fmt.Sprintf("%s = host=%s port=%d dbname=%s user=%s",
		config.Database, quoted(config.Host), config.Port, quoted(config.Database), quoted(config.User))
	if config.Password != "" {
		server += " password=" + quoted(config.Password)
	}
	lines := append([]string{
		"[databases]", server,
		"[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + port, "unix_socket_dir =", "auth_type = any",
		"pool_mode = " + mode, "max_client_conn = 200", "default_pool_size = " + map[string]string{"session": "20", "transaction": "1"}[mode],
	}, settings...)
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bounded.Start(t, bounded.Program{Path: program, Args: []string{file}, Dir: dir, System: system, Ready: regexp.MustCompile("process up")})
	return fmt.Sprintf("postgres://%s@127.0.0.1:%s/%s?sslmode=disable", config.User, port, config.Database)
}
