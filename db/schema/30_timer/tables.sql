-- Module timer: the timer worker's calls. A row of pawl.timer says when to look at an instance. Which
-- deadline is due is read from the instance, under its lock. Then fire makes the step, as for any other
-- event.
--
-- There are two lanes, so that slow guards cost only the timers of their own kind. A kind is a tenant, a
-- version of a workflow, and an event: a timeout's or 'ttl'. The fast lane fires batches under a short
-- statement timeout. A kind whose timers do not keep to it is noted in slow_queue, and its timers are moved to
-- the slow lane when they are due. The fast lane tries none of them until slow_until, and the index that it
-- reads does not hold them. The slow lane takes its queues by turns: first by tenant, then by workflow. It
-- fires one timer after the other, each in a subtransaction, under the service's own statement timeout.
--
-- While more timers are due than a call of the fast lane fires, tenants take turns, with one timer at each turn. So a
-- tenant's timers wait for a call or two, however many another tenant's are due before them.
--
-- One process at a time works in each lane: its transaction holds the lane's row of timer_lane. Others would
-- only wait for the same instances, and the slow lane never runs more than one guard at a time. The lanes wait
-- for no command: they skip an instance that is locked, and look at it again later.
--
-- If a deadline comes and its step cannot be made, the timer *fails*. It keeps the reason, and the step is
-- tried again every minute, until the instance moves or its next deadline is due.
--
-- Lock order: timer_lane, before all of the engine's; slow_queue, after them.

-- timer_lane has a row for each lane. Who locks the row works in the lane. Only the owner of the schema, and
-- with it the functions of this module, can lock it. An advisory lock could be held by any role that can
-- connect.
create table pawl_private.timer_lane (
  name text not null,
  after_tenant text collate "C" not null default '',
  constraint timer_lane_pkey primary key (name),
  constraint timer_lane_is_known check (name in ('fast', 'slow'))
);

comment on column pawl_private.timer_lane.after_tenant is
  'of the fast lane: the last tenant that had its turn while more timers were due than a call fires; empty to begin with the first';

insert into pawl_private.timer_lane (name) values ('fast'), ('slow');

-- slow_queue has a row for each kind of timers that is, or was in the last day, slow.
create table pawl_private.slow_queue (
  id integer not null generated always as identity,
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  event text collate "C" not null,
  times integer not null,
  slow_until timestamptz not null,
  turn_at timestamptz not null,
  constraint slow_queue_pkey primary key (id),
  constraint slow_queue_kind_key unique (tenant_id, workflow, workflow_version, event),
  constraint slow_queue_times_are_counted check (times >= 1)
);

comment on column pawl_private.slow_queue.times is 'how often the fast lane found the kind slow; see slow_for';
comment on column pawl_private.slow_queue.slow_until is 'until then the fast lane moves timers of the kind without trying them';
comment on column pawl_private.slow_queue.turn_at is 'when the slow lane last took from the queue';

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
  select u.event, u.due_at, u.position
  from (
    select a.event, a.due_at, row_number() over (order by a.due_at, a.place) as position
    from (
      select o.event, i.state_changed_at + o.timeout as due_at, o.place
      from pawl.workflow_state s
      cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as o (timeout, event, place)
      where s.workflow = i.workflow
        and s.workflow_version = i.workflow_version
        and s.state = i.state
      union all
      select m.key, (m.value ->> 'at')::timestamptz, (m.value ->> 'place')::bigint
      from jsonb_each(i.memory -> 'due') m
    ) a
  ) u
  where u.position > case when t.armed_version = i.version then t.tried else 0 end
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
