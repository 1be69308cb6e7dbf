-- complete_work completes a task in the caller's transaction, and moves its instance. If the state was left meanwhile, the
-- instance is as it was, and the task is late.
-- p_result: what the definition reads as $.payload.body
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
create function pawl.complete_work(
  p_id uuid, p_lease uuid, p_result jsonb default '{}', p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  if octet_length(p_result::text) > (select g.payload_limit from pawl.setting g) then
    perform pawl_private.raise_condition('payload-too-large', 'the result is larger than the limit of payloads');
  elsif p_result is null or pawl_private.is_too_deep(jsonb_build_object('body', p_result)) then
    perform pawl_private.refuse_malformed('a result is a JSON value, nested at most 63 deep');
  end if;
  return pawl_private.settle_work(p_tenant, p_id, p_lease, jsonb_build_object('result', 'completed', 'body', p_result));
end
$$;
