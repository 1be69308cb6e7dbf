-- score_forecasts compares the visits that ended yesterday with the quantiles of the 90 days before, for some more workflows of
-- some tenants. States of which fewer than 30 visits had ended are left out. A day is scored once: visits that are
-- folded later do not count.
-- p_limit: the most workflows of tenants
-- Returns: leads: whether p_leader still leads the consumer insight in p_term; if not, nothing is changed.
--          more: whether there is more to score
-- Locks:   consumer, forecast_night
-- Writes:  forecast_night, forecast_score
create function pawl.score_forecasts(p_leader text, p_term bigint, p_limit integer, out leads boolean, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  -- Some minutes after midnight the last steps of the day are folded.
  v_day date := ((pawl.now() - interval '10 minutes') at time zone 'UTC')::date - 1;
  v_night pawl_private.forecast_night;
  v_next record;
begin
  more := false;
  perform from pawl.consumer c
  where c.name = 'insight' and not c.audit and c.leader = p_leader and c.term = p_term
  for no key update;
  leads := found;
  if not leads then
    return;
  end if;
  select * into v_night from pawl_private.forecast_night n for update;
  if v_night.day < v_day then
    v_night := row(v_day, '', '', false);
  end if;
  if v_night.done then
    return;
  end if;
  for i in 1 .. greatest(p_limit, 1) loop
    select d.tenant_id, d.workflow into v_next
    from pawl.dwell_count d
    where (d.tenant_id, d.workflow) > (v_night.tenant_id, v_night.workflow)
    order by d.tenant_id, d.workflow
    limit 1;
    v_night.done := not found;
    exit when v_night.done;
    v_night.tenant_id := v_next.tenant_id;
    v_night.workflow := v_next.workflow;
    perform pawl_private.score_workflow(v_night.tenant_id, v_night.workflow, v_night.day);
  end loop;
  update pawl_private.forecast_night set day = v_night.day, tenant_id = v_night.tenant_id, workflow = v_night.workflow, done = v_night.done;
  more := not v_night.done;
end
$$;
