// Package schema holds the source of the database schema: SQL in modules, one folder each.
//
// A module's folder has these files, which are loaded in this order, module by module:
//
//	tables.sql      the module's opening comment, schemas, domains, tables, indexes, types, views
//	private.sql     the functions of schema pawl_private; of a module with many, by what they do, in private_<part>.sql, too
//	<function>.sql  one function of schema pawl each, with its header
//	grants.sql      what each kind of role may execute and read, as data
//
// A module may use what modules before it define, and nothing of later ones. The migrations in
// db/migrations are generated from here: see [Up] and internal/migration. A test in package db
// compares the schema that the source makes with the schema that the migrations make.
//
// It imports nothing of pawl.
package schema

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed */*.sql
var files embed.FS

// place returns the place of a file in the load order of its module. It is negative for what is before the public functions,
// positive for what is after them.
func place(file string) int {
	switch base := path.Base(file); {
	case base == "tables.sql":
		return -2
	case base == "private.sql" || strings.HasPrefix(base, "private_"):
		return -1
	case base == "grants.sql":
		return 1
	}
	return 0
}

// Files returns the paths of the source files, in load order.
func Files() []string {
	paths, err := fs.Glob(files, "*/*.sql")
	if err != nil {
		panic(err) // The pattern is constant.
	}
	slices.SortFunc(paths, func(a, b string) int {
		if c := strings.Compare(path.Dir(a), path.Dir(b)); c != 0 {
			return c
		}
		if c := place(a) - place(b); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	return paths
}

// Text returns the content of a source file.
func Text(file string) string {
	text, err := files.ReadFile(file)
	if err != nil {
		panic(err) // The caller has the path from Files.
	}
	return string(text)
}

// Closing is the statement that every migration ends with. PostgreSQL lets everybody execute a new
// function; this takes that privilege away. `pawl migrate grants` gives a role what it needs.
const Closing = "revoke execute on all functions in schema pawl, pawl_private from public;\n"

// Down is the SQL that drops the whole schema, with all data. It keeps goose's version table, since goose writes
// there afterwards that the initial migration was reverted.
const Down = `drop schema pawl_private cascade;
alter schema pawl rename to pawl_private;
create schema pawl;
alter table if exists pawl_private.goose_db_version set schema pawl;
drop schema pawl_private cascade;
`

// version matches the number in the source of pawl.schema_version.
var version = regexp.MustCompile(`as \$\$ select (\d+) \$\$;`)

// Version returns what pawl.schema_version returns: the number of the latest migration.
func Version() int {
	n, err := strconv.Atoi(version.FindStringSubmatch(Text("00_core/schema_version.sql"))[1])
	if err != nil {
		panic(err) // The file is part of the binary.
	}
	return n
}

// Source returns the whole source as SQL that makes the schema in an empty database.
func Source() string {
	var b strings.Builder
	for _, file := range Files() {
		b.WriteString(Text(file))
		b.WriteString("\n")
	}
	return b.String() + Closing
}

// Up returns the initial migration, which makes the schema in an empty database, as a goose file.
func Up() string {
	var b strings.Builder
	b.WriteString("-- Generated from db/schema by `make generate`: edit the source there.\n\n")
	var up strings.Builder
	for _, file := range Files() {
		fmt.Fprintf(&up, "-- %s\n\n%s\n", file, Annotate(Text(file)))
	}
	b.WriteString(Migration(up.String()+Closing, Down))
	return b.String()
}

// lockTimeout begins both sections of a migration. A statement that waits for a lock on a table holds up all that come
// after it; so the migration gives up, and is run again.
const lockTimeout = "set local lock_timeout = '5s';\n"

// Migration returns a goose file with an Up and a Down section. psql knows no sections, so the Down section is
// written as a block comment: psql runs only the Up section. goose must run the Down section all the same. With
// ENVSUB it replaces ${PAWL:0:0} by an empty text, whatever the variable holds. What is left is the end of the
// comment, so to goose the comment ends where it begins. Therefore down must not contain the beginning or the end
// of a comment: see [Commentable].
func Migration(up, down string) string {
	return fmt.Sprintf(`-- +goose Up
%[1]s
%[2]s
-- +goose Down
-- +goose ENVSUB ON
/* To all but goose the rest is a comment. *${PAWL:0:0}/
-- +goose ENVSUB OFF
%[1]s%[3]s-- */
`, lockTimeout, up, down)
}

// Commentable reports whether a text may be the Down section of a [Migration].
func Commentable(down string) bool {
	return !strings.Contains(down, "/*") && !strings.Contains(down, "*/")
}

// A Function is the source of one function.
type Function struct {
	File string // The path of its file, as Files returns it.
	Text string // The comment above its statement, and the statement.
}

// function matches a create function statement and the comment above it. Its groups are the comment and
// the function's name with its schema.
var function = regexp.MustCompile(`(?m)((?:^--.*\n)*)^create (?:or replace )?function ([\w.]+)\([\s\S]*?\$\$;\n`)

// Functions returns the source of each function, by its name with its schema. No two functions
// share a name.
func Functions() (map[string]Function, error) {
	all := map[string]Function{}
	for _, file := range Files() {
		for _, m := range function.FindAllStringSubmatch(Text(file), -1) {
			if other, twice := all[m[2]]; twice {
				return nil, fmt.Errorf("%s: %s is in %s, too", file, m[2], other.File)
			}
			all[m[2]] = Function{File: file, Text: m[0]}
		}
	}
	return all, nil
}

// Annotate marks the functions in a text for goose, which splits all that is not marked at
// semicolons.
func Annotate(text string) string {
	return function.ReplaceAllStringFunc(text, func(f string) string {
		head := len(function.FindStringSubmatch(f)[1])
		return f[:head] + "-- +goose StatementBegin\n" + f[head:] + "-- +goose StatementEnd\n"
	})
}

// grant matches a row of a grants.sql: a privilege and a function.
var grant = regexp.MustCompile(`\('(\w+)', '([\w.]+)'\)`)

// readable matches a row of a grants.sql: a privilege, a table or view, and its columns.
var readable = regexp.MustCompile(`\('(\w+)', '([\w.]+)', (?:null|'\{([\w,]+)\}')\)`)

// A Relation is a table or a view that a role may read.
type Relation struct {
	Name    string   // With its schema.
	Columns []string // Nil for all.
}

// Privileges is what roles with a privilege may do.
type Privileges struct {
	Functions []string   // They may execute these.
	Relations []Relation // They may read these.
}

// Grants returns what each privilege may do, in load order.
func Grants() map[string]Privileges {
	all := map[string]Privileges{}
	for _, file := range Files() {
		if path.Base(file) != "grants.sql" {
			continue
		}
		for _, m := range grant.FindAllStringSubmatch(Text(file), -1) {
			p := all[m[1]]
			p.Functions = append(p.Functions, m[2])
			all[m[1]] = p
		}
		for _, m := range readable.FindAllStringSubmatch(Text(file), -1) {
			r := Relation{Name: m[2]}
			if m[3] != "" {
				r.Columns = strings.Split(m[3], ",")
			}
			p := all[m[1]]
			p.Relations = append(p.Relations, r)
			all[m[1]] = p
		}
	}
	return all
}

// Joined returns what several privileges may do together, each once.
func Joined(privileges ...string) (all Privileges) {
	grants := Grants()
	columns := map[string][]string{}
	for _, p := range privileges {
		for _, f := range grants[p].Functions {
			if !slices.Contains(all.Functions, f) {
				all.Functions = append(all.Functions, f)
			}
		}
		for _, r := range grants[p].Relations {
			known, seen := columns[r.Name]
			switch {
			case !seen:
				columns[r.Name] = r.Columns
				all.Relations = append(all.Relations, r)
			case r.Columns == nil || known == nil:
				columns[r.Name] = nil
			default:
				columns[r.Name] = append(slices.Clone(known), r.Columns...)
			}
		}
	}
	for i, r := range all.Relations {
		all.Relations[i].Columns = columns[r.Name]
	}
	return all
}
