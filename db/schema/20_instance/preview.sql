-- preview decides what fire would decide, and writes nothing: a dry run. The caller's transaction may
-- be read-only. Keys play no part.
-- p_expected, p_checked: as for fire
-- p_instances: rows to decide for instead of the stored instances, one per command; null for the stored
-- p_actor, p_verified, p_by_timer: as for fire. p_by_task: whether the commands are for what became of tasks. p_now: when
--             it is decided; null for now
-- Returns: one outcome per command, in no order; an applied one shows the instance as it would be
-- Raises:  PW400 malformed-request if p_expected is not as described; what a guard or an assign raises even in silent
--          mode
create function pawl.preview(
  p_tenant text, p_ids uuid[], p_events text[], p_payloads jsonb[], p_expected text[], p_checked text[],
  p_instances pawl.instance[] default null, p_actor text default session_user, p_verified boolean default null,
  p_now timestamptz default null, p_by_timer boolean default false, p_by_task boolean default false
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.refuse_malformed(pawl_private.expected_fault(e.expected)) from unnest(p_expected) as e (expected);
  return query
  select c.ordinal::integer, d.code, false, d.instance, d.actions, d.guards, d.payload_schema, d.timeout_event, d.due_at
  from (select coalesce(p_now, pawl.now()) as now offset 0) n -- Read once: all commands are decided at one time.
  cross join unnest(p_ids, p_events, p_payloads, p_expected, p_checked)
    with ordinality as c (id, event, payload, expected, checked, ordinal)
  left join lateral (
    select i as instance
    from pawl.instance i
    where p_instances is null and i.tenant_id = p_tenant and i.id = c.id
    limit 1
  ) i on true
  cross join lateral pawl_private.decide(
    p_now => n.now, p_setting => (select g from pawl.setting g),
    p_instance => case when p_instances is null then i.instance else p_instances[c.ordinal] end,
    p_command => (
      p_tenant, c.event, c.payload, '', c.expected, c.checked, null, p_actor, p_verified, p_by_timer, p_by_task, null
    )::pawl_private.fire_command) d;
end
$$;
