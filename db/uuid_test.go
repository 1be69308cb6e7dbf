package db_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestUUIDv7(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	ids := bounded.Column[uuid.UUID](t, pool, `
		select pawl_private.uuid_v7($1::timestamptz + n * interval '1 microsecond') from generate_series(0, 9999) n order by n`, noon)
	for i, id := range ids {
		at := noon.Add(time.Duration(i) * time.Microsecond)
		if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			t.Fatalf("%v is of version %v and variant %v", id, id.Version(), id.Variant())
		}
		var ms int64
		for _, b := range id[:6] {
			ms = ms<<8 | int64(b)
		}
		if ms != at.UnixMilli() {
			t.Fatalf("%v is of %v, want %v", id, time.UnixMilli(ms), at)
		}
	}
	// Their order is that of their times within a millisecond too.
	if !slices.IsSortedFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }) {
		t.Error("the ids are not in the order of their times")
	}
	// The rest is random, whatever the time.
	same := bounded.Column[uuid.UUID](t, pool, "select pawl_private.uuid_v7($1) from generate_series(1, 1000)", noon)
	slices.SortFunc(same, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	if len(slices.Compact(same)) != 1000 {
		t.Error("an id was made twice")
	}
}

func TestUUIDv7Floor(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if bad := bounded.Column[string](t, pool, `
		select at::text from (
			select timestamptz '2030-02-03 12:00:00.123Z' + n * interval '1 microsecond' as at from generate_series(0, 2000) n
		) x
		where pawl_private.uuid_v7(at) < pawl.uuid_v7_floor(at)
			or pawl_private.uuid_v7(at) >= pawl.uuid_v7_floor(at + interval '1 millisecond')
			or pawl.uuid_v7_floor(date_trunc('milliseconds', at)) <> pawl.uuid_v7_floor(at)`); len(bad) > 0 {
		t.Errorf("ids are beyond the bounds of their millisecond at %v", bad)
	}
	for at, want := range map[string]string{
		"1970-01-01 00:00:00Z":     "00000000-0000-0000-0000-000000000000",
		"1969-12-31 23:59:59.999Z": "00000000-0000-0000-0000-000000000000",
		"-infinity":                "00000000-0000-0000-0000-000000000000",
		"1970-01-01 00:00:00.001Z": "00000000-0001-0000-0000-000000000000",
		"12000-01-01 00:00:00Z":    "ffffffff-ffff-0000-0000-000000000000",
		"infinity":                 "ffffffff-ffff-0000-0000-000000000000",
	} {
		if got := bounded.Value[uuid.UUID](t, pool, "select pawl.uuid_v7_floor($1::text::timestamptz)", at); got.String() != want {
			t.Errorf("the floor of %s is %v, want %s", at, got, want)
		}
	}
}
