package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// The README's story: there is no car, and the service is killed while it cancels the flight. Another process goes on, and
// each booking is cancelled once, the newest first.
func TestNoCar(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, readme, _ := strings.Cut(string(text), "```text\nAT ")
	readme, _, _ = strings.Cut(readme, "```")
	for _, cancelled := range []bool{false, true} {
		t.Run(fmt.Sprint("cancelled ", cancelled), func(t *testing.T) {
			t.Parallel()
			crash := bounded.NewGate(t, "the flight to be cancelled")
			agency := newAgency()
			var cancels atomic.Int32
			stub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodDelete || cancels.Add(1) > 1 {
					agency.ServeHTTP(w, r)
					return
				}
				if cancelled {
					agency.ServeHTTP(httptest.NewRecorder(), r)
				}
				crash.Pass()
			}))
			t.Cleanup(stub.Close)
			pool := dbtest.New(t)
			one := begin(t, dbtest.DSN(pool), stub.URL)
			trip := create(t, one, `{"city": "Lisbon", "car": "limousine"}`)
			crash.Reached()
			one.Kill(t)
			crash.Open()
			two := story.Serve(t, pawl, dbtest.DSN(pool))
			bounded.True(t, "the trip to be cancelled", func() bool {
				dbtest.Advance(t, pool, time.Second) // The claim of the dead process is over after a time.
				return two.Do(http.MethodGet, trip, nil).Body["state"] == "CANCELLED"
			})

			if got, want := agency.done(), []string{"hotel booked", "flight booked", "flight cancelled", "hotel cancelled"}; !slices.Equal(got, want) {
				t.Errorf("the stub did %q, want %q", got, want)
			}
			if got := cancels.Load(); got != 3 {
				t.Errorf("it was asked %d times to cancel, want 3", got)
			}
			if diff := cmp.Diff([]string{
				"created HOTEL", "result done:hotel FLIGHT", "result done:flight CAR", "result error:car UNDOING",
				"compensated compensated:flight UNDOING", "compensated compensated:hotel UNDOING", "result done:compensate CANCELLED",
			}, history(t, two, trip)); diff != "" {
				t.Errorf("the history differs (-want +got):\n%s", diff)
			}
			printed := two.Pawl("instance", "timeline", trip[strings.LastIndex(trip, "/")+1:])
			if diff := cmp.Diff(told(readme), told(printed)); diff != "" {
				t.Errorf("the timeline is not the one of the README (-README +got):\n%s%s", diff, printed)
			}
		})
	}
}

// told returns what a timeline tells, without the times, and whoever called.
func told(timeline string) (lines []string) {
	_, timeline, _ = strings.Cut(timeline, "\n") // The head.
	for line := range strings.Lines(timeline) {
		if fields := strings.Fields(line); len(fields) > 3 {
			lines = append(lines, caller.ReplaceAllString(strings.Join(fields[2:], " "), "an attempt:"))
		}
	}
	return lines
}

// caller is an attempt with the name of the machine that made it.
var caller = regexp.MustCompile(`attempt [0-9]+ by [^ ]+:`)

// begin starts the service, registers the workflow, and makes the connections to the stub.
func begin(t *testing.T, dsn, stub string, env ...string) *story.Service {
	t.Helper()
	s := story.Serve(t, pawl, dsn, env...)
	s.Pawl("workflow", "apply", "workflow.yaml")
	for _, place := range []string{"hotel", "flight", "car"} {
		s.Do(http.MethodPut, "/v1/connections/"+place, map[string]any{"base_url": stub + "/" + place, "auth": map[string]string{"type": "none"}}).
			Want(t, http.StatusCreated)
	}
	return s
}

func create(t *testing.T, s *story.Service, context string) (trip string) {
	t.Helper()
	return s.Do(http.MethodPost, "/v1/workflows/trip-saga/instances", `{"context": `+context+`}`, "Idempotency-Key", "trip").
		Want(t, http.StatusCreated).Header.Get("Location")
}

// history returns the kind, the event and the state of each step.
func history(t *testing.T, s *story.Service, location string) (steps []string) {
	t.Helper()
	for _, item := range s.Do(http.MethodGet, location+"/history", nil).Want(t, http.StatusOK).Body["items"].([]any) {
		step := item.(map[string]any)
		text := fmt.Sprint(step["kind"])
		if event := step["event"]; event != nil {
			text += fmt.Sprint(" ", event)
		}
		steps = append(steps, text+" "+fmt.Sprint(step["to"]))
	}
	return steps
}
