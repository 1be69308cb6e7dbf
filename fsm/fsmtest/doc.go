// Package fsmtest has what the tests of fsm and of the packages under it share: a [Service] on a database
// of its own, definitions, and short calls, each of which ends the test if it fails.
//
// It is for tests only, like db/dbtest, on which it is built. The tests of package fsm are an external test
// package, so that this package may import fsm and fsm/lifecycle.
package fsmtest
