package definition

import (
	_ "embed"
)

// DocumentSchema is the JSON Schema (draft 2020-12) of definitions, for editors. It takes what [Read] takes, but for
// the faults that only a look at the whole definition shows, such as a target that does not exist.
//
//go:embed schema.json
var DocumentSchema string
