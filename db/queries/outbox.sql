-- name: ConsumerCreate :exec
select pawl.consumer_create(@consumer::text, @from_start::boolean);

-- name: ConsumerLead :one
select coalesce(pawl.consumer_lead(@consumer::text, @leader::text, @lease::interval), 0)::bigint as term;

-- name: ConsumerResign :exec
select pawl.consumer_resign(@consumer::text, @term::bigint);

-- name: ConsumerRenew :one
select pawl.consumer_renew(@consumer::text, @term::bigint, @lease::interval)::boolean as leads;

-- name: ConsumerNextBatch :one
select l.batch::text as batch, l.begun::boolean as begun, l.idle::boolean as idle, l.place
from pawl.consumer_next_batch(@consumer::text) l;

-- name: ConsumerRead :many
select * from pawl.consumer_read(@consumer::text, @batch::pg_snapshot, @row_limit::integer, @bytes::bigint);

-- name: ConsumerAdvance :one
select pawl.consumer_advance(
  @consumer::text, @term::bigint, @batch::pg_snapshot, sqlc.narg('seq')::bigint, @relayed::bigint,
  @lease::interval)::boolean as leads;

-- name: ConsumerStatus :many
select
  s.name::text as name, coalesce(s.leader, '')::text as leader, s.term::bigint as term, s.relayed::bigint as relayed,
  s.steps::bigint as steps, coalesce(extract(epoch from s.behind), 0)::float8 as behind_seconds, s.advanced_at::timestamptz as advanced_at
from pawl.consumer_status() s;

-- name: ConsumerDelete :one
select pawl.consumer_delete(@consumer::text)::boolean as deleted;
