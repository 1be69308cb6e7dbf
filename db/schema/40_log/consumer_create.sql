-- consumer_create creates a consumer, unless there is one of this name. It begins with the oldest step that is
-- kept if p_from_start, else with the steps that are committed from now on.
-- p_audit: whether it reads the audit, and not the steps. Unless p_from_start, it begins with the rows that get their
--          position from now on
-- Raises:  PW400 malformed-request if an argument breaks a rule, or if the consumer that there is reads the other
-- Writes:  consumer
create function pawl.consumer_create(p_consumer text, p_from_start boolean default false, p_audit boolean default false) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
begin
  insert into pawl.consumer (name, audit, position, since, term, leader, lease_until, relayed, advanced_at)
  select
    p_consumer, p_audit, case when p_from_start then 0 when p_audit then h.audit_position else h.position end,
    case when p_from_start or p_audit then '1:1:' else pg_current_snapshot() end, 0, '', v_now, 0, v_now
  from pawl.log_head h
  on conflict on constraint consumer_pkey do nothing;
  if not found and exists (select from pawl.consumer c where c.name = p_consumer and c.audit <> p_audit) then
    perform pawl_private.raise_condition('malformed-request', format(
      'the consumer %s reads %s: choose another name', p_consumer, case when p_audit then 'steps' else 'the audit' end));
  end if;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
