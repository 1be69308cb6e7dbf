-- role_put makes a role, or replaces it.
-- p_within: see token_create. It bounds the role that is replaced, too
-- Returns: whether it is new
-- Raises:  PW400 malformed-request, PW403 forbidden, PW40T unknown-tenant
-- Locks:   role, then setting
-- Writes:  role, setting, audit
create function pawl.role_put(
  p_tenant text, p_name text, p_scopes text[], p_workflows text[], p_events text[], p_within text[] default null,
  p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_before pawl.role;
  v_after pawl.role;
  v_constraint text;
  v_column text;
begin
  perform pawl_private.refuse_unbounded(p_workflows, p_within);
  loop
    select * into v_before from pawl.role r where r.tenant_id = p_tenant and r.name = p_name for update;
    if not found then
      insert into pawl.role as r (tenant_id, name, scopes, workflows, events, created_at, created_by, updated_at)
      values (
        p_tenant, p_name, p_scopes, p_workflows, p_events, v_now, coalesce(p_caller ->> 'actor', session_user), v_now)
      on conflict (tenant_id, name) do nothing
      returning r.* into v_after;
    else
      perform pawl_private.refuse_unbounded(v_before.workflows, p_within, 'the role as it is');
      update pawl.role r
      set scopes = p_scopes, workflows = p_workflows, events = p_events, updated_at = v_now
      where r.tenant_id = p_tenant and r.name = p_name
      returning r.* into v_after;
    end if;
    exit when found; -- Otherwise another caller has just made it.
  end loop;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'role.put', p_target => p_name,
    p_before => pawl_private.role_document(v_before), p_after => pawl_private.role_document(v_after));
  return v_before.name is null;
exception
  when foreign_key_violation then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
