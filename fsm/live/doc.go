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
//	commit ──▶ Notifier ──in memory──▶ Hub ──▶ Waiters of the instance
//	              └─NOTIFY, if somebody waits there─▶ Hub of another process ──▶ its Waiters
//	                                                   ▲
//	tick ──▶ Notifier ─────────as above────────────────┤   look: whose steps have got positions?
//	                                                   │
//	a lost notification ◀──────polls───────────────────┘   once a second
//
// Reads of an instance wait for its commit. Streams wait for the position of a step, which the sequencer
// (package outbox) gives it in a tick. The Notifier tells the hubs of both. After a tick, a hub looks at the log
// behind the last position that it has seen, and wakes the waiters of the instances and tenants that it finds.
// The sequencer itself is woken by commits.
//
// A hub with waiters announces them by a notification of its own: when the first one comes, and then every
// two seconds. The other processes remember that for six seconds. A hub that begins to listen asks who
// waits. So while nobody waits, no notification of a step is sent.
//
// Payloads are sealed, since any login may listen and notify. A hub that hears another payload looks, and no more.
//
// A wake-up is a hint: a waiter reads again, and may find that nothing changed. Nothing depends on a
// notification. SQL callers send none, and one may be lost. So while somebody waits, the hub looks at the log
// once a second, and four times as often while it has no connection that listens. While there is no sequencer,
// each look wakes everybody.
//
// Those who want tasks are woken by the engine itself, which notifies in the transaction that arms a task. The hub does
// not look for tasks: who waits for them looks by itself.
//
// A waiter is made before the first read. So a step that is committed after that read wakes the waiter,
// at the latest HubConfig.Poll after it got its position.
//
// # The place of a stream
//
// A stream keeps nothing but its place, and each message's id contains the place behind it. A client
// that reconnects with the id of its last message continues there, in any process.
//
// The place in a tenant's stream is an epoch of the log and a position. A page is the next range of the log: of
// its rows, those of the tenant are read, and those that the filter chooses are shown. The place in an instance's
// stream is a version, and the epoch of its step. A page is read from the instance's history, up to the last
// version that has a position: a step without one may be lost in a crash after it was shown.
//
// Before each page the place is compared with the epochs of the log. A place of an earlier epoch is good up to the
// last position that the epochs have in common. Of an instance it is good if the step is still the one that was
// shown.
//
// A stream that begins now waits until the steps that are committed have positions, for 2 s at most.
//
// # When things fail
//
//   - Without a hub that runs, waiters are not woken; they read again once per HubConfig.Poll.
//   - A hub that loses its connection connects again, with exponential backoff up to 5 s.
//   - A stream whose next steps have been purged ends with fsm.EventIDTooOld, so that no step is lost silently.
//   - A stream that has shown steps which a failover or a restore has lost ends with fsm.StepsLost, and the last
//     id that is left. Until the sequencer has begun the epoch, such a place is fsm.Unavailable.
//   - A place where the log has never been is fsm.UnknownEventID.
//   - Without a sequencer, streams show nothing new.
//   - While the database is away, an Await that has begun to wait goes on until its context ends.
//     Stream.Next returns fsm.Unavailable, and may be called again.
//
// # What it may import
//
// fsm and its internal packages, db/queries, db/session, pgx, and fsm/worker for the loop [worker.Repeat]: looking
// for steps is background work like that of the workers, and package worker knows nothing of this one.
package live
