package oidc_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/oidc"
)

const audience = "pawl"

// An object is a JSON object in the making.
type object = map[string]any

// A provider is an OpenID Connect provider that makes mistakes to order.
type provider struct {
	issuer  string
	fetches atomic.Int32 // Of the keys.

	mu        sync.Mutex
	keys      []any
	discovery object
	answer    http.HandlerFunc // Instead of the provider's own answers, if it is set.
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	keys, discovery, answer := p.keys, p.discovery, p.answer
	p.mu.Unlock()
	if r.URL.Path == "/keys" {
		p.fetches.Add(1)
	}
	var document any
	switch {
	case answer != nil:
		answer(w, r)
		return
	case r.URL.Path == "/.well-known/openid-configuration":
		document = discovery
	case r.URL.Path == "/keys":
		document = object{"keys": keys}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(document); err != nil {
		panic(err)
	}
}

func newProvider(issuer string, keys ...any) *provider {
	return &provider{issuer: issuer, keys: keys, discovery: object{"issuer": issuer, "jwks_uri": issuer + "/keys"}}
}

// start starts a provider with some keys.
func start(t testing.TB, keys ...any) *provider {
	t.Helper()
	var p *provider
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	p = newProvider(server.URL, keys...)
	return p
}

// publish replaces the keys.
func (p *provider) publish(keys ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

// answerWith replaces the answers; nil brings back the provider's own.
func (p *provider) answerWith(answer http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = answer
}

// verifier returns a verifier of the provider's tokens. change may be nil.
func (p *provider) verifier(t testing.TB, change func(*oidc.Config)) *oidc.Verifier {
	t.Helper()
	config := oidc.Config{Issuer: p.issuer, Audience: audience, DeploymentRole: "deployer", Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&config)
	}
	v, err := oidc.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// claims are those of a valid token, with changes. A claim that is nil is left out.
func (p *provider) claims(changes object) object {
	now := time.Now().Unix()
	all := object{
		"iss": p.issuer, "aud": audience, "sub": "alice", "exp": now + 3600, "nbf": now, "iat": now,
		"tenant": "acme", "roles": []string{"clerk"},
	}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

// token signs claims with a key, as the header of which names it, with changes.
func (p *provider) token(key signer, header, claims object) string {
	all := object{"alg": key.algorithm, "kid": key.id, "typ": "JWT"}
	maps.Copy(all, header)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return key.sign(encode(all), encode(p.claims(claims)))
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// A signer is a key pair.
type signer struct {
	id, algorithm string
	private       any // crypto.Signer, []byte for a shared secret, or nil for no signature.
}

// public returns the JWK of the public key, with changes.
func (s signer) public(changes object) object {
	return s.jwk(s.private.(crypto.Signer).Public(), changes)
}

// jwk returns the JWK of one of the keys, with changes.
func (s signer) jwk(key any, changes object) object {
	text, err := jose.JSONWebKey{Key: key, KeyID: s.id, Algorithm: s.algorithm, Use: "sig"}.MarshalJSON()
	if err != nil {
		panic(err)
	}
	var members object
	if err := json.Unmarshal(text, &members); err != nil {
		panic(err)
	}
	maps.Copy(members, changes)
	maps.DeleteFunc(members, func(_ string, value any) bool { return value == nil })
	return members
}

// embedded is a header that offers the key in each way that there is.
func (s signer) embedded(url string) object {
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, &template, &template, s.private.(crypto.Signer).Public(), s.private)
	if err != nil {
		panic(err)
	}
	return object{"jwk": s.public(nil), "jku": url, "x5u": url, "x5c": []string{base64.StdEncoding.EncodeToString(certificate)}}
}

// sign makes a token of two texts, whatever they are, with SHA-256.
func (s signer) sign(header, payload string) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch key := s.private.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	case *ecdsa.PrivateKey:
		a, b, e := ecdsa.Sign(rand.Reader, key, digest[:])
		size := (key.Curve.Params().BitSize + 7) / 8
		signature, err = append(a.FillBytes(make([]byte, size)), b.FillBytes(make([]byte, size))...), e
	case ed25519.PrivateKey:
		signature = ed25519.Sign(key, []byte(input))
	case []byte:
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(input))
		signature = mac.Sum(nil)
	}
	if err != nil {
		panic(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// Making RSA keys takes long, so the tests share them.
var (
	strongRSA = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	otherRSA  = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	weakRSA   = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(1024) })
)

func newRSA(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

func rsaKey(id string) signer { return signer{id, "RS256", strongRSA()} }

func ecKey(id string, curve elliptic.Curve) signer {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return signer{id, "ES256", key}
}

func edKey(id string) signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return signer{id, "EdDSA", key}
}

// verify verifies a token within the limit of a test.
func verify(t testing.TB, v *oidc.Verifier, token string) (oidc.Identity, error) {
	t.Helper()
	return v.Verify(bounded.Context(t), token)
}
