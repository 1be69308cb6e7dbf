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
	_, rest, _ := strings.Cut(blocks[0], "WEBHOOK_SECRET=")
	secret, run, _ := strings.Cut(rest, " ")
	if !strings.Contains(run, "go run ./examples/webhook-receiver") || !strings.Contains(blocks[0], "PAWL_WEBHOOK_ALLOW_PRIVATE=true make run") {
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
	cmd := exec.CommandContext(t.Context(), receiver)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+dsn, "WEBHOOK_SECRET="+secret, "LISTEN="+address)
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
