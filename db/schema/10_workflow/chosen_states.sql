-- chosen_states reads what the names of states stand for in all workflows: the state of that name, and all
-- states within it. It steps through an index from one combination of state, status and workflow to the next, so
-- its cost does not grow with the number of versions. Without p_by_workflow it steps from one combination of
-- state and status to the next, and the workflow is empty.
-- Returns: p_limit combinations at most
create function pawl.chosen_states(p_states text[], p_by_workflow boolean, p_limit integer)
returns table (workflow text, status text, state text)
language sql stable parallel safe
as $$
  with recursive step as (
    select r.last, f.state, f.status, f.workflow
    from unnest(p_states) as n (name)
    cross join lateral (values (n.name, n.name), (n.name || '.', n.name || '.~')) as r (first, last)
    cross join lateral (
      select w.state, w.status, w.workflow
      from pawl.workflow_state w
      where w.state >= r.first and w.state <= r.last and length(w.workflow) > 0
      order by w.state, w.status, w.workflow
      limit 1
    ) f
    union all
    select s.last, f.state, f.status, f.workflow
    from step s
    cross join lateral (
      select w.state, w.status, w.workflow
      from pawl.workflow_state w
      where w.state <= s.last and length(w.workflow) > 0
        and (w.state, w.status, w.workflow) > (s.state, s.status, case when p_by_workflow then s.workflow else '~' end)
      order by w.state, w.status, w.workflow
      limit 1
    ) f
  )
  select case when p_by_workflow then s.workflow else '' end, s.status::text, s.state from step s
  limit greatest(p_limit, 0)
$$;
