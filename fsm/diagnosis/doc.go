// Package diagnosis shows what is known of one instance, so that a person can see why it does not move.
//
// A [Diagnosis] is read in one read-only transaction that sees one snapshot. So its parts fit one another, although steps are
// made meanwhile. Each part has a limit, and none reads more rows than that, or a small multiple of it, by an index: a
// diagnosis costs as much for an instance with a million steps as for a new one.
//
// It is shown to callers who may read the instance, and goes into tickets and mails. So it never has a payload, a context, a
// secret, a header, a URL or an idempotency key. The queries do not even read these, but for the URLs of subscriptions, of
// which the host is kept, and for keys, of which the database makes a digest.
//
// Guards are evaluated with savepoints around them, so that one that raises does not end the transaction. After two seconds
// no further one is evaluated, and whether it holds is not known.
//
// It may import fsm, the packages beside it whose kinds it shows, its internal packages and the queries. It knows nothing of
// HTTP.
package diagnosis
