package insight

import (
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/fsm"
)

// Service reads what the sums say. It may be used by several goroutines at once.
type Service struct{ fsm *fsm.Service }

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service { return &Service{fsm: service} }

const day = 24 * time.Hour

// dayOf returns the day of a time, in UTC.
func dayOf(t time.Time) time.Time { return t.UTC().Truncate(day) }

func dateOf(t time.Time) pgtype.Date { return pgtype.Date{Time: t, Valid: true} }

// seconds returns the geometric middle of a bucket; see pawl_private.dwell_bucket. The middle of less than a millisecond
// is 0.
func seconds(bucket int32) float64 {
	if bucket == 0 {
		return 0
	}
	return math.Pow(1.1, float64(bucket)-0.5) / 1000
}

// mean returns how many seconds each of some visits lasted, which lasted so many milliseconds together.
func mean(milliseconds, visits int64) float64 {
	if visits == 0 {
		return 0
	}
	return float64(milliseconds) / float64(visits) / 1000
}

// asOf is a time that pawl.insight_as_of returned; nil if nothing was folded yet.
func asOf(t time.Time) *time.Time {
	if t.Unix() == 0 {
		return nil
	}
	return &t
}
