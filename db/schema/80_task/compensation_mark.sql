-- compensation_mark says of the newest step of a name that is not undone and could not be, that it is to be tried again, or
-- that it is skipped. Undoing goes on when the instance enters a state that undoes steps.
-- p_mark: retry or skip
-- Returns: the step as it became
-- Raises:  what pawl_private.operating raises; PW40K task-not-found if there is no such step; PW40D task-ended if it is undone already, or is being
--          undone; PW400
-- Locks:   instance (for no key update), then compensation
-- Writes:  compensation, audit
create function pawl.compensation_mark(
  p_tenant text, p_instance_id uuid, p_name text, p_mark text, p_reason text, p_actor text default session_user,
  p_caller jsonb default null
) returns pawl.compensation
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_step pawl.compensation;
  v_marked pawl.compensation;
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  perform pawl_private.refuse_malformed(
    case when p_mark not in ('retry', 'skip') or p_mark is null then 'a compensation is marked as retry or skip' end);
  perform from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id for no key update;
  select c.* into v_step
  from pawl.compensation c
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.name = p_name
  order by c.status in ('undone', 'void', 'skipped'), c.number desc
  limit 1
  for update;
  if not found then
    perform pawl_private.raise_condition('task-not-found', format('the instance has no step %s that can be undone', left(p_name, 64)));
  elsif v_step.status in ('undone', 'void') or v_step.status = 'skipped' and p_mark = 'skip' then
    perform pawl_private.raise_condition('task-ended', format('the step %s is %s already', v_step.name, v_step.status));
  elsif exists (
    select from pawl.task t where t.tenant_id = p_tenant and t.id = v_step.undone_by and t.ended_at is null
  ) then
    perform pawl_private.raise_condition('task-open', null);
  end if;
  update pawl.compensation c
  set status = case p_mark when 'skip' then 'skipped' else 'registered' end, reason = case p_mark when 'skip' then p_reason end
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number
  returning c.* into v_marked;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'compensation.' || p_mark,
    p_target => p_instance_id::text, p_reason => p_reason,
    p_before => jsonb_build_object('name', v_step.name, 'number', v_step.number, 'status', v_step.status));
  return v_marked;
end
$$;
