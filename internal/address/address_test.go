package address_test

import (
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
