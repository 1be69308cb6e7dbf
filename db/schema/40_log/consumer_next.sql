-- consumer_next says which page of the log, or of the audit, a consumer is to read next: up to p_limit steps or rows.
-- Returns: epoch: the present one. until: the last position of the page; null if there is nothing to read
create function pawl.consumer_next(p_consumer text, p_limit integer, out epoch bigint, out until bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select h.epoch, case when c.audit then pawl_private.audit_until(c.position, p_limit) else pawl_private.log_until(c.position, p_limit) end
  from pawl.consumer c
  cross join pawl.log_head h
  where c.name = p_consumer
$$;
