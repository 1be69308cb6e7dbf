-- stream_read reads a tenant's steps after p_after up to p_until.
-- p_tenant: * for all tenants
-- p_floor: what was purged up to this position is not missed
-- Returns: up to p_limit messages without the instance's keys, in the order of position. The page ends when its
--          contexts and payloads have p_bytes or more, but has at least one row
-- Raises:  PW410 steps of p_workflows that follow have been purged
create function pawl.stream_read(
  p_tenant text, p_workflows text[], p_floor bigint, p_after bigint, p_until bigint, p_limit integer, p_bytes bigint
) returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  if pawl_private.steps_lost(p_tenant, p_workflows, p_after, p_until, p_floor) then
    perform pawl_private.raise_condition('steps-purged', 'steps that follow have been purged');
  end if;
  for v_message in
    select h.*, pawl_private.epoch_of(h.xid, h.seq, e), l.position, null::pawl.key, null::pawl.key, null::timestamptz, null::text[]
    from pawl.log_head e
    cross join lateral (
      select l.*
      from pawl.log l
      where l.position > p_after and l.position <= p_until and (p_tenant = '*' or l.tenant_id = p_tenant)
      order by l.position
    ) l
    cross join lateral pawl_private.step_at(l.tenant_id, l.instance_id, l.version) h
    order by l.position
    limit p_limit
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
