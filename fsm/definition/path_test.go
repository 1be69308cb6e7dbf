package definition_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// What PostgreSQL reads as a path, the parser of this package must read, too, and no other text.
func TestPathsAreThoseOfPostgres(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, path := range []string{
		`$`, `$.a`, `lax $.a`, `strict $.a.b`, `$.a == 1`, `$.a[*].b`, `$.a[0]`, `$.a[0 to 2, last]`, `$.a[last - 1]`, `$.*`, `$.a.*`, `$.**`, `$.**{2}`, `$.**{1 to last}`, `$.**{2 to 3}.a`,
		`$."a b"`, `$."a\"b"`, `$ .a`, `$.a . b`, `$x`, `$"x y"`, `$x.a`, `@`, `$.a ? (@ > 1)`, `$.a[*] ? (@.b == "x" && @.c > 1).d`, `$ ? (@.a == 1)`,
		`$.a ? (exists(@.b))`, `exists($.a)`, `!exists($.a)`, `!($.a == 1)`, `$.a == 1 && $.b == 2 || $.c == 3`, `($.a == 1) is unknown`, `$.a > 1 && ($.b < 2 || !($.c != 3))`,
		`$.a like_regex "^a"`, `$.a like_regex "^a" flag "i"`, `$.a starts with "x"`, `$.a starts with $x`, `$.a <> 1`, `$.a + 1`, `-$.a`, `+$.a`, `- - $.a`, `$.a + $.b * 2 - -1`, `($.a + 1) * 2`, `1 + 1`,
		`$.a.size()`, `$.a.datetime()`, `$.a.datetime("HH24:MI")`, `$.a.keyvalue().key`, `($.a + 1).ceiling()`, `$.a.b.type() == "x"`, `(1).type()`, `"x"`, `1`, `1.5`, `1e3`, `1.5E-3`, `true`, `null == $.a`, `-1`,
		`/* c */ $.a`, `$.a /* c */ .b`, `$.size`, `$.exists`, `$.last`, `$.a.last`, `$.true`, `$.été`, `($)`, `($.a).b`, `($.a == 1)`, `($.a == 1).type()`, `$.a[$.b]`, `$.a[*] ? (@ > $.b)[0]`, `$.a ? (@ > 1) ? (@ < 3)`, `$.a.floor() % 2 == 0`, `$.context.n + 1`, `$.a / 2`,
		`$.a == "\u0041"`, `"a" == $.a`, `$.a == null`,
		// What is no path.
		``, `a`, `hello world`, `$.`, `$..a`, `.a`, `$.a.`, `$.a ==`, `== 1`, `$.a = 1`, `$.a & $.b`, `$.a && `, `($.a`, `$.a)`, `$.a[`, `$.a[]`, `$.a ?`, `$.a ? (`, `$.a b`, `"a`, `$ $`, `$.a exists`,
		`exists $.a`, `$.a like_regex $.b`, `$.a starts "x"`, `$.a is unknown`, `1a`, `$[a]`, `/* $.a`, `costs $5 now`, `$.a == 1 == 2`, `1 1`, `strict`, `lax`, `$.*.`, `$.**{`, `{}`, `[1]`, `$.5`, `a.b`, `5 $`, `$5 or more`,
	} {
		known := bounded.Value[bool](t, pool, "select pawl.jsonpath_error($1) is null", path)
		if got := definition.PathParses(path); got != known {
			t.Errorf("%q: parsed is %t, but to PostgreSQL it is %t", path, got, known)
		}
	}
	// A deep path does not exhaust the stack.
	_ = definition.PathParses(strings.Repeat("(", 1_000_000))
	_ = definition.PathParses(strings.Repeat("-", 1_000_000) + "1")
}
