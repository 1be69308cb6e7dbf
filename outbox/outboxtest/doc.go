// Package outboxtest has what the tests of package outbox and its rooms share: a workflow to move,
// messages to publish, and a sink that records.
//
// It is imported by tests only. It imports outbox, and db/dbtest for a database for each test.
package outboxtest
