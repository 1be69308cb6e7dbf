-- Numbers the instances in random order, for the load and for pgbench. The fingerprint is the one
-- that the engine computes for the transition.
create table pawl_bench.instance (n integer primary key, id uuid not null, fingerprint bytea not null);

insert into pawl_bench.instance (n, id, fingerprint)
select
  row_number() over (order by random()), i.id,
  sha256(convert_to(jsonb_build_array('fire', i.id, 'go', '{"n": 1}'::jsonb)::text, 'UTF8'))
from pawl.instance i;

analyze pawl_bench.instance;
