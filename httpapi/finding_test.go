package httpapi_test

import (
	"net/http"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// found writes a finding of an instance, as a look would.
func (a *api) found(tenant, kind, workflow, state string, closed bool) (instance string) {
	a.t.Helper()
	return bounded.Value[string](a.t, a.pool, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, closed_at, detail)
		values ($1, pawl_private.uuid_v7(clock_timestamp()), $2, pawl_private.uuid_v7(clock_timestamp()), $3, $4, 2, pawl.now(), pawl.now(),
			case when $5 then pawl.now() end, '{"threshold": "stuck_after", "threshold_seconds": 7200}')
		returning instance_id::text`, tenant, kind, workflow, state, closed)
}

func TestFindings(t *testing.T) {
	t.Parallel()
	a := start(t)
	first := a.found(fsm.DefaultTenant, "slow", "order", "PACKING", false)
	second := a.found(fsm.DefaultTenant, "slow", "order", "PAYING", true)
	third := a.found(fsm.DefaultTenant, "orphaned", "parcel", "PACKING", false)
	dbtest.Tenants(t, a.pool, "other")
	a.found("other", "slow", "order", "PACKING", false)
	for query, want := range map[string][]string{
		"":                      {third, second, first},
		"?open=true":            {third, first},
		"?open=false":           {second},
		"?kind=slow":            {second, first},
		"?workflow=order":       {second, first},
		"?state=PACKING":        {third, first},
		"?instance_id=" + third: {third},
		"?kind=task-dead":       nil,
		"?open=true&workflow=order&state=PACKING&kind=slow": {first},
	} {
		got := a.get("/v1/findings"+query).want(http.StatusOK).each("items", "instance_id")
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", query, got, want)
			continue
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: %v, want %v", query, got, want)
			}
		}
	}
	if got := a.pages("/v1/findings?limit=1", "instance_id", nil); len(got) != 3 || got[0] != third || got[2] != first {
		t.Errorf("page by page: %v", got)
	}
	a.get("/v1/findings?open=true").wantAt("items.1.kind", "slow", "items.1.workflow", "order", "items.1.state", "PACKING", "items.1.version", "2",
		"items.1.closed_at", "null", "items.1.detail.threshold", "stuck_after", "items.1.detail.threshold_seconds", "7200")
	for _, query := range []string{"kind=odd", "open=perhaps", "instance_id=odd", "workflow=", "limit=-1", "odd=1"} {
		a.get("/v1/findings?"+query).want(http.StatusBadRequest, "malformed-request")
	}
	bounded.Exec(t, a.pool, `
		insert into pawl.finding (tenant_id, id, kind, workflow, opened_at, detail)
		values ('default', pawl_private.uuid_v7(clock_timestamp()), 'healing-paused', 'paused', pawl.now(), '{"open": 100}')`)
	a.get("/v1/findings?kind=healing-paused").wantAt("items.0.kind", "healing-paused", "items.0.workflow", "paused", "items.0.detail.open", "100",
		"items.0.instance_id", missing, "items.0.state", missing, "items.0.version", missing, "items.0.since", missing)
	a.get("/v1/findings?kind=heal-failed").want(http.StatusOK)
	service := fsmtest.On(t, a.pool, fsm.Config{})
	counts, err := finding.New(service.Service).Counts(t.Context())
	if err != nil || counts[finding.Slow] != 2 || counts[finding.Orphaned] != 1 || counts[finding.TaskDead] != 0 || len(counts) != len(finding.Kinds) {
		t.Errorf("open findings by kind: %v, %v", counts, err)
	}
}

// A caller who is bound to workflows is shown their findings alone.
func TestFindingsBehindTheBorder(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.found(fsm.DefaultTenant, "slow", "theirs", "S", false)
	mine := a.found(fsm.DefaultTenant, "slow", "mine", "S", false)
	bound := a.token(fsm.DefaultTenant, `{"subject": "s", "scopes": ["read"], "workflows": ["mine"]}`)
	if got := a.get("/v1/findings", as(bound)...).want(http.StatusOK).each("items", "instance_id"); len(got) != 1 || got[0] != mine {
		t.Errorf("findings: %v, want %s", got, mine)
	}
}
