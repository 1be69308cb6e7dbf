-- create starts instances of the latest version of their workflow, and records what was decided.
-- p_instance_correlation_ids: the correlation ids of the instances; part of the fingerprint
-- p_correlation_ids:          the correlation ids of the commands; an instance without one takes it
-- p_lifetimes:                override the workflow's ttl
-- p_callback_urls:            where to send the end of the instance, signed with p_callback_secrets;
--                             null if no command has one
-- p_callback_digests:         stand for the secrets in the fingerprint. The secrets may be sealed, to another text each time
-- p_seeds:                    the last 62 bits of the ids of the instances, so that a secret can be sealed for its instance
-- p_checked:                  as for fire, of the context schema and the context with the workflow's context_default
--                             under it
-- p_verified, p_access: as for fire
-- Returns: one outcome per command, in no order. 'instance-exists' shows the id of the instance that
--          has the business key. 'context-unchecked' comes with the schema that the caller must check, and
--          'limit-reached' with the limit; neither is recorded
-- Raises:  PW40A principal-changed; 40001 a key, or the holder of a business key, vanished while it was read: try again;
--          what an assign or a guard raises even in silent mode
-- Locks:   idempotency_key (by key), then instance (the business key)
-- Writes:  idempotency_key, instance, history, timer, callback, task, undoing
create function pawl.create(
  p_tenants text[], p_workflows text[], p_contexts jsonb[], p_keys text[], p_business_keys text[],
  p_instance_correlation_ids text[], p_lifetimes interval[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_callback_urls text[] default null, p_callback_secrets text[] default null, p_verified boolean default null,
  p_callback_digests text[] default null, p_seeds uuid[] default null, p_access uuid default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_ids uuid[] := array(
    select pawl_private.uuid_v7_with(v_now, uuid_send(coalesce(p_seeds[c.ordinal], gen_random_uuid())))
    from generate_series(1, cardinality(p_workflows)) as c (ordinal));
  v_row record;
  v_ordinals integer[];
  v_tenants text[];
  v_keys text[];
  v_fingerprints bytea[];
  v_exists boolean := false;
  v_lost integer[];
  v_place integer;
  v_found integer;
  v_limits jsonb := pawl_private.creation_limits(p_tenants);
begin
  select * into strict v_setting from pawl.setting;
  if v_setting.access_version <> p_access then
    perform pawl_private.refuse_changed_principal();
  end if;
  for v_row in
    with decided as materialized (
      select
        c.ordinal::integer as ordinal,
        coalesce(e.refusal, (z.macrostep).refusal, 'applied') as code,
        coalesce((z.macrostep).instance, n.instance) as instance,
        b.id as existing_id,
        c.tenant,
        c.workflow,
        c.business_key,
        nullif(c.key, '') as key,
        case when c.key <> '' then sha256(convert_to(
          jsonb_build_array(
            'create', c.workflow, c.context, c.business_key, c.instance_correlation_id,
            extract(epoch from c.lifetime))::text
          || coalesce(
            nullif(p_callback_urls[c.ordinal], '') || ' '
            || coalesce(p_callback_digests[c.ordinal], p_callback_secrets[c.ordinal]), '')
          || coalesce(chr(10) || case when p_verified then c.actor end, ''),
          'UTF8'))
        end as fingerprint,
        coalesce((z.macrostep).events, s.events) as actions,
        coalesce((z.macrostep).timeouts, s.timeouts) as timeouts,
        coalesce((z.macrostep).timeout_events, s.timeout_events) as timeout_events,
        (z.macrostep).steps,
        (z.macrostep).made,
        (z.macrostep).broken,
        coalesce((z.macrostep).tasks, s.tasks) as tasks,
        case when s.reads_actor then pawl_private.principal(c.actor, p_verified, false) end as principal,
        w.context_schema,
        c.actor,
        nullif(c.reason, '') as reason,
        coalesce(nullif(c.correlation_id, ''), nullif(c.instance_correlation_id, '')) as correlation_id,
        nullif(c.traceparent, '') as traceparent
      from unnest(
          v_ids, p_tenants, p_workflows, p_contexts, p_keys, p_business_keys, p_instance_correlation_ids, p_lifetimes,
          p_checked, p_actors, p_reasons, p_correlation_ids, p_traceparents
        ) with ordinality as c (
          id, tenant, workflow, context, key, business_key, instance_correlation_id, lifetime, checked,
          actor, reason, correlation_id, traceparent, ordinal)
      left join lateral (
        select true as seen
        from pawl.idempotency_key k
        where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > v_now
        limit 1
      ) k on true
      left join lateral (
        select w.name, w.version, w.initial, w.initial_moves, w.ttl, w.business_key_reusable,
          w.context_schema, w.context_schema_checksum, w.context_default
        from pawl.workflow w
        where w.name = c.workflow
        order by w.version desc
        limit 1
      ) w on true
      left join lateral (
        select s.status, s.events, s.timeouts, s.timeout_events, s.state_hash, s.reads_actor, s.tasks
        from pawl.workflow_state s
        where s.workflow = w.name and s.workflow_version = w.version and s.state = w.initial
        limit 1
      ) s on true
      left join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = c.tenant and i.workflow = c.workflow and i.business_key = c.business_key
          and (i.status = 'active' or not i.business_key_reusable)
        limit 1
      ) b on true
      cross join lateral (
        select case
          when w.context_default is not null and jsonb_typeof(c.context) = 'object' then w.context_default || c.context
          else c.context
        end as context
        offset 0
      ) q
      cross join lateral (
        select case
          when k.seen then 'seen'
          when w.name is null then 'workflow-not-found'
          when jsonb_typeof(c.context) is distinct from 'object' then 'malformed-request'
          when c.lifetime is not null and w.ttl is null then 'lifetime-without-ttl'
          when octet_length(q.context::text) > v_setting.context_limit then 'context-too-large'
          -- The service has checked the depth of what it gets.
          when c.checked = '*' and pawl_private.is_too_deep(c.context) then 'malformed-request'
          when w.context_schema is not null and c.checked is distinct from '*'
            and c.checked is distinct from w.context_schema_checksum then 'context-unchecked'
          when b.id is not null then 'instance-exists'
          when v_limits ? c.tenant then 'limit-reached'
        end as refusal
        offset 0
      ) e
      cross join lateral (
        select case when e.refusal is null then
          pawl_private.instance_row(
            p_tenant_id => c.tenant, p_id => c.id, p_workflow => c.workflow, p_workflow_version => w.version,
            p_state => w.initial, p_status => s.status, p_version => 1, p_context => q.context,
            p_business_key => nullif(c.business_key, ''), p_business_key_reusable => w.business_key_reusable,
            p_correlation_id => coalesce(nullif(c.instance_correlation_id, ''), nullif(c.correlation_id, '')),
            p_created_at => v_now, p_state_changed_at => v_now, p_expires_at => v_now + coalesce(c.lifetime, w.ttl),
            p_state_hash => s.state_hash)
        end as instance
        offset 0
      ) n
      cross join lateral (
        select case when e.refusal is null and w.initial_moves then
          pawl_private.begin_macrostep(
            p_instance => n.instance, p_principal => pawl_private.principal(c.actor, p_verified, false),
            p_reason => nullif(c.reason, ''), p_now => v_now, p_setting => v_setting)
        end as macrostep
        offset 0
      ) z
    ),
    claimed as (
      insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
      select distinct on (d.tenant, d.key)
        d.tenant, d.key, d.fingerprint, d.code, (d.instance).id, (d.instance).version,
        v_now + v_setting.idempotency_ttl
      from decided d
      where d.key is not null and d.code = 'applied'
      order by d.tenant, d.key, d.ordinal
      on conflict on constraint idempotency_key_pkey do update
      set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
        version = excluded.version, expires_at = excluded.expires_at
      where k.expires_at <= v_now
      returning k.tenant_id, k.key, k.instance_id
    ),
    -- Whether the decision is this call's to make.
    owned as materialized (
      select
        d.*,
        d.code <> 'seen' and (
          d.key is null
          or d.code <> 'applied'
          or (d.tenant, d.key, (d.instance).id) in (select k.tenant_id, k.key, k.instance_id from claimed k)
        ) as owned
      from decided d
    ),
    started as (
      insert into pawl.instance
      select (o.instance).*
      from owned o
      where o.owned and o.code = 'applied'
      order by o.tenant, o.workflow, o.business_key
      on conflict (tenant_id, workflow, business_key)
        where business_key is not null and (status = 'active' or not business_key_reusable) do nothing
      returning id
    ),
    kept as materialized (
      select o.*, o.owned and o.code = 'applied' and (o.instance).id in (select n.id from started n) as started
      from owned o
    ),
    appended as (
      insert into pawl.history (
        tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, expires_at,
        actor, reason, key, correlation_id, traceparent, at, principal, database_user)
      select
        i.tenant_id, i.id, 1, i.workflow, i.workflow_version, 'created', i.state, i.status, i.context, i.expires_at,
        p.actor, p.reason, p.key, p.correlation_id, p.traceparent, v_now, p.principal,
        case when p_verified is null then session_user end
      from kept p
      cross join lateral (select (p.instance).*) i
      where p.started and p.steps is null
    ),
    armed as (
      insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried)
      select p.tenant, (p.instance).id, t.due_at, (p.instance).version, 0
      from kept p
      cross join lateral (
        select pawl_private.deadline(v_now, p.timeouts, (p.instance).memory, (p.instance).expires_at) as due_at
      ) t
      where p.started and (p.instance).status = 'active' and t.due_at is not null
    )
    select
      p.owned,
      p.code = 'applied' and not p.started as lost,
      p.ordinal,
      p.tenant,
      p.key,
      p.fingerprint,
      case when p.started then p.steps end as steps,
      p.started and p.tasks as tasks,
      p.made,
      p.principal,
      (
        p.ordinal, p.code, false,
        case
          when p.started then p.instance
          when p.code = 'instance-exists' then
            pawl_private.instance_row(
              p_tenant_id => p.tenant, p_id => p.existing_id, p_workflow => p.workflow,
              p_business_key => p.business_key)
        end,
        case when p.started then p.actions end,
        case when p.broken is not null then array[p.broken] end,
        case p.code when 'context-unchecked' then p.context_schema when 'limit-reached' then v_limits -> p.tenant end,
        case when p.started and (p.instance).status = 'active' then
          pawl_private.deadline_event(v_now, p.timeouts, p.timeout_events, (p.instance).memory, (p.instance).expires_at)
        end,
        case when p.started and (p.instance).status = 'active' then
          pawl_private.deadline(v_now, p.timeouts, (p.instance).memory, (p.instance).expires_at)
        end
      )::pawl.outcome as outcome
    from kept p
  loop
    if not v_row.owned then
      v_ordinals := v_ordinals || v_row.ordinal;
      v_tenants := v_tenants || v_row.tenant;
      v_keys := v_keys || v_row.key;
      v_fingerprints := v_fingerprints || v_row.fingerprint;
    elsif v_row.lost then
      v_lost := v_lost || v_row.ordinal;
    else
      if v_row.steps is not null then
        perform pawl_private.append_history(
          p_steps => v_row.steps, p_made => v_row.made, p_kind => 'created', p_at => v_now, p_payload => null, p_internal => false,
          p_principal => v_row.principal, p_actor => p_actors[v_row.ordinal], p_reason => p_reasons[v_row.ordinal],
          p_key => v_row.key, p_correlation_id => p_correlation_ids[v_row.ordinal],
          p_traceparent => p_traceparents[v_row.ordinal],
          p_database_user => case when p_verified is null then session_user::text end);
      end if;
      if v_row.tasks then
        perform pawl_private.move_tasks(p_instance => (v_row.outcome).instance, p_at => v_now, p_moves => true);
      end if;
      if p_callback_urls[v_row.ordinal] <> '' and (v_row.outcome).code = 'applied' then
        insert into pawl.callback (tenant_id, instance_id, url, secret, created_at)
        values (
          v_row.tenant, ((v_row.outcome).instance).id, p_callback_urls[v_row.ordinal],
          nullif(p_callback_secrets[v_row.ordinal], ''), v_now);
      end if;
      v_exists := v_exists or (v_row.outcome).code = 'instance-exists';
      return next v_row.outcome;
    end if;
  end loop;

  -- The caller that is told that the business key is taken may have created that instance itself.
  if v_exists or v_lost is not null then
    perform pawl_private.commit_synchronously();
  end if;

  -- Another transaction, or another command of this call, took the business key after it was looked
  -- up. Such a refusal is not recorded, so its key is given back.
  if v_lost is not null then
    foreach v_place in array v_lost loop
      delete from pawl.idempotency_key k where k.tenant_id = p_tenants[v_place] and k.key = p_keys[v_place];
    end loop;
    return query
    select
      c.ordinal, 'instance-exists', false,
      pawl_private.instance_row(
        p_tenant_id => p_tenants[c.ordinal], p_id => i.id, p_workflow => i.workflow, p_business_key => i.business_key),
      null::text[], null::text[], null::jsonb, null::text, null::timestamptz
    from unnest(v_lost) as c (ordinal)
    cross join lateral (
      select i.id, i.workflow, i.business_key
      from pawl.instance i
      where i.tenant_id = p_tenants[c.ordinal]
        and i.workflow = p_workflows[c.ordinal]
        and i.business_key = p_business_keys[c.ordinal]
        and (i.status = 'active' or not i.business_key_reusable)
      limit 1
    ) i;
    get diagnostics v_found = row_count;
    if v_found < cardinality(v_lost) then
      raise exception 'the holder of a business key was removed meanwhile; try again' using errcode = '40001';
    end if;
  end if;

  if v_ordinals is not null then
    return query select r.*
    from pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => v_ordinals, p_tenants => v_tenants, p_keys => v_keys,
      p_fingerprints => v_fingerprints, p_events => '{}') r;
  end if;
end
$$;
