-- backlog measures what is still to be done. Each part reads a bounded number of rows, by an index. So its cost does not
-- grow with the backlog, and a count is at least what it says: of timers, deliveries and dead letters 10,000 rows are
-- counted, and of open tasks 100,000.
-- Timers and deliveries of disabled tenants wait until these are enabled, and are not counted.
-- Returns: one row per measure, and per label and status where the measure has these:
--          timers_due: how many deadlines have passed. timers_late: for how long the oldest of them, in seconds.
--          timers_failing: how many cannot be ended.
--          consumer_steps: by consumer, how many positions of the log it has not read. consumer_behind: by consumer, the
--          age of the first step that it has not read, in seconds.
--          deliveries_due: how many deliveries may be sent now. deliveries_late: for how long the oldest, in seconds.
--          deliveries_dead: how many dead letters there are.
--          tasks: by topic and status, how many are open, or have ended badly. Calls have the topic _call
create function pawl.backlog() returns setof pawl.backlog_row
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index.
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_disabled text[] := array(select t.id::text from pawl.tenant t where t.disabled_at is not null);
begin
  return query
  select m.measure, ''::text, ''::text, m.value
  from (
    select count(*)::float8 as due, coalesce(extract(epoch from v_now - min(t.due_at)), 0)::float8 as late
    from (
      (
        select t.tenant_id, t.due_at
        from pawl.timer t
        where t.due_at <= v_now and t.queued_version is distinct from t.armed_version
        order by t.due_at
        limit 10000
      )
      union all
      select s.tenant_id, s.due_at
      from pawl_private.slow_queue q
      cross join lateral (
        select t.tenant_id, t.due_at
        from pawl.timer t
        where t.queue = q.id and t.queued_version = t.armed_version and t.due_at <= v_now
        order by t.due_at
        limit 1000
      ) s
    ) t
    where t.tenant_id <> all (v_disabled)
  ) t
  cross join lateral (values ('timers_due', t.due), ('timers_late', t.late)) m (measure, value);

  return query
  select 'timers_failing'::text, ''::text, ''::text, count(*)::float8
  from (select t.tenant_id from pawl.timer t where t.failed_version = t.armed_version limit 10000) t
  where t.tenant_id <> all (v_disabled);

  return query
  select m.measure, c.name, ''::text, m.value
  from pawl.consumer c
  cross join pawl.log_head e
  left join lateral (
    select r.at
    from pawl.log f
    cross join lateral (select pawl_private.logged_at(f) as at) r
    where f.position > c.position and not c.audit and r.at is not null
    order by f.position
    limit 1
  ) o on true
  left join lateral (
    select r.at
    from pawl.audit_log l
    join pawl.audit r on r.tenant_id = l.tenant_id and r.seq = l.seq
    where l.position > c.position and c.audit
    order by l.position
    limit 1
  ) a on true
  cross join lateral (values
    ('consumer_steps', greatest(case when c.audit then e.audit_position else e.position end - c.position, 0)::float8),
    ('consumer_behind', coalesce(extract(epoch from v_now - coalesce(o.at, a.at)), 0)::float8)
  ) m (measure, value);

  return query
  select m.measure, ''::text, ''::text, m.value
  from (
    select count(*)::float8 as due, coalesce(extract(epoch from v_now - min(d.next_attempt_at)), 0)::float8 as late
    from (
      (
        select d.tenant_id, d.next_attempt_at
        from pawl.delivery d
        where d.status = 'pending' and d.next_attempt_at is not null and not d.callback and d.next_attempt_at <= v_now
        limit 10000
      )
      union all
      (
        select d.tenant_id, d.next_attempt_at
        from pawl.delivery d
        where d.status = 'pending' and d.next_attempt_at is not null and d.callback and d.next_attempt_at <= v_now
        limit 10000
      )
    ) d
    where d.tenant_id <> all (v_disabled)
  ) d
  cross join lateral (values ('deliveries_due', d.due), ('deliveries_late', d.late)) m (measure, value);

  return query
  select 'deliveries_dead'::text, ''::text, ''::text, count(*)::float8
  from (select from pawl.delivery d where d.status = 'dead' limit 10000) d;

  return query
  select 'tasks'::text, coalesce(t.topic, '_call'), t.status, count(*)::float8
  from (
    (select t.topic, t.status from pawl.task t where t.status in ('pending', 'sent', 'reconciling') limit 100000)
    union all
    (select t.topic, t.status from pawl.task t where t.status in ('error', 'unknown') limit 10000)
  ) t
  group by t.topic, t.status;
end
$$;
