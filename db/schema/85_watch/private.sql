-- slow_after is how long an instance of a tenant may be in a state, by what its instances took in the last four weeks; null
-- if fewer than 30 of them left the state.
create function pawl_private.slow_after(p_tenant text, p_workflow text, p_state text, p_now timestamptz) returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_today date := (p_now at time zone 'UTC')::date;
  v_visits bigint;
  v_bucket integer;
begin
  with visit as materialized (
    -- Day by day and version by version, so that the other states of the workflow are not read.
    select d.bucket, sum(d.visits) as visits
    from (select w.version from pawl.workflow w where w.name = p_workflow) w
    cross join generate_series(0, 27) as n (days)
    cross join lateral (
      select c.bucket, c.visits
      from pawl.dwell_count c
      where c.tenant_id = p_tenant and c.workflow = p_workflow and c.day = v_today - n.days and c.workflow_version = w.version
        and c.state = p_state
      offset 0
    ) d
    group by d.bucket
  ),
  summed as (
    select v.bucket, sum(v.visits) over (order by v.bucket) as upto, sum(v.visits) over () as visits
    from visit v
  )
  select max(s.visits), min(s.bucket) filter (where s.upto >= 0.99 * s.visits)
  into v_visits, v_bucket
  from summed s;
  return case
    -- The middle of the bucket, in milliseconds.
    when v_visits >= 30 then greatest(interval '10 seconds', 3 * 1.1 ^ (v_bucket - 0.5) * interval '1 millisecond')
  end;
end
$$;

-- visits_lately is how many visits of a state ended in the last 24 hours. It costs much less than slow_after, and so says when that is
-- worth asking: before the first 30 visits there is no threshold.
create function pawl_private.visits_lately(p_tenant text, p_workflow text, p_state text, p_now timestamptz) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return (
    select coalesce(sum(h.visits), 0)
    from pawl.dwell_hour h
    where h.tenant_id = p_tenant and h.workflow = p_workflow and h.state = p_state
      and h.hour >= extract(epoch from p_now)::bigint / 3600 - 24);
end
$$;

-- open_orphaned opens a finding for each of the instances that nothing will ever move, and closes those that say that it is
-- slow.
-- Returns: how many were opened
-- Locks:   residence (for key share, those that are not locked)
-- Writes:  finding
create function pawl_private.open_orphaned(p_tenant text, p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_opened bigint;
begin
  with opened as (
    insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
    select p_tenant, pawl_private.uuid_v7(p_now), 'orphaned', r.instance_id, r.workflow, r.state, r.visit_version, r.since, p_now, '{}'
    from unnest(p_ids) as p (id)
    cross join lateral (
      select r.*
      from pawl.residence r
      where r.tenant_id = p_tenant and r.instance_id = p.id and r.since <= p_now - interval '10 seconds'
      limit 1
      for key share skip locked
    ) r
    cross join lateral (
      select from pawl.workflow_state s
      where s.workflow = r.workflow and s.workflow_version = r.workflow_version and s.state = r.state and s.strands
      limit 1
    ) s
    cross join lateral (
      select from pawl.instance i
      where i.tenant_id = p_tenant and i.id = r.instance_id and i.state = r.state and i.state_changed_at = r.since and i.status = 'active'
      limit 1
    ) i
    where not exists (
        select from pawl.task t
        where t.tenant_id = p_tenant and t.instance_id = r.instance_id and t.ended_at is null and (t.left_at is null or t.reopened))
      and not exists (select from pawl.undoing u where u.tenant_id = p_tenant and u.instance_id = r.instance_id)
    on conflict do nothing
    returning instance_id
  ),
  hidden as (
    update pawl.finding f
    set closed_at = greatest(f.opened_at, p_now)
    from opened o
    where f.tenant_id = p_tenant and f.instance_id = o.instance_id and f.kind = 'slow' and f.closed_at is null
  )
  select count(*) into v_opened from opened;
  return v_opened;
end
$$;

-- look_at_place looks at the instances of a place that have become due.
-- p_limit: the most instances, for each kind
-- Returns: looked: how many were read or closed; opened: how many findings were opened
-- Writes:  finding, stuck_place
create function pawl_private.look_at_place(
  p_place pawl_private.stuck_place, p_limit integer, p_now timestamptz, out looked bigint, out opened bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_place pawl_private.stuck_place := p_place;
  v_version integer;
  v_due timestamptz;
  v_ids uuid[];
  v_sinces timestamptz[];
  v_rows bigint;
  v_inhabited boolean;
begin
  looked := 0; opened := 0;
  select w.version into v_version from pawl.workflow w where w.name = v_place.workflow order by w.version desc limit 1;
  v_version := coalesce(v_version, 0);
  if v_version <> v_place.version or v_place.measured_at <= p_now - interval '10 minutes'
    or v_place.threshold is null and pawl_private.visits_lately(v_place.tenant_id, v_place.workflow, v_place.state, p_now) >= 30
  then
    v_place.version := v_version;
    v_place.measured_at := p_now;
    v_place.strands := exists (
      select from pawl.workflow_state s where s.workflow = v_place.workflow and s.state = v_place.state and s.strands);
    v_place.threshold := (
      select s.stuck_after
      from pawl.workflow_state s
      where s.workflow = v_place.workflow and s.state = v_place.state
      order by s.workflow_version desc
      limit 1);
    v_place.declared := v_place.threshold is not null;
    if not v_place.declared then
      v_place.threshold := pawl_private.slow_after(v_place.tenant_id, v_place.workflow, v_place.state, p_now);
    end if;
  end if;

  -- What is no longer due: the threshold has grown.
  v_due := coalesce(p_now - v_place.threshold, '-infinity');
  if v_place.slow_since > v_due then
    update pawl.finding f
    set closed_at = greatest(f.opened_at, p_now)
    where (f.tenant_id, f.id) in (
      select s.tenant_id, s.id
      from pawl.finding s
      where s.tenant_id = v_place.tenant_id and s.workflow = v_place.workflow and s.state = v_place.state and s.closed_at is null
        and s.kind = 'slow' and s.since > v_due
      limit p_limit);
    get diagnostics v_rows = row_count;
    looked := v_rows;
    if v_rows < p_limit then
      v_place.slow_since := v_due;
      v_place.slow_id := '00000000-0000-0000-0000-000000000000';
    end if;
  end if;

  if v_place.strands then
    select coalesce(array_agg(r.instance_id order by r.since, r.instance_id), '{}'), array_agg(r.since order by r.since, r.instance_id)
    into v_ids, v_sinces
    from (
      select r.instance_id, r.since
      from pawl.residence r
      where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
        and (r.since, r.instance_id) > (v_place.orphaned_since, v_place.orphaned_id) and r.since <= p_now - interval '10 seconds'
      order by r.since, r.instance_id
      limit p_limit
    ) r;
    if v_ids <> '{}' then
      looked := looked + cardinality(v_ids);
      opened := opened + pawl_private.open_orphaned(v_place.tenant_id, v_ids, p_now);
      v_place.orphaned_since := v_sinces[cardinality(v_sinces)];
      v_place.orphaned_id := v_ids[cardinality(v_ids)];
    end if;
  end if;

  if v_place.threshold is not null and v_place.slow_since <= v_due then
    select coalesce(array_agg(r.instance_id order by r.since, r.instance_id), '{}'), array_agg(r.since order by r.since, r.instance_id)
    into v_ids, v_sinces
    from (
      select r.instance_id, r.since
      from pawl.residence r
      where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
        and (r.since, r.instance_id) > (v_place.slow_since, v_place.slow_id) and r.since <= v_due
      order by r.since, r.instance_id
      limit p_limit
    ) r;
    if v_ids <> '{}' then
      looked := looked + cardinality(v_ids);
      insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
      select
        v_place.tenant_id, pawl_private.uuid_v7(p_now), 'slow', r.instance_id, r.workflow, r.state, r.visit_version, r.since, p_now,
        jsonb_build_object(
          'threshold_seconds', round(extract(epoch from v_place.threshold), 3),
          'threshold', case when v_place.declared then 'stuck_after' else 'dwell' end)
      from unnest(v_ids) as p (id)
      cross join lateral (
        select r.* from pawl.residence r where r.tenant_id = v_place.tenant_id and r.instance_id = p.id limit 1 for key share skip locked
      ) r
      cross join lateral (
        select from pawl.instance i
        where i.tenant_id = v_place.tenant_id and i.id = p.id and i.state = r.state and i.state_changed_at = r.since and i.status = 'active'
        limit 1
      ) i
      where not exists (
        select from pawl.finding f
        where f.tenant_id = v_place.tenant_id and f.instance_id = p.id and f.kind = 'orphaned' and f.visit_version = r.visit_version
          and f.closed_at is null)
      on conflict do nothing;
      get diagnostics v_rows = row_count;
      opened := opened + v_rows;
      v_place.slow_since := v_sinces[cardinality(v_sinces)];
      v_place.slow_id := v_ids[cardinality(v_ids)];
    end if;
  end if;

  v_inhabited := exists (
    select from pawl.residence r
    where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
    limit 1);
  -- At least once a minute, for a new version; at least a second later, since the fold takes its time.
  v_place.next_at := case
    when looked >= p_limit then p_now
    when not v_inhabited then 'infinity'
    else greatest(p_now + interval '1 second', least(
      p_now + interval '1 minute',
      (
        select r.since + v_place.threshold
        from pawl.residence r
        where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
          and (r.since, r.instance_id) > (v_place.slow_since, v_place.slow_id) and v_place.threshold is not null
        order by r.since, r.instance_id
        limit 1
      ),
      (
        select r.since + interval '10 seconds'
        from pawl.residence r
        where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
          and (r.since, r.instance_id) > (v_place.orphaned_since, v_place.orphaned_id) and v_place.strands
        order by r.since, r.instance_id
        limit 1
      )))
  end;
  update pawl_private.stuck_place p
  set slow_since = v_place.slow_since, slow_id = v_place.slow_id, orphaned_since = v_place.orphaned_since,
    orphaned_id = v_place.orphaned_id, version = v_place.version, strands = v_place.strands, declared = v_place.declared,
    threshold = v_place.threshold, measured_at = v_place.measured_at, next_at = v_place.next_at
  where p.tenant_id = v_place.tenant_id and p.workflow = v_place.workflow and p.state = v_place.state;
end
$$;

-- bad_task says what is wrong with a task of a present instance, task-dead or task-late; null if nothing is. Without
-- locks: a finding that is opened too early or too late is corrected by the next look.
create function pawl_private.bad_task(p_task pawl.task, p_residence pawl.residence) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task.result_version is not null or p_task.status not in ('done', 'error', 'unknown') or p_task.compensates is not null then
    return null;
  elsif p_task.left_at is not null then
    -- One that failed had no effect.
    return case when p_task.status in ('done', 'unknown') then 'task-late' end;
  end if;
  return case
    when p_residence.status = 'active' and p_residence.state = p_task.state and exists (
      select from pawl.history h
      where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id and h.version = p_task.entered_version
        and coalesce(h.entered_at, h.at) = p_residence.since
    ) then 'task-dead'
  end;
end
$$;

-- There are four walks: 'task' over those that ended and made no step, 'delivery' over dead letters, 'timer' over those that fail,
-- by their instances, and 'cause' over open findings that are about one of these. Each is in the order of an index.

-- next_watched is the tenant behind another one that a walk has something of; null if there is none.
create function pawl_private.next_watched(p_walk text, p_after text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
  return case p_walk
    when 'task' then (
      select t.tenant_id
      from pawl.task t
      where t.result_version is null and t.status in ('done', 'error', 'unknown') and t.compensates is null and t.tenant_id > p_after
      order by t.tenant_id, t.id
      limit 1)
    when 'delivery' then (
      select d.tenant_id from pawl.delivery d where d.status = 'dead' and d.tenant_id > p_after order by d.tenant_id, d.id limit 1)
    when 'timer' then (
      select t.tenant_id
      from pawl.timer t
      where t.failed_version = t.armed_version and t.tenant_id > p_after
      order by t.tenant_id, t.instance_id
      limit 1)
    when 'cause' then (
      select f.tenant_id
      from pawl.finding f
      where f.closed_at is null and (f.cause_id is not null or f.kind = 'timer-failing') and f.tenant_id > p_after
      order by f.tenant_id, f.id
      limit 1)
  end;
end
$$;

-- watched reads what a walk has of a tenant behind an id.
create function pawl_private.watched(p_walk text, p_tenant text, p_after uuid, p_limit integer) returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
  return case p_walk
    when 'task' then array(
      select t.id
      from pawl.task t
      where t.result_version is null and t.status in ('done', 'error', 'unknown') and t.compensates is null
        and t.tenant_id = p_tenant and t.id > p_after
      order by t.id
      limit p_limit)
    when 'delivery' then array(
      select d.id from pawl.delivery d where d.status = 'dead' and d.tenant_id = p_tenant and d.id > p_after order by d.id limit p_limit)
    when 'timer' then array(
      select t.instance_id
      from pawl.timer t
      where t.failed_version = t.armed_version and t.tenant_id = p_tenant and t.instance_id > p_after
      order by t.instance_id
      limit p_limit)
    when 'cause' then array(
      select f.id
      from pawl.finding f
      where f.closed_at is null and (f.cause_id is not null or f.kind = 'timer-failing') and f.tenant_id = p_tenant and f.id > p_after
      order by f.id
      limit p_limit)
  end;
end
$$;

-- walk_on goes on with a walk: with the next tenants, and the same number of each.
-- p_after: the tenant behind which it goes on; empty: with the first one. p_limit: how many it reads at most
-- Returns: tenants, ids: what it has read. upto: the last tenant, to go on behind it; empty after the last one of all. cut:
--          whether this was not all
-- Writes:  watch_place
create function pawl_private.walk_on(
  p_walk text, p_after text, p_limit integer, out tenants text[], out ids uuid[], out upto text, out cut boolean
)
language plpgsql volatile
as $$
declare
  v_tenant text := p_after;
  v_next text[] := '{}';
  v_share integer;
  v_ids uuid[];
begin
  tenants := '{}'; ids := '{}'; upto := '';
  loop
    v_tenant := pawl_private.next_watched(p_walk, v_tenant);
    if v_tenant is not null then
      v_next := v_next || v_tenant;
      if cardinality(v_next) >= p_limit / 10 then
        upto := v_tenant;
        exit;
      end if;
    else
      exit when v_next <> '{}' or p_after = '';
      -- There is no tenant behind p_after any more.
      p_after := '';
      v_tenant := '';
    end if;
  end loop;
  cut := upto <> '' or p_after <> '';
  v_share := p_limit / greatest(cardinality(v_next), 1);
  foreach v_tenant in array v_next loop
    v_ids := pawl_private.watched(p_walk, v_tenant, coalesce((
      select p.id from pawl_private.watch_place p where p.walk = p_walk and p.tenant_id = v_tenant
    ), '00000000-0000-0000-0000-000000000000'), v_share);
    if cardinality(v_ids) < v_share then
      delete from pawl_private.watch_place p where p.walk = p_walk and p.tenant_id = v_tenant;
    else
      cut := true;
      insert into pawl_private.watch_place (walk, tenant_id, id)
      values (p_walk, v_tenant, v_ids[v_share])
      on conflict on constraint watch_place_pkey do update set id = excluded.id;
    end if;
    tenants := tenants || array_fill(v_tenant, array[cardinality(v_ids)]);
    ids := ids || v_ids;
  end loop;
end
$$;

-- open_finding opens a finding about an instance, unless there is one of that kind and version.
-- p_version: the step that it is about. p_cause_id: the task or the delivery; null for neither. p_detail: without its nulls
-- Returns: how many were opened
-- Writes:  finding
create function pawl_private.open_finding(
  p_residence pawl.residence, p_kind text, p_version bigint, p_cause_id uuid, p_detail jsonb, p_now timestamptz
) returns integer
language plpgsql volatile
as $$
begin
  insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, cause_id, opened_at, detail)
  values (
    p_residence.tenant_id, pawl_private.uuid_v7(p_now), p_kind, p_residence.instance_id, p_residence.workflow, p_residence.state, p_version,
    p_residence.since, p_cause_id, p_now, jsonb_strip_nulls(p_detail))
  on conflict do nothing;
  return case when found then 1 else 0 end;
end
$$;

-- look_at_tasks looks at some tasks that ended and made no step.
-- Returns: how many findings were opened
-- Writes:  finding
create function pawl_private.look_at_tasks(p_tenants text[], p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_task pawl.task;
  v_residence pawl.residence;
  v_kind text;
  v_opened bigint := 0;
begin
  for v_task in
    select t.* from unnest(p_tenants, p_ids) as w (tenant, id) cross join lateral (
      select t.* from pawl.task t where t.tenant_id = w.tenant and t.id = w.id limit 1
    ) t
  loop
    select r.* into v_residence
    from pawl.residence r
    where r.tenant_id = v_task.tenant_id and r.instance_id = v_task.instance_id
    for key share skip locked;
    continue when not found;
    v_kind := pawl_private.bad_task(v_task, v_residence);
    -- That a task was late stays true: it is told once.
    continue when v_kind is null or v_kind = 'task-late' and exists (
      select from pawl.finding f
      where f.tenant_id = v_task.tenant_id and f.instance_id = v_task.instance_id and f.kind = 'task-late' and f.cause_id = v_task.id
        and f.opened_at >= v_task.ended_at);
    v_opened := v_opened + pawl_private.open_finding(
      p_residence => v_residence, p_kind => v_kind, p_cause_id => v_task.id, p_now => p_now,
      p_version => case when v_kind = 'task-dead' then v_residence.visit_version else v_task.entered_version end,
      p_detail => jsonb_build_object(
        'task_id', v_task.id, 'task', v_task.name, 'status', v_task.status, 'error', coalesce(v_task.problem, v_task.result ->> 'error')));
    if v_kind = 'task-dead' then
      v_opened := v_opened + pawl_private.open_orphaned(v_task.tenant_id, array[v_task.instance_id], p_now);
    end if;
  end loop;
  return v_opened;
end
$$;

-- look_at_deliveries looks at some dead letters. One that tells of a finding opens none: its endpoint may be the
-- one that is told of findings, and would be told without end.
-- Returns: as look_at_tasks
-- Writes:  finding
create function pawl_private.look_at_deliveries(p_tenants text[], p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_delivery pawl.delivery;
  v_residence pawl.residence;
  v_opened bigint := 0;
begin
  for v_delivery in
    select d.* from unnest(p_tenants, p_ids) as w (tenant, id) cross join lateral (
      select d.* from pawl.delivery d where d.tenant_id = w.tenant and d.id = w.id and d.status = 'dead' limit 1
    ) d
  loop
    continue when v_delivery.version is null;
    select r.* into v_residence
    from pawl.residence r
    where r.tenant_id = v_delivery.tenant_id and r.instance_id = v_delivery.instance_id
    for key share skip locked;
    continue when not found;
    v_opened := v_opened + pawl_private.open_finding(
      p_residence => v_residence, p_kind => 'delivery-dead', p_version => v_delivery.version, p_cause_id => v_delivery.id, p_now => p_now,
      p_detail => jsonb_build_object(
        'delivery_id', v_delivery.id, 'subscription_id', case when not v_delivery.callback then v_delivery.subscription_id end,
        'attempts', v_delivery.attempts, 'last_status', v_delivery.last_status));
  end loop;
  return v_opened;
end
$$;

-- look_at_timers looks at timers of some instances that fail.
-- Returns: how many findings were opened
-- Writes:  finding
create function pawl_private.look_at_timers(p_tenants text[], p_instances uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_timer record;
  v_residence pawl.residence;
  v_opened bigint := 0;
begin
  for v_timer in
    select n.tenant_id, n.instance_id, n.event, n.last_error
    from unnest(p_tenants, p_instances) as w (tenant, instance)
    cross join lateral (
      select n.* from pawl.next_timeout n where n.tenant_id = w.tenant and n.instance_id = w.instance and n.last_error is not null limit 1
    ) n
  loop
    select r.* into v_residence
    from pawl.residence r
    where r.tenant_id = v_timer.tenant_id and r.instance_id = v_timer.instance_id
    for key share skip locked;
    continue when not found;
    v_opened := v_opened + pawl_private.open_finding(
      p_residence => v_residence, p_kind => 'timer-failing', p_version => v_residence.visit_version, p_cause_id => null, p_now => p_now,
      p_detail => jsonb_build_object('event', v_timer.event, 'error', left(v_timer.last_error, 1000)));
  end loop;
  return v_opened;
end
$$;

-- look_at_lanes looks for tasks that wait for a connection that there is not: of each such connection, at those that have waited
-- longest.
-- p_after: the tenant behind which it goes on; empty: with the first one. p_limit: how many connections, and tasks of each
-- Returns: upto: the last tenant, to go on behind it; empty after the last one of all. opened: how many findings were opened
-- Writes:  finding
create function pawl_private.look_at_lanes(p_after text, p_limit integer, p_now timestamptz, out upto text, out opened bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_lane pawl.task_lane;
  v_task pawl.task;
  v_residence pawl.residence;
  v_looked integer := 0;
begin
  opened := 0;
  for v_lane in select l.* from pawl.task_lanes(p_after, p_limit) l loop
    v_looked := v_looked + 1;
    upto := v_lane.tenant_id;
    continue when not v_lane.missing;
    for v_task in
      select t.*
      from pawl.task t
      where t.tenant_id = v_lane.tenant_id and t.connection = v_lane.connection and t.connection is not null
        and t.due_at is not null and t.due_at <= p_now - interval '10 seconds'
      order by t.due_at
      limit p_limit
    loop
      select r.* into v_residence
      from pawl.residence r
      where r.tenant_id = v_task.tenant_id and r.instance_id = v_task.instance_id
      for key share skip locked;
      continue when not found;
      opened := opened + pawl_private.open_finding(
        p_residence => v_residence, p_kind => 'connection-missing', p_version => v_residence.visit_version, p_cause_id => v_task.id,
        p_now => p_now, p_detail => jsonb_build_object('task_id', v_task.id, 'task', v_task.name, 'connection', v_task.connection));
    end loop;
  end loop;
  upto := case when v_looked >= p_limit then upto else '' end;
end
$$;

-- look_at_causes closes some findings whose task, delivery or timer is no longer what they say.
-- Returns: how many were closed
-- Writes:  finding
create function pawl_private.look_at_causes(p_tenants text[], p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_finding pawl.finding;
  v_closed bigint := 0;
begin
  for v_finding in
    select f.* from unnest(p_tenants, p_ids) as w (tenant, id) cross join lateral (
      select f.* from pawl.finding f where f.tenant_id = w.tenant and f.id = w.id limit 1
    ) f
  loop
    continue when v_finding.kind = 'delivery-dead' and exists (
      select from pawl.delivery d where d.tenant_id = v_finding.tenant_id and d.id = v_finding.cause_id and d.status = 'dead');
    continue when v_finding.kind = 'timer-failing' and exists (
      select from pawl.timer t
      where t.tenant_id = v_finding.tenant_id and t.instance_id = v_finding.instance_id and t.failed_version = t.armed_version);
    continue when v_finding.kind = 'connection-missing' and exists (
      select from pawl.task t
      where t.tenant_id = v_finding.tenant_id and t.id = v_finding.cause_id and t.due_at is not null
        and not exists (select from pawl.connection c where c.tenant_id = t.tenant_id and c.name = t.connection));
    continue when v_finding.kind in ('task-dead', 'task-late') and exists (
      select
      from pawl.task t
      cross join pawl.residence r
      where t.tenant_id = v_finding.tenant_id and t.id = v_finding.cause_id and r.tenant_id = v_finding.tenant_id
        and r.instance_id = v_finding.instance_id and pawl_private.bad_task(t, r) = v_finding.kind);
    update pawl.finding f
    set closed_at = greatest(f.opened_at, p_now)
    where f.tenant_id = v_finding.tenant_id and f.id = v_finding.id and f.closed_at is null;
    v_closed := v_closed + case when found then 1 else 0 end;
  end loop;
  return v_closed;
end
$$;
