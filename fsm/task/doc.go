// Package task lets workers have tasks, and shows tasks, compensations and timelines.
//
// # What it owns
//
//   - [Claim]: a worker's request for tasks of a topic, which may wait for some.
//   - What a worker says of a task that it has claimed: [Service.Complete], [Service.Fail], [Service.Release] and
//     [Service.Heartbeat].
//   - What an operator does: [Service.Retry], [Service.Resolve] and [Service.MarkCompensation].
//   - Reads: [Service.Get], [Service.List], [Service.Attempts], [Service.Compensations] and [Service.Timeline].
//
// The life of a task is decided in the database, by the functions of module 80_task. Package outbox/invoke makes the calls
// of tasks that are calls; it is not imported here.
//
// # How a claim waits
//
//	Claim ──joins──▶ line of its topic ──looks──▶ pawl.work_claims, one call for the claims that look now
//	                   ▲    ▲
//	   notification ───┘    └─── once a second, for tasks that became due
//
// A line has the claims of one process that ask for tasks of the same topic, within the same workflows. It exists while
// there are some. A claim looks when it comes. After that one claim of the line, the oldest, looks when a task is armed and
// once a second; the others look only if it found as many tasks as it wanted. So an idle topic costs a look a second,
// however many workers wait, and looks of several lines share a call. While a task waits to be claimed, others of its topic
// are armed without a notification. So after a look that found something, there is another one 10 ms later.
//
// # Invariants
//
//   - The engine decides who has a task. Two processes may look at the same time, and each task is claimed once.
//   - The tasks of a claim go to whoever waits for its answer. If nobody does any more, they are released, which costs no
//     attempt. What was sent and is lost on the way is kept under the claim's key.
//   - A report of a worker is idempotent: the same one again has the same answer. So calls are repeated after a lost
//     connection.
//
// # When things fail
//
//   - A claim that waits goes on while the database is away. One that comes then is refused as fsm.Unavailable.
//   - A lost notification delays a claim by a second at most.
//   - If the process dies, the leases of claims whose answers were not sent run out; a claim under the same key gets its
//     tasks before that.
//
// # What it may import
//
// fsm and its internal packages, fsm/live for the hub that hears notifications, and db/queries.
package task
