-- register_compensation registers that a task may have done what its compensation undoes. If an earlier effect of the task
-- was undone, or there was none, the new one comes after what has been done since.
-- Writes: compensation
create function pawl_private.register_compensation(p_task pawl.task, p_spec pawl.workflow_task) returns void
language plpgsql volatile
as $$
begin
  if p_spec.compensation is not null then
    insert into pawl.compensation as c (tenant_id, instance_id, name, workflow, workflow_version, position, task_id, version, status)
    values (
      p_task.tenant_id, p_task.instance_id, p_task.name, p_task.workflow, p_task.workflow_version, p_spec.compensation, p_task.id,
      p_task.entered_version, 'registered')
    on conflict (tenant_id, task_id) do update
    set status = 'registered', number = default, undone_by = null, reason = null
    where c.status in ('void', 'undone', 'skipped');
  end if;
end
$$;

-- lock_claim_key lets the same claim, sent twice at a time, be carried out once.
-- Locks:  claim_key
-- Writes: claim_key
create function pawl_private.lock_claim_key(p_tenant text, p_key text, p_now timestamptz) returns void
language plpgsql volatile
as $$
begin
  insert into pawl_private.claim_key (tenant_id, key, claimed_at)
  values (p_tenant, p_key, p_now)
  on conflict on constraint claim_key_pkey do update set claimed_at = excluded.claimed_at;
end
$$;

-- begin_attempt claims a task: it records that it is sent.
-- p_for: for how long the lease holds
-- Returns: the task as it became
-- Writes:  task, task_attempt, compensation
create function pawl_private.begin_attempt(
  p_task pawl.task, p_spec pawl.workflow_task, p_worker text, p_claim_key text, p_for interval, p_now timestamptz
) returns pawl.task
language plpgsql volatile
as $$
declare
  v_task pawl.task;
  v_reconciles boolean := p_task.status = 'reconciling';
begin
  update pawl.task t
  set
    status = case when v_reconciles then 'reconciling' else 'sent' end,
    attempts = t.attempts + 1,
    tries = t.tries + case when v_reconciles then 0 else 1 end,
    checks = t.checks + case when v_reconciles then 1 else 0 end,
    sent_at = coalesce(t.sent_at, p_now),
    due_at = null,
    lease = gen_random_uuid(),
    leased_until = p_now + p_for,
    leased_for = p_for,
    -- A call that ends at the deadline has a moment to be reported.
    look_at = least(p_now + p_for, t.deadline_at + case when t.topic is null then interval '2 seconds' else interval '0' end),
    worker = left(p_worker, 255),
    claim_key = nullif(p_claim_key, '')
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id
  returning t.* into strict v_task;
  insert into pawl.task_attempt (tenant_id, task_id, number, kind, key, lease, worker, started_at)
  values (
    v_task.tenant_id, v_task.id, v_task.attempts,
    case when v_reconciles then 'reconcile' when v_task.topic is not null then 'work' else 'call' end,
    pawl_private.task_key(v_task), v_task.lease, v_task.worker, p_now);
  if not v_reconciles then
    perform pawl_private.register_compensation(v_task, p_spec);
  end if;
  return v_task;
end
$$;

-- task_cannot notes that a task's request or input cannot be made. task_sweep ends it.
-- Writes: task
create function pawl_private.task_cannot(p_task pawl.task, p_error text, p_now timestamptz) returns void
language sql volatile
as $$
  update pawl.task t
  set due_at = null, look_at = p_now, problem = left('input: ' || p_error, 1000)
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id
$$;

-- work_claim claims tasks of a topic, the longest due first. A claim with a key under which tasks are leased returns these
-- once more, and no others.
-- p_lease:  for how long the lease holds; null for what each task declares
-- p_key:    '' or null for none
-- p_within: the workflows whose tasks it may claim; null for all
-- p_holds:  whether to lock their instances too, for a caller who settles them in the same transaction: so no step waits for
--           a task whose holder waits for the step's instance
-- Locks:    claim_key, instance (if p_holds, for no key update, those that are not locked), task (those that are not locked)
-- Writes:   claim_key, task, task_attempt, compensation
create function pawl_private.work_claim(
  p_tenant text, p_topic text, p_worker text, p_max integer, p_lease interval default null, p_key text default null,
  p_within text[] default null, p_holds boolean default false
) returns setof pawl.work
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of the topic, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_input jsonb;
  v_step pawl.history;
  v_repeats boolean := false;
begin
  if p_max not between 1 and 100 or p_max is null then
    perform pawl_private.refuse_malformed('a claim takes 1 to 100 tasks');
  elsif p_lease not between interval '1 second' and interval '1 hour' then
    perform pawl_private.refuse_malformed('a lease holds for 1s to 1h');
  elsif length(p_key) > 255 then
    perform pawl_private.refuse_malformed('a key has at most 255 characters');
  end if;
  if p_key <> '' then
    perform pawl_private.lock_claim_key(p_tenant, p_key, v_now);
    v_repeats := exists (
      select from pawl.task t
      where t.tenant_id = p_tenant and t.claim_key = p_key and t.topic = p_topic and t.leased_until is not null);
    if v_repeats then
      perform pawl_private.commit_synchronously();
    end if;
  end if;
  for v_task in
    (
      select t.*
      from pawl.task t
      where v_repeats and t.tenant_id = p_tenant and t.claim_key = p_key and t.topic = p_topic and t.leased_until is not null
    )
    union all
    (
      select d.*
      from (
        select t.*
        from pawl.task t
        where not v_repeats and not p_holds and t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null
          and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
          and (p_within is null or t.workflow = any (p_within))
        order by t.tenant_id, t.topic, t.due_at
        limit p_max
        for update skip locked
      ) d
    )
    union all
    (
      select d.*
      from (
        select t.*
        from pawl.task t
        join pawl.instance i on i.tenant_id = t.tenant_id and i.id = t.instance_id
        where not v_repeats and p_holds and t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null
          and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
          and (p_within is null or t.workflow = any (p_within))
        order by t.tenant_id, t.topic, t.due_at
        limit p_max
        for no key update of i skip locked
        for update of t skip locked
      ) d
    )
  loop
    v_spec := pawl_private.task_spec(v_task);
    v_step := pawl_private.task_step(v_task);
    begin
      v_input := coalesce(nullif(pawl_private.value(pawl_private.task_document(v_task, v_step), v_spec.spec -> 'input'), 'null'), '{}');
      if jsonb_typeof(v_input) <> 'object' then
        raise exception 'it is of type %, and must be an object', jsonb_typeof(v_input) using errcode = 'invalid_parameter_value';
      end if;
    exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
      perform pawl_private.task_cannot(v_task, sqlerrm, v_now);
      continue;
    end;
    if not v_repeats then
      v_task := pawl_private.begin_attempt(
        v_task, v_spec, p_worker, p_key, coalesce(p_lease, pawl_private.duration(v_spec.spec ->> 'lease')), v_now);
    end if;
    return query select
      v_task.id, v_task.topic, v_task.name, v_task.instance_id, v_task.workflow, v_task.attempts, pawl_private.task_key(v_task),
      v_input, v_task.lease, least(v_task.leased_until, v_task.deadline_at), v_task.deadline_at,
      v_step.correlation_id::text, nullif(pawl_private.task_traceparent(v_task), '');
  end loop;
end
$$;
