package definition_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// check checks a document against a schema, and fails the test if that does not end.
func check(t *testing.T, memo *definition.Schemas, schema, document string) []definition.Fault {
	t.Helper()
	var faults []definition.Fault
	var err error
	bounded.Wait(t, "the end of a check", func() {
		_, faults, err = memo.Check(t.Context(), []byte(schema), []byte(document), "/context")
	})
	if err != nil {
		t.Fatalf("%.200s: %v", schema, err)
	}
	return faults
}

func join(n int, item func(i int) string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = item(i)
	}
	return strings.Join(items, ",")
}

// nested is a document that nests objects, each the member c of the one around it.
func nested(depth int) string {
	return strings.Repeat(`{"c":`, depth) + `{}` + strings.Repeat(`}`, depth)
}

// A schema applies itself twice to each member, so that its check takes 2^depth steps. Each way to apply a schema
// is metered, also where every result is a failure.
func TestChecksAreBounded(t *testing.T) {
	t.Parallel()
	twice := `"properties":{"c":{"$ref":"#"}}`
	dozens := func(f func(i int) string) string { return join(40, f) }
	collide := func(i int) string { // The library's hash does not tell arrays within arrays apart.
		text := `[[]]`
		for bit := range 14 {
			if i>>bit&1 == 0 {
				text = `[` + text + `,[]]`
			} else {
				text = `[[],` + text + `]`
			}
		}
		return text
	}
	for schema, document := range map[string]string{
		// "Extend the base": the usual form.
		`{"$ref":"#/$defs/section","$defs":{"base":{"type":"object","properties":{"child":{"$ref":"#/$defs/section"}}},
			"section":{"allOf":[{"$ref":"#/$defs/base"},{"properties":{"child":{"$ref":"#/$defs/section"}}}]}}}`: strings.ReplaceAll(nested(60), `"c"`, `"child"`),
		`{` + twice + `,"allOf":[{` + twice + `}]}`:                                                 nested(60),
		`{` + twice + `,"anyOf":[{"allOf":[{` + twice + `},false]},true]}`:                          nested(60),
		`{` + twice + `,"oneOf":[{` + twice + `}]}`:                                                 nested(60),
		`{` + twice + `,"if":{` + twice + `}}`:                                                      nested(60),
		`{` + twice + `,"if":false,"else":{` + twice + `}}`:                                         nested(60),
		`{` + twice + `,"if":true,"then":{` + twice + `}}`:                                          nested(60),
		`{` + twice + `,"dependentSchemas":{"c":{` + twice + `}}}`:                                  nested(60),
		`{` + twice + `,"patternProperties":{"c":{"$ref":"#"}}}`:                                    nested(60),
		`{"allOf":[{"additionalProperties":{"$ref":"#"}},{"additionalProperties":{"$ref":"#"}}]}`:   nested(60),
		`{"allOf":[{"unevaluatedProperties":{"$ref":"#"}},{"unevaluatedProperties":{"$ref":"#"}}]}`: nested(60),
		`{` + twice + `,"not":{"allOf":[{` + twice + `},false]}}`:                                   nested(60),
		`{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"a":{"$ref":"#"}},` + twice + `,"allOf":[{"properties":{"c":{"$ref":"#/definitions/a"}}}]}`:                   nested(60),
		`{"$schema":"https://json-schema.org/draft/2019-09/schema","$recursiveAnchor":true,"properties":{"c":{"$recursiveRef":"#"}},"allOf":[{"properties":{"c":{"$recursiveRef":"#"}}}]}`: nested(60),
		// Only a dynamic anchor leads to the schema that applies itself.
		`{"$ref":"list","$defs":{"own":{"$dynamicAnchor":"item","properties":{"c":{"$dynamicRef":"#item"}},"allOf":[{"properties":{"c":{"$dynamicRef":"#item"}}}]},
			"list":{"$id":"list","$dynamicRef":"#item","$defs":{"any":{"$dynamicAnchor":"item"}}}}}`: nested(60),
		// Arrays.
		`{"properties":{"a":{"$ref":"#/$defs/l"}},"$defs":{"l":{"items":{"$ref":"#/$defs/l"},"contains":{"$ref":"#/$defs/l"}}}}`:         `{"a":` + strings.Repeat(`[`, 60) + strings.Repeat(`]`, 60) + `}`,
		`{"properties":{"a":{"$ref":"#/$defs/l"}},"$defs":{"l":{"prefixItems":[{"$ref":"#/$defs/l"}],"contains":{"$ref":"#/$defs/l"}}}}`: `{"a":` + strings.Repeat(`[`, 60) + strings.Repeat(`]`, 60) + `}`,
		// Booleans in place of schemas.
		`{"additionalProperties":{"allOf":[` + join(450, func(int) string { return `{"items":{"anyOf":[false,true]}}` }) + `]}}`: `{"a":[` + join(20_000, func(int) string { return "1" }) + `]}`,
		`{"additionalProperties":{"allOf":[` + join(900, func(int) string { return `{"items":true}` }) + `]}}`:                   `{"a":[` + join(20_000, func(int) string { return "1" }) + `]}`,
		// Values that are compared.
		`{"additionalProperties":{"uniqueItems":true}}`: `{"a":[` + join(10_000, collide) + `]}`,
		`{"additionalProperties":{"allOf":[` + join(300, func(i int) string { return fmt.Sprintf(`{"not":{"enum":[[%d]]}}`, i) }) + `]}}`: `{"a":[` + join(20_000, func(int) string { return "1" }) + `]}`,
		// Numbers of many digits.
		`{"additionalProperties":{"allOf":[` + join(300, func(i int) string { return fmt.Sprintf(`{"multipleOf":%d}`, 1<<(i%30)) }) + `]}}`: `{"a":1e130000}`,
		// Patterns.
		`{"additionalProperties":{"pattern":"(a{1,100}b?){1,9}$"}}`:                                       `{` + dozens(func(i int) string { return fmt.Sprintf(`"%d":"%s"`, i, strings.Repeat("a", 25_000)) }) + `}`,
		`{"patternProperties":{"(x|[a-z]{1,90}y?){1,10}$":{}}}`:                                           `{` + dozens(func(i int) string { return fmt.Sprintf(`"%s%d":1`, strings.Repeat("a", 25_000), i) }) + `}`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","additionalProperties":{"format":"regex"}}`: `{` + join(200, func(i int) string { return fmt.Sprintf(`"%d":"%sx{1,%d}"`, i, strings.Repeat("(a{9}){99}", 15), 500+i) }) + `}`,
		`{"additionalProperties":{"format":"regex"}}`:                                                     `{` + join(200, func(i int) string { return fmt.Sprintf(`"%d":"%sx{1,%d}"`, i, strings.Repeat("(a{9}){99}", 15), 500+i) }) + `}`,
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			const limit = 100_000
			steps := bounded.Result(t, "the end of a check", func() int {
				steps, err := definition.Steps(t.Context(), schema, document, limit)
				if err != nil {
					t.Error(err)
				}
				return steps
			})
			if steps <= limit {
				t.Errorf("%.300s takes %d steps", schema, steps)
			}
		})
	}
}

// A document that takes too many steps has one fault, which says so.
func TestACheckWithoutEndIsAFault(t *testing.T) {
	t.Parallel()
	schema := `{"allOf":[{"$ref":"#/$defs/base"},{"properties":{"c":{"$ref":"#"}}}],"$defs":{"base":{"type":"object","properties":{"c":{"$ref":"#"}}}}}`
	var memo definition.Schemas
	faults := check(t, &memo, schema, nested(60))
	if len(faults) != 1 || !strings.Contains(faults[0].Detail, "takes more than 2000000 steps") || faults[0].Pointer != "/context" {
		t.Errorf("%.300s", fmt.Sprint(faults))
	}
	sum, faults, err := memo.Check(t.Context(), []byte(schema), []byte(nested(3)), "")
	if err != nil || len(faults) > 0 {
		t.Errorf("a document that is not deep: %v, %v", faults, err)
	}
	if memo.Fits(t.Context(), sum, []byte(nested(60))) || !memo.Fits(t.Context(), sum, []byte(nested(3))) {
		t.Error("Fits says otherwise")
	}
}

// honest is a document of about so many bytes, as an application would send it.
func honest(size int) string {
	line := `{"id":"3f1c","sku":"AB-1234","description":"A seat at the window, row 12","price":129.95,"currency":"EUR","quantity":2,"tags":["seat","window"],"email":"jane.doe@example.com"}`
	return `{"lines":[` + join(size/len(line), func(int) string { return line }) + `]}`
}

const honestSchema = `{
	"type": "object", "required": ["lines"], "additionalProperties": false,
	"properties": {"lines": {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/identified"}, {"$ref": "#/$defs/priced"}], "unevaluatedProperties": false}}},
	"$defs": {
		"identified": {"type": "object", "required": ["id", "sku"], "properties": {
			"id": {"type": "string", "minLength": 1, "maxLength": 64}, "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,12}$"},
			"description": {"type": "string", "maxLength": 500}, "email": {"type": "string", "pattern": "^[A-Za-z0-9._%+-]{1,64}@([A-Za-z0-9-]{1,63}\\.){1,8}[A-Za-z]{2,24}$"}}},
		"priced": {"oneOf": [
			{"properties": {"currency": {"const": "USD"}}, "required": ["usd"]},
			{"properties": {"price": {"type": "number", "minimum": 0, "multipleOf": 0.01}, "currency": {"enum": ["EUR", "GBP", "CHF"]},
				"quantity": {"type": "integer", "minimum": 1}, "tags": {"type": "array", "uniqueItems": true, "items": {"type": "string"}}}}]}
	}
}`

// Documents as large as a body may be are far from the limit, if their schemas are honest.
func TestHonestDocumentsAreChecked(t *testing.T) {
	t.Parallel()
	var memo definition.Schemas
	if faults := check(t, &memo, honestSchema, honest(64<<10)); len(faults) > 0 {
		t.Error(faults)
	}
	for _, c := range []struct {
		schema, document string
		margin           float64
	}{
		{honestSchema, honest(64 << 10), 20},
		{honestSchema, honest(1 << 20), 1.5},
		// A dense array has the most values in a document.
		{`{"properties":{"a":{"items":{"type":"integer"}}}}`, `{"a":[` + join(32<<10, func(int) string { return "1" }) + `]}`, 15},
		{`{"properties":{"a":{"items":{"type":"integer"}}}}`, `{"a":[` + join(1<<19-10, func(int) string { return "1" }) + `]}`, 1.2},
	} {
		steps, err := definition.Steps(t.Context(), c.schema, c.document, definition.MaxSteps)
		if err != nil || float64(steps)*c.margin > definition.MaxSteps {
			t.Errorf("%d bytes take %d steps: %v", len(c.document), steps, err)
		}
	}
}

// A long check needs a slot. Short checks do not wait for it.
func TestLongChecksWaitForASlot(t *testing.T) {
	t.Parallel()
	var memo definition.Schemas
	long := honest(64 << 10)
	if faults := check(t, &memo, honestSchema, long); len(faults) > 0 {
		t.Fatal(faults)
	}
	release := memo.TakeSlots(t.Context())
	if faults := check(t, &memo, honestSchema, honest(1<<10)); len(faults) > 0 {
		t.Errorf("a short check: %v", faults)
	}
	err := bounded.Result(t, "the end of a check", func() error {
		_, _, err := memo.Check(t.Context(), []byte(honestSchema), []byte(long), "")
		return err
	})
	if !errors.Is(err, definition.ErrBusy) {
		t.Errorf("while all slots are taken: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := memo.Check(gone, []byte(honestSchema), []byte(long), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("when the caller has gone: %v", err)
	}
	release()
	if faults := check(t, &memo, honestSchema, long); len(faults) > 0 {
		t.Errorf("when the slots are free again: %v", faults)
	}
}

// The faults of a document are described up to a number and a length.
func TestFaultsOfADocumentAreBounded(t *testing.T) {
	t.Parallel()
	var memo definition.Schemas
	faults := check(t, &memo, `{"additionalProperties":{"type":"string"}}`, `{`+join(5000, func(i int) string { return fmt.Sprintf(`"n%d":%d`, i, i) })+`}`)
	if len(faults) != 101 || faults[100].Detail != "there are more faults than these 100" {
		t.Errorf("%d faults, the last is %v", len(faults), faults[len(faults)-1])
	}
	if !slices.IsSortedFunc(faults[:100], func(a, b definition.Fault) int { return strings.Compare(a.Pointer, b.Pointer) }) {
		t.Error("they are not sorted")
	}
	faults = check(t, &memo, `{"maxProperties":1,"additionalProperties":false}`, `{`+join(2000, func(i int) string { return fmt.Sprintf(`"name%d":1`, i) })+`}`)
	if len(faults) != 2 || len(faults[0].Detail) > 1010 {
		t.Errorf("%d faults of %d bytes", len(faults), len(faults[0].Detail))
	}
	// The same fault is found by 2^14 ways.
	faults = check(t, &memo, `{"properties":{"c":{"$ref":"#"}},"allOf":[{"properties":{"c":{"$ref":"#"}}}],"required":["c"]}`, nested(12))
	if len(faults) != 1 || faults[0].Pointer != "/context"+strings.Repeat("/c", 12) {
		t.Errorf("%v", faults)
	}
	faults = check(t, &memo, `{"propertyNames":{"maxLength":3}}`, `{"abcd":1}`)
	if len(faults) != 1 || faults[0].Pointer != "/context" || faults[0].Detail != "invalid propertyName 'abcd': maxLength: got 4, want 3" {
		t.Errorf("%v", faults)
	}
	faults = check(t, &memo, `{"properties":{"c":{"type":"string"}},"additionalProperties":{"$ref":"#/$defs/t"},"$defs":{"t":{"allOf":[`+
		join(100, func(int) string { return `{"items":{"type":"string"}}` })+`]}}}`, `{"c":1,"a":[`+join(2000, func(int) string { return "1" })+`]}`)
	if len(faults) != 1 || !strings.Contains(faults[0].Detail, "to list its faults") {
		t.Errorf("%.300s", fmt.Sprint(faults))
	}
}

// Numbers in faults have all their digits.
func TestFaultsKeepDigits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ schema, number, want string }{
		{`{"maximum":9007199254740992}`, `9007199254740993`, "maximum: got 9007199254740993, want 9007199254740992"},
		{`{"minimum":9007199254740993}`, `9007199254740992.0`, "minimum: got 9007199254740992.0, want 9007199254740993"},
		{`{"exclusiveMaximum":9007199254740993.125}`, `9007199254740993.125`, "exclusiveMaximum: got 9007199254740993.125, want 9007199254740993.125"},
		{`{"exclusiveMinimum":1234567}`, `1e6`, "exclusiveMinimum: got 1e6, want 1234567"},
		{`{"multipleOf":9007199254740993}`, `9007199254740994`, "multipleOf: got 9007199254740994, want 9007199254740993"},
		{`{"const":9007199254740993}`, `9007199254740992`, "value must be 9007199254740993"},
		{`{"enum":[9007199254740993,1.10]}`, `9007199254740992`, "value must be one of 9007199254740993, 1.10"},
		{`{"minLength":1234567}`, `"a"`, "minLength: got 1, want 1234567"},
		{`{"type":"integer"}`, `9007199254740992.5`, "got number, want integer"},
	} {
		var memo definition.Schemas
		faults := check(t, &memo, `{"properties":{"n":`+c.schema+`}}`, `{"n":`+c.number+`}`)
		if len(faults) != 1 || faults[0].Detail != c.want || faults[0].Pointer != "/context/n" {
			t.Errorf("%s of %s: %v, want %q", c.schema, c.number, faults, c.want)
		}
	}
}

// What a definition brings is bounded when it is registered.
func TestSchemasAreBounded(t *testing.T) {
	t.Parallel()
	doubling := `{"$ref":"#/$defs/d0","$defs":{` + join(30, func(i int) string {
		return fmt.Sprintf(`"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}`, i, i+1, i+1)
	}) + `,"d30":{}}}`
	for schema, want := range map[string]string{
		`{"properties":{` + join(1001, func(i int) string { return fmt.Sprintf(`"p%d":{}`, i) }) + `}}`: "1003 objects of at most 1000",
		doubling: "checking even {} against this schema takes more than 100000 steps",
		`{"pattern":"` + strings.Repeat("(a{100}){10}", 30) + `"}`:                "its patterns stand for more than 20000",
		`{"patternProperties":{"` + strings.Repeat("(a{100}){10}", 30) + `":{}}}`: "its patterns stand for more than 20000",
		`{"pattern":"` + strings.Repeat("a", 30_000) + `"}`:                       "its patterns stand for more than 20000",
		`true`:  "an object",
		`false`: "an object",
	} {
		text := `{"name":"w","initial":"A","context_schema":` + schema + `,"states":{"A":{"on":{"go":{"target":"B","payload_schema":` + schema + `}}},"B":{"type":"final"}}}`
		found := bounded.Result(t, "the faults of a definition", func() map[string]string { return faults(t, text, "", definition.Limits{}) })
		expect(t, fmt.Sprintf("%.200s", text), found, map[string]string{"/context_schema": want, "/states/A/on/go/payload_schema": want})
	}
	// Many schemas of one definition, each of which would do.
	large := func(i int) string {
		return fmt.Sprintf(`"e%d":{"target":"B","payload_schema":{"title":"%d","properties":{%s}}}`, i, i, join(400, func(i int) string { return fmt.Sprintf(`"p%d":{}`, i) }))
	}
	many := `{"name":"w","initial":"A","states":{"A":{"on":{` + join(60, large) + `}},"B":{"type":"final"}}}`
	found := bounded.Result(t, "the faults of a definition", func() map[string]string { return faults(t, many, "", definition.Limits{}) })
	if len(found) == 0 || len(found) > 30 {
		t.Errorf("%d faults: %.500s", len(found), fmt.Sprint(found))
	}
	for at, detail := range found {
		if !strings.Contains(detail, "too large together") {
			t.Errorf("%s: %s", at, detail)
		}
	}
	// The same schema for many events is one.
	same := strings.NewReplacer(`"title":"`, `"title":"same`).Replace(many)
	for i := range 60 {
		same = strings.Replace(same, fmt.Sprintf(`"title":"same%d"`, i), `"title":"same"`, 1)
	}
	if found := faults(t, same, "", definition.Limits{}); found != nil {
		t.Errorf("%.500s", fmt.Sprint(found))
	}
}

// The metered check finds what the library's own finds.
func TestChecksAreThoseOfTheLibrary(t *testing.T) {
	t.Parallel()
	value := rapid.SampledFrom([]string{
		`1`, `1.0`, `10e-1`, `-0`, `0`, `1.5`, `9007199254740993`, `"a"`, `"1"`, `""`, `null`, `true`, `false`,
		`{}`, `[]`, `[1]`, `[1.0]`, `[[1]]`, `{"a":1}`, `{"a":1.0,"b":"x"}`, `{"b":"x","a":1}`, `["a",1]`, `[1,1]`, `[1,1.0]`,
	})
	rapid.Check(t, func(t *rapid.T) {
		leaf := func() string {
			return rapid.OneOf(
				rapid.Map(value, func(v string) string { return `{"const":` + v + `}` }),
				rapid.Map(rapid.SliceOfN(value, 1, 4), func(v []string) string { return `{"enum":[` + strings.Join(v, ",") + `]}` }),
				rapid.Map(rapid.SampledFrom([]string{"null", "boolean", "number", "integer", "string", "array", "object"}), func(v string) string { return `{"type":["` + v + `"]}` }),
				rapid.SampledFrom([]string{`{"uniqueItems":true}`, `{"minimum":1}`, `{"multipleOf":0.5}`, `true`, `false`, `{}`, `{"required":["a"]}`, `{"pattern":"^a"}`, `{"propertyNames":{"pattern":"^a$"}}`}),
			).Draw(t, "leaf")
		}
		schema := leaf()
		for range rapid.IntRange(0, 3).Draw(t, "levels") {
			form := rapid.SampledFrom([]string{
				`{"allOf":[%s,%s]}`, `{"anyOf":[%s,%s]}`, `{"oneOf":[%s,%s]}`, `{"if":%s,"then":%s}`, `{"not":%s,"$comment":"","else":%s}`,
				`{"items":%s,"properties":{"a":%s}}`, `{"contains":%s,"additionalProperties":%s}`, `{"prefixItems":[%s],"unevaluatedItems":%s}`,
				`{"allOf":[{"properties":{"a":%s}}],"unevaluatedProperties":%s}`, `{"patternProperties":{"a":%s},"dependentSchemas":{"b":%s}}`,
			}).Draw(t, "form")
			schema = fmt.Sprintf(form, schema, leaf())
		}
		schema = `{"properties":{"v":` + schema + `}}`
		document := `{"v":` + value.Draw(t, "v") + `}`
		decode := func(text string) any {
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource("x:///", decode(schema)); err != nil {
			t.Fatal(err)
		}
		plain, err := c.Compile("x:///")
		if err != nil {
			t.Fatal(err)
		}
		want := plain.Validate(decode(document)) == nil
		var memo definition.Schemas
		sum, faults, err := memo.Check(context.Background(), []byte(schema), []byte(document), "")
		if err != nil || (len(faults) == 0) != want || memo.Fits(context.Background(), sum, []byte(document)) != want {
			t.Fatalf("%s of %s: %v, %v; want it to fit: %v", schema, document, faults, err, want)
		}
	})
}
