package db_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func backtest(t *testing.T, q queries.DBTX, definition string, ids ...uuid.UUID) []queries.BacktestRow {
	t.Helper()
	rows, err := queries.New(q).Backtest(t.Context(), queries.BacktestParams{
		Bytes:    4 << 20,
		Workflow: "door", Ids: ids, Definition: json.RawMessage(definition), Tenant: tenant,
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestBacktestAnswersInOrder(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 3)
	wantOutcome(t, fire(t, pool, tenant, command{id: ids[1], event: "open"})[0], "applied")
	asked := []uuid.UUID{ids[2], uuid.New(), ids[1], ids[0]}
	rows := backtest(t, pool, strings.ReplaceAll(door, "OPEN", "AJAR"), asked...)
	if len(rows) != 4 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, r := range rows {
		if r.ID != asked[i] || !r.Complete || r.Checks != nil || r.Steps != []int32{1, 0, 2, 1}[i] || (r.Difference != nil) != (i == 2) {
			t.Errorf("row %d is %+v", i, r)
		}
	}
	var difference map[string]any
	if err := json.Unmarshal(rows[2].Difference, &difference); err != nil {
		t.Fatal(err)
	}
	if difference["outcome"] != "elsewhere" || difference["would_be"] != "AJAR" || difference["to"] != "OPEN" {
		t.Errorf("it differs by %s", rows[2].Difference)
	}
}

func TestBacktestRefuses(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	for sql, code := range map[string]string{
		`select pawl.backtest('door', $1)`:                                         "PW400",
		`select pawl.backtest('door', $1, 1, '{}')`:                                "PW400",
		`select pawl.backtest('door', $1, 2)`:                                      "PW40W",
		`select pawl.backtest('window', $1, p_definition => '{"name": "window"}')`: "PW40W",
		`select pawl.backtest('door', $1, p_definition => '{"name": "window"}')`:   "PW42D",
		`select pawl.backtest('door', $1, p_definition => '[]')`:                   "PW42D",
		`select pawl.backtest('door', $1, p_definition => jsonb_set(definition, '{states,CLOSED,on,open,0,guard}', '"$."')) from pawl.workflow`: "PW42D",
	} {
		_, err := pool.Exec(t.Context(), sql, ids)
		wantCode(t, err, code)
	}
}

// What a back-test of a definition locks is free when its call ends, though the transaction
// goes on.
func TestBacktestKeepsNoLock(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	tx := begin(t, pool)
	backtest(t, tx, door, ids...)
	if n := bounded.Value[int](t, tx, `select count(*) from pg_locks where pid = pg_backend_pid() and relation = 'pawl.workflow'::regclass
		and mode not in ('AccessShareLock')`); n != 0 {
		t.Errorf("it holds %d locks on the workflows", n)
	}
	if n := bounded.Value[int](t, tx, "select count(*) from pawl.workflow"); n != 1 {
		t.Errorf("there are %d versions", n)
	}
	register(t, pool, strings.ReplaceAll(door, "OPEN", "AJAR"))
	commit(t, tx)
}

// The newest are read in the order of an index, few rows for a few ids, whatever is known of
// the table.
func TestNewestInstancesPlan(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2000)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	register(t, pool, flight)
	create(t, pool, tenant, slices.Repeat([]creation{{workflow: "flight-booking", context: `{"price": 1}`}}, 2000)...)
	conn := connect(t, pool)
	bounded.Exec(t, conn, "alter table pawl.instance set (autovacuum_enabled = off)")
	for _, state := range []string{"fresh", "analysed"} {
		if state == "analysed" {
			bounded.Exec(t, conn, "analyze pawl.instance")
		}
		p := &planned{Conn: conn, t: t, mode: "force_custom_plan"}
		rows, err := queries.New(p).NewestInstances(t.Context(), queries.NewestInstancesParams{
			Tenants: []string{tenant}, Workflow: "door", BeforeID: &ids[1500], RowLimit: 20,
		})
		if err != nil {
			t.Fatal(err)
		}
		var got []uuid.UUID
		for _, r := range rows {
			got = append(got, r.ID)
		}
		want := slices.Clone(ids[1480:1500])
		slices.Reverse(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", state, got, want)
		}
		p.wantBounded(100)
	}
}
