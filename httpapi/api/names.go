package api

import (
	"bytes"
	"encoding/json"
)

// Names are one name or several: a JSON string, or an array of strings.
type Names []string

// UnmarshalJSON reads either form.
func (n *Names) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte{'"'}) {
		*n = make(Names, 1)
		return json.Unmarshal(data, &(*n)[0])
	}
	return json.Unmarshal(data, (*[]string)(n))
}
