package definition_test

import (
	"fmt"
	"testing"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

func TestSchemaMemoIsBounded(t *testing.T) {
	t.Parallel()
	var memo definition.Schemas
	sums := map[string]bool{}
	for n := range definition.MaxSchemas + 10 {
		sum, faults, err := memo.Check(t.Context(), fmt.Appendf(nil, `{"minProperties":%d}`, n), []byte(`{"a":1}`), "")
		if err != nil || (len(faults) > 0) != (n > 1) {
			t.Fatalf("%d: %v, %v", n, faults, err)
		}
		sums[sum] = true
		if memo.Len() > definition.MaxSchemas {
			t.Fatalf("%d schemas are held", memo.Len())
		}
	}
	if len(sums) != definition.MaxSchemas+10 {
		t.Errorf("%d checksums", len(sums))
	}
	before := memo.Len()
	if _, _, err := memo.Check(t.Context(), []byte(`{"minProperties":1033}`), []byte(`{}`), ""); err != nil || memo.Len() != before {
		t.Errorf("a schema that is known is compiled anew: %d, then %d, %v", before, memo.Len(), err)
	}
}
