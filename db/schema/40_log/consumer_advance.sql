-- consumer_advance moves a consumer's cursor to p_batch. If p_seq is given, it only notes that p_batch has
-- been read up to p_seq. It renews the lease, too. The commit is asynchronous: steps whose advance is lost
-- in a crash are relayed again.
-- p_relayed:       how many steps were relayed, for consumer_status
-- p_low_watermark: in a transaction that has written before, what next_low_watermark returned before it
--                  wrote
-- Returns: whether p_term still leads; if not, nothing is changed
-- Locks:   consumer
-- Writes:  consumer
create function pawl.consumer_advance(
  p_consumer text, p_term bigint, p_batch pg_snapshot, p_seq bigint, p_relayed bigint, p_lease interval,
  p_low_watermark bigint default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_low_watermark bigint := coalesce(p_low_watermark, pawl_private.next_low_watermark());
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set cursor = case when p_seq is null then p_batch else c.cursor end,
    low_watermark = case
      when p_seq is null and pg_visible_in_snapshot(c.next_low_watermark_xid, p_batch) then c.next_low_watermark
      else c.low_watermark
    end,
    next_low_watermark = case when p_seq is null and v_low_watermark is not null then v_low_watermark else c.next_low_watermark end,
    next_low_watermark_xid = case when p_seq is null and v_low_watermark is not null then pg_current_xact_id() else c.next_low_watermark_xid end,
    batch = case when p_seq is null then null else p_batch end,
    batch_seq = coalesce(p_seq, 0),
    batch_end = case when p_seq is not null then coalesce(c.batch_end, (select s.last_value from pawl.history_seq_seq s)) end,
    relayed = c.relayed + p_relayed,
    advanced_at = v_now,
    lease_until = v_now + p_lease
  where c.name = p_consumer and c.term = p_term;
  return found;
end
$$;
