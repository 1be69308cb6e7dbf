-- retire_workflow deletes a version of a workflow that no instance uses, final ones included. It counts
-- twice. The first count refuses a version in use before anybody waits. The second, under the lock, sees
-- instances that were created or moved meanwhile.
--
-- If the version was the latest, the one before it becomes the latest again. Its number is then given again,
-- unless instances were migrated away from it: their history names it, and a number in history must not
-- change its meaning. A workflow without versions does not exist, and its name is free.
--
-- If instances were migrated away from it, its states and transitions stay: see pawl.workflow_state.
--
-- It does not see a create in a repeatable read transaction that began before the version was retired: the
-- engine requires read committed.
-- p_checksum: the version's; the latest version with it is retired, unless p_version names another
-- Returns: whether there was such a version
-- Raises:  PW40V workflow-conflict if instances use it; 55P03 if the workflow table, the instance table or
--          the version's row, which a migration holds, stays locked for 300 ms: try again
-- Locks:   workflow (share update exclusive, and the row), then instance (share, while the workflow's instances
--          are counted: commands wait, readers do not)
-- Writes:  workflow, workflow_state, workflow_transition, instance_migration, audit
create function pawl.retire_workflow(p_name text, p_checksum text, p_version integer default null, p_caller jsonb default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_version integer;
  v_instances bigint;
begin
  lock table pawl.workflow in share update exclusive mode;
  select w.version
  into v_version
  from pawl.workflow w
  where w.name = p_name and w.checksum = p_checksum and (p_version is null or w.version = p_version)
  order by w.version desc
  limit 1
  for update;
  if not found then
    return false;
  end if;

  v_instances := pawl_private.count_instances(p_name, v_version);
  if v_instances = 0 then
    lock table pawl.instance in share mode;
    v_instances := pawl_private.count_instances(p_name, v_version);
  end if;
  if v_instances > 0 then
    perform pawl_private.raise_condition(
      'workflow-conflict', format('workflow %s: version %s is used by %s instances', p_name, v_version, v_instances),
      jsonb_build_object('version', v_version, 'instances', v_instances));
  end if;

  -- As long as instances exist that were migrated away, history names the version, and keys may replay its steps.
  if not exists (
    select from pawl.instance_migration m where m.workflow = p_name and m.from_version = v_version and m.moved > 0
  ) then
    delete from pawl.workflow_task t where t.workflow = p_name and t.workflow_version = v_version;
    delete from pawl.workflow_transition t where t.workflow = p_name and t.workflow_version = v_version;
    delete from pawl.workflow_state s where s.workflow = p_name and s.workflow_version = v_version;
  end if;
  delete from pawl.workflow w where w.name = p_name and w.version = v_version;
  -- Migrations from or to this version have ended.
  update pawl.instance_migration m
  set finished_at = pawl.now()
  where m.workflow = p_name and v_version in (m.from_version, m.to_version) and m.finished_at is null;
  perform pawl_private.audit(
    p_tenant => '*', p_caller => p_caller, p_action => 'workflow.retire', p_target => p_name || ' ' || v_version);
  return true;
end
$$;
