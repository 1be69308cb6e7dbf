-- dwell_bucket is the bucket of a duration: 0 for less than a millisecond, else n for 1.1^(n-1) up to 1.1^n milliseconds,
-- without the end. Sums over buckets can be merged, and a quantile that is read off them is wrong by 5 % at most.
create function pawl_private.dwell_bucket(p_milliseconds bigint) returns integer
language sql immutable parallel safe
as $$ select case when p_milliseconds < 1 then 0 else floor(ln(p_milliseconds::double precision) / ln(1.1::double precision)) + 1 end::integer $$;

-- milliseconds is how long a visit lasted: 0 if the clock went back.
create function pawl_private.milliseconds(p_from timestamptz, p_until timestamptz) returns bigint
language sql immutable parallel safe
as $$ select greatest(extract(epoch from p_until - p_from) * 1000, 0)::bigint $$;

-- declared_event is an event as a version declares it for a state: its name, or the pattern that it matches. So sums have
-- no more events than definitions do.
create function pawl_private.declared_event(p_workflow text, p_workflow_version integer, p_state text, p_event text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if p_event = '' then
    return p_event;
  end if;
  return coalesce((
    select pawl_private.matching(p_event, s.events, s.patterns)
    from pawl.workflow_state s
    where s.workflow = p_workflow and s.workflow_version = p_workflow_version and s.state = p_state
    limit 1
  ), p_event);
end
$$;

-- forget_residence takes instances that are purged out of what the module knows of them.
-- Locks:  residence, finding
-- Writes: residence, instance_count, attribute, finding, healing
create function pawl_private.forget_residence(p_tenant text, p_ids uuid[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
  with gone as (
    delete from pawl.residence r
    using unnest(p_ids) as p (id)
    where r.tenant_id = p_tenant and r.instance_id = p.id
    returning r.workflow, r.workflow_version, r.state, r.status
  ),
  fewer as (
    select g.workflow, g.workflow_version, g.state, g.status, count(*) as instances
    from gone g
    group by g.workflow, g.workflow_version, g.state, g.status
    -- In the order of the key, as the fold writes them.
    order by g.workflow, g.workflow_version, g.state, g.status
  )
  update pawl.instance_count c
  set instances = c.instances - f.instances
  from fewer f
  where c.tenant_id = p_tenant and c.workflow = f.workflow and c.workflow_version = f.workflow_version and c.state = f.state and c.status = f.status;
  -- In a statement of its own, to see what was found while this transaction waited for the rows above.
  update pawl.finding f
  set closed_at = greatest(f.opened_at, pawl.now())
  from unnest(p_ids) as p (id)
  where f.tenant_id = p_tenant and f.instance_id = p.id and f.closed_at is null;
  delete from pawl_private.healing h using unnest(p_ids) as p (id) where h.tenant_id = p_tenant and h.instance_id = p.id;
  -- In a statement of its own: it sees what was indexed while the one above waited for a row of residence.
  delete from pawl.attribute a using unnest(p_ids) as p (id) where a.tenant_id = p_tenant and a.instance_id = p.id;
end
$$;

-- unfolded reads which of a tenant's instances have steps that the consumer insight has not folded, as of the caller's
-- snapshot: those that follow the consumer's position, and committed ones that have no position yet.
-- p_most: how many steps of all tenants there may be
-- Returns: ids, each once
-- Raises:  55000 there are more, or there is no such consumer
create function pawl_private.unfolded(p_tenant text, p_most integer) returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_head pawl.log_head;
  v_position bigint;
  v_ids uuid[];
  v_steps bigint;
begin
  select h.* into strict v_head from pawl.log_head h;
  select c.position into v_position from pawl.consumer c where c.name = 'insight' and not c.audit;
  if v_position >= v_head.position - p_most and v_head.epoch > 0 then
    select array_agg(distinct u.instance_id) filter (where u.tenant_id = p_tenant), count(*) into v_ids, v_steps
    from (
      select u.tenant_id, u.instance_id
      from (
        select l.tenant_id, l.instance_id from pawl.log l where l.position > v_position and l.finding_id is null
        union all
        select h.tenant_id, h.instance_id
        from pawl_private.steps_between(v_head.snapshot, pg_current_snapshot(), v_head.first_seq) h
      ) u
      limit p_most::bigint + 1
    ) u;
  end if;
  if v_steps <= p_most then
    return coalesce(v_ids, '{}');
  end if;
  raise exception 'too many steps are not folded yet' using errcode = 'object_not_in_prerequisite_state';
end
$$;

-- counted_event is an event as pawl.command_count has it: as the latest version of the workflow declares it in some state, by
-- its name rather than by a pattern, or _other.
-- Returns: null if there is no such workflow
create function pawl_private.counted_event(p_workflow text, p_event text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version integer;
begin
  select w.version into v_version from pawl.workflow w where w.name = p_workflow order by w.version desc limit 1;
  if not found then
    return null;
  end if;
  if p_event = '_create' then
    return p_event;
  end if;
  return coalesce((
    select m.event
    from pawl.workflow_state s
    cross join lateral pawl_private.matching(p_event, s.events, s.patterns) as m (event)
    where s.workflow = p_workflow and s.workflow_version = v_version and m.event = any (s.events)
    order by m.event = p_event desc, m.event
    limit 1
  ), '_other');
end
$$;

-- score_workflow scores the visits of a workflow of a tenant that ended on a day; see pawl.score_forecasts.
-- Writes:  forecast_score
create function pawl_private.score_workflow(p_tenant text, p_workflow text, p_day date) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.forecast_score (tenant_id, workflow, state, day, visits, within_p50, within_p90)
  select
    p_tenant, p_workflow, d.state, p_day, sum(d.visits), coalesce(sum(d.visits) filter (where d.bucket <= q.p50), 0),
    coalesce(sum(d.visits) filter (where d.bucket <= q.p90), 0)
  from (
    select d.state, d.bucket, sum(d.visits) as visits
    from pawl.dwell_count d
    where d.tenant_id = p_tenant and d.workflow = p_workflow and d.day = p_day and d.led_to <> ''
    group by d.state, d.bucket
  ) d
  join (
    select
      r.state, min(r.bucket) filter (where r.up_to >= 0.5 * r.total) as p50, min(r.bucket) filter (where r.up_to >= 0.9 * r.total) as p90
    from (
      select
        b.state, b.bucket, sum(b.visits) over (partition by b.state order by b.bucket) as up_to, sum(b.visits) over (partition by b.state) as total
      from (
        select d.state, d.bucket, sum(d.visits) as visits
        from pawl.dwell_count d
        where d.tenant_id = p_tenant and d.workflow = p_workflow and d.day >= p_day - 90 and d.day < p_day and d.led_to <> ''
        group by d.state, d.bucket
      ) b
    ) r
    where r.total >= 30
    group by r.state
  ) q on q.state = d.state
  group by d.state
  on conflict on constraint forecast_score_pkey do nothing;
end
$$;

-- slot_of_hour is the slot of an hour in pawl.dwell_hour. There is one for each hour of the last 24 and the present one.
create function pawl_private.slot_of_hour(p_hour bigint) returns integer
language sql immutable parallel safe
as $$ select (p_hour % 25)::integer $$;

-- first_due is when instances of a place, which came into the state after p_after, are first due for a look; see pawl_private.stuck_place.
-- Returns: null if they never are
create function pawl_private.first_due(p_after timestamptz, p_threshold interval, p_strands boolean) returns timestamptz
language sql stable parallel safe
as $$ select p_after + interval '1 microsecond' + least(p_threshold, case when p_strands then interval '10 seconds' end) $$;

-- fold counts the steps of a page of the log, and notes where they led their instances. Its caller moves the position of
-- the consumer in the same transaction, under the lock of the consumer's row. Internal steps and those of purged
-- instances are left out.
-- Locks:  finding, stuck_place, residence, instance_count
-- Writes: residence, instance_count, edge_count, dwell_count, dwell_hour, attribute, finding, stuck_place
create function pawl_private.fold(p_after bigint, p_until bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_memoize = off
set jit = off
as $$
declare
  v_hour bigint := extract(epoch from pawl.now())::bigint / 3600;
  v_open boolean := exists (select from pawl.finding f where f.closed_at is null limit 1);
begin
  with step as materialized (
    select
      h.tenant_id, h.instance_id, h.version, h.workflow collate "C" as workflow, h.workflow_version,
      coalesce(h.from_state, '') collate "C" as from_state, h.to_state collate "C" as to_state, h.status,
      case when h.kind in ('forced', 'cancelled', 'migrated') then h.kind::text else coalesce(h.event, '') end collate "C" as event,
      h.at, (h.at at time zone 'UTC')::date as day, coalesce(h.entered_at, h.at) as since
    from (select l.* from pawl.log l where l.position > p_after and l.position <= p_until order by l.position) l
    cross join lateral (
      select h.*
      from pawl.history h
      where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
      limit 1
    ) h
    where h.internal is null
  ),
  move as materialized (
    select
      s.*, case when s.event = 'migrated' then '' else s.to_state end as led_to,
      lag(s.version) over w is null as is_first, lead(s.version) over w is null as is_last,
      lag(s.at) over w as visit_at, lag(s.workflow_version) over w as visit_workflow_version
    from step s
    window w as (partition by s.tenant_id, s.instance_id order by s.version)
  ),
  -- The visits that the first step of each instance ends.
  known as materialized (
    select m.tenant_id, m.workflow, m.day, m.at, m.led_to, r.workflow_version, r.state, r.status, r.visit_at
    from move m
    cross join lateral (
      select r.* from pawl.residence r where r.tenant_id = m.tenant_id and r.instance_id = m.instance_id limit 1
    ) r
    where m.is_first
  ),
  visit as materialized (
    select
      v.tenant_id, v.workflow, v.workflow_version, v.day, v.at, v.state, v.led_to, pawl_private.dwell_bucket(v.milliseconds) as bucket, v.milliseconds
    from (
      select
        k.tenant_id, k.workflow, k.workflow_version, k.day, k.at, k.state, k.led_to, pawl_private.milliseconds(k.visit_at, k.at) as milliseconds
      from known k
      union all
      select
        m.tenant_id, m.workflow, m.visit_workflow_version, m.day, m.at, m.from_state, m.led_to, pawl_private.milliseconds(m.visit_at, m.at)
      from move m
      where not m.is_first
    ) v
  ),
  edge as materialized (
    select m.tenant_id, m.workflow, m.workflow_version, m.day, m.from_state, m.event, m.to_state, m.status, count(*) as steps
    from move m
    group by m.tenant_id, m.workflow, m.workflow_version, m.day, m.from_state, m.event, m.to_state, m.status
  ),
  resided as (
    insert into pawl.residence as r
      (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
    select m.tenant_id, m.instance_id, m.workflow, m.workflow_version, m.to_state, m.status, m.since, m.version, m.at
    from move m
    where m.is_last
    order by m.tenant_id, m.instance_id
    on conflict on constraint residence_pkey do update
    set workflow_version = excluded.workflow_version, state = excluded.state, status = excluded.status, since = excluded.since,
      visit_version = excluded.visit_version, visit_at = excluded.visit_at
  ),
  -- A step ends what was found of the visit.
  closed as (
    update pawl.finding f
    set closed_at = greatest(f.opened_at, m.at)
    from move m
    where v_open and m.is_last and f.tenant_id = m.tenant_id and f.instance_id = m.instance_id and f.closed_at is null
      and f.visit_version < m.version and f.kind <> 'delivery-dead'
  ),
  -- The next look must not begin behind what has come, nor come later than that is due.
  placed as (
    insert into pawl_private.stuck_place as p (tenant_id, workflow, state, slow_since, orphaned_since)
    select m.tenant_id, m.workflow, m.to_state, min(m.since) - interval '1 microsecond', min(m.since) - interval '1 microsecond'
    from move m
    where m.is_last and m.status = 'active'
    group by m.tenant_id, m.workflow, m.to_state
    order by m.tenant_id, m.workflow, m.to_state
    on conflict on constraint stuck_place_pkey do update
    set slow_since = least(p.slow_since, excluded.slow_since), orphaned_since = least(p.orphaned_since, excluded.orphaned_since),
      slow_id = case when p.slow_since <= excluded.slow_since then p.slow_id else excluded.slow_id end,
      orphaned_id = case when p.orphaned_since <= excluded.orphaned_since then p.orphaned_id else excluded.orphaned_id end,
      next_at = case
        when p.next_at = 'infinity' or p.slow_since > excluded.slow_since or p.orphaned_since > excluded.orphaned_since then '-infinity'
        else pawl_private.first_due(excluded.slow_since, p.threshold, p.strands)
      end
    where p.next_at = 'infinity' or p.slow_since > excluded.slow_since or p.orphaned_since > excluded.orphaned_since
      or p.next_at > pawl_private.first_due(excluded.slow_since, p.threshold, p.strands)
  ),
  stepped as (
    insert into pawl.edge_count as c (tenant_id, workflow, workflow_version, day, from_state, event, to_state, status, steps)
    select e.tenant_id, e.workflow, e.workflow_version, e.day, e.from_state, e.declared, e.to_state, e.status, sum(e.steps)
    from (
      select e.*, pawl_private.declared_event(e.workflow, e.workflow_version, e.from_state, e.event) collate "C" as declared from edge e
    ) e
    group by e.tenant_id, e.workflow, e.workflow_version, e.day, e.from_state, e.declared, e.to_state, e.status
    on conflict on constraint edge_count_pkey do update set steps = c.steps + excluded.steps
  ),
  visited as (
    insert into pawl.dwell_count as c (tenant_id, workflow, workflow_version, day, state, bucket, led_to, visits, milliseconds)
    select v.tenant_id, v.workflow, v.workflow_version, v.day, v.state, v.bucket, v.led_to, count(*), sum(v.milliseconds)
    from visit v
    group by v.tenant_id, v.workflow, v.workflow_version, v.day, v.state, v.bucket, v.led_to
    on conflict on constraint dwell_count_pkey do update
    set visits = c.visits + excluded.visits, milliseconds = c.milliseconds + excluded.milliseconds
  ),
  -- The hours of one page that are kept differ in their slots, since no more of them are kept than there are slots.
  visited_lately as (
    insert into pawl.dwell_hour as c (tenant_id, workflow, state, slot, hour, visits, milliseconds)
    select v.tenant_id, v.workflow, v.state, pawl_private.slot_of_hour(v.hour), v.hour, count(*), sum(v.milliseconds)
    from (select v.*, extract(epoch from v.at)::bigint / 3600 as hour from visit v) v
    where v.hour > v_hour - 25 and v.hour <= v_hour
    group by v.tenant_id, v.workflow, v.state, v.hour
    on conflict on constraint dwell_hour_pkey do update
    set hour = greatest(c.hour, excluded.hour),
      visits = case when c.hour > excluded.hour then c.visits when c.hour = excluded.hour then c.visits + excluded.visits else excluded.visits end,
      milliseconds = case
        when c.hour > excluded.hour then c.milliseconds when c.hour = excluded.hour then c.milliseconds + excluded.milliseconds
        else excluded.milliseconds
      end
  )
  merge into pawl.instance_count c
  using (
    select d.tenant_id, d.workflow, d.workflow_version, d.state, d.status, sum(d.instances) as instances
    from (
      select m.tenant_id, m.workflow, m.workflow_version, m.to_state as state, m.status, 1 as instances from move m where m.is_last
      union all
      select k.tenant_id, k.workflow, k.workflow_version, k.state, k.status, -1 from known k
    ) d
    group by d.tenant_id, d.workflow, d.workflow_version, d.state, d.status
    having sum(d.instances) <> 0
    -- In the order of the key, as a purge writes them.
    order by d.tenant_id, d.workflow, d.workflow_version, d.state, d.status
  ) d
  on c.tenant_id = d.tenant_id and c.workflow = d.workflow and c.workflow_version = d.workflow_version and c.state = d.state and c.status = d.status
  when matched then update set instances = c.instances + d.instances
  when not matched then insert (tenant_id, workflow, workflow_version, state, status, instances)
    values (d.tenant_id, d.workflow, d.workflow_version, d.state, d.status, d.instances);
end
$$;

-- rfc3339_time is the time that a text of RFC 3339 says, or null.
create function pawl_private.rfc3339_time(p_text text) returns timestamptz
language sql stable parallel safe
as $$
  select case
    when p_text ~ '^(?!0000)[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([Zz]|[+-](0[0-9]|1[0-4]):[0-5][0-9])$'
      and substr(p_text, 9, 2)::integer
        <= extract(day from make_date(substr(p_text, 1, 4)::integer, substr(p_text, 6, 2)::integer, 1) + interval '1 month - 1 day')
      then p_text::timestamptz
  end
$$;

-- number_of is the number that a text says, or null: also if it has more than 100 digits.
create function pawl_private.number_of(p_text text) returns numeric
language sql immutable parallel safe
as $$
  select case when p_text ~ '^-?[0-9]{1,100}(\.[0-9]{1,100})?$' and length(p_text) <= 100 then p_text::numeric end
$$;

-- text_key is what is indexed of a text.
create function pawl_private.text_key(p_text text) returns text
language sql immutable parallel safe
as $$ select case when octet_length(p_text) <= 255 then p_text else left(p_text, 63) end $$;

-- attribute_of takes a value for what it is, or for its type.
-- Returns: whole_text: a text to its end. The others are null where the value is none of the kind
create function pawl_private.attribute_of(
  p_value jsonb, p_type text, out whole_text text, out number_value numeric, out time_value timestamptz, out boolean_value boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text := jsonb_typeof(p_value);
  v_text text := p_value #>> '{}';
begin
  if v_kind in ('string', 'number', 'boolean') then
    if p_type = 'text' or p_type is null and v_kind = 'string' then
      whole_text := v_text;
    end if;
    if p_type = 'number' or p_type is null and v_kind = 'number' then
      number_value := pawl_private.number_of(v_text);
    end if;
    if p_type = 'time' or p_type is null and v_kind = 'string' then
      time_value := pawl_private.rfc3339_time(v_text);
    end if;
    if v_kind = 'boolean' and p_type is null or p_type = 'boolean' and v_text in ('true', 'false') then
      boolean_value := v_text::boolean;
    end if;
  end if;
end
$$;

-- attributes_of reads the values that an instance is found by from its context.
create function pawl_private.attributes_of(p_context jsonb, p_search jsonb)
returns table (name text, text_value text, number_value numeric, time_value timestamptz, boolean_value boolean)
language sql stable
as $$
  select s.key, pawl_private.text_key(a.whole_text), a.number_value, a.time_value, a.boolean_value
  from jsonb_each(p_search) s
  cross join lateral pawl_private.attribute_of(
    p_context #> (select array_agg(e.name order by e.place) from jsonb_array_elements_text(s.value -> 'path') with ordinality as e (name, place)),
    s.value ->> 'type') a
  where num_nonnulls(a.whole_text, a.number_value, a.time_value, a.boolean_value) > 0
$$;

-- search_of is what the instances of a workflow are found by: what its latest version says.
create function pawl_private.search_of(p_workflow text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select w.search from pawl.workflow w where w.name = p_workflow order by w.version desc limit 1);
end
$$;

-- fold_attributes notes the values by which the instances of a page of the log are found. It reads only contexts of
-- workflows that say by which.
-- Writes: attribute
create function pawl_private.fold_attributes(p_after bigint, p_until bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_memoize = off
set jit = off
as $$
declare
  v_searches jsonb := (
    select jsonb_object_agg(w.name, w.search)
    from (select distinct on (w.name) w.name, w.search from pawl.workflow w order by w.name, w.version desc) w
    where w.search is not null);
begin
  if v_searches is null then
    return;
  end if;
  with step as materialized (
    select distinct on (h.tenant_id, h.instance_id) h.tenant_id, h.instance_id, h.version, h.workflow
    from (select l.* from pawl.log l where l.position > p_after and l.position <= p_until order by l.position) l
    cross join lateral (
      select h.tenant_id, h.instance_id, h.version, h.workflow
      from pawl.history h
      where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
      limit 1
    ) h
    where v_searches ? h.workflow
    order by h.tenant_id, h.instance_id, h.version desc
  ),
  value as materialized (
    select s.tenant_id, s.instance_id, s.workflow, a.*
    from step s
    cross join lateral (
      select h.context
      from pawl.history h
      where h.tenant_id = s.tenant_id and h.instance_id = s.instance_id and h.version = s.version
      limit 1
    ) h
    cross join lateral pawl_private.attributes_of(h.context, v_searches -> s.workflow) a
  ),
  gone as (
    delete from pawl.attribute a
    using step s
    where a.tenant_id = s.tenant_id and a.instance_id = s.instance_id
      and (a.tenant_id, a.instance_id, a.name) not in (select v.tenant_id, v.instance_id, v.name from value v)
  )
  insert into pawl.attribute as a (tenant_id, instance_id, name, workflow, text_value, number_value, time_value, boolean_value)
  select v.tenant_id, v.instance_id, v.name, v.workflow, v.text_value, v.number_value, v.time_value, v.boolean_value
  from value v
  order by v.tenant_id, v.instance_id, v.name
  on conflict on constraint attribute_pkey do update
  set text_value = excluded.text_value, number_value = excluded.number_value, time_value = excluded.time_value,
    boolean_value = excluded.boolean_value
  where (a.text_value, a.number_value, a.time_value, a.boolean_value)
    is distinct from (excluded.text_value, excluded.number_value, excluded.time_value, excluded.boolean_value);
end
$$;

-- search_begins notes that the latest version of a workflow is now another one. If it says something else to find
-- instances by, they must be indexed anew, unless there are none.
-- Writes: search_index
create function pawl_private.search_begins(p_workflow text, p_before jsonb, p_is_first boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_search jsonb := pawl_private.search_of(p_workflow);
begin
  if v_search is null then
    delete from pawl_private.search_index i where i.workflow = p_workflow;
  elsif p_is_first or v_search is distinct from p_before then
    insert into pawl_private.search_index as i (workflow, search, complete, after_tenant, after_id, indexed)
    values (p_workflow, v_search, p_is_first, '', '00000000-0000-0000-0000-000000000000', 0)
    on conflict on constraint search_index_pkey do update
    set search = excluded.search, complete = excluded.complete, after_tenant = '', after_id = excluded.after_id, indexed = 0;
  end if;
end
$$;

-- value_fulfils says whether a value of a context fulfils a condition. p_type is that of the attribute, or null. p_op is =, <,
-- <=, >, >= or ^ for a text that begins so; p_kind is text, number, time or boolean, and p_wanted the value of that kind.
-- It is called for each instance that a list looks at.
create function pawl_private.value_fulfils(p_value jsonb, p_type text, p_kind text, p_op text, p_wanted text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := jsonb_typeof(p_value);
  v_text text;
  v_order integer;
begin
  if p_value is null or v_type not in ('string', 'number', 'boolean') or p_type <> p_kind then
    return false;
  end if;
  v_text := p_value #>> '{}';
  case p_kind
    when 'text' then
      if p_type is null and v_type <> 'string' then
        return false;
      elsif p_op = '^' then
        return starts_with(v_text, p_wanted);
      end if;
      v_order := case when v_text = p_wanted then 0 when v_text collate "C" < p_wanted then -1 else 1 end;
    when 'number' then
      if p_type is null and v_type <> 'number' then
        return false;
      end if;
      -- That of a number needs no look at its digits.
      v_order := sign(
        case when v_type = 'number' and length(v_text) <= 100 then v_text::numeric else pawl_private.number_of(v_text) end - p_wanted::numeric);
    when 'time' then
      if p_type is null and v_type <> 'string' then
        return false;
      end if;
      v_order := sign(extract(epoch from pawl_private.rfc3339_time(v_text) - p_wanted::timestamptz));
    when 'boolean' then
      if p_type is null and v_type <> 'boolean' or v_text not in ('true', 'false') then
        return false;
      end if;
      v_order := v_text::boolean::integer - p_wanted::boolean::integer;
  end case;
  return coalesce(
    case p_op
      when '=' then v_order = 0 when '<' then v_order < 0 when '<=' then v_order <= 0 when '>' then v_order > 0
      when '>=' then v_order >= 0
    end,
    false);
end
$$;

-- An attribute_range has the values of an attribute that fulfil conditions, and some more: no less than low and no more
-- than high, where they are not null, and of a text that it begins with prefix.
create type pawl_private.attribute_range as (
  name text,
  kind text,
  low text,
  high text,
  prefix text
);

-- attribute_ranges makes one range of all conditions {name, op, kind, value} for an attribute and a kind. op and kind are
-- those of value_fulfils.
create function pawl_private.attribute_ranges(p_conditions jsonb) returns setof pawl_private.attribute_range
language plpgsql stable rows 10
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select
      c.name, c.kind,
      case c.kind
        when 'number' then max(case when c.kind = 'number' and c.op in ('=', '>', '>=') then c.value::numeric end)::text
        when 'time' then max(case when c.kind = 'time' and c.op in ('=', '>', '>=') then c.value::timestamptz end)::text
        else max(case when c.op in ('=', '>', '>=') then c.value end collate "C")
      end,
      case c.kind
        when 'number' then min(case when c.kind = 'number' and c.op in ('=', '<', '<=') then c.value::numeric end)::text
        when 'time' then min(case when c.kind = 'time' and c.op in ('=', '<', '<=') then c.value::timestamptz end)::text
        else min(case when c.op in ('=', '<', '<=') then c.value end collate "C")
      end,
      (array_agg(c.value order by length(c.value) desc) filter (where c.op = '^'))[1]
    from (
      select c.value ->> 'name' as name, c.value ->> 'kind' as kind, c.value ->> 'op' as op, c.value ->> 'value' as value
      from jsonb_array_elements(p_conditions) c
    ) c
    group by c.name, c.kind;
end
$$;

-- attribute_ids reads the ids of instances that may be in a range: all that are, and some more.
-- p_ascending: null for no order; else that of the ids, behind p_after, for a range whose low is its high
-- Returns: at most p_limit ids
create function pawl_private.attribute_ids(
  p_tenant text, p_workflow text, p_range pawl_private.attribute_range, p_limit bigint, p_ascending boolean, p_after uuid
) returns setof uuid
language plpgsql stable rows 1000
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_name text := p_range.name;
  v_low text := p_range.low;
  v_high text := p_range.high;
  -- One value alone makes the order of an index that of the ids. How it begins need not be asked then.
  v_value text := case when v_low = v_high and starts_with(v_low, coalesce(p_range.prefix, '')) then v_low end;
  v_prefix text := case when v_value is null then p_range.prefix end;
begin
  case p_range.kind
    when 'text' then
      -- What is indexed of a text is no larger than the text, and no smaller than as much of a smaller text.
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.text_value is not null
          and (v_value is null or a.text_value = pawl_private.text_key(v_value))
          and (v_value is not null or v_low is null or a.text_value >= left(v_low, 63))
          and (v_value is not null or v_high is null or a.text_value <= v_high)
          and (v_prefix is null or a.text_value ^@ left(v_prefix, 63))
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
    when 'number' then
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.number_value is not null
          and (v_value is null or a.number_value = v_value::numeric)
          and (v_value is not null or v_low is null or a.number_value >= v_low::numeric)
          and (v_value is not null or v_high is null or a.number_value <= v_high::numeric)
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
    when 'time' then
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.time_value is not null
          and (v_value is null or a.time_value = v_value::timestamptz)
          and (v_value is not null or v_low is null or a.time_value >= v_low::timestamptz)
          and (v_value is not null or v_high is null or a.time_value <= v_high::timestamptz)
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
    when 'boolean' then
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.boolean_value is not null
          and (v_value is null or a.boolean_value = v_value::boolean)
          and (v_value is not null or v_low is null or a.boolean_value >= v_low::boolean)
          and (v_value is not null or v_high is null or a.boolean_value <= v_high::boolean)
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
  end case;
end
$$;
