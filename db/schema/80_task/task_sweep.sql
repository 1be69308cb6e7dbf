-- task_sweep settles what nobody else settles in time: attempts whose lease ran out, deadlines that have passed, tasks whose
-- request cannot be computed or whose key is too old, and states that undo steps and were just entered. Several processes may
-- call it. It waits for no lock: what another transaction holds is left for the next call. What cannot be settled is put off
-- with its problem. The tasks of disabled tenants wait.
-- Returns: looked: how many tasks and states were settled or put off. next_in: when to look again; null if there is nothing
--          to wait for
-- Locks:   instance (for no key update, those that are not locked), undoing, compensation, task
-- Writes:  as task_settle
create function pawl.task_sweep(p_limit integer, out looked integer, out next_in interval)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_disabled text[] := array(select t.id::text from pawl.tenant t where t.disabled_at is not null);
  v_found record;
  v_swept text;
  v_busy boolean := false;
  v_more boolean := false;
begin
  looked := 0;
  for v_found in
    with due as materialized (
      select
        t.tenant_id, t.instance_id, t.id,
        case
          when t.problem like 'input: %' then jsonb_build_object('result', 'impossible', 'error', t.problem)
          when t.deadline_at <= v_now then jsonb_build_object('result', 'overdue', 'error', case
            when t.due_at is null or t.connection is null then 'deadline'
            when c.name is null then format('deadline; there is no connection %s', t.connection)
            when c.finding is not null then format('deadline; the connection %s cannot be used', t.connection)
            when c.circuit_open_until > v_now then format('deadline; the connection %s rests', t.connection)
            else 'deadline'
          end)
          when t.leased_until is null then '{"result": "expired", "error": "the time for which the service knows the key is over"}'
          else '{"result": "expired", "error": "lease-expired"}'
        end as report
      from pawl.task t
      left join pawl.connection c on c.tenant_id = t.tenant_id and c.name = t.connection
      where t.look_at <= v_now and t.look_at is not null and t.tenant_id <> all (v_disabled)
      order by t.look_at
      limit greatest(p_limit, 0)
    )
    select d.tenant_id, d.instance_id, array_agg(d.id order by d.id) as ids, array_agg(d.report order by d.id) as reports
    from due d
    group by d.instance_id, d.tenant_id
    order by d.instance_id
  loop
    v_swept := pawl_private.sweep_instance(v_found.tenant_id, v_found.instance_id, v_found.ids, v_found.reports, v_now);
    v_busy := v_busy or v_swept = 'busy';
    looked := looked + case when v_swept <> 'busy' then cardinality(v_found.ids) else 0 end;
    exit when v_swept = 'timed-out';
  end loop;
  v_more := looked >= p_limit;

  for v_found in
    select u.tenant_id, u.instance_id
    from pawl.undoing u
    where u.due_at <= v_now and u.due_at is not null and u.tenant_id <> all (v_disabled)
    order by u.due_at
    limit greatest(p_limit, 0)
  loop
    exit when v_swept = 'timed-out';
    v_swept := pawl_private.sweep_instance(v_found.tenant_id, v_found.instance_id, null, null, v_now);
    v_busy := v_busy or v_swept = 'busy';
    looked := looked + case when v_swept <> 'busy' then 1 else 0 end;
  end loop;

  delete from pawl_private.claim_key k
  where k.ctid = any (array(
    select e.ctid
    from pawl_private.claim_key e
    where e.claimed_at <= v_now - interval '1 day'
    order by e.claimed_at
    limit greatest(coalesce(p_limit, 0), 0)
    for update skip locked));

  select min(n.at) - v_now
  into next_in
  from (
    (select t.look_at as at from pawl.task t where t.look_at > v_now and t.look_at is not null order by t.look_at limit 1)
    union all
    (select u.due_at from pawl.undoing u where u.due_at > v_now and u.due_at is not null order by u.due_at limit 1)
    union all
    select v_now where v_more or v_swept = 'timed-out'
    union all
    -- What another transaction holds, it moves or leaves soon.
    select v_now + interval '1 second' where v_busy
  ) n;
end
$$;
