package definition

import (
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

const (
	// maxFaults is how many faults of a document are reported.
	maxFaults = 100
	// maxDescribed is how many are described. There may be fewer to report, since some are the same.
	maxDescribed = 1000
	// maxDetail is how many characters the detail of a fault has.
	maxDetail = 1000
	// maxSchemaFaults is how many faults of a schema are reported in the detail of one fault.
	maxSchemaFaults = 10
)

// english prints numbers without separators between their digits.
var english = message.NewPrinter(language.MustParse("en-US-u-va-posix"))

// schemaFault turns an error of the compiler into a detail for the author of the schema.
func schemaFault(err error, schema any) string {
	var load *jsonschema.LoadURLError
	var invalid *jsonschema.SchemaValidationError
	var faults *jsonschema.ValidationError
	switch {
	case errors.As(err, &load):
		return withoutRoots(load.Err.Error())
	case errors.As(err, &invalid) && errors.As(invalid.Err, &faults):
		words := []string{}
		for i, f := range documentFaults(faults, schema, "") {
			if i == maxSchemaFaults {
				words = append(words, "and more")
				break
			}
			words = append(words, strings.TrimPrefix(f.Pointer+": "+f.Detail, ": "))
		}
		return "is no JSON Schema: " + strings.Join(words, "; ")
	default:
		return shortened(withoutRoots(err.Error()))
	}
}

// documentFaults lists the innermost errors: each names a fault of the document, while those around it name the
// parts of the schema that lead there. The pointers begin with root.
func documentFaults(e *jsonschema.ValidationError, document any, root string) []Fault {
	type leaf struct {
		pointer string
		*jsonschema.ValidationError
	}
	var leaves []leaf
	found := map[string]bool{} // A schema may be applied to a value by many ways, with the same fault.
	var collect func(e *jsonschema.ValidationError)
	collect = func(e *jsonschema.ValidationError) {
		name, isName := e.ErrorKind.(*kind.PropertyNames)
		if !isName && len(e.Causes) > 0 {
			for _, cause := range e.Causes {
				collect(cause)
			}
			return
		}
		l := leaf{root + Pointer(e.InstanceLocation...), e}
		key := fmt.Sprintf("%q", append([]string{l.pointer, e.SchemaURL}, e.ErrorKind.KeywordPath()...))
		if isName {
			key += name.Property
		}
		if !found[key] {
			leaves = append(leaves, l)
			found[key] = true
		}
	}
	collect(e)
	slices.SortStableFunc(leaves, func(a, b leaf) int { return strings.Compare(a.pointer, b.pointer) })
	var faults []Fault
	described := map[Fault]bool{}
	more := false
	for i, l := range leaves {
		if more = len(faults) == maxFaults || i == maxDescribed; more {
			break
		}
		f := Fault{Pointer: l.pointer, Detail: shortened(describe(l.ValidationError, document))}
		if !described[f] {
			faults = append(faults, f)
			described[f] = true
		}
	}
	slices.SortFunc(faults, func(a, b Fault) int {
		return cmp.Or(strings.Compare(a.Pointer, b.Pointer), strings.Compare(a.Detail, b.Detail))
	})
	if more {
		faults = append(faults, Fault{Pointer: root, Detail: fmt.Sprintf("there are more faults than these %d", len(faults))})
	}
	return faults
}

// describe says what an error means. Numbers have all their digits; the library's own words round them.
func describe(e *jsonschema.ValidationError, document any) string {
	var bound *big.Rat
	switch k := e.ErrorKind.(type) {
	case *kind.Minimum:
		bound = k.Want
	case *kind.Maximum:
		bound = k.Want
	case *kind.ExclusiveMinimum:
		bound = k.Want
	case *kind.ExclusiveMaximum:
		bound = k.Want
	case *kind.MultipleOf:
		bound = k.Want
	case *kind.Format:
		if r, ours := k.Err.(*refusal); ours {
			return r.Error()
		}
	case *kind.PropertyNames:
		words := k.LocalizedString(english)
		if len(e.Causes) > 0 {
			words += ": " + documentFaults(e.Causes[0], k.Property, "")[0].Detail
		}
		return words
	}
	if bound != nil {
		return fmt.Sprintf("%s: got %v, want %s", e.ErrorKind.KeywordPath()[0], valueAt(document, e.InstanceLocation), exact(bound))
	}
	return withoutRoots(e.ErrorKind.LocalizedString(english))
}

// valueAt returns the value at a place in a document.
func valueAt(document any, location []string) any {
	for _, token := range location {
		switch v := document.(type) {
		case map[string]any:
			document = v[token]
		case []any:
			if i, err := strconv.Atoi(token); err == nil && i < len(v) {
				document = v[i]
			}
		}
	}
	return document
}

// exact writes a number that a JSON document can hold with all its digits.
func exact(r *big.Rat) string {
	decimals, _ := r.FloatPrec()
	return r.FloatString(decimals)
}

func constFault(value any) jsonschema.ErrorKind   { return &kind.Const{Want: value} }
func enumFault(values []any) jsonschema.ErrorKind { return &kind.Enum{Want: values} }
func typeFault(got string, want []string) jsonschema.ErrorKind {
	return &kind.Type{Got: got, Want: want}
}

func uniqueFault(first, second int) jsonschema.ErrorKind {
	return &kind.UniqueItems{Duplicates: [2]int{first, second}}
}

func withoutRoots(text string) string { return strings.ReplaceAll(text, schemaRoot, "") }

// shortened cuts a detail that is too long.
func shortened(detail string) string {
	if len(detail) <= maxDetail {
		return detail
	}
	n := 0
	for i := range detail {
		if n++; n > maxDetail {
			return detail[:i] + "…"
		}
	}
	return detail
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
