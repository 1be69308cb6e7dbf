package localpg_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/localpg"
)

// install makes a folder <root>/<version>/bin whose postgres tells the given version.
func install(t *testing.T, root, version string) string {
	t.Helper()
	dir := filepath.Join(root, version, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\necho 'postgres (PostgreSQL) %s (made up)'\n", version)
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindPrefersTheNewest(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PATH", "")
	install(t, root, "9.6.24")
	install(t, root, "15.2")
	newest := install(t, root, "17.1")
	places := []string{filepath.Join(root, "*", "bin")}

	got, err := localpg.FindIn("", places, 0)
	if want := (localpg.Binaries{Dir: newest, Version: "17.1", Major: 17}); err != nil || got != want {
		t.Errorf("find = %+v, %v, want %+v", got, err, want)
	}
	if got, err := localpg.FindIn("", places, 15); err != nil || got.Major != 15 {
		t.Errorf("find for data of 15 = %+v, %v", got, err)
	}
	if got, err := localpg.FindIn("", places, 16); err != nil || got.Major != 17 {
		t.Errorf("find for data of 16, which is not there = %+v, %v", got, err)
	}
}

func TestFindPrefersPath(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mine := install(t, root, "16.3")
	links := t.TempDir()
	if err := os.Symlink(filepath.Join(mine, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	install(t, other, "17.1")

	for _, path := range []string{mine, links} {
		t.Setenv("PATH", path)
		got, err := localpg.FindIn("", []string{filepath.Join(other, "*", "bin")}, 0)
		if err != nil || got.Dir != mine {
			t.Errorf("find with PATH=%s = %+v, %v, want %s", path, got, err, mine)
		}
	}
}

// One major version is found wherever it is, and no other is taken for it.
func TestFindMajor(t *testing.T) {
	root, own := t.TempDir(), t.TempDir()
	t.Setenv("PATH", "")
	for major := localpg.OldestMajor; major <= localpg.NewestMajor; major++ {
		t.Setenv(localpg.MajorEnv(major), "") // make test-matrix sets it.
	}
	packaged := install(t, root, "15.2")
	t.Setenv(localpg.BinEnv, install(t, own, "17.1"))
	named := install(t, own, "18.4")
	t.Setenv(localpg.MajorEnv(18), named)
	t.Setenv(localpg.MajorEnv(19), named)
	places := []string{filepath.Join(root, "*", "bin")}

	for major, want := range map[int]string{15: packaged, 16: "", 17: filepath.Join(own, "17.1", "bin"), 18: named, 19: ""} {
		got, err := localpg.FindMajorIn(major, places)
		if got.Dir != want {
			t.Errorf("find %d = %+v, %v, want %q", major, got, err, want)
		}
		if env := localpg.MajorEnv(major); want == "" && (!errors.Is(err, localpg.ErrNotFound) || !strings.Contains(err.Error(), env)) {
			t.Errorf("find %d fails with %v, which should name %s", major, err, env)
		}
	}
}

func TestFindObeysOverride(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PATH", install(t, root, "17.1"))
	beta := install(t, root, "19beta1")

	got, err := localpg.FindIn(beta, nil, 0)
	if want := (localpg.Binaries{Dir: beta, Version: "19beta1", Major: 19}); err != nil || got != want {
		t.Errorf("find = %+v, %v, want %+v", got, err, want)
	}
	// A wrong override is a mistake to be told, not a reason to run something else.
	if got, err := localpg.FindIn(root, nil, 0); !errors.Is(err, localpg.ErrNotFound) || !strings.Contains(err.Error(), localpg.BinEnv) {
		t.Errorf("find with a wrong override = %+v, %v", got, err)
	}
}

func TestFindRefusesOldVersions(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PATH", "")
	old := install(t, root, "14.11")
	for _, override := range []string{"", old} {
		_, err := localpg.FindIn(override, []string{filepath.Join(root, "*", "bin")}, 0)
		if !errors.Is(err, localpg.ErrNotFound) {
			t.Fatalf("find = %v, want ErrNotFound", err)
		}
		for _, part := range []string{"14.11", "15 or newer", old} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the message %q does not say %q", err, part)
			}
		}
	}
}

func TestNotFoundSaysHowToGetOne(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := localpg.FindIn("", nil, 0)
	if !errors.Is(err, localpg.ErrNotFound) {
		t.Fatalf("find = %v, want ErrNotFound", err)
	}
	for _, part := range []string{"apt install postgresql", "dnf install", "brew install", "PAWL_PG_BIN", "DATABASE_URL"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the message %q does not say %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the message is longer than a line: %q", err)
	}
}

func TestPathOfOtherPrograms(t *testing.T) {
	root := t.TempDir()
	b := localpg.Binaries{Dir: install(t, root, "17.1")}
	if got, err := b.Path("initdb"); err != nil || got != filepath.Join(b.Dir, "initdb") {
		t.Errorf("Path(initdb) = %q, %v", got, err)
	}
	if got, err := b.Path("sh"); err != nil || filepath.Base(got) != "sh" {
		t.Errorf("Path(sh) = %q, %v, want the one in PATH", got, err)
	}
	if got, err := b.Path("no-such-program"); err == nil {
		t.Errorf("Path(no-such-program) = %q", got)
	}
}
