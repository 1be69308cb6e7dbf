-- count_usage goes on with the count of what tenants use, for limits on open instances and on storage. It takes the
-- tenant whose turn it is, and reads up to p_limit rows: of its active instances, then, if its storage has a limit, of
-- all its instances and of its history. A tenant is counted again five seconds after its count has ended. Storage is
-- the size of contexts and payloads as they are stored, and 200 bytes for each instance and each step.
-- Returns: whether there may be more to count now
-- Locks:   tenant_usage (for update, skipping what is locked)
-- Writes:  tenant_usage
create function pawl.count_usage(p_limit integer) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_limits jsonb;
  v_row pawl_private.tenant_usage;
  v_read integer;
  v_stored bigint;
  v_ended boolean;
begin
  select u.* into v_row
  from pawl_private.tenant_usage u
  where u.next_at <= v_now
  order by u.next_at
  limit 1
  for update skip locked;
  if not found then
    insert into pawl_private.tenant_usage (tenant_id, next_at)
    select t.id, v_now
    from pawl.tenant t
    where t.limits ?| array['open_instances', 'storage_bytes']
      and not exists (select from pawl_private.tenant_usage u where u.tenant_id = t.id)
    on conflict on constraint tenant_usage_pkey do nothing;
    return found;
  end if;
  select t.limits into v_limits
  from pawl.tenant t
  where t.id = v_row.tenant_id and t.limits ?| array['open_instances', 'storage_bytes'];
  if not found then
    delete from pawl_private.tenant_usage u where u.tenant_id = v_row.tenant_id;
    return true;
  end if;

  if v_row.part = 'open' then
    select count(*), coalesce((array_agg(i.id order by i.id desc))[1], v_row.after_id)
    into v_read, v_row.after_id
    from (
      select i.id
      from pawl.instance i
      where i.tenant_id = v_row.tenant_id and i.status = 'active' and i.workflow <> '' and i.id > v_row.after_id
      order by i.tenant_id, i.status, i.id
      limit p_limit
    ) i;
    v_row.opened := v_row.opened + v_read;
  elsif v_row.part = 'instances' then
    select count(*), coalesce((array_agg(i.id order by i.id desc))[1], v_row.after_id), coalesce(sum(i.bytes), 0)
    into v_read, v_row.after_id, v_stored
    from (
      select i.id, 200 + pg_column_size(i.context) as bytes
      from pawl.instance i
      where i.tenant_id = v_row.tenant_id and i.id > v_row.after_id
      order by i.tenant_id, i.id
      limit p_limit
    ) i;
  else
    select count(*), coalesce((array_agg(h.instance_id order by h.instance_id desc, h.version desc))[1], v_row.after_id),
      coalesce((array_agg(h.version order by h.instance_id desc, h.version desc))[1], v_row.after_version), coalesce(sum(h.bytes), 0)
    into v_read, v_row.after_id, v_row.after_version, v_stored
    from (
      select h.instance_id, h.version, 200 + pg_column_size(h.context) + coalesce(pg_column_size(h.payload), 0) as bytes
      from pawl.history h
      where h.tenant_id = v_row.tenant_id and (h.instance_id, h.version) > (v_row.after_id, v_row.after_version)
      order by h.tenant_id, h.instance_id, h.version
      limit p_limit
    ) h;
  end if;
  v_row.stored := v_row.stored + coalesce(v_stored, 0);

  v_ended := v_read < p_limit;
  if v_ended then
    v_row.after_id := '00000000-0000-0000-0000-000000000000';
    v_row.after_version := 0;
    case
      when v_row.part = 'open' then
        v_row.open_instances := v_row.opened;
        v_row.opened := 0;
        v_row.part := case when v_limits ? 'storage_bytes' then 'instances' else 'open' end;
        v_row.storage_bytes := case when v_limits ? 'storage_bytes' then v_row.storage_bytes end;
      when v_row.part = 'instances' then
        v_row.part := 'history';
      else
        v_row.storage_bytes := v_row.stored;
        v_row.stored := 0;
        v_row.part := 'open';
    end case;
  end if;
  update pawl_private.tenant_usage u
  set open_instances = v_row.open_instances, storage_bytes = v_row.storage_bytes, part = v_row.part, after_id = v_row.after_id,
    after_version = v_row.after_version, opened = v_row.opened, stored = v_row.stored,
    -- Those whose counts are under way take turns.
    next_at = case when v_ended and v_row.part = 'open' then v_now + interval '5 seconds' else v_now end
  where u.tenant_id = v_row.tenant_id;
  return true;
end
$$;
