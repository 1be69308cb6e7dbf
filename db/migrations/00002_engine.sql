-- The engine. It decides every command and is the only writer of the tables.
--
-- A command is *create* or *fire*. Both take parallel arrays, one entry per command,
-- and answer one pawl.outcome row per command, so that many requests share a round
-- trip and a commit; create_one and fire_one wrap them for SQL callers. An empty
-- string in a text array means "none".
--
-- How a call decides, under READ COMMITTED, where each statement of a volatile
-- function sees a fresh snapshot:
--
--   1. Answer the commands whose key was taken before from what was recorded.
--   2. Lock the instances of the others, in the order of their ids.
--   3. Read the clock, then decide and write in one statement: only commands whose
--      key was claimed, and those without one, have an effect.
--   4. In a statement of its own, so that it sees what others committed meanwhile,
--      answer the commands whose key was taken since.
--
-- Lock order: workflow, workflow_migration, instance (by id), idempotency_key (by key),
-- history, timer.
--
-- Outcomes are codes, not exceptions: a refusal must not undo its neighbours, and a
-- subtransaction per command would cost more than the command. Raised conditions are
-- class PW; `detail` is JSON with the same code and members that HTTP answers with:
--
--   PW001 one instance twice in a call      PW400 malformed-request
--   PW404 instance- or workflow-not-found   PW409 a refusal, or workflow-conflict
--   PW410 event-id-too-old                  PW412 version-mismatch
--   PW413 too-large
--   PW422 unknown-event, guard-error, invalid-definition, idempotency-key-reuse
--   PW428 precondition-required
--
-- What follows from how Postgres plans and locks, each shown by a test in db:
--
--   * An instance is locked first and read afterwards. An update that joins the row it
--     waits for re-checks the old joined row and silently changes nothing.
--   * A key that is taken is read in the statement after the one that found it taken;
--     a single statement could neither insert it nor see it.
--   * Rows are looked up by their full key through `left join lateral (… limit 1)`. A
--     generic plan made while the tables are empty takes a tenant for two rows and
--     would read all of its keys at each call.
--   * decide and choose are single SELECTs in language sql, and stable, so that the
--     planner puts them in place. They hold the decision, and dry runs share it.
--   * Eventless transitions are a loop in a function of their own, settle, which is called
--     for states that have some. Other commands pay nothing for them.
--   * No result is memoized: the key would hold the whole context, which never recurs.
--   * No volatile function is called inside the writing statement, and p_tenant is
--     compared in every access: what a distributed Postgres needs to run the call
--     where the tenant lives.

-- +goose Up

-- now is the only clock. Tests replace it to move time; nothing else can.
-- +goose StatementBegin
create function pawl.now() returns timestamptz
language sql volatile parallel safe
as $$ select clock_timestamp() $$;
-- +goose StatementEnd

-- uuid_v7 makes an id that sorts by time: RFC 9562 version 7, whose twelve bits of
-- sub-millisecond fraction (its method 3) keep ids in order within a millisecond.
-- +goose StatementBegin
create function pawl.uuid_v7(p_at timestamptz) returns uuid
language sql volatile parallel safe
as $$
  select encode(
    set_byte(
      set_byte(
        overlay(uuid_send(gen_random_uuid()) placing substring(int8send(t.us / 1000) from 3) from 1 for 6),
        6, (112 | (t.us % 1000 * 4096 / 1000 >> 8))::integer),
      7, (t.us % 1000 * 4096 / 1000 & 255)::integer),
    'hex')::uuid
  from (select (extract(epoch from p_at) * 1000000)::bigint as us) t
$$;
-- +goose StatementEnd

-- uuid_v7_floor is the lowest id made in the millisecond of p_at: it turns a bound on
-- created_at into a bound on the primary key. Times that 48 bits cannot hold, before
-- 1970 or infinite, are taken for the nearest that they can.
-- +goose StatementBegin
create function pawl.uuid_v7_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe
as $$
  select (
    lpad(to_hex(least(greatest(floor(extract(epoch from p_at) * 1000), 0), 281474976710655)::bigint), 12, '0')
    || repeat('0', 20))::uuid
$$;
-- +goose StatementEnd

-- rfc3339 writes a time for guards and assigns: UTC, microseconds, fixed width, so that
-- times compare as strings too. The offset is +00:00, since datetime() refuses "Z".
-- +goose StatementBegin
create function pawl.rfc3339(p_at timestamptz) returns text
language sql stable parallel safe
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') $$;
-- +goose StatementEnd

-- outcome is the shape of an answer to a command; it never holds rows. A view, because
-- sqlc knows the columns of a view that a function returns. `outcome` is 'applied' or a
-- problem's code; the instance's columns are null where there is no instance to show.
create view pawl.outcome as
select
  0 as ordinal,
  ''::text as outcome,
  false as replayed,
  null::uuid as id,
  null::text as workflow,
  null::integer as workflow_version,
  null::text as state,
  null::text as status,
  null::bigint as version,
  null::jsonb as context,
  null::text as business_key,
  null::text as correlation_id,
  null::timestamptz as created_at,
  null::timestamptz as state_changed_at,
  null::timestamptz as expires_at,
  null::jsonb as error,
  null::text[] as actions,
  null::text[] as guards,
  null::jsonb as schema
where false;

-- assign makes a context of a document's by a transition's assigns, stage after stage:
-- each sees the context as the one before has left it. What a path selects nothing for
-- stays as it was.
-- +goose StatementBegin
create function pawl.assign(p_document jsonb, p_names text[], p_paths jsonpath[], p_stages integer[]) returns jsonb
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
-- +goose StatementEnd

-- choose picks the transition that an event takes from a state: the first by position
-- whose guard holds on the document {context, payload, instance, now}. A guard that is
-- false, null, missing or not boolean does not hold. A candidate whose payload schema
-- the caller has not checked (p_checked: its checksum, or '*' to vouch for any) is
-- chosen unguarded, with unchecked true and no context, so that a payload is refused
-- for its shape before a guard sees it.
-- Returns: one row, or none if no guard holds; context as it becomes. An assign whose
--          path selects nothing leaves its name as it was.
-- +goose StatementBegin
create function pawl.choose(
  p_workflow text, p_workflow_version integer, p_state text, p_event text,
  p_document jsonb, p_checked text
) returns table (target text, unchecked boolean, context jsonb, payload_schema jsonb)
language sql stable parallel safe
as $$
  select
    t.target,
    t.unchecked,
    case
      when t.unchecked then null
      when t.assign_payload then p_document -> 'context' || (p_document -> 'payload')
      when t.assign_stages is not null then pawl.assign(p_document, t.assign_names, t.assign_paths, t.assign_stages)
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
    t.payload_schema
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
-- +goose StatementEnd

-- guards lists the guards of an event in a state as the definition words them.
-- +goose StatementBegin
create function pawl.guards(p_workflow text, p_workflow_version integer, p_state text, p_event text) returns text[]
language sql stable parallel safe
as $$
  select array_agg(t.guard_text order by t.position)
  from pawl.workflow_transition t
  where t.workflow = p_workflow
    and t.workflow_version = p_workflow_version
    and t.source = p_state
    and t.event = p_event
$$;
-- +goose StatementEnd

-- knows_event says whether any state of a workflow accepts an event.
-- +goose StatementBegin
create function pawl.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
language sql stable parallel safe
as $$
  select exists (
    select from pawl.workflow_transition t
    where t.workflow = p_workflow and t.workflow_version = p_workflow_version and t.event = p_event)
$$;
-- +goose StatementEnd

-- document is what guards and assigns see.
-- +goose StatementBegin
create function pawl.document(p_instance pawl.instance, p_payload jsonb, p_now timestamptz) returns jsonb
language sql stable parallel safe
as $$
  select jsonb_build_object(
    'context', p_instance.context,
    'payload', p_payload,
    'now', pawl.rfc3339(p_now),
    'instance', jsonb_build_object(
      'id', p_instance.id,
      'workflow', p_instance.workflow,
      'workflow_version', p_instance.workflow_version,
      'state', p_instance.state,
      'status', p_instance.status,
      'version', p_instance.version,
      'business_key', p_instance.business_key,
      'correlation_id', p_instance.correlation_id,
      'created_at', pawl.rfc3339(p_instance.created_at),
      'state_changed_at', pawl.rfc3339(p_instance.state_changed_at),
      'expires_at', pawl.rfc3339(p_instance.expires_at)))
$$;
-- +goose StatementEnd

-- is_decision says whether an outcome is recorded for its key; see the domain decision.
-- +goose StatementBegin
create function pawl.is_decision(p_outcome text) returns boolean
language sql immutable parallel safe
as $$ select p_outcome in ('applied', 'transition-not-allowed', 'guard-rejected') $$;
-- +goose StatementEnd

-- fingerprint tells requests under one key apart: SHA-256 of what a fire asks for, as
-- canonical jsonb text.
-- +goose StatementBegin
create function pawl.fingerprint(p_id uuid, p_event text, p_payload jsonb) returns bytea
language sql stable parallel safe
as $$ select sha256(convert_to(jsonb_build_array('fire', p_id, p_event, p_payload)::text, 'UTF8')) $$;
-- +goose StatementEnd

-- deadline is when an instance that is in its state since p_entered_at must be looked at.
-- Null for never.
-- +goose StatementBegin
create function pawl.deadline(p_entered_at timestamptz, p_timeouts interval[], p_expires_at timestamptz)
returns timestamptz
language sql stable parallel safe
as $$ select least(p_entered_at + p_timeouts[1], p_expires_at) $$;
-- +goose StatementEnd

-- settlement is where eventless transitions lead: steps are the instance as it was before
-- the first step, null at its creation, and after each; state to timeouts tell of the last.
-- outcome is null, or why the steps cannot be. A shape, as pawl.outcome is.
create view pawl.settlement as
select
  null::text as outcome,
  null::pawl.instance[] as steps,
  null::text as state,
  null::text as status,
  null::bigint as version,
  null::jsonb as context,
  null::jsonb as error,
  null::text[] as events,
  null::interval[] as timeouts
where false;

-- settle takes the eventless transitions of an instance that has made a step, one after the
-- other, until no guard holds: they complete the macrostep, as SCXML calls it. Each is a
-- step of its own, at the same time. p_event, p_payload and p_reason are those of the
-- command, which guards and assigns go on to see.
-- Returns: the settlement; outcome 'always-loop' after 100 eventless transitions, or
--          'context-too-large'
-- +goose StatementBegin
create function pawl.settle(
  p_before pawl.instance, p_instance pawl.instance, p_event text, p_payload jsonb, p_reason text,
  p_now timestamptz, p_setting pawl.setting
) returns pawl.settlement
language plpgsql stable
as $$
declare
  v_settlement pawl.settlement;
  v_instance pawl.instance := p_instance;
  v_next record;
  v_eventless boolean;
begin
  v_settlement.steps := array[p_before, p_instance];
  loop
    select s.events, s.timeouts, s.eventless
    into strict v_settlement.events, v_settlement.timeouts, v_eventless
    from pawl.workflow_state s
    where s.workflow = v_instance.workflow
      and s.workflow_version = v_instance.workflow_version
      and s.state = v_instance.state;
    exit when not v_eventless;
    select t.target, t.context, s.status
    into v_next
    from pawl.choose(
      v_instance.workflow, v_instance.workflow_version, v_instance.state, ':always',
      pawl.document(v_instance, p_payload, p_now), '*') t
    join pawl.workflow_state s
      on s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = t.target;
    exit when not found;
    if cardinality(v_settlement.steps) > 101 then
      v_settlement.outcome := 'always-loop';
      return v_settlement;
    elsif octet_length(v_next.context::text) > p_setting.context_limit then
      v_settlement.outcome := 'context-too-large';
      return v_settlement;
    end if;
    if v_next.status = 'failed' then
      v_instance.error := jsonb_build_object('event', p_event, 'state', v_instance.state, 'reason', p_reason);
    end if;
    v_instance.state := v_next.target;
    v_instance.status := v_next.status;
    v_instance.context := v_next.context;
    v_instance.version := v_instance.version + 1;
    v_instance.state_changed_at := greatest(v_instance.state_changed_at, p_now);
    v_settlement.steps := v_settlement.steps || v_instance;
  end loop;
  v_settlement.state := v_instance.state;
  v_settlement.status := v_instance.status;
  v_settlement.version := v_instance.version;
  v_settlement.context := v_instance.context;
  v_settlement.error := v_instance.error;
  return v_settlement;
end
$$;
-- +goose StatementEnd

-- begin is settle for a new instance: what the states that it enters assign comes first.
-- +goose StatementBegin
create function pawl.begin(p_instance pawl.instance, p_reason text, p_now timestamptz, p_setting pawl.setting)
returns pawl.settlement
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_instance;
  v_settlement pawl.settlement;
begin
  select t.context
  into v_instance.context
  from pawl.choose(
    p_instance.workflow, p_instance.workflow_version, p_instance.state, ':initial',
    pawl.document(p_instance, '{}', p_now), '*') t;
  if not found then
    v_instance.context := p_instance.context;
  elsif octet_length(v_instance.context::text) > p_setting.context_limit then
    v_settlement.outcome := 'context-too-large';
    return v_settlement;
  end if;
  return pawl.settle(null, v_instance, null, '{}', p_reason, p_now, p_setting);
end
$$;
-- +goose StatementEnd

-- decide says what each fire command comes to, reading only. The order of its refusals
-- is the contract's: not found, precondition, size, event, guard. A refusal that is not
-- recorded gives way to a key that was taken while the call waited ('seen').
-- p_seen: which commands to leave out. p_timers: whether they are the engine's own, the
-- end of timeouts and lifetimes, or those of callers. p_instances: what to take the
-- instances for, one per command, or null for what they are.
-- Returns: one row per command. For 'applied', the columns from state to error are the
--          instance as it becomes, from_state what it leaves; else as it is. was_timed
--          says whether the state it leaves had a deadline. steps are those of the
--          settlement if eventless transitions may have followed, else null.
-- +goose StatementBegin
create function pawl.decide(
  p_tenant text, p_now timestamptz, p_setting pawl.setting,
  p_ids uuid[], p_events text[], p_payloads jsonb[], p_keys text[], p_expected text[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[], p_seen boolean[],
  p_timers boolean, p_instances pawl.instance[]
) returns table (
  ordinal integer, outcome text, id uuid, event text, payload jsonb, key text, fingerprint bytea,
  actor text, reason text, command_correlation_id text, traceparent text,
  workflow text, workflow_version integer, from_state text, state text, status text, version bigint,
  context jsonb, business_key text, correlation_id text, created_at timestamptz,
  state_changed_at timestamptz, expires_at timestamptz, error jsonb, actions text[],
  due_at timestamptz, was_timed boolean, guards text[], payload_schema jsonb, steps pawl.instance[]
)
language sql stable
as $$
  select
    c.ordinal::integer,
    o.outcome,
    c.id,
    c.event,
    c.payload,
    nullif(c.key, ''),
    case when c.key <> '' then pawl.fingerprint(c.id, c.event, c.payload) end,
    c.actor,
    nullif(c.reason, ''),
    coalesce(nullif(c.correlation_id, ''), i.correlation_id),
    nullif(c.traceparent, ''),
    i.workflow,
    i.workflow_version,
    i.state,
    case when o.applied then coalesce((s.settled).state, t.target) else i.state end,
    case when o.applied then coalesce((s.settled).status, s.status) else i.status end,
    case when o.applied then coalesce((s.settled).version, i.version + 1) else i.version end,
    case when o.applied then coalesce((s.settled).context, t.context) else i.context end,
    i.business_key,
    i.correlation_id,
    i.created_at,
    case when o.applied then n.at else i.state_changed_at end,
    case when o.applied then n.expires_at else i.expires_at end,
    case
      when o.applied and s.status = 'failed' then
        jsonb_build_object('event', c.event, 'state', i.state, 'reason', nullif(c.reason, ''))
      when o.applied and s.eventless then (s.settled).error
      else i.error
    end,
    case when o.applied then coalesce((s.settled).events, s.events) else f.events end,
    case
      when coalesce((s.settled).status, s.status) = 'active' then
        pawl.deadline(n.at, coalesce((s.settled).timeouts, s.timeouts), n.expires_at)
    end,
    f.timeouts <> '{}' or i.expires_at is not null,
    case when o.outcome = 'guard-rejected' then pawl.guards(i.workflow, i.workflow_version, i.state, c.event) end,
    case when t.unchecked then t.payload_schema end,
    case when o.applied then (s.settled).steps end
  from unnest(
      p_ids, p_events, p_payloads, p_keys, p_expected, p_checked,
      p_actors, p_reasons, p_correlation_ids, p_traceparents, p_seen
    ) with ordinality as c (
      id, event, payload, key, expected, checked, actor, reason, correlation_id, traceparent, seen, ordinal)
  left join lateral (
    select i.*
    from pawl.instance i
    where p_instances is null and i.tenant_id = p_tenant and i.id = c.id
    union all
    select n.*
    from unnest(p_instances[c.ordinal:c.ordinal]) n
    where p_instances is not null
    limit 1
  ) i on true
  left join lateral (
    select w.events, w.timeouts, w.ttl_slides, w.require_if_match, w.reads_instance
    from pawl.workflow_state w
    where w.workflow = i.workflow and w.workflow_version = i.workflow_version and w.state = i.state
    limit 1
  ) f on true
  cross join lateral (
    select case
      when i.id is null then 'instance-not-found'
      when c.expected not in ('', '*') and not i.version = any (c.expected::bigint[]) then 'version-mismatch'
      when c.expected = '' and f.require_if_match then 'precondition-required'
      when jsonb_typeof(c.payload) is distinct from 'object' then 'malformed-request'
      when octet_length(c.payload::text) > p_setting.payload_limit then 'payload-too-large'
      when (c.event like '%:%' or c.event = 'ttl') <> p_timers then 'unknown-event'
    end as refusal
    offset 0
  ) e
  -- Built once; choose, put in place, would build it for each guard and assign.
  cross join lateral (
    select case
      when e.refusal is not null then null
      when f.reads_instance then pawl.document((i)::pawl.instance, c.payload, p_now)
      else jsonb_build_object('context', i.context, 'payload', c.payload)
    end as document
    offset 0
  ) d
  left join lateral pawl.choose(
    i.workflow,
    i.workflow_version,
    case when e.refusal is null and i.status = 'active' then i.state end,
    c.event,
    d.document,
    nullif(c.checked, '')
  ) t on true
  cross join lateral (
    select
      a.at,
      -- From each step to the end of the lifetime it is as long as it was from the last.
      case when f.ttl_slides then a.at + (i.expires_at - i.state_changed_at) else i.expires_at end as expires_at
    from (select greatest(p_now, i.state_changed_at) as at offset 0) a
  ) n
  left join lateral (
    select
      w.status, w.events, w.timeouts, w.eventless,
      case when w.eventless then
        pawl.settle(
          (i)::pawl.instance,
          (
            i.tenant_id, i.id, i.workflow, i.workflow_version, t.target, w.status, i.version + 1, t.context,
            i.business_key, i.correlation_id, i.parent_id, i.created_at, n.at, n.expires_at, i.error
          )::pawl.instance,
          c.event, c.payload, nullif(c.reason, ''), p_now, p_setting)
      end as settled
    from pawl.workflow_state w
    where w.workflow = i.workflow
      and w.workflow_version = i.workflow_version
      and w.state = t.target
      and not t.unchecked
      and octet_length(t.context::text) <= p_setting.context_limit
    limit 1
  ) s on true
  cross join lateral (
    select case
      when e.refusal is not null then e.refusal
      when t.unchecked then 'payload-unchecked'
      when (s.settled).outcome is not null then (s.settled).outcome
      when s.status is not null then 'applied'
      when t.target is not null then 'context-too-large'
      when c.event = any (f.events) then 'guard-rejected'
      when pawl.knows_event(i.workflow, i.workflow_version, c.event) then 'transition-not-allowed'
      else 'unknown-event'
    end as outcome
    offset 0
  ) x
  cross join lateral (
    select
      case
        -- Its claim will tell.
        when pawl.is_decision(x.outcome) then x.outcome
        when (
          select true
          from pawl.idempotency_key k
          where k.tenant_id = p_tenant and k.key = c.key and k.expires_at > p_now
        ) then 'seen'
        else x.outcome
      end as outcome,
      s.status is not null and (s.settled).outcome is null as applied
    offset 0
  ) o
  where c.seen is not true
$$;
-- +goose StatementEnd

-- replay answers commands whose key was taken before them from what was recorded.
-- Returns: one row per key, in order; the instance as it was then.
-- Raises:  40001 a key vanished while it was read: try again
-- Locks:   idempotency_key (by key), if the time to live slides
-- Writes:  idempotency_key.expires_at, if the time to live slides
-- +goose StatementBegin
create function pawl.replay(
  p_tenant text, p_now timestamptz, p_setting pawl.setting, p_ordinals integer[], p_keys text[], p_fingerprints bytea[], p_events text[]
) returns setof pawl.outcome
language plpgsql volatile
as $$
declare
  v_key text;
  v_found integer;
begin
  if p_setting.idempotency_ttl_slides then
    -- In order, so that calls cannot deadlock, and one by one, to be bound to the full key.
    for v_key in select c.key from unnest(p_keys) as c (key) order by c.key loop
      update pawl.idempotency_key k
      set expires_at = p_now + p_setting.idempotency_ttl
      where k.tenant_id = p_tenant and k.key = v_key and k.expires_at > p_now;
    end loop;
  end if;

  return query
  select
    c.ordinal,
    case when r.same then k.outcome else 'idempotency-key-reuse' end::text,
    true,
    a.id, a.workflow, a.workflow_version, a.state, a.status::text, a.version::bigint, a.context::jsonb,
    a.business_key::text, a.correlation_id::text, a.created_at, a.state_changed_at, a.expires_at, a.error::jsonb,
    s.events,
    case when r.same and k.outcome = 'guard-rejected' then
      pawl.guards(a.workflow, a.workflow_version, a.state, c.event)
    end,
    null::jsonb
  from unnest(p_ordinals, p_keys, p_fingerprints, p_events) as c (ordinal, key, fingerprint, event)
  cross join lateral (
    select k.* from pawl.idempotency_key k where k.tenant_id = p_tenant and k.key = c.key limit 1
  ) k
  cross join lateral (select k.fingerprint = c.fingerprint as same offset 0) r
  left join lateral (
    select a.*
    from pawl.instance_at a
    where r.same and a.tenant_id = p_tenant and a.id = k.instance_id and a.version = k.version
    limit 1
  ) a on true
  left join lateral (
    select w.events
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
-- +goose StatementEnd

-- append_steps appends a settlement's steps to history. The first is what p_kind and p_event
-- say, the others are eventless; all were made by one command.
-- Writes:  history
-- +goose StatementBegin
create function pawl.append_steps(
  p_steps pawl.instance[], p_kind text, p_event text, p_payload jsonb, p_actor text, p_reason text, p_key text,
  p_correlation_id text, p_traceparent text
) returns void
language sql volatile
as $$
  insert into pawl.history (
    tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
    context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at)
  select
    s.tenant_id, s.id, s.version, s.workflow, s.workflow_version,
    case when n = 2 then p_kind else 'transition' end,
    case when n = 2 then p_event end,
    (p_steps[n - 1]).state,
    s.state, s.status, s.context,
    case when n = 2 then p_payload end,
    s.expires_at, s.error, p_actor, nullif(p_reason, ''), nullif(p_key, ''),
    coalesce(nullif(p_correlation_id, ''), s.correlation_id), nullif(p_traceparent, ''), s.state_changed_at
  from generate_series(2, cardinality(p_steps)) n
  cross join lateral (select (p_steps[n]).*) s
  order by n
$$;
-- +goose StatementEnd

-- fire moves instances along one transition each, and the eventless ones that follow, and
-- records what was decided.
-- p_expected: '' for none, '*' for any version, else an array literal of the versions
-- that will do, such as '{3}'. p_checked: the checksum of the payload schema that the
-- caller has checked the payload against, or '*'; see 'payload-unchecked'.
-- p_timers: whether the events are the engine's own. Such a step claims no key, since the
-- version that it expects is gone afterwards; in history its key is that, as 'timer:3'.
-- Returns: one row per command, in no order: outcome, and the instance as it then was.
--          'payload-unchecked' comes with the schema to check: then call again.
-- Raises:  PW001 the same instance twice in one call
-- Locks:   instance (for no key update, by id), then idempotency_key (by key)
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.fire(
  p_tenant text,
  p_ids uuid[], p_events text[], p_payloads jsonb[], p_keys text[], p_expected text[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_timers boolean default false
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
  v_row record;
  v_ordinals integer[];
  v_keys text[];
  v_fingerprints bytea[];
  v_events text[];
begin
  if cardinality(p_ids) > 1 and (select count(distinct c.id) from unnest(p_ids) as c (id)) < cardinality(p_ids) then
    raise exception 'fire: an instance is named twice in one call; move it one step at a time'
      using errcode = 'PW001';
  end if;

  select
    g as setting,
    array(
      select (
        select true
        from pawl.idempotency_key k
        where k.tenant_id = p_tenant and k.key = c.key and k.expires_at > v_now
      )
      from unnest(p_keys) as c (key)) as seen
  into strict v_row
  from pawl.setting g;
  v_setting := v_row.setting;
  v_seen := v_row.seen;
  if true = any (v_seen) then
    -- A retry takes no lock, and no transaction id: what was decided does not change.
    return query select r.*
    from (
      select
        array_agg(c.ordinal::integer) as ordinals,
        array_agg(c.key) as keys,
        array_agg(pawl.fingerprint(c.id, c.event, c.payload)) as fingerprints,
        array_agg(c.event) as events
      from unnest(p_ids, p_events, p_payloads, p_keys, v_seen) with ordinality as c (id, event, payload, key, seen, ordinal)
      where c.seen
    ) c
    cross join lateral pawl.replay(p_tenant, v_now, v_setting, c.ordinals, c.keys, c.fingerprints, c.events) r;
    if true = all (v_seen) then
      return;
    end if;
  end if;

  perform i.found
  from (select c.id from unnest(p_ids, v_seen) as c (id, seen) where c.seen is not true order by c.id) c
  cross join lateral (
    select true as found
    from pawl.instance i
    where i.tenant_id = p_tenant and i.id = c.id
    limit 1
    for no key update
  ) i;

  -- Read under the lock, so that time rises with the version.
  v_now := pawl.now();

  for v_row in
    with decided as materialized (
      select * from pawl.decide(
        p_tenant, v_now, v_setting, p_ids, p_events, p_payloads, p_keys, p_expected, p_checked,
        p_actors, p_reasons, p_correlation_ids, p_traceparents, v_seen, p_timers, null)
    ),
    claimed as (
      insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, outcome, instance_id, version, expires_at)
      select distinct on (d.key)
        p_tenant, d.key, d.fingerprint, d.outcome, d.id, d.version, v_now + v_setting.idempotency_ttl
      from decided d
      where d.key is not null and pawl.is_decision(d.outcome)
      order by d.key, d.ordinal
      on conflict on constraint idempotency_key_pkey do update
      set fingerprint = excluded.fingerprint, outcome = excluded.outcome, instance_id = excluded.instance_id,
        version = excluded.version, expires_at = excluded.expires_at
      where k.expires_at <= v_now
      -- The instance tells two commands with one key apart.
      returning k.key, k.instance_id
    ),
    settled as materialized (
      select d.ordinal
      from decided d
      where d.outcome <> 'seen' and (
        d.key is null
        or not pawl.is_decision(d.outcome)
        or (d.key, d.id) in (select k.key, k.instance_id from claimed k)
      )
    ),
    -- "is true" keeps the planner, who expects few commands, from comparing each with each.
    moved as (
      -- Every row exists and is locked: this is an update whose look-up by the full key
      -- no plan can change, which an update with a join is not.
      insert into pawl.instance as i (
        tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at,
        expires_at, error)
      select
        p_tenant, d.id, d.workflow, d.workflow_version, d.state, d.status, d.version, d.context, d.created_at,
        d.state_changed_at, d.expires_at, d.error
      from decided d
      where (d.outcome = 'applied' and d.ordinal in (select s.ordinal from settled s)) is true
      on conflict on constraint instance_pkey do update
      set state = excluded.state, status = excluded.status, version = excluded.version, context = excluded.context,
        state_changed_at = excluded.state_changed_at, expires_at = excluded.expires_at, error = excluded.error
    ),
    appended as (
      insert into pawl.history (
        tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
        context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at)
      select
        p_tenant, d.id, d.version, d.workflow, d.workflow_version,
        case when not p_timers then 'transition' when d.event = 'ttl' then 'expired' else 'timeout' end, d.event,
        d.from_state, d.state, d.status, d.context, d.payload, d.expires_at, d.error, d.actor, d.reason,
        case when p_timers then 'timer:' || d.version - 1 else d.key end, d.command_correlation_id,
        d.traceparent, d.state_changed_at
      from decided d
      where (d.outcome = 'applied' and d.ordinal in (select s.ordinal from settled s)) is true
        and d.steps is null
    ),
    armed as (
      insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
      select p_tenant, d.id, d.due_at, d.version, 0
      from decided d
      where (d.outcome = 'applied' and d.ordinal in (select s.ordinal from settled s)) is true
        and d.due_at is not null
      on conflict on constraint timer_pkey do update
      set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = 0
      -- A look that comes too early puts the timer right.
      where t.due_at > excluded.due_at or t.due_at <= v_now
    )
    select
      d.ordinal in (select s.ordinal from settled s) as settled,
      d.ordinal,
      d.key,
      d.fingerprint,
      d.event,
      case
        when d.outcome = 'applied' and d.was_timed and d.due_at is null then d.id
      end as disarmed,
      d.steps,
      (
        d.ordinal, d.outcome, false, d.id, d.workflow, d.workflow_version, d.state, d.status, d.version, d.context,
        d.business_key, d.correlation_id, d.created_at, d.state_changed_at, d.expires_at, d.error, d.actions, d.guards,
        d.payload_schema
      )::pawl.outcome as answer
    from decided d
  loop
    if not v_row.settled then
      v_ordinals := v_ordinals || v_row.ordinal;
      v_keys := v_keys || v_row.key;
      v_fingerprints := v_fingerprints || v_row.fingerprint;
      v_events := v_events || v_row.event;
      continue;
    end if;
    if v_row.steps is not null then
      perform pawl.append_steps(
        v_row.steps, case when not p_timers then 'transition' when v_row.event = 'ttl' then 'expired' else 'timeout' end,
        v_row.event, p_payloads[v_row.ordinal], p_actors[v_row.ordinal], p_reasons[v_row.ordinal],
        case when p_timers then 'timer:' || (v_row.steps[1]).version else v_row.key end,
        p_correlation_ids[v_row.ordinal], p_traceparents[v_row.ordinal]);
    end if;
    if v_row.disarmed is not null then
      -- One by one, since a delete with a join would not be bound to the full key.
      delete from pawl.timer t where t.tenant_id = p_tenant and t.instance_id = v_row.disarmed;
    end if;
    return next v_row.answer;
  end loop;

  if v_ordinals is not null then
    return query select * from pawl.replay(p_tenant, v_now, v_setting, v_ordinals, v_keys, v_fingerprints, v_events);
  end if;
end
$$;
-- +goose StatementEnd

-- preview says what fire would come to, and writes nothing: the same decision, in a
-- read-only transaction if the caller likes. Keys play no part. p_instances: as for decide.
-- Returns: one row per command, in no order; an applied one shows the instance as it would be.
-- +goose StatementBegin
create function pawl.preview(
  p_tenant text, p_ids uuid[], p_events text[], p_payloads jsonb[], p_expected text[], p_checked text[],
  p_instances pawl.instance[] default null
) returns setof pawl.outcome
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    d.ordinal, d.outcome, false, d.id, d.workflow, d.workflow_version, d.state, d.status, d.version, d.context,
    d.business_key, d.correlation_id, d.created_at, d.state_changed_at, d.expires_at, d.error, d.actions, d.guards,
    d.payload_schema
  from pawl.decide(
    p_tenant, pawl.now(), (select g from pawl.setting g),
    p_ids, p_events, p_payloads, '{}', p_expected, p_checked, '{}', '{}', '{}', '{}', '{}', false, p_instances) d
$$;
-- +goose StatementEnd

-- simulate says what an event would come to for an instance that never was: one in a
-- state, at a version, with a context. p_state: null for one that is created with the
-- context first. p_event: null for nothing more than that. p_checked: as for fire.
-- Returns: one row, as preview does; none if the workflow has no such version or state
-- +goose StatementBegin
create function pawl.simulate(
  p_workflow text, p_workflow_version integer, p_state text, p_version bigint, p_context jsonb,
  p_event text, p_payload jsonb, p_checked text
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_instance pawl.instance;
  v_settlement pawl.settlement;
begin
  select
    'simulation', '00000000-0000-0000-0000-000000000000', s.workflow, s.workflow_version, s.state, s.status,
    p_version, p_context, null, null, null, v_now, v_now, v_now + w.ttl, null
  into v_instance
  from pawl.workflow w
  join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version
  where w.name = p_workflow and w.version = p_workflow_version and s.state = coalesce(p_state, w.initial);
  if not found then
    return;
  end if;
  if p_state is null then
    v_settlement := pawl.begin(v_instance, null, v_now, (select g from pawl.setting g));
    if v_settlement.outcome is null then
      v_instance := v_settlement.steps[cardinality(v_settlement.steps)];
    end if;
  end if;
  if p_event is not null and v_settlement.outcome is null then
    return query select o.*
    from pawl.preview(
      'simulation', array[v_instance.id], array[p_event], array[p_payload], array['*'], array[p_checked],
      array[v_instance]) o;
  else
    return query select
      1, coalesce(v_settlement.outcome, 'applied'), false, v_instance.id, v_instance.workflow,
      v_instance.workflow_version, v_instance.state, v_instance.status::text, v_instance.version::bigint,
      v_instance.context::jsonb, null::text, null::text, v_instance.created_at, v_instance.state_changed_at,
      v_instance.expires_at, v_instance.error::jsonb, v_settlement.events, null::text[], null::jsonb;
  end if;
end
$$;
-- +goose StatementEnd

-- create starts instances of the latest version of their workflow and records what was
-- decided. p_instance_correlation_ids belong to the instance and to the request's
-- fingerprint; p_correlation_ids to the command alone, and stand in where the instance
-- has none. p_lifetimes override the workflow's ttl. p_callback_urls are told of the end of
-- the instance, and signed with p_callback_secrets; most calls have none of them. p_checked: as for fire, of the
-- context schema.
-- Returns: one row per command, in no order: outcome, and the instance as it then was.
--          'instance-exists' comes with the id of the holder of the business key.
-- Raises:  40001 what it found vanished: try again
-- Locks:   idempotency_key (by key), then instance (the business key)
-- Writes:  idempotency_key, instance, history, timer, callback
-- +goose StatementBegin
create function pawl.create(
  p_tenant text,
  p_workflows text[], p_contexts jsonb[], p_keys text[], p_business_keys text[], p_instance_correlation_ids text[],
  p_lifetimes interval[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_callback_urls text[] default null, p_callback_secrets text[] default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_ids uuid[] := array(select pawl.uuid_v7(v_now) from generate_series(1, cardinality(p_workflows)));
  v_row record;
  v_ordinals integer[];
  v_keys text[];
  v_fingerprints bytea[];
  v_lost integer[];
  v_lost_keys text[];
  v_key text;
  v_found integer;
begin
  select * into strict v_setting from pawl.setting;
  for v_row in
    with decided as materialized (
      select
        c.ordinal::integer as ordinal,
        coalesce(e.refusal, (z.settled).outcome, 'applied') as outcome,
        case when b.id is not null then b.id else c.id end as id,
        nullif(c.key, '') as key,
        case when c.key <> '' then sha256(convert_to(
          jsonb_build_array(
            'create', c.workflow, c.context, c.business_key, c.instance_correlation_id,
            extract(epoch from c.lifetime))::text
          || coalesce(nullif(p_callback_urls[c.ordinal], '') || ' ' || p_callback_secrets[c.ordinal], ''),
          'UTF8'))
        end as fingerprint,
        c.workflow,
        w.version as workflow_version,
        coalesce((z.settled).state, w.initial) as state,
        coalesce((z.settled).status, s.status) as status,
        coalesce((z.settled).version, 1) as version,
        coalesce((z.settled).events, s.events) as actions,
        coalesce((z.settled).timeouts, s.timeouts) as timeouts,
        coalesce((z.settled).context, c.context) as context,
        (z.settled).error,
        (z.settled).steps,
        nullif(c.business_key, '') as business_key,
        n.correlation_id,
        coalesce(nullif(c.correlation_id, ''), nullif(c.instance_correlation_id, '')) as command_correlation_id,
        n.expires_at,
        w.context_schema,
        c.actor,
        nullif(c.reason, '') as reason,
        nullif(c.traceparent, '') as traceparent
      from unnest(
          v_ids, p_workflows, p_contexts, p_keys, p_business_keys, p_instance_correlation_ids, p_lifetimes, p_checked,
          p_actors, p_reasons, p_correlation_ids, p_traceparents
        ) with ordinality as c (
          id, workflow, context, key, business_key, instance_correlation_id, lifetime, checked,
          actor, reason, correlation_id, traceparent, ordinal)
      left join lateral (
        select true as seen
        from pawl.idempotency_key k
        where k.tenant_id = p_tenant and k.key = c.key and k.expires_at > v_now
        limit 1
      ) k on true
      left join lateral (
        select w.name, w.version, w.initial, w.initial_moves, w.ttl, w.context_schema, w.context_schema_checksum
        from pawl.workflow w
        where w.name = c.workflow
        order by w.version desc
        limit 1
      ) w on true
      left join lateral (
        select s.status, s.events, s.timeouts
        from pawl.workflow_state s
        where s.workflow = w.name and s.workflow_version = w.version and s.state = w.initial
        limit 1
      ) s on true
      left join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = p_tenant and i.workflow = c.workflow and i.business_key = c.business_key
        limit 1
      ) b on true
      cross join lateral (
        select
          coalesce(nullif(c.instance_correlation_id, ''), nullif(c.correlation_id, '')) as correlation_id,
          v_now + coalesce(c.lifetime, w.ttl) as expires_at
      ) n
      cross join lateral (
        select case
          when k.seen then 'seen'
          when w.name is null then 'workflow-not-found'
          when jsonb_typeof(c.context) is distinct from 'object' then 'malformed-request'
          when c.lifetime is not null and w.ttl is null then 'lifetime-without-ttl'
          when octet_length(c.context::text) > v_setting.context_limit then 'context-too-large'
          when w.context_schema is not null and c.checked is distinct from '*'
            and c.checked is distinct from w.context_schema_checksum then 'context-unchecked'
          when b.id is not null then 'instance-exists'
        end as refusal
        offset 0
      ) e
      cross join lateral (
        select case
          when e.refusal is null and w.initial_moves then
            pawl.begin(
              (
                p_tenant, c.id, c.workflow, w.version, w.initial, s.status, 1, c.context, nullif(c.business_key, ''),
                n.correlation_id, null, v_now, v_now, n.expires_at, null
              )::pawl.instance,
              nullif(c.reason, ''), v_now, v_setting)
        end as settled
        offset 0
      ) z
    ),
    claimed as (
      insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, outcome, instance_id, version, expires_at)
      select distinct on (d.key)
        p_tenant, d.key, d.fingerprint, d.outcome, d.id, d.version, v_now + v_setting.idempotency_ttl
      from decided d
      where d.key is not null and d.outcome = 'applied'
      order by d.key, d.ordinal
      on conflict on constraint idempotency_key_pkey do update
      set fingerprint = excluded.fingerprint, outcome = excluded.outcome, instance_id = excluded.instance_id,
        version = excluded.version, expires_at = excluded.expires_at
      where k.expires_at <= v_now
      returning k.key, k.instance_id
    ),
    settled as materialized (
      select
        d.*,
        d.outcome <> 'seen' and (
          d.key is null
          or d.outcome <> 'applied'
          or (d.key, d.id) in (select k.key, k.instance_id from claimed k)
        ) as settled
      from decided d
    ),
    started as (
      insert into pawl.instance (
        tenant_id, id, workflow, workflow_version, state, status, version, context, business_key, correlation_id,
        created_at, state_changed_at, expires_at, error)
      select
        p_tenant, s.id, s.workflow, s.workflow_version, s.state, s.status, s.version, s.context, s.business_key,
        s.correlation_id, v_now, v_now, s.expires_at, s.error
      from settled s
      where s.settled and s.outcome = 'applied'
      order by s.workflow, s.business_key
      on conflict (tenant_id, workflow, business_key) where business_key is not null do nothing
      returning id
    ),
    kept as materialized (
      select s.*, s.settled and s.outcome = 'applied' and s.id in (select n.id from started n) as started
      from settled s
    ),
    appended as (
      insert into pawl.history (
        tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, expires_at,
        actor, reason, key, correlation_id, traceparent, at)
      select
        p_tenant, s.id, 1, s.workflow, s.workflow_version, 'created', s.state, s.status, s.context, s.expires_at,
        s.actor, s.reason, s.key, s.command_correlation_id, s.traceparent, v_now
      from kept s
      where s.started and s.steps is null
    ),
    armed as (
      insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried)
      select p_tenant, s.id, t.due_at, s.version, 0
      from kept s
      cross join lateral (select pawl.deadline(v_now, s.timeouts, s.expires_at) as due_at) t
      where s.started and s.status = 'active' and t.due_at is not null
    )
    select
      s.settled,
      s.outcome = 'applied' and not s.started as lost,
      s.ordinal,
      s.key,
      s.fingerprint,
      case when s.started then s.steps end as steps,
      (
        s.ordinal, s.outcome, false, s.id, s.workflow, s.workflow_version,
        case when s.started then s.state end,
        case when s.started then s.status end,
        case when s.started then s.version end,
        case when s.started then s.context end,
        s.business_key,
        case when s.started then s.correlation_id end,
        case when s.started then v_now end,
        case when s.started then v_now end,
        case when s.started then s.expires_at end,
        s.error,
        case when s.started then s.actions end,
        null::text[],
        case when s.outcome = 'context-unchecked' then s.context_schema end
      )::pawl.outcome as answer
    from kept s
  loop
    if not v_row.settled then
      v_ordinals := v_ordinals || v_row.ordinal;
      v_keys := v_keys || v_row.key;
      v_fingerprints := v_fingerprints || v_row.fingerprint;
    elsif v_row.lost then
      v_lost := v_lost || v_row.ordinal;
      v_lost_keys := v_lost_keys || v_row.key;
    else
      if v_row.steps is not null then
        perform pawl.append_steps(
          v_row.steps, 'created', null, null, p_actors[v_row.ordinal], p_reasons[v_row.ordinal], v_row.key,
          p_correlation_ids[v_row.ordinal], p_traceparents[v_row.ordinal]);
      end if;
      if p_callback_urls[v_row.ordinal] <> '' and (v_row.answer).outcome = 'applied' then
        insert into pawl.callback (tenant_id, instance_id, url, secret, created_at)
        values (
          p_tenant, (v_row.answer).id, p_callback_urls[v_row.ordinal], nullif(p_callback_secrets[v_row.ordinal], ''), v_now);
      end if;
      return next v_row.answer;
    end if;
  end loop;

  -- Another transaction, or another command of this call, took the business key after
  -- it was looked up. Such a refusal is not recorded, so its key is given back.
  if v_lost is not null then
    foreach v_key in array v_lost_keys loop
      delete from pawl.idempotency_key k where k.tenant_id = p_tenant and k.key = v_key;
    end loop;
    return query
    select
      c.ordinal, 'instance-exists', false, i.id, i.workflow, i.workflow_version,
      null::text, null::text, null::bigint, null::jsonb, i.business_key::text, null::text, null::timestamptz,
      null::timestamptz, null::timestamptz, null::jsonb, null::text[], null::text[], null::jsonb
    from unnest(v_lost) as c (ordinal)
    cross join lateral (
      select i.*
      from pawl.instance i
      where i.tenant_id = p_tenant
        and i.workflow = p_workflows[c.ordinal]
        and i.business_key = p_business_keys[c.ordinal]
      limit 1
    ) i;
    get diagnostics v_found = row_count;
    if v_found < cardinality(v_lost) then
      raise exception 'the holder of a business key was removed meanwhile; try again' using errcode = '40001';
    end if;
  end if;

  if v_ordinals is not null then
    return query select * from pawl.replay(p_tenant, v_now, v_setting, v_ordinals, v_keys, v_fingerprints, '{}');
  end if;
end
$$;
-- +goose StatementEnd

-- refuse raises an outcome other than 'applied' for a SQL caller, with what it needs to
-- go on as JSON in the detail.
-- Raises:  PW400, PW404, PW409, PW412, PW413, PW422, PW428
-- +goose StatementBegin
create function pawl.refuse(p_outcome pawl.outcome, p_event text, p_expected bigint) returns void
language plpgsql stable
as $$
declare
  v_code text := case
    when p_outcome.outcome in ('payload-too-large', 'context-too-large') then 'too-large'
    when p_outcome.outcome = 'always-loop' then 'guard-error'
    else p_outcome.outcome
  end;
begin
  raise exception '%', case p_outcome.outcome
      when 'instance-not-found' then 'there is no such instance'
      when 'workflow-not-found' then 'there is no such workflow'
      when 'version-mismatch' then format('the instance is at version %s, not %s', p_outcome.version, p_expected)
      when 'precondition-required' then 'this workflow wants the version you have seen: pass p_expected_version'
      when 'malformed-request' then 'context and payload must be JSON objects'
      when 'payload-too-large' then 'the payload is too large'
      when 'context-too-large' then 'the context is, or would become, too large'
      when 'unknown-event' then format('the workflow has no event %s', p_event)
      when 'transition-not-allowed' then format('the state %s does not accept %s', p_outcome.state, p_event)
      when 'guard-rejected' then format('no guard of %s in the state %s holds', p_event, p_outcome.state)
      when 'always-loop' then 'eventless transitions follow one another without coming to rest'
      when 'instance-exists' then format('instance %s has this business key', p_outcome.id)
      when 'idempotency-key-reuse' then 'this key was used for another request'
      else p_outcome.outcome
    end
    using
      errcode = case v_code
        when 'malformed-request' then 'PW400'
        when 'instance-not-found' then 'PW404'
        when 'workflow-not-found' then 'PW404'
        when 'version-mismatch' then 'PW412'
        when 'too-large' then 'PW413'
        when 'unknown-event' then 'PW422'
        when 'idempotency-key-reuse' then 'PW422'
        when 'guard-error' then 'PW422'
        when 'precondition-required' then 'PW428'
        else 'PW409'
      end,
      detail = jsonb_strip_nulls(jsonb_build_object(
        'code', v_code,
        'instance_id', p_outcome.id,
        'state', p_outcome.state,
        'instance_status', p_outcome.status,
        'version', p_outcome.version,
        'expected', p_expected,
        'event', p_event,
        'allowed_events', p_outcome.actions,
        'guards', p_outcome.guards))::text;
end
$$;
-- +goose StatementEnd

-- instance_of is the instance that an applied outcome shows.
-- +goose StatementBegin
create function pawl.instance_of(p_tenant text, p_outcome pawl.outcome) returns pawl.instance
language sql immutable parallel safe
as $$
  select (
    p_tenant, p_outcome.id, p_outcome.workflow, p_outcome.workflow_version, p_outcome.state, p_outcome.status,
    p_outcome.version, p_outcome.context, p_outcome.business_key, p_outcome.correlation_id, null,
    p_outcome.created_at, p_outcome.state_changed_at, p_outcome.expires_at, p_outcome.error)::pawl.instance
$$;
-- +goose StatementEnd

-- create_one starts one instance inside the caller's own transaction. A key is needed
-- only to make a retry of the whole transaction safe. The caller vouches for the
-- context: JSON Schema is checked by the service, not by the database.
-- Returns: the instance
-- Raises:  PW400, PW404, PW409, PW413, PW422; the detail is JSON
-- Locks:   idempotency_key, then instance
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.create_one(
  p_workflow text,
  p_context jsonb default '{}',
  p_key text default null,
  p_tenant text default 'default',
  p_business_key text default null,
  p_actor text default session_user,
  p_correlation_id text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
begin
  select * into strict v_outcome from pawl.create(
    p_tenant, array[p_workflow], array[p_context], array[coalesce(p_key, '')], array[coalesce(p_business_key, '')],
    array[coalesce(p_correlation_id, '')], array[null::interval], array['*'], array[p_actor], array[''], array[''],
    array['']);
  if v_outcome.outcome <> 'applied' then
    perform pawl.refuse(v_outcome, null, null);
  end if;
  return pawl.instance_of(p_tenant, v_outcome);
end
$$;
-- +goose StatementEnd

-- fire_one moves one instance inside the caller's own transaction, so that the step and
-- the caller's business rows commit or vanish together. The caller vouches for the
-- payload's schema, as with create_one.
-- Returns: the instance after the step
-- Raises:  PW400, PW404, PW409, PW412, PW413, PW422, PW428; the detail is JSON
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.fire_one(
  p_id uuid,
  p_event text,
  p_payload jsonb default '{}',
  p_key text default null,
  p_expected_version bigint default null,
  p_tenant text default 'default',
  p_actor text default session_user,
  p_correlation_id text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
begin
  select * into strict v_outcome from pawl.fire(
    p_tenant, array[p_id], array[p_event], array[p_payload], array[coalesce(p_key, '')],
    array[coalesce('{' || p_expected_version || '}', '')], array['*'], array[p_actor], array[''],
    array[coalesce(p_correlation_id, '')], array['']);
  if v_outcome.outcome <> 'applied' then
    perform pawl.refuse(v_outcome, p_event, p_expected_version);
  end if;
  return pawl.instance_of(p_tenant, v_outcome);
end
$$;
-- +goose StatementEnd

-- guard_holds says for each event that the instance's state accepts whether a
-- transition would be taken for p_payload.
-- Returns: one row per event, by name
-- +goose StatementBegin
create function pawl.guard_holds(p_instance pawl.instance, p_events text[], p_payload jsonb)
returns table (event text, holds boolean)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.event, t.target is not null
  from unnest(p_events) as e (event)
  left join lateral pawl.choose(
    p_instance.workflow, p_instance.workflow_version, p_instance.state, e.event,
    pawl.document(p_instance, p_payload, pawl.now()), '*') t on true
  order by e.event
$$;
-- +goose StatementEnd

-- jsonpath_error says why a text is no SQL/JSON path here, or null if it is one. A
-- subtransaction is fine: definitions are rare.
-- +goose StatementBegin
create function pawl.jsonpath_error(p_path text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform p_path::jsonpath;
  return null;
exception when others then
  return sqlerrm;
end
$$;
-- +goose StatementEnd

-- state_check_name names the CHECK on pawl.instance that lists a workflow's states.
-- +goose StatementBegin
create function pawl.state_check_name(p_workflow text) returns text
language sql immutable parallel safe
as $$ select 'instance_' || replace(replace(p_workflow, '_', '__'), '-', '_') || '_state_check' $$;
-- +goose StatementEnd

-- set_state_check makes the named CHECK on pawl.instance list the states of all versions
-- of a workflow, and drops it if there are none. It binds every write from here on, but is
-- left "not valid"; see validate_workflow.
-- Locks:   instance (access exclusive)
-- Writes:  the table's CHECK
-- +goose StatementBegin
create function pawl.set_state_check(p_workflow text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
  v_terms text;
begin
  select string_agg(v.term, ' or ' order by v.workflow_version)
  into v_terms
  from (
    select
      s.workflow_version,
      -- One constant is parsed faster than a list of them.
      format('(workflow_version = %s and state = any (%L))',
        s.workflow_version, array_agg(s.state order by s.state collate "C")) as term
    from pawl.workflow_state s
    where s.workflow = p_workflow
    group by s.workflow_version
  ) v;
  execute format('alter table pawl.instance drop constraint if exists %I', pawl.state_check_name(p_workflow))
    || case when v_terms is null then '' else
      format(', add constraint %I check (workflow <> %L or %s) not valid',
        pawl.state_check_name(p_workflow), p_workflow, v_terms)
    end;
end
$$;
-- +goose StatementEnd

-- definition_states lists the states of a definition in canonical form.
-- Returns: one row per state: its path; its lineage, the paths of the states around it and
--          its own, from the outside in; whether it is atomic, which is to have no states
--          within; the atomic state that entering it leads to by each initial; how many
--          transitions it declares
-- +goose StatementBegin
create function pawl.definition_states(p_definition jsonb)
returns table (path text, lineage text[], value jsonb, atomic boolean, leaf text, transitions bigint)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  with recursive node as (
    select s.key as path, array[s.key] as lineage, s.value
    from jsonb_each(p_definition -> 'states') s
    union all
    select n.path || '.' || s.key, n.lineage || (n.path || '.' || s.key), s.value
    from node n
    cross join lateral jsonb_each(n.value -> 'states') s
  ),
  entered as (
    select n.path, n.path as leaf, n.value
    from node n
    union all
    select e.path, n.path, n.value
    from entered e
    join node n on n.path = e.leaf || '.' || (e.value ->> 'initial')
    where e.value ? 'states'
  )
  select n.path, n.lineage, n.value, not n.value ? 'states', e.leaf, t.transitions
  from node n
  left join entered e on e.path = n.path and not e.value ? 'states'
  cross join lateral (
    select coalesce(sum(case when jsonb_typeof(d.value) = 'array' then jsonb_array_length(d.value) end), 0) as transitions
    from (
      select o.value from jsonb_each(coalesce(n.value -> 'on', '{}') || coalesce(n.value -> 'after', '{}')) o
      union all
      select n.value -> 'always'
    ) d
  ) t
$$;
-- +goose StatementEnd

-- definition_transitions flattens a definition in canonical form: every atomic state with
-- its own transitions and those that it inherits, the innermost first, each leading to an
-- atomic state; 'ttl' and ':initial' among them. The algorithm is SCXML's for a machine
-- without parallel regions: a transition leaves the states up to the innermost one around
-- both the state that declares it and its target, the innermost first, and enters those
-- down to its target, the outermost first.
-- Returns: rows of pawl.workflow_transition
-- +goose StatementBegin
create function pawl.definition_transitions(p_definition jsonb)
returns table (
  source text, event text, "position" bigint, target text, guard_text text, assign_names text[], assign_paths jsonpath[],
  assign_stages integer[], assign_payload boolean, payload_schema jsonb
)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select * from pawl.definition_states(p_definition)
  ),
  declared as materialized (
    select n.path, n.lineage, e.event, t.position, t.value, t.value ->> 'target' as target
    from node n
    cross join lateral (
      select o.key as event, o.value as transitions from jsonb_each(coalesce(n.value -> 'on', '{}')) o
      union all
      select 'after:' || a.key, a.value from jsonb_each(coalesce(n.value -> 'after', '{}')) a
      union all
      select ':always', n.value -> 'always' where n.value ? 'always'
    ) e
    cross join lateral jsonb_array_elements(e.transitions) with ordinality as t (value, position)
  ),
  -- inside is around both the declaring state and the target: what neither leaves nor enters.
  inherited as (
    select
      s.path as source, s.lineage, d.event, d.value, d.target,
      row_number() over (partition by s.path, d.event order by cardinality(d.lineage) desc, d.position) as position,
      -- One schema serves all transitions of an event in a state.
      (array_agg(d.value -> 'payload_schema') filter (where d.value ? 'payload_schema')
        over (partition by s.path, d.event))[1] as payload_schema,
      d.lineage[:cardinality(d.lineage) - 1] as inside,
      -- One that is inherited behind one without a guard is never taken.
      bool_or(not d.value ? 'guard') over (
        partition by s.path, d.event order by cardinality(d.lineage) desc
        groups between unbounded preceding and 1 preceding
      ) as idle
    from node s
    join declared d on d.path = any (s.lineage)
    where s.atomic
    union all
    select s.path, s.lineage, 'ttl', '{}', p_definition #>> '{ttl,target}', 1, null, '{}', null
    from node s
    where p_definition ? 'ttl' and s.atomic and s.value ->> 'type' is distinct from 'final'
    union all
    select i.leaf, '{}', ':initial', '{}', p_definition ->> 'initial', 1, null, '{}', null
    from node i
    where i.path = p_definition ->> 'initial'
  )
  select
    i.source, i.event, i.position, t.leaf, i.value ->> 'guard', coalesce(a.names, '{}'), coalesce(a.paths, '{}'),
    a.stages, coalesce(a.payload, false), i.payload_schema
  from inherited i
  left join node t on t.path = i.target
  left join node l on l.path = t.leaf
  cross join lateral (
    select
      array_agg(p.name order by p.stage, p.name collate "C") filter (where not p.lone or p.name is not null) as names,
      array_agg(p.path order by p.stage, p.name collate "C") filter (where not p.lone or p.name is not null) as paths,
      array_agg(p.stage order by p.stage, p.name collate "C") filter (where not p.lone) as stages,
      bool_or(p.lone and p.name is null) as payload
    from (
      select g.stage, count(*) filter (where g.first) over () = 1 as lone, g.name, g.path
      from (
        select b.stage, m.name, m.path::jsonpath as path, row_number() over (partition by b.stage) = 1 as first
        from (
          select row_number() over (order by x.place)::integer as stage, x.assign
          from (
            -- Left, the transition itself, entered: by their place in the order.
            select -cardinality(n.lineage) as place, n.value #> '{exit,assign}' as assign
            from node n
            where n.path = any (i.lineage) and not (n.path = any (i.inside) and n.path = any (t.lineage[:cardinality(t.lineage) - 1]))
            union all
            select 0, i.value -> 'assign'
            union all
            select cardinality(n.lineage), n.value #> '{entry,assign}'
            from node n
            where n.path = any (l.lineage) and not (n.path = any (i.inside) and n.path = any (t.lineage[:cardinality(t.lineage) - 1]))
          ) x
          where x.assign is not null and x.assign <> '{}'
        ) b
        cross join lateral (
          select o.key as name, o.value as path
          from jsonb_each_text(case when jsonb_typeof(b.assign) = 'object' then b.assign end) o
          union all
          select null, null where b.assign = '"*"'
        ) m
      ) g
    ) p
  ) a
  where i.idle is not true and (i.event <> ':initial' or a.names is not null or a.payload)
$$;
-- +goose StatementEnd

-- definition_fault says what is wrong with a definition that is not in canonical form, or
-- that the engine could not run. Guards, assigns, durations and names are left to the casts
-- and constraints that they meet when they are stored.
-- Returns: one fault, or null
-- +goose StatementBegin
create function pawl.definition_fault(p_definition jsonb) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_definition) is distinct from 'object' then 'a definition must be an object'
    when p_definition ->> 'name' is null then 'name is missing'
    when octet_length(p_definition::text) > g.definition_limit
      then format('the definition has more than %s bytes', g.definition_limit)
    when jsonb_typeof(p_definition -> 'states') is distinct from 'object' then 'states must be an object'
    else (
      with node as materialized (
        select * from pawl.definition_states(p_definition)
      )
      select case
        when (select count(*) from node) > g.state_limit
          then format('there are more than %s states', g.state_limit)
        when not exists (select from node n where n.path = p_definition ->> 'initial') then 'initial must name a state'
        when not exists (select from node n where n.value ->> 'type' = 'final') then 'no state is final'
        when p_definition ? 'ttl' and not exists (
          select from node n where n.path = p_definition #>> '{ttl,target}' and n.value ->> 'type' = 'final'
        ) then 'ttl.target must name a final state'
        else coalesce(
          (
            select case
              when jsonb_typeof(n.value) <> 'object' then format('%s must be an object', n.path)
              when n.leaf is null then format('initial of %s must name a state within it', n.path)
              when n.value ->> 'type' = 'final' and (cardinality(n.lineage) > 1 or not n.atomic)
                then format('%s is final, so that it must neither be within another state nor have states within', n.path)
              when n.value ? 'after' and not n.atomic then format('%s has states within, and so no timeouts', n.path)
            end as fault
            from node n
            order by fault nulls last
            limit 1
          ),
          (
            select case
              when jsonb_typeof(e.value) <> 'array'
                then 'each event and timeout, and always, must have an array of transitions: this is not the canonical form'
              when e.own and (e.key like '%:%' or e.key = 'ttl') then 'ttl and events with a colon are the engine''s own'
              else (
                select format('there is no state %s', t.value ->> 'target')
                from jsonb_array_elements(e.value) t
                where not exists (select from node o where o.path = t.value ->> 'target')
                limit 1
              )
            end as fault
            from node n
            cross join lateral (
              select o.key, o.value, true as own from jsonb_each(coalesce(n.value -> 'on', '{}')) o
              union all
              select a.key, a.value, false from jsonb_each(coalesce(n.value -> 'after', '{}')) a
              union all
              select 'always', n.value -> 'always', false where n.value ? 'always'
            ) e
            order by fault nulls last
            limit 1
          ),
          (
            select 'the states have more than 50000 transitions, with those that they inherit'
            from node s
            join node n on n.path = any (s.lineage)
            where s.atomic
            having sum(n.transitions) > 50000
          ))
      end
    )
  end
  from pawl.setting g
$$;
-- +goose StatementEnd

-- store_definition stores a definition in canonical form, flattened, as a version of a
-- workflow. No instance can be in its states before the CHECK on pawl.instance lists them.
-- Writes:  workflow, workflow_state, workflow_transition
-- +goose StatementBegin
create function pawl.store_definition(p_name text, p_version integer, p_definition jsonb, p_actor text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.workflow (
    name, version, definition, checksum, initial, initial_moves, ttl, ttl_target, retention,
    context_schema, context_schema_checksum, created_at, created_by)
  select
    p_name, p_version, p_definition, encode(sha256(convert_to(p_definition::text, 'UTF8')), 'hex'),
    n.leaf, false, (p_definition #>> '{ttl,after}')::interval, p_definition #>> '{ttl,target}',
    (p_definition ->> 'retention')::interval, p_definition -> 'context_schema',
    encode(sha256(convert_to((p_definition -> 'context_schema')::text, 'UTF8')), 'hex'), pawl.now(), p_actor
  from pawl.definition_states(p_definition) n
  where n.path = p_definition ->> 'initial';

  insert into pawl.workflow_state (
    workflow, workflow_version, state, status, events, timeouts, timeout_events, eventless, ttl_slides,
    require_if_match)
  select
    p_name, p_version, s.path,
    case when s.value ->> 'type' = 'final' then coalesce(s.value ->> 'outcome', 'completed') else 'active' end,
    array(
      select distinct k collate "C"
      from pawl.definition_states(p_definition) n
      cross join lateral jsonb_object_keys(coalesce(n.value -> 'on', '{}')) k
      where n.path = any (s.lineage)
      order by k collate "C"),
    array(select k::interval from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    array(select 'after:' || k from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    false,
    coalesce((p_definition #>> '{ttl,sliding}')::boolean, false),
    coalesce((p_definition ->> 'require_if_match')::boolean, false)
  from pawl.definition_states(p_definition) s
  where s.atomic;

  insert into pawl.workflow_transition (
    workflow, workflow_version, source, event, position, target, guard, guard_text, assign_names, assign_paths,
    assign_stages, assign_payload, payload_schema, payload_schema_checksum)
  select
    p_name, p_version, t.source, t.event, t.position, t.target, t.guard_text::jsonpath, t.guard_text, t.assign_names,
    t.assign_paths, t.assign_stages, t.assign_payload, t.payload_schema,
    encode(sha256(convert_to(t.payload_schema::text, 'UTF8')), 'hex')
  from pawl.definition_transitions(p_definition) t;

  update pawl.workflow_state s
  set
    reads_instance = exists (
      select from pawl.workflow_transition t
      cross join lateral unnest(t.assign_paths || t.guard) as p (path)
      where t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        -- The text of a jsonpath is canonical.
        and regexp_replace(p.path::text, '\$\."(context|payload)"', '', 'g') like '%$%'
    ),
    eventless = exists (
      select from pawl.workflow_transition t
      where t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        and t.event = ':always'
    )
  where s.workflow = p_name and s.workflow_version = p_version;

  update pawl.workflow w
  set initial_moves = exists (
    select from pawl.workflow_transition t
    where t.workflow = w.name and t.workflow_version = w.version and t.source = w.initial
      and t.event in (':always', ':initial')
  )
  where w.name = p_name and w.version = p_version;
end
$$;
-- +goose StatementEnd

-- register_workflow stores a definition in canonical form (every event and timeout, and
-- always, an array of transitions, every target the path of a state, every assign an object
-- or '*', durations like '90s') as the next version, and makes the named CHECK on pawl.instance list its states too. The
-- same content again changes nothing. The CHECK binds every write from here on; it is
-- left "not valid" so that the table is not scanned under the lock, and
-- validate_workflow marks it valid afterwards.
-- p_version: the version it must become, if given.
-- Returns: the version, and whether it is new
-- Raises:  PW409 workflow-conflict, PW422 invalid-definition; 55P03 if the instance
--          table stays busy for 300 ms, since commands wait behind it: try again
-- Locks:   workflow (share row exclusive), then instance (access exclusive, briefly)
-- Writes:  workflow, workflow_state, workflow_transition, the table's CHECK
-- +goose StatementBegin
create function pawl.register_workflow(
  p_definition jsonb, p_actor text default session_user, p_version integer default null,
  out version integer, out created boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
set client_min_messages = warning
-- What is planned for JSON of unknown size looks dear, and would be compiled for seconds.
set jit = off
as $$
#variable_conflict use_column
declare
  v_name text := p_definition ->> 'name';
  v_latest pawl.workflow;
  v_fault text;
begin
  v_fault := pawl.definition_fault(p_definition);
  if v_fault is not null then
    raise exception 'invalid definition: %', v_fault
      using errcode = 'PW422', detail = jsonb_build_object('code', 'invalid-definition')::text;
  end if;

  lock table pawl.workflow in share row exclusive mode;
  select * into v_latest from pawl.workflow w where w.name = v_name order by w.version desc limit 1;
  version := coalesce(v_latest.version, 0);
  created := v_latest.definition is distinct from p_definition;
  if created then
    -- A number that history names, since instances were migrated away from it, is not given again.
    version := 1 + greatest(
      version,
      (select max(m.from_version) from pawl.workflow_migration m where m.workflow = v_name and m.moved > 0));
  end if;
  if p_version <> version then
    raise exception 'workflow %: version % is next, not %', v_name, version, p_version
      using errcode = 'PW409',
        detail = jsonb_build_object('code', 'workflow-conflict', 'version', coalesce(v_latest.version, 0))::text;
  end if;
  if not created then
    return;
  end if;

  perform pawl.store_definition(v_name, version, p_definition, p_actor);
  perform pawl.set_state_check(v_name);
exception
  -- What the casts, the constraints and the jsonpath parser refuse.
  when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
    or program_limit_exceeded then
    raise exception 'invalid definition: %', sqlerrm
      using errcode = 'PW422', detail = jsonb_build_object('code', 'invalid-definition')::text;
end
$$;
-- +goose StatementEnd

-- validate_workflow marks a workflow's CHECK on pawl.instance as valid, if it is not.
-- It reads the table under a lock that hinders neither readers nor writers: call it in
-- a transaction of its own after register_workflow.
-- Raises:  55P03 if another schema change runs for two seconds: try again
-- Locks:   instance (share update exclusive)
-- Writes:  the table's CHECK
-- +goose StatementBegin
create function pawl.validate_workflow(p_workflow text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
  if exists (
    select from pg_catalog.pg_constraint c
    where c.conrelid = 'pawl.instance'::regclass
      and c.conname = pawl.state_check_name(p_workflow)
      and not c.convalidated
  ) then
    execute format('alter table pawl.instance validate constraint %I', pawl.state_check_name(p_workflow));
  end if;
end
$$;
-- +goose StatementEnd

-- Nothing here is for everybody: `pawl migrate grants` hands out what a role needs.
revoke execute on all functions in schema pawl from public;

-- +goose Down
drop function pawl.validate_workflow, pawl.register_workflow, pawl.store_definition, pawl.definition_fault,
  pawl.definition_transitions, pawl.definition_states,
  pawl.set_state_check, pawl.state_check_name, pawl.jsonpath_error,
  pawl.guard_holds, pawl.fire_one, pawl.create_one, pawl.instance_of, pawl.refuse, pawl.create, pawl.simulate, pawl.preview,
  pawl.fire, pawl.append_steps, pawl.replay,
  pawl.decide, pawl.begin, pawl.settle, pawl.deadline, pawl.is_decision, pawl.fingerprint, pawl.document, pawl.knows_event, pawl.guards, pawl.choose, pawl.assign;
drop view pawl.settlement, pawl.outcome;
drop function pawl.rfc3339, pawl.uuid_v7_floor, pawl.uuid_v7, pawl.now;
