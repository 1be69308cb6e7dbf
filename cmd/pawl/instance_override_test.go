package main_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// An operator steps in, sees first what would happen, and is told what is refused.
func TestOverrideAndCancel(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	definition, err := os.ReadFile(flight)
	if err != nil {
		t.Fatal(err)
	}
	cancellable := filepath.Join(t.TempDir(), "flight.yaml")
	if err := os.WriteFile(cancellable, append([]byte("cancel: CANCELLED\n"), definition...), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"PAWL_SERVER=" + p.url, "PAWL_ACTOR=olga"}
	mustPawl(t, env, "workflow", "apply", cancellable)
	id := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "c").member("id").(string)

	to := []string{"instance", "override", id, "--to", "RESERVED", "--context-patch", "{seat: 12A}", "--if-match", "1", "--reason", "by phone"}
	for _, missing := range [][]string{
		{"instance", "override", id, "--to", "RESERVED", "--if-match", "1"},
		{"instance", "override", id, "--to", "RESERVED", "--reason", "x"},
		{"instance", "override", id, "--if-match", "1", "--reason", "x"},
		append(to, "--event", "reserve"),
		{"instance", "cancel", id},
	} {
		if _, _, code := pawl(t, env, missing...); code != 2 {
			t.Errorf("%v: exit code %d", missing, code)
		}
	}
	if out := mustPawl(t, env, append(to, "--dry-run")...); !strings.Contains(out, "RESERVED") {
		t.Error(out)
	}
	if out := mustPawl(t, env, to...); !strings.Contains(out, "RESERVED (active)") || !strings.Contains(out, `"seat":"12A"`) {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, env, to...); code != 1 || !strings.Contains(stderr, "412 version-mismatch") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	by := []string{"instance", "override", id, "--event", "pay", "--payload", "{amount: 1}", "--bypass", "guard", "--target", "PAYMENT_MISMATCH", "--if-match", "2", "--reason", "by phone", "--key", "k"}
	for range 2 { // The second time it is a replay.
		if out := mustPawl(t, env, by...); !strings.Contains(out, "PAYMENT_MISMATCH") {
			t.Error(out)
		}
	}
	if out := mustPawl(t, env, "instance", "cancel", id, "--reason", "changed her mind", "--if-match", "3"); !strings.Contains(out, "CANCELLED (cancelled)") {
		t.Error(out)
	}
	out := mustPawl(t, env, "instance", "history", id)
	for _, want := range []string{"forced", "cancelled", "olga", "by phone", "changed her mind"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %s in %s", want, out)
		}
	}
	if _, stderr, code := pawl(t, env, "instance", "cancel", id, "--reason", "again"); code != 1 || !strings.Contains(stderr, "409 transition-not-allowed") {
		t.Errorf("exit code %d: %s", code, stderr)
	}

	// By bulk, it is done for many.
	second := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "d").member("id").(string)
	if out := mustPawl(t, env, "bulk", "override", "--id", second, "--to", "RESERVED", "--context-patch", "{seat: 14F}", "--reason", "by mail"); !strings.Contains(out, "done: 1 applied") {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, env, "bulk", "cancel", "--id", second); code != 1 || !strings.Contains(stderr, "/reason") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if out, _, code := pawl(t, env, "bulk", "cancel", "--id", second, "--id", id, "--reason", "a strike"); code != 1 || !strings.Contains(out, "done: 1 applied, 1 refused") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out := mustPawl(t, env, "instance", "get", second); !strings.Contains(out, "CANCELLED (cancelled)") || !strings.Contains(out, `"seat":"14F"`) {
		t.Error(out)
	}
}
