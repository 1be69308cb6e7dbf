// Package fsm is pawl for Go programs: it carries out commands and answers reads. The API is built on
// it. A program on the same PostgreSQL can embed it, and can move instances in transactions of its own
// with [Service.FireTx].
//
// # What it owns
//
//   - [Service]: create, fire, by id or by business key, override, cancel, dry runs, reads of instances and of
//     their history.
//   - The batcher, by which commands reach the engine.
//   - The vocabulary of errors: [Kind] and [Error].
//
// The engine decides every command. It is SQL, and db/schema/20_instance/tables.sql explains it. Nothing in
// Go decides what an event does. No state is cached either: a decision is made from rows that are read in
// the transaction that writes its effect.
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
// Creates, fires and fires by business key have a queue each; those of the third are calls of pawl.fire_by_keys, which
// may create an instance and fire at it.
//
// A command that finds no call in flight is called at once; commands that arrive during a call share the next one.
// While calls are slow, up to Config.Flushers of them are in flight. A reply is given after the commit. Commands for
// one instance, or with one key, are never in flight in two calls at once, and keep their order. A call may have
// commands of several tenants, and several commands for one instance: a chain. Fires by business key form no chains.
//
// The files in the order in which a fire passes them: do.go checks the command and queues it (command.go has
// its type), guess.go finds the schema to check its payload against, batcher.go takes it out, flush.go makes
// the call, and outcome.go turns the outcome into a Result or an Error.
//
// Gets share calls too. All other reads have connections of their own, for which tenants take turns: see Config.Reads
// and ForTenant. So they hold up neither commands nor each other's tenants.
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
// PostgreSQL has no JSON Schema, so the service checks documents. If a command's document must fit a schema
// that it was not checked against, the engine answers with that schema and does nothing else. The flusher
// checks the document, and calls again with the schema's checksum before it calls any later command for the
// instance. The service remembers the schemas that the engine asked for, and checks the next documents before
// the first call; so a second call is rare. A context is checked when an instance is created. Later only
// assigns change it, and what they write is not checked.
//
// # When things fail
//
//   - If a call fails as a whole, because a guard raises or a row stays locked, its commands are called
//     one by one, so that only the one to blame fails. A path that raises is known by its SQLSTATE. If a
//     command runs into the statement timeout, the same decision is made without writing, to find out
//     whether a path is slow or the call waited for a lock.
//   - After a deadlock, a serialization failure or a lost connection the call is repeated. Every command
//     has a key, its caller's or a random one, so nothing happens twice even if the lost answer was that
//     of a commit. A repeated call may find its own effect. Its caller is not told of a replay then.
//   - While the database is away commands fail as Unavailable, at once or after the call timeout. So do
//     commands that find the queue full. Nothing is kept for later.
//   - A caller that gives up stops waiting. Its command is dropped if it was not sent yet.
//   - If the process dies, the commands that were not committed are lost, and no others. Their callers
//     have no answer and ask again with the same key.
//
// # What it may import
//
// fsm/definition, db/queries, db/schema (the version and the privileges to check), pgx, internal/address and
// its own internal packages. It imports none of the other packages under it. It knows nothing of the API's
// protocol.
package fsm
