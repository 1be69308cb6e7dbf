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
-- p_verified: whether the service has authenticated the actors; null if the caller is no service. It decides what
--             guards read as $.actor
-- p_fingerprints: what tells the requests under one key apart, if it is not what a fire asks for
-- p_history_keys: the keys that history shows for commands without one; null for none. They protect nothing
-- p_kind: the kind of the steps in history if the commands are for what became of tasks; null for others. Then their
--             events may be the engine's own
-- p_access:   the access_version with which the callers were let in; null if they were looked up just now
-- Returns: one outcome per command, in no order. 'payload-unchecked' comes with the schema that the
--          caller must check before it calls again. The later commands for the same instance have the
--          outcome 'undecided'
-- Raises:  PW40A principal-changed; 40001 a key vanished while it was read: try again; what a guard or an assign raises even
--          in silent mode
-- Locks:   instance (for no key update, by id), then idempotency_key (by key)
-- Writes:  idempotency_key, instance, history, timer, task, compensation, undoing
create function pawl.fire(
  p_tenants text[], p_ids uuid[], p_events text[], p_payloads jsonb[], p_keys text[], p_expected text[],
  p_checked text[], p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_by_timer boolean default false, p_verified boolean default null, p_fingerprints bytea[] default null,
  p_history_keys text[] default null, p_kind text default null, p_access uuid default null
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
  if v_setting.access_version <> p_access then
    perform pawl_private.refuse_changed_principal();
  end if;
  if true = any (v_seen) then
    -- Unless the time to live slides, a replay takes no lock.
    return query select r.*
    from (
      select
        array_agg(c.ordinal::integer) as ordinals,
        array_agg(c.tenant) as tenants,
        array_agg(c.key) as keys,
        array_agg(coalesce(
          p_fingerprints[c.ordinal],
          pawl_private.fingerprint(c.id, c.event, c.payload, case when p_verified then c.actor end))) as fingerprints,
        array_agg(c.event) as events
      from unnest(p_tenants, p_ids, p_events, p_payloads, p_keys, p_actors, v_seen)
        with ordinality as c (tenant, id, event, payload, key, actor, seen, ordinal)
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
          case
            when c.key <> '' then
              coalesce(
                p_fingerprints[c.ordinal],
                pawl_private.fingerprint(c.id, c.event, c.payload, case when p_verified then c.actor end))
          end as fingerprint,
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
            c.tenant, c.event, c.payload, c.key, c.expected, c.checked, c.reason, c.actor, p_verified, p_by_timer, p_kind is not null,
            null
          )::pawl_private.fire_command) d
        where c.seen is not true and c.round = v_round and c.ordinal <> all (v_undecided)
      ),
      claimed as (
        insert into pawl.idempotency_key as k (
          tenant_id, key, fingerprint, decision, instance_id, version, expires_at, refusal)
        select distinct on (d.tenant, d.key)
          d.tenant, d.key, d.fingerprint, case d.code when 'invariant-broken' then 'guard-rejected' else d.code end,
          (d.instance).id, (d.instance).version,
          v_now + v_setting.idempotency_ttl,
          case when d.code <> 'applied' then pawl_private.refusal(d.event, v_now, d.invariant) end
        from decided d
        where d.key is not null and pawl_private.is_decision(d.code)
        order by d.tenant, d.key, d.ordinal
        on conflict on constraint idempotency_key_pkey do update
        set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
          version = excluded.version, expires_at = excluded.expires_at, refusal = excluded.refusal
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
          state_hash = excluded.state_hash, memory = excluded.memory
      ),
      appended as (
        insert into pawl.history (
          tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
          context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at, entered_at, internal, principal,
          memory, database_user)
        select
          i.tenant_id, i.id, i.version, i.workflow, i.workflow_version,
          coalesce(p_kind, case when not p_by_timer then 'transition' when d.event = 'ttl' then 'expired' else 'timeout' end),
          d.event, d.from_state, i.state, i.status, i.context, d.payload, i.expires_at, i.error, d.actor, d.reason,
          case when p_by_timer then 'timer:' || i.version - 1 else coalesce(d.key, p_history_keys[d.ordinal]) end,
          coalesce(d.correlation_id, i.correlation_id), d.traceparent, d.at, nullif(i.state_changed_at, d.at),
          case when d.internal then true end, d.principal, i.memory,
          case when p_verified is null and not p_by_timer then session_user end
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
          and d.due_at is not null and not d.stays
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
          when d.code = 'applied' and d.was_timed and d.due_at is null and not d.stays then (d.instance).id
        end as disarmed,
        d.code = 'applied' and d.was_timed and d.stays as stays,
        d.rearmed,
        d.at,
        d.internal,
        d.principal,
        d.steps,
        d.made,
        d.tasks and not d.stays or d.compensation is not null as tasks,
        d.compensation,
        d.stays as stayed,
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
          p_steps => v_row.steps, p_made => v_row.made,
          p_kind => coalesce(p_kind, case when not p_by_timer then 'transition' when v_row.event = 'ttl' then 'expired' else 'timeout' end),
          p_at => v_row.at, p_payload => p_payloads[v_row.ordinal],
          p_internal => v_row.internal, p_principal => v_row.principal,
          p_actor => p_actors[v_row.ordinal], p_reason => p_reasons[v_row.ordinal],
          p_key => case when p_by_timer then 'timer:' || (v_row.steps[1]).version else coalesce(v_row.key, p_history_keys[v_row.ordinal]) end,
          p_correlation_id => p_correlation_ids[v_row.ordinal], p_traceparent => p_traceparents[v_row.ordinal],
          p_database_user => case when p_verified is null and not p_by_timer then session_user::text end);
      end if;
      if v_row.disarmed is not null then
        -- One by one, since the plan of a delete with a join need not look up rows by the full key.
        delete from pawl.timer t where t.tenant_id = v_row.tenant and t.instance_id = v_row.disarmed;
      end if;
      if v_row.stays then
        perform pawl_private.keep_timer((v_row.outcome).instance, p_by_timer or v_row.rearmed, v_row.rearmed);
      end if;
      if v_row.tasks then
        perform pawl_private.move_tasks(
          p_instance => (v_row.outcome).instance, p_at => v_row.at, p_moves => not v_row.stayed,
          p_compensation => v_row.compensation, p_event => v_row.event,
          p_version => case when v_row.steps is null then ((v_row.outcome).instance).version else (v_row.steps[2]).version end);
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
