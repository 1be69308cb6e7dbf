package invoke_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/invoke"
)

// bank is a provider that charges once for each key, and tells whether it has.
func (p *provider) bank(charge http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			with(200, fmt.Sprintf(`{"paid": %v, "id": "c1"}`, p.charged(r.URL.Query().Get("key"))))(w, r)
			return
		}
		charge(w, r)
	}
}

// A provider that charges and does not answer in time: looking finds the charge, and the task is done, once.
func TestChargedWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the provider that hangs")
	p := newProvider(t, nil)
	p.answer(p.bank(func(_ http.ResponseWriter, r *http.Request) {
		p.charge(r)
		hang.Pass()
	}))
	d := newDesk(t, `"timeout": "100ms", "retry": {"max": 1, "base": "1ms", "cap": "1ms"},`+keyed+fmt.Sprintf(looked, "1h"), p.URL)
	d.run()
	id := d.create()
	got := d.until(id, "DONE")
	if want := []string{"call lost no answer within 100ms", "reconcile answered 200"}; !slices.Equal(d.attempts(id), want) {
		t.Errorf("attempts: %q, want %q", d.attempts(id), want)
	}
	if fmt.Sprint(got.Body) != fmt.Sprint(map[string]any{"paid": true, "id": "c1"}) || p.charges() != 1 {
		t.Errorf("the handler saw %v, after %d charges", got.Body, p.charges())
	}
}

// A provider that replays a recorded 500 for a key: once it has said that there was no effect, a fresh key goes out. One that
// contradicts itself is believed where it says that there was one.
func TestFreshKey(t *testing.T) {
	t.Parallel()
	t.Run("recorded", func(t *testing.T) {
		t.Parallel()
		p := newProvider(t, nil)
		p.answer(p.bank(func(w http.ResponseWriter, r *http.Request) {
			if len(r.Header.Get("Idempotency-Key")) == len(uuid.Nil.String()) {
				with(500, "")(w, r)
				return
			}
			p.charge(r)
			ok(w, r)
		}))
		d := newDesk(t, retried+keyed+fmt.Sprintf(looked, "10ms"), p.URL)
		d.run()
		id := d.create()
		d.until(id, "DONE")
		if task := d.task(id).String(); !p.charged(task+"-2") || p.charges() != 1 {
			t.Errorf("%d charges of the task %s: %+v", p.charges(), task, p.asked())
		}
	})
	t.Run("contradicting", func(t *testing.T) {
		t.Parallel()
		p := newProvider(t, nil)
		looks := inTurn(with(200, `{"paid": false}`), with(503, ""), with(200, `rubbish`), with(200, `{"paid": true}`))
		p.answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				looks(w, r)
				return
			}
			p.charge(r)
			reset(w, r)
		})
		d := newDesk(t, `"reconcile": {"http": {"connection": "psp", "method": "GET", "path": "/charges"}, "every": ["1ms"], "done": "$.body.paid == true", "absent": "$.body.paid == false", "result": "$.body", "absent_after": "12h"},`, p.URL)
		d.run()
		id := d.create()
		d.until(id, "DONE")
		if p.charges() != 1 || len(p.asked()) != 5 {
			t.Errorf("%d charges after %+v", p.charges(), p.asked())
		}
	})
}

// What became of a charge may be asked at another service than the one that charges. A fresh key goes to the first one again.
func TestReconcilingByAnotherConnection(t *testing.T) {
	t.Parallel()
	charges := newProvider(t, inTurn(reset, ok))
	ledger := newProvider(t, with(200, `{"paid": false}`))
	d := newDesk(t, strings.Replace(fmt.Sprintf(looked, "1ms"), `"psp"`, `"ledger"`, 1), charges.URL)
	d.connect("ledger", ledger.URL, `{"type": "none"}`, nil)
	d.run()
	id := d.create()
	d.until(id, "DONE")
	if len(charges.asked()) != 2 || len(ledger.asked()) == 0 {
		t.Errorf("%d charges were asked for, and the ledger %d times", len(charges.asked()), len(ledger.asked()))
	}
}

// A process that dies between its claim and its call, or between the call and the settling, leaves a claim that another
// one ends by the rules: with a key the call is repeated under the same key, and otherwise it is unknown what happened.
func TestClaimOfTheDead(t *testing.T) {
	t.Parallel()
	for _, called := range []bool{false, true} {
		for members, c := range map[string]struct {
			state    string
			attempts []string
			charges  int
		}{
			retried + keyed:             {"DONE", []string{"call expired lease-expired", "call answered 200"}, 1},
			retried:                     {"UNKNOWN", []string{"call expired lease-expired"}, 0},
			fmt.Sprintf(looked, "1ms"):  {"DONE", nil, 1},
			keyed + `"timeout": "20s",`: {"DONE", []string{"call expired lease-expired", "call answered 200"}, 1},
		} {
			t.Run(fmt.Sprint(called, members), func(t *testing.T) {
				t.Parallel()
				p := newProvider(t, nil)
				p.answer(p.bank(func(w http.ResponseWriter, r *http.Request) {
					p.charge(r)
					ok(w, r)
				}))
				d := newDesk(t, members, p.URL)
				dbtest.SetClock(t, d.pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
				id := d.create()
				key := bounded.Value[string](t, d.pool, "select c.key from pawl.task_claim('{default}', '{psp}', '{10}', 'the dead') c")
				if called {
					ask(t, p.URL+"/charges", key)
					c.charges = 1
				}
				d.run()
				// The claim holds until the lease is over: the timeout and ten seconds.
				bounded.True(t, "the claim to end", func() bool {
					dbtest.Advance(t, d.pool, time.Second)
					return d.state(id) != "CHARGING"
				})
				d.until(id, c.state)
				if list := d.attempts(id); c.attempts != nil && !slices.Equal(list, c.attempts) || list[0] != "call expired lease-expired" {
					t.Errorf("attempts: %q, want %q", list, c.attempts)
				}
				if p.charges() != c.charges {
					t.Errorf("%d charges, want %d", p.charges(), c.charges)
				}
			})
		}
	}
}

// ask sends the request that a process has sent before it died.
func ask(t *testing.T, url, key string) {
	t.Helper()
	request, err := http.NewRequestWithContext(bounded.Context(t), http.MethodPost, url, bytes.NewReader([]byte(`{}`)))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Idempotency-Key", key)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
}

// A result is kept while the database is away, and settled when it is back: an effect that was had is not forgotten.
func TestDatabaseIsAway(t *testing.T) {
	t.Parallel()
	gate := bounded.NewGate(t, "the call")
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		gate.Pass()
		ok(w, r)
	})
	d := newDesk(t, "", p.URL)
	proxy, through := bounded.NewDatabaseProxy(t, dbtest.DSN(d.pool), nil)
	pool, err := db.Open(t.Context(), through, db.Config{MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	runOn(t, pool)
	id := d.create()
	gate.Reached()
	proxy.Refuse(true)
	gate.Open()
	bounded.True(t, "the answer to be there", func() bool { return len(p.asked()) == 1 })
	proxy.Refuse(false)
	d.until(id, "DONE")
	if want := []string{"call answered 200"}; !slices.Equal(d.attempts(id), want) {
		t.Errorf("attempts: %q", d.attempts(id))
	}
}

// A result that the database cannot take holds up no other, and is taken without what cannot be stored.
func TestResultThatCannotBeStored(t *testing.T) {
	t.Parallel()
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) { ok(w, r) })
	d := newDesk(t, retried, p.URL)
	// What is refused once is accepted without its body; what always fails is tried again.
	bounded.Exec(t, d.pool, `
		create function refuse() returns trigger language plpgsql as $$ begin
			if exists (select from public.bad b where b.task = new.id) and new.result ->> 'body' is not null then
				raise 'not this one' using errcode = '22P05';
			elsif exists (select from public.worse b where b.task = new.id) and new.ended_at is not null then
				raise 'never';
			end if;
			return new;
		end $$;
		create table public.bad (task uuid);
		create table public.worse (task uuid);
		create trigger refuse before update on pawl.task for each row execute function refuse()`)
	var ids []uuid.UUID
	for range 10 {
		ids = append(ids, d.create())
	}
	bounded.Exec(t, d.pool, "insert into public.bad select $1", d.task(ids[3]))
	bounded.Exec(t, d.pool, "insert into public.worse select $1", d.task(ids[5]))
	d.run()
	for i, id := range ids {
		if i == 5 {
			continue
		}
		got := d.until(id, "DONE")
		if bad := got.Body == nil && got.Error != nil && *got.Error == "the body cannot be stored"; bad != (i == 3) {
			t.Errorf("%d: the payload is %+v", i, got)
		}
	}
	if state := d.state(ids[5]); state != "CHARGING" {
		t.Fatalf("what cannot be settled is %s", state)
	}
	bounded.Exec(t, d.pool, "delete from public.worse")
	d.until(ids[5], "DONE")
	if n := len(p.asked()); n != len(ids) {
		t.Errorf("%d requests for %d tasks", n, len(ids))
	}
}

// When the process is to stop, it claims nothing more. What is under way may end; what does not is cut, and counts as lost.
func TestStop(t *testing.T) {
	t.Parallel()
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprint("cut ", cut), func(t *testing.T) {
			t.Parallel()
			gate := bounded.NewGate(t, "the call")
			p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
				gate.Pass()
				ok(w, r)
			})
			d := newDesk(t, "", p.URL)
			grace := bounded.Limit
			if cut {
				grace = time.Millisecond
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			started := invoke.New(d.pool, invoke.Config{Policy: private, Poll: 5 * time.Millisecond, Grace: grace})
			ended := make(chan error, 1)
			go func() { ended <- started.Run(ctx) }()
			id := d.create()
			gate.Reached()
			cancel()
			want := []string{"call lost the process that called was stopped before there was an answer"}
			if !cut {
				gate.Open()
				want = []string{"call answered 200"}
			}
			if err := bounded.Receive(t, "the invoker to stop", ended); err != nil {
				t.Error(err)
			}
			if list := d.attempts(id); !slices.Equal(list, want) {
				t.Errorf("attempts: %q, want %q", list, want)
			}
			d.create()
			if n := bounded.Value[int](t, d.pool, "select count(*) from pawl.task_attempt"); n != 1 {
				t.Errorf("after the end there are %d attempts", n)
			}
		})
	}
}

// What was claimed when the process is to stop is given back, and loses no attempt.
func TestStopBetweenClaimAndCall(t *testing.T) {
	t.Parallel()
	p := newProvider(t, ok)
	d := newDesk(t, "", p.URL)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pool := spied(t, d.pool, func(sql string) {
		if strings.Contains(sql, "task_claim") {
			cancel()
		}
	})
	id := d.create()
	ended := make(chan error, 1)
	go func() {
		ended <- invoke.New(pool, invoke.Config{Policy: private, Poll: 5 * time.Millisecond}).Run(ctx)
	}()
	if err := bounded.Receive(t, "the invoker to stop", ended); err != nil {
		t.Error(err)
	}
	if want := []string{"call postponed the process that claimed it was stopped before it called"}; !slices.Equal(d.attempts(id), want) || len(p.asked()) > 0 {
		t.Errorf("attempts: %q, and %d requests", d.attempts(id), len(p.asked()))
	}
	if !bounded.Value[bool](t, d.pool, "select status = 'pending' and tries = 0 and due_at <= pawl.now() from pawl.task") {
		t.Error("the task is not as it was before the claim")
	}
}

// Two processes call for each task once, and no more at a time than the connection lets each of them.
func TestReplicas(t *testing.T) {
	t.Parallel()
	var under, most atomic.Int32
	var mu sync.Mutex
	times := map[string]int{}
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		now := under.Add(1)
		defer under.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		mu.Lock()
		times[r.Header.Get("Idempotency-Key")]++
		mu.Unlock()
		ok(w, r)
	})
	d := newDesk(t, retried+keyed, p.URL)
	bounded.Exec(t, d.pool, "update pawl.connection set concurrency = 3")
	const n = 300
	bounded.Exec(t, d.pool, `select pawl.create_one('order', '{"price": 5}') from generate_series(1, $1::integer)`, n)
	for range 2 {
		d.run()
	}
	bounded.UntilSQL(t, d.pool, "select count(*) = $1 from pawl.instance where state = 'DONE'", n)
	if most.Load() > 6 {
		t.Errorf("%d calls were made at a time", most.Load())
	}
	if len(times) != n || len(p.asked()) != n {
		t.Errorf("%d requests with %d keys for %d tasks", len(p.asked()), len(times), n)
	}
}

// A connection that fails rests, and its tasks lose no attempt meanwhile. It is probed, and used again when that succeeds.
func TestCircuit(t *testing.T) {
	t.Parallel()
	p := newProvider(t, reset)
	d := newDesk(t, `"retry": {"max": 100, "base": "1ms", "cap": "1ms"},`+keyed, p.URL)
	dbtest.SetClock(t, d.pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	looked := make(chan struct{})
	pool := spied(t, d.pool, func(sql string) {
		if strings.Contains(sql, "task_lanes") {
			select {
			case looked <- struct{}{}:
			default:
			}
		}
	})
	runOn(t, pool, func(c *invoke.Config) { c.Rest = time.Minute })
	bounded.Exec(t, d.pool, `select pawl.create_one('order', '{"price": 5}') from generate_series(1, 20)`)
	bounded.True(t, "the circuit to open", func() bool {
		dbtest.Advance(t, d.pool, 10*time.Millisecond)
		return bounded.Value[bool](t, d.pool, "select circuit_open_until is not null from pawl.connection")
	})
	for range 2 { // The first look may have begun before.
		bounded.Receive(t, "a look that sees the circuit", looked)
	}
	bounded.UntilSQL(t, d.pool, "select not exists (select from pawl.task where leased_until is not null)")
	asked := len(p.asked())
	dbtest.Advance(t, d.pool, 50*time.Second)
	for range 2 {
		bounded.Receive(t, "a look while the connection rests", looked)
	}
	if n := bounded.Value[int](t, d.pool, "select count(*) from pawl.task where due_at <= pawl.now()"); n != 20 || len(p.asked()) != asked {
		t.Errorf("%d tasks are due, and there were %d requests meanwhile", n, len(p.asked())-asked)
	}
	p.answer(ok)
	dbtest.Advance(t, d.pool, 11*time.Second) // Once: a clock that runs on ends leases, and their tasks are called again.
	bounded.UntilSQL(t, d.pool, "select count(*) = 20 from pawl.instance where state = 'DONE'")
	bounded.UntilSQL(t, d.pool, "select failures = 0 and circuit_open_until is null from pawl.connection")
	if n := len(p.asked()); n != asked+20 {
		t.Errorf("%d requests after the rest, want 20", n-asked)
	}
}

// An answer with 429 or 503 is no failure of the connection, and its Retry-After is obeyed.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, status := range []int{429, 503} {
		p := newProvider(t, inTurn(with(status, "", "Retry-After", "100"), ok))
		d := newDesk(t, retried, p.URL)
		dbtest.SetClock(t, d.pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
		d.run()
		id := d.create()
		bounded.UntilSQL(t, d.pool, "select due_at = pawl.now() + interval '100 seconds' from pawl.task where attempts = 1")
		if bounded.Value[int](t, d.pool, "select failures from pawl.connection") != 0 {
			t.Errorf("%d is a failure of the connection", status)
		}
		dbtest.Advance(t, d.pool, 100*time.Second)
		d.until(id, "DONE")
	}
}

// A call that succeeds after its state was left is late, and moves nothing.
func TestLate(t *testing.T) {
	t.Parallel()
	gate := bounded.NewGate(t, "the call")
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		gate.Pass()
		ok(w, r)
	})
	d := newDesk(t, "", p.URL)
	d.run()
	id := d.create()
	gate.Reached()
	bounded.Exec(t, d.pool, "select pawl.fire_one($1, 'leave')", id)
	gate.Open()
	bounded.UntilSQL(t, d.pool, "select status = 'done' and left_at is not null from pawl.task")
	if d.state(id) != "LEFT" {
		t.Errorf("the instance is in %s", d.state(id))
	}
}

// The invoker looks when it is told to, without waiting for the next look by itself.
func TestWake(t *testing.T) {
	t.Parallel()
	p := newProvider(t, ok)
	d := newDesk(t, "", p.URL)
	signals := make(chan chan struct{}, 2)
	looked := make(chan struct{}, 1000)
	pool := spied(t, d.pool, func(sql string) {
		if strings.Contains(sql, "task_lanes") {
			looked <- struct{}{}
		}
	})
	runOn(t, pool, func(c *invoke.Config) {
		c.Poll = time.Hour
		c.Wake = func() (<-chan struct{}, func()) {
			signal := make(chan struct{}, 1)
			signals <- signal
			return signal, func() {}
		}
	})
	bounded.Receive(t, "the first look", looked)
	id := d.create()
	for range 2 {
		bounded.Receive(t, "who is to be told", signals) <- struct{}{}
	}
	d.until(id, "DONE")
}

// spied returns a pool that tells of each statement when it has ended.
func spied(t *testing.T, pool *pgxpool.Pool, ended func(sql string)) *pgxpool.Pool {
	t.Helper()
	return fsmtest.Spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) { ended(sql) }}
	})
}

// A search shows each lane that it has looked at, so that the next one can go on behind the last.
func TestLanes(t *testing.T) {
	t.Parallel()
	d := newDesk(t, "", "http://127.0.0.1:1")
	for _, tenant := range []string{"a", "b", "c", "d", "e"} {
		bounded.Exec(t, d.pool, "insert into pawl.tenant (id, created_at, created_by) values ($1, pawl.now(), 'test')", tenant)
		bounded.Exec(t, d.pool, `select pawl.create_one('order', '{"price": 5}', p_tenant => $1)`, tenant)
		d.connectOf(tenant, "psp", "http://127.0.0.1:1", `{"type": "none"}`, nil)
	}
	bounded.Exec(t, d.pool, "update pawl.tenant set disabled_at = pawl.now() where id = 'b'")
	bounded.Exec(t, d.pool, "update pawl.task set due_at = pawl.now() + interval '1 hour' where tenant_id = 'c'")
	bounded.Exec(t, d.pool, "delete from pawl.connection where tenant_id = 'd'")
	for _, c := range []struct {
		after string
		looks int
		want  []string
	}{
		{"", 3, []string{"a true", "b false", "c false"}},
		{"c", 3, []string{"d false", "e true"}},
		{"e", 3, nil},
	} {
		got := bounded.Column[string](t, d.pool, "select tenant_id || ' ' || ready from pawl.task_lanes($1, $2)", c.after, c.looks)
		if !slices.Equal(got, c.want) {
			t.Errorf("after %q: %v, want %v", c.after, got, c.want)
		}
	}
}

// An attempt ends by the timeout of its connection if that is shorter than the task's, whether or not the answer has begun.
func TestTimeoutOfTheConnection(t *testing.T) {
	t.Parallel()
	for what, handler := range map[string]func(http.ResponseWriter){
		"no answer within 100ms": func(http.ResponseWriter) {},
		"the answer ended early: no answer within 100ms": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			hang := bounded.NewGate(t, "the provider that hangs")
			p := newProvider(t, func(w http.ResponseWriter, _ *http.Request) {
				handler(w)
				hang.Pass()
			})
			d := newDesk(t, `"timeout": "10m",`, p.URL)
			bounded.Exec(t, d.pool, "update pawl.connection set timeout = '100 milliseconds'")
			d.run()
			id := d.create()
			d.until(id, "UNKNOWN")
			if list := d.attempts(id); len(list) != 1 || list[0] != "call lost "+what {
				t.Errorf("attempts: %q", list)
			}
		})
	}
}
