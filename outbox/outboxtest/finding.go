package outboxtest

import (
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// FindSQL opens a finding of a kind about an instance, as a look does.
const FindSQL = `
	insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
	select i.tenant_id, pawl_private.uuid_v7(pawl.now()), $2, i.id, i.workflow, i.state, i.version, i.state_changed_at, pawl.now(),
		'{"threshold": "stuck_after", "threshold_seconds": 3600}'
	from pawl.instance i
	where i.id = $1
	returning id`

// Find opens a finding about an instance, which is slow. It returns the id of its message.
func Find(t testing.TB, q queries.DBTX, instance uuid.UUID) string {
	t.Helper()
	return "finding:" + bounded.Value[uuid.UUID](t, q, FindSQL, instance, "slow").String()
}
