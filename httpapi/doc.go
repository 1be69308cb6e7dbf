// Package httpapi serves the HTTP contract, openapi.yaml, on top of package fsm.
//
// The contract is written first: routes and types in api.gen.go are generated from it,
// and at run time the same document says which query parameters an operation knows,
// which methods a path has, and what an operation asks of its caller.
//
// A request passes these stages, each of which may answer it with a problem:
//
//	ServeHTTP      request id, log line, panics            server.go
//	  admit        path and query, method, caller, headers request.go, auth.go
//	  echo         routing and binding, generated          server.go, api.gen.go
//	    handlers   one file per noun, func(ctx, Request) (Response, error)
//
// Handlers know neither echo nor Postgres: they return an error, which becomes a problem
// (RFC 9457) in problem.go, where one table maps each fsm.Kind to a code and a code to
// its status. A cause that is not fit for clients is logged with the request's id.
//
// Nothing here remembers anything between requests, but for the tokens of the rate
// limit, so that any replica serves any request.
package httpapi
