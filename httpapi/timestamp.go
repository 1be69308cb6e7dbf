package httpapi

import (
	"fmt"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
)

// Timestamp is a time as the contract writes it; see fsm.FormatTime.
type Timestamp time.Time

// MarshalText writes it.
func (t Timestamp) MarshalText() ([]byte, error) { return []byte(fsm.FormatTime(time.Time(t))), nil }

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
