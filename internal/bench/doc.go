// Package bench measures a pawl service over HTTP, beside pgbench on the same PostgreSQL server.
//
// # What it owns
//
// A run has four parts, in this order:
//
//	database ─▶ service ─▶ instances ─▶ measurements ─▶ consistency check ─▶ report
//
// The database is a private PostgreSQL server, or an empty database that the caller names. The
// service is `pawl serve` in a process of its own, so that its CPU time and memory can be read
// apart from those of the load generator, which is this process. The instances are created through
// POST /v1/batch, as a client would create them.
//
// Every load is a closed loop: each of its connections sends the next request when the last one
// was answered. Every answer is checked. A rate counts applied operations; errors and refusals
// are counted apart. The load generator speaks HTTP/1.1 by itself, since it shares the machine's
// cores with the service and net/http's client would take more of them than the service.
//
// A reference is what pgbench measures on the same server in the same run. Only the ratio of a
// rate to a reference, or to another rate of the same run, can be compared between machines.
//
// # Invariants
//
//   - No two connections of a load fire at the same instance, unless the measurement is about one
//     hot instance.
//   - No idempotency key is used by two requests, unless the measurement is about replays.
//   - A given database is left as it was found. Run refuses one that has a pawl schema, a schema
//     of the benchmark's own, or applied migrations of goose.
//   - The figures name no file, host or user of the machine.
//
// # What happens when things fail
//
// A measurement that finds a fault, such as an instance whose history disagrees with the answers,
// does not end the run: the other measurements follow, the report is written, and Run returns the
// faults. If the service or the private server ends, or the context does, the run ends with that
// cause. In each case Run stops the processes that it started and takes back what it made in the
// database, within a minute.
//
// # Imports
//
// It may import db and the packages whose work it measures in this process: outbox, for a relay to a
// sink that keeps nothing, and fsm and insight, for reads of many instances. It must not import httpapi, which it reaches over HTTP, nor
// the command line.
package bench
