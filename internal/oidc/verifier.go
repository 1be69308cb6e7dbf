package oidc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// MaxToken is the largest size of a token in bytes.
	MaxToken = 16 << 10
	// Leeway is by how much the clocks of the provider and of this process may differ.
	Leeway = 30 * time.Second
)

var (
	// ErrInvalid is wrapped by the errors of tokens that are not valid. Their text is why not ("it has
	// expired"), and may be shown to whoever sent the token.
	ErrInvalid = errors.New("the token is not valid")
	// ErrUnavailable means that a token cannot be checked, because the provider's keys are not known. The
	// log has the reason.
	ErrUnavailable = errors.New("the keys of the identity provider cannot be read")
)

// supported are the algorithms that a configuration may name. Those with a shared secret (HS256 and so
// on) are not among them: whoever could verify a token could make one.
var supported = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Config says whose tokens are accepted, and how they are read.
type Config struct {
	// Issuer is the URL of the provider, exactly as in the claim iss of its tokens. Its discovery document
	// is below it, at /.well-known/openid-configuration. https, or http on loopback. Required.
	Issuer string
	// Audience must be in the claim aud. Required.
	Audience string
	// TenantClaim is the claim with the tenant: the name of a member, or a path with dots into objects
	// (realm.tenant). Where names have dots themselves, the longest name that a member has is taken.
	// Default "tenant".
	TenantClaim string
	// RolesClaim is the claim with the roles, a text or an array of texts. It is named as TenantClaim is.
	// Default "roles".
	RolesClaim string
	// DeploymentRole is the role whose bearers act for the whole deployment. Without it nobody does.
	DeploymentRole string
	// Algorithms are the signature algorithms that are accepted. Default RS256, ES256 and EdDSA.
	Algorithms []string
	// HTTPClient fetches from the provider; how it follows redirects is replaced. The default uses the
	// proxies of the environment.
	HTTPClient *http.Client
	// Logger is told of fetches that fail. Default slog.Default().
	Logger *slog.Logger
}

// An Identity is whom a token speaks for.
type Identity struct {
	// Subject is the claim sub: 1 to 255 bytes without control characters.
	Subject string
	// Tenant has 1 to 63 characters and is never "*". It is empty if Deployment is set and the token has
	// no tenant claim.
	Tenant string
	// Deployment says that the token has the role of Config.DeploymentRole.
	Deployment bool
	// Roles are the names of the provider's roles, each once, in their order.
	Roles []string
	// Expires is the claim exp. The token is accepted for the Leeway after it.
	Expires time.Time
}

// A Verifier checks tokens. It may be used by any number of goroutines.
type Verifier struct {
	config     Config
	algorithms []jose.SignatureAlgorithm
	keys       *keySource
}

// New returns a verifier for a configuration, or says what is wrong with it. It asks the provider
// nothing.
func New(config Config) (*Verifier, error) {
	issuer, err := url.Parse(config.Issuer)
	switch {
	case err != nil || !secure(issuer):
		return nil, errors.New("the issuer must be an https URL, or an http URL on loopback")
	case issuer.User != nil || issuer.RawQuery != "" || issuer.ForceQuery || issuer.Fragment != "":
		return nil, errors.New("the issuer must be a URL without user, query and fragment")
	case config.Audience == "":
		return nil, errors.New("the audience is missing: name what the claim aud of tokens for pawl contains")
	}
	if config.TenantClaim == "" {
		config.TenantClaim = "tenant"
	}
	if config.RolesClaim == "" {
		config.RolesClaim = "roles"
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	algorithms := []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA}
	if len(config.Algorithms) > 0 {
		algorithms = nil
	}
	for _, name := range config.Algorithms {
		if !slices.Contains(supported, jose.SignatureAlgorithm(name)) {
			return nil, fmt.Errorf("the algorithm %q is not supported: use some of %v", name, supported)
		}
		algorithms = append(algorithms, jose.SignatureAlgorithm(name))
	}
	return &Verifier{config: config, algorithms: algorithms, keys: newKeySource(config, algorithms)}, nil
}

// secure reports whether what is fetched from a URL cannot be changed on the way.
func secure(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	return u.Hostname() != "" && (u.Scheme == "https" || u.Scheme == "http" && loopback)
}

// Verify returns whom a token speaks for. Its errors wrap ErrInvalid or ErrUnavailable. It may wait for a
// fetch from the provider, until the context ends.
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	header, err := parseHeader(token)
	if err != nil {
		return Identity{}, err
	}
	if !slices.Contains(v.algorithms, header.algorithm) {
		return Identity{}, invalid("its algorithm is not accepted: use one of %v", v.algorithms)
	}
	signed, err := jose.ParseSignedCompact(token, v.algorithms)
	if err != nil {
		return Identity{}, invalid("it is not a signed JWT")
	}
	payload, err := v.verifySignature(ctx, header, signed)
	if errors.Is(err, ErrUnavailable) {
		// Its claims may be enough to refuse it. So nobody goes on with an expired token because the provider is away.
		if _, refusal := v.identify(signed.UnsafePayloadWithoutVerification(), time.Now()); refusal != nil {
			return Identity{}, refusal
		}
	}
	if err != nil {
		return Identity{}, err
	}
	return v.identify(payload, time.Now())
}

// verifySignature returns the payload of a token if a key of the provider has signed it. If no key that is
// known has, it looks for newer ones: providers exchange their keys.
func (v *Verifier) verifySignature(ctx context.Context, header header, signed *jose.JSONWebSignature) ([]byte, error) {
	set, err := v.keys.get(ctx, nil)
	if err != nil {
		return nil, err
	}
	if payload := set.verify(header, signed); payload != nil {
		return payload, nil
	}
	newer, err := v.keys.get(ctx, set)
	if err != nil {
		return nil, err
	}
	if newer != set {
		if payload := newer.verify(header, signed); payload != nil {
			return payload, nil
		}
	}
	return nil, invalid("none of the issuer's keys that fit it has signed it")
}

// A header is what counts of a token's header.
type header struct {
	algorithm jose.SignatureAlgorithm
	keyID     string // "" for none.
}

// parseHeader checks the form of a token and returns its header.
func parseHeader(token string) (header, error) {
	if len(token) > MaxToken {
		return header{}, invalid("it is larger than %d bytes", MaxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return header{}, invalid("it is not a signed JWT, which has three parts")
	}
	var first []byte
	for i, part := range parts {
		// The decoder would pass over line breaks.
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || strings.ContainsAny(part, "\r\n") {
			return header{}, invalid("its parts are not in base64url without padding")
		}
		if i == 0 {
			first = decoded
		}
	}
	members, err := parseObject(first)
	if err != nil {
		return header{}, invalid("its header is not a JSON object without duplicate members")
	}
	if _, critical := members["crit"]; critical {
		return header{}, invalid("its header has crit, and no extension is supported")
	}
	typ, typed, err := textOf(members, "typ")
	if err != nil || typed && !slices.Contains([]string{"jwt", "at+jwt"}, strings.TrimPrefix(strings.ToLower(typ), "application/")) {
		return header{}, invalid("its typ must be JWT, at+jwt or absent")
	}
	algorithm, _, err := textOf(members, "alg")
	if err != nil {
		return header{}, invalid("its alg must be a text")
	}
	keyID, _, err := textOf(members, "kid")
	if err != nil {
		return header{}, invalid("its kid must be a text")
	}
	return header{algorithm: jose.SignatureAlgorithm(algorithm), keyID: keyID}, nil
}

// A reason is why a token is not valid.
type reason string

func (r reason) Error() string { return string(r) }
func (r reason) Unwrap() error { return ErrInvalid }

func invalid(format string, args ...any) error { return reason(fmt.Sprintf(format, args...)) }

// parseObject reads a JSON object strictly: names are exact and given once, texts are UTF-8, and nothing
// follows it.
func parseObject(data []byte) (members map[string]jsontext.Value, err error) {
	err = json.Unmarshal(data, &members)
	return members, err
}

// textOf returns a member that is a text if it is there.
func textOf(members map[string]jsontext.Value, name string) (text string, found bool, err error) {
	value, found := members[name]
	if !found {
		return "", false, nil
	}
	text, err = parseText(value)
	return text, true, err
}

// parseText reads a JSON string. Unlike json.Unmarshal it refuses null.
func parseText(value jsontext.Value) (text string, err error) {
	if value.Kind() != '"' {
		return "", errors.New("not a text")
	}
	err = json.Unmarshal(value, &text)
	return text, err
}
