package connection

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

const (
	maxUser    = 255
	maxSecret  = 4096
	maxHeaders = 50
	maxValue   = 1024
	maxCA      = 64 << 10

	minTimeout = 100 * time.Millisecond
	maxTimeout = 10 * time.Minute

	defaultConcurrency = 32
	maxConcurrency     = 512
)

// isReserved reports whether a header is one that a connection cannot have: a call has it by itself, or with a task's key.
func isReserved(name string) bool {
	return definition.IsOwnHeader(name) || strings.EqualFold(name, "Idempotency-Key")
}

// check fills in defaults, writes the base URL as it is stored, and returns all faults as one error.
func (s *Service) check(ctx context.Context, tenant, name string, c *Settings) error {
	c.Concurrency = cmp.Or(c.Concurrency, defaultConcurrency)
	if c.Headers == nil {
		c.Headers = map[string]string{}
	}
	var faults []fsm.Fault
	fault := func(pointer, format string, args ...any) {
		faults = append(faults, fsm.Fault{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
	}
	if !definition.IsConnectionName(name) {
		faults = append(faults, fsm.Fault{
			Parameter: "name",
			Detail:    fmt.Sprintf("must have at most %d lower-case letters, digits and single - or _ between them, and begin with a letter", definition.MaxConnectionName),
		})
	}
	if base, err := s.baseURL(ctx, c.BaseURL); err != nil {
		fault("/base_url", "%v", err)
	} else {
		c.BaseURL = base
	}
	s.checkAuth(tenant, c.Auth, fault)
	checkHeaders(*c, fault)
	if c.Timeout != 0 && (c.Timeout < minTimeout || c.Timeout > maxTimeout) {
		fault("/timeout", "must be from %s to %s", definition.FormatDuration(minTimeout), definition.FormatDuration(maxTimeout))
	}
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		fault("/concurrency", "must be from 1 to %d", maxConcurrency)
	}
	if c.CA != "" {
		if strings.HasPrefix(c.BaseURL, "http:") {
			fault("/tls/ca", "is for a base_url with https")
		} else if err := checkCA(c.CA); err != nil {
			fault("/tls/ca", "%v", err)
		}
	}
	return unacceptable(faults...)
}

// baseURL returns a base URL as it is stored: normal, and without a slash at its end.
func (s *Service) baseURL(ctx context.Context, given string) (string, error) {
	normal, err := s.policy.CheckURL(ctx, given, true)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(normal)
	if err != nil {
		return "", err
	}
	if u.RawQuery != "" || strings.Contains(given, "?") {
		return "", errors.New("must not have a query: a task has its own")
	}
	return strings.TrimRight(normal, "/"), nil
}

// checkAuth looks for what is missing, and for what another type has.
func (s *Service) checkAuth(tenant string, a Auth, fault func(pointer, format string, args ...any)) {
	if !slices.Contains([]string{None, Bearer, Basic, Header}, a.Type) {
		fault("/auth/type", "must be %s, %s, %s or %s", Bearer, Basic, Header, None)
		return
	}
	switch {
	case a.Type != Basic && a.User != "":
		fault("/auth/user", "is for the type %s", Basic)
	case a.Type == Basic && (a.User == "" || !isText(a.User, maxUser) || strings.Contains(a.User, ":")):
		fault("/auth/user", "must have 1 to %d characters, without control characters and colons (RFC 7617)", maxUser)
	}
	switch name := strings.ToLower(a.Name); {
	case a.Type != Header && a.Name != "":
		fault("/auth/name", "is for the type %s", Header)
	case a.Type == Header && (!definition.IsHeaderName(a.Name) || name != "authorization" && isReserved(name)):
		fault("/auth/name", "must be the name of a header that has a secret, such as X-Api-Key")
	}
	switch {
	case a.Type == None && a.Variable != "":
		fault("/auth/env", "is for the other types")
	case a.Variable != "":
		if err := s.secrets.Variables.Check(tenant, a.Variable); err != nil {
			fault("/auth/env", "%v", err)
		}
	}
	switch {
	case a.Secret == "":
	case a.Type == None:
		fault("/auth/secret", "is for the other types")
	case a.Variable != "":
		fault("/auth/secret", "is given beside env: give one of them")
	default:
		if err := checkSecret(a.Type, a.Secret); err != nil {
			fault("/auth/secret", "%v", err)
		}
	}
}

// checkSecret returns an error if a secret cannot be sent by a type of Auth. The error does not show the secret.
func checkSecret(kind, secret string) error {
	switch {
	case kind == Basic && !isText(secret, maxSecret):
		return fmt.Errorf("must have 1 to %d characters, without control characters", maxSecret)
	case kind == Basic:
		return nil
	case !isHeaderValue(secret, maxSecret):
		return fmt.Errorf("must have 1 to %d visible ASCII characters, and spaces only between them", maxSecret)
	case kind == Bearer && strings.Contains(secret, " "):
		return errors.New("must not have a space; the word Bearer is put before it")
	}
	return nil
}

func checkHeaders(c Settings, fault func(pointer, format string, args ...any)) {
	if len(c.Headers) > maxHeaders {
		fault("/headers", "must have at most %d headers", maxHeaders)
		return
	}
	seen := map[string]bool{}
	if c.Auth.Type == Header {
		seen[strings.ToLower(c.Auth.Name)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		pointer, known := "/headers"+definition.Pointer(name), strings.ToLower(name)
		switch {
		case !definition.IsHeaderName(name):
			fault(pointer, "is no name of a header")
		case known == "authorization":
			fault(pointer, "has a secret, which headers do not hide: give it in auth")
		case isReserved(known):
			fault(pointer, "is set by pawl")
		case seen[known]:
			fault(pointer, "is here twice, since case does not count in headers")
		case !isHeaderValue(c.Headers[name], maxValue):
			fault(pointer, "must have 1 to %d visible ASCII characters, and spaces only between them", maxValue)
		}
		seen[known] = true
	}
}

// checkCA returns an error unless a text has certificates in PEM, and nothing else that is written so: a key would be shown.
func checkCA(text string) error {
	if len(text) > maxCA {
		return fmt.Errorf("must have at most %d KiB", maxCA>>10)
	}
	rest, n := []byte(text), 0
	for block, after := pem.Decode(rest); block != nil; block, after = pem.Decode(rest) {
		n, rest = n+1, after
		if block.Type != "CERTIFICATE" {
			return errors.New("must have certificates only, and has something else in PEM")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("has a certificate, number %d, that cannot be read", n)
		}
	}
	if n == 0 || strings.Contains(string(rest), "-----BEGIN") || !fsm.IsText(text) {
		return errors.New("must be certificates in PEM")
	}
	return nil
}

// isHeaderValue reports whether a text can be the value of a header as it is (RFC 9110, 5.5), in ASCII.
func isHeaderValue(text string, most int) bool {
	return text != "" && len(text) <= most && strings.Trim(text, " ") == text && fsm.IsVisible(strings.ReplaceAll(text, " ", "_"), most)
}

// isText reports whether a text is UTF-8 without control characters.
func isText(text string, most int) bool {
	return text != "" && utf8.ValidString(text) && utf8.RuneCountInString(text) <= most && strings.IndexFunc(text, unicode.IsControl) < 0
}

// unacceptable returns an error if there are faults.
func unacceptable(faults ...fsm.Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &fsm.Error{Kind: fsm.Malformed, Message: "the connection is not acceptable", Faults: faults}
}
