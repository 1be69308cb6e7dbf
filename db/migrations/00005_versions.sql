-- Versions: retiring one that nobody uses, and moving live instances from one to another.
-- Both are rare, and are carried out while commands come in: what must wait waits
-- briefly, and tries again.
--
-- Lock order: workflow, workflow_migration, then the engine's: instance, history, timer.

-- +goose Up

-- workflow_migration holds the latest run in each direction between two versions. At most
-- one direction of a tenant's workflow is under way, so that two can not undo each other's
-- work for ever. That instances were moved from a version is never forgotten: their history
-- names it.
create table pawl.workflow_migration (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  from_version integer not null,
  to_version integer not null,
  started_at timestamptz not null,
  batch_at timestamptz not null,
  finished_at timestamptz,
  moved bigint not null,
  actor text not null,
  constraint workflow_migration_pkey primary key (tenant_id, workflow, from_version, to_version),
  constraint workflow_migration_leads_elsewhere check (from_version <> to_version),
  constraint workflow_migration_moved_is_not_negative check (moved >= 0)
);

comment on column pawl.workflow_migration.batch_at is 'of the latest batch: a run without one for a minute is given up';
comment on column pawl.workflow_migration.finished_at is 'when the latest run came to its end';
comment on column pawl.workflow_migration.moved is 'how many instances all runs have moved';

create unique index workflow_migration_under_way_key on pawl.workflow_migration (tenant_id, workflow)
  where finished_at is null;

-- count_instances says how many instances a version of a workflow has, finished ones too.
-- It reads those of the workflow, tenant by tenant, not the whole table.
-- +goose StatementBegin
create function pawl.count_instances(p_workflow text, p_version integer) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  with recursive tenant as (
    (select i.tenant_id from pawl.instance i where i.workflow <> '' order by i.tenant_id limit 1)
    union all
    select n.tenant_id
    from tenant t
    cross join lateral (
      select i.tenant_id
      from pawl.instance i
      where i.tenant_id > t.tenant_id and i.workflow <> ''
      order by i.tenant_id
      limit 1
    ) n
  )
  select coalesce(sum(c.instances), 0)::bigint
  from tenant t
  cross join lateral (
    select count(*) as instances
    from pawl.instance i
    where i.tenant_id = t.tenant_id
      and i.workflow = p_workflow
      and i.workflow <> '' -- The condition of the index.
      and i.workflow_version = p_version
  ) c
$$;
-- +goose StatementEnd

-- retire_workflow removes a version of a workflow that no instance uses, finished or not,
-- and makes the CHECK on pawl.instance anew from those that are left. It counts twice: a
-- version in use is refused before anybody waits; what was created or moved meanwhile is
-- seen under the lock, where nothing can be.
--
-- If it was the latest, the one before it is the latest again. Its number is then given
-- again, unless instances were migrated away from it: their history names it, and a number
-- in history must not come to mean something else. A workflow without versions does not
-- exist, and its name is free.
--
-- A create in a transaction of the caller's own that is repeatable read, and began before
-- the last version was retired, is not seen: the engine wants read committed.
-- p_checksum: as the workflow's; the latest version with it is meant, unless p_version says.
-- Returns: whether there was such a version
-- Raises:  PW409 workflow-conflict if instances use it; 55P03 if the instance table, or a
--          migration of the version, stays busy for 300 ms: try again
-- Locks:   workflow (share row exclusive, and the row), then instance (access exclusive,
--          while the workflow's instances are counted)
-- Writes:  workflow, workflow_state, workflow_transition, workflow_migration, the table's CHECK
-- +goose StatementBegin
create function pawl.retire_workflow(p_name text, p_checksum text, p_version integer default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_version integer;
  v_instances bigint;
begin
  lock table pawl.workflow in share row exclusive mode;
  select w.version
  into v_version
  from pawl.workflow w
  where w.name = p_name and w.checksum = p_checksum and (p_version is null or w.version = p_version)
  order by w.version desc
  limit 1
  for update;
  if not found then
    return false;
  end if;

  v_instances := pawl.count_instances(p_name, v_version);
  if v_instances = 0 then
    -- At once in the mode that the CHECK needs: commands hold weaker ones that no other
    -- could be raised past.
    lock table pawl.instance in access exclusive mode;
    v_instances := pawl.count_instances(p_name, v_version);
  end if;
  if v_instances > 0 then
    raise exception 'workflow %: version % is used by % instances', p_name, v_version, v_instances
      using errcode = 'PW409',
        detail = jsonb_build_object(
          'code', 'workflow-conflict', 'version', v_version, 'instances', v_instances)::text;
  end if;

  delete from pawl.workflow_transition t where t.workflow = p_name and t.workflow_version = v_version;
  delete from pawl.workflow_state s where s.workflow = p_name and s.workflow_version = v_version;
  delete from pawl.workflow w where w.name = p_name and w.version = v_version;
  -- Nothing is left to move, or nowhere to.
  update pawl.workflow_migration m
  set finished_at = pawl.now()
  where m.workflow = p_name and v_version in (m.from_version, m.to_version) and m.finished_at is null;
  perform pawl.set_state_check(p_name);
  return true;
end
$$;
-- +goose StatementEnd

-- migration_faults says what is wrong with a migration that was asked for, all at once.
-- Returns: a JSON array of {pointer, detail}, or null if nothing is
-- +goose StatementBegin
create function pawl.migration_faults(
  p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_states text[]
) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_agg(jsonb_build_object('pointer', f.pointer, 'detail', f.detail) order by f.pointer collate "C", f.detail)
  from (
    select '/to' as pointer, 'is the version that the instances have' as detail
    where p_from = p_to
    union all
    select '/state_map', 'must be an object'
    where jsonb_typeof(p_state_map) <> 'object'
    union all
    select '/state_map/' || replace(replace(m.key, '~', '~0'), '/', '~1'), d.detail
    from jsonb_each(case when jsonb_typeof(p_state_map) = 'object' then p_state_map end) m
    cross join lateral (
      select format('version %s has no state %s', p_from, m.key) as detail
      where not exists (
        select from pawl.workflow_state s
        where s.workflow = p_workflow and s.workflow_version = p_from and s.state = m.key)
      union all
      select 'must be the name of a state'
      where jsonb_typeof(m.value) <> 'string'
      union all
      select case
        when s.status is null then format('version %s has no state %s', p_to, m.value #>> '{}')
        else format('%s is final in version %s: only an event may end an instance', m.value #>> '{}', p_to)
      end
      from (select where jsonb_typeof(m.value) = 'string') t
      left join pawl.workflow_state s
        on s.workflow = p_workflow and s.workflow_version = p_to and s.state = m.value #>> '{}'
      where s.status is distinct from 'active'
    ) d
    union all
    select '/states/' || n.position - 1, format('version %s has no state %s', p_from, n.state)
    from unnest(p_states) with ordinality as n (state, position)
    where not exists (
      select from pawl.workflow_state s
      where s.workflow = p_workflow and s.workflow_version = p_from and s.state = n.state)
  ) f
$$;
-- +goose StatementEnd

-- migrate_instances moves the next p_limit active instances of a version, in the order of
-- their ids, to another version of their workflow: a batch, which the caller repeats with
-- the last id for p_after until it gets fewer rows. What is moved is no longer of the
-- version, so that a migration that was broken off is simply begun again.
--
-- An instance's state becomes what p_state_map has for it, else the state of the same name.
--   * A state that keeps its name was entered when it was: state_changed_at stays, and the
--     new version's timeouts count from there. One that may be due at once is.
--   * A state that the map names is entered now, even if it is the same.
--   * expires_at goes if the new version has no ttl, and is that ttl from now if there was
--     none. Else it stays; where the new version's ttl slides, the lifetime is counted
--     from the step that state_changed_at tells, as long as it was if it slid before.
--   * The context stays as it is; nobody checks it against the new version's schema, and
--     nothing is assigned for states that are left or entered.
--   * Eventless transitions of the state it is in then are taken, as after every step.
-- An instance that a command holds is passed by, and so is one whose state does not fit.
-- No instance is mapped to a final state: an event ends it, or an eventless transition.
-- p_states, p_ids: only instances in these states, with these ids; null for all.
-- p_dry_run: write and lock nothing; the caller's transaction may be read-only.
-- Returns: one row per instance that was looked at, by id: outcome is 'migrated' or
--          'would-migrate'; 'state-unknown' or 'state-final' if to_state does not fit, or
--          'unsettled' if its eventless transitions come to no rest; 'busy' if somebody holds it; 'gone' if it ended or was moved meanwhile
-- Raises:  PW404 workflow-not-found, PW409 workflow-conflict if another migration of the
--          workflow is under way, PW422 with all faults of the request
-- Locks:   workflow (for key share, both versions), an advisory lock by tenant and
--          workflow, instance (for no key update, by id, those that are not locked)
-- Writes:  workflow_migration, instance, history, timer
-- +goose StatementBegin
create function pawl.migrate_instances(
  p_tenant text, p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_after uuid, p_limit integer,
  p_actor text default session_user, p_dry_run boolean default false, p_states text[] default null,
  p_ids uuid[] default null, p_reason text default null, p_correlation_id text default null,
  p_traceparent text default null
) returns table (id uuid, from_state text, to_state text, outcome text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- There is one way to read a page, whatever is known of the table: by the index, in its
-- order. What is planned for the lack of another way looks dear, and would be compiled.
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_map jsonb := coalesce(p_state_map, '{}');
  v_after uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  v_limit integer := greatest(p_limit, 1);
  v_now timestamptz;
  v_version integer;
  v_faults jsonb;
  v_other pawl.workflow_migration;
  v_ids uuid[];
  v_id uuid;
  v_old pawl.instance;
  v_new pawl.instance;
  v_target record;
  v_settlement pawl.settlement;
  v_setting pawl.setting;
  v_moved bigint := 0;
begin
  select * into strict v_setting from pawl.setting;
  foreach v_version in array array[p_from, p_to] loop
    if p_dry_run then
      perform from pawl.workflow w where w.name = p_workflow and w.version = v_version;
    else
      -- Not to be retired meanwhile.
      perform from pawl.workflow w where w.name = p_workflow and w.version = v_version for key share;
    end if;
    if not found then
      raise exception 'workflow % has no version %', p_workflow, v_version
        using errcode = 'PW404', detail = jsonb_build_object('code', 'workflow-not-found')::text;
    end if;
  end loop;
  v_faults := pawl.migration_faults(p_workflow, p_from, p_to, v_map, p_states);
  if v_faults is not null then
    raise exception 'the migration does not fit the versions'
      using errcode = 'PW422', detail = jsonb_build_object('code', 'malformed-request', 'errors', v_faults)::text;
  end if;

  if not p_dry_run then
    perform pg_advisory_xact_lock(hashtextextended(format('pawl.migrate %s %s', p_tenant, p_workflow), 0));
    v_now := pawl.now();
    update pawl.workflow_migration m
    set finished_at = v_now
    where m.tenant_id = p_tenant and m.workflow = p_workflow and m.finished_at is null
      and (m.from_version, m.to_version) <> (p_from, p_to)
      and m.batch_at <= v_now - interval '1 minute';
    select m.*
    into v_other
    from pawl.workflow_migration m
    where m.tenant_id = p_tenant and m.workflow = p_workflow and m.finished_at is null
      and (m.from_version, m.to_version) <> (p_from, p_to);
    if found then
      raise exception 'workflow %: a migration from version % to % is under way', p_workflow, v_other.from_version,
        v_other.to_version
        using errcode = 'PW409', detail = jsonb_build_object('code', 'workflow-conflict')::text;
    end if;
    insert into pawl.workflow_migration as m (
      tenant_id, workflow, from_version, to_version, started_at, batch_at, moved, actor)
    values (p_tenant, p_workflow, p_from, p_to, v_now, v_now, 0, p_actor)
    on conflict on constraint workflow_migration_pkey do update
    set started_at = case when m.finished_at is null then m.started_at else excluded.started_at end,
      actor = case when m.finished_at is null then m.actor else excluded.actor end,
      batch_at = excluded.batch_at,
      finished_at = null;
  end if;

  if p_ids is null then
    v_ids := array(
      select i.id
      from pawl.instance i
      where i.tenant_id = p_tenant
        and i.workflow = p_workflow
        and i.workflow <> '' -- The condition of the index.
        and i.status = 'active'
        and i.id > v_after
        and i.workflow_version = p_from
        and (p_states is null or i.state = any (p_states))
      order by i.id
      limit v_limit);
  else
    v_ids := array(
      select c.id
      from (select distinct u.id from unnest(p_ids) as u (id) where u.id > v_after order by u.id) c
      cross join lateral (
        select true as found
        from pawl.instance i
        where i.tenant_id = p_tenant and i.id = c.id
          and i.workflow = p_workflow
          and i.status = 'active'
          and i.workflow_version = p_from
          and (p_states is null or i.state = any (p_states))
        limit 1
      ) i
      order by c.id
      limit v_limit);
  end if;

  foreach v_id in array v_ids loop
    id := v_id;
    from_state := null;
    to_state := null;
    if p_dry_run then
      select i.* into v_old from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id;
    else
      select i.* into v_old
      from pawl.instance i
      where i.tenant_id = p_tenant and i.id = v_id
      for no key update skip locked;
      if not found then
        outcome := 'busy';
        select i.state into from_state from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id;
        return next;
        continue;
      end if;
    end if;
    from_state := v_old.state;
    to_state := coalesce(v_map ->> v_old.state, v_old.state);
    select s.status, s.eventless, s.ttl_slides, w.ttl, o.ttl_slides as slid
    into v_target
    from pawl.workflow w
    left join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version and s.state = to_state
    left join pawl.workflow_state o
      on o.workflow = w.name and o.workflow_version = p_from and o.state = v_old.state
    where w.name = p_workflow and w.version = p_to;
    outcome := case
      when v_old.status <> 'active' or v_old.workflow_version <> p_from
        or not coalesce(v_old.state = any (p_states), true) then 'gone'
      when v_target.status is null then 'state-unknown'
      when v_target.status <> 'active' then 'state-final'
      when p_dry_run then 'would-migrate'
      else 'migrated'
    end;
    if outcome in ('migrated', 'would-migrate') then
      v_now := greatest(pawl.now(), v_old.state_changed_at);
      v_new := v_old;
      v_new.workflow_version := p_to;
      v_new.version := v_old.version + 1;
      v_new.state := to_state;
      if v_map ? v_old.state then
        v_new.state_changed_at := v_now;
      end if;
      v_new.expires_at := case
        when v_target.ttl is null then null
        when v_old.expires_at is null then v_now + v_target.ttl
        when not v_target.ttl_slides then v_old.expires_at
        when v_target.slid then v_new.state_changed_at + (v_old.expires_at - v_old.state_changed_at)
        else v_new.state_changed_at + v_target.ttl
      end;
      v_settlement := null;
      if v_target.eventless then
        v_settlement := pawl.settle(v_old, v_new, null, '{}', nullif(p_reason, ''), v_now, v_setting);
        if v_settlement.outcome is null then
          to_state := v_settlement.state;
        else
          outcome := 'unsettled';
        end if;
      end if;
    end if;
    if outcome = 'migrated' then
      insert into pawl.history (
        tenant_id, instance_id, version, workflow, workflow_version, kind, from_state, to_state, status, context,
        expires_at, error, actor, reason, correlation_id, traceparent, at)
      values (
        p_tenant, v_id, v_new.version, p_workflow, p_to, 'migrated', v_old.state, v_new.state, v_new.status,
        v_new.context, v_new.expires_at, v_new.error, p_actor, nullif(p_reason, ''),
        coalesce(nullif(p_correlation_id, ''), v_new.correlation_id), nullif(p_traceparent, ''), v_now);
      if cardinality(v_settlement.steps) > 2 then
        perform pawl.append_steps(
          v_settlement.steps[2:], 'transition', null, null, p_actor, p_reason, null, p_correlation_id, p_traceparent);
        v_new := v_settlement.steps[cardinality(v_settlement.steps)];
      end if;
      update pawl.instance i
      set workflow_version = v_new.workflow_version, version = v_new.version, state = v_new.state,
        status = v_new.status, context = v_new.context, state_changed_at = v_new.state_changed_at,
        expires_at = v_new.expires_at, error = v_new.error
      where i.tenant_id = p_tenant and i.id = v_id;
      perform pawl.set_timer(v_new, 0);
      v_moved := v_moved + 1;
    end if;
    return next;
  end loop;

  if not p_dry_run then
    update pawl.workflow_migration m
    set moved = m.moved + v_moved,
      finished_at = case when cardinality(v_ids) < v_limit then pawl.now() end
    where m.tenant_id = p_tenant and m.workflow = p_workflow and m.from_version = p_from and m.to_version = p_to;
  end if;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.count_instances, pawl.retire_workflow, pawl.migration_faults,
  pawl.migrate_instances from public;

-- +goose Down
drop function pawl.migrate_instances, pawl.migration_faults, pawl.retire_workflow, pawl.count_instances;
drop table pawl.workflow_migration;
