-- preview decides what fire would decide, and writes nothing: a dry run. The caller's transaction may
-- be read-only. Keys play no part.
-- p_expected, p_checked: as for fire
-- p_instances: rows to decide for instead of the stored instances, one per command; null for the stored
-- Returns: one outcome per command, in no order; an applied one shows the instance as it would be
-- Raises:  PW400 malformed-request if p_expected is not as described; what a guard or an assign raises even in silent mode
create function pawl.preview(
  p_tenant text, p_ids uuid[], p_events text[], p_payloads jsonb[], p_expected text[], p_checked text[],
  p_instances pawl.instance[] default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.refuse_malformed(format('%L is no array of versions', left(e.expected, 100)))
  from unnest(p_expected) as e (expected)
  where e.expected not in ('', '*') and case
    when e.expected ~ '^[{]((-?[0-9]{1,18}|[0-9]{19,30})(,(-?[0-9]{1,18}|[0-9]{19,30}))*)?[}]$' then 9223372036854775807 < any (e.expected::numeric[])
    else true
  end;
  return query
  select c.ordinal::integer, d.code, false, d.instance, d.actions, d.guards, d.payload_schema, d.timeout_event, d.due_at
  from (select pawl.now() as now offset 0) n -- Read once: all commands are decided at one time.
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
      p_tenant, c.event, c.payload, '', c.expected, c.checked, null, false
    )::pawl_private.fire_command) d;
end
$$;
