package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const (
	secret   = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	instance = "01a1fcd7-ff39-747e-a6b5-6e2ff2d8f87b"
)

func start(t *testing.T) (*pgxpool.Pool, *httptest.Server) {
	t.Helper()
	pool := dbtest.New(t)
	r, err := newReceiver(t.Context(), pool, secret)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return pool, server
}

// deliver sends a step as pawl does, signed with a secret.
func deliver(t *testing.T, server *httptest.Server, secret, id string, at time.Time, body string) int {
	t.Helper()
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := webhook.Sign(id, at, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(bounded.Context(t), http.MethodPost, server.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(standardwebhooks.HeaderWebhookID, id)
	r.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	r.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

func step(sequence int, state string) string {
	return fmt.Sprintf(`{"specversion": "1.0", "subject": %q, "sequence": "%d",
		"data": {"instance": {"state": %q, "status": "active", "context": {"n": %d}}}}`, instance, sequence, state, sequence)
}

// is fails unless the receiver's copy is as it should be.
func is(t *testing.T, pool *pgxpool.Pool, want string) {
	t.Helper()
	var got string
	err := pool.QueryRow(t.Context(), `
		select coalesce(string_agg(state || ' ' || sequence || ' ' || context, ', '), '') || ' of ' || (select count(*) from receiver.message)
		from receiver.instance`).Scan(&got)
	if err != nil || got != want {
		t.Errorf("it has %q, want %q (%v)", got, want, err)
	}
}

func TestReceiver(t *testing.T) {
	t.Parallel()
	pool, server := start(t)
	now := time.Now()
	for n, c := range []struct {
		id, secret string
		at         time.Time
		body       string
		status     int
		is         string
	}{
		{"m1", secret, now, step(1, "QUOTED"), 204, `QUOTED 1 {"n": 1} of 1`},
		{"m2", secret, now, step(2, "RESERVED"), 204, `RESERVED 2 {"n": 2} of 2`},
		// Sent again, since the answer was lost.
		{"m2", secret, now, step(2, "RESERVED"), 204, `RESERVED 2 {"n": 2} of 2`},
		// What was not delivered in time comes by a replay, after what followed it.
		{"m4", secret, now, step(4, "PAID"), 204, `PAID 4 {"n": 4} of 3`},
		{"m3", secret, now, step(3, "PAYMENT_MISMATCH"), 204, `PAID 4 {"n": 4} of 4`},
		{"m5", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", now, step(5, "FORGED"), 401, `PAID 4 {"n": 4} of 4`},
		{"m5", secret, now.Add(-time.Hour), step(5, "OLD"), 401, `PAID 4 {"n": 4} of 4`},
		{"m5", secret, now, "no JSON", 400, `PAID 4 {"n": 4} of 4`},
		{"m6", secret, now, `{"specversion": "1.0", "type": "pawl.subscription.test"}`, 204, `PAID 4 {"n": 4} of 4`},
		// What fails leaves nothing behind, and may come again.
		{"m7", secret, now, strings.Replace(step(5, "X"), instance, "none", 1), 500, `PAID 4 {"n": 4} of 4`},
		{"m7", secret, now, step(5, "REFUNDED"), 204, `REFUNDED 5 {"n": 5} of 5`},
	} {
		if got := deliver(t, server, c.secret, c.id, c.at, c.body); got != c.status {
			t.Errorf("%d: status %d, want %d", n, got, c.status)
		}
		is(t, pool, c.is)
	}
}

// However deliveries overlap, each is taken once, and the last step stays.
func TestReceiverAtOnce(t *testing.T) {
	t.Parallel()
	pool, server := start(t)
	var all sync.WaitGroup
	for n := range 40 {
		all.Go(func() {
			sequence := 1 + n%20
			if got := deliver(t, server, secret, fmt.Sprint("m", sequence), time.Now(), step(sequence, "S")); got != 204 {
				t.Errorf("status %d", got)
			}
		})
	}
	bounded.Wait(t, "the deliveries", all.Wait)
	is(t, pool, `S 20 {"n": 20} of 20`)
}

func TestReceiverWantsASecret(t *testing.T) {
	t.Parallel()
	if _, err := newReceiver(t.Context(), dbtest.New(t), ""); err == nil {
		t.Error("it starts without a secret")
	}
	if _, err := newReceiver(t.Context(), dbtest.New(t), "whsec_?"); err == nil {
		t.Error("it starts with a secret that is none")
	}
}
