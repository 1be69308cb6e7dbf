-- The outbox: history, read by consumers that tell the world. Nothing is copied, marked or
-- deleted for it: a consumer has a cursor, and what it has not relayed is what the cursor
-- does not see.
--
-- A cursor is a snapshot, since there is no other order in which rows appear: a transaction
-- that began early may commit late, with a smaller xid and smaller seqs than what others
-- committed meanwhile. A batch is what the next snapshot sees and the cursor did not: rows of
-- later transactions, and of those that were in progress then. So a transaction that stays
-- open for hours holds up nobody, and is not skipped. This is how PgQ does it.
--
-- Within a batch rows are in the order of seq. It is drawn under the instance's lock, and a
-- step that a snapshot sees was committed after the ones before it, so that an instance's
-- steps are relayed in their order. No other bound may cut a batch: by xid, a step could come
-- before its predecessor, whose transaction may have the larger one.
--
-- A batch may be all that a day brought, and each page of it must cost what a page costs. So
-- a consumer has a floor beside its cursor, above which the steps of later transactions are,
-- and pages are walks up the index on seq, of a bounded number of entries, whether they are of
-- the batch or not. What was in progress at the cursor may be below the floor, and is found by
-- its xid. The floor comes from the sequence: what has its xid after somebody's who had read
-- the sequence before draws what comes after. See seq_floor. It needs a sequence without a
-- cache.
--
-- One process at a time relays for a consumer: it has a lease, and each lease a term. What
-- an earlier leader writes after it has lost the lease is refused by its term.
--
-- Lock order: consumer, after everything of the engine's.

-- +goose Up

create index history_seq_idx on pawl.history (seq);
create index history_xid_idx on pawl.history (xid, seq);

create table pawl.consumer (
  name text collate "C" not null,
  cursor pg_snapshot,
  floor bigint not null,
  next_floor bigint not null,
  next_floor_xid xid8 not null,
  batch pg_snapshot,
  batch_seq bigint not null,
  batch_end bigint,
  term bigint not null,
  leader text not null,
  lease_until timestamptz not null,
  relayed bigint not null,
  advanced_at timestamptz not null,
  constraint consumer_pkey primary key (name),
  constraint consumer_name_is_a_key check (length(name) between 1 and 255),
  constraint consumer_term_is_a_count check (term >= 0),
  constraint consumer_begins_when_led check (cursor is not null or term = 0),
  constraint consumer_batch_has_a_place check (batch is not null or batch_seq = 0),
  constraint consumer_batch_has_an_end check ((batch is null) = (batch_end is null))
)
-- A row that is written some times a second, however much is relayed: what a transaction that
-- stays open keeps of it stays in its page.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on column pawl.consumer.cursor is 'what it sees is relayed; null until somebody leads, if the consumer is to begin then';
comment on column pawl.consumer.floor is 'steps of transactions that the cursor is older than have a larger seq';
comment on column pawl.consumer.next_floor is 'the floor of a cursor that sees next_floor_xid';
comment on column pawl.consumer.batch is 'where the cursor goes next, if part of that is relayed';
comment on column pawl.consumer.batch_seq is 'up to where the batch is relayed';
comment on column pawl.consumer.batch_end is 'no step of the batch has a larger seq';
comment on column pawl.consumer.term is 'counts the leaders';
comment on column pawl.consumer.relayed is 'how many steps, repeats among them';

-- event is a step as the world is told of it: a row of history, and what else the instance
-- shows.
create view pawl.event as
select h.*, i.business_key, i.correlation_id as instance_correlation_id, i.created_at, s.events as actions
from pawl.history h
left join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id
left join pawl.workflow_state s
  on s.workflow = h.workflow and s.workflow_version = h.workflow_version and s.state = h.to_state;

-- event_of is the event of a step, looked up by full keys. The planner puts it in place.
-- Returns: one row
-- +goose StatementBegin
create function pawl.event_of(p_step pawl.history) returns setof pawl.event
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
-- +goose StatementEnd

-- seq_floor is what the seqs of all transactions will be above that get their xid after this
-- one gets its own: an engine's step draws its seq when the transaction has locked, and so has
-- an xid. Null if this one has its own already.
-- +goose StatementBegin
create function pawl.seq_floor() returns bigint
language sql volatile
as $$
  select s.last_value - 1 from pawl.history_seq_seq s where pg_current_xact_id_if_assigned() is null
$$;
-- +goose StatementEnd

-- add_consumer adds a consumer that is not there: it begins with the first step that there ever
-- was if p_from_start, or when somebody leads.
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.add_consumer(p_consumer text, p_from_start boolean default false) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_floor bigint := coalesce(pawl.seq_floor(), 0);
begin
  insert into pawl.consumer (
    name, cursor, floor, next_floor, next_floor_xid, batch_seq, term, leader, lease_until, relayed, advanced_at)
  values (
    p_consumer, case when p_from_start then '1:1:'::pg_snapshot end, 0, v_floor, pg_current_xact_id(), 0, 0, '', v_now, 0, v_now)
  on conflict on constraint consumer_pkey do nothing;
end
$$;
-- +goose StatementEnd

-- lead makes p_leader the leader of a consumer, if it has none, or the same one has lost
-- count.
-- Returns: the term, or null if another leads, or there is no such consumer
-- Raises:  PW409 if the database was restored from a dump; see restored
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.lead(p_consumer text, p_leader text, p_lease interval) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_floor bigint := pawl.seq_floor();
  v_snapshot pg_snapshot := pg_current_snapshot();
  v_term bigint;
begin
  if exists (
    select from pawl.consumer c
    where c.name = p_consumer and pg_snapshot_xmax(coalesce(c.batch, c.cursor)) > pg_snapshot_xmax(v_snapshot)
  ) then
    raise exception 'consumer %: its cursor is of another server, so this database was restored from a dump', p_consumer
      using errcode = 'PW409', hint = 'Run as the owner of the schema: select pawl.restored()';
  end if;
  update pawl.consumer c
  set cursor = coalesce(c.cursor, v_snapshot),
    floor = case
      when c.cursor is null and pg_visible_in_snapshot(c.next_floor_xid, v_snapshot) then c.next_floor
      else c.floor
    end,
    -- What is read next is older than this only if it is a batch that was begun.
    next_floor = case when c.batch is null and v_floor is not null then v_floor else c.next_floor end,
    next_floor_xid = case when c.batch is null and v_floor is not null then pg_current_xact_id() else c.next_floor_xid end,
    term = c.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where c.name = p_consumer and (c.lease_until <= v_now or c.leader = p_leader)
  returning c.term into v_term;
  return v_term;
end
$$;
-- +goose StatementEnd

-- resign ends a lease before its time, so that another may lead at once.
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.resign(p_consumer text, p_term bigint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.consumer c set lease_until = pawl.now() where c.name = p_consumer and c.term = p_term
$$;
-- +goose StatementEnd

-- renew renews a lease.
-- Returns: whether p_term still leads; if not, nothing is changed
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.renew(p_consumer text, p_term bigint, p_lease interval) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set lease_until = pawl.now() + p_lease
  where c.name = p_consumer and c.term = p_term;
  return found;
end
$$;
-- +goose StatementEnd

-- steps_since are the steps that p_cursor does not see: those of later transactions, and those
-- of transactions that were in progress. The planner puts it in place. Who calls it sees to it
-- that seqscans are off, since statistics know nothing of the newest rows, which are always the
-- ones to be read.
-- Returns: rows of history, in no order
-- +goose StatementBegin
create function pawl.steps_since(p_cursor pg_snapshot) returns setof pawl.history
language sql stable
as $$
  select h.*
  from pawl.history h
  where h.xid >= pg_snapshot_xmax(p_cursor)
  union all
  -- One by one: a join would read all that there is.
  select h.*
  from pg_snapshot_xip(p_cursor) as x (xid)
  cross join lateral (select h.* from pawl.history h where h.xid = x.xid offset 0) h
$$;
-- +goose StatementEnd

-- page_end is up to which seq a page looks.
-- +goose StatementBegin
create function pawl.page_end(p_consumer pawl.consumer) returns bigint
language sql immutable parallel safe
as $$
  select greatest(p_consumer.batch_seq, p_consumer.floor) + 20000
$$;
-- +goose StatementEnd

-- place_after is up to which seq a batch is read after a page that was not full; null if it
-- ends with that. The batch must have been taken before.
-- +goose StatementBegin
create function pawl.place_after(p_consumer pawl.consumer) returns bigint
language sql volatile
as $$
  select pawl.page_end(p_consumer)
  from pawl.history_seq_seq s
  where pawl.page_end(p_consumer) < coalesce(p_consumer.batch_end, s.last_value)
$$;
-- +goose StatementEnd

-- look says what a consumer is to read next: the batch that it has begun, or a new one.
-- Returns: idle: there is certainly nothing; place: place_after of the next page
-- +goose StatementBegin
create function pawl.look(p_consumer text, out batch pg_snapshot, out begun boolean, out idle boolean, out place bigint)
language plpgsql volatile security definer -- Its plan is kept.
set search_path = pg_catalog, pg_temp
as $$
begin
  select coalesce(c.batch, s.now), c.batch is not null, c.batch is null and s.now::text = c.cursor::text, pawl.place_after(c)
  into batch, begun, idle, place
  from pawl.consumer c
  cross join (select pg_current_snapshot() as now offset 0) s
  where c.name = p_consumer;
end
$$;
-- +goose StatementEnd

-- read_steps reads what p_batch sees that a consumer is to relay, in the order of seq, up to
-- page_end.
-- Returns: up to p_limit rows of history
-- +goose StatementBegin
create function pawl.read_steps(p_consumer pawl.consumer, p_batch pg_snapshot, p_limit integer) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- There is one way to read each: by its index, in its order.
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
  if p_consumer.batch_seq < p_consumer.floor then
    return query
    select h.*
    from pg_snapshot_xip(p_consumer.cursor) as x (xid)
    cross join lateral (
      select h.*
      from pawl.history h
      -- As rows, since the order of a single xid is that of the index on seq, too.
      where (h.xid, h.seq) > (x.xid, p_consumer.batch_seq) and (h.xid, h.seq) <= (x.xid, p_consumer.floor)
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
  where h.seq > greatest(p_consumer.batch_seq, p_consumer.floor) and h.seq <= pawl.page_end(p_consumer)
    and not pg_visible_in_snapshot(h.xid, p_consumer.cursor)
    and pg_visible_in_snapshot(h.xid, p_batch)
  order by h.seq
  limit p_limit - v_read;
end
$$;
-- +goose StatementEnd

-- read_events is read_steps, by the consumer's name, with what else the instances show.
-- Returns: up to p_limit events
-- +goose StatementBegin
create function pawl.read_events(p_consumer text, p_batch pg_snapshot, p_limit integer) returns setof pawl.event
language plpgsql stable security definer -- Its plan is kept, which in SQL it would not be.
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
  select e.*
  from pawl.consumer c
  cross join lateral pawl.read_steps(c, p_batch, p_limit) h
  cross join lateral pawl.event_of(h) e
  where c.name = p_consumer
  order by h.seq;
end
$$;
-- +goose StatementEnd

-- advance moves a consumer's cursor to p_batch, or notes that p_batch is relayed up to
-- p_seq, if that is not null. The lease is renewed with it. p_floor: what seq_floor was, if
-- this transaction has an xid by now.
-- The commit need not reach the disk: what a crash takes back of it is relayed again.
-- Returns: whether p_term still leads; if not, nothing is changed
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.advance(
  p_consumer text, p_term bigint, p_batch pg_snapshot, p_seq bigint, p_relayed bigint, p_lease interval,
  p_floor bigint default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_floor bigint := coalesce(p_floor, pawl.seq_floor());
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set cursor = case when p_seq is null then p_batch else c.cursor end,
    floor = case
      when p_seq is null and pg_visible_in_snapshot(c.next_floor_xid, p_batch) then c.next_floor
      else c.floor
    end,
    next_floor = case when p_seq is null and v_floor is not null then v_floor else c.next_floor end,
    next_floor_xid = case when p_seq is null and v_floor is not null then pg_current_xact_id() else c.next_floor_xid end,
    batch = case when p_seq is null then null else p_batch end,
    batch_seq = coalesce(p_seq, 0),
    batch_end = case when p_seq is not null then coalesce(c.batch_end, (select s.last_value from pawl.history_seq_seq s)) end,
    relayed = c.relayed + p_relayed,
    advanced_at = v_now,
    lease_until = v_now + p_lease
  where c.name = p_consumer and c.term = p_term;
  return found;
end
$$;
-- +goose StatementEnd

-- outbox_status tells how far the consumers are.
-- Returns: one row per consumer, by name: leader, null if nobody leads; steps that are to
--          be relayed; behind, how long the oldest of these has been history, null if none is
-- +goose StatementBegin
create function pawl.outbox_status()
returns table (name text, leader text, term bigint, relayed bigint, steps bigint, behind interval, advanced_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select
    c.name, case when c.lease_until > n.at then c.leader end, c.term, c.relayed, l.steps, n.at - l.oldest, c.advanced_at
  from pawl.consumer c
  cross join (select pawl.now() as at offset 0) n
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl.steps_since(c.cursor) h
    where c.batch is null or h.seq > c.batch_seq or not pg_visible_in_snapshot(h.xid, c.batch)
  ) l
  order by c.name
$$;
-- +goose StatementEnd

-- forget removes a consumer that nobody leads. What it has not relayed is relayed by nobody.
-- Returns: whether there was such a consumer
-- Raises:  PW409 if somebody leads
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.forget(p_consumer text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pawl.consumer c where c.name = p_consumer and c.lease_until <= pawl.now();
  if found then
    return true;
  elsif exists (select from pawl.consumer c where c.name = p_consumer) then
    raise exception 'consumer %: a process leads; stop it first', p_consumer using errcode = 'PW409';
  end if;
  return false;
end
$$;
-- +goose StatementEnd

-- restored sees to it that consumers and subscriptions go on after the database was restored
-- from a dump, on a server that counts its transactions anew: what any consumer had not relayed
-- is relayed to all of them, some of it again. It writes all of history; only the owner may.
-- Writes:  history, consumer, subscription, removal
-- +goose StatementBegin
create function pawl.restored() returns void
language plpgsql volatile
as $$
declare
  -- Frozen, and so behind every transaction.
  v_past constant xid8 := '2';
begin
  lock table pawl.consumer, pawl.history, pawl.subscription in exclusive mode;
  update pawl.history h
  set xid = case
    when exists (select from pawl.consumer c where not pg_visible_in_snapshot(h.xid, c.cursor)) then pg_current_xact_id()
    else v_past
  end;
  update pawl.consumer c
  set cursor = pg_current_snapshot(), floor = 0, next_floor = 0, next_floor_xid = v_past, batch = null, batch_seq = 0, batch_end = null
  where c.cursor is not null;
  update pawl.subscription s set since = '3:3:';
  delete from pawl.removal;
end
$$;
-- +goose StatementEnd

revoke execute on function pawl.restored, pawl.page_end, pawl.place_after, pawl.look, pawl.event_of, pawl.seq_floor, pawl.add_consumer, pawl.lead, pawl.resign, pawl.renew, pawl.steps_since, pawl.read_steps,
  pawl.read_events, pawl.advance, pawl.outbox_status, pawl.forget from public;

-- +goose Down
drop function pawl.restored, pawl.forget, pawl.outbox_status, pawl.advance, pawl.read_events, pawl.read_steps, pawl.look,
  pawl.place_after, pawl.page_end, pawl.steps_since,
  pawl.renew, pawl.resign, pawl.lead, pawl.add_consumer, pawl.seq_floor, pawl.event_of;
drop view pawl.event;
drop table pawl.consumer;
drop index pawl.history_xid_idx, pawl.history_seq_idx;
