-- Module timer: the timer worker's calls. A row of pawl.timer says when to look at an instance. Which
-- deadline is due is read from the instance, under its lock. Then fire makes the step, as for any other
-- event.
--
-- One process at a time fires timers: its transaction holds an advisory lock. Others would only wait
-- for the same instances. The worker waits for no command: it skips an instance that is
-- locked, and looks at it again later.
--
-- If a deadline comes and its step cannot be made, the timer *fails*. It keeps the reason, and the step is
-- tried again every minute, until the instance moves or its next deadline is due.

-- next_timeout is the next deadline of each instance that has a timer. event: that of the timeout, or 'ttl'
-- for the lifetime. last_error: why the timer fails; null if it does not. It must agree with
-- pawl_private.next_deadline.
create view pawl.next_timeout as
select
  t.tenant_id,
  t.instance_id,
  d.event::text as event,
  d.due_at::timestamptz as due_at,
  (case when t.failed_version = i.version then t.last_error end)::text as last_error
from pawl.timer t
join pawl.instance i on i.tenant_id = t.tenant_id and i.id = t.instance_id
cross join lateral (
  select u.event, i.state_changed_at + u.timeout as due_at, u.position
  from pawl.workflow_state s
  cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as u (timeout, event, position)
  where s.workflow = i.workflow
    and s.workflow_version = i.workflow_version
    and s.state = i.state
    and u.position > case when t.armed_version = i.version then t.tried else 0 end
  union all
  select 'ttl'::text as event, i.expires_at as due_at, null::bigint as position
  where i.expires_at is not null
  order by due_at, position
  limit 1
) d
where i.status = 'active';

-- timeout_row is the row type of instance_timeout and past_timeout. It never has rows. It is a view because
-- sqlc knows the columns of a function that returns rows of a view.
create view pawl.timeout_row as
select null::text as event, null::timestamptz as due_at, null::text as last_error where false;
