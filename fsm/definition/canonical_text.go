package definition

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// numberText is a number as a decoder that keeps digits returns it.
type numberText = json.Number

// typeOf returns the JSON type of a decoded value.
func typeOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case numberText:
		return "number"
	case []any:
		return "array"
	default:
		return "object"
	}
}

// canonicalText returns a text that two values share if and only if they are equal: objects whatever their order,
// numbers by their value.
func canonicalText(m *meter, v any) string {
	var b strings.Builder
	writeCanonical(m, &b, v)
	return b.String()
}

func writeCanonical(m *meter, b *strings.Builder, v any) {
	switch v := v.(type) {
	case nil:
		m.take(1)
		b.WriteString("null")
	case bool:
		m.take(1)
		b.WriteString(strconv.FormatBool(v))
	case string:
		m.take(1 + len(v)/256)
		b.WriteString(strconv.Itoa(len(v)))
		b.WriteByte('"')
		b.WriteString(v)
	case numberText:
		m.take(1 + len(v)/256)
		digits, exponent := canonicalNumber(string(v))
		b.WriteString(digits)
		b.WriteByte('e')
		b.WriteString(strconv.Itoa(exponent))
	case []any:
		m.take(1)
		b.WriteByte('[')
		for _, item := range v {
			writeCanonical(m, b, item)
			b.WriteByte(',')
		}
		b.WriteByte(']')
	case map[string]any:
		m.take(1 + len(v))
		b.WriteByte('{')
		for _, name := range slices.Sorted(maps.Keys(v)) {
			writeCanonical(m, b, name)
			b.WriteByte(':')
			writeCanonical(m, b, v[name])
			b.WriteByte(',')
		}
		b.WriteByte('}')
	}
}

// canonicalNumber returns a JSON number as an integer without trailing zeros, and the power of ten that it is
// multiplied by. The number is an integer if the exponent is not negative.
func canonicalNumber(number string) (digits string, exponent int) {
	mantissa, power, _ := strings.Cut(strings.ToLower(number), "e")
	exponent, _ = strconv.Atoi(power) // If it is out of range, Atoi returns the nearest int.
	const far = 1 << 40
	exponent = min(max(exponent, -far), far)
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits = strings.TrimLeft(whole+fraction, "0")
	trimmed := strings.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed) - len(fraction)
	switch {
	case trimmed == "":
		return "0", 0
	case negative:
		return "-" + trimmed, exponent
	}
	return trimmed, exponent
}
