-- Back-tests: what recorded histories would have come to under another definition of their
-- workflow. Events and payloads are replayed, each at its time, by the same decision that
-- fires, and what it comes to is compared with what history tells. Nothing is kept.
--
-- What is replayed is the candidate's instance; beside it goes the recorded one, as history
-- had it. Both are in the same state until the first difference, where the replay ends:
-- what comes after it has no meaning.
--
-- Timers may be late, and a late one shows in history as a command that came first. So a
-- timeout of the candidate's counts only if the recorded version had none that was over by
-- then: else the timers were behind, and the recorded order stands. That is what makes a
-- back-test of an instance's own version find nothing.

-- +goose Up

-- backtest_step decides a step of an instance as it may have been, as fire or create would
-- have at p_at. What a guard raises is an outcome here: a subtransaction for each step is no
-- matter, since nobody waits.
-- p_kind: as in history; 'created' settles the instance in its initial state, after what
-- entering it assigns, unless its context has that already (p_entered).
-- Returns: outcome: as decide's, with the codes of refuse; 'guard-error' comes with the
--          error. instance: as it becomes if applied, else null
-- +goose StatementBegin
create function pawl.backtest_step(
  p_instance pawl.instance, p_kind text, p_event text, p_payload jsonb, p_reason text, p_at timestamptz,
  p_entered boolean, p_setting pawl.setting,
  out outcome text, out instance pawl.instance, out guards text[], out error text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_settlement pawl.settlement;
  v_decided record;
begin
  if p_kind = 'created' then
    v_settlement := case
      when p_entered then pawl.settle(null, p_instance, null, '{}', p_reason, p_at, p_setting)
      else pawl.begin(p_instance, p_reason, p_at, p_setting)
    end;
    outcome := coalesce(v_settlement.outcome, 'applied');
    if outcome = 'applied' then
      instance := v_settlement.steps[cardinality(v_settlement.steps)];
    end if;
  else
    select d.*
    into strict v_decided
    from pawl.decide(
      p_instance.tenant_id, p_at, p_setting, array[p_instance.id], array[p_event], array[p_payload], '{}', array['*'],
      array['*'], '{}', array[p_reason], '{}', '{}', '{}', p_kind <> 'transition', array[p_instance]) d;
    outcome := v_decided.outcome;
    guards := v_decided.guards;
    if outcome = 'applied' then
      instance := p_instance;
      instance.state := v_decided.state;
      instance.status := v_decided.status;
      instance.version := v_decided.version;
      instance.context := v_decided.context;
      instance.state_changed_at := v_decided.state_changed_at;
      instance.expires_at := v_decided.expires_at;
      instance.error := v_decided.error;
    end if;
  end if;
  if outcome in ('payload-too-large', 'context-too-large') then
    outcome := 'too-large';
  elsif outcome = 'always-loop' then
    outcome := 'guard-error';
    error := 'eventless transitions follow one another without coming to rest';
  end if;
exception
  -- What guards and assigns raise, evaluated leniently.
  when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
    outcome := 'guard-error';
    instance := null;
    error := sqlerrm;
end
$$;
-- +goose StatementEnd

-- backtest_overdue says whether an instance, as history had it, had a deadline by p_at that
-- its own version would have kept: its timer was late then. One that raises is put off, and
-- so late; of a version that was retired nobody knows the deadlines, and all may be late.
-- p_except: the event of a deadline that was kept.
-- +goose StatementBegin
create function pawl.backtest_overdue(
  p_recorded pawl.instance, p_at timestamptz, p_except text, p_setting pawl.setting
) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tried integer := 0;
  v_deadline record;
begin
  if not exists (
    select from pawl.workflow w where w.name = p_recorded.workflow and w.version = p_recorded.workflow_version
  ) then
    return true;
  end if;
  loop
    select d.* into v_deadline from pawl.next_deadline(p_recorded, v_tried) d;
    if not found or v_deadline.due_at > p_at then
      return false;
    end if;
    if v_deadline.event is distinct from p_except and exists (
      select
      from pawl.backtest_step(
        p_recorded, 'timeout', v_deadline.event, jsonb_build_object('due_at', pawl.rfc3339(v_deadline.due_at)), null,
        v_deadline.due_at, null, p_setting) s
      where s.outcome in ('applied', 'guard-error')
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
-- +goose StatementEnd

-- backtest_timeout finds the timeout, or the end of the lifetime, that the candidate's
-- instance meets before a recorded step: one after the other by their times, as the timers
-- do, where one that is refused gives way to the next.
-- p_step: the step, null for none up to p_until. If it is a timeout itself, the candidate's
-- may come as late as it did, and what history passed over is passed over.
-- Returns: outcome: 'applied' or 'guard-error', or null if there is no such timeout;
--          instance: as it becomes; event and due_at: the timeout's
-- +goose StatementBegin
create function pawl.backtest_timeout(
  p_candidate pawl.instance, p_recorded pawl.instance, p_step pawl.history, p_until timestamptz, p_setting pawl.setting,
  out outcome text, out instance pawl.instance, out error text, out event text, out due_at timestamptz
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
    select d.* into v_deadline from pawl.next_deadline(p_candidate, v_tried) d;
    exit when not found or v_deadline.due_at > p_until or v_deadline.due_at = p_until and not v_timed;
    v_tried := v_deadline.tried;
    v_same := coalesce(v_deadline.due_at = v_due_at and v_deadline.event = p_step.event, false);
    select s.*
    into v_step
    from pawl.backtest_step(
      p_candidate, 'timeout', v_deadline.event, jsonb_build_object('due_at', pawl.rfc3339(v_deadline.due_at)), null,
      case when v_same or v_deadline.due_at > v_due_at then p_step.at else v_deadline.due_at end, null, p_setting) s;
    continue when v_step.outcome not in ('applied', 'guard-error');
    if not v_timed then
      exit when pawl.backtest_overdue(p_recorded, v_deadline.due_at, null, p_setting);
    elsif not v_same and v_deadline.due_at <= v_due_at then
      continue when pawl.backtest_overdue(p_recorded, v_deadline.due_at, p_step.event, p_setting);
    end if;
    outcome := v_step.outcome;
    instance := v_step.instance;
    error := v_step.error;
    event := v_deadline.event;
    due_at := v_deadline.due_at;
    exit;
  end loop;
end
$$;
-- +goose StatementEnd

-- backtest_instance replays the history of one instance: a command at a time, with the
-- eventless transitions that followed it, which are steps without an event, up to the first
-- difference, a step that is no event's ('migrated', 'forced'), or version 1000.
--
-- It begins with the context of the first step, in which the entry of the recorded initial
-- state has assigned already. If the candidate assigns the same there, it is not done twice.
-- A lifetime that is not the recorded version's ttl was given by the caller, and stays.
-- p_version: the candidate's.
-- Returns: steps: how many were replayed, with one that differs; complete: whether that is all; difference: null or
--          {outcome, version, workflow_version, event, from, to}, and where they belong
--          would_be, timeout, due_at, guards, error, status and would_be_status; checks:
--          null, or steps that the caller must check against a schema which is not the one
--          that they met, JSON Schema being the service's: {schemas: by checksum, steps:
--          [{checksum, version, workflow_version, event, from, to}]}, of version 1 the
--          context, of others the payload
-- +goose StatementBegin
create function pawl.backtest_instance(
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
      from pawl.backtest_timeout(v_instance, v_before, v_command, v_command.at, p_setting) t;
      if v_command.kind in ('timeout', 'expired') then
        v_step.outcome := coalesce(v_step.outcome, 'no-timeout');
        if v_step.outcome = 'applied' and (v_step.instance).state <> v_after.state
          and v_step.due_at < (v_command.payload ->> 'due_at')::timestamptz then
          v_step.outcome := 'timeout';
        end if;
      elsif v_step.outcome = 'applied' then
        v_step.outcome := 'timeout';
      end if;
      if v_step.outcome <> 'applied' then
        difference := jsonb_build_object(
          'outcome', v_step.outcome, 'would_be', (v_step.instance).state, 'timeout', v_step.event, 'due_at', v_step.due_at,
          'error', v_step.error);
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
      from pawl.backtest_step(
        v_instance, v_command.kind, v_command.event, v_command.payload, v_command.reason, v_command.at, v_entered,
        p_setting) s;
      if v_step.outcome <> 'applied' then
        difference := jsonb_build_object('outcome', v_step.outcome, 'guards', v_step.guards, 'error', v_step.error);
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
    select t.* into v_step from pawl.backtest_timeout(v_instance, v_after, null, p_now, p_setting) t;
    if v_step.outcome is not null then
      v_place := jsonb_build_object(
        'version', v_after.version, 'workflow_version', v_after.workflow_version, 'from', v_after.state, 'to', v_after.state);
      difference := jsonb_build_object(
        'outcome', case v_step.outcome when 'applied' then 'timeout' else v_step.outcome end,
        'would_be', (v_step.instance).state, 'timeout', v_step.event, 'due_at', v_step.due_at, 'error', v_step.error);
    end if;
  end if;
  difference := jsonb_strip_nulls(v_place || difference);
  if v_checks <> '[]' then
    checks := jsonb_build_object('schemas', v_schemas, 'steps', v_checks);
  end if;
end
$$;
-- +goose StatementEnd

-- backtest replays instances against a version of their workflow, or against a definition in
-- canonical form that is not registered. That one is stored under a number no version has, in
-- a subtransaction that is taken back before anybody could see it; as long as a call runs,
-- registering and retiring wait for it, which is why it ends after a tenth of a second, or
-- after as long as storing took. Commands wait for nothing here.
--
-- Limits are today's, and $.instance.workflow_version is the candidate's number.
-- p_version, p_definition: one of them. p_ids: of the tenant's instances.
-- Returns: one row per id, in their order, up to where the time was over: at least one. steps
--          to checks: see backtest_instance; steps is 0 if there is no such instance
-- Raises:  PW400 malformed-request, PW404 workflow-not-found, PW422 invalid-definition
-- Writes:  nothing that stays
-- +goose StatementBegin
create function pawl.backtest(
  p_workflow text, p_ids uuid[], p_version integer default null, p_definition jsonb default null,
  p_tenant text default 'default'
) returns table (id uuid, steps integer, complete boolean, difference jsonb, checks jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_begun timestamptz := clock_timestamp(); -- No time that anything is decided by.
  v_until timestamptz;
  v_now timestamptz := pawl.now();
  v_setting pawl.setting;
  v_version integer := p_version;
  v_fault text;
begin
  if (p_version is null) = (p_definition is null) then
    raise exception 'give either a version or a definition'
      using errcode = 'PW400', detail = jsonb_build_object('code', 'malformed-request')::text;
  end if;
  if not exists (
    select from pawl.workflow w where w.name = p_workflow and (p_version is null or w.version = p_version)
  ) then
    raise exception 'workflow % does not exist, or has no such version', p_workflow
      using errcode = 'PW404', detail = jsonb_build_object('code', 'workflow-not-found')::text;
  end if;
  select * into strict v_setting from pawl.setting;
  begin
    if p_definition is not null then
      v_fault := case
        when p_definition ->> 'name' <> p_workflow then format('its name is not %s', p_workflow)
        else pawl.definition_fault(p_definition)
      end;
      -- Two back-tests do not wait for one another, as a rule.
      v_version := 1073741824 + floor(random() * 1073741823)::integer;
      if v_fault is null then
        begin
          perform pawl.store_definition(p_workflow, v_version, p_definition, 'backtest');
        exception
          when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
            or program_limit_exceeded then
            v_fault := sqlerrm;
        end;
      end if;
      if v_fault is not null then
        raise exception 'invalid definition: %', v_fault
          using errcode = 'PW422', detail = jsonb_build_object('code', 'invalid-definition')::text;
      end if;
    end if;
    v_until := clock_timestamp() + greatest(clock_timestamp() - v_begun, interval '100 ms');
    foreach id in array p_ids loop
      select b.steps, b.complete, b.difference, b.checks
      into steps, complete, difference, checks
      from pawl.backtest_instance(p_tenant, id, p_workflow, v_version, v_now, v_setting) b;
      return next; -- What was returned outlives the subtransaction.
      exit when clock_timestamp() > v_until;
    end loop;
    raise exception 'taken back' using errcode = 'PW999';
  exception when sqlstate 'PW999' then
    null;
  end;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.backtest_step, pawl.backtest_overdue, pawl.backtest_timeout, pawl.backtest_instance,
  pawl.backtest from public;

-- +goose Down
drop function pawl.backtest, pawl.backtest_instance, pawl.backtest_timeout, pawl.backtest_overdue, pawl.backtest_step;
