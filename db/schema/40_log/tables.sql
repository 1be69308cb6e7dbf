-- Module log: history as the outbox, read by consumers. Nothing is copied, marked or deleted for it:
-- a consumer has a cursor, and its backlog is what the cursor does not see.
--
-- A cursor is a snapshot, because rows appear in no other order. A transaction that begins early may
-- commit late, with a smaller xid and smaller sequence numbers than those of transactions that
-- committed before it. A batch is what the next snapshot sees and the cursor did not: steps of later
-- transactions, and steps of transactions that were in progress at the cursor. So a transaction that
-- stays open for hours neither blocks a consumer nor is skipped. PgQ works in the same way.
--
-- Within a batch, steps are in the order of seq. A step draws its seq under the instance's lock, and a
-- snapshot that sees a step also sees the instance's earlier steps. So an instance's steps are read in
-- their order. A batch must not be cut by xid: a step's transaction may have a smaller xid than that of
-- the step before it.
--
-- A batch may hold a whole day's steps, but each page of it must be cheap. So a consumer also has a low
-- watermark: steps of transactions that are later than its cursor have larger sequence numbers. A page
-- walks a bounded number of entries of the index on seq above it, whether they belong to the batch or
-- not. Steps of transactions that were in progress at the cursor may be below the low watermark; they
-- are found by their xid. See next_low_watermark. It requires a sequence without a cache.
--
-- One process at a time reads for a consumer: it holds a lease, and each lease has a term, the fencing
-- token. What an earlier leader writes after it has lost the lease is refused by its term.
--
-- Lock order: consumer, after all of the engine's.

create index history_seq_idx on pawl.history (seq);
create index history_xid_idx on pawl.history (xid, seq);

create table pawl.consumer (
  name text collate "C" not null,
  cursor pg_snapshot,
  low_watermark bigint not null,
  next_low_watermark bigint not null,
  next_low_watermark_xid xid8 not null,
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
-- The row is updated some times a second, however much is read. While a long transaction holds back
-- vacuum, the dead versions find room in the row's own page.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on column pawl.consumer.cursor is 'what it sees has been read; null until a process leads, if the consumer begins then';
comment on column pawl.consumer.low_watermark is 'steps of transactions that are later than the cursor have a larger seq';
comment on column pawl.consumer.next_low_watermark is 'the low watermark of a cursor that sees next_low_watermark_xid';
comment on column pawl.consumer.batch is 'the next cursor, while a part of its batch has been read';
comment on column pawl.consumer.batch_seq is 'the batch has been read up to this seq';
comment on column pawl.consumer.batch_end is 'no step of the batch has a larger seq';
comment on column pawl.consumer.term is 'the fencing token: counts the leaders';
comment on column pawl.consumer.relayed is 'how many steps were relayed, repeats included';

-- message is a step as the world is told of it: the row of history, and the instance's keys.
create view pawl.message as
select h.*, i.business_key, i.correlation_id as instance_correlation_id, i.created_at, s.events as actions
from pawl.history h
left join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id
left join pawl.workflow_state s
  on s.workflow = h.workflow and s.workflow_version = h.workflow_version and s.state = h.to_state;

-- purged_history holds what streams must know of purged steps: per tenant and workflow, the largest xid
-- of a step that was purged. A stream whose cursor sees all transactions up to it has lost none. Each
-- purging transaction has a row of its own, so that none waits for another, and deletes the rows that
-- its own row makes superfluous. See steps_lost.
create table pawl_private.purged_history (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  purged_by xid8 not null,
  xid xid8 not null,
  constraint purged_history_pkey primary key (tenant_id, workflow, purged_by)
);
