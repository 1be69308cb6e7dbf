-- instances_page reads a tenant's instances by their ids, and looks up each by its full key.
-- Returns: those that exist, in the order of p_ids. The page ends with the one by which its contexts have p_bytes,
--          so it has at least one if there are any. Only the contexts of these are read
create function pawl.instances_page(p_tenant text, p_ids uuid[], p_bytes bigint) returns setof pawl.instance
language plpgsql stable rows 50
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_instance pawl.instance;
  v_bytes bigint := 0;
begin
  for v_instance in
    select i.*
    from unnest(p_ids) with ordinality as c (id, place)
    cross join lateral (select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = c.id limit 1) i
    order by c.place
  loop
    return next v_instance;
    v_bytes := v_bytes + octet_length(v_instance.context::text);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
