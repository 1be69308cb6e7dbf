-- role_delete deletes a role. Tokens that have it keep its name, which grants nothing then.
-- p_within: see token_create
-- Returns: whether there was one
-- Raises:  PW403 forbidden
-- Locks:   role, then setting
-- Writes:  role, setting, audit
create function pawl.role_delete(p_tenant text, p_name text, p_within text[] default null, p_caller jsonb default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role pawl.role;
begin
  delete from pawl.role r where r.tenant_id = p_tenant and r.name = p_name returning * into v_role;
  if not found then
    return false;
  end if;
  perform pawl_private.refuse_unbounded(v_role.workflows, p_within, 'the role');
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'role.delete', p_target => p_name,
    p_before => pawl_private.role_document(v_role));
  return true;
end
$$;
