-- name: FindingLook :one
select f.opened::bigint as opened, f.closed::bigint as closed, f.more::boolean as more
from pawl.finding_look(p_limit => @row_limit::integer, p_every => @every::interval) f;

-- CountFindings counts the open findings of the deployment, up to a number of each kind.
-- name: CountFindings :many
select k.kind::text as kind, (
  select count(*)
  from (select from pawl.finding f where f.closed_at is null and f.kind = k.kind limit @most::bigint) f
)::bigint as findings
from unnest(@kinds::text[]) as k (kind);

-- ListFindings must be planned for its arguments.
-- name: ListFindings :many
select f.*
from pawl.finding f
where f.tenant_id = @tenant_id
  and (sqlc.narg('before_id')::uuid is null or f.id < sqlc.narg('before_id'))
  and (sqlc.narg('kind')::text is null or f.kind = sqlc.narg('kind'))
  and (sqlc.narg('workflow')::text is null or f.workflow = sqlc.narg('workflow'))
  and (sqlc.narg('state')::text is null or f.state = sqlc.narg('state'))
  and (sqlc.narg('instance_id')::uuid is null or f.instance_id = sqlc.narg('instance_id'))
  and (sqlc.narg('open')::boolean is null or (f.closed_at is null) = sqlc.narg('open'))
  and (sqlc.narg('within')::text[] is null or f.workflow = any (sqlc.narg('within')))
order by f.id desc
limit @row_limit;

-- name: Heal :one
select h.attempts::bigint as attempts, h.applied::bigint as applied, h.opened::bigint as opened, h.more::boolean as more
from pawl.heal(p_limit => @row_limit::integer, p_every => @every::interval) h;
