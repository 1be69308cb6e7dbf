// Package live lets callers wait for instances to change, and follow what happens to them.
//
// # What it owns
//
//   - [Notifier]: after a commit of this process, tells the hub which instances have moved. While somebody
//     waits in other processes, it tells them too.
//   - [Hub]: listens for what other processes tell, and wakes the [Waiter]s of the instances that have
//     moved. A process has one.
//   - [Service.Await]: a read that is answered when the instance is as wanted (long polling).
//   - [Service.StreamInstance] and [Service.StreamTenant]: messages as they are committed.
//
// # How a waiter is woken
//
//	commit ──▶ Notifier ──in memory──▶ Hub ──▶ Waiters of the instance, its tenant, all
//	              └─NOTIFY, if somebody waits there─▶ Hub of another process ──▶ its Waiters
//	                                                   ▲
//	any other commit ◀──────────polls──────────────────┘  once a second: what is new since the last snapshot?
//
// A hub with waiters announces them by a notification of its own: when the first one comes, and then every
// two seconds. The other processes remember that for six seconds. A hub that begins to listen asks who
// waits. So while nobody waits, no notification of a step is sent.
//
// A wake-up is a hint: a waiter reads again, and may find that nothing changed. Nothing depends on a
// notification. SQL callers send none, and one may be lost. So while somebody waits, the hub polls once a
// second: one query reads the steps of any origin that its last snapshot did not see. While the hub has no
// connection that listens, it polls four times as often.
//
// A waiter is made before the first read. So a step that is committed after that read wakes the waiter,
// after HubConfig.Poll at the latest.
//
// # The place of a stream
//
// A stream keeps nothing but its place, and each message's id contains the place behind it. A client
// that reconnects with the id of its last message continues there, in any process.
//
// The place in an instance's stream is a version. Of a tenant's steps a later one may be committed earlier,
// so the place in a tenant's stream is a snapshot: what it sees has been read. A later snapshot sees more.
// The difference between the two is a batch, which is read in pages, by sequence number. Within a batch the
// place is both snapshots and the last sequence number. The first batch of a stream from the beginning is
// the past: everything that its snapshot sees. It is read by instance and version, which needs no sort.
//
// # When things fail
//
//   - Without a hub that runs, waiters are not woken; they read again once per HubConfig.Poll.
//   - A hub that loses its connection connects again, with exponential backoff up to 5 s.
//   - A stream whose next steps have been purged, or are more than it can catch up with, ends with
//     fsm.EventIDTooOld, so that no step is lost silently.
//   - While the database is away, an Await that has begun to wait goes on until its context ends.
//     Stream.Next returns fsm.Unavailable, and may be called again.
//
// # What it may import
//
// fsm and its internal packages, db/queries, pgx, and fsm/worker for the loop [worker.Repeat]: looking
// for steps is background work like that of the workers, and package worker knows nothing of this one.
package live
