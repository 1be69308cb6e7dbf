package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pawl-fsm/pawl/httpapi"
)

// webFlags are the flags of serve and dev for what stands between the service and its callers: proxies, browsers and TLS.
type webFlags struct {
	TLSCert        string    `name:"tls-cert" env:"PAWL_TLS_CERT" placeholder:"FILE" help:"Serve HTTPS with this certificate chain, in PEM. It is read again when the file changes."`
	TLSKey         string    `name:"tls-key" env:"PAWL_TLS_KEY" placeholder:"FILE" help:"Private key of --tls-cert, in PEM."`
	AllowedHosts   []string  `name:"allowed-host" env:"PAWL_ALLOWED_HOSTS" placeholder:"HOST" help:"Answer only requests for this host, on any port unless one is given, and for the address that the service listens on. May be repeated. Without it a service that listens on loopback answers only for localhost and loopback addresses, and any other for every host."`
	CORSOrigins    []string  `name:"cors-origin" env:"PAWL_CORS_ORIGINS" placeholder:"ORIGIN" help:"Let web pages of this origin, such as https://app.example, call the service. May be repeated. Without it those of other sites may not."`
	TrustedProxies []network `env:"PAWL_TRUSTED_PROXIES" placeholder:"CIDR" help:"Networks of proxies whose X-Forwarded-For names the caller's address."`
}

// Validate refuses a certificate without its key, and hosts that no request names.
func (w *webFlags) Validate() error {
	if (w.TLSCert == "") != (w.TLSKey == "") {
		return errors.New("--tls-cert and --tls-key need each other")
	}
	for _, host := range w.AllowedHosts {
		if !isHost(host) {
			return fmt.Errorf("--allowed-host is %q: it must be a host as requests name it, such as pawl.example.com or pawl.example.com:8443, without a scheme or a pattern", host)
		}
	}
	return nil
}

// A network is a flag's value.
type network struct{ netip.Prefix }

// UnmarshalText reads a network in CIDR notation.
func (n *network) UnmarshalText(text []byte) (err error) {
	if n.Prefix, err = netip.ParsePrefix(string(text)); err != nil {
		return fmt.Errorf("must be a network such as 10.0.0.0/8, or 10.0.0.1/32 for one address, not %q", text)
	}
	return nil
}

// isHost reports whether a text is a host with or without a port, as in the header Host.
func isHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	u, err := url.Parse("//" + text)
	return err == nil && u.Host == text && u.Hostname() != "" && !strings.ContainsAny(text, "*@ ")
}

// apply sets what the handler must know of the flags.
func (w *webFlags) apply(config *httpapi.Config, addr net.Addr) {
	config.AllowedHosts, config.CORSOrigins = w.AllowedHosts, w.CORSOrigins
	for _, n := range w.TrustedProxies {
		config.TrustedProxies = append(config.TrustedProxies, n.Prefix)
	}
	config.OnLoopback = isLoopback(addr.String())
}

// scheme is how the URL of the service begins.
func (w *webFlags) scheme() string {
	if w.TLSCert != "" {
		return "https"
	}
	return "http"
}

// tls returns the configuration of the listener, nil without a certificate.
func (w *webFlags) tls(log *slog.Logger) (*tls.Config, error) {
	if w.TLSCert == "" {
		return nil, nil
	}
	c := &certificate{certFile: w.TLSCert, keyFile: w.TLSKey, log: log}
	if err := c.read(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil },
	}, nil
}

// A certificate is a pair of files, which are read again when one of them changes.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate
	files   [2]fileVersion // Of the pair.
	failure string         // Why the files cannot be read now. It was logged.
	next    time.Time      // When to look at them again.
}

// fileVersion tells a file from what it was before.
type fileVersion struct {
	modified time.Time
	size     int64
}

// current returns the certificate. It looks at the files at most once a second. As long as they cannot be used, it
// returns the certificate that they had before.
func (c *certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.After(c.next) {
		c.next = now.Add(time.Second)
		before := c.files
		failure := ""
		switch err := c.read(); {
		case err != nil:
			if failure = err.Error(); failure != c.failure {
				c.log.Error("the new certificate cannot be used: the one before it is served", "error", err)
			}
		case c.files != before:
			c.log.Info("serving a new certificate", "file", c.certFile)
		}
		c.failure = failure
	}
	return c.pair
}

// read reads the files if they have changed.
func (c *certificate) read() error {
	var files [2]fileVersion
	for i, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		files[i] = fileVersion{info.ModTime(), info.Size()}
	}
	if files == c.files {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", c.certFile, c.keyFile, err)
	}
	c.pair, c.files = &pair, files
	return nil
}
