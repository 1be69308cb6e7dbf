package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
)

// A proxy connects a service to its database and fails on demand.
type proxy struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	done     sync.WaitGroup

	mu    sync.Mutex
	mode  mode
	cut   chan struct{} // Closed after a cut.
	conns map[net.Conn]bool
}

type mode int

const (
	pass    mode = iota
	cutOnce      // Drops the next answer to a command and its connection, then passes.
	cutAll       // Drops like cutOnce, then refuses.
	refuse       // Accepts connections and closes them.
	swallow      // Accepts everything and answers nothing.
)

// through starts a service that reaches the database of a pool through a proxy.
func through(t *testing.T, pool *pgxpool.Pool, s setup) (*api, *proxy) {
	t.Helper()
	config := pool.Config().ConnConfig
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	p := &proxy{conns: map[net.Conn]bool{}, dial: func() (net.Conn, error) { return net.Dial(network, address) }}
	var err error
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	p.done.Go(p.serve)
	dsn := url.URL{
		Scheme: "postgres", User: url.UserPassword(config.User, config.Password), Host: p.listener.Addr().String(),
		Path: "/" + config.Database, RawQuery: "sslmode=prefer",
	}
	t.Cleanup(func() {
		_ = p.listener.Close() // This ends serve.
		p.set(refuse)
		p.done.Wait()
	})
	a := serve(t, dsn.String(), s)
	a.pool = pool
	return a, p
}

// set changes the mode. refuse also closes the open connections.
func (p *proxy) set(m mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode, p.cut = m, make(chan struct{})
	if m == refuse {
		p.closeAll()
	}
}

func (p *proxy) closeAll() {
	for c := range p.conns {
		_ = c.Close() // This ends the goroutines in copy.
	}
	clear(p.conns)
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		server, err := p.dial()
		if p.mode == refuse || err != nil {
			_ = client.Close() // The mode is refuse, or the database is unreachable.
			if err == nil {
				_ = server.Close()
			}
			p.mu.Unlock()
			continue
		}
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.done.Go(func() { p.copy(server, client, false) })
		p.done.Go(func() { p.copy(client, server, true) })
	}
}

// copy passes bytes on. It recognises the answer to a writing command by its end, ReadyForQuery
// after CommandComplete, at which point the command is committed.
func (p *proxy) copy(to, from net.Conn, answers bool) {
	defer func() {
		_ = to.Close() // One side has closed the connection.
		_ = from.Close()
	}()
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		cut := answers && (p.mode == cutOnce || p.mode == cutAll) && bytes.Contains(b[:n], []byte("SELECT 1\x00Z\x00\x00\x00\x05I"))
		if cut {
			if p.mode == cutAll {
				p.mode = refuse
				p.closeAll()
			} else {
				p.mode = pass
			}
			close(p.cut)
		}
		drop := p.mode == swallow
		p.mu.Unlock()
		if cut {
			return
		}
		if drop {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
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
		name string
		do   func(a *api, key string) answer
	}{
		{"create", func(a *api, key string) answer {
			return a.post("/v1/workflows/counter/instances", key, fmt.Sprintf(`{"business_key": %q}`, key))
		}},
		{"fire", func(a *api, key string) answer {
			return a.post("/v1/instances/"+id+"/actions/add", key, `{"payload": {"by": 1}}`)
		}},
	} {
		t.Run(command.name+", answered at last", func(t *testing.T) {
			a, key := a.on(t), newKey()
			steps := a.count("pawl.history")
			p.set(cutOnce)
			first := command.do(a, key)
			if first.status >= 300 {
				t.Fatalf("got %d %s", first.status, first.body)
			}
			<-p.cut
			sameOutcome(t, first, command.do(a, key))
			if got := a.count("pawl.history"); got != steps+1 {
				t.Errorf("%d steps were made, want 1", got-steps)
			}
		})
		t.Run(command.name+", not answered", func(t *testing.T) {
			a, key := a.on(t), newKey()
			steps := a.count("pawl.history")
			p.set(cutAll)
			command.do(a, key).want(http.StatusServiceUnavailable, "unavailable")
			<-p.cut
			if got := a.count("pawl.history"); got != steps+1 {
				t.Fatalf("%d steps were made, want 1", got-steps)
			}
			p.set(pass)
			retry := command.do(a, key).wantHeader("Idempotent-Replayed", "true")
			if retry.status >= 300 {
				t.Fatalf("got %d %s", retry.status, retry.body)
			}
			elsewhere := command.do(direct.on(t), key)
			if !bytes.Equal(elsewhere.body, retry.body) || elsewhere.header.Get("ETag") != retry.header.Get("ETag") {
				t.Errorf("another replica answers %s, not %s", elsewhere.body, retry.body)
			}
			if got := a.count("pawl.history"); got != steps+1 {
				t.Errorf("%d steps were made, want 1", got-steps)
			}
		})
	}
}

// A client disconnects before the answer. A retry gets the original outcome.
func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	patient := setup{
		db:  db.Config{LockTimeout: 20 * time.Second, StatementTimeout: 20 * time.Second},
		fsm: fsm.Config{CallTimeout: 30 * time.Second},
	}
	a := startWith(t, patient)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	key, target := newKey(), "/v1/instances/"+id+"/actions/add"

	tx, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from pawl.instance where id = $1 for update", id); err != nil {
		t.Fatal(err)
	}
	ctx, goAway := context.WithCancel(t.Context())
	in, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+target, bytes.NewReader([]byte(`{"payload": {"by": 1}}`)))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Idempotency-Key", key)
	sent := make(chan error, 1)
	go func() {
		r, err := a.client.Do(in)
		if err == nil {
			r.Body.Close()
		}
		sent <- err
	}()
	for waiting := 0; waiting == 0; {
		err := a.pool.QueryRow(t.Context(), `
			select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
	goAway()
	if err := <-sent; err == nil {
		t.Fatal("the client got an answer")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for a.get("/v1/instances/"+id).at("version") == "1" { // The event is applied nevertheless.
		if t.Context().Err() != nil {
			t.Fatal("the command is lost")
		}
	}
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
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = a.pool.Exec(context.Background(), `select pg_terminate_backend(pid) from pg_stat_activity
					where datname = current_database() and application_name = 'pawl' and query like '%pawl.fire%'`)
			}
		}
	})
	const n = 40
	keys := make([]string, n)
	add := func(i int) answer {
		return a.post("/v1/instances/"+id+"/actions/add", keys[i], `{"payload": {"by": 1}}`)
	}
	answers := together(n, func(i int) answer {
		keys[i] = newKey()
		return add(i)
	})
	close(stop)
	killer.Wait()
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
			began := time.Now()
			r := request(a)
			if r.status != http.StatusServiceUnavailable || r.at("code") != "unavailable" || r.header.Get("Retry-After") == "" {
				a.t.Errorf("%s: got %d %v %s", name, r.status, r.header, r.body)
			}
			if took := time.Since(began); took > 2*time.Second {
				a.t.Errorf("%s: it took %v", name, took)
			}
		})
	}
	all.Go(func() { a.get("/healthz").want(http.StatusOK) })
	all.Go(func() {
		body := jsonText(a.t, map[string]any{"commands": []any{command("fire", "instance_id", id, "event", "stop")}})
		a.do(http.MethodPost, "/v1/batch", body).want(http.StatusOK).
			wantAt("results.0.status", "503", "results.0.problem.code", "unavailable")
	})
	all.Wait()
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
	together(10, func(int) answer { return a.get("/v1/instances/" + id).want(http.StatusOK) })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	together(10, func(int) answer { return a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK) })
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
			p.set(pass)
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
		if _, err := tx.Exec(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
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
