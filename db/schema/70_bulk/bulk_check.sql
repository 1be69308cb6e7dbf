-- bulk_check records the faults of what bulk_step has asked to check.
-- p_checks: an object of them by the checksums that bulk_step has given: the faults, an array, or null for none
-- Locks:   bulk
-- Writes:  bulk
create function pawl.bulk_check(p_tenant text, p_id uuid, p_checks jsonb) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.bulk b
  set checks = b.checks || p_checks
  where b.tenant_id = p_tenant and b.id = p_id
$$;
