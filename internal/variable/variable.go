// Package variable says which variables of the process the tenants may use, and reads them.
//
// A variable is a secret that the operator has given to the process, for a tenant. A tenant chooses the name, and where
// what it names is sent to. So a tenant may name only what a [Rule] allows to it, and never a variable of pawl's own.
//
// It imports nothing of pawl.
package variable

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// MaxLength bounds the name of a variable.
const MaxLength = 255

// A Policy allows what one of its rules allows. Its zero value allows nothing.
type Policy []Rule

// A Rule allows variables to a tenant.
type Rule struct {
	// Tenant is a tenant, or * for all of them.
	Tenant string
	// Name is that of a variable, or the beginning of names, followed by *.
	Name string
}

var (
	name    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	pattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*\*?$`)
)

// own begins the names of the variables that pawl itself reads; free begins those that it leaves to connections.
const own, free = "PAWL_", "PAWL_CONNECTION_"

// UnmarshalText reads a rule in the form TENANT:NAME.
func (r *Rule) UnmarshalText(text []byte) error {
	at := bytes.LastIndexByte(text, ':') // A tenant may have a colon.
	if at < 1 || !pattern.Match(text[at+1:]) {
		return fmt.Errorf("must have the form TENANT:NAME or TENANT:PREFIX*, such as acme:ACME_*, not %q", text)
	}
	r.Tenant, r.Name = string(text[:at]), string(text[at+1:])
	return nil
}

// Check returns an error if a tenant may not name a variable. The error is fit for clients.
func (p Policy) Check(tenant, variable string) error {
	switch {
	case !name.MatchString(variable) || len(variable) > MaxLength:
		return fmt.Errorf("must be the name of an environment variable: up to %d letters, digits and underscores", MaxLength)
	case strings.HasPrefix(variable, own) && !strings.HasPrefix(variable, free),
		!slices.ContainsFunc(p, func(r Rule) bool { return r.allows(tenant, variable) }):
		return errors.New("names a variable that the operator does not allow to this tenant; see the flag --connection-env of pawl serve")
	}
	return nil
}

func (r Rule) allows(tenant, variable string) bool {
	prefix, isPrefix := strings.CutSuffix(r.Name, "*")
	return (r.Tenant == "*" || r.Tenant == tenant) && (r.Name == variable || isPrefix && strings.HasPrefix(variable, prefix))
}

// Read returns the value of a tenant's variable. The error says why there is none, and shows no value.
func (p Policy) Read(tenant, variable string) (string, error) {
	if p.Check(tenant, variable) != nil {
		return "", fmt.Errorf("the tenant may not use the environment variable %s", variable)
	}
	value := os.Getenv(variable)
	if value == "" {
		return "", fmt.Errorf("the environment variable %s is not set", variable)
	}
	return value, nil
}
