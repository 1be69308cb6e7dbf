-- next_deadline is the nearest deadline of an instance: of its state's timeouts but the first
-- p_tried, which were refused, and of its lifetime. A timeout precedes a lifetime that is due at the
-- same time.
-- Returns: one row, or none if there is no deadline. tried: the p_tried that leads to the deadline
--          after this one; null for the lifetime, which is the last
create function pawl_private.next_deadline(p_instance pawl.instance, p_tried integer)
returns table (due_at timestamptz, event text, tried integer)
language sql stable
as $$
  select d.due_at, d.event, d.tried
  from (
    select p_instance.state_changed_at + u.timeout as due_at, u.event, u.position::integer as tried
    from pawl.workflow_state s
    cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as u (timeout, event, position)
    where s.workflow = p_instance.workflow
      and s.workflow_version = p_instance.workflow_version
      and s.state = p_instance.state
      and u.position > p_tried
    union all
    select p_instance.expires_at, 'ttl', null
    where p_instance.expires_at is not null
  ) d
  where p_instance.status = 'active'
  order by d.due_at, d.tried
  limit 1
$$;

-- set_timer arms an instance's timer for the next deadline after p_tried timeouts, which were refused.
-- If there is none, it deletes the timer. The caller must hold the instance's lock.
-- Writes:  timer
create function pawl_private.set_timer(p_instance pawl.instance, p_tried integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
  select p_instance.tenant_id, p_instance.id, d.due_at, p_instance.version, p_tried
  from pawl_private.next_deadline(p_instance, p_tried) d
  on conflict on constraint timer_pkey do update
  set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = excluded.tried;
  if not found then
    delete from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;

-- fire_timer_batch ends the given timeouts and lifetimes of locked instances of a tenant. The payload
-- is {"due_at"}, so that history shows how late each was. After a refusal the timer is armed for the
-- instance's next deadline. After an exception the timer is postponed by a minute, and the others of
-- the batch are fired one by one.
-- Returns: how many of them were ended
-- Locks:   what fire locks, and timer
-- Writes:  what fire writes
create function pawl_private.fire_timer_batch(
  p_tenant text, p_ids uuid[], p_versions bigint[], p_events text[], p_tried integer[], p_due_at timestamptz[]
) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fired integer := 0;
  v_none text[] := array_fill(''::text, array[cardinality(p_ids)]);
  v_outcome record;
begin
  for v_outcome in
    select o.code, o.ordinal, (i)::pawl.instance as instance
    from pawl.fire(
      p_tenants => array_fill(p_tenant, array[cardinality(p_ids)]), p_ids => p_ids, p_events => p_events,
      p_payloads => array(
        select jsonb_build_object('due_at', pawl_private.rfc3339(d.due_at)) from unnest(p_due_at) as d (due_at)),
      p_keys => v_none,
      p_expected => array(select format('{%s}', v.version) from unnest(p_versions) as v (version)),
      p_checked => array_fill('*'::text, array[cardinality(p_ids)]),
      p_actors => array_fill('pawl'::text, array[cardinality(p_ids)]),
      p_reasons => v_none, p_correlation_ids => v_none, p_traceparents => v_none, p_by_timer => true) o
    cross join lateral (
      select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = p_ids[o.ordinal] limit 1
    ) i
  loop
    if v_outcome.code = 'applied' then
      v_fired := v_fired + 1;
    else
      perform pawl_private.set_timer(v_outcome.instance, p_tried[v_outcome.ordinal]);
    end if;
  end loop;
  return v_fired;
exception when others then
  if cardinality(p_ids) = 1 then
    raise warning 'pawl: % of instance % fails: %', p_events[1], p_ids[1], sqlerrm;
    update pawl.timer t
    set due_at = pawl.now() + interval '1 minute'
    where t.tenant_id = p_tenant and t.instance_id = p_ids[1];
    return 0;
  end if;
  v_fired := 0;
  for v_i in 1 .. cardinality(p_ids) loop
    v_fired := v_fired + pawl_private.fire_timer_batch(
      p_tenant => p_tenant, p_ids => p_ids[v_i:v_i], p_versions => p_versions[v_i:v_i], p_events => p_events[v_i:v_i],
      p_tried => p_tried[v_i:v_i], p_due_at => p_due_at[v_i:v_i]);
  end loop;
  return v_fired;
end
$$;
