package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db"
)

type migrateCommand struct {
	Up     migrateUp     `cmd:"" help:"Apply every migration that is missing."`
	Down   migrateDown   `cmd:"" help:"Take back the latest migration, with all that it holds."`
	Status migrateStatus `cmd:"" help:"List the migrations."`
	Print  migratePrint  `cmd:"" help:"Print the migrations, for the goose command line and other tools."`
	Grants migrateGrants `cmd:"" help:"Print or apply the least privileges of a role."`
	Set    migrateSet    `cmd:"" help:"Change what all replicas and SQL callers of a database agree on."`
}

// ownerFlags name the database as the schema's owner.
type ownerFlags struct {
	DatabaseURL string `required:"" env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"The database, as the schema's owner."`
}

// Validate refuses a variable that is set to nothing.
func (o ownerFlags) Validate() error { return wantDatabase(o.DatabaseURL) }

func wantDatabase(url string) error {
	if url == "" {
		return errors.New("--database-url or DATABASE_URL must name the database")
	}
	return nil
}

// asOwner says of what was denied whose it is.
func asOwner(err error) error {
	if pg, refused := errors.AsType[*pgconn.PgError](err); refused && pg.Code == insufficientPrivilege {
		return fmt.Errorf("%s: it needs the schema's owner", pg.Message)
	}
	return err
}

// settingFlags are those of up and set; what is not given stays as it is.
type settingFlags struct {
	IdempotencyTTL       *time.Duration `env:"PAWL_IDEMPOTENCY_TTL" help:"How long idempotency keys are remembered; 24h at first."`
	IdempotencyTTLSlides *bool          `negatable:"" env:"PAWL_IDEMPOTENCY_TTL_SLIDES" help:"Start that time again at each replay."`
	ContextLimit         *int           `env:"PAWL_CONTEXT_LIMIT" help:"Bytes of a context; 65536 at first."`
	PayloadLimit         *int           `env:"PAWL_PAYLOAD_LIMIT" help:"Bytes of a payload; 65536 at first."`
	DefinitionLimit      *int           `env:"PAWL_DEFINITION_LIMIT" help:"Bytes of a definition; 1048576 at first."`
	StateLimit           *int           `env:"PAWL_STATE_LIMIT" help:"States of a definition; 500 at first."`
	PlanCacheMode        string         `enum:",auto,force_generic_plan,force_custom_plan" default:"" env:"PAWL_PLAN_CACHE_MODE" help:"plan_cache_mode of the engine's functions; force_generic_plan at first. A distributed Postgres wants auto."`
}

func (s settingFlags) settings() db.Settings {
	return db.Settings{
		IdempotencyTTL: s.IdempotencyTTL, IdempotencyTTLSlides: s.IdempotencyTTLSlides, ContextLimit: s.ContextLimit,
		PayloadLimit: s.PayloadLimit, DefinitionLimit: s.DefinitionLimit, StateLimit: s.StateLimit,
		PlanCacheMode: s.PlanCacheMode,
	}
}

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

type migrateDown struct{ ownerFlags }

func (m *migrateDown) Run(c *console) error { return asOwner(db.Down(c, m.DatabaseURL)) }

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

type migratePrint struct{}

func (m *migratePrint) Run(c *console) error { return db.Print(c.out) }

type migrateGrants struct {
	Role        string       `required:"" help:"The role to grant to."`
	Privilege   db.Privilege `default:"service" enum:"service,caller" help:"service: what 'pawl serve' needs. caller: what an application needs that fires in its own transactions."`
	Apply       bool         `help:"Apply them rather than print them."`
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

type migrateSet struct {
	ownerFlags
	settingFlags
}

func (m *migrateSet) Run(c *console) error { return asOwner(db.Set(c, m.DatabaseURL, m.settings())) }
