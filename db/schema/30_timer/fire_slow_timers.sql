-- fire_slow_timers works in the slow lane: it takes the queue whose turn it is, and fires its timers, the oldest
-- first, one after the other, until 20 milliseconds have passed. The statement timeout bounds the call. A
-- timer that it interrupts fails.
-- Returns: looked_at: how many timers were read; -1 if another process works in the lane. fired: how many
--          steps were made. failures: as of fire_timers
-- Raises:  57014 the statement timeout came before any guard ran
-- Locks:   timer_lane (if it is not locked), instance (for no key update, those that are not locked), timer,
--          slow_queue
-- Writes:  instance, history, timer, slow_queue
create function pawl.fire_slow_timers(out looked_at integer, out fired integer, out failures jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_begun timestamptz := clock_timestamp(); -- Measures the call; decides nothing.
  v_queue pawl_private.slow_queue;
  v_timer record;
  v_one record;
begin
  looked_at := -1;
  fired := 0;
  failures := '[]';
  perform from pawl_private.timer_lane l where l.name = 'slow' for update skip locked;
  if not found then
    return;
  end if;
  looked_at := 0;
  select q.*
  into v_queue
  from (
    select
      max(q.turn_at) over (partition by q.tenant_id) as tenant_turn_at,
      max(q.turn_at) over (partition by q.tenant_id, q.workflow) as workflow_turn_at,
      q as queue
    from pawl_private.slow_queue q
  ) o
  cross join lateral (select (o.queue).*) q
  where exists (
    select from pawl.timer t
    where t.queue = q.id and t.due_at <= v_now and t.queued_version = t.armed_version
  )
    and not pawl_private.is_disabled(q.tenant_id)
  order by o.tenant_turn_at, o.workflow_turn_at, q.turn_at, q.id
  limit 1;
  if not found then
    -- Nothing is in the lane: a kind that has not been slow for a day is forgotten.
    delete from pawl_private.slow_queue q
    where q.slow_until < v_now - interval '1 day'
      and not exists (select from pawl.timer t where t.queue = q.id and t.queued_version = t.armed_version);
    return;
  end if;

  loop
    -- One at a time, so that no instance is locked while another's guard runs.
    select t.* into v_timer from pawl_private.due_timers(v_now, 1, v_queue.id) t;
    exit when not found;
    looked_at := looked_at + 1;
    if v_timer.due_at > v_now or v_timer.due_at is null or v_timer.queued_version <> (v_timer.instance).version then
      perform pawl_private.set_timer(v_timer.instance, v_timer.tried);
    else
      v_one := pawl_private.fire_timer_batch(
        p_tenants => array[(v_timer.instance).tenant_id::text], p_ids => array[(v_timer.instance).id],
        p_versions => array[(v_timer.instance).version::bigint], p_events => array[v_timer.event],
        p_tried => array[v_timer.tried], p_next_tried => array[v_timer.next_tried], p_due_at => array[v_timer.due_at]);
      fired := fired + v_one.fired;
      failures := failures || v_one.failures;
      if v_one.done = 0 then
        failures := failures || pawl_private.fail_timer(
          p_instance => v_timer.instance, p_tried => v_timer.tried, p_event => v_timer.event,
          p_error => 'the step takes longer than the statement timeout', p_cause => null);
        exit;
      end if;
    end if;
    exit when clock_timestamp() - v_begun > interval '20 milliseconds';
  end loop;
  update pawl_private.slow_queue q
  set turn_at = v_now,
    slow_until = case
      when looked_at > 0 and pawl_private.too_slow(clock_timestamp() - v_begun, looked_at) then v_now + pawl_private.slow_for(q.times)
      else q.slow_until
    end
  where q.id = v_queue.id;
end
$$;
