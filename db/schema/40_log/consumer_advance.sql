-- consumer_advance moves a consumer behind what was published, and renews its lease. The commit is
-- asynchronous: steps whose advance is lost in a crash are relayed again.
-- p_epoch, p_position: as consumer_next returned them
-- p_relayed:           how many steps were relayed, for consumer_status
-- Returns: whether p_leader still leads in p_term, and p_position is still that of the same step or row; if not,
--          nothing is changed
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_advance(
  p_consumer text, p_leader text, p_term bigint, p_epoch bigint, p_position bigint, p_relayed bigint, p_lease interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set position = p_position, relayed = c.relayed + p_relayed, advanced_at = v_now, lease_until = v_now + p_lease
  where c.name = p_consumer and c.leader = p_leader and c.term = p_term
    -- A failover may have lost the end of the log.
    and exists (select from pawl.log_head h where h.epoch = p_epoch and case when c.audit then h.audit_position else h.position end >= p_position);
  return found;
end
$$;
