package diagnosis_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
}
