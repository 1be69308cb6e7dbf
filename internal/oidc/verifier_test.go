package oidc_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/internal/oidc"
)

func TestAccepted(t *testing.T) {
	t.Parallel()
	rs, es, ed := rsaKey("rs"), ecKey("es", elliptic.P256()), edKey("../../ed?x#y")
	first, second := ecKey("twice", elliptic.P256()), ecKey("twice", elliptic.P256())
	anonymous := edKey("")
	p := start(t, rs.public(nil), es.public(object{"alg": nil, "use": nil, "key_ops": []string{"verify"}}), ed.public(nil),
		first.public(nil), second.public(nil), anonymous.public(nil), object{"kty": "unheard of"}, object{"kty": "oct", "k": "c2VjcmV0"})
	v := p.verifier(t, nil)
	alice := oidc.Identity{Subject: "alice", Tenant: "acme", Roles: []string{"clerk"}}
	for name, c := range map[string]struct {
		token string
		want  oidc.Identity
	}{
		"RS256":                {p.token(rs, nil, nil), alice},
		"ES256":                {p.token(es, nil, nil), alice},
		"EdDSA, kid of a path": {p.token(ed, nil, nil), alice},
		"first of equal kids":  {p.token(first, nil, nil), alice},
		"second of them":       {p.token(second, nil, nil), alice},
		"no kid":               {p.token(anonymous, object{"kid": nil}, nil), alice},
		"no typ":               {p.token(rs, object{"typ": nil}, nil), alice},
		"access token":         {p.token(rs, object{"typ": "at+jwt"}, nil), alice},
		"media type":           {p.token(rs, object{"typ": "application/AT+JWT"}, nil), alice},
		"list of audiences":    {p.token(rs, nil, object{"aud": []string{"other", audience}}), alice},
		"no nbf, no iat":       {p.token(rs, nil, object{"nbf": nil, "iat": nil}), alice},
		"a fraction":           {p.token(rs, nil, object{"nbf": 1.5}), alice},
		"expired within leeway": {
			p.token(rs, nil, object{"exp": time.Now().Unix() - 10}), alice,
		},
		"nbf and iat within leeway": {
			p.token(rs, nil, object{"nbf": time.Now().Unix() + 20, "iat": time.Now().Unix() + 20}), alice,
		},
		"one role as a text": {p.token(rs, nil, object{"roles": "clerk"}), alice},
		"roles once": {
			p.token(rs, nil, object{"roles": []string{"b", "a", "b", ""}}), oidc.Identity{Subject: "alice", Tenant: "acme", Roles: []string{"b", "a"}},
		},
		"no roles":   {p.token(rs, nil, object{"roles": nil}), oidc.Identity{Subject: "alice", Tenant: "acme"}},
		"null roles": {rs.sign(`{"alg":"RS256"}`, strings.Replace(encode(p.claims(nil)), `["clerk"]`, `null`, 1)), oidc.Identity{Subject: "alice", Tenant: "acme"}},
		"the deployment": {
			p.token(rs, nil, object{"roles": []string{"deployer"}, "tenant": nil}), oidc.Identity{Subject: "alice", Deployment: true, Roles: []string{"deployer"}},
		},
		"the deployment, with a tenant": {
			p.token(rs, nil, object{"roles": []string{"deployer"}}), oidc.Identity{Subject: "alice", Tenant: "acme", Deployment: true, Roles: []string{"deployer"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := verify(t, v, c.token)
			if err != nil {
				t.Fatal(err)
			}
			if got.Expires.IsZero() {
				t.Error("it has no expiry")
			}
			got.Expires = time.Time{}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Every known confusion of verifiers, and what a token that is merely wrong may look like.
func TestRefused(t *testing.T) {
	t.Parallel()
	// What a token refers to, it must not make the verifier fetch.
	var lured atomic.Int32
	lure := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { lured.Add(1) }))
	t.Cleanup(lure.Close)

	rs, foreign := rsaKey("rs"), signer{"rs", "RS256", otherRSA()}
	weak, p384 := signer{"weak", "RS256", weakRSA()}, ecKey("p384", elliptic.P384())
	encryption, wrapping, rs512 := rsaKey("enc"), rsaKey("wrap"), rsaKey("rs512")
	p := start(t, rs.public(nil), weak.public(nil), p384.public(object{"alg": nil}),
		encryption.public(object{"use": "enc", "alg": nil}), wrapping.public(object{"key_ops": []string{"wrapKey"}, "use": nil, "alg": nil}), rs512.public(object{"alg": "RS512"}))
	v := p.verifier(t, nil)

	good := p.token(rs, nil, nil)
	parts := strings.Split(good, ".")
	claims, now := encode(p.claims(nil)), time.Now().Unix()
	der, err := x509.MarshalPKIXPublicKey(strongRSA().Public())
	if err != nil {
		t.Fatal(err)
	}
	encrypter, err := jose.NewEncrypter(jose.A128GCM, jose.Recipient{Algorithm: jose.RSA_OAEP, Key: strongRSA().Public(), KeyID: "rs"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := encrypter.Encrypt([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypted.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	full, err := jose.ParseSignedCompact(good, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	embedded := foreign.embedded(lure.URL)

	const (
		form      = "signed JWT"
		coding    = "base64url"
		algorithm = "algorithm"
		head      = "its header is not"
		signature = "none of the issuer's keys"
		body      = "its claims are not"
		types     = "has a wrong type"
		tenant    = "its claim tenant"
		roles     = "its claim roles"
	)
	for name, c := range map[string]struct{ token, reason string }{
		"empty":             {"", form},
		"no JWT":            {"pawl_1_secret", form},
		"two parts":         {parts[0] + "." + parts[1], form},
		"four parts":        {good + ".", form},
		"JWE":               {jwe, form},
		"JSON form":         {full.FullSerialize(), form},
		"spaces":            {" " + good, coding},
		"line breaks":       {parts[0] + "\n." + parts[1] + "." + parts[2], coding},
		"padding":           {good + "=", coding},
		"bits left over":    {good[:len(good)-1] + string(good[len(good)-1]+1), coding},
		"huge":              {p.token(rs, nil, object{"x": strings.Repeat("x", oidc.MaxToken)}), "larger than 16384 bytes"},
		"no signature":      {parts[0] + "." + parts[1] + ".", signature},
		"another signature": {parts[0] + "." + parts[1] + "." + strings.Split(p.token(rs, nil, object{"sub": "bob"}), ".")[2], signature},
		"another's key":     {p.token(foreign, nil, nil), signature},

		"alg none":                   {p.token(signer{"rs", "none", nil}, nil, nil), algorithm},
		"alg None":                   {p.token(signer{"rs", "None", nil}, nil, nil), algorithm},
		"no alg":                     {p.token(rs, object{"alg": nil}, nil), algorithm},
		"alg of a wrong type":        {p.token(rs, object{"alg": 256}, nil), "alg must be a text"},
		"HS256 with the DER":         {p.token(signer{"rs", "HS256", der}, nil, nil), algorithm},
		"HS256 with the PEM":         {p.token(signer{"rs", "HS256", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}, nil, nil), algorithm},
		"not configured":             {p.token(rs, object{"alg": "PS256"}, nil), algorithm},
		"alg of another key":         {p.token(rs, object{"alg": "EdDSA"}, nil), signature},
		"ES256 with P-384":           {p.token(p384, nil, nil), signature},
		"weak RSA key":               {p.token(weak, nil, nil), signature},
		"key to encrypt with":        {p.token(encryption, nil, nil), signature},
		"key to wrap with":           {p.token(wrapping, nil, nil), signature},
		"key for another alg":        {p.token(rs512, nil, nil), signature},
		"unknown kid":                {p.token(rs, object{"kid": "nobody"}, nil), signature},
		"kid with a path":            {p.token(rs, object{"kid": "../../../dev/null"}, nil), signature},
		"kid of a wrong type":        {p.token(rs, object{"kid": 1}, nil), "kid must be a text"},
		"kid null":                   {rs.sign(`{"alg":"RS256","kid":null}`, claims), "kid must be a text"},
		"embedded key":               {p.token(foreign, embedded, nil), signature},
		"embedded key, no kid":       {p.token(foreign, object{"kid": nil, "jwk": foreign.public(nil)}, nil), signature},
		"keys elsewhere":             {p.token(foreign, object{"kid": "nobody", "jku": lure.URL, "x5u": lure.URL}, nil), signature},
		"crit":                       {p.token(rs, object{"crit": []string{"exp"}, "exp": now}, nil), "crit"},
		"crit, known to go-jose":     {p.token(rs, object{"crit": []string{"b64"}, "b64": true}, nil), "crit"},
		"crit empty":                 {p.token(rs, object{"crit": []string{}}, nil), "crit"},
		"typ of another token":       {p.token(rs, object{"typ": "logout+jwt"}, nil), "typ must be"},
		"typ empty":                  {p.token(rs, object{"typ": ""}, nil), "typ must be"},
		"typ of a wrong type":        {p.token(rs, object{"typ": []string{"JWT"}}, nil), "typ must be"},
		"header twice alg":           {rs.sign(`{"alg":"RS256","alg":"none","kid":"rs"}`, claims), head},
		"header with trailing data":  {rs.sign(`{"alg":"RS256","kid":"rs"} {}`, claims), head},
		"header no object":           {rs.sign(`["RS256"]`, claims), head},
		"header in another encoding": {rs.sign("{\"alg\":\"RS256\",\"kid\":\"rs\",\"x\":\"\xff\"}", claims), head},

		"nested token":             {rs.sign(`{"alg":"RS256","kid":"rs","cty":"JWT"}`, good), body},
		"claims twice sub":         {rs.sign(`{"alg":"RS256","kid":"rs"}`, `{"sub":"root",`+claims[1:]), body},
		"claims twice, escaped":    {rs.sign(`{"alg":"RS256","kid":"rs"}`, `{"\u0073ub":"root",`+claims[1:]), body},
		"twice in a nested object": {rs.sign(`{"alg":"RS256","kid":"rs"}`, `{"x":{"a":1,"a":2},`+claims[1:]), body},
		"trailing data":            {rs.sign(`{"alg":"RS256","kid":"rs"}`, claims+"{}"), body},
		"deep":                     {rs.sign(`{"alg":"RS256","kid":"rs"}`, strings.Repeat("[", 11000)), body},
		"another encoding":         {rs.sign(`{"alg":"RS256","kid":"rs"}`, strings.Replace(claims, "alice", "al\xffice", 1)), body},
		"null":                     {rs.sign(`{"alg":"RS256","kid":"rs"}`, `null`), "no exp"},

		"no iss":                    {p.token(rs, nil, object{"iss": nil}), "its iss"},
		"another iss":               {p.token(rs, nil, object{"iss": "https://elsewhere.example"}), "its iss"},
		"iss with a slash":          {p.token(rs, nil, object{"iss": p.issuer + "/"}), "its iss"},
		"iss in capitals":           {p.token(rs, nil, object{"iss": strings.ToUpper(p.issuer)}), "its iss"},
		"ISS for iss":               {p.token(rs, nil, object{"iss": nil, "ISS": p.issuer}), "its iss"},
		"no aud":                    {p.token(rs, nil, object{"aud": nil}), "its aud"},
		"another aud":               {p.token(rs, nil, object{"aud": "pawl2"}), "its aud"},
		"no aud in a list":          {p.token(rs, nil, object{"aud": []string{}}), "its aud"},
		"other auds":                {p.token(rs, nil, object{"aud": []string{"a", "b"}}), "its aud"},
		"aud of a wrong type":       {p.token(rs, nil, object{"aud": object{audience: true}}), types},
		"aud with a wrong type":     {p.token(rs, nil, object{"aud": []any{audience, 1}}), types},
		"no exp":                    {p.token(rs, nil, object{"exp": nil}), "no exp"},
		"EXP for exp":               {p.token(rs, nil, object{"exp": nil, "EXP": now + 60}), "no exp"},
		"expired":                   {p.token(rs, nil, object{"exp": now - 40}), "expired"},
		"exp as a text":             {p.token(rs, nil, object{"exp": "9999999999"}), types},
		"exp beyond all":            {p.token(rs, nil, object{"exp": 1e30}), types},
		"nbf in the future":         {p.token(rs, nil, object{"nbf": now + 300}), "its nbf"},
		"nbf beyond all":            {p.token(rs, nil, object{"nbf": 1e19}), types},
		"iat in the future":         {p.token(rs, nil, object{"iat": now + 300}), "its iat"},
		"no sub":                    {p.token(rs, nil, object{"sub": nil}), "its sub"},
		"sub empty":                 {p.token(rs, nil, object{"sub": ""}), "its sub"},
		"sub of a wrong type":       {p.token(rs, nil, object{"sub": 7}), types},
		"sub long":                  {p.token(rs, nil, object{"sub": strings.Repeat("é", 128)}), "its sub"},
		"sub with a NUL":            {p.token(rs, nil, object{"sub": "a\x00b"}), "its sub"},
		"no tenant":                 {p.token(rs, nil, object{"tenant": nil}), tenant},
		"tenant empty":              {p.token(rs, nil, object{"tenant": ""}), tenant},
		"tenant *":                  {p.token(rs, nil, object{"tenant": "*"}), tenant},
		"tenant * of a deployer":    {p.token(rs, nil, object{"tenant": "*", "roles": "deployer"}), tenant},
		"tenant empty of one":       {p.token(rs, nil, object{"tenant": "", "roles": "deployer"}), tenant},
		"tenant of a wrong type":    {p.token(rs, nil, object{"tenant": []string{"acme"}}), tenant},
		"tenant null":               {rs.sign(`{"alg":"RS256"}`, strings.Replace(claims, `"acme"`, `null`, 1)), tenant},
		"tenant long":               {p.token(rs, nil, object{"tenant": strings.Repeat("x", 64)}), tenant},
		"tenant with a line break":  {p.token(rs, nil, object{"tenant": "a\nb"}), tenant},
		"roles of a wrong type":     {p.token(rs, nil, object{"roles": object{"deployer": true}}), roles},
		"roles with a wrong type":   {p.token(rs, nil, object{"roles": []any{"clerk", 1}}), roles},
		"roles with null":           {p.token(rs, nil, object{"roles": []any{"clerk", nil}}), roles},
		"roles number":              {p.token(rs, nil, object{"roles": 1}), roles},
		"deployment in words":       {p.token(rs, nil, object{"tenant": nil, "roles": "clerk deployer"}), tenant},
		"deployment by other claim": {p.token(rs, nil, object{"tenant": nil, "Roles": "deployer", "deployer": true}), tenant},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := verify(t, v, c.token)
			if !errors.Is(err, oidc.ErrInvalid) || errors.Is(err, oidc.ErrUnavailable) {
				t.Fatalf("got %+v, %v, want %v", got, err, oidc.ErrInvalid)
			}
			if !strings.Contains(err.Error(), c.reason) {
				t.Errorf("the reason is %q, want one with %q", err, c.reason)
			}
			if text := err.Error(); strings.Contains(text, "\n") || len(text) > 200 {
				t.Errorf("the reason is not one short line: %q", text)
			}
			if !cmp.Equal(got, oidc.Identity{}) {
				t.Errorf("a refused token has the identity %+v", got)
			}
		})
	}
	if _, err := verify(t, v, good); err != nil {
		t.Errorf("the token that the others are made from: %v", err)
	}
	if n := lured.Load(); n > 0 {
		t.Errorf("%d fetches from where headers point to", n)
	}
}

// A key that a header carries is not used, and does no harm to a token that one of the issuer's keys has signed.
func TestEmbeddedKeyIsIgnored(t *testing.T) {
	t.Parallel()
	rs := rsaKey("rs")
	p := start(t, rs.public(nil))
	token := p.token(rs, ecKey("own", elliptic.P256()).embedded("http://127.0.0.1:1/"), nil)
	if _, err := verify(t, p.verifier(t, nil), token); err != nil {
		t.Error(err)
	}
}

func TestClaimPaths(t *testing.T) {
	t.Parallel()
	rs := rsaKey("rs")
	p := start(t, rs.public(nil))
	keycloak := object{"resource_access": object{"pawl": object{"roles": []string{"a"}}, "pawl.example.com": object{"roles": []string{"b"}}}}
	for _, c := range []struct {
		path   string
		claims object
		want   []string
	}{
		{"groups", object{"groups": []string{"g"}}, []string{"g"}},
		{"resource_access.pawl.roles", keycloak, []string{"a"}},
		{"resource_access.pawl.example.com.roles", keycloak, []string{"b"}},
		{"resource_access.pawl.other", keycloak, nil},
		{"resource_access.other.roles", keycloak, nil},
		{"sub.roles", nil, nil},
		{"https://pawl.example.com/roles", object{"https://pawl.example.com/roles": []string{"u"}}, []string{"u"}},
		{"a.b", object{"a.b": "whole", "a": object{"b": "inner"}}, []string{"whole"}},
		{"a.b", object{"a": object{"b": "inner"}}, []string{"inner"}},
	} {
		v := p.verifier(t, func(config *oidc.Config) { config.RolesClaim = c.path })
		got, err := verify(t, v, p.token(rs, nil, c.claims))
		if err != nil || !slices.Equal(got.Roles, c.want) {
			t.Errorf("%s of %v: %v, %v, want %v", c.path, c.claims, got.Roles, err, c.want)
		}
	}
	v := p.verifier(t, func(config *oidc.Config) { config.TenantClaim = "org.name" })
	if got, err := verify(t, v, p.token(rs, nil, object{"org": object{"name": "acme"}, "tenant": "other"})); err != nil || got.Tenant != "acme" {
		t.Errorf("the tenant is %q, %v", got.Tenant, err)
	}
}

// Without a deployment role nobody acts for the deployment, whatever roles a token has.
func TestNoDeploymentRole(t *testing.T) {
	t.Parallel()
	rs := rsaKey("rs")
	p := start(t, rs.public(nil))
	v := p.verifier(t, func(config *oidc.Config) { config.DeploymentRole = "" })
	got, err := verify(t, v, p.token(rs, nil, object{"roles": []string{"", "deployer"}}))
	if err != nil || got.Deployment {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	rs, es := rsaKey("rs"), ecKey("es", elliptic.P256())
	p := start(t, rs.public(nil), es.public(nil))
	v := p.verifier(t, func(config *oidc.Config) { config.Algorithms = []string{"ES256"} })
	if _, err := verify(t, v, p.token(rs, nil, nil)); !errors.Is(err, oidc.ErrInvalid) {
		t.Errorf("an algorithm that is not configured: %v", err)
	}
	if _, err := verify(t, v, p.token(es, nil, nil)); err != nil {
		t.Error(err)
	}
	// Both algorithms are for RSA keys, and the provider says which one this key is for.
	p.publish(rs.public(object{"alg": "PS256"}))
	v = p.verifier(t, func(config *oidc.Config) { config.Algorithms = []string{"RS256", "PS256"} })
	if _, err := verify(t, v, p.token(rs, nil, nil)); !errors.Is(err, oidc.ErrInvalid) {
		t.Errorf("an algorithm that the key is not for: %v", err)
	}
}

// What an https provider says must not lead to keys that could be changed on the way.
func TestKeysWithoutTLS(t *testing.T) {
	t.Parallel()
	rs := rsaKey("rs")
	p := newProvider("https://id.example.com", rs.public(nil))
	p.discovery["jwks_uri"] = "http://127.0.0.1/keys"
	v := p.verifier(t, func(config *oidc.Config) { config.HTTPClient = &http.Client{Transport: direct{p}} })
	if _, err := verify(t, v, p.token(rs, nil, nil)); !errors.Is(err, oidc.ErrUnavailable) || p.fetches.Load() > 0 {
		t.Errorf("%v after %d fetches, want %v and none", err, p.fetches.Load(), oidc.ErrUnavailable)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := oidc.Config{Issuer: "https://id.example.com/realms/a", Audience: "pawl"}
	for name, c := range map[string]struct {
		change func(*oidc.Config)
		want   string
	}{
		"as it is": {func(*oidc.Config) {}, ""},
		"all algs": {func(c *oidc.Config) {
			c.Algorithms = strings.Fields("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA")
		}, ""},
		"loopback":  {func(c *oidc.Config) { c.Issuer = "http://localhost:8081/realms/a" }, ""},
		"no issuer": {func(c *oidc.Config) { c.Issuer = "" }, "https URL"},
		"http":      {func(c *oidc.Config) { c.Issuer = "http://id.example.com" }, "https URL"},
		"looks like loopback": {
			func(c *oidc.Config) { c.Issuer = "http://localhost.example.com" }, "https URL",
		},
		"no URL":       {func(c *oidc.Config) { c.Issuer = "https://[" }, "https URL"},
		"user":         {func(c *oidc.Config) { c.Issuer = "https://me@id.example.com" }, "without user"},
		"query":        {func(c *oidc.Config) { c.Issuer = "https://id.example.com?a" }, "without user"},
		"fragment":     {func(c *oidc.Config) { c.Issuer = "https://id.example.com#a" }, "without user"},
		"no audience":  {func(c *oidc.Config) { c.Audience = "" }, "audience"},
		"HS256":        {func(c *oidc.Config) { c.Algorithms = []string{"RS256", "HS256"} }, `"HS256" is not supported`},
		"none":         {func(c *oidc.Config) { c.Algorithms = []string{"none"} }, `"none" is not supported`},
		"other case":   {func(c *oidc.Config) { c.Algorithms = []string{"rs256"} }, `"rs256" is not supported`},
		"no algorithm": {func(c *oidc.Config) { c.Algorithms = []string{""} }, `"" is not supported`},
	} {
		config := good
		c.change(&config)
		_, err := oidc.New(config)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

// A provider that makes a mistake is one that is away, and the log says which mistake it is.
func TestFaultyProvider(t *testing.T) {
	t.Parallel()
	rs := rsaKey("rs")
	var elsewhere atomic.Int32
	other := start(t, rs.public(nil))
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Add(1)
		other.ServeHTTP(w, r)
	}))
	t.Cleanup(stranger.Close)
	const discovery = "/.well-known/openid-configuration"
	many := make([]any, 101)
	for i := range many {
		many[i] = rs.public(nil)
	}
	// instead answers one path itself, and leaves the others to the provider.
	instead := func(path string, answer http.HandlerFunc) func(*provider) {
		return func(p *provider) {
			sound := newProvider(p.issuer, rs.public(nil))
			p.answerWith(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == path {
					answer(w, r)
					return
				}
				sound.ServeHTTP(w, r)
			})
		}
	}
	write := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
	}
	big := `"` + strings.Repeat("x", 2<<20) + `"`
	jwk := encode(rs.public(nil))
	for name, c := range map[string]struct {
		order func(*provider)
		log   string
	}{
		"discovery fails": {instead(discovery, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, big, http.StatusInternalServerError) }), "too large"},
		"discovery fails with a page": {instead(discovery, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, big[:100000], http.StatusInternalServerError)
		}), "500"},
		"no discovery":                    {instead(discovery, http.NotFound), "404"},
		"discovery no JSON":               {instead(discovery, write("<html>")), "Content-Type"},
		"discovery of another issuer":     {func(p *provider) { p.discovery["issuer"] = "https://elsewhere.example" }, "did not match"},
		"discovery is huge":               {func(p *provider) { p.discovery["x"] = big }, "too large"},
		"no jwks_uri":                     {func(p *provider) { delete(p.discovery, "jwks_uri") }, "jwks_uri"},
		"jwks_uri over http":              {func(p *provider) { p.discovery["jwks_uri"] = "http://keys.example/" }, "jwks_uri"},
		"jwks_uri of a file":              {func(p *provider) { p.discovery["jwks_uri"] = "file:///etc/passwd" }, "jwks_uri"},
		"discovery moves to another host": {instead(discovery, http.RedirectHandler(stranger.URL+discovery, http.StatusFound).ServeHTTP), "redirects"},
		"keys move to another host":       {instead("/keys", http.RedirectHandler(stranger.URL+"/keys", http.StatusFound).ServeHTTP), "redirects"},
		"keys move without end":           {instead("/keys", http.RedirectHandler("/keys", http.StatusFound).ServeHTTP), "redirects"},
		"keys fail":                       {instead("/keys", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "out", http.StatusServiceUnavailable) }), "503"},
		"keys no JSON":                    {instead("/keys", write("<html>")), "JWK Set"},
		"keys with trailing data":         {instead("/keys", write(`{"keys":[`+jwk+`]} x`)), "JWK Set"},
		"keys twice":                      {instead("/keys", write(`{"keys":[],"keys":[`+jwk+`]}`)), "JWK Set"},
		"a key with a member twice":       {instead("/keys", write(`{"keys":[{"kid":"x",`+jwk[1:]+`]}`)), "JWK Set"},
		"keys are huge":                   {instead("/keys", write(big)), "too large"},
		"keys are cut off": {instead("/keys", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			write("{")(w, nil)
		}), "EOF"},
		"too many keys":              {func(p *provider) { p.keys = many }, "101 keys"},
		"no keys":                    {func(p *provider) { p.keys = []any{} }, "none of 0 keys"},
		"only weak keys":             {func(p *provider) { p.keys = []any{signer{"rs", "RS256", weakRSA()}.public(nil)} }, "none of 1 keys"},
		"only a key that takes long": {func(p *provider) { p.keys = []any{rs.public(object{"n": strings.Repeat("_", 16384/6)})} }, "none of 1 keys"},
		"only secrets":               {func(p *provider) { p.keys = []any{object{"kty": "oct", "k": "c2VjcmV0", "kid": "rs"}} }, "none of 1 keys"},
		"a private key":              {func(p *provider) { p.keys = []any{rs.jwk(rs.private, nil)} }, "none of 1 keys"},
		"a key without its modulus":  {func(p *provider) { p.keys = []any{rs.public(object{"n": nil})} }, "none of 1 keys"},
		"key_ops of a wrong type":    {func(p *provider) { p.keys = []any{rs.public(object{"key_ops": "verify"})} }, "none of 1 keys"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, rs.public(nil))
			c.order(p)
			var log bytes.Buffer
			v := p.verifier(t, func(config *oidc.Config) { config.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			if got, err := verify(t, v, p.token(rs, nil, nil)); !errors.Is(err, oidc.ErrUnavailable) || errors.Is(err, oidc.ErrInvalid) {
				t.Errorf("got %+v, %v, want %v", got, err, oidc.ErrUnavailable)
			}
			if text := log.String(); !strings.Contains(text, c.log) || len(text) > 1000 {
				t.Errorf("the log has %q, want a short one with %q", text, c.log)
			}
		})
	}
	t.Cleanup(func() {
		if n := elsewhere.Load(); n > 0 {
			t.Errorf("%d fetches from another host", n)
		}
	})
}

// The provider may keep its keys on another host, and move within a host.
func TestKeysElsewhere(t *testing.T) {
	t.Parallel()
	rs := rsaKey("rs")
	keys := start(t)
	keys.answerWith(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "/new", http.StatusMovedPermanently)
			return
		}
		_, _ = w.Write([]byte(encode(object{"keys": []any{rs.public(nil)}})))
	})
	p := start(t)
	p.discovery["jwks_uri"] = keys.issuer + "/old"
	if _, err := verify(t, p.verifier(t, nil), p.token(rs, nil, nil)); err != nil {
		t.Error(err)
	}
}
