-- log_moved says which instances have moved since p_cursor. One call serves everybody who waits in a
-- process. Its cost grows with the number of steps since p_cursor.
-- Returns: snapshot: the next cursor. instances, tenants: of the steps since p_cursor, each once; null if
--          there were more than p_limit steps, or if p_cursor is null
create function pawl.log_moved(
  p_cursor pg_snapshot, p_limit integer, out snapshot pg_snapshot, out instances uuid[], out tenants text[]
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The statistics know nothing of the newest rows, and only a plain index scan ends early at a limit.
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_steps bigint;
begin
  snapshot := pg_current_snapshot();
  if p_cursor is null then
    return;
  end if;
  select count(*), coalesce(array_agg(distinct s.instance_id), '{}'), coalesce(array_agg(distinct s.tenant_id::text), '{}')
  into v_steps, instances, tenants
  from (
    select h.tenant_id, h.instance_id from pawl_private.steps_since(p_cursor) h limit p_limit + 1
  ) s;
  if v_steps > p_limit then
    instances := null;
    tenants := null;
  end if;
end
$$;
