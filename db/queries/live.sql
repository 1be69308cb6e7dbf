-- name: Notify :exec
select pg_notify(@channel::text, @payload::text);

-- name: LogMoved :one
select
  m.snapshot::text as snapshot,
  (m.instances is not null)::boolean as known,
  coalesce(m.instances, '{}')::uuid[] as instances,
  coalesce(m.tenants, '{}')::text[] as tenants
from pawl.log_moved(sqlc.narg('cursor')::pg_snapshot, @step_limit::integer) m;

-- name: StreamSnapshot :one
select pg_current_snapshot()::text as snapshot;

-- name: StreamCanResume :one
select
  pg_current_snapshot()::text as snapshot,
  pawl.stream_can_resume(@tenant::text, @workflows::text[], @cursor::pg_snapshot, sqlc.narg('step_limit')::integer)::boolean as can;

-- name: StreamRead :many
select h.*
from pawl.stream_read(
  @tenant::text, @workflows::text[], @cursor::pg_snapshot, @batch::pg_snapshot, @after::bigint, @row_limit::integer,
  @bytes::bigint) h
order by h.seq;

-- name: StreamReadPast :many
select h.*
from pawl.stream_read_past(
  @tenant::text, @workflows::text[], @cursor::pg_snapshot, @batch::pg_snapshot, @after_instance::uuid,
  @after_version::bigint, @row_limit::integer, @bytes::bigint) h
order by h.instance_id, h.version;

-- name: ListStates :many
select s.state, s.status
from pawl.workflow_state s
where s.workflow = @workflow and s.workflow_version = @workflow_version
order by s.state;
