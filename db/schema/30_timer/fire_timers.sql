-- fire_timers ends up to p_limit timeouts and lifetimes that are due, the oldest first.
-- Returns: looked_at: how many timers were read; -1 if another process is firing timers. fired: how
--          many timeouts and lifetimes were ended. late: for how long the oldest had been due. next_in:
--          the time until the next timer is due; null if there is none
-- Locks:   an advisory lock that one process at a time gets, instance (for no key update, those that
--          are not locked), timer
-- Writes:  instance, history, timer
create function pawl.fire_timers(
  p_limit integer, out looked_at integer, out fired integer, out late interval, out next_in interval
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_timer record;
  v_tenant text;
  v_ids uuid[];
  v_versions bigint[];
  v_events text[];
  v_tried integer[];
  v_due_at timestamptz[];
begin
  looked_at := -1;
  fired := 0;
  late := interval '0';
  if pg_try_advisory_xact_lock(hashtextextended('pawl.fire_timers', 0)) then
    looked_at := 0;
    for v_timer in
      select t.tenant_id, i.instance, a.tried, d.due_at, d.event, d.tried as next_tried
      from (
        select t.* from pawl.timer t where t.due_at <= v_now order by t.due_at limit p_limit
      ) t
      cross join lateral (
        select i as instance
        from pawl.instance i
        where i.tenant_id = t.tenant_id and i.id = t.instance_id
        limit 1
        for no key update skip locked
      ) i
      -- A refused timeout counts only while the instance stays in the state that refused it.
      cross join lateral (
        select case when t.armed_version = (i.instance).version then t.tried else 0 end as tried
      ) a
      left join lateral pawl_private.next_deadline(i.instance, a.tried) d on true
      order by t.tenant_id
    loop
      looked_at := looked_at + 1;
      if v_timer.due_at <= v_now then
        if v_timer.tenant_id <> v_tenant then
          fired := fired + pawl_private.fire_timer_batch(
            p_tenant => v_tenant, p_ids => v_ids, p_versions => v_versions, p_events => v_events, p_tried => v_tried,
            p_due_at => v_due_at);
          v_ids := null; v_versions := null; v_events := null; v_tried := null; v_due_at := null;
        end if;
        v_tenant := v_timer.tenant_id;
        v_ids := v_ids || (v_timer.instance).id;
        v_versions := v_versions || (v_timer.instance).version;
        v_events := v_events || v_timer.event;
        v_tried := v_tried || v_timer.next_tried;
        v_due_at := v_due_at || v_timer.due_at;
        late := greatest(late, v_now - v_timer.due_at);
      else
        perform pawl_private.set_timer(v_timer.instance, v_timer.tried);
      end if;
    end loop;
    if v_ids is not null then
      fired := fired + pawl_private.fire_timer_batch(
            p_tenant => v_tenant, p_ids => v_ids, p_versions => v_versions, p_events => v_events, p_tried => v_tried,
            p_due_at => v_due_at);
    end if;
  end if;
  select t.due_at - v_now into next_in from pawl.timer t order by t.due_at limit 1;
end
$$;
