-- subscription_update changes what is given as not null. Steps and findings that were committed before the change and are
-- not routed yet are chosen by the old filter, as far as route_only reads; those beyond by the new filter.
--
-- A subscription that is enabled again, or gets another URL, starts with a closed circuit, and its
-- deliveries that wait for a retry are due now. Steps that were committed while it was disabled are not
-- sent.
-- Returns: the subscription, or no row
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   consumer, subscription
-- Writes:  subscription, delivery, audit
create function pawl.subscription_update(
  p_tenant text, p_id uuid, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean,
  p_disabled boolean, p_caller jsonb default null, p_types text[] default null
) returns setof pawl.subscription_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz;
  v_afresh boolean;
  v_before jsonb;
begin
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  if p_disabled or coalesce(p_workflows, p_events, p_states, p_types) is not null or p_terminal_only is not null then
    perform pawl_private.route_only(p_tenant, p_id);
  end if;

  select p_url <> s.url or not p_disabled into v_afresh from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  v_before := pawl_private.subscription_document(p_tenant, p_id);
  update pawl.subscription s
  set
    url = coalesce(p_url, s.url),
    workflows = coalesce(p_workflows, s.workflows),
    events = coalesce(p_events, s.events),
    states = coalesce(p_states, s.states),
    terminal_only = coalesce(p_terminal_only, s.terminal_only),
    types = coalesce(p_types, s.types),
    disabled_at = case when p_disabled then coalesce(s.disabled_at, v_now) when p_disabled is null then s.disabled_at end,
    disabled_reason = case
      when p_disabled then coalesce(s.disabled_reason, 'it was disabled through the API')
      when p_disabled is null then s.disabled_reason
    end,
    since = case when not p_disabled and s.disabled_at is not null then pg_current_snapshot() else s.since end,
    later_seq = case when not p_disabled and s.disabled_at is not null then null else s.later_seq end,
    failures = case when v_afresh then 0 else s.failures end,
    circuit_open_until = case when not v_afresh or v_afresh is null then s.circuit_open_until end
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.update', p_target => p_id::text, p_before => v_before,
      p_after => pawl_private.subscription_document(p_tenant, p_id));
  end if;
  return query select r.* from pawl.subscription_row r where r.tenant_id = p_tenant and r.id = p_id;
  if v_afresh then
    update pawl.delivery d
    set next_attempt_at = v_now
    where d.ctid = any (array(
      select w.ctid
      from pawl.delivery w
      where w.tenant_id = p_tenant and w.subscription_id = p_id
        and w.status = 'pending' and w.next_attempt_at is not null and not w.callback
        and w.next_attempt_at > v_now
      order by w.tenant_id, w.subscription_id, w.next_attempt_at
      limit 10000
    ));
  end if;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
