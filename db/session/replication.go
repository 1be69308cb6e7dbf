package session

import (
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrUnreplicated says that the wait of a commit for a synchronous standby was cancelled, as pg_cancel_backend does.
// The server has committed, and answers with success and a warning. If the server is lost, so may the commit be.
var ErrUnreplicated = errors.New("the wait for the synchronous standby was cancelled: it is committed on this server, and perhaps only there")

// unreplicated is the key of the custom data of a connection whose last commit was not waited for.
const unreplicated = "pawl.session.unreplicated"

// watch notes the server's warning that a commit was not waited for. The warning's text is translated, so it is known
// by the place in the server's source that it comes from.
func watch(config *pgconn.Config) {
	handle := config.OnNotice
	config.OnNotice = func(conn *pgconn.PgConn, n *pgconn.Notice) {
		if n.File == "syncrep.c" && n.Routine == "SyncRepWaitForLSN" {
			conn.CustomData()[unreplicated] = true
		}
		if handle != nil {
			handle(conn, n)
		}
	}
}

// replicated returns ErrUnreplicated if a commit was not waited for since the last time.
func replicated(conn *pgx.Conn) error {
	data := conn.PgConn().CustomData()
	if data[unreplicated] == nil {
		return nil
	}
	delete(data, unreplicated)
	return ErrUnreplicated
}
