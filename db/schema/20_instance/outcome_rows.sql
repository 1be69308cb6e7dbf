-- outcome_rows writes an outcome as one flat row, for callers that cannot read its instance, which is
-- a composite type. The planner inlines it.
-- Returns: one row
create function pawl.outcome_rows(p_outcome pawl.outcome) returns setof pawl.outcome_row
language sql immutable parallel safe
as $$
  select
    p_outcome.ordinal, p_outcome.code, p_outcome.replayed, i.id, i.workflow, i.workflow_version, i.state,
    i.status::text, i.version::bigint, i.context::jsonb, i.business_key::text, i.correlation_id::text, i.created_at,
    i.state_changed_at, i.expires_at, i.error::jsonb, p_outcome.actions, p_outcome.guards, p_outcome.schema,
    p_outcome.timeout_event, p_outcome.timeout_due_at, i.memory::jsonb
  from (select (p_outcome.instance).*) i
$$;
