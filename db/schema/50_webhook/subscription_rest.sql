-- subscription_rest notes which subscriptions have secrets that the sender can open, or cannot. One with a finding rests
-- for p_rest, and is then looked at again. Its deliveries wait and lose no attempt.
-- p_findings: why the secret cannot be opened; '' if it can, which ends the rest
-- Returns: whether p_leader still leads in p_term; if not, nothing is changed
-- Locks:   consumer
-- Writes:  subscription
create function pawl.subscription_rest(
  p_leader text, p_term bigint, p_tenants text[], p_ids uuid[], p_findings text[], p_rest interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term for no key update;
  if not found then
    return false;
  end if;
  update pawl.subscription s
  set
    finding = nullif(k.finding, ''),
    circuit_open_until = case when k.finding <> '' then greatest(s.circuit_open_until, pawl.now() + p_rest) end
  from unnest(p_tenants, p_ids, p_findings) as k (tenant_id, id, finding)
  where s.tenant_id = k.tenant_id and s.id = k.id and (k.finding <> '' or s.finding is not null);
  return true;
end
$$;
