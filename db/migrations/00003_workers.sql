-- What the workers call: the parts of the service that run in the background, on any
-- number of replicas at once. They keep the engine's lock order, take few rows at a time,
-- and never wait for a command: what a command holds is passed over and comes later.

-- +goose Up

-- purge_keys deletes idempotency keys whose time to live has passed, the oldest first, and
-- no more than p_limit of them. Keys that somebody holds are passed over. Nothing else is
-- deleted: whatever a key replays outlives it.
--
-- The settings leave the planner one way, whatever it knows of the table: by the index on
-- expires_at in its order, and then by the places of the rows that were locked.
-- Returns: how many were deleted; fewer than p_limit if no more have expired, or others
--          hold them
-- Locks:   idempotency_key (for update, skipping what is locked)
-- Writes:  idempotency_key
-- +goose StatementBegin
create function pawl.purge_keys(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_purged integer;
begin
  delete from pawl.idempotency_key k
  where k.ctid = any (array(
    select e.ctid
    from pawl.idempotency_key e
    where e.expires_at <= v_now
    order by e.expires_at
    -- No limit would be no limit.
    limit greatest(coalesce(p_limit, 0), 0)
    for update skip locked
  ));
  get diagnostics v_purged = row_count;
  return v_purged;
end
$$;
-- +goose StatementEnd

-- final_instances reads the next page of a pass over the final instances, in the order of
-- instance_workflow_idx: up to p_limit of one tenant, workflow and status. The place where a
-- pass stands goes in and comes out; it begins, and has ended, at ''.
--
-- Nothing is final before it was created, so that only ids as old as that are looked at. What
-- was created early and ended late is looked at by each pass, and left out.
-- p_age: for how long to have been final; null for the retention of the latest version of the
-- workflow, without which it is passed by. p_tenant, p_workflows: only these; null for all.
-- Returns: ids: those old enough, none where a call has passed by others only;
--          before: what they are not younger than
-- +goose StatementBegin
create function pawl.final_instances(
  p_limit integer, p_age interval, p_tenant text, p_workflows text[],
  inout at_tenant text, inout at_workflow text, inout at_status text, inout at_id uuid,
  out ids uuid[], out before timestamptz
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- There is one way to read a page, as in migrate_instances.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_limit integer := greatest(p_limit, 1);
  v_next record;
  v_row record;
  v_read boolean;
  v_steps bigint := 0;
begin
  ids := '{}';
  at_tenant := coalesce(nullif(at_tenant, ''), p_tenant, '');
  if p_age is null and not exists (select from pawl.workflow w where w.retention is not null) then
    at_tenant := '';
    return;
  end if;
  -- Tenants and workflows without anything to read are passed one by one: some in each call.
  for v_try in 1 .. 100 loop
    select i.tenant_id, i.workflow, i.status
    into v_next
    from pawl.instance i
    where (i.tenant_id, i.workflow, i.status, i.id) > (at_tenant, at_workflow, at_status, at_id)
      and i.workflow <> '' -- The condition of the index.
    order by i.tenant_id, i.workflow, i.status, i.id
    limit 1;
    if not found or v_next.tenant_id <> p_tenant then
      at_tenant := ''; at_workflow := ''; at_status := ''; at_id := '00000000-0000-0000-0000-000000000000';
      return;
    end if;
    if (v_next.tenant_id, v_next.workflow, v_next.status) <> (at_tenant, at_workflow, at_status) then
      at_tenant := v_next.tenant_id;
      at_workflow := v_next.workflow;
      at_status := v_next.status;
      at_id := '00000000-0000-0000-0000-000000000000';
    end if;
    before := v_now - coalesce(p_age, (
      select w.retention from pawl.workflow w where w.name = at_workflow order by w.version desc limit 1));
    v_read := false;
    if at_status <> 'active' and before is not null and coalesce(at_workflow = any (p_workflows), true) then
      for v_row in
        select i.id, i.version, i.state_changed_at
        from pawl.instance i
        -- As rows, since by its columns one by one the primary key would seem as good.
        where (i.tenant_id, i.workflow, i.status, i.id) > (at_tenant, at_workflow, at_status, at_id)
          and (i.tenant_id, i.workflow, i.status, i.id) <
            (at_tenant, at_workflow, at_status, pawl.uuid_v7_floor(before + interval '1 millisecond'))
          and i.workflow <> ''
        order by i.tenant_id, i.workflow, i.status, i.id
        limit v_limit
      loop
        v_read := true;
        if v_row.state_changed_at <= before then
          v_steps := v_steps + v_row.version;
          -- A long history is a page of its own, or removing one would take long.
          exit when ids <> '{}' and v_steps > 20 * v_limit;
          ids := ids || v_row.id;
        end if;
        at_id := v_row.id;
      end loop;
    end if;
    if v_read then
      return;
    end if;
    at_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  end loop;
end
$$;
-- +goose StatementEnd

-- removal is what is left of the steps that were removed of a tenant's workflow: the largest
-- xid of them. A stream whose place saw all up to it has lost none; see 00008_live.sql. Each
-- transaction that removes has a row of its own, so that none waits for another, and takes
-- away those that its own makes superfluous.
create table pawl.removal (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  removed_by xid8 not null,
  xid xid8 not null,
  constraint removal_pkey primary key (tenant_id, workflow, removed_by)
);

-- remove_instances removes instances that are final since p_before or longer, each with its
-- history and the keys that it replayed, all or nothing. Those that somebody holds stay, and
-- so do those that a key still names, those whose last step a consumer of the outbox has not
-- relayed, and those of which a subscription that is not disabled, or a callback, is to be told.
--
-- Which keys name an instance is looked up under its lock, and in a statement of its own: a
-- command writes a key under that lock, and may have had it just before. Each key is then
-- locked, since a replay that extends its life locks the key alone. What happens to a command
-- that comes too late:
--   * A fire waits for the instance, and does not find it.
--   * A replay reads key, history and instance in one statement, and so all or none of them.
--     Without them it raises 40001, as for a key that was purged; the next try is a new command.
-- Under read committed only, as all of the engine.
-- Returns: the ids of those that were removed
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for
--          update, those that are not locked), removal (those that are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, removal
-- +goose StatementBegin
create function pawl.remove_instances(p_tenant text, p_ids uuid[], p_before timestamptz) returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz;
  v_ids uuid[];
  v_id uuid;
  v_key record;
  v_removed uuid[] := '{}';
  v_workflows text[] := '{}';
  v_xids xid8[] := '{}';
  v_xid xid8;
begin
  v_ids := array(
    select i.id
    from (select distinct u.id from unnest(p_ids) as u (id) order by u.id) c
    cross join lateral (
      select i.id
      from pawl.instance i
      where i.tenant_id = p_tenant and i.id = c.id and i.status <> 'active' and i.state_changed_at <= p_before
      limit 1
      for update skip locked
    ) i
  );
  v_now := pawl.now();

  -- One by one, to be bound to the full key.
  foreach v_id in array v_ids loop
    select array_agg(l.place) as places, coalesce(bool_and(l.place is not null), true) as expired
    into v_key
    from (
      select h.key
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = v_id and h.key is not null
      union
      select r.key
      from pawl.idempotency_key r
      where r.tenant_id = p_tenant and r.instance_id = v_id and r.outcome <> 'applied'
    ) n
    cross join lateral (
      select k.instance_id
      from pawl.idempotency_key k
      where k.tenant_id = p_tenant and k.key = n.key
      limit 1
    ) k
    left join lateral (
      select k.ctid as place
      from pawl.idempotency_key k
      where k.tenant_id = p_tenant and k.key = n.key and k.instance_id = v_id and k.expires_at <= v_now
      limit 1
      for update skip locked
    ) l on true
    where k.instance_id = v_id; -- Another may have taken the key since it expired.
    continue when not v_key.expired;
    -- Whoever sees the last step sees all.
    continue when exists (
      select from pawl.consumer c
      where not pg_visible_in_snapshot(
        (
          select h.xid
          from pawl.history h
          where h.tenant_id = p_tenant and h.instance_id = v_id
          order by h.version desc
          limit 1
        ),
        c.cursor)
    );
    continue when exists (
      select
      from (
        -- Without the status, which an index on what is pending has.
        select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.instance_id = v_id offset 0
      ) d
      where d.status = 'pending'
        and not exists (
          select from pawl.subscription s
          where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
        )
    );

    delete from pawl.idempotency_key k where k.ctid = any (v_key.places);
    delete from pawl.timer t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.callback b where b.tenant_id = p_tenant and b.instance_id = v_id;
    with gone as (
      delete from pawl.history h where h.tenant_id = p_tenant and h.instance_id = v_id returning h.workflow, h.xid
    )
    select v_workflows || min(g.workflow), v_xids || max(g.xid) into v_workflows, v_xids from gone g;
    delete from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id;
    v_removed := v_removed || v_id;
  end loop;

  if v_removed = '{}' then
    return v_removed;
  end if;
  v_xid := pg_current_xact_id();
  insert into pawl.removal as r (tenant_id, workflow, removed_by, xid)
  select p_tenant, g.workflow, v_xid, max(g.xid)
  from unnest(v_workflows, v_xids) as g (workflow, xid)
  where g.xid is not null -- Of an instance without history there is nothing to lose.
  group by g.workflow
  on conflict on constraint removal_pkey do update set xid = excluded.xid where r.xid < excluded.xid;
  delete from pawl.removal r
  where r.ctid = any (array(
    select o.ctid
    from pawl.removal n
    join pawl.removal o on o.tenant_id = n.tenant_id and o.workflow = n.workflow and o.xid <= n.xid and o.removed_by <> n.removed_by
    where n.tenant_id = p_tenant and n.workflow = any (v_workflows) and n.removed_by = v_xid
    for update of o skip locked
  ));
  return v_removed;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.purge_keys, pawl.final_instances, pawl.remove_instances from public;

-- +goose Down
drop function pawl.remove_instances, pawl.final_instances, pawl.purge_keys;
drop table pawl.removal;
