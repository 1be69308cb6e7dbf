-- subscription_create creates a subscription to the steps that are committed, and the findings that are opened, from now on.
-- p_secret: sealed or not
-- p_types:  of CloudEvents; empty for those of all steps
-- p_seed:   the last 62 bits of the id, for which the secret is sealed
-- Returns: the subscription
-- Raises:  PW400 malformed-request if an argument breaks a rule; PW40M limit-reached
-- Locks:   tenant (for no key update, if its subscriptions have a limit)
-- Writes:  subscription, audit
create function pawl.subscription_create(
  p_tenant text, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean, p_secret text,
  p_actor text, p_seed uuid default gen_random_uuid(), p_caller jsonb default null, p_types text[] default '{}'
) returns setof pawl.subscription_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
  v_id uuid := pawl_private.uuid_v7_with(v_now, uuid_send(p_seed));
  v_reached jsonb := pawl_private.subscription_limit(p_tenant);
begin
  if v_reached is not null then
    perform pawl_private.raise_condition('limit-reached', pawl_private.limit_text(v_reached), v_reached);
  end if;
  insert into pawl.subscription (
    tenant_id, id, url, workflows, events, states, terminal_only, types, secret, since, created_at, created_by)
  values (
    p_tenant, v_id, p_url, p_workflows, p_events, p_states, p_terminal_only, p_types, p_secret,
    pg_current_snapshot(), v_now, p_actor);
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.create', p_target => v_id::text,
    p_after => pawl_private.subscription_document(p_tenant, v_id));
  return query select r.* from pawl.subscription_row r where r.tenant_id = p_tenant and r.id = v_id;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
