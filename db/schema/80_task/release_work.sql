-- release_work gives a task back, so that others may claim it at once. It costs no attempt.
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
create function pawl.release_work(
  p_id uuid, p_lease uuid, p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  return pawl_private.settle_work(p_tenant, p_id, p_lease, '{"result": "released"}');
end
$$;
