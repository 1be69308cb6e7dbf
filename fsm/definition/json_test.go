package definition_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	var into struct {
		Name  string          `json:"name"`
		Count *int            `json:"count"`
		Raw   json.RawMessage `json:"raw"`
		List  []struct {
			A string `json:"a"`
		} `json:"list"`
		Small int32      `json:"small"`
		At    time.Time  `json:"at"`
		Yes   *bool      `json:"yes"`
		From  netip.Addr `json:"from"`
	}
	if err := definition.Decode([]byte(" {\"name\": \"\\u00e9\\ud83d\\ude00é\", \"count\": 3, \"raw\": 9007199254740993.10}\n"), &into); err != nil {
		t.Fatal(err)
	}
	if err := definition.Decode([]byte(`{"name":"é😀é","count":3,"raw":null}`), &into); err != nil || string(into.Raw) != "null" {
		t.Errorf("null where anything goes: %s, %v", into.Raw, err)
	}
	if err := definition.Decode([]byte(`{"raw":9007199254740993.10}`), &into); err != nil {
		t.Fatal(err)
	}
	if into.Name != "é😀é" || *into.Count != 3 || string(into.Raw) != "9007199254740993.10" {
		t.Errorf("got %+v", into)
	}
	for text, want := range map[string]string{
		``:                                 "|no JSON document",
		` `:                                "|no JSON document",
		`{`:                                "|too soon",
		`{"name":`:                         "/name|too soon",
		`{"name":"a}`:                      "/name|too soon",
		`nul`:                              "|too soon",
		`{"name":"a",}`:                    "|at byte 11",
		`{name:"a"}`:                       "|at byte 2",
		`{"name":'a'}`:                     "/name|at byte 8",
		`{"count":01}`:                     "|at byte",
		`{"count":NaN}`:                    "/count|at byte",
		`// c`:                             "|at byte 0",
		"\ufeff{}":                         "|at byte 0",
		`{}{}`:                             "|behind",
		`{} x`:                             "|behind",
		`{}` + "\x00":                      "|behind",
		`{"name":"a","name":"a"}`:          "/name|twice",
		`{"name":"a","n\u0061me":"a"}`:     "/name|twice",
		`{"raw":[{"a/b":{"x":1,"x":1}}]}`:  "/raw/0/a~1b/x|twice",
		`{"nam":"a"}`:                      "/nam|not a member",
		`{"Name":"a"}`:                     "/Name|not a member",
		`{"list":[{"a":"1"},{"b~":1}]}`:    "/list/1/b~0|not a member",
		`{"name":1}`:                       "/name|must be a string, not a number",
		`{"small":2147483648}`:             "/small|must be a whole number from -2147483648 to 2147483647",
		`{"small":"1"}`:                    "/small|not a string",
		`{"at":"yesterday"}`:               "/at|must be an RFC 3339 time such as 2026-03-01T09:30:00Z",
		`{"at":1}`:                         "/at|2026-03-01T09:30:00Z, not a number",
		`{"yes":"true"}`:                   "/yes|must be true or false, not a string",
		`{"list":[1]}`:                     "/list/0|must be an object",
		`{"from":[]}`:                      "/from|must be a string",
		`{"from":"here"}`:                  "/from|unable to parse IP",
		`{"name":null}`:                    "/name|null",
		`{"count":null}`:                   "/count|null",
		`{"list":[{"a":null}]}`:            "/list/0/a|null",
		`null`:                             "|null",
		`{"name":[]}`:                      "/name|must be a string, not an array",
		`{"count":"1"}`:                    "/count|must be a whole number, without a fraction or an exponent, not a string",
		`{"count":1.5}`:                    "/count|must be a whole number",
		`{"count":1e99}`:                   "/count|must be a whole number",
		`{"list":{}}`:                      "/list|must be an array, not an object",
		`[]`:                               "|must be an object, not an array",
		`true`:                             "|must be an object, not true or false",
		`{"name":"a` + "\x00" + `"}`:       "/name|at byte",
		`{"name":"\u0000"}`:                "/name|u0000",
		`{"raw":{"a":["x\u0000y"]}}`:       "/raw/a/0|u0000",
		`{"raw":{"a\u0000":1}}`:            "/raw/a\x00|u0000",
		`{"name":"\ud800"}`:                "/name|at byte",
		`{"name":"\udc00\ud800"}`:          "/name|at byte",
		`{"name":"\ud800x"}`:               "/name|at byte",
		`{"raw":{"\udfff":1}}`:             "/raw|at byte",
		"{\"name\":\"\xff\"}":              "/name|at byte",
		"{\"name\":\"\xed\xa0\x80\"}":      "/name|at byte",
		"{\"name\":\"\xc0\x80\"}":          "/name|at byte",
		"{\"name\":\"a\nb\"}":              "/name|at byte",
		`{"name":"\x"}`:                    "/name|at byte",
		`{"raw":1e131072}`:                 "/raw|131072 digits before",
		`{"raw":[0,1e-16384]}`:             "/raw/1|16383 after",
		`{"raw":1e-9223372036854775808}`:   "/raw|16383 after",
		`{"raw":1E+9223372036854775808}`:   "/raw|digits before",
		`{"raw":1e99999999999999999999}`:   "/raw|digits before",
		`{"raw":-1e-99999999999999999999}`: "/raw|16383 after",
		`{"raw":[` + strings.Repeat("1e131071,", 9) + `1]}`: "/raw/8|too many digits",
	} {
		err := definition.Decode([]byte(text), &into)
		e := refusal(t, err, definition.ErrMalformed)
		at, words, _ := strings.Cut(want, "|")
		if len(e.Faults) != 1 || e.Faults[0].Pointer != at || !strings.Contains(e.Faults[0].Detail, words) {
			t.Errorf("%s: got %q, want %q saying %q", text, e.Faults, at, words)
		}
	}
}

func TestDecodeDepth(t *testing.T) {
	t.Parallel()
	for _, nested := range []func(int) string{
		func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) },
		func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) },
	} {
		var v any
		if err := definition.Decode([]byte(nested(definition.MaxDepth)), &v); err != nil {
			t.Errorf("depth %d: %v", definition.MaxDepth, err)
		}
		e := refusal(t, definition.Decode([]byte(nested(definition.MaxDepth+1)), &v), definition.ErrMalformed)
		if !strings.Contains(e.Faults[0].Detail, "deeper than 64") {
			t.Errorf("got %v", e)
		}
	}
	if definition.MaxDepth != 64 {
		t.Errorf("the depth is %d, the contract says 64", definition.MaxDepth)
	}
}

// stored says what Postgres thinks of a document.
func stored(t *testing.T, pool *pgxpool.Pool, document string) error {
	t.Helper()
	_, err := pool.Exec(t.Context(), "insert into document (body) values ($1)", json.RawMessage(document))
	return err
}

func documents(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "create table document (body jsonb not null)")
	return pool
}

// The edges of numeric: Decode accepts them, and so does Postgres; one digit further
// neither does.
func TestNumbersAtTheEdge(t *testing.T) {
	t.Parallel()
	pool := documents(t)
	for number, fits := range map[string]bool{
		"1e131071": true, "-9.9e131071": true, "1e131072": false, "0.1e131072": false,
		"1e-16383": true, "1e-16384": false, "-1.5e-16382": true, "1.5e-16383": false,
		strings.Repeat("9", 131072): true, strings.Repeat("9", 131073): false,
		"0." + strings.Repeat("9", 16383): true, "0." + strings.Repeat("9", 16384): false,
		"-0": true, "-0.0e0": true, "0e131071": true, "1e+5": true, "1E-5": true, "100e-2": true,
		"1e-9223372036854775808": false, "1e9223372036854775807": false,
		strings.Repeat("9", 131072) + ".5e-16382": true,
	} {
		var v json.RawMessage
		err := definition.Decode([]byte(number), &v)
		if (err == nil) != fits {
			t.Errorf("Decode(%.30s…) = %.200v, want it to fit: %v", number, err, fits)
		}
		if err == nil {
			if err := stored(t, pool, number); err != nil {
				t.Errorf("Postgres refuses %.30s…: %v", number, err)
			}
		}
	}
}

// number draws number literals, many of them far out.
func number() *rapid.Generator[string] {
	exponent := rapid.OneOf(rapid.Just(""), rapid.Custom(func(t *rapid.T) string {
		n := rapid.OneOf(rapid.Int64Range(-20000, 140000), rapid.Int64()).Draw(t, "exponent")
		return fmt.Sprintf("%s%d", rapid.SampledFrom([]string{"e", "E"}).Draw(t, "e"), n)
	}))
	return rapid.Custom(func(t *rapid.T) string {
		return rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?`).Draw(t, "mantissa") + exponent.Draw(t, "exponent")
	})
}

// text draws string literals: plain, escaped, and broken.
func text() *rapid.Generator[string] {
	piece := rapid.OneOf(
		rapid.StringN(0, 4, -1),
		rapid.SampledFrom([]string{`\n`, `\"`, `\\`, `\/`, `\u0000`, `\u0001`, `\ud83d\ude00`, `\ud800`, `\udc00`, `\uFFFF`, "\x7f", "\u2028", "\xff", "a"}),
	)
	return rapid.Custom(func(t *rapid.T) string {
		return `"` + strings.Join(rapid.SliceOfN(piece, 0, 3).Draw(t, "pieces"), "") + `"`
	})
}

func document(depth int) *rapid.Generator[string] {
	plain := []*rapid.Generator[string]{number(), text(), rapid.SampledFrom([]string{"true", "false", "null"})}
	if depth == 0 {
		return rapid.OneOf(plain...)
	}
	inner := document(depth - 1)
	return rapid.OneOf(append(plain,
		rapid.Custom(func(t *rapid.T) string {
			return "[" + strings.Join(rapid.SliceOfN(inner, 0, 4).Draw(t, "items"), ",") + "]"
		}),
		rapid.Custom(func(t *rapid.T) string {
			members := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
				return text().Draw(t, "name") + ":" + inner.Draw(t, "value")
			}), 0, 4).Draw(t, "members")
			return "{" + strings.Join(members, ",") + "}"
		}))...)
}

// What Decode accepts, jsonb accepts.
func TestDecodedFitsIntoPostgres(t *testing.T) {
	t.Parallel()
	pool := documents(t)
	accepted := 0
	rapid.Check(t, func(rt *rapid.T) {
		for _, d := range rapid.SliceOfN(document(2), 1, 10).Draw(rt, "documents") {
			var v json.RawMessage
			if definition.Decode([]byte(d), &v) != nil {
				continue
			}
			accepted++
			if err := stored(t, pool, d); err != nil {
				rt.Fatalf("Decode accepts %q, and Postgres says %v", d, err)
			}
		}
	})
	if accepted < 50 {
		t.Errorf("only %d documents were accepted: this shows little", accepted)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"a":[1,2.5e-3,"\u00e9\ud83d\ude00",null,true]}`, `"\u0000"`, `1e-9223372036854775808`, `{"a":1,"a":2}`, "\xff", `[[[[`, `{} {}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v any
		err := definition.Decode(data, &v)
		if err != nil {
			if e := refusal(t, err, definition.ErrMalformed); len(e.Faults) != 1 || e.Faults[0].Detail == "" {
				t.Fatalf("no fault is named: %v", e)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatalf("accepted, but is no JSON: %q", data)
		}
	})
}
