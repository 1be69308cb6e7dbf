-- insight_fold folds the next page of the log for the consumer insight, moves its position behind the page, and renews the
-- lease. The commit is asynchronous: what a crash takes back, it takes back together.
-- p_limit: the most rows of the log
-- Returns: leads: whether p_leader still leads in p_term; if not, nothing is changed. steps: how many rows of the log were
--          read; 0 at its end
-- Raises:  PW400 malformed-request
-- Locks:   consumer, finding, stuck_place, residence, instance_count
-- Writes:  consumer, residence, instance_count, edge_count, dwell_count, dwell_hour, attribute, finding, stuck_place
create function pawl.insight_fold(
  p_leader text, p_term bigint, p_limit integer, p_lease interval, out leads boolean, out steps bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_after bigint;
  v_until bigint;
begin
  perform pawl_private.refuse_malformed(
    case when p_lease between interval '0' and interval '10 years' then null else 'a lease is from 0 to 10 years' end);
  perform set_config('synchronous_commit', 'off', true);
  select c.position into v_after
  from pawl.consumer c
  where c.name = 'insight' and not c.audit and c.leader = p_leader and c.term = p_term
  for no key update;
  leads := found;
  steps := 0;
  if not leads then
    return;
  end if;
  v_until := pawl_private.log_until(v_after, greatest(p_limit, 1));
  if v_until is null then
    update pawl.consumer c set lease_until = v_now + p_lease where c.name = 'insight' and c.lease_until < v_now + p_lease * 2 / 3;
    return;
  end if;
  perform pawl_private.fold(v_after, v_until);
  perform pawl_private.fold_attributes(v_after, v_until);
  steps := v_until - v_after;
  update pawl.consumer c
  set position = v_until, relayed = c.relayed + steps, advanced_at = v_now, lease_until = v_now + p_lease
  where c.name = 'insight';
end
$$;
