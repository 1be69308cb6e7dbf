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

-- delivery_failed says of a pending delivery whether its last attempt failed, or whether it waits for another that
-- did. The planner inlines it.
create function pawl_private.delivery_failed(p_delivery pawl.delivery) returns boolean
language sql immutable parallel safe
as $$ select p_delivery.attempts > 0 and not p_delivery.replayed or p_delivery.next_attempt_at is null $$;

-- subscription_wants says whether an enabled subscription receives the message of a step, or of a finding. A finding has
-- no event and no status, so that only the types, the workflows and the states of the filter choose it.
-- p_to_state: of a finding, the state that the instance was in; null for none
create function pawl_private.subscription_wants(
  p_subscription pawl.subscription, p_xid xid8, p_seq bigint, p_type text, p_workflow text, p_event text, p_to_state text, p_status text
) returns boolean
language sql stable
as $$
  select p_subscription.disabled_at is null
    and pawl_private.step_follows(p_xid, p_seq, p_subscription.since, p_subscription.later_seq)
    and (p_subscription.workflows = '{}' or p_workflow = any (p_subscription.workflows))
    and case
      when p_type = 'pawl.finding.opened' then p_type = any (p_subscription.types)
      else (p_subscription.types = '{}' or p_type = any (p_subscription.types))
        and (p_subscription.events = '{}' or p_event = any (p_subscription.events))
        and (not p_subscription.terminal_only or p_status <> 'active')
    end
    and (
      p_subscription.states = '{}'
      or exists (
        select from unnest(p_subscription.states) as f (state) where p_to_state = f.state or starts_with(p_to_state, f.state || '.')
      )
    )
$$;

-- delivery_id is the id of a delivery: a digest of the CloudEvent's id and the subscription, behind the time of the
-- step, or of the finding. So it is the same if a crash has undone the routing and the message is routed again. The id of a
-- finding is never given twice, so that it needs no epoch.
create function pawl_private.delivery_id(
  p_at timestamptz, p_instance uuid, p_version bigint, p_epoch bigint, p_finding uuid, p_subscription uuid
) returns uuid
language sql immutable parallel safe
as $$
  select pawl_private.uuid_v7_with(
    p_at,
    substring(sha256(convert_to(
      case
        when p_finding is not null then concat('finding:', p_finding, ' ', p_subscription)
        else concat(p_instance, ':', p_version, '@', p_epoch, ' ', p_subscription)
      end,
      'UTF8')) for 16))
$$;

-- add_deliveries creates deliveries of steps and findings. The caller must hold the lock of the consumer's row, so that
-- no delivery is settled or replayed meanwhile.
-- Returns: how many there were not yet
-- Writes:  delivery
create function pawl_private.add_deliveries(p_routed pawl_private.routed[]) returns integer
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
    tenant_id, id, subscription_id, callback, instance_id, version, finding_id, seq, type, status, attempts, next_attempt_at, created_at)
  select
    m.tenant_id, pawl_private.delivery_id(m.at, m.instance_id, m.version, m.epoch, m.finding_id, m.subscription_id), m.subscription_id,
    m.subscription_id is not distinct from m.instance_id, m.instance_id, m.version, m.finding_id, m.seq, m.type, 'pending', 0,
    case when w.failed then null else v_now end, m.at
  from unnest(p_routed) m
  left join lateral (
    select pawl_private.delivery_failed(d) as failed
    from pawl.delivery d
    where d.tenant_id = m.tenant_id
      and d.subscription_id = m.subscription_id
      and d.instance_id = m.instance_id
      and d.status = 'pending'
    order by d.tenant_id, d.instance_id, d.subscription_id, d.seq
    limit 1
  ) w on true
  -- A delivery exists already if a crash or a failover took the consumer's position back, or if the subscription
  -- was changed.
  on conflict do nothing;
  get diagnostics v_added = row_count;
  return v_added;
end
$$;

-- subscription_limit returns a tenant's limit of subscriptions if it is reached, as limit_text words it; else null.
-- Locks:   tenant (for no key update, if its subscriptions have a limit): one transaction at a time creates some
create function pawl_private.subscription_limit(p_tenant text) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit bigint;
  v_used bigint;
begin
  select (t.limits ->> 'subscriptions')::bigint into v_limit
  from pawl.tenant t
  where t.id = p_tenant and t.limits ? 'subscriptions'
  for no key update;
  if v_limit is null then
    return null;
  end if;
  select count(*) into v_used from pawl.subscription s where s.tenant_id = p_tenant;
  return case when v_used >= v_limit then jsonb_build_object('name', 'subscriptions', 'limit', v_limit, 'used', v_used) end;
end
$$;

-- route_page creates the deliveries of a page of the log: of the steps and findings after p_after up to p_until. It looks at up
-- to p_limit pairs of one of them and a subscription of one tenant, and at up to twice as many in all; further ones, and
-- those of a tenant that has unrouted steps, are put off. The caller must hold the lock of the consumer's row.
-- Returns: steps: how many were read; deliveries: how many were created
-- Writes:  delivery, unrouted_step
create function pawl_private.route_page(
  p_after bigint, p_until bigint, p_limit integer, p_head pawl.log_head, out steps integer, out deliveries integer
)
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_routed pawl_private.routed[];
begin
  with step as materialized (
    select
      l.position, h.tenant_id, h.instance_id, h.version::bigint as version, null::uuid as finding_id, h.seq, h.xid, h.workflow,
      pawl_private.message_type(h.kind) as type, h.event, h.to_state, h.status::text as status, h.at,
      pawl_private.epoch_of(h.xid, h.seq, p_head) as epoch
    from pawl.log l
    cross join lateral pawl_private.step_at(l.tenant_id, l.instance_id, l.version) h
    where l.position > p_after and l.position <= p_until
    union all
    select
      l.position, f.tenant_id, f.instance_id, null, f.id, f.seq, f.xid, f.workflow, 'pawl.finding.opened', null, f.state, null, f.opened_at,
      null
    from pawl.log l
    cross join lateral (select f.* from pawl.finding f where f.tenant_id = l.tenant_id and f.id = l.finding_id limit 1) f
    where l.position > p_after and l.position <= p_until and l.finding_id is not null
  ),
  -- How many subscriptions a step's tenant has is counted once, with the first step of the tenant.
  first as (
    select h.*, row_number() over (partition by h.tenant_id order by h.position) = 1 as is_first
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
    select h.*, not h.is_behind and sum(h.pairs) over (partition by h.tenant_id order by h.position) <= p_limit as fits
    from shared h
  ),
  placed as materialized (
    select h.*, not h.fits or sum(h.pairs) filter (where h.fits) over (order by h.position) > 2 * p_limit as put_off
    from in_share h
  ),
  late as (
    insert into pawl.unrouted_step (tenant_id, position, instance_id, version, finding_id, after_subscription)
    select
      h.tenant_id, h.position, case when h.finding_id is null then h.instance_id end, h.version, h.finding_id,
      '00000000-0000-0000-0000-000000000000'
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
        and pawl_private.subscription_wants(s, h.xid, h.seq, h.type, h.workflow, h.event, h.to_state, h.status)
    ) s
    where not h.put_off
    union all
    select h.*, h.instance_id
    from placed h
    cross join lateral (
      select from pawl.callback b where b.tenant_id = h.tenant_id and b.instance_id = h.instance_id limit 1
    ) b
    where h.status <> 'active'
  )
  select
    (select count(*) from step),
    array_agg(row(
      m.tenant_id, m.subscription_id, m.instance_id, m.version, m.finding_id, m.seq, m.type, m.at, m.epoch)::pawl_private.routed)
  into steps, v_routed
  from (select m.* from matching m order by m.position, m.subscription_id) m;
  deliveries := pawl_private.add_deliveries(v_routed);
end
$$;

-- route_unrouted creates deliveries of the oldest unrouted steps of one tenant: the next one after p_after in
-- the order of tenants, of those that have any. It looks at up to p_limit pairs of a step, or a finding, and a subscription.
-- The caller must hold the lock of the consumer's row.
-- Returns: tenant: whose steps they were; null if no tenant has any. deliveries: how many were created
-- Writes:  delivery, unrouted_step
create function pawl_private.route_unrouted(p_after text, p_limit integer, p_head pawl.log_head, out tenant text, out deliveries integer)
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
  select u.tenant_id into tenant from pawl.unrouted_step u where u.tenant_id > p_after order by u.tenant_id, u.position limit 1;
  if not found then
    select u.tenant_id into tenant from pawl.unrouted_step u order by u.tenant_id, u.position limit 1;
  end if;
  for v_step in
    select
      u.position, coalesce(u.instance_id, f.instance_id) as instance_id, u.version, u.finding_id, u.after_subscription,
      coalesce(h.xid, f.xid) as xid, coalesce(h.seq, f.seq) as seq, coalesce(h.workflow, f.workflow) as workflow,
      case when u.finding_id is null then pawl_private.message_type(h.kind) else 'pawl.finding.opened' end as type, h.event,
      coalesce(h.to_state, f.state) as to_state, h.status, coalesce(h.at, f.opened_at) as at,
      case when u.finding_id is null then pawl_private.epoch_of(h.xid, h.seq, p_head) end as epoch
    from (
      select u.* from pawl.unrouted_step u where u.tenant_id = tenant order by u.tenant_id, u.position limit p_limit
    ) u
    -- A step that was purged has no deliveries.
    left join lateral pawl_private.step_at(u.tenant_id, u.instance_id, u.version) h on true
    left join lateral (
      select f.* from pawl.finding f where f.tenant_id = u.tenant_id and f.id = u.finding_id limit 1
    ) f on true
    order by u.tenant_id, u.position
  loop
    select
      coalesce(array_agg(l.id), '{}'),
      coalesce(array_agg(l.id) filter (
        where pawl_private.subscription_wants(
          l.subscription, v_step.xid, v_step.seq, v_step.type, v_step.workflow, v_step.event, v_step.to_state, v_step.status)
      ), '{}')
    into v_looked, v_chosen
    from (
      select s.id, s as subscription
      from pawl.subscription s
      where s.tenant_id = tenant and s.id > v_step.after_subscription
      order by s.tenant_id, s.id
      limit v_left
    ) l;
    deliveries := deliveries + pawl_private.add_deliveries(array(
      select row(
        tenant, c.id, v_step.instance_id, v_step.version, v_step.finding_id, v_step.seq, v_step.type, v_step.at, v_step.epoch
      )::pawl_private.routed
      from unnest(v_chosen) as c (id)));
    if cardinality(v_looked) < v_left then
      delete from pawl.unrouted_step u where u.tenant_id = tenant and u.position = v_step.position;
    else
      update pawl.unrouted_step u
      set after_subscription = v_looked[cardinality(v_looked)]
      where u.tenant_id = tenant and u.position = v_step.position;
    end if;
    v_left := v_left - greatest(cardinality(v_looked), 1);
    exit when v_left <= 0;
  end loop;
end
$$;

-- route_only creates the deliveries for one subscription of steps and findings that the router has not routed yet: of up
-- to 20,000 unrouted ones of the tenant, and of the tenant's among the next 20,000 rows of the log, and among up to 20,000
-- steps and as many findings without a position, all of all tenants. The caller must hold the lock of the consumer's row.
-- Writes:  delivery
create function pawl_private.route_only(p_tenant text, p_id uuid) returns void
language plpgsql volatile
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_snapshot pg_snapshot := pg_current_snapshot();
begin
  perform pawl_private.add_deliveries(array(
    select row(p_tenant, p_id, n.instance_id, n.version, n.finding_id, n.seq, n.type, n.at, n.epoch)::pawl_private.routed
    from pawl.log_head e
    cross join pawl.consumer c
    cross join lateral (
      select
        o.part, o.place, h.instance_id, h.version, null::uuid as finding_id, h.xid, h.seq, pawl_private.message_type(h.kind) as type,
        h.workflow, h.event, h.to_state, h.status, h.at, pawl_private.epoch_of(h.xid, h.seq, e) as epoch
      from (
        (
          select 0 as part, u.position as place, h as step
          from pawl.unrouted_step u
          cross join lateral pawl_private.step_at(u.tenant_id, u.instance_id, u.version) h
          where u.tenant_id = p_tenant
          order by u.tenant_id, u.position
          limit 20000
        )
        union all
        (
          select 1, l.position, h
          from (select l.* from pawl.log l where l.position > c.position order by l.position limit 20000) l
          cross join lateral pawl_private.step_at(l.tenant_id, l.instance_id, l.version) h
          where l.tenant_id = p_tenant
        )
        union all
        (
          select 2, h.seq, h::pawl.history
          from (select h.* from pawl_private.steps_between(e.snapshot, v_snapshot, e.first_seq) h limit 20000) h
          where h.tenant_id = p_tenant
        )
      ) o
      cross join lateral (select (o.step).*) h
      union all
      select
        o.part, o.place, f.instance_id, null, f.id, f.xid, f.seq, 'pawl.finding.opened', f.workflow, null, f.state, null, f.opened_at, null
      from (
        (
          select 0 as part, u.position as place, f::pawl.finding as finding
          from (
            select u.*
            from pawl.unrouted_step u
            where u.tenant_id = p_tenant and u.finding_id is not null
            order by u.tenant_id, u.position
            limit 20000
          ) u
          cross join lateral (select f.* from pawl.finding f where f.tenant_id = u.tenant_id and f.id = u.finding_id limit 1) f
        )
        union all
        (
          select 1, l.position, f::pawl.finding
          from (select l.* from pawl.log l where l.position > c.position order by l.position limit 20000) l
          cross join lateral (select f.* from pawl.finding f where f.tenant_id = l.tenant_id and f.id = l.finding_id limit 1) f
          where l.tenant_id = p_tenant and l.finding_id is not null
        )
        union all
        (
          select 2, f.seq, f::pawl.finding
          from (select f.* from pawl_private.findings_between(e.snapshot, v_snapshot) f limit 20000) f
          where f.tenant_id = p_tenant
        )
      ) o
      cross join lateral (select (o.finding).*) f
    ) n
    cross join lateral (
      select s from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id limit 1
    ) s
    where c.name = 'webhooks'
      and pawl_private.subscription_wants(s.s, n.xid, n.seq, n.type, n.workflow, n.event, n.to_state, n.status)
    order by n.part, n.place
  ));
end
$$;

-- webhook_restored notes that the database has come to another server, whose steps have larger seqs than p_first_seq.
-- Locks:   subscription
-- Writes:  subscription
create function pawl_private.webhook_restored(p_first_seq bigint) returns void
language sql volatile
as $$ update pawl.subscription s set later_seq = p_first_seq where s.later_seq is null $$;

-- webhook_retains says whether a message of an instance's step is still to be sent: an unrouted step, a pending
-- delivery whose subscription is not disabled, or a callback's. A finding outlives its instance.
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
    where d.status = 'pending' and d.finding_id is null
      and not exists (
        select from pawl.subscription s
        where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
      )
  );
end
$$;

-- webhook_retains_finding is webhook_retains for a finding.
create function pawl_private.webhook_retains_finding(p_tenant text, p_id uuid) returns boolean
language plpgsql stable
as $$
begin
  return exists (
    select from pawl.unrouted_step u where u.tenant_id = p_tenant and u.finding_id = p_id
  ) or exists (
    select
    from pawl.delivery d
    where d.tenant_id = p_tenant and d.finding_id = p_id and d.status = 'pending'
      and not exists (
        select from pawl.subscription s
        where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
      )
  );
end
$$;

-- subscription_document is a subscription for the audit; null for none. Its URL has neither a password nor a query.
create function pawl_private.subscription_document(p_tenant text, p_id uuid) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'url', regexp_replace(regexp_replace(s.url, '[?#].*', ''), '^([^/]*//)[^/]*@', '\1'),
    'workflows', s.workflows, 'events', s.events, 'states', s.states, 'terminal_only', s.terminal_only,
    'disabled', s.disabled_at is not null)
    || case when s.types <> '{}' then jsonb_build_object('types', s.types) else '{}' end
  from pawl.subscription s
  where s.tenant_id = p_tenant and s.id = p_id
$$;

-- replay_deliveries makes settled deliveries of p_ids pending again: see delivery_replay.
-- Returns: as delivery_replay
-- Locks:   consumer
-- Writes:  delivery
create function pawl_private.replay_deliveries(
  p_tenant text, p_ids uuid[], out replayed integer, out gone integer, out looked_at integer, out last uuid
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_row record;
begin
  replayed := 0; gone := 0; looked_at := 0;
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  for v_row in
    select d.id, d.subscription_id, d.instance_id, d.version, d.finding_id, d.seq, d.callback, d.status
    from unnest(p_ids) as u (id)
    cross join lateral (
      select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.id = u.id limit 1
    ) d
    order by d.id
  loop
    looked_at := looked_at + 1;
    last := v_row.id;
    continue when v_row.status = 'pending';
    if not exists (
      select from pawl.subscription s where s.tenant_id = p_tenant and s.id = v_row.subscription_id
      union all
      select from pawl.callback b where v_row.callback and b.tenant_id = p_tenant and b.instance_id = v_row.instance_id
    ) or v_row.version is not null and not exists (
      select from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = v_row.instance_id and h.version = v_row.version
    ) or v_row.finding_id is not null and not exists (
      select from pawl.finding f where f.tenant_id = p_tenant and f.id = v_row.finding_id
    ) then
      gone := gone + 1;
      continue;
    end if;
    -- It is due before the instance's later pending deliveries, and waits for earlier ones that failed.
    update pawl.delivery d
    set status = 'pending', replayed = true,
      next_attempt_at = (
        select case
          when not coalesce(bool_or(o.seq < v_row.seq and pawl_private.delivery_failed(o)), false)
            then least(v_now, min(o.next_attempt_at) filter (where o.seq > v_row.seq))
        end
        from pawl.delivery o
        where o.tenant_id = p_tenant and o.subscription_id = v_row.subscription_id
          and o.instance_id = v_row.instance_id and o.status = 'pending'
      )
    where d.tenant_id = p_tenant and d.id = v_row.id;
    replayed := replayed + 1;
  end loop;
end
$$;
