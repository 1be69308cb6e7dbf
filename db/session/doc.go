// Package session gives every connection of a pool the same settings, so that statements mean the same
// whatever the role or the database has set, and whether or not there is a pooler.
//
// # What it owns
//
// [Use] sets the settings of a pool's connections: how long a statement may run and wait, how plans are
// made, and the few that change what a statement means. Five settings, such as client_encoding, are sent
// when a connection is made: poolers keep these for each client. One statement on the new connection
// sets the others, since a pooler refuses them as startup parameters. Use also makes the driver copy JSON documents
// rather than parse them.
//
// # Behind a pooler
//
// That statement also finds out whether there is a pooler: then the process that answers has another id
// than the one that the client got when it connected. A pooler that pools transactions may run each
// transaction in another session of the server. So what a client leaves in a session (settings, prepared
// statements, LISTEN) is lost to it, and other clients find it. A client cannot tell such a pooler from
// one that pools sessions. So behind either one, a call leaves nothing in the session. The call sends its
// settings ahead of its statement, for its transaction only, and uses no named prepared statement. Both
// statements share one round trip and one implicit transaction.
//
// The settings need a statement of their own. PostgreSQL starts the clock of statement_timeout before it
// executes a statement. So a statement cannot limit itself, nor can the SET clause of a function that it
// calls.
//
// The default isolation level cannot be set in this way, since a transaction has its level before its
// first statement. So behind a pooler, a connection is refused if the default level is not "read
// committed".
//
// # Callers
//
// [Pool], [Conn], [Tx], [Begin] and [Transact] give a queries.DBTX, which generated queries call. It passes calls
// on unchanged if there is no pooler, or if [Use] was not called for the pool.
//
// # Commits that nobody waited for
//
// If the wait for a synchronous standby is cancelled, the server answers success, and warns. A call through this
// package, and [Transact], then return [ErrUnreplicated]: their outcome is not known until the standby has it.
//
// # Connections beside the pool
//
// [Connect] makes one, for LISTEN. [Uncancelled] makes one whose statements are never cancelled.
//
// # What it may import
//
// db/queries and pgx.
package session
