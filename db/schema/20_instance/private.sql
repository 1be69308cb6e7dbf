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
  p_state_hash bigint default null,
  p_memory jsonb default null
) returns pawl.instance
language sql immutable parallel safe
as $$
  select row(
    p_tenant_id, p_id, p_workflow, p_workflow_version, p_state, p_status, p_version, p_context, p_business_key,
    p_business_key_reusable, p_correlation_id, p_parent_id, p_created_at, p_state_changed_at, p_expires_at, p_error, p_state_hash, p_memory)::pawl.instance
$$;

-- is_decision says whether an outcome is recorded for its key; see the domain pawl.decision.
create function pawl_private.is_decision(p_code text) returns boolean
language sql immutable parallel safe
as $$
  select p_code in (
    'applied', 'transition-not-allowed', 'instance-final', 'guard-rejected', 'invariant-broken', 'state-protected',
    'not-cancellable')
$$;

-- fingerprint tells requests under one key apart: the SHA-256 of what a fire asks for, as canonical
-- jsonb text, and of the authenticated subject, whose keys are its own; null if there is none.
create function pawl_private.fingerprint(p_id uuid, p_event text, p_payload jsonb, p_subject text) returns bytea
language sql stable parallel safe
as $$
  select sha256(convert_to(
    jsonb_build_array('fire', p_id, p_event, p_payload)::text || coalesce(p_subject, ''), 'UTF8'))
$$;

-- remembered_deadline is deadline and deadline_event for an instance that has a memory.
create function pawl_private.remembered_deadline(
  p_entered_at timestamptz, p_timeouts interval[], p_timeout_events text[], p_memory jsonb, p_expires_at timestamptz
) returns pawl_private.next_due
language plpgsql stable parallel safe
as $$
declare
  v_next pawl_private.next_due;
begin
  select d.due_at, d.event
  into v_next.due_at, v_next.event
  from (
    select p_entered_at + t.timeout as due_at, t.event, t.place
    from unnest(p_timeouts, p_timeout_events) with ordinality as t (timeout, event, place)
    union all
    select (t.value ->> 'at')::timestamptz, t.key, (t.value ->> 'place')::bigint
    from jsonb_each(p_memory -> 'due') t
  ) d
  where d.due_at > coalesce((p_memory ->> 'at')::timestamptz, '-infinity')
  order by d.due_at, d.place
  limit 1;
  if p_expires_at < v_next.due_at or v_next.due_at is null then
    v_next.due_at := p_expires_at;
    v_next.event := case when p_expires_at is not null then 'ttl' end;
  end if;
  return v_next;
end
$$;

-- deadline is the next deadline of an instance that entered its state at p_entered_at, or null. Deadlines that had
-- passed before the last internal step do not count: that step left them as they were, late or refused.
create function pawl_private.deadline(
  p_entered_at timestamptz, p_timeouts interval[], p_memory jsonb, p_expires_at timestamptz
) returns timestamptz
language sql stable parallel safe
as $$
  select case
    when p_memory is null then least(p_entered_at + p_timeouts[1], p_expires_at)
    else (pawl_private.remembered_deadline(p_entered_at, p_timeouts, null, p_memory, p_expires_at)).due_at
  end
$$;

-- deadline_event is the event of that deadline, or null. If a timeout and the lifetime are due at the same
-- time, the timeout comes first.
create function pawl_private.deadline_event(
  p_entered_at timestamptz, p_timeouts interval[], p_timeout_events text[], p_memory jsonb, p_expires_at timestamptz
) returns text
language sql stable parallel safe
as $$
  select case
    when p_memory is not null then
      (pawl_private.remembered_deadline(p_entered_at, p_timeouts, p_timeout_events, p_memory, p_expires_at)).event
    when p_entered_at + p_timeouts[1] <= p_expires_at or p_expires_at is null then p_timeout_events[1]
    else 'ttl'
  end
$$;

-- The planner inlines functions in language sql, and each session pays for that when it plans its first
-- call. So functions that few calls need are in PL/pgSQL, which a session parses only when it calls them.

-- matching returns the name under which a state accepts an event: the event itself, or the longest pattern that fits
-- it.
-- Returns: the event if there is none
create function pawl_private.matching(p_event text, p_events text[], p_patterns text[]) returns text
language plpgsql immutable parallel safe
as $$
declare
  v_pattern text;
begin
  if p_event = any (p_events) or p_event like '%:%' or p_event = 'ttl' then
    return p_event;
  end if;
  foreach v_pattern in array coalesce(p_patterns, '{}') loop
    if starts_with(p_event, left(v_pattern, -1)) then
      return v_pattern;
    end if;
  end loop;
  return p_event;
end
$$;

-- guards lists the guards of an event in a state, as the definition words them.
create function pawl_private.guards(p_workflow text, p_workflow_version integer, p_state text, p_event text)
returns text[]
language plpgsql stable parallel safe
as $$
begin
  return (
    select array_agg(t.guard_text order by t.position)
    from pawl.workflow_state s
    join pawl.workflow_transition t on t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
    where s.workflow = p_workflow
      and s.workflow_version = p_workflow_version
      and s.state = p_state
      and t.event = pawl_private.matching(p_event, s.events, s.patterns)
      and t.resumed_state is null);
end
$$;

-- knows_event says whether any state of a version of a workflow accepts an event.
create function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select from pawl.workflow_transition t
    where t.workflow = p_workflow and t.workflow_version = p_workflow_version and (t.event = p_event or t.event like '%*' and starts_with(p_event, left(t.event, -1))));
end
$$;

-- principal is what guards and values read as $.actor.
-- p_verified: whether the actor is who the service has authenticated; null for a SQL caller, who is its session's user
create function pawl_private.principal(p_actor text, p_verified boolean, p_by_timer boolean) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object(
    'subject', case when p_by_timer then 'timer' when p_verified is null then session_user::text else p_actor end,
    'scopes', '[]'::jsonb, 'roles', '[]'::jsonb)
    || case when p_verified = false then '{"verified": false}' else '{}'::jsonb end;
end
$$;

-- document is what guards and values read. p_event: the command's; 'timeout' of a timer or lifetime; null at a creation.
create function pawl_private.document(
  p_instance pawl.instance, p_payload jsonb, p_now timestamptz, p_event text, p_principal jsonb
) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object(
    'context', p_instance.context,
    'payload', p_payload,
    'now', pawl_private.rfc3339(p_now),
    'event', p_event,
    'actor', p_principal,
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

-- principal_of is principal for a command.
create function pawl_private.principal_of(p_command pawl_private.fire_command) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return coalesce(
    p_command.principal, pawl_private.principal(p_command.actor, p_command.verified, p_command.by_timer));
end
$$;

-- document_of is document for a command.
create function pawl_private.document_of(
  p_instance pawl.instance, p_command pawl_private.fire_command, p_now timestamptz
) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return pawl_private.document(
    p_instance, p_command.payload, p_now, case when p_command.by_timer then 'timeout' else p_command.event end,
    pawl_private.principal_of(p_command));
end
$$;

-- uncommanded stands for the command where no caller has sent one: at a creation, and in a migration. by_timer: whether it leaves a
-- sliding lifetime as it is.
create function pawl_private.uncommanded(p_principal jsonb, p_reason text, p_by_timer boolean default false)
returns pawl_private.fire_command
language sql immutable parallel safe
as $$
  select row(null, null, '{}', '', '*', '*', p_reason, null, null, p_by_timer, false, p_principal)::pawl_private.fire_command
$$;

-- last_step_at is when an instance made its last step.
create function pawl_private.last_step_at(p_instance pawl.instance) returns timestamptz
language plpgsql stable parallel safe
as $$
begin
  return greatest(p_instance.state_changed_at, (p_instance.memory ->> 'at')::timestamptz);
end
$$;

-- slid_at is when a sliding lifetime last began anew.
create function pawl_private.slid_at(p_instance pawl.instance) returns timestamptz
language plpgsql stable parallel safe
as $$
begin
  return coalesce((p_instance.memory ->> 'slid_at')::timestamptz, p_instance.state_changed_at);
end
$$;

-- was_due says whether a timer's step was due at the time of the step before it already.
create function pawl_private.was_due(p_before pawl.instance, p_payload jsonb) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return (p_payload ->> 'due_at')::timestamptz <= pawl_private.last_step_at(p_before);
end
$$;

-- circles says whether a timer that was due at once already would be the hundredth in a row.
create function pawl_private.circles(p_instance pawl.instance, p_payload jsonb) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return (p_instance.memory ->> 'at_once')::integer >= 100 and pawl_private.was_due(p_instance, p_payload);
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

-- context_refusal says why a context cannot be kept, or null. p_nests: whether it may be nested deeper than before.
create function pawl_private.context_refusal(p_context jsonb, p_nests boolean, p_setting pawl.setting) returns text
language plpgsql immutable parallel safe
as $$
begin
  return case
    when octet_length(p_context::text) > p_setting.context_limit then 'context-too-large'
    when p_nests and pawl_private.is_too_deep(p_context) then 'context-too-deep'
  end;
end
$$;

-- was_left says whether an instance last left a compound state from the given state. p_memory: the instance's
create function pawl_private.was_left(p_memory jsonb, p_compound text, p_state text) returns boolean
language plpgsql immutable parallel safe
as $$
begin
  return p_memory #>> array['left', p_compound, 'state'] = p_state;
end
$$;

-- lies_within says whether an atomic state is another one or lies within it. p_around: '' for any
create function pawl_private.lies_within(p_workflow text, p_workflow_version integer, p_state text, p_around text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return p_around = '' or exists (
    select from pawl.workflow_state s
    where s.workflow = p_workflow and s.workflow_version = p_workflow_version and s.state = p_state
      and p_around = any (s.lineage));
end
$$;

-- choose picks the transition that an event takes from a state: the first by position whose guard holds on the document
-- {context, payload, instance, now, event, actor}. A guard that is false or unknown does not hold.
--
-- If a candidate has a payload schema that the caller has not checked, it is chosen without its
-- guard, with unchecked true and no context. So a payload is refused for its shape before a guard
-- reads it. p_checked: the checksum of the schema that was checked, or '*' for any.
-- p_memory: the instance's, which says what a transition resumes.
-- p_bypass: null; else guards are passed over, and it is the state that the transition must lead to or into, or '' for any.
-- Returns: one row, or none if no guard holds; context: as the transition leaves it; nests: whether it may be
--          nested deeper than before; guard: its text in the definition, or null
create function pawl_private.choose(
  p_workflow text, p_workflow_version integer, p_state text, p_event text,
  p_document jsonb, p_checked text, p_memory jsonb, p_bypass text default null
) returns table (
  target text, unchecked boolean, context jsonb, nests boolean, payload_schema jsonb, guard text, move pawl_private.move
)
language sql stable parallel safe
as $$
  select
    t.target,
    t.unchecked,
    case
      when t.unchecked then null
      when t.assign_payload then p_document -> 'context' || (p_document -> 'payload')
      when t.assign_compiled is not null then pawl_private.assigned(p_document, t.assign_compiled)
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
    t.guard_text,
    row(t.internal, t.kept, t.rearms, t.resumes, t.resumed_state, t.resumes_timers, t.compensation)::pawl_private.move
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
        when p_bypass is not null then pawl_private.lies_within(w.workflow, w.workflow_version, w.target, p_bypass)
        when u.unchecked then true
        when w.guard is not null then jsonb_path_match(p_document, w.guard, '{}', true)
        when w.guard_compiled is not null then pawl_private.holds(p_document, w.guard_compiled)
        else true
      end
      and (
        w.resumed_state is null or w.resumed_state = w.source
        or pawl_private.was_left(p_memory, w.resumes, w.resumed_state))
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

-- broken_invariant returns the first invariant of a state that an instance in it would break, or null. What is unknown
-- breaks it.
-- p_invariants: as in workflow_state
-- Raises:  as pawl_private.holds
create function pawl_private.broken_invariant(p_invariants jsonb, p_instance pawl.instance) returns text
language plpgsql stable
as $$
declare
  v_document jsonb := pawl_private.document(p_instance, '{}', p_instance.state_changed_at, null, null);
begin
  for v_n in 0 .. jsonb_array_length(p_invariants) - 1 loop
    if pawl_private.holds(v_document, p_invariants -> v_n -> 'guard') is not true then
      return p_invariants -> v_n ->> 'text';
    end if;
  end loop;
  return null;
end
$$;

-- armed reads a timer of a state that is entered at p_at: when it is due.
-- p_timer: as in workflow_state.timers. p_document: what its value reads
-- Returns: null if its value selects nothing; else {at, place}, and for one that repeats every, from, n and zone: it is
--          due n times every after from
-- Raises:  22023 with the pointer if the value is no time, or no duration
create function pawl_private.armed(p_timer jsonb, p_place integer, p_document jsonb, p_at timestamptz) returns jsonb
language plpgsql stable
as $$
declare
  v_pointer text;
  v_value jsonb;
  v_duration interval := pawl_private.duration(p_timer #>> '{in,constant}');
  v_due_at timestamptz;
begin
  if v_duration is null then
    v_value := pawl_private.value(p_document, coalesce(p_timer #> '{in,value}', p_timer #> '{at,value}'));
    v_pointer := coalesce(p_timer #>> '{in,value,1}', p_timer #>> '{at,value,1}');
    if v_value is null or v_value = 'null' then
      return null;
    elsif p_timer ? 'at' then
      v_due_at := pawl_private.time_of(v_value, v_pointer);
    else
      v_duration := case jsonb_typeof(v_value)
        when 'string' then pawl_private.duration(v_value #>> '{}')
        when 'number' then case when abs((v_value #>> '{}')::numeric) <= 315360000 then make_interval(secs => (v_value #>> '{}')::double precision) end
      end;
      if v_duration is null then
        perform pawl_private.fault(v_pointer, format(
          '%s is no duration of at most ten years; write one like "90s" or "P3D", or a number of seconds', left(v_value::text, 100)));
      elsif (p_timer -> 'every')::boolean and v_duration < interval '1 second' then
        perform pawl_private.fault(v_pointer, format('%s is too short for every, whose least is 1s', left(v_value::text, 100)));
      end if;
    end if;
  end if;
  v_due_at := coalesce(v_due_at, pawl_private.moved(p_at, greatest(v_duration, interval '0'), p_timer ->> 'zone'));
  return jsonb_build_object('at', pawl_private.rfc3339(v_due_at), 'place', p_place) || case when (p_timer -> 'every')::boolean then
    jsonb_build_object('every', pawl_private.duration_text(v_duration), 'from', pawl_private.rfc3339(p_at), 'n', 1, 'zone', p_timer -> 'zone')
  else '{}' end;
end
$$;

-- duration_text writes a duration so that pawl_private.duration reads it.
create function pawl_private.duration_text(p_duration interval) returns text
language plpgsql immutable parallel safe
as $$
begin
  return format(
    'P%sMT%sS', pawl_private.months_of(p_duration), trim_scale(pawl_private.seconds_of(p_duration)));
end
$$;

-- next_repeat moves a timer that repeats to its first time after p_now. It stays on the grid that began when the state
-- was entered.
-- p_due: as armed returns
-- Returns: the same with the next time; missed: how many times were passed over
create function pawl_private.next_repeat(p_due jsonb, p_now timestamptz, out due jsonb, out missed bigint)
language plpgsql stable
as $$
declare
  v_every interval := pawl_private.duration(p_due ->> 'every');
  v_from timestamptz := (p_due ->> 'from')::timestamptz;
  v_n bigint := (p_due ->> 'n')::bigint;
  v_months integer := pawl_private.months_of(v_every);
  v_seconds numeric := pawl_private.seconds_of(v_every);
  v_at timestamptz;
begin
  if v_every is null then
    return;
  elsif v_months = 0 then
    v_n := greatest(v_n, floor(extract(epoch from p_now - v_from) / v_seconds)::bigint);
  end if;
  loop
    v_n := v_n + 1;
    v_at := pawl_private.moved(
      v_from, make_interval(months => (v_months * v_n)::integer, secs => (v_seconds * v_n)::double precision), p_due ->> 'zone');
    exit when v_at > p_now;
  end loop;
  due := p_due || jsonb_build_object('at', pawl_private.rfc3339(v_at), 'n', v_n);
  missed := v_n - (p_due ->> 'n')::bigint - 1;
end
$$;

-- passed_over is an instance whose repeating timer was refused at p_now: the timer is due at its next time. Other timers
-- are left as they are.
create function pawl_private.passed_over(p_instance pawl.instance, p_event text, p_now timestamptz) returns pawl.instance
language plpgsql stable
as $$
declare
  v_due jsonb := p_instance.memory #> array['due', p_event];
begin
  if v_due ? 'every' then
    p_instance.memory := jsonb_set(
      p_instance.memory, array['due', p_event], (pawl_private.next_repeat(v_due, p_now)).due);
  end if;
  return p_instance;
end
$$;

-- remembered computes the memory of an instance after a step. Its members are left out if there is nothing to
-- remember:
--
--   due      when the armed timers of its state are due, by slot: see armed
--   left     by the path of a compound state that some transition resumes: {state, due}: the atomic state within it
--            that was left last, and the timers that it had then. These have rest, the seconds that were left, instead
--            of at, unless their time is absolute
--   at       the time of the last step, if it was internal and later than the state's
--   slid_at  when the lifetime last began anew, if that is not when the state was entered
--   at_once  how many steps in a row timers have made that were due before the step before them
--
-- p_before: the instance before the step; all null at its creation. p_next: after it, without its memory.
-- p_at: the time of the step
-- Returns: null if there is nothing
-- Raises:  as armed
create function pawl_private.remembered(
  p_before pawl.instance, p_next pawl.instance, p_move pawl_private.move, p_command pawl_private.fire_command,
  p_at timestamptz
) returns jsonb
language plpgsql stable
as $$
declare
  v_source pawl.workflow_state;
  v_target pawl.workflow_state;
  v_due jsonb := '{}';
  v_left jsonb := coalesce(p_before.memory -> 'left', '{}');
  v_result jsonb := '{}';
  v_compound text;
  v_timer jsonb;
  v_one jsonb;
  v_depth integer;
  v_document jsonb;
  v_slid_at timestamptz;
begin
  select s.* into strict v_target
  from pawl.workflow_state s
  where s.workflow = p_next.workflow and s.workflow_version = p_next.workflow_version and s.state = p_next.state;
  if p_before.id is not null then
    select s.* into strict v_source
    from pawl.workflow_state s
    where s.workflow = p_before.workflow and s.workflow_version = p_before.workflow_version and s.state = p_before.state;
    foreach v_compound in array coalesce(v_source.remembered, '{}') loop
      v_depth := array_position(v_source.lineage, v_compound);
      if v_depth > p_move.kept then
        v_left := v_left - v_compound;
        if not v_source.done then
          v_left := v_left || jsonb_build_object(v_compound, jsonb_build_object(
            'state', v_source.state,
            'due', (
              select jsonb_object_agg(t ->> 'slot', case
                when t ? 'at' then d.one
                else d.one - 'at' || jsonb_build_object('rest', extract(epoch from (d.one ->> 'at')::timestamptz - p_at))
              end)
              from jsonb_array_elements(v_source.timers) t
              cross join lateral (select p_before.memory #> array['due', t ->> 'slot'] as one) d
              where d.one is not null and array_position(v_source.lineage, t ->> 'owner') >= v_depth
                and not (p_command.by_timer and p_command.event is not distinct from t ->> 'slot')
            )));
        end if;
      end if;
    end loop;
  end if;

  for v_n in 0 .. coalesce(jsonb_array_length(v_target.timers), 0) - 1 loop
    v_timer := v_target.timers -> v_n;
    v_depth := array_position(v_target.lineage, v_timer ->> 'owner');
    v_one := null;
    if v_depth <= p_move.kept and v_timer ->> 'owner' is distinct from p_move.rearms then
      -- Its state was not entered: it goes on.
      v_one := p_before.memory #> array['due', v_timer ->> 'slot'];
      if p_command.by_timer and p_command.event = v_timer ->> 'slot' then
        v_one := case when (v_timer -> 'every')::boolean then (pawl_private.next_repeat(v_one, p_at)).due end;
      end if;
      v_one := v_one || jsonb_build_object('place', v_n);
    elsif p_move.resumes_timers and p_move.resumed_state is not null
      and v_depth >= array_position(v_target.lineage, p_move.resumes) then
      v_one := v_left #> array[p_move.resumes, 'due', v_timer ->> 'slot'];
      if v_one ? 'rest' then
        v_one := v_one - 'rest' || jsonb_build_object(
          'at', pawl_private.rfc3339(p_at + make_interval(secs => (v_one ->> 'rest')::double precision)));
        if v_one ? 'every' then
          -- Its grid begins anew with the time that was left.
          v_one := v_one || jsonb_build_object('n', 0, 'from', v_one -> 'at');
        end if;
      end if;
    else
      v_document := coalesce(v_document, pawl_private.document_of(p_next, p_command, p_at));
      v_one := pawl_private.armed(v_timer, v_n, v_document, p_at);
    end if;
    if v_one is not null then
      v_due := v_due || jsonb_build_object(v_timer ->> 'slot', v_one);
    end if;
  end loop;

  if v_due <> '{}' then
    v_result := jsonb_build_object('due', v_due);
  end if;
  if v_left <> '{}' and p_next.status = 'active' then
    v_result := v_result || jsonb_build_object('left', v_left);
  end if;
  if p_next.state_changed_at <> p_at then
    v_result := v_result || jsonb_build_object('at', pawl_private.rfc3339(p_at));
  end if;
  if v_target.ttl_slides then
    v_slid_at := case when p_command.by_timer then pawl_private.slid_at(p_before) else p_at end;
    if v_slid_at <> p_next.state_changed_at then
      v_result := v_result || jsonb_build_object('slid_at', pawl_private.rfc3339(v_slid_at));
    end if;
  end if;
  if p_command.by_timer and pawl_private.was_due(p_before, p_command.payload) then
    v_result := v_result || jsonb_build_object('at_once', coalesce((p_before.memory ->> 'at_once')::integer, 0) + 1);
  end if;
  return nullif(v_result, '{}');
end
$$;

-- with_memory is the instance after a step with what it must remember.
create function pawl_private.with_memory(
  p_before pawl.instance, p_next pawl.instance, p_move pawl_private.move, p_command pawl_private.fire_command,
  p_at timestamptz
) returns pawl.instance
language plpgsql stable
as $$
begin
  p_next.memory := pawl_private.remembered(p_before, p_next, p_move, p_command, p_at);
  return p_next;
end
$$;

-- entered_memory is the memory of an instance that is in a state without having come from another.
create function pawl_private.entered_memory(
  p_instance pawl.instance, p_command pawl_private.fire_command, p_now timestamptz
) returns jsonb
language plpgsql stable
as $$
begin
  return pawl_private.remembered(
    null, p_instance, row(false, 0, null, null, null, false, null)::pawl_private.move, p_command, p_now);
end
$$;

-- complete_macrostep takes the transitions of an instance that need no event, after it has made a step, one after the
-- other, until no guard holds. Each is a step of its own, at the same time. Their guards and assigns see the command's
-- payload, event and actor, too. In a final state within another state they are the done of that one.
-- p_before: the instance before the step; null at its creation. p_command: see uncommanded. p_at: the time of the step
-- Returns: the macrostep; its refusal is 'always-loop' after 100 such transitions, 'invariant-broken' with the
--          invariant that a step would break, 'context-too-large' or 'context-too-deep'
create function pawl_private.complete_macrostep(
  p_before pawl.instance, p_instance pawl.instance, p_command pawl_private.fire_command, p_now timestamptz,
  p_at timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_instance pawl.instance := p_instance;
  v_last pawl.instance;
  v_state pawl.workflow_state;
  v_next record;
begin
  v_macrostep.steps := array[p_before, p_instance];
  v_macrostep.made := array[null, p_command.event];
  loop
    select s.* into strict v_state
    from pawl.workflow_state s
    where s.workflow = v_instance.workflow
      and s.workflow_version = v_instance.workflow_version
      and s.state = v_instance.state;
    v_macrostep.events := v_state.events;
    v_macrostep.timeouts := v_state.timeouts;
    v_macrostep.timeout_events := v_state.timeout_events;
    v_macrostep.tasks := v_state.tasks;
    if v_last.id is not null then
      if v_instance.memory is not null or v_state.timers is not null or v_next.remembered is not null
        or v_state.ttl_slides and p_command.by_timer then
        v_instance := pawl_private.with_memory(v_last, v_instance, v_next.move, p_command, p_at);
      end if;
      v_macrostep.steps[cardinality(v_macrostep.steps)] := v_instance;
    end if;
    if v_state.invariants is not null then
      v_macrostep.broken := pawl_private.broken_invariant(v_state.invariants, v_instance);
      if v_macrostep.broken is not null then
        v_macrostep.refusal := 'invariant-broken';
        return v_macrostep;
      end if;
    end if;
    exit when not v_state.eventless;
    select t.target, t.context, t.nests, t.guard, t.move, s.status, s.state_hash, v_state.remembered
    into v_next
    from pawl_private.choose(
      p_workflow => v_instance.workflow, p_workflow_version => v_instance.workflow_version,
      p_state => v_instance.state, p_event => case when v_state.done then ':done' else ':always' end,
      p_document => pawl_private.document_of(v_instance, p_command, p_now), p_checked => '*',
      p_memory => v_instance.memory) t
    join pawl.workflow_state s
      on s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = t.target;
    exit when not found;
    if cardinality(v_macrostep.steps) > 101 then
      v_macrostep.refusal := 'always-loop';
      return v_macrostep;
    end if;
    v_macrostep.refusal := pawl_private.context_refusal(v_next.context, v_next.nests, p_setting);
    if v_macrostep.refusal is not null then
      return v_macrostep;
    end if;
    v_last := v_instance;
    if v_next.status = 'failed' then
      v_instance.error := pawl_private.failure(
        p_command.event, v_instance.state, v_next.guard, nullif(p_command.reason, ''));
    end if;
    v_instance.state := v_next.target;
    v_instance.state_hash := v_next.state_hash;
    v_instance.status := v_next.status;
    v_instance.context := v_next.context;
    v_instance.version := v_instance.version + 1;
    v_instance.state_changed_at := p_at;
    v_macrostep.steps := v_macrostep.steps || v_instance;
    v_macrostep.made := v_macrostep.made || case when v_state.done then 'done' end;
  end loop;
  v_macrostep.instance := v_instance;
  return v_macrostep;
end
$$;

-- begin_macrostep is complete_macrostep for a new instance. First it runs the assigns of the initial state and the
-- entry assigns of the states that the instance starts in, and arms its timers.
-- p_entered: whether the assigns were made
create function pawl_private.begin_macrostep(
  p_instance pawl.instance, p_principal jsonb, p_reason text, p_now timestamptz, p_setting pawl.setting,
  p_entered boolean default false
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_command pawl_private.fire_command := pawl_private.uncommanded(p_principal, p_reason);
  v_instance pawl.instance := p_instance;
  v_macrostep pawl_private.macrostep;
  v_entry record;
begin
  if not p_entered then
    select t.context, t.nests
    into v_entry
    from pawl_private.choose(
      p_workflow => p_instance.workflow, p_workflow_version => p_instance.workflow_version,
      p_state => p_instance.state, p_event => ':initial',
      p_document => pawl_private.document_of(p_instance, v_command, p_now), p_checked => '*', p_memory => null) t;
    if found then
      v_macrostep.refusal := pawl_private.context_refusal(v_entry.context, v_entry.nests, p_setting);
      if v_macrostep.refusal is not null then
        return v_macrostep;
      end if;
      v_instance.context := v_entry.context;
    end if;
  end if;
  v_instance.memory := pawl_private.entered_memory(v_instance, v_command, p_now);
  return pawl_private.complete_macrostep(
    p_before => null, p_instance => v_instance, p_command => v_command, p_now => p_now, p_at => p_now,
    p_setting => p_setting);
end
$$;

-- decide makes the decision of a fire. It only reads. The planner puts it in place, and each call makes its expressions
-- ready, whether they are evaluated or not; so what few commands need stands in functions of its own.
--
-- p_instance: all of its columns are null if the instance does not
-- exist. Refusals are checked in the order of the contract: not found, precondition, size, event, guard. If the
-- command's key was taken while the call waited, the code is 'seen' instead of a refusal that is not recorded.
-- p_bypass: as for choose
-- Returns: one row. code: the outcome's. from_state: the state before. instance: after the last step if applied, else
--          as it is; null if there is none. due_at, timeout_event: its next deadline, if applied; null if none.
--          was_timed: whether it had a deadline before. guards: of 'guard-rejected', those that did not hold; of
--          'invariant-broken', the invariant, which is also in invariant. payload_schema: with 'payload-unchecked'.
--          at: the time of the step. internal: whether it left no state. stays: whether, besides, no other step followed; then
--          its timers are as they were, except the one that fired and, if rearmed, those that the transition armed anew. steps,
--          made: those of the macrostep if others may have followed, else null. principal: what is kept in history. tasks:
--          whether leaving or entering a state, or the transition, starts, ends or undoes something
create function pawl_private.decide(
  p_now timestamptz, p_setting pawl.setting, p_instance pawl.instance, p_command pawl_private.fire_command,
  p_bypass text default null
) returns table (
  code text, from_state text, instance pawl.instance, actions text[], due_at timestamptz, timeout_event text,
  was_timed boolean, guards text[], invariant text, payload_schema jsonb, at timestamptz, internal boolean, stays boolean, rearmed boolean,
  steps pawl.instance[], made text[], principal jsonb, tasks boolean, compensation integer
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
        case
          when (g.next).memory is null then
            pawl_private.deadline(
              (g.next).state_changed_at, coalesce((s.macrostep).timeouts, s.timeouts), null, n.expires_at)
          else (g.deadline).due_at
        end
    end,
    case
      when coalesce(((s.macrostep).instance).status, s.status) = 'active' then
        case
          when (g.next).memory is not null then (g.deadline).event
          else
            pawl_private.deadline_event(
              (g.next).state_changed_at, coalesce((s.macrostep).timeouts, s.timeouts),
              coalesce((s.macrostep).timeout_events, s.timeout_events), null, n.expires_at)
        end
    end,
    f.timeouts <> '{}' or i.expires_at is not null or f.timers is not null,
    case
      when o.code = 'invariant-broken' then array[o.broken]
      when o.code = 'guard-rejected' then pawl_private.guards(i.workflow, i.workflow_version, i.state, c.event)
    end,
    case when o.code = 'invariant-broken' then o.broken end,
    case when t.unchecked then t.payload_schema end,
    n.at,
    o.applied and (t.move).internal,
    o.applied and (t.move).internal and coalesce(cardinality((s.macrostep).steps) = 2, true),
    (t.move).rearms is not null,
    case when o.applied then (s.macrostep).steps end,
    case when o.applied then (s.macrostep).made end,
    case when f.reads_actor then pawl_private.principal_of((c)::pawl_private.fire_command) end,
    o.applied and (f.tasks or coalesce((s.macrostep).tasks, s.tasks) or (t.move).compensation is not null),
    (t.move).compensation
  from (select (p_command).* offset 0) c
  cross join lateral (select (p_instance).* offset 0) i
  left join lateral (
    select
      w.events, w.patterns, w.timeouts, w.timers, w.remembered, w.ttl_slides, w.require_if_match, w.reads_instance, w.reads_actor,
      w.tasks
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
      when octet_length(c.payload::text) > p_setting.payload_limit and not c.by_task then 'payload-too-large'
      -- The service has checked the depth of what it gets.
      when c.checked = '*' and pawl_private.is_too_deep(c.payload) then 'malformed-request'
      when (c.event like '%:%' or c.event = 'ttl') <> (c.by_timer or c.by_task) or c.event = 'done' or c.event like '%*%' then 'unknown-event'
      when c.by_timer and i.memory is not null and pawl_private.circles((i)::pawl.instance, c.payload) then 'timer-loop'
    end as refusal
    offset 0
  ) e
  -- The document is built once. Inlined, choose would build it for each guard and assign.
  cross join lateral (
    select case
      when e.refusal is not null then null
      when f.reads_instance then
        pawl_private.document_of((i)::pawl.instance, (c)::pawl_private.fire_command, p_now)
      else jsonb_build_object('context', i.context, 'payload', c.payload)
    end as document,
    case when f.patterns is null then c.event else pawl_private.matching(c.event, f.events, f.patterns) end as name
    offset 0
  ) d
  left join lateral pawl_private.choose(
    p_workflow => i.workflow,
    p_workflow_version => i.workflow_version,
    p_state => case when e.refusal is null and i.status = 'active' then i.state end,
    p_event => d.name,
    p_document => d.document,
    p_checked => nullif(c.checked, ''),
    p_memory => i.memory,
    p_bypass => p_bypass
  ) t on true
  cross join lateral (
    select
      a.at,
      -- A sliding lifetime begins anew with each command, and keeps its length.
      case when f.ttl_slides and not c.by_timer then a.at + (i.expires_at - a.slid_at) else i.expires_at end as expires_at
    from (
      select
        case
          when i.memory is null then greatest(p_now, i.state_changed_at)
          else greatest(p_now, pawl_private.last_step_at((i)::pawl.instance))
        end as at,
        case when i.memory is null then i.state_changed_at else pawl_private.slid_at((i)::pawl.instance) end as slid_at
      offset 0
    ) a
  ) n
  left join lateral (
    select
      w.status, w.events, w.timeouts, w.timeout_events, w.tasks, x.next,
      case when w.eventless or w.invariants is not null then
        pawl_private.complete_macrostep(
          (i)::pawl.instance, x.next, (c)::pawl_private.fire_command, p_now, n.at, p_setting)
      end as macrostep
    from pawl.workflow_state w
    cross join lateral (
      select pawl_private.instance_row(
        p_tenant_id => i.tenant_id, p_id => i.id, p_workflow => i.workflow,
        p_workflow_version => i.workflow_version, p_state => t.target, p_status => w.status,
        p_version => i.version + 1, p_context => t.context, p_business_key => i.business_key,
        p_business_key_reusable => i.business_key_reusable,
        p_correlation_id => i.correlation_id, p_parent_id => i.parent_id, p_created_at => i.created_at,
        p_state_changed_at => case when (t.move).internal then i.state_changed_at else n.at end,
        p_expires_at => n.expires_at, p_state_hash => w.state_hash,
        p_error => case
          when w.status = 'failed' then
            pawl_private.failure(c.event, i.state, t.guard, nullif(c.reason, ''))
          else i.error
        end) as next
      offset 0
    ) r
    -- Most instances have nothing to remember.
    cross join lateral (
      select case
        when i.memory is not null or w.timers is not null or f.remembered is not null or (t.move).internal
          or w.ttl_slides and c.by_timer then
          pawl_private.with_memory((i)::pawl.instance, r.next, t.move, (c)::pawl_private.fire_command, n.at)
        else r.next
      end as next
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
      when d.name = any (f.events) then 'guard-rejected'
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
      s.status is not null and (s.macrostep).refusal is null as applied,
      (s.macrostep).broken as broken
    offset 0
  ) o
  cross join lateral (
    select
      g.next,
      case when (g.next).memory is not null then
        pawl_private.remembered_deadline(
          (g.next).state_changed_at, coalesce((s.macrostep).timeouts, s.timeouts),
          coalesce((s.macrostep).timeout_events, s.timeout_events), (g.next).memory, n.expires_at)
      end as deadline
    from (select coalesce((s.macrostep).instance, s.next) as next offset 0) g
    offset 0
  ) g
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
    case when not r.same then 'idempotency-key-reuse' when k.refusal ? 'invariant' then 'invariant-broken' else k.decision end::text,
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
      case
        when k.refusal ? 'invariant' then array[k.refusal ->> 'invariant']
        else pawl_private.guards(a.workflow, a.workflow_version, a.state, c.event)
      end
    end,
    null::jsonb,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline_event(a.state_changed_at, s.timeouts, s.timeout_events, a.memory, a.expires_at)
    end,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline(a.state_changed_at, s.timeouts, a.memory, a.expires_at)
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
-- p_steps, p_made: as of pawl_private.macrostep. p_kind, p_payload, p_internal, p_principal: of the first step.
-- Writes:  history
create function pawl_private.append_history(
  p_steps pawl.instance[], p_made text[], p_kind text, p_at timestamptz, p_payload jsonb, p_internal boolean, p_principal jsonb,
  p_actor text, p_reason text, p_key text, p_correlation_id text, p_traceparent text, p_database_user text default null
) returns void
language plpgsql volatile -- As instance_retains: it is called for each instance of a migration.
as $$
begin
  insert into pawl.history (
    tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
    context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at, entered_at, internal, principal, memory,
    database_user)
  select
    s.tenant_id, s.id, s.version, s.workflow, s.workflow_version,
    case when n = 2 then p_kind else 'transition' end,
    p_made[n],
    (p_steps[n - 1]).state,
    s.state, s.status, s.context,
    case when n = 2 then p_payload end,
    s.expires_at, s.error, p_actor, nullif(p_reason, ''), nullif(p_key, ''),
    coalesce(nullif(p_correlation_id, ''), s.correlation_id), nullif(p_traceparent, ''), p_at,
    nullif(s.state_changed_at, p_at), case when n = 2 and p_internal then true end, case when n = 2 then p_principal end, s.memory,
    p_database_user
  from generate_series(2, cardinality(p_steps)) n
  cross join lateral (select (p_steps[n]).*) s
  order by n;
end
$$;

-- is_disabled says whether a tenant is disabled. Then the workers leave its rows alone. The planner inlines it.
create function pawl_private.is_disabled(p_tenant text) returns boolean
language sql stable parallel safe
as $$ select exists (select from pawl.tenant t where t.id = p_tenant and t.disabled_at is not null) $$;

-- limit_text words a limit that is reached: a JSON object with its `name`, the `limit`, and how much is `used`.
create function pawl_private.limit_text(p_limit jsonb) returns text
language sql immutable parallel safe
as $$
  select format('the tenant has %s %s, and may have %s', p_limit ->> 'used', p_limit ->> 'name', p_limit ->> 'limit')
$$;

-- creation_limits returns the limits because of which tenants may create no instance, as of their last count: a JSON
-- object with the limit of each such tenant; null if there is none.
create function pawl_private.creation_limits(p_tenants text[]) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pawl_private.tenant_usage) then
    return null; -- As in most deployments.
  end if;
  return (
    select jsonb_object_agg(u.tenant_id, l.reached)
    from pawl_private.tenant_usage u
    join pawl.tenant t on t.id = u.tenant_id
    cross join lateral (
      select jsonb_build_object('name', c.name, 'limit', t.limits -> c.name, 'used', c.used) as reached
      from (values ('open_instances', u.open_instances), ('storage_bytes', u.storage_bytes)) as c (name, used)
      where c.used >= (t.limits ->> c.name)::numeric
      limit 1
    ) l
    where u.tenant_id = any (p_tenants)
  );
end
$$;

-- problem describes an outcome other than 'applied': an object with the code and the detail that HTTP answers with, and
-- what the caller needs to go on.
create function pawl_private.problem(p_outcome pawl.outcome, p_id uuid, p_event text, p_expected bigint) returns jsonb
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_outcome.instance;
begin
  return (
    select jsonb_strip_nulls(jsonb_build_object(
      'code', c.problem,
      'detail', case p_outcome.code
        when 'limit-reached' then pawl_private.limit_text(p_outcome.schema)
        else format(c.message, p_event, v_instance.state, v_instance.version, v_instance.id)
      end,
      'instance_id', case p_outcome.code when 'instance-not-found' then p_id else v_instance.id end,
      'state', v_instance.state,
      'instance_status', v_instance.status,
      'version', v_instance.version,
      'expected', p_expected,
      'event', p_event,
      'allowed_events', p_outcome.actions,
      'guards', p_outcome.guards))
      || case p_outcome.code when 'limit-reached' then p_outcome.schema else '{}' end
    from pawl_private.condition c
    where c.outcome = p_outcome.code);
end
$$;

-- refuse raises the condition of an outcome other than 'applied', for a SQL caller. The detail is a
-- JSON object with what the caller needs to go on.
-- Raises:  the condition's SQLSTATE
create function pawl_private.refuse(p_outcome pawl.outcome, p_id uuid, p_event text, p_expected bigint) returns void
language plpgsql stable
as $$
declare
  v_problem jsonb := pawl_private.problem(p_outcome, p_id, p_event, p_expected);
begin
  perform pawl_private.raise_condition(
    p_outcome => p_outcome.code, p_message => v_problem ->> 'detail', p_detail => v_problem - 'code' - 'detail');
end
$$;

-- refusal is what is recorded of a refusal beside its code. p_event: null for an override to a state and for a cancel;
-- p_invariant: null if none was broken. The planner inlines it.
create function pawl_private.refusal(p_event text, p_at timestamptz, p_invariant text) returns jsonb
language sql stable
as $$ select jsonb_strip_nulls(jsonb_build_object('event', p_event, 'at', p_at, 'invariant', p_invariant)) $$;

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

-- simulated makes the instance of a simulation. p_position: as for pawl.simulate.
-- Returns: null if the workflow has no such version or state
-- Raises:  PW400 malformed-request
create function pawl_private.simulated(
  p_workflow text, p_workflow_version integer, p_position jsonb, p_now timestamptz
) returns pawl.instance
language plpgsql stable
as $$
declare
  v_instance pawl.instance;
  v_context jsonb := p_position -> 'context';
begin
  perform pawl_private.refuse_malformed(case
    when jsonb_typeof(v_context) is distinct from 'object' then 'the context must be a JSON object'
    when coalesce((p_position ->> 'version')::numeric, 1) not between 1 and 1000000000000000 then 'the version must be from 1 to 10^15'
  end);
  select (pawl_private.instance_row(
    p_tenant_id => 'simulation', p_id => '00000000-0000-0000-0000-000000000000', p_workflow => s.workflow,
    p_workflow_version => s.workflow_version, p_state => s.state, p_status => s.status,
    p_version => coalesce((p_position ->> 'version')::bigint, 1),
    p_context => case when p_position ->> 'state' is null then coalesce(w.context_default, '{}') || v_context else v_context end,
    p_created_at => coalesce((p_position ->> 'created_at')::timestamptz, p_now),
    p_state_changed_at => coalesce((p_position ->> 'state_changed_at')::timestamptz, p_now),
    p_expires_at => coalesce((p_position ->> 'expires_at')::timestamptz, p_now + w.ttl),
    p_state_hash => s.state_hash, p_memory => nullif(p_position -> 'memory', 'null'))).*
  into v_instance
  from pawl.workflow w
  join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version
  where w.name = p_workflow and w.version = p_workflow_version and s.state = coalesce(p_position ->> 'state', w.initial);
  if v_instance.id is not null and p_position ? 'state' and not p_position ? 'state_changed_at' then
    -- It begins in this state, as if it had been entered now.
    v_instance.memory := pawl_private.entered_memory(v_instance, pawl_private.uncommanded(null, null), p_now);
  end if;
  return v_instance;
end
$$;

-- next_deadline is the nearest deadline of an instance: of its state's timeouts but the first
-- p_tried, which were refused, and of its lifetime. A timeout precedes a lifetime that is due at the
-- same time.
-- Returns: one row, or none if there is no deadline. tried: the p_tried that leads to the deadline
--          after this one; null for the lifetime, which is the last
create function pawl_private.next_deadline(p_instance pawl.instance, p_tried integer)
returns table (due_at timestamptz, event text, tried integer)
language sql stable
as $$
  select d.due_at, d.event, d.tried
  from (
    select u.due_at, u.event, u.position::integer as tried
    from (
      select t.due_at, t.event, row_number() over (order by t.due_at, t.place) as position
      from (
        select p_instance.state_changed_at + u.timeout as due_at, u.event, u.place
        from pawl.workflow_state s
        cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as u (timeout, event, place)
        where s.workflow = p_instance.workflow
          and s.workflow_version = p_instance.workflow_version
          and s.state = p_instance.state
        union all
        select (d.value ->> 'at')::timestamptz, d.key, (d.value ->> 'place')::bigint
        from jsonb_each(p_instance.memory -> 'due') d
      ) t
    ) u
    where u.position > p_tried
    union all
    select p_instance.expires_at, 'ttl', null
    where p_instance.expires_at is not null
  ) d
  where p_instance.status = 'active'
  order by d.due_at, d.tried
  limit 1
$$;

-- timer_payload is the payload of a timer's step: {due_at}, and of one that repeats {due_at, missed}: how many times
-- were passed over, since it comes so late.
create function pawl_private.timer_payload(p_event text, p_due_at timestamptz, p_memory jsonb, p_now timestamptz) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload jsonb := jsonb_build_object('due_at', pawl_private.rfc3339(p_due_at));
begin
  if p_event like 'every:%' then
    v_payload := v_payload || jsonb_build_object(
      'missed', (pawl_private.next_repeat(p_memory #> array['due', p_event], p_now)).missed);
  end if;
  return v_payload;
end
$$;

-- pass_over is passed_over for an instance that exists. It is no step, and history does not show it. The caller must hold
-- the instance's lock.
-- Returns: whether the timer repeats
-- Writes:  instance, timer
create function pawl_private.pass_over(p_instance pawl.instance, p_event text, p_tried integer) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_instance pawl.instance := pawl_private.passed_over(p_instance, p_event, pawl.now());
begin
  if v_instance.memory is not distinct from p_instance.memory then
    return false;
  end if;
  update pawl.instance i
  set memory = v_instance.memory
  where i.tenant_id = p_instance.tenant_id and i.id = p_instance.id;
  perform pawl_private.set_timer(v_instance, p_tried);
  return true;
end
$$;

-- set_timer arms an instance's timer for the next deadline after p_tried timeouts, which were refused. If there is
-- none, it deletes the timer. It clears a failure, and takes the timer out of the slow lane. The caller must hold the
-- instance's lock.
-- Writes:  timer
create function pawl_private.set_timer(p_instance pawl.instance, p_tried integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
  select p_instance.tenant_id, p_instance.id, d.due_at, p_instance.version, p_tried
  from pawl_private.next_deadline(p_instance, p_tried) d
  on conflict on constraint timer_pkey do update
  set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = excluded.tried,
    failed_version = null, last_error = null, queue = null, queued_version = null;
  if not found then
    delete from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;

-- keep_timer keeps what is known of an instance's timer over an internal step: which timeouts were refused, that it
-- fails, and its place in the slow lane. p_changed: whether the step has moved deadlines; then the timer is armed for
-- the next one. p_rearmed: whether it has armed timers anew; then timeouts that were refused are tried again, since they
-- may no longer be the first. The caller must hold the instance's lock.
-- Writes:  timer
create function pawl_private.keep_timer(p_instance pawl.instance, p_changed boolean, p_rearmed boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_timer pawl.timer;
begin
  select t.* into v_timer from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  if p_changed then
    perform pawl_private.set_timer(
      p_instance, case when v_timer.armed_version = p_instance.version - 1 and not p_rearmed then v_timer.tried else 0 end);
  elsif v_timer.armed_version = p_instance.version - 1
    and (v_timer.tried > 0 or v_timer.failed_version is not null or v_timer.queued_version is not null) then
    update pawl.timer t
    set armed_version = p_instance.version,
      failed_version = case when t.failed_version = t.armed_version then p_instance.version else t.failed_version end,
      queued_version = case when t.queued_version = t.armed_version then p_instance.version else t.queued_version end
    where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;

-- merged is a document with a JSON Merge Patch (RFC 7396).
create function pawl_private.merged(p_document jsonb, p_patch jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  v_result jsonb := case when jsonb_typeof(p_document) = 'object' then p_document else '{}' end;
  v_name text;
  v_value jsonb;
begin
  if jsonb_typeof(p_patch) <> 'object' then
    return p_patch;
  end if;
  for v_name, v_value in select m.key, m.value from jsonb_each(p_patch) m loop
    v_result := case
      when v_value = 'null' then v_result - v_name
      else v_result || jsonb_build_object(v_name, pawl_private.merged(v_result -> v_name, v_value))
    end;
  end loop;
  return v_result;
end
$$;

-- expected_fault says what is wrong with a precondition, as pawl.fire takes it, or null.
create function pawl_private.expected_fault(p_expected text) returns text
language sql immutable parallel safe
as $$
  select format('the expected version is %L: it must be * for any, or an array of versions such as {3}', left(p_expected, 100))
  where p_expected not in ('', '*') and case
    when p_expected ~ '^[{]((-?[0-9]{1,18}|[0-9]{19,30})(,(-?[0-9]{1,18}|[0-9]{19,30}))*)?[}]$' then 9223372036854775807 < any (p_expected::numeric[])
    else true
  end
$$;

-- force_fault says what is wrong with what overrides and cancels have in common, or null.
create function pawl_private.force_fault(
  p_tenant text, p_actor text, p_key text, p_correlation_id text, p_reason text, p_expected text
) returns text
language plpgsql immutable parallel safe
as $$
begin
  return coalesce(
    pawl_private.command_fault(
      p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id, p_reason => p_reason),
    case
      -- Spaces, controls and what only formats other characters, whatever the rules of the database's locale are.
      when p_reason !~ '[^[:space:][:cntrl:]\u00a0\u00ad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]' or p_reason is null
        then 'the reason must have 1 to 1000 characters, and some that can be seen'
    end,
    pawl_private.expected_fault(p_expected));
end
$$;

-- forced_step makes a step to a state that no transition need lead to. It leaves the present state and enters the other
-- as a transition between them would: what they assign is assigned, and timers are armed. It only reads.
-- p_command: its event is what guards and values read as $.event. p_patch, p_patch_checked: as for pawl.override
-- Returns: the macrostep; its refusal may also be 'unknown-state', 'state-protected' or 'context-unchecked', with
--          unchecked as pawl.override returns it
-- Raises:  what guards and values raise
create function pawl_private.forced_step(
  p_now timestamptz, p_setting pawl.setting, p_before pawl.instance, p_command pawl_private.fire_command, p_to text,
  p_patch jsonb, p_patch_checked text, out macrostep pawl_private.macrostep, out unchecked jsonb
)
language plpgsql stable
as $$
declare
  v_at timestamptz := greatest(p_now, pawl_private.last_step_at(p_before));
  v_next pawl.instance := p_before;
  v_document jsonb := pawl_private.document_of(p_before, p_command, p_now);
  v_workflow pawl.workflow;
  v_target pawl.workflow_state;
  v_step record;
  v_left jsonb;
begin
  select w.* into strict v_workflow
  from pawl.workflow w
  where w.name = p_before.workflow and w.version = p_before.workflow_version;
  if not exists (
    select from pawl.workflow_state s
    where s.workflow = v_workflow.name and s.workflow_version = v_workflow.version and s.lineage @> array[p_to]
  ) then
    macrostep.refusal := 'unknown-state';
    return;
  end if;
  select t.target, t.kept, s.exits, s.entries
  into strict v_step
  from pawl_private.definition_transitions(v_workflow.definition, p_before.state, p_to) t
  cross join lateral (
    select
      coalesce(jsonb_agg(s.stage order by s.place) filter (where not s.reached), '[]') as exits,
      coalesce(jsonb_agg(s.stage order by s.place) filter (where s.reached and s.stage <> '["forced"]'), '[]') as entries
    from (
      select s.stage, s.place, bool_or(s.stage = '["forced"]') over (order by s.place) as reached
      from jsonb_array_elements(t.stages) with ordinality as s (stage, place)
    ) s
  ) s;
  select s.* into strict v_target
  from pawl.workflow_state s
  where s.workflow = v_workflow.name and s.workflow_version = v_workflow.version and s.state = v_step.target;
  if v_target.protected then
    macrostep.refusal := 'state-protected';
    return;
  end if;

  v_next.context := coalesce(pawl_private.assigned(v_document, v_step.exits), v_next.context);
  if p_patch is not null then
    v_left := v_next.context;
    v_next.context := pawl_private.merged(v_left, p_patch);
    if v_workflow.context_schema is not null and v_next.context <> v_left
      and p_patch_checked not in ('*', p_before.version::text) then
      macrostep.refusal := 'context-unchecked';
      unchecked := jsonb_build_object(
        'schema', v_workflow.context_schema - 'x-context-default', 'before', v_left, 'after', v_next.context);
      return;
    end if;
  end if;
  v_next.context := coalesce(
    pawl_private.assigned(v_document || jsonb_build_object('context', v_next.context), v_step.entries), v_next.context);
  macrostep.refusal := pawl_private.context_refusal(v_next.context, true, p_setting);
  if macrostep.refusal is not null then
    return;
  end if;

  v_next.state := v_target.state;
  v_next.state_hash := v_target.state_hash;
  v_next.status := v_target.status;
  v_next.version := p_before.version + 1;
  v_next.state_changed_at := v_at;
  if v_target.ttl_slides then
    v_next.expires_at := v_at + (p_before.expires_at - pawl_private.slid_at(p_before));
  end if;
  if v_target.status = 'failed' then
    v_next.error := pawl_private.failure(p_command.event, p_before.state, null, p_command.reason);
  end if;
  v_next.memory := pawl_private.remembered(
    p_before, v_next, row(false, v_step.kept, null, null, null, false, null)::pawl_private.move, p_command, v_at);
  macrostep := pawl_private.complete_macrostep(
    p_before => p_before, p_instance => v_next, p_command => p_command, p_now => p_now, p_at => v_at,
    p_setting => p_setting);
  macrostep.made[2] := null; -- No event made the first step.
end
$$;

-- decide_force decides an override or a cancel, as decide does a fire. It only reads.
-- p_kind: 'forced' or 'cancelled', as in history. p_to: null to pass over the guards of the command's event, or if
-- p_kind is 'cancelled'. p_target: as for pawl.override
-- Returns: as decide does, of which the first step is forced. code may also be 'override-unconditional',
--          'instance-final', 'state-protected', 'not-cancellable', 'unknown-state' or 'context-unchecked', then with
--          unchecked. steps: the instance before the first step and after each, if applied
-- Raises:  what guards and values raise
create function pawl_private.decide_force(
  p_now timestamptz, p_setting pawl.setting, p_instance pawl.instance, p_command pawl_private.fire_command,
  p_kind text, p_to text, p_patch jsonb, p_patch_checked text, p_target text,
  out code text, out instance pawl.instance, out actions text[], out guards text[], out schema jsonb,
  out at timestamptz, out internal boolean, out stays boolean, out rearmed boolean, out was_timed boolean,
  out steps pawl.instance[], out made text[], out principal jsonb, out compensation integer
)
language plpgsql stable
as $$
declare
  v_source pawl.workflow_state;
  v_to text := p_to;
  v_decided record;
  v_forced record;
  v_macrostep pawl_private.macrostep;
begin
  if p_instance.id is null then
    code := 'instance-not-found';
    return;
  end if;
  instance := p_instance;
  select s.* into strict v_source
  from pawl.workflow_state s
  where s.workflow = p_instance.workflow and s.workflow_version = p_instance.workflow_version and s.state = p_instance.state;
  if p_kind = 'cancelled' then
    select w.definition ->> 'cancel' into strict v_to
    from pawl.workflow w
    where w.name = p_instance.workflow and w.version = p_instance.workflow_version;
  end if;
  actions := v_source.events;
  code := case
    when p_command.expected not in ('', '*') and not p_instance.version = any (p_command.expected::bigint[]) then 'version-mismatch'
    when p_command.expected = '' and p_kind = 'forced' then 'override-unconditional'
    when p_instance.status <> 'active' then 'instance-final'
    when p_kind = 'cancelled' and v_to is null then 'not-cancellable'
    when v_source.protected then 'state-protected'
  end;
  if code is not null then
    return;
  end if;

  if v_to is null then
    select d.* into strict v_decided
    from pawl_private.decide(
      p_now => p_now, p_setting => p_setting, p_instance => p_instance, p_command => p_command,
      p_bypass => coalesce(p_target, '')) d;
    code := case
      -- All guards were passed over: no transition leads to the target.
      when v_decided.code = 'guard-rejected' then 'transition-not-allowed'
      else v_decided.code
    end;
    guards := case when code = 'invariant-broken' then v_decided.guards end;
    schema := v_decided.payload_schema;
    internal := v_decided.internal;
    stays := v_decided.stays;
    rearmed := v_decided.rearmed;
    if code = 'applied' then
      steps := coalesce(v_decided.steps, array[p_instance, v_decided.instance]);
      made := coalesce(v_decided.made, array[null, p_command.event]);
      compensation := v_decided.compensation;
      actions := v_decided.actions;
    end if;
  else
    p_command.event := p_kind;
    select f.* into strict v_forced
    from pawl_private.forced_step(
      p_now => p_now, p_setting => p_setting, p_before => p_instance, p_command => p_command, p_to => v_to,
      p_patch => p_patch, p_patch_checked => p_patch_checked) f;
    v_macrostep := v_forced.macrostep;
    code := coalesce(v_macrostep.refusal, 'applied');
    guards := case when v_macrostep.broken is not null then array[v_macrostep.broken] end;
    schema := v_forced.unchecked;
    internal := false;
    stays := false;
    if code = 'applied' then
      steps := v_macrostep.steps;
      made := v_macrostep.made;
      actions := v_macrostep.events;
    end if;
  end if;
  if code = 'applied' and exists (
    select from pawl.workflow_state s
    where s.workflow = p_instance.workflow and s.workflow_version = p_instance.workflow_version
      and s.state = (steps[2]).state and s.protected
  ) then
    code := 'state-protected';
    actions := v_source.events;
  end if;
  if code = 'applied' then
    instance := steps[cardinality(steps)];
    at := greatest(p_now, pawl_private.last_step_at(p_instance));
    was_timed := v_source.timeouts <> '{}' or v_source.timers is not null or p_instance.expires_at is not null;
    principal := case when v_source.reads_actor then pawl_private.principal_of(p_command) end;
  end if;
end
$$;

-- digested is what audit keeps of an instance. The context may hold what an auditor must not read.
create function pawl_private.digested(p_instance pawl.instance) returns jsonb
language plpgsql stable
as $$
begin
  return jsonb_build_object(
    'workflow', p_instance.workflow, 'workflow_version', p_instance.workflow_version, 'state', p_instance.state,
    'status', p_instance.status, 'version', p_instance.version,
    'context_sha256', encode(sha256(convert_to(p_instance.context::text, 'UTF8')), 'hex'));
end
$$;

-- is_claimed says whether a command has an idempotency key that another holds. p_key: '' for none
create function pawl_private.is_claimed(p_tenant text, p_key text, p_now timestamptz) returns boolean
language plpgsql stable
as $$
begin
  return p_key <> '' and exists (
    select from pawl.idempotency_key k where k.tenant_id = p_tenant and k.key = p_key and k.expires_at > p_now);
end
$$;

-- force carries out an override or a cancel as fire does a command, with an audit row.
-- p_kind, p_to, p_target: as for decide_force. p_patch, p_patch_checked, p_dry_run, p_raises, p_caller: as for
-- pawl.override. p_history_key: the key that history shows for a command without one; null for none
-- Returns: the outcome; see pawl.override
-- Raises:  see pawl.override
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer, task, compensation, undoing, audit
create function pawl_private.force(
  p_kind text, p_id uuid, p_command pawl_private.fire_command, p_to text, p_patch jsonb, p_patch_checked text, p_target text,
  p_correlation_id text, p_traceparent text, p_dry_run boolean, p_raises boolean, p_caller jsonb,
  p_history_key text default null
) returns pawl.outcome
language plpgsql volatile
as $$
declare
  v_action text := case p_kind when 'forced' then 'instance.override' else 'instance.cancel' end;
  v_key text := case when p_dry_run then '' else coalesce(p_command.key, '') end;
  -- The reason does not tell requests apart.
  v_fingerprint bytea := sha256(convert_to(
    jsonb_build_array(v_action, p_id, p_to, p_patch, p_command.event, p_command.payload, p_target)::text
      || case when p_command.verified then p_command.actor else '' end,
    'UTF8'));
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_seen boolean;
  v_before pawl.instance;
  v_decided record;
  v_outcome pawl.outcome;
begin
  p_command.key := v_key;
  p_caller := coalesce(p_caller, pawl_private.session_caller(p_command.actor));
  select g.* into strict v_setting from pawl.setting g;
  v_seen := pawl_private.is_claimed(p_command.tenant, v_key, v_now);
  if not v_seen then
    if p_dry_run then
      select i.* into v_before from pawl.instance i where i.tenant_id = p_command.tenant and i.id = p_id;
    else
      select i.* into v_before from pawl.instance i where i.tenant_id = p_command.tenant and i.id = p_id for no key update;
      v_now := pawl.now(); -- Read under the lock, so that time rises with the version.
    end if;
    select d.* into strict v_decided
    from pawl_private.decide_force(
      p_now => v_now, p_setting => v_setting, p_instance => v_before, p_command => p_command, p_kind => p_kind,
      p_to => p_to, p_patch => p_patch, p_patch_checked => p_patch_checked, p_target => p_target) d;
    v_outcome := (
      1, v_decided.code, false, v_decided.instance, v_decided.actions, v_decided.guards, v_decided.schema, null, null
    )::pawl.outcome;
    if v_decided.code = 'applied' then
      select n.event, n.due_at into v_outcome.timeout_event, v_outcome.timeout_due_at
      from pawl_private.next_deadline(v_decided.instance, 0) n;
    end if;
    if v_key <> '' and not pawl_private.is_decision(v_decided.code) then
      v_seen := pawl_private.is_claimed(p_command.tenant, v_key, v_now);
    elsif v_key <> '' then
      insert into pawl.idempotency_key as k (
        tenant_id, key, fingerprint, decision, instance_id, version, expires_at, refusal)
      values (
        p_command.tenant, v_key, v_fingerprint,
        case v_decided.code
          when 'invariant-broken' then 'guard-rejected' when 'instance-final' then 'transition-not-allowed'
          else v_decided.code
        end,
        p_id, (v_decided.instance).version, v_now + v_setting.idempotency_ttl,
        case when v_decided.code <> 'applied' then
          pawl_private.refusal(p_command.event, v_now, case v_decided.code when 'invariant-broken' then v_decided.guards[1] end)
        end)
      on conflict on constraint idempotency_key_pkey do update
      set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
        version = excluded.version, expires_at = excluded.expires_at, refusal = excluded.refusal
      where k.expires_at <= v_now;
      v_seen := not found;
    end if;
  end if;

  if v_seen then
    select r.* into strict v_outcome
    from pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => '{1}', p_tenants => array[p_command.tenant],
      p_keys => array[v_key], p_fingerprints => array[v_fingerprint], p_events => array[p_command.event]) r;
    if v_outcome.code = 'transition-not-allowed' and (v_outcome.instance).status <> 'active' then
      v_outcome.code := 'instance-final';
    elsif v_outcome.code = 'applied' then
      perform pawl_private.audit(
        p_tenant => p_command.tenant, p_caller => p_caller, p_action => v_action, p_target => p_id::text,
        p_outcome => 'replayed', p_reason => p_command.reason, p_before => null,
        p_after => pawl_private.digested(v_outcome.instance));
    end if;
  elsif v_outcome.code = 'applied' and not p_dry_run then
    update pawl.instance i
    set state = (v_outcome.instance).state, status = (v_outcome.instance).status, version = (v_outcome.instance).version,
      context = (v_outcome.instance).context, state_changed_at = (v_outcome.instance).state_changed_at,
      expires_at = (v_outcome.instance).expires_at, error = (v_outcome.instance).error,
      state_hash = (v_outcome.instance).state_hash, memory = (v_outcome.instance).memory
    where i.tenant_id = p_command.tenant and i.id = p_id;
    perform pawl_private.append_history(
      p_steps => v_decided.steps, p_made => v_decided.made, p_kind => p_kind, p_at => v_decided.at,
      p_payload => case when p_to is null and p_kind = 'forced' then p_command.payload end,
      p_internal => v_decided.internal, p_principal => v_decided.principal, p_actor => p_command.actor,
      p_reason => p_command.reason, p_key => coalesce(nullif(v_key, ''), p_history_key), p_correlation_id => p_correlation_id, p_traceparent => p_traceparent,
      p_database_user => case when p_command.verified is null then session_user::text end);
    perform pawl_private.move_tasks(
      p_instance => v_outcome.instance, p_at => v_decided.at, p_moves => not v_decided.stays,
      p_compensation => v_decided.compensation, p_event => p_command.event, p_version => (v_decided.steps[2]).version);
    if not v_decided.stays then
      perform pawl_private.set_timer(v_outcome.instance, 0);
    elsif v_decided.was_timed then
      perform pawl_private.keep_timer(v_outcome.instance, v_decided.rearmed, v_decided.rearmed);
    end if;
    perform pawl_private.audit(
      p_tenant => p_command.tenant, p_caller => p_caller, p_action => v_action, p_target => p_id::text,
      p_outcome => 'done', p_reason => p_command.reason, p_before => pawl_private.digested(v_before),
      p_after => pawl_private.digested(v_outcome.instance));
  end if;

  if p_raises and v_outcome.code <> 'applied' then
    perform pawl_private.refuse(
      p_outcome => v_outcome, p_id => p_id, p_event => p_command.event,
      p_expected => case when p_command.expected like '{%' then (p_command.expected::bigint[])[1] end);
  end if;
  return v_outcome;
end
$$;

-- own_traceparent is the traceparent of a step that a caller of SQL makes, or the result of a task: a span of its own in the
-- trace of its cause, with the decision whether it is sampled.
-- Returns: an empty text for none, and for one that is invalid by W3C Trace Context, which is ignored
create function pawl_private.own_traceparent(p_traceparent text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_traceparent is null or length(p_traceparent) > 255
    or p_traceparent collate "C" !~ '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?$'
    or p_traceparent like '00-%' and length(p_traceparent) <> 55 then
    return '';
  end if;
  return '00' || substr(p_traceparent, 3, 34) || right(replace(gen_random_uuid()::text, '-', ''), 16) || substr(p_traceparent, 53, 3);
end
$$;

-- next_traceparent is the traceparent of a step that a timer or the healer makes: it begins a trace, which is sampled if the step before
-- it is.
-- p_before: the traceparent of the step before
-- Returns:  an empty text if that has none, or one that is invalid
create function pawl_private.next_traceparent(p_before text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if pawl_private.own_traceparent(p_before) = '' then
    return '';
  end if;
  return format('00-%s-%s-%s', replace(gen_random_uuid()::text, '-', ''), right(replace(gen_random_uuid()::text, '-', ''), 16), substr(p_before, 54, 2));
end
$$;

-- traceparent_of reads the traceparent of a step.
-- p_version: null for the last step of the instance
-- Returns:   an empty text if it has none
create function pawl_private.traceparent_of(p_tenant text, p_instance_id uuid, p_version bigint) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version bigint := coalesce(p_version, (select i.version from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id));
  v_traceparent text;
begin
  select h.traceparent into v_traceparent
  from pawl.history h
  where h.tenant_id = p_tenant and h.instance_id = p_instance_id and h.version = v_version;
  return coalesce(v_traceparent, '');
end
$$;
