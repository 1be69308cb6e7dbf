-- consumer_status says how far the consumers have read. Steps and findings without a position are still to be read, and so is
-- what the consumer `webhooks` has read and put off.
-- Returns: one row per consumer, by name. leader: null if nobody leads. steps: how many are still to be
--          read, findings included; rows, for a consumer of the audit. behind: the age of the oldest of these; null if there is none
create function pawl.consumer_status()
returns table (name text, leader text, term bigint, relayed bigint, steps bigint, behind interval, advanced_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select
    c.name, case when c.lease_until > n.at then c.leader end, c.term, c.relayed, l.steps + t.steps + f.findings + u.steps + a.rows,
    n.at - least(o.at, t.oldest, f.oldest, u.oldest, a.oldest), c.advanced_at
  from pawl.consumer c
  cross join (select pawl.now() as at offset 0) n
  cross join pawl.log_head e
  cross join lateral (
    select count(*) as steps, min(l.position) as next from pawl.log l where not c.audit and l.position > c.position
  ) l
  left join lateral (
    select r.at
    from pawl.log f
    cross join lateral (select pawl_private.logged_at(f) as at) r
    where f.position >= l.next and r.at is not null
    order by f.position
    limit 1
  ) o on true
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl_private.steps_between(e.snapshot, pg_current_snapshot(), e.first_seq) h
    where not c.audit and pawl_private.step_follows(h.xid, h.seq, c.since, c.later_seq)
  ) t
  cross join lateral (
    select count(*) as findings, min(f.opened_at) as oldest
    from pawl_private.findings_between(e.snapshot, pg_current_snapshot()) f
    where not c.audit and pawl_private.step_follows(f.xid, f.seq, c.since, c.later_seq)
  ) f
  cross join lateral (
    select count(*) as steps, least(min(h.at), min(f.opened_at)) as oldest
    from pawl.unrouted_step u
    left join pawl.history h on h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version
    left join pawl.finding f on f.tenant_id = u.tenant_id and f.id = u.finding_id
    where c.name = 'webhooks'
  ) u
  cross join lateral (
    select count(*) as rows, min(r.at) as oldest
    from (
      select a.at
      from pawl.audit_log l
      join pawl.audit a on a.tenant_id = l.tenant_id and a.seq = l.seq
      where c.audit and l.position > c.position
      union all
      select b.at from pawl_private.audit_between(e.snapshot, pg_current_snapshot()) b where c.audit
    ) r
  ) a
  order by c.name
$$;
