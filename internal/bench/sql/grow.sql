-- Inserts the instances $1 to $2 of $3. Each has made nine transitions during the last day, has a
-- gapless history, and has an idempotency key for each of its last five steps. The keys expire
-- evenly over the next day. Ids are time-ordered, so they rise with the number of the instance.
with made as materialized (
  select
    n, pawl_private.uuid_v7(t.created_at) as id, t.created_at, n::double precision / $3 * interval '24 hours' as left_to_live
  from generate_series($1::integer, $2::integer) n
  cross join lateral (
    select now() - interval '24 hours' + n::double precision / $3 * interval '23 hours' as created_at
  ) t
),
step as materialized (
  select
    m.id, m.created_at, m.left_to_live, v as version,
    m.created_at + (v - 1) * interval '1 minute' as at,
    case when v % 2 = 1 then 'A' else 'B' end as state,
    case when v > 1 then case when v % 2 = 1 then 'B' else 'A' end end as source,
    case when v > 1 then '{"n": 1, "last": 1}'::jsonb else '{"n": 1}' end as context,
    case when v > 5 then concat('grown-', m.n, '-', v) end as key
  from made m
  cross join generate_series(1, 10) v
),
instances as (
  insert into pawl.instance (
    tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
  select 'default', s.id, 'bench', 1, s.state, 'active', s.version, s.context, s.created_at, s.at
  from step s
  where s.version = 10
),
keys as (
  insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
  select
    'default', s.key, sha256(convert_to(jsonb_build_array('fire', s.id, 'go', '{"n": 1}'::jsonb)::text, 'UTF8')),
    'applied', s.id, s.version, now() + s.left_to_live
  from step s
  where s.key is not null
)
insert into pawl.history (
  tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
  context, payload, actor, key, at)
select
  'default', s.id, s.version, 'bench', 1, case when s.version = 1 then 'created' else 'transition' end,
  case when s.version > 1 then 'go' end, s.source, s.state, 'active',
  s.context, case when s.version > 1 then '{"n": 1}'::jsonb end, 'bench', s.key, s.at
from step s
