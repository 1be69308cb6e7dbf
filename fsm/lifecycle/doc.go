// Package lifecycle does what concerns a whole workflow: it registers its versions, moves instances
// between them, tries a definition out, and archives what has ended.
//
// # What it owns
//
//   - [Service.Register], reading and listing workflows, and their [Service.Versions].
//   - [Service.Migrate]: instance migration, the move of active instances to another version.
//   - [Service.Retire]: removing a version that no instance uses.
//   - [Service.Simulate] and [Service.Backtest]: what a definition would do to events that are given, and
//     to those that were recorded.
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
// assigns; then pawl.register_workflow checks it again, since SQL callers use it too, and adds a CHECK on
// the states. That takes a short lock on the table of instances, which is asked for with a short
// lock_timeout and tried again. Validating the CHECK for older rows follows in a transaction of its own.
//
// # When things fail
//
//   - A lock that is not to be had is tried again several times; then the call fails as fsm.Unavailable.
//   - A migration moves a batch in each transaction. If it is broken off, what is moved stays moved, and
//     it can be started again.
//   - An instance that another transaction holds is skipped and tried again; then it is reported as busy.
//   - A back-test of an instance that takes too long counts as a difference. After several of these it
//     fails as fsm.GuardError.
//   - An archive that is broken off has purged nothing that was not written and flushed.
//
// # What it may import
//
// fsm, fsm/definition, the internal packages of fsm, db/queries and pgx.
package lifecycle
