// Package insight says where the instances are, and what they did.
//
// # What it owns
//
//   - [Folder] leads the consumer "insight" and adds each step of the log to sums: how many instances are in which state,
//     how often each step was made, and how long instances stayed in each state. It also has the values noted that
//     instances are found by. The sums, and the statement that folds a page of the log into them, are in the
//     database; see module insight in db/schema.
//   - [Tally] counts what commands were answered in this process, and adds that to the counts in the database at times.
//   - [Service] reads the sums: [Service.Stats] and [Service.Forecast].
//
// # What holds
//
// A page of steps is folded in the transaction that moves the consumer's position, so that each step counts exactly once,
// whatever dies meanwhile. What is read off the sums is as of the last step that was folded. Sums of one tenant are shown to
// no other, and no forecast is made from another tenant's instances. The counts of a Tally are approximate.
//
// # When things fail
//
// A Folder whose process dies, or that cannot renew its lease, is followed by that of another process, which goes on behind
// the last page that was committed. While none runs, the numbers stay as they are, and say as of when they are; commands
// never wait for one.
//
// # What it may import
//
// fsm, outbox and the queries. It knows nothing of HTTP.
package insight
