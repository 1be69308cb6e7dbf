package insight_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/insight"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Of sixty claims, forty were paid after 10 s and twenty refused after 100 s.
func sixty(h history) {
	ids := h.make(60)
	h.fire(ids, "check", time.Second)
	h.fire(ids[:40], "pay", 11*time.Second)
	h.fire(ids[40:], "refuse", 101*time.Second)
}

// within wants seconds to be near a number, which are negative for null.
func within(t *testing.T, what string, got *float64, want, error float64) {
	t.Helper()
	if (got == nil) != (want < 0) || got != nil && math.Abs(*got-want) > error {
		value := any("null")
		if got != nil {
			value = *got
		}
		t.Errorf("%s is %v, want %v", what, value, want)
	}
}

// checked makes a claim that is checked at a time, and folds it.
func checked(t *testing.T, pool *pgxpool.Pool, at time.Time) uuid.UUID {
	t.Helper()
	h := history{t, pool, at}
	ids := h.make(1)
	h.fire(ids, "check", 0)
	folded(t, pool)
	return ids[0]
}

// A forecast counts the time that was spent in the state.
func TestForecast(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	later := begin.Add(time.Hour)
	service, pool := claims(t, func(h history) {
		h.at = begin
		sixty(h)
		dbtest.SetClock(t, h.pool, later)
	})
	id := checked(t, pool, later)
	forecast := func(after time.Duration) insight.Forecast {
		t.Helper()
		dbtest.SetClock(t, pool, later.Add(after))
		got, err := service.Forecast(t.Context(), "default", id)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	f := forecast(0)
	if f.State != "CHECK" || f.Sample != 60 || f.Spent != 0 || len(f.Next) != 2 || len(f.Outcomes) != 2 {
		t.Fatalf("%+v", f)
	}
	if f.Next[0].State != "PAID" || f.Next[1].State != "LOST" || f.Outcomes[0].State != "PAID" || f.Outcomes[1].Status != "failed" {
		t.Errorf("%+v", f)
	}
	within(t, "the chance of PAID", &f.Next[0].Chance, 2.0/3, 0.001)
	within(t, "the chance to end in LOST", &f.Outcomes[1].Chance, 1.0/3, 0.001)
	within(t, "p50 of PAID", f.Next[0].P50, 10, 0.5)
	within(t, "p90 of LOST", f.Next[1].P90, 100, 5)
	within(t, "p50", f.P50, 10, 0.5)
	within(t, "p90", f.P90, 100, 5)
	if diff := cmp.Diff(f, forecast(0)); diff != "" {
		t.Errorf("the same history gives another forecast:\n%s", diff)
	}

	f = forecast(50 * time.Second)
	if len(f.Next) != 1 || f.Next[0].State != "LOST" || f.Spent != 50 {
		t.Fatalf("after 50 s only LOST is left: %+v", f)
	}
	within(t, "the chance of LOST after 50 s", &f.Next[0].Chance, 1, 0)
	within(t, "p50 after 50 s", f.P50, 50, 5)
	within(t, "p90 after 50 s", f.Next[0].P90, 50, 5)

	f = forecast(time.Hour)
	within(t, "p50 of who is here for longer than anyone", f.P50, -1, 0)
	within(t, "p90 of who is here for longer than anyone", f.P90, -1, 0)
	if len(f.Next) != 2 {
		t.Fatalf("%+v", f)
	}
	within(t, "p50 of a next state", f.Next[0].P50, -1, 0)
	within(t, "the chance of PAID after an hour", &f.Next[0].Chance, 2.0/3, 0.001)

	t.Run("refused", func(t *testing.T) {
		for name, c := range map[string]struct {
			tenant string
			id     uuid.UUID
			kind   fsm.Kind
		}{
			"another tenant": {"other", id, fsm.InstanceNotFound},
			"final":          {"default", bounded.Value[uuid.UUID](t, pool, "select id from pawl.instance where state = 'PAID' limit 1"), fsm.InstanceFinal},
		} {
			if _, err := service.Forecast(t.Context(), c.tenant, c.id); !errors.Is(err, c.kind) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("another tenant's history", func(t *testing.T) {
		bounded.Exec(t, pool, "select pawl.tenant_put('other')")
		other := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('claim', p_tenant => 'other')).id")
		folded(t, pool)
		if _, err := service.Forecast(t.Context(), "other", other); !errors.Is(err, fsm.TooFewSamples) {
			t.Errorf("a tenant's forecast comes from another's history: %v", err)
		}
	})
	t.Run("a way of several steps", func(t *testing.T) {
		dbtest.SetClock(t, pool, later)
		open := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('claim')).id")
		folded(t, pool)
		f, err := service.Forecast(t.Context(), "default", open)
		if err != nil || len(f.Next) != 1 || f.Next[0].State != "CHECK" || len(f.Outcomes) != 2 {
			t.Fatalf("%+v, %v", f, err)
		}
		within(t, "p50 of two steps", f.P50, 11, 0.55)
		within(t, "p90 of two steps", f.P90, 101, 5.1)
		within(t, "the chance of PAID", &f.Outcomes[0].Chance, 2.0/3, 0.001)
	})
}

// Visits that have not ended count: they last longer than 50 s, so that the short ones are rarer than they seem.
func TestOpenVisitsAreCensored(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	later := begin.Add(time.Hour)
	service, pool := claims(t, func(h history) {
		h.at = begin
		sixty(h)
		h.at = later.Add(-50 * time.Second)
		h.fire(h.make(60), "check", 0)
		dbtest.SetClock(t, h.pool, later)
	})
	f, err := service.Forecast(t.Context(), "default", checked(t, pool, later))
	if err != nil || len(f.Next) != 2 {
		t.Fatalf("%+v, %v", f, err)
	}
	// 40 of the 120 that lasted for 10 s were paid then. All that are left at 100 s are refused.
	if f.Next[0].State != "LOST" {
		t.Errorf("%+v", f.Next)
	}
	within(t, "the chance of LOST", &f.Next[0].Chance, 2.0/3, 0.001)
	within(t, "p50", f.P50, 100, 5)
}

// With 29 visits there is no forecast, and with 30 there is one.
func TestTooFewSamples(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	service, pool := claims(t, func(h history) {
		h.at = begin
		h.fire(h.make(29), "check", time.Second)
	})
	h := history{t, pool, begin}
	ids := h.make(2)
	folded(t, pool)
	if _, err := service.Forecast(t.Context(), "default", ids[0]); !errors.Is(err, fsm.TooFewSamples) {
		t.Errorf("29 visits: %v", err)
	}
	h.fire(ids[1:], "check", time.Second)
	folded(t, pool)
	if f, err := service.Forecast(t.Context(), "default", ids[0]); err != nil || f.Sample != 30 {
		t.Errorf("30 visits: %+v, %v", f, err)
	}
}

// Each night the visits of the day before are scored by the quantiles of the days before that.
func TestForecastsAreScored(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	service, pool := claims(t, func(h history) {
		h.at = begin
		ids := h.make(40)
		for i, after := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second} {
			h.fire(ids[i*10:(i+1)*10], "check", after)
		}
		// On the next day eight are quick, and two slower than any before.
		h.at = begin.AddDate(0, 0, 1)
		ids = h.make(10)
		h.fire(ids[:8], "check", time.Second)
		h.fire(ids[8:], "check", time.Minute)
	})
	id := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('claim')).id")
	folded(t, pool)
	f, err := service.Forecast(t.Context(), "default", id)
	if err != nil || f.Coverage != nil {
		t.Errorf("before the night: %+v, %v", f.Coverage, err)
	}
	dbtest.SetClock(t, pool, begin.AddDate(0, 0, 2))
	bounded.UntilSQL(t, pool, "select count(*) > 0 from pawl.forecast_score")
	f, err = service.Forecast(t.Context(), "default", id)
	if err != nil || f.Coverage == nil || *f.Coverage != (insight.Coverage{Visits: 10, P50: 0.8, P90: 0.8}) {
		t.Errorf("after the night: %+v, %v", f.Coverage, err)
	}
}
