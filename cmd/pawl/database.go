package main

import (
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
)

// ownerFlags name the database for the commands that need the schema's owner.
type ownerFlags struct {
	DatabaseURL string `required:"" env:"DATABASE_URL,PAWL_DATABASE_URL" type:"secret" placeholder:"URL" help:"The database, as the schema's owner; @FILE reads the URL from a file."`
}

// Validate refuses an empty URL.
func (o ownerFlags) Validate() error { return wantDatabase(o.DatabaseURL) }

// roleFlags name the database for the commands that need no more than the service.
type roleFlags struct {
	DatabaseURL string `required:"" env:"DATABASE_URL,PAWL_DATABASE_URL" type:"secret" placeholder:"URL" help:"The database, as a role with privileges of 'pawl migrate grants'; @FILE reads the URL from a file."`
}

// Validate refuses an empty URL.
func (r roleFlags) Validate() error { return wantDatabase(r.DatabaseURL) }

// wantDatabase refuses an empty URL. The parser does not, if an environment variable is set to nothing.
func wantDatabase(url string) error {
	if url == "" {
		return errors.New("--database-url or DATABASE_URL must name the database")
	}
	return nil
}

// openDatabase returns a pool on a database. It fails if the schema is not the one that this build needs, or if the
// role lacks one of the privileges.
func openDatabase(c *console, url string, config db.Config, privileges ...db.Privilege) (*pgxpool.Pool, error) {
	pool, err := db.Open(c, url, config)
	if err != nil {
		return nil, err
	}
	unfit, found := errors.AsType[*fsm.Error](fsm.CheckSchema(c, session.Pool(pool), parts(privileges)...))
	if !found {
		return pool, nil
	}
	pool.Close()
	if unfit.Cause != nil {
		return nil, unfit.Cause
	}
	return nil, errors.New(unfit.Message)
}

// parts are the names of privileges in the database.
func parts(privileges []db.Privilege) (names []string) {
	for _, p := range privileges {
		names = append(names, p.Parts()...)
	}
	return names
}
