-- FinalInstances reads a page of a pass over final instances. at_tenant is empty before the pass
-- begins and when it has ended.
-- name: FinalInstances :one
select
  f.at_tenant::text as at_tenant,
  f.at_workflow::text as at_workflow,
  f.at_status::text as at_status,
  f.at_id::uuid as at_id,
  f.ids::uuid[] as ids,
  coalesce(f.before, 'epoch')::timestamptz as before
from pawl.final_instances(
  @row_limit::integer, sqlc.narg('age')::interval, sqlc.narg('tenant')::text, sqlc.narg('workflows')::text[],
  @at_tenant::text, @at_workflow::text, @at_status::text, @at_id::uuid) f;

-- name: PurgeInstances :one
select pawl.purge_instances(@tenant::text, @ids::uuid[], @before::timestamptz)::uuid[] as purged;

-- name: PurgeArchived :one
select pawl.purge_archived(@tenant::text, @ids::uuid[], @before::timestamptz)::uuid[] as purged;
