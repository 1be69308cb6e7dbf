-- consumer_lead makes p_leader the leader of a consumer, if nobody leads, or if p_leader itself does. p_leader
-- must be a name that nobody else has.
-- p_audit: as for consumer_create
-- Returns: the new term; null if another process leads, or if there is no such consumer
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_lead(p_consumer text, p_leader text, p_lease interval, p_audit boolean default false) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_term bigint;
begin
  update pawl.consumer c
  set term = c.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where c.name = p_consumer and c.audit = p_audit and (c.lease_until <= v_now or c.leader = p_leader)
  returning c.term into v_term;
  return v_term;
end
$$;
