package address

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"code.dny.dev/ssrf"
)

// ErrProhibited is the error of a connection to an address that the guard refuses.
var ErrProhibited = errors.New("the address is prohibited")

// A Guard refuses every address that is not public: loopback, private, link-local, multicast and
// the other ranges of the IANA special-purpose registries (RFC 6890), in IPv6 also the prefixes
// that embed an IPv4 address. A deployment may allow networks that are not public. The link-local
// addresses and those by which a virtual machine reaches its cloud's platform are refused even then.
// Every port is allowed.
type Guard struct {
	guardian *ssrf.Guardian
	allowed  []netip.Prefix
}

// NewGuard returns a Guard that allows public addresses and these networks. It may be used by several
// goroutines at once.
func NewGuard(allowed ...netip.Prefix) *Guard {
	return &Guard{ssrf.New(ssrf.WithAnyPort()), allowed}
}

// Private returns the networks of this machine and the private ones (RFC 1918, RFC 4193).
func Private() []netip.Prefix {
	return prefixes("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
}

// never are the link-local networks, and the addresses of the platforms of clouds that are not link-local. Whoever can
// send a request there may be given the credentials of the machine.
var never = prefixes(
	"169.254.0.0/16", "fe80::/10",
	"fd00:ec2::/32",          // Amazon
	"fd20:ce::254/128",       // Google
	"168.63.129.16/32",       // Azure
	"100.100.100.200/32",     // Alibaba
	"192.0.0.192/32",         // Oracle
	"fd00:c1::a9fe:a9fe/128", // Oracle
	"fd00:42::42/128",        // Scaleway
)

// embedding are the networks of IPv6 whose addresses stand for one of IPv4, which begins at a byte: IPv4-compatible
// (RFC 4291), NAT64 (RFC 6052) and 6to4 (RFC 3056).
var embedding = map[netip.Prefix]int{
	netip.MustParsePrefix("::/96"): 12, netip.MustParsePrefix("64:ff9b::/96"): 12, netip.MustParsePrefix("2002::/16"): 2,
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// Allows reports whether an endpoint may have the address. An IPv4 address that is written as
// IPv6 is judged as IPv4, and the zone of an IPv6 address is ignored.
func (g *Guard) Allows(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for network, at := range embedding {
		if bytes := a.As16(); a.Is6() && network.Contains(a) && contains(never, netip.AddrFrom4([4]byte(bytes[at:]))) {
			return false
		}
	}
	return !contains(never, a) && (contains(g.allowed, a) || g.guardian.SafeAddr(a) == nil)
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Control is for [net.Dialer.Control]: it refuses the connection, with ErrProhibited, once the
// address is known and before anything is sent to it.
func (g *Guard) Control(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || !g.Allows(a.Addr()) {
		return fmt.Errorf("%w (%s)", ErrProhibited, address)
	}
	return nil
}
