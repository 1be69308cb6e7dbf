package definition

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// MaxDuration is the longest duration that a definition or a command may have: ten years of 365 days.
const MaxDuration = 10 * 365 * 24 * time.Hour

var (
	durationPattern = regexp.MustCompile(`^([0-9]{1,12}(ms|s|m|h|d))+$`)
	durationParts   = regexp.MustCompile(`([0-9]+)(ms|s|m|h|d)`)
	durationUnits   = []struct {
		name string
		size time.Duration
	}{
		{"d", 24 * time.Hour},
		{"h", time.Hour},
		{"m", time.Minute},
		{"s", time.Second},
		{"ms", time.Millisecond},
	}
)

// ParseDuration reads a duration such as "90s", "1h30m" or "7d": whole numbers with the units ms, s,
// m, h and d, where a day has 24 hours. It must be from 1 ms to MaxDuration; the error says what is
// wrong, and is fit for clients.
func ParseDuration(text string) (time.Duration, error) {
	if !durationPattern.MatchString(text) {
		return 0, fmt.Errorf("%q is no duration: write one like 90s, 15m or 24h", text)
	}
	var sum time.Duration
	for _, part := range durationParts.FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration: %w", text, err)
		}
		for _, unit := range durationUnits {
			if unit.name != part[2] {
				continue
			}
			if n > int64(MaxDuration/unit.size) {
				return 0, fmt.Errorf("%q is longer than %s", text, FormatDuration(MaxDuration))
			}
			sum += time.Duration(n) * unit.size
		}
	}
	switch {
	case sum == 0:
		return 0, fmt.Errorf("%q is no time at all: a duration must be at least 1ms", text)
	case sum > MaxDuration:
		return 0, fmt.Errorf("%q is longer than %s", text, FormatDuration(MaxDuration))
	}
	return sum, nil
}

// FormatDuration writes a duration in its canonical form, such as "26h30m": the units are h, m, s and ms, the
// largest first. It writes no fraction of a millisecond.
func FormatDuration(d time.Duration) string {
	var b strings.Builder
	// No days: to PostgreSQL a day does not always have 24 hours.
	for _, unit := range durationUnits[1:] {
		if n := d / unit.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.size
		}
	}
	return b.String()
}
