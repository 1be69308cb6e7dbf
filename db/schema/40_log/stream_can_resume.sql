-- stream_can_resume says whether a stream can go on from p_cursor.
-- Returns: true if all of these hold. At most p_limit steps of all tenants were made since; null for any
--          number. No step that the stream would show has been purged. This database has been at
--          p_cursor, which it has not if it was restored from an older copy
create function pawl.stream_can_resume(p_tenant text, p_workflows text[], p_cursor pg_snapshot, p_limit integer) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return pg_snapshot_xmax(p_cursor) <= pg_snapshot_xmax(pg_current_snapshot())
    and not pawl_private.steps_lost(p_tenant, p_workflows, p_cursor)
    and coalesce((
      select count(*)
      from (select from pawl_private.steps_since(p_cursor) h limit coalesce(p_limit + 1, 0)) h
    ) <= p_limit, true);
end
$$;
