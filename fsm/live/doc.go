// Package live lets callers wait for instances to change, and follow what happens to them.
//
// # What it owns
//
//   - [Notifier]: after a commit, a process tells all processes which instances have moved.
//   - [Hub]: the one place of a process that hears it, and wakes the [Waiter]s of these instances.
//   - [Service.Await]: a read that is answered when the instance is as wanted (long polling).
//   - [Service.StreamInstance] and [Service.StreamTenant]: messages as they are committed.
//
// # How a waiter is woken
//
//	commit ──▶ Notifier ──NOTIFY──▶ Hub of each process ──▶ Waiters of the instance, its tenant, all
//	                                 ▲
//	any other commit ◀──polls────────┘  once a second: what is new since the last snapshot?
//
// A wake-up is a hint: a waiter reads again, and may find that nothing changed. Nothing depends on a
// notification. SQL callers send none, and one may be lost; so once a second the hub looks, with one
// query from its last snapshot on, for steps of any origin. It looks only while somebody waits. While
// the hub has no connection that listens it looks four times as often.
//
// A waiter is made before the first read. So a step that is committed after that read wakes the waiter,
// within HubConfig.Poll at the latest.
//
// # The place of a stream
//
// A stream keeps nothing but its place, and each message's id contains the place behind it. A client
// that reconnects with the id of its last message continues there, in any process.
//
// The place in an instance's stream is a version. The steps of a tenant have no order in which they are
// committed, so that the place in a tenant's stream is a snapshot: what it sees has been read. A later
// snapshot sees more; the difference is a batch, which is read by sequence number, in pages. In the
// middle of a batch the place is both snapshots and the last sequence number. From the beginning the
// batch is everything; it is read by instance instead of by sequence number, which needs no sort.
//
// # When things fail
//
//   - Without a hub that runs, waiters are not woken; they read again once per HubConfig.Poll.
//   - A hub that loses its connection connects again, with exponential backoff up to 5 s.
//   - A stream whose next steps have been purged, or are more than it can catch up with, ends with
//     fsm.EventIDTooOld, so that no step is lost silently.
//   - While the database is away, Await goes on waiting until its context ends, and Stream.Next returns
//     fsm.Unavailable, after which it may be called again.
//
// # What it may import
//
// fsm and its internal packages, db/queries, pgx, and fsm/worker for the loop [worker.Repeat]: looking
// for steps is background work like that of the workers, and package worker knows nothing of this one.
package live
