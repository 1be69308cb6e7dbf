-- name: FireTimers :one
select
  f.looked_at::integer as looked_at,
  f.fired::integer as fired,
  extract(epoch from f.late)::float8 as late_seconds,
  -- One day if there is no timer.
  coalesce(extract(epoch from f.next_in), 86400)::float8 as next_seconds,
  f.failures::jsonb as failures,
  f.timed_out::boolean as timed_out
from pawl.fire_timers(@row_limit::integer, @one_kind::boolean) f;

-- name: FireSlowTimers :one
select f.looked_at::integer as looked_at, f.fired::integer as fired, f.failures::jsonb as failures
from pawl.fire_slow_timers() f;
