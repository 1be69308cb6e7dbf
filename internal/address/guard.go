package address

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"code.dny.dev/ssrf"
)

// ErrProhibited is the error of a connection to an address that the guard refuses.
var ErrProhibited = errors.New("the address is prohibited")

// A Guard refuses every address that is not public: loopback, private, link-local, multicast and
// the other ranges of the IANA special-purpose registries (RFC 6890), in IPv6 also the prefixes
// that embed an IPv4 address. It refuses the metadata addresses of clouds too, public ones among
// them. Every port is allowed.
type Guard struct{ guardian *ssrf.Guardian }

// NewGuard returns a Guard. It may be used by several goroutines at once.
func NewGuard() *Guard {
	// A public address by which each virtual machine of Azure reaches its platform.
	azure := netip.MustParsePrefix("168.63.129.16/32")
	return &Guard{ssrf.New(ssrf.WithAnyPort(), ssrf.WithDeniedV4Prefixes(azure))}
}

// Allows reports whether an endpoint may have the address. An IPv4 address that is written as
// IPv6 is judged as IPv4, and the zone of an IPv6 address is ignored.
func (g *Guard) Allows(a netip.Addr) bool {
	return g.guardian.SafeAddr(a.Unmap().WithZone("")) == nil
}

// Control is for [net.Dialer.Control]: it refuses the connection, with ErrProhibited, once the
// address is known and before anything is sent to it.
func (g *Guard) Control(network, address string, conn syscall.RawConn) error {
	if err := g.guardian.Safe(network, address, conn); err != nil {
		return fmt.Errorf("%w (%v)", ErrProhibited, err)
	}
	return nil
}
