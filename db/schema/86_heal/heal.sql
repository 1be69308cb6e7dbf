-- heal does what definitions say about instances that are stuck. After a look that was not complete it does nothing.
-- p_limit: bounds the findings that are looked at; p_every: nothing is done if the last call was so short a time ago and was
-- complete
-- Returns: attempts: how many were made; applied: how many of them were not refused; opened: how many findings were opened;
--          more: whether more is due
-- Raises:  PW400 malformed-request; what another try may cure: a deadlock, a lock that was not to be had, the end of the session
-- Locks:   watch (if nobody else holds it), instance (for no key update, those that are not locked), then what a step locks
-- Writes:  watch, healing, finding, task, audit, what fire writes
create function pawl.heal(
  p_limit integer, p_every interval, out attempts bigint, out applied bigint, out opened bigint, out more boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_watch pawl_private.watch;
  v_limit integer := greatest(p_limit, 1);
  v_next record;
  v_healed record;
  v_looked bigint := 0;
  v_cut boolean;
begin
  perform pawl_private.refuse_malformed(
    case when p_every between interval '0' and interval '10 years' then null else 'the time between calls is from 0 to 10 years' end);
  attempts := 0; applied := 0; opened := 0; more := false;
  select w.* into v_watch from pawl_private.watch w for update skip locked;
  if not found or v_watch.looked_at = '-infinity' or v_watch.healed_at > v_now - p_every and v_watch.healed_at <= v_now then
    return;
  end if;
  loop
    select p.tenant_id, p.workflow into v_next
    from (
      (select f.tenant_id::text, f.workflow
      from pawl.finding f
      where f.closed_at is null and f.kind in ('orphaned', 'slow', 'task-dead') and f.heal_at is not null
        and (f.tenant_id, f.workflow) > (v_watch.heal_tenant, v_watch.heal_workflow)
      order by f.tenant_id, f.workflow
      limit 1)
      union all
      (select f.tenant_id::text, f.workflow
      from pawl.finding f
      where f.closed_at is null and f.kind = 'healing-paused' and (f.tenant_id, f.workflow) > (v_watch.heal_tenant, v_watch.heal_workflow)
      order by f.tenant_id, f.workflow
      limit 1)
    ) p
    order by p.tenant_id collate "C", p.workflow
    limit 1;
    if not found then
      more := v_watch.heal_cut;
      v_watch.heal_tenant := '';
      v_watch.heal_workflow := '';
      v_watch.heal_cut := false;
      exit;
    end if;
    v_watch.heal_tenant := v_next.tenant_id;
    v_watch.heal_workflow := v_next.workflow;
    v_cut := false;
    if pawl_private.is_disabled(v_next.tenant_id) then
      v_looked := v_looked + 1;
    else
      select * into v_healed
      from pawl_private.heal_workflow(
        v_next.tenant_id, v_next.workflow, (v_limit - v_looked)::integer, v_now, attempts = 0);
      v_looked := v_looked + v_healed.looked;
      attempts := attempts + v_healed.attempts;
      applied := applied + v_healed.applied;
      opened := opened + v_healed.opened;
      v_cut := v_healed.more;
    end if;
    v_watch.heal_cut := v_watch.heal_cut or v_cut;
    more := v_cut or v_looked >= v_limit;
    exit when more;
  end loop;
  update pawl_private.watch w
  set healed_at = case when more then '-infinity' else v_now end, heal_tenant = v_watch.heal_tenant,
    heal_workflow = v_watch.heal_workflow, heal_cut = v_watch.heal_cut;
end
$$;
