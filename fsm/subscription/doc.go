// Package subscription reads and changes the records of webhooks: subscriptions and deliveries.
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
// Package outbox/webhook routes steps to subscriptions, and makes the attempts. It is not imported here:
// the API needs the records, and must not depend on the sender. That is why this package lies under fsm.
//
// # Invariants
//
//   - The secret of a subscription is returned only by the calls that set it. For a day a replaced secret
//     signs too, beside the new one, so that a receiver can change over without refusing anything.
//   - A secret is sealed before it is stored, if the deployment has keys. The database lets nobody read one but the
//     sender. To seal a replaced secret for its new column, its sealed text is read here.
//   - An endpoint's URL is checked against the deployment's policy when it is set, and its address
//     again at each attempt.
//   - A filter names only workflows, events and states that exist.
//   - Nothing here is sent or routed: a change takes effect with the sender's next page.
//
// # When things fail
//
// Reads are repeated after a lost connection. Writes are not, since they have no idempotency key: the
// caller gets fsm.Unavailable, and must look whether the write was made.
//
// # What it may import
//
// fsm and its internal packages, internal/address, internal/seal, db/queries and pgx. It imports neither httpapi nor
// outbox.
package subscription
