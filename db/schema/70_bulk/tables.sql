-- Module bulk: one action on many instances, in the background. A *bulk* is the request and its progress. It has an
-- *item* for each instance that it has dealt with.
--
-- bulk_step does the next few instances of one bulk, in one transaction: it locks the bulk's row, finds the next
-- instances, locks those, checks the filter once more, carries the action out as a single command would, writes the
-- items, and moves the bulk's position on. So an instance is dealt with exactly once whenever a process or the server
-- dies, and no idempotency key is needed. A process that has lost the row's lock has lost its transaction with it.
-- Several processes may work at a time, on different bulks.
--
-- The instances are found in two passes:
--
--   * The *walk* goes through the instances that the filter chooses, in the order of their ids, up to the ids of the
--     time of the submission. It reads a bounded number of index entries in a call, and never counts.
--   * Then the pass over *open* items deals with those without an outcome, which are the ids of a bulk that names
--     instances, and the instances that another transaction had locked, and with those that are to be tried again.
--
-- Tenants take turns, and of a tenant its bulks.
--
-- The status: queued, then running, and at last done or stopped, which is final. A bulk that is queued or running may
-- be paused and resumed. One that is done may be retried, and is queued again.
--
-- Lock order: bulk, before all of the engine's; bulk_item, after them.

create table pawl.bulk (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  action text not null,
  filter jsonb,
  choice jsonb,
  workflows text[],
  params pawl.object not null,
  reason pawl.reason,
  rate integer,
  dry_run boolean not null,
  status text not null,
  key pawl.key not null,
  fingerprint pawl.sha256 not null,
  actor text not null,
  verified boolean not null,
  correlation_id pawl.key,
  traceparent text,
  caller jsonb,
  created_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz,
  until_id uuid not null,
  position uuid not null,
  walked boolean not null,
  open_from uuid not null default '00000000-0000-0000-0000-000000000000',
  retry_at timestamptz not null default '-infinity',
  batch integer not null default 100,
  checks jsonb not null default '{}',
  turn_at timestamptz not null,
  next_at timestamptz not null,
  estimate bigint not null,
  open bigint not null,
  applied bigint not null default 0,
  refused bigint not null default 0,
  skipped bigint not null default 0,
  failed bigint not null default 0,
  pace_from timestamptz,
  pace_count bigint not null default 0,
  pace float8,
  constraint bulk_pkey primary key (tenant_id, id),
  constraint bulk_key_key unique (tenant_id, key),
  constraint bulk_action_is_known
    check (action in ('fire', 'override', 'cancel', 'retry', 'migrate', 'replay', 'archive')),
  constraint bulk_override_has_a_reason check (action not in ('override', 'cancel') or reason ~ '[^[:space:]]' is true),
  constraint bulk_status_is_known check (status in ('queued', 'running', 'paused', 'stopped', 'done')),
  constraint bulk_filter_is_chosen_by check (filter is null or choice is not null),
  constraint bulk_rate_is_positive check (rate > 0),
  constraint bulk_batch_is_positive check (batch > 0),
  constraint bulk_finishes_at_its_end check ((finished_at is not null) = (status in ('stopped', 'done')))
)
-- Each step updates its bulk. No index has what a step changes, but for the last one.
with (fillfactor = 50);

comment on column pawl.bulk.filter is 'what the caller asked for; null if it named instances';
comment on column pawl.bulk.choice is 'the filter as a pawl_private.bulk_filter: its names are those of the time of the submission. Without a filter, what bounds the submitter';
comment on column pawl.bulk.workflows is 'those that its instances must have; null for any';
comment on column pawl.bulk.until_id is 'the walk ends before this id: later instances are never looked at';
comment on column pawl.bulk.position is 'how far the walk has come';
comment on column pawl.bulk.open_from is 'how far the pass over open items has come';
comment on column pawl.bulk.retry_at is 'items that were refused or failed before this time are open again';
comment on column pawl.bulk.batch is 'how many instances the next step takes: fewer after a step that took long';
comment on column pawl.bulk.checks is 'what was checked for the next step, by its checksum, see pawl_private.bulk_unchecked: the faults, or null if there are none. The checks of payloads hold for all steps';
comment on column pawl.bulk.turn_at is 'when it last had its turn';
comment on column pawl.bulk.next_at is 'no step before this time: the rate, or a wait for locked instances';
comment on column pawl.bulk.estimate is 'how many instances the planner expected at the submission; exact for ids, and up to 1,000';
comment on column pawl.bulk.open is 'how many items have no outcome yet';
comment on column pawl.bulk.pace is 'items a second, as measured last';

create index bulk_live_idx on pawl.bulk (tenant_id) where status in ('queued', 'running');
create index bulk_finished_at_idx on pawl.bulk (finished_at) where finished_at is not null;

create table pawl.bulk_item (
  tenant_id pawl.tenant_id not null,
  bulk_id uuid not null,
  instance_id uuid not null,
  outcome text,
  problem pawl.object,
  at timestamptz,
  tries integer not null default 0,
  constraint bulk_item_pkey primary key (tenant_id, bulk_id, instance_id),
  constraint bulk_item_bulk_fkey foreign key (tenant_id, bulk_id) references pawl.bulk (tenant_id, id) on delete cascade,
  constraint bulk_item_outcome_is_known check (outcome in ('applied', 'refused', 'skipped', 'failed')),
  constraint bulk_item_outcome_has_a_time check ((outcome is null) = (at is null)),
  constraint bulk_item_says_why_not check ((problem is null) = (coalesce(outcome, 'applied') = 'applied'))
);

comment on column pawl.bulk_item.outcome is 'null while it is open';
comment on column pawl.bulk_item.problem is 'why it was not applied: an object with code and detail, as the problems of the API';
comment on column pawl.bulk_item.tries is 'how often another transaction had the instance locked';

-- The items that may be open.
create index bulk_item_open_idx on pawl.bulk_item (tenant_id, bulk_id, instance_id)
  where outcome is null or outcome in ('refused', 'failed');
create index bulk_item_outcome_idx on pawl.bulk_item (tenant_id, bulk_id, outcome, instance_id);

-- bulk_filter chooses instances, as the filter of a list does. A null member chooses all. range_statuses has the
-- status of each index range to walk, and range_workflows is null or has the workflow of each. version: not of this
-- version of the workflow already.
create type pawl_private.bulk_filter as (
  range_statuses text[],
  range_workflows text[],
  statuses text[],
  workflows text[],
  states text[],
  business_key text,
  correlation_id text,
  created_after timestamptz,
  created_before timestamptz,
  stuck_for interval,
  failing boolean,
  from_version integer,
  not_version integer
);

-- bulk_result is what has become of one instance.
create type pawl_private.bulk_result as (
  instance_id uuid,
  outcome text,
  problem jsonb
);

-- bulk_report is a bulk as its submitter sees it. done: how many instances it has dealt with. per_second: how fast it is
-- now, or was on the whole. eta: when it ends, by the estimate and this rate, as of its last step.
create view pawl.bulk_report as
select
  b.tenant_id, b.id, b.action, b.filter, b.params, b.workflows, b.reason, b.rate, b.dry_run, b.status, b.key, b.actor,
  b.created_at, b.started_at, b.finished_at, b.estimate, b.open, b.applied, b.refused, b.skipped, b.failed, p.per_second,
  (case
    when b.status = 'running' and p.per_second > 0
      then b.turn_at + interval '1 second' * (greatest(b.estimate - p.done, b.open) / p.per_second)
  end)::timestamptz as eta
from pawl.bulk b
cross join lateral (
  select d.done, (case
    when b.pace is not null and b.finished_at is null then b.pace
    else d.done / nullif(extract(epoch from coalesce(b.finished_at, b.turn_at) - b.started_at)::float8, 0)
  end)::float8 as per_second
  from (select (b.applied + b.refused + b.skipped + b.failed)::bigint as done) d
) p;
