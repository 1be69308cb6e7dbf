package address

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxURLLength bounds the URL of an endpoint, in characters.
const MaxURLLength = 2048

// lookUpTimeout is how long a host may take to resolve.
const lookUpTimeout = time.Second

// CheckURL returns an error if nothing can or may be sent to a URL. The error says what the URL must
// be, and is fit for clients.
//
// With lookUp the host is resolved, and each of its addresses must be allowed. A host that does not
// resolve now is accepted: the address is checked again whenever something is sent.
func (p Policy) CheckURL(ctx context.Context, raw string, lookUp bool) error {
	switch {
	case !utf8.ValidString(raw) || strings.ContainsRune(raw, 0):
		return errors.New("must be UTF-8 without NUL")
	case utf8.RuneCountInString(raw) > MaxURLLength:
		return fmt.Errorf("must have at most %d characters", MaxURLLength)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return errors.New("must be an absolute http or https URL")
	case u.User != nil:
		return errors.New("must not hold a user or a password: what is sent is signed")
	case u.Fragment != "":
		return errors.New("must not have a fragment, which is never sent")
	case u.Port() != "" && !isPort(u.Port()):
		return errors.New("has no port between 1 and 65535")
	case p.AllowPrivate:
		return nil
	}
	guard := NewGuard()
	for _, a := range addresses(ctx, u.Hostname(), lookUp) {
		if !guard.Allows(a) {
			return errors.New("must not lead to a loopback, private, link-local or other special address")
		}
	}
	return nil
}

// addresses returns the addresses of a host. A host that is an address has itself. A name is resolved if
// lookUp is true; localhost always is, since that needs no server. Any other name has no addresses.
func addresses(ctx context.Context, host string, lookUp bool) []netip.Addr {
	if literal, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{literal}
	}
	if !lookUp && !strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return found
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n >= 1
}
