package address

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Policy is what a deployment configures for the endpoints that its clients name. Its zero value is safe for
// clients that are not trusted.
type Policy struct {
	// AllowPrivate allows the addresses of [Private]. It is meant for development and for closed networks.
	// Default false.
	AllowPrivate bool
	// AllowNetworks are allowed although they are not public. Default none.
	AllowNetworks []netip.Prefix
	// Secret is that of the deployment, in the form that [CheckSecret] accepts. The callbacks that were registered without
	// a secret of their own are signed with secrets that are derived from it: see CallbackSecret. Default empty: such
	// callbacks are refused.
	Secret string
}

// Guard returns the guard that the policy asks for.
func (p Policy) Guard() *Guard {
	if p.AllowPrivate {
		return NewGuard(append(Private(), p.AllowNetworks...)...)
	}
	return NewGuard(p.AllowNetworks...)
}

// Validate returns an error if the secret cannot sign. The error does not show the secret.
func (p Policy) Validate() error {
	if p.Secret == "" {
		return nil
	}
	return CheckSecret(p.Secret)
}

// CallbackSecret returns what signs a tenant's callbacks, in the form that [CheckSecret] accepts; empty if the deployment has
// no secret. It is 32 bytes of HKDF-SHA256 (RFC 5869) of the deployment's secret, without a salt and with the tenant as the
// info. So what a tenant has signed cannot pass for another tenant's.
func (p Policy) CallbackSecret(tenant string) (string, error) {
	if p.Secret == "" {
		return "", nil
	}
	if err := p.Validate(); err != nil {
		return "", err
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.Secret, SecretPrefix))
	if err != nil {
		return "", fmt.Errorf("read the secret: %w", err)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, tenant, 32)
	if err != nil {
		return "", fmt.Errorf("derive the tenant's secret: %w", err)
	}
	return SecretPrefix + base64.StdEncoding.EncodeToString(key), nil
}

// SecretPrefix is how a symmetric secret of Standard Webhooks begins.
const SecretPrefix = "whsec_"

// CheckSecret returns an error unless the text is a symmetric secret of Standard Webhooks
// (github.com/standard-webhooks/standard-webhooks): SecretPrefix, then 24 to 64 bytes in padded
// base64. The error says what is expected and does not show the secret.
func CheckSecret(secret string) error {
	encoded, prefixed := strings.CutPrefix(secret, SecretPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !prefixed || err != nil || len(key) < 24 || len(key) > 64 || strings.ContainsAny(encoded, "\r\n") {
		return errors.New("must be " + SecretPrefix + " and 24 to 64 bytes in base64")
	}
	return nil
}
