// Package address decides which network addresses may be the endpoints that clients of a
// deployment name: the URLs of subscriptions and of callbacks.
//
// # What it owns
//
// [Policy] is what the deployment configures for such endpoints. It is written once and given to
// both sides: to the service, which refuses a URL when it is registered, and to the sender, which
// connects to it. [NormalURL] is how such a URL is written: what a client is shown is what is sent.
// [Guard] decides which addresses are refused.
//
// # Why an address is checked twice
//
// A name may resolve to a public address when the URL is registered and to 127.0.0.1 when a
// delivery is sent (DNS rebinding). The check at registration gives the client an early answer.
// The check that protects the network is [Guard.Control], which runs after the name has been
// resolved and before the connection is made.
//
// # When things fail
//
// The guard fails closed: an address that it cannot parse is refused with [ErrProhibited].
//
// # What it may import
//
// The standard library, code.dny.dev/ssrf, which holds the IANA special-purpose registries, and
// golang.org/x/net/idna. It imports no package of pawl, so that every other package can import it.
package address
