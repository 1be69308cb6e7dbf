-- name: FireTimers :one
select
  f.looked_at::integer as looked_at,
  f.fired::integer as fired,
  extract(epoch from f.late)::float8 as late_seconds,
  -- One day if there is no timer.
  coalesce(extract(epoch from f.next_in), 86400)::float8 as next_seconds,
  f.failures::jsonb as failures
from pawl.fire_timers(@row_limit::integer) f;

-- name: PutOffTimer :one
select pawl.put_off_timer()::jsonb as failures;
