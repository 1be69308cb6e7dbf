-- Inserts the instances $1 to $2 of $3 with their histories: each was created some time in the last 89 days, has made
-- nine transitions, and is open. Without idempotency keys: no list reads them.
--
-- 7 in 10 are of the first of four tenants, and 6 in 10 of the first of three workflows, whose versions follow each
-- other. 89 in 100 are PACKED, 9 REVIEW, 1 STRAY, and 1 in 1,000 is HELD. Durations of visits are lognormal around 20
-- minutes; 3 in 10 of the instances have made the last step at any time since, and nearly all of the third workflow within
-- the last day, so that the order of creation is not that of the last steps.
with made as materialized (
  select
    n, pawl_private.uuid_v7(t.created_at) as id, t.created_at, random() as chance, random() as late,
    'bench-find-' || case when n % 100 < 70 then 1 when n % 100 < 90 then 2 when n % 100 < 99 then 3 else 4 end as tenant,
    'bench-find-' || case when n / 100 % 10 < 6 then 'a' when n / 100 % 10 < 9 then 'b' else 'c' end as workflow,
    1 + 3 * (n - 1) / $3::integer as workflow_version,
    jsonb_build_object(
      'region', 'EU-' || lpad((power(random(), 3) * 20)::integer::text, 2, '0'), 'ref', 'R-' || lpad(n::text, 7, '0'),
      'price', round((power(random(), 4) * 1000)::numeric, 2), 'due', to_char(t.created_at + random() * interval '30 days', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
      'vip', random() < 0.01) as context
  from generate_series($1::integer, $2::integer) n
  cross join lateral (
    select now() - interval '90 days' + n::double precision / $3 * interval '89 days' as created_at
  ) t
),
dwelt as materialized (
  select
    m.*, v as version,
    m.created_at + sum(case when v > 1 then exp(7.09 + 0.8 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())) else 0 end)
      over (partition by m.n order by v) * interval '1 second' as after
  from made m
  cross join generate_series(1, 10) v
),
step as materialized (
  select
    d.*,
    least(now(), case
      when d.version = 10 and d.workflow = 'bench-find-c' and d.late > 0.001 then greatest(d.after, now() - d.chance * interval '1 day')
      when d.version = 10 and d.late < 0.3 then d.after + d.late / 0.3 * greatest(now() - d.after, interval '0')
      else d.after
    end) as at,
    case d.version
      when 1 then null when 2 then 'check' when 5 then 'check' when 8 then 'check' when 3 then 'pay' when 6 then 'pay' when 9 then 'pay'
      when 10 then case when d.chance < 0.001 then 'hold' when d.chance < 0.011 then 'lose' when d.chance < 0.101 then 'review' else 'pack' end
      else 'pack'
    end as event
  from dwelt d
),
led as (
  select
    s.*,
    case s.event
      when 'check' then 'CHECKED' when 'pay' then 'PAID' when 'pack' then 'PACKED' when 'hold' then 'HELD' when 'lose' then 'STRAY'
      when 'review' then 'REVIEW' else 'NEW'
    end as state,
    case when s.version = 1 then null when s.version = 2 then 'NEW' when s.event = 'check' then 'PACKED' when s.event = 'pay' then 'CHECKED' else 'PAID' end as source
  from step s
),
instances as (
  insert into pawl.instance (
    tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at, state_hash)
  select
    l.tenant, l.id, l.workflow, l.workflow_version, l.state, 'active', 10, l.context, l.created_at, l.at,
    hashtextextended(l.state, hashtextextended(l.workflow, l.workflow_version))
  from led l
  where l.version = 10
)
insert into pawl.history (
  tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status, context, actor, at)
select
  l.tenant, l.id, l.version, l.workflow, l.workflow_version, case when l.version = 1 then 'created' else 'transition' end,
  l.event, l.source, l.state, 'active', l.context, 'bench', l.at
from led l
