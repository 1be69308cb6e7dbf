-- delivery_purge deletes settled deliveries, the oldest first and no more than p_limit of each kind:
-- delivered ones p_delivered after their delivery, dead ones p_dead after their creation. The callback of
-- a purged delivery is deleted with it.
-- Returns: how many were deleted
-- Locks:   delivery (for update, skipping what is locked)
-- Writes:  delivery, callback
create function pawl.delivery_purge(p_limit integer, p_delivered interval, p_dead interval) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_purged integer;
begin
  with old as materialized (
    select p.place
    from (
      select d.ctid as place
      from pawl.delivery d
      where d.status = 'delivered' and d.id < pawl.uuid_v7_floor(v_now - p_delivered) and d.delivered_at < v_now - p_delivered
      order by d.id
      limit greatest(p_limit, 0)
      for update skip locked
    ) p
    union all
    select p.place
    from (
      select d.ctid as place
      from pawl.delivery d
      where d.status = 'dead' and d.id < pawl.uuid_v7_floor(v_now - p_dead)
      limit greatest(p_limit, 0)
      for update skip locked
    ) p
  ),
  purged as (
    delete from pawl.delivery d
    where d.ctid = any (array(select o.place from old o))
    returning d.tenant_id, d.instance_id, d.callback
  ),
  released as (
    delete from pawl.callback b
    using (select p.tenant_id, p.instance_id from purged p where p.callback) p
    where b.tenant_id = p.tenant_id and b.instance_id = p.instance_id
  )
  select count(*) into v_purged from purged;
  return v_purged;
end
$$;
