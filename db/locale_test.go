package db_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// In a database with the rules of ICU, \d and the like stand for the digits of all scripts. A value with such digits is a
// text, and no number or time. It must not stop the fold, which all tenants share.
func TestDigitsOfOtherScripts(t *testing.T) {
	t.Parallel()
	admin := dial(t, dbtest.Empty(t))
	if !bounded.Value[bool](t, admin, "select exists (select from pg_collation where collprovider = 'i')") {
		t.Skip("the server is built without ICU")
	}
	name := admin.Config().Database + "_icu"
	quoted := pgx.Identifier{name}.Sanitize()
	bounded.Exec(t, admin, "create database "+quoted+" template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C' locale_provider icu icu_locale 'en-US'")
	t.Cleanup(func() { bounded.Exec(t, admin, "drop database "+quoted+" with (force)") })
	dsn := strings.Replace(admin.Config().ConnString(), admin.Config().Database, name, 1)
	if err := db.Up(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	conn := dial(t, dsn)
	register(t, conn, `{"name": "w", "initial": "A", "search": {"v": "$.context.v", "n": {"path": "$.context.v", "type": "number"}, "t": {"path": "$.context.v", "type": "time"}},
		"states": {"A": {"on": {"go": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`)
	dbtest.Number(t, conn)
	bounded.Exec(t, conn, "select pawl.consumer_create('insight', true), pawl.consumer_lead('insight', 'tester', '1 year')")
	for _, v := range []string{
		"7", "٣", "7.٣", "-３", "2026-03-01T09:00:00Z", "٢٠٢٦-03-01T09:00:00Z", "2026-03-1٣T09:00:00Z", "2026-03-01T09:00:00.٣Z", "2026-03-01T09:00:00+01:0٣",
	} {
		bounded.Exec(t, conn, "select pawl.create_one('w', jsonb_build_object('v', $1::text))", v)
	}
	dbtest.Number(t, conn)
	bounded.UntilSQL(t, conn, "select steps = 0 from pawl.insight_fold('tester', 1, 1000, '1 year')")
	if got := bounded.Value[string](t, conn, `
		select string_agg(concat_ws(' ', name, text_value, number_value, time_value at time zone 'UTC'), ', ' order by name, text_value)
		from pawl.attribute where name <> 'v' or time_value is not null`); got != "n 7, t 2026-03-01 09:00:00, v 2026-03-01T09:00:00Z 2026-03-01 09:00:00" {
		t.Errorf("there are %s", got)
	}
	if n := bounded.Value[int](t, conn, "select count(*) from pawl.attribute where name = 'v'"); n != 9 {
		t.Errorf("%d values are texts, want 9", n)
	}
}
