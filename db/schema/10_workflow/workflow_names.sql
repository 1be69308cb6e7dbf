-- workflow_names reads the names of workflows in order, from one to the next.
-- Returns: p_limit names at most
create function pawl.workflow_names(p_limit integer) returns setof text
language sql stable parallel safe
as $$
  with recursive step as (
    (select w.name from pawl.workflow w order by w.name limit 1)
    union all
    select f.name
    from step s
    cross join lateral (select w.name from pawl.workflow w where w.name > s.name order by w.name limit 1) f
  )
  select s.name from step s limit greatest(p_limit, 0)
$$;
