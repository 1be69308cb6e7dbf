-- bulk_create submits a bulk. A key makes it once.
-- p_id:      a new id, of version 7
-- p_filter:  what the caller asked for, to be shown; null if p_ids names the instances
-- p_choice:  the filter, or what bounds the submitter, as the members of a pawl_private.bulk_filter
-- p_ids:     the instances; null if there is a filter
-- p_counted: how many index entries the filter has, up to 1,001
-- p_caller:  who asks; null for the session
-- Returns: the bulk. If its id is not p_id, the same request was submitted before, with the same key
-- Raises:  PW42K idempotency-key-reuse
-- Writes:  bulk, bulk_item, audit
create function pawl.bulk_create(
  p_tenant text, p_id uuid, p_action text, p_filter jsonb, p_choice jsonb, p_ids uuid[], p_params jsonb, p_reason text,
  p_rate integer, p_dry_run boolean, p_counted bigint, p_key text, p_actor text, p_verified boolean,
  p_correlation_id text, p_traceparent text, p_caller jsonb default null
) returns setof pawl.bulk_report
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_filter pawl_private.bulk_filter := jsonb_populate_record(null::pawl_private.bulk_filter, p_choice);
  v_until uuid := pawl.uuid_v7_floor(v_now + interval '1 millisecond');
  -- As pawl_private.fingerprint.
  v_fingerprint bytea := sha256(convert_to(
    jsonb_build_array('bulk', p_action, p_filter, p_ids, p_params, p_rate, p_dry_run)::text
      || case when p_verified then p_actor else '' end, 'UTF8'));
  v_bulk pawl.bulk;
begin
  insert into pawl.bulk (
    tenant_id, id, action, filter, choice, workflows, params, reason, rate, dry_run, status, key, fingerprint, actor, verified,
    correlation_id, traceparent, caller, created_at, until_id, position, walked, turn_at, next_at, estimate, open)
  values (
    p_tenant, p_id, p_action, p_filter, p_choice, v_filter.workflows, p_params, nullif(p_reason, ''), p_rate, p_dry_run, 'queued', p_key,
    v_fingerprint, p_actor, p_verified, nullif(p_correlation_id, ''), nullif(p_traceparent, ''), p_caller, v_now,
    least(v_until, pawl.uuid_v7_floor(coalesce(v_filter.created_before, 'infinity') + interval '1 millisecond')),
    pawl.uuid_v7_floor(coalesce(v_filter.created_after, '-infinity')),
    p_ids is not null, v_now, v_now, 0, 0)
  on conflict do nothing
  returning * into v_bulk;
  if not found then
    select b.* into v_bulk from pawl.bulk b where b.tenant_id = p_tenant and b.key = p_key;
    if v_bulk.fingerprint is distinct from v_fingerprint then
      perform pawl_private.raise_condition('idempotency-key-reuse', null);
    end if;
    return query select r.* from pawl.bulk_report r where r.tenant_id = p_tenant and r.id = v_bulk.id;
    return;
  end if;
  insert into pawl.bulk_item (tenant_id, bulk_id, instance_id)
  select distinct p_tenant, p_id, u.id from unnest(p_ids) u (id);
  get diagnostics v_bulk.open = row_count;
  v_bulk.estimate := case
    when p_ids is not null then v_bulk.open
    when p_counted <= 1000 then p_counted
    else greatest(p_counted, pawl_private.bulk_estimate(p_tenant, v_filter))
  end;
  update pawl.bulk b set open = v_bulk.open, estimate = v_bulk.estimate where b.tenant_id = p_tenant and b.id = p_id;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'bulk.create', p_target => p_id::text, p_reason => p_reason,
    p_after => jsonb_strip_nulls(jsonb_build_object(
      'action', p_action, 'filter', p_filter, 'ids', to_jsonb(p_ids), 'rate', p_rate,
      'dry_run', p_dry_run)) || jsonb_build_object('params', p_params - array['payload', 'context_patch']));
  return query select r.* from pawl.bulk_report r where r.tenant_id = p_tenant and r.id = p_id;
end
$$;
