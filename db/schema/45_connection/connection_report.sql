-- connection_report notes which attempts to call connections' services have succeeded, in the order in which the attempts
-- of a connection ended. Five failures in a row open its circuit; a success closes it. An answer with 429 or 503 is
-- neither, and is not reported.
-- p_rest: for how long a circuit opens the first time; see pawl_private.circuit_open_for
-- Locks:   connection, by tenant and name, those that change
-- Writes:  connection
create function pawl.connection_report(p_tenants text[], p_names text[], p_succeeded boolean[], p_rest interval) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_attempt record;
begin
  for v_attempt in
    select *
    from unnest(p_tenants, p_names, p_succeeded) with ordinality as r (tenant_id, name, succeeded, place)
    order by r.tenant_id collate "C", r.name collate "C", r.place
  loop
    if v_attempt.succeeded then
      update pawl.connection c
      set failures = 0, circuit_open_until = null
      where c.tenant_id = v_attempt.tenant_id and c.name = v_attempt.name
        and (c.failures > 0 or c.circuit_open_until is not null);
    else
      -- Attempts that were under way when the circuit opened do not keep it open for longer.
      update pawl.connection c
      set failures = c.failures + 1, circuit_open_until = v_now + pawl_private.circuit_open_for(c.failures + 1, p_rest)
      where c.tenant_id = v_attempt.tenant_id and c.name = v_attempt.name
        and (c.circuit_open_until is null or c.circuit_open_until <= v_now);
    end if;
  end loop;
end
$$;
