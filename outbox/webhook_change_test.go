package outbox_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/fsm/subscription"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Endpoints that hang take no place from others, not even on their host.
func TestHangingNeighbours(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	good := newReceiver(t, nil)
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		if in.URL.Path == "/good" {
			good.ServeHTTP(w, in)
			return
		}
		_, _ = io.Copy(io.Discard, in.Body)
		<-hang
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(hang) })
	for n := range 40 {
		subscribe(t, service, fmt.Sprintf("%s/hanging/%d", server.URL, n), everything)
	}
	subscribe(t, service, server.URL+"/good", everything)
	config := quickly
	config.Timeout = time.Minute
	webhooks(t, pool, config)
	const n = 50
	for range n {
		create(t, pool)
	}
	good.want(t, n)
}

// An endpoint that switches protocols gets no say in how long that takes.
func TestSwitchingProtocols(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	over := make(chan struct{})
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				_, _ = conn.Read(make([]byte, 1<<16))
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				<-over
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		close(over)
		_ = listener.Close()
		conns.Wait()
	})
	subscribe(t, service, "http://"+listener.Addr().String(), everything)
	stop := webhooks(t, pool, quickly)
	create(t, pool)
	until(t, pool, "select bool_or(last_status = 101 and last_error = 'the endpoint answered 101') from pawl.delivery")
	stop()
}

// What waits in memory behind an attempt follows a change of its subscription.
func TestChangeWhileSending(t *testing.T) {
	t.Parallel()
	type world struct {
		t       *testing.T
		service services
		s       subscription.Subscription
		other   *receiver
		rotated subscription.Subscription
	}
	change := func(c subscription.Change) func(*world) error {
		return func(w *world) error {
			_, err := w.service.UpdateSubscription(w.t.Context(), tenant, w.s.ID, c)
			return err
		}
	}
	for name, test := range map[string]struct {
		change func(*world) error
		// settled is of the deliveries in the end, told what the endpoint was.
		settled string
		told    int
	}{
		"deleted": {
			func(w *world) error { return w.service.Unsubscribe(w.t.Context(), tenant, w.s.ID) },
			"select count(*) = 3 and count(*) filter (where status = 'dead' and last_error like '%deleted%') = 2 from pawl.delivery", 1,
		},
		"disabled": {
			change(subscription.Change{Disabled: new(true)}),
			"select count(*) = 3 and count(*) filter (where status = 'pending' and attempts = 0) = 2 from pawl.delivery where next_attempt_at is not null or status <> 'pending'", 1,
		},
		"another URL": {
			func(w *world) error { return change(subscription.Change{URL: &w.other.url})(w) },
			"select count(*) = 3 and bool_and(status = 'delivered') from pawl.delivery", 1,
		},
		"another secret": {
			func(w *world) (err error) {
				w.rotated, err = w.service.RotateSecret(w.t.Context(), tenant, w.s.ID, "")
				return err
			},
			"select count(*) = 3 and bool_and(status = 'delivered') from pawl.delivery", 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, service := withService(t)
			release := make(chan struct{})
			r := newReceiver(t, func(http.ResponseWriter, hook) { <-release })
			w := &world{t: t, service: service, s: subscribe(t, service, r.url, everything), other: newReceiver(t, nil)}
			id := create(t, pool)
			add(t, pool, id)
			add(t, pool, id)
			webhooks(t, pool, quickly)
			r.want(t, 1)
			if err := test.change(w); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // It is looked at ten times a second.
			close(release)
			until(t, pool, test.settled)
			time.Sleep(100 * time.Millisecond)
			hooks := r.list()
			if len(hooks) != test.told {
				t.Errorf("it was told of %v", whats(hooks))
			}
			if name == "another URL" {
				wantWhats(t, w.other.list(), ids(id, 2, 3))
			}
			if name == "another secret" {
				webhook, err := standardwebhooks.NewWebhook(w.rotated.Secret)
				if err != nil {
					t.Fatal(err)
				}
				for _, h := range hooks[1:] {
					if err := webhook.Verify(h.body, h.header); err != nil {
						t.Errorf("by the new secret: %v", err)
					}
				}
			}
		})
	}
}

// What was committed before a subscription was changed it is told of as it was.
func TestStepsBeforeAChange(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]subscription.Change{
		"disabled": {Disabled: new(true)},
		"narrowed": {Filter: &subscription.Filter{TerminalOnly: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, service := withService(t)
			r := newReceiver(t, nil)
			s := subscribe(t, service, r.url, everything)
			stop := webhooks(t, pool, quickly)
			create(t, pool)
			r.want(t, 1)
			stop()
			before := create(t, pool)
			if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, change); err != nil {
				t.Fatal(err)
			}
			create(t, pool) // Of this it is not told.
			if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, subscription.Change{Disabled: new(false)}); err != nil {
				t.Fatal(err)
			}
			webhooks(t, pool, quickly)
			caughtUp(t, pool, "webhooks")
			until(t, pool, allDelivered, 2)
			wantWhats(t, r.list()[1:], ids(before, 1))
		})
	}
}

// What waits for another attempt, for however long, is given up when the subscription is
// deleted, and sent when it is enabled.
func TestWhatWaitsIsDecidedNow(t *testing.T) {
	t.Parallel()
	waiting := func(t *testing.T) (service services, s subscription.Subscription, well func(), settled func(status string)) {
		pool, service := withService(t)
		var ill atomic.Bool
		ill.Store(true)
		r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
			if ill.Load() {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		s = subscribe(t, service, r.url, everything)
		webhooks(t, pool, quickly)
		id := create(t, pool)
		add(t, pool, id)
		until(t, pool, "select count(*) = 2 and bool_or(attempts = 1 and next_attempt_at > now() + interval '50 minutes') from pawl.delivery")
		return service, s, func() { ill.Store(false) }, func(status string) {
			t.Helper()
			until(t, pool, "select count(*) = 2 and bool_and(status = $1) from pawl.delivery", status)
		}
	}
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		service, s, _, settled := waiting(t)
		if err := service.Unsubscribe(t.Context(), tenant, s.ID); err != nil {
			t.Fatal(err)
		}
		settled("dead")
	})
	t.Run("enabled", func(t *testing.T) {
		t.Parallel()
		service, s, well, settled := waiting(t)
		well()
		if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, subscription.Change{Disabled: new(false)}); err != nil {
			t.Fatal(err)
		}
		settled("delivered")
	})
}

// A replay does not overtake an earlier step that is to be tried again.
func TestReplayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := subscribe(t, service, r.url, everything)
	config := quickly
	config.MaxAttempts, config.Backoff, config.Rest = 2, 300*time.Millisecond, time.Millisecond
	webhooks(t, pool, config)
	id := create(t, pool)
	add(t, pool, id)
	until(t, pool, "select count(*) = 2 and bool_and(status = 'dead') from pawl.delivery")
	dead := deliveries(t, service, subscription.DeliveryFilter{Status: subscription.DeliveryDead, SubscriptionID: s.ID})
	before := len(r.list())
	replay := func(d subscription.Delivery) {
		t.Helper()
		if _, err := service.ReplayDelivery(t.Context(), tenant, d.ID); err != nil {
			t.Fatal(err)
		}
	}
	replay(dead[1])
	until(t, pool, "select attempts = 1 and status = 'pending' from pawl.delivery where version = 1")
	exec(t, pool, "update pawl.delivery set next_attempt_at = next_attempt_at + interval '1 s' where version = 1")
	broken.Store(false)
	replay(dead[0])
	until(t, pool, allDelivered, 2)
	wantWhats(t, r.list()[before:], ids(id, 1, 1, 2))
}

// What takes longer than a statement may, for its large documents or its many subscriptions,
// is asked for in smaller pages.
func TestPagesThatTakeTooLong(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	for _, name := range []string{"read_events", "route", "due_deliveries"} {
		exec(t, pool, fmt.Sprintf("alter function pawl.%s rename to %[1]s_really", name))
	}
	exec(t, pool, `
		create function pawl.at_most(p_limit integer) returns void language plpgsql as $$ begin
			if p_limit > 8 then
				raise exception 'canceling statement due to statement timeout' using errcode = '57014';
			end if;
		end $$;
		create function pawl.read_events(p_consumer text, p_batch pg_snapshot, p_limit integer) returns setof pawl.event
		language plpgsql as $$ begin
			perform pawl.at_most(p_limit);
			return query select * from pawl.read_events_really(p_consumer, p_batch, p_limit);
		end $$;
		create function pawl.route(
			p_term bigint, p_limit integer, p_lease interval, out leads boolean, out steps integer, out deliveries integer, out more boolean
		) language plpgsql as $$ begin
			perform pawl.at_most(p_limit);
			select * into leads, steps, deliveries, more from pawl.route_really(p_term, p_limit, p_lease);
		end $$;
		create function pawl.due_deliveries(
			p_limit integer, p_each integer, p_flying uuid[], p_flying_subscriptions uuid[], p_after_tenant text, p_after_subscription uuid
		) returns setof pawl.delivery language plpgsql as $$ begin
			perform pawl.at_most(p_limit);
			return query select * from pawl.due_deliveries_really(
				p_limit, p_each, p_flying, p_flying_subscriptions, p_after_tenant, p_after_subscription);
		end $$`)
	const n = 40
	r := newReceiver(t, nil)
	subscribe(t, service, r.url, everything)
	exec(t, pool, "select pawl.create_one('counter') from generate_series(1, $1)", n)
	sink := newRecorder()
	pages := quick
	pages.Page = 16
	relay(t, pool, "all", sink, pages)
	config := quickly
	config.Page, config.Concurrency = 16, 4
	webhooks(t, pool, config)
	sink.want(t, n)
	r.want(t, n)
}
