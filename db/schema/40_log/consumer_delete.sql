-- consumer_delete deletes a consumer that nobody leads. Nothing reads the rest of its backlog. Only the
-- owner may call it.
-- Returns: whether there was such a consumer
-- Raises:  PW40L a process leads
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_delete(p_consumer text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pawl.consumer c where c.name = p_consumer and c.lease_until <= pawl.now();
  if found then
    return true;
  elsif exists (select from pawl.consumer c where c.name = p_consumer) then
    perform pawl_private.raise_condition('consumer-led', format('consumer %s: a process leads; stop it first', p_consumer));
  end if;
  return false;
end
$$;
