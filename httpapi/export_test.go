package httpapi

import (
	"net/http"
	"testing"

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
	a, err := parseAdmission(extension)
	p := principal{grants: []grant{{scopes: held}}}
	return err == nil && (a.public || p.has(a.scopes...)), err
}

// ETags writes a precondition as entity tags.
func ETags(e fsm.Expect) string { return etags(e) }

// CallerAddress returns the address that a service with this configuration records for a request.
func CallerAddress(t testing.TB, config Config, in *http.Request) string {
	t.Helper()
	e, err := newEdge(config)
	if err != nil {
		t.Fatal(err)
	}
	return e.caller(in)
}
