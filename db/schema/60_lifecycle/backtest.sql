-- backtest re-runs the recorded histories of instances against a version of their workflow, or against a
-- definition in canonical form that is not registered.
--
-- Such a definition is stored under a version number that no version has, in a subtransaction that is rolled back
-- before anybody can see it. Nobody waits for that, neither commands nor registrations. But the transaction holds up
-- vacuum. So a call re-runs instances for as long as storing took, or for a tenth of a second if that is longer, and
-- ends. It also ends with the row by which its differences and checks have p_bytes. The caller goes on with the ids
-- that have no row.
--
-- The present limits of size apply. $.instance.workflow_version is the number of the candidate.
-- p_version, p_definition: the candidate, exactly one of them
-- p_ids: of the tenant's instances
-- Returns: one row per id, in their order, until the time is up or p_bytes are reached, but at least one. steps to
--          checks: see backtest_instance; steps is 0 if there is no such instance
-- Raises:  PW400 malformed-request, PW40W workflow-not-found, PW42D invalid-definition
-- Locks:   workflow (row exclusive) while the call runs, if a definition is given
-- Writes:  nothing that stays
create function pawl.backtest(
  p_workflow text, p_ids uuid[], p_version integer default null, p_definition jsonb default null,
  p_tenant text default 'default', p_bytes bigint default 1048576
) returns table (id uuid, steps integer, complete boolean, difference jsonb, checks jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_begun timestamptz := clock_timestamp(); -- Bounds the call; decides nothing.
  v_until timestamptz;
  v_now timestamptz := pawl.now();
  v_setting pawl.setting;
  v_version integer := p_version;
  v_bytes bigint := 0;
begin
  if (p_version is null) = (p_definition is null) then
    perform pawl_private.raise_condition('malformed-request', 'give either a version or a definition');
  end if;
  if not exists (
    select from pawl.workflow w where w.name = p_workflow and (p_version is null or w.version = p_version)
  ) then
    perform pawl_private.raise_condition(
      'workflow-not-found', format('workflow %s does not exist, or has no such version', p_workflow));
  end if;
  select * into strict v_setting from pawl.setting;
  begin
    if p_definition is not null then
      v_version := pawl_private.store_candidate(p_workflow, p_definition);
    end if;
    v_until := clock_timestamp() + greatest(clock_timestamp() - v_begun, interval '100 ms');
    foreach id in array coalesce(p_ids, '{}') loop
      select b.steps, b.complete, b.difference, b.checks
      into steps, complete, difference, checks
      from pawl_private.backtest_instance(
        p_tenant => p_tenant, p_id => id, p_workflow => p_workflow, p_version => v_version, p_now => v_now,
        p_setting => v_setting) b;
      return next; -- Rows that were returned outlive the subtransaction.
      v_bytes := v_bytes + coalesce(octet_length(difference::text), 0) + coalesce(octet_length(checks::text), 0);
      exit when clock_timestamp() > v_until or v_bytes >= p_bytes;
    end loop;
    raise exception 'rolled back' using errcode = 'PW999';
  exception when sqlstate 'PW999' then
    null;
  end;
end
$$;
