package address_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/address"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	guard := address.NewGuard()
	for text, want := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1:248:1893:25c8:1946": true, "::ffff:93.184.216.34": true,
		"127.0.0.1": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "10.0.0.1": false,
		"192.168.1.1": false, "169.254.169.254": false, "168.63.129.16": false, "::ffff:168.63.129.16": false,
		"fe80::1": false, "fe80::1%eth0": false, "64:ff9b::7f00:1": false, "fd00:ec2::254": false, "224.0.0.1": false,
	} {
		if got := guard.Allows(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is allowed: %v, want %v", text, got, want)
		}
	}
}

// A deployment may allow networks that are not public. What gives away its machines' credentials it cannot allow.
func TestAllowedNetworks(t *testing.T) {
	t.Parallel()
	of := func(texts ...string) (networks []netip.Prefix) {
		for _, text := range texts {
			networks = append(networks, netip.MustParsePrefix(text))
		}
		return networks
	}
	private := address.Policy{AllowPrivate: true}
	named := address.Policy{AllowNetworks: of("10.2.0.0/16", "fd12::/16")}
	all := address.Policy{AllowNetworks: of("0.0.0.0/0", "::/0")}
	for text, want := range map[string]struct{ private, named, all bool }{
		"93.184.216.34":        {true, true, true},
		"127.0.0.1":            {true, false, true},
		"::1":                  {true, false, true},
		"::ffff:127.0.0.1":     {true, false, true},
		"10.0.0.1":             {true, false, true},
		"10.2.3.4":             {true, true, true},
		"::ffff:10.2.3.4":      {true, true, true},
		"172.16.0.1":           {true, false, true},
		"172.32.0.1":           {true, true, true},
		"192.168.1.1":          {true, false, true},
		"fd12::1":              {true, true, true},
		"fd13::1":              {true, false, true},
		"100.64.0.1":           {false, false, true},
		"0.0.0.0":              {false, false, true},
		"224.0.0.1":            {false, false, true},
		"192.0.2.1":            {false, false, true},
		"169.254.169.254":      {},
		"169.254.1.1":          {},
		"::ffff:169.254.1.1":   {},
		"::169.254.1.1":        {},
		"64:ff9b::169.254.1.1": {},
		"2002:a9fe:a9fe::1":    {},
		"fe80::1":              {},
		"fe80::1%eth0":         {},
		"febf::1":              {},
		"fd00:ec2::254":        {},
		"fd20:ce::254":         {},
		"100.100.100.200":      {},
		"64:ff9b::6464:64c8":   {},
		"168.63.129.16":        {},
		"192.0.0.192":          {},
	} {
		a := netip.MustParseAddr(text)
		for _, c := range []struct {
			name   string
			policy address.Policy
			want   bool
		}{{"private", private, want.private}, {"named", named, want.named}, {"all", all, want.all}} {
			if got := c.policy.Guard().Allows(a); got != c.want {
				t.Errorf("%s is allowed where %s networks are: %v, want %v", text, c.name, got, c.want)
			}
			err := c.policy.Guard().Control("tcp", netip.AddrPortFrom(a, 80).String(), nil)
			if (err == nil) != c.want {
				t.Errorf("%s is connected to where %s networks are: %v", text, c.name, err)
			}
		}
	}
	if _, err := private.CheckURL(t.Context(), "http://169.254.169.254/latest", false); err == nil {
		t.Error("a URL of a metadata address is accepted")
	}
}

// The guard sees the address that a name has resolved to, before anything is sent.
func TestGuardWhileDialling(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dialer := net.Dialer{Control: address.NewGuard().Control}
	for _, host := range []string{"127.0.0.1", "localhost"} {
		conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if !errors.Is(err, address.ErrProhibited) {
			t.Errorf("dialling %s: %v, want %v", host, err, address.ErrProhibited)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
	if err := address.NewGuard().Control("tcp4", "no address", nil); !errors.Is(err, address.ErrProhibited) {
		t.Errorf("an address that cannot be read: %v", err)
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	of := func(n int) string {
		return address.SecretPrefix + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", n)))
	}
	for secret, want := range map[string]bool{
		of(24): true, of(64): true, of(23): false, of(65): false, "hunter2": false, of(24) + "\n": false,
		strings.TrimPrefix(of(24), address.SecretPrefix): false, strings.TrimRight(of(25), "="): false,
	} {
		err := address.CheckSecret(secret)
		if (err == nil) != want {
			t.Errorf("%q: %v, want accepted: %v", secret, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	if err := (address.Policy{}).Validate(); err != nil {
		t.Errorf("without a secret: %v", err)
	}
	if err := (address.Policy{Secret: "hunter2"}).Validate(); err == nil {
		t.Error("a secret that cannot sign is accepted")
	}
}

// A tenant's secret is HKDF-SHA256 (RFC 5869) of the deployment's: extracted without a salt, and expanded by the tenant.
func TestCallbackSecrets(t *testing.T) {
	t.Parallel()
	input := []byte(strings.Repeat("x", 32))
	policy := address.Policy{Secret: address.SecretPrefix + base64.StdEncoding.EncodeToString(input)}
	sum := func(key, data []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(data)
		return h.Sum(nil)
	}
	for _, tenant := range []string{"default", "acme", ""} {
		want := sum(sum(make([]byte, 32), input), append([]byte(tenant), 1))
		got, err := policy.CallbackSecret(tenant)
		if err != nil || got != address.SecretPrefix+base64.StdEncoding.EncodeToString(want) || address.CheckSecret(got) != nil {
			t.Errorf("%q: %s, %v", tenant, got, err)
		}
	}
	if got, err := (address.Policy{}).CallbackSecret("default"); err != nil || got != "" {
		t.Errorf("without a secret: %s, %v", got, err)
	}
	if _, err := (address.Policy{Secret: "hunter2"}).CallbackSecret("default"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret that cannot sign: %v", err)
	}
}
