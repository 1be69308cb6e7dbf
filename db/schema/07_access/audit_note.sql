-- audit_note writes down refusals, or reads of the audit. What was done is written by the function that does it, in the
-- same transaction, so that nobody can claim an act here.
-- p_outcome: the code of the problem; 'done' for the action audit.read alone
-- p_count:   how many of them the row stands for
-- Raises:  PW400 malformed-request
-- Writes:  audit
create function pawl.audit_note(
  p_tenant text, p_caller jsonb, p_action text, p_outcome text, p_reason text default null, p_count bigint default 1
) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
begin
  if p_outcome = 'done' and p_action is distinct from 'audit.read' then
    perform pawl_private.raise_condition('malformed-request', format('%s was not done by this call: give the code of a refusal', p_action));
  end if;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => p_action, p_target => null, p_outcome => p_outcome,
    p_reason => p_reason, p_count => p_count);
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
