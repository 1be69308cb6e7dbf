-- The tables of pawl. Their constraints are the first line of defence: what they
-- refuse cannot be stored, whoever writes. The functions that write them are in
-- 00002_engine.sql; nothing else should.
--
-- Every table that belongs to a tenant leads its keys with tenant_id, so that a
-- distributed Postgres can later keep a tenant's rows together. Workflows belong to
-- the deployment, not to a tenant.

-- +goose Up
create schema pawl;

comment on schema pawl is 'finite-state-machine service: definitions, instances, history';

-- Names and keys are compared by their bytes, whatever the database's locale: that is
-- faster, and a new version of the locale breaks no index.
--
-- The domains hold what is true of a column by itself. Postgres parses a table's CHECKs
-- anew for each statement that writes it, a domain's once for each session; for a call
-- of one command that made a sixth of its time. What is left as CHECK joins columns.
create domain pawl.tenant_id as text collate "C"
  constraint tenant_id_has_1_to_63_characters check (length(value) between 1 and 63);
create domain pawl.key as text collate "C"
  constraint key_has_1_to_255_characters check (length(value) between 1 and 255);
create domain pawl.reason as text
  constraint reason_has_1_to_1000_characters check (length(value) between 1 and 1000);
create domain pawl.version as bigint
  constraint version_is_positive check (value >= 1);
create domain pawl.status as text
  constraint status_is_known check (value in ('active', 'completed', 'failed', 'cancelled', 'expired'));
create domain pawl.kind as text
  constraint kind_is_known
    check (value in ('created', 'transition', 'timeout', 'expired', 'forced', 'migrated'));
create domain pawl.decision as text
  constraint decision_is_recorded check (value in ('applied', 'transition-not-allowed', 'guard-rejected'));
create domain pawl.object as jsonb
  constraint object_is_a_json_object check (jsonb_typeof(value) = 'object');
create domain pawl.sha256 as bytea
  constraint sha256_has_32_bytes check (octet_length(value) = 32);

comment on domain pawl.tenant_id is 'the namespace of keys and instances';
comment on domain pawl.key is 'what a caller names things by';
comment on domain pawl.reason is 'why, in an actor''s words';
comment on domain pawl.object is 'a JSON object';
comment on domain pawl.sha256 is 'a digest';
comment on domain pawl.version is 'counts the steps of an instance';
comment on domain pawl.status is 'active, or the outcome of a final state';
comment on domain pawl.kind is 'what made a step';
comment on domain pawl.decision is 'what is recorded for an idempotency key';

-- setting is one row: what every replica and every SQL caller must agree on.
-- `pawl migrate set` changes it; nothing caches it.
create table pawl.setting (
  only_row boolean not null default true,
  idempotency_ttl interval not null default interval '24 hours',
  idempotency_ttl_slides boolean not null default false,
  context_limit integer not null default 65536,
  payload_limit integer not null default 65536,
  definition_limit integer not null default 1048576,
  state_limit integer not null default 500,
  cursor_secret bytea not null default sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
  constraint setting_pkey primary key (only_row),
  constraint setting_is_one_row check (only_row),
  constraint setting_idempotency_ttl_is_positive check (idempotency_ttl > interval '0'),
  constraint setting_limits_are_positive
    check (context_limit > 0 and payload_limit > 0 and definition_limit > 0 and state_limit > 0)
);

comment on column pawl.setting.idempotency_ttl is 'how long an idempotency key is remembered';
comment on column pawl.setting.idempotency_ttl_slides is 'whether a replay starts the time again';
comment on column pawl.setting.context_limit is 'bytes of a context as jsonb text';
comment on column pawl.setting.payload_limit is 'bytes of a payload as jsonb text';
comment on column pawl.setting.definition_limit is 'bytes of a definition as jsonb text';
comment on column pawl.setting.cursor_secret is 'signs list cursors, so that any replica can check them';

insert into pawl.setting default values;

-- workflow holds one immutable row per version of a definition.
create table pawl.workflow (
  name text collate "C" not null,
  version integer not null,
  definition pawl.object not null,
  checksum text not null,
  initial text not null,
  initial_moves boolean not null,
  ttl interval,
  ttl_target text,
  retention interval,
  context_schema jsonb,
  context_schema_checksum text,
  created_at timestamptz not null,
  created_by text not null,
  constraint workflow_pkey primary key (name, version),
  constraint workflow_name_is_a_slug check (name ~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$'),
  -- The name becomes part of a constraint's name, of which Postgres keeps 63 bytes;
  -- there an underscore is written twice, which keeps 'a-b' and 'a_b' apart.
  constraint workflow_name_fits_a_constraint_name check (length(replace(name, '_', '__')) <= 42),
  constraint workflow_version_is_positive check (version >= 1),
  constraint workflow_ttl_is_positive check (ttl > interval '0'),
  constraint workflow_ttl_has_a_target check ((ttl is null) = (ttl_target is null)),
  constraint workflow_retention_is_positive check (retention > interval '0'),
  constraint workflow_context_schema_has_a_checksum
    check ((context_schema is null) = (context_schema_checksum is null))
);

comment on column pawl.workflow.initial is 'the atomic state that an instance starts in';
comment on column pawl.workflow.initial_moves is 'whether entering it assigns, or eventless transitions may lead on';
comment on column pawl.workflow.retention is 'how long final instances are kept, of all versions if this is the latest; null for ever';

-- workflow_state holds the atomic states: those that instances are in. A state within
-- others is a path with dots, and accepts what they accept.
create table pawl.workflow_state (
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  events text[] not null,
  timeouts interval[] not null,
  timeout_events text[] not null,
  eventless boolean not null,
  ttl_slides boolean not null,
  require_if_match boolean not null,
  reads_instance boolean not null default false,
  constraint workflow_state_pkey primary key (workflow, workflow_version, state),
  constraint workflow_state_workflow_fkey
    foreign key (workflow, workflow_version) references pawl.workflow (name, version),
  constraint workflow_state_is_a_path_of_names
    check (length(state) <= 255 and state ~ '^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$'),
  constraint workflow_state_final_accepts_nothing
    check (status = 'active' or (events = '{}' and timeouts = '{}' and not eventless)),
  constraint workflow_state_timeouts_are_positive check (interval '0' < all (timeouts)),
  constraint workflow_state_timeouts_have_events check (cardinality(timeouts) = cardinality(timeout_events))
);

comment on column pawl.workflow_state.events is 'the events it accepts, sorted';
comment on column pawl.workflow_state.timeouts is 'from entering it, the nearest first';
comment on column pawl.workflow_state.eventless is 'whether it has transitions that no event is needed for';
comment on column pawl.workflow_state.ttl_slides is 'whether each step of the workflow starts the lifetime again';
comment on column pawl.workflow_state.reads_instance is 'whether its guards or assigns may read more than context and payload';
comment on column pawl.workflow_state.require_if_match is 'the workflow''s, kept here to spare each command a look-up';

-- workflow_transition holds the candidates for an event in an atomic state, its own before
-- those of the states around it; the first by position whose guard holds is taken. The
-- events of the engine's own are the end of a timeout, 'after:10m', or of the lifetime,
-- 'ttl', no event at all, ':always', and the creation of the instance, ':initial'. No
-- caller may fire them.
--
-- A transition's assigns are what the states it leaves, it itself and the states it enters
-- assign, in this order: stages, of which each sees what those before it have left. Without
-- assign_stages there is one. In a stage, a null name stands for all of the payload's.
create table pawl.workflow_transition (
  workflow text collate "C" not null,
  workflow_version integer not null,
  source text collate "C" not null,
  event text collate "C" not null,
  position integer not null,
  target text collate "C" not null,
  guard jsonpath,
  guard_text text,
  assign_names text[] not null,
  assign_paths jsonpath[] not null,
  assign_stages integer[],
  assign_payload boolean not null,
  payload_schema jsonb,
  payload_schema_checksum text,
  constraint workflow_transition_pkey primary key (workflow, workflow_version, source, event, position),
  constraint workflow_transition_source_fkey
    foreign key (workflow, workflow_version, source) references pawl.workflow_state (workflow, workflow_version, state),
  constraint workflow_transition_target_fkey
    foreign key (workflow, workflow_version, target) references pawl.workflow_state (workflow, workflow_version, state),
  constraint workflow_transition_event_is_an_identifier
    check (event ~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' or event ~ '^after:[0-9a-z]+$' or event in (':always', ':initial')),
  constraint workflow_transition_position_is_positive check (position >= 1),
  constraint workflow_transition_guard_has_a_text check ((guard is null) = (guard_text is null)),
  constraint workflow_transition_assigns_are_pairs check (cardinality(assign_names) = cardinality(assign_paths)),
  constraint workflow_transition_assigns_have_a_stage
    check (assign_stages is null or cardinality(assign_stages) = cardinality(assign_names) and not assign_payload),
  constraint workflow_transition_payload_schema_has_a_checksum
    check ((payload_schema is null) = (payload_schema_checksum is null))
);

comment on column pawl.workflow_transition.guard_text is 'as the definition words it';
comment on column pawl.workflow_transition.assign_payload is 'merges the payload''s top level into the context';

-- instance is one running process. Each workflow adds a CHECK of its own to this table
-- that lists its states by version: instance_<workflow>_state_check.
create table pawl.instance (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  version pawl.version not null,
  context pawl.object not null,
  business_key pawl.key,
  correlation_id pawl.key,
  parent_id uuid,
  created_at timestamptz not null,
  state_changed_at timestamptz not null,
  expires_at timestamptz,
  error pawl.object,
  constraint instance_pkey primary key (tenant_id, id),
  constraint instance_state_changed_after_creation check (state_changed_at >= created_at)
)
-- Room for the next version of a row beside it, so that its page cleans itself. Vacuum has
-- what is left: versions that found no room, and the entries of the active in the indexes
-- once they are done, which lists would pass one by one. By default it would wait for a
-- fifth of the table. Statistics are for the lists, whose shares move slowly, and each
-- analyze has every session plan the engine anew: that stays at the default.
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.instance.error is 'what led to a failed outcome: {event, state, reason}';

-- The indexes hold columns that an active instance keeps: state, version, context and
-- state_changed_at are in none, so that a transition is a heap-only update. The status
-- changes once, with the last transition.
--
-- A business key names one instance of a workflow for as long as the instance exists. It
-- comes before the workflow for the lists that do not name one.
create unique index instance_business_key_key on pawl.instance (tenant_id, business_key, workflow)
  where business_key is not null;
-- Lists are read by the indexes below: what is filtered by, then a page of each status in
-- the order of ids; see ListInstances.
-- The first two have a condition that always holds, and that lists state: while the tables
-- are small or were never analysed, the planner takes such an index for a look-up by the
-- primary or the business key to be as good as theirs, and would read all rows of a tenant.
create index instance_status_idx on pawl.instance (tenant_id, status, id)
  where workflow <> '';
create index instance_workflow_idx on pawl.instance (tenant_id, workflow, status, id)
  where workflow <> '';
create index instance_correlation_id_idx on pawl.instance (tenant_id, correlation_id, status, id)
  where correlation_id is not null;

-- history is append-only and gapless per instance: each row is one step, with all that
-- the step left behind. It is the audit trail, the source of replays and of reads of
-- the past, and the outbox. Rows go with their instance, if its workflow has a retention.
create table pawl.history (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  version pawl.version not null,
  seq bigint not null generated always as identity,
  xid xid8 not null default pg_current_xact_id(),
  workflow text not null,
  workflow_version integer not null,
  kind pawl.kind not null,
  event text,
  from_state text,
  to_state text not null,
  status pawl.status not null,
  context pawl.object not null,
  payload pawl.object,
  expires_at timestamptz,
  error pawl.object,
  actor text not null,
  reason pawl.reason,
  key pawl.key,
  correlation_id pawl.key,
  traceparent text,
  at timestamptz not null,
  constraint history_pkey primary key (tenant_id, instance_id, version),
  constraint history_starts_with_created check ((version = 1) = (kind = 'created'))
)
-- Rows come and never change. Vacuum looks at new pages only, so it may come after a fixed
-- number of rows, however many there are, and freezes them in the same pass: each page is
-- written once more and never read for that again, and no wraparound finds years of work.
-- A share of the table would let the visibility map and the statistics fall back with age.
with (
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000, autovacuum_freeze_min_age = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000
);

-- idempotency_key holds the first decision for a key: which step it made, or which
-- refusal the machine decided at which version. The answer is rebuilt from history.
create table pawl.idempotency_key (
  tenant_id pawl.tenant_id not null,
  key pawl.key not null,
  fingerprint pawl.sha256 not null,
  outcome pawl.decision not null,
  instance_id uuid not null,
  version pawl.version not null,
  expires_at timestamptz not null,
  constraint idempotency_key_pkey primary key (tenant_id, key)
)
-- As many keys are purged as come, so that the table levels off at what vacuum leaves
-- behind: a hundredth of it, not a fifth. A vacuum reads both indexes, which is why it
-- is not a fixed number. Inserts alone need none: what they would freeze is soon deleted,
-- and nothing reads the visibility map.
with (
  autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1
);

create index idempotency_key_expires_at_idx on pawl.idempotency_key (expires_at);
-- The refusals that are recorded for an instance, which keep it while they live. The keys of
-- its steps are found through history, so that those, nearly all, cost nothing here.
create index idempotency_key_refused_idx on pawl.idempotency_key (tenant_id, instance_id)
  where outcome <> 'applied';

-- timer says when to look at an instance: not after its next deadline, the nearest of its
-- state's timeouts and the end of its lifetime. It is armed and cleared in the transaction
-- of the step that enters the state; a step to a later deadline leaves it as it is.
create table pawl.timer (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  due_at timestamptz not null,
  armed_version pawl.version not null,
  tried integer not null,
  constraint timer_pkey primary key (tenant_id, instance_id)
)
-- What is armed anew or cleared leaves a dead row and, since due_at is indexed, a dead entry
-- among those that are due first.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.timer.tried is
  'how many timeouts of the state that was entered with armed_version were refused';

create index timer_due_at_idx on pawl.timer (due_at);

-- instance_at is pawl.instance as it was after each of its steps: the same columns, one
-- row per version.
create view pawl.instance_at as
select
  i.tenant_id, i.id, i.workflow, h.workflow_version, h.to_state as state, h.status, h.version, h.context,
  i.business_key, i.correlation_id, i.parent_id, i.created_at,
  -- A migration may leave an instance in its state, which it entered earlier.
  (case when h.version = i.version then i.state_changed_at else h.at end)::timestamptz as state_changed_at,
  h.expires_at, h.error
from pawl.history h
join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id;

-- +goose Down
drop schema pawl cascade;
