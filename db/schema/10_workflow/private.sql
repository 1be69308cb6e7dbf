-- compact writes a JSON value without spaces.
create function pawl_private.compact(p_value jsonb) returns text
language plpgsql stable
as $$
begin
  return case jsonb_typeof(p_value)
    when 'object' then
      '{' || coalesce((select string_agg(to_json(e.key) || ':' || pawl_private.compact(e.value), ',') from jsonb_each(p_value) e), '') || '}'
    when 'array' then
      '[' || coalesce((select string_agg(pawl_private.compact(e), ',' order by n) from jsonb_array_elements(p_value) with ordinality as a (e, n)), '') || ']'
    else p_value::text
  end;
end
$$;

-- guard_text writes a guard as refusals and diagrams show it.
create function pawl_private.guard_text(p_guard jsonb) returns text
language sql stable
as $$ select case when jsonb_typeof(p_guard) = 'object' then pawl_private.compact(p_guard) else p_guard #>> '{}' end $$;

-- definition_states lists the states of a definition in canonical form.
-- Returns: one row per state. path; at: its JSON Pointer; lineage: the paths of the states around it, from the outside
--          in, then its own; atomic: whether it has no states within; leaf: the atomic state that entering it leads to,
--          by each `initial`; transitions: how many it declares, with its timers
create function pawl_private.definition_states(p_definition jsonb)
returns table (path text, at text, lineage text[], value jsonb, atomic boolean, leaf text, transitions bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive node as (
    select s.key as path, pawl_private.below('/states', s.key) as at, array[s.key] as lineage, s.value
    from jsonb_each(p_definition -> 'states') s
    union all
    select
      n.path || '.' || s.key, pawl_private.below(n.at || '/states', s.key), n.lineage || (n.path || '.' || s.key), s.value
    from node n
    cross join lateral jsonb_each(n.value -> 'states') s
  ),
  entered as (
    select n.path, n.path as leaf, n.value
    from node n
    union all
    select e.path, n.path, n.value
    from entered e
    join node n on n.path = e.leaf || '.' || pawl_private.initial_of(e.value)
    where e.value ? 'states'
  )
  select n.path, n.at, n.lineage, n.value, not n.value ? 'states', e.leaf, t.transitions
  from node n
  left join entered e on e.path = n.path and not e.value ? 'states'
  cross join lateral (
    select coalesce(sum(case when jsonb_typeof(d.value) = 'array' then jsonb_array_length(d.value) end), 0) as transitions
    from (
      select o.value
      from jsonb_each(
        coalesce(n.value -> 'on', '{}') || case when jsonb_typeof(n.value -> 'after') = 'object' then n.value -> 'after' else '{}' end
      ) o
      union all
      select n.value -> m.name from unnest(array['always', 'done', 'after', 'every']) as m (name)
    ) d
  ) t
$$;

-- definition_timers lists the timers that a state of a definition in canonical form declares, in document order.
-- Returns: one row per candidate. slot: the timer's event; position: of the candidate; value: the transition; at: its
--          JSON Pointer; timer: {slot, every, static, in} or the same with at instead of in. in and at are {constant:
--          text} or {value: compiled value}; static: as in pawl.workflow_state
-- Raises:  22023 with the pointer
create function pawl_private.definition_timers(p_state jsonb, p_at text)
returns table (slot text, "position" bigint, value jsonb, at text, timer jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_kind text;
  v_item record;
  v_when jsonb;
  v_constant text;
  v_duration interval;
  v_seen jsonb := '{}';
begin
  foreach v_kind in array array['after', 'every'] loop
    for v_item in
      select p_at || '/' || v_kind || '/' || t.place - 1 as at, t.value, t.value ->> 'in' as key, t.place
      from jsonb_array_elements(case when jsonb_typeof(p_state -> v_kind) = 'array' then p_state -> v_kind end)
        with ordinality as t (value, place)
      union all
      select pawl_private.below(p_at || '/after', a.key) || '/' || t.place - 1, t.value || jsonb_build_object('in', a.key), a.key, t.place
      from jsonb_each(case when v_kind = 'after' and jsonb_typeof(p_state -> 'after') = 'object' then p_state -> 'after' end) a
      cross join lateral jsonb_array_elements(a.value) with ordinality as t (value, place)
    loop
      if jsonb_typeof(v_item.value) <> 'object' or (v_item.value ? 'in') = (v_item.value ? 'at') then
        perform pawl_private.fault(v_item.at, 'a timer has either in, a duration, or at, a time');
      end if;
      at := v_item.at;
      value := v_item.value - 'in' - 'at';
      v_constant := case
        when jsonb_typeof(v_item.value -> 'in') = 'string' and not pawl_private.is_path(v_item.key) and v_item.key not like '$%' then v_item.key
      end;
      if v_constant is not null then
        v_duration := pawl_private.duration(v_constant);
        if v_duration is null or v_duration <= interval '0' then
          perform pawl_private.fault(at, format('%s is no duration; write one like 90s, 15m, 24h or 1mo, of at most ten years', v_constant));
        elsif v_kind = 'every' and v_duration < interval '1 second' then
          perform pawl_private.fault(at, 'every must be at least 1s');
        end if;
        slot := v_kind || ':' || v_constant;
        v_when := jsonb_build_object('in', jsonb_build_object('constant', v_constant));
      else
        slot := v_kind || ':' || v_item.place;
        v_when := case
          when v_item.value ? 'in' then jsonb_build_object('in', jsonb_build_object('value', pawl_private.compiled_value(v_item.value -> 'in', at || '/in')))
          else jsonb_build_object('at', jsonb_build_object('value', pawl_private.compiled_value(v_item.value -> 'at', at || '/at')))
        end;
      end if;
      if v_kind = 'every' and (value ? 'target' or v_item.value ? 'at') then
        perform pawl_private.fault(at, 'every has in, and no target and no at: it stays in the state');
      end if;
      timer := v_when || jsonb_build_object(
        'slot', slot, 'every', v_kind = 'every',
        'static', v_constant is not null and v_kind = 'after' and value ? 'target' and not value ? 'internal'
          and pawl_private.months_of(v_duration) = 0);
      v_seen := v_seen || jsonb_build_object(slot, coalesce((v_seen ->> slot)::integer, 0) + 1);
      position := (v_seen ->> slot)::integer;
      return next;
    end loop;
  end loop;
end
$$;

-- definition_tasks lists the tasks of a definition in canonical form, and the compensations.
-- Returns: one row per task. state: the atomic state that starts it; null for a compensation. at: its JSON Pointer
create function pawl_private.definition_tasks(p_definition jsonb)
returns table ("position" integer, state text, name text, value jsonb, at text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select * from pawl_private.definition_states(p_definition)
  ),
  invoked as (
    select n.path as state, t.key as name, t.value, pawl_private.below(n.at || '/invoke', t.key) as at
    from node n
    cross join lateral jsonb_each(case when jsonb_typeof(n.value -> 'invoke') = 'object' then n.value -> 'invoke' end) t
  ),
  listed as (
    select i.* from invoked i
    union all
    select null, i.name, i.value -> 'compensate', i.at || '/compensate'
    from invoked i
    where i.value ? 'compensate'
    union all
    select null, o.key, t.value -> 'compensate', pawl_private.below(n.at || '/on', o.key) || '/' || t.place - 1 || '/compensate'
    from node n
    cross join lateral jsonb_each(case when jsonb_typeof(n.value -> 'on') = 'object' then n.value -> 'on' end) o
    cross join lateral jsonb_array_elements(case when jsonb_typeof(o.value) = 'array' then o.value end)
      with ordinality as t (value, place)
    where t.value ? 'compensate'
  )
  select row_number() over (order by l.at collate "C")::integer, l.state, l.name, l.value, l.at from listed l
$$;

-- compiled_request compiles the request of a task.
-- Returns: {method, path, query, headers, body}. path: an array of texts, and of arrays of one compiled value each; query,
--          headers, body: compiled values, left out if there are none
-- Raises:  22023 with the pointer
create function pawl_private.compiled_request(p_http jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_part record;
  v_path jsonb := '[]';
  v_name text;
  v_request jsonb;
begin
  for v_part in
    select m.groups[1] as part
    from regexp_matches(p_http ->> 'path', '([{][{]|[}][}]|[{][^{}]+[}]|[^{}]+|.)', 'g') as m (groups)
  loop
    if v_part.part in ('{', '}') then
      perform pawl_private.fault(p_at || '/path', 'a brace that stands for itself is written twice');
    end if;
    v_path := v_path || case
      when v_part.part in ('{{', '}}') then to_jsonb(left(v_part.part, 1))
      when starts_with(v_part.part, '{') then
        jsonb_build_array(jsonb_build_array(pawl_private.compiled_value(
          jsonb_build_object('$path', substr(v_part.part, 2, length(v_part.part) - 2)), p_at || '/path')))
      else to_jsonb(v_part.part)
    end;
  end loop;
  v_request := jsonb_build_object('method', p_http ->> 'method', 'path', v_path);
  foreach v_name in array array['query', 'headers', 'body'] loop
    if p_http ? v_name then
      v_request := v_request || jsonb_build_object(
        v_name, pawl_private.compiled_value(p_http -> v_name, p_at || '/' || v_name));
    end if;
  end loop;
  return v_request;
end
$$;

-- check_request checks the request of a task in canonical form.
-- Raises: 22023 with the pointer
create function pawl_private.check_request(p_http jsonb, p_at text) returns void
language plpgsql stable
as $$
declare
  v_fault text[] := case
    when jsonb_typeof(p_http) is distinct from 'object' then array['', 'must be an object with connection, method and path']
    when coalesce(p_http ->> 'connection', '') !~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$' or length(p_http ->> 'connection') > 63 then array['/connection', 'must be the name of a connection']
    when coalesce(p_http ->> 'method', '') !~ '^(GET|POST|PUT|PATCH|DELETE|HEAD)$' then array['/method', 'must be GET, POST, PUT, PATCH, DELETE or HEAD']
    when jsonb_typeof(p_http -> 'path') is distinct from 'string' or p_http ->> 'path' not like '/%' then array['/path', 'must be a text that begins with a slash']
    when jsonb_typeof(p_http -> 'query') <> 'object' then array['/query', 'must be an object']
    when jsonb_typeof(p_http -> 'headers') <> 'object' then array['/headers', 'must be an object']
  end;
begin
  perform pawl_private.fault(p_at || v_fault[1], v_fault[2]) where v_fault is not null;
end
$$;

-- check_duration checks a member of a task that is a duration. p_least, p_most: its bounds, null for none
-- Raises: 22023 with the pointer
create function pawl_private.check_duration(p_value jsonb, p_at text, p_least interval default null, p_most interval default null)
returns void
language plpgsql stable
as $$
declare
  v_duration interval;
begin
  if p_value is null then
    return;
  end if;
  v_duration := pawl_private.exact_duration(coalesce(p_value #>> '{}', ''), p_at);
  if v_duration < p_least or v_duration > p_most then
    perform pawl_private.fault(p_at, concat_ws(', ', 'must be at least ' || p_least, 'at most ' || p_most));
  end if;
end
$$;

-- check_task checks a task in canonical form, so that nothing is stored that raises when the task is carried out.
-- Raises: 22023 with the pointer
create function pawl_private.check_task(p_task jsonb, p_name text, p_at text, p_compensation boolean) returns void
language plpgsql stable
as $$
declare
  v_reconcile jsonb := p_task -> 'reconcile';
  v_fault text[] := case
    when jsonb_typeof(p_task) is distinct from 'object' then array['', 'must be an object']
    when p_compensation and p_name !~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' then array['', 'undoes the steps of one event, which must be named']
    when not p_compensation and (p_name !~ '^[A-Za-z][A-Za-z0-9_-]{0,63}$' or p_name = 'compensate')
      then array['', 'the name of a task is an identifier, and not compensate']
    when p_task ? 'http' = p_task ? 'work' then array['', 'must have either http or work']
    when not p_task ? 'deadline' then array['/deadline', 'must be there']
    when p_compensation and p_task ?| array['done', 'error', 'unknown', 'late', 'compensate']
      then array['', 'a compensation has no done, error, unknown, late and compensate']
    when not p_compensation and exists (
      select from unnest(array['done', 'error', 'unknown']) as m (name) where coalesce(p_task -> m.name -> -1, '{"guard": null}') ? 'guard'
    ) then array['', 'each of done, error and unknown must have transitions, the last without a guard']
    when p_task ? 'work' and jsonb_typeof(p_task -> 'work') <> 'object' then array['/work', 'must be an object with a topic']
    when p_task ? 'work' and coalesce(p_task #>> '{work,topic}', '') !~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' then array['/work/topic', 'must be an identifier']
    when p_task ? 'work' and jsonb_typeof(p_task #> '{work,input}') not in ('object', 'string') then array['/work/input', 'must be an object, or a path that selects one']
    when p_task ? 'work' and p_task ?| array['idempotency', 'timeout', 'success', 'reconcile']
      then array['', 'work has no idempotency, timeout, success and reconcile']
    when p_task ? 'idempotency' and (coalesce(p_task #>> '{idempotency,header}', '') !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]{1,100}$' or p_task #> '{idempotency,window}' is null)
      then array['/idempotency', 'must have a header and a window']
    when p_task ? 'retry' and coalesce(p_task #>> '{retry,max}', '') !~ '^([1-9][0-9]?|100)$' then array['/retry/max', 'must be 1 to 100']
    when p_task ? 'retry' and (p_task #> '{retry,base}' is null or p_task #> '{retry,cap}' is null) then array['/retry', 'must have max, base and cap']
    when p_task ? 'late' and coalesce(p_task #>> '{late,event}', '') !~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' then array['/late/event', 'must be the name of an event']
    when p_task ? 'if_unknown' and (not p_compensation or p_task ->> 'if_unknown' not in ('run', 'park')) then array['/if_unknown', 'must be run or park, of a compensation']
    when p_task ? 'reconcile' and jsonb_typeof(v_reconcile) <> 'object' then array['/reconcile', 'must be an object']
    when p_task ? 'reconcile' and not v_reconcile ? 'done' then array['/reconcile/done', 'must be there']
    when v_reconcile ? 'every' and (jsonb_typeof(v_reconcile -> 'every') <> 'array' or v_reconcile -> 'every' = '[]')
      then array['/reconcile/every', 'must be an array of durations']
  end;
begin
  perform pawl_private.fault(p_at || v_fault[1], v_fault[2]) where v_fault is not null;
  perform pawl_private.check_request(p_task -> 'http', p_at || '/http') where p_task ? 'http';
  perform pawl_private.check_request(v_reconcile -> 'http', p_at || '/reconcile/http') where v_reconcile is not null;
  perform pawl_private.check_duration(p_task -> 'deadline', p_at || '/deadline', null, interval '8784 hours');
  perform pawl_private.check_duration(p_task -> 'timeout', p_at || '/timeout', interval '0.1 seconds', interval '10 minutes');
  perform pawl_private.check_duration(p_task #> '{work,lease}', p_at || '/work/lease', interval '1 second', interval '1 hour');
  perform pawl_private.check_duration(p_task #> '{idempotency,window}', p_at || '/idempotency/window');
  perform pawl_private.check_duration(p_task #> '{retry,base}', p_at || '/retry/base');
  perform pawl_private.check_duration(p_task #> '{retry,cap}', p_at || '/retry/cap');
  perform pawl_private.check_duration(v_reconcile -> 'absent_after', p_at || '/reconcile/absent_after');
  perform pawl_private.check_duration(e.value, p_at || '/reconcile/every/' || e.place - 1)
  from jsonb_array_elements(v_reconcile -> 'every') with ordinality as e (value, place);
end
$$;

-- compiled_task compiles a task in canonical form.
-- Returns: of a call: request, as of compiled_request; header and window of its idempotency, if it has one; timeout;
--          success, a compiled guard or null; reconcile: null or {connection, request, every, done, failed, absent,
--          result, absent_after}. Of work: input, lease. Of both: max, base and cap of its retries; late: an event or null;
--          if_unknown, of a compensation
-- Raises:  22023 with the pointer
create function pawl_private.compiled_task(p_task jsonb, p_at text, p_compensation boolean) returns jsonb
language plpgsql stable
as $$
declare
  v_http jsonb := p_task -> 'http';
  v_reconcile jsonb := p_task -> 'reconcile';
  v_idempotency jsonb := coalesce(
    p_task -> 'idempotency',
    case when p_compensation and v_http is not null then '{"header": "Idempotency-Key", "window": "24h"}'::jsonb end);
  v_spec jsonb;
  v_name text;
begin
  v_spec := jsonb_strip_nulls(jsonb_build_object(
    'max', coalesce((p_task #>> '{retry,max}')::integer, case when v_http is null then 1 else 6 end),
    'base', coalesce(p_task #>> '{retry,base}', '1s'),
    'cap', coalesce(p_task #>> '{retry,cap}', '1m'),
    'late', p_task #>> '{late,event}',
    'if_unknown', case when p_compensation then coalesce(p_task ->> 'if_unknown', 'park') end));
  if v_http is null then
    return v_spec || jsonb_build_object(
      'lease', coalesce(p_task #>> '{work,lease}', '60s'),
      'input', pawl_private.compiled_value(coalesce(p_task #> '{work,input}', '{}'), p_at || '/work/input'));
  end if;
  v_spec := v_spec || jsonb_strip_nulls(jsonb_build_object(
    'timeout', coalesce(p_task ->> 'timeout', '15s'), 'header', v_idempotency ->> 'header', 'window', v_idempotency ->> 'window'))
    || jsonb_build_object('request', pawl_private.compiled_request(v_http, p_at || '/http'));
  if p_task ? 'success' then
    v_spec := v_spec || jsonb_build_object('success', pawl_private.compiled_guard(p_task -> 'success', p_at || '/success'));
  end if;
  if v_reconcile is not null then
    v_reconcile := jsonb_build_object(
      'connection', v_reconcile #> '{http,connection}',
      'request', pawl_private.compiled_request(v_reconcile -> 'http', p_at || '/reconcile/http'),
      'every', coalesce(v_reconcile -> 'every', '["5s", "30s", "5m"]'), 'absent_after', coalesce(v_reconcile ->> 'absent_after', '1m'),
      'result', pawl_private.compiled_value(coalesce(v_reconcile -> 'result', '"$.body"'), p_at || '/reconcile/result'));
    foreach v_name in array array['done', 'failed', 'absent'] loop
      if p_task -> 'reconcile' ? v_name then
        v_reconcile := v_reconcile || jsonb_build_object(
          v_name, pawl_private.compiled_guard(p_task #> array['reconcile', v_name], p_at || '/reconcile/' || v_name));
      end if;
    end loop;
    v_spec := v_spec || jsonb_build_object('reconcile', v_reconcile);
  end if;
  return v_spec;
end
$$;

-- definition_transitions flattens a definition in canonical form. Every atomic state gets its
-- own transitions, then those that it inherits, the innermost state's first. Each leads to an
-- atomic state. 'ttl' and ':initial' are among them.
--
-- The algorithm is SCXML's for a machine without parallel regions. The innermost state around both the declaring state
-- and the target is neither left nor entered; of an internal transition it may be the declaring state itself. The
-- transition leaves the states within it, the innermost first, and enters those down to the target, the outermost
-- first. A final state within another state has only the done of that one.
-- p_source, p_target: null; else only the transition ':forced' from this atomic state to that state, which no state
--                     declares. In its stages it is itself '["forced"]'
-- Returns: rows of pawl.workflow_transition
create function pawl_private.definition_transitions(p_definition jsonb, p_source text default null, p_target text default null)
returns table (
  source text, event text, "position" bigint, target text, guard jsonb, guard_at text, internal boolean, kept integer, rearms text,
  resumes text, resumed_state text, resumes_timers boolean, stages jsonb, payload_schema jsonb, description text
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select
      n.*,
      n.atomic and n.value ->> 'type' is not distinct from 'final' as final,
      pawl_private.compiled_assign(n.value #> '{entry,assign}', n.at || '/entry/assign') as entry,
      pawl_private.compiled_assign(n.value #> '{exit,assign}', n.at || '/exit/assign') as exit,
      pawl_private.compiled_assign(n.value #> '{initial,assign}', n.at || '/initial/assign') as first
    from pawl_private.definition_states(p_definition) n
  ),
  task as materialized (
    select t.* from pawl_private.definition_tasks(p_definition) t where p_source is null
  ),
  -- What becomes of tasks and of undoing, by the states that react to it.
  outcome as materialized (
    select t.state, m.name || ':' || t.name as event, o.position, o.value, t.at || '/' || m.name || '/' || o.position - 1 as at
    from task t
    cross join unnest(array['done', 'error', 'unknown']) as m (name)
    cross join lateral jsonb_array_elements(case when jsonb_typeof(t.value -> m.name) = 'array' then t.value -> m.name end)
      with ordinality as o (value, position)
    where t.state is not null
  ),
  handler as materialized (
    select o.state as path, o.event, o.position, o.value, o.at from outcome o
    union all
    -- In the states that an outcome of a task leads to, an operator may settle the task anew.
    select distinct n.leaf, o.event || '@' || o.state, o.position, o.value, o.at
    from outcome f
    join node n on n.path = f.value ->> 'target'
    join outcome o on o.state = f.state and split_part(o.event, ':', 2) = split_part(f.event, ':', 2)
    where n.leaf <> f.state
    union all
    select n.path, m.name || ':compensate', o.position, o.value, n.at || '/' || m.name || '/' || o.position - 1
    from node n
    cross join unnest(array['done', 'error']) as m (name)
    cross join lateral jsonb_array_elements(case when jsonb_typeof(n.value -> m.name) = 'array' then n.value -> m.name end)
      with ordinality as o (value, position)
    where n.value ? 'compensate'
    union all
    select n.path, 'compensated:' || c.name, 1, '{}', n.at
    from node n
    cross join (select distinct t.name from task t where t.state is null) c
    where n.value ? 'compensate'
  ),
  declared as materialized (
    select
      n.path, n.lineage, e.event, e.position, e.value, e.value ->> 'target' as target, e.timer, e.at,
      pawl_private.compiled_assign(e.value -> 'assign', e.at || '/assign') as assign
    from node n
    cross join lateral (
      select o.key as event, t.position, t.value, false as timer, pawl_private.below(n.at || '/on', o.key) || '/' || t.position - 1 as at
      from jsonb_each(coalesce(n.value -> 'on', '{}')) o
      cross join lateral jsonb_array_elements(o.value) with ordinality as t (value, position)
      union all
      select ':' || m.name, t.position, t.value, false, n.at || '/' || m.name || '/' || t.position - 1
      from unnest(array['always', 'done']) as m (name)
      cross join lateral jsonb_array_elements(n.value -> m.name) with ordinality as t (value, position)
      where not n.value ? 'compensate'
      union all
      select t.slot, t.position, t.value, true, t.at
      from pawl_private.definition_timers(n.value, n.at) t
      union all
      select h.event, h.position, h.value, false, h.at
      from handler h
      where h.path = n.path
    ) e
    where p_source is null
  ),
  -- inside: the states around the declaring state, with itself if the transition is internal. Those that are around the
  -- target too are neither left nor entered.
  inherited as (
    select
      s.path as source, s.lineage,
      d.event || case when d.timer and d.path <> s.path then '@' || d.path else '' end as event,
      d.value, d.target, d.at, d.assign, d.path as declaring,
      cardinality(d.lineage) as depth, d.position,
      -- All transitions of an event in a state share one schema.
      (array_agg(d.value -> 'payload_schema') filter (where d.value ? 'payload_schema')
        over (partition by s.path, d.event))[1] as payload_schema,
      d.lineage[:cardinality(d.lineage) - case when d.value ? 'internal' then 0 else 1 end] as inside,
      -- An inherited transition behind one without a guard is never taken.
      bool_or(not d.value ? 'guard') over (
        partition by s.path, d.event order by cardinality(d.lineage) desc
        groups between unbounded preceding and 1 preceding
      ) and not d.timer as idle
    from node s
    join declared d on d.path = any (s.lineage)
    where s.atomic and case
      when s.final then d.event = ':done' and d.path = s.lineage[cardinality(s.lineage) - 1]
      else d.event <> ':done'
    end
    union all
    select s.path, s.lineage, 'ttl', '{}', p_definition #>> '{ttl,target}', '/ttl', null, null, 0, 1, null, '{}', null
    from node s
    where p_source is null and p_definition ? 'ttl' and s.atomic and (not s.final or cardinality(s.lineage) > 1)
    union all
    select i.leaf, '{}', ':initial', '{}', i.path, '/initial', pawl_private.compiled_assign(p_definition #> '{initial,assign}', '/initial/assign'),
      null, 0, 1, null, '{}', null
    from node i
    where p_source is null and i.path = pawl_private.initial_of(p_definition)
    union all
    select s.path, s.lineage, ':forced', '{}', p_target, '', '["forced"]', null, 0, 1, null,
      s.lineage[:cardinality(s.lineage) - 1], null
    from node s
    where s.path = p_source
  ),
  -- One row for each state that a transition leads to.
  led as (
    select i.*, coalesce(t.leaf, i.source) as leaf, null::text as resumed_state, false as resumed
    from inherited i
    left join node t on t.path = i.target
    where i.idle is not true
    union all
    select i.*, l.path, l.path, true
    from inherited i
    join node l on i.target = any (l.lineage) and l.atomic and not l.final
    -- Within the state that is resumed, the present state is the one that was left last.
    where i.idle is not true and i.value ? 'resume' and (l.path = i.source or not i.target = any (i.lineage))
  ),
  kept as (
    select
      i.*, t.lineage as target_lineage, l.lineage as leaf_lineage,
      case
        when i.target is null then cardinality(i.lineage)
        else (
          select count(*)
          from unnest(i.lineage) as a (path)
          where a.path = any (i.inside) and a.path = any (t.lineage[:cardinality(t.lineage) - 1])
        )
      end::integer as kept
    from led i
    left join node t on t.path = i.target
    left join node l on l.path = i.leaf
  )
  select
    i.source, i.event, row_number() over (partition by i.source, i.event order by i.depth desc, i.position, i.resumed desc, i.leaf collate "C"),
    i.leaf, i.value -> 'guard', i.at || '/guard', i.target is null, i.kept,
    case when i.value ? 'rearm' then i.declaring end,
    case when i.value ? 'resume' then i.target end, i.resumed_state, i.value -> 'resume' is not distinct from '"timers"', a.stages,
    i.payload_schema, left(i.value ->> 'description', 1000)
  from kept i
  cross join lateral (
    select jsonb_agg(x.assign order by x.place) as stages
    from (
      -- States that are left, the transition itself, states that are entered, in this order. What goes with initial
      -- comes between its state and the state that it leads to.
      select -2 * cardinality(n.lineage) as place, n.exit as assign
      from node n
      where n.path = any (i.lineage[i.kept + 1:])
      union all
      select case i.event when ':initial' then 1 else 0 end, i.assign
      union all
      select 2 * cardinality(n.lineage), n.entry
      from node n
      where n.path = any (i.leaf_lineage[i.kept + 1:])
      union all
      select 2 * cardinality(n.lineage) + 1, n.first
      from node n
      where n.path = any (i.leaf_lineage[greatest(i.kept + 1, cardinality(i.target_lineage)):]) and not i.resumed
    ) x
    where x.assign is not null
  ) a
  where i.event <> ':initial' or a.stages is not null
$$;

-- search_fault says what is wrong with the search attributes of a definition, or null.
create function pawl_private.search_fault(p_search jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_search) <> 'object' then 'search must be an object'
    when (select count(*) from jsonb_object_keys(p_search)) > 20 then 'search must have at most 20 attributes'
    else (
      select format('search.%s must have a name of letters, digits and underscores, a path of members of the context, and no type but text, number, time or boolean', a.key)
      from jsonb_each(p_search) a
      where a.key !~ '^[A-Za-z_][A-Za-z0-9_]{0,62}$'
        or coalesce(case jsonb_typeof(a.value) when 'string' then a.value #>> '{}' else a.value ->> 'path' end, '')
          !~ '^\$\.context(\.[A-Za-z_][A-Za-z0-9_]*)+$'
        or octet_length(a.value::text) > 400
        or coalesce(a.value ->> 'type', 'text') not in ('text', 'number', 'time', 'boolean')
      order by a.key
      limit 1
    )
  end
$$;

-- compiled_search is what pawl.workflow.search holds.
create function pawl_private.compiled_search(p_search jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(a.key, jsonb_strip_nulls(jsonb_build_object(
    'path', string_to_array(substr(coalesce(a.value ->> 'path', a.value #>> '{}'), length('$.context.') + 1), '.'),
    'type', a.value ->> 'type')))
  from jsonb_each(p_search) a
$$;

-- healing_fault says what is wrong with what a state does about stuck instances, or null.
-- p_state: the state; p_around: it and the states around it
create function pawl_private.healing_fault(p_state jsonb, p_around jsonb[]) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(h.value) <> 'object' then 'must be an object'
    when h.value - '{event,reconcile,retry,max}'::text[] <> '{}'
      or (h.value ? 'event')::integer + (h.value ? 'reconcile')::integer + (h.value ? 'retry')::integer <> 1
      then 'must have one of event, reconcile and retry, and nothing else but max'
    when jsonb_typeof(h.value -> h.act) <> 'string' then h.act || ' must be a name'
    when h.value ? 'max' and (jsonb_typeof(h.value -> 'max') <> 'number' or h.value ->> 'max' !~ '^([1-9][0-9]?|100)$')
      then 'max must be a whole number from 1 to 100'
    when h.act <> 'event' and not coalesce(p_state -> 'invoke', '{}') ? h.name then format('%s names no task of the state', h.act)
    when h.act = 'reconcile' and not p_state -> 'invoke' -> h.name ? 'reconcile' then format('the task %s has no reconcile', h.name)
    when h.act = 'event' and (h.name ~ '[:*]' or not exists (
      select
      from unnest(p_around) a
      cross join lateral jsonb_object_keys(coalesce(a -> 'on', '{}')) k
      where k = h.name or k like '%*' and starts_with(h.name, left(k, -1))
    )) then format('event must be one that the state accepts, and %s is not', h.name)
    when h.act = 'event' and exists (select from unnest(p_around) a where a -> 'protected' = 'true')
      then 'event is never fired in a protected state'
  end
  from (
    select
      o.value, o.act, o.value ->> o.act as name
    from (
      select
        p_state -> 'on_stuck' as value,
        case when p_state -> 'on_stuck' ? 'event' then 'event' when p_state -> 'on_stuck' ? 'reconcile' then 'reconcile' else 'retry' end as act
    ) o
  ) h
$$;

-- definition_fault says why a definition is not in canonical form, or why the engine could not
-- run it. Guards, assigns, durations and names are checked later, by the casts and constraints
-- of the tables that they are stored in.
-- Returns: one fault, or null
create function pawl_private.definition_fault(p_definition jsonb) returns text
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
        select * from pawl_private.definition_states(p_definition)
      )
      select case
        when (select count(*) from node) > g.state_limit
          then format('there are more than %s states', g.state_limit)
        when not exists (select from node n where n.path = pawl_private.initial_of(p_definition)) then 'initial must name a state'
        when not exists (select from node n where n.value ->> 'type' = 'final' and cardinality(n.lineage) = 1) then 'no state at the top is final'
        when p_definition ->> 'business_key' not in ('unique', 'reusable') then 'business_key must be unique or reusable'
        when p_definition ? 'ttl' and not exists (
          select from node n where n.path = p_definition #>> '{ttl,target}' and n.value ->> 'type' = 'final' and cardinality(n.lineage) = 1
        ) then 'ttl.target must name a final state at the top'
        when pawl_private.search_fault(p_definition -> 'search') is not null then pawl_private.search_fault(p_definition -> 'search')
        when p_definition ? 'cancel' and not exists (select from node n where n.path = p_definition ->> 'cancel')
          then 'cancel must name a state'
        else coalesce(
          (
            select case
              when jsonb_typeof(n.value) <> 'object' then format('%s must be an object', n.path)
              when n.leaf is null then format('initial of %s must name a state within it', n.path)
              when n.value ->> 'type' = 'final' and not n.atomic
                then format('%s is final, so that it must not have states within', n.path)
              when n.value ->> 'type' = 'final' and cardinality(n.lineage) > 1 and not exists (
                select from node o where o.path = n.lineage[cardinality(n.lineage) - 1] and o.value ? 'done'
              ) then format('%s is final within a state that has no done', n.path)
              when n.value ->> 'type' = 'final' and n.value ?| array['on', 'always', 'after', 'every', 'done']
                then format('%s is final, so that it has no transitions', n.path)
              when n.value ? 'invoke' and (jsonb_typeof(n.value -> 'invoke') <> 'object' or n.value -> 'invoke' = '{}')
                then format('invoke of %s must be an object with at least one task', n.path)
              when n.value ? 'compensate' and (n.value #>> '{compensate,on_failure}') is distinct from 'stop'
                and (n.value #>> '{compensate,on_failure}') is distinct from 'continue'
                then format('compensate of %s must have on_failure, stop or continue', n.path)
              when n.value ?| array['invoke', 'compensate'] and (not n.atomic or n.value ->> 'type' = 'final')
                then format('%s must have no states within and not be final to start tasks or to undo steps', n.path)
              when n.value ?& array['invoke', 'compensate'] then format('%s undoes steps, so that it starts no tasks', n.path)
              when n.value ? 'compensate' and not n.value ?& array['done', 'error']
                then format('%s undoes steps, so that it needs done and error', n.path)
              when jsonb_typeof(n.value -> 'protected') <> 'boolean' then format('protected of %s must be true or false', n.path)
              when n.value ? 'stuck_after' and (not n.atomic or n.value ->> 'type' = 'final')
                then format('%s must have no states within and not be final to have stuck_after', n.path)
              when n.value ? 'on_stuck' and (not n.atomic or n.value ->> 'type' = 'final')
                then format('%s must have no states within and not be final to have on_stuck', n.path)
              when n.value ? 'on_stuck' then
                'on_stuck of ' || n.path || ': '
                  || pawl_private.healing_fault(n.value, array(select a.value from node a where a.path = any (n.lineage)))
            end as fault
            from node n
            order by fault nulls last
            limit 1
          ),
          (
            select case
              when jsonb_typeof(e.value) <> 'array'
                then 'each event and timeout, always, and each outcome of a task must have an array of transitions: this is not the canonical form'
              when e.own and (e.key like '%:%' or e.key in ('ttl', 'done')) then 'ttl, done and events with a colon are the engine''s own'
              else (
                select case
                  when not t.value ? 'target' then case
                    when not e.own and e.key in ('always', 'done', 'error', 'unknown') then format('%s must have a target', e.key)
                    when t.value ? 'resume' or t.value ? 'internal' then 'resume and internal need a target'
                  end
                  when o.path is null then format('there is no state %s', t.value ->> 'target')
                  when t.value ? 'rearm' then 'rearm is for transitions without a target'
                  when t.value ? 'internal' and not (e.path = any (o.lineage) and o.path <> e.path)
                    then format('%s is not within %s, so that no internal transition leads there', o.path, e.path)
                  when t.value ? 'resume' and (o.atomic or o.path = any (e.lineage))
                    then format('%s cannot be resumed from %s', o.path, e.path)
                end
                from jsonb_array_elements(e.value) t
                left join node o on o.path = t.value ->> 'target'
                order by 1 nulls last
                limit 1
              )
            end as fault
            from node n
            cross join lateral (
              select o.key, o.value, true as own from jsonb_each(coalesce(n.value -> 'on', '{}')) o
              union all
              select a.key, a.value, false
              from jsonb_each(case when jsonb_typeof(n.value -> 'after') = 'object' then n.value -> 'after' end) a
              union all
              select m.name, n.value -> m.name, false
              from unnest(array['always', 'done', 'after', 'every', 'error']) as m (name)
              where n.value ? m.name and (m.name <> 'after' or jsonb_typeof(n.value -> 'after') <> 'object')
              union all
              select m.name, coalesce(t.value -> m.name, 'null'), false
              from jsonb_each(case when jsonb_typeof(n.value -> 'invoke') = 'object' then n.value -> 'invoke' end) t
              cross join unnest(array['done', 'error', 'unknown']) as m (name)
            ) d
            cross join lateral (select d.key, d.value, d.own, n.path, n.lineage) e
            order by fault nulls last
            limit 1
          ),
          (
            select 'the states have more than 50000 transitions, with those that they inherit and those to each state that may be resumed'
            from (
              select n.transitions
              from node s
              join node n on n.path = any (s.lineage)
              where s.atomic
              union all
              select 1
              from node s
              join node n on n.path = any (s.lineage)
              cross join lateral jsonb_path_query(n.value, '$.on.*[*] ? (exists(@.resume))') t
              join node l on t ->> 'target' = any (l.lineage) and l.atomic
              where s.atomic
            ) c
            having sum(c.transitions) > 50000
          ))
      end
    )
  end
  from pawl.setting g
$$;

-- exact_duration reads a duration that is counted without a calendar.
-- Raises:  22023 with the pointer
create function pawl_private.exact_duration(p_text text, p_at text) returns interval
language plpgsql stable
as $$
declare
  v_duration interval := pawl_private.duration(p_text);
begin
  if v_duration is null and p_text is not null or v_duration <= interval '0' then
    perform pawl_private.fault(p_at, format('%s is no duration; write one like 90s, 15m or 24h, of at most ten years', p_text));
  elsif pawl_private.months_of(v_duration) <> 0 then
    perform pawl_private.fault(p_at, 'months and years have no fixed length; write days');
  end if;
  return v_duration;
end
$$;

-- path_nests says whether what a path selects may be nested as deep as the context or the payload themselves. It
-- is not if the path always goes on to a member of theirs. Then an assign cannot make the context deeper.
create function pawl_private.path_nests(p_path jsonpath) returns boolean
language sql immutable parallel safe
as $$
  -- Postgres writes a jsonpath as canonical text.
  select regexp_replace(t.text, '[$][.]"((context|payload)"[.]["*]|now"|instance")', '', 'g') ~ '[$]'
    or t.text ~ '[*][*]|keyvalue'
  from (select p_path::text as text) t
$$;

-- reads_more says whether guards or assigns may read more than the context and the payload; p_actor: whether they
-- may read the actor. p_text: paths as PostgreSQL writes them, alone or within JSON texts.
create function pawl_private.reads_more(p_text text, p_actor boolean) returns boolean
language sql immutable parallel safe
as $$
  -- Removed are the pointers of operations, which end with $ and a name, and the members that are not asked for. What
  -- is left has a $ only if it reads something else.
  select regexp_replace(
    regexp_replace(p_text, '/[$][a-z]+', '', 'g'),
    case
      when p_actor then E'[$]([.]\\\\?"(context|payload|instance|now|event)\\\\?"|\\\\?")'
      else E'[$]([.]\\\\?"(context|payload)\\\\?"|\\\\?")'
    end,
    '', 'g') like '%$%'
$$;

-- schema_references lists the schemas of the deployment that a JSON Schema refers to: what each member $ref has in
-- front of its fragment, if that begins with 'pawl:'. In the text of a jsonb value a quote within a string has a
-- backslash.
create function pawl_private.schema_references(p_schema jsonb) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array(select distinct m[1] from regexp_matches(p_schema::text, '"[$]ref": "(pawl:[^"#]*)', 'g') m)
$$;

-- bundle returns a schema with copies of the schemas of the deployment that it refers to, and of those that these refer
-- to, under $defs. $id gives each the name that references have; without $schema it is of the latest draft, whatever
-- the schema around it is of. Package fsm/definition does the same.
-- p_schemas: by their names, the member schemas of a definition
-- Returns: the schema itself if p_schemas is null, or if it refers to none of them
create function pawl_private.bundle(p_schema jsonb, p_schemas jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_defs jsonb;
begin
  if p_schemas is null or p_schema is null then
    return p_schema;
  end if;
  with recursive reached (reference) as (
    select unnest(pawl_private.schema_references(p_schema))
    union
    select unnest(pawl_private.schema_references(p_schemas -> r.reference)) from reached r
  )
  select
    jsonb_object_agg(
      r.reference,
      jsonb_build_object('$schema', 'https://json-schema.org/draft/2020-12/schema') || (p_schemas -> r.reference)
        || jsonb_build_object('$id', r.reference))
  into v_defs
  from reached r
  where jsonb_typeof(p_schemas -> r.reference) = 'object';
  return p_schema || coalesce(jsonb_build_object('$defs', coalesce(p_schema -> '$defs', '{}') || v_defs), '{}');
end
$$;

-- store_definition stores a definition in canonical form, flattened, as a version of a workflow.
-- Raises:  22023 with the pointer; what the parser of paths and the tables' constraints raise
-- Writes:  workflow, workflow_state, workflow_transition
create function pawl_private.store_definition(p_name text, p_version integer, p_definition jsonb, p_actor text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb := pawl_private.bundle(p_definition -> 'context_schema', p_definition -> 'schemas');
  v_default jsonb := nullif(p_definition -> 'context_default', '{}');
  v_zone text := coalesce(p_definition ->> 'timezone', 'UTC');
  v_resumed text[];
  v_kept text[];
  v_reading text[];
  v_reads_actor boolean;
  v_eventless text[];
begin
  perform pawl.now() at time zone v_zone; -- Raises if there is no such zone.
  v_schema := case when v_default is null then v_schema - 'x-context-default' else v_schema || jsonb_build_object('x-context-default', v_default) end;
  insert into pawl.workflow (
    name, version, definition, checksum, initial, initial_moves, ttl, ttl_target, retention,
    business_key_reusable, context_schema, context_schema_checksum, context_default, search, created_at, created_by)
  select
    p_name, p_version, p_definition, encode(sha256(convert_to(p_definition::text, 'UTF8')), 'hex'),
    n.leaf, false, pawl_private.exact_duration(p_definition #>> '{ttl,after}', '/ttl/after'), p_definition #>> '{ttl,target}',
    pawl_private.exact_duration(p_definition ->> 'retention', '/retention'),
    p_definition ->> 'business_key' is not distinct from 'reusable',
    v_schema, encode(sha256(convert_to(v_schema::text, 'UTF8')), 'hex'), v_default, pawl_private.compiled_search(p_definition -> 'search'), pawl.now(), p_actor
  from pawl_private.definition_states(p_definition) n
  where n.path = pawl_private.initial_of(p_definition);

  -- The states that transitions resume, and those whose timers go on then.
  select
    array_agg(distinct t ->> 'target'), array_agg(distinct t ->> 'target') filter (where t -> 'resume' = '"timers"')
  into v_resumed, v_kept
  from pawl_private.definition_states(p_definition) n
  cross join lateral (
    select jsonb_path_query(n.value, 'strict $.on.*[*]', '{}', true) as t
    union all
    select jsonb_array_elements(v.list)
    from (
      select n.value -> m.name as list from unnest(array['always', 'done', 'after']) as m (name)
      union all
      select a.value from jsonb_each(case when jsonb_typeof(n.value -> 'after') = 'object' then n.value -> 'after' end) a
    ) v
    where jsonb_typeof(v.list) = 'array'
  ) d
  where t ? 'resume';

  with node as materialized (
    select n.*, n.value ->> 'type' is not distinct from 'final' as final
    from pawl_private.definition_states(p_definition) n
  ),
  -- The timers that each state declares.
  timer as materialized (
    select
      v.path, cardinality(v.lineage) as depth, d.slot, min(d.place) as place, (array_agg(d.timer order by d.place))[1] - 'static' as timer,
      bool_and((d.timer -> 'static')::boolean) as static,
      pawl_private.duration((array_agg(d.timer #>> '{in,constant}'))[1]) as duration
    from node v
    cross join lateral (
      select t.*, row_number() over () as place from pawl_private.definition_timers(v.value, v.at) t
    ) d
    group by v.path, v.lineage, d.slot
  ),
  invariant as materialized (
    select
      v.path, v.depth,
      jsonb_build_object(
        'text', pawl_private.guard_text(v.invariant),
        'guard', pawl_private.compiled_guard(v.invariant, v.at || '/invariant')) as invariant
    from (
      select null as path, 0 as depth, '' as at, p_definition -> 'invariant' as invariant
      union all
      select n.path, cardinality(n.lineage), n.at, n.value -> 'invariant'
      from node n
    ) v
    where v.invariant is not null
  )
  insert into pawl.workflow_state (
    workflow, workflow_version, state, status, lineage, events, patterns, timeouts, timeout_events, timers, eventless, done,
    remembered, invariants, protected, stuck_after, on_stuck, tasks, undoing, ttl_slides, require_if_match)
  select
    p_name, p_version, s.path,
    case when s.final and cardinality(s.lineage) = 1 then coalesce(s.value ->> 'outcome', 'completed') else 'active' end,
    s.lineage, e.events,
    (select array_agg(p order by length(p) desc, p collate "C") from unnest(e.events) p where p like '%*'),
    case when t.armed then '{}' else t.timeouts end, case when t.armed then '{}' else t.timeout_events end,
    case when t.armed then t.timers end,
    s.final and cardinality(s.lineage) > 1, s.final and cardinality(s.lineage) > 1,
    (select array_agg(r order by length(r)) from unnest(s.lineage[:cardinality(s.lineage) - 1]) r where r = any (v_resumed)),
    (
      select jsonb_agg(i.invariant order by i.depth)
      from invariant i
      where i.path is null or i.path = any (s.lineage)
    ),
    exists (select from node n where n.path = any (s.lineage) and n.value -> 'protected' = 'true'),
    pawl_private.exact_duration(s.value ->> 'stuck_after', s.at || '/stuck_after'),
    case when s.value ? 'on_stuck' then '{"max": 3}' || (s.value -> 'on_stuck') end,
    s.value ?| array['invoke', 'compensate'],
    s.value #>> '{compensate,on_failure}',
    coalesce((p_definition #>> '{ttl,sliding}')::boolean, false),
    coalesce((p_definition ->> 'require_if_match')::boolean, false)
  from node s
  cross join lateral (
    select array(
      select distinct k collate "C"
      from node n
      cross join lateral jsonb_object_keys(coalesce(n.value -> 'on', '{}')) k
      where n.path = any (s.lineage) and not s.final
      order by k collate "C") as events
  ) e
  cross join lateral (
    select
      -- Static timers: see the module's comment.
      coalesce(bool_or(not d.static or d.path <> s.path), false) or coalesce(s.lineage && v_kept, false)
        or exists (select from node n where n.path = any (s.lineage) and jsonb_path_exists(n.value, '$.on.*[*].rearm')) as armed,
      coalesce(array_agg(d.duration order by d.duration), '{}') as timeouts,
      coalesce(array_agg(d.slot order by d.duration), '{}') as timeout_events,
      jsonb_agg(
        d.timer || jsonb_build_object(
          'slot', d.slot || case when d.path = s.path then '' else '@' || d.path end, 'owner', d.path, 'zone', v_zone)
        order by d.depth desc, d.place
      ) as timers
    from timer d
    where d.path = any (s.lineage) and not s.final
  ) t
  where s.atomic;

  perform pawl_private.check_task(t.value, t.name, t.at, t.state is null)
  from pawl_private.definition_tasks(p_definition) t;
  with flat as materialized (
    select * from pawl_private.definition_transitions(p_definition)
  ),
  task as materialized (
    select * from pawl_private.definition_tasks(p_definition)
  ),
  -- Each guard once, in however many states it is.
  guarded as materialized (
    select
      g.guard_at,
      case when jsonb_typeof(g.guard) = 'string' then pawl_private.guard_path(g.guard #>> '{}', g.guard_at) end as guard,
      case when jsonb_typeof(g.guard) <> 'string' then pawl_private.compiled_guard(g.guard, g.guard_at) end as compiled,
      pawl_private.guard_text(g.guard) as text
    from (select distinct f.guard_at, f.guard from flat f where f.guard is not null) g
  )
  insert into pawl.workflow_transition (
    workflow, workflow_version, source, event, position, target, guard, guard_compiled, guard_text, internal, kept, rearms, resumes,
    resumed_state, resumes_timers, compensation, assign_names, assign_paths, assign_compiled, assign_payload, assign_nests, payload_schema,
    payload_schema_checksum, description)
  select
    p_name, p_version, t.source, t.event, t.position, t.target,
    g.guard, g.compiled, g.text, t.internal, t.kept, t.rearms, t.resumes, t.resumed_state, t.resumes_timers, k.position, a.names, a.paths,
    case when a.names = '{}' and not a.payload then t.stages end, a.payload,
    t.stages is not null and not a.payload and (
      a.names = '{}' or exists (select from unnest(a.paths) as p (path) where pawl_private.path_nests(p.path))),
    b.payload_schema, encode(sha256(convert_to(b.payload_schema::text, 'UTF8')), 'hex'), t.description
  from flat t
  left join task k on k.state is null and k.at = left(t.guard_at, -length('/guard')) || '/compensate'
  left join guarded g on g.guard_at = t.guard_at and t.guard is not null
  cross join lateral (select pawl_private.bundle(t.payload_schema, p_definition -> 'schemas') as payload_schema) b
  cross join lateral (
    select
      coalesce(array_agg(p.value #>> '{1,0}' order by p.place) filter (where p.plain), '{}') as names,
      coalesce(
        array_agg(
          (case when p.value #>> '{2,0}' = 'path' then p.value #>> '{2,2}' else (p.value #> '{2,2}')::text end)::jsonpath
          order by p.place) filter (where p.plain),
        '{}') as paths,
      coalesce(t.stages = '[[["payload", null]]]', false) as payload
    from (
      select x.value, x.place, true as plain
      from jsonb_array_elements(t.stages -> 0) with ordinality as x (value, place)
      where jsonb_array_length(t.stages) = 1 and pawl_private.is_plain(t.stages -> 0)
    ) p
  ) a;

  with task as materialized (
    select * from pawl_private.definition_tasks(p_definition)
  )
  insert into pawl.workflow_task (workflow, workflow_version, position, state, name, connection, topic, deadline, compensation, spec)
  select
    p_name, p_version, t.position, t.state, t.name, t.value #>> '{http,connection}', t.value #>> '{work,topic}',
    pawl_private.exact_duration(t.value ->> 'deadline', t.at || '/deadline'), c.position, pawl_private.compiled_task(t.value, t.at, t.state is null)
  from task t
  left join task c on c.state is null and c.at = t.at || '/compensate';

  select
    array_agg(distinct t.source) filter (where pawl_private.reads_more(t.text, false)),
    bool_or(pawl_private.reads_more(t.text, true)),
    array_agg(distinct t.source) filter (where t.event in (':always', ':done'))
  into v_reading, v_reads_actor, v_eventless
  from (
    select
      t.source, t.event,
      concat(t.assign_paths::text, ' ', t.assign_compiled::text, ' ', t.guard::text, ' ', t.guard_compiled::text) as text
    from pawl.workflow_transition t
    where t.workflow = p_name and t.workflow_version = p_version
    offset 0
  ) t;
  v_reads_actor := coalesce(v_reads_actor, false) or exists (
    select from pawl.workflow_state s
    where s.workflow = p_name and s.workflow_version = p_version and pawl_private.reads_more(s.timers::text, true)
    union all
    select from pawl.workflow_task t
    where t.workflow = p_name and t.workflow_version = p_version and pawl_private.reads_more(t.spec::text, true));

  update pawl.workflow_state s
  set
    reads_instance = coalesce(s.state = any (v_reading), false),
    reads_actor = v_reads_actor,
    strands = s.status = 'active' and not s.done and s.events = '{}' and s.timeouts = '{}' and s.timers is null
      and not p_definition ? 'ttl',
    eventless = coalesce(s.state = any (v_eventless), false)
  where s.workflow = p_name and s.workflow_version = p_version;

  update pawl.workflow w
  set initial_moves = exists (
    select from pawl.workflow_transition t
    where t.workflow = w.name and t.workflow_version = w.version and t.source = w.initial
      and t.event in (':always', ':done', ':initial')
    union all
    select from pawl.workflow_state s
    where s.workflow = w.name and s.workflow_version = w.version and s.state = w.initial
      and (s.timers is not null or s.invariants is not null)
  )
  where w.name = p_name and w.version = p_version;
end
$$;
