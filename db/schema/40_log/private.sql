-- steps_between reads the steps that p_until sees and p_from does not: of later transactions, and of those that
-- were in progress at p_from. Transaction ids of another server (up to p_first_seq) are not asked. The planner
-- inlines it. The caller must set enable_seqscan = off: the steps to read are always the newest rows, of which
-- the statistics know nothing.
-- Returns: rows of history, in no order
create function pawl_private.steps_between(p_from pg_snapshot, p_until pg_snapshot, p_first_seq bigint) returns setof pawl.history
language sql stable
as $$
  select h.*
  from pawl.history h
  where h.xid >= pg_snapshot_xmax(p_from) and h.xid < pg_snapshot_xmax(p_until)
    and pg_visible_in_snapshot(h.xid, p_until) and h.seq > p_first_seq
  union all
  -- One by one: a join would read all of history.
  select h.*
  from pg_snapshot_xip(p_from) as x (xid)
  cross join lateral (select h.* from pawl.history h where h.xid = x.xid offset 0) h
  where pg_visible_in_snapshot(x.xid, p_until) and h.seq > p_first_seq
$$;

-- findings_between is steps_between for findings. A finding that has a position is left out: its transaction id may be
-- another server's. The planner inlines it.
-- Returns: findings, in no order
create function pawl_private.findings_between(p_from pg_snapshot, p_until pg_snapshot) returns setof pawl.finding
language sql stable
as $$
  select n.*
  from (
    select f.*
    from pawl.finding f
    where f.xid >= pg_snapshot_xmax(p_from) and f.xid < pg_snapshot_xmax(p_until) and pg_visible_in_snapshot(f.xid, p_until)
    union all
    select f.*
    from pg_snapshot_xip(p_from) as x (xid)
    cross join lateral (select f.* from pawl.finding f where f.xid = x.xid offset 0) f
    where pg_visible_in_snapshot(x.xid, p_until)
  ) n
  where not exists (select from pawl.log l where l.tenant_id = n.tenant_id and l.finding_id = n.id offset 0)
$$;

-- audit_between is steps_between for the audit. A row that has a position is left out: its transaction id may be another
-- server's. The planner inlines it.
-- Returns: rows of the audit, in no order
create function pawl_private.audit_between(p_from pg_snapshot, p_until pg_snapshot) returns setof pawl.audit
language sql stable
as $$
  select n.*
  from (
    select a.*
    from pawl.audit a
    where a.xid >= pg_snapshot_xmax(p_from) and a.xid < pg_snapshot_xmax(p_until) and pg_visible_in_snapshot(a.xid, p_until)
    union all
    select a.*
    from pg_snapshot_xip(p_from) as x (xid)
    cross join lateral (select a.* from pawl.audit a where a.xid = x.xid offset 0) a
    where pg_visible_in_snapshot(x.xid, p_until)
  ) n
  where not exists (select from pawl.audit_log l where l.tenant_id = n.tenant_id and l.seq = n.seq offset 0)
$$;

-- step_at reads a step by its full key, to which the limit binds it: see module instance. The planner inlines it. Where
-- the row is passed on as a whole, as to message_of, it would be put together column by column, so that its readers do
-- not use this function.
-- Returns: one row, or none if the instance was purged
create function pawl_private.step_at(p_tenant pawl.tenant_id, p_instance uuid, p_version bigint) returns setof pawl.history
language sql stable
as $$
  select h.* from pawl.history h where h.tenant_id = p_tenant and h.instance_id = p_instance and h.version = p_version limit 1
$$;

-- step_follows says whether a step was committed after p_since was taken. p_later_seq: steps with larger ones are
-- of a later server, whose transaction ids p_since does not know; null if there is none.
create function pawl_private.step_follows(p_xid xid8, p_seq bigint, p_since pg_snapshot, p_later_seq bigint)
returns boolean
language sql immutable parallel safe
as $$
  select coalesce(p_seq > p_later_seq, false) or not pg_visible_in_snapshot(p_xid, p_since)
$$;

-- step_is_seen says whether a step has a position, if p_snapshot is that of a tick and p_first_seq the one of
-- log_head.
create function pawl_private.step_is_seen(p_xid xid8, p_seq bigint, p_snapshot pg_snapshot, p_first_seq bigint) returns boolean
language sql immutable parallel safe
as $$ select p_seq <= p_first_seq or pg_visible_in_snapshot(p_xid, p_snapshot) $$;

-- any_epoch_of is the epoch in which a step got its position, or will: the last one at whose beginning it had none.
create function pawl_private.any_epoch_of(p_xid xid8, p_seq bigint) returns bigint
language sql stable
as $$
  select coalesce(max(e.epoch), 1)
  from pawl.log_epoch e
  where e.first_seq = (select max(f.first_seq) from pawl.log_epoch f where f.first_seq < p_seq)
    and coalesce(not pg_visible_in_snapshot(p_xid, e.snapshot), true)
$$;

-- epoch_of is any_epoch_of. For steps of the present epoch it looks at the head alone, and the planner inlines it.
create function pawl_private.epoch_of(p_xid xid8, p_seq bigint, p_head pawl.log_head) returns bigint
language sql stable
as $$
  select case
    when p_seq > p_head.first_seq and coalesce(not pg_visible_in_snapshot(p_xid, p_head.epoch_snapshot), true) then p_head.epoch
    else pawl_private.any_epoch_of(p_xid, p_seq)
  end
$$;

-- message_of makes the message of a step. It looks rows up by their full keys. The planner inlines it.
-- Returns: one row
create function pawl_private.message_of(p_step pawl.history, p_position bigint, p_head pawl.log_head) returns setof pawl.message
language sql stable
as $$
  select
    (p_step).*, pawl_private.epoch_of((p_step).xid, (p_step).seq, p_head), p_position, i.business_key, i.correlation_id, i.created_at,
    s.events
  from (select) one
  left join lateral (
    select i.*
    from pawl.instance i
    where i.tenant_id = (p_step).tenant_id and i.id = (p_step).instance_id
    limit 1
  ) i on true
  left join lateral (
    select s.events
    from pawl.workflow_state s
    where s.workflow = (p_step).workflow
      and s.workflow_version = (p_step).workflow_version
      and s.state = (p_step).to_state
    limit 1
  ) s on true
$$;

-- epoch_at is the epoch in which a position was given; the present one for null.
create function pawl_private.epoch_at(p_position bigint) returns bigint
language sql stable
as $$ select coalesce(max(e.epoch), 1) from pawl.log_epoch e where p_position is null or e.first_position < p_position $$;

-- finding_message_of makes the message of a finding. The planner inlines it.
-- p_position: null for none, which the message has as 0
-- Returns: one row
create function pawl_private.finding_message_of(p_finding pawl.finding, p_position bigint) returns setof pawl.finding_message
language sql stable
as $$
  select
    (p_finding).tenant_id, (p_finding).id, (p_finding).kind, (p_finding).instance_id, (p_finding).workflow, (p_finding).state,
    (p_finding).visit_version, (p_finding).since, (p_finding).opened_at, (p_finding).closed_at, (p_finding).detail,
    pawl_private.epoch_at(p_position), coalesce(p_position, 0)
$$;

-- logged_at is when the step of a row of the log was made, or its finding opened; null if it is gone.
create function pawl_private.logged_at(p_row pawl.log) returns timestamptz
language plpgsql stable
as $$
begin
  if p_row.finding_id is not null then
    return (select f.opened_at from pawl.finding f where f.tenant_id = p_row.tenant_id and f.id = p_row.finding_id);
  end if;
  return (
    select h.at
    from pawl.history h
    where h.tenant_id = p_row.tenant_id and h.instance_id = p_row.instance_id and h.version = p_row.version
  );
end
$$;

-- log_until is the last position of a page of the log after p_after that has p_limit rows; null if there is none.
create function pawl_private.log_until(p_after bigint, p_limit integer) returns bigint
language sql stable
as $$
  select max(l.position) from (select l.position from pawl.log l where l.position > p_after order by l.position limit p_limit) l
$$;

-- audit_until is log_until for the audit.
create function pawl_private.audit_until(p_after bigint, p_limit integer) returns bigint
language sql stable
as $$
  select max(l.position) from (select l.position from pawl.audit_log l where l.position > p_after order by l.position limit p_limit) l
$$;

-- commit_durably makes the commit of this transaction durable before anybody sees what it wrote, also where the
-- session would not wait.
create function pawl_private.commit_durably() returns void
language plpgsql volatile
as $$
begin
  if current_setting('synchronous_commit') in ('off', 'local') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end
$$;

-- server_of_log identifies the server, the database and the timeline.
create function pawl_private.server_of_log(
  out system_identifier bigint, out database_id oid, out table_id oid, out timeline bigint
)
language sql volatile
as $$
  select c.system_identifier, d.oid, 'pawl.log_epoch'::regclass::oid,
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint
  from pg_control_system() c
  cross join pg_database d
  where d.datname = current_database()
$$;

-- server_is_of_log says whether this server, which must be no standby, is that of an epoch.
create function pawl_private.server_is_of_log(p_epoch bigint) returns boolean
language plpgsql volatile
as $$
begin
  return not pg_is_in_recovery() and exists (
    select
    from pawl_private.server_of_log() s
    join pawl.log_epoch e
      on (e.system_identifier, e.database_id, e.table_id, e.timeline) = (s.system_identifier, s.database_id, s.table_id, s.timeline)
    where e.epoch = p_epoch
  );
end
$$;

-- consumer_keep_lead renews a lease if more than a third of it has passed.
-- Returns: whether the leader still leads in p_term
-- Locks:   consumer
-- Writes:  consumer
create function pawl_private.consumer_keep_lead(p_consumer text, p_leader text, p_term bigint, p_lease interval) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (
    select from pawl.consumer c
    where c.name = p_consumer and c.leader = p_leader and c.term = p_term and c.lease_until > pawl.now() + p_lease * 2 / 3
  ) then
    return true;
  end if;
  return pawl.consumer_renew(p_consumer, p_leader, p_term, p_lease);
end
$$;

-- log_retains says whether the last step of an instance has no position yet, or a consumer may not yet have read
-- it. Before the first sequencer and the first consumer, nobody is to be told.
create function pawl_private.log_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
declare
  v_head pawl.log_head;
  v_read bigint := (select min(c.position) from pawl.consumer c where not c.audit);
begin
  select h.* into strict v_head from pawl.log_head h;
  if v_head.epoch = 0 and v_read is null then
    return false;
  elsif v_read < v_head.position then
    select m.snapshot into v_head.snapshot
    from pawl_private.log_mark m
    where m.position <= v_read
    order by m.position desc
    limit 1;
    if not found then
      return true;
    end if;
  end if;
  return exists (
    select
    from (
      select h.xid, h.seq
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_id
      order by h.version desc
      limit 1
    ) h
    where not pawl_private.step_is_seen(h.xid, h.seq, v_head.snapshot, v_head.first_seq)
  );
end
$$;

-- steps_lost says whether steps of a tenant, or of all (*), after p_after have been purged: of p_workflows, or of all
-- workflows if the array is empty or null.
-- p_floor: what was swept up to this position does not count
create function pawl_private.steps_lost(p_tenant text, p_workflows text[], p_after bigint, p_until bigint, p_floor bigint) returns boolean
language sql stable
as $$
  select exists (
    select from pawl_private.log_floor f
    where (p_tenant = '*' or f.tenant_id = p_tenant) and f.position > greatest(p_after, p_floor)
      and (coalesce(cardinality(p_workflows), 0) = 0 or f.workflow = any (p_workflows))
  ) or exists (
    select
    from (select l.* from pawl.log l where l.position > greatest(p_after, p_floor) and l.position <= p_until and (p_tenant = '*' or l.tenant_id = p_tenant)) l
    cross join lateral (
      select p.workflow from pawl_private.purged_instance p where p.tenant_id = l.tenant_id and p.instance_id = l.instance_id limit 1
    ) p
    where coalesce(cardinality(p_workflows), 0) = 0 or p.workflow = any (p_workflows)
  )
$$;
