-- claim_work is for workers on the same database. It claims tasks of a topic in the caller's transaction: until that commits
-- nobody else can claim them, and if it is rolled back, they were never claimed. Until then no step is made of their
-- instances either. A worker that completes in the same transaction cannot lose its lease.
-- Returns: the tasks, each with its input and its lease
-- Raises:  what pawl_private.bound_actor raises; PW400
-- Locks:   instance (for no key update, those that are not locked), task (those that are not locked)
-- Writes:  task, task_attempt, compensation
create function pawl.claim_work(
  p_topic text, p_worker text default session_user, p_max integer default 1, p_lease interval default null,
  p_tenant text default 'default'
) returns setof pawl.work
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  return query select w.* from pawl_private.work_claim(p_tenant, p_topic, p_worker, p_max, p_lease, p_holds => true) w;
end
$$;
