package localpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// OldestMajor and NewestMajor are the oldest and the newest PostgreSQL that pawl is tested with. It also runs on newer
// ones, and refuses older ones.
const (
	OldestMajor = 15
	NewestMajor = 18
)

// BinEnv is the environment variable that overrides the search. It names a folder with postgres and initdb.
const BinEnv = "PAWL_PG_BIN"

// MajorEnv returns the environment variable that names the folder of one major version, for [FindMajor].
func MajorEnv(major int) string { return BinEnv + "_" + strconv.Itoa(major) }

// ErrNotFound says that this machine has no PostgreSQL server that pawl can run. The error that wraps it says in
// one line how to get one.
var ErrNotFound = errors.New("no usable PostgreSQL server on this machine")

// howToGet ends every not-found message.
const howToGet = "install one (Debian, Ubuntu: apt install postgresql; Fedora: dnf install postgresql-server; " +
	"macOS: brew install postgresql@18), name its bin folder in " + BinEnv +
	", or set DATABASE_URL to a server that is already running"

// places are the folders that packagers use. PATH comes before them, since it is the user's own choice.
var places = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // RHEL, Fedora with the PGDG packages
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
	"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// Binaries is one installed PostgreSQL.
type Binaries struct {
	Dir     string // the bin folder
	Version string // as the server prints it, for example "15.18" or "19beta1"
	Major   int    // for example 15
}

// Path returns the file of a program that belongs to the server, such as psql or pgbench. If it is not in the
// server's folder it is looked up in PATH, since some packagers ship the clients apart from the server.
func (b Binaries) Path(name string) (string, error) {
	if file := filepath.Join(b.Dir, name); b.Dir != "" && executable(file) {
		return file, nil
	}
	file, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("localpg: find %s: %w", name, err)
	}
	return file, nil
}

// Find returns the PostgreSQL that [Start] would use: the one in PAWL_PG_BIN if that is set, else the one in
// PATH, else the newest of those that packagers install elsewhere. It must be PostgreSQL 15 or newer.
// The error wraps [ErrNotFound].
func Find() (Binaries, error) {
	return find(os.Getenv(BinEnv), places, 0)
}

// FindMajor returns the PostgreSQL of one major version: the one in PAWL_PG_BIN_<major> if that is set, else the one
// that PAWL_PG_BIN, PATH or a packager has, in this order. The error wraps [ErrNotFound].
func FindMajor(major int) (Binaries, error) {
	return findMajor(major, places)
}

func findMajor(major int, places []string) (Binaries, error) {
	env := MajorEnv(major)
	if dir := os.Getenv(env); dir != "" {
		b, err := inspect(dir)
		if err == nil && b.Major != major {
			err = fmt.Errorf("the server there is PostgreSQL %s", b.Version)
		}
		if err != nil {
			return Binaries{}, fmt.Errorf("localpg: %w: %s=%s: %w", ErrNotFound, env, dir, err)
		}
		return b, nil
	}
	found := installed(places)
	if dir := os.Getenv(BinEnv); dir != "" {
		if b, err := inspect(dir); err == nil {
			found = slices.Insert(found, 0, b)
		}
	}
	i := slices.IndexFunc(found, func(b Binaries) bool { return b.Major == major })
	if i < 0 {
		return Binaries{}, fmt.Errorf("localpg: %w: there is no PostgreSQL %d: install it, or name its bin folder in %s",
			ErrNotFound, major, env)
	}
	return found[i], nil
}

// find looks for a server. One of the given major version is preferred to all others; 0 prefers none.
func find(override string, places []string, major int) (Binaries, error) {
	if override != "" {
		b, err := inspect(override)
		if err != nil {
			return Binaries{}, fmt.Errorf("localpg: %w: %s=%s: %w", ErrNotFound, BinEnv, override, err)
		}
		if b.Major < OldestMajor {
			return Binaries{}, tooOld(b)
		}
		return b, nil
	}

	found := installed(places)
	if len(found) == 0 {
		return Binaries{}, fmt.Errorf("localpg: %w: %s", ErrNotFound, howToGet)
	}
	usable := slices.DeleteFunc(slices.Clone(found), func(b Binaries) bool { return b.Major < OldestMajor })
	if len(usable) == 0 {
		newest := slices.MaxFunc(found, func(a, b Binaries) int { return cmp.Compare(a.Major, b.Major) })
		return Binaries{}, tooOld(newest)
	}
	if i := slices.IndexFunc(usable, func(b Binaries) bool { return b.Major == major }); i >= 0 {
		return usable[i], nil
	}
	return usable[0], nil
}

// installed returns the servers in PATH, and after them those of packagers, the newest first. A folder without a working
// server is passed over.
func installed(places []string) (found []Binaries) {
	for _, dir := range fromPath() {
		if b, err := inspect(dir); err == nil {
			found = append(found, b)
		}
	}
	fromPackages := len(found)
	for _, place := range places {
		dirs, _ := filepath.Glob(place) // the only error is a malformed pattern
		for _, dir := range dirs {
			if b, err := inspect(dir); err == nil {
				found = append(found, b)
			}
		}
	}
	slices.SortStableFunc(found[fromPackages:], func(a, b Binaries) int { return cmp.Compare(b.Major, a.Major) })
	return found
}

func tooOld(b Binaries) error {
	return fmt.Errorf("localpg: %w: the one in %s is PostgreSQL %s, and pawl needs %d or newer: %s",
		ErrNotFound, b.Dir, b.Version, OldestMajor, howToGet)
}

// fromPath returns the folder in which PATH has postgres. If that is a link, the folder of its target comes first:
// it has all the programs, and packagers make links to some of them only.
func fromPath() []string {
	file, err := exec.LookPath("postgres")
	if err != nil {
		return nil
	}
	dirs := []string{filepath.Dir(file)}
	if target, err := filepath.EvalSymlinks(file); err == nil && filepath.Dir(target) != dirs[0] {
		dirs = []string{filepath.Dir(target), dirs[0]}
	}
	return dirs
}

// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 19beta1".
var versionLine = regexp.MustCompile(`^postgres \(PostgreSQL\) (([0-9]+)\S*)`)

// inspect returns the server in a folder.
func inspect(dir string) (Binaries, error) {
	for _, name := range []string{"postgres", "initdb"} {
		if !executable(filepath.Join(dir, name)) {
			return Binaries{}, fmt.Errorf("the folder has no program %s", name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("ask postgres for its version: %w", err)
	}
	match := versionLine.FindSubmatch(out)
	if match == nil {
		return Binaries{}, fmt.Errorf("postgres tells a version that is not understood: %q", out)
	}
	major, err := strconv.Atoi(string(match[2]))
	if err != nil {
		return Binaries{}, fmt.Errorf("read the version of postgres: %w", err)
	}
	return Binaries{Dir: dir, Version: string(match[1]), Major: major}, nil
}

func executable(file string) bool {
	info, err := os.Stat(file)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}
