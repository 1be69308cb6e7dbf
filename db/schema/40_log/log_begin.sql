-- log_begin begins an epoch if the last one is of another server, or of another timeline of this one. The
-- sequencer calls it when it begins to lead, and after it has connected anew, in a transaction of its own.
--
-- A server that was promoted goes on with the transaction ids of its WAL. One that a dump was restored on has
-- others. There, for a moment no step may be in progress: then all steps so far have smaller seqs than
-- first_seq, and all later ones larger.
-- Returns: epoch: the present one. began: whether it began now. restored: whether the database has come from
--          another server
-- Raises:  55P03 lock_timeout: a transaction that has made steps is still open; ask again
-- Locks:   history (share) on another server, log_head
-- Writes:  log_epoch, log_head
create function pawl.log_begin(p_leader text, p_term bigint, out epoch bigint, out began boolean, out restored boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
as $$
#variable_conflict use_column
declare
  v_server record;
  v_head pawl.log_head;
  v_last pawl.log_epoch;
begin
  select s.* into strict v_server from pawl_private.server_of_log() s;
  select e.* into v_last from pawl.log_epoch e order by e.epoch desc limit 1;
  restored := v_last is null or
    (v_last.system_identifier, v_last.database_id, v_last.table_id) <> (v_server.system_identifier, v_server.database_id, v_server.table_id);
  began := restored or v_last.timeline <> v_server.timeline;
  if not began then
    epoch := v_last.epoch;
    return;
  end if;
  if restored then
    lock table pawl.history in share mode;
    -- As in log_tick, the snapshot is taken before this transaction has an id.
    v_head.snapshot := pg_current_snapshot();
    v_head.first_seq := nextval('pawl.history_seq_seq');
    v_head.renumbers := true;
    delete from pawl_private.log_mark;
  end if;
  epoch := coalesce(v_last.epoch, 0) + 1;
  insert into pawl.log_epoch (
    epoch, system_identifier, database_id, table_id, timeline, first_position, first_seq, snapshot, began_at)
  select
    log_begin.epoch, v_server.system_identifier, v_server.database_id, v_server.table_id, v_server.timeline, h.position,
    coalesce(v_head.first_seq, h.first_seq), case when not restored then h.snapshot end, pawl.now()
  from pawl.log_head h;
  update pawl.log_head h
  set epoch = log_begin.epoch, snapshot = coalesce(v_head.snapshot, h.snapshot), first_seq = coalesce(v_head.first_seq, h.first_seq),
    renumbers = coalesce(v_head.renumbers, h.renumbers)
  where h.leader = p_leader and h.term = p_term;
  if not found then
    raise exception 'another process leads' using errcode = 'serialization_failure';
  end if;
  restored := restored and v_last is not null;
end
$$;
