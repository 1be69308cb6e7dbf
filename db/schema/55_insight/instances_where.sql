-- instances_where reads a page of the ids of a tenant's instances whose contexts fulfil conditions, in the order of their
-- ids, as of the caller's snapshot. It looks at p_probes instances at most, in the order of the list, and asks each of them.
-- Which ones, the first of these that there are says:
--
--   1. conditions that leave few instances, and states that leave at most p_probes: those that all of these leave. Few are
--      at most p_probes, or of the first three others p_few
--   2. an attribute that has one value: the instances that have it
--   3. states: the instances that are in them
--   4. the workflow
--
-- What was folded says which instances these are, and those that have steps without a fold are added.
--
-- p_conditions:       an array of {name, op, kind, value}; see pawl_private.attribute_ranges. The names are attributes
-- p_states, p_statuses: null for all
-- p_after:            where the page begins, exclusive; null for the first one
-- p_few:              how many instances of a condition are sorted at most
-- p_patience:         after how long, or half of the session's statement_timeout, the page ends behind the instance that is
--                     looked at then: contexts may be large
-- p_most:             how many steps without a fold there may be, of all tenants; null to use nothing that was folded
-- Returns: ids: at most p_limit. versions: theirs. rest: the last id that was looked at, if the list goes on behind it although the page has
--          fewer ids; else null. incomplete: whether instances may be missing until the workflow is indexed anew
-- Raises:  PW400 malformed-request; 55000 more than p_most steps are not folded yet
create function pawl.instances_where(
  p_tenant text, p_workflow text, p_conditions jsonb, p_states text[], p_statuses text[], p_ascending boolean, p_after uuid,
  p_limit integer, p_few integer, p_probes integer, p_patience interval, p_most integer, out ids uuid[], out versions bigint[], out rest uuid, out incomplete boolean
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_search jsonb := pawl_private.search_of(p_workflow);
  v_unfolded uuid[] := case when p_most is not null then pawl_private.unfolded(p_tenant, p_most) end;
  v_range pawl_private.attribute_range;
  v_equal pawl_private.attribute_range;
  v_wide pawl_private.attribute_range[] := '{}';
  v_found uuid[];
  v_few uuid[];
  v_sources text[] := '{}';
  v_candidates uuid[];
  v_more boolean := false;
  v_by_attribute boolean;
  v_condition record;
  v_paths text[] := '{}';
  v_types text[] := '{}';
  v_kinds text[] := '{}';
  v_ops text[] := '{}';
  v_values text[] := '{}';
  v_instance record;
  v_holds boolean;
  v_last uuid;
  v_probes integer := greatest(p_probes, 1);
  v_few_most bigint := greatest(p_few, 0);
  v_until timestamptz;
begin
  v_until := statement_timestamp() + least(p_patience, nullif(current_setting('statement_timeout')::interval, interval '0') / 2);
  ids := '{}';
  versions := '{}';
  if p_most is not null then
    for v_range in select r.* from pawl_private.attribute_ranges(p_conditions) r loop
      v_found := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_range, v_probes::bigint + 1, null, null) f (id));
      if cardinality(v_found) <= v_probes then
        v_few := case when v_few is null then v_found else array(select unnest(v_few) intersect select unnest(v_found)) end;
        v_sources := v_sources || v_range.name;
        exit when cardinality(v_few) <= 500;
      else
        v_wide := v_wide || v_range;
        if v_range.low = v_range.high then
          v_equal := v_range;
        end if;
      end if;
    end loop;
    -- To read the ids of more instances costs less than to ask contexts, unless an index has them in order.
    foreach v_range in array v_wide[1:3] loop
      exit when cardinality(v_few) <= 500 or v_few is null and v_equal.name is not null and cardinality(v_wide) = 1;
      v_found := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_range, v_few_most + 1, null, null) f (id));
      if cardinality(v_found) <= v_few_most then
        v_few := case when v_few is null then v_found else array(select unnest(v_few) intersect select unnest(v_found)) end;
      end if;
    end loop;
    v_by_attribute := v_few is not null;
    if p_states is not null and (v_few is null or cardinality(v_few) > 500) then
      v_found := array(
        select r.id
        from unnest(p_states) as s (state)
        cross join lateral (
          select r.instance_id as id
          from pawl.residence r
          where r.tenant_id = p_tenant and r.workflow = p_workflow and r.state = s.state
          limit v_probes::bigint + 1
        ) r
        limit v_probes::bigint + 1);
      if cardinality(v_found) <= v_probes then
        v_few := case when v_few is null then v_found else array(select unnest(v_few) intersect select unnest(v_found)) end;
      end if;
    end if;
    if v_few is not null then
      v_candidates := array(
        select f.id
        from unnest(v_few) f (id)
        where p_after is null or case when p_ascending then f.id > p_after else f.id < p_after end
        order by case when p_ascending then f.id end, case when not p_ascending then f.id end desc
        limit v_probes);
      v_more := cardinality(v_candidates) >= v_probes;
    elsif v_equal.name is not null then
      v_by_attribute := true;
      v_candidates := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_equal, v_probes, p_ascending, p_after) f (id));
      v_more := cardinality(v_candidates) >= v_probes;
    end if;
    if v_candidates is null and p_states is not null then
      v_candidates := array(
        select r.id
        from unnest(p_states) as s (state)
        cross join lateral (
          select r.instance_id as id
          from pawl.residence r
          where r.tenant_id = p_tenant and r.workflow = p_workflow and r.state = s.state
            and (p_after is null or case when p_ascending then r.instance_id > p_after else r.instance_id < p_after end)
          order by case when p_ascending then r.instance_id end, case when not p_ascending then r.instance_id end desc
          limit v_probes
        ) r
        order by case when p_ascending then r.id end, case when not p_ascending then r.id end desc
        limit v_probes);
      v_more := cardinality(v_candidates) >= v_probes;
    end if;
  end if;
  if v_candidates is null then
    v_candidates := array(
      select i.id
      from unnest(coalesce(p_statuses, array['active', 'completed', 'failed', 'cancelled', 'expired'])) s (status)
      cross join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = p_tenant and i.workflow = p_workflow and i.status = s.status and i.workflow <> ''
          and (p_after is null or case when p_ascending then i.id > p_after else i.id < p_after end)
        order by case when p_ascending then i.id end, case when not p_ascending then i.id end desc
        limit v_probes
      ) i
      order by case when p_ascending then i.id end, case when not p_ascending then i.id end desc
      limit v_probes);
    v_more := cardinality(v_candidates) >= v_probes;
    v_unfolded := null;
  end if;
  incomplete := coalesce(v_by_attribute, false) and not exists (
    select from pawl_private.search_index i where i.workflow = p_workflow and i.complete and i.search = v_search);
  if v_more then
    rest := v_candidates[cardinality(v_candidates)];
  end if;

  -- Those that nearly all candidates fulfil come last.
  for v_condition in
    select c.value as condition, v_search -> (c.value ->> 'name') as attribute
    from jsonb_array_elements(p_conditions) c
    order by c.value ->> 'name' = any (v_sources)
  loop
    v_paths := v_paths || array(
      select e.name from jsonb_array_elements_text(v_condition.attribute -> 'path') with ordinality as e (name, place) order by e.place)::text;
    v_types := v_types || (v_condition.attribute ->> 'type');
    v_kinds := v_kinds || (v_condition.condition ->> 'kind');
    v_ops := v_ops || (v_condition.condition ->> 'op');
    v_values := v_values || (v_condition.condition ->> 'value');
  end loop;
  for v_instance in
    select i.id, i.version, i.context
    from (
      select c.id
      from (select c.id from unnest(v_candidates) c (id) union select u.id from unnest(v_unfolded) u (id)) c
      where (p_after is null or case when p_ascending then c.id > p_after else c.id < p_after end)
        and (rest is null or case when p_ascending then c.id <= rest else c.id >= rest end)
      order by case when p_ascending then c.id end, case when not p_ascending then c.id end desc
    ) c
    cross join lateral (
      select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = c.id limit 1
    ) i
    where i.workflow = p_workflow and (p_states is null or i.state = any (p_states)) and (p_statuses is null or i.status = any (p_statuses))
    order by case when p_ascending then c.id end, case when not p_ascending then c.id end desc
  loop
    if v_last is not null and clock_timestamp() > v_until then
      rest := v_last;
      return;
    end if;
    v_last := v_instance.id;
    v_holds := true;
    for c in 1 .. cardinality(v_paths) loop
      v_holds := pawl_private.value_fulfils(v_instance.context #> v_paths[c]::text[], v_types[c], v_kinds[c], v_ops[c], v_values[c]);
      exit when not v_holds;
    end loop;
    if v_holds then
      ids := ids || v_instance.id;
      versions := versions || v_instance.version::bigint;
      if cardinality(ids) = p_limit then
        rest := null;
        return;
      end if;
    end if;
  end loop;
exception
  when data_exception or case_not_found then
    perform pawl_private.refuse_malformed(sqlerrm);
end
$$;
