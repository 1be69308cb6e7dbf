// Command torture runs replicas of pawl on private PostgreSQL servers, breaks them while clients work, and checks what
// all of these saw. docs/torture.md says how to use it.
//
// # What it owns
//
//	clients ──▶ link ──▶ pawl serve ──▶ link ──▶ PostgreSQL ──link──▶ standby
//	                          │
//	   record ◀── streams, webhook receiver, sink (its standard output)
//
// A scenario is a deployment and the faults that happen to it. A run of a scenario is a [world]: it builds the
// deployment, lets clients and receivers work, injects the faults, waits until every replica answers again and every
// receiver has every step, reads the history, and gives the record to package check. The replicas are processes of
// bin/pawl, so that kill -9 is real. The servers are those of package localpg. Each link is a TCP proxy, which cuts,
// delays or swallows what goes through it.
//
// # What a seed decides
//
// Everything that the program draws: which commands a client sends, how long it waits, which fault comes when, what the
// webhook receiver refuses. Each of those who draw has a source of its own, so that none depends on when another one
// draws. What a seed does not decide is how the system schedules processes, and so which commands are under way when a
// fault comes. A run that failed may therefore pass when it is replayed; its folder has the record.
//
// # When things fail
//
// A violation is a result: it is written with the command that replays the run, and the folder of the run is kept. So is
// whatever keeps a run from its end, such as a replica that does not start; the next run follows. On SIGINT and SIGTERM the tool stops what it
// started. If it is killed, the servers end by themselves, and the replicas are left.
//
// # Imports
//
// It imports db/localpg and internal/torture/check, and reaches all else as a client does: over HTTP and SQL.
package main
