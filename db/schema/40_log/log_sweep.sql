-- log_sweep deletes rows of purged instances from the log, and notes the largest position of each tenant's workflow. It
-- looks at p_limit rows after p_after. A pass over the log takes many calls. Its first call gets no p_since, and the
-- others what it returned.
-- Returns: since: null if nothing is to be swept, if p_leader does not lead in p_term, or if the server is not that of
--          the present epoch. last: the last position that was looked at; null at the end of the pass. swept: how many
--          rows were deleted
-- Writes:  log, log_floor, purged_instance
create function pawl.log_sweep(
  p_leader text, p_term bigint, p_since pg_snapshot, p_after bigint, p_limit integer, out since pg_snapshot, out last bigint, out swept bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  swept := 0;
  if not exists (
    select from pawl.log_head h where h.leader = p_leader and h.term = p_term and pawl_private.server_is_of_log(h.epoch)
  ) then
    return;
  end if;
  since := coalesce(p_since, pg_current_snapshot());
  if p_since is null and not exists (select from pawl_private.purged_instance limit 1) then
    since := null;
    return;
  end if;
  last := pawl_private.log_until(p_after, p_limit);
  with gone as (
    delete from pawl.log l
    using pawl_private.purged_instance p
    where l.position > p_after and l.position <= last and p.tenant_id = l.tenant_id and p.instance_id = l.instance_id
    returning l.tenant_id, p.workflow, l.position
  ),
  noted as (
    insert into pawl_private.log_floor as f (tenant_id, workflow, position)
    select g.tenant_id, g.workflow, max(g.position)
    from gone g
    group by g.tenant_id, g.workflow
    on conflict on constraint log_floor_pkey do update set position = greatest(f.position, excluded.position)
  )
  select count(*) into swept from gone;
  if last is null then
    -- The log has no row of an instance that was purged before the pass began.
    delete from pawl_private.purged_instance p where pg_visible_in_snapshot(p.xid, since);
  end if;
end
$$;
