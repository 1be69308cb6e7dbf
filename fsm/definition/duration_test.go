package definition_test

import (
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
		"1500ms": 1500 * time.Millisecond, "0h1s": time.Second, "007s": 7 * time.Second,
	} {
		if d, err := definition.ParseDuration(text); err != nil || d != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, d, err, want)
		}
	}
	for _, text := range []string{
		"", "0s", "0ms0d", "s", "1", "1.5h", "-1s", "+1s", " 1s", "1s ", "1s\n", "1 s", "1S", "1w", "1us", "1ns", "1y",
		"3651d", "3650d1ms", "87601h", "1000000000000ms1", "9999999999999s", "999999999999d", "99999999999999999999s",
		"PT1H", "١s", "1s,1m", "999999999999ms999999999999ms",
	} {
		if d, err := definition.ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", text, d)
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
}

// What a definition says must be what Postgres makes of it.
func TestDurationIsAnInterval(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	rapid.Check(t, func(rt *rapid.T) {
		d := rapid.Int64Range(1, int64(definition.MaxDuration/time.Millisecond)).Draw(rt, "ms")
		text := definition.FormatDuration(time.Duration(d) * time.Millisecond)
		if back, err := definition.ParseDuration(text); err != nil || back.Milliseconds() != d {
			rt.Fatalf("ParseDuration(%q) = %v, %v; want %d ms", text, back, err, d)
		}
		ms := bounded.Value[int64](t, pool, "select (extract(epoch from $1::text::interval) * 1000)::bigint", text)
		if ms != d {
			rt.Fatalf("%q is %d ms to Postgres, want %d", text, ms, d)
		}
	})
}
