// Package bounded holds what the tests of this project wait with, and runs what they wait for: conditions, channels,
// SQL, workers, programs and connections. Nothing in it waits without a limit.
//
// # The problem
//
// `go test` ends a package that takes longer than its -timeout, by killing the process. Such an end names neither the
// test nor what it waited for, runs no cleanup, and takes every other test of the package with it. A test must
// therefore end by itself, whatever the code under test does.
//
// # What it owns
//
// Each function takes the test and a few words that name what is awaited ("the hub to listen"). After [Limit] without
// success the test fails, and the failure has those words and what was last seen.
//
//   - [True] and [Until] poll a condition, with a pause between two looks that grows from 1 ms to 20 ms.
//   - [Receive], [Wait] and [Result] wait for a channel, and for a function that blocks. Their failure also has the
//     stacks of this module's goroutines, since the fault is in one of them.
//   - [Context] is the context for a call that blocks.
//   - [Run] runs a worker for the length of a test; [Gate] holds other goroutines up until the test lets them go on.
//   - [Exec], [Value], [Column], [UntilSQL] and [UntilBlocked] are for SQL.
//   - [NewProxy] and [NewDatabaseProxy] stand between a client and a server, and fail as a test wants it.
//   - [Start] starts a program and returns when it is ready; [Command] is one that runs to its end; [Lines] keeps what
//     a program or a logger writes.
//
// [Limit] is two minutes: far beyond what anything takes, so that a slow machine fails no test, and far below the
// timeout of a package. [UntilWithin] and [ReceiveWithin] take another limit, for the few tests whose work is large.
//
// # The context of a test
//
// t.Context() is cancelled after the body of a test and just before its cleanups. Two mistakes follow from that. A wait
// that looks at t.Context() has no limit: the context ends only after the body has. And a cleanup that uses t.Context()
// does nothing: the context has ended. [Context] has a deadline and works in both places.
//
// # Rules
//
// TestTestsAreBounded reads the test files of the module and fails for each of these:
//
//   - time.Sleep, a receive from time.After, and a select whose time.After case is empty. A test awaits what happens
//     by [Until]. It shows that something does not happen by order: it does the next thing, awaits its effect, and
//     sees that the first had none.
//   - A receive, a Wait() or a select without a deadline.
//   - A loop that nothing counts: `for {`, `for condition {`, and a range over a channel.
//   - t.Context() as a limit or in a cleanup, and a program or an HTTP request without a deadline.
//
// What runs in a goroutine of its own (`go func`, `group.Go(func`) may block: whoever waits for it does so with a
// limit. What runs in a synctest bubble may too: its time is not the machine's, and a bubble in which all are blocked
// fails at once.
//
// Where a rule does not fit, the line, or the one above it, says why in a comment that begins with "bounded:", for
// example `// bounded: each page begins where the last one ended`.
//
// The rules do not see everything. A send to a channel that nobody reads, and a call that takes t.Context() and blocks,
// pass. Statements are limited by package dbtest, whose databases have a statement_timeout.
//
// # Imports
//
// Only tests, and the packages that serve them (db/dbtest, fsm/fsmtest, outbox/outboxtest, examples/story), may import this
// package. It imports nothing of the module but db/queries, for the interface that pools, connections and transactions
// have in common.
package bounded
