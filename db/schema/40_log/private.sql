-- next_low_watermark is a low watermark for cursors that see this transaction. A transaction that gets
-- its xid later than this one draws larger sequence numbers than this: a step draws its seq after its
-- transaction has locked an instance, and so after that transaction has got its xid.
-- Returns: null if this transaction has an xid already: then there is no such bound
create function pawl_private.next_low_watermark() returns bigint
language sql volatile
as $$
  select s.last_value - 1 from pawl.history_seq_seq s where pg_current_xact_id_if_assigned() is null
$$;

-- steps_since reads the steps that p_cursor does not see: those of later transactions, and those of
-- transactions that were in progress at the cursor. The planner inlines it. The caller must set enable_seqscan = off:
-- the steps to read are always the newest rows, of which the statistics know nothing.
-- Returns: rows of history, in no order
create function pawl_private.steps_since(p_cursor pg_snapshot) returns setof pawl.history
language sql stable
as $$
  select h.*
  from pawl.history h
  where h.xid >= pg_snapshot_xmax(p_cursor)
  union all
  -- One by one: a join would read all of history.
  select h.*
  from pg_snapshot_xip(p_cursor) as x (xid)
  cross join lateral (select h.* from pawl.history h where h.xid = x.xid offset 0) h
$$;

-- page_end is the largest seq that a consumer's next page may look at.
create function pawl_private.page_end(p_consumer pawl.consumer) returns bigint
language sql immutable parallel safe
as $$
  select greatest(p_consumer.batch_seq, p_consumer.low_watermark) + 20000
$$;

-- place_after is the seq up to which a batch has been read after a page that was not full: page_end.
-- It is null if the batch ends there. The batch's snapshot must have been taken before the call.
create function pawl_private.place_after(p_consumer pawl.consumer) returns bigint
language sql volatile
as $$
  select pawl_private.page_end(p_consumer)
  from pawl.history_seq_seq s
  where pawl_private.page_end(p_consumer) < coalesce(p_consumer.batch_end, s.last_value)
$$;

-- consumer_steps reads the next page of a consumer's batch: the steps that p_batch sees and the cursor
-- does not, in the order of seq, up to page_end.
-- Returns: up to p_limit rows of history
create function pawl_private.consumer_steps(p_consumer pawl.consumer, p_batch pg_snapshot, p_limit integer) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index on seq, or on xid and seq, in its order.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_read integer := 0;
begin
  if p_consumer.batch_seq < p_consumer.low_watermark then
    return query
    select h.*
    from pg_snapshot_xip(p_consumer.cursor) as x (xid)
    cross join lateral (
      select h.*
      from pawl.history h
      -- Compared as rows: for a single xid the index on seq would have the same order, too.
      where (h.xid, h.seq) > (x.xid, p_consumer.batch_seq) and (h.xid, h.seq) <= (x.xid, p_consumer.low_watermark)
      order by h.xid, h.seq
      limit p_limit
    ) h
    where pg_visible_in_snapshot(x.xid, p_batch)
    order by h.seq
    limit p_limit;
    get diagnostics v_read = row_count;
  end if;
  return query
  select h.*
  from pawl.history h
  where h.seq > greatest(p_consumer.batch_seq, p_consumer.low_watermark) and h.seq <= pawl_private.page_end(p_consumer)
    and not pg_visible_in_snapshot(h.xid, p_consumer.cursor)
    and pg_visible_in_snapshot(h.xid, p_batch)
  order by h.seq
  limit p_limit - v_read;
end
$$;

-- message_of makes the message of a step. It looks rows up by their full keys. The planner inlines it.
-- Returns: one row
create function pawl_private.message_of(p_step pawl.history) returns setof pawl.message
language sql stable
as $$
  select (p_step).*, i.business_key, i.correlation_id, i.created_at, s.events
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

-- consumer_keep_lead renews a lease if more than a third of it has passed.
-- Returns: whether p_term still leads
-- Locks:   consumer
-- Writes:  consumer
create function pawl_private.consumer_keep_lead(p_consumer text, p_term bigint, p_lease interval) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (
    select from pawl.consumer c
    where c.name = p_consumer and c.term = p_term and c.lease_until > pawl.now() + p_lease * 2 / 3
  ) then
    return true;
  end if;
  return pawl.consumer_renew(p_consumer, p_term, p_lease);
end
$$;

-- steps_lost says whether steps that p_cursor does not see have been purged: a tenant's steps, of
-- p_workflows, or of all workflows if the array is empty or null. A reader of steps must ask in the
-- same statement. Then its snapshot sees either the note of a purge or the purged steps themselves.
--
-- A step that p_cursor does not see has either an xid at or above the cursor's xmax, or the xid of a
-- transaction that was in progress at the cursor. If that transaction is still in progress, none of its
-- steps can have been purged. So no step is lost while all purged steps have smaller xids than these.
-- A step's time could not tell: it is read before the commit, which may be much later.
--
-- A cursor that sees nothing at all is the beginning of history, and has lost nothing: a stream from the
-- beginning shows the steps that are kept.
--
-- The answer may be true although no step is lost: if a transaction that p_cursor does not see stayed open
-- for longer than a workflow's retention.
create function pawl_private.steps_lost(p_tenant text, p_workflows text[], p_cursor pg_snapshot) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_unseen xid8 := coalesce((
    select min(x.xid)
    from pg_snapshot_xip(p_cursor) as x (xid)
    where pg_visible_in_snapshot(x.xid, pg_current_snapshot())
  ), pg_snapshot_xmax(p_cursor));
begin
  return pg_snapshot_xmax(p_cursor) > '1' and exists (
    select from pawl_private.purged_history r
    where r.tenant_id = p_tenant
      and (coalesce(cardinality(p_workflows), 0) = 0 or r.workflow = any (p_workflows))
      and r.xid >= v_unseen
  );
end
$$;

-- log_retains says whether a consumer has not yet read the last step of an instance. A cursor that sees
-- the last step sees all steps of the instance.
create function pawl_private.log_retains(p_tenant text, p_id uuid) returns boolean
language sql stable
as $$
  select exists (
    select from pawl.consumer c
    where not pg_visible_in_snapshot(
      (
        select h.xid
        from pawl.history h
        where h.tenant_id = p_tenant and h.instance_id = p_id
        order by h.version desc
        limit 1
      ),
      c.cursor)
  )
$$;

-- note_purged_history notes, for streams, that steps of a tenant's workflows have been purged.
-- p_workflows, p_xids: pairs of a workflow and the largest xid of the steps.
-- Locks:   purged_history (rows that are not locked)
-- Writes:  purged_history
create function pawl_private.note_purged_history(p_tenant text, p_workflows text[], p_xids xid8[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xid xid8 := pg_current_xact_id();
begin
  insert into pawl_private.purged_history as r (tenant_id, workflow, purged_by, xid)
  select p_tenant, g.workflow, v_xid, max(g.xid)
  from unnest(p_workflows, p_xids) as g (workflow, xid)
  where g.xid is not null -- An instance without history leaves nothing to lose.
  group by g.workflow
  on conflict on constraint purged_history_pkey do update set xid = excluded.xid where r.xid < excluded.xid;
  delete from pawl_private.purged_history r
  where r.ctid = any (array(
    select o.ctid
    from pawl_private.purged_history n
    join pawl_private.purged_history o
      on o.tenant_id = n.tenant_id and o.workflow = n.workflow and o.xid <= n.xid and o.purged_by <> n.purged_by
    where n.tenant_id = p_tenant and n.workflow = any (p_workflows) and n.purged_by = v_xid
    for update of o skip locked
  ));
end
$$;
