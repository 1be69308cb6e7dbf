-- subscription_rotate_secret replaces a subscription's secret. For p_overlap the previous one signs, too. If the previous
-- one is sealed, the caller has sealed it anew, for its new column.
-- p_secret:   sealed or not
-- p_from:     the sealed secret that p_previous was made from, as subscription_sealed_secret shows it; '' if there is none
-- p_previous: the previous secret; '' if it cannot be opened and is lost
-- Returns: the subscription; no row if there is none, or if its secret is not that of p_from
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   subscription
-- Writes:  subscription, audit
create function pawl.subscription_rotate_secret(
  p_tenant text, p_id uuid, p_secret text, p_overlap interval, p_from text default '', p_previous text default '',
  p_caller jsonb default null
) returns setof pawl.subscription_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_secret text;
begin
  select s.secret into v_secret from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  if p_from is distinct from (case when v_secret like 'sealed:%' then v_secret else '' end) then
    return;
  end if;
  if p_from <> '' then
    v_secret := nullif(p_previous, '');
  end if;
  update pawl.subscription s
  set
    secret = p_secret,
    previous_secret = v_secret,
    previous_secret_until = case when v_secret is not null then pawl.now() + p_overlap end,
    circuit_open_until = case when s.finding is null then s.circuit_open_until end,
    finding = null
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    perform pawl_private.audit(p_tenant => p_tenant, p_caller => p_caller, p_action => 'secret.rotate', p_target => p_id::text);
  end if;
  return query select r.* from pawl.subscription_row r where r.tenant_id = p_tenant and r.id = p_id;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
