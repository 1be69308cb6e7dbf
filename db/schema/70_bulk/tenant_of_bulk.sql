-- tenant_of_bulk finds the tenant that has a bulk.
-- Returns: as pawl_private.tenant_of
create function pawl.tenant_of_bulk(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.tenant_of(p_table => 'pawl.bulk', p_id => p_id) $$;
