-- Live reads: which instances moved, for those who wait, and the steps of a tenant, for
-- streams. Both go on from a snapshot, as the outbox does; see 00007_outbox.sql.

-- +goose Up

-- moved says what has moved since p_cursor, from one look that costs as much as there was to
-- see, however many wait.
-- Returns: snapshot: where to go on from; instances and tenants: each once, or null if there
--          were more than p_limit steps, or no p_cursor
-- +goose StatementBegin
create function pawl.moved(
  p_cursor pg_snapshot, p_limit integer, out snapshot pg_snapshot, out instances uuid[], out tenants text[]
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- Statistics know nothing of the newest rows, and a limit ends only a plain index scan early.
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_steps bigint;
begin
  snapshot := pg_current_snapshot();
  if p_cursor is null then
    return;
  end if;
  select count(*), coalesce(array_agg(distinct s.instance_id), '{}'), coalesce(array_agg(distinct s.tenant_id::text), '{}')
  into v_steps, instances, tenants
  from (
    select h.tenant_id, h.instance_id from pawl.steps_since(p_cursor) h limit p_limit + 1
  ) s;
  if v_steps > p_limit then
    instances := null;
    tenants := null;
  end if;
end
$$;
-- +goose StatementEnd

-- steps_lost says whether steps of a tenant that p_cursor does not see have been removed, of
-- p_workflows, or of any if there are none. What reads the steps asks in the same statement:
-- a removal that its snapshot sees has been noted, and of any other it sees the steps.
--
-- A step that p_cursor does not see has an xid that is not below its xmax, or is that of a
-- transaction that was in progress; if that is in progress still, nothing of it can have been
-- removed. While all that were removed have smaller xids, none is lost. The time of a step
-- would not tell: it is of before the commit, by as much as the transaction takes.
--
-- From the beginning, where p_cursor sees nothing at all, nothing is lost: what was removed
-- before it was read is left out, as if that had been before the stream began.
--
-- It may err, by refusing: of what is noted the largest xid may be one that p_cursor sees, when
-- a transaction that it does not see was open for longer than a workflow's final instances are
-- kept.
-- +goose StatementBegin
create function pawl.steps_lost(p_tenant text, p_workflows text[], p_cursor pg_snapshot) returns boolean
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
    select from pawl.removal r
    where r.tenant_id = p_tenant
      and (coalesce(cardinality(p_workflows), 0) = 0 or r.workflow = any (p_workflows))
      and r.xid >= v_unseen
  );
end
$$;
-- +goose StatementEnd

-- can_resume says whether a stream can go on from p_cursor: no more than p_limit steps, of all
-- tenants, were made since (null for any number), none that it would show has been removed, and the database has been
-- there, which it has not if it was restored from an older copy.
-- +goose StatementBegin
create function pawl.can_resume(p_tenant text, p_workflows text[], p_cursor pg_snapshot, p_limit integer) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return pg_snapshot_xmax(p_cursor) <= pg_snapshot_xmax(pg_current_snapshot())
    and not pawl.steps_lost(p_tenant, p_workflows, p_cursor)
    and coalesce((
      select count(*)
      from (select from pawl.steps_since(p_cursor) h limit coalesce(p_limit + 1, 0)) h
    ) <= p_limit, true);
end
$$;
-- +goose StatementEnd

-- stream_steps reads a tenant's steps that p_batch sees and p_cursor does not, from after
-- p_after on. There are no more of them than can_resume allows when p_batch is taken, so that
-- each page may sort them. It ends where its documents have more than p_bytes, but has at
-- least one row.
-- Returns: up to p_limit rows of history, in the order of seq
-- Raises:  PW410 steps that p_cursor does not see have been removed
-- +goose StatementBegin
create function pawl.stream_steps(
  p_tenant text, p_workflows text[], p_cursor pg_snapshot, p_batch pg_snapshot, p_after bigint, p_limit integer,
  p_bytes bigint
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  if pawl.steps_lost(p_tenant, p_workflows, p_cursor) then
    raise exception 'steps that follow have been removed' using errcode = 'PW410';
  end if;
  return query
  select (s.step).*
  from (
    select
      h as step,
      sum(octet_length(h.context::text) + coalesce(octet_length(h.payload::text), 0))
        over (order by h.seq rows between unbounded preceding and 1 preceding) as before
    from (
      select h.*
      from pawl.steps_since(p_cursor) h
      where h.xid < pg_snapshot_xmax(p_batch)
        and pg_visible_in_snapshot(h.xid, p_batch)
        and h.seq > p_after
        and h.tenant_id = p_tenant
      order by h.seq
      limit p_limit
    ) h
  ) s
  where coalesce(s.before, 0) < p_bytes
  order by (s.step).seq;
end
$$;
-- +goose StatementEnd

-- stream_past reads the steps that p_batch sees and p_cursor does not, however many they are:
-- it looks at all of the tenant's, a page at a time, by instance and version, which the primary
-- key has in order. The order of seq would have to be sorted for each page.
-- Returns: rows of history from behind the given step on, of which it looks at p_limit, or as
--          few as p_bytes asks; if the last one that it looked at is not among them, it comes
--          too, without its documents and with a negative seq; no row: there are no more
-- Raises:  PW410 steps that p_cursor does not see have been removed, or the given step
-- +goose StatementBegin
create function pawl.stream_past(
  p_tenant text, p_workflows text[], p_cursor pg_snapshot, p_batch pg_snapshot, p_after_instance uuid,
  p_after_version bigint, p_limit integer, p_bytes bigint
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_step pawl.history;
  v_end pawl.history;
  v_unread boolean;
  v_bytes bigint := 0;
begin
  if pawl.steps_lost(p_tenant, p_workflows, p_cursor)
    or p_after_version > 0 and not exists (
      select from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_after_instance and h.version = p_after_version
    )
  then
    raise exception 'steps that follow have been removed' using errcode = 'PW410';
  end if;
  for v_step in
    select h.*
    from pawl.history h
    where h.tenant_id = p_tenant and (h.instance_id, h.version) > (p_after_instance, p_after_version)
    order by h.instance_id, h.version
    limit p_limit
  loop
    v_unread := pg_visible_in_snapshot(v_step.xid, p_batch) and not pg_visible_in_snapshot(v_step.xid, p_cursor);
    if v_unread then
      return next v_step;
      v_bytes := v_bytes + octet_length(v_step.context::text) + coalesce(octet_length(v_step.payload::text), 0);
      exit when v_bytes >= p_bytes;
    else
      v_end := v_step;
    end if;
  end loop;
  if not v_unread then
    v_end.seq := -v_end.seq;
    v_end.context := '{}';
    v_end.payload := null;
    return next v_end;
  end if;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.moved, pawl.steps_lost, pawl.can_resume, pawl.stream_steps, pawl.stream_past from public;

-- +goose Down
drop function pawl.stream_past, pawl.stream_steps, pawl.can_resume, pawl.steps_lost, pawl.moved;
