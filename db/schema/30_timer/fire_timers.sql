-- fire_timers fires up to p_limit timers that are due, the oldest first.
-- Returns: looked_at: how many timers were read; -1 if another process is firing timers. fired: how
--          many steps were made. late: for how long the oldest had been due. next_in: the time until the
--          next timer is due; null if there is none. failures: a JSON array of the
--          timers that fail: {tenant, workflow, instance, event, reason, cause}; without those that failed
--          before with the same reason
-- Locks:   an advisory lock that one process at a time gets, instance (for no key update, those that
--          are not locked), timer
-- Writes:  instance, history, timer
create function pawl.fire_timers(
  p_limit integer, out looked_at integer, out fired integer, out late interval, out next_in interval,
  out failures jsonb
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_timer record;
  v_tenants text[] := '{}';
  v_ids uuid[] := '{}';
  v_versions bigint[] := '{}';
  v_events text[] := '{}';
  v_tried integer[] := '{}';
  v_next_tried integer[] := '{}';
  v_due_at timestamptz[] := '{}';
begin
  looked_at := -1;
  fired := 0;
  late := interval '0';
  failures := '[]';
  if pg_try_advisory_xact_lock(hashtextextended('pawl.fire_timers', 0)) then
    looked_at := 0;
    for v_timer in select t.* from pawl_private.due_timers(v_now, p_limit) t loop
      looked_at := looked_at + 1;
      if v_timer.due_at <= v_now then
        v_tenants := v_tenants || (v_timer.instance).tenant_id::text;
        v_ids := v_ids || (v_timer.instance).id;
        v_versions := v_versions || (v_timer.instance).version::bigint;
        v_events := v_events || v_timer.event;
        v_tried := v_tried || v_timer.tried;
        v_next_tried := v_next_tried || v_timer.next_tried;
        v_due_at := v_due_at || v_timer.due_at;
        late := greatest(late, v_now - v_timer.due_at);
      else
        perform pawl_private.set_timer(v_timer.instance, v_timer.tried);
      end if;
    end loop;
    if cardinality(v_ids) > 0 then
      select b.fired, b.failures
      into fired, failures
      from pawl_private.fire_timer_batch(
        p_tenants => v_tenants, p_ids => v_ids, p_versions => v_versions, p_events => v_events, p_tried => v_tried,
        p_next_tried => v_next_tried, p_due_at => v_due_at) b;
    end if;
  end if;
  select t.due_at - v_now into next_in from pawl.timer t order by t.due_at limit 1;
end
$$;
