-- instance_row makes a row of pawl.instance. It is the only place that depends on the order of the
-- table's columns; call it with named arguments. The planner inlines it.
create function pawl_private.instance_row(
  p_tenant_id pawl.tenant_id default null,
  p_id uuid default null,
  p_workflow text default null,
  p_workflow_version integer default null,
  p_state text default null,
  p_status pawl.status default null,
  p_version pawl.version default null,
  p_context pawl.object default null,
  p_business_key pawl.key default null,
  p_business_key_reusable boolean default false,
  p_correlation_id pawl.key default null,
  p_parent_id uuid default null,
  p_created_at timestamptz default null,
  p_state_changed_at timestamptz default null,
  p_expires_at timestamptz default null,
  p_error pawl.object default null,
  p_state_hash bigint default null
) returns pawl.instance
language sql immutable parallel safe
as $$
  select row(
    p_tenant_id, p_id, p_workflow, p_workflow_version, p_state, p_status, p_version, p_context, p_business_key,
    p_business_key_reusable, p_correlation_id, p_parent_id, p_created_at, p_state_changed_at, p_expires_at, p_error, p_state_hash)::pawl.instance
$$;

-- is_decision says whether an outcome is recorded for its key; see the domain pawl.decision.
create function pawl_private.is_decision(p_code text) returns boolean
language sql immutable parallel safe
as $$ select p_code in ('applied', 'transition-not-allowed', 'guard-rejected') $$;

-- fingerprint tells requests under one key apart: the SHA-256 of what a fire asks for, as canonical
-- jsonb text.
create function pawl_private.fingerprint(p_id uuid, p_event text, p_payload jsonb) returns bytea
language sql stable parallel safe
as $$ select sha256(convert_to(jsonb_build_array('fire', p_id, p_event, p_payload)::text, 'UTF8')) $$;

-- deadline is the next deadline of an instance that entered its state at p_entered_at, or null.
create function pawl_private.deadline(p_entered_at timestamptz, p_timeouts interval[], p_expires_at timestamptz)
returns timestamptz
language sql stable parallel safe
as $$ select least(p_entered_at + p_timeouts[1], p_expires_at) $$;

-- deadline_event is the event of that deadline, or null. If a timeout and the lifetime are due at the same
-- time, the timeout comes first.
create function pawl_private.deadline_event(
  p_entered_at timestamptz, p_timeouts interval[], p_timeout_events text[], p_expires_at timestamptz
) returns text
language sql stable parallel safe
as $$
  select case
    when p_entered_at + p_timeouts[1] <= p_expires_at or p_expires_at is null then p_timeout_events[1]
    else 'ttl'
  end
$$;

-- The planner inlines functions in language sql, and each session pays for that when it plans its first
-- call. So functions that few calls need are in PL/pgSQL, which a session parses only when it calls them.

-- guards lists the guards of an event in a state, as the definition words them.
create function pawl_private.guards(p_workflow text, p_workflow_version integer, p_state text, p_event text)
returns text[]
language plpgsql stable parallel safe
as $$
begin
  return (
    select array_agg(t.guard_text order by t.position)
    from pawl.workflow_transition t
    where t.workflow = p_workflow
      and t.workflow_version = p_workflow_version
      and t.source = p_state
      and t.event = p_event);
end
$$;

-- knows_event says whether any state of a version of a workflow accepts an event.
create function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select from pawl.workflow_transition t
    where t.workflow = p_workflow and t.workflow_version = p_workflow_version and t.event = p_event);
end
$$;

-- document is what guards and assigns read.
create function pawl_private.document(p_instance pawl.instance, p_payload jsonb, p_now timestamptz) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object(
    'context', p_instance.context,
    'payload', p_payload,
    'now', pawl_private.rfc3339(p_now),
    'instance', jsonb_build_object(
      'id', p_instance.id,
      'workflow', p_instance.workflow,
      'workflow_version', p_instance.workflow_version,
      'state', p_instance.state,
      'status', p_instance.status,
      'version', p_instance.version,
      'business_key', p_instance.business_key,
      'correlation_id', p_instance.correlation_id,
      'created_at', pawl_private.rfc3339(p_instance.created_at),
      'state_changed_at', pawl_private.rfc3339(p_instance.state_changed_at),
      'expires_at', pawl_private.rfc3339(p_instance.expires_at)));
end
$$;

-- assign computes the context that a transition's assigns leave, stage after stage: each stage sees
-- the context that the one before has left. A path that selects nothing leaves its name as it was.
create function pawl_private.assign(p_document jsonb, p_names text[], p_paths jsonpath[], p_stages integer[])
returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_document jsonb := p_document;
  v_stage integer;
begin
  for v_stage in 1 .. p_stages[cardinality(p_stages)] loop
    v_document := v_document || jsonb_build_object('context', v_document -> 'context' || (
      select
        case when bool_or(a.name is null) then v_document -> 'payload' else '{}' end
        || coalesce(jsonb_object_agg(a.name, a.value) filter (where a.name is not null and a.value is not null), '{}')
      from (
        select n.name, jsonb_path_query_first(v_document, n.path, '{}', true) as value
        from unnest(p_names, p_paths, p_stages) as n (name, path, stage)
        where n.stage = v_stage
        offset 0
      ) a));
  end loop;
  return v_document -> 'context';
end
$$;

-- is_too_deep says whether objects and arrays of a document are nested in one another more than 64 deep. A document
-- of fewer than 130 bytes cannot be.
create function pawl_private.is_too_deep(p_document jsonb) returns boolean
language plpgsql immutable parallel safe
as $$
begin
  return octet_length(p_document::text) >= 130
    and jsonb_path_exists(p_document, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")');
end
$$;

-- choose picks the transition that an event takes from a state: the first by position whose guard
-- holds on the document {context, payload, instance, now}. A guard that is false, null, missing or
-- not boolean does not hold.
--
-- If a candidate has a payload schema that the caller has not checked, it is chosen without its
-- guard, with unchecked true and no context. So a payload is refused for its shape before a guard
-- reads it. p_checked: the checksum of the schema that was checked, or '*' for any.
-- Returns: one row, or none if no guard holds; context: as the transition leaves it; nests: whether it may be
--          nested deeper than before; guard: its text in the definition, or null
create function pawl_private.choose(
  p_workflow text, p_workflow_version integer, p_state text, p_event text,
  p_document jsonb, p_checked text
) returns table (target text, unchecked boolean, context jsonb, nests boolean, payload_schema jsonb, guard text)
language sql stable parallel safe
as $$
  select
    t.target,
    t.unchecked,
    case
      when t.unchecked then null
      when t.assign_payload then p_document -> 'context' || (p_document -> 'payload')
      when t.assign_stages is not null then
        pawl_private.assign(p_document, t.assign_names, t.assign_paths, t.assign_stages)
      when t.assign_names = '{}' then p_document -> 'context'
      else p_document -> 'context' || coalesce(
        (
          select jsonb_object_agg(a.name, a.value)
          from (
            select n.name, jsonb_path_query_first(p_document, n.path, '{}', true) as value
            from unnest(t.assign_names, t.assign_paths) as n (name, path)
            offset 0
          ) a
          where a.value is not null
        ),
        '{}')
    end,
    t.assign_nests,
    t.payload_schema,
    t.guard_text
  from (
    select w.*, u.unchecked
    from pawl.workflow_transition w
    cross join lateral (
      select
        w.payload_schema is not null and p_checked is distinct from '*'
          and p_checked is distinct from w.payload_schema_checksum as unchecked
    ) u
    where w.workflow = p_workflow
      and w.workflow_version = p_workflow_version
      and w.source = p_state
      and w.event = p_event
      and case
        when u.unchecked or w.guard is null then true
        else jsonb_path_match(p_document, w.guard, '{}', true)
      end
    order by w.position
    limit 1
  ) t
$$;

-- failure says why an instance failed: the command's event (null at a creation), the state that the last
-- transition left, that transition's guard if it has one, and the command's reason.
create function pawl_private.failure(p_event text, p_state text, p_guard text, p_reason text) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object('event', p_event, 'state', p_state, 'reason', p_reason)
    || case when p_guard is null then '{}' else jsonb_build_object('guard', p_guard) end;
end
$$;

-- complete_macrostep takes the eventless transitions of an instance that has made a step, one after
-- the other, until no guard holds. Each is a step of its own, at the same time. Their guards and
-- assigns see the command's payload, too. p_before: the instance before the step; null at its creation.
-- Returns: the macrostep; its refusal is 'always-loop' after 100 eventless transitions, or
--          'context-too-large' or 'context-too-deep'
create function pawl_private.complete_macrostep(
  p_before pawl.instance, p_instance pawl.instance, p_event text, p_payload jsonb, p_reason text,
  p_now timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_instance pawl.instance := p_instance;
  v_next record;
  v_eventless boolean;
begin
  v_macrostep.steps := array[p_before, p_instance];
  loop
    select s.events, s.timeouts, s.timeout_events, s.eventless
    into strict v_macrostep.events, v_macrostep.timeouts, v_macrostep.timeout_events, v_eventless
    from pawl.workflow_state s
    where s.workflow = v_instance.workflow
      and s.workflow_version = v_instance.workflow_version
      and s.state = v_instance.state;
    exit when not v_eventless;
    select t.target, t.context, t.nests, t.guard, s.status, s.state_hash
    into v_next
    from pawl_private.choose(
      p_workflow => v_instance.workflow, p_workflow_version => v_instance.workflow_version,
      p_state => v_instance.state, p_event => ':always',
      p_document => pawl_private.document(v_instance, p_payload, p_now), p_checked => '*') t
    join pawl.workflow_state s
      on s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = t.target;
    exit when not found;
    if cardinality(v_macrostep.steps) > 101 then
      v_macrostep.refusal := 'always-loop';
      return v_macrostep;
    elsif octet_length(v_next.context::text) > p_setting.context_limit then
      v_macrostep.refusal := 'context-too-large';
      return v_macrostep;
    elsif v_next.nests and pawl_private.is_too_deep(v_next.context) then
      v_macrostep.refusal := 'context-too-deep';
      return v_macrostep;
    end if;
    if v_next.status = 'failed' then
      v_instance.error := pawl_private.failure(p_event, v_instance.state, v_next.guard, p_reason);
    end if;
    v_instance.state := v_next.target;
    v_instance.state_hash := v_next.state_hash;
    v_instance.status := v_next.status;
    v_instance.context := v_next.context;
    v_instance.version := v_instance.version + 1;
    v_instance.state_changed_at := greatest(v_instance.state_changed_at, p_now);
    v_macrostep.steps := v_macrostep.steps || v_instance;
  end loop;
  v_macrostep.instance := v_instance;
  return v_macrostep;
end
$$;

-- begin_macrostep is complete_macrostep for a new instance. First it runs the entry assigns of the
-- states that the instance starts in.
create function pawl_private.begin_macrostep(
  p_instance pawl.instance, p_reason text, p_now timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_instance;
  v_macrostep pawl_private.macrostep;
  v_nests boolean;
begin
  select t.context, t.nests
  into v_instance.context, v_nests
  from pawl_private.choose(
    p_workflow => p_instance.workflow, p_workflow_version => p_instance.workflow_version,
    p_state => p_instance.state, p_event => ':initial',
    p_document => pawl_private.document(p_instance, '{}', p_now), p_checked => '*') t;
  if not found then
    v_instance.context := p_instance.context;
  elsif octet_length(v_instance.context::text) > p_setting.context_limit then
    v_macrostep.refusal := 'context-too-large';
    return v_macrostep;
  elsif v_nests and pawl_private.is_too_deep(v_instance.context) then
    v_macrostep.refusal := 'context-too-deep';
    return v_macrostep;
  end if;
  return pawl_private.complete_macrostep(
    p_before => null, p_instance => v_instance, p_event => null, p_payload => '{}', p_reason => p_reason,
    p_now => p_now, p_setting => p_setting);
end
$$;

-- decide makes the decision of a fire. It only reads. p_instance: the instance; all of its columns are null if
-- it does not exist. Refusals are checked in the order of the contract: not found, precondition, size, event,
-- guard. If the command's key was taken while the call waited, the code is 'seen' instead of a refusal that
-- is not recorded.
-- Returns: one row. code: the outcome's. from_state: the state before. instance: after the last step
--          if applied, else as it is; null if there is none. due_at, timeout_event: its next deadline,
--          if applied; null if none. was_timed: whether it had a deadline before. payload_schema: with
--          'payload-unchecked'. steps: those of the macrostep if eventless transitions may have followed,
--          else null
create function pawl_private.decide(
  p_now timestamptz, p_setting pawl.setting, p_instance pawl.instance, p_command pawl_private.fire_command
) returns table (
  code text, from_state text, instance pawl.instance, actions text[], due_at timestamptz, timeout_event text,
  was_timed boolean, guards text[], payload_schema jsonb, steps pawl.instance[]
)
language sql stable
as $$
  select
    o.code,
    i.state,
    case
      when o.applied then coalesce((s.macrostep).instance, s.next)
      when i.id is not null then (i)::pawl.instance
    end,
    case when o.applied then coalesce((s.macrostep).events, s.events) else f.events end,
    case
      when coalesce(((s.macrostep).instance).status, s.status) = 'active' then
        pawl_private.deadline(n.at, coalesce((s.macrostep).timeouts, s.timeouts), n.expires_at)
    end,
    case
      when coalesce(((s.macrostep).instance).status, s.status) = 'active' then
        pawl_private.deadline_event(
          n.at, coalesce((s.macrostep).timeouts, s.timeouts), coalesce((s.macrostep).timeout_events, s.timeout_events),
          n.expires_at)
    end,
    f.timeouts <> '{}' or i.expires_at is not null,
    case
      when o.code = 'guard-rejected' then
        pawl_private.guards(i.workflow, i.workflow_version, i.state, c.event)
    end,
    case when t.unchecked then t.payload_schema end,
    case when o.applied then (s.macrostep).steps end
  from (select (p_command).* offset 0) c
  cross join lateral (select (p_instance).* offset 0) i
  left join lateral (
    select w.events, w.timeouts, w.ttl_slides, w.require_if_match, w.reads_instance
    from pawl.workflow_state w
    where w.workflow = i.workflow and w.workflow_version = i.workflow_version and w.state = i.state
    limit 1
  ) f on true
  cross join lateral (
    select case
      when i.id is null then 'instance-not-found'
      when c.expected not in ('', '*') and not i.version = any (c.expected::bigint[])
        then 'version-mismatch'
      when c.expected = '' and f.require_if_match then 'precondition-required'
      when jsonb_typeof(c.payload) is distinct from 'object' then 'malformed-request'
      when octet_length(c.payload::text) > p_setting.payload_limit then 'payload-too-large'
      -- The service has checked the depth of what it gets.
      when c.checked = '*' and pawl_private.is_too_deep(c.payload) then 'malformed-request'
      when (c.event like '%:%' or c.event = 'ttl') <> c.by_timer then 'unknown-event'
    end as refusal
    offset 0
  ) e
  -- The document is built once. Inlined, choose would build it for each guard and assign.
  cross join lateral (
    select case
      when e.refusal is not null then null
      when f.reads_instance then pawl_private.document((i)::pawl.instance, c.payload, p_now)
      else jsonb_build_object('context', i.context, 'payload', c.payload)
    end as document
    offset 0
  ) d
  left join lateral pawl_private.choose(
    p_workflow => i.workflow,
    p_workflow_version => i.workflow_version,
    p_state => case when e.refusal is null and i.status = 'active' then i.state end,
    p_event => c.event,
    p_document => d.document,
    p_checked => nullif(c.checked, '')
  ) t on true
  cross join lateral (
    select
      a.at,
      -- A sliding lifetime begins anew with each step, and keeps its length.
      case when f.ttl_slides then a.at + (i.expires_at - i.state_changed_at) else i.expires_at end as expires_at
    from (select greatest(p_now, i.state_changed_at) as at offset 0) a
  ) n
  left join lateral (
    select
      w.status, w.events, w.timeouts, w.timeout_events, x.next,
      case when w.eventless then
        pawl_private.complete_macrostep(
          p_before => (i)::pawl.instance, p_instance => x.next, p_event => c.event,
          p_payload => c.payload, p_reason => nullif(c.reason, ''), p_now => p_now,
          p_setting => p_setting)
      end as macrostep
    from pawl.workflow_state w
    cross join lateral (
      select pawl_private.instance_row(
        p_tenant_id => i.tenant_id, p_id => i.id, p_workflow => i.workflow,
        p_workflow_version => i.workflow_version, p_state => t.target, p_status => w.status,
        p_version => i.version + 1, p_context => t.context, p_business_key => i.business_key,
        p_business_key_reusable => i.business_key_reusable,
        p_correlation_id => i.correlation_id, p_parent_id => i.parent_id, p_created_at => i.created_at,
        p_state_changed_at => n.at, p_expires_at => n.expires_at, p_state_hash => w.state_hash,
        p_error => case
          when w.status = 'failed' then
            pawl_private.failure(c.event, i.state, t.guard, nullif(c.reason, ''))
          else i.error
        end) as next
      offset 0
    ) x
    where w.workflow = i.workflow
      and w.workflow_version = i.workflow_version
      and w.state = t.target
      and not t.unchecked
      and octet_length(t.context::text) <= p_setting.context_limit
      and not (t.nests and pawl_private.is_too_deep(t.context))
    limit 1
  ) s on true
  cross join lateral (
    select case
      when e.refusal is not null then e.refusal
      when t.unchecked then 'payload-unchecked'
      when (s.macrostep).refusal is not null then (s.macrostep).refusal
      when s.status is not null then 'applied'
      when octet_length(t.context::text) > p_setting.context_limit then 'context-too-large'
      when t.target is not null then 'context-too-deep'
      when c.event = any (f.events) then 'guard-rejected'
      when pawl_private.knows_event(i.workflow, i.workflow_version, c.event) then 'transition-not-allowed'
      else 'unknown-event'
    end as code
    offset 0
  ) x
  cross join lateral (
    select
      case
        -- The claim of its key will tell whether the decision counts.
        when pawl_private.is_decision(x.code) then x.code
        when (
          select true
          from pawl.idempotency_key k
          where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > p_now
        ) then 'seen'
        else x.code
      end as code,
      s.status is not null and (s.macrostep).refusal is null as applied
    offset 0
  ) o
$$;

-- replay answers commands whose key was taken before them, from what was recorded. The transaction's commit then waits
-- for the synchronous standbys, as that of the decision did: see commit_synchronously.
-- Returns: one outcome per key; the instance as it was then
-- Raises:  25006 on a standby; 40001 a key vanished while it was read: try again
-- Locks:   idempotency_key (by key), if the time to live slides
-- Writes:  idempotency_key.expires_at, if the time to live slides
create function pawl_private.replay(
  p_now timestamptz, p_setting pawl.setting, p_ordinals integer[], p_tenants text[], p_keys text[],
  p_fingerprints bytea[], p_events text[]
) returns setof pawl.outcome
language plpgsql volatile
as $$
declare
  v_claim record;
  v_found integer;
begin
  perform pawl_private.commit_synchronously();
  if p_setting.idempotency_ttl_slides then
    -- In order, so that calls cannot deadlock, and one by one, to be bound to the full key.
    for v_claim in select c.tenant, c.key from unnest(p_tenants, p_keys) as c (tenant, key) order by c.tenant, c.key loop
      update pawl.idempotency_key k
      set expires_at = p_now + p_setting.idempotency_ttl
      where k.tenant_id = v_claim.tenant and k.key = v_claim.key and k.expires_at > p_now;
    end loop;
  end if;

  return query
  select
    c.ordinal,
    case when r.same then k.decision else 'idempotency-key-reuse' end::text,
    true,
    case when a.id is not null then
      pawl_private.instance_row(
        p_tenant_id => a.tenant_id, p_id => a.id, p_workflow => a.workflow,
        p_workflow_version => a.workflow_version, p_state => a.state, p_status => a.status, p_version => a.version,
        p_context => a.context, p_business_key => a.business_key,
        p_business_key_reusable => a.business_key_reusable, p_correlation_id => a.correlation_id,
        p_parent_id => a.parent_id, p_created_at => a.created_at, p_state_changed_at => a.state_changed_at,
        p_expires_at => a.expires_at, p_error => a.error)
    end,
    s.events,
    case when r.same and k.decision = 'guard-rejected' then
      pawl_private.guards(a.workflow, a.workflow_version, a.state, c.event)
    end,
    null::jsonb,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline_event(a.state_changed_at, s.timeouts, s.timeout_events, a.expires_at)
    end,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline(a.state_changed_at, s.timeouts, a.expires_at)
    end
  from unnest(p_ordinals, p_tenants, p_keys, p_fingerprints, p_events) as c (ordinal, tenant, key, fingerprint, event)
  cross join lateral (
    select k.* from pawl.idempotency_key k where k.tenant_id = c.tenant and k.key = c.key limit 1
  ) k
  cross join lateral (select k.fingerprint = c.fingerprint as same offset 0) r
  left join lateral (
    select a.*
    from pawl.instance_at a
    where r.same and a.tenant_id = c.tenant and a.id = k.instance_id and a.version = k.version
    limit 1
  ) a on true
  left join lateral (
    select w.events, w.timeouts, w.timeout_events
    from pawl.workflow_state w
    where w.workflow = a.workflow and w.workflow_version = a.workflow_version and w.state = a.state
    limit 1
  ) s on true;

  get diagnostics v_found = row_count;
  if v_found < cardinality(p_ordinals) then
    raise exception 'an idempotency key expired while its outcome was read; try again' using errcode = '40001';
  end if;
end
$$;

-- append_history appends steps that were made by one command at one time. It is the only writer of
-- history but for the statements of fire and create, which append single steps in place.
-- p_steps: the instance before the first step (null at its creation) and after each step. p_kind,
-- p_event, p_payload: of the first step; the others are eventless transitions.
-- Writes:  history
create function pawl_private.append_history(
  p_steps pawl.instance[], p_kind text, p_at timestamptz, p_event text, p_payload jsonb, p_actor text, p_reason text,
  p_key text, p_correlation_id text, p_traceparent text
) returns void
language plpgsql volatile -- As instance_retains: it is called for each instance of a migration.
as $$
begin
  insert into pawl.history (
    tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
    context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at, entered_at)
  select
    s.tenant_id, s.id, s.version, s.workflow, s.workflow_version,
    case when n = 2 then p_kind else 'transition' end,
    case when n = 2 then p_event end,
    (p_steps[n - 1]).state,
    s.state, s.status, s.context,
    case when n = 2 then p_payload end,
    s.expires_at, s.error, p_actor, nullif(p_reason, ''), nullif(p_key, ''),
    coalesce(nullif(p_correlation_id, ''), s.correlation_id), nullif(p_traceparent, ''), p_at,
    nullif(s.state_changed_at, p_at)
  from generate_series(2, cardinality(p_steps)) n
  cross join lateral (select (p_steps[n]).*) s
  order by n;
end
$$;

-- refuse raises the condition of an outcome other than 'applied', for a SQL caller. The detail is a
-- JSON object with what the caller needs to go on.
-- Raises:  the condition's SQLSTATE
create function pawl_private.refuse(p_outcome pawl.outcome, p_id uuid, p_event text, p_expected bigint) returns void
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_outcome.instance;
  v_message text;
begin
  select format(c.message, p_event, v_instance.state, v_instance.version, v_instance.id)
  into v_message
  from pawl_private.condition c
  where c.outcome = p_outcome.code;
  perform pawl_private.raise_condition(
    p_outcome => p_outcome.code,
    p_message => v_message,
    p_detail => jsonb_build_object(
      'instance_id', case p_outcome.code when 'instance-not-found' then p_id else v_instance.id end,
      'state', v_instance.state,
      'instance_status', v_instance.status,
      'version', v_instance.version,
      'expected', p_expected,
      'event', p_event,
      'allowed_events', p_outcome.actions,
      'guards', p_outcome.guards));
end
$$;

-- instance_retains says whether an idempotency key that names an instance is alive, or held by another
-- transaction. It locks the expired ones. The caller must hold the instance's lock.
-- Returns: retains; expired: the places of the expired keys, to delete them by
-- Locks:   idempotency_key (for update, those that are not locked)
create function pawl_private.instance_retains(
  p_tenant text, p_id uuid, p_now timestamptz, out retains boolean, out expired tid[]
)
language plpgsql volatile -- A PL/pgSQL function keeps its plan; a SQL function does not.
as $$
begin
  select not coalesce(bool_and(l.place is not null), true), array_agg(l.place)
  into retains, expired
  from (
    select h.key
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_id and h.key is not null
    union
    select r.key
    from pawl.idempotency_key r
    where r.tenant_id = p_tenant and r.instance_id = p_id and r.decision <> 'applied'
  ) n
  cross join lateral (
    select k.instance_id
    from pawl.idempotency_key k
    where k.tenant_id = p_tenant and k.key = n.key
    limit 1
  ) k
  left join lateral (
    select k.ctid as place
    from pawl.idempotency_key k
    where k.tenant_id = p_tenant and k.key = n.key and k.instance_id = p_id and k.expires_at <= p_now
    limit 1
    for update skip locked
  ) l on true
  where k.instance_id = p_id; -- A key that expired may have been taken by another instance since.
end
$$;
