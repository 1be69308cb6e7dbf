package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/httpapi"
)

// authFlags say how callers are authenticated.
type authFlags struct {
	Auth   string `env:"PAWL_AUTH" placeholder:"WAYS" help:"How callers are authenticated: tokens, oidc, both as tokens,oidc, or none. By default what --tokens and --oidc-issuer imply. Without any of these the service is open, and serves loopback addresses only."`
	Tenant string `default:"default" env:"PAWL_TENANT" help:"Tenant of all requests without authentication."`
	Tokens string `type:"existingfile" env:"PAWL_TOKENS" placeholder:"FILE" help:"JSON array of {sha256, subject, tenant, scopes, roles, workflows}: bearer tokens to accept beside those of the database."`
	oidcFlags
}

// The ways of authentication.
const (
	authTokens = "tokens"
	authOIDC   = "oidc"
	authNone   = "none"
)

// ways returns how callers are authenticated; none of them if the service is open.
func (a *authFlags) ways() (ways []string) {
	if a.Auth != "" {
		return slices.DeleteFunc(strings.Split(a.Auth, ","), func(way string) bool { return way == authNone })
	}
	if a.Tokens != "" {
		ways = append(ways, authTokens)
	}
	if a.OIDCIssuer != "" {
		ways = append(ways, authOIDC)
	}
	return ways
}

// isOpen reports whether callers are not authenticated.
func (a *authFlags) isOpen() bool { return len(a.ways()) == 0 }

// Validate refuses ways that there are not, and flags that contradict each other.
func (a *authFlags) Validate() error {
	given := strings.Split(a.Auth, ",")
	for i, way := range given {
		if a.Auth != "" && !slices.Contains([]string{authTokens, authOIDC, authNone}, way) || slices.Contains(given[:i], way) {
			return fmt.Errorf("--auth is %q: it must be tokens, oidc, tokens,oidc or none", a.Auth)
		}
	}
	switch {
	case a.Tenant == fsm.Deployment && a.isOpen():
		return errors.New("--tenant must be one tenant: * is the deployment")
	case len(given) > 1 && slices.Contains(given, authNone):
		return errors.New("--auth none goes with no other way")
	case a.Tokens != "" && !slices.Contains(a.ways(), authTokens):
		return fmt.Errorf("--tokens contradicts --auth %s", a.Auth)
	case a.OIDCIssuer != "" && !slices.Contains(a.ways(), authOIDC):
		return fmt.Errorf("--oidc-issuer contradicts --auth %s", a.Auth)
	case a.OIDCIssuer == "" && slices.Contains(given, authOIDC):
		return errors.New("--auth oidc needs --oidc-issuer")
	}
	return a.oidcFlags.Validate()
}

// check refuses to serve everybody by accident: without authentication the address must be a loopback address, unless
// that was chosen.
func (a *authFlags) check(listen string) error {
	if a.Auth != "" || !a.isOpen() || isLoopback(listen) {
		return nil
	}
	return fmt.Errorf("whoever reaches %s could do everything: give --auth tokens (pawl token create makes one) or --oidc-issuer, or listen on 127.0.0.1, or say --auth none", listen)
}

// checkTenant refuses to serve a tenant that does not exist. With authentication each caller's tenant is looked up.
func checkTenant(ctx context.Context, service *fsm.Service, tenant string) error {
	_, err := access.New(service).GetTenant(ctx, tenant)
	if errors.Is(err, fsm.NotFound) {
		return fmt.Errorf("--tenant: there is no tenant %q: make it with pawl tenant create, or name another", tenant)
	}
	return err
}

// isLoopback reports whether only this machine reaches an address.
func isLoopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost"
}

// configure sets how the API authenticates callers.
func (a *authFlags) configure(config *httpapi.Config, log *slog.Logger) (err error) {
	config.Tenant = a.Tenant
	config.DatabaseTokens = slices.Contains(a.ways(), authTokens)
	if config.Verifier, err = a.verifier(log); err != nil || a.Tokens == "" {
		return err
	}
	data, err := os.ReadFile(a.Tokens)
	if err != nil {
		return fmt.Errorf("--tokens: %w", err)
	}
	if config.Tokens, err = httpapi.ParseTokens(data); err != nil {
		return fmt.Errorf("--tokens %s: %w", a.Tokens, err)
	}
	return nil
}
