package oidc_test

import (
	"context"
	"crypto/elliptic"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pawl-fsm/pawl/internal/oidc"
)

// direct answers requests with a handler, without a network, so that the time in a bubble stands still
// meanwhile. As a network does, it gives up when the context of the request ends.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	d.ServeHTTP(recorder, r)
	return recorder.Result(), r.Context().Err()
}

// newBubble returns what a test in a bubble of testing/synctest needs: a provider, a verifier of its tokens, and a key that
// it has. A test sleeps there to let the bubble's time pass, which takes no real time.
func newBubble(t *testing.T) (*provider, *oidc.Verifier, signer) {
	t.Helper()
	k := ecKey("k", elliptic.P256())
	p := newProvider("https://id.example.com", k.public(nil))
	return p, p.verifier(t, func(config *oidc.Config) { config.HTTPClient = &http.Client{Transport: direct{p}} }), k
}

// away is a provider that answers no request.
func away(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusBadGateway) }

// hanging is a provider that accepts a request and does not answer.
func hanging(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } // bounded: the client ends the request

// want wants a token to have a result: nil, or one of the errors.
func want(t *testing.T, v *oidc.Verifier, token string, result error) {
	t.Helper()
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, result) {
		t.Errorf("after %v: %v, want %v", time.Since(began), err, result)
	}
}

// began is when the time of each bubble begins.
var began = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func TestProviderIsAwayAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		requests := 0
		p.answerWith(func(w http.ResponseWriter, r *http.Request) { requests++; away(w, r) })
		for range 100 {
			want(t, v, p.token(k, nil, nil), oidc.ErrUnavailable)
		}
		want(t, v, "no token", oidc.ErrInvalid) // That needs no key.
		if requests != 1 {
			t.Errorf("%d attempts, want 1", requests)
		}
		p.answerWith(nil)
		want(t, v, p.token(k, nil, nil), oidc.ErrUnavailable)
		time.Sleep(10 * time.Second)
		want(t, v, p.token(k, nil, nil), nil)
	})
}

func TestProviderGoesAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		want(t, v, p.token(k, nil, nil), nil)
		p.answerWith(away)
		time.Sleep(5 * time.Minute)
		want(t, v, p.token(k, nil, nil), nil)
		synctest.Wait()
		time.Sleep(time.Second)
		want(t, v, p.token(k, nil, nil), oidc.ErrUnavailable)
		p.answerWith(nil)
		time.Sleep(10 * time.Second)
		want(t, v, p.token(k, nil, nil), nil)
	})
}

// A token that expires while the provider is away is refused as what it is, and not with what may pass: streams that
// were begun with it go on as long as nobody can tell.
func TestTokenExpiresWhileProviderIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		token := p.token(k, nil, object{"exp": time.Now().Add(6 * time.Minute).Unix()})
		want(t, v, token, nil)
		p.answerWith(away)
		time.Sleep(5*time.Minute + 10*time.Second)
		want(t, v, token, oidc.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		want(t, v, token, oidc.ErrInvalid)
	})
}

// A key that the provider has removed is honoured for five minutes, if nothing else has the keys fetched, and no
// longer. While tokens come, it is one minute.
func TestRemovedKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		next := ecKey("next", elliptic.P256())
		want(t, v, p.token(k, nil, nil), nil)
		p.publish(next.public(nil))
		time.Sleep(5*time.Minute + time.Second)
		want(t, v, p.token(k, nil, nil), oidc.ErrInvalid)
		want(t, v, p.token(next, nil, nil), nil)

		p.publish(k.public(nil))
		time.Sleep(time.Minute + time.Second)
		want(t, v, p.token(next, nil, nil), nil) // It has the keys fetched, and does not wait.
		synctest.Wait()
		want(t, v, p.token(next, nil, nil), oidc.ErrInvalid)
		want(t, v, p.token(k, nil, nil), nil)
	})
}

// A key may be exchanged for another with the same kid.
func TestKeyUnderAnOldID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		want(t, v, p.token(k, nil, nil), nil)
		next := ecKey("k", elliptic.P256())
		p.publish(next.public(nil))
		time.Sleep(10 * time.Second)
		want(t, v, p.token(next, nil, nil), nil)
		want(t, v, p.token(k, nil, nil), oidc.ErrInvalid)
	})
}

// Tokens with unknown keys, of whoever sends them, make one fetch in ten seconds, and hold up nobody else.
func TestUnknownKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		want(t, v, p.token(k, nil, nil), nil)
		flood := func(fetches int32) {
			t.Helper()
			var group sync.WaitGroup
			for i := range 1000 {
				group.Go(func() {
					want(t, v, p.token(ecKey(fmt.Sprint(i), elliptic.P256()), nil, nil), oidc.ErrInvalid)
				})
			}
			group.Wait()
			if n := p.fetches.Load(); n != fetches {
				t.Errorf("%d fetches, want %d", n, fetches)
			}
		}
		flood(1) // The keys were fetched just now.
		time.Sleep(10 * time.Second)
		flood(2)
		next := ecKey("next", elliptic.P256())
		p.publish(k.public(nil), next.public(nil))
		want(t, v, p.token(next, nil, nil), oidc.ErrInvalid) // It is seen at the end of the pause.
		time.Sleep(10 * time.Second)
		want(t, v, p.token(next, nil, nil), nil)
		if n := p.fetches.Load(); n != 3 {
			t.Errorf("%d fetches, want 3", n)
		}
	})
}

func TestOneFetchForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		release := make(chan struct{})
		sound := newProvider(p.issuer, k.public(nil))
		p.answerWith(func(w http.ResponseWriter, r *http.Request) {
			<-release
			sound.ServeHTTP(w, r)
		})
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() { want(t, v, p.token(k, nil, nil), nil) })
		}
		synctest.Wait()
		close(release)
		group.Wait()
		if n := sound.fetches.Load(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

// A provider that does not answer holds up a token for five seconds if its key is not known, and not at all otherwise.
func TestProviderHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		takes := func(d time.Duration, token string, result error) {
			t.Helper()
			before := time.Now()
			want(t, v, token, result)
			if took := time.Since(before); took != d {
				t.Errorf("it takes %v, want %v", took, d)
			}
		}
		p.answerWith(hanging)
		takes(5*time.Second, p.token(k, nil, nil), oidc.ErrUnavailable)
		takes(0, p.token(k, nil, nil), oidc.ErrUnavailable)
		time.Sleep(10 * time.Second)
		p.answerWith(nil)
		takes(0, p.token(k, nil, nil), nil)
		p.answerWith(hanging)
		time.Sleep(2 * time.Minute)
		takes(0, p.token(k, nil, nil), nil)
		takes(5*time.Second, p.token(edKey("nobody"), nil, nil), oidc.ErrInvalid)
		takes(0, p.token(k, nil, nil), nil)
	})
}

// The end of a request ends its wait, and not the fetch that others wait for.
func TestRequestEndsWhileItWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		release := make(chan struct{})
		sound := newProvider(p.issuer, k.public(nil))
		p.answerWith(func(w http.ResponseWriter, r *http.Request) {
			<-release
			sound.ServeHTTP(w, r)
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.Verify(ctx, p.token(k, nil, nil)); !errors.Is(err, oidc.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the request that ends: %v", err)
		}
		close(release)
		want(t, v, p.token(k, nil, nil), nil)
		if n := sound.fetches.Load(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

// Tokens are judged by the clock of this process.
func TestTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v, k := newBubble(t)
		now := time.Now().Unix()
		token := p.token(k, nil, object{"exp": now + 100, "nbf": now + 31, "iat": now + 31})
		want(t, v, token, oidc.ErrInvalid)
		time.Sleep(time.Second)
		want(t, v, token, nil)
		time.Sleep(129 * time.Second) // 100 and the leeway.
		want(t, v, token, nil)
		time.Sleep(time.Second)
		want(t, v, token, oidc.ErrInvalid)
	})
}
