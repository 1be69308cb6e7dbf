-- audit_purge deletes the oldest rows of the audit that were written before a time, no more than p_limit of them. Only
-- the owner may call it. Rows that a consumer has not read stay. That rows were deleted is written down.
-- Returns: purged: how many were deleted; fewer than p_limit if no more can be. kept: then, how many that old stay for a
--          consumer
-- Raises:  PW400 malformed-request if the time is not past: the call would delete its own row
-- Locks:   audit
-- Writes:  audit, audit_log
create function pawl.audit_purge(
  p_before timestamptz, p_limit integer, p_caller jsonb default null, out purged integer, out kept bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_read bigint := (select min(c.position) from pawl.consumer c where c.audit);
begin
  if p_before is null or p_before > pawl.now() then
    perform pawl_private.raise_condition('malformed-request', 'rows are deleted that were written before a time, which must be past');
  end if;
  with gone as (
    delete from pawl.audit a
    where a.ctid = any (array(
      select o.ctid
      from pawl.audit o
      where o.at < p_before and (
        v_read is null or exists (
          select from pawl.audit_log l where l.tenant_id = o.tenant_id and l.seq = o.seq and l.position <= v_read offset 0
        )
      )
      order by o.at
      limit greatest(coalesce(p_limit, 0), 0)
      for update
    ))
    returning a.tenant_id, a.seq
  ),
  positions as (
    delete from pawl.audit_log l using gone g where l.tenant_id = g.tenant_id and l.seq = g.seq
  )
  select count(*) into purged from gone;
  kept := case when purged < p_limit then (select count(*) from pawl.audit a where a.at < p_before) else 0 end;
  if purged > 0 then
    perform pawl_private.audit(
      p_tenant => '*', p_caller => p_caller, p_action => 'audit.purge', p_target => null,
      p_after => jsonb_build_object('before', pawl_private.audit_time(p_before), 'purged', purged));
  end if;
end
$$;
