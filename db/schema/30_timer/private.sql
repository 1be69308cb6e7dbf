-- timer_turns chooses the tenants of whose timers the next call of the fast lane fires some, while more timers are due
-- than a call fires. Tenants have their turns in the order of their names, behind the last one that had its turn. No more
-- than 1,000 tenants with timers are looked at. The caller must hold the lock of the fast lane.
-- Returns: up to p_limit tenants with due timers, none of which is disabled
-- Writes:  timer_lane
create function pawl_private.timer_turns(p_now timestamptz, p_limit integer) returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of tenants, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_tenants text[] := '{}';
  v_after text := (select l.after_tenant from pawl_private.timer_lane l where l.name = 'fast');
  v_begun boolean := v_after = '';
  v_next record;
begin
  for v_look in 1..1000 loop
    exit when cardinality(v_tenants) >= p_limit;
    select t.tenant_id, t.due_at
    into v_next
    from pawl.timer t
    where t.tenant_id > v_after and t.queued_version is distinct from t.armed_version
    order by t.tenant_id, t.due_at
    limit 1;
    if v_next.tenant_id is null then
      v_after := ''; -- Nobody is behind the last one: from the beginning.
      exit when v_begun or v_tenants <> '{}';
      v_begun := true;
      continue;
    end if;
    v_after := v_next.tenant_id;
    if v_next.due_at <= p_now and not pawl_private.is_disabled(v_after) then
      v_tenants := v_tenants || v_after;
    end if;
  end loop;
  update pawl_private.timer_lane l set after_tenant = v_after where l.name = 'fast' and l.after_tenant <> v_after;
  return v_tenants;
end
$$;

-- due_timers reads the timers of a lane that are due, the oldest first, and locks their instances. It leaves
-- out an instance that is locked, and those of disabled tenants, and looks at no more than 5,000 timers to find
-- others; at 1,000 with p_tenants.
-- p_queue:   a queue of the slow lane; null for the fast lane
-- p_tenants: in the fast lane, the tenants that take turns, with one timer at each turn; null for all, without turns
-- Returns: up to p_limit rows. tried: how many timeouts of the state were refused. due_at, event: the next deadline,
--          which need not be due; null if there is none. next_tried: as of next_deadline. queue: in the fast lane, the
--          queue that the timer must be moved to, untried; null if it is not known to be slow
-- Locks:   instance (for no key update, those that are not locked)
create function pawl_private.due_timers(p_now timestamptz, p_limit integer, p_queue integer, p_tenants text[] default null)
returns table (
  instance pawl.instance, queued_version bigint, tried integer, due_at timestamptz, event text, next_tried integer,
  queue integer
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read the timers: by the index of the lane, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
begin
  return query
  select i.instance, i.queued_version, a.tried, d.due_at, d.event, d.tried, q.id
  from (
    select l.instance, t.armed_version, t.queued_version::bigint as queued_version, t.failed_version, t.tried
    from (
      (
        select t.*
        from pawl.timer t
        where p_queue is null and p_tenants is null and t.due_at <= p_now
          and t.queued_version is distinct from t.armed_version
        order by t.due_at
        limit 5000
      )
      union all
      (
        select (t.timer).*
        from unnest(p_tenants) as d (tenant_id)
        cross join lateral (
          select o.timer, row_number() over () as turn
          from (
            select t as timer
            from pawl.timer t
            where t.tenant_id = d.tenant_id and t.due_at <= p_now and t.queued_version is distinct from t.armed_version
            order by t.tenant_id, t.due_at
            limit greatest(1000 / greatest(cardinality(p_tenants), 1), 1)
          ) o
        ) t
        order by t.turn
      )
      union all
      (
        select t.*
        from pawl.timer t
        where t.queue = p_queue and t.due_at <= p_now and t.queued_version = t.armed_version
        order by t.queue, t.due_at
        limit 5000
      )
    ) t
    cross join lateral (
      select i as instance
      from pawl.instance i
      where i.tenant_id = t.tenant_id and i.id = t.instance_id and not pawl_private.is_disabled(t.tenant_id)
      limit 1
      for no key update skip locked
    ) l
    limit greatest(p_limit, 0) -- A null limit would be none.
  ) i
  -- A refused timeout counts only while the instance stays in the state that refused it. A timeout that
  -- failed is tried again until the next deadline is due; then it counts as refused.
  cross join lateral (
    select case
      when i.armed_version <> (i.instance).version then 0
      when i.failed_version = i.armed_version
        and (select n.due_at <= p_now from pawl_private.next_deadline(i.instance, i.tried + 1) n) then i.tried + 1
      else i.tried
    end as tried
  ) a
  left join lateral pawl_private.next_deadline(i.instance, a.tried) d on true
  left join lateral (
    select q.id
    from pawl_private.slow_queue q
    where p_queue is null and q.tenant_id = (i.instance).tenant_id and q.workflow = (i.instance).workflow
      and q.workflow_version = (i.instance).workflow_version and q.event = d.event and q.slow_until > p_now
    limit 1
  ) q on true;
end
$$;

-- slow_for is for how long a kind of timers counts as slow after it was found slow once more. It is a minute
-- at first, so that a database that was slow as a whole is forgotten soon, and at most an hour.
create function pawl_private.slow_for(p_times integer) returns interval
language sql immutable parallel safe
as $$ select least(interval '1 minute' * 2 ^ least(p_times - 1, 10), interval '1 hour') $$;

-- too_slow says whether so many timers took too long to be fired in the fast lane. As few as 20 of a kind
-- would use up the lane's statement timeout, a quarter of a second.
create function pawl_private.too_slow(p_elapsed interval, p_timers integer) returns boolean
language sql immutable parallel safe
as $$ select p_elapsed > p_timers * interval '12.5 milliseconds' $$;

-- note_slow notes that the kind of an instance's timer is slow.
-- Returns: the kind's queue
-- Writes:  slow_queue
create function pawl_private.note_slow(p_instance pawl.instance, p_event text, p_now timestamptz) returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into pawl_private.slow_queue as q (
    tenant_id, workflow, workflow_version, event, times, slow_until, turn_at)
  values (
    p_instance.tenant_id, p_instance.workflow, p_instance.workflow_version, p_event, 1,
    p_now + pawl_private.slow_for(1), '-infinity')
  on conflict on constraint slow_queue_kind_key do update
  set times = q.times + 1, slow_until = p_now + pawl_private.slow_for(q.times + 1)
  returning id
$$;

-- queue_timer moves a timer to a queue of the slow lane. The caller must hold the instance's lock.
-- Writes:  timer
create function pawl_private.queue_timer(p_instance pawl.instance, p_queue integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  update pawl.timer t
  set queue = p_queue, queued_version = p_instance.version, armed_version = p_instance.version,
    tried = case when t.armed_version = p_instance.version then t.tried else 0 end
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
end
$$;

-- fail_timer records why the step of a deadline could not be made. It postpones the timer by a minute, or to the next
-- deadline if that is earlier, and takes it out of the slow lane. p_tried: how many timeouts of the state were refused
-- before this one. p_error: the reason, for everybody who may read the instance. p_cause: the cause, for the log only.
-- A timer that repeats does not fail: it is tried again at its next time.
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
  if pawl_private.pass_over(p_instance, p_event, p_tried) then
    return jsonb_build_array(jsonb_build_object(
      'tenant', p_instance.tenant_id, 'workflow', p_instance.workflow, 'instance', p_instance.id, 'event', p_event,
      'reason', p_error, 'cause', p_cause));
  end if;
  select t.failed_version = p_instance.version and t.armed_version = p_instance.version and t.last_error = p_error
  into v_known
  from pawl.timer t
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  update pawl.timer t
  set armed_version = p_instance.version, tried = p_tried, failed_version = p_instance.version, last_error = p_error,
    queue = null, queued_version = null,
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

-- fire_timer_batch fires the given timeouts and lifetimes of locked instances. Their payloads show how late each was:
-- see timer_payload. If no guard of a timeout holds, the timer is armed for the instance's next deadline. If a step
-- cannot be made, the timer fails: see fail_timer. After an exception the batch is fired again, one by one. If the
-- statement timeout comes meanwhile, the timers from then on are left as they were. It comes once in a statement, so
-- the caller must not do much more.
-- p_tried:      how many timeouts of the state were refused before this one
-- p_next_tried: the same, if this one is refused too; null for the lifetime
-- Returns: fired: how many steps were made. failures: the new ones, see fail_timer. done: how many of the timers
--          were dealt with, counted from the first; all, unless the statement timeout came
-- Raises:  57014 the call was cancelled by somebody
-- Locks:   what fire locks, and timer
-- Writes:  what fire writes
create function pawl_private.fire_timer_batch(
  p_tenants text[], p_ids uuid[], p_versions bigint[], p_events text[], p_tried integer[], p_next_tried integer[],
  p_due_at timestamptz[], out fired integer, out failures jsonb, out done integer
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
  done := v_size;
  for v_outcome in
    select o.code, o.ordinal
    from pawl.fire(
      p_tenants => p_tenants, p_ids => p_ids, p_events => p_events,
      p_payloads => array(
        select pawl_private.timer_payload(d.event, d.due_at, case when d.event like 'every:%' then (
          select i.memory from pawl.instance i where i.tenant_id = d.tenant and i.id = d.id
        ) end, pawl.now())
        from unnest(p_tenants, p_ids, p_events, p_due_at) as d (tenant, id, event, due_at)),
      p_keys => v_none,
      p_expected => array(select format('{%s}', v.version) from unnest(p_versions) as v (version)),
      p_checked => array_fill('*'::text, array[v_size]),
      p_actors => array_fill('pawl'::text, array[v_size]),
      p_reasons => v_none, p_correlation_ids => v_none,
      p_traceparents => array(
        select pawl_private.next_traceparent(pawl_private.traceparent_of(d.tenant, d.id, d.version))
        from unnest(p_tenants, p_ids, p_versions) as d (tenant, id, version)),
      p_by_timer => true) o
  loop
    if v_outcome.code = 'applied' then
      fired := fired + 1;
      continue;
    end if;
    select i.* into strict v_instance
    from pawl.instance i
    where i.tenant_id = p_tenants[v_outcome.ordinal] and i.id = p_ids[v_outcome.ordinal];
    if v_outcome.code in ('guard-rejected', 'invariant-broken', 'transition-not-allowed') then
      if not pawl_private.pass_over(v_instance, p_events[v_outcome.ordinal], p_tried[v_outcome.ordinal]) then
        perform pawl_private.set_timer(v_instance, p_next_tried[v_outcome.ordinal]);
      end if;
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
exception
when query_canceled then
  if not pawl_private.timed_out() then
    raise;
  end if;
  fired := 0;
  failures := '[]';
  done := 0;
when others then
  fired := 0;
  failures := '[]';
  done := v_size;
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
      if v_one.done = 0 then
        done := v_i - 1;
        return;
      end if;
    end loop;
  end if;
end
$$;
