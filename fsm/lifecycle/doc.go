// Package lifecycle does what concerns a whole workflow: it registers versions, moves instances between
// them, tries definitions out, and archives instances that have ended.
//
// # What it owns
//
//   - [Service.Register], reading and listing workflows, and their [Service.Versions].
//   - [Service.Migrate]: instance migration, the move of active instances to another version.
//   - [Service.Retire]: the end of a version that no instance uses.
//   - [Service.Simulate]: what the events of a caller would do to an instance that does not exist.
//   - [Service.Backtest]: what another definition would have made of recorded events.
//   - [Service.Archive]: writing final instances to another place, and purging them.
//
// # The life of a version
//
//	Register ──▶ latest ──a newer one──▶ older ──no instance left──▶ Retire
//	                 │  ◀── Migrate ──▶    │
//	                 └── instances ────────┘
//
// A version is immutable. New instances are made of the latest version; an instance stays on its version
// unless it is migrated. Registering the content of the latest version again makes no new version.
//
// # Registration
//
// A definition is checked in Go, with all faults at once; PostgreSQL checks the syntax of guards and
// assigns; then pawl.register_workflow checks it again, since SQL callers use it too, and stores it.
// Registrations wait for one another, and commands for none of them. Retiring a version holds up commands
// while it counts the workflow's instances: it requests that lock with a short lock_timeout, several times
// if need be.
//
// # When things fail
//
//   - A call that does not get a lock is repeated several times; then it fails as fsm.Unavailable.
//   - An instance migration moves a batch in each transaction. If it is broken off, what is moved stays
//     moved, and it can be started again.
//   - An instance that another transaction holds is skipped and tried again; then it is reported as busy.
//   - A back-test of an instance that takes too long counts as a difference. After several of these it
//     fails as fsm.GuardError.
//   - An archive that is broken off has purged nothing that was not written and flushed.
//
// # What it may import
//
// fsm, fsm/definition, the internal packages of fsm, db/queries and pgx.
package lifecycle
