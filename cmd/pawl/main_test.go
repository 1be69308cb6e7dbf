package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
)

// program is the real thing, built once.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "pawl-test-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "pawl")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v: %s", err, out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	dbtest.Exit(code)
}

// pawl runs a command to its end.
func pawl(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// mustPawl is pawl for commands that must succeed.
func mustPawl(t testing.TB, env []string, args ...string) string {
	t.Helper()
	stdout, stderr, code := pawl(t, env, args...)
	if code != 0 {
		t.Fatalf("pawl %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// process is a pawl that serves.
type process struct {
	*exec.Cmd
	url string
	log *lockedBuffer
}

// lockedBuffer is a bytes.Buffer for two goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var (
	devAddress   = regexp.MustCompile(`pawl listens on (http://\S+)`)
	serveAddress = regexp.MustCompile(`msg=serving address=(\S+)`)
	noAddress    = regexp.MustCompile(`msg="working, without an API"`)
)

// start runs `pawl dev` or `pawl serve` on a free port and returns when it serves. It is
// killed when the test ends, unless it has ended by itself.
func start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program, append(args, "--listen", "127.0.0.1:0")...), log: &lockedBuffer{}}
	p.Env = append(os.Environ(), env...)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = in, in
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() {
			t.Logf("pawl %s:\n%s", args[0], p.log)
		}
	})
	serving := make(chan string, 1)
	go func() {
		defer func() { _ = out.Close() }()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			_, _ = fmt.Fprintln(p.log, lines.Text())
			if m := devAddress.FindStringSubmatch(lines.Text()); m != nil {
				serving <- m[1]
			}
			if m := serveAddress.FindStringSubmatch(lines.Text()); m != nil {
				serving <- "http://" + m[1]
			}
			if noAddress.MatchString(lines.Text()) {
				serving <- "nowhere"
			}
		}
		close(serving)
	}()
	select {
	case p.url = <-serving:
		if p.url == "" {
			t.Fatalf("pawl %s ended: %s", args[0], p.log)
		}
	case <-time.After(time.Minute):
		t.Fatalf("pawl %s does not serve: %s", args[0], p.log)
	}
	return p
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) member(name string) any {
	var m map[string]any
	_ = json.Unmarshal([]byte(a.body), &m)
	return m[name]
}

func send(ctx context.Context, method, url, body string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(text)}, err
}

func mustSend(t testing.TB, want int, method, url, body string, headers ...string) answer {
	t.Helper()
	a, err := send(t.Context(), method, url, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	if a.status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, url, a.status, want, a.body)
	}
	return a
}

const (
	flight = "../../examples/flight-booking/workflow.yaml"
	create = "/v1/workflows/flight-booking/instances"
	quote  = `{"context": {"flight_id": "LH454", "price": 420}}`
	accept = `{"payload": {"price": 420, "seat": "12A"}}`
)

// serviceRole makes a login role with the service's privileges and returns its DSN.
func serviceRole(t *testing.T, dsn string) string {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Close(context.WithoutCancel(t.Context())) }()
	role := "pawl_service_" + strings.ReplaceAll(owner.Config().Database, "-", "_")
	if _, err := owner.Exec(t.Context(), fmt.Sprintf("create role %s login password 'secret'", role)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := conn.Exec(ctx, fmt.Sprintf("drop owned by %[1]s; drop role %[1]s", role)); err != nil {
			t.Error(err)
		}
	})
	mustPawl(t, []string{"DATABASE_URL=" + dsn}, "migrate", "grants", "--role", role, "--apply")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	return u.String()
}

// TestDev starts from nothing, works as printed, and starts again after everything was
// killed.
func TestDev(t *testing.T) {
	t.Parallel()
	if os.Getenv("PAWL_TEST_DATABASE_URL") != "" {
		t.Log("dev runs a Postgres of its own all the same")
	}
	dbtest.Private(t, nil) // Skips where there are no server binaries.
	dir, err := os.MkdirTemp("", "pawl-dev-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	none := []string{"DATABASE_URL=", "PAWL_DATABASE_URL="}
	first := start(t, none, "dev", "--data-dir", filepath.Join(dir, "data"))
	booking := mustSend(t, http.StatusCreated, http.MethodPost, first.url+create, quote, "Idempotency-Key", "quote-1").
		header.Get("Location")
	runPrintedLines(t, first)

	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	second := start(t, none, "dev", "--data-dir", filepath.Join(dir, "data"))
	mustSend(t, http.StatusOK, http.MethodGet, second.url+booking, "")
	if v := mustSend(t, http.StatusOK, http.MethodGet, second.url+"/v1/workflows/flight-booking", "").member("version"); v != float64(1) {
		t.Errorf("the example is at version %v after the second start, want 1", v)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// runPrintedLines runs the curl lines that dev prints.
func runPrintedLines(t *testing.T, p *process) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Log("there is no curl to run the printed lines with")
		return
	}
	var lines []string
	// The last line is printed with the others, in one write, but may be read later.
	for range 100 {
		lines = regexp.MustCompile(`(?m)^  curl .*$`).FindAllString(p.log.String(), -1)
		if len(lines) == 3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(lines) != 3 {
		t.Fatalf("%d curl lines are printed, want 3: %s", len(lines), p.log)
	}
	for _, line := range lines {
		out, err := exec.CommandContext(t.Context(), "sh", "-ec", strings.Replace(line, "curl ", "curl -fsS ", 1)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "flight-booking") {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
}

// TestIdenticalRequestsOverTwoProcesses sends one request a hundred times at once.
func TestIdenticalRequestsOverTwoProcesses(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn)}
	replicas := []*process{start(t, env, "serve"), start(t, env, "serve")}
	mustPawl(t, nil, "workflow", "apply", "--server", replicas[0].url, flight)

	hundred := func(path, body string, headers ...string) answer {
		t.Helper()
		var requests sync.WaitGroup
		answers := make([]answer, 100)
		errs := make([]error, 100)
		for i := range answers {
			requests.Go(func() {
				answers[i], errs[i] = send(t.Context(), http.MethodPost, replicas[i%2].url+path, body, headers...)
			})
		}
		requests.Wait()
		firsts := 0
		for i, a := range answers {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			if a.status != answers[0].status || a.body != answers[0].body || a.header.Get("ETag") != answers[0].header.Get("ETag") ||
				a.header.Get("Location") != answers[0].header.Get("Location") {
				t.Fatalf("answer %d is %d %s, and the first is %d %s", i, a.status, a.body, answers[0].status, answers[0].body)
			}
			if a.header.Get("Idempotent-Replayed") == "" {
				firsts++
			}
		}
		if firsts != 1 {
			t.Errorf("%d answers are no replay, want 1", firsts)
		}
		return answers[0]
	}
	created := hundred(create, quote, "Idempotency-Key", "quote-1")
	if created.status != http.StatusCreated {
		t.Fatalf("status %d: %s", created.status, created.body)
	}
	booking := created.header.Get("Location")
	hundred(booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1", "If-Match", `"1"`)
	history := mustSend(t, http.StatusOK, http.MethodGet, replicas[1].url+booking+"/history", "")
	if items := history.member("items").([]any); len(items) != 2 {
		t.Errorf("the history has %d steps, want 2: %s", len(items), history.body)
	}
	list := mustSend(t, http.StatusOK, http.MethodGet, replicas[0].url+"/v1/instances", "")
	if items := list.member("items").([]any); len(items) != 1 {
		t.Errorf("there are %d instances, want 1", len(items))
	}
}

// muzzle is a proxy to Postgres that can keep the server's answers to itself.
type muzzle struct {
	net.Listener
	shut atomic.Bool
}

func newMuzzle(t *testing.T, dsn string) (*muzzle, string) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	network, address := "tcp", net.JoinHostPort(config.Host, fmt.Sprint(config.Port))
	if strings.HasPrefix(config.Host, "/") {
		network, address = "unix", filepath.Join(config.Host, fmt.Sprintf(".s.PGSQL.%d", config.Port))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &muzzle{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			}()
			go func() {
				defer func() { _ = client.Close() }()
				buffer := make([]byte, 64<<10)
				for {
					n, err := server.Read(buffer)
					if err != nil {
						return
					}
					if m.shut.Load() {
						continue // Read, and kept.
					}
					if _, err := client.Write(buffer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	through := fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable",
		url.PathEscape(config.User), url.PathEscape(config.Password), l.Addr(), url.PathEscape(config.Database))
	return m, through
}

// hold locks every instance until release, and gives a connection to look on with.
func hold(t *testing.T, dsn string) (look *pgx.Conn, release func()) {
	t.Helper()
	conns := make([]*pgx.Conn, 2)
	for i := range conns {
		var err error
		if conns[i], err = pgx.Connect(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close(context.WithoutCancel(t.Context())) })
	}
	tx, err := conns[0].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from pawl.instance for no key update"); err != nil {
		t.Fatal(err)
	}
	return conns[1], func() {
		t.Helper()
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitBlocked returns when somebody waits for a lock.
func awaitBlocked(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	for waiting := 0; waiting == 0; {
		err := conn.QueryRow(t.Context(),
			"select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'").Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledBetweenCommitAndAnswer kills the service after the commit and before the
// answer: the retry gets the original outcome.
func TestKilledBetweenCommitAndAnswer(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	proxy, through := newMuzzle(t, dsn)
	doomed := start(t, []string{"DATABASE_URL=" + through, "PAWL_LOCK_TIMEOUT=20s", "PAWL_GUARD_TIMEOUT=30s"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", doomed.url, flight)
	booking := mustSend(t, http.StatusCreated, http.MethodPost, doomed.url+create, quote, "Idempotency-Key", "quote-1").
		header.Get("Location")

	conn, release := hold(t, dsn)
	lost := make(chan error, 1)
	go func() {
		_, err := send(t.Context(), http.MethodPost, doomed.url+booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
		lost <- err
	}()
	awaitBlocked(t, conn)
	proxy.shut.Store(true)
	release()
	for version := 0; version != 2; {
		if err := conn.QueryRow(t.Context(), "select version from pawl.instance").Scan(&version); err != nil {
			t.Fatal(err)
		}
	}
	if err := doomed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-lost; err == nil {
		t.Fatal("the first request was answered, so nothing was lost")
	}

	heir := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	retry := mustSend(t, http.StatusOK, http.MethodPost, heir.url+booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
	if retry.header.Get("Idempotent-Replayed") != "true" || retry.header.Get("ETag") != `"2"` {
		t.Errorf("the retry is no replay of version 2: %v %s", retry.header, retry.body)
	}
}

// TestDrain ends a service while a request waits for a row: the request is answered, and
// then the process ends.
func TestDrain(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn, "PAWL_LOCK_TIMEOUT=20s", "PAWL_GUARD_TIMEOUT=25s"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	booking := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").
		header.Get("Location")
	conn, release := hold(t, dsn)
	answered := make(chan answer, 1)
	go func() {
		a, err := send(t.Context(), http.MethodPost, p.url+booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	awaitBlocked(t, conn)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(p.log.String(), "draining") {
		time.Sleep(time.Millisecond)
	}
	release()
	if a := <-answered; a.status != http.StatusOK {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestWorkersOnly runs the two halves of a service as processes of their own: the one
// purges and listens nowhere, the other answers and purges nothing.
func TestWorkersOnly(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	role := serviceRole(t, dsn)
	api := start(t, []string{"DATABASE_URL=" + role, "PAWL_WORKERS=false"}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", api.url, flight)
	if _, err := conn.Exec(t.Context(), "update pawl.setting set idempotency_ttl = '1 microsecond'"); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		mustSend(t, http.StatusCreated, http.MethodPost, api.url+create, quote, "Idempotency-Key", fmt.Sprint("quote-", n))
	}
	left := func() (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "select count(*) from pawl.idempotency_key").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := left(); n != 3 {
		t.Errorf("%d keys are left before anybody purges, want 3", n)
	}
	worker := start(t, []string{"DATABASE_URL=" + role}, "serve", "--no-api")
	if worker.url != "nowhere" {
		t.Errorf("the worker listens on %s", worker.url)
	}
	for left() > 0 {
		if t.Context().Err() != nil {
			t.Fatal("the keys are not purged")
		}
	}
	for _, p := range []*process{worker, api} {
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
	if _, stderr, code := pawl(t, []string{"DATABASE_URL=" + dsn, "PAWL_API=false"}, "serve", "--no-workers"); code != 2 || !strings.Contains(stderr, "--no-api and --no-workers") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, nil, "dev", "--no-workers", "--no-api"); code != 2 || !strings.Contains(stderr, "--no-api and --no-workers") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestMigrate deploys, shows and takes back the schema.
func TestMigrate(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.Empty(t)}
	migrations, err := fs.Glob(db.Migrations(), "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	if out := mustPawl(t, env, "migrate", "status"); strings.Count(out, "pending") != len(migrations) {
		t.Errorf("status before: %s", out)
	}
	mustPawl(t, env, "migrate", "up", "--idempotency-ttl", "48h")
	mustPawl(t, env, "migrate", "up")
	if out := mustPawl(t, env, "migrate", "status"); strings.Contains(out, "pending") {
		t.Errorf("status after: %s", out)
	}
	conn, err := pgx.Connect(t.Context(), strings.TrimPrefix(env[0], "DATABASE_URL="))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var ttl time.Duration
	if err := conn.QueryRow(t.Context(), "select idempotency_ttl from pawl.setting").Scan(&ttl); err != nil || ttl != 48*time.Hour {
		t.Errorf("idempotency_ttl is %s (%v), want 48h", ttl, err)
	}
	mustPawl(t, env, "migrate", "set", "--plan-cache-mode", "auto", "--context-limit", "100")
	var mode string
	err = conn.QueryRow(t.Context(), "select array_to_string(proconfig, ',') from pg_proc where oid::regproc = 'pawl.fire'::regproc").Scan(&mode)
	if err != nil || !strings.Contains(mode, "plan_cache_mode=auto") {
		t.Errorf("fire has %s (%v)", mode, err)
	}
	printed := mustPawl(t, nil, "migrate", "print")
	var want bytes.Buffer
	if err := db.Print(&want); err != nil || printed != want.String() || !strings.Contains(printed, "-- +goose Up") {
		t.Errorf("print (%v) has %d bytes, want %d", err, len(printed), want.Len())
	}
	grants := mustPawl(t, nil, "migrate", "grants", "--role", `odd "role"`)
	if !strings.Contains(grants, `to "odd ""role""";`) {
		t.Errorf("a role's name is not quoted: %s", grants)
	}
	for range migrations {
		mustPawl(t, env, "migrate", "down")
	}
	if out := mustPawl(t, env, "migrate", "status"); strings.Count(out, "pending") != len(migrations) {
		t.Errorf("status after all are taken back: %s", out)
	}
	if _, stderr, code := pawl(t, env, "migrate", "up", "--plan-cache-mode", "nonsense"); code != 2 || !strings.Contains(stderr, "plan-cache-mode") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestClient uses the commands that talk to a service.
func TestClient(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url, "PAWL_ACTOR=carla"}

	if out := mustPawl(t, []string{"PAWL_SERVER="}, "workflow", "validate", flight); !strings.Contains(out, "but for its guards") {
		t.Errorf("validate without a server says %s", out)
	}
	faulty := filepath.Join(t.TempDir(), "faulty.yaml")
	text := "name: faulty\ninitial: A\nstates:\n  A: { on: { go: { target: NOWHERE, guard: '$.a ==' } }, after: { soon: B } }\n  B: {}\n"
	if err := os.WriteFile(faulty, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := pawl(t, env, "workflow", "validate", flight, faulty)
	for _, want := range []string{"/states/A/on/go/target", "/states/A/after/soon", "/states/B", "/states: no state is final"} {
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, no %q in %s", code, want, stderr)
		}
	}
	badGuard := filepath.Join(t.TempDir(), "guard.json")
	text = `{"name": "guard", "initial": "A", "states": {"A": {"on": {"go": {"target": "B", "guard": "$.a =="}}}, "B": {"type": "final"}}}`
	if err := os.WriteFile(badGuard, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := pawl(t, env, "workflow", "validate", badGuard); code != 1 || !strings.Contains(stderr, "/states/A/on/go/guard: is no SQL/JSON path") {
		t.Errorf("exit code %d: %s", code, stderr)
	}

	if out := mustPawl(t, env, "workflow", "apply", flight); !strings.Contains(out, "version 1 registered") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "workflow", "apply", flight); !strings.Contains(out, "version 1, unchanged") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "workflow", "list"); !strings.Contains(out, "flight-booking  1") {
		t.Error(out)
	}
	shown := mustPawl(t, env, "workflow", "show", "flight-booking")
	again := filepath.Join(t.TempDir(), "shown.json")
	if err := os.WriteFile(again, []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := mustPawl(t, env, "workflow", "apply", again); !strings.Contains(out, "version 1, unchanged") {
		t.Errorf("what show prints is another version: %s", out)
	}

	var created struct {
		ID      string
		Context json.RawMessage
	}
	out := mustPawl(t, env, "instance", "create", "flight-booking", "--json",
		"--context", "{flight_id: LH454, price: 9007199254740993}", "--business-key", "order-7", "--key", "k1")
	if err := json.Unmarshal([]byte(out), &created); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(created.Context), "9007199254740993") {
		t.Errorf("digits are lost: %s", created.Context)
	}
	if _, stderr, code := pawl(t, env, "instance", "fire", created.ID, "reserve", "--payload", "{price: 1}"); code != 1 ||
		!strings.Contains(stderr, "409 guard-rejected") || !strings.Contains(stderr, "it accepts: cancel, reserve") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if out := mustPawl(t, env, "instance", "fire", created.ID, "reserve", "--dry-run", "--payload", "{price: 9007199254740993}"); !strings.Contains(out, "RESERVED") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "fire", created.ID, "reserve", "--if-match", "1", "--payload", "{price: 9007199254740993}", "--reason", "by phone"); !strings.Contains(out, "version  2") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "get", created.ID, "--at-version", "1"); !strings.Contains(out, "QUOTED (active)") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "history", created.ID); !strings.Contains(out, "carla") || !strings.Contains(out, "by phone") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "actions", created.ID, "--evaluate"); !strings.Contains(out, "pay") {
		t.Error(out)
	}
	for i := range 3 {
		mustPawl(t, env, "instance", "create", "flight-booking", "--context", fmt.Sprintf("{flight_id: LH%d, price: 1}", i))
	}
	var listed []struct{ ID string }
	if err := json.Unmarshal([]byte(mustPawl(t, env, "instance", "list", "--limit", "0", "--json")), &listed); err != nil || len(listed) != 4 {
		t.Errorf("%d instances are listed (%v), want 4", len(listed), err)
	}
	if out := mustPawl(t, env, "instance", "list", "--state", "RESERVED"); !strings.Contains(out, created.ID) || strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, []string{"PAWL_SERVER=http://127.0.0.1:1"}, "instance", "get", created.ID); code != 1 || stderr == "" {
		t.Errorf("exit code %d without a service: %s", code, stderr)
	}
}

// TestTokens lets only bearers in.
func TestTokens(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens.json")
	// The hash is that of "letmein".
	text := `[{"sha256": "1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b63032", "subject": "carla", "scopes": ["read", "admin"]}]`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve", "--tokens", file)
	env := []string{"PAWL_SERVER=" + p.url}
	if _, stderr, code := pawl(t, env, "workflow", "list"); code != 1 || !strings.Contains(stderr, "401 unauthenticated") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	env = append(env, "PAWL_TOKEN=letmein")
	mustPawl(t, env, "workflow", "apply", flight)
	if out := mustPawl(t, env, "workflow", "list"); !strings.Contains(out, "carla") {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, env, "instance", "create", "flight-booking"); code != 1 || !strings.Contains(stderr, "403 forbidden") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestUsage shows what can be configured, and refuses what is not understood.
func TestUsage(t *testing.T) {
	t.Parallel()
	help := mustPawl(t, nil, "serve", "--help")
	for _, name := range []string{"DATABASE_URL", "PAWL_LISTEN", "PAWL_GUARD_TIMEOUT", "PAWL_LOCK_TIMEOUT", "PAWL_TENANT", "PAWL_LOG_LEVEL", "PAWL_API", "PAWL_WORKERS"} {
		if !strings.Contains(help, "$"+name) {
			t.Errorf("serve --help does not show %s", name)
		}
	}
	mustPawl(t, nil, "--version")
	for _, args := range [][]string{{}, {"nonsense"}, {"serve", "--nonsense"}, {"instance", "fire", "x"}} {
		if _, stderr, code := pawl(t, []string{"DATABASE_URL=postgres:///x"}, args...); code != 2 || stderr == "" {
			t.Errorf("pawl %v: exit code %d: %s", args, code, stderr)
		}
	}
	if _, stderr, code := pawl(t, []string{"DATABASE_URL="}, "serve"); code != 2 || !strings.Contains(stderr, "database-url") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
