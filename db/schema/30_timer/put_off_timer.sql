-- put_off_timer postpones the timer that is due first by a minute. The worker calls it when that timer
-- alone cannot be fired within the statement timeout.
-- Returns: the id of the instance; null if no timer is due
-- Locks:   timer (for update, skipping what is locked)
-- Writes:  timer
create function pawl.put_off_timer() returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.timer t
  set due_at = pawl.now() + interval '1 minute'
  from (
    select t.tenant_id, t.instance_id
    from pawl.timer t
    where t.due_at <= (select pawl.now())
    order by t.due_at
    limit 1
    for update skip locked
  ) d
  where t.tenant_id = d.tenant_id and t.instance_id = d.instance_id
  returning t.instance_id
$$;
