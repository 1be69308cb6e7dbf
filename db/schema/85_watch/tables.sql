-- Module watch: the looks that open findings, and close some.
--
-- One process at a time looks, every few seconds: its transaction holds the row of watch. A look holds the row of the
-- consumer insight as well. So the fold waits for it, and it reads of each instance the visit that the fold noted last. A
-- purge does not wait: its instances are skipped.
--
-- A look never reads all instances. For each state of a tenant (stuck_place) it knows up to which entry time it has
-- looked, and reads those instances that have become due since, in the order of that time. The fold takes this place back
-- when it notes an instance that came earlier. Tasks, deliveries and timers are read from indexes that hold those that came to a bad end or
-- fail, a batch with each look: as many of each tenant, so that one that has many does not hold up the others. The next look goes
-- on behind them.
--
-- *Orphaned* is a matter of structure: whether an event could be fired at all, and not whether its guard would hold. The
-- definition alone says that of a state (workflow_state.strands), and the tasks say the rest.
--
-- *Slow* is a matter of time: longer than the state's stuck_after, or else three times as long as 99 of 100 visits of the
-- tenant's own instances lasted in four weeks, if there were 30, and at least 10 s. Nobody else's times count, since
-- they could be read off the findings.
--
-- Lock order: watch, consumer, stuck_place, residence, finding. No lock of the engine is held or waited for.

-- watch has one row: whose turn it is, and behind what the next look and the healer go on.
create table pawl_private.watch (
  looked_at timestamptz not null default '-infinity',
  task_tenant text collate "C" not null default '',
  delivery_tenant text collate "C" not null default '',
  cause_tenant text collate "C" not null default '',
  timer_tenant text collate "C" not null default '',
  lane_tenant text collate "C" not null default '',
  healed_at timestamptz not null default '-infinity',
  heal_tenant text collate "C" not null default '',
  heal_workflow text collate "C" not null default '',
  heal_cut boolean not null default false,
  purged_at timestamptz not null default '-infinity',
  purged_id uuid not null default '00000000-0000-0000-0000-000000000000'
)
-- As pawl.log_head.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on column pawl_private.watch.task_tenant is 'behind which tenant the walk over tasks goes on; empty: with the first one';
comment on column pawl_private.watch.heal_workflow is 'with heal_tenant: behind which the healer goes on; empty: with the first one';
comment on column pawl_private.watch.heal_cut is 'whether this round of the healer has left something that is due';

create unique index watch_has_one_row_idx on pawl_private.watch ((true));

insert into pawl_private.watch default values;

comment on column pawl_private.watch.purged_at is 'with purged_id: the purge has looked at the findings that were closed up to then';

-- watch_place is behind what a walk goes on, of the tenants that it has not seen all of: the id of a task, delivery or finding, or
-- the instance of a timer.
create table pawl_private.watch_place (
  walk text collate "C" not null,
  tenant_id text collate "C" not null,
  id uuid not null,
  constraint watch_place_pkey primary key (walk, tenant_id),
  constraint watch_place_walk_is_known check (walk in ('task', 'delivery', 'cause', 'timer'))
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
