-- message_type is the CloudEvent type of a step's message.
create function pawl_private.message_type(p_kind text) returns text
language sql immutable parallel safe
as $$
  select 'pawl.instance.' || case p_kind
    when 'transition' then 'transitioned'
    when 'timeout' then 'timed-out'
    else p_kind
  end
$$;

-- circuit_open_for is for how long an endpoint's circuit opens after so many failed attempts in a row;
-- null while it stays closed. Afterwards the circuit is half-open: one delivery at a time probes the
-- endpoint. p_rest is the time after the fifth failure; each further failure doubles it, up to ten minutes.
create function pawl_private.circuit_open_for(p_failures integer, p_rest interval) returns interval
language sql immutable parallel safe
as $$
  select case when p_failures >= 5 then least(p_rest * 2 ^ least(p_failures - 5, 20), interval '10 minutes') end
$$;

-- delivery_failed says of a pending delivery whether its last attempt failed, or whether it waits for another that
-- did. The planner inlines it.
create function pawl_private.delivery_failed(p_delivery pawl.delivery) returns boolean
language sql immutable parallel safe
as $$ select p_delivery.attempts > 0 and not p_delivery.replayed or p_delivery.next_attempt_at is null $$;

-- subscription_wants says whether an enabled subscription receives the message of a step.
create function pawl_private.subscription_wants(
  p_subscription pawl.subscription, p_xid xid8, p_workflow text, p_event text, p_to_state text, p_status text
) returns boolean
language sql stable
as $$
  select p_subscription.disabled_at is null
    and not pg_visible_in_snapshot(p_xid, p_subscription.since)
    and (p_subscription.workflows = '{}' or p_workflow = any (p_subscription.workflows))
    and (p_subscription.events = '{}' or p_event = any (p_subscription.events))
    and (
      p_subscription.states = '{}'
      or exists (
        select from unnest(p_subscription.states) as f (state) where p_to_state = f.state or starts_with(p_to_state, f.state || '.')
      )
    )
    and (not p_subscription.terminal_only or p_status <> 'active')
$$;

-- add_deliveries creates deliveries in the order of the arrays. The caller must hold the lock of the
-- consumer's row, so that no delivery is settled or replayed meanwhile.
-- Returns: how many there were not yet
-- Writes:  delivery
create function pawl_private.add_deliveries(
  p_tenants text[], p_subscriptions uuid[], p_instances uuid[], p_versions bigint[], p_kinds text[]
) returns integer
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_added integer;
begin
  insert into pawl.delivery (
    tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, next_attempt_at, created_at)
  select
    m.tenant_id, pawl_private.uuid_v7(v_now + m.ordinal * interval '1 microsecond'), m.subscription_id, m.subscription_id = m.instance_id,
    m.instance_id, m.version, pawl_private.message_type(m.kind), 'pending', 0, case when w.failed then null else v_now end, v_now
  from unnest(p_tenants, p_subscriptions, p_instances, p_versions, p_kinds)
    with ordinality as m (tenant_id, subscription_id, instance_id, version, kind, ordinal)
  left join lateral (
    select pawl_private.delivery_failed(d) as failed
    from pawl.delivery d
    where d.tenant_id = m.tenant_id
      and d.subscription_id = m.subscription_id
      and d.instance_id = m.instance_id
      and d.status = 'pending'
    order by d.tenant_id, d.subscription_id, d.instance_id, d.version
    limit 1
  ) w on true
  -- A delivery exists already if the cursor was put back, or if the subscription was changed.
  on conflict on constraint delivery_step_key do nothing;
  get diagnostics v_added = row_count;
  return v_added;
end
$$;

-- route_page creates the deliveries of a consumer's next page of steps. It looks at up to p_limit pairs of a
-- step and a subscription of one tenant, and at up to twice as many in all; further steps, and those of a
-- tenant that has unrouted steps, are put off. p_only: create those for this subscription alone, and put
-- nothing off. The caller must hold the lock of the consumer's row.
-- Returns: steps: how many were read; deliveries: how many were created; place: the seq up to which the
--          batch has been read then; null if it ends there
-- Writes:  delivery, unrouted_step
create function pawl_private.route_page(
  p_consumer pawl.consumer, p_batch pg_snapshot, p_limit integer, p_only uuid default null,
  out steps integer, out deliveries integer, out place bigint
)
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_tenants text[];
  v_subscriptions uuid[];
  v_instances uuid[];
  v_versions bigint[];
  v_kinds text[];
begin
  with step as materialized (
    select h.tenant_id, h.instance_id, h.version, h.seq, h.xid, h.workflow, h.kind, h.event, h.to_state, h.status
    from pawl_private.consumer_steps(p_consumer, p_batch, p_limit) h
  ),
  -- How many subscriptions a step's tenant has is counted once, with the first step of the tenant.
  first as (
    select h.*, row_number() over (partition by h.tenant_id order by h.seq) = 1 as is_first
    from step h
  ),
  counted as (
    select h.*,
      case when h.is_first then (
        select count(*) from pawl.subscription s where s.tenant_id = h.tenant_id and s.disabled_at is null
      ) end as subscriptions,
      case when h.is_first then exists (
        select from pawl.unrouted_step u where u.tenant_id = h.tenant_id
      ) end as behind
    from first h
  ),
  shared as (
    select h.*, max(h.subscriptions) over (partition by h.tenant_id) as pairs, bool_or(h.behind) over (partition by h.tenant_id) as is_behind
    from counted h
  ),
  in_share as (
    select h.*, not h.is_behind and sum(h.pairs) over (partition by h.tenant_id order by h.seq) <= p_limit as fits
    from shared h
  ),
  placed as materialized (
    select h.*,
      p_only is null and (not h.fits or sum(h.pairs) filter (where h.fits) over (order by h.seq) > 2 * p_limit) as put_off
    from in_share h
  ),
  late as (
    insert into pawl.unrouted_step (tenant_id, seq, instance_id, version, after_subscription)
    select h.tenant_id, h.seq, h.instance_id, h.version, '00000000-0000-0000-0000-000000000000'
    from placed h
    where h.put_off and h.pairs > 0
    on conflict on constraint unrouted_step_pkey do nothing
  ),
  matching as (
    select h.*, s.id as subscription_id
    from placed h
    cross join lateral (
      select s.id
      from pawl.subscription s
      where s.tenant_id = h.tenant_id
        and (p_only is null or s.id = p_only)
        and pawl_private.subscription_wants(s, h.xid, h.workflow, h.event, h.to_state, h.status)
    ) s
    where not h.put_off
    union all
    select h.*, h.instance_id
    from placed h
    cross join lateral (
      select from pawl.callback b where b.tenant_id = h.tenant_id and b.instance_id = h.instance_id limit 1
    ) b
    where h.status <> 'active' and p_only is null
  )
  select
    (select count(*) from step), (select max(h.seq) from step h),
    array_agg(m.tenant_id::text), array_agg(m.subscription_id), array_agg(m.instance_id), array_agg(m.version::bigint), array_agg(m.kind::text)
  into steps, place, v_tenants, v_subscriptions, v_instances, v_versions, v_kinds
  from (select m.* from matching m order by m.seq, m.subscription_id) m;
  deliveries := pawl_private.add_deliveries(v_tenants, v_subscriptions, v_instances, v_versions, v_kinds);
  if steps < p_limit then
    place := pawl_private.place_after(p_consumer);
  end if;
end
$$;

-- route_unrouted creates deliveries of the oldest unrouted steps of one tenant: the next one after p_after in
-- the order of tenants, of those that have any. It looks at up to p_limit pairs of a step and a subscription.
-- The caller must hold the lock of the consumer's row.
-- Returns: tenant: whose steps they were; null if no tenant has any. deliveries: how many were created
-- Writes:  delivery, unrouted_step
create function pawl_private.route_unrouted(p_after text, p_limit integer, out tenant text, out deliveries integer)
language plpgsql volatile
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_left integer := p_limit;
  v_step record;
  v_looked uuid[];
  v_chosen uuid[];
begin
  deliveries := 0;
  select u.tenant_id into tenant from pawl.unrouted_step u where u.tenant_id > p_after order by u.tenant_id, u.seq limit 1;
  if not found then
    select u.tenant_id into tenant from pawl.unrouted_step u order by u.tenant_id, u.seq limit 1;
  end if;
  for v_step in
    select u.seq, u.instance_id, u.version, u.after_subscription, h.xid, h.workflow, h.kind, h.event, h.to_state, h.status
    from (
      select u.* from pawl.unrouted_step u where u.tenant_id = tenant order by u.tenant_id, u.seq limit p_limit
    ) u
    -- A step that was purged has no deliveries.
    left join lateral (
      select h.* from pawl.history h where h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version limit 1
    ) h on true
    order by u.tenant_id, u.seq
  loop
    select
      coalesce(array_agg(l.id), '{}'),
      coalesce(array_agg(l.id) filter (
        where pawl_private.subscription_wants(l.subscription, v_step.xid, v_step.workflow, v_step.event, v_step.to_state, v_step.status)
      ), '{}')
    into v_looked, v_chosen
    from (
      select s.id, s as subscription
      from pawl.subscription s
      where s.tenant_id = tenant and s.id > v_step.after_subscription
      order by s.tenant_id, s.id
      limit v_left
    ) l;
    deliveries := deliveries + pawl_private.add_deliveries(
      array_fill(tenant, array[cardinality(v_chosen)]), v_chosen, array_fill(v_step.instance_id, array[cardinality(v_chosen)]),
      array_fill(v_step.version, array[cardinality(v_chosen)]), array_fill(v_step.kind::text, array[cardinality(v_chosen)]));
    if cardinality(v_looked) < v_left then
      delete from pawl.unrouted_step u where u.tenant_id = tenant and u.seq = v_step.seq;
    else
      update pawl.unrouted_step u
      set after_subscription = v_looked[cardinality(v_looked)]
      where u.tenant_id = tenant and u.seq = v_step.seq;
    end if;
    v_left := v_left - greatest(cardinality(v_looked), 1);
    exit when v_left <= 0;
  end loop;
end
$$;

-- webhook_retains says whether a message of an instance is still to be sent: an unrouted step, a pending
-- delivery whose subscription is not disabled, or a callback's.
create function pawl_private.webhook_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return exists (
    select from pawl.unrouted_step u where u.tenant_id = p_tenant and u.instance_id = p_id
  ) or exists (
    select
    from (
      -- Looked up without the status, so that the index on pending deliveries is not taken.
      select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.instance_id = p_id offset 0
    ) d
    where d.status = 'pending'
      and not exists (
        select from pawl.subscription s
        where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
      )
  );
end
$$;
