-- cancel moves an instance to the state that its definition names as cancel. The step is one that override makes, but
-- its kind in history, and what guards and values read as $.event, is 'cancelled'.
-- p_expected: '' for no precondition, else as for override. The other parameters are as for override
-- Returns: the outcome
-- Raises:  PW40C not-cancellable; what override raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer, audit
create function pawl.cancel(
  p_id uuid, p_reason text, p_expected text default '', p_key text default null, p_tenant text default 'default',
  p_actor text default session_user, p_correlation_id text default null, p_traceparent text default null,
  p_verified boolean default null, p_dry_run boolean default false, p_raises boolean default true,
  p_caller jsonb default null
) returns pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_memoize = off
set jit = off
as $$
declare
  v_served boolean := pawl_private.is_service();
begin
  perform pawl_private.refuse_malformed(pawl_private.force_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id, p_reason => p_reason,
    p_expected => p_expected));
  return pawl_private.force(
    p_kind => 'cancelled', p_id => p_id,
    p_command => (
      p_tenant, null, '{}', p_key, coalesce(p_expected, ''), '*', p_reason,
      pawl_private.bound_actor(p_tenant, p_actor), case when v_served then p_verified end, false, false, null
    )::pawl_private.fire_command,
    p_to => null, p_patch => null, p_patch_checked => '*', p_target => null,
    p_correlation_id => p_correlation_id, p_traceparent => p_traceparent, p_dry_run => p_dry_run, p_raises => p_raises,
    p_caller => case when v_served then p_caller end);
end
$$;
