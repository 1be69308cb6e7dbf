package main

import (
	"errors"
	"fmt"
	"strings"
	"text/template"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
)

// workflowMigration prints a schema migration that registers a definition.
type workflowMigration struct {
	File    string `arg:"" type:"existingfile" help:"File with a definition in YAML or JSON."`
	Against string `type:"secret" placeholder:"URL" help:"A database. If the definition is the latest version of its workflow there, the migration does nothing."`
	schemasFlag
	confirmFlag
}

// Help is printed below the help of the command.
func (w *workflowMigration) Help() string {
	return "Goose runs the migration up and down. psql runs it up, any number of times: to psql the Down section is a comment. " +
		"Up registers the definition as the next version of its workflow, unless it is the latest version already. Down " +
		"retires that version, if a migration registered it, and fails if an instance uses it."
}

// noMigration is printed if the database has the definition already.
const noMigration = `-- %[1]s: version %[2]d is this definition already, so there is nothing to do.

-- +goose Up
select 1;

-- +goose Down
select 1;
`

// migration is the migration that registers a definition.
//
// psql knows no sections, and would run Down after Up. So Down is within a block comment. Only to goose is
// the comment closed at once: with ENVSUB it expands ${PAWL:0:0} to an empty text, whatever the variable
// holds, and that leaves the end of the comment. No text in the section may close the comment or open
// another.
var migration = template.Must(template.New("").Parse(`-- Registers the workflow {{.Name}}. Printed by pawl workflow migration.
-- Run again it changes nothing, as long as this is the latest version.

-- +goose Up

-- +goose StatementBegin
do {{.Body}}
declare
  v_registered record;
begin
  select * into v_registered from pawl.register_workflow(
    p_actor => 'migration',{{if .Version}}
    p_version => {{.Version}},{{end}}{{if .Confirm}}
    p_confirm => '{{.Confirm}}',{{end}}
    p_definition => {{.Tag}}{{.Definition}}{{.Tag}}
  );
  raise notice 'workflow {{.Name}}: version %, %', v_registered.version,
    case when v_registered.created then 'registered' else 'unchanged' end;
end
{{.Body}};
-- +goose StatementEnd

-- +goose Down
-- +goose ENVSUB ON
-- +goose StatementBegin
/* To all but goose the rest is a comment. *${PAWL:0:0}/
-- +goose ENVSUB OFF
do {{.Body}}
begin
  for v_try in 1..20 loop
    begin
      perform pawl.retire_workflow(w.name, w.checksum, w.version)
      from (
        select l.name, l.checksum, l.version
        from pawl.workflow l
        where l.name = '{{.Name}}' and l.created_by = 'migration' and l.definition = {{.Tag}}{{.Commented}}{{.Tag}}
        order by l.version desc
        limit 1
      ) w;
      exit;
    exception when lock_not_available or deadlock_detected then
      if v_try = 20 then
        raise;
      end if;
      perform pg_sleep(v_try * 0.05);
    end;
  end loop;
end
{{.Body}};
-- +goose StatementEnd
-- */
`))

func (w *workflowMigration) Run(c *console) error {
	_, model, err := readDefinitionWith(w.File, schemasIn(w.Schemas))
	if err != nil {
		c.printFaults(w.File, err)
		return errReported
	}
	if missing := model.Missing(); len(missing) > 0 {
		return fmt.Errorf("%s refers to %s: name the folder that has these schemas by --schemas, since a migration brings them with it",
			w.File, strings.Join(missing, ", "))
	}
	if w.Against != "" {
		latest, found, err := w.latest(c, model.Name)
		if err != nil {
			return err
		}
		if found {
			registered, err := latest.Model()
			if err != nil {
				return err
			}
			if len(definition.Diff(registered, model)) == 0 {
				c.printf(noMigration, latest.Name, latest.Version)
				return nil
			}
		}
	}
	return printMigration(c, model, w.Confirm)
}

// latest reads the latest version of a workflow from the database.
func (w *workflowMigration) latest(c *console, name string) (latest lifecycle.Workflow, found bool, err error) {
	pool, err := openDatabase(c, w.Against, db.Config{MaxConns: 1}, db.Reader)
	if err != nil {
		return latest, false, err
	}
	defer pool.Close()
	service := fsm.New(pool, fsm.Config{})
	defer service.Close()
	latest, err = lifecycle.New(service).GetWorkflow(c, name, 0)
	if errors.Is(err, fsm.WorkflowNotFound) {
		return latest, false, nil
	}
	return latest, err == nil, err
}

// printMigration prints the migration of a definition. confirm is what it may lose.
func printMigration(c *console, model *definition.Definition, confirm string) error {
	canonical, err := model.MarshalJSON()
	if err != nil {
		return err
	}
	// A definition with a line for each member can be reviewed. No line of it begins with the dashes that
	// goose looks for.
	definition := jsontext.Value(canonical)
	if err := definition.Format(jsontext.Multiline(true), jsontext.WithIndent("  ")); err != nil {
		return err
	}
	text := string(definition)
	return migration.Execute(c.out, map[string]any{
		"Name": model.Name, "Version": model.Version, "Confirm": confirm, "Definition": text,
		// JSON has slashes only within strings, where they may be escaped.
		"Commented": strings.ReplaceAll(text, "/", `\u002f`),
		"Tag":       dollarTag("json", text), "Body": dollarTag("pawl", text),
	})
}

// dollarTag returns a dollar quote that does not occur in the text.
func dollarTag(name, text string) string {
	tag := "$" + name + "$"
	for i := 1; strings.Contains(text, tag); i++ {
		tag = fmt.Sprintf("$%s%d$", name, i)
	}
	return tag
}
