-- task_lanes looks for calls that can be made: the connections of tenants that have tasks which wait. Tenants are looked
-- at in their order after p_after, until p_looks lanes have been looked at.
-- Returns: one row per lane that was looked at, by tenant and connection: if these are p_looks, there may be more. ready: a
--          task is due, the connection exists, its circuit is not open, and the tenant is not disabled, of which one lane is
--          looked at. half_open: one call at a time. concurrency: the most calls at once, in each process. missing: a task is
--          due, and there is no such connection
create function pawl.task_lanes(p_after text, p_looks integer) returns setof pawl.task_lane
language plpgsql stable security definer
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
  v_due record;
  v_connection record;
  v_tenant text := p_after;
  v_name text;
  v_lane pawl.task_lane;
  v_looked integer := 0;
begin
  while v_looked < coalesce(p_looks, 0) loop
    if v_name is null then
      select t.tenant_id, t.connection, t.due_at into v_due
      from pawl.task t
      where t.connection is not null and t.due_at is not null and t.tenant_id > v_tenant
      order by t.tenant_id, t.connection, t.due_at
      limit 1;
    else
      select t.tenant_id, t.connection, t.due_at into v_due
      from pawl.task t
      where t.connection is not null and t.due_at is not null and t.tenant_id = v_tenant and t.connection > v_name
      order by t.tenant_id, t.connection, t.due_at
      limit 1;
      if not found then
        v_name := null;
        continue;
      end if;
    end if;
    exit when not found;
    v_looked := v_looked + 1;
    v_tenant := v_due.tenant_id;
    v_name := v_due.connection;
    v_lane := (v_tenant, v_name, false, false, 0, false);
    if pawl_private.is_disabled(v_tenant) then
      v_name := null; -- The next tenant.
    elsif v_due.due_at <= v_now then
      select c.failures, c.circuit_open_until, c.concurrency into v_connection
      from pawl.connection c
      where c.tenant_id = v_tenant and c.name = v_name;
      v_lane.missing := not found;
      if found then
        v_lane.ready := coalesce(v_connection.circuit_open_until <= v_now, true);
        v_lane.half_open := pawl_private.circuit_open_for(v_connection.failures, interval '1 second') is not null;
        v_lane.concurrency := v_connection.concurrency;
      end if;
    end if;
    return next v_lane;
  end loop;
end
$$;
