package bounded

import (
	"runtime"
	"strings"
)

const module = "github.com/pawl-fsm/pawl/"

// stacks returns the stacks of the goroutines that run code of this module, without those of tests that wait for their
// turn or for their subtests.
func stacks() string {
	buffer := make([]byte, 1<<20)
	text := string(buffer[:runtime.Stack(buffer, true)])
	var of []string
	for stack := range strings.SplitSeq(text, "\n\n") {
		if strings.Contains(stack, module) && !strings.Contains(stack, "testing.(*T).Parallel(") && !strings.Contains(stack, "testing.(*T).Run(") {
			of = append(of, stack)
		}
	}
	return strings.Join(of, "\n\n")
}
