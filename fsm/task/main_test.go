package task_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
}

// packing offers work of the topic pack.
const packing = `{"name": "packing", "initial": "A", "states": {
	"A": {"invoke": {"pack": {"work": {"topic": "pack"}, "deadline": "1h", "done": "B", "error": "B", "unknown": "B"}}},
	"B": {"type": "final"}}}`
