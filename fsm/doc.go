// Package fsm is pawl for Go programs: it carries out commands and answers reads. The API is built on
// it. A program on the same PostgreSQL can embed it, and can move instances in transactions of its own
// with [Service.FireTx].
//
// # What it owns
//
//   - [Service]: create, fire, dry runs, reads of instances and of their history.
//   - The batcher, by which commands reach the engine.
//   - The vocabulary of errors: [Kind] and [Error].
//
// The engine decides every command. It is SQL: see the opening comment of
// db/migrations/00002_engine.sql. Nothing in Go decides what an event does. Nothing is cached either: a
// decision is made from rows that are read in the transaction that writes its effect.
//
// The packages under this one have one subject each: definition (the language in which workflows are
// declared), lifecycle (workflows, their versions, migration, simulation, back-tests, the archive), live
// (waiting and streams), worker (timers and purges) and subscription (subscriptions and deliveries as
// records).
//
// # The way of a command
//
//	Create, Fire, Do ──▶ queue ──▶ flusher ──▶ pawl.create or pawl.fire ──▶ replies
//	                       ▲          │ one call for everything that waits
//	                       └──────────┘ while it runs, more commands queue
//
// The batcher has no timer. A command that finds a flusher free is called at once; commands that arrive
// during a call share the next one. A reply is given after the commit. Commands for one instance, or
// with one key, are never in flight together and keep their order. A call has commands of one tenant.
//
// # The states of an instance
//
//	create ──▶ active ──fire──▶ active ──fire──▶ … ──▶ completed | failed | cancelled | expired
//
// An instance's version is 1 at its creation and rises by 1 with each step; history has exactly one row
// for each version. The state is one that the instance's version of the workflow declares; a CHECK of
// the table ensures it. The status is active until a final state is reached, and then that state's
// outcome. Nothing moves a final instance.
//
// # Contexts, payloads and schemas
//
// PostgreSQL has no JSON Schema, so that the service checks documents. The engine answers a command whose
// document was not checked with the schema; the flusher checks the document and calls again with the
// schema's checksum, before it calls any command behind it. A workflow without schemas costs no second
// call. A context is checked when an instance is created. Later only assigns change it, and these are
// not checked.
//
// # When things fail
//
//   - If a call fails as a whole, because a guard raises or a row stays locked, its commands are called
//     one by one, so that only the one to blame fails. A path that raises has SQLSTATEs of its own. If a
//     command runs into the statement timeout, the same decision is made without writing, to find out
//     whether a path is slow or a lock was waited for.
//   - After a deadlock, a serialization failure or a lost connection the call is repeated. Every command
//     has a key, its caller's or a random one, so that nothing happens twice even if the lost answer was
//     that of a commit. If a repeated call finds its own effect, that is no replay to its caller.
//   - While the database is away commands fail as Unavailable, at once or after the call timeout. So do
//     commands that find the queue full. Nothing is kept for later.
//   - A caller that gives up stops waiting. Its command is dropped if it was not sent yet.
//   - If the process dies, the commands that were not committed are lost, and no others. Their callers
//     have no answer and ask again with the same key.
//
// # What it may import
//
// fsm/definition, db/queries, pgx, internal/address and its own internal packages. It imports none of
// the other packages under it. It knows nothing of the API's protocol.
package fsm
