-- migrate_instances moves active instances to another version of their workflow: the next p_limit of them,
-- in the order of their ids. The caller repeats it, with the last id for p_after, until it gets fewer rows.
-- An instance that was moved is no longer of the old version, so a migration that was broken off can simply
-- be started again.
--
-- An instance's new state is the one that p_state_map has for its state, else the state of the same name.
--   * A state that keeps its name keeps state_changed_at, and the new version's timeouts count from there.
--     One that would have been due earlier is due at once.
--   * A state that the map names is entered now, even if its name stays the same.
--   * expires_at becomes null if the new version has no ttl, and that ttl from now if there was none.
--     Otherwise it stays. If the new version's ttl slides and the old one's did not, the lifetime counts from
--     state_changed_at. If both slide, it stays, but begins anew in a state that is entered, with its length.
--   * The context stays as it is. It is not checked against the new version's schema, and nothing is
--     assigned for states that are left or entered.
--   * Tasks of the old version that were not sent are cancelled, and those of the new state begin.
--   * Then the new state's eventless transitions are taken, as after every step.
-- An instance that a command holds is skipped, and so is one whose state does not fit. No instance is
-- mapped to a final state: only an event or an eventless transition ends an instance.
-- p_states, p_ids: only instances in these states, with these ids; null for all
-- p_history_key:   the key that history shows, of a bulk; null for none
-- p_dry_run:       write and lock nothing; the caller's transaction may be read-only
-- Returns: one row per instance that was looked at, by id. result: 'migrated' or 'would-migrate'; 'state-unknown' or
--          'state-final' if to_state does not fit; 'state-protected' if the map would have it leave or
--          enter a protected state; 'unsettled' if the eventless transitions do not come to rest, or
--          make the context too large or too deep; 'busy' if a command holds the instance; 'task-open' while a task
--          may have been sent, since the new version would send it again; 'invariant-broken' or
--          'guard-error' if an invariant of the new version does not hold, or a guard or a value raises; 'gone' if it
--          became final or was moved meanwhile
-- Raises:  PW40W workflow-not-found; PW40V workflow-conflict if another migration of the workflow is under
--          way; PW400 malformed-request with all faults of the request
-- Locks:   workflow (for key share, both versions), instance_migration, instance (for no key update, by id,
--          those that are not locked)
-- Writes:  instance_migration, instance, history, timer, task, undoing, audit
create function pawl.migrate_instances(
  p_tenant text, p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_after uuid, p_limit integer,
  p_actor text default session_user, p_dry_run boolean default false, p_states text[] default null,
  p_ids uuid[] default null, p_reason text default null, p_correlation_id text default null,
  p_traceparent text default null, p_caller jsonb default null,
  p_history_key text default null
) returns table (id uuid, from_state text, to_state text, result text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read a page: by the index, in its order. Plans that it is left without an
-- alternative look expensive to it, and would be compiled: hence jit = off.
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
  v_other pawl.instance_migration;
  v_ids uuid[];
  v_id uuid;
  v_old pawl.instance;
  v_new pawl.instance;
  v_target record;
  v_macrostep pawl_private.macrostep;
  v_steps pawl.instance[];
  v_made text[];
  v_principal jsonb;
  v_slid_at timestamptz;
  v_setting pawl.setting;
  v_moved bigint := 0;
  v_begun boolean;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_correlation_id => p_correlation_id, p_reason => p_reason));
  if length(p_history_key) not between 1 and 255 then
    perform pawl_private.raise_condition('malformed-request', 'the key in history must have 1 to 255 characters');
  end if;
  select * into strict v_setting from pawl.setting;
  foreach v_version in array array[p_from, p_to] loop
    if p_dry_run then
      perform from pawl.workflow w where w.name = p_workflow and w.version = v_version;
    else
      -- The lock keeps the version from being retired meanwhile.
      perform from pawl.workflow w where w.name = p_workflow and w.version = v_version for key share;
    end if;
    if not found then
      perform pawl_private.raise_condition(
        'workflow-not-found', format('workflow %s has no version %s', p_workflow, v_version));
    end if;
  end loop;
  v_faults := pawl_private.migration_faults(
    p_workflow => p_workflow, p_from => p_from, p_to => p_to, p_state_map => v_map, p_states => p_states);
  if v_faults is not null then
    perform pawl_private.raise_condition(
      'malformed-request', 'the migration does not fit the versions', jsonb_build_object('errors', v_faults));
  end if;

  if not p_dry_run then
    loop
      v_now := pawl.now();
      update pawl.instance_migration m
      set finished_at = v_now
      where m.tenant_id = p_tenant and m.workflow = p_workflow and m.finished_at is null
        and (m.from_version, m.to_version) <> (p_from, p_to)
        and m.batch_at <= v_now - interval '1 minute';
      select m.*
      into v_other
      from pawl.instance_migration m
      where m.tenant_id = p_tenant and m.workflow = p_workflow and m.finished_at is null
        and (m.from_version, m.to_version) <> (p_from, p_to);
      if found then
        perform pawl_private.raise_condition(
          'workflow-conflict',
          format(
            'workflow %s: a migration from version %s to %s is under way', p_workflow, v_other.from_version,
            v_other.to_version));
      end if;
      begin
        -- Another call waits here until this one has ended: one of the same direction for the row, one of
        -- another direction for its place in the index.
        insert into pawl.instance_migration as m (
          tenant_id, workflow, from_version, to_version, started_at, batch_at, moved, actor)
        values (p_tenant, p_workflow, p_from, p_to, v_now, v_now, 0, p_actor)
        on conflict on constraint instance_migration_pkey do update
        set started_at = case when m.finished_at is null then m.started_at else excluded.started_at end,
          actor = case when m.finished_at is null then m.actor else excluded.actor end,
          batch_at = excluded.batch_at,
          finished_at = null
        returning m.started_at = v_now into v_begun;
        exit;
      exception when unique_violation then
        null; -- A migration of another direction has begun meanwhile. Now it is seen.
      end;
    end loop;
    -- A bulk is written down by itself.
    if v_begun and p_history_key is null then
      perform pawl_private.audit(
        p_tenant => p_tenant, p_caller => coalesce(p_caller, pawl_private.session_caller(p_actor)),
        p_action => 'workflow.migrate', p_target => format('%s %s to %s', p_workflow, p_from, p_to), p_reason => p_reason,
        p_after => jsonb_build_object('state_map', v_map));
    end if;
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
        result := 'busy';
        select i.state into from_state from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id;
        return next;
        continue;
      end if;
    end if;
    from_state := v_old.state;
    to_state := coalesce(v_map ->> v_old.state, v_old.state);
    select s.status, s.eventless, s.timers, s.invariants, s.reads_actor, s.ttl_slides, s.state_hash, w.ttl, o.ttl_slides as slid,
      s.protected or o.protected as protected
    into v_target
    from pawl.workflow w
    left join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version and s.state = to_state
    left join pawl.workflow_state o
      on o.workflow = w.name and o.workflow_version = p_from and o.state = v_old.state
    where w.name = p_workflow and w.version = p_to;
    result := case
      when v_old.status <> 'active' or v_old.workflow_version <> p_from
        or not coalesce(v_old.state = any (p_states), true) then 'gone'
      when v_target.status is null then 'state-unknown'
      when v_target.status <> 'active' then 'state-final'
      when v_map ? v_old.state and v_target.protected then 'state-protected'
      when exists (
        select from pawl.task t
        where t.tenant_id = p_tenant and t.instance_id = v_id and t.ended_at is null and t.status <> 'pending'
      ) then 'task-open'
      when p_dry_run then 'would-migrate'
      else 'migrated'
    end;
    if result in ('migrated', 'would-migrate') then
      v_now := greatest(pawl.now(), v_old.state_changed_at);
      v_new := v_old;
      v_new.workflow_version := p_to;
      v_new.version := v_old.version + 1;
      v_new.state := to_state;
      v_new.state_hash := v_target.state_hash;
      if v_map ? v_old.state then
        v_new.state_changed_at := v_now;
      end if;
      v_new.memory := null;
      v_slid_at := pawl_private.slid_at(v_old);
      v_new.expires_at := case
        when v_target.ttl is null then null
        when v_old.expires_at is null then v_now + v_target.ttl
        when not v_target.ttl_slides then v_old.expires_at
        when v_target.slid and v_map ? v_old.state then v_now + (v_old.expires_at - v_slid_at)
        when v_target.slid then v_old.expires_at
        else v_new.state_changed_at + v_target.ttl
      end;
      v_principal := pawl_private.principal(p_actor, null, false);
      v_steps := array[v_old, v_new];
      v_made := array[null, null];
      if v_target.eventless or v_target.timers is not null or v_target.invariants is not null or v_old.memory is not null then
        v_macrostep := pawl_private.migrated(
          p_old => v_old, p_new => v_new, p_map => v_map, p_principal => v_principal, p_reason => nullif(p_reason, ''),
          p_now => v_now, p_setting => v_setting);
        if v_macrostep.refusal is null then
          v_steps := v_macrostep.steps;
          v_made := v_macrostep.made;
          v_new := v_macrostep.instance;
          to_state := v_new.state;
        else
          result := case when v_macrostep.refusal in ('invariant-broken', 'guard-error') then v_macrostep.refusal else 'unsettled' end;
        end if;
      end if;
    end if;
    if result = 'migrated' then
      perform pawl_private.append_history(
        p_steps => v_steps, p_made => v_made, p_kind => 'migrated', p_at => v_now, p_payload => null, p_internal => false,
        p_principal => case when v_target.reads_actor then v_principal end, p_actor => p_actor,
        p_reason => p_reason, p_key => p_history_key, p_correlation_id => p_correlation_id, p_traceparent => p_traceparent);
      update pawl.instance i
      set workflow_version = v_new.workflow_version, version = v_new.version, state = v_new.state,
        status = v_new.status, context = v_new.context, state_changed_at = v_new.state_changed_at,
        expires_at = v_new.expires_at, error = v_new.error, state_hash = v_new.state_hash, memory = v_new.memory
      where i.tenant_id = p_tenant and i.id = v_id;
      perform pawl_private.set_timer(p_instance => v_new, p_tried => 0);
      perform pawl_private.move_tasks(p_instance => v_new, p_at => v_now, p_moves => true);
      v_moved := v_moved + 1;
    end if;
    return next;
  end loop;

  if not p_dry_run then
    update pawl.instance_migration m
    set moved = m.moved + v_moved,
      finished_at = case when cardinality(v_ids) < v_limit then pawl.now() end
    where m.tenant_id = p_tenant and m.workflow = p_workflow and m.from_version = p_from and m.to_version = p_to;
  end if;
end
$$;
