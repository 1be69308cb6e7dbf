package live

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"sync"

	"github.com/pawl-fsm/pawl/db/queries"
)

// A seal encrypts notifications with a key that is made of the database's secret. Any login may listen on a channel and
// notify: without the key it neither reads nor forges a payload. The zero value reads the key when it is first needed.
type seal struct {
	mu   sync.Mutex
	aead cipher.AEAD
}

// sealing are the nonce and the tag that a sealed payload has beside the text.
const sealing = 12 + 16

// read reads the database's secret.
func (s *seal) read(ctx context.Context, q *queries.Queries) error {
	setting, err := q.GetSetting(ctx)
	if err != nil {
		return err
	}
	key, err := hkdf.Key(sha256.New, setting.CursorSecret, nil, "pawl notifications", 32)
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aead = aead
	return nil
}

// known returns the cipher, or nil if the secret was not read yet.
func (s *seal) known() cipher.AEAD {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aead
}

// close returns the sealed payload for a channel.
func (s *seal) close(ctx context.Context, q *queries.Queries, channel, payload string) (string, error) {
	if s.known() == nil {
		if err := s.read(ctx, q); err != nil {
			return "", err
		}
	}
	return base64.RawStdEncoding.EncodeToString(s.known().Seal(nil, nil, []byte(payload), []byte(channel))), nil
}

// open returns what was sealed for a channel. It reports false if the payload was not sealed with this database's secret.
func (s *seal) open(channel, sealed string) (payload string, ok bool) {
	data, err := base64.RawStdEncoding.DecodeString(sealed)
	aead := s.known()
	if err != nil || aead == nil {
		return "", false
	}
	text, err := aead.Open(nil, nil, data, []byte(channel))
	return string(text), err == nil
}
