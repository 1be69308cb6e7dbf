-- workflows_page reads the latest version of each workflow whose name comes after p_after.
-- p_workflows: the names to choose among; null for all
-- Returns: up to p_limit rows, by name. The page ends with the row by which its definitions have p_bytes, so it has
--          at least one row if there are any. Only the definitions of these rows are read
create function pawl.workflows_page(p_after text, p_limit integer, p_bytes bigint, p_workflows text[] default null)
returns setof pawl.workflow
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_workflow pawl.workflow;
  v_bytes bigint := 0;
begin
  for v_workflow in
    select w.*
    from pawl.workflow w
    where w.name > p_after and (p_workflows is null or w.name = any (p_workflows))
      and w.version = (select max(v.version) from pawl.workflow v where v.name = w.name)
    order by w.name
    limit p_limit
  loop
    return next v_workflow;
    v_bytes := v_bytes + octet_length(v_workflow.definition::text);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
