-- consumer_status says how far the consumers have read. What the consumer `webhooks` has read and put off
-- counts as still to be read.
-- Returns: one row per consumer, by name. leader: null if nobody leads. steps: how many are still to be
--          read. behind: the age of the oldest of these; null if there is none
create function pawl.consumer_status()
returns table (name text, leader text, term bigint, relayed bigint, steps bigint, behind interval, advanced_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select
    c.name, case when c.lease_until > n.at then c.leader end, c.term, c.relayed, l.steps + u.steps, n.at - least(l.oldest, u.oldest), c.advanced_at
  from pawl.consumer c
  cross join (select pawl.now() as at offset 0) n
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl_private.steps_since(c.cursor) h
    where c.batch is null or h.seq > c.batch_seq or not pg_visible_in_snapshot(h.xid, c.batch)
  ) l
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl.unrouted_step u
    left join pawl.history h on h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version
    where c.name = 'webhooks'
  ) u
  order by c.name
$$;
