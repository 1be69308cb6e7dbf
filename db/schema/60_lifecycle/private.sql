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

-- store_candidate stores a definition under a random number that no version has: two candidates at the same time do not
-- wait for each other, as a rule. The caller sees to it that it does not stay.
-- Raises:  PW42D invalid-definition
-- Writes:  workflow, workflow_state, workflow_transition
create function pawl_private.store_candidate(p_workflow text, p_definition jsonb) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version integer := 1073741824 + floor(random() * 1073741823)::integer;
  v_fault text;
begin
  begin
    v_fault := case
      when p_definition ->> 'name' <> p_workflow then format('its name is not %s', p_workflow)
      else pawl_private.definition_fault(p_definition)
    end;
    if v_fault is null then
      perform pawl_private.store_definition(
        p_name => p_workflow, p_version => v_version, p_definition => p_definition, p_actor => 'candidate');
    end if;
  exception
    when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
      or program_limit_exceeded then
      v_fault := sqlerrm;
  end;
  if v_fault is not null then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || v_fault);
  end if;
  return v_version;
end
$$;

-- migrated is an instance after its migration to another version, and after the steps that follow without an event.
-- What it remembers of a state that it keeps goes on: armed timers that both versions have keep their time, others are
-- counted from when the state was entered. States that it had left last are named as the map says.
-- p_old, p_new: the instance before, and after but for its memory. p_map: from states to states
-- Returns: a macrostep; its refusal may also be 'guard-error'
create function pawl_private.migrated(
  p_old pawl.instance, p_new pawl.instance, p_map jsonb, p_principal jsonb, p_reason text, p_now timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_new pawl.instance := p_new;
  v_source pawl.workflow_state;
  v_target pawl.workflow_state;
  v_timer jsonb;
  v_one jsonb;
  v_due jsonb := '{}';
  v_left jsonb;
  v_entered boolean := p_map ? p_old.state;
begin
  select s.* into v_source
  from pawl.workflow_state s
  where s.workflow = p_old.workflow and s.workflow_version = p_old.workflow_version and s.state = p_old.state;
  select s.* into strict v_target
  from pawl.workflow_state s
  where s.workflow = p_new.workflow and s.workflow_version = p_new.workflow_version and s.state = p_new.state;
  for v_n in 0 .. coalesce(jsonb_array_length(v_target.timers), 0) - 1 loop
    v_timer := v_target.timers -> v_n;
    v_one := p_old.memory #> array['due', v_timer ->> 'slot'];
    if v_entered and v_timer ->> 'owner' = p_new.state or not v_timer ->> 'owner' = any (v_source.lineage)
      or not coalesce(v_source.timers @> jsonb_build_array(jsonb_build_object('slot', v_timer ->> 'slot')), false) then
      v_one := pawl_private.armed(
        v_timer, v_n, pawl_private.document(p_new, '{}', p_now, null, p_principal), p_new.state_changed_at);
    end if;
    if v_one is not null then
      v_due := v_due || jsonb_build_object(v_timer ->> 'slot', v_one || jsonb_build_object('place', v_n));
    end if;
  end loop;
  select jsonb_object_agg(l.key, jsonb_strip_nulls(l.value || jsonb_build_object('state', s.state)))
  into v_left
  from jsonb_each(p_old.memory -> 'left') l
  join pawl.workflow_state s
    on s.workflow = p_new.workflow and s.workflow_version = p_new.workflow_version
    and s.state = coalesce(p_map ->> (l.value ->> 'state'), l.value ->> 'state') and l.key = any (s.remembered);
  v_new.memory := nullif(
    case when v_due <> '{}' then jsonb_build_object('due', v_due) else '{}' end
    || case when v_left is not null then jsonb_build_object('left', v_left) else '{}' end
    || case
      when v_target.ttl_slides and v_source.ttl_slides and not v_entered and p_old.memory ? 'slid_at'
        then jsonb_build_object('slid_at', p_old.memory -> 'slid_at')
      else '{}'
    end,
    '{}');
  return pawl_private.complete_macrostep(
    p_before => p_old, p_instance => v_new, p_command => pawl_private.uncommanded(p_principal, p_reason, true),
    p_now => p_now, p_at => p_now, p_setting => p_setting);
exception
  -- What guards and values raise.
  when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
    v_macrostep.refusal := 'guard-error';
    return v_macrostep;
end
$$;

-- Back-tests re-run recorded histories under another definition of their workflow. Events and payloads are decided
-- again, each at its recorded time, by the same function that fires, and the result is compared with what history
-- shows. Nothing is kept.
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
  p_instance pawl.instance, p_kind text, p_event text, p_payload jsonb, p_principal jsonb, p_reason text, p_at timestamptz,
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
    v_macrostep := pawl_private.begin_macrostep(
      p_instance => p_instance, p_principal => p_principal, p_reason => p_reason, p_now => p_at, p_setting => p_setting,
      p_entered => p_entered);
    code := coalesce(v_macrostep.refusal, 'applied');
    instance := v_macrostep.instance;
    guards := array[v_macrostep.broken];
  else
    select d.*
    into strict v_decided
    from pawl_private.decide(
      p_now => p_at, p_setting => p_setting, p_instance => p_instance,
      p_command => (
        p_instance.tenant_id, p_event, p_payload, '', '*', '*', p_reason, null, null,
        p_kind in ('timeout', 'expired'), p_kind in ('result', 'compensated'), p_principal
      )::pawl_private.fire_command) d;
    code := v_decided.code;
    guards := v_decided.guards;
    if code = 'applied' then
      instance := v_decided.instance;
    end if;
  end if;
  if code = 'invariant-broken' then
    code := 'guard-rejected';
  elsif code in ('payload-too-large', 'context-too-large', 'context-too-deep') then
    code := 'too-large';
  elsif code in ('always-loop', 'timer-loop') then
    error := case code
      when 'always-loop' then 'eventless transitions follow one another without coming to rest'
      else 'timers follow one another without time passing'
    end;
    code := 'guard-error';
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
  v_recorded pawl.instance := p_recorded;
  v_tried integer := 0;
  v_looks integer := 0;
  v_deadline record;
begin
  loop
    select d.* into v_deadline from pawl_private.next_deadline(v_recorded, v_tried) d;
    if not found or v_deadline.due_at > p_at then
      return false;
    end if;
    if v_deadline.event is distinct from p_except and exists (
      select
      from pawl_private.backtest_step(
        v_recorded, 'timeout', v_deadline.event,
        pawl_private.timer_payload(v_deadline.event, v_deadline.due_at, v_recorded.memory, v_deadline.due_at), null, null,
        v_deadline.due_at, null, p_setting) s
      where s.code in ('applied', 'guard-error')
    ) then
      return true;
    end if;
    if v_deadline.event like 'every:%' then
      v_recorded := pawl_private.passed_over(v_recorded, v_deadline.event, v_deadline.due_at);
    else
      v_tried := v_deadline.tried;
    end if;
    v_looks := v_looks + 1;
    if v_tried is null or v_looks > 1000 then
      return false;
    end if;
  end loop;
end
$$;

-- backtest_repeats moves the candidate's repeating timers on to where the recorded instance had them at a step. A
-- repeating timer that is refused moves on, and history shows only the time to which it moved. Without this the
-- candidate would try again a time that has passed. Timers on another grid stay as they are.
-- Returns: the candidate's memory before the step
create function pawl_private.backtest_repeats(p_memory jsonb, p_step pawl.history) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_slot text;
  v_one jsonb;
  v_recorded jsonb;
begin
  for v_slot, v_one in
    select d.key, d.value
    from jsonb_each(p_memory -> 'due') d
    where d.value ? 'every' and d.key is distinct from p_step.event
  loop
    -- The step may have left the timer's state: then the timer is kept with the time that remained.
    select r.one into v_recorded
    from (
      select p_step.memory #> array['due', v_slot] as one
      union all
      select l.value #> array['due', v_slot] from jsonb_each(p_step.memory -> 'left') l
    ) r
    where r.one - array['at', 'rest', 'n', 'place'] = v_one - array['at', 'n', 'place']
      and (r.one ->> 'n')::bigint > (v_one ->> 'n')::bigint;
    if found then
      p_memory := jsonb_set(p_memory, array['due', v_slot], v_one || jsonb_build_object(
        'n', v_recorded -> 'n',
        'at', coalesce(
          v_recorded ->> 'at',
          pawl_private.rfc3339(p_step.at + make_interval(secs => (v_recorded ->> 'rest')::double precision)))));
    end if;
  end loop;
  return p_memory;
end
$$;

-- backtest_timeout finds the deadline that the candidate's instance meets before a recorded step. Deadlines
-- are tried one after the other by their times, as the timers do: a refused one gives way to the next.
-- p_step: the recorded step; null for none up to p_until. If it is a timeout itself, the candidate's may come
-- as late as it did, and deadlines that history skipped are skipped. At most 1000 deadlines are tried.
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
  v_candidate pawl.instance := p_candidate;
  v_looks integer := 0;
  v_tried integer := 0;
  v_deadline record;
  v_same boolean;
  v_step record;
begin
  while v_tried is not null loop
    select d.* into v_deadline from pawl_private.next_deadline(v_candidate, v_tried) d;
    exit when not found or v_deadline.due_at > p_until or v_deadline.due_at = p_until and not v_timed;
    v_looks := v_looks + 1;
    exit when v_looks > 1000;
    v_same := coalesce(v_deadline.due_at = v_due_at and v_deadline.event = p_step.event, false);
    if v_same then
      v_candidate.memory := pawl_private.backtest_repeats(v_candidate.memory, p_step);
    end if;
    select s.*
    into v_step
    from (select case when v_same or v_deadline.due_at > v_due_at then p_step.at else v_deadline.due_at end as at) t
    cross join lateral pawl_private.backtest_step(
      v_candidate, 'timeout', v_deadline.event,
      pawl_private.timer_payload(v_deadline.event, v_deadline.due_at, v_candidate.memory, t.at), null, null, t.at, null, p_setting) s;
    if v_deadline.event like 'every:%' then
      v_candidate := pawl_private.passed_over(v_candidate, v_deadline.event, v_deadline.due_at);
    else
      v_tried := v_deadline.tried;
    end if;
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
-- followed it. It ends at the first difference, at a step that was not decided by the
-- definition ('migrated', 'forced', 'cancelled'), or at version 1000.
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
  v_reads_actor boolean;
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
  v_reads_actor := exists (
    select from pawl.workflow_state s where s.workflow = p_workflow and s.workflow_version = p_version and s.reads_actor);

  for v_row in
    select
      h as step,
      coalesce(lead(h.kind = 'transition' and (h.event is null or h.event = 'done')) over (order by h.version), false) as goes_on
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
    v_after.state_changed_at := coalesce((v_row.step).entered_at, (v_row.step).at);
    v_after.memory := (v_row.step).memory;
    v_after.expires_at := (v_row.step).expires_at;
    v_goes_on := v_row.goes_on;
    continue when v_goes_on;
    v_place := jsonb_build_object(
      'version', v_command.version, 'workflow_version', v_command.workflow_version, 'event', v_command.event,
      'from', v_command.from_state, 'to', v_after.state);
    steps := v_command.version;
    if v_reads_actor and v_command.kind in ('created', 'transition') and v_command.principal is null then
      -- Nobody knows any more who gave the command.
      steps := v_command.version - 1;
      complete := false;
      exit;
    end if;

    if v_command.kind = 'created' then
      v_origin := null;
      select w.* into v_origin from pawl.workflow w where w.name = p_workflow and w.version = v_command.workflow_version;
      v_instance := v_after;
      v_instance.workflow_version := p_version;
      v_instance.state := v_candidate.initial;
      v_instance.version := 1;
      v_instance.context := coalesce(v_candidate.context_default, '{}') || v_command.context;
      v_instance.memory := null;
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
        select t.assign_names, t.assign_paths::text[], t.assign_compiled, t.assign_payload
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = p_version and t.event = ':initial'
        except
        select t.assign_names, t.assign_paths::text[], t.assign_compiled, t.assign_payload
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
      elsif v_command.kind in ('migrated', 'forced', 'cancelled') then
        complete := false;
        exit;
      end if;
      v_timeout := v_step.event;
      select c.payload_schema as schema, c.payload_schema_checksum as checksum, r.payload_schema_checksum as met
      into v_schema
      from (
        select t.payload_schema, t.payload_schema_checksum
        from pawl.workflow_transition t
        join pawl.workflow_state s
          on s.workflow = t.workflow and s.workflow_version = t.workflow_version and s.state = t.source
        where t.workflow = p_workflow and t.workflow_version = p_version and t.source = v_instance.state
          and t.event = pawl_private.matching(v_command.event, s.events, s.patterns) and v_command.kind = 'transition'
        order by t.position
        limit 1
      ) c
      left join lateral (
        select t.payload_schema_checksum
        from pawl.workflow_transition t
        join pawl.workflow_state s
          on s.workflow = t.workflow and s.workflow_version = t.workflow_version and s.state = t.source
        where t.workflow = p_workflow and t.workflow_version = v_command.workflow_version
          and t.source = v_before.state and t.event = pawl_private.matching(v_command.event, s.events, s.patterns)
        order by t.position
        limit 1
      ) r on true;
    end if;

    if v_schema.checksum <> coalesce(v_schema.met, '') then
      v_schemas := v_schemas || jsonb_build_object(v_schema.checksum, v_schema.schema);
      v_checks := v_checks || (v_place || jsonb_build_object('checksum', v_schema.checksum));
    end if;
    if v_command.kind not in ('timeout', 'expired') then
      v_instance.memory := pawl_private.backtest_repeats(v_instance.memory, v_command);
      select s.*
      into v_step
      from pawl_private.backtest_step(
        v_instance, v_command.kind, v_command.event, v_command.payload, v_command.principal, v_command.reason, v_command.at,
        v_entered,
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

-- audit_is_about says whether a row of the audit is about one of the workflows, or about an instance of one.
create function pawl_private.audit_is_about(p_row pawl.audit, p_workflows text[]) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if p_row.action like 'workflow.%' then
    return split_part(p_row.target, ' ', 1) = any (p_workflows);
  elsif p_row.target ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    return exists (
      select from pawl.instance i
      where i.tenant_id = p_row.tenant_id and i.id = p_row.target::uuid and i.workflow = any (p_workflows));
  end if;
  return false;
end
$$;

-- module_retains says whether a module still needs an instance that is final.
create function pawl_private.module_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return pawl_private.log_retains(p_tenant, p_id) or pawl_private.webhook_retains(p_tenant, p_id)
    or pawl_private.task_retains(p_tenant, p_id);
end
$$;

-- purge deletes instances that have been final since p_before or longer, each with its history and its expired keys,
-- all or nothing. An instance stays while another transaction holds it, while a live
-- key names it, and while a module retains it.
--
-- The keys that name an instance are read under the instance's lock, in a statement of their own, because a
-- command writes its key under that lock and may have done so just before. Each key is then locked too,
-- because a replay that extends a key's life locks the key alone. What happens to a command that comes too
-- late:
--   * A fire waits for the instance, and does not find it.
--   * A replay reads key, history and instance in one statement, and so finds all of them or none. Without
--     them it raises 40001, as for a purged key; the next try is a new command.
-- This holds under read committed only, as all of the engine.
-- p_early: whether an instance may be deleted before the retention of its workflow's latest version is over, or without one
-- Returns: the ids of the instances that were deleted
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, task, task_attempt, compensation, callback,
--          purged_instance, residence, instance_count, finding, healing
create function pawl_private.purge(p_tenant text, p_ids uuid[], p_before timestamptz, p_early boolean) returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_ids uuid[];
  v_id uuid;
  v_keys record;
  v_purged uuid[] := '{}';
begin
  v_ids := array(
    select i.id
    from (select distinct u.id from unnest(p_ids) as u (id) order by u.id) c
    cross join lateral (
      select i.id
      from pawl.instance i
      where i.tenant_id = p_tenant and i.id = c.id and i.status <> 'active' and i.state_changed_at <= p_before
        and (p_early or i.state_changed_at <= v_now - (
          select w.retention from pawl.workflow w where w.name = i.workflow order by w.version desc limit 1))
      limit 1
      for update skip locked
    ) i
  );
  v_now := pawl.now();

  -- One by one, to be bound to the full key.
  foreach v_id in array v_ids loop
    select k.retains, k.expired
    into v_keys
    from pawl_private.instance_retains(p_tenant => p_tenant, p_id => v_id, p_now => v_now) k;
    continue when v_keys.retains or pawl_private.module_retains(p_tenant, v_id);

    delete from pawl.idempotency_key k where k.ctid = any (v_keys.expired);
    delete from pawl.timer t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.task_attempt a
    using pawl.task t
    where t.tenant_id = p_tenant and t.instance_id = v_id and a.tenant_id = p_tenant and a.task_id = t.id;
    delete from pawl.task t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.compensation c where c.tenant_id = p_tenant and c.instance_id = v_id;
    delete from pawl.callback b where b.tenant_id = p_tenant and b.instance_id = v_id;
    delete from pawl.history h where h.tenant_id = p_tenant and h.instance_id = v_id;
    with gone as (
      delete from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id returning i.workflow
    )
    insert into pawl_private.purged_instance (tenant_id, instance_id, workflow) select p_tenant, v_id, g.workflow from gone g;
    v_purged := v_purged || v_id;
  end loop;
  perform pawl_private.forget_residence(p_tenant, v_purged);

  return v_purged;
end
$$;
