package definition_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"1ms": time.Millisecond, "90s": 90 * time.Second, "15m": 15 * time.Minute, "24h": 24 * time.Hour,
		"7d": 7 * 24 * time.Hour, "1h30m": 90 * time.Minute, "1m1h": 61 * time.Minute, "3650d": definition.MaxDuration,
		"1500ms": 1500 * time.Millisecond, "0h1s": time.Second, "007s": 7 * time.Second, "0000000000000000000001s": time.Second,
		"2w": 14 * 24 * time.Hour, "1d12h": 36 * time.Hour, "0mo1s": time.Second,
		"PT1H": time.Hour, "P1W": 7 * 24 * time.Hour, "P1W1DT2H3M4S": 8*24*time.Hour + 2*time.Hour + 3*time.Minute + 4*time.Second,
		"PT1M": time.Minute, "PT0.5S": 500 * time.Millisecond, "PT1.025S": 1025 * time.Millisecond, "P0DT1S": time.Second,
	} {
		if d, err := definition.ParseDuration(text); err != nil || d != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, d, err, want)
		}
	}
	for text, words := range map[string]string{
		"": "no duration", "0s": "no time at all", "0ms0d": "no time at all", "PT0S": "no time at all", "s": "no duration", "1": "no duration",
		"1.5h": "no duration", "-1s": "sign", "+1s": "sign", "-P1D": "sign", " 1s": "no duration", "1s ": "no duration", "1s\n": "no duration",
		"1 s": "no duration", "1S": "no duration", "1us": "no duration", "1ns": "no duration", "1M": "no duration", "١s": "no duration",
		"1s,1m": "no duration", "1000000000000ms1": "no duration", "P": "no duration", "PT": "no duration", "P1DT": "no duration", "P1H": "no duration",
		"pt1h": "no duration", "P1D1W": "no duration", "PT1.0005S": "no duration",
		"3651d": "longer", "3650d1ms": "longer", "87601h": "longer", "9999999999999s": "longer", "999999999999d": "longer",
		"99999999999999999999s": "longer", "999999999999ms999999999999ms": "longer", "522w": "longer", "11y": "longer", "PT99999999999999999999S": "longer",
		strings.Repeat("3650d", 30): "longer", "9223372036854775807mo": "longer",
		"1mo": "no fixed length; write days", "1y": "no fixed length; write days", "P1M": "no fixed length; write days", "1d1mo": "no fixed length; write days",
	} {
		if d, err := definition.ParseDuration(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("ParseDuration(%q) = %v, %v; want an error that says %q", text, d, err, words)
		}
	}
}

func TestParseCalendarDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]definition.Duration{
		"1mo": {Months: 1}, "1y2mo": {Months: 14}, "1y": {Months: 12}, "10y": {Months: 120}, "P1Y2M3DT4H": {Months: 14, Exact: 76 * time.Hour},
		"P1M": {Months: 1}, "PT1M": {Exact: time.Minute}, "1mo1m": {Months: 1, Exact: time.Minute}, "119mo30d10h": {Months: 119, Exact: 730 * time.Hour},
	} {
		if d, err := definition.ParseCalendarDuration(text); err != nil || d != want {
			t.Errorf("ParseCalendarDuration(%q) = %v, %v; want %v", text, d, err, want)
		}
	}
	for _, text := range []string{"", "0mo", "0y0s", "-1mo", "121mo", "10y1mo", "10y1ms", "119mo30d10h1ms", "1Y"} {
		if d, err := definition.ParseCalendarDuration(text); err == nil {
			t.Errorf("ParseCalendarDuration(%q) = %v, want an error", text, d)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		time.Millisecond: "1ms", 90 * time.Second: "1m30s", time.Hour: "1h", 48 * time.Hour: "48h",
		definition.MaxDuration: "87600h", 1500 * time.Millisecond: "1s500ms",
	} {
		if got := definition.FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%v) = %q, want %q", d, got, want)
		}
	}
	exact := 26*time.Hour + 3*time.Minute + 4*time.Second + 5*time.Millisecond
	if got := (definition.Duration{Months: 14, Exact: exact}).String(); got != "1y2mo26h3m4s5ms" {
		t.Error(got)
	}
}

// What a definition says must be what Postgres makes of it, but that Postgres writes mon for a month.
func TestDurationIsAnInterval(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	rapid.Check(t, func(rt *rapid.T) {
		months := rapid.IntRange(0, 60).Draw(rt, "months")
		ms := rapid.Int64Range(1, int64(definition.MaxDuration/2/time.Millisecond)).Draw(rt, "ms")
		d := definition.Duration{Months: months, Exact: time.Duration(ms) * time.Millisecond}
		if back, err := definition.ParseCalendarDuration(d.String()); err != nil || back != d {
			rt.Fatalf("ParseCalendarDuration(%q) = %v, %v; want %v", d, back, err, d)
		}
		same := bounded.Value[bool](t, pool,
			"select replace($1, 'mo', 'mon')::interval = make_interval(months => $2::int, secs => $3::float8 / 1000)", d.String(), months, ms)
		if !same {
			rt.Fatalf("%q is another interval to Postgres", d)
		}
	})
}

// A definition and a value that a definition makes may have the same durations.
func TestDurationsAreThoseOfTheDatabase(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	units := []string{"ms", "s", "m", "h", "d", "w", "mo", "y"}
	rapid.Check(t, func(rt *rapid.T) {
		var text string
		if rapid.Bool().Draw(rt, "iso") {
			text = "P"
			for i, unit := range []string{"Y", "M", "W", "D", "T", "H", "M", "S"} {
				if unit == "T" && rapid.Bool().Draw(rt, "time") {
					text += "T"
				} else if unit != "T" && rapid.IntRange(0, 3).Draw(rt, "has") == 0 && (i < 4 || strings.Contains(text, "T")) {
					text += rapid.StringMatching(`[0-9]{1,4}`).Draw(rt, "number") + unit
				}
			}
		} else {
			for range rapid.IntRange(1, 3).Draw(rt, "parts") {
				text += rapid.SampledFrom([]string{"0", "1", "9", "10", "119", "120", "121", "730", "3649", "3650", "87600"}).Draw(rt, "number") +
					rapid.SampledFrom(units).Draw(rt, "unit")
			}
		}
		_, err := definition.ParseCalendarDuration(text)
		if known := bounded.Value[bool](t, pool, "select coalesce(pawl_private.duration($1) > interval '0', false)", text); known != (err == nil) {
			rt.Fatalf("%q: the database takes it: %v; the reader says %v", text, known, err)
		}
	})
}
