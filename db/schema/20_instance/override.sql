-- override makes a step that an instance's definition does not allow now, in the name of an operator: along a transition
-- of an event whatever its guards say, or to any state of the instance's version. All else is as after every step:
-- entry and exit assigns, timers, invariants, eventless transitions, history (with kind 'forced'). A final instance does
-- not move, and a protected state is neither left nor entered. The audit has a row for the step, and one for a replay.
-- p_reason:        why; 1 to 1000 characters, not blank
-- p_expected:      '*' for any version, else an array literal of the versions that will do, such as '{3}'
-- p_to:            the path of a state; of a compound one, the instance gets into its initial state. Guards and values
--                  read 'forced' as $.event
-- p_context_patch: with p_to: a JSON Merge Patch (RFC 7396) of the context. What the states that are left assign comes
--                  before it, what the states that are entered assign comes after it
-- p_event, p_payload: in place of p_to. p_bypass: with p_event: 'guard'
-- p_target:        with p_event: a state; only a transition that leads there, or into it, is taken. Null for the first
-- p_checked:       as for fire
-- p_patch_checked: the version of the instance for which the caller has checked the patched context against the
--                  workflow's schema, or '*' for any; see 'context-unchecked'
-- p_verified:      as for fire. It counts only if the session is one of the service, as does p_caller
-- p_dry_run:       decide, and write and lock nothing; the caller's transaction may be read-only. The key plays no part
-- p_raises:        whether a refusal is raised, or returned as fire returns it. A refusal that is raised is not recorded
--                  for the key
-- p_caller:        who acts, for the audit: a JSON object; null for p_actor
-- Returns: the outcome. 'payload-unchecked' is as fire's. With 'context-unchecked', schema is an object of the schema and
--          the contexts before and after the patch: if the first fits the schema, the second must
-- Raises:  what pawl_private.bound_actor raises; PW400, PW404, PW409, PW40G, PW40P, PW412, PW413, PW422, PW42G, PW42K, PW428: see
--          pawl_private.condition; the detail is JSON. 40001 a key vanished while it was read: try again. What a guard or
--          an assign raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer, audit
create function pawl.override(
  p_id uuid, p_reason text, p_expected text, p_to text default null, p_context_patch jsonb default null,
  p_event text default null, p_payload jsonb default null, p_bypass text default null, p_target text default null,
  p_key text default null, p_tenant text default 'default', p_actor text default session_user,
  p_correlation_id text default null, p_traceparent text default null, p_checked text default '*',
  p_patch_checked text default '*', p_verified boolean default null, p_dry_run boolean default false,
  p_raises boolean default true, p_caller jsonb default null
) returns pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_memoize = off
-- Plans over JSON of unknown size look expensive, and would be compiled.
set jit = off
as $$
declare
  v_served boolean := pawl_private.is_service();
begin
  perform pawl_private.refuse_malformed(coalesce(
    pawl_private.force_fault(
      p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id, p_reason => p_reason,
      p_expected => p_expected),
    case
      when (p_event is null) = (p_to is null) then 'give either an event or a state to go to'
      when p_event is not null and p_bypass is distinct from 'guard'
        then 'an override by an event passes over guards: bypass must be guard. Fire the event if its guards are to count'
      when p_event is not null and p_context_patch is not null then 'a context patch goes with a state to go to'
      when p_to is not null and (p_payload is not null or p_bypass is not null or p_target is not null)
        then 'payload, bypass and target go with an event'
      when jsonb_typeof(p_context_patch) <> 'object' or pawl_private.is_too_deep(p_context_patch)
        then 'the context patch must be a JSON object, nested at most 64 deep'
    end));
  return pawl_private.force(
    p_kind => 'forced', p_id => p_id,
    p_command => (
      p_tenant, p_event, coalesce(p_payload, '{}'), p_key, coalesce(p_expected, ''), p_checked, p_reason,
      pawl_private.bound_actor(p_tenant, p_actor), case when v_served then p_verified end,
      false, false, null
    )::pawl_private.fire_command,
    p_to => p_to, p_patch => p_context_patch, p_patch_checked => p_patch_checked, p_target => p_target,
    p_correlation_id => p_correlation_id, p_traceparent => p_traceparent, p_dry_run => p_dry_run, p_raises => p_raises,
    p_caller => case when v_served then p_caller end);
end
$$;
