package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// A Token lets its bearer act as one subject within one tenant.
type Token struct {
	// SHA256 is the SHA-256 digest of the token in hexadecimal. The configuration holds no
	// token in clear.
	SHA256 string `json:"sha256"`
	// Subject is recorded as the actor of what the bearer does. Required.
	Subject string `json:"subject"`
	// Tenant is the only tenant that the bearer sees. Default fsm.DefaultTenant.
	Tenant string `json:"tenant,omitempty"`
	// Scopes are the permissions of the bearer. Default read and write.
	Scopes []Scope `json:"scopes,omitempty"`
}

// A principal is the caller that a request acts for.
type principal struct {
	subject, tenant string
	// scopes are nil while the service runs without tokens.
	scopes []Scope
}

// An authenticator holds the principals by the SHA-256 digest of their token.
type authenticator struct {
	principals map[[sha256.Size]byte]principal
}

// ParseTokens reads a JSON array of tokens and checks each of them.
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
			if !slices.Contains(Scopes(), s) {
				return nil, fmt.Errorf("tokens: /%d/scopes: %q is not read, write or admin", i, s)
			}
		}
		a.principals[[sha256.Size]byte(sum)] = principal{subject: t.Subject, tenant: t.Tenant, scopes: t.Scopes}
	}
	return a, nil
}

// authenticate returns the principal for an Authorization header, or an unauthenticated
// problem.
//
// The time of the map look-up depends on the digest, not on the token, so a comparison in
// constant time is not needed. To find a token byte by byte, a caller would have to choose
// digests with a certain prefix. SHA-256 makes that as hard as guessing: a caller chooses the
// token, and cannot tell which token has a wanted digest. Go also seeds the hash of each map at
// random. A digest that leaked would not admit anybody, since the service hashes what it is
// sent.
func (a *authenticator) authenticate(header string) (principal, error) {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return principal{}, &problemError{code: api.ProblemCodeUnauthenticated, detail: "send the header Authorization: Bearer with a token"}
	}
	p, known := a.principals[sha256.Sum256([]byte(strings.TrimSpace(token)))]
	if !known {
		return principal{}, &problemError{code: api.ProblemCodeUnauthenticated, detail: "the token is unknown"}
	}
	return p, nil
}
