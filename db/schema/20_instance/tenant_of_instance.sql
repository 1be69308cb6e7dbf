-- tenant_of_instance finds the tenant that has an instance.
-- Returns: as pawl_private.tenant_of
create function pawl.tenant_of_instance(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.tenant_of(p_table => 'pawl.instance', p_id => p_id) $$;
