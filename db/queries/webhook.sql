-- name: SubscriptionCreate :one
select * from pawl.subscription_create(
  @tenant::text, @url::text, @workflows::text[], @events::text[], @states::text[], @terminal_only::boolean, @secret::text,
  @actor::text);

-- name: SubscriptionUpdate :one
select * from pawl.subscription_update(
  @tenant::text, @id::uuid, sqlc.narg('url')::text, sqlc.narg('workflows')::text[], sqlc.narg('events')::text[],
  sqlc.narg('states')::text[], sqlc.narg('terminal_only')::boolean, sqlc.narg('disabled')::boolean);

-- name: SubscriptionDelete :one
select pawl.subscription_delete(@tenant::text, @id::uuid)::boolean as deleted;

-- name: SubscriptionRotateSecret :one
select * from pawl.subscription_rotate_secret(@tenant::text, @id::uuid, @secret::text, @overlap::interval);

-- name: SubscriptionTest :one
select * from pawl.subscription_test(@tenant::text, @id::uuid);

-- name: GetSubscription :one
select * from pawl.subscription where tenant_id = @tenant_id and id = @id;

-- name: ListSubscriptions :many
select s.*
from pawl.subscription s
where s.tenant_id = @tenant_id and (sqlc.narg('before_id')::uuid is null or s.id < sqlc.narg('before_id'))
order by s.id desc
limit @row_limit;

-- UnknownNames returns the names in a filter that do not exist: workflows, and events and states that
-- no version of the filter's workflows has, or of any workflow if the filter names none. The name of
-- a compound state exists, too.
-- name: UnknownNames :many
select u.kind::text as kind, (u.place - 1)::integer as place
from (
  select 'workflows' as kind, w.place
  from unnest(@workflows::text[]) with ordinality as w (name, place)
  where not exists (select from pawl.workflow f where f.name = w.name)
  union all
  select 'events', e.place
  from unnest(@events::text[]) with ordinality as e (name, place)
  where not exists (
    select from pawl.workflow_transition t
    where t.event = e.name and t.event not in (':always', ':initial')
      and (@workflows::text[] = '{}' or t.workflow = any (@workflows::text[])))
  union all
  select 'states', s.place
  from unnest(@states::text[]) with ordinality as s (name, place)
  where not exists (
    select from pawl.workflow_state f
    where (f.state = s.name or f.state >= s.name || '.' and f.state <= s.name || '.~')
      and (@workflows::text[] = '{}' or f.workflow = any (@workflows::text[])))
) u
order by u.kind desc, u.place;

-- name: GetDelivery :one
select * from pawl.delivery where tenant_id = @tenant_id and id = @id;

-- ListDeliveries reads the newest first. It must be planned for its arguments, as ListInstances is.
-- name: ListDeliveries :many
select d.*
from pawl.delivery d
where d.tenant_id = @tenant_id
  and (sqlc.narg('before_id')::uuid is null or d.id < sqlc.narg('before_id'))
  and (sqlc.narg('subscription_id')::uuid is null or d.subscription_id = sqlc.narg('subscription_id'))
  and (sqlc.narg('instance_id')::uuid is null or d.instance_id = sqlc.narg('instance_id'))
  and (sqlc.narg('status')::text is null or d.status = sqlc.narg('status'))
order by d.id desc
limit @row_limit;

-- name: DeliveryReplay :one
select
  r.replayed::integer as replayed,
  r.gone::integer as gone,
  r.looked_at::integer as looked_at,
  coalesce(r.last, '00000000-0000-0000-0000-000000000000')::uuid as last
from pawl.delivery_replay(
  @tenant::text, sqlc.narg('ids')::uuid[], sqlc.narg('subscription_id')::uuid, @status::text,
  sqlc.narg('created_after')::timestamptz, sqlc.narg('created_before')::timestamptz, sqlc.narg('after')::uuid,
  @row_limit::integer) r;

-- name: DeliveryRoute :one
select
  r.leads::boolean as leads, r.steps::integer as steps, r.deliveries::integer as deliveries, r.more::boolean as more,
  r.wanted::boolean as wanted, r.turn::text as turn
from pawl.delivery_route(@leader::text, @term::bigint, @row_limit::integer, @lease::interval, @turn::text) r;

-- name: DeliveryLanes :many
select * from pawl.delivery_lanes(@after::text, @tenants::text[], @places::uuid[], @rest::boolean, @looks::integer, @each::integer);

-- name: DeliveryDue :many
select * from pawl.delivery_due(@tenants::text[], @subscriptions::uuid[], @limits::integer[], (@flying::text[])::uuid[]);

-- name: DeliveryEndpoints :many
select * from pawl.delivery_endpoints(@tenants::text[], @ids::uuid[]);

-- name: DeliveryMessages :many
select * from pawl.delivery_messages(@tenants::text[], @instances::uuid[], @versions::bigint[], @bytes::bigint);

-- name: DeliverySettle :one
select pawl.delivery_settle(
  @leader::text, @term::bigint, @tenants::text[], @ids::uuid[], @results::text[], @delays::interval[], @pauses::interval[],
  @statuses::integer[], @errors::text[], @responses::text[], @rest::interval)::boolean as leads;

-- name: DeliveryPurge :one
select pawl.delivery_purge(@row_limit::integer, @delivered::interval, @dead::interval)::integer as purged;
