package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A proxy connects a service to its database and fails on demand.
type proxy struct {
	*bounded.Proxy

	mu      sync.Mutex
	mode    mode
	key     string        // The key of the command whose answer a cut drops.
	calling int           // The connection on which that command was sent last.
	cut     chan struct{} // Closed after a cut.
}

type mode int

const (
	passAll mode = iota
	cutOnce      // Drops the next answer to the command with the key, closes its connection, and then passes everything.
	cutAll       // Drops like cutOnce, then refuses.
	refuse       // Accepts connections and closes them.
	swallow      // Accepts everything and answers nothing.
)

// through starts a service that reaches the database of a pool through a proxy.
func through(t *testing.T, pool *pgxpool.Pool, s setup) (*api, *proxy) {
	t.Helper()
	p := &proxy{}
	var dsn string
	p.Proxy, dsn = bounded.NewDatabaseProxy(t, dbtest.DSN(pool), p.hook)
	a := serve(t, dsn, s)
	a.pool = pool
	return a, p
}

// set changes the mode. refuse also closes the open connections.
func (p *proxy) set(m mode) { p.setCut(m, "") }

// setCut changes the mode and the key of the command whose answer is dropped.
func (p *proxy) setCut(m mode, key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode, p.key, p.calling, p.cut = m, key, 0, make(chan struct{})
	p.Refuse(m == refuse)
}

// hook recognises a command by its key, which is among the parameters that the service sends. It
// recognises the answer by the connection, and its end by ReadyForQuery after CommandComplete: then the
// command is committed. Other calls, such as notifications, pass.
func (p *proxy) hook(c bounded.Chunk) (pass []byte, keep bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == swallow {
		return nil, true
	}
	if p.mode != cutOnce && p.mode != cutAll {
		return c.Data, true
	}
	if !c.FromServer && bytes.Contains(c.Data, []byte(p.key)) {
		p.calling = c.Conn
	}
	committed := c.FromServer && c.Conn == p.calling && bytes.Contains(c.Data, []byte("SELECT 1\x00Z\x00\x00\x00\x05I"))
	if !committed {
		return c.Data, true
	}
	if p.mode == cutOnce {
		p.mode = passAll
	} else {
		p.mode = refuse
		p.Refuse(true)
	}
	close(p.cut)
	return nil, false
}

// awaitCut returns when an answer was dropped.
func (p *proxy) awaitCut(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	cut := p.cut
	p.mu.Unlock()
	bounded.Receive(t, "an answer to be dropped", cut)
}

// The answer to a committed command is lost. A retry gets the original outcome.
func TestCommittedButUnanswered(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	// To the client it makes no difference whether the service loses the answer of the
	// database, or is killed before it sends its own.
	a, p := through(t, pool, setup{})
	a.register(counter)
	direct := serve(t, dbtest.DSN(pool), setup{})
	id := a.create("counter", `{"context": {"sum": 0}}`)
	for _, command := range []struct {
		name  string
		steps int
		do    func(a *api, key string) answer
	}{
		{"create", 1, func(a *api, key string) answer {
			return a.post("/v1/workflows/counter/instances", key, fmt.Sprintf(`{"business_key": %q}`, key))
		}},
		{"fire", 1, func(a *api, key string) answer {
			return a.post("/v1/instances/"+id+"/actions/add", key, `{"payload": {"by": 1}}`)
		}},
		{"start", 2, func(a *api, key string) answer {
			return a.post("/v1/workflows/counter/keys/start-"+key+"/actions/add", key, `{"payload": {"by": 1}, "start": {"context": {"sum": 0}}}`)
		}},
	} {
		t.Run(command.name+", answered at last", func(t *testing.T) {
			a, key := a.on(t), newKey()
			steps := a.count("pawl.history")
			p.setCut(cutOnce, key)
			first := command.do(a, key)
			if first.status >= 300 {
				t.Fatalf("got %d %s", first.status, first.body)
			}
			p.awaitCut(t)
			sameOutcome(t, first, command.do(a, key))
			if got := a.count("pawl.history"); got != steps+command.steps {
				t.Errorf("%d steps were made, want %d", got-steps, command.steps)
			}
		})
		t.Run(command.name+", not answered", func(t *testing.T) {
			a, key := a.on(t), newKey()
			steps := a.count("pawl.history")
			p.setCut(cutAll, key)
			command.do(a, key).want(http.StatusServiceUnavailable, "unavailable")
			p.awaitCut(t)
			if got := a.count("pawl.history"); got != steps+command.steps {
				t.Fatalf("%d steps were made, want %d", got-steps, command.steps)
			}
			p.set(passAll)
			retry := command.do(a, key).wantHeader("Idempotent-Replayed", "true")
			if retry.status >= 300 {
				t.Fatalf("got %d %s", retry.status, retry.body)
			}
			elsewhere := command.do(direct.on(t), key)
			if !bytes.Equal(elsewhere.body, retry.body) || elsewhere.header.Get("ETag") != retry.header.Get("ETag") || elsewhere.status != retry.status {
				t.Errorf("another replica answers %s, not %s", elsewhere.body, retry.body)
			}
			if got := a.count("pawl.history"); got != steps+command.steps {
				t.Errorf("%d steps were made, want %d", got-steps, command.steps)
			}
		})
	}
}

// A client disconnects before the answer. A retry gets the original outcome.
func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	patient := setup{
		db:  db.Config{LockTimeout: bounded.Limit, StatementTimeout: bounded.Limit},
		fsm: fsm.Config{CallTimeout: bounded.Limit},
	}
	a := startWith(t, patient)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	key, target := newKey(), "/v1/instances/"+id+"/actions/add"

	tx, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "select from pawl.instance where id = $1 for update", id)
	ctx, goAway := context.WithCancel(t.Context())
	in, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+target, bytes.NewReader([]byte(`{"payload": {"by": 1}}`)))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Idempotency-Key", key)
	in.Header.Set("Content-Type", "application/json")
	sent := make(chan error, 1)
	go func() {
		r, err := a.client.Do(in)
		if err == nil {
			r.Body.Close()
		}
		sent <- err
	}()
	bounded.UntilBlocked(t, a.pool, 1)
	goAway()
	if err := bounded.Receive(t, "the client to go away", sent); err == nil {
		t.Fatal("the client got an answer")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	bounded.Until(t, "the event to be applied nevertheless", func() string { return a.get("/v1/instances/" + id).at("version") },
		func(version string) bool { return version != "1" })
	a.post(target, key, `{"payload": {"by": 1}}`).want(http.StatusOK).wantHeader("Idempotent-Replayed", "true").wantAt("version", "2")
	a.get("/v1/instances/"+id).wantAt("version", "2", "context.sum", "1")
}

// Backends are killed under load. Each command has its effect exactly once, or has none and
// returns an error.
func TestBackendsKilled(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	stop := bounded.Run(t, "the killer", func(ctx context.Context) error {
		// bounded: until it is stopped
		for ctx.Err() == nil {
			_, _ = a.pool.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and application_name = 'pawl' and query like '%pawl.fire%'`)
		}
		return nil
	})
	const n = 40
	keys := make([]string, n)
	add := func(i int) answer {
		return a.post("/v1/instances/"+id+"/actions/add", keys[i], `{"payload": {"by": 1}}`)
	}
	answers := together(t, n, func(i int) answer {
		keys[i] = newKey()
		return add(i)
	})
	stop()
	for i, r := range answers {
		switch r.status {
		case http.StatusServiceUnavailable:
			r.wantHeader("Retry-After", "1")
			add(i).want(http.StatusOK)
		case http.StatusOK:
			sameOutcome(t, r, add(i))
		default:
			t.Errorf("got %d %s", r.status, r.body)
		}
	}
	a.get("/v1/instances/"+id).wantAt("version", strconv.Itoa(n+1), "context.sum", strconv.Itoa(n))
}

// away checks that every route answers 503 within two seconds while the database is down.
func (a *api) away(id string) {
	a.t.Helper()
	requests := map[string]func(a *api) answer{
		"ready":    func(a *api) answer { return a.get("/readyz") },
		"read":     func(a *api) answer { return a.get("/v1/instances/" + id) },
		"past":     func(a *api) answer { return a.get("/v1/instances/" + id + "?version=1") },
		"list":     func(a *api) answer { return a.get("/v1/instances") },
		"history":  func(a *api) answer { return a.get("/v1/instances/" + id + "/history") },
		"actions":  func(a *api) answer { return a.get("/v1/instances/" + id + "/actions?evaluate=true") },
		"workflow": func(a *api) answer { return a.get("/v1/workflows/counter") },
		"register": func(a *api) answer { return a.do(http.MethodPut, "/v1/workflows/counter", counter) },
		"create":   func(a *api) answer { return a.post("/v1/workflows/counter/instances", newKey(), "") },
		"fire":     func(a *api) answer { return a.fire(id, "add", `{"payload": {"by": 1}}`) },
		"dry run": func(a *api) answer {
			return a.do(http.MethodPost, "/v1/instances/"+id+"/actions/add?dry_run=true", `{"payload": {"by": 1}}`)
		},
	}
	var all sync.WaitGroup
	for name, request := range requests {
		all.Go(func() {
			// A machine that is busy with something else is given another try.
			bounded.Until(a.t, name+" to be answered within two seconds", func() time.Duration {
				began := time.Now()
				r := request(a)
				if r.status != http.StatusServiceUnavailable || r.at("code") != "unavailable" || r.header.Get("Retry-After") == "" {
					a.t.Errorf("%s: got %d %v %s", name, r.status, r.header, r.body)
				}
				return time.Since(began)
			}, func(took time.Duration) bool { return took <= 2*time.Second })
		})
	}
	all.Go(func() { a.get("/healthz").want(http.StatusOK) })
	all.Go(func() {
		body := jsonText(a.t, map[string]any{"commands": []any{command("fire", "instance_id", id, "event", "stop")}})
		a.do(http.MethodPost, "/v1/batch", body).want(http.StatusOK).
			wantAt("results.0.status", "503", "results.0.problem.code", "unavailable")
	})
	bounded.Wait(a.t, "the answers", all.Wait)
}

// The database stops and starts again, and the service recovers without a restart.
func TestDatabaseStops(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, nil)
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	a := serve(t, server.DSN(), setup{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	for i := range 2 {
		for range 3 { // The pool has several connections, which are all dead.
			a.get("/v1/instances/" + id).want(http.StatusOK)
		}
		a.get("/readyz").want(http.StatusOK)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		a.away(id)
		a.away(id)
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.get("/readyz").want(http.StatusOK)
		a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK).wantAt("version", strconv.Itoa(i+2))
		a.create("counter", "")
	}
	// A restart between two requests causes no error.
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	together(t, 10, func(int) answer { return a.get("/v1/instances/" + id).want(http.StatusOK) })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	together(t, 10, func(int) answer { return a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK) })
}

// The database accepts connections but does not answer.
func TestDatabaseUnreachable(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	a, p := through(t, pool, setup{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	for name, m := range map[string]mode{"refuses": refuse, "is silent": swallow} {
		t.Run(name, func(t *testing.T) {
			a := a.on(t)
			p.set(m)
			a.away(id)
			a.away(id) // By now the pool has no connections.
			p.set(refuse)
			p.set(passAll)
			a.get("/readyz").want(http.StatusOK)
			a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
		})
	}
}

// Commands wait for a row that another transaction has locked, and then the pool is exhausted
// because all connections wait for locked tables. Both are answered with 503.
func TestBusy(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{db: db.Config{LockTimeout: 50 * time.Millisecond}})
	b := a.another(setup{db: db.Config{MaxConns: 1, LockTimeout: time.Minute, StatementTimeout: time.Minute}})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	hold := func(query string, args ...any) (release func()) {
		tx, err := a.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bounded.Exec(t, tx, query, args...)
		return func() {
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	release := hold("select from pawl.instance where id = $1 for update", id)
	a.fire(id, "stop", "").want(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
	a.get("/v1/instances/" + id).want(http.StatusOK) // A read does not wait for the lock.
	release()
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)

	release = hold("lock table pawl.instance, pawl.workflow, pawl.setting, pawl.history in access exclusive mode")
	b.away(id)
	release()
	b.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
}

// A full queue refuses commands immediately.
func TestQueueIsFull(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{fsm: fsm.Config{MaxQueue: 5}})
	a.register(counter)
	var commands []map[string]any
	for range 6 {
		commands = append(commands, command("create", "workflow", "counter"))
	}
	r := a.batch(commands...)
	for _, code := range r.each("results", "problem.code") {
		if code != "unavailable" {
			t.Errorf("got %s", r.body)
		}
	}
	a.batch(commands[:5]...).wantAt("results.4.status", "201")
}
