-- definition_states lists the states of a definition in canonical form.
-- Returns: one row per state. path; lineage: the paths of the states around it, from the
--          outside in, then its own; atomic: whether it has no states within; leaf: the atomic
--          state that entering it leads to, by each `initial`; transitions: how many it declares
create function pawl_private.definition_states(p_definition jsonb)
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

-- definition_transitions flattens a definition in canonical form. Every atomic state gets its
-- own transitions, then those that it inherits, the innermost state's first. Each leads to an
-- atomic state. 'ttl' and ':initial' are among them.
--
-- The algorithm is SCXML's for a machine without parallel regions. The innermost state around
-- both the declaring state and the target is neither left nor entered. A transition leaves the
-- states within it, the innermost first, and enters those down to the target, the outermost
-- first.
-- Returns: rows of pawl.workflow_transition
create function pawl_private.definition_transitions(p_definition jsonb)
returns table (
  source text, event text, "position" bigint, target text, guard_text text, assign_names text[], assign_paths jsonpath[],
  assign_stages integer[], assign_payload boolean, payload_schema jsonb
)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select * from pawl_private.definition_states(p_definition)
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
  -- inside: the states around the declaring state. Those that are around the target too are neither
  -- left nor entered.
  inherited as (
    select
      s.path as source, s.lineage, d.event, d.value, d.target,
      row_number() over (partition by s.path, d.event order by cardinality(d.lineage) desc, d.position) as position,
      -- All transitions of an event in a state share one schema.
      (array_agg(d.value -> 'payload_schema') filter (where d.value ? 'payload_schema')
        over (partition by s.path, d.event))[1] as payload_schema,
      d.lineage[:cardinality(d.lineage) - 1] as inside,
      -- An inherited transition behind one without a guard is never taken.
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
            -- States that are left, the transition itself, states that are entered, in this order.
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
        when not exists (select from node n where n.path = p_definition ->> 'initial') then 'initial must name a state'
        when not exists (select from node n where n.value ->> 'type' = 'final') then 'no state is final'
        when p_definition ->> 'business_key' not in ('unique', 'reusable') then 'business_key must be unique or reusable'
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

-- duration reads a duration of a definition. A day has 24 hours and a month 30 days. The result has
-- neither days nor months, whose length would depend on the time zone of the session.
create function pawl_private.duration(p_text text) returns interval
language sql immutable parallel safe
as $$ select make_interval(secs => extract(epoch from p_text::interval)::float8) $$;

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

-- store_definition stores a definition in canonical form, flattened, as a version of a workflow.
-- Writes:  workflow, workflow_state, workflow_transition
create function pawl_private.store_definition(p_name text, p_version integer, p_definition jsonb, p_actor text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.workflow (
    name, version, definition, checksum, initial, initial_moves, ttl, ttl_target, retention,
    business_key_reusable, context_schema, context_schema_checksum, created_at, created_by)
  select
    p_name, p_version, p_definition, encode(sha256(convert_to(p_definition::text, 'UTF8')), 'hex'),
    n.leaf, false, pawl_private.duration(p_definition #>> '{ttl,after}'), p_definition #>> '{ttl,target}',
    pawl_private.duration(p_definition ->> 'retention'), p_definition ->> 'business_key' is not distinct from 'reusable',
    p_definition -> 'context_schema',
    encode(sha256(convert_to((p_definition -> 'context_schema')::text, 'UTF8')), 'hex'), pawl.now(), p_actor
  from pawl_private.definition_states(p_definition) n
  where n.path = p_definition ->> 'initial';

  insert into pawl.workflow_state (
    workflow, workflow_version, state, status, events, timeouts, timeout_events, eventless, ttl_slides,
    require_if_match)
  select
    p_name, p_version, s.path,
    case when s.value ->> 'type' = 'final' then coalesce(s.value ->> 'outcome', 'completed') else 'active' end,
    array(
      select distinct k collate "C"
      from pawl_private.definition_states(p_definition) n
      cross join lateral jsonb_object_keys(coalesce(n.value -> 'on', '{}')) k
      where n.path = any (s.lineage)
      order by k collate "C"),
    array(select pawl_private.duration(k) from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    array(select 'after:' || k from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    false,
    coalesce((p_definition #>> '{ttl,sliding}')::boolean, false),
    coalesce((p_definition ->> 'require_if_match')::boolean, false)
  from pawl_private.definition_states(p_definition) s
  where s.atomic;

  insert into pawl.workflow_transition (
    workflow, workflow_version, source, event, position, target, guard, guard_text, assign_names, assign_paths,
    assign_stages, assign_payload, assign_nests, payload_schema, payload_schema_checksum)
  select
    p_name, p_version, t.source, t.event, t.position, t.target, t.guard_text::jsonpath, t.guard_text, t.assign_names,
    t.assign_paths, t.assign_stages, t.assign_payload,
    exists (select from unnest(t.assign_paths) as p (path) where pawl_private.path_nests(p.path)), t.payload_schema,
    encode(sha256(convert_to(t.payload_schema::text, 'UTF8')), 'hex')
  from pawl_private.definition_transitions(p_definition) t;

  update pawl.workflow_state s
  set
    reads_instance = exists (
      select from pawl.workflow_transition t
      cross join lateral unnest(t.assign_paths || t.guard) as p (path)
      where t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        -- Postgres writes a jsonpath as canonical text.
        and regexp_replace(p.path::text, '[$][.]"(context|payload)"', '', 'g') like '%$%'
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
