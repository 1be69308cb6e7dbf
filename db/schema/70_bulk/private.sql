-- bulk_chooses says whether a filter chooses an instance. The planner inlines it.
create function pawl_private.bulk_chooses(
  p_instance pawl.instance, p_filter pawl_private.bulk_filter, p_now timestamptz
) returns boolean
language sql stable
as $$
  select (
    (p_filter.statuses is null or p_instance.status = any (p_filter.statuses))
    and (p_filter.workflows is null or p_instance.workflow = any (p_filter.workflows))
    and (p_filter.states is null or p_instance.state = any (p_filter.states))
    and (p_filter.business_key is null or p_instance.business_key = p_filter.business_key)
    and (p_filter.correlation_id is null or p_instance.correlation_id = p_filter.correlation_id)
    and (p_filter.created_after is null or p_instance.created_at > p_filter.created_after)
    and (p_filter.created_before is null or p_instance.created_at < p_filter.created_before)
    and (p_filter.stuck_for is null or p_instance.state_changed_at <= p_now - p_filter.stuck_for)
    and (p_filter.from_version is null or p_instance.workflow_version = p_filter.from_version)
    and (p_filter.not_version is null or p_instance.workflow_version <> p_filter.not_version)
    and (p_filter.failing is not true or exists (
      select from pawl.timer t
      where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id
        and t.failed_version = t.armed_version and t.failed_version = p_instance.version))
  ) is true
$$;

-- bulk_page reads the next part of a walk, in the order of the ids: up to p_limit instances of the index ranges of a
-- filter, and whether the filter chooses them.
create function pawl_private.bulk_page(
  p_tenant text, p_filter pawl_private.bulk_filter, p_after uuid, p_until uuid, p_limit integer
) returns table (id uuid, chosen boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Planned for its arguments, so that absent members leave no condition behind. The planner is left one way to read a
-- range: by an index, in its order.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_workflows text[] := p_filter.range_workflows;
  v_business_key text := p_filter.business_key;
  v_correlation_id text := p_filter.correlation_id;
begin
  return query
  select (c.instance).id, pawl_private.bulk_chooses(c.instance, p_filter, v_now)
  from (
    select r.instance
    from unnest(p_filter.range_statuses) with ordinality as w (status, place)
    cross join lateral (
      select i as instance
      from pawl.instance i
      where i.tenant_id = p_tenant
        and i.status = w.status
        and i.workflow <> '' -- The condition of the indexes.
        and (v_workflows is null or i.workflow = v_workflows[w.place])
        and (v_business_key is null or i.business_key = v_business_key)
        and (v_correlation_id is null or i.correlation_id = v_correlation_id)
        and i.id > p_after and i.id < p_until
      order by i.id
      limit p_limit
    ) r
    order by (r.instance).id
    limit p_limit
  ) c
  order by (c.instance).id;
end
$$;

-- bulk_problem is the problem of an item, with the members of the API's problems.
create function pawl_private.bulk_problem(p_code text, p_detail text) returns jsonb
language sql immutable parallel safe
as $$ select jsonb_build_object('code', p_code, 'detail', p_detail) $$;

-- bulk_checksum tells apart what is to be checked: schemas, or schemas with the contexts to check.
create function pawl_private.bulk_checksum(p_document jsonb) returns text
language sql immutable parallel safe
as $$ select encode(sha256(convert_to(p_document::text, 'UTF8')), 'hex') $$;

-- bulk_decided is what an outcome means for a bulk. The faults of what did not fit its schema are among the bulk's checks.
create function pawl_private.bulk_decided(p_bulk pawl.bulk, p_id uuid, p_outcome pawl.outcome) returns pawl_private.bulk_result
language plpgsql stable
as $$
begin
  return (
    p_id,
    case
      when p_outcome.code = 'applied' then 'applied'
      when p_outcome.code in ('always-loop', 'timer-loop') then 'failed'
      else 'refused'
    end,
    case p_outcome.code
      when 'applied' then null
      when 'payload-unchecked' then
        pawl_private.bulk_problem('invalid-payload', 'the payload does not fit its schema')
          || jsonb_build_object('errors', p_bulk.checks -> pawl_private.bulk_checksum(p_outcome.schema))
      when 'context-unchecked' then
        pawl_private.bulk_problem('invalid-context', 'the context fits the workflow''s schema, and would not with the patch')
          || jsonb_build_object('errors', p_bulk.checks -> pawl_private.bulk_checksum(p_outcome.schema))
      else pawl_private.problem(p_outcome => p_outcome, p_id => p_id, p_event => p_bulk.params ->> 'event', p_expected => null)
    end)::pawl_private.bulk_result;
end
$$;

-- bulk_caller is who a bulk acts for, with the bulk as the request, for the audit.
create function pawl_private.bulk_caller(p_bulk pawl.bulk) returns jsonb
language sql immutable parallel safe
as $$
  select coalesce(p_bulk.caller, jsonb_build_object('actor', p_bulk.actor))
    || jsonb_build_object('request_id', 'bulk:' || p_bulk.id)
$$;

-- bulk_forced carries out the override or the cancel of a bulk on one instance. The bulk's item stands for an
-- idempotency key.
-- p_checked, p_patch_checked: as for pawl.override
-- Writes:  what force writes, unless it is a dry run
create function pawl_private.bulk_forced(
  p_bulk pawl.bulk, p_id uuid, p_checked text, p_patch_checked text, p_dry_run boolean
) returns pawl.outcome
language plpgsql volatile
as $$
begin
  return pawl_private.force(
    p_kind => case p_bulk.action when 'cancel' then 'cancelled' else 'forced' end, p_id => p_id,
    p_command => (
      p_bulk.tenant_id, p_bulk.params ->> 'event', coalesce(p_bulk.params -> 'payload', '{}'), null, '*', p_checked,
      p_bulk.reason, p_bulk.actor, p_bulk.verified, false, false, null
    )::pawl_private.fire_command,
    p_to => p_bulk.params ->> 'to', p_patch => p_bulk.params -> 'context_patch', p_patch_checked => p_patch_checked,
    p_target => p_bulk.params ->> 'target', p_correlation_id => p_bulk.correlation_id, p_traceparent => p_bulk.traceparent,
    p_dry_run => p_dry_run, p_raises => false, p_caller => pawl_private.bulk_caller(p_bulk),
    p_history_key => 'bulk:' || p_bulk.id);
end
$$;

-- bulk_unchecked finds what must be checked before a bulk goes on: the payload against the schemas that it may meet, and
-- once before each step of an override that patches contexts, these contexts.
-- Returns: null for nothing, or an object by checksum: {schema, payload}, which is to fit, or {schema, before, after}, of
--          which after is to fit if before does
-- Raises:  what guards and values raise
create function pawl_private.bulk_unchecked(p_bulk pawl.bulk, p_instances pawl.instance[]) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_memoize = off
set jit = off
as $$
begin
  if p_bulk.params ? 'event' then
    return (
      select jsonb_object_agg(
        t.payload_schema_checksum,
        jsonb_build_object('schema', t.payload_schema::jsonb, 'payload', coalesce(p_bulk.params -> 'payload', '{}')))
      from (select distinct i.workflow, i.workflow_version, i.state from unnest(p_instances) i) i
      join pawl.workflow_state s
        on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
      join pawl.workflow_transition t
        on t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        and t.event = pawl_private.matching(p_bulk.params ->> 'event', s.events, s.patterns)
      where t.payload_schema_checksum is not null and not p_bulk.checks ? t.payload_schema_checksum);
  end if;
  if p_bulk.params ? 'context_patch' and p_bulk.checks = '{}' then
    return (
      select jsonb_object_agg(pawl_private.bulk_checksum(o.schema), o.schema)
      from unnest(p_instances) i
      join pawl.workflow w on w.name = i.workflow and w.version = i.workflow_version
      cross join lateral pawl_private.bulk_forced(
        p_bulk => p_bulk, p_id => i.id, p_checked => '*', p_patch_checked => '', p_dry_run => true) o
      where w.context_schema is not null and o.code = 'context-unchecked');
  end if;
  return null;
end
$$;

-- bulk_force carries out the override or the cancel of a bulk on instances, which are locked unless it is a dry run.
-- Returns: one row for each instance, but for those whose context must be checked and has changed since bulk_unchecked
-- Writes:  what force writes, unless it is a dry run
create function pawl_private.bulk_force(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_memoize = off
set jit = off
as $$
declare
  v_instance pawl.instance;
  v_checked text := '';
  v_checksum text;
  v_outcome pawl.outcome;
begin
  foreach v_instance in array p_instances loop
    v_outcome := pawl_private.bulk_forced(
      p_bulk => p_bulk, p_id => v_instance.id, p_checked => v_checked, p_patch_checked => '', p_dry_run => p_bulk.dry_run);
    if v_outcome.code in ('payload-unchecked', 'context-unchecked') then
      v_checksum := pawl_private.bulk_checksum(v_outcome.schema);
      continue when not p_bulk.checks ? v_checksum;
      if p_bulk.checks -> v_checksum = 'null' then
        v_checked := case v_outcome.code when 'payload-unchecked' then v_checksum else v_checked end;
        v_outcome := pawl_private.bulk_forced(
          p_bulk => p_bulk, p_id => v_instance.id, p_checked => v_checked, p_patch_checked => '*',
          p_dry_run => p_bulk.dry_run);
      end if;
    end if;
    return next pawl_private.bulk_decided(p_bulk, v_instance.id, v_outcome);
  end loop;
end
$$;

-- bulk_fire fires the event of a bulk at instances, which are locked unless it is a dry run. Their payload schemas must
-- have been checked: see bulk_unchecked.
-- Writes:  what fire writes, unless it is a dry run
create function pawl_private.bulk_fire(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size integer := cardinality(p_instances);
  v_ids uuid[] := array(select i.id from unnest(p_instances) i);
  v_event text := p_bulk.params ->> 'event';
  v_events text[] := array_fill(v_event, array[v_size]);
  v_payloads jsonb[] := array_fill(coalesce(p_bulk.params -> 'payload', '{}'), array[v_size]);
  v_expected text[] := array_fill('*'::text, array[v_size]);
  v_checked text[];
  v_outcomes pawl.outcome[];
begin
  -- If the payload fits all schemas of the event in a state, fire needs to check none.
  with fit as (
    select s.workflow, s.workflow_version, s.state,
      bool_and(p_bulk.checks -> t.payload_schema_checksum = 'null') as all,
      min(t.payload_schema_checksum) filter (where p_bulk.checks -> t.payload_schema_checksum = 'null') as one
    from (select distinct i.workflow, i.workflow_version, i.state from unnest(p_instances) i) i
    join pawl.workflow_state s
      on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
    join pawl.workflow_transition t
      on t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
      and t.event = pawl_private.matching(v_event, s.events, s.patterns)
    where t.payload_schema_checksum is not null
    group by s.workflow, s.workflow_version, s.state
  )
  select array_agg(case when coalesce(f.all, true) then '*' else coalesce(f.one, '') end order by i.ordinality)
  into v_checked
  from unnest(p_instances) with ordinality i
  left join fit f on f.workflow = i.workflow and f.workflow_version = i.workflow_version and f.state = i.state;
  if p_bulk.dry_run then
    v_outcomes := array(
      select o
      from pawl.preview(
        p_tenant => p_bulk.tenant_id, p_ids => v_ids, p_events => v_events, p_payloads => v_payloads,
        p_expected => v_expected, p_checked => v_checked, p_actor => p_bulk.actor, p_verified => p_bulk.verified) o);
  else
    v_outcomes := array(
      select o
      from pawl.fire(
        p_tenants => array_fill(p_bulk.tenant_id::text, array[v_size]), p_ids => v_ids, p_events => v_events,
        p_payloads => v_payloads, p_keys => array_fill(''::text, array[v_size]), p_expected => v_expected,
        p_checked => v_checked, p_actors => array_fill(p_bulk.actor, array[v_size]),
        p_reasons => array_fill(coalesce(p_bulk.reason::text, ''), array[v_size]),
        p_correlation_ids => array_fill(coalesce(p_bulk.correlation_id::text, ''), array[v_size]),
        p_traceparents => array_fill(coalesce(p_bulk.traceparent, ''), array[v_size]),
        p_verified => p_bulk.verified, p_history_keys => array_fill('bulk:' || p_bulk.id, array[v_size])) o);
  end if;
  return query
  select (pawl_private.bulk_decided(p_bulk, v_ids[o.ordinal], o)).*
  from unnest(v_outcomes) o;
end
$$;

-- bulk_migrate moves instances, which are locked unless it is a dry run, to another version of their workflow.
-- Writes:  what migrate_instances writes
create function pawl_private.bulk_migrate(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    m.id,
    case
      when m.result in ('migrated', 'would-migrate') then 'applied'
      when m.result = 'gone' then 'skipped'
      when m.result in ('busy', 'guard-error') then 'failed'
      else 'refused'
    end,
    case m.result
      when 'migrated' then null
      when 'would-migrate' then null
      when 'gone' then pawl_private.bulk_problem('no-longer-matches', 'the instance is final, or has another version')
      when 'state-unknown' then pawl_private.bulk_problem(m.result, format('the version has no state %s', m.to_state))
      when 'state-final' then pawl_private.bulk_problem(m.result, format('the state %s is final in the version', m.to_state))
      when 'invariant-broken' then pawl_private.bulk_problem('guard-rejected', 'an invariant of the version does not hold')
      when 'guard-error' then pawl_private.bulk_problem(m.result, 'a guard or a value of the version raises')
      when 'busy' then pawl_private.bulk_problem('unavailable', 'another transaction holds the instance')
      when 'task-open' then pawl_private.bulk_problem(m.result, 'a task of its state may have been sent')
      else pawl_private.bulk_problem(m.result, 'the eventless transitions of the version do not come to rest')
    end
  from (
    select i.workflow, i.workflow_version, array_agg(i.id) as ids
    from unnest(p_instances) i
    where i.status = 'active' and i.workflow_version <> (p_bulk.params ->> 'to')::integer
    group by i.workflow, i.workflow_version
  ) g
  cross join lateral pawl.migrate_instances(
    p_tenant => p_bulk.tenant_id, p_workflow => g.workflow, p_from => g.workflow_version,
    p_to => (p_bulk.params ->> 'to')::integer, p_state_map => p_bulk.params -> 'state_map', p_after => null,
    p_limit => cardinality(g.ids) + 1, p_actor => p_bulk.actor, p_dry_run => p_bulk.dry_run, p_ids => g.ids,
    p_reason => p_bulk.reason, p_correlation_id => p_bulk.correlation_id, p_traceparent => p_bulk.traceparent,
    p_history_key => 'bulk:' || p_bulk.id) m;
  -- What is left out above has become final, or has the version already.
  return query
  select i.id, 'skipped', pawl_private.bulk_problem('no-longer-matches', 'the instance is final, or has the version already')
  from unnest(p_instances) i
  where i.status <> 'active' or i.workflow_version = (p_bulk.params ->> 'to')::integer;
end
$$;

-- bulk_archive removes final instances. A final instance stays while something needs it: see purge.
-- Writes:  what purge writes, unless it is a dry run
create function pawl_private.bulk_archive(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[] := array(select i.id from unnest(p_instances) i where i.status <> 'active');
  v_gone uuid[];
begin
  if p_bulk.dry_run then
    v_gone := array(
      select u.id
      from unnest(v_ids) u (id)
      where not (pawl_private.instance_retains(p_bulk.tenant_id, u.id, pawl.now())).retains
        and not pawl_private.module_retains(p_bulk.tenant_id, u.id));
  else
    v_gone := pawl_private.purge(p_bulk.tenant_id, v_ids, pawl.now(), true);
  end if;
  return query
  select i.id, case when i.id = any (v_gone) then 'applied' else 'refused' end,
    case
      when i.id = any (v_gone) then null
      when i.status = 'active' then pawl_private.bulk_problem('instance-active', 'only final instances are removed')
      else pawl_private.bulk_problem(
        'instance-retained', 'an idempotency key, the log or a delivery still needs the instance; try again later')
    end
  from unnest(p_instances) i;
end
$$;

-- bulk_retry makes the failing timers of locked instances due at once.
-- Writes:  timer, unless it is a dry run
create function pawl_private.bulk_retry(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_instance pawl.instance;
  v_tried integer;
begin
  foreach v_instance in array p_instances loop
    select t.tried into v_tried
    from pawl.timer t
    where t.tenant_id = v_instance.tenant_id and t.instance_id = v_instance.id
      and t.failed_version = t.armed_version and t.failed_version = v_instance.version;
    if not found then
      return next row(
        v_instance.id, 'skipped', pawl_private.bulk_problem('nothing-to-retry', 'no timer of the instance fails'))::pawl_private.bulk_result;
      continue;
    end if;
    if not p_bulk.dry_run then
      perform pawl_private.set_timer(v_instance, v_tried);
    end if;
    return next row(v_instance.id, 'applied', null)::pawl_private.bulk_result;
  end loop;
end
$$;

-- bulk_replay makes settled deliveries of instances pending again: the dead letters, or those with the status that the
-- parameters name, of one subscription if they name one. The audit has the bulk itself.
-- Writes:  delivery, unless it is a dry run
create function pawl_private.bulk_replay(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_instance pawl.instance;
  v_ids uuid[];
  v_replay record;
begin
  foreach v_instance in array p_instances loop
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = v_instance.tenant_id and d.instance_id = v_instance.id
        and d.status = coalesce(p_bulk.params ->> 'status', 'dead')
        and coalesce(d.subscription_id = (p_bulk.params ->> 'subscription_id')::uuid, true)
      order by d.seq, d.version, d.subscription_id);
    if v_ids = '{}' then
      return next row(
        v_instance.id, 'skipped', pawl_private.bulk_problem('nothing-to-replay', 'no delivery of the instance is chosen'))::pawl_private.bulk_result;
      continue;
    end if;
    if not p_bulk.dry_run then
      select * into v_replay
      from pawl_private.replay_deliveries(p_tenant => v_instance.tenant_id, p_ids => v_ids);
      if v_replay.replayed = 0 then
        return next row(v_instance.id, 'refused', pawl_private.bulk_problem(
          'delivery-conflict', 'the subscription was deleted, or the callback was delivered'))::pawl_private.bulk_result;
        continue;
      end if;
    end if;
    return next row(v_instance.id, 'applied', null)::pawl_private.bulk_result;
  end loop;
end
$$;

-- bulk_act carries out the action of a bulk on instances. After an exception they are tried again one by one, and those
-- that raise fail.
-- p_alone: whether the statement has done nothing else, so that one instance that takes too long has failed, and so that
--          the caller can check something and try again
-- Returns: results: one for each instance. If the statement timeout came, those from then on have none, and are as they
--          were; so are those whose context must be checked again. Null if none has. unchecked: see bulk_unchecked; if it
--          is not null, nothing was done
-- Raises:  what another try may cure: a deadlock, a lock that was not to be had, the end of the session
create function pawl_private.bulk_act(
  p_bulk pawl.bulk, p_instances pawl.instance[], p_alone boolean, out results pawl_private.bulk_result[],
  out unchecked jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid := (p_instances[1]).id;
  v_one pawl_private.bulk_result[];
  v_state text;
  v_problem text;
begin
  if p_alone then
    unchecked := pawl_private.bulk_unchecked(p_bulk, p_instances);
    if unchecked is not null then
      return;
    end if;
  end if;
  results := case
    when p_bulk.action in ('override', 'cancel') then array(select r from pawl_private.bulk_force(p_bulk, p_instances) r)
    when p_bulk.action = 'fire' then array(select r from pawl_private.bulk_fire(p_bulk, p_instances) r)
    when p_bulk.action = 'migrate' then array(select r from pawl_private.bulk_migrate(p_bulk, p_instances) r)
    when p_bulk.action = 'archive' then array(select r from pawl_private.bulk_archive(p_bulk, p_instances) r)
    when p_bulk.action = 'retry' then array(select r from pawl_private.bulk_retry(p_bulk, p_instances) r)
    when p_bulk.action = 'replay' then array(select r from pawl_private.bulk_replay(p_bulk, p_instances) r)
  end;
exception
when query_canceled then
  if not pawl_private.timed_out() then
    raise;
  end if;
  results := null;
  if p_alone and cardinality(p_instances) = 1 then
    results := array[row(v_id, 'failed', pawl_private.bulk_problem(
      'guard-error', 'the step takes longer than the service lets it'))::pawl_private.bulk_result];
  end if;
when others then
  v_state := sqlstate;
  if v_state ~ '^(08|25|40|53|55|57|58|XX)' then
    raise;
  end if;
  if cardinality(p_instances) > 1 then
    results := null;
    for v_i in 1 .. cardinality(p_instances) loop
      v_one := (pawl_private.bulk_act(p_bulk, p_instances[v_i:v_i], false)).results;
      exit when v_one is null;
      results := results || v_one;
    end loop;
    return;
  end if;
  if v_state like 'PW%' then
    select c.problem into v_problem from pawl_private.condition c where c.sqlstate = v_state limit 1;
    results := array[row(v_id, 'refused', pawl_private.bulk_problem(v_problem, left(sqlerrm, 1000)))::pawl_private.bulk_result];
  else
    results := array[row(v_id, 'failed', case
      -- A path raises these. The text of any other error may give away something about the database.
      when v_state ~ '^(22|54)' or v_state in ('42704', '0A000') then
        pawl_private.bulk_problem('guard-error', left('a guard or an assign raises: ' || sqlerrm, 1000))
      else pawl_private.bulk_problem('internal', format('the step cannot be made (SQLSTATE %s)', v_state))
    end)::pawl_private.bulk_result];
  end if;
end
$$;

-- bulk_estimate is how many instances the planner expects a walk to choose.
create function pawl_private.bulk_estimate(p_tenant text, p_filter pawl_private.bulk_filter) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan jsonb;
begin
  -- The estimate must be one for these values, which only a statement with literals shows.
  execute format(
    'explain (format json) select from pawl.instance i where i.tenant_id = %L and i.status = any (%L)'
      || case when p_filter.workflows is not null then ' and i.workflow = any (%L)' else ' and %L is null' end
      || case when p_filter.states is not null then ' and i.state = any (%L)' else ' and %L is null' end
      || case when p_filter.correlation_id is not null then ' and i.correlation_id = %L' else ' and %L is null' end
      || case when p_filter.created_after is not null then ' and i.id > %L' else ' and %L is null' end
      || case when p_filter.created_before is not null then ' and i.id < %L' else ' and %L is null' end,
    p_tenant, p_filter.statuses, p_filter.workflows, p_filter.states, p_filter.correlation_id,
    pawl.uuid_v7_floor(p_filter.created_after), pawl.uuid_v7_floor(p_filter.created_before))
  into v_plan;
  return (v_plan #>> '{0,Plan,Plan Rows}')::numeric::bigint;
end
$$;
