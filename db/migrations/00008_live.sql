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

-- stream_steps reads a tenant's steps that p_batch sees and p_cursor does not, from after
-- p_after on. There are no more of them than can_resume allows, so that each page may sort
-- them. It ends where its documents have more than p_bytes, but has at least one row.
-- Returns: up to p_limit rows of history, in the order of seq
-- +goose StatementBegin
create function pawl.stream_steps(
  p_tenant text, p_cursor pg_snapshot, p_batch pg_snapshot, p_after bigint, p_limit integer, p_bytes bigint
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
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

-- stream_past reads the steps that p_batch sees, from the beginning. They come by instance
-- and version, which the primary key has in order however many there are: the order of seq
-- would have to be sorted for each page.
-- Returns: up to p_limit rows of history from behind the given step on, as few as p_bytes asks
-- +goose StatementBegin
create function pawl.stream_past(
  p_tenant text, p_batch pg_snapshot, p_after_instance uuid, p_after_version bigint, p_limit integer, p_bytes bigint
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
  return query
  select (s.step).*
  from (
    select
      h as step,
      sum(octet_length(h.context::text) + coalesce(octet_length(h.payload::text), 0))
        over (order by h.instance_id, h.version rows between unbounded preceding and 1 preceding) as before
    from (
      select h.*
      from pawl.history h
      where h.tenant_id = p_tenant
        and (h.instance_id, h.version) > (p_after_instance, p_after_version)
        and pg_visible_in_snapshot(h.xid, p_batch)
      order by h.instance_id, h.version
      limit p_limit
    ) h
  ) s
  where coalesce(s.before, 0) < p_bytes;
end
$$;
-- +goose StatementEnd

-- can_resume says whether a stream can go on from p_cursor, taken at p_at: no more than
-- p_limit steps were made since, none of them can have been removed by a retention, and the
-- database has been there, which it has not if it was restored from an older copy.
-- +goose StatementBegin
create function pawl.can_resume(p_cursor pg_snapshot, p_at timestamptz, p_limit integer) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return pg_snapshot_xmax(p_cursor) <= pg_snapshot_xmax(pg_current_snapshot())
    and not exists (select from pawl.workflow w where p_at + w.retention < pawl.now())
    and (
      select count(*)
      from (select from pawl.history h where h.xid >= pg_snapshot_xmax(p_cursor) limit p_limit + 1) h
    ) <= p_limit;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.moved, pawl.stream_steps, pawl.stream_past, pawl.can_resume from public;

-- +goose Down
drop function pawl.can_resume, pawl.stream_past, pawl.stream_steps, pawl.moved;
