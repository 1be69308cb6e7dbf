-- stream_read reads a page of a tenant's steps that p_batch sees and p_cursor does not, after the seq
-- p_after. Each page sorts all of them, so the caller must have had stream_can_resume bound their number.
-- Returns: up to p_limit rows of history, in the order of seq. The page ends when its contexts and payloads
--          have p_bytes or more, but has at least one row
-- Raises:  PW410 steps that p_cursor does not see have been purged
create function pawl.stream_read(
  p_tenant text, p_workflows text[], p_cursor pg_snapshot, p_batch pg_snapshot, p_after bigint, p_limit integer,
  p_bytes bigint
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  if pawl_private.steps_lost(p_tenant, p_workflows, p_cursor) then
    perform pawl_private.raise_condition('steps-purged', 'steps that follow have been purged');
  end if;
  return query
  select (s.step).*
  from (
    select
      h as step,
      sum(octet_length(h.context::text) + coalesce(octet_length(h.payload::text), 0))
        over (order by h.seq rows between unbounded preceding and 1 preceding) as before
    from (
      select h.*
      from pawl_private.steps_since(p_cursor) h
      where h.xid < pg_snapshot_xmax(p_batch)
        and pg_visible_in_snapshot(h.xid, p_batch)
        and h.seq > p_after
        and h.tenant_id = p_tenant
      order by h.seq
      limit p_limit
    ) h
  ) s
  where coalesce(s.before, 0) < p_bytes
  order by (s.step).seq;
end
$$;
