-- stream_read_past reads the steps that p_batch sees and p_cursor does not, however many there are. It
-- walks all steps of the tenant by instance and version, the order of the primary key: in the order of
-- seq each page would have to sort them all.
-- Returns: rows of history after the given step; none when there are no more. A page looks at p_limit
--          rows, or fewer if their contexts and payloads have p_bytes or more. If the last row that it
--          looked at is none of those steps, it is returned all the same, so that the caller knows where
--          to go on: its seq is negative, its context empty and its payload null
-- Raises:  PW410 steps that p_cursor does not see, or the given step, have been purged
create function pawl.stream_read_past(
  p_tenant text, p_workflows text[], p_cursor pg_snapshot, p_batch pg_snapshot, p_after_instance uuid,
  p_after_version bigint, p_limit integer, p_bytes bigint
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_step pawl.history;
  v_end pawl.history;
  v_unread boolean;
  v_bytes bigint := 0;
begin
  if pawl_private.steps_lost(p_tenant, p_workflows, p_cursor)
    or p_after_version > 0 and not exists (
      select from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_after_instance and h.version = p_after_version
    )
  then
    perform pawl_private.raise_condition('steps-purged', 'steps that follow have been purged');
  end if;
  for v_step in
    select h.*
    from pawl.history h
    where h.tenant_id = p_tenant and (h.instance_id, h.version) > (p_after_instance, p_after_version)
    order by h.instance_id, h.version
    limit p_limit
  loop
    v_unread := pg_visible_in_snapshot(v_step.xid, p_batch) and not pg_visible_in_snapshot(v_step.xid, p_cursor);
    if v_unread then
      return next v_step;
      v_bytes := v_bytes + octet_length(v_step.context::text) + coalesce(octet_length(v_step.payload::text), 0);
      exit when v_bytes >= p_bytes;
    else
      v_end := v_step;
    end if;
  end loop;
  if not v_unread then
    v_end.seq := -v_end.seq;
    v_end.context := '{}';
    v_end.payload := null;
    return next v_end;
  end if;
end
$$;
