-- validate_workflow marks a workflow's CHECK on pawl.instance as valid, if it is not. It reads the table
-- under a lock that blocks neither readers nor writers. Call it in a transaction of its own after
-- register_workflow.
-- Raises:  55P03 if another schema change runs for two seconds: try again
-- Locks:   instance (share update exclusive)
-- Writes:  the table's CHECK
create function pawl.validate_workflow(p_workflow text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
  if exists (
    select from pg_catalog.pg_constraint c
    where c.conrelid = 'pawl.instance'::regclass
      and c.conname = pawl_private.state_check_name(p_workflow)
      and not c.convalidated
  ) then
    execute format('alter table pawl.instance validate constraint %I', pawl_private.state_check_name(p_workflow));
  end if;
end
$$;
