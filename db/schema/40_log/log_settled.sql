-- log_settled says where the log ends behind the steps of a tenant that p_since sees.
-- p_since: what the first call returned, or null. server: what it returned: when the server was started
-- Returns: since: the snapshot. server: when this server was started. place: the last position; null while one of the steps
--          has no position, or if the server is not p_server; then since is a new one
create function pawl.log_settled(
  p_tenant text, p_since pg_snapshot, p_server timestamptz, out since pg_snapshot, out server timestamptz, out epoch bigint, out place bigint
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
begin
  server := pg_postmaster_start_time();
  since := case when p_server = server then p_since end;
  since := coalesce(since, pg_current_snapshot());
  select h.* into strict v_head from pawl.log_head h;
  epoch := v_head.epoch;
  -- Without a sequencer there may be any number of steps to look at, and none gets a position.
  if epoch > 0 and v_head.lease_until > pawl.now() and not exists (
    select from pawl_private.steps_between(v_head.snapshot, since, v_head.first_seq) h where h.tenant_id = p_tenant
  ) then
    place := v_head.position;
  end if;
end
$$;
