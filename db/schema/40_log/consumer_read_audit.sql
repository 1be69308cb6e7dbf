-- consumer_read_audit reads rows of the audit for a consumer, up to p_until.
-- Returns: the rows that were not purged, in the order of position. The page ends with the row by which its documents
--          have p_bytes
create function pawl.consumer_read_audit(p_consumer text, p_until bigint, p_bytes bigint) returns setof pawl.audit_message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_row pawl.audit_message;
  v_bytes bigint := 0;
begin
  for v_row in
    select a.*, l.epoch, l.position
    from pawl.consumer c
    cross join lateral (
      select l.* from pawl.audit_log l where l.position > c.position and l.position <= p_until order by l.position
    ) l
    cross join lateral (
      select a.* from pawl.audit a where a.tenant_id = l.tenant_id and a.seq = l.seq limit 1
    ) a
    where c.name = p_consumer and c.audit
    order by l.position
  loop
    return next v_row;
    v_bytes := v_bytes + coalesce(octet_length(v_row.before::text), 0) + coalesce(octet_length(v_row.after::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
