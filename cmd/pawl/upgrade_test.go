package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// nap has a timeout that is soon due.
const nap = `{"name": "nap", "initial": "ASLEEP", "states": {"ASLEEP": {"after": {"1s": "AWAKE"}}, "AWAKE": {"type": "final", "outcome": "completed"}}}`

// A dump of the oldest supported PostgreSQL is restored on the newest one, and the service goes on there: also where the
// new server has given out fewer transaction ids than the old one.
func TestRestoreOnNewest(t *testing.T) {
	t.Parallel()
	from, to := dbtest.Major(t, localpg.OldestMajor), dbtest.Major(t, localpg.NewestMajor)
	client := map[string]string{}
	for _, name := range []string{"pg_dump", "pg_dumpall", "pg_restore", "psql"} {
		path, err := from.Path(name)
		if err != nil {
			t.Skipf("there is no %s: %v", name, err)
		}
		client[name] = path
	}
	for name, ids := range map[string]int{"near ids": 0, "far ids": 20_000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			call := func(name string, args ...string) {
				t.Helper()
				if out, err := bounded.Command(t, client[name], args...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", name, err, out)
				}
			}
			old := dbtest.PrivateWith(t, localpg.Config{Binaries: from})
			bounded.Exec(t, dialDSN(t, old.DSN()), fmt.Sprintf(
				"do $$ begin for n in 1..%d loop perform pg_current_xact_id(); commit; end loop; end $$", ids))
			kept := fillServer(t, old.DSN())

			dump, roles := filepath.Join(t.TempDir(), "dump"), filepath.Join(t.TempDir(), "roles.sql")
			call("pg_dump", "--format", "custom", "--file", dump, withName(t, old.DSN(), "", "app"))
			call("pg_dumpall", "--roles-only", "--file", roles, "--dbname", old.DSN())
			if err := old.Stop(bounded.Context(t)); err != nil {
				t.Fatal(err)
			}

			server := dbtest.PrivateWith(t, localpg.Config{Binaries: to})
			bounded.Exec(t, dialDSN(t, server.DSN()), "create database app")
			call("psql", "-X", "-q", "-f", roles, server.DSN()) // Role postgres is there already.
			restored := withName(t, server.DSN(), "", "app")
			call("pg_restore", "--exit-on-error", "--dbname", restored, dump)
			kept.goOn(t, server.DSN())
		})
	}
}

// pg_upgrade takes the oldest supported PostgreSQL to the newest one whose pg_upgrade is there, if need be to itself, and
// the service goes on.
func TestPgUpgrade(t *testing.T) {
	t.Parallel()
	from := dbtest.Major(t, localpg.OldestMajor)
	to := localpg.Binaries{}
	for major := localpg.OldestMajor; major <= localpg.NewestMajor; major++ {
		b, err := localpg.FindMajor(major)
		if _, lacks := os.Stat(filepath.Join(b.Dir, "pg_upgrade")); err == nil && lacks == nil {
			to = b
		}
	}
	if to.Dir == "" {
		t.Skip("no PostgreSQL of this machine has a pg_upgrade")
	}
	t.Logf("from %s to %s", from.Version, to.Version)
	if to.Major == from.Major {
		t.Logf("PostgreSQL %d has no pg_upgrade here", localpg.NewestMajor)
	}
	home := func(name string) string {
		dir, err := os.MkdirTemp("", "pawl-upgrade-"+name+"-") // Another user could not enter t.TempDir.
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	oldHome, newHome := home("old"), home("new")
	old := dbtest.PrivateWith(t, localpg.Config{Binaries: from, Dir: oldHome})
	kept := fillServer(t, old.DSN())
	blank := dbtest.PrivateWith(t, localpg.Config{Binaries: to, Dir: newHome})
	checksums := map[bool]string{}
	for _, s := range []*localpg.Server{old, blank} {
		checksums[s == blank] = bounded.Value[string](t, dialDSN(t, s.DSN()), "show data_checksums")
		if err := s.Stop(bounded.Context(t)); err != nil {
			t.Fatal(err)
		}
	}
	// The programs want to be the owner of the data, in a folder that the owner may write to.
	info, err := os.Stat(filepath.Join(newHome, "data"))
	if err != nil {
		t.Fatal(err)
	}
	work, owner := home("work"), &syscall.SysProcAttr{}
	if stat := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 {
		owner.Credential = &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
		if err := os.Chown(work, int(stat.Uid), int(stat.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	call := func(name string, args ...string) {
		t.Helper()
		cmd := bounded.Command(t, name, args...)
		cmd.Dir, cmd.SysProcAttr = work, owner
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	// From 18 on, initdb turns checksums on, and pg_upgrade wants both servers alike.
	if checksums[false] != checksums[true] {
		call(filepath.Join(from.Dir, "pg_checksums"), "--enable", "-D", filepath.Join(oldHome, "data"))
	}
	call(filepath.Join(to.Dir, "pg_upgrade"), "-U", "postgres", "-b", from.Dir, "-B", to.Dir,
		"-d", filepath.Join(oldHome, "data"), "-D", filepath.Join(newHome, "data"), "-s", work)
	kept.goOn(t, dbtest.PrivateWith(t, localpg.Config{Binaries: to, Dir: newHome}).DSN())
}

// withName returns the address of a database on a server, for a role, or for the same one.
func withName(t testing.TB, dsn, role, database string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if role != "" {
		u.User = url.UserPassword(role, "secret")
	}
	u.Path = "/" + database
	return u.String()
}

// A moved is a deployment that is to go on, on another server.
type moved struct {
	receiver *httptest.Server
	role     string

	mu    sync.Mutex
	hooks map[string][]int // By instance, the versions in the order in which the receiver first saw them.

	booking, other, sleeper string            // Ids.
	created                 answer            // What the booking's key replays.
	asked                   map[string]answer // By path.
}

// env is the environment of a service on a server.
func (m *moved) env(t testing.TB, dsn string) []string {
	return []string{"DATABASE_URL=" + withName(t, dsn, m.role, "app"), "PAWL_WEBHOOK_ALLOW_PRIVATE=true", "PAWL_SINKS=stdout:?from=start"}
}

// seen is the id of a step in a CloudEvent.
var seen = regexp.MustCompile(`"id":"([0-9a-f-]{36}):(\d+)(@\d+)?"`)

// fillServer makes a database with a deployment that has instances, timers, keys, a subscription and a consumer. It ends
// with steps that nobody was told of, and a timeout that is due soon.
func fillServer(t *testing.T, dsn string) *moved {
	t.Helper()
	bounded.Exec(t, dialDSN(t, dsn), "create database app")
	app := withName(t, dsn, "", "app")
	mustPawl(t, []string{"DATABASE_URL=" + app}, "migrate", "up")
	role, err := url.Parse(serviceRole(t, app))
	if err != nil {
		t.Fatal(err)
	}
	m := &moved{role: role.User.Username(), hooks: map[string][]int{}, asked: map[string]answer{}}
	m.receiver = httptest.NewServer(http.HandlerFunc(m.receive))
	t.Cleanup(m.receiver.Close)

	p := start(t, m.env(t, dsn), "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, writeFile(t, "nap.json", nap))
	mustPawl(t, nil, "subscription", "create", "--server", p.url, m.receiver.URL)
	m.created = mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1")
	m.booking = m.created.member("id").(string)
	mustSend(t, http.StatusOK, http.MethodPost, p.url+"/v1/instances/"+m.booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
	m.other = mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-2").member("id").(string)
	for _, path := range []string{"/v1/instances/" + m.other, "/v1/instances/" + m.other + "/history"} {
		m.asked[path] = mustSend(t, http.StatusOK, http.MethodGet, p.url+path, "")
	}
	m.await(t, m.booking, 2)
	m.await(t, m.other, 1)
	p.Match(t, regexp.MustCompile(`"id":"`+m.booking+`:2`))
	p.Signal(t, syscall.SIGTERM)
	if err := p.Wait(t); err != nil {
		t.Fatal(err)
	}

	owner := dialDSN(t, app)
	bounded.Exec(t, owner, `select pawl.fire_one($1, 'pay', '{"amount": 420, "payment_ref": "ch_1"}')`, m.booking)
	m.sleeper = bounded.Value[string](t, owner, "select id::text from pawl.create_one('nap', '{}')")
	return m
}

// goOn starts the service on the new server and shows that nothing is lost.
func (m *moved) goOn(t *testing.T, dsn string) {
	t.Helper()
	p := start(t, m.env(t, dsn), "serve")
	for path, before := range m.asked {
		now := mustSend(t, http.StatusOK, http.MethodGet, p.url+path, "")
		if now.body != before.body || now.header.Get("Etag") != before.header.Get("Etag") {
			t.Errorf("GET %s: %s %s, before the move %s %s", path, now.header.Get("Etag"), now.body, before.header.Get("Etag"), before.body)
		}
	}
	again := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1")
	if again.header.Get("Idempotent-Replayed") != "true" || again.body != m.created.body || again.header.Get("Etag") != m.created.header.Get("Etag") {
		t.Errorf("the key replays %v %s, before the move it gave %v %s", again.header, again.body, m.created.header, m.created.body)
	}
	cancel := p.url + "/v1/instances/" + m.other + "/actions/cancel"
	mustSend(t, http.StatusPreconditionFailed, http.MethodPost, cancel, "", "Idempotency-Key", "cancel-1", "If-Match", `"2"`)
	mustSend(t, http.StatusOK, http.MethodPost, cancel, "", "Idempotency-Key", "cancel-2", "If-Match", `"1"`)

	// What nobody was told of before, the timeout that is due, and what is new.
	for id, versions := range map[string]int{m.booking: 3, m.sleeper: 2, m.other: 2} {
		m.await(t, id, versions)
		p.Match(t, regexp.MustCompile(fmt.Sprintf(`"id":"%s:%d["@]`, id, versions)))
		var history struct{ Items []struct{ Version int } }
		got := mustSend(t, http.StatusOK, http.MethodGet, p.url+"/v1/instances/"+id+"/history", "")
		if err := json.Unmarshal([]byte(got.body), &history); err != nil {
			t.Fatal(err)
		}
		if len(history.Items) != versions {
			t.Errorf("history of %s: %s", id, got.body)
		}
	}
}

// receive is the webhook's endpoint.
func (m *moved) receive(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	step := seen.FindSubmatch(body)
	if step == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	id := string(step[1])
	version, _ := strconv.Atoi(string(step[2]))
	for _, known := range m.hooks[id] {
		if known == version {
			return
		}
	}
	m.hooks[id] = append(m.hooks[id], version)
}

// await waits until the receiver has seen all versions of an instance up to one, and wants them in order.
func (m *moved) await(t testing.TB, id string, version int) {
	t.Helper()
	var want []string
	for v := range version {
		want = append(want, strconv.Itoa(v+1))
	}
	bounded.Until(t, "the webhooks of "+id, func() string {
		m.mu.Lock()
		defer m.mu.Unlock()
		return strings.Trim(fmt.Sprint(m.hooks[id]), "[]")
	}, func(got string) bool { return got == strings.Join(want, " ") })
}
