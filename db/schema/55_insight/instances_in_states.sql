-- instances_in_states reads a page of the ids of a tenant's instances that are in some states, as of the caller's
-- snapshot: from what was folded, and from the instances themselves where steps have not been folded yet.
-- p_workflows, p_states: pairs; each is given once. A state is atomic
-- p_statuses:            null for all
-- p_created_after, p_created_before: both exclusive; null for none
-- p_stuck_for:           the shortest time since the state was entered; null for none
-- p_by_change:           whether the order is that of state_changed_at and then of the ids, else that of the ids alone
-- p_after_change, p_after_id: where the page begins, exclusive; null for the first one
-- p_most:                how many steps without a fold there may be, of all tenants
-- Returns: at most p_limit ids, in order
-- Raises:  PW400 malformed-request; 55000 more than p_most steps are not folded yet
create function pawl.instances_in_states(
  p_tenant text, p_workflows text[], p_states text[], p_statuses text[], p_created_after timestamptz,
  p_created_before timestamptz, p_stuck_for interval, p_by_change boolean, p_ascending boolean, p_after_change timestamptz,
  p_after_id uuid, p_limit integer, p_most integer
) returns uuid[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- Planned for its arguments at each call: then conditions and terms of the order that are not used fall away.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_unfolded uuid[] := pawl_private.unfolded(p_tenant, p_most);
  v_changed_until timestamptz;
  v_from uuid;
  v_before timestamptz;
  v_until uuid;
begin
  v_changed_until := pawl.now() - p_stuck_for;
  v_from := case when p_created_after is not null then pawl.uuid_v7_floor(p_created_after) end;
  -- No instance is created after it has entered its state.
  v_before := least(p_created_before, v_changed_until) + interval '1 millisecond';
  v_until := case when v_before is not null then pawl.uuid_v7_floor(v_before) end;
  return array(
    select c.id
    from (
      select r.id, r.since
      from unnest(p_workflows, p_states) as w (workflow, state)
      cross join lateral (
        select r.instance_id as id, r.since
        from pawl.residence r
        where r.tenant_id = p_tenant and r.workflow = w.workflow and r.state = w.state
          and (p_statuses is null or r.status = any (p_statuses))
          and (v_from is null or r.instance_id >= v_from)
          and (v_until is null or r.instance_id < v_until)
          and (v_changed_until is null or r.since <= v_changed_until)
          and (
            p_created_after is null and p_created_before is null
            or exists (
              select
              from pawl.instance i
              where i.tenant_id = p_tenant and i.id = r.instance_id
                and (p_created_after is null or i.created_at > p_created_after)
                and (p_created_before is null or i.created_at < p_created_before)
              offset 0
            )
          )
          and r.instance_id not in (select u.id from unnest(v_unfolded) as u (id))
          and (
            p_after_id is null
            or case
              when p_by_change and p_ascending then (r.since, r.instance_id) > (p_after_change, p_after_id)
              when p_by_change then (r.since, r.instance_id) < (p_after_change, p_after_id)
              when p_ascending then r.instance_id > p_after_id
              else r.instance_id < p_after_id
            end
          )
        order by
          case when p_by_change and p_ascending then r.since end,
          case when p_by_change and not p_ascending then r.since end desc,
          case when p_ascending then r.instance_id end,
          case when not p_ascending then r.instance_id end desc
        limit p_limit
      ) r
      union all
      select i.id, i.state_changed_at
      from unnest(v_unfolded) as u (id)
      cross join lateral (select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = u.id limit 1) i
      where exists (select from unnest(p_workflows, p_states) as w (workflow, state) where w.workflow = i.workflow and w.state = i.state)
        and (p_statuses is null or i.status = any (p_statuses))
        and (p_created_after is null or i.created_at > p_created_after)
        and (p_created_before is null or i.created_at < p_created_before)
        and (v_changed_until is null or i.state_changed_at <= v_changed_until)
        and (
          p_after_id is null
          or case
            when p_by_change and p_ascending then (i.state_changed_at, i.id) > (p_after_change, p_after_id)
            when p_by_change then (i.state_changed_at, i.id) < (p_after_change, p_after_id)
            when p_ascending then i.id > p_after_id
            else i.id < p_after_id
          end
        )
    ) c
    order by
      case when p_by_change and p_ascending then c.since end,
      case when p_by_change and not p_ascending then c.since end desc,
      case when p_ascending then c.id end,
      case when not p_ascending then c.id end desc
    limit p_limit
  );
exception
  when data_exception then
    perform pawl_private.refuse_malformed(sqlerrm);
    raise;
end
$$;
