-- instance_timeout reads the next deadline of an instance. The planner inlines it, and every plan looks up
-- rows by their full keys.
-- Returns: one row, or none if there is no deadline
create function pawl.instance_timeout(p_tenant text, p_id uuid) returns setof pawl.timeout_row
language sql stable parallel safe
as $$
  select n.event, n.due_at, n.last_error
  from pawl.next_timeout n
  where n.tenant_id = p_tenant and n.instance_id = p_id
  limit 1
$$;
