-- name: Fire :many
select r.*
from pawl.fire(
  @tenants::text[], @ids::uuid[], @events::text[], @payloads::jsonb[], @keys::text[], @expected::text[],
  @checked::text[], @actors::text[], @reasons::text[], @correlation_ids::text[], @traceparents::text[]) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Preview :many
select r.*
from pawl.preview(
  @tenant::text, @ids::uuid[], @events::text[], @payloads::jsonb[], @expected::text[], @checked::text[]) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Simulate :one
select r.*
from pawl.simulate(
  @workflow::text, @workflow_version::integer, sqlc.narg(state)::text, @version::bigint, @context::jsonb, sqlc.narg(event)::text,
  @payload::jsonb, @checked::text) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Create :many
select r.*
from pawl.create(
  @tenants::text[], @workflows::text[], @contexts::jsonb[], @keys::text[], @business_keys::text[],
  @instance_correlation_ids::text[], @lifetimes::interval[], @checked::text[], @actors::text[], @reasons::text[],
  @correlation_ids::text[], @traceparents::text[], sqlc.narg('callback_urls')::text[], sqlc.narg('callback_secrets')::text[]) o
cross join lateral pawl.outcome_rows(o) r;
