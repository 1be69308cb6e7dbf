-- insight_as_of says as of when the sums of the module are: now if every committed step is folded, else the time of the last
-- step that is.
-- Returns: the time; epoch if nothing was folded yet
create function pawl.insight_as_of() returns timestamptz
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_consumer pawl.consumer;
  v_head pawl.log_head;
begin
  select * into v_consumer from pawl.consumer c where c.name = 'insight' and not c.audit;
  if not found then
    return 'epoch';
  end if;
  select * into v_head from pawl.log_head;
  if v_consumer.position = v_head.position
    and not exists (select from pawl_private.steps_between(v_head.snapshot, pg_current_snapshot(), v_head.first_seq))
  then
    return pawl.now();
  end if;
  return coalesce(
    (select pawl_private.logged_at(l) from pawl.log l where l.position = v_consumer.position),
    v_consumer.advanced_at, 'epoch');
end
$$;
