// Package outbox tells the world of what instances go through: it reads the steps that were
// committed, and relays each at least once, those of an instance in their order.
//
// # What it owns
//
// [Relay], which follows history for one consumer; [Sink], where a relay publishes to;
// [Webhooks], which tell subscribed endpoints; and the shape of an [Event] on the wire. History
// is the outbox: a step is relayed because it was committed, in the service, by a timer or by
// a SQL caller, and nothing else has to be done for it.
//
// # A step's way
//
//	history ──▶ a batch: what the next snapshot sees and the cursor does not, by seq
//	              │ page by page
//	              ▼
//	            Sink.Publish ──▶ advance the cursor, if this term still leads
//
// The opening comment of db/migrations/00007_outbox.sql says why cursors are snapshots. A page
// is published first and noted afterwards, so that what is between is published again after
// a crash, and never lost. What was published twice has the same [Event.ID].
//
// # What a relay goes through
//
//	waiting ──lease is free──▶ leading ──lease lost, or Sink failed──▶ waiting
//
// Any number of processes may run the relay of a consumer: one leads, by a lease that each
// advance renews. A leader that was paused for longer is refused by its term when it comes
// back, and what it published meanwhile was published by its successor too: in their order
// by each of them.
//
// # Webhooks
//
// They are a consumer too, whose leader routes and sends. Routing makes a delivery of each step
// for each subscription that matches, in the transaction that moves the cursor: each once.
// Sending has no claims: what is under way is in the leader's memory, and one write settles
// many. So what a leader that died had sent, and not settled, is sent again under the same
// webhook-id. An instance's next step waits until the one before is delivered or dead; others
// flow on. Attempts go in lanes, one for each subscription, which get as many at once as their
// endpoint has shown to answer: one that hangs takes no place from its neighbours. See the
// opening comment of db/migrations/00009_webhooks.sql.
//
// # When things fail
//
//   - A Sink that fails is tried again with the same page, later and later. Nothing is skipped:
//     other consumers go on by themselves. A page that takes longer than a statement or the
//     lease may is halved, and grows again.
//   - A broker that takes some events of a page and refuses others gets none of an instance
//     behind a refused one, since a repeat of what it has would be dropped as a duplicate, out
//     of its place.
//   - A database that is away is asked again.
//   - Wake-ups are hints. A relay that gets none looks every Poll.
//
// # What it may import
//
// fsm, db/queries, pgx, and the clients of brokers. It knows no HTTP routes, and httpapi does
// not know it.
package outbox
