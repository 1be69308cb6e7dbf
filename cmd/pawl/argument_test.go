package main_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Secrets come from the environment or from files. On the command line, where every user of the machine sees them, they
// are refused, and no message shows them.
func TestSecretsAreNoArguments(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Authorization")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"items": []}`))
	}))
	t.Cleanup(server.Close)
	const webhooks = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for _, args := range [][]string{
		{"instance", "list", "--token", "hunter2"},
		{"workflow", "diagram", "w", "--token=hunter2", "--server", server.URL},
		{"serve", "--database-url", "postgres:///x", "--webhook-secret", webhooks},
	} {
		stderr := wantLine(t, nil, 2, []string{"must not be on the command line", "@FILE"}, args...)
		if strings.Contains(stderr, "hunter2") || strings.Contains(stderr, webhooks) {
			t.Errorf("pawl %v shows the secret: %s", args, stderr)
		}
	}
	file := writeFile(t, "token", "hunter2\n")
	list := []string{"instance", "list", "--server", server.URL}
	for name, run := range map[string]func(){
		"a variable":                    func() { mustPawl(t, []string{"PAWL_TOKEN=hunter2"}, list...) },
		"a variable that names a file":  func() { mustPawl(t, []string{"PAWL_TOKEN=@" + file}, list...) },
		"an argument that names a file": func() { mustPawl(t, nil, append(list, "--token", "@"+file)...) },
	} {
		if run(); bounded.Receive(t, "a request", asked) != "Bearer hunter2" {
			t.Errorf("%s is not sent", name)
		}
	}
	url := writeFile(t, "url", dbtest.NewDSN(t)+"\n")
	mustPawl(t, []string{"DATABASE_URL=@" + url}, "outbox", "status")
	mustPawl(t, nil, "outbox", "status", "--database-url", "@"+url)
	wantLine(t, nil, 2, []string{"no such file"}, append(list, "--token", "@"+file+".gone")...)
	wantLine(t, nil, 2, []string{"is empty"}, append(list, "--token", "@"+writeFile(t, "nothing", "\n"))...)
}
