package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/internal/address"
)

const (
	connectTimeout = 5 * time.Second
	// bodyTimeout is how long the body of an answer is read. The status has come by then.
	bodyTimeout = 2 * time.Second
	// maxExcerpt is how many bytes of a body are kept. maxDiscard is how many more are read, so
	// that the connection can be used again.
	maxExcerpt = 1 << 10
	maxDiscard = 16 << 10
)

// ErrProhibited is the failure of an attempt whose endpoint has an address that must not be
// connected to.
var ErrProhibited = errors.New("the host has an address that must not be connected to")

// A Client sends requests to endpoints that others have named. It follows no redirect, uses no
// proxy, and connects to public addresses only, whatever a name resolves to when it connects,
// unless Config.AllowPrivate is set. It may be used by several goroutines at once.
type Client struct {
	http    *http.Client
	timeout time.Duration
}

// NewClient returns a Client.
func NewClient(config Config) *Client {
	config = config.WithDefaults()
	dialer := &net.Dialer{Timeout: min(connectTimeout, config.Timeout), KeepAlive: 30 * time.Second}
	if !config.AllowPrivate {
		dialer.Control = address.NewGuard().Control
	}
	return &Client{timeout: config.Timeout, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            dialer.DialContext,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
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
	// Response is the beginning of the body: at most 1 KiB of valid UTF-8 without NUL.
	Response string
	// Failure is nil if the status is 2xx. Otherwise its text, of at most 500 bytes if there was
	// no answer, may be shown to the owner of the endpoint: it names no resolver and no address
	// of this network.
	Failure error
	// RetryAfter is how long the endpoint asks to be left alone, from the header Retry-After of
	// a 429 or a 503: 0 to MaxWait.
	RetryAfter time.Duration
}

// Send makes one attempt. It returns within Config.Timeout, of which it spends at most two seconds
// on the body of the answer.
func (c *Client) Send(ctx context.Context, request *http.Request) Answer {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	response, err := c.http.Do(request.WithContext(ctx))
	if err != nil {
		return Answer{Failure: describe(err, c.timeout)}
	}
	defer func() { _ = response.Body.Close() }()
	a := Answer{Status: response.StatusCode}
	if a.Status == http.StatusSwitchingProtocols {
		// What follows is another protocol and not a body: to read it would not end with the context.
		a.Failure = fmt.Errorf("the endpoint answered %d", a.Status)
		return a
	}
	defer time.AfterFunc(bodyTimeout, cancel).Stop()
	excerpt := make([]byte, maxExcerpt)
	n, _ := io.ReadFull(response.Body, excerpt) // The status counts, whether or not the body can be read.
	_, _ = io.CopyN(io.Discard, response.Body, maxDiscard)
	a.Response = clean(string(excerpt[:n]), maxExcerpt)
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

// describe returns the reason that there was no answer, in words for the owner of the endpoint.
func describe(err error, timeout time.Duration) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // The text of the url.Error repeats the URL.
	}
	var timedOut net.Error
	var unresolved *net.DNSError
	switch {
	case errors.As(err, &unresolved):
		return errors.New("the host's name does not resolve") // The original names our resolver.
	case errors.Is(err, address.ErrProhibited):
		return ErrProhibited
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timedOut) && timedOut.Timeout():
		return fmt.Errorf("no answer within %s", timeout)
	}
	return errors.New(clean(err.Error(), 500))
}

// clean returns at most so many bytes of a text, as valid UTF-8 without NUL, which Postgres can
// store.
func clean(s string, most int) string {
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
