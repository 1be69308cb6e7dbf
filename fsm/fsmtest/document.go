package fsmtest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pawl-fsm/pawl/fsm"
)

// SameJSON compares two documents, whatever their text.
func SameJSON(t testing.TB, got json.RawMessage, want string) {
	t.Helper()
	if diff := cmp.Diff(Decoded(t, want), Decoded(t, string(got))); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

// Decoded returns the value of a document, with numbers as json.Number.
func Decoded(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// Pointers lists where the faults are.
func Pointers(faults []fsm.Fault) []string {
	list := []string{}
	for _, f := range faults {
		list = append(list, f.Pointer)
	}
	return list
}

// Describe lists the faults, one a line.
func Describe(faults []fsm.Fault) string {
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&b, "%s: %s\n", f.Pointer, f.Detail)
	}
	return b.String()
}
