-- log_tick gives positions to the steps, the findings and the rows of the audit that were committed since the last tick, and
-- renews the sequencer's lease when a third of it has passed. It must be a transaction of its own, committed synchronously, and the
-- commit must not be cancelled: a commit that waits for a standby and is cancelled shows positions that no
-- standby has.
-- Returns: leads: whether p_leader still leads in p_term, on the server of the present epoch; if not, nothing is
--          changed. steps: how many steps and findings got a position
-- Locks:   log_head
-- Writes:  log, audit_log, log_head, log_mark
create function pawl.log_tick(p_leader text, p_term bigint, p_lease interval, out leads boolean, out steps bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_began timestamptz := clock_timestamp();
  v_head pawl.log_head;
  v_snapshot pg_snapshot;
  v_last bigint;
  v_rows bigint;
begin
  -- No lock yet: it would draw this transaction's id before the snapshot is taken. See the module's comment.
  select h.* into v_head from pawl.log_head h where h.leader = p_leader and h.term = p_term;
  leads := found;
  steps := 0;
  if not leads then
    return;
  end if;
  v_snapshot := pg_current_snapshot();
  if v_head.lease_until > v_now + p_lease * 2 / 3
    and not exists (select from pawl_private.steps_between(v_head.snapshot, v_snapshot, v_head.first_seq))
    and not exists (select from pawl_private.audit_between(v_head.snapshot, v_snapshot))
    and not exists (select from pawl_private.findings_between(v_head.snapshot, v_snapshot))
    -- A large transaction in progress: each tick would look at all of its steps until it is in the snapshot's list.
    and not (
      clock_timestamp() > v_began + interval '2 milliseconds'
      and exists (select from pg_snapshot_xip(v_snapshot) as x (xid) where x.xid >= pg_snapshot_xmax(v_head.snapshot)))
  then
    return;
  end if;
  -- A pooler may keep a connection while another server takes over.
  leads := pawl_private.server_is_of_log(v_head.epoch);
  if not leads then
    return;
  end if;
  perform pawl_private.commit_durably();
  perform from pawl.log_head h
  where h.leader = p_leader and h.term = p_term and h.position = v_head.position
  for no key update;
  leads := found;
  if not leads then
    return;
  end if;
  insert into pawl.log (position, tenant_id, instance_id, version, finding_id)
  select v_head.position + row_number() over (order by n.seq), n.tenant_id, n.instance_id, n.version, n.finding_id
  from (
    select h.seq, h.tenant_id, h.instance_id, h.version, null::uuid as finding_id
    from pawl_private.steps_between(v_head.snapshot, v_snapshot, v_head.first_seq) h
    union all
    select f.seq, f.tenant_id, null, null, f.id
    from pawl_private.findings_between(v_head.snapshot, v_snapshot) f
  ) n;
  get diagnostics steps = row_count;
  v_last := v_head.position + steps;
  insert into pawl.audit_log (position, epoch, tenant_id, seq)
  select v_head.audit_position + row_number() over (order by a.seq), v_head.epoch, a.tenant_id, a.seq
  from pawl_private.audit_between(v_head.snapshot, v_snapshot) a;
  get diagnostics v_rows = row_count;
  update pawl.log_head h
  set snapshot = v_snapshot, position = v_last, audit_position = v_head.audit_position + v_rows, lease_until = v_now + p_lease;
  insert into pawl_private.log_mark (position, snapshot, marked_at)
  select v_last, v_snapshot, v_now
  where steps > 0 and not exists (
    select
    from (select m.position, m.marked_at from pawl_private.log_mark m order by m.position desc limit 1) m
    where m.position > v_last - 10000 and m.marked_at > v_now - interval '1 minute'
  );
  if found then
    -- The last mark up to which everything has been read, and later ones, are of use.
    delete from pawl_private.log_mark m
    where m.position < (
      select max(o.position)
      from pawl_private.log_mark o
      where o.position <= coalesce((select min(c.position) from pawl.consumer c where not c.audit), v_last)
    );
  end if;
end
$$;
