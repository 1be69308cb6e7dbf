-- past_timeout reads the next deadline as it was right after one of an instance's steps.
-- Returns: one row, or none if there was no deadline
create function pawl.past_timeout(p_tenant text, p_id uuid, p_version bigint) returns setof pawl.timeout_row
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    pawl_private.deadline_event(i.state_changed_at, s.timeouts, s.timeout_events, i.memory, i.expires_at),
    pawl_private.deadline(i.state_changed_at, s.timeouts, i.memory, i.expires_at),
    null::text
  from pawl.instance_at i
  join pawl.workflow_state s
    on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
  where i.tenant_id = p_tenant and i.id = p_id and i.version = p_version and i.status = 'active'
    and (i.expires_at is not null or s.timeouts <> '{}' or i.memory ? 'due')
$$;
