-- count_commands adds what a process has counted to pawl.command_count. Workflows that do not exist are left out.
-- p_workflows: empty for that of the instance
-- p_events:    empty for an event that is not declared
-- Raises:  PW400 malformed-request
-- Locks:   command_count (by key)
-- Writes:  command_count
create function pawl.count_commands(
  p_tenants text[], p_workflows text[], p_events text[], p_outcomes text[], p_key_results text[], p_commands bigint[], p_instances uuid[]
) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_day date := (pawl.now() at time zone 'UTC')::date;
  v_constraint text;
  v_column text;
begin
  perform set_config('synchronous_commit', 'off', true);
  insert into pawl.command_count as c (tenant_id, workflow, day, event, outcome, key_result, commands)
  select p.tenant_id, p.workflow, v_day, p.event, p.outcome, p.key_result, sum(p.commands)::bigint
  from (
    select a.tenant_id, w.workflow, pawl_private.counted_event(w.workflow, a.event) as event, a.outcome, a.key_result, a.commands
    from unnest(p_tenants, p_workflows, p_events, p_outcomes, p_key_results, p_commands, p_instances)
      as a (tenant_id, workflow, event, outcome, key_result, commands, instance_id)
    cross join lateral (
      select case
        when a.workflow = '' then (select i.workflow from pawl.instance i where i.tenant_id = a.tenant_id and i.id = a.instance_id)
        else a.workflow
      end as workflow
    ) w
  ) p
  where p.event is not null
  group by p.tenant_id, p.workflow, p.event, p.outcome, p.key_result
  -- In the order of the key, since several processes write.
  order by p.tenant_id collate "C", p.workflow collate "C", p.event collate "C", p.outcome collate "C", p.key_result collate "C"
  on conflict on constraint command_count_pkey do update set commands = c.commands + excluded.commands;
exception
  when data_exception or not_null_violation or check_violation or array_subscript_error or program_limit_exceeded then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
