-- name: Notify :exec
select pg_notify(@channel::text, @payload::text);

-- name: LogMoved :one
select
  m.last::bigint as last,
  (m.instances is not null)::boolean as known,
  coalesce(m.instances, '{}')::uuid[] as instances,
  coalesce(m.tenants, '{}')::text[] as tenants
from pawl.log_moved(sqlc.narg('after')::bigint, @step_limit::integer) m;

-- name: LogSettled :one
select s.since::text as since, s.server::timestamptz as server, s.epoch::bigint as epoch, s.place::bigint as place, s.settled::boolean as settled
from pawl.log_settled(@tenant::text, sqlc.narg('since')::pg_snapshot, sqlc.narg('server')::timestamptz) s;

-- name: LogHead :one
select h.epoch, h.position, (h.lease_until > pawl.now())::boolean as led from pawl.log_head h;

-- name: StreamLook :one
select l.epoch::bigint as epoch, l.place::bigint as place, l.state::text as state, l.until, coalesce(l.steps, 0)::bigint as steps
from pawl.stream_look(@tenant::text, @workflows::text[], @floor::bigint, @epoch::bigint, @position::bigint, @row_limit::integer) l;

-- name: StreamPlace :one
select p.state::text as state, coalesce(p.epoch, 1)::bigint as epoch, coalesce(p.version, 0)::bigint as version, coalesce(p.until, 0)::bigint as until
from pawl.stream_place(@tenant::text, @instance_id::uuid, @version::bigint, @epoch::bigint) p;

-- name: StreamRead :many
select *
from pawl.stream_read(
  @tenant::text, @workflows::text[], @floor::bigint, @after::bigint, @until::bigint, @row_limit::integer, @bytes::bigint);

-- name: StreamInstance :many
select * from pawl.stream_instance(@tenant::text, @instance_id::uuid, @after_version::bigint, @epoch::bigint, @row_limit::integer, @bytes::bigint);

-- name: ListStates :many
select s.state, s.status
from pawl.workflow_state s
where s.workflow = @workflow and s.workflow_version = @workflow_version
order by s.state;
