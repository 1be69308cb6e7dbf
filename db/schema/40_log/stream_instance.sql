-- stream_instance reads the steps of an instance after version p_after, up to the last one that has a position.
-- p_epoch: that of the step p_after
-- Returns: as stream_read, in the order of version, without positions; none if p_after is of another epoch
create function pawl.stream_instance(p_tenant text, p_id uuid, p_after bigint, p_epoch bigint, p_limit integer, p_bytes bigint) returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_head pawl.log_head;
begin
  select h.* into strict v_head from pawl.log_head h;
  if p_after > 0 and not exists (
    select from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_id and h.version = p_after
      and pawl_private.epoch_of(h.xid, h.seq, v_head) = p_epoch
  ) then
    return;
  end if;
  return query
  select h.*, pawl_private.epoch_of(h.xid, h.seq, v_head), null::bigint, null::pawl.key, null::pawl.key, null::timestamptz, null::text[]
  from pawl.history_page(p_tenant, p_id, p_after, p_limit, p_bytes) h
  where v_head.epoch > 0 and pawl_private.step_is_seen(h.xid, h.seq, v_head.snapshot, v_head.first_seq)
  order by h.version;
end
$$;
