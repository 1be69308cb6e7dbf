-- Timers: the worker's calls. A timer row says when to look at an instance; what is due
-- is found out from the instance under its lock, and done by the same fire as everything.
--
-- One process at a time fires, by an advisory lock that its transaction holds: others
-- would only wait for the same instances. Nobody waits for anybody here: an instance that
-- is locked is passed by, and looked at again.

-- +goose Up

-- next_deadline is the nearest end of a state's timeouts and of the instance's lifetime,
-- without the first p_tried timeouts, which were refused. A timeout goes before a lifetime
-- that ends with it.
-- Returns: one row, or none if there is no deadline
-- +goose StatementBegin
create function pawl.next_deadline(p_instance pawl.instance, p_tried integer)
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
-- +goose StatementEnd

-- set_timer arms an instance's timer for the deadline after p_tried timeouts, which were
-- refused; without one, the timer goes. The caller holds the instance's lock.
-- Writes:  timer
-- +goose StatementBegin
create function pawl.set_timer(p_instance pawl.instance, p_tried integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
  select p_instance.tenant_id, p_instance.id, d.due_at, p_instance.version, p_tried
  from pawl.next_deadline(p_instance, p_tried) d
  on conflict on constraint timer_pkey do update
  set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = excluded.tried;
  if not found then
    delete from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;
-- +goose StatementEnd

-- fire_timer_batch ends the given timeouts and lifetimes of locked instances of a tenant.
-- The payload is {"due_at"}, so that history tells how late each was. One that is refused
-- gives way to the state's next deadline; one that raises is put off by a minute, and
-- undoes no other.
-- Returns: how many steps were made
-- Writes:  what fire writes
-- +goose StatementBegin
create function pawl.fire_timer_batch(
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
    select o.outcome, o.ordinal, (i)::pawl.instance as instance
    from pawl.fire(
      p_tenant, p_ids, p_events,
      array(select jsonb_build_object('due_at', pawl.rfc3339(d.due_at)) from unnest(p_due_at) as d (due_at)),
      v_none, array(select format('{%s}', v.version) from unnest(p_versions) as v (version)),
      array_fill('*'::text, array[cardinality(p_ids)]), array_fill('pawl'::text, array[cardinality(p_ids)]),
      v_none, v_none, v_none, true) o
    cross join lateral (select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = o.id limit 1) i
  loop
    if v_outcome.outcome = 'applied' then
      v_fired := v_fired + 1;
    else
      perform pawl.set_timer(v_outcome.instance, p_tried[v_outcome.ordinal]);
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
    v_fired := v_fired + pawl.fire_timer_batch(
      p_tenant, p_ids[v_i:v_i], p_versions[v_i:v_i], p_events[v_i:v_i], p_tried[v_i:v_i], p_due_at[v_i:v_i]);
  end loop;
  return v_fired;
end
$$;
-- +goose StatementEnd

-- fire_timers ends up to p_limit timeouts and lifetimes that are due, the oldest first.
-- Returns: looked_at: how many timers it had before it, -1 if another process is at it;
--          fired: how many steps were made; late: how long the oldest had been due;
--          next_in: the time to the next timer, null if there is none
-- Locks:   instance (for no key update, those that are not locked), timer
-- Writes:  instance, history, timer
-- +goose StatementBegin
create function pawl.fire_timers(
  p_limit integer, out looked_at integer, out fired integer, out late interval, out next_in interval
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_timer record;
  v_tenant text;
  v_ids uuid[];
  v_versions bigint[];
  v_events text[];
  v_tried integer[];
  v_due_at timestamptz[];
begin
  looked_at := -1;
  fired := 0;
  late := interval '0';
  if pg_try_advisory_xact_lock(hashtextextended('pawl.fire_timers', 0)) then
    looked_at := 0;
    for v_timer in
      select t.tenant_id, i.instance, a.tried, d.due_at, d.event, d.tried as next_tried
      from (
        select t.* from pawl.timer t where t.due_at <= v_now order by t.due_at limit p_limit
      ) t
      cross join lateral (
        select i as instance
        from pawl.instance i
        where i.tenant_id = t.tenant_id and i.id = t.instance_id
        limit 1
        for no key update skip locked
      ) i
      -- What was refused counts for the state that it was refused in.
      cross join lateral (
        select case when t.armed_version = (i.instance).version then t.tried else 0 end as tried
      ) a
      left join lateral pawl.next_deadline(i.instance, a.tried) d on true
      order by t.tenant_id
    loop
      looked_at := looked_at + 1;
      if v_timer.due_at <= v_now then
        if v_timer.tenant_id <> v_tenant then
          fired := fired + pawl.fire_timer_batch(v_tenant, v_ids, v_versions, v_events, v_tried, v_due_at);
          v_ids := null; v_versions := null; v_events := null; v_tried := null; v_due_at := null;
        end if;
        v_tenant := v_timer.tenant_id;
        v_ids := v_ids || (v_timer.instance).id;
        v_versions := v_versions || (v_timer.instance).version;
        v_events := v_events || v_timer.event;
        v_tried := v_tried || v_timer.next_tried;
        v_due_at := v_due_at || v_timer.due_at;
        late := greatest(late, v_now - v_timer.due_at);
      else
        perform pawl.set_timer(v_timer.instance, v_timer.tried);
      end if;
    end loop;
    if v_ids is not null then
      fired := fired + pawl.fire_timer_batch(v_tenant, v_ids, v_versions, v_events, v_tried, v_due_at);
    end if;
  end if;
  select t.due_at - v_now into next_in from pawl.timer t order by t.due_at limit 1;
end
$$;
-- +goose StatementEnd

-- put_off_timer puts the timer that is due first off by a minute: for the worker, when
-- that timer alone cannot be fired within the statement timeout.
-- Returns: the instance, or nothing if no timer is due
-- Writes:  timer
-- +goose StatementBegin
create function pawl.put_off_timer() returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.timer t
  set due_at = pawl.now() + interval '1 minute'
  from (
    select t.tenant_id, t.instance_id
    from pawl.timer t
    where t.due_at <= (select pawl.now())
    order by t.due_at
    limit 1
    for update skip locked
  ) d
  where t.tenant_id = d.tenant_id and t.instance_id = d.instance_id
  returning t.instance_id
$$;
-- +goose StatementEnd

revoke execute on function pawl.next_deadline, pawl.set_timer, pawl.fire_timer_batch, pawl.fire_timers, pawl.put_off_timer
  from public;

-- +goose Down
drop function pawl.put_off_timer, pawl.fire_timers, pawl.fire_timer_batch, pawl.set_timer, pawl.next_deadline;
