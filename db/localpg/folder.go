package localpg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Temporary folders are called tempPrefix + pid + "-" + a random part.
const tempPrefix = "pawl-pg-"

// memoryDir is where Linux has a file system in memory that everybody may use.
const memoryDir = "/dev/shm"

// openFolder makes the folder if it is missing, and returns its real path. Other users may enter the folders that it
// makes, since a server that root starts runs as another user.
func openFolder(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("localpg: data folder: %w", err)
	}
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("localpg: data folder: %w", err)
	}
	for _, d := range made {
		// With a umask of 077, which root often has, MkdirAll has closed them to other users.
		if err := os.Chmod(d, 0o755); err != nil {
			return "", fmt.Errorf("localpg: data folder: %w", err)
		}
	}
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("localpg: data folder: %w", err)
	}
	return dir, checkOurs(dir)
}

// checkOurs returns an error if the folder is used for something else. It changes nothing there.
func checkOurs(home string) error {
	entries, err := os.ReadDir(home)
	if err != nil {
		return fmt.Errorf("localpg: data folder: %w", err)
	}
	known := []string{"data", "run", "lock", "server.log", "server.log.1", "lost+found", ".DS_Store"}
	for _, entry := range entries {
		if !slices.Contains(known, entry.Name()) && !strings.HasPrefix(entry.Name(), "init-") {
			return fmt.Errorf("localpg: %s is in use for something else (it holds %s): choose an empty folder",
				home, entry.Name())
		}
	}
	return nil
}

// makeTemp makes a temporary folder that the server's user can reach.
func makeTemp(inMemory bool) (string, error) {
	base := os.TempDir()
	if inMemory && roomInMemory() {
		base = memoryDir
	} else if a, err := systemAccount(); err == nil && os.Geteuid() == 0 {
		// Some systems have a TMPDIR that only root can enter, such as those with pam_namespace.
		if _, closed := a.firstClosed(base); closed {
			base = "/tmp"
		}
	}
	dir, err := os.MkdirTemp(base, tempPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("localpg: temporary data folder: %w", err)
	}
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("localpg: temporary data folder: %w", err)
	}
	return dir, nil
}

// takeLock makes this process the owner of the folder, until the file is closed or the process ends.
func takeLock(home string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(home, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("localpg: lock the data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("localpg: %s is in use by process %s: stop it, or choose another folder",
				home, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("localpg: lock %s: %w", f.Name(), err)
	}
	// The process id is only for the message above. The lock says that there is an owner.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// dataMajor returns the major version that made the data, as PostgreSQL writes it; "" if there is no data.
func dataMajor(home string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(home, "data", "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("localpg: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// makeData runs initdb, or pg_basebackup if there is a primary, in a folder of its own. This becomes the data folder
// when the program has succeeded.
func makeData(ctx context.Context, bin Binaries, home string, a *account, temporary bool, primary *Server, name string) error {
	leftovers, _ := filepath.Glob(filepath.Join(home, "init-*")) // the only error is a malformed pattern
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("localpg: remove what a cut-short start left: %w", err)
		}
	}
	work, err := os.MkdirTemp(home, "init-")
	if err != nil {
		return fmt.Errorf("localpg: make a database: %w", err)
	}
	if err := a.chown(work); err != nil {
		return err
	}

	// Connections by the socket are trusted: only this user may enter its folder.
	program, args := "initdb", []string{
		"--pgdata", work, "--username", superuser, "--encoding", "UTF8", "--locale", "C",
		"--auth-local", "trust", "--auth-host", "scram-sha-256", "--no-instructions",
	}
	if primary != nil {
		program, args = "pg_basebackup", []string{
			"--pgdata", work, "--dbname", primary.dsn + "&application_name=" + url.QueryEscape(name), "--write-recovery-conf",
			"--checkpoint", "fast",
		}
	}
	if temporary {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin.Dir, program), args...)
	cmd.Env = environ()
	a.become(cmd, home)
	cmd.SysProcAttr.Setsid = true
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.RemoveAll(work)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("localpg: %s: %w: %s", program, err, complaint(out))
	}
	if err := os.Rename(work, filepath.Join(home, "data")); err != nil {
		return fmt.Errorf("localpg: make a database: %w", err)
	}
	if temporary {
		return nil
	}
	return syncDir(home)
}

// syncDir makes the rename durable: the program has synced its own files only.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("localpg: make a database: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("localpg: make a database: %w", err)
	}
	return nil
}

// maxSocketPath leaves room for the terminating zero in the smallest sun_path, that of macOS (104 bytes).
const maxSocketPath = 103

// plainPath matches a path that needs no escaping in unix_socket_directories, in the DSN and in a shell.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9/._@+-]+$`)

// makeSocketDir makes the 0700 folder for the socket: <home>/run, or shortDir if the path there would be too long or
// not plain. It removes what an earlier run left in it, which nobody uses: the caller holds the lock.
func makeSocketDir(home, port string, a *account) (string, error) {
	dir := filepath.Join(home, "run")
	if socket := filepath.Join(dir, ".s.PGSQL."+port); len(socket) > maxSocketPath || !plainPath.MatchString(socket) {
		dir = shortDir(home)
	}
	if err := os.RemoveAll(dir); err != nil && strings.HasPrefix(dir, home) {
		return "", fmt.Errorf("localpg: socket folder: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		// Another user of the machine has a folder of this name in /tmp. Any other name will do.
		dir, err = os.MkdirTemp("/tmp", "pawl-")
	}
	if err != nil {
		return "", fmt.Errorf("localpg: socket folder: %w", err)
	}
	return dir, a.chown(dir)
}

// shortDir returns the folder for the socket of a data folder whose own path does not fit. It depends on nothing but
// that path, so that the DSN stays the same over restarts, and a sweep knows what to remove.
func shortDir(home string) string {
	sum := sha256.Sum256([]byte(home))
	return filepath.Join("/tmp", "pawl-"+hex.EncodeToString(sum[:6]))
}

// openLog makes a new server.log and keeps the one before. With O_EXCL it follows no link: the folder may belong to
// another user, who must not make root write somewhere else.
func openLog(home string) (*os.File, error) {
	name := filepath.Join(home, "server.log")
	if err := os.Rename(name, name+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	return f, nil
}

// complaint returns the line of a program's output that says what went wrong: the last one that the server or initdb
// marks as an error, else the last one that is not empty.
func complaint(out []byte) string {
	var last, marked string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		last = line
		if strings.Contains(line, "FATAL:") || strings.Contains(line, "PANIC:") || strings.Contains(line, " error: ") {
			marked = line
		}
	}
	if marked != "" {
		return marked
	}
	return last
}

// sweep removes temporary folders whose process is gone, and stops a server that still runs in one. What it cannot
// remove belongs to another user, or is left to the next sweep.
func sweep(ctx context.Context) {
	bases := []string{os.TempDir(), "/tmp", memoryDir}
	slices.Sort(bases)
	for _, base := range slices.Compact(bases) {
		dirs, _ := filepath.Glob(filepath.Join(base, tempPrefix+"*-*")) // the only error is a malformed pattern
		for _, dir := range dirs {
			sweepOne(ctx, dir)
		}
	}
}

func sweepOne(ctx context.Context, dir string) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil || !mayBeOurs(dir) {
		return
	}
	pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), tempPrefix), "-")
	// A live process may have made the folder and not have locked it yet. If the id of a dead process is in use
	// again, the folder is left to a later sweep.
	if n, err := strconv.Atoi(pid); err != nil || alive(n) {
		return
	}
	// A process of another pid namespace that shares this /tmp is known to be alive by its lock.
	lock, err := takeLock(dir)
	if err != nil {
		return
	}
	defer func() { _ = lock.Close() }()
	if err := stopOrphan(ctx, dir); err != nil {
		return
	}
	_ = os.RemoveAll(shortDir(dir))
	_ = os.RemoveAll(dir)
}

// mayBeOurs reports whether a process of this user may have made a folder. In a folder that another user made, root
// must not do anything.
func mayBeOurs(dir string) bool {
	uid, err := ownerOf(dir)
	if err != nil {
		return false
	}
	if int(uid) == os.Geteuid() {
		return true
	}
	a, err := systemAccount()
	return os.Geteuid() == 0 && err == nil && uid == a.uid
}
