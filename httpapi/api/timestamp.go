package api

import (
	"fmt"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
)

// A Timestamp is a time in the form of the contract: RFC 3339, in answers always UTC with
// six decimals. See [fsm.FormatTime].
type Timestamp time.Time

// MarshalText writes the time in UTC with six decimals.
func (t Timestamp) MarshalText() ([]byte, error) { return []byte(fsm.FormatTime(time.Time(t))), nil }

// Bind parses a query parameter. The generated code calls this method if it exists. Its
// default would accept a date without a time, and would read an empty value as the year 1.
func (t *Timestamp) Bind(s string) error {
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("%.100q is not an RFC 3339 time such as 2026-03-01T09:30:00Z", s)
	}
	*t = Timestamp(v)
	return nil
}

// UnmarshalText parses a member of a body with the same rules as Bind.
func (t *Timestamp) UnmarshalText(text []byte) error { return t.Bind(string(text)) }
