-- tenant_put makes a tenant, or changes it. Nothing deletes a tenant; a disabled one can be enabled again.
-- p_limits: replaces all limits; null leaves them
-- p_disabled: null leaves it
-- Returns: whether it is new
-- Raises:  PW400 malformed-request
-- Locks:   tenant, then setting
-- Writes:  tenant, setting, audit
create function pawl.tenant_put(
  p_id text, p_limits jsonb default null, p_disabled boolean default null, p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_before pawl.tenant;
  v_after pawl.tenant;
  v_fault text := pawl_private.limits_fault(p_limits);
  v_constraint text;
  v_column text;
begin
  if v_fault is not null then
    perform pawl_private.raise_condition('malformed-request', v_fault);
  end if;
  insert into pawl.tenant as t (id, limits, created_at, created_by, disabled_at)
  values (
    p_id, coalesce(p_limits, '{}'), v_now, coalesce(p_caller ->> 'actor', session_user), case when p_disabled then v_now end)
  on conflict (id) do nothing
  returning t.* into v_after;
  if not found then
    select * into v_before from pawl.tenant t where t.id = p_id for no key update;
    update pawl.tenant t
    set limits = coalesce(p_limits, t.limits),
      disabled_at = case coalesce(p_disabled, t.disabled_at is not null) when true then coalesce(t.disabled_at, v_now) end
    where t.id = p_id
    returning t.* into v_after;
  end if;
  perform pawl_private.audit(
    p_tenant => '*', p_caller => p_caller, p_action => 'tenant.put', p_target => p_id,
    p_before => pawl_private.tenant_document(v_before), p_after => pawl_private.tenant_document(v_after));
  return v_before.id is null;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
