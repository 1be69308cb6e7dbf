package main_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// watching is a running `pawl instance watch`, whose lines are read as they are printed.
type watching struct {
	*bounded.Process
	t     *testing.T
	lines *bounded.Lines
}

// watch starts the command, and kills it when the test ends.
func watch(t *testing.T, args ...string) *watching {
	t.Helper()
	w := &watching{t: t, lines: &bounded.Lines{}}
	w.Process = bounded.Start(t, bounded.Program{Path: program, Args: append([]string{"instance", "watch"}, args...), Stdout: w.lines})
	return w
}

// want reads the next line, which must match a pattern.
func (w *watching) want(pattern string) {
	w.t.Helper()
	if line := w.lines.Next(w.t); !regexp.MustCompile(pattern).MatchString(line) {
		w.t.Fatalf("the next line is %q, want %s", line, pattern)
	}
}

// wantEnd waits until the command ends, without another line and with exit code 0.
func (w *watching) wantEnd() {
	w.t.Helper()
	if err := w.Wait(w.t); err != nil {
		w.t.Errorf("it ends with %v", err)
	}
	if more := w.lines.Rest(); len(more) > 0 {
		w.t.Errorf("there are more lines: %q", more)
	}
}

// A watch continues after a restart of the service, and ends when the instance is final. An open stream
// does not delay a shutdown.
func TestInstanceWatch(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn)}
	first := start(t, env, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", first.url, flight)
	id := mustSend(t, http.StatusCreated, http.MethodPost, first.url+create, quote, "Idempotency-Key", "w").member("id").(string)
	// The proxy keeps its address while the service behind it is replaced.
	var address atomic.Pointer[url.URL]
	use := func(p *process) {
		u, err := url.Parse(p.url)
		if err != nil {
			t.Fatal(err)
		}
		address.Store(u)
	}
	use(first)
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(address.Load()) },
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
	})
	t.Cleanup(proxy.Close)
	server := "--server=" + proxy.URL
	all, asJSON := watch(t, server, id, "--from", "start"), watch(t, server, id, "--json", "--from=start")
	all.want(`  1  created -  - -> QUOTED  by anonymous$`)
	asJSON.want(`^\{"instance_id":"` + id + `","workflow":"flight-booking",.*"kind":"created"`)
	first.Signal(t, syscall.SIGTERM)
	if err := first.Wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	second := start(t, env, "serve")
	use(second)
	mustPawl(t, nil, "instance", "fire", "--server", second.url, "--actor", "clerk", id, "cancel")
	all.want(`  2  transition cancel  QUOTED -> CANCELLED \(cancelled\)  by clerk$`)
	asJSON.want(`"version":2`)
	all.wantEnd()
	asJSON.wantEnd()
	watch(t, server, id).wantEnd() // The instance is final.

	if _, stderr, code := pawl(t, nil, "instance", "watch", server, "nobody"); code != 1 || !strings.Contains(stderr, "instance-not-found") {
		t.Errorf("watching nobody: code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, nil, "instance", "watch", "--server=http://127.0.0.1:1", id); code != 1 || !strings.Contains(stderr, "refused") {
		t.Errorf("watching nowhere: code %d: %s", code, stderr)
	}
	open := mustSend(t, http.StatusCreated, http.MethodPost, second.url+create, quote, "Idempotency-Key", "o").member("id").(string)
	interrupted := watch(t, server, open, "--from=start")
	interrupted.want("QUOTED")
	interrupted.Signal(t, os.Interrupt)
	interrupted.wantEnd()
}
