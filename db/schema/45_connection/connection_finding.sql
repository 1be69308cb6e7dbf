-- connection_finding notes which connections have secrets that the invoker can have, or cannot. One with a finding rests
-- for p_rest, and is then looked at again. Its tasks wait and lose no attempt.
-- p_findings: why the secret cannot be had; '' if it can, which ends the rest
-- Locks:   connection, by tenant and name, those that change
-- Writes:  connection
create function pawl.connection_finding(p_tenants text[], p_names text[], p_findings text[], p_rest interval) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_look record;
begin
  for v_look in
    select *
    from unnest(p_tenants, p_names, p_findings) as k (tenant_id, name, finding)
    order by k.tenant_id collate "C", k.name collate "C"
  loop
    update pawl.connection c
    set
      finding = nullif(v_look.finding, ''),
      circuit_open_until = case when v_look.finding <> '' then greatest(c.circuit_open_until, v_now + p_rest) end
    where c.tenant_id = v_look.tenant_id and c.name = v_look.name and (v_look.finding <> '' or c.finding is not null);
  end loop;
end
$$;
