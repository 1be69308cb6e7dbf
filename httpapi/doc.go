// Package httpapi serves the HTTP contract, openapi.yaml, on top of package fsm.
//
// # What it owns
//
// The contract, its adapter to HTTP, and who may call which operation. The contract is
// written first. The types in package api and the routes in server.gen.go are generated from
// it. At run time the same document says which methods a path has, which query parameters an
// operation has, and which scopes it requires.
//
// # How a request is answered
//
// A request passes these stages, and each may end it with a problem:
//
//	ServeHTTP      request id, log line, panics                    server.go
//	  edge         Host, origin, preflight requests                edge.go
//	  admit        path, method, token, scope, rate, query, Accept request.go, contract.go, token.go, scope.go, limit.go
//	               repeated headers, idempotency key, entity tags, preferences  header.go
//	  echo         routing, binding, strict decoding of the body   server.go, server.gen.go
//	    handlers   one file a resource: func(ctx, Request) (Response, error)
//
// Handlers know neither echo nor PostgreSQL. An error that a handler returns becomes a problem
// (RFC 9457) in problem.go, where one table maps each fsm.Kind to a code and another maps each
// code to its status.
//
// # Invariants
//
//   - Access is closed by default. Each operation declares x-scope in the contract, and nothing
//     is derived from its method or path. New fails if an operation declares none.
//   - The process keeps nothing between requests except the token buckets of the rate limit,
//     so any replica serves any request.
//   - A problem never contains the text of an internal error, SQL, a path or a stack.
//   - echo is imported by server.go and server.gen.go alone.
//
// # When things fail
//
// An error of an unknown type, and a panic, are answered with internal; the cause is logged
// under the id of the request. While the database is unavailable a request gets unavailable
// with Retry-After, and an open stream stays open and tries again. When the process begins to
// shut down, waiting requests are answered with what is true then, and streams end. A client
// that does not read a stream is disconnected after StreamPatience.
//
// A client that has closed its own side of the connection cannot be told from one that is gone. A
// command or a read goes on for Outlive, so that the answer reaches the one that still reads. A wait
// is answered with what is true then; a stream, a simulation and a back-test end.
//
// # Imports
//
// It may import fsm, api and echo. It must not import outbox, db or pgx; only its tests use a
// database directly.
package httpapi
