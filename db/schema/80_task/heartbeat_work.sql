-- heartbeat_work extends a lease, by as much as its definition says.
-- p_progress: what people see of it; null to leave it
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
create function pawl.heartbeat_work(
  p_id uuid, p_lease uuid, p_progress jsonb default null, p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  if octet_length(p_progress::text) > 4096 then
    perform pawl_private.refuse_malformed('progress has at most 4096 bytes');
  end if;
  return pawl_private.settle_work(p_tenant, p_id, p_lease, jsonb_build_object('result', 'heartbeat')
    || case when p_progress is not null then jsonb_build_object('progress', p_progress) else '{}' end);
end
$$;
