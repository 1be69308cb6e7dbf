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
-- One process at a time relays for a consumer: it has a lease, and each lease a term. What
-- an earlier leader writes after it has lost the lease is refused by its term.
--
-- Lock order: consumer, after everything of the engine's.

-- +goose Up

create index history_xid_idx on pawl.history (xid);

create table pawl.consumer (
  name text collate "C" not null,
  cursor pg_snapshot not null,
  batch pg_snapshot,
  batch_seq bigint not null,
  term bigint not null,
  leader text not null,
  lease_until timestamptz not null,
  relayed bigint not null,
  advanced_at timestamptz not null,
  constraint consumer_pkey primary key (name),
  constraint consumer_name_is_a_key check (length(name) between 1 and 255),
  constraint consumer_term_is_positive check (term >= 1),
  constraint consumer_batch_has_a_place check (batch is not null or batch_seq = 0)
)
-- A row that is written some times a second, however much is relayed: what a transaction that
-- stays open keeps of it stays in its page.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on column pawl.consumer.cursor is 'what it sees is relayed';
comment on column pawl.consumer.batch is 'where the cursor goes next, if part of that is relayed';
comment on column pawl.consumer.batch_seq is 'up to where the batch is relayed';
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

-- lead makes p_leader the leader of a consumer, if it has none, or the same one has lost
-- count. A consumer that is not there begins now, or with the first step if p_from_start.
-- Returns: the term, or null if another leads
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.lead(p_consumer text, p_leader text, p_lease interval, p_from_start boolean default false)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_term bigint;
begin
  insert into pawl.consumer as c (
    name, cursor, batch_seq, term, leader, lease_until, relayed, advanced_at)
  values (
    p_consumer, case when p_from_start then '1:1:'::pg_snapshot else pg_current_snapshot() end, 0, 1, p_leader,
    v_now + p_lease, 0, v_now)
  on conflict on constraint consumer_pkey do update
  set term = c.term + 1, leader = excluded.leader, lease_until = excluded.lease_until
  where c.lease_until <= v_now or c.leader = excluded.leader
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

-- read_steps reads the steps that p_batch sees and p_cursor does not, in the order of seq,
-- from after p_after on. p_tenant: only this one's; null for all.
-- Returns: up to p_limit rows of history
-- +goose StatementBegin
create function pawl.read_steps(
  p_cursor pg_snapshot, p_batch pg_snapshot, p_after bigint, p_limit integer, p_tenant text default null
) returns setof pawl.history
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  return query
  select h.*
  from pawl.steps_since(p_cursor) h
  where h.xid < pg_snapshot_xmax(p_batch)
    and pg_visible_in_snapshot(h.xid, p_batch)
    and h.seq > p_after
    and (p_tenant is null or h.tenant_id = p_tenant)
  order by h.seq
  limit p_limit;
end
$$;
-- +goose StatementEnd

-- read_events is read_steps with what else the instances show.
-- Returns: up to p_limit events
-- +goose StatementBegin
create function pawl.read_events(p_cursor pg_snapshot, p_batch pg_snapshot, p_after bigint, p_limit integer)
returns setof pawl.event
language plpgsql stable security definer -- Its plan is kept, which in SQL it would not be.
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
  return query
  select e.*
  from pawl.read_steps(p_cursor, p_batch, p_after, p_limit) h
  cross join lateral pawl.event_of(h) e
  order by h.seq;
end
$$;
-- +goose StatementEnd

-- advance moves a consumer's cursor to p_batch, or notes that p_batch is relayed up to
-- p_seq, if that is not null. The lease is renewed with it.
-- The commit need not reach the disk: what a crash takes back of it is relayed again.
-- Returns: whether p_term still leads; if not, nothing is changed
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.advance(
  p_consumer text, p_term bigint, p_batch pg_snapshot, p_seq bigint, p_relayed bigint, p_lease interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set cursor = case when p_seq is null then p_batch else c.cursor end,
    batch = case when p_seq is null then null else p_batch end,
    batch_seq = coalesce(p_seq, 0),
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

revoke execute on function pawl.event_of, pawl.lead, pawl.resign, pawl.renew, pawl.steps_since, pawl.read_steps,
  pawl.read_events, pawl.advance, pawl.outbox_status, pawl.forget from public;

-- +goose Down
drop function pawl.forget, pawl.outbox_status, pawl.advance, pawl.read_events, pawl.read_steps, pawl.steps_since,
  pawl.renew, pawl.resign, pawl.lead, pawl.event_of;
drop view pawl.event;
drop table pawl.consumer;
drop index pawl.history_xid_idx;
