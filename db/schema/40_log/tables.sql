-- Module log: committed steps and opened findings, each with a position, and the consumers that read them by it.
--
-- History has every step, but no order in which it could be read: a transaction that begins early may commit
-- late, with smaller numbers than those of transactions that committed before it. So one process at a time, the
-- sequencer, gives each committed step a position: a row of pawl.log. Everything else reads the log by position.
-- A reader's place is
-- a number, and a page is a range of an index.
--
-- Only the sequencer's place is a snapshot. A tick takes a snapshot and numbers the steps that it sees and the last
-- tick's did not: steps of later transactions, and those of transactions that were in progress then. So a
-- transaction that stays open for hours neither stops the log nor is skipped.
--
-- Order: within a tick, steps are numbered in the order of seq. A step draws its seq under the instance's lock,
-- and a snapshot that sees a step also sees the instance's earlier steps. So the positions of an instance's
-- steps rise with their versions. Steps must be neither ordered nor cut off by xid: a transaction may have a
-- smaller xid than one that it waited for.
--
-- At least once: a step is in some tick, since the snapshots of ticks see more and more, and the snapshot is
-- stored by the transaction that inserts the positions. A consumer's position moves after the step was
-- published.
--
-- What a crash leaves: a position that anybody has seen is durable. Its transaction was flushed, and replicated
-- where the cluster says so, before it became visible; and by the order of the WAL so was every step that it
-- numbers. This holds for the snapshot, too. A transaction id that the snapshot takes for past must not be given
-- out again after a crash. So a tick takes its snapshot before its own transaction has an id: then that id is
-- larger than all that the snapshot takes for past, and the commit makes it durable. A crash before the commit
-- leaves the log as the last tick left it.
--
-- Epochs: a server that is promoted, or restored to an earlier time, may lack the end of the log that clients
-- have seen, and gives the same positions to other steps. It begins an epoch. A place in the log is an epoch and
-- a position; see log_place. The steps of a database that was restored from a dump, or copied, have
-- transaction ids of another server. The epoch notes the largest seq of these steps, and their transaction ids are
-- not compared with snapshots any more. Those that have no position get a new seq and a new transaction id, as if
-- they were committed now.
--
-- The audit has positions of its own. A tick numbers its new rows too, by the same snapshots, in the order of their seq.
-- A row that has a position gets no second one, so that it does not matter which server wrote its transaction id: on
-- another server, all rows without a position get one when the epoch begins.
--
-- Findings have positions among those of the steps. A tick numbers the findings that were opened since the last one, by
-- the same snapshots, in the order of the one sequence that steps and findings share. So a finding follows the step that
-- the look saw: that one had a position before. Like a row of the audit, a finding that has a position gets no second one.
-- Most readers join the log to history, and so pass over findings.
--
-- One process at a time is the sequencer, and one reads for a consumer: it holds a lease, and each lease has a
-- leader and a term. What an earlier leader writes after it has lost the lease is refused. The leader's name is
-- asked too, since a failover may lose a term, and give it out again.
--
-- Lock order: log_head, consumer, after all of the engine's.

create index history_xid_idx on pawl.history (xid);

create table pawl.log (
  position bigint not null,
  tenant_id pawl.tenant_id not null,
  instance_id uuid,
  version pawl.version,
  finding_id uuid,
  constraint log_pkey primary key (position),
  constraint log_row_is_of_a_step_or_a_finding
    check ((instance_id is null) = (version is null) and (instance_id is null) = (finding_id is not null))
)
-- As pawl.history.
with (
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000, autovacuum_freeze_min_age = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000
);

comment on table pawl.log is
  'rows of instances that were purged stay until the sequencer sweeps them; the row of a finding is deleted with the finding';

create unique index log_finding_key on pawl.log (tenant_id, finding_id) where finding_id is not null;

-- audit_log has a position for each row of the audit, for consumers that read it. epoch is the one in which the row got it.
create table pawl.audit_log (
  position bigint not null,
  epoch bigint not null,
  tenant_id pawl.tenant_id not null,
  seq bigint not null,
  constraint audit_log_pkey primary key (position),
  constraint audit_log_row_has_one_position_key unique (tenant_id, seq)
);

-- log_head is the end of the log, and the sequencer's lease. It has one row.
create table pawl.log_head (
  snapshot pg_snapshot not null,
  position bigint not null,
  audit_position bigint not null,
  epoch bigint not null,
  first_seq bigint not null,
  epoch_snapshot pg_snapshot,
  term bigint not null,
  leader text not null,
  lease_until timestamptz not null,
  constraint log_head_position_is_a_count check (position >= 0),
  constraint log_head_audit_position_is_a_count check (audit_position >= 0),
  constraint log_head_epoch_is_a_count check (epoch >= 0),
  constraint log_head_term_is_a_count check (term >= 0)
)
-- The row is updated with each tick that finds steps. While a long transaction holds back vacuum, the dead
-- versions find room in the row's own page.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

create unique index log_head_has_one_row_idx on pawl.log_head ((true));

comment on column pawl.log_head.snapshot is 'the steps and the rows of the audit that it sees have positions';
comment on column pawl.log_head.position is 'the position of the last step or finding';
comment on column pawl.log_head.audit_position is 'the position of the last row of the audit';
comment on column pawl.log_head.epoch is '0 before the first sequencer';
comment on column pawl.log_head.first_seq is 'steps up to this seq have transaction ids of another server, which are not compared with snapshots';
comment on column pawl.log_head.epoch_snapshot is 'snapshot of the present epoch, as in log_epoch';
comment on column pawl.log_head.term is 'counts the leaders';

insert into pawl.log_head (snapshot, position, audit_position, epoch, first_seq, term, leader, lease_until)
values ('1:1:', 0, 0, 0, 0, 0, '', 'epoch');

-- log_epoch has a row for each server and timeline that the log was written on.
create table pawl.log_epoch (
  epoch bigint not null,
  system_identifier bigint not null,
  database_id oid not null,
  table_id oid not null,
  timeline bigint not null,
  first_position bigint not null,
  first_seq bigint not null,
  snapshot pg_snapshot,
  began_at timestamptz not null,
  constraint log_epoch_pkey primary key (epoch),
  constraint log_epoch_first_position_is_a_count check (first_position >= 0)
);

comment on column pawl.log_epoch.database_id is 'with table_id: tells a copy on the same server from the original';
comment on column pawl.log_epoch.table_id is 'of pawl.log_epoch itself';
comment on column pawl.log_epoch.first_position is 'the last position that the epoch before has, too';
comment on column pawl.log_epoch.first_seq is 'as in log_head: a larger one begins with each server';
comment on column pawl.log_epoch.snapshot is 'of a new timeline: the steps that it sees belong to the epochs before';

-- log_mark notes from time to time which steps had positions up to which one.
create table pawl_private.log_mark (
  position bigint not null,
  snapshot pg_snapshot not null,
  marked_at timestamptz not null,
  constraint log_mark_pkey primary key (position)
);

-- purged_instance names the instances whose rows in the log are to be swept.
create table pawl_private.purged_instance (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  workflow text collate "C" not null,
  xid xid8 not null default pg_current_xact_id(),
  constraint purged_instance_pkey primary key (tenant_id, instance_id)
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- log_floor has the largest position of a tenant's workflow that was swept.
create table pawl_private.log_floor (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  position bigint not null,
  constraint log_floor_pkey primary key (tenant_id, workflow)
);

create table pawl.consumer (
  name text collate "C" not null,
  audit boolean not null,
  position bigint not null,
  since pg_snapshot not null,
  later_seq bigint,
  term bigint not null,
  leader text not null,
  lease_until timestamptz not null,
  relayed bigint not null,
  advanced_at timestamptz not null,
  constraint consumer_pkey primary key (name),
  constraint consumer_name_is_a_key check (length(name) between 1 and 255),
  constraint consumer_position_is_a_count check (position >= 0),
  constraint consumer_term_is_a_count check (term >= 0)
)
-- As pawl.log_head.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on column pawl.consumer.audit is 'whether it reads the audit, and not the steps';
comment on column pawl.consumer.position is 'what has been read';
comment on column pawl.consumer.since is 'steps that it sees are not read; see pawl_private.step_follows';
comment on column pawl.consumer.later_seq is 'first_seq of the next server that the database came to; null if there is none';
comment on column pawl.consumer.term is 'counts the leaders';
comment on column pawl.consumer.relayed is 'how many steps were relayed, repeats included';

-- message is a step as the world is told of it: the row of history, its epoch and position (null where it was
-- not read from the log), and the instance's keys. It is a shape, as pawl.outcome_row is, and never holds rows.
create view pawl.message as
select h.*, 0::bigint as epoch, null::bigint as position, i.business_key, i.correlation_id as instance_correlation_id, i.created_at,
  s.events as actions
from pawl.history h
left join pawl.instance i on false
left join pawl.workflow_state s on false
where false;

-- finding_message is a finding as the world is told of it, with its epoch and position. It is a shape, and never holds rows.
create view pawl.finding_message as
select f.tenant_id, f.id, f.kind, o.instance_id, f.workflow, o.state, o.visit_version, f.since, f.opened_at, f.closed_at, f.detail,
  0::bigint as epoch, 0::bigint as position
from pawl.finding f
left join pawl.finding o on false
where false;

-- audit_message is a row of the audit as a consumer is told of it. It is a shape, and never holds rows.
create view pawl.audit_message as
select a.*, 0::bigint as epoch, 0::bigint as position
from pawl.audit a
where false;
