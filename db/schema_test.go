package db_test

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

var update = flag.Bool("update", false, "write the schema dump instead of comparing it")

const dumpFile = "schema.sql"

// TestSchemaDump keeps the dump true: it shows a reviewer what a migration changes.
func TestSchemaDump(t *testing.T) {
	t.Parallel()
	got := dump(t, dbtest.NewDSN(t))
	if *update {
		if err := os.WriteFile(dumpFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(dumpFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is out of date; run: go test ./db -run '^TestSchemaDump$' -update\n%s", dumpFile, diff)
	}
}

// What the dump does not show could change unseen, so a schema made from it must be the same.
func TestSchemaDumpIsComplete(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(dumpFile)
	if err != nil {
		t.Fatal(err)
	}
	dsn := dbtest.Empty(t)
	conn := dial(t, dsn)
	bounded.Exec(t, conn, string(text))
	if diff := cmp.Diff(string(text), dump(t, dsn)); diff != "" {
		t.Errorf("the schema that %s makes is another:\n%s", dumpFile, diff)
	}
	// Enough of it works for a schema to be the same in what counts.
	bounded.Exec(t, conn, "insert into pawl.setting default values")
	dbtest.Tenants(t, conn, "default")
	register(t, conn, door)
	bounded.Exec(t, conn, `select pawl.fire_one((pawl.create_one('door')).id, 'open')`)
}

// The migrations must make what the source says. A function that is changed in one of them only, a
// table that a delta forgets, and a row of data that differs are seen here.
func TestMigrationsMakeTheSource(t *testing.T) {
	t.Parallel()
	migrated, source := dbtest.NewDSN(t), dbtest.Empty(t)
	bounded.Exec(t, dial(t, source), schema.Source())
	if diff := cmp.Diff(dump(t, source), dump(t, migrated)); diff != "" {
		t.Errorf("db/migrations make another schema than db/schema; run: make generate, or make migration NAME=…\n%s", diff)
	}
	const data = `
		select format('%s', c) from pawl_private.condition c
		union all select format('%s', p) from pawl_private.privilege p
		union all select format('%s', to_jsonb(s) - '{cursor_secret,access_version}'::text[]) from pawl.setting s
		order by 1`
	if diff := cmp.Diff(bounded.Column[string](t, dial(t, source), data), bounded.Column[string](t, dial(t, migrated), data)); diff != "" {
		t.Errorf("db/migrations store other rows than db/schema:\n%s", diff)
	}
}

// The test above is worth something only if it sees a function that was changed in one of the two.
func TestDumpShowsAChangedFunction(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	before := dump(t, dsn)
	bounded.Exec(t, dial(t, dsn), `create or replace function pawl_private.is_decision(p_code text) returns boolean
		language sql immutable parallel safe as $$ select p_code in ('applied') $$`)
	if dump(t, dsn) == before {
		t.Error("the dump does not show that a private function has changed")
	}
}

func TestMigrationsThereAndBack(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	conn := dial(t, dsn)
	up := func() string {
		t.Helper()
		if err := db.Up(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		return dump(t, dsn)
	}

	before := everything(t, conn)
	first := up()
	status := statusOf(t, dsn, true)
	if second := up(); second != first {
		t.Errorf("a second Up changed something:\n%s", cmp.Diff(first, second))
	}
	if diff := cmp.Diff(status, statusOf(t, dsn, true)); diff != "" {
		t.Errorf("a second Up applied something:\n%s", diff)
	}
	// What is stored goes with the tables, and is no hindrance.
	register(t, conn, flight)
	bounded.Exec(t, conn, `select pawl.create_one('flight-booking')`)
	for range status {
		if err := db.Down(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
	}
	statusOf(t, dsn, false)
	if diff := cmp.Diff(before, everything(t, conn)); diff != "" {
		t.Errorf("Down left something behind:\n%s", diff)
	}
	if third := up(); third != first {
		t.Errorf("Up after Down makes another schema:\n%s", cmp.Diff(first, third))
	}
}

// Each step down and up again gives the same schema, so that the latest can be taken back alone.
func TestEachMigrationThereAndBack(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	want := dump(t, dsn)
	for steps := range statusOf(t, dsn, true) {
		for range steps + 1 {
			if err := db.Down(t.Context(), dsn); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Up(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		if got := dump(t, dsn); got != want {
			t.Errorf("after %d down and up again:\n%s", steps+1, cmp.Diff(want, got))
		}
	}
}

// statusOf fails the test unless all migrations are applied, or none.
func statusOf(t *testing.T, dsn string, applied bool) []db.Migration {
	t.Helper()
	status, err := db.Status(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.Glob(db.Migrations(), "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	if len(status) != len(files) {
		t.Fatalf("%d migrations in %d files", len(status), len(files))
	}
	for i, m := range status {
		if m.Version != int64(i+1) || m.File != files[i] || m.AppliedAt.IsZero() == applied {
			t.Errorf("migration %d is %+v, want the file %s, applied: %v", i+1, m, files[i], applied)
		}
		if age := time.Since(m.AppliedAt); applied && (age < -time.Hour || age > time.Hour) {
			t.Errorf("%s was applied at %v", m.File, m.AppliedAt)
		}
	}
	return status
}

func TestMigrationsAtOnce(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	var group errgroup.Group
	for range 2 {
		group.Go(func() error { return db.Up(t.Context(), dsn) })
	}
	if err := bounded.Result(t, "both migrations", group.Wait); err != nil {
		t.Fatal(err)
	}
	statusOf(t, dsn, true)
}

func TestSet(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dsn := dbtest.DSN(pool)
	ttl, slides, limit := 90*time.Minute, true, 1000
	set := func(s db.Settings) {
		t.Helper()
		if err := db.Set(t.Context(), dsn, s); err != nil {
			t.Fatal(err)
		}
	}
	set(db.Settings{IdempotencyTTL: &ttl, IdempotencyTTLSlides: &slides, PayloadLimit: &limit, PlanCacheMode: "auto"})
	set(db.Settings{ContextLimit: &limit}) // leaves the others
	largest := db.MaxDocument
	set(db.Settings{ContextLimit: &largest, PayloadLimit: &largest})
	larger := largest + 1
	for _, s := range []db.Settings{{ContextLimit: &larger}, {PayloadLimit: &larger}} {
		if err := db.Set(t.Context(), dsn, s); err == nil || !strings.Contains(err.Error(), "must be at most 1032192") {
			t.Errorf("a limit that no request can reach: %v", err)
		}
	}
	for _, column := range []string{"context_limit", "payload_limit"} {
		_, err := pool.Exec(t.Context(), "update pawl.setting set "+column+" = $1", larger)
		if e := wantCode(t, err, "23514"); e.ConstraintName != "setting_documents_fit_into_a_body" {
			t.Errorf("%s: %v", column, err)
		}
	}
	set(db.Settings{ContextLimit: &limit, PayloadLimit: &limit})
	const settings = `
		select format('%s %s %s %s %s %s', idempotency_ttl, idempotency_ttl_slides, context_limit, payload_limit,
			definition_limit, state_limit)
		from pawl.setting`
	const want = "01:30:00 t 1000 1000 1048576 500"
	if got := bounded.Value[string](t, pool, settings); got != want {
		t.Errorf("settings = %s, want %s", got, want)
	}
	modes := func() []string {
		return bounded.Column[string](t, pool, `
			select distinct c from pg_proc p cross join unnest(p.proconfig) c
			where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and c like 'plan_cache_mode=%'`)
	}
	if diff := cmp.Diff([]string{"plan_cache_mode=auto"}, modes()); diff != "" {
		t.Error(diff)
	}

	// One that cannot be set leaves all as they are.
	other := 5
	if err := db.Set(t.Context(), dsn, db.Settings{StateLimit: &other, PlanCacheMode: "fast"}); err == nil {
		t.Error("an unknown plan cache mode was set")
	}
	negative := -time.Second
	err := db.Set(t.Context(), dsn, db.Settings{IdempotencyTTL: &negative, PlanCacheMode: "force_custom_plan"})
	wantCode(t, err, "23514")
	if got := bounded.Value[string](t, pool, settings); got != want {
		t.Errorf("settings = %s, want %s", got, want)
	}
	if diff := cmp.Diff([]string{"plan_cache_mode=auto"}, modes()); diff != "" {
		t.Error(diff)
	}
}

func dial(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// everything lists what a database holds beside what every database and goose's own table hold.
func everything(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	return bounded.Column[string](t, conn, `
		select pg_describe_object(o.classid, o.objid, 0) from (
			select 'pg_class'::regclass as classid, oid as objid, relnamespace as schema from pg_class
			union all select 'pg_proc'::regclass, oid, pronamespace from pg_proc
			union all select 'pg_type'::regclass, oid, typnamespace from pg_type
			union all select 'pg_namespace'::regclass, oid, oid from pg_namespace
		) o
		join pg_namespace n on n.oid = o.schema
		where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_t%'
			and pg_describe_object(o.classid, o.objid, 0) not like '%goose_db_version%'
		order by 1`)
}

// dumps are the parts of a dump, each a query for statements. They are written from the catalogs, so that
// neither pg_dump nor the server's version matters: a NOT NULL is a column's, though PostgreSQL 18 makes it a
// constraint too.
var dumps = []string{
	`select format(E'create schema %I;\ncomment on schema %1$I is %2$L;', n.nspname, obj_description(n.oid, 'pg_namespace'))
		from pg_namespace n
		where n.nspname in ('pawl', 'pawl_private')
		order by n.nspname`,
	`select format('create domain %s as %s%s%s;', t.oid::regtype, format_type(t.typbasetype, t.typtypmod),
			case when t.typcollation <> b.typcollation then format(' collate %I', l.collname) end,
			(
				select string_agg(format(E'\n  constraint %I %s', k.conname, pg_get_constraintdef(k.oid)), '' order by k.conname collate "C")
				from pg_constraint k
				where k.contypid = t.oid and k.contype <> 'n'
			))
			|| coalesce(format(E'\ncomment on domain %s is %L;', t.oid::regtype, obj_description(t.oid, 'pg_type')), '')
		from pg_type t
		join pg_type b on b.oid = t.typbasetype
		left join pg_collation l on l.oid = t.typcollation
		where t.typnamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and t.typtype = 'd'
		order by t.typname collate "C"`,
	`select format(E'create table %s (\n%s\n)%s;', c.oid::regclass, concat_ws(E',\n',
			(
				select string_agg(
					format('  %I %s', a.attname, format_type(a.atttypid, a.atttypmod))
					|| coalesce((
						select format(' collate %I', l.collname)
						from pg_collation l, pg_type t
						where l.oid = a.attcollation and t.oid = a.atttypid and t.typcollation <> a.attcollation), '')
					|| case when a.attnotnull then ' not null' else '' end
					|| case a.attidentity when 'a' then ' generated always as identity' when 'd' then ' generated by default as identity' else '' end
					|| coalesce(
						case a.attgenerated when 's' then ' generated always as (' || pg_get_expr(d.adbin, d.adrelid) || ') stored'
						else ' default ' || pg_get_expr(d.adbin, d.adrelid) end, ''),
					E',\n' order by a.attnum)
				from pg_attribute a
				left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
				where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
			),
			(
				select string_agg(format('  constraint %I %s', k.conname, pg_get_constraintdef(k.oid)), E',\n'
					order by position(k.contype::text in 'puxc'), k.conname collate "C")
				from pg_constraint k
				where k.conrelid = c.oid and k.contype not in ('n', 'f') and k.convalidated
			)),
			' with (' || array_to_string(c.reloptions, ', ') || ')')
			|| coalesce((
				select string_agg(format(E'\n%s;', pg_get_indexdef(i.indexrelid)), '' order by r.relname collate "C")
				from pg_index i
				join pg_class r on r.oid = i.indexrelid
				where i.indrelid = c.oid
					and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
			), '')
			|| coalesce((
				select string_agg(case e.objsubid
					when 0 then format(E'\ncomment on table %s is %L;', c.oid::regclass, e.description)
					else format(E'\ncomment on column %s.%I is %L;', c.oid::regclass, a.attname, e.description)
				end, '' order by e.objsubid)
				from pg_description e
				left join pg_attribute a on a.attrelid = e.objoid and a.attnum = e.objsubid and e.objsubid > 0
				where e.objoid = c.oid and e.classoid = 'pg_class'::regclass
			), '')
		from pg_class c
		where c.relnamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and c.relkind in ('r', 'p')
			and c.relname <> 'goose_db_version'
		order by c.relnamespace::regnamespace::text, c.relname collate "C"`,
	`select format(E'create type %s as (\n%s\n);', c.oid::regclass, (
				select string_agg(format('  %I %s', a.attname, format_type(a.atttypid, a.atttypmod)), E',\n' order by a.attnum)
				from pg_attribute a
				where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
			))
		from pg_class c
		where c.relnamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and c.relkind = 'c'
		order by c.relnamespace::regnamespace::text, c.relname collate "C"`,
	// PostgreSQL 18 leaves out the name of a view's only table, where older ones write it before each column.
	`select format(E'create view %s as\n%s', c.oid::regclass,
			regexp_replace(pg_get_viewdef(c.oid), case when pg_get_viewdef(c.oid) ~ 'JOIN' then '^$' else '\m[a-z]\.' end, '', 'g'))
		from pg_class c
		where c.relnamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and c.relkind = 'v'
		order by c.relnamespace::regnamespace::text, c.relname collate "C"`,
	`select format(E'create function %s(%s) returns %s\nlanguage %s %s', p.oid::regproc, pg_get_function_arguments(p.oid),
			pg_get_function_result(p.oid), l.lanname, concat_ws(' ',
				case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
				case p.proparallel when 's' then 'parallel safe' when 'r' then 'parallel restricted' end,
				case when p.proisstrict then 'strict' end,
				case when p.prosecdef then 'security definer' end))
			|| coalesce((
				select string_agg(
					format(E'\nset %s = ', split_part(s, '=', 1))
					|| case when s like 'search_path=%' then split_part(s, '=', 2) else quote_literal(split_part(s, '=', 2)) end,
					'' order by s collate "C")
				from unnest(p.proconfig) s
			), '')
			|| format(E'\nas $$%s$$;', p.prosrc)
			|| case when not exists (
				select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x where x.grantee = 0
			) then format(E'\nrevoke execute on function %s from public;', p.oid::regprocedure) else '' end
		from pg_proc p
		join pg_language l on l.oid = p.prolang
		where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace)
		order by p.pronamespace::regnamespace::text, p.proname collate "C", pg_get_function_identity_arguments(p.oid) collate "C"`,
	// Like pg_dump's, these come last: they may call functions or name other tables.
	`select format('alter table %s add constraint %I %s;', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
		from pg_constraint k
		where k.connamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and (k.contype = 'f' or not k.convalidated)
		order by k.conrelid::regclass::text, k.conname collate "C"`,
	`select format('%s;', pg_get_triggerdef(g.oid))
		from pg_trigger g
		join pg_class c on c.oid = g.tgrelid
		where c.relnamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and not g.tgisinternal
		order by g.tgrelid::regclass::text, g.tgname collate "C"`,
}

// dump writes the schema as SQL that makes it.
func dump(t testing.TB, dsn string) string {
	t.Helper()
	conn := dial(t, dsn)
	// With it names are written in full.
	bounded.Exec(t, conn, "set search_path = pg_catalog")
	var b strings.Builder
	b.WriteString("-- What the migrations add up to, as go test ./db -run '^TestSchemaDump$' -update writes it.\n\n" +
		"set check_function_bodies = off;\n")
	for _, sql := range dumps {
		for _, statement := range bounded.Column[string](t, conn, sql) {
			fmt.Fprintf(&b, "\n%s\n", statement)
		}
	}
	return b.String()
}
