-- log_settled says where the log ends behind the steps of a tenant that p_since sees.
-- p_tenant: * for all tenants
-- p_since, p_server: what the call before returned; null in the first call
-- Returns: since: the snapshot: p_since, or a new one if it is null or the server has been started since. server:
--          when this server was started. epoch, place: the present end of the log. settled: whether all steps that
--          since sees have a position; false while there is no sequencer
create function pawl.log_settled(
  p_tenant text, p_since pg_snapshot, p_server timestamptz,
  out since pg_snapshot, out server timestamptz, out epoch bigint, out place bigint, out settled boolean
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
  place := v_head.position;
  -- Without a sequencer there may be any number of steps to look at, and none gets a position.
  settled := epoch > 0 and v_head.lease_until > pawl.now() and not exists (
    select from pawl_private.steps_between(v_head.snapshot, since, v_head.first_seq) h where p_tenant = '*' or h.tenant_id = p_tenant
  );
end
$$;
