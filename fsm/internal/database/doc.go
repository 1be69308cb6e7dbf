// Package database calls PostgreSQL for package fsm and the packages under it.
//
// # What it owns
//
//   - [Client]: a call with a timeout, repeated after a deadlock, a serialization failure or a
//     lost connection; and transactions that need more time than a command has.
//   - The questions that callers ask of a driver's error, such as [IsConnectionError]. What an
//     error means to a caller, its Kind, is decided by package fsm alone.
//   - [List]: one page of a list, read by key, and the signed cursor of the next page.
//
// # Which connections a call uses
//
// Creations and events, and reads of single instances, are few calls for many callers: the batchers make them, on the first pool.
// No other call of a request uses it. On the second pool there are three ways. Each is behind a gate, and so a caller
// holds a connection only when it is its tenant's turn:
//
//	Read, Try   all connections but two   reads with the timeouts of a command
//	Linger      at most half of those     reads with statements that may take seconds
//	Change      two                       registrations, instance migrations, subscriptions, overrides and cancels
//
// So reads hold up neither commands nor changes, and long reads leave connections to short ones. A tenant has at most
// half of the places of a gate, and a quarter while another one sends commands or reads single instances
// ([Client.Active]). While no other tenant fills the rest, a newcomer enters at once, and otherwise when the next call
// ends. A caller waits as long as its context allows.
//
// # Why a call may be repeated
//
// A read changes nothing. A command has an idempotency key, so a repeated call finds its own effect
// and does not make it twice. Nothing else may be called within [Client.Attempt].
//
// # Commits that wait for a standby
//
// A commit may wait for a synchronous standby that is away. A call that takes too long is given up, and the driver asks
// the server to cancel it. The server then ends the wait, and has committed on the primary alone. That is safe, since
// the call is not acknowledged, and its retry waits anew: see pawl_private.commit_synchronously. Without the request to
// cancel, each call that is given up would leave a process of the server waiting, until max_connections is used up.
//
// # Cursors
//
// A cursor is the key of the last item of a page, behind an HMAC over that key and over the list
// with its filters. The HMAC's secret is a row of the database, so that every replica accepts the
// cursors of the others. A cursor that fails the check gives a [PageError].
//
// The secret is read once per connection and kept with that connection. A connection never moves to
// another database, not even behind a pooler. So the secret of a connection is that of the database
// that its queries read. If the database behind a URL is replaced by another, new connections read the
// other secret, and the cursors of the former database are refused.
//
// # When things fail
//
// Read, List and Change return what the function given to New makes of the driver's error; the other calls return that
// error. A gate with too many waiting callers refuses further ones with gate.ErrCrowded. If a call finds that the database does not
// answer, those who wait at its gate fail with the same error. If a connection is lost, or its server takes no writes, the pool is reset, since its other connections probably
// lead to the same server. If somebody cancelled the wait of a commit for a standby (session.ErrUnreplicated), Attempt
// repeats the call, and the others fail. A secret that could not be read is read again by the next page.
//
// # What it may import
//
// db/queries, db/session and pgx. It does not import package fsm, which imports it.
package database
