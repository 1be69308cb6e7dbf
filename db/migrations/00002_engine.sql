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
--   PW412 version-mismatch                  PW413 too-large
--   PW422 unknown-event, invalid-definition, idempotency-key-reuse
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
  select array_agg(t.value ->> 'guard' order by t.position)
  from pawl.workflow w
  cross join lateral jsonb_array_elements(w.definition #> array['states', p_state, 'on', p_event])
    with ordinality as t (value, position)
  where w.name = p_workflow and w.version = p_workflow_version
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

-- decide says what each fire command comes to, reading only. The order of its refusals
-- is the contract's: not found, precondition, size, event, guard. A refusal that is not
-- recorded gives way to a key that was taken while the call waited ('seen').
-- p_seen: which commands to leave out. p_timers: whether they are the engine's own, the
-- end of timeouts and lifetimes, or those of callers. p_instances: what to take the
-- instances for, one per command, or null for what they are.
-- Returns: one row per command. For 'applied', the columns from state to error are the
--          instance as it becomes, from_state what it leaves; else as it is. was_timed
--          says whether the state it leaves had a deadline.
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
  due_at timestamptz, was_timed boolean, guards text[], payload_schema jsonb
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
    case when o.applied then t.target else i.state end,
    case when o.applied then s.status else i.status end,
    case when o.applied then i.version + 1 else i.version end,
    case when o.applied then t.context else i.context end,
    i.business_key,
    i.correlation_id,
    i.created_at,
    case when o.applied then n.at else i.state_changed_at end,
    case when o.applied then n.expires_at else i.expires_at end,
    case when o.applied and s.status = 'failed' then
      jsonb_build_object('event', c.event, 'state', i.state, 'reason', nullif(c.reason, ''))
    else
      i.error
    end,
    case when o.applied then s.events else f.events end,
    case when s.status = 'active' then pawl.deadline(n.at, s.timeouts, n.expires_at) end,
    f.timeouts <> '{}' or i.expires_at is not null,
    case when o.outcome = 'guard-rejected' then pawl.guards(i.workflow, i.workflow_version, i.state, c.event) end,
    case when t.unchecked then t.payload_schema end
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
      when (c.event like 'after:%' or c.event = 'ttl') <> p_timers then 'unknown-event'
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
  left join lateral (
    select w.status, w.events, w.timeouts
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
      s.status is not null as applied
    offset 0
  ) o
  cross join lateral (
    select
      a.at,
      -- From each step to the end of the lifetime it is as long as it was from the last.
      case when f.ttl_slides then a.at + (i.expires_at - i.state_changed_at) else i.expires_at end as expires_at
    from (select greatest(p_now, i.state_changed_at) as at offset 0) a
  ) n
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

-- fire moves instances along one transition each and records what was decided.
-- p_expected: '' for none, '*' for any version, else an array literal of the versions
-- that will do, such as '{3}'. p_checked: the checksum of the payload schema that the
-- caller has checked the payload against, or '*'; see 'payload-unchecked'.
-- p_timers: whether the events are the engine's own; such a step needs no key, since the
-- version that it expects is gone afterwards.
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
        case when not p_timers then 'transition' when d.event = 'ttl' then 'expired' else 'timeout' end, d.event, d.from_state, d.state, d.status,
        d.context, d.payload, d.expires_at, d.error, d.actor, d.reason, d.key, d.command_correlation_id,
        d.traceparent, d.state_changed_at
      from decided d
      where (d.outcome = 'applied' and d.ordinal in (select s.ordinal from settled s)) is true
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
-- state, at a version, with a context. p_state: null for the initial state. p_checked: as
-- for fire.
-- Returns: one row, as preview does; none if the workflow has no such version or state
-- +goose StatementBegin
create function pawl.simulate(
  p_workflow text, p_workflow_version integer, p_state text, p_version bigint, p_context jsonb,
  p_event text, p_payload jsonb, p_checked text
) returns setof pawl.outcome
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.*
  from (
    select
      (
        'simulation', '00000000-0000-0000-0000-000000000000', s.workflow, s.workflow_version, s.state, s.status,
        p_version, p_context, null, null, null, n.at, n.at, n.at + w.ttl, null
      )::pawl.instance as instance
    from pawl.workflow w
    join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version
    cross join (select pawl.now() as at) n
    where w.name = p_workflow and w.version = p_workflow_version and s.state = coalesce(p_state, w.initial)
  ) i
  cross join lateral pawl.preview(
    'simulation', array[(i.instance).id], array[p_event], array[p_payload], array['*'], array[p_checked],
    array[i.instance]) o
$$;
-- +goose StatementEnd

-- create starts instances of the latest version of their workflow and records what was
-- decided. p_instance_correlation_ids belong to the instance and to the request's
-- fingerprint; p_correlation_ids to the command alone, and stand in where the instance
-- has none. p_lifetimes override the workflow's ttl. p_checked: as for fire, of the
-- context schema.
-- Returns: one row per command, in no order: outcome, and the instance as it then was.
--          'instance-exists' comes with the id of the holder of the business key.
-- Locks:   idempotency_key (by key), then instance (the business key)
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.create(
  p_tenant text,
  p_workflows text[], p_contexts jsonb[], p_keys text[], p_business_keys text[], p_instance_correlation_ids text[],
  p_lifetimes interval[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[]
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
begin
  select * into strict v_setting from pawl.setting;
  for v_row in
    with decided as materialized (
      select
        c.ordinal::integer as ordinal,
        case
          when k.seen then 'seen'
          when w.name is null then 'workflow-not-found'
          when jsonb_typeof(c.context) is distinct from 'object' then 'malformed-request'
          when c.lifetime is not null and w.ttl is null then 'lifetime-without-ttl'
          when octet_length(c.context::text) > v_setting.context_limit then 'context-too-large'
          when w.context_schema is not null and c.checked is distinct from '*'
            and c.checked is distinct from w.context_schema_checksum then 'context-unchecked'
          when b.id is not null then 'instance-exists'
          else 'applied'
        end as outcome,
        case when b.id is not null then b.id else c.id end as id,
        nullif(c.key, '') as key,
        case when c.key <> '' then sha256(convert_to(
          jsonb_build_array(
            'create', c.workflow, c.context, c.business_key, c.instance_correlation_id,
            extract(epoch from c.lifetime))::text,
          'UTF8'))
        end as fingerprint,
        c.workflow,
        w.version as workflow_version,
        w.initial as state,
        s.status,
        s.events as actions,
        s.timeouts,
        c.context,
        nullif(c.business_key, '') as business_key,
        coalesce(nullif(c.instance_correlation_id, ''), nullif(c.correlation_id, '')) as correlation_id,
        coalesce(nullif(c.correlation_id, ''), nullif(c.instance_correlation_id, '')) as command_correlation_id,
        v_now + coalesce(c.lifetime, w.ttl) as expires_at,
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
        select w.name, w.version, w.initial, w.ttl, w.context_schema, w.context_schema_checksum
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
    ),
    claimed as (
      insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, outcome, instance_id, version, expires_at)
      select distinct on (d.key) p_tenant, d.key, d.fingerprint, d.outcome, d.id, 1, v_now + v_setting.idempotency_ttl
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
        created_at, state_changed_at, expires_at)
      select
        p_tenant, s.id, s.workflow, s.workflow_version, s.state, s.status, 1, s.context, s.business_key,
        s.correlation_id, v_now, v_now, s.expires_at
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
      where s.started
    ),
    armed as (
      insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried)
      select p_tenant, s.id, t.due_at, 1, 0
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
      (
        s.ordinal, s.outcome, false, s.id, s.workflow, s.workflow_version,
        case when s.started then s.state end,
        case when s.started then s.status end,
        case when s.started then 1::bigint end,
        case when s.started then s.context end,
        s.business_key,
        case when s.started then s.correlation_id end,
        case when s.started then v_now end,
        case when s.started then v_now end,
        case when s.started then s.expires_at end,
        null::jsonb,
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

-- register_workflow stores a definition in canonical form (every event and timeout an
-- array of transitions, every assign an object or '*', durations like '90s') as the
-- next version, and makes the named CHECK on pawl.instance list its states too. The
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
as $$
#variable_conflict use_column
declare
  v_name text := p_definition ->> 'name';
  v_latest pawl.workflow;
  v_setting pawl.setting;
  v_fault text;
begin
  select * into strict v_setting from pawl.setting;
  v_fault := case
    when jsonb_typeof(p_definition) is distinct from 'object' then 'a definition must be an object'
    when v_name is null then 'name is missing'
    when octet_length(p_definition::text) > v_setting.definition_limit
      then format('the definition has more than %s bytes', v_setting.definition_limit)
    when jsonb_typeof(p_definition -> 'states') is distinct from 'object' then 'states must be an object'
    when (select count(*) from jsonb_object_keys(p_definition -> 'states')) > v_setting.state_limit
      then format('there are more than %s states', v_setting.state_limit)
    when exists (
      select from jsonb_each(p_definition -> 'states') s where jsonb_typeof(s.value) <> 'object'
    ) then 'each state must be an object'
    when not coalesce(p_definition -> 'states' ? (p_definition ->> 'initial'), false) then 'initial must name a state'
    when not exists (
      select from jsonb_each(p_definition -> 'states') s where s.value ->> 'type' = 'final'
    ) then 'no state is final'
    when p_definition ? 'ttl' and not coalesce(p_definition -> 'states' ? (p_definition #>> '{ttl,target}'), false)
      then 'ttl.target must name a state'
    when exists (
      select from jsonb_each(p_definition -> 'states') s
      cross join lateral jsonb_each(coalesce(s.value -> 'on', '{}') || coalesce(s.value -> 'after', '{}')) e
      where jsonb_typeof(e.value) <> 'array'
    ) then 'each event and timeout must have an array of transitions: this is not the canonical form'
    when exists (
      select from jsonb_each(p_definition -> 'states') s
      cross join lateral jsonb_object_keys(coalesce(s.value -> 'on', '{}')) e
      where e like '%:%' or e = 'ttl'
    ) then 'ttl and events with a colon are the engine''s own'
  end;
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

  insert into pawl.workflow (
    name, version, definition, checksum, initial, ttl, ttl_target,
    context_schema, context_schema_checksum, created_at, created_by)
  values (
    v_name, version, p_definition, encode(sha256(convert_to(p_definition::text, 'UTF8')), 'hex'),
    p_definition ->> 'initial', (p_definition #>> '{ttl,after}')::interval, p_definition #>> '{ttl,target}',
    p_definition -> 'context_schema',
    encode(sha256(convert_to((p_definition -> 'context_schema')::text, 'UTF8')), 'hex'), pawl.now(), p_actor);

  insert into pawl.workflow_state (
    workflow, workflow_version, state, status, events, timeouts, timeout_events, ttl_slides, require_if_match)
  select
    v_name, version, s.key,
    case when s.value ->> 'type' = 'final' then coalesce(s.value ->> 'outcome', 'completed') else 'active' end,
    array(select k from jsonb_object_keys(coalesce(s.value -> 'on', '{}')) k order by k collate "C"),
    array(select k::interval from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    array(select 'after:' || k from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    coalesce((p_definition #>> '{ttl,sliding}')::boolean, false),
    coalesce((p_definition ->> 'require_if_match')::boolean, false)
  from jsonb_each(p_definition -> 'states') s;

  insert into pawl.workflow_transition (
    workflow, workflow_version, source, event, position, target, guard, assign_names, assign_paths, assign_payload,
    payload_schema, payload_schema_checksum)
  select
    v_name, version, s.key, e.event, t.position, t.value ->> 'target', (t.value ->> 'guard')::jsonpath,
    array(
      select a.key from jsonb_each_text(case when jsonb_typeof(t.value -> 'assign') = 'object' then t.value -> 'assign' else '{}' end) a
      order by a.key collate "C"),
    array(
      select a.value::jsonpath from jsonb_each_text(case when jsonb_typeof(t.value -> 'assign') = 'object' then t.value -> 'assign' else '{}' end) a
      order by a.key collate "C"),
    coalesce(t.value ->> 'assign' = '*', false),
    p.schema, encode(sha256(convert_to(p.schema::text, 'UTF8')), 'hex')
  from jsonb_each(p_definition -> 'states') s
  cross join lateral (
    select o.key as event, o.value as transitions from jsonb_each(coalesce(s.value -> 'on', '{}')) o
    union all
    select 'after:' || o.key, o.value from jsonb_each(coalesce(s.value -> 'after', '{}')) o
    union all
    select 'ttl', jsonb_build_array(jsonb_build_object('target', p_definition #> '{ttl,target}'))
    where p_definition ? 'ttl' and s.value ->> 'type' is distinct from 'final'
  ) e
  cross join lateral jsonb_array_elements(e.transitions) with ordinality as t (value, position)
  -- One schema serves all transitions of an event in a state.
  left join lateral (
    select x -> 'payload_schema' as schema
    from jsonb_array_elements(e.transitions) x
    where x ? 'payload_schema'
    limit 1
  ) p on true;

  update pawl.workflow_state s
  set reads_instance = exists (
    select from pawl.workflow_transition t
    cross join lateral unnest(t.assign_paths || t.guard) as p (path)
    where t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
      -- The text of a jsonpath is canonical.
      and regexp_replace(p.path::text, '\$\."(context|payload)"', '', 'g') like '%$%'
  )
  where s.workflow = v_name and s.workflow_version = version;

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
drop function pawl.validate_workflow, pawl.register_workflow, pawl.set_state_check, pawl.state_check_name, pawl.jsonpath_error,
  pawl.guard_holds, pawl.fire_one, pawl.create_one, pawl.instance_of, pawl.refuse, pawl.create, pawl.simulate, pawl.preview,
  pawl.fire, pawl.replay,
  pawl.decide, pawl.deadline, pawl.is_decision, pawl.fingerprint, pawl.document, pawl.knows_event, pawl.guards, pawl.choose;
drop view pawl.outcome;
drop function pawl.rfc3339, pawl.uuid_v7_floor, pawl.uuid_v7, pawl.now;
