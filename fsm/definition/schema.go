package definition

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// schemaRoot is the base URI of a schema while it is compiled. Nothing can be read there. It ends
// with a slash, so that no relative reference except the empty one resolves to it.
const schemaRoot = "pawl:///schema/"

// noLoader refuses every reference that leaves the document. The library's default reads files.
type noLoader struct{}

// Load returns an error.
func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("$ref to %s leaves the document", url)
}

// compileSchema compiles a JSON Schema that refers to nothing but itself. Without $schema it is of
// draft 2020-12 (json-schema.org/draft/2020-12).
func compileSchema(schema []byte) (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	if err := c.AddResource(schemaRoot, document); err != nil {
		return nil, err
	}
	return c.Compile(schemaRoot)
}

// schemaFault turns an error of compileSchema into a detail for the author of the schema.
func schemaFault(err error) string {
	var load *jsonschema.LoadURLError
	var invalid *jsonschema.SchemaValidationError
	var faults *jsonschema.ValidationError
	switch {
	case errors.As(err, &load):
		return strings.ReplaceAll(load.Err.Error(), schemaRoot, "")
	case errors.As(err, &invalid) && errors.As(invalid.Err, &faults):
		words := []string{}
		for _, f := range leaves(faults, nil) {
			words = append(words, strings.TrimPrefix(f.Pointer+": "+f.Detail, ": "))
		}
		return "is no JSON Schema: " + strings.Join(words, "; ")
	default:
		return strings.ReplaceAll(err.Error(), schemaRoot, "")
	}
}

// Schemas checks documents against JSON Schemas. It keeps compiled schemas by the checksum of their text.
// Compiling is a pure function of the text, so nothing that is kept can be stale. The zero value is ready for
// use by several goroutines.
type Schemas struct {
	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema
}

// maxSchemas is how many compiled schemas are kept. Before there would be more, all are dropped.
const maxSchemas = 1024

// Check checks a document against a schema, both as JSON text. It returns the faults of the document, whose
// pointers begin with root. checksum is the SHA-256 of the schema's text in hexadecimal, by which the engine
// knows the schema. The error says that the schema or the document could not be read, which does not happen
// to what the engine has stored.
func (s *Schemas) Check(schema, document []byte, root string) (checksum string, faults []Fault, err error) {
	sum := sha256.Sum256(schema)
	checksum = hex.EncodeToString(sum[:])
	compiled := s.get(checksum)
	if compiled == nil {
		if compiled, err = compileSchema(schema); err != nil {
			return "", nil, fmt.Errorf("schema: %w", err)
		}
		s.mu.Lock()
		if s.compiled == nil || len(s.compiled) >= maxSchemas {
			s.compiled = map[string]*jsonschema.Schema{}
		}
		s.compiled[checksum] = compiled
		s.mu.Unlock()
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		return "", nil, fmt.Errorf("schema: %w", err)
	}
	var invalid *jsonschema.ValidationError
	if err := compiled.Validate(value); errors.As(err, &invalid) {
		faults = leaves(invalid, nil)
		for i := range faults {
			faults[i].Pointer = root + faults[i].Pointer
		}
	}
	return checksum, faults, nil
}

// Fits reports whether a document fits the schema with a checksum. It reports false if the schema is not kept.
func (s *Schemas) Fits(checksum string, document []byte) bool {
	compiled := s.get(checksum)
	if compiled == nil {
		return false
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	return err == nil && compiled.Validate(value) == nil
}

// get returns the compiled schema with a checksum, or nil if it is not kept.
func (s *Schemas) get(checksum string) *jsonschema.Schema {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compiled[checksum]
}

var english = message.NewPrinter(language.English)

// leaves collects the innermost errors: each names a fault of the document, while those around it
// name the parts of the schema that lead there.
func leaves(e *jsonschema.ValidationError, faults []Fault) []Fault {
	if len(e.Causes) == 0 {
		detail := strings.ReplaceAll(e.ErrorKind.LocalizedString(english), schemaRoot, "")
		return append(faults, Fault{Pointer: Pointer(e.InstanceLocation...), Detail: detail})
	}
	for _, cause := range e.Causes {
		faults = leaves(cause, faults)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	return faults
}

var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

// Pointer returns the JSON Pointer (RFC 6901) of the tokens.
func Pointer(tokens ...string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString("/" + pointerEscapes.Replace(t))
	}
	return b.String()
}
