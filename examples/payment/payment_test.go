package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/examples/story"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// pawl is the path of the program.
var pawl string

func TestMain(m *testing.M) {
	programs, remove := bounded.Build("../../cmd/pawl")
	pawl = programs[0]
	code := m.Run()
	remove()
	dbtest.Exit(code)
}

// short is the definition with times in which nobody waits long.
func short(t *testing.T) (file string) {
	t.Helper()
	text, err := os.ReadFile("workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	definition := string(text)
	for long, short := range map[string]string{
		"timeout: 10s": "timeout: 500ms", "base: 1s, cap: 10s": "base: 10ms, cap: 10ms",
		"every: [5s, 30s, 5m]": "every: [1s]", "absent_after: 1m": "absent_after: 100ms",
	} {
		if strings.Count(definition, long) != 1 {
			t.Fatalf("the definition has %q not once", long)
		}
		definition = strings.Replace(definition, long, short, 1)
	}
	file = filepath.Join(t.TempDir(), "workflow.yaml")
	if err := os.WriteFile(file, []byte(definition), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// start starts the service, with the definition and a connection to a provider.
func start(t *testing.T) (*provider, *story.Service) {
	t.Helper()
	provider := newProvider()
	stub := httptest.NewServer(provider)
	t.Cleanup(stub.Close)
	s := story.Serve(t, pawl, dbtest.NewDSN(t))
	s.Pawl("workflow", "apply", short(t))
	s.Do(http.MethodPut, "/v1/connections/psp", map[string]any{"base_url": stub.URL, "auth": map[string]string{"type": "none"}}).Want(t, http.StatusCreated)
	return provider, s
}

// create begins a payment, whose order has the name of the card.
func create(t *testing.T, s *story.Service, card string) (payment string) {
	t.Helper()
	return s.Do(http.MethodPost, "/v1/workflows/payment/instances", fmt.Sprintf(`{"context": {"order": %q, "amount": 420, "card": %[1]q}}`, card),
		"Idempotency-Key", card).Want(t, http.StatusCreated).Header.Get("Location")
}

// The cards of the README, each with how it ends: whatever becomes of the calls, a card is charged once or not at all.
func TestPayment(t *testing.T) {
	t.Parallel()
	provider, s := start(t)
	for card, want := range map[string]struct {
		state, event string
		// What came of each attempt.
		attempts []string
		// How often the provider was asked under each key, and what it has charged.
		charged string
	}{
		"good":     {"PAID", "done:charge", []string{"answered 201"}, "paid"},
		"declined": {"DECLINED", "error:charge", []string{"answered 402"}, "declined"},
		// The charge was made, and looking finds it.
		"slow": {"PAID", "done:charge", []string{"lost", "lost", "look answered 200"}, "paid"},
		// The provider answers the key with its 500 for ever. Looking finds nothing, so a fresh key goes out.
		"broken": {"PAID", "done:charge", []string{"answered 500", "answered 500", "look answered 200", "fresh answered 201"}, "paid"},
	} {
		t.Run(card, func(t *testing.T) {
			t.Parallel()
			payment := create(t, s, card)
			id := payment[strings.LastIndex(payment, "/")+1:]
			s.Await(payment, want.state)

			var made []charge
			for _, c := range provider.made() {
				if c.Order == card {
					made = append(made, c)
				}
			}
			if len(made) != 1 || made[0].Status != want.charged || made[0].Amount != 420 {
				t.Errorf("the provider has %+v, want one charge that is %s", made, want.charged)
			}
			if want.state == "PAID" {
				s.Do(http.MethodGet, payment, nil).WantMember(t, fmt.Sprintf("%q", made[0].ID), "context", "charge")
			}
			var events []string
			for _, step := range items(t, s, payment+"/history") {
				events = append(events, fmt.Sprint(step["event"]))
			}
			if !slices.Equal(events, []string{"<nil>", want.event}) {
				t.Errorf("the events are %q, want %s once", events, want.event)
			}
			tasks := items(t, s, "/v1/tasks?instance_id="+id)
			if len(tasks) != 1 {
				t.Fatalf("there are %d tasks: %v", len(tasks), tasks)
			}
			var attempts []string
			for _, a := range s.Do(http.MethodGet, fmt.Sprint("/v1/tasks/", tasks[0]["id"]), nil).Want(t, http.StatusOK).Body["attempts"].([]any) {
				attempt := a.(map[string]any)
				text := fmt.Sprint(attempt["result"])
				if attempt["reconciling"] == true {
					text = "look " + text
				}
				if strings.HasSuffix(fmt.Sprint(attempt["key"]), "-2") {
					text = "fresh " + text
				}
				if status := attempt["status"]; status != nil {
					text += fmt.Sprint(" ", status)
				}
				attempts = append(attempts, text)
			}
			looks := slices.Contains(attempts, "look answered 200")
			if timeline := s.Pawl("instance", "timeline", id); strings.Contains(timeline, ", reconciling: answered: 200") != looks {
				t.Errorf("the timeline does not tell calls from looks:\n%s", timeline)
			}
			if diff := cmp.Diff(want.attempts, attempts); diff != "" {
				t.Errorf("the attempts differ (-want +got):\n%s", diff)
			}
		})
	}
}

// The customer leaves while the card is charged: the charge is found all the same, and refunded.
func TestCustomerLeaves(t *testing.T) {
	t.Parallel()
	provider, s := start(t)
	payment := create(t, s, "slow")
	bounded.True(t, "the charge", func() bool { return len(provider.made()) == 1 })
	s.Fire(payment, "cancel", "cancel", `{}`).Want(t, http.StatusOK).WantMember(t, `"CANCELLING"`, "state")
	s.Await(payment, "CANCELLED")
	if made := provider.made(); len(made) != 1 || made[0].Status != "refunded" {
		t.Errorf("the provider has %+v, want one charge that is refunded", made)
	}
}

// items returns the items of a list.
func items(t *testing.T, s *story.Service, path string) (list []map[string]any) {
	t.Helper()
	for _, item := range s.Do(http.MethodGet, path, nil).Want(t, http.StatusOK).Body["items"].([]any) {
		list = append(list, item.(map[string]any))
	}
	return list
}
