-- bulk_control pauses, resumes, stops or retries a bulk. What has no effect, such as to pause a bulk that is paused, is
-- no fault. retry opens the items again that were refused or failed.
-- p_control: 'pause', 'resume', 'stop' or 'retry'
-- p_caller:  who asks; null for the session
-- Returns: the bulk; no row if there is none
-- Raises:  PW40B bulk-conflict if the bulk has ended
-- Locks:   bulk
-- Writes:  bulk, audit
create function pawl.bulk_control(p_tenant text, p_id uuid, p_control text, p_caller jsonb default null)
returns setof pawl.bulk_report
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_bulk pawl.bulk;
  v_before text;
begin
  select b.* into v_bulk from pawl.bulk b where b.tenant_id = p_tenant and b.id = p_id for no key update;
  if not found then
    return;
  end if;
  v_now := pawl.now();
  v_before := v_bulk.status;
  if v_bulk.status = 'stopped' and p_control <> 'stop' or v_bulk.status = 'done' and p_control <> 'retry' then
    perform pawl_private.raise_condition(
      'bulk-conflict', format('the bulk is %s', v_bulk.status), jsonb_build_object('bulk_status', v_bulk.status));
  end if;
  case p_control
    when 'pause' then
      v_bulk.status := 'paused';
    when 'resume' then
      v_bulk.status := case v_bulk.status when 'paused' then 'queued' else v_bulk.status end;
    when 'stop' then
      v_bulk.finished_at := coalesce(v_bulk.finished_at, v_now);
      v_bulk.status := 'stopped';
    when 'retry' then
      if v_bulk.refused + v_bulk.failed > 0 then
        v_bulk.open := v_bulk.open + v_bulk.refused + v_bulk.failed;
        v_bulk.refused := 0;
        v_bulk.failed := 0;
        v_bulk.retry_at := v_now;
        v_bulk.open_from := '00000000-0000-0000-0000-000000000000';
        v_bulk.finished_at := null;
        v_bulk.status := case v_bulk.status when 'done' then 'queued' else v_bulk.status end;
      end if;
  end case;
  update pawl.bulk b
  set status = v_bulk.status, finished_at = v_bulk.finished_at, open = v_bulk.open, refused = v_bulk.refused,
    failed = v_bulk.failed, retry_at = v_bulk.retry_at, open_from = v_bulk.open_from, turn_at = v_now,
    pace_from = null, pace_count = 0
  where b.tenant_id = p_tenant and b.id = p_id;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'bulk.' || p_control, p_target => p_id::text,
    p_before => jsonb_build_object('status', v_before), p_after => jsonb_build_object('status', v_bulk.status));
  return query select r.* from pawl.bulk_report r where r.tenant_id = p_tenant and r.id = p_id;
end
$$;
