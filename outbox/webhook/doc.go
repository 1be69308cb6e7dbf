// Package webhook sends messages to the endpoints that subscriptions and callbacks name.
//
// # What it owns
//
//   - [Sender], which routes, sends and settles.
//   - The request: a CloudEvent (cloudevents.io) in structured mode, signed by Standard Webhooks
//     (standardwebhooks.com).
//   - The results of settling, and what an answer means for a delivery.
//
// How jobs are queued, ordered and sent is package dispatch's. Subscriptions, callbacks and
// deliveries are rows, which the service shows and changes; the opening comment of
// db/schema/50_webhook/tables.sql explains their tables.
//
// # A delivery
//
//	          route                 send            settle
//	step ──▶ pending ──▶ in memory ──▶ under way ──▶ delivered
//	            ▲                          │  │
//	            │                          │  ├──▶ dead      attempts used up, or 410 Gone
//	            ├──── retry, postponed ────┘  └──▶ abandoned (dead without an attempt)
//	            └──── replay, by the service: from delivered or dead
//
// Routing makes one delivery for each subscription that a step matches, in the transaction that
// moves the position of the consumer "webhooks". So each match is routed exactly once. A callback
// gets one delivery, for the step that ends its instance. A finding that was opened is routed as a step is, to the
// subscriptions whose types name it. A step that matches many subscriptions
// is put off and routed in pieces, by tenants in turn.
//
// Tenants share the memory as they share the attempts: none fills more places than are free then.
// The search for due deliveries goes through a bounded number of lanes at a time.
//
// Sending makes no claim in the database. What is under way is in the leader's memory only, and
// many results are settled by one write. Settling is fenced by the leader's name and the term: after another process has
// become the leader, nothing is settled by this one.
//
// # Invariants
//
//   - Each delivery is attempted at least once, unless its subscription or its message is gone.
//     The webhook-id is a digest of the message's id and the subscription, so that it is the same in each
//     attempt, whatever crashed; the timestamp and the signature are new.
//   - Deliveries of one instance to one subscription are sent in the order of the steps, and of the findings about it. The next
//     one waits until the one before is delivered or dead. Deliveries of other instances do not
//     wait.
//   - A change of a subscription holds within about 100 ms for deliveries that are already in
//     memory.
//
// # Circuits
//
// The circuit of a subscription is in its row (failures, circuit_open_until), where owners see it and
// where it outlives the leader. The database opens it when it settles, and does not return due
// deliveries while it is open, or more than one while it is half-open. The circuits of callbacks
// are in memory, for each tenant by URL and by host, since there may be a callback for each instance. Both are
// open for as long as [dispatch.OpenFor] says; a test compares it with the database's function.
//
// # When things fail
//
//   - An endpoint fails: the delivery is tried again after a growing random wait, or when
//     Retry-After says. After MaxAttempts it is a dead letter, which can be replayed.
//   - An endpoint answers 410 Gone: its subscription is disabled, and the delivery is dead.
//   - A secret cannot be opened, since its key is not configured or the row was changed by hand: the subscription rests with a
//     finding, and its deliveries lose no attempt. It is looked at again after Config.Open. Deliveries of a callback are
//     postponed likewise, and show the finding as their error. Nothing is sent with fewer signatures.
//   - The leader dies: the next leader sends what was under way again, under the same webhook-id.
//   - The database is slow: pages of routing and of due deliveries get smaller.
//   - The database is away: attempts that are under way end; their deliveries are sent again.
//   - The process is asked to stop: no attempt begins, those under way have 3 s to end and are
//     settled, and the others are cut and sent again by the next leader.
//
// # What it may import
//
// outbox for the message and the election, dispatch, fsm and fsm/subscription for what it shares with the API,
// internal/address, internal/seal, db/queries, db/session and pgx. It does not import httpapi.
package webhook
