// Package bulk carries out one action on many instances, in the background.
//
// # What it owns
//
//   - [Service], which submits a bulk, shows its progress and its items, and pauses, resumes, stops or retries it.
//   - [Worker], which does the work: a few instances in a call of pawl.bulk_step, by turns of tenants.
//
// # What holds
//
// An instance is dealt with exactly once: its item, the action's effect and the bulk's position are written in one
// transaction, which holds the lock of the bulk's row. Any number of processes may run a Worker, and each may end at
// any time. The filter is checked again under the instance's lock. An instance that was created after the submission
// is never looked at.
//
// A bulk goes on with the rights of its submitter's request: they are checked when it is submitted, and when it is
// resumed or retried. To take them back, stop the bulk.
//
// # When things fail
//
//   - An instance that another transaction has locked is passed over and tried again later, ten times in ten seconds
//     or more. Then it has failed.
//   - After an exception, such as that of a guard, the instances of the call are tried one by one, and those that raise
//     fail. After a statement timeout the next call takes half as many.
//   - While the database is away the worker tries again.
//
// # What it may import
//
// fsm, fsm/definition, fsm/worker for its loop, db/queries, pgx, and the internal packages of fsm.
package bulk
