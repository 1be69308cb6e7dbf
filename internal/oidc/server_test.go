package oidc_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	server "github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/zitadel/oidc/v3/example/server/storage"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/oidc"
)

// serviceUsers gives the library's storage what an access token for pawl needs: the form of a JWT, an audience, and
// claims of its own.
type serviceUsers struct {
	*storage.Storage
	form op.AccessTokenType
	to   []string
}

// A serviceUser is a client of the library's storage with tokens of a form.
type serviceUser struct {
	op.Client
	form op.AccessTokenType
}

func (u serviceUser) AccessTokenType() op.AccessTokenType { return u.form }

func (s serviceUsers) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	client, err := s.Storage.ClientCredentials(ctx, id, secret)
	return serviceUser{client, s.form}, err
}

func (s serviceUsers) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &server.JWTTokenRequest{Subject: id, Audience: s.to, Scopes: scopes}, nil
}

func (s serviceUsers) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return object{"tenant": "acme", "realm_access": object{"roles": []string{"clerk", "deployer"}}}, nil
}

// A client gets its token from a real server by the client credentials grant.
func TestServer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		users serviceUsers
		want  error
	}{
		"a JWT for pawl":    {serviceUsers{form: op.AccessTokenTypeJWT, to: []string{"other", audience}}, nil},
		"a JWT for another": {serviceUsers{form: op.AccessTokenTypeJWT, to: []string{"other"}}, oidc.ErrInvalid},
		"an opaque token":   {serviceUsers{form: op.AccessTokenTypeBearer, to: []string{audience}}, oidc.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var handler http.Handler
			listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
			t.Cleanup(listener.Close)
			c.users.Storage = storage.NewStorage(storage.NewUserStore(listener.URL))
			provider, err := op.NewProvider(&op.Config{CryptoKey: sha256.Sum256([]byte(name))}, c.users, op.StaticIssuer(listener.URL), op.WithAllowInsecure())
			if err != nil {
				t.Fatal(err)
			}
			handler = provider

			token := clientCredentials(t, listener.URL)
			v, err := oidc.New(oidc.Config{Issuer: listener.URL, Audience: audience, RolesClaim: "realm_access.roles", DeploymentRole: "deployer"})
			if err != nil {
				t.Fatal(err)
			}
			got, err := verify(t, v, token)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err != nil {
				return
			}
			if left := time.Until(got.Expires); left <= 0 {
				t.Errorf("it expires in %v", left)
			}
			got.Expires = time.Time{}
			want := oidc.Identity{Subject: "sid1", Tenant: "acme", Deployment: true, Roles: []string{"clerk", "deployer"}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// clientCredentials returns an access token of the service user that the library's storage has.
func clientCredentials(t *testing.T, issuer string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"openid"}}
	r, err := http.NewRequestWithContext(bounded.Context(t), http.MethodPost, issuer+"/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth("sid1", "verysecret")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("%s without an access token: %v", response.Status, err)
	}
	return answer.AccessToken
}
