-- subscription_update changes what is given as not null. Steps that were committed before the change are
-- chosen by the old filter: up to 20,000 unrouted ones, and up to 20,000 more if the router is behind. What
-- the router is behind beyond that is chosen by the new filter.
--
-- A subscription that is enabled again, or gets another URL, starts with a closed circuit, and its
-- deliveries that wait for a retry are due now. Steps that were committed while it was disabled are not
-- sent.
-- Returns: the subscription, or no row
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   consumer, subscription
-- Writes:  subscription, delivery
create function pawl.subscription_update(
  p_tenant text, p_id uuid, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean,
  p_disabled boolean
) returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz;
  v_consumer pawl.consumer;
  v_batch pg_snapshot;
  v_place bigint;
  v_afresh boolean;
  v_instances uuid[];
  v_versions bigint[];
  v_kinds text[];
begin
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  if v_consumer.cursor is not null and (p_disabled or coalesce(p_workflows, p_events, p_states) is not null or p_terminal_only is not null) then
    select array_agg(m.instance_id order by m.seq), array_agg(m.version order by m.seq), array_agg(m.kind order by m.seq)
    into v_instances, v_versions, v_kinds
    from (
      select u.seq, u.instance_id, u.version, h.kind::text
      from (
        select u.* from pawl.unrouted_step u where u.tenant_id = p_tenant order by u.tenant_id, u.seq limit 20000
      ) u
      cross join lateral (
        select h.* from pawl.history h where h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version limit 1
      ) h
      cross join lateral (
        select s from pawl.subscription s where s.tenant_id = u.tenant_id and s.id = p_id limit 1
      ) s
      where pawl_private.subscription_wants(s.s, h.xid, h.workflow, h.event, h.to_state, h.status)
    ) m;
    perform pawl_private.add_deliveries(
      array_fill(p_tenant, array[coalesce(cardinality(v_instances), 0)]), array_fill(p_id, array[coalesce(cardinality(v_instances), 0)]),
      v_instances, v_versions, v_kinds);
    v_batch := pg_current_snapshot();
    -- From the cursor on: what a begun batch does not see may be below the place that it was read up to.
    v_consumer.batch := null;
    v_consumer.batch_seq := 0;
    v_consumer.batch_end := null;
    for page in 1..20 loop
      select m.place into v_place from pawl_private.route_page(
        p_consumer => v_consumer, p_batch => v_batch, p_limit => 1000, p_only => p_id) m;
      exit when v_place is null;
      v_consumer.batch_seq := v_place;
    end loop;
  end if;

  select p_url <> s.url or not p_disabled into v_afresh from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  return query
  update pawl.subscription s
  set
    url = coalesce(p_url, s.url),
    workflows = coalesce(p_workflows, s.workflows),
    events = coalesce(p_events, s.events),
    states = coalesce(p_states, s.states),
    terminal_only = coalesce(p_terminal_only, s.terminal_only),
    disabled_at = case when p_disabled then coalesce(s.disabled_at, v_now) when p_disabled is null then s.disabled_at end,
    disabled_reason = case
      when p_disabled then coalesce(s.disabled_reason, 'it was disabled through the API')
      when p_disabled is null then s.disabled_reason
    end,
    since = case when not p_disabled and s.disabled_at is not null then pg_current_snapshot() else s.since end,
    failures = case when v_afresh then 0 else s.failures end,
    circuit_open_until = case when not v_afresh or v_afresh is null then s.circuit_open_until end
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*;
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
