-- purge_keys deletes expired idempotency keys, the oldest first and no more than p_limit of them. It skips
-- keys that another transaction holds. It deletes nothing else: what a key replays outlives the key.
--
-- The planner settings leave one plan, whatever the statistics say: the index on expires_at in its order,
-- then the places of the rows that were locked.
-- Returns: how many were deleted; fewer than p_limit if no more have expired, or if others hold them
-- Locks:   idempotency_key (for update, skipping what is locked)
-- Writes:  idempotency_key
create function pawl.purge_keys(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_purged integer;
begin
  delete from pawl.idempotency_key k
  where k.ctid = any (array(
    select e.ctid
    from pawl.idempotency_key e
    where e.expires_at <= v_now
    order by e.expires_at
    -- A null limit would be none.
    limit greatest(coalesce(p_limit, 0), 0)
    for update skip locked
  ));
  get diagnostics v_purged = row_count;
  return v_purged;
end
$$;
