-- purge_archived deletes instances that have been final since p_before or longer, whatever their retention is: see
-- pawl_private.purge. It is for instances that were written to an archive.
-- p_caller: see pawl_private.audit. It counts only if the session is one of the service
-- Returns: the ids of the instances that were deleted
-- Raises:  what pawl_private.bound_role raises
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, purged_instance, audit
create function pawl.purge_archived(p_tenant text, p_ids uuid[], p_before timestamptz, p_caller jsonb default null)
returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_purged uuid[];
begin
  perform pawl_private.bound_role(p_tenant);
  v_purged := pawl_private.purge(p_tenant, p_ids, p_before, true);
  if v_purged <> '{}' then
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => case when pawl_private.is_service() then p_caller end, p_action => 'instance.purge',
      p_target => null, p_outcome => 'done', p_reason => null, p_before => jsonb_build_object('instances', to_jsonb(v_purged)), p_after => null);
  end if;
  return v_purged;
end
$$;
