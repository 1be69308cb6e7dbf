package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/oidc"
)

// oidcFlags are the flags of serve and dev for the tokens of an identity provider.
type oidcFlags struct {
	OIDCIssuer         string   `name:"oidc-issuer" env:"PAWL_OIDC_ISSUER" placeholder:"URL" help:"URL of an OpenID Connect provider, exactly as in the claim iss of its tokens, which are accepted as bearer tokens."`
	OIDCAudience       string   `name:"oidc-audience" env:"PAWL_OIDC_AUDIENCE" help:"What the claim aud of such tokens must contain. Give pawl an audience of its own, so that tokens for other services are refused."`
	OIDCTenantClaim    string   `name:"oidc-tenant-claim" default:"tenant" env:"PAWL_OIDC_TENANT_CLAIM" placeholder:"CLAIM" help:"Claim with the tenant; dots lead into objects. Its users must not be able to change it. It never names all tenants."`
	OIDCRolesClaim     string   `name:"oidc-roles-claim" default:"roles" env:"PAWL_OIDC_ROLES_CLAIM" placeholder:"CLAIM" help:"Claim with the roles, a text or an array of texts; dots lead into objects."`
	OIDCDeploymentRole string   `name:"oidc-deployment-role" env:"PAWL_OIDC_DEPLOYMENT_ROLE" placeholder:"ROLE" help:"Role in that claim whose bearers act for the whole deployment, as tokens of tenant * do."`
	OIDCAlgorithms     []string `name:"oidc-algorithm" default:"RS256,ES256,EdDSA" env:"PAWL_OIDC_ALGORITHM" placeholder:"ALG" help:"Algorithms that such tokens may be signed with; those with a shared secret are refused."`
}

// Validate refuses flags that contradict each other, and what no provider can be.
func (f *oidcFlags) Validate() error {
	if f.OIDCIssuer == "" {
		if f.OIDCAudience != "" || f.OIDCDeploymentRole != "" {
			return errors.New("--oidc-audience and --oidc-deployment-role need --oidc-issuer")
		}
		return nil
	}
	_, err := f.verifier(nil)
	return err
}

// verifier returns what checks the tokens of the provider, or nil without one. It asks the provider nothing.
func (f *oidcFlags) verifier(log *slog.Logger) (httpapi.Verifier, error) {
	if f.OIDCIssuer == "" {
		return nil, nil
	}
	v, err := oidc.New(oidc.Config{
		Issuer: f.OIDCIssuer, Audience: f.OIDCAudience, TenantClaim: f.OIDCTenantClaim, RolesClaim: f.OIDCRolesClaim,
		DeploymentRole: f.OIDCDeploymentRole, Algorithms: f.OIDCAlgorithms, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("--oidc-…: %w", err)
	}
	return oidcVerifier{v}, nil
}

// An oidcVerifier speaks of callers as the HTTP API does.
type oidcVerifier struct{ tokens *oidc.Verifier }

// Verify implements httpapi.Verifier. Bearers of the deployment role belong to the deployment, whatever their tenant.
func (v oidcVerifier) Verify(ctx context.Context, token string) (httpapi.Identity, error) {
	identity, err := v.tokens.Verify(ctx, token)
	if errors.Is(err, oidc.ErrUnavailable) {
		err = &fsm.Error{Kind: fsm.Unavailable, Message: "the identity provider did not answer; try again", Cause: err}
	}
	if err != nil {
		return httpapi.Identity{}, err
	}
	if identity.Deployment {
		identity.Tenant = fsm.Deployment
	}
	return httpapi.Identity{Subject: identity.Subject, Tenant: identity.Tenant, Roles: identity.Roles}, nil
}
