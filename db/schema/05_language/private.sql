-- fault raises that a value or a guard of a definition is wrong, or cannot be carried out for an instance.
-- p_at: its JSON Pointer in the definition
-- Raises:  22023 with the pointer in front of the message, and as its column
create function pawl_private.fault(p_at text, p_message text) returns void
language plpgsql stable
as $$
begin
  raise exception '%: %', p_at, p_message using errcode = '22023', column = p_at;
end
$$;

-- below extends a JSON Pointer by a name.
create function pawl_private.below(p_at text, p_name text) returns text
language sql immutable parallel safe
as $$ select p_at || '/' || replace(replace(p_name, '~', '~0'), '/', '~1') $$;

-- initial_of names the state that a definition, or a compound state of it, begins in.
create function pawl_private.initial_of(p_value jsonb) returns text
language sql immutable parallel safe
as $$ select coalesce(p_value #>> '{initial,target}', p_value ->> 'initial') $$;

-- duration reads a duration such as 90s, 1h30m, 1y2mo or P3DT12H, which may have a sign. The result has no days,
-- whose length would depend on the time zone of the session: a day has 24 hours. Years and months stay months.
-- Returns: null if it is no duration, or is longer than 10 years, for which a month counts as a twelfth of 365 days
create function pawl_private.duration(p_text text) returns interval
language plpgsql stable parallel safe
as $$
declare
  v_sign integer := case when p_text like '-%' then -1 else 1 end;
  v_text text := ltrim(p_text, '+-');
  v_part text[];
  v_months numeric := 0;
  v_seconds numeric := 0;
begin
  if p_text ~ '^[+-]?PT?[0-9].*[^T]$' then
    v_part := regexp_match(
      v_text,
      '^P(?:([0-9]{1,9})Y)?(?:([0-9]{1,9})M)?(?:([0-9]{1,9})W)?(?:([0-9]{1,9})D)?'
        || '(?:T(?:([0-9]{1,9})H)?(?:([0-9]{1,9})M)?(?:([0-9]{1,12}(?:[.][0-9]{1,6})?)S)?)?$');
    if v_part is null then
      return null;
    end if;
    v_months := coalesce(v_part[1], '0')::numeric * 12 + coalesce(v_part[2], '0')::numeric;
    v_seconds := coalesce(v_part[3], '0')::numeric * 604800 + coalesce(v_part[4], '0')::numeric * 86400
      + coalesce(v_part[5], '0')::numeric * 3600 + coalesce(v_part[6], '0')::numeric * 60 + coalesce(v_part[7], '0')::numeric;
  elsif p_text ~ '^[+-]?([0-9]{1,12}(ms|mo|y|w|d|h|m|s))+$' then
    for v_part in select regexp_matches(v_text, '([0-9]+)(ms|mo|y|w|d|h|m|s)', 'g') loop
      if v_part[2] in ('mo', 'y') then
        v_months := v_months + v_part[1]::numeric * case v_part[2] when 'y' then 12 else 1 end;
      else
        v_seconds := v_seconds + v_part[1]::numeric * case v_part[2]
          when 'w' then 604800 when 'd' then 86400 when 'h' then 3600 when 'm' then 60 when 's' then 1 else 0.001
        end;
      end if;
    end loop;
  else
    return null;
  end if;
  if v_months * 2628000 + v_seconds > 315360000 then
    return null;
  end if;
  return make_interval(months => (v_sign * v_months)::integer, secs => (v_sign * v_seconds)::double precision);
end
$$;

-- months_of and seconds_of are the two parts of a duration: that which needs a calendar, and the rest.
create function pawl_private.months_of(p_duration interval) returns integer
language sql immutable parallel safe
as $$ select (extract(year from p_duration) * 12 + extract(month from p_duration))::integer $$;

create function pawl_private.seconds_of(p_duration interval) returns numeric
language sql immutable parallel safe
as $$ select extract(epoch from p_duration - make_interval(months => pawl_private.months_of(p_duration))) $$;

-- plain_duration writes a duration without months for people: 24h, 90m or 1.5s.
create function pawl_private.plain_duration(p_duration interval) returns text
language sql immutable parallel safe
as $$
  select case
    when d.seconds % 3600 = 0 then trim_scale(d.seconds / 3600) || 'h'
    when d.seconds % 60 = 0 then trim_scale(d.seconds / 60) || 'm'
    else trim_scale(d.seconds) || 's'
  end
  from (select extract(epoch from p_duration) as seconds) d
$$;

-- moved moves a time by a duration. Months are counted by the calendar of a time zone: January 31 and a month is the
-- last day of February.
create function pawl_private.moved(p_at timestamptz, p_duration interval, p_zone text) returns timestamptz
language plpgsql stable parallel safe
as $$
declare
  v_months integer := pawl_private.months_of(p_duration);
begin
  if v_months <> 0 then
    p_at := (p_at at time zone p_zone + make_interval(months => v_months)) at time zone p_zone;
  end if;
  return p_at + make_interval(secs => pawl_private.seconds_of(p_duration)::double precision);
end
$$;

-- time_of reads a time that a value made: RFC 3339, with an offset.
-- Raises:  22023 with the pointer if it is none
create function pawl_private.time_of(p_value jsonb, p_at text) returns timestamptz
language plpgsql stable parallel safe
as $$
declare
  v_result timestamptz;
begin
  if jsonb_typeof(p_value) <> 'string'
    or p_value #>> '{}' !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$' then
    perform pawl_private.fault(p_at, format('%s is no time; write one as RFC 3339 does, with an offset', left(p_value::text, 100)));
  end if;
  v_result := (p_value #>> '{}')::timestamptz;
  -- The offset may lead out of the years that RFC 3339 can write.
  if extract(year from v_result at time zone 'UTC') not between 1 and 9999 then
    raise datetime_field_overflow;
  end if;
  return v_result;
exception when datetime_field_overflow or invalid_datetime_format or invalid_time_zone_displacement_value then
  perform pawl_private.fault(p_at, format('%s is no time that there is', left(p_value::text, 100)));
end
$$;

-- strict puts the mode in front of a path that says none.
create function pawl_private.strict(p_path text) returns text
language sql immutable parallel safe
as $$ select case when p_path ~ '^[[:space:]]*(lax|strict)[[:space:]]' then p_path else 'strict ' || p_path end $$;

-- is_path says whether a string in a value is a path.
create function pawl_private.is_path(p_text text) returns boolean
language sql immutable parallel safe
as $$ select left(p_text, 1) = '$' and substr(p_text, 2, 1) <> '$' or p_text ~ '^(lax|strict)[[:space:]]+[$]' $$;

-- compiled_path compiles a path. A plain path has only members and subscripts: it selects one item, or nothing.
-- Returns: ["path", pointer, path] or ["computed", pointer, path]
-- Raises:  42601 and others if it is no path
create function pawl_private.compiled_path(p_path jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_text text;
begin
  if jsonb_typeof(p_path) = 'object' and p_path ? '$path' then
    p_path := p_path -> '$path';
    p_at := p_at || '/$path';
  end if;
  if jsonb_typeof(p_path) is distinct from 'string' then
    perform pawl_private.fault(p_at, 'must be a SQL/JSON path');
  end if;
  -- Postgres writes a jsonpath as canonical text.
  v_text := pawl_private.strict(p_path #>> '{}')::jsonpath::text;
  if regexp_replace(v_text, '^strict ', '') = '$' then
    perform pawl_private.fault(p_at, '$ alone is all that a path reads; name a member, such as $.context');
  end if;
  return jsonb_build_array(
    case when v_text ~ E'^(strict )?[$]([.]"([^"\\\\]|\\\\.)*"|[[]([0-9]+|last)[]])*$' then 'path' else 'computed' end, p_at, v_text);
end
$$;

-- plain_prefix returns the plain path that a compiled path begins with. If that selects nothing, neither does the path.
-- Returns: null if it begins otherwise
create function pawl_private.plain_prefix(p_path text) returns text
language sql immutable parallel safe
as $$ select substring(p_path from E'^(?:strict )?[$](?:[.]"(?:[^"\\\\]|\\\\.)*"|[[][0-9]+[]])*') $$;

-- compiled_list compiles the operands of an operation.
create function pawl_private.compiled_list(p_values jsonb, p_at text, p_least integer, p_most integer) returns jsonb
language plpgsql stable
as $$
begin
  if jsonb_typeof(p_values) is distinct from 'array' or jsonb_array_length(p_values) not between p_least and p_most then
    perform pawl_private.fault(p_at, case
      when p_least = p_most then format('must be an array of %s values', p_least)
      when p_most >= 1000 then format('must be an array of at least %s values', p_least)
      else format('must be an array of %s to %s values', p_least, p_most)
    end);
  end if;
  return coalesce(
    (
      select jsonb_agg(pawl_private.compiled_value(e.value, p_at || '/' || e.place - 1) order by e.place)
      from jsonb_array_elements(p_values) with ordinality as e (value, place)
    ),
    '[]');
end
$$;

-- compiled_value checks and compiles a value.
-- p_may_unset: whether {"$unset": true} may stand here
-- Returns: a JSON array: the operation's name without "$", the pointer, the operands. A constant is
--          ["literal", pointer, constant]
-- Raises:  22023 with the pointer; what the parser of paths raises
create function pawl_private.compiled_value(p_value jsonb, p_at text, p_may_unset boolean default false) returns jsonb
language plpgsql stable
as $$
declare
  v_text text := p_value #>> '{}';
  v_operation text;
  v_operand jsonb;
  v_names text[];
  v_list jsonb := '[]';
  v_compiled jsonb;
begin
  if jsonb_typeof(p_value) = 'string' then
    if left(v_text, 2) = '$' || '$' then
      return jsonb_build_array('literal', p_at, substr(v_text, 2));
    elsif pawl_private.is_path(v_text) then
      return pawl_private.compiled_path(p_value, p_at);
    end if;
    return jsonb_build_array('literal', p_at, p_value);
  elsif jsonb_typeof(p_value) = 'array' then
    v_list := pawl_private.compiled_list(p_value, p_at, 0, 1000000);
    if not exists (select from jsonb_array_elements(v_list) e where e ->> 0 <> 'literal') then
      return jsonb_build_array('literal', p_at, (select coalesce(jsonb_agg(e -> 2), '[]') from jsonb_array_elements(v_list) e));
    end if;
    return jsonb_build_array('array', p_at) || v_list;
  elsif jsonb_typeof(p_value) is distinct from 'object' then
    return jsonb_build_array('literal', p_at, p_value);
  end if;

  v_names := array(select k from jsonb_object_keys(p_value) k order by k collate "C");
  if not exists (select from unnest(v_names) n where n like '$%') then
    v_compiled := coalesce(
      (
        select jsonb_object_agg(n.name, pawl_private.compiled_value(p_value -> n.name, pawl_private.below(p_at, n.name)))
        from unnest(v_names) as n (name)
      ),
      '{}');
    if not exists (select from jsonb_each(v_compiled) e where e.value ->> 0 <> 'literal') then
      return jsonb_build_array(
        'literal', p_at, (select coalesce(jsonb_object_agg(e.key, e.value -> 2), '{}') from jsonb_each(v_compiled) e));
    end if;
    return jsonb_build_array('object', p_at, v_compiled);
  elsif cardinality(v_names) > 1 then
    perform pawl_private.fault(
      p_at, 'a member that begins with $ is an operation and stands alone; data with such a name is written with $literal');
  end if;
  v_operation := substr(v_names[1], 2);
  v_operand := p_value -> v_names[1];
  p_at := pawl_private.below(p_at, v_names[1]);
  case v_operation
    when 'path' then
      return pawl_private.compiled_path(v_operand, p_at);
    when 'all' then
      v_compiled := pawl_private.compiled_path(v_operand, p_at);
      return jsonb_build_array('all', p_at, v_compiled -> 2, pawl_private.plain_prefix(v_compiled ->> 2));
    when 'literal' then
      return jsonb_build_array('literal', p_at, v_operand);
    when 'unset' then
      if v_operand is distinct from 'true' then
        perform pawl_private.fault(p_at, 'must be true');
      elsif not p_may_unset then
        perform pawl_private.fault(p_at, 'stands only for the whole value of a name in assign, or for a branch of its $if');
      end if;
      return jsonb_build_array('unset', p_at);
    when 'if' then
      if jsonb_typeof(v_operand) is distinct from 'array' or jsonb_array_length(v_operand) <> 3 then
        perform pawl_private.fault(p_at, 'must be an array of a guard and two values');
      end if;
      return jsonb_build_array(
        'if', p_at, pawl_private.compiled_guard(v_operand -> 0, p_at || '/0'),
        pawl_private.compiled_value(v_operand -> 1, p_at || '/1', p_may_unset),
        pawl_private.compiled_value(v_operand -> 2, p_at || '/2', p_may_unset));
    when 'set' then
      if jsonb_typeof(v_operand) is distinct from 'array' or jsonb_array_length(v_operand) <> 3 then
        perform pawl_private.fault(p_at, 'must be an array of an object, an array of names, and a value');
      end if;
      return jsonb_build_array(
        'set', p_at, pawl_private.compiled_value(v_operand -> 0, p_at || '/0'),
        pawl_private.compiled_list(v_operand -> 1, p_at || '/1', 1, 64),
        pawl_private.compiled_value(v_operand -> 2, p_at || '/2'));
    when 'first', 'concat', 'merge' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 1, 1000000);
    when 'append', 'union', 'without' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 1000000);
    when 'duration' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 2);
    when 'time' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 3);
    else
      perform pawl_private.fault(
        p_at, 'is no operation; there are $path, $all, $first, $if, $append, $union, $without, $merge, $set, $concat, $time, '
        || '$duration, $unset and $literal, and data with such a name is written with $literal');
  end case;
end
$$;

-- guard_path reads the path of a guard. One that is no predicate and may select several items is compared with true, so that
-- it does not only look at the first of them.
-- Raises:  42601 and others if it is no path
create function pawl_private.guard_path(p_text text, p_at text) returns jsonpath
language plpgsql stable
as $$
declare
  v_text text := ltrim(pawl_private.strict(p_text));
  v_mode integer := position(' ' in v_text);
begin
  if pawl_private.compiled_path(to_jsonb(v_text), p_at) ->> 0 = 'path' then
    return v_text::jsonpath; -- It selects one item at most.
  end if;
  return (left(v_text, v_mode) || '(' || substr(v_text, v_mode + 1) || ') == true')::jsonpath;
exception when syntax_error then
  return v_text::jsonpath; -- A predicate cannot be compared.
end
$$;

-- compiled_guard checks and compiles a guard.
-- Returns: a JSON array: the operator, the pointer, the operands; of a path ["path", pointer, path]. The operands of
--          present and absent are the path and, unless it is plain, its plain_prefix
-- Raises:  as compiled_value
create function pawl_private.compiled_guard(p_guard jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_operator text;
  v_operand jsonb;
  v_compiled jsonb;
begin
  if jsonb_typeof(p_guard) = 'string' then
    return jsonb_build_array('path', p_at, pawl_private.guard_path(p_guard #>> '{}', p_at)::text);
  elsif jsonb_typeof(p_guard) is distinct from 'object' or (select count(*) from jsonb_object_keys(p_guard)) <> 1 then
    perform pawl_private.fault(p_at, 'must be a path, or an object with one of all, any, not, present, absent, equal, in, before and after');
  end if;
  select e.key, e.value into v_operator, v_operand from jsonb_each(p_guard) e;
  p_at := pawl_private.below(p_at, v_operator);
  case v_operator
    when 'all', 'any' then
      if jsonb_typeof(v_operand) is distinct from 'array' or v_operand = '[]' then
        perform pawl_private.fault(p_at, 'must be an array of at least one guard');
      end if;
      return jsonb_build_array(v_operator, p_at) || (
        select jsonb_agg(pawl_private.compiled_guard(e.value, p_at || '/' || e.place - 1) order by e.place)
        from jsonb_array_elements(v_operand) with ordinality as e (value, place));
    when 'not' then
      return jsonb_build_array(v_operator, p_at, pawl_private.compiled_guard(v_operand, p_at));
    when 'present', 'absent' then
      v_compiled := pawl_private.compiled_path(v_operand, p_at);
      return jsonb_build_array(v_operator, p_at, v_compiled -> 2)
        || case
          when v_compiled ->> 0 = 'path' then '[]'
          else jsonb_build_array(pawl_private.plain_prefix(v_compiled ->> 2))
        end;
    when 'equal', 'in', 'before', 'after' then
      return jsonb_build_array(v_operator, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 2);
    else
      perform pawl_private.fault(p_at, 'is no guard; there are all, any, not, present, absent, equal, in, before and after');
  end case;
end
$$;

-- compiled_assign checks and compiles the member assign of a transition, an entry, an exit or an initial.
-- Returns: a JSON array of ["payload", names or null] and ["set", path of names, value, pointer], in the order in which
--          they are carried out. Null if there is nothing to assign
-- Raises:  as compiled_value
create function pawl_private.compiled_assign(p_assign jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_list jsonb[] := '{}';
  v_name text;
  v_path text[];
  v_paths text[] := '{}';
  v_all boolean;
begin
  if p_assign is null or p_assign = '{}' then
    return null;
  elsif p_assign = '"*"' then
    return '[["payload", null]]';
  elsif jsonb_typeof(p_assign) <> 'object' then
    perform pawl_private.fault(p_at, 'must be "*", or an object from names to values');
  end if;
  v_all := coalesce(p_assign -> '*' = 'true', false);
  if v_all then
    v_list := array['["payload", null]'::jsonb];
  elsif p_assign ? '*' then
    if jsonb_typeof(p_assign -> '*') <> 'array'
      or exists (select from jsonb_array_elements(p_assign -> '*') n where jsonb_typeof(n) <> 'string') then
      perform pawl_private.fault(p_at || '/*', 'must be true, or an array of names of the payload');
    end if;
    v_list := array[jsonb_build_array('payload', p_assign -> '*')];
  end if;
  for v_name in select k from jsonb_object_keys(p_assign) k where k <> '*' order by k collate "C" loop
    continue when v_all and v_name = 'trusted' and p_assign -> v_name = 'true';
    v_path := string_to_array(v_name, '.');
    if '' = any (v_path) or v_name = '' then
      perform pawl_private.fault(pawl_private.below(p_at, v_name), 'a name, and each part of one with dots, must not be empty');
    elsif exists (
      select from generate_series(1, cardinality(v_path) - 1) n where array_to_string(v_path[:n], '.') = any (v_paths)
    ) then
      perform pawl_private.fault(pawl_private.below(p_at, v_name), 'is within another name of this assign, so that it is not clear which is set');
    end if;
    v_paths := v_paths || v_name;
    v_list := array_append(v_list, jsonb_build_array(
      'set', to_jsonb(v_path), pawl_private.compiled_value(p_assign -> v_name, pawl_private.below(p_at, v_name), true),
      pawl_private.below(p_at, v_name)));
  end loop;
  return to_jsonb(v_list);
end
$$;

-- is_plain says whether a compiled assign sets members of the context's top level to what plain paths select, or to
-- scalars. The engine evaluates such an assign in its own statement.
create function pawl_private.is_plain(p_assign jsonb) returns boolean
language sql immutable parallel safe
as $$
  select not exists (
    select
    from jsonb_array_elements(p_assign) a
    where a ->> 0 <> 'set' or jsonb_array_length(a -> 1) <> 1
      or a #>> '{2,0}' <> 'path'
      and not (a #>> '{2,0}' = 'literal' and jsonb_typeof(a #> '{2,2}') in ('string', 'number', 'boolean', 'null'))
  )
$$;

-- computed evaluates a path that may raise. p_all: whether to return all items, as an array; p_prefix: then, the
-- plain path that it begins with: if that selects nothing, there are no items. Null if it begins otherwise.
-- Raises:  22023 with the pointer
create function pawl_private.computed(p_document jsonb, p_path text, p_at text, p_all boolean, p_prefix text) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  if p_all then
    return jsonb_path_query_array(p_document, p_path::jsonpath);
  end if;
  return jsonb_path_query_first(p_document, p_path::jsonpath);
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
  if p_prefix is not null and jsonb_path_query_first(p_document, p_prefix::jsonpath, '{}', true) is null then
    return '[]';
  end if;
  perform pawl_private.fault(p_at, sqlerrm);
end
$$;

-- array_of returns an operand that must be an array. Nothing, and null, count as an empty one.
-- Raises:  22023 with the pointer
create function pawl_private.array_of(p_value jsonb, p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  if p_value is null or p_value = 'null' then
    return '[]';
  elsif jsonb_typeof(p_value) <> 'array' then
    perform pawl_private.fault(p_at, format('its first operand must be an array, and is of type %s', jsonb_typeof(p_value)));
  end if;
  return p_value;
end
$$;

-- set_deep sets a member of a member. Objects that are missing on the way are made.
-- p_path: names; a number, as text, is an index of an array that is there
-- Raises:  22023 with the pointer if the way leads through a scalar, or past the end of an array
create function pawl_private.set_deep(p_object jsonb, p_path text[], p_value jsonb, p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_type text := jsonb_typeof(p_object);
begin
  if cardinality(p_path) = 0 then
    return p_value;
  elsif p_object is null or v_type = 'null' then
    p_object := '{}';
  elsif v_type = 'array' then
    if p_path[1] !~ '^[0-9]{1,9}$' or p_path[1]::integer >= jsonb_array_length(p_object) then
      perform pawl_private.fault(p_at, format('the array has no item %s; add items with $append', p_path[1]));
    end if;
    return jsonb_set(
      p_object, p_path[1:1], pawl_private.set_deep(p_object -> p_path[1]::integer, p_path[2:], p_value, p_at));
  elsif v_type <> 'object' then
    perform pawl_private.fault(p_at, format('%s cannot be set within a value of type %s', p_path[1], v_type));
  end if;
  return p_object || jsonb_build_object(
    p_path[1], pawl_private.set_deep(p_object -> p_path[1], p_path[2:], p_value, p_at));
end
$$;

-- concatenated carries out $concat: texts, or arrays.
-- Raises:  22023 with the pointer
create function pawl_private.concatenated(p_items jsonb[], p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_list jsonb;
  v_text text;
  v_item jsonb;
begin
  foreach v_item in array p_items loop
    continue when v_item = 'null';
    if jsonb_typeof(v_item) = 'array' then
      v_list := coalesce(v_list, '[]') || v_item;
    elsif jsonb_typeof(v_item) = 'object' then
      perform pawl_private.fault(p_at, 'an object cannot be concatenated; name a member of it, or use $merge');
    else
      v_text := coalesce(v_text, '') || (v_item #>> '{}');
    end if;
    if v_list is not null and v_text is not null then
      perform pawl_private.fault(p_at, 'arrays and scalars cannot be concatenated with each other');
    end if;
  end loop;
  return coalesce(v_list, to_jsonb(coalesce(v_text, '')));
end
$$;

-- moved_value carries out $time: see moved.
-- Raises:  22023 with the pointer if there is no such zone, or no such time
create function pawl_private.moved_value(p_from timestamptz, p_duration interval, p_zone jsonb, p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_result timestamptz;
begin
  perform p_from at time zone case when jsonb_typeof(p_zone) = 'string' then p_zone #>> '{}' else '' end;
  v_result := pawl_private.moved(p_from, p_duration, p_zone #>> '{}');
  if extract(year from v_result at time zone 'UTC') not between 1 and 9999 then
    raise datetime_field_overflow;
  end if;
  return to_jsonb(pawl_private.rfc3339(v_result));
exception
  when invalid_parameter_value then
    perform pawl_private.fault(p_at, format('%s is no time zone; name one such as Europe/Berlin', left(p_zone::text, 100)));
  when datetime_field_overflow then
    perform pawl_private.fault(p_at, 'the time is not within the years 1 to 9999');
end
$$;

-- value evaluates a compiled value on the document {context, payload, instance, now, event, actor}.
-- Returns: null of SQL if it selects nothing
-- Raises:  22023 with the pointer if an operation cannot be carried out
create function pawl_private.value(p_document jsonb, p_value jsonb) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_operation text := p_value ->> 0;
  v_at text;
  v_last integer;
  v_result jsonb;
  v_item jsonb;
  v_one jsonb;
  v_items jsonb[];
  v_path text[];
  v_from timestamptz;
  v_duration interval;
begin
  if v_operation = 'path' then
    return jsonb_path_query_first(p_document, (p_value ->> 2)::jsonpath, '{}', true);
  elsif v_operation = 'literal' then
    return p_value -> 2;
  elsif v_operation = 'computed' then
    return pawl_private.computed(p_document, p_value ->> 2, p_value ->> 1, false, null);
  end if;
  v_at := p_value ->> 1;
  v_last := jsonb_array_length(p_value) - 1;
  case v_operation
    when 'if' then
      return pawl_private.value(p_document, p_value -> case when pawl_private.holds(p_document, p_value -> 2) then 3 else 4 end);
    when 'first' then
      for v_n in 2 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item <> 'null' then
          return v_item;
        end if;
      end loop;
    when 'append', 'union' then
      v_result := pawl_private.array_of(pawl_private.value(p_document, p_value -> 2), v_at);
      for v_n in 3 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is not null and (v_operation = 'append' or not v_result @> jsonb_build_array(v_item)
          or array_position(array(select jsonb_array_elements(v_result)), v_item) is null) then
          v_result := v_result || jsonb_build_array(v_item);
        end if;
      end loop;
    when 'without' then
      v_result := pawl_private.value(p_document, p_value -> 2);
      if v_result is null or v_result = 'null' then
        v_result := '[]';
      elsif jsonb_typeof(v_result) not in ('array', 'object') then
        perform pawl_private.fault(v_at, format('its first operand must be an array or an object, and is of type %s', jsonb_typeof(v_result)));
      end if;
      for v_n in 3 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is null then
          continue;
        elsif jsonb_typeof(v_result) = 'array' then
          select coalesce(jsonb_agg(e.item order by e.place), '[]')
          into v_result
          from jsonb_array_elements(v_result) with ordinality as e (item, place)
          where e.item <> v_item;
        elsif jsonb_typeof(v_item) <> 'string' then
          perform pawl_private.fault(v_at, format('a member is named by a text, and not by %s', left(v_item::text, 100)));
        else
          v_result := v_result - (v_item #>> '{}');
        end if;
      end loop;
    when 'merge' then
      v_result := '{}';
      for v_n in 2 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is null or v_item = 'null' then
          continue;
        elsif jsonb_typeof(v_item) <> 'object' then
          perform pawl_private.fault(v_at, format('only objects can be merged, and an operand is of type %s', jsonb_typeof(v_item)));
        end if;
        v_result := v_result || v_item;
      end loop;
    when 'set' then
      v_result := pawl_private.value(p_document, p_value -> 2);
      if v_result is null or v_result = 'null' then
        v_result := '{}';
      elsif jsonb_typeof(v_result) not in ('object', 'array') then
        perform pawl_private.fault(v_at, format('its first operand must be an object, and is of type %s', jsonb_typeof(v_result)));
      end if;
      v_item := pawl_private.value(p_document, p_value -> 4);
      if v_item is not null then
        v_path := '{}';
        for v_n in 0 .. jsonb_array_length(p_value -> 3) - 1 loop
          v_one := pawl_private.value(p_document, p_value -> 3 -> v_n);
          if v_one is null then
            perform pawl_private.fault(v_at, format('name %s selects nothing', v_n + 1));
          elsif v_one = '""' or jsonb_typeof(v_one) not in ('string', 'number') then
            perform pawl_private.fault(v_at, format('name %s is %s; it must be a text that is not empty, or a number', v_n + 1, left(v_one::text, 100)));
          end if;
          v_path := v_path || (v_one #>> '{}');
        end loop;
        v_result := pawl_private.set_deep(v_result, v_path, v_item, v_at);
      end if;
    when 'object' then
      select coalesce(jsonb_object_agg(m.name, m.value) filter (where m.value is not null), '{}')
      into v_result
      from (select e.key as name, pawl_private.value(p_document, e.value) as value from jsonb_each(p_value -> 2) e offset 0) m;
    when 'array' then
      select coalesce(jsonb_agg(m.value order by m.n) filter (where m.value is not null), '[]')
      into v_result
      from (select n, pawl_private.value(p_document, p_value -> n) as value from generate_series(2, v_last) n offset 0) m;
    when 'all' then
      return pawl_private.computed(p_document, p_value ->> 2, v_at, true, p_value ->> 3);
    when 'concat' then
      v_items := '{}';
      for v_n in 2 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is not null then
          v_items := v_items || v_item;
        end if;
      end loop;
      return pawl_private.concatenated(v_items, v_at);
    when 'time' then
      v_item := pawl_private.value(p_document, p_value -> 2);
      v_result := pawl_private.value(p_document, p_value -> 3);
      if v_item is null or v_result is null then
        return null;
      end if;
      v_from := pawl_private.time_of(v_item, v_at);
      v_duration := case when jsonb_typeof(v_result) = 'string' then pawl_private.duration(v_result #>> '{}') end;
      if v_duration is null then
        perform pawl_private.fault(v_at, format('%s is no duration of at most ten years', left(v_result::text, 100)));
      end if;
      v_one := case when v_last > 3 then pawl_private.value(p_document, p_value -> 4) else '"UTC"' end;
      return case when v_one is not null then pawl_private.moved_value(v_from, v_duration, v_one, v_at) end;
    when 'duration' then
      v_item := pawl_private.value(p_document, p_value -> 2);
      v_result := pawl_private.value(p_document, p_value -> 3);
      if v_item is null or v_result is null then
        return null;
      end if;
      return to_jsonb(trim_scale(extract(epoch from
        pawl_private.time_of(v_result, v_at) - pawl_private.time_of(v_item, v_at))));
  end case;
  return v_result;
end
$$;

-- holds evaluates a compiled guard.
-- Returns: null if the guard is unknown
-- Raises:  22023 with the pointer if an operand cannot be made, or is no array or time where it must be one
create function pawl_private.holds(p_document jsonb, p_guard jsonb) returns boolean
language plpgsql stable parallel safe
as $$
declare
  v_operator text := p_guard ->> 0;
  v_result boolean;
  v_one boolean;
  v_left jsonb;
  v_right jsonb;
begin
  case v_operator
    when 'path' then
      return jsonb_path_match(p_document, (p_guard ->> 2)::jsonpath, '{}', true);
    when 'present', 'absent' then
      -- In silent mode a path that is not plain would end at the first item that it cannot read, and hide those behind it.
      return (v_operator = 'present') = case
        when jsonb_array_length(p_guard) = 3 then jsonb_path_query_first(p_document, (p_guard ->> 2)::jsonpath, '{}', true) is not null
        else pawl_private.computed(p_document, p_guard ->> 2, p_guard ->> 1, true, p_guard ->> 3) <> '[]'
      end;
    when 'not' then
      return not pawl_private.holds(p_document, p_guard -> 2);
    when 'all', 'any' then
      v_result := v_operator = 'all';
      for v_n in 2 .. jsonb_array_length(p_guard) - 1 loop
        v_one := pawl_private.holds(p_document, p_guard -> v_n);
        if v_operator = 'all' then
          v_result := v_result and v_one;
          exit when not v_result;
        else
          v_result := v_result or v_one;
          exit when v_result;
        end if;
      end loop;
      return v_result;
    else
      v_left := pawl_private.value(p_document, p_guard -> 2);
      v_right := pawl_private.value(p_document, p_guard -> 3);
      if v_left is null or v_right is null then
        return null;
      end if;
      case v_operator
        when 'equal' then
          return v_left = v_right;
        when 'in' then
          if jsonb_typeof(v_right) <> 'array' then
            perform pawl_private.fault(p_guard ->> 1, format('its second operand must be an array, and is of type %s', jsonb_typeof(v_right)));
          end if;
          return exists (select from jsonb_array_elements(v_right) e where e = v_left);
        when 'before' then
          return pawl_private.time_of(v_left, p_guard ->> 1) < pawl_private.time_of(v_right, p_guard ->> 1);
        when 'after' then
          return pawl_private.time_of(v_left, p_guard ->> 1) > pawl_private.time_of(v_right, p_guard ->> 1);
      end case;
  end case;
end
$$;

-- assigned carries out compiled assigns, stage after stage: each stage sees the context that the one before has left,
-- and the assigns of one stage do not see each other. A value that selects nothing leaves its name as it was.
-- p_stages: an array of what compiled_assign makes
-- Returns: the context
-- Raises:  as value
create function pawl_private.assigned(p_document jsonb, p_stages jsonb) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_document jsonb := p_document;
  v_context jsonb;
  v_one jsonb;
  v_compiled jsonb;
  v_value jsonb;
  v_path text[];
begin
  for v_stage in 0 .. jsonb_array_length(p_stages) - 1 loop
    v_context := v_document -> 'context';
    for v_n in 0 .. jsonb_array_length(p_stages -> v_stage) - 1 loop
      v_one := p_stages -> v_stage -> v_n;
      if v_one ->> 0 = 'payload' then
        v_context := v_context || case
          when v_one -> 1 = 'null' then v_document -> 'payload'
          else coalesce(
            (
              select jsonb_object_agg(p.key, p.value)
              from jsonb_each(v_document -> 'payload') p
              where v_one -> 1 ? p.key
            ),
            '{}')
        end;
        continue;
      end if;
      v_compiled := v_one -> 2;
      while v_compiled ->> 0 = 'if' loop
        v_compiled := v_compiled -> case when pawl_private.holds(v_document, v_compiled -> 2) then 3 else 4 end;
      end loop;
      if v_compiled ->> 0 = 'unset' then
        v_path := array(select jsonb_array_elements_text(v_one -> 1));
        -- Without the question, a name within an array raises an error.
        if v_context #> v_path is not null then
          v_context := v_context #- v_path;
        end if;
        continue;
      end if;
      v_value := pawl_private.value(v_document, v_compiled);
      if v_value is null then
        continue;
      elsif jsonb_array_length(v_one -> 1) = 1 then
        v_context := v_context || jsonb_build_object(v_one -> 1 ->> 0, v_value);
      else
        v_context := pawl_private.set_deep(
          v_context, array(select jsonb_array_elements_text(v_one -> 1)), v_value, v_one ->> 3);
      end if;
    end loop;
    if v_stage < jsonb_array_length(p_stages) - 1 then
      v_document := v_document || jsonb_build_object('context', v_context);
    end if;
  end loop;
  return v_context;
end
$$;
