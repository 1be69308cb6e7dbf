-- Generated from db/schema by `make generate`: edit the source there.

-- +goose Up
set local lock_timeout = '5s';

-- 00_core/tables.sql

-- Module core: the two schemas, the domains, the settings and the clock.
--
-- Schema pawl is what callers see: tables to read and functions to call. Schema pawl_private
-- holds what only those functions use. No role but the owner has privileges on it.
--
-- The header of a function says what it returns, which conditions it raises, which existing rows it
-- locks, and which tables it writes, with what the functions that it calls do. A line that is missing
-- means nothing. Any function may also raise what PostgreSQL raises by itself: 57014 at the
-- statement timeout.

-- goose may have made schema pawl already, for its version table.
create schema if not exists pawl;
create schema pawl_private;

comment on schema pawl is 'finite-state-machine service: tables to read, functions to call';
comment on schema pawl_private is 'what the functions of schema pawl use; not for callers';

-- Names and keys are compared by their bytes, whatever the database's locale. That is faster,
-- and a new version of the locale breaks no index.
--
-- A domain holds a rule about a single column; a CHECK of a table holds a rule that joins
-- columns. Postgres parses a table's CHECKs anew for each statement that writes the table, but
-- a domain's once per session. For a call with one command that made a sixth of its time.
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
comment on domain pawl.key is 'a name that a caller chooses';
comment on domain pawl.reason is 'why a command was given, in the actor''s words';
comment on domain pawl.object is 'a JSON object';
comment on domain pawl.sha256 is 'a SHA-256 digest';
comment on domain pawl.version is 'counts the steps of an instance';
comment on domain pawl.status is 'active, or how a final instance ended';
comment on domain pawl.kind is 'what made a step';
comment on domain pawl.decision is 'what is recorded for an idempotency key';

-- setting is one row: what every replica and every SQL caller must agree on.
-- `pawl migrate set` changes it. Nothing caches it but cursor_secret, which never changes.
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
  constraint setting_is_in_a_database_in_utf8 check (getdatabaseencoding() = 'UTF8'),
  constraint setting_idempotency_ttl_is_positive check (idempotency_ttl > interval '0'),
  -- The length of days and months depends on the time zone of a session.
  constraint setting_idempotency_ttl_has_no_days_or_months check (
    extract(day from idempotency_ttl) = 0 and extract(month from idempotency_ttl) = 0
    and extract(year from idempotency_ttl) = 0),
  constraint setting_limits_are_positive
    check (context_limit > 0 and payload_limit > 0 and definition_limit > 0 and state_limit > 0),
  -- A body has at most 1 MiB, of which its other members need up to 16 KiB.
  constraint setting_documents_fit_into_a_body check (context_limit <= 1032192 and payload_limit <= 1032192)
);

comment on column pawl.setting.idempotency_ttl is 'how long an idempotency key is remembered';
comment on column pawl.setting.idempotency_ttl_slides is 'whether a replay starts the time again';
comment on column pawl.setting.context_limit is 'bytes of a context as jsonb text';
comment on column pawl.setting.payload_limit is 'bytes of a payload as jsonb text';
comment on column pawl.setting.definition_limit is 'bytes of a definition as jsonb text';
comment on column pawl.setting.cursor_secret is 'signs list cursors, so that any replica can check them';

insert into pawl.setting default values;

-- privilege says which functions each kind of role may execute. `service` is `pawl serve`;
-- `caller` is an application that moves instances in its own transactions. Each module adds
-- its rows in its grants.sql; `pawl migrate grants` turns them into GRANT statements.
create table pawl_private.privilege (
  privilege text not null,
  function text not null,
  constraint privilege_pkey primary key (privilege, function),
  constraint privilege_is_known check (privilege in ('service', 'caller'))
);

-- condition lists why a command is refused, and why a request cannot be carried out. `outcome` is the
-- engine's code, `problem` the code that HTTP answers with. Outcomes that are one problem to a caller
-- share its SQLSTATE, and no two problems share one. The problem `internal` is none that an HTTP
-- client can act on; an operator can, so each of its outcomes has a SQLSTATE of its own.
--
-- In `message`, %1$s is the event, and %2$s, %3$s and %4$s are the state, the version and the id of
-- the instance. The service words its problems in the same way; a test compares them.
create table pawl_private.condition (
  outcome text not null,
  problem text not null,
  sqlstate text not null,
  message text,
  constraint condition_pkey primary key (outcome),
  constraint condition_sqlstate_is_of_class_pw check (sqlstate ~ '^PW[0-9A-Z]{3}$')
);

comment on column pawl_private.condition.message is 'null where the function that raises words it';

insert into pawl_private.condition (outcome, problem, sqlstate, message) values
  ('malformed-request', 'malformed-request', 'PW400',
    'context and payload must be JSON objects, nested at most 64 deep'),
  ('lifetime-without-ttl', 'malformed-request', 'PW400', 'the workflow has no ttl'),
  ('instance-not-found', 'instance-not-found', 'PW404', 'there is no such instance'),
  ('workflow-not-found', 'workflow-not-found', 'PW40W', 'there is no such workflow'),
  ('transition-not-allowed', 'transition-not-allowed', 'PW409', 'the state %2$s has no transition for %1$s'),
  ('guard-rejected', 'guard-rejected', 'PW40G', 'no guard of %1$s in the state %2$s holds for this payload'),
  ('instance-exists', 'instance-exists', 'PW40E', 'instance %4$s already has this business key'),
  ('workflow-conflict', 'workflow-conflict', 'PW40V', null),
  ('consumer-led', 'internal', 'PW40L', null),
  ('steps-purged', 'event-id-too-old', 'PW410', null),
  ('version-mismatch', 'version-mismatch', 'PW412', 'the instance is at version %3$s; read it again and decide anew'),
  ('payload-too-large', 'too-large', 'PW413', 'the payload is larger than the limit'),
  ('context-too-large', 'too-large', 'PW413', 'the context is, or would become, larger than the limit'),
  ('context-too-deep', 'too-large', 'PW413', 'the context would become nested deeper than 64'),
  ('unknown-event', 'unknown-event', 'PW422', 'the workflow has no event "%1$s"'),
  ('always-loop', 'guard-error', 'PW42G',
    'eventless transitions follow one another without coming to rest; nothing was changed'),
  ('invalid-definition', 'invalid-definition', 'PW42D', null),
  ('idempotency-key-reuse', 'idempotency-key-reuse', 'PW42K',
    'this idempotency key was used for another request; take a new one'),
  ('precondition-required', 'precondition-required', 'PW428',
    'this workflow wants every event to name the version it has seen; the instance is at version %3$s');

-- 00_core/private.sql

-- uuid_v7_with makes a UUID of version 7 whose last 62 bits are the last ones of p_bytes, which has 16.
-- +goose StatementBegin
create function pawl_private.uuid_v7_with(p_at timestamptz, p_bytes bytea) returns uuid
language sql immutable parallel safe
as $$
  select encode(
    set_byte(
      set_byte(
        set_byte(
          overlay(p_bytes placing substring(int8send(t.us / 1000) from 3) from 1 for 6),
          6, (112 | (t.us % 1000 * 4096 / 1000 >> 8))::integer),
        7, (t.us % 1000 * 4096 / 1000 & 255)::integer),
      8, get_byte(p_bytes, 8) & 63 | 128),
    'hex')::uuid
  from (select (extract(epoch from p_at) * 1000000)::bigint as us) t
$$;
-- +goose StatementEnd

-- uuid_v7 makes an id that sorts by time: RFC 9562 version 7. Its twelve bits of sub-millisecond
-- fraction (method 3 of the RFC) keep ids in order within a millisecond.
-- +goose StatementBegin
create function pawl_private.uuid_v7(p_at timestamptz) returns uuid
language sql volatile parallel safe
as $$ select pawl_private.uuid_v7_with(p_at, uuid_send(gen_random_uuid())) $$;
-- +goose StatementEnd

-- rfc3339 writes a time for guards and assigns: UTC, microseconds, fixed width, so that times
-- compare as strings too. The offset is +00:00, since jsonpath's datetime() refuses "Z".
-- +goose StatementBegin
create function pawl_private.rfc3339(p_at timestamptz) returns text
language sql stable parallel safe
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') $$;
-- +goose StatementEnd

-- raise_condition raises a condition of pawl_private.condition.
-- p_outcome: its outcome. p_message: what the message says instead of the condition's own.
-- p_detail: members of the detail, a JSON object, beside `code`, the problem.
-- Raises:  the condition's SQLSTATE
-- +goose StatementBegin
create function pawl_private.raise_condition(
  p_outcome text, p_message text, p_detail jsonb default '{}'
) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_condition pawl_private.condition;
begin
  select * into strict v_condition from pawl_private.condition c where c.outcome = p_outcome;
  raise exception '%', coalesce(p_message, v_condition.message)
    using
      errcode = v_condition.sqlstate,
      detail = (jsonb_build_object('code', v_condition.problem) || jsonb_strip_nulls(p_detail))::text;
end
$$;
-- +goose StatementEnd

-- refuse_malformed raises malformed-request if there is a fault.
-- Raises:  PW400
-- +goose StatementBegin
create function pawl_private.refuse_malformed(p_fault text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_fault is not null then
    perform pawl_private.raise_condition('malformed-request', p_fault);
  end if;
end
$$;
-- +goose StatementEnd

-- broken_rule words what a statement has raised because an argument breaks a rule: that of a constraint, whose
-- name says what should hold, or of a column that must not be null. For other errors it is their own message.
-- +goose StatementBegin
create function pawl_private.broken_rule(p_message text, p_constraint text, p_column text) returns text
language sql immutable parallel safe
as $$
  select case
    when p_constraint <> '' then 'this must hold: ' || replace(p_constraint, '_', ' ')
    when p_column <> '' then replace(p_column, '_', ' ') || ' must not be null'
    else p_message
  end
$$;
-- +goose StatementEnd

-- command_fault says what is wrong with the texts of a command, or null. It has the same limits as the columns that
-- they are stored in. An absent text is null or ''.
-- +goose StatementBegin
create function pawl_private.command_fault(
  p_tenant text, p_actor text, p_key text default null, p_business_key text default null,
  p_correlation_id text default null, p_reason text default null
) returns text
language sql immutable parallel safe
as $$
  select case
    when length(p_tenant) not between 1 and 63 or p_tenant is null then 'the tenant must have 1 to 63 characters'
    when length(p_actor) not between 1 and 255 or p_actor is null then 'the actor must have 1 to 255 characters'
    when length(p_key) > 255 then 'the key must have no more than 255 characters'
    when length(p_business_key) > 255 then 'the business key must have no more than 255 characters'
    when p_correlation_id <> '' and p_correlation_id collate "C" !~ '^[!-~]{1,255}$'
      then 'the correlation id must have 1 to 255 visible ASCII characters'
    when length(p_reason) > 1000 then 'the reason must have no more than 1000 characters'
  end
$$;
-- +goose StatementEnd

-- commit_synchronously makes the commit of this transaction wait for the synchronous standbys, though it has written
-- nothing. It is for answers that acknowledge what was committed before. A commit is visible
-- although perhaps no standby has it, if its wait was cancelled, or if the server crashed while it waited. When this commit's wait is
-- over, the standbys have everything that this transaction has seen.
--
-- It logs an empty message, since PostgreSQL waits only for transactions that have logged something. A standby cannot
-- know what its primary has acknowledged.
-- Raises:  25006 on a standby
-- +goose StatementBegin
create function pawl_private.commit_synchronously() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_is_in_recovery() then
    raise exception 'a standby does not answer a repeated command' using errcode = '25006';
  end if;
  if current_setting('synchronous_standby_names') <> '' and current_setting('synchronous_commit') not in ('off', 'local') then
    perform pg_logical_emit_message(true, 'pawl', ''::text);
  end if;
end
$$;
-- +goose StatementEnd

-- 00_core/now.sql

-- now is the only clock. Tests replace it to move time; nothing else can.
-- Returns: the time of the call, not of the transaction's beginning
-- +goose StatementBegin
create function pawl.now() returns timestamptz
language sql volatile parallel safe
as $$ select clock_timestamp() $$;
-- +goose StatementEnd

-- 00_core/schema_version.sql

-- schema_version is the number of the latest migration that is applied. The service compares it with the number
-- that it was built with. Raise it with each new migration. It is not immutable, so that a prepared statement does
-- not keep an old number.
-- Returns: the number
-- +goose StatementBegin
create function pawl.schema_version() returns integer
language sql stable parallel safe
as $$ select 1 $$;
-- +goose StatementEnd

-- 00_core/uuid_v7_floor.sql

-- uuid_v7_floor turns a bound on created_at into a bound on the primary key.
-- Returns: the lowest id that can be made in the millisecond of p_at. A time that 48 bits cannot hold,
--          before 1970 or infinite, counts as the nearest time that they can hold
-- +goose StatementBegin
create function pawl.uuid_v7_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe
as $$
  select (
    lpad(to_hex(least(greatest(floor(extract(epoch from p_at) * 1000), 0), 281474976710655)::bigint), 12, '0')
    || repeat('0', 20))::uuid
$$;
-- +goose StatementEnd

-- 00_core/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.now'),
  ('service', 'pawl.schema_version'),
  ('service', 'pawl.uuid_v7_floor');

-- 10_workflow/tables.sql

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

-- 10_workflow/private.sql

-- definition_states lists the states of a definition in canonical form.
-- Returns: one row per state. path; lineage: the paths of the states around it, from the
--          outside in, then its own; atomic: whether it has no states within; leaf: the atomic
--          state that entering it leads to, by each `initial`; transitions: how many it declares
-- +goose StatementBegin
create function pawl_private.definition_states(p_definition jsonb)
returns table (path text, lineage text[], value jsonb, atomic boolean, leaf text, transitions bigint)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  with recursive node as (
    select s.key as path, array[s.key] as lineage, s.value
    from jsonb_each(p_definition -> 'states') s
    union all
    select n.path || '.' || s.key, n.lineage || (n.path || '.' || s.key), s.value
    from node n
    cross join lateral jsonb_each(n.value -> 'states') s
  ),
  entered as (
    select n.path, n.path as leaf, n.value
    from node n
    union all
    select e.path, n.path, n.value
    from entered e
    join node n on n.path = e.leaf || '.' || (e.value ->> 'initial')
    where e.value ? 'states'
  )
  select n.path, n.lineage, n.value, not n.value ? 'states', e.leaf, t.transitions
  from node n
  left join entered e on e.path = n.path and not e.value ? 'states'
  cross join lateral (
    select coalesce(sum(case when jsonb_typeof(d.value) = 'array' then jsonb_array_length(d.value) end), 0) as transitions
    from (
      select o.value from jsonb_each(coalesce(n.value -> 'on', '{}') || coalesce(n.value -> 'after', '{}')) o
      union all
      select n.value -> 'always'
    ) d
  ) t
$$;
-- +goose StatementEnd

-- definition_transitions flattens a definition in canonical form. Every atomic state gets its
-- own transitions, then those that it inherits, the innermost state's first. Each leads to an
-- atomic state. 'ttl' and ':initial' are among them.
--
-- The algorithm is SCXML's for a machine without parallel regions. The innermost state around
-- both the declaring state and the target is neither left nor entered. A transition leaves the
-- states within it, the innermost first, and enters those down to the target, the outermost
-- first.
-- Returns: rows of pawl.workflow_transition
-- +goose StatementBegin
create function pawl_private.definition_transitions(p_definition jsonb)
returns table (
  source text, event text, "position" bigint, target text, guard_text text, assign_names text[], assign_paths jsonpath[],
  assign_stages integer[], assign_payload boolean, payload_schema jsonb
)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select * from pawl_private.definition_states(p_definition)
  ),
  declared as materialized (
    select n.path, n.lineage, e.event, t.position, t.value, t.value ->> 'target' as target
    from node n
    cross join lateral (
      select o.key as event, o.value as transitions from jsonb_each(coalesce(n.value -> 'on', '{}')) o
      union all
      select 'after:' || a.key, a.value from jsonb_each(coalesce(n.value -> 'after', '{}')) a
      union all
      select ':always', n.value -> 'always' where n.value ? 'always'
    ) e
    cross join lateral jsonb_array_elements(e.transitions) with ordinality as t (value, position)
  ),
  -- inside: the states around the declaring state. Those that are around the target too are neither
  -- left nor entered.
  inherited as (
    select
      s.path as source, s.lineage, d.event, d.value, d.target,
      row_number() over (partition by s.path, d.event order by cardinality(d.lineage) desc, d.position) as position,
      -- All transitions of an event in a state share one schema.
      (array_agg(d.value -> 'payload_schema') filter (where d.value ? 'payload_schema')
        over (partition by s.path, d.event))[1] as payload_schema,
      d.lineage[:cardinality(d.lineage) - 1] as inside,
      -- An inherited transition behind one without a guard is never taken.
      bool_or(not d.value ? 'guard') over (
        partition by s.path, d.event order by cardinality(d.lineage) desc
        groups between unbounded preceding and 1 preceding
      ) as idle
    from node s
    join declared d on d.path = any (s.lineage)
    where s.atomic
    union all
    select s.path, s.lineage, 'ttl', '{}', p_definition #>> '{ttl,target}', 1, null, '{}', null
    from node s
    where p_definition ? 'ttl' and s.atomic and s.value ->> 'type' is distinct from 'final'
    union all
    select i.leaf, '{}', ':initial', '{}', p_definition ->> 'initial', 1, null, '{}', null
    from node i
    where i.path = p_definition ->> 'initial'
  )
  select
    i.source, i.event, i.position, t.leaf, i.value ->> 'guard', coalesce(a.names, '{}'), coalesce(a.paths, '{}'),
    a.stages, coalesce(a.payload, false), i.payload_schema
  from inherited i
  left join node t on t.path = i.target
  left join node l on l.path = t.leaf
  cross join lateral (
    select
      array_agg(p.name order by p.stage, p.name collate "C") filter (where not p.lone or p.name is not null) as names,
      array_agg(p.path order by p.stage, p.name collate "C") filter (where not p.lone or p.name is not null) as paths,
      array_agg(p.stage order by p.stage, p.name collate "C") filter (where not p.lone) as stages,
      bool_or(p.lone and p.name is null) as payload
    from (
      select g.stage, count(*) filter (where g.first) over () = 1 as lone, g.name, g.path
      from (
        select b.stage, m.name, m.path::jsonpath as path, row_number() over (partition by b.stage) = 1 as first
        from (
          select row_number() over (order by x.place)::integer as stage, x.assign
          from (
            -- States that are left, the transition itself, states that are entered, in this order.
            select -cardinality(n.lineage) as place, n.value #> '{exit,assign}' as assign
            from node n
            where n.path = any (i.lineage) and not (n.path = any (i.inside) and n.path = any (t.lineage[:cardinality(t.lineage) - 1]))
            union all
            select 0, i.value -> 'assign'
            union all
            select cardinality(n.lineage), n.value #> '{entry,assign}'
            from node n
            where n.path = any (l.lineage) and not (n.path = any (i.inside) and n.path = any (t.lineage[:cardinality(t.lineage) - 1]))
          ) x
          where x.assign is not null and x.assign <> '{}'
        ) b
        cross join lateral (
          select o.key as name, o.value as path
          from jsonb_each_text(case when jsonb_typeof(b.assign) = 'object' then b.assign end) o
          union all
          select null, null where b.assign = '"*"'
        ) m
      ) g
    ) p
  ) a
  where i.idle is not true and (i.event <> ':initial' or a.names is not null or a.payload)
$$;
-- +goose StatementEnd

-- definition_fault says why a definition is not in canonical form, or why the engine could not
-- run it. Guards, assigns, durations and names are checked later, by the casts and constraints
-- of the tables that they are stored in.
-- Returns: one fault, or null
-- +goose StatementBegin
create function pawl_private.definition_fault(p_definition jsonb) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_definition) is distinct from 'object' then 'a definition must be an object'
    when p_definition ->> 'name' is null then 'name is missing'
    when octet_length(p_definition::text) > g.definition_limit
      then format('the definition has more than %s bytes', g.definition_limit)
    when jsonb_typeof(p_definition -> 'states') is distinct from 'object' then 'states must be an object'
    else (
      with node as materialized (
        select * from pawl_private.definition_states(p_definition)
      )
      select case
        when (select count(*) from node) > g.state_limit
          then format('there are more than %s states', g.state_limit)
        when not exists (select from node n where n.path = p_definition ->> 'initial') then 'initial must name a state'
        when not exists (select from node n where n.value ->> 'type' = 'final') then 'no state is final'
        when p_definition ->> 'business_key' not in ('unique', 'reusable') then 'business_key must be unique or reusable'
        when p_definition ? 'ttl' and not exists (
          select from node n where n.path = p_definition #>> '{ttl,target}' and n.value ->> 'type' = 'final'
        ) then 'ttl.target must name a final state'
        else coalesce(
          (
            select case
              when jsonb_typeof(n.value) <> 'object' then format('%s must be an object', n.path)
              when n.leaf is null then format('initial of %s must name a state within it', n.path)
              when n.value ->> 'type' = 'final' and (cardinality(n.lineage) > 1 or not n.atomic)
                then format('%s is final, so that it must neither be within another state nor have states within', n.path)
              when n.value ? 'after' and not n.atomic then format('%s has states within, and so no timeouts', n.path)
            end as fault
            from node n
            order by fault nulls last
            limit 1
          ),
          (
            select case
              when jsonb_typeof(e.value) <> 'array'
                then 'each event and timeout, and always, must have an array of transitions: this is not the canonical form'
              when e.own and (e.key like '%:%' or e.key = 'ttl') then 'ttl and events with a colon are the engine''s own'
              else (
                select format('there is no state %s', t.value ->> 'target')
                from jsonb_array_elements(e.value) t
                where not exists (select from node o where o.path = t.value ->> 'target')
                limit 1
              )
            end as fault
            from node n
            cross join lateral (
              select o.key, o.value, true as own from jsonb_each(coalesce(n.value -> 'on', '{}')) o
              union all
              select a.key, a.value, false from jsonb_each(coalesce(n.value -> 'after', '{}')) a
              union all
              select 'always', n.value -> 'always', false where n.value ? 'always'
            ) e
            order by fault nulls last
            limit 1
          ),
          (
            select 'the states have more than 50000 transitions, with those that they inherit'
            from node s
            join node n on n.path = any (s.lineage)
            where s.atomic
            having sum(n.transitions) > 50000
          ))
      end
    )
  end
  from pawl.setting g
$$;
-- +goose StatementEnd

-- duration reads a duration of a definition. A day has 24 hours and a month 30 days. The result has
-- neither days nor months, whose length would depend on the time zone of the session.
-- +goose StatementBegin
create function pawl_private.duration(p_text text) returns interval
language sql immutable parallel safe
as $$ select make_interval(secs => extract(epoch from p_text::interval)::float8) $$;
-- +goose StatementEnd

-- path_nests says whether what a path selects may be nested as deep as the context or the payload themselves. It
-- is not if the path always goes on to a member of theirs. Then an assign cannot make the context deeper.
-- +goose StatementBegin
create function pawl_private.path_nests(p_path jsonpath) returns boolean
language sql immutable parallel safe
as $$
  -- Postgres writes a jsonpath as canonical text.
  select regexp_replace(t.text, '[$][.]"((context|payload)"[.]["*]|now"|instance")', '', 'g') ~ '[$]'
    or t.text ~ '[*][*]|keyvalue'
  from (select p_path::text as text) t
$$;
-- +goose StatementEnd

-- store_definition stores a definition in canonical form, flattened, as a version of a workflow.
-- Writes:  workflow, workflow_state, workflow_transition
-- +goose StatementBegin
create function pawl_private.store_definition(p_name text, p_version integer, p_definition jsonb, p_actor text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.workflow (
    name, version, definition, checksum, initial, initial_moves, ttl, ttl_target, retention,
    business_key_reusable, context_schema, context_schema_checksum, created_at, created_by)
  select
    p_name, p_version, p_definition, encode(sha256(convert_to(p_definition::text, 'UTF8')), 'hex'),
    n.leaf, false, pawl_private.duration(p_definition #>> '{ttl,after}'), p_definition #>> '{ttl,target}',
    pawl_private.duration(p_definition ->> 'retention'), p_definition ->> 'business_key' is not distinct from 'reusable',
    p_definition -> 'context_schema',
    encode(sha256(convert_to((p_definition -> 'context_schema')::text, 'UTF8')), 'hex'), pawl.now(), p_actor
  from pawl_private.definition_states(p_definition) n
  where n.path = p_definition ->> 'initial';

  insert into pawl.workflow_state (
    workflow, workflow_version, state, status, events, timeouts, timeout_events, eventless, ttl_slides,
    require_if_match)
  select
    p_name, p_version, s.path,
    case when s.value ->> 'type' = 'final' then coalesce(s.value ->> 'outcome', 'completed') else 'active' end,
    array(
      select distinct k collate "C"
      from pawl_private.definition_states(p_definition) n
      cross join lateral jsonb_object_keys(coalesce(n.value -> 'on', '{}')) k
      where n.path = any (s.lineage)
      order by k collate "C"),
    array(select pawl_private.duration(k) from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    array(select 'after:' || k from jsonb_object_keys(coalesce(s.value -> 'after', '{}')) k order by k::interval),
    false,
    coalesce((p_definition #>> '{ttl,sliding}')::boolean, false),
    coalesce((p_definition ->> 'require_if_match')::boolean, false)
  from pawl_private.definition_states(p_definition) s
  where s.atomic;

  insert into pawl.workflow_transition (
    workflow, workflow_version, source, event, position, target, guard, guard_text, assign_names, assign_paths,
    assign_stages, assign_payload, assign_nests, payload_schema, payload_schema_checksum)
  select
    p_name, p_version, t.source, t.event, t.position, t.target, t.guard_text::jsonpath, t.guard_text, t.assign_names,
    t.assign_paths, t.assign_stages, t.assign_payload,
    exists (select from unnest(t.assign_paths) as p (path) where pawl_private.path_nests(p.path)), t.payload_schema,
    encode(sha256(convert_to(t.payload_schema::text, 'UTF8')), 'hex')
  from pawl_private.definition_transitions(p_definition) t;

  update pawl.workflow_state s
  set
    reads_instance = exists (
      select from pawl.workflow_transition t
      cross join lateral unnest(t.assign_paths || t.guard) as p (path)
      where t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        -- Postgres writes a jsonpath as canonical text.
        and regexp_replace(p.path::text, '[$][.]"(context|payload)"', '', 'g') like '%$%'
    ),
    eventless = exists (
      select from pawl.workflow_transition t
      where t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        and t.event = ':always'
    )
  where s.workflow = p_name and s.workflow_version = p_version;

  update pawl.workflow w
  set initial_moves = exists (
    select from pawl.workflow_transition t
    where t.workflow = w.name and t.workflow_version = w.version and t.source = w.initial
      and t.event in (':always', ':initial')
  )
  where w.name = p_name and w.version = p_version;
end
$$;
-- +goose StatementEnd

-- 10_workflow/chosen_states.sql

-- chosen_states reads what the names of states stand for in all workflows: the state of that name, and all
-- states within it. It steps through an index from one combination of state, status and workflow to the next, so
-- its cost does not grow with the number of versions. Without p_by_workflow it steps from one combination of
-- state and status to the next, and the workflow is empty.
-- Returns: p_limit combinations at most
-- +goose StatementBegin
create function pawl.chosen_states(p_states text[], p_by_workflow boolean, p_limit integer)
returns table (workflow text, status text, state text)
language sql stable parallel safe
as $$
  with recursive step as (
    select r.last, f.state, f.status, f.workflow
    from unnest(p_states) as n (name)
    cross join lateral (values (n.name, n.name), (n.name || '.', n.name || '.~')) as r (first, last)
    cross join lateral (
      select w.state, w.status, w.workflow
      from pawl.workflow_state w
      where w.state >= r.first and w.state <= r.last
      order by w.state, w.status, w.workflow
      limit 1
    ) f
    union all
    select s.last, f.state, f.status, f.workflow
    from step s
    cross join lateral (
      select w.state, w.status, w.workflow
      from pawl.workflow_state w
      where w.state <= s.last
        and (w.state, w.status, w.workflow) > (s.state, s.status, case when p_by_workflow then s.workflow else '~' end)
      order by w.state, w.status, w.workflow
      limit 1
    ) f
  )
  select case when p_by_workflow then s.workflow else '' end, s.status::text, s.state from step s
  limit greatest(p_limit, 0)
$$;
-- +goose StatementEnd

-- 10_workflow/jsonpath_error.sql

-- jsonpath_error checks a SQL/JSON path. It costs a subtransaction, which is fine: definitions are rare. A regular
-- expression that takes long to compile is an error, since each session compiles it again, while commands wait. It
-- gets a second chance, in case the machine was busy.
-- Returns: why this server cannot parse the text, or why it should not; null if it can
-- +goose StatementBegin
create function pawl.jsonpath_error(p_path text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_begun timestamptz;
begin
  for v_try in 1 .. 2 loop
    v_begun := clock_timestamp();
    perform p_path::jsonpath;
    if clock_timestamp() - v_begun < interval '250 ms' then
      return null;
    end if;
  end loop;
  return 'it takes more than 250 ms to parse; make its regular expressions simpler';
exception when others then
  return sqlerrm;
end
$$;
-- +goose StatementEnd

-- 10_workflow/state_names.sql

-- state_names reads the names of the states of all workflows in order, from one to the next.
-- Returns: p_limit names at most
-- +goose StatementBegin
create function pawl.state_names(p_limit integer) returns setof text
language sql stable parallel safe
as $$
  with recursive step as (
    (select w.state from pawl.workflow_state w order by w.state limit 1)
    union all
    select f.state
    from step s
    cross join lateral (
      select w.state from pawl.workflow_state w where w.state > s.state order by w.state limit 1
    ) f
  )
  select s.state from step s limit greatest(p_limit, 0)
$$;
-- +goose StatementEnd

-- 10_workflow/workflow_names.sql

-- workflow_names reads the names of workflows in order, from one to the next.
-- Returns: p_limit names at most
-- +goose StatementBegin
create function pawl.workflow_names(p_limit integer) returns setof text
language sql stable parallel safe
as $$
  with recursive step as (
    (select w.name from pawl.workflow w order by w.name limit 1)
    union all
    select f.name
    from step s
    cross join lateral (select w.name from pawl.workflow w where w.name > s.name order by w.name limit 1) f
  )
  select s.name from step s limit greatest(p_limit, 0)
$$;
-- +goose StatementEnd

-- 10_workflow/workflows_page.sql

-- workflows_page reads the latest version of each workflow whose name comes after p_after.
-- Returns: up to p_limit rows, by name. The page ends with the row by which its definitions have p_bytes, so it has
--          at least one row if there are any. Only the definitions of these rows are read
-- +goose StatementBegin
create function pawl.workflows_page(p_after text, p_limit integer, p_bytes bigint) returns setof pawl.workflow
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_workflow pawl.workflow;
  v_bytes bigint := 0;
begin
  for v_workflow in
    select w.*
    from pawl.workflow w
    where w.name > p_after
      and w.version = (select max(v.version) from pawl.workflow v where v.name = w.name)
    order by w.name
    limit p_limit
  loop
    return next v_workflow;
    v_bytes := v_bytes + octet_length(v_workflow.definition::text);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 10_workflow/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.jsonpath_error'),
  ('service', 'pawl.chosen_states'),
  ('service', 'pawl.state_names'),
  ('service', 'pawl.workflow_names'),
  ('service', 'pawl.workflows_page');

-- 20_instance/tables.sql

-- Module instance: the engine. It decides every command, and its functions are the only writers
-- of the tables below. The tables' constraints are the first line of defence: they hold for the
-- owner's writes too.
--
-- Every table leads its keys with tenant_id, so that a tenant's rows can be moved to another database.
-- A call may have commands of several tenants; each row is looked up with the tenant of its command.
--
-- A command is a *create* or a *fire*. Both functions take parallel arrays, one entry per
-- command, and return one outcome per command, so that many requests share a round trip and a
-- commit. create_one and fire_one wrap them for SQL callers. An empty string in a text array
-- means "none".
--
-- A call of fire proceeds in these steps. Under READ COMMITTED each statement of a volatile function
-- sees a fresh snapshot.
--
--   1. Replay the commands whose idempotency key is taken, from what was recorded.
--   2. Lock the instances of the others, in the order of their ids.
--   3. Read the clock, then decide and write in one statement. A command has an effect only if
--      it has no key, or if this statement claims its key. If a call has several commands for one
--      instance, the statement runs once for each round of them.
--   4. Replay, in a statement of its own, the commands whose key was taken since step 1. It
--      must be another statement, to see what others committed meanwhile.
--
-- A create has no instance to lock, so it begins with step 3.
--
-- Lock order: workflow, instance_migration, instance (by id), idempotency_key (by key), history,
-- timer. Three cases differ:
--
--   * A create inserts instances after it has claimed its keys. Nobody can hold a lock on an instance
--     that does not exist, and creates insert business keys in one order.
--   * If the time to live of keys slides, step 1 locks keys before step 2 locks instances. Two calls
--     may then wait for each other. PostgreSQL ends one of them with 40P01, and the service repeats it,
--     or lock_timeout ends it before, and the service answers 503.
--   * Each round of a call claims its keys in order, but a later round may claim a smaller key. So two
--     calls that use the same keys for different instances may wait for each other. PostgreSQL ends one
--     of them in the same way.
--
-- A refusal is an outcome, not an exception: it must not undo the other commands of the call,
-- and a subtransaction for each command would cost more than the command. create_one and
-- fire_one raise refusals: see pawl_private.condition.
--
-- Properties of Postgres that the code depends on, each shown by a test in package db:
--
--   * The engine locks an instance first and reads it afterwards. An UPDATE that joins a row to the
--     same row once more compares, after a wait, the new row with the old one, and silently changes
--     nothing.
--   * A single statement can neither insert a key that another transaction inserts at the same
--     time, nor see it. The key is therefore read in the next statement.
--   * Rows are looked up by their full key through `left join lateral (... limit 1)`. A generic
--     plan that was made while the tables were empty expects two rows per tenant, and would
--     read all keys of the tenant at each call.
--   * decide and choose are single SELECTs in language sql, and stable, so that the planner
--     inlines them. They hold the decision, and dry runs share them.
--   * complete_macrostep takes eventless transitions in a loop. Only states that have some call
--     it; other commands pay nothing for them.
--   * The planner must not memoize: the cache key would hold the whole context, which does not
--     recur.
--   * No volatile function is called inside the writing statement.

-- state_is_declared looks up whether a version of a workflow that is not retired declares a state.
-- +goose StatementBegin
create function pawl_private.state_is_declared(p_workflow text, p_workflow_version integer, p_state text)
returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select from pawl.workflow_state s
    join pawl.workflow w
      on w.name operator(pg_catalog.=) s.workflow and w.version operator(pg_catalog.=) s.workflow_version
    where s.workflow operator(pg_catalog.=) p_workflow
      and s.workflow_version operator(pg_catalog.=) p_workflow_version
      and s.state operator(pg_catalog.=) p_state);
end
$$;
-- +goose StatementEnd

-- instance is one running process.
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
  business_key_reusable boolean not null default false,
  correlation_id pawl.key,
  parent_id uuid,
  created_at timestamptz not null,
  state_changed_at timestamptz not null,
  expires_at timestamptz,
  error pawl.object,
  state_hash bigint,
  constraint instance_pkey primary key (tenant_id, id),
  constraint instance_state_changed_after_creation check (state_changed_at >= created_at)
)
-- fillfactor leaves room in a page for the next version of a row, so that updates stay heap-only
-- and the page prunes itself. Vacuum removes the rest: row versions that found no room, and index
-- entries of instances that became final, which lists would step over one by one. The default
-- would let it wait for a fifth of the table. The threshold of analyze stays at its default: the
-- lists' statistics move slowly, and each analyze makes every session plan the engine anew.
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- No instance is in a state that its version does not declare, whoever writes. The engine writes a state
-- together with its hash, both read from the state's row in pawl.workflow_state, and then a comparison is
-- enough. Any other writer pays for a look-up. So a step costs the same however many workflows there are,
-- and registering one changes no constraint. A writer who computes the hash of an undeclared state passes:
-- only the owner could, who could as well drop the constraint.
--
-- It is "not valid", so that a dump restores it after the data of pawl.workflow_state. It binds all writes.
alter table pawl.instance add constraint instance_state_is_declared check (
  (state_hash = hashtextextended(state, hashtextextended(workflow, workflow_version))) is true
  or pawl_private.state_is_declared(workflow, workflow_version, state)) not valid;

comment on column pawl.instance.state_hash is 'from the state''s row in workflow_state: spares the CHECK a look-up; may be null';
comment on column pawl.instance.error is 'why the instance failed: see pawl_private.failure';

-- No index holds state, version, context or state_changed_at, so that a transition is a heap-only
-- update. The status is in some indexes: it changes once, with the last transition.
--
-- A business key names one instance of a workflow for as long as the instance exists, or until it is final
-- if the workflow's keys are reusable.
create unique index instance_business_key_key on pawl.instance (tenant_id, business_key, workflow)
  where business_key is not null and (status = 'active' or not business_key_reusable);
-- Lists read by the indexes below: the column that is filtered by, then the status, then the id.
-- See ListInstances.
--
-- The first two indexes have a condition that always holds, and that list queries repeat. Without
-- it, while the tables are small or not analysed, the planner would take such an index for
-- look-ups by the primary key or the business key, and read all rows of a tenant.
create index instance_status_idx on pawl.instance (tenant_id, status, id)
  where workflow <> '';
create index instance_workflow_idx on pawl.instance (tenant_id, workflow, status, id)
  where workflow <> '';
create index instance_business_key_idx on pawl.instance (tenant_id, business_key, status, id)
  where business_key is not null;
create index instance_correlation_id_idx on pawl.instance (tenant_id, correlation_id, status, id)
  where correlation_id is not null;

-- history is append-only and gapless per instance. Each row is one step, with the instance's data
-- after it. History is the audit trail, the source of replays and of reads of the past, and the
-- outbox. Its rows are purged together with their instance, if the workflow has a retention.
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
  entered_at timestamptz,
  constraint history_pkey primary key (tenant_id, instance_id, version),
  constraint history_starts_with_created check ((version = 1) = (kind = 'created'))
)
-- Rows are inserted and never updated. Vacuum reads only new pages, so it runs after a fixed number
-- of rows, whatever the table's size, and freezes them in the same pass. Each page is then written
-- once more and not read again, and an anti-wraparound vacuum finds nothing to do. A share of the
-- table instead would let the visibility map and the statistics fall behind as the table grows.
with (
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000, autovacuum_freeze_min_age = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000
);

comment on column pawl.history.entered_at is
  'when the state was entered, if earlier than the step: an instance migration may keep the state';

-- idempotency_key holds the first decision for a key: the step that the command made, or the
-- refusal that the machine decided, and at which version. A replay is rebuilt from history.
create table pawl.idempotency_key (
  tenant_id pawl.tenant_id not null,
  key pawl.key not null,
  fingerprint pawl.sha256 not null,
  decision pawl.decision not null,
  instance_id uuid not null,
  version pawl.version not null,
  expires_at timestamptz not null,
  constraint idempotency_key_pkey primary key (tenant_id, key)
)
-- As many keys are purged as are inserted, so the table levels off at what vacuum leaves behind:
-- a hundredth of it, not the default fifth. A vacuum reads both indexes whole, which is why the
-- threshold is not a fixed number. Inserts alone need no vacuum: the rows are soon deleted, and
-- nothing reads the visibility map.
with (
  autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1
);

create index idempotency_key_expires_at_idx on pawl.idempotency_key (expires_at);
-- Finds the refusals that are recorded for an instance, which keep the instance from being purged.
-- The keys of its steps are found through history, so most keys cost nothing here.
create index idempotency_key_refused_idx on pawl.idempotency_key (tenant_id, instance_id)
  where decision <> 'applied';

-- timer says when the timer worker must look at an instance: at its next deadline, which is the
-- nearest of its state's timeouts and the end of its lifetime, or earlier. The step that enters
-- a state arms or clears the timer in its own transaction. A step to a later deadline leaves the
-- row as it is, so that most steps write none.
create table pawl.timer (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  due_at timestamptz not null,
  armed_version pawl.version not null,
  tried integer not null,
  failed_version pawl.version,
  last_error text,
  queue integer,
  queued_version pawl.version,
  constraint timer_pkey primary key (tenant_id, instance_id),
  constraint timer_failed_with_an_error check ((failed_version is null) = (last_error is null)),
  constraint timer_is_queued_at_a_version check ((queue is null) = (queued_version is null))
)
-- Arming and clearing leave dead rows and, since due_at is indexed, dead entries among those that
-- are due first.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.timer.tried is
  'how many timeouts of the state that was entered at armed_version were refused';
comment on column pawl.timer.failed_version is
  'the timer fails while this is armed_version and the instance''s version: its deadline came and the step could not be made';
comment on column pawl.timer.last_error is 'why the deadline could not be ended at failed_version';

comment on column pawl.timer.queue is 'the queue of the slow lane that it was moved to: see pawl_private.slow_queue';
comment on column pawl.timer.queued_version is
  'the timer is in the slow lane while this is armed_version; a step that arms the timer anew takes it out';

-- The timers of the fast lane, and those of each queue of the slow lane.
create index timer_due_at_idx on pawl.timer (due_at)
  where queued_version is distinct from armed_version;
create index timer_queue_idx on pawl.timer (queue, due_at)
  where queued_version = armed_version;
-- Finds the timers that fail. A step that arms the timer anew takes it out of the index.
create index timer_failing_idx on pawl.timer (tenant_id, instance_id)
  where failed_version = armed_version;

-- instance_at is pawl.instance after each of its steps: the same columns, one row per version.
create view pawl.instance_at as
select
  i.tenant_id, i.id, i.workflow, h.workflow_version, h.to_state as state, h.status, h.version, h.context,
  i.business_key, i.business_key_reusable, i.correlation_id, i.parent_id, i.created_at,
  coalesce(h.entered_at, h.at) as state_changed_at,
  h.expires_at, h.error, null::bigint as state_hash
from pawl.history h
join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id;

-- callback is a webhook for the end of one instance, given at its creation. The row is deleted
-- when the delivery has succeeded.
create table pawl.callback (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  url text not null,
  secret text,
  created_at timestamptz not null,
  constraint callback_pkey primary key (tenant_id, instance_id),
  constraint callback_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint callback_secret_has_a_prefix check (secret like 'whsec\_%')
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.callback.secret is 'null: the deployment''s secret signs';

-- outcome is the engine's answer to one command. code: 'applied', a refusal, or 'payload-unchecked'
-- or 'context-unchecked' with the JSON Schema that the caller must check first. instance: as it
-- is after an applied command, else as it is; null if there is none to show. actions: the events
-- that it accepts. guards: of a 'guard-rejected' command, the guards that did not hold. timeout_event,
-- timeout_due_at: of an applied command, the next deadline that it left, or null; see pawl.next_timeout.
create type pawl.outcome as (
  ordinal integer,
  code text,
  replayed boolean,
  instance pawl.instance,
  actions text[],
  guards text[],
  schema jsonb,
  timeout_event text,
  timeout_due_at timestamptz
);

-- outcome_row is the shape of an outcome with the instance's columns side by side. It never holds
-- rows. It is a view because sqlc knows the columns of a view that a function returns.
create view pawl.outcome_row as
select
  0 as ordinal,
  ''::text as code,
  false as replayed,
  null::uuid as id,
  null::text as workflow,
  null::integer as workflow_version,
  null::text as state,
  null::text as status,
  null::bigint as version,
  null::jsonb as context,
  null::text as business_key,
  null::text as correlation_id,
  null::timestamptz as created_at,
  null::timestamptz as state_changed_at,
  null::timestamptz as expires_at,
  null::jsonb as error,
  null::text[] as actions,
  null::text[] as guards,
  null::jsonb as schema,
  null::text as timeout_event,
  null::timestamptz as timeout_due_at
where false;

-- macrostep is a step with the eventless steps that follow it, as SCXML calls it. steps: the instance before the
-- first step (null at its creation) and after each step. instance: after the last one; events, timeouts and
-- timeout_events: those of its state then. refusal: null, or why the steps cannot be made.
create type pawl_private.macrostep as (
  refusal text,
  steps pawl.instance[],
  instance pawl.instance,
  events text[],
  timeouts interval[],
  timeout_events text[]
);

-- fire_command is a fire as decide sees it. expected and checked: as for pawl.fire. by_timer:
-- whether it is a timeout or a lifetime that is due.
create type pawl_private.fire_command as (
  tenant text,
  event text,
  payload jsonb,
  key text,
  expected text,
  checked text,
  reason text,
  by_timer boolean
);

-- 20_instance/private.sql

-- instance_row makes a row of pawl.instance. It is the only place that depends on the order of the
-- table's columns; call it with named arguments. The planner inlines it.
-- +goose StatementBegin
create function pawl_private.instance_row(
  p_tenant_id pawl.tenant_id default null,
  p_id uuid default null,
  p_workflow text default null,
  p_workflow_version integer default null,
  p_state text default null,
  p_status pawl.status default null,
  p_version pawl.version default null,
  p_context pawl.object default null,
  p_business_key pawl.key default null,
  p_business_key_reusable boolean default false,
  p_correlation_id pawl.key default null,
  p_parent_id uuid default null,
  p_created_at timestamptz default null,
  p_state_changed_at timestamptz default null,
  p_expires_at timestamptz default null,
  p_error pawl.object default null,
  p_state_hash bigint default null
) returns pawl.instance
language sql immutable parallel safe
as $$
  select row(
    p_tenant_id, p_id, p_workflow, p_workflow_version, p_state, p_status, p_version, p_context, p_business_key,
    p_business_key_reusable, p_correlation_id, p_parent_id, p_created_at, p_state_changed_at, p_expires_at, p_error, p_state_hash)::pawl.instance
$$;
-- +goose StatementEnd

-- is_decision says whether an outcome is recorded for its key; see the domain pawl.decision.
-- +goose StatementBegin
create function pawl_private.is_decision(p_code text) returns boolean
language sql immutable parallel safe
as $$ select p_code in ('applied', 'transition-not-allowed', 'guard-rejected') $$;
-- +goose StatementEnd

-- fingerprint tells requests under one key apart: the SHA-256 of what a fire asks for, as canonical
-- jsonb text.
-- +goose StatementBegin
create function pawl_private.fingerprint(p_id uuid, p_event text, p_payload jsonb) returns bytea
language sql stable parallel safe
as $$ select sha256(convert_to(jsonb_build_array('fire', p_id, p_event, p_payload)::text, 'UTF8')) $$;
-- +goose StatementEnd

-- deadline is the next deadline of an instance that entered its state at p_entered_at, or null.
-- +goose StatementBegin
create function pawl_private.deadline(p_entered_at timestamptz, p_timeouts interval[], p_expires_at timestamptz)
returns timestamptz
language sql stable parallel safe
as $$ select least(p_entered_at + p_timeouts[1], p_expires_at) $$;
-- +goose StatementEnd

-- deadline_event is the event of that deadline, or null. If a timeout and the lifetime are due at the same
-- time, the timeout comes first.
-- +goose StatementBegin
create function pawl_private.deadline_event(
  p_entered_at timestamptz, p_timeouts interval[], p_timeout_events text[], p_expires_at timestamptz
) returns text
language sql stable parallel safe
as $$
  select case
    when p_entered_at + p_timeouts[1] <= p_expires_at or p_expires_at is null then p_timeout_events[1]
    else 'ttl'
  end
$$;
-- +goose StatementEnd

-- The planner inlines functions in language sql, and each session pays for that when it plans its first
-- call. So functions that few calls need are in PL/pgSQL, which a session parses only when it calls them.

-- guards lists the guards of an event in a state, as the definition words them.
-- +goose StatementBegin
create function pawl_private.guards(p_workflow text, p_workflow_version integer, p_state text, p_event text)
returns text[]
language plpgsql stable parallel safe
as $$
begin
  return (
    select array_agg(t.guard_text order by t.position)
    from pawl.workflow_transition t
    where t.workflow = p_workflow
      and t.workflow_version = p_workflow_version
      and t.source = p_state
      and t.event = p_event);
end
$$;
-- +goose StatementEnd

-- knows_event says whether any state of a version of a workflow accepts an event.
-- +goose StatementBegin
create function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select from pawl.workflow_transition t
    where t.workflow = p_workflow and t.workflow_version = p_workflow_version and t.event = p_event);
end
$$;
-- +goose StatementEnd

-- document is what guards and assigns read.
-- +goose StatementBegin
create function pawl_private.document(p_instance pawl.instance, p_payload jsonb, p_now timestamptz) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object(
    'context', p_instance.context,
    'payload', p_payload,
    'now', pawl_private.rfc3339(p_now),
    'instance', jsonb_build_object(
      'id', p_instance.id,
      'workflow', p_instance.workflow,
      'workflow_version', p_instance.workflow_version,
      'state', p_instance.state,
      'status', p_instance.status,
      'version', p_instance.version,
      'business_key', p_instance.business_key,
      'correlation_id', p_instance.correlation_id,
      'created_at', pawl_private.rfc3339(p_instance.created_at),
      'state_changed_at', pawl_private.rfc3339(p_instance.state_changed_at),
      'expires_at', pawl_private.rfc3339(p_instance.expires_at)));
end
$$;
-- +goose StatementEnd

-- assign computes the context that a transition's assigns leave, stage after stage: each stage sees
-- the context that the one before has left. A path that selects nothing leaves its name as it was.
-- +goose StatementBegin
create function pawl_private.assign(p_document jsonb, p_names text[], p_paths jsonpath[], p_stages integer[])
returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_document jsonb := p_document;
  v_stage integer;
begin
  for v_stage in 1 .. p_stages[cardinality(p_stages)] loop
    v_document := v_document || jsonb_build_object('context', v_document -> 'context' || (
      select
        case when bool_or(a.name is null) then v_document -> 'payload' else '{}' end
        || coalesce(jsonb_object_agg(a.name, a.value) filter (where a.name is not null and a.value is not null), '{}')
      from (
        select n.name, jsonb_path_query_first(v_document, n.path, '{}', true) as value
        from unnest(p_names, p_paths, p_stages) as n (name, path, stage)
        where n.stage = v_stage
        offset 0
      ) a));
  end loop;
  return v_document -> 'context';
end
$$;
-- +goose StatementEnd

-- is_too_deep says whether objects and arrays of a document are nested in one another more than 64 deep. A document
-- of fewer than 130 bytes cannot be.
-- +goose StatementBegin
create function pawl_private.is_too_deep(p_document jsonb) returns boolean
language plpgsql immutable parallel safe
as $$
begin
  return octet_length(p_document::text) >= 130
    and jsonb_path_exists(p_document, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")');
end
$$;
-- +goose StatementEnd

-- choose picks the transition that an event takes from a state: the first by position whose guard
-- holds on the document {context, payload, instance, now}. A guard that is false, null, missing or
-- not boolean does not hold.
--
-- If a candidate has a payload schema that the caller has not checked, it is chosen without its
-- guard, with unchecked true and no context. So a payload is refused for its shape before a guard
-- reads it. p_checked: the checksum of the schema that was checked, or '*' for any.
-- Returns: one row, or none if no guard holds; context: as the transition leaves it; nests: whether it may be
--          nested deeper than before; guard: its text in the definition, or null
-- +goose StatementBegin
create function pawl_private.choose(
  p_workflow text, p_workflow_version integer, p_state text, p_event text,
  p_document jsonb, p_checked text
) returns table (target text, unchecked boolean, context jsonb, nests boolean, payload_schema jsonb, guard text)
language sql stable parallel safe
as $$
  select
    t.target,
    t.unchecked,
    case
      when t.unchecked then null
      when t.assign_payload then p_document -> 'context' || (p_document -> 'payload')
      when t.assign_stages is not null then
        pawl_private.assign(p_document, t.assign_names, t.assign_paths, t.assign_stages)
      when t.assign_names = '{}' then p_document -> 'context'
      else p_document -> 'context' || coalesce(
        (
          select jsonb_object_agg(a.name, a.value)
          from (
            select n.name, jsonb_path_query_first(p_document, n.path, '{}', true) as value
            from unnest(t.assign_names, t.assign_paths) as n (name, path)
            offset 0
          ) a
          where a.value is not null
        ),
        '{}')
    end,
    t.assign_nests,
    t.payload_schema,
    t.guard_text
  from (
    select w.*, u.unchecked
    from pawl.workflow_transition w
    cross join lateral (
      select
        w.payload_schema is not null and p_checked is distinct from '*'
          and p_checked is distinct from w.payload_schema_checksum as unchecked
    ) u
    where w.workflow = p_workflow
      and w.workflow_version = p_workflow_version
      and w.source = p_state
      and w.event = p_event
      and case
        when u.unchecked or w.guard is null then true
        else jsonb_path_match(p_document, w.guard, '{}', true)
      end
    order by w.position
    limit 1
  ) t
$$;
-- +goose StatementEnd

-- failure says why an instance failed: the command's event (null at a creation), the state that the last
-- transition left, that transition's guard if it has one, and the command's reason.
-- +goose StatementBegin
create function pawl_private.failure(p_event text, p_state text, p_guard text, p_reason text) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object('event', p_event, 'state', p_state, 'reason', p_reason)
    || case when p_guard is null then '{}' else jsonb_build_object('guard', p_guard) end;
end
$$;
-- +goose StatementEnd

-- complete_macrostep takes the eventless transitions of an instance that has made a step, one after
-- the other, until no guard holds. Each is a step of its own, at the same time. Their guards and
-- assigns see the command's payload, too. p_before: the instance before the step; null at its creation.
-- Returns: the macrostep; its refusal is 'always-loop' after 100 eventless transitions, or
--          'context-too-large' or 'context-too-deep'
-- +goose StatementBegin
create function pawl_private.complete_macrostep(
  p_before pawl.instance, p_instance pawl.instance, p_event text, p_payload jsonb, p_reason text,
  p_now timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_instance pawl.instance := p_instance;
  v_next record;
  v_eventless boolean;
begin
  v_macrostep.steps := array[p_before, p_instance];
  loop
    select s.events, s.timeouts, s.timeout_events, s.eventless
    into strict v_macrostep.events, v_macrostep.timeouts, v_macrostep.timeout_events, v_eventless
    from pawl.workflow_state s
    where s.workflow = v_instance.workflow
      and s.workflow_version = v_instance.workflow_version
      and s.state = v_instance.state;
    exit when not v_eventless;
    select t.target, t.context, t.nests, t.guard, s.status, s.state_hash
    into v_next
    from pawl_private.choose(
      p_workflow => v_instance.workflow, p_workflow_version => v_instance.workflow_version,
      p_state => v_instance.state, p_event => ':always',
      p_document => pawl_private.document(v_instance, p_payload, p_now), p_checked => '*') t
    join pawl.workflow_state s
      on s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = t.target;
    exit when not found;
    if cardinality(v_macrostep.steps) > 101 then
      v_macrostep.refusal := 'always-loop';
      return v_macrostep;
    elsif octet_length(v_next.context::text) > p_setting.context_limit then
      v_macrostep.refusal := 'context-too-large';
      return v_macrostep;
    elsif v_next.nests and pawl_private.is_too_deep(v_next.context) then
      v_macrostep.refusal := 'context-too-deep';
      return v_macrostep;
    end if;
    if v_next.status = 'failed' then
      v_instance.error := pawl_private.failure(p_event, v_instance.state, v_next.guard, p_reason);
    end if;
    v_instance.state := v_next.target;
    v_instance.state_hash := v_next.state_hash;
    v_instance.status := v_next.status;
    v_instance.context := v_next.context;
    v_instance.version := v_instance.version + 1;
    v_instance.state_changed_at := greatest(v_instance.state_changed_at, p_now);
    v_macrostep.steps := v_macrostep.steps || v_instance;
  end loop;
  v_macrostep.instance := v_instance;
  return v_macrostep;
end
$$;
-- +goose StatementEnd

-- begin_macrostep is complete_macrostep for a new instance. First it runs the entry assigns of the
-- states that the instance starts in.
-- +goose StatementBegin
create function pawl_private.begin_macrostep(
  p_instance pawl.instance, p_reason text, p_now timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_instance;
  v_macrostep pawl_private.macrostep;
  v_nests boolean;
begin
  select t.context, t.nests
  into v_instance.context, v_nests
  from pawl_private.choose(
    p_workflow => p_instance.workflow, p_workflow_version => p_instance.workflow_version,
    p_state => p_instance.state, p_event => ':initial',
    p_document => pawl_private.document(p_instance, '{}', p_now), p_checked => '*') t;
  if not found then
    v_instance.context := p_instance.context;
  elsif octet_length(v_instance.context::text) > p_setting.context_limit then
    v_macrostep.refusal := 'context-too-large';
    return v_macrostep;
  elsif v_nests and pawl_private.is_too_deep(v_instance.context) then
    v_macrostep.refusal := 'context-too-deep';
    return v_macrostep;
  end if;
  return pawl_private.complete_macrostep(
    p_before => null, p_instance => v_instance, p_event => null, p_payload => '{}', p_reason => p_reason,
    p_now => p_now, p_setting => p_setting);
end
$$;
-- +goose StatementEnd

-- decide makes the decision of a fire. It only reads. p_instance: the instance; all of its columns are null if
-- it does not exist. Refusals are checked in the order of the contract: not found, precondition, size, event,
-- guard. If the command's key was taken while the call waited, the code is 'seen' instead of a refusal that
-- is not recorded.
-- Returns: one row. code: the outcome's. from_state: the state before. instance: after the last step
--          if applied, else as it is; null if there is none. due_at, timeout_event: its next deadline,
--          if applied; null if none. was_timed: whether it had a deadline before. payload_schema: with
--          'payload-unchecked'. steps: those of the macrostep if eventless transitions may have followed,
--          else null
-- +goose StatementBegin
create function pawl_private.decide(
  p_now timestamptz, p_setting pawl.setting, p_instance pawl.instance, p_command pawl_private.fire_command
) returns table (
  code text, from_state text, instance pawl.instance, actions text[], due_at timestamptz, timeout_event text,
  was_timed boolean, guards text[], payload_schema jsonb, steps pawl.instance[]
)
language sql stable
as $$
  select
    o.code,
    i.state,
    case
      when o.applied then coalesce((s.macrostep).instance, s.next)
      when i.id is not null then (i)::pawl.instance
    end,
    case when o.applied then coalesce((s.macrostep).events, s.events) else f.events end,
    case
      when coalesce(((s.macrostep).instance).status, s.status) = 'active' then
        pawl_private.deadline(n.at, coalesce((s.macrostep).timeouts, s.timeouts), n.expires_at)
    end,
    case
      when coalesce(((s.macrostep).instance).status, s.status) = 'active' then
        pawl_private.deadline_event(
          n.at, coalesce((s.macrostep).timeouts, s.timeouts), coalesce((s.macrostep).timeout_events, s.timeout_events),
          n.expires_at)
    end,
    f.timeouts <> '{}' or i.expires_at is not null,
    case
      when o.code = 'guard-rejected' then
        pawl_private.guards(i.workflow, i.workflow_version, i.state, c.event)
    end,
    case when t.unchecked then t.payload_schema end,
    case when o.applied then (s.macrostep).steps end
  from (select (p_command).* offset 0) c
  cross join lateral (select (p_instance).* offset 0) i
  left join lateral (
    select w.events, w.timeouts, w.ttl_slides, w.require_if_match, w.reads_instance
    from pawl.workflow_state w
    where w.workflow = i.workflow and w.workflow_version = i.workflow_version and w.state = i.state
    limit 1
  ) f on true
  cross join lateral (
    select case
      when i.id is null then 'instance-not-found'
      when c.expected not in ('', '*') and not i.version = any (c.expected::bigint[])
        then 'version-mismatch'
      when c.expected = '' and f.require_if_match then 'precondition-required'
      when jsonb_typeof(c.payload) is distinct from 'object' then 'malformed-request'
      when octet_length(c.payload::text) > p_setting.payload_limit then 'payload-too-large'
      -- The service has checked the depth of what it gets.
      when c.checked = '*' and pawl_private.is_too_deep(c.payload) then 'malformed-request'
      when (c.event like '%:%' or c.event = 'ttl') <> c.by_timer then 'unknown-event'
    end as refusal
    offset 0
  ) e
  -- The document is built once. Inlined, choose would build it for each guard and assign.
  cross join lateral (
    select case
      when e.refusal is not null then null
      when f.reads_instance then pawl_private.document((i)::pawl.instance, c.payload, p_now)
      else jsonb_build_object('context', i.context, 'payload', c.payload)
    end as document
    offset 0
  ) d
  left join lateral pawl_private.choose(
    p_workflow => i.workflow,
    p_workflow_version => i.workflow_version,
    p_state => case when e.refusal is null and i.status = 'active' then i.state end,
    p_event => c.event,
    p_document => d.document,
    p_checked => nullif(c.checked, '')
  ) t on true
  cross join lateral (
    select
      a.at,
      -- A sliding lifetime begins anew with each step, and keeps its length.
      case when f.ttl_slides then a.at + (i.expires_at - i.state_changed_at) else i.expires_at end as expires_at
    from (select greatest(p_now, i.state_changed_at) as at offset 0) a
  ) n
  left join lateral (
    select
      w.status, w.events, w.timeouts, w.timeout_events, x.next,
      case when w.eventless then
        pawl_private.complete_macrostep(
          p_before => (i)::pawl.instance, p_instance => x.next, p_event => c.event,
          p_payload => c.payload, p_reason => nullif(c.reason, ''), p_now => p_now,
          p_setting => p_setting)
      end as macrostep
    from pawl.workflow_state w
    cross join lateral (
      select pawl_private.instance_row(
        p_tenant_id => i.tenant_id, p_id => i.id, p_workflow => i.workflow,
        p_workflow_version => i.workflow_version, p_state => t.target, p_status => w.status,
        p_version => i.version + 1, p_context => t.context, p_business_key => i.business_key,
        p_business_key_reusable => i.business_key_reusable,
        p_correlation_id => i.correlation_id, p_parent_id => i.parent_id, p_created_at => i.created_at,
        p_state_changed_at => n.at, p_expires_at => n.expires_at, p_state_hash => w.state_hash,
        p_error => case
          when w.status = 'failed' then
            pawl_private.failure(c.event, i.state, t.guard, nullif(c.reason, ''))
          else i.error
        end) as next
      offset 0
    ) x
    where w.workflow = i.workflow
      and w.workflow_version = i.workflow_version
      and w.state = t.target
      and not t.unchecked
      and octet_length(t.context::text) <= p_setting.context_limit
      and not (t.nests and pawl_private.is_too_deep(t.context))
    limit 1
  ) s on true
  cross join lateral (
    select case
      when e.refusal is not null then e.refusal
      when t.unchecked then 'payload-unchecked'
      when (s.macrostep).refusal is not null then (s.macrostep).refusal
      when s.status is not null then 'applied'
      when octet_length(t.context::text) > p_setting.context_limit then 'context-too-large'
      when t.target is not null then 'context-too-deep'
      when c.event = any (f.events) then 'guard-rejected'
      when pawl_private.knows_event(i.workflow, i.workflow_version, c.event) then 'transition-not-allowed'
      else 'unknown-event'
    end as code
    offset 0
  ) x
  cross join lateral (
    select
      case
        -- The claim of its key will tell whether the decision counts.
        when pawl_private.is_decision(x.code) then x.code
        when (
          select true
          from pawl.idempotency_key k
          where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > p_now
        ) then 'seen'
        else x.code
      end as code,
      s.status is not null and (s.macrostep).refusal is null as applied
    offset 0
  ) o
$$;
-- +goose StatementEnd

-- replay answers commands whose key was taken before them, from what was recorded. The transaction's commit then waits
-- for the synchronous standbys, as that of the decision did: see commit_synchronously.
-- Returns: one outcome per key; the instance as it was then
-- Raises:  25006 on a standby; 40001 a key vanished while it was read: try again
-- Locks:   idempotency_key (by key), if the time to live slides
-- Writes:  idempotency_key.expires_at, if the time to live slides
-- +goose StatementBegin
create function pawl_private.replay(
  p_now timestamptz, p_setting pawl.setting, p_ordinals integer[], p_tenants text[], p_keys text[],
  p_fingerprints bytea[], p_events text[]
) returns setof pawl.outcome
language plpgsql volatile
as $$
declare
  v_claim record;
  v_found integer;
begin
  perform pawl_private.commit_synchronously();
  if p_setting.idempotency_ttl_slides then
    -- In order, so that calls cannot deadlock, and one by one, to be bound to the full key.
    for v_claim in select c.tenant, c.key from unnest(p_tenants, p_keys) as c (tenant, key) order by c.tenant, c.key loop
      update pawl.idempotency_key k
      set expires_at = p_now + p_setting.idempotency_ttl
      where k.tenant_id = v_claim.tenant and k.key = v_claim.key and k.expires_at > p_now;
    end loop;
  end if;

  return query
  select
    c.ordinal,
    case when r.same then k.decision else 'idempotency-key-reuse' end::text,
    true,
    case when a.id is not null then
      pawl_private.instance_row(
        p_tenant_id => a.tenant_id, p_id => a.id, p_workflow => a.workflow,
        p_workflow_version => a.workflow_version, p_state => a.state, p_status => a.status, p_version => a.version,
        p_context => a.context, p_business_key => a.business_key,
        p_business_key_reusable => a.business_key_reusable, p_correlation_id => a.correlation_id,
        p_parent_id => a.parent_id, p_created_at => a.created_at, p_state_changed_at => a.state_changed_at,
        p_expires_at => a.expires_at, p_error => a.error)
    end,
    s.events,
    case when r.same and k.decision = 'guard-rejected' then
      pawl_private.guards(a.workflow, a.workflow_version, a.state, c.event)
    end,
    null::jsonb,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline_event(a.state_changed_at, s.timeouts, s.timeout_events, a.expires_at)
    end,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline(a.state_changed_at, s.timeouts, a.expires_at)
    end
  from unnest(p_ordinals, p_tenants, p_keys, p_fingerprints, p_events) as c (ordinal, tenant, key, fingerprint, event)
  cross join lateral (
    select k.* from pawl.idempotency_key k where k.tenant_id = c.tenant and k.key = c.key limit 1
  ) k
  cross join lateral (select k.fingerprint = c.fingerprint as same offset 0) r
  left join lateral (
    select a.*
    from pawl.instance_at a
    where r.same and a.tenant_id = c.tenant and a.id = k.instance_id and a.version = k.version
    limit 1
  ) a on true
  left join lateral (
    select w.events, w.timeouts, w.timeout_events
    from pawl.workflow_state w
    where w.workflow = a.workflow and w.workflow_version = a.workflow_version and w.state = a.state
    limit 1
  ) s on true;

  get diagnostics v_found = row_count;
  if v_found < cardinality(p_ordinals) then
    raise exception 'an idempotency key expired while its outcome was read; try again' using errcode = '40001';
  end if;
end
$$;
-- +goose StatementEnd

-- append_history appends steps that were made by one command at one time. It is the only writer of
-- history but for the statements of fire and create, which append single steps in place.
-- p_steps: the instance before the first step (null at its creation) and after each step. p_kind,
-- p_event, p_payload: of the first step; the others are eventless transitions.
-- Writes:  history
-- +goose StatementBegin
create function pawl_private.append_history(
  p_steps pawl.instance[], p_kind text, p_at timestamptz, p_event text, p_payload jsonb, p_actor text, p_reason text,
  p_key text, p_correlation_id text, p_traceparent text
) returns void
language plpgsql volatile -- As instance_retains: it is called for each instance of a migration.
as $$
begin
  insert into pawl.history (
    tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
    context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at, entered_at)
  select
    s.tenant_id, s.id, s.version, s.workflow, s.workflow_version,
    case when n = 2 then p_kind else 'transition' end,
    case when n = 2 then p_event end,
    (p_steps[n - 1]).state,
    s.state, s.status, s.context,
    case when n = 2 then p_payload end,
    s.expires_at, s.error, p_actor, nullif(p_reason, ''), nullif(p_key, ''),
    coalesce(nullif(p_correlation_id, ''), s.correlation_id), nullif(p_traceparent, ''), p_at,
    nullif(s.state_changed_at, p_at)
  from generate_series(2, cardinality(p_steps)) n
  cross join lateral (select (p_steps[n]).*) s
  order by n;
end
$$;
-- +goose StatementEnd

-- refuse raises the condition of an outcome other than 'applied', for a SQL caller. The detail is a
-- JSON object with what the caller needs to go on.
-- Raises:  the condition's SQLSTATE
-- +goose StatementBegin
create function pawl_private.refuse(p_outcome pawl.outcome, p_id uuid, p_event text, p_expected bigint) returns void
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_outcome.instance;
  v_message text;
begin
  select format(c.message, p_event, v_instance.state, v_instance.version, v_instance.id)
  into v_message
  from pawl_private.condition c
  where c.outcome = p_outcome.code;
  perform pawl_private.raise_condition(
    p_outcome => p_outcome.code,
    p_message => v_message,
    p_detail => jsonb_build_object(
      'instance_id', case p_outcome.code when 'instance-not-found' then p_id else v_instance.id end,
      'state', v_instance.state,
      'instance_status', v_instance.status,
      'version', v_instance.version,
      'expected', p_expected,
      'event', p_event,
      'allowed_events', p_outcome.actions,
      'guards', p_outcome.guards));
end
$$;
-- +goose StatementEnd

-- instance_retains says whether an idempotency key that names an instance is alive, or held by another
-- transaction. It locks the expired ones. The caller must hold the instance's lock.
-- Returns: retains; expired: the places of the expired keys, to delete them by
-- Locks:   idempotency_key (for update, those that are not locked)
-- +goose StatementBegin
create function pawl_private.instance_retains(
  p_tenant text, p_id uuid, p_now timestamptz, out retains boolean, out expired tid[]
)
language plpgsql volatile -- A PL/pgSQL function keeps its plan; a SQL function does not.
as $$
begin
  select not coalesce(bool_and(l.place is not null), true), array_agg(l.place)
  into retains, expired
  from (
    select h.key
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_id and h.key is not null
    union
    select r.key
    from pawl.idempotency_key r
    where r.tenant_id = p_tenant and r.instance_id = p_id and r.decision <> 'applied'
  ) n
  cross join lateral (
    select k.instance_id
    from pawl.idempotency_key k
    where k.tenant_id = p_tenant and k.key = n.key
    limit 1
  ) k
  left join lateral (
    select k.ctid as place
    from pawl.idempotency_key k
    where k.tenant_id = p_tenant and k.key = n.key and k.instance_id = p_id and k.expires_at <= p_now
    limit 1
    for update skip locked
  ) l on true
  where k.instance_id = p_id; -- A key that expired may have been taken by another instance since.
end
$$;
-- +goose StatementEnd

-- 20_instance/create.sql

-- create starts instances of the latest version of their workflow, and records what was decided.
-- p_instance_correlation_ids: the correlation ids of the instances; part of the fingerprint
-- p_correlation_ids:          the correlation ids of the commands; an instance without one takes it
-- p_lifetimes:                override the workflow's ttl
-- p_callback_urls:            where to send the end of the instance, signed with p_callback_secrets;
--                             null if no command has one
-- p_checked:                  as for fire, of the context schema
-- Returns: one outcome per command, in no order. 'instance-exists' shows the id of the instance that
--          has the business key. 'context-unchecked' comes with the schema that the caller must check
-- Raises:  40001 a key, or the holder of a business key, vanished while it was read: try again;
--          what an assign or a guard raises even in silent mode
-- Locks:   idempotency_key (by key), then instance (the business key)
-- Writes:  idempotency_key, instance, history, timer, callback
-- +goose StatementBegin
create function pawl.create(
  p_tenants text[], p_workflows text[], p_contexts jsonb[], p_keys text[], p_business_keys text[],
  p_instance_correlation_ids text[], p_lifetimes interval[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_callback_urls text[] default null, p_callback_secrets text[] default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_ids uuid[] := array(select pawl_private.uuid_v7(v_now) from generate_series(1, cardinality(p_workflows)));
  v_row record;
  v_ordinals integer[];
  v_tenants text[];
  v_keys text[];
  v_fingerprints bytea[];
  v_exists boolean := false;
  v_lost integer[];
  v_place integer;
  v_found integer;
begin
  select * into strict v_setting from pawl.setting;
  for v_row in
    with decided as materialized (
      select
        c.ordinal::integer as ordinal,
        coalesce(e.refusal, (z.macrostep).refusal, 'applied') as code,
        coalesce((z.macrostep).instance, n.instance) as instance,
        b.id as existing_id,
        c.tenant,
        c.workflow,
        c.business_key,
        nullif(c.key, '') as key,
        case when c.key <> '' then sha256(convert_to(
          jsonb_build_array(
            'create', c.workflow, c.context, c.business_key, c.instance_correlation_id,
            extract(epoch from c.lifetime))::text
          || coalesce(nullif(p_callback_urls[c.ordinal], '') || ' ' || p_callback_secrets[c.ordinal], ''),
          'UTF8'))
        end as fingerprint,
        coalesce((z.macrostep).events, s.events) as actions,
        coalesce((z.macrostep).timeouts, s.timeouts) as timeouts,
        coalesce((z.macrostep).timeout_events, s.timeout_events) as timeout_events,
        (z.macrostep).steps,
        w.context_schema,
        c.actor,
        nullif(c.reason, '') as reason,
        coalesce(nullif(c.correlation_id, ''), nullif(c.instance_correlation_id, '')) as correlation_id,
        nullif(c.traceparent, '') as traceparent
      from unnest(
          v_ids, p_tenants, p_workflows, p_contexts, p_keys, p_business_keys, p_instance_correlation_ids, p_lifetimes,
          p_checked, p_actors, p_reasons, p_correlation_ids, p_traceparents
        ) with ordinality as c (
          id, tenant, workflow, context, key, business_key, instance_correlation_id, lifetime, checked,
          actor, reason, correlation_id, traceparent, ordinal)
      left join lateral (
        select true as seen
        from pawl.idempotency_key k
        where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > v_now
        limit 1
      ) k on true
      left join lateral (
        select w.name, w.version, w.initial, w.initial_moves, w.ttl, w.business_key_reusable,
          w.context_schema, w.context_schema_checksum
        from pawl.workflow w
        where w.name = c.workflow
        order by w.version desc
        limit 1
      ) w on true
      left join lateral (
        select s.status, s.events, s.timeouts, s.timeout_events, s.state_hash
        from pawl.workflow_state s
        where s.workflow = w.name and s.workflow_version = w.version and s.state = w.initial
        limit 1
      ) s on true
      left join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = c.tenant and i.workflow = c.workflow and i.business_key = c.business_key
          and (i.status = 'active' or not i.business_key_reusable)
        limit 1
      ) b on true
      cross join lateral (
        select case
          when k.seen then 'seen'
          when w.name is null then 'workflow-not-found'
          when jsonb_typeof(c.context) is distinct from 'object' then 'malformed-request'
          when c.lifetime is not null and w.ttl is null then 'lifetime-without-ttl'
          when octet_length(c.context::text) > v_setting.context_limit then 'context-too-large'
          -- The service has checked the depth of what it gets.
          when c.checked = '*' and pawl_private.is_too_deep(c.context) then 'malformed-request'
          when w.context_schema is not null and c.checked is distinct from '*'
            and c.checked is distinct from w.context_schema_checksum then 'context-unchecked'
          when b.id is not null then 'instance-exists'
        end as refusal
        offset 0
      ) e
      cross join lateral (
        select case when e.refusal is null then
          pawl_private.instance_row(
            p_tenant_id => c.tenant, p_id => c.id, p_workflow => c.workflow, p_workflow_version => w.version,
            p_state => w.initial, p_status => s.status, p_version => 1, p_context => c.context,
            p_business_key => nullif(c.business_key, ''), p_business_key_reusable => w.business_key_reusable,
            p_correlation_id => coalesce(nullif(c.instance_correlation_id, ''), nullif(c.correlation_id, '')),
            p_created_at => v_now, p_state_changed_at => v_now, p_expires_at => v_now + coalesce(c.lifetime, w.ttl),
            p_state_hash => s.state_hash)
        end as instance
        offset 0
      ) n
      cross join lateral (
        select case when e.refusal is null and w.initial_moves then
          pawl_private.begin_macrostep(
            p_instance => n.instance, p_reason => nullif(c.reason, ''), p_now => v_now, p_setting => v_setting)
        end as macrostep
        offset 0
      ) z
    ),
    claimed as (
      insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
      select distinct on (d.tenant, d.key)
        d.tenant, d.key, d.fingerprint, d.code, (d.instance).id, (d.instance).version,
        v_now + v_setting.idempotency_ttl
      from decided d
      where d.key is not null and d.code = 'applied'
      order by d.tenant, d.key, d.ordinal
      on conflict on constraint idempotency_key_pkey do update
      set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
        version = excluded.version, expires_at = excluded.expires_at
      where k.expires_at <= v_now
      returning k.tenant_id, k.key, k.instance_id
    ),
    -- Whether the decision is this call's to make.
    owned as materialized (
      select
        d.*,
        d.code <> 'seen' and (
          d.key is null
          or d.code <> 'applied'
          or (d.tenant, d.key, (d.instance).id) in (select k.tenant_id, k.key, k.instance_id from claimed k)
        ) as owned
      from decided d
    ),
    started as (
      insert into pawl.instance
      select (o.instance).*
      from owned o
      where o.owned and o.code = 'applied'
      order by o.tenant, o.workflow, o.business_key
      on conflict (tenant_id, workflow, business_key)
        where business_key is not null and (status = 'active' or not business_key_reusable) do nothing
      returning id
    ),
    kept as materialized (
      select o.*, o.owned and o.code = 'applied' and (o.instance).id in (select n.id from started n) as started
      from owned o
    ),
    appended as (
      insert into pawl.history (
        tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, expires_at,
        actor, reason, key, correlation_id, traceparent, at)
      select
        i.tenant_id, i.id, 1, i.workflow, i.workflow_version, 'created', i.state, i.status, i.context, i.expires_at,
        p.actor, p.reason, p.key, p.correlation_id, p.traceparent, v_now
      from kept p
      cross join lateral (select (p.instance).*) i
      where p.started and p.steps is null
    ),
    armed as (
      insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried)
      select p.tenant, (p.instance).id, t.due_at, (p.instance).version, 0
      from kept p
      cross join lateral (
        select pawl_private.deadline(v_now, p.timeouts, (p.instance).expires_at) as due_at
      ) t
      where p.started and (p.instance).status = 'active' and t.due_at is not null
    )
    select
      p.owned,
      p.code = 'applied' and not p.started as lost,
      p.ordinal,
      p.tenant,
      p.key,
      p.fingerprint,
      case when p.started then p.steps end as steps,
      (
        p.ordinal, p.code, false,
        case
          when p.started then p.instance
          when p.code = 'instance-exists' then
            pawl_private.instance_row(
              p_tenant_id => p.tenant, p_id => p.existing_id, p_workflow => p.workflow,
              p_business_key => p.business_key)
        end,
        case when p.started then p.actions end,
        null,
        case when p.code = 'context-unchecked' then p.context_schema end,
        case when p.started and (p.instance).status = 'active' then
          pawl_private.deadline_event(v_now, p.timeouts, p.timeout_events, (p.instance).expires_at)
        end,
        case when p.started and (p.instance).status = 'active' then
          pawl_private.deadline(v_now, p.timeouts, (p.instance).expires_at)
        end
      )::pawl.outcome as outcome
    from kept p
  loop
    if not v_row.owned then
      v_ordinals := v_ordinals || v_row.ordinal;
      v_tenants := v_tenants || v_row.tenant;
      v_keys := v_keys || v_row.key;
      v_fingerprints := v_fingerprints || v_row.fingerprint;
    elsif v_row.lost then
      v_lost := v_lost || v_row.ordinal;
    else
      if v_row.steps is not null then
        perform pawl_private.append_history(
          p_steps => v_row.steps, p_kind => 'created', p_at => v_now, p_event => null, p_payload => null,
          p_actor => p_actors[v_row.ordinal], p_reason => p_reasons[v_row.ordinal], p_key => v_row.key,
          p_correlation_id => p_correlation_ids[v_row.ordinal], p_traceparent => p_traceparents[v_row.ordinal]);
      end if;
      if p_callback_urls[v_row.ordinal] <> '' and (v_row.outcome).code = 'applied' then
        insert into pawl.callback (tenant_id, instance_id, url, secret, created_at)
        values (
          v_row.tenant, ((v_row.outcome).instance).id, p_callback_urls[v_row.ordinal],
          nullif(p_callback_secrets[v_row.ordinal], ''), v_now);
      end if;
      v_exists := v_exists or (v_row.outcome).code = 'instance-exists';
      return next v_row.outcome;
    end if;
  end loop;

  -- The caller that is told that the business key is taken may have created that instance itself.
  if v_exists or v_lost is not null then
    perform pawl_private.commit_synchronously();
  end if;

  -- Another transaction, or another command of this call, took the business key after it was looked
  -- up. Such a refusal is not recorded, so its key is given back.
  if v_lost is not null then
    foreach v_place in array v_lost loop
      delete from pawl.idempotency_key k where k.tenant_id = p_tenants[v_place] and k.key = p_keys[v_place];
    end loop;
    return query
    select
      c.ordinal, 'instance-exists', false,
      pawl_private.instance_row(
        p_tenant_id => p_tenants[c.ordinal], p_id => i.id, p_workflow => i.workflow, p_business_key => i.business_key),
      null::text[], null::text[], null::jsonb, null::text, null::timestamptz
    from unnest(v_lost) as c (ordinal)
    cross join lateral (
      select i.id, i.workflow, i.business_key
      from pawl.instance i
      where i.tenant_id = p_tenants[c.ordinal]
        and i.workflow = p_workflows[c.ordinal]
        and i.business_key = p_business_keys[c.ordinal]
        and (i.status = 'active' or not i.business_key_reusable)
      limit 1
    ) i;
    get diagnostics v_found = row_count;
    if v_found < cardinality(v_lost) then
      raise exception 'the holder of a business key was removed meanwhile; try again' using errcode = '40001';
    end if;
  end if;

  if v_ordinals is not null then
    return query select r.*
    from pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => v_ordinals, p_tenants => v_tenants, p_keys => v_keys,
      p_fingerprints => v_fingerprints, p_events => '{}') r;
  end if;
end
$$;
-- +goose StatementEnd

-- 20_instance/create_one.sql

-- create_one starts one instance inside the caller's own transaction. A key is needed only to make a
-- retry of the whole transaction safe. The caller vouches for the context: the service checks JSON
-- Schemas, the database does not.
-- Returns: the instance
-- Raises:  PW400, PW40W, PW40E, PW413, PW42G, PW42K: see pawl_private.condition; the detail is JSON.
--          What create raises
-- Locks:   idempotency_key, then instance
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.create_one(
  p_workflow text,
  p_context jsonb default '{}',
  p_key text default null,
  p_tenant text default 'default',
  p_business_key text default null,
  p_actor text default session_user,
  p_correlation_id text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_business_key => p_business_key,
    p_correlation_id => p_correlation_id));
  select * into strict v_outcome from pawl.create(
    p_tenants => array[p_tenant], p_workflows => array[p_workflow], p_contexts => array[p_context],
    p_keys => array[coalesce(p_key, '')], p_business_keys => array[coalesce(p_business_key, '')],
    p_instance_correlation_ids => array[coalesce(p_correlation_id, '')], p_lifetimes => array[null::interval],
    p_checked => array['*'], p_actors => array[p_actor], p_reasons => array[''], p_correlation_ids => array[''],
    p_traceparents => array['']);
  if v_outcome.code <> 'applied' then
    perform pawl_private.refuse(p_outcome => v_outcome, p_id => null, p_event => null, p_expected => null);
  end if;
  return v_outcome.instance;
end
$$;
-- +goose StatementEnd

-- 20_instance/fire.sql

-- fire moves an instance along one transition for each command, and along the eventless transitions
-- that follow, and records what was decided. Commands for one instance are carried out in their order,
-- in rounds: first the first command of each instance, then the second of each, and so on. The whole
-- call is one transaction.
-- p_expected: '' for none, '*' for any version, else an array literal of the versions that will do,
--             such as '{3}'
-- p_checked:  the checksum of the payload schema that the caller has checked the payload against,
--             or '*' for any; see 'payload-unchecked'
-- p_by_timer: whether the commands are timeouts or lifetimes that are due. Such a command needs no key:
--             after it the instance no longer has the version that the command expects. Its key in history
--             is made of that version, as 'timer:3'
-- Returns: one outcome per command, in no order. 'payload-unchecked' comes with the schema that the
--          caller must check before it calls again. The later commands for the same instance have the
--          outcome 'undecided'
-- Raises:  40001 a key vanished while it was read: try again; what a guard or an assign raises even
--          in silent mode
-- Locks:   instance (for no key update, by id), then idempotency_key (by key)
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.fire(
  p_tenants text[], p_ids uuid[], p_events text[], p_payloads jsonb[], p_keys text[], p_expected text[],
  p_checked text[], p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_by_timer boolean default false
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_seen boolean[];
  v_rounds integer[] := '{1}';
  v_last_round integer := 1;
  v_undecided integer[] := '{}';
  v_row record;
  v_ordinals integer[];
  v_tenants text[];
  v_keys text[];
  v_fingerprints bytea[];
  v_events text[];
begin
  if cardinality(p_ids) > 1 then
    select array_agg(c.round order by c.ordinal), max(c.round)
    into v_rounds, v_last_round
    from (
      select c.ordinal, row_number() over (partition by c.tenant, c.id order by c.ordinal)::integer as round
      from unnest(p_tenants, p_ids) with ordinality as c (tenant, id, ordinal)
    ) c;
  end if;

  select
    g as setting,
    array(
      select (
        select true
        from pawl.idempotency_key k
        where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > v_now
      )
      from unnest(p_tenants, p_keys) as c (tenant, key)) as seen
  into strict v_row
  from pawl.setting g;
  v_setting := v_row.setting;
  v_seen := v_row.seen;
  if true = any (v_seen) then
    -- Unless the time to live slides, a replay takes no lock.
    return query select r.*
    from (
      select
        array_agg(c.ordinal::integer) as ordinals,
        array_agg(c.tenant) as tenants,
        array_agg(c.key) as keys,
        array_agg(pawl_private.fingerprint(c.id, c.event, c.payload)) as fingerprints,
        array_agg(c.event) as events
      from unnest(p_tenants, p_ids, p_events, p_payloads, p_keys, v_seen)
        with ordinality as c (tenant, id, event, payload, key, seen, ordinal)
      where c.seen
    ) c
    cross join lateral pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => c.ordinals, p_tenants => c.tenants, p_keys => c.keys,
      p_fingerprints => c.fingerprints, p_events => c.events) r;
    if true = all (v_seen) then
      return;
    end if;
  end if;

  perform i.found
  from (
    select distinct c.id, c.tenant
    from unnest(p_tenants, p_ids, v_seen) as c (tenant, id, seen)
    where c.seen is not true
    order by c.id, c.tenant
  ) c
  cross join lateral (
    select true as found
    from pawl.instance i
    where i.tenant_id = c.tenant and i.id = c.id
    limit 1
    for no key update
  ) i;

  -- The clock is read under the lock, so that time rises with the version.
  v_now := pawl.now();

  for v_round in 1 .. v_last_round loop
    for v_row in
      with decided as materialized (
        select
          c.ordinal::integer as ordinal,
          c.tenant,
          c.event,
          c.payload,
          nullif(c.key, '') as key,
          case when c.key <> '' then pawl_private.fingerprint(c.id, c.event, c.payload) end as fingerprint,
          c.actor,
          nullif(c.reason, '') as reason,
          nullif(c.correlation_id, '') as correlation_id,
          nullif(c.traceparent, '') as traceparent,
          d.*
        from unnest(
            p_tenants, p_ids, p_events, p_payloads, p_keys, p_expected, p_checked, p_actors, p_reasons,
            p_correlation_ids, p_traceparents, v_seen, v_rounds
          ) with ordinality as c (
            tenant, id, event, payload, key, expected, checked, actor, reason, correlation_id, traceparent, seen, round,
            ordinal)
        left join lateral (
          select i.* from pawl.instance i where i.tenant_id = c.tenant and i.id = c.id limit 1
        ) i on true
        cross join lateral pawl_private.decide(
          p_now => v_now, p_setting => v_setting, p_instance => i,
          p_command => (
            c.tenant, c.event, c.payload, c.key, c.expected, c.checked, c.reason, p_by_timer
          )::pawl_private.fire_command) d
        where c.seen is not true and c.round = v_round and c.ordinal <> all (v_undecided)
      ),
      claimed as (
        insert into pawl.idempotency_key as k (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
        select distinct on (d.tenant, d.key)
          d.tenant, d.key, d.fingerprint, d.code, (d.instance).id, (d.instance).version,
          v_now + v_setting.idempotency_ttl
        from decided d
        where d.key is not null and pawl_private.is_decision(d.code)
        order by d.tenant, d.key, d.ordinal
        on conflict on constraint idempotency_key_pkey do update
        set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
          version = excluded.version, expires_at = excluded.expires_at
        where k.expires_at <= v_now
        -- If two commands have one key, the instance tells whose key was claimed.
        returning k.tenant_id, k.key, k.instance_id
      ),
      -- The commands that this call decides; the others are replays.
      owned as materialized (
        select d.ordinal
        from decided d
        where d.code <> 'seen' and (
          d.key is null
          or not pawl_private.is_decision(d.code)
          or (d.tenant, d.key, (d.instance).id) in (select k.tenant_id, k.key, k.instance_id from claimed k)
        )
      ),
      -- "is true" keeps the planner, which expects few commands, from a nested loop over both lists.
      moved as (
        -- Every row exists and is locked. So this is always an update, and it looks up each row by the
        -- full key under any plan. The plan of an update with a join need not do so.
        insert into pawl.instance as i
        select (d.instance).*
        from decided d
        where (d.code = 'applied' and d.ordinal in (select o.ordinal from owned o)) is true
        on conflict on constraint instance_pkey do update
        set state = excluded.state, status = excluded.status, version = excluded.version, context = excluded.context,
          state_changed_at = excluded.state_changed_at, expires_at = excluded.expires_at, error = excluded.error,
          state_hash = excluded.state_hash
      ),
      appended as (
        insert into pawl.history (
          tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
          context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at)
        select
          i.tenant_id, i.id, i.version, i.workflow, i.workflow_version,
          case when not p_by_timer then 'transition' when d.event = 'ttl' then 'expired' else 'timeout' end,
          d.event, d.from_state, i.state, i.status, i.context, d.payload, i.expires_at, i.error, d.actor, d.reason,
          case when p_by_timer then 'timer:' || i.version - 1 else d.key end,
          coalesce(d.correlation_id, i.correlation_id), d.traceparent, i.state_changed_at
        from decided d
        cross join lateral (select (d.instance).*) i
        where (d.code = 'applied' and d.ordinal in (select o.ordinal from owned o)) is true
          and d.steps is null
      ),
      armed as (
        insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
        select d.tenant, (d.instance).id, d.due_at, (d.instance).version, 0
        from decided d
        where (d.code = 'applied' and d.ordinal in (select o.ordinal from owned o)) is true
          and d.due_at is not null
        on conflict on constraint timer_pkey do update
        set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = 0
        -- A timer that is due too early is left as it is, and corrected when it is due.
        where t.due_at > excluded.due_at or t.due_at <= v_now
      )
      select
        d.ordinal in (select o.ordinal from owned o) as owned,
        d.ordinal,
        d.tenant,
        d.key,
        d.fingerprint,
        d.event,
        case
          when d.code = 'applied' and d.was_timed and d.due_at is null then (d.instance).id
        end as disarmed,
        d.steps,
        (
          d.ordinal, d.code, false, d.instance, d.actions, d.guards, d.payload_schema, d.timeout_event, d.due_at
        )::pawl.outcome as outcome
      from decided d
    loop
      if not v_row.owned then
        v_ordinals := v_ordinals || v_row.ordinal;
        v_tenants := v_tenants || v_row.tenant;
        v_keys := v_keys || v_row.key;
        v_fingerprints := v_fingerprints || v_row.fingerprint;
        v_events := v_events || v_row.event;
        continue;
      end if;
      if v_row.steps is not null then
        perform pawl_private.append_history(
          p_steps => v_row.steps,
          p_kind => case when not p_by_timer then 'transition' when v_row.event = 'ttl' then 'expired' else 'timeout' end,
          p_at => ((v_row.outcome).instance).state_changed_at, p_event => v_row.event,
          p_payload => p_payloads[v_row.ordinal], p_actor => p_actors[v_row.ordinal],
          p_reason => p_reasons[v_row.ordinal],
          p_key => case when p_by_timer then 'timer:' || (v_row.steps[1]).version else v_row.key end,
          p_correlation_id => p_correlation_ids[v_row.ordinal], p_traceparent => p_traceparents[v_row.ordinal]);
      end if;
      if v_row.disarmed is not null then
        -- One by one, since the plan of a delete with a join need not look up rows by the full key.
        delete from pawl.timer t where t.tenant_id = v_row.tenant and t.instance_id = v_row.disarmed;
      end if;
      if (v_row.outcome).code = 'payload-unchecked' and v_round < v_last_round then
        -- The caller checks the payload and calls again. Until then, later commands for the instance must
        -- not overtake this one.
        v_undecided := v_undecided || array(
          select c.ordinal::integer
          from unnest(p_tenants, p_ids, v_seen) with ordinality as c (tenant, id, seen, ordinal)
          where c.tenant = v_row.tenant and c.id = p_ids[v_row.ordinal] and c.ordinal > v_row.ordinal
            and c.seen is not true);
      end if;
      return next v_row.outcome;
    end loop;
  end loop;
  if v_undecided <> '{}' then
    return query select o.*
    from unnest(v_undecided) as u (ordinal)
    cross join lateral jsonb_populate_record(
      null::pawl.outcome, jsonb_build_object('ordinal', u.ordinal, 'code', 'undecided', 'replayed', false)) o;
  end if;

  if v_ordinals is not null then
    return query select r.*
    from pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => v_ordinals, p_tenants => v_tenants, p_keys => v_keys,
      p_fingerprints => v_fingerprints, p_events => v_events) r;
  end if;
end
$$;
-- +goose StatementEnd

-- 20_instance/fire_one.sql

-- fire_one moves one instance inside the caller's own transaction, so that the step and the caller's
-- business rows commit together or not at all. The caller vouches for the payload's schema, as with
-- create_one.
-- Returns: the instance after the step
-- Raises:  PW400, PW404, PW409, PW40G, PW412, PW413, PW422, PW42G, PW42K, PW428: see
--          pawl_private.condition; the detail is JSON. What fire raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.fire_one(
  p_id uuid,
  p_event text,
  p_payload jsonb default '{}',
  p_key text default null,
  p_expected_version bigint default null,
  p_tenant text default 'default',
  p_actor text default session_user,
  p_correlation_id text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id));
  select * into strict v_outcome from pawl.fire(
    p_tenants => array[p_tenant], p_ids => array[p_id], p_events => array[p_event], p_payloads => array[p_payload],
    p_keys => array[coalesce(p_key, '')], p_expected => array[coalesce('{' || p_expected_version || '}', '')],
    p_checked => array['*'], p_actors => array[p_actor], p_reasons => array[''],
    p_correlation_ids => array[coalesce(p_correlation_id, '')], p_traceparents => array['']);
  if v_outcome.code <> 'applied' then
    perform pawl_private.refuse(
      p_outcome => v_outcome, p_id => p_id, p_event => p_event, p_expected => p_expected_version);
  end if;
  return v_outcome.instance;
end
$$;
-- +goose StatementEnd

-- 20_instance/guard_holds.sql

-- guard_holds says for each of the given events whether a transition of the instance's state would be
-- taken for p_payload. Payload schemas play no part.
-- Returns: one row per event, by name
-- Raises:  what a guard or an assign raises even in silent mode
-- +goose StatementBegin
create function pawl.guard_holds(p_instance pawl.instance, p_events text[], p_payload jsonb)
returns table (event text, holds boolean)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.event, t.target is not null
  from unnest(p_events) as e (event)
  left join lateral pawl_private.choose(
    p_instance.workflow, p_instance.workflow_version, p_instance.state, e.event,
    pawl_private.document(p_instance, p_payload, pawl.now()), '*') t on true
  order by e.event
$$;
-- +goose StatementEnd

-- 20_instance/history_page.sql

-- history_page reads a page of an instance's history: the steps after the version p_after.
-- Returns: up to p_limit rows, in the order of their versions. The page ends with the row by which its contexts
--          and payloads have p_bytes, so it has at least one row if there are any. Only the documents of these rows
--          are read
-- +goose StatementBegin
create function pawl.history_page(
  p_tenant text, p_instance uuid, p_after bigint, p_limit integer, p_bytes bigint
) returns setof pawl.history
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_step pawl.history;
  v_bytes bigint := 0;
begin
  for v_step in
    select h.*
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_instance and h.version > p_after
    order by h.version
    limit p_limit
  loop
    return next v_step;
    v_bytes := v_bytes + octet_length(v_step.context::text) + coalesce(octet_length(v_step.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 20_instance/instances.sql

-- instances reads instances by their ids. The planner inlines it, and every plan looks up each instance by
-- its full key.
-- Returns: the instances that exist, in no order
-- +goose StatementBegin
create function pawl.instances(p_tenants text[], p_ids uuid[]) returns setof pawl.instance
language sql stable parallel safe
as $$
  select i.*
  from unnest(p_tenants, p_ids) as c (tenant, id)
  cross join lateral (select i.* from pawl.instance i where i.tenant_id = c.tenant and i.id = c.id limit 1) i
$$;
-- +goose StatementEnd

-- 20_instance/instances_page.sql

-- instances_page reads a tenant's instances by their ids, and looks up each by its full key.
-- Returns: those that exist, in the order of p_ids. The page ends with the one by which its contexts have p_bytes,
--          so it has at least one if there are any. Only the contexts of these are read
-- +goose StatementBegin
create function pawl.instances_page(p_tenant text, p_ids uuid[], p_bytes bigint) returns setof pawl.instance
language plpgsql stable rows 50
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_instance pawl.instance;
  v_bytes bigint := 0;
begin
  for v_instance in
    select i.*
    from unnest(p_ids) with ordinality as c (id, place)
    cross join lateral (select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = c.id limit 1) i
    order by c.place
  loop
    return next v_instance;
    v_bytes := v_bytes + octet_length(v_instance.context::text);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 20_instance/outcome_rows.sql

-- outcome_rows writes an outcome as one flat row, for callers that cannot read its instance, which is
-- a composite type. The planner inlines it.
-- Returns: one row
-- +goose StatementBegin
create function pawl.outcome_rows(p_outcome pawl.outcome) returns setof pawl.outcome_row
language sql immutable parallel safe
as $$
  select
    p_outcome.ordinal, p_outcome.code, p_outcome.replayed, i.id, i.workflow, i.workflow_version, i.state,
    i.status::text, i.version::bigint, i.context::jsonb, i.business_key::text, i.correlation_id::text, i.created_at,
    i.state_changed_at, i.expires_at, i.error::jsonb, p_outcome.actions, p_outcome.guards, p_outcome.schema,
    p_outcome.timeout_event, p_outcome.timeout_due_at
  from (select (p_outcome.instance).*) i
$$;
-- +goose StatementEnd

-- 20_instance/preview.sql

-- preview decides what fire would decide, and writes nothing: a dry run. The caller's transaction may
-- be read-only. Keys play no part.
-- p_expected, p_checked: as for fire
-- p_instances: rows to decide for instead of the stored instances, one per command; null for the stored
-- Returns: one outcome per command, in no order; an applied one shows the instance as it would be
-- Raises:  PW400 malformed-request if p_expected is not as described; what a guard or an assign raises even in silent mode
-- +goose StatementBegin
create function pawl.preview(
  p_tenant text, p_ids uuid[], p_events text[], p_payloads jsonb[], p_expected text[], p_checked text[],
  p_instances pawl.instance[] default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.refuse_malformed(format('%L is no array of versions', left(e.expected, 100)))
  from unnest(p_expected) as e (expected)
  where e.expected not in ('', '*') and case
    when e.expected ~ '^[{]((-?[0-9]{1,18}|[0-9]{19,30})(,(-?[0-9]{1,18}|[0-9]{19,30}))*)?[}]$' then 9223372036854775807 < any (e.expected::numeric[])
    else true
  end;
  return query
  select c.ordinal::integer, d.code, false, d.instance, d.actions, d.guards, d.payload_schema, d.timeout_event, d.due_at
  from (select pawl.now() as now offset 0) n -- Read once: all commands are decided at one time.
  cross join unnest(p_ids, p_events, p_payloads, p_expected, p_checked)
    with ordinality as c (id, event, payload, expected, checked, ordinal)
  left join lateral (
    select i as instance
    from pawl.instance i
    where p_instances is null and i.tenant_id = p_tenant and i.id = c.id
    limit 1
  ) i on true
  cross join lateral pawl_private.decide(
    p_now => n.now, p_setting => (select g from pawl.setting g),
    p_instance => case when p_instances is null then i.instance else p_instances[c.ordinal] end,
    p_command => (
      p_tenant, c.event, c.payload, '', c.expected, c.checked, null, false
    )::pawl_private.fire_command) d;
end
$$;
-- +goose StatementEnd

-- 20_instance/simulate.sql

-- simulate decides an event for an instance that does not exist, in the given state, at the given
-- version, with the given context. It writes nothing.
-- p_state:   null to create the instance with the context first
-- p_event:   null to decide no event
-- p_checked: as for fire
-- Returns: one outcome, as preview does; none if the workflow has no such version or state
-- Raises:  PW400 malformed-request; what preview raises
-- +goose StatementBegin
create function pawl.simulate(
  p_workflow text, p_workflow_version integer, p_state text, p_version bigint, p_context jsonb,
  p_event text, p_payload jsonb, p_checked text
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_instance pawl.instance;
  v_macrostep pawl_private.macrostep;
begin
  perform pawl_private.refuse_malformed(case
    when jsonb_typeof(p_context) is distinct from 'object' then 'the context must be a JSON object'
    when p_version not between 1 and 1000000000000000 or p_version is null then 'the version must be from 1 to 10^15'
  end);
  select (pawl_private.instance_row(
    p_tenant_id => 'simulation', p_id => '00000000-0000-0000-0000-000000000000', p_workflow => s.workflow,
    p_workflow_version => s.workflow_version, p_state => s.state, p_status => s.status, p_version => p_version,
    p_context => p_context, p_created_at => v_now, p_state_changed_at => v_now, p_expires_at => v_now + w.ttl)).*
  into v_instance
  from pawl.workflow w
  join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version
  where w.name = p_workflow and w.version = p_workflow_version and s.state = coalesce(p_state, w.initial);
  if not found then
    return;
  end if;
  if p_state is null then
    v_macrostep := pawl_private.begin_macrostep(
      p_instance => v_instance, p_reason => null, p_now => v_now, p_setting => (select g from pawl.setting g));
    v_instance := coalesce(v_macrostep.instance, v_instance);
  end if;
  if p_event is not null and v_macrostep.refusal is null then
    return query select o.*
    from pawl.preview(
      p_tenant => 'simulation', p_ids => array[v_instance.id], p_events => array[p_event],
      p_payloads => array[p_payload], p_expected => array['*'], p_checked => array[p_checked],
      p_instances => array[v_instance]) o;
  else
    return query select
      1, coalesce(v_macrostep.refusal, 'applied'), false, v_instance, v_macrostep.events, null::text[], null::jsonb,
      null::text, null::timestamptz;
  end if;
end
$$;
-- +goose StatementEnd

-- 20_instance/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.create'),
  ('service', 'pawl.fire'),
  ('service', 'pawl.preview'),
  ('service', 'pawl.instances'),
  ('service', 'pawl.instances_page'),
  ('service', 'pawl.history_page'),
  ('service', 'pawl.simulate'),
  ('service', 'pawl.outcome_rows'),
  ('service', 'pawl.guard_holds'),
  ('service', 'pawl.create_one'),
  ('service', 'pawl.fire_one'),
  ('caller', 'pawl.create_one'),
  ('caller', 'pawl.fire_one');

-- 30_timer/tables.sql

-- Module timer: the timer worker's calls. A row of pawl.timer says when to look at an instance. Which
-- deadline is due is read from the instance, under its lock. Then fire makes the step, as for any other
-- event.
--
-- There are two lanes, so that slow guards cost only the timers of their own kind. A kind is a tenant, a
-- version of a workflow, and an event: a timeout's or 'ttl'. The fast lane fires batches under a short
-- statement timeout. A kind whose timers do not keep to it is noted in slow_queue, and its timers are moved to
-- the slow lane when they are due. The fast lane tries none of them until slow_until, and the index that it
-- reads does not hold them. The slow lane takes its queues by turns: first by tenant, then by workflow. It
-- fires one timer after the other, each in a subtransaction, under the service's own statement timeout.
--
-- One process at a time works in each lane: its transaction holds the lane's row of timer_lane. Others would
-- only wait for the same instances, and the slow lane never runs more than one guard at a time. The lanes wait
-- for no command: they skip an instance that is locked, and look at it again later.
--
-- If a deadline comes and its step cannot be made, the timer *fails*. It keeps the reason, and the step is
-- tried again every minute, until the instance moves or its next deadline is due.
--
-- Lock order: timer_lane, before all of the engine's; slow_queue, after them.

-- timer_lane has a row for each lane. Who locks the row works in the lane. Only the owner of the schema, and
-- with it the functions of this module, can lock it. An advisory lock could be held by any role that can
-- connect.
create table pawl_private.timer_lane (
  name text not null,
  constraint timer_lane_pkey primary key (name),
  constraint timer_lane_is_known check (name in ('fast', 'slow'))
);

insert into pawl_private.timer_lane (name) values ('fast'), ('slow');

-- slow_queue has a row for each kind of timers that is, or was in the last day, slow.
create table pawl_private.slow_queue (
  id integer not null generated always as identity,
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  event text collate "C" not null,
  times integer not null,
  slow_until timestamptz not null,
  turn_at timestamptz not null,
  constraint slow_queue_pkey primary key (id),
  constraint slow_queue_kind_key unique (tenant_id, workflow, workflow_version, event),
  constraint slow_queue_times_are_counted check (times >= 1)
);

comment on column pawl_private.slow_queue.times is 'how often the fast lane found the kind slow; see slow_for';
comment on column pawl_private.slow_queue.slow_until is 'until then the fast lane moves timers of the kind without trying them';
comment on column pawl_private.slow_queue.turn_at is 'when the slow lane last took from the queue';

-- next_timeout is the next deadline of each instance that has a timer. event: that of the timeout, or 'ttl'
-- for the lifetime. last_error: why the timer fails; null if it does not. It must agree with
-- pawl_private.next_deadline.
create view pawl.next_timeout as
select
  t.tenant_id,
  t.instance_id,
  d.event::text as event,
  d.due_at::timestamptz as due_at,
  (case when t.failed_version = i.version then t.last_error end)::text as last_error
from pawl.timer t
join pawl.instance i on i.tenant_id = t.tenant_id and i.id = t.instance_id
cross join lateral (
  select u.event, i.state_changed_at + u.timeout as due_at, u.position
  from pawl.workflow_state s
  cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as u (timeout, event, position)
  where s.workflow = i.workflow
    and s.workflow_version = i.workflow_version
    and s.state = i.state
    and u.position > case when t.armed_version = i.version then t.tried else 0 end
  union all
  select 'ttl'::text as event, i.expires_at as due_at, null::bigint as position
  where i.expires_at is not null
  order by due_at, position
  limit 1
) d
where i.status = 'active';

-- timeout_row is the row type of instance_timeout and past_timeout. It never has rows. It is a view because
-- sqlc knows the columns of a function that returns rows of a view.
create view pawl.timeout_row as
select null::text as event, null::timestamptz as due_at, null::text as last_error where false;

-- 30_timer/private.sql

-- next_deadline is the nearest deadline of an instance: of its state's timeouts but the first
-- p_tried, which were refused, and of its lifetime. A timeout precedes a lifetime that is due at the
-- same time.
-- Returns: one row, or none if there is no deadline. tried: the p_tried that leads to the deadline
--          after this one; null for the lifetime, which is the last
-- +goose StatementBegin
create function pawl_private.next_deadline(p_instance pawl.instance, p_tried integer)
returns table (due_at timestamptz, event text, tried integer)
language sql stable
as $$
  select d.due_at, d.event, d.tried
  from (
    select p_instance.state_changed_at + u.timeout as due_at, u.event, u.position::integer as tried
    from pawl.workflow_state s
    cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as u (timeout, event, position)
    where s.workflow = p_instance.workflow
      and s.workflow_version = p_instance.workflow_version
      and s.state = p_instance.state
      and u.position > p_tried
    union all
    select p_instance.expires_at, 'ttl', null
    where p_instance.expires_at is not null
  ) d
  where p_instance.status = 'active'
  order by d.due_at, d.tried
  limit 1
$$;
-- +goose StatementEnd

-- due_timers reads the timers of a lane that are due, the oldest first, and locks their instances. It leaves
-- out an instance that is locked, and looks at no more than 5,000 timers to find others.
-- p_queue: a queue of the slow lane; null for the fast lane
-- Returns: up to p_limit rows. tried: how many timeouts of the state were refused. due_at, event: the
--          next deadline, which need not be due; null if there is none. next_tried: as of next_deadline. queue:
--          in the fast lane, the queue that the timer must be moved to, untried; null if it is not known to be
--          slow
-- Locks:   instance (for no key update, those that are not locked)
-- +goose StatementBegin
create function pawl_private.due_timers(p_now timestamptz, p_limit integer, p_queue integer)
returns table (
  instance pawl.instance, queued_version bigint, tried integer, due_at timestamptz, event text, next_tried integer,
  queue integer
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read the timers: by the index of the lane, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
begin
  return query
  select i.instance, i.queued_version, a.tried, d.due_at, d.event, d.tried, q.id
  from (
    select l.instance, t.armed_version, t.queued_version::bigint as queued_version, t.failed_version, t.tried
    from (
      (
        select t.*
        from pawl.timer t
        where p_queue is null and t.due_at <= p_now and t.queued_version is distinct from t.armed_version
        order by t.due_at
        limit 5000
      )
      union all
      (
        select t.*
        from pawl.timer t
        where t.queue = p_queue and t.due_at <= p_now and t.queued_version = t.armed_version
        order by t.queue, t.due_at
        limit 5000
      )
    ) t
    cross join lateral (
      select i as instance
      from pawl.instance i
      where i.tenant_id = t.tenant_id and i.id = t.instance_id
      limit 1
      for no key update skip locked
    ) l
    limit greatest(p_limit, 0) -- A null limit would be none.
  ) i
  -- A refused timeout counts only while the instance stays in the state that refused it. A timeout that
  -- failed is tried again until the next deadline is due; then it counts as refused.
  cross join lateral (
    select case
      when i.armed_version <> (i.instance).version then 0
      when i.failed_version = i.armed_version
        and (select n.due_at <= p_now from pawl_private.next_deadline(i.instance, i.tried + 1) n) then i.tried + 1
      else i.tried
    end as tried
  ) a
  left join lateral pawl_private.next_deadline(i.instance, a.tried) d on true
  left join lateral (
    select q.id
    from pawl_private.slow_queue q
    where p_queue is null and q.tenant_id = (i.instance).tenant_id and q.workflow = (i.instance).workflow
      and q.workflow_version = (i.instance).workflow_version and q.event = d.event and q.slow_until > p_now
    limit 1
  ) q on true;
end
$$;
-- +goose StatementEnd

-- slow_for is for how long a kind of timers counts as slow after it was found slow once more. It is a minute
-- at first, so that a database that was slow as a whole is forgotten soon, and at most an hour.
-- +goose StatementBegin
create function pawl_private.slow_for(p_times integer) returns interval
language sql immutable parallel safe
as $$ select least(interval '1 minute' * 2 ^ least(p_times - 1, 10), interval '1 hour') $$;
-- +goose StatementEnd

-- too_slow says whether so many timers took too long to be fired in the fast lane. As few as 20 of a kind
-- would use up the lane's statement timeout, a quarter of a second.
-- +goose StatementBegin
create function pawl_private.too_slow(p_elapsed interval, p_timers integer) returns boolean
language sql immutable parallel safe
as $$ select p_elapsed > p_timers * interval '12.5 milliseconds' $$;
-- +goose StatementEnd

-- note_slow notes that the kind of an instance's timer is slow.
-- Returns: the kind's queue
-- Writes:  slow_queue
-- +goose StatementBegin
create function pawl_private.note_slow(p_instance pawl.instance, p_event text, p_now timestamptz) returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into pawl_private.slow_queue as q (
    tenant_id, workflow, workflow_version, event, times, slow_until, turn_at)
  values (
    p_instance.tenant_id, p_instance.workflow, p_instance.workflow_version, p_event, 1,
    p_now + pawl_private.slow_for(1), '-infinity')
  on conflict on constraint slow_queue_kind_key do update
  set times = q.times + 1, slow_until = p_now + pawl_private.slow_for(q.times + 1)
  returning id
$$;
-- +goose StatementEnd

-- queue_timer moves a timer to a queue of the slow lane. The caller must hold the instance's lock.
-- Writes:  timer
-- +goose StatementBegin
create function pawl_private.queue_timer(p_instance pawl.instance, p_queue integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  update pawl.timer t
  set queue = p_queue, queued_version = p_instance.version, armed_version = p_instance.version,
    tried = case when t.armed_version = p_instance.version then t.tried else 0 end
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
end
$$;
-- +goose StatementEnd

-- set_timer arms an instance's timer for the next deadline after p_tried timeouts, which were refused. If
-- there is none, it deletes the timer. It clears a failure, and takes the timer out of the slow lane. The caller
-- must hold the instance's lock.
-- Writes:  timer
-- +goose StatementBegin
create function pawl_private.set_timer(p_instance pawl.instance, p_tried integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.timer as t (tenant_id, instance_id, due_at, armed_version, tried)
  select p_instance.tenant_id, p_instance.id, d.due_at, p_instance.version, p_tried
  from pawl_private.next_deadline(p_instance, p_tried) d
  on conflict on constraint timer_pkey do update
  set due_at = excluded.due_at, armed_version = excluded.armed_version, tried = excluded.tried,
    failed_version = null, last_error = null, queue = null, queued_version = null;
  if not found then
    delete from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;
-- +goose StatementEnd

-- fail_timer records why the step of a deadline could not be made. It postpones the timer by a minute, or
-- to the next deadline if that is earlier, and takes it out of the slow lane. p_tried: how many timeouts of the state were refused before
-- this one. p_error: the reason, for everybody who may read the instance. p_cause: the cause, for the log
-- only.
-- Returns: a JSON array with one object for the log; an empty one if the same error was recorded for this
--          version before
-- Writes:  timer
-- +goose StatementBegin
create function pawl_private.fail_timer(
  p_instance pawl.instance, p_tried integer, p_event text, p_error text, p_cause text
) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_known boolean;
begin
  select t.failed_version = p_instance.version and t.armed_version = p_instance.version and t.last_error = p_error
  into v_known
  from pawl.timer t
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  update pawl.timer t
  set armed_version = p_instance.version, tried = p_tried, failed_version = p_instance.version, last_error = p_error,
    queue = null, queued_version = null,
    due_at = least(
      v_now + interval '1 minute',
      (select d.due_at from pawl_private.next_deadline(p_instance, p_tried + 1) d where d.due_at > v_now))
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  if v_known then
    return '[]';
  end if;
  return jsonb_build_array(jsonb_build_object(
    'tenant', p_instance.tenant_id, 'workflow', p_instance.workflow, 'instance', p_instance.id, 'event', p_event,
    'reason', p_error, 'cause', p_cause));
end
$$;
-- +goose StatementEnd

-- fire_timer_batch fires the given timeouts and lifetimes of locked instances. The payload is {"due_at"}, so
-- that history shows how late each was. If no guard of a timeout holds, the timer is armed for the
-- instance's next deadline. If a step cannot be made, the timer fails: see fail_timer. After an exception
-- the batch is fired again, one by one. If the statement timeout comes meanwhile, the timers from then on are
-- left as they were. It comes once in a statement, so the caller must not do much more.
-- p_tried:      how many timeouts of the state were refused before this one
-- p_next_tried: the same, if this one is refused too; null for the lifetime
-- Returns: fired: how many steps were made. failures: the new ones, see fail_timer. done: how many of the timers
--          were dealt with, counted from the first; all, unless the statement timeout came
-- Raises:  57014 the call was cancelled by somebody
-- Locks:   what fire locks, and timer
-- Writes:  what fire writes
-- +goose StatementBegin
create function pawl_private.fire_timer_batch(
  p_tenants text[], p_ids uuid[], p_versions bigint[], p_events text[], p_tried integer[], p_next_tried integer[],
  p_due_at timestamptz[], out fired integer, out failures jsonb, out done integer
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size integer := cardinality(p_ids);
  v_none text[] := array_fill(''::text, array[v_size]);
  v_outcome record;
  v_instance pawl.instance;
  v_error text;
  v_one record;
begin
  fired := 0;
  failures := '[]';
  done := v_size;
  for v_outcome in
    select o.code, o.ordinal
    from pawl.fire(
      p_tenants => p_tenants, p_ids => p_ids, p_events => p_events,
      p_payloads => array(
        select jsonb_build_object('due_at', pawl_private.rfc3339(d.due_at)) from unnest(p_due_at) as d (due_at)),
      p_keys => v_none,
      p_expected => array(select format('{%s}', v.version) from unnest(p_versions) as v (version)),
      p_checked => array_fill('*'::text, array[v_size]),
      p_actors => array_fill('pawl'::text, array[v_size]),
      p_reasons => v_none, p_correlation_ids => v_none, p_traceparents => v_none, p_by_timer => true) o
  loop
    if v_outcome.code = 'applied' then
      fired := fired + 1;
      continue;
    end if;
    select i.* into strict v_instance
    from pawl.instance i
    where i.tenant_id = p_tenants[v_outcome.ordinal] and i.id = p_ids[v_outcome.ordinal];
    if v_outcome.code in ('guard-rejected', 'transition-not-allowed') then
      perform pawl_private.set_timer(v_instance, p_next_tried[v_outcome.ordinal]);
    else
      select format(c.message, p_events[v_outcome.ordinal], v_instance.state, v_instance.version, v_instance.id)
      into strict v_error
      from pawl_private.condition c
      where c.outcome = v_outcome.code;
      failures := failures || pawl_private.fail_timer(
        p_instance => v_instance, p_tried => p_tried[v_outcome.ordinal], p_event => p_events[v_outcome.ordinal],
        p_error => v_error, p_cause => null);
    end if;
  end loop;
exception
when query_canceled then
  -- The timeout's clock starts a little before statement_timestamp.
  if current_setting('statement_timeout') = '0'
    or clock_timestamp() - statement_timestamp() < current_setting('statement_timeout')::interval * 0.8 then
    raise;
  end if;
  fired := 0;
  failures := '[]';
  done := 0;
when others then
  fired := 0;
  failures := '[]';
  done := v_size;
  if v_size = 1 then
    -- A path raises these SQLSTATEs. The text of any other error may give away something about the
    -- database.
    v_error := case
      when sqlstate ~ '^(22|54)' or sqlstate in ('42704', '0A000') then 'a guard or an assign raises: ' || sqlerrm
      else format('the step cannot be made (SQLSTATE %s); the log of the service says why', sqlstate)
    end;
    select i.* into strict v_instance from pawl.instance i where i.tenant_id = p_tenants[1] and i.id = p_ids[1];
    failures := pawl_private.fail_timer(
      p_instance => v_instance, p_tried => p_tried[1], p_event => p_events[1], p_error => left(v_error, 1000),
      p_cause => sqlerrm);
  else
    for v_i in 1 .. v_size loop
      v_one := pawl_private.fire_timer_batch(
        p_tenants => p_tenants[v_i:v_i], p_ids => p_ids[v_i:v_i], p_versions => p_versions[v_i:v_i],
        p_events => p_events[v_i:v_i], p_tried => p_tried[v_i:v_i], p_next_tried => p_next_tried[v_i:v_i],
        p_due_at => p_due_at[v_i:v_i]);
      fired := fired + v_one.fired;
      failures := failures || v_one.failures;
      if v_one.done = 0 then
        done := v_i - 1;
        return;
      end if;
    end loop;
  end if;
end
$$;
-- +goose StatementEnd

-- 30_timer/fire_slow_timers.sql

-- fire_slow_timers works in the slow lane: it takes the queue whose turn it is, and fires its timers, the oldest
-- first, one after the other, until 20 milliseconds have passed. The statement timeout bounds the call. A
-- timer that it interrupts fails.
-- Returns: looked_at: how many timers were read; -1 if another process works in the lane. fired: how many
--          steps were made. failures: as of fire_timers
-- Raises:  57014 the statement timeout came before any guard ran
-- Locks:   timer_lane (if it is not locked), instance (for no key update, those that are not locked), timer,
--          slow_queue
-- Writes:  instance, history, timer, slow_queue
-- +goose StatementBegin
create function pawl.fire_slow_timers(out looked_at integer, out fired integer, out failures jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_begun timestamptz := clock_timestamp(); -- Measures the call; decides nothing.
  v_queue pawl_private.slow_queue;
  v_timer record;
  v_one record;
begin
  looked_at := -1;
  fired := 0;
  failures := '[]';
  perform from pawl_private.timer_lane l where l.name = 'slow' for update skip locked;
  if not found then
    return;
  end if;
  looked_at := 0;
  select q.*
  into v_queue
  from (
    select
      max(q.turn_at) over (partition by q.tenant_id) as tenant_turn_at,
      max(q.turn_at) over (partition by q.tenant_id, q.workflow) as workflow_turn_at,
      q as queue
    from pawl_private.slow_queue q
  ) o
  cross join lateral (select (o.queue).*) q
  where exists (
    select from pawl.timer t
    where t.queue = q.id and t.due_at <= v_now and t.queued_version = t.armed_version
  )
  order by o.tenant_turn_at, o.workflow_turn_at, q.turn_at, q.id
  limit 1;
  if not found then
    -- Nothing is in the lane: a kind that has not been slow for a day is forgotten.
    delete from pawl_private.slow_queue q
    where q.slow_until < v_now - interval '1 day'
      and not exists (select from pawl.timer t where t.queue = q.id and t.queued_version = t.armed_version);
    return;
  end if;

  loop
    -- One at a time, so that no instance is locked while another's guard runs.
    select t.* into v_timer from pawl_private.due_timers(v_now, 1, v_queue.id) t;
    exit when not found;
    looked_at := looked_at + 1;
    if v_timer.due_at > v_now or v_timer.due_at is null or v_timer.queued_version <> (v_timer.instance).version then
      perform pawl_private.set_timer(v_timer.instance, v_timer.tried);
    else
      v_one := pawl_private.fire_timer_batch(
        p_tenants => array[(v_timer.instance).tenant_id::text], p_ids => array[(v_timer.instance).id],
        p_versions => array[(v_timer.instance).version::bigint], p_events => array[v_timer.event],
        p_tried => array[v_timer.tried], p_next_tried => array[v_timer.next_tried], p_due_at => array[v_timer.due_at]);
      fired := fired + v_one.fired;
      failures := failures || v_one.failures;
      if v_one.done = 0 then
        failures := failures || pawl_private.fail_timer(
          p_instance => v_timer.instance, p_tried => v_timer.tried, p_event => v_timer.event,
          p_error => 'the step takes longer than the statement timeout', p_cause => null);
        exit;
      end if;
    end if;
    exit when clock_timestamp() - v_begun > interval '20 milliseconds';
  end loop;
  update pawl_private.slow_queue q
  set turn_at = v_now,
    slow_until = case
      when looked_at > 0 and pawl_private.too_slow(clock_timestamp() - v_begun, looked_at) then v_now + pawl_private.slow_for(q.times)
      else q.slow_until
    end
  where q.id = v_queue.id;
end
$$;
-- +goose StatementEnd

-- 30_timer/fire_timers.sql

-- fire_timers works in the fast lane: it fires up to p_limit timers that are due, the oldest first, and moves
-- those that are known to be slow to the slow lane. The statement timeout bounds the call. If it comes while
-- guards run, the call returns and has fired nothing, or the timers before that.
-- p_one_kind: fire only timers of the oldest one's kind. If that takes too long, the kind counts as slow, and
--             those of the timers that could not be fired in time are moved to the slow lane
-- Returns: looked_at: how many timers were read; -1 if another process works in the lane. fired: how
--          many steps were made. late: for how long the oldest had been due. next_in: the time until the
--          next timer is due; null if there is none. failures: a JSON array of the
--          timers that fail: {tenant, workflow, instance, event, reason, cause}; without those that failed
--          before with the same reason. timed_out: whether the statement timeout came
-- Raises:  57014 the statement timeout came before any guard ran
-- Locks:   timer_lane (if it is not locked), instance (for no key update, those that are not locked), timer,
--          slow_queue
-- Writes:  instance, history, timer, slow_queue
-- +goose StatementBegin
create function pawl.fire_timers(
  p_limit integer, p_one_kind boolean default false, out looked_at integer, out fired integer, out late interval,
  out next_in interval, out failures jsonb, out timed_out boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_begun timestamptz; -- Measures the call; decides nothing.
  v_timer record;
  v_instances pawl.instance[] := '{}';
  v_tenants text[] := '{}';
  v_ids uuid[] := '{}';
  v_versions bigint[] := '{}';
  v_events text[] := '{}';
  v_tried integer[] := '{}';
  v_next_tried integer[] := '{}';
  v_due_at timestamptz[] := '{}';
  v_done integer;
  v_queue integer;
begin
  looked_at := -1;
  fired := 0;
  late := interval '0';
  failures := '[]';
  timed_out := false;
  perform from pawl_private.timer_lane l where l.name = 'fast' for update skip locked;
  if found then
    looked_at := 0;
    for v_timer in select t.* from pawl_private.due_timers(v_now, p_limit, null) t loop
      looked_at := looked_at + 1;
      if v_timer.due_at > v_now or v_timer.due_at is null then
        perform pawl_private.set_timer(v_timer.instance, v_timer.tried);
      elsif v_timer.queue is not null then
        perform pawl_private.queue_timer(v_timer.instance, v_timer.queue);
      elsif p_one_kind and v_ids <> '{}' and (
        (v_timer.instance).tenant_id, (v_timer.instance).workflow, (v_timer.instance).workflow_version, v_timer.event
      ) <> (v_tenants[1], (v_instances[1]).workflow, (v_instances[1]).workflow_version, v_events[1]) then
        continue; -- The next calls fire it.
      else
        v_instances := v_instances || v_timer.instance;
        v_tenants := v_tenants || (v_timer.instance).tenant_id::text;
        v_ids := v_ids || (v_timer.instance).id;
        v_versions := v_versions || (v_timer.instance).version::bigint;
        v_events := v_events || v_timer.event;
        v_tried := v_tried || v_timer.tried;
        v_next_tried := v_next_tried || v_timer.next_tried;
        v_due_at := v_due_at || v_timer.due_at;
        late := greatest(late, v_now - v_timer.due_at);
      end if;
    end loop;
    if cardinality(v_ids) > 0 then
      v_begun := clock_timestamp();
      select b.fired, b.failures, b.done
      into fired, failures, v_done
      from pawl_private.fire_timer_batch(
        p_tenants => v_tenants, p_ids => v_ids, p_versions => v_versions, p_events => v_events, p_tried => v_tried,
        p_next_tried => v_next_tried, p_due_at => v_due_at) b;
      timed_out := v_done < cardinality(v_ids);
      if p_one_kind and (timed_out or pawl_private.too_slow(clock_timestamp() - v_begun, cardinality(v_ids))) then
        v_queue := pawl_private.note_slow(v_instances[1], v_events[1], v_now);
        for v_i in v_done + 1 .. cardinality(v_ids) loop
          perform pawl_private.queue_timer(v_instances[v_i], v_queue);
        end loop;
      end if;
    end if;
  end if;
  select t.due_at - v_now
  into next_in
  from pawl.timer t
  where t.queued_version is distinct from t.armed_version
  order by t.due_at
  limit 1;
end
$$;
-- +goose StatementEnd

-- 30_timer/instance_timeout.sql

-- instance_timeout reads the next deadline of an instance. The planner inlines it, and every plan looks up
-- rows by their full keys.
-- Returns: one row, or none if there is no deadline
-- +goose StatementBegin
create function pawl.instance_timeout(p_tenant text, p_id uuid) returns setof pawl.timeout_row
language sql stable parallel safe
as $$
  select n.event, n.due_at, n.last_error
  from pawl.next_timeout n
  where n.tenant_id = p_tenant and n.instance_id = p_id
  limit 1
$$;
-- +goose StatementEnd

-- 30_timer/past_timeout.sql

-- past_timeout reads the next deadline as it was right after one of an instance's steps.
-- Returns: one row, or none if there was no deadline
-- +goose StatementBegin
create function pawl.past_timeout(p_tenant text, p_id uuid, p_version bigint) returns setof pawl.timeout_row
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    pawl_private.deadline_event(i.state_changed_at, s.timeouts, s.timeout_events, i.expires_at),
    pawl_private.deadline(i.state_changed_at, s.timeouts, i.expires_at),
    null::text
  from pawl.instance_at i
  join pawl.workflow_state s
    on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
  where i.tenant_id = p_tenant and i.id = p_id and i.version = p_version and i.status = 'active'
    and (i.expires_at is not null or s.timeouts <> '{}')
$$;
-- +goose StatementEnd

-- 30_timer/put_off_timer.sql

-- put_off_timer records a failure of the one timer of the fast lane that has been due for the longest, and
-- postpones it. No worker calls it: it is for an operator whose timers are held up by one.
-- Returns: the failures, as fire_timers does
-- Locks:   instance (for no key update, unless it is locked), timer
-- Writes:  timer
-- +goose StatementBegin
create function pawl.put_off_timer() returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_timer record;
begin
  select * into v_timer from pawl_private.due_timers(pawl.now(), 1, null);
  if not found then
    return '[]';
  end if;
  return pawl_private.fail_timer(
    p_instance => v_timer.instance, p_tried => v_timer.tried, p_event => v_timer.event,
    p_error => 'it was put off by an operator', p_cause => null);
end
$$;
-- +goose StatementEnd

-- 30_timer/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.fire_timers'),
  ('service', 'pawl.fire_slow_timers'),
  ('service', 'pawl.instance_timeout'),
  ('service', 'pawl.past_timeout');

-- 40_log/tables.sql

-- Module log: committed steps, each with a position, and the consumers that read them by it.
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
-- One process at a time is the sequencer, and one reads for a consumer: it holds a lease, and each lease has a
-- leader and a term. What an earlier leader writes after it has lost the lease is refused. The leader's name is
-- asked too, since a failover may lose a term, and give it out again.
--
-- Lock order: log_head, consumer, after all of the engine's.

create index history_xid_idx on pawl.history (xid);

create table pawl.log (
  position bigint not null,
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  version pawl.version not null,
  constraint log_pkey primary key (position)
)
-- As pawl.history.
with (
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000, autovacuum_freeze_min_age = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000
);

comment on table pawl.log is 'rows of instances that were purged stay until the sequencer sweeps them';

-- log_head is the end of the log, and the sequencer's lease. It has one row.
create table pawl.log_head (
  snapshot pg_snapshot not null,
  position bigint not null,
  epoch bigint not null,
  first_seq bigint not null,
  epoch_snapshot pg_snapshot,
  term bigint not null,
  leader text not null,
  lease_until timestamptz not null,
  constraint log_head_position_is_a_count check (position >= 0),
  constraint log_head_epoch_is_a_count check (epoch >= 0),
  constraint log_head_term_is_a_count check (term >= 0)
)
-- The row is updated with each tick that finds steps. While a long transaction holds back vacuum, the dead
-- versions find room in the row's own page.
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

create unique index log_head_has_one_row_idx on pawl.log_head ((true));

comment on column pawl.log_head.snapshot is 'the steps that it sees have positions';
comment on column pawl.log_head.position is 'the position of the last step';
comment on column pawl.log_head.epoch is '0 before the first sequencer';
comment on column pawl.log_head.first_seq is 'steps up to this seq have transaction ids of another server, which are not compared with snapshots';
comment on column pawl.log_head.epoch_snapshot is 'snapshot of the present epoch, as in log_epoch';
comment on column pawl.log_head.term is 'counts the leaders';

insert into pawl.log_head (snapshot, position, epoch, first_seq, term, leader, lease_until)
values ('1:1:', 0, 0, 0, 0, '', 'epoch');

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

-- 40_log/private.sql

-- steps_between reads the steps that p_until sees and p_from does not: of later transactions, and of those that
-- were in progress at p_from. Transaction ids of another server (up to p_first_seq) are not asked. The planner
-- inlines it. The caller must set enable_seqscan = off: the steps to read are always the newest rows, of which
-- the statistics know nothing.
-- Returns: rows of history, in no order
-- +goose StatementBegin
create function pawl_private.steps_between(p_from pg_snapshot, p_until pg_snapshot, p_first_seq bigint) returns setof pawl.history
language sql stable
as $$
  select h.*
  from pawl.history h
  where h.xid >= pg_snapshot_xmax(p_from) and h.xid < pg_snapshot_xmax(p_until)
    and pg_visible_in_snapshot(h.xid, p_until) and h.seq > p_first_seq
  union all
  -- One by one: a join would read all of history.
  select h.*
  from pg_snapshot_xip(p_from) as x (xid)
  cross join lateral (select h.* from pawl.history h where h.xid = x.xid offset 0) h
  where pg_visible_in_snapshot(x.xid, p_until) and h.seq > p_first_seq
$$;
-- +goose StatementEnd

-- step_follows says whether a step was committed after p_since was taken. p_later_seq: steps with larger ones are
-- of a later server, whose transaction ids p_since does not know; null if there is none.
-- +goose StatementBegin
create function pawl_private.step_follows(p_xid xid8, p_seq bigint, p_since pg_snapshot, p_later_seq bigint)
returns boolean
language sql immutable parallel safe
as $$
  select coalesce(p_seq > p_later_seq, false) or not pg_visible_in_snapshot(p_xid, p_since)
$$;
-- +goose StatementEnd

-- step_is_seen says whether a step has a position, if p_snapshot is that of a tick and p_first_seq the one of
-- log_head.
-- +goose StatementBegin
create function pawl_private.step_is_seen(p_xid xid8, p_seq bigint, p_snapshot pg_snapshot, p_first_seq bigint) returns boolean
language sql immutable parallel safe
as $$ select p_seq <= p_first_seq or pg_visible_in_snapshot(p_xid, p_snapshot) $$;
-- +goose StatementEnd

-- any_epoch_of is the epoch in which a step got its position, or will: the last one at whose beginning it had none.
-- +goose StatementBegin
create function pawl_private.any_epoch_of(p_xid xid8, p_seq bigint) returns bigint
language sql stable
as $$
  select coalesce(max(e.epoch), 1)
  from pawl.log_epoch e
  where e.first_seq = (select max(f.first_seq) from pawl.log_epoch f where f.first_seq < p_seq)
    and coalesce(not pg_visible_in_snapshot(p_xid, e.snapshot), true)
$$;
-- +goose StatementEnd

-- epoch_of is any_epoch_of. For steps of the present epoch it looks at the head alone, and the planner inlines it.
-- +goose StatementBegin
create function pawl_private.epoch_of(p_xid xid8, p_seq bigint, p_head pawl.log_head) returns bigint
language sql stable
as $$
  select case
    when p_seq > p_head.first_seq and coalesce(not pg_visible_in_snapshot(p_xid, p_head.epoch_snapshot), true) then p_head.epoch
    else pawl_private.any_epoch_of(p_xid, p_seq)
  end
$$;
-- +goose StatementEnd

-- message_of makes the message of a step. It looks rows up by their full keys. The planner inlines it.
-- Returns: one row
-- +goose StatementBegin
create function pawl_private.message_of(p_step pawl.history, p_position bigint, p_head pawl.log_head) returns setof pawl.message
language sql stable
as $$
  select
    (p_step).*, pawl_private.epoch_of((p_step).xid, (p_step).seq, p_head), p_position, i.business_key, i.correlation_id, i.created_at,
    s.events
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

-- log_until is the last position of a page of the log after p_after that has p_limit rows; null if there is none.
-- +goose StatementBegin
create function pawl_private.log_until(p_after bigint, p_limit integer) returns bigint
language sql stable
as $$
  select max(l.position) from (select l.position from pawl.log l where l.position > p_after order by l.position limit p_limit) l
$$;
-- +goose StatementEnd

-- server_of_log identifies the server, the database and the timeline.
-- +goose StatementBegin
create function pawl_private.server_of_log(
  out system_identifier bigint, out database_id oid, out table_id oid, out timeline bigint
)
language sql volatile
as $$
  select c.system_identifier, d.oid, 'pawl.log_epoch'::regclass::oid,
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint
  from pg_control_system() c
  cross join pg_database d
  where d.datname = current_database()
$$;
-- +goose StatementEnd

-- server_is_of_log says whether this server, which must be no standby, is that of an epoch.
-- +goose StatementBegin
create function pawl_private.server_is_of_log(p_epoch bigint) returns boolean
language plpgsql volatile
as $$
begin
  return not pg_is_in_recovery() and exists (
    select
    from pawl_private.server_of_log() s
    join pawl.log_epoch e
      on (e.system_identifier, e.database_id, e.table_id, e.timeline) = (s.system_identifier, s.database_id, s.table_id, s.timeline)
    where e.epoch = p_epoch
  );
end
$$;
-- +goose StatementEnd

-- consumer_keep_lead renews a lease if more than a third of it has passed.
-- Returns: whether the leader still leads in p_term
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl_private.consumer_keep_lead(p_consumer text, p_leader text, p_term bigint, p_lease interval) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (
    select from pawl.consumer c
    where c.name = p_consumer and c.leader = p_leader and c.term = p_term and c.lease_until > pawl.now() + p_lease * 2 / 3
  ) then
    return true;
  end if;
  return pawl.consumer_renew(p_consumer, p_leader, p_term, p_lease);
end
$$;
-- +goose StatementEnd

-- log_retains says whether the last step of an instance has no position yet, or a consumer may not yet have read
-- it. Before the first sequencer and the first consumer, nobody is to be told.
-- +goose StatementBegin
create function pawl_private.log_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
declare
  v_head pawl.log_head;
  v_read bigint := (select min(c.position) from pawl.consumer c);
begin
  select h.* into strict v_head from pawl.log_head h;
  if v_head.epoch = 0 and v_read is null then
    return false;
  elsif v_read < v_head.position then
    select m.snapshot into v_head.snapshot
    from pawl_private.log_mark m
    where m.position <= v_read
    order by m.position desc
    limit 1;
    if not found then
      return true;
    end if;
  end if;
  return exists (
    select
    from (
      select h.xid, h.seq
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_id
      order by h.version desc
      limit 1
    ) h
    where not pawl_private.step_is_seen(h.xid, h.seq, v_head.snapshot, v_head.first_seq)
  );
end
$$;
-- +goose StatementEnd

-- steps_lost says whether steps of a tenant after p_after have been purged: of p_workflows, or of all workflows
-- if the array is empty or null.
-- p_floor: what was swept up to this position does not count
-- +goose StatementBegin
create function pawl_private.steps_lost(p_tenant text, p_workflows text[], p_after bigint, p_until bigint, p_floor bigint) returns boolean
language sql stable
as $$
  select exists (
    select from pawl_private.log_floor f
    where f.tenant_id = p_tenant and f.position > greatest(p_after, p_floor)
      and (coalesce(cardinality(p_workflows), 0) = 0 or f.workflow = any (p_workflows))
  ) or exists (
    select
    from (select l.* from pawl.log l where l.position > greatest(p_after, p_floor) and l.position <= p_until and l.tenant_id = p_tenant) l
    cross join lateral (
      select p.workflow from pawl_private.purged_instance p where p.tenant_id = l.tenant_id and p.instance_id = l.instance_id limit 1
    ) p
    where coalesce(cardinality(p_workflows), 0) = 0 or p.workflow = any (p_workflows)
  )
$$;
-- +goose StatementEnd

-- 40_log/consumer_advance.sql

-- consumer_advance moves a consumer behind what was published, and renews its lease. The commit is
-- asynchronous: steps whose advance is lost in a crash are relayed again.
-- p_epoch, p_position: as consumer_next returned them
-- p_relayed:           how many steps were relayed, for consumer_status
-- Returns: whether p_leader still leads in p_term, and p_position is still that of the same step; if not,
--          nothing is changed
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_advance(
  p_consumer text, p_leader text, p_term bigint, p_epoch bigint, p_position bigint, p_relayed bigint, p_lease interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set position = p_position, relayed = c.relayed + p_relayed, advanced_at = v_now, lease_until = v_now + p_lease
  where c.name = p_consumer and c.leader = p_leader and c.term = p_term
    -- A failover may have lost the end of the log.
    and exists (select from pawl.log_head h where h.epoch = p_epoch and h.position >= p_position);
  return found;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_create.sql

-- consumer_create creates a consumer, unless there is one of this name. It begins with the oldest step that is
-- kept if p_from_start, else with the steps that are committed from now on.
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_create(p_consumer text, p_from_start boolean default false) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
begin
  insert into pawl.consumer (name, position, since, term, leader, lease_until, relayed, advanced_at)
  select
    p_consumer, case when p_from_start then 0 else h.position end,
    case when p_from_start then '1:1:' else pg_current_snapshot() end, 0, '', v_now, 0, v_now
  from pawl.log_head h
  on conflict on constraint consumer_pkey do nothing;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_delete.sql

-- consumer_delete deletes a consumer that nobody leads. Nothing reads the rest of its backlog. Only the
-- owner may call it.
-- Returns: whether there was such a consumer
-- Raises:  PW40L a process leads
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_delete(p_consumer text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pawl.consumer c where c.name = p_consumer and c.lease_until <= pawl.now();
  if found then
    return true;
  elsif exists (select from pawl.consumer c where c.name = p_consumer) then
    perform pawl_private.raise_condition('consumer-led', format('consumer %s: a process leads; stop it first', p_consumer));
  end if;
  return false;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_lead.sql

-- consumer_lead makes p_leader the leader of a consumer, if nobody leads, or if p_leader itself does. p_leader
-- must be a name that nobody else has.
-- Returns: the new term; null if another process leads, or if there is no such consumer
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_lead(p_consumer text, p_leader text, p_lease interval) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_term bigint;
begin
  update pawl.consumer c
  set term = c.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where c.name = p_consumer and (c.lease_until <= v_now or c.leader = p_leader)
  returning c.term into v_term;
  return v_term;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_next.sql

-- consumer_next says which page of the log a consumer is to read next, of up to p_limit steps.
-- Returns: epoch: the present one. until: the last position of the page; null if there is nothing to read
-- +goose StatementBegin
create function pawl.consumer_next(p_consumer text, p_limit integer, out epoch bigint, out until bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select h.epoch, pawl_private.log_until(c.position, p_limit)
  from pawl.consumer c
  cross join pawl.log_head h
  where c.name = p_consumer
$$;
-- +goose StatementEnd

-- 40_log/consumer_read.sql

-- consumer_read reads a consumer's steps up to p_until as messages.
-- Returns: the messages of steps that were not purged and follow since, in the order of position. The page ends
--          with the message by which its contexts and payloads have p_bytes
-- +goose StatementBegin
create function pawl.consumer_read(p_consumer text, p_until bigint, p_bytes bigint) returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  for v_message in
    select m.*
    from pawl.consumer c
    cross join pawl.log_head e
    cross join lateral (
      select l.* from pawl.log l where l.position > c.position and l.position <= p_until order by l.position
    ) l
    cross join lateral (
      select h as step
      from pawl.history h
      where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
      limit 1
    ) h
    cross join lateral pawl_private.message_of(h.step, l.position, e) m
    where c.name = p_consumer
      and pawl_private.step_follows((h.step).xid, (h.step).seq, c.since, c.later_seq)
    order by l.position
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_renew.sql

-- consumer_renew renews a lease. The commit is asynchronous.
-- Returns: whether p_leader still leads in p_term; if not, nothing is changed
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_renew(p_consumer text, p_leader text, p_term bigint, p_lease interval) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('synchronous_commit', 'off', true);
  update pawl.consumer c
  set lease_until = pawl.now() + p_lease
  where c.name = p_consumer and c.leader = p_leader and c.term = p_term;
  return found;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_resign.sql

-- consumer_resign ends a lease before its time, so that another process may lead at once.
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_resign(p_consumer text, p_leader text, p_term bigint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.consumer c set lease_until = pawl.now() where c.name = p_consumer and c.leader = p_leader and c.term = p_term
$$;
-- +goose StatementEnd

-- 40_log/log_begin.sql

-- log_begin begins an epoch if the last one is of another server, or of another timeline of this one. The
-- sequencer calls it when it begins to lead, and after it has connected anew, in a transaction of its own.
--
-- A server that was promoted goes on with the transaction ids of its WAL. One that a dump was restored on has
-- others. There, no step may be in progress meanwhile. So all steps that have a position have smaller seqs than
-- first_seq, and all others larger ones. Commands wait while it looks for the steps without a position. The lock's
-- timeout is longer than deadlock_timeout, after which an autovacuum gives way.
-- Returns: epoch: the present one. began: whether it began now. restored: whether the database has come from
--          another server
-- Raises:  40001 another process leads; 55P03 lock_timeout: a transaction that has made steps is still open; ask
--          again
-- Locks:   on another server history (share); log_head, consumer, subscription
-- Writes:  log_epoch, log_head, history, consumer, subscription, purged_instance, log_mark
-- +goose StatementBegin
create function pawl.log_begin(p_leader text, p_term bigint, out epoch bigint, out began boolean, out restored boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1500ms'
as $$
#variable_conflict use_column
declare
  v_server record;
  v_head pawl.log_head;
  v_last pawl.log_epoch;
  v_step record;
begin
  select s.* into strict v_server from pawl_private.server_of_log() s;
  select e.* into v_last from pawl.log_epoch e order by e.epoch desc limit 1;
  restored := case
    -- Before the first sequencer, a step of another server shows by a transaction id that this one has not reached.
    when v_last.epoch is null then exists (select from pawl.history h where h.xid >= pg_snapshot_xmax(pg_current_snapshot()))
    else (v_last.system_identifier, v_last.database_id, v_last.table_id)
      <> (v_server.system_identifier, v_server.database_id, v_server.table_id)
  end;
  began := restored or v_last.epoch is null or v_last.timeline <> v_server.timeline;
  if not began then
    epoch := v_last.epoch;
    return;
  end if;
  if restored then
    lock table pawl.history in share mode;
    -- As in log_tick, the snapshot is taken before this transaction has an id.
    v_head.snapshot := pg_current_snapshot();
  end if;
  -- Nobody else leads until this has ended.
  perform from pawl.log_head h where h.leader = p_leader and h.term = p_term for no key update;
  if not found then
    raise exception 'another process leads' using errcode = 'serialization_failure';
  end if;
  if restored then
    -- A copy may lack the numbers that the sequence has given out.
    v_head.first_seq := setval('pawl.history_seq_seq', greatest(nextval('pawl.history_seq_seq'), (select max(h.seq) + 1 from pawl.history h)));
    for v_step in
      select h.ctid as place
      from pawl.history h
      where not exists (
        select from pawl.log l where l.tenant_id = h.tenant_id and l.instance_id = h.instance_id and l.version = h.version
      )
      order by h.seq
    loop
      update pawl.history h set seq = default, xid = default where h.ctid = v_step.place;
    end loop;
    update pawl.consumer c set later_seq = v_head.first_seq where c.later_seq is null;
    perform pawl_private.webhook_restored(v_head.first_seq);
    update pawl_private.purged_instance p set xid = default;
    delete from pawl_private.log_mark;
  end if;
  epoch := coalesce(v_last.epoch, 0) + 1;
  insert into pawl.log_epoch (
    epoch, system_identifier, database_id, table_id, timeline, first_position, first_seq, snapshot, began_at)
  select
    log_begin.epoch, v_server.system_identifier, v_server.database_id, v_server.table_id, v_server.timeline, h.position,
    coalesce(v_head.first_seq, h.first_seq), case when not restored and v_last.epoch is not null then h.snapshot end, pawl.now()
  from pawl.log_head h
  returning snapshot into v_head.epoch_snapshot;
  update pawl.log_head h
  set epoch = log_begin.epoch, epoch_snapshot = v_head.epoch_snapshot, snapshot = coalesce(v_head.snapshot, h.snapshot),
    first_seq = coalesce(v_head.first_seq, h.first_seq), lease_until = greatest(h.lease_until, pawl.now() + interval '10 seconds')
  where h.leader = p_leader and h.term = p_term;
end
$$;
-- +goose StatementEnd

-- 40_log/log_lead.sql

-- log_lead makes p_leader the sequencer, if there is none, or if p_leader itself is. p_leader must be a name that
-- nobody else has.
-- Returns: the new term; null if another process leads
-- Locks:   log_head
-- Writes:  log_head
-- +goose StatementBegin
create function pawl.log_lead(p_leader text, p_lease interval) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_term bigint;
begin
  update pawl.log_head h
  set term = h.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where h.lease_until <= v_now or h.leader = p_leader
  returning h.term into v_term;
  return v_term;
end
$$;
-- +goose StatementEnd

-- 40_log/log_moved.sql

-- log_moved says which instances have steps after p_after. One call serves everybody who waits in a process.
-- Returns: last: the last position that was looked at. instances, tenants: of the steps, each once; null if there
--          were more than p_limit steps, if p_after is null, if the log ends before p_after, or if there is no
--          sequencer
-- +goose StatementBegin
create function pawl.log_moved(p_after bigint, p_limit integer, out last bigint, out instances uuid[], out tenants text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_steps bigint;
  v_led boolean;
begin
  select h.position, h.lease_until > pawl.now() into last, v_led from pawl.log_head h;
  if p_after is null or last < p_after or not v_led then
    return;
  end if;
  select count(*), coalesce(array_agg(distinct s.instance_id), '{}'), coalesce(array_agg(distinct s.tenant_id::text), '{}')
  into v_steps, instances, tenants
  from (select l.tenant_id, l.instance_id from pawl.log l where l.position > p_after order by l.position limit p_limit + 1) s;
  if v_steps > p_limit then
    instances := null;
    tenants := null;
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/log_place.sql

-- log_place finds a place of a former epoch in the present one.
-- Returns: epoch: the present one. place: p_position, or the last common position if that is smaller. state:
--          'known'; 'lost': steps up to p_position, after place, are gone; 'unknown': there has been no such
--          place; 'unready': the server is another than the log's, and its epoch has not begun yet
-- +goose StatementBegin
create function pawl.log_place(p_epoch bigint, p_position bigint, out epoch bigint, out place bigint, out state text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_head pawl.log_head;
begin
  select h.* into strict v_head from pawl.log_head h;
  epoch := v_head.epoch;
  place := least(p_position, (select min(e.first_position) from pawl.log_epoch e where e.epoch > p_epoch));
  if p_epoch < 1 or p_position < 0 or p_epoch > epoch then
    state := 'unknown';
  elsif place < p_position then
    state := 'lost';
  elsif p_position <= v_head.position then
    state := 'known';
  else
    state := 'unknown';
  end if;
  if state = 'unknown' and not pawl_private.server_is_of_log(v_head.epoch) then
    state := 'unready';
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/log_resign.sql

-- log_resign ends the sequencer's lease before its time, so that another process may lead at once.
-- Locks:   log_head
-- Writes:  log_head
-- +goose StatementBegin
create function pawl.log_resign(p_leader text, p_term bigint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.log_head h set lease_until = pawl.now() where h.leader = p_leader and h.term = p_term
$$;
-- +goose StatementEnd

-- 40_log/log_settled.sql

-- log_settled says where the log ends behind the steps of a tenant that p_since sees.
-- p_since, p_server: what the call before returned; null in the first call
-- Returns: since: the snapshot: p_since, or a new one if it is null or the server has been started since. server:
--          when this server was started. epoch: the present one. place: the last position; null while a step that
--          since sees has no position, or while there is no sequencer
-- +goose StatementBegin
create function pawl.log_settled(
  p_tenant text, p_since pg_snapshot, p_server timestamptz, out since pg_snapshot, out server timestamptz, out epoch bigint, out place bigint
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_head pawl.log_head;
begin
  server := pg_postmaster_start_time();
  since := case when p_server = server then p_since end;
  since := coalesce(since, pg_current_snapshot());
  select h.* into strict v_head from pawl.log_head h;
  epoch := v_head.epoch;
  -- Without a sequencer there may be any number of steps to look at, and none gets a position.
  if epoch > 0 and v_head.lease_until > pawl.now() and not exists (
    select from pawl_private.steps_between(v_head.snapshot, since, v_head.first_seq) h where h.tenant_id = p_tenant
  ) then
    place := v_head.position;
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/log_sweep.sql

-- log_sweep deletes rows of purged instances from the log, and notes the largest position of each tenant's
-- workflow. It looks at p_limit rows after p_after. A pass over the log takes many calls. Its first call gets no p_since, and the others what it
-- returned.
-- Returns: since: null if nothing is to be swept, if p_leader does not lead in p_term, or if the server is not that
--          of the present epoch. last: the last position that was looked at; null at the end of
--          the pass. swept: how many rows were deleted
-- Writes:  log, log_floor, purged_instance
-- +goose StatementBegin
create function pawl.log_sweep(
  p_leader text, p_term bigint, p_since pg_snapshot, p_after bigint, p_limit integer, out since pg_snapshot, out last bigint, out swept bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  swept := 0;
  if not exists (
    select from pawl.log_head h where h.leader = p_leader and h.term = p_term and pawl_private.server_is_of_log(h.epoch)
  ) then
    return;
  end if;
  since := coalesce(p_since, pg_current_snapshot());
  if p_since is null and not exists (select from pawl_private.purged_instance limit 1) then
    since := null;
    return;
  end if;
  last := pawl_private.log_until(p_after, p_limit);
  with gone as (
    delete from pawl.log l
    using pawl_private.purged_instance p
    where l.position > p_after and l.position <= last and p.tenant_id = l.tenant_id and p.instance_id = l.instance_id
    returning l.tenant_id, p.workflow, l.position
  ),
  noted as (
    insert into pawl_private.log_floor as f (tenant_id, workflow, position)
    select g.tenant_id, g.workflow, max(g.position)
    from gone g
    group by g.tenant_id, g.workflow
    on conflict on constraint log_floor_pkey do update set position = greatest(f.position, excluded.position)
  )
  select count(*) into swept from gone;
  if last is null then
    -- The log has no row of an instance that was purged before the pass began.
    delete from pawl_private.purged_instance p where pg_visible_in_snapshot(p.xid, since);
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/log_tick.sql

-- log_tick gives positions to the steps that were committed since the last tick, and renews the sequencer's
-- lease when a third of it has passed. It must be a transaction of its own, committed synchronously, and the
-- commit must not be cancelled: a commit that waits for a standby and is cancelled shows positions that no
-- standby has.
-- Returns: leads: whether p_leader still leads in p_term, on the server of the present epoch; if not, nothing is
--          changed. last: the last position. steps: how many got a position
-- Locks:   log_head
-- Writes:  log, log_head, log_mark
-- +goose StatementBegin
create function pawl.log_tick(p_leader text, p_term bigint, p_lease interval, out leads boolean, out last bigint, out steps bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := pawl.now();
  v_began timestamptz := clock_timestamp();
  v_head pawl.log_head;
  v_snapshot pg_snapshot;
begin
  -- No lock yet: it would draw this transaction's id before the snapshot is taken. See the module's comment.
  select h.* into v_head from pawl.log_head h where h.leader = p_leader and h.term = p_term;
  leads := found;
  steps := 0;
  if not leads then
    return;
  end if;
  last := v_head.position;
  v_snapshot := pg_current_snapshot();
  if v_head.lease_until > v_now + p_lease * 2 / 3
    and not exists (select from pawl_private.steps_between(v_head.snapshot, v_snapshot, v_head.first_seq))
    -- A large transaction in progress: each tick would look at all of its steps until it is in the snapshot's list.
    and not (
      clock_timestamp() > v_began + interval '2 milliseconds'
      and exists (select from pg_snapshot_xip(v_snapshot) as x (xid) where x.xid >= pg_snapshot_xmax(v_head.snapshot)))
  then
    return;
  end if;
  -- A pooler may keep a connection while another server takes over.
  leads := pawl_private.server_is_of_log(v_head.epoch);
  if not leads then
    return;
  end if;
  if current_setting('synchronous_commit') in ('off', 'local') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  perform from pawl.log_head h
  where h.leader = p_leader and h.term = p_term and h.position = v_head.position
  for no key update;
  leads := found;
  if not leads then
    return;
  end if;
  insert into pawl.log (position, tenant_id, instance_id, version)
  select v_head.position + row_number() over (order by h.seq), h.tenant_id, h.instance_id, h.version
  from pawl_private.steps_between(v_head.snapshot, v_snapshot, v_head.first_seq) h;
  get diagnostics steps = row_count;
  last := v_head.position + steps;
  update pawl.log_head h
  set snapshot = v_snapshot, position = log_tick.last, lease_until = v_now + p_lease;
  insert into pawl_private.log_mark (position, snapshot, marked_at)
  select last, v_snapshot, v_now
  where steps > 0 and not exists (
    select
    from (select m.position, m.marked_at from pawl_private.log_mark m order by m.position desc limit 1) m
    where m.position > log_tick.last - 10000 and m.marked_at > v_now - interval '1 minute'
  );
  if found then
    -- The last mark up to which everything has been read, and later ones, are of use.
    delete from pawl_private.log_mark m
    where m.position < (
      select max(o.position)
      from pawl_private.log_mark o
      where o.position <= coalesce((select min(c.position) from pawl.consumer c), log_tick.last)
    );
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/stream_instance.sql

-- stream_instance reads the steps of an instance after version p_after, up to the last one that has a position.
-- p_epoch: that of the step p_after
-- Returns: as stream_read, in the order of version, without positions; none if p_after is of another epoch
-- +goose StatementBegin
create function pawl.stream_instance(p_tenant text, p_id uuid, p_after bigint, p_epoch bigint, p_limit integer, p_bytes bigint) returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_head pawl.log_head;
begin
  select h.* into strict v_head from pawl.log_head h;
  if p_after > 0 and not exists (
    select from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_id and h.version = p_after
      and pawl_private.epoch_of(h.xid, h.seq, v_head) = p_epoch
  ) then
    return;
  end if;
  return query
  select h.*, pawl_private.epoch_of(h.xid, h.seq, v_head), null::bigint, null::pawl.key, null::pawl.key, null::timestamptz, null::text[]
  from pawl.history_page(p_tenant, p_id, p_after, p_limit, p_bytes) h
  where v_head.epoch > 0 and pawl_private.step_is_seen(h.xid, h.seq, v_head.snapshot, v_head.first_seq)
  order by h.version;
end
$$;
-- +goose StatementEnd

-- 40_log/stream_look.sql

-- stream_look looks at the next page of the log for a tenant's stream: up to p_limit rows of all tenants.
-- p_floor: as for stream_read
-- Returns: as log_place; and until: the last position of the page, or null if there is none. steps: how many
--          rows are the tenant's
-- Raises:  PW410 steps of p_workflows that follow have been purged
-- +goose StatementBegin
create function pawl.stream_look(
  p_tenant text, p_workflows text[], p_floor bigint, p_epoch bigint, p_position bigint, p_limit integer,
  out epoch bigint, out place bigint, out state text, out until bigint, out steps bigint
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  select p.epoch, p.place, p.state into epoch, place, state from pawl.log_place(p_epoch, p_position) p;
  if state = 'known' then
    select max(l.position), count(*) filter (where l.tenant_id = p_tenant)
    into until, steps
    from (select l.position, l.tenant_id from pawl.log l where l.position > p_position order by l.position limit p_limit) l;
    if pawl_private.steps_lost(p_tenant, p_workflows, p_position, coalesce(until, p_position), p_floor) then
      perform pawl_private.raise_condition('steps-purged', 'steps that follow have been purged');
    end if;
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/stream_place.sql

-- stream_place finds the place of an instance's stream: behind the step p_version of p_epoch, or of any epoch if that
-- is 0.
-- Returns: state: as log_place; or 'pending': the step has no position yet; 'purged': the instance is gone. epoch:
--          that of the step. version: p_version or, if steps are lost, the last one that is left. until: the last
--          version that has a position
-- +goose StatementBegin
create function pawl.stream_place(
  p_tenant text, p_id uuid, p_version bigint, p_epoch bigint, out state text, out epoch bigint, out version bigint, out until bigint
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_head pawl.log_head;
  v_step pawl.history;
begin
  select h.* into strict v_head from pawl.log_head h;
  version := p_version;
  select h.version into until
  from pawl.history h
  where h.tenant_id = p_tenant and h.instance_id = p_id
    and v_head.epoch > 0
    and pawl_private.step_is_seen(h.xid, h.seq, v_head.snapshot, v_head.first_seq)
  order by h.version desc
  limit 1;
  select h.* into v_step from pawl.history h where h.tenant_id = p_tenant and h.instance_id = p_id and h.version = p_version;
  epoch := pawl_private.epoch_of(v_step.xid, v_step.seq, v_head);
  if v_step.version is null and not exists (select from pawl.instance i where i.tenant_id = p_tenant and i.id = p_id) then
    state := 'purged';
  elsif p_version = 0 then
    state := 'known';
    epoch := 1;
  elsif v_step.version > until or v_step.version is not null and until is null then
    state := 'pending';
  elsif v_step.version is not null and p_epoch in (0, epoch) then
    state := 'known';
  elsif p_epoch < v_head.epoch then
    state := 'lost';
    select h.version, h.epoch into version, epoch
    from (
      select h.version, pawl_private.epoch_of(h.xid, h.seq, v_head) as epoch
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_id and h.version < p_version
    ) h
    where h.epoch <= p_epoch
    order by h.version desc
    limit 1;
  else
    select p.state into state from pawl.log_place(p_epoch, v_head.position + 1) p;
  end if;
end
$$;
-- +goose StatementEnd

-- 40_log/stream_read.sql

-- stream_read reads a tenant's steps after p_after up to p_until.
-- p_floor: what was purged up to this position is not missed
-- Returns: up to p_limit messages without the instance's keys, in the order of position. The page ends when its
--          contexts and payloads have p_bytes or more, but has at least one row
-- Raises:  PW410 steps of p_workflows that follow have been purged
-- +goose StatementBegin
create function pawl.stream_read(
  p_tenant text, p_workflows text[], p_floor bigint, p_after bigint, p_until bigint, p_limit integer, p_bytes bigint
) returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  if pawl_private.steps_lost(p_tenant, p_workflows, p_after, p_until, p_floor) then
    perform pawl_private.raise_condition('steps-purged', 'steps that follow have been purged');
  end if;
  for v_message in
    select h.*, pawl_private.epoch_of(h.xid, h.seq, e), l.position, null::pawl.key, null::pawl.key, null::timestamptz, null::text[]
    from pawl.log_head e
    cross join lateral (
      select l.*
      from pawl.log l
      where l.position > p_after and l.position <= p_until and l.tenant_id = p_tenant
      order by l.position
    ) l
    cross join lateral (
      select h.* from pawl.history h where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version limit 1
    ) h
    order by l.position
    limit p_limit
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 40_log/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.log_lead'),
  ('service', 'pawl.log_resign'),
  ('service', 'pawl.log_begin'),
  ('service', 'pawl.log_tick'),
  ('service', 'pawl.log_sweep'),
  ('service', 'pawl.log_place'),
  ('service', 'pawl.log_moved'),
  ('service', 'pawl.log_settled'),
  ('service', 'pawl.consumer_create'),
  ('service', 'pawl.consumer_lead'),
  ('service', 'pawl.consumer_resign'),
  ('service', 'pawl.consumer_renew'),
  ('service', 'pawl.consumer_next'),
  ('service', 'pawl.consumer_read'),
  ('service', 'pawl.consumer_advance'),
  ('service', 'pawl.stream_look'),
  ('service', 'pawl.stream_place'),
  ('service', 'pawl.stream_read'),
  ('service', 'pawl.stream_instance');

-- 50_webhook/tables.sql

-- Module webhook: subscriptions, and the deliveries that are made for them.
--
-- The router turns steps into deliveries and moves the position of the consumer `webhooks` in the same
-- transaction. So each step is routed to each matching subscription exactly once, whatever happens to
-- the process. The leader of that consumer, one process at a time, sends what is due. Nothing is written
-- before an attempt: only the leader's memory knows what is under way. One write settles many attempts.
-- After a crash a delivery is routed or sent again, under the same id.
--
-- A step may match thousands of subscriptions. The router creates a bounded number of deliveries at a time,
-- and fewer for one tenant. Steps beyond that are put off (`unrouted_step`) and routed later, a piece at a
-- time, by tenants in turn. So no tenant's steps wait until another's are routed.
--
-- A subscription receives the messages of an instance in their order. When a delivery fails, the later
-- ones of the instance lose their next_attempt_at. They get it back when the failed one is delivered or
-- dead. So head-of-line blocking is limited to an instance, and the search for due deliveries reads none
-- that wait for another.
--
-- An endpoint that keeps failing has its circuit opened. Then it is probed with one delivery at a time,
-- at growing intervals, until one succeeds. Deliveries that wait meanwhile lose no attempt.
--
-- Routing, settling and replaying lock the consumer's row, and so see one another's writes.
-- Lock order: consumer, subscription, delivery, callback, after all of the engine's.

-- subscription is an endpoint and the filter that says which messages it receives.
create table pawl.subscription (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  url text not null,
  workflows text[] not null,
  events text[] not null,
  states text[] not null,
  terminal_only boolean not null,
  secret text not null,
  previous_secret text,
  previous_secret_until timestamptz,
  since pg_snapshot not null,
  later_seq bigint,
  disabled_at timestamptz,
  disabled_reason text,
  failures integer not null default 0,
  circuit_open_until timestamptz,
  created_at timestamptz not null,
  created_by text not null,
  constraint subscription_pkey primary key (tenant_id, id),
  constraint subscription_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint subscription_secrets_have_a_prefix
    check (secret like 'whsec\_%' and coalesce(previous_secret like 'whsec\_%', true)),
  constraint subscription_previous_secret_has_an_end
    check ((previous_secret is null) = (previous_secret_until is null)),
  constraint subscription_disabled_has_a_reason check ((disabled_at is null) = (disabled_reason is null)),
  constraint subscription_failures_are_counted check (failures >= 0)
)
-- There are few rows. Those of failing endpoints are updated often: fillfactor keeps that in their page.
with (fillfactor = 50);

comment on column pawl.subscription.workflows is 'names of workflows; empty for all, as for events and states';
comment on column pawl.subscription.states is 'states that a step enters, or states around them';
comment on column pawl.subscription.since is 'steps that it sees were committed before the subscription was created; see pawl_private.step_follows';
comment on column pawl.subscription.later_seq is 'as in pawl.consumer';
comment on column pawl.subscription.failures is 'how many attempts have failed in a row';
comment on column pawl.subscription.circuit_open_until is 'nothing is sent before this time';

-- delivery is one message for one subscription, or for a callback, and its attempts.
create table pawl.delivery (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  subscription_id uuid not null,
  callback boolean not null,
  instance_id uuid,
  version bigint,
  type text not null,
  status text not null,
  attempts integer not null,
  replayed boolean not null default false,
  next_attempt_at timestamptz,
  last_status integer,
  last_error text,
  last_response text,
  created_at timestamptz not null,
  delivered_at timestamptz,
  constraint delivery_pkey primary key (tenant_id, id),
  -- Each step once for each subscription; also the index on an instance's deliveries.
  constraint delivery_step_key unique (tenant_id, instance_id, version, subscription_id),
  constraint delivery_status_is_known check (status in ('pending', 'delivered', 'dead')),
  constraint delivery_is_of_a_step_or_a_test
    check ((instance_id is null) = (version is null) and (instance_id is null) = (type = 'pawl.subscription.test')),
  constraint delivery_callback_is_of_its_instance check (not callback or subscription_id = instance_id),
  constraint delivery_settled_is_not_tried_again check (status = 'pending' or next_attempt_at is null),
  constraint delivery_delivered_has_a_time check (status <> 'delivered' or delivered_at is not null),
  constraint delivery_attempts_are_counted check (attempts >= 0),
  constraint delivery_response_is_an_excerpt check (octet_length(last_response) <= 1024)
)
-- Each row is written at least twice and deleted some days later, and the indexes on what is due get
-- dead entries with each attempt. The default would let vacuum wait for a fifth of the table.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.delivery.id is 'the webhook-id, the same in all attempts, and after any crash: see pawl_private.delivery_id';
comment on column pawl.delivery.created_at is 'when the step was made; of a test delivery, when it was requested';
comment on column pawl.delivery.subscription_id is 'the subscription; of a callback, the instance';
comment on column pawl.delivery.attempts is 'those since the last replay; while replayed, those before it';
comment on column pawl.delivery.replayed is 'it was replayed, and there has been no attempt since; the other columns show what was before';
comment on column pawl.delivery.delivered_at is 'when the endpoint last accepted it, even if it did not after a replay';
comment on column pawl.delivery.next_attempt_at is 'null while an earlier delivery of the instance waits for a retry, and when settled';
comment on column pawl.delivery.last_response is 'the first 1 KiB, as text';

-- unrouted_step is a step that the router has read and put off: its deliveries are not all created. While a
-- tenant has one, its later steps are put off too, so that deliveries are created in the order of the steps.
-- Callbacks are never put off.
create table pawl.unrouted_step (
  tenant_id pawl.tenant_id not null,
  position bigint not null,
  instance_id uuid not null,
  version bigint not null,
  after_subscription uuid not null,
  constraint unrouted_step_pkey primary key (tenant_id, position)
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.unrouted_step.after_subscription is 'the deliveries for subscriptions with ids up to this one are created';

-- Whether an instance has such steps, for the retention.
create index unrouted_step_instance_idx on pawl.unrouted_step (tenant_id, instance_id);

-- Deliveries that are due, by subscription and time, and those of an instance by their steps.
create index delivery_due_idx on pawl.delivery (tenant_id, subscription_id, next_attempt_at, version)
  where status = 'pending' and next_attempt_at is not null and not callback;
create index delivery_callback_due_idx on pawl.delivery (tenant_id, next_attempt_at)
  where status = 'pending' and next_attempt_at is not null and callback;
-- Pending deliveries of an instance, in the order of the steps.
create index delivery_pending_idx on pawl.delivery (tenant_id, subscription_id, instance_id, version)
  where status = 'pending';
-- The log of a subscription, and its dead letters.
create index delivery_subscription_idx on pawl.delivery (tenant_id, subscription_id, id);
create index delivery_dead_idx on pawl.delivery (tenant_id, id)
  where status = 'dead';
-- Delivered rows, to purge.
create index delivery_delivered_idx on pawl.delivery (id)
  where status = 'delivered';

-- endpoint is where the deliveries of a subscription or a callback go, and the secrets that sign them. An
-- empty secret stands for the deployment's. It is a shape, as pawl.outcome_row is, and never holds rows.
create view pawl.endpoint as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as url, ''::text as secret,
  ''::text as previous_secret, false as disabled
where false;

-- delivery_lane says whether deliveries of a subscription, or the callbacks of a tenant, can be sent. The
-- lane of callbacks has the nil UUID as its subscription. ready: some are due. half_open: one at a time. It
-- is a shape and never holds rows.
create view pawl.delivery_lane as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as subscription_id, false as ready, false as half_open
where false;

-- 50_webhook/private.sql

-- message_type is the CloudEvent type of a step's message.
-- +goose StatementBegin
create function pawl_private.message_type(p_kind text) returns text
language sql immutable parallel safe
as $$
  select 'pawl.instance.' || case p_kind
    when 'transition' then 'transitioned'
    when 'timeout' then 'timed-out'
    else p_kind
  end
$$;
-- +goose StatementEnd

-- circuit_open_for is for how long an endpoint's circuit opens after so many failed attempts in a row;
-- null while it stays closed. Afterwards the circuit is half-open: one delivery at a time probes the
-- endpoint. p_rest is the time after the fifth failure; each further failure doubles it, up to ten minutes.
-- +goose StatementBegin
create function pawl_private.circuit_open_for(p_failures integer, p_rest interval) returns interval
language sql immutable parallel safe
as $$
  select case when p_failures >= 5 then least(p_rest * 2 ^ least(p_failures - 5, 20), interval '10 minutes') end
$$;
-- +goose StatementEnd

-- delivery_failed says of a pending delivery whether its last attempt failed, or whether it waits for another that
-- did. The planner inlines it.
-- +goose StatementBegin
create function pawl_private.delivery_failed(p_delivery pawl.delivery) returns boolean
language sql immutable parallel safe
as $$ select p_delivery.attempts > 0 and not p_delivery.replayed or p_delivery.next_attempt_at is null $$;
-- +goose StatementEnd

-- subscription_wants says whether an enabled subscription receives the message of a step.
-- +goose StatementBegin
create function pawl_private.subscription_wants(
  p_subscription pawl.subscription, p_xid xid8, p_seq bigint, p_workflow text, p_event text, p_to_state text, p_status text
) returns boolean
language sql stable
as $$
  select p_subscription.disabled_at is null
    and pawl_private.step_follows(p_xid, p_seq, p_subscription.since, p_subscription.later_seq)
    and (p_subscription.workflows = '{}' or p_workflow = any (p_subscription.workflows))
    and (p_subscription.events = '{}' or p_event = any (p_subscription.events))
    and (
      p_subscription.states = '{}'
      or exists (
        select from unnest(p_subscription.states) as f (state) where p_to_state = f.state or starts_with(p_to_state, f.state || '.')
      )
    )
    and (not p_subscription.terminal_only or p_status <> 'active')
$$;
-- +goose StatementEnd

-- delivery_id is the id of a delivery: a digest of the CloudEvent's id and the subscription, behind the time of the
-- step. So it is the same if a crash has undone the routing and the step is routed again.
-- +goose StatementBegin
create function pawl_private.delivery_id(
  p_at timestamptz, p_instance uuid, p_version bigint, p_epoch bigint, p_subscription uuid
) returns uuid
language sql immutable parallel safe
as $$
  select pawl_private.uuid_v7_with(
    p_at,
    substring(sha256(convert_to(concat(p_instance, ':', p_version, '@', p_epoch, ' ', p_subscription), 'UTF8')) for 16))
$$;
-- +goose StatementEnd

-- add_deliveries creates deliveries of steps. The caller must hold the lock of the consumer's row, so that no
-- delivery is settled or replayed meanwhile.
-- Returns: how many there were not yet
-- Writes:  delivery
-- +goose StatementBegin
create function pawl_private.add_deliveries(
  p_tenants text[], p_subscriptions uuid[], p_instances uuid[], p_versions bigint[], p_kinds text[], p_ats timestamptz[], p_epochs bigint[]
) returns integer
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_added integer;
begin
  insert into pawl.delivery (
    tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, next_attempt_at, created_at)
  select
    m.tenant_id, pawl_private.delivery_id(m.at, m.instance_id, m.version, m.epoch, m.subscription_id), m.subscription_id,
    m.subscription_id = m.instance_id, m.instance_id, m.version, pawl_private.message_type(m.kind), 'pending', 0,
    case when w.failed then null else v_now end, m.at
  from unnest(p_tenants, p_subscriptions, p_instances, p_versions, p_kinds, p_ats, p_epochs)
    as m (tenant_id, subscription_id, instance_id, version, kind, at, epoch)
  left join lateral (
    select pawl_private.delivery_failed(d) as failed
    from pawl.delivery d
    where d.tenant_id = m.tenant_id
      and d.subscription_id = m.subscription_id
      and d.instance_id = m.instance_id
      and d.status = 'pending'
    order by d.tenant_id, d.subscription_id, d.instance_id, d.version
    limit 1
  ) w on true
  -- A delivery exists already if a crash or a failover took the consumer's position back, or if the subscription
  -- was changed.
  on conflict on constraint delivery_step_key do nothing;
  get diagnostics v_added = row_count;
  return v_added;
end
$$;
-- +goose StatementEnd

-- route_page creates the deliveries of a page of the log: of the steps after p_after up to p_until. It looks at up
-- to p_limit pairs of a step and a subscription of one tenant, and at up to twice as many in all; further steps, and
-- those of a tenant that has unrouted steps, are put off. The caller must hold the lock of the consumer's row.
-- Returns: steps: how many were read; deliveries: how many were created
-- Writes:  delivery, unrouted_step
-- +goose StatementBegin
create function pawl_private.route_page(
  p_after bigint, p_until bigint, p_limit integer, p_head pawl.log_head, out steps integer, out deliveries integer
)
language plpgsql volatile
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_tenants text[];
  v_subscriptions uuid[];
  v_instances uuid[];
  v_versions bigint[];
  v_kinds text[];
  v_ats timestamptz[];
  v_epochs bigint[];
begin
  with step as materialized (
    select
      l.position, h.tenant_id, h.instance_id, h.version, h.seq, h.xid, h.workflow, h.kind, h.event, h.to_state, h.status, h.at,
      pawl_private.epoch_of(h.xid, h.seq, p_head) as epoch
    from pawl.log l
    cross join lateral (
      select h.* from pawl.history h where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version limit 1
    ) h
    where l.position > p_after and l.position <= p_until
  ),
  -- How many subscriptions a step's tenant has is counted once, with the first step of the tenant.
  first as (
    select h.*, row_number() over (partition by h.tenant_id order by h.position) = 1 as is_first
    from step h
  ),
  counted as (
    select h.*,
      case when h.is_first then (
        select count(*) from pawl.subscription s where s.tenant_id = h.tenant_id and s.disabled_at is null
      ) end as subscriptions,
      case when h.is_first then exists (
        select from pawl.unrouted_step u where u.tenant_id = h.tenant_id
      ) end as behind
    from first h
  ),
  shared as (
    select h.*, max(h.subscriptions) over (partition by h.tenant_id) as pairs, bool_or(h.behind) over (partition by h.tenant_id) as is_behind
    from counted h
  ),
  in_share as (
    select h.*, not h.is_behind and sum(h.pairs) over (partition by h.tenant_id order by h.position) <= p_limit as fits
    from shared h
  ),
  placed as materialized (
    select h.*, not h.fits or sum(h.pairs) filter (where h.fits) over (order by h.position) > 2 * p_limit as put_off
    from in_share h
  ),
  late as (
    insert into pawl.unrouted_step (tenant_id, position, instance_id, version, after_subscription)
    select h.tenant_id, h.position, h.instance_id, h.version, '00000000-0000-0000-0000-000000000000'
    from placed h
    where h.put_off and h.pairs > 0
    on conflict on constraint unrouted_step_pkey do nothing
  ),
  matching as (
    select h.*, s.id as subscription_id
    from placed h
    cross join lateral (
      select s.id
      from pawl.subscription s
      where s.tenant_id = h.tenant_id
        and pawl_private.subscription_wants(s, h.xid, h.seq, h.workflow, h.event, h.to_state, h.status)
    ) s
    where not h.put_off
    union all
    select h.*, h.instance_id
    from placed h
    cross join lateral (
      select from pawl.callback b where b.tenant_id = h.tenant_id and b.instance_id = h.instance_id limit 1
    ) b
    where h.status <> 'active'
  )
  select
    (select count(*) from step), array_agg(m.tenant_id::text), array_agg(m.subscription_id), array_agg(m.instance_id),
    array_agg(m.version::bigint), array_agg(m.kind::text), array_agg(m.at), array_agg(m.epoch)
  into steps, v_tenants, v_subscriptions, v_instances, v_versions, v_kinds, v_ats, v_epochs
  from (select m.* from matching m order by m.position, m.subscription_id) m;
  deliveries := pawl_private.add_deliveries(v_tenants, v_subscriptions, v_instances, v_versions, v_kinds, v_ats, v_epochs);
end
$$;
-- +goose StatementEnd

-- route_unrouted creates deliveries of the oldest unrouted steps of one tenant: the next one after p_after in
-- the order of tenants, of those that have any. It looks at up to p_limit pairs of a step and a subscription.
-- The caller must hold the lock of the consumer's row.
-- Returns: tenant: whose steps they were; null if no tenant has any. deliveries: how many were created
-- Writes:  delivery, unrouted_step
-- +goose StatementBegin
create function pawl_private.route_unrouted(p_after text, p_limit integer, p_head pawl.log_head, out tenant text, out deliveries integer)
language plpgsql volatile
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_left integer := p_limit;
  v_step record;
  v_looked uuid[];
  v_chosen uuid[];
begin
  deliveries := 0;
  select u.tenant_id into tenant from pawl.unrouted_step u where u.tenant_id > p_after order by u.tenant_id, u.position limit 1;
  if not found then
    select u.tenant_id into tenant from pawl.unrouted_step u order by u.tenant_id, u.position limit 1;
  end if;
  for v_step in
    select u.position, u.instance_id, u.version, u.after_subscription, h.xid, h.seq, h.workflow, h.kind, h.event, h.to_state, h.status, h.at
    from (
      select u.* from pawl.unrouted_step u where u.tenant_id = tenant order by u.tenant_id, u.position limit p_limit
    ) u
    -- A step that was purged has no deliveries.
    left join lateral (
      select h.* from pawl.history h where h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version limit 1
    ) h on true
    order by u.tenant_id, u.position
  loop
    select
      coalesce(array_agg(l.id), '{}'),
      coalesce(array_agg(l.id) filter (
        where pawl_private.subscription_wants(
          l.subscription, v_step.xid, v_step.seq, v_step.workflow, v_step.event, v_step.to_state, v_step.status)
      ), '{}')
    into v_looked, v_chosen
    from (
      select s.id, s as subscription
      from pawl.subscription s
      where s.tenant_id = tenant and s.id > v_step.after_subscription
      order by s.tenant_id, s.id
      limit v_left
    ) l;
    deliveries := deliveries + pawl_private.add_deliveries(
      array_fill(tenant, array[cardinality(v_chosen)]), v_chosen, array_fill(v_step.instance_id, array[cardinality(v_chosen)]),
      array_fill(v_step.version, array[cardinality(v_chosen)]), array_fill(v_step.kind::text, array[cardinality(v_chosen)]),
      array_fill(v_step.at, array[cardinality(v_chosen)]),
      array_fill(pawl_private.epoch_of(v_step.xid, v_step.seq, p_head), array[cardinality(v_chosen)]));
    if cardinality(v_looked) < v_left then
      delete from pawl.unrouted_step u where u.tenant_id = tenant and u.position = v_step.position;
    else
      update pawl.unrouted_step u
      set after_subscription = v_looked[cardinality(v_looked)]
      where u.tenant_id = tenant and u.position = v_step.position;
    end if;
    v_left := v_left - greatest(cardinality(v_looked), 1);
    exit when v_left <= 0;
  end loop;
end
$$;
-- +goose StatementEnd

-- route_only creates the deliveries for one subscription of steps that the router has not routed yet: of up to
-- 20,000 unrouted steps of the tenant, and of the tenant's steps among the next 20,000 rows of the log and among up
-- to 20,000 steps without a position, both of all tenants. The caller must hold the lock of the consumer's row.
-- Writes:  delivery
-- +goose StatementBegin
create function pawl_private.route_only(p_tenant text, p_id uuid) returns void
language plpgsql volatile
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_snapshot pg_snapshot := pg_current_snapshot();
begin
  perform pawl_private.add_deliveries(
    array_agg(p_tenant), array_agg(p_id), array_agg(m.instance_id), array_agg(m.version::bigint), array_agg(m.kind::text),
    array_agg(m.at), array_agg(m.epoch))
  from (
    select h.*, pawl_private.epoch_of(h.xid, h.seq, e) as epoch
    from pawl.log_head e
    cross join pawl.consumer c
    cross join lateral (
      (
        select 0 as part, u.position as place, h as step
        from pawl.unrouted_step u
        cross join lateral (
          select h.* from pawl.history h where h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version limit 1
        ) h
        where u.tenant_id = p_tenant
        order by u.tenant_id, u.position
        limit 20000
      )
      union all
      (
        select 1, l.position, h
        from (select l.* from pawl.log l where l.position > c.position order by l.position limit 20000) l
        cross join lateral (
          select h.* from pawl.history h where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version limit 1
        ) h
        where l.tenant_id = p_tenant
      )
      union all
      (
        select 2, h.seq, h
        from (select h.* from pawl_private.steps_between(e.snapshot, v_snapshot, e.first_seq) h limit 20000) h
        where h.tenant_id = p_tenant
      )
    ) n
    cross join lateral (select (n.step).*) h
    cross join lateral (
      select s from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id limit 1
    ) s
    where c.name = 'webhooks'
      and pawl_private.subscription_wants(s.s, h.xid, h.seq, h.workflow, h.event, h.to_state, h.status)
    order by n.part, n.place
  ) m;
end
$$;
-- +goose StatementEnd

-- webhook_restored notes that the database has come to another server, whose steps have larger seqs than p_first_seq.
-- Locks:   subscription
-- Writes:  subscription
-- +goose StatementBegin
create function pawl_private.webhook_restored(p_first_seq bigint) returns void
language sql volatile
as $$ update pawl.subscription s set later_seq = p_first_seq where s.later_seq is null $$;
-- +goose StatementEnd

-- webhook_retains says whether a message of an instance is still to be sent: an unrouted step, a pending
-- delivery whose subscription is not disabled, or a callback's.
-- +goose StatementBegin
create function pawl_private.webhook_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return exists (
    select from pawl.unrouted_step u where u.tenant_id = p_tenant and u.instance_id = p_id
  ) or exists (
    select
    from (
      -- Looked up without the status, so that the index on pending deliveries is not taken.
      select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.instance_id = p_id offset 0
    ) d
    where d.status = 'pending'
      and not exists (
        select from pawl.subscription s
        where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
      )
  );
end
$$;
-- +goose StatementEnd

-- 50_webhook/consumer_status.sql

-- consumer_status says how far the consumers have read. Steps without a position are still to be read, and so is
-- what the consumer `webhooks` has read and put off.
-- Returns: one row per consumer, by name. leader: null if nobody leads. steps: how many are still to be
--          read. behind: the age of the oldest of these; null if there is none
-- +goose StatementBegin
create function pawl.consumer_status()
returns table (name text, leader text, term bigint, relayed bigint, steps bigint, behind interval, advanced_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select
    c.name, case when c.lease_until > n.at then c.leader end, c.term, c.relayed, l.steps + t.steps + u.steps,
    n.at - least(o.at, t.oldest, u.oldest), c.advanced_at
  from pawl.consumer c
  cross join (select pawl.now() as at offset 0) n
  cross join pawl.log_head e
  cross join lateral (
    select count(*) as steps, min(l.position) as next from pawl.log l where l.position > c.position
  ) l
  left join lateral (
    select h.at
    from pawl.log f
    join pawl.history h on h.tenant_id = f.tenant_id and h.instance_id = f.instance_id and h.version = f.version
    where f.position >= l.next
    order by f.position
    limit 1
  ) o on true
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl_private.steps_between(e.snapshot, pg_current_snapshot(), e.first_seq) h
    where pawl_private.step_follows(h.xid, h.seq, c.since, c.later_seq)
  ) t
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl.unrouted_step u
    left join pawl.history h on h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version
    where c.name = 'webhooks'
  ) u
  order by c.name
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_due.sql

-- delivery_due reads the deliveries of lanes that are to be sent now: of each lane those that have been due for
-- longest. The pending deliveries of a deleted subscription are returned whether they are due or not, to be
-- abandoned.
-- p_subscriptions: the nil UUID stands for the callbacks of the tenant
-- p_limits:        the most deliveries of each lane
-- p_flying:        the deliveries that are under way, which are not returned
-- Returns: the deliveries, lane by lane
-- +goose StatementBegin
create function pawl.delivery_due(p_tenants text[], p_subscriptions uuid[], p_limits integer[], p_flying uuid[])
returns setof pawl.delivery
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_due timestamptz;
begin
  for lane in 1..coalesce(cardinality(p_tenants), 0) loop
    if p_subscriptions[lane] = '00000000-0000-0000-0000-000000000000' then
      return query
      select d.*
      from pawl.delivery d
      where d.tenant_id = p_tenants[lane] and d.status = 'pending' and d.next_attempt_at is not null and d.callback
        and d.next_attempt_at <= v_now
        and d.id <> all (p_flying)
      order by d.tenant_id, d.next_attempt_at
      limit p_limits[lane];
      continue;
    end if;
    perform from pawl.subscription s where s.tenant_id = p_tenants[lane] and s.id = p_subscriptions[lane];
    v_due := case when found then v_now else 'infinity' end;
    return query
    select d.*
    from pawl.delivery d
    where d.tenant_id = p_tenants[lane] and d.subscription_id = p_subscriptions[lane]
      and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      and d.next_attempt_at <= v_due
      and d.id <> all (p_flying)
    order by d.tenant_id, d.subscription_id, d.next_attempt_at, d.version
    limit p_limits[lane];
  end loop;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_endpoints.sql

-- delivery_endpoints reads where deliveries go.
-- p_ids:   of subscriptions, and of instances with a callback
-- Returns: one row per subscription or callback that still exists, in no order. previous_secret: while it
--          still signs, else ''
-- +goose StatementBegin
create function pawl.delivery_endpoints(p_tenants text[], p_ids uuid[]) returns setof pawl.endpoint
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select
    s.tenant_id::text, s.id, s.url, s.secret, coalesce(case when s.previous_secret_until > pawl.now() then s.previous_secret end, ''),
    s.disabled_at is not null
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select s.* from pawl.subscription s where s.tenant_id = k.tenant_id and s.id = k.id limit 1
  ) s
  union all
  select b.tenant_id::text, b.instance_id, b.url, coalesce(b.secret, ''), '', false
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select b.* from pawl.callback b where b.tenant_id = k.tenant_id and b.instance_id = k.id limit 1
  ) b
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_lanes.sql

-- delivery_lanes looks for what can be sent: for each tenant the callbacks, and those subscriptions that have
-- pending deliveries, in their order. Tenants are looked at in their order after p_after, until p_looks lanes
-- have been looked at. Of one tenant no more than p_each subscriptions are looked at: those after its place,
-- which is given in p_places for p_tenants. So neither many tenants nor many subscriptions of one make a call
-- slow.
-- p_rest: look only at what is left of p_tenants, the subscriptions after their places
-- A lane is ready if deliveries are due and its subscription is neither disabled nor has its circuit open. The
-- lane of a deleted subscription is ready too: its deliveries are to be abandoned.
-- Returns: one row per lane that was looked at, the rows of a tenant one after another, its callbacks first
-- +goose StatementBegin
create function pawl.delivery_lanes(p_after text, p_tenants text[], p_places uuid[], p_rest boolean, p_looks integer, p_each integer)
returns setof pawl.delivery_lane
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_nil constant uuid := '00000000-0000-0000-0000-000000000000';
  v_looked integer := 0;
  v_listed integer := 0;
  v_tenant text := p_after;
  v_next text;
  v_callbacks timestamptz;
  v_due record;
  v_health record;
  v_lane pawl.delivery_lane;
begin
  while v_looked < p_looks loop
    v_next := null;
    v_callbacks := null;
    if p_rest then
      v_listed := v_listed + 1;
      v_next := p_tenants[v_listed];
    else
      select d.tenant_id into v_next
      from pawl.delivery d
      where d.tenant_id > v_tenant and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      order by d.tenant_id, d.subscription_id
      limit 1;
      select d.tenant_id, d.next_attempt_at into v_due
      from pawl.delivery d
      where d.tenant_id > v_tenant and d.status = 'pending' and d.next_attempt_at is not null and d.callback
      order by d.tenant_id, d.next_attempt_at
      limit 1;
      if found and v_due.tenant_id <= coalesce(v_next, v_due.tenant_id) then
        v_next := v_due.tenant_id;
        v_callbacks := v_due.next_attempt_at;
      end if;
    end if;
    exit when v_next is null;
    v_tenant := v_next;
    if v_callbacks is not null then
      v_lane := (v_tenant, v_nil, v_callbacks <= v_now, false);
      return next v_lane;
      v_looked := v_looked + 1;
    end if;
    v_lane.subscription_id := coalesce(p_places[array_position(p_tenants, v_tenant)], v_nil);
    for look in 1..p_each loop
      select d.subscription_id, d.next_attempt_at into v_due
      from pawl.delivery d
      where d.tenant_id = v_tenant and d.subscription_id > v_lane.subscription_id
        and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      order by d.tenant_id, d.subscription_id, d.next_attempt_at
      limit 1;
      if not found then
        exit when p_rest or look > 1 or v_lane.subscription_id = v_nil;
        v_lane.subscription_id := v_nil; -- There is none after its place: from the beginning.
        continue;
      end if;
      select s.failures, s.circuit_open_until, s.disabled_at into v_health
      from pawl.subscription s
      where s.tenant_id = v_tenant and s.id = v_due.subscription_id;
      if found then
        v_lane := (
          v_tenant, v_due.subscription_id,
          v_due.next_attempt_at <= v_now and v_health.disabled_at is null and coalesce(v_health.circuit_open_until <= v_now, true),
          pawl_private.circuit_open_for(v_health.failures, interval '1 second') is not null);
      else
        v_lane := (v_tenant, v_due.subscription_id, true, false);
      end if;
      return next v_lane;
      v_looked := v_looked + 1;
    end loop;
  end loop;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_messages.sql

-- delivery_messages reads the messages of the given steps.
-- Returns: one message per step that has not been purged, in the order of the parameters. The page ends with the
--          message by which its contexts and payloads have p_bytes: then nothing is known of the steps behind it
-- +goose StatementBegin
create function pawl.delivery_messages(p_tenants text[], p_instances uuid[], p_versions bigint[], p_bytes bigint)
returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  for v_message in
    select e.*
    from unnest(p_tenants, p_instances, p_versions) with ordinality as k (tenant_id, instance_id, version, place)
    cross join lateral (
      select h as step
      from pawl.history h
      where h.tenant_id = k.tenant_id and h.instance_id = k.instance_id and h.version = k.version
      limit 1
    ) h
    cross join pawl.log_head g
    cross join lateral pawl_private.message_of(h.step, null, g) e
    order by k.place
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_purge.sql

-- delivery_purge deletes settled deliveries, the oldest first and no more than p_limit of each kind:
-- delivered ones p_delivered after their delivery, dead ones p_dead after their creation. The callback of
-- a purged delivery is deleted with it.
-- Returns: how many were deleted
-- Locks:   delivery (for update, skipping what is locked)
-- Writes:  delivery, callback
-- +goose StatementBegin
create function pawl.delivery_purge(p_limit integer, p_delivered interval, p_dead interval) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_purged integer;
begin
  with old as materialized (
    select p.place
    from (
      select d.ctid as place
      from pawl.delivery d
      where d.status = 'delivered' and d.id < pawl.uuid_v7_floor(v_now - p_delivered) and d.delivered_at < v_now - p_delivered
      order by d.id
      limit greatest(p_limit, 0)
      for update skip locked
    ) p
    union all
    select p.place
    from (
      select d.ctid as place
      from pawl.delivery d
      where d.status = 'dead' and d.id < pawl.uuid_v7_floor(v_now - p_dead)
      limit greatest(p_limit, 0)
      for update skip locked
    ) p
  ),
  purged as (
    delete from pawl.delivery d
    where d.ctid = any (array(select o.place from old o))
    returning d.tenant_id, d.instance_id, d.callback
  ),
  released as (
    delete from pawl.callback b
    using (select p.tenant_id, p.instance_id from purged p where p.callback) p
    where b.tenant_id = p.tenant_id and b.instance_id = p.instance_id
  )
  select count(*) into v_purged from purged;
  return v_purged;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_replay.sql

-- delivery_replay makes settled deliveries pending again, with the full number of attempts: those of p_ids,
-- or up to p_limit that match the filter, after the id p_after. The deliveries of an instance are sent in
-- their order again. What is known of a delivery stays until there is a new result. A delivery whose
-- subscription, callback or instance is gone cannot be sent any more, and does not change.
-- Returns: replayed: how many; gone: how many cannot be sent any more; looked_at: how many were read; last: the
--          id of the last one that was read
-- Locks:   consumer
-- Writes:  delivery
-- +goose StatementBegin
create function pawl.delivery_replay(
  p_tenant text, p_ids uuid[], p_subscription uuid, p_status text, p_from timestamptz, p_to timestamptz, p_after uuid,
  p_limit integer, out replayed integer, out gone integer, out looked_at integer, out last uuid
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_after uuid := greatest(p_after, pawl.uuid_v7_floor(coalesce(p_from, '-infinity')));
  v_before uuid := pawl.uuid_v7_floor(coalesce(p_to, 'infinity') + interval '1 millisecond');
  v_ids uuid[];
  v_row record;
begin
  replayed := 0; gone := 0; looked_at := 0; last := p_after;
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  -- Dead letters have an index of their own.
  if p_ids is not null then
    v_ids := p_ids;
  elsif p_status = 'dead' then
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = p_tenant and d.id > v_after and d.id < v_before and d.status = 'dead'
        and coalesce(d.created_at > p_from, true) and coalesce(d.created_at < p_to, true)
        and coalesce(d.subscription_id = p_subscription, true)
      order by d.tenant_id, d.id
      limit greatest(p_limit, 0)
    );
  else
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = p_tenant and d.id > v_after and d.id < v_before and d.status = p_status
        and coalesce(d.created_at > p_from, true) and coalesce(d.created_at < p_to, true)
        and coalesce(d.subscription_id = p_subscription, true)
      order by d.tenant_id, d.id
      limit greatest(p_limit, 0)
    );
  end if;
  for v_row in
    select d.id, d.subscription_id, d.instance_id, d.version, d.callback, d.status
    from unnest(v_ids) as u (id)
    cross join lateral (
      select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.id = u.id limit 1
    ) d
    order by d.id
  loop
    looked_at := looked_at + 1;
    last := v_row.id;
    continue when v_row.status = 'pending';
    if not exists (
      select from pawl.subscription s where s.tenant_id = p_tenant and s.id = v_row.subscription_id
      union all
      select from pawl.callback b where v_row.callback and b.tenant_id = p_tenant and b.instance_id = v_row.instance_id
    ) or v_row.instance_id is not null and not exists (
      select from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = v_row.instance_id and h.version = v_row.version
    ) then
      gone := gone + 1;
      continue;
    end if;
    -- It is due before the instance's later pending deliveries, and waits for earlier ones that failed.
    update pawl.delivery d
    set status = 'pending', replayed = true,
      next_attempt_at = (
        select case
          when not coalesce(bool_or(o.version < v_row.version and pawl_private.delivery_failed(o)), false)
            then least(v_now, min(o.next_attempt_at) filter (where o.version > v_row.version))
        end
        from pawl.delivery o
        where o.tenant_id = p_tenant and o.subscription_id = v_row.subscription_id
          and o.instance_id = v_row.instance_id and o.status = 'pending'
      )
    where d.tenant_id = p_tenant and d.id = v_row.id;
    replayed := replayed + 1;
  end loop;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_route.sql

-- delivery_route reads the next page of steps of the consumer `webhooks`, creates their deliveries, and moves
-- its position. Steps with more subscriptions than are looked at in one call are put off. It then creates
-- deliveries of steps that were put off, of one tenant: the next one after p_turn. Without subscriptions,
-- callbacks and unrouted steps it moves the position and reads no step. It renews the lease when it moves the
-- position, and when a third of the lease has passed.
-- p_limit: the most steps of the page, and the most pairs of a step and a subscription of one tenant
-- Returns: leads: whether p_leader still leads in p_term; steps: how many were read; deliveries: how many were
--          created; more: whether there may be more to route; wanted: whether there are subscriptions or
--          callbacks; turn: the tenant whose unrouted steps were routed, for the next call
-- Raises:  40001 the log has begun an epoch meanwhile; nothing is routed
-- Locks:   consumer
-- Writes:  consumer, delivery, unrouted_step
-- +goose StatementBegin
create function pawl.delivery_route(
  p_leader text, p_term bigint, p_limit integer, p_lease interval, p_turn text,
  out leads boolean, out steps integer, out deliveries integer, out more boolean, out wanted boolean, out turn text
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_consumer pawl.consumer;
  v_head pawl.log_head;
  v_until bigint;
  v_unrouted boolean := exists (select from pawl.unrouted_step limit 1);
  v_added integer;
begin
  leads := false; steps := 0; deliveries := 0; more := false; wanted := true; turn := p_turn;
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term;
  if not found then
    return;
  end if;
  -- The end of the log is read before the subscriptions: then all of its steps were committed before a subscription
  -- that is not seen.
  select * into strict v_head from pawl.log_head h;
  if not v_unrouted
    and not exists (select from pawl.subscription s where s.disabled_at is null limit 1)
    and not exists (select from pawl.callback b limit 1) then
    wanted := false;
    v_until := nullif(v_head.position, v_consumer.position);
  else
    v_until := pawl_private.log_until(v_consumer.position, p_limit);
  end if;
  if v_until is null and not v_unrouted then
    leads := pawl_private.consumer_keep_lead('webhooks', p_leader, p_term, p_lease);
    return;
  end if;

  perform from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term for no key update;
  if not found then
    return;
  end if;
  if v_until is null then
    leads := pawl_private.consumer_keep_lead('webhooks', p_leader, p_term, p_lease);
  else
    if wanted then
      select m.steps, m.deliveries
      into steps, deliveries
      from pawl_private.route_page(
        p_after => v_consumer.position, p_until => v_until, p_limit => p_limit, p_head => v_head) m;
    end if;
    leads := pawl.consumer_advance(
      p_consumer => 'webhooks', p_leader => p_leader, p_term => p_term, p_epoch => v_head.epoch, p_position => v_until,
      p_relayed => steps, p_lease => p_lease);
    if not leads then
      -- The epoch has changed since it was read. What was routed is rolled back.
      raise exception 'the log has begun an epoch' using errcode = 'serialization_failure';
    end if;
  end if;
  if not wanted then
    return;
  end if;
  select coalesce(u.tenant, p_turn), u.deliveries
  into turn, v_added
  from pawl_private.route_unrouted(p_after => p_turn, p_limit => p_limit, p_head => v_head) u;
  deliveries := deliveries + v_added;
  more := coalesce(v_until < v_head.position, false) or exists (select from pawl.unrouted_step limit 1);
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_settle.sql

-- delivery_settle records the results of attempts, in the order in which the attempts ended. p_results:
--   delivered  the endpoint accepted it
--   retry      the attempt failed; the next is due after p_delays
--   dead       the attempt failed, and was the last
--   gone       the endpoint answered 410: it is dead, and its subscription is disabled
--   postponed  there was no attempt; it is due after p_delays
--   abandoned  there was no attempt, and there will be none: it is dead, or delivered as it was before a replay
-- p_pauses: for how long the endpoint asked not to be called; null if it did not
-- p_rest:   for how long an endpoint's circuit opens the first time
-- Returns: whether p_leader still leads in p_term; if not, nothing is changed
-- Raises:  22023 a result that is none of these
-- Locks:   consumer
-- Writes:  delivery, subscription, callback
-- +goose StatementBegin
create function pawl.delivery_settle(
  p_leader text, p_term bigint, p_tenants text[], p_ids uuid[], p_results text[], p_delays interval[], p_pauses interval[],
  p_statuses integer[], p_errors text[], p_responses text[], p_rest interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to find the first row, by an index, and one to reach a row, by its key.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz;
  v_tenants text[];
  v_subscriptions uuid[];
  v_instances uuid[];
  v_attempt record;
  v_delivery record;
begin
  if not p_results <@ '{delivered,retry,dead,gone,postponed,abandoned}' then
    raise exception 'unknown result of a delivery in %', p_results using errcode = '22023';
  end if;
  perform from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term for no key update;
  if not found then
    return false;
  end if;
  v_now := pawl.now();

  -- Most attempts succeed. Rows are looked up without their status: with it, other indexes would look
  -- as good as the primary key's.
  with settled as (
    update pawl.delivery d
    set status = 'delivered', attempts = case when d.replayed then 1 else d.attempts + 1 end, replayed = false,
      next_attempt_at = null, last_status = r.status, last_error = null,
      last_response = nullif(r.response, ''), delivered_at = v_now
    from (
      select p.place, r.status, r.response
      from unnest(p_tenants, p_ids, p_results, p_statuses, p_responses) as r (tenant_id, id, result, status, response)
      cross join lateral (
        select d.ctid as place, d.status from pawl.delivery d where d.tenant_id = r.tenant_id and d.id = r.id limit 1
      ) p
      where r.result = 'delivered' and p.status = 'pending'
    ) r
    where d.ctid = r.place
    returning d.tenant_id, d.subscription_id, d.instance_id
  )
  select array_agg(d.tenant_id::text), array_agg(d.subscription_id), array_agg(d.instance_id)
  into v_tenants, v_subscriptions, v_instances
  from settled d;
  delete from pawl.callback b
  using unnest(v_tenants, v_subscriptions, v_instances) as c (tenant_id, subscription_id, instance_id)
  where c.subscription_id = c.instance_id and b.tenant_id = c.tenant_id and b.instance_id = c.instance_id;
  update pawl.subscription s
  set failures = 0, circuit_open_until = null
  from (select distinct c.tenant_id, c.id from unnest(v_tenants, v_subscriptions) as c (tenant_id, id)) c
  where s.tenant_id = c.tenant_id and s.id = c.id and (s.failures > 0 or s.circuit_open_until is not null);

  -- The others one by one.
  for v_attempt in
    select *
    from unnest(p_tenants, p_ids, p_results, p_delays, p_pauses, p_statuses, p_errors, p_responses)
      with ordinality as r (tenant_id, id, result, delay, pause, status, error, response, place)
    where r.result <> 'delivered'
  loop
    select d.subscription_id, d.instance_id, d.version, d.callback, d.status
    into v_delivery
    from pawl.delivery d
    where d.tenant_id = v_attempt.tenant_id and d.id = v_attempt.id;
    continue when not found or v_delivery.status <> 'pending';
    update pawl.delivery d
    set
      status = case
        when v_attempt.result in ('retry', 'postponed') then 'pending'
        when v_attempt.result = 'abandoned' and d.delivered_at is not null and d.replayed then 'delivered'
        else 'dead'
      end,
      attempts = case
        when v_attempt.result in ('postponed', 'abandoned') then d.attempts
        when d.replayed then 1
        else d.attempts + 1
      end,
      replayed = d.replayed and v_attempt.result = 'postponed',
      next_attempt_at = case when v_attempt.result in ('retry', 'postponed') then v_now + v_attempt.delay end,
      last_status = case when v_attempt.result in ('postponed', 'abandoned') then d.last_status else nullif(v_attempt.status, 0) end,
      last_error = case when v_attempt.result = 'postponed' then d.last_error else nullif(v_attempt.error, '') end,
      last_response = case when v_attempt.result in ('postponed', 'abandoned') then d.last_response else nullif(v_attempt.response, '') end
    where d.tenant_id = v_attempt.tenant_id and d.id = v_attempt.id;
    continue when v_delivery.callback;
    if v_attempt.result = 'retry' then
      update pawl.delivery d
      set next_attempt_at = null
      where d.tenant_id = v_attempt.tenant_id and d.subscription_id = v_delivery.subscription_id
        and d.instance_id = v_delivery.instance_id and d.version > v_delivery.version
        and d.status = 'pending' and d.next_attempt_at is not null;
    else
      v_tenants := v_tenants || v_attempt.tenant_id;
      v_subscriptions := v_subscriptions || v_delivery.subscription_id;
      v_instances := v_instances || v_delivery.instance_id;
    end if;

    case v_attempt.result
    when 'retry', 'dead' then
      -- Attempts that were under way when the circuit opened do not keep it open for longer.
      update pawl.subscription s
      set failures = s.failures + 1,
        circuit_open_until = greatest(
          v_now + pawl_private.circuit_open_for(s.failures + 1, p_rest), v_now + v_attempt.pause, s.circuit_open_until)
      where s.tenant_id = v_attempt.tenant_id and s.id = v_delivery.subscription_id
        and (s.circuit_open_until is null or s.circuit_open_until <= v_now or s.circuit_open_until < v_now + v_attempt.pause);
    when 'gone' then
      update pawl.subscription s
      set disabled_at = v_now, disabled_reason = 'the endpoint answered 410 Gone'
      where s.tenant_id = v_attempt.tenant_id and s.id = v_delivery.subscription_id and s.disabled_at is null;
    else
      null;
    end case;
  end loop;

  -- Deliveries that waited for a settled one are due now.
  update pawl.delivery d
  set next_attempt_at = v_now
  from (
    select w.place
    from unnest(v_tenants, v_subscriptions, v_instances) as c (tenant_id, subscription_id, instance_id)
    cross join lateral (
      select d.next_attempt_at
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending'
      order by d.tenant_id, d.subscription_id, d.instance_id, d.version
      limit 1
    ) f
    cross join lateral (
      select d.ctid as place
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending' and d.next_attempt_at is null
      order by d.tenant_id, d.subscription_id, d.instance_id, d.version
    ) w
    where f.next_attempt_at is null
  ) w
  where d.ctid = w.place;
  return true;
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_create.sql

-- subscription_create creates a subscription to the steps that are committed from now on.
-- Returns: the subscription
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.subscription_create(
  p_tenant text, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean, p_secret text,
  p_actor text
) returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
begin
  return query
  insert into pawl.subscription (
    tenant_id, id, url, workflows, events, states, terminal_only, secret, since, created_at, created_by)
  values (
    p_tenant, pawl_private.uuid_v7(v_now), p_url, p_workflows, p_events, p_states, p_terminal_only, p_secret,
    pg_current_snapshot(), v_now, p_actor)
  returning *;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_delete.sql

-- subscription_delete deletes a subscription. Its pending deliveries are abandoned; the others stay in the
-- log of deliveries.
-- Returns: whether it existed
-- Locks:   subscription
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.subscription_delete(p_tenant text, p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id;
  return found;
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_rotate_secret.sql

-- subscription_rotate_secret replaces a subscription's secret. For p_overlap the previous one signs, too.
-- Returns: the subscription, or no row
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   subscription
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.subscription_rotate_secret(p_tenant text, p_id uuid, p_secret text, p_overlap interval)
returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
begin
  return query
  update pawl.subscription s
  set secret = p_secret, previous_secret = s.secret, previous_secret_until = pawl.now() + p_overlap
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_test.sql

-- subscription_test creates a delivery without a step. It is sent before all others, and at once even if
-- the endpoint's circuit is open.
-- Returns: the delivery, or no row if there is no such subscription
-- Locks:   subscription
-- Writes:  subscription, delivery
-- +goose StatementBegin
create function pawl.subscription_test(p_tenant text, p_id uuid) returns setof pawl.delivery
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  update pawl.subscription s
  set circuit_open_until = case when s.circuit_open_until > v_now then v_now else s.circuit_open_until end
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    return query
    insert into pawl.delivery (
      tenant_id, id, subscription_id, callback, type, status, attempts, next_attempt_at, created_at)
    values (p_tenant, pawl_private.uuid_v7(v_now), p_id, false, 'pawl.subscription.test', 'pending', 0, 'epoch', v_now)
    returning *;
  end if;
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_update.sql

-- subscription_update changes what is given as not null. Steps that were committed before the change and are not
-- routed yet are chosen by the old filter, as far as route_only reads; those beyond by the new filter.
--
-- A subscription that is enabled again, or gets another URL, starts with a closed circuit, and its
-- deliveries that wait for a retry are due now. Steps that were committed while it was disabled are not
-- sent.
-- Returns: the subscription, or no row
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   consumer, subscription
-- Writes:  subscription, delivery
-- +goose StatementBegin
create function pawl.subscription_update(
  p_tenant text, p_id uuid, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean,
  p_disabled boolean
) returns setof pawl.subscription
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz;
  v_afresh boolean;
begin
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  if p_disabled or coalesce(p_workflows, p_events, p_states) is not null or p_terminal_only is not null then
    perform pawl_private.route_only(p_tenant, p_id);
  end if;

  select p_url <> s.url or not p_disabled into v_afresh from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  return query
  update pawl.subscription s
  set
    url = coalesce(p_url, s.url),
    workflows = coalesce(p_workflows, s.workflows),
    events = coalesce(p_events, s.events),
    states = coalesce(p_states, s.states),
    terminal_only = coalesce(p_terminal_only, s.terminal_only),
    disabled_at = case when p_disabled then coalesce(s.disabled_at, v_now) when p_disabled is null then s.disabled_at end,
    disabled_reason = case
      when p_disabled then coalesce(s.disabled_reason, 'it was disabled through the API')
      when p_disabled is null then s.disabled_reason
    end,
    since = case when not p_disabled and s.disabled_at is not null then pg_current_snapshot() else s.since end,
    later_seq = case when not p_disabled and s.disabled_at is not null then null else s.later_seq end,
    failures = case when v_afresh then 0 else s.failures end,
    circuit_open_until = case when not v_afresh or v_afresh is null then s.circuit_open_until end
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*;
  if v_afresh then
    update pawl.delivery d
    set next_attempt_at = v_now
    where d.ctid = any (array(
      select w.ctid
      from pawl.delivery w
      where w.tenant_id = p_tenant and w.subscription_id = p_id
        and w.status = 'pending' and w.next_attempt_at is not null and not w.callback
        and w.next_attempt_at > v_now
      order by w.tenant_id, w.subscription_id, w.next_attempt_at
      limit 10000
    ));
  end if;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 50_webhook/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.consumer_status'),
  ('service', 'pawl.subscription_create'),
  ('service', 'pawl.subscription_update'),
  ('service', 'pawl.subscription_delete'),
  ('service', 'pawl.subscription_rotate_secret'),
  ('service', 'pawl.subscription_test'),
  ('service', 'pawl.delivery_route'),
  ('service', 'pawl.delivery_lanes'),
  ('service', 'pawl.delivery_due'),
  ('service', 'pawl.delivery_messages'),
  ('service', 'pawl.delivery_endpoints'),
  ('service', 'pawl.delivery_settle'),
  ('service', 'pawl.delivery_replay'),
  ('service', 'pawl.delivery_purge');

-- 60_lifecycle/tables.sql

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
  actor text not null,
  constraint instance_migration_pkey primary key (tenant_id, workflow, from_version, to_version),
  constraint instance_migration_leads_elsewhere check (from_version <> to_version),
  constraint instance_migration_moved_is_not_negative check (moved >= 0)
);

comment on column pawl.instance_migration.batch_at is 'when the latest batch began; a run without one for a minute counts as broken off';
comment on column pawl.instance_migration.finished_at is 'when the latest run ended; null while it is under way';
comment on column pawl.instance_migration.moved is 'how many instances all runs have moved';

create unique index instance_migration_under_way_key on pawl.instance_migration (tenant_id, workflow)
  where finished_at is null;

-- 60_lifecycle/private.sql

-- count_instances counts the instances of a version of a workflow, final ones too. It reads the
-- workflow's instances tenant by tenant, not the whole table.
-- +goose StatementBegin
create function pawl_private.count_instances(p_workflow text, p_version integer) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  with recursive tenant as (
    (select i.tenant_id from pawl.instance i where i.workflow <> '' order by i.tenant_id limit 1)
    union all
    select n.tenant_id
    from tenant t
    cross join lateral (
      select i.tenant_id
      from pawl.instance i
      where i.tenant_id > t.tenant_id and i.workflow <> ''
      order by i.tenant_id
      limit 1
    ) n
  )
  select coalesce(sum(c.instances), 0)::bigint
  from tenant t
  cross join lateral (
    select count(*) as instances
    from pawl.instance i
    where i.tenant_id = t.tenant_id
      and i.workflow = p_workflow
      and i.workflow <> '' -- The condition of the index.
      and i.workflow_version = p_version
  ) c
$$;
-- +goose StatementEnd

-- migration_faults says what is wrong with a request to migrate instances, all at once.
-- Returns: a JSON array of {pointer, detail}, or null if nothing is wrong
-- +goose StatementBegin
create function pawl_private.migration_faults(
  p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_states text[]
) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_agg(jsonb_build_object('pointer', f.pointer, 'detail', f.detail) order by f.pointer collate "C", f.detail)
  from (
    select '/to' as pointer, 'is the version that the instances have' as detail
    where p_from = p_to
    union all
    select '/state_map', 'must be an object'
    where jsonb_typeof(p_state_map) <> 'object'
    union all
    select '/state_map/' || replace(replace(m.key, '~', '~0'), '/', '~1'), d.detail
    from jsonb_each(case when jsonb_typeof(p_state_map) = 'object' then p_state_map end) m
    cross join lateral (
      select format('version %s has no state %s', p_from, m.key) as detail
      where not exists (
        select from pawl.workflow_state s
        where s.workflow = p_workflow and s.workflow_version = p_from and s.state = m.key)
      union all
      select 'must be the name of a state'
      where jsonb_typeof(m.value) <> 'string'
      union all
      select case
        when s.status is null then format('version %s has no state %s', p_to, m.value #>> '{}')
        else format('%s is final in version %s: only an event may end an instance', m.value #>> '{}', p_to)
      end
      from (select where jsonb_typeof(m.value) = 'string') t
      left join pawl.workflow_state s
        on s.workflow = p_workflow and s.workflow_version = p_to and s.state = m.value #>> '{}'
      where s.status is distinct from 'active'
    ) d
    union all
    select '/filter/states/' || n.position - 1, format('version %s has no state %s', p_from, n.state)
    from unnest(p_states) with ordinality as n (state, position)
    where not exists (
      select from pawl.workflow_state s
      where s.workflow = p_workflow and s.workflow_version = p_from and s.state = n.state)
  ) f
$$;
-- +goose StatementEnd

-- Back-tests re-run recorded histories under another definition of their workflow. Events and payloads
-- are decided again, each at its recorded time, by the same function that fires, and the result is compared
-- with what history shows. Nothing is kept.
--
-- Two instances are followed: the candidate's, and the recorded one beside it, as history had it. Both are
-- in the same state until the first difference, where the re-run ends: what comes after it has no meaning.
--
-- Timers may be late. Then history shows a command before a timeout that was due earlier. So a timeout of the
-- candidate counts as a difference only if the recorded version had no deadline by then. If it had one, the
-- timers were late, and the recorded order stands. That is why a back-test of an instance's own version finds
-- nothing.

-- backtest_step decides a step of an instance as fire or create would have decided it at p_at. An exception
-- that a guard raises is an outcome here: a subtransaction for each step is affordable, since no command
-- waits.
-- p_kind: as in history. 'created' completes the macrostep of the creation, after what entering the initial
-- state assigns, unless the context has that already (p_entered).
-- Returns: code: as decide's, with the problem codes of pawl_private.condition; 'guard-error' comes with the
--          error. instance: as it becomes if applied, else null
-- +goose StatementBegin
create function pawl_private.backtest_step(
  p_instance pawl.instance, p_kind text, p_event text, p_payload jsonb, p_reason text, p_at timestamptz,
  p_entered boolean, p_setting pawl.setting,
  out code text, out instance pawl.instance, out guards text[], out error text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_decided record;
begin
  if p_kind = 'created' then
    v_macrostep := case
      when p_entered then
        pawl_private.complete_macrostep(
          p_before => null, p_instance => p_instance, p_event => null, p_payload => '{}', p_reason => p_reason,
          p_now => p_at, p_setting => p_setting)
      else
        pawl_private.begin_macrostep(
          p_instance => p_instance, p_reason => p_reason, p_now => p_at, p_setting => p_setting)
    end;
    code := coalesce(v_macrostep.refusal, 'applied');
    instance := v_macrostep.instance;
  else
    select d.*
    into strict v_decided
    from pawl_private.decide(
      p_now => p_at, p_setting => p_setting, p_instance => p_instance,
      p_command => (
        p_instance.tenant_id, p_event, p_payload, '', '*', '*', p_reason, p_kind <> 'transition'
      )::pawl_private.fire_command) d;
    code := v_decided.code;
    guards := v_decided.guards;
    if code = 'applied' then
      instance := v_decided.instance;
    end if;
  end if;
  if code in ('payload-too-large', 'context-too-large', 'context-too-deep') then
    code := 'too-large';
  elsif code = 'always-loop' then
    code := 'guard-error';
    error := 'eventless transitions follow one another without coming to rest';
  end if;
exception
  -- What guards and assigns raise, although they are evaluated leniently.
  when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
    code := 'guard-error';
    instance := null;
    error := sqlerrm;
end
$$;
-- +goose StatementEnd

-- backtest_overdue says whether an instance, as history had it, had a deadline by p_at at which its own
-- version would have made a step: then its timer was late. A timeout that raises is postponed, and so late.
-- p_except: the event of a deadline that does not count
-- +goose StatementBegin
create function pawl_private.backtest_overdue(
  p_recorded pawl.instance, p_at timestamptz, p_except text, p_setting pawl.setting
) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tried integer := 0;
  v_deadline record;
begin
  loop
    select d.* into v_deadline from pawl_private.next_deadline(p_recorded, v_tried) d;
    if not found or v_deadline.due_at > p_at then
      return false;
    end if;
    if v_deadline.event is distinct from p_except and exists (
      select
      from pawl_private.backtest_step(
        p_recorded, 'timeout', v_deadline.event, jsonb_build_object('due_at', pawl_private.rfc3339(v_deadline.due_at)), null,
        v_deadline.due_at, null, p_setting) s
      where s.code in ('applied', 'guard-error')
    ) then
      return true;
    end if;
    v_tried := v_deadline.tried;
    if v_tried is null then
      return false;
    end if;
  end loop;
end
$$;
-- +goose StatementEnd

-- backtest_timeout finds the deadline that the candidate's instance meets before a recorded step. Deadlines
-- are tried one after the other by their times, as the timers do: a refused one gives way to the next.
-- p_step: the recorded step; null for none up to p_until. If it is a timeout itself, the candidate's may come
-- as late as it did, and deadlines that history skipped are skipped.
-- Returns: code: 'applied' or 'guard-error'; null if there is no such deadline. instance: as it becomes.
--          event and due_at: the deadline's
-- +goose StatementBegin
create function pawl_private.backtest_timeout(
  p_candidate pawl.instance, p_recorded pawl.instance, p_step pawl.history, p_until timestamptz, p_setting pawl.setting,
  out code text, out instance pawl.instance, out error text, out event text, out due_at timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_timed boolean := coalesce(p_step.kind in ('timeout', 'expired'), false);
  v_due_at timestamptz := case when v_timed then (p_step.payload ->> 'due_at')::timestamptz end;
  v_tried integer := 0;
  v_deadline record;
  v_same boolean;
  v_step record;
begin
  while v_tried is not null loop
    select d.* into v_deadline from pawl_private.next_deadline(p_candidate, v_tried) d;
    exit when not found or v_deadline.due_at > p_until or v_deadline.due_at = p_until and not v_timed;
    v_tried := v_deadline.tried;
    v_same := coalesce(v_deadline.due_at = v_due_at and v_deadline.event = p_step.event, false);
    select s.*
    into v_step
    from pawl_private.backtest_step(
      p_candidate, 'timeout', v_deadline.event, jsonb_build_object('due_at', pawl_private.rfc3339(v_deadline.due_at)), null,
      case when v_same or v_deadline.due_at > v_due_at then p_step.at else v_deadline.due_at end, null, p_setting) s;
    continue when v_step.code not in ('applied', 'guard-error');
    if not v_timed then
      exit when pawl_private.backtest_overdue(p_recorded, v_deadline.due_at, null, p_setting);
    elsif not v_same and v_deadline.due_at <= v_due_at then
      continue when pawl_private.backtest_overdue(p_recorded, v_deadline.due_at, p_step.event, p_setting);
    end if;
    code := v_step.code;
    instance := v_step.instance;
    error := v_step.error;
    event := v_deadline.event;
    due_at := v_deadline.due_at;
    exit;
  end loop;
end
$$;
-- +goose StatementEnd

-- backtest_instance re-runs the history of one instance, a command at a time with the eventless steps that
-- followed it. It ends at the first difference, at a step that no event made ('migrated', 'forced'), or at
-- version 1000.
--
-- It begins with the context of the first step, to which the entry of the recorded initial state has already
-- assigned. If the candidate assigns the same on entry, that is not done twice. A lifetime that differs from
-- the recorded version's ttl was given by the caller, and is kept.
-- p_version: the candidate's.
-- Returns: steps: how many were re-run, with the one that differs. complete: whether these are all steps.
--          difference: null, or {outcome, version, workflow_version, event, from, to} and, where they apply,
--          would_be, timeout, due_at, guards, error, status, would_be_status. checks: null, or documents
--          that the caller must check against the candidate's JSON Schemas, which only the service can:
--          {schemas: by checksum, steps: [{checksum, version, workflow_version, event, from, to}]}; of
--          version 1 the context, of others the payload
-- +goose StatementBegin
create function pawl_private.backtest_instance(
  p_tenant text, p_id uuid, p_workflow text, p_version integer, p_now timestamptz, p_setting pawl.setting,
  out steps integer, out complete boolean, out difference jsonb, out checks jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_candidate pawl.workflow;
  v_origin pawl.workflow;
  v_entered boolean;
  v_instance pawl.instance; -- The candidate's.
  v_before pawl.instance; -- As recorded, before the command.
  v_after pawl.instance; -- As recorded, after it and what followed.
  v_command pawl.history;
  v_row record;
  v_goes_on boolean := false;
  v_schema record;
  v_step record;
  v_place jsonb;
  v_timeout text;
  v_schemas jsonb := '{}';
  v_checks jsonb := '[]';
begin
  steps := 0;
  complete := true;
  select i.* into v_after from pawl.instance i where i.tenant_id = p_tenant and i.id = p_id and i.workflow = p_workflow;
  if not found then
    return;
  end if;
  select w.* into strict v_candidate from pawl.workflow w where w.name = p_workflow and w.version = p_version;

  for v_row in
    select
      h as step,
      coalesce(lead(h.kind = 'transition' and h.event is null) over (order by h.version), false) as goes_on
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_id and h.version <= 1001
    order by h.version
  loop
    if (v_row.step).version > 1000 then
      complete := false;
      exit;
    end if;
    if not v_goes_on then
      v_command := v_row.step;
      v_before := v_after;
    end if;
    v_after.workflow_version := (v_row.step).workflow_version;
    v_after.state := (v_row.step).to_state;
    v_after.status := (v_row.step).status;
    v_after.version := (v_row.step).version;
    v_after.context := (v_row.step).context;
    v_after.state_changed_at := (v_row.step).at;
    v_after.expires_at := (v_row.step).expires_at;
    v_goes_on := v_row.goes_on;
    continue when v_goes_on;
    v_place := jsonb_build_object(
      'version', v_command.version, 'workflow_version', v_command.workflow_version, 'event', v_command.event,
      'from', v_command.from_state, 'to', v_after.state);
    steps := v_command.version;

    if v_command.kind = 'created' then
      v_origin := null;
      select w.* into v_origin from pawl.workflow w where w.name = p_workflow and w.version = v_command.workflow_version;
      v_instance := v_after;
      v_instance.workflow_version := p_version;
      v_instance.state := v_candidate.initial;
      v_instance.version := 1;
      v_instance.context := v_command.context;
      v_instance.created_at := v_command.at;
      v_instance.state_changed_at := v_command.at;
      v_instance.error := null;
      v_instance.expires_at := case
        when v_candidate.ttl is null then null
        when v_command.expires_at - v_command.at is distinct from v_origin.ttl then v_command.expires_at
        else v_command.at + v_candidate.ttl
      end;
      select s.status into strict v_instance.status
      from pawl.workflow_state s
      where s.workflow = p_workflow and s.workflow_version = p_version and s.state = v_candidate.initial;
      select v_candidate.context_schema as schema, v_candidate.context_schema_checksum as checksum,
        v_origin.context_schema_checksum as met
      into v_schema;
      v_entered := not exists (
        select t.assign_names, t.assign_paths::text[], t.assign_stages, t.assign_payload
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = p_version and t.event = ':initial'
        except
        select t.assign_names, t.assign_paths::text[], t.assign_stages, t.assign_payload
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = v_command.workflow_version and t.event = ':initial');
    else
      select t.*
      into v_step
      from pawl_private.backtest_timeout(v_instance, v_before, v_command, v_command.at, p_setting) t;
      if v_command.kind in ('timeout', 'expired') then
        v_step.code := coalesce(v_step.code, 'no-timeout');
        if v_step.code = 'applied' and (v_step.instance).state <> v_after.state
          and v_step.due_at < (v_command.payload ->> 'due_at')::timestamptz then
          v_step.code := 'timeout';
        end if;
      elsif v_step.code = 'applied' then
        v_step.code := 'timeout';
      end if;
      if v_step.code <> 'applied' then
        difference := jsonb_build_object(
          'outcome', v_step.code, 'would_be', (v_step.instance).state, 'timeout', v_step.event,
          'due_at', pawl_private.rfc3339(v_step.due_at), 'error', v_step.error);
        exit;
      elsif v_command.kind in ('migrated', 'forced') then
        complete := false;
        exit;
      end if;
      v_timeout := v_step.event;
      select c.payload_schema as schema, c.payload_schema_checksum as checksum, r.payload_schema_checksum as met
      into v_schema
      from (
        select t.payload_schema, t.payload_schema_checksum
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = p_version and t.source = v_instance.state
          and t.event = v_command.event and v_command.kind = 'transition'
        order by t.position
        limit 1
      ) c
      left join lateral (
        select t.payload_schema_checksum
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = v_command.workflow_version
          and t.source = v_before.state and t.event = v_command.event
        order by t.position
        limit 1
      ) r on true;
    end if;

    if v_schema.checksum <> coalesce(v_schema.met, '') then
      v_schemas := v_schemas || jsonb_build_object(v_schema.checksum, v_schema.schema);
      v_checks := v_checks || (v_place || jsonb_build_object('checksum', v_schema.checksum));
    end if;
    if v_command.kind not in ('timeout', 'expired') then
      select s.*
      into v_step
      from pawl_private.backtest_step(
        v_instance, v_command.kind, v_command.event, v_command.payload, v_command.reason, v_command.at, v_entered,
        p_setting) s;
      if v_step.code <> 'applied' then
        difference := jsonb_build_object('outcome', v_step.code, 'guards', v_step.guards, 'error', v_step.error);
        exit;
      end if;
    end if;
    v_instance := v_step.instance;
    if v_instance.state <> v_after.state then
      difference := jsonb_build_object('outcome', 'elsewhere', 'would_be', v_instance.state, 'timeout', v_timeout);
      exit;
    elsif v_instance.status <> v_after.status then
      difference := jsonb_build_object(
        'outcome', 'other-status', 'status', v_after.status, 'would_be_status', v_instance.status);
      exit;
    end if;
    steps := v_after.version;
  end loop;

  if steps > 0 and complete and difference is null and v_after.status = 'active' then
    select t.* into v_step from pawl_private.backtest_timeout(v_instance, v_after, null, p_now, p_setting) t;
    if v_step.code is not null then
      v_place := jsonb_build_object(
        'version', v_after.version, 'workflow_version', v_after.workflow_version, 'from', v_after.state, 'to', v_after.state);
      difference := jsonb_build_object(
        'outcome', case v_step.code when 'applied' then 'timeout' else v_step.code end,
        'would_be', (v_step.instance).state, 'timeout', v_step.event, 'due_at', pawl_private.rfc3339(v_step.due_at),
        'error', v_step.error);
    end if;
  end if;
  difference := jsonb_strip_nulls(v_place || difference);
  if v_checks <> '[]' then
    checks := jsonb_build_object('schemas', v_schemas, 'steps', v_checks);
  end if;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/backtest.sql

-- backtest re-runs the recorded histories of instances against a version of their workflow, or against a
-- definition in canonical form that is not registered.
--
-- Such a definition is stored under a version number that no version has, in a subtransaction that is
-- rolled back before anybody can see it. Nobody waits for that, neither commands nor registrations. But the
-- transaction holds up vacuum. So a call re-runs instances for as long as storing took, or for a tenth of a second if
-- that is longer, and ends. It also ends with the row by which its differences and checks have p_bytes. The caller
-- goes on with the ids that have no row.
--
-- The present limits of size apply. $.instance.workflow_version is the number of the candidate.
-- p_version, p_definition: the candidate, exactly one of them
-- p_ids: of the tenant's instances
-- Returns: one row per id, in their order, until the time is up or p_bytes are reached, but at least one. steps to checks: see
--          backtest_instance; steps is 0 if there is no such instance
-- Raises:  PW400 malformed-request, PW40W workflow-not-found, PW42D invalid-definition
-- Locks:   workflow (row exclusive) while the call runs, if a definition is given
-- Writes:  nothing that stays
-- +goose StatementBegin
create function pawl.backtest(
  p_workflow text, p_ids uuid[], p_version integer default null, p_definition jsonb default null,
  p_tenant text default 'default', p_bytes bigint default 1048576
) returns table (id uuid, steps integer, complete boolean, difference jsonb, checks jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_begun timestamptz := clock_timestamp(); -- Bounds the call; decides nothing.
  v_until timestamptz;
  v_now timestamptz := pawl.now();
  v_setting pawl.setting;
  v_version integer := p_version;
  v_fault text;
  v_bytes bigint := 0;
begin
  if (p_version is null) = (p_definition is null) then
    perform pawl_private.raise_condition('malformed-request', 'give either a version or a definition');
  end if;
  if not exists (
    select from pawl.workflow w where w.name = p_workflow and (p_version is null or w.version = p_version)
  ) then
    perform pawl_private.raise_condition(
      'workflow-not-found', format('workflow %s does not exist, or has no such version', p_workflow));
  end if;
  select * into strict v_setting from pawl.setting;
  begin
    if p_definition is not null then
      -- A random number: two back-tests at the same time do not wait for each other, as a rule.
      v_version := 1073741824 + floor(random() * 1073741823)::integer;
      begin
        v_fault := case
          when p_definition ->> 'name' <> p_workflow then format('its name is not %s', p_workflow)
          else pawl_private.definition_fault(p_definition)
        end;
        if v_fault is null then
          perform pawl_private.store_definition(
            p_name => p_workflow, p_version => v_version, p_definition => p_definition, p_actor => 'backtest');
        end if;
      exception
        when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
          or program_limit_exceeded then
          v_fault := sqlerrm;
      end;
      if v_fault is not null then
        perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || v_fault);
      end if;
    end if;
    v_until := clock_timestamp() + greatest(clock_timestamp() - v_begun, interval '100 ms');
    foreach id in array coalesce(p_ids, '{}') loop
      select b.steps, b.complete, b.difference, b.checks
      into steps, complete, difference, checks
      from pawl_private.backtest_instance(
        p_tenant => p_tenant, p_id => id, p_workflow => p_workflow, p_version => v_version, p_now => v_now,
        p_setting => v_setting) b;
      return next; -- Rows that were returned outlive the subtransaction.
      v_bytes := v_bytes + coalesce(octet_length(difference::text), 0) + coalesce(octet_length(checks::text), 0);
      exit when clock_timestamp() > v_until or v_bytes >= p_bytes;
    end loop;
    raise exception 'rolled back' using errcode = 'PW999';
  exception when sqlstate 'PW999' then
    null;
  end;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/final_instances.sql

-- final_instances reads the next page of a pass over the final instances, in the order of
-- instance_workflow_idx: up to p_limit of one tenant, workflow and status. at_tenant to at_id are the place
-- of the pass, which each call takes and returns. at_tenant is '' before the pass begins and when it has
-- ended.
--
-- An instance is created before it becomes final, so only ids that are old enough are looked at. An
-- instance that was created early and became final late is looked at by each pass, and left out.
-- p_age: for how long the instances must have been final; null for the retention of their workflow's
--        latest version; workflows without a retention are skipped
-- p_tenant, p_workflows: only these; null for all
-- Returns: ids: of instances that are old enough; empty if the call has only skipped others. before: they
--          have been final since this time or longer
-- +goose StatementBegin
create function pawl.final_instances(
  p_limit integer, p_age interval, p_tenant text, p_workflows text[],
  inout at_tenant text, inout at_workflow text, inout at_status text, inout at_id uuid,
  out ids uuid[], out before timestamptz
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read a page: by the index, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_limit integer := greatest(p_limit, 1);
  v_next record;
  v_row record;
  v_read boolean;
  v_steps bigint := 0;
begin
  ids := '{}';
  at_tenant := coalesce(nullif(at_tenant, ''), p_tenant, '');
  if p_age is null and not exists (select from pawl.workflow w where w.retention is not null) then
    at_tenant := '';
    return;
  end if;
  -- Tenants and workflows without anything to read are skipped one by one, a hundred in each call.
  for v_try in 1 .. 100 loop
    select i.tenant_id, i.workflow, i.status
    into v_next
    from pawl.instance i
    where (i.tenant_id, i.workflow, i.status, i.id) > (at_tenant, at_workflow, at_status, at_id)
      and i.workflow <> '' -- The condition of the index.
    order by i.tenant_id, i.workflow, i.status, i.id
    limit 1;
    if not found or v_next.tenant_id <> p_tenant then
      at_tenant := ''; at_workflow := ''; at_status := ''; at_id := '00000000-0000-0000-0000-000000000000';
      return;
    end if;
    if (v_next.tenant_id, v_next.workflow, v_next.status) <> (at_tenant, at_workflow, at_status) then
      at_tenant := v_next.tenant_id;
      at_workflow := v_next.workflow;
      at_status := v_next.status;
      at_id := '00000000-0000-0000-0000-000000000000';
    end if;
    before := v_now - coalesce(p_age, (
      select w.retention from pawl.workflow w where w.name = at_workflow order by w.version desc limit 1));
    v_read := false;
    if at_status <> 'active' and before is not null and coalesce(at_workflow = any (p_workflows), true) then
      for v_row in
        select i.id, i.version, i.state_changed_at
        from pawl.instance i
        -- Compared as rows: column by column, the primary key would look as good to the planner.
        where (i.tenant_id, i.workflow, i.status, i.id) > (at_tenant, at_workflow, at_status, at_id)
          and (i.tenant_id, i.workflow, i.status, i.id) <
            (at_tenant, at_workflow, at_status, pawl.uuid_v7_floor(before + interval '1 millisecond'))
          and i.workflow <> ''
        order by i.tenant_id, i.workflow, i.status, i.id
        limit v_limit
      loop
        v_read := true;
        if v_row.state_changed_at <= before then
          v_steps := v_steps + v_row.version;
          -- A long history is a page of its own, so that purging a page takes a bounded time.
          exit when ids <> '{}' and v_steps > 20 * v_limit;
          ids := ids || v_row.id;
        end if;
        at_id := v_row.id;
      end loop;
    end if;
    if v_read then
      return;
    end if;
    at_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  end loop;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/log_restored.sql

-- log_restored does nothing: the sequencer sees by itself that the database was restored from a dump. It is kept
-- for those who call it after a restore, as earlier versions asked.
-- +goose StatementBegin
create function pawl.log_restored() returns void
language sql volatile
as $$ select $$;
-- +goose StatementEnd

-- 60_lifecycle/migrate_instances.sql

-- migrate_instances moves active instances to another version of their workflow: the next p_limit of them,
-- in the order of their ids. The caller repeats it, with the last id for p_after, until it gets fewer rows.
-- An instance that was moved is no longer of the old version, so a migration that was broken off can simply
-- be started again.
--
-- An instance's new state is the one that p_state_map has for its state, else the state of the same name.
--   * A state that keeps its name keeps state_changed_at, and the new version's timeouts count from there.
--     One that would have been due earlier is due at once.
--   * A state that the map names is entered now, even if its name stays the same.
--   * expires_at becomes null if the new version has no ttl, and that ttl from now if there was none.
--     Otherwise it stays. If the new version's ttl slides, the lifetime counts from state_changed_at, and
--     keeps its length if it slid before.
--   * The context stays as it is. It is not checked against the new version's schema, and nothing is
--     assigned for states that are left or entered.
--   * Then the new state's eventless transitions are taken, as after every step.
-- An instance that a command holds is skipped, and so is one whose state does not fit. No instance is
-- mapped to a final state: only an event or an eventless transition ends an instance.
-- p_states, p_ids: only instances in these states, with these ids; null for all
-- p_dry_run:       write and lock nothing; the caller's transaction may be read-only
-- Returns: one row per instance that was looked at, by id. result: 'migrated' or 'would-migrate';
--          'state-unknown' or 'state-final' if to_state does not fit; 'unsettled' if the eventless
--          transitions do not come to rest, or make the context too large or too deep; 'busy' if a command holds the
--          instance; 'gone' if it became final or was moved meanwhile
-- Raises:  PW40W workflow-not-found; PW40V workflow-conflict if another migration of the workflow is under
--          way; PW400 malformed-request with all faults of the request; what a guard or an assign raises
--          even in silent mode
-- Locks:   workflow (for key share, both versions), instance_migration, instance (for no key update, by id,
--          those that are not locked)
-- Writes:  instance_migration, instance, history, timer
-- +goose StatementBegin
create function pawl.migrate_instances(
  p_tenant text, p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_after uuid, p_limit integer,
  p_actor text default session_user, p_dry_run boolean default false, p_states text[] default null,
  p_ids uuid[] default null, p_reason text default null, p_correlation_id text default null,
  p_traceparent text default null
) returns table (id uuid, from_state text, to_state text, result text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read a page: by the index, in its order. Plans that it is left without an
-- alternative look expensive to it, and would be compiled: hence jit = off.
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_map jsonb := coalesce(p_state_map, '{}');
  v_after uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  v_limit integer := greatest(p_limit, 1);
  v_now timestamptz;
  v_version integer;
  v_faults jsonb;
  v_other pawl.instance_migration;
  v_ids uuid[];
  v_id uuid;
  v_old pawl.instance;
  v_new pawl.instance;
  v_target record;
  v_macrostep pawl_private.macrostep;
  v_steps pawl.instance[];
  v_setting pawl.setting;
  v_moved bigint := 0;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_correlation_id => p_correlation_id, p_reason => p_reason));
  select * into strict v_setting from pawl.setting;
  foreach v_version in array array[p_from, p_to] loop
    if p_dry_run then
      perform from pawl.workflow w where w.name = p_workflow and w.version = v_version;
    else
      -- The lock keeps the version from being retired meanwhile.
      perform from pawl.workflow w where w.name = p_workflow and w.version = v_version for key share;
    end if;
    if not found then
      perform pawl_private.raise_condition(
        'workflow-not-found', format('workflow %s has no version %s', p_workflow, v_version));
    end if;
  end loop;
  v_faults := pawl_private.migration_faults(
    p_workflow => p_workflow, p_from => p_from, p_to => p_to, p_state_map => v_map, p_states => p_states);
  if v_faults is not null then
    perform pawl_private.raise_condition(
      'malformed-request', 'the migration does not fit the versions', jsonb_build_object('errors', v_faults));
  end if;

  if not p_dry_run then
    loop
      v_now := pawl.now();
      update pawl.instance_migration m
      set finished_at = v_now
      where m.tenant_id = p_tenant and m.workflow = p_workflow and m.finished_at is null
        and (m.from_version, m.to_version) <> (p_from, p_to)
        and m.batch_at <= v_now - interval '1 minute';
      select m.*
      into v_other
      from pawl.instance_migration m
      where m.tenant_id = p_tenant and m.workflow = p_workflow and m.finished_at is null
        and (m.from_version, m.to_version) <> (p_from, p_to);
      if found then
        perform pawl_private.raise_condition(
          'workflow-conflict',
          format(
            'workflow %s: a migration from version %s to %s is under way', p_workflow, v_other.from_version,
            v_other.to_version));
      end if;
      begin
        -- Another call waits here until this one has ended: one of the same direction for the row, one of
        -- another direction for its place in the index.
        insert into pawl.instance_migration as m (
          tenant_id, workflow, from_version, to_version, started_at, batch_at, moved, actor)
        values (p_tenant, p_workflow, p_from, p_to, v_now, v_now, 0, p_actor)
        on conflict on constraint instance_migration_pkey do update
        set started_at = case when m.finished_at is null then m.started_at else excluded.started_at end,
          actor = case when m.finished_at is null then m.actor else excluded.actor end,
          batch_at = excluded.batch_at,
          finished_at = null;
        exit;
      exception when unique_violation then
        null; -- A migration of another direction has begun meanwhile. Now it is seen.
      end;
    end loop;
  end if;

  if p_ids is null then
    v_ids := array(
      select i.id
      from pawl.instance i
      where i.tenant_id = p_tenant
        and i.workflow = p_workflow
        and i.workflow <> '' -- The condition of the index.
        and i.status = 'active'
        and i.id > v_after
        and i.workflow_version = p_from
        and (p_states is null or i.state = any (p_states))
      order by i.id
      limit v_limit);
  else
    v_ids := array(
      select c.id
      from (select distinct u.id from unnest(p_ids) as u (id) where u.id > v_after order by u.id) c
      cross join lateral (
        select true as found
        from pawl.instance i
        where i.tenant_id = p_tenant and i.id = c.id
          and i.workflow = p_workflow
          and i.status = 'active'
          and i.workflow_version = p_from
          and (p_states is null or i.state = any (p_states))
        limit 1
      ) i
      order by c.id
      limit v_limit);
  end if;

  foreach v_id in array v_ids loop
    id := v_id;
    from_state := null;
    to_state := null;
    if p_dry_run then
      select i.* into v_old from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id;
    else
      select i.* into v_old
      from pawl.instance i
      where i.tenant_id = p_tenant and i.id = v_id
      for no key update skip locked;
      if not found then
        result := 'busy';
        select i.state into from_state from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id;
        return next;
        continue;
      end if;
    end if;
    from_state := v_old.state;
    to_state := coalesce(v_map ->> v_old.state, v_old.state);
    select s.status, s.eventless, s.ttl_slides, s.state_hash, w.ttl, o.ttl_slides as slid
    into v_target
    from pawl.workflow w
    left join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version and s.state = to_state
    left join pawl.workflow_state o
      on o.workflow = w.name and o.workflow_version = p_from and o.state = v_old.state
    where w.name = p_workflow and w.version = p_to;
    result := case
      when v_old.status <> 'active' or v_old.workflow_version <> p_from
        or not coalesce(v_old.state = any (p_states), true) then 'gone'
      when v_target.status is null then 'state-unknown'
      when v_target.status <> 'active' then 'state-final'
      when p_dry_run then 'would-migrate'
      else 'migrated'
    end;
    if result in ('migrated', 'would-migrate') then
      v_now := greatest(pawl.now(), v_old.state_changed_at);
      v_new := v_old;
      v_new.workflow_version := p_to;
      v_new.version := v_old.version + 1;
      v_new.state := to_state;
      v_new.state_hash := v_target.state_hash;
      if v_map ? v_old.state then
        v_new.state_changed_at := v_now;
      end if;
      v_new.expires_at := case
        when v_target.ttl is null then null
        when v_old.expires_at is null then v_now + v_target.ttl
        when not v_target.ttl_slides then v_old.expires_at
        when v_target.slid then v_new.state_changed_at + (v_old.expires_at - v_old.state_changed_at)
        else v_new.state_changed_at + v_target.ttl
      end;
      v_steps := array[v_old, v_new];
      if v_target.eventless then
        v_macrostep := pawl_private.complete_macrostep(
          p_before => v_old, p_instance => v_new, p_event => null, p_payload => '{}', p_reason => nullif(p_reason, ''),
          p_now => v_now, p_setting => v_setting);
        if v_macrostep.refusal is null then
          v_steps := v_macrostep.steps;
          v_new := v_macrostep.instance;
          to_state := v_new.state;
        else
          result := 'unsettled';
        end if;
      end if;
    end if;
    if result = 'migrated' then
      perform pawl_private.append_history(
        p_steps => v_steps, p_kind => 'migrated', p_at => v_now, p_event => null, p_payload => null, p_actor => p_actor,
        p_reason => p_reason, p_key => null, p_correlation_id => p_correlation_id, p_traceparent => p_traceparent);
      update pawl.instance i
      set workflow_version = v_new.workflow_version, version = v_new.version, state = v_new.state,
        status = v_new.status, context = v_new.context, state_changed_at = v_new.state_changed_at,
        expires_at = v_new.expires_at, error = v_new.error, state_hash = v_new.state_hash
      where i.tenant_id = p_tenant and i.id = v_id;
      perform pawl_private.set_timer(p_instance => v_new, p_tried => 0);
      v_moved := v_moved + 1;
    end if;
    return next;
  end loop;

  if not p_dry_run then
    update pawl.instance_migration m
    set moved = m.moved + v_moved,
      finished_at = case when cardinality(v_ids) < v_limit then pawl.now() end
    where m.tenant_id = p_tenant and m.workflow = p_workflow and m.from_version = p_from and m.to_version = p_to;
  end if;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/purge_instances.sql

-- purge_instances deletes instances that have been final since p_before or longer, each with its history
-- and its expired keys, all or nothing. An instance stays while another transaction holds it, while a live
-- key names it, and while a module retains it: see log_retains and webhook_retains.
--
-- The keys that name an instance are read under the instance's lock, in a statement of their own, because a
-- command writes its key under that lock and may have done so just before. Each key is then locked too,
-- because a replay that extends a key's life locks the key alone. What happens to a command that comes too
-- late:
--   * A fire waits for the instance, and does not find it.
--   * A replay reads key, history and instance in one statement, and so finds all of them or none. Without
--     them it raises 40001, as for a purged key; the next try is a new command.
-- This holds under read committed only, as all of the engine.
-- Returns: the ids of the instances that were deleted
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, purged_instance
-- +goose StatementBegin
create function pawl.purge_instances(p_tenant text, p_ids uuid[], p_before timestamptz) returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz;
  v_ids uuid[];
  v_id uuid;
  v_keys record;
  v_purged uuid[] := '{}';
begin
  v_ids := array(
    select i.id
    from (select distinct u.id from unnest(p_ids) as u (id) order by u.id) c
    cross join lateral (
      select i.id
      from pawl.instance i
      where i.tenant_id = p_tenant and i.id = c.id and i.status <> 'active' and i.state_changed_at <= p_before
      limit 1
      for update skip locked
    ) i
  );
  v_now := pawl.now();

  -- One by one, to be bound to the full key.
  foreach v_id in array v_ids loop
    select k.retains, k.expired
    into v_keys
    from pawl_private.instance_retains(p_tenant => p_tenant, p_id => v_id, p_now => v_now) k;
    continue when v_keys.retains
      or pawl_private.log_retains(p_tenant, v_id)
      or pawl_private.webhook_retains(p_tenant, v_id);

    delete from pawl.idempotency_key k where k.ctid = any (v_keys.expired);
    delete from pawl.timer t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.callback b where b.tenant_id = p_tenant and b.instance_id = v_id;
    delete from pawl.history h where h.tenant_id = p_tenant and h.instance_id = v_id;
    with gone as (
      delete from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id returning i.workflow
    )
    insert into pawl_private.purged_instance (tenant_id, instance_id, workflow) select p_tenant, v_id, g.workflow from gone g;
    v_purged := v_purged || v_id;
  end loop;

  return v_purged;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/purge_keys.sql

-- purge_keys deletes expired idempotency keys, the oldest first and no more than p_limit of them. It skips
-- keys that another transaction holds. It deletes nothing else: what a key replays outlives the key.
--
-- The planner settings leave one plan, whatever the statistics say: the index on expires_at in its order,
-- then the places of the rows that were locked.
-- Returns: how many were deleted; fewer than p_limit if no more have expired, or if others hold them
-- Locks:   idempotency_key (for update, skipping what is locked)
-- Writes:  idempotency_key
-- +goose StatementBegin
create function pawl.purge_keys(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_purged integer;
begin
  delete from pawl.idempotency_key k
  where k.ctid = any (array(
    select e.ctid
    from pawl.idempotency_key e
    where e.expires_at <= v_now
    order by e.expires_at
    -- A null limit would be none.
    limit greatest(coalesce(p_limit, 0), 0)
    for update skip locked
  ));
  get diagnostics v_purged = row_count;
  return v_purged;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/register_workflow.sql

-- register_workflow stores a definition in canonical form as the next version of its workflow. If the content
-- is the latest version's, it changes nothing, and its commit waits as that of the version did: see
-- commit_synchronously. Canonical: every event and timeout, and always, is an array of
-- transitions; every target is the path of a state; every assign is an object or '*'; durations are like
-- '90s'.
-- p_version: the version that it must become; null for any
-- Returns: version; created: whether it is new
-- Raises:  PW40V workflow-conflict, PW42D invalid-definition
-- Locks:   workflow (share update exclusive): registrations wait for each other. They do not wait for
--          back-tests, which store their candidates there, and no command waits for either
-- Writes:  workflow, workflow_state, workflow_transition
-- +goose StatementBegin
create function pawl.register_workflow(
  p_definition jsonb, p_actor text default session_user, p_version integer default null,
  out version integer, out created boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- Plans over JSON of unknown size look expensive, and would be compiled for seconds.
set jit = off
as $$
#variable_conflict use_column
declare
  v_name text := p_definition ->> 'name';
  v_latest pawl.workflow;
  v_fault text;
begin
  v_fault := pawl_private.definition_fault(p_definition);
  if v_fault is not null then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || v_fault);
  end if;

  lock table pawl.workflow in share update exclusive mode;
  select * into v_latest from pawl.workflow w where w.name = v_name order by w.version desc limit 1;
  version := coalesce(v_latest.version, 0);
  created := v_latest.definition is distinct from p_definition;
  if created then
    -- A number is not given again if instances were migrated away from it: their history names it.
    version := 1 + greatest(
      version,
      (select max(m.from_version) from pawl.instance_migration m where m.workflow = v_name and m.moved > 0));
  end if;
  if p_version <> version then
    perform pawl_private.raise_condition(
      'workflow-conflict', format('workflow %s: version %s is next, not %s', v_name, version, p_version),
      jsonb_build_object('version', coalesce(v_latest.version, 0)));
  end if;
  if not created then
    perform pawl_private.commit_synchronously();
    return;
  end if;

  perform pawl_private.store_definition(
    p_name => v_name, p_version => version, p_definition => p_definition, p_actor => p_actor);
exception
  -- Raised by casts, by constraints and by the jsonpath parser.
  when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
    or program_limit_exceeded then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || sqlerrm);
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/retire_workflow.sql

-- retire_workflow deletes a version of a workflow that no instance uses, final ones included. It counts
-- twice. The first count refuses a version in use before anybody waits. The second, under the lock, sees
-- instances that were created or moved meanwhile.
--
-- If the version was the latest, the one before it becomes the latest again. Its number is then given again,
-- unless instances were migrated away from it: their history names it, and a number in history must not
-- change its meaning. A workflow without versions does not exist, and its name is free.
--
-- If instances were migrated away from it, its states and transitions stay: see pawl.workflow_state.
--
-- It does not see a create in a repeatable read transaction that began before the version was retired: the
-- engine requires read committed.
-- p_checksum: the version's; the latest version with it is retired, unless p_version names another
-- Returns: whether there was such a version
-- Raises:  PW40V workflow-conflict if instances use it; 55P03 if the workflow table, the instance table or
--          the version's row, which a migration holds, stays locked for 300 ms: try again
-- Locks:   workflow (share update exclusive, and the row), then instance (share, while the workflow's instances
--          are counted: commands wait, readers do not)
-- Writes:  workflow, workflow_state, workflow_transition, instance_migration
-- +goose StatementBegin
create function pawl.retire_workflow(p_name text, p_checksum text, p_version integer default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_version integer;
  v_instances bigint;
begin
  lock table pawl.workflow in share update exclusive mode;
  select w.version
  into v_version
  from pawl.workflow w
  where w.name = p_name and w.checksum = p_checksum and (p_version is null or w.version = p_version)
  order by w.version desc
  limit 1
  for update;
  if not found then
    return false;
  end if;

  v_instances := pawl_private.count_instances(p_name, v_version);
  if v_instances = 0 then
    lock table pawl.instance in share mode;
    v_instances := pawl_private.count_instances(p_name, v_version);
  end if;
  if v_instances > 0 then
    perform pawl_private.raise_condition(
      'workflow-conflict', format('workflow %s: version %s is used by %s instances', p_name, v_version, v_instances),
      jsonb_build_object('version', v_version, 'instances', v_instances));
  end if;

  -- As long as instances exist that were migrated away, history names the version, and keys may replay its steps.
  if not exists (
    select from pawl.instance_migration m where m.workflow = p_name and m.from_version = v_version and m.moved > 0
  ) then
    delete from pawl.workflow_transition t where t.workflow = p_name and t.workflow_version = v_version;
    delete from pawl.workflow_state s where s.workflow = p_name and s.workflow_version = v_version;
  end if;
  delete from pawl.workflow w where w.name = p_name and w.version = v_version;
  -- Migrations from or to this version have ended.
  update pawl.instance_migration m
  set finished_at = pawl.now()
  where m.workflow = p_name and v_version in (m.from_version, m.to_version) and m.finished_at is null;
  return true;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.register_workflow'),
  ('service', 'pawl.retire_workflow'),
  ('service', 'pawl.migrate_instances'),
  ('service', 'pawl.backtest'),
  ('service', 'pawl.purge_keys'),
  ('service', 'pawl.final_instances'),
  ('service', 'pawl.purge_instances');

revoke execute on all functions in schema pawl, pawl_private from public;

-- +goose Down
-- +goose ENVSUB ON
/* To all but goose the rest is a comment. *${PAWL:0:0}/
-- +goose ENVSUB OFF
set local lock_timeout = '5s';
drop schema pawl_private cascade;
alter schema pawl rename to pawl_private;
create schema pawl;
alter table if exists pawl_private.goose_db_version set schema pawl;
drop schema pawl_private cascade;
-- */
