-- fail_work says that a task was not done, in the caller's transaction.
-- p_retryable: whether it may be tried again, if its definition allows that. p_retry_in: not before; null for a random wait
-- p_outcome:   how it ends if there is no other attempt: error, as by default, or unknown
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
create function pawl.fail_work(
  p_id uuid, p_lease uuid, p_error text, p_retryable boolean default false, p_retry_in interval default null,
  p_outcome text default null, p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  if p_outcome not in ('error', 'unknown') then
    perform pawl_private.refuse_malformed('the outcome of a failed task is error or unknown');
  end if;
  return pawl_private.settle_work(p_tenant, p_id, p_lease, jsonb_strip_nulls(jsonb_build_object(
    'result', 'failed', 'error', left(p_error, 1000), 'retryable', p_retryable,
    'retry_in', greatest(extract(epoch from p_retry_in), 0), 'outcome', p_outcome)));
end
$$;
