-- bulk_step deals with the next instances of the bulk whose turn it is: of the tenant that had no turn for the longest
-- time, and of its bulks likewise. Another process may take another bulk meanwhile.
-- p_batch: how many instances at most
-- Returns: looked_at: how many instances it has read; -1 if no bulk is due. moved: those that made a step. next_in: the
--          time until a bulk is due again, if none is now; null if there is none. tenant, bulk, unchecked: what the
--          caller must check, tell bulk_check, and call again; see pawl_private.bulk_unchecked. unchecked is null if
--          there is nothing to check
-- Raises:  57014, and what another try may cure
-- Locks:   bulk (if it is not locked), instance (for no key update, by id, those that are not locked), and what the
--          action locks
-- Writes:  bulk, bulk_item, and what the action writes
create function pawl.bulk_step(
  p_batch integer, out looked_at integer, out moved uuid[], out next_in interval, out tenant text, out bulk uuid,
  out unchecked jsonb
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_begun timestamptz := clock_timestamp(); -- Measures the call; decides nothing.
  v_now timestamptz := pawl.now();
  v_picked timestamptz;
  v_bulk pawl.bulk;
  v_filter pawl_private.bulk_filter;
  v_limit integer;
  v_read integer;
  v_ids uuid[];
  v_instances pawl.instance[];
  v_chosen pawl.instance[];
  v_results pawl_private.bulk_result[] := '{}';
  v_acted pawl_private.bulk_result[];
  v_busy uuid[];
  v_done integer;
  v_ended boolean;
  v_was_open boolean;
begin
  moved := '{}';
  select b.* into v_bulk
  from pawl.bulk b
  where b.status in ('queued', 'running') and b.next_at <= v_now and not pawl_private.is_disabled(b.tenant_id)
  order by (
      select max(o.turn_at) from pawl.bulk o where o.tenant_id = b.tenant_id and o.status in ('queued', 'running')
    ), b.turn_at, b.id
  limit 1
  for no key update skip locked;
  if not found then
    looked_at := -1;
    select min(b.next_at) - v_now into next_in from pawl.bulk b where b.status in ('queued', 'running') and b.next_at > v_now;
    return;
  end if;
  v_picked := pawl.now();
  v_now := v_picked;
  v_filter := jsonb_populate_record(null::pawl_private.bulk_filter, v_bulk.choice);
  -- An id tells the millisecond only.
  v_filter.created_before := least(v_filter.created_before, v_bulk.created_at + interval '1 microsecond');
  v_limit := greatest(least(p_batch, v_bulk.batch, ceil(v_bulk.rate / 4.0)::integer), 1);
  v_was_open := v_bulk.walked;

  if v_was_open then
    v_ids := array(
      select t.instance_id
      from pawl.bulk_item t
      where t.tenant_id = v_bulk.tenant_id and t.bulk_id = v_bulk.id and t.instance_id > v_bulk.open_from
        and (t.outcome is null or t.outcome in ('refused', 'failed'))
        and (t.outcome is null or t.at < v_bulk.retry_at)
      order by t.instance_id
      limit v_limit);
    v_read := cardinality(v_ids);
    v_ended := v_read < v_limit;
    v_bulk.open_from := coalesce(v_ids[v_read], v_bulk.open_from);
  else
    -- As many pages as it takes to find enough, up to a bound: a rare state would be looked for in the whole table.
    v_ids := '{}';
    v_read := 0;
    loop
      select
        v_ids || coalesce(array_agg(p.id order by p.id) filter (where p.chosen), '{}'),
        coalesce((array_agg(p.id order by p.id desc))[1], v_bulk.position),
        count(*) < v_limit,
        v_read + count(*)
      into v_ids, v_bulk.position, v_ended, v_read
      from (
        select p.id, p.chosen,
          count(*) filter (where p.chosen) over (order by p.id rows between unbounded preceding and 1 preceding) as before
        from pawl_private.bulk_page(
          p_tenant => v_bulk.tenant_id, p_filter => v_filter, p_after => v_bulk.position, p_until => v_bulk.until_id,
          p_limit => v_limit) p
      ) p
      where p.before < v_limit - cardinality(v_ids); -- Up to the last one that there is room for.
      -- A page that was cut short has filled the room.
      exit when cardinality(v_ids) = v_limit or v_ended or v_read >= 2000;
    end loop;
    v_ended := v_ended and cardinality(v_ids) < v_limit;
    v_bulk.walked := v_ended;
  end if;
  looked_at := v_read;

  -- A replay changes deliveries only, and locks a consumer, which comes before instances for those who send.
  if v_bulk.dry_run or v_bulk.action = 'replay' then
    v_instances := array(
      select l.instance
      from unnest(v_ids) with ordinality as c (id, place)
      cross join lateral (
        select i as instance from pawl.instance i where i.tenant_id = v_bulk.tenant_id and i.id = c.id limit 1
      ) l
      order by c.place);
  else
    v_instances := array(
      select l.instance
      from unnest(v_ids) as c (id)
      cross join lateral (
        select i as instance
        from pawl.instance i
        where i.tenant_id = v_bulk.tenant_id and i.id = c.id
        limit 1
        for no key update skip locked
      ) l);
  end if;

  -- What is not locked here is locked by another transaction, or is no instance of the tenant.
  v_busy := array(
    select c.id
    from unnest(v_ids) as c (id)
    where c.id not in (select i.id from unnest(v_instances) i));
  select array_agg(row(c.id, a.outcome, a.problem)::pawl_private.bulk_result)
  into v_results
  from unnest(v_busy) as c (id)
  cross join lateral (
    select
      case when v_bulk.filter is null then 'refused' else 'skipped' end as outcome,
      case
        when v_bulk.filter is null then pawl_private.bulk_problem('instance-not-found', 'there is no such instance')
        else pawl_private.bulk_problem('no-longer-matches', 'the instance was removed')
      end as problem
    where not exists (select from pawl.instance i where i.tenant_id = v_bulk.tenant_id and i.id = c.id)
    union all
    select 'failed', pawl_private.bulk_problem('unavailable', 'another transaction held the instance each time that it was tried')
    from pawl.bulk_item t
    where t.tenant_id = v_bulk.tenant_id and t.bulk_id = v_bulk.id and t.instance_id = c.id and t.tries >= 10
      and exists (select from pawl.instance i where i.tenant_id = v_bulk.tenant_id and i.id = c.id)
  ) a;
  v_results := coalesce(v_results, '{}');
  v_busy := array(
    select b.id from unnest(v_busy) b (id) where b.id not in (select r.instance_id from unnest(v_results) r));
  if v_bulk.choice is not null then
    v_chosen := array(select i from unnest(v_instances) i where pawl_private.bulk_chooses(i, v_filter, v_now));
    if cardinality(v_chosen) < cardinality(v_instances) then
      v_results := v_results || array(
        select case
          when v_bulk.filter is null then
            row(i.id, 'refused', pawl_private.bulk_problem('instance-not-found', 'there is no such instance'))::pawl_private.bulk_result
          else
            row(
              i.id, 'skipped',
              pawl_private.bulk_problem('no-longer-matches', 'the filter does not choose the instance any more')
            )::pawl_private.bulk_result
        end
        from unnest(v_instances) i
        where i.id not in (select c.id from unnest(v_chosen) c));
      v_instances := v_chosen;
    end if;
  end if;

  if v_instances <> '{}' then
    select a.results, a.unchecked into strict v_acted, unchecked from pawl_private.bulk_act(v_bulk, v_instances, true) a;
    if unchecked is not null then
      tenant := v_bulk.tenant_id;
      bulk := v_bulk.id;
      return;
    end if;
    if v_acted is null then
      -- The statement timeout came. Fewer are tried next.
      update pawl.bulk b
      set batch = greatest(cardinality(v_instances) / 2, 1), turn_at = v_now
      where b.tenant_id = v_bulk.tenant_id and b.id = v_bulk.id;
      return;
    end if;
    v_results := v_results || v_acted;
    v_busy := v_busy || array(
      select i.id from unnest(v_instances) i where i.id not in (select r.instance_id from unnest(v_acted) r));
    if not v_bulk.dry_run and v_bulk.action not in ('retry', 'replay') then
      moved := array(select r.instance_id from unnest(v_acted) r where r.outcome = 'applied');
    end if;
  end if;

  v_now := pawl.now();
  insert into pawl.bulk_item as t (tenant_id, bulk_id, instance_id, outcome, problem, at)
  select v_bulk.tenant_id, v_bulk.id, r.instance_id, r.outcome, r.problem, v_now
  from unnest(v_results) r
  on conflict on constraint bulk_item_pkey do update
  set outcome = excluded.outcome, problem = excluded.problem, at = excluded.at, tries = 0;
  insert into pawl.bulk_item as t (tenant_id, bulk_id, instance_id, tries)
  select v_bulk.tenant_id, v_bulk.id, b.id, 1
  from unnest(v_busy) b (id)
  on conflict on constraint bulk_item_pkey do update
  set tries = t.tries + 1;

  v_done := cardinality(v_results);
  v_bulk.open := v_bulk.open + case when v_was_open then -v_done else cardinality(v_busy) end;
  if v_was_open and v_ended and v_bulk.open > 0 then
    v_bulk.open_from := '00000000-0000-0000-0000-000000000000';
    v_bulk.next_at := v_now + interval '1 second';
  end if;
  if v_bulk.rate is not null then
    v_bulk.next_at := greatest(v_bulk.next_at, v_now - interval '250 milliseconds') + interval '1 second' * v_done / v_bulk.rate;
  end if;
  -- A call of few instances takes as long as its fixed part does, so that only the timeout leads to fewer than 50.
  v_bulk.batch := case
    when clock_timestamp() - v_begun > interval '300 milliseconds' and v_bulk.batch > 50 then greatest(v_bulk.batch / 2, 50)
    when clock_timestamp() - v_begun < interval '150 milliseconds' or v_bulk.batch < 50 then least(v_bulk.batch * 2, p_batch)
    else v_bulk.batch
  end;
  if v_bulk.pace_from is null then
    v_bulk.pace_from := v_now;
    v_bulk.pace_count := 0;
  elsif v_now >= v_bulk.pace_from + interval '5 seconds' then
    v_bulk.pace := (v_bulk.pace_count + v_done) / extract(epoch from v_now - v_bulk.pace_from);
    v_bulk.pace_from := v_now;
    v_bulk.pace_count := 0;
  else
    v_bulk.pace_count := v_bulk.pace_count + v_done;
  end if;
  v_ended := v_ended and v_bulk.walked and v_bulk.open = 0;
  update pawl.bulk b
  set status = case when v_ended then 'done' else 'running' end,
    started_at = coalesce(b.started_at, v_picked), finished_at = case when v_ended then v_now end,
    position = coalesce(v_bulk.position, b.position), walked = v_bulk.walked, open_from = v_bulk.open_from,
    open = v_bulk.open, batch = v_bulk.batch, turn_at = v_now, next_at = v_bulk.next_at,
    applied = b.applied + n.applied, refused = b.refused + n.refused, skipped = b.skipped + n.skipped,
    failed = b.failed + n.failed, checks = case when v_bulk.params ? 'context_patch' then '{}' else b.checks end,
    pace_from = v_bulk.pace_from, pace_count = v_bulk.pace_count, pace = v_bulk.pace
  from (
    select
      count(*) filter (where r.outcome = 'applied') as applied, count(*) filter (where r.outcome = 'refused') as refused,
      count(*) filter (where r.outcome = 'skipped') as skipped, count(*) filter (where r.outcome = 'failed') as failed
    from unnest(v_results) r
  ) n
  where b.tenant_id = v_bulk.tenant_id and b.id = v_bulk.id;
end
$$;
