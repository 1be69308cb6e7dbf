-- history_page reads a page of an instance's history: the steps after the version p_after.
-- Returns: up to p_limit rows, in the order of their versions. The page ends with the row by which its contexts and
--          payloads have p_bytes, so it has at least one row if there are any. Only the documents of these rows are
--          read
create function pawl.history_page(
  p_tenant text, p_instance uuid, p_after bigint, p_limit integer, p_bytes bigint
) returns setof pawl.history
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_step pawl.history;
  v_bytes bigint := 0;
begin
  for v_step in
    select h.*
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_instance and h.version > p_after
    order by h.version
    limit p_limit
  loop
    return next v_step;
    v_bytes := v_bytes + octet_length(v_step.context::text) + coalesce(octet_length(v_step.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
