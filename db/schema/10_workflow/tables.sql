-- Module workflow: definitions, and the flattened form of them that the engine reads.
--
-- Workflows belong to the deployment, not to a tenant.

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
  business_key_reusable boolean not null,
  context_schema pawl.object,
  context_schema_checksum text,
  created_at timestamptz not null,
  created_by text not null,
  constraint workflow_pkey primary key (name, version),
  constraint workflow_name_is_a_slug check (name ~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$'),
  -- An underscore counts as two characters. The language of definitions has the same bound.
  constraint workflow_name_is_short check (length(replace(name, '_', '__')) <= 42),
  constraint workflow_version_is_positive check (version >= 1),
  constraint workflow_ttl_is_positive check (ttl > interval '0'),
  constraint workflow_ttl_has_a_target check ((ttl is null) = (ttl_target is null)),
  constraint workflow_retention_is_positive check (retention > interval '0'),
  -- The language of definitions has the same bound.
  constraint workflow_durations_are_at_most_ten_years check (greatest(ttl, retention) <= interval '3650 days'),
  constraint workflow_context_schema_has_a_checksum
    check ((context_schema is null) = (context_schema_checksum is null))
);

comment on column pawl.workflow.initial is 'the atomic state that an instance starts in';
comment on column pawl.workflow.initial_moves is 'whether entering it assigns, or eventless transitions may leave it';
comment on column pawl.workflow.business_key_reusable is 'whether a business key may be used again once its instance is final';
comment on column pawl.workflow.retention is 'how long final instances are kept; the latest version''s counts for all versions; null for ever';

-- workflow_state holds the atomic states, the only ones that instances are in. A state within
-- others is named by its path, with dots, and accepts the events that those others accept.
--
-- A version that was retired leaves its states and transitions here if history names it: replays and reads of
-- the past need them. So there is no foreign key to workflow.
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
  state_hash bigint not null
    generated always as (hashtextextended(state, hashtextextended(workflow, workflow_version))) stored,
  constraint workflow_state_pkey primary key (workflow, workflow_version, state),
  constraint workflow_state_is_a_path_of_names
    check (length(state) <= 255 and state ~ '^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$'),
  constraint workflow_state_final_accepts_nothing
    check (status = 'active' or (events = '{}' and timeouts = '{}' and not eventless)),
  constraint workflow_state_timeouts_are_positive check (interval '0' < all (timeouts)),
  constraint workflow_state_timeouts_are_at_most_ten_years check (interval '3650 days' >= all (timeouts)),
  constraint workflow_state_timeouts_have_events check (cardinality(timeouts) = cardinality(timeout_events))
);

-- Finds the states of a name in all workflows; see pawl.chosen_states.
create index workflow_state_state_idx on pawl.workflow_state (state, status, workflow);

comment on column pawl.workflow_state.events is 'the events that it accepts, sorted';
comment on column pawl.workflow_state.timeouts is 'how long after entering it each timeout is due, the nearest first';
comment on column pawl.workflow_state.eventless is 'whether it has eventless transitions';
comment on column pawl.workflow_state.ttl_slides is 'whether each step of the workflow starts the lifetime again';
comment on column pawl.workflow_state.reads_instance is 'whether its guards or assigns may read more than context and payload';
comment on column pawl.workflow_state.state_hash is 'goes with the state into pawl.instance, whose CHECK recognizes it';
comment on column pawl.workflow_state.require_if_match is 'the workflow''s setting, kept here to spare each command a look-up';

-- workflow_transition holds the candidates for an event in an atomic state: the state's own,
-- then those that it inherits from the states around it. The first by position whose guard
-- holds is taken.
--
-- Some events are the engine's own, and no caller may fire them: 'after:10m' ends a timeout,
-- 'ttl' ends the lifetime, ':always' stands for no event, and ':initial' is the creation.
--
-- A transition assigns in stages: first the states that it leaves, then the transition itself,
-- then the states that it enters. Each stage sees the context that the one before has left.
-- assign_stages is null if there is one stage. Within a stage, a null name merges the payload's
-- top level.
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
  assign_nests boolean not null,
  payload_schema pawl.object,
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

comment on column pawl.workflow_transition.guard_text is 'the guard as the definition words it';
comment on column pawl.workflow_transition.assign_nests is 'whether the context may become nested deeper';
comment on column pawl.workflow_transition.assign_payload is 'merges the payload''s top level into the context';
