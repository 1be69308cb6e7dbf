-- state_names reads the names of the states of all workflows in order, from one to the next.
-- Returns: p_limit names at most
create function pawl.state_names(p_limit integer) returns setof text
language sql stable parallel safe
as $$
  with recursive step as (
    (select w.state from pawl.workflow_state w where length(w.workflow) > 0 order by w.state limit 1)
    union all
    select f.state
    from step s
    cross join lateral (
      select w.state from pawl.workflow_state w where w.state > s.state and length(w.workflow) > 0 order by w.state limit 1
    ) f
  )
  select s.state from step s limit greatest(p_limit, 0)
$$;
