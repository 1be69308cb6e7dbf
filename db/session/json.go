package session

import (
	"bytes"
	"encoding/json"

	"github.com/jackc/pgx/v5/pgtype"
)

// readJSON makes a json.RawMessage a copy of what the server sends. The server sends valid JSON. The driver's own codecs
// parse the document twice to find that out: a page of a list with 1 MiB of contexts took 10 ms and more of a processor.
func readJSON(types *pgtype.Map) {
	unmarshal := func(src []byte, v any) error {
		if raw, ok := v.(*json.RawMessage); ok {
			*raw = bytes.Clone(src)
			return nil
		}
		return json.Unmarshal(src, v)
	}
	types.RegisterType(&pgtype.Type{Name: "json", OID: pgtype.JSONOID, Codec: &pgtype.JSONCodec{Marshal: json.Marshal, Unmarshal: unmarshal}})
	types.RegisterType(&pgtype.Type{Name: "jsonb", OID: pgtype.JSONBOID, Codec: &pgtype.JSONBCodec{Marshal: json.Marshal, Unmarshal: unmarshal}})
}
