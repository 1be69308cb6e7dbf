-- Webhooks: who wants to be told of what, and what each was told.
--
-- The router turns steps into deliveries, and moves the cursor of the consumer `webhooks` in
-- the same transaction: each step is routed to each subscription that matches exactly once,
-- whatever happens to the process. The leader of that consumer, one process at a time, sends
-- what is due. What it has under way is in its memory alone, and one write settles it; after
-- a crash it is sent again, under the same id.
--
-- A subscription is told of an instance's steps in their order. What is due is read in it, and
-- the leader keeps it. When a delivery fails, those behind it lose their time to be sent at,
-- and get it back when it is settled for good; so what waits for another is never passed in
-- the search for what is due, which goes by subscription, then by time: whatever endpoint is
-- away, and for however long.
--
-- An endpoint that keeps failing rests, and is then probed with one delivery at a time, at
-- growing intervals, until one gets there. What waits meanwhile loses no attempt.
--
-- Routing, settling and replaying hold the consumer's row, and so see one another's work.
-- Lock order: consumer, subscription, delivery, callback, after everything of the engine's.

-- +goose Up

create table pawl.subscription (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  url text not null,
  workflows text[] not null,
  events text[] not null,
  states text[] not null,
  terminal_only boolean not null,
  secret text not null,
  previous_secret text,
  previous_secret_until timestamptz,
  since pg_snapshot not null,
  disabled_at timestamptz,
  disabled_reason text,
  failures integer not null default 0,
  rests_until timestamptz,
  created_at timestamptz not null,
  created_by text not null,
  constraint subscription_pkey primary key (tenant_id, id),
  constraint subscription_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint subscription_secrets_have_a_prefix
    check (secret like 'whsec\_%' and coalesce(previous_secret like 'whsec\_%', true)),
  constraint subscription_previous_secret_has_an_end
    check ((previous_secret is null) = (previous_secret_until is null)),
  constraint subscription_disabled_has_a_reason check ((disabled_at is null) = (disabled_reason is null)),
  constraint subscription_failures_are_counted check (failures >= 0)
)
-- Few rows, of which those of failing endpoints are written over and over: in their page.
with (fillfactor = 50);

comment on column pawl.subscription.workflows is 'names to be told of; all if empty, as for events and states';
comment on column pawl.subscription.states is 'entered states, or states around them';
comment on column pawl.subscription.since is 'what it sees was committed before the subscription was made';
comment on column pawl.subscription.failures is 'how many attempts have failed since one got there';
comment on column pawl.subscription.rests_until is 'nothing is sent before';

-- callback is a subscription of a creator to the end of one instance. It goes when its
-- delivery got there.
create table pawl.callback (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  url text not null,
  secret text,
  created_at timestamptz not null,
  constraint callback_pkey primary key (tenant_id, instance_id),
  constraint callback_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint callback_secret_has_a_prefix check (secret like 'whsec\_%')
)
-- As many go as come.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.callback.secret is 'null for the deployment''s';

create table pawl.delivery (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  subscription_id uuid not null,
  callback boolean not null,
  instance_id uuid,
  version bigint,
  type text not null,
  status text not null,
  attempts integer not null,
  next_attempt_at timestamptz,
  last_status integer,
  last_error text,
  last_response text,
  created_at timestamptz not null,
  delivered_at timestamptz,
  constraint delivery_pkey primary key (tenant_id, id),
  -- Each step once for each subscription; also the index for what an instance's watchers were told.
  constraint delivery_step_key unique (tenant_id, instance_id, version, subscription_id),
  constraint delivery_status_is_known check (status in ('pending', 'delivered', 'dead')),
  constraint delivery_tells_of_a_step_or_is_a_test
    check ((instance_id is null) = (version is null) and (instance_id is null) = (type = 'pawl.subscription.test')),
  constraint delivery_callback_is_of_its_instance check (not callback or subscription_id = instance_id),
  constraint delivery_settled_is_not_tried_again check (status = 'pending' or next_attempt_at is null),
  constraint delivery_delivered_has_a_time check ((status = 'delivered') = (delivered_at is not null)),
  constraint delivery_attempts_are_counted check (attempts >= 0),
  constraint delivery_response_is_an_excerpt check (octet_length(last_response) <= 1024)
)
-- Each row is written at least twice and deleted some days later, and what is due is read from
-- indexes whose entries die with each attempt. By default vacuum would wait for a fifth of it.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.delivery.id is 'the webhook-id: the same however often it is sent';
comment on column pawl.delivery.subscription_id is 'of a callback, the instance';
comment on column pawl.delivery.next_attempt_at is 'null while an earlier step of the instance is to be tried again, and when settled';
comment on column pawl.delivery.last_response is 'the first 1 KiB, as text';

-- What is due, by subscription and time.
create index delivery_due_idx on pawl.delivery (tenant_id, subscription_id, next_attempt_at, id)
  where status = 'pending' and next_attempt_at is not null and not callback;
create index delivery_callback_due_idx on pawl.delivery (next_attempt_at)
  where status = 'pending' and next_attempt_at is not null and callback;
-- What waits, in the order of the steps.
create index delivery_pending_idx on pawl.delivery (tenant_id, subscription_id, instance_id, version)
  where status = 'pending';
-- The log of a subscription, and the dead letters.
create index delivery_subscription_idx on pawl.delivery (tenant_id, subscription_id, id);
create index delivery_dead_idx on pawl.delivery (tenant_id, id)
  where status = 'dead';
-- What may be purged.
create index delivery_delivered_idx on pawl.delivery (id)
  where status = 'delivered';

-- event_type is the type of the CloudEvent that tells of a step.
-- +goose StatementBegin
create function pawl.event_type(p_kind text) returns text
language sql immutable parallel safe
as $$
  select 'pawl.instance.' || case p_kind
    when 'transition' then 'transitioned'
    when 'timeout' then 'timed-out'
    else p_kind
  end
$$;
-- +goose StatementEnd

-- make_deliveries makes those of the next steps that a consumer is to relay. p_only: to this
-- subscription alone. The caller holds the consumer's row, so that nothing is settled or
-- replayed meanwhile, and what waits for what stays true.
-- Returns: how many steps were read, how many deliveries made, and up to where the batch is
--          read then; null if it ends there
-- Writes:  delivery
-- +goose StatementBegin
create function pawl.make_deliveries(
  p_consumer pawl.consumer, p_batch pg_snapshot, p_limit integer, p_only uuid default null,
  out steps integer, out deliveries integer, out place bigint
)
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
begin
  with step as materialized (
    select h.tenant_id, h.instance_id, h.version, h.seq, h.xid, h.workflow, h.kind, h.event, h.to_state, h.status
    from pawl.read_steps(p_consumer, p_batch, p_limit) h
  ),
  matching as (
    select h.*, s.id as subscription_id, false as callback
    from step h
    cross join lateral (
      select s.id
      from pawl.subscription s
      where s.tenant_id = h.tenant_id
        and (p_only is null or s.id = p_only)
        and s.disabled_at is null
        and not pg_visible_in_snapshot(h.xid, s.since)
        and (s.workflows = '{}' or h.workflow = any (s.workflows))
        and (s.events = '{}' or h.event = any (s.events))
        and (
          s.states = '{}'
          or exists (select from unnest(s.states) as f (state) where h.to_state = f.state or starts_with(h.to_state, f.state || '.'))
        )
        and (not s.terminal_only or h.status <> 'active')
    ) s
    union all
    select h.*, h.instance_id, true
    from step h
    cross join lateral (
      select from pawl.callback b where b.tenant_id = h.tenant_id and b.instance_id = h.instance_id limit 1
    ) b
    where h.status <> 'active' and p_only is null
  ),
  made as (
    insert into pawl.delivery (
      tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, next_attempt_at, created_at)
    select
      m.tenant_id, pawl.uuid_v7(v_now + m.ordinal * interval '1 microsecond'), m.subscription_id, m.callback, m.instance_id, m.version, pawl.event_type(m.kind),
      'pending', 0, case when w.failed then null else v_now end, v_now
    from (
      -- Ids are in the order of the steps.
      select m.*, row_number() over (order by m.seq) as ordinal
      from matching m
    ) m
    left join lateral (
      select d.attempts > 0 or d.next_attempt_at is null as failed
      from pawl.delivery d
      where d.tenant_id = m.tenant_id
        and d.subscription_id = m.subscription_id
        and d.instance_id = m.instance_id
        and d.status = 'pending'
      order by d.tenant_id, d.subscription_id, d.instance_id, d.version
      limit 1
    ) w on true
    order by m.ordinal
    -- Where somebody has put the cursor back, or changed the subscription.
    on conflict on constraint delivery_step_key do nothing
    returning 1
  )
  select (select count(*) from step), (select count(*) from made), (select max(h.seq) from step h)
  into steps, deliveries, place;
  if steps < p_limit then
    place := pawl.place_after(p_consumer);
  end if;
end
$$;
-- +goose StatementEnd

-- route makes the deliveries of the next steps that the consumer `webhooks` has not seen, and
-- moves its cursor. Without subscriptions the cursor is moved and nothing is read. The lease
-- is renewed when a third of it is over, and whenever the cursor moves.
-- Returns: whether p_term leads, how many steps were read, how many deliveries made, and
--          whether there may be more steps
-- Locks:   consumer
-- Writes:  consumer, delivery
-- +goose StatementBegin
create function pawl.route(
  p_term bigint, p_limit integer, p_lease interval,
  out leads boolean, out steps integer, out deliveries integer, out more boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_consumer pawl.consumer;
  v_floor bigint := pawl.seq_floor();
  -- Taken before what it sees is read, and before it is asked who is to be told.
  v_snapshot pg_snapshot := pg_current_snapshot();
  v_batch pg_snapshot;
  v_place bigint;
begin
  leads := false; steps := 0; deliveries := 0; more := false;
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' and c.term = p_term;
  if not found then
    return;
  end if;
  v_batch := coalesce(v_consumer.batch, v_snapshot);
  if not exists (select from pawl.subscription s where s.disabled_at is null limit 1)
    and not exists (select from pawl.callback b limit 1) then
    if exists (select from pawl.history h where h.xid >= pg_snapshot_xmax(v_consumer.cursor) limit 1) then
      leads := pawl.advance('webhooks', p_term, v_snapshot, null, 0, p_lease);
    else
      leads := pawl.keep_lead('webhooks', p_term, p_lease);
    end if;
    return;
  end if;
  if v_consumer.batch is null and pawl.place_after(v_consumer) is null and not exists (
    select from pawl.read_steps(v_consumer, v_batch, 1)
  ) then
    leads := pawl.keep_lead('webhooks', p_term, p_lease);
    return;
  end if;

  perform from pawl.consumer c where c.name = 'webhooks' and c.term = p_term for no key update;
  if not found then
    return;
  end if;
  select m.steps, m.deliveries, m.place
  into steps, deliveries, v_place
  from pawl.make_deliveries(v_consumer, v_batch, p_limit) m;
  more := v_place is not null;
  leads := pawl.advance('webhooks', p_term, v_batch, v_place, steps, p_lease, v_floor);
end
$$;
-- +goose StatementEnd

-- keep_lead renews a lease of which a third is over.
-- Returns: whether p_term leads
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.keep_lead(p_consumer text, p_term bigint, p_lease interval) returns boolean
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
  return pawl.renew(p_consumer, p_term, p_lease);
end
$$;
-- +goose StatementEnd

-- rests_after is for how long an endpoint rests after so many failures in a row; null if it
-- need not. After the first rests it is probed with one delivery at a time.
-- +goose StatementBegin
create function pawl.rests_after(p_failures integer, p_rest interval) returns interval
language sql immutable parallel safe
as $$
  select case when p_failures >= 5 then least(p_rest * 2 ^ least(p_failures - 5, 20), interval '10 minutes') end
$$;
-- +goose StatementEnd

-- due_deliveries reads what is to be sent now: callbacks by time, and for each subscription
-- that neither rests nor is disabled what has been due for longest, one delivery if it has
-- kept failing. Subscriptions are passed in their order, from the one after the place given
-- on; those without anything due cost one look each. A subscription that was deleted shows
-- what it has left, due or not, which is to be settled.
-- p_flying: deliveries that are under way, with their subscriptions. A subscription of which
-- half of p_each are under way gets no more.
-- Returns: up to p_limit deliveries; if fewer, all subscriptions from the place on were seen
-- +goose StatementBegin
create function pawl.due_deliveries(
  p_limit integer, p_each integer, p_flying uuid[], p_flying_subscriptions uuid[], p_after_tenant text,
  p_after_subscription uuid
) returns setof pawl.delivery
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- There is one way to read each, as in final_instances.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_left integer := p_limit;
  v_tenant text := p_after_tenant;
  v_id uuid := p_after_subscription;
  v_next record;
  v_health record;
  v_due timestamptz;
  v_each integer;
  v_read integer;
begin
  return query
  select d.*
  from pawl.delivery d
  where d.status = 'pending' and d.next_attempt_at is not null and d.callback
    and d.next_attempt_at <= v_now
    and d.id <> all (p_flying)
  order by d.next_attempt_at
  limit least(p_each, v_left / 2);
  get diagnostics v_read = row_count;
  v_left := v_left - v_read;

  while v_left > 0 loop
    select d.tenant_id, d.subscription_id, d.next_attempt_at
    into v_next
    from pawl.delivery d
    where (d.tenant_id, d.subscription_id) > (v_tenant, v_id)
      and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
    order by d.tenant_id, d.subscription_id, d.next_attempt_at
    limit 1;
    exit when not found;
    v_tenant := v_next.tenant_id;
    v_id := v_next.subscription_id;
    select s.failures, s.rests_until, s.disabled_at
    into v_health
    from pawl.subscription s
    where s.tenant_id = v_tenant and s.id = v_id;
    v_each := p_each;
    v_due := case when found then v_now else 'infinity' end;
    continue when v_next.next_attempt_at > v_due;
    if found then
      continue when v_health.disabled_at is not null or v_health.rests_until > v_now;
      if pawl.rests_after(v_health.failures, interval '1 second') is not null then
        v_each := 1;
      end if;
    end if;
    v_read := (select count(*) from unnest(p_flying_subscriptions) as f (id) where f.id = v_id);
    continue when v_read * 2 >= v_each;
    return query
    select d.*
    from pawl.delivery d
    where d.tenant_id = v_tenant and d.subscription_id = v_id
      and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      and d.next_attempt_at <= v_due
      and d.id <> all (p_flying)
    order by d.tenant_id, d.subscription_id, d.next_attempt_at, d.id
    limit least(v_each - v_read, v_left);
    get diagnostics v_read = row_count;
    v_left := v_left - v_read;
  end loop;
end
$$;
-- +goose StatementEnd

-- events_of reads the events of steps, one for each that is still there.
-- +goose StatementBegin
create function pawl.events_of(p_tenants text[], p_instances uuid[], p_versions bigint[]) returns setof pawl.event
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select e.*
  from unnest(p_tenants, p_instances, p_versions) as k (tenant_id, instance_id, version)
  cross join lateral (
    select h as step
    from pawl.history h
    where h.tenant_id = k.tenant_id and h.instance_id = k.instance_id and h.version = k.version
    limit 1
  ) h
  cross join lateral pawl.event_of(h.step) e
$$;
-- +goose StatementEnd

-- endpoint is where deliveries of a subscription, or a callback's, go, and what signs them; an
-- empty secret is the deployment's. A shape, as pawl.outcome is.
create view pawl.endpoint as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as url, ''::text as secret,
  ''::text as previous_secret, false as disabled
where false;

-- endpoints_of reads those of subscriptions, and of callbacks by their instance, that are
-- still there. A previous secret is shown while it is good.
-- +goose StatementBegin
create function pawl.endpoints_of(p_tenants text[], p_ids uuid[]) returns setof pawl.endpoint
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select
    s.tenant_id::text, s.id, s.url, s.secret, coalesce(case when s.previous_secret_until > pawl.now() then s.previous_secret end, ''),
    s.disabled_at is not null
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select s.* from pawl.subscription s where s.tenant_id = k.tenant_id and s.id = k.id limit 1
  ) s
  union all
  select b.tenant_id::text, b.instance_id, b.url, coalesce(b.secret, ''), '', false
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select b.* from pawl.callback b where b.tenant_id = k.tenant_id and b.instance_id = k.id limit 1
  ) b
$$;
-- +goose StatementEnd

-- settle_deliveries notes what came of attempts, in the order of their ends. p_outcomes:
--   delivered  it got there
--   retry      it did not; again after p_delays
--   dead       it did not, and is given up
--   gone       the endpoint wants no more of anything: its subscription is disabled
--   put-off    it was not tried; again after p_delays
--   void       it was not tried, and is given up
-- After p_pauses, where there is one, the endpoint may be asked again; p_rest is the first rest
-- of an endpoint that keeps failing.
-- Returns: whether p_term still leads; if not, nothing is changed
-- Locks:   consumer
-- Writes:  delivery, subscription, callback
-- +goose StatementBegin
create function pawl.settle_deliveries(
  p_term bigint, p_tenants text[], p_ids uuid[], p_outcomes text[], p_delays interval[], p_pauses interval[],
  p_statuses integer[], p_errors text[], p_responses text[], p_rest interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- There is one way to find what is first, as in due_deliveries, and one to get to a row.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz;
  v_tenants text[];
  v_subscriptions uuid[];
  v_instances uuid[];
  v_result record;
  v_delivery record;
begin
  perform from pawl.consumer c where c.name = 'webhooks' and c.term = p_term for no key update;
  if not found then
    return false;
  end if;
  v_now := pawl.now();

  -- Nearly all get there. A row is looked up without its status, which would make other
  -- indexes look as good as the key's.
  with settled as (
    update pawl.delivery d
    set status = 'delivered', attempts = d.attempts + 1, next_attempt_at = null, last_status = r.status, last_error = null,
      last_response = nullif(r.response, ''), delivered_at = v_now
    from (
      select p.place, r.status, r.response
      from unnest(p_tenants, p_ids, p_outcomes, p_statuses, p_responses) as r (tenant_id, id, outcome, status, response)
      cross join lateral (
        select d.ctid as place, d.status from pawl.delivery d where d.tenant_id = r.tenant_id and d.id = r.id limit 1
      ) p
      where r.outcome = 'delivered' and p.status = 'pending'
    ) r
    where d.ctid = r.place
    returning d.tenant_id, d.subscription_id, d.instance_id
  )
  select array_agg(d.tenant_id::text), array_agg(d.subscription_id), array_agg(d.instance_id)
  into v_tenants, v_subscriptions, v_instances
  from settled d;
  delete from pawl.callback b
  using unnest(v_tenants, v_subscriptions, v_instances) as c (tenant_id, subscription_id, instance_id)
  where c.subscription_id = c.instance_id and b.tenant_id = c.tenant_id and b.instance_id = c.instance_id;
  update pawl.subscription s
  set failures = 0, rests_until = null
  from (select distinct c.tenant_id, c.id from unnest(v_tenants, v_subscriptions) as c (tenant_id, id)) c
  where s.tenant_id = c.tenant_id and s.id = c.id and (s.failures > 0 or s.rests_until is not null);

  -- The others one by one.
  for v_result in
    select *
    from unnest(p_tenants, p_ids, p_outcomes, p_delays, p_pauses, p_statuses, p_errors, p_responses)
      with ordinality as r (tenant_id, id, outcome, delay, pause, status, error, response, place)
    where r.outcome <> 'delivered'
  loop
    select d.subscription_id, d.instance_id, d.version, d.callback, d.status
    into v_delivery
    from pawl.delivery d
    where d.tenant_id = v_result.tenant_id and d.id = v_result.id;
    continue when not found or v_delivery.status <> 'pending';
    update pawl.delivery d
    set
      status = case when v_result.outcome in ('dead', 'gone', 'void') then 'dead' else 'pending' end,
      attempts = d.attempts + case when v_result.outcome in ('put-off', 'void') then 0 else 1 end,
      next_attempt_at = case when v_result.outcome in ('retry', 'put-off') then v_now + v_result.delay end,
      last_status = case when v_result.outcome = 'put-off' then d.last_status else nullif(v_result.status, 0) end,
      last_error = case when v_result.outcome = 'put-off' then d.last_error else nullif(v_result.error, '') end,
      last_response = case when v_result.outcome = 'put-off' then d.last_response else nullif(v_result.response, '') end
    where d.tenant_id = v_result.tenant_id and d.id = v_result.id;
    continue when v_delivery.callback;
    if v_result.outcome = 'retry' then
      update pawl.delivery d
      set next_attempt_at = null
      where d.tenant_id = v_result.tenant_id and d.subscription_id = v_delivery.subscription_id
        and d.instance_id = v_delivery.instance_id and d.version > v_delivery.version
        and d.status = 'pending' and d.next_attempt_at is not null;
    else
      v_tenants := v_tenants || v_result.tenant_id;
      v_subscriptions := v_subscriptions || v_delivery.subscription_id;
      v_instances := v_instances || v_delivery.instance_id;
    end if;

    case v_result.outcome
    when 'retry', 'dead' then
      -- What was under way when the rest began does not prolong it.
      update pawl.subscription s
      set failures = s.failures + 1,
        rests_until = greatest(
          v_now + pawl.rests_after(s.failures + 1, p_rest), v_now + v_result.pause, s.rests_until)
      where s.tenant_id = v_result.tenant_id and s.id = v_delivery.subscription_id
        and (s.rests_until is null or s.rests_until <= v_now or s.rests_until < v_now + v_result.pause);
    when 'gone' then
      update pawl.subscription s
      set disabled_at = v_now, disabled_reason = 'the endpoint answered 410 Gone'
      where s.tenant_id = v_result.tenant_id and s.id = v_delivery.subscription_id and s.disabled_at is null;
    else
      null;
    end case;
  end loop;

  -- What waited for one that is settled now has its time.
  update pawl.delivery d
  set next_attempt_at = v_now
  from (
    select w.place
    from unnest(v_tenants, v_subscriptions, v_instances) as c (tenant_id, subscription_id, instance_id)
    cross join lateral (
      select d.next_attempt_at
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending'
      order by d.tenant_id, d.subscription_id, d.instance_id, d.version
      limit 1
    ) f
    cross join lateral (
      select d.ctid as place
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending' and d.next_attempt_at is null
      order by d.tenant_id, d.subscription_id, d.instance_id, d.version
    ) w
    where f.next_attempt_at is null
  ) w
  where d.ctid = w.place;
  return true;
end
$$;
-- +goose StatementEnd

-- create_subscription makes a subscription to what is committed from now on.
-- Returns: it
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.create_subscription(
  p_tenant text, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean, p_secret text,
  p_actor text
) returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  return query
  insert into pawl.subscription (
    tenant_id, id, url, workflows, events, states, terminal_only, secret, since, created_at, created_by)
  values (
    p_tenant, pawl.uuid_v7(v_now), p_url, p_workflows, p_events, p_states, p_terminal_only, p_secret,
    pg_current_snapshot(), v_now, p_actor)
  returning *;
end
$$;
-- +goose StatementEnd

-- update_subscription changes what is not null. What was committed before is still for the
-- subscription as it was, unless the router is some 20,000 steps behind. One that is enabled
-- again, or gets another URL, has a clean record, and what waits for another attempt is sent
-- now; what was committed while it was disabled it is not told of.
-- Returns: it, or no row
-- Locks:   consumer, subscription
-- Writes:  subscription, delivery
-- +goose StatementBegin
create function pawl.update_subscription(
  p_tenant text, p_id uuid, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean,
  p_disabled boolean
) returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_consumer pawl.consumer;
  v_batch pg_snapshot;
  v_place bigint;
  v_afresh boolean;
begin
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  if v_consumer.cursor is not null and (p_disabled or coalesce(p_workflows, p_events, p_states) is not null or p_terminal_only is not null) then
    v_batch := pg_current_snapshot();
    -- From the cursor on, since what a begun batch does not see may be below its place.
    v_consumer.batch := null;
    v_consumer.batch_seq := 0;
    v_consumer.batch_end := null;
    for page in 1..20 loop
      select m.place into v_place from pawl.make_deliveries(v_consumer, v_batch, 1000, p_id) m;
      exit when v_place is null;
      v_consumer.batch_seq := v_place;
    end loop;
  end if;

  select p_url <> s.url or not p_disabled into v_afresh from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  return query
  update pawl.subscription s
  set
    url = coalesce(p_url, s.url),
    workflows = coalesce(p_workflows, s.workflows),
    events = coalesce(p_events, s.events),
    states = coalesce(p_states, s.states),
    terminal_only = coalesce(p_terminal_only, s.terminal_only),
    disabled_at = case when p_disabled then coalesce(s.disabled_at, v_now) when p_disabled is null then s.disabled_at end,
    disabled_reason = case
      when p_disabled then coalesce(s.disabled_reason, 'it was disabled through the API')
      when p_disabled is null then s.disabled_reason
    end,
    since = case when not p_disabled and s.disabled_at is not null then pg_current_snapshot() else s.since end,
    failures = case when v_afresh then 0 else s.failures end,
    rests_until = case when not v_afresh or v_afresh is null then s.rests_until end
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*;
  if v_afresh then
    update pawl.delivery d
    set next_attempt_at = v_now
    where d.ctid = any (array(
      select w.ctid
      from pawl.delivery w
      where w.tenant_id = p_tenant and w.subscription_id = p_id
        and w.status = 'pending' and w.next_attempt_at is not null and not w.callback
        and w.next_attempt_at > v_now
      order by w.tenant_id, w.subscription_id, w.next_attempt_at
      limit 10000
    ));
  end if;
end
$$;
-- +goose StatementEnd

-- delete_subscription forgets a subscription. What is pending for it is given up; the log stays.
-- Returns: whether it was there
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.delete_subscription(p_tenant text, p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id;
  return found;
end
$$;
-- +goose StatementEnd

-- rotate_secret replaces the secret of a subscription. Deliveries are signed with the one
-- before it as well for p_overlap.
-- Returns: the subscription, or no row
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.rotate_secret(p_tenant text, p_id uuid, p_secret text, p_overlap interval)
returns setof pawl.subscription
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.subscription s
  set secret = p_secret, previous_secret = s.secret, previous_secret_until = pawl.now() + p_overlap
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*
$$;
-- +goose StatementEnd

-- test_subscription makes a delivery that tells of nothing. It is sent before all others,
-- and at once, even if the endpoint rests.
-- Returns: the delivery, or no row if there is no such subscription
-- Locks:   subscription
-- Writes:  subscription, delivery
-- +goose StatementBegin
create function pawl.test_subscription(p_tenant text, p_id uuid) returns setof pawl.delivery
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  update pawl.subscription s
  set rests_until = case when s.rests_until > v_now then v_now else s.rests_until end
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    return query
    insert into pawl.delivery (
      tenant_id, id, subscription_id, callback, type, status, attempts, next_attempt_at, created_at)
    values (p_tenant, pawl.uuid_v7(v_now), p_id, false, 'pawl.subscription.test', 'pending', 0, 'epoch', v_now)
    returning *;
  end if;
end
$$;
-- +goose StatementEnd

-- replay_deliveries makes settled deliveries pending again, with all their attempts ahead:
-- those of p_ids, or up to p_limit from after p_after on that the filter leaves. Of an
-- instance's the first is sent first. Those whose subscription is gone, or whose callback,
-- stay as they are.
-- Returns: how many, how many were looked at, and the last of those
-- Locks:   consumer
-- Writes:  delivery
-- +goose StatementBegin
create function pawl.replay_deliveries(
  p_tenant text, p_ids uuid[], p_subscription uuid, p_status text, p_from timestamptz, p_to timestamptz, p_after uuid,
  p_limit integer, out replayed integer, out looked_at integer, out last uuid
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_after uuid := greatest(p_after, pawl.uuid_v7_floor(coalesce(p_from, '-infinity')));
  v_before uuid := pawl.uuid_v7_floor(coalesce(p_to, 'infinity') + interval '1 millisecond');
  v_ids uuid[];
  v_row record;
begin
  replayed := 0; looked_at := 0; last := p_after;
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  -- Dead letters have an index of their own.
  if p_ids is not null then
    v_ids := p_ids;
  elsif p_status = 'dead' then
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = p_tenant and d.id > v_after and d.id < v_before and d.status = 'dead'
        and coalesce(d.created_at > p_from, true) and coalesce(d.created_at < p_to, true)
        and coalesce(d.subscription_id = p_subscription, true)
      order by d.tenant_id, d.id
      limit p_limit
    );
  else
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = p_tenant and d.id > v_after and d.id < v_before and d.status = p_status
        and coalesce(d.created_at > p_from, true) and coalesce(d.created_at < p_to, true)
        and coalesce(d.subscription_id = p_subscription, true)
      order by d.tenant_id, d.id
      limit p_limit
    );
  end if;
  for v_row in
    select d.id, d.subscription_id, d.instance_id, d.version, d.callback, d.status
    from unnest(v_ids) as u (id)
    cross join lateral (
      select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.id = u.id limit 1
    ) d
    order by d.id
  loop
    looked_at := looked_at + 1;
    last := v_row.id;
    continue when v_row.status = 'pending';
    continue when not exists (
      select from pawl.subscription s where s.tenant_id = p_tenant and s.id = v_row.subscription_id
      union all
      select from pawl.callback b where v_row.callback and b.tenant_id = p_tenant and b.instance_id = v_row.instance_id
    );
    -- Before those of the instance that are pending and behind it, after those before it.
    update pawl.delivery d
    set status = 'pending', attempts = 0, delivered_at = null,
      next_attempt_at = (
        select case
          when not coalesce(bool_or(o.version < v_row.version and (o.attempts > 0 or o.next_attempt_at is null)), false)
            then least(v_now, min(o.next_attempt_at) filter (where o.version > v_row.version))
        end
        from pawl.delivery o
        where o.tenant_id = p_tenant and o.subscription_id = v_row.subscription_id
          and o.instance_id = v_row.instance_id and o.status = 'pending'
      )
    where d.tenant_id = p_tenant and d.id = v_row.id;
    replayed := replayed + 1;
  end loop;
end
$$;
-- +goose StatementEnd

-- purge_deliveries deletes settled deliveries from the log, the oldest first and no more than
-- p_limit of each kind: delivered ones p_delivered after they were, dead ones p_dead after
-- they were made, with the callbacks that nothing else is left of.
-- Returns: how many were deleted
-- Locks:   delivery (for update, skipping what is locked)
-- Writes:  delivery, callback
-- +goose StatementBegin
create function pawl.purge_deliveries(p_limit integer, p_delivered interval, p_dead interval) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_purged integer;
begin
  with old as materialized (
    select p.place
    from (
      select d.ctid as place
      from pawl.delivery d
      where d.status = 'delivered' and d.id < pawl.uuid_v7_floor(v_now - p_delivered) and d.delivered_at < v_now - p_delivered
      order by d.id
      limit greatest(p_limit, 0)
      for update skip locked
    ) p
    union all
    select p.place
    from (
      select d.ctid as place
      from pawl.delivery d
      where d.status = 'dead' and d.id < pawl.uuid_v7_floor(v_now - p_dead)
      limit greatest(p_limit, 0)
      for update skip locked
    ) p
  ),
  purged as (
    delete from pawl.delivery d
    where d.ctid = any (array(select o.place from old o))
    returning d.tenant_id, d.instance_id, d.callback
  ),
  released as (
    delete from pawl.callback b
    using (select p.tenant_id, p.instance_id from purged p where p.callback) p
    where b.tenant_id = p.tenant_id and b.instance_id = p.instance_id
  )
  select count(*) into v_purged from purged;
  return v_purged;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.event_type, pawl.make_deliveries, pawl.route, pawl.keep_lead, pawl.rests_after, pawl.due_deliveries, pawl.events_of, pawl.endpoints_of,
  pawl.settle_deliveries, pawl.create_subscription, pawl.update_subscription, pawl.delete_subscription,
  pawl.rotate_secret, pawl.test_subscription, pawl.replay_deliveries, pawl.purge_deliveries from public;

-- +goose Down
drop function pawl.purge_deliveries, pawl.replay_deliveries, pawl.test_subscription, pawl.rotate_secret,
  pawl.delete_subscription, pawl.update_subscription, pawl.create_subscription, pawl.settle_deliveries,
  pawl.endpoints_of, pawl.events_of, pawl.due_deliveries, pawl.rests_after, pawl.keep_lead, pawl.route, pawl.make_deliveries, pawl.event_type;
drop view pawl.endpoint;
drop table pawl.delivery, pawl.callback, pawl.subscription;
