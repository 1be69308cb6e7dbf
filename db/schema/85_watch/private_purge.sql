-- purge_findings deletes findings that were closed up to p_before, with their rows in the log. One stays while a consumer has
-- yet to read it, and while a delivery that tells of it is pending.
-- p_after_at, p_after_id: behind which finding, in the order of closed_at and id
-- Returns: the last finding that was looked at, to go on behind it; the beginning at the end
-- Writes:  finding, log
create function pawl_private.purge_findings(
  p_after_at timestamptz, p_after_id uuid, p_limit integer, p_before timestamptz, out upto_at timestamptz, out upto_id uuid
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_read bigint := (select min(c.position) from pawl.consumer c where not c.audit);
  v_finding record;
  v_looked integer := 0;
begin
  for v_finding in
    select f.tenant_id, f.id, f.closed_at
    from pawl.finding f
    where f.closed_at is not null and f.closed_at <= p_before and (f.closed_at, f.id) > (p_after_at, p_after_id)
    order by f.closed_at, f.id
    limit p_limit
  loop
    v_looked := v_looked + 1;
    upto_at := v_finding.closed_at;
    upto_id := v_finding.id;
    continue when pawl_private.webhook_retains_finding(v_finding.tenant_id, v_finding.id);
    delete from pawl.log l where l.tenant_id = v_finding.tenant_id and l.finding_id = v_finding.id and l.position <= v_read;
    continue when not found;
    delete from pawl.finding f where f.tenant_id = v_finding.tenant_id and f.id = v_finding.id;
  end loop;
  if v_looked < p_limit then
    upto_at := '-infinity';
    upto_id := '00000000-0000-0000-0000-000000000000';
  end if;
end
$$;
