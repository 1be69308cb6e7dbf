-- log_lead makes p_leader the sequencer, if there is none, or if p_leader itself is. p_leader must be a name that
-- nobody else has.
-- Returns: the new term; null if another process leads
-- Locks:   log_head
-- Writes:  log_head
create function pawl.log_lead(p_leader text, p_lease interval) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_term bigint;
begin
  update pawl.log_head h
  set term = h.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where h.lease_until <= v_now or h.leader = p_leader
  returning h.term into v_term;
  return v_term;
end
$$;
