-- reindex_workflow goes on with indexing the instances of a workflow by what its latest version says, or begins with it:
-- the next p_limit instances of all workflows are looked at. What is done is kept, so that anybody may go on. While it
-- works, nothing is folded.
-- Returns: indexed: how many instances were indexed so far. total: how many there are. complete: whether all are indexed
-- Raises:  PW40W workflow-not-found
-- Locks:   consumer, residence
-- Writes:  consumer, search_index, attribute
create function pawl.reindex_workflow(p_workflow text, p_limit integer, out indexed bigint, out total bigint, out complete boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_limit integer := greatest(p_limit, 1);
  v_search jsonb;
  v_index pawl_private.search_index;
  v_looked integer;
begin
  if not exists (select from pawl.workflow w where w.name = p_workflow) then
    perform pawl_private.raise_condition('workflow-not-found', null);
  end if;
  total := (select coalesce(sum(c.instances), 0) from pawl.instance_count c where c.workflow = p_workflow);
  if pawl_private.search_of(p_workflow) is not null then
    perform pawl.consumer_create('insight', true);
    perform from pawl.consumer c where c.name = 'insight' for no key update;
    select i.* into v_index from pawl_private.search_index i where i.workflow = p_workflow for no key update;
    if v_index.search is distinct from pawl_private.search_of(p_workflow) then
      perform pawl_private.search_begins(p_workflow, null, false);
      select i.* into v_index from pawl_private.search_index i where i.workflow = p_workflow for no key update;
    end if;
    -- What is indexed is what the row says: a version with another search, which may have come while this transaction waited
    -- for the locks, writes the row.
    v_search := v_index.search;
  end if;
  if v_search is null then
    indexed := total;
    complete := true;
    return;
  end if;
  if not v_index.complete then
    with looked as materialized (
      select r.tenant_id, r.instance_id, r.workflow
      from pawl.residence r
      where (r.tenant_id, r.instance_id) > (v_index.after_tenant, v_index.after_id)
      order by r.tenant_id, r.instance_id
      limit v_limit
      for no key update
    ),
    value as materialized (
      select l.tenant_id, l.instance_id, a.*
      from looked l
      cross join lateral (select i.context from pawl.instance i where i.tenant_id = l.tenant_id and i.id = l.instance_id limit 1) i
      cross join lateral pawl_private.attributes_of(i.context, v_search) a
      where l.workflow = p_workflow
    ),
    gone as (
      delete from pawl.attribute a
      using looked l
      where l.workflow = p_workflow and a.tenant_id = l.tenant_id and a.instance_id = l.instance_id
        and (a.tenant_id, a.instance_id, a.name) not in (select v.tenant_id, v.instance_id, v.name from value v)
    ),
    written as (
      insert into pawl.attribute as a (tenant_id, instance_id, name, workflow, text_value, number_value, time_value, boolean_value)
      select v.tenant_id, v.instance_id, v.name, p_workflow, v.text_value, v.number_value, v.time_value, v.boolean_value
      from value v
      on conflict on constraint attribute_pkey do update
      set text_value = excluded.text_value, number_value = excluded.number_value, time_value = excluded.time_value,
        boolean_value = excluded.boolean_value
    )
    select
      count(*), count(*) filter (where l.workflow = p_workflow),
      (array_agg(l.tenant_id order by l.tenant_id desc, l.instance_id desc))[1],
      (array_agg(l.instance_id order by l.tenant_id desc, l.instance_id desc))[1]
    into v_looked, indexed, v_index.after_tenant, v_index.after_id
    from looked l;
    update pawl_private.search_index i
    set complete = v_looked < v_limit, indexed = i.indexed + reindex_workflow.indexed,
      after_tenant = coalesce(v_index.after_tenant, i.after_tenant), after_id = coalesce(v_index.after_id, i.after_id)
    where i.workflow = p_workflow
    returning i.* into v_index;
  end if;
  -- Some may have been purged since they were indexed, and others were indexed by the fold.
  total := greatest(total, v_index.indexed);
  complete := v_index.complete;
  indexed := case when complete then total else v_index.indexed end;
end
$$;
