-- name: Fire :many
select r.*
from pawl.fire(
  @tenants::text[], @ids::uuid[], @events::text[], @payloads::jsonb[], @keys::text[], @expected::text[],
  @checked::text[], @actors::text[], @reasons::text[], @correlation_ids::text[], @traceparents::text[],
  p_verified => @verified::boolean, p_access => sqlc.narg('access')::uuid) o
cross join lateral pawl.outcome_rows(o) r;

-- name: FireByKeys :many
select r.*
from pawl.fire_by_keys(
  @tenants::text[], @workflows::text[], @business_keys::text[], @events::text[], @payloads::jsonb[], @keys::text[],
  @expected::text[], @checked::text[], @starts::jsonb[], @starts_checked::text[], @actors::text[], @reasons::text[],
  @correlation_ids::text[], @traceparents::text[], @verified::boolean, sqlc.narg('callback_secrets')::text[],
  sqlc.narg('seeds')::uuid[], sqlc.narg('access')::uuid) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Preview :many
select r.*
from pawl.preview(
  @tenant::text, @ids::uuid[], @events::text[], @payloads::jsonb[], @expected::text[], @checked::text[],
  p_actor => @actor::text, p_verified => @verified::boolean) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Simulate :one
select r.*
from pawl.simulate(
  @workflow::text, @workflow_version::integer, @position::jsonb, sqlc.narg(event)::text, @payload::jsonb, @checked::text,
  @actor::text, @verified::boolean, sqlc.narg(now)::timestamptz) o
cross join lateral pawl.outcome_rows(o) r;

-- name: SimulateTimeout :one
select t.event::text as timer, t.at::timestamptz as at, t.tried::integer as tried, r.*
from pawl.simulate_timeout(
  @workflow::text, @workflow_version::integer, @position::jsonb, @now::timestamptz, @until::timestamptz) t
cross join lateral pawl.outcome_rows(t.outcome) r;

-- name: Create :many
select r.*
from pawl.create(
  @tenants::text[], @workflows::text[], @contexts::jsonb[], @keys::text[], @business_keys::text[],
  @instance_correlation_ids::text[], @lifetimes::interval[], @checked::text[], @actors::text[], @reasons::text[],
  @correlation_ids::text[], @traceparents::text[], sqlc.narg('callback_urls')::text[], sqlc.narg('callback_secrets')::text[],
  @verified::boolean, sqlc.narg('callback_digests')::text[], sqlc.narg('seeds')::uuid[],
  sqlc.narg('access')::uuid) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Override :one
select r.*
from pawl.override(
  p_tenant => @tenant::text, p_id => @id::uuid, p_to => sqlc.narg(to_state)::text, p_context_patch => sqlc.narg(context_patch)::jsonb,
  p_event => sqlc.narg(event)::text, p_payload => sqlc.narg(payload)::jsonb, p_bypass => sqlc.narg(bypass)::text,
  p_target => sqlc.narg(target)::text, p_key => @key::text, p_expected => @expected::text, p_checked => @checked::text,
  p_patch_checked => @patch_checked::text, p_actor => @actor::text, p_reason => @reason::text,
  p_correlation_id => @correlation_id::text, p_traceparent => @traceparent::text, p_verified => @verified::boolean,
  p_dry_run => @dry_run::boolean, p_raises => false, p_caller => sqlc.narg(caller)::jsonb) o
cross join lateral pawl.outcome_rows(o) r;

-- name: Cancel :one
select r.*
from pawl.cancel(
  p_tenant => @tenant::text, p_id => @id::uuid, p_key => @key::text, p_expected => @expected::text, p_actor => @actor::text,
  p_reason => @reason::text, p_correlation_id => @correlation_id::text, p_traceparent => @traceparent::text,
  p_verified => @verified::boolean, p_dry_run => @dry_run::boolean, p_raises => false, p_caller => sqlc.narg(caller)::jsonb) o
cross join lateral pawl.outcome_rows(o) r;
