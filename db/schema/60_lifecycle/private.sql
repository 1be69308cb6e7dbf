-- count_instances counts the instances of a version of a workflow, final ones too. It reads the
-- workflow's instances tenant by tenant, not the whole table.
create function pawl_private.count_instances(p_workflow text, p_version integer) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  with recursive tenant as (
    (select i.tenant_id from pawl.instance i where i.workflow <> '' order by i.tenant_id limit 1)
    union all
    select n.tenant_id
    from tenant t
    cross join lateral (
      select i.tenant_id
      from pawl.instance i
      where i.tenant_id > t.tenant_id and i.workflow <> ''
      order by i.tenant_id
      limit 1
    ) n
  )
  select coalesce(sum(c.instances), 0)::bigint
  from tenant t
  cross join lateral (
    select count(*) as instances
    from pawl.instance i
    where i.tenant_id = t.tenant_id
      and i.workflow = p_workflow
      and i.workflow <> '' -- The condition of the index.
      and i.workflow_version = p_version
  ) c
$$;

-- migration_faults says what is wrong with a request to migrate instances, all at once.
-- Returns: a JSON array of {pointer, detail}, or null if nothing is wrong
create function pawl_private.migration_faults(
  p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_states text[]
) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_agg(jsonb_build_object('pointer', f.pointer, 'detail', f.detail) order by f.pointer collate "C", f.detail)
  from (
    select '/to' as pointer, 'is the version that the instances have' as detail
    where p_from = p_to
    union all
    select '/state_map', 'must be an object'
    where jsonb_typeof(p_state_map) <> 'object'
    union all
    select '/state_map/' || replace(replace(m.key, '~', '~0'), '/', '~1'), d.detail
    from jsonb_each(case when jsonb_typeof(p_state_map) = 'object' then p_state_map end) m
    cross join lateral (
      select format('version %s has no state %s', p_from, m.key) as detail
      where not exists (
        select from pawl.workflow_state s
        where s.workflow = p_workflow and s.workflow_version = p_from and s.state = m.key)
      union all
      select 'must be the name of a state'
      where jsonb_typeof(m.value) <> 'string'
      union all
      select case
        when s.status is null then format('version %s has no state %s', p_to, m.value #>> '{}')
        else format('%s is final in version %s: only an event may end an instance', m.value #>> '{}', p_to)
      end
      from (select where jsonb_typeof(m.value) = 'string') t
      left join pawl.workflow_state s
        on s.workflow = p_workflow and s.workflow_version = p_to and s.state = m.value #>> '{}'
      where s.status is distinct from 'active'
    ) d
    union all
    select '/filter/states/' || n.position - 1, format('version %s has no state %s', p_from, n.state)
    from unnest(p_states) with ordinality as n (state, position)
    where not exists (
      select from pawl.workflow_state s
      where s.workflow = p_workflow and s.workflow_version = p_from and s.state = n.state)
  ) f
$$;

-- Back-tests re-run recorded histories under another definition of their workflow. Events and payloads
-- are decided again, each at its recorded time, by the same function that fires, and the result is compared
-- with what history shows. Nothing is kept.
--
-- Two instances are followed: the candidate's, and the recorded one beside it, as history had it. Both are
-- in the same state until the first difference, where the re-run ends: what comes after it has no meaning.
--
-- Timers may be late. Then history shows a command before a timeout that was due earlier. So a timeout of the
-- candidate counts as a difference only if the recorded version had no deadline by then. If it had one, the
-- timers were late, and the recorded order stands. That is why a back-test of an instance's own version finds
-- nothing.

-- backtest_step decides a step of an instance as fire or create would have decided it at p_at. An exception
-- that a guard raises is an outcome here: a subtransaction for each step is affordable, since no command
-- waits.
-- p_kind: as in history. 'created' completes the macrostep of the creation, after what entering the initial
-- state assigns, unless the context has that already (p_entered).
-- Returns: code: as decide's, with the problem codes of pawl_private.condition; 'guard-error' comes with the
--          error. instance: as it becomes if applied, else null
create function pawl_private.backtest_step(
  p_instance pawl.instance, p_kind text, p_event text, p_payload jsonb, p_reason text, p_at timestamptz,
  p_entered boolean, p_setting pawl.setting,
  out code text, out instance pawl.instance, out guards text[], out error text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_decided record;
begin
  if p_kind = 'created' then
    v_macrostep := case
      when p_entered then
        pawl_private.complete_macrostep(
          p_before => null, p_instance => p_instance, p_event => null, p_payload => '{}', p_reason => p_reason,
          p_now => p_at, p_setting => p_setting)
      else
        pawl_private.begin_macrostep(
          p_instance => p_instance, p_reason => p_reason, p_now => p_at, p_setting => p_setting)
    end;
    code := coalesce(v_macrostep.refusal, 'applied');
    instance := v_macrostep.instance;
  else
    select d.*
    into strict v_decided
    from pawl_private.decide(
      p_now => p_at, p_setting => p_setting, p_instance => p_instance,
      p_command => (
        p_instance.tenant_id, p_event, p_payload, '', '*', '*', p_reason, p_kind <> 'transition'
      )::pawl_private.fire_command) d;
    code := v_decided.code;
    guards := v_decided.guards;
    if code = 'applied' then
      instance := v_decided.instance;
    end if;
  end if;
  if code in ('payload-too-large', 'context-too-large', 'context-too-deep') then
    code := 'too-large';
  elsif code = 'always-loop' then
    code := 'guard-error';
    error := 'eventless transitions follow one another without coming to rest';
  end if;
exception
  -- What guards and assigns raise, although they are evaluated leniently.
  when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
    code := 'guard-error';
    instance := null;
    error := sqlerrm;
end
$$;

-- backtest_overdue says whether an instance, as history had it, had a deadline by p_at at which its own
-- version would have made a step: then its timer was late. A timeout that raises is postponed, and so late.
-- p_except: the event of a deadline that does not count
create function pawl_private.backtest_overdue(
  p_recorded pawl.instance, p_at timestamptz, p_except text, p_setting pawl.setting
) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tried integer := 0;
  v_deadline record;
begin
  loop
    select d.* into v_deadline from pawl_private.next_deadline(p_recorded, v_tried) d;
    if not found or v_deadline.due_at > p_at then
      return false;
    end if;
    if v_deadline.event is distinct from p_except and exists (
      select
      from pawl_private.backtest_step(
        p_recorded, 'timeout', v_deadline.event, jsonb_build_object('due_at', pawl_private.rfc3339(v_deadline.due_at)), null,
        v_deadline.due_at, null, p_setting) s
      where s.code in ('applied', 'guard-error')
    ) then
      return true;
    end if;
    v_tried := v_deadline.tried;
    if v_tried is null then
      return false;
    end if;
  end loop;
end
$$;

-- backtest_timeout finds the deadline that the candidate's instance meets before a recorded step. Deadlines
-- are tried one after the other by their times, as the timers do: a refused one gives way to the next.
-- p_step: the recorded step; null for none up to p_until. If it is a timeout itself, the candidate's may come
-- as late as it did, and deadlines that history skipped are skipped.
-- Returns: code: 'applied' or 'guard-error'; null if there is no such deadline. instance: as it becomes.
--          event and due_at: the deadline's
create function pawl_private.backtest_timeout(
  p_candidate pawl.instance, p_recorded pawl.instance, p_step pawl.history, p_until timestamptz, p_setting pawl.setting,
  out code text, out instance pawl.instance, out error text, out event text, out due_at timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_timed boolean := coalesce(p_step.kind in ('timeout', 'expired'), false);
  v_due_at timestamptz := case when v_timed then (p_step.payload ->> 'due_at')::timestamptz end;
  v_tried integer := 0;
  v_deadline record;
  v_same boolean;
  v_step record;
begin
  while v_tried is not null loop
    select d.* into v_deadline from pawl_private.next_deadline(p_candidate, v_tried) d;
    exit when not found or v_deadline.due_at > p_until or v_deadline.due_at = p_until and not v_timed;
    v_tried := v_deadline.tried;
    v_same := coalesce(v_deadline.due_at = v_due_at and v_deadline.event = p_step.event, false);
    select s.*
    into v_step
    from pawl_private.backtest_step(
      p_candidate, 'timeout', v_deadline.event, jsonb_build_object('due_at', pawl_private.rfc3339(v_deadline.due_at)), null,
      case when v_same or v_deadline.due_at > v_due_at then p_step.at else v_deadline.due_at end, null, p_setting) s;
    continue when v_step.code not in ('applied', 'guard-error');
    if not v_timed then
      exit when pawl_private.backtest_overdue(p_recorded, v_deadline.due_at, null, p_setting);
    elsif not v_same and v_deadline.due_at <= v_due_at then
      continue when pawl_private.backtest_overdue(p_recorded, v_deadline.due_at, p_step.event, p_setting);
    end if;
    code := v_step.code;
    instance := v_step.instance;
    error := v_step.error;
    event := v_deadline.event;
    due_at := v_deadline.due_at;
    exit;
  end loop;
end
$$;

-- backtest_instance re-runs the history of one instance, a command at a time with the eventless steps that
-- followed it. It ends at the first difference, at a step that no event made ('migrated', 'forced'), or at
-- version 1000.
--
-- It begins with the context of the first step, to which the entry of the recorded initial state has already
-- assigned. If the candidate assigns the same on entry, that is not done twice. A lifetime that differs from
-- the recorded version's ttl was given by the caller, and is kept.
-- p_version: the candidate's.
-- Returns: steps: how many were re-run, with the one that differs. complete: whether these are all steps.
--          difference: null, or {outcome, version, workflow_version, event, from, to} and, where they apply,
--          would_be, timeout, due_at, guards, error, status, would_be_status. checks: null, or documents
--          that the caller must check against the candidate's JSON Schemas, which only the service can:
--          {schemas: by checksum, steps: [{checksum, version, workflow_version, event, from, to}]}; of
--          version 1 the context, of others the payload
create function pawl_private.backtest_instance(
  p_tenant text, p_id uuid, p_workflow text, p_version integer, p_now timestamptz, p_setting pawl.setting,
  out steps integer, out complete boolean, out difference jsonb, out checks jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_candidate pawl.workflow;
  v_origin pawl.workflow;
  v_entered boolean;
  v_instance pawl.instance; -- The candidate's.
  v_before pawl.instance; -- As recorded, before the command.
  v_after pawl.instance; -- As recorded, after it and what followed.
  v_command pawl.history;
  v_row record;
  v_goes_on boolean := false;
  v_schema record;
  v_step record;
  v_place jsonb;
  v_timeout text;
  v_schemas jsonb := '{}';
  v_checks jsonb := '[]';
begin
  steps := 0;
  complete := true;
  select i.* into v_after from pawl.instance i where i.tenant_id = p_tenant and i.id = p_id and i.workflow = p_workflow;
  if not found then
    return;
  end if;
  select w.* into strict v_candidate from pawl.workflow w where w.name = p_workflow and w.version = p_version;

  for v_row in
    select
      h as step,
      coalesce(lead(h.kind = 'transition' and h.event is null) over (order by h.version), false) as goes_on
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_id and h.version <= 1001
    order by h.version
  loop
    if (v_row.step).version > 1000 then
      complete := false;
      exit;
    end if;
    if not v_goes_on then
      v_command := v_row.step;
      v_before := v_after;
    end if;
    v_after.workflow_version := (v_row.step).workflow_version;
    v_after.state := (v_row.step).to_state;
    v_after.status := (v_row.step).status;
    v_after.version := (v_row.step).version;
    v_after.context := (v_row.step).context;
    v_after.state_changed_at := (v_row.step).at;
    v_after.expires_at := (v_row.step).expires_at;
    v_goes_on := v_row.goes_on;
    continue when v_goes_on;
    v_place := jsonb_build_object(
      'version', v_command.version, 'workflow_version', v_command.workflow_version, 'event', v_command.event,
      'from', v_command.from_state, 'to', v_after.state);
    steps := v_command.version;

    if v_command.kind = 'created' then
      v_origin := null;
      select w.* into v_origin from pawl.workflow w where w.name = p_workflow and w.version = v_command.workflow_version;
      v_instance := v_after;
      v_instance.workflow_version := p_version;
      v_instance.state := v_candidate.initial;
      v_instance.version := 1;
      v_instance.context := v_command.context;
      v_instance.created_at := v_command.at;
      v_instance.state_changed_at := v_command.at;
      v_instance.error := null;
      v_instance.expires_at := case
        when v_candidate.ttl is null then null
        when v_command.expires_at - v_command.at is distinct from v_origin.ttl then v_command.expires_at
        else v_command.at + v_candidate.ttl
      end;
      select s.status into strict v_instance.status
      from pawl.workflow_state s
      where s.workflow = p_workflow and s.workflow_version = p_version and s.state = v_candidate.initial;
      select v_candidate.context_schema as schema, v_candidate.context_schema_checksum as checksum,
        v_origin.context_schema_checksum as met
      into v_schema;
      v_entered := not exists (
        select t.assign_names, t.assign_paths::text[], t.assign_stages, t.assign_payload
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = p_version and t.event = ':initial'
        except
        select t.assign_names, t.assign_paths::text[], t.assign_stages, t.assign_payload
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = v_command.workflow_version and t.event = ':initial');
    else
      select t.*
      into v_step
      from pawl_private.backtest_timeout(v_instance, v_before, v_command, v_command.at, p_setting) t;
      if v_command.kind in ('timeout', 'expired') then
        v_step.code := coalesce(v_step.code, 'no-timeout');
        if v_step.code = 'applied' and (v_step.instance).state <> v_after.state
          and v_step.due_at < (v_command.payload ->> 'due_at')::timestamptz then
          v_step.code := 'timeout';
        end if;
      elsif v_step.code = 'applied' then
        v_step.code := 'timeout';
      end if;
      if v_step.code <> 'applied' then
        difference := jsonb_build_object(
          'outcome', v_step.code, 'would_be', (v_step.instance).state, 'timeout', v_step.event,
          'due_at', pawl_private.rfc3339(v_step.due_at), 'error', v_step.error);
        exit;
      elsif v_command.kind in ('migrated', 'forced') then
        complete := false;
        exit;
      end if;
      v_timeout := v_step.event;
      select c.payload_schema as schema, c.payload_schema_checksum as checksum, r.payload_schema_checksum as met
      into v_schema
      from (
        select t.payload_schema, t.payload_schema_checksum
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = p_version and t.source = v_instance.state
          and t.event = v_command.event and v_command.kind = 'transition'
        order by t.position
        limit 1
      ) c
      left join lateral (
        select t.payload_schema_checksum
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = v_command.workflow_version
          and t.source = v_before.state and t.event = v_command.event
        order by t.position
        limit 1
      ) r on true;
    end if;

    if v_schema.checksum <> coalesce(v_schema.met, '') then
      v_schemas := v_schemas || jsonb_build_object(v_schema.checksum, v_schema.schema);
      v_checks := v_checks || (v_place || jsonb_build_object('checksum', v_schema.checksum));
    end if;
    if v_command.kind not in ('timeout', 'expired') then
      select s.*
      into v_step
      from pawl_private.backtest_step(
        v_instance, v_command.kind, v_command.event, v_command.payload, v_command.reason, v_command.at, v_entered,
        p_setting) s;
      if v_step.code <> 'applied' then
        difference := jsonb_build_object('outcome', v_step.code, 'guards', v_step.guards, 'error', v_step.error);
        exit;
      end if;
    end if;
    v_instance := v_step.instance;
    if v_instance.state <> v_after.state then
      difference := jsonb_build_object('outcome', 'elsewhere', 'would_be', v_instance.state, 'timeout', v_timeout);
      exit;
    elsif v_instance.status <> v_after.status then
      difference := jsonb_build_object(
        'outcome', 'other-status', 'status', v_after.status, 'would_be_status', v_instance.status);
      exit;
    end if;
    steps := v_after.version;
  end loop;

  if steps > 0 and complete and difference is null and v_after.status = 'active' then
    select t.* into v_step from pawl_private.backtest_timeout(v_instance, v_after, null, p_now, p_setting) t;
    if v_step.code is not null then
      v_place := jsonb_build_object(
        'version', v_after.version, 'workflow_version', v_after.workflow_version, 'from', v_after.state, 'to', v_after.state);
      difference := jsonb_build_object(
        'outcome', case v_step.code when 'applied' then 'timeout' else v_step.code end,
        'would_be', (v_step.instance).state, 'timeout', v_step.event, 'due_at', pawl_private.rfc3339(v_step.due_at),
        'error', v_step.error);
    end if;
  end if;
  difference := jsonb_strip_nulls(v_place || difference);
  if v_checks <> '[]' then
    checks := jsonb_build_object('schemas', v_schemas, 'steps', v_checks);
  end if;
end
$$;
