-- purge_instances deletes instances that have been final since p_before or longer, each with its history
-- and its expired keys, all or nothing. An instance stays while another transaction holds it, while a live
-- key names it, and while a module retains it: see log_retains and webhook_retains.
--
-- The keys that name an instance are read under the instance's lock, in a statement of their own, because a
-- command writes its key under that lock and may have done so just before. Each key is then locked too,
-- because a replay that extends a key's life locks the key alone. What happens to a command that comes too
-- late:
--   * A fire waits for the instance, and does not find it.
--   * A replay reads key, history and instance in one statement, and so finds all of them or none. Without
--     them it raises 40001, as for a purged key; the next try is a new command.
-- This holds under read committed only, as all of the engine.
-- Returns: the ids of the instances that were deleted
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, purged_instance
create function pawl.purge_instances(p_tenant text, p_ids uuid[], p_before timestamptz) returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz;
  v_ids uuid[];
  v_id uuid;
  v_keys record;
  v_purged uuid[] := '{}';
begin
  v_ids := array(
    select i.id
    from (select distinct u.id from unnest(p_ids) as u (id) order by u.id) c
    cross join lateral (
      select i.id
      from pawl.instance i
      where i.tenant_id = p_tenant and i.id = c.id and i.status <> 'active' and i.state_changed_at <= p_before
      limit 1
      for update skip locked
    ) i
  );
  v_now := pawl.now();

  -- One by one, to be bound to the full key.
  foreach v_id in array v_ids loop
    select k.retains, k.expired
    into v_keys
    from pawl_private.instance_retains(p_tenant => p_tenant, p_id => v_id, p_now => v_now) k;
    continue when v_keys.retains
      or pawl_private.log_retains(p_tenant, v_id)
      or pawl_private.webhook_retains(p_tenant, v_id);

    delete from pawl.idempotency_key k where k.ctid = any (v_keys.expired);
    delete from pawl.timer t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.callback b where b.tenant_id = p_tenant and b.instance_id = v_id;
    delete from pawl.history h where h.tenant_id = p_tenant and h.instance_id = v_id;
    with gone as (
      delete from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id returning i.workflow
    )
    insert into pawl_private.purged_instance (tenant_id, instance_id, workflow) select p_tenant, v_id, g.workflow from gone g;
    v_purged := v_purged || v_id;
  end loop;

  return v_purged;
end
$$;
