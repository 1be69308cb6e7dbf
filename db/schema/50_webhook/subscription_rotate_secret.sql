-- subscription_rotate_secret replaces a subscription's secret. For p_overlap the previous one signs, too.
-- Returns: the subscription, or no row
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   subscription
-- Writes:  subscription
create function pawl.subscription_rotate_secret(p_tenant text, p_id uuid, p_secret text, p_overlap interval)
returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
begin
  return query
  update pawl.subscription s
  set secret = p_secret, previous_secret = s.secret, previous_secret_until = pawl.now() + p_overlap
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
