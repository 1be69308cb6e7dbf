package address

import (
	"cmp"
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

	"golang.org/x/net/idna"
)

// MaxURLLength bounds the URL of an endpoint, in characters.
const MaxURLLength = 2048

// lookUpTimeout is how long a host may take to resolve.
const lookUpTimeout = time.Second

// CheckURL returns the URL of an endpoint as it is sent; see [NormalURL]. It returns an error if
// nothing can or may be sent to it. The error says what the URL must be, and is fit for clients.
//
// With lookUp the host is resolved, and each of its addresses must be allowed. A host that does not
// resolve now is accepted: the address is checked again whenever something is sent.
func (p Policy) CheckURL(ctx context.Context, raw string, lookUp bool) (string, error) {
	u, err := normalise(raw)
	if err != nil {
		return "", err
	}
	guard := p.Guard()
	for _, a := range addresses(ctx, u.Hostname(), lookUp) {
		if !guard.Allows(a) {
			return "", errors.New("must not lead to a loopback, private, link-local or other special address, unless the deployment allows its network with --webhook-allow-private")
		}
	}
	return u.String(), nil
}

// NormalURL returns the URL of an endpoint as it is sent (RFC 3986). Its host is in lower case and,
// if it has letters beyond ASCII, in punycode (RFC 5891). What path and query must not have is
// percent-encoded; what is percent-encoded already stays. It returns an error if nothing can be
// sent to the URL.
func NormalURL(raw string) (string, error) {
	u, err := normalise(raw)
	return u.String(), err
}

func normalise(raw string) (u url.URL, err error) {
	switch {
	case !utf8.ValidString(raw) || strings.ContainsRune(raw, 0):
		return u, errors.New("must be UTF-8 without NUL")
	case utf8.RuneCountInString(raw) > MaxURLLength:
		return u, fmt.Errorf("must have at most %d characters", MaxURLLength)
	case strings.TrimSpace(raw) != raw:
		return u, errors.New("must not begin or end with a space")
	}
	if _, err := url.PathUnescape(raw); err != nil {
		return u, errors.New("must have two hexadecimal digits after each %")
	}
	given, err := url.Parse(raw)
	switch {
	case err != nil || given.Scheme != "https" && given.Scheme != "http" || given.Hostname() == "":
		return u, errors.New("must be an absolute http or https URL")
	case given.User != nil:
		return u, errors.New("must not hold a user or a password")
	case given.Fragment != "":
		return u, errors.New("must not have a fragment, which is never sent")
	case given.Port() != "" && !isPort(given.Port()):
		return u, errors.New("has no port between 1 and 65535")
	}
	u.Scheme = given.Scheme
	if u.Host, err = normalHost(given.Hostname()); err != nil {
		return url.URL{}, err
	}
	if given.Port() != "" {
		u.Host += ":" + given.Port()
	}
	// RawPath is the path as it was written, unless that is what EscapedPath makes of it.
	u.RawPath = encode(cmp.Or(given.RawPath, given.EscapedPath()))
	u.RawQuery = encode(given.RawQuery)
	if u.Path, err = url.PathUnescape(u.RawPath); err != nil {
		return url.URL{}, err
	}
	if text := u.String(); len(text) > MaxURLLength {
		return url.URL{}, fmt.Errorf("must have at most %d characters once it is percent-encoded; it has %d", MaxURLLength, len(text))
	}
	return u, nil
}

// normalHost returns a host as it is sent.
func normalHost(host string) (string, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Is6() {
			return "[" + strings.Replace(host, "%", "%25", 1) + "]", nil
		}
		return host, nil
	}
	if strings.IndexFunc(host, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0 {
		var err error
		if host, err = idna.Lookup.ToASCII(host); err != nil {
			return "", errors.New("has a host whose name cannot be written in ASCII (IDNA)")
		}
	}
	host = strings.ToLower(host)
	if strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return "", errors.New("must have a host of letters, digits, dots and hyphens")
	}
	return host, nil
}

// plain are the characters that path and query may have besides letters and digits (RFC 3986, 3.3
// and 3.4), and the percent sign of what is encoded.
const plain = "-._~!$&'()*+,;=:@/?%"

// encode percent-encodes each byte that a path or a query must not have.
func encode(text string) string {
	var b strings.Builder
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(plain, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
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
