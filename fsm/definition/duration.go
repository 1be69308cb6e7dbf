package definition

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// MaxDuration is the longest duration that a definition or a command may have: ten years of 365 days.
const MaxDuration = 10 * 365 * 24 * time.Hour

// A Duration is a length of time. Its months are those of a calendar, whose lengths differ, so that only the
// database adds them to a time. A year has 12 months.
type Duration struct {
	Months int
	// Exact comes on top of the months.
	Exact time.Duration
}

var (
	durationPattern = regexp.MustCompile(`^(?:[0-9]+(?:ms|mo|s|m|h|d|w|y))+$`)
	durationParts   = regexp.MustCompile(`([0-9]+)(ms|mo|s|m|h|d|w|y)`)
	// ISO 8601, with weeks beside other units, and with fractions of seconds down to milliseconds.
	isoPattern = regexp.MustCompile(
		`^P(?:([0-9]+)Y)?(?:([0-9]+)M)?(?:([0-9]+)W)?(?:([0-9]+)D)?(?:T(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+)(?:\.([0-9]{1,3}))?S)?)?$`)
	// isoUnits are those of the groups of isoPattern.
	isoUnits = []string{"y", "mo", "w", "d", "h", "m", "s", "ms"}

	durationMonths = map[string]int{"y": 12, "mo": 1}
	durationUnits  = map[string]time.Duration{
		"w": 7 * 24 * time.Hour, "d": 24 * time.Hour, "h": time.Hour, "m": time.Minute, "s": time.Second, "ms": time.Millisecond,
	}
)

var errCalendar = errors.New("months and years have no fixed length; write days")

// ParseDuration reads a duration of a fixed length, such as "90s", "1h30m", "2w" or "PT15M": whole numbers with
// the units ms, s, m, h, d (24 hours) and w, or the form of ISO 8601. It must be from 1 ms to MaxDuration; the
// error says what is wrong, and is fit for clients.
func ParseDuration(text string) (time.Duration, error) {
	d, err := ParseCalendarDuration(text)
	if err == nil && d.Months > 0 {
		err = fmt.Errorf("%q: %w", text, errCalendar)
	}
	if err != nil {
		return 0, err
	}
	return d.Exact, nil
}

// ParseDelay reads a duration as ParseDuration does, or one that is no time at all, such as "0s".
func ParseDelay(text string) (time.Duration, error) {
	if d, err := readDuration(text); err == nil && d == (Duration{}) {
		return 0, nil
	}
	return ParseDuration(text)
}

// ParseCalendarDuration reads a duration as ParseDuration does, and also months (mo) and years (y). A month counts
// as a twelfth of 365 days where the duration is compared with MaxDuration.
func ParseCalendarDuration(text string) (Duration, error) {
	d, err := readDuration(text)
	switch {
	case err != nil:
		return Duration{}, err
	case d == Duration{}:
		return Duration{}, fmt.Errorf("%q is no time at all: a duration must be at least 1ms", text)
	}
	return d, nil
}

// parseShift reads a duration with or without a sign, by which a time is moved; it may be no time at all.
func parseShift(text string) error {
	_, err := readDuration(strings.TrimPrefix(strings.TrimPrefix(text, "-"), "+"))
	return err
}

// readDuration reads a duration that may be no time at all.
func readDuration(text string) (Duration, error) {
	type part struct{ number, unit string }
	var parts []part
	if iso := isoPattern.FindStringSubmatch(text); iso != nil && !strings.HasSuffix(text, "P") && !strings.HasSuffix(text, "T") {
		iso[8] = (iso[8] + "000")[:3] // Of a fraction, as milliseconds.
		for i, unit := range isoUnits {
			parts = append(parts, part{iso[i+1], unit})
		}
	} else if durationPattern.MatchString(text) {
		for _, m := range durationParts.FindAllStringSubmatch(text, -1) {
			parts = append(parts, part{m[1], m[2]})
		}
	} else if strings.HasPrefix(text, "-") || strings.HasPrefix(text, "+") {
		return Duration{}, fmt.Errorf("%q has a sign: a duration must be at least 1ms, and is written without one", text)
	} else {
		return Duration{}, fmt.Errorf("%q is no duration: write one like 90s, 15m, 1d12h, 2w, 1mo or PT15M", text)
	}
	const month = MaxDuration / 120
	tooLong := fmt.Errorf("%q is longer than ten years (%s)", text, FormatDuration(MaxDuration))
	var d Duration
	for _, p := range parts {
		if p.number == "" {
			continue
		}
		months, size := durationMonths[p.unit], durationUnits[p.unit]
		n, err := strconv.ParseInt(p.number, 10, 64)
		if err != nil || n > int64(MaxDuration/max(size, time.Duration(months)*month)) {
			return Duration{}, tooLong
		}
		d.Months += int(n) * months
		d.Exact += time.Duration(n) * size
		if time.Duration(d.Months)*month+d.Exact > MaxDuration {
			return Duration{}, tooLong
		}
	}
	return d, nil
}

// String writes a duration in its canonical form, such as "1y2mo26h3m4s5ms".
func (d Duration) String() string {
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit string
	}{{d.Months / 12, "y"}, {d.Months % 12, "mo"}} {
		if part.n > 0 {
			fmt.Fprintf(&b, "%d%s", part.n, part.unit)
		}
	}
	return b.String() + FormatDuration(d.Exact)
}

// compare orders durations as PostgreSQL orders intervals: a month counts as 30 days.
func (d Duration) compare(other Duration) int {
	const month = 30 * 24 * time.Hour
	a, b := time.Duration(d.Months)*month+d.Exact, time.Duration(other.Months)*month+other.Exact
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return d.Months - other.Months
}

// FormatDuration writes a duration in its canonical form, such as "26h30m": the units are h, m, s and ms, the
// largest first. It writes no fraction of a millisecond.
func FormatDuration(d time.Duration) string {
	var b strings.Builder
	// No days: to PostgreSQL a day does not always have 24 hours.
	for _, unit := range []string{"h", "m", "s", "ms"} {
		size := durationUnits[unit]
		if n := d / size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit)
			d -= n * size
		}
	}
	return b.String()
}
