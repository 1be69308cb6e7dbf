// Package session makes every connection of a pool a session that means the same, whatever the role, the
// database or a pooler on the way has set.
//
// # What it owns
//
// A session depends on settings. [Use] gives them to the connections of a pool: how long a statement may
// run and wait, how plans are made, and the few that change what a statement means. Some are sent when
// the connection is made. These are the five that every pooler keeps for each of its clients, such as
// client_encoding. The others are set by one statement on the new connection, since a pooler refuses
// them as startup parameters.
//
// # Behind a pooler
//
// That statement also tells whether a pooler is on the way: then the process that answers is not the one
// that the connection was told of. A pooler that pools transactions gives each transaction to any of its
// servers. So what a session holds is lost, and would be found by other clients: settings, prepared
// statements, LISTEN. A client cannot tell such a pooler from one that pools sessions. Behind either one,
// a call therefore leaves nothing in the session. The call sends its settings ahead of its statement, for
// its transaction only, and prepares nothing under a name. Both statements share one round trip and one
// implicit transaction.
//
// It has to be a statement of its own: PostgreSQL starts the clock of statement_timeout before it executes
// a statement, so neither the statement itself nor the SET clause of a function that it calls could limit
// it.
//
// The default isolation level cannot be set in this way, since a transaction has its level before its
// first statement. So a connection is refused behind a pooler if the level is not "read committed".
//
// # Callers
//
// [Pool], [Conn], [Tx] and [Begin] return what generated queries take. On a connection without a pooler,
// and on one whose pool [Use] does not know, they pass calls on unchanged.
//
// # What it may import
//
// db/queries and pgx.
package session
