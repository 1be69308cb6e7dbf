-- consumer_resign ends a lease before its time, so that another process may lead at once.
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_resign(p_consumer text, p_leader text, p_term bigint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.consumer c set lease_until = pawl.now() where c.name = p_consumer and c.leader = p_leader and c.term = p_term
$$;
