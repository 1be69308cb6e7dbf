-- stream_place finds the place of an instance's stream: behind the step p_version of p_epoch, or of any epoch if that
-- is 0.
-- Returns: state: as log_place; or 'pending': the step has no position yet; 'purged': the instance is gone. epoch:
--          that of the step. version: p_version or, if steps are lost, the last one that is left. until: the last
--          version that has a position
create function pawl.stream_place(
  p_tenant text, p_id uuid, p_version bigint, p_epoch bigint, out state text, out epoch bigint, out version bigint, out until bigint
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_head pawl.log_head;
  v_step pawl.history;
begin
  select h.* into strict v_head from pawl.log_head h;
  version := p_version;
  select h.version into until
  from pawl.history h
  where h.tenant_id = p_tenant and h.instance_id = p_id
    and v_head.epoch > 0
    and pawl_private.step_is_seen(h.xid, h.seq, v_head.snapshot, v_head.first_seq)
  order by h.version desc
  limit 1;
  select h.* into v_step from pawl.history h where h.tenant_id = p_tenant and h.instance_id = p_id and h.version = p_version;
  epoch := pawl_private.epoch_of(v_step.xid, v_step.seq, v_head);
  if v_step.version is null and not exists (select from pawl.instance i where i.tenant_id = p_tenant and i.id = p_id) then
    state := 'purged';
  elsif p_version = 0 then
    state := 'known';
    epoch := 1;
  elsif v_step.version > until or v_step.version is not null and until is null then
    state := 'pending';
  elsif v_step.version is not null and p_epoch in (0, epoch) then
    state := 'known';
  elsif p_epoch < v_head.epoch then
    state := 'lost';
    select h.version, h.epoch into version, epoch
    from (
      select h.version, pawl_private.epoch_of(h.xid, h.seq, v_head) as epoch
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_id and h.version < p_version
    ) h
    where h.epoch <= p_epoch
    order by h.version desc
    limit 1;
  else
    select p.state into state from pawl.log_place(p_epoch, v_head.position + 1) p;
  end if;
end
$$;
