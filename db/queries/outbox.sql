-- name: AddConsumer :exec
select pawl.add_consumer(@consumer::text, @from_start::boolean);

-- name: Lead :one
select coalesce(pawl.lead(@consumer::text, @leader::text, @lease::interval), 0)::bigint as term;

-- name: Resign :exec
select pawl.resign(@consumer::text, @term::bigint);

-- name: Renew :one
select pawl.renew(@consumer::text, @term::bigint, @lease::interval)::boolean as leads;

-- name: GetConsumer :one
select * from pawl.consumer where name = @name;

-- name: Look :one
select l.batch::text as batch, l.begun::boolean as begun, l.idle::boolean as idle, l.place
from pawl.look(@consumer::text) l;

-- name: ReadEvents :many
select * from pawl.read_events(@consumer::text, @batch::pg_snapshot, @row_limit::integer);

-- name: Advance :one
select pawl.advance(
  @consumer::text, @term::bigint, @batch::pg_snapshot, sqlc.narg('seq')::bigint, @relayed::bigint,
  @lease::interval)::boolean as leads;

-- name: OutboxStatus :many
select
  s.name::text as name, coalesce(s.leader, '')::text as leader, s.term::bigint as term, s.relayed::bigint as relayed,
  s.steps::bigint as steps, coalesce(extract(epoch from s.behind), 0)::float8 as behind_seconds, s.advanced_at::timestamptz as advanced_at
from pawl.outbox_status() s;

-- name: Forget :one
select pawl.forget(@consumer::text)::boolean as forgotten;
