package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/schema"
)

// migrateCommand is `pawl migrate`.
type migrateCommand struct {
	Up     migrateUp     `cmd:"" help:"Apply all pending migrations, and change settings."`
	Down   migrateDown   `cmd:"" help:"Revert the latest migration: drop what it made, with all data in it."`
	Status migrateStatus `cmd:"" help:"List the migrations, and when each was applied."`
	Print  migratePrint  `cmd:"" help:"Print the migrations for psql, or write them as files for goose and psql."`
	Grants migrateGrants `cmd:"" help:"Print or apply the least privileges of a role."`
	Set    migrateSet    `cmd:"" help:"Change the settings that all replicas and SQL callers of a database share."`
}

// settingFlags are the flags of up and set. A setting without its flag stays as it is.
type settingFlags struct {
	IdempotencyTTL       *time.Duration `placeholder:"DURATION" env:"PAWL_IDEMPOTENCY_TTL" help:"How long an idempotency key is kept; 24h in a new database."`
	IdempotencyTTLSlides *bool          `negatable:"" env:"PAWL_IDEMPOTENCY_TTL_SLIDES" help:"Start that time anew at each replay."`
	ContextLimit         *int           `placeholder:"BYTES" env:"PAWL_CONTEXT_LIMIT" help:"Largest context in bytes, up to 1032192; 65536 in a new database."`
	PayloadLimit         *int           `placeholder:"BYTES" env:"PAWL_PAYLOAD_LIMIT" help:"Largest payload in bytes, up to 1032192; 65536 in a new database."`
	DefinitionLimit      *int           `placeholder:"BYTES" env:"PAWL_DEFINITION_LIMIT" help:"Largest definition in bytes; 1048576 in a new database."`
	StateLimit           *int           `placeholder:"N" env:"PAWL_STATE_LIMIT" help:"Largest number of states of a definition; 500 in a new database."`
	PlanCacheMode        string         `enum:",auto,force_generic_plan,force_custom_plan" default:"" env:"PAWL_PLAN_CACHE_MODE" help:"plan_cache_mode of the engine's functions; force_generic_plan in a new database. A distributed Postgres needs auto."`
}

func (s settingFlags) settings() db.Settings {
	return db.Settings{
		IdempotencyTTL: s.IdempotencyTTL, IdempotencyTTLSlides: s.IdempotencyTTLSlides, ContextLimit: s.ContextLimit,
		PayloadLimit: s.PayloadLimit, DefinitionLimit: s.DefinitionLimit, StateLimit: s.StateLimit,
		PlanCacheMode: s.PlanCacheMode,
	}
}

// migrateUp applies the pending migrations, and then the settings that are given.
type migrateUp struct {
	ownerFlags
	settingFlags
	Adopt bool `help:"If another tool has applied the migrations: first note the schema's version in pawl.goose_db_version, then go on."`
}

func (m *migrateUp) Run(c *console) error {
	if err := m.settings().Check(); err != nil {
		return err
	}
	if m.Adopt {
		if err := db.Adopt(c, m.DatabaseURL); err != nil {
			return asOwner(err)
		}
		c.printf("adopted the schema\n")
	}
	files, err := db.Apply(c, m.DatabaseURL)
	for _, file := range files {
		c.printf("applied %s\n", file)
	}
	if err != nil {
		return asOwner(err)
	}
	if len(files) == 0 {
		c.printf("nothing to apply: the schema is at version %d\n", schema.Version())
	}
	return asOwner(db.Set(c, m.DatabaseURL, m.settings()))
}

// migrateDown reverts the latest migration.
type migrateDown struct {
	ownerFlags
	Yes bool `help:"Do not ask."`
}

func (m *migrateDown) Run(c *console) error {
	loss, err := db.LossOfDown(c, m.DatabaseURL)
	if err != nil {
		return asOwner(err)
	}
	if loss.Migration == "" {
		return errors.New("no migration is applied, so there is nothing to revert")
	}
	what := "what only it made is dropped, in a database"
	if loss.Everything {
		what = "all data is dropped, from a database"
	}
	what = fmt.Sprintf("reverting %s: %s with %d workflows, %d instances and %d rows of history",
		loss.Migration, what, loss.Workflows, loss.Instances, loss.Steps)
	if file, ok := c.in.(*os.File); !m.Yes && (!ok || !isatty.IsTerminal(file.Fd())) {
		return fmt.Errorf("%s: give --yes to do so", what)
	}
	c.printf("%s\n", what)
	if !m.Yes {
		if err := confirm(c); err != nil {
			return err
		}
	}
	if err := db.Down(c, m.DatabaseURL); err != nil {
		return asOwner(err)
	}
	c.printf("reverted %s\n", loss.Migration)
	return nil
}

// confirm asks on the terminal whether to go on. It fails if the answer is not yes.
func confirm(c *console) error {
	c.printf("Type yes to go on: ")
	answer, err := bufio.NewReader(c.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was reverted")
	}
	return nil
}

// migrateStatus lists the migrations.
type migrateStatus struct{ ownerFlags }

func (m *migrateStatus) Run(c *console) error {
	list, err := db.Status(c, m.DatabaseURL)
	for _, migration := range list {
		at := "pending"
		if !migration.AppliedAt.IsZero() {
			at = migration.AppliedAt.UTC().Format(time.RFC3339)
		}
		c.printf("%-20s  %s\n", at, migration.File)
	}
	return asOwner(err)
}

// migratePrint prints the migrations.
type migratePrint struct {
	Dir string `type:"path" placeholder:"DIR" help:"Write each migration into a file of this folder."`
}

// Help is printed below the help of the command.
func (m *migratePrint) Help() string {
	return "psql can apply what is printed, and each of the files: it takes a Down section for a comment. goose can apply and " +
		"revert the files: run it with -table pawl.goose_db_version, after 'create schema if not exists pawl'."
}

func (m *migratePrint) Run(c *console) error {
	if m.Dir == "" {
		return db.Print(c.out)
	}
	paths, err := db.PrintTo(m.Dir)
	for _, path := range paths {
		c.printf("%s\n", path)
	}
	return err
}

// migrateGrants prints or applies the privileges of a role.
type migrateGrants struct {
	Role        string       `required:"" placeholder:"ROLE" help:"Login that gets the privileges. What it inherits from other roles, and SET ROLE, do not count."`
	Privilege   db.Privilege `default:"service" enum:"service,api,worker,reader,caller,operator" help:"service: for 'pawl serve'; api, worker: for 'pawl serve --no-workers' and '--no-api'; reader: to look into the tables; caller: for an application that fires events in its own transactions; operator: a caller that may force instances, too."`
	Tenant      string       `placeholder:"TENANT" help:"With caller and operator: the only tenant that the role may act for; * for all."`
	Subject     string       `placeholder:"SUBJECT" help:"With caller and operator: the actor in history, whatever the role names. Without it the role may name any."`
	Apply       bool         `help:"Apply the privileges instead of printing them."`
	DatabaseURL string       `env:"DATABASE_URL,PAWL_DATABASE_URL" type:"secret" placeholder:"URL" help:"With --apply: the database, as the schema's owner."`
}

func (m *migrateGrants) Run(c *console) error {
	role := db.Role{Name: m.Role, Privilege: m.Privilege, Tenant: m.Tenant, Subject: m.Subject}
	if m.Apply {
		if err := wantDatabase(m.DatabaseURL); err != nil {
			return err
		}
		return asOwner(db.Grant(c, m.DatabaseURL, role))
	}
	sql, err := db.Grants(role)
	c.print(sql)
	return err
}

// migrateSet changes settings.
type migrateSet struct {
	ownerFlags
	settingFlags
}

func (m *migrateSet) Run(c *console) error { return asOwner(db.Set(c, m.DatabaseURL, m.settings())) }
