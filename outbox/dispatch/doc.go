// Package dispatch sends jobs to HTTP endpoints that others have named: fairly between endpoints,
// in order where an order must be kept, and without harm to the network it runs in.
//
// # What it owns
//
//   - [Client]: one HTTP request to an endpoint that nobody trusts, and its bounded [Answer].
//   - [Dispatcher]: which job is sent next. It holds jobs in memory, in lanes and sequences.
//   - [Retry]: when an attempt that failed is repeated. [OpenFor]: how long a circuit stays open.
//
// It does not know what a job is for. Its owner says which job goes to which lane, makes the
// request, and decides what an answer means. It stores nothing either: what must outlive the
// process is for the owner to record.
//
// # A job
//
//	Add ──▶ waits for its sequence ──▶ ready in its lane ──▶ under way ──▶ Attempted
//	                                         │
//	                                         ├──▶ Postponed  the circuit of its lane or host is open
//	                                         └──▶ Abandoned  there is nothing to send
//
// An owner that claims its jobs before it sends them adds none that would wait: it reserves places with
// Reserve, claims no more jobs than that, and begins each in its place.
//
// Each [Result] is kept until the owner collects it. The owner then calls Forget, and adds the job
// again later if it is to be tried again.
//
// # Owners and lanes, and head-of-line blocking
//
// An owner is a tenant: whoever named the endpoints. The owners with something to do share
// Concurrency equally, with one share kept free for the next one; none has more than its share.
// They share Bytes in the same way, except that each may have one request under way, whatever its
// size. Owners are served in turn, so that one with hundreds of endpoints that hang takes no attempt
// from another.
//
// A lane is the queue of one endpoint. An endpoint that hangs fills its own lane and delays no
// other. A lane begins with two attempts at once, gets one more with each success, up to PerLane,
// and half as many with each failure, at least one. The busy lanes of an owner divide the owner's
// share in the same way, and are served in turn.
//
// # Order
//
// Jobs of one sequence are sent one at a time, in the order of their positions. A job is over when
// it was answered with success, postponed or abandoned; then the next one is ready. Jobs of
// different sequences do not wait for one another, even in one lane.
//
// # Circuits
//
//	closed ──five failures in a row──▶ open ──its time is over──▶ half-open ──success──▶ closed
//	                                     ▲                            │
//	                                     └────────── failure ─────────┘
//
// While a circuit is open nothing is sent. While it is half-open one job at a time of each lane
// probes the endpoint, since the failures have brought the lane's limit down to one. Each time that
// a probe fails the circuit stays open for twice as long, up to [MaxOpen].
//
// There are two places where a circuit can be kept. For a lane with a host the dispatcher keeps
// circuits in memory: one for the lane, and one for the host, which opens when the host does not
// answer at all. Lanes of one host share PerLane as well. For a lane without a host the owner keeps
// the circuit, where it outlives the process; after a failure the dispatcher drops what waits in
// the lane, and the owner adds it again when the circuit allows it.
//
// # When things fail
//
//   - The endpoint hangs, floods, resets or redirects: the attempt ends in bounded time, with a
//     bounded part of the answer, and is a failure. Redirects are not followed, since they would
//     lead to where the owner has not agreed to send.
//   - The name resolves to an address that is not public: the connection is refused by package
//     address when it is dialled, whatever the name resolved to before. The error is
//     [ErrProhibited].
//   - The process stops: Close cuts what is under way. An attempt that was cut has no result.
//
// # What it may import
//
// Of pawl only internal/address; no database driver.
package dispatch
