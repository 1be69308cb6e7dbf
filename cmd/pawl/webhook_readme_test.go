package main_test

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// TestWebhookEndToEnd runs the README's webhook, with the example's receiver.
func TestWebhookEndToEnd(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the README's commands need curl")
	}
	blocks := readmeScripts(t, "Webhooks")
	if len(blocks) != 2 {
		t.Fatalf("the section has %d blocks, want 2", len(blocks))
	}
	run, receive, _ := strings.Cut(blocks[0], "\n")
	if run != "PAWL_WEBHOOK_ALLOW_PRIVATE=true make run" || !strings.Contains(receive, "go run ./examples/webhook-receiver") {
		t.Fatalf("the first block is %s", blocks[0])
	}
	receiver := filepath.Join(t.TempDir(), "receiver")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", receiver, "../../examples/webhook-receiver").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"PAWL_WEBHOOK_ALLOW_PRIVATE=true"}, "dev", "--database-url", dsn)
	// Pasted as it is printed, with what a shell makes something else of.
	pasted := dsn + "?"
	if strings.Contains(dsn, "?") {
		pasted = dsn + "&"
	}
	pasted += "application_name=receiver&timezone=UTC"
	receive = strings.NewReplacer("postgres://…", pasted, "go run ./examples/webhook-receiver", receiver).Replace(receive)
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", "exec env "+receive)
	cmd.Env = append(os.Environ(), "DATABASE_URL=", "WEBHOOK_SECRET=", "LISTEN="+address)
	cmd.Stderr = p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if a, err := send(t.Context(), http.MethodGet, "http://"+address, ""); err == nil && a.status == http.StatusOK {
			break
		} else if time.Now().After(until) {
			t.Fatalf("the receiver does not answer: %v %v", a, err)
		}
	}

	away := exec.CommandContext(t.Context(), receiver)
	away.Env = append(os.Environ(), "DATABASE_URL=postgres://127.0.0.1:1/x", "WEBHOOK_SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if out, err := away.CombinedOutput(); err == nil || strings.Count(string(out), "\n") != 1 || strings.Count(string(out), "refused") != 1 {
		t.Errorf("without a database the receiver says (%v) %s", err, out)
	}

	text := strings.NewReplacer("http://127.0.0.1:9090", "http://"+address, "bin/pawl", program).Replace(blocks[1])
	script := exec.CommandContext(t.Context(), "sh", "-eu")
	script.Stdin = strings.NewReader(text)
	script.Env = append(os.Environ(), "PAWL_SERVER="+p.url)
	out, err := script.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// A second is enough, as a rule; on a busy machine it takes what it takes.
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got := mustSend(t, http.StatusOK, http.MethodGet, "http://"+address, "").body
		if strings.Contains(got, `"state": "QUOTED"`) && strings.Contains(got, `"sequence": 1`) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("the receiver has %s after %s", got, out)
		}
	}
}
