-- consumer_renew renews a lease. The commit is asynchronous.
-- Returns: whether p_leader still leads in p_term; if not, nothing is changed
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_renew(p_consumer text, p_leader text, p_term bigint, p_lease interval) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set lease_until = pawl.now() + p_lease
  where c.name = p_consumer and c.leader = p_leader and c.term = p_term;
  return found;
end
$$;
