// Package insight says where the instances are, and what they did.
//
// A [Folder] reads the log for the consumer "insight" and keeps sums: how many instances are in which state, how often
// each step was made, and how long instances stayed in each state. Everything that is read off these sums is as of the
// last step that was folded.
//
// It may import fsm, outbox and the queries. It knows nothing of HTTP.
package insight
