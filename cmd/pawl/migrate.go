package main

import (
	"time"

	"github.com/pawl-fsm/pawl/db"
)

// migrateCommand is `pawl migrate`.
type migrateCommand struct {
	Up     migrateUp     `cmd:"" help:"Apply all pending migrations, and change settings."`
	Down   migrateDown   `cmd:"" help:"Revert the latest migration, and drop all data that it holds."`
	Status migrateStatus `cmd:"" help:"List the migrations, and when each was applied."`
	Print  migratePrint  `cmd:"" help:"Print the migrations for the goose command line and other tools."`
	Grants migrateGrants `cmd:"" help:"Print or apply the least privileges of a role."`
	Set    migrateSet    `cmd:"" help:"Change the settings that all replicas and SQL callers of a database share."`
}

// settingFlags are the flags of up and set. A setting without its flag stays as it is.
type settingFlags struct {
	IdempotencyTTL       *time.Duration `placeholder:"DURATION" env:"PAWL_IDEMPOTENCY_TTL" help:"How long an idempotency key is kept; 24h in a new database."`
	IdempotencyTTLSlides *bool          `negatable:"" env:"PAWL_IDEMPOTENCY_TTL_SLIDES" help:"Start that time anew at each replay."`
	ContextLimit         *int           `placeholder:"BYTES" env:"PAWL_CONTEXT_LIMIT" help:"Largest context in bytes; 65536 in a new database."`
	PayloadLimit         *int           `placeholder:"BYTES" env:"PAWL_PAYLOAD_LIMIT" help:"Largest payload in bytes; 65536 in a new database."`
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
}

func (m *migrateUp) Run(c *console) error {
	if err := db.Up(c, m.DatabaseURL); err != nil {
		return asOwner(err)
	}
	return asOwner(db.Set(c, m.DatabaseURL, m.settings()))
}

// migrateDown reverts the latest migration.
type migrateDown struct{ ownerFlags }

func (m *migrateDown) Run(c *console) error { return asOwner(db.Down(c, m.DatabaseURL)) }

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
type migratePrint struct{}

func (m *migratePrint) Run(c *console) error { return db.Print(c.out) }

// migrateGrants prints or applies the privileges of a role.
type migrateGrants struct {
	Role        string       `required:"" placeholder:"ROLE" help:"Role that gets the privileges."`
	Privilege   db.Privilege `default:"service" enum:"service,caller" help:"service: for 'pawl serve'. caller: for an application that fires events in its own transactions."`
	Apply       bool         `help:"Apply the privileges instead of printing them."`
	DatabaseURL string       `env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"With --apply: the database, as the schema's owner."`
}

func (m *migrateGrants) Run(c *console) error {
	if m.Apply {
		if err := wantDatabase(m.DatabaseURL); err != nil {
			return err
		}
		return asOwner(db.Grant(c, m.DatabaseURL, m.Role, m.Privilege))
	}
	sql, err := db.Grants(m.Role, m.Privilege)
	c.printf("%s", sql)
	return err
}

// migrateSet changes settings.
type migrateSet struct {
	ownerFlags
	settingFlags
}

func (m *migrateSet) Run(c *console) error { return asOwner(db.Set(c, m.DatabaseURL, m.settings())) }
