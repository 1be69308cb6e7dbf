package db_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func putConnection(t testing.TB, q queries.DBTX, tenant, name string) {
	t.Helper()
	if _, err := queries.New(q).ConnectionPut(t.Context(), queries.ConnectionPutParams{
		Tenant: tenant, Name: name, BaseUrl: "https://example.com", Auth: raw(`{"type": "none"}`)[0], Headers: raw("{}")[0], Concurrency: 1,
	}); err != nil {
		t.Fatal(err)
	}
}

// report notes attempts to call a connection's service: + succeeded, - failed.
func report(t testing.TB, q queries.DBTX, tenant, name, attempts string) {
	t.Helper()
	p := queries.ConnectionReportParams{Rest: pgtype.Interval{Microseconds: 10e6, Valid: true}}
	for _, a := range attempts {
		p.Tenants, p.Names, p.Succeeded = append(p.Tenants, tenant), append(p.Names, name), append(p.Succeeded, a == '+')
	}
	if err := queries.New(q).ConnectionReport(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// circuit words a circuit: the failures in a row, and for how long it stays open.
func circuit(t testing.TB, pool *pgxpool.Pool, tenant, name string) string {
	t.Helper()
	return bounded.Value[string](t, pool, `
		select failures || coalesce(' ' || (circuit_open_until - pawl.now())::text, '') from pawl.connection where tenant_id = $1 and name = $2`, tenant, name)
}

// Five failures in a row open the circuit of one connection, each probe that fails doubles its rest up to ten minutes, and
// a success closes it.
func TestCircuitOfAConnection(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.Tenants(t, pool, "acme")
	putConnection(t, pool, "default", "psp")
	putConnection(t, pool, "default", "crm")
	putConnection(t, pool, "acme", "psp")
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC))
	want := func(state string) {
		t.Helper()
		if got := circuit(t, pool, "default", "psp"); got != state {
			t.Errorf("it is %s, want %s", got, state)
		}
	}
	report(t, pool, "default", "psp", "----+----")
	want("4")
	// Those that were under way when it opens do not keep it open for longer.
	report(t, pool, "default", "psp", "----")
	want("5 00:00:10")
	report(t, pool, "default", "psp", "-")
	want("5 00:00:10")
	for _, rest := range []string{"00:00:20", "00:00:40", "00:01:20", "00:02:40", "00:05:20", "00:10:00", "00:10:00"} {
		dbtest.Advance(t, pool, 10*time.Minute)
		report(t, pool, "default", "psp", "-")
		if got := circuit(t, pool, "default", "psp"); !strings.HasSuffix(got, " "+rest) {
			t.Errorf("after another probe it is %s, want a rest of %s", got, rest)
		}
	}
	report(t, pool, "default", "psp", "+")
	want("0")
	for _, of := range [][2]string{{"default", "crm"}, {"acme", "psp"}} {
		if got := circuit(t, pool, of[0], of[1]); got != "0" {
			t.Errorf("that of %s is %s", of, got)
		}
	}
	report(t, pool, "default", "nobody", "-----")

	// A change of the settings closes it.
	report(t, pool, "default", "psp", "-----")
	putConnection(t, pool, "default", "psp")
	want("0")
}

// A success of a service that is well writes nothing.
func TestSuccessOfAConnectionWritesNothing(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	putConnection(t, pool, "default", "psp")
	row := func() string {
		return bounded.Value[string](t, pool, "select ctid || ' ' || xmin from pawl.connection")
	}
	before := row()
	report(t, pool, "default", "psp", "+++")
	if now := row(); now != before {
		t.Errorf("the row is %s, and was %s", now, before)
	}
}

// A finding lets a connection rest, apart from what its circuit does, until the secret can be had.
func TestFindingOfAConnection(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	putConnection(t, pool, "default", "psp")
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC))
	find := func(finding string) string {
		t.Helper()
		if err := queries.New(pool).ConnectionFinding(t.Context(), queries.ConnectionFindingParams{
			Tenants: []string{"default", "default"}, Names: []string{"psp", "nobody"}, Findings: []string{finding, finding}, Rest: pgtype.Interval{Microseconds: 60e6, Valid: true},
		}); err != nil {
			t.Fatal(err)
		}
		endpoints, err := queries.New(pool).ConnectionEndpoints(t.Context(), queries.ConnectionEndpointsParams{Tenants: []string{"default", "default"}, Names: []string{"psp", "nobody"}})
		if err != nil || len(endpoints) != 1 {
			t.Fatal(endpoints, err)
		}
		return fmt.Sprintf("%s %t %s", circuit(t, pool, "default", "psp"), endpoints[0].Resting, bounded.Value[string](t, pool, "select coalesce(finding, '') from pawl.connection"))
	}
	if got := find(""); got != "0 false " {
		t.Errorf("without a finding it is %s", got)
	}
	if got := find("no key"); got != "0 00:01:00 true no key" {
		t.Errorf("with a finding it is %s", got)
	}
	report(t, pool, "default", "psp", "---------")
	if got := find(""); got != "0 false " {
		t.Errorf("after it, it is %s", got)
	}
	// An open circuit is not shortened.
	report(t, pool, "default", "psp", "-----")
	bounded.Exec(t, pool, "update pawl.connection set circuit_open_until = pawl.now() + interval '5 minutes'")
	if got := find("no key"); got != "5 00:05:00 true no key" {
		t.Errorf("with a finding it is %s", got)
	}
	putConnection(t, pool, "default", "psp")
	if got := find(""); got != "0 false " {
		t.Errorf("after a change it is %s", got)
	}
}

// Replicas that report about the same connections, each in another order, do not wait for one another for ever.
func TestReportsOfConnectionsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		putConnection(t, pool, "default", name)
	}
	errs := make(chan error, 8)
	for n := range cap(errs) {
		go func() {
			p := queries.ConnectionReportParams{Rest: anHour}
			f := queries.ConnectionFindingParams{Rest: anHour}
			for i := range names {
				name := names[(i*3+n)%len(names)]
				p.Tenants, p.Names, p.Succeeded = append(p.Tenants, "default"), append(p.Names, name), append(p.Succeeded, n%2 == 0)
				f.Tenants, f.Names, f.Findings = append(f.Tenants, "default"), append(f.Names, name), append(f.Findings, []string{"", "no key"}[i%2])
			}
			var err error
			for range 30 {
				if err = queries.New(pool).ConnectionReport(t.Context(), p); err != nil {
					break
				}
				if err = queries.New(pool).ConnectionFinding(t.Context(), f); err != nil {
					break
				}
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := bounded.Receive(t, "the end of the reports", errs); err != nil {
			t.Error(err)
		}
	}
}

// Of those who make a connection at once each is heard, one after the other.
func TestConnectionIsMadeOnce(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const callers = 8
	errs := make(chan error, callers)
	for range callers {
		go func() {
			_, err := queries.New(pool).ConnectionPut(t.Context(), queries.ConnectionPutParams{
				Tenant: "default", Name: "psp", BaseUrl: "https://example.com", Auth: raw(`{"type": "none"}`)[0], Headers: raw("{}")[0], Concurrency: 1,
			})
			errs <- err
		}()
	}
	for range callers {
		if err := bounded.Receive(t, "the end of a put", errs); err != nil {
			t.Error(err)
		}
	}
	if got := bounded.Value[string](t, pool, `
		select format('%s %s', (select version from pawl.connection), (select count(*) filter (where before is null) || ' ' || count(*) from pawl.audit where action = 'connection.put'))`); got != "8 1 8" {
		t.Errorf("version, acts of making and acts are %s", got)
	}
}
