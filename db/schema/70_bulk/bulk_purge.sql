-- bulk_purge deletes bulks that ended before a time, with up to p_limit items in a call, the oldest first.
-- Returns: how many rows it deleted; the caller repeats it until there are none
-- Locks:   bulk (those that are not locked)
-- Writes:  bulk, bulk_item
create function pawl.bulk_purge(p_age interval, p_limit integer) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bulk pawl.bulk;
  v_deleted bigint;
begin
  select b.* into v_bulk
  from pawl.bulk b
  where b.finished_at < pawl.now() - p_age
  order by b.finished_at
  limit 1
  for update skip locked;
  if not found then
    return 0;
  end if;
  delete from pawl.bulk_item t
  where t.ctid = any (array(
    select o.ctid from pawl.bulk_item o where o.tenant_id = v_bulk.tenant_id and o.bulk_id = v_bulk.id limit p_limit));
  get diagnostics v_deleted = row_count;
  if v_deleted < p_limit then
    delete from pawl.bulk b where b.tenant_id = v_bulk.tenant_id and b.id = v_bulk.id;
    v_deleted := v_deleted + 1;
  end if;
  return v_deleted;
end
$$;
