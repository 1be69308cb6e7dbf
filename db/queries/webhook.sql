-- name: SubscriptionCreate :one
select * from pawl.subscription_create(
  @tenant::text, @url::text, @workflows::text[], @events::text[], @states::text[], @terminal_only::boolean, @secret::text,
  @actor::text, @seed::uuid, @caller::jsonb, @types::text[]);

-- name: SubscriptionUpdate :one
select * from pawl.subscription_update(
  @tenant::text, @id::uuid, sqlc.narg('url')::text, sqlc.narg('workflows')::text[], sqlc.narg('events')::text[],
  sqlc.narg('states')::text[], sqlc.narg('terminal_only')::boolean, sqlc.narg('disabled')::boolean, @caller::jsonb,
  sqlc.narg('types')::text[]);

-- name: SubscriptionDelete :one
select pawl.subscription_delete(@tenant::text, @id::uuid, @caller::jsonb)::boolean as deleted;

-- name: SubscriptionRotateSecret :one
select * from pawl.subscription_rotate_secret(
  @tenant::text, @id::uuid, @secret::text, @overlap::interval, @from_secret::text, @previous_secret::text,
  @caller::jsonb);

-- name: SubscriptionSealedSecret :one
select s.secret::text as secret
from pawl.subscription_sealed_secret(@tenant::text, @id::uuid) s (secret)
where s.secret is not null;

-- name: SubscriptionRest :one
select pawl.subscription_rest(
  @leader::text, @term::bigint, @tenants::text[], @ids::uuid[], @findings::text[], @rest::interval)::boolean as leads;

-- name: SecretsPage :many
select * from pawl.secrets_page(@table_name::text, @tenant::text, @row_key::text, @row_limit::integer);

-- name: SecretsReplace :one
select pawl.secrets_replace(
  @table_name::text, @tenants::text[], @row_keys::text[], @from_secrets::text[], @to_secrets::text[], @from_previous::text[],
  @to_previous::text[])::integer as changed;

-- name: SubscriptionTest :one
select * from pawl.subscription_test(@tenant::text, @id::uuid, @caller::jsonb);

-- name: GetSubscription :one
select * from pawl.subscription_row where tenant_id = @tenant_id and id = @id;

-- name: ListSubscriptions :many
select s.*
from pawl.subscription_row s
where s.tenant_id = @tenant_id
  and (sqlc.narg('before_id')::uuid is null or s.id < sqlc.narg('before_id'))
  and (sqlc.narg('within')::text[] is null or s.workflows <> '{}' and s.workflows <@ sqlc.narg('within'))
order by s.id desc
limit @row_limit;

-- name: TenantOfSubscription :one
select pawl.tenant_of_subscription(@id::uuid) as tenant;

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

-- DeliveriesWithin chooses the deliveries that lie within some workflows: those of subscriptions and callbacks that do. A
-- subscription may have had another filter when its delivery was made, so the instance or the finding must lie within too.
-- If it was purged, the subscription decides.
-- name: DeliveriesWithin :many
select d.id
from pawl.delivery d
left join pawl.subscription_row s on s.tenant_id = d.tenant_id and s.id = d.subscription_id and not d.callback
left join pawl.instance i on i.tenant_id = d.tenant_id and i.id = d.instance_id
left join pawl.finding f on f.tenant_id = d.tenant_id and f.id = d.finding_id
where d.tenant_id = @tenant_id and d.id = any (@ids::uuid[])
  and coalesce(coalesce(f.workflow, i.workflow) = any (@within::text[]), true)
  and case when d.callback then i.workflow is not null else s.workflows <> '{}' and s.workflows <@ @within::text[] end;

-- name: DeliveryReplay :one
select
  r.replayed::integer as replayed,
  r.gone::integer as gone,
  r.looked_at::integer as looked_at,
  coalesce(r.last, '00000000-0000-0000-0000-000000000000')::uuid as last
from pawl.delivery_replay(
  @tenant::text, sqlc.narg('ids')::uuid[], sqlc.narg('subscription_id')::uuid, @status::text,
  sqlc.narg('created_after')::timestamptz, sqlc.narg('created_before')::timestamptz, sqlc.narg('after')::uuid,
  @row_limit::integer, @caller::jsonb, @earlier::bigint) r;

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

-- name: DeliveryTenants :many
select * from pawl.delivery_tenants(@tenants::text[]);

-- name: DeliveryMessages :many
select * from pawl.delivery_messages(@tenants::text[], @instances::uuid[], @versions::bigint[], @bytes::bigint);

-- name: DeliveryFindings :many
select * from pawl.delivery_findings(@tenants::text[], @ids::uuid[]);

-- name: DeliverySettle :one
select pawl.delivery_settle(
  @leader::text, @term::bigint, @tenants::text[], @ids::uuid[], @results::text[], @delays::interval[], @pauses::interval[],
  @statuses::integer[], @errors::text[], @responses::text[], @rest::interval)::boolean as leads;

-- name: DeliveryPurge :one
select pawl.delivery_purge(@row_limit::integer, @delivered::interval, @dead::interval)::integer as purged;
