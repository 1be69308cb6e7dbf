-- finding_look looks for what is wrong, and opens and closes findings. Without the consumer insight it does nothing.
-- p_limit: bounds what is read, of each kind; p_every: nothing is done if the last look was so short a time ago and was complete
-- Returns: opened, closed: how many findings, without those that steps and purges close; more: whether more is due
-- Raises:  PW400 malformed-request
-- Locks:   watch (if nobody else holds it), consumer, residence (for key share, those that are not locked)
-- Writes:  watch, watch_place, finding, log, stuck_place
create function pawl.finding_look(p_limit integer, p_every interval, out opened bigint, out closed bigint, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_watch pawl_private.watch;
  v_place pawl_private.stuck_place;
  v_limit integer := greatest(p_limit, 1);
  v_looked bigint := 0;
  v_at_place record;
  v_tasks record;
  v_deliveries record;
  v_timers record;
  v_lanes record;
  v_causes record;
  v_bad bigint;
  v_purged record;
begin
  perform pawl_private.refuse_malformed(
    case when p_every between interval '0' and interval '10 years' then null else 'the time between looks is from 0 to 10 years' end);
  opened := 0; closed := 0; more := false;
  select w.* into v_watch from pawl_private.watch w for update skip locked;
  if not found or v_watch.looked_at > v_now - p_every and v_watch.looked_at <= v_now then
    return;
  end if;
  perform from pawl.consumer c where c.name = 'insight' for no key update;
  if not found then
    return;
  end if;
  for v_place in select p.* from pawl_private.stuck_place p where p.next_at <= v_now order by p.next_at limit v_limit loop
    select * into v_at_place from pawl_private.look_at_place(v_place, v_limit, v_now);
    opened := opened + v_at_place.opened;
    -- A place costs about as much as some instances.
    v_looked := v_looked + v_at_place.looked + 5;
    exit when v_looked >= v_limit;
  end loop;
  more := v_looked >= v_limit;

  select * into v_causes from pawl_private.walk_on('cause', v_watch.cause_tenant, v_limit);
  closed := pawl_private.look_at_causes(v_causes.tenants, v_causes.ids, v_now);
  select * into v_tasks from pawl_private.walk_on('task', v_watch.task_tenant, v_limit);
  v_bad := pawl_private.look_at_tasks(v_tasks.tenants, v_tasks.ids, v_now);
  -- Where tasks ended badly, there may be more behind them. Those that are known already are walked at leisure.
  more := more or v_bad > 0 and v_tasks.cut;
  select * into v_deliveries from pawl_private.walk_on('delivery', v_watch.delivery_tenant, v_limit);
  select * into v_timers from pawl_private.walk_on('timer', v_watch.timer_tenant, v_limit);
  select * into v_lanes from pawl_private.look_at_lanes(v_watch.lane_tenant, least(v_limit, 100), v_now);
  opened := opened + v_bad + v_lanes.opened + pawl_private.look_at_deliveries(v_deliveries.tenants, v_deliveries.ids, v_now)
    + pawl_private.look_at_timers(v_timers.tenants, v_timers.ids, v_now);

  select * into v_purged from pawl_private.purge_findings(v_watch.purged_at, v_watch.purged_id, v_limit, v_now - interval '30 days');

  update pawl_private.watch w
  set looked_at = case when more then '-infinity' else v_now end,
    task_tenant = v_tasks.upto, delivery_tenant = v_deliveries.upto, cause_tenant = v_causes.upto,
    timer_tenant = v_timers.upto, lane_tenant = v_lanes.upto,
    purged_at = v_purged.upto_at, purged_id = v_purged.upto_id;
end
$$;
