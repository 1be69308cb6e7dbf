package db_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The model: what values and guards come to, in plain Go, written from the documentation of the language. JSON is as
// encoding/json decodes it with numbers as json.Number, and nothing is the type nothing.

type nothing struct{}

// A guardError says that an operation cannot be carried out. The text is its JSON Pointer.
type guardError string

func (e guardError) Error() string { return string(e) }

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case json.Number:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return "nothing"
}

func ratOf(n json.Number) *big.Rat {
	r, ok := new(big.Rat).SetString(n.String())
	if !ok {
		panic(n)
	}
	return r
}

// same is the equality of JSON: deep, and by the value of numbers.
func same(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return ok && ratOf(a).Cmp(ratOf(b)) == 0
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, same)
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, same)
	}
	return kindOf(a) == kindOf(b) && a == b
}

// truth is what a predicate comes to: true, false or unknown.
type truth int

const (
	no truth = iota
	yes
	unknown
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (t truth) not() truth {
	switch t {
	case yes:
		return no
	case no:
		return yes
	}
	return unknown
}

// Paths.

// A path is an expression, or a predicate, in a mode. The documentation of PostgreSQL says what it selects.
type path struct {
	lax       bool
	expr      expr
	predicate predicate
	text      string
}

type expr interface {
	// items is what it selects; an error if it fails. at is what @ stands for.
	items(p *path, document, at any) ([]any, error)
	String() string
}

type predicate interface {
	holds(p *path, document, at any) truth
	String() string
}

var errPath = errors.New("the path fails")

// plain says whether a path has only members and subscripts.
func (p *path) plain() bool {
	a, ok := p.expr.(accessor)
	return ok && a.root == "$" && !slices.ContainsFunc(a.steps, func(s step) bool { return s.all || s.filter != nil })
}

func (p *path) query(document any) ([]any, error) { return p.expr.items(p, document, nil) }

// all returns every item, as $all does.
func (p *path) all(document any, failed error) ([]any, error) {
	items, err := p.query(document)
	if err == nil {
		return append([]any{}, items...), nil
	}
	if head, ok := p.head(); ok {
		if begun, err := head.query(document); err != nil || len(begun) == 0 {
			return []any{}, nil
		}
	}
	return nil, failed
}

// head is the plain beginning of a path, without its last subscript if that counts from the end; false if it has none.
func (p *path) head() (*path, bool) {
	e := p.expr
	if m, ok := e.(method); ok {
		e = m.of
	}
	a, ok := e.(accessor)
	if !ok {
		return nil, false
	}
	n := slices.IndexFunc(a.steps, func(s step) bool { return s.all || s.filter != nil || s.last })
	if n < 0 {
		n = len(a.steps)
	}
	return &path{lax: p.lax, expr: accessor{root: "$", steps: a.steps[:n]}}, true
}

type number json.Number

func (n number) items(*path, any, any) ([]any, error) { return []any{json.Number(n)}, nil }
func (n number) String() string                       { return string(n) }

type literal struct{ value any }

func (l literal) items(*path, any, any) ([]any, error) { return []any{l.value}, nil }
func (l literal) String() string {
	text, _ := json.Marshal(l.value)
	return string(text)
}

type accessor struct {
	root  string // $ or @
	steps []step
}

type step struct {
	member string
	index  int // Of a subscript, if member is empty and it is not all, last or a filter.
	all    bool
	last   bool
	filter predicate
}

func (s step) String() string {
	switch {
	case s.member != "":
		return "." + s.member
	case s.all:
		return "[*]"
	case s.last:
		return "[last]"
	case s.filter != nil:
		return " ? (" + s.filter.String() + ")"
	}
	return fmt.Sprintf("[%d]", s.index)
}

func (a accessor) String() string {
	text := a.root
	for _, s := range a.steps {
		text += s.String()
	}
	return text
}

// unwrapped are the items of arrays, in lax mode.
func (p *path) unwrapped(items []any) (list []any) {
	for _, item := range items {
		if array, ok := item.([]any); ok && p.lax {
			list = append(list, array...)
		} else {
			list = append(list, item)
		}
	}
	return list
}

func (a accessor) items(p *path, document, at any) ([]any, error) {
	items := []any{document}
	if a.root == "@" {
		items = []any{at}
	}
	for _, s := range a.steps {
		if s.member != "" || s.filter != nil {
			items = p.unwrapped(items)
		}
		var next []any
		for _, item := range items {
			array, isArray := item.([]any)
			if !isArray && p.lax {
				array = []any{item}
			}
			object, _ := item.(map[string]any)
			index := s.index
			if s.last {
				index = len(array) - 1
			}
			switch {
			case s.filter != nil:
				if s.filter.holds(p, document, item) == yes {
					next = append(next, item)
				}
			case s.member != "":
				if v, ok := object[s.member]; ok {
					next = append(next, v)
				} else if !p.lax {
					return nil, errPath
				}
			case !isArray && !p.lax:
				return nil, errPath
			case s.all:
				next = append(next, array...)
			case index >= 0 && index < len(array):
				next = append(next, array[index])
			case !p.lax:
				return nil, errPath
			}
		}
		items = next
	}
	return items, nil
}

type arithmetic struct {
	operator    byte
	left, right expr
}

func (a arithmetic) String() string { return fmt.Sprintf("(%s %c %s)", a.left, a.operator, a.right) }

// scale is how many digits a number has behind the point.
func scale(n json.Number) int {
	_, fraction, _ := strings.Cut(n.String(), ".")
	return len(fraction)
}

func (a arithmetic) items(p *path, document, at any) ([]any, error) {
	var operands []json.Number
	for _, e := range []expr{a.left, a.right} {
		items, err := e.items(p, document, at)
		if items = p.unwrapped(items); err != nil || len(items) != 1 {
			return nil, errPath
		}
		n, ok := items[0].(json.Number)
		if !ok {
			return nil, errPath
		}
		operands = append(operands, n)
	}
	x, y, sum := ratOf(operands[0]), ratOf(operands[1]), new(big.Rat)
	digits := max(scale(operands[0]), scale(operands[1]))
	switch a.operator {
	case '+':
		sum.Add(x, y)
	case '-':
		sum.Sub(x, y)
	case '*':
		sum.Mul(x, y)
		digits = scale(operands[0]) + scale(operands[1])
	}
	return []any{json.Number(sum.FloatString(digits))}, nil
}

type method struct {
	of   expr
	name string
}

func (m method) String() string { return fmt.Sprintf("%s.%s()", m.of, m.name) }

func (m method) items(p *path, document, at any) ([]any, error) {
	items, err := m.of.items(p, document, at)
	if err != nil {
		return nil, err
	}
	if m.name != "size" && m.name != "type" {
		items = p.unwrapped(items)
	}
	var list []any
	for _, item := range items {
		switch m.name {
		case "type":
			list = append(list, kindOf(item))
			continue
		case "size":
			array, ok := item.([]any)
			if !ok && !p.lax {
				return nil, errPath
			}
			if !ok {
				array = []any{item}
			}
			list = append(list, json.Number(strconv.Itoa(len(array))))
			continue
		}
		n, ok := item.(json.Number)
		if !ok {
			return nil, errPath
		}
		r := ratOf(n)
		floor := new(big.Int).Div(r.Num(), r.Denom()) // Euclidean, and the denominator is positive.
		switch m.name {
		case "floor":
			list = append(list, json.Number(floor.String()))
		case "ceiling":
			if !r.IsInt() {
				floor.Add(floor, big.NewInt(1))
			}
			list = append(list, json.Number(floor.String()))
		case "abs":
			list = append(list, json.Number(r.Abs(r).FloatString(scale(n))))
		}
	}
	return list, nil
}

type comparison struct {
	operator    string
	left, right expr
}

func (c comparison) String() string { return fmt.Sprintf("%s %s %s", c.left, c.operator, c.right) }

func compare(operator string, a, b any) truth {
	if kindOf(a) != kindOf(b) {
		if a == nil || b == nil {
			return truthOf(operator == "!=")
		}
		return unknown
	}
	order := 0
	switch a := a.(type) {
	case nil:
	case bool:
		if a != b.(bool) {
			order = 1
			if b.(bool) {
				order = -1
			}
		}
	case json.Number:
		order = ratOf(a).Cmp(ratOf(b.(json.Number)))
	case string:
		order = strings.Compare(a, b.(string))
	default:
		return unknown
	}
	switch operator {
	case "==":
		return truthOf(order == 0)
	case "!=":
		return truthOf(order != 0)
	case "<":
		return truthOf(order < 0)
	case "<=":
		return truthOf(order <= 0)
	case ">":
		return truthOf(order > 0)
	}
	return truthOf(order >= 0)
}

func (c comparison) holds(p *path, document, at any) truth {
	left, err := c.left.items(p, document, at)
	right, err2 := c.right.items(p, document, at)
	if err != nil || err2 != nil {
		return unknown
	}
	found, failed := false, false
	for _, a := range p.unwrapped(left) {
		for _, b := range p.unwrapped(right) {
			switch compare(c.operator, a, b) {
			case yes:
				if found = true; p.lax {
					return yes
				}
			case unknown:
				if failed = true; !p.lax {
					return unknown
				}
			}
		}
	}
	switch {
	case found:
		return yes
	case failed:
		return unknown
	}
	return no
}

type junction struct {
	operator    string // && or ||
	left, right predicate
}

func (j junction) String() string { return fmt.Sprintf("(%s) %s (%s)", j.left, j.operator, j.right) }

func (j junction) holds(p *path, document, at any) truth {
	left, right := j.left.holds(p, document, at), j.right.holds(p, document, at)
	if j.operator == "&&" {
		return both(left, right)
	}
	return both(left.not(), right.not()).not()
}

func both(a, b truth) truth {
	switch {
	case a == no || b == no:
		return no
	case a == unknown || b == unknown:
		return unknown
	}
	return yes
}

type negation struct{ of predicate }

func (n negation) String() string                        { return fmt.Sprintf("!(%s)", n.of) }
func (n negation) holds(p *path, document, at any) truth { return n.of.holds(p, document, at).not() }

type isUnknown struct{ of predicate }

func (i isUnknown) String() string { return fmt.Sprintf("(%s) is unknown", i.of) }
func (i isUnknown) holds(p *path, document, at any) truth {
	return truthOf(i.of.holds(p, document, at) == unknown)
}

type exists struct{ of expr }

func (e exists) String() string { return fmt.Sprintf("exists(%s)", e.of) }
func (e exists) holds(p *path, document, at any) truth {
	items, err := e.of.items(p, document, at)
	if err != nil {
		return unknown
	}
	return truthOf(len(items) > 0)
}

// Values and guards.

// A value is what a definition writes. eval may return nothing. at is the JSON Pointer of the value.
type value interface {
	json() any
	eval(document any, at string) (any, error)
}

type guard interface {
	json() any
	eval(document any, at string) (truth, error)
}

type pathValue struct {
	*path
	wrapped bool // In {$path: …}.
}

func (v pathValue) json() any {
	if v.wrapped {
		return map[string]any{"$path": v.text}
	}
	return v.text
}

func (v pathValue) eval(document any, at string) (any, error) {
	items, err := v.query(document)
	switch {
	case err != nil && !v.plain():
		if v.wrapped {
			at += "/$path"
		}
		return nil, guardError(at)
	case err != nil || len(items) == 0:
		return nothing{}, nil
	}
	return items[0], nil
}

// A constant is a scalar, {$literal: …}, or a text with $$.
type constant struct {
	value any
	as    string // How it is written: "", "$literal".
}

func (c constant) json() any {
	if c.as != "" {
		return map[string]any{c.as: c.value}
	}
	if text, ok := c.value.(string); ok && strings.HasPrefix(text, "$") {
		return "$" + text
	}
	return c.value
}

func (c constant) eval(any, string) (any, error) { return c.value, nil }

type unset struct{}

func (unset) json() any                     { return map[string]any{"$unset": true} }
func (unset) eval(any, string) (any, error) { return unset{}, nil }

type arrayValue []value

func (v arrayValue) json() any {
	list := []any{}
	for _, item := range v {
		list = append(list, item.json())
	}
	return list
}

func (v arrayValue) eval(document any, at string) (any, error) {
	list := []any{}
	for n, item := range v {
		one, err := item.eval(document, fmt.Sprint(at, "/", n))
		if err != nil {
			return nil, err
		}
		if kindOf(one) != "nothing" {
			list = append(list, one)
		}
	}
	return list, nil
}

type objectValue map[string]value

func (v objectValue) json() any {
	object := map[string]any{}
	for name, item := range v {
		object[name] = item.json()
	}
	return object
}

func (v objectValue) eval(document any, at string) (any, error) {
	object := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(v)) {
		one, err := v[name].eval(document, at+"/"+name)
		if err != nil {
			return nil, err
		}
		if kindOf(one) != "nothing" {
			object[name] = one
		}
	}
	return object, nil
}

// An operation has values for operands. $if has its guard, and $set its names, beside them.
type operation struct {
	name     string
	operands []value
	guard    guard
	names    []value
}

func (o operation) json() any {
	list := []any{}
	if o.guard != nil {
		list = append(list, o.guard.json())
	}
	for n, operand := range o.operands {
		if o.name == "$set" && n == 1 {
			list = append(list, arrayValue(o.names).json())
		}
		list = append(list, operand.json())
	}
	if o.name == "$all" {
		return map[string]any{o.name: list[0]}
	}
	return map[string]any{o.name: list}
}

func (o operation) eval(document any, at string) (any, error) {
	at += "/" + o.name
	failed := guardError(at)
	switch o.name {
	case "$all":
		items, err := o.operands[0].(pathValue).all(document, failed)
		if err != nil {
			return nil, err
		}
		return items, nil
	case "$if":
		holds, err := o.guard.eval(document, at+"/0")
		if err != nil {
			return nil, err
		}
		branch := 1
		if holds == yes {
			branch = 0
		}
		return o.operands[branch].eval(document, fmt.Sprint(at, "/", branch+1))
	case "$first":
		for n, operand := range o.operands {
			v, err := operand.eval(document, fmt.Sprint(at, "/", n))
			if err != nil || v != nil && kindOf(v) != "nothing" {
				return v, err
			}
		}
		return nothing{}, nil
	}

	operands := make([]any, len(o.operands))
	for n, operand := range o.operands {
		place := n
		if o.name == "$set" && n == 1 {
			place = 2
		}
		var err error
		if operands[n], err = operand.eval(document, fmt.Sprint(at, "/", place)); err != nil {
			return nil, err
		}
		if !o.fits(operands, n) {
			return nil, failed
		}
	}
	isNothing := func(n int) bool { return kindOf(operands[n]) == "nothing" }
	first := operands[0]
	if isNothing(0) || first == nil {
		switch o.name {
		case "$append", "$union", "$without":
			first = []any{}
		case "$set":
			first = map[string]any{}
		}
	}
	switch o.name {
	case "$append", "$union":
		array := append([]any{}, first.([]any)...)
		for n := 1; n < len(operands); n++ {
			there := slices.ContainsFunc(array, func(v any) bool { return same(v, operands[n]) })
			if !isNothing(n) && (o.name == "$append" || !there) {
				array = append(array, operands[n])
			}
		}
		return array, nil
	case "$without":
		switch first := first.(type) {
		case []any:
			left := append([]any{}, first...)
			for n := 1; n < len(operands); n++ {
				left = slices.DeleteFunc(left, func(v any) bool { return same(v, operands[n]) })
			}
			return left, nil
		case map[string]any:
			left := maps.Clone(first)
			for n := 1; n < len(operands); n++ {
				if !isNothing(n) {
					delete(left, operands[n].(string))
				}
			}
			return left, nil
		}
	case "$merge":
		merged := map[string]any{}
		for n, operand := range operands {
			if isNothing(n) || operand == nil {
				continue
			}
			maps.Copy(merged, operand.(map[string]any))
		}
		return merged, nil
	case "$set":
		if isNothing(1) {
			return first, nil
		}
		var names []string
		for n, name := range o.names {
			v, err := name.eval(document, fmt.Sprint(at, "/1/", n))
			if err != nil {
				return nil, err
			}
			switch v := v.(type) {
			case string:
				if v == "" {
					return nil, failed
				}
				names = append(names, v)
			case json.Number:
				names = append(names, v.String())
			default:
				return nil, failed
			}
		}
		set, ok := setDeep(first, names, operands[1])
		if !ok {
			return nil, failed
		}
		return set, nil
	case "$concat":
		text, list, arrays, scalars := "", []any{}, 0, 0
		for n, operand := range operands {
			if isNothing(n) || operand == nil {
				continue
			}
			switch v := operand.(type) {
			case []any:
				arrays++
				list = append(list, v...)
			case map[string]any:
				return nil, failed
			default:
				scalars++
				text += fmt.Sprint(v)
			}
		}
		switch {
		case arrays > 0 && scalars > 0:
			return nil, failed
		case arrays > 0:
			return list, nil
		}
		return text, nil
	case "$time", "$duration":
		for n := range operands {
			if isNothing(n) {
				return nothing{}, nil
			}
		}
		from, ok := timeOf(first)
		if !ok {
			return nil, failed
		}
		if o.name == "$duration" {
			to, ok := timeOf(operands[1])
			if !ok {
				return nil, failed
			}
			seconds := big.NewRat(to.UnixMicro()-from.UnixMicro(), 1_000_000).FloatString(6)
			if strings.Contains(seconds, ".") {
				seconds = strings.TrimRight(strings.TrimRight(seconds, "0"), ".")
			}
			return json.Number(seconds), nil
		}
		text, ok := operands[1].(string)
		if !ok {
			return nil, failed
		}
		months, rest, ok := durationOf(text)
		if !ok {
			return nil, failed
		}
		zone := time.UTC
		if len(operands) > 2 {
			name, ok := operands[2].(string)
			if !ok {
				return nil, failed
			}
			var err error
			if zone, err = time.LoadLocation(name); err != nil || name == "" {
				return nil, failed
			}
		}
		at := addMonths(from, months, zone).Add(rest).UTC()
		if at.Year() > 9999 {
			return nil, failed
		}
		return at.Format("2006-01-02T15:04:05.000000+00:00"), nil
	}
	panic(o.name)
}

// fits says whether the last operand, of those up to n, is of a type that the operation may have there. What is missing
// or null counts as empty if it is what the operation begins with.
func (o operation) fits(operands []any, n int) bool {
	kind := kindOf(operands[n])
	empty := kind == "nothing" || kind == "null"
	switch {
	case o.name == "$merge":
		return empty || kind == "object"
	case n > 0 && o.name == "$without" && kindOf(operands[0]) == "object":
		return kind == "nothing" || kind == "string"
	case n > 0:
		return true
	case o.name == "$append" || o.name == "$union":
		return empty || kind == "array"
	case o.name == "$without" || o.name == "$set":
		return empty || kind == "array" || kind == "object"
	}
	return true
}

// setDeep sets a member of a member; false if it cannot.
func setDeep(v any, names []string, to any) (any, bool) {
	if len(names) == 0 {
		return to, true
	}
	switch v := v.(type) {
	case nil, nothing:
		set, ok := setDeep(nothing{}, names[1:], to)
		return map[string]any{names[0]: set}, ok
	case map[string]any:
		child, there := v[names[0]]
		if !there {
			child = nothing{}
		}
		set, ok := setDeep(child, names[1:], to)
		v = maps.Clone(v)
		v[names[0]] = set
		return v, ok
	case []any:
		n, err := strconv.Atoi(names[0])
		if err != nil || n < 0 || n >= len(v) {
			return nil, false
		}
		set, ok := setDeep(v[n], names[1:], to)
		v = slices.Clone(v)
		v[n] = set
		return v, ok
	}
	return nil, false
}

// timeOf reads an RFC 3339 time. Go's parser is laxer about the size of an offset.
func timeOf(v any) (time.Time, bool) {
	text, ok := v.(string)
	if !ok {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, strings.ToUpper(text))
	_, offset := at.Zone()
	return at, err == nil && offset < 16*3600 && offset > -16*3600
}

var (
	durationPart = regexp.MustCompile(`([0-9.]+)(ms|mo|[ywdhmsYMWDHS])`)
	plainForm    = regexp.MustCompile(`^[+-]?([0-9]+(ms|mo|y|w|d|h|m|s))+$`)
	isoForm      = regexp.MustCompile(`^[+-]?P([0-9]+Y)?([0-9]+M)?([0-9]+W)?([0-9]+D)?(T([0-9]+H)?([0-9]+M)?([0-9]+([.][0-9]+)?S)?)?$`)
)

// durationOf reads a duration of at most ten years.
func durationOf(text string) (months int, rest time.Duration, ok bool) {
	iso := isoForm.MatchString(text) && strings.IndexAny(text, "0123456789") > 0 && !strings.HasSuffix(text, "T")
	if !iso && !plainForm.MatchString(text) {
		return 0, 0, false
	}
	date, clock, _ := strings.Cut(strings.TrimLeft(text, "+-P"), "T")
	seconds := new(big.Rat)
	for n, part := range []string{date, clock} {
		for _, m := range durationPart.FindAllStringSubmatch(part, -1) {
			amount, _ := new(big.Rat).SetString(m[1])
			unit := m[2]
			if iso && unit == "M" && n == 0 {
				unit = "mo"
			}
			each := map[string]int64{"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
			switch unit = strings.ToLower(unit); unit {
			case "y":
				months += 12 * int(amount.Num().Int64())
			case "mo":
				months += int(amount.Num().Int64())
			default:
				seconds.Add(seconds, amount.Mul(amount, big.NewRat(each[unit], 1000)))
			}
		}
	}
	length := new(big.Rat).SetInt64(int64(months) * 2_628_000) // A month counts as a twelfth of 365 days.
	if length.Add(length, seconds).Cmp(big.NewRat(315_360_000, 1)) > 0 {
		return 0, 0, false
	}
	nanoseconds := seconds.Mul(seconds, big.NewRat(int64(time.Second), 1))
	rest = time.Duration(nanoseconds.Num().Int64() / nanoseconds.Denom().Int64())
	if strings.HasPrefix(text, "-") {
		return -months, -rest, true
	}
	return months, rest, true
}

// addMonths counts months by the calendar of a zone: the day is at most the month's last one. A time of day that the
// clocks skip is read with the offset before it, and one that there is twice with the offset after it.
func addMonths(at time.Time, months int, zone *time.Location) time.Time {
	if months == 0 {
		return at
	}
	local := at.In(zone)
	first := time.Date(local.Year(), local.Month()+time.Month(months), 1, 0, 0, 0, 0, time.UTC)
	day := min(local.Day(), first.AddDate(0, 1, -1).Day())
	wall := time.Date(first.Year(), first.Month(), day, local.Hour(), local.Minute(), local.Second(), local.Nanosecond(), time.UTC)
	_, before := wall.Add(-24 * time.Hour).In(zone).Zone()
	_, after := wall.Add(24 * time.Hour).In(zone).Zone()
	read := func(offset int) time.Time { return wall.Add(-time.Duration(offset) * time.Second) }
	valid := func(offset int) bool {
		_, there := read(offset).In(zone).Zone()
		return there == offset
	}
	if valid(after) {
		return read(after)
	}
	return read(before)
}

type pathGuard struct{ *path }

func (g pathGuard) json() any { return g.text }

func (g pathGuard) eval(document any, _ string) (truth, error) {
	if g.predicate != nil {
		return g.predicate.holds(g.path, document, nil), nil
	}
	items, err := g.query(document)
	if err != nil || len(items) != 1 {
		return unknown, nil
	}
	if b, ok := items[0].(bool); ok {
		return truthOf(b), nil
	}
	return unknown, nil
}

// A guardObject has guards, a path or two values.
type guardObject struct {
	name   string
	guards []guard
	values []value
}

func (g guardObject) json() any {
	list := []any{}
	for _, one := range g.guards {
		list = append(list, one.json())
	}
	for _, one := range g.values {
		list = append(list, one.json())
	}
	switch g.name {
	case "not", "present", "absent":
		return map[string]any{g.name: list[0]}
	}
	return map[string]any{g.name: list}
}

func (g guardObject) eval(document any, at string) (truth, error) {
	at += "/" + g.name
	switch g.name {
	case "not":
		holds, err := g.guards[0].eval(document, at)
		return holds.not(), err
	case "all", "any":
		// They end as soon as they are decided.
		result, ends := yes, no
		if g.name == "any" {
			result, ends = no, yes
		}
		for n, one := range g.guards {
			holds, err := one.eval(document, fmt.Sprint(at, "/", n))
			if err != nil {
				return unknown, err
			}
			if holds == ends {
				return ends, nil
			}
			if holds == unknown {
				result = unknown
			}
		}
		return result, nil
	case "present", "absent":
		v := g.values[0].(pathValue)
		items, err := v.query(document)
		if err != nil && !v.plain() {
			if items, err = v.all(document, guardError(at)); err != nil {
				return unknown, err
			}
		}
		return truthOf((err == nil && len(items) > 0) == (g.name == "present")), nil
	}
	var operands []any
	for n, v := range g.values {
		one, err := v.eval(document, fmt.Sprint(at, "/", n))
		if err != nil {
			return unknown, err
		}
		operands = append(operands, one)
	}
	if kindOf(operands[0]) == "nothing" || kindOf(operands[1]) == "nothing" {
		return unknown, nil
	}
	switch g.name {
	case "equal":
		return truthOf(same(operands[0], operands[1])), nil
	case "in":
		list, ok := operands[1].([]any)
		if !ok {
			return unknown, guardError(at)
		}
		return truthOf(slices.ContainsFunc(list, func(v any) bool { return same(v, operands[0]) })), nil
	}
	a, ok := timeOf(operands[0])
	b, ok2 := timeOf(operands[1])
	if !ok || !ok2 {
		return unknown, guardError(at)
	}
	return truthOf(g.name == "before" && a.Before(b) || g.name == "after" && a.After(b)), nil
}

// assigned carries out an assign: what the payload gives first, then names in their order.
func assigned(document map[string]any, payload any, names map[string]value, at string) (any, error) {
	context := maps.Clone(document["context"].(map[string]any))
	sent := document["payload"].(map[string]any)
	switch payload := payload.(type) {
	case bool:
		maps.Copy(context, sent)
	case []string:
		for _, name := range payload {
			if v, there := sent[name]; there {
				context[name] = v
			}
		}
	}
	var result any = context
	for _, name := range slices.Sorted(maps.Keys(names)) {
		at := at + "/" + name
		v, err := names[name].eval(document, at)
		if err != nil {
			return nil, err
		}
		parts := strings.Split(name, ".")
		switch v.(type) {
		case nothing:
		case unset:
			result = removed(result, parts)
		default:
			var ok bool
			if result, ok = setDeep(result, parts, v); !ok {
				return nil, guardError(at)
			}
		}
	}
	return result, nil
}

// removed removes a member of a member, if it is there.
func removed(v any, names []string) any {
	switch v := v.(type) {
	case map[string]any:
		child, there := v[names[0]]
		if !there {
			return v
		}
		v = maps.Clone(v)
		if delete(v, names[0]); len(names) > 1 {
			v[names[0]] = removed(child, names[1:])
		}
		return v
	case []any:
		n, err := strconv.Atoi(names[0])
		if err != nil || n < 0 || n >= len(v) {
			return v
		}
		v = slices.Clone(v)
		if len(names) == 1 {
			return slices.Delete(v, n, n+1)
		}
		v[n] = removed(v[n], names[1:])
		return v
	}
	return v
}
