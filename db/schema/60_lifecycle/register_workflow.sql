-- register_workflow stores a definition in canonical form as the next version of its workflow. If the content
-- is the latest version's, it changes nothing, and its commit waits as that of the version did: see
-- commit_synchronously. Canonical: every event and timeout, and always, is an array of
-- transitions; every target is the path of a state; every assign is an object or '*'; durations are like
-- '90s'.
-- p_version: the version that it must become; null for any
-- Returns: version; created: whether it is new
-- Raises:  PW40V workflow-conflict, PW42D invalid-definition
-- Locks:   workflow (share update exclusive): registrations wait for each other. They do not wait for
--          back-tests, which store their candidates there, and no command waits for either
-- Writes:  workflow, workflow_state, workflow_transition
create function pawl.register_workflow(
  p_definition jsonb, p_actor text default session_user, p_version integer default null,
  out version integer, out created boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- Plans over JSON of unknown size look expensive, and would be compiled for seconds.
set jit = off
as $$
#variable_conflict use_column
declare
  v_name text := p_definition ->> 'name';
  v_latest pawl.workflow;
  v_fault text;
begin
  v_fault := pawl_private.definition_fault(p_definition);
  if v_fault is not null then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || v_fault);
  end if;

  lock table pawl.workflow in share update exclusive mode;
  select * into v_latest from pawl.workflow w where w.name = v_name order by w.version desc limit 1;
  version := coalesce(v_latest.version, 0);
  created := v_latest.definition is distinct from p_definition;
  if created then
    -- A number is not given again if instances were migrated away from it: their history names it.
    version := 1 + greatest(
      version,
      (select max(m.from_version) from pawl.instance_migration m where m.workflow = v_name and m.moved > 0));
  end if;
  if p_version <> version then
    perform pawl_private.raise_condition(
      'workflow-conflict', format('workflow %s: version %s is next, not %s', v_name, version, p_version),
      jsonb_build_object('version', coalesce(v_latest.version, 0)));
  end if;
  if not created then
    perform pawl_private.commit_synchronously();
    return;
  end if;

  perform pawl_private.store_definition(
    p_name => v_name, p_version => version, p_definition => p_definition, p_actor => p_actor);
exception
  -- Raised by casts, by constraints and by the jsonpath parser.
  when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
    or program_limit_exceeded then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || sqlerrm);
end
$$;
