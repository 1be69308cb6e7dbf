-- Module lifecycle: what happens to workflows and instances beside single commands: registering and
-- retiring versions, moving live instances to another version, back-tests, and purging what is past its
-- time. These calls are rare or run in the background, while commands come in. They wait for a lock for a
-- short time only, and the caller tries them again.
--
-- Lock order: workflow, instance_migration, then the engine's.

-- instance_migration holds the latest run in each direction between two versions. At most one direction of
-- a tenant's workflow is under way, so that two migrations cannot undo each other's work for ever. Its rows
-- are kept: they say from which versions instances were moved, whose history names those versions.
create table pawl.instance_migration (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  from_version integer not null,
  to_version integer not null,
  started_at timestamptz not null,
  batch_at timestamptz not null,
  finished_at timestamptz,
  moved bigint not null,
  actor pawl.actor not null,
  constraint instance_migration_pkey primary key (tenant_id, workflow, from_version, to_version),
  constraint instance_migration_leads_elsewhere check (from_version <> to_version),
  constraint instance_migration_moved_is_not_negative check (moved >= 0)
);

comment on column pawl.instance_migration.batch_at is 'when the latest batch began; a run without one for a minute counts as broken off';
comment on column pawl.instance_migration.finished_at is 'when the latest run ended; null while it is under way';
comment on column pawl.instance_migration.moved is 'how many instances all runs have moved';

create unique index instance_migration_under_way_key on pawl.instance_migration (tenant_id, workflow)
  where finished_at is null;
