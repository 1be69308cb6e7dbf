package main_test

import (
	"crypto/ed25519"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A service takes the tokens of its identity provider, which need not run when it starts, and gives them the rights of
// the roles that they name.
func TestServeWithIdentityProvider(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	provider := httptest.NewUnstartedServer(nil)
	issuer := "http://" + provider.Listener.Addr().String()
	provider.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var document any = map[string]any{"issuer": issuer, "jwks_uri": issuer + "/keys"}
		if r.URL.Path == "/keys" {
			document = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public}}}
		}
		_ = json.NewEncoder(w).Encode(document)
	})
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := func(claims map[string]any) string {
		t.Helper()
		all := map[string]any{"iss": issuer, "aud": "pawl", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
		maps.Copy(all, claims)
		text, err := jwt.Signed(signer).Claims(all).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}

	database := dbtest.New(t)
	dsn := database.Config().ConnString()
	bounded.Exec(t, database, `select pawl.role_put('default', 'clerk', '{create,read}', '{}', '{}')`)
	bounded.Exec(t, database, `select pawl.role_put('*', 'ops', '{read,deploy}', '{}', '{}')`)
	service := start(t, []string{"DATABASE_URL=" + dsn}, "serve", "--oidc-issuer", issuer, "--oidc-audience", "pawl", "--oidc-deployment-role", "ops")
	provider.Start()
	t.Cleanup(provider.Close)

	ask := func(method, path, token string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(bounded.Context(t), method, service.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.StatusCode
	}
	clerk, ops := map[string]any{"tenant": "default", "roles": "clerk"}, map[string]any{"roles": "ops"}
	for name, c := range map[string]struct {
		method, path, token string
		want                int
	}{
		"a clerk reads":            {http.MethodGet, "/v1/instances", token(clerk), http.StatusOK},
		"a clerk does not operate": {http.MethodDelete, "/v1/roles/clerk", token(clerk), http.StatusForbidden},
		"no role":                  {http.MethodGet, "/v1/instances", token(map[string]any{"tenant": "default"}), http.StatusForbidden},
		"another tenant":           {http.MethodGet, "/v1/instances", token(map[string]any{"tenant": "nobody", "roles": "clerk"}), http.StatusForbidden},
		"operators, of no tenant":  {http.MethodGet, "/v1/workflows", token(ops), http.StatusOK},
		"no tenant":                {http.MethodGet, "/v1/instances", token(nil), http.StatusUnauthorized},
		"expired":                  {http.MethodGet, "/v1/instances", token(map[string]any{"tenant": "default", "exp": 1}), http.StatusUnauthorized},
		"no JWT":                   {http.MethodGet, "/v1/instances", "hello", http.StatusUnauthorized},
	} {
		if got := ask(c.method, c.path, c.token); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
