package db_test

import (
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

const accessVersion = "select access_version::text from pawl.setting"

// Whatever changes what a caller may do makes the version another one, by a function or by hand. What decides nothing leaves
// it.
func TestAccessVersion(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	create := func(id string) string {
		return "select pawl.token_create('default', '" + id + "', sha256('" + id + "'), 's', '{read}', '{r}', '{}')"
	}
	seen := map[string]bool{}
	for _, c := range []struct {
		statement string
		moves     bool
	}{
		{create("a"), false},
		{create("b"), false},
		{"select pawl.token_used('a')", false},
		{"select pawl.role_put('default', 'r', '{read}', '{}', '{}')", true},
		{"select pawl.role_put('default', 'r', '{fire}', '{}', '{}')", true},
		{"select pawl.role_delete('default', 'r')", true},
		{"select pawl.tenant_put('t')", true},
		{"select pawl.tenant_put('t', '{\"queue\": 1}')", true},
		{"select pawl.tenant_put('t', null, true)", true},
		{"select pawl.token_revoke('default', 'a')", true},
		{"select pawl.token_revoke('default', 'a')", false},
		{"update pawl.token set expires_at = now() + interval '1 hour'", true},
		{"update pawl.token set scopes = '{fire}'", true},
		{"update pawl.token set workflows = '{w}'", true},
		{"update pawl.token set name = 'n', last_used_at = null", false},
		{"delete from pawl.token where id = 'b'", true},
		{"truncate pawl.role", true},
		{"delete from pawl.tenant where id = 't'", true},
		{"select pawl.audit_note('default', null, 'x', 'forbidden')", false},
	} {
		before := bounded.Value[string](t, pool, accessVersion)
		bounded.Exec(t, pool, c.statement)
		after := bounded.Value[string](t, pool, accessVersion)
		if (after != before) != c.moves || c.moves && seen[after] {
			t.Errorf("%s: the version was %s and is %s", c.statement, before, after)
		}
		seen[before] = true
	}
}

// The version of another transaction is seen with what it changed, and not before.
func TestAccessVersionIsThatOfWhatIsSeen(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.role_put('default', 'r', '{read}', '{}', '{}')")
	look := func() string {
		return bounded.Value[string](t, pool, `
			select concat_ws(' ', p.grants #>> '{0,scopes,0}', p.version = g.access_version)
			from pawl.principals('{""}', '{default}', '{""}', '[["r"]]') p, pawl.setting g`)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "select pawl.role_put('default', 'r', '{fire}', '{}', '{}')")
	if got := look(); got != "read t" {
		t.Errorf("before the commit: %s", got)
	}
	// Another change waits, so that no version stands for two states.
	other := make(chan error, 1)
	go func() {
		_, err := pool.Exec(bounded.Context(t), "select pawl.role_put('default', 'other', '{read}', '{}', '{}')")
		other <- err
	}()
	bounded.UntilBlocked(t, pool, 1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := bounded.Receive(t, "the other change", other); err != nil {
		t.Error(err)
	}
	if got := look(); got != "fire t" {
		t.Errorf("after the commit: %s", got)
	}
}

// Commands of callers that were let in with another version change nothing, and those with the present one do.
func TestCommandsCompareTheAccessVersion(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	const create = `select count(*) from pawl.create('{default}', '{door}', array['{}'::jsonb], array[$1::text], '{""}', '{""}',
		array[null::interval], '{*}', '{a}', '{""}', '{""}', '{""}', p_access => $2::text::uuid)`
	const fire = `select count(*) from pawl.fire('{default}', array[$3::uuid], '{open}', array['{}'::jsonb], array[$1::text], '{""}', '{*}',
		'{a}', '{""}', '{""}', '{""}', p_access => $2::text::uuid)`
	const byKey = `select count(*) from pawl.fire_by_keys('{default}', '{door}', array['b-' || $1::text], '{open}', array['{}'::jsonb],
		array[$1::text], '{""}', '{*}', array['{}'::jsonb], '{*}', '{a}', '{""}', '{""}', '{""}', p_access => $2::text::uuid)`
	rows := func() string {
		return bounded.Value[string](t, pool, "select concat_ws(' ', (select count(*) from pawl.history), (select count(*) from pawl.idempotency_key))")
	}
	for name, sql := range map[string]string{"create": create, "fire": fire, "fire by key": byKey} {
		args := []any{"k-" + name, "00000000-0000-0000-0000-000000000000"}
		if sql == fire {
			args = append(args, ids[0])
		}
		before := rows()
		_, err := pool.Exec(t.Context(), sql, args...)
		wantCode(t, err, "PW40A")
		if after := rows(); after != before {
			t.Errorf("%s: %s rows, want %s", name, after, before)
		}
		args[1] = bounded.Value[string](t, pool, accessVersion)
		bounded.Exec(t, pool, sql, args...)
		if after := rows(); after == before {
			t.Errorf("%s: nothing was done", name)
		}
		// A replay is for those whom the version lets in, too.
		args[1] = "00000000-0000-0000-0000-000000000000"
		_, err = pool.Exec(t.Context(), sql, args...)
		wantCode(t, err, "PW40A")
	}
}

// What a service must not remember has no version: time makes it false, or its use is to be noted.
func TestPrincipalsToRemember(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.Tenants(t, pool, "off")
	bounded.Exec(t, pool, "select pawl.tenant_put('off', p_disabled => true)")
	for name, c := range map[string]struct {
		change     string
		home, acts string
		remembered bool
	}{
		"a token":                   {"set name = null", "", "", true},
		"one that expires later":    {"set expires_at = now() + interval '6 minutes'", "", "", true},
		"one that expires soon":     {"set expires_at = now() + interval '4 minutes'", "", "", false},
		"one that has expired":      {"set created_at = now() - interval '2 hours', expires_at = now() - interval '1 hour'", "", "", false},
		"one that was revoked":      {"set revoked_at = now()", "", "", false},
		"one that was never used":   {"set last_used_at = null", "", "", false},
		"one that was not used now": {"set last_used_at = now() - interval '61 minutes'", "", "", false},
		"one that does not exist":   {"set id = 'other'", "", "", false},
		"no token":                  {"", "default", "", true},
		"the deployment":            {"", "*", "", true},
		"for a tenant":              {"", "*", "default", true},
		"for a tenant that is off":  {"", "*", "off", false},
		"for no tenant":             {"", "*", "none", false},
		"of no tenant":              {"", "none", "", false},
	} {
		bounded.Exec(t, pool, "delete from pawl.token")
		token := ""
		if c.home == "" {
			token = "a"
			bounded.Exec(t, pool, "select pawl.token_create('default', 'a', sha256('a'), 's', '{read}', '{}', '{}')")
			bounded.Exec(t, pool, "select pawl.token_used('a')")
			bounded.Exec(t, pool, "update pawl.token "+c.change)
		}
		got := bounded.Value[bool](t, pool, "select version is not null from pawl.principals(array[$1::text], array[$2::text], array[$3::text], '[[]]')",
			token, c.home, c.acts)
		if got != c.remembered {
			t.Errorf("%s: may be remembered: %v", name, got)
		}
	}
}
