// Package invoke calls services over HTTP for the tasks of states, and records what came of it.
//
// # What it owns
//
//   - [Invoker], which claims, calls, settles and sweeps.
//   - The request of a task, and what is kept of its answer.
//   - The HTTP connections to the services that tenants have named.
//
// How attempts are shared between tenants and connections is package dispatch's. Tasks and connections are rows; the
// opening comment of db/schema/80_task/tables.sql has the life of a task and what a result makes of it.
//
// # A call
//
//	        claim                  send                     settle
//	due ──────────▶ sent, leased ──────▶ under way ──────┬──▶ answered   a status, whatever it is
//	 ▲  (committed)                                      ├──▶ refused    surely not sent
//	 │                                                   ├──▶ lost       maybe sent, and no answer
//	 └───────────────────────────────────────────────────┴──▶ postponed  not begun: the process stops
//
// Places are reserved before tasks are claimed, and each claimed task is sent at once: nothing that is recorded as sent
// waits in memory. Every process may run an Invoker. A claim's lease keeps others away, so there is no leader.
//
// A request counts as sent from the moment at which its first header is written. What fails before that was surely not
// sent: a name that does not resolve, a connection that is refused or prohibited, a TLS handshake that fails, a request
// that cannot be made. What fails afterwards may have had an effect: a timeout, a reset, an answer that is no HTTP or that
// ends early. Which of these may be repeated is for the database to say, which knows the definition.
//
// # Invariants
//
//   - An attempt is one request. net/http repeats some requests by itself; it is kept from that, except while nothing of
//     the request was written.
//   - The attempts of a task carry the same key, and are the same bytes.
//   - A result is kept until the database has taken it, or has said that another claim has superseded this one.
//   - Redirects are not followed, and the address is checked when the connection is made.
//   - A secret is read when calls are claimed, and is in no log line, no error and no row.
//   - Of an answer are kept the status, six headers, and a body of up to 64 KiB. The status counts whatever the body is.
//
// # When things fail
//
//   - A service fails: its connection's circuit opens after five failures in a row, in the database, so that all processes
//     see it. Its tasks wait then and lose no attempt. 429 and 503 are no failures.
//   - A secret cannot be had: the connection rests with a finding, and nothing is claimed for it.
//   - The process dies: its claims run out, 10 s after the timeout of the attempt, and another process sweeps them.
//   - The database is away: results wait in memory. Nothing is claimed while more of them wait than calls may be under way.
//   - A result cannot be settled, since its instance is locked or its body cannot be stored: it is tried alone, and then
//     goes behind the others, in the second case without its body.
//   - The process is asked to stop: it claims nothing more. Calls that are under way have 3 s to end and are then cut, which
//     counts as lost.
//
// # What it may import
//
// outbox for signals, dispatch, fsm and fsm/worker, internal/address, internal/seal, internal/variable, db/queries,
// db/session and pgx. It does not import httpapi.
package invoke
