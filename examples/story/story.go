// Package story lets the examples' tests tell their stories over HTTP.
package story

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.yaml.in/yaml/v4"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Story is a service with one workflow.
type Story struct {
	t   testing.TB
	url string
}

// Answer is what the service said.
type Answer struct {
	Status int
	Header http.Header
	// Body is decoded; numbers are json.Number.
	Body map[string]any
	Text string
}

// Start serves the API on a database and registers a definition in YAML.
func Start(t testing.TB, pool *pgxpool.Pool, definition []byte) *Story {
	t.Helper()
	service := fsm.New(pool, fsm.Config{})
	handler, err := httpapi.New(httpapi.ServicesOf(service, nil), httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.Close()
		service.Close()
	})
	s := &Story{t: t, url: server.URL}
	var document map[string]any
	if err := yaml.Unmarshal(definition, &document); err != nil {
		t.Fatal(err)
	}
	s.Do(http.MethodPut, "/v1/workflows/"+document["name"].(string), document).Want(t, http.StatusCreated)
	return s
}

// URL returns where the service listens.
func (s *Story) URL() *url.URL {
	u, err := url.Parse(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	return u
}

// Do sends a request whose body, unless nil, is sent as JSON; a string is JSON already.
// Headers are pairs of name and value.
func (s *Story) Do(method, path string, body any, headers ...string) Answer {
	s.t.Helper()
	text, isText := body.(string)
	if body != nil && !isText {
		b, err := json.Marshal(body)
		if err != nil {
			s.t.Error(err)
			return Answer{}
		}
		text = string(b)
	}
	req, err := http.NewRequestWithContext(bounded.Context(s.t), method, s.url+path, strings.NewReader(text))
	if err != nil {
		s.t.Error(err)
		return Answer{}
	}
	if text != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Error(err)
		return Answer{}
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Error(err)
	}
	a := Answer{Status: res.StatusCode, Header: res.Header, Text: string(data)}
	if len(data) > 0 {
		d := json.NewDecoder(strings.NewReader(a.Text))
		d.UseNumber()
		if err := d.Decode(&a.Body); err != nil {
			s.t.Error(err)
		}
	}
	return a
}

// Fire sends an event.
func (s *Story) Fire(location, event, key, body string, headers ...string) Answer {
	s.t.Helper()
	return s.Do(http.MethodPost, location+"/actions/"+event, body, append([]string{"Idempotency-Key", key}, headers...)...)
}

// Await waits until an instance is in a state.
func (s *Story) Await(location, state string) Answer {
	s.t.Helper()
	return bounded.Until(s.t, location+" to be "+state, func() Answer { return s.Do(http.MethodGet, location, nil) },
		func(a Answer) bool { return a.Body["state"] == state })
}

// Want ends the test unless the answer has the status.
func (a Answer) Want(t testing.TB, status int) Answer {
	t.Helper()
	if a.Status != status {
		t.Fatalf("status %d, want %d: %s", a.Status, status, a.Text)
	}
	return a
}

// WantMember ends the test unless a member, reached by names, has the JSON value.
func (a Answer) WantMember(t testing.TB, value string, names ...string) Answer {
	t.Helper()
	var v any = a.Body
	for _, name := range names {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	got, err := json.Marshal(v)
	if err != nil || string(got) != value {
		t.Fatalf("%s is %s, want %s: %s", strings.Join(names, "."), got, value, a.Text)
	}
	return a
}
