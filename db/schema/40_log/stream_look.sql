-- stream_look looks at the next page of the log for a tenant's stream: up to p_limit rows of all tenants.
-- p_tenant, p_floor: as for stream_read
-- Returns: as log_place; and until: the last position of the page, or null if there is none. steps: how many
--          steps are the tenant's
-- Raises:  PW410 steps of p_workflows that follow have been purged
create function pawl.stream_look(
  p_tenant text, p_workflows text[], p_floor bigint, p_epoch bigint, p_position bigint, p_limit integer,
  out epoch bigint, out place bigint, out state text, out until bigint, out steps bigint
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  select p.epoch, p.place, p.state into epoch, place, state from pawl.log_place(p_epoch, p_position) p;
  if state = 'known' then
    select max(l.position), count(*) filter (where l.finding_id is null and (p_tenant = '*' or l.tenant_id = p_tenant))
    into until, steps
    from (select l.position, l.tenant_id, l.finding_id from pawl.log l where l.position > p_position order by l.position limit p_limit) l;
    if pawl_private.steps_lost(p_tenant, p_workflows, p_position, coalesce(until, p_position), p_floor) then
      perform pawl_private.raise_condition('steps-purged', 'steps that follow have been purged');
    end if;
  end if;
end
$$;
