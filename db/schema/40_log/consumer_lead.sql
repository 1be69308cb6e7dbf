-- consumer_lead makes p_leader the leader of a consumer, if nobody leads, or if p_leader itself does.
-- Returns: the new term; null if another process leads, or if there is no such consumer
-- Raises:  PW40R the database was restored from a dump: see log_restored
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_lead(p_consumer text, p_leader text, p_lease interval) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_low_watermark bigint := pawl_private.next_low_watermark();
  v_snapshot pg_snapshot := pg_current_snapshot();
  v_term bigint;
begin
  if exists (
    select from pawl.consumer c
    where c.name = p_consumer and pg_snapshot_xmax(coalesce(c.batch, c.cursor)) > pg_snapshot_xmax(v_snapshot)
  ) then
    perform pawl_private.raise_condition(
      'log-of-another-server',
      format(
        'consumer %s: its cursor is of another server, so this database was restored from a dump; '
        || 'run, as the owner of the schema: select pawl.log_restored()',
        p_consumer));
  end if;
  update pawl.consumer c
  set cursor = coalesce(c.cursor, v_snapshot),
    low_watermark = case
      when c.cursor is null and pg_visible_in_snapshot(c.next_low_watermark_xid, v_snapshot) then c.next_low_watermark
      else c.low_watermark
    end,
    -- The next batch is newer than this transaction, unless it was begun before.
    next_low_watermark = case when c.batch is null and v_low_watermark is not null then v_low_watermark else c.next_low_watermark end,
    next_low_watermark_xid = case when c.batch is null and v_low_watermark is not null then pg_current_xact_id() else c.next_low_watermark_xid end,
    term = c.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where c.name = p_consumer and (c.lease_until <= v_now or c.leader = p_leader)
  returning c.term into v_term;
  return v_term;
end
$$;
