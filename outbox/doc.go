// Package outbox reads the log of committed steps and publishes each step as a message, at least
// once and in order within each instance. It does so with findings that were opened, for those who ask,
// and with the rows of the audit, in the order of their positions.
//
// # What it owns
//
//   - [Message]: a step in the shape in which it is published, and its CloudEvent.
//   - [Relay]: publishes messages to a [Sink] on behalf of a consumer.
//   - [Sequencer]: gives committed steps, findings and rows of the audit their positions.
//   - [Election]: makes one process at a time the leader of a consumer, or the sequencer. Package webhook uses
//     it too.
//   - [Statuses] and [DeleteConsumer]: what an operator sees of consumers and does to them.
//   - [Backlog] and [OwnSteps]: what metrics and spans are made from. [Trace]: how attempts become spans.
//
// The rooms beside it are package sink (brokers and standard output), package dispatch (sending
// over HTTP) and package webhook (subscriptions and callbacks). webhook is a consumer of its own.
//
// # The log, the position and the page
//
// History is the outbox, and the table of findings is another part of it: a step is published because it was committed, whether by the service, by
// a timer or by a SQL caller. The sequencer gives each committed step, and each finding, a position in the log.
//
//	history ──tick──▶ log ──page after the consumer's position──▶ Sink.Publish ──▶ move the position,
//	                                                                               if this term still leads
//
// A transaction may commit later than one that drew a larger number. So only the sequencer, one process at a
// time, decides the order; the opening comment of db/schema/40_log/tables.sql says how, and why nothing is
// skipped. A page is published first and the consumer's position moves afterwards. After a crash between the
// two the page is published again, with the same [Message.ID], and nothing is lost.
//
// The sequencer ticks when it is woken, every Poll while somebody is to be told of steps, and every Idle
// otherwise. Its connection is its own, and its statements are not cancelled: a tick that waits for a standby
// and is cancelled would show positions that no standby has.
//
// # Leader, lease and term
//
//	following ──the lease is free──▶ leading ──the term ended, or an error──▶ following
//
// Any number of processes may run the relay of one consumer, and the sequencer. The leader holds a lease and
// renews it as it goes on. The leader's name, which no other process has, and the term are a fencing token: a
// leader that was paused beyond its lease cannot move the position when it comes back. What it still
// published was published by its successor too, by each of them in order.
//
// # Invariants
//
//   - Each committed step of the log reaches the sink at least once. A step that was rolled back
//     never does.
//   - Messages of one instance reach the sink in the order of the instance's versions, repeats
//     aside. There is no order between instances.
//   - A page that failed is published again before any later one.
//   - A position that anybody has seen is durable, and so are the steps up to it.
//
// # When things fail
//
//   - The sink fails: the same page is published again, after a growing wait. Nothing is skipped.
//     Other consumers are not affected.
//   - A page takes longer than the lease, or its query longer than the statement timeout: the
//     next page is half as large. The size grows again later.
//   - The database is away: the relay keeps asking, after a growing wait.
//   - The server is promoted or restored, and lacks the end of the log: the sequencer begins an epoch. Consumers
//     go on behind the last position that is left. Steps of the new epoch have ids of their own.
//   - There is no sequencer: nothing new is published.
//   - A wake-up is lost: wake-ups are hints, and the relay looks every Poll anyway.
//
// # What it may import
//
// fsm and fsm/access for the types of a step and of a row of the audit, db/queries, db/session and pgx. It imports none of its rooms: [Sink] is
// declared here, where it is called, and package sink implements it. It knows no HTTP, and
// httpapi does not import it.
package outbox
