-- instances_where reads a page of the ids of a tenant's instances whose contexts fulfil conditions, in the order of their
-- ids, as of the caller's snapshot. If one of the conditions leaves few instances, these are looked at; else those of the
-- workflow, one after the other.
-- p_conditions:       an array of {name, op, kind, value}; see pawl_private.condition_holds. The names are attributes
-- p_states, p_statuses: null for all
-- p_after:            where the page begins, exclusive; null for the first one
-- p_few, p_probes:    how many instances of a condition are few, and how many are looked at if none leaves so few
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
set jit = off
as $$
declare
  v_search jsonb := pawl_private.search_of(p_workflow);
  v_unfolded uuid[] := case when p_most is not null then pawl_private.unfolded(p_tenant, p_most) end;
  v_condition jsonb;
  v_found uuid[];
  v_fewest uuid[];
  v_candidate record;
  v_looked integer := 0;
  v_last uuid;
  v_until timestamptz;
begin
  v_until := statement_timestamp() + least(p_patience, nullif(current_setting('statement_timeout')::interval, interval '0') / 2);
  ids := '{}';
  versions := '{}';
  for v_condition in select c.value from jsonb_array_elements(p_conditions) c where p_most is not null loop
    v_found := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_condition, p_few + 1) f (id));
    if cardinality(v_found) <= p_few and (v_fewest is null or cardinality(v_found) < cardinality(v_fewest)) then
      v_fewest := v_found;
    end if;
  end loop;
  incomplete := v_fewest is not null and not exists (
    select from pawl_private.search_index i where i.workflow = p_workflow and i.complete and i.search = v_search);
  for v_candidate in
    select i.id, i.state, i.status, i.version, i.context
    from (
      select c.id
      from (
        select f.id from unnest(v_fewest) f (id)
        union
        select u.id from unnest(v_unfolded) u (id) where v_fewest is not null
        union all
        select w.id
        from unnest(coalesce(p_statuses, array['active', 'completed', 'failed', 'cancelled', 'expired'])) s (status)
        cross join lateral (
          select i.id
          from pawl.instance i
          where v_fewest is null and i.tenant_id = p_tenant and i.workflow = p_workflow and i.status = s.status and i.workflow <> ''
            and (p_after is null or case when p_ascending then i.id > p_after else i.id < p_after end)
          order by case when p_ascending then i.id end, case when not p_ascending then i.id end desc
          limit p_probes
        ) w
      ) c
      where p_after is null or case when p_ascending then c.id > p_after else c.id < p_after end
      order by case when p_ascending then c.id end, case when not p_ascending then c.id end desc
    ) c
    cross join lateral (
      select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = c.id limit 1
    ) i
    where i.workflow = p_workflow
    order by case when p_ascending then c.id end, case when not p_ascending then c.id end desc
  loop
    if v_looked = p_probes and v_fewest is null or v_looked > 0 and clock_timestamp() > v_until then
      rest := v_last;
      return;
    end if;
    v_looked := v_looked + 1;
    v_last := v_candidate.id;
    rest := case when v_fewest is null and v_looked = p_probes then v_candidate.id end;
    if (p_states is null or v_candidate.state = any (p_states)) and (p_statuses is null or v_candidate.status = any (p_statuses))
      and not exists (
        select from jsonb_array_elements(p_conditions) c where not pawl_private.condition_holds(v_candidate.context, v_search, c.value)
      ) then
      ids := ids || v_candidate.id;
      versions := versions || v_candidate.version::bigint;
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
