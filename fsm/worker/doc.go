// Package worker does the work of a deployment that no request asks for: it ends timeouts and lifetimes,
// and purges what is past its time.
//
// # What it owns
//
//   - [Repeat], the loop in which background work is done.
//   - [Timers], which fires the timers that are due. A timer says when an instance must be looked at
//     next, and is never later than the instance's next deadline. A step that puts the deadline off
//     leaves the timer as it is, so that most steps write none; a timer that is due too early is
//     corrected then. The engine ends what is due under the instance's lock, by the same decision as for
//     any event.
//   - [KeyPurger], which purges expired idempotency keys.
//   - [UsageCounter], which counts what tenants use whose use is limited.
//   - [Watcher], which looks for what is wrong with instances, and opens and closes findings.
//   - [InstancePurger], which purges final instances that are older than their workflow's retention.
//
// The database's clock alone says what is due.
//
// # Several processes
//
// Every process may run all of the workers. One process at a time works in each of the two lanes of timers:
// its transaction holds the lock of the lane's row. The purgers skip what another transaction has locked.
//
// # Slow timers
//
// The fast lane fires batches, with a limit of a quarter of a second for a call. If a batch does not keep to
// it, its timers are fired again kind by kind, 20 at most in a call. A kind is a tenant, a version of a
// workflow, and an event. A kind that uses up the limit with so few timers counts as slow: its timers are
// moved to the slow lane when they are due, for a minute at first and for up to an hour if it is found slow
// again and again. In the slow lane one guard runs at a time in the whole deployment, for as long as the
// pool's statement_timeout lets it. Tenants take turns there, and of a tenant its workflows.
//
// So slow timers delay others by about half a second for each slow kind, and not by their number.
//
// # Tenants
//
// While more timers are due than a call of the fast lane fires, tenants take turns, with one timer at each turn. Up to
// 1,000 tenants with timers are looked at in a call, in the order of their names, and the next call goes on behind the
// last one that had its turn.
//
// # When things fail
//
//   - After a failure, such as that of a database that is away, the work is tried again after its usual
//     wait. The logger gets one line when it begins to fail, and one when it succeeds again.
//   - After a timeout whose guard does not hold, the state's next timeout has its turn.
//   - If the step of a deadline cannot be made, the timer fails. A guard may raise or take too long, or the
//     context would become too large. The logger gets one line, and the instance shows the reason. The step
//     is tried again every minute, until the instance moves or its next deadline is due. Other timers are not
//     held up.
//   - A locked instance is skipped and looked at again soon.
//   - An instance that cannot be purged is left to the next pass.
//
// # What it may import
//
// db/queries, pgx, and the internal packages of fsm. It needs nothing of package fsm itself.
package worker
