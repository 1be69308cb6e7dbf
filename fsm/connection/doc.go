// Package connection reads and changes connections: the services of others that tasks call over HTTP, and how to reach
// them.
//
// # What it owns
//
// A [Connection] has a name, which definitions use, and belongs to a tenant. It says where the service is, how pawl
// authenticates itself there, and how many calls it makes at a time. [Secrets] are how whoever makes the calls gets the
// secret of one. The calls are made by another package, which is not imported here.
//
// # Invariants
//
//   - No secret is ever returned to a client. It is sealed before it is stored, if the deployment has keys, and the
//     database shows it to nobody but those who make calls.
//   - A secret goes only where it was given for. A change that names no secret keeps the one that there is if base_url,
//     auth and the certificates stay as they are; otherwise it is refused.
//   - A connection names only variables of the process that the operator allows to its tenant. That is checked when it is
//     put and whenever the variable is read.
//   - The address of a service is checked against the deployment's policy when the connection is put, and again whenever
//     it is called.
//   - Each change counts the version up, which is the precondition of the next one.
//
// # When things fail
//
// Reads are repeated after a lost connection to the database. Writes are not: the caller gets fsm.Unavailable, and may
// send the whole connection again.
//
// # What it may import
//
// fsm, fsm/definition and fsm/internal/database, internal/address, internal/seal, db/queries and pgx. It imports neither
// httpapi nor outbox.
package connection
