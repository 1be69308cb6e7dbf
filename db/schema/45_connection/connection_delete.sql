-- connection_delete deletes a connection. Tasks that name it wait until there is one again.
-- p_expected: as for connection_put
-- Returns: whether there was one
-- Raises:  PW412 version-mismatch
-- Locks:   connection
-- Writes:  connection, audit
create function pawl.connection_delete(p_tenant text, p_name text, p_expected text default '', p_caller jsonb default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_connection pawl.connection;
begin
  select * into v_connection from pawl.connection c where c.tenant_id = p_tenant and c.name = p_name for update;
  if not found then
    return false;
  end if;
  perform pawl_private.refuse_changed(p_expected, v_connection.version);
  delete from pawl.connection c where c.tenant_id = p_tenant and c.name = p_name;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'connection.delete', p_target => p_name,
    p_before => pawl_private.connection_document(v_connection));
  return true;
end
$$;
