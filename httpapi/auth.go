package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
)

// A Scope is what a token allows.
type Scope string

const (
	// ScopeRead allows every GET, and to simulate.
	ScopeRead Scope = "read"
	// ScopeWrite allows creating instances, firing events and replaying deliveries.
	ScopeWrite Scope = "write"
	// ScopeAdmin allows registering, migrating and retiring workflows, and subscribing
	// endpoints.
	ScopeAdmin Scope = "admin"
)

// A Token lets its bearer act as a subject within one tenant.
type Token struct {
	// SHA256 is that of the token, in hexadecimal, so that the file need not be secret.
	SHA256 string `json:"sha256"`
	// Subject is recorded as the actor.
	Subject string `json:"subject"`
	// Tenant is the only one that it sees. Default fsm.DefaultTenant.
	Tenant string `json:"tenant,omitempty"`
	// Scopes are what it may do. Default read and write.
	Scopes []Scope `json:"scopes,omitempty"`
}

// A principal is whom a request acts for.
type principal struct {
	subject, tenant string
	scopes          []Scope
}

// An authenticator knows the tokens.
type authenticator struct {
	principals map[[sha256.Size]byte]principal
}

// ParseTokens reads and checks a JSON array of tokens.
func ParseTokens(data []byte) ([]Token, error) {
	var tokens []Token
	if err := fsm.Decode(data, &tokens); err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	if _, err := newAuthenticator(tokens); err != nil {
		return nil, err
	}
	return tokens, nil
}

func newAuthenticator(tokens []Token) (*authenticator, error) {
	a := &authenticator{principals: map[[sha256.Size]byte]principal{}}
	for i, t := range tokens {
		sum, err := hex.DecodeString(t.SHA256)
		switch {
		case err != nil || len(sum) != sha256.Size:
			return nil, fmt.Errorf("tokens: /%d/sha256 must be 64 hexadecimal digits", i)
		case t.Subject == "":
			return nil, fmt.Errorf("tokens: /%d/subject is missing", i)
		}
		if t.Tenant == "" {
			t.Tenant = fsm.DefaultTenant
		}
		if len(t.Scopes) == 0 {
			t.Scopes = []Scope{ScopeRead, ScopeWrite}
		}
		for _, s := range t.Scopes {
			if !slices.Contains([]Scope{ScopeRead, ScopeWrite, ScopeAdmin}, s) {
				return nil, fmt.Errorf("tokens: /%d/scopes: %q is not read, write or admin", i, s)
			}
		}
		a.principals[[sha256.Size]byte(sum)] = principal{subject: t.Subject, tenant: t.Tenant, scopes: t.Scopes}
	}
	return a, nil
}

// authenticate says whom an Authorization header stands for.
func (a *authenticator) authenticate(header string) (principal, error) {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return principal{}, &problemError{code: ProblemCodeUnauthenticated, detail: "send Authorization: Bearer and a token"}
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	for known, p := range a.principals {
		if subtle.ConstantTimeCompare(known[:], sum[:]) == 1 {
			return p, nil
		}
	}
	return principal{}, &problemError{code: ProblemCodeUnauthenticated, detail: "the token is not known"}
}

// allow refuses an operation that the principal's scopes do not cover.
func (p principal) allow(op *operation) error {
	if slices.Contains(p.scopes, op.scope) {
		return nil
	}
	return &problemError{code: ProblemCodeForbidden, detail: fmt.Sprintf("the token has no scope %q", op.scope)}
}
