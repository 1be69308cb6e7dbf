package main_test

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// TestQuickStart runs the commands of the README's quick start, without those that install and start the
// program.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the quick start needs curl")
	}
	script := slices.DeleteFunc(readmeScripts(t, "Quick start"), func(block string) bool { return strings.Contains(block, "make ") })
	if len(script) != 3 {
		t.Fatalf("the quick start has %d blocks to run, want 3", len(script))
	}
	p := start(t, nil, "dev", "--database-url", dbtest.NewDSN(t))
	text := strings.NewReplacer("http://127.0.0.1:8080", p.url, "bin/pawl", program).Replace(strings.Join(script, "\n"))
	cmd := exec.CommandContext(t.Context(), "sh", "-eu")
	cmd.Dir, cmd.Stdin = "../..", strings.NewReader(text)
	cmd.Env = append(os.Environ(), "PAWL_SERVER="+p.url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	statuses := regexp.MustCompile(`HTTP/1.1 \d+`).FindAllString(string(out), -1)
	if !slices.Equal(statuses, []string{"HTTP/1.1 201", "HTTP/1.1 200", "HTTP/1.1 200"}) {
		t.Errorf("statuses %v: %s", statuses, out)
	}
	for _, want := range []string{`"state":"PAID"`, `"kind":"created"`, "document-processing: version 1 registered", "order-7"} {
		if want != "order-7" && !strings.Contains(string(out), want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}

// readmeScripts returns the shell blocks of a section of the README.
func readmeScripts(t *testing.T, section string) (blocks []string) {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(readme), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// TestPipeline runs the commands of the README's pipeline up to the service, which runs already.
func TestPipeline(t *testing.T) {
	t.Parallel()
	goose := os.Getenv("PAWL_GOOSE")
	if goose == "" {
		t.Skip("PAWL_GOOSE does not name the goose binary; make test builds it and sets it")
	}
	blocks := readmeScripts(t, "Workflows in a pipeline")
	if len(blocks) != 1 {
		t.Fatalf("the section has %d blocks, want 1", len(blocks))
	}
	script, _, found := strings.Cut(blocks[0], "pawl serve\n")
	if !found {
		t.Fatal("the pipeline starts no service")
	}
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)

	dir, bin := t.TempDir(), t.TempDir()
	definition, err := os.ReadFile(flight)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(program, filepath.Join(bin, "pawl")), os.Symlink(goose, filepath.Join(bin, "goose")),
		os.Mkdir(filepath.Join(dir, "workflows"), 0o700), os.Mkdir(filepath.Join(dir, "migrations"), 0o700),
		os.WriteFile(filepath.Join(dir, "workflows", "flight-booking.yaml"), bytes.Replace(definition, []byte("after: 30m"), []byte("after: 40m"), 1), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-eu")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(script)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "PAWL_SERVER="+p.url, "DATABASE_URL="+dsn)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if a := mustSend(t, http.StatusOK, http.MethodGet, p.url+"/v1/workflows/flight-booking", ""); a.member("version") != 2.0 {
		t.Errorf("after the pipeline the workflow is %s", a.body)
	}
}
