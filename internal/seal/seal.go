// Package seal encrypts the secrets that are stored in the database, such as those that sign webhooks or authenticate calls.
//
// A sealed secret is a text, sealed:v1:<key id>:<base64 of nonce and ciphertext>, by AES-256-GCM (NIST SP 800-38D) with
// a random nonce. The additional data are the secret's [Place]. So a text that was copied to another row, tenant, table
// or column cannot be opened there.
//
// [Keys] are a deployment's keys. The first one seals, and all of them open. Without keys, secrets are stored as they
// are. A text that is not sealed is opened as it is, so that keys can be introduced while there are such rows.
//
// It imports nothing of pawl.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// prefix is how every sealed text begins.
const prefix = "sealed:v1:"

// keySize is the size of a key, in bytes.
const keySize = 32

// Keys are the keys of a deployment. The zero value has none. Its methods may be used by several goroutines at once.
type Keys struct {
	first   string
	ciphers map[string]cipher.AEAD
}

var keyID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,32}$`)

// Parse reads keys in the form id:base64, separated by commas; white space around them is ignored. An id has 1 to 32
// letters, digits and ". _ -", and a key has 32 bytes. An empty text has no keys. No error shows a key.
func Parse(text string) (Keys, error) {
	if strings.TrimSpace(text) == "" {
		return Keys{}, nil
	}
	keys := Keys{ciphers: map[string]cipher.AEAD{}}
	for i, part := range strings.Split(text, ",") {
		// What stands before the colon may be a part of a key, if the id was forgotten. So the number is shown instead.
		id, encoded, found := strings.Cut(strings.TrimSpace(part), ":")
		if !found || !keyID.MatchString(id) {
			return Keys{}, fmt.Errorf("key %d must have the form id:base64, with an id of 1 to 32 letters, digits and . _ -; 'pawl secret key' makes one", i+1)
		}
		key, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err != nil || strings.ContainsAny(encoded, "\r\n") {
			return Keys{}, fmt.Errorf("key %d must be padded base64 after its id", i+1)
		}
		if len(key) != keySize {
			return Keys{}, fmt.Errorf("key %d must have %d bytes, and has %d", i+1, keySize, len(key))
		}
		if keys.ciphers[id] != nil {
			return Keys{}, fmt.Errorf("key %d has the id of an earlier key: give every key an id of its own", i+1)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return Keys{}, fmt.Errorf("key %d: %w", i+1, err)
		}
		if keys.ciphers[id], err = cipher.NewGCM(block); err != nil {
			return Keys{}, fmt.Errorf("key %d: %w", i+1, err)
		}
		if keys.first == "" {
			keys.first = id
		}
	}
	return keys, nil
}

// NewKey returns a random key with a random id, in the form that [Parse] reads.
func NewKey() string {
	random := make([]byte, 4+keySize)
	_, _ = rand.Read(random) // It never fails.
	return hex.EncodeToString(random[:4]) + ":" + base64.StdEncoding.EncodeToString(random[4:])
}

// Present reports whether there is any key.
func (k Keys) Present() bool { return k.first != "" }

// First returns the id of the key that seals, or an empty text.
func (k Keys) First() string { return k.first }

// A Place is where a secret is stored. The secret can be opened only there.
type Place struct {
	Tenant, Table string
	// Row is what is known of the row's key before the row is written.
	Row    string
	Column string
}

// random returns the last eight bytes of an id. The others are the time at which the row is written.
func random(id uuid.UUID) string { return hex.EncodeToString(id[8:]) }

// Subscription is the place of a subscription's secret.
func Subscription(tenant string, id uuid.UUID) Place {
	return Place{Tenant: tenant, Table: "subscription", Row: random(id), Column: "secret"}
}

// Previous is the place of the secret that was a subscription's until it was replaced.
func Previous(tenant string, id uuid.UUID) Place {
	return Place{Tenant: tenant, Table: "subscription", Row: random(id), Column: "previous_secret"}
}

// Callback is the place of the secret of an instance's callback.
func Callback(tenant string, instance uuid.UUID) Place {
	return Place{Tenant: tenant, Table: "callback", Row: random(instance), Column: "secret"}
}

// Connection is the place of a connection's secret.
func Connection(tenant, name string) Place {
	return Place{Tenant: tenant, Table: "connection", Row: name, Column: "secret"}
}

// data returns the additional data of a place.
func (p Place) data() []byte {
	data, _ := json.Marshal([]string{prefix, p.Tenant, p.Table, p.Row, p.Column}) // Texts can be written.
	return data
}

// Seal returns the text to store for a secret. Without keys, and for an empty secret, that is the secret itself.
func (k Keys) Seal(secret string, at Place) string {
	if secret == "" || !k.Present() {
		return secret
	}
	c := k.ciphers[k.first]
	nonce := make([]byte, c.NonceSize(), c.NonceSize()+len(secret)+c.Overhead())
	_, _ = rand.Read(nonce) // It never fails.
	return prefix + k.first + ":" + base64.StdEncoding.EncodeToString(c.Seal(nonce, nonce, []byte(secret), at.data()))
}

// IsSealed reports whether a text is sealed, by any key.
func IsSealed(text string) bool { return strings.HasPrefix(text, "sealed:") }

// SealedByFirst reports whether a text is sealed by the key that seals.
func (k Keys) SealedByFirst(text string) bool {
	return k.Present() && strings.HasPrefix(text, prefix+k.first+":")
}

// Open returns the secret of a stored text. A text that is not sealed is the secret itself. The error says why it cannot
// be opened, and shows neither a key nor a secret.
func (k Keys) Open(text string, at Place) (string, error) {
	if !IsSealed(text) {
		return text, nil
	}
	rest, known := strings.CutPrefix(text, prefix)
	id, encoded, found := strings.Cut(rest, ":")
	if !known || !found || !keyID.MatchString(id) {
		return "", errors.New("the sealed secret has an unknown form")
	}
	c := k.ciphers[id]
	if c == nil {
		return "", fmt.Errorf("the secret is sealed with the key %s, which is not in PAWL_SECRET_KEY", id)
	}
	sealed, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(sealed) < c.NonceSize() {
		return "", errors.New("the sealed secret is damaged")
	}
	secret, err := c.Open(nil, sealed[:c.NonceSize()], sealed[c.NonceSize():], at.data())
	if err != nil {
		return "", fmt.Errorf("the sealed secret is damaged, belongs to another row, or was sealed with another key of the id %s", id)
	}
	return string(secret), nil
}

// Digest stands for a secret where requests are compared, since the same secret is sealed to another text each time.
func Digest(secret string) string {
	if secret == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(secret))
	return base64.StdEncoding.EncodeToString(sum[:])
}
