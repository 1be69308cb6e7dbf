-- task_claim claims tasks that call a service, the longest due first: it records that they are sent. The caller must commit
-- before it calls. Each lane is a tenant, a connection and how many to claim of it. A task whose request cannot be computed,
-- or whose key the service may have forgotten, is not returned, and is left to task_sweep.
-- p_claimer: who claims, for people
-- Returns: what to call. path: an array of texts, which stand for themselves, and of arrays of one text, which was
--          interpolated and is to be percent-encoded. idempotency_header: '' for none. body: null for none. timeout_seconds: of
--          the attempt, so that it ends by the deadline
-- Locks:   task (those that are not locked)
-- Writes:  task, task_attempt, compensation
create function pawl.task_claim(p_tenants text[], p_connections text[], p_limits integer[], p_claimer text) returns setof pawl.task_call
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of the lane, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_request jsonb;
  v_timeout interval;
  v_step pawl.history;
begin
  for v_lane in 1 .. coalesce(cardinality(p_tenants), 0) loop
    for v_task in
      select t.*
      from pawl.task t
      where t.tenant_id = p_tenants[v_lane] and t.connection = p_connections[v_lane] and t.connection is not null
        and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
      order by t.tenant_id, t.connection, t.due_at
      limit p_limits[v_lane]
      for update skip locked
    loop
      v_spec := pawl_private.task_spec(v_task);
      v_timeout := least(pawl_private.duration(v_spec.spec ->> 'timeout'), v_task.deadline_at - v_now);
      if v_task.status = 'sent' and v_now + v_timeout >= pawl_private.key_holds_until(v_task, v_spec.spec) then
        -- It has waited for too long. task_sweep decides what becomes of it.
        update pawl.task t set due_at = null, look_at = v_now where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
        continue;
      end if;
      v_step := pawl_private.task_step(v_task);
      begin
        v_request := pawl_private.task_request(
          pawl_private.task_document(v_task, v_step),
          case when v_task.status = 'reconciling' then v_spec.spec #> '{reconcile,request}' else v_spec.spec -> 'request' end);
      exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
        perform pawl_private.task_cannot(v_task, sqlerrm, v_now);
        continue;
      end;
      v_task := pawl_private.begin_attempt(v_task, v_spec, p_claimer, null, v_timeout + interval '10 seconds', v_now);
      return query select
        v_task.tenant_id::text, v_task.id, v_task.lease, v_task.attempts, v_task.status = 'reconciling', pawl_private.task_key(v_task),
        case when v_task.status = 'reconciling' then '' else coalesce(v_spec.spec ->> 'header', '') end, v_task.connection,
        v_request ->> 'method', v_request -> 'path', coalesce(nullif(v_request -> 'query', 'null'), '{}'),
        coalesce(nullif(v_request -> 'headers', 'null'), '{}'), v_request -> 'body', extract(epoch from v_timeout)::float8,
        v_step.correlation_id::text, nullif(pawl_private.task_traceparent(v_task), '');
    end loop;
  end loop;
end
$$;
