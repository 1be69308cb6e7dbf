-- register_workflow stores a definition in canonical form as the next version of its workflow. If the content
-- is the latest version's, it changes nothing, and its commit waits as that of the version did: see
-- commit_synchronously. Canonical: every event and timeout, and always, is an array of
-- transitions; every target is the path of a state; every assign is an object or '*'; durations are like
-- '90s'.
-- p_version: the version that it must become; null for any
-- p_confirm: 'shorten-retention' to keep final instances for a shorter time than the latest version does: those that are
--            older are purged at once
-- p_retention_floor: the shortest retention that is taken; null for any
-- Returns: version; created: whether it is new
-- Raises:  PW40V workflow-conflict, PW42D invalid-definition, PW400 malformed-request
-- Locks:   workflow (share update exclusive): registrations wait for each other. They do not wait for
--          back-tests, which store their candidates there, and no command waits for either
-- Writes:  workflow, workflow_state, workflow_transition, audit
create function pawl.register_workflow(
  p_definition jsonb, p_actor text default session_user, p_version integer default null, p_confirm text default null,
  p_retention_floor interval default null, p_caller jsonb default null,
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
  v_retention interval;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(p_tenant => '*', p_actor => p_actor));
  if p_confirm <> 'shorten-retention' then
    perform pawl_private.raise_condition('malformed-request', 'what can be confirmed is shorten-retention');
  end if;
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
  perform pawl_private.search_begins(v_name, v_latest.search, v_latest.name is null);
  v_retention := (select w.retention from pawl.workflow w where w.name = v_name and w.version = register_workflow.version);
  if v_retention < p_retention_floor then
    perform pawl_private.raise_condition(
      'invalid-definition', 'the retention is shorter than the deployment allows',
      jsonb_build_object('errors', jsonb_build_array(jsonb_build_object(
        'pointer', '/retention', 'detail', format(
          'must be at least %s: see --retention-floor', pawl_private.plain_duration(p_retention_floor))))));
  elsif v_latest.name is not null and p_confirm is null
    and coalesce(v_retention < v_latest.retention, v_latest.retention is null and v_retention is not null) then
    perform pawl_private.raise_condition(
      'workflow-conflict',
      format(
        'workflow %s: final instances would be kept for a shorter time, and older ones purged. If that is meant, say so by '
        '?confirm=shorten-retention, by --confirm shorten-retention of pawl workflow apply and migration, or by p_confirm in SQL',
        v_name),
      jsonb_build_object('version', v_latest.version));
  end if;
  perform pawl_private.audit(
    p_tenant => '*', p_caller => coalesce(p_caller, pawl_private.session_caller(p_actor)), p_action => 'workflow.register',
    p_target => v_name || ' ' || version, p_reason => p_confirm);
exception
  -- Raised by casts, by constraints and by the jsonpath parser.
  when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
    or program_limit_exceeded then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || sqlerrm);
end
$$;
