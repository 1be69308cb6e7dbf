package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	coreos "github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// maxAge is for how long keys are used after they were fetched.
	maxAge = 5 * time.Minute
	// refreshAge is the age from which a token has the keys fetched anew, without waiting for it.
	refreshAge = time.Minute
	// pause is the time from the end of a fetch to the next one at the earliest.
	pause = 10 * time.Second

	fetchTimeout = 5 * time.Second
	maxDocument  = 1 << 20 // Bytes, uncompressed.
	maxHeader    = 64 << 10
	maxRedirects = 3
	maxKeys      = 100
	minRSA       = 2048 // Bits. go-jose reads no key of more than 4096.
)

// A key is a public key of the provider.
type key struct {
	id         string // "" for none.
	public     any
	algorithms []jose.SignatureAlgorithm // Whose signatures it may verify: at least one.
}

// A keySet is the keys as they were fetched at one time. It does not change.
type keySet struct {
	keys    []key
	fetched time.Time // When the fetch began.
}

// verify returns the payload of a token that one of the keys has signed, or nil. A token without kid is
// tried with each key that fits its algorithm.
func (s *keySet) verify(header header, signed *jose.JSONWebSignature) []byte {
	for _, k := range s.keys {
		if header.keyID != "" && header.keyID != k.id || !slices.Contains(k.algorithms, header.algorithm) {
			continue
		}
		if payload, err := signed.Verify(k.public); err == nil && payload != nil {
			return payload
		}
	}
	return nil
}

// A keySource fetches the provider's keys when tokens need them.
type keySource struct {
	issuer     string
	algorithms []jose.SignatureAlgorithm
	client     *http.Client
	log        *slog.Logger

	mu     sync.Mutex
	set    *keySet       // nil until keys were fetched.
	ended  time.Time     // When the last fetch ended.
	flight chan struct{} // Closed at the end of the fetch that is under way; nil without one.
}

func newKeySource(config Config, algorithms []jose.SignatureAlgorithm) *keySource {
	client := http.Client{}
	if config.HTTPClient != nil {
		client = *config.HTTPClient
	}
	if client.Transport == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxResponseHeaderBytes = maxHeader
		client.Transport = transport
	}
	client.Transport = boundedTransport{client.Transport}
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if first := via[0].URL; r.URL.Scheme != first.Scheme || r.URL.Host != first.Host || len(via) > maxRedirects {
			return errors.New("the provider redirects to another host, or too often")
		}
		return nil
	}
	return &keySource{issuer: config.Issuer, algorithms: algorithms, client: &client, log: config.Logger}
}

// boundedTransport bounds the bodies of responses.
type boundedTransport struct{ http.RoundTripper }

func (b boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = http.MaxBytesReader(nil, response.Body, maxDocument)
	}
	return response, err
}

// get returns keys that may be used: others than the old ones, if the provider has others and the pause since
// the last fetch is over. Without old ones it waits for a fetch only if no keys may be used.
func (s *keySource) get(ctx context.Context, old *keySet) (*keySet, error) {
	s.mu.Lock()
	set := s.usable()
	var flight <-chan struct{}
	if set == nil || set == old || time.Since(set.fetched) > refreshAge {
		flight = s.fetchOnce()
	}
	s.mu.Unlock()
	if flight != nil && (set == nil || set == old) {
		select {
		case <-flight:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		s.mu.Lock()
		set = s.usable()
		s.mu.Unlock()
	}
	if set == nil {
		return nil, ErrUnavailable
	}
	return set, nil
}

// usable returns the keys if they are not too old. The caller holds the lock.
func (s *keySource) usable() *keySet {
	if s.set == nil || time.Since(s.set.fetched) > maxAge {
		return nil
	}
	return s.set
}

// fetchOnce returns the fetch that is under way, or one that it begins, or nil before the pause is over.
// The caller holds the lock. A fetch does not end with the request that began it, since others wait for it
// too.
func (s *keySource) fetchOnce() <-chan struct{} {
	if s.flight != nil {
		return s.flight
	}
	if !s.ended.IsZero() && time.Since(s.ended) < pause {
		return nil
	}
	flight := make(chan struct{})
	s.flight = flight
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		set, err := s.fetch(ctx)
		if err != nil {
			// The text of a library may contain the document, up to its whole size.
			s.log.Warn("reading the keys of the identity provider", "issuer", s.issuer, "error", fmt.Sprintf("%.300s", err))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.set = set
		}
		s.ended, s.flight = time.Now(), nil
		close(flight)
	}()
	return flight
}

// fetch reads the discovery document and the keys that it refers to.
func (s *keySource) fetch(ctx context.Context) (*keySet, error) {
	began := time.Now()
	provider, err := coreos.NewProvider(coreos.ClientContext(ctx, s.client), s.issuer)
	if err != nil {
		return nil, err
	}
	var document struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, err
	}
	at, err := url.Parse(document.JWKSURI)
	if err != nil || !secure(at) || strings.HasPrefix(s.issuer, "https:") && at.Scheme != "https" {
		return nil, errors.New("jwks_uri of the discovery document must be an https URL, or an http URL on loopback if the issuer is one")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", at, response.Status)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", at, err)
	}
	keys, err := parseKeys(body, s.algorithms)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", at, err)
	}
	return &keySet{keys: keys, fetched: began}, nil
}

// parseKeys returns the usable keys of a JWK Set (RFC 7517), or an error if there are none.
func parseKeys(body []byte, accepted []jose.SignatureAlgorithm) (keys []key, err error) {
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("not a JWK Set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, of which at most %d are read", len(set.Keys), maxKeys)
	}
	for _, value := range set.Keys {
		if k, ok := parseKey(value, accepted); ok {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("none of %d keys may verify signatures with %v", len(set.Keys), accepted)
	}
	return keys, nil
}

// parseKey reads a JWK, and reports whether it is of any use here. As RFC 7517 section 5 wants, keys of
// other kinds and faulty ones are passed over.
func parseKey(value jsontext.Value, accepted []jose.SignatureAlgorithm) (key, bool) {
	var jwk jose.JSONWebKey
	var more struct {
		Operations []string `json:"key_ops"`
	}
	if jwk.UnmarshalJSON(value) != nil || json.Unmarshal(value, &more) != nil || !jwk.Valid() {
		return key{}, false
	}
	if jwk.Use != "" && jwk.Use != "sig" || more.Operations != nil && !slices.Contains(more.Operations, "verify") {
		return key{}, false
	}
	k := key{id: jwk.KeyID, public: jwk.Key}
	for _, a := range accepted {
		if fits(jwk.Key, a) && (jwk.Algorithm == "" || jwk.Algorithm == string(a)) {
			k.algorithms = append(k.algorithms, a)
		}
	}
	return k, len(k.algorithms) > 0
}

// fits reports whether signatures with an algorithm may be verified with a key, which must be public and
// strong enough.
func fits(public any, algorithm jose.SignatureAlgorithm) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA && slices.Contains([]jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, algorithm)
	case *ecdsa.PublicKey:
		return algorithm == map[elliptic.Curve]jose.SignatureAlgorithm{elliptic.P256(): jose.ES256, elliptic.P384(): jose.ES384, elliptic.P521(): jose.ES512}[k.Curve]
	case ed25519.PublicKey:
		return algorithm == jose.EdDSA
	}
	return false
}
