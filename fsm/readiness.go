package fsm

import (
	"context"
	"errors"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Ping returns nil if the database answers, takes writes and passes CheckSchema. Otherwise it returns
// Unavailable with the reason.
func (s *Service) Ping(ctx context.Context) error {
	_, err := s.db.Attempt(ctx, func(ctx context.Context) error {
		if err := checkSchema(ctx, s.db.Queries(), s.config.Privileges); err != nil {
			return err
		}
		if _, err := s.db.Queries().GetSetting(ctx); err != nil {
			return err
		}
		readOnly, err := s.db.Queries().IsReadOnly(ctx)
		if err == nil && readOnly {
			return database.ErrReadOnly
		}
		return err
	})
	if database.IsReadOnly(err) {
		return &Error{Kind: Unavailable, Message: "the database takes no writes", Cause: err}
	}
	return unfit(err)
}

// CheckSchema returns nil if the database has the schema of this build, and the role the given privileges, as `pawl
// migrate grants` names them. Otherwise it returns Unavailable. The message says what is wrong and what to do: the
// schema is missing, older or newer, privileges are missing, or the database cannot be reached.
func CheckSchema(ctx context.Context, db queries.DBTX, privileges ...string) error {
	return unfit(checkSchema(ctx, queries.New(db), privileges))
}

// checkSchema is CheckSchema, but it returns the driver's errors unchanged.
func checkSchema(ctx context.Context, q *queries.Queries, privileges []string) error {
	needed := schema.Joined(privileges...)
	p := queries.SchemaStateParams{Relations: []string{}, Columns: []string{}, Functions: needed.Functions}
	for _, r := range needed.Relations {
		if r.Columns == nil {
			p.Relations = append(p.Relations, r.Name)
		}
		for _, column := range r.Columns {
			p.Columns = append(p.Columns, r.Name+"."+column)
		}
	}
	state, err := q.SchemaState(ctx, p)
	if err != nil {
		return err
	}
	want := int32(schema.Version())
	var version int32
	if state.VersionReadable {
		if version, err = q.SchemaVersion(ctx); err != nil {
			return err
		}
	}
	missing := state.MissingPrivileges
	switch {
	case !state.Made:
		return Errorf(Unavailable, "the database has no schema of pawl: run 'pawl migrate up'")
	case !state.Versioned, state.VersionReadable && version < want:
		return Errorf(Unavailable, "the schema is at version %d, and this pawl needs version %d: run 'pawl migrate up'", version, want)
	case version > want:
		return Errorf(Unavailable, "the schema is at version %d, and this pawl knows versions up to %d: use a newer pawl", version, want)
	case len(missing) == 1:
		return Errorf(Unavailable, "the role lacks the privilege %s: run 'pawl migrate grants --apply'", missing[0])
	case len(missing) > 1:
		return Errorf(Unavailable, "the role lacks %d privileges, such as %s: run 'pawl migrate grants --apply'", len(missing), missing[0])
	}
	return nil
}

// unfit makes the error of checkSchema Unavailable. The message names neither the server nor the role.
func unfit(err error) error {
	if err == nil || errors.Is(err, Unavailable) {
		return err
	}
	e := &Error{Kind: Unavailable, Message: "the database did not answer; try again", Cause: err}
	switch {
	case session.RefusesRole(err):
		e.Message = "the database refuses the service's role or its password"
	case session.RefusesDatabase(err):
		e.Message = "the server has no database of the name that the service was given"
	}
	return e
}
