package outbox_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// What the database says of what this package says too.
const (
	// kindsInSQL are the kinds of steps that the domain of history's column allows.
	kindsInSQL = `
		select array_agg(m[1])
		from pg_catalog.pg_constraint c
		cross join lateral regexp_matches(pg_catalog.pg_get_constraintdef(c.oid), '''([^'']+)''', 'g') m
		where c.contypid = 'pawl.kind'::regtype and c.conname = 'kind_is_known'`
	// typeInSQL is the type of the CloudEvent of a kind, as deliveries are shown with it.
	typeInSQL = "select pawl_private.message_type($1)"
)

// Each kind of step has one type of CloudEvent, in Go and in SQL.
func TestTypesAsInTheDatabase(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	kinds := bounded.Value[[]string](t, pool, kindsInSQL)
	slices.Sort(kinds)
	if known := slices.Sorted(maps.Keys(outbox.Types)); len(kinds) == 0 || !slices.Equal(kinds, known) {
		t.Errorf("the database has the kinds %v, Go has types for %v", kinds, known)
	}
	for _, kind := range kinds {
		if got := bounded.Value[string](t, pool, typeInSQL, kind); got != outbox.Types[kind] {
			t.Errorf("the type of %s is %q in SQL and %q in Go", kind, got, outbox.Types[kind])
		}
	}
}
