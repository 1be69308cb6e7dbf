-- fire moves an instance along one transition for each command, and along the eventless transitions
-- that follow, and records what was decided. Commands for one instance are carried out in their order,
-- in rounds: first the first command of each instance, then the second of each, and so on. The whole
-- call is one transaction.
-- p_expected: '' for none, '*' for any version, else an array literal of the versions that will do,
--             such as '{3}'
-- p_checked:  the checksum of the payload schema that the caller has checked the payload against,
--             or '*' for any; see 'payload-unchecked'
-- p_by_timer: whether the commands are timeouts or lifetimes that are due. Such a command needs no key:
--             after it the instance no longer has the version that the command expects. Its key in history
--             is made of that version, as 'timer:3'
-- Returns: one outcome per command, in no order. 'payload-unchecked' comes with the schema that the
--          caller must check before it calls again. The later commands for the same instance have the
--          outcome 'undecided'
-- Raises:  40001 a key vanished while it was read: try again; what a guard or an assign raises even
--          in silent mode
-- Locks:   instance (for no key update, by id), then idempotency_key (by key)
-- Writes:  idempotency_key, instance, history, timer
create function pawl.fire(
  p_tenants text[], p_ids uuid[], p_events text[], p_payloads jsonb[], p_keys text[], p_expected text[],
  p_checked text[], p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_by_timer boolean default false
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_seen boolean[];
  v_rounds integer[] := '{1}';
  v_last_round integer := 1;
  v_undecided integer[] := '{}';
  v_row record;
  v_ordinals integer[];
  v_tenants text[];
  v_keys text[];
  v_fingerprints bytea[];
  v_events text[];
begin
  if cardinality(p_ids) > 1 then
    select array_agg(c.round order by c.ordinal), max(c.round)
    into v_rounds, v_last_round
    from (
      select c.ordinal, row_number() over (partition by c.tenant, c.id order by c.ordinal)::integer as round
      from unnest(p_tenants, p_ids) with ordinality as c (tenant, id, ordinal)
    ) c;
  end if;

  select
    g as setting,
    array(
      select (
        select true
        from pawl.idempotency_key k
        where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > v_now
      )
      from unnest(p_tenants, p_keys) as c (tenant, key)) as seen
  into strict v_row
  from pawl.setting g;
  v_setting := v_row.setting;
  v_seen := v_row.seen;
  if true = any (v_seen) then
    -- Unless the time to live slides, a replay takes no lock.
    return query select r.*
    from (
      select
        array_agg(c.ordinal::integer) as ordinals,
        array_agg(c.tenant) as tenants,
        array_agg(c.key) as keys,
        array_agg(pawl_private.fingerprint(c.id, c.event, c.payload)) as fingerprints,
        array_agg(c.event) as events
      from unnest(p_tenants, p_ids, p_events, p_payloads, p_keys, v_seen)
        with ordinality as c (tenant, id, event, payload, key, seen, ordinal)
      where c.seen
    ) c
    cross join lateral pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => c.ordinals, p_tenants => c.tenants, p_keys => c.keys,
      p_fingerprints => c.fingerprints, p_events => c.events) r;
    if true = all (v_seen) then
      return;
    end if;
  end if;

  perform i.found
  from (
    select distinct c.id, c.tenant
    from unnest(p_tenants, p_ids, v_seen) as c (tenant, id, seen)
    where c.seen is not true
    order by c.id, c.tenant
  ) c
  cross join lateral (
    select true as found
    from pawl.instance i
    where i.tenant_id = c.tenant and i.id = c.id
    limit 1
    for no key update
  ) i;

  -- The clock is read under the lock, so that time rises with the version.
  v_now := pawl.now();

  for v_round in 1 .. v_last_round loop
    for v_row in
      with decided as materialized (
        select
          c.ordinal::integer as ordinal,
          c.tenant,
          c.event,
          c.payload,
          nullif(c.key, '') as key,
          case when c.key <> '' then pawl_private.fingerprint(c.id, c.event, c.payload) end as fingerprint,
          c.actor,
          nullif(c.reason, '') as reason,
          nullif(c.correlation_id, '') as correlation_id,
          nullif(c.traceparent, '') as traceparent,
          d.*
        from unnest(
            p_tenants, p_ids, p_events, p_payloads, p_keys, p_expected, p_checked, p_actors, p_reasons,
            p_correlation_ids, p_traceparents, v_seen, v_rounds
          ) with ordinality as c (
            tenant, id, event, payload, key, expected, checked, actor, reason, correlation_id, traceparent, seen, round,
            ordinal)
        left join lateral (
          select i.* from pawl.instance i where i.tenant_id = c.tenant and i.id = c.id limit 1
        ) i on true
        cross join lateral pawl_private.decide(
          p_now => v_now, p_setting => v_setting, p_instance => i,
          p_command => (
            c.tenant, c.event, c.payload, c.key, c.expected, c.checked, c.reason, p_by_timer
          )::pawl_private.fire_command) d
        where c.seen is not true and c.round = v_round and c.ordinal <> all (v_undecided)
      ),
      claimed as (
        insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
        select distinct on (d.tenant, d.key)
          d.tenant, d.key, d.fingerprint, d.code, (d.instance).id, (d.instance).version,
          v_now + v_setting.idempotency_ttl
        from decided d
        where d.key is not null and pawl_private.is_decision(d.code)
        order by d.tenant, d.key, d.ordinal
        on conflict on constraint idempotency_key_pkey do update
        set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
          version = excluded.version, expires_at = excluded.expires_at
        where k.expires_at <= v_now
        -- If two commands have one key, the instance tells whose key was claimed.
        returning k.tenant_id, k.key, k.instance_id
      ),
      -- The commands that this call decides; the others are replays.
      owned as materialized (
        select d.ordinal
        from decided d
        where d.code <> 'seen' and (
          d.key is null
          or not pawl_private.is_decision(d.code)
          or (d.tenant, d.key, (d.instance).id) in (select k.tenant_id, k.key, k.instance_id from claimed k)
        )
      ),
      -- "is true" keeps the planner, which expects few commands, from a nested loop over both lists.
      moved as (
        -- Every row exists and is locked. So this is always an update, and it looks up each row by the
        -- full key under any plan. The plan of an update with a join need not do so.
        insert into pawl.instance as i
        select (d.instance).*
        from decided d
        where (d.code = 'applied' and d.ordinal in (select o.ordinal from owned o)) is true
        on conflict on constraint instance_pkey do update
        set state = excluded.state, status = excluded.status, version = excluded.version, context = excluded.context,
          state_changed_at = excluded.state_changed_at, expires_at = excluded.expires_at, error = excluded.error,
          state_hash = excluded.state_hash
      ),
      appended as (
        insert into pawl.history (
          tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
          context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at)
        select
          i.tenant_id, i.id, i.version, i.workflow, i.workflow_version,
          case when not p_by_timer then 'transition' when d.event = 'ttl' then 'expired' else 'timeout' end,
          d.event, d.from_state, i.state, i.status, i.context, d.payload, i.expires_at, i.error, d.actor, d.reason,
          case when p_by_timer then 'timer:' || i.version - 1 else d.key end,
          coalesce(d.correlation_id, i.correlation_id), d.traceparent, i.state_changed_at
        from decided d
        cross join lateral (select (d.instance).*) i
        where (d.code = 'applied' and d.ordinal in (select o.ordinal from owned o)) is true
          and d.steps is null
      ),
      armed as (
        insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
        select d.tenant, (d.instance).id, d.due_at, (d.instance).version, 0
        from decided d
        where (d.code = 'applied' and d.ordinal in (select o.ordinal from owned o)) is true
          and d.due_at is not null
        on conflict on constraint timer_pkey do update
        set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = 0
        -- A timer that is due too early is left as it is, and corrected when it is due.
        where t.due_at > excluded.due_at or t.due_at <= v_now
      )
      select
        d.ordinal in (select o.ordinal from owned o) as owned,
        d.ordinal,
        d.tenant,
        d.key,
        d.fingerprint,
        d.event,
        case
          when d.code = 'applied' and d.was_timed and d.due_at is null then (d.instance).id
        end as disarmed,
        d.steps,
        (
          d.ordinal, d.code, false, d.instance, d.actions, d.guards, d.payload_schema, d.timeout_event, d.due_at
        )::pawl.outcome as outcome
      from decided d
    loop
      if not v_row.owned then
        v_ordinals := v_ordinals || v_row.ordinal;
        v_tenants := v_tenants || v_row.tenant;
        v_keys := v_keys || v_row.key;
        v_fingerprints := v_fingerprints || v_row.fingerprint;
        v_events := v_events || v_row.event;
        continue;
      end if;
      if v_row.steps is not null then
        perform pawl_private.append_history(
          p_steps => v_row.steps,
          p_kind => case when not p_by_timer then 'transition' when v_row.event = 'ttl' then 'expired' else 'timeout' end,
          p_at => ((v_row.outcome).instance).state_changed_at, p_event => v_row.event,
          p_payload => p_payloads[v_row.ordinal], p_actor => p_actors[v_row.ordinal],
          p_reason => p_reasons[v_row.ordinal],
          p_key => case when p_by_timer then 'timer:' || (v_row.steps[1]).version else v_row.key end,
          p_correlation_id => p_correlation_ids[v_row.ordinal], p_traceparent => p_traceparents[v_row.ordinal]);
      end if;
      if v_row.disarmed is not null then
        -- One by one, since the plan of a delete with a join need not look up rows by the full key.
        delete from pawl.timer t where t.tenant_id = v_row.tenant and t.instance_id = v_row.disarmed;
      end if;
      if (v_row.outcome).code = 'payload-unchecked' and v_round < v_last_round then
        -- The caller checks the payload and calls again. Until then, later commands for the instance must
        -- not overtake this one.
        v_undecided := v_undecided || array(
          select c.ordinal::integer
          from unnest(p_tenants, p_ids, v_seen) with ordinality as c (tenant, id, seen, ordinal)
          where c.tenant = v_row.tenant and c.id = p_ids[v_row.ordinal] and c.ordinal > v_row.ordinal
            and c.seen is not true);
      end if;
      return next v_row.outcome;
    end loop;
  end loop;
  if v_undecided <> '{}' then
    return query select o.*
    from unnest(v_undecided) as u (ordinal)
    cross join lateral jsonb_populate_record(
      null::pawl.outcome, jsonb_build_object('ordinal', u.ordinal, 'code', 'undecided', 'replayed', false)) o;
  end if;

  if v_ordinals is not null then
    return query select r.*
    from pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => v_ordinals, p_tenants => v_tenants, p_keys => v_keys,
      p_fingerprints => v_fingerprints, p_events => v_events) r;
  end if;
end
$$;
