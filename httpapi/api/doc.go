// Package api holds the Go types of the HTTP contract, httpapi/openapi.yaml.
//
// # What it owns
//
// One type for each schema of the contract, one for the query parameters of each
// operation and a constant for each member of an enumeration: api.gen.go, which
// make generate writes. The other files hold what the generator cannot write: [Timestamp],
// the data of a streamed event, and the conversions from the domain types of package fsm to
// these types.
//
// The server (package httpapi) answers with these types. A client, such as the command line,
// decodes them. Both therefore change when the contract changes, or they do not compile.
//
// # What it does not hold
//
// No routes, no handlers, no validation beyond the form of a time, and no state. Decoding
// into these types is as lenient as encoding/json; the server refuses unknown members itself
// ([fsm.Decode]).
//
// # Imports
//
// It may import package fsm and the standard library. It must not import httpapi, echo, the
// database or net/http, so that a program that only speaks the contract does not link the
// server.
package api
