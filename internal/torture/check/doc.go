// Package check says what is wrong with a run of pawl under faults, from a record of what clients, receivers and the
// database saw. It is pure: it asks no database, and a record that was kept can be checked again.
//
// # What it owns
//
// A [Run] is the record. [All] runs these checks over it:
//
//   - linearizable: what clients were told of an instance fits one order of its commands. The search is porcupine's, an
//     instance at a time. One that does not end in time is a violation that says "unknown".
//   - acknowledged: history has what clients were told, and nothing that nobody has asked for. What a loss took is the
//     end of what was written.
//   - keys: a key has one effect, and a retry is answered as the first attempt was.
//   - versions: versions are numbered without a gap, and times rise.
//   - replay: states and contexts are those of the [Model].
//   - timers: they fire in time, not before and not after their state was left, and the armed ones are the right ones.
//   - delivered: every receiver got every step, in order, and nothing else; ids name what they say.
//   - tasks: each task ends in time, has one outcome in history, and one effect at the provider for each key that it may use.
//   - sagas: what was done is undone newest first, one step at a time and once, or it is parked with a reason.
//   - healed: all worked again in time.
//
// A fault is found by one check as a rule, which leaves to the others what they compare. [Plant] falsifies a run in one
// way, so that a user can see the checks find it; the tests plant every fault in simulated runs.
//
// # What it takes for granted
//
// All times of a run are of one machine's clock, the database's included. After a loss nothing was committed until the
// new server took writes, so a step's time says on which side of the loss it was made. Each command has a key of its
// own.
//
// # Imports
//
// It imports nothing of the module.
package check
