-- Module finding: what is wrong with instances. The rows are written by modules insight, watch and heal.
--
-- A *finding* says that an instance is stuck, or that a task or a delivery of it came to a bad end. It is opened by a look
-- (module watch) or by the healer (module heal), and closed by what ends it:
--
--   orphaned        nothing will ever move the instance                        the next step
--   slow            it has been in its state for too long                      the next step; a longer stuck_after
--   task-dead       a task ended and made no step, and the state was not left  the next step; an operator's act on the task
--   task-late       a task was done, or may have been, after its state was     the next step; an operator's act on the task
--                   left, and no step says so
--   delivery-dead   a delivery is a dead letter                                its replay or its purge
--   timer-failing   the step of a deadline cannot be made                      the next step; a try that finds no reason any more
--   connection-
--     missing       a task waits for a connection that there is not            the next step; the connection is made; the task ends
--   heal-failed     the healer has made its attempts, and the instance is      the next step
--                   still stuck
--   healing-paused  so many instances of a workflow are stuck that none        few are stuck
--                   is healed: it names no instance
--
-- A purge of the instance closes all of its findings. An instance has one open finding of a kind for each visit of a state.
-- A closed finding is kept for 30 days, and until those who are told of it have been told.
--
-- That a finding was opened is told to those who ask for it, as steps are. So it has a number of the sequence that
-- numbers steps, and the id of its transaction, and the sequencer gives it a position in the log: see module log.
--
-- Lock order: finding, stuck_place, as residence: after all of the engine's.

create table pawl.finding (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  seq bigint not null default nextval('pawl.history_seq_seq'::text),
  xid xid8 not null default pg_current_xact_id(),
  kind text not null,
  instance_id uuid,
  workflow text collate "C" not null,
  state text collate "C",
  visit_version bigint,
  since timestamptz,
  cause_id uuid,
  opened_at timestamptz not null,
  closed_at timestamptz,
  detail pawl.object not null,
  heal_at timestamptz default 'epoch',
  constraint finding_pkey primary key (tenant_id, id),
  constraint finding_kind_is_known check (
    kind in (
      'orphaned', 'slow', 'timer-failing', 'connection-missing', 'task-late', 'task-dead', 'delivery-dead', 'heal-failed', 'healing-paused')),
  constraint finding_names_an_instance_unless_healing_is_paused check (
    num_nulls(instance_id, state, visit_version, since) = case kind when 'healing-paused' then 4 else 0 end),
  constraint finding_visit_version_is_positive check (visit_version >= 1),
  constraint finding_of_a_task_or_a_delivery_names_it check (
    (kind in ('connection-missing', 'task-late', 'task-dead', 'delivery-dead')) = (cause_id is not null)),
  constraint finding_closes_after_it_opens check (closed_at >= opened_at)
)
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.finding.seq is 'as in pawl.history: steps and findings share one sequence';
comment on column pawl.finding.state is 'in which the instance was when the finding was opened';
comment on column pawl.finding.visit_version is
  'the step that began the visit; of task-late the one that started the task, of delivery-dead the one that the delivery tells of';
comment on column pawl.finding.since is 'since when the instance was in the state';
comment on column pawl.finding.cause_id is 'the task or the delivery';
comment on column pawl.finding.heal_at is
  'of what says that the instance is stuck: when the healer looks at it; null if it is not the healer''s';
comment on column pawl.finding.detail is 'what else is known: never a payload, a context or a URL';

create unique index finding_visit_key on pawl.finding (tenant_id, instance_id, kind, visit_version)
  where closed_at is null;
create unique index finding_paused_key on pawl.finding (tenant_id, workflow) where closed_at is null and kind = 'healing-paused';
-- What the healer looks at, in the order in which it does.
create index finding_heal_idx on pawl.finding (tenant_id, workflow, heal_at)
  where closed_at is null and heal_at is not null and kind in ('orphaned', 'slow', 'task-dead');
-- The instances of a workflow that are stuck, to count them.
create index finding_stuck_idx on pawl.finding (tenant_id, workflow, instance_id)
  where closed_at is null and kind in ('orphaned', 'slow', 'task-dead');
-- Lists, newest first.
create index finding_open_idx on pawl.finding (tenant_id, id) where closed_at is null;
create index finding_kind_idx on pawl.finding (tenant_id, kind, id);
create index finding_state_idx on pawl.finding (tenant_id, workflow, state, id);
create index finding_instance_idx on pawl.finding (tenant_id, instance_id, id);
-- The slow instances of a state, for a longer stuck_after.
create index finding_slow_idx on pawl.finding (tenant_id, workflow, state, since) where closed_at is null and kind = 'slow';
-- Those that a task, a delivery or a timer is looked at for.
create index finding_cause_idx on pawl.finding (tenant_id, id) where closed_at is null and (cause_id is not null or kind = 'timer-failing');
-- The count by kind.
create index finding_count_idx on pawl.finding (kind) where closed_at is null;
create index finding_closed_at_idx on pawl.finding (closed_at, id) where closed_at is not null;
-- Those that get a position.
create index finding_xid_idx on pawl.finding (xid);

-- stuck_place is a state in which a tenant has, or had, instances. A look begins where the last one ended, so that it
-- reads the instances that have become due since. See module watch.
create table pawl_private.stuck_place (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  state text collate "C" not null,
  slow_since timestamptz not null,
  slow_id uuid not null default '00000000-0000-0000-0000-000000000000',
  orphaned_since timestamptz not null,
  orphaned_id uuid not null default '00000000-0000-0000-0000-000000000000',
  version integer not null default 0,
  strands boolean not null default false,
  declared boolean not null default false,
  threshold interval,
  measured_at timestamptz not null default '-infinity',
  next_at timestamptz not null default '-infinity',
  constraint stuck_place_pkey primary key (tenant_id, workflow, state)
)
-- As many updates as looks.
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl_private.stuck_place.slow_since is
  'with slow_id: the instances up to this since, and this id, were looked at for slowness; orphaned_since likewise';
comment on column pawl_private.stuck_place.version is 'of the workflow, the latest when the next columns were read';
comment on column pawl_private.stuck_place.strands is 'whether the state strands instances in any version';
comment on column pawl_private.stuck_place.threshold is 'after which an instance is slow; null for never';
comment on column pawl_private.stuck_place.declared is 'whether the threshold is a stuck_after';
comment on column pawl_private.stuck_place.measured_at is 'when the threshold was read';
comment on column pawl_private.stuck_place.next_at is 'when the next look is due; infinity while nobody is there';

create index stuck_place_next_at_idx on pawl_private.stuck_place (next_at);

-- healing is what the healer has tried on an instance since the last step that was not its own. See module heal. The row stays
-- until the instance is purged.
create table pawl_private.healing (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  attempts integer not null,
  version pawl.version not null,
  tried_at timestamptz not null,
  outcome text not null,
  constraint healing_pkey primary key (tenant_id, instance_id),
  constraint healing_attempts_are_counted check (attempts >= 1)
)
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl_private.healing.version is
  'the instance''s after the last attempt: a visit that began later was begun by a step that was not the healer''s';
comment on column pawl_private.healing.outcome is 'of the last attempt: applied, or why it was refused';
