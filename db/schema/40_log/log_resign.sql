-- log_resign ends the sequencer's lease before its time, so that another process may lead at once.
-- Locks:   log_head
-- Writes:  log_head
create function pawl.log_resign(p_leader text, p_term bigint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.log_head h set lease_until = pawl.now() where h.leader = p_leader and h.term = p_term
$$;
