-- subscription_create creates a subscription to the steps that are committed from now on.
-- Returns: the subscription
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Writes:  subscription
create function pawl.subscription_create(
  p_tenant text, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean, p_secret text,
  p_actor text
) returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
begin
  return query
  insert into pawl.subscription (
    tenant_id, id, url, workflows, events, states, terminal_only, secret, since, created_at, created_by)
  values (
    p_tenant, pawl_private.uuid_v7(v_now), p_url, p_workflows, p_events, p_states, p_terminal_only, p_secret,
    pg_current_snapshot(), v_now, p_actor)
  returning *;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
