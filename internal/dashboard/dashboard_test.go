package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// boardOf is a dashboard with two panels in a row.
const boardOf = `{"title": "t", "panels": [
  {"title": "All", "type": "row", "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}},
  {"title": "Rates", "type": "timeseries", "gridPos": {"x": 0, "y": 1, "w": 12, "h": 8}, "fieldConfig": {"defaults": {"unit": "s"}},
   "targets": [{"expr": "rate(a[$__rate_interval])", "legendFormat": "{{pool}} of {{ kind }}"}]},
  {"title": "Nothing", "type": "timeseries", "gridPos": {"x": 12, "y": 1, "w": 12, "h": 8}, "targets": [{"expr": "b", "legendFormat": ""}]}]}`

// Each panel asks as Grafana does, and shows what was answered; one without values is named.
func TestDraw(t *testing.T) {
	t.Parallel()
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("query")+" "+r.URL.Query().Get("step"))
		answer := `{"status": "success", "data": {"result": []}}`
		if strings.Contains(r.URL.RawQuery, "rate") {
			answer = `{"status": "success", "data": {"result": [{"metric": {"pool": "<p>", "kind": "k"}, "values": [[10, "1"], [20, "2"], [30, "NaN"], [40, "0.5"]]}]}}`
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	var board dashboard
	if err := json.Unmarshal([]byte(boardOf), &board); err != nil {
		t.Fatal(err)
	}
	from, to := time.Unix(0, 0), time.Unix(100, 0)
	faults := prometheus{server.URL, 10 * time.Second}.fill(t.Context(), &board, from, to)
	if text := errors.Join(faults...).Error(); text != `panel "Nothing": b shows nothing` {
		t.Errorf("the faults are %s", text)
	}
	if diff := cmp.Diff([]string{"rate(a[40s]) 10", "b 10"}, asked); diff != "" {
		t.Errorf("Prometheus was asked (-want +got):\n%s", diff)
	}
	picture := string(board.draw(from, to))
	// bounded: the decoder comes to the end of the text
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the picture is no XML: %v\n%s", err, picture)
		}
	}
	for _, want := range []string{">All<", ">Rates<", ">&lt;p&gt; of k<", ">2 s<", ">500 ms<", ">no data<"} {
		if !strings.Contains(picture, want) {
			t.Errorf("the picture lacks %s:\n%s", want, picture)
		}
	}
	// A value is missing, so the line is in two parts.
	if path := picture[strings.Index(picture, `<path d="M`):]; !strings.Contains(path, `class="line"`) || strings.Count(board.Panels[1].lines[0].path(
		func(at time.Time) float64 { return float64(at.Unix()) }, func(v float64) float64 { return v }), "M") != 2 {
		t.Errorf("the line has no gap:\n%s", picture)
	}
}

// The picture in the manual shows no panel that the dashboard does not have.
func TestPictureIsOfTheDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../deploy/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board dashboard
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	titles := map[string]bool{}
	for _, p := range board.Panels {
		titles[escape(p.Title)] = true
	}
	picture, err := os.ReadFile("../../docs/dashboard.svg")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`class="title">([^<]*)<`).FindAllStringSubmatch(string(picture), -1)
	if len(shown) < 20 {
		t.Errorf("it shows %d panels", len(shown))
	}
	for _, m := range shown {
		if !titles[m[1]] {
			t.Errorf("docs/dashboard.svg shows %q: run `make dashboard`", m[1])
		}
	}
}
