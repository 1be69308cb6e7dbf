package dispatch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pawl-fsm/pawl/internal/address"
)

const (
	connectTimeout = 5 * time.Second
	// maxExcerpt is how many bytes Excerpt returns at most. maxDiscard is how much is read of a body beyond what is
	// kept, so that the connection can be used again.
	maxExcerpt = 1 << 10
	maxDiscard = 16 << 10
)

// ErrProhibited is the failure of an attempt whose endpoint has an address that must not be
// connected to.
var ErrProhibited = errors.New("the host has an address that must not be connected to")

// A Client sends requests to endpoints that others have named. It follows no redirect, uses no
// proxy, and connects only to addresses that Config.Guard allows, whatever a name resolves to when it
// connects. It may be used by several goroutines at once.
type Client struct {
	http   *http.Client
	config Config
}

// NewClient returns a Client.
func NewClient(config Config) *Client {
	config = config.WithDefaults()
	dialer := &net.Dialer{Timeout: min(connectTimeout, config.Timeout), KeepAlive: 30 * time.Second, Control: config.Guard.Control}
	return &Client{config: config, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            dialer.DialContext,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			TLSClientConfig:        &tls.Config{RootCAs: config.Roots},
			TLSHandshakeTimeout:    min(connectTimeout, config.Timeout),
			MaxIdleConns:           config.Concurrency,
			MaxIdleConnsPerHost:    config.PerLane,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}}
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// An Answer is the result of one attempt.
type Answer struct {
	// Status is the HTTP status, or 0 if there was no answer.
	Status int
	// Header are the headers of the answer.
	Header http.Header
	// Body is what is kept of the body: at most Config.MaxBody bytes. BodyFailure is why it is not the whole body, or
	// nil: ErrTooLarge, or what kept the rest from coming.
	Body        []byte
	BodyFailure error
	// Failure is nil if the status is 2xx. Otherwise its text may be shown to the owner of the
	// endpoint: it says what kind of failure it was, and names no host and no address.
	Failure error
	// RetryAfter is how long the endpoint asks to be left alone, from the header Retry-After of
	// a 429 or a 503: 0 to MaxWait.
	RetryAfter time.Duration
	// Begun is true if the endpoint may have received something of the request.
	Begun bool
	// Reused is true if the connection was one that had been used before.
	Reused bool
}

// ErrTooLarge is why a body is not whole that has more than Config.MaxBody bytes.
var ErrTooLarge = errors.New("the body is too large")

// Excerpt returns the beginning of the body: at most 1 KiB of valid UTF-8 without NUL.
func (a Answer) Excerpt() string {
	return Clean(string(a.Body[:min(len(a.Body), maxExcerpt)]), maxExcerpt)
}

// Send makes one attempt, which ends within Config.Timeout.
func (c *Client) Send(ctx context.Context, request *http.Request) Answer {
	return c.SendWithin(ctx, request, c.config.Timeout)
}

// SendWithin makes one attempt, which ends within a time. At most Config.BodyTimeout of it goes to the body of the
// answer.
func (c *Client) SendWithin(ctx context.Context, request *http.Request, timeout time.Duration) (a Answer) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var begun, reused atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:          func(conn httptrace.GotConnInfo) { reused.Store(conn.Reused) },
		WroteHeaderField: func(string, []string) { begun.Store(true) },
	})
	defer func() { a.Begun, a.Reused = begun.Load(), reused.Load() }()
	response, err := c.http.Do(request.WithContext(ctx))
	if err != nil {
		return Answer{Failure: describe(err, timeout)}
	}
	defer func() { _ = response.Body.Close() }()
	a = Answer{Status: response.StatusCode, Header: response.Header}
	if a.Status == http.StatusSwitchingProtocols {
		// What follows is another protocol and not a body: to read it would not end with the context.
		a.Failure = fmt.Errorf("the endpoint answered %d", a.Status)
		return a
	}
	defer time.AfterFunc(c.config.BodyTimeout, cancel).Stop()
	a.Body, err = io.ReadAll(io.LimitReader(response.Body, int64(c.config.MaxBody)+1))
	if err != nil {
		a.BodyFailure = describe(err, timeout)
	}
	if len(a.Body) > c.config.MaxBody {
		a.Body, a.BodyFailure = a.Body[:c.config.MaxBody], ErrTooLarge
		_, _ = io.CopyN(io.Discard, response.Body, maxDiscard)
	}
	switch {
	case a.Status >= 200 && a.Status < 300:
	case a.Status >= 300 && a.Status < 400:
		a.Failure = fmt.Errorf("the endpoint answered %d, and redirects are not followed", a.Status)
	default:
		a.Failure = fmt.Errorf("the endpoint answered %d", a.Status)
	}
	if a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable {
		a.RetryAfter = retryAfter(response.Header.Get("Retry-After"), time.Now())
	}
	return a
}

// describe returns the reason that there was no answer, in words for the owner of the endpoint. The error itself is not
// shown: it has the addresses of this network, the names of its resolvers, and what else certificates of its hosts are for.
func describe(err error, timeout time.Duration) error {
	var timedOut net.Error
	var unresolved *net.DNSError
	is := func(causes ...error) bool {
		return slices.ContainsFunc(causes, func(cause error) bool { return errors.Is(err, cause) })
	}
	switch {
	case errors.As(err, &unresolved):
		return errors.New("the host's name does not resolve")
	case is(address.ErrProhibited):
		return ErrProhibited
	case is(context.DeadlineExceeded), errors.As(err, &timedOut) && timedOut.Timeout():
		return fmt.Errorf("no answer within %s", timeout)
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return errors.New("the endpoint's certificate " + untrusted(err))
	case errors.As(err, new(tls.RecordHeaderError)), is(http.ErrSchemeMismatch):
		return errors.New("the endpoint does not speak TLS")
	case errors.As(err, new(tls.AlertError)):
		return errors.New("the endpoint refused the TLS handshake")
	case is(syscall.ECONNREFUSED):
		return errors.New("the connection was refused")
	case is(syscall.EHOSTUNREACH, syscall.ENETUNREACH):
		return errors.New("there is no route to the host")
	case is(syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed):
		return errors.New("the connection was closed before there was an answer")
	}
	return errors.New("the connection failed, or the answer was no HTTP")
}

// untrusted returns why a certificate is not trusted.
func untrusted(err error) string {
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case errors.As(err, new(x509.HostnameError)):
		return "is for another host"
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return "is signed by an unknown authority"
	case invalid.Reason == x509.Expired && invalid.Cert != nil:
		return "has expired, or is not valid yet"
	}
	return "is not valid"
}

// Clean returns at most so many bytes of a text, as valid UTF-8 without NUL, which Postgres can
// store.
func Clean(s string, most int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// retryAfter reads the header Retry-After: seconds, or an HTTP date (RFC 9110, 10.2.3). It is 0 for
// a header that cannot be read.
func retryAfter(header string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseInt(header, 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), MaxWait)
}
