package httpapi

import (
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// CodeOf returns the code that a kind of fsm is mapped to.
func CodeOf(kind fsm.Kind) (string, bool) {
	code, known := codes[kind]
	return string(code), known
}

// Codes returns the status of each code that has a title and a description.
func Codes() map[string]int {
	statuses := map[string]int{}
	for code, kind := range problemKinds {
		if kind.title != "" && kind.description != "" {
			statuses[string(code)] = kind.status
		}
	}
	return statuses
}

// TitleOf returns the title of a code.
func TitleOf(code string) string { return problemKinds[api.ProblemCode(code)].title }

// CheckContract returns the error with which New would fail if the contract were this text.
func CheckContract(text []byte) error {
	_, err := parseContract(text)
	return err
}

// Admits reports whether an operation with this x-scope admits a token with these scopes. The
// error is that of an x-scope with which New fails.
func Admits(extension any, held ...Scope) (bool, error) {
	a, err := parseAccess(extension)
	return err == nil && (a.public || a.allow(held) == nil), err
}
