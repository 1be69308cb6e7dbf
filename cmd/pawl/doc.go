// Command pawl is a finite-state-machine service whose only dependency is PostgreSQL.
//
// # Commands
//
// The commands are of three kinds, and each file holds commands of one kind:
//
//   - `pawl serve` and `pawl dev` run the service. They wire the packages that do the work. `pawl
//     bench` measures a service that it runs as another process.
//   - `pawl migrate`, `pawl outbox status`, `pawl outbox delete`, `pawl instance archive` and `pawl
//     workflow migration --against` open the database themselves.
//   - All others are clients of the HTTP API. They import the types of its contract and the language
//     of definitions, and nothing of the server. A test checks the imports file by file.
//
// A command parses flags and environment, calls the package that does the work, and prints the result.
//
// # Exit codes
//
// 0 means success. 1 means that the command failed, or that its answer is no, as of `pawl workflow
// diff` and `pawl workflow backtest`. 2 means that the arguments were refused, or that such an answer
// could not be found. As a rule an error is one line on standard error, which begins with "pawl: ".
package main
