package session

import (
	"errors"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// IsReadOnly reports whether the server has refused a write because it takes none, as a standby does.
func IsReadOnly(err error) bool { return IsCode(err, "25006") }

// RefusesRole reports whether the server has refused a connection because of its role or password.
func RefusesRole(err error) bool { return IsCode(err, "28000", "28P01") }

// RefusesDatabase reports whether the server has refused a connection because it has no such database.
func RefusesDatabase(err error) bool { return IsCode(err, "3D000") }

// IsCode reports whether the server has answered with one of the SQLSTATEs.
func IsCode(err error, codes ...string) bool {
	pg, refused := errors.AsType[*pgconn.PgError](err)
	return refused && slices.Contains(codes, pg.Code)
}
