-- One transition by the engine, called without a service and without a batch. If it is not
-- applied, the division by zero ends the run.
\set i :i + 1
\set n 1 + :client_id * :slice + :i % :slice
select f.*, 1 / (f.code = 'applied')::integer as applied
from pawl.fire(
  array['default'], array[(select b.id from pawl_bench.instance b where b.n = :n)], array['go'], array['{"n": 1}'::jsonb],
  array[concat(:run::text, '-', :client_id::text, '-', :i::text)], array[''], array[''], array['pgbench'], array[''],
  array[''], array['']) f;
