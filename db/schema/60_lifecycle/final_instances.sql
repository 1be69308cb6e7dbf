-- final_instances reads the next page of a pass over the final instances, in the order of
-- instance_workflow_idx: up to p_limit of one tenant, workflow and status. at_tenant to at_id are the place
-- of the pass, which each call takes and returns. at_tenant is '' before the pass begins and when it has
-- ended.
--
-- An instance is created before it becomes final, so only ids that are old enough are looked at. An
-- instance that was created early and became final late is looked at by each pass, and left out.
-- p_age: for how long the instances must have been final; null for the retention of their workflow's
--        latest version; workflows without a retention are skipped
-- p_tenant, p_workflows: only these; null for all
-- Returns: ids: of instances that are old enough; empty if the call has only skipped others. before: they
--          have been final since this time or longer
create function pawl.final_instances(
  p_limit integer, p_age interval, p_tenant text, p_workflows text[],
  inout at_tenant text, inout at_workflow text, inout at_status text, inout at_id uuid,
  out ids uuid[], out before timestamptz
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read a page: by the index, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_limit integer := greatest(p_limit, 1);
  v_next record;
  v_row record;
  v_read boolean;
  v_steps bigint := 0;
begin
  ids := '{}';
  at_tenant := coalesce(nullif(at_tenant, ''), p_tenant, '');
  if p_age is null and not exists (select from pawl.workflow w where w.retention is not null) then
    at_tenant := '';
    return;
  end if;
  -- Tenants and workflows without anything to read are skipped one by one, a hundred in each call.
  for v_try in 1 .. 100 loop
    select i.tenant_id, i.workflow, i.status
    into v_next
    from pawl.instance i
    where (i.tenant_id, i.workflow, i.status, i.id) > (at_tenant, at_workflow, at_status, at_id)
      and i.workflow <> '' -- The condition of the index.
    order by i.tenant_id, i.workflow, i.status, i.id
    limit 1;
    if not found or v_next.tenant_id <> p_tenant then
      at_tenant := ''; at_workflow := ''; at_status := ''; at_id := '00000000-0000-0000-0000-000000000000';
      return;
    end if;
    if (v_next.tenant_id, v_next.workflow, v_next.status) <> (at_tenant, at_workflow, at_status) then
      at_tenant := v_next.tenant_id;
      at_workflow := v_next.workflow;
      at_status := v_next.status;
      at_id := '00000000-0000-0000-0000-000000000000';
    end if;
    before := v_now - coalesce(p_age, (
      select w.retention from pawl.workflow w where w.name = at_workflow order by w.version desc limit 1));
    v_read := false;
    if at_status <> 'active' and before is not null and coalesce(at_workflow = any (p_workflows), true) then
      for v_row in
        select i.id, i.version, i.state_changed_at
        from pawl.instance i
        -- Compared as rows: column by column, the primary key would look as good to the planner.
        where (i.tenant_id, i.workflow, i.status, i.id) > (at_tenant, at_workflow, at_status, at_id)
          and (i.tenant_id, i.workflow, i.status, i.id) <
            (at_tenant, at_workflow, at_status, pawl.uuid_v7_floor(before + interval '1 millisecond'))
          and i.workflow <> ''
        order by i.tenant_id, i.workflow, i.status, i.id
        limit v_limit
      loop
        v_read := true;
        if v_row.state_changed_at <= before then
          v_steps := v_steps + v_row.version;
          -- A long history is a page of its own, so that purging a page takes a bounded time.
          exit when ids <> '{}' and v_steps > 20 * v_limit;
          ids := ids || v_row.id;
        end if;
        at_id := v_row.id;
      end loop;
    end if;
    if v_read then
      return;
    end if;
    at_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  end loop;
end
$$;
