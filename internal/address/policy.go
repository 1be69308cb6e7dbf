package address

import (
	"encoding/base64"
	"errors"
	"strings"
)

// Policy is what a deployment configures for the endpoints that its clients name. Its zero value is safe for
// clients that are not trusted.
type Policy struct {
	// AllowPrivate allows every address, also those that a [Guard] refuses. It is meant for
	// development and for closed networks. Default false.
	AllowPrivate bool
	// Secret signs the callbacks that were registered without a secret of their own, in the form
	// that [CheckSecret] accepts. Default empty: such callbacks are refused.
	Secret string
}

// Validate returns an error if the secret cannot sign. The error does not show the secret.
func (p Policy) Validate() error {
	if p.Secret == "" {
		return nil
	}
	return CheckSecret(p.Secret)
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
