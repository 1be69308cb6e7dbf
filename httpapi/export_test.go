package httpapi

import "github.com/pawl-fsm/pawl/fsm"

// CodeOf is how a kind is called on the wire.
func CodeOf(kind fsm.Kind) (ProblemCode, bool) {
	code, known := codes[kind]
	return code, known
}

// Codes are those that problemKinds knows.
func Codes() map[ProblemCode]int {
	statuses := map[ProblemCode]int{}
	for code, kind := range problemKinds {
		if kind.title != "" && kind.description != "" {
			statuses[code] = kind.status
		}
	}
	return statuses
}

// ETags writes a precondition as entity tags.
func ETags(e fsm.Expect) string { return etags(e) }
