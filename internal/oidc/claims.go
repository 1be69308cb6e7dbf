package oidc

import (
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxTenant  = 63  // Characters.
	maxSubject = 255 // Bytes.
)

// identify checks the claims of a token whose signature is right, and returns whom it speaks for.
func (v *Verifier) identify(payload []byte, now time.Time) (Identity, error) {
	members, err := parseObject(payload)
	if err != nil {
		return Identity{}, invalid("its claims are not a JSON object without duplicate members")
	}
	var registered jwt.Claims
	if err := json.Unmarshal(payload, &registered); err != nil {
		return Identity{}, invalid("one of its claims iss, sub, aud, exp, nbf, iat and jti has a wrong type")
	}
	if registered.Expiry == nil {
		return Identity{}, invalid("it has no exp")
	}
	expected := jwt.Expected{Issuer: v.config.Issuer, AnyAudience: jwt.Audience{v.config.Audience}, Time: now}
	switch err := registered.ValidateWithLeeway(expected, Leeway); {
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return Identity{}, invalid("its iss is not the issuer that is configured")
	case errors.Is(err, jwt.ErrInvalidAudience):
		return Identity{}, invalid("its aud does not contain the audience that is configured")
	case errors.Is(err, jwt.ErrExpired):
		return Identity{}, invalid("it has expired")
	case errors.Is(err, jwt.ErrNotValidYet):
		return Identity{}, invalid("its nbf is in the future")
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return Identity{}, invalid("its iat is in the future")
	case err != nil:
		return Identity{}, invalid("its registered claims do not hold")
	}
	if s := registered.Subject; s == "" || len(s) > maxSubject || strings.ContainsFunc(s, unicode.IsControl) {
		return Identity{}, invalid("its sub must have 1 to %d bytes without control characters", maxSubject)
	}
	identity := Identity{Subject: registered.Subject, Expires: registered.Expiry.Time()}
	if identity.Roles, err = v.roles(members); err != nil {
		return Identity{}, err
	}
	identity.Deployment = slices.Contains(identity.Roles, v.config.DeploymentRole)
	value, found := claim(members, v.config.TenantClaim)
	if !found && identity.Deployment {
		return identity, nil
	}
	if identity.Tenant, err = parseText(value); err != nil || identity.Tenant == "" || identity.Tenant == "*" ||
		utf8.RuneCountInString(identity.Tenant) > maxTenant || strings.ContainsFunc(identity.Tenant, unicode.IsControl) {
		return Identity{}, invalid("its claim %s must be the name of a tenant: a text of 1 to %d characters, not *", v.config.TenantClaim, maxTenant)
	}
	return identity, nil
}

// roles returns the roles of a token, each once. A claim that is absent or null has none.
func (v *Verifier) roles(members map[string]jsontext.Value) (roles []string, err error) {
	value, found := claim(members, v.config.RolesClaim)
	if !found || value.Kind() == 'n' {
		return nil, nil
	}
	values := []jsontext.Value{value}
	if value.Kind() == '[' {
		err = json.Unmarshal(value, &values)
	}
	for _, value := range values {
		role, notText := parseText(value)
		if err = errors.Join(err, notText); role != "" && !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	if err != nil {
		return nil, invalid("its claim %s must be a text or an array of texts", v.config.RolesClaim)
	}
	return roles, nil
}

// claim returns the value at a path of names with dots between them. Names may have dots themselves, as
// those of Auth0 do, which are URLs: the longest name that a member has is taken.
func claim(members map[string]jsontext.Value, path string) (jsontext.Value, bool) {
	names := strings.Split(path, ".")
	for n := len(names); n > 0; n-- {
		value, found := members[strings.Join(names[:n], ".")]
		switch {
		case !found:
		case n == len(names):
			return value, true
		default:
			inner, err := parseObject(value)
			if err != nil {
				return nil, false
			}
			return claim(inner, strings.Join(names[n:], "."))
		}
	}
	return nil, false
}
