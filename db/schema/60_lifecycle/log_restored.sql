-- log_restored lets consumers and subscriptions go on after the database was restored from a dump, on a
-- server whose transaction ids start anew. All consumers read the steps that at least one of them had not
-- read, so some read steps again. It rewrites all of history. Only the owner may call it.
-- Locks:   consumer, history, subscription (exclusive)
-- Writes:  history, consumer, subscription, purged_history
create function pawl.log_restored() returns void
language plpgsql volatile
as $$
declare
  -- The frozen xid: every snapshot sees it.
  v_past constant xid8 := '2';
begin
  lock table pawl.consumer, pawl.history, pawl.subscription in exclusive mode;
  update pawl.history h
  set xid = case
    when exists (select from pawl.consumer c where not pg_visible_in_snapshot(h.xid, c.cursor)) then pg_current_xact_id()
    else v_past
  end;
  update pawl.consumer c
  set cursor = pg_current_snapshot(), low_watermark = 0, next_low_watermark = 0, next_low_watermark_xid = v_past, batch = null, batch_seq = 0, batch_end = null
  where c.cursor is not null;
  update pawl.subscription s set since = '3:3:';
  delete from pawl_private.purged_history;
end
$$;
