package httpapi_test

import (
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
)

func TestETagsOfAPrecondition(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]fsm.Expect{
		"": {}, "*": fsm.ExpectAny(), `"3"`: fsm.ExpectVersion(3), `"3", "-4"`: fsm.ExpectVersion(3, -4),
	} {
		if got := httpapi.ETags(e); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
