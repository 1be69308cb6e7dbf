-- put_off_timer records a failure of the one timer of the fast lane that has been due for the longest, and
-- postpones it. No worker calls it: it is for an operator whose timers are held up by one.
-- Returns: the failures, as fire_timers does
-- Locks:   instance (for no key update, unless it is locked), timer
-- Writes:  timer
create function pawl.put_off_timer() returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_timer record;
begin
  select * into v_timer from pawl_private.due_timers(pawl.now(), 1, null);
  if not found then
    return '[]';
  end if;
  return pawl_private.fail_timer(
    p_instance => v_timer.instance, p_tried => v_timer.tried, p_event => v_timer.event,
    p_error => 'it was put off by an operator', p_cause => null);
end
$$;
