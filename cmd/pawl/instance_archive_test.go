package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// archiveLines parses an archive. Unless it is whole, its last line may be incomplete.
func archiveLines(t testing.TB, text string, whole bool) (list []map[string]any) {
	t.Helper()
	for line := range strings.SplitAfterSeq(text, "\n") {
		if line == "" || !whole && !strings.HasSuffix(line, "\n") {
			continue
		}
		var m map[string]any
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&m); err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, m)
	}
	return list
}

// asObject decodes an answer of the API. Numbers keep their digits.
func asObject(t testing.TB, a answer) (m map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(a.body))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

// ended makes n instances that ended a year and a day ago, whose keys have expired.
func ended(t testing.TB, conn *pgx.Conn, n int) {
	t.Helper()
	bounded.Exec(t, conn, `
		do $$ declare v pawl.instance; begin
			for i in 1 .. `+fmt.Sprint(n)+` loop
				v := pawl.create_one('flight-booking', '{"flight_id": "LH <&>", "price": 9007199254740993}', 'create' || i, p_business_key => 'booking ' || i);
				v := pawl.fire_one(v.id, 'cancel', '{"n": 1.50}', 'cancel' || i, p_correlation_id => 'c');
			end loop;
		end $$`)
	longAgo(t, conn)
}

// longAgo moves the instances, their ids and their histories a year and a day into the past.
func longAgo(t testing.TB, conn *pgx.Conn) {
	t.Helper()
	for _, sql := range []string{
		"update pawl.idempotency_key set expires_at = pawl.now()",
		`create temporary table moved as
			select id, pawl_private.uuid_v7(created_at - interval '366 days') as moved from pawl.instance`,
		"update pawl.history h set instance_id = m.moved, at = at - interval '366 days' from moved m where m.id = h.instance_id",
		"update pawl.idempotency_key k set instance_id = m.moved from moved m where m.id = k.instance_id",
		`update pawl.instance i
			set id = m.moved, created_at = created_at - interval '366 days', state_changed_at = state_changed_at - interval '366 days'
			from moved m where m.id = i.id`,
	} {
		bounded.Exec(t, conn, sql)
	}
}

// instancesLeft returns the ids of the instances in the database.
func instancesLeft(t testing.TB, conn *pgx.Conn) (ids map[string]bool) {
	t.Helper()
	ids = map[string]bool{}
	for _, id := range bounded.Column[string](t, conn, "select id::text from pawl.instance") {
		ids[id] = true
	}
	return ids
}

// An archive holds what the API shows. With --purge, an instance goes only after its line is written, and
// not while a key replays it.
func TestInstanceArchive(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn := dialDSN(t, dsn)
	service := serviceRole(t, dsn)
	env := []string{"DATABASE_URL=" + service}
	// The workers of the service purge nothing, since this workflow has no retention.
	p := start(t, env, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	ended(t, conn, 12)
	bounded.Exec(t, conn, "update pawl.idempotency_key set expires_at = pawl.now() + interval '1 day' where key = 'cancel7'")
	mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "alive")

	// The lines are what the API shows.
	out, stderr, code := pawl(t, env, "instance", "archive", "--older-than", "365d", "--tenant", "default", "--workflow", "flight-booking")
	lines := archiveLines(t, out, true)
	if code != 0 || len(lines) != 12 || stderr != "12 instances written\n" {
		t.Fatalf("exit code %d, %d lines: %s", code, len(lines), stderr)
	}
	for _, line := range lines {
		url := fmt.Sprint(p.url, "/v1/instances/", line["id"])
		want := asObject(t, mustSend(t, http.StatusOK, http.MethodGet, url, ""))
		want["tenant_id"] = "default"
		want["history"] = asObject(t, mustSend(t, http.StatusOK, http.MethodGet, url+"/history", ""))["items"]
		if diff := cmp.Diff(want, line); diff != "" {
			t.Errorf("(-API +archive):\n%s", diff)
		}
	}
	for args, want := range map[string]int{"--older-than 367d": 0, "--older-than 1d --limit 5": 5, "--older-than 1d --workflow other": 0, "--older-than 1d --tenant other": 0} {
		if got := archiveLines(t, mustPawl(t, env, append([]string{"instance", "archive"}, strings.Fields(args)...)...), true); len(got) != want {
			t.Errorf("%s: %d lines, want %d", args, len(got), want)
		}
	}
	if n := len(instancesLeft(t, conn)); n != 13 {
		t.Errorf("%d instances are left", n)
	}

	// Nothing is purged that could not be written.
	file := filepath.Join(t.TempDir(), "archive.jsonl")
	if err := os.WriteFile(file, []byte("precious\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"instance", "archive", "--older-than", "365d", "--purge", "--output", file}
	wantLine(t, env, 1, []string{"the role lacks", "pawl migrate grants"}, args...)
	role, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	mustPawl(t, []string{"DATABASE_URL=" + dsn}, "migrate", "grants", "--role", role.User.Username(), "--privilege", "operator", "--tenant", "*", "--apply")
	if _, stderr, code := pawl(t, env, args...); code != 1 || !strings.Contains(stderr, "file exists") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0); err == nil {
		cmd := bounded.Command(t, program, args[:5]...)
		cmd.Env, cmd.Stdout = append(os.Environ(), env...), full
		if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("with a full disk: %v", err)
		}
		_ = full.Close()
	}
	if n := len(instancesLeft(t, conn)); n != 13 {
		t.Errorf("%d instances are left", n)
	}

	// One instance stays, since a key still replays it.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = pawl(t, env, args...)
	if want := "12 instances written, 11 purged; 1 stay"; code != 0 || !strings.HasPrefix(stderr, want) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil || string(text) != out {
		t.Errorf("%v: the file has\n%s\nwant\n%s", err, text, out)
	}
	if n := len(instancesLeft(t, conn)); n != 2 {
		t.Errorf("%d instances are left", n)
	}
	a := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, `{"context": {"flight_id": "x", "price": 1}, "business_key": "booking 1"}`,
		"Idempotency-Key", "create1")
	if a.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("the key of a purged instance replays %s", a.body)
	}

	for _, args := range [][]string{{}, {"--older-than", "soon"}, {"--older-than", "0d"}, {"--older-than", "1d", "--limit", "-1"}} {
		if _, stderr, code := pawl(t, env, append([]string{"instance", "archive"}, args...)...); code != 2 {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if _, stderr, code := pawl(t, nil, "instance", "archive", "--older-than", "1d", "--database-url", "postgres://127.0.0.1:1/x"); code != 1 || stderr == "" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// If the command is killed, nothing is lost: each instance is in the file or in the database.
func TestArchiveIsKilled(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn := dialDSN(t, dsn)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve", "--no-workers")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	ended(t, conn, 3000)
	all := instancesLeft(t, conn)
	file := filepath.Join(t.TempDir(), "archive.jsonl")
	archive := bounded.Start(t, bounded.Program{Path: program, Args: []string{
		"instance", "archive", "--older-than", "365d", "--purge", "--output", file, "--database-url", dsn,
	}})
	bounded.UntilSQL(t, conn, "select count(*) < $1 from pawl.instance", len(all))
	archive.Kill(t)
	// Wait until the server has ended its last statement.
	bounded.UntilSQL(t, conn, `select count(*) = 0 from pg_stat_activity
		where datname = current_database() and state <> 'idle' and query like '%purge_archived%' and pid <> pg_backend_pid()`)
	left := instancesLeft(t, conn)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{}
	for _, line := range archiveLines(t, string(text), false) {
		written[line["id"].(string)] = true
	}
	if len(left) == len(all) || len(left) == 0 {
		t.Fatalf("%d of %d are left: it was not killed in the middle", len(left), len(all))
	}
	for id := range all {
		if !left[id] && !written[id] {
			t.Errorf("%s is lost", id)
		}
	}
}
