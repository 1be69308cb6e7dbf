package fsm

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

// schemaRoot is the address that a schema has while it is compiled; nothing is there. It
// is a folder, so that no relative reference but an empty one leads back to it.
const schemaRoot = "pawl:///schema/"

// noLoader refuses every reference out of the document, which would otherwise read
// files.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("$ref to %s leaves the document", url)
}

// compileSchema reads a JSON Schema (draft 2020-12 unless $schema says otherwise) that
// refers to nothing but itself.
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

// schemaFault words an error of compileSchema for the author of the schema.
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

// A schemas memo holds compiled schemas by the checksum of their text. Compiling is a
// pure function of that text, so nothing in it can be stale.
type schemas struct {
	mu       sync.Mutex
	compiled map[string]*jsonschema.Schema
}

// maxSchemas bounds the memo; beyond it, it starts afresh.
const maxSchemas = 1024

// check validates a document, pointing its faults below root, and returns the schema's
// checksum, which is the one that the database has for it.
func (s *schemas) check(schema, document []byte, root string) (checksum string, faults []Fault, err error) {
	sum := sha256.Sum256(schema)
	checksum = hex.EncodeToString(sum[:])
	s.mu.Lock()
	compiled, known := s.compiled[checksum]
	s.mu.Unlock()
	if !known {
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

var english = message.NewPrinter(language.English)

// leaves collects the innermost errors, which name the actual faults.
func leaves(e *jsonschema.ValidationError, faults []Fault) []Fault {
	if len(e.Causes) == 0 {
		detail := strings.ReplaceAll(e.ErrorKind.LocalizedString(english), schemaRoot, "")
		return append(faults, Fault{Pointer: pointer(e.InstanceLocation...), Detail: detail})
	}
	for _, cause := range e.Causes {
		faults = leaves(cause, faults)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	return faults
}

var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

// pointer writes a JSON Pointer.
func pointer(tokens ...string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString("/" + pointerEscapes.Replace(t))
	}
	return b.String()
}
