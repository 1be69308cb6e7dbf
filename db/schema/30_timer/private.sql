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

-- due_timers reads the timers that are due, the oldest first, and locks their instances. It leaves out an
-- instance that is locked.
-- Returns: one row for each. tried: how many timeouts of the state were refused. due_at, event: the
--          next deadline, which need not be due; null if there is none. next_tried: as of next_deadline
-- Locks:   instance (for no key update, those that are not locked)
create function pawl_private.due_timers(p_now timestamptz, p_limit integer)
returns table (instance pawl.instance, tried integer, due_at timestamptz, event text, next_tried integer)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select i.instance, a.tried, d.due_at, d.event, d.tried
  from (
    select t.* from pawl.timer t where t.due_at <= p_now order by t.due_at limit p_limit
  ) t
  cross join lateral (
    select i as instance
    from pawl.instance i
    where i.tenant_id = t.tenant_id and i.id = t.instance_id
    limit 1
    for no key update skip locked
  ) i
  -- A refused timeout counts only while the instance stays in the state that refused it. A timeout that
  -- failed is tried again until the next deadline is due; then it counts as refused.
  cross join lateral (
    select case
      when t.armed_version <> (i.instance).version then 0
      when t.failed_version = t.armed_version
        and (select n.due_at <= p_now from pawl_private.next_deadline(i.instance, t.tried + 1) n) then t.tried + 1
      else t.tried
    end as tried
  ) a
  left join lateral pawl_private.next_deadline(i.instance, a.tried) d on true;
end
$$;

-- set_timer arms an instance's timer for the next deadline after p_tried timeouts, which were refused. If
-- there is none, it deletes the timer. It clears a failure. The caller must hold the instance's lock.
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
  set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = excluded.tried,
    failed_version = null, last_error = null;
  if not found then
    delete from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;

-- fail_timer records why the step of a deadline could not be made. It postpones the timer by a minute, or
-- to the next deadline if that is earlier. p_tried: how many timeouts of the state were refused before
-- this one. p_error: the reason, for everybody who may read the instance. p_cause: the cause, for the log
-- only.
-- Returns: a JSON array with one object for the log; an empty one if the same error was recorded for this
--          version before
-- Writes:  timer
create function pawl_private.fail_timer(
  p_instance pawl.instance, p_tried integer, p_event text, p_error text, p_cause text
) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_known boolean;
begin
  select t.failed_version = p_instance.version and t.armed_version = p_instance.version and t.last_error = p_error
  into v_known
  from pawl.timer t
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  update pawl.timer t
  set armed_version = p_instance.version, tried = p_tried, failed_version = p_instance.version, last_error = p_error,
    due_at = least(
      v_now + interval '1 minute',
      (select d.due_at from pawl_private.next_deadline(p_instance, p_tried + 1) d where d.due_at > v_now))
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  if v_known then
    return '[]';
  end if;
  return jsonb_build_array(jsonb_build_object(
    'tenant', p_instance.tenant_id, 'workflow', p_instance.workflow, 'instance', p_instance.id, 'event', p_event,
    'reason', p_error, 'cause', p_cause));
end
$$;

-- fire_timer_batch fires the given timeouts and lifetimes of locked instances. The payload is {"due_at"}, so
-- that history shows how late each was. If no guard of a timeout holds, the timer is armed for the
-- instance's next deadline. If a step cannot be made, the timer fails: see fail_timer. After an exception
-- the batch is fired again, one by one.
-- p_tried:      how many timeouts of the state were refused before this one
-- p_next_tried: the same, if this one is refused too; null for the lifetime
-- Returns: fired: how many steps were made. failures: the new ones, see fail_timer
-- Locks:   what fire locks, and timer
-- Writes:  what fire writes
create function pawl_private.fire_timer_batch(
  p_tenants text[], p_ids uuid[], p_versions bigint[], p_events text[], p_tried integer[], p_next_tried integer[],
  p_due_at timestamptz[], out fired integer, out failures jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size integer := cardinality(p_ids);
  v_none text[] := array_fill(''::text, array[v_size]);
  v_outcome record;
  v_instance pawl.instance;
  v_error text;
  v_one record;
begin
  fired := 0;
  failures := '[]';
  for v_outcome in
    select o.code, o.ordinal
    from pawl.fire(
      p_tenants => p_tenants, p_ids => p_ids, p_events => p_events,
      p_payloads => array(
        select jsonb_build_object('due_at', pawl_private.rfc3339(d.due_at)) from unnest(p_due_at) as d (due_at)),
      p_keys => v_none,
      p_expected => array(select format('{%s}', v.version) from unnest(p_versions) as v (version)),
      p_checked => array_fill('*'::text, array[v_size]),
      p_actors => array_fill('pawl'::text, array[v_size]),
      p_reasons => v_none, p_correlation_ids => v_none, p_traceparents => v_none, p_by_timer => true) o
  loop
    if v_outcome.code = 'applied' then
      fired := fired + 1;
      continue;
    end if;
    select i.* into strict v_instance
    from pawl.instance i
    where i.tenant_id = p_tenants[v_outcome.ordinal] and i.id = p_ids[v_outcome.ordinal];
    if v_outcome.code in ('guard-rejected', 'transition-not-allowed') then
      perform pawl_private.set_timer(v_instance, p_next_tried[v_outcome.ordinal]);
    else
      select format(c.message, p_events[v_outcome.ordinal], v_instance.state, v_instance.version, v_instance.id)
      into strict v_error
      from pawl_private.condition c
      where c.outcome = v_outcome.code;
      failures := failures || pawl_private.fail_timer(
        p_instance => v_instance, p_tried => p_tried[v_outcome.ordinal], p_event => p_events[v_outcome.ordinal],
        p_error => v_error, p_cause => null);
    end if;
  end loop;
exception when others then
  fired := 0;
  failures := '[]';
  if v_size = 1 then
    -- A path raises these SQLSTATEs. The text of any other error may give away something about the
    -- database.
    v_error := case
      when sqlstate ~ '^(22|54)' or sqlstate in ('42704', '0A000') then 'a guard or an assign raises: ' || sqlerrm
      else format('the step cannot be made (SQLSTATE %s); the log of the service says why', sqlstate)
    end;
    select i.* into strict v_instance from pawl.instance i where i.tenant_id = p_tenants[1] and i.id = p_ids[1];
    failures := pawl_private.fail_timer(
      p_instance => v_instance, p_tried => p_tried[1], p_event => p_events[1], p_error => left(v_error, 1000),
      p_cause => sqlerrm);
  else
    for v_i in 1 .. v_size loop
      v_one := pawl_private.fire_timer_batch(
        p_tenants => p_tenants[v_i:v_i], p_ids => p_ids[v_i:v_i], p_versions => p_versions[v_i:v_i],
        p_events => p_events[v_i:v_i], p_tried => p_tried[v_i:v_i], p_next_tried => p_next_tried[v_i:v_i],
        p_due_at => p_due_at[v_i:v_i]);
      fired := fired + v_one.fired;
      failures := failures || v_one.failures;
    end loop;
  end if;
end
$$;
