-- What the workers call: the parts of the service that run in the background, on any
-- number of replicas at once. They keep the engine's lock order, take few rows at a time,
-- and never wait for a command: what a command holds is passed over and comes later.

-- +goose Up

-- purge_keys deletes idempotency keys whose time to live has passed, the oldest first, and
-- no more than p_limit of them. Keys that somebody holds are passed over. Nothing else is
-- deleted: whatever a key replays outlives it.
--
-- The settings leave the planner one way, whatever it knows of the table: by the index on
-- expires_at in its order, and then by the places of the rows that were locked.
-- Returns: how many were deleted; fewer than p_limit if no more have expired, or others
--          hold them
-- Locks:   idempotency_key (for update, skipping what is locked)
-- Writes:  idempotency_key
-- +goose StatementBegin
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
    -- No limit would be no limit.
    limit greatest(coalesce(p_limit, 0), 0)
    for update skip locked
  ));
  get diagnostics v_purged = row_count;
  return v_purged;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.purge_keys from public;

-- +goose Down
drop function pawl.purge_keys;
