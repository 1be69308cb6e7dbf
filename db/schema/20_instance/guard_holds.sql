-- guard_holds says for each of the given events whether a transition of the instance's state would be
-- taken for p_payload. Payload schemas play no part.
-- p_events: patterns of events stand for themselves
-- p_actor, p_verified: as for fire
-- Returns: one row per event, by name
-- Raises:  what a guard or an assign raises even in silent mode
create function pawl.guard_holds(
  p_instance pawl.instance, p_events text[], p_payload jsonb, p_actor text default session_user, p_verified boolean default null
)
returns table (event text, holds boolean)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.event, t.target is not null
  from unnest(p_events) as e (event)
  left join lateral pawl_private.choose(
    p_instance.workflow, p_instance.workflow_version, p_instance.state, e.event,
    pawl_private.document(p_instance, p_payload, pawl.now(), e.event, pawl_private.principal(p_actor, p_verified, false)), '*',
    p_instance.memory) t on true
  order by e.event
$$;
