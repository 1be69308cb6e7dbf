// Package telemetry measures a process, and tells Prometheus and an OpenTelemetry collector.
//
// # What it owns
//
//   - [Telemetry]: the instruments, the registry behind /metrics, and what is pushed by OTLP (HTTP, protobuf) when the
//     standard variables OTEL_* ask for it.
//   - [Backlog]: the numbers that belong to the whole deployment, such as timers that are late.
//   - A tracer for pgx that counts calls to the database.
//   - The spans of commands, of attempts and of steps that no request has made, which [Backlog.ExportSteps] reads from the
//     log. They are exported likewise.
//
// No other package but tests imports OpenTelemetry. The engine, the API and the workers have functions in their configurations, which
// cmd connects with the methods of a Telemetry.
//
// # How many series there are
//
// A label holds a name of the contract (a route), of a definition (a workflow, an event, a topic) or of this program (an
// outcome). It never holds an instance, a key, a subject or another text of a caller. What a caller invents is `_other`:
// routes that do not exist, workflows that were not found, events that the workflow does not declare. But patterns admit
// events of any name, which are labels if they have the form of one, and there may be many definitions. So the series of
// a family have a budget in bytes. When it is used up, new series are folded, label by label, into `_other`. One
// workflow, or one route, never has more of it than is left. Series that exist go on. /metrics stays below 1 MB for that
// reason, whatever callers and definitions do. Tenants are a label only if the operator lists them; others are `_other`.
//
// # Whose numbers they are
//
// Counts and durations are those of this process, and are to be summed over processes. The numbers of [Backlog] are the
// deployment's, and must not be: only the process that leads the sequencer has them. A lease says until when it leads. A
// process that has lost the lease, or is late to renew it, shows none of these series.
//
// # When things fail
//
// A collector that is away or hangs costs nothing but its own data: spans are dropped when a bounded queue is full, and
// metrics are cumulative. The failure is logged at most once a minute. If the database does not answer, the numbers of
// the deployment are missing, which the alert rules tell of.
//
// # What it may import
//
// fsm, for the types of its probe, outbox for the backlog, attempts and the log, pgx, OpenTelemetry and the client library of
// Prometheus.
package telemetry
