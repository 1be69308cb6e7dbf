-- consumer_read_findings reads the findings among a consumer's positions up to p_until.
-- Returns: the findings that are still kept and were opened after since, in the order of position
create function pawl.consumer_read_findings(p_consumer text, p_until bigint) returns setof pawl.finding_message
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
  select m.*
  from pawl.consumer c
  cross join lateral (
    select l.* from pawl.log l where l.position > c.position and l.position <= p_until and l.finding_id is not null order by l.position
  ) l
  cross join lateral (
    select f as finding from pawl.finding f where f.tenant_id = l.tenant_id and f.id = l.finding_id limit 1
  ) f
  cross join lateral pawl_private.finding_message_of(f.finding, l.position) m
  where c.name = p_consumer and not c.audit
    and pawl_private.step_follows((f.finding).xid, (f.finding).seq, c.since, c.later_seq)
  order by l.position
$$;
