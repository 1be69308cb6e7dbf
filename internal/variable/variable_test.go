package variable_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/variable"
)

func policy(t *testing.T, rules ...string) (p variable.Policy) {
	t.Helper()
	for _, text := range rules {
		var r variable.Rule
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		p = append(p, r)
	}
	return p
}

func TestRulesThatAreMalformed(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "acme", "acme:", ":NAME", "acme:*", "acme:A*B", "acme:A-B", "acme:1A", "acme:A**", "acme:A B", "A*"} {
		var r variable.Rule
		if err := r.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "TENANT:NAME") {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
}

// A tenant may name what its rules say, and no rule reaches what pawl itself reads.
func TestPolicy(t *testing.T) {
	t.Parallel()
	p := policy(t, "acme:ACME_*", "acme:TOKEN", "a:b:COLON", "*:SHARED", "*:PAWL_*", "*:P*")
	for _, c := range []struct {
		tenant, name string
		allowed      bool
	}{
		{"acme", "ACME_TOKEN", true},
		{"acme", "ACME_", true},
		{"acme", "ACME", false},
		{"acme", "acme_token", false},
		{"acme", "TOKEN", true},
		{"acme", "TOKENS", false},
		{"other", "ACME_TOKEN", false},
		{"acme2", "ACME_TOKEN", false},
		{"*", "ACME_TOKEN", false},
		{"a:b", "COLON", true},
		{"b", "COLON", false},
		{"other", "SHARED", true},
		{"other", "PGPASSWORD", true}, // The operator has said so.
		{"other", "PAWL_CONNECTION_X", true},
		{"other", "PAWL_CONNECTION", false},
		{"other", "PAWL_DATABASE_URL", false},
		{"other", "PAWL_SECRET_KEY", false},
		{"other", "DATABASE_URL", false},
		{"acme", "ACME_\n", false},
		{"acme", "ACME_=", false},
		{"acme", "", false},
		{"acme", "ACME_" + strings.Repeat("X", variable.MaxLength), false},
	} {
		if err := p.Check(c.tenant, c.name); (err == nil) != c.allowed {
			t.Errorf("%s of %s: %v", c.name, c.tenant, err)
		}
	}
	if err := (variable.Policy{}).Check("acme", "ACME_TOKEN"); err == nil {
		t.Error("without rules a variable is allowed")
	}
}

func TestRead(t *testing.T) {
	const name = "PAWL_CONNECTION_OF_A_TEST"
	p := policy(t, "acme:"+name)
	t.Setenv(name, "")
	if got, err := p.Read("acme", name); err == nil || !strings.Contains(err.Error(), "is not set") {
		t.Errorf("an empty one is read as %q: %v", got, err)
	}
	t.Setenv(name, "hunter2")
	if got, err := p.Read("acme", name); err != nil || got != "hunter2" {
		t.Errorf("read %q: %v", got, err)
	}
	if got, err := p.Read("other", name); err == nil || got != "" || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("another tenant reads %q: %v", got, err)
	}
}
