// Package subscription has what the API reads and changes of webhooks: subscriptions and deliveries, as
// records.
//
// # What it owns
//
// A [Subscription] says which steps are sent to an endpoint. A [Delivery] is one message for one
// subscription, or for the callback of an instance, with the result of its last attempt:
//
//	pending ──attempt──▶ delivered
//	   ▲  └──attempts──▶ dead
//	   └────replay──────────┘
//
// Package outbox routes steps to subscriptions and makes the attempts. It is not imported here: the
// API needs the records, and must not depend on the sender. That is why this package lies under fsm.
//
// # Invariants
//
//   - The secret of a subscription is returned only by the calls that set it. A replaced secret signs
//     beside the new one for a day, so that a receiver can change over without refusing anything.
//   - An endpoint's URL is checked against the deployment's policy when it is set, and its address
//     again at each attempt.
//   - A filter names only workflows, events and states that exist.
//   - Nothing here is sent or routed: a change takes effect with the sender's next page.
//
// # When things fail
//
// Reads are repeated after a lost connection. Writes are not: they have no idempotency key here, and the
// API's callers see Unavailable and look.
//
// # What it may import
//
// fsm and its internal packages, internal/address, db/queries and pgx. It imports neither httpapi nor
// outbox.
package subscription
