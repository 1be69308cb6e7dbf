package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/session"
)

// errReported fails a command that has printed the reason already.
var errReported = errors.New("failed")

// undecided is the error of a command whose exit codes 0 and 1 are answers: the answer could not be found.
type undecided struct{ error }

// Unwrap returns the reason.
func (u undecided) Unwrap() error { return u.error }

// insufficientPrivilege is the SQLSTATE of a missing privilege.
const insufficientPrivilege = "42501"

// missing are the SQLSTATEs of a schema, a table and a function that do not exist.
var missing = []string{"3F000", "42P01", "42883"}

// explain returns the text of an error for the person who typed the command, as a rule in one line. An error
// of the database gets advice if the schema or a privilege is missing. What the engine itself raises is
// written for people, and stays as it is.
func explain(err error) string {
	pg, refused := errors.AsType[*pgconn.PgError](err)
	if _, away := errors.AsType[*pgconn.ConnectError](err); away {
		advice := "see that the server runs, and that the URL names it"
		switch {
		case session.RefusesRole(err):
			advice = "name another role or password in the URL"
		case session.RefusesDatabase(err):
			advice = "create the database, or name another in the URL"
		}
		return db.OneLine(err) + ": " + advice
	}
	if !refused {
		return err.Error()
	}
	advise := func(advice string) string { return strings.Replace(err.Error(), pg.Error(), pg.Message+": "+advice, 1) }
	switch {
	case strings.HasPrefix(pg.Code, "PW"):
		return pg.Message
	case pg.Code == insufficientPrivilege:
		return advise("grant the role its privileges with 'pawl migrate grants'")
	case slices.Contains(missing, pg.Code) && strings.Contains(pg.Message, "pawl"):
		return advise("run 'pawl migrate up'")
	}
	return err.Error()
}

// asOwner adds to the error of a missing privilege that the command needs the schema's owner.
func asOwner(err error) error {
	if pg, refused := errors.AsType[*pgconn.PgError](err); refused && pg.Code == insufficientPrivilege {
		return fmt.Errorf("%s: the command needs the schema's owner; name that role in --database-url", pg.Message)
	}
	return err
}
