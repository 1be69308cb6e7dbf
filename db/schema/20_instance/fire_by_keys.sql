-- Firing by business key. A key is held by the instance that an index of pawl.instance allows one of: see
-- instance_business_key_key.

-- start_fingerprint is pawl_private.fingerprint for a fire by business key. The id of the instance is not part of it,
-- since it is not known if the instance is to be created.
create function pawl_private.start_fingerprint(
  p_workflow text, p_business_key text, p_event text, p_payload jsonb, p_start jsonb, p_subject text
) returns bytea
language sql stable parallel safe
as $$
  select sha256(convert_to(
    jsonb_build_array('fire-by-key', p_workflow, p_business_key, p_event, p_payload, p_start)::text
      || coalesce(p_subject, ''), 'UTF8'))
$$;

-- lock_holder locks the instance that holds a business key, which then holds it until the transaction ends.
-- Returns: its id; null if no instance holds the key
-- Locks:   instance (for no key update)
create function pawl_private.lock_holder(p_tenant text, p_workflow text, p_business_key text) returns uuid
language plpgsql volatile
as $$
declare
  v_id uuid;
begin
  loop
    select i.id
    into v_id
    from pawl.instance i
    where i.tenant_id = p_tenant and i.workflow = p_workflow and i.business_key = p_business_key
      and (i.status = 'active' or not i.business_key_reusable)
    limit 1;
    exit when not found;
    perform
    from pawl.instance i
    where i.tenant_id = p_tenant and i.id = v_id and (i.status = 'active' or not i.business_key_reusable)
    for no key update;
    exit when found;
    -- It has ended, or was purged, since it was looked up. Another one may hold the key by now.
  end loop;
  return v_id;
end
$$;

-- started_by says whether the command with an idempotency key, which moved an instance to a version, created it too.
-- Then both were one transaction, the creation has no key, and no other command moved the instance in between.
create function pawl_private.started_by(p_tenant text, p_id uuid, p_version bigint, p_key text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select
    from pawl.history c
    cross join lateral (
      select h.xid
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_id and h.version = p_version
      limit 1
    ) l
    where c.tenant_id = p_tenant and c.instance_id = p_id and c.version = 1 and c.key is null and c.xid = l.xid
      and not exists (
        select
        from pawl.history h
        where h.tenant_id = p_tenant and h.instance_id = p_id and h.version between 2 and p_version and h.key <> p_key));
end
$$;

-- fire_by_keys fires events as fire does, at the instances that hold business keys. A command may start an instance: if
-- none holds its key, it creates one and fires the event at it, or does neither. The whole call is one transaction.
-- p_starts:         a JSON object if the command may start an instance, else null. Its members `context`,
--                   `correlation_id`, `expires_in` (an interval), `callback_url` and `callback_secret` are those of the
--                   new instance; see create. It is part of the fingerprint, as it is written
-- p_callback_secrets, p_seeds: as for create, of the new instance. A secret here is used instead of that of p_starts,
--                   which then is its digest
-- p_starts_checked: as p_checked, of the context schema of the instance to create
-- p_verified, p_access: as for fire
-- Returns: one outcome per command, in no order, with the codes of fire. Instead of 'applied' the code is 'created' if
--          the command created the instance. If it would have created one, it is 'version-mismatch' if it expects any
--          version, and may be a code of create. Such a refusal shows no id, and is not recorded
-- Raises:  what create and fire raise
-- Locks:   the instances that hold the keys (for no key update, by id), then what fire locks. Then, for one command
--          after the other, by business key, what create and fire lock. Two calls that start instances may therefore
--          wait for each other. PostgreSQL ends one of them with 40P01, and the service repeats it
-- Writes:  idempotency_key, instance, history, timer, callback
create function pawl.fire_by_keys(
  p_tenants text[], p_workflows text[], p_business_keys text[], p_events text[], p_payloads jsonb[], p_keys text[],
  p_expected text[], p_checked text[], p_starts jsonb[], p_starts_checked text[], p_actors text[], p_reasons text[],
  p_correlation_ids text[], p_traceparents text[], p_verified boolean default null,
  p_callback_secrets text[] default null, p_seeds uuid[] default null, p_access uuid default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_fingerprints bytea[];
  -- A command whose key nobody holds fires at an id that does not exist, in case it is a replay.
  v_ids uuid[] := array(select gen_random_uuid() from generate_series(1, cardinality(p_business_keys)));
  v_row record;
  v_outcome pawl.outcome;
  v_open integer[] := '{}';
  v_place integer;
  v_id uuid;
  v_start jsonb;
  v_starts boolean;
begin
  select array_agg(
    pawl_private.start_fingerprint(
      c.workflow, c.business_key, c.event, c.payload, c.start, case when p_verified then c.actor end)
    order by c.ordinal)
  into v_fingerprints
  from unnest(p_workflows, p_business_keys, p_events, p_payloads, p_starts, p_actors)
    with ordinality as c (workflow, business_key, event, payload, start, actor, ordinal);

  for v_row in
    select c.ordinal, c.id
    from (
      select c.ordinal, c.tenant, h.id
      from unnest(p_tenants, p_workflows, p_business_keys, p_keys)
        with ordinality as c (tenant, workflow, business_key, key, ordinal)
      cross join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = c.tenant and i.workflow = c.workflow and i.business_key = c.business_key
          and (i.status = 'active' or not i.business_key_reusable)
        limit 1
      ) h
      left join lateral (
        select true as seen
        from pawl.idempotency_key k
        where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > v_now
        limit 1
      ) k on true
      where k.seen is not true -- A replay takes no lock.
      order by h.id, c.tenant
    ) c
    cross join lateral (
      -- An instance that holds its key no more when it is locked is left out.
      select true
      from pawl.instance i
      where i.tenant_id = c.tenant and i.id = c.id and (i.status = 'active' or not i.business_key_reusable)
      limit 1
      for no key update
    ) i
  loop
    v_ids[v_row.ordinal] := v_row.id;
  end loop;

  for v_outcome in
    select o.*
    from pawl.fire(
      p_tenants => p_tenants, p_ids => v_ids, p_events => p_events, p_payloads => p_payloads, p_keys => p_keys,
      p_expected => p_expected, p_checked => p_checked, p_actors => p_actors, p_reasons => p_reasons,
      p_correlation_ids => p_correlation_ids, p_traceparents => p_traceparents, p_verified => p_verified,
      p_fingerprints => v_fingerprints, p_access => p_access) o
  loop
    if v_outcome.code = 'instance-not-found' then
      v_open := v_open || v_outcome.ordinal;
      continue;
    end if;
    if v_outcome.code = 'applied' and v_outcome.replayed and p_starts[v_outcome.ordinal] is not null
      and pawl_private.started_by(
        p_tenants[v_outcome.ordinal], (v_outcome.instance).id, (v_outcome.instance).version,
        p_keys[v_outcome.ordinal]) then
      v_outcome.code := 'created';
    end if;
    return next v_outcome;
  end loop;

  for v_place in
    select o.place from unnest(v_open) as o (place) order by p_tenants[o.place], p_workflows[o.place], p_business_keys[o.place], o.place
  loop
    v_start := p_starts[v_place];
    loop
      v_id := pawl_private.lock_holder(p_tenants[v_place], p_workflows[v_place], p_business_keys[v_place]);
      v_starts := v_id is null and v_start is not null;
      begin
        v_outcome := null;
        if v_starts and p_expected[v_place] <> '' then
          v_outcome.code := case
            when exists (select from pawl.workflow w where w.name = p_workflows[v_place]) then 'version-mismatch'
            else 'workflow-not-found'
          end;
          v_outcome.replayed := false;
        elsif v_starts then
          -- Without a key, which belongs to the event.
          select o.*
          into strict v_outcome
          from pawl.create(
            p_tenants => p_tenants[v_place:v_place], p_workflows => p_workflows[v_place:v_place],
            p_contexts => array[coalesce(v_start -> 'context', '{}')], p_keys => array[''],
            p_business_keys => p_business_keys[v_place:v_place],
            p_instance_correlation_ids => array[coalesce(v_start ->> 'correlation_id', '')],
            -- A day has 24 hours, whatever the time zone of the session.
            p_lifetimes => array[
              make_interval(secs => extract(epoch from (v_start ->> 'expires_in')::interval)::double precision)],
            p_checked => p_starts_checked[v_place:v_place],
            p_actors => p_actors[v_place:v_place], p_reasons => p_reasons[v_place:v_place],
            p_correlation_ids => p_correlation_ids[v_place:v_place],
            p_traceparents => p_traceparents[v_place:v_place],
            p_callback_urls => array[coalesce(v_start ->> 'callback_url', '')],
            p_callback_secrets => array[
              coalesce(nullif(p_callback_secrets[v_place], ''), v_start ->> 'callback_secret', '')],
            p_verified => p_verified, p_seeds => p_seeds[v_place:v_place]) o;
          v_id := case when v_outcome.code = 'applied' then (v_outcome.instance).id end;
        end if;
        if v_id is not null or not v_starts then
          select o.*
          into strict v_outcome
          from pawl.fire(
            p_tenants => p_tenants[v_place:v_place], p_ids => array[coalesce(v_id, v_ids[v_place])],
            p_events => p_events[v_place:v_place], p_payloads => p_payloads[v_place:v_place],
            p_keys => p_keys[v_place:v_place],
            -- Whoever starts an instance knows its version.
            p_expected => case when v_starts then array['*'] else p_expected[v_place:v_place] end,
            p_checked => p_checked[v_place:v_place], p_actors => p_actors[v_place:v_place],
            p_reasons => p_reasons[v_place:v_place], p_correlation_ids => p_correlation_ids[v_place:v_place],
            p_traceparents => p_traceparents[v_place:v_place], p_verified => p_verified,
            p_fingerprints => v_fingerprints[v_place:v_place]) o;
        end if;
        if v_starts and (v_outcome.code <> 'applied' or v_outcome.replayed) then
          raise exception 'the instance is not started' using errcode = 'PW000'; -- Caught below.
        end if;
      exception when sqlstate 'PW000' then
        if not v_outcome.replayed then
          v_outcome.instance.id := null;
        end if;
      end;
      exit when v_outcome.code <> 'instance-exists'; -- Else another command has just taken the key.
    end loop;
    v_outcome.ordinal := v_place;
    if v_outcome.code = 'applied' and v_start is not null and (
      v_starts and not v_outcome.replayed
      or v_outcome.replayed and pawl_private.started_by(
        p_tenants[v_place], (v_outcome.instance).id, (v_outcome.instance).version, p_keys[v_place])
    ) then
      v_outcome.code := 'created';
    end if;
    return next v_outcome;
  end loop;
end
$$;
