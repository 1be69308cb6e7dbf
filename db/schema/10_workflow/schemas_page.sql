-- schemas_page reads the latest version of each schema whose name comes after p_after.
-- Returns: up to p_limit rows, by name. The page ends with the row by which its schemas have p_bytes, so it has at
--          least one row if there are any. Only the schemas of these rows are read
create function pawl.schemas_page(p_after text, p_limit integer, p_bytes bigint) returns setof pawl.schema
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_schema pawl.schema;
  v_bytes bigint := 0;
begin
  for v_schema in
    select s.*
    from pawl.schema s
    where s.name > p_after
      and s.version = (select max(v.version) from pawl.schema v where v.name = s.name)
    order by s.name
    limit p_limit
  loop
    return next v_schema;
    v_bytes := v_bytes + octet_length(v_schema.schema::text);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
