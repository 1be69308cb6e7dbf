package fsmtest

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// Database returns a pool on a fresh database for an Example, which has no testing.TB, and a function that
// removes the database.
func Database() (pool *pgxpool.Pool, remove func()) {
	t := &example{}
	var cancel context.CancelFunc
	t.ctx, cancel = context.WithCancel(context.Background())
	return dbtest.New(t), func() {
		cancel()
		// bounded: each round takes one away
		for len(t.cleanups) > 0 {
			last := len(t.cleanups) - 1
			cleanup := t.cleanups[last]
			t.cleanups = t.cleanups[:last]
			cleanup()
		}
	}
}

// example is as much of a testing.TB as dbtest needs. It panics where a test would fail.
type example struct {
	testing.TB
	ctx      context.Context
	cleanups []func()
}

func (e *example) Context() context.Context          { return e.ctx }
func (e *example) Cleanup(f func())                  { e.cleanups = append(e.cleanups, f) }
func (e *example) Helper()                           {}
func (e *example) Failed() bool                      { return false }
func (e *example) Log(...any)                        {}
func (e *example) Logf(string, ...any)               {}
func (e *example) Error(args ...any)                 { panic(fmt.Sprint(args...)) }
func (e *example) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (e *example) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (e *example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
