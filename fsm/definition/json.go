package definition

import (
	"bytes"
	"encoding"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxDepth is how many objects and arrays may be nested in one another.
const MaxDepth = 64

// The limits of numbers.
const (
	// jsonb keeps numbers as numeric, which has no more digits before and after the decimal point
	// (postgresql.org/docs/current/datatype-numeric.html).
	maxIntegerDigits  = 131072
	maxFractionDigits = 16383
	// The text of a jsonb value writes exponents out. So a short document could become gigabytes of text,
	// unless the digits that its exponents add are bounded.
	maxAddedDigits = 1 << 20
)

// Decode reads one strict JSON document (RFC 8259, with the rules of I-JSON, RFC 7493, on strings and
// members): UTF-8 without NUL or lone surrogates, no member twice, no member that the target does not
// know, no null except for a json.RawMessage, nothing behind the document, no nesting deeper than
// MaxDepth. The error is an [Error] with reason ErrMalformed and one fault.
func Decode(data []byte, into any) error {
	if err := checkJSON(data); err != nil {
		return err
	}
	err := json.Unmarshal(data, into, json.RejectUnknownMembers(true), json.WithUnmarshalers(refuseNull))
	if err == nil {
		return nil
	}
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) {
		return malformed("", err.Error())
	}
	detail := "does not fit here"
	switch {
	case errors.Is(err, json.ErrUnknownName):
		detail = "is not a member of this object"
	case errors.Is(err, errNull):
		detail = errNull.Error()
	case semantic.JSONKind == '"' && semantic.Err != nil && readsText(semantic.GoType) && !isTime(semantic.GoType):
		detail = semantic.Err.Error()
	case semantic.JSONKind != 0 && semantic.GoType != nil:
		detail = fitDetail(semantic.GoType, semantic.JSONKind)
	}
	return malformed(string(semantic.JSONPointer), detail)
}

// readsText reports whether values of a type are read from texts, whose errors are for clients.
func readsText(t reflect.Type) bool {
	return t != nil && reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// fitDetail says what a value must be that a Go type cannot hold. kind is what it is.
func fitDetail(want reflect.Type, kind jsontext.Kind) string {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	must := "must be " + wanted(want)
	if kind == '0' && isInteger(want) || kind == '"' && isTime(want) {
		return must // The kind is right.
	}
	return must + ", not " + kindName(kind)
}

// wanted says in terms of JSON what fits into a Go type.
func wanted(want reflect.Type) string {
	switch {
	case isTime(want):
		return "an RFC 3339 time such as 2026-03-01T09:30:00Z"
	case isInteger(want) && want.Bits() == 32:
		return fmt.Sprintf("a whole number from %d to %d, without a fraction or an exponent", math.MinInt32, math.MaxInt32)
	case isInteger(want):
		return "a whole number, without a fraction or an exponent"
	case readsText(want):
		return "a string"
	}
	switch want.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	default:
		return "an object"
	}
}

func isTime(t reflect.Type) bool { return t.ConvertibleTo(reflect.TypeFor[time.Time]()) }

func isInteger(t reflect.Type) bool { return t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64 }

var errNull = errors.New("must not be null; leave it out if there is none")

// refuseNull refuses a null that Go would turn into a zero value.
var refuseNull = json.UnmarshalFromFunc(func(d *jsontext.Decoder, v any) error {
	if _, free := v.(*stdjson.RawMessage); !free && d.PeekKind() == 'n' {
		return errNull
	}
	return json.SkipFunc
})

// checkJSON refuses a document that is not strict JSON, or that jsonb cannot hold.
func checkJSON(data []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(data))
	mayHoldNUL := bytes.Contains(data, []byte(`\u0000`))
	added := 0
	for {
		token, err := d.ReadToken()
		if err == io.EOF {
			return malformed("", "there is no JSON document")
		}
		if err != nil {
			return malformed(pointerOf(err), syntaxDetail(err))
		}
		switch token.Kind() {
		case '{', '[':
			if d.StackDepth() > MaxDepth {
				return malformed("", fmt.Sprintf("is nested deeper than %d", MaxDepth))
			}
		case '"':
			if mayHoldNUL && strings.ContainsRune(token.String(), 0) {
				return malformed(string(d.StackPointer()), `a string must not hold \u0000`)
			}
		case '0':
			number := token.String()
			whole, fraction := digits(number)
			if whole > maxIntegerDigits || fraction > maxFractionDigits {
				return malformed(string(d.StackPointer()), fmt.Sprintf(
					"a number must have at most %d digits before and %d after the decimal point",
					maxIntegerDigits, maxFractionDigits))
			}
			if added += max(whole+fraction-len(number), 0); added > maxAddedDigits {
				return malformed(string(d.StackPointer()), "the exponents up to here stand for too many digits")
			}
		}
		if d.StackDepth() == 0 {
			break
		}
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return malformed("", "there is something behind the JSON document")
	}
	return nil
}

// CheckObject returns an [Error] with reason ErrMalformed unless the document is a strict JSON object
// that jsonb can hold; see Decode.
func CheckObject(data []byte) error {
	if err := checkJSON(data); err != nil {
		return err
	}
	if jsontext.Value(data).Kind() != '{' {
		return malformed("", "must be a JSON object")
	}
	return nil
}

// digits counts the digits of a JSON number before and after the decimal point, with the exponent
// written out.
func digits(number string) (whole, fraction int) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(number), "e")
	before, after, _ := strings.Cut(strings.TrimPrefix(mantissa, "-"), ".")
	shift, _ := strconv.Atoi(exponent) // If it is out of range, Atoi returns the nearest int.
	const far = 1 << 30
	shift = min(max(shift, -far), far)
	return max(len(before)+shift, 0), max(len(after)-shift, 0)
}

func pointerOf(err error) string {
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return string(syntactic.JSONPointer)
	}
	return ""
}

func syntaxDetail(err error) string {
	var syntactic *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return "is a member twice"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the JSON document ends too soon"
	case errors.As(err, &syntactic) && syntactic.Err != nil:
		return fmt.Sprintf("%v, at byte %d", syntactic.Err, syntactic.ByteOffset)
	default:
		return "is not JSON"
	}
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "true or false"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	default:
		return "an array"
	}
}
