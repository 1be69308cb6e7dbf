package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The migrations, and what a delta is made of, stop no database that is in use. What would is refused.
func TestSquawk(t *testing.T) {
	t.Parallel()
	squawk := os.Getenv("PAWL_SQUAWK")
	if squawk == "" {
		t.Skip("PAWL_SQUAWK does not name the squawk binary; make lint installs it and sets it")
	}
	dir := t.TempDir()
	want := map[string][]string{} // By file, the rules that it breaks.
	add := func(name, text string, rules ...string) {
		t.Helper()
		file := filepath.Join(dir, name+".sql")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		want[file] = rules
	}
	migrations, err := filepath.Glob("../../" + folder + "/*.sql")
	if err != nil || len(migrations) == 0 {
		t.Fatalf("%d migrations: %v", len(migrations), err)
	}
	for _, file := range migrations {
		want[file] = nil
	}
	add("delta", deltaOfAll(t))

	for name, c := range map[string]struct {
		sql   string
		rules []string
	}{
		"index on a table in use":    {"create index instance_x on pawl.instance (state);", []string{"require-concurrent-index-creation"}},
		"index dropped":              {"drop index pawl.instance_x;", []string{"require-concurrent-index-deletion"}},
		"concurrent in transaction":  {"create index concurrently if not exists instance_x on pawl.instance (state);", []string{"ban-concurrent-index-creation-in-transaction"}},
		"index on a new table":       {"create table pawl.x (id bigint primary key, y text not null); create index x_y on pawl.x (y);", nil},
		"column without default":     {"alter table pawl.instance add column x integer not null;", []string{"adding-required-field"}},
		"column with constant":       {"alter table pawl.instance add column x integer not null default 0;", nil},
		"column with function":       {"alter table pawl.instance add column x uuid default gen_random_uuid();", []string{"adding-field-with-default"}},
		"generated column":           {"alter table pawl.instance add column x bigint generated always as (version) stored;", []string{"adding-field-with-default"}},
		"other type":                 {"alter table pawl.instance alter column version type bigint;", []string{"changing-column-type"}},
		"not null":                   {"alter table pawl.instance alter column actor set not null;", []string{"adding-not-nullable-field"}},
		"check":                      {"alter table pawl.instance add constraint x check (version > 0);", []string{"constraint-missing-not-valid"}},
		"check not valid":            {"alter table pawl.instance add constraint x check (version > 0) not valid;", nil},
		"check validated afterwards": {"alter table pawl.instance validate constraint x;", nil},
		"check validated at once": {
			"alter table pawl.instance add constraint x check (version > 0) not valid; alter table pawl.instance validate constraint x;",
			[]string{"constraint-missing-not-valid"},
		},
		"foreign key": {
			"alter table pawl.instance add constraint x foreign key (workflow) references pawl.workflow (name);",
			[]string{"adding-foreign-key-constraint", "constraint-missing-not-valid"},
		},
		"unique": {
			"alter table pawl.instance add constraint x unique (state);",
			[]string{"constraint-missing-not-valid", "disallowed-unique-constraint"},
		},
		"domain":         {"alter domain pawl.tenant_id add constraint x check (value <> '');", []string{"ban-alter-domain-with-add-constraint"}},
		"renamed column": {"alter table pawl.instance rename column state to x;", []string{"renaming-column"}},
		"dropped column": {"alter table pawl.instance drop column state;", []string{"ban-drop-column"}},
		"no SQL":         {"alter tabel pawl.instance;", []string{"syntax-error"}},
	} {
		add(name, schema.Migration(c.sql+"\n", ""), c.rules...)
	}
	add("no lock timeout", "alter table pawl.instance add column x integer;", "require-lock-timeout")

	files := make([]string, 0, len(want))
	for file := range want {
		files = append(files, file)
	}
	cmd := bounded.Command(t, squawk, append([]string{"--config", "../../.squawk.toml", "--reporter", "json"}, files...)...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, _ := cmd.Output() // The bad ones make it fail.
	var found []struct {
		File, Message string
		Rule          string `json:"rule_name"`
	}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s %s", err, out, &complaints)
	}
	got := map[string][]string{}
	for _, f := range found {
		if !slices.Contains(got[f.File], f.Rule) {
			got[f.File] = append(got[f.File], f.Rule)
		}
		if want[f.File] == nil {
			t.Errorf("%s: %s: %s", f.File, f.Rule, f.Message)
		}
	}
	for file, rules := range want {
		slices.Sort(got[file])
		if diff := cmp.Diff(rules, got[file]); diff != "" {
			t.Errorf("%s breaks other rules than those expected:\n%s", filepath.Base(file), diff)
		}
	}
}

// deltaOfAll returns a delta that replaces, adds and removes functions.
func deltaOfAll(t *testing.T) string {
	t.Helper()
	conn, err := pgx.Connect(bounded.Context(t), dbtest.NewDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	source := mustFunctions(t, conn)
	bounded.Exec(t, conn, `
		create or replace function pawl_private.is_decision(p_code text) returns boolean
		language sql immutable as 'select true';
		drop function pawl.purge_keys;
		create function pawl.purge_keys(p_limit bigint) returns integer language sql as 'select 1';
		create function pawl.gone() returns integer language sql as 'select 1;'`)
	text, err := delta(mustFunctions(t, conn), source)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
