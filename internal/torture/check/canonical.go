package check

import (
	"bytes"
	"encoding/json"
)

// Canonical writes a JSON document in one way: members in order, no spaces, numbers as they are. It returns a text
// that is not JSON as it is, and {} for no document and for null.
func Canonical(document json.RawMessage) string {
	if len(document) == 0 {
		return "{}"
	}
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return string(document)
	}
	if v == nil {
		return "{}"
	}
	out, err := json.Marshal(v)
	if err != nil {
		return string(document)
	}
	return string(out)
}

// same reports whether two documents are one.
func same(a, b json.RawMessage) bool { return bytes.Equal(a, b) || Canonical(a) == Canonical(b) }

// present reports whether there is a document. A record that was kept has null for none.
func present(document json.RawMessage) bool { return len(document) > 0 && string(document) != "null" }
