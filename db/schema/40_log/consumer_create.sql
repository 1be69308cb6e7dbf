-- consumer_create creates a consumer, unless there is one of this name. It begins with the oldest step that is
-- kept if p_from_start, else with the steps that are committed from now on.
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Writes:  consumer
create function pawl.consumer_create(p_consumer text, p_from_start boolean default false) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
begin
  insert into pawl.consumer (name, position, since, term, leader, lease_until, relayed, advanced_at)
  select
    p_consumer, case when p_from_start then 0 else h.position end,
    case when p_from_start then '1:1:' else pg_current_snapshot() end, 0, '', v_now, 0, v_now
  from pawl.log_head h
  on conflict on constraint consumer_pkey do nothing;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
