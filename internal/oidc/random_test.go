package oidc_test

import (
	"crypto"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	coreos "github.com/coreos/go-oidc/v3/oidc"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/internal/oidc"
)

// No text is accepted that is not a token of the provider's, however near to one it is.
func TestRandomTokens(t *testing.T) {
	t.Parallel()
	rs, ed := rsaKey("rs"), edKey("ed")
	p := start(t, rs.public(nil), ed.public(nil))
	v := p.verifier(t, nil)
	valid := []string{p.token(rs, nil, nil), p.token(ed, nil, nil), p.token(ed, nil, object{"sub": "bob", "roles": "deployer"})}
	for _, token := range valid {
		if _, err := verify(t, v, token); err != nil {
			t.Fatal(err)
		}
	}
	parts := func(i int) []string {
		var all []string
		for _, token := range valid {
			all = append(all, strings.Split(token, ".")[i])
		}
		return all
	}
	encoded := func(text *rapid.Generator[string]) *rapid.Generator[string] {
		return rapid.Map(text, func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) })
	}
	words := rapid.SampledFrom([]string{`{`, `}`, `[`, `]`, `:`, `,`, `"alg"`, `"none"`, `"RS256"`, `"EdDSA"`, `"kid"`, `"rs"`, `"ed"`, `"crit"`, `"jwk"`, `null`, `1`, `""`, "\xff"})
	json := rapid.Map(rapid.SliceOfN(words, 0, 12), func(w []string) string { return strings.Join(w, "") })
	part := func(i int) *rapid.Generator[string] {
		return rapid.OneOf(rapid.SampledFrom(parts(i)), rapid.SampledFrom(parts(i)), encoded(json), encoded(rapid.String()), rapid.String())
	}
	edited := rapid.Custom(func(t *rapid.T) string {
		text := []byte(rapid.SampledFrom(valid).Draw(t, "token"))
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		switch b := rapid.Byte().Draw(t, "byte"); rapid.IntRange(0, 3).Draw(t, "edit") {
		case 0:
			text[at] = b
		case 1:
			text = slices.Insert(text, at, b)
		case 2:
			text = slices.Delete(text, at, at+1)
		case 3:
			text = text[:at]
		}
		return string(text)
	})
	assembled := rapid.Custom(func(t *rapid.T) string {
		return part(0).Draw(t, "header") + "." + part(1).Draw(t, "claims") + "." + part(2).Draw(t, "signature")
	})
	any := rapid.OneOf(edited, assembled, rapid.String())
	rapid.Check(t, func(r *rapid.T) {
		token := any.Draw(r, "token")
		got, err := v.Verify(t.Context(), token)
		switch own := slices.Contains(valid, token); {
		case own && err != nil:
			r.Fatalf("a token of the provider's is refused: %v", err)
		case !own && !errors.Is(err, oidc.ErrInvalid):
			r.Fatalf("%q is accepted for %+v, or fails with %v", token, got, err)
		}
	})
}

// What is accepted is accepted by go-oidc's own verifier too, given the keys and the leeway.
func TestStricterThanGoOIDC(t *testing.T) {
	t.Parallel()
	ed, foreign := edKey("ed"), edKey("ed")
	p := start(t, ed.public(nil))
	v := p.verifier(t, nil)
	judge := coreos.NewVerifier(p.issuer, &coreos.StaticKeySet{PublicKeys: []crypto.PublicKey{ed.private.(crypto.Signer).Public()}}, &coreos.Config{
		ClientID: audience, SupportedSigningAlgs: []string{"EdDSA"}, Now: func() time.Time { return time.Now().Add(-oidc.Leeway) },
	})
	now := time.Now().Unix()
	choice := func(values ...any) *rapid.Generator[any] { return rapid.SampledFrom(values) }
	times := choice(nil, now, now, now-3600, now+3600, now+3600, 0, -1, 1.5, 1e18, 1e19, "1")
	accepted := 0
	judged := func(fatalf func(string, ...any), key signer, header, claims object) {
		token := p.token(key, header, claims)
		if _, err := v.Verify(t.Context(), token); err != nil {
			return
		}
		accepted++
		if _, err := judge.Verify(t.Context(), token); err != nil {
			fatalf("accepted with header %v and claims %v, but for go-oidc: %v", header, claims, err)
		}
	}
	judged(t.Fatalf, ed, object{}, object{}) // Few random tokens are acceptable.
	rapid.Check(t, func(r *rapid.T) {
		claims, header, key := object{}, object{}, rapid.SampledFrom([]signer{ed, ed, ed, foreign}).Draw(r, "key")
		for _, c := range []struct {
			of     object
			name   string
			values *rapid.Generator[any]
		}{
			{claims, "iss", choice(p.issuer, p.issuer, p.issuer, nil, "https://accounts.google.com", p.issuer+"/")},
			{claims, "aud", choice(audience, []string{"x", audience}, []string{audience}, nil, "x", []any{audience, 1})},
			{claims, "exp", choice(now+3600, now+3600, now+60, nil, now-3600, 1e18, 1e19, "1")},
			{claims, "nbf", times},
			{claims, "iat", times},
			{claims, "tenant", choice("acme", "acme", "*", nil)},
			{header, "alg", choice("EdDSA", "EdDSA", "EdDSA", "none", "RS256", nil)},
			{header, "typ", choice("JWT", "at+jwt", nil, "logout+jwt")},
			{header, "kid", choice("ed", "ed", nil, "x")},
		} {
			if rapid.Bool().Draw(r, c.name+" changes") {
				c.of[c.name] = c.values.Draw(r, c.name)
			}
		}
		judged(r.Fatalf, key, header, claims)
	})
	if accepted == 0 {
		t.Error("no token was accepted")
	}
}
