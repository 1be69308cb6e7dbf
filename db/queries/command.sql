-- name: Fire :many
select * from pawl.fire(
  @tenant::text, @ids::uuid[], @events::text[], @payloads::jsonb[], @keys::text[], @expected::text[],
  @checked::text[], @actors::text[], @reasons::text[], @correlation_ids::text[], @traceparents::text[]);

-- name: Preview :many
select * from pawl.preview(
  @tenant::text, @ids::uuid[], @events::text[], @payloads::jsonb[], @expected::text[], @checked::text[]);

-- name: Simulate :one
select * from pawl.simulate(
  @workflow::text, @workflow_version::integer, sqlc.narg(state)::text, @version::bigint, @context::jsonb, sqlc.narg(event)::text,
  @payload::jsonb, @checked::text);

-- name: Create :many
select * from pawl.create(
  @tenant::text, @workflows::text[], @contexts::jsonb[], @keys::text[], @business_keys::text[],
  @instance_correlation_ids::text[], @lifetimes::interval[], @checked::text[], @actors::text[], @reasons::text[],
  @correlation_ids::text[], @traceparents::text[], sqlc.narg('callback_urls')::text[], sqlc.narg('callback_secrets')::text[]);
