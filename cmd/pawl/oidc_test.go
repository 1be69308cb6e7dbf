package main

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestOIDCFlags(t *testing.T) {
	issuer, audience := "--oidc-issuer=https://id.example.com", "--oidc-audience=pawl"
	for name, c := range map[string]struct {
		env  map[string]string
		args []string
		want string // In the error; none if it is empty.
		none bool   // There is no verifier.
	}{
		"none":              {none: true},
		"both":              {args: []string{issuer, audience}},
		"environment":       {env: map[string]string{"PAWL_OIDC_ISSUER": "https://id.example.com", "PAWL_OIDC_AUDIENCE": "pawl", "PAWL_OIDC_ALGORITHM": "ES256,PS256"}},
		"no issuer":         {args: []string{audience}, want: "need --oidc-issuer"},
		"role, no issuer":   {args: []string{"--oidc-deployment-role=ops"}, want: "need --oidc-issuer"},
		"no audience":       {args: []string{issuer}, want: "the audience is missing"},
		"http":              {args: []string{"--oidc-issuer=http://id.example.com", audience}, want: "https URL"},
		"shared secret":     {args: []string{issuer, audience, "--oidc-algorithm=RS256,HS256"}, want: `"HS256" is not supported`},
		"unsigned":          {args: []string{issuer, audience, "--oidc-algorithm=none"}, want: `"none" is not supported`},
		"unsigned, by list": {env: map[string]string{"PAWL_OIDC_ALGORITHM": "none"}, args: []string{issuer, audience}, want: `"none" is not supported`},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			var command struct{ oidcFlags }
			parser, err := kong.New(&command)
			if err != nil {
				t.Fatal(err)
			}
			_, err = parser.Parse(c.args)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want an error with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v, err := command.verifier(nil)
			if err != nil || (v == nil) != c.none {
				t.Errorf("the verifier is %v, %v", v, err)
			}
			if want := c.env["PAWL_OIDC_ALGORITHM"]; want != "" && strings.Join(command.OIDCAlgorithms, ",") != want {
				t.Errorf("the algorithms are %q, want %s", command.OIDCAlgorithms, want)
			}
		})
	}
}

func TestOIDCVerifier(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var issuer string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var document any = map[string]any{"issuer": issuer, "jwks_uri": issuer + "/keys"}
		if r.URL.Path == "/keys" {
			document = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public}}}
		}
		_ = json.NewEncoder(w).Encode(document)
	}))
	t.Cleanup(server.Close)
	issuer = server.URL
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := func(more map[string]any) string {
		t.Helper()
		all := jwt.Claims{Issuer: issuer, Subject: "alice", Audience: jwt.Audience{"pawl"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}
		text, err := jwt.Signed(signer).Claims(all).Claims(more).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	verifier := func(issuer string) httpapi.Verifier {
		t.Helper()
		flags := oidcFlags{OIDCIssuer: issuer, OIDCAudience: "pawl", OIDCDeploymentRole: "ops"}
		v, err := flags.verifier(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		claims map[string]any
		want   httpapi.Identity
	}{
		{map[string]any{"tenant": "acme", "roles": "clerk"}, httpapi.Identity{Subject: "alice", Tenant: "acme", Roles: []string{"clerk"}}},
		{map[string]any{"tenant": "acme", "roles": "ops"}, httpapi.Identity{Subject: "alice", Tenant: fsm.Deployment, Roles: []string{"ops"}}},
		{map[string]any{"roles": "ops"}, httpapi.Identity{Subject: "alice", Tenant: fsm.Deployment, Roles: []string{"ops"}}},
	} {
		got, err := verifier(issuer).Verify(bounded.Context(t), token(c.claims))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v: -want +got:\n%s", c.claims, diff)
		}
	}
	if got, err := verifier(issuer).Verify(bounded.Context(t), token(nil)); err == nil || errors.Is(err, fsm.Unavailable) || !strings.Contains(err.Error(), "tenant") {
		t.Errorf("without a tenant: %+v, %v", got, err)
	}
	server.Close()
	if got, err := verifier(issuer).Verify(bounded.Context(t), token(map[string]any{"tenant": "acme"})); !errors.Is(err, fsm.Unavailable) {
		t.Errorf("while the provider is away: %+v, %v", got, err)
	}
}
