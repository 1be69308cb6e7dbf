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
create domain pawl.actor as text
  constraint actor_has_1_to_255_characters check (length(value) between 1 and 255);
create domain pawl.reason as text
  constraint reason_has_1_to_1000_characters check (length(value) between 1 and 1000);
create domain pawl.version as bigint
  constraint version_is_positive check (value >= 1);
create domain pawl.status as text
  constraint status_is_known check (value in ('active', 'completed', 'failed', 'cancelled', 'expired'));
create domain pawl.kind as text
  constraint kind_is_known
    check (value in ('created', 'transition', 'timeout', 'expired', 'forced', 'cancelled', 'migrated', 'result', 'compensated'));
create domain pawl.decision as text
  constraint decision_is_recorded check (
    value in ('applied', 'transition-not-allowed', 'guard-rejected', 'state-protected', 'not-cancellable'));
create domain pawl.object as jsonb
  constraint object_is_a_json_object check (jsonb_typeof(value) = 'object');
create domain pawl.sha256 as bytea
  constraint sha256_has_32_bytes check (octet_length(value) = 32);

comment on domain pawl.tenant_id is 'the namespace of keys and instances';
comment on domain pawl.key is 'a name that a caller chooses';
comment on domain pawl.actor is 'who gave a command';
comment on domain pawl.reason is 'why a command was given, in the actor''s words';
comment on domain pawl.object is 'a JSON object';
comment on domain pawl.sha256 is 'a SHA-256 digest';
comment on domain pawl.version is 'counts the steps of an instance';
comment on domain pawl.status is 'active, or how a final instance ended';
comment on domain pawl.kind is 'what made a step';
comment on domain pawl.decision is 'what is recorded for an idempotency key';

-- setting is one row: what every replica and every SQL caller must agree on.
-- `pawl migrate set` changes it. Nothing caches it but cursor_secret, which never changes, and access_version, which is
-- there to be compared.
create table pawl.setting (
  only_row boolean not null default true,
  idempotency_ttl interval not null default interval '24 hours',
  idempotency_ttl_slides boolean not null default false,
  context_limit integer not null default 65536,
  payload_limit integer not null default 65536,
  definition_limit integer not null default 1048576,
  state_limit integer not null default 500,
  cursor_secret bytea not null default sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
  access_version uuid not null default gen_random_uuid(),
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
comment on column pawl.setting.access_version is 'another one after each change of a token, a role or a tenant';

insert into pawl.setting default values;

-- privilege says which functions a role with a privilege may execute. `api` is what requests need, `worker` what the
-- background work needs. `pawl serve` does both unless it is told otherwise. `caller` is an application that moves
-- instances in its own transactions, and `operator` may force them, too. `reader` is for support: it reads, and no
-- secrets. Each module adds its rows in its grants.sql; `pawl migrate grants` turns them into GRANT statements.
create table pawl_private.privilege (
  privilege text not null,
  function text not null,
  constraint privilege_pkey primary key (privilege, function),
  constraint privilege_is_known check (privilege in ('api', 'worker', 'reader', 'caller', 'operator'))
);

-- readable says which tables and views a role with a privilege may read, beside what its functions answer.
create table pawl_private.readable (
  privilege text not null,
  relation text not null,
  columns text[],
  constraint readable_pkey primary key (privilege, relation),
  constraint readable_privilege_is_known check (privilege in ('api', 'worker', 'reader'))
);

comment on column pawl_private.readable.columns is 'null for all';

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
  ('unknown-state', 'malformed-request', 'PW400', 'the instance''s version of the workflow has no such state'),
  ('instance-not-found', 'instance-not-found', 'PW404', 'there is no such instance'),
  ('workflow-not-found', 'workflow-not-found', 'PW40W', 'there is no such workflow'),
  ('transition-not-allowed', 'transition-not-allowed', 'PW409', 'the state %2$s has no transition for %1$s'),
  ('instance-final', 'transition-not-allowed', 'PW409', 'the state %2$s is final, and nothing leaves it'),
  ('state-protected', 'state-protected', 'PW40P',
    'a protected state is neither left nor entered by hand; the instance is in %2$s, whose events and timers go on'),
  ('not-cancellable', 'not-cancellable', 'PW40C', 'the workflow names no state for instances that are cancelled'),
  ('guard-rejected', 'guard-rejected', 'PW40G', 'no guard of %1$s in the state %2$s holds for this payload'),
  ('invariant-broken', 'guard-rejected', 'PW40G', 'the step would break an invariant'),
  ('instance-exists', 'instance-exists', 'PW40E', 'instance %4$s already has this business key'),
  ('limit-reached', 'limit-reached', 'PW40M', null),
  ('workflow-conflict', 'workflow-conflict', 'PW40V', null),
  ('bulk-conflict', 'bulk-conflict', 'PW40B', null),
  ('principal-changed', 'unavailable', 'PW40A', null),
  ('task-not-found', 'not-found', 'PW40K', 'there is no such task'),
  ('lease-superseded', 'lease-superseded', 'PW40S',
    'the lease is not the newest of the task: it was given back, its attempt has failed, or somebody else has claimed the task since'),
  ('task-ended', 'task-ended', 'PW40D', 'the task has ended'),
  ('task-open', 'task-ended', 'PW40D', 'the task is under way; wait for its end'),
  ('consumer-led', 'internal', 'PW40L', null),
  ('steps-purged', 'event-id-too-old', 'PW410', null),
  ('version-mismatch', 'version-mismatch', 'PW412', 'the instance is at version %3$s; read it again and decide anew'),
  ('payload-too-large', 'too-large', 'PW413', 'the payload is larger than the limit'),
  ('context-too-large', 'too-large', 'PW413', 'the context is, or would become, larger than the limit'),
  ('context-too-deep', 'too-large', 'PW413', 'the context would become nested deeper than 64'),
  ('unknown-event', 'unknown-event', 'PW422', 'the workflow has no event "%1$s"'),
  ('always-loop', 'guard-error', 'PW42G',
    'eventless transitions follow one another without coming to rest; nothing was changed'),
  ('timer-loop', 'guard-error', 'PW42G',
    'timers of the instance follow one another without time passing; nothing was changed'),
  ('invalid-definition', 'invalid-definition', 'PW42D', null),
  ('idempotency-key-reuse', 'idempotency-key-reuse', 'PW42K',
    'this idempotency key was used for another request; take a new one'),
  ('forbidden', 'forbidden', 'PW403', null),
  ('unknown-tenant', 'unknown-tenant', 'PW40T', null),
  ('precondition-required', 'precondition-required', 'PW428',
    'this workflow wants every event to name the version it has seen; the instance is at version %3$s'),
  ('override-unconditional', 'precondition-required', 'PW428',
    'an override must name the version it has seen; the instance is at version %3$s');

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
    when starts_with(p_key, 'bulk:') then 'the key must not begin with bulk:, as what a bulk has done does'
    when length(p_business_key) > 255 then 'the business key must have no more than 255 characters'
    when p_correlation_id <> '' and p_correlation_id collate "C" !~ '^[!-~]{1,255}$'
      then 'the correlation id must have 1 to 255 visible ASCII characters'
    when length(p_reason) > 1000 then 'the reason must have no more than 1000 characters'
  end
$$;
-- +goose StatementEnd

-- commit_synchronously makes the commit of this transaction wait for the synchronous standbys, though it has written
-- nothing. It is for answers that acknowledge what was committed before. A commit is visible although perhaps no
-- standby has it, if its wait was cancelled, or if the server crashed while it waited. When this commit's wait is over,
-- the standbys have everything that this transaction has seen.
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

-- timed_out says whether the statement timeout has come, for a handler of query_canceled. Somebody may have cancelled
-- the call instead. The timeout's clock starts a little before statement_timestamp.
-- +goose StatementBegin
create function pawl_private.timed_out() returns boolean
language sql volatile
as $$
  select current_setting('statement_timeout') <> '0'
    and clock_timestamp() - statement_timestamp() >= current_setting('statement_timeout')::interval * 0.8
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
  ('api', 'pawl.now'),
  ('api', 'pawl.schema_version'),
  ('api', 'pawl.uuid_v7_floor'),
  ('worker', 'pawl.now'),
  ('worker', 'pawl.schema_version'),
  ('worker', 'pawl.uuid_v7_floor'),
  ('reader', 'pawl.now'),
  ('reader', 'pawl.schema_version'),
  ('reader', 'pawl.uuid_v7_floor');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.setting', null),
  ('worker', 'pawl.setting', null),
  ('reader', 'pawl.setting', '{only_row,idempotency_ttl,idempotency_ttl_slides,context_limit,payload_limit,definition_limit,state_limit}');

-- 05_language/tables.sql

-- Module language: what definitions say in guards, values and durations.
--
-- A *path* is a SQL/JSON path. It is read in strict mode unless it begins with "lax". In lax mode a comparison looks
-- into arrays, so that [0.01, 420] would equal 420.
--
-- A *value* makes data. It is a path, a scalar, an object or array of values, or an operation such as
-- {"$append": [A, V]}. A value may select nothing: that is null of SQL, which is not null of JSON.
--
-- A *guard* is a path, or an object such as {"all": [G, G]}. It is true, false or unknown, as a condition of SQL is,
-- and holds only if it is true.
--
-- Registration compiles values and guards. compiled_value and compiled_guard check them and write each as a JSON array:
-- the name of the operation, the JSON Pointer of its place in the definition, the operands. The engine evaluates that
-- form by value and holds. Guards and assigns that are plain paths are not compiled: the engine keeps them as jsonpath,
-- and evaluates them in its own statement.
--
-- An operation that cannot be carried out raises 22023, and the column of the error is the operation's JSON Pointer.
-- The error undoes the call. The service finds the command to blame and answers guard-error.
--
-- Nothing here reads a table, and nothing depends on a session's settings.

-- 05_language/private.sql

-- fault raises that a value or a guard of a definition is wrong, or cannot be carried out for an instance.
-- p_at: its JSON Pointer in the definition
-- Raises:  22023 with the pointer in front of the message, and as its column
-- +goose StatementBegin
create function pawl_private.fault(p_at text, p_message text) returns void
language plpgsql stable
as $$
begin
  raise exception '%: %', p_at, p_message using errcode = '22023', column = p_at;
end
$$;
-- +goose StatementEnd

-- below extends a JSON Pointer by a name.
-- +goose StatementBegin
create function pawl_private.below(p_at text, p_name text) returns text
language sql immutable parallel safe
as $$ select p_at || '/' || replace(replace(p_name, '~', '~0'), '/', '~1') $$;
-- +goose StatementEnd

-- initial_of names the state that a definition, or a compound state of it, begins in.
-- +goose StatementBegin
create function pawl_private.initial_of(p_value jsonb) returns text
language sql immutable parallel safe
as $$ select coalesce(p_value #>> '{initial,target}', p_value ->> 'initial') $$;
-- +goose StatementEnd

-- duration reads a duration such as 90s, 1h30m, 1y2mo or P3DT12H, which may have a sign. The result has no days,
-- whose length would depend on the time zone of the session: a day has 24 hours. Years and months stay months.
-- Returns: null if it is no duration, or is longer than 10 years, for which a month counts as a twelfth of 365 days
-- +goose StatementBegin
create function pawl_private.duration(p_text text) returns interval
language plpgsql stable parallel safe
as $$
declare
  v_sign integer := case when p_text like '-%' then -1 else 1 end;
  v_text text := ltrim(p_text, '+-');
  v_part text[];
  v_months numeric := 0;
  v_seconds numeric := 0;
begin
  if p_text ~ '^[+-]?PT?[0-9].*[^T]$' then
    v_part := regexp_match(
      v_text,
      '^P(?:([0-9]{1,9})Y)?(?:([0-9]{1,9})M)?(?:([0-9]{1,9})W)?(?:([0-9]{1,9})D)?'
        || '(?:T(?:([0-9]{1,9})H)?(?:([0-9]{1,9})M)?(?:([0-9]{1,12}(?:[.][0-9]{1,6})?)S)?)?$');
    if v_part is null then
      return null;
    end if;
    v_months := coalesce(v_part[1], '0')::numeric * 12 + coalesce(v_part[2], '0')::numeric;
    v_seconds := coalesce(v_part[3], '0')::numeric * 604800 + coalesce(v_part[4], '0')::numeric * 86400
      + coalesce(v_part[5], '0')::numeric * 3600 + coalesce(v_part[6], '0')::numeric * 60 + coalesce(v_part[7], '0')::numeric;
  elsif p_text ~ '^[+-]?([0-9]{1,12}(ms|mo|y|w|d|h|m|s))+$' then
    for v_part in select regexp_matches(v_text, '([0-9]+)(ms|mo|y|w|d|h|m|s)', 'g') loop
      if v_part[2] in ('mo', 'y') then
        v_months := v_months + v_part[1]::numeric * case v_part[2] when 'y' then 12 else 1 end;
      else
        v_seconds := v_seconds + v_part[1]::numeric * case v_part[2]
          when 'w' then 604800 when 'd' then 86400 when 'h' then 3600 when 'm' then 60 when 's' then 1 else 0.001
        end;
      end if;
    end loop;
  else
    return null;
  end if;
  if v_months * 2628000 + v_seconds > 315360000 then
    return null;
  end if;
  return make_interval(months => (v_sign * v_months)::integer, secs => (v_sign * v_seconds)::double precision);
end
$$;
-- +goose StatementEnd

-- months_of and seconds_of are the two parts of a duration: that which needs a calendar, and the rest.
-- +goose StatementBegin
create function pawl_private.months_of(p_duration interval) returns integer
language sql immutable parallel safe
as $$ select (extract(year from p_duration) * 12 + extract(month from p_duration))::integer $$;
-- +goose StatementEnd

-- +goose StatementBegin
create function pawl_private.seconds_of(p_duration interval) returns numeric
language sql immutable parallel safe
as $$ select extract(epoch from p_duration - make_interval(months => pawl_private.months_of(p_duration))) $$;
-- +goose StatementEnd

-- plain_duration writes a duration without months for people: 24h, 90m or 1.5s.
-- +goose StatementBegin
create function pawl_private.plain_duration(p_duration interval) returns text
language sql immutable parallel safe
as $$
  select case
    when d.seconds % 3600 = 0 then trim_scale(d.seconds / 3600) || 'h'
    when d.seconds % 60 = 0 then trim_scale(d.seconds / 60) || 'm'
    else trim_scale(d.seconds) || 's'
  end
  from (select extract(epoch from p_duration) as seconds) d
$$;
-- +goose StatementEnd

-- moved moves a time by a duration. Months are counted by the calendar of a time zone: January 31 and a month is the
-- last day of February.
-- +goose StatementBegin
create function pawl_private.moved(p_at timestamptz, p_duration interval, p_zone text) returns timestamptz
language plpgsql stable parallel safe
as $$
declare
  v_months integer := pawl_private.months_of(p_duration);
begin
  if v_months <> 0 then
    p_at := (p_at at time zone p_zone + make_interval(months => v_months)) at time zone p_zone;
  end if;
  return p_at + make_interval(secs => pawl_private.seconds_of(p_duration)::double precision);
end
$$;
-- +goose StatementEnd

-- time_of reads a time that a value made: RFC 3339, with an offset.
-- Raises:  22023 with the pointer if it is none
-- +goose StatementBegin
create function pawl_private.time_of(p_value jsonb, p_at text) returns timestamptz
language plpgsql stable parallel safe
as $$
declare
  v_result timestamptz;
begin
  if jsonb_typeof(p_value) <> 'string'
    or p_value #>> '{}' !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$' then
    perform pawl_private.fault(p_at, format('%s is no time; write one as RFC 3339 does, with an offset', left(p_value::text, 100)));
  end if;
  v_result := (p_value #>> '{}')::timestamptz;
  -- The offset may lead out of the years that RFC 3339 can write.
  if extract(year from v_result at time zone 'UTC') not between 1 and 9999 then
    raise datetime_field_overflow;
  end if;
  return v_result;
exception when datetime_field_overflow or invalid_datetime_format or invalid_time_zone_displacement_value then
  perform pawl_private.fault(p_at, format('%s is no time that there is', left(p_value::text, 100)));
end
$$;
-- +goose StatementEnd

-- strict puts the mode in front of a path that says none.
-- +goose StatementBegin
create function pawl_private.strict(p_path text) returns text
language sql immutable parallel safe
as $$ select case when p_path ~ '^[[:space:]]*(lax|strict)[[:space:]]' then p_path else 'strict ' || p_path end $$;
-- +goose StatementEnd

-- is_path says whether a string in a value is a path.
-- +goose StatementBegin
create function pawl_private.is_path(p_text text) returns boolean
language sql immutable parallel safe
as $$ select left(p_text, 1) = '$' and substr(p_text, 2, 1) <> '$' or p_text ~ '^(lax|strict)[[:space:]]+[$]' $$;
-- +goose StatementEnd

-- compiled_path compiles a path. A plain path has only members and subscripts: it selects one item, or nothing.
-- Returns: ["path", pointer, path] or ["computed", pointer, path]
-- Raises:  42601 and others if it is no path
-- +goose StatementBegin
create function pawl_private.compiled_path(p_path jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_text text;
begin
  if jsonb_typeof(p_path) = 'object' and p_path ? '$path' then
    p_path := p_path -> '$path';
    p_at := p_at || '/$path';
  end if;
  if jsonb_typeof(p_path) is distinct from 'string' then
    perform pawl_private.fault(p_at, 'must be a SQL/JSON path');
  end if;
  -- Postgres writes a jsonpath as canonical text.
  v_text := pawl_private.strict(p_path #>> '{}')::jsonpath::text;
  if regexp_replace(v_text, '^strict ', '') = '$' then
    perform pawl_private.fault(p_at, '$ alone is all that a path reads; name a member, such as $.context');
  end if;
  return jsonb_build_array(
    case when v_text ~ E'^(strict )?[$]([.]"([^"\\\\]|\\\\.)*"|[[]([0-9]+|last)[]])*$' then 'path' else 'computed' end, p_at, v_text);
end
$$;
-- +goose StatementEnd

-- plain_prefix returns the plain path that a compiled path begins with. If that selects nothing, neither does the path.
-- Returns: null if it begins otherwise
-- +goose StatementBegin
create function pawl_private.plain_prefix(p_path text) returns text
language sql immutable parallel safe
as $$ select substring(p_path from E'^(?:strict )?[$](?:[.]"(?:[^"\\\\]|\\\\.)*"|[[][0-9]+[]])*') $$;
-- +goose StatementEnd

-- compiled_list compiles the operands of an operation.
-- +goose StatementBegin
create function pawl_private.compiled_list(p_values jsonb, p_at text, p_least integer, p_most integer) returns jsonb
language plpgsql stable
as $$
begin
  if jsonb_typeof(p_values) is distinct from 'array' or jsonb_array_length(p_values) not between p_least and p_most then
    perform pawl_private.fault(p_at, case
      when p_least = p_most then format('must be an array of %s values', p_least)
      when p_most >= 1000 then format('must be an array of at least %s values', p_least)
      else format('must be an array of %s to %s values', p_least, p_most)
    end);
  end if;
  return coalesce(
    (
      select jsonb_agg(pawl_private.compiled_value(e.value, p_at || '/' || e.place - 1) order by e.place)
      from jsonb_array_elements(p_values) with ordinality as e (value, place)
    ),
    '[]');
end
$$;
-- +goose StatementEnd

-- compiled_value checks and compiles a value.
-- p_may_unset: whether {"$unset": true} may stand here
-- Returns: a JSON array: the operation's name without "$", the pointer, the operands. A constant is
--          ["literal", pointer, constant]
-- Raises:  22023 with the pointer; what the parser of paths raises
-- +goose StatementBegin
create function pawl_private.compiled_value(p_value jsonb, p_at text, p_may_unset boolean default false) returns jsonb
language plpgsql stable
as $$
declare
  v_text text := p_value #>> '{}';
  v_operation text;
  v_operand jsonb;
  v_names text[];
  v_list jsonb := '[]';
  v_compiled jsonb;
begin
  if jsonb_typeof(p_value) = 'string' then
    if left(v_text, 2) = '$' || '$' then
      return jsonb_build_array('literal', p_at, substr(v_text, 2));
    elsif pawl_private.is_path(v_text) then
      return pawl_private.compiled_path(p_value, p_at);
    end if;
    return jsonb_build_array('literal', p_at, p_value);
  elsif jsonb_typeof(p_value) = 'array' then
    v_list := pawl_private.compiled_list(p_value, p_at, 0, 1000000);
    if not exists (select from jsonb_array_elements(v_list) e where e ->> 0 <> 'literal') then
      return jsonb_build_array('literal', p_at, (select coalesce(jsonb_agg(e -> 2), '[]') from jsonb_array_elements(v_list) e));
    end if;
    return jsonb_build_array('array', p_at) || v_list;
  elsif jsonb_typeof(p_value) is distinct from 'object' then
    return jsonb_build_array('literal', p_at, p_value);
  end if;

  v_names := array(select k from jsonb_object_keys(p_value) k order by k collate "C");
  if not exists (select from unnest(v_names) n where n like '$%') then
    v_compiled := coalesce(
      (
        select jsonb_object_agg(n.name, pawl_private.compiled_value(p_value -> n.name, pawl_private.below(p_at, n.name)))
        from unnest(v_names) as n (name)
      ),
      '{}');
    if not exists (select from jsonb_each(v_compiled) e where e.value ->> 0 <> 'literal') then
      return jsonb_build_array(
        'literal', p_at, (select coalesce(jsonb_object_agg(e.key, e.value -> 2), '{}') from jsonb_each(v_compiled) e));
    end if;
    return jsonb_build_array('object', p_at, v_compiled);
  elsif cardinality(v_names) > 1 then
    perform pawl_private.fault(
      p_at, 'a member that begins with $ is an operation and stands alone; data with such a name is written with $literal');
  end if;
  v_operation := substr(v_names[1], 2);
  v_operand := p_value -> v_names[1];
  p_at := pawl_private.below(p_at, v_names[1]);
  case v_operation
    when 'path' then
      return pawl_private.compiled_path(v_operand, p_at);
    when 'all' then
      v_compiled := pawl_private.compiled_path(v_operand, p_at);
      return jsonb_build_array('all', p_at, v_compiled -> 2, pawl_private.plain_prefix(v_compiled ->> 2));
    when 'literal' then
      return jsonb_build_array('literal', p_at, v_operand);
    when 'unset' then
      if v_operand is distinct from 'true' then
        perform pawl_private.fault(p_at, 'must be true');
      elsif not p_may_unset then
        perform pawl_private.fault(p_at, 'stands only for the whole value of a name in assign, or for a branch of its $if');
      end if;
      return jsonb_build_array('unset', p_at);
    when 'if' then
      if jsonb_typeof(v_operand) is distinct from 'array' or jsonb_array_length(v_operand) <> 3 then
        perform pawl_private.fault(p_at, 'must be an array of a guard and two values');
      end if;
      return jsonb_build_array(
        'if', p_at, pawl_private.compiled_guard(v_operand -> 0, p_at || '/0'),
        pawl_private.compiled_value(v_operand -> 1, p_at || '/1', p_may_unset),
        pawl_private.compiled_value(v_operand -> 2, p_at || '/2', p_may_unset));
    when 'set' then
      if jsonb_typeof(v_operand) is distinct from 'array' or jsonb_array_length(v_operand) <> 3 then
        perform pawl_private.fault(p_at, 'must be an array of an object, an array of names, and a value');
      end if;
      return jsonb_build_array(
        'set', p_at, pawl_private.compiled_value(v_operand -> 0, p_at || '/0'),
        pawl_private.compiled_list(v_operand -> 1, p_at || '/1', 1, 64),
        pawl_private.compiled_value(v_operand -> 2, p_at || '/2'));
    when 'first', 'concat', 'merge' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 1, 1000000);
    when 'append', 'union', 'without' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 1000000);
    when 'duration' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 2);
    when 'time' then
      return jsonb_build_array(v_operation, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 3);
    else
      perform pawl_private.fault(
        p_at, 'is no operation; there are $path, $all, $first, $if, $append, $union, $without, $merge, $set, $concat, $time, '
        || '$duration, $unset and $literal, and data with such a name is written with $literal');
  end case;
end
$$;
-- +goose StatementEnd

-- guard_path reads the path of a guard. One that is no predicate and may select several items is compared with true, so that
-- it does not only look at the first of them.
-- Raises:  42601 and others if it is no path
-- +goose StatementBegin
create function pawl_private.guard_path(p_text text, p_at text) returns jsonpath
language plpgsql stable
as $$
declare
  v_text text := ltrim(pawl_private.strict(p_text));
  v_mode integer := position(' ' in v_text);
begin
  if pawl_private.compiled_path(to_jsonb(v_text), p_at) ->> 0 = 'path' then
    return v_text::jsonpath; -- It selects one item at most.
  end if;
  return (left(v_text, v_mode) || '(' || substr(v_text, v_mode + 1) || ') == true')::jsonpath;
exception when syntax_error then
  return v_text::jsonpath; -- A predicate cannot be compared.
end
$$;
-- +goose StatementEnd

-- compiled_guard checks and compiles a guard.
-- Returns: a JSON array: the operator, the pointer, the operands; of a path ["path", pointer, path]. The operands of
--          present and absent are the path and, unless it is plain, its plain_prefix
-- Raises:  as compiled_value
-- +goose StatementBegin
create function pawl_private.compiled_guard(p_guard jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_operator text;
  v_operand jsonb;
  v_compiled jsonb;
begin
  if jsonb_typeof(p_guard) = 'string' then
    return jsonb_build_array('path', p_at, pawl_private.guard_path(p_guard #>> '{}', p_at)::text);
  elsif jsonb_typeof(p_guard) is distinct from 'object' or (select count(*) from jsonb_object_keys(p_guard)) <> 1 then
    perform pawl_private.fault(p_at, 'must be a path, or an object with one of all, any, not, present, absent, equal, in, before and after');
  end if;
  select e.key, e.value into v_operator, v_operand from jsonb_each(p_guard) e;
  p_at := pawl_private.below(p_at, v_operator);
  case v_operator
    when 'all', 'any' then
      if jsonb_typeof(v_operand) is distinct from 'array' or v_operand = '[]' then
        perform pawl_private.fault(p_at, 'must be an array of at least one guard');
      end if;
      return jsonb_build_array(v_operator, p_at) || (
        select jsonb_agg(pawl_private.compiled_guard(e.value, p_at || '/' || e.place - 1) order by e.place)
        from jsonb_array_elements(v_operand) with ordinality as e (value, place));
    when 'not' then
      return jsonb_build_array(v_operator, p_at, pawl_private.compiled_guard(v_operand, p_at));
    when 'present', 'absent' then
      v_compiled := pawl_private.compiled_path(v_operand, p_at);
      return jsonb_build_array(v_operator, p_at, v_compiled -> 2)
        || case
          when v_compiled ->> 0 = 'path' then '[]'
          else jsonb_build_array(pawl_private.plain_prefix(v_compiled ->> 2))
        end;
    when 'equal', 'in', 'before', 'after' then
      return jsonb_build_array(v_operator, p_at) || pawl_private.compiled_list(v_operand, p_at, 2, 2);
    else
      perform pawl_private.fault(p_at, 'is no guard; there are all, any, not, present, absent, equal, in, before and after');
  end case;
end
$$;
-- +goose StatementEnd

-- compiled_assign checks and compiles the member assign of a transition, an entry, an exit or an initial.
-- Returns: a JSON array of ["payload", names or null] and ["set", path of names, value, pointer], in the order in which
--          they are carried out. Null if there is nothing to assign
-- Raises:  as compiled_value
-- +goose StatementBegin
create function pawl_private.compiled_assign(p_assign jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_list jsonb[] := '{}';
  v_name text;
  v_path text[];
  v_paths text[] := '{}';
  v_all boolean;
begin
  if p_assign is null or p_assign = '{}' then
    return null;
  elsif p_assign = '"*"' then
    return '[["payload", null]]';
  elsif jsonb_typeof(p_assign) <> 'object' then
    perform pawl_private.fault(p_at, 'must be "*", or an object from names to values');
  end if;
  v_all := coalesce(p_assign -> '*' = 'true', false);
  if v_all then
    v_list := array['["payload", null]'::jsonb];
  elsif p_assign ? '*' then
    if jsonb_typeof(p_assign -> '*') <> 'array'
      or exists (select from jsonb_array_elements(p_assign -> '*') n where jsonb_typeof(n) <> 'string') then
      perform pawl_private.fault(p_at || '/*', 'must be true, or an array of names of the payload');
    end if;
    v_list := array[jsonb_build_array('payload', p_assign -> '*')];
  end if;
  for v_name in select k from jsonb_object_keys(p_assign) k where k <> '*' order by k collate "C" loop
    continue when v_all and v_name = 'trusted' and p_assign -> v_name = 'true';
    v_path := string_to_array(v_name, '.');
    if '' = any (v_path) or v_name = '' then
      perform pawl_private.fault(pawl_private.below(p_at, v_name), 'a name, and each part of one with dots, must not be empty');
    elsif exists (
      select from generate_series(1, cardinality(v_path) - 1) n where array_to_string(v_path[:n], '.') = any (v_paths)
    ) then
      perform pawl_private.fault(pawl_private.below(p_at, v_name), 'is within another name of this assign, so that it is not clear which is set');
    end if;
    v_paths := v_paths || v_name;
    v_list := array_append(v_list, jsonb_build_array(
      'set', to_jsonb(v_path), pawl_private.compiled_value(p_assign -> v_name, pawl_private.below(p_at, v_name), true),
      pawl_private.below(p_at, v_name)));
  end loop;
  return to_jsonb(v_list);
end
$$;
-- +goose StatementEnd

-- is_plain says whether a compiled assign sets members of the context's top level to what plain paths select, or to
-- scalars. The engine evaluates such an assign in its own statement.
-- +goose StatementBegin
create function pawl_private.is_plain(p_assign jsonb) returns boolean
language sql immutable parallel safe
as $$
  select not exists (
    select
    from jsonb_array_elements(p_assign) a
    where a ->> 0 <> 'set' or jsonb_array_length(a -> 1) <> 1
      or a #>> '{2,0}' <> 'path'
      and not (a #>> '{2,0}' = 'literal' and jsonb_typeof(a #> '{2,2}') in ('string', 'number', 'boolean', 'null'))
  )
$$;
-- +goose StatementEnd

-- computed evaluates a path that may raise. p_all: whether to return all items, as an array; p_prefix: then, the
-- plain path that it begins with: if that selects nothing, there are no items. Null if it begins otherwise.
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.computed(p_document jsonb, p_path text, p_at text, p_all boolean, p_prefix text) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  if p_all then
    return jsonb_path_query_array(p_document, p_path::jsonpath);
  end if;
  return jsonb_path_query_first(p_document, p_path::jsonpath);
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
  if p_prefix is not null and jsonb_path_query_first(p_document, p_prefix::jsonpath, '{}', true) is null then
    return '[]';
  end if;
  perform pawl_private.fault(p_at, sqlerrm);
end
$$;
-- +goose StatementEnd

-- array_of returns an operand that must be an array. Nothing, and null, count as an empty one.
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.array_of(p_value jsonb, p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  if p_value is null or p_value = 'null' then
    return '[]';
  elsif jsonb_typeof(p_value) <> 'array' then
    perform pawl_private.fault(p_at, format('its first operand must be an array, and is of type %s', jsonb_typeof(p_value)));
  end if;
  return p_value;
end
$$;
-- +goose StatementEnd

-- set_deep sets a member of a member. Objects that are missing on the way are made.
-- p_path: names; a number, as text, is an index of an array that is there
-- Raises:  22023 with the pointer if the way leads through a scalar, or past the end of an array
-- +goose StatementBegin
create function pawl_private.set_deep(p_object jsonb, p_path text[], p_value jsonb, p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_type text := jsonb_typeof(p_object);
begin
  if cardinality(p_path) = 0 then
    return p_value;
  elsif p_object is null or v_type = 'null' then
    p_object := '{}';
  elsif v_type = 'array' then
    if p_path[1] !~ '^[0-9]{1,9}$' or p_path[1]::integer >= jsonb_array_length(p_object) then
      perform pawl_private.fault(p_at, format('the array has no item %s; add items with $append', p_path[1]));
    end if;
    return jsonb_set(
      p_object, p_path[1:1], pawl_private.set_deep(p_object -> p_path[1]::integer, p_path[2:], p_value, p_at));
  elsif v_type <> 'object' then
    perform pawl_private.fault(p_at, format('%s cannot be set within a value of type %s', p_path[1], v_type));
  end if;
  return p_object || jsonb_build_object(
    p_path[1], pawl_private.set_deep(p_object -> p_path[1], p_path[2:], p_value, p_at));
end
$$;
-- +goose StatementEnd

-- concatenated carries out $concat: texts, or arrays.
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.concatenated(p_items jsonb[], p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_list jsonb;
  v_text text;
  v_item jsonb;
begin
  foreach v_item in array p_items loop
    continue when v_item = 'null';
    if jsonb_typeof(v_item) = 'array' then
      v_list := coalesce(v_list, '[]') || v_item;
    elsif jsonb_typeof(v_item) = 'object' then
      perform pawl_private.fault(p_at, 'an object cannot be concatenated; name a member of it, or use $merge');
    else
      v_text := coalesce(v_text, '') || (v_item #>> '{}');
    end if;
    if v_list is not null and v_text is not null then
      perform pawl_private.fault(p_at, 'arrays and scalars cannot be concatenated with each other');
    end if;
  end loop;
  return coalesce(v_list, to_jsonb(coalesce(v_text, '')));
end
$$;
-- +goose StatementEnd

-- moved_value carries out $time: see moved.
-- Raises:  22023 with the pointer if there is no such zone, or no such time
-- +goose StatementBegin
create function pawl_private.moved_value(p_from timestamptz, p_duration interval, p_zone jsonb, p_at text) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_result timestamptz;
begin
  perform p_from at time zone case when jsonb_typeof(p_zone) = 'string' then p_zone #>> '{}' else '' end;
  v_result := pawl_private.moved(p_from, p_duration, p_zone #>> '{}');
  if extract(year from v_result at time zone 'UTC') not between 1 and 9999 then
    raise datetime_field_overflow;
  end if;
  return to_jsonb(pawl_private.rfc3339(v_result));
exception
  when invalid_parameter_value then
    perform pawl_private.fault(p_at, format('%s is no time zone; name one such as Europe/Berlin', left(p_zone::text, 100)));
  when datetime_field_overflow then
    perform pawl_private.fault(p_at, 'the time is not within the years 1 to 9999');
end
$$;
-- +goose StatementEnd

-- value evaluates a compiled value on the document {context, payload, instance, now, event, actor}.
-- Returns: null of SQL if it selects nothing
-- Raises:  22023 with the pointer if an operation cannot be carried out
-- +goose StatementBegin
create function pawl_private.value(p_document jsonb, p_value jsonb) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_operation text := p_value ->> 0;
  v_at text;
  v_last integer;
  v_result jsonb;
  v_item jsonb;
  v_one jsonb;
  v_items jsonb[];
  v_path text[];
  v_from timestamptz;
  v_duration interval;
begin
  if v_operation = 'path' then
    return jsonb_path_query_first(p_document, (p_value ->> 2)::jsonpath, '{}', true);
  elsif v_operation = 'literal' then
    return p_value -> 2;
  elsif v_operation = 'computed' then
    return pawl_private.computed(p_document, p_value ->> 2, p_value ->> 1, false, null);
  end if;
  v_at := p_value ->> 1;
  v_last := jsonb_array_length(p_value) - 1;
  case v_operation
    when 'if' then
      return pawl_private.value(p_document, p_value -> case when pawl_private.holds(p_document, p_value -> 2) then 3 else 4 end);
    when 'first' then
      for v_n in 2 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item <> 'null' then
          return v_item;
        end if;
      end loop;
    when 'append', 'union' then
      v_result := pawl_private.array_of(pawl_private.value(p_document, p_value -> 2), v_at);
      for v_n in 3 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is not null and (v_operation = 'append' or not v_result @> jsonb_build_array(v_item)
          or array_position(array(select jsonb_array_elements(v_result)), v_item) is null) then
          v_result := v_result || jsonb_build_array(v_item);
        end if;
      end loop;
    when 'without' then
      v_result := pawl_private.value(p_document, p_value -> 2);
      if v_result is null or v_result = 'null' then
        v_result := '[]';
      elsif jsonb_typeof(v_result) not in ('array', 'object') then
        perform pawl_private.fault(v_at, format('its first operand must be an array or an object, and is of type %s', jsonb_typeof(v_result)));
      end if;
      for v_n in 3 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is null then
          continue;
        elsif jsonb_typeof(v_result) = 'array' then
          select coalesce(jsonb_agg(e.item order by e.place), '[]')
          into v_result
          from jsonb_array_elements(v_result) with ordinality as e (item, place)
          where e.item <> v_item;
        elsif jsonb_typeof(v_item) <> 'string' then
          perform pawl_private.fault(v_at, format('a member is named by a text, and not by %s', left(v_item::text, 100)));
        else
          v_result := v_result - (v_item #>> '{}');
        end if;
      end loop;
    when 'merge' then
      v_result := '{}';
      for v_n in 2 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is null or v_item = 'null' then
          continue;
        elsif jsonb_typeof(v_item) <> 'object' then
          perform pawl_private.fault(v_at, format('only objects can be merged, and an operand is of type %s', jsonb_typeof(v_item)));
        end if;
        v_result := v_result || v_item;
      end loop;
    when 'set' then
      v_result := pawl_private.value(p_document, p_value -> 2);
      if v_result is null or v_result = 'null' then
        v_result := '{}';
      elsif jsonb_typeof(v_result) not in ('object', 'array') then
        perform pawl_private.fault(v_at, format('its first operand must be an object, and is of type %s', jsonb_typeof(v_result)));
      end if;
      v_item := pawl_private.value(p_document, p_value -> 4);
      if v_item is not null then
        v_path := '{}';
        for v_n in 0 .. jsonb_array_length(p_value -> 3) - 1 loop
          v_one := pawl_private.value(p_document, p_value -> 3 -> v_n);
          if v_one is null then
            perform pawl_private.fault(v_at, format('name %s selects nothing', v_n + 1));
          elsif v_one = '""' or jsonb_typeof(v_one) not in ('string', 'number') then
            perform pawl_private.fault(v_at, format('name %s is %s; it must be a text that is not empty, or a number', v_n + 1, left(v_one::text, 100)));
          end if;
          v_path := v_path || (v_one #>> '{}');
        end loop;
        v_result := pawl_private.set_deep(v_result, v_path, v_item, v_at);
      end if;
    when 'object' then
      select coalesce(jsonb_object_agg(m.name, m.value) filter (where m.value is not null), '{}')
      into v_result
      from (select e.key as name, pawl_private.value(p_document, e.value) as value from jsonb_each(p_value -> 2) e offset 0) m;
    when 'array' then
      select coalesce(jsonb_agg(m.value order by m.n) filter (where m.value is not null), '[]')
      into v_result
      from (select n, pawl_private.value(p_document, p_value -> n) as value from generate_series(2, v_last) n offset 0) m;
    when 'all' then
      return pawl_private.computed(p_document, p_value ->> 2, v_at, true, p_value ->> 3);
    when 'concat' then
      v_items := '{}';
      for v_n in 2 .. v_last loop
        v_item := pawl_private.value(p_document, p_value -> v_n);
        if v_item is not null then
          v_items := v_items || v_item;
        end if;
      end loop;
      return pawl_private.concatenated(v_items, v_at);
    when 'time' then
      v_item := pawl_private.value(p_document, p_value -> 2);
      v_result := pawl_private.value(p_document, p_value -> 3);
      if v_item is null or v_result is null then
        return null;
      end if;
      v_from := pawl_private.time_of(v_item, v_at);
      v_duration := case when jsonb_typeof(v_result) = 'string' then pawl_private.duration(v_result #>> '{}') end;
      if v_duration is null then
        perform pawl_private.fault(v_at, format('%s is no duration of at most ten years', left(v_result::text, 100)));
      end if;
      v_one := case when v_last > 3 then pawl_private.value(p_document, p_value -> 4) else '"UTC"' end;
      return case when v_one is not null then pawl_private.moved_value(v_from, v_duration, v_one, v_at) end;
    when 'duration' then
      v_item := pawl_private.value(p_document, p_value -> 2);
      v_result := pawl_private.value(p_document, p_value -> 3);
      if v_item is null or v_result is null then
        return null;
      end if;
      return to_jsonb(trim_scale(extract(epoch from
        pawl_private.time_of(v_result, v_at) - pawl_private.time_of(v_item, v_at))));
  end case;
  return v_result;
end
$$;
-- +goose StatementEnd

-- holds evaluates a compiled guard.
-- Returns: null if the guard is unknown
-- Raises:  22023 with the pointer if an operand cannot be made, or is no array or time where it must be one
-- +goose StatementBegin
create function pawl_private.holds(p_document jsonb, p_guard jsonb) returns boolean
language plpgsql stable parallel safe
as $$
declare
  v_operator text := p_guard ->> 0;
  v_result boolean;
  v_one boolean;
  v_left jsonb;
  v_right jsonb;
begin
  case v_operator
    when 'path' then
      return jsonb_path_match(p_document, (p_guard ->> 2)::jsonpath, '{}', true);
    when 'present', 'absent' then
      -- In silent mode a path that is not plain would end at the first item that it cannot read, and hide those behind it.
      return (v_operator = 'present') = case
        when jsonb_array_length(p_guard) = 3 then jsonb_path_query_first(p_document, (p_guard ->> 2)::jsonpath, '{}', true) is not null
        else pawl_private.computed(p_document, p_guard ->> 2, p_guard ->> 1, true, p_guard ->> 3) <> '[]'
      end;
    when 'not' then
      return not pawl_private.holds(p_document, p_guard -> 2);
    when 'all', 'any' then
      v_result := v_operator = 'all';
      for v_n in 2 .. jsonb_array_length(p_guard) - 1 loop
        v_one := pawl_private.holds(p_document, p_guard -> v_n);
        if v_operator = 'all' then
          v_result := v_result and v_one;
          exit when not v_result;
        else
          v_result := v_result or v_one;
          exit when v_result;
        end if;
      end loop;
      return v_result;
    else
      v_left := pawl_private.value(p_document, p_guard -> 2);
      v_right := pawl_private.value(p_document, p_guard -> 3);
      if v_left is null or v_right is null then
        return null;
      end if;
      case v_operator
        when 'equal' then
          return v_left = v_right;
        when 'in' then
          if jsonb_typeof(v_right) <> 'array' then
            perform pawl_private.fault(p_guard ->> 1, format('its second operand must be an array, and is of type %s', jsonb_typeof(v_right)));
          end if;
          return exists (select from jsonb_array_elements(v_right) e where e = v_left);
        when 'before' then
          return pawl_private.time_of(v_left, p_guard ->> 1) < pawl_private.time_of(v_right, p_guard ->> 1);
        when 'after' then
          return pawl_private.time_of(v_left, p_guard ->> 1) > pawl_private.time_of(v_right, p_guard ->> 1);
      end case;
  end case;
end
$$;
-- +goose StatementEnd

-- assigned carries out compiled assigns, stage after stage: each stage sees the context that the one before has left,
-- and the assigns of one stage do not see each other. A value that selects nothing leaves its name as it was.
-- p_stages: an array of what compiled_assign makes
-- Returns: the context
-- Raises:  as value
-- +goose StatementBegin
create function pawl_private.assigned(p_document jsonb, p_stages jsonb) returns jsonb
language plpgsql stable parallel safe
as $$
declare
  v_document jsonb := p_document;
  v_context jsonb;
  v_one jsonb;
  v_compiled jsonb;
  v_value jsonb;
  v_path text[];
begin
  for v_stage in 0 .. jsonb_array_length(p_stages) - 1 loop
    v_context := v_document -> 'context';
    for v_n in 0 .. jsonb_array_length(p_stages -> v_stage) - 1 loop
      v_one := p_stages -> v_stage -> v_n;
      if v_one ->> 0 = 'payload' then
        v_context := v_context || case
          when v_one -> 1 = 'null' then v_document -> 'payload'
          else coalesce(
            (
              select jsonb_object_agg(p.key, p.value)
              from jsonb_each(v_document -> 'payload') p
              where v_one -> 1 ? p.key
            ),
            '{}')
        end;
        continue;
      end if;
      v_compiled := v_one -> 2;
      while v_compiled ->> 0 = 'if' loop
        v_compiled := v_compiled -> case when pawl_private.holds(v_document, v_compiled -> 2) then 3 else 4 end;
      end loop;
      if v_compiled ->> 0 = 'unset' then
        v_path := array(select jsonb_array_elements_text(v_one -> 1));
        -- Without the question, a name within an array raises an error.
        if v_context #> v_path is not null then
          v_context := v_context #- v_path;
        end if;
        continue;
      end if;
      v_value := pawl_private.value(v_document, v_compiled);
      if v_value is null then
        continue;
      elsif jsonb_array_length(v_one -> 1) = 1 then
        v_context := v_context || jsonb_build_object(v_one -> 1 ->> 0, v_value);
      else
        v_context := pawl_private.set_deep(
          v_context, array(select jsonb_array_elements_text(v_one -> 1)), v_value, v_one ->> 3);
      end if;
    end loop;
    if v_stage < jsonb_array_length(p_stages) - 1 then
      v_document := v_document || jsonb_build_object('context', v_context);
    end if;
  end loop;
  return v_context;
end
$$;
-- +goose StatementEnd

-- 07_access/tables.sql

-- Module access: who may call, for which tenant, with which permissions, and what was done with power.
--
-- A *token* authenticates a caller as one subject of one tenant. A *role* is a named grant of a tenant. What a
-- caller may do is a set of grants: its token's own and those of its roles. A grant has scopes, workflows and
-- events, and an operation needs one grant that allows it all.
--
-- A service may remember what principals has told it, together with pawl.setting.access_version. Each transaction that
-- changes a token, a role or a tenant changes the version, too, and keeps the row of pawl.setting locked until it ends. So
-- whoever sees a version sees what was true with it. The functions that carry out commands compare it: see
-- pawl_private.refuse_changed_principal. A version is random, so that none comes back after a restore or a failover.
--
-- The tenant '*' is the deployment. It has tokens and roles, but no instances and no row in pawl.tenant.

-- tenant is a namespace of instances, keys, subscriptions and tokens.
create table pawl.tenant (
  id pawl.tenant_id not null,
  limits pawl.object not null default '{}',
  created_at timestamptz not null,
  created_by text not null,
  disabled_at timestamptz,
  constraint tenant_pkey primary key (id),
  constraint tenant_is_not_the_deployment check (id <> '*'),
  constraint tenant_created_by_has_1_to_255_characters check (length(created_by) between 1 and 255)
);

comment on column pawl.tenant.limits is 'whole numbers by name: see pawl_private.limits_fault; a limit that is missing is the deployment''s';
comment on column pawl.tenant.disabled_at is 'since when its callers are refused, and its timers and deliveries wait';

insert into pawl.tenant (id, created_at, created_by) values ('default', now(), 'pawl');

-- token is a bearer token. Its text is pawl_<id>_<secret>, of which only the digest is kept.
create table pawl.token (
  tenant_id pawl.tenant_id not null,
  id text collate "C" not null,
  sha256 pawl.sha256 not null,
  name text,
  subject text not null,
  scopes text[] not null,
  roles text[] not null,
  workflows text[] not null,
  created_at timestamptz not null,
  created_by text not null,
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  tenant_key pawl.tenant_id generated always as (nullif(tenant_id, '*')) stored,
  constraint token_pkey primary key (id),
  constraint token_tenant_fkey foreign key (tenant_key) references pawl.tenant (id),
  constraint token_id_is_a_slug check (id ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
  constraint token_name_has_1_to_255_characters check (length(name) between 1 and 255),
  constraint token_subject_has_1_to_255_characters check (length(subject) between 1 and 255),
  constraint token_created_by_has_1_to_255_characters check (length(created_by) between 1 and 255),
  constraint token_scopes_are_known check (
    scopes <@ array['read', 'create', 'fire', 'work', 'deploy', 'connect', 'deliver', 'operate', 'audit', 'admin']),
  constraint token_deploys_for_the_deployment check (tenant_id = '*' or not scopes @> array['deploy']),
  constraint token_lists_are_short
    check (cardinality(scopes) <= 10 and cardinality(roles) <= 20 and cardinality(workflows) <= 100),
  constraint token_expires_after_its_creation check (expires_at > created_at)
)
-- last_used_at is updated once an hour: fillfactor keeps that in the row's page.
with (fillfactor = 80);

create index token_tenant_idx on pawl.token (tenant_id, id);

comment on column pawl.token.tenant_id is 'the tenant; * for the deployment';
comment on column pawl.token.sha256 is 'of the whole text';
comment on column pawl.token.roles is 'names of roles of the tenant; one that does not exist grants nothing';
comment on column pawl.token.workflows is 'bounds everything that it may do; empty for all';
comment on column pawl.token.last_used_at is 'late by up to an hour';

-- role is a grant with a name.
create table pawl.role (
  tenant_id pawl.tenant_id not null,
  name text collate "C" not null,
  scopes text[] not null,
  workflows text[] not null,
  events text[] not null,
  created_at timestamptz not null,
  created_by text not null,
  updated_at timestamptz not null,
  tenant_key pawl.tenant_id generated always as (nullif(tenant_id, '*')) stored,
  constraint role_pkey primary key (tenant_id, name),
  constraint role_tenant_fkey foreign key (tenant_key) references pawl.tenant (id),
  constraint role_name_has_1_to_128_visible_characters check (name ~ '^[!-~]{1,128}$'),
  constraint role_created_by_has_1_to_255_characters check (length(created_by) between 1 and 255),
  constraint role_scopes_are_known check (
    scopes <@ array['read', 'create', 'fire', 'work', 'deploy', 'connect', 'deliver', 'operate', 'audit', 'admin']),
  constraint role_has_scopes check (cardinality(scopes) between 1 and 10),
  constraint role_deploys_for_the_deployment check (tenant_id = '*' or not scopes @> array['deploy']),
  constraint role_lists_are_short check (cardinality(workflows) <= 100 and cardinality(events) <= 100)
);

comment on column pawl.role.workflows is 'empty for all';
comment on column pawl.role.events is 'those that the scope fire allows; empty for all';

-- audit has a row for each act of power and for refusals. Nothing updates a row, and only the schema's owner deletes
-- old ones.
create table pawl.audit (
  tenant_id pawl.tenant_id not null,
  seq bigint generated always as identity,
  at timestamptz not null,
  actor text not null,
  unauthenticated boolean not null default false,
  token_id text,
  address text,
  request_id text,
  action text not null,
  target text,
  outcome text not null,
  reason text,
  count bigint not null default 1,
  before jsonb,
  after jsonb,
  xid xid8 not null default pg_current_xact_id(),
  constraint audit_pkey primary key (tenant_id, seq),
  constraint audit_actor_has_1_to_255_characters check (length(actor) between 1 and 255),
  constraint audit_action_has_1_to_64_characters check (length(action) between 1 and 64),
  constraint audit_outcome_has_1_to_64_characters check (length(outcome) between 1 and 64),
  constraint audit_texts_are_short check (
    coalesce(length(token_id), 0) <= 255 and coalesce(length(address), 0) <= 255
    and coalesce(length(request_id), 0) <= 255 and coalesce(length(target), 0) <= 1024 and coalesce(length(reason), 0) <= 1000),
  constraint audit_documents_are_short check (
    coalesce(octet_length(before::text), 0) <= 16384 and coalesce(octet_length(after::text), 0) <= 16384),
  constraint audit_count_is_positive check (count >= 1)
);

-- A page of the audit is read by one of these, behind a seq; see pawl.audit_page.
create index audit_seq_idx on pawl.audit (seq);
create index audit_target_idx on pawl.audit (tenant_id, target, seq);
create index audit_actor_idx on pawl.audit (tenant_id, actor, seq);
create index audit_action_idx on pawl.audit (tenant_id, action, seq);
create index audit_at_idx on pawl.audit (at);
-- A tick finds new rows by this one.
create index audit_xid_idx on pawl.audit (xid);

comment on column pawl.audit.tenant_id is 'the tenant; * for what concerns the deployment, and for callers who are unknown';
comment on column pawl.audit.actor is 'the subject; for a session without a subject, its session_user';
comment on column pawl.audit.unauthenticated is 'the service runs without authentication, and the caller named the actor';
comment on column pawl.audit.action is 'a noun and a verb, such as workflow.register';
comment on column pawl.audit.outcome is 'done, or the code of the problem';
comment on column pawl.audit.count is 'how many refusals or reads the row stands for';

-- principal is who a caller is and what it may do. It is a shape and never holds rows.
--
--   tenant_id  the tenant that it belongs to
--   subject, expires_at, scopes, workflows: of the token; '' and null without one. sha256 is its digest
--   live       whether the token is neither revoked nor expired
--   stale      whether its use is to be noted; see token_used
--   grants     of the roles: an array of {scopes, workflows, events}; null for none
--   acts_for   the tenant that the caller acts for; '' for that of a token that there is not
--   known, disabled, limits: of the tenant that it acts for
--   version    the access_version with which this is true; null if it must not be remembered: see principals
create view pawl.principal as
select
  0::bigint as place, null::bytea as sha256, false as live, false as stale, ''::text as tenant_id, ''::text as subject,
  null::text[] as scopes, null::text[] as workflows, null::timestamptz as expires_at, null::jsonb as grants, ''::text as acts_for,
  false as known, false as disabled, null::jsonb as limits, null::uuid as version
where false;

-- db_role binds a role of the database that calls the functions for SQL callers: see pawl_private.bound_actor. It is
-- the session's user: neither SET ROLE nor membership in another role changes the binding. `pawl migrate grants` writes
-- the rows.
create table pawl.db_role (
  role name not null,
  tenant_id text collate "C" not null,
  subject text,
  created_at timestamptz not null,
  tenant_key pawl.tenant_id generated always as (nullif(tenant_id, '*')) stored,
  constraint db_role_pkey primary key (role),
  constraint db_role_tenant_fkey foreign key (tenant_key) references pawl.tenant (id),
  constraint db_role_subject_has_1_to_255_characters check (length(subject) between 1 and 255)
);

comment on column pawl.db_role.tenant_id is 'the tenant that it acts for; * for all';
comment on column pawl.db_role.subject is 'the actor of all that it does; null if it may name any';

-- 07_access/private.sql

-- limits_fault says what is wrong with the limits of a tenant, or null.
-- +goose StatementBegin
create function pawl_private.limits_fault(p_limits jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select f.fault
  from jsonb_each(p_limits) l
  cross join lateral (select case
    when l.key not in (
      'requests_per_second', 'queue', 'open_instances', 'subscriptions', 'streams', 'storage_bytes', 'webhook_attempts')
      then format('/limits/%s is none of requests_per_second, queue, open_instances, subscriptions, streams, storage_bytes and webhook_attempts', l.key)
    when jsonb_typeof(l.value) <> 'number' or l.value::text !~ '^[0-9]{1,13}$' or l.value::text::numeric > 1000000000000
      then format('/limits/%s must be a whole number from 0 to 1000000000000', l.key)
  end as fault) f
  where f.fault is not null
  order by l.key
  limit 1
$$;
-- +goose StatementEnd

alter table pawl.tenant add constraint tenant_limits_are_known check (pawl_private.limits_fault(limits) is null) not valid;

-- excerpt is a document for the audit: itself, or what identifies it if it has more than 16 KiB.
-- +goose StatementBegin
create function pawl_private.excerpt(p_document jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when octet_length(p_document::text) > 16384
      then jsonb_build_object('bytes', octet_length(p_document::text), 'sha256', encode(sha256(convert_to(p_document::text, 'UTF8')), 'hex'))
    else p_document
  end
$$;
-- +goose StatementEnd

-- audit writes down what was done or refused.
-- p_caller: {actor, token, address, request_id, unauthenticated}; null for the session
-- p_before, p_after: documents about the target. A document of more than 16 KiB is replaced by its size and digest
-- p_count: how many refusals or reads the row stands for
-- Writes: audit
-- +goose StatementBegin
create function pawl_private.audit(
  p_tenant text, p_caller jsonb, p_action text, p_target text, p_outcome text default 'done', p_reason text default null,
  p_before jsonb default null, p_after jsonb default null, p_count bigint default 1
) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into pawl.audit (
    tenant_id, at, actor, unauthenticated, token_id, address, request_id, action, target, outcome, reason, count, before,
    after)
  select
    p_tenant, pawl.now(), left(coalesce(p_caller ->> 'actor', session_user), 255),
    coalesce((p_caller -> 'unauthenticated')::boolean, false), left(p_caller ->> 'token', 255),
    left(case when p_caller is null then host(inet_client_addr()) else p_caller ->> 'address' end, 255),
    left(p_caller ->> 'request_id', 255), p_action, left(p_target, 1024), p_outcome, left(p_reason, 1000),
    p_count, pawl_private.excerpt(p_before), pawl_private.excerpt(p_after)
$$;
-- +goose StatementEnd

-- audit_time is a time in a document of the audit, whatever the session's time zone is.
-- +goose StatementBegin
create function pawl_private.audit_time(p_at timestamptz) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;
-- +goose StatementEnd

-- token_document is a token for the audit.
-- +goose StatementBegin
create function pawl_private.token_document(p_token pawl.token) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'name', p_token.name, 'subject', p_token.subject, 'scopes', p_token.scopes, 'roles', p_token.roles,
    'workflows', p_token.workflows, 'expires_at', pawl_private.audit_time(p_token.expires_at))
$$;
-- +goose StatementEnd

-- refuse_unbounded raises 'forbidden' if a grant reaches beyond the workflows that who makes or changes it is bound to.
-- p_found: what there is and cannot be changed; null for what is to be made
-- +goose StatementBegin
create function pawl_private.refuse_unbounded(p_workflows text[], p_within text[], p_found text default null) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if cardinality(p_within) > 0 and (cardinality(p_workflows) = 0 or not p_workflows <@ p_within) then
    perform pawl_private.raise_condition(
      'forbidden', coalesce(
        'you are bound to workflows, and ' || p_found || ' reaches beyond them',
        'you are bound to workflows: name some of them, and no others, in /workflows'));
  end if;
end
$$;
-- +goose StatementEnd

-- role_document is a role for the audit; null for none.
-- +goose StatementBegin
create function pawl_private.role_document(p_role pawl.role) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select case when p_role.name is not null then
  jsonb_build_object('scopes', p_role.scopes, 'workflows', p_role.workflows, 'events', p_role.events)
end $$;
-- +goose StatementEnd

-- tenant_document is a tenant for the audit; null for none.
-- +goose StatementBegin
create function pawl_private.tenant_document(p_tenant pawl.tenant) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select case when p_tenant.id is not null then
  jsonb_build_object('limits', p_tenant.limits, 'disabled', p_tenant.disabled_at is not null)
end $$;
-- +goose StatementEnd

-- bound_role is the binding of the session's user. It refuses a call for a tenant that the user may not act for. The
-- owner of the schema and superusers, who have no binding, may act for all.
-- Returns: the binding; null for the owner and superusers
-- Raises:  42501 insufficient_privilege
-- +goose StatementBegin
create function pawl_private.bound_role(p_tenant text) returns pawl.db_role
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role pawl.db_role;
begin
  select * into v_role from pawl.db_role r where r.role = session_user;
  if not found and not exists (
    select from pg_roles r
    where r.rolname = session_user
      and (r.rolsuper or r.oid = (select n.nspowner from pg_namespace n where n.nspname = 'pawl'))
  ) then
    raise exception 'the role % may act for no tenant', quote_ident(session_user)
      using errcode = 'insufficient_privilege',
        hint = format(
          'Run "pawl migrate grants --role %s --privilege caller --tenant T [--subject S]" as the schema''s owner.',
          quote_ident(session_user));
  elsif v_role.tenant_id <> '*' and v_role.tenant_id is distinct from p_tenant then
    raise exception 'the role % may act for the tenant % only', quote_ident(session_user), v_role.tenant_id
      using errcode = 'insufficient_privilege', hint = 'Name it in p_tenant.';
  end if;
  return v_role;
end
$$;
-- +goose StatementEnd

-- bound_actor is the actor of a command for a tenant by a SQL caller: see bound_role.
-- p_actor: the actor that the caller names, which counts if its role has no subject
-- Raises:  42501 insufficient_privilege, also if the tenant is disabled; PW40T unknown-tenant
-- +goose StatementBegin
create function pawl_private.bound_actor(p_tenant text, p_actor text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role pawl.db_role := pawl_private.bound_role(p_tenant);
  v_disabled boolean;
begin
  select t.disabled_at is not null into v_disabled from pawl.tenant t where t.id = p_tenant;
  if not found then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', left(p_tenant, 63)));
  elsif v_disabled then
    raise exception 'the tenant % is disabled', p_tenant using errcode = 'insufficient_privilege';
  end if;
  return coalesce(v_role.subject, p_actor);
end
$$;
-- +goose StatementEnd

-- is_service says whether the session is one of the service, which has found out on whose behalf it acts. Others act for
-- themselves, and what they say of their caller does not count. The owner of the schema and superusers pass.
-- +goose StatementBegin
create function pawl_private.is_service() returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return has_function_privilege(session_user, 'pawl.audit_note(text, jsonb, text, text, text, bigint)', 'execute');
end
$$;
-- +goose StatementEnd

-- session_caller is who acts in a session, for the audit: an actor, at the address of the session's connection.
-- +goose StatementBegin
create function pawl_private.session_caller(p_actor text) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select jsonb_build_object('actor', p_actor, 'address', host(inet_client_addr())) $$;
-- +goose StatementEnd

-- bind_role binds a role of the database to a tenant, and perhaps to a subject, instead of what it was bound to.
-- p_tenant: * for all
-- Raises:  PW40T unknown-tenant
-- Writes:  db_role, audit
-- +goose StatementBegin
create function pawl_private.bind_role(p_role name, p_tenant text, p_subject text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before pawl.db_role;
begin
  select * into v_before from pawl.db_role r where r.role = p_role for update;
  insert into pawl.db_role (role, tenant_id, subject, created_at)
  values (p_role, p_tenant, p_subject, pawl.now())
  on conflict (role) do update set tenant_id = excluded.tenant_id, subject = excluded.subject, created_at = excluded.created_at;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => null, p_action => 'db_role.bind', p_target => p_role::text,
    p_before => case when v_before.role is not null then
      jsonb_build_object('tenant', v_before.tenant_id, 'subject', v_before.subject)
    end,
    p_after => jsonb_build_object('tenant', p_tenant, 'subject', p_subject));
exception when foreign_key_violation then
  perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
end
$$;
-- +goose StatementEnd

-- tenant_of finds the tenant that has a row with an id. It looks the id up for one tenant after the other.
-- p_table: a table whose key is (tenant_id, id)
-- Returns: the tenant; an empty text if none has the row, and * if none of the first 10,000 tenants has it and there are
--          more
-- +goose StatementBegin
create function pawl_private.tenant_of(p_table regclass, p_id uuid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- The planner is left one way to look: by the key, for each tenant.
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_tenant text;
begin
  execute format(
    'select t.id
    from (select n.id from pawl.tenant n order by n.id limit 10000) t
    cross join lateral (select from %s r where r.tenant_id = t.id and r.id = $1 limit 1) r
    limit 1', p_table)
  into v_tenant
  using p_id;
  return case
    when v_tenant is not null then v_tenant
    when exists (select from pawl.tenant n order by n.id offset 10000 limit 1) then '*'
    else ''
  end;
end
$$;
-- +goose StatementEnd

-- note_changed_access makes pawl.setting.access_version another one.
-- Locks:   setting
-- Writes:  setting
-- +goose StatementBegin
create function pawl_private.note_changed_access() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  update pawl.setting set access_version = gen_random_uuid();
  return null;
end
$$;
-- +goose StatementEnd

-- A token that is new changes nothing for anybody, and last_used_at decides nothing.
create trigger token_changes_access
  after update of tenant_id, id, sha256, subject, scopes, roles, workflows, expires_at, revoked_at or delete or truncate on pawl.token
  for each statement execute function pawl_private.note_changed_access();
create trigger role_changes_access
  after insert or update or delete or truncate on pawl.role
  for each statement execute function pawl_private.note_changed_access();
create trigger tenant_changes_access
  after insert or update or delete or truncate on pawl.tenant
  for each statement execute function pawl_private.note_changed_access();

-- refuse_changed_principal refuses commands whose caller was let in with another access_version than the present one. The
-- caller looks up what holds now, and decides anew.
-- Raises:  PW40A principal-changed
-- +goose StatementBegin
create function pawl_private.refuse_changed_principal() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.raise_condition(
    'principal-changed', 'tokens, roles or tenants have changed; look the callers up again');
end
$$;
-- +goose StatementEnd

-- 07_access/audit_note.sql

-- audit_note writes down refusals, or reads of the audit. What was done is written by the function that does it, in the
-- same transaction, so that nobody can claim an act here.
-- p_outcome: the code of the problem; 'done' for the action audit.read alone
-- p_count:   how many of them the row stands for
-- Raises:  PW400 malformed-request
-- Writes:  audit
-- +goose StatementBegin
create function pawl.audit_note(
  p_tenant text, p_caller jsonb, p_action text, p_outcome text, p_reason text default null, p_count bigint default 1
) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
begin
  if p_outcome = 'done' and p_action is distinct from 'audit.read' then
    perform pawl_private.raise_condition('malformed-request', format('%s was not done by this call: give the code of a refusal', p_action));
  end if;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => p_action, p_target => null, p_outcome => p_outcome,
    p_reason => p_reason, p_count => p_count);
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 07_access/principals.sql

-- principals reads what callers may do: an entry of each array for a caller.
--
-- It is asked often, so it looks up single rows. All that it reads is of one snapshot, with the version.
--
-- What has a version may be remembered for a minute, and used for commands: the engine compares the version. Time changes
-- none, so a token that expires soon has none, and neither has one whose use is to be noted.
-- p_tokens: the id of the caller's token; empty for a caller that something else has authenticated
-- p_homes: the tenant that a caller without a token belongs to; else empty
-- p_tenants: the tenant that it acts for; empty for the one that it belongs to
-- p_roles: an array for each caller, with the names of its roles beside those of the token
-- Returns: one row per caller, in their order; place counts from 1
-- +goose StatementBegin
create function pawl.principals(p_tokens text[], p_homes text[], p_tenants text[], p_roles jsonb)
returns setof pawl.principal
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz := pawl.now();
  v_version uuid := (select g.access_version from pawl.setting g);
begin
  return query
  select
    c.place, t.sha256::bytea, t.id is not null and t.revoked_at is null and coalesce(t.expires_at > v_now, true),
    coalesce(t.last_used_at < v_now - interval '59 minutes', true), coalesce(t.tenant_id, c.home, '')::text, coalesce(t.subject, ''),
    t.scopes, t.workflows, t.expires_at, r.grants, coalesce(c.tenant, t.tenant_id, c.home, '')::text, n.id is not null,
    n.disabled_at is not null, n.limits::jsonb,
    case
      when n.disabled_at is null and (n.id is not null or coalesce(c.tenant, t.tenant_id, c.home) = '*') and (
        c.token is null
        or t.revoked_at is null and t.last_used_at >= v_now - interval '59 minutes'
          and coalesce(t.expires_at > v_now + interval '5 minutes', true))
        then v_version
    end
  from (
    select nullif(u.token, '') as token, nullif(u.home, '') as home, nullif(u.tenant, '') as tenant, u.place
    from unnest(p_tokens, p_homes, p_tenants) with ordinality as u (token, home, tenant, place)
  ) c
  left join lateral (select * from pawl.token t where t.id = c.token limit 1) t on true
  left join lateral (
    select * from pawl.tenant n where n.id = coalesce(c.tenant, t.tenant_id, c.home)::text limit 1
  ) n on true
  left join lateral (
    select jsonb_agg(jsonb_build_object('scopes', r.scopes, 'workflows', r.workflows, 'events', r.events)) as grants
    from pawl.role r
    -- The first condition spares callers without roles the search.
    where (cardinality(t.roles) > 0 or p_roles -> (c.place - 1)::integer <> '[]')
      and r.tenant_id = coalesce(t.tenant_id, c.home)::text
      and r.name = any (t.roles || array(select jsonb_array_elements_text(p_roles -> (c.place - 1)::integer)))
  ) r on true
  order by c.place;
end
$$;
-- +goose StatementEnd

-- 07_access/role_delete.sql

-- role_delete deletes a role. Tokens that have it keep its name, which grants nothing then.
-- p_within: see token_create
-- Returns: whether there was one
-- Raises:  PW403 forbidden
-- Locks:   role, then setting
-- Writes:  role, setting, audit
-- +goose StatementBegin
create function pawl.role_delete(p_tenant text, p_name text, p_within text[] default null, p_caller jsonb default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role pawl.role;
begin
  delete from pawl.role r where r.tenant_id = p_tenant and r.name = p_name returning * into v_role;
  if not found then
    return false;
  end if;
  perform pawl_private.refuse_unbounded(v_role.workflows, p_within, 'the role');
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'role.delete', p_target => p_name,
    p_before => pawl_private.role_document(v_role));
  return true;
end
$$;
-- +goose StatementEnd

-- 07_access/role_put.sql

-- role_put makes a role, or replaces it.
-- p_within: see token_create. It bounds the role that is replaced, too
-- Returns: whether it is new
-- Raises:  PW400 malformed-request, PW403 forbidden, PW40T unknown-tenant
-- Locks:   role, then setting
-- Writes:  role, setting, audit
-- +goose StatementBegin
create function pawl.role_put(
  p_tenant text, p_name text, p_scopes text[], p_workflows text[], p_events text[], p_within text[] default null,
  p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_before pawl.role;
  v_after pawl.role;
  v_constraint text;
  v_column text;
begin
  perform pawl_private.refuse_unbounded(p_workflows, p_within);
  loop
    select * into v_before from pawl.role r where r.tenant_id = p_tenant and r.name = p_name for update;
    if not found then
      insert into pawl.role as r (tenant_id, name, scopes, workflows, events, created_at, created_by, updated_at)
      values (
        p_tenant, p_name, p_scopes, p_workflows, p_events, v_now, coalesce(p_caller ->> 'actor', session_user), v_now)
      on conflict (tenant_id, name) do nothing
      returning r.* into v_after;
    else
      perform pawl_private.refuse_unbounded(v_before.workflows, p_within, 'the role as it is');
      update pawl.role r
      set scopes = p_scopes, workflows = p_workflows, events = p_events, updated_at = v_now
      where r.tenant_id = p_tenant and r.name = p_name
      returning r.* into v_after;
    end if;
    exit when found; -- Otherwise another caller has just made it.
  end loop;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'role.put', p_target => p_name,
    p_before => pawl_private.role_document(v_before), p_after => pawl_private.role_document(v_after));
  return v_before.name is null;
exception
  when foreign_key_violation then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 07_access/tenant_put.sql

-- tenant_put makes a tenant, or changes it. Nothing deletes a tenant; a disabled one can be enabled again.
-- p_limits: replaces all limits; null leaves them
-- p_disabled: null leaves it
-- Returns: whether it is new
-- Raises:  PW400 malformed-request
-- Locks:   tenant, then setting
-- Writes:  tenant, setting, audit
-- +goose StatementBegin
create function pawl.tenant_put(
  p_id text, p_limits jsonb default null, p_disabled boolean default null, p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_before pawl.tenant;
  v_after pawl.tenant;
  v_fault text := pawl_private.limits_fault(p_limits);
  v_constraint text;
  v_column text;
begin
  if v_fault is not null then
    perform pawl_private.raise_condition('malformed-request', v_fault);
  end if;
  insert into pawl.tenant as t (id, limits, created_at, created_by, disabled_at)
  values (
    p_id, coalesce(p_limits, '{}'), v_now, coalesce(p_caller ->> 'actor', session_user), case when p_disabled then v_now end)
  on conflict (id) do nothing
  returning t.* into v_after;
  if not found then
    select * into v_before from pawl.tenant t where t.id = p_id for no key update;
    update pawl.tenant t
    set limits = coalesce(p_limits, t.limits),
      disabled_at = case coalesce(p_disabled, t.disabled_at is not null) when true then coalesce(t.disabled_at, v_now) end
    where t.id = p_id
    returning t.* into v_after;
  end if;
  perform pawl_private.audit(
    p_tenant => '*', p_caller => p_caller, p_action => 'tenant.put', p_target => p_id,
    p_before => pawl_private.tenant_document(v_before), p_after => pawl_private.tenant_document(v_after));
  return v_before.id is null;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 07_access/token_create.sql

-- token_create makes a token.
-- p_within: the workflows that the caller is bound to, which bound the token too; null for all
-- Returns: the token; no row if the id is taken
-- Raises:  PW400 malformed-request, PW403 forbidden, PW40T unknown-tenant
-- Writes:  token, audit
-- +goose StatementBegin
create function pawl.token_create(
  p_tenant text, p_id text, p_sha256 bytea, p_subject text, p_scopes text[], p_roles text[], p_workflows text[],
  p_name text default null, p_expires_at timestamptz default null, p_within text[] default null, p_caller jsonb default null
) returns setof pawl.token
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token pawl.token;
  v_constraint text;
  v_column text;
begin
  perform pawl_private.refuse_unbounded(p_workflows, p_within);
  insert into pawl.token (
    tenant_id, id, sha256, name, subject, scopes, roles, workflows, created_at, created_by, expires_at)
  values (
    p_tenant, p_id, p_sha256, p_name, p_subject, p_scopes, p_roles, p_workflows, pawl.now(),
    coalesce(p_caller ->> 'actor', session_user), p_expires_at)
  on conflict (id) do nothing
  returning * into v_token;
  if v_token.id is null then
    return;
  end if;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'token.create', p_target => p_id,
    p_after => pawl_private.token_document(v_token));
  return next v_token;
exception
  when foreign_key_violation then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 07_access/token_revoke.sql

-- token_revoke refuses a token from now on. A token that is revoked already stays as it is.
-- p_within: see token_create
-- Returns: the token; no row if the tenant has none of this id
-- Raises:  PW403 forbidden
-- Locks:   token, then setting
-- Writes:  token, setting, audit
-- +goose StatementBegin
create function pawl.token_revoke(p_tenant text, p_id text, p_within text[] default null, p_caller jsonb default null)
returns setof pawl.token
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token pawl.token;
begin
  select * into v_token from pawl.token t where t.tenant_id = p_tenant and t.id = p_id for no key update;
  if not found then
    return;
  end if;
  perform pawl_private.refuse_unbounded(v_token.workflows, p_within, 'the token');
  if v_token.revoked_at is null then
    update pawl.token t set revoked_at = pawl.now() where t.id = p_id returning * into v_token;
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => p_caller, p_action => 'token.revoke', p_target => p_id);
  end if;
  return next v_token;
end
$$;
-- +goose StatementEnd

-- 07_access/token_used.sql

-- token_used notes that a token was used, about once an hour. An hour less the minute for which a service remembers the
-- token, so that last_used_at is late by no more than an hour.
-- Writes: token
-- +goose StatementBegin
create function pawl.token_used(p_id text) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.token t
  set last_used_at = pawl.now()
  where t.id = p_id and coalesce(t.last_used_at < pawl.now() - interval '59 minutes', true)
$$;
-- +goose StatementEnd

-- 07_access/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.principals'),
  ('api', 'pawl.token_used'),
  ('api', 'pawl.token_create'),
  ('api', 'pawl.token_revoke'),
  ('api', 'pawl.role_put'),
  ('api', 'pawl.role_delete'),
  ('api', 'pawl.tenant_put'),
  ('api', 'pawl.audit_note');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.tenant', null),
  ('api', 'pawl.token', null),
  ('api', 'pawl.role', null),
  ('reader', 'pawl.tenant', null),
  ('reader', 'pawl.token', '{tenant_id,id,name,subject,scopes,roles,workflows,created_at,created_by,expires_at,revoked_at,last_used_at}'),
  ('reader', 'pawl.role', null),
  ('reader', 'pawl.audit', null),
  ('reader', 'pawl.db_role', null);

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

-- 10_workflow/private.sql

-- compact writes a JSON value without spaces.
-- +goose StatementBegin
create function pawl_private.compact(p_value jsonb) returns text
language plpgsql stable
as $$
begin
  return case jsonb_typeof(p_value)
    when 'object' then
      '{' || coalesce((select string_agg(to_json(e.key) || ':' || pawl_private.compact(e.value), ',') from jsonb_each(p_value) e), '') || '}'
    when 'array' then
      '[' || coalesce((select string_agg(pawl_private.compact(e), ',' order by n) from jsonb_array_elements(p_value) with ordinality as a (e, n)), '') || ']'
    else p_value::text
  end;
end
$$;
-- +goose StatementEnd

-- guard_text writes a guard as refusals and diagrams show it.
-- +goose StatementBegin
create function pawl_private.guard_text(p_guard jsonb) returns text
language sql stable
as $$ select case when jsonb_typeof(p_guard) = 'object' then pawl_private.compact(p_guard) else p_guard #>> '{}' end $$;
-- +goose StatementEnd

-- definition_states lists the states of a definition in canonical form.
-- Returns: one row per state. path; at: its JSON Pointer; lineage: the paths of the states around it, from the outside
--          in, then its own; atomic: whether it has no states within; leaf: the atomic state that entering it leads to,
--          by each `initial`; transitions: how many it declares, with its timers
-- +goose StatementBegin
create function pawl_private.definition_states(p_definition jsonb)
returns table (path text, at text, lineage text[], value jsonb, atomic boolean, leaf text, transitions bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive node as (
    select s.key as path, pawl_private.below('/states', s.key) as at, array[s.key] as lineage, s.value
    from jsonb_each(p_definition -> 'states') s
    union all
    select
      n.path || '.' || s.key, pawl_private.below(n.at || '/states', s.key), n.lineage || (n.path || '.' || s.key), s.value
    from node n
    cross join lateral jsonb_each(n.value -> 'states') s
  ),
  entered as (
    select n.path, n.path as leaf, n.value
    from node n
    union all
    select e.path, n.path, n.value
    from entered e
    join node n on n.path = e.leaf || '.' || pawl_private.initial_of(e.value)
    where e.value ? 'states'
  )
  select n.path, n.at, n.lineage, n.value, not n.value ? 'states', e.leaf, t.transitions
  from node n
  left join entered e on e.path = n.path and not e.value ? 'states'
  cross join lateral (
    select coalesce(sum(case when jsonb_typeof(d.value) = 'array' then jsonb_array_length(d.value) end), 0) as transitions
    from (
      select o.value
      from jsonb_each(
        coalesce(n.value -> 'on', '{}') || case when jsonb_typeof(n.value -> 'after') = 'object' then n.value -> 'after' else '{}' end
      ) o
      union all
      select n.value -> m.name from unnest(array['always', 'done', 'after', 'every']) as m (name)
    ) d
  ) t
$$;
-- +goose StatementEnd

-- definition_timers lists the timers that a state of a definition in canonical form declares, in document order.
-- Returns: one row per candidate. slot: the timer's event; position: of the candidate; value: the transition; at: its
--          JSON Pointer; timer: {slot, every, static, in} or the same with at instead of in. in and at are {constant:
--          text} or {value: compiled value}; static: as in pawl.workflow_state
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.definition_timers(p_state jsonb, p_at text)
returns table (slot text, "position" bigint, value jsonb, at text, timer jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_kind text;
  v_item record;
  v_when jsonb;
  v_constant text;
  v_duration interval;
  v_seen jsonb := '{}';
begin
  foreach v_kind in array array['after', 'every'] loop
    for v_item in
      select p_at || '/' || v_kind || '/' || t.place - 1 as at, t.value, t.value ->> 'in' as key, t.place
      from jsonb_array_elements(case when jsonb_typeof(p_state -> v_kind) = 'array' then p_state -> v_kind end)
        with ordinality as t (value, place)
      union all
      select pawl_private.below(p_at || '/after', a.key) || '/' || t.place - 1, t.value || jsonb_build_object('in', a.key), a.key, t.place
      from jsonb_each(case when v_kind = 'after' and jsonb_typeof(p_state -> 'after') = 'object' then p_state -> 'after' end) a
      cross join lateral jsonb_array_elements(a.value) with ordinality as t (value, place)
    loop
      if jsonb_typeof(v_item.value) <> 'object' or (v_item.value ? 'in') = (v_item.value ? 'at') then
        perform pawl_private.fault(v_item.at, 'a timer has either in, a duration, or at, a time');
      end if;
      at := v_item.at;
      value := v_item.value - 'in' - 'at';
      v_constant := case
        when jsonb_typeof(v_item.value -> 'in') = 'string' and not pawl_private.is_path(v_item.key) and v_item.key not like '$%' then v_item.key
      end;
      if v_constant is not null then
        v_duration := pawl_private.duration(v_constant);
        if v_duration is null or v_duration <= interval '0' then
          perform pawl_private.fault(at, format('%s is no duration; write one like 90s, 15m, 24h or 1mo, of at most ten years', v_constant));
        elsif v_kind = 'every' and v_duration < interval '1 second' then
          perform pawl_private.fault(at, 'every must be at least 1s');
        end if;
        slot := v_kind || ':' || v_constant;
        v_when := jsonb_build_object('in', jsonb_build_object('constant', v_constant));
      else
        slot := v_kind || ':' || v_item.place;
        v_when := case
          when v_item.value ? 'in' then jsonb_build_object('in', jsonb_build_object('value', pawl_private.compiled_value(v_item.value -> 'in', at || '/in')))
          else jsonb_build_object('at', jsonb_build_object('value', pawl_private.compiled_value(v_item.value -> 'at', at || '/at')))
        end;
      end if;
      if v_kind = 'every' and (value ? 'target' or v_item.value ? 'at') then
        perform pawl_private.fault(at, 'every has in, and no target and no at: it stays in the state');
      end if;
      timer := v_when || jsonb_build_object(
        'slot', slot, 'every', v_kind = 'every',
        'static', v_constant is not null and v_kind = 'after' and value ? 'target' and not value ? 'internal'
          and pawl_private.months_of(v_duration) = 0);
      v_seen := v_seen || jsonb_build_object(slot, coalesce((v_seen ->> slot)::integer, 0) + 1);
      position := (v_seen ->> slot)::integer;
      return next;
    end loop;
  end loop;
end
$$;
-- +goose StatementEnd

-- definition_tasks lists the tasks of a definition in canonical form, and the compensations.
-- Returns: one row per task. state: the atomic state that starts it; null for a compensation. at: its JSON Pointer
-- +goose StatementBegin
create function pawl_private.definition_tasks(p_definition jsonb)
returns table ("position" integer, state text, name text, value jsonb, at text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select * from pawl_private.definition_states(p_definition)
  ),
  invoked as (
    select n.path as state, t.key as name, t.value, pawl_private.below(n.at || '/invoke', t.key) as at
    from node n
    cross join lateral jsonb_each(case when jsonb_typeof(n.value -> 'invoke') = 'object' then n.value -> 'invoke' end) t
  ),
  listed as (
    select i.* from invoked i
    union all
    select null, i.name, i.value -> 'compensate', i.at || '/compensate'
    from invoked i
    where i.value ? 'compensate'
    union all
    select null, o.key, t.value -> 'compensate', pawl_private.below(n.at || '/on', o.key) || '/' || t.place - 1 || '/compensate'
    from node n
    cross join lateral jsonb_each(case when jsonb_typeof(n.value -> 'on') = 'object' then n.value -> 'on' end) o
    cross join lateral jsonb_array_elements(case when jsonb_typeof(o.value) = 'array' then o.value end)
      with ordinality as t (value, place)
    where t.value ? 'compensate'
  )
  select row_number() over (order by l.at collate "C")::integer, l.state, l.name, l.value, l.at from listed l
$$;
-- +goose StatementEnd

-- compiled_request compiles the request of a task.
-- Returns: {method, path, query, headers, body}. path: an array of texts, and of arrays of one compiled value each; query,
--          headers, body: compiled values, left out if there are none
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.compiled_request(p_http jsonb, p_at text) returns jsonb
language plpgsql stable
as $$
declare
  v_part record;
  v_path jsonb := '[]';
  v_name text;
  v_request jsonb;
begin
  for v_part in
    select m.groups[1] as part
    from regexp_matches(p_http ->> 'path', '([{][{]|[}][}]|[{][^{}]+[}]|[^{}]+|.)', 'g') as m (groups)
  loop
    if v_part.part in ('{', '}') then
      perform pawl_private.fault(p_at || '/path', 'a brace that stands for itself is written twice');
    end if;
    v_path := v_path || case
      when v_part.part in ('{{', '}}') then to_jsonb(left(v_part.part, 1))
      when starts_with(v_part.part, '{') then
        jsonb_build_array(jsonb_build_array(pawl_private.compiled_value(
          jsonb_build_object('$path', substr(v_part.part, 2, length(v_part.part) - 2)), p_at || '/path')))
      else to_jsonb(v_part.part)
    end;
  end loop;
  v_request := jsonb_build_object('method', p_http ->> 'method', 'path', v_path);
  foreach v_name in array array['query', 'headers', 'body'] loop
    if p_http ? v_name then
      v_request := v_request || jsonb_build_object(
        v_name, pawl_private.compiled_value(p_http -> v_name, p_at || '/' || v_name));
    end if;
  end loop;
  return v_request;
end
$$;
-- +goose StatementEnd

-- check_request checks the request of a task in canonical form.
-- Raises: 22023 with the pointer
-- +goose StatementBegin
create function pawl_private.check_request(p_http jsonb, p_at text) returns void
language plpgsql stable
as $$
declare
  v_fault text[] := case
    when jsonb_typeof(p_http) is distinct from 'object' then array['', 'must be an object with connection, method and path']
    when coalesce(p_http ->> 'connection', '') !~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$' or length(p_http ->> 'connection') > 63 then array['/connection', 'must be the name of a connection']
    when coalesce(p_http ->> 'method', '') !~ '^(GET|POST|PUT|PATCH|DELETE|HEAD)$' then array['/method', 'must be GET, POST, PUT, PATCH, DELETE or HEAD']
    when jsonb_typeof(p_http -> 'path') is distinct from 'string' or p_http ->> 'path' not like '/%' then array['/path', 'must be a text that begins with a slash']
    when jsonb_typeof(p_http -> 'query') <> 'object' then array['/query', 'must be an object']
    when jsonb_typeof(p_http -> 'headers') <> 'object' then array['/headers', 'must be an object']
  end;
begin
  perform pawl_private.fault(p_at || v_fault[1], v_fault[2]) where v_fault is not null;
end
$$;
-- +goose StatementEnd

-- check_duration checks a member of a task that is a duration. p_least, p_most: its bounds, null for none
-- Raises: 22023 with the pointer
-- +goose StatementBegin
create function pawl_private.check_duration(p_value jsonb, p_at text, p_least interval default null, p_most interval default null)
returns void
language plpgsql stable
as $$
declare
  v_duration interval;
begin
  if p_value is null then
    return;
  end if;
  v_duration := pawl_private.exact_duration(coalesce(p_value #>> '{}', ''), p_at);
  if v_duration < p_least or v_duration > p_most then
    perform pawl_private.fault(p_at, concat_ws(', ', 'must be at least ' || p_least, 'at most ' || p_most));
  end if;
end
$$;
-- +goose StatementEnd

-- check_task checks a task in canonical form, so that nothing is stored that raises when the task is carried out.
-- Raises: 22023 with the pointer
-- +goose StatementBegin
create function pawl_private.check_task(p_task jsonb, p_name text, p_at text, p_compensation boolean) returns void
language plpgsql stable
as $$
declare
  v_reconcile jsonb := p_task -> 'reconcile';
  v_fault text[] := case
    when jsonb_typeof(p_task) is distinct from 'object' then array['', 'must be an object']
    when p_compensation and p_name !~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' then array['', 'undoes the steps of one event, which must be named']
    when not p_compensation and (p_name !~ '^[A-Za-z][A-Za-z0-9_-]{0,63}$' or p_name = 'compensate')
      then array['', 'the name of a task is an identifier, and not compensate']
    when p_task ? 'http' = p_task ? 'work' then array['', 'must have either http or work']
    when not p_task ? 'deadline' then array['/deadline', 'must be there']
    when p_compensation and p_task ?| array['done', 'error', 'unknown', 'late', 'compensate']
      then array['', 'a compensation has no done, error, unknown, late and compensate']
    when not p_compensation and exists (
      select from unnest(array['done', 'error', 'unknown']) as m (name) where coalesce(p_task -> m.name -> -1, '{"guard": null}') ? 'guard'
    ) then array['', 'each of done, error and unknown must have transitions, the last without a guard']
    when p_task ? 'work' and jsonb_typeof(p_task -> 'work') <> 'object' then array['/work', 'must be an object with a topic']
    when p_task ? 'work' and coalesce(p_task #>> '{work,topic}', '') !~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' then array['/work/topic', 'must be an identifier']
    when p_task ? 'work' and jsonb_typeof(p_task #> '{work,input}') not in ('object', 'string') then array['/work/input', 'must be an object, or a path that selects one']
    when p_task ? 'work' and p_task ?| array['idempotency', 'timeout', 'success', 'reconcile']
      then array['', 'work has no idempotency, timeout, success and reconcile']
    when p_task ? 'idempotency' and (coalesce(p_task #>> '{idempotency,header}', '') !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]{1,100}$' or p_task #> '{idempotency,window}' is null)
      then array['/idempotency', 'must have a header and a window']
    when p_task ? 'retry' and coalesce(p_task #>> '{retry,max}', '') !~ '^([1-9][0-9]?|100)$' then array['/retry/max', 'must be 1 to 100']
    when p_task ? 'retry' and (p_task #> '{retry,base}' is null or p_task #> '{retry,cap}' is null) then array['/retry', 'must have max, base and cap']
    when p_task ? 'late' and coalesce(p_task #>> '{late,event}', '') !~ '^[A-Za-z][A-Za-z0-9_.-]{0,63}$' then array['/late/event', 'must be the name of an event']
    when p_task ? 'if_unknown' and (not p_compensation or p_task ->> 'if_unknown' not in ('run', 'park')) then array['/if_unknown', 'must be run or park, of a compensation']
    when p_task ? 'reconcile' and jsonb_typeof(v_reconcile) <> 'object' then array['/reconcile', 'must be an object']
    when p_task ? 'reconcile' and not v_reconcile ? 'done' then array['/reconcile/done', 'must be there']
    when v_reconcile ? 'every' and (jsonb_typeof(v_reconcile -> 'every') <> 'array' or v_reconcile -> 'every' = '[]')
      then array['/reconcile/every', 'must be an array of durations']
  end;
begin
  perform pawl_private.fault(p_at || v_fault[1], v_fault[2]) where v_fault is not null;
  perform pawl_private.check_request(p_task -> 'http', p_at || '/http') where p_task ? 'http';
  perform pawl_private.check_request(v_reconcile -> 'http', p_at || '/reconcile/http') where v_reconcile is not null;
  perform pawl_private.check_duration(p_task -> 'deadline', p_at || '/deadline', null, interval '8784 hours');
  perform pawl_private.check_duration(p_task -> 'timeout', p_at || '/timeout', interval '0.1 seconds', interval '10 minutes');
  perform pawl_private.check_duration(p_task #> '{work,lease}', p_at || '/work/lease', interval '1 second', interval '1 hour');
  perform pawl_private.check_duration(p_task #> '{idempotency,window}', p_at || '/idempotency/window');
  perform pawl_private.check_duration(p_task #> '{retry,base}', p_at || '/retry/base');
  perform pawl_private.check_duration(p_task #> '{retry,cap}', p_at || '/retry/cap');
  perform pawl_private.check_duration(v_reconcile -> 'absent_after', p_at || '/reconcile/absent_after');
  perform pawl_private.check_duration(e.value, p_at || '/reconcile/every/' || e.place - 1)
  from jsonb_array_elements(v_reconcile -> 'every') with ordinality as e (value, place);
end
$$;
-- +goose StatementEnd

-- compiled_task compiles a task in canonical form.
-- Returns: of a call: request, as of compiled_request; header and window of its idempotency, if it has one; timeout;
--          success, a compiled guard or null; reconcile: null or {connection, request, every, done, failed, absent,
--          result, absent_after}. Of work: input, lease. Of both: max, base and cap of its retries; late: an event or null;
--          if_unknown, of a compensation
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.compiled_task(p_task jsonb, p_at text, p_compensation boolean) returns jsonb
language plpgsql stable
as $$
declare
  v_http jsonb := p_task -> 'http';
  v_reconcile jsonb := p_task -> 'reconcile';
  v_idempotency jsonb := coalesce(
    p_task -> 'idempotency',
    case when p_compensation and v_http is not null then '{"header": "Idempotency-Key", "window": "24h"}'::jsonb end);
  v_spec jsonb;
  v_name text;
begin
  v_spec := jsonb_strip_nulls(jsonb_build_object(
    'max', coalesce((p_task #>> '{retry,max}')::integer, case when v_http is null then 1 else 6 end),
    'base', coalesce(p_task #>> '{retry,base}', '1s'),
    'cap', coalesce(p_task #>> '{retry,cap}', '1m'),
    'late', p_task #>> '{late,event}',
    'if_unknown', case when p_compensation then coalesce(p_task ->> 'if_unknown', 'park') end));
  if v_http is null then
    return v_spec || jsonb_build_object(
      'lease', coalesce(p_task #>> '{work,lease}', '60s'),
      'input', pawl_private.compiled_value(coalesce(p_task #> '{work,input}', '{}'), p_at || '/work/input'));
  end if;
  v_spec := v_spec || jsonb_strip_nulls(jsonb_build_object(
    'timeout', coalesce(p_task ->> 'timeout', '15s'), 'header', v_idempotency ->> 'header', 'window', v_idempotency ->> 'window'))
    || jsonb_build_object('request', pawl_private.compiled_request(v_http, p_at || '/http'));
  if p_task ? 'success' then
    v_spec := v_spec || jsonb_build_object('success', pawl_private.compiled_guard(p_task -> 'success', p_at || '/success'));
  end if;
  if v_reconcile is not null then
    v_reconcile := jsonb_build_object(
      'connection', v_reconcile #> '{http,connection}',
      'request', pawl_private.compiled_request(v_reconcile -> 'http', p_at || '/reconcile/http'),
      'every', coalesce(v_reconcile -> 'every', '["5s", "30s", "5m"]'), 'absent_after', coalesce(v_reconcile ->> 'absent_after', '1m'),
      'result', pawl_private.compiled_value(coalesce(v_reconcile -> 'result', '"$.body"'), p_at || '/reconcile/result'));
    foreach v_name in array array['done', 'failed', 'absent'] loop
      if p_task -> 'reconcile' ? v_name then
        v_reconcile := v_reconcile || jsonb_build_object(
          v_name, pawl_private.compiled_guard(p_task #> array['reconcile', v_name], p_at || '/reconcile/' || v_name));
      end if;
    end loop;
    v_spec := v_spec || jsonb_build_object('reconcile', v_reconcile);
  end if;
  return v_spec;
end
$$;
-- +goose StatementEnd

-- definition_transitions flattens a definition in canonical form. Every atomic state gets its
-- own transitions, then those that it inherits, the innermost state's first. Each leads to an
-- atomic state. 'ttl' and ':initial' are among them.
--
-- The algorithm is SCXML's for a machine without parallel regions. The innermost state around both the declaring state
-- and the target is neither left nor entered; of an internal transition it may be the declaring state itself. The
-- transition leaves the states within it, the innermost first, and enters those down to the target, the outermost
-- first. A final state within another state has only the done of that one.
-- p_source, p_target: null; else only the transition ':forced' from this atomic state to that state, which no state
--                     declares. In its stages it is itself '["forced"]'
-- Returns: rows of pawl.workflow_transition
-- +goose StatementBegin
create function pawl_private.definition_transitions(p_definition jsonb, p_source text default null, p_target text default null)
returns table (
  source text, event text, "position" bigint, target text, guard jsonb, guard_at text, internal boolean, kept integer, rearms text,
  resumes text, resumed_state text, resumes_timers boolean, stages jsonb, payload_schema jsonb, description text
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with node as materialized (
    select
      n.*,
      n.atomic and n.value ->> 'type' is not distinct from 'final' as final,
      pawl_private.compiled_assign(n.value #> '{entry,assign}', n.at || '/entry/assign') as entry,
      pawl_private.compiled_assign(n.value #> '{exit,assign}', n.at || '/exit/assign') as exit,
      pawl_private.compiled_assign(n.value #> '{initial,assign}', n.at || '/initial/assign') as first
    from pawl_private.definition_states(p_definition) n
  ),
  task as materialized (
    select t.* from pawl_private.definition_tasks(p_definition) t where p_source is null
  ),
  -- What becomes of tasks and of undoing, by the states that react to it.
  outcome as materialized (
    select t.state, m.name || ':' || t.name as event, o.position, o.value, t.at || '/' || m.name || '/' || o.position - 1 as at
    from task t
    cross join unnest(array['done', 'error', 'unknown']) as m (name)
    cross join lateral jsonb_array_elements(case when jsonb_typeof(t.value -> m.name) = 'array' then t.value -> m.name end)
      with ordinality as o (value, position)
    where t.state is not null
  ),
  handler as materialized (
    select o.state as path, o.event, o.position, o.value, o.at from outcome o
    union all
    -- In the states that an outcome of a task leads to, an operator may settle the task anew.
    select distinct n.leaf, o.event || '@' || o.state, o.position, o.value, o.at
    from outcome f
    join node n on n.path = f.value ->> 'target'
    join outcome o on o.state = f.state and split_part(o.event, ':', 2) = split_part(f.event, ':', 2)
    where n.leaf <> f.state
    union all
    select n.path, m.name || ':compensate', o.position, o.value, n.at || '/' || m.name || '/' || o.position - 1
    from node n
    cross join unnest(array['done', 'error']) as m (name)
    cross join lateral jsonb_array_elements(case when jsonb_typeof(n.value -> m.name) = 'array' then n.value -> m.name end)
      with ordinality as o (value, position)
    where n.value ? 'compensate'
    union all
    select n.path, 'compensated:' || c.name, 1, '{}', n.at
    from node n
    cross join (select distinct t.name from task t where t.state is null) c
    where n.value ? 'compensate'
  ),
  declared as materialized (
    select
      n.path, n.lineage, e.event, e.position, e.value, e.value ->> 'target' as target, e.timer, e.at,
      pawl_private.compiled_assign(e.value -> 'assign', e.at || '/assign') as assign
    from node n
    cross join lateral (
      select o.key as event, t.position, t.value, false as timer, pawl_private.below(n.at || '/on', o.key) || '/' || t.position - 1 as at
      from jsonb_each(coalesce(n.value -> 'on', '{}')) o
      cross join lateral jsonb_array_elements(o.value) with ordinality as t (value, position)
      union all
      select ':' || m.name, t.position, t.value, false, n.at || '/' || m.name || '/' || t.position - 1
      from unnest(array['always', 'done']) as m (name)
      cross join lateral jsonb_array_elements(n.value -> m.name) with ordinality as t (value, position)
      where not n.value ? 'compensate'
      union all
      select t.slot, t.position, t.value, true, t.at
      from pawl_private.definition_timers(n.value, n.at) t
      union all
      select h.event, h.position, h.value, false, h.at
      from handler h
      where h.path = n.path
    ) e
    where p_source is null
  ),
  -- inside: the states around the declaring state, with itself if the transition is internal. Those that are around the
  -- target too are neither left nor entered.
  inherited as (
    select
      s.path as source, s.lineage,
      d.event || case when d.timer and d.path <> s.path then '@' || d.path else '' end as event,
      d.value, d.target, d.at, d.assign, d.path as declaring,
      cardinality(d.lineage) as depth, d.position,
      -- All transitions of an event in a state share one schema.
      (array_agg(d.value -> 'payload_schema') filter (where d.value ? 'payload_schema')
        over (partition by s.path, d.event))[1] as payload_schema,
      d.lineage[:cardinality(d.lineage) - case when d.value ? 'internal' then 0 else 1 end] as inside,
      -- An inherited transition behind one without a guard is never taken.
      bool_or(not d.value ? 'guard') over (
        partition by s.path, d.event order by cardinality(d.lineage) desc
        groups between unbounded preceding and 1 preceding
      ) and not d.timer as idle
    from node s
    join declared d on d.path = any (s.lineage)
    where s.atomic and case
      when s.final then d.event = ':done' and d.path = s.lineage[cardinality(s.lineage) - 1]
      else d.event <> ':done'
    end
    union all
    select s.path, s.lineage, 'ttl', '{}', p_definition #>> '{ttl,target}', '/ttl', null, null, 0, 1, null, '{}', null
    from node s
    where p_source is null and p_definition ? 'ttl' and s.atomic and (not s.final or cardinality(s.lineage) > 1)
    union all
    select i.leaf, '{}', ':initial', '{}', i.path, '/initial', pawl_private.compiled_assign(p_definition #> '{initial,assign}', '/initial/assign'),
      null, 0, 1, null, '{}', null
    from node i
    where p_source is null and i.path = pawl_private.initial_of(p_definition)
    union all
    select s.path, s.lineage, ':forced', '{}', p_target, '', '["forced"]', null, 0, 1, null,
      s.lineage[:cardinality(s.lineage) - 1], null
    from node s
    where s.path = p_source
  ),
  -- One row for each state that a transition leads to.
  led as (
    select i.*, coalesce(t.leaf, i.source) as leaf, null::text as resumed_state, false as resumed
    from inherited i
    left join node t on t.path = i.target
    where i.idle is not true
    union all
    select i.*, l.path, l.path, true
    from inherited i
    join node l on i.target = any (l.lineage) and l.atomic and not l.final
    -- Within the state that is resumed, the present state is the one that was left last.
    where i.idle is not true and i.value ? 'resume' and (l.path = i.source or not i.target = any (i.lineage))
  ),
  kept as (
    select
      i.*, t.lineage as target_lineage, l.lineage as leaf_lineage,
      case
        when i.target is null then cardinality(i.lineage)
        else (
          select count(*)
          from unnest(i.lineage) as a (path)
          where a.path = any (i.inside) and a.path = any (t.lineage[:cardinality(t.lineage) - 1])
        )
      end::integer as kept
    from led i
    left join node t on t.path = i.target
    left join node l on l.path = i.leaf
  )
  select
    i.source, i.event, row_number() over (partition by i.source, i.event order by i.depth desc, i.position, i.resumed desc, i.leaf collate "C"),
    i.leaf, i.value -> 'guard', i.at || '/guard', i.target is null, i.kept,
    case when i.value ? 'rearm' then i.declaring end,
    case when i.value ? 'resume' then i.target end, i.resumed_state, i.value -> 'resume' is not distinct from '"timers"', a.stages,
    i.payload_schema, left(i.value ->> 'description', 1000)
  from kept i
  cross join lateral (
    select jsonb_agg(x.assign order by x.place) as stages
    from (
      -- States that are left, the transition itself, states that are entered, in this order. What goes with initial
      -- comes between its state and the state that it leads to.
      select -2 * cardinality(n.lineage) as place, n.exit as assign
      from node n
      where n.path = any (i.lineage[i.kept + 1:])
      union all
      select case i.event when ':initial' then 1 else 0 end, i.assign
      union all
      select 2 * cardinality(n.lineage), n.entry
      from node n
      where n.path = any (i.leaf_lineage[i.kept + 1:])
      union all
      select 2 * cardinality(n.lineage) + 1, n.first
      from node n
      where n.path = any (i.leaf_lineage[greatest(i.kept + 1, cardinality(i.target_lineage)):]) and not i.resumed
    ) x
    where x.assign is not null
  ) a
  where i.event <> ':initial' or a.stages is not null
$$;
-- +goose StatementEnd

-- search_fault says what is wrong with the search attributes of a definition, or null.
-- +goose StatementBegin
create function pawl_private.search_fault(p_search jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_search) <> 'object' then 'search must be an object'
    when (select count(*) from jsonb_object_keys(p_search)) > 20 then 'search must have at most 20 attributes'
    else (
      select format('search.%s must have a name of letters, digits and underscores, a path of members of the context, and no type but text, number, time or boolean', a.key)
      from jsonb_each(p_search) a
      where a.key !~ '^[A-Za-z_][A-Za-z0-9_]{0,62}$'
        or coalesce(case jsonb_typeof(a.value) when 'string' then a.value #>> '{}' else a.value ->> 'path' end, '')
          !~ '^\$\.context(\.[A-Za-z_][A-Za-z0-9_]*)+$'
        or octet_length(a.value::text) > 400
        or coalesce(a.value ->> 'type', 'text') not in ('text', 'number', 'time', 'boolean')
      order by a.key
      limit 1
    )
  end
$$;
-- +goose StatementEnd

-- compiled_search is what pawl.workflow.search holds.
-- +goose StatementBegin
create function pawl_private.compiled_search(p_search jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(a.key, jsonb_strip_nulls(jsonb_build_object(
    'path', string_to_array(substr(coalesce(a.value ->> 'path', a.value #>> '{}'), length('$.context.') + 1), '.'),
    'type', a.value ->> 'type')))
  from jsonb_each(p_search) a
$$;
-- +goose StatementEnd

-- healing_fault says what is wrong with what a state does about stuck instances, or null.
-- p_state: the state; p_around: it and the states around it
-- +goose StatementBegin
create function pawl_private.healing_fault(p_state jsonb, p_around jsonb[]) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(h.value) <> 'object' then 'must be an object'
    when h.value - '{event,reconcile,retry,max}'::text[] <> '{}'
      or (h.value ? 'event')::integer + (h.value ? 'reconcile')::integer + (h.value ? 'retry')::integer <> 1
      then 'must have one of event, reconcile and retry, and nothing else but max'
    when jsonb_typeof(h.value -> h.act) <> 'string' then h.act || ' must be a name'
    when h.value ? 'max' and (jsonb_typeof(h.value -> 'max') <> 'number' or h.value ->> 'max' !~ '^([1-9][0-9]?|100)$')
      then 'max must be a whole number from 1 to 100'
    when h.act <> 'event' and not coalesce(p_state -> 'invoke', '{}') ? h.name then format('%s names no task of the state', h.act)
    when h.act = 'reconcile' and not p_state -> 'invoke' -> h.name ? 'reconcile' then format('the task %s has no reconcile', h.name)
    when h.act = 'event' and (h.name ~ '[:*]' or not exists (
      select
      from unnest(p_around) a
      cross join lateral jsonb_object_keys(coalesce(a -> 'on', '{}')) k
      where k = h.name or k like '%*' and starts_with(h.name, left(k, -1))
    )) then format('event must be one that the state accepts, and %s is not', h.name)
    when h.act = 'event' and exists (select from unnest(p_around) a where a -> 'protected' = 'true')
      then 'event is never fired in a protected state'
  end
  from (
    select
      o.value, o.act, o.value ->> o.act as name
    from (
      select
        p_state -> 'on_stuck' as value,
        case when p_state -> 'on_stuck' ? 'event' then 'event' when p_state -> 'on_stuck' ? 'reconcile' then 'reconcile' else 'retry' end as act
    ) o
  ) h
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
        when not exists (select from node n where n.path = pawl_private.initial_of(p_definition)) then 'initial must name a state'
        when not exists (select from node n where n.value ->> 'type' = 'final' and cardinality(n.lineage) = 1) then 'no state at the top is final'
        when p_definition ->> 'business_key' not in ('unique', 'reusable') then 'business_key must be unique or reusable'
        when p_definition ? 'ttl' and not exists (
          select from node n where n.path = p_definition #>> '{ttl,target}' and n.value ->> 'type' = 'final' and cardinality(n.lineage) = 1
        ) then 'ttl.target must name a final state at the top'
        when pawl_private.search_fault(p_definition -> 'search') is not null then pawl_private.search_fault(p_definition -> 'search')
        when p_definition ? 'cancel' and not exists (select from node n where n.path = p_definition ->> 'cancel')
          then 'cancel must name a state'
        else coalesce(
          (
            select case
              when jsonb_typeof(n.value) <> 'object' then format('%s must be an object', n.path)
              when n.leaf is null then format('initial of %s must name a state within it', n.path)
              when n.value ->> 'type' = 'final' and not n.atomic
                then format('%s is final, so that it must not have states within', n.path)
              when n.value ->> 'type' = 'final' and cardinality(n.lineage) > 1 and not exists (
                select from node o where o.path = n.lineage[cardinality(n.lineage) - 1] and o.value ? 'done'
              ) then format('%s is final within a state that has no done', n.path)
              when n.value ->> 'type' = 'final' and n.value ?| array['on', 'always', 'after', 'every', 'done']
                then format('%s is final, so that it has no transitions', n.path)
              when n.value ? 'invoke' and (jsonb_typeof(n.value -> 'invoke') <> 'object' or n.value -> 'invoke' = '{}')
                then format('invoke of %s must be an object with at least one task', n.path)
              when n.value ? 'compensate' and (n.value #>> '{compensate,on_failure}') is distinct from 'stop'
                and (n.value #>> '{compensate,on_failure}') is distinct from 'continue'
                then format('compensate of %s must have on_failure, stop or continue', n.path)
              when n.value ?| array['invoke', 'compensate'] and (not n.atomic or n.value ->> 'type' = 'final')
                then format('%s must have no states within and not be final to start tasks or to undo steps', n.path)
              when n.value ?& array['invoke', 'compensate'] then format('%s undoes steps, so that it starts no tasks', n.path)
              when n.value ? 'compensate' and not n.value ?& array['done', 'error']
                then format('%s undoes steps, so that it needs done and error', n.path)
              when jsonb_typeof(n.value -> 'protected') <> 'boolean' then format('protected of %s must be true or false', n.path)
              when n.value ? 'stuck_after' and (not n.atomic or n.value ->> 'type' = 'final')
                then format('%s must have no states within and not be final to have stuck_after', n.path)
              when n.value ? 'on_stuck' and (not n.atomic or n.value ->> 'type' = 'final')
                then format('%s must have no states within and not be final to have on_stuck', n.path)
              when n.value ? 'on_stuck' then
                'on_stuck of ' || n.path || ': '
                  || pawl_private.healing_fault(n.value, array(select a.value from node a where a.path = any (n.lineage)))
            end as fault
            from node n
            order by fault nulls last
            limit 1
          ),
          (
            select case
              when jsonb_typeof(e.value) <> 'array'
                then 'each event and timeout, always, and each outcome of a task must have an array of transitions: this is not the canonical form'
              when e.own and (e.key like '%:%' or e.key in ('ttl', 'done')) then 'ttl, done and events with a colon are the engine''s own'
              else (
                select case
                  when not t.value ? 'target' then case
                    when not e.own and e.key in ('always', 'done', 'error', 'unknown') then format('%s must have a target', e.key)
                    when t.value ? 'resume' or t.value ? 'internal' then 'resume and internal need a target'
                  end
                  when o.path is null then format('there is no state %s', t.value ->> 'target')
                  when t.value ? 'rearm' then 'rearm is for transitions without a target'
                  when t.value ? 'internal' and not (e.path = any (o.lineage) and o.path <> e.path)
                    then format('%s is not within %s, so that no internal transition leads there', o.path, e.path)
                  when t.value ? 'resume' and (o.atomic or o.path = any (e.lineage))
                    then format('%s cannot be resumed from %s', o.path, e.path)
                end
                from jsonb_array_elements(e.value) t
                left join node o on o.path = t.value ->> 'target'
                order by 1 nulls last
                limit 1
              )
            end as fault
            from node n
            cross join lateral (
              select o.key, o.value, true as own from jsonb_each(coalesce(n.value -> 'on', '{}')) o
              union all
              select a.key, a.value, false
              from jsonb_each(case when jsonb_typeof(n.value -> 'after') = 'object' then n.value -> 'after' end) a
              union all
              select m.name, n.value -> m.name, false
              from unnest(array['always', 'done', 'after', 'every', 'error']) as m (name)
              where n.value ? m.name and (m.name <> 'after' or jsonb_typeof(n.value -> 'after') <> 'object')
              union all
              select m.name, coalesce(t.value -> m.name, 'null'), false
              from jsonb_each(case when jsonb_typeof(n.value -> 'invoke') = 'object' then n.value -> 'invoke' end) t
              cross join unnest(array['done', 'error', 'unknown']) as m (name)
            ) d
            cross join lateral (select d.key, d.value, d.own, n.path, n.lineage) e
            order by fault nulls last
            limit 1
          ),
          (
            select 'the states have more than 50000 transitions, with those that they inherit and those to each state that may be resumed'
            from (
              select n.transitions
              from node s
              join node n on n.path = any (s.lineage)
              where s.atomic
              union all
              select 1
              from node s
              join node n on n.path = any (s.lineage)
              cross join lateral jsonb_path_query(n.value, '$.on.*[*] ? (exists(@.resume))') t
              join node l on t ->> 'target' = any (l.lineage) and l.atomic
              where s.atomic
            ) c
            having sum(c.transitions) > 50000
          ))
      end
    )
  end
  from pawl.setting g
$$;
-- +goose StatementEnd

-- exact_duration reads a duration that is counted without a calendar.
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.exact_duration(p_text text, p_at text) returns interval
language plpgsql stable
as $$
declare
  v_duration interval := pawl_private.duration(p_text);
begin
  if v_duration is null and p_text is not null or v_duration <= interval '0' then
    perform pawl_private.fault(p_at, format('%s is no duration; write one like 90s, 15m or 24h, of at most ten years', p_text));
  elsif pawl_private.months_of(v_duration) <> 0 then
    perform pawl_private.fault(p_at, 'months and years have no fixed length; write days');
  end if;
  return v_duration;
end
$$;
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

-- reads_more says whether guards or assigns may read more than the context and the payload; p_actor: whether they
-- may read the actor. p_text: paths as PostgreSQL writes them, alone or within JSON texts.
-- +goose StatementBegin
create function pawl_private.reads_more(p_text text, p_actor boolean) returns boolean
language sql immutable parallel safe
as $$
  -- Removed are the pointers of operations, which end with $ and a name, and the members that are not asked for. What
  -- is left has a $ only if it reads something else.
  select regexp_replace(
    regexp_replace(p_text, '/[$][a-z]+', '', 'g'),
    case
      when p_actor then E'[$]([.]\\\\?"(context|payload|instance|now|event)\\\\?"|\\\\?")'
      else E'[$]([.]\\\\?"(context|payload)\\\\?"|\\\\?")'
    end,
    '', 'g') like '%$%'
$$;
-- +goose StatementEnd

-- schema_references lists the schemas of the deployment that a JSON Schema refers to: what each member $ref has in
-- front of its fragment, if that begins with 'pawl:'. In the text of a jsonb value a quote within a string has a
-- backslash.
-- +goose StatementBegin
create function pawl_private.schema_references(p_schema jsonb) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array(select distinct m[1] from regexp_matches(p_schema::text, '"[$]ref": "(pawl:[^"#]*)', 'g') m)
$$;
-- +goose StatementEnd

-- bundle returns a schema with copies of the schemas of the deployment that it refers to, and of those that these refer
-- to, under $defs. $id gives each the name that references have; without $schema it is of the latest draft, whatever
-- the schema around it is of. Package fsm/definition does the same.
-- p_schemas: by their names, the member schemas of a definition
-- Returns: the schema itself if p_schemas is null, or if it refers to none of them
-- +goose StatementBegin
create function pawl_private.bundle(p_schema jsonb, p_schemas jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_defs jsonb;
begin
  if p_schemas is null or p_schema is null then
    return p_schema;
  end if;
  with recursive reached (reference) as (
    select unnest(pawl_private.schema_references(p_schema))
    union
    select unnest(pawl_private.schema_references(p_schemas -> r.reference)) from reached r
  )
  select
    jsonb_object_agg(
      r.reference,
      jsonb_build_object('$schema', 'https://json-schema.org/draft/2020-12/schema') || (p_schemas -> r.reference)
        || jsonb_build_object('$id', r.reference))
  into v_defs
  from reached r
  where jsonb_typeof(p_schemas -> r.reference) = 'object';
  return p_schema || coalesce(jsonb_build_object('$defs', coalesce(p_schema -> '$defs', '{}') || v_defs), '{}');
end
$$;
-- +goose StatementEnd

-- store_definition stores a definition in canonical form, flattened, as a version of a workflow.
-- Raises:  22023 with the pointer; what the parser of paths and the tables' constraints raise
-- Writes:  workflow, workflow_state, workflow_transition
-- +goose StatementBegin
create function pawl_private.store_definition(p_name text, p_version integer, p_definition jsonb, p_actor text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb := pawl_private.bundle(p_definition -> 'context_schema', p_definition -> 'schemas');
  v_default jsonb := nullif(p_definition -> 'context_default', '{}');
  v_zone text := coalesce(p_definition ->> 'timezone', 'UTC');
  v_resumed text[];
  v_kept text[];
  v_reading text[];
  v_reads_actor boolean;
  v_eventless text[];
begin
  perform pawl.now() at time zone v_zone; -- Raises if there is no such zone.
  v_schema := case when v_default is null then v_schema - 'x-context-default' else v_schema || jsonb_build_object('x-context-default', v_default) end;
  insert into pawl.workflow (
    name, version, definition, checksum, initial, initial_moves, ttl, ttl_target, retention,
    business_key_reusable, context_schema, context_schema_checksum, context_default, search, created_at, created_by)
  select
    p_name, p_version, p_definition, encode(sha256(convert_to(p_definition::text, 'UTF8')), 'hex'),
    n.leaf, false, pawl_private.exact_duration(p_definition #>> '{ttl,after}', '/ttl/after'), p_definition #>> '{ttl,target}',
    pawl_private.exact_duration(p_definition ->> 'retention', '/retention'),
    p_definition ->> 'business_key' is not distinct from 'reusable',
    v_schema, encode(sha256(convert_to(v_schema::text, 'UTF8')), 'hex'), v_default, pawl_private.compiled_search(p_definition -> 'search'), pawl.now(), p_actor
  from pawl_private.definition_states(p_definition) n
  where n.path = pawl_private.initial_of(p_definition);

  -- The states that transitions resume, and those whose timers go on then.
  select
    array_agg(distinct t ->> 'target'), array_agg(distinct t ->> 'target') filter (where t -> 'resume' = '"timers"')
  into v_resumed, v_kept
  from pawl_private.definition_states(p_definition) n
  cross join lateral (
    select jsonb_path_query(n.value, 'strict $.on.*[*]', '{}', true) as t
    union all
    select jsonb_array_elements(v.list)
    from (
      select n.value -> m.name as list from unnest(array['always', 'done', 'after']) as m (name)
      union all
      select a.value from jsonb_each(case when jsonb_typeof(n.value -> 'after') = 'object' then n.value -> 'after' end) a
    ) v
    where jsonb_typeof(v.list) = 'array'
  ) d
  where t ? 'resume';

  with node as materialized (
    select n.*, n.value ->> 'type' is not distinct from 'final' as final
    from pawl_private.definition_states(p_definition) n
  ),
  -- The timers that each state declares.
  timer as materialized (
    select
      v.path, cardinality(v.lineage) as depth, d.slot, min(d.place) as place, (array_agg(d.timer order by d.place))[1] - 'static' as timer,
      bool_and((d.timer -> 'static')::boolean) as static,
      pawl_private.duration((array_agg(d.timer #>> '{in,constant}'))[1]) as duration
    from node v
    cross join lateral (
      select t.*, row_number() over () as place from pawl_private.definition_timers(v.value, v.at) t
    ) d
    group by v.path, v.lineage, d.slot
  ),
  invariant as materialized (
    select
      v.path, v.depth,
      jsonb_build_object(
        'text', pawl_private.guard_text(v.invariant),
        'guard', pawl_private.compiled_guard(v.invariant, v.at || '/invariant')) as invariant
    from (
      select null as path, 0 as depth, '' as at, p_definition -> 'invariant' as invariant
      union all
      select n.path, cardinality(n.lineage), n.at, n.value -> 'invariant'
      from node n
    ) v
    where v.invariant is not null
  )
  insert into pawl.workflow_state (
    workflow, workflow_version, state, status, lineage, events, patterns, timeouts, timeout_events, timers, eventless, done,
    remembered, invariants, protected, stuck_after, on_stuck, tasks, undoing, ttl_slides, require_if_match)
  select
    p_name, p_version, s.path,
    case when s.final and cardinality(s.lineage) = 1 then coalesce(s.value ->> 'outcome', 'completed') else 'active' end,
    s.lineage, e.events,
    (select array_agg(p order by length(p) desc, p collate "C") from unnest(e.events) p where p like '%*'),
    case when t.armed then '{}' else t.timeouts end, case when t.armed then '{}' else t.timeout_events end,
    case when t.armed then t.timers end,
    s.final and cardinality(s.lineage) > 1, s.final and cardinality(s.lineage) > 1,
    (select array_agg(r order by length(r)) from unnest(s.lineage[:cardinality(s.lineage) - 1]) r where r = any (v_resumed)),
    (
      select jsonb_agg(i.invariant order by i.depth)
      from invariant i
      where i.path is null or i.path = any (s.lineage)
    ),
    exists (select from node n where n.path = any (s.lineage) and n.value -> 'protected' = 'true'),
    pawl_private.exact_duration(s.value ->> 'stuck_after', s.at || '/stuck_after'),
    case when s.value ? 'on_stuck' then '{"max": 3}' || (s.value -> 'on_stuck') end,
    s.value ?| array['invoke', 'compensate'],
    s.value #>> '{compensate,on_failure}',
    coalesce((p_definition #>> '{ttl,sliding}')::boolean, false),
    coalesce((p_definition ->> 'require_if_match')::boolean, false)
  from node s
  cross join lateral (
    select array(
      select distinct k collate "C"
      from node n
      cross join lateral jsonb_object_keys(coalesce(n.value -> 'on', '{}')) k
      where n.path = any (s.lineage) and not s.final
      order by k collate "C") as events
  ) e
  cross join lateral (
    select
      -- Static timers: see the module's comment.
      coalesce(bool_or(not d.static or d.path <> s.path), false) or coalesce(s.lineage && v_kept, false)
        or exists (select from node n where n.path = any (s.lineage) and jsonb_path_exists(n.value, '$.on.*[*].rearm')) as armed,
      coalesce(array_agg(d.duration order by d.duration), '{}') as timeouts,
      coalesce(array_agg(d.slot order by d.duration), '{}') as timeout_events,
      jsonb_agg(
        d.timer || jsonb_build_object(
          'slot', d.slot || case when d.path = s.path then '' else '@' || d.path end, 'owner', d.path, 'zone', v_zone)
        order by d.depth desc, d.place
      ) as timers
    from timer d
    where d.path = any (s.lineage) and not s.final
  ) t
  where s.atomic;

  perform pawl_private.check_task(t.value, t.name, t.at, t.state is null)
  from pawl_private.definition_tasks(p_definition) t;
  with flat as materialized (
    select * from pawl_private.definition_transitions(p_definition)
  ),
  task as materialized (
    select * from pawl_private.definition_tasks(p_definition)
  ),
  -- Each guard once, in however many states it is.
  guarded as materialized (
    select
      g.guard_at,
      case when jsonb_typeof(g.guard) = 'string' then pawl_private.guard_path(g.guard #>> '{}', g.guard_at) end as guard,
      case when jsonb_typeof(g.guard) <> 'string' then pawl_private.compiled_guard(g.guard, g.guard_at) end as compiled,
      pawl_private.guard_text(g.guard) as text
    from (select distinct f.guard_at, f.guard from flat f where f.guard is not null) g
  )
  insert into pawl.workflow_transition (
    workflow, workflow_version, source, event, position, target, guard, guard_compiled, guard_text, internal, kept, rearms, resumes,
    resumed_state, resumes_timers, compensation, assign_names, assign_paths, assign_compiled, assign_payload, assign_nests, payload_schema,
    payload_schema_checksum, description)
  select
    p_name, p_version, t.source, t.event, t.position, t.target,
    g.guard, g.compiled, g.text, t.internal, t.kept, t.rearms, t.resumes, t.resumed_state, t.resumes_timers, k.position, a.names, a.paths,
    case when a.names = '{}' and not a.payload then t.stages end, a.payload,
    t.stages is not null and not a.payload and (
      a.names = '{}' or exists (select from unnest(a.paths) as p (path) where pawl_private.path_nests(p.path))),
    b.payload_schema, encode(sha256(convert_to(b.payload_schema::text, 'UTF8')), 'hex'), t.description
  from flat t
  left join task k on k.state is null and k.at = left(t.guard_at, -length('/guard')) || '/compensate'
  left join guarded g on g.guard_at = t.guard_at and t.guard is not null
  cross join lateral (select pawl_private.bundle(t.payload_schema, p_definition -> 'schemas') as payload_schema) b
  cross join lateral (
    select
      coalesce(array_agg(p.value #>> '{1,0}' order by p.place) filter (where p.plain), '{}') as names,
      coalesce(
        array_agg(
          (case when p.value #>> '{2,0}' = 'path' then p.value #>> '{2,2}' else (p.value #> '{2,2}')::text end)::jsonpath
          order by p.place) filter (where p.plain),
        '{}') as paths,
      coalesce(t.stages = '[[["payload", null]]]', false) as payload
    from (
      select x.value, x.place, true as plain
      from jsonb_array_elements(t.stages -> 0) with ordinality as x (value, place)
      where jsonb_array_length(t.stages) = 1 and pawl_private.is_plain(t.stages -> 0)
    ) p
  ) a;

  with task as materialized (
    select * from pawl_private.definition_tasks(p_definition)
  )
  insert into pawl.workflow_task (workflow, workflow_version, position, state, name, connection, topic, deadline, compensation, spec)
  select
    p_name, p_version, t.position, t.state, t.name, t.value #>> '{http,connection}', t.value #>> '{work,topic}',
    pawl_private.exact_duration(t.value ->> 'deadline', t.at || '/deadline'), c.position, pawl_private.compiled_task(t.value, t.at, t.state is null)
  from task t
  left join task c on c.state is null and c.at = t.at || '/compensate';

  select
    array_agg(distinct t.source) filter (where pawl_private.reads_more(t.text, false)),
    bool_or(pawl_private.reads_more(t.text, true)),
    array_agg(distinct t.source) filter (where t.event in (':always', ':done'))
  into v_reading, v_reads_actor, v_eventless
  from (
    select
      t.source, t.event,
      concat(t.assign_paths::text, ' ', t.assign_compiled::text, ' ', t.guard::text, ' ', t.guard_compiled::text) as text
    from pawl.workflow_transition t
    where t.workflow = p_name and t.workflow_version = p_version
    offset 0
  ) t;
  v_reads_actor := coalesce(v_reads_actor, false) or exists (
    select from pawl.workflow_state s
    where s.workflow = p_name and s.workflow_version = p_version and pawl_private.reads_more(s.timers::text, true)
    union all
    select from pawl.workflow_task t
    where t.workflow = p_name and t.workflow_version = p_version and pawl_private.reads_more(t.spec::text, true));

  update pawl.workflow_state s
  set
    reads_instance = coalesce(s.state = any (v_reading), false),
    reads_actor = v_reads_actor,
    strands = s.status = 'active' and not s.done and s.events = '{}' and s.timeouts = '{}' and s.timers is null
      and not p_definition ? 'ttl',
    eventless = coalesce(s.state = any (v_eventless), false)
  where s.workflow = p_name and s.workflow_version = p_version;

  update pawl.workflow w
  set initial_moves = exists (
    select from pawl.workflow_transition t
    where t.workflow = w.name and t.workflow_version = w.version and t.source = w.initial
      and t.event in (':always', ':done', ':initial')
    union all
    select from pawl.workflow_state s
    where s.workflow = w.name and s.workflow_version = w.version and s.state = w.initial
      and (s.timers is not null or s.invariants is not null)
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
      where w.state >= r.first and w.state <= r.last and length(w.workflow) > 0
      order by w.state, w.status, w.workflow
      limit 1
    ) f
    union all
    select s.last, f.state, f.status, f.workflow
    from step s
    cross join lateral (
      select w.state, w.status, w.workflow
      from pawl.workflow_state w
      where w.state <= s.last and length(w.workflow) > 0
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

-- 10_workflow/register_schema.sql

-- register_schema stores a JSON Schema as the next version of a schema of the deployment. If the content is the latest
-- version's, it changes nothing, and its commit waits as that of the version did: see commit_synchronously. Callers
-- vouch for the schema, since PostgreSQL has no JSON Schema.
-- Returns: version; created: whether it is new
-- Raises:  PW400 malformed-request, PW42D invalid-definition
-- Locks:   schema (share update exclusive): registrations of schemas wait for each other
-- Writes:  schema, audit
-- +goose StatementBegin
create function pawl.register_schema(
  p_name text, p_schema jsonb, p_actor text default session_user, p_caller jsonb default null, out version integer, out created boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_latest pawl.schema;
  v_limit integer := (select g.definition_limit from pawl.setting g);
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(p_tenant => '*', p_actor => p_actor));
  if octet_length(p_schema::text) > v_limit then
    perform pawl_private.raise_condition('invalid-definition', format('the schema has more than %s bytes', v_limit));
  end if;
  lock table pawl.schema in share update exclusive mode;
  select * into v_latest from pawl.schema s where s.name = p_name order by s.version desc limit 1;
  version := coalesce(v_latest.version, 0);
  created := v_latest.schema is distinct from p_schema or version = 0;
  if not created then
    perform pawl_private.commit_synchronously();
    return;
  end if;
  version := version + 1;
  insert into pawl.schema (name, version, schema, checksum, created_at, created_by)
  values (p_name, version, p_schema, encode(sha256(convert_to(p_schema::text, 'UTF8')), 'hex'), pawl.now(), p_actor);
  perform pawl_private.audit(
    p_tenant => '*', p_caller => coalesce(p_caller, pawl_private.session_caller(p_actor)), p_action => 'schema.register',
    p_target => p_name || ' ' || version);
exception
  -- Raised by constraints.
  when integrity_constraint_violation then
    perform pawl_private.raise_condition('invalid-definition', 'invalid schema: ' || sqlerrm);
end
$$;
-- +goose StatementEnd

-- 10_workflow/schemas_for.sql

-- schemas_for finds the schemas that references name, with those that these refer to: the latest version for
-- 'pawl:NAME', that version for 'pawl:NAME@VERSION'.
-- Returns: a row for each reference: schema, null if there is none. It ends with the row by which the schemas have
--          p_bytes
-- +goose StatementBegin
create function pawl.schemas_for(p_references text[], p_bytes bigint) returns table (reference text, schema jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_next text[] := p_references;
  v_more text[];
  v_found text[] := '{}';
  v_bytes bigint := 0;
begin
  while v_next <> '{}' loop
    v_found := v_found || v_next;
    v_more := '{}';
    for reference, schema in
      select r.reference, s.schema
      from unnest(v_next) as r (reference)
      left join lateral (
        select s.schema
        from pawl.schema s
        where s.name = split_part(substr(r.reference, 6), '@', 1)
          and (position('@' in r.reference) = 0 or s.version::text = split_part(r.reference, '@', 2))
        order by s.version desc
        limit 1
      ) s on true
    loop
      return next;
      v_bytes := v_bytes + coalesce(octet_length(schema::text), 0);
      if v_bytes >= p_bytes then
        return;
      end if;
      v_more := v_more || pawl_private.schema_references(schema);
    end loop;
    v_next := array(select unnest(v_more) except select unnest(v_found));
  end loop;
end
$$;
-- +goose StatementEnd

-- 10_workflow/schemas_page.sql

-- schemas_page reads the latest version of each schema whose name comes after p_after.
-- Returns: up to p_limit rows, by name. The page ends with the row by which its schemas have p_bytes, so it has at
--          least one row if there are any. Only the schemas of these rows are read
-- +goose StatementBegin
create function pawl.schemas_page(p_after text, p_limit integer, p_bytes bigint) returns setof pawl.schema
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_schema pawl.schema;
  v_bytes bigint := 0;
begin
  for v_schema in
    select s.*
    from pawl.schema s
    where s.name > p_after
      and s.version = (select max(v.version) from pawl.schema v where v.name = s.name)
    order by s.name
    limit p_limit
  loop
    return next v_schema;
    v_bytes := v_bytes + octet_length(v_schema.schema::text);
    exit when v_bytes >= p_bytes;
  end loop;
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
    (select w.state from pawl.workflow_state w where length(w.workflow) > 0 order by w.state limit 1)
    union all
    select f.state
    from step s
    cross join lateral (
      select w.state from pawl.workflow_state w where w.state > s.state and length(w.workflow) > 0 order by w.state limit 1
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
-- p_workflows: the names to choose among; null for all
-- Returns: up to p_limit rows, by name. The page ends with the row by which its definitions have p_bytes, so it has
--          at least one row if there are any. Only the definitions of these rows are read
-- +goose StatementBegin
create function pawl.workflows_page(p_after text, p_limit integer, p_bytes bigint, p_workflows text[] default null)
returns setof pawl.workflow
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
    where w.name > p_after and (p_workflows is null or w.name = any (p_workflows))
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
  ('api', 'pawl.jsonpath_error'),
  ('api', 'pawl.register_schema'),
  ('api', 'pawl.schemas_for'),
  ('api', 'pawl.schemas_page'),
  ('api', 'pawl.chosen_states'),
  ('api', 'pawl.state_names'),
  ('api', 'pawl.workflow_names'),
  ('api', 'pawl.workflows_page');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.workflow', null),
  ('api', 'pawl.workflow_state', null),
  ('api', 'pawl.workflow_transition', null),
  ('api', 'pawl.workflow_task', '{workflow,workflow_version,position,state,name,connection,topic,deadline}'),
  ('api', 'pawl.schema', null),
  ('worker', 'pawl.workflow', null),
  ('reader', 'pawl.workflow', null),
  ('reader', 'pawl.workflow_state', null),
  ('reader', 'pawl.workflow_transition', null),
  ('reader', 'pawl.schema', null);

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
-- means "none". A fire by business key (fire_by_keys) is made of calls of both.
--
-- A call of fire proceeds in these steps. Under READ COMMITTED each statement of a volatile function
-- sees a fresh snapshot.
--
--   1. Replay the commands whose idempotency key is taken, from what was recorded.
--   2. Lock the instances of the others, in the order of their ids.
--   3. Read the clock, then decide and write in one statement. A command has an effect only if it has no key, or if
--      this statement claims its key. If a call has several commands for one instance, the statement runs once for each
--      round of them.
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
-- Overrides and cancels come one by one, and have a function of their own (pawl_private.force). It takes the same steps
-- and shares what decides and records: decide for an event whose guards are passed over, complete_macrostep and
-- append_history. So the functions for commands need not ask at each command whether it is one of these.
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
--     it; other commands pay nothing for them. The same is true of what few workflows use:
--     compiled guards and values, invariants, and memory (see remembered).
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
  memory jsonb,
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
comment on column pawl.instance.memory is 'what the engine must remember beside the state; null if nothing: see pawl_private.remembered';
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
  actor pawl.actor not null,
  reason pawl.reason,
  key pawl.key,
  correlation_id pawl.key,
  traceparent text,
  at timestamptz not null,
  entered_at timestamptz,
  internal boolean,
  principal jsonb,
  memory jsonb,
  database_user text,
  constraint history_pkey primary key (tenant_id, instance_id, version),
  constraint history_starts_with_created check ((version = 1) = (kind = 'created')),
  constraint history_internal_stays check (internal is null or internal and from_state = to_state)
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
  'when the state was entered, if earlier than the step: an internal transition and an instance migration may keep the state';
comment on column pawl.history.internal is 'true if the step neither left nor entered a state; else null';
comment on column pawl.history.principal is 'what the step read as $.actor, if the workflow reads it';
comment on column pawl.history.database_user is 'the session''s user if the command came by SQL; null if it came through the service, and for timers';

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
  refusal jsonb,
  constraint idempotency_key_pkey primary key (tenant_id, key)
)
-- As many keys are purged as are inserted, so the table levels off at what vacuum leaves behind:
-- a hundredth of it, not the default fifth. A vacuum reads both indexes whole, which is why the
-- threshold is not a fixed number. Inserts alone need no vacuum: the rows are soon deleted, and
-- nothing reads the visibility map.
with (
  autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1
);

comment on column pawl.idempotency_key.refusal is
  'of a refusal: the event, when it was refused (at), and the invariant that the step would have broken, if that is why; null for a step';

create index idempotency_key_expires_at_idx on pawl.idempotency_key (expires_at);
-- Finds the refusals that are recorded for an instance, which keep the instance from being purged, and the last ones of
-- them. The keys of its steps are found through history, so most keys cost nothing here.
create index idempotency_key_refused_idx on pawl.idempotency_key (tenant_id, instance_id, expires_at)
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

-- The timers of the fast lane, of all tenants and of each, and those of each queue of the slow lane.
create index timer_due_at_idx on pawl.timer (due_at)
  where queued_version is distinct from armed_version;
create index timer_tenant_due_at_idx on pawl.timer (tenant_id, due_at)
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
  h.expires_at, h.error, null::bigint as state_hash, h.memory
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
  constraint callback_secret_has_a_prefix check (secret ~ '^(whsec_|sealed:v1:)')
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.callback.secret is 'sealed by the service if it has a key; null: the deployment''s secret signs';

-- The tenants whose instances are counted.
create index tenant_counted_idx on pawl.tenant (id)
  where limits ?| array['open_instances', 'storage_bytes'];

-- tenant_usage has what a tenant used when it was last counted, and how far the present count has come. There is a row
-- for each tenant that has a limit on it. Creations look at the row, and do not write it.
create table pawl_private.tenant_usage (
  tenant_id pawl.tenant_id not null,
  open_instances bigint,
  storage_bytes bigint,
  next_at timestamptz not null,
  part text not null default 'open',
  after_id uuid not null default '00000000-0000-0000-0000-000000000000',
  after_version bigint not null default 0,
  opened bigint not null default 0,
  stored bigint not null default 0,
  constraint tenant_usage_pkey primary key (tenant_id),
  constraint tenant_usage_part_is_known check (part in ('open', 'instances', 'history'))
)
-- The rows are updated every few seconds.
with (fillfactor = 50);

comment on column pawl_private.tenant_usage.open_instances is 'null before the first count; storage_bytes too, and while it has no limit';
comment on column pawl_private.tenant_usage.next_at is 'when the count goes on, or the next one begins';
comment on column pawl_private.tenant_usage.part is 'of the present count: what is counted now, behind after_id and after_version';
comment on column pawl_private.tenant_usage.opened is 'of the present count, as stored: open_instances and storage_bytes so far';

create index tenant_usage_next_at_idx on pawl_private.tenant_usage (next_at);

-- outcome is the engine's answer to one command. code: 'applied', a refusal, or 'payload-unchecked' or
-- 'context-unchecked' with the JSON Schema that the caller must check first. instance: as it is after an applied
-- command, else as it is; null if there is none to show. actions: the events that it accepts. guards: of a
-- 'guard-rejected' command, the guards that did not hold; of an 'invariant-broken' one, the invariant. schema: that
-- JSON Schema; of 'limit-reached' the limit, see pawl_private.limit_text. timeout_event, timeout_due_at: of an applied command, the next deadline that it left, or null; see pawl.next_timeout.
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
  null::timestamptz as timeout_due_at,
  null::jsonb as memory
where false;

-- move says how a transition leads from state to state; its members are those of workflow_transition.
create type pawl_private.move as (
  internal boolean,
  kept integer,
  rearms text,
  resumes text,
  resumed_state text,
  resumes_timers boolean,
  compensation integer
);

-- next_due is a deadline and its event.
create type pawl_private.next_due as (
  due_at timestamptz,
  event text
);

-- macrostep is a step with the steps that follow it without an event, as SCXML calls it. steps: the instance before the
-- first step (null at its creation) and after each step; made: the event of each of them: null for the one before, the
-- command's for the first, then null or 'done'. instance: after the last step; events, timeouts and timeout_events:
-- those of its state then; tasks: whether entering it starts or undoes something. refusal: null, or why the steps cannot be made; broken: the invariant that one of them would
-- break.
create type pawl_private.macrostep as (
  refusal text,
  broken text,
  steps pawl.instance[],
  made text[],
  instance pawl.instance,
  events text[],
  timeouts interval[],
  timeout_events text[],
  tasks boolean
);

-- fire_command is a fire as decide sees it. expected, checked and verified: as for pawl.fire. by_timer: whether it is
-- for a timer or a lifetime that is due. by_task: whether it is for what became of a task. principal: what guards and values read as $.actor; null to make it of the
-- actor.
create type pawl_private.fire_command as (
  tenant text,
  event text,
  payload jsonb,
  key text,
  expected text,
  checked text,
  reason text,
  actor text,
  verified boolean,
  by_timer boolean,
  by_task boolean,
  principal jsonb
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
  p_state_hash bigint default null,
  p_memory jsonb default null
) returns pawl.instance
language sql immutable parallel safe
as $$
  select row(
    p_tenant_id, p_id, p_workflow, p_workflow_version, p_state, p_status, p_version, p_context, p_business_key,
    p_business_key_reusable, p_correlation_id, p_parent_id, p_created_at, p_state_changed_at, p_expires_at, p_error, p_state_hash, p_memory)::pawl.instance
$$;
-- +goose StatementEnd

-- is_decision says whether an outcome is recorded for its key; see the domain pawl.decision.
-- +goose StatementBegin
create function pawl_private.is_decision(p_code text) returns boolean
language sql immutable parallel safe
as $$
  select p_code in (
    'applied', 'transition-not-allowed', 'instance-final', 'guard-rejected', 'invariant-broken', 'state-protected',
    'not-cancellable')
$$;
-- +goose StatementEnd

-- fingerprint tells requests under one key apart: the SHA-256 of what a fire asks for, as canonical
-- jsonb text, and of the authenticated subject, whose keys are its own; null if there is none.
-- +goose StatementBegin
create function pawl_private.fingerprint(p_id uuid, p_event text, p_payload jsonb, p_subject text) returns bytea
language sql stable parallel safe
as $$
  select sha256(convert_to(
    jsonb_build_array('fire', p_id, p_event, p_payload)::text || coalesce(p_subject, ''), 'UTF8'))
$$;
-- +goose StatementEnd

-- remembered_deadline is deadline and deadline_event for an instance that has a memory.
-- +goose StatementBegin
create function pawl_private.remembered_deadline(
  p_entered_at timestamptz, p_timeouts interval[], p_timeout_events text[], p_memory jsonb, p_expires_at timestamptz
) returns pawl_private.next_due
language plpgsql stable parallel safe
as $$
declare
  v_next pawl_private.next_due;
begin
  select d.due_at, d.event
  into v_next.due_at, v_next.event
  from (
    select p_entered_at + t.timeout as due_at, t.event, t.place
    from unnest(p_timeouts, p_timeout_events) with ordinality as t (timeout, event, place)
    union all
    select (t.value ->> 'at')::timestamptz, t.key, (t.value ->> 'place')::bigint
    from jsonb_each(p_memory -> 'due') t
  ) d
  where d.due_at > coalesce((p_memory ->> 'at')::timestamptz, '-infinity')
  order by d.due_at, d.place
  limit 1;
  if p_expires_at < v_next.due_at or v_next.due_at is null then
    v_next.due_at := p_expires_at;
    v_next.event := case when p_expires_at is not null then 'ttl' end;
  end if;
  return v_next;
end
$$;
-- +goose StatementEnd

-- deadline is the next deadline of an instance that entered its state at p_entered_at, or null. Deadlines that had
-- passed before the last internal step do not count: that step left them as they were, late or refused.
-- +goose StatementBegin
create function pawl_private.deadline(
  p_entered_at timestamptz, p_timeouts interval[], p_memory jsonb, p_expires_at timestamptz
) returns timestamptz
language sql stable parallel safe
as $$
  select case
    when p_memory is null then least(p_entered_at + p_timeouts[1], p_expires_at)
    else (pawl_private.remembered_deadline(p_entered_at, p_timeouts, null, p_memory, p_expires_at)).due_at
  end
$$;
-- +goose StatementEnd

-- deadline_event is the event of that deadline, or null. If a timeout and the lifetime are due at the same
-- time, the timeout comes first.
-- +goose StatementBegin
create function pawl_private.deadline_event(
  p_entered_at timestamptz, p_timeouts interval[], p_timeout_events text[], p_memory jsonb, p_expires_at timestamptz
) returns text
language sql stable parallel safe
as $$
  select case
    when p_memory is not null then
      (pawl_private.remembered_deadline(p_entered_at, p_timeouts, p_timeout_events, p_memory, p_expires_at)).event
    when p_entered_at + p_timeouts[1] <= p_expires_at or p_expires_at is null then p_timeout_events[1]
    else 'ttl'
  end
$$;
-- +goose StatementEnd

-- The planner inlines functions in language sql, and each session pays for that when it plans its first
-- call. So functions that few calls need are in PL/pgSQL, which a session parses only when it calls them.

-- matching returns the name under which a state accepts an event: the event itself, or the longest pattern that fits
-- it.
-- Returns: the event if there is none
-- +goose StatementBegin
create function pawl_private.matching(p_event text, p_events text[], p_patterns text[]) returns text
language plpgsql immutable parallel safe
as $$
declare
  v_pattern text;
begin
  if p_event = any (p_events) or p_event like '%:%' or p_event = 'ttl' then
    return p_event;
  end if;
  foreach v_pattern in array coalesce(p_patterns, '{}') loop
    if starts_with(p_event, left(v_pattern, -1)) then
      return v_pattern;
    end if;
  end loop;
  return p_event;
end
$$;
-- +goose StatementEnd

-- guards lists the guards of an event in a state, as the definition words them.
-- +goose StatementBegin
create function pawl_private.guards(p_workflow text, p_workflow_version integer, p_state text, p_event text)
returns text[]
language plpgsql stable parallel safe
as $$
begin
  return (
    select array_agg(t.guard_text order by t.position)
    from pawl.workflow_state s
    join pawl.workflow_transition t on t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
    where s.workflow = p_workflow
      and s.workflow_version = p_workflow_version
      and s.state = p_state
      and t.event = pawl_private.matching(p_event, s.events, s.patterns)
      and t.resumed_state is null);
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
    where t.workflow = p_workflow and t.workflow_version = p_workflow_version and (t.event = p_event or t.event like '%*' and starts_with(p_event, left(t.event, -1))));
end
$$;
-- +goose StatementEnd

-- principal is what guards and values read as $.actor.
-- p_verified: whether the actor is who the service has authenticated; null for a SQL caller, who is its session's user
-- +goose StatementBegin
create function pawl_private.principal(p_actor text, p_verified boolean, p_by_timer boolean) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object(
    'subject', case when p_by_timer then 'timer' when p_verified is null then session_user::text else p_actor end,
    'scopes', '[]'::jsonb, 'roles', '[]'::jsonb)
    || case when p_verified = false then '{"verified": false}' else '{}'::jsonb end;
end
$$;
-- +goose StatementEnd

-- document is what guards and values read. p_event: the command's; 'timeout' of a timer or lifetime; null at a creation.
-- +goose StatementBegin
create function pawl_private.document(
  p_instance pawl.instance, p_payload jsonb, p_now timestamptz, p_event text, p_principal jsonb
) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return jsonb_build_object(
    'context', p_instance.context,
    'payload', p_payload,
    'now', pawl_private.rfc3339(p_now),
    'event', p_event,
    'actor', p_principal,
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

-- principal_of is principal for a command.
-- +goose StatementBegin
create function pawl_private.principal_of(p_command pawl_private.fire_command) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return coalesce(
    p_command.principal, pawl_private.principal(p_command.actor, p_command.verified, p_command.by_timer));
end
$$;
-- +goose StatementEnd

-- document_of is document for a command.
-- +goose StatementBegin
create function pawl_private.document_of(
  p_instance pawl.instance, p_command pawl_private.fire_command, p_now timestamptz
) returns jsonb
language plpgsql stable parallel safe
as $$
begin
  return pawl_private.document(
    p_instance, p_command.payload, p_now, case when p_command.by_timer then 'timeout' else p_command.event end,
    pawl_private.principal_of(p_command));
end
$$;
-- +goose StatementEnd

-- uncommanded stands for the command where no caller has sent one: at a creation, and in a migration. by_timer: whether it leaves a
-- sliding lifetime as it is.
-- +goose StatementBegin
create function pawl_private.uncommanded(p_principal jsonb, p_reason text, p_by_timer boolean default false)
returns pawl_private.fire_command
language sql immutable parallel safe
as $$
  select row(null, null, '{}', '', '*', '*', p_reason, null, null, p_by_timer, false, p_principal)::pawl_private.fire_command
$$;
-- +goose StatementEnd

-- last_step_at is when an instance made its last step.
-- +goose StatementBegin
create function pawl_private.last_step_at(p_instance pawl.instance) returns timestamptz
language plpgsql stable parallel safe
as $$
begin
  return greatest(p_instance.state_changed_at, (p_instance.memory ->> 'at')::timestamptz);
end
$$;
-- +goose StatementEnd

-- slid_at is when a sliding lifetime last began anew.
-- +goose StatementBegin
create function pawl_private.slid_at(p_instance pawl.instance) returns timestamptz
language plpgsql stable parallel safe
as $$
begin
  return coalesce((p_instance.memory ->> 'slid_at')::timestamptz, p_instance.state_changed_at);
end
$$;
-- +goose StatementEnd

-- was_due says whether a timer's step was due at the time of the step before it already.
-- +goose StatementBegin
create function pawl_private.was_due(p_before pawl.instance, p_payload jsonb) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return (p_payload ->> 'due_at')::timestamptz <= pawl_private.last_step_at(p_before);
end
$$;
-- +goose StatementEnd

-- circles says whether a timer that was due at once already would be the hundredth in a row.
-- +goose StatementBegin
create function pawl_private.circles(p_instance pawl.instance, p_payload jsonb) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return (p_instance.memory ->> 'at_once')::integer >= 100 and pawl_private.was_due(p_instance, p_payload);
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

-- context_refusal says why a context cannot be kept, or null. p_nests: whether it may be nested deeper than before.
-- +goose StatementBegin
create function pawl_private.context_refusal(p_context jsonb, p_nests boolean, p_setting pawl.setting) returns text
language plpgsql immutable parallel safe
as $$
begin
  return case
    when octet_length(p_context::text) > p_setting.context_limit then 'context-too-large'
    when p_nests and pawl_private.is_too_deep(p_context) then 'context-too-deep'
  end;
end
$$;
-- +goose StatementEnd

-- was_left says whether an instance last left a compound state from the given state. p_memory: the instance's
-- +goose StatementBegin
create function pawl_private.was_left(p_memory jsonb, p_compound text, p_state text) returns boolean
language plpgsql immutable parallel safe
as $$
begin
  return p_memory #>> array['left', p_compound, 'state'] = p_state;
end
$$;
-- +goose StatementEnd

-- lies_within says whether an atomic state is another one or lies within it. p_around: '' for any
-- +goose StatementBegin
create function pawl_private.lies_within(p_workflow text, p_workflow_version integer, p_state text, p_around text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return p_around = '' or exists (
    select from pawl.workflow_state s
    where s.workflow = p_workflow and s.workflow_version = p_workflow_version and s.state = p_state
      and p_around = any (s.lineage));
end
$$;
-- +goose StatementEnd

-- choose picks the transition that an event takes from a state: the first by position whose guard holds on the document
-- {context, payload, instance, now, event, actor}. A guard that is false or unknown does not hold.
--
-- If a candidate has a payload schema that the caller has not checked, it is chosen without its
-- guard, with unchecked true and no context. So a payload is refused for its shape before a guard
-- reads it. p_checked: the checksum of the schema that was checked, or '*' for any.
-- p_memory: the instance's, which says what a transition resumes.
-- p_bypass: null; else guards are passed over, and it is the state that the transition must lead to or into, or '' for any.
-- Returns: one row, or none if no guard holds; context: as the transition leaves it; nests: whether it may be
--          nested deeper than before; guard: its text in the definition, or null
-- +goose StatementBegin
create function pawl_private.choose(
  p_workflow text, p_workflow_version integer, p_state text, p_event text,
  p_document jsonb, p_checked text, p_memory jsonb, p_bypass text default null
) returns table (
  target text, unchecked boolean, context jsonb, nests boolean, payload_schema jsonb, guard text, move pawl_private.move
)
language sql stable parallel safe
as $$
  select
    t.target,
    t.unchecked,
    case
      when t.unchecked then null
      when t.assign_payload then p_document -> 'context' || (p_document -> 'payload')
      when t.assign_compiled is not null then pawl_private.assigned(p_document, t.assign_compiled)
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
    t.guard_text,
    row(t.internal, t.kept, t.rearms, t.resumes, t.resumed_state, t.resumes_timers, t.compensation)::pawl_private.move
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
        when p_bypass is not null then pawl_private.lies_within(w.workflow, w.workflow_version, w.target, p_bypass)
        when u.unchecked then true
        when w.guard is not null then jsonb_path_match(p_document, w.guard, '{}', true)
        when w.guard_compiled is not null then pawl_private.holds(p_document, w.guard_compiled)
        else true
      end
      and (
        w.resumed_state is null or w.resumed_state = w.source
        or pawl_private.was_left(p_memory, w.resumes, w.resumed_state))
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

-- broken_invariant returns the first invariant of a state that an instance in it would break, or null. What is unknown
-- breaks it.
-- p_invariants: as in workflow_state
-- Raises:  as pawl_private.holds
-- +goose StatementBegin
create function pawl_private.broken_invariant(p_invariants jsonb, p_instance pawl.instance) returns text
language plpgsql stable
as $$
declare
  v_document jsonb := pawl_private.document(p_instance, '{}', p_instance.state_changed_at, null, null);
begin
  for v_n in 0 .. jsonb_array_length(p_invariants) - 1 loop
    if pawl_private.holds(v_document, p_invariants -> v_n -> 'guard') is not true then
      return p_invariants -> v_n ->> 'text';
    end if;
  end loop;
  return null;
end
$$;
-- +goose StatementEnd

-- armed reads a timer of a state that is entered at p_at: when it is due.
-- p_timer: as in workflow_state.timers. p_document: what its value reads
-- Returns: null if its value selects nothing; else {at, place}, and for one that repeats every, from, n and zone: it is
--          due n times every after from
-- Raises:  22023 with the pointer if the value is no time, or no duration
-- +goose StatementBegin
create function pawl_private.armed(p_timer jsonb, p_place integer, p_document jsonb, p_at timestamptz) returns jsonb
language plpgsql stable
as $$
declare
  v_pointer text;
  v_value jsonb;
  v_duration interval := pawl_private.duration(p_timer #>> '{in,constant}');
  v_due_at timestamptz;
begin
  if v_duration is null then
    v_value := pawl_private.value(p_document, coalesce(p_timer #> '{in,value}', p_timer #> '{at,value}'));
    v_pointer := coalesce(p_timer #>> '{in,value,1}', p_timer #>> '{at,value,1}');
    if v_value is null or v_value = 'null' then
      return null;
    elsif p_timer ? 'at' then
      v_due_at := pawl_private.time_of(v_value, v_pointer);
    else
      v_duration := case jsonb_typeof(v_value)
        when 'string' then pawl_private.duration(v_value #>> '{}')
        when 'number' then case when abs((v_value #>> '{}')::numeric) <= 315360000 then make_interval(secs => (v_value #>> '{}')::double precision) end
      end;
      if v_duration is null then
        perform pawl_private.fault(v_pointer, format(
          '%s is no duration of at most ten years; write one like "90s" or "P3D", or a number of seconds', left(v_value::text, 100)));
      elsif (p_timer -> 'every')::boolean and v_duration < interval '1 second' then
        perform pawl_private.fault(v_pointer, format('%s is too short for every, whose least is 1s', left(v_value::text, 100)));
      end if;
    end if;
  end if;
  v_due_at := coalesce(v_due_at, pawl_private.moved(p_at, greatest(v_duration, interval '0'), p_timer ->> 'zone'));
  return jsonb_build_object('at', pawl_private.rfc3339(v_due_at), 'place', p_place) || case when (p_timer -> 'every')::boolean then
    jsonb_build_object('every', pawl_private.duration_text(v_duration), 'from', pawl_private.rfc3339(p_at), 'n', 1, 'zone', p_timer -> 'zone')
  else '{}' end;
end
$$;
-- +goose StatementEnd

-- duration_text writes a duration so that pawl_private.duration reads it.
-- +goose StatementBegin
create function pawl_private.duration_text(p_duration interval) returns text
language plpgsql immutable parallel safe
as $$
begin
  return format(
    'P%sMT%sS', pawl_private.months_of(p_duration), trim_scale(pawl_private.seconds_of(p_duration)));
end
$$;
-- +goose StatementEnd

-- next_repeat moves a timer that repeats to its first time after p_now. It stays on the grid that began when the state
-- was entered.
-- p_due: as armed returns
-- Returns: the same with the next time; missed: how many times were passed over
-- +goose StatementBegin
create function pawl_private.next_repeat(p_due jsonb, p_now timestamptz, out due jsonb, out missed bigint)
language plpgsql stable
as $$
declare
  v_every interval := pawl_private.duration(p_due ->> 'every');
  v_from timestamptz := (p_due ->> 'from')::timestamptz;
  v_n bigint := (p_due ->> 'n')::bigint;
  v_months integer := pawl_private.months_of(v_every);
  v_seconds numeric := pawl_private.seconds_of(v_every);
  v_at timestamptz;
begin
  if v_every is null then
    return;
  elsif v_months = 0 then
    v_n := greatest(v_n, floor(extract(epoch from p_now - v_from) / v_seconds)::bigint);
  end if;
  loop
    v_n := v_n + 1;
    v_at := pawl_private.moved(
      v_from, make_interval(months => (v_months * v_n)::integer, secs => (v_seconds * v_n)::double precision), p_due ->> 'zone');
    exit when v_at > p_now;
  end loop;
  due := p_due || jsonb_build_object('at', pawl_private.rfc3339(v_at), 'n', v_n);
  missed := v_n - (p_due ->> 'n')::bigint - 1;
end
$$;
-- +goose StatementEnd

-- passed_over is an instance whose repeating timer was refused at p_now: the timer is due at its next time. Other timers
-- are left as they are.
-- +goose StatementBegin
create function pawl_private.passed_over(p_instance pawl.instance, p_event text, p_now timestamptz) returns pawl.instance
language plpgsql stable
as $$
declare
  v_due jsonb := p_instance.memory #> array['due', p_event];
begin
  if v_due ? 'every' then
    p_instance.memory := jsonb_set(
      p_instance.memory, array['due', p_event], (pawl_private.next_repeat(v_due, p_now)).due);
  end if;
  return p_instance;
end
$$;
-- +goose StatementEnd

-- remembered computes the memory of an instance after a step. Its members are left out if there is nothing to
-- remember:
--
--   due      when the armed timers of its state are due, by slot: see armed
--   left     by the path of a compound state that some transition resumes: {state, due}: the atomic state within it
--            that was left last, and the timers that it had then. These have rest, the seconds that were left, instead
--            of at, unless their time is absolute
--   at       the time of the last step, if it was internal and later than the state's
--   slid_at  when the lifetime last began anew, if that is not when the state was entered
--   at_once  how many steps in a row timers have made that were due before the step before them
--
-- p_before: the instance before the step; all null at its creation. p_next: after it, without its memory.
-- p_at: the time of the step
-- Returns: null if there is nothing
-- Raises:  as armed
-- +goose StatementBegin
create function pawl_private.remembered(
  p_before pawl.instance, p_next pawl.instance, p_move pawl_private.move, p_command pawl_private.fire_command,
  p_at timestamptz
) returns jsonb
language plpgsql stable
as $$
declare
  v_source pawl.workflow_state;
  v_target pawl.workflow_state;
  v_due jsonb := '{}';
  v_left jsonb := coalesce(p_before.memory -> 'left', '{}');
  v_result jsonb := '{}';
  v_compound text;
  v_timer jsonb;
  v_one jsonb;
  v_depth integer;
  v_document jsonb;
  v_slid_at timestamptz;
begin
  select s.* into strict v_target
  from pawl.workflow_state s
  where s.workflow = p_next.workflow and s.workflow_version = p_next.workflow_version and s.state = p_next.state;
  if p_before.id is not null then
    select s.* into strict v_source
    from pawl.workflow_state s
    where s.workflow = p_before.workflow and s.workflow_version = p_before.workflow_version and s.state = p_before.state;
    foreach v_compound in array coalesce(v_source.remembered, '{}') loop
      v_depth := array_position(v_source.lineage, v_compound);
      if v_depth > p_move.kept then
        v_left := v_left - v_compound;
        if not v_source.done then
          v_left := v_left || jsonb_build_object(v_compound, jsonb_build_object(
            'state', v_source.state,
            'due', (
              select jsonb_object_agg(t ->> 'slot', case
                when t ? 'at' then d.one
                else d.one - 'at' || jsonb_build_object('rest', extract(epoch from (d.one ->> 'at')::timestamptz - p_at))
              end)
              from jsonb_array_elements(v_source.timers) t
              cross join lateral (select p_before.memory #> array['due', t ->> 'slot'] as one) d
              where d.one is not null and array_position(v_source.lineage, t ->> 'owner') >= v_depth
                and not (p_command.by_timer and p_command.event is not distinct from t ->> 'slot')
            )));
        end if;
      end if;
    end loop;
  end if;

  for v_n in 0 .. coalesce(jsonb_array_length(v_target.timers), 0) - 1 loop
    v_timer := v_target.timers -> v_n;
    v_depth := array_position(v_target.lineage, v_timer ->> 'owner');
    v_one := null;
    if v_depth <= p_move.kept and v_timer ->> 'owner' is distinct from p_move.rearms then
      -- Its state was not entered: it goes on.
      v_one := p_before.memory #> array['due', v_timer ->> 'slot'];
      if p_command.by_timer and p_command.event = v_timer ->> 'slot' then
        v_one := case when (v_timer -> 'every')::boolean then (pawl_private.next_repeat(v_one, p_at)).due end;
      end if;
      v_one := v_one || jsonb_build_object('place', v_n);
    elsif p_move.resumes_timers and p_move.resumed_state is not null
      and v_depth >= array_position(v_target.lineage, p_move.resumes) then
      v_one := v_left #> array[p_move.resumes, 'due', v_timer ->> 'slot'];
      if v_one ? 'rest' then
        v_one := v_one - 'rest' || jsonb_build_object(
          'at', pawl_private.rfc3339(p_at + make_interval(secs => (v_one ->> 'rest')::double precision)));
        if v_one ? 'every' then
          -- Its grid begins anew with the time that was left.
          v_one := v_one || jsonb_build_object('n', 0, 'from', v_one -> 'at');
        end if;
      end if;
    else
      v_document := coalesce(v_document, pawl_private.document_of(p_next, p_command, p_at));
      v_one := pawl_private.armed(v_timer, v_n, v_document, p_at);
    end if;
    if v_one is not null then
      v_due := v_due || jsonb_build_object(v_timer ->> 'slot', v_one);
    end if;
  end loop;

  if v_due <> '{}' then
    v_result := jsonb_build_object('due', v_due);
  end if;
  if v_left <> '{}' and p_next.status = 'active' then
    v_result := v_result || jsonb_build_object('left', v_left);
  end if;
  if p_next.state_changed_at <> p_at then
    v_result := v_result || jsonb_build_object('at', pawl_private.rfc3339(p_at));
  end if;
  if v_target.ttl_slides then
    v_slid_at := case when p_command.by_timer then pawl_private.slid_at(p_before) else p_at end;
    if v_slid_at <> p_next.state_changed_at then
      v_result := v_result || jsonb_build_object('slid_at', pawl_private.rfc3339(v_slid_at));
    end if;
  end if;
  if p_command.by_timer and pawl_private.was_due(p_before, p_command.payload) then
    v_result := v_result || jsonb_build_object('at_once', coalesce((p_before.memory ->> 'at_once')::integer, 0) + 1);
  end if;
  return nullif(v_result, '{}');
end
$$;
-- +goose StatementEnd

-- with_memory is the instance after a step with what it must remember.
-- +goose StatementBegin
create function pawl_private.with_memory(
  p_before pawl.instance, p_next pawl.instance, p_move pawl_private.move, p_command pawl_private.fire_command,
  p_at timestamptz
) returns pawl.instance
language plpgsql stable
as $$
begin
  p_next.memory := pawl_private.remembered(p_before, p_next, p_move, p_command, p_at);
  return p_next;
end
$$;
-- +goose StatementEnd

-- entered_memory is the memory of an instance that is in a state without having come from another.
-- +goose StatementBegin
create function pawl_private.entered_memory(
  p_instance pawl.instance, p_command pawl_private.fire_command, p_now timestamptz
) returns jsonb
language plpgsql stable
as $$
begin
  return pawl_private.remembered(
    null, p_instance, row(false, 0, null, null, null, false, null)::pawl_private.move, p_command, p_now);
end
$$;
-- +goose StatementEnd

-- complete_macrostep takes the transitions of an instance that need no event, after it has made a step, one after the
-- other, until no guard holds. Each is a step of its own, at the same time. Their guards and assigns see the command's
-- payload, event and actor, too. In a final state within another state they are the done of that one.
-- p_before: the instance before the step; null at its creation. p_command: see uncommanded. p_at: the time of the step
-- Returns: the macrostep; its refusal is 'always-loop' after 100 such transitions, 'invariant-broken' with the
--          invariant that a step would break, 'context-too-large' or 'context-too-deep'
-- +goose StatementBegin
create function pawl_private.complete_macrostep(
  p_before pawl.instance, p_instance pawl.instance, p_command pawl_private.fire_command, p_now timestamptz,
  p_at timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_instance pawl.instance := p_instance;
  v_last pawl.instance;
  v_state pawl.workflow_state;
  v_next record;
begin
  v_macrostep.steps := array[p_before, p_instance];
  v_macrostep.made := array[null, p_command.event];
  loop
    select s.* into strict v_state
    from pawl.workflow_state s
    where s.workflow = v_instance.workflow
      and s.workflow_version = v_instance.workflow_version
      and s.state = v_instance.state;
    v_macrostep.events := v_state.events;
    v_macrostep.timeouts := v_state.timeouts;
    v_macrostep.timeout_events := v_state.timeout_events;
    v_macrostep.tasks := v_state.tasks;
    if v_last.id is not null then
      if v_instance.memory is not null or v_state.timers is not null or v_next.remembered is not null
        or v_state.ttl_slides and p_command.by_timer then
        v_instance := pawl_private.with_memory(v_last, v_instance, v_next.move, p_command, p_at);
      end if;
      v_macrostep.steps[cardinality(v_macrostep.steps)] := v_instance;
    end if;
    if v_state.invariants is not null then
      v_macrostep.broken := pawl_private.broken_invariant(v_state.invariants, v_instance);
      if v_macrostep.broken is not null then
        v_macrostep.refusal := 'invariant-broken';
        return v_macrostep;
      end if;
    end if;
    exit when not v_state.eventless;
    select t.target, t.context, t.nests, t.guard, t.move, s.status, s.state_hash, v_state.remembered
    into v_next
    from pawl_private.choose(
      p_workflow => v_instance.workflow, p_workflow_version => v_instance.workflow_version,
      p_state => v_instance.state, p_event => case when v_state.done then ':done' else ':always' end,
      p_document => pawl_private.document_of(v_instance, p_command, p_now), p_checked => '*',
      p_memory => v_instance.memory) t
    join pawl.workflow_state s
      on s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = t.target;
    exit when not found;
    if cardinality(v_macrostep.steps) > 101 then
      v_macrostep.refusal := 'always-loop';
      return v_macrostep;
    end if;
    v_macrostep.refusal := pawl_private.context_refusal(v_next.context, v_next.nests, p_setting);
    if v_macrostep.refusal is not null then
      return v_macrostep;
    end if;
    v_last := v_instance;
    if v_next.status = 'failed' then
      v_instance.error := pawl_private.failure(
        p_command.event, v_instance.state, v_next.guard, nullif(p_command.reason, ''));
    end if;
    v_instance.state := v_next.target;
    v_instance.state_hash := v_next.state_hash;
    v_instance.status := v_next.status;
    v_instance.context := v_next.context;
    v_instance.version := v_instance.version + 1;
    v_instance.state_changed_at := p_at;
    v_macrostep.steps := v_macrostep.steps || v_instance;
    v_macrostep.made := v_macrostep.made || case when v_state.done then 'done' end;
  end loop;
  v_macrostep.instance := v_instance;
  return v_macrostep;
end
$$;
-- +goose StatementEnd

-- begin_macrostep is complete_macrostep for a new instance. First it runs the assigns of the initial state and the
-- entry assigns of the states that the instance starts in, and arms its timers.
-- p_entered: whether the assigns were made
-- +goose StatementBegin
create function pawl_private.begin_macrostep(
  p_instance pawl.instance, p_principal jsonb, p_reason text, p_now timestamptz, p_setting pawl.setting,
  p_entered boolean default false
) returns pawl_private.macrostep
language plpgsql stable
as $$
declare
  v_command pawl_private.fire_command := pawl_private.uncommanded(p_principal, p_reason);
  v_instance pawl.instance := p_instance;
  v_macrostep pawl_private.macrostep;
  v_entry record;
begin
  if not p_entered then
    select t.context, t.nests
    into v_entry
    from pawl_private.choose(
      p_workflow => p_instance.workflow, p_workflow_version => p_instance.workflow_version,
      p_state => p_instance.state, p_event => ':initial',
      p_document => pawl_private.document_of(p_instance, v_command, p_now), p_checked => '*', p_memory => null) t;
    if found then
      v_macrostep.refusal := pawl_private.context_refusal(v_entry.context, v_entry.nests, p_setting);
      if v_macrostep.refusal is not null then
        return v_macrostep;
      end if;
      v_instance.context := v_entry.context;
    end if;
  end if;
  v_instance.memory := pawl_private.entered_memory(v_instance, v_command, p_now);
  return pawl_private.complete_macrostep(
    p_before => null, p_instance => v_instance, p_command => v_command, p_now => p_now, p_at => p_now,
    p_setting => p_setting);
end
$$;
-- +goose StatementEnd

-- decide makes the decision of a fire. It only reads. The planner puts it in place, and each call makes its expressions
-- ready, whether they are evaluated or not; so what few commands need stands in functions of its own.
--
-- p_instance: all of its columns are null if the instance does not
-- exist. Refusals are checked in the order of the contract: not found, precondition, size, event, guard. If the
-- command's key was taken while the call waited, the code is 'seen' instead of a refusal that is not recorded.
-- p_bypass: as for choose
-- Returns: one row. code: the outcome's. from_state: the state before. instance: after the last step if applied, else
--          as it is; null if there is none. due_at, timeout_event: its next deadline, if applied; null if none.
--          was_timed: whether it had a deadline before. guards: of 'guard-rejected', those that did not hold; of
--          'invariant-broken', the invariant, which is also in invariant. payload_schema: with 'payload-unchecked'.
--          at: the time of the step. internal: whether it left no state. stays: whether, besides, no other step followed; then
--          its timers are as they were, except the one that fired and, if rearmed, those that the transition armed anew. steps,
--          made: those of the macrostep if others may have followed, else null. principal: what is kept in history. tasks:
--          whether leaving or entering a state, or the transition, starts, ends or undoes something
-- +goose StatementBegin
create function pawl_private.decide(
  p_now timestamptz, p_setting pawl.setting, p_instance pawl.instance, p_command pawl_private.fire_command,
  p_bypass text default null
) returns table (
  code text, from_state text, instance pawl.instance, actions text[], due_at timestamptz, timeout_event text,
  was_timed boolean, guards text[], invariant text, payload_schema jsonb, at timestamptz, internal boolean, stays boolean, rearmed boolean,
  steps pawl.instance[], made text[], principal jsonb, tasks boolean, compensation integer
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
        case
          when (g.next).memory is null then
            pawl_private.deadline(
              (g.next).state_changed_at, coalesce((s.macrostep).timeouts, s.timeouts), null, n.expires_at)
          else (g.deadline).due_at
        end
    end,
    case
      when coalesce(((s.macrostep).instance).status, s.status) = 'active' then
        case
          when (g.next).memory is not null then (g.deadline).event
          else
            pawl_private.deadline_event(
              (g.next).state_changed_at, coalesce((s.macrostep).timeouts, s.timeouts),
              coalesce((s.macrostep).timeout_events, s.timeout_events), null, n.expires_at)
        end
    end,
    f.timeouts <> '{}' or i.expires_at is not null or f.timers is not null,
    case
      when o.code = 'invariant-broken' then array[o.broken]
      when o.code = 'guard-rejected' then pawl_private.guards(i.workflow, i.workflow_version, i.state, c.event)
    end,
    case when o.code = 'invariant-broken' then o.broken end,
    case when t.unchecked then t.payload_schema end,
    n.at,
    o.applied and (t.move).internal,
    o.applied and (t.move).internal and coalesce(cardinality((s.macrostep).steps) = 2, true),
    (t.move).rearms is not null,
    case when o.applied then (s.macrostep).steps end,
    case when o.applied then (s.macrostep).made end,
    case when f.reads_actor then pawl_private.principal_of((c)::pawl_private.fire_command) end,
    o.applied and (f.tasks or coalesce((s.macrostep).tasks, s.tasks) or (t.move).compensation is not null),
    (t.move).compensation
  from (select (p_command).* offset 0) c
  cross join lateral (select (p_instance).* offset 0) i
  left join lateral (
    select
      w.events, w.patterns, w.timeouts, w.timers, w.remembered, w.ttl_slides, w.require_if_match, w.reads_instance, w.reads_actor,
      w.tasks
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
      when octet_length(c.payload::text) > p_setting.payload_limit and not c.by_task then 'payload-too-large'
      -- The service has checked the depth of what it gets.
      when c.checked = '*' and pawl_private.is_too_deep(c.payload) then 'malformed-request'
      when (c.event like '%:%' or c.event = 'ttl') <> (c.by_timer or c.by_task) or c.event = 'done' or c.event like '%*%' then 'unknown-event'
      when c.by_timer and i.memory is not null and pawl_private.circles((i)::pawl.instance, c.payload) then 'timer-loop'
    end as refusal
    offset 0
  ) e
  -- The document is built once. Inlined, choose would build it for each guard and assign.
  cross join lateral (
    select case
      when e.refusal is not null then null
      when f.reads_instance then
        pawl_private.document_of((i)::pawl.instance, (c)::pawl_private.fire_command, p_now)
      else jsonb_build_object('context', i.context, 'payload', c.payload)
    end as document,
    case when f.patterns is null then c.event else pawl_private.matching(c.event, f.events, f.patterns) end as name
    offset 0
  ) d
  left join lateral pawl_private.choose(
    p_workflow => i.workflow,
    p_workflow_version => i.workflow_version,
    p_state => case when e.refusal is null and i.status = 'active' then i.state end,
    p_event => d.name,
    p_document => d.document,
    p_checked => nullif(c.checked, ''),
    p_memory => i.memory,
    p_bypass => p_bypass
  ) t on true
  cross join lateral (
    select
      a.at,
      -- A sliding lifetime begins anew with each command, and keeps its length.
      case when f.ttl_slides and not c.by_timer then a.at + (i.expires_at - a.slid_at) else i.expires_at end as expires_at
    from (
      select
        case
          when i.memory is null then greatest(p_now, i.state_changed_at)
          else greatest(p_now, pawl_private.last_step_at((i)::pawl.instance))
        end as at,
        case when i.memory is null then i.state_changed_at else pawl_private.slid_at((i)::pawl.instance) end as slid_at
      offset 0
    ) a
  ) n
  left join lateral (
    select
      w.status, w.events, w.timeouts, w.timeout_events, w.tasks, x.next,
      case when w.eventless or w.invariants is not null then
        pawl_private.complete_macrostep(
          (i)::pawl.instance, x.next, (c)::pawl_private.fire_command, p_now, n.at, p_setting)
      end as macrostep
    from pawl.workflow_state w
    cross join lateral (
      select pawl_private.instance_row(
        p_tenant_id => i.tenant_id, p_id => i.id, p_workflow => i.workflow,
        p_workflow_version => i.workflow_version, p_state => t.target, p_status => w.status,
        p_version => i.version + 1, p_context => t.context, p_business_key => i.business_key,
        p_business_key_reusable => i.business_key_reusable,
        p_correlation_id => i.correlation_id, p_parent_id => i.parent_id, p_created_at => i.created_at,
        p_state_changed_at => case when (t.move).internal then i.state_changed_at else n.at end,
        p_expires_at => n.expires_at, p_state_hash => w.state_hash,
        p_error => case
          when w.status = 'failed' then
            pawl_private.failure(c.event, i.state, t.guard, nullif(c.reason, ''))
          else i.error
        end) as next
      offset 0
    ) r
    -- Most instances have nothing to remember.
    cross join lateral (
      select case
        when i.memory is not null or w.timers is not null or f.remembered is not null or (t.move).internal
          or w.ttl_slides and c.by_timer then
          pawl_private.with_memory((i)::pawl.instance, r.next, t.move, (c)::pawl_private.fire_command, n.at)
        else r.next
      end as next
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
      when d.name = any (f.events) then 'guard-rejected'
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
      s.status is not null and (s.macrostep).refusal is null as applied,
      (s.macrostep).broken as broken
    offset 0
  ) o
  cross join lateral (
    select
      g.next,
      case when (g.next).memory is not null then
        pawl_private.remembered_deadline(
          (g.next).state_changed_at, coalesce((s.macrostep).timeouts, s.timeouts),
          coalesce((s.macrostep).timeout_events, s.timeout_events), (g.next).memory, n.expires_at)
      end as deadline
    from (select coalesce((s.macrostep).instance, s.next) as next offset 0) g
    offset 0
  ) g
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
    case when not r.same then 'idempotency-key-reuse' when k.refusal ? 'invariant' then 'invariant-broken' else k.decision end::text,
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
      case
        when k.refusal ? 'invariant' then array[k.refusal ->> 'invariant']
        else pawl_private.guards(a.workflow, a.workflow_version, a.state, c.event)
      end
    end,
    null::jsonb,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline_event(a.state_changed_at, s.timeouts, s.timeout_events, a.memory, a.expires_at)
    end,
    case when k.decision = 'applied' and a.status = 'active' then
      pawl_private.deadline(a.state_changed_at, s.timeouts, a.memory, a.expires_at)
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
-- p_steps, p_made: as of pawl_private.macrostep. p_kind, p_payload, p_internal, p_principal: of the first step.
-- Writes:  history
-- +goose StatementBegin
create function pawl_private.append_history(
  p_steps pawl.instance[], p_made text[], p_kind text, p_at timestamptz, p_payload jsonb, p_internal boolean, p_principal jsonb,
  p_actor text, p_reason text, p_key text, p_correlation_id text, p_traceparent text, p_database_user text default null
) returns void
language plpgsql volatile -- As instance_retains: it is called for each instance of a migration.
as $$
begin
  insert into pawl.history (
    tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
    context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at, entered_at, internal, principal, memory,
    database_user)
  select
    s.tenant_id, s.id, s.version, s.workflow, s.workflow_version,
    case when n = 2 then p_kind else 'transition' end,
    p_made[n],
    (p_steps[n - 1]).state,
    s.state, s.status, s.context,
    case when n = 2 then p_payload end,
    s.expires_at, s.error, p_actor, nullif(p_reason, ''), nullif(p_key, ''),
    coalesce(nullif(p_correlation_id, ''), s.correlation_id), nullif(p_traceparent, ''), p_at,
    nullif(s.state_changed_at, p_at), case when n = 2 and p_internal then true end, case when n = 2 then p_principal end, s.memory,
    p_database_user
  from generate_series(2, cardinality(p_steps)) n
  cross join lateral (select (p_steps[n]).*) s
  order by n;
end
$$;
-- +goose StatementEnd

-- is_disabled says whether a tenant is disabled. Then the workers leave its rows alone. The planner inlines it.
-- +goose StatementBegin
create function pawl_private.is_disabled(p_tenant text) returns boolean
language sql stable parallel safe
as $$ select exists (select from pawl.tenant t where t.id = p_tenant and t.disabled_at is not null) $$;
-- +goose StatementEnd

-- limit_text words a limit that is reached: a JSON object with its `name`, the `limit`, and how much is `used`.
-- +goose StatementBegin
create function pawl_private.limit_text(p_limit jsonb) returns text
language sql immutable parallel safe
as $$
  select format('the tenant has %s %s, and may have %s', p_limit ->> 'used', p_limit ->> 'name', p_limit ->> 'limit')
$$;
-- +goose StatementEnd

-- creation_limits returns the limits because of which tenants may create no instance, as of their last count: a JSON
-- object with the limit of each such tenant; null if there is none.
-- +goose StatementBegin
create function pawl_private.creation_limits(p_tenants text[]) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pawl_private.tenant_usage) then
    return null; -- As in most deployments.
  end if;
  return (
    select jsonb_object_agg(u.tenant_id, l.reached)
    from pawl_private.tenant_usage u
    join pawl.tenant t on t.id = u.tenant_id
    cross join lateral (
      select jsonb_build_object('name', c.name, 'limit', t.limits -> c.name, 'used', c.used) as reached
      from (values ('open_instances', u.open_instances), ('storage_bytes', u.storage_bytes)) as c (name, used)
      where c.used >= (t.limits ->> c.name)::numeric
      limit 1
    ) l
    where u.tenant_id = any (p_tenants)
  );
end
$$;
-- +goose StatementEnd

-- problem describes an outcome other than 'applied': an object with the code and the detail that HTTP answers with, and
-- what the caller needs to go on.
-- +goose StatementBegin
create function pawl_private.problem(p_outcome pawl.outcome, p_id uuid, p_event text, p_expected bigint) returns jsonb
language plpgsql stable
as $$
declare
  v_instance pawl.instance := p_outcome.instance;
begin
  return (
    select jsonb_strip_nulls(jsonb_build_object(
      'code', c.problem,
      'detail', case p_outcome.code
        when 'limit-reached' then pawl_private.limit_text(p_outcome.schema)
        else format(c.message, p_event, v_instance.state, v_instance.version, v_instance.id)
      end,
      'instance_id', case p_outcome.code when 'instance-not-found' then p_id else v_instance.id end,
      'state', v_instance.state,
      'instance_status', v_instance.status,
      'version', v_instance.version,
      'expected', p_expected,
      'event', p_event,
      'allowed_events', p_outcome.actions,
      'guards', p_outcome.guards))
      || case p_outcome.code when 'limit-reached' then p_outcome.schema else '{}' end
    from pawl_private.condition c
    where c.outcome = p_outcome.code);
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
  v_problem jsonb := pawl_private.problem(p_outcome, p_id, p_event, p_expected);
begin
  perform pawl_private.raise_condition(
    p_outcome => p_outcome.code, p_message => v_problem ->> 'detail', p_detail => v_problem - 'code' - 'detail');
end
$$;
-- +goose StatementEnd

-- refusal is what is recorded of a refusal beside its code. p_event: null for an override to a state and for a cancel;
-- p_invariant: null if none was broken. The planner inlines it.
-- +goose StatementBegin
create function pawl_private.refusal(p_event text, p_at timestamptz, p_invariant text) returns jsonb
language sql stable
as $$ select jsonb_strip_nulls(jsonb_build_object('event', p_event, 'at', p_at, 'invariant', p_invariant)) $$;
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

-- simulated makes the instance of a simulation. p_position: as for pawl.simulate.
-- Returns: null if the workflow has no such version or state
-- Raises:  PW400 malformed-request
-- +goose StatementBegin
create function pawl_private.simulated(
  p_workflow text, p_workflow_version integer, p_position jsonb, p_now timestamptz
) returns pawl.instance
language plpgsql stable
as $$
declare
  v_instance pawl.instance;
  v_context jsonb := p_position -> 'context';
begin
  perform pawl_private.refuse_malformed(case
    when jsonb_typeof(v_context) is distinct from 'object' then 'the context must be a JSON object'
    when coalesce((p_position ->> 'version')::numeric, 1) not between 1 and 1000000000000000 then 'the version must be from 1 to 10^15'
  end);
  select (pawl_private.instance_row(
    p_tenant_id => 'simulation', p_id => '00000000-0000-0000-0000-000000000000', p_workflow => s.workflow,
    p_workflow_version => s.workflow_version, p_state => s.state, p_status => s.status,
    p_version => coalesce((p_position ->> 'version')::bigint, 1),
    p_context => case when p_position ->> 'state' is null then coalesce(w.context_default, '{}') || v_context else v_context end,
    p_created_at => coalesce((p_position ->> 'created_at')::timestamptz, p_now),
    p_state_changed_at => coalesce((p_position ->> 'state_changed_at')::timestamptz, p_now),
    p_expires_at => coalesce((p_position ->> 'expires_at')::timestamptz, p_now + w.ttl),
    p_state_hash => s.state_hash, p_memory => nullif(p_position -> 'memory', 'null'))).*
  into v_instance
  from pawl.workflow w
  join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version
  where w.name = p_workflow and w.version = p_workflow_version and s.state = coalesce(p_position ->> 'state', w.initial);
  if v_instance.id is not null and p_position ? 'state' and not p_position ? 'state_changed_at' then
    -- It begins in this state, as if it had been entered now.
    v_instance.memory := pawl_private.entered_memory(v_instance, pawl_private.uncommanded(null, null), p_now);
  end if;
  return v_instance;
end
$$;
-- +goose StatementEnd

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
    select u.due_at, u.event, u.position::integer as tried
    from (
      select t.due_at, t.event, row_number() over (order by t.due_at, t.place) as position
      from (
        select p_instance.state_changed_at + u.timeout as due_at, u.event, u.place
        from pawl.workflow_state s
        cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as u (timeout, event, place)
        where s.workflow = p_instance.workflow
          and s.workflow_version = p_instance.workflow_version
          and s.state = p_instance.state
        union all
        select (d.value ->> 'at')::timestamptz, d.key, (d.value ->> 'place')::bigint
        from jsonb_each(p_instance.memory -> 'due') d
      ) t
    ) u
    where u.position > p_tried
    union all
    select p_instance.expires_at, 'ttl', null
    where p_instance.expires_at is not null
  ) d
  where p_instance.status = 'active'
  order by d.due_at, d.tried
  limit 1
$$;
-- +goose StatementEnd

-- timer_payload is the payload of a timer's step: {due_at}, and of one that repeats {due_at, missed}: how many times
-- were passed over, since it comes so late.
-- +goose StatementBegin
create function pawl_private.timer_payload(p_event text, p_due_at timestamptz, p_memory jsonb, p_now timestamptz) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload jsonb := jsonb_build_object('due_at', pawl_private.rfc3339(p_due_at));
begin
  if p_event like 'every:%' then
    v_payload := v_payload || jsonb_build_object(
      'missed', (pawl_private.next_repeat(p_memory #> array['due', p_event], p_now)).missed);
  end if;
  return v_payload;
end
$$;
-- +goose StatementEnd

-- pass_over is passed_over for an instance that exists. It is no step, and history does not show it. The caller must hold
-- the instance's lock.
-- Returns: whether the timer repeats
-- Writes:  instance, timer
-- +goose StatementBegin
create function pawl_private.pass_over(p_instance pawl.instance, p_event text, p_tried integer) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_instance pawl.instance := pawl_private.passed_over(p_instance, p_event, pawl.now());
begin
  if v_instance.memory is not distinct from p_instance.memory then
    return false;
  end if;
  update pawl.instance i
  set memory = v_instance.memory
  where i.tenant_id = p_instance.tenant_id and i.id = p_instance.id;
  perform pawl_private.set_timer(v_instance, p_tried);
  return true;
end
$$;
-- +goose StatementEnd

-- set_timer arms an instance's timer for the next deadline after p_tried timeouts, which were refused. If there is
-- none, it deletes the timer. It clears a failure, and takes the timer out of the slow lane. The caller must hold the
-- instance's lock.
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

-- keep_timer keeps what is known of an instance's timer over an internal step: which timeouts were refused, that it
-- fails, and its place in the slow lane. p_changed: whether the step has moved deadlines; then the timer is armed for
-- the next one. p_rearmed: whether it has armed timers anew; then timeouts that were refused are tried again, since they
-- may no longer be the first. The caller must hold the instance's lock.
-- Writes:  timer
-- +goose StatementBegin
create function pawl_private.keep_timer(p_instance pawl.instance, p_changed boolean, p_rearmed boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_timer pawl.timer;
begin
  select t.* into v_timer from pawl.timer t where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  if p_changed then
    perform pawl_private.set_timer(
      p_instance, case when v_timer.armed_version = p_instance.version - 1 and not p_rearmed then v_timer.tried else 0 end);
  elsif v_timer.armed_version = p_instance.version - 1
    and (v_timer.tried > 0 or v_timer.failed_version is not null or v_timer.queued_version is not null) then
    update pawl.timer t
    set armed_version = p_instance.version,
      failed_version = case when t.failed_version = t.armed_version then p_instance.version else t.failed_version end,
      queued_version = case when t.queued_version = t.armed_version then p_instance.version else t.queued_version end
    where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id;
  end if;
end
$$;
-- +goose StatementEnd

-- merged is a document with a JSON Merge Patch (RFC 7396).
-- +goose StatementBegin
create function pawl_private.merged(p_document jsonb, p_patch jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
declare
  v_result jsonb := case when jsonb_typeof(p_document) = 'object' then p_document else '{}' end;
  v_name text;
  v_value jsonb;
begin
  if jsonb_typeof(p_patch) <> 'object' then
    return p_patch;
  end if;
  for v_name, v_value in select m.key, m.value from jsonb_each(p_patch) m loop
    v_result := case
      when v_value = 'null' then v_result - v_name
      else v_result || jsonb_build_object(v_name, pawl_private.merged(v_result -> v_name, v_value))
    end;
  end loop;
  return v_result;
end
$$;
-- +goose StatementEnd

-- expected_fault says what is wrong with a precondition, as pawl.fire takes it, or null.
-- +goose StatementBegin
create function pawl_private.expected_fault(p_expected text) returns text
language sql immutable parallel safe
as $$
  select format('the expected version is %L: it must be * for any, or an array of versions such as {3}', left(p_expected, 100))
  where p_expected not in ('', '*') and case
    when p_expected ~ '^[{]((-?[0-9]{1,18}|[0-9]{19,30})(,(-?[0-9]{1,18}|[0-9]{19,30}))*)?[}]$' then 9223372036854775807 < any (p_expected::numeric[])
    else true
  end
$$;
-- +goose StatementEnd

-- force_fault says what is wrong with what overrides and cancels have in common, or null.
-- +goose StatementBegin
create function pawl_private.force_fault(
  p_tenant text, p_actor text, p_key text, p_correlation_id text, p_reason text, p_expected text
) returns text
language plpgsql immutable parallel safe
as $$
begin
  return coalesce(
    pawl_private.command_fault(
      p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id, p_reason => p_reason),
    case
      -- Spaces, controls and what only formats other characters, whatever the rules of the database's locale are.
      when p_reason !~ '[^[:space:][:cntrl:]\u00a0\u00ad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]' or p_reason is null
        then 'the reason must have 1 to 1000 characters, and some that can be seen'
    end,
    pawl_private.expected_fault(p_expected));
end
$$;
-- +goose StatementEnd

-- forced_step makes a step to a state that no transition need lead to. It leaves the present state and enters the other
-- as a transition between them would: what they assign is assigned, and timers are armed. It only reads.
-- p_command: its event is what guards and values read as $.event. p_patch, p_patch_checked: as for pawl.override
-- Returns: the macrostep; its refusal may also be 'unknown-state', 'state-protected' or 'context-unchecked', with
--          unchecked as pawl.override returns it
-- Raises:  what guards and values raise
-- +goose StatementBegin
create function pawl_private.forced_step(
  p_now timestamptz, p_setting pawl.setting, p_before pawl.instance, p_command pawl_private.fire_command, p_to text,
  p_patch jsonb, p_patch_checked text, out macrostep pawl_private.macrostep, out unchecked jsonb
)
language plpgsql stable
as $$
declare
  v_at timestamptz := greatest(p_now, pawl_private.last_step_at(p_before));
  v_next pawl.instance := p_before;
  v_document jsonb := pawl_private.document_of(p_before, p_command, p_now);
  v_workflow pawl.workflow;
  v_target pawl.workflow_state;
  v_step record;
  v_left jsonb;
begin
  select w.* into strict v_workflow
  from pawl.workflow w
  where w.name = p_before.workflow and w.version = p_before.workflow_version;
  if not exists (
    select from pawl.workflow_state s
    where s.workflow = v_workflow.name and s.workflow_version = v_workflow.version and s.lineage @> array[p_to]
  ) then
    macrostep.refusal := 'unknown-state';
    return;
  end if;
  select t.target, t.kept, s.exits, s.entries
  into strict v_step
  from pawl_private.definition_transitions(v_workflow.definition, p_before.state, p_to) t
  cross join lateral (
    select
      coalesce(jsonb_agg(s.stage order by s.place) filter (where not s.reached), '[]') as exits,
      coalesce(jsonb_agg(s.stage order by s.place) filter (where s.reached and s.stage <> '["forced"]'), '[]') as entries
    from (
      select s.stage, s.place, bool_or(s.stage = '["forced"]') over (order by s.place) as reached
      from jsonb_array_elements(t.stages) with ordinality as s (stage, place)
    ) s
  ) s;
  select s.* into strict v_target
  from pawl.workflow_state s
  where s.workflow = v_workflow.name and s.workflow_version = v_workflow.version and s.state = v_step.target;
  if v_target.protected then
    macrostep.refusal := 'state-protected';
    return;
  end if;

  v_next.context := coalesce(pawl_private.assigned(v_document, v_step.exits), v_next.context);
  if p_patch is not null then
    v_left := v_next.context;
    v_next.context := pawl_private.merged(v_left, p_patch);
    if v_workflow.context_schema is not null and v_next.context <> v_left
      and p_patch_checked not in ('*', p_before.version::text) then
      macrostep.refusal := 'context-unchecked';
      unchecked := jsonb_build_object(
        'schema', v_workflow.context_schema - 'x-context-default', 'before', v_left, 'after', v_next.context);
      return;
    end if;
  end if;
  v_next.context := coalesce(
    pawl_private.assigned(v_document || jsonb_build_object('context', v_next.context), v_step.entries), v_next.context);
  macrostep.refusal := pawl_private.context_refusal(v_next.context, true, p_setting);
  if macrostep.refusal is not null then
    return;
  end if;

  v_next.state := v_target.state;
  v_next.state_hash := v_target.state_hash;
  v_next.status := v_target.status;
  v_next.version := p_before.version + 1;
  v_next.state_changed_at := v_at;
  if v_target.ttl_slides then
    v_next.expires_at := v_at + (p_before.expires_at - pawl_private.slid_at(p_before));
  end if;
  if v_target.status = 'failed' then
    v_next.error := pawl_private.failure(p_command.event, p_before.state, null, p_command.reason);
  end if;
  v_next.memory := pawl_private.remembered(
    p_before, v_next, row(false, v_step.kept, null, null, null, false, null)::pawl_private.move, p_command, v_at);
  macrostep := pawl_private.complete_macrostep(
    p_before => p_before, p_instance => v_next, p_command => p_command, p_now => p_now, p_at => v_at,
    p_setting => p_setting);
  macrostep.made[2] := null; -- No event made the first step.
end
$$;
-- +goose StatementEnd

-- decide_force decides an override or a cancel, as decide does a fire. It only reads.
-- p_kind: 'forced' or 'cancelled', as in history. p_to: null to pass over the guards of the command's event, or if
-- p_kind is 'cancelled'. p_target: as for pawl.override
-- Returns: as decide does, of which the first step is forced. code may also be 'override-unconditional',
--          'instance-final', 'state-protected', 'not-cancellable', 'unknown-state' or 'context-unchecked', then with
--          unchecked. steps: the instance before the first step and after each, if applied
-- Raises:  what guards and values raise
-- +goose StatementBegin
create function pawl_private.decide_force(
  p_now timestamptz, p_setting pawl.setting, p_instance pawl.instance, p_command pawl_private.fire_command,
  p_kind text, p_to text, p_patch jsonb, p_patch_checked text, p_target text,
  out code text, out instance pawl.instance, out actions text[], out guards text[], out schema jsonb,
  out at timestamptz, out internal boolean, out stays boolean, out rearmed boolean, out was_timed boolean,
  out steps pawl.instance[], out made text[], out principal jsonb, out compensation integer
)
language plpgsql stable
as $$
declare
  v_source pawl.workflow_state;
  v_to text := p_to;
  v_decided record;
  v_forced record;
  v_macrostep pawl_private.macrostep;
begin
  if p_instance.id is null then
    code := 'instance-not-found';
    return;
  end if;
  instance := p_instance;
  select s.* into strict v_source
  from pawl.workflow_state s
  where s.workflow = p_instance.workflow and s.workflow_version = p_instance.workflow_version and s.state = p_instance.state;
  if p_kind = 'cancelled' then
    select w.definition ->> 'cancel' into strict v_to
    from pawl.workflow w
    where w.name = p_instance.workflow and w.version = p_instance.workflow_version;
  end if;
  actions := v_source.events;
  code := case
    when p_command.expected not in ('', '*') and not p_instance.version = any (p_command.expected::bigint[]) then 'version-mismatch'
    when p_command.expected = '' and p_kind = 'forced' then 'override-unconditional'
    when p_instance.status <> 'active' then 'instance-final'
    when p_kind = 'cancelled' and v_to is null then 'not-cancellable'
    when v_source.protected then 'state-protected'
  end;
  if code is not null then
    return;
  end if;

  if v_to is null then
    select d.* into strict v_decided
    from pawl_private.decide(
      p_now => p_now, p_setting => p_setting, p_instance => p_instance, p_command => p_command,
      p_bypass => coalesce(p_target, '')) d;
    code := case
      -- All guards were passed over: no transition leads to the target.
      when v_decided.code = 'guard-rejected' then 'transition-not-allowed'
      else v_decided.code
    end;
    guards := case when code = 'invariant-broken' then v_decided.guards end;
    schema := v_decided.payload_schema;
    internal := v_decided.internal;
    stays := v_decided.stays;
    rearmed := v_decided.rearmed;
    if code = 'applied' then
      steps := coalesce(v_decided.steps, array[p_instance, v_decided.instance]);
      made := coalesce(v_decided.made, array[null, p_command.event]);
      compensation := v_decided.compensation;
      actions := v_decided.actions;
    end if;
  else
    p_command.event := p_kind;
    select f.* into strict v_forced
    from pawl_private.forced_step(
      p_now => p_now, p_setting => p_setting, p_before => p_instance, p_command => p_command, p_to => v_to,
      p_patch => p_patch, p_patch_checked => p_patch_checked) f;
    v_macrostep := v_forced.macrostep;
    code := coalesce(v_macrostep.refusal, 'applied');
    guards := case when v_macrostep.broken is not null then array[v_macrostep.broken] end;
    schema := v_forced.unchecked;
    internal := false;
    stays := false;
    if code = 'applied' then
      steps := v_macrostep.steps;
      made := v_macrostep.made;
      actions := v_macrostep.events;
    end if;
  end if;
  if code = 'applied' and exists (
    select from pawl.workflow_state s
    where s.workflow = p_instance.workflow and s.workflow_version = p_instance.workflow_version
      and s.state = (steps[2]).state and s.protected
  ) then
    code := 'state-protected';
    actions := v_source.events;
  end if;
  if code = 'applied' then
    instance := steps[cardinality(steps)];
    at := greatest(p_now, pawl_private.last_step_at(p_instance));
    was_timed := v_source.timeouts <> '{}' or v_source.timers is not null or p_instance.expires_at is not null;
    principal := case when v_source.reads_actor then pawl_private.principal_of(p_command) end;
  end if;
end
$$;
-- +goose StatementEnd

-- digested is what audit keeps of an instance. The context may hold what an auditor must not read.
-- +goose StatementBegin
create function pawl_private.digested(p_instance pawl.instance) returns jsonb
language plpgsql stable
as $$
begin
  return jsonb_build_object(
    'workflow', p_instance.workflow, 'workflow_version', p_instance.workflow_version, 'state', p_instance.state,
    'status', p_instance.status, 'version', p_instance.version,
    'context_sha256', encode(sha256(convert_to(p_instance.context::text, 'UTF8')), 'hex'));
end
$$;
-- +goose StatementEnd

-- is_claimed says whether a command has an idempotency key that another holds. p_key: '' for none
-- +goose StatementBegin
create function pawl_private.is_claimed(p_tenant text, p_key text, p_now timestamptz) returns boolean
language plpgsql stable
as $$
begin
  return p_key <> '' and exists (
    select from pawl.idempotency_key k where k.tenant_id = p_tenant and k.key = p_key and k.expires_at > p_now);
end
$$;
-- +goose StatementEnd

-- force carries out an override or a cancel as fire does a command, with an audit row.
-- p_kind, p_to, p_target: as for decide_force. p_patch, p_patch_checked, p_dry_run, p_raises, p_caller: as for
-- pawl.override. p_history_key: the key that history shows for a command without one; null for none
-- Returns: the outcome; see pawl.override
-- Raises:  see pawl.override
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer, task, compensation, undoing, audit
-- +goose StatementBegin
create function pawl_private.force(
  p_kind text, p_id uuid, p_command pawl_private.fire_command, p_to text, p_patch jsonb, p_patch_checked text, p_target text,
  p_correlation_id text, p_traceparent text, p_dry_run boolean, p_raises boolean, p_caller jsonb,
  p_history_key text default null
) returns pawl.outcome
language plpgsql volatile
as $$
declare
  v_action text := case p_kind when 'forced' then 'instance.override' else 'instance.cancel' end;
  v_key text := case when p_dry_run then '' else coalesce(p_command.key, '') end;
  -- The reason does not tell requests apart.
  v_fingerprint bytea := sha256(convert_to(
    jsonb_build_array(v_action, p_id, p_to, p_patch, p_command.event, p_command.payload, p_target)::text
      || case when p_command.verified then p_command.actor else '' end,
    'UTF8'));
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_seen boolean;
  v_before pawl.instance;
  v_decided record;
  v_outcome pawl.outcome;
begin
  p_command.key := v_key;
  p_caller := coalesce(p_caller, pawl_private.session_caller(p_command.actor));
  select g.* into strict v_setting from pawl.setting g;
  v_seen := pawl_private.is_claimed(p_command.tenant, v_key, v_now);
  if not v_seen then
    if p_dry_run then
      select i.* into v_before from pawl.instance i where i.tenant_id = p_command.tenant and i.id = p_id;
    else
      select i.* into v_before from pawl.instance i where i.tenant_id = p_command.tenant and i.id = p_id for no key update;
      v_now := pawl.now(); -- Read under the lock, so that time rises with the version.
    end if;
    select d.* into strict v_decided
    from pawl_private.decide_force(
      p_now => v_now, p_setting => v_setting, p_instance => v_before, p_command => p_command, p_kind => p_kind,
      p_to => p_to, p_patch => p_patch, p_patch_checked => p_patch_checked, p_target => p_target) d;
    v_outcome := (
      1, v_decided.code, false, v_decided.instance, v_decided.actions, v_decided.guards, v_decided.schema, null, null
    )::pawl.outcome;
    if v_decided.code = 'applied' then
      select n.event, n.due_at into v_outcome.timeout_event, v_outcome.timeout_due_at
      from pawl_private.next_deadline(v_decided.instance, 0) n;
    end if;
    if v_key <> '' and not pawl_private.is_decision(v_decided.code) then
      v_seen := pawl_private.is_claimed(p_command.tenant, v_key, v_now);
    elsif v_key <> '' then
      insert into pawl.idempotency_key as k (
        tenant_id, key, fingerprint, decision, instance_id, version, expires_at, refusal)
      values (
        p_command.tenant, v_key, v_fingerprint,
        case v_decided.code
          when 'invariant-broken' then 'guard-rejected' when 'instance-final' then 'transition-not-allowed'
          else v_decided.code
        end,
        p_id, (v_decided.instance).version, v_now + v_setting.idempotency_ttl,
        case when v_decided.code <> 'applied' then
          pawl_private.refusal(p_command.event, v_now, case v_decided.code when 'invariant-broken' then v_decided.guards[1] end)
        end)
      on conflict on constraint idempotency_key_pkey do update
      set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
        version = excluded.version, expires_at = excluded.expires_at, refusal = excluded.refusal
      where k.expires_at <= v_now;
      v_seen := not found;
    end if;
  end if;

  if v_seen then
    select r.* into strict v_outcome
    from pawl_private.replay(
      p_now => v_now, p_setting => v_setting, p_ordinals => '{1}', p_tenants => array[p_command.tenant],
      p_keys => array[v_key], p_fingerprints => array[v_fingerprint], p_events => array[p_command.event]) r;
    if v_outcome.code = 'transition-not-allowed' and (v_outcome.instance).status <> 'active' then
      v_outcome.code := 'instance-final';
    elsif v_outcome.code = 'applied' then
      perform pawl_private.audit(
        p_tenant => p_command.tenant, p_caller => p_caller, p_action => v_action, p_target => p_id::text,
        p_outcome => 'replayed', p_reason => p_command.reason, p_before => null,
        p_after => pawl_private.digested(v_outcome.instance));
    end if;
  elsif v_outcome.code = 'applied' and not p_dry_run then
    update pawl.instance i
    set state = (v_outcome.instance).state, status = (v_outcome.instance).status, version = (v_outcome.instance).version,
      context = (v_outcome.instance).context, state_changed_at = (v_outcome.instance).state_changed_at,
      expires_at = (v_outcome.instance).expires_at, error = (v_outcome.instance).error,
      state_hash = (v_outcome.instance).state_hash, memory = (v_outcome.instance).memory
    where i.tenant_id = p_command.tenant and i.id = p_id;
    perform pawl_private.append_history(
      p_steps => v_decided.steps, p_made => v_decided.made, p_kind => p_kind, p_at => v_decided.at,
      p_payload => case when p_to is null and p_kind = 'forced' then p_command.payload end,
      p_internal => v_decided.internal, p_principal => v_decided.principal, p_actor => p_command.actor,
      p_reason => p_command.reason, p_key => coalesce(nullif(v_key, ''), p_history_key), p_correlation_id => p_correlation_id, p_traceparent => p_traceparent,
      p_database_user => case when p_command.verified is null then session_user::text end);
    perform pawl_private.move_tasks(
      p_instance => v_outcome.instance, p_at => v_decided.at, p_moves => not v_decided.stays,
      p_compensation => v_decided.compensation, p_event => p_command.event, p_version => (v_decided.steps[2]).version);
    if not v_decided.stays then
      perform pawl_private.set_timer(v_outcome.instance, 0);
    elsif v_decided.was_timed then
      perform pawl_private.keep_timer(v_outcome.instance, v_decided.rearmed, v_decided.rearmed);
    end if;
    perform pawl_private.audit(
      p_tenant => p_command.tenant, p_caller => p_caller, p_action => v_action, p_target => p_id::text,
      p_outcome => 'done', p_reason => p_command.reason, p_before => pawl_private.digested(v_before),
      p_after => pawl_private.digested(v_outcome.instance));
  end if;

  if p_raises and v_outcome.code <> 'applied' then
    perform pawl_private.refuse(
      p_outcome => v_outcome, p_id => p_id, p_event => p_command.event,
      p_expected => case when p_command.expected like '{%' then (p_command.expected::bigint[])[1] end);
  end if;
  return v_outcome;
end
$$;
-- +goose StatementEnd

-- own_traceparent is the traceparent of a step that a caller of SQL makes, or the result of a task: a span of its own in the
-- trace of its cause, with the decision whether it is sampled.
-- Returns: an empty text for none, and for one that is invalid by W3C Trace Context, which is ignored
-- +goose StatementBegin
create function pawl_private.own_traceparent(p_traceparent text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_traceparent is null or length(p_traceparent) > 255
    or p_traceparent collate "C" !~ '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?$'
    or p_traceparent like '00-%' and length(p_traceparent) <> 55 then
    return '';
  end if;
  return '00' || substr(p_traceparent, 3, 34) || right(replace(gen_random_uuid()::text, '-', ''), 16) || substr(p_traceparent, 53, 3);
end
$$;
-- +goose StatementEnd

-- next_traceparent is the traceparent of a step that a timer or the healer makes: it begins a trace, which is sampled if the step before
-- it is.
-- p_before: the traceparent of the step before
-- Returns:  an empty text if that has none, or one that is invalid
-- +goose StatementBegin
create function pawl_private.next_traceparent(p_before text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if pawl_private.own_traceparent(p_before) = '' then
    return '';
  end if;
  return format('00-%s-%s-%s', replace(gen_random_uuid()::text, '-', ''), right(replace(gen_random_uuid()::text, '-', ''), 16), substr(p_before, 54, 2));
end
$$;
-- +goose StatementEnd

-- traceparent_of reads the traceparent of a step.
-- p_version: null for the last step of the instance
-- Returns:   an empty text if it has none
-- +goose StatementBegin
create function pawl_private.traceparent_of(p_tenant text, p_instance_id uuid, p_version bigint) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version bigint := coalesce(p_version, (select i.version from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id));
  v_traceparent text;
begin
  select h.traceparent into v_traceparent
  from pawl.history h
  where h.tenant_id = p_tenant and h.instance_id = p_instance_id and h.version = v_version;
  return coalesce(v_traceparent, '');
end
$$;
-- +goose StatementEnd

-- 20_instance/cancel.sql

-- cancel moves an instance to the state that its definition names as cancel. The step is one that override makes, but
-- its kind in history, and what guards and values read as $.event, is 'cancelled'.
-- p_expected: '' for no precondition, else as for override. The other parameters are as for override
-- Returns: the outcome
-- Raises:  PW40C not-cancellable; what override raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer, audit
-- +goose StatementBegin
create function pawl.cancel(
  p_id uuid, p_reason text, p_expected text default '', p_key text default null, p_tenant text default 'default',
  p_actor text default session_user, p_correlation_id text default null, p_traceparent text default null,
  p_verified boolean default null, p_dry_run boolean default false, p_raises boolean default true,
  p_caller jsonb default null
) returns pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_memoize = off
set jit = off
as $$
declare
  v_served boolean := pawl_private.is_service();
begin
  perform pawl_private.refuse_malformed(pawl_private.force_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id, p_reason => p_reason,
    p_expected => p_expected));
  return pawl_private.force(
    p_kind => 'cancelled', p_id => p_id,
    p_command => (
      p_tenant, null, '{}', p_key, coalesce(p_expected, ''), '*', p_reason,
      pawl_private.bound_actor(p_tenant, p_actor), case when v_served then p_verified end, false, false, null
    )::pawl_private.fire_command,
    p_to => null, p_patch => null, p_patch_checked => '*', p_target => null,
    p_correlation_id => p_correlation_id, p_traceparent => p_traceparent, p_dry_run => p_dry_run, p_raises => p_raises,
    p_caller => case when v_served then p_caller end);
end
$$;
-- +goose StatementEnd

-- 20_instance/count_usage.sql

-- count_usage goes on with the count of what tenants use, for limits on open instances and on storage. It takes the
-- tenant whose turn it is, and reads up to p_limit rows: of its active instances, then, if its storage has a limit, of
-- all its instances and of its history. A tenant is counted again five seconds after its count has ended. Storage is
-- the size of contexts and payloads as they are stored, and 200 bytes for each instance and each step.
-- Returns: whether there may be more to count now
-- Locks:   tenant_usage (for update, skipping what is locked)
-- Writes:  tenant_usage
-- +goose StatementBegin
create function pawl.count_usage(p_limit integer) returns boolean
language plpgsql volatile security definer
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
  v_limits jsonb;
  v_row pawl_private.tenant_usage;
  v_read integer;
  v_stored bigint;
  v_ended boolean;
begin
  select u.* into v_row
  from pawl_private.tenant_usage u
  where u.next_at <= v_now
  order by u.next_at
  limit 1
  for update skip locked;
  if not found then
    insert into pawl_private.tenant_usage (tenant_id, next_at)
    select t.id, v_now
    from pawl.tenant t
    where t.limits ?| array['open_instances', 'storage_bytes']
      and not exists (select from pawl_private.tenant_usage u where u.tenant_id = t.id)
    on conflict on constraint tenant_usage_pkey do nothing;
    return found;
  end if;
  select t.limits into v_limits
  from pawl.tenant t
  where t.id = v_row.tenant_id and t.limits ?| array['open_instances', 'storage_bytes'];
  if not found then
    delete from pawl_private.tenant_usage u where u.tenant_id = v_row.tenant_id;
    return true;
  end if;

  if v_row.part = 'open' then
    select count(*), coalesce((array_agg(i.id order by i.id desc))[1], v_row.after_id)
    into v_read, v_row.after_id
    from (
      select i.id
      from pawl.instance i
      where i.tenant_id = v_row.tenant_id and i.status = 'active' and i.workflow <> '' and i.id > v_row.after_id
      order by i.tenant_id, i.status, i.id
      limit p_limit
    ) i;
    v_row.opened := v_row.opened + v_read;
  elsif v_row.part = 'instances' then
    select count(*), coalesce((array_agg(i.id order by i.id desc))[1], v_row.after_id), coalesce(sum(i.bytes), 0)
    into v_read, v_row.after_id, v_stored
    from (
      select i.id, 200 + pg_column_size(i.context) as bytes
      from pawl.instance i
      where i.tenant_id = v_row.tenant_id and i.id > v_row.after_id
      order by i.tenant_id, i.id
      limit p_limit
    ) i;
  else
    select count(*), coalesce((array_agg(h.instance_id order by h.instance_id desc, h.version desc))[1], v_row.after_id),
      coalesce((array_agg(h.version order by h.instance_id desc, h.version desc))[1], v_row.after_version), coalesce(sum(h.bytes), 0)
    into v_read, v_row.after_id, v_row.after_version, v_stored
    from (
      select h.instance_id, h.version, 200 + pg_column_size(h.context) + coalesce(pg_column_size(h.payload), 0) as bytes
      from pawl.history h
      where h.tenant_id = v_row.tenant_id and (h.instance_id, h.version) > (v_row.after_id, v_row.after_version)
      order by h.tenant_id, h.instance_id, h.version
      limit p_limit
    ) h;
  end if;
  v_row.stored := v_row.stored + coalesce(v_stored, 0);

  v_ended := v_read < p_limit;
  if v_ended then
    v_row.after_id := '00000000-0000-0000-0000-000000000000';
    v_row.after_version := 0;
    case
      when v_row.part = 'open' then
        v_row.open_instances := v_row.opened;
        v_row.opened := 0;
        v_row.part := case when v_limits ? 'storage_bytes' then 'instances' else 'open' end;
        v_row.storage_bytes := case when v_limits ? 'storage_bytes' then v_row.storage_bytes end;
      when v_row.part = 'instances' then
        v_row.part := 'history';
      else
        v_row.storage_bytes := v_row.stored;
        v_row.stored := 0;
        v_row.part := 'open';
    end case;
  end if;
  update pawl_private.tenant_usage u
  set open_instances = v_row.open_instances, storage_bytes = v_row.storage_bytes, part = v_row.part, after_id = v_row.after_id,
    after_version = v_row.after_version, opened = v_row.opened, stored = v_row.stored,
    -- Those whose counts are under way take turns.
    next_at = case when v_ended and v_row.part = 'open' then v_now + interval '5 seconds' else v_now end
  where u.tenant_id = v_row.tenant_id;
  return true;
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
-- p_callback_digests:         stand for the secrets in the fingerprint. The secrets may be sealed, to another text each time
-- p_seeds:                    the last 62 bits of the ids of the instances, so that a secret can be sealed for its instance
-- p_checked:                  as for fire, of the context schema and the context with the workflow's context_default
--                             under it
-- p_verified, p_access: as for fire
-- Returns: one outcome per command, in no order. 'instance-exists' shows the id of the instance that
--          has the business key. 'context-unchecked' comes with the schema that the caller must check, and
--          'limit-reached' with the limit; neither is recorded
-- Raises:  PW40A principal-changed; 40001 a key, or the holder of a business key, vanished while it was read: try again;
--          what an assign or a guard raises even in silent mode
-- Locks:   idempotency_key (by key), then instance (the business key)
-- Writes:  idempotency_key, instance, history, timer, callback, task, undoing
-- +goose StatementBegin
create function pawl.create(
  p_tenants text[], p_workflows text[], p_contexts jsonb[], p_keys text[], p_business_keys text[],
  p_instance_correlation_ids text[], p_lifetimes interval[], p_checked text[],
  p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_callback_urls text[] default null, p_callback_secrets text[] default null, p_verified boolean default null,
  p_callback_digests text[] default null, p_seeds uuid[] default null, p_access uuid default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_setting pawl.setting;
  v_now timestamptz := pawl.now();
  v_ids uuid[] := array(
    select pawl_private.uuid_v7_with(v_now, uuid_send(coalesce(p_seeds[c.ordinal], gen_random_uuid())))
    from generate_series(1, cardinality(p_workflows)) as c (ordinal));
  v_row record;
  v_ordinals integer[];
  v_tenants text[];
  v_keys text[];
  v_fingerprints bytea[];
  v_exists boolean := false;
  v_lost integer[];
  v_place integer;
  v_found integer;
  v_limits jsonb := pawl_private.creation_limits(p_tenants);
begin
  select * into strict v_setting from pawl.setting;
  if v_setting.access_version <> p_access then
    perform pawl_private.refuse_changed_principal();
  end if;
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
          || coalesce(
            nullif(p_callback_urls[c.ordinal], '') || ' '
            || coalesce(p_callback_digests[c.ordinal], p_callback_secrets[c.ordinal]), '')
          || coalesce(chr(10) || case when p_verified then c.actor end, ''),
          'UTF8'))
        end as fingerprint,
        coalesce((z.macrostep).events, s.events) as actions,
        coalesce((z.macrostep).timeouts, s.timeouts) as timeouts,
        coalesce((z.macrostep).timeout_events, s.timeout_events) as timeout_events,
        (z.macrostep).steps,
        (z.macrostep).made,
        (z.macrostep).broken,
        coalesce((z.macrostep).tasks, s.tasks) as tasks,
        case when s.reads_actor then pawl_private.principal(c.actor, p_verified, false) end as principal,
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
          w.context_schema, w.context_schema_checksum, w.context_default
        from pawl.workflow w
        where w.name = c.workflow
        order by w.version desc
        limit 1
      ) w on true
      left join lateral (
        select s.status, s.events, s.timeouts, s.timeout_events, s.state_hash, s.reads_actor, s.tasks
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
          when w.context_default is not null and jsonb_typeof(c.context) = 'object' then w.context_default || c.context
          else c.context
        end as context
        offset 0
      ) q
      cross join lateral (
        select case
          when k.seen then 'seen'
          when w.name is null then 'workflow-not-found'
          when jsonb_typeof(c.context) is distinct from 'object' then 'malformed-request'
          when c.lifetime is not null and w.ttl is null then 'lifetime-without-ttl'
          when octet_length(q.context::text) > v_setting.context_limit then 'context-too-large'
          -- The service has checked the depth of what it gets.
          when c.checked = '*' and pawl_private.is_too_deep(c.context) then 'malformed-request'
          when w.context_schema is not null and c.checked is distinct from '*'
            and c.checked is distinct from w.context_schema_checksum then 'context-unchecked'
          when b.id is not null then 'instance-exists'
          when v_limits ? c.tenant then 'limit-reached'
        end as refusal
        offset 0
      ) e
      cross join lateral (
        select case when e.refusal is null then
          pawl_private.instance_row(
            p_tenant_id => c.tenant, p_id => c.id, p_workflow => c.workflow, p_workflow_version => w.version,
            p_state => w.initial, p_status => s.status, p_version => 1, p_context => q.context,
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
            p_instance => n.instance, p_principal => pawl_private.principal(c.actor, p_verified, false),
            p_reason => nullif(c.reason, ''), p_now => v_now, p_setting => v_setting)
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
        actor, reason, key, correlation_id, traceparent, at, principal, database_user)
      select
        i.tenant_id, i.id, 1, i.workflow, i.workflow_version, 'created', i.state, i.status, i.context, i.expires_at,
        p.actor, p.reason, p.key, p.correlation_id, p.traceparent, v_now, p.principal,
        case when p_verified is null then session_user end
      from kept p
      cross join lateral (select (p.instance).*) i
      where p.started and p.steps is null
    ),
    armed as (
      insert into pawl.timer (tenant_id, instance_id, due_at, armed_version, tried)
      select p.tenant, (p.instance).id, t.due_at, (p.instance).version, 0
      from kept p
      cross join lateral (
        select pawl_private.deadline(v_now, p.timeouts, (p.instance).memory, (p.instance).expires_at) as due_at
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
      p.started and p.tasks as tasks,
      p.made,
      p.principal,
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
        case when p.broken is not null then array[p.broken] end,
        case p.code when 'context-unchecked' then p.context_schema when 'limit-reached' then v_limits -> p.tenant end,
        case when p.started and (p.instance).status = 'active' then
          pawl_private.deadline_event(v_now, p.timeouts, p.timeout_events, (p.instance).memory, (p.instance).expires_at)
        end,
        case when p.started and (p.instance).status = 'active' then
          pawl_private.deadline(v_now, p.timeouts, (p.instance).memory, (p.instance).expires_at)
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
          p_steps => v_row.steps, p_made => v_row.made, p_kind => 'created', p_at => v_now, p_payload => null, p_internal => false,
          p_principal => v_row.principal, p_actor => p_actors[v_row.ordinal], p_reason => p_reasons[v_row.ordinal],
          p_key => v_row.key, p_correlation_id => p_correlation_ids[v_row.ordinal],
          p_traceparent => p_traceparents[v_row.ordinal],
          p_database_user => case when p_verified is null then session_user::text end);
      end if;
      if v_row.tasks then
        perform pawl_private.move_tasks(p_instance => (v_row.outcome).instance, p_at => v_now, p_moves => true);
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
-- p_traceparent: a W3C trace context. History records a span of the step's own in that trace; an invalid one is ignored
-- Returns: the instance
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40W, PW40E, PW413, PW42G, PW42K: see pawl_private.condition; the detail is JSON.
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
  p_correlation_id text default null,
  p_traceparent text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
  v_actor text;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_business_key => p_business_key,
    p_correlation_id => p_correlation_id));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  select * into strict v_outcome from pawl.create(
    p_tenants => array[p_tenant], p_workflows => array[p_workflow], p_contexts => array[p_context],
    p_keys => array[coalesce(p_key, '')], p_business_keys => array[coalesce(p_business_key, '')],
    p_instance_correlation_ids => array[coalesce(p_correlation_id, '')], p_lifetimes => array[null::interval],
    p_checked => array['*'], p_actors => array[v_actor], p_reasons => array[''], p_correlation_ids => array[''],
    p_traceparents => array[pawl_private.own_traceparent(p_traceparent)]);
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
-- p_verified: whether the service has authenticated the actors; null if the caller is no service. It decides what
--             guards read as $.actor
-- p_fingerprints: what tells the requests under one key apart, if it is not what a fire asks for
-- p_history_keys: the keys that history shows for commands without one; null for none. They protect nothing
-- p_kind: the kind of the steps in history if the commands are for what became of tasks; null for others. Then their
--             events may be the engine's own
-- p_access:   the access_version with which the callers were let in; null if they were looked up just now
-- Returns: one outcome per command, in no order. 'payload-unchecked' comes with the schema that the
--          caller must check before it calls again. The later commands for the same instance have the
--          outcome 'undecided'
-- Raises:  PW40A principal-changed; 40001 a key vanished while it was read: try again; what a guard or an assign raises even
--          in silent mode
-- Locks:   instance (for no key update, by id), then idempotency_key (by key)
-- Writes:  idempotency_key, instance, history, timer, task, compensation, undoing
-- +goose StatementBegin
create function pawl.fire(
  p_tenants text[], p_ids uuid[], p_events text[], p_payloads jsonb[], p_keys text[], p_expected text[],
  p_checked text[], p_actors text[], p_reasons text[], p_correlation_ids text[], p_traceparents text[],
  p_by_timer boolean default false, p_verified boolean default null, p_fingerprints bytea[] default null,
  p_history_keys text[] default null, p_kind text default null, p_access uuid default null
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
  if v_setting.access_version <> p_access then
    perform pawl_private.refuse_changed_principal();
  end if;
  if true = any (v_seen) then
    -- Unless the time to live slides, a replay takes no lock.
    return query select r.*
    from (
      select
        array_agg(c.ordinal::integer) as ordinals,
        array_agg(c.tenant) as tenants,
        array_agg(c.key) as keys,
        array_agg(coalesce(
          p_fingerprints[c.ordinal],
          pawl_private.fingerprint(c.id, c.event, c.payload, case when p_verified then c.actor end))) as fingerprints,
        array_agg(c.event) as events
      from unnest(p_tenants, p_ids, p_events, p_payloads, p_keys, p_actors, v_seen)
        with ordinality as c (tenant, id, event, payload, key, actor, seen, ordinal)
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
          case
            when c.key <> '' then
              coalesce(
                p_fingerprints[c.ordinal],
                pawl_private.fingerprint(c.id, c.event, c.payload, case when p_verified then c.actor end))
          end as fingerprint,
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
            c.tenant, c.event, c.payload, c.key, c.expected, c.checked, c.reason, c.actor, p_verified, p_by_timer, p_kind is not null,
            null
          )::pawl_private.fire_command) d
        where c.seen is not true and c.round = v_round and c.ordinal <> all (v_undecided)
      ),
      claimed as (
        insert into pawl.idempotency_key as k (
          tenant_id, key, fingerprint, decision, instance_id, version, expires_at, refusal)
        select distinct on (d.tenant, d.key)
          d.tenant, d.key, d.fingerprint, case d.code when 'invariant-broken' then 'guard-rejected' else d.code end,
          (d.instance).id, (d.instance).version,
          v_now + v_setting.idempotency_ttl,
          case when d.code <> 'applied' then pawl_private.refusal(d.event, v_now, d.invariant) end
        from decided d
        where d.key is not null and pawl_private.is_decision(d.code)
        order by d.tenant, d.key, d.ordinal
        on conflict on constraint idempotency_key_pkey do update
        set fingerprint = excluded.fingerprint, decision = excluded.decision, instance_id = excluded.instance_id,
          version = excluded.version, expires_at = excluded.expires_at, refusal = excluded.refusal
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
          state_hash = excluded.state_hash, memory = excluded.memory
      ),
      appended as (
        insert into pawl.history (
          tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
          context, payload, expires_at, error, actor, reason, key, correlation_id, traceparent, at, entered_at, internal, principal,
          memory, database_user)
        select
          i.tenant_id, i.id, i.version, i.workflow, i.workflow_version,
          coalesce(p_kind, case when not p_by_timer then 'transition' when d.event = 'ttl' then 'expired' else 'timeout' end),
          d.event, d.from_state, i.state, i.status, i.context, d.payload, i.expires_at, i.error, d.actor, d.reason,
          case when p_by_timer then 'timer:' || i.version - 1 else coalesce(d.key, p_history_keys[d.ordinal]) end,
          coalesce(d.correlation_id, i.correlation_id), d.traceparent, d.at, nullif(i.state_changed_at, d.at),
          case when d.internal then true end, d.principal, i.memory,
          case when p_verified is null and not p_by_timer then session_user end
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
          and d.due_at is not null and not d.stays
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
          when d.code = 'applied' and d.was_timed and d.due_at is null and not d.stays then (d.instance).id
        end as disarmed,
        d.code = 'applied' and d.was_timed and d.stays as stays,
        d.rearmed,
        d.at,
        d.internal,
        d.principal,
        d.steps,
        d.made,
        d.tasks and not d.stays or d.compensation is not null as tasks,
        d.compensation,
        d.stays as stayed,
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
          p_steps => v_row.steps, p_made => v_row.made,
          p_kind => coalesce(p_kind, case when not p_by_timer then 'transition' when v_row.event = 'ttl' then 'expired' else 'timeout' end),
          p_at => v_row.at, p_payload => p_payloads[v_row.ordinal],
          p_internal => v_row.internal, p_principal => v_row.principal,
          p_actor => p_actors[v_row.ordinal], p_reason => p_reasons[v_row.ordinal],
          p_key => case when p_by_timer then 'timer:' || (v_row.steps[1]).version else coalesce(v_row.key, p_history_keys[v_row.ordinal]) end,
          p_correlation_id => p_correlation_ids[v_row.ordinal], p_traceparent => p_traceparents[v_row.ordinal],
          p_database_user => case when p_verified is null and not p_by_timer then session_user::text end);
      end if;
      if v_row.disarmed is not null then
        -- One by one, since the plan of a delete with a join need not look up rows by the full key.
        delete from pawl.timer t where t.tenant_id = v_row.tenant and t.instance_id = v_row.disarmed;
      end if;
      if v_row.stays then
        perform pawl_private.keep_timer((v_row.outcome).instance, p_by_timer or v_row.rearmed, v_row.rearmed);
      end if;
      if v_row.tasks then
        perform pawl_private.move_tasks(
          p_instance => (v_row.outcome).instance, p_at => v_row.at, p_moves => not v_row.stayed,
          p_compensation => v_row.compensation, p_event => v_row.event,
          p_version => case when v_row.steps is null then ((v_row.outcome).instance).version else (v_row.steps[2]).version end);
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

-- 20_instance/fire_by_key.sql

-- fire_by_key is fire_one for the instance that holds a business key.
-- p_start: null, or a JSON object: if no instance holds the key, one is created and the event fired at it, or neither.
--          Its members `context`, `correlation_id` and `expires_in`, an interval, are those of the new instance
-- Returns: the instance after the step
-- Raises:  what pawl_private.bound_actor raises; PW400, PW404, PW409, PW40G, PW40W, PW412, PW413, PW422, PW42G, PW42K, PW428: see
--          pawl_private.condition; the detail is JSON. What fire_by_keys raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer
-- +goose StatementBegin
create function pawl.fire_by_key(
  p_workflow text,
  p_business_key text,
  p_event text,
  p_payload jsonb default '{}',
  p_key text default null,
  p_expected_version bigint default null,
  p_tenant text default 'default',
  p_actor text default session_user,
  p_correlation_id text default null,
  p_start jsonb default null,
  p_traceparent text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
  v_actor text;
begin
  perform pawl_private.refuse_malformed(coalesce(
    pawl_private.command_fault(
      p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_business_key => p_business_key,
      p_correlation_id => p_correlation_id),
    case when coalesce(p_business_key, '') = '' then 'the business key must not be empty' end,
    pawl_private.start_fault(p_start)));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  select * into strict v_outcome from pawl.fire_by_keys(
    p_tenants => array[p_tenant], p_workflows => array[p_workflow], p_business_keys => array[p_business_key],
    p_events => array[p_event], p_payloads => array[p_payload], p_keys => array[coalesce(p_key, '')],
    p_expected => array[coalesce('{' || p_expected_version || '}', '')], p_checked => array['*'],
    p_starts => array[p_start], p_starts_checked => array['*'], p_actors => array[v_actor], p_reasons => array[''],
    p_correlation_ids => array[coalesce(p_correlation_id, '')], p_traceparents => array[pawl_private.own_traceparent(p_traceparent)]);
  if v_outcome.code = 'version-mismatch' and (v_outcome.instance).version is null then
    perform pawl_private.raise_condition(
      'version-mismatch', 'no instance holds this business key, so none is at the expected version',
      jsonb_build_object('expected', p_expected_version, 'event', p_event));
  elsif v_outcome.code not in ('applied', 'created') then
    perform pawl_private.refuse(
      p_outcome => v_outcome, p_id => null, p_event => p_event, p_expected => p_expected_version);
  end if;
  return v_outcome.instance;
end
$$;
-- +goose StatementEnd

-- start_fault says what is wrong with the start of a fire by business key, or null.
-- +goose StatementBegin
create function pawl_private.start_fault(p_start jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lifetime interval;
begin
  if p_start is null then
    return null;
  elsif jsonb_typeof(p_start) <> 'object' then
    return 'the start must be a JSON object';
  elsif p_start - '{context,correlation_id,expires_in}'::text[] <> '{}' then
    return 'the start may have no other members than context, correlation_id and expires_in';
  elsif jsonb_typeof(p_start -> 'correlation_id') <> 'string' or jsonb_typeof(p_start -> 'expires_in') <> 'string' then
    return 'correlation_id and expires_in of the start must be strings';
  elsif p_start ->> 'correlation_id' collate "C" !~ '^[!-~]{1,255}$' then
    return 'the correlation id of the start must have 1 to 255 visible ASCII characters';
  end if;
  begin
    v_lifetime := (p_start ->> 'expires_in')::interval;
  exception when data_exception then
    v_lifetime := '0';
  end;
  -- The sum of a time and a longer one may be no time that PostgreSQL can store.
  if v_lifetime not between interval '1 microsecond' and interval '3650 days' then
    return 'expires_in of the start must be an interval, more than 0 and at most 3650 days';
  end if;
  return null;
end
$$;
-- +goose StatementEnd

-- 20_instance/fire_by_keys.sql

-- Firing by business key. A key is held by the instance that an index of pawl.instance allows one of: see
-- instance_business_key_key.

-- start_fingerprint is pawl_private.fingerprint for a fire by business key. The id of the instance is not part of it,
-- since it is not known if the instance is to be created.
-- +goose StatementBegin
create function pawl_private.start_fingerprint(
  p_workflow text, p_business_key text, p_event text, p_payload jsonb, p_start jsonb, p_subject text
) returns bytea
language sql stable parallel safe
as $$
  select sha256(convert_to(
    jsonb_build_array('fire-by-key', p_workflow, p_business_key, p_event, p_payload, p_start)::text
      || coalesce(p_subject, ''), 'UTF8'))
$$;
-- +goose StatementEnd

-- lock_holder locks the instance that holds a business key, which then holds it until the transaction ends.
-- Returns: its id; null if no instance holds the key
-- Locks:   instance (for no key update)
-- +goose StatementBegin
create function pawl_private.lock_holder(p_tenant text, p_workflow text, p_business_key text) returns uuid
language plpgsql volatile
as $$
declare
  v_id uuid;
begin
  loop
    select i.id
    into v_id
    from pawl.instance i
    where i.tenant_id = p_tenant and i.workflow = p_workflow and i.business_key = p_business_key
      and (i.status = 'active' or not i.business_key_reusable)
    limit 1;
    exit when not found;
    perform
    from pawl.instance i
    where i.tenant_id = p_tenant and i.id = v_id and (i.status = 'active' or not i.business_key_reusable)
    for no key update;
    exit when found;
    -- It has ended, or was purged, since it was looked up. Another one may hold the key by now.
  end loop;
  return v_id;
end
$$;
-- +goose StatementEnd

-- started_by says whether the command with an idempotency key, which moved an instance to a version, created it too.
-- Then both were one transaction, the creation has no key, and no other command moved the instance in between.
-- +goose StatementBegin
create function pawl_private.started_by(p_tenant text, p_id uuid, p_version bigint, p_key text) returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select
    from pawl.history c
    cross join lateral (
      select h.xid
      from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = p_id and h.version = p_version
      limit 1
    ) l
    where c.tenant_id = p_tenant and c.instance_id = p_id and c.version = 1 and c.key is null and c.xid = l.xid
      and not exists (
        select
        from pawl.history h
        where h.tenant_id = p_tenant and h.instance_id = p_id and h.version between 2 and p_version and h.key <> p_key));
end
$$;
-- +goose StatementEnd

-- fire_by_keys fires events as fire does, at the instances that hold business keys. A command may start an instance: if
-- none holds its key, it creates one and fires the event at it, or does neither. The whole call is one transaction.
-- p_starts:         a JSON object if the command may start an instance, else null. Its members `context`,
--                   `correlation_id`, `expires_in` (an interval), `callback_url` and `callback_secret` are those of the
--                   new instance; see create. It is part of the fingerprint, as it is written
-- p_callback_secrets, p_seeds: as for create, of the new instance. A secret here is used instead of that of p_starts,
--                   which then is its digest
-- p_starts_checked: as p_checked, of the context schema of the instance to create
-- p_verified, p_access: as for fire
-- Returns: one outcome per command, in no order, with the codes of fire. Instead of 'applied' the code is 'created' if
--          the command created the instance. If it would have created one, it is 'version-mismatch' if it expects any
--          version, and may be a code of create. Such a refusal shows no id, and is not recorded
-- Raises:  what create and fire raise
-- Locks:   the instances that hold the keys (for no key update, by id), then what fire locks. Then, for one command
--          after the other, by business key, what create and fire lock. Two calls that start instances may therefore
--          wait for each other. PostgreSQL ends one of them with 40P01, and the service repeats it
-- Writes:  idempotency_key, instance, history, timer, callback
-- +goose StatementBegin
create function pawl.fire_by_keys(
  p_tenants text[], p_workflows text[], p_business_keys text[], p_events text[], p_payloads jsonb[], p_keys text[],
  p_expected text[], p_checked text[], p_starts jsonb[], p_starts_checked text[], p_actors text[], p_reasons text[],
  p_correlation_ids text[], p_traceparents text[], p_verified boolean default null,
  p_callback_secrets text[] default null, p_seeds uuid[] default null, p_access uuid default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_memoize = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_fingerprints bytea[];
  -- A command whose key nobody holds fires at an id that does not exist, in case it is a replay.
  v_ids uuid[] := array(select gen_random_uuid() from generate_series(1, cardinality(p_business_keys)));
  v_row record;
  v_outcome pawl.outcome;
  v_open integer[] := '{}';
  v_place integer;
  v_id uuid;
  v_start jsonb;
  v_starts boolean;
begin
  select array_agg(
    pawl_private.start_fingerprint(
      c.workflow, c.business_key, c.event, c.payload, c.start, case when p_verified then c.actor end)
    order by c.ordinal)
  into v_fingerprints
  from unnest(p_workflows, p_business_keys, p_events, p_payloads, p_starts, p_actors)
    with ordinality as c (workflow, business_key, event, payload, start, actor, ordinal);

  for v_row in
    select c.ordinal, c.id
    from (
      select c.ordinal, c.tenant, h.id
      from unnest(p_tenants, p_workflows, p_business_keys, p_keys)
        with ordinality as c (tenant, workflow, business_key, key, ordinal)
      cross join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = c.tenant and i.workflow = c.workflow and i.business_key = c.business_key
          and (i.status = 'active' or not i.business_key_reusable)
        limit 1
      ) h
      left join lateral (
        select true as seen
        from pawl.idempotency_key k
        where k.tenant_id = c.tenant and k.key = c.key and k.expires_at > v_now
        limit 1
      ) k on true
      where k.seen is not true -- A replay takes no lock.
      order by h.id, c.tenant
    ) c
    cross join lateral (
      -- An instance that holds its key no more when it is locked is left out.
      select true
      from pawl.instance i
      where i.tenant_id = c.tenant and i.id = c.id and (i.status = 'active' or not i.business_key_reusable)
      limit 1
      for no key update
    ) i
  loop
    v_ids[v_row.ordinal] := v_row.id;
  end loop;

  for v_outcome in
    select o.*
    from pawl.fire(
      p_tenants => p_tenants, p_ids => v_ids, p_events => p_events, p_payloads => p_payloads, p_keys => p_keys,
      p_expected => p_expected, p_checked => p_checked, p_actors => p_actors, p_reasons => p_reasons,
      p_correlation_ids => p_correlation_ids, p_traceparents => p_traceparents, p_verified => p_verified,
      p_fingerprints => v_fingerprints, p_access => p_access) o
  loop
    if v_outcome.code = 'instance-not-found' then
      v_open := v_open || v_outcome.ordinal;
      continue;
    end if;
    if v_outcome.code = 'applied' and v_outcome.replayed and p_starts[v_outcome.ordinal] is not null
      and pawl_private.started_by(
        p_tenants[v_outcome.ordinal], (v_outcome.instance).id, (v_outcome.instance).version,
        p_keys[v_outcome.ordinal]) then
      v_outcome.code := 'created';
    end if;
    return next v_outcome;
  end loop;

  for v_place in
    select o.place from unnest(v_open) as o (place) order by p_tenants[o.place], p_workflows[o.place], p_business_keys[o.place], o.place
  loop
    v_start := p_starts[v_place];
    loop
      v_id := pawl_private.lock_holder(p_tenants[v_place], p_workflows[v_place], p_business_keys[v_place]);
      v_starts := v_id is null and v_start is not null;
      begin
        v_outcome := null;
        if v_starts and p_expected[v_place] <> '' then
          v_outcome.code := case
            when exists (select from pawl.workflow w where w.name = p_workflows[v_place]) then 'version-mismatch'
            else 'workflow-not-found'
          end;
          v_outcome.replayed := false;
        elsif v_starts then
          -- Without a key, which belongs to the event.
          select o.*
          into strict v_outcome
          from pawl.create(
            p_tenants => p_tenants[v_place:v_place], p_workflows => p_workflows[v_place:v_place],
            p_contexts => array[coalesce(v_start -> 'context', '{}')], p_keys => array[''],
            p_business_keys => p_business_keys[v_place:v_place],
            p_instance_correlation_ids => array[coalesce(v_start ->> 'correlation_id', '')],
            -- A day has 24 hours, whatever the time zone of the session.
            p_lifetimes => array[
              make_interval(secs => extract(epoch from (v_start ->> 'expires_in')::interval)::double precision)],
            p_checked => p_starts_checked[v_place:v_place],
            p_actors => p_actors[v_place:v_place], p_reasons => p_reasons[v_place:v_place],
            p_correlation_ids => p_correlation_ids[v_place:v_place],
            p_traceparents => p_traceparents[v_place:v_place],
            p_callback_urls => array[coalesce(v_start ->> 'callback_url', '')],
            p_callback_secrets => array[
              coalesce(nullif(p_callback_secrets[v_place], ''), v_start ->> 'callback_secret', '')],
            p_verified => p_verified, p_seeds => p_seeds[v_place:v_place]) o;
          v_id := case when v_outcome.code = 'applied' then (v_outcome.instance).id end;
        end if;
        if v_id is not null or not v_starts then
          select o.*
          into strict v_outcome
          from pawl.fire(
            p_tenants => p_tenants[v_place:v_place], p_ids => array[coalesce(v_id, v_ids[v_place])],
            p_events => p_events[v_place:v_place], p_payloads => p_payloads[v_place:v_place],
            p_keys => p_keys[v_place:v_place],
            -- Whoever starts an instance knows its version.
            p_expected => case when v_starts then array['*'] else p_expected[v_place:v_place] end,
            p_checked => p_checked[v_place:v_place], p_actors => p_actors[v_place:v_place],
            p_reasons => p_reasons[v_place:v_place], p_correlation_ids => p_correlation_ids[v_place:v_place],
            p_traceparents => p_traceparents[v_place:v_place], p_verified => p_verified,
            p_fingerprints => v_fingerprints[v_place:v_place]) o;
        end if;
        if v_starts and (v_outcome.code <> 'applied' or v_outcome.replayed) then
          raise exception 'the instance is not started' using errcode = 'PW000'; -- Caught below.
        end if;
      exception when sqlstate 'PW000' then
        if not v_outcome.replayed then
          v_outcome.instance.id := null;
        end if;
      end;
      exit when v_outcome.code <> 'instance-exists'; -- Else another command has just taken the key.
    end loop;
    v_outcome.ordinal := v_place;
    if v_outcome.code = 'applied' and v_start is not null and (
      v_starts and not v_outcome.replayed
      or v_outcome.replayed and pawl_private.started_by(
        p_tenants[v_place], (v_outcome.instance).id, (v_outcome.instance).version, p_keys[v_place])
    ) then
      v_outcome.code := 'created';
    end if;
    return next v_outcome;
  end loop;
end
$$;
-- +goose StatementEnd

-- 20_instance/fire_one.sql

-- fire_one moves one instance inside the caller's own transaction, so that the step and the caller's
-- business rows commit together or not at all. The caller vouches for the payload's schema, as with
-- create_one.
-- p_traceparent: a W3C trace context. History records a span of the step's own in that trace; an invalid one is ignored
-- Returns: the instance after the step
-- Raises:  what pawl_private.bound_actor raises; PW400, PW404, PW409, PW40G, PW412, PW413, PW422, PW42G, PW42K, PW428: see
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
  p_correlation_id text default null,
  p_traceparent text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
  v_actor text;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  select * into strict v_outcome from pawl.fire(
    p_tenants => array[p_tenant], p_ids => array[p_id], p_events => array[p_event], p_payloads => array[p_payload],
    p_keys => array[coalesce(p_key, '')], p_expected => array[coalesce('{' || p_expected_version || '}', '')],
    p_checked => array['*'], p_actors => array[v_actor], p_reasons => array[''],
    p_correlation_ids => array[coalesce(p_correlation_id, '')], p_traceparents => array[pawl_private.own_traceparent(p_traceparent)]);
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
-- p_events: patterns of events stand for themselves
-- p_actor, p_verified: as for fire
-- Returns: one row per event, by name
-- Raises:  what a guard or an assign raises even in silent mode
-- +goose StatementBegin
create function pawl.guard_holds(
  p_instance pawl.instance, p_events text[], p_payload jsonb, p_actor text default session_user, p_verified boolean default null
)
returns table (event text, holds boolean)
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.event, t.target is not null
  from unnest(p_events) as e (event)
  left join lateral pawl_private.choose(
    p_instance.workflow, p_instance.workflow_version, p_instance.state, e.event,
    pawl_private.document(p_instance, p_payload, pawl.now(), e.event, pawl_private.principal(p_actor, p_verified, false)), '*',
    p_instance.memory) t on true
  order by e.event
$$;
-- +goose StatementEnd

-- 20_instance/history_page.sql

-- history_page reads a page of an instance's history: the steps after the version p_after.
-- Returns: up to p_limit rows, in the order of their versions. The page ends with the row by which its contexts and
--          payloads have p_bytes, so it has at least one row if there are any. Only the documents of these rows are
--          read
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
    p_outcome.timeout_event, p_outcome.timeout_due_at, i.memory::jsonb
  from (select (p_outcome.instance).*) i
$$;
-- +goose StatementEnd

-- 20_instance/override.sql

-- override makes a step that an instance's definition does not allow now, in the name of an operator: along a transition
-- of an event whatever its guards say, or to any state of the instance's version. All else is as after every step:
-- entry and exit assigns, timers, invariants, eventless transitions, history (with kind 'forced'). A final instance does
-- not move, and a protected state is neither left nor entered. The audit has a row for the step, and one for a replay.
-- p_reason:        why; 1 to 1000 characters, not blank
-- p_expected:      '*' for any version, else an array literal of the versions that will do, such as '{3}'
-- p_to:            the path of a state; of a compound one, the instance gets into its initial state. Guards and values
--                  read 'forced' as $.event
-- p_context_patch: with p_to: a JSON Merge Patch (RFC 7396) of the context. What the states that are left assign comes
--                  before it, what the states that are entered assign comes after it
-- p_event, p_payload: in place of p_to. p_bypass: with p_event: 'guard'
-- p_target:        with p_event: a state; only a transition that leads there, or into it, is taken. Null for the first
-- p_checked:       as for fire
-- p_patch_checked: the version of the instance for which the caller has checked the patched context against the
--                  workflow's schema, or '*' for any; see 'context-unchecked'
-- p_verified:      as for fire. It counts only if the session is one of the service, as does p_caller
-- p_dry_run:       decide, and write and lock nothing; the caller's transaction may be read-only. The key plays no part
-- p_raises:        whether a refusal is raised, or returned as fire returns it. A refusal that is raised is not recorded
--                  for the key
-- p_caller:        who acts, for the audit: a JSON object; null for p_actor
-- Returns: the outcome. 'payload-unchecked' is as fire's. With 'context-unchecked', schema is an object of the schema and
--          the contexts before and after the patch: if the first fits the schema, the second must
-- Raises:  what pawl_private.bound_actor raises; PW400, PW404, PW409, PW40G, PW40P, PW412, PW413, PW422, PW42G, PW42K, PW428: see
--          pawl_private.condition; the detail is JSON. 40001 a key vanished while it was read: try again. What a guard or
--          an assign raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer, audit
-- +goose StatementBegin
create function pawl.override(
  p_id uuid, p_reason text, p_expected text, p_to text default null, p_context_patch jsonb default null,
  p_event text default null, p_payload jsonb default null, p_bypass text default null, p_target text default null,
  p_key text default null, p_tenant text default 'default', p_actor text default session_user,
  p_correlation_id text default null, p_traceparent text default null, p_checked text default '*',
  p_patch_checked text default '*', p_verified boolean default null, p_dry_run boolean default false,
  p_raises boolean default true, p_caller jsonb default null
) returns pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_memoize = off
-- Plans over JSON of unknown size look expensive, and would be compiled.
set jit = off
as $$
declare
  v_served boolean := pawl_private.is_service();
begin
  perform pawl_private.refuse_malformed(coalesce(
    pawl_private.force_fault(
      p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id, p_reason => p_reason,
      p_expected => p_expected),
    case
      when (p_event is null) = (p_to is null) then 'give either an event or a state to go to'
      when p_event is not null and p_bypass is distinct from 'guard'
        then 'an override by an event passes over guards: bypass must be guard. Fire the event if its guards are to count'
      when p_event is not null and p_context_patch is not null then 'a context patch goes with a state to go to'
      when p_to is not null and (p_payload is not null or p_bypass is not null or p_target is not null)
        then 'payload, bypass and target go with an event'
      when jsonb_typeof(p_context_patch) <> 'object' or pawl_private.is_too_deep(p_context_patch)
        then 'the context patch must be a JSON object, nested at most 64 deep'
    end));
  return pawl_private.force(
    p_kind => 'forced', p_id => p_id,
    p_command => (
      p_tenant, p_event, coalesce(p_payload, '{}'), p_key, coalesce(p_expected, ''), p_checked, p_reason,
      pawl_private.bound_actor(p_tenant, p_actor), case when v_served then p_verified end,
      false, false, null
    )::pawl_private.fire_command,
    p_to => p_to, p_patch => p_context_patch, p_patch_checked => p_patch_checked, p_target => p_target,
    p_correlation_id => p_correlation_id, p_traceparent => p_traceparent, p_dry_run => p_dry_run, p_raises => p_raises,
    p_caller => case when v_served then p_caller end);
end
$$;
-- +goose StatementEnd

-- 20_instance/preview.sql

-- preview decides what fire would decide, and writes nothing: a dry run. The caller's transaction may
-- be read-only. Keys play no part.
-- p_expected, p_checked: as for fire
-- p_instances: rows to decide for instead of the stored instances, one per command; null for the stored
-- p_actor, p_verified, p_by_timer: as for fire. p_by_task: whether the commands are for what became of tasks. p_now: when
--             it is decided; null for now
-- Returns: one outcome per command, in no order; an applied one shows the instance as it would be
-- Raises:  PW400 malformed-request if p_expected is not as described; what a guard or an assign raises even in silent
--          mode
-- +goose StatementBegin
create function pawl.preview(
  p_tenant text, p_ids uuid[], p_events text[], p_payloads jsonb[], p_expected text[], p_checked text[],
  p_instances pawl.instance[] default null, p_actor text default session_user, p_verified boolean default null,
  p_now timestamptz default null, p_by_timer boolean default false, p_by_task boolean default false
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.refuse_malformed(pawl_private.expected_fault(e.expected)) from unnest(p_expected) as e (expected);
  return query
  select c.ordinal::integer, d.code, false, d.instance, d.actions, d.guards, d.payload_schema, d.timeout_event, d.due_at
  from (select coalesce(p_now, pawl.now()) as now offset 0) n -- Read once: all commands are decided at one time.
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
      p_tenant, c.event, c.payload, '', c.expected, c.checked, null, p_actor, p_verified, p_by_timer, p_by_task, null
    )::pawl_private.fire_command) d;
end
$$;
-- +goose StatementEnd

-- 20_instance/simulate.sql

-- simulate decides an event for an instance that does not exist. It writes nothing.
-- p_position: {state, context, version, created_at, state_changed_at, expires_at, memory}, as an outcome shows them.
--             Without a state, the instance is created with the context first. Without times, it has just been created
-- p_event:    null to decide no event; may be one of what became of a task, such as 'done:charge'
-- p_checked, p_actor, p_verified: as for fire. p_now: when it happens; null for now
-- Returns: one outcome, as preview does; none if the workflow has no such version or state
-- Raises:  PW400 malformed-request; what preview raises
-- +goose StatementBegin
create function pawl.simulate(
  p_workflow text, p_workflow_version integer, p_position jsonb, p_event text, p_payload jsonb, p_checked text,
  p_actor text default session_user, p_verified boolean default null, p_now timestamptz default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := coalesce(p_now, pawl.now());
  v_instance pawl.instance;
  v_macrostep pawl_private.macrostep;
  v_by_task boolean := coalesce(p_event ~ '^(done|error|unknown|compensated):', false);
begin
  v_instance := pawl_private.simulated(p_workflow, p_workflow_version, p_position, v_now);
  if v_instance.id is null then
    return;
  end if;
  if p_position ->> 'state' is null then
    v_macrostep := pawl_private.begin_macrostep(
      p_instance => v_instance, p_principal => pawl_private.principal(p_actor, p_verified, false), p_reason => null,
      p_now => v_now, p_setting => (select g from pawl.setting g));
    v_instance := coalesce(v_macrostep.instance, v_instance);
  end if;
  if p_event is not null and v_macrostep.refusal is null then
    return query select o.*
    from pawl.preview(
      p_tenant => 'simulation', p_ids => array[v_instance.id], p_events => array[p_event],
      p_payloads => array[p_payload], p_expected => array['*'], p_checked => array[p_checked],
      p_instances => array[v_instance], p_actor => p_actor, p_verified => case when v_by_task then true else p_verified end,
      p_now => v_now, p_by_task => v_by_task) o;
  else
    return query select
      1, coalesce(v_macrostep.refusal, 'applied'), false, v_instance, v_macrostep.events,
      case when v_macrostep.broken is not null then array[v_macrostep.broken] end, null::jsonb, d.event, d.due_at
    from (select) one
    left join lateral pawl_private.next_deadline(v_instance, 0) d on v_macrostep.refusal is null;
  end if;
end
$$;
-- +goose StatementEnd

-- 20_instance/simulate_timeout.sql

-- simulate_timeout makes the next step that a timer or the lifetime makes by p_until, of an instance that does not
-- exist. It writes nothing. Deadlines are tried in their order, each at its time, but not before p_now.
-- p_position: as for simulate, with a state; and tried: how many timeouts of the state were refused, 0 if it is left
--             out
-- Returns: one row: the event and the time of the step, its outcome, and tried for the position after it. Without such
--          a step the outcome's code is 'none', and tried counts the timeouts that were refused. No row if the workflow
--          has no such version or state
-- Raises:  PW400 malformed-request; what preview raises
-- +goose StatementBegin
create function pawl.simulate_timeout(
  p_workflow text, p_workflow_version integer, p_position jsonb, p_now timestamptz, p_until timestamptz
) returns table (event text, at timestamptz, tried integer, outcome pawl.outcome)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_instance pawl.instance;
  v_deadline record;
begin
  v_instance := pawl_private.simulated(p_workflow, p_workflow_version, p_position, p_now);
  if v_instance.id is null then
    return;
  end if;
  tried := coalesce((p_position ->> 'tried')::integer, 0);
  loop
    select d.* into v_deadline from pawl_private.next_deadline(v_instance, tried) d;
    if not found or v_deadline.due_at > p_until then
      event := '';
      at := p_until;
      outcome := jsonb_populate_record(null::pawl.outcome, '{"ordinal": 1, "code": "none", "replayed": false}');
      outcome.instance := v_instance;
      outcome.timeout_event := v_deadline.event;
      outcome.timeout_due_at := v_deadline.due_at;
      return next;
      return;
    end if;
    event := v_deadline.event;
    at := greatest(v_deadline.due_at, p_now);
    select o.*
    into outcome
    from pawl.preview(
      p_tenant => 'simulation', p_ids => array[v_instance.id], p_events => array[event],
      p_payloads => array[pawl_private.timer_payload(event, v_deadline.due_at, v_instance.memory, at)], p_expected => array['*'],
      p_checked => array['*'], p_instances => array[v_instance], p_actor => 'pawl', p_now => at, p_by_timer => true) o;
    if (outcome).code not in ('guard-rejected', 'invariant-broken', 'transition-not-allowed') or v_deadline.tried is null then
      -- Behind an internal step the timeouts that were refused stay so.
      tried := case when (outcome).code = 'applied' and ((outcome).instance).state_changed_at >= at then 0 else tried end;
      return next;
      return;
    end if;
    if event like 'every:%' then
      v_instance := pawl_private.passed_over(v_instance, event, at);
    else
      tried := v_deadline.tried;
    end if;
  end loop;
end
$$;
-- +goose StatementEnd

-- 20_instance/tenant_of_instance.sql

-- tenant_of_instance finds the tenant that has an instance.
-- Returns: as pawl_private.tenant_of
-- +goose StatementBegin
create function pawl.tenant_of_instance(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.tenant_of(p_table => 'pawl.instance', p_id => p_id) $$;
-- +goose StatementEnd

-- 20_instance/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.create'),
  ('api', 'pawl.fire'),
  ('api', 'pawl.fire_by_keys'),
  ('api', 'pawl.preview'),
  ('api', 'pawl.override'),
  ('api', 'pawl.cancel'),
  ('api', 'pawl.instances'),
  ('api', 'pawl.instances_page'),
  ('api', 'pawl.history_page'),
  ('api', 'pawl.simulate'),
  ('api', 'pawl.simulate_timeout'),
  ('api', 'pawl.outcome_rows'),
  ('api', 'pawl.guard_holds'),
  ('api', 'pawl.tenant_of_instance'),
  ('worker', 'pawl.count_usage'),
  ('reader', 'pawl.instances'),
  ('reader', 'pawl.history_page'),
  ('caller', 'pawl.create_one'),
  ('caller', 'pawl.fire_one'),
  ('caller', 'pawl.fire_by_key'),
  ('operator', 'pawl.create_one'),
  ('operator', 'pawl.fire_one'),
  ('operator', 'pawl.fire_by_key'),
  ('operator', 'pawl.override'),
  ('operator', 'pawl.cancel');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.instance', null),
  ('api', 'pawl.instance_at', null),
  ('api', 'pawl.history', null),
  ('api', 'pawl.idempotency_key', '{tenant_id,key,decision,instance_id,version,expires_at,refusal}'),
  ('worker', 'pawl.instance', null),
  ('reader', 'pawl.instance', null),
  ('reader', 'pawl.instance_at', null),
  ('reader', 'pawl.history', null),
  ('reader', 'pawl.idempotency_key', null),
  ('reader', 'pawl.timer', null),
  ('reader', 'pawl.callback', '{tenant_id,instance_id,created_at}'),
  ('api', 'pawl.timer', null);

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
-- While more timers are due than a call of the fast lane fires, tenants take turns, with one timer at each turn. So a
-- tenant's timers wait for a call or two, however many another tenant's are due before them.
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
  after_tenant text collate "C" not null default '',
  constraint timer_lane_pkey primary key (name),
  constraint timer_lane_is_known check (name in ('fast', 'slow'))
);

comment on column pawl_private.timer_lane.after_tenant is
  'of the fast lane: the last tenant that had its turn while more timers were due than a call fires; empty to begin with the first';

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
  select u.event, u.due_at, u.position
  from (
    select a.event, a.due_at, row_number() over (order by a.due_at, a.place) as position
    from (
      select o.event, i.state_changed_at + o.timeout as due_at, o.place
      from pawl.workflow_state s
      cross join lateral unnest(s.timeouts, s.timeout_events) with ordinality as o (timeout, event, place)
      where s.workflow = i.workflow
        and s.workflow_version = i.workflow_version
        and s.state = i.state
      union all
      select m.key, (m.value ->> 'at')::timestamptz, (m.value ->> 'place')::bigint
      from jsonb_each(i.memory -> 'due') m
    ) a
  ) u
  where u.position > case when t.armed_version = i.version then t.tried else 0 end
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

-- timer_turns chooses the tenants of whose timers the next call of the fast lane fires some, while more timers are due
-- than a call fires. Tenants have their turns in the order of their names, behind the last one that had its turn. No more
-- than 1,000 tenants with timers are looked at. The caller must hold the lock of the fast lane.
-- Returns: up to p_limit tenants with due timers, none of which is disabled
-- Writes:  timer_lane
-- +goose StatementBegin
create function pawl_private.timer_turns(p_now timestamptz, p_limit integer) returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of tenants, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_tenants text[] := '{}';
  v_after text := (select l.after_tenant from pawl_private.timer_lane l where l.name = 'fast');
  v_begun boolean := v_after = '';
  v_next record;
begin
  for v_look in 1..1000 loop
    exit when cardinality(v_tenants) >= p_limit;
    select t.tenant_id, t.due_at
    into v_next
    from pawl.timer t
    where t.tenant_id > v_after and t.queued_version is distinct from t.armed_version
    order by t.tenant_id, t.due_at
    limit 1;
    if v_next.tenant_id is null then
      v_after := ''; -- Nobody is behind the last one: from the beginning.
      exit when v_begun or v_tenants <> '{}';
      v_begun := true;
      continue;
    end if;
    v_after := v_next.tenant_id;
    if v_next.due_at <= p_now and not pawl_private.is_disabled(v_after) then
      v_tenants := v_tenants || v_after;
    end if;
  end loop;
  update pawl_private.timer_lane l set after_tenant = v_after where l.name = 'fast' and l.after_tenant <> v_after;
  return v_tenants;
end
$$;
-- +goose StatementEnd

-- due_timers reads the timers of a lane that are due, the oldest first, and locks their instances. It leaves
-- out an instance that is locked, and those of disabled tenants, and looks at no more than 5,000 timers to find
-- others; at 1,000 with p_tenants.
-- p_queue:   a queue of the slow lane; null for the fast lane
-- p_tenants: in the fast lane, the tenants that take turns, with one timer at each turn; null for all, without turns
-- Returns: up to p_limit rows. tried: how many timeouts of the state were refused. due_at, event: the next deadline,
--          which need not be due; null if there is none. next_tried: as of next_deadline. queue: in the fast lane, the
--          queue that the timer must be moved to, untried; null if it is not known to be slow
-- Locks:   instance (for no key update, those that are not locked)
-- +goose StatementBegin
create function pawl_private.due_timers(p_now timestamptz, p_limit integer, p_queue integer, p_tenants text[] default null)
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
        where p_queue is null and p_tenants is null and t.due_at <= p_now
          and t.queued_version is distinct from t.armed_version
        order by t.due_at
        limit 5000
      )
      union all
      (
        select (t.timer).*
        from unnest(p_tenants) as d (tenant_id)
        cross join lateral (
          select o.timer, row_number() over () as turn
          from (
            select t as timer
            from pawl.timer t
            where t.tenant_id = d.tenant_id and t.due_at <= p_now and t.queued_version is distinct from t.armed_version
            order by t.tenant_id, t.due_at
            limit greatest(1000 / greatest(cardinality(p_tenants), 1), 1)
          ) o
        ) t
        order by t.turn
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
      where i.tenant_id = t.tenant_id and i.id = t.instance_id and not pawl_private.is_disabled(t.tenant_id)
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

-- fail_timer records why the step of a deadline could not be made. It postpones the timer by a minute, or to the next
-- deadline if that is earlier, and takes it out of the slow lane. p_tried: how many timeouts of the state were refused
-- before this one. p_error: the reason, for everybody who may read the instance. p_cause: the cause, for the log only.
-- A timer that repeats does not fail: it is tried again at its next time.
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
  if pawl_private.pass_over(p_instance, p_event, p_tried) then
    return jsonb_build_array(jsonb_build_object(
      'tenant', p_instance.tenant_id, 'workflow', p_instance.workflow, 'instance', p_instance.id, 'event', p_event,
      'reason', p_error, 'cause', p_cause));
  end if;
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

-- fire_timer_batch fires the given timeouts and lifetimes of locked instances. Their payloads show how late each was:
-- see timer_payload. If no guard of a timeout holds, the timer is armed for the instance's next deadline. If a step
-- cannot be made, the timer fails: see fail_timer. After an exception the batch is fired again, one by one. If the
-- statement timeout comes meanwhile, the timers from then on are left as they were. It comes once in a statement, so
-- the caller must not do much more.
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
        select pawl_private.timer_payload(d.event, d.due_at, case when d.event like 'every:%' then (
          select i.memory from pawl.instance i where i.tenant_id = d.tenant and i.id = d.id
        ) end, pawl.now())
        from unnest(p_tenants, p_ids, p_events, p_due_at) as d (tenant, id, event, due_at)),
      p_keys => v_none,
      p_expected => array(select format('{%s}', v.version) from unnest(p_versions) as v (version)),
      p_checked => array_fill('*'::text, array[v_size]),
      p_actors => array_fill('pawl'::text, array[v_size]),
      p_reasons => v_none, p_correlation_ids => v_none,
      p_traceparents => array(
        select pawl_private.next_traceparent(pawl_private.traceparent_of(d.tenant, d.id, d.version))
        from unnest(p_tenants, p_ids, p_versions) as d (tenant, id, version)),
      p_by_timer => true) o
  loop
    if v_outcome.code = 'applied' then
      fired := fired + 1;
      continue;
    end if;
    select i.* into strict v_instance
    from pawl.instance i
    where i.tenant_id = p_tenants[v_outcome.ordinal] and i.id = p_ids[v_outcome.ordinal];
    if v_outcome.code in ('guard-rejected', 'invariant-broken', 'transition-not-allowed') then
      if not pawl_private.pass_over(v_instance, p_events[v_outcome.ordinal], p_tried[v_outcome.ordinal]) then
        perform pawl_private.set_timer(v_instance, p_next_tried[v_outcome.ordinal]);
      end if;
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
  if not pawl_private.timed_out() then
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
    and not pawl_private.is_disabled(q.tenant_id)
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
-- those that are known to be slow to the slow lane. If more are due, tenants take turns. The statement timeout
-- bounds the call. If it comes while guards run, the call returns and has fired nothing, or the timers before that.
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
-- Writes:  instance, history, timer, slow_queue, timer_lane
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
  v_turns text[];
begin
  looked_at := -1;
  fired := 0;
  late := interval '0';
  failures := '[]';
  timed_out := false;
  perform from pawl_private.timer_lane l where l.name = 'fast' for update skip locked;
  if found then
    looked_at := 0;
    if exists (
      select from pawl.timer t
      where t.due_at <= v_now and t.queued_version is distinct from t.armed_version
      order by t.due_at
      offset greatest(p_limit, 0)
      limit 1
    ) then
      v_turns := pawl_private.timer_turns(p_now => v_now, p_limit => p_limit);
    end if;
    for v_timer in
      select t.* from pawl_private.due_timers(p_now => v_now, p_limit => p_limit, p_queue => null, p_tenants => v_turns) t
    loop
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
  select min(n.due_at) - v_now
  into next_in
  from (
    -- Of those that are due, the first of a tenant that is not disabled, if one is among the first; then those to come.
    select o.due_at
    from (
      select t.tenant_id, t.due_at
      from pawl.timer t
      where t.due_at <= v_now and t.queued_version is distinct from t.armed_version
      order by t.due_at
      limit greatest(p_limit, 0)::bigint + 1
    ) o
    where not pawl_private.is_disabled(o.tenant_id)
    union all
    (
      select t.due_at
      from pawl.timer t
      where t.due_at > v_now and t.queued_version is distinct from t.armed_version
      order by t.due_at
      limit 1
    )
  ) n;
  if v_turns is not null and exists (select from pawl_private.timer_lane l where l.name = 'fast' and l.after_tenant <> '') then
    next_in := interval '0'; -- There may be tenants with due timers behind the last turn.
  end if;
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
    pawl_private.deadline_event(i.state_changed_at, s.timeouts, s.timeout_events, i.memory, i.expires_at),
    pawl_private.deadline(i.state_changed_at, s.timeouts, i.memory, i.expires_at),
    null::text
  from pawl.instance_at i
  join pawl.workflow_state s
    on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
  where i.tenant_id = p_tenant and i.id = p_id and i.version = p_version and i.status = 'active'
    and (i.expires_at is not null or s.timeouts <> '{}' or i.memory ? 'due')
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
  ('worker', 'pawl.fire_timers'),
  ('worker', 'pawl.fire_slow_timers'),
  ('api', 'pawl.instance_timeout'),
  ('api', 'pawl.past_timeout'),
  ('reader', 'pawl.instance_timeout');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.next_timeout', null),
  ('reader', 'pawl.next_timeout', null);

-- 35_finding/tables.sql

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

-- 35_finding/grants.sql

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.finding', null),
  ('worker', 'pawl.finding', null),
  ('reader', 'pawl.finding', null);

-- 40_log/tables.sql

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

-- findings_between is steps_between for findings. A finding that has a position is left out: its transaction id may be
-- another server's. The planner inlines it.
-- Returns: findings, in no order
-- +goose StatementBegin
create function pawl_private.findings_between(p_from pg_snapshot, p_until pg_snapshot) returns setof pawl.finding
language sql stable
as $$
  select n.*
  from (
    select f.*
    from pawl.finding f
    where f.xid >= pg_snapshot_xmax(p_from) and f.xid < pg_snapshot_xmax(p_until) and pg_visible_in_snapshot(f.xid, p_until)
    union all
    select f.*
    from pg_snapshot_xip(p_from) as x (xid)
    cross join lateral (select f.* from pawl.finding f where f.xid = x.xid offset 0) f
    where pg_visible_in_snapshot(x.xid, p_until)
  ) n
  where not exists (select from pawl.log l where l.tenant_id = n.tenant_id and l.finding_id = n.id offset 0)
$$;
-- +goose StatementEnd

-- audit_between is steps_between for the audit. A row that has a position is left out: its transaction id may be another
-- server's. The planner inlines it.
-- Returns: rows of the audit, in no order
-- +goose StatementBegin
create function pawl_private.audit_between(p_from pg_snapshot, p_until pg_snapshot) returns setof pawl.audit
language sql stable
as $$
  select n.*
  from (
    select a.*
    from pawl.audit a
    where a.xid >= pg_snapshot_xmax(p_from) and a.xid < pg_snapshot_xmax(p_until) and pg_visible_in_snapshot(a.xid, p_until)
    union all
    select a.*
    from pg_snapshot_xip(p_from) as x (xid)
    cross join lateral (select a.* from pawl.audit a where a.xid = x.xid offset 0) a
    where pg_visible_in_snapshot(x.xid, p_until)
  ) n
  where not exists (select from pawl.audit_log l where l.tenant_id = n.tenant_id and l.seq = n.seq offset 0)
$$;
-- +goose StatementEnd

-- step_at reads a step by its full key, to which the limit binds it: see module instance. The planner inlines it. Where
-- the row is passed on as a whole, as to message_of, it would be put together column by column, so that its readers do
-- not use this function.
-- Returns: one row, or none if the instance was purged
-- +goose StatementBegin
create function pawl_private.step_at(p_tenant pawl.tenant_id, p_instance uuid, p_version bigint) returns setof pawl.history
language sql stable
as $$
  select h.* from pawl.history h where h.tenant_id = p_tenant and h.instance_id = p_instance and h.version = p_version limit 1
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

-- epoch_at is the epoch in which a position was given; the present one for null.
-- +goose StatementBegin
create function pawl_private.epoch_at(p_position bigint) returns bigint
language sql stable
as $$ select coalesce(max(e.epoch), 1) from pawl.log_epoch e where p_position is null or e.first_position < p_position $$;
-- +goose StatementEnd

-- finding_message_of makes the message of a finding. The planner inlines it.
-- p_position: null for none, which the message has as 0
-- Returns: one row
-- +goose StatementBegin
create function pawl_private.finding_message_of(p_finding pawl.finding, p_position bigint) returns setof pawl.finding_message
language sql stable
as $$
  select
    (p_finding).tenant_id, (p_finding).id, (p_finding).kind, (p_finding).instance_id, (p_finding).workflow, (p_finding).state,
    (p_finding).visit_version, (p_finding).since, (p_finding).opened_at, (p_finding).closed_at, (p_finding).detail,
    pawl_private.epoch_at(p_position), coalesce(p_position, 0)
$$;
-- +goose StatementEnd

-- logged_at is when the step of a row of the log was made, or its finding opened; null if it is gone.
-- +goose StatementBegin
create function pawl_private.logged_at(p_row pawl.log) returns timestamptz
language plpgsql stable
as $$
begin
  if p_row.finding_id is not null then
    return (select f.opened_at from pawl.finding f where f.tenant_id = p_row.tenant_id and f.id = p_row.finding_id);
  end if;
  return (
    select h.at
    from pawl.history h
    where h.tenant_id = p_row.tenant_id and h.instance_id = p_row.instance_id and h.version = p_row.version
  );
end
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

-- audit_until is log_until for the audit.
-- +goose StatementBegin
create function pawl_private.audit_until(p_after bigint, p_limit integer) returns bigint
language sql stable
as $$
  select max(l.position) from (select l.position from pawl.audit_log l where l.position > p_after order by l.position limit p_limit) l
$$;
-- +goose StatementEnd

-- commit_durably makes the commit of this transaction durable before anybody sees what it wrote, also where the
-- session would not wait.
-- +goose StatementBegin
create function pawl_private.commit_durably() returns void
language plpgsql volatile
as $$
begin
  if current_setting('synchronous_commit') in ('off', 'local') then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end
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
  v_read bigint := (select min(c.position) from pawl.consumer c where not c.audit);
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

-- steps_lost says whether steps of a tenant, or of all (*), after p_after have been purged: of p_workflows, or of all
-- workflows if the array is empty or null.
-- p_floor: what was swept up to this position does not count
-- +goose StatementBegin
create function pawl_private.steps_lost(p_tenant text, p_workflows text[], p_after bigint, p_until bigint, p_floor bigint) returns boolean
language sql stable
as $$
  select exists (
    select from pawl_private.log_floor f
    where (p_tenant = '*' or f.tenant_id = p_tenant) and f.position > greatest(p_after, p_floor)
      and (coalesce(cardinality(p_workflows), 0) = 0 or f.workflow = any (p_workflows))
  ) or exists (
    select
    from (select l.* from pawl.log l where l.position > greatest(p_after, p_floor) and l.position <= p_until and (p_tenant = '*' or l.tenant_id = p_tenant)) l
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
-- Returns: whether p_leader still leads in p_term, and p_position is still that of the same step or row; if not,
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
    and exists (select from pawl.log_head h where h.epoch = p_epoch and case when c.audit then h.audit_position else h.position end >= p_position);
  return found;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_create.sql

-- consumer_create creates a consumer, unless there is one of this name. It begins with the oldest step that is
-- kept if p_from_start, else with the steps that are committed from now on.
-- p_audit: whether it reads the audit, and not the steps. Unless p_from_start, it begins with the rows that get their
--          position from now on
-- Raises:  PW400 malformed-request if an argument breaks a rule, or if the consumer that there is reads the other
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_create(p_consumer text, p_from_start boolean default false, p_audit boolean default false) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
begin
  insert into pawl.consumer (name, audit, position, since, term, leader, lease_until, relayed, advanced_at)
  select
    p_consumer, p_audit, case when p_from_start then 0 when p_audit then h.audit_position else h.position end,
    case when p_from_start or p_audit then '1:1:' else pg_current_snapshot() end, 0, '', v_now, 0, v_now
  from pawl.log_head h
  on conflict on constraint consumer_pkey do nothing;
  if not found and exists (select from pawl.consumer c where c.name = p_consumer and c.audit <> p_audit) then
    perform pawl_private.raise_condition('malformed-request', format(
      'the consumer %s reads %s: choose another name', p_consumer, case when p_audit then 'steps' else 'the audit' end));
  end if;
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
-- p_audit: as for consumer_create
-- Returns: the new term; null if another process leads, or if there is no such consumer
-- Locks:   consumer
-- Writes:  consumer
-- +goose StatementBegin
create function pawl.consumer_lead(p_consumer text, p_leader text, p_lease interval, p_audit boolean default false) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_term bigint;
begin
  update pawl.consumer c
  set term = c.term + 1, leader = p_leader, lease_until = v_now + p_lease
  where c.name = p_consumer and c.audit = p_audit and (c.lease_until <= v_now or c.leader = p_leader)
  returning c.term into v_term;
  return v_term;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_next.sql

-- consumer_next says which page of the log, or of the audit, a consumer is to read next: up to p_limit steps or rows.
-- Returns: epoch: the present one. until: the last position of the page; null if there is nothing to read
-- +goose StatementBegin
create function pawl.consumer_next(p_consumer text, p_limit integer, out epoch bigint, out until bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select h.epoch, case when c.audit then pawl_private.audit_until(c.position, p_limit) else pawl_private.log_until(c.position, p_limit) end
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
    where c.name = p_consumer and not c.audit
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

-- 40_log/consumer_read_audit.sql

-- consumer_read_audit reads rows of the audit for a consumer, up to p_until.
-- Returns: the rows that were not purged, in the order of position. The page ends with the row by which its documents
--          have p_bytes
-- +goose StatementBegin
create function pawl.consumer_read_audit(p_consumer text, p_until bigint, p_bytes bigint) returns setof pawl.audit_message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_row pawl.audit_message;
  v_bytes bigint := 0;
begin
  for v_row in
    select a.*, l.epoch, l.position
    from pawl.consumer c
    cross join lateral (
      select l.* from pawl.audit_log l where l.position > c.position and l.position <= p_until order by l.position
    ) l
    cross join lateral (
      select a.* from pawl.audit a where a.tenant_id = l.tenant_id and a.seq = l.seq limit 1
    ) a
    where c.name = p_consumer and c.audit
    order by l.position
  loop
    return next v_row;
    v_bytes := v_bytes + coalesce(octet_length(v_row.before::text), 0) + coalesce(octet_length(v_row.after::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
-- +goose StatementEnd

-- 40_log/consumer_read_findings.sql

-- consumer_read_findings reads the findings among a consumer's positions up to p_until.
-- Returns: the findings that are still kept and were opened after since, in the order of position
-- +goose StatementBegin
create function pawl.consumer_read_findings(p_consumer text, p_until bigint) returns setof pawl.finding_message
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
  select m.*
  from pawl.consumer c
  cross join lateral (
    select l.* from pawl.log l where l.position > c.position and l.position <= p_until and l.finding_id is not null order by l.position
  ) l
  cross join lateral (
    select f as finding from pawl.finding f where f.tenant_id = l.tenant_id and f.id = l.finding_id limit 1
  ) f
  cross join lateral pawl_private.finding_message_of(f.finding, l.position) m
  where c.name = p_consumer and not c.audit
    and pawl_private.step_follows((f.finding).xid, (f.finding).seq, c.since, c.later_seq)
  order by l.position
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
--
-- On another server the rows of the audit without a position get one, too. Findings without one are written anew, as steps
-- are. No look and no fold goes on meanwhile, since they hold the row of their consumer. Nor does the healer, which writes findings
-- and then history: like a look it begins with the row of watch.
-- Returns: epoch: the present one. began: whether it began now. restored: whether the database has come from
--          another server
-- Raises:  40001 another process leads; 55P03 lock_timeout: a transaction that has made steps, or opened findings, is
--          still open; ask again
-- Locks:   on another server watch (exclusive), history (share), finding (share); log_head, consumer, subscription
-- Writes:  log_epoch, log_head, audit_log, finding, history, consumer, subscription, purged_instance, log_mark
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
  v_rows bigint := 0;
begin
  select s.* into strict v_server from pawl_private.server_of_log() s;
  select e.* into v_last from pawl.log_epoch e order by e.epoch desc limit 1;
  restored := case
    -- Before the first sequencer, a row of another server shows by a transaction id that this one has not reached.
    when v_last.epoch is null then exists (select from pawl.history h where h.xid >= pg_snapshot_xmax(pg_current_snapshot()))
      or exists (select from pawl.audit a where a.xid >= pg_snapshot_xmax(pg_current_snapshot()))
    else (v_last.system_identifier, v_last.database_id, v_last.table_id)
      <> (v_server.system_identifier, v_server.database_id, v_server.table_id)
  end;
  began := restored or v_last.epoch is null or v_last.timeline <> v_server.timeline;
  if not began then
    epoch := v_last.epoch;
    return;
  end if;
  if restored then
    perform pawl_private.commit_durably();
    lock table pawl_private.watch in exclusive mode;
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
    v_head.first_seq := setval('pawl.history_seq_seq', greatest(
      nextval('pawl.history_seq_seq'), (select max(h.seq) + 1 from pawl.history h), (select max(f.seq) + 1 from pawl.finding f)));
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
    -- In the order of the fold and of a look: they lock a consumer before they write findings.
    perform from pawl.consumer c order by c.name for no key update;
    lock table pawl.finding in share mode;
    for v_step in
      select f.ctid as place
      from pawl.finding f
      where not exists (select from pawl.log l where l.tenant_id = f.tenant_id and l.finding_id = f.id)
      order by f.seq
    loop
      update pawl.finding f set seq = default, xid = default where f.ctid = v_step.place;
    end loop;
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
  if restored then
    insert into pawl.audit_log (position, epoch, tenant_id, seq)
    select h.audit_position + row_number() over (order by a.seq), log_begin.epoch, a.tenant_id, a.seq
    from pawl.audit a
    cross join pawl.log_head h
    where not exists (select from pawl.audit_log l where l.tenant_id = a.tenant_id and l.seq = a.seq);
    get diagnostics v_rows = row_count;
  end if;
  update pawl.log_head h
  set epoch = log_begin.epoch, epoch_snapshot = v_head.epoch_snapshot, snapshot = coalesce(v_head.snapshot, h.snapshot),
    first_seq = coalesce(v_head.first_seq, h.first_seq), audit_position = h.audit_position + v_rows,
    lease_until = greatest(h.lease_until, pawl.now() + interval '10 seconds')
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
  select
    count(*), coalesce(array_agg(distinct s.instance_id) filter (where s.instance_id is not null), '{}'),
    coalesce(array_agg(distinct s.tenant_id::text) filter (where s.instance_id is not null), '{}')
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
-- p_tenant: * for all tenants
-- p_since, p_server: what the call before returned; null in the first call
-- Returns: since: the snapshot: p_since, or a new one if it is null or the server has been started since. server:
--          when this server was started. epoch, place: the present end of the log. settled: whether all steps that
--          since sees have a position; false while there is no sequencer
-- +goose StatementBegin
create function pawl.log_settled(
  p_tenant text, p_since pg_snapshot, p_server timestamptz,
  out since pg_snapshot, out server timestamptz, out epoch bigint, out place bigint, out settled boolean
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
  place := v_head.position;
  -- Without a sequencer there may be any number of steps to look at, and none gets a position.
  settled := epoch > 0 and v_head.lease_until > pawl.now() and not exists (
    select from pawl_private.steps_between(v_head.snapshot, since, v_head.first_seq) h where p_tenant = '*' or h.tenant_id = p_tenant
  );
end
$$;
-- +goose StatementEnd

-- 40_log/log_sweep.sql

-- log_sweep deletes rows of purged instances from the log, and notes the largest position of each tenant's workflow. It
-- looks at p_limit rows after p_after. A pass over the log takes many calls. Its first call gets no p_since, and the
-- others what it returned.
-- Returns: since: null if nothing is to be swept, if p_leader does not lead in p_term, or if the server is not that of
--          the present epoch. last: the last position that was looked at; null at the end of the pass. swept: how many
--          rows were deleted
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

-- log_tick gives positions to the steps, the findings and the rows of the audit that were committed since the last tick, and
-- renews the sequencer's lease when a third of it has passed. It must be a transaction of its own, committed synchronously, and the
-- commit must not be cancelled: a commit that waits for a standby and is cancelled shows positions that no
-- standby has.
-- Returns: leads: whether p_leader still leads in p_term, on the server of the present epoch; if not, nothing is
--          changed. steps: how many steps and findings got a position
-- Locks:   log_head
-- Writes:  log, audit_log, log_head, log_mark
-- +goose StatementBegin
create function pawl.log_tick(p_leader text, p_term bigint, p_lease interval, out leads boolean, out steps bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_began timestamptz := clock_timestamp();
  v_head pawl.log_head;
  v_snapshot pg_snapshot;
  v_last bigint;
  v_rows bigint;
begin
  -- No lock yet: it would draw this transaction's id before the snapshot is taken. See the module's comment.
  select h.* into v_head from pawl.log_head h where h.leader = p_leader and h.term = p_term;
  leads := found;
  steps := 0;
  if not leads then
    return;
  end if;
  v_snapshot := pg_current_snapshot();
  if v_head.lease_until > v_now + p_lease * 2 / 3
    and not exists (select from pawl_private.steps_between(v_head.snapshot, v_snapshot, v_head.first_seq))
    and not exists (select from pawl_private.audit_between(v_head.snapshot, v_snapshot))
    and not exists (select from pawl_private.findings_between(v_head.snapshot, v_snapshot))
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
  perform pawl_private.commit_durably();
  perform from pawl.log_head h
  where h.leader = p_leader and h.term = p_term and h.position = v_head.position
  for no key update;
  leads := found;
  if not leads then
    return;
  end if;
  insert into pawl.log (position, tenant_id, instance_id, version, finding_id)
  select v_head.position + row_number() over (order by n.seq), n.tenant_id, n.instance_id, n.version, n.finding_id
  from (
    select h.seq, h.tenant_id, h.instance_id, h.version, null::uuid as finding_id
    from pawl_private.steps_between(v_head.snapshot, v_snapshot, v_head.first_seq) h
    union all
    select f.seq, f.tenant_id, null, null, f.id
    from pawl_private.findings_between(v_head.snapshot, v_snapshot) f
  ) n;
  get diagnostics steps = row_count;
  v_last := v_head.position + steps;
  insert into pawl.audit_log (position, epoch, tenant_id, seq)
  select v_head.audit_position + row_number() over (order by a.seq), v_head.epoch, a.tenant_id, a.seq
  from pawl_private.audit_between(v_head.snapshot, v_snapshot) a;
  get diagnostics v_rows = row_count;
  update pawl.log_head h
  set snapshot = v_snapshot, position = v_last, audit_position = v_head.audit_position + v_rows, lease_until = v_now + p_lease;
  insert into pawl_private.log_mark (position, snapshot, marked_at)
  select v_last, v_snapshot, v_now
  where steps > 0 and not exists (
    select
    from (select m.position, m.marked_at from pawl_private.log_mark m order by m.position desc limit 1) m
    where m.position > v_last - 10000 and m.marked_at > v_now - interval '1 minute'
  );
  if found then
    -- The last mark up to which everything has been read, and later ones, are of use.
    delete from pawl_private.log_mark m
    where m.position < (
      select max(o.position)
      from pawl_private.log_mark o
      where o.position <= coalesce((select min(c.position) from pawl.consumer c where not c.audit), v_last)
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
-- p_tenant, p_floor: as for stream_read
-- Returns: as log_place; and until: the last position of the page, or null if there is none. steps: how many
--          steps are the tenant's
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
    select max(l.position), count(*) filter (where l.finding_id is null and (p_tenant = '*' or l.tenant_id = p_tenant))
    into until, steps
    from (select l.position, l.tenant_id, l.finding_id from pawl.log l where l.position > p_position order by l.position limit p_limit) l;
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
-- p_tenant: * for all tenants
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
      where l.position > p_after and l.position <= p_until and (p_tenant = '*' or l.tenant_id = p_tenant)
      order by l.position
    ) l
    cross join lateral pawl_private.step_at(l.tenant_id, l.instance_id, l.version) h
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
  ('worker', 'pawl.log_lead'),
  ('worker', 'pawl.log_resign'),
  ('worker', 'pawl.log_begin'),
  ('worker', 'pawl.log_tick'),
  ('worker', 'pawl.log_sweep'),
  ('api', 'pawl.log_place'),
  ('api', 'pawl.log_moved'),
  ('api', 'pawl.log_settled'),
  ('worker', 'pawl.log_moved'),
  ('worker', 'pawl.consumer_create'),
  ('worker', 'pawl.consumer_lead'),
  ('worker', 'pawl.consumer_resign'),
  ('worker', 'pawl.consumer_renew'),
  ('worker', 'pawl.consumer_next'),
  ('worker', 'pawl.consumer_read'),
  ('worker', 'pawl.consumer_read_findings'),
  ('worker', 'pawl.consumer_read_audit'),
  ('worker', 'pawl.consumer_advance'),
  ('api', 'pawl.stream_look'),
  ('api', 'pawl.stream_place'),
  ('api', 'pawl.stream_read'),
  ('api', 'pawl.stream_instance');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.log_head', null),
  ('reader', 'pawl.log_head', null),
  ('reader', 'pawl.log_epoch', null),
  ('reader', 'pawl.log', null),
  ('reader', 'pawl.audit_log', null),
  ('reader', 'pawl.consumer', null);

-- 45_connection/tables.sql

-- Module connection: the services of others that tasks call over HTTP, and how to reach them.
--
-- A definition names a connection, and each tenant has its own connections. So definitions hold neither addresses nor
-- secrets.
--
-- A secret is sealed by the service, if it has a key, for its tenant, connection and column. No role may read it from the
-- table. The invoker gets it from connection_endpoints. Instead of a secret, a connection may name a variable of the
-- process that calls.
--
-- A service that keeps failing has its circuit opened. Then it is probed with one call at a time, at growing intervals,
-- until one succeeds. A connection whose secret cannot be had rests with a finding. Tasks wait meanwhile and lose no
-- attempt.
--
-- Lock order: connection, by tenant and name, after all of the engine's and before consumer.

-- connection is a service that tasks call.
create table pawl.connection (
  tenant_id pawl.tenant_id not null,
  name text collate "C" not null,
  version pawl.version not null,
  base_url text not null,
  auth pawl.object not null,
  secret text,
  headers pawl.object not null,
  timeout interval,
  concurrency integer not null,
  tls_ca text,
  failures integer not null default 0,
  circuit_open_until timestamptz,
  finding text,
  created_at timestamptz not null,
  created_by pawl.actor not null,
  updated_at timestamptz not null,
  constraint connection_pkey primary key (tenant_id, name),
  constraint connection_tenant_fkey foreign key (tenant_id) references pawl.tenant (id),
  constraint connection_name_is_a_slug check (name ~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$'),
  constraint connection_name_has_1_to_63_characters check (length(name) between 1 and 63),
  constraint connection_base_url_has_1_to_2048_characters check (length(base_url) between 1 and 2048),
  constraint connection_base_url_is_http_without_user_query_and_fragment check (base_url ~ '^https?://[^/?#@]+(/[^?#]*)?$'),
  constraint connection_auth_has_a_known_type check (coalesce(auth ->> 'type' in ('none', 'bearer', 'basic', 'header'), false)),
  constraint connection_auth_holds_no_secret check (auth - '{type,user,name,env}'::text[] = '{}'),
  constraint connection_auth_names_a_user_if_it_is_basic check ((auth ? 'user') = (auth ->> 'type' = 'basic')),
  constraint connection_auth_names_a_header_if_that_is_its_type check ((auth ? 'name') = (auth ->> 'type' = 'header')),
  -- What is known to be absent and what is known to be present exclude one another.
  constraint connection_has_a_secret_or_a_variable_unless_it_has_no_auth
    check (case when auth ->> 'type' = 'none' then not auth ? 'env' and secret is null else (auth ? 'env') = (secret is null) end),
  constraint connection_secret_has_1_to_32768_characters check (length(secret) between 1 and 32768),
  constraint connection_headers_have_up_to_128_KiB check (octet_length(headers::text) <= 131072),
  constraint connection_timeout_is_from_100_ms_to_10_minutes check (timeout between '100 milliseconds' and '10 minutes'),
  constraint connection_concurrency_is_from_1_to_512 check (concurrency between 1 and 512),
  constraint connection_tls_ca_has_1_to_65536_characters check (length(tls_ca) between 1 and 65536),
  constraint connection_failures_are_counted check (failures >= 0)
)
-- There are few rows. Those of failing services are updated often: fillfactor keeps that in their page.
with (fillfactor = 50);

comment on column pawl.connection.version is 'counts the changes of its settings, and is the ETag';
comment on column pawl.connection.auth is 'type; user of basic, name of header; env, the variable that has the secret';
comment on column pawl.connection.secret is 'sealed or not; null without one';
comment on column pawl.connection.headers is 'names and texts, sent with each request';
comment on column pawl.connection.timeout is 'the longest that an attempt may take; null for what the task says';
comment on column pawl.connection.concurrency is 'how many calls a replica makes at a time';
comment on column pawl.connection.tls_ca is 'PEM certificates that may sign the service''s, instead of those of the system; null for these';
comment on column pawl.connection.failures is 'how many attempts have failed in a row';
comment on column pawl.connection.circuit_open_until is 'nothing is sent before this time';
comment on column pawl.connection.finding is 'why the secret cannot be had, so that nothing is sent; null if it can, as far as is known';

-- connection_row is a connection without its secret, as everybody but the invoker sees it.
create view pawl.connection_row as
select
  c.tenant_id, c.name, c.version, c.base_url, c.auth, c.headers, c.timeout, c.concurrency, c.tls_ca, c.failures,
  c.circuit_open_until, c.finding, c.created_at, c.created_by, c.updated_at
from pawl.connection c;

-- connection_endpoint is what the invoker needs to call a connection's service. secret: sealed or not; '' if there is none.
-- tls_ca: '' for the system's. resting: the connection has a finding. It is a shape, as pawl.outcome_row is, and never
-- holds rows.
create view pawl.connection_endpoint as
select ''::text as tenant_id, ''::text as name, ''::text as base_url, '{}'::jsonb as auth, ''::text as secret,
  '{}'::jsonb as headers, null::interval as timeout, 0 as concurrency, ''::text as tls_ca, false as resting
where false;

-- 45_connection/private.sql

-- circuit_open_for is for how long a circuit opens after so many failed attempts in a row; null while it stays closed.
-- Afterwards the circuit is half-open: one attempt at a time probes the other side. p_rest is the time after the fifth
-- failure; each further failure doubles it, up to ten minutes.
-- +goose StatementBegin
create function pawl_private.circuit_open_for(p_failures integer, p_rest interval) returns interval
language sql immutable parallel safe
as $$
  select case when p_failures >= 5 then least(p_rest * 2 ^ least(p_failures - 5, 20), interval '10 minutes') end
$$;
-- +goose StatementEnd

-- connection_document is a connection for the audit; null for none. Of headers it has the names.
-- +goose StatementBegin
create function pawl_private.connection_document(p_connection pawl.connection) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select case when p_connection.name is not null then
  jsonb_build_object(
    'base_url', p_connection.base_url, 'auth', p_connection.auth,
    'headers', (select coalesce(jsonb_agg(h.name order by h.name), '[]') from jsonb_object_keys(p_connection.headers) h (name)),
    'timeout_ms', (extract(epoch from p_connection.timeout) * 1000)::integer, 'concurrency', p_connection.concurrency,
    'tls_ca_sha256', encode(sha256(convert_to(p_connection.tls_ca, 'UTF8')), 'hex'))
end $$;
-- +goose StatementEnd

-- refuse_changed raises 'version-mismatch' unless a connection is as its caller expects.
-- p_expected: as for pawl.fire
-- p_version:  null if there is no such connection
-- +goose StatementBegin
create function pawl_private.refuse_changed(p_expected text, p_version bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_expected = '' or p_expected = '*' and p_version is not null then
    return;
  elsif p_version is null then
    perform pawl_private.raise_condition('version-mismatch', 'there is no such connection, so it has no version');
  elsif not p_version = any (p_expected::bigint[]) then
    perform pawl_private.raise_condition(
      'version-mismatch', format('the connection is at version %s; read it again and decide anew', p_version),
      jsonb_build_object('version', p_version));
  end if;
end
$$;
-- +goose StatementEnd

-- 45_connection/connection_delete.sql

-- connection_delete deletes a connection. Tasks that name it wait until there is one again.
-- p_expected: as for connection_put
-- Returns: whether there was one
-- Raises:  PW412 version-mismatch
-- Locks:   connection
-- Writes:  connection, audit
-- +goose StatementBegin
create function pawl.connection_delete(p_tenant text, p_name text, p_expected text default '', p_caller jsonb default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_connection pawl.connection;
begin
  select * into v_connection from pawl.connection c where c.tenant_id = p_tenant and c.name = p_name for update;
  if not found then
    return false;
  end if;
  perform pawl_private.refuse_changed(p_expected, v_connection.version);
  delete from pawl.connection c where c.tenant_id = p_tenant and c.name = p_name;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'connection.delete', p_target => p_name,
    p_before => pawl_private.connection_document(v_connection));
  return true;
end
$$;
-- +goose StatementEnd

-- 45_connection/connection_endpoints.sql

-- connection_endpoints reads how to call the services of connections.
-- Returns: one row per connection that exists, in no order
-- +goose StatementBegin
create function pawl.connection_endpoints(p_tenants text[], p_names text[]) returns setof pawl.connection_endpoint
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select
    c.tenant_id::text, c.name, c.base_url, c.auth::jsonb, coalesce(c.secret, ''), c.headers::jsonb, c.timeout, c.concurrency,
    coalesce(c.tls_ca, ''), c.finding is not null
  from unnest(p_tenants, p_names) as k (tenant_id, name)
  cross join lateral (
    select c.* from pawl.connection c where c.tenant_id = k.tenant_id and c.name = k.name limit 1
  ) c
$$;
-- +goose StatementEnd

-- 45_connection/connection_finding.sql

-- connection_finding notes which connections have secrets that the invoker can have, or cannot. One with a finding rests
-- for p_rest, and is then looked at again. Its tasks wait and lose no attempt.
-- p_findings: why the secret cannot be had; '' if it can, which ends the rest
-- Locks:   connection, by tenant and name, those that change
-- Writes:  connection
-- +goose StatementBegin
create function pawl.connection_finding(p_tenants text[], p_names text[], p_findings text[], p_rest interval) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_look record;
begin
  for v_look in
    select *
    from unnest(p_tenants, p_names, p_findings) as k (tenant_id, name, finding)
    order by k.tenant_id collate "C", k.name collate "C"
  loop
    update pawl.connection c
    set
      finding = nullif(v_look.finding, ''),
      circuit_open_until = case when v_look.finding <> '' then greatest(c.circuit_open_until, v_now + p_rest) end
    where c.tenant_id = v_look.tenant_id and c.name = v_look.name and (v_look.finding <> '' or c.finding is not null);
  end loop;
end
$$;
-- +goose StatementEnd

-- 45_connection/connection_put.sql

-- connection_put makes a connection, or replaces all of its settings. Its circuit is closed and its finding forgotten.
--
-- A replacement without a secret keeps the one that there is, if it goes to the same place in the same way: base_url, auth
-- and tls_ca are as before. Otherwise who may change a connection could have its secret sent to a server of their own.
-- p_auth:     type, user, name, env; without the secret
-- p_secret:   sealed or not; null if auth is none or names a variable, and to keep the secret
-- p_headers:  an object of texts
-- p_timeout, p_tls_ca: null for none
-- p_expected: the versions of which the connection must have one: '' for any or none, '*' for any, else an array
-- Returns: the connection; no row if the secret is to be kept, and there is none that may be
-- Raises:  PW400 malformed-request if an argument breaks a rule; PW40T unknown-tenant; PW412 version-mismatch
-- Locks:   connection
-- Writes:  connection, audit
-- +goose StatementBegin
create function pawl.connection_put(
  p_tenant text, p_name text, p_base_url text, p_auth jsonb, p_secret text, p_headers jsonb, p_timeout interval,
  p_concurrency integer, p_tls_ca text, p_expected text default '', p_caller jsonb default null
) returns setof pawl.connection_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_wants boolean := p_auth ->> 'type' <> 'none' and not p_auth ? 'env';
  v_secret text := p_secret;
  v_before pawl.connection;
  v_after pawl.connection;
  v_constraint text;
  v_column text;
begin
  loop
    select * into v_before from pawl.connection c where c.tenant_id = p_tenant and c.name = p_name for no key update;
    perform pawl_private.refuse_changed(p_expected, v_before.version);
    if v_wants and p_secret is null then
      if (v_before.base_url, v_before.auth, v_before.tls_ca) is distinct from (p_base_url, p_auth, p_tls_ca) then
        return;
      end if;
      v_secret := v_before.secret;
    end if;
    if v_before.name is null then
      insert into pawl.connection as c (
        tenant_id, name, version, base_url, auth, secret, headers, timeout, concurrency, tls_ca, created_at, created_by,
        updated_at)
      values (
        p_tenant, p_name, 1, p_base_url, p_auth, v_secret, p_headers, p_timeout, p_concurrency, p_tls_ca, v_now,
        coalesce(p_caller ->> 'actor', session_user), v_now)
      on conflict (tenant_id, name) do nothing
      returning c.* into v_after;
    else
      update pawl.connection c
      set
        version = c.version + 1, base_url = p_base_url, auth = p_auth, secret = v_secret, headers = p_headers,
        timeout = p_timeout, concurrency = p_concurrency, tls_ca = p_tls_ca, failures = 0, circuit_open_until = null,
        finding = null, updated_at = v_now
      where c.tenant_id = p_tenant and c.name = p_name
      returning c.* into v_after;
    end if;
    exit when found; -- Otherwise another caller has just made it.
  end loop;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'connection.put', p_target => p_name,
    p_before => pawl_private.connection_document(v_before), p_after => pawl_private.connection_document(v_after));
  return query select r.* from pawl.connection_row r where r.tenant_id = p_tenant and r.name = p_name;
exception
  when foreign_key_violation then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 45_connection/connection_report.sql

-- connection_report notes which attempts to call connections' services have succeeded, in the order in which the attempts
-- of a connection ended. Five failures in a row open its circuit; a success closes it. An answer with 429 or 503 is
-- neither, and is not reported.
-- p_rest: for how long a circuit opens the first time; see pawl_private.circuit_open_for
-- Locks:   connection, by tenant and name, those that change
-- Writes:  connection
-- +goose StatementBegin
create function pawl.connection_report(p_tenants text[], p_names text[], p_succeeded boolean[], p_rest interval) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_attempt record;
begin
  for v_attempt in
    select *
    from unnest(p_tenants, p_names, p_succeeded) with ordinality as r (tenant_id, name, succeeded, place)
    order by r.tenant_id collate "C", r.name collate "C", r.place
  loop
    if v_attempt.succeeded then
      update pawl.connection c
      set failures = 0, circuit_open_until = null
      where c.tenant_id = v_attempt.tenant_id and c.name = v_attempt.name
        and (c.failures > 0 or c.circuit_open_until is not null);
    else
      -- Attempts that were under way when the circuit opened do not keep it open for longer.
      update pawl.connection c
      set failures = c.failures + 1, circuit_open_until = v_now + pawl_private.circuit_open_for(c.failures + 1, p_rest)
      where c.tenant_id = v_attempt.tenant_id and c.name = v_attempt.name
        and (c.circuit_open_until is null or c.circuit_open_until <= v_now);
    end if;
  end loop;
end
$$;
-- +goose StatementEnd

-- 45_connection/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.connection_put'),
  ('api', 'pawl.connection_delete'),
  ('worker', 'pawl.connection_endpoints'),
  ('worker', 'pawl.connection_report'),
  ('worker', 'pawl.connection_finding');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.connection_row', null),
  ('reader', 'pawl.connection_row', '{tenant_id,name,version,timeout,concurrency,failures,circuit_open_until,finding,created_at,created_by,updated_at}');

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
-- A finding that was opened is routed like a step, to the subscriptions that ask for findings by their types.
--
-- A subscription receives the messages of an instance in their order: its steps, and the findings about it. When a delivery fails, the later
-- ones of the instance lose their next_attempt_at. They get it back when the failed one is delivered or
-- dead. So head-of-line blocking is limited to an instance, and the search for due deliveries reads none
-- that wait for another.
--
-- An endpoint that keeps failing has its circuit opened. Then it is probed with one delivery at a time,
-- at growing intervals, until one succeeds. Deliveries that wait meanwhile lose no attempt.
--
-- Secrets are sealed by the service, if it has a key, for their row and column. So the service chooses the last 62 bits
-- of a row's id. No role may read a secret from the tables. The sender gets secrets from delivery_endpoints. If it
-- cannot open one, the subscription rests with a finding until it can.
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
  types text[] not null default '{}',
  secret text not null,
  previous_secret text,
  previous_secret_until timestamptz,
  since pg_snapshot not null,
  later_seq bigint,
  disabled_at timestamptz,
  disabled_reason text,
  failures integer not null default 0,
  circuit_open_until timestamptz,
  finding text,
  created_at timestamptz not null,
  created_by pawl.actor not null,
  constraint subscription_pkey primary key (tenant_id, id),
  constraint subscription_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint subscription_secrets_have_a_prefix
    check (secret ~ '^(whsec_|sealed:v1:)' and coalesce(previous_secret ~ '^(whsec_|sealed:v1:)', true)),
  constraint subscription_previous_secret_has_an_end
    check ((previous_secret is null) = (previous_secret_until is null)),
  constraint subscription_disabled_has_a_reason check ((disabled_at is null) = (disabled_reason is null)),
  constraint subscription_failures_are_counted check (failures >= 0)
)
-- There are few rows. Those of failing endpoints are updated often: fillfactor keeps that in their page.
with (fillfactor = 50);

comment on column pawl.subscription.workflows is 'names of workflows; empty for all, as for events and states';
comment on column pawl.subscription.states is 'states that a step enters, or states around them';
comment on column pawl.subscription.types is 'CloudEvent types; empty for those of all steps, and of no findings';
comment on column pawl.subscription.since is 'steps that it sees were committed before the subscription was created; see pawl_private.step_follows';
comment on column pawl.subscription.later_seq is 'as in pawl.consumer';
comment on column pawl.subscription.failures is 'how many attempts have failed in a row';
comment on column pawl.subscription.circuit_open_until is 'nothing is sent before this time';
comment on column pawl.subscription.finding is 'why the secret cannot be opened, so that nothing is sent; null if it can, as far as is known';

-- subscription_row is a subscription without its secrets, as everybody but the sender sees it.
create view pawl.subscription_row as
select
  s.tenant_id, s.id, s.url, s.workflows, s.events, s.states, s.terminal_only, s.types, s.previous_secret_until, s.disabled_at,
  s.disabled_reason, s.failures, s.circuit_open_until, s.finding, s.created_at, s.created_by
from pawl.subscription s;

-- delivery is one message for one subscription, or for a callback, and its attempts.
create table pawl.delivery (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  subscription_id uuid not null,
  callback boolean not null,
  instance_id uuid,
  version bigint,
  finding_id uuid,
  seq bigint not null default 0,
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
  -- Each step once for each subscription; also the index on an instance's deliveries. A finding is told once by the key,
  -- which is a digest of its id.
  constraint delivery_step_key unique (tenant_id, instance_id, version, subscription_id),
  constraint delivery_status_is_known check (status in ('pending', 'delivered', 'dead')),
  constraint delivery_is_of_a_step_a_finding_or_a_test check (
    case
      when finding_id is not null then type = 'pawl.finding.opened' and version is null
      else (instance_id is null) = (version is null) and (instance_id is null) = (type = 'pawl.subscription.test')
    end),
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
comment on column pawl.delivery.instance_id is 'that of the step, or the one that the finding is about, if any';
comment on column pawl.delivery.seq is 'of the step or the finding: the deliveries of an instance are sent in its order';
comment on column pawl.delivery.created_at is
  'when the step was made, or the finding opened; of a test delivery, when it was requested';
comment on column pawl.delivery.subscription_id is 'the subscription; of a callback, the instance';
comment on column pawl.delivery.attempts is 'those since the last replay; while replayed, those before it';
comment on column pawl.delivery.replayed is 'it was replayed, and there has been no attempt since; the other columns show what was before';
comment on column pawl.delivery.delivered_at is 'when the endpoint last accepted it, even if it did not after a replay';
comment on column pawl.delivery.next_attempt_at is 'null while an earlier delivery of the instance waits for a retry, and when settled';
comment on column pawl.delivery.last_response is 'the first 1 KiB, as text';

-- unrouted_step is a step, or a finding, that the router has read and put off: its deliveries are not all created. While a
-- tenant has one, its later steps are put off too, so that deliveries are created in the order of the steps.
-- Callbacks are never put off.
create table pawl.unrouted_step (
  tenant_id pawl.tenant_id not null,
  position bigint not null,
  instance_id uuid,
  version bigint,
  finding_id uuid,
  after_subscription uuid not null,
  constraint unrouted_step_pkey primary key (tenant_id, position),
  constraint unrouted_step_is_a_step_or_a_finding
    check ((instance_id is null) = (version is null) and (instance_id is null) = (finding_id is not null))
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.unrouted_step.after_subscription is 'the deliveries for subscriptions with ids up to this one are created';

-- Whether an instance has such steps, for the retention.
create index unrouted_step_instance_idx on pawl.unrouted_step (tenant_id, instance_id);
create index unrouted_step_finding_idx on pawl.unrouted_step (tenant_id, finding_id) where finding_id is not null;

-- Deliveries that are due, by subscription and time, and those of an instance in their order.
create index delivery_due_idx on pawl.delivery (tenant_id, subscription_id, next_attempt_at, seq)
  where status = 'pending' and next_attempt_at is not null and not callback;
create index delivery_callback_due_idx on pawl.delivery (tenant_id, next_attempt_at)
  where status = 'pending' and next_attempt_at is not null and callback;
-- Pending deliveries of an instance, in the order of the steps.
create index delivery_pending_idx on pawl.delivery (tenant_id, instance_id, subscription_id, seq)
  where status = 'pending';
-- Findings that are still to be told, for their purge.
create index delivery_finding_idx on pawl.delivery (tenant_id, finding_id)
  where status = 'pending' and finding_id is not null;
-- The log of a subscription, and its dead letters.
create index delivery_subscription_idx on pawl.delivery (tenant_id, subscription_id, id);
create index delivery_dead_idx on pawl.delivery (tenant_id, id)
  where status = 'dead';
create index delivery_dead_instance_idx on pawl.delivery (tenant_id, instance_id, seq)
  where status = 'dead';
-- Delivered rows, to purge.
create index delivery_delivered_idx on pawl.delivery (id)
  where status = 'delivered';

-- endpoint is where the deliveries of a subscription or a callback go, and the secrets that sign them, sealed or not. An
-- empty secret stands for the deployment's. resting: the subscription has a finding. It is a shape, as pawl.outcome_row is,
-- and never holds rows.
create view pawl.endpoint as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as url, ''::text as secret,
  ''::text as previous_secret, false as disabled, false as callback, false as resting
where false;

-- delivery_lane says whether deliveries of a subscription, or the callbacks of a tenant, can be sent. The
-- lane of callbacks has the nil UUID as its subscription. ready: some are due. half_open: one at a time. It
-- is a shape and never holds rows.
create view pawl.delivery_lane as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as subscription_id, false as ready, false as half_open
where false;

-- stored_secret is a row of subscriptions, callbacks or connections with its secrets, sealed or not. row_key: its key
-- within the tenant, as text. previous_secret: '' if there is none. It is a shape and never holds rows.
create view pawl.stored_secret as
select ''::text as tenant_id, ''::text as row_key, ''::text as secret, ''::text as previous_secret
where false;

-- delivery_tenant is what a tenant may have sent; see pawl.delivery_tenants. It is a shape and never holds rows.
create view pawl.delivery_tenant as
select ''::text as tenant_id, false as disabled, null::integer as attempts
where false;

-- routed is a step or a finding, and a subscription or a callback that it is for. epoch: null for a finding.
create type pawl_private.routed as (
  tenant_id text,
  subscription_id uuid,
  instance_id uuid,
  version bigint,
  finding_id uuid,
  seq bigint,
  type text,
  at timestamptz,
  epoch bigint
);

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

-- delivery_failed says of a pending delivery whether its last attempt failed, or whether it waits for another that
-- did. The planner inlines it.
-- +goose StatementBegin
create function pawl_private.delivery_failed(p_delivery pawl.delivery) returns boolean
language sql immutable parallel safe
as $$ select p_delivery.attempts > 0 and not p_delivery.replayed or p_delivery.next_attempt_at is null $$;
-- +goose StatementEnd

-- subscription_wants says whether an enabled subscription receives the message of a step, or of a finding. A finding has
-- no event and no status, so that only the types, the workflows and the states of the filter choose it.
-- p_to_state: of a finding, the state that the instance was in; null for none
-- +goose StatementBegin
create function pawl_private.subscription_wants(
  p_subscription pawl.subscription, p_xid xid8, p_seq bigint, p_type text, p_workflow text, p_event text, p_to_state text, p_status text
) returns boolean
language sql stable
as $$
  select p_subscription.disabled_at is null
    and pawl_private.step_follows(p_xid, p_seq, p_subscription.since, p_subscription.later_seq)
    and (p_subscription.workflows = '{}' or p_workflow = any (p_subscription.workflows))
    and case
      when p_type = 'pawl.finding.opened' then p_type = any (p_subscription.types)
      else (p_subscription.types = '{}' or p_type = any (p_subscription.types))
        and (p_subscription.events = '{}' or p_event = any (p_subscription.events))
        and (not p_subscription.terminal_only or p_status <> 'active')
    end
    and (
      p_subscription.states = '{}'
      or exists (
        select from unnest(p_subscription.states) as f (state) where p_to_state = f.state or starts_with(p_to_state, f.state || '.')
      )
    )
$$;
-- +goose StatementEnd

-- delivery_id is the id of a delivery: a digest of the CloudEvent's id and the subscription, behind the time of the
-- step, or of the finding. So it is the same if a crash has undone the routing and the message is routed again. The id of a
-- finding is never given twice, so that it needs no epoch.
-- +goose StatementBegin
create function pawl_private.delivery_id(
  p_at timestamptz, p_instance uuid, p_version bigint, p_epoch bigint, p_finding uuid, p_subscription uuid
) returns uuid
language sql immutable parallel safe
as $$
  select pawl_private.uuid_v7_with(
    p_at,
    substring(sha256(convert_to(
      case
        when p_finding is not null then concat('finding:', p_finding, ' ', p_subscription)
        else concat(p_instance, ':', p_version, '@', p_epoch, ' ', p_subscription)
      end,
      'UTF8')) for 16))
$$;
-- +goose StatementEnd

-- add_deliveries creates deliveries of steps and findings. The caller must hold the lock of the consumer's row, so that
-- no delivery is settled or replayed meanwhile.
-- Returns: how many there were not yet
-- Writes:  delivery
-- +goose StatementBegin
create function pawl_private.add_deliveries(p_routed pawl_private.routed[]) returns integer
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
    tenant_id, id, subscription_id, callback, instance_id, version, finding_id, seq, type, status, attempts, next_attempt_at, created_at)
  select
    m.tenant_id, pawl_private.delivery_id(m.at, m.instance_id, m.version, m.epoch, m.finding_id, m.subscription_id), m.subscription_id,
    m.subscription_id is not distinct from m.instance_id, m.instance_id, m.version, m.finding_id, m.seq, m.type, 'pending', 0,
    case when w.failed then null else v_now end, m.at
  from unnest(p_routed) m
  left join lateral (
    select pawl_private.delivery_failed(d) as failed
    from pawl.delivery d
    where d.tenant_id = m.tenant_id
      and d.subscription_id = m.subscription_id
      and d.instance_id = m.instance_id
      and d.status = 'pending'
    order by d.tenant_id, d.instance_id, d.subscription_id, d.seq
    limit 1
  ) w on true
  -- A delivery exists already if a crash or a failover took the consumer's position back, or if the subscription
  -- was changed.
  on conflict do nothing;
  get diagnostics v_added = row_count;
  return v_added;
end
$$;
-- +goose StatementEnd

-- subscription_limit returns a tenant's limit of subscriptions if it is reached, as limit_text words it; else null.
-- Locks:   tenant (for no key update, if its subscriptions have a limit): one transaction at a time creates some
-- +goose StatementBegin
create function pawl_private.subscription_limit(p_tenant text) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit bigint;
  v_used bigint;
begin
  select (t.limits ->> 'subscriptions')::bigint into v_limit
  from pawl.tenant t
  where t.id = p_tenant and t.limits ? 'subscriptions'
  for no key update;
  if v_limit is null then
    return null;
  end if;
  select count(*) into v_used from pawl.subscription s where s.tenant_id = p_tenant;
  return case when v_used >= v_limit then jsonb_build_object('name', 'subscriptions', 'limit', v_limit, 'used', v_used) end;
end
$$;
-- +goose StatementEnd

-- route_page creates the deliveries of a page of the log: of the steps and findings after p_after up to p_until. It looks at up
-- to p_limit pairs of one of them and a subscription of one tenant, and at up to twice as many in all; further ones, and
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
  v_routed pawl_private.routed[];
begin
  with step as materialized (
    select
      l.position, h.tenant_id, h.instance_id, h.version::bigint as version, null::uuid as finding_id, h.seq, h.xid, h.workflow,
      pawl_private.message_type(h.kind) as type, h.event, h.to_state, h.status::text as status, h.at,
      pawl_private.epoch_of(h.xid, h.seq, p_head) as epoch
    from pawl.log l
    cross join lateral pawl_private.step_at(l.tenant_id, l.instance_id, l.version) h
    where l.position > p_after and l.position <= p_until
    union all
    select
      l.position, f.tenant_id, f.instance_id, null, f.id, f.seq, f.xid, f.workflow, 'pawl.finding.opened', null, f.state, null, f.opened_at,
      null
    from pawl.log l
    cross join lateral (select f.* from pawl.finding f where f.tenant_id = l.tenant_id and f.id = l.finding_id limit 1) f
    where l.position > p_after and l.position <= p_until and l.finding_id is not null
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
    insert into pawl.unrouted_step (tenant_id, position, instance_id, version, finding_id, after_subscription)
    select
      h.tenant_id, h.position, case when h.finding_id is null then h.instance_id end, h.version, h.finding_id,
      '00000000-0000-0000-0000-000000000000'
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
        and pawl_private.subscription_wants(s, h.xid, h.seq, h.type, h.workflow, h.event, h.to_state, h.status)
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
    (select count(*) from step),
    array_agg(row(
      m.tenant_id, m.subscription_id, m.instance_id, m.version, m.finding_id, m.seq, m.type, m.at, m.epoch)::pawl_private.routed)
  into steps, v_routed
  from (select m.* from matching m order by m.position, m.subscription_id) m;
  deliveries := pawl_private.add_deliveries(v_routed);
end
$$;
-- +goose StatementEnd

-- route_unrouted creates deliveries of the oldest unrouted steps of one tenant: the next one after p_after in
-- the order of tenants, of those that have any. It looks at up to p_limit pairs of a step, or a finding, and a subscription.
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
    select
      u.position, coalesce(u.instance_id, f.instance_id) as instance_id, u.version, u.finding_id, u.after_subscription,
      coalesce(h.xid, f.xid) as xid, coalesce(h.seq, f.seq) as seq, coalesce(h.workflow, f.workflow) as workflow,
      case when u.finding_id is null then pawl_private.message_type(h.kind) else 'pawl.finding.opened' end as type, h.event,
      coalesce(h.to_state, f.state) as to_state, h.status, coalesce(h.at, f.opened_at) as at,
      case when u.finding_id is null then pawl_private.epoch_of(h.xid, h.seq, p_head) end as epoch
    from (
      select u.* from pawl.unrouted_step u where u.tenant_id = tenant order by u.tenant_id, u.position limit p_limit
    ) u
    -- A step that was purged has no deliveries.
    left join lateral pawl_private.step_at(u.tenant_id, u.instance_id, u.version) h on true
    left join lateral (
      select f.* from pawl.finding f where f.tenant_id = u.tenant_id and f.id = u.finding_id limit 1
    ) f on true
    order by u.tenant_id, u.position
  loop
    select
      coalesce(array_agg(l.id), '{}'),
      coalesce(array_agg(l.id) filter (
        where pawl_private.subscription_wants(
          l.subscription, v_step.xid, v_step.seq, v_step.type, v_step.workflow, v_step.event, v_step.to_state, v_step.status)
      ), '{}')
    into v_looked, v_chosen
    from (
      select s.id, s as subscription
      from pawl.subscription s
      where s.tenant_id = tenant and s.id > v_step.after_subscription
      order by s.tenant_id, s.id
      limit v_left
    ) l;
    deliveries := deliveries + pawl_private.add_deliveries(array(
      select row(
        tenant, c.id, v_step.instance_id, v_step.version, v_step.finding_id, v_step.seq, v_step.type, v_step.at, v_step.epoch
      )::pawl_private.routed
      from unnest(v_chosen) as c (id)));
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

-- route_only creates the deliveries for one subscription of steps and findings that the router has not routed yet: of up
-- to 20,000 unrouted ones of the tenant, and of the tenant's among the next 20,000 rows of the log, and among up to 20,000
-- steps and as many findings without a position, all of all tenants. The caller must hold the lock of the consumer's row.
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
  perform pawl_private.add_deliveries(array(
    select row(p_tenant, p_id, n.instance_id, n.version, n.finding_id, n.seq, n.type, n.at, n.epoch)::pawl_private.routed
    from pawl.log_head e
    cross join pawl.consumer c
    cross join lateral (
      select
        o.part, o.place, h.instance_id, h.version, null::uuid as finding_id, h.xid, h.seq, pawl_private.message_type(h.kind) as type,
        h.workflow, h.event, h.to_state, h.status, h.at, pawl_private.epoch_of(h.xid, h.seq, e) as epoch
      from (
        (
          select 0 as part, u.position as place, h as step
          from pawl.unrouted_step u
          cross join lateral pawl_private.step_at(u.tenant_id, u.instance_id, u.version) h
          where u.tenant_id = p_tenant
          order by u.tenant_id, u.position
          limit 20000
        )
        union all
        (
          select 1, l.position, h
          from (select l.* from pawl.log l where l.position > c.position order by l.position limit 20000) l
          cross join lateral pawl_private.step_at(l.tenant_id, l.instance_id, l.version) h
          where l.tenant_id = p_tenant
        )
        union all
        (
          select 2, h.seq, h::pawl.history
          from (select h.* from pawl_private.steps_between(e.snapshot, v_snapshot, e.first_seq) h limit 20000) h
          where h.tenant_id = p_tenant
        )
      ) o
      cross join lateral (select (o.step).*) h
      union all
      select
        o.part, o.place, f.instance_id, null, f.id, f.xid, f.seq, 'pawl.finding.opened', f.workflow, null, f.state, null, f.opened_at, null
      from (
        (
          select 0 as part, u.position as place, f::pawl.finding as finding
          from (
            select u.*
            from pawl.unrouted_step u
            where u.tenant_id = p_tenant and u.finding_id is not null
            order by u.tenant_id, u.position
            limit 20000
          ) u
          cross join lateral (select f.* from pawl.finding f where f.tenant_id = u.tenant_id and f.id = u.finding_id limit 1) f
        )
        union all
        (
          select 1, l.position, f::pawl.finding
          from (select l.* from pawl.log l where l.position > c.position order by l.position limit 20000) l
          cross join lateral (select f.* from pawl.finding f where f.tenant_id = l.tenant_id and f.id = l.finding_id limit 1) f
          where l.tenant_id = p_tenant and l.finding_id is not null
        )
        union all
        (
          select 2, f.seq, f::pawl.finding
          from (select f.* from pawl_private.findings_between(e.snapshot, v_snapshot) f limit 20000) f
          where f.tenant_id = p_tenant
        )
      ) o
      cross join lateral (select (o.finding).*) f
    ) n
    cross join lateral (
      select s from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id limit 1
    ) s
    where c.name = 'webhooks'
      and pawl_private.subscription_wants(s.s, n.xid, n.seq, n.type, n.workflow, n.event, n.to_state, n.status)
    order by n.part, n.place
  ));
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

-- webhook_retains says whether a message of an instance's step is still to be sent: an unrouted step, a pending
-- delivery whose subscription is not disabled, or a callback's. A finding outlives its instance.
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
    where d.status = 'pending' and d.finding_id is null
      and not exists (
        select from pawl.subscription s
        where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
      )
  );
end
$$;
-- +goose StatementEnd

-- webhook_retains_finding is webhook_retains for a finding.
-- +goose StatementBegin
create function pawl_private.webhook_retains_finding(p_tenant text, p_id uuid) returns boolean
language plpgsql stable
as $$
begin
  return exists (
    select from pawl.unrouted_step u where u.tenant_id = p_tenant and u.finding_id = p_id
  ) or exists (
    select
    from pawl.delivery d
    where d.tenant_id = p_tenant and d.finding_id = p_id and d.status = 'pending'
      and not exists (
        select from pawl.subscription s
        where s.tenant_id = p_tenant and s.id = d.subscription_id and s.disabled_at is not null
      )
  );
end
$$;
-- +goose StatementEnd

-- subscription_document is a subscription for the audit; null for none. Its URL has neither a password nor a query.
-- +goose StatementBegin
create function pawl_private.subscription_document(p_tenant text, p_id uuid) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'url', regexp_replace(regexp_replace(s.url, '[?#].*', ''), '^([^/]*//)[^/]*@', '\1'),
    'workflows', s.workflows, 'events', s.events, 'states', s.states, 'terminal_only', s.terminal_only,
    'disabled', s.disabled_at is not null)
    || case when s.types <> '{}' then jsonb_build_object('types', s.types) else '{}' end
  from pawl.subscription s
  where s.tenant_id = p_tenant and s.id = p_id
$$;
-- +goose StatementEnd

-- replay_deliveries makes settled deliveries of p_ids pending again: see delivery_replay.
-- Returns: as delivery_replay
-- Locks:   consumer
-- Writes:  delivery
-- +goose StatementBegin
create function pawl_private.replay_deliveries(
  p_tenant text, p_ids uuid[], out replayed integer, out gone integer, out looked_at integer, out last uuid
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_row record;
begin
  replayed := 0; gone := 0; looked_at := 0;
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  for v_row in
    select d.id, d.subscription_id, d.instance_id, d.version, d.finding_id, d.seq, d.callback, d.status
    from unnest(p_ids) as u (id)
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
    ) or v_row.version is not null and not exists (
      select from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = v_row.instance_id and h.version = v_row.version
    ) or v_row.finding_id is not null and not exists (
      select from pawl.finding f where f.tenant_id = p_tenant and f.id = v_row.finding_id
    ) then
      gone := gone + 1;
      continue;
    end if;
    -- It is due before the instance's later pending deliveries, and waits for earlier ones that failed.
    update pawl.delivery d
    set status = 'pending', replayed = true,
      next_attempt_at = (
        select case
          when not coalesce(bool_or(o.seq < v_row.seq and pawl_private.delivery_failed(o)), false)
            then least(v_now, min(o.next_attempt_at) filter (where o.seq > v_row.seq))
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

-- 50_webhook/callback_host.sql

-- callback_host returns the host of an instance's callback, with its port if the URL names one: what of the URL may be shown.
-- Returns: null if the instance has no callback that is still to be delivered
-- +goose StatementBegin
create function pawl.callback_host(p_tenant text, p_instance uuid) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select substring(c.url from '^[^:/?#]*://(?:[^/?#]*@)?([^/?#@]*)')
    from pawl.callback c
    where c.tenant_id = p_tenant and c.instance_id = p_instance);
end
$$;
-- +goose StatementEnd

-- 50_webhook/consumer_status.sql

-- consumer_status says how far the consumers have read. Steps and findings without a position are still to be read, and so is
-- what the consumer `webhooks` has read and put off.
-- Returns: one row per consumer, by name. leader: null if nobody leads. steps: how many are still to be
--          read, findings included; rows, for a consumer of the audit. behind: the age of the oldest of these; null if there is none
-- +goose StatementBegin
create function pawl.consumer_status()
returns table (name text, leader text, term bigint, relayed bigint, steps bigint, behind interval, advanced_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select
    c.name, case when c.lease_until > n.at then c.leader end, c.term, c.relayed, l.steps + t.steps + f.findings + u.steps + a.rows,
    n.at - least(o.at, t.oldest, f.oldest, u.oldest, a.oldest), c.advanced_at
  from pawl.consumer c
  cross join (select pawl.now() as at offset 0) n
  cross join pawl.log_head e
  cross join lateral (
    select count(*) as steps, min(l.position) as next from pawl.log l where not c.audit and l.position > c.position
  ) l
  left join lateral (
    select r.at
    from pawl.log f
    cross join lateral (select pawl_private.logged_at(f) as at) r
    where f.position >= l.next and r.at is not null
    order by f.position
    limit 1
  ) o on true
  cross join lateral (
    select count(*) as steps, min(h.at) as oldest
    from pawl_private.steps_between(e.snapshot, pg_current_snapshot(), e.first_seq) h
    where not c.audit and pawl_private.step_follows(h.xid, h.seq, c.since, c.later_seq)
  ) t
  cross join lateral (
    select count(*) as findings, min(f.opened_at) as oldest
    from pawl_private.findings_between(e.snapshot, pg_current_snapshot()) f
    where not c.audit and pawl_private.step_follows(f.xid, f.seq, c.since, c.later_seq)
  ) f
  cross join lateral (
    select count(*) as steps, least(min(h.at), min(f.opened_at)) as oldest
    from pawl.unrouted_step u
    left join pawl.history h on h.tenant_id = u.tenant_id and h.instance_id = u.instance_id and h.version = u.version
    left join pawl.finding f on f.tenant_id = u.tenant_id and f.id = u.finding_id
    where c.name = 'webhooks'
  ) u
  cross join lateral (
    select count(*) as rows, min(r.at) as oldest
    from (
      select a.at
      from pawl.audit_log l
      join pawl.audit a on a.tenant_id = l.tenant_id and a.seq = l.seq
      where c.audit and l.position > c.position
      union all
      select b.at from pawl_private.audit_between(e.snapshot, pg_current_snapshot()) b where c.audit
    ) r
  ) a
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
    order by d.tenant_id, d.subscription_id, d.next_attempt_at, d.seq
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
    s.disabled_at is not null, false, s.finding is not null
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select s.* from pawl.subscription s where s.tenant_id = k.tenant_id and s.id = k.id limit 1
  ) s
  union all
  select b.tenant_id::text, b.instance_id, b.url, coalesce(b.secret, ''), '', false, true, false
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select b.* from pawl.callback b where b.tenant_id = k.tenant_id and b.instance_id = k.id limit 1
  ) b
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_findings.sql

-- delivery_findings reads the messages of findings. One may have no position yet: the change of a subscription routes it
-- before.
-- Returns: one message per finding that is still kept, in the order of the parameters
-- +goose StatementBegin
create function pawl.delivery_findings(p_tenants text[], p_ids uuid[]) returns setof pawl.finding_message
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $$
  select m.*
  from unnest(p_tenants, p_ids) with ordinality as k (tenant_id, id, place)
  cross join lateral (
    select f as finding from pawl.finding f where f.tenant_id = k.tenant_id and f.id = k.id limit 1
  ) f
  left join lateral (
    select l.position from pawl.log l where l.tenant_id = k.tenant_id and l.finding_id = k.id limit 1
  ) l on true
  cross join lateral pawl_private.finding_message_of(f.finding, l.position) m
  order by k.place
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
-- lane of a deleted subscription is ready too: its deliveries are to be abandoned. Of a disabled tenant only the lane of
-- its callbacks is returned, and it is not ready.
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
    if pawl_private.is_disabled(v_tenant) then
      v_lane := (v_tenant, v_nil, false, false);
      return next v_lane;
      v_looked := v_looked + 1;
      continue;
    end if;
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
-- subscription, callback, step or finding is gone cannot be sent any more, and does not change.
-- p_earlier: how many were replayed by earlier calls of the same act. The audit has one row for an act: that of its only
--            call. An act of more calls has two: one of the first call, with "more", so that none is without its row if
--            it is cut off, and one of the last call, with the sum
-- Returns: replayed: how many; gone: how many cannot be sent any more; looked_at: how many were read; last: the
--          id of the last one that was read
-- Locks:   consumer
-- Writes:  delivery, audit
-- +goose StatementBegin
create function pawl.delivery_replay(
  p_tenant text, p_ids uuid[], p_subscription uuid, p_status text, p_from timestamptz, p_to timestamptz, p_after uuid,
  p_limit integer, p_caller jsonb default null, p_earlier bigint default 0, out replayed integer, out gone integer, out looked_at integer, out last uuid
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_after uuid := greatest(p_after, pawl.uuid_v7_floor(coalesce(p_from, '-infinity')));
  v_before uuid := pawl.uuid_v7_floor(coalesce(p_to, 'infinity') + interval '1 millisecond');
  v_ids uuid[];
  v_more boolean;
  v_earlier bigint := coalesce(p_earlier, 0);
begin
  -- Before the deliveries are chosen, so that none of them is settled meanwhile.
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
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
  select r.* into replayed, gone, looked_at, last from pawl_private.replay_deliveries(p_tenant, v_ids) r;
  last := coalesce(last, p_after);
  v_more := p_ids is null and looked_at > 0 and looked_at >= p_limit;
  if replayed > 0 and v_earlier = 0 or v_earlier > 0 and not v_more then
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => p_caller, p_action => 'delivery.replay',
      p_target => coalesce(case when cardinality(p_ids) = 1 then p_ids[1]::text end, p_subscription::text),
      p_after => jsonb_build_object('replayed', v_earlier + replayed, 'status', p_status)
        || case when v_more then jsonb_build_object('more', true) else '{}' end);
  end if;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_route.sql

-- delivery_route reads the next page of steps and findings of the consumer `webhooks`, creates their deliveries, and moves
-- its position. Steps with more subscriptions than are looked at in one call are put off. It then creates
-- deliveries of steps that were put off, of one tenant: the next one after p_turn. Without subscriptions,
-- callbacks and unrouted steps it moves the position and reads no step. It renews the lease when it moves the
-- position, and when a third of the lease has passed.
-- p_limit: the most rows of the page, and the most pairs of a row and a subscription of one tenant
-- Returns: leads: whether p_leader still leads in p_term; steps: how many were read, findings included; deliveries: how many were
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
--   postponed  there was no attempt; it is due after p_delays. Without an error, the one before stays
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
    select d.subscription_id, d.instance_id, d.seq, d.callback, d.status
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
      last_error = case
        when v_attempt.result = 'postponed' then coalesce(nullif(v_attempt.error, ''), d.last_error)
        else nullif(v_attempt.error, '')
      end,
      last_response = case when v_attempt.result in ('postponed', 'abandoned') then d.last_response else nullif(v_attempt.response, '') end
    where d.tenant_id = v_attempt.tenant_id and d.id = v_attempt.id;
    continue when v_delivery.callback;
    if v_attempt.result = 'retry' then
      update pawl.delivery d
      set next_attempt_at = null
      where d.tenant_id = v_attempt.tenant_id and d.subscription_id = v_delivery.subscription_id
        and d.instance_id = v_delivery.instance_id and d.seq > v_delivery.seq
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
      order by d.tenant_id, d.instance_id, d.subscription_id, d.seq
      limit 1
    ) f
    cross join lateral (
      select d.ctid as place
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending' and d.next_attempt_at is null
      order by d.tenant_id, d.instance_id, d.subscription_id, d.seq
    ) w
    where f.next_attempt_at is null
  ) w
  where d.ctid = w.place;
  return true;
end
$$;
-- +goose StatementEnd

-- 50_webhook/delivery_tenants.sql

-- delivery_tenants reads what tenants may have sent.
-- Returns: one row per tenant that exists, in no order. attempts: how many attempts may be under way; null for no limit
-- +goose StatementBegin
create function pawl.delivery_tenants(p_tenants text[]) returns setof pawl.delivery_tenant
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select t.id::text, t.disabled_at is not null, least((t.limits ->> 'webhook_attempts')::bigint, 1000000)::integer
  from pawl.tenant t
  where t.id = any (p_tenants)
$$;
-- +goose StatementEnd

-- 50_webhook/secrets_page.sql

-- secrets_page shows stored secrets to the schema's owner, who seals them anew.
-- p_table: subscription, callback or connection
-- p_row:   the key of the row within its tenant: an id, or the name of a connection. '' for none
-- Returns: up to p_limit rows that have secrets, by tenant and key, after those of p_tenant and p_row
-- +goose StatementBegin
create function pawl.secrets_page(p_table text, p_tenant text, p_row text, p_limit integer) returns setof pawl.stored_secret
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
as $$
begin
  case p_table
  when 'subscription' then
    return query
    select s.tenant_id::text, s.id::text, s.secret, coalesce(s.previous_secret, '')
    from pawl.subscription s
    where (s.tenant_id, s.id) > (p_tenant, coalesce(nullif(p_row, '')::uuid, '00000000-0000-0000-0000-000000000000'))
    order by s.tenant_id, s.id
    limit p_limit;
  when 'callback' then
    return query
    select b.tenant_id::text, b.instance_id::text, b.secret, ''
    from pawl.callback b
    where b.secret is not null
      and (b.tenant_id, b.instance_id) > (p_tenant, coalesce(nullif(p_row, '')::uuid, '00000000-0000-0000-0000-000000000000'))
    order by b.tenant_id, b.instance_id
    limit p_limit;
  when 'connection' then
    return query
    select c.tenant_id::text, c.name, c.secret, ''
    from pawl.connection c
    where c.secret is not null and (c.tenant_id, c.name) > (p_tenant, p_row)
    order by c.tenant_id, c.name
    limit p_limit;
  end case;
end
$$;
-- +goose StatementEnd

-- 50_webhook/secrets_replace.sql

-- secrets_replace replaces stored secrets by the same secrets, sealed anew, for the schema's owner. A row whose secrets are
-- not those of p_from and p_previous_from any more, or that another transaction has locked, does not change. A subscription
-- or a connection that rested since its secret could not be had goes on.
-- p_table: subscription, callback or connection
-- p_rows:  the keys of the rows, as secrets_page returns them
-- Returns: how many rows were changed
-- Locks:   subscription, callback or connection, those that nobody else has locked
-- Writes:  subscription, callback or connection, audit
-- +goose StatementBegin
create function pawl.secrets_replace(
  p_table text, p_tenants text[], p_rows text[], p_from text[], p_to text[], p_previous_from text[], p_previous_to text[],
  p_caller jsonb default null
) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_changed integer;
begin
  case p_table
  when 'subscription' then
    update pawl.subscription s
    set
      secret = k.secret,
      previous_secret = nullif(k.previous_secret, ''),
      circuit_open_until = case when s.finding is null then s.circuit_open_until end,
      finding = null
    from (
      select l.tenant_id, l.id, k.secret, k.previous_secret
      from unnest(p_tenants, p_rows, p_from, p_to, p_previous_from, p_previous_to)
        as k (tenant_id, key, old_secret, secret, old_previous_secret, previous_secret)
      join pawl.subscription l on l.tenant_id = k.tenant_id and l.id = k.key::uuid
      where l.secret = k.old_secret and coalesce(l.previous_secret, '') = k.old_previous_secret
      for no key update of l skip locked
    ) k
    where s.tenant_id = k.tenant_id and s.id = k.id;
  when 'callback' then
    update pawl.callback b
    set secret = k.secret
    from (
      select l.tenant_id, l.instance_id, k.secret
      from unnest(p_tenants, p_rows, p_from, p_to) as k (tenant_id, key, old_secret, secret)
      join pawl.callback l on l.tenant_id = k.tenant_id and l.instance_id = k.key::uuid
      where l.secret = k.old_secret
      for no key update of l skip locked
    ) k
    where b.tenant_id = k.tenant_id and b.instance_id = k.instance_id;
  when 'connection' then
    update pawl.connection c
    set
      secret = k.secret,
      circuit_open_until = case when c.finding is null then c.circuit_open_until end,
      finding = null
    from (
      select l.tenant_id, l.name, k.secret
      from unnest(p_tenants, p_rows, p_from, p_to) as k (tenant_id, key, old_secret, secret)
      join pawl.connection l on l.tenant_id = k.tenant_id and l.name = k.key
      where l.secret = k.old_secret
      for no key update of l skip locked
    ) k
    where c.tenant_id = k.tenant_id and c.name = k.name;
  end case;
  get diagnostics v_changed = row_count;
  if v_changed > 0 then
    perform pawl_private.audit(
      p_tenant => '*', p_caller => p_caller, p_action => 'secret.rotate', p_target => p_table,
      p_after => jsonb_build_object('rows', v_changed));
  end if;
  return v_changed;
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_create.sql

-- subscription_create creates a subscription to the steps that are committed, and the findings that are opened, from now on.
-- p_secret: sealed or not
-- p_types:  of CloudEvents; empty for those of all steps
-- p_seed:   the last 62 bits of the id, for which the secret is sealed
-- Returns: the subscription
-- Raises:  PW400 malformed-request if an argument breaks a rule; PW40M limit-reached
-- Locks:   tenant (for no key update, if its subscriptions have a limit)
-- Writes:  subscription, audit
-- +goose StatementBegin
create function pawl.subscription_create(
  p_tenant text, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean, p_secret text,
  p_actor text, p_seed uuid default gen_random_uuid(), p_caller jsonb default null, p_types text[] default '{}'
) returns setof pawl.subscription_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_now timestamptz := pawl.now();
  v_id uuid := pawl_private.uuid_v7_with(v_now, uuid_send(p_seed));
  v_reached jsonb := pawl_private.subscription_limit(p_tenant);
begin
  if v_reached is not null then
    perform pawl_private.raise_condition('limit-reached', pawl_private.limit_text(v_reached), v_reached);
  end if;
  insert into pawl.subscription (
    tenant_id, id, url, workflows, events, states, terminal_only, types, secret, since, created_at, created_by)
  values (
    p_tenant, v_id, p_url, p_workflows, p_events, p_states, p_terminal_only, p_types, p_secret,
    pg_current_snapshot(), v_now, p_actor);
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.create', p_target => v_id::text,
    p_after => pawl_private.subscription_document(p_tenant, v_id));
  return query select r.* from pawl.subscription_row r where r.tenant_id = p_tenant and r.id = v_id;
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
-- Writes:  subscription, audit
-- +goose StatementBegin
create function pawl.subscription_delete(p_tenant text, p_id uuid, p_caller jsonb default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before jsonb := pawl_private.subscription_document(p_tenant, p_id);
begin
  delete from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id;
  if not found then
    return false;
  end if;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.delete', p_target => p_id::text, p_before => v_before);
  return true;
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_rest.sql

-- subscription_rest notes which subscriptions have secrets that the sender can open, or cannot. One with a finding rests
-- for p_rest, and is then looked at again. Its deliveries wait and lose no attempt.
-- p_findings: why the secret cannot be opened; '' if it can, which ends the rest
-- Returns: whether p_leader still leads in p_term; if not, nothing is changed
-- Locks:   consumer
-- Writes:  subscription
-- +goose StatementBegin
create function pawl.subscription_rest(
  p_leader text, p_term bigint, p_tenants text[], p_ids uuid[], p_findings text[], p_rest interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term for no key update;
  if not found then
    return false;
  end if;
  update pawl.subscription s
  set
    finding = nullif(k.finding, ''),
    circuit_open_until = case when k.finding <> '' then greatest(s.circuit_open_until, pawl.now() + p_rest) end
  from unnest(p_tenants, p_ids, p_findings) as k (tenant_id, id, finding)
  where s.tenant_id = k.tenant_id and s.id = k.id and (k.finding <> '' or s.finding is not null);
  return true;
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_rotate_secret.sql

-- subscription_rotate_secret replaces a subscription's secret. For p_overlap the previous one signs, too. If the previous
-- one is sealed, the caller has sealed it anew, for its new column.
-- p_secret:   sealed or not
-- p_from:     the sealed secret that p_previous was made from, as subscription_sealed_secret shows it; '' if there is none
-- p_previous: the previous secret; '' if it cannot be opened and is lost
-- Returns: the subscription; no row if there is none, or if its secret is not that of p_from
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   subscription
-- Writes:  subscription, audit
-- +goose StatementBegin
create function pawl.subscription_rotate_secret(
  p_tenant text, p_id uuid, p_secret text, p_overlap interval, p_from text default '', p_previous text default '',
  p_caller jsonb default null
) returns setof pawl.subscription_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_constraint text;
  v_column text;
  v_secret text;
begin
  select s.secret into v_secret from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  if p_from is distinct from (case when v_secret like 'sealed:%' then v_secret else '' end) then
    return;
  end if;
  if p_from <> '' then
    v_secret := nullif(p_previous, '');
  end if;
  update pawl.subscription s
  set
    secret = p_secret,
    previous_secret = v_secret,
    previous_secret_until = case when v_secret is not null then pawl.now() + p_overlap end,
    circuit_open_until = case when s.finding is null then s.circuit_open_until end,
    finding = null
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    perform pawl_private.audit(p_tenant => p_tenant, p_caller => p_caller, p_action => 'secret.rotate', p_target => p_id::text);
  end if;
  return query select r.* from pawl.subscription_row r where r.tenant_id = p_tenant and r.id = p_id;
exception
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_sealed_secret.sql

-- subscription_sealed_secret shows a subscription's secret if it is sealed, so that the service can seal it for another
-- column.
-- Returns: the sealed secret; '' if it is not sealed; null if there is no such subscription
-- +goose StatementBegin
create function pawl.subscription_sealed_secret(p_tenant text, p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when s.secret like 'sealed:%' then s.secret else '' end
  from pawl.subscription s
  where s.tenant_id = p_tenant and s.id = p_id
$$;
-- +goose StatementEnd

-- 50_webhook/subscription_test.sql

-- subscription_test creates a delivery without a step. It is sent before all others, and at once even if
-- the endpoint's circuit is open.
-- Returns: the delivery, or no row if there is no such subscription
-- Locks:   subscription
-- Writes:  subscription, delivery, audit
-- +goose StatementBegin
create function pawl.subscription_test(p_tenant text, p_id uuid, p_caller jsonb default null) returns setof pawl.delivery
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
    perform pawl_private.audit(p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.test', p_target => p_id::text);
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

-- subscription_update changes what is given as not null. Steps and findings that were committed before the change and are
-- not routed yet are chosen by the old filter, as far as route_only reads; those beyond by the new filter.
--
-- A subscription that is enabled again, or gets another URL, starts with a closed circuit, and its
-- deliveries that wait for a retry are due now. Steps that were committed while it was disabled are not
-- sent.
-- Returns: the subscription, or no row
-- Raises:  PW400 malformed-request if an argument breaks a rule
-- Locks:   consumer, subscription
-- Writes:  subscription, delivery, audit
-- +goose StatementBegin
create function pawl.subscription_update(
  p_tenant text, p_id uuid, p_url text, p_workflows text[], p_events text[], p_states text[], p_terminal_only boolean,
  p_disabled boolean, p_caller jsonb default null, p_types text[] default null
) returns setof pawl.subscription_row
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
  v_before jsonb;
begin
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  if p_disabled or coalesce(p_workflows, p_events, p_states, p_types) is not null or p_terminal_only is not null then
    perform pawl_private.route_only(p_tenant, p_id);
  end if;

  select p_url <> s.url or not p_disabled into v_afresh from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id for no key update;
  v_before := pawl_private.subscription_document(p_tenant, p_id);
  update pawl.subscription s
  set
    url = coalesce(p_url, s.url),
    workflows = coalesce(p_workflows, s.workflows),
    events = coalesce(p_events, s.events),
    states = coalesce(p_states, s.states),
    terminal_only = coalesce(p_terminal_only, s.terminal_only),
    types = coalesce(p_types, s.types),
    disabled_at = case when p_disabled then coalesce(s.disabled_at, v_now) when p_disabled is null then s.disabled_at end,
    disabled_reason = case
      when p_disabled then coalesce(s.disabled_reason, 'it was disabled through the API')
      when p_disabled is null then s.disabled_reason
    end,
    since = case when not p_disabled and s.disabled_at is not null then pg_current_snapshot() else s.since end,
    later_seq = case when not p_disabled and s.disabled_at is not null then null else s.later_seq end,
    failures = case when v_afresh then 0 else s.failures end,
    circuit_open_until = case when not v_afresh or v_afresh is null then s.circuit_open_until end
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.update', p_target => p_id::text, p_before => v_before,
      p_after => pawl_private.subscription_document(p_tenant, p_id));
  end if;
  return query select r.* from pawl.subscription_row r where r.tenant_id = p_tenant and r.id = p_id;
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

-- 50_webhook/tenant_of_subscription.sql

-- tenant_of_subscription finds the tenant that has a subscription.
-- Returns: as pawl_private.tenant_of
-- +goose StatementBegin
create function pawl.tenant_of_subscription(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.tenant_of(p_table => 'pawl.subscription', p_id => p_id) $$;
-- +goose StatementEnd

-- 50_webhook/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.consumer_status'),
  ('reader', 'pawl.consumer_status'),
  ('api', 'pawl.subscription_create'),
  ('api', 'pawl.subscription_update'),
  ('api', 'pawl.subscription_delete'),
  ('api', 'pawl.subscription_rotate_secret'),
  ('api', 'pawl.subscription_sealed_secret'),
  ('api', 'pawl.subscription_test'),
  ('api', 'pawl.tenant_of_subscription'),
  ('api', 'pawl.delivery_replay'),
  ('api', 'pawl.callback_host'),
  ('worker', 'pawl.delivery_route'),
  ('worker', 'pawl.delivery_lanes'),
  ('worker', 'pawl.delivery_tenants'),
  ('worker', 'pawl.delivery_due'),
  ('worker', 'pawl.delivery_messages'),
  ('worker', 'pawl.delivery_findings'),
  ('worker', 'pawl.delivery_endpoints'),
  ('worker', 'pawl.delivery_settle'),
  ('worker', 'pawl.delivery_purge'),
  ('worker', 'pawl.subscription_rest');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.subscription_row', null),
  ('api', 'pawl.delivery', null),
  ('reader', 'pawl.subscription_row', '{tenant_id,id,workflows,events,states,terminal_only,types,previous_secret_until,disabled_at,disabled_reason,failures,circuit_open_until,finding,created_at,created_by}'),
  ('reader', 'pawl.delivery', null),
  ('reader', 'pawl.unrouted_step', null);

-- 55_insight/tables.sql

-- Module insight: where the instances are, and what they did. History says all of it, but to read it off takes a scan.
--
-- The consumer insight reads the log and folds it: each page of steps becomes some rows more or other sums in the tables
-- below, in the transaction that moves the consumer's position. So each step is counted exactly once, whatever dies
-- meanwhile, and a transition pays nothing for it. One process folds at a time, so that sums are no hot rows.
--
-- A *visit* is the time that an instance spends in a state. It begins with a step that enters the state, and ends with
-- the next step that is not internal: also if that leads back to the state, and with an instance migration that keeps it.
--
-- A page of steps is folded by one statement. What the fold has seen of an instance before is in residence, so that no
-- history is read but the page's own.
--
-- What was folded is behind the instances by as long as the fold takes. A reader adds what the log has beyond the
-- consumer's position; see pawl_private.unfolded.
--
-- History that is purged cannot be counted again: sums of steps and visits are never reduced. The purge takes its
-- instances out of residence and instance_count, in its own transaction. An instance is purged only after the fold has
-- seen its last step; see pawl_private.log_retains.
--
-- Lock order: consumer, residence, instance_count (by key), the other sums, attribute (by key), after all of the engine's.
-- A reindex takes the consumer and search_index before the rows of residence.

-- residence says which state an instance is in, as of what was folded.
create table pawl.residence (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  since timestamptz not null,
  visit_version pawl.version not null,
  visit_at timestamptz not null,
  constraint residence_pkey primary key (tenant_id, instance_id)
)
-- A row is updated with almost each step of its instance, and its entries in the indexes with it.
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

comment on column pawl.residence.since is 'the instance''s state_changed_at';
comment on column pawl.residence.visit_version is 'the step that began the visit';
comment on column pawl.residence.visit_at is 'when the visit began: later than since if an instance migration kept the state';

-- Lists of the instances in a state, in the order of their ids.
create index residence_state_idx on pawl.residence (tenant_id, workflow, state, instance_id);
-- Those that have been in a state for longest.
create index residence_since_idx on pawl.residence (tenant_id, workflow, state, since, instance_id);

-- instance_count has the number of rows in residence.
create table pawl.instance_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  instances bigint not null,
  constraint instance_count_pkey primary key (tenant_id, workflow, workflow_version, state, status),
  constraint instance_count_is_a_count check (instances >= 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- edge_count has the number of steps from a state to another on a day. Its version is that of the step.
create table pawl.edge_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  day date not null,
  from_state text collate "C" not null,
  event text collate "C" not null,
  to_state text collate "C" not null,
  status pawl.status not null,
  steps bigint not null,
  constraint edge_count_pkey primary key (tenant_id, workflow, day, workflow_version, from_state, event, to_state, status),
  constraint edge_count_is_positive check (steps > 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.edge_count.day is 'of the step, in UTC';
comment on column pawl.edge_count.from_state is 'empty: creations';
comment on column pawl.edge_count.event is
  'as the definition declares it, be it a pattern; forced, cancelled or migrated for such a step; empty for a creation and an eventless step';
comment on column pawl.edge_count.status is 'the instance''s after the step';

-- dwell_count has the number of visits that ended on a day, by how long they lasted and where their end led. Its version is the one that the
-- instance had during the visit.
create table pawl.dwell_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  day date not null,
  state text collate "C" not null,
  bucket integer not null,
  led_to text collate "C" not null,
  visits bigint not null,
  milliseconds bigint not null,
  constraint dwell_count_pkey primary key (tenant_id, workflow, day, workflow_version, state, bucket, led_to),
  constraint dwell_count_is_positive check (visits > 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.dwell_count.day is 'on which the visit ended, in UTC';
comment on column pawl.dwell_count.bucket is 'see pawl_private.dwell_bucket';
comment on column pawl.dwell_count.led_to is 'the state that the visit''s end led to; empty if an instance migration ended it';
comment on column pawl.dwell_count.milliseconds is 'the sum of the visits'' durations';

-- dwell_hour has the visits that ended in the last 24 full hours and the present one, whatever the version. It is a ring: an
-- hour takes the slot of the 25th hour before it, so that no row is ever deleted. A row of an older hour counts for
-- nothing.
create table pawl.dwell_hour (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  state text collate "C" not null,
  slot integer not null,
  hour bigint not null,
  visits bigint not null,
  milliseconds bigint not null,
  constraint dwell_hour_pkey primary key (tenant_id, workflow, state, slot),
  constraint dwell_hour_is_positive check (visits > 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.dwell_hour.hour is 'in which the visits ended: hours since 1970, in UTC';

-- command_count has the number of commands that were answered on a day. The processes that answer count them and write
-- them every few seconds, so that what they have counted since is lost if they crash. Commands of SQL callers are not
-- counted.
create table pawl.command_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  day date not null,
  event text collate "C" not null,
  outcome text collate "C" not null,
  key_result text collate "C" not null,
  commands bigint not null,
  constraint command_count_pkey primary key (tenant_id, workflow, day, event, outcome, key_result),
  constraint command_count_is_positive check (commands > 0),
  constraint command_count_outcome_is_a_code check (outcome ~ '^[a-z-]{1,63}$'),
  constraint command_count_key_result_is_known check (key_result in ('', 'new', 'replayed', 'collision'))
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.command_count.day is 'on which the counts were written, in UTC';
comment on column pawl.command_count.event is
  'as the latest version declares it, be it a pattern; _create for a creation; _other for what no state declares';
comment on column pawl.command_count.outcome is 'applied, or why the command was refused';
comment on column pawl.command_count.key_result is
  'what the idempotency key was: new, replayed, or used for another request; empty if the caller gave none or the command was not decided';

-- forecast_score says how good the forecasts of a day were: of the visits of a state that ended on it, how many had ended
-- by the quantiles of the days before.
create table pawl.forecast_score (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  state text collate "C" not null,
  day date not null,
  visits bigint not null,
  within_p50 bigint not null,
  within_p90 bigint not null,
  constraint forecast_score_pkey primary key (tenant_id, workflow, state, day),
  constraint forecast_score_is_a_part check (within_p50 >= 0 and within_p50 <= within_p90 and within_p90 <= visits)
);

-- forecast_night is how far the scoring of a day has come. It has one row.
create table pawl_private.forecast_night (
  day date not null,
  tenant_id text collate "C" not null,
  workflow text collate "C" not null,
  done boolean not null
)
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

create unique index forecast_night_has_one_row_idx on pawl_private.forecast_night ((true));

comment on column pawl_private.forecast_night.workflow is 'the last one that was scored; empty if none was';

insert into pawl_private.forecast_night (day, tenant_id, workflow, done) values ('epoch', '', '', true);
-- attribute has the values that instances are found by: see pawl.workflow.search. Objects, arrays and null have no row,
-- nor have numbers of more than 100 characters.
create table pawl.attribute (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  name text collate "C" not null,
  workflow text collate "C" not null,
  text_value text collate "C",
  number_value numeric,
  time_value timestamptz,
  boolean_value boolean,
  constraint attribute_pkey primary key (tenant_id, instance_id, name),
  constraint attribute_has_a_value check (num_nonnulls(text_value, number_value, time_value, boolean_value) > 0),
  constraint attribute_text_has_at_most_255_bytes check (octet_length(text_value) <= 255)
)
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

comment on column pawl.attribute.text_value is 'of a text of more than 255 bytes the first 63 characters';
comment on column pawl.attribute.time_value is 'of a text that is a time of RFC 3339';

create index attribute_text_idx on pawl.attribute (tenant_id, workflow, name, text_value, instance_id) where text_value is not null;
create index attribute_number_idx on pawl.attribute (tenant_id, workflow, name, number_value, instance_id) where number_value is not null;
create index attribute_time_idx on pawl.attribute (tenant_id, workflow, name, time_value, instance_id) where time_value is not null;
create index attribute_boolean_idx on pawl.attribute (tenant_id, workflow, name, boolean_value, instance_id) where boolean_value is not null;

-- search_index says by which attributes the instances of a workflow were indexed, or are being indexed anew. The index
-- is complete if it is that of the latest version's search.
create table pawl_private.search_index (
  workflow text collate "C" not null,
  search jsonb not null,
  complete boolean not null,
  after_tenant text collate "C" not null,
  after_id uuid not null,
  indexed bigint not null,
  constraint search_index_pkey primary key (workflow)
);

comment on column pawl_private.search_index.after_tenant is 'with after_id: the last instance that was looked at';
comment on column pawl_private.search_index.indexed is 'how many instances were indexed';

-- 55_insight/private.sql

-- dwell_bucket is the bucket of a duration: 0 for less than a millisecond, else n for 1.1^(n-1) up to 1.1^n milliseconds,
-- without the end. Sums over buckets can be merged, and a quantile that is read off them is wrong by 5 % at most.
-- +goose StatementBegin
create function pawl_private.dwell_bucket(p_milliseconds bigint) returns integer
language sql immutable parallel safe
as $$ select case when p_milliseconds < 1 then 0 else floor(ln(p_milliseconds::double precision) / ln(1.1::double precision)) + 1 end::integer $$;
-- +goose StatementEnd

-- milliseconds is how long a visit lasted: 0 if the clock went back.
-- +goose StatementBegin
create function pawl_private.milliseconds(p_from timestamptz, p_until timestamptz) returns bigint
language sql immutable parallel safe
as $$ select greatest(extract(epoch from p_until - p_from) * 1000, 0)::bigint $$;
-- +goose StatementEnd

-- declared_event is an event as a version declares it for a state: its name, or the pattern that it matches. So sums have
-- no more events than definitions do.
-- +goose StatementBegin
create function pawl_private.declared_event(p_workflow text, p_workflow_version integer, p_state text, p_event text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if p_event = '' then
    return p_event;
  end if;
  return coalesce((
    select pawl_private.matching(p_event, s.events, s.patterns)
    from pawl.workflow_state s
    where s.workflow = p_workflow and s.workflow_version = p_workflow_version and s.state = p_state
    limit 1
  ), p_event);
end
$$;
-- +goose StatementEnd

-- forget_residence takes instances that are purged out of what the module knows of them.
-- Locks:  residence, finding
-- Writes: residence, instance_count, attribute, finding, healing
-- +goose StatementBegin
create function pawl_private.forget_residence(p_tenant text, p_ids uuid[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
  with gone as (
    delete from pawl.residence r
    using unnest(p_ids) as p (id)
    where r.tenant_id = p_tenant and r.instance_id = p.id
    returning r.workflow, r.workflow_version, r.state, r.status
  ),
  fewer as (
    select g.workflow, g.workflow_version, g.state, g.status, count(*) as instances
    from gone g
    group by g.workflow, g.workflow_version, g.state, g.status
    -- In the order of the key, as the fold writes them.
    order by g.workflow, g.workflow_version, g.state, g.status
  )
  update pawl.instance_count c
  set instances = c.instances - f.instances
  from fewer f
  where c.tenant_id = p_tenant and c.workflow = f.workflow and c.workflow_version = f.workflow_version and c.state = f.state and c.status = f.status;
  -- In a statement of its own, to see what was found while this transaction waited for the rows above.
  update pawl.finding f
  set closed_at = greatest(f.opened_at, pawl.now())
  from unnest(p_ids) as p (id)
  where f.tenant_id = p_tenant and f.instance_id = p.id and f.closed_at is null;
  delete from pawl_private.healing h using unnest(p_ids) as p (id) where h.tenant_id = p_tenant and h.instance_id = p.id;
  -- In a statement of its own: it sees what was indexed while the one above waited for a row of residence.
  delete from pawl.attribute a using unnest(p_ids) as p (id) where a.tenant_id = p_tenant and a.instance_id = p.id;
end
$$;
-- +goose StatementEnd

-- unfolded reads which of a tenant's instances have steps that the consumer insight has not folded, as of the caller's
-- snapshot: those that follow the consumer's position, and committed ones that have no position yet.
-- p_most: how many steps of all tenants there may be
-- Returns: ids, each once
-- Raises:  55000 there are more, or there is no such consumer
-- +goose StatementBegin
create function pawl_private.unfolded(p_tenant text, p_most integer) returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_head pawl.log_head;
  v_position bigint;
  v_ids uuid[];
  v_steps bigint;
begin
  select h.* into strict v_head from pawl.log_head h;
  select c.position into v_position from pawl.consumer c where c.name = 'insight' and not c.audit;
  if v_position >= v_head.position - p_most and v_head.epoch > 0 then
    select array_agg(distinct u.instance_id) filter (where u.tenant_id = p_tenant), count(*) into v_ids, v_steps
    from (
      select u.tenant_id, u.instance_id
      from (
        select l.tenant_id, l.instance_id from pawl.log l where l.position > v_position and l.finding_id is null
        union all
        select h.tenant_id, h.instance_id
        from pawl_private.steps_between(v_head.snapshot, pg_current_snapshot(), v_head.first_seq) h
      ) u
      limit p_most::bigint + 1
    ) u;
  end if;
  if v_steps <= p_most then
    return coalesce(v_ids, '{}');
  end if;
  raise exception 'too many steps are not folded yet' using errcode = 'object_not_in_prerequisite_state';
end
$$;
-- +goose StatementEnd

-- counted_event is an event as pawl.command_count has it: as the latest version of the workflow declares it in some state, by
-- its name rather than by a pattern, or _other.
-- Returns: null if there is no such workflow
-- +goose StatementBegin
create function pawl_private.counted_event(p_workflow text, p_event text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version integer;
begin
  select w.version into v_version from pawl.workflow w where w.name = p_workflow order by w.version desc limit 1;
  if not found then
    return null;
  end if;
  if p_event = '_create' then
    return p_event;
  end if;
  return coalesce((
    select m.event
    from pawl.workflow_state s
    cross join lateral pawl_private.matching(p_event, s.events, s.patterns) as m (event)
    where s.workflow = p_workflow and s.workflow_version = v_version and m.event = any (s.events)
    order by m.event = p_event desc, m.event
    limit 1
  ), '_other');
end
$$;
-- +goose StatementEnd

-- score_workflow scores the visits of a workflow of a tenant that ended on a day; see pawl.score_forecasts.
-- Writes:  forecast_score
-- +goose StatementBegin
create function pawl_private.score_workflow(p_tenant text, p_workflow text, p_day date) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pawl.forecast_score (tenant_id, workflow, state, day, visits, within_p50, within_p90)
  select
    p_tenant, p_workflow, d.state, p_day, sum(d.visits), coalesce(sum(d.visits) filter (where d.bucket <= q.p50), 0),
    coalesce(sum(d.visits) filter (where d.bucket <= q.p90), 0)
  from (
    select d.state, d.bucket, sum(d.visits) as visits
    from pawl.dwell_count d
    where d.tenant_id = p_tenant and d.workflow = p_workflow and d.day = p_day and d.led_to <> ''
    group by d.state, d.bucket
  ) d
  join (
    select
      r.state, min(r.bucket) filter (where r.up_to >= 0.5 * r.total) as p50, min(r.bucket) filter (where r.up_to >= 0.9 * r.total) as p90
    from (
      select
        b.state, b.bucket, sum(b.visits) over (partition by b.state order by b.bucket) as up_to, sum(b.visits) over (partition by b.state) as total
      from (
        select d.state, d.bucket, sum(d.visits) as visits
        from pawl.dwell_count d
        where d.tenant_id = p_tenant and d.workflow = p_workflow and d.day >= p_day - 90 and d.day < p_day and d.led_to <> ''
        group by d.state, d.bucket
      ) b
    ) r
    where r.total >= 30
    group by r.state
  ) q on q.state = d.state
  group by d.state
  on conflict on constraint forecast_score_pkey do nothing;
end
$$;
-- +goose StatementEnd

-- slot_of_hour is the slot of an hour in pawl.dwell_hour. There is one for each hour of the last 24 and the present one.
-- +goose StatementBegin
create function pawl_private.slot_of_hour(p_hour bigint) returns integer
language sql immutable parallel safe
as $$ select (p_hour % 25)::integer $$;
-- +goose StatementEnd

-- first_due is when instances of a place, which came into the state after p_after, are first due for a look; see pawl_private.stuck_place.
-- Returns: null if they never are
-- +goose StatementBegin
create function pawl_private.first_due(p_after timestamptz, p_threshold interval, p_strands boolean) returns timestamptz
language sql stable parallel safe
as $$ select p_after + interval '1 microsecond' + least(p_threshold, case when p_strands then interval '10 seconds' end) $$;
-- +goose StatementEnd

-- fold counts the steps of a page of the log, and notes where they led their instances. Its caller moves the position of
-- the consumer in the same transaction, under the lock of the consumer's row. Internal steps and those of purged
-- instances are left out.
-- Locks:  finding, stuck_place, residence, instance_count
-- Writes: residence, instance_count, edge_count, dwell_count, dwell_hour, attribute, finding, stuck_place
-- +goose StatementBegin
create function pawl_private.fold(p_after bigint, p_until bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_memoize = off
set jit = off
as $$
declare
  v_hour bigint := extract(epoch from pawl.now())::bigint / 3600;
  v_open boolean := exists (select from pawl.finding f where f.closed_at is null limit 1);
begin
  with step as materialized (
    select
      h.tenant_id, h.instance_id, h.version, h.workflow collate "C" as workflow, h.workflow_version,
      coalesce(h.from_state, '') collate "C" as from_state, h.to_state collate "C" as to_state, h.status,
      case when h.kind in ('forced', 'cancelled', 'migrated') then h.kind::text else coalesce(h.event, '') end collate "C" as event,
      h.at, (h.at at time zone 'UTC')::date as day, coalesce(h.entered_at, h.at) as since
    from (select l.* from pawl.log l where l.position > p_after and l.position <= p_until order by l.position) l
    cross join lateral (
      select h.*
      from pawl.history h
      where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
      limit 1
    ) h
    where h.internal is null
  ),
  move as materialized (
    select
      s.*, case when s.event = 'migrated' then '' else s.to_state end as led_to,
      lag(s.version) over w is null as is_first, lead(s.version) over w is null as is_last,
      lag(s.at) over w as visit_at, lag(s.workflow_version) over w as visit_workflow_version
    from step s
    window w as (partition by s.tenant_id, s.instance_id order by s.version)
  ),
  -- The visits that the first step of each instance ends.
  known as materialized (
    select m.tenant_id, m.workflow, m.day, m.at, m.led_to, r.workflow_version, r.state, r.status, r.visit_at
    from move m
    cross join lateral (
      select r.* from pawl.residence r where r.tenant_id = m.tenant_id and r.instance_id = m.instance_id limit 1
    ) r
    where m.is_first
  ),
  visit as materialized (
    select
      v.tenant_id, v.workflow, v.workflow_version, v.day, v.at, v.state, v.led_to, pawl_private.dwell_bucket(v.milliseconds) as bucket, v.milliseconds
    from (
      select
        k.tenant_id, k.workflow, k.workflow_version, k.day, k.at, k.state, k.led_to, pawl_private.milliseconds(k.visit_at, k.at) as milliseconds
      from known k
      union all
      select
        m.tenant_id, m.workflow, m.visit_workflow_version, m.day, m.at, m.from_state, m.led_to, pawl_private.milliseconds(m.visit_at, m.at)
      from move m
      where not m.is_first
    ) v
  ),
  edge as materialized (
    select m.tenant_id, m.workflow, m.workflow_version, m.day, m.from_state, m.event, m.to_state, m.status, count(*) as steps
    from move m
    group by m.tenant_id, m.workflow, m.workflow_version, m.day, m.from_state, m.event, m.to_state, m.status
  ),
  resided as (
    insert into pawl.residence as r
      (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
    select m.tenant_id, m.instance_id, m.workflow, m.workflow_version, m.to_state, m.status, m.since, m.version, m.at
    from move m
    where m.is_last
    order by m.tenant_id, m.instance_id
    on conflict on constraint residence_pkey do update
    set workflow_version = excluded.workflow_version, state = excluded.state, status = excluded.status, since = excluded.since,
      visit_version = excluded.visit_version, visit_at = excluded.visit_at
  ),
  -- A step ends what was found of the visit.
  closed as (
    update pawl.finding f
    set closed_at = greatest(f.opened_at, m.at)
    from move m
    where v_open and m.is_last and f.tenant_id = m.tenant_id and f.instance_id = m.instance_id and f.closed_at is null
      and f.visit_version < m.version and f.kind <> 'delivery-dead'
  ),
  -- The next look must not begin behind what has come, nor come later than that is due.
  placed as (
    insert into pawl_private.stuck_place as p (tenant_id, workflow, state, slow_since, orphaned_since)
    select m.tenant_id, m.workflow, m.to_state, min(m.since) - interval '1 microsecond', min(m.since) - interval '1 microsecond'
    from move m
    where m.is_last and m.status = 'active'
    group by m.tenant_id, m.workflow, m.to_state
    order by m.tenant_id, m.workflow, m.to_state
    on conflict on constraint stuck_place_pkey do update
    set slow_since = least(p.slow_since, excluded.slow_since), orphaned_since = least(p.orphaned_since, excluded.orphaned_since),
      slow_id = case when p.slow_since <= excluded.slow_since then p.slow_id else excluded.slow_id end,
      orphaned_id = case when p.orphaned_since <= excluded.orphaned_since then p.orphaned_id else excluded.orphaned_id end,
      next_at = case
        when p.next_at = 'infinity' or p.slow_since > excluded.slow_since or p.orphaned_since > excluded.orphaned_since then '-infinity'
        else pawl_private.first_due(excluded.slow_since, p.threshold, p.strands)
      end
    where p.next_at = 'infinity' or p.slow_since > excluded.slow_since or p.orphaned_since > excluded.orphaned_since
      or p.next_at > pawl_private.first_due(excluded.slow_since, p.threshold, p.strands)
  ),
  stepped as (
    insert into pawl.edge_count as c (tenant_id, workflow, workflow_version, day, from_state, event, to_state, status, steps)
    select e.tenant_id, e.workflow, e.workflow_version, e.day, e.from_state, e.declared, e.to_state, e.status, sum(e.steps)
    from (
      select e.*, pawl_private.declared_event(e.workflow, e.workflow_version, e.from_state, e.event) collate "C" as declared from edge e
    ) e
    group by e.tenant_id, e.workflow, e.workflow_version, e.day, e.from_state, e.declared, e.to_state, e.status
    on conflict on constraint edge_count_pkey do update set steps = c.steps + excluded.steps
  ),
  visited as (
    insert into pawl.dwell_count as c (tenant_id, workflow, workflow_version, day, state, bucket, led_to, visits, milliseconds)
    select v.tenant_id, v.workflow, v.workflow_version, v.day, v.state, v.bucket, v.led_to, count(*), sum(v.milliseconds)
    from visit v
    group by v.tenant_id, v.workflow, v.workflow_version, v.day, v.state, v.bucket, v.led_to
    on conflict on constraint dwell_count_pkey do update
    set visits = c.visits + excluded.visits, milliseconds = c.milliseconds + excluded.milliseconds
  ),
  -- The hours of one page that are kept differ in their slots, since no more of them are kept than there are slots.
  visited_lately as (
    insert into pawl.dwell_hour as c (tenant_id, workflow, state, slot, hour, visits, milliseconds)
    select v.tenant_id, v.workflow, v.state, pawl_private.slot_of_hour(v.hour), v.hour, count(*), sum(v.milliseconds)
    from (select v.*, extract(epoch from v.at)::bigint / 3600 as hour from visit v) v
    where v.hour > v_hour - 25 and v.hour <= v_hour
    group by v.tenant_id, v.workflow, v.state, v.hour
    on conflict on constraint dwell_hour_pkey do update
    set hour = greatest(c.hour, excluded.hour),
      visits = case when c.hour > excluded.hour then c.visits when c.hour = excluded.hour then c.visits + excluded.visits else excluded.visits end,
      milliseconds = case
        when c.hour > excluded.hour then c.milliseconds when c.hour = excluded.hour then c.milliseconds + excluded.milliseconds
        else excluded.milliseconds
      end
  )
  merge into pawl.instance_count c
  using (
    select d.tenant_id, d.workflow, d.workflow_version, d.state, d.status, sum(d.instances) as instances
    from (
      select m.tenant_id, m.workflow, m.workflow_version, m.to_state as state, m.status, 1 as instances from move m where m.is_last
      union all
      select k.tenant_id, k.workflow, k.workflow_version, k.state, k.status, -1 from known k
    ) d
    group by d.tenant_id, d.workflow, d.workflow_version, d.state, d.status
    having sum(d.instances) <> 0
    -- In the order of the key, as a purge writes them.
    order by d.tenant_id, d.workflow, d.workflow_version, d.state, d.status
  ) d
  on c.tenant_id = d.tenant_id and c.workflow = d.workflow and c.workflow_version = d.workflow_version and c.state = d.state and c.status = d.status
  when matched then update set instances = c.instances + d.instances
  when not matched then insert (tenant_id, workflow, workflow_version, state, status, instances)
    values (d.tenant_id, d.workflow, d.workflow_version, d.state, d.status, d.instances);
end
$$;
-- +goose StatementEnd

-- rfc3339_time is the time that a text of RFC 3339 says, or null.
-- +goose StatementBegin
create function pawl_private.rfc3339_time(p_text text) returns timestamptz
language sql stable parallel safe
as $$
  select case
    when p_text ~ '^(?!0000)[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([Zz]|[+-](0[0-9]|1[0-4]):[0-5][0-9])$'
      and substr(p_text, 9, 2)::integer
        <= extract(day from make_date(substr(p_text, 1, 4)::integer, substr(p_text, 6, 2)::integer, 1) + interval '1 month - 1 day')
      then p_text::timestamptz
  end
$$;
-- +goose StatementEnd

-- number_of is the number that a text says, or null: also if it has more than 100 digits.
-- +goose StatementBegin
create function pawl_private.number_of(p_text text) returns numeric
language sql immutable parallel safe
as $$
  select case when p_text ~ '^-?[0-9]{1,100}(\.[0-9]{1,100})?$' and length(p_text) <= 100 then p_text::numeric end
$$;
-- +goose StatementEnd

-- text_key is what is indexed of a text.
-- +goose StatementBegin
create function pawl_private.text_key(p_text text) returns text
language sql immutable parallel safe
as $$ select case when octet_length(p_text) <= 255 then p_text else left(p_text, 63) end $$;
-- +goose StatementEnd

-- attribute_of takes a value for what it is, or for its type.
-- Returns: whole_text: a text to its end. The others are null where the value is none of the kind
-- +goose StatementBegin
create function pawl_private.attribute_of(
  p_value jsonb, p_type text, out whole_text text, out number_value numeric, out time_value timestamptz, out boolean_value boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text := jsonb_typeof(p_value);
  v_text text := p_value #>> '{}';
begin
  if v_kind in ('string', 'number', 'boolean') then
    if p_type = 'text' or p_type is null and v_kind = 'string' then
      whole_text := v_text;
    end if;
    if p_type = 'number' or p_type is null and v_kind = 'number' then
      number_value := pawl_private.number_of(v_text);
    end if;
    if p_type = 'time' or p_type is null and v_kind = 'string' then
      time_value := pawl_private.rfc3339_time(v_text);
    end if;
    if v_kind = 'boolean' and p_type is null or p_type = 'boolean' and v_text in ('true', 'false') then
      boolean_value := v_text::boolean;
    end if;
  end if;
end
$$;
-- +goose StatementEnd

-- attributes_of reads the values that an instance is found by from its context.
-- +goose StatementBegin
create function pawl_private.attributes_of(p_context jsonb, p_search jsonb)
returns table (name text, text_value text, number_value numeric, time_value timestamptz, boolean_value boolean)
language sql stable
as $$
  select s.key, pawl_private.text_key(a.whole_text), a.number_value, a.time_value, a.boolean_value
  from jsonb_each(p_search) s
  cross join lateral pawl_private.attribute_of(
    p_context #> (select array_agg(e.name order by e.place) from jsonb_array_elements_text(s.value -> 'path') with ordinality as e (name, place)),
    s.value ->> 'type') a
  where num_nonnulls(a.whole_text, a.number_value, a.time_value, a.boolean_value) > 0
$$;
-- +goose StatementEnd

-- search_of is what the instances of a workflow are found by: what its latest version says.
-- +goose StatementBegin
create function pawl_private.search_of(p_workflow text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select w.search from pawl.workflow w where w.name = p_workflow order by w.version desc limit 1);
end
$$;
-- +goose StatementEnd

-- fold_attributes notes the values by which the instances of a page of the log are found. It reads only contexts of
-- workflows that say by which.
-- Writes: attribute
-- +goose StatementBegin
create function pawl_private.fold_attributes(p_after bigint, p_until bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_memoize = off
set jit = off
as $$
declare
  v_searches jsonb := (
    select jsonb_object_agg(w.name, w.search)
    from (select distinct on (w.name) w.name, w.search from pawl.workflow w order by w.name, w.version desc) w
    where w.search is not null);
begin
  if v_searches is null then
    return;
  end if;
  with step as materialized (
    select distinct on (h.tenant_id, h.instance_id) h.tenant_id, h.instance_id, h.version, h.workflow
    from (select l.* from pawl.log l where l.position > p_after and l.position <= p_until order by l.position) l
    cross join lateral (
      select h.tenant_id, h.instance_id, h.version, h.workflow
      from pawl.history h
      where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
      limit 1
    ) h
    where v_searches ? h.workflow
    order by h.tenant_id, h.instance_id, h.version desc
  ),
  value as materialized (
    select s.tenant_id, s.instance_id, s.workflow, a.*
    from step s
    cross join lateral (
      select h.context
      from pawl.history h
      where h.tenant_id = s.tenant_id and h.instance_id = s.instance_id and h.version = s.version
      limit 1
    ) h
    cross join lateral pawl_private.attributes_of(h.context, v_searches -> s.workflow) a
  ),
  gone as (
    delete from pawl.attribute a
    using step s
    where a.tenant_id = s.tenant_id and a.instance_id = s.instance_id
      and (a.tenant_id, a.instance_id, a.name) not in (select v.tenant_id, v.instance_id, v.name from value v)
  )
  insert into pawl.attribute as a (tenant_id, instance_id, name, workflow, text_value, number_value, time_value, boolean_value)
  select v.tenant_id, v.instance_id, v.name, v.workflow, v.text_value, v.number_value, v.time_value, v.boolean_value
  from value v
  order by v.tenant_id, v.instance_id, v.name
  on conflict on constraint attribute_pkey do update
  set text_value = excluded.text_value, number_value = excluded.number_value, time_value = excluded.time_value,
    boolean_value = excluded.boolean_value
  where (a.text_value, a.number_value, a.time_value, a.boolean_value)
    is distinct from (excluded.text_value, excluded.number_value, excluded.time_value, excluded.boolean_value);
end
$$;
-- +goose StatementEnd

-- search_begins notes that the latest version of a workflow is now another one. If it says something else to find
-- instances by, they must be indexed anew, unless there are none.
-- Writes: search_index
-- +goose StatementBegin
create function pawl_private.search_begins(p_workflow text, p_before jsonb, p_is_first boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_search jsonb := pawl_private.search_of(p_workflow);
begin
  if v_search is null then
    delete from pawl_private.search_index i where i.workflow = p_workflow;
  elsif p_is_first or v_search is distinct from p_before then
    insert into pawl_private.search_index as i (workflow, search, complete, after_tenant, after_id, indexed)
    values (p_workflow, v_search, p_is_first, '', '00000000-0000-0000-0000-000000000000', 0)
    on conflict on constraint search_index_pkey do update
    set search = excluded.search, complete = excluded.complete, after_tenant = '', after_id = excluded.after_id, indexed = 0;
  end if;
end
$$;
-- +goose StatementEnd

-- value_fulfils says whether a value of a context fulfils a condition. p_type is that of the attribute, or null. p_op is =, <,
-- <=, >, >= or ^ for a text that begins so; p_kind is text, number, time or boolean, and p_wanted the value of that kind.
-- It is called for each instance that a list looks at.
-- +goose StatementBegin
create function pawl_private.value_fulfils(p_value jsonb, p_type text, p_kind text, p_op text, p_wanted text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := jsonb_typeof(p_value);
  v_text text;
  v_order integer;
begin
  if p_value is null or v_type not in ('string', 'number', 'boolean') or p_type <> p_kind then
    return false;
  end if;
  v_text := p_value #>> '{}';
  case p_kind
    when 'text' then
      if p_type is null and v_type <> 'string' then
        return false;
      elsif p_op = '^' then
        return starts_with(v_text, p_wanted);
      end if;
      v_order := case when v_text = p_wanted then 0 when v_text collate "C" < p_wanted then -1 else 1 end;
    when 'number' then
      if p_type is null and v_type <> 'number' then
        return false;
      end if;
      -- That of a number needs no look at its digits.
      v_order := sign(
        case when v_type = 'number' and length(v_text) <= 100 then v_text::numeric else pawl_private.number_of(v_text) end - p_wanted::numeric);
    when 'time' then
      if p_type is null and v_type <> 'string' then
        return false;
      end if;
      v_order := sign(extract(epoch from pawl_private.rfc3339_time(v_text) - p_wanted::timestamptz));
    when 'boolean' then
      if p_type is null and v_type <> 'boolean' or v_text not in ('true', 'false') then
        return false;
      end if;
      v_order := v_text::boolean::integer - p_wanted::boolean::integer;
  end case;
  return coalesce(
    case p_op
      when '=' then v_order = 0 when '<' then v_order < 0 when '<=' then v_order <= 0 when '>' then v_order > 0
      when '>=' then v_order >= 0
    end,
    false);
end
$$;
-- +goose StatementEnd

-- An attribute_range has the values of an attribute that fulfil conditions, and some more: no less than low and no more
-- than high, where they are not null, and of a text that it begins with prefix.
create type pawl_private.attribute_range as (
  name text,
  kind text,
  low text,
  high text,
  prefix text
);

-- attribute_ranges makes one range of all conditions {name, op, kind, value} for an attribute and a kind. op and kind are
-- those of value_fulfils.
-- +goose StatementBegin
create function pawl_private.attribute_ranges(p_conditions jsonb) returns setof pawl_private.attribute_range
language plpgsql stable rows 10
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select
      c.name, c.kind,
      case c.kind
        when 'number' then max(case when c.kind = 'number' and c.op in ('=', '>', '>=') then c.value::numeric end)::text
        when 'time' then max(case when c.kind = 'time' and c.op in ('=', '>', '>=') then c.value::timestamptz end)::text
        else max(case when c.op in ('=', '>', '>=') then c.value end collate "C")
      end,
      case c.kind
        when 'number' then min(case when c.kind = 'number' and c.op in ('=', '<', '<=') then c.value::numeric end)::text
        when 'time' then min(case when c.kind = 'time' and c.op in ('=', '<', '<=') then c.value::timestamptz end)::text
        else min(case when c.op in ('=', '<', '<=') then c.value end collate "C")
      end,
      (array_agg(c.value order by length(c.value) desc) filter (where c.op = '^'))[1]
    from (
      select c.value ->> 'name' as name, c.value ->> 'kind' as kind, c.value ->> 'op' as op, c.value ->> 'value' as value
      from jsonb_array_elements(p_conditions) c
    ) c
    group by c.name, c.kind;
end
$$;
-- +goose StatementEnd

-- attribute_ids reads the ids of instances that may be in a range: all that are, and some more.
-- p_ascending: null for no order; else that of the ids, behind p_after, for a range whose low is its high
-- Returns: at most p_limit ids
-- +goose StatementBegin
create function pawl_private.attribute_ids(
  p_tenant text, p_workflow text, p_range pawl_private.attribute_range, p_limit bigint, p_ascending boolean, p_after uuid
) returns setof uuid
language plpgsql stable rows 1000
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_name text := p_range.name;
  v_low text := p_range.low;
  v_high text := p_range.high;
  -- One value alone makes the order of an index that of the ids. How it begins need not be asked then.
  v_value text := case when v_low = v_high and starts_with(v_low, coalesce(p_range.prefix, '')) then v_low end;
  v_prefix text := case when v_value is null then p_range.prefix end;
begin
  case p_range.kind
    when 'text' then
      -- What is indexed of a text is no larger than the text, and no smaller than as much of a smaller text.
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.text_value is not null
          and (v_value is null or a.text_value = pawl_private.text_key(v_value))
          and (v_value is not null or v_low is null or a.text_value >= left(v_low, 63))
          and (v_value is not null or v_high is null or a.text_value <= v_high)
          and (v_prefix is null or a.text_value ^@ left(v_prefix, 63))
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
    when 'number' then
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.number_value is not null
          and (v_value is null or a.number_value = v_value::numeric)
          and (v_value is not null or v_low is null or a.number_value >= v_low::numeric)
          and (v_value is not null or v_high is null or a.number_value <= v_high::numeric)
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
    when 'time' then
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.time_value is not null
          and (v_value is null or a.time_value = v_value::timestamptz)
          and (v_value is not null or v_low is null or a.time_value >= v_low::timestamptz)
          and (v_value is not null or v_high is null or a.time_value <= v_high::timestamptz)
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
    when 'boolean' then
      return query
        select a.instance_id
        from pawl.attribute a
        where a.tenant_id = p_tenant and a.workflow = p_workflow and a.name = v_name
          and a.boolean_value is not null
          and (v_value is null or a.boolean_value = v_value::boolean)
          and (v_value is not null or v_low is null or a.boolean_value >= v_low::boolean)
          and (v_value is not null or v_high is null or a.boolean_value <= v_high::boolean)
          and (p_ascending is null or p_after is null or case when p_ascending then a.instance_id > p_after else a.instance_id < p_after end)
        order by case when p_ascending then a.instance_id end, case when not p_ascending then a.instance_id end desc
        limit p_limit;
  end case;
end
$$;
-- +goose StatementEnd

-- 55_insight/count_commands.sql

-- count_commands adds what a process has counted to pawl.command_count. Workflows that do not exist are left out.
-- p_workflows: empty for that of the instance
-- p_events:    empty for an event that is not declared
-- Raises:  PW400 malformed-request
-- Locks:   command_count (by key)
-- Writes:  command_count
-- +goose StatementBegin
create function pawl.count_commands(
  p_tenants text[], p_workflows text[], p_events text[], p_outcomes text[], p_key_results text[], p_commands bigint[], p_instances uuid[]
) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_day date := (pawl.now() at time zone 'UTC')::date;
  v_constraint text;
  v_column text;
begin
  perform set_config('synchronous_commit', 'off', true);
  insert into pawl.command_count as c (tenant_id, workflow, day, event, outcome, key_result, commands)
  select p.tenant_id, p.workflow, v_day, p.event, p.outcome, p.key_result, sum(p.commands)::bigint
  from (
    select a.tenant_id, w.workflow, pawl_private.counted_event(w.workflow, a.event) as event, a.outcome, a.key_result, a.commands
    from unnest(p_tenants, p_workflows, p_events, p_outcomes, p_key_results, p_commands, p_instances)
      as a (tenant_id, workflow, event, outcome, key_result, commands, instance_id)
    cross join lateral (
      select case
        when a.workflow = '' then (select i.workflow from pawl.instance i where i.tenant_id = a.tenant_id and i.id = a.instance_id)
        else a.workflow
      end as workflow
    ) w
  ) p
  where p.event is not null
  group by p.tenant_id, p.workflow, p.event, p.outcome, p.key_result
  -- In the order of the key, since several processes write.
  order by p.tenant_id collate "C", p.workflow collate "C", p.event collate "C", p.outcome collate "C", p.key_result collate "C"
  on conflict on constraint command_count_pkey do update set commands = c.commands + excluded.commands;
exception
  when data_exception or not_null_violation or check_violation or array_subscript_error or program_limit_exceeded then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
-- +goose StatementEnd

-- 55_insight/insight_as_of.sql

-- insight_as_of says as of when the sums of the module are: now if every committed step is folded, else the time of the last
-- step that is.
-- Returns: the time; epoch if nothing was folded yet
-- +goose StatementBegin
create function pawl.insight_as_of() returns timestamptz
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_consumer pawl.consumer;
  v_head pawl.log_head;
begin
  select * into v_consumer from pawl.consumer c where c.name = 'insight' and not c.audit;
  if not found then
    return 'epoch';
  end if;
  select * into v_head from pawl.log_head;
  if v_consumer.position = v_head.position
    and not exists (select from pawl_private.steps_between(v_head.snapshot, pg_current_snapshot(), v_head.first_seq))
  then
    return pawl.now();
  end if;
  return coalesce(
    (select pawl_private.logged_at(l) from pawl.log l where l.position = v_consumer.position),
    v_consumer.advanced_at, 'epoch');
end
$$;
-- +goose StatementEnd

-- 55_insight/insight_fold.sql

-- insight_fold folds the next page of the log for the consumer insight, moves its position behind the page, and renews the
-- lease. The commit is asynchronous: what a crash takes back, it takes back together.
-- p_limit: the most rows of the log
-- Returns: leads: whether p_leader still leads in p_term; if not, nothing is changed. steps: how many rows of the log were
--          read; 0 at its end
-- Raises:  PW400 malformed-request
-- Locks:   consumer, finding, stuck_place, residence, instance_count
-- Writes:  consumer, residence, instance_count, edge_count, dwell_count, dwell_hour, attribute, finding, stuck_place
-- +goose StatementBegin
create function pawl.insight_fold(
  p_leader text, p_term bigint, p_limit integer, p_lease interval, out leads boolean, out steps bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_after bigint;
  v_until bigint;
begin
  perform pawl_private.refuse_malformed(
    case when p_lease between interval '0' and interval '10 years' then null else 'a lease is from 0 to 10 years' end);
  perform set_config('synchronous_commit', 'off', true);
  select c.position into v_after
  from pawl.consumer c
  where c.name = 'insight' and not c.audit and c.leader = p_leader and c.term = p_term
  for no key update;
  leads := found;
  steps := 0;
  if not leads then
    return;
  end if;
  v_until := pawl_private.log_until(v_after, greatest(p_limit, 1));
  if v_until is null then
    update pawl.consumer c set lease_until = v_now + p_lease where c.name = 'insight' and c.lease_until < v_now + p_lease * 2 / 3;
    return;
  end if;
  perform pawl_private.fold(v_after, v_until);
  perform pawl_private.fold_attributes(v_after, v_until);
  steps := v_until - v_after;
  update pawl.consumer c
  set position = v_until, relayed = c.relayed + steps, advanced_at = v_now, lease_until = v_now + p_lease
  where c.name = 'insight';
end
$$;
-- +goose StatementEnd

-- 55_insight/instances_in_states.sql

-- instances_in_states reads a page of the ids of a tenant's instances that are in some states, as of the caller's
-- snapshot: from what was folded, and from the instances themselves where steps have not been folded yet.
--
-- No index has both the order of the ids and the time since when an instance is in its state. So a list in the order of
-- the ids with p_stuck_for sorts the instances that have been there for so long, if they are few. Else it reads the
-- instances of each state in the order of their ids, p_probes at most, and the page may end there.
--
-- p_workflows, p_states: pairs; each is given once. A state is atomic
-- p_statuses:            null for all
-- p_created_after, p_created_before: both exclusive; null for none
-- p_stuck_for:           the shortest time since the state was entered; null for none
-- p_by_change:           whether the order is that of state_changed_at and then of the ids, else that of the ids alone
-- p_after_change, p_after_id: where the page begins, exclusive; null for the first one
-- p_most:                how many steps without a fold there may be, of all tenants
-- p_few, p_probes:       how many instances are few, and how many are read of each state if they are not
-- Returns: ids: at most p_limit, in order. versions, changes: their versions and state_changed_at. rest: the id behind which the list
--          goes on although the page has fewer ids; else null
-- Raises:  PW400 malformed-request; 55000 more than p_most steps are not folded yet
-- +goose StatementBegin
create function pawl.instances_in_states(
  p_tenant text, p_workflows text[], p_states text[], p_statuses text[], p_created_after timestamptz,
  p_created_before timestamptz, p_stuck_for interval, p_by_change boolean, p_ascending boolean, p_after_change timestamptz,
  p_after_id uuid, p_limit integer, p_most integer, p_few integer, p_probes integer,
  out ids uuid[], out versions bigint[], out changes timestamptz[], out rest uuid
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- Planned for its arguments at each call: then conditions and terms of the order that are not used fall away.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_unfolded uuid[] := pawl_private.unfolded(p_tenant, p_most);
  v_changed_until timestamptz;
  v_from uuid;
  v_before timestamptz;
  v_until uuid;
  v_probes integer := case when p_stuck_for is not null and not p_by_change then greatest(p_probes, 1) end;
  v_few bigint := greatest(p_few, 0);
  v_stuck uuid[];
begin
  v_changed_until := pawl.now() - p_stuck_for;
  v_from := case when p_created_after is not null then pawl.uuid_v7_floor(p_created_after) end;
  -- No instance is created after it has entered its state.
  v_before := least(p_created_before, v_changed_until) + interval '1 millisecond';
  v_until := case when v_before is not null then pawl.uuid_v7_floor(v_before) end;
  if v_probes is not null then
    v_stuck := array(
      select r.instance_id
      from unnest(p_workflows, p_states) as w (workflow, state)
      cross join lateral (
        select r.instance_id
        from pawl.residence r
        where r.tenant_id = p_tenant and r.workflow = w.workflow and r.state = w.state and r.since <= v_changed_until
          and (p_statuses is null or r.status = any (p_statuses))
        order by r.since
        limit v_few + 1
      ) r
      limit v_few + 1);
    if cardinality(v_stuck) > v_few then
      v_stuck := null;
    end if;
  end if;
  with folded as materialized (
    (
      select s.id, null::timestamptz as since, true as holds, false as is_end
      from (
        select s.id
        from unnest(v_stuck) as s (id)
        where (v_from is null or s.id >= v_from)
          and (v_until is null or s.id < v_until)
          and (p_after_id is null or case when p_ascending then s.id > p_after_id else s.id < p_after_id end)
          and s.id not in (select u.id from unnest(v_unfolded) as u (id))
        order by case when p_ascending then s.id end, case when not p_ascending then s.id end desc
      ) s
      where
        p_created_after is null and p_created_before is null
        or exists (
          select
          from pawl.instance i
          where i.tenant_id = p_tenant and i.id = s.id
            and (p_created_after is null or i.created_at > p_created_after)
            and (p_created_before is null or i.created_at < p_created_before)
          offset 0
        )
      limit p_limit
    )
    union all
    select r.id, r.since, r.holds, r.place is not distinct from v_probes
    from unnest(p_workflows, p_states) as w (workflow, state)
    cross join lateral (
      select r.*
      from (
        select
          r.id, r.since, row_number() over () as place,
          (p_by_change or v_changed_until is null or r.since <= v_changed_until)
            and (p_statuses is null or r.status = any (p_statuses))
            and (
              p_created_after is null and p_created_before is null
              or exists (
                select
                from pawl.instance i
                where i.tenant_id = p_tenant and i.id = r.id
                  and (p_created_after is null or i.created_at > p_created_after)
                  and (p_created_before is null or i.created_at < p_created_before)
                offset 0
              )
            ) as holds
        from (
          select r.instance_id as id, r.since, r.status
          from pawl.residence r
          where r.tenant_id = p_tenant and r.workflow = w.workflow and r.state = w.state
            and (v_from is null or r.instance_id >= v_from)
            and (v_until is null or r.instance_id < v_until)
            and (not p_by_change or v_changed_until is null or r.since <= v_changed_until)
            and r.instance_id not in (select u.id from unnest(v_unfolded) as u (id))
            and (
              p_after_id is null
              or case
                when p_by_change and p_ascending then (r.since, r.instance_id) > (p_after_change, p_after_id)
                when p_by_change then (r.since, r.instance_id) < (p_after_change, p_after_id)
                when p_ascending then r.instance_id > p_after_id
                else r.instance_id < p_after_id
              end
            )
          order by
            case when p_by_change and p_ascending then r.since end,
            case when p_by_change and not p_ascending then r.since end desc,
            case when p_ascending then r.instance_id end,
            case when not p_ascending then r.instance_id end desc
          limit v_probes
        ) r
      ) r
      where r.holds or r.place = v_probes
      limit p_limit
    ) r
    where v_stuck is null
  ),
  stop as materialized (
    select f.id
    from folded f
    where f.is_end
    order by case when p_ascending then f.id end, case when not p_ascending then f.id end desc
    limit 1
  ),
  page as materialized (
    select c.id, row_number() over () as place
    from (
      select c.id
      from (
        select f.id, f.since from folded f where f.holds
        union all
        select i.id, i.state_changed_at
        from unnest(v_unfolded) as u (id)
        cross join lateral (select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = u.id limit 1) i
        where exists (select from unnest(p_workflows, p_states) as w (workflow, state) where w.workflow = i.workflow and w.state = i.state)
          and (p_statuses is null or i.status = any (p_statuses))
          and (p_created_after is null or i.created_at > p_created_after)
          and (p_created_before is null or i.created_at < p_created_before)
          and (v_changed_until is null or i.state_changed_at <= v_changed_until)
          and (
            p_after_id is null
            or case
              when p_by_change and p_ascending then (i.state_changed_at, i.id) > (p_after_change, p_after_id)
              when p_by_change then (i.state_changed_at, i.id) < (p_after_change, p_after_id)
              when p_ascending then i.id > p_after_id
              else i.id < p_after_id
            end
          )
      ) c
      where not exists (select from stop s where case when p_ascending then c.id > s.id else c.id < s.id end)
      order by
        case when p_by_change and p_ascending then c.since end,
        case when p_by_change and not p_ascending then c.since end desc,
        case when p_ascending then c.id end,
        case when not p_ascending then c.id end desc
      limit p_limit
    ) c
  )
  select
    coalesce(array_agg(p.id order by p.place), '{}'), coalesce(array_agg(i.version::bigint order by p.place), '{}'),
    coalesce(array_agg(i.state_changed_at order by p.place), '{}'), case when count(*) < p_limit then (select s.id from stop s) end
  into ids, versions, changes, rest
  from page p
  cross join lateral (select i.version, i.state_changed_at from pawl.instance i where i.tenant_id = p_tenant and i.id = p.id limit 1) i;
exception
  when data_exception then
    perform pawl_private.refuse_malformed(sqlerrm);
    raise;
end
$$;
-- +goose StatementEnd

-- 55_insight/instances_where.sql

-- instances_where reads a page of the ids of a tenant's instances whose contexts fulfil conditions, in the order of their
-- ids, as of the caller's snapshot. It looks at p_probes instances at most, in the order of the list, and asks each of them.
-- Which ones, the first of these that there are says:
--
--   1. conditions that leave few instances, and states that leave at most p_probes: those that all of these leave. Few are
--      at most p_probes, or of the first three others p_few
--   2. an attribute that has one value: the instances that have it
--   3. states: the instances that are in them
--   4. the workflow
--
-- What was folded says which instances these are, and those that have steps without a fold are added.
--
-- p_conditions:       an array of {name, op, kind, value}; see pawl_private.attribute_ranges. The names are attributes
-- p_states, p_statuses: null for all
-- p_after:            where the page begins, exclusive; null for the first one
-- p_few:              how many instances of a condition are sorted at most
-- p_patience:         after how long, or half of the session's statement_timeout, the page ends behind the instance that is
--                     looked at then: contexts may be large
-- p_most:             how many steps without a fold there may be, of all tenants; null to use nothing that was folded
-- Returns: ids: at most p_limit. versions: theirs. rest: the last id that was looked at, if the list goes on behind it although the page has
--          fewer ids; else null. incomplete: whether instances may be missing until the workflow is indexed anew
-- Raises:  PW400 malformed-request; 55000 more than p_most steps are not folded yet
-- +goose StatementBegin
create function pawl.instances_where(
  p_tenant text, p_workflow text, p_conditions jsonb, p_states text[], p_statuses text[], p_ascending boolean, p_after uuid,
  p_limit integer, p_few integer, p_probes integer, p_patience interval, p_most integer, out ids uuid[], out versions bigint[], out rest uuid, out incomplete boolean
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_search jsonb := pawl_private.search_of(p_workflow);
  v_unfolded uuid[] := case when p_most is not null then pawl_private.unfolded(p_tenant, p_most) end;
  v_range pawl_private.attribute_range;
  v_equal pawl_private.attribute_range;
  v_wide pawl_private.attribute_range[] := '{}';
  v_found uuid[];
  v_few uuid[];
  v_sources text[] := '{}';
  v_candidates uuid[];
  v_more boolean := false;
  v_by_attribute boolean;
  v_condition record;
  v_paths text[] := '{}';
  v_types text[] := '{}';
  v_kinds text[] := '{}';
  v_ops text[] := '{}';
  v_values text[] := '{}';
  v_instance record;
  v_holds boolean;
  v_last uuid;
  v_probes integer := greatest(p_probes, 1);
  v_few_most bigint := greatest(p_few, 0);
  v_until timestamptz;
begin
  v_until := statement_timestamp() + least(p_patience, nullif(current_setting('statement_timeout')::interval, interval '0') / 2);
  ids := '{}';
  versions := '{}';
  if p_most is not null then
    for v_range in select r.* from pawl_private.attribute_ranges(p_conditions) r loop
      v_found := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_range, v_probes::bigint + 1, null, null) f (id));
      if cardinality(v_found) <= v_probes then
        v_few := case when v_few is null then v_found else array(select unnest(v_few) intersect select unnest(v_found)) end;
        v_sources := v_sources || v_range.name;
        exit when cardinality(v_few) <= 500;
      else
        v_wide := v_wide || v_range;
        if v_range.low = v_range.high then
          v_equal := v_range;
        end if;
      end if;
    end loop;
    -- To read the ids of more instances costs less than to ask contexts, unless an index has them in order.
    foreach v_range in array v_wide[1:3] loop
      exit when cardinality(v_few) <= 500 or v_few is null and v_equal.name is not null and cardinality(v_wide) = 1;
      v_found := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_range, v_few_most + 1, null, null) f (id));
      if cardinality(v_found) <= v_few_most then
        v_few := case when v_few is null then v_found else array(select unnest(v_few) intersect select unnest(v_found)) end;
      end if;
    end loop;
    v_by_attribute := v_few is not null;
    if p_states is not null and (v_few is null or cardinality(v_few) > 500) then
      v_found := array(
        select r.id
        from unnest(p_states) as s (state)
        cross join lateral (
          select r.instance_id as id
          from pawl.residence r
          where r.tenant_id = p_tenant and r.workflow = p_workflow and r.state = s.state
          limit v_probes::bigint + 1
        ) r
        limit v_probes::bigint + 1);
      if cardinality(v_found) <= v_probes then
        v_few := case when v_few is null then v_found else array(select unnest(v_few) intersect select unnest(v_found)) end;
      end if;
    end if;
    if v_few is not null then
      v_candidates := array(
        select f.id
        from unnest(v_few) f (id)
        where p_after is null or case when p_ascending then f.id > p_after else f.id < p_after end
        order by case when p_ascending then f.id end, case when not p_ascending then f.id end desc
        limit v_probes);
      v_more := cardinality(v_candidates) >= v_probes;
    elsif v_equal.name is not null then
      v_by_attribute := true;
      v_candidates := array(select f.id from pawl_private.attribute_ids(p_tenant, p_workflow, v_equal, v_probes, p_ascending, p_after) f (id));
      v_more := cardinality(v_candidates) >= v_probes;
    end if;
    if v_candidates is null and p_states is not null then
      v_candidates := array(
        select r.id
        from unnest(p_states) as s (state)
        cross join lateral (
          select r.instance_id as id
          from pawl.residence r
          where r.tenant_id = p_tenant and r.workflow = p_workflow and r.state = s.state
            and (p_after is null or case when p_ascending then r.instance_id > p_after else r.instance_id < p_after end)
          order by case when p_ascending then r.instance_id end, case when not p_ascending then r.instance_id end desc
          limit v_probes
        ) r
        order by case when p_ascending then r.id end, case when not p_ascending then r.id end desc
        limit v_probes);
      v_more := cardinality(v_candidates) >= v_probes;
    end if;
  end if;
  if v_candidates is null then
    v_candidates := array(
      select i.id
      from unnest(coalesce(p_statuses, array['active', 'completed', 'failed', 'cancelled', 'expired'])) s (status)
      cross join lateral (
        select i.id
        from pawl.instance i
        where i.tenant_id = p_tenant and i.workflow = p_workflow and i.status = s.status and i.workflow <> ''
          and (p_after is null or case when p_ascending then i.id > p_after else i.id < p_after end)
        order by case when p_ascending then i.id end, case when not p_ascending then i.id end desc
        limit v_probes
      ) i
      order by case when p_ascending then i.id end, case when not p_ascending then i.id end desc
      limit v_probes);
    v_more := cardinality(v_candidates) >= v_probes;
    v_unfolded := null;
  end if;
  incomplete := coalesce(v_by_attribute, false) and not exists (
    select from pawl_private.search_index i where i.workflow = p_workflow and i.complete and i.search = v_search);
  if v_more then
    rest := v_candidates[cardinality(v_candidates)];
  end if;

  -- Those that nearly all candidates fulfil come last.
  for v_condition in
    select c.value as condition, v_search -> (c.value ->> 'name') as attribute
    from jsonb_array_elements(p_conditions) c
    order by c.value ->> 'name' = any (v_sources)
  loop
    v_paths := v_paths || array(
      select e.name from jsonb_array_elements_text(v_condition.attribute -> 'path') with ordinality as e (name, place) order by e.place)::text;
    v_types := v_types || (v_condition.attribute ->> 'type');
    v_kinds := v_kinds || (v_condition.condition ->> 'kind');
    v_ops := v_ops || (v_condition.condition ->> 'op');
    v_values := v_values || (v_condition.condition ->> 'value');
  end loop;
  for v_instance in
    select i.id, i.version, i.context
    from (
      select c.id
      from (select c.id from unnest(v_candidates) c (id) union select u.id from unnest(v_unfolded) u (id)) c
      where (p_after is null or case when p_ascending then c.id > p_after else c.id < p_after end)
        and (rest is null or case when p_ascending then c.id <= rest else c.id >= rest end)
      order by case when p_ascending then c.id end, case when not p_ascending then c.id end desc
    ) c
    cross join lateral (
      select i.* from pawl.instance i where i.tenant_id = p_tenant and i.id = c.id limit 1
    ) i
    where i.workflow = p_workflow and (p_states is null or i.state = any (p_states)) and (p_statuses is null or i.status = any (p_statuses))
    order by case when p_ascending then c.id end, case when not p_ascending then c.id end desc
  loop
    if v_last is not null and clock_timestamp() > v_until then
      rest := v_last;
      return;
    end if;
    v_last := v_instance.id;
    v_holds := true;
    for c in 1 .. cardinality(v_paths) loop
      v_holds := pawl_private.value_fulfils(v_instance.context #> v_paths[c]::text[], v_types[c], v_kinds[c], v_ops[c], v_values[c]);
      exit when not v_holds;
    end loop;
    if v_holds then
      ids := ids || v_instance.id;
      versions := versions || v_instance.version::bigint;
      if cardinality(ids) = p_limit then
        rest := null;
        return;
      end if;
    end if;
  end loop;
exception
  when data_exception or case_not_found then
    perform pawl_private.refuse_malformed(sqlerrm);
end
$$;
-- +goose StatementEnd

-- 55_insight/list_place.sql

-- list_place says from when a list is, and whether lists may be read from what was folded: see instances_in_states.
-- Returns: as_of: now. near: whether the consumer insight has folded all of the log but its last p_most positions, and
--          the log is of this server, so that its snapshots can be compared
-- +goose StatementBegin
create function pawl.list_place(p_most bigint, out as_of timestamptz, out near boolean)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  as_of := pawl.now();
  near := exists (
    select
    from pawl.log_head h
    join pawl.consumer c on c.name = 'insight' and not c.audit and c.position >= h.position - p_most
    where h.epoch > 0 and pawl_private.server_is_of_log(h.epoch)
  );
end
$$;
-- +goose StatementEnd

-- 55_insight/reindex_workflow.sql

-- reindex_workflow goes on with indexing the instances of a workflow by what its latest version says, or begins with it:
-- the next p_limit instances of all workflows are looked at. What is done is kept, so that anybody may go on. While it
-- works, nothing is folded.
-- Returns: indexed: how many instances were indexed so far. total: how many there are. complete: whether all are indexed
-- Raises:  PW40W workflow-not-found
-- Locks:   consumer, residence
-- Writes:  consumer, search_index, attribute
-- +goose StatementBegin
create function pawl.reindex_workflow(p_workflow text, p_limit integer, out indexed bigint, out total bigint, out complete boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_limit integer := greatest(p_limit, 1);
  v_search jsonb;
  v_index pawl_private.search_index;
  v_looked integer;
begin
  if not exists (select from pawl.workflow w where w.name = p_workflow) then
    perform pawl_private.raise_condition('workflow-not-found', null);
  end if;
  total := (select coalesce(sum(c.instances), 0) from pawl.instance_count c where c.workflow = p_workflow);
  if pawl_private.search_of(p_workflow) is not null then
    perform pawl.consumer_create('insight', true);
    perform from pawl.consumer c where c.name = 'insight' for no key update;
    select i.* into v_index from pawl_private.search_index i where i.workflow = p_workflow for no key update;
    if v_index.search is distinct from pawl_private.search_of(p_workflow) then
      perform pawl_private.search_begins(p_workflow, null, false);
      select i.* into v_index from pawl_private.search_index i where i.workflow = p_workflow for no key update;
    end if;
    -- What is indexed is what the row says: a version with another search, which may have come while this transaction waited
    -- for the locks, writes the row.
    v_search := v_index.search;
  end if;
  if v_search is null then
    indexed := total;
    complete := true;
    return;
  end if;
  if not v_index.complete then
    with looked as materialized (
      select r.tenant_id, r.instance_id, r.workflow
      from pawl.residence r
      where (r.tenant_id, r.instance_id) > (v_index.after_tenant, v_index.after_id)
      order by r.tenant_id, r.instance_id
      limit v_limit
      for no key update
    ),
    value as materialized (
      select l.tenant_id, l.instance_id, a.*
      from looked l
      cross join lateral (select i.context from pawl.instance i where i.tenant_id = l.tenant_id and i.id = l.instance_id limit 1) i
      cross join lateral pawl_private.attributes_of(i.context, v_search) a
      where l.workflow = p_workflow
    ),
    gone as (
      delete from pawl.attribute a
      using looked l
      where l.workflow = p_workflow and a.tenant_id = l.tenant_id and a.instance_id = l.instance_id
        and (a.tenant_id, a.instance_id, a.name) not in (select v.tenant_id, v.instance_id, v.name from value v)
    ),
    written as (
      insert into pawl.attribute as a (tenant_id, instance_id, name, workflow, text_value, number_value, time_value, boolean_value)
      select v.tenant_id, v.instance_id, v.name, p_workflow, v.text_value, v.number_value, v.time_value, v.boolean_value
      from value v
      on conflict on constraint attribute_pkey do update
      set text_value = excluded.text_value, number_value = excluded.number_value, time_value = excluded.time_value,
        boolean_value = excluded.boolean_value
    )
    select
      count(*), count(*) filter (where l.workflow = p_workflow),
      (array_agg(l.tenant_id order by l.tenant_id desc, l.instance_id desc))[1],
      (array_agg(l.instance_id order by l.tenant_id desc, l.instance_id desc))[1]
    into v_looked, indexed, v_index.after_tenant, v_index.after_id
    from looked l;
    update pawl_private.search_index i
    set complete = v_looked < v_limit, indexed = i.indexed + reindex_workflow.indexed,
      after_tenant = coalesce(v_index.after_tenant, i.after_tenant), after_id = coalesce(v_index.after_id, i.after_id)
    where i.workflow = p_workflow
    returning i.* into v_index;
  end if;
  -- Some may have been purged since they were indexed, and others were indexed by the fold.
  total := greatest(total, v_index.indexed);
  complete := v_index.complete;
  indexed := case when complete then total else v_index.indexed end;
end
$$;
-- +goose StatementEnd

-- 55_insight/score_forecasts.sql

-- score_forecasts compares the visits that ended yesterday with the quantiles of the 90 days before, for some more workflows of
-- some tenants. States of which fewer than 30 visits had ended are left out. A day is scored once: visits that are
-- folded later do not count.
-- p_limit: the most workflows of tenants
-- Returns: leads: whether p_leader still leads the consumer insight in p_term; if not, nothing is changed.
--          more: whether there is more to score
-- Locks:   consumer, forecast_night
-- Writes:  forecast_night, forecast_score
-- +goose StatementBegin
create function pawl.score_forecasts(p_leader text, p_term bigint, p_limit integer, out leads boolean, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  -- Some minutes after midnight the last steps of the day are folded.
  v_day date := ((pawl.now() - interval '10 minutes') at time zone 'UTC')::date - 1;
  v_night pawl_private.forecast_night;
  v_next record;
begin
  more := false;
  perform from pawl.consumer c
  where c.name = 'insight' and not c.audit and c.leader = p_leader and c.term = p_term
  for no key update;
  leads := found;
  if not leads then
    return;
  end if;
  select * into v_night from pawl_private.forecast_night n for update;
  if v_night.day < v_day then
    v_night := row(v_day, '', '', false);
  end if;
  if v_night.done then
    return;
  end if;
  for i in 1 .. greatest(p_limit, 1) loop
    select d.tenant_id, d.workflow into v_next
    from pawl.dwell_count d
    where (d.tenant_id, d.workflow) > (v_night.tenant_id, v_night.workflow)
    order by d.tenant_id, d.workflow
    limit 1;
    v_night.done := not found;
    exit when v_night.done;
    v_night.tenant_id := v_next.tenant_id;
    v_night.workflow := v_next.workflow;
    perform pawl_private.score_workflow(v_night.tenant_id, v_night.workflow, v_night.day);
  end loop;
  update pawl_private.forecast_night set day = v_night.day, tenant_id = v_night.tenant_id, workflow = v_night.workflow, done = v_night.done;
  more := not v_night.done;
end
$$;
-- +goose StatementEnd

-- 55_insight/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.insight_fold'),
  ('api', 'pawl.list_place'),
  ('api', 'pawl.instances_in_states'),
  ('worker', 'pawl.score_forecasts'),
  ('api', 'pawl.count_commands'),
  ('api', 'pawl.insight_as_of'),
  ('reader', 'pawl.insight_as_of'),
  ('api', 'pawl.instances_where'),
  ('api', 'pawl.reindex_workflow');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.residence', null),
  ('api', 'pawl.instance_count', null),
  ('api', 'pawl.attribute', null),
  ('api', 'pawl.edge_count', null),
  ('api', 'pawl.dwell_count', null),
  ('api', 'pawl.dwell_hour', null),
  ('api', 'pawl.command_count', null),
  ('api', 'pawl.forecast_score', null),
  ('reader', 'pawl.residence', null),
  ('reader', 'pawl.instance_count', null),
  ('reader', 'pawl.attribute', null),
  ('reader', 'pawl.edge_count', null),
  ('reader', 'pawl.dwell_count', null),
  ('reader', 'pawl.dwell_hour', null),
  ('reader', 'pawl.command_count', null),
  ('reader', 'pawl.forecast_score', null);

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

-- store_candidate stores a definition under a random number that no version has: two candidates at the same time do not
-- wait for each other, as a rule. The caller sees to it that it does not stay.
-- Raises:  PW42D invalid-definition
-- Writes:  workflow, workflow_state, workflow_transition
-- +goose StatementBegin
create function pawl_private.store_candidate(p_workflow text, p_definition jsonb) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version integer := 1073741824 + floor(random() * 1073741823)::integer;
  v_fault text;
begin
  begin
    v_fault := case
      when p_definition ->> 'name' <> p_workflow then format('its name is not %s', p_workflow)
      else pawl_private.definition_fault(p_definition)
    end;
    if v_fault is null then
      perform pawl_private.store_definition(
        p_name => p_workflow, p_version => v_version, p_definition => p_definition, p_actor => 'candidate');
    end if;
  exception
    when data_exception or integrity_constraint_violation or syntax_error or feature_not_supported
      or program_limit_exceeded then
      v_fault := sqlerrm;
  end;
  if v_fault is not null then
    perform pawl_private.raise_condition('invalid-definition', 'invalid definition: ' || v_fault);
  end if;
  return v_version;
end
$$;
-- +goose StatementEnd

-- migrated is an instance after its migration to another version, and after the steps that follow without an event.
-- What it remembers of a state that it keeps goes on: armed timers that both versions have keep their time, others are
-- counted from when the state was entered. States that it had left last are named as the map says.
-- p_old, p_new: the instance before, and after but for its memory. p_map: from states to states
-- Returns: a macrostep; its refusal may also be 'guard-error'
-- +goose StatementBegin
create function pawl_private.migrated(
  p_old pawl.instance, p_new pawl.instance, p_map jsonb, p_principal jsonb, p_reason text, p_now timestamptz, p_setting pawl.setting
) returns pawl_private.macrostep
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_macrostep pawl_private.macrostep;
  v_new pawl.instance := p_new;
  v_source pawl.workflow_state;
  v_target pawl.workflow_state;
  v_timer jsonb;
  v_one jsonb;
  v_due jsonb := '{}';
  v_left jsonb;
  v_entered boolean := p_map ? p_old.state;
begin
  select s.* into v_source
  from pawl.workflow_state s
  where s.workflow = p_old.workflow and s.workflow_version = p_old.workflow_version and s.state = p_old.state;
  select s.* into strict v_target
  from pawl.workflow_state s
  where s.workflow = p_new.workflow and s.workflow_version = p_new.workflow_version and s.state = p_new.state;
  for v_n in 0 .. coalesce(jsonb_array_length(v_target.timers), 0) - 1 loop
    v_timer := v_target.timers -> v_n;
    v_one := p_old.memory #> array['due', v_timer ->> 'slot'];
    if v_entered and v_timer ->> 'owner' = p_new.state or not v_timer ->> 'owner' = any (v_source.lineage)
      or not coalesce(v_source.timers @> jsonb_build_array(jsonb_build_object('slot', v_timer ->> 'slot')), false) then
      v_one := pawl_private.armed(
        v_timer, v_n, pawl_private.document(p_new, '{}', p_now, null, p_principal), p_new.state_changed_at);
    end if;
    if v_one is not null then
      v_due := v_due || jsonb_build_object(v_timer ->> 'slot', v_one || jsonb_build_object('place', v_n));
    end if;
  end loop;
  select jsonb_object_agg(l.key, jsonb_strip_nulls(l.value || jsonb_build_object('state', s.state)))
  into v_left
  from jsonb_each(p_old.memory -> 'left') l
  join pawl.workflow_state s
    on s.workflow = p_new.workflow and s.workflow_version = p_new.workflow_version
    and s.state = coalesce(p_map ->> (l.value ->> 'state'), l.value ->> 'state') and l.key = any (s.remembered);
  v_new.memory := nullif(
    case when v_due <> '{}' then jsonb_build_object('due', v_due) else '{}' end
    || case when v_left is not null then jsonb_build_object('left', v_left) else '{}' end
    || case
      when v_target.ttl_slides and v_source.ttl_slides and not v_entered and p_old.memory ? 'slid_at'
        then jsonb_build_object('slid_at', p_old.memory -> 'slid_at')
      else '{}'
    end,
    '{}');
  return pawl_private.complete_macrostep(
    p_before => p_old, p_instance => v_new, p_command => pawl_private.uncommanded(p_principal, p_reason, true),
    p_now => p_now, p_at => p_now, p_setting => p_setting);
exception
  -- What guards and values raise.
  when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
    v_macrostep.refusal := 'guard-error';
    return v_macrostep;
end
$$;
-- +goose StatementEnd

-- Back-tests re-run recorded histories under another definition of their workflow. Events and payloads are decided
-- again, each at its recorded time, by the same function that fires, and the result is compared with what history
-- shows. Nothing is kept.
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
  p_instance pawl.instance, p_kind text, p_event text, p_payload jsonb, p_principal jsonb, p_reason text, p_at timestamptz,
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
    v_macrostep := pawl_private.begin_macrostep(
      p_instance => p_instance, p_principal => p_principal, p_reason => p_reason, p_now => p_at, p_setting => p_setting,
      p_entered => p_entered);
    code := coalesce(v_macrostep.refusal, 'applied');
    instance := v_macrostep.instance;
    guards := array[v_macrostep.broken];
  else
    select d.*
    into strict v_decided
    from pawl_private.decide(
      p_now => p_at, p_setting => p_setting, p_instance => p_instance,
      p_command => (
        p_instance.tenant_id, p_event, p_payload, '', '*', '*', p_reason, null, null,
        p_kind in ('timeout', 'expired'), p_kind in ('result', 'compensated'), p_principal
      )::pawl_private.fire_command) d;
    code := v_decided.code;
    guards := v_decided.guards;
    if code = 'applied' then
      instance := v_decided.instance;
    end if;
  end if;
  if code = 'invariant-broken' then
    code := 'guard-rejected';
  elsif code in ('payload-too-large', 'context-too-large', 'context-too-deep') then
    code := 'too-large';
  elsif code in ('always-loop', 'timer-loop') then
    error := case code
      when 'always-loop' then 'eventless transitions follow one another without coming to rest'
      else 'timers follow one another without time passing'
    end;
    code := 'guard-error';
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
  v_recorded pawl.instance := p_recorded;
  v_tried integer := 0;
  v_looks integer := 0;
  v_deadline record;
begin
  loop
    select d.* into v_deadline from pawl_private.next_deadline(v_recorded, v_tried) d;
    if not found or v_deadline.due_at > p_at then
      return false;
    end if;
    if v_deadline.event is distinct from p_except and exists (
      select
      from pawl_private.backtest_step(
        v_recorded, 'timeout', v_deadline.event,
        pawl_private.timer_payload(v_deadline.event, v_deadline.due_at, v_recorded.memory, v_deadline.due_at), null, null,
        v_deadline.due_at, null, p_setting) s
      where s.code in ('applied', 'guard-error')
    ) then
      return true;
    end if;
    if v_deadline.event like 'every:%' then
      v_recorded := pawl_private.passed_over(v_recorded, v_deadline.event, v_deadline.due_at);
    else
      v_tried := v_deadline.tried;
    end if;
    v_looks := v_looks + 1;
    if v_tried is null or v_looks > 1000 then
      return false;
    end if;
  end loop;
end
$$;
-- +goose StatementEnd

-- backtest_repeats moves the candidate's repeating timers on to where the recorded instance had them at a step. A
-- repeating timer that is refused moves on, and history shows only the time to which it moved. Without this the
-- candidate would try again a time that has passed. Timers on another grid stay as they are.
-- Returns: the candidate's memory before the step
-- +goose StatementBegin
create function pawl_private.backtest_repeats(p_memory jsonb, p_step pawl.history) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_slot text;
  v_one jsonb;
  v_recorded jsonb;
begin
  for v_slot, v_one in
    select d.key, d.value
    from jsonb_each(p_memory -> 'due') d
    where d.value ? 'every' and d.key is distinct from p_step.event
  loop
    -- The step may have left the timer's state: then the timer is kept with the time that remained.
    select r.one into v_recorded
    from (
      select p_step.memory #> array['due', v_slot] as one
      union all
      select l.value #> array['due', v_slot] from jsonb_each(p_step.memory -> 'left') l
    ) r
    where r.one - array['at', 'rest', 'n', 'place'] = v_one - array['at', 'n', 'place']
      and (r.one ->> 'n')::bigint > (v_one ->> 'n')::bigint;
    if found then
      p_memory := jsonb_set(p_memory, array['due', v_slot], v_one || jsonb_build_object(
        'n', v_recorded -> 'n',
        'at', coalesce(
          v_recorded ->> 'at',
          pawl_private.rfc3339(p_step.at + make_interval(secs => (v_recorded ->> 'rest')::double precision)))));
    end if;
  end loop;
  return p_memory;
end
$$;
-- +goose StatementEnd

-- backtest_timeout finds the deadline that the candidate's instance meets before a recorded step. Deadlines
-- are tried one after the other by their times, as the timers do: a refused one gives way to the next.
-- p_step: the recorded step; null for none up to p_until. If it is a timeout itself, the candidate's may come
-- as late as it did, and deadlines that history skipped are skipped. At most 1000 deadlines are tried.
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
  v_candidate pawl.instance := p_candidate;
  v_looks integer := 0;
  v_tried integer := 0;
  v_deadline record;
  v_same boolean;
  v_step record;
begin
  while v_tried is not null loop
    select d.* into v_deadline from pawl_private.next_deadline(v_candidate, v_tried) d;
    exit when not found or v_deadline.due_at > p_until or v_deadline.due_at = p_until and not v_timed;
    v_looks := v_looks + 1;
    exit when v_looks > 1000;
    v_same := coalesce(v_deadline.due_at = v_due_at and v_deadline.event = p_step.event, false);
    if v_same then
      v_candidate.memory := pawl_private.backtest_repeats(v_candidate.memory, p_step);
    end if;
    select s.*
    into v_step
    from (select case when v_same or v_deadline.due_at > v_due_at then p_step.at else v_deadline.due_at end as at) t
    cross join lateral pawl_private.backtest_step(
      v_candidate, 'timeout', v_deadline.event,
      pawl_private.timer_payload(v_deadline.event, v_deadline.due_at, v_candidate.memory, t.at), null, null, t.at, null, p_setting) s;
    if v_deadline.event like 'every:%' then
      v_candidate := pawl_private.passed_over(v_candidate, v_deadline.event, v_deadline.due_at);
    else
      v_tried := v_deadline.tried;
    end if;
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
-- followed it. It ends at the first difference, at a step that was not decided by the
-- definition ('migrated', 'forced', 'cancelled'), or at version 1000.
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
  v_reads_actor boolean;
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
  v_reads_actor := exists (
    select from pawl.workflow_state s where s.workflow = p_workflow and s.workflow_version = p_version and s.reads_actor);

  for v_row in
    select
      h as step,
      coalesce(lead(h.kind = 'transition' and (h.event is null or h.event = 'done')) over (order by h.version), false) as goes_on
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
    v_after.state_changed_at := coalesce((v_row.step).entered_at, (v_row.step).at);
    v_after.memory := (v_row.step).memory;
    v_after.expires_at := (v_row.step).expires_at;
    v_goes_on := v_row.goes_on;
    continue when v_goes_on;
    v_place := jsonb_build_object(
      'version', v_command.version, 'workflow_version', v_command.workflow_version, 'event', v_command.event,
      'from', v_command.from_state, 'to', v_after.state);
    steps := v_command.version;
    if v_reads_actor and v_command.kind in ('created', 'transition') and v_command.principal is null then
      -- Nobody knows any more who gave the command.
      steps := v_command.version - 1;
      complete := false;
      exit;
    end if;

    if v_command.kind = 'created' then
      v_origin := null;
      select w.* into v_origin from pawl.workflow w where w.name = p_workflow and w.version = v_command.workflow_version;
      v_instance := v_after;
      v_instance.workflow_version := p_version;
      v_instance.state := v_candidate.initial;
      v_instance.version := 1;
      v_instance.context := coalesce(v_candidate.context_default, '{}') || v_command.context;
      v_instance.memory := null;
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
        select t.assign_names, t.assign_paths::text[], t.assign_compiled, t.assign_payload
        from pawl.workflow_transition t
        where t.workflow = p_workflow and t.workflow_version = p_version and t.event = ':initial'
        except
        select t.assign_names, t.assign_paths::text[], t.assign_compiled, t.assign_payload
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
      elsif v_command.kind in ('migrated', 'forced', 'cancelled') then
        complete := false;
        exit;
      end if;
      v_timeout := v_step.event;
      select c.payload_schema as schema, c.payload_schema_checksum as checksum, r.payload_schema_checksum as met
      into v_schema
      from (
        select t.payload_schema, t.payload_schema_checksum
        from pawl.workflow_transition t
        join pawl.workflow_state s
          on s.workflow = t.workflow and s.workflow_version = t.workflow_version and s.state = t.source
        where t.workflow = p_workflow and t.workflow_version = p_version and t.source = v_instance.state
          and t.event = pawl_private.matching(v_command.event, s.events, s.patterns) and v_command.kind = 'transition'
        order by t.position
        limit 1
      ) c
      left join lateral (
        select t.payload_schema_checksum
        from pawl.workflow_transition t
        join pawl.workflow_state s
          on s.workflow = t.workflow and s.workflow_version = t.workflow_version and s.state = t.source
        where t.workflow = p_workflow and t.workflow_version = v_command.workflow_version
          and t.source = v_before.state and t.event = pawl_private.matching(v_command.event, s.events, s.patterns)
        order by t.position
        limit 1
      ) r on true;
    end if;

    if v_schema.checksum <> coalesce(v_schema.met, '') then
      v_schemas := v_schemas || jsonb_build_object(v_schema.checksum, v_schema.schema);
      v_checks := v_checks || (v_place || jsonb_build_object('checksum', v_schema.checksum));
    end if;
    if v_command.kind not in ('timeout', 'expired') then
      v_instance.memory := pawl_private.backtest_repeats(v_instance.memory, v_command);
      select s.*
      into v_step
      from pawl_private.backtest_step(
        v_instance, v_command.kind, v_command.event, v_command.payload, v_command.principal, v_command.reason, v_command.at,
        v_entered,
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

-- audit_is_about says whether a row of the audit is about one of the workflows, or about an instance of one.
-- +goose StatementBegin
create function pawl_private.audit_is_about(p_row pawl.audit, p_workflows text[]) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  if p_row.action like 'workflow.%' then
    return split_part(p_row.target, ' ', 1) = any (p_workflows);
  elsif p_row.target ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    return exists (
      select from pawl.instance i
      where i.tenant_id = p_row.tenant_id and i.id = p_row.target::uuid and i.workflow = any (p_workflows));
  end if;
  return false;
end
$$;
-- +goose StatementEnd

-- module_retains says whether a module still needs an instance that is final.
-- +goose StatementBegin
create function pawl_private.module_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return pawl_private.log_retains(p_tenant, p_id) or pawl_private.webhook_retains(p_tenant, p_id)
    or pawl_private.task_retains(p_tenant, p_id);
end
$$;
-- +goose StatementEnd

-- purge deletes instances that have been final since p_before or longer, each with its history and its expired keys,
-- all or nothing. An instance stays while another transaction holds it, while a live
-- key names it, and while a module retains it.
--
-- The keys that name an instance are read under the instance's lock, in a statement of their own, because a
-- command writes its key under that lock and may have done so just before. Each key is then locked too,
-- because a replay that extends a key's life locks the key alone. What happens to a command that comes too
-- late:
--   * A fire waits for the instance, and does not find it.
--   * A replay reads key, history and instance in one statement, and so finds all of them or none. Without
--     them it raises 40001, as for a purged key; the next try is a new command.
-- This holds under read committed only, as all of the engine.
-- p_early: whether an instance may be deleted before the retention of its workflow's latest version is over, or without one
-- Returns: the ids of the instances that were deleted
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, task, task_attempt, compensation, callback,
--          purged_instance, residence, instance_count, finding, healing
-- +goose StatementBegin
create function pawl_private.purge(p_tenant text, p_ids uuid[], p_before timestamptz, p_early boolean) returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
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
        and (p_early or i.state_changed_at <= v_now - (
          select w.retention from pawl.workflow w where w.name = i.workflow order by w.version desc limit 1))
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
    continue when v_keys.retains or pawl_private.module_retains(p_tenant, v_id);

    delete from pawl.idempotency_key k where k.ctid = any (v_keys.expired);
    delete from pawl.timer t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.task_attempt a
    using pawl.task t
    where t.tenant_id = p_tenant and t.instance_id = v_id and a.tenant_id = p_tenant and a.task_id = t.id;
    delete from pawl.task t where t.tenant_id = p_tenant and t.instance_id = v_id;
    delete from pawl.compensation c where c.tenant_id = p_tenant and c.instance_id = v_id;
    delete from pawl.callback b where b.tenant_id = p_tenant and b.instance_id = v_id;
    delete from pawl.history h where h.tenant_id = p_tenant and h.instance_id = v_id;
    with gone as (
      delete from pawl.instance i where i.tenant_id = p_tenant and i.id = v_id returning i.workflow
    )
    insert into pawl_private.purged_instance (tenant_id, instance_id, workflow) select p_tenant, v_id, g.workflow from gone g;
    v_purged := v_purged || v_id;
  end loop;
  perform pawl_private.forget_residence(p_tenant, v_purged);

  return v_purged;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/audit_page.sql

-- audit_page reads rows of the audit behind p_after, in the order of seq.
--
-- It looks at 5,000 rows at most: those of the tenant with the target, else with the actor, else with the action, else
-- all. The other filters choose among them. A time is looked up with ten minutes to spare on either side, since rows
-- are not written exactly in the order of their times.
-- p_tenant:    the tenant; null for all
-- p_workflows: only rows about these workflows, and about instances of them that are not purged; null for all rows
-- p_from, p_to: rows from p_from on, and before p_to
-- p_bytes:     the page ends with the row by which its documents have so many bytes
-- Returns: the rows, up to p_limit. If it ends before p_limit, and there may be more, the last row is none: it
--          has the seq behind which to go on, and an empty action
-- +goose StatementBegin
create function pawl.audit_page(
  p_tenant text, p_workflows text[], p_target text, p_actor text, p_action text, p_outcome text, p_from timestamptz,
  p_to timestamptz, p_after bigint, p_limit integer, p_bytes bigint
) returns setof pawl.audit
language plpgsql stable security definer rows 50
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_rows refcursor;
  v_after bigint := coalesce(p_after, 0);
  v_before bigint;
  v_row pawl.audit;
  v_looked integer := 0;
  v_found integer := 0;
  v_bytes bigint := 0;
begin
  if p_from is not null then
    v_after := greatest(v_after, (select a.seq from pawl.audit a where a.at < p_from - interval '10 minutes' order by a.at desc limit 1));
  end if;
  if p_to is not null then
    v_before := (select a.seq from pawl.audit a where a.at > p_to + interval '10 minutes' order by a.at limit 1);
  end if;
  v_before := coalesce(v_before, 9223372036854775807);
  -- Row comparisons leave one index for each of these.
  case
    when p_tenant is null then
      open v_rows for
        select a.* from pawl.audit a where a.seq > v_after and a.seq < v_before order by a.seq limit 5000;
    when p_target is not null then
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.target, a.seq) > (p_tenant, p_target, v_after) and (a.tenant_id, a.target, a.seq) < (p_tenant, p_target, v_before)
        order by a.tenant_id, a.target, a.seq limit 5000;
    when p_actor is not null then
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.actor, a.seq) > (p_tenant, p_actor, v_after) and (a.tenant_id, a.actor, a.seq) < (p_tenant, p_actor, v_before)
        order by a.tenant_id, a.actor, a.seq limit 5000;
    when p_action is not null then
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.action, a.seq) > (p_tenant, p_action, v_after) and (a.tenant_id, a.action, a.seq) < (p_tenant, p_action, v_before)
        order by a.tenant_id, a.action, a.seq limit 5000;
    else
      open v_rows for
        select a.* from pawl.audit a
        where (a.tenant_id, a.seq) > (p_tenant, v_after) and (a.tenant_id, a.seq) < (p_tenant, v_before)
        order by a.tenant_id, a.seq limit 5000;
  end case;
  loop
    fetch v_rows into v_row;
    exit when not found;
    v_looked := v_looked + 1;
    if coalesce(v_row.target = p_target, p_target is null) and coalesce(v_row.actor = p_actor, true)
      and coalesce(v_row.action = p_action, true) and coalesce(v_row.outcome = p_outcome, true)
      and coalesce(v_row.at >= p_from, true) and coalesce(v_row.at < p_to, true)
      and (p_workflows is null or pawl_private.audit_is_about(v_row, p_workflows))
    then
      return next v_row;
      v_found := v_found + 1;
      exit when v_found >= p_limit;
      v_bytes := v_bytes + coalesce(octet_length(v_row.before::text), 0) + coalesce(octet_length(v_row.after::text), 0);
    end if;
    if v_looked = 5000 or v_bytes >= p_bytes then
      v_row := (v_row.tenant_id, v_row.seq, v_row.at, '', false, null, null, null, '', null, '', null, 1, null, null, v_row.xid)::pawl.audit;
      return next v_row;
      exit;
    end if;
  end loop;
  close v_rows;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/audit_purge.sql

-- audit_purge deletes the oldest rows of the audit that were written before a time, no more than p_limit of them. Only
-- the owner may call it. Rows that a consumer has not read stay. That rows were deleted is written down.
-- Returns: purged: how many were deleted; fewer than p_limit if no more can be. kept: then, how many that old stay for a
--          consumer
-- Raises:  PW400 malformed-request if the time is not past: the call would delete its own row
-- Locks:   audit
-- Writes:  audit, audit_log
-- +goose StatementBegin
create function pawl.audit_purge(
  p_before timestamptz, p_limit integer, p_caller jsonb default null, out purged integer, out kept bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
  v_read bigint := (select min(c.position) from pawl.consumer c where c.audit);
begin
  if p_before is null or p_before > pawl.now() then
    perform pawl_private.raise_condition('malformed-request', 'rows are deleted that were written before a time, which must be past');
  end if;
  with gone as (
    delete from pawl.audit a
    where a.ctid = any (array(
      select o.ctid
      from pawl.audit o
      where o.at < p_before and (
        v_read is null or exists (
          select from pawl.audit_log l where l.tenant_id = o.tenant_id and l.seq = o.seq and l.position <= v_read offset 0
        )
      )
      order by o.at
      limit greatest(coalesce(p_limit, 0), 0)
      for update
    ))
    returning a.tenant_id, a.seq
  ),
  positions as (
    delete from pawl.audit_log l using gone g where l.tenant_id = g.tenant_id and l.seq = g.seq
  )
  select count(*) into purged from gone;
  kept := case when purged < p_limit then (select count(*) from pawl.audit a where a.at < p_before) else 0 end;
  if purged > 0 then
    perform pawl_private.audit(
      p_tenant => '*', p_caller => p_caller, p_action => 'audit.purge', p_target => null,
      p_after => jsonb_build_object('before', pawl_private.audit_time(p_before), 'purged', purged));
  end if;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/backtest.sql

-- backtest re-runs the recorded histories of instances against a version of their workflow, or against a
-- definition in canonical form that is not registered.
--
-- Such a definition is stored under a version number that no version has, in a subtransaction that is rolled back
-- before anybody can see it. Nobody waits for that, neither commands nor registrations. But the transaction holds up
-- vacuum. So a call re-runs instances for as long as storing took, or for a tenth of a second if that is longer, and
-- ends. It also ends with the row by which its differences and checks have p_bytes. The caller goes on with the ids
-- that have no row.
--
-- The present limits of size apply. $.instance.workflow_version is the number of the candidate.
-- p_version, p_definition: the candidate, exactly one of them
-- p_ids: of the tenant's instances
-- Returns: one row per id, in their order, until the time is up or p_bytes are reached, but at least one. steps to
--          checks: see backtest_instance; steps is 0 if there is no such instance
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
      v_version := pawl_private.store_candidate(p_workflow, p_definition);
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
--     Otherwise it stays. If the new version's ttl slides and the old one's did not, the lifetime counts from
--     state_changed_at. If both slide, it stays, but begins anew in a state that is entered, with its length.
--   * The context stays as it is. It is not checked against the new version's schema, and nothing is
--     assigned for states that are left or entered.
--   * Tasks of the old version that were not sent are cancelled, and those of the new state begin.
--   * Then the new state's eventless transitions are taken, as after every step.
-- An instance that a command holds is skipped, and so is one whose state does not fit. No instance is
-- mapped to a final state: only an event or an eventless transition ends an instance.
-- p_states, p_ids: only instances in these states, with these ids; null for all
-- p_history_key:   the key that history shows, of a bulk; null for none
-- p_dry_run:       write and lock nothing; the caller's transaction may be read-only
-- Returns: one row per instance that was looked at, by id. result: 'migrated' or 'would-migrate'; 'state-unknown' or
--          'state-final' if to_state does not fit; 'state-protected' if the map would have it leave or
--          enter a protected state; 'unsettled' if the eventless transitions do not come to rest, or
--          make the context too large or too deep; 'busy' if a command holds the instance; 'task-open' while a task
--          may have been sent, since the new version would send it again; 'invariant-broken' or
--          'guard-error' if an invariant of the new version does not hold, or a guard or a value raises; 'gone' if it
--          became final or was moved meanwhile
-- Raises:  PW40W workflow-not-found; PW40V workflow-conflict if another migration of the workflow is under
--          way; PW400 malformed-request with all faults of the request
-- Locks:   workflow (for key share, both versions), instance_migration, instance (for no key update, by id,
--          those that are not locked)
-- Writes:  instance_migration, instance, history, timer, task, undoing, audit
-- +goose StatementBegin
create function pawl.migrate_instances(
  p_tenant text, p_workflow text, p_from integer, p_to integer, p_state_map jsonb, p_after uuid, p_limit integer,
  p_actor text default session_user, p_dry_run boolean default false, p_states text[] default null,
  p_ids uuid[] default null, p_reason text default null, p_correlation_id text default null,
  p_traceparent text default null, p_caller jsonb default null,
  p_history_key text default null
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
  v_made text[];
  v_principal jsonb;
  v_slid_at timestamptz;
  v_setting pawl.setting;
  v_moved bigint := 0;
  v_begun boolean;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_correlation_id => p_correlation_id, p_reason => p_reason));
  if length(p_history_key) not between 1 and 255 then
    perform pawl_private.raise_condition('malformed-request', 'the key in history must have 1 to 255 characters');
  end if;
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
          finished_at = null
        returning m.started_at = v_now into v_begun;
        exit;
      exception when unique_violation then
        null; -- A migration of another direction has begun meanwhile. Now it is seen.
      end;
    end loop;
    -- A bulk is written down by itself.
    if v_begun and p_history_key is null then
      perform pawl_private.audit(
        p_tenant => p_tenant, p_caller => coalesce(p_caller, pawl_private.session_caller(p_actor)),
        p_action => 'workflow.migrate', p_target => format('%s %s to %s', p_workflow, p_from, p_to), p_reason => p_reason,
        p_after => jsonb_build_object('state_map', v_map));
    end if;
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
    select s.status, s.eventless, s.timers, s.invariants, s.reads_actor, s.ttl_slides, s.state_hash, w.ttl, o.ttl_slides as slid,
      s.protected or o.protected as protected
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
      when v_map ? v_old.state and v_target.protected then 'state-protected'
      when exists (
        select from pawl.task t
        where t.tenant_id = p_tenant and t.instance_id = v_id and t.ended_at is null and t.status <> 'pending'
      ) then 'task-open'
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
      v_new.memory := null;
      v_slid_at := pawl_private.slid_at(v_old);
      v_new.expires_at := case
        when v_target.ttl is null then null
        when v_old.expires_at is null then v_now + v_target.ttl
        when not v_target.ttl_slides then v_old.expires_at
        when v_target.slid and v_map ? v_old.state then v_now + (v_old.expires_at - v_slid_at)
        when v_target.slid then v_old.expires_at
        else v_new.state_changed_at + v_target.ttl
      end;
      v_principal := pawl_private.principal(p_actor, null, false);
      v_steps := array[v_old, v_new];
      v_made := array[null, null];
      if v_target.eventless or v_target.timers is not null or v_target.invariants is not null or v_old.memory is not null then
        v_macrostep := pawl_private.migrated(
          p_old => v_old, p_new => v_new, p_map => v_map, p_principal => v_principal, p_reason => nullif(p_reason, ''),
          p_now => v_now, p_setting => v_setting);
        if v_macrostep.refusal is null then
          v_steps := v_macrostep.steps;
          v_made := v_macrostep.made;
          v_new := v_macrostep.instance;
          to_state := v_new.state;
        else
          result := case when v_macrostep.refusal in ('invariant-broken', 'guard-error') then v_macrostep.refusal else 'unsettled' end;
        end if;
      end if;
    end if;
    if result = 'migrated' then
      perform pawl_private.append_history(
        p_steps => v_steps, p_made => v_made, p_kind => 'migrated', p_at => v_now, p_payload => null, p_internal => false,
        p_principal => case when v_target.reads_actor then v_principal end, p_actor => p_actor,
        p_reason => p_reason, p_key => p_history_key, p_correlation_id => p_correlation_id, p_traceparent => p_traceparent);
      update pawl.instance i
      set workflow_version = v_new.workflow_version, version = v_new.version, state = v_new.state,
        status = v_new.status, context = v_new.context, state_changed_at = v_new.state_changed_at,
        expires_at = v_new.expires_at, error = v_new.error, state_hash = v_new.state_hash, memory = v_new.memory
      where i.tenant_id = p_tenant and i.id = v_id;
      perform pawl_private.set_timer(p_instance => v_new, p_tried => 0);
      perform pawl_private.move_tasks(p_instance => v_new, p_at => v_now, p_moves => true);
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

-- 60_lifecycle/propose_workflow.sql

-- propose_workflow stores a definition in canonical form under a number that no version has, to be simulated. The
-- caller must roll its transaction back. Nobody waits for it, neither commands nor registrations.
-- Returns: the number
-- Raises:  PW42D invalid-definition
-- Locks:   workflow (row exclusive)
-- Writes:  workflow, workflow_state, workflow_transition
-- +goose StatementBegin
create function pawl.propose_workflow(p_definition jsonb) returns integer
language sql volatile security definer
set search_path = pg_catalog, pg_temp
-- As for register_workflow.
set jit = off
as $$ select pawl_private.store_candidate(p_definition ->> 'name', p_definition) $$;
-- +goose StatementEnd

-- 60_lifecycle/purge_archived.sql

-- purge_archived deletes instances that have been final since p_before or longer, whatever their retention is: see
-- pawl_private.purge. It is for instances that were written to an archive.
-- p_caller: see pawl_private.audit. It counts only if the session is one of the service
-- Returns: the ids of the instances that were deleted
-- Raises:  what pawl_private.bound_role raises
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, purged_instance, audit
-- +goose StatementBegin
create function pawl.purge_archived(p_tenant text, p_ids uuid[], p_before timestamptz, p_caller jsonb default null)
returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_purged uuid[];
begin
  perform pawl_private.bound_role(p_tenant);
  v_purged := pawl_private.purge(p_tenant, p_ids, p_before, true);
  if v_purged <> '{}' then
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => case when pawl_private.is_service() then p_caller end, p_action => 'instance.purge',
      p_target => null, p_outcome => 'done', p_reason => null, p_before => jsonb_build_object('instances', to_jsonb(v_purged)), p_after => null);
  end if;
  return v_purged;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/purge_instances.sql

-- purge_instances deletes instances whose retention is over and that have been final since p_before or longer: see
-- pawl_private.purge.
-- Returns: the ids of the instances that were deleted
-- Locks:   instance (for update, by id, those that are not locked), idempotency_key (for update, those that
--          are not locked)
-- Writes:  instance, idempotency_key, history, timer, callback, purged_instance
-- +goose StatementBegin
create function pawl.purge_instances(p_tenant text, p_ids uuid[], p_before timestamptz) returns uuid[]
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.purge(p_tenant, p_ids, p_before, false) $$;
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
-- p_confirm: 'shorten-retention' to keep final instances for a shorter time than the latest version does: those that are
--            older are purged at once
-- p_retention_floor: the shortest retention that is taken; null for any
-- Returns: version; created: whether it is new
-- Raises:  PW40V workflow-conflict, PW42D invalid-definition, PW400 malformed-request
-- Locks:   workflow (share update exclusive): registrations wait for each other. They do not wait for
--          back-tests, which store their candidates there, and no command waits for either
-- Writes:  workflow, workflow_state, workflow_transition, audit
-- +goose StatementBegin
create function pawl.register_workflow(
  p_definition jsonb, p_actor text default session_user, p_version integer default null, p_confirm text default null,
  p_retention_floor interval default null, p_caller jsonb default null,
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
  v_retention interval;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(p_tenant => '*', p_actor => p_actor));
  if p_confirm <> 'shorten-retention' then
    perform pawl_private.raise_condition('malformed-request', 'what can be confirmed is shorten-retention');
  end if;
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
  perform pawl_private.search_begins(v_name, v_latest.search, v_latest.name is null);
  v_retention := (select w.retention from pawl.workflow w where w.name = v_name and w.version = register_workflow.version);
  if v_retention < p_retention_floor then
    perform pawl_private.raise_condition(
      'invalid-definition', 'the retention is shorter than the deployment allows',
      jsonb_build_object('errors', jsonb_build_array(jsonb_build_object(
        'pointer', '/retention', 'detail', format(
          'must be at least %s: see --retention-floor', pawl_private.plain_duration(p_retention_floor))))));
  elsif v_latest.name is not null and p_confirm is null
    and coalesce(v_retention < v_latest.retention, v_latest.retention is null and v_retention is not null) then
    perform pawl_private.raise_condition(
      'workflow-conflict',
      format(
        'workflow %s: final instances would be kept for a shorter time, and older ones purged. If that is meant, say so by '
        '?confirm=shorten-retention, by --confirm shorten-retention of pawl workflow apply and migration, or by p_confirm in SQL',
        v_name),
      jsonb_build_object('version', v_latest.version));
  end if;
  perform pawl_private.audit(
    p_tenant => '*', p_caller => coalesce(p_caller, pawl_private.session_caller(p_actor)), p_action => 'workflow.register',
    p_target => v_name || ' ' || version, p_reason => p_confirm);
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
-- Writes:  workflow, workflow_state, workflow_transition, instance_migration, audit
-- +goose StatementBegin
create function pawl.retire_workflow(p_name text, p_checksum text, p_version integer default null, p_caller jsonb default null)
returns boolean
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
    delete from pawl.workflow_task t where t.workflow = p_name and t.workflow_version = v_version;
    delete from pawl.workflow_transition t where t.workflow = p_name and t.workflow_version = v_version;
    delete from pawl.workflow_state s where s.workflow = p_name and s.workflow_version = v_version;
  end if;
  delete from pawl.workflow w where w.name = p_name and w.version = v_version;
  -- Migrations from or to this version have ended.
  update pawl.instance_migration m
  set finished_at = pawl.now()
  where m.workflow = p_name and v_version in (m.from_version, m.to_version) and m.finished_at is null;
  perform pawl_private.audit(
    p_tenant => '*', p_caller => p_caller, p_action => 'workflow.retire', p_target => p_name || ' ' || v_version);
  return true;
end
$$;
-- +goose StatementEnd

-- 60_lifecycle/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.register_workflow'),
  ('api', 'pawl.propose_workflow'),
  ('api', 'pawl.retire_workflow'),
  ('api', 'pawl.migrate_instances'),
  ('api', 'pawl.backtest'),
  ('api', 'pawl.audit_page'),
  ('worker', 'pawl.purge_keys'),
  ('worker', 'pawl.final_instances'),
  ('worker', 'pawl.purge_instances'),
  ('reader', 'pawl.final_instances'),
  ('operator', 'pawl.purge_archived');

insert into pawl_private.readable (privilege, relation, columns) values
  ('reader', 'pawl.instance_migration', null);

-- 70_bulk/tables.sql

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

-- 70_bulk/private.sql

-- bulk_chooses says whether a filter chooses an instance. The planner inlines it.
-- +goose StatementBegin
create function pawl_private.bulk_chooses(
  p_instance pawl.instance, p_filter pawl_private.bulk_filter, p_now timestamptz
) returns boolean
language sql stable
as $$
  select (
    (p_filter.statuses is null or p_instance.status = any (p_filter.statuses))
    and (p_filter.workflows is null or p_instance.workflow = any (p_filter.workflows))
    and (p_filter.states is null or p_instance.state = any (p_filter.states))
    and (p_filter.business_key is null or p_instance.business_key = p_filter.business_key)
    and (p_filter.correlation_id is null or p_instance.correlation_id = p_filter.correlation_id)
    and (p_filter.created_after is null or p_instance.created_at > p_filter.created_after)
    and (p_filter.created_before is null or p_instance.created_at < p_filter.created_before)
    and (p_filter.stuck_for is null or p_instance.state_changed_at <= p_now - p_filter.stuck_for)
    and (p_filter.from_version is null or p_instance.workflow_version = p_filter.from_version)
    and (p_filter.not_version is null or p_instance.workflow_version <> p_filter.not_version)
    and (p_filter.failing is not true or exists (
      select from pawl.timer t
      where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id
        and t.failed_version = t.armed_version and t.failed_version = p_instance.version))
  ) is true
$$;
-- +goose StatementEnd

-- bulk_page reads the next part of a walk, in the order of the ids: up to p_limit instances of the index ranges of a
-- filter, and whether the filter chooses them.
-- +goose StatementBegin
create function pawl_private.bulk_page(
  p_tenant text, p_filter pawl_private.bulk_filter, p_after uuid, p_until uuid, p_limit integer
) returns table (id uuid, chosen boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Planned for its arguments, so that absent members leave no condition behind. The planner is left one way to read a
-- range: by an index, in its order.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_workflows text[] := p_filter.range_workflows;
  v_business_key text := p_filter.business_key;
  v_correlation_id text := p_filter.correlation_id;
begin
  return query
  select (c.instance).id, pawl_private.bulk_chooses(c.instance, p_filter, v_now)
  from (
    select r.instance
    from unnest(p_filter.range_statuses) with ordinality as w (status, place)
    cross join lateral (
      select i as instance
      from pawl.instance i
      where i.tenant_id = p_tenant
        and i.status = w.status
        and i.workflow <> '' -- The condition of the indexes.
        and (v_workflows is null or i.workflow = v_workflows[w.place])
        and (v_business_key is null or i.business_key = v_business_key)
        and (v_correlation_id is null or i.correlation_id = v_correlation_id)
        and i.id > p_after and i.id < p_until
      order by i.id
      limit p_limit
    ) r
    order by (r.instance).id
    limit p_limit
  ) c
  order by (c.instance).id;
end
$$;
-- +goose StatementEnd

-- bulk_problem is the problem of an item, with the members of the API's problems.
-- +goose StatementBegin
create function pawl_private.bulk_problem(p_code text, p_detail text) returns jsonb
language sql immutable parallel safe
as $$ select jsonb_build_object('code', p_code, 'detail', p_detail) $$;
-- +goose StatementEnd

-- bulk_checksum tells apart what is to be checked: schemas, or schemas with the contexts to check.
-- +goose StatementBegin
create function pawl_private.bulk_checksum(p_document jsonb) returns text
language sql immutable parallel safe
as $$ select encode(sha256(convert_to(p_document::text, 'UTF8')), 'hex') $$;
-- +goose StatementEnd

-- bulk_decided is what an outcome means for a bulk. The faults of what did not fit its schema are among the bulk's checks.
-- +goose StatementBegin
create function pawl_private.bulk_decided(p_bulk pawl.bulk, p_id uuid, p_outcome pawl.outcome) returns pawl_private.bulk_result
language plpgsql stable
as $$
begin
  return (
    p_id,
    case
      when p_outcome.code = 'applied' then 'applied'
      when p_outcome.code in ('always-loop', 'timer-loop') then 'failed'
      else 'refused'
    end,
    case p_outcome.code
      when 'applied' then null
      when 'payload-unchecked' then
        pawl_private.bulk_problem('invalid-payload', 'the payload does not fit its schema')
          || jsonb_build_object('errors', p_bulk.checks -> pawl_private.bulk_checksum(p_outcome.schema))
      when 'context-unchecked' then
        pawl_private.bulk_problem('invalid-context', 'the context fits the workflow''s schema, and would not with the patch')
          || jsonb_build_object('errors', p_bulk.checks -> pawl_private.bulk_checksum(p_outcome.schema))
      else pawl_private.problem(p_outcome => p_outcome, p_id => p_id, p_event => p_bulk.params ->> 'event', p_expected => null)
    end)::pawl_private.bulk_result;
end
$$;
-- +goose StatementEnd

-- bulk_caller is who a bulk acts for, with the bulk as the request, for the audit.
-- +goose StatementBegin
create function pawl_private.bulk_caller(p_bulk pawl.bulk) returns jsonb
language sql immutable parallel safe
as $$
  select coalesce(p_bulk.caller, jsonb_build_object('actor', p_bulk.actor))
    || jsonb_build_object('request_id', 'bulk:' || p_bulk.id)
$$;
-- +goose StatementEnd

-- bulk_forced carries out the override or the cancel of a bulk on one instance. The bulk's item stands for an
-- idempotency key.
-- p_checked, p_patch_checked: as for pawl.override
-- Writes:  what force writes, unless it is a dry run
-- +goose StatementBegin
create function pawl_private.bulk_forced(
  p_bulk pawl.bulk, p_id uuid, p_checked text, p_patch_checked text, p_dry_run boolean
) returns pawl.outcome
language plpgsql volatile
as $$
begin
  return pawl_private.force(
    p_kind => case p_bulk.action when 'cancel' then 'cancelled' else 'forced' end, p_id => p_id,
    p_command => (
      p_bulk.tenant_id, p_bulk.params ->> 'event', coalesce(p_bulk.params -> 'payload', '{}'), null, '*', p_checked,
      p_bulk.reason, p_bulk.actor, p_bulk.verified, false, false, null
    )::pawl_private.fire_command,
    p_to => p_bulk.params ->> 'to', p_patch => p_bulk.params -> 'context_patch', p_patch_checked => p_patch_checked,
    p_target => p_bulk.params ->> 'target', p_correlation_id => p_bulk.correlation_id, p_traceparent => p_bulk.traceparent,
    p_dry_run => p_dry_run, p_raises => false, p_caller => pawl_private.bulk_caller(p_bulk),
    p_history_key => 'bulk:' || p_bulk.id);
end
$$;
-- +goose StatementEnd

-- bulk_unchecked finds what must be checked before a bulk goes on: the payload against the schemas that it may meet, and
-- once before each step of an override that patches contexts, these contexts.
-- Returns: null for nothing, or an object by checksum: {schema, payload}, which is to fit, or {schema, before, after}, of
--          which after is to fit if before does
-- Raises:  what guards and values raise
-- +goose StatementBegin
create function pawl_private.bulk_unchecked(p_bulk pawl.bulk, p_instances pawl.instance[]) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_memoize = off
set jit = off
as $$
begin
  if p_bulk.params ? 'event' then
    return (
      select jsonb_object_agg(
        t.payload_schema_checksum,
        jsonb_build_object('schema', t.payload_schema::jsonb, 'payload', coalesce(p_bulk.params -> 'payload', '{}')))
      from (select distinct i.workflow, i.workflow_version, i.state from unnest(p_instances) i) i
      join pawl.workflow_state s
        on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
      join pawl.workflow_transition t
        on t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
        and t.event = pawl_private.matching(p_bulk.params ->> 'event', s.events, s.patterns)
      where t.payload_schema_checksum is not null and not p_bulk.checks ? t.payload_schema_checksum);
  end if;
  if p_bulk.params ? 'context_patch' and p_bulk.checks = '{}' then
    return (
      select jsonb_object_agg(pawl_private.bulk_checksum(o.schema), o.schema)
      from unnest(p_instances) i
      join pawl.workflow w on w.name = i.workflow and w.version = i.workflow_version
      cross join lateral pawl_private.bulk_forced(
        p_bulk => p_bulk, p_id => i.id, p_checked => '*', p_patch_checked => '', p_dry_run => true) o
      where w.context_schema is not null and o.code = 'context-unchecked');
  end if;
  return null;
end
$$;
-- +goose StatementEnd

-- bulk_force carries out the override or the cancel of a bulk on instances, which are locked unless it is a dry run.
-- Returns: one row for each instance, but for those whose context must be checked and has changed since bulk_unchecked
-- Writes:  what force writes, unless it is a dry run
-- +goose StatementBegin
create function pawl_private.bulk_force(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_memoize = off
set jit = off
as $$
declare
  v_instance pawl.instance;
  v_checked text := '';
  v_checksum text;
  v_outcome pawl.outcome;
begin
  foreach v_instance in array p_instances loop
    v_outcome := pawl_private.bulk_forced(
      p_bulk => p_bulk, p_id => v_instance.id, p_checked => v_checked, p_patch_checked => '', p_dry_run => p_bulk.dry_run);
    if v_outcome.code in ('payload-unchecked', 'context-unchecked') then
      v_checksum := pawl_private.bulk_checksum(v_outcome.schema);
      continue when not p_bulk.checks ? v_checksum;
      if p_bulk.checks -> v_checksum = 'null' then
        v_checked := case v_outcome.code when 'payload-unchecked' then v_checksum else v_checked end;
        v_outcome := pawl_private.bulk_forced(
          p_bulk => p_bulk, p_id => v_instance.id, p_checked => v_checked, p_patch_checked => '*',
          p_dry_run => p_bulk.dry_run);
      end if;
    end if;
    return next pawl_private.bulk_decided(p_bulk, v_instance.id, v_outcome);
  end loop;
end
$$;
-- +goose StatementEnd

-- bulk_fire fires the event of a bulk at instances, which are locked unless it is a dry run. Their payload schemas must
-- have been checked: see bulk_unchecked.
-- Writes:  what fire writes, unless it is a dry run
-- +goose StatementBegin
create function pawl_private.bulk_fire(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size integer := cardinality(p_instances);
  v_ids uuid[] := array(select i.id from unnest(p_instances) i);
  v_event text := p_bulk.params ->> 'event';
  v_events text[] := array_fill(v_event, array[v_size]);
  v_payloads jsonb[] := array_fill(coalesce(p_bulk.params -> 'payload', '{}'), array[v_size]);
  v_expected text[] := array_fill('*'::text, array[v_size]);
  v_checked text[];
  v_outcomes pawl.outcome[];
begin
  -- If the payload fits all schemas of the event in a state, fire needs to check none.
  with fit as (
    select s.workflow, s.workflow_version, s.state,
      bool_and(p_bulk.checks -> t.payload_schema_checksum = 'null') as all,
      min(t.payload_schema_checksum) filter (where p_bulk.checks -> t.payload_schema_checksum = 'null') as one
    from (select distinct i.workflow, i.workflow_version, i.state from unnest(p_instances) i) i
    join pawl.workflow_state s
      on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
    join pawl.workflow_transition t
      on t.workflow = s.workflow and t.workflow_version = s.workflow_version and t.source = s.state
      and t.event = pawl_private.matching(v_event, s.events, s.patterns)
    where t.payload_schema_checksum is not null
    group by s.workflow, s.workflow_version, s.state
  )
  select array_agg(case when coalesce(f.all, true) then '*' else coalesce(f.one, '') end order by i.ordinality)
  into v_checked
  from unnest(p_instances) with ordinality i
  left join fit f on f.workflow = i.workflow and f.workflow_version = i.workflow_version and f.state = i.state;
  if p_bulk.dry_run then
    v_outcomes := array(
      select o
      from pawl.preview(
        p_tenant => p_bulk.tenant_id, p_ids => v_ids, p_events => v_events, p_payloads => v_payloads,
        p_expected => v_expected, p_checked => v_checked, p_actor => p_bulk.actor, p_verified => p_bulk.verified) o);
  else
    v_outcomes := array(
      select o
      from pawl.fire(
        p_tenants => array_fill(p_bulk.tenant_id::text, array[v_size]), p_ids => v_ids, p_events => v_events,
        p_payloads => v_payloads, p_keys => array_fill(''::text, array[v_size]), p_expected => v_expected,
        p_checked => v_checked, p_actors => array_fill(p_bulk.actor, array[v_size]),
        p_reasons => array_fill(coalesce(p_bulk.reason::text, ''), array[v_size]),
        p_correlation_ids => array_fill(coalesce(p_bulk.correlation_id::text, ''), array[v_size]),
        p_traceparents => array_fill(coalesce(p_bulk.traceparent, ''), array[v_size]),
        p_verified => p_bulk.verified, p_history_keys => array_fill('bulk:' || p_bulk.id, array[v_size])) o);
  end if;
  return query
  select (pawl_private.bulk_decided(p_bulk, v_ids[o.ordinal], o)).*
  from unnest(v_outcomes) o;
end
$$;
-- +goose StatementEnd

-- bulk_migrate moves instances, which are locked unless it is a dry run, to another version of their workflow.
-- Writes:  what migrate_instances writes
-- +goose StatementBegin
create function pawl_private.bulk_migrate(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    m.id,
    case
      when m.result in ('migrated', 'would-migrate') then 'applied'
      when m.result = 'gone' then 'skipped'
      when m.result in ('busy', 'guard-error') then 'failed'
      else 'refused'
    end,
    case m.result
      when 'migrated' then null
      when 'would-migrate' then null
      when 'gone' then pawl_private.bulk_problem('no-longer-matches', 'the instance is final, or has another version')
      when 'state-unknown' then pawl_private.bulk_problem(m.result, format('the version has no state %s', m.to_state))
      when 'state-final' then pawl_private.bulk_problem(m.result, format('the state %s is final in the version', m.to_state))
      when 'invariant-broken' then pawl_private.bulk_problem('guard-rejected', 'an invariant of the version does not hold')
      when 'guard-error' then pawl_private.bulk_problem(m.result, 'a guard or a value of the version raises')
      when 'busy' then pawl_private.bulk_problem('unavailable', 'another transaction holds the instance')
      when 'task-open' then pawl_private.bulk_problem(m.result, 'a task of its state may have been sent')
      else pawl_private.bulk_problem(m.result, 'the eventless transitions of the version do not come to rest')
    end
  from (
    select i.workflow, i.workflow_version, array_agg(i.id) as ids
    from unnest(p_instances) i
    where i.status = 'active' and i.workflow_version <> (p_bulk.params ->> 'to')::integer
    group by i.workflow, i.workflow_version
  ) g
  cross join lateral pawl.migrate_instances(
    p_tenant => p_bulk.tenant_id, p_workflow => g.workflow, p_from => g.workflow_version,
    p_to => (p_bulk.params ->> 'to')::integer, p_state_map => p_bulk.params -> 'state_map', p_after => null,
    p_limit => cardinality(g.ids) + 1, p_actor => p_bulk.actor, p_dry_run => p_bulk.dry_run, p_ids => g.ids,
    p_reason => p_bulk.reason, p_correlation_id => p_bulk.correlation_id, p_traceparent => p_bulk.traceparent,
    p_history_key => 'bulk:' || p_bulk.id) m;
  -- What is left out above has become final, or has the version already.
  return query
  select i.id, 'skipped', pawl_private.bulk_problem('no-longer-matches', 'the instance is final, or has the version already')
  from unnest(p_instances) i
  where i.status <> 'active' or i.workflow_version = (p_bulk.params ->> 'to')::integer;
end
$$;
-- +goose StatementEnd

-- bulk_archive removes final instances. A final instance stays while something needs it: see purge.
-- Writes:  what purge writes, unless it is a dry run
-- +goose StatementBegin
create function pawl_private.bulk_archive(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[] := array(select i.id from unnest(p_instances) i where i.status <> 'active');
  v_gone uuid[];
begin
  if p_bulk.dry_run then
    v_gone := array(
      select u.id
      from unnest(v_ids) u (id)
      where not (pawl_private.instance_retains(p_bulk.tenant_id, u.id, pawl.now())).retains
        and not pawl_private.module_retains(p_bulk.tenant_id, u.id));
  else
    v_gone := pawl_private.purge(p_bulk.tenant_id, v_ids, pawl.now(), true);
  end if;
  return query
  select i.id, case when i.id = any (v_gone) then 'applied' else 'refused' end,
    case
      when i.id = any (v_gone) then null
      when i.status = 'active' then pawl_private.bulk_problem('instance-active', 'only final instances are removed')
      else pawl_private.bulk_problem(
        'instance-retained', 'an idempotency key, the log or a delivery still needs the instance; try again later')
    end
  from unnest(p_instances) i;
end
$$;
-- +goose StatementEnd

-- bulk_retry makes the failing timers of locked instances due at once.
-- Writes:  timer, unless it is a dry run
-- +goose StatementBegin
create function pawl_private.bulk_retry(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_instance pawl.instance;
  v_tried integer;
begin
  foreach v_instance in array p_instances loop
    select t.tried into v_tried
    from pawl.timer t
    where t.tenant_id = v_instance.tenant_id and t.instance_id = v_instance.id
      and t.failed_version = t.armed_version and t.failed_version = v_instance.version;
    if not found then
      return next row(
        v_instance.id, 'skipped', pawl_private.bulk_problem('nothing-to-retry', 'no timer of the instance fails'))::pawl_private.bulk_result;
      continue;
    end if;
    if not p_bulk.dry_run then
      perform pawl_private.set_timer(v_instance, v_tried);
    end if;
    return next row(v_instance.id, 'applied', null)::pawl_private.bulk_result;
  end loop;
end
$$;
-- +goose StatementEnd

-- bulk_replay makes settled deliveries of instances pending again: the dead letters, or those with the status that the
-- parameters name, of one subscription if they name one. The audit has the bulk itself.
-- Writes:  delivery, unless it is a dry run
-- +goose StatementBegin
create function pawl_private.bulk_replay(p_bulk pawl.bulk, p_instances pawl.instance[])
returns setof pawl_private.bulk_result
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_instance pawl.instance;
  v_ids uuid[];
  v_replay record;
begin
  foreach v_instance in array p_instances loop
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = v_instance.tenant_id and d.instance_id = v_instance.id
        and d.status = coalesce(p_bulk.params ->> 'status', 'dead')
        and coalesce(d.subscription_id = (p_bulk.params ->> 'subscription_id')::uuid, true)
      order by d.seq, d.version, d.subscription_id);
    if v_ids = '{}' then
      return next row(
        v_instance.id, 'skipped', pawl_private.bulk_problem('nothing-to-replay', 'no delivery of the instance is chosen'))::pawl_private.bulk_result;
      continue;
    end if;
    if not p_bulk.dry_run then
      select * into v_replay
      from pawl_private.replay_deliveries(p_tenant => v_instance.tenant_id, p_ids => v_ids);
      if v_replay.replayed = 0 then
        return next row(v_instance.id, 'refused', pawl_private.bulk_problem(
          'delivery-conflict', 'the subscription was deleted, or the callback was delivered'))::pawl_private.bulk_result;
        continue;
      end if;
    end if;
    return next row(v_instance.id, 'applied', null)::pawl_private.bulk_result;
  end loop;
end
$$;
-- +goose StatementEnd

-- bulk_act carries out the action of a bulk on instances. After an exception they are tried again one by one, and those
-- that raise fail.
-- p_alone: whether the statement has done nothing else, so that one instance that takes too long has failed, and so that
--          the caller can check something and try again
-- Returns: results: one for each instance. If the statement timeout came, those from then on have none, and are as they
--          were; so are those whose context must be checked again. Null if none has. unchecked: see bulk_unchecked; if it
--          is not null, nothing was done
-- Raises:  what another try may cure: a deadlock, a lock that was not to be had, the end of the session
-- +goose StatementBegin
create function pawl_private.bulk_act(
  p_bulk pawl.bulk, p_instances pawl.instance[], p_alone boolean, out results pawl_private.bulk_result[],
  out unchecked jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid := (p_instances[1]).id;
  v_one pawl_private.bulk_result[];
  v_state text;
  v_problem text;
begin
  if p_alone then
    unchecked := pawl_private.bulk_unchecked(p_bulk, p_instances);
    if unchecked is not null then
      return;
    end if;
  end if;
  results := case
    when p_bulk.action in ('override', 'cancel') then array(select r from pawl_private.bulk_force(p_bulk, p_instances) r)
    when p_bulk.action = 'fire' then array(select r from pawl_private.bulk_fire(p_bulk, p_instances) r)
    when p_bulk.action = 'migrate' then array(select r from pawl_private.bulk_migrate(p_bulk, p_instances) r)
    when p_bulk.action = 'archive' then array(select r from pawl_private.bulk_archive(p_bulk, p_instances) r)
    when p_bulk.action = 'retry' then array(select r from pawl_private.bulk_retry(p_bulk, p_instances) r)
    when p_bulk.action = 'replay' then array(select r from pawl_private.bulk_replay(p_bulk, p_instances) r)
  end;
exception
when query_canceled then
  if not pawl_private.timed_out() then
    raise;
  end if;
  results := null;
  if p_alone and cardinality(p_instances) = 1 then
    results := array[row(v_id, 'failed', pawl_private.bulk_problem(
      'guard-error', 'the step takes longer than the service lets it'))::pawl_private.bulk_result];
  end if;
when others then
  v_state := sqlstate;
  if v_state ~ '^(08|25|40|53|55|57|58|XX)' then
    raise;
  end if;
  if cardinality(p_instances) > 1 then
    results := null;
    for v_i in 1 .. cardinality(p_instances) loop
      v_one := (pawl_private.bulk_act(p_bulk, p_instances[v_i:v_i], false)).results;
      exit when v_one is null;
      results := results || v_one;
    end loop;
    return;
  end if;
  if v_state like 'PW%' then
    select c.problem into v_problem from pawl_private.condition c where c.sqlstate = v_state limit 1;
    results := array[row(v_id, 'refused', pawl_private.bulk_problem(v_problem, left(sqlerrm, 1000)))::pawl_private.bulk_result];
  else
    results := array[row(v_id, 'failed', case
      -- A path raises these. The text of any other error may give away something about the database.
      when v_state ~ '^(22|54)' or v_state in ('42704', '0A000') then
        pawl_private.bulk_problem('guard-error', left('a guard or an assign raises: ' || sqlerrm, 1000))
      else pawl_private.bulk_problem('internal', format('the step cannot be made (SQLSTATE %s)', v_state))
    end)::pawl_private.bulk_result];
  end if;
end
$$;
-- +goose StatementEnd

-- bulk_estimate is how many instances the planner expects a walk to choose.
-- +goose StatementBegin
create function pawl_private.bulk_estimate(p_tenant text, p_filter pawl_private.bulk_filter) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan jsonb;
begin
  -- The estimate must be one for these values, which only a statement with literals shows.
  execute format(
    'explain (format json) select from pawl.instance i where i.tenant_id = %L and i.status = any (%L)'
      || case when p_filter.workflows is not null then ' and i.workflow = any (%L)' else ' and %L is null' end
      || case when p_filter.states is not null then ' and i.state = any (%L)' else ' and %L is null' end
      || case when p_filter.correlation_id is not null then ' and i.correlation_id = %L' else ' and %L is null' end
      || case when p_filter.created_after is not null then ' and i.id > %L' else ' and %L is null' end
      || case when p_filter.created_before is not null then ' and i.id < %L' else ' and %L is null' end,
    p_tenant, p_filter.statuses, p_filter.workflows, p_filter.states, p_filter.correlation_id,
    pawl.uuid_v7_floor(p_filter.created_after), pawl.uuid_v7_floor(p_filter.created_before))
  into v_plan;
  return (v_plan #>> '{0,Plan,Plan Rows}')::numeric::bigint;
end
$$;
-- +goose StatementEnd

-- 70_bulk/bulk_check.sql

-- bulk_check records the faults of what bulk_step has asked to check.
-- p_checks: an object of them by the checksums that bulk_step has given: the faults, an array, or null for none
-- Locks:   bulk
-- Writes:  bulk
-- +goose StatementBegin
create function pawl.bulk_check(p_tenant text, p_id uuid, p_checks jsonb) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.bulk b
  set checks = b.checks || p_checks
  where b.tenant_id = p_tenant and b.id = p_id
$$;
-- +goose StatementEnd

-- 70_bulk/bulk_control.sql

-- bulk_control pauses, resumes, stops or retries a bulk. What has no effect, such as to pause a bulk that is paused, is
-- no fault. retry opens the items again that were refused or failed.
-- p_control: 'pause', 'resume', 'stop' or 'retry'
-- p_caller:  who asks; null for the session
-- Returns: the bulk; no row if there is none
-- Raises:  PW40B bulk-conflict if the bulk has ended
-- Locks:   bulk
-- Writes:  bulk, audit
-- +goose StatementBegin
create function pawl.bulk_control(p_tenant text, p_id uuid, p_control text, p_caller jsonb default null)
returns setof pawl.bulk_report
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_bulk pawl.bulk;
  v_before text;
begin
  select b.* into v_bulk from pawl.bulk b where b.tenant_id = p_tenant and b.id = p_id for no key update;
  if not found then
    return;
  end if;
  v_now := pawl.now();
  v_before := v_bulk.status;
  if v_bulk.status = 'stopped' and p_control <> 'stop' or v_bulk.status = 'done' and p_control <> 'retry' then
    perform pawl_private.raise_condition(
      'bulk-conflict', format('the bulk is %s', v_bulk.status), jsonb_build_object('bulk_status', v_bulk.status));
  end if;
  case p_control
    when 'pause' then
      v_bulk.status := 'paused';
    when 'resume' then
      v_bulk.status := case v_bulk.status when 'paused' then 'queued' else v_bulk.status end;
    when 'stop' then
      v_bulk.finished_at := coalesce(v_bulk.finished_at, v_now);
      v_bulk.status := 'stopped';
    when 'retry' then
      if v_bulk.refused + v_bulk.failed > 0 then
        v_bulk.open := v_bulk.open + v_bulk.refused + v_bulk.failed;
        v_bulk.refused := 0;
        v_bulk.failed := 0;
        v_bulk.retry_at := v_now;
        v_bulk.open_from := '00000000-0000-0000-0000-000000000000';
        v_bulk.finished_at := null;
        v_bulk.status := case v_bulk.status when 'done' then 'queued' else v_bulk.status end;
      end if;
  end case;
  update pawl.bulk b
  set status = v_bulk.status, finished_at = v_bulk.finished_at, open = v_bulk.open, refused = v_bulk.refused,
    failed = v_bulk.failed, retry_at = v_bulk.retry_at, open_from = v_bulk.open_from, turn_at = v_now,
    pace_from = null, pace_count = 0
  where b.tenant_id = p_tenant and b.id = p_id;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'bulk.' || p_control, p_target => p_id::text,
    p_before => jsonb_build_object('status', v_before), p_after => jsonb_build_object('status', v_bulk.status));
  return query select r.* from pawl.bulk_report r where r.tenant_id = p_tenant and r.id = p_id;
end
$$;
-- +goose StatementEnd

-- 70_bulk/bulk_create.sql

-- bulk_create submits a bulk. A key makes it once.
-- p_id:      a new id, of version 7
-- p_filter:  what the caller asked for, to be shown; null if p_ids names the instances
-- p_choice:  the filter, or what bounds the submitter, as the members of a pawl_private.bulk_filter
-- p_ids:     the instances; null if there is a filter
-- p_counted: how many index entries the filter has, up to 1,001
-- p_caller:  who asks; null for the session
-- Returns: the bulk. If its id is not p_id, the same request was submitted before, with the same key
-- Raises:  PW42K idempotency-key-reuse
-- Writes:  bulk, bulk_item, audit
-- +goose StatementBegin
create function pawl.bulk_create(
  p_tenant text, p_id uuid, p_action text, p_filter jsonb, p_choice jsonb, p_ids uuid[], p_params jsonb, p_reason text,
  p_rate integer, p_dry_run boolean, p_counted bigint, p_key text, p_actor text, p_verified boolean,
  p_correlation_id text, p_traceparent text, p_caller jsonb default null
) returns setof pawl.bulk_report
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_filter pawl_private.bulk_filter := jsonb_populate_record(null::pawl_private.bulk_filter, p_choice);
  v_until uuid := pawl.uuid_v7_floor(v_now + interval '1 millisecond');
  -- As pawl_private.fingerprint.
  v_fingerprint bytea := sha256(convert_to(
    jsonb_build_array('bulk', p_action, p_filter, p_ids, p_params, p_rate, p_dry_run)::text
      || case when p_verified then p_actor else '' end, 'UTF8'));
  v_bulk pawl.bulk;
begin
  insert into pawl.bulk (
    tenant_id, id, action, filter, choice, workflows, params, reason, rate, dry_run, status, key, fingerprint, actor, verified,
    correlation_id, traceparent, caller, created_at, until_id, position, walked, turn_at, next_at, estimate, open)
  values (
    p_tenant, p_id, p_action, p_filter, p_choice, v_filter.workflows, p_params, nullif(p_reason, ''), p_rate, p_dry_run, 'queued', p_key,
    v_fingerprint, p_actor, p_verified, nullif(p_correlation_id, ''), nullif(p_traceparent, ''), p_caller, v_now,
    least(v_until, pawl.uuid_v7_floor(coalesce(v_filter.created_before, 'infinity') + interval '1 millisecond')),
    pawl.uuid_v7_floor(coalesce(v_filter.created_after, '-infinity')),
    p_ids is not null, v_now, v_now, 0, 0)
  on conflict do nothing
  returning * into v_bulk;
  if not found then
    select b.* into v_bulk from pawl.bulk b where b.tenant_id = p_tenant and b.key = p_key;
    if v_bulk.fingerprint is distinct from v_fingerprint then
      perform pawl_private.raise_condition('idempotency-key-reuse', null);
    end if;
    return query select r.* from pawl.bulk_report r where r.tenant_id = p_tenant and r.id = v_bulk.id;
    return;
  end if;
  insert into pawl.bulk_item (tenant_id, bulk_id, instance_id)
  select distinct p_tenant, p_id, u.id from unnest(p_ids) u (id);
  get diagnostics v_bulk.open = row_count;
  v_bulk.estimate := case
    when p_ids is not null then v_bulk.open
    when p_counted <= 1000 then p_counted
    else greatest(p_counted, pawl_private.bulk_estimate(p_tenant, v_filter))
  end;
  update pawl.bulk b set open = v_bulk.open, estimate = v_bulk.estimate where b.tenant_id = p_tenant and b.id = p_id;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'bulk.create', p_target => p_id::text, p_reason => p_reason,
    p_after => jsonb_strip_nulls(jsonb_build_object(
      'action', p_action, 'filter', p_filter, 'ids', to_jsonb(p_ids), 'rate', p_rate,
      'dry_run', p_dry_run)) || jsonb_build_object('params', p_params - array['payload', 'context_patch']));
  return query select r.* from pawl.bulk_report r where r.tenant_id = p_tenant and r.id = p_id;
end
$$;
-- +goose StatementEnd

-- 70_bulk/bulk_purge.sql

-- bulk_purge deletes bulks that ended before a time, with up to p_limit items in a call, the oldest first.
-- Returns: how many rows it deleted; the caller repeats it until there are none
-- Locks:   bulk (those that are not locked)
-- Writes:  bulk, bulk_item
-- +goose StatementBegin
create function pawl.bulk_purge(p_age interval, p_limit integer) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bulk pawl.bulk;
  v_deleted bigint;
begin
  select b.* into v_bulk
  from pawl.bulk b
  where b.finished_at < pawl.now() - p_age
  order by b.finished_at
  limit 1
  for update skip locked;
  if not found then
    return 0;
  end if;
  delete from pawl.bulk_item t
  where t.ctid = any (array(
    select o.ctid from pawl.bulk_item o where o.tenant_id = v_bulk.tenant_id and o.bulk_id = v_bulk.id limit p_limit));
  get diagnostics v_deleted = row_count;
  if v_deleted < p_limit then
    delete from pawl.bulk b where b.tenant_id = v_bulk.tenant_id and b.id = v_bulk.id;
    v_deleted := v_deleted + 1;
  end if;
  return v_deleted;
end
$$;
-- +goose StatementEnd

-- 70_bulk/bulk_step.sql

-- bulk_step deals with the next instances of the bulk whose turn it is: of the tenant that had no turn for the longest
-- time, and of its bulks likewise. Another process may take another bulk meanwhile.
-- p_batch: how many instances at most
-- Returns: looked_at: how many instances it has read; -1 if no bulk is due. moved: those that made a step. next_in: the
--          time until a bulk is due again, if none is now; null if there is none. tenant, bulk, unchecked: what the
--          caller must check, tell bulk_check, and call again; see pawl_private.bulk_unchecked. unchecked is null if
--          there is nothing to check
-- Raises:  57014, and what another try may cure
-- Locks:   bulk (if it is not locked), instance (for no key update, by id, those that are not locked), and what the
--          action locks
-- Writes:  bulk, bulk_item, and what the action writes
-- +goose StatementBegin
create function pawl.bulk_step(
  p_batch integer, out looked_at integer, out moved uuid[], out next_in interval, out tenant text, out bulk uuid,
  out unchecked jsonb
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_begun timestamptz := clock_timestamp(); -- Measures the call; decides nothing.
  v_now timestamptz := pawl.now();
  v_picked timestamptz;
  v_bulk pawl.bulk;
  v_filter pawl_private.bulk_filter;
  v_limit integer;
  v_read integer;
  v_ids uuid[];
  v_instances pawl.instance[];
  v_chosen pawl.instance[];
  v_results pawl_private.bulk_result[] := '{}';
  v_acted pawl_private.bulk_result[];
  v_busy uuid[];
  v_done integer;
  v_ended boolean;
  v_was_open boolean;
begin
  moved := '{}';
  select b.* into v_bulk
  from pawl.bulk b
  where b.status in ('queued', 'running') and b.next_at <= v_now and not pawl_private.is_disabled(b.tenant_id)
  order by (
      select max(o.turn_at) from pawl.bulk o where o.tenant_id = b.tenant_id and o.status in ('queued', 'running')
    ), b.turn_at, b.id
  limit 1
  for no key update skip locked;
  if not found then
    looked_at := -1;
    select min(b.next_at) - v_now into next_in from pawl.bulk b where b.status in ('queued', 'running') and b.next_at > v_now;
    return;
  end if;
  v_picked := pawl.now();
  v_now := v_picked;
  v_filter := jsonb_populate_record(null::pawl_private.bulk_filter, v_bulk.choice);
  -- An id tells the millisecond only.
  v_filter.created_before := least(v_filter.created_before, v_bulk.created_at + interval '1 microsecond');
  v_limit := greatest(least(p_batch, v_bulk.batch, ceil(v_bulk.rate / 4.0)::integer), 1);
  v_was_open := v_bulk.walked;

  if v_was_open then
    v_ids := array(
      select t.instance_id
      from pawl.bulk_item t
      where t.tenant_id = v_bulk.tenant_id and t.bulk_id = v_bulk.id and t.instance_id > v_bulk.open_from
        and (t.outcome is null or t.outcome in ('refused', 'failed'))
        and (t.outcome is null or t.at < v_bulk.retry_at)
      order by t.instance_id
      limit v_limit);
    v_read := cardinality(v_ids);
    v_ended := v_read < v_limit;
    v_bulk.open_from := coalesce(v_ids[v_read], v_bulk.open_from);
  else
    -- As many pages as it takes to find enough, up to a bound: a rare state would be looked for in the whole table.
    v_ids := '{}';
    v_read := 0;
    loop
      select
        v_ids || coalesce(array_agg(p.id order by p.id) filter (where p.chosen), '{}'),
        coalesce((array_agg(p.id order by p.id desc))[1], v_bulk.position),
        count(*) < v_limit,
        v_read + count(*)
      into v_ids, v_bulk.position, v_ended, v_read
      from (
        select p.id, p.chosen,
          count(*) filter (where p.chosen) over (order by p.id rows between unbounded preceding and 1 preceding) as before
        from pawl_private.bulk_page(
          p_tenant => v_bulk.tenant_id, p_filter => v_filter, p_after => v_bulk.position, p_until => v_bulk.until_id,
          p_limit => v_limit) p
      ) p
      where p.before < v_limit - cardinality(v_ids); -- Up to the last one that there is room for.
      -- A page that was cut short has filled the room.
      exit when cardinality(v_ids) = v_limit or v_ended or v_read >= 2000;
    end loop;
    v_ended := v_ended and cardinality(v_ids) < v_limit;
    v_bulk.walked := v_ended;
  end if;
  looked_at := v_read;

  -- A replay changes deliveries only, and locks a consumer, which comes before instances for those who send.
  if v_bulk.dry_run or v_bulk.action = 'replay' then
    v_instances := array(
      select l.instance
      from unnest(v_ids) with ordinality as c (id, place)
      cross join lateral (
        select i as instance from pawl.instance i where i.tenant_id = v_bulk.tenant_id and i.id = c.id limit 1
      ) l
      order by c.place);
  else
    v_instances := array(
      select l.instance
      from unnest(v_ids) as c (id)
      cross join lateral (
        select i as instance
        from pawl.instance i
        where i.tenant_id = v_bulk.tenant_id and i.id = c.id
        limit 1
        for no key update skip locked
      ) l);
  end if;

  -- What is not locked here is locked by another transaction, or is no instance of the tenant.
  v_busy := array(
    select c.id
    from unnest(v_ids) as c (id)
    where c.id not in (select i.id from unnest(v_instances) i));
  select array_agg(row(c.id, a.outcome, a.problem)::pawl_private.bulk_result)
  into v_results
  from unnest(v_busy) as c (id)
  cross join lateral (
    select
      case when v_bulk.filter is null then 'refused' else 'skipped' end as outcome,
      case
        when v_bulk.filter is null then pawl_private.bulk_problem('instance-not-found', 'there is no such instance')
        else pawl_private.bulk_problem('no-longer-matches', 'the instance was removed')
      end as problem
    where not exists (select from pawl.instance i where i.tenant_id = v_bulk.tenant_id and i.id = c.id)
    union all
    select 'failed', pawl_private.bulk_problem('unavailable', 'another transaction held the instance each time that it was tried')
    from pawl.bulk_item t
    where t.tenant_id = v_bulk.tenant_id and t.bulk_id = v_bulk.id and t.instance_id = c.id and t.tries >= 10
      and exists (select from pawl.instance i where i.tenant_id = v_bulk.tenant_id and i.id = c.id)
  ) a;
  v_results := coalesce(v_results, '{}');
  v_busy := array(
    select b.id from unnest(v_busy) b (id) where b.id not in (select r.instance_id from unnest(v_results) r));
  if v_bulk.choice is not null then
    v_chosen := array(select i from unnest(v_instances) i where pawl_private.bulk_chooses(i, v_filter, v_now));
    if cardinality(v_chosen) < cardinality(v_instances) then
      v_results := v_results || array(
        select case
          when v_bulk.filter is null then
            row(i.id, 'refused', pawl_private.bulk_problem('instance-not-found', 'there is no such instance'))::pawl_private.bulk_result
          else
            row(
              i.id, 'skipped',
              pawl_private.bulk_problem('no-longer-matches', 'the filter does not choose the instance any more')
            )::pawl_private.bulk_result
        end
        from unnest(v_instances) i
        where i.id not in (select c.id from unnest(v_chosen) c));
      v_instances := v_chosen;
    end if;
  end if;

  if v_instances <> '{}' then
    select a.results, a.unchecked into strict v_acted, unchecked from pawl_private.bulk_act(v_bulk, v_instances, true) a;
    if unchecked is not null then
      tenant := v_bulk.tenant_id;
      bulk := v_bulk.id;
      return;
    end if;
    if v_acted is null then
      -- The statement timeout came. Fewer are tried next.
      update pawl.bulk b
      set batch = greatest(cardinality(v_instances) / 2, 1), turn_at = v_now
      where b.tenant_id = v_bulk.tenant_id and b.id = v_bulk.id;
      return;
    end if;
    v_results := v_results || v_acted;
    v_busy := v_busy || array(
      select i.id from unnest(v_instances) i where i.id not in (select r.instance_id from unnest(v_acted) r));
    if not v_bulk.dry_run and v_bulk.action not in ('retry', 'replay') then
      moved := array(select r.instance_id from unnest(v_acted) r where r.outcome = 'applied');
    end if;
  end if;

  v_now := pawl.now();
  insert into pawl.bulk_item as t (tenant_id, bulk_id, instance_id, outcome, problem, at)
  select v_bulk.tenant_id, v_bulk.id, r.instance_id, r.outcome, r.problem, v_now
  from unnest(v_results) r
  on conflict on constraint bulk_item_pkey do update
  set outcome = excluded.outcome, problem = excluded.problem, at = excluded.at, tries = 0;
  insert into pawl.bulk_item as t (tenant_id, bulk_id, instance_id, tries)
  select v_bulk.tenant_id, v_bulk.id, b.id, 1
  from unnest(v_busy) b (id)
  on conflict on constraint bulk_item_pkey do update
  set tries = t.tries + 1;

  v_done := cardinality(v_results);
  v_bulk.open := v_bulk.open + case when v_was_open then -v_done else cardinality(v_busy) end;
  if v_was_open and v_ended and v_bulk.open > 0 then
    v_bulk.open_from := '00000000-0000-0000-0000-000000000000';
    v_bulk.next_at := v_now + interval '1 second';
  end if;
  if v_bulk.rate is not null then
    v_bulk.next_at := greatest(v_bulk.next_at, v_now - interval '250 milliseconds') + interval '1 second' * v_done / v_bulk.rate;
  end if;
  -- A call of few instances takes as long as its fixed part does, so that only the timeout leads to fewer than 50.
  v_bulk.batch := case
    when clock_timestamp() - v_begun > interval '300 milliseconds' and v_bulk.batch > 50 then greatest(v_bulk.batch / 2, 50)
    when clock_timestamp() - v_begun < interval '150 milliseconds' or v_bulk.batch < 50 then least(v_bulk.batch * 2, p_batch)
    else v_bulk.batch
  end;
  if v_bulk.pace_from is null then
    v_bulk.pace_from := v_now;
    v_bulk.pace_count := 0;
  elsif v_now >= v_bulk.pace_from + interval '5 seconds' then
    v_bulk.pace := (v_bulk.pace_count + v_done) / extract(epoch from v_now - v_bulk.pace_from);
    v_bulk.pace_from := v_now;
    v_bulk.pace_count := 0;
  else
    v_bulk.pace_count := v_bulk.pace_count + v_done;
  end if;
  v_ended := v_ended and v_bulk.walked and v_bulk.open = 0;
  update pawl.bulk b
  set status = case when v_ended then 'done' else 'running' end,
    started_at = coalesce(b.started_at, v_picked), finished_at = case when v_ended then v_now end,
    position = coalesce(v_bulk.position, b.position), walked = v_bulk.walked, open_from = v_bulk.open_from,
    open = v_bulk.open, batch = v_bulk.batch, turn_at = v_now, next_at = v_bulk.next_at,
    applied = b.applied + n.applied, refused = b.refused + n.refused, skipped = b.skipped + n.skipped,
    failed = b.failed + n.failed, checks = case when v_bulk.params ? 'context_patch' then '{}' else b.checks end,
    pace_from = v_bulk.pace_from, pace_count = v_bulk.pace_count, pace = v_bulk.pace
  from (
    select
      count(*) filter (where r.outcome = 'applied') as applied, count(*) filter (where r.outcome = 'refused') as refused,
      count(*) filter (where r.outcome = 'skipped') as skipped, count(*) filter (where r.outcome = 'failed') as failed
    from unnest(v_results) r
  ) n
  where b.tenant_id = v_bulk.tenant_id and b.id = v_bulk.id;
end
$$;
-- +goose StatementEnd

-- 70_bulk/tenant_of_bulk.sql

-- tenant_of_bulk finds the tenant that has a bulk.
-- Returns: as pawl_private.tenant_of
-- +goose StatementBegin
create function pawl.tenant_of_bulk(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.tenant_of(p_table => 'pawl.bulk', p_id => p_id) $$;
-- +goose StatementEnd

-- 70_bulk/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.bulk_create'),
  ('api', 'pawl.bulk_control'),
  ('api', 'pawl.tenant_of_bulk'),
  ('worker', 'pawl.bulk_check'),
  ('worker', 'pawl.bulk_step'),
  ('worker', 'pawl.bulk_purge');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.bulk_report', null),
  ('api', 'pawl.bulk_item', null),
  ('reader', 'pawl.bulk_report', null),
  ('reader', 'pawl.bulk_item', null);

-- 80_task/tables.sql

-- Module task: work that states ask for. A *task* either calls a service over HTTP by a connection, or offers work to
-- workers that pull it from a topic. What became of it moves the instance by the same fire as everything else.
--
-- A task is armed in the transaction of the step that enters its state (move_tasks). Nothing is called there. A claim
-- records *sent* and commits before the call is made. The result is settled by task_settle, in one transaction with the
-- step that it makes. What nobody settles in time is settled by task_sweep: a lease that ran out, and a deadline.
--
--   pending ──claim──▶ sent ──┬──▶ done | error                   fires done:NAME, error:NAME
--      ▲                │ ▲   └──▶ unknown                        fires unknown:NAME
--      │                │ └─ retry under the same key
--      └─ fresh key ── reconciling ──▶ done | error | unknown
--      │
--      └──▶ cancelled   the state was left before anything was sent
--
-- The status says what may have happened outside. A `pending` task has surely had no effect: nothing was sent, or only
-- attempts that were refused before. A `sent` task may have had one, also while it waits for its next attempt.
--
-- Leaving the state cancels pending tasks. A task that was sent goes on to its end, and is then *late*: left_at says when
-- its state was left. It moves the instance only by the event that its definition names for that.
--
-- Each claim has a random lease. Only the holder of the newest one may settle. A lease that has run out is still the
-- newest until the next claim supersedes it. So two processes never settle one attempt differently, and a process that
-- was paused is welcome if nobody has taken its place.
--
-- What a task sends is not stored. It is computed from the history row that entered the state, and so is the same in
-- each attempt.
--
-- A *compensation* undoes what a task or a transition did. It is registered when its task is sent, or when its transition
-- is made. A state that undoes steps has a row in undoing while an instance is in it. One step is undone at a time, the
-- newest first: undo_next arms the compensation as a task, in the transaction that settles the one before.
--
-- Lock order: instance (by id), undoing, compensation, task (by id), task_attempt. A claim locks tasks alone, and skips those
-- that are locked.

create table pawl.task (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  instance_id uuid not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  position integer not null,
  state text collate "C" not null,
  name text collate "C" not null,
  connection text collate "C",
  topic text collate "C",
  compensates bigint,
  entered_version pawl.version not null,
  result_version bigint,
  status text not null,
  left_at timestamptz,
  reopened boolean not null default false,
  attempts integer not null default 0,
  tries integer not null default 0,
  key_number integer not null default 1,
  checks integer not null default 0,
  sent_at timestamptz,
  tried_at timestamptz,
  due_at timestamptz,
  look_at timestamptz,
  deadline_at timestamptz not null,
  lease uuid,
  leased_until timestamptz,
  leased_for interval,
  worker text,
  claim_key pawl.key,
  progress jsonb,
  result pawl.object,
  problem text,
  created_at timestamptz not null,
  ended_at timestamptz,
  constraint task_pkey primary key (tenant_id, id),
  constraint task_status_is_known check (status in ('pending', 'sent', 'reconciling', 'done', 'error', 'unknown', 'cancelled')),
  constraint task_calls_or_offers_work check ((connection is null) <> (topic is null)),
  constraint task_ended_has_a_time check ((status in ('done', 'error', 'unknown', 'cancelled')) = (ended_at is not null)),
  constraint task_ended_is_not_claimed check (ended_at is null or due_at is null and look_at is null and leased_until is null),
  constraint task_open_is_looked_at check (ended_at is not null or look_at is not null),
  constraint task_leased_is_not_due check (leased_until is null or due_at is null and lease is not null),
  constraint task_attempts_are_counted check (attempts >= 0 and tries >= 0 and checks >= 0 and key_number >= 1)
)
-- Each row is written some times and indexed by what is due, so that dead entries gather where claims begin.
with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.task.position is 'of its declaration in workflow_task';
comment on column pawl.task.state is 'the state that started it';
comment on column pawl.task.connection is 'by which its next call goes; what reconciles may go by another one';
comment on column pawl.task.compensates is 'the number of the compensation that it carries out; null for the task of a state';
comment on column pawl.task.entered_version is 'the step that its input is made from';
comment on column pawl.task.result_version is 'the step that its outcome made';
comment on column pawl.task.left_at is 'when its state was left before it ended; null again when it has moved the instance after an operator had it tried again';
comment on column pawl.task.reopened is 'an operator has it tried again, or has said what happened, after it had ended';
comment on column pawl.task.attempts is 'how often it was claimed';
comment on column pawl.task.tries is 'how many attempts under the present key may have had an effect';
comment on column pawl.task.key_number is 'a fresh key has the suffix -2, -3 …';
comment on column pawl.task.checks is 'how often it was asked what became of the last attempt';
comment on column pawl.task.sent_at is 'when it was first sent under the present key; null if surely nothing was';
comment on column pawl.task.tried_at is 'when the last attempt ended';
comment on column pawl.task.due_at is 'when it may be claimed; null while it is leased and when it has ended';
comment on column pawl.task.look_at is 'when task_sweep must look at it; null when it has ended';
comment on column pawl.task.leased_for is 'how long the lease is, and how long it is again after a heartbeat';
comment on column pawl.task.claim_key is 'the idempotency key of the claim that took it';
comment on column pawl.task.result is 'the payload of its outcome';
comment on column pawl.task.problem is
  'why its outcome did not make the step that it should have made, its input cannot be computed, or task_sweep has put it off; else null';

create index task_connection_due_idx on pawl.task (tenant_id, connection, due_at) where connection is not null and due_at is not null;
create index task_topic_due_idx on pawl.task (tenant_id, topic, due_at) where topic is not null and due_at is not null;
create index task_look_at_idx on pawl.task (look_at) where look_at is not null;
create index task_claim_key_idx on pawl.task (tenant_id, claim_key) where claim_key is not null and leased_until is not null;
create index task_instance_idx on pawl.task (tenant_id, instance_id, id);
-- For lists of one status. No other query repeats its condition, so that the planner takes it for none of them.
create index task_status_idx on pawl.task (tenant_id, status, id) where status in ('pending', 'sent', 'reconciling', 'error', 'unknown');
-- What ended and made no step. A task that ends as it should is in it for a moment.
create index task_unheard_idx on pawl.task (tenant_id, id)
  where result_version is null and status in ('done', 'error', 'unknown') and compensates is null;

-- claim_key has a row for each idempotency key of a claim, for a day. Whoever claims locks the row of its key, so that the
-- same claim, sent twice at a time, is carried out once.
create table pawl_private.claim_key (
  tenant_id pawl.tenant_id not null,
  key pawl.key not null,
  claimed_at timestamptz not null,
  constraint claim_key_pkey primary key (tenant_id, key)
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

create index claim_key_claimed_at_idx on pawl_private.claim_key (claimed_at);

-- task_attempt is one claim of a task and what came of it.
create table pawl.task_attempt (
  tenant_id pawl.tenant_id not null,
  task_id uuid not null,
  number integer not null,
  kind text not null,
  key text not null,
  lease uuid not null,
  worker text,
  started_at timestamptz not null,
  ended_at timestamptz,
  result text,
  status integer,
  error text,
  constraint task_attempt_pkey primary key (tenant_id, task_id, number),
  constraint task_attempt_kind_is_known check (kind in ('call', 'reconcile', 'work')),
  constraint task_attempt_error_is_short check (length(error) <= 1000)
)
with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.task_attempt.result is
  'what was reported: see pawl.task_settle; or expired: its lease ran out, overdue, impossible, resolved; null while it is under way';

-- compensation is a step that can be undone.
create table pawl.compensation (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  number bigint not null generated always as identity,
  name text collate "C" not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  position integer not null,
  task_id uuid,
  version pawl.version not null,
  status text not null,
  undone_by uuid,
  reason text,
  constraint compensation_pkey primary key (tenant_id, instance_id, number),
  constraint compensation_task_key unique (tenant_id, task_id),
  constraint compensation_status_is_known check (status in ('registered', 'undone', 'failed', 'skipped', 'void'))
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.compensation.name is 'of the task or of the event whose step it undoes';
comment on column pawl.compensation.position is 'of its declaration in workflow_task';
comment on column pawl.compensation.task_id is 'the task whose effect it undoes; null for a transition';
comment on column pawl.compensation.version is 'the step whose data its input is made from';
comment on column pawl.compensation.status is 'void: there was no effect to undo';
comment on column pawl.compensation.undone_by is 'the task that carries it out';
comment on column pawl.compensation.reason is 'why it failed, or why an operator skipped it';

-- undoing has a row for each instance that is in a state that undoes steps.
create table pawl.undoing (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  due_at timestamptz,
  tried integer not null default 0,
  problem text,
  constraint undoing_pkey primary key (tenant_id, instance_id)
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.undoing.due_at is 'when task_sweep must look at it; null while a task is waited for';
comment on column pawl.undoing.tried is 'how often going on has failed';
comment on column pawl.undoing.problem is 'why going on failed last; null if it never did';

create index undoing_due_at_idx on pawl.undoing (due_at) where due_at is not null;

-- task_lane, task_call, task_settled and work are shapes, as pawl.outcome_row is, and never hold rows.
create view pawl.task_lane as
select ''::text as tenant_id, ''::text as connection, false as ready, false as half_open, 0 as concurrency, false as missing
where false;

create view pawl.task_call as
select
  ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as task_id, '00000000-0000-0000-0000-000000000000'::uuid as lease,
  0 as attempt, false as reconciling, ''::text as key, ''::text as idempotency_header, ''::text as connection, ''::text as method,
  '[]'::jsonb as path, '{}'::jsonb as query, '{}'::jsonb as headers, null::jsonb as body, 0::float8 as timeout_seconds,
  null::text as correlation_id, null::text as traceparent
where false;

create view pawl.task_settled as
select
  0 as ordinal, ''::text as code, ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as task_id,
  '00000000-0000-0000-0000-000000000000'::uuid as instance_id, ''::text as status, false as late, null::timestamptz as leased_until
where false;

create view pawl.work as
select
  '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as topic, ''::text as name,
  '00000000-0000-0000-0000-000000000000'::uuid as instance_id, ''::text as workflow, 0 as attempt, ''::text as key, '{}'::jsonb as input,
  '00000000-0000-0000-0000-000000000000'::uuid as lease, 'epoch'::timestamptz as lease_expires_at,
  'epoch'::timestamptz as deadline_at, null::text as correlation_id,
  null::text as traceparent
where false;

-- task_row is a task as people see it. error: why it failed, why it waits for its connection, or why its last attempt failed.
create view pawl.task_row as
select
  t.tenant_id, t.id, t.instance_id, t.workflow, t.workflow_version, t.state, t.name, (t.compensates is not null)::boolean as compensation,
  t.topic, t.connection, t.status, t.attempts,
  (t.id || case when t.key_number > 1 then '-' || t.key_number else '' end)::text as key,
  coalesce(
    t.problem,
    case
      when t.due_at is null or t.connection is null then null
      when c.name is null then format('there is no connection %s', t.connection)
      when c.finding is not null then format('the connection %s cannot be used', t.connection)
    end,
    t.result ->> 'error', a.error) as error,
  (case when t.leased_until is not null then t.worker end)::text as worker, t.progress, t.due_at, t.leased_until, t.deadline_at,
  t.left_at, t.created_at, t.ended_at
from pawl.task t
left join pawl.task_attempt a
  on a.tenant_id = t.tenant_id and a.task_id = t.id and a.number = t.attempts and t.status <> 'done'
left join pawl.connection c
  on c.tenant_id = t.tenant_id and c.name = t.connection;

-- claimed_work is a task that a claim of pawl.work_claims got. It is a shape, and never holds rows.
create view pawl.claimed_work as
select
  0 as ordinal, '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as topic, ''::text as name,
  '00000000-0000-0000-0000-000000000000'::uuid as instance_id, ''::text as workflow, 0 as attempt, ''::text as key, '{}'::jsonb as input,
  '00000000-0000-0000-0000-000000000000'::uuid as lease, 'epoch'::timestamptz as lease_expires_at,
  'epoch'::timestamptz as deadline_at, null::text as correlation_id, null::text as traceparent
where false;

-- moment is one thing that happened to an instance; see pawl.timeline_page. It is a shape, and never holds rows.
create view pawl.moment as
select
  'epoch'::timestamptz as at, 0::bigint as version, 0 as rank, ''::text as key, ''::text as kind, null::text as step, null::text as event,
  null::text as from_state, null::text as to_state, null::text as actor, null::text as reason, null::text as name, null::uuid as task_id,
  null::boolean as compensates,
  null::integer as attempt, null::boolean as reconciling, null::text as status, null::integer as http_status, null::text as failure, null::text as worker,
  null::timestamptz as ended_at, null::uuid as delivery_id, null::uuid as subscription_id
where false;

-- 80_task/private.sql

-- task_key is the key that a task's calls carry. A fresh key has a number.
-- +goose StatementBegin
create function pawl_private.task_key(p_task pawl.task) returns text
language plpgsql immutable parallel safe -- A function in SQL that is not put in place is planned at each call.
as $$
begin
  return p_task.id || case when p_task.key_number > 1 then '-' || p_task.key_number else '' end;
end
$$;
-- +goose StatementEnd

-- task_spec is the declaration of a task.
-- +goose StatementBegin
create function pawl_private.task_spec(p_task pawl.task) returns pawl.workflow_task
language plpgsql stable
as $$
declare
  v_spec pawl.workflow_task;
begin
  select w.* into strict v_spec
  from pawl.workflow_task w
  where w.workflow = p_task.workflow and w.workflow_version = p_task.workflow_version and w.position = p_task.position;
  return v_spec;
end
$$;
-- +goose StatementEnd

-- task_notify wakes those who carry tasks out. The payload is 'http' or 'work:TENANT/TOPIC'.
-- +goose StatementBegin
create function pawl_private.task_notify(p_tenant text, p_topic text) returns void
language sql volatile
as $$ select pg_notify('pawl_task', left(case when p_topic is null then 'http' else 'work:' || p_tenant || '/' || p_topic end, 500)) $$;
-- +goose StatementEnd

-- task_step is the step that the input of a task is made from.
-- +goose StatementBegin
create function pawl_private.task_step(p_task pawl.task) returns pawl.history
language plpgsql stable
as $$
declare
  v_step pawl.history;
begin
  select h.* into strict v_step
  from pawl.history h
  where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id and h.version = p_task.entered_version;
  return v_step;
end
$$;
-- +goose StatementEnd

-- task_traceparent is the traceparent of the step that has caused a task: of the one that entered the state or, of a
-- compensation, of the last one. Attempts and the result are in its trace.
-- Returns: an empty text if it has none
-- +goose StatementBegin
create function pawl_private.task_traceparent(p_task pawl.task) returns text
language plpgsql stable
as $$
begin
  return pawl_private.traceparent_of(
    p_task.tenant_id, p_task.instance_id, case when p_task.compensates is null then p_task.entered_version end);
end
$$;
-- +goose StatementEnd

-- task_document is what the values and guards of a task read: the instance as the history row left it that entered the
-- state, with the time of that row, and the task. Of a compensation it is the row of the step that it undoes, and the
-- result of the task that did it. p_step: of task_step
-- +goose StatementBegin
create function pawl_private.task_document(p_task pawl.task, p_step pawl.history) returns jsonb
language plpgsql stable
as $$
declare
  v_instance pawl.instance;
  v_document jsonb;
begin
  select a.* into strict v_instance
  from pawl.instance_at a
  where a.tenant_id = p_task.tenant_id and a.id = p_task.instance_id and a.version = p_task.entered_version;
  v_document := pawl_private.document(
    p_instance => v_instance, p_payload => coalesce(p_step.payload, '{}'), p_now => p_step.at, p_event => p_step.event,
    p_principal => coalesce(p_step.principal, pawl_private.principal(p_step.actor, true, false)));
  v_document := v_document || jsonb_build_object('task', jsonb_build_object(
    'id', p_task.id, 'key', pawl_private.task_key(p_task), 'name', p_task.name, 'workflow', p_task.workflow, 'state', p_task.state));
  if p_task.compensates is not null then
    v_document := v_document || jsonb_build_object('result', (
      select t.result
      from pawl.compensation c
      join pawl.task t on t.tenant_id = c.tenant_id and t.id = c.task_id
      where c.tenant_id = p_task.tenant_id and c.instance_id = p_task.instance_id and c.number = p_task.compensates));
  end if;
  return v_document;
end
$$;
-- +goose StatementEnd

-- task_request computes the request of a task. p_request: as of compiled_request
-- Returns: {method, path, query, headers, body}; path: an array of texts and, for what was interpolated, of arrays of one
--          text each
-- Raises:  22023 with the pointer
-- +goose StatementBegin
create function pawl_private.task_request(p_document jsonb, p_request jsonb) returns jsonb
language plpgsql stable
as $$
declare
  v_part jsonb;
  v_value jsonb;
  v_path jsonb := '[]';
begin
  for v_part in select e from jsonb_array_elements(p_request -> 'path') e loop
    if jsonb_typeof(v_part) = 'array' then
      v_value := pawl_private.value(p_document, v_part -> 0);
      if v_value is null or jsonb_typeof(v_value) not in ('string', 'number', 'boolean') then
        raise exception 'a part of the path has the value %, which is no text and no number', coalesce(v_value::text, 'nothing')
          using errcode = 'invalid_parameter_value';
      elsif v_value = '""' then
        raise exception 'a part of the path is empty' using errcode = 'invalid_parameter_value';
      elsif v_value in ('"."', '".."') then
        raise exception 'a part of the path has the value %, which leads elsewhere', v_value using errcode = 'invalid_parameter_value';
      end if;
      v_part := jsonb_build_array(v_value #>> '{}');
    end if;
    v_path := v_path || jsonb_build_array(v_part);
  end loop;
  return jsonb_build_object(
    'method', p_request ->> 'method', 'path', v_path,
    'query', case when p_request ? 'query' then pawl_private.value(p_document, p_request -> 'query') end,
    'headers', case when p_request ? 'headers' then pawl_private.value(p_document, p_request -> 'headers') end)
    || case when p_request ? 'body' then jsonb_build_object('body', pawl_private.value(p_document, p_request -> 'body')) else '{}' end;
end
$$;
-- +goose StatementEnd

-- task_retains says whether a task of an instance is open.
-- +goose StatementBegin
create function pawl_private.task_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return exists (
    select from pawl.task t where t.tenant_id = p_tenant and t.instance_id = p_id and t.ended_at is null);
end
$$;
-- +goose StatementEnd

-- 80_task/private_arm.sql

-- task_is_told says whether those who carry tasks of a topic, or of a connection, out have been told of a task that is still to
-- be claimed. Then they look again when they have claimed it, and need not be told once more. Transactions that notify commit
-- one after another: if each step that arms a task notified, a slow disk would let through one at a time.
-- +goose StatementBegin
create function pawl_private.task_is_told(p_tenant text, p_topic text, p_connection text, p_at timestamptz) returns boolean
language plpgsql volatile -- It sees what was committed a moment ago.
-- The planner is left one way to read: by the index of the topic or of the lane.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
begin
  if p_topic is not null then
    perform from pawl.task t
    where t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null and t.due_at is not null and t.due_at <= p_at
    order by t.tenant_id desc, t.topic desc, t.due_at desc
    limit 1;
  else
    perform from pawl.task t
    where t.tenant_id = p_tenant and t.connection = p_connection and t.connection is not null and t.due_at is not null and t.due_at <= p_at
    order by t.tenant_id desc, t.connection desc, t.due_at desc
    limit 1;
  end if;
  return found;
end
$$;
-- +goose StatementEnd

-- arm_task adds a pending task.
-- p_compensates: the number of the compensation that it carries out; null for the task of a state
-- Writes: task
-- +goose StatementBegin
create function pawl_private.arm_task(
  p_instance pawl.instance, p_spec pawl.workflow_task, p_entered_version bigint, p_at timestamptz, p_compensates bigint default null
) returns uuid
language plpgsql volatile
as $$
declare
  v_id uuid := pawl_private.uuid_v7(p_at);
  v_told boolean := pawl_private.task_is_told(p_instance.tenant_id, p_spec.topic, p_spec.connection, p_at);
begin
  insert into pawl.task (
    tenant_id, id, instance_id, workflow, workflow_version, position, state, name, connection, topic, compensates,
    entered_version, status, due_at, look_at, deadline_at, created_at)
  values (
    p_instance.tenant_id, v_id, p_instance.id, p_spec.workflow, p_spec.workflow_version, p_spec.position, p_instance.state,
    p_spec.name, p_spec.connection, p_spec.topic, p_compensates, p_entered_version, 'pending', p_at,
    p_at + p_spec.deadline, p_at + p_spec.deadline, p_at);
  if not v_told then
    perform pawl_private.task_notify(p_instance.tenant_id, p_spec.topic);
  end if;
  return v_id;
end
$$;
-- +goose StatementEnd

-- move_tasks does what a step does with tasks: it cancels or leaves those of the state that was left, arms those of the
-- state that was entered, and registers the compensation of the transition.
-- p_moves: whether a state was left or entered. p_event, p_version: of the transition's step
-- Locks:  task
-- Writes: task, compensation, undoing
-- +goose StatementBegin
create function pawl_private.move_tasks(
  p_instance pawl.instance, p_at timestamptz, p_moves boolean, p_compensation integer default null, p_event text default null,
  p_version bigint default null
) returns void
language plpgsql volatile
as $$
declare
  v_spec pawl.workflow_task;
  v_undoing text;
begin
  if p_compensation is not null then
    insert into pawl.compensation (tenant_id, instance_id, name, workflow, workflow_version, position, version, status)
    values (
      p_instance.tenant_id, p_instance.id, p_event, p_instance.workflow, p_instance.workflow_version, p_compensation,
      p_version, 'registered');
  end if;
  if not p_moves then
    return;
  end if;
  update pawl.task t
  set
    left_at = p_at,
    reopened = false,
    status = case t.status when 'pending' then 'cancelled' else t.status end,
    due_at = case when t.status <> 'pending' then t.due_at end,
    look_at = case when t.status <> 'pending' then t.look_at end,
    ended_at = case t.status when 'pending' then p_at end
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id and t.ended_at is null and t.left_at is null;
  delete from pawl.undoing u where u.tenant_id = p_instance.tenant_id and u.instance_id = p_instance.id;
  if p_instance.status <> 'active' then
    return;
  end if;
  for v_spec in
    select w.*
    from pawl.workflow_task w
    where w.workflow = p_instance.workflow and w.workflow_version = p_instance.workflow_version and w.state = p_instance.state
    order by w.position
  loop
    perform pawl_private.arm_task(p_instance, v_spec, p_instance.version, p_at);
  end loop;
  select s.undoing into strict v_undoing
  from pawl.workflow_state s
  where s.workflow = p_instance.workflow and s.workflow_version = p_instance.workflow_version and s.state = p_instance.state;
  if v_undoing is not null then
    -- Steps that could not be undone before are tried again.
    update pawl.compensation c
    set status = 'registered', undone_by = null
    where c.tenant_id = p_instance.tenant_id and c.instance_id = p_instance.id and c.status = 'failed';
    insert into pawl.undoing (tenant_id, instance_id, due_at) values (p_instance.tenant_id, p_instance.id, p_at);
    perform pawl_private.task_notify(p_instance.tenant_id, null);
  end if;
end
$$;
-- +goose StatementEnd

-- 80_task/private_claim.sql

-- register_compensation registers that a task may have done what its compensation undoes. If an earlier effect of the task
-- was undone, or there was none, the new one comes after what has been done since.
-- Writes: compensation
-- +goose StatementBegin
create function pawl_private.register_compensation(p_task pawl.task, p_spec pawl.workflow_task) returns void
language plpgsql volatile
as $$
begin
  if p_spec.compensation is not null then
    insert into pawl.compensation as c (tenant_id, instance_id, name, workflow, workflow_version, position, task_id, version, status)
    values (
      p_task.tenant_id, p_task.instance_id, p_task.name, p_task.workflow, p_task.workflow_version, p_spec.compensation, p_task.id,
      p_task.entered_version, 'registered')
    on conflict (tenant_id, task_id) do update
    set status = 'registered', number = default, undone_by = null, reason = null
    where c.status in ('void', 'undone', 'skipped');
  end if;
end
$$;
-- +goose StatementEnd

-- lock_claim_key lets the same claim, sent twice at a time, be carried out once.
-- Locks:  claim_key
-- Writes: claim_key
-- +goose StatementBegin
create function pawl_private.lock_claim_key(p_tenant text, p_key text, p_now timestamptz) returns void
language plpgsql volatile
as $$
begin
  insert into pawl_private.claim_key (tenant_id, key, claimed_at)
  values (p_tenant, p_key, p_now)
  on conflict on constraint claim_key_pkey do update set claimed_at = excluded.claimed_at;
end
$$;
-- +goose StatementEnd

-- begin_attempt claims a task: it records that it is sent.
-- p_for: for how long the lease holds
-- Returns: the task as it became
-- Writes:  task, task_attempt, compensation
-- +goose StatementBegin
create function pawl_private.begin_attempt(
  p_task pawl.task, p_spec pawl.workflow_task, p_worker text, p_claim_key text, p_for interval, p_now timestamptz
) returns pawl.task
language plpgsql volatile
as $$
declare
  v_task pawl.task;
  v_reconciles boolean := p_task.status = 'reconciling';
begin
  update pawl.task t
  set
    status = case when v_reconciles then 'reconciling' else 'sent' end,
    attempts = t.attempts + 1,
    tries = t.tries + case when v_reconciles then 0 else 1 end,
    checks = t.checks + case when v_reconciles then 1 else 0 end,
    sent_at = coalesce(t.sent_at, p_now),
    due_at = null,
    lease = gen_random_uuid(),
    leased_until = p_now + p_for,
    leased_for = p_for,
    -- A call that ends at the deadline has a moment to be reported.
    look_at = least(p_now + p_for, t.deadline_at + case when t.topic is null then interval '2 seconds' else interval '0' end),
    worker = left(p_worker, 255),
    claim_key = nullif(p_claim_key, '')
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id
  returning t.* into strict v_task;
  insert into pawl.task_attempt (tenant_id, task_id, number, kind, key, lease, worker, started_at)
  values (
    v_task.tenant_id, v_task.id, v_task.attempts,
    case when v_reconciles then 'reconcile' when v_task.topic is not null then 'work' else 'call' end,
    pawl_private.task_key(v_task), v_task.lease, v_task.worker, p_now);
  if not v_reconciles then
    perform pawl_private.register_compensation(v_task, p_spec);
  end if;
  return v_task;
end
$$;
-- +goose StatementEnd

-- task_cannot notes that a task's request or input cannot be made. task_sweep ends it.
-- Writes: task
-- +goose StatementBegin
create function pawl_private.task_cannot(p_task pawl.task, p_error text, p_now timestamptz) returns void
language sql volatile
as $$
  update pawl.task t
  set due_at = null, look_at = p_now, problem = left('input: ' || p_error, 1000)
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id
$$;
-- +goose StatementEnd

-- work_claim claims tasks of a topic, the longest due first. A claim with a key under which tasks are leased returns these
-- once more, and no others.
-- p_lease:  for how long the lease holds; null for what each task declares
-- p_key:    '' or null for none
-- p_within: the workflows whose tasks it may claim; null for all
-- p_holds:  whether to lock their instances too, for a caller who settles them in the same transaction: so no step waits for
--           a task whose holder waits for the step's instance
-- Locks:    claim_key, instance (if p_holds, for no key update, those that are not locked), task (those that are not locked)
-- Writes:   claim_key, task, task_attempt, compensation
-- +goose StatementBegin
create function pawl_private.work_claim(
  p_tenant text, p_topic text, p_worker text, p_max integer, p_lease interval default null, p_key text default null,
  p_within text[] default null, p_holds boolean default false
) returns setof pawl.work
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of the topic, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_input jsonb;
  v_step pawl.history;
  v_repeats boolean := false;
begin
  if p_max not between 1 and 100 or p_max is null then
    perform pawl_private.refuse_malformed('a claim takes 1 to 100 tasks');
  elsif p_lease not between interval '1 second' and interval '1 hour' then
    perform pawl_private.refuse_malformed('a lease holds for 1s to 1h');
  elsif length(p_key) > 255 then
    perform pawl_private.refuse_malformed('a key has at most 255 characters');
  end if;
  if p_key <> '' then
    perform pawl_private.lock_claim_key(p_tenant, p_key, v_now);
    v_repeats := exists (
      select from pawl.task t
      where t.tenant_id = p_tenant and t.claim_key = p_key and t.topic = p_topic and t.leased_until is not null);
    if v_repeats then
      perform pawl_private.commit_synchronously();
    end if;
  end if;
  for v_task in
    (
      select t.*
      from pawl.task t
      where v_repeats and t.tenant_id = p_tenant and t.claim_key = p_key and t.topic = p_topic and t.leased_until is not null
    )
    union all
    (
      select d.*
      from (
        select t.*
        from pawl.task t
        where not v_repeats and not p_holds and t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null
          and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
          and (p_within is null or t.workflow = any (p_within))
        order by t.tenant_id, t.topic, t.due_at
        limit p_max
        for update skip locked
      ) d
    )
    union all
    (
      select d.*
      from (
        select t.*
        from pawl.task t
        join pawl.instance i on i.tenant_id = t.tenant_id and i.id = t.instance_id
        where not v_repeats and p_holds and t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null
          and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
          and (p_within is null or t.workflow = any (p_within))
        order by t.tenant_id, t.topic, t.due_at
        limit p_max
        for no key update of i skip locked
        for update of t skip locked
      ) d
    )
  loop
    v_spec := pawl_private.task_spec(v_task);
    v_step := pawl_private.task_step(v_task);
    begin
      v_input := coalesce(nullif(pawl_private.value(pawl_private.task_document(v_task, v_step), v_spec.spec -> 'input'), 'null'), '{}');
      if jsonb_typeof(v_input) <> 'object' then
        raise exception 'it is of type %, and must be an object', jsonb_typeof(v_input) using errcode = 'invalid_parameter_value';
      end if;
    exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
      perform pawl_private.task_cannot(v_task, sqlerrm, v_now);
      continue;
    end;
    if not v_repeats then
      v_task := pawl_private.begin_attempt(
        v_task, v_spec, p_worker, p_key, coalesce(p_lease, pawl_private.duration(v_spec.spec ->> 'lease')), v_now);
    end if;
    return query select
      v_task.id, v_task.topic, v_task.name, v_task.instance_id, v_task.workflow, v_task.attempts, pawl_private.task_key(v_task),
      v_input, v_task.lease, least(v_task.leased_until, v_task.deadline_at), v_task.deadline_at,
      v_step.correlation_id::text, nullif(pawl_private.task_traceparent(v_task), '');
  end loop;
end
$$;
-- +goose StatementEnd

-- 80_task/private_decide.sql

-- holds_or_not evaluates a guard on the answer to a call. A guard that raises does not hold.
-- +goose StatementBegin
create function pawl_private.holds_or_not(p_document jsonb, p_guard jsonb) returns boolean
language plpgsql stable
as $$
begin
  return coalesce(pawl_private.holds(p_document, p_guard), false);
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
  return false;
end
$$;
-- +goose StatementEnd

-- key_holds_until is until when an attempt whose outcome is ambiguous may be tried again under the same key. After that the
-- service may have forgotten the key. Null if nothing was sent that may have had an effect, or if there is no key.
-- +goose StatementBegin
create function pawl_private.key_holds_until(p_task pawl.task, p_spec jsonb) returns timestamptz
language plpgsql stable
as $$
begin
  return case when p_task.tries > 0 then p_task.sent_at + pawl_private.duration(p_spec ->> 'window') end;
end
$$;
-- +goose StatementEnd

-- backoff is how long to wait before the next attempt: a random part of what doubles with each try (full jitter), but at
-- least what the other side has asked for.
-- +goose StatementBegin
create function pawl_private.backoff(p_spec jsonb, p_tries integer, p_asked interval) returns interval
language plpgsql volatile
as $$
begin
  return greatest(
    random() * least(pawl_private.duration(p_spec ->> 'cap'), pawl_private.duration(p_spec ->> 'base') * 2 ^ least(greatest(p_tries - 1, 0), 30)),
    least(coalesce(p_asked, interval '0'), interval '1 day'));
end
$$;
-- +goose StatementEnd

-- report_seconds reads a member of a report that is a number of seconds. It has bounds, so that times stay in range. Null
-- if there is none.
-- +goose StatementBegin
create function pawl_private.report_seconds(p_report jsonb, p_name text) returns interval
language plpgsql immutable parallel safe
as $$
begin
  return case when p_report ->> p_name is not null then
    make_interval(secs => least(greatest((p_report ->> p_name)::float8, 0), 31536000))
  end;
end
$$;
-- +goose StatementEnd

-- task_result is the payload of what became of a task. p_status: of the answer; null without one
-- +goose StatementBegin
create function pawl_private.task_result(p_task pawl.task, p_status integer, p_headers jsonb, p_body jsonb, p_error jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
  return jsonb_build_object(
    'task', p_task.id, 'name', p_task.name, 'attempt', p_task.attempts, 'status', p_status, 'headers', coalesce(p_headers, '{}'),
    'body', coalesce(p_body, 'null'), 'error', p_error);
end
$$;
-- +goose StatementEnd

-- task_decide decides what becomes of a task after an attempt. It only reads.
-- p_kind:   of the attempt: call, reconcile or work; null if there was none
-- p_report: see pawl.task_settle. Its result may also be 'expired': the lease ran out, 'overdue': the deadline has passed,
--           or 'impossible': what it sends cannot be computed
-- Returns: the task as it will be. Its result and ended_at are set if it ends
-- +goose StatementBegin
create function pawl_private.task_decide(
  p_task pawl.task, p_spec pawl.workflow_task, p_kind text, p_report jsonb, p_now timestamptz
) returns pawl.task
language plpgsql volatile
as $$
declare
  v_task pawl.task := p_task;
  v_spec jsonb := p_spec.spec;
  v_reconcile jsonb := p_spec.spec -> 'reconcile';
  v_result text := p_report ->> 'result';
  v_status integer := (p_report ->> 'status')::integer;
  v_asked interval := pawl_private.report_seconds(p_report, 'retry_after');
  v_body jsonb := p_report -> 'body';
  v_answer jsonb;
  v_verdict text;
  v_next interval;
begin
  v_task.leased_until := null;
  v_task.look_at := v_task.deadline_at;
  v_task.due_at := null;
  if p_task.leased_until is not null or v_result <> 'expired' then
    v_task.tried_at := p_now;
  end if;

  if v_result in ('overdue', 'impossible') then
    v_verdict := case when v_task.status = 'pending' then 'error' else 'unknown' end;
  elsif v_result in ('postponed', 'released') then
    -- There was no attempt.
    v_task.due_at := p_now + coalesce(pawl_private.report_seconds(p_report, 'seconds'), interval '0');
    v_task.tried_at := p_task.tried_at;
    if p_kind = 'reconcile' then
      v_task.checks := greatest(v_task.checks - 1, 0);
      return v_task;
    end if;
    v_task.tries := greatest(v_task.tries - 1, 0);
    if v_task.status = 'sent' and v_task.tries = 0 then
      v_task.status := 'pending';
      v_task.sent_at := null;
    end if;
    return v_task;
  elsif v_task.topic is not null then
    v_verdict := case
      when v_result = 'completed' then 'done'
      when v_task.tries < (v_spec ->> 'max')::integer and (v_result <> 'failed' or coalesce((p_report ->> 'retryable')::boolean, false))
        then 'retry'
      when v_result = 'failed' then coalesce(p_report ->> 'outcome', 'error')
      else 'unknown'
    end;
    if v_verdict = 'retry' then
      v_task.status := case when v_result = 'failed' then v_task.status else 'sent' end;
      v_task.due_at := p_now + case
        when p_report ->> 'retry_in' is not null then pawl_private.report_seconds(p_report, 'retry_in')
        when v_result = 'expired' then interval '0'
        else pawl_private.backoff(v_spec, v_task.tries, null)
      end;
      return v_task;
    end if;
  elsif p_kind = 'reconcile' then
    if v_result = 'answered' and v_status not between 500 and 599 and v_status not in (408, 425, 429) then
      v_answer := pawl_private.task_document(p_task, pawl_private.task_step(p_task)) || jsonb_build_object(
        'status', v_status, 'headers', coalesce(p_report -> 'headers', '{}'), 'body', v_body);
      v_verdict := case
        when pawl_private.holds_or_not(v_answer, v_reconcile -> 'done') then 'done'
        when v_reconcile ? 'failed' and pawl_private.holds_or_not(v_answer, v_reconcile -> 'failed') then 'error'
        when v_reconcile ? 'absent' and pawl_private.holds_or_not(v_answer, v_reconcile -> 'absent') then 'absent'
      end;
    end if;
    v_task.tried_at := p_task.tried_at; -- That of the call, whose effect is looked for.
    if v_verdict = 'done' then
      begin
        v_body := coalesce(pawl_private.value(v_answer, v_reconcile -> 'result'), 'null');
      exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
        p_report := p_report || jsonb_build_object('error', left('result: ' || sqlerrm, 1000));
        v_body := 'null';
      end;
    elsif v_verdict = 'absent' and p_now >= p_task.tried_at + pawl_private.duration(v_reconcile ->> 'absent_after') then
      -- It had no effect, and can have none any more. It begins again, under a fresh key.
      v_task.status := 'pending';
      v_task.connection := p_spec.connection;
      v_task.key_number := p_task.key_number + 1;
      v_task.tries := 0;
      v_task.checks := 0;
      v_task.sent_at := null;
      v_task.due_at := p_now;
      return v_task;
    elsif v_verdict is distinct from 'error' then
      v_next := pawl_private.duration(coalesce(v_reconcile -> 'every' ->> p_task.checks, v_reconcile -> 'every' ->> -1));
      if v_verdict = 'absent' then
        -- An effect may still appear. So it is looked for as before, and when it has been absent for long enough.
        v_next := least(v_next, p_task.tried_at + pawl_private.duration(v_reconcile ->> 'absent_after') - p_now);
      end if;
      v_task.due_at := p_now + greatest(v_next, v_asked);
      return v_task;
    end if;
  else
    v_verdict := case
      when v_result = 'refused' then 'again'
      when v_result in ('lost', 'expired') then 'ambiguous'
      when v_status in (429, 503) then 'again'
      when v_status >= 500 or v_status in (408, 425) then 'ambiguous'
      when not v_spec ? 'success' then case when v_status between 200 and 299 then 'done' else 'error' end
      when pawl_private.holds_or_not(
        pawl_private.task_document(p_task, pawl_private.task_step(p_task)) || jsonb_build_object(
          'status', v_status, 'headers', coalesce(p_report -> 'headers', '{}'), 'body', v_body),
        v_spec -> 'success') then 'done'
      else 'error'
    end;
    if v_verdict = 'again' then
      v_task.tries := greatest(v_task.tries - 1, 0);
      if v_task.tries = 0 then
        v_task.status := 'pending';
        v_task.sent_at := null;
      end if;
      v_task.due_at := p_now + pawl_private.backoff(v_spec, least(v_task.attempts, 30), v_asked);
      return v_task;
    elsif v_verdict = 'ambiguous' then
      if v_spec ? 'header' and v_task.tries < (v_spec ->> 'max')::integer then
        v_next := pawl_private.backoff(v_spec, v_task.tries, v_asked);
        if p_now + v_next + pawl_private.duration(v_spec ->> 'timeout') < pawl_private.key_holds_until(v_task, v_spec) then
          v_task.status := 'sent';
          v_task.due_at := p_now + v_next;
          return v_task;
        end if;
      end if;
      if v_reconcile is not null then
        v_task.status := 'reconciling';
        v_task.connection := v_reconcile ->> 'connection';
        v_task.checks := 0;
        v_task.due_at := p_now + pawl_private.duration(v_reconcile -> 'every' ->> 0);
        return v_task;
      end if;
      v_verdict := 'unknown';
    end if;
  end if;

  v_task.status := v_verdict;
  v_task.look_at := null;
  v_task.ended_at := p_now;
  if pawl_private.is_too_deep(jsonb_build_object('body', v_body)) then
    -- No guard and no context takes it. What happened, happened.
    v_body := 'null';
    p_report := p_report || '{"error": "too-deep"}';
  end if;
  v_task.result := pawl_private.task_result(p_task, v_status, p_report -> 'headers', v_body, p_report -> 'error');
  return v_task;
end
$$;
-- +goose StatementEnd

-- 80_task/private_operate.sql

-- task_stays says where an instance is with regard to a task that has ended: 'own' in the stay in the state that started
-- it, 'outcome' in the stay in the state that its outcome led to, or 'elsewhere'.
-- +goose StatementBegin
create function pawl_private.task_stays(p_task pawl.task, p_instance pawl.instance) returns text
language plpgsql stable
as $$
begin
  return coalesce((
    select case when p_instance.state = p_task.state then 'own' else 'outcome' end
    from pawl.history h
    where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id
      and h.version = case when p_task.result_version is null and p_task.left_at is null then p_task.entered_version else p_task.result_version end
      and h.to_state = p_instance.state and coalesce(h.entered_at, h.at) = p_instance.state_changed_at
  ), 'elsewhere');
end
$$;
-- +goose StatementEnd

-- operating checks what an operator gives with each act on a task, and for whom the session may act.
-- Returns: the caller for the audit: p_caller only if the session is one of the service
-- Raises:  PW400; what pawl_private.bound_actor raises
-- +goose StatementBegin
create function pawl_private.operating(p_tenant text, p_actor text, p_reason text, p_caller jsonb) returns jsonb
language plpgsql stable
as $$
declare
  v_actor text;
begin
  perform pawl_private.refuse_malformed(pawl_private.force_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => null, p_correlation_id => null, p_reason => p_reason, p_expected => null));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  return coalesce(case when pawl_private.is_service() then p_caller end, pawl_private.session_caller(v_actor));
end
$$;
-- +goose StatementEnd

-- lock_task locks the instance of a task, and then the task, for an operator.
-- Raises: PW40K task-not-found
-- +goose StatementBegin
create function pawl_private.lock_task(p_tenant text, p_id uuid, out task pawl.task, out instance pawl.instance)
language plpgsql volatile
as $$
begin
  select t.* into task from pawl.task t where t.tenant_id = p_tenant and t.id = p_id;
  if not found then
    perform pawl_private.raise_condition('task-not-found', null);
  end if;
  select i.* into instance from pawl.instance i where i.tenant_id = p_tenant and i.id = task.instance_id for no key update;
  select t.* into strict task from pawl.task t where t.tenant_id = p_tenant and t.id = p_id for update;
end
$$;
-- +goose StatementEnd

-- task_digest is a task for the audit.
-- +goose StatementBegin
create function pawl_private.task_digest(p_task pawl.task) returns jsonb
language sql stable
as $$
  select jsonb_build_object(
    'instance', p_task.instance_id, 'workflow', p_task.workflow, 'state', p_task.state, 'name', p_task.name, 'status', p_task.status,
    'attempts', p_task.attempts)
$$;
-- +goose StatementEnd

-- reopen_task has a task that has ended go on, with its whole deadline. The caller holds the locks of its instance and of
-- the task.
-- p_how:   retry: it is tried again, from the beginning; reconcile: what became of its last attempt is asked. A task for
--          which that is asked already is asked at once
-- Returns: whether the outcome will move the instance
-- Raises:  PW409 instance-final; PW40D task-ended, task-open
-- Writes:  task, audit
-- +goose StatementBegin
create function pawl_private.reopen_task(p_task pawl.task, p_instance pawl.instance, p_how text, p_reason text, p_caller jsonb)
returns boolean
language plpgsql volatile
as $$
declare
  v_spec pawl.workflow_task;
  v_stays text;
  v_now timestamptz := pawl.now();
  v_waits boolean := p_how = 'reconcile' and p_task.status = 'reconciling' and p_task.due_at is not null;
begin
  if p_instance.id is null or p_instance.status <> 'active' then
    perform pawl_private.raise_condition('instance-final', 'the instance is final, so that its tasks are not tried again');
  elsif p_task.ended_at is null and not v_waits then
    perform pawl_private.raise_condition('task-open', null);
  elsif p_task.status = 'cancelled' or p_task.status = 'done' and p_task.left_at is null and (p_how = 'retry' or p_task.problem is null) then
    perform pawl_private.raise_condition('task-ended', format('the task was %s', p_task.status));
  elsif p_task.compensates is not null then
    perform pawl_private.raise_condition('task-ended', 'a compensation is tried again by its name: see compensations of the instance');
  elsif p_how = 'reconcile' and p_task.sent_at is null then
    perform pawl_private.raise_condition('task-ended', 'nothing was sent, so that there is nothing to ask');
  end if;
  v_stays := pawl_private.task_stays(p_task, p_instance);
  if v_waits then
    update pawl.task t set due_at = v_now where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  else
    v_spec := pawl_private.task_spec(p_task);
    update pawl.task t
    set
      status = case p_how when 'retry' then 'pending' else 'reconciling' end,
      connection = case p_how when 'retry' then v_spec.connection else v_spec.spec -> 'reconcile' ->> 'connection' end,
      ended_at = null, problem = null, tries = case p_how when 'retry' then 0 else t.tries end, checks = 0,
      sent_at = case p_how when 'retry' then null else t.sent_at end,
      key_number = t.key_number + case when p_how = 'retry' and t.connection is not null and (t.status = 'error' or exists (
        select from pawl.compensation c where c.tenant_id = t.tenant_id and c.task_id = t.id and c.status = 'undone')) then 1 else 0 end,
      left_at = case when v_stays = 'own' then null else coalesce(t.left_at, v_now) end, reopened = true, due_at = v_now,
      look_at = v_now + v_spec.deadline, deadline_at = v_now + v_spec.deadline
    where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  end if;
  perform pawl_private.task_notify(p_task.tenant_id, p_task.topic);
  perform pawl_private.audit(
    p_tenant => p_task.tenant_id, p_caller => p_caller, p_action => 'task.' || p_how, p_target => p_task.id::text, p_reason => p_reason,
    p_before => pawl_private.task_digest(p_task));
  return v_stays <> 'elsewhere';
end
$$;
-- +goose StatementEnd

-- 80_task/private_settle.sql

-- keep_task writes a task as task_decide has returned it.
-- Writes: task
-- +goose StatementBegin
create function pawl_private.keep_task(p_task pawl.task) returns void
language plpgsql volatile
as $$
begin
  update pawl.task t
  set status = p_task.status, connection = p_task.connection, tries = p_task.tries, key_number = p_task.key_number, checks = p_task.checks,
    sent_at = p_task.sent_at, tried_at = p_task.tried_at, due_at = p_task.due_at, look_at = p_task.look_at,
    leased_until = p_task.leased_until, result = p_task.result, ended_at = p_task.ended_at, problem = p_task.problem
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
end
$$;
-- +goose StatementEnd

-- outcome_event is the event that the outcome of a task fires, in the state that it is fired in; null if there is none: the
-- state was left, and no operator has the task tried again in a state that its outcome led to.
-- +goose StatementBegin
create function pawl_private.outcome_event(p_task pawl.task, p_outcome text) returns text
language plpgsql stable
as $$
declare
  v_event text := p_outcome || ':' || p_task.name;
  v_instance pawl.instance;
begin
  if p_task.left_at is null then
    return v_event;
  elsif not p_task.reopened then
    return null;
  end if;
  select i.* into v_instance from pawl.instance i where i.tenant_id = p_task.tenant_id and i.id = p_task.instance_id;
  return case pawl_private.task_stays(p_task, v_instance)
    when 'own' then v_event
    when 'outcome' then v_event || '@' || p_task.state
  end;
end
$$;
-- +goose StatementEnd

-- fire_outcomes moves instances by what became of tasks. The caller holds the locks of the instances, each of which has
-- one task at most in a call. If a step is refused, the event of 'unknown' is fired instead, and the task keeps the problem;
-- its status still says what happened outside. If that is refused, too, the instance stays where it is.
-- p_kind: of the steps in history
-- Writes: what fire writes, task
-- +goose StatementBegin
create function pawl_private.fire_outcomes(p_tasks pawl.task[], p_events text[], p_kind text) returns void
language plpgsql volatile
as $$
declare
  v_size integer := coalesce(cardinality(p_tasks), 0);
  v_codes text[] := array_fill(''::text, array[v_size]);
  v_versions bigint[] := array_fill(null::bigint, array[v_size]);
  v_outcome pawl.outcome;
  v_task pawl.task;
begin
  if v_size = 0 then
    return;
  end if;
  begin
    for v_outcome in
      select o.*
      from pawl.fire(
        p_tenants => array(select t.tenant_id::text from unnest(p_tasks) t), p_ids => array(select t.instance_id from unnest(p_tasks) t),
        p_events => p_events, p_payloads => array(select t.result::jsonb from unnest(p_tasks) t),
        p_keys => array_fill(''::text, array[v_size]), p_expected => array_fill('*'::text, array[v_size]),
        p_checked => array_fill('*'::text, array[v_size]), p_actors => array(select 'task:' || t.name from unnest(p_tasks) t),
        p_reasons => array_fill(''::text, array[v_size]), p_correlation_ids => array_fill(''::text, array[v_size]),
        p_traceparents => array(select pawl_private.own_traceparent(pawl_private.task_traceparent(t)) from unnest(p_tasks) t),
        p_verified => true, p_history_keys => array(select 'task:' || t.id from unnest(p_tasks) t), p_kind => p_kind) o
    loop
      v_codes[v_outcome.ordinal] := v_outcome.code;
      v_versions[v_outcome.ordinal] := (v_outcome.instance).version;
    end loop;
  exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
    if v_size > 1 then
      for v_i in 1 .. v_size loop
        perform pawl_private.fire_outcomes(p_tasks[v_i:v_i], p_events[v_i:v_i], p_kind);
      end loop;
      return;
    end if;
    v_codes[1] := 'guard-error';
  end;
  for v_i in 1 .. v_size loop
    v_task := p_tasks[v_i];
    if v_codes[v_i] = 'applied' then
      update pawl.task t
      set result_version = v_versions[v_i], reopened = false, problem = null, left_at = case p_kind when 'result' then null else t.left_at end
      where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
      if v_task.status = 'done' and p_kind = 'result' then
        update pawl.compensation c set version = v_versions[v_i] where c.tenant_id = v_task.tenant_id and c.task_id = v_task.id;
      end if;
    elsif p_events[v_i] not like 'unknown:%' and p_kind = 'result' then
      v_task.result := v_task.result || jsonb_build_object('error', v_codes[v_i]);
      v_task.problem := v_codes[v_i];
      perform pawl_private.keep_task(v_task);
      perform pawl_private.fire_outcomes(array[v_task], array['unknown' || substr(p_events[v_i], position(':' in p_events[v_i]))], p_kind);
      update pawl.task t set problem = v_codes[v_i] where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
    else
      update pawl.task t set problem = v_codes[v_i] where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
    end if;
  end loop;
end
$$;
-- +goose StatementEnd

-- fire_late fires the event that a definition names for a task that was done after its state was left, or may have been.
-- Returns: whether the present state accepted it
-- +goose StatementBegin
create function pawl_private.fire_late(p_task pawl.task, p_event text) returns boolean
language plpgsql volatile
as $$
declare
  v_outcome pawl.outcome;
begin
  select o.* into v_outcome
  from pawl.fire(
    p_tenants => array[p_task.tenant_id::text], p_ids => array[p_task.instance_id], p_events => array[p_event],
    p_payloads => array[p_task.result::jsonb], p_keys => '{""}', p_expected => '{*}', p_checked => '{*}',
    p_actors => array['task:' || p_task.name], p_reasons => '{""}', p_correlation_ids => '{""}',
    p_traceparents => array[pawl_private.own_traceparent(pawl_private.task_traceparent(p_task))],
    p_verified => true, p_history_keys => array['task:' || p_task.id]) o;
  if v_outcome.code = 'applied' then
    update pawl.task t set result_version = (v_outcome.instance).version where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  end if;
  return v_outcome.code = 'applied';
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
  return false;
end
$$;
-- +goose StatementEnd

-- task_ended does what the end of a task brings, beside the step of its outcome: of a compensation, the step that it
-- undoes is noted; then undoing goes on.
-- Writes: what undo_next writes
-- +goose StatementBegin
create function pawl_private.task_ended(p_task pawl.task, p_now timestamptz) returns void
language plpgsql volatile
as $$
begin
  if p_task.compensates is not null then
    update pawl.compensation c
    set
      status = case p_task.status when 'done' then 'undone' when 'cancelled' then 'registered' else 'failed' end,
      reason = case when p_task.status <> 'done' then left(coalesce(p_task.result ->> 'error', 'the compensation ended as ' || p_task.status), 1000) end
    where c.tenant_id = p_task.tenant_id and c.instance_id = p_task.instance_id and c.number = p_task.compensates
      and c.status not in ('skipped', 'undone');
  end if;
  perform pawl_private.undo_next(p_task.tenant_id, p_task.instance_id, p_now);
end
$$;
-- +goose StatementEnd

-- settle_task decides what a report makes of one task, and writes it. The caller holds the instance's lock.
-- p_kind:  of the attempt
-- Returns: the task as it became, and the event that its end fires; null if it fires none, or goes on
-- Writes:  task, task_attempt
-- +goose StatementBegin
create function pawl_private.settle_task(
  p_task pawl.task, p_kind text, p_report jsonb, p_now timestamptz, out task pawl.task, out event text
)
language plpgsql volatile
as $$
declare
  v_spec pawl.workflow_task := pawl_private.task_spec(p_task);
begin
  task := pawl_private.task_decide(p_task => p_task, p_spec => v_spec, p_kind => p_kind, p_report => p_report, p_now => p_now);
  if p_task.left_at is not null and not p_task.reopened and task.status = 'pending' and task.ended_at is null then
    -- Its state was left meanwhile, and it surely had no effect.
    task.status := 'cancelled';
    task.due_at := null;
    task.look_at := null;
    task.ended_at := p_now;
  end if;
  perform pawl_private.keep_task(task);
  update pawl.task_attempt a
  set ended_at = p_now, result = p_report ->> 'result', status = (p_report ->> 'status')::integer, error = left(p_report ->> 'error', 1000)
  where a.tenant_id = p_task.tenant_id and a.task_id = p_task.id and a.number = p_task.attempts
    and (a.ended_at is null or a.result = 'expired' and p_report ->> 'result' not in ('expired', 'overdue', 'impossible'));
  if task.ended_at is null then
    perform pawl_private.task_notify(task.tenant_id, task.topic) where task.due_at <= p_now;
  elsif task.status <> 'cancelled' then
    event := case
      when task.compensates is null then pawl_private.outcome_event(task, task.status)
      when task.status = 'done' and exists (
        select from pawl.undoing u where u.tenant_id = task.tenant_id and u.instance_id = task.instance_id
      ) then 'compensated:' || task.name
    end;
  end if;
end
$$;
-- +goose StatementEnd

-- is_said says whether an attempt was reported with an error. What came too late was added to it.
-- +goose StatementBegin
create function pawl_private.is_said(p_kept text, p_error text) returns boolean
language plpgsql immutable parallel safe
as $$
begin
  p_error := left(p_error, 1000);
  return p_kept is not distinct from p_error or starts_with(p_kept, concat_ws('; ', p_error, 'late: '));
end
$$;
-- +goose StatementEnd

-- settle_tasks settles reports of tasks, as pawl.task_settle does. It locks the instances first. A heartbeat moves nothing,
-- and so locks no instance.
-- p_leases: null for task_sweep, which settles what it must look at, whatever the lease is
-- Returns: one row per report, in no order. code may also be 'too-early', for task_sweep
-- +goose StatementBegin
create function pawl_private.settle_tasks(p_tenants text[], p_ids uuid[], p_leases uuid[], p_reports jsonb[])
returns setof pawl.task_settled
language plpgsql volatile
as $$
declare
  v_now timestamptz;
  v_task pawl.task;
  v_attempt pawl.task_attempt;
  v_settled record;
  v_report jsonb;
  v_result text;
  v_lease interval;
  v_code text;
  v_codes text[] := '{}';
  v_firing pawl.task[] := '{}';
  v_events text[] := '{}';
  v_undone pawl.task[] := '{}';
  v_over pawl.task[] := '{}';
  v_ended uuid[] := '{}';
  v_one pawl.task;
  v_last integer := coalesce(cardinality(p_ids), 0);
  v_instances uuid[] := array(
    select (select t.instance_id from pawl.task t where t.tenant_id = c.tenant and t.id = c.id)
    from unnest(p_tenants, p_ids) with ordinality as c (tenant, id, ordinal)
    order by c.ordinal);
begin
  perform i.found
  from (
    select distinct c.instance_id, c.tenant
    from unnest(p_tenants, v_instances, p_reports) as c (tenant, instance_id, report)
    where c.instance_id is not null and c.report ->> 'result' <> 'heartbeat'
    order by c.instance_id, c.tenant
  ) c
  cross join lateral (
    select true as found
    from pawl.instance i
    where i.tenant_id = c.tenant and i.id = c.instance_id
    limit 1
    for no key update
  ) i;
  v_now := pawl.now();

  for v_i in 1 .. v_last + 1 loop
    if v_i > v_last or v_instances[v_i] = any (v_ended) then
      -- The instances of the tasks so far are moved before the next task of one of them is decided.
      perform pawl_private.fire_outcomes(v_firing, v_events, 'result');
      perform pawl_private.fire_outcomes(v_undone, array(select 'compensated:' || u.name from unnest(v_undone) u), 'compensated');
      foreach v_one in array v_over loop
        if v_one.left_at is not null and not v_one.reopened and v_one.compensates is null and v_one.status in ('done', 'unknown')
          and not exists (select from pawl.undoing u where u.tenant_id = v_one.tenant_id and u.instance_id = v_one.instance_id) then
          perform pawl_private.fire_late(v_one, w.spec ->> 'late')
          from pawl_private.task_spec(v_one) w
          where w.spec ? 'late';
        end if;
        perform pawl_private.task_ended(v_one, v_now);
      end loop;
      v_firing := '{}';
      v_events := '{}';
      v_undone := '{}';
      v_over := '{}';
      v_ended := '{}';
    end if;
    exit when v_i > v_last;
    v_report := p_reports[v_i];
    v_result := v_report ->> 'result';
    select t.* into v_task from pawl.task t where t.tenant_id = p_tenants[v_i] and t.id = p_ids[v_i] for update;
    if not found then
      v_codes := v_codes || 'task-not-found'::text;
      continue;
    end if;
    select a.* into v_attempt
    from pawl.task_attempt a
    where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.number = v_task.attempts;
    v_code := case
      when p_leases is null then case
        when v_task.ended_at is not null then 'task-ended'
        when v_task.look_at > v_now then 'too-early'
        else 'settled'
      end
      when v_task.lease = p_leases[v_i] and v_attempt.result = v_result and case v_result
        when 'completed' then v_task.result -> 'body' = coalesce(v_report -> 'body', 'null')
        when 'failed' then pawl_private.is_said(v_attempt.error, v_report ->> 'error')
        else true
      end then 'repeated'
      when v_task.ended_at is not null then 'task-ended'
      -- A lease that ran out still holds. One that was given back, or whose attempt has failed, does not.
      when v_task.lease is null or v_task.lease is distinct from p_leases[v_i] or v_attempt.result <> 'expired'
        or v_result = 'heartbeat' and v_task.leased_until is null and v_task.status <> 'sent' then 'lease-superseded'
      when v_result = 'completed' and octet_length((v_report -> 'body')::text) > (select g.payload_limit from pawl.setting g)
        then 'payload-too-large'
      else 'settled'
    end;
    v_codes := v_codes || v_code;
    if v_code = 'settled' and v_result = 'heartbeat' then
      v_lease := coalesce(pawl_private.report_seconds(v_report, 'lease'), v_task.leased_for);
      update pawl.task t
      set leased_until = least(v_now + v_lease, t.deadline_at), look_at = least(v_now + v_lease, t.deadline_at), leased_for = v_lease,
        progress = coalesce(v_report -> 'progress', t.progress), due_at = null
      where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
      if v_attempt.result = 'expired' then
        -- A lease that ran out, and that nobody has superseded, holds again.
        update pawl.task_attempt a
        set ended_at = null, result = null, error = null
        where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.number = v_task.attempts;
      end if;
    elsif v_code = 'settled' then
      select s.* into v_settled from pawl_private.settle_task(v_task, v_attempt.kind, v_report, v_now) s;
      v_task := v_settled.task;
      if v_task.ended_at is not null then
        v_over := v_over || v_task;
        v_ended := v_ended || v_task.instance_id;
        if v_settled.event like 'compensated:%' then
          v_undone := v_undone || v_task;
        elsif v_settled.event is not null then
          v_firing := v_firing || v_task;
          v_events := v_events || v_settled.event;
        end if;
      end if;
    elsif v_code in ('task-ended', 'lease-superseded') and v_result <> 'heartbeat' and p_leases is not null then
      -- What comes too late is kept with its attempt. To one that was completed it would add an error that it did not have.
      update pawl.task_attempt a
      set error = left(concat_ws('; ', a.error, 'late: ' || v_result, 'status ' || (v_report ->> 'status')), 1000)
      where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.lease = p_leases[v_i]
        and a.result is distinct from 'completed' and coalesce(a.error, '') not like '%late: %';
    end if;
  end loop;
  return query select
    c.ordinal::integer, c.code, c.tenant, c.id, coalesce(t.instance_id, '00000000-0000-0000-0000-000000000000'),
    coalesce(t.status, ''), t.left_at is not null and not t.reopened, t.leased_until
  from unnest(p_tenants, p_ids, v_codes) with ordinality as c (tenant, id, code, ordinal)
  left join lateral (
    select t.* from pawl.task t where t.tenant_id = c.tenant and t.id = c.id limit 1
  ) t on true;
end
$$;
-- +goose StatementEnd

-- settle_work settles one task for a SQL caller.
-- Returns: the instance as it became; null if it was purged
-- Raises:  PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- +goose StatementBegin
create function pawl_private.settle_work(p_tenant text, p_id uuid, p_lease uuid, p_report jsonb) returns pawl.instance
language plpgsql volatile
as $$
declare
  v_settled pawl.task_settled;
  v_instance pawl.instance;
begin
  if not exists (select from pawl.task t where t.tenant_id = p_tenant and t.id = p_id and t.topic is not null) then
    perform pawl_private.raise_condition('task-not-found', null);
  end if;
  select s.* into strict v_settled from pawl_private.settle_tasks(array[p_tenant], array[p_id], array[p_lease], array[p_report]) s;
  if v_settled.code not in ('settled', 'repeated') then
    perform pawl_private.raise_condition(v_settled.code, null);
  end if;
  select i.* into v_instance from pawl.instance i where i.tenant_id = p_tenant and i.id = v_settled.instance_id;
  return v_instance;
end
$$;
-- +goose StatementEnd

-- sweep_instance settles what task_sweep has found of one instance, or lets its undoing go on. What raises, such as a step that
-- takes longer than a statement may, is put off with its problem, so that it holds up no other.
-- p_ids, p_reports: of tasks; null if undoing is to go on
-- Returns: 'swept', 'put-off', 'busy' if another transaction holds the instance, or 'timed-out': it was put off, and the
--          statement has no time left
-- Locks:   instance (for no key update, unless it is locked), undoing, compensation, task
-- +goose StatementBegin
create function pawl_private.sweep_instance(p_tenant text, p_instance_id uuid, p_ids uuid[], p_reports jsonb[], p_now timestamptz)
returns text
language plpgsql volatile
as $$
declare
  v_problem text;
  v_result text := 'put-off';
begin
  perform from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id for no key update skip locked;
  if not found then
    return 'busy';
  end if;
  begin
    if p_ids is null then
      perform pawl_private.undo_next(p_tenant, p_instance_id, p_now);
    else
      perform pawl_private.settle_tasks(array_fill(p_tenant, array[cardinality(p_ids)]), p_ids, null, p_reports);
    end if;
    return 'swept';
  exception
    when query_canceled then
      v_problem := sqlerrm;
      v_result := 'timed-out';
    when others then
      v_problem := sqlerrm;
  end;
  if p_ids is null then
    perform pawl_private.put_off_undoing(p_tenant, p_instance_id, v_problem, p_now);
  else
    update pawl.task t
    set problem = case when t.problem like 'input: %' then t.problem else left(v_problem, 1000) end, look_at = p_now + interval '1 minute'
    where t.tenant_id = p_tenant and t.id = any (p_ids) and t.ended_at is null;
  end if;
  return v_result;
end
$$;
-- +goose StatementEnd

-- 80_task/private_undo.sql

-- fire_undone fires the event that ends the undoing of steps.
-- p_outcome: done or error. p_refused: why done was refused; null if it was not
-- Returns: null, or why the step was refused
-- Writes: what fire writes
-- +goose StatementBegin
create function pawl_private.fire_undone(p_tenant text, p_instance_id uuid, p_outcome text, p_refused text) returns text
language plpgsql volatile
as $$
declare
  v_last pawl.compensation;
  v_steps jsonb;
  v_code text;
begin
  select c.* into v_last
  from pawl.compensation c
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id and (p_outcome = 'done' or c.status = 'failed')
  order by c.number
  limit 1;
  select coalesce(jsonb_agg(jsonb_build_object('name', c.name, 'status', c.status) order by c.number), '[]') into v_steps
  from pawl.compensation c
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id;
  select o.code into strict v_code
  from pawl.fire(
    p_tenants => array[p_tenant], p_ids => array[p_instance_id], p_events => array[p_outcome || ':compensate'],
    p_payloads => array[jsonb_build_object(
      'name', 'compensate', 'task', v_last.undone_by, 'error', coalesce(p_refused, v_last.reason), 'steps', v_steps)],
    p_keys => '{""}', p_expected => '{*}', p_checked => '{*}', p_actors => '{task:compensate}', p_reasons => '{""}',
    p_correlation_ids => '{""}',
    p_traceparents => array[pawl_private.own_traceparent(pawl_private.traceparent_of(p_tenant, p_instance_id, null))], p_verified => true, p_kind => 'result') o;
  return nullif(v_code, 'applied');
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
  return 'guard-error';
end
$$;
-- +goose StatementEnd

-- put_off_undoing notes why the undoing of steps cannot go on, and has task_sweep look at it again: after a second first, and
-- then after twice as long each time, up to an hour.
-- Writes: undoing
-- +goose StatementBegin
create function pawl_private.put_off_undoing(p_tenant text, p_instance_id uuid, p_problem text, p_now timestamptz) returns void
language sql volatile
as $$
  update pawl.undoing u
  set problem = left(p_problem, 1000), tried = u.tried + 1,
    due_at = p_now + least(interval '1 second' * 2 ^ least(u.tried, 12), interval '1 hour')
  where u.tenant_id = p_tenant and u.instance_id = p_instance_id
$$;
-- +goose StatementEnd

-- undo_next goes on with undoing the steps of an instance that is in a state that undoes them. It waits while a task is
-- under way, and then takes the newest step that is not undone. When none is left, the state's done or error is fired. If
-- done is refused, error is fired. If that is refused, too, task_sweep tries again later.
-- The caller holds the instance's lock.
-- Locks:  undoing, compensation, task
-- Writes: undoing, compensation, task, what fire writes
-- +goose StatementBegin
create function pawl_private.undo_next(p_tenant text, p_instance_id uuid, p_now timestamptz) returns void
language plpgsql volatile
as $$
declare
  v_instance pawl.instance;
  v_on_failure text;
  v_step pawl.compensation;
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_failed boolean;
  v_problem text;
  v_at timestamptz;
begin
  update pawl.undoing u set due_at = null where u.tenant_id = p_tenant and u.instance_id = p_instance_id;
  if not found then
    return;
  end if;
  select i.* into strict v_instance from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id;
  select s.undoing into strict v_on_failure
  from pawl.workflow_state s
  where s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = v_instance.state;
  loop
    if exists (
      select from pawl.task t where t.tenant_id = p_tenant and t.instance_id = p_instance_id and t.ended_at is null
    ) then
      return;
    end if;
    v_failed := exists (
      select from pawl.compensation c where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.status = 'failed');
    v_step := null;
    if not v_failed or v_on_failure = 'continue' then
      select c.* into v_step
      from pawl.compensation c
      where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.status = 'registered'
      order by c.number desc
      limit 1
      for update;
    end if;
    exit when v_step.number is null;
    select w.* into strict v_spec
    from pawl.workflow_task w
    where w.workflow = v_step.workflow and w.workflow_version = v_step.workflow_version and w.position = v_step.position;
    if v_step.task_id is not null then
      select t.* into strict v_task from pawl.task t where t.tenant_id = p_tenant and t.id = v_step.task_id;
      if v_task.status in ('error', 'cancelled') then
        update pawl.compensation c set status = 'void'
        where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number;
        continue;
      elsif v_task.status = 'unknown' and v_spec.spec ->> 'if_unknown' = 'park' then
        update pawl.compensation c set status = 'failed', reason = 'it is unknown whether there is an effect to undo'
        where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number;
        continue;
      end if;
    end if;
    -- It begins after the step that it follows, which was made after p_now was read.
    select greatest(h.at, p_now) into strict v_at
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_instance_id and h.version = v_instance.version;
    update pawl.compensation c
    set undone_by = pawl_private.arm_task(v_instance, v_spec, v_step.version, v_at, v_step.number)
    where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number;
    return;
  end loop;

  v_problem := pawl_private.fire_undone(p_tenant, p_instance_id, case when v_failed then 'error' else 'done' end, null);
  if v_problem is not null and not v_failed then
    v_problem := pawl_private.fire_undone(p_tenant, p_instance_id, 'error', v_problem);
  end if;
  if v_problem is not null then
    perform pawl_private.put_off_undoing(p_tenant, p_instance_id, v_problem, p_now);
  end if;
end
$$;
-- +goose StatementEnd

-- 80_task/claim_work.sql

-- claim_work is for workers on the same database. It claims tasks of a topic in the caller's transaction: until that commits
-- nobody else can claim them, and if it is rolled back, they were never claimed. Until then no step is made of their
-- instances either. A worker that completes in the same transaction cannot lose its lease.
-- Returns: the tasks, each with its input and its lease
-- Raises:  what pawl_private.bound_actor raises; PW400
-- Locks:   instance (for no key update, those that are not locked), task (those that are not locked)
-- Writes:  task, task_attempt, compensation
-- +goose StatementBegin
create function pawl.claim_work(
  p_topic text, p_worker text default session_user, p_max integer default 1, p_lease interval default null,
  p_tenant text default 'default'
) returns setof pawl.work
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  return query select w.* from pawl_private.work_claim(p_tenant, p_topic, p_worker, p_max, p_lease, p_holds => true) w;
end
$$;
-- +goose StatementEnd

-- 80_task/compensation_mark.sql

-- compensation_mark says of the newest step of a name that is not undone and could not be, that it is to be tried again, or
-- that it is skipped. Undoing goes on when the instance enters a state that undoes steps.
-- p_mark: retry or skip
-- Returns: the step as it became
-- Raises:  what pawl_private.operating raises; PW40K task-not-found if there is no such step; PW40D task-ended if it is undone already, or is being
--          undone; PW400
-- Locks:   instance (for no key update), then compensation
-- Writes:  compensation, audit
-- +goose StatementBegin
create function pawl.compensation_mark(
  p_tenant text, p_instance_id uuid, p_name text, p_mark text, p_reason text, p_actor text default session_user,
  p_caller jsonb default null
) returns pawl.compensation
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_step pawl.compensation;
  v_marked pawl.compensation;
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  perform pawl_private.refuse_malformed(
    case when p_mark not in ('retry', 'skip') or p_mark is null then 'a compensation is marked as retry or skip' end);
  perform from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id for no key update;
  select c.* into v_step
  from pawl.compensation c
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.name = p_name
  order by c.status in ('undone', 'void', 'skipped'), c.number desc
  limit 1
  for update;
  if not found then
    perform pawl_private.raise_condition('task-not-found', format('the instance has no step %s that can be undone', left(p_name, 64)));
  elsif v_step.status in ('undone', 'void') or v_step.status = 'skipped' and p_mark = 'skip' then
    perform pawl_private.raise_condition('task-ended', format('the step %s is %s already', v_step.name, v_step.status));
  elsif exists (
    select from pawl.task t where t.tenant_id = p_tenant and t.id = v_step.undone_by and t.ended_at is null
  ) then
    perform pawl_private.raise_condition('task-open', null);
  end if;
  update pawl.compensation c
  set status = case p_mark when 'skip' then 'skipped' else 'registered' end, reason = case p_mark when 'skip' then p_reason end
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number
  returning c.* into v_marked;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'compensation.' || p_mark,
    p_target => p_instance_id::text, p_reason => p_reason,
    p_before => jsonb_build_object('name', v_step.name, 'number', v_step.number, 'status', v_step.status));
  return v_marked;
end
$$;
-- +goose StatementEnd

-- 80_task/complete_work.sql

-- complete_work completes a task in the caller's transaction, and moves its instance. If the state was left meanwhile, the
-- instance is as it was, and the task is late.
-- p_result: what the definition reads as $.payload.body
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
-- +goose StatementBegin
create function pawl.complete_work(
  p_id uuid, p_lease uuid, p_result jsonb default '{}', p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  if octet_length(p_result::text) > (select g.payload_limit from pawl.setting g) then
    perform pawl_private.raise_condition('payload-too-large', 'the result is larger than the limit of payloads');
  elsif p_result is null or pawl_private.is_too_deep(jsonb_build_object('body', p_result)) then
    perform pawl_private.refuse_malformed('a result is a JSON value, nested at most 63 deep');
  end if;
  return pawl_private.settle_work(p_tenant, p_id, p_lease, jsonb_build_object('result', 'completed', 'body', p_result));
end
$$;
-- +goose StatementEnd

-- 80_task/fail_work.sql

-- fail_work says that a task was not done, in the caller's transaction.
-- p_retryable: whether it may be tried again, if its definition allows that. p_retry_in: not before; null for a random wait
-- p_outcome:   how it ends if there is no other attempt: error, as by default, or unknown
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
-- +goose StatementBegin
create function pawl.fail_work(
  p_id uuid, p_lease uuid, p_error text, p_retryable boolean default false, p_retry_in interval default null,
  p_outcome text default null, p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  if p_outcome not in ('error', 'unknown') then
    perform pawl_private.refuse_malformed('the outcome of a failed task is error or unknown');
  end if;
  return pawl_private.settle_work(p_tenant, p_id, p_lease, jsonb_strip_nulls(jsonb_build_object(
    'result', 'failed', 'error', left(p_error, 1000), 'retryable', p_retryable,
    'retry_in', greatest(extract(epoch from p_retry_in), 0), 'outcome', p_outcome)));
end
$$;
-- +goose StatementEnd

-- 80_task/heartbeat_work.sql

-- heartbeat_work extends a lease, by as much as its definition says.
-- p_progress: what people see of it; null to leave it
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
-- +goose StatementBegin
create function pawl.heartbeat_work(
  p_id uuid, p_lease uuid, p_progress jsonb default null, p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  if octet_length(p_progress::text) > 4096 then
    perform pawl_private.refuse_malformed('progress has at most 4096 bytes');
  end if;
  return pawl_private.settle_work(p_tenant, p_id, p_lease, jsonb_build_object('result', 'heartbeat')
    || case when p_progress is not null then jsonb_build_object('progress', p_progress) else '{}' end);
end
$$;
-- +goose StatementEnd

-- 80_task/release_work.sql

-- release_work gives a task back, so that others may claim it at once. It costs no attempt.
-- Returns: the instance as it became
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
-- Locks:   instance (for no key update), then task
-- Writes:  as task_settle
-- +goose StatementBegin
create function pawl.release_work(
  p_id uuid, p_lease uuid, p_tenant text default 'default'
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.bound_actor(p_tenant, session_user);
  return pawl_private.settle_work(p_tenant, p_id, p_lease, '{"result": "released"}');
end
$$;
-- +goose StatementEnd

-- 80_task/task_claim.sql

-- task_claim claims tasks that call a service, the longest due first: it records that they are sent. The caller must commit
-- before it calls. Each lane is a tenant, a connection and how many to claim of it. A task whose request cannot be computed,
-- or whose key the service may have forgotten, is not returned, and is left to task_sweep.
-- p_claimer: who claims, for people
-- Returns: what to call. path: an array of texts, which stand for themselves, and of arrays of one text, which was
--          interpolated and is to be percent-encoded. idempotency_header: '' for none. body: null for none. timeout_seconds: of
--          the attempt, so that it ends by the deadline
-- Locks:   task (those that are not locked)
-- Writes:  task, task_attempt, compensation
-- +goose StatementBegin
create function pawl.task_claim(p_tenants text[], p_connections text[], p_limits integer[], p_claimer text) returns setof pawl.task_call
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of the lane, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_request jsonb;
  v_timeout interval;
  v_step pawl.history;
begin
  for v_lane in 1 .. coalesce(cardinality(p_tenants), 0) loop
    for v_task in
      select t.*
      from pawl.task t
      where t.tenant_id = p_tenants[v_lane] and t.connection = p_connections[v_lane] and t.connection is not null
        and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
      order by t.tenant_id, t.connection, t.due_at
      limit p_limits[v_lane]
      for update skip locked
    loop
      v_spec := pawl_private.task_spec(v_task);
      v_timeout := least(pawl_private.duration(v_spec.spec ->> 'timeout'), v_task.deadline_at - v_now);
      if v_task.status = 'sent' and v_now + v_timeout >= pawl_private.key_holds_until(v_task, v_spec.spec) then
        -- It has waited for too long. task_sweep decides what becomes of it.
        update pawl.task t set due_at = null, look_at = v_now where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
        continue;
      end if;
      v_step := pawl_private.task_step(v_task);
      begin
        v_request := pawl_private.task_request(
          pawl_private.task_document(v_task, v_step),
          case when v_task.status = 'reconciling' then v_spec.spec #> '{reconcile,request}' else v_spec.spec -> 'request' end);
      exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
        perform pawl_private.task_cannot(v_task, sqlerrm, v_now);
        continue;
      end;
      v_task := pawl_private.begin_attempt(v_task, v_spec, p_claimer, null, v_timeout + interval '10 seconds', v_now);
      return query select
        v_task.tenant_id::text, v_task.id, v_task.lease, v_task.attempts, v_task.status = 'reconciling', pawl_private.task_key(v_task),
        case when v_task.status = 'reconciling' then '' else coalesce(v_spec.spec ->> 'header', '') end, v_task.connection,
        v_request ->> 'method', v_request -> 'path', coalesce(nullif(v_request -> 'query', 'null'), '{}'),
        coalesce(nullif(v_request -> 'headers', 'null'), '{}'), v_request -> 'body', extract(epoch from v_timeout)::float8,
        v_step.correlation_id::text, nullif(pawl_private.task_traceparent(v_task), '');
    end loop;
  end loop;
end
$$;
-- +goose StatementEnd

-- 80_task/task_lanes.sql

-- task_lanes looks for calls that can be made: the connections of tenants that have tasks which wait. Tenants are looked
-- at in their order after p_after, until p_looks lanes have been looked at.
-- Returns: one row per lane that was looked at, by tenant and connection: if these are p_looks, there may be more. ready: a
--          task is due, the connection exists, its circuit is not open, and the tenant is not disabled, of which one lane is
--          looked at. half_open: one call at a time. concurrency: the most calls at once, in each process. missing: a task is
--          due, and there is no such connection
-- +goose StatementBegin
create function pawl.task_lanes(p_after text, p_looks integer) returns setof pawl.task_lane
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
  v_due record;
  v_connection record;
  v_tenant text := p_after;
  v_name text;
  v_lane pawl.task_lane;
  v_looked integer := 0;
begin
  while v_looked < coalesce(p_looks, 0) loop
    if v_name is null then
      select t.tenant_id, t.connection, t.due_at into v_due
      from pawl.task t
      where t.connection is not null and t.due_at is not null and t.tenant_id > v_tenant
      order by t.tenant_id, t.connection, t.due_at
      limit 1;
    else
      select t.tenant_id, t.connection, t.due_at into v_due
      from pawl.task t
      where t.connection is not null and t.due_at is not null and t.tenant_id = v_tenant and t.connection > v_name
      order by t.tenant_id, t.connection, t.due_at
      limit 1;
      if not found then
        v_name := null;
        continue;
      end if;
    end if;
    exit when not found;
    v_looked := v_looked + 1;
    v_tenant := v_due.tenant_id;
    v_name := v_due.connection;
    v_lane := (v_tenant, v_name, false, false, 0, false);
    if pawl_private.is_disabled(v_tenant) then
      v_name := null; -- The next tenant.
    elsif v_due.due_at <= v_now then
      select c.failures, c.circuit_open_until, c.concurrency into v_connection
      from pawl.connection c
      where c.tenant_id = v_tenant and c.name = v_name;
      v_lane.missing := not found;
      if found then
        v_lane.ready := coalesce(v_connection.circuit_open_until <= v_now, true);
        v_lane.half_open := pawl_private.circuit_open_for(v_connection.failures, interval '1 second') is not null;
        v_lane.concurrency := v_connection.concurrency;
      end if;
    end if;
    return next v_lane;
  end loop;
end
$$;
-- +goose StatementEnd

-- 80_task/task_resolve.sql

-- task_resolve writes down what happened, as a person has found out, of a task that ended as unknown, error or late, or that
-- is still open. The outcome moves the instance if that is still in the state that started the task, or in the one that the
-- outcome before led to. Otherwise it only changes the task.
-- p_outcome: done or error. p_result: what the definition reads as $.payload.body
-- Returns: whether it moved the instance
-- Raises:  what pawl_private.operating raises; PW40K task-not-found; PW40D task-ended if it was cancelled, was done and moved the instance, or
--          undoes a step that is undone or that a later task undoes; PW400; PW413
-- Locks:   instance (for no key update), then task
-- Writes:  task, audit, what fire writes
-- +goose StatementBegin
create function pawl.task_resolve(
  p_tenant text, p_id uuid, p_outcome text, p_result jsonb, p_reason text, p_actor text default session_user,
  p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_locked record;
  v_task pawl.task;
  v_before pawl.task;
  v_stays text;
  v_moved boolean := false;
  v_now timestamptz;
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  perform pawl_private.refuse_malformed(case
    when p_outcome not in ('done', 'error') or p_outcome is null then 'the outcome is done or error'
    when pawl_private.is_too_deep(jsonb_build_object('body', p_result)) then 'a result is a JSON value, nested at most 63 deep'
  end);
  if octet_length(p_result::text) > (select g.payload_limit from pawl.setting g) then
    perform pawl_private.raise_condition('payload-too-large', 'the result is larger than the limit of payloads');
  end if;
  select l.* into strict v_locked from pawl_private.lock_task(p_tenant, p_id) l;
  v_task := v_locked.task;
  v_before := v_task;
  v_now := pawl.now();
  if v_task.status = 'cancelled' or v_task.status = 'done' and v_task.left_at is null and v_task.problem is null then
    perform pawl_private.raise_condition('task-ended', format('the task was %s', v_task.status));
  elsif v_task.compensates is not null and not exists (
    select from pawl.compensation c
    where c.tenant_id = p_tenant and c.instance_id = v_task.instance_id and c.number = v_task.compensates
      and c.status <> 'undone' and coalesce(c.undone_by, p_id) = p_id
  ) then
    perform pawl_private.raise_condition('task-ended', 'the step is undone, or another task undoes it: see compensations of the instance');
  end if;
  v_stays := case
    when v_task.ended_at is not null then pawl_private.task_stays(v_task, v_locked.instance)
    when v_task.left_at is null then 'own'
    when v_task.reopened then pawl_private.task_stays(v_task, v_locked.instance)
    else 'elsewhere'
  end;
  v_task.status := p_outcome;
  v_task.due_at := null;
  v_task.look_at := null;
  v_task.leased_until := null;
  v_task.problem := null;
  v_task.ended_at := v_now;
  v_task.result := pawl_private.task_result(v_task, null, null, p_result, to_jsonb(case p_outcome when 'error' then p_reason end));
  perform pawl_private.keep_task(v_task);
  update pawl.task t set lease = null where t.tenant_id = p_tenant and t.id = p_id;
  update pawl.task_attempt a
  set ended_at = v_now, result = 'resolved'
  where a.tenant_id = p_tenant and a.task_id = p_id and a.number = v_task.attempts and a.ended_at is null;
  perform pawl_private.register_compensation(v_task, pawl_private.task_spec(v_task)) where p_outcome = 'done' and v_before.status <> 'done';
  if v_task.compensates is not null then
    if p_outcome = 'done' and exists (
      select from pawl.undoing u where u.tenant_id = p_tenant and u.instance_id = v_task.instance_id
    ) then
      perform pawl_private.fire_outcomes(array[v_task], array['compensated:' || v_task.name], 'compensated');
      v_moved := exists (select from pawl.task t where t.tenant_id = p_tenant and t.id = p_id and t.problem is null);
    end if;
  elsif v_stays <> 'elsewhere' and (v_locked.instance).status = 'active' then
    v_task.left_at := case v_stays when 'own' then null else coalesce(v_task.left_at, v_now) end;
    v_task.reopened := true;
    perform pawl_private.fire_outcomes(array[v_task], array[pawl_private.outcome_event(v_task, p_outcome)], 'result');
    v_moved := exists (select from pawl.task t where t.tenant_id = p_tenant and t.id = p_id and t.problem is null);
  end if;
  perform pawl_private.task_ended(v_task, v_now);
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'task.resolve',
    p_target => p_id::text, p_reason => p_reason, p_before => pawl_private.task_digest(v_before),
    p_after => pawl_private.task_digest(v_task));
  return v_moved;
end
$$;
-- +goose StatementEnd

-- 80_task/task_retry.sql

-- task_retry has a task that ended as unknown, error or late tried again, from the beginning and with its whole deadline.
-- Its outcome moves the instance if that is still in the state that started the task, or in the one that the outcome before
-- led to. Otherwise it only changes the task.
-- Returns: whether the outcome will move the instance
-- Raises:  what pawl_private.operating raises; PW40K task-not-found; PW409 instance-final; PW40D task-ended if it was done in time, was cancelled, or is under way
-- Locks:   instance (for no key update), then task
-- Writes:  task, audit
-- +goose StatementBegin
create function pawl.task_retry(
  p_tenant text, p_id uuid, p_reason text, p_actor text default session_user, p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_locked record;
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  select l.* into strict v_locked from pawl_private.lock_task(p_tenant, p_id) l;
  return pawl_private.reopen_task(v_locked.task, v_locked.instance, 'retry', p_reason, p_caller);
end
$$;
-- +goose StatementEnd

-- 80_task/task_settle.sql

-- task_settle settles what came of attempts, in one transaction with the steps that this makes. The first reports of a call
-- are decided first. A report is a JSON object with a result:
--   answered   {status, headers, body, error, retry_after}: the service answered. error: what was wrong with the body
--   refused    {error}: the call was surely not made
--   lost       {error}: the call may have been made
--   postponed  {error, seconds}: there was no attempt; it may be claimed again after so many seconds
--   completed  {body}: of work: it was done
--   failed     {error, retryable, retry_in, outcome}: of work. retry_in: seconds; outcome: how it ends if there is no other
--              attempt, error or unknown
--   released   of work: it is given back, and costs no attempt
--   heartbeat  {progress, lease}: of work: it goes on. lease: seconds; as long as it was if left out
-- Returns: one row per report, in no order. code: 'settled'; 'repeated': it was settled so before; 'task-not-found';
--          'lease-superseded'; 'task-ended': it has ended otherwise; 'payload-too-large'. late: its state was left before, and
--          no operator has it tried again
-- Raises:  what fire raises
-- Locks:   instance (for no key update, by id), undoing, compensation, task
-- Writes:  task, task_attempt, compensation, undoing, what fire writes
-- +goose StatementBegin
create function pawl.task_settle(p_tenants text[], p_ids uuid[], p_leases uuid[], p_reports jsonb[]) returns setof pawl.task_settled
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select * from pawl_private.settle_tasks(p_tenants, p_ids, p_leases, p_reports) $$;
-- +goose StatementEnd

-- 80_task/task_sweep.sql

-- task_sweep settles what nobody else settles in time: attempts whose lease ran out, deadlines that have passed, tasks whose
-- request cannot be computed or whose key is too old, and states that undo steps and were just entered. Several processes may
-- call it. It waits for no lock: what another transaction holds is left for the next call. What cannot be settled is put off
-- with its problem. The tasks of disabled tenants wait.
-- Returns: looked: how many tasks and states were settled or put off. next_in: when to look again; null if there is nothing
--          to wait for
-- Locks:   instance (for no key update, those that are not locked), undoing, compensation, task
-- Writes:  as task_settle
-- +goose StatementBegin
create function pawl.task_sweep(p_limit integer, out looked integer, out next_in interval)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_disabled text[] := array(select t.id::text from pawl.tenant t where t.disabled_at is not null);
  v_found record;
  v_swept text;
  v_busy boolean := false;
  v_more boolean := false;
begin
  looked := 0;
  for v_found in
    with due as materialized (
      select
        t.tenant_id, t.instance_id, t.id,
        case
          when t.problem like 'input: %' then jsonb_build_object('result', 'impossible', 'error', t.problem)
          when t.deadline_at <= v_now then jsonb_build_object('result', 'overdue', 'error', case
            when t.due_at is null or t.connection is null then 'deadline'
            when c.name is null then format('deadline; there is no connection %s', t.connection)
            when c.finding is not null then format('deadline; the connection %s cannot be used', t.connection)
            when c.circuit_open_until > v_now then format('deadline; the connection %s rests', t.connection)
            else 'deadline'
          end)
          when t.leased_until is null then '{"result": "expired", "error": "the time for which the service knows the key is over"}'
          else '{"result": "expired", "error": "lease-expired"}'
        end as report
      from pawl.task t
      left join pawl.connection c on c.tenant_id = t.tenant_id and c.name = t.connection
      where t.look_at <= v_now and t.look_at is not null and t.tenant_id <> all (v_disabled)
      order by t.look_at
      limit greatest(p_limit, 0)
    )
    select d.tenant_id, d.instance_id, array_agg(d.id order by d.id) as ids, array_agg(d.report order by d.id) as reports
    from due d
    group by d.instance_id, d.tenant_id
    order by d.instance_id
  loop
    v_swept := pawl_private.sweep_instance(v_found.tenant_id, v_found.instance_id, v_found.ids, v_found.reports, v_now);
    v_busy := v_busy or v_swept = 'busy';
    looked := looked + case when v_swept <> 'busy' then cardinality(v_found.ids) else 0 end;
    exit when v_swept = 'timed-out';
  end loop;
  v_more := looked >= p_limit;

  for v_found in
    select u.tenant_id, u.instance_id
    from pawl.undoing u
    where u.due_at <= v_now and u.due_at is not null and u.tenant_id <> all (v_disabled)
    order by u.due_at
    limit greatest(p_limit, 0)
  loop
    exit when v_swept = 'timed-out';
    v_swept := pawl_private.sweep_instance(v_found.tenant_id, v_found.instance_id, null, null, v_now);
    v_busy := v_busy or v_swept = 'busy';
    looked := looked + case when v_swept <> 'busy' then 1 else 0 end;
  end loop;

  delete from pawl_private.claim_key k
  where k.ctid = any (array(
    select e.ctid
    from pawl_private.claim_key e
    where e.claimed_at <= v_now - interval '1 day'
    order by e.claimed_at
    limit greatest(coalesce(p_limit, 0), 0)
    for update skip locked));

  select min(n.at) - v_now
  into next_in
  from (
    (select t.look_at as at from pawl.task t where t.look_at > v_now and t.look_at is not null order by t.look_at limit 1)
    union all
    (select u.due_at from pawl.undoing u where u.due_at > v_now and u.due_at is not null order by u.due_at limit 1)
    union all
    select v_now where v_more or v_swept = 'timed-out'
    union all
    -- What another transaction holds, it moves or leaves soon.
    select v_now + interval '1 second' where v_busy
  ) n;
end
$$;
-- +goose StatementEnd

-- 80_task/tenant_of_task.sql

-- tenant_of_task finds the tenant that has a task.
-- Returns: as pawl_private.tenant_of
-- +goose StatementBegin
create function pawl.tenant_of_task(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pawl_private.tenant_of(p_table => 'pawl.task', p_id => p_id) $$;
-- +goose StatementEnd

-- 80_task/timeline_page.sql

-- timeline_page reads a page of what happened to an instance: its steps, compensations, tasks with their attempts, and the
-- deliveries that tell of its steps.
--
-- The order is by time, then by the version of the step that something belongs to, then by rank: the step, what can be
-- undone, tasks, attempts, deliveries. The times of steps rise with their versions, and deliveries have those of their
-- steps. So steps and deliveries are read by their indexes, from where the page before has ended; of the others all
-- are read that the instance has.
-- p_at, p_version, p_rank, p_key: the last item of the page before; null for the first page
-- p_step:         the version of the last step before this page
-- p_told, p_to:   the version of the last step or delivery before this page, and the subscription of the delivery
-- Returns: up to p_limit rows, in order
-- +goose StatementBegin
create function pawl.timeline_page(
  p_tenant text, p_instance uuid, p_at timestamptz, p_version bigint, p_rank integer, p_key text, p_step bigint,
  p_told bigint, p_to uuid, p_limit integer
) returns setof pawl.moment
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  with tasks as (
    select t.*,
      -- A compensation begins with the step of its time, and not with the one that it undoes.
      case
        when t.compensates is null then t.entered_version
        else (
          select h.version
          from pawl.history h
          where h.tenant_id = p_tenant and h.instance_id = p_instance and h.at <= t.created_at
          order by h.version desc
          limit 1)
      end as began
    from pawl.task t
    where t.tenant_id = p_tenant and t.instance_id = p_instance
  )
  select m.*
  from (
    (select h.at, h.version, 0, '', 'step', h.kind::text, h.event, h.from_state, h.to_state, h.actor::text, h.reason::text,
      null::text, null::uuid, null::boolean, null::integer, null::boolean, null::text, null::integer, null::text, null::text,
      null::timestamptz, null::uuid, null::uuid
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_instance and h.version > p_step
    order by h.version
    limit p_limit)
    union all
    (select d.created_at, d.version, 4, d.subscription_id::text, 'delivery', null, null, null, null, null, null,
      null, null, null, d.attempts, null, d.status, d.last_status, d.last_error, null, d.delivered_at, d.id,
      case when not d.callback then d.subscription_id end
    from pawl.delivery d
    where d.tenant_id = p_tenant and d.instance_id = p_instance and (d.version, d.subscription_id) > (p_told, p_to)
    order by d.version, d.subscription_id
    limit p_limit)
    union all
    select o.*
    from (
      select coalesce(
          (select min(a.started_at) from pawl.task_attempt a where a.tenant_id = c.tenant_id and a.task_id = c.task_id), h.at),
        c.version, 1, c.number::text, 'compensation', null, null, null, null, null, c.reason,
        c.name, c.task_id, null::boolean, null::integer, null::boolean, c.status, null::integer, null, null, null::timestamptz, null::uuid,
        null::uuid
      from pawl.compensation c
      join pawl.history h on h.tenant_id = c.tenant_id and h.instance_id = c.instance_id and h.version = c.version
      where c.tenant_id = p_tenant and c.instance_id = p_instance
      union all
      select t.created_at, t.began, 2, t.id::text, 'task', null, null, null, null, null, null,
        t.name, t.id, t.compensates is not null, t.attempts, null, t.status, (t.result ->> 'status')::integer,
        coalesce(t.problem, t.result ->> 'error'), coalesce(t.topic, t.connection), t.ended_at, null, null
      from tasks t
      union all
      select a.started_at, t.began, 3, a.task_id || ' ' || lpad(a.number::text, 9, '0'), 'attempt', null, null, null,
        null, null, null, t.name, t.id, t.compensates is not null, a.number, a.kind = 'reconcile', a.result, a.status, a.error, a.worker,
        a.ended_at, null, null
      from tasks t
      join pawl.task_attempt a on a.tenant_id = t.tenant_id and a.task_id = t.id
    ) o (at, version, rank, key)
    where p_at is null or (o.at, o.version, o.rank, o.key collate "C") > (p_at, p_version, p_rank, p_key)
  ) m (at, version, rank, key, kind, step, event, from_state, to_state, actor, reason, name, task_id, compensates, attempt, reconciling,
    status, http_status, failure, worker, ended_at, delivery_id, subscription_id)
  order by m.at, m.version, m.rank, m.key collate "C"
  limit p_limit
$$;
-- +goose StatementEnd

-- 80_task/work_claims.sql

-- work_claims carries out claims of workers, the first ones first; see work_claim. A claim is an object with tenant, topic,
-- worker, max, lease (seconds; null for what each task declares), key, and within (workflows; null for all).
-- Returns: the tasks, with the ordinals of their claims
-- Raises, locks, writes: as work_claim
-- +goose StatementBegin
create function pawl.work_claims(p_claims jsonb) returns setof pawl.claimed_work
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key record;
  v_claim record;
begin
  -- Those of all keys come before the first claim, and in one order, so that no two calls wait for one another.
  for v_key in
    select distinct c ->> 'tenant' as tenant, c ->> 'key' as key
    from jsonb_array_elements(p_claims) c
    where c ->> 'key' <> ''
    order by 1, 2
  loop
    perform pawl_private.lock_claim_key(v_key.tenant, v_key.key, pawl.now());
  end loop;
  for v_claim in
    select c.ordinal, r.*
    from jsonb_array_elements(p_claims) with ordinality as c (claim, ordinal)
    cross join lateral jsonb_to_record(c.claim) as r (
      tenant text, topic text, worker text, max integer, lease float8, key text, within text[])
    order by c.ordinal
  loop
    return query
    select v_claim.ordinal::integer, w.*
    from pawl_private.work_claim(
      p_tenant => v_claim.tenant, p_topic => v_claim.topic, p_worker => v_claim.worker, p_max => v_claim.max,
      p_lease => make_interval(secs => v_claim.lease), p_key => v_claim.key, p_within => v_claim.within) w;
  end loop;
end
$$;
-- +goose StatementEnd

-- 80_task/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.task_lanes'),
  ('worker', 'pawl.task_claim'),
  ('worker', 'pawl.task_settle'),
  ('worker', 'pawl.task_sweep'),
  ('api', 'pawl.task_settle'),
  ('api', 'pawl.work_claims'),
  ('api', 'pawl.timeline_page'),
  ('api', 'pawl.tenant_of_task'),
  ('api', 'pawl.task_retry'),
  ('api', 'pawl.task_resolve'),
  ('api', 'pawl.compensation_mark'),
  ('caller', 'pawl.claim_work'),
  ('caller', 'pawl.complete_work'),
  ('caller', 'pawl.fail_work'),
  ('caller', 'pawl.release_work'),
  ('caller', 'pawl.heartbeat_work'),
  ('operator', 'pawl.claim_work'),
  ('operator', 'pawl.complete_work'),
  ('operator', 'pawl.fail_work'),
  ('operator', 'pawl.release_work'),
  ('operator', 'pawl.heartbeat_work'),
  ('operator', 'pawl.task_retry'),
  ('operator', 'pawl.task_resolve'),
  ('operator', 'pawl.compensation_mark');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.task', null),
  ('api', 'pawl.task_row', null),
  ('api', 'pawl.task_attempt', null),
  ('api', 'pawl.compensation', null),
  ('api', 'pawl.undoing', null),
  ('reader', 'pawl.task', null),
  ('reader', 'pawl.task_row', null),
  ('reader', 'pawl.task_attempt', null),
  ('reader', 'pawl.compensation', null),
  ('reader', 'pawl.undoing', null);

-- 85_watch/tables.sql

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

-- 85_watch/private.sql

-- slow_after is how long an instance of a tenant may be in a state, by what its instances took in the last four weeks; null
-- if fewer than 30 of them left the state.
-- +goose StatementBegin
create function pawl_private.slow_after(p_tenant text, p_workflow text, p_state text, p_now timestamptz) returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_today date := (p_now at time zone 'UTC')::date;
  v_visits bigint;
  v_bucket integer;
begin
  with visit as materialized (
    -- Day by day and version by version, so that the other states of the workflow are not read.
    select d.bucket, sum(d.visits) as visits
    from (select w.version from pawl.workflow w where w.name = p_workflow) w
    cross join generate_series(0, 27) as n (days)
    cross join lateral (
      select c.bucket, c.visits
      from pawl.dwell_count c
      where c.tenant_id = p_tenant and c.workflow = p_workflow and c.day = v_today - n.days and c.workflow_version = w.version
        and c.state = p_state
      offset 0
    ) d
    group by d.bucket
  ),
  summed as (
    select v.bucket, sum(v.visits) over (order by v.bucket) as upto, sum(v.visits) over () as visits
    from visit v
  )
  select max(s.visits), min(s.bucket) filter (where s.upto >= 0.99 * s.visits)
  into v_visits, v_bucket
  from summed s;
  return case
    -- The middle of the bucket, in milliseconds.
    when v_visits >= 30 then greatest(interval '10 seconds', 3 * 1.1 ^ (v_bucket - 0.5) * interval '1 millisecond')
  end;
end
$$;
-- +goose StatementEnd

-- visits_lately is how many visits of a state ended in the last 24 hours. It costs much less than slow_after, and so says when that is
-- worth asking: before the first 30 visits there is no threshold.
-- +goose StatementBegin
create function pawl_private.visits_lately(p_tenant text, p_workflow text, p_state text, p_now timestamptz) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return (
    select coalesce(sum(h.visits), 0)
    from pawl.dwell_hour h
    where h.tenant_id = p_tenant and h.workflow = p_workflow and h.state = p_state
      and h.hour >= extract(epoch from p_now)::bigint / 3600 - 24);
end
$$;
-- +goose StatementEnd

-- open_orphaned opens a finding for each of the instances that nothing will ever move, and closes those that say that it is
-- slow.
-- Returns: how many were opened
-- Locks:   residence (for key share, those that are not locked)
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.open_orphaned(p_tenant text, p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_opened bigint;
begin
  with opened as (
    insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
    select p_tenant, pawl_private.uuid_v7(p_now), 'orphaned', r.instance_id, r.workflow, r.state, r.visit_version, r.since, p_now, '{}'
    from unnest(p_ids) as p (id)
    cross join lateral (
      select r.*
      from pawl.residence r
      where r.tenant_id = p_tenant and r.instance_id = p.id and r.since <= p_now - interval '10 seconds'
      limit 1
      for key share skip locked
    ) r
    cross join lateral (
      select from pawl.workflow_state s
      where s.workflow = r.workflow and s.workflow_version = r.workflow_version and s.state = r.state and s.strands
      limit 1
    ) s
    cross join lateral (
      select from pawl.instance i
      where i.tenant_id = p_tenant and i.id = r.instance_id and i.state = r.state and i.state_changed_at = r.since and i.status = 'active'
      limit 1
    ) i
    where not exists (
        select from pawl.task t
        where t.tenant_id = p_tenant and t.instance_id = r.instance_id and t.ended_at is null and (t.left_at is null or t.reopened))
      and not exists (select from pawl.undoing u where u.tenant_id = p_tenant and u.instance_id = r.instance_id)
    on conflict do nothing
    returning instance_id
  ),
  hidden as (
    update pawl.finding f
    set closed_at = greatest(f.opened_at, p_now)
    from opened o
    where f.tenant_id = p_tenant and f.instance_id = o.instance_id and f.kind = 'slow' and f.closed_at is null
  )
  select count(*) into v_opened from opened;
  return v_opened;
end
$$;
-- +goose StatementEnd

-- look_at_place looks at the instances of a place that have become due.
-- p_limit: the most instances, for each kind
-- Returns: looked: how many were read or closed; opened: how many findings were opened
-- Writes:  finding, stuck_place
-- +goose StatementBegin
create function pawl_private.look_at_place(
  p_place pawl_private.stuck_place, p_limit integer, p_now timestamptz, out looked bigint, out opened bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_place pawl_private.stuck_place := p_place;
  v_version integer;
  v_due timestamptz;
  v_ids uuid[];
  v_sinces timestamptz[];
  v_rows bigint;
  v_inhabited boolean;
begin
  looked := 0; opened := 0;
  select w.version into v_version from pawl.workflow w where w.name = v_place.workflow order by w.version desc limit 1;
  v_version := coalesce(v_version, 0);
  if v_version <> v_place.version or v_place.measured_at <= p_now - interval '10 minutes'
    or v_place.threshold is null and pawl_private.visits_lately(v_place.tenant_id, v_place.workflow, v_place.state, p_now) >= 30
  then
    v_place.version := v_version;
    v_place.measured_at := p_now;
    v_place.strands := exists (
      select from pawl.workflow_state s where s.workflow = v_place.workflow and s.state = v_place.state and s.strands);
    v_place.threshold := (
      select s.stuck_after
      from pawl.workflow_state s
      where s.workflow = v_place.workflow and s.state = v_place.state
      order by s.workflow_version desc
      limit 1);
    v_place.declared := v_place.threshold is not null;
    if not v_place.declared then
      v_place.threshold := pawl_private.slow_after(v_place.tenant_id, v_place.workflow, v_place.state, p_now);
    end if;
  end if;

  -- What is no longer due: the threshold has grown.
  v_due := coalesce(p_now - v_place.threshold, '-infinity');
  if v_place.slow_since > v_due then
    update pawl.finding f
    set closed_at = greatest(f.opened_at, p_now)
    where (f.tenant_id, f.id) in (
      select s.tenant_id, s.id
      from pawl.finding s
      where s.tenant_id = v_place.tenant_id and s.workflow = v_place.workflow and s.state = v_place.state and s.closed_at is null
        and s.kind = 'slow' and s.since > v_due
      limit p_limit);
    get diagnostics v_rows = row_count;
    looked := v_rows;
    if v_rows < p_limit then
      v_place.slow_since := v_due;
      v_place.slow_id := '00000000-0000-0000-0000-000000000000';
    end if;
  end if;

  if v_place.strands then
    select coalesce(array_agg(r.instance_id order by r.since, r.instance_id), '{}'), array_agg(r.since order by r.since, r.instance_id)
    into v_ids, v_sinces
    from (
      select r.instance_id, r.since
      from pawl.residence r
      where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
        and (r.since, r.instance_id) > (v_place.orphaned_since, v_place.orphaned_id) and r.since <= p_now - interval '10 seconds'
      order by r.since, r.instance_id
      limit p_limit
    ) r;
    if v_ids <> '{}' then
      looked := looked + cardinality(v_ids);
      opened := opened + pawl_private.open_orphaned(v_place.tenant_id, v_ids, p_now);
      v_place.orphaned_since := v_sinces[cardinality(v_sinces)];
      v_place.orphaned_id := v_ids[cardinality(v_ids)];
    end if;
  end if;

  if v_place.threshold is not null and v_place.slow_since <= v_due then
    select coalesce(array_agg(r.instance_id order by r.since, r.instance_id), '{}'), array_agg(r.since order by r.since, r.instance_id)
    into v_ids, v_sinces
    from (
      select r.instance_id, r.since
      from pawl.residence r
      where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
        and (r.since, r.instance_id) > (v_place.slow_since, v_place.slow_id) and r.since <= v_due
      order by r.since, r.instance_id
      limit p_limit
    ) r;
    if v_ids <> '{}' then
      looked := looked + cardinality(v_ids);
      insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
      select
        v_place.tenant_id, pawl_private.uuid_v7(p_now), 'slow', r.instance_id, r.workflow, r.state, r.visit_version, r.since, p_now,
        jsonb_build_object(
          'threshold_seconds', round(extract(epoch from v_place.threshold), 3),
          'threshold', case when v_place.declared then 'stuck_after' else 'dwell' end)
      from unnest(v_ids) as p (id)
      cross join lateral (
        select r.* from pawl.residence r where r.tenant_id = v_place.tenant_id and r.instance_id = p.id limit 1 for key share skip locked
      ) r
      cross join lateral (
        select from pawl.instance i
        where i.tenant_id = v_place.tenant_id and i.id = p.id and i.state = r.state and i.state_changed_at = r.since and i.status = 'active'
        limit 1
      ) i
      where not exists (
        select from pawl.finding f
        where f.tenant_id = v_place.tenant_id and f.instance_id = p.id and f.kind = 'orphaned' and f.visit_version = r.visit_version
          and f.closed_at is null)
      on conflict do nothing;
      get diagnostics v_rows = row_count;
      opened := opened + v_rows;
      v_place.slow_since := v_sinces[cardinality(v_sinces)];
      v_place.slow_id := v_ids[cardinality(v_ids)];
    end if;
  end if;

  v_inhabited := exists (
    select from pawl.residence r
    where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
    limit 1);
  -- At least once a minute, for a new version; at least a second later, since the fold takes its time.
  v_place.next_at := case
    when looked >= p_limit then p_now
    when not v_inhabited then 'infinity'
    else greatest(p_now + interval '1 second', least(
      p_now + interval '1 minute',
      (
        select r.since + v_place.threshold
        from pawl.residence r
        where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
          and (r.since, r.instance_id) > (v_place.slow_since, v_place.slow_id) and v_place.threshold is not null
        order by r.since, r.instance_id
        limit 1
      ),
      (
        select r.since + interval '10 seconds'
        from pawl.residence r
        where r.tenant_id = v_place.tenant_id and r.workflow = v_place.workflow and r.state = v_place.state
          and (r.since, r.instance_id) > (v_place.orphaned_since, v_place.orphaned_id) and v_place.strands
        order by r.since, r.instance_id
        limit 1
      )))
  end;
  update pawl_private.stuck_place p
  set slow_since = v_place.slow_since, slow_id = v_place.slow_id, orphaned_since = v_place.orphaned_since,
    orphaned_id = v_place.orphaned_id, version = v_place.version, strands = v_place.strands, declared = v_place.declared,
    threshold = v_place.threshold, measured_at = v_place.measured_at, next_at = v_place.next_at
  where p.tenant_id = v_place.tenant_id and p.workflow = v_place.workflow and p.state = v_place.state;
end
$$;
-- +goose StatementEnd

-- bad_task says what is wrong with a task of a present instance, task-dead or task-late; null if nothing is. Without
-- locks: a finding that is opened too early or too late is corrected by the next look.
-- +goose StatementBegin
create function pawl_private.bad_task(p_task pawl.task, p_residence pawl.residence) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task.result_version is not null or p_task.status not in ('done', 'error', 'unknown') or p_task.compensates is not null then
    return null;
  elsif p_task.left_at is not null then
    -- One that failed had no effect.
    return case when p_task.status in ('done', 'unknown') then 'task-late' end;
  end if;
  return case
    when p_residence.status = 'active' and p_residence.state = p_task.state and exists (
      select from pawl.history h
      where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id and h.version = p_task.entered_version
        and coalesce(h.entered_at, h.at) = p_residence.since
    ) then 'task-dead'
  end;
end
$$;
-- +goose StatementEnd

-- There are four walks: 'task' over those that ended and made no step, 'delivery' over dead letters, 'timer' over those that fail,
-- by their instances, and 'cause' over open findings that are about one of these. Each is in the order of an index.

-- next_watched is the tenant behind another one that a walk has something of; null if there is none.
-- +goose StatementBegin
create function pawl_private.next_watched(p_walk text, p_after text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
  return case p_walk
    when 'task' then (
      select t.tenant_id
      from pawl.task t
      where t.result_version is null and t.status in ('done', 'error', 'unknown') and t.compensates is null and t.tenant_id > p_after
      order by t.tenant_id, t.id
      limit 1)
    when 'delivery' then (
      select d.tenant_id from pawl.delivery d where d.status = 'dead' and d.tenant_id > p_after order by d.tenant_id, d.id limit 1)
    when 'timer' then (
      select t.tenant_id
      from pawl.timer t
      where t.failed_version = t.armed_version and t.tenant_id > p_after
      order by t.tenant_id, t.instance_id
      limit 1)
    when 'cause' then (
      select f.tenant_id
      from pawl.finding f
      where f.closed_at is null and (f.cause_id is not null or f.kind = 'timer-failing') and f.tenant_id > p_after
      order by f.tenant_id, f.id
      limit 1)
  end;
end
$$;
-- +goose StatementEnd

-- watched reads what a walk has of a tenant behind an id.
-- +goose StatementBegin
create function pawl_private.watched(p_walk text, p_tenant text, p_after uuid, p_limit integer) returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
begin
  return case p_walk
    when 'task' then array(
      select t.id
      from pawl.task t
      where t.result_version is null and t.status in ('done', 'error', 'unknown') and t.compensates is null
        and t.tenant_id = p_tenant and t.id > p_after
      order by t.id
      limit p_limit)
    when 'delivery' then array(
      select d.id from pawl.delivery d where d.status = 'dead' and d.tenant_id = p_tenant and d.id > p_after order by d.id limit p_limit)
    when 'timer' then array(
      select t.instance_id
      from pawl.timer t
      where t.failed_version = t.armed_version and t.tenant_id = p_tenant and t.instance_id > p_after
      order by t.instance_id
      limit p_limit)
    when 'cause' then array(
      select f.id
      from pawl.finding f
      where f.closed_at is null and (f.cause_id is not null or f.kind = 'timer-failing') and f.tenant_id = p_tenant and f.id > p_after
      order by f.id
      limit p_limit)
  end;
end
$$;
-- +goose StatementEnd

-- walk_on goes on with a walk: with the next tenants, and the same number of each.
-- p_after: the tenant behind which it goes on; empty: with the first one. p_limit: how many it reads at most
-- Returns: tenants, ids: what it has read. upto: the last tenant, to go on behind it; empty after the last one of all. cut:
--          whether this was not all
-- Writes:  watch_place
-- +goose StatementBegin
create function pawl_private.walk_on(
  p_walk text, p_after text, p_limit integer, out tenants text[], out ids uuid[], out upto text, out cut boolean
)
language plpgsql volatile
as $$
declare
  v_tenant text := p_after;
  v_next text[] := '{}';
  v_share integer;
  v_ids uuid[];
begin
  tenants := '{}'; ids := '{}'; upto := '';
  loop
    v_tenant := pawl_private.next_watched(p_walk, v_tenant);
    if v_tenant is not null then
      v_next := v_next || v_tenant;
      if cardinality(v_next) >= p_limit / 10 then
        upto := v_tenant;
        exit;
      end if;
    else
      exit when v_next <> '{}' or p_after = '';
      -- There is no tenant behind p_after any more.
      p_after := '';
      v_tenant := '';
    end if;
  end loop;
  cut := upto <> '' or p_after <> '';
  v_share := p_limit / greatest(cardinality(v_next), 1);
  foreach v_tenant in array v_next loop
    v_ids := pawl_private.watched(p_walk, v_tenant, coalesce((
      select p.id from pawl_private.watch_place p where p.walk = p_walk and p.tenant_id = v_tenant
    ), '00000000-0000-0000-0000-000000000000'), v_share);
    if cardinality(v_ids) < v_share then
      delete from pawl_private.watch_place p where p.walk = p_walk and p.tenant_id = v_tenant;
    else
      cut := true;
      insert into pawl_private.watch_place (walk, tenant_id, id)
      values (p_walk, v_tenant, v_ids[v_share])
      on conflict on constraint watch_place_pkey do update set id = excluded.id;
    end if;
    tenants := tenants || array_fill(v_tenant, array[cardinality(v_ids)]);
    ids := ids || v_ids;
  end loop;
end
$$;
-- +goose StatementEnd

-- open_finding opens a finding about an instance, unless there is one of that kind and version.
-- p_version: the step that it is about. p_cause_id: the task or the delivery; null for neither. p_detail: without its nulls
-- Returns: how many were opened
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.open_finding(
  p_residence pawl.residence, p_kind text, p_version bigint, p_cause_id uuid, p_detail jsonb, p_now timestamptz
) returns integer
language plpgsql volatile
as $$
begin
  insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, cause_id, opened_at, detail)
  values (
    p_residence.tenant_id, pawl_private.uuid_v7(p_now), p_kind, p_residence.instance_id, p_residence.workflow, p_residence.state, p_version,
    p_residence.since, p_cause_id, p_now, jsonb_strip_nulls(p_detail))
  on conflict do nothing;
  return case when found then 1 else 0 end;
end
$$;
-- +goose StatementEnd

-- look_at_tasks looks at some tasks that ended and made no step.
-- Returns: how many findings were opened
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.look_at_tasks(p_tenants text[], p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_task pawl.task;
  v_residence pawl.residence;
  v_kind text;
  v_opened bigint := 0;
begin
  for v_task in
    select t.* from unnest(p_tenants, p_ids) as w (tenant, id) cross join lateral (
      select t.* from pawl.task t where t.tenant_id = w.tenant and t.id = w.id limit 1
    ) t
  loop
    select r.* into v_residence
    from pawl.residence r
    where r.tenant_id = v_task.tenant_id and r.instance_id = v_task.instance_id
    for key share skip locked;
    continue when not found;
    v_kind := pawl_private.bad_task(v_task, v_residence);
    -- That a task was late stays true: it is told once.
    continue when v_kind is null or v_kind = 'task-late' and exists (
      select from pawl.finding f
      where f.tenant_id = v_task.tenant_id and f.instance_id = v_task.instance_id and f.kind = 'task-late' and f.cause_id = v_task.id
        and f.opened_at >= v_task.ended_at);
    v_opened := v_opened + pawl_private.open_finding(
      p_residence => v_residence, p_kind => v_kind, p_cause_id => v_task.id, p_now => p_now,
      p_version => case when v_kind = 'task-dead' then v_residence.visit_version else v_task.entered_version end,
      p_detail => jsonb_build_object(
        'task_id', v_task.id, 'task', v_task.name, 'status', v_task.status, 'error', coalesce(v_task.problem, v_task.result ->> 'error')));
    if v_kind = 'task-dead' then
      v_opened := v_opened + pawl_private.open_orphaned(v_task.tenant_id, array[v_task.instance_id], p_now);
    end if;
  end loop;
  return v_opened;
end
$$;
-- +goose StatementEnd

-- look_at_deliveries looks at some dead letters. One that tells of a finding opens none: its endpoint may be the
-- one that is told of findings, and would be told without end.
-- Returns: as look_at_tasks
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.look_at_deliveries(p_tenants text[], p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_delivery pawl.delivery;
  v_residence pawl.residence;
  v_opened bigint := 0;
begin
  for v_delivery in
    select d.* from unnest(p_tenants, p_ids) as w (tenant, id) cross join lateral (
      select d.* from pawl.delivery d where d.tenant_id = w.tenant and d.id = w.id and d.status = 'dead' limit 1
    ) d
  loop
    continue when v_delivery.version is null;
    select r.* into v_residence
    from pawl.residence r
    where r.tenant_id = v_delivery.tenant_id and r.instance_id = v_delivery.instance_id
    for key share skip locked;
    continue when not found;
    v_opened := v_opened + pawl_private.open_finding(
      p_residence => v_residence, p_kind => 'delivery-dead', p_version => v_delivery.version, p_cause_id => v_delivery.id, p_now => p_now,
      p_detail => jsonb_build_object(
        'delivery_id', v_delivery.id, 'subscription_id', case when not v_delivery.callback then v_delivery.subscription_id end,
        'attempts', v_delivery.attempts, 'last_status', v_delivery.last_status));
  end loop;
  return v_opened;
end
$$;
-- +goose StatementEnd

-- look_at_timers looks at timers of some instances that fail.
-- Returns: how many findings were opened
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.look_at_timers(p_tenants text[], p_instances uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_timer record;
  v_residence pawl.residence;
  v_opened bigint := 0;
begin
  for v_timer in
    select n.tenant_id, n.instance_id, n.event, n.last_error
    from unnest(p_tenants, p_instances) as w (tenant, instance)
    cross join lateral (
      select n.* from pawl.next_timeout n where n.tenant_id = w.tenant and n.instance_id = w.instance and n.last_error is not null limit 1
    ) n
  loop
    select r.* into v_residence
    from pawl.residence r
    where r.tenant_id = v_timer.tenant_id and r.instance_id = v_timer.instance_id
    for key share skip locked;
    continue when not found;
    v_opened := v_opened + pawl_private.open_finding(
      p_residence => v_residence, p_kind => 'timer-failing', p_version => v_residence.visit_version, p_cause_id => null, p_now => p_now,
      p_detail => jsonb_build_object('event', v_timer.event, 'error', left(v_timer.last_error, 1000)));
  end loop;
  return v_opened;
end
$$;
-- +goose StatementEnd

-- look_at_lanes looks for tasks that wait for a connection that there is not: of each such connection, at those that have waited
-- longest.
-- p_after: the tenant behind which it goes on; empty: with the first one. p_limit: how many connections, and tasks of each
-- Returns: upto: the last tenant, to go on behind it; empty after the last one of all. opened: how many findings were opened
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.look_at_lanes(p_after text, p_limit integer, p_now timestamptz, out upto text, out opened bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_lane pawl.task_lane;
  v_task pawl.task;
  v_residence pawl.residence;
  v_looked integer := 0;
begin
  opened := 0;
  for v_lane in select l.* from pawl.task_lanes(p_after, p_limit) l loop
    v_looked := v_looked + 1;
    upto := v_lane.tenant_id;
    continue when not v_lane.missing;
    for v_task in
      select t.*
      from pawl.task t
      where t.tenant_id = v_lane.tenant_id and t.connection = v_lane.connection and t.connection is not null
        and t.due_at is not null and t.due_at <= p_now - interval '10 seconds'
      order by t.due_at
      limit p_limit
    loop
      select r.* into v_residence
      from pawl.residence r
      where r.tenant_id = v_task.tenant_id and r.instance_id = v_task.instance_id
      for key share skip locked;
      continue when not found;
      opened := opened + pawl_private.open_finding(
        p_residence => v_residence, p_kind => 'connection-missing', p_version => v_residence.visit_version, p_cause_id => v_task.id,
        p_now => p_now, p_detail => jsonb_build_object('task_id', v_task.id, 'task', v_task.name, 'connection', v_task.connection));
    end loop;
  end loop;
  upto := case when v_looked >= p_limit then upto else '' end;
end
$$;
-- +goose StatementEnd

-- look_at_causes closes some findings whose task, delivery or timer is no longer what they say.
-- Returns: how many were closed
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.look_at_causes(p_tenants text[], p_ids uuid[], p_now timestamptz) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
  v_finding pawl.finding;
  v_closed bigint := 0;
begin
  for v_finding in
    select f.* from unnest(p_tenants, p_ids) as w (tenant, id) cross join lateral (
      select f.* from pawl.finding f where f.tenant_id = w.tenant and f.id = w.id limit 1
    ) f
  loop
    continue when v_finding.kind = 'delivery-dead' and exists (
      select from pawl.delivery d where d.tenant_id = v_finding.tenant_id and d.id = v_finding.cause_id and d.status = 'dead');
    continue when v_finding.kind = 'timer-failing' and exists (
      select from pawl.timer t
      where t.tenant_id = v_finding.tenant_id and t.instance_id = v_finding.instance_id and t.failed_version = t.armed_version);
    continue when v_finding.kind = 'connection-missing' and exists (
      select from pawl.task t
      where t.tenant_id = v_finding.tenant_id and t.id = v_finding.cause_id and t.due_at is not null
        and not exists (select from pawl.connection c where c.tenant_id = t.tenant_id and c.name = t.connection));
    continue when v_finding.kind in ('task-dead', 'task-late') and exists (
      select
      from pawl.task t
      cross join pawl.residence r
      where t.tenant_id = v_finding.tenant_id and t.id = v_finding.cause_id and r.tenant_id = v_finding.tenant_id
        and r.instance_id = v_finding.instance_id and pawl_private.bad_task(t, r) = v_finding.kind);
    update pawl.finding f
    set closed_at = greatest(f.opened_at, p_now)
    where f.tenant_id = v_finding.tenant_id and f.id = v_finding.id and f.closed_at is null;
    v_closed := v_closed + case when found then 1 else 0 end;
  end loop;
  return v_closed;
end
$$;
-- +goose StatementEnd

-- 85_watch/private_purge.sql

-- purge_findings deletes findings that were closed up to p_before, with their rows in the log. One stays while a consumer has
-- yet to read it, and while a delivery that tells of it is pending.
-- p_after_at, p_after_id: behind which finding, in the order of closed_at and id
-- Returns: the last finding that was looked at, to go on behind it; the beginning at the end
-- Writes:  finding, log
-- +goose StatementBegin
create function pawl_private.purge_findings(
  p_after_at timestamptz, p_after_id uuid, p_limit integer, p_before timestamptz, out upto_at timestamptz, out upto_id uuid
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_read bigint := (select min(c.position) from pawl.consumer c where not c.audit);
  v_finding record;
  v_looked integer := 0;
begin
  for v_finding in
    select f.tenant_id, f.id, f.closed_at
    from pawl.finding f
    where f.closed_at is not null and f.closed_at <= p_before and (f.closed_at, f.id) > (p_after_at, p_after_id)
    order by f.closed_at, f.id
    limit p_limit
  loop
    v_looked := v_looked + 1;
    upto_at := v_finding.closed_at;
    upto_id := v_finding.id;
    continue when pawl_private.webhook_retains_finding(v_finding.tenant_id, v_finding.id);
    delete from pawl.log l where l.tenant_id = v_finding.tenant_id and l.finding_id = v_finding.id and l.position <= v_read;
    continue when not found;
    delete from pawl.finding f where f.tenant_id = v_finding.tenant_id and f.id = v_finding.id;
  end loop;
  if v_looked < p_limit then
    upto_at := '-infinity';
    upto_id := '00000000-0000-0000-0000-000000000000';
  end if;
end
$$;
-- +goose StatementEnd

-- 85_watch/finding_look.sql

-- finding_look looks for what is wrong, and opens and closes findings. Without the consumer insight it does nothing.
-- p_limit: bounds what is read, of each kind; p_every: nothing is done if the last look was so short a time ago and was complete
-- Returns: opened, closed: how many findings, without those that steps and purges close; more: whether more is due
-- Raises:  PW400 malformed-request
-- Locks:   watch (if nobody else holds it), consumer, residence (for key share, those that are not locked)
-- Writes:  watch, watch_place, finding, log, stuck_place
-- +goose StatementBegin
create function pawl.finding_look(p_limit integer, p_every interval, out opened bigint, out closed bigint, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_watch pawl_private.watch;
  v_place pawl_private.stuck_place;
  v_limit integer := greatest(p_limit, 1);
  v_looked bigint := 0;
  v_at_place record;
  v_tasks record;
  v_deliveries record;
  v_timers record;
  v_lanes record;
  v_causes record;
  v_bad bigint;
  v_purged record;
begin
  perform pawl_private.refuse_malformed(
    case when p_every between interval '0' and interval '10 years' then null else 'the time between looks is from 0 to 10 years' end);
  opened := 0; closed := 0; more := false;
  select w.* into v_watch from pawl_private.watch w for update skip locked;
  if not found or v_watch.looked_at > v_now - p_every and v_watch.looked_at <= v_now then
    return;
  end if;
  perform from pawl.consumer c where c.name = 'insight' for no key update;
  if not found then
    return;
  end if;
  for v_place in select p.* from pawl_private.stuck_place p where p.next_at <= v_now order by p.next_at limit v_limit loop
    select * into v_at_place from pawl_private.look_at_place(v_place, v_limit, v_now);
    opened := opened + v_at_place.opened;
    -- A place costs about as much as some instances.
    v_looked := v_looked + v_at_place.looked + 5;
    exit when v_looked >= v_limit;
  end loop;
  more := v_looked >= v_limit;

  select * into v_causes from pawl_private.walk_on('cause', v_watch.cause_tenant, v_limit);
  closed := pawl_private.look_at_causes(v_causes.tenants, v_causes.ids, v_now);
  select * into v_tasks from pawl_private.walk_on('task', v_watch.task_tenant, v_limit);
  v_bad := pawl_private.look_at_tasks(v_tasks.tenants, v_tasks.ids, v_now);
  -- Where tasks ended badly, there may be more behind them. Those that are known already are walked at leisure.
  more := more or v_bad > 0 and v_tasks.cut;
  select * into v_deliveries from pawl_private.walk_on('delivery', v_watch.delivery_tenant, v_limit);
  select * into v_timers from pawl_private.walk_on('timer', v_watch.timer_tenant, v_limit);
  select * into v_lanes from pawl_private.look_at_lanes(v_watch.lane_tenant, least(v_limit, 100), v_now);
  opened := opened + v_bad + v_lanes.opened + pawl_private.look_at_deliveries(v_deliveries.tenants, v_deliveries.ids, v_now)
    + pawl_private.look_at_timers(v_timers.tenants, v_timers.ids, v_now);

  select * into v_purged from pawl_private.purge_findings(v_watch.purged_at, v_watch.purged_id, v_limit, v_now - interval '30 days');

  update pawl_private.watch w
  set looked_at = case when more then '-infinity' else v_now end,
    task_tenant = v_tasks.upto, delivery_tenant = v_deliveries.upto, cause_tenant = v_causes.upto,
    timer_tenant = v_timers.upto, lane_tenant = v_lanes.upto,
    purged_at = v_purged.upto_at, purged_id = v_purged.upto_id;
end
$$;
-- +goose StatementEnd

-- 85_watch/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.finding_look');

-- 86_heal/tables.sql

-- Module heal: what is done about instances that are stuck. It has no tables of its own: pawl.finding says what is stuck and
-- when the healer looks at it (heal_at), pawl_private.healing what it has tried.
--
-- The healer looks at the open findings orphaned, slow and task-dead of workflows that heal: in some version of them a state
-- has on_stuck. The instance's own version decides what is done:
--
--   event      is fired, as the actor healer. It is an ordinary step: guards, invariants and limits count
--   retry      the task is tried again, as an operator has it tried again; see pawl_private.reopen_task
--   reconcile  what became of the task's call is asked, likewise
--
-- An attempt is made under the instance's lock, and written down in the same transaction. So it is made once, whoever
-- crashes. A refusal is an attempt, too. For a task that is under way the healer waits, and that is no attempt. The time
-- between two attempts is at least that after which the instance is slow, or a minute if it never is.
--
-- Attempts are counted since the last step that was not the healer's. An internal step does not count as one: it does
-- not end a visit. So a visit that began after the version that the last attempt left begins anew. After max attempts,
-- and that time once more, there is a finding heal-failed, and nothing more is done in this visit.
--
-- Healing has a budget, for each tenant and workflow: if more than a twentieth of its open instances are stuck, and at least
-- 20, nothing is healed, since the fault is not with the instances. The finding healing-paused says so, and is the
-- state of the pause, too. It ends when fewer than a fortieth are stuck, or fewer than 10.
--
-- One process heals at a time: its transaction holds the row of watch, so that no look is under way. It heals only after
-- a look that was complete, so that it knows what is stuck. A call goes on with the workflow behind the one that the last call
-- ended with.
--
-- Lock order: watch, instance (those that are not locked), then what a step locks, finding (those that are not locked). For
-- an instance or a finding that another transaction holds it does not wait, so that it can hold the locks of others.

-- 86_heal/private.sql

-- heal_act does what a state does about an instance that is stuck. What raises is undone, and counts as refused. The caller
-- holds the instance's lock.
-- p_on_stuck: as in pawl.workflow_state. p_task: the task to retry or to reconcile; null for an event
-- Returns: outcome: applied, or the problem that it was refused with; null if the statement timeout came, and others may have
--          used up its time. version: the instance's after it
-- Raises:  what another try may cure: a deadlock, a lock that was not to be had, the end of the session
-- Writes:  what fire and reopen_task write
-- +goose StatementBegin
create function pawl_private.heal_act(
  p_finding pawl.finding, p_instance pawl.instance, p_on_stuck jsonb, p_task pawl.task, p_attempt integer, p_alone boolean,
  out outcome text, out version bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fired pawl.outcome;
  v_state text;
  v_reason text := format('%s, attempt %s of %s', p_finding.kind, p_attempt, p_on_stuck ->> 'max');
begin
  outcome := 'applied';
  version := p_instance.version;
  if p_on_stuck ? 'event' then
    select f.* into strict v_fired
    from pawl.fire(
      p_tenants => array[p_instance.tenant_id::text], p_ids => array[p_instance.id], p_events => array[p_on_stuck ->> 'event'],
      p_payloads => array['{}'::jsonb], p_keys => '{""}', p_expected => '{*}', p_checked => '{*}', p_actors => '{healer}',
      p_reasons => array[v_reason], p_correlation_ids => '{""}',
      p_traceparents => array[pawl_private.next_traceparent(
        pawl_private.traceparent_of(p_instance.tenant_id, p_instance.id, p_instance.version))],
      p_verified => true, p_history_keys => array['heal:' || p_finding.id]) f;
    outcome := coalesce((select c.problem from pawl_private.condition c where c.outcome = v_fired.code), v_fired.code);
    version := case v_fired.code when 'applied' then (v_fired.instance).version else p_instance.version end;
  else
    perform pawl_private.reopen_task(
      p_task => p_task, p_instance => p_instance, p_how => case when p_on_stuck ? 'retry' then 'retry' else 'reconcile' end,
      p_reason => v_reason, p_caller => '{"actor": "healer"}');
  end if;
exception
when query_canceled then
  if not pawl_private.timed_out() then
    raise;
  end if;
  outcome := case when p_alone then 'guard-error' end;
  version := p_instance.version;
when others then
  v_state := sqlstate;
  if v_state ~ '^(08|25|40|531|533|534|55|57|58)' then
    raise;
  end if;
  version := p_instance.version;
  outcome := case
    when v_state ~ '^(22|54)' or v_state in ('42704', '0A000') then 'guard-error'
    else coalesce((select c.problem from pawl_private.condition c where c.sqlstate = v_state limit 1), 'internal')
  end;
end
$$;
-- +goose StatementEnd

-- heal_instance looks at a finding that is due, and does what is to be done about its instance.
-- p_alone: whether the statement has tried nothing before
-- Returns: outcome: of the attempt; null if there was none. failed: a finding heal-failed was opened. next_at: when to look at
--          the finding again; null for never. timed_out: the statement has no time left
-- Raises:  what heal_act raises
-- Locks:   instance (for no key update, unless it is locked), then what a step or reopen_task locks
-- Writes:  healing, finding, what heal_act writes
-- +goose StatementBegin
create function pawl_private.heal_instance(
  p_finding pawl.finding, p_now timestamptz, p_alone boolean,
  out outcome text, out failed boolean, out next_at timestamptz, out timed_out boolean
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_instance pawl.instance;
  v_on_stuck jsonb;
  v_healing pawl_private.healing;
  v_task pawl.task;
  v_attempts integer := 0;
  v_space interval;
  v_version bigint;
begin
  failed := false;
  timed_out := false;
  select i.* into v_instance
  from pawl.instance i
  where i.tenant_id = p_finding.tenant_id and i.id = p_finding.instance_id
  for no key update skip locked;
  if not found or v_instance.status <> 'active' or v_instance.state <> p_finding.state or v_instance.state_changed_at <> p_finding.since then
    -- It is busy, or has made a step: then the fold closes the finding.
    next_at := p_now + interval '5 seconds';
    return;
  end if;
  select s.on_stuck into v_on_stuck
  from pawl.workflow_state s
  where s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = v_instance.state;
  if v_on_stuck is null or v_on_stuck ? 'event' and p_finding.kind = 'task-dead' then
    return;
  end if;
  v_space := coalesce((
    select p.threshold
    from pawl_private.stuck_place p
    where p.tenant_id = p_finding.tenant_id and p.workflow = p_finding.workflow and p.state = p_finding.state), interval '1 minute');
  select h.* into v_healing
  from pawl_private.healing h
  where h.tenant_id = p_finding.tenant_id and h.instance_id = p_finding.instance_id;
  if v_healing.version >= p_finding.visit_version then
    v_attempts := v_healing.attempts;
    if p_now < v_healing.tried_at + v_space then
      next_at := v_healing.tried_at + v_space;
      return;
    end if;
  end if;
  if not v_on_stuck ? 'event' then
    select t.* into v_task
    from pawl.task t
    where t.tenant_id = p_finding.tenant_id and t.instance_id = p_finding.instance_id and t.state = p_finding.state
      and t.name = coalesce(v_on_stuck ->> 'retry', v_on_stuck ->> 'reconcile') and t.compensates is null
    order by t.entered_version desc
    limit 1
    for update; -- A claim may hold it, and waits for nothing that is held here.
    if not found or v_task.status = 'cancelled' or v_task.result_version is not null or v_task.left_at is not null
      or v_task.ended_at is null and not (v_on_stuck ? 'reconcile' and v_task.status = 'reconciling' and v_task.due_at is not null) then
      -- It is under way.
      next_at := p_now + v_space;
      return;
    end if;
  end if;
  if v_attempts >= (v_on_stuck ->> 'max')::integer then
    insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
    values (
      p_finding.tenant_id, pawl_private.uuid_v7(p_now), 'heal-failed', p_finding.instance_id, p_finding.workflow, p_finding.state,
      p_finding.visit_version, p_finding.since, p_now,
      v_on_stuck - 'max' || jsonb_build_object('attempts', v_attempts, 'outcome', v_healing.outcome))
    on conflict do nothing;
    failed := found;
    return;
  end if;
  select a.* into strict outcome, v_version
  from pawl_private.heal_act(p_finding, v_instance, v_on_stuck, v_task, v_attempts + 1, p_alone) a;
  if outcome is null then
    timed_out := true;
    next_at := p_finding.heal_at;
    return;
  end if;
  insert into pawl_private.healing as h (tenant_id, instance_id, attempts, version, tried_at, outcome)
  values (p_finding.tenant_id, p_finding.instance_id, v_attempts + 1, v_version, p_now, outcome)
  on conflict on constraint healing_pkey do update
  set attempts = excluded.attempts, version = excluded.version, tried_at = excluded.tried_at, outcome = excluded.outcome;
  timed_out := pawl_private.timed_out();
  next_at := p_now + v_space;
end
$$;
-- +goose StatementEnd

-- heal_paused says whether the healing of a workflow rests, since too many of its instances are stuck. It opens and closes the
-- finding that says so.
-- Returns: paused; counted: how many stuck instances were counted, up to the bound that decides; opened: whether it began
-- Writes:  finding
-- +goose StatementBegin
create function pawl_private.heal_paused(p_tenant text, p_workflow text, p_now timestamptz, out paused boolean, out counted bigint, out opened boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashagg = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_open bigint;
  v_bound bigint;
  v_pause uuid;
begin
  opened := false;
  select coalesce(sum(c.instances), 0) into v_open
  from pawl.instance_count c
  where c.tenant_id = p_tenant and c.workflow = p_workflow and c.status = 'active';
  select f.id into v_pause
  from pawl.finding f
  where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind = 'healing-paused';
  v_bound := case when v_pause is null then greatest(20, v_open / 20 + 1) else greatest(10, (v_open + 39) / 40) end;
  select count(*) into counted
  from (
    select
    from pawl.finding f
    where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind in ('orphaned', 'slow', 'task-dead')
    group by f.instance_id
    limit v_bound
  ) s;
  paused := counted >= v_bound;
  if paused and v_pause is null then
    insert into pawl.finding (tenant_id, id, kind, workflow, opened_at, detail)
    values (
      p_tenant, pawl_private.uuid_v7(p_now), 'healing-paused', p_workflow, p_now,
      jsonb_build_object('open', v_open, 'stuck_at_least', counted, 'resumes_below', greatest(10, (v_open + 39) / 40)));
    opened := true;
  elsif not paused and v_pause is not null then
    update pawl.finding f set closed_at = greatest(f.opened_at, p_now) where f.tenant_id = p_tenant and f.id = v_pause;
  end if;
end
$$;
-- +goose StatementEnd

-- heal_workflow looks at the findings of a workflow that are due.
-- Returns: looked: how many rows were read, about; attempts, applied: how many were made, and were not refused; opened: how many
--          findings were opened. more: whether more may be due, since the limit or the statement timeout came
-- Raises:  what heal_act raises
-- Writes:  finding, what heal_instance writes
-- +goose StatementBegin
create function pawl_private.heal_workflow(
  p_tenant text, p_workflow text, p_limit integer, p_now timestamptz, p_alone boolean,
  out looked bigint, out attempts bigint, out applied bigint, out opened bigint, out more boolean
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_finding pawl.finding;
  v_paused record;
  v_healed record;
  v_seen integer := 0;
begin
  looked := 5; attempts := 0; applied := 0; opened := 0; more := false;
  if not exists (
    select from pawl.workflow_state s where s.workflow = p_workflow and s.on_stuck is not null
    union all
    select from pawl.finding f
    where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind = 'healing-paused'
  ) then
    return;
  end if;
  select * into v_paused from pawl_private.heal_paused(p_tenant, p_workflow, p_now);
  looked := looked + v_paused.counted / 10;
  opened := v_paused.opened::integer;
  if v_paused.paused then
    return;
  end if;
  for v_finding in
    select f.*
    from pawl.finding f
    where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind in ('orphaned', 'slow', 'task-dead')
      and f.heal_at is not null and f.heal_at <= p_now
    order by f.heal_at
    limit p_limit
  loop
    v_seen := v_seen + 1;
    select * into v_healed from pawl_private.heal_instance(v_finding, p_now, p_alone and attempts = 0);
    opened := opened + v_healed.failed::integer;
    attempts := attempts + (v_healed.outcome is not null)::integer;
    applied := applied + (v_healed.outcome is not distinct from 'applied')::integer;
    update pawl.finding f
    set heal_at = v_healed.next_at
    where f.ctid = any (array(
        select o.ctid from pawl.finding o where o.tenant_id = v_finding.tenant_id and o.id = v_finding.id for no key update skip locked))
      and f.heal_at is distinct from v_healed.next_at;
    if v_healed.timed_out then
      more := true;
      exit;
    end if;
  end loop;
  more := more or v_seen >= p_limit;
  looked := looked + v_seen;
end
$$;
-- +goose StatementEnd

-- 86_heal/heal.sql

-- heal does what definitions say about instances that are stuck. After a look that was not complete it does nothing.
-- p_limit: bounds the findings that are looked at; p_every: nothing is done if the last call was so short a time ago and was
-- complete
-- Returns: attempts: how many were made; applied: how many of them were not refused; opened: how many findings were opened;
--          more: whether more is due
-- Raises:  PW400 malformed-request; what another try may cure: a deadlock, a lock that was not to be had, the end of the session
-- Locks:   watch (if nobody else holds it), instance (for no key update, those that are not locked), then what a step locks
-- Writes:  watch, healing, finding, task, audit, what fire writes
-- +goose StatementBegin
create function pawl.heal(
  p_limit integer, p_every interval, out attempts bigint, out applied bigint, out opened bigint, out more boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_watch pawl_private.watch;
  v_limit integer := greatest(p_limit, 1);
  v_next record;
  v_healed record;
  v_looked bigint := 0;
  v_cut boolean;
begin
  perform pawl_private.refuse_malformed(
    case when p_every between interval '0' and interval '10 years' then null else 'the time between calls is from 0 to 10 years' end);
  attempts := 0; applied := 0; opened := 0; more := false;
  select w.* into v_watch from pawl_private.watch w for update skip locked;
  if not found or v_watch.looked_at = '-infinity' or v_watch.healed_at > v_now - p_every and v_watch.healed_at <= v_now then
    return;
  end if;
  loop
    select p.tenant_id, p.workflow into v_next
    from (
      (select f.tenant_id::text, f.workflow
      from pawl.finding f
      where f.closed_at is null and f.kind in ('orphaned', 'slow', 'task-dead') and f.heal_at is not null
        and (f.tenant_id, f.workflow) > (v_watch.heal_tenant, v_watch.heal_workflow)
      order by f.tenant_id, f.workflow
      limit 1)
      union all
      (select f.tenant_id::text, f.workflow
      from pawl.finding f
      where f.closed_at is null and f.kind = 'healing-paused' and (f.tenant_id, f.workflow) > (v_watch.heal_tenant, v_watch.heal_workflow)
      order by f.tenant_id, f.workflow
      limit 1)
    ) p
    order by p.tenant_id collate "C", p.workflow
    limit 1;
    if not found then
      more := v_watch.heal_cut;
      v_watch.heal_tenant := '';
      v_watch.heal_workflow := '';
      v_watch.heal_cut := false;
      exit;
    end if;
    v_watch.heal_tenant := v_next.tenant_id;
    v_watch.heal_workflow := v_next.workflow;
    v_cut := false;
    if pawl_private.is_disabled(v_next.tenant_id) then
      v_looked := v_looked + 1;
    else
      select * into v_healed
      from pawl_private.heal_workflow(
        v_next.tenant_id, v_next.workflow, (v_limit - v_looked)::integer, v_now, attempts = 0);
      v_looked := v_looked + v_healed.looked;
      attempts := attempts + v_healed.attempts;
      applied := applied + v_healed.applied;
      opened := opened + v_healed.opened;
      v_cut := v_healed.more;
    end if;
    v_watch.heal_cut := v_watch.heal_cut or v_cut;
    more := v_cut or v_looked >= v_limit;
    exit when more;
  end loop;
  update pawl_private.watch w
  set healed_at = case when more then '-infinity' else v_now end, heal_tenant = v_watch.heal_tenant,
    heal_workflow = v_watch.heal_workflow, heal_cut = v_watch.heal_cut;
end
$$;
-- +goose StatementEnd

-- 86_heal/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.heal');

-- 90_telemetry/tables.sql

-- Module telemetry: what the whole deployment has to do and has not done yet, for metrics. It has no tables.

-- backlog_row is the row type of backlog. It never has rows; see pawl.timeout_row.
create view pawl.backlog_row as
select ''::text as measure, ''::text as label, ''::text as status, 0::float8 as value where false;

-- 90_telemetry/backlog.sql

-- backlog measures what is still to be done. Each part reads a bounded number of rows, by an index. So its cost does not
-- grow with the backlog, and a count is at least what it says: of timers, deliveries and dead letters 10,000 rows are
-- counted, and of open tasks 100,000.
-- Timers and deliveries of disabled tenants wait until these are enabled, and are not counted.
-- Returns: one row per measure, and per label and status where the measure has these:
--          timers_due: how many deadlines have passed. timers_late: for how long the oldest of them, in seconds.
--          timers_failing: how many cannot be ended.
--          consumer_steps: by consumer, how many positions of the log it has not read. consumer_behind: by consumer, the
--          age of the first step that it has not read, in seconds.
--          deliveries_due: how many deliveries may be sent now. deliveries_late: for how long the oldest, in seconds.
--          deliveries_dead: how many dead letters there are.
--          tasks: by topic and status, how many are open, or have ended badly. Calls have the topic _call
-- +goose StatementBegin
create function pawl.backlog() returns setof pawl.backlog_row
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index.
set enable_seqscan = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_disabled text[] := array(select t.id::text from pawl.tenant t where t.disabled_at is not null);
begin
  return query
  select m.measure, ''::text, ''::text, m.value
  from (
    select count(*)::float8 as due, coalesce(extract(epoch from v_now - min(t.due_at)), 0)::float8 as late
    from (
      (
        select t.tenant_id, t.due_at
        from pawl.timer t
        where t.due_at <= v_now and t.queued_version is distinct from t.armed_version
        order by t.due_at
        limit 10000
      )
      union all
      select s.tenant_id, s.due_at
      from pawl_private.slow_queue q
      cross join lateral (
        select t.tenant_id, t.due_at
        from pawl.timer t
        where t.queue = q.id and t.queued_version = t.armed_version and t.due_at <= v_now
        order by t.due_at
        limit 1000
      ) s
    ) t
    where t.tenant_id <> all (v_disabled)
  ) t
  cross join lateral (values ('timers_due', t.due), ('timers_late', t.late)) m (measure, value);

  return query
  select 'timers_failing'::text, ''::text, ''::text, count(*)::float8
  from (select t.tenant_id from pawl.timer t where t.failed_version = t.armed_version limit 10000) t
  where t.tenant_id <> all (v_disabled);

  return query
  select m.measure, c.name, ''::text, m.value
  from pawl.consumer c
  cross join pawl.log_head e
  left join lateral (
    select r.at
    from pawl.log f
    cross join lateral (select pawl_private.logged_at(f) as at) r
    where f.position > c.position and not c.audit and r.at is not null
    order by f.position
    limit 1
  ) o on true
  left join lateral (
    select r.at
    from pawl.audit_log l
    join pawl.audit r on r.tenant_id = l.tenant_id and r.seq = l.seq
    where l.position > c.position and c.audit
    order by l.position
    limit 1
  ) a on true
  cross join lateral (values
    ('consumer_steps', greatest(case when c.audit then e.audit_position else e.position end - c.position, 0)::float8),
    ('consumer_behind', coalesce(extract(epoch from v_now - coalesce(o.at, a.at)), 0)::float8)
  ) m (measure, value);

  return query
  select m.measure, ''::text, ''::text, m.value
  from (
    select count(*)::float8 as due, coalesce(extract(epoch from v_now - min(d.next_attempt_at)), 0)::float8 as late
    from (
      (
        select d.tenant_id, d.next_attempt_at
        from pawl.delivery d
        where d.status = 'pending' and d.next_attempt_at is not null and not d.callback and d.next_attempt_at <= v_now
        limit 10000
      )
      union all
      (
        select d.tenant_id, d.next_attempt_at
        from pawl.delivery d
        where d.status = 'pending' and d.next_attempt_at is not null and d.callback and d.next_attempt_at <= v_now
        limit 10000
      )
    ) d
    where d.tenant_id <> all (v_disabled)
  ) d
  cross join lateral (values ('deliveries_due', d.due), ('deliveries_late', d.late)) m (measure, value);

  return query
  select 'deliveries_dead'::text, ''::text, ''::text, count(*)::float8
  from (select from pawl.delivery d where d.status = 'dead' limit 10000) d;

  return query
  select 'tasks'::text, coalesce(t.topic, '_call'), t.status, count(*)::float8
  from (
    (select t.topic, t.status from pawl.task t where t.status in ('pending', 'sent', 'reconciling') limit 100000)
    union all
    (select t.topic, t.status from pawl.task t where t.status in ('error', 'unknown') limit 10000)
  ) t
  group by t.topic, t.status;
end
$$;
-- +goose StatementEnd

-- 90_telemetry/own_steps.sql

-- own_steps reads the steps that no request to a process has made, and so no process has a span of: those of timers, of tasks,
-- of the healer and of SQL callers. A process that exports spans follows the log with it.
-- p_after: the position up to which it was read; null to begin: with the steps of the last 30 seconds, at most p_limit
-- p_limit: how many positions it reads at most
-- Returns: until: the position up to which it has read. steps: the steps that are sampled, in the order of position, each an
--          object with tenant, instance, version, workflow, kind, event, at, traceparent and parent. Of several steps of
--          one command it is the first. parent: of what a task brought, the traceparent of the last step before it in the same
--          trace, within 50; else null
-- +goose StatementBegin
create function pawl.own_steps(p_after bigint, p_limit integer, out until bigint, out steps jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index.
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_after bigint;
begin
  select e.position, coalesce(p_after, e.position - greatest(coalesce(p_limit, 0), 0)) into strict until, v_after from pawl.log_head e;
  if v_after < until then
    until := least(until, v_after + greatest(coalesce(p_limit, 0), 0));
  end if;
  select coalesce(jsonb_agg(jsonb_build_object(
    'tenant', h.tenant_id, 'instance', h.instance_id, 'version', h.version, 'workflow', h.workflow, 'kind', h.kind, 'event', h.event,
    'at', h.at, 'traceparent', h.traceparent, 'parent', p.traceparent) order by l.position), '[]')
  into strict steps
  from (
    select l.* from pawl.log l where l.position > v_after and l.position <= own_steps.until order by l.position
  ) l
  cross join lateral (
    select h.*, h.kind in ('result', 'compensated') or h.actor like 'task:%' and h.key like 'task:%' and u.keyless as by_task,
      h.actor = 'healer' and h.key like 'heal:%' and u.keyless as by_healer
    from pawl.history h
    -- Callers may use such names, and such keys. But their keys are recorded.
    cross join lateral (
      select not exists (
        select from pawl.idempotency_key k where k.tenant_id = h.tenant_id and k.key = h.key and k.instance_id = h.instance_id
      ) as keyless
    ) u
    where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
    limit 1
  ) h
  left join lateral (
    select b.traceparent
    from pawl.history b
    where b.tenant_id = l.tenant_id and b.instance_id = l.instance_id and b.version < l.version and b.version >= l.version - 50
      and h.by_task and substr(b.traceparent, 4, 32) = substr(h.traceparent, 4, 32) and b.traceparent <> h.traceparent
    order by b.version desc
    limit 1
  ) p on true
  where substr(h.traceparent, 55, 1) ~ '[13579bdf]' and (p_after is not null or h.at >= pawl.now() - interval '30 seconds')
    and (h.kind in ('timeout', 'expired') or h.by_task or h.by_healer or h.kind in ('created', 'transition') and h.database_user is not null)
    and not exists (
      select from pawl.history b
      where b.tenant_id = l.tenant_id and b.instance_id = l.instance_id and b.version = l.version - 1 and b.traceparent = h.traceparent);
end
$$;
-- +goose StatementEnd

-- 90_telemetry/grants.sql

insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.backlog'),
  ('worker', 'pawl.own_steps');

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
