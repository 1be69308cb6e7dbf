-- log_begin begins an epoch if the last one is of another server, or of another timeline of this one. The
-- sequencer calls it when it begins to lead, and after it has connected anew, in a transaction of its own.
--
-- A server that was promoted goes on with the transaction ids of its WAL. One that a dump was restored on has
-- others. There, no step may be in progress meanwhile. So all steps that have a position have smaller seqs than
-- first_seq, and all others larger ones. Commands wait while it looks for the steps without a position. The lock's
-- timeout is longer than deadlock_timeout, after which an autovacuum gives way.
--
-- On another server the rows of the audit without a position get one, too. Findings without one are written anew, as steps
-- are. No look and no fold goes on meanwhile, since they hold the row of their consumer. Nor does the healer, which writes findings
-- and then history: like a look it begins with the row of watch.
-- Returns: epoch: the present one. began: whether it began now. restored: whether the database has come from
--          another server
-- Raises:  40001 another process leads; 55P03 lock_timeout: a transaction that has made steps, or opened findings, is
--          still open; ask again
-- Locks:   on another server watch (exclusive), history (share), finding (share); log_head, consumer, subscription
-- Writes:  log_epoch, log_head, audit_log, finding, history, consumer, subscription, purged_instance, log_mark
create function pawl.log_begin(p_leader text, p_term bigint, out epoch bigint, out began boolean, out restored boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1500ms'
as $$
#variable_conflict use_column
declare
  v_server record;
  v_head pawl.log_head;
  v_last pawl.log_epoch;
  v_step record;
  v_rows bigint := 0;
begin
  select s.* into strict v_server from pawl_private.server_of_log() s;
  select e.* into v_last from pawl.log_epoch e order by e.epoch desc limit 1;
  restored := case
    -- Before the first sequencer, a row of another server shows by a transaction id that this one has not reached.
    when v_last.epoch is null then exists (select from pawl.history h where h.xid >= pg_snapshot_xmax(pg_current_snapshot()))
      or exists (select from pawl.audit a where a.xid >= pg_snapshot_xmax(pg_current_snapshot()))
    else (v_last.system_identifier, v_last.database_id, v_last.table_id)
      <> (v_server.system_identifier, v_server.database_id, v_server.table_id)
  end;
  began := restored or v_last.epoch is null or v_last.timeline <> v_server.timeline;
  if not began then
    epoch := v_last.epoch;
    return;
  end if;
  if restored then
    perform pawl_private.commit_durably();
    lock table pawl_private.watch in exclusive mode;
    lock table pawl.history in share mode;
    -- As in log_tick, the snapshot is taken before this transaction has an id.
    v_head.snapshot := pg_current_snapshot();
  end if;
  -- Nobody else leads until this has ended.
  perform from pawl.log_head h where h.leader = p_leader and h.term = p_term for no key update;
  if not found then
    raise exception 'another process leads' using errcode = 'serialization_failure';
  end if;
  if restored then
    -- A copy may lack the numbers that the sequence has given out.
    v_head.first_seq := setval('pawl.history_seq_seq', greatest(
      nextval('pawl.history_seq_seq'), (select max(h.seq) + 1 from pawl.history h), (select max(f.seq) + 1 from pawl.finding f)));
    for v_step in
      select h.ctid as place
      from pawl.history h
      where not exists (
        select from pawl.log l where l.tenant_id = h.tenant_id and l.instance_id = h.instance_id and l.version = h.version
      )
      order by h.seq
    loop
      update pawl.history h set seq = default, xid = default where h.ctid = v_step.place;
    end loop;
    update pawl.consumer c set later_seq = v_head.first_seq where c.later_seq is null;
    perform pawl_private.webhook_restored(v_head.first_seq);
    -- In the order of the fold and of a look: they lock a consumer before they write findings.
    perform from pawl.consumer c order by c.name for no key update;
    lock table pawl.finding in share mode;
    for v_step in
      select f.ctid as place
      from pawl.finding f
      where not exists (select from pawl.log l where l.tenant_id = f.tenant_id and l.finding_id = f.id)
      order by f.seq
    loop
      update pawl.finding f set seq = default, xid = default where f.ctid = v_step.place;
    end loop;
    update pawl_private.purged_instance p set xid = default;
    delete from pawl_private.log_mark;
  end if;
  epoch := coalesce(v_last.epoch, 0) + 1;
  insert into pawl.log_epoch (
    epoch, system_identifier, database_id, table_id, timeline, first_position, first_seq, snapshot, began_at)
  select
    log_begin.epoch, v_server.system_identifier, v_server.database_id, v_server.table_id, v_server.timeline, h.position,
    coalesce(v_head.first_seq, h.first_seq), case when not restored and v_last.epoch is not null then h.snapshot end, pawl.now()
  from pawl.log_head h
  returning snapshot into v_head.epoch_snapshot;
  if restored then
    insert into pawl.audit_log (position, epoch, tenant_id, seq)
    select h.audit_position + row_number() over (order by a.seq), log_begin.epoch, a.tenant_id, a.seq
    from pawl.audit a
    cross join pawl.log_head h
    where not exists (select from pawl.audit_log l where l.tenant_id = a.tenant_id and l.seq = a.seq);
    get diagnostics v_rows = row_count;
  end if;
  update pawl.log_head h
  set epoch = log_begin.epoch, epoch_snapshot = v_head.epoch_snapshot, snapshot = coalesce(v_head.snapshot, h.snapshot),
    first_seq = coalesce(v_head.first_seq, h.first_seq), audit_position = h.audit_position + v_rows,
    lease_until = greatest(h.lease_until, pawl.now() + interval '10 seconds')
  where h.leader = p_leader and h.term = p_term;
end
$$;
