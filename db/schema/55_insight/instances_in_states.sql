-- instances_in_states reads a page of the ids of a tenant's instances that are in some states, as of the caller's
-- snapshot: from what was folded, and from the instances themselves where steps have not been folded yet.
--
-- No index has both the order of the ids and the time since when an instance is in its state. So a list in the order of
-- the ids with p_stuck_for sorts the instances that have been there for so long, if they are few. Else it reads the
-- instances of each state in the order of their ids, p_probes at most, and the page may end there.
--
-- p_workflows, p_states: pairs; each is given once. A state is atomic
-- p_statuses:            null for all
-- p_created_after, p_created_before: both exclusive; null for none
-- p_stuck_for:           the shortest time since the state was entered; null for none
-- p_by_change:           whether the order is that of state_changed_at and then of the ids, else that of the ids alone
-- p_after_change, p_after_id: where the page begins, exclusive; null for the first one
-- p_most:                how many steps without a fold there may be, of all tenants
-- p_few, p_probes:       how many instances are few, and how many are read of each state if they are not
-- Returns: ids: at most p_limit, in order. versions, changes: their versions and state_changed_at. rest: the id behind which the list
--          goes on although the page has fewer ids; else null
-- Raises:  PW400 malformed-request; 55000 more than p_most steps are not folded yet
create function pawl.instances_in_states(
  p_tenant text, p_workflows text[], p_states text[], p_statuses text[], p_created_after timestamptz,
  p_created_before timestamptz, p_stuck_for interval, p_by_change boolean, p_ascending boolean, p_after_change timestamptz,
  p_after_id uuid, p_limit integer, p_most integer, p_few integer, p_probes integer,
  out ids uuid[], out versions bigint[], out changes timestamptz[], out rest uuid
)
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
  v_probes integer := case when p_stuck_for is not null and not p_by_change then greatest(p_probes, 1) end;
  v_few bigint := greatest(p_few, 0);
  v_stuck uuid[];
begin
  v_changed_until := pawl.now() - p_stuck_for;
  v_from := case when p_created_after is not null then pawl.uuid_v7_floor(p_created_after) end;
  -- No instance is created after it has entered its state.
  v_before := least(p_created_before, v_changed_until) + interval '1 millisecond';
  v_until := case when v_before is not null then pawl.uuid_v7_floor(v_before) end;
  if v_probes is not null then
    v_stuck := array(
      select r.instance_id
      from unnest(p_workflows, p_states) as w (workflow, state)
      cross join lateral (
        select r.instance_id
        from pawl.residence r
        where r.tenant_id = p_tenant and r.workflow = w.workflow and r.state = w.state and r.since <= v_changed_until
          and (p_statuses is null or r.status = any (p_statuses))
        order by r.since
        limit v_few + 1
      ) r
      limit v_few + 1);
    if cardinality(v_stuck) > v_few then
      v_stuck := null;
    end if;
  end if;
  with folded as materialized (
    (
      select s.id, null::timestamptz as since, true as holds, false as is_end
      from (
        select s.id
        from unnest(v_stuck) as s (id)
        where (v_from is null or s.id >= v_from)
          and (v_until is null or s.id < v_until)
          and (p_after_id is null or case when p_ascending then s.id > p_after_id else s.id < p_after_id end)
          and s.id not in (select u.id from unnest(v_unfolded) as u (id))
        order by case when p_ascending then s.id end, case when not p_ascending then s.id end desc
      ) s
      where
        p_created_after is null and p_created_before is null
        or exists (
          select
          from pawl.instance i
          where i.tenant_id = p_tenant and i.id = s.id
            and (p_created_after is null or i.created_at > p_created_after)
            and (p_created_before is null or i.created_at < p_created_before)
          offset 0
        )
      limit p_limit
    )
    union all
    select r.id, r.since, r.holds, r.place is not distinct from v_probes
    from unnest(p_workflows, p_states) as w (workflow, state)
    cross join lateral (
      select r.*
      from (
        select
          r.id, r.since, row_number() over () as place,
          (p_by_change or v_changed_until is null or r.since <= v_changed_until)
            and (p_statuses is null or r.status = any (p_statuses))
            and (
              p_created_after is null and p_created_before is null
              or exists (
                select
                from pawl.instance i
                where i.tenant_id = p_tenant and i.id = r.id
                  and (p_created_after is null or i.created_at > p_created_after)
                  and (p_created_before is null or i.created_at < p_created_before)
                offset 0
              )
            ) as holds
        from (
          select r.instance_id as id, r.since, r.status
          from pawl.residence r
          where r.tenant_id = p_tenant and r.workflow = w.workflow and r.state = w.state
            and (v_from is null or r.instance_id >= v_from)
            and (v_until is null or r.instance_id < v_until)
            and (not p_by_change or v_changed_until is null or r.since <= v_changed_until)
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
          limit v_probes
        ) r
      ) r
      where r.holds or r.place = v_probes
      limit p_limit
    ) r
    where v_stuck is null
  ),
  stop as materialized (
    select f.id
    from folded f
    where f.is_end
    order by case when p_ascending then f.id end, case when not p_ascending then f.id end desc
    limit 1
  ),
  page as materialized (
    select c.id, row_number() over () as place
    from (
      select c.id
      from (
        select f.id, f.since from folded f where f.holds
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
      where not exists (select from stop s where case when p_ascending then c.id > s.id else c.id < s.id end)
      order by
        case when p_by_change and p_ascending then c.since end,
        case when p_by_change and not p_ascending then c.since end desc,
        case when p_ascending then c.id end,
        case when not p_ascending then c.id end desc
      limit p_limit
    ) c
  )
  select
    coalesce(array_agg(p.id order by p.place), '{}'), coalesce(array_agg(i.version::bigint order by p.place), '{}'),
    coalesce(array_agg(i.state_changed_at order by p.place), '{}'), case when count(*) < p_limit then (select s.id from stop s) end
  into ids, versions, changes, rest
  from page p
  cross join lateral (select i.version, i.state_changed_at from pawl.instance i where i.tenant_id = p_tenant and i.id = p.id limit 1) i;
exception
  when data_exception then
    perform pawl_private.refuse_malformed(sqlerrm);
    raise;
end
$$;
