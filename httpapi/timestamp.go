package httpapi

import (
	"fmt"
	"time"
)

// Timestamp is a time as the contract writes it: RFC 3339, UTC, with six decimals.
type Timestamp time.Time

// MarshalText writes the time with its microseconds, however many are zero.
func (t Timestamp) MarshalText() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format("2006-01-02T15:04:05.000000Z07:00")), nil
}

// Bind reads a query parameter. The generated binding looks for this method; without it
// a bare date would do, and nothing at all would be the year 1.
func (t *Timestamp) Bind(s string) error {
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("%q is no RFC 3339 time such as 2026-03-01T09:30:00Z", s)
	}
	*t = Timestamp(v)
	return nil
}

// UnmarshalText reads a member of a body, as Bind a parameter.
func (t *Timestamp) UnmarshalText(text []byte) error { return t.Bind(string(text)) }

func timestampOf(t *time.Time) *Timestamp {
	return (*Timestamp)(t)
}
