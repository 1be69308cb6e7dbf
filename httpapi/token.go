package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
)

// A Token lets its bearer act as one subject within one tenant. It is a static one, of a file; tokens of the database
// are made by package access.
type Token struct {
	// SHA256 is the SHA-256 digest of the token in hexadecimal. The configuration holds no
	// token in clear.
	SHA256 string `json:"sha256"`
	// Subject is recorded as the actor of what the bearer does. Required.
	Subject string `json:"subject"`
	// Tenant is the only tenant that the bearer sees; fsm.Deployment for the deployment. It must exist. Default
	// fsm.DefaultTenant.
	Tenant string `json:"tenant,omitempty"`
	// Scopes are the permissions of the bearer. Default read, create and fire.
	Scopes []Scope `json:"scopes,omitempty"`
	// Roles name roles of the tenant, which add to the scopes.
	Roles []string `json:"roles,omitempty"`
	// Workflows bound everything that the bearer may do. Default all.
	Workflows []string `json:"workflows,omitempty"`
}

// ParseTokens reads a JSON array of tokens and checks each of them. An array without tokens is an error: nobody could
// call, and the file is likely to be the wrong one.
func ParseTokens(data []byte) ([]Token, error) {
	var tokens []Token
	if err := fsm.Decode(data, &tokens); err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, errors.New("the file has no token; to serve with the tokens of the database alone, give --auth tokens and no file")
	}
	if _, err := staticTokens(tokens); err != nil {
		return nil, err
	}
	return tokens, nil
}

// staticTokens checks tokens and returns them by their digests, with the defaults filled in.
func staticTokens(tokens []Token) (map[[sha256.Size]byte]Token, error) {
	byDigest := map[[sha256.Size]byte]Token{}
	// A file of before has no scope but these three. Its admin must not become the present one unnoticed.
	isOld := !slices.ContainsFunc(tokens, func(t Token) bool {
		return len(t.Roles) > 0 || slices.ContainsFunc(t.Scopes, func(s Scope) bool { return s != ScopeRead && s != ScopeAdmin && s != "write" })
	})
	for i, t := range tokens {
		at := func(member, detail string, args ...any) error {
			return fmt.Errorf("/%d/%s %s", i, member, fmt.Sprintf(detail, args...))
		}
		sum, err := hex.DecodeString(t.SHA256)
		switch {
		case err != nil || len(sum) != sha256.Size:
			return nil, at("sha256", "must be 64 hexadecimal digits")
		case [sha256.Size]byte(sum) == sha256.Sum256(nil):
			return nil, at("sha256", "is the digest of the empty text: hash the token, without a line end")
		case t.Subject == "":
			return nil, at("subject", "is missing")
		}
		if _, repeated := byDigest[[sha256.Size]byte(sum)]; repeated {
			return nil, at("sha256", "is that of another token too")
		}
		if t.Tenant == "" {
			t.Tenant = fsm.DefaultTenant
		}
		if err := fsm.CheckTexts(fsm.Text{Value: t.Tenant, Max: 63}, fsm.Text{Value: t.Subject, Max: 255}); err != nil {
			return nil, at("subject", "and tenant must be text of at most 255 and 63 characters")
		}
		if len(t.Scopes)+len(t.Roles) == 0 {
			if t.Scopes != nil {
				return nil, at("scopes", "is empty: leave it out for read, create and fire")
			}
			t.Scopes = []Scope{ScopeRead, ScopeCreate, ScopeFire}
		}
		for _, s := range t.Scopes {
			switch {
			case s == "write":
				return nil, at("scopes", "has write, which is now create and fire, and deliver to replay deliveries")
			case !slices.Contains(Scopes(), s):
				return nil, at("scopes", "has %q, which is none of %s", s, strings.Join(access.Scopes, ", "))
			case s == ScopeDeploy && t.Tenant != fsm.Deployment:
				return nil, at("scopes", `has deploy, which only the deployment has, since workflows are everybody's: give it to a token with "tenant": "*"`)
			case s == ScopeAdmin && isOld:
				return nil, at("scopes", "has admin, which was for workflows and subscriptions before and is for tokens, roles and tenants now: give deploy, deliver or operate, or make a token in the database with pawl token create --scope admin")
			}
		}
		byDigest[[sha256.Size]byte(sum)] = t
	}
	return byDigest, nil
}
