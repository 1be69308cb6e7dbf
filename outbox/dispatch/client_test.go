package dispatch_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// serve runs an endpoint until the test ends.
func serve(t *testing.T, handler http.HandlerFunc) (url string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

func newClient(t *testing.T, config dispatch.Config) *dispatch.Client {
	t.Helper()
	client := dispatch.NewClient(config)
	t.Cleanup(client.Close)
	return client
}

func send(t *testing.T, client *dispatch.Client, url string) dispatch.Answer {
	t.Helper()
	ctx := bounded.Context(t)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	return client.Send(ctx, request)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if wait := r.URL.Query().Get("wait"); wait != "" {
			w.Header().Set("Retry-After", wait)
		}
		w.Header().Set("Location", "/200")
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			_, _ = w.Write([]byte("not\x00\xff" + strings.Repeat("ž", 2000)))
		}
	})
	client := newClient(t, dispatch.Config{Guard: address.NewGuard(address.Private()...)})
	for _, c := range []struct {
		path, failure string
		wait          time.Duration
	}{
		{"/200", "", 0},
		{"/204", "", 0},
		{"/307", "the endpoint answered 307, and redirects are not followed", 0},
		{"/410", "the endpoint answered 410", 0},
		{"/500?wait=7", "the endpoint answered 500", 0},
		{"/503", "the endpoint answered 503", 0},
		{"/503?wait=7", "the endpoint answered 503", 7 * time.Second},
		{"/429?wait=99999999", "the endpoint answered 429", dispatch.MaxWait},
		{"/429?wait=-7", "the endpoint answered 429", 0},
		{"/429?wait=soon", "the endpoint answered 429", 0},
		{"/429?wait=Fri,%2031%20Dec%202999%2023:59:59%20GMT", "the endpoint answered 429", dispatch.MaxWait},
		{"/429?wait=Fri,%2031%20Dec%201999%2023:59:59%20GMT", "the endpoint answered 429", 0},
	} {
		a := send(t, client, url+c.path)
		if got := fmt.Sprint(a.Failure); got != c.failure && (c.failure != "" || a.Failure != nil) {
			t.Errorf("%s: %s, want %q", c.path, got, c.failure)
		}
		if a.RetryAfter != c.wait || fmt.Sprint(a.Status) != c.path[1:4] {
			t.Errorf("%s: status %d and Retry-After %s, want %s", c.path, a.Status, a.RetryAfter, c.wait)
		}
		if n := len(a.Excerpt()); a.Status != http.StatusNoContent && (n < 1000 || n > 1024 || !strings.HasPrefix(a.Excerpt(), "not\uFFFD\uFFFDž")) ||
			!utf8.ValidString(a.Excerpt()) {
			t.Errorf("%s: %d bytes are kept of the body: %q", c.path, n, a.Excerpt())
		}
	}
}

func TestNoAnswer(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the request")
	hanging := serve(t, func(http.ResponseWriter, *http.Request) { hang.Pass() })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + listener.Addr().String()
	_ = listener.Close()
	client := newClient(t, dispatch.Config{Guard: address.NewGuard(address.Private()...), Timeout: 200 * time.Millisecond})
	for url, want := range map[string]string{hanging: "no answer within 200ms", closed: "the connection was refused"} {
		if a := send(t, client, url); a.Status != 0 || a.Failure == nil || !strings.Contains(a.Failure.Error(), want) {
			t.Errorf("%s: %+v, want %q", url, a, want)
		}
	}
}

// The failures of attempts tell the owner of the endpoint nothing of the network: no address that a name resolved to, no
// resolver, and no other host that a certificate is for.
func TestFailuresNameNoHost(t *testing.T) {
	t.Parallel()
	answers := func(text string) string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = bufio.NewReader(conn).ReadString('\n')
				_, _ = conn.Write([]byte(text))
				_ = conn.Close()
			}
		}()
		return listener.Addr().String()
	}
	secret := httptest.NewUnstartedServer(http.NotFoundHandler())
	secret.Config.ErrorLog = log.New(io.Discard, "", 0)
	secret.StartTLS() // Its certificate is for example.com and 127.0.0.1.
	t.Cleanup(secret.Close)
	_, port, err := net.SplitHostPort(secret.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	client := newClient(t, dispatch.Config{Guard: address.NewGuard(address.Private()...)})
	for url, want := range map[string]string{
		"https://localhost:" + port:                      "the endpoint's certificate is for another host",
		"https://127.0.0.1:" + port:                      "the endpoint's certificate is signed by an unknown authority",
		strings.Replace(plain, "http://", "https://", 1): "the endpoint does not speak TLS",
		"http://" + answers(""):                          "the connection was closed before there was an answer",
		"http://" + answers("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nSecret: db.internal 10.9.8.7\r\n"): "the connection was closed before there was an answer",
		"http://" + answers("220 mail.internal ESMTP\r\n"):                                              "the connection failed, or the answer was no HTTP",
		"http://" + answers("HTTP/1.1 200 OK\r\nmail.internal\r\n\r\n"):                                 "the connection failed, or the answer was no HTTP",
		"http://db.internal.invalid":                                                                    "the host's name does not resolve",
		"http://169.254.169.254":                                                                        dispatch.ErrProhibited.Error(),
		"https://localhost:1/?password":                                                                 "the connection was refused",
	} {
		if a := send(t, client, url); a.Status != 0 || a.Failure == nil || a.Failure.Error() != want {
			t.Errorf("%s: %+v, want %q", url, a, want)
		}
	}
}

// The guard looks at the address that a name has resolved to, when the connection is made.
func TestPrivateAddresses(t *testing.T) {
	t.Parallel()
	url := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a private address was asked") })
	port := url[strings.LastIndex(url, ":"):]
	client := newClient(t, dispatch.Config{})
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"} {
		if a := send(t, client, "http://"+host+port); !errors.Is(a.Failure, dispatch.ErrProhibited) {
			t.Errorf("%s: %+v", host, a)
		}
	}
}
