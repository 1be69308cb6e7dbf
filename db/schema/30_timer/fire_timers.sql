-- fire_timers works in the fast lane: it fires up to p_limit timers that are due, the oldest first, and moves
-- those that are known to be slow to the slow lane. If more are due, tenants take turns. The statement timeout
-- bounds the call. If it comes while guards run, the call returns and has fired nothing, or the timers before that.
-- p_one_kind: fire only timers of the oldest one's kind. If that takes too long, the kind counts as slow, and
--             those of the timers that could not be fired in time are moved to the slow lane
-- Returns: looked_at: how many timers were read; -1 if another process works in the lane. fired: how
--          many steps were made. late: for how long the oldest had been due. next_in: the time until the
--          next timer is due; null if there is none. failures: a JSON array of the
--          timers that fail: {tenant, workflow, instance, event, reason, cause}; without those that failed
--          before with the same reason. timed_out: whether the statement timeout came
-- Raises:  57014 the statement timeout came before any guard ran
-- Locks:   timer_lane (if it is not locked), instance (for no key update, those that are not locked), timer,
--          slow_queue
-- Writes:  instance, history, timer, slow_queue, timer_lane
create function pawl.fire_timers(
  p_limit integer, p_one_kind boolean default false, out looked_at integer, out fired integer, out late interval,
  out next_in interval, out failures jsonb, out timed_out boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_begun timestamptz; -- Measures the call; decides nothing.
  v_timer record;
  v_instances pawl.instance[] := '{}';
  v_tenants text[] := '{}';
  v_ids uuid[] := '{}';
  v_versions bigint[] := '{}';
  v_events text[] := '{}';
  v_tried integer[] := '{}';
  v_next_tried integer[] := '{}';
  v_due_at timestamptz[] := '{}';
  v_done integer;
  v_queue integer;
  v_turns text[];
begin
  looked_at := -1;
  fired := 0;
  late := interval '0';
  failures := '[]';
  timed_out := false;
  perform from pawl_private.timer_lane l where l.name = 'fast' for update skip locked;
  if found then
    looked_at := 0;
    if exists (
      select from pawl.timer t
      where t.due_at <= v_now and t.queued_version is distinct from t.armed_version
      order by t.due_at
      offset greatest(p_limit, 0)
      limit 1
    ) then
      v_turns := pawl_private.timer_turns(p_now => v_now, p_limit => p_limit);
    end if;
    for v_timer in
      select t.* from pawl_private.due_timers(p_now => v_now, p_limit => p_limit, p_queue => null, p_tenants => v_turns) t
    loop
      looked_at := looked_at + 1;
      if v_timer.due_at > v_now or v_timer.due_at is null then
        perform pawl_private.set_timer(v_timer.instance, v_timer.tried);
      elsif v_timer.queue is not null then
        perform pawl_private.queue_timer(v_timer.instance, v_timer.queue);
      elsif p_one_kind and v_ids <> '{}' and (
        (v_timer.instance).tenant_id, (v_timer.instance).workflow, (v_timer.instance).workflow_version, v_timer.event
      ) <> (v_tenants[1], (v_instances[1]).workflow, (v_instances[1]).workflow_version, v_events[1]) then
        continue; -- The next calls fire it.
      else
        v_instances := v_instances || v_timer.instance;
        v_tenants := v_tenants || (v_timer.instance).tenant_id::text;
        v_ids := v_ids || (v_timer.instance).id;
        v_versions := v_versions || (v_timer.instance).version::bigint;
        v_events := v_events || v_timer.event;
        v_tried := v_tried || v_timer.tried;
        v_next_tried := v_next_tried || v_timer.next_tried;
        v_due_at := v_due_at || v_timer.due_at;
        late := greatest(late, v_now - v_timer.due_at);
      end if;
    end loop;
    if cardinality(v_ids) > 0 then
      v_begun := clock_timestamp();
      select b.fired, b.failures, b.done
      into fired, failures, v_done
      from pawl_private.fire_timer_batch(
        p_tenants => v_tenants, p_ids => v_ids, p_versions => v_versions, p_events => v_events, p_tried => v_tried,
        p_next_tried => v_next_tried, p_due_at => v_due_at) b;
      timed_out := v_done < cardinality(v_ids);
      if p_one_kind and (timed_out or pawl_private.too_slow(clock_timestamp() - v_begun, cardinality(v_ids))) then
        v_queue := pawl_private.note_slow(v_instances[1], v_events[1], v_now);
        for v_i in v_done + 1 .. cardinality(v_ids) loop
          perform pawl_private.queue_timer(v_instances[v_i], v_queue);
        end loop;
      end if;
    end if;
  end if;
  select min(n.due_at) - v_now
  into next_in
  from (
    -- Of those that are due, the first of a tenant that is not disabled, if one is among the first; then those to come.
    select o.due_at
    from (
      select t.tenant_id, t.due_at
      from pawl.timer t
      where t.due_at <= v_now and t.queued_version is distinct from t.armed_version
      order by t.due_at
      limit greatest(p_limit, 0)::bigint + 1
    ) o
    where not pawl_private.is_disabled(o.tenant_id)
    union all
    (
      select t.due_at
      from pawl.timer t
      where t.due_at > v_now and t.queued_version is distinct from t.armed_version
      order by t.due_at
      limit 1
    )
  ) n;
  if v_turns is not null and exists (select from pawl_private.timer_lane l where l.name = 'fast' and l.after_tenant <> '') then
    next_in := interval '0'; -- There may be tenants with due timers behind the last turn.
  end if;
end
$$;
