-- propose_workflow stores a definition in canonical form under a number that no version has, to be simulated. The
-- caller must roll its transaction back. Nobody waits for it, neither commands nor registrations.
-- Returns: the number
-- Raises:  PW42D invalid-definition
-- Locks:   workflow (row exclusive)
-- Writes:  workflow, workflow_state, workflow_transition
create function pawl.propose_workflow(p_definition jsonb) returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
-- As for register_workflow.
set jit = off
as $$ select pawl_private.store_candidate(p_definition ->> 'name', p_definition) $$;
