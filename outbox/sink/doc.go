// Package sink has the sinks that pawl comes with: NATS JetStream, Kafka, AMQP 0-9-1 and standard
// output. Each implements [outbox.Sink].
//
// # What it owns
//
// [URL], which says where and how to publish and is what operators write, and one file for each
// kind of receiver. The broker in broker.go is common to the three that are reached over a
// network: it turns messages into bodies and subjects, connects, and reconnects.
//
// # A connection
//
//	no connection ──Publish──▶ connected ──any error, or the connection is lost──▶ no connection
//
// A sink connects when there is something to publish. After an error it drops the connection, with
// everything that the client has buffered, and the next Publish connects anew. So a message that
// was given up is never sent later, when another process may lead and publish.
//
// # Invariants
//
//   - Publish returns nil only when the receiver has confirmed every message.
//   - A message is sent only when the receiver has confirmed the one before it with the same
//     [outbox.Message.Key]: of its instance, or of the audit. A receiver may refuse one message and
//     accept the next, and it drops a repeat of what it has:
//     sent together, the accepted one would stay ahead of the refused one for good.
//   - A message has the same identity each time it is published: Nats-Msg-Id in NATS, message-id
//     in AMQP, and the CloudEvent's id everywhere.
//   - The errors of a URL show neither its credentials nor parts of it that could be some.
//
// # When things fail
//
// Publish returns an error and the relay publishes the same page again. Errors name what is
// missing and how to make it: a stream, a topic, an exchange or a bound queue. A client that is
// blocked on its socket is cut when the context ends.
//
// # What it may import
//
// outbox for [outbox.Message], and the clients of the brokers. It does not import pgx: what it
// publishes, it is given.
package sink
