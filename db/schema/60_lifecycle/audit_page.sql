-- audit_page reads rows of the audit behind p_after, in the order of seq.
--
-- It looks at 5,000 rows at most: those of the tenant with the target, else with the actor, else with the action, else
-- all. The other filters choose among them. A time is looked up with ten minutes to spare on either side, since rows
-- are not written exactly in the order of their times.
-- p_tenant:    the tenant; null for all
-- p_workflows: only rows about these workflows, and about instances of them that are not purged; null for all rows
-- p_from, p_to: rows from p_from on, and before p_to
-- p_bytes:     the page ends with the row by which its documents have so many bytes
-- Returns: the rows, up to p_limit. If it ends before p_limit, and there may be more, the last row is none: it
--          has the seq behind which to go on, and an empty action
create function pawl.audit_page(
  p_tenant text, p_workflows text[], p_target text, p_actor text, p_action text, p_outcome text, p_from timestamptz,
  p_to timestamptz, p_after bigint, p_limit integer, p_bytes bigint
) returns setof pawl.audit
language plpgsql stable security definer rows 50
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_rows refcursor;
  v_after bigint := coalesce(p_after, 0);
  v_before bigint;
  v_row pawl.audit;
  v_looked integer := 0;
  v_found integer := 0;
  v_bytes bigint := 0;
begin
  if p_from is not null then
    v_after := greatest(v_after, (select a.seq from pawl.audit a where a.at < p_from - interval '10 minutes' order by a.at desc limit 1));
  end if;
  if p_to is not null then
    v_before := (select a.seq from pawl.audit a where a.at > p_to + interval '10 minutes' order by a.at limit 1);
  end if;
  v_before := coalesce(v_before, 9223372036854775807);
  -- Row comparisons leave one index for each of these.
  case
    when p_tenant is null then
      open v_rows for
        select a.* from pawl.audit a where a.seq > v_after and a.seq < v_before order by a.seq limit 5000;
    when p_target is not null then
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.target, a.seq) > (p_tenant, p_target, v_after) and (a.tenant_id, a.target, a.seq) < (p_tenant, p_target, v_before)
        order by a.tenant_id, a.target, a.seq limit 5000;
    when p_actor is not null then
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.actor, a.seq) > (p_tenant, p_actor, v_after) and (a.tenant_id, a.actor, a.seq) < (p_tenant, p_actor, v_before)
        order by a.tenant_id, a.actor, a.seq limit 5000;
    when p_action is not null then
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.action, a.seq) > (p_tenant, p_action, v_after) and (a.tenant_id, a.action, a.seq) < (p_tenant, p_action, v_before)
        order by a.tenant_id, a.action, a.seq limit 5000;
    else
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.seq) > (p_tenant, v_after) and (a.tenant_id, a.seq) < (p_tenant, v_before)
        order by a.tenant_id, a.seq limit 5000;
  end case;
  loop
    fetch v_rows into v_row;
    exit when not found;
    v_looked := v_looked + 1;
    if coalesce(v_row.target = p_target, p_target is null) and coalesce(v_row.actor = p_actor, true)
      and coalesce(v_row.action = p_action, true) and coalesce(v_row.outcome = p_outcome, true)
      and coalesce(v_row.at >= p_from, true) and coalesce(v_row.at < p_to, true)
      and (p_workflows is null or pawl_private.audit_is_about(v_row, p_workflows))
    then
      return next v_row;
      v_found := v_found + 1;
      exit when v_found >= p_limit;
      v_bytes := v_bytes + coalesce(octet_length(v_row.before::text), 0) + coalesce(octet_length(v_row.after::text), 0);
    end if;
    if v_looked = 5000 or v_bytes >= p_bytes then
      v_row := (v_row.tenant_id, v_row.seq, v_row.at, '', false, null, null, null, '', null, '', null, 1, null, null, v_row.xid)::pawl.audit;
      return next v_row;
      exit;
    end if;
  end loop;
  close v_rows;
end
$$;
