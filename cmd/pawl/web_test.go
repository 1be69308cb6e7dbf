package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// An authority signs the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{cert: &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}}
	a.pem, a.key = a.sign(t, a.cert)
	block, _ := pem.Decode(a.pem)
	var err error
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign returns a certificate and its key. The first one that an authority signs is its own.
func (a *authority) sign(t testing.TB, template *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		t.Fatal(err)
	}
	template.Subject = pkix.Name{CommonName: "pawl test " + template.SerialNumber.String()}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

// issue returns a server's certificate for an address and names, and its key, in PEM.
func (a *authority) issue(t testing.TB, address string, names ...string) (cert, key []byte) {
	t.Helper()
	template := &x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if address != "" {
		template.IPAddresses = []net.IP{net.ParseIP(address)}
	}
	cert, private := a.sign(t, template)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// client returns a client that trusts the authority and makes a connection for each request.
func (a *authority) client(t testing.TB) (*http.Client, *tls.Config) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	config := &tls.Config{RootCAs: roots}
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, config
}

// The service serves HTTPS, HTTP/2 among it, refuses what is older than TLS 1.2, and takes up a new certificate without
// a restart. A broken one does not end the service, nor does a certificate whose key has not come yet.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	written := time.Now()
	write := func(file string, text []byte) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		written = written.Add(time.Second)
		if err := os.Chtimes(file, written, written); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := ca.issue(t, "127.0.0.1")
	write(certFile, cert)
	write(keyFile, key)
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve", "--tls-cert", certFile, "--tls-key", keyFile)
	secure := strings.Replace(p.url, "http://", "https://", 1)
	client, config := ca.client(t)
	get := func(url string) (*http.Response, error) {
		ctx := bounded.Context(t)
		in, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := client.Do(in)
		if err == nil {
			_, _ = io.Copy(io.Discard, out.Body)
			_ = out.Body.Close()
		}
		return out, err
	}
	serial := func() string {
		t.Helper()
		out, err := get(secure + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		if out.StatusCode != http.StatusOK || out.ProtoMajor != 2 || out.Header.Get("Strict-Transport-Security") != "max-age=31536000" {
			t.Fatalf("got %s over %s with %v", out.Status, out.Proto, out.Header)
		}
		return out.TLS.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if out, err := get(p.url + "/readyz"); err != nil || out.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: %v, %v", out, err)
	}
	old, err := (&tls.Dialer{Config: &tls.Config{RootCAs: config.RootCAs, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}}).
		DialContext(bounded.Context(t), "tcp", strings.TrimPrefix(secure, "https://"))
	if err == nil {
		_ = old.Close()
		t.Error("TLS 1.1 is accepted")
	}

	// A stream is flushed through HTTP/2, too.
	ctx, cancel := context.WithCancel(bounded.Context(t))
	defer cancel()
	in, err := http.NewRequestWithContext(ctx, http.MethodGet, secure+"/v1/events?from=start", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := client.Do(in)
	if err != nil || stream.StatusCode != http.StatusOK || stream.ProtoMajor != 2 {
		t.Fatalf("a stream: %v, %v", stream, err)
	}
	_ = stream.Body.Close()

	broken := regexp.MustCompile(`level=ERROR msg="the new certificate cannot be used[^\n]*`)
	tell := func() string { _ = serial(); return p.Output.String() }
	write(certFile, []byte("-----BEGIN nonsense"))
	log := bounded.Until(t, "the broken file to be noticed", tell, broken.MatchString)
	if strings.Contains(log, "PRIVATE") || serial() != first {
		t.Errorf("after a broken file: %s", log)
	}
	cert, key = ca.issue(t, "127.0.0.1")
	write(certFile, cert)
	bounded.Until(t, "the certificate without its key to be noticed", tell, func(log string) bool { return len(broken.FindAllString(log, -1)) == 2 })
	if serial() != first {
		t.Error("a certificate without its key is served")
	}
	write(keyFile, key)
	second := bounded.Until(t, "the new certificate", serial, func(s string) bool { return s != first })
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	bounded.Until(t, "the missing file to be noticed", tell, func(log string) bool { return len(broken.FindAllString(log, -1)) == 3 })
	if serial() != second {
		t.Error("a missing file changed the certificate")
	}
	p.Signal(t, syscall.SIGTERM)
	if err := p.Wait(t); err != nil {
		t.Error(err)
	}
}

// Flags with which the service would not be protected as somebody means it are refused at the start.
func TestWebFlags(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.NewDSN(t)}
	file := writeFile(t, "tls.pem", "nothing")
	for _, c := range []struct {
		code  int
		words []string
		args  []string
	}{
		{2, []string{"--tls-cert and --tls-key need each other"}, []string{"--tls-cert", file}},
		{2, []string{"--tls-cert and --tls-key need each other"}, []string{"--tls-key", file}},
		{2, []string{"--trusted-proxies", "10.0.0.1/32"}, []string{"--trusted-proxies", "10.0.0.0/33"}},
		{2, []string{"--trusted-proxies", "10.0.0.1/32"}, []string{"--trusted-proxies", "10.0.0.1"}},
		{2, []string{"--allowed-host", `"https://pawl.example"`}, []string{"--allowed-host", "pawl.example,https://pawl.example"}},
		{2, []string{"--allowed-host", "pattern"}, []string{"--allowed-host", "*.example"}},
		{2, []string{"--allowed-host"}, []string{"--allowed-host", "pawl.example/"}},
		{2, []string{"--rate-limit must not be negative"}, []string{"--rate-limit=-1"}},
		{2, []string{"--rate-limit must not be negative"}, []string{"--rate-limit=NaN"}},
		{2, []string{"--retention-floor must not be negative"}, []string{"--retention-floor=-1s"}},
		{2, []string{"--max-queue must be at least 1"}, []string{"--max-queue", "0"}},
		{2, []string{"--tenant", "deployment"}, []string{"--tenant", "*"}},
		{1, []string{"--tenant", `"nobody"`, "pawl tenant create"}, []string{"--tenant", "nobody"}},
		{1, []string{"--tokens " + file, "byte 1"}, []string{"--tokens", file}},
		{1, []string{"tls.pem"}, []string{"--tls-cert", file, "--tls-key", file}},
		{1, []string{"nowhere.pem"}, []string{"--tls-cert", "nowhere.pem", "--tls-key", file}},
		{1, []string{`"*"`, "https://app.example"}, []string{"--cors-origin", "*"}},
	} {
		args := append([]string{"serve", "--log-level", "error", "--listen", "127.0.0.1:0"}, c.args...)
		wantLine(t, env, c.code, c.words, args...)
	}
}

// A service on loopback answers for no name but this machine's, wherever a name leads; --allowed-host adds one.
func TestAllowedHosts(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	for _, c := range []struct {
		listen, host string
		args         []string
		want         int
	}{
		{"127.0.0.1:0", "evil.example", nil, http.StatusMisdirectedRequest},
		{"127.0.0.1:0", "localhost", nil, http.StatusOK},
		{"127.0.0.1:0", "flows.example", []string{"--allowed-host", "other.example", "--allowed-host", "flows.example"}, http.StatusOK},
		{"127.0.0.1:0", "evil.example", []string{"--allowed-host", "flows.example"}, http.StatusMisdirectedRequest},
		{"127.0.0.1:0", "[2001:db8::1]:80", []string{"--allowed-host", "[2001:db8::1]:80"}, http.StatusOK},
		{"127.0.0.1:0", "[2001:db8::1]", []string{"--allowed-host", "2001:db8::1"}, http.StatusOK},
		{":0", "evil.example", []string{"--auth", "none"}, http.StatusOK},
		{":0", "evil.example", []string{"--auth", "none", "--allowed-host", "flows.example"}, http.StatusMisdirectedRequest},
	} {
		p := bounded.Start(t, bounded.Program{
			Path: program, Args: append([]string{"serve", "--listen", c.listen}, c.args...), Env: []string{"DATABASE_URL=" + dsn}, Ready: started,
		})
		_, port, err := net.SplitHostPort(p.Ready[2])
		if err != nil {
			t.Fatal(err)
		}
		in, err := http.NewRequestWithContext(bounded.Context(t), http.MethodGet, "http://127.0.0.1:"+port+"/v1/instances", nil)
		if err != nil {
			t.Fatal(err)
		}
		in.Host = c.host
		out, err := http.DefaultClient.Do(in)
		if err != nil {
			t.Fatal(err)
		}
		_ = out.Body.Close()
		if out.StatusCode != c.want {
			t.Errorf("%s with %v, for %s: got %s, want %d", c.listen, c.args, c.host, out.Status, c.want)
		}
	}
}

// With sslmode=verify-full the service talks to the database that its certificate names, and to no other.
func TestVerifiedDatabase(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, map[string]string{"listen_addresses": "127.0.0.1", "port": bounded.Port(t)})
	owner := dialDSN(t, server.DSN())
	ca := newAuthority(t)
	var data string
	if err := owner.QueryRow(t.Context(), "show data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	account := info.Sys().(*syscall.Stat_t)
	// give gives the server a certificate.
	give := func(by *authority, address string) {
		t.Helper()
		cert, key := by.issue(t, address)
		for name, text := range map[string][]byte{"server.crt": cert, "server.key": key} {
			file := filepath.Join(data, name)
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(file, int(account.Uid), int(account.Gid)); err != nil {
				t.Fatal(err)
			}
		}
		bounded.Exec(t, owner, "select pg_reload_conf()")
	}
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, owner, "alter role postgres password 'sesame'")
	config := owner.Config()
	dsn := func(root string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", "sesame"), Host: fmt.Sprint("127.0.0.1:", config.Port), Path: config.Database}
		u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {root}}.Encode()
		return u.String()
	}
	root, other := writeFile(t, "root.crt", string(ca.pem)), writeFile(t, "other.crt", string(newAuthority(t).pem))
	status := func(url string) (string, int) {
		_, stderr, code := pawl(t, []string{"DATABASE_URL=" + url}, "outbox", "status")
		return stderr, code
	}
	if stderr, code := status(dsn(root)); code == 0 || !strings.Contains(stderr, "TLS") {
		t.Errorf("a server without TLS: exit code %d: %s", code, stderr)
	}
	give(ca, "127.0.0.1")
	bounded.Exec(t, owner, "alter system set ssl = on")
	bounded.Exec(t, owner, "select pg_reload_conf()")
	bounded.Until(t, "the server to have TLS", func() int { _, code := status(dsn(root)); return code }, func(code int) bool { return code == 0 })
	if stderr, code := status(dsn(other)); code == 0 || !strings.Contains(stderr, "certificate") {
		t.Errorf("a server of another authority: exit code %d: %s", code, stderr)
	}
	p := start(t, []string{"DATABASE_URL=" + dsn(root)}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote")
	// Those of the service and of its workers, notifications among them.
	if n := bounded.Value[int](t, owner, "select count(*) from pg_stat_activity a join pg_stat_ssl s using (pid) where a.client_addr is not null and not s.ssl"); n != 0 {
		t.Errorf("%d connections have no TLS", n)
	}
	if n := bounded.Value[int](t, owner, "select count(*) from pg_stat_activity a join pg_stat_ssl s using (pid) where a.client_addr is not null and s.ssl"); n < 2 {
		t.Errorf("%d connections have TLS", n)
	}
	give(ca, "127.0.0.9")
	stderr := bounded.Until(t, "the certificate for another address to be refused", func() string { stderr, _ := status(dsn(root)); return stderr },
		func(stderr string) bool { return stderr != "" })
	if !strings.Contains(stderr, "certificate") || bytes.Contains([]byte(stderr), []byte("sesame")) {
		t.Errorf("a certificate for another address: %s", stderr)
	}
}
