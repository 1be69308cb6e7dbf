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

-- create_deliveries creates the deliveries of a consumer's next page of steps. p_only: create those for this
-- subscription alone. The caller must hold the lock of the consumer's row, so that no delivery is settled or
-- replayed meanwhile.
-- Returns: steps: how many were read; deliveries: how many were created; place: the seq up to which the
--          batch has been read then; null if it ends there
-- Writes:  delivery
create function pawl_private.create_deliveries(
  p_consumer pawl.consumer, p_batch pg_snapshot, p_limit integer, p_only uuid default null,
  out steps integer, out deliveries integer, out place bigint
)
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
begin
  with step as materialized (
    select h.tenant_id, h.instance_id, h.version, h.seq, h.xid, h.workflow, h.kind, h.event, h.to_state, h.status
    from pawl_private.consumer_steps(p_consumer, p_batch, p_limit) h
  ),
  matching as (
    select h.*, s.id as subscription_id, false as callback
    from step h
    cross join lateral (
      select s.id
      from pawl.subscription s
      where s.tenant_id = h.tenant_id
        and (p_only is null or s.id = p_only)
        and s.disabled_at is null
        and not pg_visible_in_snapshot(h.xid, s.since)
        and (s.workflows = '{}' or h.workflow = any (s.workflows))
        and (s.events = '{}' or h.event = any (s.events))
        and (
          s.states = '{}'
          or exists (select from unnest(s.states) as f (state) where h.to_state = f.state or starts_with(h.to_state, f.state || '.'))
        )
        and (not s.terminal_only or h.status <> 'active')
    ) s
    union all
    select h.*, h.instance_id, true
    from step h
    cross join lateral (
      select from pawl.callback b where b.tenant_id = h.tenant_id and b.instance_id = h.instance_id limit 1
    ) b
    where h.status <> 'active' and p_only is null
  ),
  made as (
    insert into pawl.delivery (
      tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, next_attempt_at, created_at)
    select
      m.tenant_id, pawl_private.uuid_v7(v_now + m.ordinal * interval '1 microsecond'), m.subscription_id, m.callback, m.instance_id, m.version, pawl_private.message_type(m.kind),
      'pending', 0, case when w.failed then null else v_now end, v_now
    from (
      -- Ids rise in the order of the steps.
      select m.*, row_number() over (order by m.seq) as ordinal
      from matching m
    ) m
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
    order by m.ordinal
    -- A delivery exists already if the cursor was put back, or if the subscription was changed.
    on conflict on constraint delivery_step_key do nothing
    returning 1
  )
  select (select count(*) from step), (select count(*) from made), (select max(h.seq) from step h)
  into steps, deliveries, place;
  if steps < p_limit then
    place := pawl_private.place_after(p_consumer);
  end if;
end
$$;

-- webhook_retains says whether a message of an instance is still to be sent: a pending delivery whose
-- subscription is not disabled, or a callback's.
create function pawl_private.webhook_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return exists (
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
