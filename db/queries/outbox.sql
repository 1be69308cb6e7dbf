-- name: LogLead :one
select coalesce(pawl.log_lead(@leader::text, @lease::interval), 0)::bigint as term;

-- name: LogResign :exec
select pawl.log_resign(@leader::text, @term::bigint);

-- name: LogBegin :one
select b.epoch::bigint as epoch, b.began::boolean as began, b.restored::boolean as restored
from pawl.log_begin(@leader::text, @term::bigint) b;

-- name: LogTick :one
select t.leads::boolean as leads, t.steps::bigint as steps
from pawl.log_tick(@leader::text, @term::bigint, @lease::interval) t;

-- name: LogSweep :one
select coalesce(s.since::text, '')::text as since, s.last, s.swept::bigint as swept
from pawl.log_sweep(@leader::text, @term::bigint, sqlc.narg('since')::pg_snapshot, @after::bigint, @row_limit::integer) s;

-- name: ConsumerCreate :exec
select pawl.consumer_create(@consumer::text, @from_start::boolean, @audit::boolean);

-- name: ConsumerLead :one
select coalesce(pawl.consumer_lead(@consumer::text, @leader::text, @lease::interval, @audit::boolean), 0)::bigint as term;

-- name: ConsumerResign :exec
select pawl.consumer_resign(@consumer::text, @leader::text, @term::bigint);

-- name: ConsumerRenew :one
select pawl.consumer_renew(@consumer::text, @leader::text, @term::bigint, @lease::interval)::boolean as leads;

-- name: ConsumerNext :one
select n.epoch::bigint as epoch, n.until from pawl.consumer_next(@consumer::text, @row_limit::integer) n;

-- name: ConsumerRead :many
select * from pawl.consumer_read(@consumer::text, @until::bigint, @bytes::bigint);

-- name: ConsumerReadFindings :many
select * from pawl.consumer_read_findings(@consumer::text, @until::bigint);

-- name: ConsumerReadAudit :many
select * from pawl.consumer_read_audit(@consumer::text, @until::bigint, @bytes::bigint);

-- name: ConsumerAdvance :one
select pawl.consumer_advance(
  @consumer::text, @leader::text, @term::bigint, @epoch::bigint, @position::bigint, @relayed::bigint,
  @lease::interval)::boolean as leads;

-- name: ConsumerStatus :many
select
  s.name::text as name, coalesce(s.leader, '')::text as leader, s.term::bigint as term, s.relayed::bigint as relayed,
  s.steps::bigint as steps, coalesce(extract(epoch from s.behind), 0)::float8 as behind_seconds, s.advanced_at::timestamptz as advanced_at
from pawl.consumer_status() s;

-- name: ConsumerDelete :one
select pawl.consumer_delete(@consumer::text)::boolean as deleted;

-- name: Backlog :many
select * from pawl.backlog();

-- name: OwnSteps :one
select s.until::bigint as until, s.steps::jsonb as steps from pawl.own_steps(sqlc.narg('after')::bigint, @row_limit::integer) s;
