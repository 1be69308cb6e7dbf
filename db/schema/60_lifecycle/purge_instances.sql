-- purge_instances deletes instances whose retention is over and that have been final since p_before or longer: see
-- pawl_private.purge.
-- Returns: the ids of the instances that were deleted
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, purged_instance
create function pawl.purge_instances(p_tenant text, p_ids uuid[], p_before timestamptz) returns uuid[]
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.purge(p_tenant, p_ids, p_before, false) $$;
