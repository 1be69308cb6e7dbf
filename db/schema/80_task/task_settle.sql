-- task_settle settles what came of attempts, in one transaction with the steps that this makes. The first reports of a call
-- are decided first. A report is a JSON object with a result:
--   answered   {status, headers, body, error, retry_after}: the service answered. error: what was wrong with the body
--   refused    {error}: the call was surely not made
--   lost       {error}: the call may have been made
--   postponed  {error, seconds}: there was no attempt; it may be claimed again after so many seconds
--   completed  {body}: of work: it was done
--   failed     {error, retryable, retry_in, outcome}: of work. retry_in: seconds; outcome: how it ends if there is no other
--              attempt, error or unknown
--   released   of work: it is given back, and costs no attempt
--   heartbeat  {progress, lease}: of work: it goes on. lease: seconds; as long as it was if left out
-- Returns: one row per report, in no order. code: 'settled'; 'repeated': it was settled so before; 'task-not-found';
--          'lease-superseded'; 'task-ended': it has ended otherwise; 'payload-too-large'. late: its state was left before, and
--          no operator has it tried again
-- Raises:  what fire raises
-- Locks:   instance (for no key update, by id), undoing, compensation, task
-- Writes:  task, task_attempt, compensation, undoing, what fire writes
create function pawl.task_settle(p_tenants text[], p_ids uuid[], p_leases uuid[], p_reports jsonb[]) returns setof pawl.task_settled
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select * from pawl_private.settle_tasks(p_tenants, p_ids, p_leases, p_reports) $$;
