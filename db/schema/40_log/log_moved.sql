-- log_moved says which instances have steps after p_after. One call serves everybody who waits in a process.
-- Returns: last: the last position that was looked at. instances, tenants: of the steps, each once; null if there
--          were more than p_limit steps, if p_after is null, if the log ends before p_after, or if there is no
--          sequencer
create function pawl.log_moved(p_after bigint, p_limit integer, out last bigint, out instances uuid[], out tenants text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_steps bigint;
  v_led boolean;
begin
  select h.position, h.lease_until > pawl.now() into last, v_led from pawl.log_head h;
  if p_after is null or last < p_after or not v_led then
    return;
  end if;
  select
    count(*), coalesce(array_agg(distinct s.instance_id) filter (where s.instance_id is not null), '{}'),
    coalesce(array_agg(distinct s.tenant_id::text) filter (where s.instance_id is not null), '{}')
  into v_steps, instances, tenants
  from (select l.tenant_id, l.instance_id from pawl.log l where l.position > p_after order by l.position limit p_limit + 1) s;
  if v_steps > p_limit then
    instances := null;
    tenants := null;
  end if;
end
$$;
