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
  context_default pawl.object,
  search pawl.object,
  created_at timestamptz not null,
  created_by pawl.actor not null,
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
comment on column pawl.workflow.initial_moves is
  'whether a creation must look at it: entering it assigns or arms timers, it has an invariant, or it may be left at once';
comment on column pawl.workflow.context_schema is
  'of the definition; its member x-context-default is the context_default, which the caller merges in before it checks a context';
comment on column pawl.workflow.context_default is 'merged under the context of a creation';
comment on column pawl.workflow.search is
  'what instances are found by: {NAME: {path, type}}, with the names of members that lead to the value; the latest version''s counts for all versions; null for nothing';
comment on column pawl.workflow.business_key_reusable is 'whether a business key may be used again once its instance is final';
comment on column pawl.workflow.retention is 'how long final instances are kept; the latest version''s counts for all versions; null for ever';

-- workflow_state holds the atomic states, the only ones that instances are in. A state within
-- others is named by its path, with dots, and accepts the events that those others accept.
--
-- Its timers are *static* if each is the state's own, leads to a state, and has a constant duration that needs no
-- calendar. Then they are counted from when the state was entered, and nothing is stored for them. Otherwise they are
-- *armed*: read when the state is entered, and kept in the instance's memory.
--
-- A version that was retired leaves its states and transitions here if history names it: replays and reads of
-- the past need them. So there is no foreign key to workflow.
create table pawl.workflow_state (
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  lineage text[] not null,
  events text[] not null,
  patterns text[],
  timeouts interval[] not null,
  timeout_events text[] not null,
  timers jsonb,
  eventless boolean not null,
  done boolean not null,
  remembered text[],
  invariants jsonb,
  protected boolean not null,
  stuck_after interval,
  on_stuck pawl.object,
  strands boolean not null default false,
  ttl_slides boolean not null,
  require_if_match boolean not null,
  reads_instance boolean not null default false,
  reads_actor boolean not null default false,
  tasks boolean not null default false,
  undoing text,
  state_hash bigint not null
    generated always as (hashtextextended(state, hashtextextended(workflow, workflow_version))) stored,
  constraint workflow_state_pkey primary key (workflow, workflow_version, state),
  constraint workflow_state_is_a_path_of_names
    check (length(state) <= 255 and state ~ '^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$'),
  constraint workflow_state_final_accepts_nothing
    check (status = 'active' or (events = '{}' and timeouts = '{}' and timers is null and not eventless)),
  constraint workflow_state_done_is_left_at_once check (not done or eventless),
  constraint workflow_state_undoing_stops_or_continues check (undoing in ('stop', 'continue')),
  constraint workflow_state_timers_are_static_or_armed check (timers is null or timeouts = '{}'),
  constraint workflow_state_timeouts_are_positive check (interval '0' < all (timeouts)),
  constraint workflow_state_timeouts_are_at_most_ten_years check (interval '3650 days' >= all (timeouts)),
  constraint workflow_state_stuck_after_is_positive check (stuck_after > interval '0' and stuck_after <= interval '3650 days'),
  constraint workflow_state_final_is_not_healed check (status = 'active' or on_stuck is null),
  constraint workflow_state_timeouts_have_events check (cardinality(timeouts) = cardinality(timeout_events))
);

-- Finds the states of a name in all workflows; see pawl.chosen_states.
--
-- Its condition always holds, and those queries repeat it; no other condition implies it. Without it, while the table
-- is small or not analysed, the planner would take this index for look-ups by the primary key.
create index workflow_state_state_idx on pawl.workflow_state (state, status, workflow) where length(workflow) > 0;

-- Whether a workflow heals.
create index workflow_state_on_stuck_idx on pawl.workflow_state (workflow) where on_stuck is not null;

comment on column pawl.workflow_state.lineage is 'the paths of the states around it, from the outside in, then its own';
comment on column pawl.workflow_state.events is 'the events and patterns of events that it accepts, sorted';
comment on column pawl.workflow_state.patterns is 'those that are patterns, the longest first; null if there is none';
comment on column pawl.workflow_state.timeouts is 'of static timers: how long after entering it each is due, the nearest first';
comment on column pawl.workflow_state.timers is
  'of armed timers, its own and then those of the states around it: an array of {slot, owner, every, in | at, zone}; see pawl_private.armed';
comment on column pawl.workflow_state.eventless is 'whether it has transitions that need no event';
comment on column pawl.workflow_state.done is 'whether it is final within another state, whose done leaves it at once';
comment on column pawl.workflow_state.remembered is
  'the states around it that some transition resumes; null if there is none';
comment on column pawl.workflow_state.invariants is 'an array of {text, guard}: what must hold in it; null if nothing';
comment on column pawl.workflow_state.protected is 'whether overrides, cancels and instance migrations neither leave nor enter it';
comment on column pawl.workflow_state.stuck_after is
  'how long an instance may be in it; the latest version that has the state counts for all versions; null for none';
comment on column pawl.workflow_state.on_stuck is
  'what is done about an instance that is stuck in it: {event | reconcile | retry: NAME, max}; null for nothing';
comment on column pawl.workflow_state.strands is
  'whether only a task, or the undoing of steps, leaves it: it has no events, no timers and no lifetime';
comment on column pawl.workflow_state.reads_actor is 'whether a guard or a value of the workflow reads $.actor';
comment on column pawl.workflow_state.tasks is 'whether entering it starts tasks or undoes steps';
comment on column pawl.workflow_state.undoing is
  'of a state that undoes steps: what it does when one cannot be undone, stop or continue; null for other states';
comment on column pawl.workflow_state.ttl_slides is 'whether each step of the workflow starts the lifetime again';
comment on column pawl.workflow_state.reads_instance is 'whether its guards or assigns may read more than context and payload';
comment on column pawl.workflow_state.state_hash is 'goes with the state into pawl.instance, whose CHECK recognizes it';
comment on column pawl.workflow_state.require_if_match is 'the workflow''s setting, kept here to spare each command a look-up';

-- workflow_transition holds the candidates for an event in an atomic state: the state's own,
-- then those that it inherits from the states around it. The first by position whose guard
-- holds is taken.
--
-- Some events are the engine's own, and no caller may fire them: 'after:10m' and 'every:24h' are timers, and have the
-- suffix '@' and the path of a state if that state around this one declares them; 'ttl' ends the lifetime, ':always'
-- stands for no event, ':done' for the end of the state around a final one, and ':initial' is the creation. An event
-- may be a pattern: '*', or 'payment.*'.
--
-- So are those of tasks: 'done:NAME', 'error:NAME' and 'unknown:NAME' are what became of a task of the state, with the
-- suffix '@' and the path of the task's state in a state that an outcome leads to, for an operator who tries the task
-- again or says what happened. 'done:compensate' and 'error:compensate' end a state that undoes steps, and
-- 'compensated:NAME' stands in it for each step that is undone.
--
-- A transition that resumes a compound state has a row for each state that may have been left last, with that state in
-- resumed_state, and one for the case that none was. From a state within the compound one, the last is the source
-- itself.
--
-- A transition assigns in stages: first the states that it leaves, then the transition itself,
-- then the states that it enters. Each stage sees the context that the one before has left.
--
-- Assigns have one of three forms. A single stage that is plain (see pawl_private.is_plain) is in assign_names and
-- assign_paths. A single stage that merges the whole payload is assign_payload. All else is assign_compiled.
create table pawl.workflow_transition (
  workflow text collate "C" not null,
  workflow_version integer not null,
  source text collate "C" not null,
  event text collate "C" not null,
  position integer not null,
  target text collate "C" not null,
  guard jsonpath,
  guard_compiled jsonb,
  guard_text text,
  internal boolean not null,
  kept integer not null,
  rearms text,
  resumes text,
  resumed_state text,
  resumes_timers boolean not null,
  compensation integer,
  assign_names text[] not null,
  assign_paths jsonpath[] not null,
  assign_compiled jsonb,
  assign_payload boolean not null,
  assign_nests boolean not null,
  payload_schema pawl.object,
  payload_schema_checksum text,
  description text,
  constraint workflow_transition_pkey primary key (workflow, workflow_version, source, event, position),
  constraint workflow_transition_source_fkey
    foreign key (workflow, workflow_version, source) references pawl.workflow_state (workflow, workflow_version, state),
  constraint workflow_transition_target_fkey
    foreign key (workflow, workflow_version, target) references pawl.workflow_state (workflow, workflow_version, state),
  constraint workflow_transition_event_is_an_identifier
    check (
      event ~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}([.][*])?$' or event in ('*', ':always', ':done', ':initial')
      or event ~ '^(after|every):[0-9a-z]+(@.+)?$'
      or event ~ '^(done|error|unknown|compensated):[A-Za-z][A-Za-z0-9_.-]{0,63}(@.+)?$'),
  constraint workflow_transition_position_is_positive check (position >= 1),
  constraint workflow_transition_guard_has_a_text check ((coalesce(guard::text, guard_compiled::text) is null) = (guard_text is null)),
  constraint workflow_transition_guard_has_one_form check (guard is null or guard_compiled is null),
  constraint workflow_transition_internal_stays check (not internal or target = source and resumes is null),
  constraint workflow_transition_rearms_internally check (rearms is null or internal),
  constraint workflow_transition_resumes_a_state check (resumes is not null or resumed_state is null and not resumes_timers),
  constraint workflow_transition_assigns_are_pairs check (cardinality(assign_names) = cardinality(assign_paths)),
  constraint workflow_transition_assigns_in_one_form
    check ((assign_names <> '{}')::integer + assign_payload::integer + (assign_compiled is not null)::integer <= 1),
  constraint workflow_transition_payload_schema_has_a_checksum
    check ((payload_schema is null) = (payload_schema_checksum is null))
);

comment on column pawl.workflow_transition.guard_text is 'the guard as the definition words it; of an object its compact JSON';
comment on column pawl.workflow_transition.internal is 'whether it leaves and enters no state';
comment on column pawl.workflow_transition.kept is 'how many states of the source''s lineage it neither leaves nor enters, from the outside in';
comment on column pawl.workflow_transition.rearms is 'the path of the state whose timers it arms anew; null if none';
comment on column pawl.workflow_transition.resumes is 'the path of the compound state that it resumes; null if none';
comment on column pawl.workflow_transition.resumed_state is
  'the row is for an instance that last left the compound state from here; null: for one that never did';
comment on column pawl.workflow_transition.resumes_timers is 'whether timers of the resumed state go on with what was left';
comment on column pawl.workflow_transition.compensation is 'the position in workflow_task of what undoes the step; null if nothing does';
comment on column pawl.workflow_transition.assign_nests is 'whether the context may become nested deeper';
comment on column pawl.workflow_transition.description is
  'what the definition says of it, cut, since many states may inherit it; null if nothing';
comment on column pawl.workflow_transition.assign_payload is 'merges the payload''s top level into the context';

-- workflow_task holds the tasks of a version: those that atomic states start, and the compensations, which undo what a
-- task or a transition did. A task either calls a service by a connection or offers work under a topic. As states, they
-- stay if history names their version.
create table pawl.workflow_task (
  workflow text collate "C" not null,
  workflow_version integer not null,
  position integer not null,
  state text collate "C",
  name text collate "C" not null,
  connection text collate "C",
  topic text collate "C",
  deadline interval not null,
  compensation integer,
  spec jsonb not null,
  constraint workflow_task_pkey primary key (workflow, workflow_version, position),
  constraint workflow_task_name_key unique (workflow, workflow_version, state, name),
  constraint workflow_task_state_fkey
    foreign key (workflow, workflow_version, state) references pawl.workflow_state (workflow, workflow_version, state),
  constraint workflow_task_calls_or_offers_work check ((connection is null) <> (topic is null)),
  constraint workflow_task_name_is_an_identifier check (name ~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$'),
  constraint workflow_task_deadline_is_positive check (deadline > interval '0' and deadline <= interval '366 days')
);

comment on column pawl.workflow_task.state is 'the atomic state that starts it; null for a compensation';
comment on column pawl.workflow_task.name is 'of a compensation, the name of the task or the event whose step it undoes';
comment on column pawl.workflow_task.compensation is 'the position of what undoes it; null if nothing does';
comment on column pawl.workflow_task.spec is 'compiled by pawl_private.compiled_task, which describes its members';

-- schema holds the JSON Schemas of the deployment, which definitions name by '$ref': 'pawl:NAME' or
-- 'pawl:NAME@VERSION'. One immutable row per version. A definition carries copies of those that it refers to, in its
-- member schemas, so nothing that runs reads this table.
create table pawl.schema (
  name text collate "C" not null,
  version integer not null,
  schema pawl.object not null,
  checksum text not null,
  created_at timestamptz not null,
  created_by pawl.actor not null,
  constraint schema_pkey primary key (name, version),
  constraint schema_name_is_a_slug check (name ~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$'),
  constraint schema_name_is_short check (length(replace(name, '_', '__')) <= 42),
  constraint schema_version_is_positive check (version >= 1)
);

comment on column pawl.schema.schema is 'as it was registered';
